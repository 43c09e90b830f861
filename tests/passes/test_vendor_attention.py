"""Vendor attention operators against onnxruntime running the vendor operator itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.passes import Context
from edgec.passes.normalize.inline_functions import InlineFunctions
from edgec.pipeline import run_passes
from tests.passes.harness import Array, close, evaluate, model, ops, reasons, run

VENDOR = {"com.microsoft": 1}
RNG = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def rewritten(graph: ir.Model, feeds: dict[str, Array], tolerance: float = 2e-5) -> ir.Model:
    """The graph after the pass; nothing of the vendor's is left and the numbers are onnxruntime's own."""
    after, modified, _ = run(InlineFunctions(), graph.clone(), feeds=feeds, engine="onnxruntime", tolerance=tolerance)
    assert modified
    assert not [name for name in ops(after) if "::" in name]
    return after


def mha(inputs: str, given: str, outputs: str = "float[2,N,8] y", attributes: str = "") -> ir.Model:
    names = ", ".join(part.split()[-1] for part in outputs.split(", "))
    return model(f"g ({inputs}) => ({outputs}) {{ {names} = com.microsoft.MultiHeadAttention"
                 f"<num_heads = 2{attributes}>({given}) }}", domains=VENDOR)


QKV = "float[2,3,8] q, float[2,5,8] k, float[2,5,8] v"
FEEDS = {"q": floats(2, 3, 8), "k": floats(2, 5, 8), "v": floats(2, 5, 8)}


@pytest.mark.parametrize(("inputs", "given", "attributes", "feeds"), [
    (QKV, "q, k, v", "", {}),
    (QKV, "q, k, v", ", scale = 0.3", {}),
    (QKV + ", float[24] b", "q, k, v, b", "", {"b": floats(24)}),
    (QKV + ", int32[2] m", "q, k, v, , m", "", {"m": np.array([5, 2], np.int32)}),
    (QKV + ", int32[2,5] m", "q, k, v, , m", "", {"m": np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], np.int32)}),
    (QKV + ", float[1,2,3,5] a", "q, k, v, , , a", "", {"a": floats(1, 2, 3, 5)}),
    (QKV + ", int32[2,5] m, float[2,2,3,5] a", "q, k, v, , m, a", "",
     {"m": np.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], np.int32), "a": floats(2, 2, 3, 5)}),
], ids=["plain", "scale", "bias", "lengths", "padding", "scores", "both"])
def test_multi_head_attention(inputs: str, given: str, attributes: str, feeds: dict[str, Array]) -> None:
    after = rewritten(mha(inputs, given, attributes=attributes), {**FEEDS, **feeds})
    assert ops(after)["Attention"] == 1


def test_multi_head_attention_is_causal() -> None:
    inputs = "float[2,4,8] q, float[2,4,8] k, float[2,4,8] v"
    rewritten(mha(inputs, "q, k, v", attributes=", unidirectional = 1"), {n: floats(2, 4, 8) for n in "qkv"})


def test_multi_head_attention_with_past() -> None:
    graph = mha("float[2,1,8] q, float[2,1,8] k, float[2,1,8] v, float[2,2,3,4] pk, float[2,2,3,4] pv",
                "q, k, v, , , , pk, pv", "float[2,1,8] y, float[2,2,4,4] nk, float[2,2,4,4] nv")
    rewritten(graph, {n: floats(2, 1, 8) for n in "qkv"} | {"pk": floats(2, 2, 3, 4), "pv": floats(2, 2, 3, 4)})


def test_multi_head_attention_over_heads_first_keys() -> None:
    graph = mha("float[2,3,8] q, float[2,2,5,4] k, float[2,2,5,4] v", "q, k, v")
    rewritten(graph, {"q": floats(2, 3, 8), "k": floats(2, 2, 5, 4), "v": floats(2, 2, 5, 4)})


def test_packed_queries_are_refused() -> None:
    graph = mha("float[2,3,2,3,4] q", "q")
    report = run_passes(graph, [InlineFunctions()], Context()).records[0]
    assert "packed" in reasons(report.rules)


def packed(inputs: str, given: str, outputs: str = "float[2,3,8] y", attributes: str = "") -> ir.Model:
    names = ", ".join(part.split()[-1] for part in outputs.split(", "))
    return model(f"g (float[2,3,6] x, float[6,24] w, float[24] b{inputs}) => ({outputs}) {{"
                 f" {names} = com.microsoft.Attention<num_heads = 2{attributes}>({given}) }}", domains=VENDOR,
                 w=floats(6, 24), b=floats(24))


@pytest.mark.parametrize(("inputs", "given", "attributes", "feeds"), [
    ("", "x, w, b", "", {}),
    ("", "x, w, b", ", unidirectional = 1", {}),
    (", int32[2] m", "x, w, b, m", "", {"m": np.array([3, 1], np.int32)}),
    (", int32[2,3] m", "x, w, b, m", "", {"m": np.array([[1, 0, 1], [1, 1, 0]], np.int32)}),
    (", int32[2,3,3] m", "x, w, b, m", "", {"m": np.tril(np.ones((2, 3, 3), np.int32))}),
    (", float[2,2,3,3] a", "x, w, b, , , a", "", {"a": floats(2, 2, 3, 3)}),
], ids=["plain", "causal", "lengths", "padding", "mask3", "scores"])
def test_packed_attention(inputs: str, given: str, attributes: str, feeds: dict[str, Array]) -> None:
    after = rewritten(packed(inputs, given, attributes=attributes), {"x": floats(2, 3, 6), **feeds})
    assert ops(after)["Attention"] == 1


def test_packed_attention_with_past() -> None:
    graph = packed(", float[2,2,2,5,4] p", "x, w, b, , p", "float[2,3,8] y, float[2,2,2,8,4] n",
                   ", unidirectional = 1")
    rewritten(graph, {"x": floats(2, 3, 6), "p": floats(2, 2, 2, 5, 4)})


def test_packed_attention_of_unequal_widths() -> None:
    graph = model("g (float[2,3,6] x, float[6,20] w, float[20] b) => (float[2,3,4] y) {"
                  " y = com.microsoft.Attention<num_heads = 2, qkv_hidden_sizes = [8, 8, 4]>(x, w, b) }",
                  domains=VENDOR, w=floats(6, 20), b=floats(20))
    rewritten(graph, {"x": floats(2, 3, 6)})


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(("shape", "positions", "attributes"), [
    ("2,3,16", "int64[2,3]", ""),
    ("2,3,16", "int64[1]", ""),
    ("2,2,3,8", "int64[2,3]", ""),
    ("2,3,24", "int64[2,3]", ", num_heads = 2, rotary_embedding_dim = 8"),
])
def test_rotary_embedding(shape: str, positions: str, attributes: str, interleaved: int) -> None:
    graph = model(f"g (float[{shape}] x, {positions} p, float[9,4] c, float[9,4] s) => (float[{shape}] y) {{"
                  f" y = com.microsoft.RotaryEmbedding<interleaved = {interleaved}{attributes}>(x, p, c, s) }}",
                  domains=VENDOR, c=np.cos(floats(9, 4)), s=np.sin(floats(9, 4)))
    p = np.array([4], np.int64) if positions == "int64[1]" else np.array([[0, 1, 2], [5, 6, 8]], np.int64)
    rewritten(graph, {"x": floats(*map(int, shape.split(","))), "p": p})


GQA = """
g (float[1,S,64] q, float[1,S,32] k, float[1,S,32] v, float[1,2,P,16] pk, float[1,2,P,16] pv, int32[1,T] mask,
   float[32,8] c, float[32,8] s) => (float[1,S,64] y, float[1,2,T,16] nk, float[1,2,T,16] nv) {
    axes = Constant<value = int64[1] {1}>()
    one = Constant<value = int32 {1}>()
    sums = ReduceSum<keepdims = 0>(mask, axes)
    lengths = Sub(sums, one)
    shape = Shape<start = 1, end = 2>(mask)
    total64 = Squeeze(shape)
    total = Cast<to = 6>(total64)
    y, nk, nv = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2 ATTRIBUTES>
        (QKV, pk, pv, lengths, total TABLES)
}
"""


def gqa(attributes: str = "", tables: str = "", qkv: str = "q, k, v") -> ir.Model:
    text = GQA.replace("ATTRIBUTES", attributes).replace("TABLES", tables).replace("QKV", qkv)
    if qkv != "q, k, v":
        text = text.replace("float[1,S,64] q, float[1,S,32] k, float[1,S,32] v", "float[1,S,128] q")
    return model(text, domains=VENDOR, c=np.cos(floats(32, 8)), s=np.sin(floats(32, 8)))


@pytest.mark.parametrize(("attributes", "tables"), [
    ("", ""), (", scale = 0.7", ""), (", softcap = 3.0", ""), (", local_window_size = 3", ""),
    (", do_rotary = 1", ", c, s"), (", do_rotary = 1, rotary_interleaved = 1, local_window_size = 2", ", c, s"),
])
@pytest.mark.parametrize(("tokens", "past"), [(5, 0), (1, 7), (3, 4)])
def test_group_query_attention(attributes: str, tables: str, tokens: int, past: int) -> None:
    feeds = {"q": floats(1, tokens, 64), "k": floats(1, tokens, 32), "v": floats(1, tokens, 32),
             "pk": floats(1, 2, past, 16), "pv": floats(1, 2, past, 16),
             "mask": np.ones((1, tokens + past), np.int32)}
    graph = gqa(attributes, tables)
    wanted = evaluate(graph, feeds, "onnxruntime")
    after = run_passes(graph, [InlineFunctions()], Context()).model
    assert "com.microsoft::GroupQueryAttention" not in ops(after)
    close(evaluate(after, feeds, "onnxruntime"), wanted)


def test_group_query_attention_packed() -> None:
    feeds = {"q": floats(1, 3, 128), "pk": floats(1, 2, 2, 16), "pv": floats(1, 2, 2, 16),
             "mask": np.ones((1, 5), np.int32)}
    graph = gqa(", do_rotary = 1", ", c, s", "q, , ")
    wanted = evaluate(graph, feeds, "onnxruntime")
    after = run_passes(graph, [InlineFunctions()], Context()).model
    close(evaluate(after, feeds, "onnxruntime"), wanted)


def test_group_query_attention_over_padded_rows_stays() -> None:
    graph = model("g (float[1,2,8] q, float[1,2,8] k, float[1,2,8] v, int32[1] n, int32 t) => (float[1,2,8] y) {"
                  " y = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(q, k, v, , , n, t) }",
                  domains=VENDOR)
    record = run_passes(graph, [InlineFunctions()], Context()).records[0]
    assert not record.modified
    assert "lengths of its rows" in reasons(record.rules)
