"""Every table entry gives the numbers of the operator it replaces, in strictly other operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.model import Builder, walk
from edgec.ir.passes import Context
from edgec.native.lower import build_plan, capabilities, unsupported
from edgec.passes.lower.decompose import TABLE, Decompose
from edgec.passes.lower.decompose_math import Entry
from edgec.passes.lower.decompose_nn import last_axis_norm, layer_normalization, rms_normalization
from edgec.pipeline import run_passes
from tests.passes.harness import close, evaluate, model, ops, reasons, run

_BASE = {
    "Add", "Sub", "Mul", "Div", "Exp", "Log", "Sqrt", "Tanh", "Erf", "Sin", "Cos", "Max", "Min", "Greater", "Less",
    "Equal", "And", "Or", "Not", "Where", "MatMul", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd", "Reshape",
    "Transpose", "Slice", "Concat", "Gather", "Unsqueeze", "Squeeze", "Shape", "Range", "Cast", "Expand",
}
BASE = frozenset(("", name) for name in _BASE)

UNARY = {
    "Gelu": ("Gelu", "Gelu<approximate = \"tanh\">"), "Swish": ("Swish", "Swish<alpha = 1.7>"),
    "HardSwish": ("HardSwish",), "HardSigmoid": ("HardSigmoid", "HardSigmoid<alpha = 0.3, beta = 0.4>"),
    "Mish": ("Mish",), "Softplus": ("Softplus",), "Softsign": ("Softsign",), "Sigmoid": ("Sigmoid",), "Relu": ("Relu",),
    "Elu": ("Elu", "Elu<alpha = 0.7>"), "Celu": ("Celu<alpha = 1.5>",), "Selu": ("Selu",),
    "LeakyRelu": ("LeakyRelu<alpha = 0.2>",), "ThresholdedRelu": ("ThresholdedRelu<alpha = 0.5>",),
    "Shrink": ("Shrink<bias = 0.2, lambd = 0.4>",), "Softmax": ("Softmax", "Softmax<axis = 1>"),
    "LogSoftmax": ("LogSoftmax", "LogSoftmax<axis = 0>"), "Reciprocal": ("Reciprocal",), "Neg": ("Neg",),
    "Abs": ("Abs",),
    "Tan": ("Tan",), "LpNormalization": ("LpNormalization",),
    "MeanVarianceNormalization": ("MeanVarianceNormalization<axes = [0, 2]>",),
    "Flatten": ("Flatten", "Flatten<axis = 0>", "Flatten<axis = -1>"),
}


@pytest.mark.parametrize("spelling", [s for group in UNARY.values() for s in group])
def test_unary(spelling: str) -> None:
    rank = "[2,12]" if spelling == "Flatten" else "[1,24]" if "axis = 0>" in spelling and "Flat" in spelling else (
        "[6,4]" if "Flatten" in spelling else "[2,3,4]")
    graph = model(f"g (float[2,3,4] x) => (float{rank} y) {{ y = {spelling} (x) }}")
    after, modified, _ = run(Decompose(), graph, capabilities=BASE)
    assert modified
    assert set(ops(after)) <= _BASE


CASES = {
    "PRelu": "g (float[2,3,4] x, float[3,1] s) => (float[2,3,4] y) { y = PRelu(x, s) }",
    "Sum": "g (float[2,3] a, float[3] b, float[2,1] c) => (float[2,3] y) { y = Sum(a, b, c) }",
    "Mean": "g (float[2,3] a, float[3] b, float[2,1] c) => (float[2,3] y) { y = Mean(a, b, c) }",
    "GreaterOrEqual": "g (float[2,3] a, float[3] b) => (bool[2,3] y) { y = GreaterOrEqual(a, b) }",
    "LessOrEqual": "g (float[2,3] a, float[3] b) => (bool[2,3] y) { y = LessOrEqual(a, b) }",
    "GlobalAveragePool": "g (float[2,3,4,5] x) => (float[2,3,1,1] y) { y = GlobalAveragePool(x) }",
    "GlobalMaxPool": "g (float[2,3,4,5] x) => (float[2,3,1,1] y) { y = GlobalMaxPool(x) }",
    "CastLike": "g (int64[2,3] x, float[1] t) => (float[2,3] y) { y = CastLike(x, t) }",
    "Size": "g (float[N,3] x) => (int64 y) { y = Size(x) }",
    "ConstantOfShape": "g (int64[2] x) => (float[M,K] y) { y = ConstantOfShape<value = float[1] {2.5}>(x) }",
    "DepthToSpace": "g (float[N,8,2,3] x) => (float[N,2,4,6] y) { y = DepthToSpace<blocksize = 2>(x) }",
    "DepthToSpace CRD": "g (float[N,8,2,3] x) => (float[N,2,4,6] y) {"
                        ' y = DepthToSpace<blocksize = 2, mode = "CRD">(x) }',
    "SpaceToDepth": "g (float[N,2,4,6] x) => (float[N,8,2,3] y) { y = SpaceToDepth<blocksize = 2>(x) }",
    "Split": "g (float[2,7] x) => (float[2,3] a, float[2,3] b, float[2,1] c) { a, b, c = Split<axis=1,"
             " num_outputs=3>(x) }",
    "Gemm": "g (float[3,2] a, float[3,4] b, float[4] c) => (float[2,4] y) {"
            " y = Gemm<transA = 1, alpha = 0.5, beta = 2.0>(a, b, c) }",
    "Gemm no bias": "g (float[2,3] a, float[4,3] b) => (float[2,4] y) { y = Gemm<transB = 1>(a, b) }",
    "RMSNormalization": "g (float[2,3,4] x, float[4] s) => (float[2,3,4] y) {"
                        " y = RMSNormalization<epsilon = 0.1>(x, s) }",
    "LayerNormalization": "g (float[2,3,4] x, float[4] s, float[4] b) => (float[2,3,4] y) {"
                          " y = LayerNormalization<epsilon = 0.1>(x, s, b) }",
    "LayerNormalization axes": "g (float[N,3,4] x, float[3,4] s) => (float[N,3,4] y) {"
                               " y = LayerNormalization<axis = 1>(x, s) }",
    "GroupNormalization": "g (float[N,6,4,2] x, float[6] s, float[6] b) => (float[N,6,4,2] y) {"
                          " y = GroupNormalization<num_groups = 3>(x, s, b) }",
    "InstanceNormalization": "g (float[N,6,4,2] x, float[6] s, float[6] b) => (float[N,6,4,2] y) {"
                             " y = InstanceNormalization(x, s, b) }",
    "ReduceLogSumExp": "g (float[2,3,4] x) => (float[2,4] y) {"
                       " a = Constant<value = int64[1] {1}>() y = ReduceLogSumExp<keepdims = 0>(x, a) }",
    "ReduceL1": "g (float[2,3,4] x) => (float[2,1,4] y) { a = Constant<value = int64[1] {1}>() y = ReduceL1(x, a) }",
    "ReduceL2": "g (float[2,3,4] x) => (float[1,1,1] y) { y = ReduceL2(x) }",
    "ReduceSumSquare": "g (float[2,3,4] x) => (float y) { y = ReduceSumSquare<keepdims = 0>(x) }",
    "Trilu": "g (float[2,3,4] x) => (float[2,3,4] y) { y = Trilu(x) }",
    "Trilu lower": "g (float[2,3,4] x) => (float[2,3,4] y) { k = Constant<value = int64 {1}>() y = Trilu<upper"
                   " = 0>(x, k) }",
    "Einsum": 'g (float[2,3,4] a, float[2,4,5] b) => (float[2,5,3] y) { y = Einsum<equation = "bij,bjk->bki">(a, b) }',
    "Einsum heads": 'g (float[2,3,4,5] a, float[4,5,6] b) => (float[2,3,6] y) {'
                    ' y = Einsum<equation = "bthd,hdo->bto">(a, b) }',
    "Einsum implicit": 'g (float[2,3] a, float[3] b) => (float[2] y) { y = Einsum<equation = "ij,j">(a, b) }',
    "Einsum one": 'g (float[2,3,4] a) => (float[4,2] y) { y = Einsum<equation = "ijk->ki">(a) }',
    "Einsum outer": 'g (float[2] a, float[3] b) => (float[2,3] y) { y = Einsum<equation = "i,j->ij">(a, b) }',
    "GatherND": "g (float[4,3,2] x) => (float[3,2] y) { i = Constant<value = int64[3,2] {0, 1, -1, 2, 3, -3}>()"
                " y = GatherND(x, i) }",
    "GatherND one": "g (float[4,3] x) => (float[2,2,3] y) { i = Constant<value = int64[2,2,1] {0, 1, -1, 2}>()"
                    " y = GatherND(x, i) }",
    "GatherND batch": "g (float[2,3,4,2] x) => (float[2,3,2] y) {"
                      " i = Constant<value = int64[2,3,1] {0, 1, -1, 2, 3, -2}>() y = GatherND<batch_dims = 2>(x, i) }",
    "GatherND element": "g (float[2,3] x) => (float[2] y) { i = Constant<value = int64[2,2] {0, 1, -1, 2}>()"
                        " y = GatherND(x, i) }",
    "GatherND last": "g (float[1,1,N,3] x) => (float[2,3] y) {"
                     " i = Constant<value = int64[2,3] {0, -1, 1, 0, 0, -1}>() y = GatherND(x, i) }",
    "GatherElements": "g (float[2,4,3] x) => (float[2,1,3] y) {"
                      " i = Constant<value = int64[2,1,3] {0, 1, -1, 2, 3, -4}>()"
                      " y = GatherElements<axis = 1>(x, i) }",
    "GatherElements at run time": "g (float[3,2] x, int64[3,2] i) => (float[3,2] y) { y = GatherElements(x, i) }",
    "OneHot": "g (int64[2,3] x) => (float[2,5,3] y) { d = Constant<value = int64 {5}>()"
              " v = Constant<value = float[2] {-1.0, 2.0}>() y = OneHot<axis = 1>(x, d, v) }",
    "CumSum": "g (float[2,7,N] x) => (float[2,7,N] y) { a = Constant<value = int64 {1}>() y = CumSum(x, a) }",
    "CumSum integers": "g (int64[6] x) => (int64[6] y) { a = Constant<value = int64 {-1}>()"
                       " y = CumSum<exclusive = 1, reverse = 1>(x, a) }",
    "CumSum reverse": "g (float[5,2] x) => (float[5,2] y) { a = Constant<value = int64 {0}>()"
                      " y = CumSum<reverse = 1>(x, a) }",
    "BatchNormalization": "g (float[N,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v0) => (float[N,3,4] y) {"
                          " v = Exp(v0) y = BatchNormalization(x, s, b, m, v) }",
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    after, modified, _ = run(Decompose(), model(CASES[name]), capabilities=BASE)
    assert modified
    assert set(ops(after)) - {"Constant"} <= _BASE


def test_reduce_log_sum() -> None:
    graph = model("g (float[2,3] x) => (float[2,1] y) { a = Constant<value = int64[1] {1}>() y = ReduceLogSum(x, a) }")
    run(Decompose(), graph, capabilities=BASE, feeds={"x": np.random.default_rng(0).random((2, 3), np.float32)})


def test_l1_normalization() -> None:
    # Positive values: the reference evaluator forgets the magnitude for p = 1.
    graph = model("g (float[2,3,4] x) => (float[2,3,4] y) { y = LpNormalization<p = 1, axis = 1>(x) }")
    x = np.random.default_rng(0).random((2, 3, 4), np.float32)
    x[0, :, 0] = 0
    run(Decompose(), graph, capabilities=BASE, feeds={"x": x})


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -0.5])
def test_pow(exponent: float) -> None:
    graph = model("g (float[2,3] x, float e) => (float[2,3] y) { y = Pow(x, e) }", e=exponent)
    after, _, _ = run(Decompose(), graph, capabilities=BASE,
                      feeds={"x": np.random.default_rng(0).random((2, 3), np.float32) + 0.5})
    assert "Pow" not in ops(after)


def test_batch_normalization_of_constants_becomes_mul_and_add() -> None:
    rng = np.random.default_rng(0)
    graph = model(
        "g (float[N,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[N,3,4] y) {"
        " y = BatchNormalization(x, s, b, m, v) }",
        s=rng.random(3), b=rng.random(3), m=rng.random(3), v=rng.random(3) + 0.5,
    )
    after, _, _ = run(Decompose(), graph, capabilities=BASE)
    assert ops(after) == {"Mul": 1, "Add": 1}


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("partial", [0, 4])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding(interleaved: int, partial: int, positions: bool, rank: int) -> None:
    x = "float[2,5,24] x" if rank == 3 else "float[2,3,5,8] x"
    y = x.replace(" x", " y")
    half = (partial or 8) // 2
    cache = f"float[9,{half}]" if positions else f"float[2,5,{half}]"
    attributes = f"interleaved = {interleaved}, rotary_embedding_dim = {partial}, num_heads = 3"
    graph = model(f"g ({x}, {cache} c, {cache} s{', int64[2,5] p' if positions else ''}) => ({y}) {{"
                  f" y = RotaryEmbedding<{attributes}>(x, c, s{', p' if positions else ''}) }}")
    after, _, _ = run(Decompose(), graph, capabilities=BASE)
    assert set(ops(after)) <= _BASE


@pytest.mark.parametrize("form", ["3d", "4d"])
@pytest.mark.parametrize("mask", ["", "bool[5,7]", "float[5,7]", "float[2,1,5,7]", "bool[2,4,5,7]", "bool[4,5,7]"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("extra", ["", ", softcap = 1.5, scale = 0.3"])
def test_attention(form: str, mask: str, causal: int, extra: str) -> None:
    shapes = ("float[2,5,32] q, float[2,7,16] k, float[2,7,12] v", "float[2,5,24] y") if form == "3d" else (
        "float[2,4,5,8] q, float[2,2,7,8] k, float[2,2,7,6] v", "float[2,4,5,6] y")
    heads = ", q_num_heads = 4, kv_num_heads = 2" if form == "3d" else ""
    inputs = shapes[0] + (f", {mask} m" if mask else "")
    graph = model(f"g ({inputs}) => ({shapes[1]}) {{"
                  f" y = Attention<is_causal = {causal}{heads}{extra}>(q, k, v{', m' if mask else ''}) }}")
    after, _, _ = run(Decompose(), graph, capabilities=BASE)
    assert set(ops(after)) <= _BASE


def test_attention_with_past() -> None:
    graph = model(
        "g (float[1,3,16] q, float[1,3,8] k, float[1,3,8] v, float[1,2,4,4] pk, float[1,2,4,4] pv) =>"
        " (float[1,3,16] y, float[1,2,7,4] ok, float[1,2,7,4] ov) {"
        " y, ok, ov = Attention<q_num_heads = 4, kv_num_heads = 2, is_causal = 1>(q, k, v, , pk, pv) }")
    after, _, _ = run(Decompose(), graph, capabilities=BASE)
    assert "Attention" not in ops(after)


def test_attention_row_that_sees_nothing_gives_zero() -> None:
    graph = model("g (float[1,1,2,4] q, float[1,1,3,4] k, float[1,1,3,4] v, bool[2,3] m) => (float[1,1,2,4] y) {"
                  " y = Attention(q, k, v, m) }")
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in
             (("q", (1, 1, 2, 4)), ("k", (1, 1, 3, 4)), ("v", (1, 1, 3, 4)))}
    run(Decompose(), graph, capabilities=BASE, feeds={**feeds, "m": np.array([[True, False, True], [False] * 3])})


def test_edgec_operator_is_replaced_by_its_body() -> None:
    graph = model(
        "g (float[1,T,16] q, float[1,T,8] k, float[1,T,8] v, float[1,2,9,4] kc, float[1,2,9,4] vc, int64 past_len) =>"
        " (float[1,T,16] y, float[1,2,9,4] ok, float[1,2,9,4] ov) {"
        " y, ok, ov = edgec.CachedAttention<q_num_heads = 4, kv_num_heads = 2, window = 3>(q, k, v, kc, vc,"
        " past_len) }",
        domains={"edgec": 1})
    after, modified, _ = run(Decompose(), graph, capabilities=BASE)
    assert modified
    assert set(ops(after)) <= _BASE | {"Round", "Pad", "ReduceMin", "Mod"}  # of what it keeps in 8 and 4 bits
    assert not after.functions


def test_what_the_target_implements_stays() -> None:
    graph = model("g (float[2,3] x) => (float[2,3] y) { y = Gelu(x) }")
    after, modified, _ = run(Decompose(), graph, capabilities=frozenset({("", "Gelu")}))
    assert not modified
    assert ops(after) == {"Gelu": 1}


def test_only_as_far_as_needed() -> None:
    graph = model("g (float[2,3] x) => (float[2,3] y) { y = Mish(x) }")
    after, _, _ = run(Decompose(), graph, capabilities=BASE | {("", "Softplus")})
    assert ops(after) == {"Softplus": 1, "Tanh": 1, "Mul": 1}


def test_forms_no_target_takes_are_decomposed_although_the_operator_is_known() -> None:
    graph = model(
        "g (float[N,3,4] x, float[3,4] s, float[3,4] b) => (float[N,3,4] y) {"
        " n = LayerNormalization<axis = 1>(x, s, b) y = Max(n, x, s) }")
    after, modified, _ = run(Decompose(), graph, capabilities=BASE | {("", "LayerNormalization")})
    assert modified
    norm = next(n for n in walk(after) if n.op_type == "LayerNormalization")
    assert norm.attributes["axis"].as_int() == -1
    assert ops(after)["Max"] == 2


def test_nested_graphs_are_decomposed() -> None:
    graph = model(
        "g (bool c, float[2,3] x) => (float[2,3] y) { y = If (c) <"
        " then_branch = a () => (float[2,3] t) { t = Swish(x) }, else_branch = b () => (float[2,3] e) { e ="
        " Relu(x) } > }")
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
        after, _, _ = run(Decompose(), graph.clone(), capabilities=BASE | {("", "If")}, feeds=feeds)
        assert set(ops(after)) <= _BASE | {"If"}


def test_a_node_the_target_refuses_is_decomposed_although_it_knows_the_operator() -> None:
    def refuses(node: ir.Node) -> str | None:
        return "alpha" if node.op_type == "Swish" and "alpha" in node.attributes else None

    graph = model("g (float[2,3] x) => (float[2,3] y) { a = Swish(x) y = Swish<alpha = 2.0>(a) }")
    ctx = Context(capabilities=BASE | {("", "Swish"), ("", "Sigmoid")}, refuses=refuses)
    after = run_passes(graph, [Decompose()], ctx).model
    assert ops(after) == {"Swish": 1, "Mul": 2, "Sigmoid": 1}


@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_max_of_integers_is_exact(keepdims: int) -> None:
    """Neighbours beyond the 24 bits of a float, the first of equals, negative ones, and the ends of the range."""
    rows = [[2**30, 2**30 + 1, 5, 2**30 + 1], [-7, -8, -7, -9], [-(2**31), -(2**31) + 1, -(2**31), -(2**31)],
            [2**31 - 2, 2**31 - 1, 0, -1], [3, 3, 4095, 4096]]
    shape = "5,1" if keepdims else "5"
    graph = model(f"g (int32[5,4] x) => (int64[{shape}] y) {{ y = ArgMax<axis = 1, keepdims = {keepdims}>(x) }}")
    feeds = {"x": np.array(rows, np.int32)}
    wanted = evaluate(graph, feeds)
    after = run_passes(graph, [Decompose()], Context(capabilities=capabilities(), refuses=unsupported)).model
    close(evaluate(after, feeds), wanted)
    assert [unsupported(node) for node in after.graph] == [None] * len(after.graph)


@pytest.mark.parametrize(("text", "reason"), [
    ('g (float[2,2] a) => (float[2] y) { y = Einsum<equation = "ii->i">(a) }', "repeated"),
    ('g (float[2,2] a) => (float[2,2] y) { y = Einsum<equation = "...i->...i">(a) }', "ellipsis"),
    ("g (float[2,N] x) => (float[2,A] a, float[2,B] b) { a, b = Split<axis = 1, num_outputs = 2>(x) }", "not known"),
    ("g (float[2,3] x, float[2,3] e) => (float[2,3] y) { y = Pow(x, e) }", "exponent"),
])
def test_declines_with_a_reason(text: str, reason: str) -> None:
    ctx = Context(capabilities=BASE)
    _, modified = Decompose().call(model(text), ctx)
    assert not modified
    assert reason in reasons(ctx.rules)


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_a_norm_of_a_scalar_is_refused(op: str) -> None:
    graph = model(f"g (float x, float[1] s) => (float y) {{ y = {op}(x, s) }}")
    ctx = Context(capabilities=capabilities(), refuses=unsupported)
    after, modified = Decompose().call(graph, ctx)
    assert not modified
    assert "no dim to normalize over" in reasons(ctx.rules)
    with pytest.raises(EdgecError, match="rank 0") as caught:
        build_plan(after)
    assert caught.value.code == "E0301"


@pytest.mark.parametrize("entry", [layer_normalization, rms_normalization, last_axis_norm])
def test_entries_for_norms_decline_scalars(entry: Entry) -> None:
    node = next(iter(model("g (float x, float[1] s) => (float y) { y = LayerNormalization(x, s) }").graph))
    assert "scalar" in str(entry(Builder(node), node))


@pytest.mark.parametrize("text", [
    "g (float[5,7] x, int64[2] s) => (float[3,9] y) { y = CenterCropPad(x, s) }",
    "g (float[3,5] x, int64[3] t) => (float y) { y = SoftmaxCrossEntropyLoss(x, t) }",
])
def test_bodies_of_the_standard_come_last(text: str) -> None:
    graph = model(text, **({"s": [3, 9]} if "CenterCropPad" in text else {"t": [0, 4, 2]}))
    after = run_passes(graph.clone(), [Decompose()], Context(capabilities=capabilities(), refuses=unsupported)).model
    assert {("", name) for name in ops(after)} <= capabilities() | {("", "Constant")}
    shape = (5, 7) if "Crop" in text else (3, 5)
    feeds = {"x": np.linspace(-2, 2, shape[0] * shape[1], dtype=np.float32).reshape(shape)}
    close(evaluate(after, feeds), evaluate(graph, feeds))


def test_every_entry_is_tested() -> None:
    tested = set(UNARY) | {name.split()[0] for name in CASES}
    tested |= {"ReduceLogSum", "Pow", "RotaryEmbedding", "Attention", "Clip", "Expand", "Tile"}
    tested |= {"ArgMax", "ConvTranspose"}  # tests/passes/test_decompose_conv.py
    tested |= {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}  # test_decompose_quantized.py
    tested |= {"Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Asin", "Acos", "Atan", "IsNaN", "IsInf"}  # ..._angles.py
    tested |= {"LpPool", "GlobalLpPool", "LRN", "MaxUnpool", "Col2Im", "GridSample", "AffineGrid", "AveragePool",
               "MaxPool"}  # ..._image.py
    tested |= {"DFT", "STFT", "Scan", "Loop", "If"}  # ..._signal.py, ..._control.py
    tested |= {"Hardmax", "Mod", "Dropout", "ArgMin", "ReverseSequence", "TensorScatter", "Compress"}  # conformance
    assert set(TABLE) == tested


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (None, 0.5), (-0.5, None), (0.5, -0.5)])
def test_clip(low: float | None, high: float | None) -> None:
    bounds = {k: v for k, v in (("l", low), ("h", high)) if v is not None}
    arguments = f"{'l' if low is not None else ''}{', h' if high is not None else ''}"
    signature = "".join(f", float {k}" for k in bounds)
    graph = model(f"g (float[2,3] x{signature}) => (float[2,3] y) {{ y = Clip(x, {arguments}) }}", **bounds)
    after, _, _ = run(Decompose(), graph, capabilities=BASE)
    assert "Clip" not in ops(after)


def test_expand_and_tile() -> None:
    graph = model("g (float[2,1] x, int64[3] s, int64[2] r) => (float[4,2,3] y, float[2,3] z) {"
                  " y = Expand(x, s) z = Tile(x, r) }", s=[4, 2, 3], r=[1, 3])
    after, _, _ = run(Decompose(), graph, capabilities=BASE - {("", "Expand")})
    assert set(ops(after)) == {"Mul", "Concat"}
