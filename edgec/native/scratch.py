"""Scratch memory per thread, so that the memory table can state it before anything is built for the device.

The runtime asks its own kernels (`*_scratch` in kernels/contract/) and allocates the larger of both figures; what
stands here is the same arithmetic, and tests/native/test_run.py compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgec.compress.formats import CHUNK, PANEL, TILE, Dtype, PaletteSpec
from edgec.native.dims import Dim, product
from edgec.native.plan import ALIGN, Call, LowBitMatrix, low_bit_matrices

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
            return _bits(product(call.operands[1].dims[:-1]).hi, call)
        case "linear_bits_split":
            return _bits(product(call.operands[4].dims[:-1]).hi, call)
        case "conv2d":
            weight, k = call.operands[2], call.operands[2].dims[2].hi
            return (_pixels(k) + (0 if weight.dtype is Dtype.F32 else 2 * PANEL)) * k * 4
        case "conv2d_bits":
            k = _int(call.ints[0]) * _int(call.ints[1]) * call.operands[1].dims[3].hi
            return _pixels(k) * k * 4 + _bits(_pixels(k), call)
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


def _pixels(k: int) -> int:
    """Output pixels of a convolution that are gathered together."""
    return max(4, min(8, 131072 // max(1, k) // 12)) * 12


def _bits(rows: int, call: Call) -> int:
    """The most that one of the call's weights needs for as many rows of activations: sums of 64 columns; then tables of
    each row's activations or, of more rows, activations in 16 bits with scales, never less than fewer rows need; or a
    palette's tables and decoded columns."""
    return max(_matrix(rows, m) for _, m in low_bit_matrices(call))


def _matrix(rows: int, m: LowBitMatrix) -> int:
    padded, spec = -(-rows // 16) * 16, m.spec
    if isinstance(spec, PaletteSpec):
        tables = (TILE - 1) // spec.rows + 2 if spec.rows else 1
        columns = CHUNK * spec.vector if spec.vector > 1 else 2 * CHUNK
        return (padded * TILE + (tables << spec.bits) * spec.vector + TILE * columns) * 4
    chunks, groups = -(-m.k // CHUNK), spec.groups(m.k)
    tables = -(-(chunks * 256 + groups * 8) // ALIGN) * ALIGN
    decoded = padded * (chunks * 64 + groups * 4) + _DECODED if rows >= _MANY_ROWS else 0
    return padded * TILE * 4 + max(min(rows, _TABLE_ROWS) * tables, decoded)


def _attention(call: Call, tokens: Dim, hq: int, hkv: int) -> int:
    y, q = call.operands[0], call.operands[1]
    d, dv = (-(-o.dims[-1].hi // hq // PANEL) * PANEL for o in (q, y))
    group = hq // hkv
    rows = max(1, min(tokens.hi, _QUERY_ROWS // group)) * group
    return (rows * (d + _SPAN + dv + 2) + _SPAN * (d + dv)) * 4


def _int(value: int | Dim) -> int:
    return value.hi if isinstance(value, Dim) else value
