"""Lowering of weights that are stored smaller than they are used: what decompresses constants and what follows it.

The result is a constant that unpacks itself whenever the bundle writer or a packer reads it, one tensor at a time, so
a model of any size needs the memory of its largest weight only. Where the codes and scales have a few-bit form
(`LowBit`), linears and gathers of whole matrices keep it; all other readers get dense values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import (
    GROUPS,
    MOST_VECTOR,
    Array,
    BitsSpec,
    Dtype,
    PaletteSpec,
    PaletteTensor,
    Quantized,
    codes_of,
    dequantize,
    dequantize_palette,
)
from edgec.errors import EdgecError
from edgec.ir.model import const_tensor, input_of, int_attr, op_of, required
from edgec.ir.ops import DOMAIN
from edgec.ir.weights import release
from edgec.native.lower_values import Const, LowBit, Lowering, UnsupportedError, Value, identity, of_const
from edgec.native.plan import LowBitMatrix

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_CODES = {ir.DataType.UINT4, ir.DataType.INT4, ir.DataType.UINT8, ir.DataType.INT8}
DECOMPRESS = {("", "DequantizeLinear"), (DOMAIN, "BitPlaneToDense"), (DOMAIN, "PaletteToDense")}


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is a constant, or one after decompressing and rearranging."""
    if value is None or const_tensor(value) is not None:
        return value is not None
    node = value.producer()
    moves = node is not None and not node.domain and (node.op_type in _FOLDS or node.op_type == "Transpose")
    unpacks = node is not None and (op_of(node) in DECOMPRESS or moves)
    return node is not None and unpacks and all(v is None or is_constant(v) for v in node.inputs)


def check_dequantize(node: ir.Node) -> str | None:
    """Only constants are dequantized: there is no kernel for values known at run time."""
    if const_tensor(input_of(node, 0)) is None:
        return "it dequantizes values known only at run time"
    zero = input_of(node, 2)
    return None if zero is None or const_tensor(zero) is not None else "its zero point is known only at run time"


