"""Runs a plan in numpy, in one byte arena exactly as planned, so that overlapping buffers show as wrong numbers.

Each kernel follows docs/kernels.md in float64; nothing here is fast, and nothing is shared with the compiler but the
plan itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgec.compress.formats import (
    BitsSpec,
    Dtype,
    Format,
    PaletteSpec,
    dequantize,
    dequantize_palette,
    from_storage,
    pack,
    unpack,
    unpack_bits64,
    unpack_palette,
)
from edgec.native.dims import Dim
from edgec.native.plan import KERNELS, Call, Operand, Plan, Space
from tests.native.kv_codes import decode_rows, encode_rows

Array = np.ndarray[Any, Any]


def erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def activate(code: int, x: Array, a: float, b: float) -> Array:
    table: dict[int, Callable[[], Array]] = {
        0: lambda: x, 1: lambda: np.maximum(x, 0), 2: lambda: np.minimum(np.maximum(x, a), b), 3: lambda: sigmoid(x),
        4: lambda: x * sigmoid(x), 5: lambda: np.tanh(x), 6: lambda: x * 0.5 * (1 + erf(x / math.sqrt(2))),
        7: lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        8: lambda: x * np.clip(x / 6 + 0.5, 0, 1), 9: lambda: np.clip(a * x + b, 0, 1),
        10: lambda: np.where(x < 0, a * x, x), 11: lambda: np.where(x < 0, a * np.expm1(x), x),
        12: lambda: softplus(x), 13: lambda: x * np.tanh(softplus(x)), 32: lambda: -x, 33: lambda: np.abs(x),
        34: lambda: np.exp(x), 35: lambda: np.log(x), 36: lambda: np.sqrt(x), 37: lambda: 1 / x, 38: lambda: erf(x),
        39: lambda: np.sin(x), 40: lambda: np.cos(x), 41: lambda: np.floor(x), 42: lambda: np.ceil(x),
        43: lambda: np.rint(x), 44: lambda: np.sign(x), 45: lambda: ~x.astype(bool), 46: lambda: 1 / np.sqrt(x),
        47: lambda: x * x,
    }
    return table[code]()


def epilogue(y: Array, bias: Array | None, residual: Array | None, act: int, first: int, f: Sequence[float]) -> Array:
    y = y if bias is None else y + bias
    if residual is not None and first:
        return activate(act, y + residual, *f)
    y = activate(act, y, *f)
    return y if residual is None else y + residual


def windows(x: Array, size: tuple[int, int], i: Sequence[int], fill: float) -> Array:
    """[B, OH, OW, kh, kw, C] of x [B, H, W, C]; i = kh kw sh sw pt pl dh dw."""
    kh, kw, sh, sw, pt, pl, dh, dw = i[:8]
    b, h, w, c = x.shape
    out = np.full((b, *size, kh, kw, c), fill)
    for oh in range(size[0]):
        for ow in range(size[1]):
            for a in range(kh):
                for e in range(kw):
                    r, q = oh * sh - pt + a * dh, ow * sw - pl + e * dw
                    if 0 <= r < h and 0 <= q < w:
                        out[:, oh, ow, a, e] = x[:, r, q]
    return out


def attend(q: Array, k: Array, v: Array, keep: Array, add: Array, scale: float, cap: float) -> Array:
    """q [..., T, D], k and v [..., S, D]; keep: bool, add: float, both broadcast to [..., T, S]."""
    scores = scale * (q @ np.swapaxes(k, -1, -2))
    scores = cap * np.tanh(scores / cap) if cap else scores
    scores = np.where(keep, scores + add, -np.inf)
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = p.sum(-1, keepdims=True)
    return (p / np.where(total == 0, 1, total)) @ v


def k_linear(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, residual = o
    return epilogue(x @ w.T, bias, residual, i[0], i[1], f)


def few_bits(w, n, k, bits, group, form):  # type: ignore[no-untyped-def]
    """The matrix that the stored bytes are; form: 0, 1, 64 + or 80 + the values of a palette's index."""
    data = w.astype(np.uint8)
    if form < 16:
        return dequantize(unpack_bits64(data, BitsSpec(bits, group, bool(form)), n, k)).astype(np.float64)
    spec = PaletteSpec(bits, group, form % 16)
    return dequantize_palette(unpack_palette(data, spec, n, k, 4 if form >= 80 else 2)).astype(np.float64)


