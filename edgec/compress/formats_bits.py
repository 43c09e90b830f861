"""Low-bit matrices: codes of 1 to 8 bits in groups along K with float16 parameters, and their one byte layout `bits64`.

A `Quantized` holds a weight [N, K] as codes and, per row and group of G columns, either

* HLQ: `w = c + sum_j h_j (2 b_j - 1)`, b_j bit j of the code; every bit has its own scale h_j, c is the offset;
* uniform: `w = s (code - z)`.

Both are exact in float64 for float16 parameters, so a value is that sum rounded once to float32, in whatever order it
is added. docs/format.md draws the layout; `bits64` is in order of use: one pass over the bytes is one product with the
matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgec.errors import EdgecError

Array = npt.NDArray[Any]

TILE = 64  # rows
CHUNK = 32  # columns
GROUPS = (32, 64, 128)
MAX_BITS = 8
_SLICE = 1 << 22  # weights worked on at once
_TEXT = re.compile(r"(hlq|int)([1-8])(?:g(\d+))?")


def bad(where: str, found: object, wanted: str, hint: str = "") -> EdgecError:
    """The error for parameters or arrays that no format has."""
    return EdgecError("E0002", stage="weights", where=where, found=str(found), wanted=wanted, hint=hint)


@dataclass(frozen=True)
class BitsSpec:
    """bits 1..8 per code, columns per group, uniform steps or one scale per bit. Raises EdgecError (E0002)."""

    bits: int
    group: int = 128
    uniform: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise bad("bits", self.bits, f"1..{MAX_BITS}")
        if self.group not in GROUPS:
            raise bad("group", self.group, f"one of {', '.join(map(str, GROUPS))}")

    @classmethod
    def parse(cls, text: str) -> BitsSpec:
        """`hlq2g64`, `int4g32`; the group is 128 when it is left out."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise bad("quantization", repr(text), "hlqB or intB with B bits, then gG: hlq2g128, int4g64")
        return cls(int(match[2]), int(match[3] or 128), match[1] == "int")

    def __str__(self) -> str:
        return f"{'int' if self.uniform else 'hlq'}{self.bits}g{self.group}"

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def planes(self) -> int:
        """Scales per group: one, or one per bit."""
        return 1 if self.uniform else self.bits

    def groups(self, k: int) -> int:
        """Groups of a row of k columns; the last may be short."""
        return -(-k // self.group)

    def bytes(self, n: int, k: int) -> int:
        """Bytes of a matrix [n, k] in `bits64`; a multiple of 64."""
        parameters = self.groups(k) * (self.planes + 1) * 2 * TILE
        return -(-n // TILE) * (-(-k // CHUNK) * self.bits * CHUNK * TILE // 8 + parameters)

    def bits_per_weight(self, n: int, k: int) -> float:
        """Stored bits, padding and parameters included, per weight of a matrix [n, k]."""
        return 8 * self.bytes(n, k) / (n * k)


@dataclass(frozen=True)
class Quantized:
    """A matrix [N, K] of `spec`: codes u8 [N, K]; offset f16 [N, G] (c, or z); scale f16 [bits, N, G] (h), uniform
    [N, G] (s); G = spec.groups(K). Raises EdgecError (E0002) for arrays that are not that, codes of too many bits and
    parameters that are not finite."""

    spec: BitsSpec
    codes: Array
    scale: Array
    offset: Array

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2 or not self.codes.size:
            raise bad("codes", f"{self.codes.dtype} {self.codes.shape}", "uint8 [N, K]")
        if self.spec.bits < MAX_BITS and int(self.codes.max()) >= self.spec.levels:
            raise bad("codes", f"a code of {int(self.codes.max())}", f"0..{self.spec.levels - 1}")
        per_group = (self.codes.shape[0], self.spec.groups(self.codes.shape[1]))
        scales = per_group if self.spec.uniform else (self.spec.bits, *per_group)
        for name, array, shape in (("scale", self.scale, scales), ("offset", self.offset, per_group)):
            if array.dtype != np.float16 or array.shape != shape:
                raise bad(name, f"{array.dtype} {array.shape}", f"float16 {shape}")
            if not np.isfinite(array).all():
                raise bad(name, "infinity or NaN", "finite values", "scale the layer so that float16 holds it")

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.codes.shape
        return n, k


def planes_of(codes: Array, bits: int) -> Array:
    """codes u8 [N, K] as bit planes u8 [bits, N, ceil(K / 8)], column 0 in the least significant bit."""
    planes = np.empty((bits, codes.shape[0], -(-codes.shape[1] // 8)), np.uint8)
    for j in range(bits):
        planes[j] = np.packbits(codes & np.uint8(1 << j), axis=1, bitorder="little")
    return planes


def codes_of(planes: Array, k: int) -> Array:
    """The inverse of `planes_of`: u8 [N, k]."""
    codes = np.zeros((planes.shape[1], k), np.uint8)
    for j, plane in enumerate(planes):
        codes |= np.unpackbits(plane, axis=1, count=k, bitorder="little") << np.uint8(j)
    return codes


def tiles_of(codes: Array, bits: int) -> Array:
    """codes u8 [N, K] as u8 [ceil(N / 64), ceil(K / 32), bits, 4, 64]: the planes of each tile of rows, a chunk of
    columns at a time. Row 16 b + 4 a + c of a tile lies at position 16 a + 4 b + c (docs/format.md)."""
    (n, k), planes = codes.shape, planes_of(codes, bits)
    tiles, chunks = -(-n // TILE), -(-k // CHUNK)
    planes = np.pad(planes, ((0, 0), (0, tiles * TILE - n), (0, chunks * 4 - planes.shape[2])))
    planes = planes.reshape(bits, tiles, 4, 4, 4, chunks, 4).transpose(1, 5, 0, 6, 3, 2, 4)
    return planes.reshape(tiles, chunks, bits, 4, TILE)


def codes_of_tiles(tiled: Array, n: int, k: int) -> Array:
    """The inverse of `tiles_of`: u8 [n, k]."""
    tiles, chunks, bits = tiled.shape[:3]
    planes = tiled.reshape(tiles, chunks, bits, 4, 4, 4, 4).transpose(2, 0, 5, 4, 6, 1, 3)
    return codes_of(planes.reshape(bits, tiles * TILE, chunks * 4)[:, :n], k)


def dequantize(q: Quantized) -> Array:
    """The float32 weights [N, K]."""
    n, k = q.shape
    out = np.empty((n, k), np.float32)
    for rows in _row_slices(n, k):
        out[rows] = _values(q, rows)
    return out


def _row_slices(n: int, k: int) -> Iterator[slice]:
    step = max(TILE, _SLICE // k // TILE * TILE)
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def _values(q: Quantized, rows: slice) -> Array:
    codes, spec, k = q.codes[rows], q.spec, q.shape[1]
    offset = q.offset[rows].astype(np.float64)
    grouped = np.pad(codes, ((0, 0), (0, spec.groups(k) * spec.group - k))).reshape(*offset.shape, spec.group)
    if spec.uniform:
        values = q.scale[rows, :, None].astype(np.float64) * (grouped - offset[..., None])
        return values.astype(np.float32).reshape(codes.shape[0], -1)[:, :k]
    scales = np.moveaxis(q.scale[:, rows], 0, -1).astype(np.float64)
    levels = (scales @ bit_signs(spec.bits) + offset[..., None]).astype(np.float32).reshape(-1)
    index = grouped.astype(np.intp)
    index += np.arange(0, levels.size, spec.levels).reshape(*offset.shape, 1)
    restored: Array = levels.take(index)
    return restored.reshape(codes.shape[0], -1)[:, :k]


def bit_signs(bits: int) -> Array:
    """float64 [bits, 2^bits]: +1 where bit j of the code is set, else -1."""
    set_bits = np.arange(1 << bits) >> np.arange(bits)[:, None] & 1
    return 2.0 * set_bits - 1.0


def _layout(spec: BitsSpec, k: int) -> Iterator[tuple[int, slice, slice]]:
    """Per run of equal groups of a row tile: (groups, their bytes in the tile, their chunks in the row).

    All groups are equal but the last, which may have fewer chunks.
    """
    chunks, per_group = -(-k // CHUNK), spec.group // CHUNK
    full, at = chunks // per_group, 0
    for first, count, length in ((0, full, per_group), (full * per_group, 1, chunks - full * per_group)):
        if count and length:
            size = count * (length * spec.bits * 4 + (spec.planes + 1) * 2) * TILE
            yield count, slice(at, at + size), slice(first, first + count * length)
            at += size


def pack_bits64(q: Quantized) -> Array:
    """The stored bytes u8 [spec.bytes(N, K)]."""
    (n, k), spec = q.shape, q.spec
    tiles = -(-n // TILE)
    packed = np.empty((tiles, spec.bytes(n, k) // tiles), np.uint8)
    for rows in _row_slices(n, k):
        _pack_rows(q, rows, packed[rows.start // TILE : -(-rows.stop // TILE)])
    return packed.reshape(-1)


def _pack_rows(q: Quantized, rows: slice, out: Array) -> None:
    """Whole tiles of rows (the last may be short) into `out` [tiles, bytes]."""
    spec, tiles, k = q.spec, len(out), q.shape[1]
    missing = tiles * TILE - (rows.stop - rows.start)
    tiled = tiles_of(q.codes[rows], spec.bits)
    scale = q.scale[None, rows] if spec.uniform else q.scale[:, rows]
    parameters = np.pad(np.concatenate([scale, q.offset[None, rows]]), ((0, 0), (0, missing), (0, 0)))
    parameters = parameters.reshape(spec.planes + 1, tiles, TILE, -1).transpose(1, 3, 0, 2)
    group = 0
    for count, place, chunks in _layout(spec, k):
        codes, stored = _parts(out[:, place], spec, count)
        codes[...] = tiled[:, chunks].reshape(tiles, count, -1, spec.bits, 4, TILE).swapaxes(2, 3)
        stored[...] = np.ascontiguousarray(parameters[:, group : group + count], "<f2").view(np.uint8).reshape(
            stored.shape)
        group += count


def _parts(data: Array, spec: BitsSpec, count: int) -> tuple[Array, Array]:
    """Views of the codes [tiles, groups, bits, chunks, 4, 64] and of the parameters' bytes of `count` groups."""
    grouped = data.reshape(len(data), count, -1)
    at = grouped.shape[2] - (spec.planes + 1) * 2 * TILE
    return grouped[..., :at].reshape(len(data), count, spec.bits, -1, 4, TILE), grouped[..., at:]


def unpack_bits64(data: bytes | memoryview | Array, spec: BitsSpec, n: int, k: int) -> Quantized:
    """The inverse of `pack_bits64`. Raises EdgecError (E0002) for another number of bytes."""
    flat = np.frombuffer(data, np.uint8)
    if flat.size != spec.bytes(n, k):
        raise bad(f"{spec} of {n} x {k}", f"{flat.size} bytes", f"{spec.bytes(n, k)}")
    tiles = -(-n // TILE)
    packed = flat.reshape(tiles, -1)
    tiled = np.empty((tiles, -(-k // CHUNK), spec.bits, 4, TILE), np.uint8)
    parameters = np.empty((spec.planes + 1, tiles * TILE, spec.groups(k)), np.float16)
    group = 0
    for count, place, chunks in _layout(spec, k):
        stored, values = _parts(packed[:, place], spec, count)
        tiled[:, chunks] = stored.swapaxes(2, 3).reshape(tiles, -1, spec.bits, 4, TILE)
        halves = np.ascontiguousarray(values).view("<f2").reshape(tiles, count, -1, TILE)
        parameters[..., group : group + count] = halves.transpose(2, 0, 3, 1).reshape(-1, tiles * TILE, count)
        group += count
    scale = parameters[0, :n] if spec.uniform else parameters[:-1, :n]
    return Quantized(spec, codes_of_tiles(tiled, n, k), np.ascontiguousarray(scale),
                     np.ascontiguousarray(parameters[-1, :n]))
