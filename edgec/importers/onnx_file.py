"""Reads an .onnx file without trusting it.

Weights may stand in files beside the model. Those must lie in the model's own folder whatever the path says (no
absolute path, no `..`, no link that leads out, no second hard link), and every tensor must lie inside its file: all of
it is checked before anything is mapped, because a model can come from anywhere and must not make edgec read, and
publish in a bundle, somebody's other files.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.weights import sha256_of

STAGE = "import"
# Limits that no honest file reaches: protobuf itself stops at 2 GiB.
MAX_FILE_BYTES = (1 << 31) - 1
MAX_NODES = 1 << 20
MAX_ELEMENTS = 1 << 40
_EXTERNAL = 1  # onnx.TensorProto.EXTERNAL


def read(path: Path) -> tuple[ir.Model, Callable[[], str]]:
    """(graph as it is in the file with weights still mapped, what hashes the file and its external files: SHA-256).

    Raises EdgecError: E0003 for a file that cannot be read, E0101 for one that is not an ONNX model or breaks a rule
    above.
    """
    import onnx

    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _bad(path, f"{size} bytes", f"at most {MAX_FILE_BYTES}, with larger weights as external data")
        data = path.read_bytes()
    except OSError as e:
        raise EdgecError("E0003", stage=STAGE, where=str(path), found=str(e), wanted="a readable .onnx file") from e
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as e:  # protobuf's DecodeError, whose module has no types, or a RecursionError
        raise _bad(path, f"no ONNX model: {e}", "a complete .onnx file") from e
    del data  # the message has copied it
    if not proto.HasField("graph") or not proto.opset_import:
        raise _bad(path, "no graph or no operator set", "an ONNX model")
    folder = Path(os.path.realpath(path.parent))
    graphs = list(_graphs(proto))
    nodes = sum(len(g.node) for g in graphs)
    if nodes > MAX_NODES:
        raise _bad(path, f"{nodes} nodes", f"at most {MAX_NODES}")
    used: dict[str, Path] = {}
    for tensor in _tensors(graphs):
        _check_tensor(tensor, path, folder, used)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as e:  # onnx_ir raises whatever a malformed field leads to
        raise _bad(path, f"a malformed model: {type(e).__name__}: {str(e)[:300]}", "a valid ONNX model") from e
    _anchor(model, folder)
    return model, functools.partial(_sha256, path, used)


def _bad(path: Path, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0101", stage=STAGE, where=str(path), found=found, wanted=wanted, hint=hint)


def _graphs(proto: Any) -> Iterator[Any]:
    """The graph, nested graphs, and functions (which have `node` too)."""
    stack: list[Any] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attr in node.attribute:
                if attr.HasField("g"):
                    stack.append(attr.g)
                stack.extend(attr.graphs)


def _tensors(graphs: list[Any]) -> Iterator[Any]:
    for graph in graphs:
        if hasattr(graph, "initializer"):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attr in node.attribute:
                if attr.HasField("t"):
                    yield attr.t
                yield from attr.tensors
                for sparse in (*((attr.sparse_tensor,) if attr.HasField("sparse_tensor") else ()),
                               *attr.sparse_tensors):
                    yield from (sparse.values, sparse.indices)


def _check_tensor(tensor: Any, path: Path, folder: Path, used: dict[str, Path]) -> None:
    """Shape and bytes agree, and external bytes are where they may be."""
    where = f"{path}: tensor {tensor.name!r}"
    if tensor.data_type == 0 or tensor.data_type not in {d.value for d in ir.DataType}:
        raise EdgecError("E0101", stage=STAGE, where=where, found=f"data type {tensor.data_type}",
                         wanted="a data type of ONNX")
    dtype = ir.DataType(tensor.data_type)
    dims = list(tensor.dims)
    # A size of 0 does not make the others harmless: numpy multiplies those that are left.
    if any(d < 0 for d in dims) or math.prod(d or 1 for d in dims) > MAX_ELEMENTS:
        raise EdgecError("E0101", stage=STAGE, where=where, found=f"shape {dims}", wanted="sizes from 0")
    if dtype == ir.DataType.STRING:
        return
    wanted = math.ceil(math.prod(dims) * dtype.itemsize)
    if tensor.data_location != _EXTERNAL:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != wanted:
            raise EdgecError("E0101", stage=STAGE, where=where, found=f"{len(tensor.raw_data)} bytes",
                             wanted=f"{wanted} bytes for {dtype} {dims}")
        if not tensor.HasField("raw_data"):
            _check_fields(tensor, dtype, where)
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location not in used:
        used[location] = _confined(location, where, folder)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or wanted)
    except ValueError as e:
        raise EdgecError("E0101", stage=STAGE, where=where, found=str(e), wanted="numbers as offset and length") from e
    size = used[location].stat().st_size
    if offset < 0 or length != wanted or offset + length > size:
        raise EdgecError("E0101", stage=STAGE, where=where, found=f"bytes {offset}..{offset + length} of {size}",
                         wanted=f"{wanted} bytes for {dtype} {dims}, inside {location}",
                         hint="copy or export the model again with all of its files")


def _check_fields(tensor: Any, dtype: ir.DataType, where: str) -> None:
    """Values that stand in a typed field instead of bytes: as many as the shape has."""
    count = math.prod(tensor.dims)
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        count *= 2
    elif dtype.itemsize < 1:  # several in one byte, a byte in one int32
        count = math.ceil(count * dtype.itemsize)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    found = sum(len(f) for f in fields)
    if found != count:
        raise EdgecError("E0101", stage=STAGE, where=where, found=f"{found} values",
                         wanted=f"{count} for {dtype} {list(tensor.dims)}")


def _confined(location: str, where: str, folder: Path) -> Path:
    """The file that `location` names inside `folder` (a real path); E0101 when it is anything else."""
    def refuse(found: str, hint: str = "") -> EdgecError:
        return EdgecError("E0101", stage=STAGE, where=where, found=f"external data {location!r}: {found}",
                          wanted="a plain file inside the model's own folder", hint=hint)

    windows = "\\" in location or location[1:2] == ":"
    if not location or "\0" in location or windows or Path(location).is_absolute() or ".." in Path(location).parts:
        raise refuse("not a path inside the folder")
    real = Path(os.path.realpath(folder / location))
    if not real.is_relative_to(folder):
        raise refuse("a link out of the folder", "copy the model with its links resolved: cp -rL")
    try:
        facts = real.stat()
    except OSError as e:
        raise refuse(e.strerror or str(e), "copy the model together with its data files") from e
    if not stat.S_ISREG(facts.st_mode):
        raise refuse("not a regular file")
    if facts.st_nlink > 1:
        raise refuse("a file with a second hard link, which may lie outside",
                     "copy the model's folder without --link")
    return real


def _anchor(model: ir.Model, folder: Path) -> None:
    """Lets every external tensor find its file from anywhere; the paths themselves have been checked."""
    import onnx_ir.external_data

    onnx_ir.external_data.set_base_dir(model.graph, folder)
    for function in model.functions.values():
        onnx_ir.external_data.set_base_dir(function.graph, folder)


def _sha256(path: Path, used: dict[str, Path]) -> str:
    digest = sha256_of(path)
    if not used:
        return digest
    lines = [f"{digest}\n"]
    lines += [f"{location} {sha256_of(file)}\n" for location, file in sorted(used.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
