"""Follows an affine per channel through operators that only move, join or average values, in both directions.

Such an operator commutes with it: Transpose carries the channel axis elsewhere, a mean over other axes keeps it,
Concat joins the numbers of its parts, and a reshape may merge or split the axis as long as the result still varies
along one axis only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgec.ir.model import describe, dims_of, input_of, int_attr, ints_attr, ints_of, rank_of
from edgec.passes.normalize.fold_bn import Affine

MOVES = (
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "GlobalAveragePool", "ReduceMean", "Concat", "Slice",
)
# More numbers than any network has channels.
CHANNELS = 1 << 20
Dims = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Along:
    """An affine along `axis` (counted from 0) of a value; axis None: one scale and shift, the same everywhere."""

    affine: Affine
    axis: int | None

    @staticmethod
    def make(affine: Affine, axis: int | None) -> Along:
        return Along(affine, axis if affine.scale.size > 1 else None)

    def of(self, channels: int, axis: int) -> Affine | str:
        """The affine of `channels` channels along `axis`, or why it is none."""
        if self.axis not in (None, axis) or self.affine.scale.size not in (1, channels):
            return "its constant varies along other axes than the channels"
        return Affine(np.broadcast_to(self.affine.scale, (channels,)), np.broadcast_to(self.affine.shift, (channels,)))

    def same(self, other: Along) -> bool:
        mine, theirs = self.affine, other.affine
        return self.axis == other.axis and np.array_equal(mine.scale, theirs.scale) and np.array_equal(
            mine.shift, theirs.shift)

    def part(self, start: int, stop: int) -> Along:
        return Along.make(Affine(self.affine.scale[start:stop], self.affine.shift[start:stop]), self.axis)


def backward(node: ir.Node, along: Along) -> list[tuple[ir.Value, Along]] | str:
    """What `along` on the result of `node`, one of MOVES, is on each value it moves; or why it cannot go there."""
    values = [v for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if v is not None]
    if along.axis is None:
        return [(value, along) for value in values]
    dims = [dims_of(value) for value in values]
    result = dims_of(node.outputs[0])
    if result is None or None in dims:
        return f"the shapes around {describe(node)} are not known"
    old = dims[0] or ()
    if node.op_type == "Transpose":
        return [(values[0], replace(along, axis=_permutation(node, len(old))[along.axis]))]
    if node.op_type == "GlobalAveragePool":
        return [(values[0], along)]
    if node.op_type == "ReduceMean":
        kept = _kept(node, len(old))
        return f"the axes of {describe(node)} are not known" if kept is None else [
            (values[0], replace(along, axis=kept[along.axis]))]
    if node.op_type == "Slice":
        return [(values[0], along)] if _whole(node, along.axis, len(old)) else f"{describe(node)} takes some of them"
    if node.op_type != "Concat":
        moved = _reshaped(node, along, result, old)
        return moved if isinstance(moved, str) else [(values[0], moved)]
    if int_attr(node, "axis", 0) % len(result) != along.axis:
        return [(value, along) for value in values]
    ends = _ends([d[along.axis] for d in dims if d is not None])
    if ends is None:
        return f"the sizes that {describe(node)} joins are not known"
    return [(value, along.part(a, b)) for value, a, b in zip(values, ends, ends[1:], strict=False)]


def forward(node: ir.Node, index: int, along: Along) -> Along | str:
    """What `along` on input `index` of `node`, one of MOVES, is on its result; or why it cannot go there."""
    if index and node.op_type != "Concat":
        return f"{describe(node)} reads it as a shape"
    old, new = dims_of(node.inputs[index]), dims_of(node.outputs[0])
    if old is None or new is None:
        return f"the shapes around {describe(node)} are not known"
    if node.op_type == "Concat":
        return _joined(node, index, along, len(old))
    if along.axis is None:
        return along
    if node.op_type == "Transpose":
        return replace(along, axis=_permutation(node, len(old)).index(along.axis))
    if node.op_type == "GlobalAveragePool":
        return along if along.axis < 2 else f"{describe(node)} is a mean over that axis"
    if node.op_type == "ReduceMean":
        kept = _kept(node, len(old))
        if kept is None or along.axis not in kept:
            return f"{describe(node)} is a mean over that axis"
        return replace(along, axis=kept.index(along.axis))
    if node.op_type == "Slice":
        return along if _whole(node, along.axis, len(old)) else f"{describe(node)} takes some of them"
    return _reshaped(node, along, old, new)


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    return ints_attr(node, "perm") or tuple(reversed(range(rank)))


def _whole(node: ir.Node, axis: int, rank: int) -> bool:
    """Whether a Slice is known to leave `axis` as it is."""
    axes = ints_of(input_of(node, 3))
    return axes is not None and axis not in {a % rank for a in axes}


def _kept(node: ir.Node, rank: int) -> list[int] | None:
    """For each axis of a mean's result the axis of its input; -1 where it was averaged and is 1 now."""
    axes = ints_of(input_of(node, 1)) if input_of(node, 1) is not None else ints_attr(node, "axes")
    if axes is None:
        return None
    gone = {a % rank for a in axes}
    return [-1 if a in gone else a for a in range(rank) if a not in gone or int_attr(node, "keepdims", 1)]


