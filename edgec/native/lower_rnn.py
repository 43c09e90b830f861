"""Lowering of RNN, GRU and LSTM: a linear projects all inputs, an `rnn` call per direction takes the steps."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgec.compress.formats import Array, Dtype, Format
from edgec.ir.model import float_attr, input_of, int_attr, str_attr
from edgec.native.dims import dim
from edgec.native.lower_math import need_f32, reorder
from edgec.native.lower_nn import linear
from edgec.native.lower_shape import concat, cut
from edgec.native.lower_values import Const, Lowering, UnsupportedError, Value, View, identity

_DIRECTIONS = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}  # which of them run backwards


@dataclass(frozen=True)
class _Kind:
    """gates per unit, in ONNX's order, which is the kernel's; activations of one direction."""

    gates: int
    activations: tuple[str, ...]


_KINDS = {
    "RNN": _Kind(1, ("Tanh",)), "GRU": _Kind(3, ("Sigmoid", "Tanh")), "LSTM": _Kind(4, ("Sigmoid", "Tanh", "Tanh")),
}
_MODES = {"RNN": 0, "GRU": 3, "LSTM": 4}
_RELU, _GRU_LINEAR = 1, 2


def _activations(node: ir.Node) -> tuple[str, ...]:
    attribute = node.attributes.get("activations")
    directions = len(_DIRECTIONS.get(str_attr(node, "direction", "forward"), (0,)))
    return tuple(attribute.as_strings()) if attribute is not None else _KINDS[node.op_type].activations * directions


def check_rnn(node: ir.Node) -> str | None:
    """Attributes and inputs that the kernel does not have; torch's exporter uses none of them."""
    direction = str_attr(node, "direction", "forward")
    if direction not in _DIRECTIONS:
        return f"direction = {direction!r}"
    count, found = len(_DIRECTIONS[direction]), _activations(node)
    allowed = [_KINDS[node.op_type].activations * count]
    if node.op_type == "RNN":
        allowed.append(("Relu",) * count)
    if found not in allowed:
        return f"activations = {list(found)}; the kernel has {' or '.join(str(list(a)) for a in allowed)}"
    if float_attr(node, "clip", 0.0) or int_attr(node, "input_forget", 0):
        return "clip or input_forget"
    if input_of(node, 4) is not None:
        return "sequence_lens; a session takes sequences of one length"
    return "peephole weights" if node.op_type == "LSTM" and input_of(node, 7) is not None else None


def lower_rnn(ctx: Lowering, node: ir.Node) -> list[Value]:
    """X [T, B, I] (layout 1: [B, T, I]) to Y [T, D, B, H] ([B, T, D, H]), Y_h [D, B, H] ([B, D, H]) and Y_c."""
    x, batch_first = need_f32(ctx.need(node, 0)), bool(int_attr(node, "layout", 0))
    w, r = ctx.need(node, 1).const, ctx.need(node, 2).const
    bias_value = ctx.get(node, 3)
    if w is None or r is None or (bias_value is not None and bias_value.const is None):
        raise UnsupportedError("the weights are computed at run time")
    bias = None if bias_value is None else bias_value.const
    states = [ctx.get(node, i) for i in (5, 6)]
    _check_shapes(node, x, w, r, bias, states)
    if batch_first:
        x, states = reorder(x, (1, 0, 2)), [None if s is None else reorder(s, (1, 0, 2)) for s in states]
    steps = Value(x.dims, Dtype.F32, identity(3), buf=ctx.rows(x).buf)
    backwards = _DIRECTIONS[str_attr(node, "direction", "forward")]
    parts = [_direction(ctx, node, steps, d, w, r, bias, states, back) for d, back in enumerate(backwards)]
    y = concat(ctx, [p[0] for p in parts], 1)
    results = [reorder(y, (2, 0, 1, 3)) if batch_first else y]
    for k in (1, 2):
        last = [p[k] for p in parts]
        if len(node.outputs) > k and all(v is not None for v in last):
            state = concat(ctx, [v for v in last if v is not None], 0)
            results.append(reorder(state, (1, 0, 2)) if batch_first else state)
        else:
            results.append(y)  # nobody reads it
    return results[: len(node.outputs)]


