"""GGUF files: metadata and where the tensors lie; nothing is believed that the file's length does not allow.

Layout (version 2 and 3, little-endian): "GGUF", version u32, tensors u64, pairs u64; the pairs (key, type u32, value);
the tensors (name, rank u32, dims u64 fastest first, type u32, offset u64); padding to `general.alignment`; the data.
Strings are a length u64 and UTF-8.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError
from edgec.importers.ggml_blocks import TYPES, matrix
from edgec.importers.stored import Dense, Stored

STAGE = "import"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# Far above every real model: a vocabulary is the longest list.
_TENSORS, _PAIRS, _ITEMS, _TEXT, _RANK = 1 << 16, 1 << 16, 1 << 24, 1 << 24, 4
_ELEMENTS = 1 << 40


class _DamagedError(ValueError):
    """Something that a file written by the format's rules cannot contain."""


class _Reader:
    """Reads forward through the file's header; every length is compared with what is left before it is used."""

    def __init__(self, data: Any) -> None:
        self._data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            raise _DamagedError(f"{count} bytes at {self.at}, where the file has {len(self._data) - self.at}")
        self.at += count
        return bytes(self._data[self.at - count : self.at])

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self, limit: int, what: str) -> int:
        value = int(self.number("<Q"))
        if value > limit:
            raise _DamagedError(f"{value} {what}")
        return value

    def text(self) -> str:
        return self.take(self.count(_TEXT, "bytes of text")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _DamagedError(f"a value of type {kind}")
        item = int(self.number("<I"))
        count = self.count(_ITEMS, "items")
        if item == _STRING:
            return [self.text() for _ in range(count)]
        if item not in _SCALARS:
            raise _DamagedError(f"an array of type {item}")
        form = _SCALARS[item]
        data = self.take(count * struct.calcsize(form))
        return [x for (x,) in struct.iter_unpack(form, data)]


@dataclass(frozen=True)
class GGUF:
    """metadata: key -> number, bool, text or list of them. tensors: by their names in the file, not read."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read_gguf(path: Path) -> GGUF:
    """Reads the header. Raises EdgecError: E0003 for no file, E0101 for a damaged one, E0103 for a type of tensor that
    is not read here."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except OSError as e:
        raise EdgecError("E0003", stage=STAGE, where=str(path), found=str(e), wanted="a GGUF file") from e
    except ValueError as e:  # an empty file cannot be mapped
        raise EdgecError("E0101", stage=STAGE, where=str(path), found=str(e)[:300], wanted="a complete GGUF file",
                         hint="copy or download the file again") from e


def _parse(path: Path, data: Any) -> GGUF:
    reader = _Reader(data)
    magic, version = reader.take(4), reader.number("<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise _DamagedError(f"{magic!r}, version {version}")
    tensors, pairs = reader.count(_TENSORS, "tensors"), reader.count(_PAIRS, "pairs")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = reader.text()
        if key in metadata:
            raise _DamagedError(f"{key!r} twice")
        metadata[key] = reader.value(int(reader.number("<I")))
    infos = [_info(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise _DamagedError(f"general.alignment = {alignment!r}")
    start = -(-reader.at // alignment) * alignment
    found: dict[str, Stored] = {}
    for name, dims, kind, offset in infos:
        if name in found:
            raise _DamagedError(f"tensor {name!r} twice")
        found[name] = _tensor(path, name, dims, kind, start, offset, alignment, len(data))
    return GGUF(path, metadata, found)


def _info(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, rank = reader.text(), int(reader.number("<I"))
    if not 1 <= rank <= _RANK:
        raise _DamagedError(f"{name!r} has {rank} dims")
    dims = tuple(reader.count(_ELEMENTS, "values in a dim") for _ in range(rank))
    return name, dims[::-1], int(reader.number("<I")), int(reader.number("<Q"))


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int, offset: int, alignment: int, end: int
            ) -> Stored:
    row = TYPES.get(kind)
    if row is None:
        raise EdgecError("E0103", stage=STAGE, where=f"{path}, {name}", found=f"a tensor of ggml type {kind}",
                         wanted=f"one of {', '.join(r.name for r in TYPES.values())}",
                         hint="take a file in another quantization, or the original model")
    count = 1
    for d in shape:
        count *= d
    if not 1 <= count <= _ELEMENTS or shape[-1] % row.block:
        raise _DamagedError(f"{name!r} {list(shape)} in blocks of {row.block}")
    size = count // row.block * row.bytes
    if offset % alignment or start + offset + size > end:
        raise _DamagedError(f"{name!r} at {start + offset}, {size} bytes, in a file of {end}")
    if row.numpy is not None:
        return Dense(path, start + offset, row.numpy, shape)
    if len(shape) != 2:
        raise _DamagedError(f"{name!r} {list(shape)} is quantized and no matrix")
    return matrix(row, path, start + offset, (shape[0], shape[1]))
