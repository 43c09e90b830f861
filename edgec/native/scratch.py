"""Scratch memory per thread, so that the memory table can state it before anything is built for the device.

The runtime asks its own kernels (`*_scratch` in kernels/contract/) and allocates the larger of both figures; what
stands here is the same arithmetic, and tests/native/test_run.py compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgec.compress.formats import CHUNK, PANEL, TILE, BitsSpec, Dtype, PaletteSpec
from edgec.compress.low_bit import LowBitMatrix
from edgec.native.dims import Dim, product
from edgec.native.plan import ALIGN, Call, Space, low_bit_matrices

_WIDEN_ROWS = 13  # from here on 16-bit weights are widened once per panel
# Few-bit weights: most rows that are looked up, fewest that are not, bytes of a decoded block.
_TABLE_ROWS, _MANY_ROWS, _DECODED = 16, 5, 16384
# Few outputs and wide rows: a convolution that gathers nothing, but for borders of so many pixels at once.
_DIRECT_COLUMNS, _DIRECT_WIDTH, _DIRECT_PIXELS = 96, 24, 256
_TILES, _TILE_CHANNELS = 36, 64  # of a convolution by Winograd's algorithm: tiles and channels at once
_BAND_FLOATS, _MOST_PARTS, _PART_ROWS = 65536, 16, 24  # of an inverted residual
_SEQUENCES = 8  # that a recurrent layer works on together
_CHANNELS = 16  # that a selective scan or, as whole groups, a group norm works on together
_QUERY_ROWS, _SPAN = 48, 64  # rows and positions that attention works on together
_DECODED_ROWS = 32  # positions of a cache of codes that are decoded together


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
            return (_conv_pixels(call, k) + (0 if weight.dtype is Dtype.F32 else 2 * PANEL)) * k * 4
        case "conv2d_winograd":
            return _winograd(call)
        case "mbconv2d":
            return _inverted(call)
        case "conv2d_bits":
            k = _int(call.ints[0]) * _int(call.ints[1]) * call.operands[1].dims[3].hi
            return _pixels(k) * k * 4 + _bits(_pixels(k), call)
        case "conv2d_q8":
            return _conv_q8(call)
        case "dwconv2d_q8":
            kh, kw, c = _int(call.ints[0]), _int(call.ints[1]), -(-call.operands[0].dims[3].hi // 16) * 16
            return (-(-kh // 2) * kw * 4 + 1 + 8 * 11) * c
        case "rnn":
            y, weight = call.operands[0], call.operands[4]
            return min(_SEQUENCES, y.dims[1].hi) * y.dims[2].hi * (weight.dims[0].hi + 2) * 4
        case "selective_scan":
            return 2 * call.operands[4].dims[0].hi * _CHANNELS * 4
        case "groupnorm":
            groups = _int(call.ints[0])
            width = call.operands[0].dims[2].hi // groups
            return min(groups, -(-_CHANNELS // max(1, width))) * width * (2 * 8 + 3 * 4)
        case "matmul":
            return 2 * PANEL * call.operands[1].dims[-1].hi * 4
        case "attention":
            return _attention(call, call.operands[0].dims[1], _int(call.ints[0]), _int(call.ints[1]))
        case "attention_cached":
            return _attention(call, call.operands[0].dims[0], _int(call.ints[1]), _int(call.ints[2]))
        case _:
            return 0


def _conv_pixels(call: Call, k: int) -> int:
    """Of a convolution: a row or a part of it where windows are read in place (conv_shape() in
    kernels/contract/compute.cpp)."""
    y, x, weight = call.operands[:3]
    _, kw, _, sw, _, pl, _, dw, groups = map(_int, call.ints[:9])
    w, ow = x.dims[2].hi, y.dims[2].hi
    first, room = min(ow, -(-pl // sw)), w - kw + pl
    last = first if room < 0 else max(first, min(ow, room // sw + 1))
    direct = groups == dw == 1 and weight.dims[1].hi <= _DIRECT_COLUMNS and weight.dtype is Dtype.F32
    if not direct or last - first < _DIRECT_WIDTH:
        return _pixels(k)
    known = y.dims[2].const is not None
    return -(-ow // -(-ow // _DIRECT_PIXELS)) if known else max(min(ow, _DIRECT_PIXELS), _pixels(k))


def _winograd(call: Call) -> int:
    """The values of a block of tiles and their products, and a row of those of a panel's kernels (winograd_shape() in
    kernels/contract/compute.cpp)."""
    (batch, oh, ow, _), ci = (d.hi for d in call.operands[0].dims), call.operands[1].dims[3].hi
    tiles = min(_TILES, batch * -(-oh // 4) * -(-ow // 4))
    return (16 + 36 * (tiles * (ci + PANEL) + 2 * 16) + 6 * (min(ci, _TILE_CHANNELS) * PANEL + 16) + ci) * 4


def _inverted(call: Call) -> int:
    """A band of the widened rows and of the filtered ones (mbconv_shape() in kernels/contract/compute.cpp)."""
    y, x, widen, _, weight = call.operands[:5]
    kh, _, sh, _, _, _, dh, _ = map(_int, call.ints[:8])
    (_, oh, ow, _), (_, h, w, _) = ([d.hi for d in v.dims] for v in (y, x))
    channels, reach, parts = weight.dims[1].hi, (kh - 1) * dh + 1, 1
    while parts < _MOST_PARTS and oh >= parts * _PART_ROWS:
        parts *= 2
    line, out = (0 if widen.space is Space.NONE else w * channels), ow * channels
    fit = (_BAND_FLOATS - (reach - sh) * line) / (sh * line + out + 1)
    band = 1 if fit < 1 else min(int(fit), max(1, -(-oh // parts)))
    return (min(h, (band - 1) * sh + reach) * line + band * out) * 4


def _pixels(k: int) -> int:
    """Output pixels of a convolution that are gathered together."""
    return max(4, min(8, 131072 // max(1, k) // 12)) * 12


def _conv_q8(call: Call) -> int:
    """Gathered rows of 16-bit integers, what is known of them, and two panels of weights."""
    groups, pairs = _int(call.ints[8]), call.operands[2].dims[2].hi
    k = _int(call.ints[0]) * _int(call.ints[1]) * (call.operands[1].dims[3].hi // groups)
    pixels, most = max(1, product(call.operands[0].dims[:3]).hi), max(4, min(16, 131072 // max(1, k) // 12)) * 12
    # Fewer pixels may lie in larger blocks, but never in blocks of more than `most`.
    pixels = most if pixels > most else -(-pixels // 12) * 12
    words = pixels * (2 + -(-pairs // 16)) + 1
    rows, known = (-(-size // ALIGN) * ALIGN for size in (pixels * pairs * 4 + 32, words * 4))
    return rows + known + 2 * PANEL * pairs * 4


def _bits(rows: int, call: Call) -> int:
    """The most that one of the call's weights needs for as many rows of activations: sums of 64 columns; then tables of
    each row's activations or, of more rows, activations in 16 bits with scales, never less than fewer rows need; or a
    palette's tables and decoded columns. Behind them, for each palette, the products of one row that a kernel may look
    up."""
    matrices = [m for _, m in low_bit_matrices(call)]
    most = max(_matrix(rows, m) for m in matrices)
    products = 0 if call.kernel == "conv2d_bits" or not rows else sum(map(_products, matrices))
    return most if call.kernel == "conv2d_bits" else -(-most // ALIGN) * ALIGN + products


def _products(m: LowBitMatrix) -> int:
    if isinstance(m.spec, BitsSpec) or not m.looked_up:
        return 0
    chunks = -(-m.k // CHUNK)
    return -(-chunks * (CHUNK * 64 + 4) // ALIGN) * ALIGN


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
    decoded = _DECODED_ROWS * max(d, dv) if call.operands[2].dtype in (Dtype.I8, Dtype.U8) else 0
    return (rows * (d + _SPAN + dv + 2) + _SPAN * (d + dv) + decoded) * 4


def _int(value: int | Dim) -> int:
    return value.hi if isinstance(value, Dim) else value
