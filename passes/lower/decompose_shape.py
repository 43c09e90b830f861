"""Operators that only move data, in Reshape, Transpose, Slice, Concat and Expand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Builder, dims_of, input_of, int_attr, ints_of, required, str_attr
from edgec.passes.lower.decompose_math import Decomposed, Entry


def split(op: Builder, node: ir.Node) -> Decomposed:
    x, sizes_value = required(node, 0), input_of(node, 1)
    dims = dims_of(x)
    axis = int_attr(node, "axis", 0)
    count = len(node.outputs)
    if sizes_value is not None:
        sizes = ints_of(sizes_value)
        if sizes is None:
            return "its sizes are not constants"
    else:
        size = None if dims is None else dims[axis]
        if not isinstance(size, int):
            return "the size of the dim it splits is not known"
        part = math.ceil(size / count)
        sizes = tuple(min(part, size - i * part) for i in range(count))
    results, start = [], 0
    for length in sizes:
        results.append(op.Slice(x, op.ints([start]), op.ints([start + length]), op.ints([axis])))
        start += length
    return results


def flatten(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    dims = dims_of(x)
    if dims is None:
        return "the rank of its input is not known"
    axis = int_attr(node, "axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    if axis == 0:
        return op.Reshape(x, op.ints([1, -1]))
    tail = [d for d in dims[axis:] if isinstance(d, int)]
    head = [d for d in dims[:axis] if isinstance(d, int)]
    # -1 beside a dim of 0 would be ambiguous.
    if len(tail) == len(dims) - axis and 0 not in tail:
        return op.Reshape(x, op.ints([-1, math.prod(tail)]))
    if len(head) == axis and 0 not in head:
        return op.Reshape(x, op.ints([math.prod(head), -1]))
    if axis == 1:
        return op.Reshape(x, op.ints([0, -1]))
    return "dims on both sides are not known"


def _blocks(node: ir.Node) -> tuple[int, int, int, int, int] | str:
    """(batch or -1, C, H, W, block); the batch may be unknown."""
    dims, block = dims_of(node.inputs[0]), int_attr(node, "blocksize", 1)
    if dims is None or len(dims) != 4:
        return "its input is not known to have four dims"
    n = dims[0] if isinstance(dims[0], int) else -1
    known = [d for d in dims[1:] if isinstance(d, int)]
    if len(known) != 3:
        return "channels, height or width are not known"
    return n, known[0], known[1], known[2], block


def depth_to_space(op: Builder, node: ir.Node) -> Decomposed:
    sizes = _blocks(node)
    if isinstance(sizes, str):
        return sizes
    n, c, h, w, b = sizes
    deep = str_attr(node, "mode", "DCR") == "DCR"
    form = [n, b, b, c // (b * b), h, w] if deep else [n, c // (b * b), b, b, h, w]
    perm = (0, 3, 4, 1, 5, 2) if deep else (0, 1, 4, 2, 5, 3)
    y = op.Transpose(op.Reshape(required(node, 0), op.ints(form)), perm=perm)
    return op.Reshape(y, op.ints([n, c // (b * b), h * b, w * b]))


def space_to_depth(op: Builder, node: ir.Node) -> Decomposed:
    sizes = _blocks(node)
    if isinstance(sizes, str):
        return sizes
    n, c, h, w, b = sizes
    y = op.Transpose(op.Reshape(required(node, 0), op.ints([n, c, h // b, b, w // b, b])), perm=(0, 3, 5, 1, 2, 4))
    return op.Reshape(y, op.ints([n, c * b * b, h // b, w // b]))


def size(op: Builder, node: ir.Node) -> Decomposed:
    return op.ReduceProd(op.Shape(required(node, 0)), keepdims=0)


def constant_of_shape(op: Builder, node: ir.Node) -> Decomposed:
    fill = node.attributes.get("value")
    value = np.zeros(1, np.float32) if fill is None else np.asarray(fill.as_tensor().numpy())
    return op.Expand(op.const(value.reshape(())), required(node, 0))


def expand(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    if x.dtype is None or x.dtype in (ir.DataType.BOOL, ir.DataType.STRING):
        return "its element type cannot be multiplied"
    shape = ints_of(input_of(node, 1))
    if shape is None or math.prod(shape) > 4096:
        return "its shape is not a small constant"
    return op.Mul(x, op.const(np.ones(shape), x.dtype))


def tile(op: Builder, node: ir.Node) -> Decomposed:
    repeats = ints_of(input_of(node, 1))
    if repeats is None or max(repeats, default=0) > 64:
        return "its repeats are not small constants"
    x = required(node, 0)
    for axis, n in enumerate(repeats):
        if n == 0:
            return "it repeats a dim zero times"
        if n > 1:
            x = op.Concat(*[x] * n, axis=axis)
    return x


TABLE: Mapping[str, Entry] = {
    "Split": split, "Flatten": flatten, "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth, "Size": size,
    "ConstantOfShape": constant_of_shape, "Expand": expand, "Tile": tile,
}
