"""BitPlaneToDense and PaletteToDense give the weights of their formats bit for bit, in every engine that runs them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from edgec.compress.formats import (
    BitsSpec,
    PaletteSpec,
    PaletteTensor,
    Quantized,
    dequantize,
    dequantize_palette,
    planes_of,
)
from edgec.errors import EdgecError
from edgec.ir.ops import OPS, attach_bodies, infer_ops
from tests.compress.random_weights import random_palette, random_quantized
from tests.passes.harness import Array, evaluate, model

ENGINES = ["reference", "onnxruntime", "inlined"]
SPECS = [BitsSpec(2, 32), BitsSpec(3, 64), BitsSpec(1, 128), BitsSpec(8, 32), BitsSpec(4, 64, True),
         BitsSpec(8, 128, True), BitsSpec(3, 32, True)]
PALETTES = [PaletteSpec(4), PaletteSpec(8), PaletteSpec(1, rows=3), PaletteSpec(3, rows=5, vector=2),
            PaletteSpec(6, vector=4)]


def of_bits(q: Quantized) -> ir.Model:
    spec, (n, k) = q.spec, q.shape
    scale = q.scale[None] if spec.uniform else q.scale
    attributes = f"bits = {spec.bits}, group_size = {spec.group}, columns = {k}, uniform = {int(spec.uniform)}"
    planes = planes_of(q.codes, spec.bits)
    return model(
        f"g (uint8[{_dims(planes)}] p, float16[{_dims(scale)}] s, float16[{_dims(q.offset)}] o) => (float[{n},{k}] y)"
        f" {{ y = edgec.BitPlaneToDense<{attributes}>(p, s, o) }}", domains={"edgec": 1}, p=planes, s=scale, o=q.offset)


def of_palette(p: PaletteTensor) -> ir.Model:
    spec, (n, k) = p.spec, p.shape
    planes, kind = planes_of(p.indices, spec.bits), "float16" if p.lut.dtype == np.float16 else "float"
    attributes = f"bits = {spec.bits}, columns = {k}, rows_per_table = {spec.rows}, vector = {spec.vector}"
    return model(
        f"g (uint8[{_dims(planes)}] p, {kind}[{_dims(p.lut)}] t) => (float[{n},{k}] y)"
        f" {{ y = edgec.PaletteToDense<{attributes}>(p, t) }}", domains={"edgec": 1}, p=planes, t=p.lut)


def _dims(array: Array) -> str:
    return ", ".join(map(str, array.shape))


def dense(graph: ir.Model, engine: str) -> Array:
    if engine == "inlined":
        common.InlinePass()(attach_bodies(graph))
        assert not graph.functions
    return evaluate(graph, {}, "reference" if engine == "inlined" else engine)["y"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 31), (3, 160), (9, 203)])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bits(engine: str, n: int, k: int, spec: BitsSpec) -> None:
    q = random_quantized(np.random.default_rng(n * k), spec, n, k)
    assert np.array_equal(dense(of_bits(q), engine), dequantize(q))


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_of_very_different_size_are_summed_exactly(engine: str) -> None:
    """In float32 the sum 2048 + 2^-24 - 2048 depends on the order."""
    scale = np.array([2048.0, 2.0**-24], np.float16).reshape(2, 1, 1)
    q = Quantized(BitsSpec(2, 32), np.arange(4, dtype=np.uint8)[None], scale, np.full((1, 1), -2048, np.float16))
    wanted = np.array([[-4096, -(2.0**-24), -4096, 2.0**-24]], np.float32)
    assert np.array_equal(dequantize(q), wanted)
    assert np.array_equal(dense(of_bits(q), engine), wanted)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 33), (12, 50)])
@pytest.mark.parametrize("spec", PALETTES, ids=str)
def test_palette(engine: str, dtype: type[np.floating], n: int, k: int, spec: PaletteSpec) -> None:
    p = random_palette(np.random.default_rng(n * k), spec, n, k, dtype)
    assert np.array_equal(dense(of_palette(p), engine), dequantize_palette(p))


def test_inference_and_cost() -> None:
    q = random_quantized(np.random.default_rng(0), BitsSpec(3, 64), 10, 100)
    node = next(iter(of_bits(q).graph))
    node.outputs[0].shape, node.outputs[0].type = None, None
    assert infer_ops(of_bits(q)) is False  # declared outputs stay
    ((dtype, dims),) = OPS["BitPlaneToDense"].infer(node)
    assert (dtype, dims) == (ir.DataType.FLOAT, (10, 100))
    cost = OPS["BitPlaneToDense"].cost(node, {})
    assert cost.flops == 3 * 10 * 100
    assert cost.bytes == 3 * 10 * 13 + 2 * (3 + 1) * 10 * 2 + 4 * 10 * 100
    node.inputs[0].shape = None  # type: ignore[union-attr]
    with pytest.raises(EdgecError, match="E0302"):
        OPS["BitPlaneToDense"].cost(node, {})
