"""Reads an .onnx file without trusting it.

Weights may stand in files beside the model. Those must lie in the model's own folder whatever the path says (no
absolute path, no `..`, no link that leads out, no second hard link), and every tensor must lie inside its file: all of
it is checked before anything is mapped, because a model can come from anywhere and must not make edgec read, and
publish in a bundle, somebody's other files. Checks are of open files, not of paths, and a file that is opened again
later must be the same one, unchanged.
"""

from __future__ import annotations

import functools
import hashlib
import math
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import graphs

STAGE = "import"
# Limits that no honest file reaches: protobuf itself stops at 2 GiB.
MAX_FILE_BYTES = (1 << 31) - 1
MAX_NODES = 1 << 20
MAX_ELEMENTS = 1 << 40
_EXTERNAL = 1  # onnx.TensorProto.EXTERNAL
_READ = os.O_RDONLY | os.O_CLOEXEC
# External tensors of at most so many values are kept once read: passes look at scales and shapes many times.
_SMALL = 1 << 14


# Device, inode, size, and time of the last change in ns.
_Identity = tuple[int, int, int, int]


@dataclass(frozen=True)
class DataFile:
    """A file of external data as it was when it was checked. folder: the model's own, a real path."""

    folder: Path
    parts: tuple[str, ...]
    identity: _Identity

    @property
    def size(self) -> int:
        return self.identity[2]

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file for the length of a `with` block. Raises EdgecError E0101 when it is no longer what was checked."""
        path = self.folder.joinpath(*self.parts)
        try:
            with os.fdopen(_open_below(self.folder, self.parts), "rb") as file:
                if _allowed(file.fileno()) != self.identity:
                    raise OSError(0, "another file, or changed since it was checked")
                yield file
        except OSError as e:
            raise _bad(path, e.strerror or str(e), "the file that was checked",
                       "read the model again, and leave its files alone meanwhile") from e


def _open_below(folder: Path, parts: tuple[str, ...]) -> int:
    """A descriptor of a file below `folder`, no link on the way followed, a pipe not waited for. Raises OSError."""
    at = os.open(folder, _READ | os.O_DIRECTORY)
    try:
        for i, part in enumerate(parts):
            kind = os.O_DIRECTORY if i + 1 < len(parts) else os.O_NONBLOCK
            below = os.open(part, _READ | os.O_NOFOLLOW | kind, dir_fd=at)
            os.close(at)
            at = below
    except OSError:
        os.close(at)
        raise
    return at


def _identity(descriptor: int) -> _Identity:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _allowed(descriptor: int) -> _Identity:
    """The identity of an open file. Raises OSError for what may not be external data."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "not a regular file")
    if found.st_nlink > 1:
        raise OSError(0, "a file with a second hard link, which may lie outside")
    return _identity(descriptor)


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    """The .onnx file itself, which may be a link to anywhere: the user named it. Raises EdgecError E0003."""
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as e:
        raise EdgecError("E0003", stage=STAGE, where=str(path), found=str(e), wanted="a readable .onnx file") from e


def read(path: Path) -> tuple[ir.Model, Callable[[], str]]:
    """(graph as it is in the file with weights still mapped, what hashes the file and its external files: SHA-256).

    Raises EdgecError: E0003 for a file that cannot be read, E0101 for one that is not an ONNX model or breaks a rule
    above.
    """
    import onnx

    with _readable(path) as stream:
        seen = _identity(stream.fileno())
        if seen[2] > MAX_FILE_BYTES:
            raise _bad(path, f"{seen[2]} bytes", f"at most {MAX_FILE_BYTES}, with larger weights as external data")
        data = stream.read()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as e:  # protobuf's DecodeError, whose module has no types, or a RecursionError
        raise _bad(path, f"no ONNX model: {e}", "a complete .onnx file") from e
    del data  # the message has copied it
    if not proto.HasField("graph") or not proto.opset_import:
        raise _bad(path, "no graph or no operator set", "an ONNX model")
    folder = Path(os.path.realpath(path.parent))
    main, bodies = list(_graphs([proto.graph])), list(_graphs(proto.functions))
    graphs = main + bodies
    nodes = sum(len(g.node) for g in graphs)
    if nodes > MAX_NODES:
        raise _bad(path, f"{nodes} nodes", f"at most {MAX_NODES}")
    if not _is_text(proto.producer_name, proto.producer_version, proto.domain, proto.doc_string, proto.metadata_props):
        raise _bad(path, "a name or description that is not UTF-8", "a valid ONNX model")
    for graph in main:
        _check_nodes(graph, path, function=False)
    for graph in bodies:
        _check_nodes(graph, path, function=True)
    used: dict[str, DataFile] = {}
    for tensor in _tensors(graphs):
        _check_tensor(tensor, path, folder, used)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as e:  # onnx_ir raises whatever a malformed field leads to
        raise _bad(path, f"a malformed model: {type(e).__name__}: {str(e)[:300]}", "a valid ONNX model") from e
    _replace_external(model, used)
    return model, functools.partial(_sha256, path, seen, used)


