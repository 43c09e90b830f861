"""Packed weight formats: the one place that says which byte of a stored tensor is which.

Every tensor of a bundle has a `Dtype` (how one value is stored) and a `Format` (in which order the values lie):

* `PLAIN`: row-major.
* `PANEL16`: a matrix [N, K] (rows are output channels) as ceil(N / 16) panels, each K x 16 values, so that one vector
  of 16 output channels is contiguous for every k. Element (n, k) is value number `((n // 16) * K + k) * 16 + n % 16`;
  rows from N to the next multiple of 16 are zero. Leading dims repeat that matrix.

Low-bit matrices (formats_bits.py) and palettes (formats_palette.py) are plain u8 vectors with layouts of their own.

Values are little-endian. F16 is IEEE binary16, BF16 the upper half of binary32; numpy has no bfloat16, so BF16 arrays
are uint16 bit patterns here.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from edgec.compress.formats_bits import CHUNK as CHUNK
from edgec.compress.formats_bits import GROUPS as GROUPS
from edgec.compress.formats_bits import TILE as TILE
from edgec.compress.formats_bits import BitsSpec as BitsSpec
from edgec.compress.formats_bits import Quantized as Quantized
from edgec.compress.formats_bits import codes_of as codes_of
from edgec.compress.formats_bits import dequantize as dequantize
from edgec.compress.formats_bits import pack_bits64 as pack_bits64
from edgec.compress.formats_bits import planes_of as planes_of
from edgec.compress.formats_bits import unpack_bits64 as unpack_bits64
from edgec.compress.formats_palette import MOST_VECTOR as MOST_VECTOR
from edgec.compress.formats_palette import PaletteSpec as PaletteSpec
from edgec.compress.formats_palette import PaletteTensor as PaletteTensor
from edgec.compress.formats_palette import dequantize_palette as dequantize_palette
from edgec.compress.formats_palette import pack_palette as pack_palette
from edgec.compress.formats_palette import unpack_palette as unpack_palette
from edgec.errors import EdgecError

Array = npt.NDArray[Any]

PANEL = 16
_SLICE = 1 << 20  # values worked on at once


class Dtype(IntEnum):
    """Value types, numbered as `edgec_dtype` in edgec.h."""

    F32 = 1
    F16 = 2
    BF16 = 3
    I8 = 4
    U8 = 5
    I32 = 6
    I64 = 7
    BOOL = 8

    @property
    def size(self) -> int:
        """Bytes of one value."""
        return self.numpy.itemsize

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type that holds one value (uint16 bits for BF16)."""
        return _NUMPY[self]


_NUMPY: dict[Dtype, np.dtype[Any]] = {
    Dtype.F32: np.dtype("<f4"), Dtype.F16: np.dtype("<f2"), Dtype.BF16: np.dtype("<u2"), Dtype.I8: np.dtype("i1"),
    Dtype.U8: np.dtype("u1"), Dtype.I32: np.dtype("<i4"), Dtype.I64: np.dtype("<i8"), Dtype.BOOL: np.dtype("?"),
}


class Format(IntEnum):
    """Orders of values, numbered as in docs/format.md."""

    PLAIN = 0
    PANEL16 = 1


def storage_bytes(dtype: Dtype, fmt: Format, dims: Sequence[int]) -> int:
    """Bytes that a tensor of these dims takes.

    Raises ValueError when the combination does not exist (panel16 of a vector or of integers).
    """
    count = int(np.prod(dims, dtype=object)) if len(dims) else 1
    if fmt is Format.PLAIN:
        return count * dtype.size
    if len(dims) < 2 or dtype not in (Dtype.F32, Dtype.F16, Dtype.BF16):
        raise ValueError(f"panel16 holds float matrices, not {dtype.name} of rank {len(dims)}")
    rows = int(dims[-2])
    return count // rows * (-(-rows // PANEL) * PANEL) * dtype.size if rows else 0


