"""Writes an ONNX file whose weights lie beside it, one weight in memory at a time.

`NAME.data` holds the bytes of every initializer from 1 KiB on, aligned so that a runtime maps it instead of reading it.
Weights of the same bytes are stored once. The same model gives the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from edgec import version
from edgec.ir.model import graphs
from edgec.ir.weights import release

_SMALL = 1 << 10  # bytes kept in the graph's own file
_LARGE, _PAGE, _LINE = 1 << 16, 1 << 12, 64  # weights from _LARGE on begin at a page, as mapping them asks for


def write_onnx(model: ir.Model, path: Path) -> dict[str, int]:
    """Writes `path` and, when there are weights, `path`.data; returns name -> bytes of every initializer.

    The given model stays as it is. What a file cannot say the same everywhere (paths of the importer, lines of the
    user's code) is left out. Raises OSError.
    """
    copy = model.clone()
    copy.producer_name, copy.producer_version, copy.doc_string = "edgec", version.__version__, None
    for graph in graphs(copy):
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
    sizes = _write_weights(copy.graph, path)
    path.write_bytes(ir.to_proto(copy).SerializeToString(deterministic=True))
    return sizes


def _write_weights(graph: ir.Graph, path: Path) -> dict[str, int]:
    data = path.with_name(path.name + ".data")
    sizes: dict[str, int] = {}
    known: dict[bytes, int] = {}
    with data.open("wb") as stream:
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            sizes[name] = tensor.nbytes
            if tensor.nbytes < _SMALL:
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
                                              name=name)
                continue
            offset = _append(stream, tensor, known)
            value.const_value = ir.ExternalTensor(data.name, offset, tensor.nbytes, tensor.dtype,
                                                  shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=path.parent)
    if not data.stat().st_size:
        data.unlink()
    return sizes


def _append(stream: BinaryIO, tensor: ir.TensorProtocol, known: dict[bytes, int]) -> int:
    """Where the bytes of `tensor` lie: at the end, or where they lay already."""
    content = tensor.tobytes()
    release(tensor)
    digest = hashlib.sha256(content).digest()
    if digest not in known:
        align = _PAGE if len(content) >= _LARGE else _LINE
        known[digest] = -(-stream.tell() // align) * align
        stream.write(b"\0" * (known[digest] - stream.tell()))
        stream.write(content)
    return known[digest]
