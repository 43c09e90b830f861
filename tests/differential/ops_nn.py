"""Convolutions, pools, resizes, norms, attention, recurrent layers, and layers with weights of few bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from tests.differential.draft import F32, I8, U8, Dim, Draft, RejectedError, Value
from tests.differential.ops_math import Drawer


def _image(g: Draft, axes: int, channels: int = 0, least: int = 1) -> Value:
    """[N, C, ...]: one there is, or a new one."""
    found = [v for v in g.values if g.fits(v, (g.float,), axes + 2, axes + 2, 100.0) and not v.constant
             and min((d if isinstance(d, int) else min(d)) for d in v.dims[2:]) >= least
             and (not channels or v.shape[1] == channels) and v.shape[1] > 0]
    if found and not g.chance(4):
        return found[-1]
    sizes = [s for s in (1, 2, 3, 5, 7, 8, 9, 15, 17) if s >= least]
    dims: list[Dim] = [g.int(1, 2), channels or g.one((1, 2, 3, 4, 6, 8, 16)), *(g.one(sizes) for _ in range(axes))]
    if g.symbol and g.flag():
        dims[0] = g.symbol
    return g.new(dims, g.float, constant=False)


def _window(g: Draft, x: Value, axes: int, dilate: bool = True) -> dict[str, Any]:
    kernel = [g.one((1, 2, 3, 3, 5)) for _ in range(axes)]
    dilations = [g.one((1, 1, 2)) if dilate else 1 for _ in range(axes)]
    attrs: dict[str, Any] = {"kernel_shape": kernel}
    if g.flag():
        attrs["strides"] = [g.int(1, 3) for _ in range(axes)]
    if set(dilations) != {1} or g.chance(4):
        attrs["dilations"] = dilations
    auto = g.one(("NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"))
    begins, ends = [0] * axes, [0] * axes
    if auto == "NOTSET":
        if g.flag():
            begins = [g.int(0, min(2, k - 1)) for k in kernel]
            ends = begins if g.flag() else [g.int(0, min(2, k - 1)) for k in kernel]
            attrs["pads"] = [*begins, *ends]
    else:
        attrs["auto_pad"] = auto
    for a in range(axes):
        size = x.shape[2 + a]
        if size < 0:
            raise RejectedError("a varying image")
        # The kernel must fit somewhere.
        if auto[:4] != "SAME" and size + begins[a] + ends[a] < dilations[a] * (kernel[a] - 1) + 1:
            raise RejectedError("the kernel is larger than the image")
    return attrs


def conv(g: Draft) -> Value:
    axes = g.int(1, 2)
    x = _image(g, axes)
    attrs = _window(g, x, axes)
    channels = x.shape[1]
    group = g.one([d for d in range(1, channels + 1) if channels % d == 0]) if g.flag() else 1
    out = group * g.one((1, 2, 3, 5)) if g.flag() else group * g.one((1, 4, 16, 17))
    w = g.new((out, channels // group, *attrs["kernel_shape"]), x.dtype, constant=True)
    b = g.new((out,), x.dtype, constant=True) if g.flag() else None
    made = g.node("Conv", [x, w, b], group=group if group > 1 or g.flag() else None, **attrs)
    return _after_conv(g, made)


def _after_conv(g: Draft, x: Value) -> Value:
    """What is fused into a convolution, sometimes."""
    then = g.one(("", "", "norm", "Relu", "Sigmoid", "residual"))
    if then == "norm":
        return _batch_norm(g, x)
    if then == "residual":
        return g.node("Add", [x, g.new(x.dims, x.dtype)])
    return g.node(then, [x]) if then else x


def conv_transpose(g: Draft) -> Value:
    axes = g.int(1, 2)
    x = _image(g, axes)
    channels = x.shape[1]
    group = g.one([d for d in range(1, channels + 1) if channels % d == 0]) if g.chance(3) else 1
    kernel = [g.one((1, 2, 3, 4)) for _ in range(axes)]
    strides = [g.int(1, 3) for _ in range(axes)]
    dilations = [g.one((1, 1, 2)) for _ in range(axes)]
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    if g.chance(4):
        attrs["auto_pad"] = g.one(("SAME_UPPER", "SAME_LOWER", "VALID"))
        if attrs["auto_pad"] != "VALID" and any(k < s for k, s in zip(kernel, strides, strict=True)):
            raise RejectedError("gaps")
    else:
        attrs["pads"] = [g.int(0, (k - 1) * d) // 2 for k, d in zip(kernel * 2, dilations * 2, strict=True)]
        if g.flag():
            attrs["output_padding"] = [g.int(0, s - 1) for s in strides]
    w = g.new((channels, g.one((1, 2, 5, 17)), *kernel), x.dtype, constant=True)
    b = g.new((w.shape[1] * group,), x.dtype, constant=True) if g.flag() else None
    return g.node("ConvTranspose", [x, w, b], **attrs)


def pool(op: str, g: Draft) -> Value:
    axes = g.one((1, 2, 2, 3)) if op != "LpPool" else 2
    x = _image(g, axes)
    attrs = _window(g, x, axes, dilate=op != "LpPool" and g.flag())
    if op == "LpPool":
        attrs["p"] = g.int(1, 3)
    elif "auto_pad" not in attrs and g.chance(3):
        attrs["ceil_mode"] = 1
    if op == "AveragePool" and g.flag():
        attrs["count_include_pad"] = 1
    return g.node(op, [x], **attrs)


def global_pool(op: str, g: Draft) -> Value:
    return g.node(op, [_image(g, g.int(1, 2))])


def resize(g: Draft) -> Value:
    x = _image(g, g.int(1, 2))
    if not x.fixed and -1 in x.shape[2:]:
        raise RejectedError("a varying image")
    axes = x.rank - 2
    mode = g.one(("nearest", "linear", "cubic"))
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": g.one((
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"))}
    if mode == "nearest":
        attrs["nearest_mode"] = g.one(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    if mode == "cubic":
        attrs["cubic_coeff_a"] = g.one((-0.75, -0.5))
        attrs["exclude_outside"] = g.int(0, 1)
        if axes != 2:
            raise RejectedError("cubic is for images")
    if mode == "linear" and g.chance(4):
        attrs["antialias"] = 1
    listed = list(range(2, x.rank)) if g.flag() and mode != "cubic" else None
    lead = [] if listed else list(x.shape[:2])
    if g.flag() and -1 not in lead:
        sizes = [*lead, *(g.one((1, 2, 5, 8, 16)) for _ in range(axes))]
        return g.node("Resize", [x, None, None, g.ints(sizes)], axes=listed, **attrs)
    scales = [*([] if listed else (1.0, 1.0)), *(g.one((0.5, 1.0, 1.5, 2.0, 3.0, 0.75)) for _ in range(axes))]
    if any(int(d * s) < 1 for d, s in zip(x.shape[2:], scales[-axes:], strict=True)):
        raise RejectedError("nothing is left")
    return g.node("Resize", [x, None, g.const(np.array(scales, np.float32))], axes=listed, **attrs)


# -- norms -------------------------------------------------------------------------------------------------


def _batch_norm(g: Draft, x: Value) -> Value:
    c = (x.shape[1],)
    if c[0] < 1:
        raise RejectedError("varying channels")
    parts = [g.new(c, x.dtype, kind, constant=True) for kind in ("normal", "normal", "normal", "positive")]
    return g.node("BatchNormalization", [x, *parts], epsilon=g.one((1e-5, 1e-3)))


def batch_norm(g: Draft) -> Value:
    return _batch_norm(g, g.pick(low=2))


def layer_norm(op: str, g: Draft) -> Value:
    x = g.pick(low=1)
    axis = g.axis(x.rank)
    dims = x.shape[axis:]
    if -1 in dims:
        raise RejectedError("varying")
    scale = g.new(dims, x.dtype, constant=True)
    bias = [g.new(dims, x.dtype, constant=True)] if op == "LayerNormalization" and g.flag() else []
    return g.node(op, [x, scale, *bias], axis=axis, epsilon=g.one((1e-5, 1e-3)))


def group_norm(g: Draft) -> Value:
    x = _image(g, g.int(1, 2))
    c = x.shape[1]
    groups = g.one([d for d in range(1, c + 1) if c % d == 0])
    return g.node("GroupNormalization", [x, *(g.new((c,), x.dtype, constant=True) for _ in range(2))],
                  num_groups=groups, epsilon=1e-3)


def instance_norm(g: Draft) -> Value:
    x = _image(g, g.int(1, 2))
    return g.node("InstanceNormalization", [x, *(g.new(x.shape[1:2], x.dtype, constant=True) for _ in range(2))],
                  epsilon=1e-3)


def lrn(g: Draft) -> Value:
    return g.node("LRN", [_image(g, 2)], size=g.one((1, 3, 5)), alpha=g.one((1e-4, 0.5)), beta=0.75, bias=1.0)


def mvn(g: Draft) -> Value:
    x = _image(g, 2)
    return g.node("MeanVarianceNormalization", [x], axes=g.one(([0, 2, 3], [2, 3], [1])) if g.flag() else None)


# -- attention, recurrent layers -----------------------------------------------------------------------------


def attention(g: Draft) -> Value:
    b, kv, repeat = g.int(1, 2), g.int(1, 2), g.int(1, 2)
    heads, width = kv * repeat, g.one((1, 4, 8, 16))
    q_len, k_len = g.one((1, 3, 7, 17)), g.one((1, 3, 8, 17))
    if g.flag():
        q, k, v = (g.new((b, h, n, width), g.float, constant=False)
                   for h, n in ((heads, q_len), (kv, k_len), (kv, k_len)))
        counts = {}
    else:
        q, k, v = (g.new((b, n, h * width), g.float, constant=False)
                   for h, n in ((heads, q_len), (kv, k_len), (kv, k_len)))
        counts = {"q_num_heads": heads, "kv_num_heads": kv}
    mask = None
    if g.flag():
        mask = g.new(g.one(((q_len, k_len), (b, 1, q_len, k_len), (b, heads, q_len, k_len))), g.float)
    return g.node("Attention", [q, k, v, mask], is_causal=g.int(0, 1) if mask is None else None,
                  scale=g.one((None, 0.5)), softcap=g.one((None, None, 2.0)), **counts)


def rotary(g: Draft) -> Value:
    b, heads, n, width = g.int(1, 2), g.int(1, 3), g.one((1, 3, 7)), g.one((2, 4, 8, 16))
    flat = g.flag()
    x = g.new((b, n, heads * width) if flat else (b, heads, n, width), g.float, constant=False)
    part = width // 2 if g.chance(3) and width > 2 else 0
    half = (part or width) // 2
    if g.flag():
        table = [g.new((9, half), x.dtype, constant=True) for _ in range(2)]
        table.append(g.const(g.rng().integers(0, 9, (b, n)).astype(np.int64)))
    else:
        table = [g.new((b, n, half), x.dtype) for _ in range(2)]
    return g.node("RotaryEmbedding", [x, *table], interleaved=g.int(0, 1), num_heads=heads if flat else None,
                  rotary_embedding_dim=part or None)


def recurrent(op: str, g: Draft) -> Value:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    n: Dim = g.symbol if g.symbol and g.flag() else g.one((1, 3, 7))
    batch, width, hidden = g.int(1, 2), g.one((1, 3, 5, 16)), g.one((1, 2, 5, 16))
    way = g.one(("forward", "forward", "reverse", "bidirectional"))
    ways = 2 if way == "bidirectional" else 1
    x = g.new((n, batch, width), F32, "normal", constant=False)
    w = g.new((ways, gates * hidden, width), F32, "normal", constant=True)
    r = g.new((ways, gates * hidden, hidden), F32, "unit", constant=True)
    b = g.new((ways, 2 * gates * hidden), F32, "normal", constant=True) if g.flag() else None
    state = [g.new((ways, batch, hidden), F32, "normal") for _ in range(2 if op == "LSTM" else 1)] if g.flag() else []
    made = g.nodes_of(op, [x, w, r, b, None, *state], g.int(1, 3 if op == "LSTM" else 2), hidden_size=hidden,
                      direction=way, linear_before_reset=g.int(0, 1) if op == "GRU" else None)
    return g.one(made)


# -- few bits, quantized layers ------------------------------------------------------------------------------


def few_bits(g: Draft) -> Value:
    """A product with a weight that is stored as 4 or 8 bits with scales per block or row."""
    k, n = g.one((16, 32, 64, 128)), g.one((1, 7, 16, 33, 64))
    x = g.pick((F32,), 2, 3, where=lambda v: v.shape[-1] == k) if g.chance(3) else g.new(
        (*((g.symbol,) if g.symbol and g.flag() else (g.one((1, 2, 5, 17)),)), k), F32, constant=False)
    rng = g.rng()
    kind: Any = g.one((ml_dtypes.int4, ml_dtypes.uint4, np.int8, np.uint8))
    info = ml_dtypes.iinfo(kind)
    turned = g.flag()
    rows, columns = (n, k) if turned else (k, n)
    axis = 1 if turned else 0
    codes = g.const(rng.integers(info.min, info.max + 1, (rows, columns)).astype(kind))
    block = g.one([s for s in (16, 32, 64) if k % s == 0])
    dims = (rows, columns // block) if turned else (rows // block, columns)
    scale = g.const(rng.uniform(0.01, 0.2, dims).astype(np.float32))
    zero = g.const(rng.integers(info.min, info.max + 1, dims).astype(kind)) if g.flag() else None
    weight = g.node("DequantizeLinear", [codes, scale, zero], axis=axis, block_size=block)
    return g.node("MatMul", [x, g.node("Transpose", [weight], perm=[1, 0]) if turned else weight])


def integer_conv(g: Draft) -> Value:
    x = g.new((1, g.one((1, 3, 4)), 7, g.one((5, 8))), U8, constant=False)
    w = g.new((g.one((1, 5, 16)), x.shape[1], 3, g.one((1, 3))), g.one((U8, I8)), constant=True)
    zero = g.const(np.array(g.int(0, 200), np.uint8)) if g.flag() else None
    return g.node("ConvInteger", [x, w, zero], pads=g.one(([0] * 4, [1, 1, 1, 1])), strides=g.one(([1, 1], [2, 1])))


def quantized_conv(g: Draft) -> Value:
    x = g.new((1, g.one((1, 3, 4)), 7, g.one((5, 8))), g.one((U8, I8)), constant=False)
    w = g.new((g.one((1, 5, 16)), x.shape[1], 3, 3), I8 if x.dtype == I8 else g.one((U8, I8)), constant=True)
    zero_w = g.const(np.array(0 if w.dtype == I8 else 120, w.dtype))
    b = g.const(g.rng().integers(-500, 500, w.shape[0]).astype(np.int32)) if g.flag() else None
    zero_x = g.const(np.array(3, x.dtype))
    return g.node("QLinearConv", [x, g.const(np.float32(0.1)), zero_x, w, g.const(np.float32(0.05)), zero_w,
                                  g.const(np.float32(1.7)), g.const(np.array(10, x.dtype)), b],
                  pads=g.one(([0] * 4, [1, 1, 1, 1])))


# -- images --------------------------------------------------------------------------------------------------


def grid_sample(g: Draft) -> Value:
    x = _image(g, 2)
    if not x.fixed or x.dtype != F32:
        raise RejectedError("varying")
    grid = g.bounded(g.new((x.shape[0], g.one((1, 3, 5)), g.one((2, 4)), 2), F32, "normal"), -1.3, 1.3)
    return g.node("GridSample", [x, grid], mode=g.one(("linear", "nearest", "cubic")),
                  padding_mode=g.one(("zeros", "border", "reflection")), align_corners=g.int(0, 1))


def affine_grid(g: Draft) -> Value:
    n = g.int(1, 2)
    return g.node("AffineGrid", [g.new((n, 2, 3), F32, "normal"), g.ints([n, 3, g.one((1, 4, 5)), g.one((2, 3))])],
                  align_corners=g.int(0, 1))


def col2im(g: Draft) -> Value:
    h, w = g.one((3, 5)), g.one((4, 6))
    count = (h - 1) * (w - 1)
    return g.node("Col2Im", [g.new((1, g.one((1, 3)) * 4, count), F32), g.ints([h, w]), g.ints([2, 2])])


def max_unpool(g: Draft) -> Value:
    x = g.new((1, g.one((1, 2)), 4, 6), F32, "normal", constant=True)
    values, at = g.nodes_of("MaxPool", [x], 2, kernel_shape=[2, 2], strides=[2, 2])
    fixed = g.const(at.arrays[0])
    return g.node("MaxUnpool", [g.new(values.dims, F32, constant=False), fixed], kernel_shape=[2, 2], strides=[2, 2])


def loss(op: str, g: Draft) -> Value:
    n, c, d = g.one((1, 3, 7)), g.one((2, 5, 17)), g.one(((), (3,), (2, 4)))
    x = g.new((n, c, *d), F32, "normal", constant=False)
    labels = g.const(g.rng().integers(0, c, (n, *d)).astype(np.int64))
    weight = g.new((c,), F32, "positive", constant=True) if g.flag() else None
    return g.node(op, [x, labels, weight], reduction=g.one(("none", "mean", "sum")))


NN: dict[str, Drawer] = {
    "Conv": conv, "ConvTranspose": conv_transpose,
    **{op: partial(pool, op) for op in ("MaxPool", "AveragePool", "LpPool")},
    **{op: partial(global_pool, op) for op in ("GlobalAveragePool", "GlobalMaxPool")},
    "Resize": resize, "BatchNormalization": batch_norm,
    **{op: partial(layer_norm, op) for op in ("LayerNormalization", "RMSNormalization")},
    "GroupNormalization": group_norm, "InstanceNormalization": instance_norm, "LRN": lrn,
    "MeanVarianceNormalization": mvn, "Attention": attention, "RotaryEmbedding": rotary,
    **{op: partial(recurrent, op) for op in ("LSTM", "GRU", "RNN")},
    "few bits": few_bits, "ConvInteger": integer_conv, "QLinearConv": quantized_conv, "GridSample": grid_sample,
    "AffineGrid": affine_grid, "Col2Im": col2im, "MaxUnpool": max_unpool,
    **{op: partial(loss, op) for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")},
}