def _bad(path: Path, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0101", stage=STAGE, where=str(path), found=found, wanted=wanted, hint=hint)


def _graphs(roots: Sequence[Any]) -> Iterator[Any]:
    """The graphs or functions (which have `node` too), and those nested in them."""
    stack: list[Any] = [*roots]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attr in node.attribute:
                if attr.HasField("g"):
                    stack.append(attr.g)
                stack.extend(attr.graphs)


def _is_text(*parts: Any) -> bool:
    """Whether strings, and the keys and values of metadata, are text: protobuf gives what is not UTF-8 as bytes."""
    return all(isinstance(part, str) if isinstance(part, (str, bytes)) else
               all(isinstance(e.key, str) and isinstance(e.value, str) for e in part) for part in parts)


def _check_nodes(graph: Any, path: Path, *, function: bool) -> None:
    """Nodes are what every later stage takes them for; only in a function may an attribute stand for an argument."""
    import onnx

    kinds = onnx.AttributeProto
    if not _is_text(graph.name, graph.doc_string, graph.metadata_props, *(n.metadata_props for n in graph.node)):
        raise _bad(path, "a name or description that is not UTF-8", "a valid ONNX model")
    if not function and not _is_text(*(v.name for v in (*graph.input, *graph.output, *graph.initializer))):
        raise _bad(path, "a value whose name is not UTF-8", "a valid ONNX model")
    for node in graph.node:
        where = f"{path}: node {node.name!r} ({node.op_type!r})"
        names = (node.op_type, node.domain, node.name, node.doc_string, *node.input, *node.output)
        found = ""
        if not _is_text(*names, *(a.name for a in node.attribute)):
            found = "a name that is not UTF-8"
        elif not node.output:
            found = "no output"
        for attr in node.attribute:
            if attr.ref_attr_name:
                if not function:
                    found = f"attribute {attr.name!r} that is an argument {attr.ref_attr_name!r}, outside a function"
            elif (attr.type == kinds.TENSOR and not attr.HasField("t")) or (
                    attr.type == kinds.GRAPH and not attr.HasField("g")):
                found = f"attribute {attr.name!r} without a value"
        if found:
            raise EdgecError("E0101", stage=STAGE, where=where, found=found, wanted="a node as ONNX has them")


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


def _check_tensor(tensor: Any, path: Path, folder: Path, used: dict[str, DataFile]) -> None:
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
        if tensor.data_location == _EXTERNAL:
            raise EdgecError("E0101", stage=STAGE, where=where, found="text as external data",
                             wanted="text in the file")
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
    size = used[location].size
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


def _confined(location: str, where: str, folder: Path) -> DataFile:
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
    parts = real.relative_to(folder).parts
    try:
        descriptor = _open_below(folder, parts)
        try:
            return DataFile(folder, parts, _allowed(descriptor))
        finally:
            os.close(descriptor)
    except OSError as e:
        raise refuse(e.strerror or str(e), "copy the model together with its data files, without hard links") from e


def _replace_external(model: ir.Model, used: dict[str, DataFile]) -> None:
    """Lets every external tensor map the file that was checked, from anywhere."""
    def lazy(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return _lazy(tensor, used[str(tensor.location)]) if isinstance(tensor, ir.ExternalTensor) else tensor

    for graph in graphs(model, functions=True):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = lazy(value.const_value)
        for node in graph:
            for name, attr in list(node.attributes.items()):
                if attr.type == ir.AttributeType.TENSOR and not attr.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, lazy(attr.as_tensor()))
                elif attr.type == ir.AttributeType.TENSORS and not attr.is_ref():
                    node.attributes[name] = ir.AttrTensors(name, [lazy(t) for t in attr.as_tensors()])


def _lazy(tensor: ir.ExternalTensor, file: DataFile) -> ir.LazyTensor:
    """A tensor whose bytes are mapped when somebody asks, and unmapped when nobody holds them any more."""
    import onnx

    dtype, dims, offset = tensor.dtype, [int(d) for d in tensor.shape.numpy()], tensor.offset or 0
    count = math.prod(dims)

    def load() -> ir.TensorProtocol:
        with file.opened() as stream:
            if count <= _SMALL or dtype.itemsize < 1:
                stream.seek(offset)
                packed = stream.read(tensor.nbytes)
                return ir.TensorProtoTensor(onnx.TensorProto(data_type=dtype, dims=dims, raw_data=packed))
            whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(whole, dtype.numpy().newbyteorder("<"), count, offset).reshape(dims)
        return ir.Tensor(values, dtype=dtype, name=tensor.name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(dims), name=tensor.name, cache=count <= _SMALL)


def _sha256(path: Path, seen: _Identity, used: dict[str, DataFile]) -> str:
    """Of the .onnx file as it was read; with external data that of the digests of all files."""
    with _readable(path) as stream:
        if _identity(stream.fileno()) != seen:
            raise _bad(path, "another file, or changed since it was read", "the file that was read")
        digest = _digest(stream)
    if not used:
        return digest
    lines = [f"{digest}\n"]
    for location, file in sorted(used.items()):
        with file.opened() as stream:
            lines.append(f"{location} {_digest(stream)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
