"""The tensor types of GGUF files: how many values a block holds, in how many bytes, and which byte is which.

Source: the dequantize_row functions of ggml (ggml-quants.c). Each reader gets the blocks of a matrix as bytes
[N, K / block, bytes] and gives the parts of w = (code - zero) * scale - minimum; scales that are products of a 16-bit
and a small integer factor stay that product, so a matrix takes in the graph what it takes in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.importers.packed import Blocks, Packed
from edgec.importers.stored import Dense

_SUPER = 256  # values of a K block


@dataclass(frozen=True)
class Type:
    """A row of TYPES. numpy: for plain values; pack: for blocks."""

    name: str
    block: int
    bytes: int
    numpy: np.dtype[Any] | None = None
    pack: Callable[[_Source], Packed] | None = None


@dataclass(frozen=True)
class _Source:
    """The bytes of a matrix [rows, columns], read when a part is asked for."""

    raw: Dense
    rows: int
    columns: int

    def at(self, first: int, end: int) -> Array:
        """Bytes first..end of every block, [rows, blocks, end - first]."""
        return self.raw.raw()[:, :, first:end]

    def halves(self, first: int) -> Array:
        """The 16-bit float at byte `first` of every block as float32, [rows, blocks]."""
        return np.ascontiguousarray(self.at(first, first + 2)).view("<f2")[..., 0].astype(np.float32)

    def codes(self, read: Callable[[], Array], kind: ir.DataType, scale: Blocks, block: int) -> Blocks:
        """`read` gives [rows, blocks, values of a block] or any grouping of the same order."""
        shape = (self.rows, self.columns)
        return Blocks(shape, lambda: np.ascontiguousarray(read()).reshape(shape), kind, scale, None, block)

    def scales(self, first: int, block: int) -> Blocks:
        return Blocks((self.rows, self.columns // block), lambda: self.halves(first))


def _nibbles(packed: Array) -> Array:
    """[..., n] bytes to [..., 2, n]: all low halves, then all high halves."""
    return np.stack([packed & 15, packed >> 4], axis=-2)


def _with_fifth_bit(source: _Source, bits: int, nibbles: int) -> Array:
    """Codes of five bits: four in the nibbles, the fifth at byte `bits`, one bit per value. [rows, blocks, 32]."""
    low = _nibbles(source.at(nibbles, nibbles + 16)).reshape(source.rows, -1, 32)
    high = np.unpackbits(np.ascontiguousarray(source.at(bits, bits + 4)), axis=-1, bitorder="little")
    codes: Array = low | (high << 4)
    return codes


def _minima(source: _Source, first: int, block: int) -> Blocks:
    """ggml adds what we subtract."""
    return Blocks((source.rows, source.columns // block), lambda: -source.halves(first))


def _q4_0(s: _Source) -> Packed:
    def read() -> Array:
        return _nibbles(s.at(2, 18)).astype(np.int8) - 8

    return Packed(s.codes(read, ir.DataType.INT4, s.scales(0, 32), 32))


def _q4_1(s: _Source) -> Packed:
    return Packed(s.codes(lambda: _nibbles(s.at(4, 20)), ir.DataType.UINT4, s.scales(0, 32), 32), _minima(s, 2, 32))


def _q5_0(s: _Source) -> Packed:
    def read() -> Array:
        return _with_fifth_bit(s, 2, 6).astype(np.int8) - 16

    return Packed(s.codes(read, ir.DataType.INT8, s.scales(0, 32), 32))


def _q5_1(s: _Source) -> Packed:
    return Packed(s.codes(lambda: _with_fifth_bit(s, 4, 8), ir.DataType.UINT8, s.scales(0, 32), 32), _minima(s, 2, 32))


def _q8_0(s: _Source) -> Packed:
    def read() -> Array:
        return np.ascontiguousarray(s.at(2, 34)).view(np.int8)

    return Packed(s.codes(read, ir.DataType.INT8, s.scales(0, 32), 32))


def _six_bits(s: _Source, minimum: bool) -> Array:
    """Scales (or minima) of the eight groups of a K block, out of 12 bytes at byte 4: [rows, blocks, 8]."""
    q = s.at(4, 16)
    shift = 4 if minimum else 0
    first = q[..., 4:8] if minimum else q[..., 0:4]
    return np.concatenate([first & 63, ((q[..., 8:12] >> shift) & 15) | ((first >> 6) << 4)], axis=-1)


def _grouped(s: _Source, read: Callable[[], Array], kind: ir.DataType) -> Packed:
    """Groups of 32 with a six-bit scale and minimum, both times a 16-bit factor of the K block."""
    shape = (s.rows, s.columns // 32)

    def part(minimum: bool) -> Blocks:
        return Blocks(shape, lambda: np.ascontiguousarray(_six_bits(s, minimum)).reshape(shape), ir.DataType.UINT8,
                      s.scales(2 if minimum else 0, _SUPER), None, _SUPER // 32)

    return Packed(s.codes(read, kind, part(minimum=False), 32), part(minimum=True))


def _q4_k(s: _Source) -> Packed:
    def read() -> Array:
        return _nibbles(s.at(16, 144).reshape(s.rows, -1, 4, 32))

    return _grouped(s, read, ir.DataType.UINT4)


def _q5_k(s: _Source) -> Packed:
    def read() -> Array:
        low = _nibbles(s.at(48, 176).reshape(s.rows, -1, 4, 32)).reshape(s.rows, -1, 8, 32)
        # Bit j of byte i belongs to value i of group j.
        high = (s.at(16, 48)[:, :, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
        codes: Array = low | (high << 4)
        return codes

    return _grouped(s, read, ir.DataType.UINT8)


def _q6_k(s: _Source) -> Packed:
    """Two halves of 128 values: 64 bytes of low nibbles and 32 bytes of two-bit tops each; a scale per 16 values."""
    def read() -> Array:
        low = _nibbles(s.at(0, 128).reshape(s.rows, -1, 2, 64)).reshape(s.rows, -1, 2, 4, 32)
        tops = s.at(128, 192).reshape(s.rows, -1, 2, 1, 32)
        high = (tops >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
        codes: Array = (low | (high << 4)).astype(np.int8) - 32
        return codes

    shape = (s.rows, s.columns // 16)
    scale = Blocks(shape, lambda: np.ascontiguousarray(s.at(192, 208)).view(np.int8).reshape(shape), ir.DataType.INT8,
                   s.scales(208, _SUPER), None, _SUPER // 16)
    return Packed(s.codes(read, ir.DataType.INT8, scale, 16))


TYPES: dict[int, Type] = {
    0: Type("F32", 1, 4, numpy=np.dtype("<f4")),
    1: Type("F16", 1, 2, numpy=np.dtype("<f2")),
    2: Type("Q4_0", 32, 18, pack=_q4_0),
    3: Type("Q4_1", 32, 20, pack=_q4_1),
    6: Type("Q5_0", 32, 22, pack=_q5_0),
    7: Type("Q5_1", 32, 24, pack=_q5_1),
    8: Type("Q8_0", 32, 34, pack=_q8_0),
    12: Type("Q4_K", _SUPER, 144, pack=_q4_k),
    13: Type("Q5_K", _SUPER, 176, pack=_q5_k),
    14: Type("Q6_K", _SUPER, 210, pack=_q6_k),
    30: Type("BF16", 1, 2, numpy=np.dtype(ml_dtypes.bfloat16)),
}


def matrix(row: Type, file: Path, offset: int, shape: tuple[int, int]) -> Packed:
    """The matrix [N, K] of a block type whose blocks start at byte `offset`."""
    assert row.pack is not None  # plain types are Dense
    raw = Dense(file, offset, np.dtype("u1"), (shape[0], shape[1] // row.block, row.bytes))
    return row.pack(_Source(raw, *shape))
