"""Scratch memory per thread, so that the memory table can state it before anything is built for the device.

The runtime asks its own kernels (`*_scratch` in kernels/contract/) and allocates the larger of both figures; what
stands here is the same arithmetic, and tests/native/test_run.py compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgec.compress.formats import PANEL, Dtype
from edgec.native.dims import Dim, product
from edgec.native.plan import ALIGN, Call

_WIDEN_ROWS = 13  # from here on 16-bit weights are widened once per panel
# Few-bit weights: most rows that are looked up, fewest that are not, bytes of a decoded block.
_TABLE_ROWS, _MANY_ROWS, _DECODED = 16, 5, 16384
_SEQUENCES = 8  # that a recurrent layer works on together
_QUERY_ROWS, _SPAN = 48, 64  # rows and positions that attention works on together


def scratch_bytes(calls: Iterable[Call]) -> int:
    """The most bytes that one call needs per thread, with every symbol at its maximum."""
    return max((-(-_call(c) // ALIGN) * ALIGN for c in calls), default=0)


def _call(call: Call) -> int:
    match call.kernel:
        case "linear" | "linear_split":
            x, weight = call.inputs[:2]
            wide = weight.dtype is Dtype.F32 or product(x.dims[:-1]).hi < _WIDEN_ROWS
            return 0 if wide else 2 * PANEL * weight.dims[1].hi * 4
        case "linear_bits":
            return _bits(product(call.operands[1].dims[:-1]).hi, call.operands[1].dims[-1].hi, _int(call.ints[4]))
        case "linear_bits_split":
            return _bits(product(call.operands[4].dims[:-1]).hi, call.operands[4].dims[-1].hi, _int(call.ints[1]))
        case "conv2d":
            weight, k = call.operands[2], call.operands[2].dims[2].hi
            block = max(4, min(8, 131072 // max(1, k) // 12)) * 12
            return (block + (0 if weight.dtype is Dtype.F32 else 2 * PANEL)) * k * 4
        case "rnn":
            y, weight = call.operands[0], call.operands[4]
            return min(_SEQUENCES, y.dims[1].hi) * y.dims[2].hi * (weight.dims[0].hi + 2) * 4
        case "matmul":
            return 2 * PANEL * call.operands[1].dims[-1].hi * 4
        case "attention":
            return _attention(call, call.operands[0].dims[1], _int(call.ints[0]), _int(call.ints[1]))
        case "attention_cached":
            return _attention(call, call.operands[0].dims[0], _int(call.ints[1]), _int(call.ints[2]))
        case _:
            return 0


def _bits(rows: int, k: int, group: int) -> int:
    """Sums of 64 columns, and tables of each row's activations or, of more rows, activations in 16 bits with scales;
    never less than fewer rows need."""
    padded, chunks, groups = -(-rows // 16) * 16, -(-k // 32), -(-k // group)
    tables = -(-(chunks * 256 + groups * 8) // ALIGN) * ALIGN
    decoded = padded * (chunks * 64 + groups * 4) + _DECODED if rows >= _MANY_ROWS else 0
    return padded * 64 * 4 + max(min(rows, _TABLE_ROWS) * tables, decoded)


def _attention(call: Call, tokens: Dim, hq: int, hkv: int) -> int:
    y, q = call.operands[0], call.operands[1]
    d, dv = (-(-o.dims[-1].hi // hq // PANEL) * PANEL for o in (q, y))
    group = hq // hkv
    rows = max(1, min(tokens.hi, _QUERY_ROWS // group)) * group
    return (rows * (d + _SPAN + dv + 2) + _SPAN * (d + dv)) * 4


def _int(value: int | Dim) -> int:
    return value.hi if isinstance(value, Dim) else value
