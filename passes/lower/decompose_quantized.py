"""Rounding of activations to 8 bits in simpler operators.

The codes are computed in float32 and kept as 8-bit integers only where something besides DequantizeLinear reads them:
this gives a quantized model's numbers, not yet its speed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Builder, const_tensor, dims_of, input_of, int_attr, producer, rank_of, required, str_attr
from edgec.ir.weights import release
from edgec.passes.lower.decompose_math import Decomposed, Entry

_FLOAT = int(ir.DataType.FLOAT)
_WIDE = {ir.DataType.UINT4: ir.DataType.UINT8, ir.DataType.INT4: ir.DataType.INT8}
_RANGES = {ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}


def _spread(op: Builder, node: ir.Node, factor: ir.Value) -> ir.Value | str:
    """A scale or zero point so that it broadcasts against input 0: as it is, along `axis`, or block by block."""
    block = int_attr(node, "block_size", 0)
    if block:
        dims, sizes = dims_of(factor), dims_of(node.inputs[0])
        if dims is None or sizes is None or not all(isinstance(d, int) for d in (*dims, *sizes)):
            return "it has a scale per block, and its sizes are not known"
        whole = [d for d in dims if isinstance(d, int)]
        at = int_attr(node, "axis", 1) % len(whole)
        apart = op.Expand(op.Unsqueeze(factor, op.ints([at + 1])), op.ints([*whole[: at + 1], block, *whole[at + 1 :]]))
        wide = op.Reshape(apart, op.ints([*whole[:at], whole[at] * block, *whole[at + 1 :]]))
        size = sizes[at]
        assert isinstance(size, int)  # all are
        return op.Slice(wide, op.ints([0]), op.ints([size]), op.ints([at]))
    if rank_of(factor) == 0 or dims_of(factor) == (1,):
        return factor
    rank = rank_of(node.inputs[0])
    if rank is None or rank_of(factor) != 1:
        return "the rank of its input or of its scale is not known"
    axis = int_attr(node, "axis", 1) % rank
    return op.Reshape(factor, op.ints([-1 if a == axis else 1 for a in range(rank)]))


def quantize_linear(op: Builder, node: ir.Node) -> Decomposed:
    """saturate(round(x / scale) + zero), ties to even."""
    x, scale, zero = required(node, 0), _spread(op, node, required(node, 1)), input_of(node, 2)
    kind = zero.dtype if zero is not None else ir.DataType(int_attr(node, "output_dtype", 0) or ir.DataType.UINT8)
    if kind not in _RANGES:
        return f"it rounds to {kind.name if kind else 'an unknown type'}; UINT8 and INT8 are known"
    if isinstance(scale, str):
        return scale
    if x.dtype != ir.DataType.FLOAT:
        x = op.Cast(x, to=_FLOAT)
    if scale.dtype != ir.DataType.FLOAT:
        scale = op.Cast(scale, to=_FLOAT)
    codes = op.Round(op.Div(x, scale))
    if zero is not None:
        shift = _spread(op, node, zero)
        if isinstance(shift, str):
            return shift
        codes = op.Add(codes, op.Cast(shift, to=_FLOAT))
    low, high = (op.const(np.array(v, np.float32)) for v in _RANGES[kind])
    return op.Cast(op.Clip(codes, low, high), to=int(kind))


def _float_codes(value: ir.Value) -> ir.Value | None:
    """The codes of quantize_linear before they became integers, when `value` was made there."""
    cast = producer(value, "Cast")
    clip = producer(input_of(cast, 0), "Clip") if cast is not None else None
    inner = producer(input_of(clip, 0), "Add", "Round") if clip is not None else None
    if inner is not None and inner.op_type == "Add":
        inner = producer(inner.inputs[0], "Round")
    whole = inner is not None and value.dtype in _RANGES and clip is not None
    return clip.outputs[0] if whole and clip is not None else None


def _bytes(op: Builder, value: ir.Value) -> ir.Value:
    """Constant codes of 4 bits as bytes: older opsets, where blocks are spelled out, have no such type."""
    tensor = const_tensor(value)
    kind = None if tensor is None else _WIDE.get(tensor.dtype)
    if tensor is None or kind is None:
        return value
    source, shape = tensor, tuple(int(d) for d in tensor.shape.numpy())

    def compute() -> ir.TensorProtocol:
        wide = ir.Tensor(np.asarray(source.numpy()).astype(kind.numpy()), dtype=kind)
        release(source)
        return wide

    return op.tensor(ir.LazyTensor(compute, dtype=kind, shape=ir.Shape(shape), cache=False), value.name or "")


def dequantize_linear(op: Builder, node: ir.Node) -> Decomposed:
    """(x - zero) * scale."""
    x, scale, zero = required(node, 0), _spread(op, node, required(node, 1)), input_of(node, 2)
    if isinstance(scale, str):
        return scale
    kind = node.outputs[0].dtype or ir.DataType.FLOAT
    if kind not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return f"its result is {kind.name}"
    codes = _float_codes(x) or op.Cast(_bytes(op, x), to=_FLOAT)
    if zero is not None:
        shift = _spread(op, node, _bytes(op, zero))
        if isinstance(shift, str):
            return shift
        codes = op.Sub(codes, op.Cast(shift, to=_FLOAT))
    if kind == ir.DataType.FLOAT:
        return op.Mul(codes, scale)
    return op.Cast(op.Mul(codes, op.Cast(scale, to=_FLOAT)), to=int(kind))


def dynamic_quantize_linear(op: Builder, node: ir.Node) -> Decomposed:
    """QuantizeLinear to UINT8 with the range of the values themselves, widened to hold 0."""
    x, nothing = required(node, 0), op.const(np.array(0, np.float32))
    largest = op.Max(op.ReduceMax(x, keepdims=0), nothing)
    smallest = op.Min(op.ReduceMin(x, keepdims=0), nothing)
    span = op.Sub(largest, smallest)
    one, steps = op.const(np.array(1, np.float32)), op.const(np.array(255, np.float32))
    scale = op.Where(op.Equal(span, nothing), one, op.Div(span, steps))
    shift = op.Clip(op.Round(op.Div(op.Neg(smallest), scale)), nothing, steps)
    zero = op.Cast(shift, to=int(ir.DataType.UINT8))
    for made, kind in ((scale, ir.DataType.FLOAT), (zero, ir.DataType.UINT8)):
        made.type, made.shape = ir.TensorType(kind), ir.Shape([])
    return [op.QuantizeLinear(x, scale, zero), scale, zero]


def in_float(op: Builder, node: ir.Node) -> Decomposed:
    """An operator that only chooses among the values of its 8-bit input, on float values instead."""
    x = required(node, 0)
    new = op.node(node.op_type, [op.Cast(x, to=_FLOAT), *node.inputs[1:]],
                  {k: a.value for k, a in node.attributes.items()})
    return op.Cast(new.outputs[0], to=int(x.dtype or ir.DataType.UINT8))


def chooses(node: ir.Node) -> bool:
    """Whether `in_float` holds for `node`."""
    if node.inputs[0] is None or node.inputs[0].dtype not in _RANGES or len(node.outputs) != 1:
        return False
    return node.op_type == "MaxPool" or (node.op_type == "Resize" and str_attr(node, "mode", "nearest") == "nearest")


TABLE: Mapping[str, Entry] = {
    "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
}
