"""Float weights stored in 16 bits: a Cast behind each makes float32 of it where the model is loaded.

For backends whose files have no storage type beside the type of computation. A Cast and not a DequantizeLinear:
onnxruntime computes a Cast of a constant once, and keeps a DequantizeLinear for its integer kernels.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype, lossless_dtype, to_storage
from edgec.ir.model import Builder, add_initializer, const_tensor, graphs, is_op, static_shape
from edgec.ir.passes import Context, Pass
from edgec.ir.weights import opened, release

OPTION = "narrow_weights.weights"
_LEAST = 1024  # values; biases and scales stay as they are
_KINDS = {Dtype.F16: ir.DataType.FLOAT16, Dtype.BF16: ir.DataType.BFLOAT16}
_CHOICES = {"f16": Dtype.F16, "bf16": Dtype.BF16}


class NarrowWeights(Pass):
    """ctx.options["narrow_weights.weights"]: auto (the smallest type that keeps every value), f32, f16, bf16.

    Of linears, convolutions and lookups. Raises EdgecError (E0002) for a value that the type cannot hold.
    """

    exact: ClassVar[bool] = False

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        wanted = ctx.options.get(OPTION, "f32")
        modified = False
        owned = [(graph, value) for graph in graphs(model) for value in list(graph.initializers.values())]
        for graph, value in owned if wanted != "f32" else ():
            shape = static_shape(value)
            if value.dtype != ir.DataType.FLOAT or shape is None or len(shape) < 2 or np.prod(shape) < _LEAST or (
                    value.is_graph_output() or not _is_weight(value)):
                continue
            dtype = _CHOICES.get(str(wanted)) or _smallest(value)
            if dtype in _KINDS:
                _narrow(graph, value, dtype)
                modified = True
                ctx.rules.add(self.name, f"{value.name}: {dtype.name.lower()}")
        return model, modified


def _smallest(value: ir.Value) -> Dtype:
    with opened(value) as array:
        return lossless_dtype(array)


def _is_weight(value: ir.Value) -> bool:
    """Whether only linears, convolutions and lookups read it."""
    def reads(node: ir.Node, index: int) -> bool:
        if is_op(node, "Transpose"):
            return all(is_op(use.node, "MatMul") for use in node.outputs[0].uses())
        return (is_op(node, "MatMul", "Gemm", "Conv", "ConvTranspose") and index == 1) or (
            is_op(node, "Gather") and index == 0)

    return bool(value.uses()) and all(reads(use.node, use.idx) for use in value.uses())


def _narrow(graph: ir.Graph, value: ir.Value, dtype: Dtype) -> None:
    """Of an initializer of `graph`, which nodes of nested graphs may read."""
    source, name = const_tensor(value), value.name or "weight"
    assert source is not None  # it is an initializer
    kind, shape = _KINDS[dtype], tuple(int(d) for d in source.shape.numpy())

    def stored() -> Array:
        bits = to_storage(np.asarray(source.numpy()), dtype, where=name)
        release(source)
        return bits.view(kind.numpy())

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(stored(), dtype=kind, name=name)

    readers = {use.node for use in value.uses()}
    # Where a nested graph reads it, the Cast comes first of all: onnxruntime computes it before any node runs.
    inside = all(node.graph is graph for node in readers)
    first = next(node for node in graph if node in readers or not inside)
    op = Builder(first)
    small = op.tensor(ir.LazyTensor(compute, dtype=kind, shape=ir.Shape(shape), name=name, cache=False), f"{name}.16")
    wide = op.Cast(small, to=int(ir.DataType.FLOAT))
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    wide.name = f"{name}/Cast"
    op.nodes[0].name = wide.name
    graph.insert_before(first, op.nodes)
    value.replace_all_uses_with(wide)
    del graph.initializers[name]
    add_initializer(graph, small)
