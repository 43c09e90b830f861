"""Lookups in a table of uniform codes become onnxruntime's GatherBlockQuantized, which unpacks what is asked for."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgec.ir.model import Builder, int_attr, required
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.passes.lower.ort_codes import VENDOR, Codes, find_codes, packed


class _Lookup(Rule):
    roots = ("Gather",)

    def match(self, node: ir.Node) -> Bindings | None:
        found = find_codes(node.inputs[0])
        return None if found is None else {"found": found}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        found: Codes | str = parts["found"]
        if isinstance(found, str):
            return found
        if int_attr(node, "axis", 0) not in (0, -2):
            return "it does not choose rows"
        if not found.whole:
            return "its zero points are no whole numbers"
        if found.shape[1] * found.bits % 8:
            return f"rows of {found.shape[1]} codes of {found.bits} bits are no whole bytes"
        index = required(node, 1)
        return None if index.dtype in (ir.DataType.INT32, ir.DataType.INT64) else f"its indices are {index.dtype}"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        found: Codes = parts["found"]
        n, k = found.shape
        # Bytes, not UINT4: the same as MatMulNBits reads, so that a tied head shares them in the file.
        data = found.part(op, "rows", ir.DataType.UINT8, (n, k * found.bits // 8),
                          lambda: packed(found.codes(), found.bits))
        return op.GatherBlockQuantized(
            data, required(node, 1), found.scales(op), found.zeros(op), _domain=VENDOR, bits=found.bits,
            block_size=found.block, gather_axis=0, quantize_axis=1)


class OrtGatherBlock(Pass):
    """Exact."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (_Lookup(),)))
        if ctx.rules.modified:
            model.graph.opset_imports[VENDOR] = 1
        return model, ctx.rules.modified
