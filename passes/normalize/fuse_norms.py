"""Recognizes RMSNormalization and LayerNormalization over the last dim in their decomposed spellings.

In steps that are each exact: x / sqrt(mean(x²) + eps) is RMSNormalization with a scale of ones; of x - mean(x) it is
LayerNormalization; a following Mul by a vector is its scale, a following Add of a vector its bias.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Builder,
    const_of,
    const_tensor,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    is_op,
    producer,
    rank_of,
    required,
    single_use,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.passes.normalize.norm_parts import deviation, mean_of

_WIDTH = 1 << 20


class FuseRMS(Rule):
    """x / sqrt(mean(x²) + eps), also as a product with the inverse."""

    roots = ("Mul", "Div")

    def match(self, node: ir.Node) -> Bindings | None:
        a, b = required(node, 0), required(node, 1)
        sides = ((a, b),) if node.op_type == "Div" else ((a, b), (b, a))
        for x, factor in sides:
            found = deviation(factor, inverse=node.op_type == "Mul")
            if found is not None and found[0] is x:
                return {"x": x, "epsilon": found[1]}
        return None

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        dims = dims_of(parts["x"])
        return None if dims and isinstance(dims[-1], int) else "the size of the last dim is not known"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x: ir.Value = parts["x"]
        dims = dims_of(x)
        assert dims is not None  # checked
        assert isinstance(dims[-1], int)
        ones = op.const(np.ones(dims[-1]), x.dtype or ir.DataType.FLOAT)
        return op.RMSNormalization(x, ones, axis=-1, epsilon=parts["epsilon"])


class CenterRMS(Rule):
    """RMSNormalization of x - mean(x) is LayerNormalization of x."""

    roots = ("RMSNormalization",)

    def match(self, node: ir.Node) -> Bindings | None:
        center = producer(node.inputs[0], "Sub")
        if center is None or center.inputs[0] is None or not _last(node):
            return None
        return {"x": center.inputs[0]} if mean_of(center.inputs[1]) is center.inputs[0] else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.LayerNormalization(parts["x"], required(node, 1), axis=-1, epsilon=float_attr(node, "epsilon", 1e-5))


def _last(node: ir.Node) -> bool:
    axis, rank = int_attr(node, "axis", -1), rank_of(node.inputs[0])
    return axis == -1 or (rank is not None and axis == rank - 1)


def _vector(value: ir.Value | None, width: int) -> bool:
    """A constant of `width` numbers along the last dim only."""
    tensor = const_tensor(value)
    if tensor is None:
        return False
    shape = tuple(tensor.shape.numpy())
    return len(shape) >= 1 and shape[-1] == width and all(d == 1 for d in shape[:-1])


class _AfterNorm(Rule):
    """A Mul or Add of a constant vector right after a normalization that only it reads."""

    def match(self, node: ir.Node) -> Bindings | None:
        for i in (0, 1):
            norm = producer(node.inputs[i], "RMSNormalization", "LayerNormalization")
            if norm is None or not _last(norm) or const_tensor(node.inputs[1 - i]) is None:
                continue
            scale = const_of(norm.inputs[1], _WIDTH)
            if scale is not None and self.fits(norm, bool((scale == 1).all())):
                return {"norm": norm, "vector": required(node, 1 - i), "width": scale.size}
        return None

    @abstractmethod
    def fits(self, norm: ir.Node, plain: bool) -> bool:
        """Whether `norm` can take the constant in; plain: its scale is all ones so far."""

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        norm: ir.Node = parts["norm"]
        vector: ir.Value = parts["vector"]
        if not single_use(norm.outputs[0]) or any(v.uses() or v.is_graph_output() for v in norm.outputs[1:]):
            return "the normalized value is read by others, too"
        if not _vector(vector, parts["width"]):
            return "the constant is not one number per channel"
        if (rank_of(vector) or 0) > (rank_of(norm.outputs[0]) or 0):
            return "the constant has more dims than the value"
        return None

    def flat(self, op: Builder, **parts: Any) -> ir.Value:
        vector: ir.Value = parts["vector"]
        if rank_of(vector) == 1:
            return vector
        array = const_of(vector, _WIDTH)
        return op.const(np.asarray(array).reshape(-1))


class ScaleAfterNorm(_AfterNorm):
    """Becomes the scale, where that was all ones and there is no bias yet."""

    roots = ("Mul",)

    def fits(self, norm: ir.Node, plain: bool) -> bool:
        return plain and input_of(norm, 2) is None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return _renormed(op, parts["norm"], self.flat(op, **parts), None)


class BiasAfterNorm(_AfterNorm):
    """Becomes the bias of a LayerNormalization without one."""

    roots = ("Add",)

    def fits(self, norm: ir.Node, plain: bool) -> bool:
        return is_op(norm, "LayerNormalization") and input_of(norm, 2) is None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        norm: ir.Node = parts["norm"]
        return _renormed(op, norm, required(norm, 1), self.flat(op, **parts))


def _renormed(op: Builder, norm: ir.Node, scale: ir.Value, bias: ir.Value | None) -> ir.Value:
    new = op.node(norm.op_type, [norm.inputs[0], scale, bias],
                  {"axis": -1, "epsilon": float_attr(norm, "epsilon", 1e-5)})
    new.metadata_props.update(norm.metadata_props)
    return new.outputs[0]


class FuseNorms(Pass):
    """Casts between float types inside a spelling keep it from matching: there the fused operator rounds elsewhere."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (FuseRMS(), CenterRMS(), ScaleAfterNorm(), BiasAfterNorm())))
        return model, ctx.rules.modified
