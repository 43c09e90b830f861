"""Lowering of operators that write to computed places or take the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Dtype
from edgec.ir.model import int_attr, str_attr
from edgec.native.dims import Dim, dim, product
from edgec.native.lower_math import axis_last, binary, norm_axis
from edgec.native.lower_values import Lowering, UnsupportedError, Value, identity
from edgec.native.lower_whole import NARROW, constant, fold_axis, pick

_REDUCTIONS = {"none": 0, "add": 1, "mul": 2, "min": 3, "max": 4}


def _sizes(value: Value, what: str) -> tuple[int, ...]:
    known = [d.const for d in value.dims]
    if any(d is None for d in known):
        raise UnsupportedError(f"{what} of [{', '.join(map(str, value.dims))}], whose sizes are not all known")
    return tuple(d or 0 for d in known)


def _from_front(ctx: Lowering, index: Value, sizes: Sequence[int], far: int) -> Value:
    """Indices that count from either end as INT64 ones that count from the front, each of its own size along the last
    axis or all of one. What is out of range becomes `far`: added up to a flat place, it must not name another row."""
    def number(value: int | Sequence[int]) -> Value:
        return constant(np.array(value), Dtype.I64)

    wide, size = ctx.cast(index, Dtype.I64), number(sizes if len(sizes) > 1 else sizes[0])
    front = pick(ctx, binary(ctx, "Less", wide, number(0)), binary(ctx, "Add", wide, size), wide)
    beyond = binary(ctx, "Or", binary(ctx, "Less", front, number(0)), binary(ctx, "GreaterOrEqual", front, size))
    return pick(ctx, beyond, number(far), front)


def _scatter(ctx: Lowering, node: ir.Node, data: Value, index: Value, updates: Value, rows: Dim, inner: Dim) -> Value:
    """Writes `updates` [n * inner] to the rows `index` [n] of `data` [rows * inner]; dims are those of `data`."""
    reduction = _REDUCTIONS[str_attr(node, "reduction", "none")]
    if data.dtype is not updates.dtype or (reduction and data.dtype is not Dtype.F32):
        raise UnsupportedError(f"{data.dtype.name.lower()} joined with {updates.dtype.name.lower()}; float32 is known")
    if updates.count == 0:
        return data
    n = index.count
    if updates.count != n * inner:
        raise UnsupportedError(f"{updates.count} updates for {n} indices of {inner} values each")
    out = ctx.fresh([rows, inner], data.dtype)
    ins = [ctx.rows(data).as_dims([rows, inner]), ctx.rows(index).as_dims([n]), ctx.rows(updates).as_dims([n, inner])]
    ctx.emit("scatter", [out], ins, [reduction])
    return Value(data.dims, data.dtype, identity(data.rank), buf=out.buf)


def check_scatter(node: ir.Node) -> str | None:
    kind = str_attr(node, "reduction", "none")
    return None if kind in _REDUCTIONS else f"reduction = {kind!r}"


def _strides(sizes: Sequence[int]) -> list[int]:
    return [int(np.prod(sizes[a + 1 :], dtype=np.int64)) for a in range(len(sizes))]


def lower_scatter_elements(ctx: Lowering, node: ir.Node) -> Value:
    """y[index[i, j], j] = updates[i, j]: the place in the flat data is computed for each element."""
    data, index, updates = (ctx.need(node, i) for i in range(3))
    sizes, wanted, given = _sizes(data, "data"), _sizes(index, "indices"), _sizes(updates, "updates")
    if len(sizes) != len(wanted) or not sizes or given != wanted:
        raise UnsupportedError(f"indices of {list(wanted)} and updates of {list(given)} into data of {list(sizes)}")
    axis, strides = norm_axis(int_attr(node, "axis", 0), data.rank), _strides(sizes)
    flat = _from_front(ctx, index, sizes[axis : axis + 1], math.prod(sizes))
    if strides[axis] != 1:
        flat = binary(ctx, "Mul", flat, constant(np.array(strides[axis]), Dtype.I64))
    for a, size in enumerate(wanted):
        if a != axis and size > 1:
            ramp = (np.arange(size) * strides[a]).reshape([-1 if k == a else 1 for k in range(data.rank)])
            flat = binary(ctx, "Add", flat, constant(ramp, Dtype.I64))
    return _scatter(ctx, node, data, flat, updates, data.count, dim(1))


def lower_scatter_nd(ctx: Lowering, node: ir.Node) -> Value:
    """Whole rows: the indexed axes of the data are joined to one, and so are the indices."""
    data, index, updates = (ctx.need(node, i) for i in range(3))
    width = index.dims[-1].const if index.rank else None
    if width is None or not 0 < width <= data.rank:
        raise UnsupportedError(f"indices of [{', '.join(map(str, index.dims))}] into a tensor of rank {data.rank}")
    rows, inner = product(data.dims[:width]), product(data.dims[width:])
    if width == 1:
        whole = index if index.dtype in (Dtype.I32, Dtype.I64) else ctx.cast(index, Dtype.I64)
        return _scatter(ctx, node, data, whole, updates, rows, inner)
    lead = [d.const for d in data.dims[:width]]
    if any(d is None for d in lead):
        raise UnsupportedError("the sizes of the axes it indexes must be known at compile time")
    sizes = [d or 0 for d in lead]
    scale = constant(np.array(_strides(sizes)), Dtype.I64)
    front = _from_front(ctx, index, sizes, math.prod(sizes))
    # The sum over the last axis as additions: reductions are float32's.
    flat = fold_axis(ctx, "Add", binary(ctx, "Mul", front, scale), index.rank - 1)
    return _scatter(ctx, node, data, flat, updates, rows, inner)


def lower_top_k(ctx: Lowering, node: ir.Node) -> list[Value]:
    """X [..., R, ...], k to values and INT64 places [..., k, ...]."""
    x = ctx.need(node, 0)
    axis = norm_axis(int_attr(node, "axis", -1), x.rank)
    counts = ctx.ints(ctx.need(node, 1), "k")
    if len(counts) != 1:
        raise UnsupportedError(f"{len(counts)} numbers as k")
    k, kind = counts[0], x.dtype
    if kind in NARROW:
        x = ctx.cast(x, Dtype.F32)  # exact
    if x.dtype is not Dtype.F32:
        raise UnsupportedError(f"the input is {kind.name.lower()}; the kernel compares float32")
    if not 0 < k <= x.dims[axis].lo:
        raise UnsupportedError(f"the {k} largest of {x.dims[axis]} values")
    order = axis_last(x, axis)
    view = ctx.view(x, order)
    dims = tuple(dim(k) if a == axis else d for a, d in enumerate(x.dims))
    rows = product(x.dims[a] for a in order[:-1])
    values, places = (ctx.fresh([rows, k, 1], t) for t in (Dtype.F32, Dtype.I64))
    ctx.emit("topk", [values, places], [view.as_dims([rows, x.dims[axis], 1])], [1 - int_attr(node, "largest", 1)])
    return [ctx.cast(Value(dims, Dtype.F32, order, buf=values.buf), kind),
            Value(dims, Dtype.I64, order, buf=places.buf)]
