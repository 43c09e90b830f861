from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.model import walk
from edgec.ir.passes import Context
from edgec.passes.normalize.fold_constants import FoldConstants
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def test_constant_nodes_become_initializers_and_arithmetic_is_done() -> None:
    graph = model("g (float[N,3] x) => (float[N,3] y) {"
                  " a = Constant<value = float[3] {1, 2, 3}>() b = Constant<value_float = 2.0>() c = Mul(a, b)"
                  " y = Add(x, c) }")
    after, modified, _ = run(FoldConstants(), graph)
    assert modified
    assert ops(after) == {"Add": 1}
    assert [v.const_value.numpy().tolist() for v in after.graph.initializers.values() if v.const_value] == [[2, 4, 6]]


def test_shape_arithmetic_on_known_dims() -> None:
    graph = model(
        "g (float[N,3,4] x) => (float[N,12] y, int64 n) {"
        " s = Shape(x) i = Constant<value = int64[1] {1}>() d = Gather(s, i) e = Shape<start = 2>(x) p = Mul(d, e)"
        " m = Constant<value = int64[1] {-1}>() t = Concat<axis = 0>(m, p) y = Reshape(x, t)"
        " k = Constant<value = int64 {1}>() n = Gather(s, k) }")
    after, _, _ = run(FoldConstants(), graph)
    assert ops(after) == {"Reshape": 1, "Identity": 1}


def test_unknown_dims_stay() -> None:
    graph = model("g (float[N,3] x) => (int64[1] n, int64[2] s) { n = Shape<end = 1>(x) s = Shape(x) }")
    _, modified, _ = run(FoldConstants(), graph)
    assert not modified


def test_size_and_cast_like_and_constant_of_shape() -> None:
    graph = model("g (float[2,3] x, int64[2] s) => (int64 n, float[2,3] y) {"
                  " n = Size(x) z = ConstantOfShape<value = float[1] {2}>(s) c = CastLike(z, x) y = Add(x, c)"
                  " }", s=[2, 3])
    after, _, _ = run(FoldConstants(), graph)
    assert set(ops(after)) == {"Add", "Identity"}


def test_never_inflates_the_model() -> None:
    graph = model("g (float[N,4096] x, float[1] a, int64[2] s) => (float[N,4096] y) {"
                  " b = Expand(a, s) y = Add(x, b) }", a=[1], s=[4096, 4096])
    _, modified, report = run(FoldConstants(), graph, feeds={"x": np.zeros((4096, 4096), np.float32)})
    assert not modified
    assert "grow" in reasons(report)


def test_large_constants_are_folded_only_when_their_source_goes() -> None:
    body = "t = Mul(w, two) y = Add(x, t)"
    text = "g (float[N,4096] x, float[4096] w, float two) => (float[N,4096] y{more}) {{ {body} }}"
    w = RNG.standard_normal(4096)
    alone = model(text.format(more="", body=body), w=w, two=2)
    after, _, _ = run(FoldConstants(), alone)
    assert ops(after) == {"Add": 1}
    shared = model(text.format(more=", float[N,4096] z", body=body + " z = Sub(x, w)"), w=w, two=2)
    after, modified, _ = run(FoldConstants(), shared)
    assert not modified
    assert ops(after)["Mul"] == 1


def test_transposed_weight_of_a_linear_stays_lazy() -> None:
    graph = model("g (float[N,4] x, float[5,4] w) => (float[N,5] y) { t = Transpose<perm = [1, 0]>(w) y ="
                  " MatMul(x, t) }",
                  w=RNG.standard_normal((5, 4)))
    _, modified, _ = run(FoldConstants(), graph)
    assert not modified


def test_random_and_quantized_values_stay() -> None:
    graph = model("g (float[2] x, int8[2] q, float s) => (float[2] y) { d = DequantizeLinear(q, s) y = Add(x, d) }",
                  q=np.array([1, 2]), s=0.5)
    _, modified, _ = run(FoldConstants(), graph)
    assert not modified
    random = model("g (float[2] x) => (float[2] y) { r = RandomNormal<shape = [2]>() y = Add(x, r) }")
    _, modified = FoldConstants().call(random, Context())
    assert not modified


