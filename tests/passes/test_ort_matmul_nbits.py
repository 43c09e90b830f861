from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.formats import BitsSpec, Quantized
from edgec.ir.model import walk
from edgec.ir.passes import Context
from edgec.passes.compress.quantize import Quantize
from edgec.passes.lower.ort_codes import packed
from edgec.passes.lower.ort_matmul_nbits import OrtMatmulNbits
from edgec.pipeline import run_passes
from tests.compress.random_weights import random_quantized
from tests.passes.harness import Array, evaluate, model, ops, reasons, run

RNG = np.random.default_rng(11)
N = 9


def exact(q: Quantized) -> Array:
    """The weights in float64."""
    columns = q.shape[1]
    scale, zero = (np.repeat(a.astype(np.float64), q.spec.group, 1)[:, :columns] for a in (q.scale, q.offset))
    return (q.codes.astype(np.float64) - zero) * scale


def linear(q: Quantized, op: str = "Gemm") -> ir.Model:
    """x times the weight, for x that shows it: the identity."""
    k = q.shape[1]
    body = "y = Gemm<transB = 1>(x, w, b)" if op == "Gemm" else "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)"
    weights = {"w": np.zeros((N, k)), **({"b": np.zeros(N)} if op == "Gemm" else {})}
    bias = f", float[{N}] b" if op == "Gemm" else ""
    graph = model(f"g (float[{k},{k}] x, float[{N},{k}] w{bias}) => (float[{k},{N}] y) {{ {body} }}", **weights)
    return run_passes(graph, [Quantize()], Context(quantized={"w": q})).model


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize(("bits", "stored"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_the_weights_are_those_of_the_codes(bits: int, stored: int, op: str) -> None:
    for group, k in ((32, 96), (64, 70), (128, 40)):
        q = random_quantized(RNG, BitsSpec(bits, group, True), N, k)
        q.codes[0, 0] = q.spec.levels - 1  # every width is used
        graph, modified, _ = run(OrtMatmulNbits(), linear(q, op), engine="onnxruntime")
        assert modified
        assert ops(graph)["com.microsoft::MatMulNBits"] == 1
        assert "DequantizeLinear" not in ops(graph)
        node = next(n for n in walk(graph) if n.op_type == "MatMulNBits")
        assert node.attributes["bits"].as_int() == stored
        found = evaluate(graph, {"x": np.eye(k, dtype=np.float32)}, "onnxruntime")["y"].T
        assert np.abs(found - exact(q)).max() <= 1e-6 * np.abs(exact(q)).max()


def test_zero_points_between_the_codes() -> None:
    q = random_quantized(RNG, BitsSpec(4, 32, True), N, 64)
    q = replace(q, offset=(q.offset + np.float16(0.25)))
    graph, modified, _ = run(OrtMatmulNbits(), linear(q), engine="onnxruntime")
    assert modified
    found = evaluate(graph, {"x": np.eye(64, dtype=np.float32)}, "onnxruntime")["y"].T
    assert np.abs(found - exact(q)).max() <= 1e-6 * np.abs(exact(q)).max()


def test_zero_points_between_the_codes_of_eight_bits_have_no_operator() -> None:
    q = random_quantized(RNG, BitsSpec(8, 32, True), N, 64)
    q = replace(q, offset=(q.offset / np.float16(512)))
    _, modified, rules = run(OrtMatmulNbits(), linear(q), engine="onnxruntime")
    assert not modified
    assert "whole zero points" in reasons(rules)


def test_a_bias_goes_along() -> None:
    q = random_quantized(RNG, BitsSpec(4, 32, True), N, 64)
    graph = linear(q)
    bias = RNG.standard_normal(N).astype(np.float32)
    graph.graph.initializers["b"].const_value = ir.tensor(bias, name="b")
    graph, _, _ = run(OrtMatmulNbits(), graph, engine="onnxruntime")
    found = evaluate(graph, {"x": np.zeros((64, 64), np.float32)}, "onnxruntime")["y"]
    assert np.array_equal(found[0], bias)


def test_signed_codes_of_other_tools() -> None:
    codes, scale = RNG.integers(-8, 8, (N, 64)), RNG.random((N, 2)).astype(np.float32)
    graph = model(
        f"g (float[64,64] x, int4[{N},64] c, float[{N},2] s) => (float[64,{N}] y)"
        " { w = DequantizeLinear<axis = 1, block_size = 32>(c, s) t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }",
        c=codes, s=scale)
    graph, modified, _ = run(OrtMatmulNbits(), graph, engine="onnxruntime")
    assert modified
    found = evaluate(graph, {"x": np.eye(64, dtype=np.float32)}, "onnxruntime")["y"].T
    assert np.allclose(found, codes * np.repeat(scale.astype(np.float64), 32, 1), rtol=1e-6)


def test_blocks_that_the_operator_refuses_stay() -> None:
    graph = model(
        f"g (float[3,24] x, uint8[{N},24] c, float[{N},2] s) => (float[3,{N}] y)"
        " { w = DequantizeLinear<axis = 1, block_size = 12>(c, s) t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }",
        c=RNG.integers(0, 255, (N, 24)), s=RNG.random((N, 2)))
    _, modified, rules = run(OrtMatmulNbits(), graph, engine="onnxruntime")
    assert not modified
    assert "blocks are of 12 columns" in reasons(rules)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes(bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, (3, 13)).astype(np.uint8)
    found = packed(codes, bits)
    assert found.shape == (3, -(-13 * bits // 8))
    for (n, k), code in np.ndenumerate(codes):
        place = k * bits
        assert found[n, place // 8] >> (place % 8) & ((1 << bits) - 1) == code
