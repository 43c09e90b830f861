"""Palettes: a weight as indices of 1 to 8 bits into tables of values or of short vectors along K.

Layout `palette64`: the indices [N, M], M = ceil(K / vector), in tiles of 64 rows as of `tiles_of`, their bits exchanged
so that indices of 2 to 4 bits lie side by side (`_place`), then the tables
[tables, 2^bits, vector], float16 or float32, little-endian. docs/format.md draws it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from edgec.compress.formats_bits import CHUNK, MAX_BITS, TILE, Array, bad, codes_of_tiles, tiles_of

MOST_VECTOR = 8  # values of an index that the kernels know


def _place(bits: int, index: int, bit: int) -> tuple[int, int]:
    """(byte, bit in it) of bit `bit` of index 0..7 among the `bits` bytes that eight indices of a row are."""
    if bits == 4:
        return index % 4, index // 4 * 4 + bit
    if bits == 3 and index < 6:
        return index // 2, index % 2 * 3 + bit
    if bits == 3:  # the last two in what is left: the top two bits of the three bytes
        which = (index - 6) * 3 + bit
        return which // 2, 6 + which % 2
    if bits == 2:
        return index // 4, index % 4 * 2 + bit
    return bit, index


def _exchanged(tiled: Array, bits: int, back: bool) -> Array:
    """Planes [tiles, chunks, bits, 4, 64] in the places of palette64, or back."""
    if bits not in (2, 3, 4):
        return tiled
    out = np.zeros_like(tiled)
    for index in range(8):
        for bit in range(bits):
            plane, place = (bit, index), _place(bits, index, bit)
            (at, shift), (to, up) = (place, plane) if back else (plane, place)
            out[:, :, to] |= (tiled[:, :, at] >> np.uint8(shift) & np.uint8(1)) << np.uint8(up)
    return out
_TEXT = re.compile(r"palette([1-8])(?:r(\d+))?(?:v(\d+))?")


@dataclass(frozen=True)
class PaletteSpec:
    """bits 1..8 per index; rows that share a table (0: all); values that one index stands for, neighbours along K.

    Raises EdgecError (E0002).
    """

    bits: int
    rows: int = 0
    vector: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise bad("bits", self.bits, f"1..{MAX_BITS}")
        if self.rows < 0 or self.vector < 1:
            raise bad("palette", f"rows {self.rows}, vector {self.vector}", "rows >= 0, vector >= 1")

    @classmethod
    def parse(cls, text: str) -> PaletteSpec:
        """`palette4`, `palette4r16` (a table per 16 rows), `palette8v2` (pairs)."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise bad("quantization", repr(text), "paletteB with B bits, then rROWS and vVALUES: palette4, palette4r16")
        return cls(int(match[1]), int(match[2] or 0), int(match[3] or 1))

    def __str__(self) -> str:
        rows = f"r{self.rows}" if self.rows else ""
        return f"palette{self.bits}{rows}" + (f"v{self.vector}" if self.vector > 1 else "")

    def tables(self, n: int) -> int:
        """Tables of a matrix of n rows."""
        return -(-n // self.rows) if self.rows else 1

    def indices(self, k: int) -> int:
        """Indices of a row of k columns; the last vector may reach beyond it."""
        return -(-k // self.vector)

    def bytes(self, n: int, k: int, value_bytes: int = 2) -> int:
        """Bytes of a matrix [n, k] in `palette64` with tables of 2 or 4 bytes per value."""
        return self._index_bytes(n, k) + (self.tables(n) << self.bits) * self.vector * value_bytes

    def bits_per_weight(self, n: int, k: int, value_bytes: int = 2) -> float:
        return 8 * self.bytes(n, k, value_bytes) / (n * k)

    def _index_bytes(self, n: int, k: int) -> int:
        return -(-n // TILE) * -(-self.indices(k) // CHUNK) * self.bits * CHUNK * TILE // 8


@dataclass(frozen=True)
class PaletteTensor:
    """A matrix [N, columns]: indices u8 [N, spec.indices(columns)]; lut f16 or f32 [tables, 2^bits], for vectors
    [tables, 2^bits, vector]. Raises EdgecError (E0002) for arrays that are not that."""

    spec: PaletteSpec
    indices: Array
    lut: Array
    columns: int

    def __post_init__(self) -> None:
        spec, indices = self.spec, self.indices
        if indices.dtype != np.uint8 or indices.ndim != 2 or indices.shape[1] != spec.indices(self.columns) or (
            not indices.size):
            raise bad("indices", f"{indices.dtype} {indices.shape}", f"uint8 [N, {spec.indices(self.columns)}]")
        if int(indices.max()) >> spec.bits:
            raise bad("indices", f"an index of {int(indices.max())}", f"0..{(1 << spec.bits) - 1}")
        shape = (spec.tables(len(indices)), 1 << spec.bits, *((spec.vector,) if spec.vector > 1 else ()))
        if self.lut.dtype not in (np.float16, np.float32) or self.lut.shape != shape:
            raise bad("lut", f"{self.lut.dtype} {self.lut.shape}", f"float16 or float32 {shape}")
        if not np.isfinite(self.lut).all():
            raise bad("lut", "infinity or NaN", "finite values")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.indices), self.columns


def dequantize_palette(p: PaletteTensor) -> Array:
    """The float32 weights [N, K]."""
    n, k = p.shape
    rows = np.arange(n)[:, None] // (p.spec.rows or n)
    values: Array = p.lut.astype(np.float32)[rows, p.indices].reshape(n, -1)[:, :k]
    return np.ascontiguousarray(values)


def pack_palette(p: PaletteTensor) -> Array:
    """The stored bytes u8 [spec.bytes(N, K, lut.itemsize)]."""
    lut = np.ascontiguousarray(p.lut, p.lut.dtype.newbyteorder("<")).view(np.uint8).reshape(-1)
    tiled = _exchanged(tiles_of(p.indices, p.spec.bits), p.spec.bits, back=False)
    return np.concatenate([tiled.reshape(-1), lut])


def unpack_palette(
    data: bytes | memoryview | Array, spec: PaletteSpec, n: int, k: int, value_bytes: int = 2
) -> PaletteTensor:
    """The inverse of `pack_palette`. Raises EdgecError (E0002) for another number of bytes."""
    flat = np.frombuffer(data, np.uint8)
    if value_bytes not in (2, 4) or flat.size != spec.bytes(n, k, value_bytes):
        raise bad(f"{spec} of {n} x {k}", f"{flat.size} bytes", f"{spec.bytes(n, k, value_bytes)}")
    tables = spec.bytes(n, k, value_bytes) - (spec.tables(n) << spec.bits) * spec.vector * value_bytes
    tiled = flat[:tables].reshape(-(-n // TILE), -1, spec.bits, 4, TILE)
    shape = (spec.tables(n), 1 << spec.bits, *((spec.vector,) if spec.vector > 1 else ()))
    lut = flat[tables:].view("<f2" if value_bytes == 2 else "<f4").reshape(shape)
    planes = _exchanged(tiled, spec.bits, back=True)
    return PaletteTensor(spec, codes_of_tiles(planes, n, spec.indices(k)), lut, k)
