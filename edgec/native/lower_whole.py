"""Lowering of what whole numbers need beside `binary`: bits, reductions, bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype
from edgec.ir.model import int_attr, str_attr
from edgec.native import lower_math as maths
from edgec.native import lower_shape as shapes
from edgec.native.dims import dim
from edgec.native.lower_math import binary, norm_axis, together
from edgec.native.lower_shape import PAD_MODES, cut, reshape
from edgec.native.lower_values import MOST_ENTRIES, Const, Lowering, UnsupportedError, Value, identity, of_const

BITWISE = {"BitwiseAnd": 0, "BitwiseOr": 1, "BitwiseXor": 2, "BitwiseNot": 2, "BitShift": 3}
# Every value of these is one of float32.
NARROW = (Dtype.I8, Dtype.U8)
_FOLDS = {"ReduceSum": "Add", "ReduceProd": "Mul", "ReduceMax": "Max", "ReduceMin": "Min", "ReduceL1": "Add",
          "ReduceSumSquare": "Add"}


def constant(array: Array, dtype: Dtype) -> Value:
    """A constant of the plan's own."""
    values = np.array(array, dtype.numpy, order="C")
    digest = hashlib.sha256(values.tobytes()).hexdigest()[:16]
    name = f"const.{dtype.name.lower()}.{'x'.join(map(str, values.shape))}.{digest}"
    return of_const(Const(name, lambda: values, values.shape, dtype, identity(values.ndim)))


def pick(ctx: Lowering, condition: Value, a: Value, b: Value) -> Value:
    """`a` where `condition` holds, else `b`; one dtype."""
    views, order, dims = together(ctx, [condition, a, b])
    out = ctx.fresh([dims[k] for k in order], a.dtype)
    ctx.emit("where", [out], views)
    return Value(dims, a.dtype, order, buf=out.buf)


def fold_axis(ctx: Lowering, op: str, x: Value, axis: int) -> Value:
    """`x` folded along `axis` to size 1 by a binary operator: halves are joined, so that whole numbers stay exact."""
    size = x.dims[axis].const
    if not size:
        raise UnsupportedError(f"a reduction of {x.dtype.name.lower()} over an axis of size {x.dims[axis]}")

    def part(value: Value, start: int, count: int) -> Value:
        starts = [dim(start if a == axis else 0) for a in range(value.rank)]
        counts = tuple(dim(count) if a == axis else d for a, d in enumerate(value.dims))
        return cut(ctx, value, starts, [1] * value.rank, counts)

    rest: Value | None = None
    while size > 1:
        if size % 2:
            odd = part(x, size - 1, 1)
            rest = odd if rest is None else binary(ctx, op, rest, odd)
        half = size // 2
        x = binary(ctx, op, part(x, 0, half), part(x, half, half))
        size = half
    return x if rest is None else binary(ctx, op, x, rest)


def lower_bitwise(ctx: Lowering, node: ir.Node) -> Value:
    """Whole numbers as INT64; the bits of a smaller type are the lowest of the result."""
    a = ctx.need(node, 0)
    b = constant(np.array(-1), Dtype.I64) if node.op_type == "BitwiseNot" else ctx.need(node, 1)
    kind, code = a.dtype, BITWISE[node.op_type]
    if kind in (Dtype.F32, Dtype.BOOL) or (node.op_type != "BitwiseNot" and b.dtype is not kind):
        raise UnsupportedError(f"{node.op_type} of {kind.name.lower()} and {b.dtype.name.lower()} has no kernel")
    if node.op_type == "BitShift" and str_attr(node, "direction", "") != "LEFT":
        code += 1
    views, order, dims = together(ctx, [ctx.cast(a, Dtype.I64), ctx.cast(b, Dtype.I64)])
    out = ctx.fresh([dims[k] for k in order], Dtype.I64)
    ctx.emit("bitwise", [out], views, [code])
    return ctx.cast(Value(dims, Dtype.I64, order, buf=out.buf), kind)


