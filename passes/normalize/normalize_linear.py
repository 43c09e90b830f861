"""Brings every linear with a constant weight to W[out, in].

MatMul(x, W[in, out]) becomes MatMul(x, Transpose(W'[out, in])), Gemm becomes x W'ᵀ + b with transB = 1, alpha and beta
folded in. A weight used by several linears is transposed once and stays one tensor; nothing is read: the new weight
computes itself from the old one when it is written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Array,
    Builder,
    const_of,
    const_tensor,
    float_attr,
    graph_of,
    input_of,
    int_attr,
    rank_of,
    required,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.weights import lazy, transposed

_CHANNELS = 1 << 22


class _Weights:
    """The [out, in] initializer made for each [in, out] one, so that shared weights stay shared."""

    def __init__(self) -> None:
        self._made: dict[ir.Value, ir.Value] = {}

    def of(self, op: Builder, weight: ir.Value) -> ir.Value:
        made = self._made.get(weight)
        if made is None or made.graph is not graph_of(op.anchor):
            tensor = const_tensor(weight)
            assert tensor is not None  # matched
            made = op.tensor(transposed(tensor, f"{weight.name}.T"), f"{weight.name}.T")
            self._made[weight] = made
        return made


class MatMulWeight(Rule):
    """MatMul by a constant matrix."""

    roots = ("MatMul",)

    def __init__(self, weights: _Weights) -> None:
        self._weights = weights

    def match(self, node: ir.Node) -> Bindings | None:
        tensor = const_tensor(node.inputs[1])
        return {} if tensor is not None and len(tensor.shape) == 2 else None

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return "its left side is a vector" if rank_of(node.inputs[0]) == 1 else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        weight = self._weights.of(op, required(node, 1))
        return op.MatMul(required(node, 0), op.Transpose(weight, perm=(1, 0)))


class GemmForm(Rule):
    """Gemm with a constant weight that is not yet x Wᵀ + b."""

    roots = ("Gemm",)

    def __init__(self, weights: _Weights) -> None:
        self._weights = weights

    def match(self, node: ir.Node) -> Bindings | None:
        tensor = const_tensor(node.inputs[1])
        if tensor is None:
            return None
        bias = input_of(node, 2)
        channels = int(tensor.shape.numpy()[0 if int_attr(node, "transB", 0) else 1])
        dims = None if bias is None or bias.shape is None else bias.shape.numpy() if bias.shape.is_static() else None
        canonical = (
            int_attr(node, "transB", 0) == 1 and not int_attr(node, "transA", 0)
            and float_attr(node, "alpha", 1.0) == 1.0 and float_attr(node, "beta", 1.0) == 1.0
            and (bias is None or dims == (channels,))
        )
        return None if canonical else {"tensor": tensor, "channels": channels}

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x, weight = required(node, 0), required(node, 1)
        tensor: ir.TensorProtocol = parts["tensor"]
        channels: int = parts["channels"]
        if int_attr(node, "transA", 0):
            x = op.Transpose(x, perm=(1, 0))
        if not int_attr(node, "transB", 0):
            weight = self._weights.of(op, weight)
        alpha, beta = float_attr(node, "alpha", 1.0), float_attr(node, "beta", 1.0)
        if alpha != 1.0:
            source = const_tensor(weight) or weight.const_value or tensor

            def scaled(w: Array) -> Array:
                return (w.astype(np.float64) * alpha).astype(w.dtype)

            weight = op.tensor(lazy(source, scaled, tuple(source.shape.numpy()), f"{weight.name}.scaled"),
                               f"{weight.name}.scaled")
        bias = input_of(node, 2)
        if bias is None or beta == 0.0:
            return op.Gemm(x, weight, transB=1)
        array = const_of(bias, _CHANNELS)
        if array is not None and (array.size == 1 or (array.size,) == array.shape[-1:] == (channels,)):
            vector = np.broadcast_to(array.reshape(-1).astype(np.float64) * beta, (channels,))
            return op.Gemm(x, weight, op.const(vector, tensor.dtype, f"{bias.name}.vector"), transB=1)
        # One number per row, or a value known only at run time: that is an addition, not a bias.
        added = bias if beta == 1.0 else op.Mul(bias, op.like(beta, bias))
        return op.Add(op.Gemm(x, weight, transB=1), added)


class NormalizeLinear(Pass):
    """Holds afterwards for every MatMul and Gemm with a constant matrix; batched constants stay as they are."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        weights = _Weights()
        ctx.rules.extend(apply_rules(model, (MatMulWeight(weights), GemmForm(weights))))
        return model, ctx.rules.modified
