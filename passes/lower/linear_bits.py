"""Linears over weights of few bits become LinearBits: the native kernels, called by onnxruntime or TVM.

Only where the target has that operator. The codes are laid out as the native backend lays them out, and the same
kernels read them.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgec.ir.model import Builder, input_of, is_op, required
from edgec.ir.ops import DOMAIN
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.passes.lower.few_bits import LIBRARY_VERSION, LINEAR, FewBits, find_few_bits
from edgec.passes.lower.ort_codes import linear_weight, unlike_linear


class _Linear(Rule):
    """MatMul(x, Transpose(W)) and Gemm(x, W, b) with transB."""

    roots = ("MatMul", "Gemm")

    def match(self, node: ir.Node) -> Bindings | None:
        found = find_few_bits(linear_weight(node))
        return None if found is None else {"found": found}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        found: FewBits | str = parts["found"]
        return found if isinstance(found, str) else unlike_linear(node)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        found: FewBits = parts["found"]
        bias = input_of(node, 2) if is_op(node, "Gemm") else None
        return op.LinearBits(required(node, 0), found.weight(op), bias, _domain=DOMAIN, **found.attributes())


class LinearBits(Pass):
    """Off by what the native kernels are off: 0.1 % of a product (docs/kernels.md)."""

    exact = False

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        if (DOMAIN, LINEAR) not in ctx.capabilities:
            return model, False
        ctx.rules.extend(apply_rules(model, (_Linear(),)))
        if ctx.rules.modified:
            model.graph.opset_imports[DOMAIN] = LIBRARY_VERSION
        return model, ctx.rules.modified
