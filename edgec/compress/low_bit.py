"""Matrices of few bits as kernels are told about them, and the operators that stand for such matrices in a graph:
BitPlaneToDense, PaletteToDense, and DequantizeLinear in blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import (
    GROUPS,
    MOST_VECTOR,
    Array,
    BitsSpec,
    PaletteSpec,
    PaletteTensor,
    Quantized,
    codes_of,
    pack_bits64,
    pack_palette,
)
from edgec.errors import EdgecError
from edgec.ir.model import const_tensor, input_of, int_attr
from edgec.ir.weights import release

CODES = (ir.DataType.UINT4, ir.DataType.INT4, ir.DataType.UINT8, ir.DataType.INT8)
PALETTE_HALF, PALETTE_WIDE = 64, 80  # the int `form` of palettes with f16 and f32 tables, plus the values of an index


@dataclass(frozen=True)
class LowBitMatrix:
    """What a weight of few bits is, as the calls that read it say: N rows, K columns. value_bytes: 2 or 4, of a
    palette's tables."""

    spec: BitsSpec | PaletteSpec
    n: int
    k: int
    value_bytes: int = 2

    @property
    def bytes(self) -> int:
        if isinstance(self.spec, PaletteSpec):
            return self.spec.bytes(self.n, self.k, self.value_bytes)
        return self.spec.bytes(self.n, self.k)

    @property
    def looked_up(self) -> bool:
        """Whether an instruction set may look products with it up, which rounds them, instead of decoding."""
        spec = self.spec
        return isinstance(spec, BitsSpec) or (spec.bits <= 4 and spec.vector == 1 and not 0 < spec.rows < self.n)

    @property
    def ints(self) -> tuple[int, int, int]:
        """bits, group, form: docs/kernels.md."""
        spec = self.spec
        if isinstance(spec, BitsSpec):
            return spec.bits, spec.group, int(spec.uniform)
        return spec.bits, spec.rows, (PALETTE_HALF if self.value_bytes == 2 else PALETTE_WIDE) + spec.vector

    @classmethod
    def of(cls, n: int, k: int, bits: int, group: int, form: int) -> LowBitMatrix:
        """The inverse of `ints`. Raises EdgecError (E0002) for parameters that no format has."""
        if form < PALETTE_HALF:
            return cls(BitsSpec(bits, group, bool(form)), n, k)
        wide = form >= PALETTE_WIDE
        return cls(PaletteSpec(bits, group, form - (PALETTE_WIDE if wide else PALETTE_HALF)), n, k, 4 if wide else 2)


@dataclass(frozen=True)
class LowBit:
    """A matrix that can be stored in few bits; load reads it anew at every call."""

    matrix: LowBitMatrix
    load: Callable[[], Quantized | PaletteTensor]

    @property
    def dims(self) -> tuple[int, int]:
        return self.matrix.n, self.matrix.k

    @property
    def known(self) -> bool:
        """Whether the kernels read it: of palettes of longer vectors they do not."""
        return isinstance(self.matrix.spec, BitsSpec) or self.matrix.spec.vector <= MOST_VECTOR

    def pack(self) -> Array:
        """The stored bytes u8 [matrix.bytes]."""
        value = self.load()
        return pack_bits64(value) if isinstance(value, Quantized) else pack_palette(value)


def integers(tensor: ir.TensorProtocol) -> Array:
    """int8 or uint8 values; unsigned ones of 4 bits lie in a byte each and need no conversion."""
    array = np.asarray(tensor.numpy())
    if tensor.dtype == ir.DataType.UINT4:
        return array.view(np.uint8)
    return array.astype(np.int8, copy=False) if tensor.dtype == ir.DataType.INT4 else array