def lower_dequantize(ctx: Lowering, node: ir.Node) -> Value:
    """DequantizeLinear of a constant: per tensor, per slice along `axis`, or in blocks of `block_size` along it."""
    codes, zero = const_tensor(node.inputs[0]), const_tensor(input_of(node, 2))
    scale = ctx.need(node, 1).const
    if codes is None or scale is None:
        raise UnsupportedError("it dequantizes values known only at run time")
    shape = tuple(int(d) for d in codes.shape.numpy())
    axis = int_attr(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    block = int_attr(node, "block_size", 0)
    target = node.outputs[0].dtype or ir.DataType.FLOAT
    if target not in _FLOATS:
        raise UnsupportedError(f"it dequantizes to {target.name}")

    def spread(factors: Array) -> Array:
        """Scales or zero points so that they broadcast against the codes."""
        if block:
            wide = np.repeat(factors, block, axis)
            return wide[(*[slice(None)] * axis, slice(shape[axis]))]
        if factors.ndim == 1 and factors.size > 1:
            return factors.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        return factors.reshape(()) if factors.size == 1 else factors

    def read() -> Array:
        values = np.asarray(codes.numpy()).astype(np.int32)
        if zero is not None:
            values -= spread(np.asarray(zero.numpy()).astype(np.int32))
        dense = values.astype(np.float32)
        del values
        dense *= spread(scale.load())
        release(codes)
        return rounded(dense, target)

    name = node.outputs[0].name or node.name or "dequantized"
    origin = f"{codes.dtype.name.lower()}{f' in blocks of {block}' if block else ''}"
    label = (required(node, 0).name or name).removesuffix(".codes")
    result = Const(name, read, shape, Dtype.F32, identity(len(shape)), label, origin=origin)
    if ctx.weights.low_bit and block and len(shape) == 2 and target == ir.DataType.FLOAT and codes.dtype in _CODES:
        along_k = (lambda a: a) if axis else np.transpose

        def stored(factors: Array) -> Array:
            return np.ascontiguousarray(along_k(factors))

        if name not in ctx.weights.known:
            ctx.weights.known[name] = _low_bit(
                lambda: stored(_integers(codes)), lambda: stored(scale.load()),
                None if zero is None else lambda: stored(_integers(zero)), block)
            release(codes)
        low = ctx.weights.known[name]
        if low is not None:
            # A matrix [K, N] with blocks along its first axis is the transpose of one that can stay as it is.
            result = Const(name, lambda: stored(read()), low.dims, Dtype.F32, (0, 1) if axis else (1, 0), label,
                           low=low, origin=str(low.matrix.spec))
    ctx.unpacked.add(node.outputs[0])
    return of_const(result)


def _integers(tensor: ir.TensorProtocol) -> Array:
    """int8 or uint8 values; unsigned ones of 4 bits lie in a byte each and need no conversion."""
    array = np.asarray(tensor.numpy())
    if tensor.dtype == ir.DataType.UINT4:
        return array.view(np.uint8)
    return array.astype(np.int8, copy=False) if tensor.dtype == ir.DataType.INT4 else array


def _low_bit(
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


def _rows(node: ir.Node) -> int:
    planes = const_tensor(node.inputs[0])
    dims = () if planes is None else tuple(planes.shape.numpy())
    return int(dims[1]) if len(dims) == 3 else 0


def _bits_spec(node: ir.Node) -> BitsSpec:
    return BitsSpec(int_attr(node, "bits", 0), int_attr(node, "group_size", 0), bool(int_attr(node, "uniform", 0)))


def _bit_shapes(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    spec, n, k = _bits_spec(node), _rows(node), int_attr(node, "columns", 0)
    return (spec.bits, n, -(-k // 8)), (spec.planes, n, spec.groups(k)), (n, spec.groups(k))


def _palette_spec(node: ir.Node) -> PaletteSpec:
    return PaletteSpec(int_attr(node, "bits", 0), int_attr(node, "rows_per_table", 0), int_attr(node, "vector", 1))


def _palette_shapes(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    spec, n, k = _palette_spec(node), _rows(node), int_attr(node, "columns", 0)
    table = (spec.tables(n), 1 << spec.bits, *((spec.vector,) if spec.vector > 1 else ()))
    return (spec.bits, n, -(-spec.indices(k) // 8)), table


def lower_dense(ctx: Lowering, node: ir.Node) -> Value:
    """A constant in few bits; palettes of vectors that no kernel knows are stored dense."""
    arrays = [const_tensor(v) for v in node.inputs]
    n, k = _rows(node), int_attr(node, "columns", 0)
    spec = _bits_spec(node) if node.op_type == "BitPlaneToDense" else _palette_spec(node)

    def few() -> Quantized | PaletteTensor:
        planes, *rest = [np.asarray(t.numpy()) for t in arrays if t is not None]
        codes = codes_of(planes, k if isinstance(spec, BitsSpec) else spec.indices(k))
        for tensor in arrays:
            if tensor is not None:
                release(tensor)
        if isinstance(spec, PaletteSpec):
            return PaletteTensor(spec, codes, rest[0], k)
        return Quantized(spec, codes, rest[0][0] if spec.uniform else rest[0], rest[1])

    def dense() -> Array:
        value = few()
        return dequantize(value) if isinstance(value, Quantized) else dequantize_palette(value)

    name = node.outputs[0].name or node.name or node.op_type
    label = (required(node, 0).name or name).removesuffix(".planes")
    lut = arrays[1]
    wide = isinstance(spec, PaletteSpec) and lut is not None and lut.dtype == ir.DataType.FLOAT
    known = isinstance(spec, BitsSpec) or spec.vector <= MOST_VECTOR
    low = LowBit(LowBitMatrix(spec, n, k, 4 if wide else 2), few) if known and ctx.weights.low_bit else None
    ctx.unpacked.add(node.outputs[0])
    return of_const(Const(name, dense, (n, k), Dtype.F32, (0, 1), label, low=low, origin=str(spec)))


def rounded(values: Array, target: ir.DataType) -> Array:
    """float32 values rounded as a tensor of type `target` would hold them."""
    return values if target == ir.DataType.FLOAT else values.astype(target.numpy()).astype(np.float32)


def _reshape(node: ir.Node, a: Array, shape: Array) -> Array:
    return a.reshape([a.shape[i] if d == 0 and not int_attr(node, "allowzero", 0) else int(d)
                      for i, d in enumerate(shape.reshape(-1))])


# What importers put behind a DequantizeLinear: offsets, an undone ordering of columns, other dims.
_FOLDS: dict[str, Callable[..., Array]] = {
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Cast": lambda node, a: rounded(a, ir.DataType(int_attr(node, "to", 1))),
    "Gather": lambda node, a, index: np.take(a, index, axis=int_attr(node, "axis", 0)),
    "Reshape": _reshape,
}


def fold_unpacked(ctx: Lowering, node: ir.Node) -> Value | None:
    """A constant when `node` only rearranges constants that are being unpacked; None for every other node."""
    sources = [v for v in node.inputs if v is not None]
    if node.domain or node.op_type not in _FOLDS or not any(v in ctx.unpacked for v in sources):
        return None
    values = [ctx.values[v] for v in sources if v in ctx.values]
    consts = [v.const for v in values if v.const is not None]
    shape = node.outputs[0].shape
    floats = node.op_type != "Cast" or ir.DataType(int_attr(node, "to", 1)) in _FLOATS
    if len(consts) != len(sources) or shape is None or not shape.is_static() or not floats:
        return None
    dims = tuple(int(d) for d in shape.numpy())
    ctx.unpacked.add(node.outputs[0])
    if node.op_type == "Reshape" and consts[0].perm == identity(len(consts[0].perm)):
        return of_const(consts[0].reshape(dims))  # the same values in the same order, in few bits if they were
    change = _FOLDS[node.op_type]
    name = node.outputs[0].name or node.name or node.op_type
    first = next(c for v, c in zip(sources, consts, strict=True) if v in ctx.unpacked)
    result = Const(name, lambda: change(node, *(c.load() for c in consts)), dims, Dtype.F32, identity(len(dims)),
                   first.label or first.base, origin=first.origin)
    return of_const(result)
