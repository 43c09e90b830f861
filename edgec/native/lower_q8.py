"""Lowering of 8-bit integers: what stands between DequantizeLinear and QuantizeLinear becomes one call of a kernel.

`groups` finds, at every QuantizeLinear, the operator before it (and Relu or Clip between) whose operands come from
DequantizeLinear. Arithmetic and all parameters of the kernels are about u8; INT8 is the same with 128 added
(docs/kernels.md). A group that turns out not to fit is lowered node by node, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype
from edgec.ir.model import (
    const_of,
    const_tensor,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_attr,
    ints_of,
    is_op,
    rank_of,
    required,
    scalar_of,
    single_use,
)
from edgec.native.dims import Dim, dim, product
from edgec.native.lower_math import axis_last, norm_axis, together
from edgec.native.lower_nn import as_image, channels_last, check_window, conv_window, pool_window
from edgec.native.lower_shape import concat, need_parts, reshape
from edgec.native.lower_values import Const, Dims, Lowering, UnsupportedError, Value, View, identity
from edgec.native.lower_weights import check_dequantize as check_constant
from edgec.native.lower_weights import lower_dequantize as lower_constant

_KINDS = {ir.DataType.UINT8: Dtype.U8, ir.DataType.INT8: Dtype.I8}
_TURN = {Dtype.U8: 0, Dtype.I8: 128}
_MOST_TAPS, _PRODUCT = 65536, 255 * 128  # kernels/contract/q8.h: what a sum of 32 bits holds
_MOST_SIDE, _MOST_CELLS = 1 << 15, 1 << 23  # of a window to pool: kernels/contract/checks.h, q8.h
PANEL = 16
Lower = Callable[[ir.Node], Value]


@dataclass(frozen=True)
class Codes:
    """How an activation is rounded: real = (code - zero) * scale, with codes of u8."""

    scale: float
    zero: int
    dtype: Dtype

    def of(self, real: float) -> int:
        """The code of a number."""
        return int(min(255, max(0, np.round(np.float64(real) / self.scale) + self.zero)))


def stored_dtype(node: ir.Node, codes: Codes) -> Dtype:
    """How the result of a QuantizeLinear lies in memory: as u8 where only DequantizeLinear reads it, whatever it is."""
    value = node.outputs[0]
    hidden = not value.is_graph_output() and all(is_op(u.node, "DequantizeLinear") and u.idx == 0 for u in value.uses())
    return Dtype.U8 if hidden and all(check_dequantize(u.node) is None for u in value.uses()) else codes.dtype


def codes_of(node: ir.Node) -> Codes | None:
    """The parameters of a QuantizeLinear or DequantizeLinear of 8 bits with one constant scale, else None."""
    zero, kind = input_of(node, 2), _kind(node)
    scale, shift = scalar_of(input_of(node, 1)), 0.0 if zero is None else scalar_of(zero)
    if kind not in _KINDS or scale is None or shift is None or int_attr(node, "block_size", 0):
        return None
    if not 0 < scale < math.inf or not np.float32(scale) > 0:
        return None
    return Codes(float(np.float32(scale)), int(shift) + _TURN[_KINDS[kind]], _KINDS[kind])


def _kind(node: ir.Node) -> ir.DataType | None:
    """The type of the codes that a QuantizeLinear makes or a DequantizeLinear reads."""
    zero = input_of(node, 2)
    coded = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    kind = zero.dtype if zero is not None else coded.dtype if coded is not None else None
    wanted = int_attr(node, "output_dtype", 0) if node.op_type == "QuantizeLinear" else 0
    return ir.DataType(wanted) if kind is None and wanted else kind


def check_quantize(node: ir.Node) -> str | None:
    """Only one constant scale, and float32 to 8 bits."""
    made, kind = _kind(node), required(node, 0).dtype
    if made not in _KINDS:
        return f"it rounds to {made.name if made else 'an unknown type'}, the kernels to 8 bits"
    if codes_of(node) is None:
        return "its scale is not one constant above 0"
    return None if kind in (None, ir.DataType.FLOAT) else f"it rounds {kind.name if kind else '?'}"


def check_dequantize(node: ir.Node) -> str | None:
    """A constant, or values of 8 bits with one constant scale."""
    reason = check_constant(node)
    if reason is None or node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
        return reason
    return None if codes_of(node) is not None else reason


def lower_quantize(ctx: Lowering, node: ir.Node) -> Value:
    x, codes = ctx.need(node, 0), codes_of(node)
    if codes is None or x.dtype is not Dtype.F32:
        raise UnsupportedError("it does not round float32 to 8 bits with one constant scale")
    source = ctx.view(x)
    out = ctx.fresh(source.dims, stored_dtype(node, codes))
    ctx.emit("quantize", [out], [source], [codes.zero, 0, 255], [codes.scale])
    return Value(x.dims, out.dtype, x.order, buf=out.buf)


def lower_dequantize(ctx: Lowering, node: ir.Node) -> Value:
    if const_tensor(input_of(node, 0)) is not None:
        return lower_constant(ctx, node)
    x, codes = ctx.need(node, 0), codes_of(node)
    if codes is None or x.dtype not in _TURN:
        raise UnsupportedError("it does not dequantize 8 bits with one constant scale")
    source = ctx.view(x)
    out = ctx.fresh(source.dims)
    ctx.emit("dequantize", [out], [source], [codes.zero], [codes.scale])
    return Value(x.dims, Dtype.F32, x.order, buf=out.buf)


# -- finding groups --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A computed operand: the codes behind a DequantizeLinear."""

    value: ir.Value
    codes: Codes


