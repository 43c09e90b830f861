"""Vendor normalizations, embeddings and activations in standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Builder, float_attr, input_of, int_attr, required
from edgec.ir.rules import Bindings
from edgec.passes.normalize.vendor import VendorRule, read


class SkipNorm(VendorRule):
    """Skip(Simplified)LayerNormalization(x, skip, gamma, [beta], [bias]) -> (norm, mean, inv_std, sum)."""

    roots = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")

    def match(self, node: ir.Node) -> Bindings | None:
        return {"simplified": node.op_type.startswith("SkipSimplified")}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return "its mean or inverse deviation is read" if read(node, 1, 2) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> Sequence[ir.Value]:
        # The simplified operator has no beta: its fourth input already is the bias.
        beta = None if parts["simplified"] else input_of(node, 3)
        bias = input_of(node, 3 if parts["simplified"] else 4)
        total = op.Add(required(node, 0), required(node, 1))
        if bias is not None:
            total = op.Add(total, bias)
        epsilon = float_attr(node, "epsilon", 1e-12)
        if parts["simplified"]:
            y = op.RMSNormalization(total, input_of(node, 2), axis=-1, epsilon=epsilon)
        else:
            y = op.LayerNormalization(total, input_of(node, 2), beta, axis=-1, epsilon=epsilon)
        return [y, total, total, total][: len(node.outputs)]


class SimplifiedNorm(VendorRule):
    """SimplifiedLayerNormalization, which exporters also write in the standard domain."""

    roots = ("SimplifiedLayerNormalization",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return "its inverse deviation is read" if any(v.uses() for v in node.outputs[1:]) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.RMSNormalization(*node.inputs[:2], axis=int_attr(node, "axis", -1),
                                   epsilon=float_attr(node, "epsilon", 1e-5))


class StandardSimplifiedNorm(SimplifiedNorm):
    """The same in the standard domain, where onnxruntime's own exporters put it."""

    domain = ""


class EmbedLayerNorm(VendorRule):
    """EmbedLayerNormalization(ids, [segments], words, positions, [segment table], gamma, beta, [mask], [position ids]).

    Outputs (norm, number of unmasked tokens per row, sum of the embeddings).
    """

    roots = ("EmbedLayerNormalization",)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> Sequence[ir.Value]:
        ids, segments, positions = required(node, 0), input_of(node, 1), input_of(node, 8)
        total = op.Gather(required(node, 2), ids)
        if positions is None:
            length = op.Shape(ids, start=1, end=2)
            total = op.Add(total, op.Slice(required(node, 3), op.ints([0]), length, op.ints([0])))
        else:
            total = op.Add(total, op.Gather(required(node, 3), positions))
        if segments is not None:
            total = op.Add(total, op.Gather(required(node, 4), segments))
        y = op.LayerNormalization(total, required(node, 5), required(node, 6), axis=-1,
                                  epsilon=float_attr(node, "epsilon", 1e-12))
        results = [y]
        if len(node.outputs) > 1:
            mask = input_of(node, 7)
            int32 = int(ir.DataType.INT32)
            if mask is not None:
                counted = op.ReduceSum(op.Cast(mask, to=int(ir.DataType.FLOAT)), op.ints([1]), keepdims=0)
                results.append(op.Cast(counted, to=int32))
            else:
                results.append(op.Expand(op.const(np.zeros(1, np.int32)), op.Shape(ids, start=0, end=1)))
        return [*results, total][: len(node.outputs)]


class VendorGelu(VendorRule):
    """Gelu, FastGelu and BiasGelu."""

    roots = ("Gelu", "FastGelu", "BiasGelu")

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x, bias = required(node, 0), input_of(node, 1)
        if bias is not None:
            x = op.Add(x, bias)
        return op.Gelu(x, approximate="tanh" if node.op_type == "FastGelu" else "none")


class QuickGelu(VendorRule):
    """x * sigmoid(alpha x) is Swish."""

    roots = ("QuickGelu",)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Swish(required(node, 0), alpha=float_attr(node, "alpha", 1.702))


RULES = (SkipNorm(), SimplifiedNorm(), StandardSimplifiedNorm(), EmbedLayerNorm(), VendorGelu(), QuickGelu())
