"""Vendor convolutions and matrix products with something fused to them, in standard operators."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgec.ir.model import Builder, float_attr, input_of, int_attr, rank_of, required, str_attr
from edgec.passes.normalize.vendor import VendorRule, activated, activation_problem, attributes, gemm_params, swapped


class FusedConv(VendorRule):
    """act(Conv(x, w, b) + z)."""

    roots = ("FusedConv",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return activation_problem(str_attr(node, "activation", ""))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        y = op.Conv(*node.inputs[:3], **attributes(node, "activation", "activation_params"))
        z = input_of(node, 3)
        if z is not None:
            y = op.Add(y, z)
        params = node.attributes.get("activation_params")
        return activated(op, y, str_attr(node, "activation", ""), params.as_floats() if params else ())


class FusedGemm(VendorRule):
    """act(alpha op(a) op(b) + beta c)."""

    roots = ("FusedGemm",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return activation_problem(str_attr(node, "activation", ""))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        own = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
        y = op.Gemm(*node.inputs[:3], **attributes(node, *own))
        return activated(op, y, str_attr(node, "activation", ""), gemm_params(node))


class FusedMatMul(VendorRule):
    """alpha op(a) op(b), each operand perhaps with its last two axes exchanged."""

    roots = ("FusedMatMul", "TransposeMatMul")

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if int_attr(node, "transBatchA", 0) or int_attr(node, "transBatchB", 0):
            return "it exchanges batch axes"
        turned = [i for i, name in enumerate(("transA", "transB")) if int_attr(node, name, 0)]
        return "the rank of an operand is not known" if any(rank_of(node.inputs[i]) is None for i in turned) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        a, b = required(node, 0), required(node, 1)
        y = op.MatMul(swapped(op, a) if int_attr(node, "transA", 0) and rank_of(a) != 1 else a,
                      swapped(op, b) if int_attr(node, "transB", 0) and rank_of(b) != 1 else b)
        alpha = float_attr(node, "alpha", 1.0)
        return y if alpha == 1.0 else op.Mul(y, op.like(alpha, a))


RULES = (FusedConv(), FusedGemm(), FusedMatMul())
