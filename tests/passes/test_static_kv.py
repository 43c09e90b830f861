"""static_kv: every past/present spelling becomes CachedAttention, with the numbers of transformers, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.importers import load
from edgec.importers.reference import load_reference
from edgec.ir import verify
from edgec.ir.execute import Runner
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.model import Array, dims_of, int_attr, walk
from edgec.ir.passes import Context
from edgec.passes import NORMALIZE
from edgec.passes.normalize.eliminate_dead import EliminateDead
from edgec.passes.normalize.inline_functions import InlineFunctions
from edgec.passes.normalize.static_kv import StaticKV
from edgec.pipeline import run_passes
from tests.models import tiny_lm
from tests.passes.harness import model

PASSES = (InlineFunctions(), StaticKV(), EliminateDead())
CONTEXT = 48


def convert(model: ir.Model) -> ir.Model:
    return run_passes(model, PASSES, Context()).model


def score(model: ir.Model, tokens: Array, cuts: tuple[int, ...]) -> Array:
    """Logits of `tokens` in calls that end at `cuts`. The caches start full of rubbish, which nothing may see."""
    state = {
        str(v.name): np.full([d if isinstance(d, int) else CONTEXT for d in dims_of(v) or ()], 1e4, np.float32)
        for v in model.graph.inputs if "_cache." in (v.name or "")
    }
    pieces = []
    with Runner(model, "test") as runner:
        for start, end in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
            feeds = {"input_ids": tokens[None, start:end].astype(np.int64), "past_len": np.array(start), **state}
            out = runner.run(feeds)
            pieces.append(out["logits"][0])
            state = {k: out[k.replace("_cache.", "_cache_out.")] for k in state}
    return np.concatenate(pieces)


def attention_layers(model: ir.Model) -> list[ir.Node]:
    return [n for n in walk(model) if n.op_type == "CachedAttention"]


@pytest.mark.parametrize(
    ("family", "windows", "softcap"),
    [
        ("llama", [0, 0], 0.0), ("llama_mha_tied", [0, 0], 0.0), ("qwen2", [0, 0], 0.0), ("qwen3", [0, 0], 0.0),
        ("phi3", [0, 0], 0.0), ("gemma3", [8, 8, 8, 8, 8, 0, 8], 0.0), ("mistral_window", [8, 8], 0.0),
        ("gemma2", [8, 0], 50.0),
    ],
)
def test_chunks_equal_one_pass_of_transformers(tmp_path: Path, family: str, windows: list[int], softcap: float) -> None:
    folder = tiny_lm.make(tmp_path / family, family)
    model = run_passes(load(folder), NORMALIZE, Context()).model
    assert verify.normalized(model) == []
    layers = attention_layers(model)
    assert [int_attr(n, "window", -1) for n in layers] == windows
    assert all(n.attributes["softcap"].as_float() == softcap for n in layers)
    # Heads stay where they are: no layer is left with a transposition around its attention.
    assert not [n for n in walk(model) if n.op_type == "Transpose" and len(n.attributes["perm"].as_ints()) == 4]
    tokens = np.random.default_rng(2).integers(0, tiny_lm.VOCAB, 34)
    wanted = load_reference(folder).logits(tokens.tolist())
    for cuts in ((), (17,), (1, 2, 20, 33)):
        np.testing.assert_allclose(score(model, tokens, cuts), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_interface(prose_lm: Path) -> None:
    model = convert(load(prose_lm, check=False))
    names = [v.name for v in model.graph.inputs]
    assert names[:4] == ["input_ids", "past_len", "key_cache.0", "value_cache.0"]
    assert len(names) == 2 + 2 * 6
    assert [v.name for v in model.graph.outputs][:3] == ["logits", "key_cache_out.0", "value_cache_out.0"]
    assert dims_of(model.graph.inputs[0]) == (1, "seq")
    assert dims_of(model.graph.inputs[1]) == ()
    assert dims_of(model.graph.inputs[5]) == (1, 4, "context", 32)
    assert dims_of(model.graph.outputs[0]) == (1, "seq", 4096)
    assert dims_of(model.graph.outputs[1]) == (1, 4, "context", 32)
    symbols = {d for n in walk(model) for v in n.outputs for d in dims_of(v) or () if isinstance(d, str)}
    assert symbols <= {"seq", "context"}


def test_an_encoder_may_have_a_mask() -> None:
    graph = model("g (float[2,4] x, int64[2,4] attention_mask, int64[2,4] position_ids) => (float[2,4] y) {"
                  " m = Cast<to = 1>(attention_mask) p = Cast<to = 1>(position_ids) a = Mul(x, m) y = Add(a, p) }")
    assert not run_passes(graph, [StaticKV()], Context()).records[0].modified


def test_second_time_and_generic_models_are_left_alone(prose_lm: Path) -> None:
    model = convert(load(prose_lm, check=False))
    assert StaticKV().call(model, Context()) == (model, False)
    generic = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    assert StaticKV().call(generic, Context()) == (generic, False)


# Hand-made graphs: one layer, 4 query heads over 2 cached ones of 8, embeddings instead of projections.
HEAD = """<ir_version: 10, opset_import: ["" : 24]>
model (int64[1, n] input_ids, float[1, 2, p, 8] past_key, float[1, 2, p, 8] past_value{inputs})
  => (float[1, n, 32] logits, float[1, 2, t, 8] present_key, float[1, 2, t, 8] present_value)
  <float[1] scale = {{0.25}}, float lowest = {{-3.0e38}}, int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}},
   int64[4] split_q = {{1, -1, 4, 8}}, int64[4] split_k = {{1, -1, 2, 8}}, int64[3] join = {{1, -1, 32}},
   int64[1] axis0 = {{0}}, int64[1] axis1 = {{1}}, int64[1] axis2 = {{2}}, int64[1] axis3 = {{3}},
   int64[5] wide = {{1, 2, 2, 1, 1}}, int64[4] four = {{1, 4, -1, 8}}, float cap = {{5.0}}, int64 three = {{3}}>
{{
  q_flat = Gather (q_table, input_ids)
  k_flat = Gather (k_table, input_ids)
  v_flat = Gather (v_table, input_ids)
  q4 = Reshape (q_flat, split_q)
  q = Transpose <perm = [0, 2, 1, 3]> (q4)
  k4 = Reshape (k_flat, split_k)
  k = Transpose <perm = [0, 2, 1, 3]> (k4)
  v4 = Reshape (v_flat, split_k)
  v = Transpose <perm = [0, 2, 1, 3]> (v4)
  present_key = Concat <axis = 2> (past_key, k)
  present_value = Concat <axis = -2> (past_value, v)
  count_1 = Shape <start = 1, end = 2> (input_ids)
  count = Squeeze (count_1)
  past_1 = Shape <start = 2, end = 3> (past_key)
  past = Squeeze (past_1)
  total = Add (past, count)
  rows_0 = Range (past, total, one)
  rows = Unsqueeze (rows_0, axis1)
  columns = Range (zero, total, one)
  causal = LessOrEqual (columns, rows)
"""
TAIL = """
  back = Transpose <perm = [0, 2, 1, 3]> (y)
  logits = Reshape (back, join)
}
"""
REPEAT = """
  k5 = Unsqueeze (present_key, axis2)
  kw = Expand (k5, wide)
  keys = Reshape (kw, four)
  v5 = Unsqueeze (present_value, axis2)
  vw = Expand (v5, wide)
  values = Reshape (vw, four)
  keys_t = Transpose <perm = [0, 1, 3, 2]> (keys)
"""
SOFTMAX = """
  weights = Softmax <axis = -1> (masked)
  y = MatMul (weights, values)
"""
WINDOW_MASK = """
  reach = Sub (rows, three)
  near = Greater (columns, reach)
  mask = And (causal, near)
"""


def handmade(body: str, inputs: str = "") -> ir.Model:
    import onnx.parser

    text = HEAD.format(inputs=inputs) + body + TAIL
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(5)
    for name, width in (("q_table", 32), ("k_table", 16), ("v_table", 16)):
        table = rng.standard_normal((11, width)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(table, name))
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    model = ir.serde.deserialize_model(proto)
    repeated, wide = ir.Shape([1, 4, None, 8]), ir.Shape([1, 2, 2, None, 8])
    shapes = {"keys": repeated, "values": repeated, "kw": wide, "vw": wide}
    for node in model.graph:
        for value in node.outputs:
            value.shape = shapes.get(value.name or "", value.shape)
    return attach_info(model, ModelInfo(task="causal-lm", max_context=CONTEXT, vocab_size=11))


def dynamic_logits(model: ir.Model, tokens: Array) -> Array:
    """The graph as it came, in one piece with an empty past."""
    past = np.zeros((1, 2, 0, 8), np.float32)
    with Runner(model, "test") as runner:
        out = runner.run({"input_ids": tokens[None], "past_key": past, "past_value": past})
    logits: Array = out["logits"][0]
    return logits


FUSED = "y = Attention <scale = 0.25> (q, present_key, present_value, {mask})"
SPELLINGS: dict[str, tuple[str, int, float]] = {
    "fused, bool mask": (FUSED.format(mask="causal"), 0, 0.0),
    "fused, window": (WINDOW_MASK + FUSED.format(mask="mask"), 3, 0.0),
    "fused, float mask": (
        "none = Sub (cap, cap)\n bias = Where (causal, none, lowest)\n" + FUSED.format(mask="bias"), 0, 0.0),
    "fused over repeated heads": (
        REPEAT + "y = Attention <scale = 0.25> (q, keys, values, causal)", 0, 0.0),
    "decomposed, Where": (REPEAT + """
  scores = MatMul (q, keys_t)
  scaled = Mul (scores, scale)
  masked = Where (causal, scaled, lowest)""" + SOFTMAX, 0, 0.0),
    "decomposed, Where the other way": (REPEAT + """
  hidden = Not (causal)
  scores = MatMul (q, keys_t)
  scaled = Mul (scale, scores)
  masked = Where (hidden, lowest, scaled)""" + SOFTMAX, 0, 0.0),
    "decomposed, Add, scaled q, window": (REPEAT + WINDOW_MASK + """
  none = Sub (cap, cap)
  bias = Where (mask, none, lowest)
  small = Mul (q, scale)
  scores = MatMul (small, keys_t)
  masked = Add (bias, scores)""" + SOFTMAX, 3, 0.0),
    "decomposed, soft cap": (REPEAT + """
  scores = MatMul (q, keys_t)
  scaled = Mul (scores, scale)
  ratio = Div (scaled, cap)
  bent = Tanh (ratio)
  capped = Mul (bent, cap)
  masked = Where (causal, capped, lowest)""" + SOFTMAX, 0, 5.0),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    body, window, softcap = SPELLINGS[spelling]
    model = handmade(body)
    tokens = np.random.default_rng(8).integers(0, 11, 13)
    wanted = dynamic_logits(model, tokens)
    static, modified = StaticKV().call(model, Context())
    assert modified
    (layer,) = attention_layers(static)
    assert int_attr(layer, "window", -1) == window
    assert layer.attributes["softcap"].as_float() == softcap
    assert layer.attributes["scale"].as_float() == pytest.approx(0.25)
    assert not [n for n in walk(static) if n.op_type in ("Softmax", "Attention", "Concat")]
    for cuts in ((), (5, 6, 12)):
        np.testing.assert_allclose(score(static, tokens, cuts), wanted, rtol=0, atol=1e-5)


MASKED = FUSED.format(mask="mask")
SCORES = REPEAT + "scores = MatMul (q, keys_t)\n scaled = Mul (scores, scale)\n"
REFUSED: dict[str, tuple[str, str, str]] = {
    "no mask": (
        "y = Attention <scale = 0.25> (q, present_key, present_value)", "", "not causal"),
    "is_causal over the whole cache": (
        "y = Attention <is_causal = 1> (q, present_key, present_value)", "", "counts tokens from the start"),
    "bidirectional": (
        "mask = Equal (causal, causal)\n" + MASKED, "", "is not causal"),
    "one token too many": (
        "later = Add (rows, one)\n mask = LessOrEqual (columns, later)\n" + MASKED, "", "is not causal"),
    "a hole": (
        "hole = Equal (columns, two)\n open = Not (hole)\n mask = And (causal, open)\n" + MASKED, "", "is not"),
    "chunked": ("""
  row_chunk = Div (rows, three)
  column_chunk = Div (columns, three)
  same = Equal (row_chunk, column_chunk)
  mask = And (causal, same)
""" + MASKED, "", "is not"),
    "distance bias": ("""
  distance = Sub (columns, rows)
  slope = Cast <to = 1> (distance)
  mask = Where (causal, slope, lowest)
""" + MASKED, "", "values besides 0"),
    "tokens in the mask": ("""
  first = Unsqueeze (input_ids, axis2)
  odd = GreaterOrEqual (first, zero)
  mask = And (causal, odd)
""" + MASKED, "", "which tokens"),
    "another input in the mask": (
        "mask = And (causal, extra)\n" + MASKED, ", bool[1, 1] extra", "'extra'"),
    "softmax over the wrong axis": (SCORES + """
  masked = Where (causal, scaled, lowest)
  weights = Softmax <axis = 2> (masked)
  y = MatMul (weights, values)
""", "", "last axis"),
    "something between scores and softmax": (
        SCORES + "bent = Relu (scaled)\n masked = Where (causal, bent, lowest)" + SOFTMAX, "", "not scale, softcap"),
    "a fill that does not hide": (
        SCORES + "masked = Where (causal, scaled, cap)" + SOFTMAX, "", "not scale, softcap, mask"),
    "somebody else reads the cache": ("""
  sum = ReduceSum <keepdims = 0> (present_key)
  shifted = Add (q, sum)
  y = Attention <scale = 0.25> (shifted, present_key, present_value, causal)
""", "", "reads the cache"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(case: str) -> None:
    body, inputs, reason = REFUSED[case]
    model = handmade(body, inputs)
    before = str(model)
    with pytest.raises(EdgecError) as caught:
        StaticKV().call(model, Context())
    assert caught.value.code == "E0301"
    assert reason in caught.value.found, caught.value.found
    assert str(model) == before


def test_without_any_cache() -> None:
    model = handmade(FUSED.format(mask="causal"))
    for node in list(model.graph):
        if node.op_type == "Attention":
            node.replace_input_with(1, node.inputs[0])
            node.replace_input_with(2, node.inputs[0])
    with pytest.raises(EdgecError, match="no attention layer reads a cache"):
        StaticKV().call(model, Context())


def test_seek_and_overwrite(prose_lm: Path) -> None:
    """Tokens written again after going back replace what was there."""
    model = convert(load(prose_lm, check=False))
    reference: Callable[[Any], Array] = load_reference(prose_lm).logits
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 4096, 12), rng.integers(0, 4096, 12)
    second[:5] = first[:5]
    state = {str(v.name): np.zeros([d if isinstance(d, int) else CONTEXT for d in dims_of(v) or ()], np.float32)
             for v in model.graph.inputs if "_cache." in (v.name or "")}
    with Runner(model, "test") as runner:
        for tokens, start in ((first, 0), (second, 5)):
            out = runner.run({"input_ids": tokens[None, start:], "past_len": np.array(start), **state})
            state = {k: out[k.replace("_cache.", "_cache_out.")] for k in state}
    wanted = reference(second.tolist())[5:]
    np.testing.assert_allclose(out["logits"][0], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
