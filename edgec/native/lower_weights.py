"""Lowering of weights that are stored smaller than they are used: what decompresses constants and what follows it.

The result is a constant that unpacks itself whenever the bundle writer or a packer reads it, one tensor at a time, so
a model of any size needs the memory of its largest weight only. Where the codes and scales have a few-bit form
(`LowBit`), linears and gathers of whole matrices keep it; all other readers get dense values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import (
    Array,
    Dtype,
    Quantized,
    dequantize,
    dequantize_palette,
)
from edgec.compress.low_bit import CODES, integers, low_bit_of, uniform_low_bit
from edgec.ir.model import const_tensor, input_of, int_attr, op_of, required
from edgec.ir.ops import DOMAIN
from edgec.ir.weights import release
from edgec.native.lower_values import Const, Lowering, UnsupportedError, Value, identity, of_const

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
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

    wanted = [-(-d // block) if block and a == axis else d for a, d in enumerate(shape)]
    zero_dims = zero.shape.numpy() if zero is not None else scale.dims
    for name, dims in (("scale", scale.dims), ("zero point", zero_dims)):
        per_slice = len(dims) == 1 and tuple(dims) == shape[axis : axis + 1]
        fits = list(dims) == wanted if block else per_slice or math.prod(dims) == 1
        if not fits:
            raise UnsupportedError(f"its {name} {list(dims)} does not fit codes {list(shape)} along axis {axis}"
                                   + (f" in blocks of {block}" if block else ""))

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
    if ctx.weights.low_bit and block and len(shape) == 2 and target == ir.DataType.FLOAT and codes.dtype in CODES:
        along_k = (lambda a: a) if axis else np.transpose

        def stored(factors: Array) -> Array:
            return np.ascontiguousarray(along_k(factors))

        if name not in ctx.weights.known:
            ctx.weights.known[name] = uniform_low_bit(
                lambda: stored(integers(codes)), lambda: stored(scale.load()),
                None if zero is None else lambda: stored(integers(zero)), block)
            release(codes)
        low = ctx.weights.known[name]
        if low is not None:
            # A matrix [K, N] with blocks along its first axis is the transpose of one that can stay as it is.
            result = Const(name, lambda: stored(read()), low.dims, Dtype.F32, (0, 1) if axis else (1, 0), label,
                           low=low, origin=str(low.matrix.spec))
    ctx.unpacked.add(node.outputs[0])
    return of_const(result)


def lower_dense(ctx: Lowering, node: ir.Node) -> Value:
    """A constant in few bits; palettes of vectors that no kernel knows are stored dense."""
    low = low_bit_of(node)

    def dense() -> Array:
        value = low.load()
        return dequantize(value) if isinstance(value, Quantized) else dequantize_palette(value)

    name = node.outputs[0].name or node.name or node.op_type
    label = (required(node, 0).name or name).removesuffix(".planes")
    few = low if low.known and ctx.weights.low_bit else None
    ctx.unpacked.add(node.outputs[0])
    return of_const(Const(name, dense, low.dims, Dtype.F32, (0, 1), label, low=few, origin=str(low.matrix.spec)))


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
