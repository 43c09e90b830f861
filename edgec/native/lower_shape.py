"""Lowering of operators that move, cut or name data: most of them become views or nothing at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype, Format
from edgec.compress.low_bit import LowBit
from edgec.ir.model import const_tensor, input_of, int_attr, ints_attr, scalar_of, str_attr
from edgec.native.dims import Dim, dim, dim_max, dim_min, product
from edgec.native.lower_math import broadcast, lift, norm_axis, reorder
from edgec.native.lower_values import (
    MOST_ENTRIES,
    Const,
    Dims,
    Lowering,
    UnsupportedError,
    Value,
    View,
    const_from,
    identity,
    of_const,
    of_data,
    of_run,
    settled,
)

_FAR = 1 << 31  # ONNX writes "to the end" as any large number
_OPERANDS = 60  # inputs of one concat; a call has at most 64 operands


def reshape(ctx: Lowering, value: Value, dims: Dims) -> Value:
    """The same elements in row-major order under other dims; a call only where the bytes lie in another order."""
    if product(dims) != value.count:
        raise UnsupportedError(f"{value.count} elements do not fit [{', '.join(map(str, dims))}]")
    if value.const is not None:
        return of_const(value.const.reshape([int(d.const or 0) for d in dims]))
    if value.data is not None:
        return of_data(value.data.reshape([int(d.const or 0) for d in dims]), value.dtype)
    if value.run is not None:
        return of_run(*value.run, dims)
    order = _carry(value, dims)
    if order is not None:
        return Value(dims, value.dtype, order, buf=value.buf)
    return Value(dims, value.dtype, identity(len(dims)), buf=ctx.rows(value).buf)


def _carry(value: Value, dims: Dims) -> tuple[int, ...] | None:
    """The order of the reshaped value when no byte has to move, else None.

    Old and new axes are matched in groups of equal size; it works when the old axes of each group lie together and in
    order in memory.
    """
    old = [a for a, d in enumerate(value.dims) if d != 1]
    new = [a for a, d in enumerate(dims) if d != 1]
    memory = [a for a in value.order if value.dims[a] != 1]
    starts: dict[int, list[int]] = {}
    i = j = 0
    while i < len(old) and j < len(new):
        mine, theirs = [old[i]], [new[j]]
        p, q = value.dims[old[i]], dims[new[j]]
        while p != q:
            if (q.exact_div(p) if p.terms else None) is not None and i + 1 < len(old):
                i += 1
                mine.append(old[i])
                p = p * value.dims[old[i]]
            elif (p.exact_div(q) if q.terms else None) is not None and j + 1 < len(new):
                j += 1
                theirs.append(new[j])
                q = q * dims[new[j]]
            elif p.const is not None and q.const is not None and max(i + 1 - len(old), j + 1 - len(new)) < 0:
                # Neither divides the other (2 x 3 x 2 read as 3 x 4): the smaller side grows.
                if p.const < q.const:
                    i += 1
                    mine.append(old[i])
                    p = p * value.dims[old[i]]
                else:
                    j += 1
                    theirs.append(new[j])
                    q = q * dims[new[j]]
            else:
                return None
        at = memory.index(mine[0])
        if memory[at : at + len(mine)] != mine:
            return None
        starts[mine[0]] = theirs
        i, j = i + 1, j + 1
    if i < len(old) or j < len(new):
        return None
    moved = [a for m in memory if m in starts for a in starts[m]]
    return settled(dims, moved)


def _target_dims(ctx: Lowering, value: Value, what: str) -> list[Dim]:
    known = ctx.known(value)
    if known is None:
        raise UnsupportedError(f"{what} depends on the data")
    return [dim(i) for i in known.reshape(-1)]


def lower_reshape(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    wanted = _target_dims(ctx, ctx.need(node, 1), "the target shape")
    dims = [
        x.dims[k] if d == 0 and not int_attr(node, "allowzero", 0) and k < x.rank else d for k, d in enumerate(wanted)
    ]
    if any(d == -1 for d in dims):
        at = next(k for k, d in enumerate(dims) if d == -1)
        rest = product(d for k, d in enumerate(dims) if k != at)
        inferred = x.count.exact_div(rest) if rest.terms else None
        if inferred is None:
            raise UnsupportedError(f"{x.count} elements are not known to divide into [{', '.join(map(str, wanted))}]")
        dims[at] = inferred
    return reshape(ctx, x, tuple(dims))


def lower_flatten(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    axis = int_attr(node, "axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    return reshape(ctx, x, (product(x.dims[:axis]), product(x.dims[axis:])))


def lower_squeeze(ctx: Lowering, node: ir.Node) -> Value:
    x, listed = ctx.need(node, 0), ctx.get(node, 1)
    if listed is None:
        axes = {a for a, d in enumerate(x.dims) if d == 1}
    else:
        axes = {norm_axis(a, x.rank) for a in ctx.ints(listed, "the list of axes")}
    if any(x.dims[a] != 1 for a in axes):
        raise UnsupportedError(f"axes {sorted(axes)} of [{', '.join(map(str, x.dims))}] are not all of size 1")
    return reshape(ctx, x, tuple(d for a, d in enumerate(x.dims) if a not in axes))


def lower_unsqueeze(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    listed = ctx.ints(ctx.need(node, 1), "the list of axes")
    rank = x.rank + len(listed)
    axes = {norm_axis(a, rank) for a in listed}
    rest = iter(x.dims)
    return reshape(ctx, x, tuple(dim(1) if a in axes else next(rest) for a in range(rank)))


def lower_identity(ctx: Lowering, node: ir.Node) -> Value:
    return ctx.need(node, 0)


def check_dropout(node: ir.Node) -> str | None:
    if input_of(node, 2) is not None and scalar_of(input_of(node, 2)) != 0:
        return "training mode"
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "the mask output is used"
    return None


def lower_transpose(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    return reorder(x, ints_attr(node, "perm") or tuple(reversed(range(x.rank))))


def lower_shape(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    end = node.attributes.get("end")
    return of_data(list(x.dims[slice(int_attr(node, "start", 0), None if end is None else end.as_int())]))


def lower_size(ctx: Lowering, node: ir.Node) -> Value:
    return of_data(ctx.need(node, 0).count)


def lower_constant(ctx: Lowering, node: ir.Node) -> Value:
    tensor = const_tensor(node.outputs[0])
    if tensor is None:
        raise UnsupportedError("a constant that is not a tensor")
    return of_const(const_from(node.outputs[0].name or node.name or "constant", tensor))


def lower_range(ctx: Lowering, node: ir.Node) -> Value:
    start, limit, delta = (ctx.need(node, i) for i in range(3))
    if start.dtype is Dtype.F32:
        low, high, by = (ctx.scalar(v, "the range") for v in (start, limit, delta))
        if by == 0 or not (high - low) / by <= MOST_ENTRIES:  # NaN too
            raise UnsupportedError(f"a range from {low:g} to {high:g} in steps of {by:g}")
        array = np.arange(low, high, by, dtype=np.float32)
        return of_const(Const(node.outputs[0].name or "range", lambda: array, array.shape, Dtype.F32, (0,)))
    if not start.count == limit.count == delta.count == 1:
        raise UnsupportedError("a start, end or step that is not one number")
    (first,), (last,), (step,) = (_target_dims(ctx, v, "the range") for v in (start, limit, delta))
    if step.const is None or step.const == 0:
        raise UnsupportedError("the step of a range must be known")
    distance = last - first if step.const > 0 else first - last
    count = dim_max(distance, 0).ceildiv(abs(step.const))
    return of_run(first, step.const, (count,))


def lower_constant_of_shape(ctx: Lowering, node: ir.Node) -> Value:
    dims = tuple(_target_dims(ctx, ctx.need(node, 0), "the shape"))
    attr = node.attributes.get("value")
    name = node.outputs[0].name or "fill"
    fill = const_from(name, attr.as_tensor() if attr is not None else ir.tensor(np.zeros(1, np.float32)))
    count = product(dims).const
    if fill.dtype is not Dtype.F32 and count is not None and count <= 4096:
        shape = tuple(int(d.const or 0) for d in dims)
        return of_data(np.full(shape, fill.load().reshape(-1)[0].item(), dtype=object), fill.dtype)
    return expand(ctx, of_const(fill.reshape((1,) * max(len(dims), 1))), dims)


def expand(ctx: Lowering, x: Value, wanted: Dims) -> Value:
    """`x` broadcast with the shape `wanted` (either may be the larger one, axis by axis)."""
    dims = broadcast([x.dims, wanted])
    if dims == x.dims:
        return x
    known = ctx.known(x)
    if known is not None and (product(dims).const or 4097) <= 4096:
        return of_data(np.broadcast_to(known, [int(d.const or 0) for d in dims]), x.dtype)
    x = lift(x, len(dims))
    source = ctx.view(x)
    out = ctx.fresh([dims[a] for a in x.order], x.dtype)
    ctx.emit("expand", [out], [source])
    return Value(dims, x.dtype, x.order, buf=out.buf)


def lower_expand(ctx: Lowering, node: ir.Node) -> Value:
    return expand(ctx, ctx.need(node, 0), tuple(_target_dims(ctx, ctx.need(node, 1), "the target shape")))


def lower_tile(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    repeats = _target_dims(ctx, ctx.need(node, 1), "the repeat count")
    if len(repeats) != x.rank:
        raise UnsupportedError(f"{len(repeats)} repeat counts for a tensor of rank {x.rank}")
    apart: list[Dim] = []
    wide: list[Dim] = []
    for d, r in zip(x.dims, repeats, strict=True):
        if r != 1 and d != 1:
            apart, wide = [*apart, dim(1), d], [*wide, r, d]
        else:
            apart, wide = [*apart, d], [*wide, d * r]
    if len(apart) > 8:
        raise UnsupportedError(f"repeats along {len(apart) - x.rank} axes of a tensor of rank {x.rank}")
    result = expand(ctx, reshape(ctx, x, tuple(apart)), tuple(wide))
    return reshape(ctx, result, tuple(d * r for d, r in zip(x.dims, repeats, strict=True)))


def lower_concat(ctx: Lowering, node: ir.Node) -> Value:
    parts = [ctx.need(node, i) for i in range(len(node.inputs))]
    axis = norm_axis(int_attr(node, "axis", 0), parts[0].rank)
    need_parts(parts, axis)
    known = [ctx.known(p) for p in parts] if parts[0].dtype is not Dtype.F32 else [None]
    if all(k is not None for k in known):
        return of_data(np.concatenate([k for k in known if k is not None], axis=axis), parts[0].dtype)
    return concat(ctx, parts, axis)


def need_parts(parts: Sequence[Value], axis: int) -> None:
    """Parts that differ along `axis` at most."""
    for p in parts[1:]:
        if p.rank != parts[0].rank or any(p.dims[a] != d for a, d in enumerate(parts[0].dims) if a != axis):
            raise UnsupportedError(f"parts of shapes {_text(parts[0].dims)} and {_text(p.dims)}")


def concat(ctx: Lowering, parts: Sequence[Value], axis: int) -> Value:
    """`parts` one after the other along `axis`, in the memory order of the largest computed one."""
    parts = [p for p in parts if p.dims[axis] != 0] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    if len({p.dtype for p in parts}) > 1:
        raise UnsupportedError("parts of different types")
    consts = [p.const for p in parts if p.const is not None]
    # Gates of recurrent layers come in pieces; a piece that is there twice would make the bundle larger, unless it is a
    # mere vector, like biases that are all zero.
    if len(consts) == len(parts) and (len(parts[0].dims) == 1 or len(consts) == len({c.name for c in consts})):
        return of_const(_joined(consts, axis))
    if len(parts) > _OPERANDS:
        head = concat(ctx, parts[:_OPERANDS], axis)
        return concat(ctx, [head, *parts[_OPERANDS:]], axis)
    order = max(parts, key=lambda p: (p.const is None, p.count.hi)).order
    views = [ctx.view(p, order) for p in parts]
    total = dim(0)
    for p in parts:
        total = total + p.dims[axis]
    dims = tuple(total if a == axis else d for a, d in enumerate(parts[0].dims))
    out = ctx.fresh([dims[a] for a in order], parts[0].dtype)
    ctx.emit("concat", [out], views, [order.index(axis)])
    return Value(dims, parts[0].dtype, order, buf=out.buf)


def _joined(parts: Sequence[Const], axis: int) -> Const:
    """Constants one after the other, put together whenever they are read."""
    dims = list(parts[0].dims)
    dims[axis] = sum(p.dims[axis] for p in parts)

    def read() -> Array:
        joined = np.empty(dims, parts[0].dtype.numpy)
        start = 0
        for p in parts:  # one at a time: together they would take the memory twice
            end = start + p.dims[axis]
            joined[(*[slice(None)] * axis, slice(start, end))] = p.load()
            p.release()
            start = end
        return joined

    digest = hashlib.sha256("\0".join(p.name for p in parts).encode()).hexdigest()[:16]
    label = "+".join(dict.fromkeys(p.label or p.base for p in parts))
    origin = "+".join(dict.fromkeys(p.origin for p in parts if p.origin))
    return Const(f"{label}.joined{axis}.{digest}", read, tuple(dims), parts[0].dtype, identity(len(dims)), label,
                 origin=origin)


def _text(dims: Dims) -> str:
    return f"[{', '.join(map(str, dims))}]"


def cut(ctx: Lowering, x: Value, starts: Sequence[Dim], steps: Sequence[int], counts: Dims) -> Value:
    """One element range per axis."""
    if all(s == 0 and t == 1 for s, t in zip(starts, steps, strict=True)) and counts == x.dims:
        return x
    known = ctx.known(x)
    fixed = [(s.const, n.const) for s, n in zip(starts, counts, strict=True)]
    for size, (s, n), t in zip(x.dims, fixed, steps, strict=True):
        # Also where sizes vary: nothing may begin before an axis, and no part of it is longer than the axis can be.
        if (s is not None and n and min(s, s + (n - 1) * t) < 0) or (
                s is not None and n and max(s, s + (n - 1) * t) >= size.hi):
            raise UnsupportedError(f"{n} elements from {s} of an axis of {size}")
    if all(s is not None and n is not None for s, n in fixed):
        def part(a: Array) -> Array:
            picks = (np.arange(n or 0) * t + (s or 0) for (s, n), t in zip(fixed, steps, strict=True))
            return np.asarray(a[np.ix_(*picks)])

        if known is not None:
            return of_data(part(known), x.dtype)
        if x.const is not None:
            suffix = "s" + "_".join(f"{s}.{t}.{n}" for (s, n), t in zip(fixed, steps, strict=True))
            return of_const(x.const.derive(suffix, [n or 0 for _, n in fixed], part))
    if x.run is not None and x.rank == 1:
        first, step = x.run
        return of_run(first + starts[0] * step, step * steps[0], counts)
    source = ctx.view(x)
    out = ctx.fresh([counts[a] for a in x.order], x.dtype)
    ctx.emit("slice", [out], [source], [*(starts[a] for a in x.order), *(steps[a] for a in x.order)])
    return Value(counts, x.dtype, x.order, buf=out.buf)


def _range(size: Dim, start: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    """First index and count of ONNX's start:end:step over an axis of `size`."""
    def from_end(i: Dim) -> Dim:
        if i.const is None and i.lo < 0 <= i.hi:
            raise UnsupportedError(f"index {i} may count from either end")
        return i + size if i.hi < 0 else i

    if step > 0:
        first = dim_min(dim_max(from_end(start), 0), size) if start.lo > -_FAR else dim(0)
        last = size if end.lo >= _FAR else dim_max(dim_min(from_end(end), size), 0)
        return first, dim_max(last - first, 0).ceildiv(step)
    first = size - 1 if start.lo >= _FAR else dim_min(from_end(start), size - 1)
    last = dim(-1) if end.hi <= -_FAR else dim_max(from_end(end), -1)
    return first, dim_max(first - last, 0).ceildiv(-step)


