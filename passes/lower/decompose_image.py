"""Pooling, sampling and normalization of images in convolution, pooling, Gather and arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Builder, dims_of, float_attr, input_of, int_attr, ints_attr, ints_of, required, str_attr
from edgec.passes.lower.decompose_math import Decomposed, Entry

_INT64 = int(ir.DataType.INT64)
_CUBIC = -0.75  # Keys' a, as PyTorch has it


def _known(value: ir.Value | None) -> list[int] | None:
    dims = dims_of(value)
    sizes = [d for d in dims or () if isinstance(d, int)]
    return sizes if dims is not None and len(sizes) == len(dims) else None


def lp_pool(op: Builder, node: ir.Node) -> Decomposed:
    """(sum |x|^p)^(1/p): the sum is a depthwise convolution with ones."""
    x, window = required(node, 0), ints_attr(node, "kernel_shape") or ()
    sizes, dims, p = _known(x), dims_of(x), int_attr(node, "p", 2)
    n = len(window)
    if dims is None or len(dims) != n + 2 or not isinstance(channels := dims[1], int):
        return "the channels of its input are not known"
    strides, spread = ints_attr(node, "strides") or (1,) * n, ints_attr(node, "dilations") or (1,) * n
    kind, pads = str_attr(node, "auto_pad", "NOTSET"), list(ints_attr(node, "pads") or (0,) * (2 * n))
    if int_attr(node, "ceil_mode", 0) and kind == "NOTSET":
        if sizes is None:
            return "the sizes of its input are not known"
        for i, (size, k, s, d) in enumerate(zip(sizes[2:], window, strides, spread, strict=True)):
            room = size + pads[i] + pads[n + i] - ((k - 1) * d + 1)
            count = -(-room // s) + 1
            # A window that would start beyond the input and its left padding does not exist.
            count -= (count - 1) * s >= size + pads[i]
            pads[n + i] += max(0, (count - 1) * s - room)
    power = op.Abs(x) if p == 1 else op.Mul(x, x) if p == 2 else op.Pow(op.Abs(x), op.like(p, x))
    total = op.node("Conv", [power, op.const(np.ones((channels, 1, *window)), x.dtype)], {
        "kernel_shape": list(window), "strides": list(strides), "dilations": list(spread), "group": channels,
        **({"pads": pads} if kind == "NOTSET" else {"auto_pad": kind}),
    }).outputs[0]
    return total if p == 1 else op.Sqrt(total) if p == 2 else op.Pow(total, op.like(1 / p, x))


def global_lp_pool(op: Builder, node: ir.Node) -> Decomposed:
    x, p = required(node, 0), int_attr(node, "p", 2)
    dims = dims_of(x)
    if dims is None or p not in (1, 2):
        return f"the rank of its input is not known, or p = {p} is neither 1 nor 2"
    return op.node("ReduceL1" if p == 1 else "ReduceL2", [x, op.ints(range(2, len(dims)))], {"keepdims": 1}).outputs[0]


def pool_3d(op: Builder, node: ir.Node) -> Decomposed:
    """Windows are boxes, so the largest, and the mean of what is inside, can be taken axis by axis."""
    x, window = required(node, 0), ints_attr(node, "kernel_shape") or ()
    if len(window) != 3 or (len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())):
        return "it is not over three axes, or its indices are read"
    if _known(x) is None:
        return "the sizes of its input are not known"

    def pooled(value: ir.Value, axes: Sequence[int], place: Sequence[int]) -> ir.Value:
        """2D pooling of [.., .., a, b] with the settings of `axes` at `place`, and none elsewhere."""
        found: dict[str, str | int | list[int]] = {}
        for name, neutral in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
            given = ints_attr(node, name)
            if given is not None:
                found[name] = [neutral, neutral]
                for a, at in zip(axes, place, strict=True):
                    found[name][at] = given[a]  # type: ignore[index]
        pads = ints_attr(node, "pads")
        if pads is not None:
            both = [0] * 4
            for a, at in zip(axes, place, strict=True):
                both[at], both[2 + at] = pads[a], pads[3 + a]
            found["pads"] = both
        for name in ("ceil_mode", "count_include_pad"):
            if name in node.attributes:
                found[name] = int_attr(node, name, 0)
        if "auto_pad" in node.attributes:
            found["auto_pad"] = str_attr(node, "auto_pad", "NOTSET")
        return op.node(node.op_type, [value], found).outputs[0]

    depth, (n, c, d, h, w) = [0], _known(x) or [0] * 5
    flat = pooled(op.Reshape(x, op.ints([n, c * d, h, w])), (1, 2), (0, 1))
    rows = op.Shape(flat, start=2)
    deep = op.Reshape(flat, op.ints([n, c, d, -1]))
    y = pooled(deep, depth, (0,))
    return op.Reshape(y, op.Concat(op.ints([n, c, -1]), rows, axis=0))


def lrn(op: Builder, node: ir.Node) -> Decomposed:
    """x / (bias + alpha mean x^2)^beta, the mean over neighbouring channels, missing ones counted as 0."""
    x, size = required(node, 0), int_attr(node, "size", 1)
    dims = dims_of(x)
    if dims is None or len(dims) < 3:
        return "the rank of its input is not known"
    square = op.Reshape(op.Mul(x, x), op.ints([0, 1, dims[1], -1])) if isinstance(dims[1], int) else None
    if square is None:
        return "the number of its channels is not known"
    before = (size - 1) // 2
    mean = op.AveragePool(square, kernel_shape=[size, 1], pads=[before, 0, size - 1 - before, 0], count_include_pad=1)
    mean = op.Reshape(mean, op.Shape(x))
    low = op.Add(op.Mul(mean, op.like(float_attr(node, "alpha", 1e-4), x)), op.like(float_attr(node, "bias", 1.0), x))
    return op.Div(x, op.Pow(low, op.like(float_attr(node, "beta", 0.75), x)))


def max_unpool(op: Builder, node: ir.Node) -> Decomposed:
    """Values back at the flat places from which a MaxPool took them, 0 elsewhere."""
    x, places, asked = required(node, 0), required(node, 1), input_of(node, 2)
    sizes, window = _known(x), ints_attr(node, "kernel_shape") or ()
    n = len(window)
    if sizes is None or (asked is not None and ints_of(asked) is None):
        return "the sizes of its input or of its output are not known"
    strides, pads = ints_attr(node, "strides") or (1,) * n, ints_attr(node, "pads") or (0,) * (2 * n)
    # The places are those of the smallest image that could have been pooled; a larger one is padded behind.
    small = [*sizes[:2], *((d - 1) * s - pads[i] - pads[n + i] + k
                           for i, (d, s, k) in enumerate(zip(sizes[2:], strides, window, strict=True)))]
    zeros = op.Expand(op.like(0, x), op.ints([math.prod(small)]))
    flat = op.ScatterElements(zeros, op.Reshape(places, op.ints([-1])), op.Reshape(x, op.ints([-1])), axis=0)
    y = op.Reshape(flat, op.ints(small))
    wanted = list(ints_of(asked) or small)
    if wanted == small:
        return y
    return op.Pad(y, op.ints([0] * len(small) + [a - b for a, b in zip(wanted, small, strict=True)]))


def col2im(op: Builder, node: ir.Node) -> Decomposed:
    """Adds up columns [N, C k, L] where their windows lay in the image."""
    x, image, block = required(node, 0), ints_of(input_of(node, 1)), ints_of(input_of(node, 2))
    sizes = _known(x)
    if sizes is None or image is None or block is None:
        return "the sizes of its input, image or blocks are not known"
    n = len(image)
    strides, spread = ints_attr(node, "strides") or (1,) * n, ints_attr(node, "dilations") or (1,) * n
    pads = ints_attr(node, "pads") or (0,) * (2 * n)
    counts = [(d + pads[i] + pads[n + i] - ((k - 1) * e + 1)) // s + 1
              for i, (d, k, s, e) in enumerate(zip(image, block, strides, spread, strict=True))]
    area = math.prod(image)
    where = np.zeros((*block, *counts), np.int64)
    outside = np.zeros(where.shape, bool)
    for i in range(n):
        along = np.arange(counts[i]) * strides[i] - pads[i] + np.arange(block[i])[:, None] * spread[i]
        form = [1] * (2 * n)
        form[i], form[n + i] = block[i], counts[i]
        along = along.reshape(form)
        outside |= (along < 0) | (along >= image[i])
        where = where + along * math.prod(image[i + 1 :])
    # What falls outside the image is added to a place behind it.
    where = np.where(outside, area, where).reshape(-1, 1)
    batch, channels = sizes[0], sizes[1] // math.prod(block)
    columns = op.Transpose(op.Reshape(x, op.ints([batch * channels, -1])), perm=(1, 0))
    zeros = op.Expand(op.like(0, x), op.ints([area + 1, batch * channels]))
    total = op.ScatterND(zeros, op.const(where), columns, reduction="add")
    kept = op.Slice(total, op.ints([0]), op.ints([area]), op.ints([0]))
    return op.Reshape(op.Transpose(kept, perm=(1, 0)), op.ints([batch, channels, *image]))


# -- sampling at computed places -------------------------------------------------------------------------------------


def grid_sample(op: Builder, node: ir.Node) -> Decomposed:
    """X [N, C, D...], grid [N, O..., n] (the last axis of X first) to [N, C, O...].

    Every output reads 1, 2^n or 4^n pixels: whole rows of channels, looked up by a computed index.
    Source: GridSampler of PyTorch, as the operator's text names it.
    """
    x, grid = required(node, 0), required(node, 1)
    sizes, places = _known(x), _known(grid)
    mode, padding = str_attr(node, "mode", "linear"), str_attr(node, "padding_mode", "zeros")
    if sizes is None or places is None or mode not in ("linear", "nearest", "cubic"):
        return f"the sizes of its inputs are not known, or its mode is {mode!r}"
    n, align = len(sizes) - 2, int_attr(node, "align_corners", 0)
    rows = sizes[0] * math.prod(places[1:-1])
    rank = len(places)
    taps: list[list[tuple[ir.Value, ir.Value]]] = []
    for axis, size in enumerate(sizes[2:]):
        # [N, O...] of this axis, in pixels.
        at = op.Squeeze(op.Slice(grid, op.ints([n - 1 - axis]), op.ints([n - axis]), op.ints([rank - 1])),
                        op.ints([rank - 1]))
        one, half = op.like(1.0, grid), op.like(0.5, grid)
        scaled = op.Mul(op.Add(at, one), op.like((size - 1 if align else size) / 2, grid))
        at = scaled if align else op.Sub(scaled, half)
        taps.append(_taps(op, at, size, mode, padding, bool(align)))
    table = op.Reshape(op.Transpose(x, perm=[0, *range(2, n + 2), 1]), op.ints([-1, sizes[1]]))
    first = np.arange(sizes[0], dtype=np.int64) * math.prod(sizes[2:])
    batch = op.const(first.reshape([-1] + [1] * n))
    total: ir.Value | None = None
    for chosen in itertools.product(*taps):
        index, weight = batch, None
        for axis, (pixel, share) in enumerate(chosen):
            index = op.Add(index, op.Mul(op.Cast(pixel, to=_INT64), op.const(np.int64(math.prod(sizes[axis + 3 :])))))
            weight = share if weight is None else op.Mul(weight, share)
        values = op.Gather(table, op.Reshape(index, op.ints([rows])), axis=0)
        part = op.Mul(values, op.Reshape(weight, op.ints([rows, 1])))
        total = part if total is None else op.Add(total, part)
    y = op.Reshape(total, op.ints([sizes[0], *places[1:-1], sizes[1]]))
    return op.Transpose(y, perm=[0, n + 1, *range(1, n + 1)])


def affine_grid(op: Builder, node: ir.Node) -> Decomposed:
    """theta [N, n, n + 1] to the places [N, D..., n] that GridSample reads: the image's own places, turned by theta."""
    theta, size = required(node, 0), ints_of(input_of(node, 1))
    if size is None:
        return "the size of its image is not known"
    n, align = len(size) - 2, int_attr(node, "align_corners", 0)
    # The standard leaves open where the one point of an axis lies between two corners; this is as ONNX Runtime.
    axes = [np.linspace(-1, 1, d) if align and d > 1 else (2 * np.arange(d) + 1) / d - 1 + align for d in size[2:]]
    places = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(size[2:])], axis=-1).reshape(-1, n + 1)
    turned = op.MatMul(op.const(places, theta.dtype), op.Transpose(theta, perm=(0, 2, 1)))
    return op.Reshape(turned, op.ints([size[0], *size[2:], n]))


