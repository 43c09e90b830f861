"""Every rule of every specification is broken once, and found; all violations come at once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir import verify
from edgec.ir.info import ModelInfo, attach_info
from tests.passes.harness import model

CONV_BN = ("g (float[N,3,8,8] x, float[3,3,1,1] w, float[3] s) => (float[N,3,8,8] y) {"
           " t = Conv(x, w) y = BatchNormalization(t, s, s, s, s) }")
GOOD = "g (float[N,4] x, float[3,4] w, float[3] b) => (float[N,3] y) { y = Gemm<transB = 1>(x, w, b) }"


def good() -> ir.Model:
    return model(GOOD, w=np.ones((3, 4)), b=np.ones(3))


@pytest.mark.parametrize("spec", [verify.well_formed, verify.imported, verify.normalized,
                                  verify.lowered(frozenset({("", "Gemm")}))])
def test_good_graph_has_no_violation(spec: verify.Spec) -> None:
    assert spec(good()) == []


def test_opset() -> None:
    graph = good()
    graph.graph.opset_imports[""] = 23
    assert "opset 23" in verify.well_formed(graph)[0]


def test_value_read_before_it_is_made() -> None:
    graph = model("g (float[2] x) => (float[2] y) { a = Exp(x) y = Neg(a) }")
    first, second = list(graph.graph)
    graph.graph.remove(first)
    graph.graph.insert_after(second, first)
    assert "before it is made" in verify.well_formed(graph)[0]


def test_value_of_another_graph() -> None:
    graph = model("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    next(iter(graph.graph)).replace_input_with(0, ir.val("elsewhere"))
    assert "'elsewhere'" in verify.well_formed(graph)[0]


def test_same_name_twice() -> None:
    graph = model("g (float[2] x) => (float[2] y) { a = Exp(x) y = Neg(a) }")
    next(iter(graph.graph)).outputs[0].name = "x"
    assert verify.well_formed(graph) == ["two values are called 'x'"]


def test_nested_graphs_see_outer_values_but_not_the_reverse() -> None:
    graph = model("g (bool c, float[2] x) => (float[2] y) { a = Exp(x) y = If (c) <"
                  " then_branch = t () => (float[2] u) { u = Neg(a) }, else_branch = e () => (float[2] v) { v ="
                  " Abs(x) } > }")
    assert verify.well_formed(graph) == []
    branch = next(n for n in graph.graph if n.op_type == "If")
    inner = next(iter(branch.attributes["then_branch"].as_graph()))
    outside = ir.node("Sin", inner.outputs)
    outside.outputs[0].name = "o"
    graph.graph.insert_after(branch, outside)
    assert any("before it is made" in v for v in verify.well_formed(graph))


def test_edgec_rows_are_met() -> None:
    graph = model("g (float[1,T,8] q) => (float[1,T,8] y) { y = edgec.CachedAttention(q, q) }", domains={"edgec": 1})
    text = "; ".join(verify.well_formed(graph))
    assert "wants q, k, v" in text
    assert "'q_num_heads' is missing" in text


def test_imported_wants_input_types() -> None:
    graph = model("g (float[2] x) => (float[2] y) { y = other.Foo(x) }", domains={"other": 1})
    assert verify.imported(graph) == []
    graph.graph.inputs[0].shape = None
    assert any("no dtype or no rank" in v for v in verify.imported(graph))
    # What nothing knows is for the last stage, which lists it with everything else.
    assert any("other::Foo" in v for v in verify.lowered(frozenset())(graph))


@pytest.mark.parametrize(("text", "weights", "part"), [
    ("g (float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul(x, w) }", {"w": np.ones((4, 3))}, "[in, out]"),
    ("g (float[N,4] x, float[4,3] w) => (float[N,3] y) { y = Gemm(x, w) }", {"w": np.ones((4, 3))}, "not x Wᵀ"),
    ("g (float[N,4] x, float[3,4] w) => (float[N,3] y) { y = Gemm<transB = 1, alpha = 2.0>(x, w) }",
     {"w": np.ones((3, 4))}, "not x Wᵀ"),
    ("g (float[N] x) => (float[N] y) { c = Constant<value_float = 2.0>() y = Mul(x, c) }", {}, "not an initializer"),
    ("g (float[N] x) => (float[N] y) { c = Identity(x) y = Exp(c) }", {}, "does nothing"),
    (CONV_BN, {"w": np.ones((3, 3, 1, 1)), "s": np.ones(3)}, "not folded"),
])
def test_normalized(text: str, weights: dict[str, np.ndarray], part: str) -> None:
    found = verify.normalized(model(text, **weights))
    assert len(found) == 1
    assert part in found[0]


def test_normalized_allows_no_functions() -> None:
    graph = model("g (float[2] x) => (float[2] y) { y = local.F(x) }", domains={"local": 1},
                  functions='<opset_import: ["" : 24], domain: "local"> F (x) => (y) { y = Tanh(x) }')
    found = verify.normalized(graph)
    assert any("function local::F is left" in v for v in found)


def language_model() -> ir.Model:
    graph = model(
        "g (int64[1,seq] input_ids, int64 past_len, float[1,2,C,4] kc, float[1,2,C,4] vc, float[6,8] w) =>"
        " (float[1,seq,8] logits, float[1,2,C,4] ok, float[1,2,C,4] ov) { e = Gather(w, input_ids) logits, ok, ov ="
        " edgec.CachedAttention<q_num_heads = 2, kv_num_heads = 2>(e, e, e, kc, vc, past_len) }",
        domains={"edgec": 1}, w=np.ones((6, 8)))
    for values, suffix in ((graph.graph.inputs[2:], ""), (graph.graph.outputs[1:], "_out")):
        for value, name in zip(values, ("key_cache", "value_cache"), strict=True):
            value.name = f"{name}{suffix}.0"
    return attach_info(graph, ModelInfo(task="causal-lm"))


def test_language_model_form() -> None:
    assert verify.normalized(language_model()) == []
    graph = language_model()
    graph.graph.inputs[2].name = "past_key_values.0.key"
    assert any("inputs are" in v for v in verify.normalized(graph))
    graph = language_model()
    graph.graph.outputs[0].name = "y"
    assert any("outputs are" in v for v in verify.normalized(graph))
    graph = language_model()
    graph.graph.inputs[0].shape = ir.Shape(["batch", "seq"])
    graph.graph.inputs[1].shape = ir.Shape([1])
    graph.graph.inputs[2].shape = ir.Shape([2, "C", 4])
    assert len(verify.normalized(graph)) == 3
    graph = language_model()
    node = list(graph.graph)[-1]
    other = ir.node("Identity", [graph.graph.inputs[1]])
    other.outputs[0].name = "p"
    graph.graph.insert_before(node, other)
    node.replace_input_with(5, other.outputs[0])
    assert any("not from past_len" in v for v in verify.normalized(graph))


def test_lowered_names_every_operator_the_target_lacks() -> None:
    graph = model("g (float[2] x) => (float[2] y) { a = Exp(x) b = Sin(a) y = Neg(b) }")
    found = verify.lowered(frozenset({("", "Sin")}))(graph)
    assert ["Exp" in found[0], "Neg" in found[1], len(found)] == [True, True, 2]


def test_check_raises_all_at_once() -> None:
    graph = model("g (float[2] x) => (float[2] y) { a = Exp(x) b = Sin(a) y = Neg(b) }")
    with pytest.raises(EdgecError) as caught:
        verify.check(graph, verify.lowered(frozenset()), "lower", "E0301", "because")
    error = caught.value
    assert (error.code, error.stage, error.hint) == ("E0301", "lower", "because")
    assert all(name in error.found for name in ("Exp", "Sin", "Neg"))
    verify.check(good(), verify.normalized, "normalize")
