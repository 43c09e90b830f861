"""Puts depthwise-separable pairs in the place of dense convolutions; compress/decouple.py has found the factors.

    y = Conv(x, W)   becomes   y = Conv1x1(Conv(Concat(x, ..., x), filters, group=r Ci), columns)

The r filters of every channel are a depthwise convolution with multiplier r. ONNX would put the r results of a channel
beside each other; here they come pair after pair, which keeps neighbouring channels neighbours: as x repeated, which
the native backend never makes (it reads x again), and which any other backend runs as it stands. Strides, dilations
and pads belong to the depthwise part, bias and shift to the pointwise one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.compress.decouple import Pairs
from edgec.errors import EdgecError
from edgec.ir.model import (
    Builder,
    const_of,
    const_tensor,
    input_of,
    int_attr,
    ints_attr,
    is_op,
    required,
    splice,
    str_attr,
)
from edgec.ir.passes import Context, Pass

_STAGE = "pass decouple_conv"
_CHANNELS = 1 << 20


class DecoupleConv(Pass):
    """Replaces every convolution whose weight is named in `ctx.decoupled` (initializer -> Pairs).

    Declines weights that more than one node reads. Raises EdgecError (E0002) for a name or a shape that the model does
    not have: the factors belong to another model.
    """

    exact: ClassVar[bool] = False

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        for name, pairs in ctx.decoupled.items():
            if not isinstance(pairs, Pairs):
                raise TypeError(f"{name}: {type(pairs).__name__} are no pairs")
            value = model.graph.initializers.get(name)
            tensor = const_tensor(value)
            if value is None or tensor is None:
                raise _foreign(name, "no such weight in the model", "the name of an initializer")
            dims = tuple(int(d) for d in tensor.shape.numpy())
            fitting = (pairs.pointwise.shape[0], pairs.depthwise.shape[1], *pairs.depthwise.shape[2:])
            if dims != fitting:
                raise _foreign(name, f"pairs for a weight {list(fitting)}", f"pairs for {list(dims)}")
            reason = _refusal(value)
            ctx.rules.add(self.name, name, reason)
            if not reason:
                _replace(next(iter(value.uses())).node, name, pairs, dims)
                del model.graph.initializers[name]
        return model, ctx.rules.modified


def _foreign(name: str, found: str, wanted: str) -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=name, found=found, wanted=wanted,
                      hint="use pairs that were fitted to this model")


def _refusal(value: ir.Value) -> str:
    """Why a convolution must stay; "" when it can be replaced."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or value.is_graph_input():
        return f"{len(uses)} nodes read its weight"
    node, index = uses[0].node, uses[0].idx
    if not is_op(node, "Conv") or index != 1:
        return "no convolution reads it"
    if int_attr(node, "group", 1) != 1:
        return "it has groups"
    if str_attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its padding depends on the input's size"
    bias = input_of(node, 2)
    return "its bias is computed" if bias is not None and const_of(bias, _CHANNELS) is None else ""


def _replace(node: ir.Node, name: str, pairs: Pairs, dims: tuple[int, ...]) -> None:
    op, x, bias = Builder(node), required(node, 0), input_of(node, 2)
    kind = x.dtype or ir.DataType.FLOAT
    outputs, rank, axes = dims[0], pairs.rank, len(dims) - 2
    shift = pairs.shift.astype(np.float64) + (0 if bias is None else np.asarray(const_of(bias, _CHANNELS), np.float64))
    repeated = x if rank == 1 else op.Concat(*[x] * rank, axis=1)
    filters = op.const(pairs.depthwise.reshape(rank * dims[1], 1, *dims[2:]), kind, f"{name}.filters")
    inner = op.Conv(repeated, filters, group=rank * dims[1], kernel_shape=dims[2:], strides=ints_attr(node, "strides"),
                    dilations=ints_attr(node, "dilations"), pads=ints_attr(node, "pads"))
    columns = op.const(pairs.pointwise.reshape(outputs, -1, *[1] * axes), kind, f"{name}.columns")
    shifted = bias is not None or bool(pairs.shift.any())
    out = op.Conv(inner, columns, op.const(shift, kind, f"{name}.bias") if shifted else None, kernel_shape=[1] * axes)
    splice(node, op, [out])