@dataclass(frozen=True)
class Group:
    """nodes: all that the call replaces but `last`, the QuantizeLinear. core: of them, what it computes; None: nothing
    but `bounds`, lo and hi of the result's codes."""

    last: ir.Node
    dtype: Dtype  # of the result as it is stored
    nodes: tuple[ir.Node, ...]
    core: ir.Node | None
    sources: tuple[Source, ...]
    codes: Codes
    bounds: tuple[int, int]

    def lower(self, ctx: Lowering, lower: Lower) -> Value:
        """Drafts the group; `lower` is that of one node. Raises UnsupportedError where it does not fit after all."""
        if self.core is None:
            return _mapped(ctx, ctx.values[self.sources[0].value], self, self.sources[0].codes, lambda v: v)
        return _CORES[self.core.op_type](ctx, self, self.core, lower)

    @property
    def range(self) -> list[int | Dim]:
        return [self.codes.zero, *self.bounds]


def groups(graph: ir.Graph) -> dict[ir.Node, Group]:
    """QuantizeLinear -> what becomes one call with it."""
    found = (_group(node) for node in graph if is_op(node, "QuantizeLinear"))
    return {g.last: g for g in found if g is not None}


def _source(value: ir.Value | None) -> Source | None:
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear") or const_tensor(input_of(node, 0)) is not None:
        return None
    codes = codes_of(node) if check_dequantize(node) is None else None
    return None if codes is None else Source(required(node, 0), codes)


def _bounds(node: ir.Node | None, codes: Codes) -> tuple[int, int] | None:
    """The codes between which a Relu or Clip leaves its input; None for another node."""
    if node is None or not is_op(node, "Relu", "Clip"):
        return None
    limits = [0.0, math.inf] if node.op_type == "Relu" else [-math.inf, math.inf]
    for i in (1, 2) if node.op_type == "Clip" else ():
        if input_of(node, i) is not None:
            limit = scalar_of(input_of(node, i))
            if limit is None or math.isnan(limit):
                return None
            limits[i - 1] = limit
    low, high = codes.of(limits[0]), codes.of(limits[1])
    return min(low, high), high


def _group(last: ir.Node) -> Group | None:
    codes = codes_of(last) if check_quantize(last) is None else None
    value = required(last, 0)
    if codes is None:
        return None
    dtype = stored_dtype(last, codes)
    nodes: list[ir.Node] = []
    low, high = 0, 255
    node = value.producer()
    while node is not None and single_use(value) and (bounds := _bounds(node, codes)) is not None:
        low, high = (min(high, max(low, b)) for b in bounds)  # what is clipped earlier comes later here
        nodes.append(node)
        value = required(node, 0)
        node = value.producer()
    core = node if node is not None and single_use(value) else None
    if core is not None and not core.domain and core.op_type in _CORES:
        operands = _operands(core)
        if operands is not None:
            sources = [_source(v) for v in operands[0]]
            if all(s is not None for s in sources):
                known = tuple(s for s in sources if s is not None)
                return Group(last, dtype, (*nodes, *operands[1]), core, known, codes, (low, high))
    source = _source(value)
    return None if source is None else Group(last, dtype, tuple(nodes), None, (source,), codes, (low, high))


