"""Quantized checkpoints: packed here the way each format's own tools do it, dense again bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.importers.packed import Packed, attach
from edgec.importers.quantized import unpack_words, unpacked
from edgec.importers.stored import Stored, open_safetensors
from edgec.ir.info import ModelInfo, attach_info
from edgec.native.lower import build_plan
from tests.native.plan_interpreter import stored_matrix
from tests.passes.harness import evaluate

Array = np.ndarray[Any, Any]


def save(path: Path, **tensors: Array) -> dict[str, Stored]:
    from safetensors.numpy import save_file

    file = path / "model.safetensors"
    save_file({name.replace("__", "."): np.ascontiguousarray(t) for name, t in tensors.items()}, file)
    return dict(open_safetensors(file))


def bit_stream(codes: Array, bits: int) -> Array:
    """Codes [R, C] as words along the rows, [ceil(R * bits / 32), C]: one long integer per column."""
    rows = -(-codes.shape[0] * bits // 32)
    words = np.zeros((rows, codes.shape[1]), np.uint32)
    for column in range(codes.shape[1]):
        whole = sum(int(v) << (bits * i) for i, v in enumerate(codes[:, column]))
        for row in range(rows):
            words[row, column] = (whole >> (32 * row)) & 0xFFFFFFFF
    return words.view(np.int32)


def same_in_half(tensor: Stored, wanted: Array) -> None:
    """Read directly and computed by the plan of a graph, both as the reference in 16 bits."""
    assert isinstance(tensor, Packed)
    assert tensor.shape == wanted.shape
    assert wanted.dtype == np.float16
    np.testing.assert_array_equal(tensor.read().astype(np.float16), wanted)
    model = graph_of(tensor)
    for low_bit in (False, True):
        plan = build_plan(model, weights="f32", low_bit=low_bit)
        np.testing.assert_array_equal(stored_matrix(plan, wanted.shape).astype(np.float16), wanted)
    ones = np.eye(wanted.shape[1], dtype=np.float32)
    product = evaluate(model, {"x": ones}, "onnxruntime")["y"]
    np.testing.assert_array_equal(product.T.astype(np.float16), wanted)


def graph_of(tensor: Packed) -> ir.Model:
    """y = x wᵀ with the packed matrix as w."""
    k, n = tensor.shape[1], tensor.shape[0]
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[k, k])
    w = ir.val("w", const_value=ir.tensor(np.zeros((n, k), np.float32)))
    node = ir.node("Gemm", [x, w], {"transB": 1})
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape([k, n])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 24}, name="g")
    model = attach_info(ir.Model(graph, ir_version=11), ModelInfo())
    attach(model, {"w": tensor})
    assert "w" not in graph.initializers
    from edgec.ir.shapes import infer_shapes

    infer_shapes(model)
    return model


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("order", "version"), [(False, "gptq"), (True, "gptq"), (False, "gptq_v2")])
def test_gptq(tmp_path: Path, bits: int, order: bool, version: str) -> None:
    rng = np.random.default_rng(bits)
    n, k, size = 32, 64, 16
    codes = rng.integers(0, 1 << bits, (k, n)).astype(np.uint32)
    zeros = rng.integers(1, 1 << bits, (k // size, n)).astype(np.uint32)
    scales = (rng.random((k // size, n)) * 0.01).astype(np.float16)
    group = (rng.permutation(k) if order else np.arange(k)) // size
    stored = zeros - (0 if version == "gptq_v2" else 1)
    tensors = save(tmp_path, q__qweight=bit_stream(codes, bits), q__qzeros=bit_stream(stored.T, bits).T,
                   q__scales=scales, q__g_idx=group.astype(np.int32), q__bias=np.zeros(n, np.float16))
    settings = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": order,
                "checkpoint_format": version}
    result = unpacked(tensors, settings, "config.json")
    assert set(result) == {"q.weight", "q.bias"}
    wanted = (codes.astype(np.int32) - zeros.astype(np.int32)[group]).astype(np.float16) * scales[group]
    same_in_half(result["q.weight"], wanted.T)


def test_gptq_zero_point_beyond_the_codes(tmp_path: Path) -> None:
    codes = np.arange(64, dtype=np.uint32).reshape(8, 8) % 16
    scales = np.full((1, 8), 0.5, np.float16)
    tensors = save(tmp_path, q__qweight=bit_stream(codes, 4), q__qzeros=np.full((1, 1), -1, np.int32), q__scales=scales)
    result = unpacked(tensors, {"quant_method": "gptq", "bits": 4, "group_size": -1}, "")
    same_in_half(result["q.weight"], ((codes.astype(np.float16) - 16) * np.float16(0.5)).T)


def test_awq(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n, k, size = 32, 64, 16
    codes, zeros = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (k // size, n))
    scales = (rng.random((k // size, n)) * 0.01).astype(np.float16)

    def pack(values: Array) -> Array:
        words = np.zeros((values.shape[0], n // 8), np.uint32)
        for column in range(n // 8):
            for place, source in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                words[:, column] |= values[:, 8 * column + source].astype(np.uint32) << np.uint32(4 * place)
        return words.view(np.int32)

    tensors = save(tmp_path, q__qweight=pack(codes), q__qzeros=pack(zeros), q__scales=scales)
    result = unpacked(tensors, {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"}, "")
    group = np.arange(k) // size
    same_in_half(result["q.weight"], ((codes - zeros[group]).astype(np.float16) * scales[group]).T)


def scheme(bits: int, **more: object) -> dict[str, object]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", **more}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["group", "channel", "asymmetric", "order"])
def test_compressed_tensors(tmp_path: Path, bits: int, form: str) -> None:
    rng = np.random.default_rng(bits)
    n, k, size = 24, 64, 64 if form == "channel" else 16
    half = 1 << (bits - 1)
    codes = rng.integers(-half, half, (n, k))
    scales = (rng.random((n, k // size)) * 0.01).astype(np.float16)
    extra: dict[str, Array] = {}
    zeros = np.zeros((n, k // size), np.int64)
    group = np.arange(k) // size
    if form == "asymmetric":
        zeros = rng.integers(-half, half, zeros.shape)
        extra["q__weight_zero_point"] = bit_stream((zeros + half).astype(np.uint32), bits)
    if form == "order":
        group = rng.permutation(k) // size
        extra["q__weight_g_idx"] = group.astype(np.int32)
    tensors = save(tmp_path, q__weight_packed=bit_stream((codes + half).astype(np.uint32).T, bits).T,
                   q__weight_scale=scales, q__weight_shape=np.array([n, k], np.int64), **extra)
    more: dict[str, object] = {"strategy": "channel"} if form == "channel" else {"group_size": size}
    result = unpacked(tensors, scheme(bits, symmetric=form != "asymmetric", **more), "")
    wanted = (codes - zeros[:, group]).astype(np.float16) * scales[:, group]
    same_in_half(result["q.weight"], wanted)


def test_compressed_tensors_with_plain_codes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-128, 128, (8, 24)).astype(np.int8), rng.random((8, 1)).astype(np.float16)
    tensors = save(tmp_path, q__weight=codes, q__weight_scale=scales, norm__weight=np.ones(8, np.float16))
    result = unpacked(tensors, scheme(8, strategy="channel"), "")
    assert not isinstance(result["norm.weight"], Packed)
    same_in_half(result["q.weight"], codes.astype(np.float16) * scales)


def test_bfloat16_scales(tmp_path: Path) -> None:
    scales = np.linspace(0.01, 0.02, 8).astype(ml_dtypes.bfloat16).reshape(8, 1)
    codes = np.random.default_rng(0).integers(-128, 128, (8, 24)).astype(np.int8)
    tensors = save(tmp_path, q__weight=codes, q__weight_scale=scales)
    dense = unpacked(tensors, scheme(8, strategy="channel"), "")["q.weight"].read()
    wanted = codes.astype(ml_dtypes.bfloat16) * scales
    np.testing.assert_array_equal(dense.astype(ml_dtypes.bfloat16), wanted)


def test_rows_of_a_packed_matrix(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (8, 24)).astype(np.int8)
    tensors = save(tmp_path, q__weight=codes, q__weight_scale=np.linspace(1, 2, 8).astype(np.float16).reshape(8, 1))
    matrix = unpacked(tensors, scheme(8, strategy="channel"), "")["q.weight"]
    assert isinstance(matrix, Packed)
    np.testing.assert_array_equal(matrix.rows(2, 5).read(), matrix.read()[2:5])


@pytest.mark.parametrize(("settings", "parts", "code", "reason"), [
    ({"quant_method": "bitsandbytes"}, {}, "E0103", "bitsandbytes"),
    ({"quant_method": "gptq", "bits": 5}, {}, "E0101", "5 bits"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 8}, {}, "E0101", "scales"),
    ({"quant_method": "gptq", "bits": "x"}, {}, "E0101", "invalid literal"),
    ({"quant_method": "awq", "bits": 4, "version": "marlin"}, {}, "E0103 E0101", "marlin"),
    ({"quant_method": "gptq", "bits": 4}, {"qzeros": np.zeros((3, 3), np.int32)}, "E0101", "qzeros"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 8}, {"g_idx": np.arange(16, dtype=np.int32),
                                                             "scales": np.ones((2, 8), np.float16),
                                                             "qzeros": np.zeros((2, 1), np.int32)}, "E0101", "unequal"),
    (scheme(4, type="float"), {"weight_packed": np.zeros((8, 1), np.int32), "weight_scale": np.ones((8, 1))},
     "E0103", "type float"),
])
def test_refused(tmp_path: Path, settings: dict[str, Any], parts: dict[str, Array], code: str, reason: str) -> None:
    base: dict[str, Array] = {"qweight": np.zeros((2, 8), np.int32), "qzeros": np.zeros((1, 1), np.int32),
                              "scales": np.ones((1, 8), np.float16)}
    tensors = save(tmp_path, **{f"q__{k}": v for k, v in {**base, **parts}.items()})
    with pytest.raises(EdgecError) as caught:
        unpacked(tensors, settings, "config.json")
    assert caught.value.code in code
    assert reason in str(caught.value)


def test_words_keep_their_axis() -> None:
    codes = np.random.default_rng(0).integers(0, 8, (64, 5)).astype(np.uint32)
    np.testing.assert_array_equal(unpack_words(bit_stream(codes, 3), 3, 0, 64), codes)
    np.testing.assert_array_equal(unpack_words(bit_stream(codes, 3).T, 3, 1, 64), codes.T)
