"""Whole models for tests of planning: a MobileNetV2-like CNN, a Llama-like language model, an encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgec.ir.info import ModelInfo, attach_info
from tests.native.lower_cases import Case

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, LAYERS, CONTEXT = 40, 16, 4, 2, 4, 24, 2, 48
Array = np.ndarray[Any, Any]


def _weight(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def mobilenet() -> Case:
    """Stem, two inverted residuals (one with a shortcut), head; image 1 x 3 x 16 x 16."""
    rng = np.random.default_rng(1)
    nodes: list[Any] = []
    consts: dict[str, Array] = {"zero": np.float32(0).reshape(()), "six": np.float32(6).reshape(())}

    def conv(x: str, y: str, co: int, ci: int, k: int, act: bool = True, **attributes: object) -> None:
        group = attributes.get("group", 1)
        assert isinstance(group, int)
        consts[f"{y}.weight"], consts[f"{y}.bias"] = _weight(rng, co, ci // group, k, k), _weight(rng, co)
        attributes["pads"] = [k // 2] * 4
        nodes.append(("Conv", f"{x} {y}.weight {y}.bias", f"{y}.conv" if act else y, attributes))
        if act:
            nodes.append(("Clip", f"{y}.conv zero six", y))

    conv("x", "stem", 8, 3, 3, strides=[2, 2])
    conv("stem", "a.expand", 24, 8, 1)
    conv("a.expand", "a.depth", 24, 24, 3, group=24)
    conv("a.depth", "a.project", 8, 24, 1, act=False)
    nodes.append(("Add", "stem a.project", "a"))
    conv("a", "b.expand", 24, 8, 1)
    conv("b.expand", "b.depth", 24, 24, 3, group=24, strides=[2, 2])
    conv("b.depth", "b.project", 12, 24, 1, act=False)
    conv("b.project", "last", 32, 12, 1)
    nodes += [("GlobalAveragePool", "last", "pooled"), ("Flatten", "pooled", "flat"),
              ("Gemm", "flat fc.weight fc.bias", "y", {"transB": 1})]
    consts |= {"fc.weight": _weight(rng, 10, 32), "fc.bias": _weight(rng, 10)}
    return Case("mobilenet", nodes, {"x": rng.uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32)}, consts)


def encoder() -> Case:
    """Two post-norm transformer layers over a batch of sequences of unknown sizes, with a padding mask."""
    rng = np.random.default_rng(2)
    consts = {"shape": np.array([0, 0, 4, 4], np.int64), "back": np.array([0, 0, 16], np.int64),
              "axes": np.array([1, 2], np.int64)}
    nodes: list[Any] = [("Unsqueeze", "mask axes", "m")]
    x = "x"
    for n in range(2):
        for name in ("q", "k", "v"):
            consts[f"{n}.{name}w"], consts[f"{n}.{name}b"] = _weight(rng, 16, 16), _weight(rng, 16)
            nodes += [("MatMul", f"{x} {n}.{name}w", f"{n}.{name}0"),
                      ("Add", f"{n}.{name}0 {n}.{name}b", f"{n}.{name}1"),
                      ("Reshape", f"{n}.{name}1 shape", f"{n}.{name}2"),
                      ("Transpose", f"{n}.{name}2", f"{n}.{name}", {"perm": [0, 2, 1, 3]})]
        consts |= {f"{n}.ow": _weight(rng, 16, 16), f"{n}.g": _weight(rng, 16), f"{n}.h": _weight(rng, 16),
                   f"{n}.up": _weight(rng, 16, 32), f"{n}.down": _weight(rng, 32, 16), f"{n}.ub": _weight(rng, 32)}
        nodes += [("Attention", f"{n}.q {n}.k {n}.v m", f"{n}.a"),
                  ("Transpose", f"{n}.a", f"{n}.at", {"perm": [0, 2, 1, 3]}),
                  ("Reshape", f"{n}.at back", f"{n}.ar"), ("MatMul", f"{n}.ar {n}.ow", f"{n}.o"),
                  ("Add", f"{x} {n}.o", f"{n}.s"), ("LayerNormalization", f"{n}.s {n}.g {n}.h", f"{n}.n"),
                  ("MatMul", f"{n}.n {n}.up", f"{n}.u"), ("Add", f"{n}.u {n}.ub", f"{n}.ua"),
                  ("Gelu", f"{n}.ua", f"{n}.ug"), ("MatMul", f"{n}.ug {n}.down", f"{n}.d"),
                  ("Add", f"{n}.n {n}.d", f"{n}.t"), ("LayerNormalization", f"{n}.t {n}.g {n}.h", f"{n}.y")]
        x = f"{n}.y"
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    feeds = {"x": rng.standard_normal((2, 5, 16)).astype(np.float32), "mask": mask}
    return Case("encoder", nodes, feeds, consts, outputs=(x,), dims={"x": ["b", "n", 16], "mask": ["b", "n"]},
                dynamic={"b": (1, 3), "n": (1, 8)})


def llama(
    *, kv_format: str = "f32", window: int = 0, tied: bool = True, head: int = HEAD, hidden: int = HIDDEN
) -> ir.Model:
    """A language model in the form of docs/ir.md: RMSNorm, rotary positions, grouped heads, gated MLP."""
    rng = np.random.default_rng(3)
    inits: dict[str, Array] = {"embed": _weight(rng, VOCAB, WIDTH) * 4, "norm": np.ones(WIDTH, np.float32)}
    angles = np.arange(2 * CONTEXT)[:, None] / 100.0 ** (np.arange(head // 2) / (head // 2))
    inits |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    inits |= {"zero": np.array([0], np.int64), "unit": np.array(1, np.int64), "one_d": np.array([1], np.int64)}
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, inputs: str, outputs: str, layer: str = "", domain: str = "", **attributes: object) -> None:
        results = outputs.split()
        node = helper.make_node(kind, inputs.split(), results, name=results[0], domain=domain, **attributes)
        entry = node.metadata_props.add()
        entry.key, entry.value = "namespace", ": LM/" + "/".join(f"{p}: M" for p in layer.split("/"))
        nodes.append(node)

    def linear(x: str, y: str, n: int, k: int, layer: str) -> None:
        inits[f"{y}.weight"] = _weight(rng, n, k)
        op("Transpose", f"{y}.weight", f"{y}.t", layer, perm=[1, 0])
        op("MatMul", f"{x} {y}.t", y, layer)

    op("Gather", "embed input_ids", "h0", "model/embed")
    op("Shape", "input_ids", "length", start=1, end=2)
    op("Squeeze", "length", "count")
    op("Add", "past_len count", "end")
    op("Range", "past_len end unit", "positions")
    op("Unsqueeze", "positions zero", "position_ids")
    x = "h0"
    for n in range(LAYERS):
        at, p = f"model/layers.{n}", f"l{n}"
        inits |= {f"{p}.in": _weight(rng, WIDTH) + 1, f"{p}.post": _weight(rng, WIDTH) + 1}
        op("RMSNormalization", f"{x} {p}.in", f"{p}.n", f"{at}/norm", epsilon=1e-5, axis=-1)
        linear(f"{p}.n", f"{p}.q", HEADS * head, WIDTH, f"{at}/q_proj")
        linear(f"{p}.n", f"{p}.k", KV_HEADS * head, WIDTH, f"{at}/k_proj")
        linear(f"{p}.n", f"{p}.v", KV_HEADS * head, WIDTH, f"{at}/v_proj")
        op("RotaryEmbedding", f"{p}.q cos sin position_ids", f"{p}.qr", at, num_heads=HEADS)
        op("RotaryEmbedding", f"{p}.k cos sin position_ids", f"{p}.kr", at, num_heads=KV_HEADS)
        op("CachedAttention", f"{p}.qr {p}.kr {p}.v key_cache.{n} value_cache.{n} past_len",
           f"{p}.a key_cache_out.{n} value_cache_out.{n}", f"{at}/attention", "edgec", q_num_heads=HEADS,
           kv_num_heads=KV_HEADS, scale=0.5, softcap=0.0, window=window, kv_format=kv_format)
        linear(f"{p}.a", f"{p}.o", WIDTH, HEADS * head, f"{at}/o_proj")
        op("Add", f"{x} {p}.o", f"{p}.s", at)
        op("RMSNormalization", f"{p}.s {p}.post", f"{p}.m", f"{at}/post_norm", epsilon=1e-5, axis=-1)
        linear(f"{p}.m", f"{p}.gate", hidden, WIDTH, f"{at}/gate_proj")
        linear(f"{p}.m", f"{p}.up", hidden, WIDTH, f"{at}/up_proj")
        op("Swish", f"{p}.gate", f"{p}.act", at)
        op("Mul", f"{p}.act {p}.up", f"{p}.gated", at)
        linear(f"{p}.gated", f"{p}.down", WIDTH, hidden, f"{at}/down_proj")
        op("Add", f"{p}.s {p}.down", f"{p}.y", at)
        x = f"{p}.y"
    op("RMSNormalization", f"{x} norm", "final", "model/norm", epsilon=1e-5, axis=-1)
    if tied:
        op("Transpose", "embed", "head.t", "head", perm=[1, 0])
        op("MatMul", "final head.t", "logits", "head")
    else:
        linear("final", "logits", VOCAB, WIDTH, "head")
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    cache = [1, KV_HEADS, "context", head]
    inputs = [helper.make_tensor_value_info("input_ids", integer, [1, "seq"]),
              helper.make_tensor_value_info("past_len", integer, [])]
    outputs = [helper.make_tensor_value_info("logits", real, [1, "seq", VOCAB])]
    for n in range(LAYERS):
        for kind in ("key_cache", "value_cache"):
            inputs.append(helper.make_tensor_value_info(f"{kind}.{n}", real, cache))
            outputs.append(helper.make_tensor_value_info(f"{kind}_out.{n}", real, cache))
    graph = helper.make_graph(nodes, "llama", inputs, outputs,
                              [numpy_helper.from_array(v, k) for k, v in inits.items()])
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("edgec", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=11))
    return attach_info(model, ModelInfo(task="causal-lm", name="llama", max_context=CONTEXT, vocab_size=VOCAB))


def llama_reference(model: ir.Model, tokens: Array) -> Array:
    """Logits [n, VOCAB] of the whole prompt at once, by onnxruntime on the graph with the operators' bodies."""
    from edgec.ir.execute import Runner

    feeds: dict[str, Array] = {"input_ids": tokens[None].astype(np.int64), "past_len": np.array(0, np.int64)}
    for cache in model.graph.inputs[2:]:
        assert cache.shape is not None
        feeds[cache.name or ""] = np.zeros((1, KV_HEADS, len(tokens), int(cache.shape[3])), np.float32)
    with Runner(model, "test") as runner:
        logits: Array = runner.run(feeds)["logits"]
    return logits[0]