def _operands(core: ir.Node) -> tuple[Sequence[ir.Value | None], Sequence[ir.Node]] | None:
    """The operands that have codes, and the nodes that belong to `core`; None where attributes do not fit."""
    if core.op_type in ("Conv", "MaxPool", "AveragePool") and check_window(core) is not None:
        return None
    if core.op_type in ("Conv", "Gemm", "MatMul"):
        return ([core.inputs[0]], [core]) if _weight(core) is not None else None
    if core.op_type in ("Add", "Sub"):
        product = core.inputs[0].producer() if core.inputs[0] is not None else None
        biased = core.op_type == "Add" and is_op(product, "MatMul") and _vector(core.inputs[1]) is not None
        if biased and product is not None and single_use(product.outputs[0]):
            return ([product.inputs[0]], [core, product]) if _weight(product) is not None else None
        return core.inputs, [core]
    return (core.inputs, [core]) if core.op_type == "Concat" else (core.inputs[:1], [core])


# -- products --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weight:
    """A constant weight, the axis of its output channels, and whether it is read transposed."""

    node: ir.Node  # DequantizeLinear
    axis: int
    transposed: bool


def _weight(core: ir.Node) -> _Weight | None:
    value, swapped = core.inputs[1], core.op_type == "Gemm" and bool(int_attr(core, "transB", 0))
    node = None if value is None else value.producer()
    if node is not None and is_op(node, "Transpose") and core.op_type != "Conv":
        if (ints_attr(node, "perm") or (1, 0)) != (1, 0):
            return None
        value, swapped = node.inputs[0], not swapped
        node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear") or check_constant(node) is not None:
        return None
    tensor, zero, rank = const_tensor(input_of(node, 0)), input_of(node, 2), rank_of(input_of(node, 0))
    axis = 0 if core.op_type == "Conv" or swapped else 1
    if tensor is None or tensor.dtype not in _KINDS or (rank != 2 and core.op_type != "Conv"):
        return None
    factors = dims_of(input_of(node, 1)) or ()
    along = int_attr(node, "axis", 1) % (rank or 1)
    if int_attr(node, "block_size", 0) or (math.prod(n for n in factors if isinstance(n, int)) != 1 and along != axis):
        return None
    if core.op_type == "Gemm" and (int_attr(core, "transA", 0) or float_attr(core, "alpha", 1.0) != 1.0
                                   or float_attr(core, "beta", 1.0) != 1.0):
        return None
    shift = None if zero is None else const_of(zero, 1 << 16)
    base = 128 if tensor.dtype == ir.DataType.UINT8 else 0
    # Less the zero point it must be a signed byte: u8 around 128, or s8 around 0.
    if (zero is None and base) or (zero is not None and (shift is None or (shift.astype(np.int64) != base).any())):
        return None
    return _Weight(node, axis, swapped)


def _is_row(array: Array | None) -> TypeGuard[Array]:
    return array is not None and (array.ndim == 0 or array.size == array.shape[-1])


def _vector(value: ir.Value | None) -> Array | None:
    """A constant in float64, of codes or not, that lies along the last axis only."""
    if value is None:
        return None
    node = value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        array = const_of(value, 1 << 20)
        return None if not _is_row(array) or array.dtype.kind != "f" else array.astype(np.float64).reshape(-1)
    array, scale = const_of(input_of(node, 0), 1 << 20), const_of(input_of(node, 1), 1 << 20)
    zero = input_of(node, 2)
    if not _is_row(array) or scale is None or int_attr(node, "block_size", 0):
        return None
    whole = array.astype(np.float64).reshape(-1)
    if zero is not None:
        shift = const_of(zero, 1 << 20)
        if shift is None:
            return None
        whole = whole - shift.astype(np.float64).reshape(-1)
    return np.asarray(whole * scale.astype(np.float64).reshape(-1))


@dataclass(frozen=True)
class _Product:
    """What every product of a group needs: constants in the form of its kernel."""

    codes: Const  # as stored, INT8
    bias: Const
    scale: Const


