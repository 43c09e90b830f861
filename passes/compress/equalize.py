"""Scales the channels between two linears so that their weights have the same range on either side.

y = W2 f(W1 x + b1), f(s u) = s f(u) for s > 0: W1 and b1 divided by s per output channel, W2 times s per input channel
compute the same. s = sqrt(r1 r2) / r2 with r the largest weight of the channel makes both ranges sqrt(r1 r2); chains of
linears are gone through until nothing moves. Source: Nagel et al., Data-Free Quantization, arXiv 1906.04721.

f is nothing or a Relu. A Clip from 0 to a bound has no such s: its bound would have to be one per channel, an operator
that no integer kernel has and whose saturation no scale can be. So the bound stays as it is, and channels that reach it
on the samples keep s = 1; the others may take an s that keeps them a tenth below it. On the samples nothing changes;
elsewhere a channel that was never seen near the bound may be cut at another value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.compress.regions import Region, find_regions
from edgec.compress.static import Static, channel_maxima
from edgec.ir.model import const_of, const_tensor, describe, dims_of, int_attr, is_op, required, single_use
from edgec.ir.passes import Context, Pass
from edgec.ir.weights import opened

_SWEEPS = 40
_STILL = 1e-3
_MARGIN = 1.1
_CHANNELS = 1 << 20


@dataclass
class _Pair:
    """first's result is read by second alone, channel by channel. low: the least s per channel, high: the largest."""

    first: Region
    second: Region
    low: Array
    high: Array


class Equalize(Pass):
    """Where `ctx.static` asks for it. Declines weights that are shared, results that others read, activations other
    than Relu and a Clip from 0. Not exact: a bound is kept on the samples alone."""

    exact: ClassVar[bool] = False

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        static = ctx.static
        if not isinstance(static, Static) or not static.equalize:
            return model, False
        linears = [r for r in find_regions(model)[0] if r.weight is not None]
        pairs = []
        for first in linears:
            second = next((r for r in linears if r.inputs[0] is first.out), None)
            if second is None:
                continue
            reason = _refusal(first, second)
            ctx.rules.add(self.name, f"{first.name} -> {second.name}", reason)
            if not reason:
                channels = _shape(first)[0]
                pairs.append(_Pair(first, second, np.full(channels, 1e-4), np.full(channels, 1e4)))
        bounded = [p for p in pairs if p.first.bounds is not None and p.first.bounds[1] is not None]
        # The largest values before the bound: those after it do not say how far a channel goes.
        maxima = channel_maxima(model, [p.first.raw for p in bounded], static.samples, static.progress)
        for pair in bounded:
            bound = (pair.first.bounds or (0.0, None))[1] or 0.0
            least = maxima[pair.first.raw.name or ""] * _MARGIN / bound
            free = least < 1
            pair.low = np.where(free, np.maximum(least, pair.low), 1.0)
            pair.high = np.where(free, pair.high, 1.0)
        return model, _equalize(model, pairs)


def _refusal(first: Region, second: Region) -> str:
    if not single_use(first.out):
        return f"the result of {describe(first.node)} is read by others, too"
    for region in (first, second):
        weight = region.weight
        if weight is None or not single_use(weight) or (is_op(region.node, "MatMul")
                                                        and not single_use(required(region.node, 1))):
            return f"the weight of {describe(region.node)} is shared"
    if first.bias is not None and not single_use(_bias(first)):
        return f"the bias of {describe(first.node)} is shared"
    if first.bias is not None and const_of(_bias(first), _CHANNELS) is None:
        return f"the bias of {describe(first.node)} is no constant"
    if first.bounds is not None and first.bounds[0] != 0:
        return f"{describe(first.activation or first.node)} does not begin at 0"
    bound = None if first.bounds is None else first.bounds[1]
    if bound is not None and (bound <= 0 or not is_op(first.node, "Conv")):
        return f"{describe(first.activation or first.node)} has a bound"
    if is_op(first.node, "Conv") != is_op(second.node, "Conv"):
        return "the channels of a convolution and of a matrix are on different axes"
    groups = int_attr(second.node, "group", 1)
    shape = _shape(second)
    if is_op(second.node, "Conv") and groups > 1 and (groups != shape[0] or shape[1] != 1):
        return f"{describe(second.node)} has {groups} groups"
    return ""


def _bias(region: Region) -> ir.Value:
    """The initializer that is added to the result of a linear."""
    node = region.node
    if not is_op(node, "MatMul"):
        return required(node, 2)
    add = region.chain[1]
    return required(add, 0 if const_tensor(add.inputs[0]) is not None else 1)


def _shape(region: Region) -> tuple[int, ...]:
    dims = dims_of(region.weight) or ()
    return tuple(d for d in dims if isinstance(d, int))


def _equalize(model: ir.Model, pairs: Sequence[_Pair]) -> bool:
    """Finds s for all pairs on the ranges of channels, then changes each weight once."""
    weights: dict[ir.Value, Array] = {}
    for pair in pairs:
        for region in (pair.first, pair.second):
            if region.weight is not None and region.weight not in weights:
                with opened(region.weight) as values:
                    weights[region.weight] = np.array(values, np.float64)
    total: list[Array] = [np.ones(len(p.low)) for p in pairs]
    for _ in range(_SWEEPS):
        moved = 0.0
        for i, pair in enumerate(pairs):
            first, second = pair.first.weight, pair.second.weight
            assert first is not None  # linears
            assert second is not None
            w1, w2 = weights[first], weights[second]
            depthwise = int_attr(pair.second.node, "group", 1) > 1
            r1 = np.abs(w1).reshape(len(w1), -1).max(1)
            r2 = np.abs(w2).reshape(len(w2), -1).max(1) if depthwise else np.abs(w2).max(
                tuple(a for a in range(w2.ndim) if a != 1))
            live = (r1 > 0) & (r2 > 0)
            wanted = total[i] * np.where(live, np.sqrt(r1 / np.where(live, r2, 1.0)), 1.0)
            s = np.clip(wanted, pair.low, pair.high) / total[i]
            total[i] = total[i] * s
            _along(w1, 1 / s, 0)
            _along(w2, s, 0 if depthwise else 1)
            moved = max(moved, float(np.abs(np.log(s)).max()))
        if moved < _STILL:
            break
    changed = any(not np.array_equal(s, np.ones(len(s))) for s in total)
    if changed:
        for value, array in weights.items():
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        for pair, s in zip(pairs, total, strict=True):
            if pair.first.bias is not None:
                bias = _bias(pair.first)
                array = np.asarray(pair.first.bias, np.float64) / np.asarray(s, np.float64)
                bias.const_value = ir.tensor(array.astype(np.float32), name=bias.name)
                bias.shape = ir.Shape(array.shape)
    return changed


def _along(weight: Array, factor: Array, axis: int) -> None:
    shape = [1] * weight.ndim
    shape[axis] = -1
    weight *= factor.reshape(shape)