def lower_reduce(ctx: Lowering, node: ir.Node) -> Value:
    """Reductions: float32 by their kernel, whole numbers by halves; a maximum of few bits is exact in float32."""
    x = ctx.need(node, 0)
    if x.dtype is Dtype.F32 or ctx.known(x) is not None:
        return maths.lower_reduce(ctx, node)
    listed = ctx.get(node, 1)
    axes = [] if listed is None else [norm_axis(a, x.rank) for a in ctx.ints(listed, "the list of axes")]
    axes = axes or ([] if int_attr(node, "noop_with_empty_axes", 0) else list(range(x.rank)))
    keepdims = bool(int_attr(node, "keepdims", 1))
    if x.dtype in (*NARROW, Dtype.BOOL) and node.op_type in ("ReduceMax", "ReduceMin"):
        result = maths.reduce(ctx, ctx.cast(x, Dtype.F32), maths.REDUCE[node.op_type], axes, keepdims)
        if any(x.dims[a].lo == 0 for a in axes):
            # Of nothing the kernel gives an infinity, which the type does not have.
            low, high = (0, 1) if x.dtype is Dtype.BOOL else (np.iinfo(x.dtype.numpy).min, np.iinfo(x.dtype.numpy).max)
            bound = constant(np.array(low if node.op_type == "ReduceMax" else high), Dtype.F32)
            result = binary(ctx, "Max" if node.op_type == "ReduceMax" else "Min", result, bound)
        return ctx.cast(result, x.dtype)
    if x.dtype not in (Dtype.I32, Dtype.I64) or node.op_type not in _FOLDS:
        raise UnsupportedError(f"{node.op_type} of {x.dtype.name.lower()} has no kernel")
    if node.op_type == "ReduceSumSquare":
        x = binary(ctx, "Mul", x, x)
    elif node.op_type == "ReduceL1":
        x = binary(ctx, "Max", x, binary(ctx, "Sub", constant(np.zeros(()), x.dtype), x))
    for axis in axes:
        x = fold_axis(ctx, _FOLDS[node.op_type], x, axis)
    return x if keepdims else reshape(ctx, x, tuple(d for a, d in enumerate(x.dims) if a not in axes))


def lower_pad(ctx: Lowering, node: ir.Node) -> Value:
    """Float32 with what a kernel has by the kernel; else axis by axis: a lookup, or constants before and behind."""
    x, mode = ctx.need(node, 0), str_attr(node, "mode", "constant")
    pads = ctx.ints(ctx.need(node, 1), "the padding")
    fill, listed = ctx.get(node, 2), ctx.get(node, 3)
    axes = list(range(x.rank)) if listed is None else ctx.ints(listed, "the list of axes")
    if len(pads) != 2 * len(axes):
        raise UnsupportedError(f"{len(pads)} numbers of padding for {len(axes)} axes")
    pairs = [(norm_axis(a, x.rank), pads[k], pads[k + len(axes)]) for k, a in enumerate(axes)]
    if x.dtype is Dtype.F32 and mode in PAD_MODES and min(pads, default=0) >= 0 and (
        mode != "reflect" or all(max(b, e) < x.dims[a].lo for a, b, e in pairs)
    ):
        return shapes.lower_pad(ctx, node)
    for axis, before, behind in pairs:
        if before == behind == 0:
            continue
        size = x.dims[axis]
        if mode != "constant":
            if size.const is None:
                raise UnsupportedError(f"mode = {mode!r} along an axis of {size}")
            # Negative numbers cut, and what is padded repeats what is left.
            kept = size.const + min(0, before) + min(0, behind)
            if kept < 1 or kept + max(0, before) + max(0, behind) > MOST_ENTRIES:
                raise UnsupportedError(f"mode = {mode!r} with a padding of {before} and {behind} of an axis of {size}")
            left = np.arange(max(0, -before), size.const - max(0, -behind))
            pad: Callable[..., Array] = np.pad
            index = pad(left, (max(0, before), max(0, behind)), mode=mode)
            x = shapes.gather(ctx, x, constant(index, Dtype.I64), axis)
            continue
        if min(before, behind) < 0:
            first = [dim(max(0, -before) if a == axis else 0) for a in range(x.rank)]
            counts = tuple(d + min(0, before) + min(0, behind) if a == axis else d for a, d in enumerate(x.dims))
            x = cut(ctx, x, first, [1] * x.rank, counts)
        parts = []
        for n in (before, behind):
            value = fill if fill is not None else constant(np.zeros(()), x.dtype)
            shape = tuple(dim(n) if a == axis else d for a, d in enumerate(x.dims))
            one = reshape(ctx, value, (dim(1),) * x.rank)
            parts.append([shapes.expand(ctx, one, shape)] if n > 0 else [])
        if parts[0] or parts[1]:
            x = shapes.concat(ctx, [*parts[0], x, *parts[1]], axis)
    return x


def check_pad(node: ir.Node) -> str | None:
    mode = str_attr(node, "mode", "constant")
    return None if mode in (*PAD_MODES, "wrap") else f"mode = {mode!r}"


def lower_clip(ctx: Lowering, node: ir.Node) -> Value:
    """Float32 between known bounds is one call; anything else the larger and then the smaller of two."""
    x, low, high = ctx.need(node, 0), ctx.get(node, 1), ctx.get(node, 2)
    if x.dtype is Dtype.F32 and all(v is None or v.const is not None for v in (low, high)):
        return maths.lower_unary(ctx, node)
    # The lower bound first, so that the upper one wins where they cross.
    x = x if low is None else binary(ctx, "Max", x, low)
    return x if high is None else binary(ctx, "Min", x, high)
