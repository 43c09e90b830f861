"""Vendor convolutions and matrix products with something fused to them, in standard operators."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgec.ir.model import (
    Builder,
    float_attr,
    floats_attr,
    input_of,
    int_attr,
    ints_attr,
    rank_of,
    required,
    static_shape,
    str_attr,
)
from edgec.ir.rules import Bindings
from edgec.passes.normalize.vendor import VendorRule, activated, activation_problem, attributes, channel_order, swapped


class FusedConv(VendorRule):
    """act(Conv(x, w, b) + z)."""

    roots = ("FusedConv",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return activation_problem(str_attr(node, "activation", ""))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return _convolved(op, node, required(node, 0), required(node, 1), input_of(node, 3))


def _convolved(op: Builder, node: ir.Node, x: ir.Value, w: ir.Value, z: ir.Value | None) -> ir.Value:
    y = op.Conv(x, w, input_of(node, 2), **attributes(node, "activation", "activation_params"))
    if z is not None:
        y = op.Add(y, z)
    return activated(op, y, str_attr(node, "activation", ""), floats_attr(node, "activation_params") or ())


class NhwcConv(VendorRule):
    """NhwcFusedConv and NhwcConv: x, z and y have their channels last.

    The weight of NhwcFusedConv is [M, C/group, kernel]; that of NhwcConv is [M, kernel, C/group], whatever the text of
    its schema says: onnxruntime's own fusion (transformers/fusion_nhwc_conv.py) writes and its kernels read it so.
    """

    roots = ("NhwcConv", "NhwcFusedConv")

    def match(self, node: ir.Node) -> Bindings | None:
        return {"rank": rank_of(input_of(node, 0)) or rank_of(input_of(node, 1))}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if parts["rank"] is None:
            return "the rank of its input is not known"
        w, kernel = static_shape(input_of(node, 1)), ints_attr(node, "kernel_shape")
        spatial = slice(1, -1) if node.op_type == "NhwcConv" else slice(2, None)
        if w is not None and kernel is not None and w[spatial] != kernel:
            return f"its weight {list(w)} has the kernel {list(kernel)} elsewhere"
        return activation_problem(str_attr(node, "activation", ""))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        first, last = (channel_order(parts["rank"], channels_first=there) for there in (True, False))
        w, z = required(node, 1), input_of(node, 3)
        if node.op_type == "NhwcConv":
            w = op.Transpose(w, perm=first)
        z = None if z is None else op.Transpose(z, perm=first)
        y = _convolved(op, node, op.Transpose(required(node, 0), perm=first), w, z)
        return op.Transpose(y, perm=last)


class FusedGemm(VendorRule):
    """act(alpha op(a) op(b) + beta c)."""

    roots = ("FusedGemm",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return activation_problem(str_attr(node, "activation", ""))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        own = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
        y = op.Gemm(*node.inputs[:3], **attributes(node, *own))
        return activated(op, y, str_attr(node, "activation", ""), _gemm_params(node))


def _gemm_params(node: ir.Node) -> list[float]:
    """The activation parameters of FusedGemm, which names them one by one."""
    return [float_attr(node, k, 0.0) for k in ("activation_alpha", "activation_beta", "activation_gamma")
            if k in node.attributes]


class FusedMatMul(VendorRule):
    """alpha op(a) op(b), each operand perhaps with its last two axes exchanged."""

    roots = ("FusedMatMul", "TransposeMatMul")

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if int_attr(node, "transBatchA", 0) or int_attr(node, "transBatchB", 0):
            return "it exchanges batch axes"
        turned = [i for i, name in enumerate(("transA", "transB")) if int_attr(node, name, 0)]
        unknown = [i for i in turned if rank_of(input_of(node, i)) is None]
        return "the rank of an operand is not known" if unknown else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        a, b = required(node, 0), required(node, 1)
        y = op.MatMul(swapped(op, a) if int_attr(node, "transA", 0) and rank_of(a) != 1 else a,
                      swapped(op, b) if int_attr(node, "transB", 0) and rank_of(b) != 1 else b)
        alpha = float_attr(node, "alpha", 1.0)
        return y if alpha == 1.0 else op.Mul(y, op.like(alpha, a))


RULES = (FusedConv(), NhwcConv(), FusedGemm(), FusedMatMul())
