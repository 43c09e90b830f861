"""Tensors as they lie in checkpoint files: known by shape, read one at a time, never kept.

Reading goes through ordinary file reads instead of a mapping: pages of a mapped file count as this process's memory
until something drops them, and a checkpoint is often larger than the memory. Builders that rearrange a state dict
(rename, split, transpose) are given placeholders without values; what they did is read off the placeholders' strides.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
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
# Norms, biases and scalars are looked at by many passes: reading them once costs less than it saves.
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


def open_safetensors(file: Path) -> dict[str, Dense]:
    """The tensors of a safetensors file, none of them read. Raises EdgecError (E0101) for a damaged header."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
        tensors: dict[str, Dense] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, end = (int(i) for i in entry["data_offsets"])
            shape = tuple(int(d) for d in entry["shape"])
            dtype = TYPES.get(entry["dtype"])
            if dtype is None:
                raise ValueError(f"{name} has type {entry['dtype']}")
            if len(shape) > _RANK or math.prod(d or 1 for d in shape) > _SIZE:
                raise ValueError(f"{name} has shape {shape}")
            if min((0, *shape)) < 0 or not 0 <= first <= end <= size - 8 - length:
                raise ValueError(f"{name} lies at bytes {first}..{end}")
            if end - first != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} {list(shape)} of {entry['dtype']} has {end - first} bytes")
            tensors[name] = Dense(file, 8 + length + first, dtype, shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise EdgecError("E0101", stage=STAGE, where=str(file), found=str(e)[:300],
                         wanted="a complete safetensors file", hint="copy or download the file again") from e
    return tensors


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
    """A FLOAT tensor that reads its file whenever it is asked for values; a small one is read now."""
    def compute() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(stored.read(), np.float32), name=name)

    if math.prod(stored.shape) <= _SMALL:
        return compute()
    return ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape(stored.shape), name=name, cache=False)


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
