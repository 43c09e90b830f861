"""Weights without the memory: read one at a time, transformed lazily, released after use.

An initializer may be in RAM (`ir.Tensor`), mapped from a file (`ir.ExternalTensor`, safetensors) or computed on demand
(`ir.LazyTensor`). Passes keep them that way; only the emitter reads bytes, one tensor at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import Array, const_tensor, graphs

_CHUNK = 1 << 20
_TRANSPOSE_OF = "edgec.transpose_of"


@contextmanager
def opened(value: ir.Value) -> Iterator[Array]:
    """The constant of `value` as a numpy array (bfloat16 and smaller as ml_dtypes) for the length of a `with` block.

    A mapped file is unmapped afterwards, so the array should not be kept. Raises EdgecError (EDGEC-E0101) when the
    value is no constant or its bytes cannot be read.
    """
    tensor = const_tensor(value)
    if tensor is None:
        raise EdgecError("E0101", stage="weights", where=value.name or "?", found="no constant")
    try:
        yield np.asarray(tensor.numpy())
    except (OSError, ValueError) as e:
        raise EdgecError("E0101", stage="weights", where=value.name or "?", found=str(e),
                         wanted=f"{tensor.dtype} {list(tensor.shape.numpy())} in the source's weight file") from e
    finally:
        release(tensor)


def release(tensor: ir.TensorProtocol) -> None:
    """Unmaps an external tensor's file; the next read maps it again. Tensors in RAM stay."""
    if isinstance(tensor, ir.ExternalTensor):
        # A view somebody still holds keeps the mapping alive; its pages are clean and the system may drop them.
        with suppress(BufferError):
            tensor.release()


def lazy(source: ir.TensorProtocol, change: Callable[[Array], Array], shape: tuple[int, ...], name: str
         ) -> ir.TensorProtocol:
    """A tensor that is `change(source)`, computed whenever it is read and not kept.

    `change` keeps the dtype and gives `shape`. Small sources are changed at once: a chain of closures over a few
    bytes helps no one.
    """
    def compute() -> ir.TensorProtocol:
        array = np.asarray(change(np.asarray(source.numpy())), order="C")
        if array.shape != shape:
            raise EdgecError("E0001", stage="weights", where=name, found=str(array.shape), wanted=str(shape))
        release(source)
        return ir.Tensor(array, dtype=source.dtype, name=name)

    if math.prod(shape) * source.dtype.itemsize <= _CHUNK:
        return compute()
    return ir.LazyTensor(compute, dtype=source.dtype, shape=ir.Shape(shape), name=name, cache=False)


def transposed(source: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The transpose of a matrix, lazily; the transpose of a transpose made here is the first tensor itself."""
    origin = getattr(source, "meta", {}).get(_TRANSPOSE_OF)
    if origin is not None:
        return origin  # type: ignore[no-any-return]
    rows, columns = source.shape.numpy()
    result = lazy(source, lambda array: array.T, (columns, rows), name)
    if isinstance(result, ir.Tensor | ir.LazyTensor):
        result.meta[_TRANSPOSE_OF] = source
    return result


def total_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, a tensor used by two of them counted once."""
    seen: dict[int, int] = {}
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                seen[id(value.const_value)] = value.const_value.nbytes
    return sum(seen.values())


def sha256_of(source: Path) -> str:
    """SHA-256 of a file, or of a folder: relative names and contents of its files in name order.

    Hidden files and folders are left out: caches and version control are not the model. Raises EdgecError
    (EDGEC-E0003) when something cannot be read.
    """
    hasher = hashlib.sha256()
    try:
        if source.is_dir():
            files = sorted(
                p for p in source.rglob("*")
                if p.is_file() and not any(part.startswith(".") for part in p.relative_to(source).parts)
            )
            for path in files:
                hasher.update(path.relative_to(source).as_posix().encode() + b"\0")
                hasher.update(str(path.stat().st_size).encode() + b"\0")
                _feed(hasher.update, path)
        else:
            _feed(hasher.update, source)
    except OSError as e:
        raise EdgecError("E0003", stage="weights", where=str(source), found=str(e), wanted="a readable path") from e
    return hasher.hexdigest()


def _feed(update: Callable[[bytes], None], path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            update(chunk)
