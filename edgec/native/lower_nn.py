"""Lowering of convolutions, pooling, matrix products, rotary embedding and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Dtype, Format
from edgec.ir.model import dims_of, float_attr, input_of, int_attr, ints_attr, required, str_attr
from edgec.native.dims import Dim, dim, dim_max
from edgec.native.kv import kv_row
from edgec.native.lower_math import axis_last, binary, broadcast, lift, need_f32, reorder
from edgec.native.lower_shape import expand, gather, reshape
from edgec.native.lower_values import Const, Dims, Lowering, UnsupportedError, Value, View, identity, of_const
from edgec.native.lower_weights import is_constant

_TILE_CHANNELS = 16  # fewer are not worth tiles of a convolution, nor taken by their kernel
_HEADS = (0, 2, 1, 3)  # [B, H, T, D] as the kernels want it: [B, T, H, D]


# -- windows: convolution and pooling --------------------------------------------------------------------------------


def channels_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def as_image(view: View) -> View:
    """[B, L, C] as [B, 1, L, C]; images as they are."""
    return view if len(view.dims) == 4 else view.as_dims([view.dims[0], 1, *view.dims[1:]])


def _pair(values: Sequence[int] | None, spatial: int) -> tuple[int, int]:
    """An attribute of one or two spatial axes as (vertical, horizontal)."""
    filled = tuple(values) if values is not None else (1,) * spatial
    return (1, filled[0]) if spatial == 1 else (filled[0], filled[1])


def _padding(node: ir.Node, size: Dims, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
             ) -> tuple[list[Dim], list[Dim]]:
    """Padding before and after each spatial axis, automatic kinds resolved."""
    kind = str_attr(node, "auto_pad", "NOTSET")
    n = len(size)
    if kind in ("NOTSET", "VALID"):
        pads = (ints_attr(node, "pads") if kind == "NOTSET" else None) or (0,) * (2 * n)
        return [dim(p) for p in pads[:n]], [dim(p) for p in pads[n:]]
    begins, ends = [], []
    for d, k, s, e in zip(size, kernel, strides, dilations, strict=True):
        total = dim_max((d.ceildiv(s) - 1) * s + (e * (k - 1) + 1) - d, 0)
        half, rest = total // 2, total.ceildiv(2)
        begins.append(half if kind == "SAME_UPPER" else rest)
        ends.append(rest if kind == "SAME_UPPER" else half)
    return begins, ends


def check_window(node: ir.Node) -> str | None:
    """Attributes of Conv, MaxPool and AveragePool that have no kernel."""
    kind = str_attr(node, "auto_pad", "NOTSET")
    if kind not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return f"auto_pad = {kind!r}"
    if any(p < 0 for p in ints_attr(node, "pads") or ()):
        return "negative padding"
    window = ints_attr(node, "kernel_shape")
    for name, each in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 2)):
        numbers = ints_attr(node, name)
        if numbers is not None and window is not None and len(numbers) != each * len(window):
            return f"{name} = {list(numbers)} with kernel_shape = {list(window)}"
        if numbers is not None and each == 1 and min(numbers, default=1) < 1:
            return f"{name} = {list(numbers)}"
    if node.op_type == "Conv":
        if not is_constant(input_of(node, 1)):
            return "the weight is computed at run time"
        rank = len(dims_of(input_of(node, 1)) or ())
        return None if rank in (3, 4) else f"{rank - 2} spatial axes; the kernels have 1 or 2"
    spatial = len(ints_attr(node, "kernel_shape") or ())
    if spatial not in (1, 2):
        return f"{spatial} spatial axes; the kernels have 1 or 2"
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "the indices output is used"
    if node.op_type == "AveragePool" and int_attr(node, "ceil_mode", 0) and int_attr(node, "count_include_pad", 0):
        return "ceil_mode with count_include_pad"
    return None


def _window(node: ir.Node, x: Value, window: Sequence[int]) -> tuple[list[int | Dim], list[Dim], list[Dim]]:
    """kh kw sh sw pt pl dh dw; both image sizes with all padding, less what the last window takes; strides apart."""
    spatial = x.rank - 2
    kernel, strides = _pair(window, spatial), _pair(ints_attr(node, "strides"), spatial)
    dilations = _pair(ints_attr(node, "dilations"), spatial)
    size = x.dims[2:] if spatial == 2 else (dim(1), x.dims[2])
    begins, ends = _padding(node, x.dims[2:], kernel[-spatial:], strides[-spatial:], dilations[-spatial:])
    if spatial == 1:
        begins, ends = [dim(0), *begins], [dim(0), *ends]
    room = [d + b + e - (g * (k - 1) + 1) for d, b, e, k, g in zip(size, begins, ends, kernel, dilations, strict=True)]
    beyond = [d + b for d, b in zip(size, begins, strict=True)]
    params: list[int | Dim] = [*kernel, *strides, *(b if b.const is None else b.const for b in begins), *dilations]
    return params, room, beyond


def conv_window(node: ir.Node, x: Value, window: Sequence[int]) -> tuple[list[int | Dim], list[Dim]]:
    """(kh kw sh sw pt pl dh dw, both output sizes) of a convolution over `x`."""
    params, room, _ = _window(node, x, window)
    return params, [r // int(s) + 1 for r, s in zip(room, params[2:4], strict=True) if isinstance(s, int)]


def pool_window(node: ir.Node, x: Value) -> tuple[list[int | Dim], list[Dim]]:
    """The same of a MaxPool or AveragePool. Raises UnsupportedError."""
    window = ints_attr(node, "kernel_shape")
    if window is None or len(window) != x.rank - 2:
        raise UnsupportedError(f"kernel_shape {window} for an input of rank {x.rank}")
    params, room, beyond = _window(node, x, window)
    out_size = []
    for r, s, end in zip(room, params[2:4], beyond, strict=True):
        assert isinstance(s, int)  # an attribute
        count = (r.ceildiv(s) if int_attr(node, "ceil_mode", 0) else r // s) + 1
        if int_attr(node, "ceil_mode", 0):
            over = (count - 1) * s - end
            if over.lo < 0 <= over.hi:
                raise UnsupportedError("ceil_mode with a size that is not known at compile time")
            # A window that would start beyond the input and its left padding does not exist.
            count = count - 1 if over.lo >= 0 else count
        out_size.append(count)
    return params, out_size


def lower_conv(ctx: Lowering, node: ir.Node) -> Value:
    x = need_f32(ctx.need(node, 0))
    weight = ctx.need(node, 1).const
    if weight is None:
        raise UnsupportedError("the weight is computed at run time")
    out_channels, per_group, *window = weight.dims
    spatial = len(window)
    groups = int_attr(node, "group", 1)
    given = ints_attr(node, "kernel_shape")
    odd = [name for name, each in (("strides", 1), ("dilations", 1), ("pads", 2))
           if len(ints_attr(node, name) or (1,) * each * spatial) != each * spatial]
    if odd or (given is not None and tuple(given) != tuple(window)):
        raise UnsupportedError(f"{(*odd, 'kernel_shape')[0]} for a weight {list(weight.dims)}")
    if groups < 1 or out_channels % groups:
        raise UnsupportedError(f"group {groups} with weight {list(weight.dims)}")
    if x.rank != spatial + 2 or x.dims[1] != per_group * groups:
        raise UnsupportedError(f"input [{', '.join(map(str, x.dims))}] with weight {list(weight.dims)}, group {groups}")
    params, out_size = conv_window(node, x, window)
    source = as_image(ctx.view(x, channels_last(x.rank)))
    bias_value = ctx.get(node, 2)
    if bias_value is not None and bias_value.dims != (dim(out_channels),):
        raise UnsupportedError(f"a bias [{', '.join(map(str, bias_value.dims))}] with weight {list(weight.dims)}")
    bias = None if bias_value is None else ctx.rows(need_f32(bias_value, "the bias"))
    out = ctx.fresh([x.dims[0], *out_size, out_channels])
    same = all(a == b for a, b in zip(out.dims[1:3], source.dims[1:3], strict=True))
    if params[:6] == [1, 1, 1, 1, 0, 0] and groups == 1 and same:
        _emit_linear(ctx, out, source, weight.reshape([out_channels, per_group]), bias)
    elif groups > 1 and per_group == 1 and out_channels == groups:
        cells = math.prod(window)
        w = ctx.weight(weight.reshape([out_channels, cells]).transpose((1, 0)))
        ctx.emit("dwconv2d", [out], [source, w, bias, None], [*params, 0, 0], [0.0, 0.0])
    else:
        matrix = _conv_matrix(weight)
        low = matrix.low_bit
        if low is not None and groups == 1:
            ctx.emit("conv2d_bits", [out], [source, ctx.packed(matrix, low), bias, None],
                     [*params, 0, 0, low.matrix.n, *low.matrix.ints], [0.0, 0.0])
        else:
            w = ctx.weight(matrix.reshape([groups, out_channels // groups, matrix.dims[1]]), Format.PANEL16, wide=False)
            if groups == 1 and w.dtype is Dtype.F32 and _by_tiles(params, out, per_group):
                ctx.emit("conv2d_winograd", [out], [source, w, bias, None], [*params[4:6], 0, 0], [0.0, 0.0])
            else:
                ctx.emit("conv2d", [out], [source, w, bias, None], [*params, groups, 0, 0], [0.0, 0.0])
    dims = (x.dims[0], dim(out_channels), *out_size[-spatial:])
    return Value(dims, Dtype.F32, channels_last(x.rank), buf=out.buf)


def _by_tiles(params: list[int | Dim], out: View, channels: int) -> bool:
    """Whether Winograd's tiles of 4 x 4 pixels are the faster way: for windows of 3 x 3, stride 1, and enough channels
    and pixels to be worth turning the kernels into values, as measured (docs/decisions.md). The least size decides: one
    pixel takes 17 times as long by tiles, many at most twice as long without them."""
    batch, height, width, out_channels = (max(1, d.lo) for d in out.dims)
    tiles = batch * -(-height // 4) * -(-width // 4)
    return (params[:4] == [3, 3, 1, 1] and params[6:8] == [1, 1] and min(channels, out_channels) >= _TILE_CHANNELS
            and batch * height * width > 5 * tiles + 24)


def _conv_matrix(weight: Const) -> Const:
    """[Co, Ci / G, k...] as [Co, k * Ci / G] with the channel innermost."""
    out_channels, per_group, *window = weight.dims
    taps = math.prod(window)
    # With one tap nothing moves: a matrix of few bits stays recognizable in either order.
    as_it_is = taps == 1 and weight.perm == identity(len(weight.perm))
    moved = weight if as_it_is else weight.transpose(channels_last(len(weight.dims)))
    return moved.reshape([out_channels, taps * per_group])


def lower_pool(ctx: Lowering, node: ir.Node) -> Value:
    x = need_f32(ctx.need(node, 0))
    params, out_size = pool_window(node, x)
    source = as_image(ctx.view(x, channels_last(x.rank)))
    out = ctx.fresh([x.dims[0], *out_size, x.dims[1]])
    average = node.op_type == "AveragePool"
    ctx.emit(
        "pool2d", [out], [source],
        [average, *params, average and int_attr(node, "count_include_pad", 0)],
    )
    return Value((*x.dims[:2], *out_size[4 - x.rank :]), Dtype.F32, channels_last(x.rank), buf=out.buf)


# -- matrix products -------------------------------------------------------------------------------------------------


def linear(ctx: Lowering, x: Value, weight: Const, bias: View | None) -> Value:
    """x [..., K] times a constant [N, K], plus a bias [N]."""
    n, k = weight.dims
    if x.dims[-1] != k:
        raise UnsupportedError(f"an input of width {x.dims[-1]} with a weight of {n} x {k}")
    order = axis_last(x, x.rank - 1)
    source = ctx.view(x, order)
    dims = (*x.dims[:-1], dim(n))
    out = ctx.fresh([dims[a] for a in order])
    _emit_linear(ctx, out, source, weight, bias)
    return Value(dims, Dtype.F32, order, buf=out.buf)


def _emit_linear(ctx: Lowering, out: View, source: View, weight: Const, bias: View | None) -> None:
    """The kernel for the form in which the weight [N, K] is stored."""
    low = weight.low_bit
    if low is None:
        w = ctx.weight(weight, Format.PANEL16, wide=False)
        ctx.emit("linear", [out], [source, w, bias, None], [0, 0], [0.0, 0.0])
    else:
        ints = [0, 0, low.matrix.n, *low.matrix.ints]
        ctx.emit("linear_bits", [out], [source, ctx.packed(weight, low), bias, None], ints, [0.0, 0.0])


def matmul(ctx: Lowering, a: Value, b: Value, alpha: float = 1.0) -> Value:
    """The product of two computed tensors; leading axes broadcast."""
    need_f32(a), need_f32(b)
    if min(a.rank, b.rank) < 2:
        raise UnsupportedError(f"a product of tensors of rank {a.rank} and {b.rank}")
    if a.dims[-1] != b.dims[-2]:
        raise UnsupportedError(f"inner sizes {a.dims[-1]} and {b.dims[-2]} differ")
    plain, swapped = identity(b.rank), (*range(b.rank - 2), b.rank - 1, b.rank - 2)
    transposed = b.const is None and [x for x in b.order if b.dims[x] != 1] == [x for x in swapped if b.dims[x] != 1]
    right = ctx.view(b, swapped if transposed else plain)
    dims = (*broadcast([a.dims[:-2], b.dims[:-2]]), a.dims[-2], b.dims[-1])
    out = ctx.fresh(dims)
    ctx.emit("matmul", [out], [ctx.rows(a), right], [transposed], [alpha])
    return Value(dims, Dtype.F32, identity(len(dims)), buf=out.buf)


def lower_matmul(ctx: Lowering, node: ir.Node) -> Value:
    a, b = need_f32(ctx.need(node, 0)), need_f32(ctx.need(node, 1))
    if b.const is not None and b.rank == 2:
        return linear(ctx, a, b.const.transpose((1, 0)), None)
    wide_a = reshape(ctx, a, (dim(1), *a.dims)) if a.rank == 1 else a
    wide_b = reshape(ctx, b, (*b.dims, dim(1))) if b.rank == 1 else b
    result = matmul(ctx, wide_a, wide_b)
    dims = list(result.dims)
    if a.rank == 1:
        del dims[-2]
    if b.rank == 1:
        del dims[-1]
    return reshape(ctx, result, tuple(dims))


def lower_gemm(ctx: Lowering, node: ir.Node) -> Value:
    a, b, c = need_f32(ctx.need(node, 0)), need_f32(ctx.need(node, 1)), ctx.get(node, 2)
    alpha, beta = float_attr(node, "alpha", 1.0), float_attr(node, "beta", 1.0)
    if a.rank != 2 or b.rank != 2:
        raise UnsupportedError(f"inputs of rank {a.rank} and {b.rank}")
    a = reorder(a, (1, 0)) if int_attr(node, "transA", 0) else a
    b = reorder(b, (1, 0)) if int_attr(node, "transB", 0) else b
    if c is not None and beta != 1.0:
        factor = beta
        if c.const is None:
            scale = Const(f"gemm.beta.{beta!r}", lambda: np.array(factor, np.float32), (), Dtype.F32, ())
            c = binary(ctx, "Mul", c, of_const(scale))
        else:
            c = of_const(c.const.derive(f"x{beta!r}", c.const.dims, lambda v: v * factor))
    if b.const is None:
        result = matmul(ctx, a, b, alpha)
    else:
        weight = b.const.transpose((1, 0))
        if alpha != 1.0:
            weight = weight.derive(f"x{alpha!r}", weight.dims, lambda v: v * alpha)
        if c is not None and c.const is not None and c.dims[-1:] == b.dims[1:] and c.count == b.dims[1]:
            return linear(ctx, a, weight, ctx.rows(c).as_dims([b.dims[1]]))
        result = linear(ctx, a, weight, None)
    return result if c is None else binary(ctx, "Add", result, need_f32(c, "the bias"))


# -- attention -------------------------------------------------------------------------------------------------------


def lower_rotary(ctx: Lowering, node: ir.Node) -> Value:
    x, cos, sin, positions = need_f32(ctx.need(node, 0)), ctx.need(node, 1), ctx.need(node, 2), ctx.get(node, 3)
    if x.rank == 4:
        batch, heads, length, width = x.dims
        order: tuple[int, ...] = _HEADS
    else:
        heads = dim(int_attr(node, "num_heads", 0))
        if heads == 0 or x.rank != 3:
            raise UnsupportedError(f"rank {x.rank} with num_heads = {heads}")
        (batch, length, whole), order = x.dims, identity(3)
        width = whole // heads
    rotary = int_attr(node, "rotary_embedding_dim", 0) or width.const
    if rotary is None or heads.const is None:
        raise UnsupportedError("the number or the width of heads is not known at compile time")
    angles: list[View] = []
    for table in (cos, sin):
        need_f32(table, "the table of angles")
        rows = table if positions is None else gather(ctx, table, positions, 0)
        if rows.rank != 3 or rows.dims[2] * 2 != rotary:
            shape = ", ".join(map(str, rows.dims))
            raise UnsupportedError(f"angles [{shape}] for {rotary} rotated values per head")
        angles.append(ctx.rows(expand(ctx, rows, (batch, length, rows.dims[2]))).as_dims([batch * length, rotary // 2]))
    source = ctx.view(x, order)
    out = ctx.fresh(source.dims)
    flat = [batch * length, heads * width]
    ctx.emit(
        "rope", [out.as_dims(flat)], [source.as_dims(flat), *angles],
        [heads, rotary, int_attr(node, "interleaved", 0)],
    )
    return Value(x.dims, Dtype.F32, order, buf=out.buf)


def _heads(ctx: Lowering, x: Value, count: int, what: str) -> tuple[View, Dim, Dim, Dim, int]:
    """(view [B, T, H * D], B, T, D, H) of a rank-3 or rank-4 attention input."""
    need_f32(x, what)
    if x.rank == 4:
        batch, heads, length, width = x.dims
        view = ctx.view(x, _HEADS).as_dims([batch, length, heads * width])
        count = heads.const or 0
    elif x.rank == 3:
        batch, length, whole = x.dims
        if count <= 0:
            raise UnsupportedError("the number of heads is missing")
        view, width = ctx.rows(x), whole // count
        if width * count != whole:
            raise UnsupportedError(f"{what}: {whole} values of {count} heads")
    else:
        raise UnsupportedError(f"{what}: rank {x.rank}")
    if count <= 0 or width.const is None:
        raise UnsupportedError(f"{what}: the number or the width of heads is not known at compile time")
    return view, batch, length, width, count


def check_attention(node: ir.Node) -> str | None:
    if any(input_of(node, i) is not None for i in (4, 5)):
        return "past key and value; language models come with edgec::CachedAttention"
    if input_of(node, 6) is not None:
        return "nonpad_kv_seqlen"
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return "outputs other than Y are used"
    if int_attr(node, "softmax_precision", 1) != 1:
        return f"softmax_precision = {int_attr(node, 'softmax_precision', 1)}; the kernel computes in float32"
    return None


def lower_attention(ctx: Lowering, node: ir.Node) -> Value:
    q, k, v, mask = ctx.need(node, 0), ctx.need(node, 1), ctx.need(node, 2), ctx.get(node, 3)
    q_view, batch, length, width, hq = _heads(ctx, q, int_attr(node, "q_num_heads", 0), "the query")
    k_view, k_batch, span, k_width, hkv = _heads(ctx, k, int_attr(node, "kv_num_heads", 0), "the key")
    v_view, v_batch, v_span, v_width, v_heads = _heads(ctx, v, int_attr(node, "kv_num_heads", 0), "the value")
    if k_width != width or span != v_span or v_heads != hkv or hq % hkv or not batch == k_batch == v_batch:
        raise UnsupportedError("query, key and value do not fit each other")
    mask_view = None
    if mask is not None:
        if mask.dtype not in (Dtype.F32, Dtype.BOOL):
            raise UnsupportedError(f"a mask of {mask.dtype.name.lower()}")
        mask = lift(mask, 4)
        if mask.dims[3] == 1 and span != 1:
            mask = expand(ctx, mask, (*mask.dims[:3], span))
        if any(d not in (dim(1), want) for d, want in zip(mask.dims, (batch, dim(hq), length, span), strict=True)):
            raise UnsupportedError(f"a mask of [{', '.join(map(str, mask.dims))}]")
        mask_view = ctx.rows(mask)
    scale = float_attr(node, "scale", 1.0 / math.sqrt(width.const or 1))
    out = ctx.fresh([batch, length, v_width * hq])
    ctx.emit(
        "attention", [out], [q_view, k_view, v_view, mask_view], [hq, hkv, int_attr(node, "is_causal", 0), 0],
        [scale, float_attr(node, "softcap", 0.0)],
    )
    if q.rank == 3:
        return Value(out.dims, Dtype.F32, identity(3), buf=out.buf)
    return Value((batch, dim(hq), length, v_width), Dtype.F32, _HEADS, buf=out.buf)


def check_cached(node: ir.Node) -> str | None:
    for i in (3, 4):
        if not required(node, i).is_graph_input():
            return "a cache that is not an input of the model"
    return None


def lower_cached(ctx: Lowering, node: ir.Node) -> list[Value]:
    q, k, v, key_cache, value_cache = (ctx.need(node, i) for i in range(5))
    past = ctx.known(ctx.need(node, 5))
    if past is None or key_cache.buf is None or value_cache.buf is None:
        raise UnsupportedError("the number of past tokens is not a model input")
    start = dim(past.reshape(-1)[0])
    hq, hkv = int_attr(node, "q_num_heads", 0), int_attr(node, "kv_num_heads", 0)
    if hq <= 0 or hkv <= 0 or hq % hkv or any(x.rank != 3 or x.dims[0] != 1 for x in (q, k, v)):
        raise UnsupportedError("query, key and value must be [1, T, heads * width]")
    caches = []
    for cache, new in ((key_cache, k), (value_cache, v)):
        assert cache.buf is not None
        stored = View(cache.buf, cache.dtype, cache.dims[1:])
        width = (new.dims[2] // hkv).const
        if width is None or new.dims[2] != dim(hkv * width) or cache.dims[3] != dim(kv_row(cache.dtype, width)):
            raise UnsupportedError(f"a cache of [{', '.join(map(str, cache.dims))}] for rows of {new.dims[2]}")
        ctx.emit("kv_write", [stored], [ctx.rows(need_f32(new)).as_dims(new.dims[1:])], [start])
        caches.append(stored)
    rows = ctx.rows(need_f32(q)).as_dims(q.dims[1:])
    out = ctx.fresh([q.dims[1], v.dims[2] // hkv * hq])
    width = q.dims[2].const or hq
    ctx.emit(
        "attention_cached", [out], [rows, *caches], [start, hq, hkv, int_attr(node, "window", 0)],
        [float_attr(node, "scale", 1.0 / math.sqrt(width // hq)), float_attr(node, "softcap", 0.0)],
    )
    y = Value((dim(1), *out.dims), Dtype.F32, identity(3), buf=out.buf)
    return [y, key_cache, value_cache]
