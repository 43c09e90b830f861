"""Linears over uniform codes become onnxruntime's MatMulNBits, which reads 2, 4 or 8 bits per weight as they are.

The codes are laid out anew and not rounded again: codes of 3 bits are stored in 4, those of 5 to 7 in 8, because the
operator refuses these widths (measured with onnxruntime 1.32: "Only 2b, 4b and 8b quantization is supported").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Array, Builder, input_of, is_op, required
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.passes.lower.ort_codes import VENDOR, Codes, find_codes, linear_weight, packed, unlike_linear


class _Linear(Rule):
    """MatMul(x, Transpose(W)) and Gemm(x, W, b) with transB."""

    roots = ("MatMul", "Gemm")

    def match(self, node: ir.Node) -> Bindings | None:
        found = find_codes(linear_weight(node))
        return None if found is None else {"found": found}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        found: Codes | str = parts["found"]
        return found if isinstance(found, str) else unlike_linear(node)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        found: Codes = parts["found"]
        (n, k), groups = found.shape, found.groups

        def blocks() -> Array:
            return packed(np.pad(found.codes(), ((0, 0), (0, groups * found.block - k))), found.bits)

        codes = found.part(op, "nbits", ir.DataType.UINT8, (n, groups, found.block * found.bits // 8), blocks)
        bias = input_of(node, 2) if is_op(node, "Gemm") else None
        return op.MatMulNBits(
            required(node, 0), codes, found.scales(op), found.zeros(op), None, bias, _domain=VENDOR, K=k, N=n,
            bits=found.bits, block_size=found.block, accuracy_level=0)


class OrtMatmulNbits(Pass):
    """Exact: products are taken in float32 (accuracy_level 0)."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (_Linear(),)))
        if ctx.rules.modified:
            model.graph.opset_imports[VENDOR] = 1
        return model, ctx.rules.modified
