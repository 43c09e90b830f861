"""What one call of a plan reads, writes and multiplies, from its operands alone: what GB/s and GOP/s are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from edgec.native.dims import Dim
from edgec.native.plan import KERNELS, Call, Operand, Plan, Space


@dataclass(frozen=True)
class Cost:
    """Of one execution. macs: multiply-accumulates of the operation as it is defined, whatever the kernel does instead
    (Winograd does fewer). weight_bytes, activation_bytes: each operand once, of tables and caches only what is read."""

    macs: int
    weight_bytes: int
    activation_bytes: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


class _Sizes:
    """A call's dims and ints with every symbol bound."""

    def __init__(self, call: Call, bindings: Mapping[str, int]) -> None:
        self.call, self.bindings = call, bindings
        self.ints = [i.at(bindings) if isinstance(i, Dim) else i for i in call.ints]

    def dims(self, index: int) -> tuple[int, ...]:
        return tuple(d.at(self.bindings) for d in self.call.operands[index].dims)

    def count(self, index: int) -> int:
        """Values of an operand; 0 for one that is absent."""
        return prod(self.dims(index)) if self.call.operands[index].space is not Space.NONE else 0

    def last(self, index: int) -> int:
        return self.dims(index)[-1]


def _attended(rows: int, first: int, window: int, most: int) -> int:
    """Pairs of query and key: row t sees positions up to first + t, of them the newest `window` (0: all), at most
    `most`."""
    return sum(min(max(0, first + t + 1), most, window or most) for t in range(rows))


def _mbconv2d(s: _Sizes) -> int:
    inner, outputs = s.last(4), s.count(0) // max(1, s.last(0))
    return s.count(1) * (inner if s.count(2) else 0) + outputs * inner * (s.ints[0] * s.ints[1] + s.last(0))


def _attention_cached(s: _Sizes) -> int:
    past, _, _, window = s.ints[:4]
    rows = s.dims(1)[0]
    return (s.last(1) + s.last(0)) * _attended(rows, past, window, past + rows)


def _attention(s: _Sizes) -> int:
    batch, rows, _ = s.dims(1)
    keys = s.dims(2)[1]
    pairs = _attended(rows, s.ints[3], 0, keys) if s.ints[2] else rows * keys
    return batch * (s.last(1) + s.last(0)) * pairs


def _split(s: _Sizes) -> int:
    outs = KERNELS[s.call.kernel].n_out
    return sum(s.count(i) for i in range(outs)) * s.last(outs)


def _conv(s: _Sizes) -> int:
    return s.count(0) * s.ints[0] * s.ints[1] * s.last(1) // s.ints[8]


# Kernels that multiply; the others move, compare, add or look up values. Operands and ints: docs/kernels.md.
_MACS: dict[str, Callable[[_Sizes], int]] = {
    "linear": lambda s: s.count(0) * s.last(1), "linear_bits": lambda s: s.count(0) * s.last(1),
    "linear_split": _split, "linear_bits_split": _split, "conv2d": _conv, "conv2d_q8": _conv,
    "conv2d_winograd": lambda s: s.count(0) * 9 * s.last(1),
    "conv2d_bits": lambda s: s.count(0) * s.ints[0] * s.ints[1] * s.last(1),
    "dwconv2d": lambda s: s.count(0) * s.ints[0] * s.ints[1],
    "dwconv2d_q8": lambda s: s.count(0) * s.ints[0] * s.ints[1],
    "mbconv2d": _mbconv2d, "dynamic_depthwise": lambda s: s.count(0) * s.ints[0] ** 2,
    "rnn": lambda s: s.count(3) * s.last(0), "selective_scan": lambda s: 3 * s.count(0) * s.dims(4)[0],
    "causal_conv1d": lambda s: s.count(0) * s.dims(3)[0], "matmul": lambda s: s.count(0) * s.last(1),
    "resize2d": lambda s: s.count(0) * s.last(2) * s.last(4),
    "attention_cached": _attention_cached, "attention": _attention,
}
# Kernels that read a few rows of a table: which operand that is.
_TABLE = {"gather": 1, "gather_bits": 1}


def _touched(s: _Sizes, index: int, operand: Operand) -> int:
    """Bytes of an operand that a run reads or writes."""
    whole = operand.bytes.at(s.bindings)
    if s.call.kernel == "gather_bits" and index == _TABLE["gather_bits"]:
        return whole * s.dims(0)[0] // max(1, s.ints[0])
    if index == _TABLE.get(s.call.kernel):
        return s.count(0) * operand.dtype.size
    if s.call.kernel == "kv_write" and index == 0:
        return whole * s.dims(1)[0] // max(1, s.dims(0)[1])
    if s.call.kernel == "attention_cached" and index in (2, 3):
        past, _, _, window = s.ints[:4]
        rows, capacity = s.dims(1)[0], s.dims(index)[1]
        seen = past + rows if not window else min(past + rows, window + rows - 1)
        return whole * seen // max(1, capacity)
    return whole


def call_cost(call: Call, bindings: Mapping[str, int]) -> Cost:
    """The cost of `call` with every symbol bound. Raises KeyError for an unbound symbol."""
    sizes = _Sizes(call, bindings)
    weights = activations = 0
    for index, operand in enumerate(call.operands):
        if operand.space is Space.NONE:
            continue
        if operand.space is Space.WEIGHT:
            weights += _touched(sizes, index, operand)
        else:
            activations += _touched(sizes, index, operand)
    macs = _MACS.get(call.kernel)
    return Cost(macs(sizes) if macs else 0, weights, activations)


def bindings_of(plan: Plan, **values: int) -> dict[str, int]:
    """Every symbol of a plan: `values`, the others at their maximum."""
    return {symbol.name: symbol.max for dim in plan.dims() for symbol in dim.symbols} | values
