"""Compressed constants that nothing reads as they are stored become dense, for targets that unpack nothing at load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Quantized, dequantize, dequantize_palette
from edgec.compress.low_bit import check_dense, integers, low_bit_of
from edgec.ir.model import Array, Builder, const_tensor, input_of, int_attr, static_shape
from edgec.ir.ops import DOMAIN
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.weights import release


def _dense(op: Builder, node: ir.Node, read: Callable[[], Array]) -> ir.Value:
    """A float32 initializer that is computed whenever it is read."""
    def compute() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(read(), np.float32), dtype=ir.DataType.FLOAT, name=name)

    name = f"{(node.inputs[0].name if node.inputs[0] is not None else '') or op.stem}.dense"
    shape = ir.Shape(static_shape(node.outputs[0]) or ())
    return op.tensor(ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=shape, name=name, cache=False), name)


class _Constants(Rule):
    def match(self, node: ir.Node) -> Bindings | None:
        return {}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if any(v is not None and const_tensor(v) is None for v in node.inputs):
            return "it unpacks values known only at run time"
        if static_shape(node.outputs[0]) is None:
            return "its shape is not known"
        return None if node.outputs[0].dtype == ir.DataType.FLOAT else "it does not make float32"


class _Packed(_Constants):
    """Bit planes and palettes."""

    domain = DOMAIN
    roots = ("BitPlaneToDense", "PaletteToDense")

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return super().check(node, **parts) or check_dense(node)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        low = low_bit_of(node)

        def read() -> Array:
            value = low.load()
            return dequantize(value) if isinstance(value, Quantized) else dequantize_palette(value)

        return _dense(op, node, read)


class _Codes(_Constants):
    """DequantizeLinear, per tensor, per slice and in blocks along an axis."""

    roots = ("DequantizeLinear",)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        codes, scale, zero = (const_tensor(input_of(node, i)) for i in range(3))
        assert codes is not None  # checked
        assert scale is not None
        rank, block = len(codes.shape), int_attr(node, "block_size", 0)
        axis = int_attr(node, "axis", 1) % max(rank, 1)

        def spread(factors: Array) -> Array:
            if block:
                wide = np.repeat(factors, block, axis)
                return wide[(*[slice(None)] * axis, slice(int(codes.shape.numpy()[axis])))]
            return factors.reshape([-1 if a == axis and factors.size > 1 else 1 for a in range(rank)])

        def read() -> Array:
            values: Array = integers(codes).astype(np.float32)
            if zero is not None:
                np.subtract(values, spread(integers(zero).astype(np.float32)), out=values)
            np.multiply(values, spread(np.asarray(scale.numpy(), np.float32)), out=values)
            release(codes)
            return values

        return _dense(op, node, read)


class DenseWeights(Pass):
    """Exact."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (_Packed(), _Codes())))
        return model, ctx.rules.modified
