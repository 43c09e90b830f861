"""Lookups in a table of few bits become GatherBits: our kernel, in onnxruntime or TVM, unpacks what is asked for.

Only where the target has that operator.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgec.ir.model import Builder, int_attr, required
from edgec.ir.ops import DOMAIN
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.passes.lower.few_bits import GATHER, LIBRARY_VERSION, FewBits, find_few_bits


class _Lookup(Rule):
    roots = ("Gather",)

    def match(self, node: ir.Node) -> Bindings | None:
        found = find_few_bits(node.inputs[0])
        return None if found is None else {"found": found}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        found: FewBits | str = parts["found"]
        if isinstance(found, str):
            return found
        if int_attr(node, "axis", 0) not in (0, -2):
            return "it does not choose rows"
        index = required(node, 1)
        return None if index.dtype in (ir.DataType.INT32, ir.DataType.INT64) else f"its indices are {index.dtype}"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        found: FewBits = parts["found"]
        index = required(node, 1)
        if index.dtype == ir.DataType.INT32:
            index = op.Cast(index, to=ir.DataType.INT64)
        return op.GatherBits(found.weight(op), index, _domain=DOMAIN, **found.attributes())


class GatherBits(Pass):
    """Exact."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        if (DOMAIN, GATHER) not in ctx.capabilities:
            return model, False
        ctx.rules.extend(apply_rules(model, (_Lookup(),)))
        if ctx.rules.modified:
            model.graph.opset_imports[DOMAIN] = LIBRARY_VERSION
        return model, ctx.rules.modified
