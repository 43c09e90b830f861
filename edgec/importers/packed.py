"""A quantized matrix in the one form that all checkpoint formats are brought to, and how it enters a graph.

    w[n, k] = (code[n, k] - zero[n, g]) * scale[n, g] - minimum[n, g],   g = k // block

The graph gets it as blocked DequantizeLinear of constants in front of whatever read the weight; a minimum is
subtracted behind, an order of columns undone by a Gather. Codes stay in the checkpoint's files until they are read.
Scales are FLOAT: products of codes and 16-bit scales are exact there, so the dense weights, rounded to 16 bits, are
those of the format's own dequantizer bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.importers.stored import Stored, Window
from edgec.ir.model import Builder, add_initializer

_AXIS = 1


@dataclass(frozen=True)
class Blocks(Stored):
    """Values per group of `block` columns: as floats, or again as codes with scales of their own.

    values: reads [N, G] (float32, or the codes in their integer type). scale: None for floats.
    """

    shape: tuple[int, ...]
    values: Callable[[], Array]
    dtype: ir.DataType = ir.DataType.FLOAT
    scale: Blocks | None = None
    zero: Blocks | None = None
    block: int = 0

    def read(self) -> Array:
        codes = self.values()
        if self.scale is None:
            return codes
        values = codes.astype(np.int32)
        if self.zero is not None:
            values = values - self._spread(self.zero.read().astype(np.int32))
        dense: Array = values.astype(np.float32) * self._spread(self.scale.read())
        return dense

    def _spread(self, groups: Array) -> Array:
        return np.repeat(groups, self.block, _AXIS)[:, : self.shape[1]]

    def map_rows(self, change: Callable[[Array], Array], count: int) -> Blocks:
        """The same with rows selected or reordered."""
        def rows(part: Blocks | None) -> Blocks | None:
            return None if part is None else part.map_rows(change, count)

        return replace(self, shape=(count, self.shape[1]), values=lambda: change(self.values()),
                       scale=rows(self.scale), zero=rows(self.zero))

    def to_graph(self, op: Builder, name: str) -> ir.Value:
        """Initializers and, for codes, the DequantizeLinear nodes over them."""
        def compute() -> ir.TensorProtocol:
            return ir.Tensor(np.ascontiguousarray(self.values()).astype(self.dtype.numpy(), copy=False),
                             dtype=self.dtype, name=name)

        tensor = ir.LazyTensor(compute, dtype=self.dtype, shape=ir.Shape(self.shape), name=name, cache=False)
        codes = op.tensor(tensor, name)
        if self.scale is None:
            return codes
        parts = [codes, self.scale.to_graph(op, f"{name}.scale")]
        if self.zero is not None:
            parts.append(self.zero.to_graph(op, f"{name}.zero"))
        return op.DequantizeLinear(*parts, axis=_AXIS, block_size=self.block)


@dataclass(frozen=True)
class Packed(Stored):
    """A matrix [N, K]. codes: with their scale. minimum: [N, K / block]. order: code column k is matrix column
    order[k]."""

    codes: Blocks
    minimum: Blocks | None = None
    order: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # always that of the codes
        return self.codes.shape

    def read(self) -> Array:
        dense = self.codes.read()
        if self.minimum is not None:
            dense = dense - np.repeat(self.minimum.read(), self.codes.block, _AXIS)
        return dense if self.order is None else np.ascontiguousarray(dense[:, np.argsort(self.order)])

    def rows(self, first: int, end: int) -> Packed:
        return self.map_rows(lambda a: a[first:end], end - first)

    def map_rows(self, change: Callable[[Array], Array], count: int) -> Packed:
        """The same matrix with rows selected or reordered; nothing is read."""
        minimum = None if self.minimum is None else self.minimum.map_rows(change, count)
        return replace(self, codes=self.codes.map_rows(change, count), minimum=minimum)

    def to_graph(self, op: Builder, name: str) -> ir.Value:
        """The nodes that make the dense matrix."""
        rows, columns = self.shape
        value = self.codes.to_graph(op, f"{name}.codes")
        if self.minimum is not None:
            groups = columns // self.codes.block
            blocks = op.Reshape(value, op.ints([rows, groups, self.codes.block]))
            least = op.Reshape(self.minimum.to_graph(op, f"{name}.minimum"), op.ints([rows, groups, 1]))
            value = op.Reshape(op.Sub(blocks, least), op.ints([rows, columns]))
        if self.order is not None:
            value = op.Gather(value, op.const(np.argsort(self.order).astype(np.int64), name=f"{name}.order"),
                              axis=_AXIS)
        return value


def packed_of(tensor: Stored) -> Packed | None:
    """The packed matrix that `tensor` is, or whose rows it is. Raises ValueError for other parts of one."""
    if not isinstance(tensor, Window) or not isinstance(tensor.source, Packed):
        return tensor if isinstance(tensor, Packed) else None
    rows = tensor.rows()
    if rows is None:
        raise ValueError("a quantized weight is not used row by row")
    return tensor.source.rows(*rows)


def attach(model: ir.Model, matrices: Mapping[str, Packed]) -> None:
    """Replaces the initializers of these names by nodes that unpack the matrices; all readers then read those."""
    graph = model.graph
    for name, matrix in matrices.items():
        old = graph.initializers[name]
        first = graph[0]
        op = Builder(first)
        value = matrix.to_graph(op, name)
        for i, node in enumerate(op.nodes):
            node.name = f"{name}/{node.op_type}_{i}"
            node.outputs[0].name = f"{name}/dense_{i}"
            node.metadata_props.clear()
        for made in op.initializers:
            add_initializer(graph, made)
        graph.insert_before(first, op.nodes)
        value.shape, value.type = ir.Shape(matrix.shape), ir.TensorType(ir.DataType.FLOAT)
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        del graph.initializers[name]
