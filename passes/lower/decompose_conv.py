"""Transposed convolution as a convolution: every output phase of the stride becomes channels, then they interleave."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Array, Builder, const_of, dims_of, input_of, int_attr, ints_attr, required, str_attr
from edgec.passes.lower.decompose_math import Decomposed, Entry

_WEIGHTS = 1 << 28  # elements; the changed weight is made in memory


def conv_transpose(op: Builder, node: ir.Node) -> Decomposed:
    """x [B, Ci, ...], w [Ci, Co/G, k...] constant -> Conv (stride 1), an interleaving Transpose, a Slice.

    Along one axis, output u (counted before cropping) receives x[i] w[k] wherever u = i s + k d. With u = q s + r these
    are k d = r + j s and i = q - j: phase r is an ordinary convolution over the taps j. All phases together are one
    convolution with s times the channels over ceil(((k - 1) d + 1) / s) taps, and none of its products is wasted unless
    the stride does not divide the kernel.
    """
    dims, w = dims_of(node.inputs[0]), const_of(input_of(node, 1), _WEIGHTS)
    if dims is None or w is None or len(dims) != w.ndim or w.ndim < 3:
        return "its weight is not a constant or the rank of its input is not known"
    if input_of(node, 2) is not None and const_of(input_of(node, 2), _WEIGHTS) is None:
        return "its bias is not a constant"
    n, groups = w.ndim - 2, int_attr(node, "group", 1)
    axes = _axes(node, w.shape[2:])
    if isinstance(axes, str):
        return axes
    conv = op.node("Conv", [required(node, 0), op.const(_phases(w, groups, axes)), _bias(op, node, axes)], {
        "kernel_shape": [a.taps for a in axes], "dilations": [a.spread for a in axes], "group": groups,
        "pads": [a.before for a in axes] + [a.after for a in axes],
    }).outputs[0]
    if all(a.stride == 1 for a in axes):
        return _cropped(op, conv, axes, 2)
    # [B, G, s..., Co/G, Q...] -> [B, Q, s, ..., G, Co/G]: channels last, as convolutions keep their data.
    strides = [a.stride for a in axes]
    lead = op.Shape(conv, start=0, end=1)
    sizes = op.Shape(conv, start=2)
    split = op.Concat(lead, op.ints([groups, *strides, w.shape[1]]), sizes, axis=0)
    places = [p for i in range(n) for p in (3 + n + i, 2 + i)]
    apart = op.Transpose(op.Reshape(conv, split), perm=[0, *places, 1, 2 + n])
    joined = op.Concat(lead, op.Mul(sizes, op.ints(strides)), op.ints([groups * w.shape[1]]), axis=0)
    result = _cropped(op, op.Reshape(apart, joined), axes, 1)
    return op.Transpose(result, perm=[0, n + 1, *range(1, n + 1)])


class _Axis:
    """One spatial axis: how far the convolution reaches and what is cut off behind it."""

    def __init__(self, kernel: int, stride: int, dilation: int, begin: int, end: int, extra: int) -> None:
        self.kernel, self.stride = kernel, stride
        # Without a stride there is one phase, and the convolution can be dilated itself.
        self.dilation, self.spread = (1, dilation) if stride == 1 else (dilation, 1)
        span = (kernel - 1) * dilation + 1
        self.taps = kernel if stride == 1 else -(-span // stride)
        reach = span - 1 if stride == 1 else self.taps - 1
        skipped = min(reach, begin // stride)
        self.before = reach - skipped
        self.crop = begin - skipped * stride
        # Outputs beyond the last one that x reaches (output_padding) read zeros behind x.
        needed = -(-(span - end + extra) // stride) - 1
        self.after = max(0, needed)
        self.surplus = (self.after + 1) * stride - (span - end + extra)


def _axes(node: ir.Node, kernel: Sequence[int]) -> list[_Axis] | str:
    n = len(kernel)
    kind = str_attr(node, "auto_pad", "NOTSET")
    strides, dilations = ints_attr(node, "strides") or (1,) * n, ints_attr(node, "dilations") or (1,) * n
    extra, pads = ints_attr(node, "output_padding") or (0,) * n, ints_attr(node, "pads") or (0,) * (2 * n)
    if kind == "VALID":
        pads = (0,) * (2 * n)
    if ints_attr(node, "output_shape") is not None or kind not in ("NOTSET", "VALID"):
        # Then the output is as large as asked for, and the padding is what is left over.
        asked = _asked(node, n, strides)
        dims = dims_of(node.inputs[0])
        if asked is None or dims is None or not all(isinstance(d, int) for d in dims[2:]):
            return "its output size is given, but the size of its input is not known"
        sizes = [d for d in dims[2:] if isinstance(d, int)]
        total = [s * (d - 1) + e + (k - 1) * g + 1 - o for s, d, e, k, g, o in zip(
            strides, sizes, extra, kernel, dilations, asked, strict=True)]
        begins = [max(0, t) // 2 if kind == "SAME_UPPER" else -(-max(0, t) // 2) for t in total]
        pads = (*begins, *(t - b for t, b in zip(total, begins, strict=True)))
    if any(p < 0 for p in pads[:n]):
        return "negative padding"
    return [_Axis(*row) for row in zip(kernel, strides, dilations, pads[:n], pads[n:], extra, strict=True)]


def _asked(node: ir.Node, n: int, strides: Sequence[int]) -> list[int] | None:
    given = ints_attr(node, "output_shape")
    if given is not None:
        return list(given[-n:])
    dims = dims_of(node.inputs[0])
    sizes = [] if dims is None else [d for d in dims[2:] if isinstance(d, int)]
    return [d * s for d, s in zip(sizes, strides, strict=True)] if len(sizes) == n else None


def _phases(w: Array, groups: int, axes: Sequence[_Axis]) -> Array:
    """[Ci, Co/G, k...] as the convolution's weight [G s... Co/G, Ci/G, taps...]."""
    inner, each = w.shape[0] // groups, w.shape[1]
    strides, taps = [a.stride for a in axes], [a.taps for a in axes]
    out = np.zeros((groups, *strides, each, inner, *taps), w.dtype)
    # Channels last on both sides, so that one index tuple of numbers names a tap.
    grouped = np.moveaxis(w.reshape(groups, inner, *w.shape[1:]), (0, 2, 1), (-3, -2, -1))
    turned = np.moveaxis(out, (0, 1 + len(axes), 2 + len(axes)), (-3, -2, -1))
    for at in itertools.product(*(range(a.kernel) for a in axes)):
        places = [divmod(k * a.dilation, a.stride) for k, a in zip(at, axes, strict=True)]
        # A convolution reads x[q - j] as tap taps - 1 - j.
        flipped = [a.taps - 1 - j for (j, _), a in zip(places, axes, strict=True)]
        turned[(*(r for _, r in places), *flipped)] = grouped[at]
    return out.reshape(groups * math.prod(strides) * each, inner, *taps)


def _bias(op: Builder, node: ir.Node, axes: Sequence[_Axis]) -> ir.Value | None:
    bias = const_of(input_of(node, 2), _WEIGHTS)
    if bias is None:
        return None
    phases = math.prod(a.stride for a in axes)
    rows = bias.reshape(int_attr(node, "group", 1), 1, -1)
    return op.const(np.repeat(rows, phases, axis=1).reshape(-1))


def _cropped(op: Builder, x: ir.Value, axes: Sequence[_Axis], first: int) -> ir.Value:
    cut = [(i + first, a) for i, a in enumerate(axes) if a.crop or a.surplus]
    if not cut:
        return x
    ends = [-a.surplus if a.surplus else np.iinfo(np.int64).max for _, a in cut]
    return op.Slice(x, op.ints([a.crop for _, a in cut]), op.ints(ends), op.ints([i for i, _ in cut]))


TABLE: Mapping[str, Entry] = {"ConvTranspose": conv_transpose}