def k_linear_bits(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, residual = o
    return epilogue(x @ few_bits(w, i[2], x.shape[-1], *i[3:6]).T, bias, residual, i[0], i[1], f)


def k_gather_bits(y, o, i, f):  # type: ignore[no-untyped-def]
    return few_bits(o[0], *i)[o[1]]


def k_conv2d_bits(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, residual = o
    cols = windows(x, y[0].shape[1:3], i, 0.0)
    cols = cols.reshape(*cols.shape[:3], -1)
    return epilogue(cols @ few_bits(w, i[10], cols.shape[-1], *i[11:14]).T, bias, residual, i[8], i[9], f)


def k_linear_bits_split(y, o, i, f):  # type: ignore[no-untyped-def]
    x, weights, biases = o[0], o[1:5], o[5:9]
    act, group = i[:2]
    return tuple(
        None if part is None else k_linear_bits(
            part, (x, w, bias, None), (act, 0, part.shape[-1], i[2 + 2 * n], group, i[3 + 2 * n]), f)
        for n, (part, w, bias) in enumerate(zip(y, weights, biases, strict=True)))


def k_linear_split(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias = o
    whole = epilogue(x @ w.T, bias, None, i[0], 0, f)
    widths = [0 if part is None else part.shape[-1] for part in y]
    return tuple(np.split(whole, np.cumsum(widths)[:-1], axis=-1))


def k_conv2d(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, residual = o
    groups = i[8]
    cols = windows(x, y[0].shape[1:3], i, 0.0)
    parts = [
        part.reshape(*part.shape[:3], -1) @ w[g].T for g, part in enumerate(np.split(cols, groups, axis=-1))
    ]
    return epilogue(np.concatenate(parts, -1), bias, residual, i[9], i[10], f)


def k_conv2d_winograd(y, o, i, f):  # type: ignore[no-untyped-def]
    return k_conv2d(y, o, (3, 3, 1, 1, *i[:2], 1, 1, 1, *i[2:]), f)


def k_dwconv2d(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, residual = o
    cols = windows(np.tile(x, w.shape[1] // x.shape[3]), y[0].shape[1:3], i, 0.0)
    total = (cols * w.reshape(i[0], i[1], -1)).sum((3, 4))
    return epilogue(total, bias, residual, i[8], i[9], f)


def k_mbconv2d(y, o, i, f):  # type: ignore[no-untyped-def]
    x, widen, widen_bias, w, bias, narrow, narrow_bias, residual = o
    wide = x if widen is None else epilogue(x @ widen.T, widen_bias, None, i[8], 0, f[:2])
    cols = windows(wide, y[0].shape[1:3], i, 0.0)
    thin = epilogue((cols * w.reshape(i[0], i[1], -1)).sum((3, 4)), bias, None, i[9], 0, f[2:4])
    return epilogue(thin @ narrow.T, narrow_bias, residual, i[10], i[11], f[4:])


def k_pool2d(y, o, i, f):  # type: ignore[no-untyped-def]
    if i[0] == 0:
        return windows(o[0], y[0].shape[1:3], i[1:], -np.inf).max((3, 4))
    inside = windows(np.ones_like(o[0]), y[0].shape[1:3], i[1:], 0.0).sum((3, 4))
    total = windows(o[0], y[0].shape[1:3], i[1:], 0.0).sum((3, 4))
    return total / (i[1] * i[2]) if i[9] else total / np.maximum(inside, 1)


def k_resize2d(y, o, i, f):  # type: ignore[no-untyped-def]
    x, rows, row_weights, cols, col_weights = o
    assert rows.min() >= 0
    assert rows.max() < x.shape[1]
    assert cols.min() >= 0
    assert cols.max() < x.shape[2]
    tall = (x[:, rows] * row_weights[None, :, :, None, None]).sum(2)
    return (tall[:, :, cols] * col_weights[None, None, :, :, None]).sum(3)


def k_rnn(y, o, i, f):  # type: ignore[no-untyped-def]
    g, w, bias, h, c = o
    (mode, reverse), (steps, batch, units) = i, y[0].shape
    h, c = (np.zeros((batch, units)) if s is None else s for s in (h, c))
    bias = 0.0 if bias is None else bias
    out = np.empty((steps, batch, units))
    for t in reversed(range(steps)) if reverse else range(steps):
        x, p = np.split(g[t], w.shape[0], axis=1), [h @ gate.T for gate in w]
        if mode < 2:
            h = activate((5, 1)[mode], x[0] + p[0], 0, 0)
        elif mode < 4:
            z, r = sigmoid(x[0] + p[0]), sigmoid(x[1] + p[1])
            inner = (r * h) @ w[2].T + bias if mode == 3 else r * (p[2] + bias)
            h = (1 - z) * np.tanh(x[2] + inner) + z * h
        else:
            enter, leave, keep = (sigmoid(x[k] + p[k]) for k in range(3))
            c = keep * c + enter * np.tanh(x[3] + p[3])
            h = leave * np.tanh(c)
        out[t] = h
    return out, h, c


def k_selective_scan(y, o, i, f):  # type: ignore[no-untyped-def]
    x, delta, a, b, c, d, state = o
    delta = np.logaddexp(0, delta) if i[0] else delta
    h = np.zeros((x.shape[0], x.shape[2], len(a))) if state is None else state
    out = np.zeros(x.shape) if d is None else x * d
    for t in range(x.shape[1]):
        h = np.exp(delta[:, t, :, None] * a.T) * h + (delta * x)[:, t, :, None] * b[:, t, None]
        out[:, t] += (h * c[:, t, None]).sum(2)
    return out, h


def k_causal_conv1d(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, tail = o
    tail = np.zeros((x.shape[0], len(w) - 1, x.shape[2])) if tail is None else tail
    rows = np.concatenate([tail, x], 1)
    total = sum(rows[:, k : k + x.shape[1]] * w[k] for k in range(len(w)))
    return activate(i[0], total if bias is None else total + bias, *f), rows[:, x.shape[1] :]


def k_dynamic_depthwise(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, residual, scale = o
    cols = windows(x, x.shape[1:3], [i[0], i[0], 1, 1, i[0] // 2, i[0] // 2, 1, 1], 0.0)
    kernels = np.tile(w, x.shape[3] // w.shape[4]).reshape(*w.shape[:3], i[0], i[0], -1)
    total = (cols * kernels).sum((3, 4))
    return epilogue(total if scale is None else total * scale, bias, residual, i[1], i[2], f)


def k_groupnorm(y, o, i, f):  # type: ignore[no-untyped-def]
    x, gamma, beta = o
    grouped = x.reshape(*x.shape[:2], i[0], -1)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    n = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + f[0])).reshape(x.shape)
    n = n if gamma is None else n * gamma
    return activate(i[1], n if beta is None else n + beta, *f[1:])


def k_matmul(y, o, i, f):  # type: ignore[no-untyped-def]
    return f[0] * (o[0] @ (np.swapaxes(o[1], -1, -2) if i[0] else o[1]))


CODES = {np.dtype("i1"): Dtype.I8, np.dtype("u1"): Dtype.U8}


def read_cache(cache: Array, width: int) -> Array:
    kind = CODES.get(cache.dtype)
    return cache if kind is None else decode_rows(kind, cache, width).astype(np.float64)


def k_attention_cached(y, o, i, f):  # type: ignore[no-untyped-def]
    q, k, v = o
    past, hq, hkv, window = i
    t, span = q.shape[0], past + q.shape[0]
    assert span <= k.shape[1], "the cache is too short"
    heads = q.reshape(t, hq, -1).swapaxes(0, 1)
    k, v = (read_cache(c, n // hq) for c, n in ((k, q.shape[1]), (v, y[0].shape[1])))
    k, v = (np.repeat(c[:, :span], hq // hkv, axis=0) for c in (k, v))
    at, see = past + np.arange(t)[:, None], np.arange(span)[None]
    keep = (see <= at) & ((see > at - window) | (window == 0))
    return attend(heads, k, v, keep, 0.0, *f).swapaxes(0, 1).reshape(t, -1)


def k_attention(y, o, i, f):  # type: ignore[no-untyped-def]
    q, k, v, mask = o
    hq, hkv, causal, offset = i
    q = q.reshape(*q.shape[:2], hq, -1).swapaxes(1, 2)
    k, v = (np.repeat(x.reshape(*x.shape[:2], hkv, -1).swapaxes(1, 2), hq // hkv, axis=1) for x in (k, v))
    t, s = np.arange(q.shape[2])[:, None], np.arange(k.shape[2])[None]
    keep = (s <= t + offset) if causal else np.ones((1, 1), bool)
    add = np.zeros(())
    if mask is not None:
        keep, add = (keep & mask, add) if mask.dtype == bool else (keep, mask)
    out = attend(q, k, v, keep, add, *f).swapaxes(1, 2)
    return out.reshape(*out.shape[:2], -1)


def k_kv_write(y, o, i, f):  # type: ignore[no-untyped-def]
    cache, x = y[0].copy(), o[0]
    assert i[0] + x.shape[0] <= cache.shape[1], "the cache is too short"
    rows = x.reshape(x.shape[0], cache.shape[0], -1).swapaxes(0, 1)
    kind = CODES.get(cache.dtype)
    cache[:, i[0] : i[0] + x.shape[0]] = rows if kind is None else encode_rows(kind, rows).view(cache.dtype)
    return cache


def k_norm(mean: bool):  # type: ignore[no-untyped-def]
    def run(y, o, i, f):  # type: ignore[no-untyped-def]
        s = o[0] if o[1] is None else o[0] + o[1]
        centred = s - s.mean(-1, keepdims=True) if mean else s
        n = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + f[0])
        n = n if o[2] is None else n * o[2]
        return (n + o[3] if mean and o[3] is not None else n), s

    return run


def k_rope(y, o, i, f):  # type: ignore[no-untyped-def]
    heads, rotary, interleaved = i
    x = o[0].reshape(o[0].shape[0], heads, -1).copy()
    cos, sin = o[1][:, None], o[2][:, None]
    at = np.arange(rotary // 2)
    one, two = (2 * at, 2 * at + 1) if interleaved else (at, at + rotary // 2)
    a, b = x[..., one].copy(), x[..., two].copy()
    x[..., one], x[..., two] = a * cos - b * sin, b * cos + a * sin
    return x.reshape(o[0].shape)


def k_binary(y, o, i, f):  # type: ignore[no-untyped-def]
    a, b = o
    if i[0] == 3 and a.dtype.kind == "i":
        return np.where(b == 0, 0, np.trunc(a / np.where(b == 0, 1, b))).astype(np.int64)
    table = [np.add, np.subtract, np.multiply, np.divide, np.power, np.minimum, np.maximum, np.mod, np.equal, np.less,
             np.less_equal, np.greater, np.greater_equal, np.logical_and, np.logical_or, np.logical_xor]
    return table[i[0]](a, b)


def k_softmax(y, o, i, f):  # type: ignore[no-untyped-def]
    z = o[0] - o[0].max(-1, keepdims=True)
    log = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return log if i[0] else np.exp(log)


def k_reduce(y, o, i, f):  # type: ignore[no-untyped-def]
    table = [np.sum, np.mean, np.max, np.min, np.prod, lambda x, axis: (x * x).sum(axis),
             lambda x, axis: np.sqrt((x * x).sum(axis)), lambda x, axis: np.abs(x).sum(axis)]
    return table[i[0]](o[0], axis=1)


def k_gather(y, o, i, f):  # type: ignore[no-untyped-def]
    table = o[0] if o[0].ndim == 3 else o[0][None]
    return np.take(table, o[1], axis=1)


def k_scatter(y, o, i, f):  # type: ignore[no-untyped-def]
    result = o[0].copy()
    for row, update in zip(o[1], o[2], strict=True):
        step = (lambda a, b: b, np.add, np.multiply, np.minimum, np.maximum)[i[0]]
        result[row] = step(result[row], update)
    return result


def k_topk(y, o, i, f):  # type: ignore[no-untyped-def]
    at = np.argsort(o[0] if i[0] else -o[0], axis=1, kind="stable")[:, : y[0].shape[1]]
    return np.take_along_axis(o[0], at, axis=1), at


def k_bitwise(y, o, i, f):  # type: ignore[no-untyped-def]
    return (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)[i[0]](*o)


def k_slice(y, o, i, f):  # type: ignore[no-untyped-def]
    rank = o[0].ndim
    picks = [s + t * np.arange(n) for s, t, n in zip(i[:rank], i[rank:], y[0].shape, strict=True)]
    assert all(((p >= 0) & (p < n)).all() for p, n in zip(picks, o[0].shape, strict=True))
    return o[0][np.ix_(*picks)]


def k_pad(y, o, i, f):  # type: ignore[no-untyped-def]
    widths = [(b, n - b - m) for b, n, m in zip(i[:-1], y[0].shape, o[0].shape, strict=True)]
    mode = ("constant", "edge", "reflect")[i[-1]]
    return np.pad(o[0], widths, mode=mode, **({"constant_values": f[0]} if i[-1] == 0 else {}))


def k_cast(y, o, i, f):  # type: ignore[no-untyped-def]
    x, kind = o[0], y[0].dtype
    if x.dtype.kind != "f" or kind.kind == "f":
        return x.astype(kind)
    return (x != 0) if kind.kind == "b" else np.nan_to_num(np.trunc(x)).astype(kind)


def turned(a):  # type: ignore[no-untyped-def]
    """Codes of u8, from i8 as well."""
    return a.astype(np.int64) + (128 if a.dtype == np.int8 else 0)


def coded(y, v, zero, lo, hi):  # type: ignore[no-untyped-def]
    """Float32 steps as codes of y's type."""
    return np.clip(np.rint(v) + zero, lo, hi).astype(np.int64) - (128 if y.dtype == np.int8 else 0)


def k_conv2d_q8(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, scale = o
    groups, n = i[8], y[0].shape[3] // i[8]
    cols = windows(turned(x) - i[9], y[0].shape[1:3], i, 0) + i[9]
    flat = w.reshape(*w.shape[:3], 16, 2).transpose(0, 1, 3, 2, 4).reshape(groups, w.shape[1] * 16, -1)
    parts = [part.reshape(*part.shape[:3], -1) for part in np.split(cols, groups, axis=-1)]
    sums = [p.astype(np.int64) @ flat[g, :n, : p.shape[-1]].T.astype(np.int64) for g, p in enumerate(parts)]
    return coded(y[0], (np.concatenate(sums, -1) + bias).astype(np.float32) * scale, *i[10:13])


def k_dwconv2d_q8(y, o, i, f):  # type: ignore[no-untyped-def]
    x, w, bias, scale = o
    cols = windows(turned(x) - i[8], y[0].shape[1:3], i, 0) + i[8]
    sums = (cols.astype(np.int64) * w.reshape(i[0], i[1], -1)).sum((3, 4)) + bias
    return coded(y[0], sums.astype(np.float32) * scale, *i[9:12])


def k_pool2d_q8(y, o, i, f):  # type: ignore[no-untyped-def]
    real = (turned(o[0]) - i[10]).astype(np.float32)
    return coded(y[0], k_pool2d(y, [real], i[:10], f) * np.float32(f[0]), *i[11:14])


def k_add_q8(y, o, i, f):  # type: ignore[no-untyped-def]
    sums = (turned(o[0]) - i[0]) * i[5] + (turned(o[1]) - i[1]) * i[6]
    return coded(y[0], sums.astype(np.float64) * 2.0 ** -i[7], *i[2:5])


RUN: dict[str, Callable[..., Any]] = {
    "conv2d_q8": k_conv2d_q8, "dwconv2d_q8": k_dwconv2d_q8, "pool2d_q8": k_pool2d_q8, "add_q8": k_add_q8,
    "table_q8": lambda y, o, i, f: o[1][turned(o[0])].astype(np.int64) - (128 if y[0].dtype == np.int8 else 0),
    "quantize": lambda y, o, i, f: coded(y[0], o[0] / np.float32(f[0]), *i),
    "dequantize": lambda y, o, i, f: (turned(o[0]) - i[0]).astype(np.float32) * np.float32(f[0]),
    "linear": k_linear, "linear_split": k_linear_split, "linear_bits": k_linear_bits, "gather_bits": k_gather_bits,
    "linear_bits_split": k_linear_bits_split, "conv2d": k_conv2d, "conv2d_winograd": k_conv2d_winograd,
    "conv2d_bits": k_conv2d_bits,
    "dwconv2d": k_dwconv2d, "mbconv2d": k_mbconv2d, "pool2d": k_pool2d,
    "resize2d": k_resize2d, "rnn": k_rnn, "selective_scan": k_selective_scan,
    "causal_conv1d": k_causal_conv1d, "dynamic_depthwise": k_dynamic_depthwise, "groupnorm": k_groupnorm,
    "matmul": k_matmul,
    "attention_cached": k_attention_cached, "attention": k_attention, "kv_write": k_kv_write,
    "rmsnorm": k_norm(False), "layernorm": k_norm(True), "rope": k_rope,
    "unary": lambda y, o, i, f: activate(i[0], o[0], *f), "binary": k_binary,
    "glu": lambda y, o, i, f: activate(i[0], o[0], *f) * o[1], "where": lambda y, o, i, f: np.where(*o),
    "softmax": k_softmax, "reduce": k_reduce,
    "argmax": lambda y, o, i, f: (np.argmin if i[0] else np.argmax)(o[0], axis=1), "gather": k_gather,
    "scatter": k_scatter, "topk": k_topk, "bitwise": k_bitwise,
    "transpose": lambda y, o, i, f: o[0].transpose(i), "slice": k_slice,
    "concat": lambda y, o, i, f: np.concatenate(o, axis=i[0]), "pad": k_pad,
    "expand": lambda y, o, i, f: np.broadcast_to(o[0], y[0].shape), "cast": k_cast,
    "copy": lambda y, o, i, f: o[0].reshape(y[0].shape), "iota": lambda y, o, i, f: i[0] + i[1] * np.arange(y[0].size),
}


def stored_matrix(plan: Plan, shape: tuple[int, ...]) -> Array:
    """The float32 values of the one weight of `shape`, whatever form it is stored in."""
    [(stored, weight)] = [(s, w) for s, w in zip(plan.stored(), plan.weights, strict=True) if s.shape == shape]
    if weight.dtype is not Dtype.U8:
        return weight.load()
    return dequantize(unpack_bits64(weight.load(), BitsSpec.parse(stored.form), *shape))


class Interpreter:
    """One session: the arena, the states and the weights of `plan`. context: tokens, language models only."""

    def __init__(self, plan: Plan, context: int = 0) -> None:
        self.plan = plan
        self.context = context or plan.max_context
        self.weights = [
            np.frombuffer(pack(w.load().reshape(w.dims), w.dtype, w.format).tobytes(), np.uint8) for w in plan.weights
        ]
        self.states = [np.zeros(s.bytes.at({"context": self.context}), np.uint8) for s in plan.states]

    def run(self, entry_name: str, inputs: Mapping[str, Array], **symbols: int) -> dict[str, Array]:
        """The outputs of an entry; `symbols` beyond what the input shapes say."""
        entry = self.plan.entry(entry_name)
        bound = {"context": self.context, **symbols}
        feeds = []
        for port in entry.inputs:
            array = np.array(inputs[port.name], dtype=port.dtype.numpy, order="C")
            for d, n in zip(port.dims, array.shape, strict=True):
                for s in d.symbols:
                    if str(d) == s.name:
                        assert s.min <= n <= s.max
                        bound[s.name] = n
            assert array.shape == tuple(d.at(bound) for d in port.dims), f"{port.name}: {array.shape}"
            feeds.append(array.reshape(-1).view(np.uint8))
        outs = [np.full(math.prod(d.at(bound) for d in p.dims) * p.dtype.size, 0xFF, np.uint8) for p in entry.outputs]
        # 0xFF.. is NaN: what no call wrote cannot pass for a number.
        arena = np.full(entry.arena_bytes, 0xFF, np.uint8)
        spaces = {Space.ARENA: [arena], Space.WEIGHT: self.weights, Space.INPUT: feeds, Space.OUTPUT: outs,
                  Space.STATE: self.states}
        for call in entry.calls:
            self._call(call, spaces, bound)
        return {
            p.name: out.view(p.dtype.numpy).reshape([d.at(bound) for d in p.dims])
            for p, out in zip(entry.outputs, outs, strict=True)
        }

    def _call(self, call: Call, spaces: Mapping[Space, Sequence[Array]], bound: Mapping[str, int]) -> None:
        n_out = KERNELS[call.kernel].n_out

        def memory(o: Operand) -> tuple[Array, list[int]]:
            dims = [d.at(bound) for d in o.dims]
            whole = spaces[o.space][0 if o.space is Space.ARENA else o.index]
            size = o.bytes.at(bound)
            assert o.offset % 64 == 0
            assert o.offset + size <= whole.size, f"{call.kernel}: beyond the space"
            return whole[o.offset : o.offset + size], dims

        def read(o: Operand) -> Array | None:
            if o.space is Space.NONE:
                return None
            raw, dims = memory(o)
            if o.format is Format.PANEL16:
                values = unpack(raw.tobytes(), o.dtype, o.format, dims)
            else:
                values = from_storage(raw.view(o.dtype.numpy).reshape(dims), o.dtype)
            return values.astype(np.float64) if values.dtype.kind == "f" else values.copy()

        ints = [i.at(bound) if isinstance(i, Dim) else i for i in call.ints]
        ins = [read(o) for o in call.operands[n_out:]]
        before = [read(o) for o in call.operands[:n_out]]
        with np.errstate(all="ignore"):
            results = RUN[call.kernel](before, ins, ints, list(call.floats))
        results = results if isinstance(results, tuple) else (results,)
        for o, result in zip(call.operands[:n_out], results, strict=False):
            if o.space is Space.NONE:
                continue
            raw, dims = memory(o)
            assert math.prod(dims) == np.size(result), f"{call.kernel}: result {np.shape(result)} for {dims}"
            kind = np.dtype("<f2") if o.dtype is Dtype.F16 else o.dtype.numpy
            raw[:] = np.ascontiguousarray(result, dtype=kind).reshape(-1).view(np.uint8)
