from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.passes import Context
from edgec.passes.normalize.inline_functions import InlineFunctions
from edgec.pipeline import run_passes
from tests.passes.harness import close, evaluate, model, ops, run

RNG = np.random.default_rng(0)
VENDOR = {"com.microsoft": 1}
SCALED = """
<opset_import: ["" : 24], domain: "local">
Scaled <factor: float = 3.0> (x) => (y) { f = Constant<value_float: float = @factor>() y = Mul(x, f) }
"""


def test_functions_disappear() -> None:
    graph = model("g (float[2] x) => (float[2] y) {"
                  " a = local.Scaled<factor = 2.0>(x) b = Neg(a) y = local.Scaled<factor = 3.0>(b) }",
                  functions=SCALED, domains={"local": 1})
    after, modified, _ = run(InlineFunctions(), graph)
    assert modified
    assert ops(after) == {"Constant": 2, "Mul": 2, "Neg": 1}
    assert not after.functions


def test_edgec_functions_stay() -> None:
    graph = model(
        "g (float[1,T,8] q, float[1,T,8] k, float[1,T,8] v, float[1,2,9,4] kc, float[1,2,9,4] vc, int64 past_len) =>"
        " (float[1,T,8] y, float[1,2,9,4] ok, float[1,2,9,4] ov) {"
        " y, ok, ov = edgec.CachedAttention<q_num_heads = 2, kv_num_heads = 2>(q, k, v, kc, vc, past_len) }",
        domains={"edgec": 1})
    after, modified, _ = run(InlineFunctions(), graph)
    assert not modified
    assert ops(after) == {"edgec::CachedAttention": 1}


def vendor(text: str, **weights: np.ndarray) -> ir.Model:
    return model(text, domains=VENDOR, **weights)


@pytest.mark.parametrize("bias", [False, True])
def test_skip_simplified_norm(bias: bool) -> None:
    w, b = RNG.standard_normal(4), RNG.standard_normal(4)
    declared, given = (", float[4] b", ", b") if bias else ("", "")
    graph = vendor(f"g (float[2,4] x, float[2,4] s, float[4] w{declared}) => (float[2,4] y, float[2,4] t) {{"
                   " y, m, i, t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.01>"
                   f"(x, s, w{given}) }}",
                   w=w, **({"b": b} if bias else {}))
    after = run_passes(graph, [InlineFunctions()], Context()).model
    assert set(ops(after)) == {"Add", "RMSNormalization"}
    x, s = (RNG.standard_normal((2, 4)).astype(np.float32) for _ in range(2))
    total = x + s + (b.astype(np.float32) if bias else 0)
    wanted = total / np.sqrt((total**2).mean(-1, keepdims=True) + 0.01) * w
    close(evaluate(after, {"x": x, "s": s}), {"y": wanted.astype(np.float32), "t": total.astype(np.float32)})


def test_skip_norm_against_onnxruntime() -> None:
    graph = vendor("g (float[1,2,4] x, float[1,2,4] s, float[4] w, float[4] b, float[4] c) =>"
                   " (float[1,2,4] y, float[1,2,4] t) {"
                   " y, m, i, t = com.microsoft.SkipLayerNormalization<epsilon = 0.01>(x, s, w, b, c) }",
                   w=RNG.standard_normal(4), b=RNG.standard_normal(4), c=RNG.standard_normal(4))
    after, _, _ = run(InlineFunctions(), graph.clone(), engine="onnxruntime")
    assert ops(after) == {"Add": 2, "LayerNormalization": 1}


@pytest.mark.parametrize(("spelling", "op"), [
    ("com.microsoft.Gelu(x)", "Gelu"), ("com.microsoft.FastGelu(x)", "Gelu"), ("com.microsoft.BiasGelu(x, b)", "Gelu"),
    ("com.microsoft.FastGelu(x, b)", "Gelu"), ("com.microsoft.QuickGelu<alpha = 1.5>(x)", "Swish"),
])
def test_vendor_activations_against_onnxruntime(spelling: str, op: str) -> None:
    graph = vendor(f"g (float[2,4] x, float[4] b) => (float[2,4] y) {{ y = {spelling} }}", b=RNG.standard_normal(4))
    # onnxruntime's FastGelu is itself an approximation of the tanh form.
    after, _, _ = run(InlineFunctions(), graph, engine="onnxruntime", tolerance=2e-3)
    assert op in ops(after)


def test_simplified_norm_in_the_standard_domain() -> None:
    graph = model("g (float[2,4] x, float[4] w) => (float[2,4] y) {"
                  " y = SimplifiedLayerNormalization<axis = -1>(x, w) }",
                  w=RNG.standard_normal(4))
    after, _, _ = run(InlineFunctions(), graph, engine="onnxruntime")
    assert ops(after) == {"RMSNormalization": 1}


def test_operators_without_a_body_stay() -> None:
    """The last stage lists them, together with everything else the target lacks."""
    graph = vendor("g (float[2,4] x) => (float[2,4] y) { a = com.microsoft.Foo(x) y = com.microsoft.Bar(a) }")
    after = run_passes(graph, [InlineFunctions()], Context()).model
    assert ops(after) == {"com.microsoft::Foo": 1, "com.microsoft::Bar": 1}


def test_functions_in_a_circle_are_refused() -> None:
    circle = """
    <opset_import: ["" : 24, "local" : 1], domain: "local"> A (x) => (y) { y = local.B(x) }
    <opset_import: ["" : 24, "local" : 1], domain: "local"> B (x) => (y) { y = local.A(x) }
    """
    graph = model("g (float[2] x) => (float[2] y) { y = local.A(x) }", functions=circle, domains={"local": 1})
    with pytest.raises(EdgecError) as caught:
        InlineFunctions().call(graph, Context())
    assert caught.value.code == "E0101"


def test_functions_that_double_are_refused_before_they_are_inlined() -> None:
    functions = '<opset_import: ["" : 24], domain: "local"> F0 (x) => (y) { y = Neg(x) }\n' + "\n".join(
        f'<opset_import: ["" : 24, "local" : 1], domain: "local"> F{i} (x) => (y)'
        f" {{ t = local.F{i - 1}(x) y = local.F{i - 1}(t) }}" for i in range(1, 40))
    graph = model("g (float[2] x) => (float[2] y) { y = local.F39(x) }", functions=functions, domains={"local": 1})
    with pytest.raises(EdgecError) as caught:
        InlineFunctions().call(graph, Context())
    assert caught.value.code == "E0101"
    assert str(1 << 39) in caught.value.found
