"""Rounding to 8 bits, spelled in float operators: the same codes and the same numbers as onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.passes import Context
from edgec.native.lower import capabilities, unsupported
from edgec.passes.lower.decompose import Decompose
from edgec.pipeline import run_passes
from tests.passes.harness import Array, evaluate, model, ops, reasons

RNG = np.random.default_rng(0)
# Ties, values beyond both ends, and an infinity.
X = np.array([[-1e9, -1.25, -0.5, 0.5, 1.5, 2.5], [100.0, 300.0, -np.inf, 0.75, -0.25, 12.3]], np.float32)


def without_integers(node: ir.Node) -> str | None:
    """As a target without kernels for 8-bit integers."""
    return "no kernel" if node.op_type in ("QuantizeLinear", "DequantizeLinear") else unsupported(node)


def same(text: str, feeds: dict[str, Array], **weights: Array) -> set[str]:
    graph = model(text, **weights)
    wanted = evaluate(graph, feeds, "onnxruntime")
    after = run_passes(graph, [Decompose()], Context(capabilities=capabilities(), refuses=without_integers)).model
    found = evaluate(after, feeds, "onnxruntime")
    for name, expected in wanted.items():
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected), name
    names = set(ops(after))
    assert not names & {"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"}
    return names


@pytest.mark.parametrize(("kind", "zero"), [("uint8", 0), ("uint8", 128), ("int8", 0), ("int8", -7)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_quantize(kind: str, zero: int, scale: float) -> None:
    same(f"g (float[2,6] x, float s, {kind} z) => ({kind}[2,6] y) {{ y = QuantizeLinear(x, s, z) }}", {"x": X},
         s=np.float32(scale), z=np.array(zero))


def test_quantize_without_zero_and_along_an_axis() -> None:
    same("g (float[2,6] x, float s) => (uint8[2,6] y) { y = QuantizeLinear(x, s) }", {"x": X}, s=np.float32(0.5))
    same("g (float[2,6] x, float[2] s, int8[2] z) => (int8[2,6] y) { y = QuantizeLinear<axis = 0>(x, s, z) }", {"x": X},
         s=np.array([0.5, 2.0]), z=np.array([3, -4]))


def test_pairs_keep_no_integers() -> None:
    names = same("g (float[2,6] x, float s, uint8 z) => (float[2,6] y) {"
                 " q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }", {"x": X}, s=np.float32(0.3),
                 z=np.array(9))
    # The Cast is the zero point's.
    assert names == {"Div", "Round", "Add", "Clip", "Sub", "Mul", "Cast"}


def test_dequantize_of_inputs() -> None:
    same("g (int8[2,6] x, float[6] s, int8[6] z) => (float[2,6] y) { y = DequantizeLinear<axis = 1>(x, s, z) }",
         {"x": RNG.integers(-128, 128, (2, 6)).astype(np.int8)}, s=RNG.uniform(0.1, 1, 6), z=np.arange(6))


@pytest.mark.parametrize("x", [np.zeros((2, 3)), [[1.0, 2.0, 3.5]], [[-1.0, -2.0, -3.5]], RNG.standard_normal((4, 5))])
def test_dynamic_range(x: Array) -> None:
    x = np.asarray(x, np.float32)
    rows, columns = x.shape
    same(f"g (float[{rows},{columns}] x) => (uint8[{rows},{columns}] y, float s, uint8 z) {{"
         " y, s, z = DynamicQuantizeLinear(x) }", {"x": x})


def test_choosing_operators_on_codes() -> None:
    same("g (uint8[1,2,4,4] x) => (uint8[1,2,2,2] y) { y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }",
         {"x": RNG.integers(0, 256, (1, 2, 4, 4)).astype(np.uint8)})


def test_types_without_a_kernel_are_a_reason() -> None:
    graph = model("g (float[2,6] x, float s, uint16 z) => (uint16[2,6] y) { y = QuantizeLinear(x, s, z) }",
                  s=np.float32(0.5), z=np.array(0))
    record = run_passes(graph, [Decompose()], Context(capabilities=capabilities(), refuses=unsupported)).records[0]
    assert "UINT16" in reasons(record.rules)