def to_storage(values: Array, dtype: Dtype, *, where: str = "") -> Array:
    """float32 `values` of any shape as `dtype`, rounded to nearest even; NaN stays NaN.

    Raises EdgecError (E0002) when a finite value is too large for the storage type: an infinity made in silence would
    spoil the whole model.
    """
    if dtype is Dtype.F32:
        return np.asarray(values, dtype="<f4")
    # In slices: the steps between take several times the tensor, which may be as large as the memory that is left.
    source = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    stored = np.empty(source.size, dtype.numpy)
    for start in range(0, source.size, _SLICE):
        stored[start : start + _SLICE] = _rounded(source[start : start + _SLICE], dtype, where)
    return stored.reshape(np.shape(values))


def _rounded(source: Array, dtype: Dtype, where: str) -> Array:
    if dtype is Dtype.F16:
        with np.errstate(over="ignore"):
            stored: Array = source.astype("<f2")
        overflow = np.isinf(stored) & ~np.isinf(source)
    elif dtype is Dtype.BF16:
        bits = source.view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        # A NaN whose set bits are all in the lower half would round to infinity: set its quiet bit instead.
        stored = np.where(np.isnan(source), ((bits >> 16) | 0x40).astype("<u2"), rounded)
        overflow = ((stored & 0x7FFF) == 0x7F80) & ~np.isinf(source)
    else:
        raise ValueError(f"weights are not stored as {dtype.name}")
    if overflow.any():
        raise EdgecError(
            "E0002", stage="weights", where=where, found=f"a value of {float(np.abs(source[overflow]).max()):g}",
            wanted=f"values that fit {dtype.name.lower()}", hint="store this model with --weights bf16 or auto",
        )
    return stored


def from_storage(stored: Array, dtype: Dtype) -> Array:
    """The float32 values of an F32, F16 or BF16 array; other types unchanged."""
    if dtype is Dtype.BF16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32) if dtype is Dtype.F16 else stored


def lossless_dtype(values: Array) -> Dtype:
    """The smallest storage that keeps every float32: BF16 if all low halves are zero, else F16 if exact, else F32."""
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    slices = [flat[i : i + _SLICE] for i in range(0, flat.size, _SLICE)]
    if all(not (part.view(np.uint32) & 0xFFFF).any() for part in slices):
        return Dtype.BF16
    with np.errstate(over="ignore"):
        exact = all(np.array_equal(part.astype(np.float16).astype(np.float32), part) for part in slices)
    return Dtype.F16 if exact else Dtype.F32


def pack_panel16(stored: Array) -> Array:
    """[..., N, K] of any dtype to [..., ceil(N / 16), K, 16], rows beyond N zero."""
    *lead, n, k = stored.shape
    panels = -(-n // PANEL)
    if n != panels * PANEL:
        pad = [(0, 0)] * len(lead) + [(0, panels * PANEL - n), (0, 0)]
        stored = np.pad(stored, pad)
    return np.ascontiguousarray(stored.reshape(*lead, panels, PANEL, k).swapaxes(-1, -2))


def unpack_panel16(packed: Array, rows: int) -> Array:
    """The inverse of `pack_panel16`: [..., ceil(N / 16), K, 16] to [..., rows, K]."""
    *lead, panels, k, _ = packed.shape
    return np.ascontiguousarray(packed.swapaxes(-1, -2).reshape(*lead, panels * PANEL, k)[..., :rows, :])


def pack(values: Array, dtype: Dtype, fmt: Format, *, where: str = "") -> Array:
    """The array whose bytes go into the bundle, from the logical values (float32 for the float types).

    Raises EdgecError (E0002) when a value does not fit the storage type.
    """
    stored = to_storage(values, dtype, where=where) if dtype in (Dtype.F32, Dtype.F16, Dtype.BF16) else values
    stored = np.ascontiguousarray(stored, dtype=dtype.numpy)
    return pack_panel16(stored) if fmt is Format.PANEL16 else stored


def unpack(data: bytes | memoryview, dtype: Dtype, fmt: Format, dims: Sequence[int]) -> Array:
    """The logical values (float32 for the float types) of a tensor's stored bytes."""
    flat = np.frombuffer(data, dtype=dtype.numpy)
    if fmt is Format.PANEL16:
        *lead, rows, k = dims
        flat = unpack_panel16(flat.reshape(*lead, -(-rows // PANEL), k, PANEL), rows)
    return from_storage(flat.reshape(tuple(dims)), dtype)
