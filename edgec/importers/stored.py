"""Tensors as they lie in checkpoint files: known by shape, read one at a time, never kept.

Reading goes through ordinary file reads instead of a mapping: pages of a mapped file count as this process's memory
until something drops them, and a checkpoint is often larger than the memory. Builders that rearrange a state dict
(rename, split, transpose) are given placeholders without values; what they did is read off the placeholders' strides.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.errors import EdgecError

STAGE = "import"
# The safetensors names of types; float8 and smaller have no place in a checkpoint that is read as numbers.
TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}
_HEADER_LIMIT = 100 << 20
# No honest tensor has more; numpy refuses more dims and larger sizes, even beside a size of 0.
_RANK, _SIZE = 8, 1 << 40
# Norms, biases and scalars are looked at by many passes: keeping them costs less than it saves.
_SMALL = 1 << 14


class Stored(ABC):
    """A tensor of a checkpoint. shape: its logical dims."""

    shape: tuple[int, ...]

    @abstractmethod
    def read(self) -> Array:
        """The values, newly read; float types as float32. Raises EdgecError (E0101) when the file lacks them."""


@dataclass(frozen=True)
class Dense(Stored):
    """Row-major values in a file."""

    file: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def raw(self) -> Array:
        """The values in their own type."""
        count = math.prod(self.shape)
        try:
            values = np.fromfile(self.file, self.dtype, count, offset=self.offset)
        except OSError as e:
            raise EdgecError("E0101", stage=STAGE, where=str(self.file), found=str(e), wanted="a readable file") from e
        if values.size != count:
            raise EdgecError("E0101", stage=STAGE, where=str(self.file), found=f"{values.size} values",
                             wanted=f"{count} from byte {self.offset}", hint="copy or download the file again")
        return values.reshape(self.shape)

    def read(self) -> Array:
        values = self.raw()
        is_float = self.dtype.kind == "f" or self.dtype == TYPES["BF16"]
        return values.astype(np.float32, copy=False) if is_float else values


@dataclass(frozen=True)
class Window(Stored):
    """A strided part of another tensor, as torch describes views: sizes, strides and offset in values."""

    source: Stored
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def read(self) -> Array:
        flat = np.ascontiguousarray(self.source.read()).reshape(-1)
        item = flat.itemsize
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, [s * item for s in self.strides], writeable=False
        )
        return np.array(view, order="C")

    def rows(self) -> tuple[int, int] | None:
        """(first, end) when this is whole rows of a matrix, one after the other; else None."""
        if len(self.shape) != 2 or len(self.source.shape) != 2:
            return None
        width = self.source.shape[1]
        whole = self.shape[1] == width and self.strides == (width, 1) and self.offset % width == 0
        return (self.offset // width, self.offset // width + self.shape[0]) if whole else None


def open_shards(files: Iterable[Path]) -> dict[str, Dense]:
    """The tensors of the files of one checkpoint, none of them read. Raises EdgecError (E0101) as open_safetensors, and
    for a tensor that two files hold: nothing says which of them is meant."""
    tensors: dict[str, Dense] = {}
    for file in files:
        for name, tensor in open_safetensors(file).items():
            if name in tensors:
                raise EdgecError("E0101", stage=STAGE, where=f"{file}, {name!r}",
                                 found=f"a tensor that {tensors[name].file.name} holds too", wanted="each tensor once")
            tensors[name] = tensor
    return tensors


def open_safetensors(file: Path) -> dict[str, Dense]:
    """The tensors of a safetensors file, none of them read.

    Raises EdgecError (E0101) for a header that breaks the format's rules: each name once, whole sizes from 0, a type
    and shape that give the bytes of its range, and ranges that cover the data without overlap or gap.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length).decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError(f"a header that is a {type(header).__name__}")
        ranges = {k: _range(k, entry) for k, entry in header.items() if k != "__metadata__"}
        _check_cover(ranges, size - 8 - length)
    except (OSError, ValueError, RecursionError) as e:
        raise EdgecError("E0101", stage=STAGE, where=str(file), found=str(e)[:300],
                         wanted="a complete safetensors file", hint="copy or download the file again") from e
    return {k: Dense(file, 8 + length + first, dtype, shape) for k, (first, _, dtype, shape) in ranges.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's own reader keeps the last of two equal names and says nothing."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(k for k, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r} twice")
    return found


def _range(name: str, entry: object) -> tuple[int, int, np.dtype[Any], tuple[int, ...]]:
    """(first byte, byte after the last, dtype, shape) of a header's entry. Raises ValueError for what is not one."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not dtype, shape and data_offsets")
    offsets, shape = entry["data_offsets"], entry["shape"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise ValueError(f"{name!r} lies at bytes {str(offsets)[:100]}")
    if not isinstance(shape, list) or len(shape) > _RANK or not all(map(_is_count, shape)) or (
            math.prod(d or 1 for d in shape) > _SIZE):
        raise ValueError(f"{name!r} has shape {str(shape)[:100]}")
    dtype = TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{name!r} has type {str(entry['dtype'])[:100]}")
    first, end = offsets
    if end - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} {shape} of {entry['dtype']} has {end - first} bytes")
    return first, end, dtype, tuple(shape)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _check_cover(ranges: Mapping[str, tuple[int, int, Any, Any]], size: int) -> None:
    """ValueError unless the ranges lie one after the other and fill `size` bytes."""
    if not ranges:
        raise ValueError("it holds no tensors")
    at, before = 0, "the header"
    for name, (first, end, _, _) in sorted(ranges.items(), key=lambda item: item[1][:2]):
        if first != at:
            raise ValueError(f"{name!r} begins at byte {first}, and {before} ends at {at}")
        at, before = end, repr(name)
    if at != size:
        raise ValueError(f"{before} ends at byte {at} of {size}")


class Placeholders:
    """A state dict without values, and the way back from what a builder made of it."""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        import torch

        self.state: dict[str, Any] = {k: torch.empty(t.shape, device="meta") for k, t in tensors.items()}
        # The torch tensors live as long as this object, so an identity is never reused.
        self._stored = {id(self.state[k]): t for k, t in tensors.items()}
        self._alive = tuple(self.state.values())

    def origin(self, tensor: Any) -> Stored | None:
        """What `tensor` stands for; None when it was computed and not only renamed, cut or turned around."""
        found = self._stored.get(id(tensor))
        if found is not None:
            return found
        source = self._stored.get(id(tensor._base)) if tensor._base is not None else None
        if source is None:
            return None
        return Window(source, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))


def lazy_float(stored: Stored, name: str) -> ir.TensorProtocol:
    """A FLOAT tensor that reads its file when it is asked for values: a small one once, others each time."""
    def compute() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(stored.read(), np.float32), name=name)

    return ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape(stored.shape), name=name,
                         cache=math.prod(stored.shape) <= _SMALL)


@dataclass(frozen=True)
class Held(Stored):
    """A torch tensor, over a mapped file or computed."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # always the tensor's
        return tuple(self.tensor.shape)

    def read(self) -> Array:
        import torch

        is_float = self.tensor.is_floating_point()
        values: Array = (self.tensor.to(torch.float32) if is_float else self.tensor).contiguous().numpy()
        return values
