"""Lowering of the operators that mix tokens or pixels with weights of their own."""

from __future__ import annotations

import onnx_ir as ir

from edgec.compress.formats import Dtype
from edgec.ir.model import float_attr, int_attr
from edgec.native.dims import product
from edgec.native.lower_math import need_f32
from edgec.native.lower_nn import channels_last
from edgec.native.lower_values import Lowering, UnsupportedError, Value, View, identity

_SILU = 4


def lower_selective_scan(ctx: Lowering, node: ir.Node) -> list[Value]:
    x, delta, a, b, c, d, state = (need_f32(ctx.need(node, i)) for i in range(7))
    if x.rank != 3 or a.rank != 2 or x.dims[1].lo < 1:
        raise UnsupportedError(f"an input of [{', '.join(map(str, x.dims))}] with rates of rank {a.rank}")
    y, last = ctx.fresh(x.dims), ctx.fresh(state.dims) if _read(node, 1) else None
    ctx.emit(
        "selective_scan", [y, last],
        [ctx.rows(x), ctx.rows(delta), ctx.view(a, (1, 0)), ctx.rows(b), ctx.rows(c), _unless_zero(ctx, d),
         _unless_zero(ctx, state)],
        [int_attr(node, "softplus", 0) != 0])
    return _results(x, y, state, last)


def lower_causal_conv(ctx: Lowering, node: ir.Node) -> list[Value]:
    x, weight, bias, tail = (need_f32(ctx.need(node, i)) for i in range(4))
    if x.rank != 3 or weight.rank != 2 or x.dims[1].lo < 1:
        raise UnsupportedError(f"an input of [{', '.join(map(str, x.dims))}] with weights of rank {weight.rank}")
    read = _read(node, 1) and product(tail.dims) != 0
    y, last = ctx.fresh(x.dims), ctx.fresh(tail.dims) if read else None
    ctx.emit(
        "causal_conv1d", [y, last],
        [ctx.rows(x), ctx.view(weight, (1, 0)), _unless_zero(ctx, bias), _unless_zero(ctx, tail)],
        [_SILU if int_attr(node, "silu", 0) else 0], [0.0, 0.0])
    results = _results(x, y, tail, last)
    return results if read or not _read(node, 1) else [*results, tail]


def lower_dynamic_depthwise(ctx: Lowering, node: ir.Node) -> Value:
    x, w = need_f32(ctx.need(node, 0)), need_f32(ctx.need(node, 1))
    k = int_attr(node, "kernel_size", 0)
    shared = x.rank == 4 and w.rank == 5 and w.dims[1] != 0 and x.dims[1].exact_div(w.dims[1]) is not None
    if not shared or k < 1 or k % 2 == 0 or (w.dims[0], *w.dims[2:]) != (x.dims[0], k * k, *x.dims[2:]):
        found = [f"[{', '.join(map(str, v.dims))}]" for v in (x, w)]
        raise UnsupportedError(f"an image of {found[0]} with kernels of {found[1]}, kernel_size = {k}")
    order = channels_last(4)
    out = ctx.fresh([x.dims[a] for a in order])
    ctx.emit("dynamic_depthwise", [out], [ctx.view(x, order), ctx.view(w, (0, 3, 4, 2, 1)), None, None, None],
             [k, 0, 0], [0.0, 0.0])
    return Value(x.dims, Dtype.F32, order, buf=out.buf)


def lower_group_norm(ctx: Lowering, node: ir.Node) -> Value:
    """GroupNormalization, and InstanceNormalization, whose groups are single channels."""
    x, gamma, beta = (need_f32(ctx.need(node, i)) for i in range(3))
    groups = int_attr(node, "num_groups", 0) if node.op_type == "GroupNormalization" else x.dims[1].const
    if x.rank < 3 or not groups or x.dims[1].const is None or x.dims[1].const % groups:
        raise UnsupportedError(f"{groups} groups of [{', '.join(map(str, x.dims))}]")
    for name, factor in (("scale", gamma), ("bias", beta)):
        if factor.dims != (x.dims[1],):
            raise UnsupportedError(f"a {name} of [{', '.join(map(str, factor.dims))}] for {x.dims[1]} channels")
    order = channels_last(x.rank)
    view = ctx.view(x, order)
    out, flat = ctx.fresh(view.dims), [x.dims[0], product(x.dims[2:]), x.dims[1]]
    ctx.emit("groupnorm", [out.as_dims(flat)], [view.as_dims(flat), ctx.rows(gamma), ctx.rows(beta)], [groups, 0],
             [float_attr(node, "epsilon", 1e-5), 0.0, 0.0])
    return Value(x.dims, Dtype.F32, order, buf=out.buf)


def _results(x: Value, y: View, state: Value, last: View | None) -> list[Value]:
    """y and the state after it, which is as the one before it; what nobody reads is not there."""
    return [Value(like.dims, Dtype.F32, identity(like.rank), buf=view.buf)
            for like, view in ((x, y), (state, last)) if view is not None]


def _read(node: ir.Node, k: int) -> bool:
    return bool(node.outputs[k].uses()) or node.outputs[k].is_graph_output()


def _unless_zero(ctx: Lowering, value: Value) -> View | None:
    """None for zeros that exporters write out, and for what has no elements."""
    known = value.const
    if product(value.dims) == 0 or (known is not None and not known.load().any()):
        return None
    return ctx.rows(value)