def lower_slice(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    starts = _target_dims(ctx, ctx.need(node, 1), "the start")
    ends = _target_dims(ctx, ctx.need(node, 2), "the end")
    listed, stepped = ctx.get(node, 3), ctx.get(node, 4)
    axes = list(range(len(starts))) if listed is None else ctx.ints(listed, "the list of axes")
    steps = [1] * len(starts) if stepped is None else ctx.ints(stepped, "the step")
    if not len(axes) == len(starts) == len(ends) == len(steps):
        raise UnsupportedError(f"{len(starts)} starts, {len(ends)} ends and {len(steps)} steps for {len(axes)} axes")
    first, stride, count = [dim(0)] * x.rank, [1] * x.rank, list(x.dims)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        a = norm_axis(axis, x.rank)
        first[a], count[a] = _range(x.dims[a], start, end, step)
        stride[a] = step
    return cut(ctx, x, first, stride, tuple(count))


def lower_split(ctx: Lowering, node: ir.Node) -> list[Value]:
    x = ctx.need(node, 0)
    axis = norm_axis(int_attr(node, "axis", 0), x.rank)
    given = ctx.get(node, 1)
    if given is not None:
        sizes = _target_dims(ctx, given, "the list of sizes")
    else:
        n = len(node.outputs)
        whole = x.dims[axis].const
        each = x.dims[axis].exact_div(n) if whole is None else dim(-(-whole // n))
        if each is None:
            raise UnsupportedError(f"{x.dims[axis]} does not divide into {n} parts")
        sizes = [each] * (n - 1) + [x.dims[axis] - each * (n - 1)]
    if len(sizes) != len(node.outputs):
        raise UnsupportedError(f"{len(sizes)} sizes for {len(node.outputs)} parts")
    results, start = [], dim(0)
    for size, output in zip(sizes, node.outputs, strict=True):
        first = [start if a == axis else dim(0) for a in range(x.rank)]
        counts = tuple(size if a == axis else d for a, d in enumerate(x.dims))
        used = bool(output.uses()) or output.is_graph_output()
        # An output nobody reads costs no call; any value of the right type stands for it.
        results.append(cut(ctx, x, first, [1] * x.rank, counts) if used else x)
        start = start + size
    return results


def lower_gather(ctx: Lowering, node: ir.Node) -> Value:
    x, index = ctx.need(node, 0), ctx.need(node, 1)
    axis = norm_axis(int_attr(node, "axis", 0), x.rank)
    known, chosen = ctx.known(x), ctx.known(index)
    picks = None if chosen is None else [dim(i).const for i in chosen.reshape(-1)]
    if chosen is not None and picks is not None and all(i is not None for i in picks):
        if known is not None:
            at = np.array([i or 0 for i in picks], dtype=np.int64).reshape(chosen.shape)
            return of_data(np.take(known, at, axis=axis), x.dtype)
        if len(picks) == 1 and x.const is None:
            at_one = dim(picks[0] or 0)
            at_one = at_one if at_one.lo >= 0 else x.dims[axis] + at_one
            first = [at_one if a == axis else dim(0) for a in range(x.rank)]
            counts = tuple(dim(1) if a == axis else d for a, d in enumerate(x.dims))
            one = cut(ctx, x, first, [1] * x.rank, counts)
            return reshape(ctx, one, (*x.dims[:axis], *index.dims, *x.dims[axis + 1 :]))
    return gather(ctx, x, index, axis)


def gather(ctx: Lowering, x: Value, index: Value, axis: int) -> Value:
    """Rows of `x` along `axis`; dims are those of ONNX Gather."""
    if axis == 0 and x.const is not None and x.const.low_bit is not None:
        rows = position_rows(ctx, x.const, index)
        if rows.low_bit is not None:
            return _gather_bits(ctx, rows, rows.low_bit, index)
    table, source = _table(ctx, x, index, axis)
    place = source.order.index(axis)
    memory = source.physical
    n = index.count
    inner = product(memory[place + 1 :])
    idx = ctx.rows(index if index.dtype in (Dtype.I32, Dtype.I64) else ctx.cast(index, Dtype.I64)).as_dims([n])
    key = ("gather", table.buf.space, table.buf.index if x.const is not None else table.buf, idx.buf, axis)
    outer = product(memory[:place])

    def make() -> View:
        out = ctx.fresh([outer, n, inner], x.dtype)
        shape = table if table.format is Format.PANEL16 else table.as_dims([outer, memory[place], inner])
        ctx.emit("gather", [out], [shape, idx])
        return out

    # cos and sin of the same positions are asked for by every layer: one call each serves all.
    out = ctx.shared(key, make)
    dims = (*x.dims[:axis], *index.dims, *x.dims[axis + 1 :])
    shift = index.rank - 1
    order: list[int] = []
    for a in source.order:
        order.extend(range(axis, axis + index.rank) if a == axis else [a + shift if a > axis else a])
    return Value(dims, x.dtype, tuple(order), buf=out.buf)


def _gather_bits(ctx: Lowering, table: Const, low: LowBit, index: Value) -> Value:
    """Rows of a table of few bits."""
    n, k = low.dims
    idx = ctx.rows(index if index.dtype in (Dtype.I32, Dtype.I64) else ctx.cast(index, Dtype.I64))
    out = ctx.fresh([index.count, k])
    ctx.emit("gather_bits", [out], [ctx.packed(table, low), idx.as_dims([index.count])], [n, k, *low.matrix.ints])
    dims = (*index.dims, dim(k))
    return Value(dims, Dtype.F32, identity(len(dims)), buf=out.buf)


def _table(ctx: Lowering, x: Value, index: Value, axis: int) -> tuple[View, Value]:
    """The operand to gather from, and the value whose order it has."""
    if x.const is None:
        return ctx.view(x), x
    const, wide = x.const, True
    if axis == 0 and x.rank == 2 and x.dtype is Dtype.F32:
        rows = position_rows(ctx, const, index)
        if rows is not const:
            return ctx.weight(rows), of_const(rows)
        # A table of positions stays float32: it is small, and angles need their precision.
        wide = index.run is not None
        if const.name in ctx.tied and const.dims == const.base_dims:
            return ctx.weight(const, Format.PANEL16, wide=False), x
    return ctx.weight(const, wide=wide), x


def position_rows(ctx: Lowering, table: Const, index: Value) -> Const:
    """`table` without the rows that no position below the model's context reaches."""
    if index.run is None or ctx.past is None or index.run != (ctx.past, 1) or table.dims[0] <= ctx.max_context:
        return table
    n = ctx.max_context
    return table.derive(f"first{n}", (n, *table.dims[1:]), lambda a: a[:n])


def lower_pad(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    pads = ctx.ints(ctx.need(node, 1), "the padding")
    fill, listed = ctx.get(node, 2), ctx.get(node, 3)
    axes = list(range(x.rank)) if listed is None else ctx.ints(listed, "the list of axes")
    if len(pads) != 2 * len(axes):
        raise UnsupportedError(f"{len(pads)} numbers of padding for {len(axes)} axes")
    begins, ends = [0] * x.rank, [0] * x.rank
    for k, axis in enumerate(axes):
        a = norm_axis(axis, x.rank)
        begins[a], ends[a] = pads[k], pads[k + len(axes)]
    if min(begins + ends) < 0:
        raise UnsupportedError("negative padding")
    if not any(begins + ends):
        return x
    if x.dtype is not Dtype.F32:
        raise UnsupportedError(f"padding of {x.dtype.name.lower()}")
    value = 0.0 if fill is None else ctx.scalar(fill, "the padding value")
    dims = tuple(d + b + e for d, b, e in zip(x.dims, begins, ends, strict=True))
    source = ctx.view(x)
    out = ctx.fresh([dims[a] for a in x.order])
    mode = PAD_MODES[str_attr(node, "mode", "constant")]
    ctx.emit("pad", [out], [source], [*(begins[a] for a in x.order), mode], [value])
    return Value(dims, x.dtype, x.order, buf=out.buf)


PAD_MODES = {"constant": 0, "edge": 1, "reflect": 2}

