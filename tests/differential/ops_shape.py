"""Operators that move, cut, join and choose elements, and arithmetic on shapes."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.differential.draft import BOOL, F32, I8, I32, I64, U8, Draft, RejectedError, Value
from tests.differential.ops_math import Drawer

_ANY = (F32, F32, F32, I64, I32, U8, I8, BOOL)


def _any(g: Draft, low: int = 0, high: int = 4) -> Value:
    return g.pick((g.float, *_ANY) if g.flag() else (), low, high, largest=np.inf)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def reshape(g: Draft) -> Value:
    x = _any(g)
    if x.fixed:
        count, shape = x.count, []
        for _ in range(g.int(0, 3)):
            shape.append(g.one(_divisors(count)))
            count //= shape[-1]
        shape.append(count)
        if g.flag():
            shape[g.int(0, len(shape) - 1)] = -1
        for i, d in enumerate(shape):
            if i < x.rank and d == x.shape[i] and g.chance(3):
                shape[i] = 0
    else:
        at = x.shape.index(-1)
        if x.shape.count(-1) > 1:
            raise RejectedError("two varying sizes")
        rest = [*x.shape[:at], *x.shape[at + 1 :]]
        merged = int(np.prod(rest))
        shape = g.one(([0 if i < at else d for i, d in enumerate(x.shape)], [-1, merged], [merged, -1], [-1]))
        if merged % 2 == 0 and g.chance(3):
            shape = [2, -1, merged // 2]
    return g.node("Reshape", [x, g.ints(shape)])


def reshape_by_shape(g: Draft) -> Value:
    """The target comes from Shape, Gather, Mul and Concat, as exporters write it."""
    x = _any(g, 2, 4)
    shape = g.node("Shape", [x])
    first = g.node("Gather", [shape, g.const([0] if g.flag() else [-x.rank], I64)])
    sizes = x.shape[1:]
    if -1 in sizes:
        second = g.node("Slice", [shape, g.ints([1]), g.ints([x.rank])])
        rest = g.node("ReduceProd", [second], keepdims=1)
    else:
        rest = g.ints([int(np.prod(sizes))])
    return g.node("Reshape", [x, g.node("Concat", [first, rest] if g.flag() else [rest, first], axis=0)])


def transpose(g: Draft) -> Value:
    x = _any(g, 1)
    order = list(range(x.rank))
    order = [order.pop(g.int(0, len(order) - 1)) for _ in range(x.rank)]
    return g.node("Transpose", [x], perm=order if not g.chance(5) else None)


def squeeze(g: Draft) -> Value:
    x = g.pick((g.float, I64, BOOL), 1, where=lambda v: 1 in v.shape) if g.chance(2) else g.node(
        "Unsqueeze", [_any(g, 0, 3), g.ints([0])])
    ones = [a for a, d in enumerate(x.shape) if d == 1]
    axes = [a - x.rank if g.flag() else a for a in g.some(ones, 1)]
    return g.node("Squeeze", [x, g.ints(axes)] if not x.fixed or g.flag() else [x])


def unsqueeze(g: Draft) -> Value:
    x = _any(g, 0, 3)
    n = g.int(1, 2)
    axes = g.some(range(x.rank + n), n)[:n]
    return g.node("Unsqueeze", [x, g.ints([a - x.rank - n if g.flag() else a for a in axes])])


def flatten(g: Draft) -> Value:
    x = _any(g, 1)
    return g.node("Flatten", [x], axis=g.int(-x.rank, x.rank))


def expand(g: Draft) -> Value:
    x = _any(g)
    shape = [g.one((2, 3, 5)) if d == 1 and g.flag() else 1 if d == -1 or g.flag() else d for d in x.shape]
    shape = ([g.one((1, 2, 3))] if g.flag() and x.rank < 4 else []) + shape
    if not x.fixed and g.chance(3):
        # A varying target, of the shape of another value.
        return g.node("Expand", [g.new([1] * x.rank, F32), g.node("Shape", [x])])
    return g.node("Expand", [x, g.ints(shape)])


def tile(g: Draft) -> Value:
    x = _any(g, 1)
    return g.node("Tile", [x, g.ints([g.one((1, 1, 2, 3)) for _ in range(x.rank)])])


def concat(g: Draft) -> Value:
    x = _any(g, 1)
    axis = g.axis(x.rank)
    parts = [x]
    for _ in range(g.int(0, 3)):
        dims = list(x.dims)
        dims[axis] = g.size() if g.flag() or not isinstance(dims[axis], int) else dims[axis]
        parts.insert(g.int(0, len(parts)), x if g.chance(3) else g.new(dims, x.dtype))
    return g.node("Concat", parts, axis=axis)


def split(g: Draft) -> Value:
    x = _any(g, 1)
    axis = g.axis(x.rank)
    size = x.shape[axis]
    if size < 2:
        raise RejectedError("nothing to split")
    if g.flag():
        n = g.int(2, min(size, 5))
        # The last part is smaller; one that is empty or negative is not meant.
        if -(-size // n) * (n - 1) >= size:
            raise RejectedError("an empty part")
        return g.one(g.nodes_of("Split", [x], n, axis=axis, num_outputs=n))
    sizes, rest = [], size
    while rest and len(sizes) < 4:
        sizes.append(g.int(1, rest))
        rest -= sizes[-1]
    sizes[-1] += rest
    return g.one(g.nodes_of("Split", [x, g.ints(sizes)], len(sizes), axis=axis))


def slice_(g: Draft) -> Value:
    x = _any(g, 1)
    axes = g.some(range(x.rank), 1)
    starts, ends, steps = [], [], []
    for a in axes:
        least = min(x.dims[a]) if isinstance(x.dims[a], tuple) else x.dims[a]  # type: ignore[arg-type,type-var]
        if g.chance(3):
            steps.append(g.one((-1, -1, -2, -3)))
            starts.append(g.one((-1, least - 1, 2**62)))
            ends.append(g.one((-(2**62), -least - 1)) if not g.chance(4) else 0)
        else:
            steps.append(g.one((1, 1, 1, 2, 3)))
            starts.append(g.one((0, -least, least // 2 if x.shape[a] > 0 else 0)))
            ends.append(g.one((2**62, least, 2**31 - 1)))
    given = [a - x.rank if g.flag() else a for a in axes]
    if axes == list(range(len(axes))) and g.flag() and set(steps) == {1}:
        return g.node("Slice", [x, g.ints(starts), g.ints(ends)])
    return g.node("Slice", [x, g.ints(starts), g.ints(ends), g.ints(given), g.ints(steps)])


def pad(g: Draft) -> Value:
    mode = g.one(("constant", "constant", "edge", "reflect", "wrap"))
    x = g.pick((g.float, F32, I64, I32, U8, BOOL) if mode == "constant" and g.chance(3) else (), 1, 4)
    if x.dtype == BOOL:
        x = g.node("Cast", [x], to=6)
    most = [2 if mode in ("constant", "edge") else max(0, min(2, d - 1)) for d in x.shape]
    axes = g.some(range(x.rank), 1) if g.flag() else list(range(x.rank))
    low = [-1 if mode == "constant" and g.chance(6) and x.shape[a] > 3 else 0 for a in axes]
    pads = [g.int(low[i], most[a]) for i, a in enumerate(axes)] + [g.int(low[i], most[a]) for i, a in enumerate(axes)]
    fill = g.const(g.one((0, 1, 3)), x.dtype) if mode == "constant" and g.flag() else None
    listed = g.ints([a - x.rank if g.flag() else a for a in axes]) if len(axes) < x.rank or axes != sorted(
        axes) or g.flag() else None
    return g.node("Pad", [x, g.ints(pads), fill, listed], mode=mode)


def _indices(g: Draft, dims: tuple[int, ...], size: int) -> Value:
    """From either end of an axis of `size`."""
    array = g.rng().integers(-size, size, dims)
    if g.flag():
        array = array % size
    dtype = g.one((I64, I32))
    if g.flag():
        return g.const(array.astype(dtype))
    value = g.new(dims, dtype, constant=False)
    # The random numbers of an input, replaced by ones that are in range.
    inside = type(value)(value.name, tuple(array.astype(dtype) for _ in range(g.sets)))
    g.inputs[-1] = g.values[-1] = inside
    return inside


def _least(x: Value, axis: int) -> int:
    d = x.dims[axis]
    return d if isinstance(d, int) else min(d)


def gather(g: Draft) -> Value:
    x = _any(g, 1)
    axis = g.axis(x.rank)
    dims = tuple(g.one((1, 2, 3, 5)) for _ in range(g.int(0, 2)))
    return g.node("Gather", [x, _indices(g, dims, _least(x, axis))], axis=axis)


def gather_elements(g: Draft) -> Value:
    x = _any(g, 1)
    if not x.fixed:
        raise RejectedError("varying")
    axis = g.axis(x.rank)
    dims = [g.int(1, d) for d in x.shape]
    dims[axis] = g.size()
    return g.node("GatherElements", [x, _indices(g, tuple(dims), x.shape[axis])], axis=axis)


def gather_nd(g: Draft) -> Value:
    x = _any(g, 2)
    batch = g.int(0, x.rank - 2) if x.fixed else 0
    width = g.int(1, x.rank - batch)
    lead = (*x.shape[:batch], *((g.size(),) if g.flag() or not batch else ()))
    rng = g.rng()
    at = np.stack([rng.integers(-_least(x, batch + i), _least(x, batch + i), lead) for i in range(width)], -1)
    return g.node("GatherND", [x, g.const(at.astype(np.int64))], batch_dims=batch)


def scatter_elements(g: Draft) -> Value:
    x = g.pick((F32, I64, I32), 1)
    if not x.fixed:
        raise RejectedError("varying")
    axis = g.axis(x.rank)
    dims = [g.int(1, d) for d in x.shape]
    how = g.one(("none", "none", "add", "mul", "max", "min"))
    rng = g.rng()
    # Without a reduction no element is written twice: which one wins is not said.
    size = x.shape[axis]
    at = np.argsort(rng.random((*dims[:axis % x.rank], size, *dims[axis % x.rank + 1 :])), axis=axis)
    index = np.take(at, np.arange(dims[axis]), axis=axis)
    if how != "none":
        index = rng.integers(-size, size, dims)
    return g.node("ScatterElements", [x, g.const(index.astype(np.int64)), g.new(dims, x.dtype)], axis=axis,
                  reduction=how)


def scatter_nd(g: Draft) -> Value:
    x = g.pick((F32, I64, I32), 1)
    if not x.fixed:
        raise RejectedError("varying")
    width = g.int(1, x.rank)
    cells = int(np.prod(x.shape[:width]))
    n = g.int(1, min(cells, 5))
    rng = g.rng()
    how = g.one(("none", "none", "add", "mul", "max", "min"))
    flat = rng.permutation(cells)[:n] if how == "none" else rng.integers(0, cells, n)
    at = np.stack(np.unravel_index(flat, x.shape[:width]), -1)
    return g.node("ScatterND", [x, g.const(at.astype(np.int64)), g.new((n, *x.shape[width:]), x.dtype)], reduction=how)


def top_k(g: Draft) -> Value:
    x = g.pick((F32, F32, g.float), 1)
    axis = g.axis(x.rank)
    made = g.nodes_of("TopK", [x, g.ints([g.int(1, _least(x, axis))])], 2, axis=axis, largest=g.int(0, 1), sorted=1)
    return g.one(made)


def one_hot(g: Draft) -> Value:
    x = g.pick((I64, I32), 0, 3)
    values = g.const(g.one(((0, 1), (-1, 5))), g.one((F32, I64, I32)))
    depth = g.const(g.one((3, [5], 17)), I64)
    return g.node("OneHot", [x, depth, values], axis=g.axis(x.rank + 1))


def range_(g: Draft) -> Value:
    """Of known bounds, or up to a size."""
    if g.flag():
        x = g.pick(low=1)
        size = g.node("Squeeze", [g.node("Shape", [x], start=x.rank - 1)])
        made = g.node("Range", [g.const(0, I64), size, g.const(1, I64)])
        return g.node("Mul", [x, g.node("Cast", [made], to=10 if x.dtype.itemsize == 2 else 1)])
    dtype = g.one((I64, I32, F32))
    bounds = (g.int(-3, 3), g.int(4, 20), g.one((1, 2, 3)))
    return g.node("Range", [g.const(bound, dtype) for bound in bounds])


def shape(g: Draft) -> Value:
    x = _any(g, 1)
    made = g.node("Shape", [x], start=g.axis(x.rank) if g.flag() else None, end=g.axis(x.rank) if g.chance(3) else None)
    if not made.count:
        raise RejectedError("empty")
    return made


def size(g: Draft) -> Value:
    x = _any(g, 1)
    n = g.node("Size", [x])
    return g.node("Div", [g.node("ReduceSum", [g.pick((F32,))], keepdims=0), g.node("Cast", [n], to=1)])


def constant_of_shape(g: Draft) -> Value:
    import onnx

    x = g.pick(low=1)
    value = onnx.helper.make_tensor("value", 1, [1], [g.one((0.0, 2.5))]) if g.flag() else None
    made = g.node("ConstantOfShape", [g.node("Shape", [x])], value=value)
    return g.node("Add", [made, x]) if x.dtype == F32 else made


def trilu(g: Draft) -> Value:
    x = _any(g, 2)
    return g.node("Trilu", [x, g.const(g.int(-3, 3), I64) if g.flag() else None], upper=g.int(0, 1))


def blocks(op: str, g: Draft) -> Value:
    b = g.one((1, 2, 3))
    h, w, c = g.one((1, 2, 3)), g.one((1, 2, 5)), g.one((1, 2, 3))
    batch = g.symbol if g.symbol and g.flag() else g.int(1, 2)
    dims = (batch, c * b * b, h, w) if op == "DepthToSpace" else (batch, c, h * b, w * b)
    x = g.new(dims, g.float, constant=False)
    return g.node(op, [x], blocksize=b, mode=g.one(("DCR", "CRD")) if op == "DepthToSpace" else None)


def reverse_sequence(g: Draft) -> Value:
    x = g.pick((F32,), 2)
    time = g.int(0, 1)
    if not x.fixed:
        raise RejectedError("varying")
    lens = g.rng().integers(1, x.shape[time] + 1, x.shape[1 - time])
    return g.node("ReverseSequence", [x, g.const(lens.astype(np.int64))], time_axis=time, batch_axis=1 - time)


def center_crop_pad(g: Draft) -> Value:
    x = g.pick((F32,), 1)
    axes = sorted(g.some(range(x.rank), 1))
    return g.node("CenterCropPad", [x, g.ints([g.size() for _ in axes])], axes=axes)


def compress(g: Draft) -> Value:
    x = g.pick((F32, I64), 1)
    axis = g.axis(x.rank)
    if x.shape[axis] < 2:
        raise RejectedError("too small")
    keep = np.arange(x.shape[axis]) % g.int(2, 3) == 0
    return g.node("Compress", [x, g.const(keep)], axis=axis)


def shape_arithmetic(g: Draft) -> Value:
    """Sizes as numbers of the graph: halves, minima, choices."""
    x = g.pick((g.float,), 1)
    size = g.node("Gather", [g.node("Shape", [x]), g.const(g.axis(x.rank), I64)], axis=0)
    how = g.one(("Mul", "Add", "Sub", "Div", "Min", "Max", "Mod"))
    made = g.node(how, [size, g.const(g.one((1, 2, 3)), I64)])
    if g.flag():
        made = g.node("Where", [g.node("Greater", [made, g.const(2, I64)]), made, g.const(1, I64)])
    return g.node("Mul", [x, g.node("Cast", [made], to=10 if x.dtype.itemsize == 2 else 1)])


def tensor_scatter(g: Draft) -> Value:
    b, s, t, d = g.int(1, 2), g.one((4, 7)), g.int(1, 3), g.one((1, 4))
    cache, update = g.new((b, 2, s, d), F32, constant=False), g.new((b, 2, t, d), F32, constant=False)
    at = g.const(g.rng().integers(0, s - t + 1, b).astype(np.int64))
    return g.node("TensorScatter", [cache, update, at], mode=g.one(("linear", "circular")), axis=-2)


SHAPE: dict[str, Drawer] = {
    "Reshape": reshape, "Reshape by Shape": reshape_by_shape, "Transpose": transpose, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze, "Flatten": flatten, "Expand": expand, "Tile": tile, "Concat": concat, "Split": split,
    "Slice": slice_, "Pad": pad, "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
    "ScatterElements": scatter_elements, "ScatterND": scatter_nd, "TopK": top_k, "OneHot": one_hot, "Range": range_,
    "Shape": shape, "Size": size, "ConstantOfShape": constant_of_shape, "Trilu": trilu,
    "DepthToSpace": partial(blocks, "DepthToSpace"), "SpaceToDepth": partial(blocks, "SpaceToDepth"),
    "ReverseSequence": reverse_sequence, "CenterCropPad": center_crop_pad, "Compress": compress,
    "sizes": shape_arithmetic, "TensorScatter": tensor_scatter,
}