def _ends(sizes: list[int | str | None]) -> list[int] | None:
    """Where the parts of a Concat begin, and where the last one ends."""
    known = [size for size in sizes if isinstance(size, int)]
    return [sum(known[:i]) for i in range(len(known) + 1)] if len(known) == len(sizes) else None


def joins_alike(node: ir.Node, along: Along) -> bool:
    """Whether `along`, done to all inputs of a Concat, is `along` on its result: it joins them on another axis."""
    rank = rank_of(node.outputs[0])
    return rank is not None and along.axis is not None and int_attr(node, "axis", 0) % rank != along.axis


def _joined(node: ir.Node, index: int, along: Along, rank: int) -> Along | str:
    axis = int_attr(node, "axis", 0) % rank
    if along.axis not in (None, axis):
        return f"{describe(node)} joins it along another axis with values that it is not done to"
    ends = _ends([None if (dims := dims_of(v)) is None else dims[axis] for v in node.inputs])
    if ends is None or ends[-1] > CHANNELS:
        return f"the sizes that {describe(node)} joins are not known"
    scale, shift = np.ones(ends[-1]), np.zeros(ends[-1])
    place = slice(ends[index], ends[index + 1])
    scale[place], shift[place] = along.affine.scale, along.affine.shift
    return Along.make(Affine(scale, shift), axis)


def _reshaped(node: ir.Node, along: Along, old: Dims, new: Dims) -> Along | str:
    """The same after the elements of dims `old` are read, in order, as dims `new`."""
    assert along.axis is not None  # by both callers
    head = _equal(old, new)
    tail = _equal(old[head:][::-1], new[head:][::-1])
    if along.axis < head:
        return along
    if along.axis >= len(old) - tail:
        return replace(along, axis=along.axis + len(new) - len(old))
    inner = [d for d in old[head : len(old) - tail] if isinstance(d, int)]
    outer = [d for d in new[head : len(new) - tail] if isinstance(d, int)]
    size = math.prod(inner)
    if len(inner) + len(outer) + 2 * (head + tail) != len(old) + len(new) or size != math.prod(outer):
        return f"the shapes around {describe(node)} are not known"
    if not 0 < size <= CHANNELS:
        return f"{describe(node)} spreads the channels over {size} places"
    lined_up = [2, *(-1 if head + a == along.axis else 1 for a in range(len(inner)))]
    numbers = np.stack([along.affine.scale, along.affine.shift]).reshape(lined_up)
    spread = np.broadcast_to(numbers, [2, *inner]).reshape(2, *outer)
    varies = [a for a in range(len(outer)) if (spread != spread.take([0], a + 1)).any()]
    if len(varies) > 1:
        return f"{describe(node)} splits the channels: it varies along {len(varies)} axes there"
    if not varies:
        return Along(Affine(*spread.reshape(2, -1)[:, :1]), None)
    first = tuple(slice(None) if a == varies[0] else 0 for a in range(len(outer)))
    return Along(Affine(spread[(0, *first)], spread[(1, *first)]), head + varies[0])


def _equal(old: Dims, new: Dims) -> int:
    """How many dims at the front are known to be the same."""
    count = 0
    while count < min(len(old), len(new)) and old[count] == new[count] is not None:
        count += 1
    return count