def _constants(group: Group, core: ir.Node, bias: ir.Value | None, packed: Callable[[Array], Array],
               dims: Sequence[int]) -> tuple[int, _Product]:
    """(output channels, constants); `packed` makes the stored weight of `dims` from codes [channels, ...].

    The zero point of x goes into the bias: sum((x - zero) w) = sum(x w) - zero sum(w).
    """
    weight, source, name = _weight(core), group.sources[0].codes, group.last.outputs[0].name or "q8"
    assert weight is not None
    tensor, factors = const_tensor(weight.node.inputs[0]), const_of(input_of(weight.node, 1), 1 << 20)
    if tensor is None or factors is None:
        raise UnsupportedError("the weight's scales are not constant")
    shape = tuple(int(d) for d in tensor.shape.numpy())
    channels = shape[weight.axis]
    taps = math.prod(shape) // max(1, channels)

    def read() -> Array:
        values = np.asarray(tensor.numpy())
        signed = (values.astype(np.int16) - 128).astype(np.int8) if values.dtype == np.uint8 else values
        return np.asarray(np.moveaxis(signed, weight.axis, 0))

    scales = np.broadcast_to(factors.astype(np.float32).reshape(-1), (channels,))
    unit = np.float32(source.scale) * scales
    with np.errstate(all="ignore"):
        steps = unit / np.float32(group.codes.scale)
    values = _vector(bias)
    if bias is not None and (values is None or values.size not in (1, channels)):
        raise UnsupportedError("the bias is computed at run time")
    with np.errstate(all="ignore"):
        real = np.zeros(channels) if values is None else np.broadcast_to(values, (channels,))
        whole = np.round(real / (np.float64(source.scale) * scales.astype(np.float64)))
        lost = np.abs(real - whole * (np.float64(source.scale) * scales.astype(np.float64))) / group.codes.scale
    most = np.abs(whole).max(initial=0) + _PRODUCT * taps
    if not (np.isfinite(steps).all() and (steps > 0).all() and most < 2**31 and taps <= _MOST_TAPS):
        raise UnsupportedError("a sum could leave 32 bits")
    if not (lost < 0.02).all():
        raise UnsupportedError("a bias between two steps of the sums")

    def folded() -> Array:
        sums = read().reshape(channels, -1).sum(1, dtype=np.int64)
        return np.asarray(whole.astype(np.int64) - source.zero * sums, np.int32)

    label = required(weight.node, 0).name or name
    made = _Product(
        Const(f"{label}.q8.{weight.axis}.{'_'.join(map(str, dims))}", lambda: packed(read()), tuple(dims), Dtype.I8,
              identity(len(dims)), label, tensor),
        Const(f"{name}.q8.bias", folded, (channels,), Dtype.I32, (0,), f"{label}.bias"),
        Const(f"{name}.q8.scale", lambda: steps, (channels,), Dtype.F32, (0,), f"{label}.scale"))
    return channels, made


