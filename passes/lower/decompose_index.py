"""Operators that pick, mark and accumulate along an axis, in Gather, Where, Slice and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Builder, const_of, dims_of, input_of, int_attr, rank_of, required, scalar_of, str_attr
from edgec.passes.lower.decompose_math import Decomposed, Entry

_STEPS = 1 << 20  # the longest axis of a running sum


def _from_front(op: Builder, indices: ir.Value, size: int, far: int | None = None) -> ir.Value:
    """Indices that count from either end as indices that count from the front. What is out of range becomes `far`, if
    given: added up to a place in flat data, it must be refused there and not name another element."""
    known = const_of(indices)
    if known is not None:
        whole = np.asarray(known, np.int64)
        front = np.where(whole < 0, whole + size, whole)
        return op.const(front if far is None else np.where((front < 0) | (front >= size), far, front))
    wide: ir.Value = op.Cast(indices, to=int(ir.DataType.INT64))
    zero, end = op.const(np.int64(0)), op.const(np.int64(size))
    placed: ir.Value = op.Where(op.Less(wide, zero), op.Add(wide, end), wide)
    if far is None:
        return placed
    return op.Where(op.Or(op.Less(placed, zero), op.GreaterOrEqual(placed, end)), op.const(np.int64(far)), placed)


def _strides(dims: Sequence[int]) -> list[int]:
    return [int(np.prod(dims[a + 1 :], dtype=np.int64)) for a in range(len(dims))]


def _ramp(op: Builder, size: int, step: int, axis: int, rank: int) -> ir.Value:
    """0, step, 2 step, ... along `axis` of `rank` axes."""
    return op.const((np.arange(size, dtype=np.int64) * step).reshape([-1 if a == axis else 1 for a in range(rank)]))


def gather_nd(op: Builder, node: ir.Node) -> Decomposed:
    """One Gather of whole rows: the indexed axes are joined to one, and so are the indices."""
    data, indices = required(node, 0), required(node, 1)
    batch, picks, shape = int_attr(node, "batch_dims", 0), dims_of(indices), dims_of(data)
    if picks is None or shape is None or not isinstance(picks[-1], int):
        return "the rank of its data or the width of its indices is not known"
    count = batch + picks[-1]
    if count == 1:
        return op.Gather(data, op.Squeeze(indices, op.ints([-1])), axis=0)
    if batch == 0 and shape[: count - 1] == (1,) * (count - 1):
        # Only the last of the indexed axes leaves a choice, so its size may be anything.
        last = op.Gather(indices, op.const(np.int64(count - 1)), axis=-1)
        return op.Gather(op.Squeeze(data, op.ints(range(count - 1))), last, axis=0)
    lead = [d for d in shape[:count] if isinstance(d, int)]
    if len(lead) < count or count == 0:
        return "the sizes of the axes it indexes are not known"
    strides, rank = _strides(lead), len(picks) - 1
    flat: ir.Value | None = None
    for k in range(count):
        part = _ramp(op, lead[k], strides[k], k, rank) if k < batch else op.Mul(
            _from_front(op, op.Gather(indices, op.const(np.int64(k - batch)), axis=-1), lead[k], int(np.prod(lead))),
            op.const(np.int64(strides[k])))
        flat = part if flat is None else op.Add(flat, part)
    rest = [op.Shape(data, start=count)] if len(shape) > count else []
    joined = op.Concat(op.ints([int(np.prod(lead))]), *rest, axis=0) if rest else op.ints([-1])
    return op.Gather(op.Reshape(data, joined), flat, axis=0)


def gather_elements(op: Builder, node: ir.Node) -> Decomposed:
    """y[i, j] = x[indices[i, j], j]: the position in the flat data is computed for each element."""
    data, indices = required(node, 0), required(node, 1)
    shape, picks = dims_of(data), dims_of(indices)
    if shape is None or picks is None:
        return "the rank of its data or of its indices is not known"
    known = [d for d in shape if isinstance(d, int)]
    wanted = [d for d in picks if isinstance(d, int)]
    if len(known) < len(shape) or len(wanted) < len(picks):
        return "the size of its data or of its indices is not known"
    axis, strides = int_attr(node, "axis", 0) % len(known), _strides(known)
    flat = op.Mul(_from_front(op, indices, known[axis], int(np.prod(known))), op.const(np.int64(strides[axis])))
    for a, size in enumerate(wanted):
        if a != axis and size > 1:
            flat = op.Add(flat, _ramp(op, size, strides[a], a, len(known)))
    return op.Gather(op.Reshape(data, op.ints([-1])), flat, axis=0)


def one_hot(op: Builder, node: ir.Node) -> Decomposed:
    indices, depth, values = required(node, 0), scalar_of(input_of(node, 1)), const_of(input_of(node, 2), 2)
    rank = rank_of(indices)
    if depth is None or values is None or rank is None:
        return "its depth, its values or the rank of its indices is not known"
    axis = int_attr(node, "axis", -1) % (rank + 1)
    at = op.Unsqueeze(_from_front(op, indices, int(depth)), op.ints([axis]))
    hit = op.Equal(at, _ramp(op, int(depth), 1, axis, rank + 1))
    return op.Where(hit, op.const(values.reshape(-1)[1]), op.const(values.reshape(-1)[0]))


def cum_sum(op: Builder, node: ir.Node) -> Decomposed:
    return _running(op, node, "Add", 0)


def cum_prod(op: Builder, node: ir.Node) -> Decomposed:
    return _running(op, node, "Mul", 1)


def _running(op: Builder, node: ir.Node, join: str, neutral: int) -> Decomposed:
    """Joins windows of 1, 2, 4, ... (Hillis, Steele 1986): exact for integers, and for floats of few roundings."""
    x, axis_value = required(node, 0), scalar_of(input_of(node, 1))
    dims = dims_of(x)
    if dims is None or axis_value is None:
        return "its axis or the rank of its input is not known"
    axis = int(axis_value) % len(dims)
    size = dims[axis]
    if not isinstance(size, int) or size > _STEPS:
        return "the length of the axis it runs along is not known"
    if size == 0:
        return op.Identity(x)
    at, reverse = op.ints([axis]), bool(int_attr(node, "reverse", 0))

    def shifted(value: ir.Value, by: int) -> ir.Value:
        start, end, rest = (by, size, size - by) if reverse else (0, size - by, 0)
        kept = op.Slice(value, op.ints([start]), op.ints([end]), at)
        # The right shape without knowing the other sizes: a part of x times 0 would keep its NaN.
        edge = op.Slice(value, op.ints([rest]), op.ints([rest + by]), at)
        filled = op.Expand(op.like(neutral, x), op.Shape(edge))
        return op.Concat(*((kept, filled) if reverse else (filled, kept)), axis=axis)

    total = x
    if int_attr(node, "exclusive", 0):
        total = shifted(total, 1)
    width = 1
    while width < size:
        total = op.node(join, [total, shifted(total, width)], {}).outputs[0]
        width *= 2
    return op.Identity(total) if total is x else total


def reverse_sequence(op: Builder, node: ir.Node) -> Decomposed:
    """The first lens[b] steps of each sequence in reverse: one lookup of whole steps."""
    x, lens, over, along = required(node, 0), required(node, 1), int_attr(node, "batch_axis", 1), int_attr(
        node, "time_axis", 0)
    dims = dims_of(x)
    if dims is None or not isinstance(dims[0], int) or not isinstance(dims[1], int) or {over, along} != {0, 1}:
        return "the sizes of its first two axes are not known"
    steps, batch = dims[along], dims[over]
    form = [-1, 1] if along == 0 else [1, -1]
    time = op.const(np.arange(int(steps or 0)).reshape(form))
    length = op.Unsqueeze(op.Cast(lens, to=int(ir.DataType.INT64)), op.ints([along]))
    turned = op.Where(op.Less(time, length), op.Sub(op.Sub(length, op.const(np.int64(1))), time), time)
    beyond = op.Or(op.Less(length, op.const(np.int64(0))), op.Greater(length, op.const(np.int64(steps or 0))))
    turned = op.Where(beyond, op.const(np.int64(dims[0] * dims[1])), turned)  # refused by the lookup
    each = op.const(np.arange(int(batch or 0)).reshape(form[::-1]))
    if along == 0:
        flat = op.Add(op.Mul(turned, op.const(np.int64(batch or 0))), each)
    else:
        flat = op.Add(turned, op.Mul(each, op.const(np.int64(steps or 0))))
    tail = [op.Shape(x, start=2)] if len(dims) > 2 else []
    joined = op.Concat(op.ints([dims[0] * dims[1]]), *tail, axis=0) if tail else op.ints([-1])
    return op.Reshape(op.Gather(op.Reshape(x, joined), op.Reshape(flat, op.ints([-1])), axis=0), op.Shape(x))


def tensor_scatter(op: Builder, node: ir.Node) -> Decomposed:
    """Writes new keys or values into a cache from a place that each sequence has of its own."""
    cache, update, starts = required(node, 0), required(node, 1), input_of(node, 2)
    sizes, wanted = dims_of(cache), dims_of(update)
    if sizes is None or wanted is None:
        return "the rank of its cache is not known"
    axis = int_attr(node, "axis", -2) % len(sizes)
    room, count = sizes[axis], wanted[axis]
    if not isinstance(room, int) or not isinstance(count, int):
        return "the lengths of its cache and of its update are not known"
    at: ir.Value = _ramp(op, count, 1, axis, len(sizes))
    if starts is not None:
        place = op.Cast(starts, to=int(ir.DataType.INT64))
        at = op.Add(at, op.Unsqueeze(place, op.ints(range(1, len(sizes)))))
    if str_attr(node, "mode", "linear") == "circular":
        at = op.Mod(at, op.const(np.int64(room)))
    elif starts is not None:  # a place does not count from the end
        at = op.Where(op.Less(at, op.const(np.int64(0))), op.const(np.int64(room)), at)
    return op.ScatterElements(cache, op.Expand(at, op.Shape(update)), update, axis=axis)


def compress(op: Builder, node: ir.Node) -> Decomposed:
    keep, axis = const_of(input_of(node, 1), _STEPS), node.attributes.get("axis")
    if keep is None:
        return "which parts it keeps is known only at run time, and so is the size of its result"
    x, places = required(node, 0), op.ints(np.flatnonzero(keep))
    return op.Gather(op.Reshape(x, op.ints([-1])), places, axis=0) if axis is None else op.Gather(
        x, places, axis=axis.as_int())


TABLE: Mapping[str, Entry] = {
    "GatherND": gather_nd, "GatherElements": gather_elements, "OneHot": one_hot, "CumSum": cum_sum,
    "ReverseSequence": reverse_sequence, "TensorScatter": tensor_scatter, "Compress": compress,
}
