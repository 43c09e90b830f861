"""Fused vendor convolutions and products, embeddings: against onnxruntime running the vendor operator."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.ir.passes import Context
from edgec.passes.normalize.inline_functions import InlineFunctions
from edgec.pipeline import run_passes
from tests.passes.harness import Array, evaluate, model, ops, reasons, run

VENDOR = {"com.microsoft": 1}
RNG = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("activation", "params"), [
    ("", ""), ("Relu", ""), ("Tanh", ""), ("Sigmoid", ""), ("LeakyRelu", ", activation_params = [0.2]"),
    ("Clip", ", activation_params = [-0.5, 0.7]"), ("HardSigmoid", ", activation_params = [0.3, 0.4]"),
])
@pytest.mark.parametrize("residual", [False, True])
def test_fused_conv(activation: str, params: str, residual: bool) -> None:
    declared, given = (", float[1,4,6,6] z", ", z") if residual else ("", "")
    attributes = f', activation = "{activation}"{params}' if activation else ""
    graph = model(f"g (float[1,2,6,6] x, float[4,2,3,3] w, float[4] b{declared}) => (float[1,4,6,6] y) {{"
                  f" y = com.microsoft.FusedConv<pads = [1, 1, 1, 1]{attributes}>(x, w, b{given}) }}",
                  domains=VENDOR, w=floats(4, 2, 3, 3), b=floats(4))
    after, _, _ = run(InlineFunctions(), graph, engine="onnxruntime")
    assert ops(after)["Conv"] == 1


def channels_last_conv(x: Array, w: Array, b: Array, *, stride: tuple[int, int], pads: tuple[int, int, int, int],
                       dilation: tuple[int, int], group: int) -> Array:
    """FLOAT64 [N, oh, ow, M] from x [N, H, W, C] and w [M, C/group, kh, kw], after the definition of Conv."""
    (top, left, bottom, right), (kh, kw), m = pads, w.shape[2:], w.shape[0]
    x = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    oh, ow = ((x.shape[1 + i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    y = np.zeros((x.shape[0], oh, ow, m)) + b.astype(np.float64)
    for f in range(m):
        inputs = x[..., f // (m // group) * w.shape[1] :][..., : w.shape[1]]
        for i, j in np.ndindex(kh, kw):
            rows = inputs[:, i * dilation[0] :: stride[0]][:, :oh]
            y[..., f] += rows[:, :, j * dilation[1] :: stride[1]][:, :, :ow] @ w[f, :, i, j].astype(np.float64)
    return y


ACTIVATIONS = {
    "": ("", lambda v: v), "Relu": ("", lambda v: np.maximum(v, 0)), "Tanh": ("", np.tanh),
    "Sigmoid": ("", lambda v: 1 / (1 + np.exp(-v))), "LeakyRelu": ("[0.2]", lambda v: np.where(v < 0, 0.2 * v, v)),
    "Clip": ("[-0.5, 0.7]", lambda v: np.clip(v, -0.5, 0.7)),
    "HardSigmoid": ("[0.3, 0.4]", lambda v: np.clip(0.3 * v + 0.4, 0, 1)),
}


@pytest.mark.parametrize(("op", "activation", "residual", "kind"), [
    ("NhwcConv", "", False, "float"), ("NhwcConv", "", False, "float16"),
    *(("NhwcFusedConv", name, residual, "float") for name in ACTIVATIONS for residual in (False, True)),
    ("NhwcFusedConv", "Clip", True, "float16"),
])
def test_convolutions_with_channels_last(op: str, activation: str, residual: bool, kind: str) -> None:
    """onnxruntime has no CPU kernel of these two on x86: their definition in float64 is the reference."""
    dtype, (params, act) = {"float": np.float32, "float16": np.float16}[kind], ACTIVATIONS[activation]
    x, w, b = (floats(*dims).astype(dtype) for dims in ((2, 7, 6, 4), (6, 2, 3, 2), (6,)))
    stride, pads, dilation = (2, 1), (1, 0, 2, 1), (1, 2)
    z = floats(2, 4, 5, 6).astype(dtype)
    extra = f', activation = "{activation}"' if activation else ""
    extra += f", activation_params = {params}" if params else ""
    stored = w.transpose(0, 2, 3, 1) if op == "NhwcConv" else w
    declared, given = (f", {kind}[2,4,5,6] z", ", z") if residual else ("", "")
    graph = model(f"g ({kind}[2,7,6,4] x, {kind}[{','.join(map(str, stored.shape))}] w, {kind}[6] b{declared})"
                  f" => ({kind}[2,4,5,6] y) {{ y = com.microsoft.{op}<kernel_shape = [3, 2], strides = [2, 1],"
                  f" pads = [1, 0, 2, 1], dilations = [1, 2], group = 2{extra}>(x, w, b{given}) }}",
                  domains=VENDOR, w=stored, b=b)
    wanted = channels_last_conv(x, w, b, stride=stride, pads=pads, dilation=dilation, group=2)
    after = run_passes(graph, [InlineFunctions()], Context()).model
    assert ops(after)["Conv"] == 1
    found = evaluate(after, {"x": x, **({"z": z} if residual else {})}, engine="onnxruntime")["y"]
    assert found.dtype == dtype
    tolerance = 2e-2 if kind == "float16" else 1e-5
    np.testing.assert_allclose(found, act(wanted + z if residual else wanted), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("op", "weight", "activation", "reason"), [
    ("NhwcConv", "4,2,3,3", "", "kernel"), ("NhwcFusedConv", "4,3,3,2", "", "kernel"),
    ("NhwcFusedConv", "4,2,3,3", "Affine", "Affine"), ("NhwcConv", "4,3,3,2", "", ""),
    ("NhwcFusedConv", "4,2,3,3", "Relu", ""),
])
def test_a_weight_in_the_other_order_is_a_reason(op: str, weight: str, activation: str, reason: str) -> None:
    extra = f', activation = "{activation}"' if activation else ""
    graph = model(f"g (float[1,5,5,2] x, float[{weight}] w) => (float[1,3,3,4] y) {{"
                  f" y = com.microsoft.{op}<kernel_shape = [3, 3]{extra}>(x, w) }}", domains=VENDOR)
    record = run_passes(graph, [InlineFunctions()], Context()).records[0]
    assert record.modified == (not reason)
    assert reason in reasons(record.rules)


@pytest.mark.parametrize(("attributes", "a", "b"), [
    ("", "2,3,4", "2,4,5"), ("<transA = 1>", "2,4,3", "2,4,5"), ("<transB = 1, alpha = 0.5>", "2,3,4", "2,5,4"),
    ("<transA = 1, transB = 1>", "4,3", "5,4"),
])
def test_fused_matmul(attributes: str, a: str, b: str) -> None:
    dims = "3,5" if a == "4,3" else "2,3,5"
    graph = model(f"g (float[{a}] a, float[{b}] b) => (float[{dims}] y) {{"
                  f" y = com.microsoft.FusedMatMul{attributes}(a, b) }}", domains=VENDOR)
    after, _, _ = run(InlineFunctions(), graph, engine="onnxruntime")
    assert "MatMul" in ops(after)


@pytest.mark.parametrize(("attributes", "op"), [
    ('activation = "Relu"', "Relu"), ('activation = "LeakyRelu", activation_alpha = 0.2, alpha = 0.5', "LeakyRelu"),
])
def test_fused_gemm(attributes: str, op: str) -> None:
    graph = model(f"g (float[3,4] a, float[5,4] b, float[5] c) => (float[3,5] y) {{"
                  f" y = com.microsoft.FusedGemm<transB = 1, {attributes}>(a, b, c) }}", domains=VENDOR,
                  b=floats(5, 4), c=floats(5))
    after, _, _ = run(InlineFunctions(), graph, engine="onnxruntime")
    assert {"Gemm", op} <= set(ops(after))


def test_an_unknown_activation_is_a_reason() -> None:
    graph = model('g (float[3,4] a, float[4,5] b) => (float[3,5] y) {'
                  ' y = com.microsoft.FusedGemm<activation = "Affine">(a, b) }', domains=VENDOR)
    record = run_passes(graph, [InlineFunctions()], Context()).records[0]
    assert "Affine" in reasons(record.rules)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_embed_layer_norm(segments: bool, positions: bool) -> None:
    inputs = ["int32[2,3] ids", *(["int32[2,3] seg"] if segments else []), "int32[2,3] mask",
              *(["int32[2,3] pos"] if positions else [])]
    given = f"ids, {'seg' if segments else ''}, words, places, {'types' if segments else ''}, gamma, beta, mask"
    given += ", pos" if positions else ""
    tables = {"words": floats(9, 8), "places": floats(7, 8), "gamma": floats(8), "beta": floats(8)}
    declared = ", ".join([*inputs, "float[9,8] words, float[7,8] places, float[8] gamma, float[8] beta",
                          *(["float[2,8] types"] if segments else [])])
    if segments:
        tables["types"] = floats(2, 8)
    graph = model(f"g ({declared}) => (float[2,3,8] y, int32[2] n, float[2,3,8] t) {{ y, n, t ="
                  f" com.microsoft.EmbedLayerNormalization<epsilon = 0.001>({given}) }}", domains=VENDOR, **tables)
    feeds = {"ids": np.array([[1, 2, 8], [0, 4, 5]], np.int32), "seg": np.array([[0, 1, 1], [0, 0, 1]], np.int32),
             "mask": np.array([[1, 1, 1], [1, 1, 0]], np.int32), "pos": np.array([[2, 3, 6], [0, 1, 2]], np.int32)}
    names = {v.name for v in graph.graph.inputs}
    after, _, _ = run(InlineFunctions(), graph, engine="onnxruntime",
                      feeds={k: v for k, v in feeds.items() if k in names})
    assert ops(after)["LayerNormalization"] == 1
