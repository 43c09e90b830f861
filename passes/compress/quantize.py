"""Replaces float weights by compressed ones that were found before: the solver's work enters the graph here.

The weight of a Gemm, MatMul, Conv or Gather becomes a decompressing operator in front of the same consumers. Uniform
codes with whole zero points are standard blocked DequantizeLinear, all else is edgec::BitPlaneToDense or
edgec::PaletteToDense. Nothing is read but the zero points: the new initializers read their part when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import BitsSpec, PaletteSpec, PaletteTensor, Quantized, codes_of
from edgec.compress.stored import StoredLayer
from edgec.errors import EdgecError
from edgec.ir.model import Array, Builder, add_initializer, const_tensor, describe, int_attr, ints_attr, is_op
from edgec.ir.ops import DOMAIN
from edgec.ir.passes import Context, Pass


class Quantize(Pass):
    """Compresses every weight named in `ctx.quantized` (initializer -> StoredLayer, Quantized or PaletteTensor).

    Declines weights that anything but a linear, a convolution or a lookup reads. Raises EdgecError (E0002) for a name
    or a shape that the model does not have: the results belong to another model.
    """

    exact: ClassVar[bool] = False

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        for name, found in ctx.quantized.items():
            value = model.graph.initializers.get(name)
            layer = StoredLayer.of(found) if isinstance(found, Quantized | PaletteTensor) else found
            if not isinstance(layer, StoredLayer):
                raise TypeError(f"{name}: {type(layer).__name__} is no compressed weight")
            if value is None or const_tensor(value) is None:
                raise _foreign(name, "no such weight in the model", "the name of an initializer")
            dims = tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()
            if len(dims) < 2 or (dims[0], int(np.prod(dims[1:]))) != layer.shape:
                raise _foreign(name, f"{layer.spec} of {list(layer.shape)}", f"a matrix for {list(dims)}")
            reason = _refusal(value)
            ctx.rules.add(self.name, name, reason)
            if not reason:
                _replace(model.graph, value, layer, dims)
        return model, ctx.rules.modified


def _foreign(name: str, found: str, wanted: str) -> EdgecError:
    return EdgecError("E0002", stage="pass quantize", where=name, found=found, wanted=wanted,
                      hint="use results that `edgec quantize` made of this model")


def _refusal(value: ir.Value) -> str:
    """Why a weight must stay as it is; "" when all its readers take a computed one."""
    if value.dtype != ir.DataType.FLOAT:
        return f"it is {value.dtype.name if value.dtype else 'of unknown type'}, and its readers compute in that"
    if value.is_graph_output() or value.is_graph_input():
        return "it is an input or an output of the model"
    if not value.uses():
        return "nothing reads it"
    strange = [use.node for use in value.uses() if not _reads_weight(use.node, use.idx)]
    return f"also read by {describe(strange[0])}" if strange else ""


def _reads_weight(node: ir.Node, index: int) -> bool:
    if is_op(node, "Transpose"):
        uses = node.outputs[0].uses()
        return ints_attr(node, "perm") == (1, 0) and all(is_op(u.node, "MatMul") and u.idx == 1 for u in uses)
    if is_op(node, "Gemm"):
        return index == 1 and int_attr(node, "transB", 0) == 1
    return (is_op(node, "Conv") and index == 1) or (is_op(node, "Gather") and index == 0)


def _replace(graph: ir.Graph, value: ir.Value, layer: StoredLayer, dims: tuple[int, ...]) -> None:
    name, first = value.name or "weight", graph[0]
    op = Builder(first)
    dense = _dense(op, name, layer)
    dense.shape, dense.type = ir.Shape(layer.shape), ir.TensorType(ir.DataType.FLOAT)
    if dims != layer.shape:
        # A convolution's matrix has the channel innermost (compress/layers.py).
        moved, last = (dims[0], *dims[2:], dims[1]), len(dims) - 1
        turned = int(np.prod(dims[2:])) > 1
        shape = moved if turned else dims
        dense = op.Reshape(dense, op.const(np.array(shape, np.int64), name=f"{name}.dims"))
        dense.shape, dense.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        if turned:
            dense = op.Transpose(dense, perm=[0, last, *range(1, last)])
            dense.shape, dense.type = ir.Shape(dims), ir.TensorType(ir.DataType.FLOAT)
    if op.nodes[0].domain == DOMAIN:
        graph.opset_imports[DOMAIN] = 1
    for node in op.nodes:
        # The weight comes from no line and no module of its own; profiles show its readers.
        node.name = f"{name}/{node.op_type}"
        node.outputs[0].name = f"{name}/{node.op_type}"
        node.metadata_props.clear()
        node.meta.clear()
    for made in op.initializers:
        add_initializer(graph, made)
    graph.insert_before(first, op.nodes)
    value.replace_all_uses_with(dense)
    del graph.initializers[name]


def _dense(op: Builder, name: str, layer: StoredLayer) -> ir.Value:
    """The decompressing node of `layer`, its parts as initializers `name.PART`."""
    layout, spec, columns = layer.layout(), layer.spec, layer.shape[1]

    def part(key: str, kind: ir.DataType, shape: tuple[int, ...], read: Callable[[], Array]) -> ir.Value:
        def compute() -> ir.TensorProtocol:
            array = np.ascontiguousarray(read())
            # Four bits lie in a byte each here, so that codes need no conversion.
            small = kind == ir.DataType.UINT4 and array.dtype == np.uint8
            array = array.view(kind.numpy()) if small else array.astype(kind.numpy(), copy=False)
            return ir.Tensor(array, dtype=kind, name=key)

        return op.tensor(ir.LazyTensor(compute, dtype=kind, shape=ir.Shape(shape), name=key, cache=False), key)

    def plain(key: str, kind: ir.DataType) -> ir.Value:
        return part(f"{name}.{key}", kind, layout[key], lambda: layer.read(key))

    planes, half = ir.DataType.UINT8, ir.DataType.FLOAT16
    if isinstance(spec, PaletteSpec):
        table = ir.DataType.from_numpy(layer.read("lut").dtype)
        return op.PaletteToDense(plain("planes", planes), plain("lut", table), _domain=DOMAIN, bits=spec.bits,
                                 columns=columns, rows_per_table=spec.rows, vector=spec.vector)
    if not spec.uniform or not _whole(layer.read("offset"), spec):
        shape = (spec.planes, *layout["offset"])
        scale = part(f"{name}.scale", half, shape, lambda: layer.read("scale").reshape(shape))
        return op.BitPlaneToDense(plain("planes", planes), scale, plain("offset", half), _domain=DOMAIN,
                                  bits=spec.bits, group_size=spec.group, columns=columns, uniform=int(spec.uniform))
    kind = ir.DataType.UINT4 if spec.bits <= 4 else ir.DataType.UINT8
    codes = part(f"{name}.codes", kind, layer.shape, lambda: codes_of(layer.read("planes"), columns))
    zero = part(f"{name}.zero", kind, layout["offset"], lambda: layer.read("offset"))
    return op.DequantizeLinear(codes, plain("scale", ir.DataType.FLOAT), zero, axis=1, block_size=spec.group)


def _whole(offset: Array, spec: BitsSpec) -> bool:
    """Whether zero points are integers that the codes' type holds."""
    return bool(np.isin(offset.astype(np.float32), np.arange(spec.levels, dtype=np.float32)).all())