def pack_pairs(codes: Array, groups: int) -> Array:
    """int8 [groups * N, K] as [groups, ceil(N / 16), ceil(K / 2), 32]: sixteen rows by two columns lie together."""
    n, k = codes.shape[0] // groups, codes.shape[1]
    panels, pairs = -(-n // PANEL), -(-k // 2)
    wide = np.zeros((groups, panels * PANEL, pairs * 2), np.int8)
    wide[:, :n, :k] = codes.reshape(groups, n, k)
    tiles = wide.reshape(groups, panels, PANEL, pairs, 2).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(tiles).reshape(groups, panels, pairs, 2 * PANEL)


def is_narrow(packed: Array) -> bool:
    """Whether no two neighbouring weights of a row are above 128 together: their products stay in 16 bits then."""
    return bool(np.abs(packed.astype(np.int16)).reshape(-1, 2).sum(1).max(initial=0) <= 128)


def _emit_product(ctx: Lowering, group: Group, kernel: str, out: View, x: View, params: Sequence[int | Dim],
                  made: _Product) -> None:
    narrow = [int(ctx.weights.low_bit and is_narrow(made.codes.load()))] if kernel == "conv2d_q8" else []
    ctx.emit(kernel, [out], [x, ctx.weight(made.codes), ctx.weight(made.bias), ctx.weight(made.scale)],
             [*params, group.sources[0].codes.zero, *group.range, *narrow])


def _conv(ctx: Lowering, group: Group, core: ir.Node, lower: Lower) -> Value:
    x = ctx.values[group.sources[0].value]
    shape = dims_of(core.inputs[1])
    if shape is None or not all(isinstance(d, int) for d in shape) or len(shape) not in (3, 4):
        raise UnsupportedError("the weight's shape is not known")
    channels, per_group, *window = (int(d) for d in shape if isinstance(d, int))
    count = int_attr(core, "group", 1)
    if x.rank != len(shape) or x.dims[1] != per_group * count or 0 in (channels, per_group):
        raise UnsupportedError("an input that the weight does not fit")
    params, out_size = conv_window(node=core, x=x, window=window)
    source = as_image(ctx.view(x, channels_last(x.rank)))
    out = ctx.fresh([x.dims[0], *out_size, channels], group.dtype)
    bias = input_of(core, 2)
    cells = math.prod(window)
    if count > 1 and per_group == 1 and channels == count:
        _, made = _constants(group, core, bias, lambda w: np.ascontiguousarray(w.reshape(channels, cells).T),
                             (cells, channels))
        _emit_product(ctx, group, "dwconv2d_q8", out, source, params, made)
    else:
        k = per_group * cells
        dims = (count, -(-(channels // count) // PANEL), -(-k // 2), 2 * PANEL)
        _, made = _constants(group, core, bias, lambda w: pack_pairs(np.moveaxis(w, 1, -1).reshape(channels, k), count),
                             dims)
        _emit_product(ctx, group, "conv2d_q8", out, source, [*params, count], made)
    y_dims = (x.dims[0], dim(channels), *out_size[4 - x.rank :])
    return Value(y_dims, group.dtype, channels_last(x.rank), buf=out.buf)


def _linear(ctx: Lowering, group: Group, core: ir.Node, lower: Lower) -> Value:
    bias = input_of(core, 2) if core.op_type == "Gemm" else None
    if core.op_type == "Add":
        bias, core = core.inputs[1], group.nodes[-1]
    x, shape = ctx.values[group.sources[0].value], dims_of(core.inputs[1])
    weight = _weight(core)
    if shape is None or weight is None or x.rank < 2 or not all(isinstance(d, int) for d in shape):
        raise UnsupportedError("the weight's shape is not known")
    transposed = core.op_type == "Gemm" and bool(int_attr(core, "transB", 0))
    k, n = (int(d) for d in (reversed(shape) if transposed else shape) if isinstance(d, int))
    if x.dims[-1] != k or not n or not k:
        raise UnsupportedError("an input that the weight does not fit")
    axes = 0 if bias is None else rank_of(bias)
    if axes is None or axes > x.rank:
        raise UnsupportedError("a bias that makes the product a tensor of more axes")
    order = axis_last(x, x.rank - 1)
    source = ctx.view(x, order)
    dims: Dims = (*x.dims[:-1], dim(n))
    out = ctx.fresh([dims[a] for a in order], group.dtype)
    rows = product(x.dims[:-1])
    _, made = _constants(group, core, bias, lambda w: pack_pairs(w, 1), (1, -(-n // PANEL), -(-k // 2), 2 * PANEL))
    _emit_product(ctx, group, "conv2d_q8", out.as_dims([rows, 1, 1, n]), source.as_dims([rows, 1, 1, k]),
                  [1, 1, 1, 1, 0, 0, 1, 1, 1], made)
    return Value(dims, group.dtype, order, buf=out.buf)


# -- the rest --------------------------------------------------------------------------------------------------------


def _mapped(ctx: Lowering, x: Value, group: Group, codes: Codes, function: Callable[[Array], Array]) -> Value:
    """`function` of each value by a table, in the group's codes; `x` itself where that changes nothing."""
    real = (np.arange(256) - codes.zero) * np.float64(codes.scale)
    with np.errstate(all="ignore"):
        steps = np.round(function(real) / group.codes.scale)
    table = np.clip(np.nan_to_num(steps) + group.codes.zero, *group.bounds).astype(np.uint8)
    if x.dtype is group.dtype and (table == np.arange(256)).all():
        return x
    source = ctx.view(x)
    out = ctx.fresh(source.dims, group.dtype)
    name = f"table.{table.tobytes().hex()}"
    stored = ctx.weight(Const(name, lambda: table, (256,), Dtype.U8, (0,), f"{group.last.outputs[0].name}.table"))
    ctx.emit("table_q8", [out], [source, stored])
    return Value(x.dims, group.dtype, x.order, buf=out.buf)


def _add(ctx: Lowering, group: Group, core: ir.Node, lower: Lower) -> Value:
    if len(group.sources) == 1:
        return _linear(ctx, group, core, lower)
    a, b = (ctx.values[s.value] for s in group.sources)
    if a.dims != b.dims:
        raise UnsupportedError("operands that broadcast")
    ratios = [s.codes.scale / group.codes.scale for s in group.sources]
    # 28 bits of the larger factor: docs/kernels.md.
    shift = 27 - math.frexp(max(ratios))[1]
    if not 0 <= shift <= 60:
        raise UnsupportedError("scales that are too far apart")
    factors = [min(2**28 - 1, round(math.ldexp(r, shift))) for r in ratios]
    if core.op_type == "Sub":
        factors[1] = -factors[1]
    views, order, dims = together(ctx, [a, b])
    out = ctx.fresh([dims[k] for k in order], group.dtype)
    ctx.emit("add_q8", [out], views, [*(s.codes.zero for s in group.sources), *group.range, *factors, shift])
    return Value(dims, group.dtype, order, buf=out.buf)


def _pool(ctx: Lowering, group: Group, core: ir.Node, lower: Lower) -> Value:
    x = ctx.values[group.sources[0].value]
    average = core.op_type != "MaxPool"
    if core.op_type in ("MaxPool", "AveragePool"):
        params, out_size = pool_window(core, x)
        kept = (*x.dims[:2], *out_size[4 - x.rank :])
    else:
        axes = ints_of(input_of(core, 1)) if core.op_type == "ReduceMean" else tuple(range(2, x.rank))
        wanted = sorted(norm_axis(a, x.rank) for a in axes or ())
        if x.rank not in (3, 4) or wanted != list(range(2, x.rank)):
            raise UnsupportedError("a mean of other axes than those of an image")
        size = [dim(1)] * (4 - x.rank) + list(x.dims[2:])
        params, out_size = [*size, 1, 1, 0, 0, 1, 1], [dim(1), dim(1)]
        kept = (*x.dims[:2], *[dim(1)] * (x.rank - 2))
    high, wide = (dim(k).hi for k in params[:2])
    if max(high, wide) > _MOST_SIDE or high * wide > _MOST_CELLS:
        raise UnsupportedError("a window that is too large")
    source = as_image(ctx.view(x, channels_last(x.rank)))
    out = ctx.fresh([x.dims[0], *out_size, x.dims[1]], group.dtype)
    counted = core.op_type == "AveragePool" and int_attr(core, "count_include_pad", 0)
    ctx.emit("pool2d_q8", [out], [source],
             [average, *params, counted, group.sources[0].codes.zero, *group.range],
             [group.sources[0].codes.scale / group.codes.scale])
    y = Value(kept, group.dtype, channels_last(x.rank), buf=out.buf)
    if core.op_type == "ReduceMean" and not int_attr(core, "keepdims", 1):
        return reshape(ctx, y, x.dims[:2])
    return y


def _concat(ctx: Lowering, group: Group, core: ir.Node, lower: Lower) -> Value:
    parts = [_mapped(ctx, ctx.values[s.value], group, s.codes, lambda v: v) for s in group.sources]
    axis = norm_axis(int_attr(core, "axis", 0), parts[0].rank)
    need_parts(parts, axis)
    return concat(ctx, parts, axis)


def _moved(ctx: Lowering, group: Group, core: ir.Node, lower: Lower) -> Value:
    """What only moves values, on codes."""
    (source,), value = group.sources, required(core, 0)
    dense = ctx.values[value]
    ctx.values[value] = ctx.values[source.value]
    try:
        moved = lower(core)
    finally:
        ctx.values[value] = dense
    return _mapped(ctx, moved, group, source.codes, lambda v: v)


def _unary(function: Callable[[Array, ir.Node], Array]) -> Callable[..., Value]:
    def lowered(ctx: Lowering, group: Group, core: ir.Node, lower: Lower) -> Value:
        (source,) = group.sources
        return _mapped(ctx, ctx.values[source.value], group, source.codes, lambda v: function(v, core))

    return lowered


def _sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


def _hard(v: Array, node: ir.Node) -> Array:
    return np.clip(float_attr(node, "alpha", 0.2) * v + float_attr(node, "beta", 0.5), 0, 1)


_CORES: Mapping[str, Callable[[Lowering, Group, ir.Node, Lower], Value]] = {
    "Conv": _conv, "Gemm": _linear, "MatMul": _linear, "Add": _add, "Sub": _add, "Concat": _concat,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"), _pool),
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity"), _moved),
    "Sigmoid": _unary(lambda v, node: _sigmoid(v)), "Tanh": _unary(lambda v, node: np.tanh(v)),
    "HardSigmoid": _unary(_hard), "HardSwish": _unary(lambda v, node: v * np.clip(v / 6 + 0.5, 0, 1)),
    "LeakyRelu": _unary(lambda v, node: np.where(v < 0, v * float_attr(node, "alpha", 0.01), v)),
}