def _check_shapes(node: ir.Node, x: Value, w: Const, r: Const, bias: Const | None, states: list[Value | None]) -> None:
    """Raises UnsupportedError for sizes that do not fit together."""
    directions, gates = len(_DIRECTIONS[str_attr(node, "direction", "forward")]), _KINDS[node.op_type].gates
    units = r.dims[-1] if r.dims else 0
    rows = gates * units
    if units < 1 or x.rank != 3 or w.dims != (directions, rows, x.dims[2].const) or r.dims != (
            directions, rows, units) or (bias is not None and bias.dims != (directions, 2 * rows)):
        raise UnsupportedError(f"input [{', '.join(map(str, x.dims))}] with weights {list(w.dims)}, {list(r.dims)} and "
                               f"bias {list(bias.dims) if bias else 'none'} in {directions} direction(s)")
    if x.dims[1 if int_attr(node, "layout", 0) else 0].lo < 1:
        raise UnsupportedError("a sequence that may have no step")
    wanted = (x.dims[0], dim(directions), dim(units)) if int_attr(node, "layout", 0) else (
        dim(directions), x.dims[1], dim(units))
    for state in states:
        if state is not None and state.dims != wanted:
            raise UnsupportedError(f"an initial state [{', '.join(map(str, state.dims))}]; wanted "
                                   f"[{', '.join(map(str, wanted))}]")


def _direction(ctx: Lowering, node: ir.Node, x: Value, d: int, w: Const, r: Const, bias: Const | None,
               states: list[Value | None], backwards: int) -> tuple[Value, Value | None, Value | None]:
    """(Y [T, 1, B, H], Y_h [1, B, H], Y_c) of direction `d`; what nobody reads is None."""
    gates, units = _KINDS[node.op_type].gates, r.dims[2]
    mode = _MODES[node.op_type]
    if node.op_type == "RNN" and _activations(node)[0] == "Relu":
        mode = _RELU
    apart = node.op_type == "GRU" and bool(int_attr(node, "linear_before_reset", 0))
    if apart:
        mode = _GRU_LINEAR

    def joined(a: Array) -> Array:
        """Both biases are added at once, but for the one inside GRU's reset."""
        one = a[d].reshape(2, gates * units).copy()
        if apart:
            one[1, 2 * units :] = 0
        total: Array = one.sum(axis=0)
        return total

    projection = w.derive(f"d{d}", w.dims[1:], lambda a: a[d])
    recurrence = r.derive(f"d{d}", (gates, units, units), lambda a: a[d].reshape(gates, units, units))
    added = None if bias is None else ctx.weight(bias.derive(f"d{d}.{apart}", (gates * units,), joined))
    inner = None
    if apart and bias is not None:
        inner = ctx.weight(bias.derive(f"d{d}.reset", (units,), lambda a: a[d, -units:]))
    projected = linear(ctx, x, projection, added)
    steps, batch = x.dims[0], x.dims[1]
    out = ctx.fresh([steps, batch, units])
    last = [ctx.fresh([batch, units]) if _read(node, k) else None for k in (1, 2)]
    ctx.emit(
        "rnn", [out, *last],
        [ctx.rows(projected), ctx.weight(recurrence, Format.PANEL16, wide=False), inner,
         *(_initial(ctx, s, d) for s in states)],
        [mode, backwards],
    )
    y = Value((steps, dim(1), batch, dim(units)), Dtype.F32, identity(4), buf=out.buf)
    h, c = (None if v is None else Value((dim(1), batch, dim(units)), Dtype.F32, identity(3), buf=v.buf) for v in last)
    return y, h, c


def _read(node: ir.Node, k: int) -> bool:
    return len(node.outputs) > k and (bool(node.outputs[k].uses()) or node.outputs[k].is_graph_output())


def _initial(ctx: Lowering, state: Value | None, d: int) -> View | None:
    """Direction `d` of an initial state [D, B, H]; None for the zeros that exporters write out."""
    if state is None or (state.const is not None and not state.const.load().any()):
        return None
    one = cut(ctx, need_f32(state), [dim(d), dim(0), dim(0)], [1, 1, 1], (dim(1), *state.dims[1:]))
    return ctx.rows(one).as_dims(state.dims[1:])