def test_what_cannot_be_computed_stays_with_the_reason() -> None:
    graph = model("g (float[2] x, float[2] w, int64[1] s) => (float[2] y) { r = Reshape(w, s) y = Add(x, r) }",
                  w=[1, 2], s=[3])
    ctx = Context()
    after, _ = FoldConstants().call(graph, ctx)
    assert ops(after)["Reshape"] == 1
    assert "cannot be computed" in reasons(ctx.rules)


def test_an_overridable_initializer_is_not_a_constant() -> None:
    graph = model("g (float[2] x, float[2] w) => (float[2] y) { t = Neg(w) y = Add(x, t) }")
    graph.graph.inputs[1].const_value = ir.tensor(np.ones(2, np.float32))
    graph.graph.register_initializer(graph.graph.inputs[1])
    after, modified = FoldConstants().call(graph, Context())
    assert not modified
    assert ops(after)["Neg"] == 1


def test_constants_of_nested_graphs() -> None:
    graph = model(
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <"
        " then_branch = a () => (float[2] t) { k = Constant<value = float[2] {1, 2}>() m = Neg(k) t = Add(x, m) },"
        " else_branch = b () => (float[2] e) { e = Relu(x) } > }")
    after, modified, _ = run(FoldConstants(), graph)
    assert modified
    assert ops(after) == {"If": 1, "Add": 1, "Relu": 1}


def test_constant_graph_output_keeps_its_name() -> None:
    graph = model("g (float[2] x) => (float[2] y, float[2] k) { y = Relu(x) a = Constant<value = float[2] {1,"
                  " 2}>() k = Neg(a) }")
    after, _, _ = run(FoldConstants(), graph)
    assert [v.name for v in after.graph.outputs] == ["y", "k"]
    assert "Neg" not in ops(after)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_scalars_stay_scalars(dtype: type) -> None:
    name = {np.float32: "float", np.int64: "int64", np.bool_: "bool"}[dtype]  # type: ignore[index]
    op = "Not" if dtype is np.bool_ else "Neg"
    graph = model(f"g ({name}[2] x, {name} k) => ({name}[2] y) {{ m = {op}(k) c = Constant<value = bool {{1}}>()"
                  f" y = Where(c, m, x) }}", k=dtype(1))
    after, _, _ = run(FoldConstants(), graph)
    assert all(tuple(v.shape or ()) == () for v in after.graph.initializers.values())
    assert len(list(walk(after))) == 1


@pytest.mark.parametrize("text", [
    "y = LpNormalization<axis = 0, p = 1>(c)", "y = LRN<size = 3>(i)", "y = GlobalMaxPool(t)",
    "y = LogSoftmax(c)",
])
def test_what_the_evaluator_gets_wrong_is_left_to_the_runtime(text: str) -> None:
    graph = model(f"g (float[1] x, float[3] c, float[2,4,1,3] i, float[2,4,3] t) => (float[N] y) {{ {text} }}",
                  c=[-1, 2, -4], i=RNG.standard_normal((2, 4, 1, 3)), t=RNG.standard_normal((2, 4, 3)))
    _, modified = FoldConstants().call(graph, Context())
    assert not modified


def test_halves_are_folded_in_float32() -> None:
    """With every sum rounded to 11 bits the second would not be noticed."""
    graph = model("g (float16[1] x, float16[3] a) => (float16[1] y) { s = ReduceSum(a) y = Mul(x, s) }",
                  a=np.array([4096, 1.5, 1.5], np.float16))
    after, _ = FoldConstants().call(graph, Context())
    values = [v.const_value for v in after.graph.initializers.values()]
    assert [(t.dtype, t.numpy().tolist()) for t in values if t] == [(ir.DataType.FLOAT16, [4100.0])]