def _taps(op: Builder, at: ir.Value, size: int, mode: str, padding: str, align: bool
          ) -> list[tuple[ir.Value, ir.Value]]:
    """(pixel inside the image, its share) of each pixel that is read along one axis; all in float."""
    def number(value: float) -> ir.Value:
        return op.like(value, at)

    found: list[tuple[ir.Value, ir.Value | None]]
    if mode == "nearest":
        found = [(op.Round(at), None)]
    else:
        floor = op.Floor(at)
        t = op.Sub(at, floor)
        if mode == "linear":
            found = [(floor, op.Sub(number(1.0), t)), (op.Add(floor, number(1.0)), t)]
        else:
            found = [(op.Add(floor, number(float(k))), _cubic(op, t, k)) for k in (-1, 0, 1, 2)]
    result = []
    for pixel, share in found:
        last = number(float(size - 1))
        inside = pixel
        if padding == "reflection":
            inside = _reflected(op, pixel, 0.0 if align else -0.5, size - 1.0 if align else size - 0.5)
        inside = op.Max(op.Min(inside, last), number(0.0))
        if padding == "zeros":
            here = op.Cast(op.Equal(inside, pixel), to=int(at.dtype or ir.DataType.FLOAT))
            share = here if share is None else op.Mul(share, here)
        result.append((inside, number(1.0) if share is None else share))
    if mode == "nearest" and padding != "zeros":
        result = [(result[0][0], op.Expand(number(1.0), op.Shape(at)))]
    return result