def uniform_low_bit(
    codes: Callable[[], Array], scale: Callable[[], Array], zero: Callable[[], Array] | None, block: int
) -> LowBit | None:
    """The uniform form of codes [N, K] with factors [N, ceil(K / block)]; None where it would not be exact.

    Reads everything once: how many bits the codes need decides the format.
    """
    values, factors = codes(), scale()
    n, k = values.shape
    group = next((g for g in sorted(GROUPS, reverse=True) if block % g == 0 or block >= k), None)
    with np.errstate(over="ignore"):
        halves = factors.astype(np.float16)
    if group is None or not np.isfinite(halves).all() or not np.array_equal(halves.astype(np.float32), factors):
        return None
    least = int(values.min())
    spec = BitsSpec(max(1, (int(values.max()) - least).bit_length()), group, True)
    blocks = np.minimum(np.arange(spec.groups(k)) * group // block, factors.shape[1] - 1)

    def load() -> Quantized:
        # Codes are integers of at most 9 bits with their sign, so are zero points: float16 holds them.
        zeros = np.zeros_like(scale()) if zero is None else zero().astype(np.float32)
        found = codes()
        if least:
            found = found.astype(np.int16) - least
        return Quantized(spec, found.astype(np.uint8, copy=False), scale().astype(np.float16)[:, blocks],
                         (zeros - least).astype(np.float16)[:, blocks])

    return LowBit(LowBitMatrix(spec, n, k), load)


def low_bit_of_blocks(node: ir.Node) -> LowBit | None:
    """The matrix that a DequantizeLinear of constant codes [N, K] in blocks along K makes, where that is exact.

    Reads codes and scales once.
    """
    codes, scale, zero = (const_tensor(input_of(node, i)) for i in range(3))
    block = int_attr(node, "block_size", 0)
    if codes is None or scale is None or (zero is None and input_of(node, 2) is not None):
        return None
    floats = scale.dtype == ir.DataType.FLOAT and int_attr(node, "output_dtype", 1) in (0, 1)
    along_k = len(codes.shape) == 2 and int_attr(node, "axis", 1) in (1, -1)
    if codes.dtype not in CODES or not floats or block < 1 or not along_k:
        return None
    n, k = codes.shape.numpy()
    if any(t is not None and tuple(t.shape.numpy()) != (n, -(-k // block)) for t in (scale, zero)):
        return None
    found = uniform_low_bit(lambda: integers(codes), lambda: np.asarray(scale.numpy()),
                            None if zero is None else lambda: integers(zero), block)
    release(codes)
    return found


def rows_of(node: ir.Node) -> int:
    """N of a BitPlaneToDense or PaletteToDense; 0 where its codes are no constant."""
    planes = const_tensor(node.inputs[0])
    dims = () if planes is None else tuple(planes.shape.numpy())
    return int(dims[1]) if len(dims) == 3 else 0


def spec_of(node: ir.Node) -> BitsSpec | PaletteSpec:
    """Of a BitPlaneToDense or PaletteToDense. Raises EdgecError (E0002) for attributes that no format has."""
    bits = int_attr(node, "bits", 0)
    if node.op_type == "BitPlaneToDense":
        return BitsSpec(bits, int_attr(node, "group_size", 0), bool(int_attr(node, "uniform", 0)))
    return PaletteSpec(bits, int_attr(node, "rows_per_table", 0), int_attr(node, "vector", 1))


def check_dense(node: ir.Node) -> str | None:
    """BitPlaneToDense and PaletteToDense of constants whose attributes and shapes fit each other."""
    if any(const_tensor(v) is None for v in node.inputs):
        return "it decompresses values known only at run time"
    try:
        wanted = _bit_shapes(node) if node.op_type == "BitPlaneToDense" else _palette_shapes(node)
    except EdgecError as e:
        return f"{e.where} = {e.found}, wanted {e.wanted}"
    half = {ir.DataType.FLOAT16} | ({ir.DataType.FLOAT} if node.op_type == "PaletteToDense" else set())
    types = [{ir.DataType.UINT8}, half, half]
    for value, shape, kinds in zip(node.inputs, wanted, types[: len(wanted)], strict=True):
        tensor = const_tensor(value)
        if tensor is not None and (tuple(tensor.shape.numpy()) != shape or tensor.dtype not in kinds):
            return (f"an input {tensor.dtype.name} {list(tensor.shape.numpy())}, "
                    f"wanted {' or '.join(sorted(k.name for k in kinds))} {list(shape)}")
    return None


def _bit_shapes(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    spec, n, k = spec_of(node), rows_of(node), int_attr(node, "columns", 0)
    assert isinstance(spec, BitsSpec)
    return (spec.bits, n, -(-k // 8)), (spec.planes, n, spec.groups(k)), (n, spec.groups(k))


def _palette_shapes(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    spec, n, k = spec_of(node), rows_of(node), int_attr(node, "columns", 0)
    assert isinstance(spec, PaletteSpec)
    table = (spec.tables(n), 1 << spec.bits, *((spec.vector,) if spec.vector > 1 else ()))
    return (spec.bits, n, -(-spec.indices(k) // 8)), table


def low_bit_of(node: ir.Node) -> LowBit:
    """The matrix that a BitPlaneToDense or PaletteToDense makes, of which check_dense finds nothing wrong."""
    arrays = [const_tensor(v) for v in node.inputs]
    spec, k = spec_of(node), int_attr(node, "columns", 0)

    def load() -> Quantized | PaletteTensor:
        planes, *rest = [np.asarray(t.numpy()) for t in arrays if t is not None]
        codes = codes_of(planes, k if isinstance(spec, BitsSpec) else spec.indices(k))
        for tensor in arrays:
            if tensor is not None:
                release(tensor)
        if isinstance(spec, PaletteSpec):
            return PaletteTensor(spec, codes, rest[0], k)
        return Quantized(spec, codes, rest[0][0] if spec.uniform else rest[0], rest[1])

    table = arrays[1]
    wide = isinstance(spec, PaletteSpec) and table is not None and table.dtype == ir.DataType.FLOAT
    return LowBit(LowBitMatrix(spec, rows_of(node), k, 4 if wide else 2), load)
