from __future__ import annotations

from edgec.ir.model import dims_of, walk
from edgec.ir.shapes import infer_shapes
from tests.passes.harness import model


def test_standard_operators_between_and_after_edgec_ones() -> None:
    graph = model(
        "g (float[1,T,16] x, float[1,2,9,4] kc, float[1,2,9,4] vc, int64 past_len) => (float[1,T,16] y) {"
        " q = Exp(x) a, k1, v1 = edgec.CachedAttention<q_num_heads = 4, kv_num_heads = 4>(q, q, q, kc, vc, past_len)"
        " b = Neg(a) c, k2, v2 = edgec.CachedAttention<q_num_heads = 4, kv_num_heads = 4>(b, b, b, kc, vc, past_len)"
        " y = Abs(c) }", domains={"edgec": 1})
    infer_shapes(graph)
    assert {n.outputs[0].name: dims_of(n.outputs[0]) for n in walk(graph)} == dict.fromkeys("qabcy", (1, "T", 16))


def test_what_cannot_be_known_stays_unknown() -> None:
    graph = model("g (float[2] x, int64[2] s) => (float[A,B] y) { a = Reshape(x, s) y = Abs(a) }")
    infer_shapes(graph)
    assert dims_of(next(walk(graph)).outputs[0]) != (2,)


def test_nested_graphs() -> None:
    graph = model("g (bool c, float[N,3] x) => (float[N,3] y) { y = If (c) <"
                  " then_branch = t () => (float[N,3] u) { i = Exp(x) u = Neg(i) },"
                  " else_branch = e () => (float[N,3] v) { v = Abs(x) } > }")
    infer_shapes(graph)
    inner = next(n for n in walk(graph) if n.op_type == "Exp")
    assert dims_of(inner.outputs[0]) == ("N", 3)