def _cubic(op: Builder, t: ir.Value, k: int) -> ir.Value:
    """Keys' weight of the pixel k before the place 0 + t: a polynomial in the distance."""
    def number(value: float) -> ir.Value:
        return op.like(value, t)

    d = op.Abs(op.Sub(t, number(float(k))))
    a = _CUBIC
    factors = (a + 2, -(a + 3), 0.0, 1.0) if k in (0, 1) else (a, -5 * a, 8 * a, -4 * a)
    total = number(factors[0])
    for factor in factors[1:]:
        total = op.Add(op.Mul(total, d), number(factor))
    return total


def _reflected(op: Builder, x: ir.Value, low: float, high: float) -> ir.Value:
    """x mirrored at both borders as often as it takes: a triangle wave."""
    def number(value: float) -> ir.Value:
        return op.like(value, x)

    span = high - low
    if span <= 0:
        return op.Mul(x, number(0.0))
    shifted, period = op.Sub(x, number(low)), number(2 * span)
    turn = op.Sub(shifted, op.Mul(op.Floor(op.Div(shifted, period)), period))
    return op.Add(op.Sub(number(span), op.Abs(op.Sub(turn, number(span)))), number(low))


TABLE: Mapping[str, Entry] = {
    "LpPool": lp_pool, "GlobalLpPool": global_lp_pool, "LRN": lrn, "MaxUnpool": max_unpool, "Col2Im": col2im,
    "GridSample": grid_sample, "AffineGrid": affine_grid, "AveragePool": pool_3d, "MaxPool": pool_3d,
}
