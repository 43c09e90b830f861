"""Inlines every model-local function but those of `edgec::`, and spells vendor operators in standard ones."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.ops import DOMAIN
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import RuleReport, apply_rules
from edgec.ir.shapes import infer_shapes
from edgec.passes.normalize import vendor_attention, vendor_fused, vendor_norms, vendor_quantized

# Functions that call functions double with every step: far above every real model, and soon reached by a mean one.
_MAX_NODES = 1 << 20
_RULES = (*vendor_norms.RULES, *vendor_fused.RULES, *vendor_attention.RULES, *vendor_quantized.RULES)


class InlineFunctions(Pass):
    """After this only operators are left: standard ones, `edgec::`, and such as nothing here knows.

    Those stay for the last stage, which lists all that the target lacks at once.
    """

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        # Vendor operators first: their bodies, where there are any, spell out what a standard operator says shortly.
        ctx.rules.extend(spell_vendor_operators(model))
        modified = inline(model)
        return model, modified or ctx.rules.modified


def spell_vendor_operators(model: ir.Model) -> RuleReport:
    """Rewrites `com.microsoft` operators, and integer operators of the standard domain, until no rule applies.

    Some need ranks that are known only after others have become standard, hence the turns with shape inference.
    """
    report = RuleReport()
    while True:
        found = apply_rules(model, _RULES)
        report.extend(found)
        if not found.modified:
            return report
        infer_shapes(model)


def inline(model: ir.Model) -> bool:
    """Replaces calls of model-local functions by their bodies; True when there were any, used or not.

    Raises EdgecError E0101 for functions of another opset, calling each other in a circle, or together too long.
    """
    import onnx_ir.passes.common as common

    count = _nodes_inlined(model)
    if count > _MAX_NODES:
        raise EdgecError("E0101", stage="pass inline_functions", where="functions of the model",
                         found=f"{count} nodes with every call replaced", wanted=f"at most {_MAX_NODES}")
    try:
        modified = common.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model).modified
    except (ValueError, ir.passes.PassError, ir.passes.PreconditionError) as e:
        raise EdgecError("E0101", stage="pass inline_functions", where="functions of the model", found=str(e),
                         wanted="functions of the model's own opset, not calling each other in a circle") from e
    if modified:
        common.NameFixPass()(model)
    for key in [key for key in model.functions if key[0] != DOMAIN]:
        del model.functions[key]
        modified = True
    return modified


def _nodes_inlined(model: ir.Model) -> int:
    """Nodes of the graph after inlining; 0 for functions in a circle, which the inliner itself refuses."""
    calls = {key: [node.op_identifier() for node in function.all_nodes()]
             for key, function in model.functions.items() if key[0] != DOMAIN}
    sizes: dict[ir.OperatorIdentifier, int] = {}
    try:
        for key in TopologicalSorter({k: calls.keys() & set(v) for k, v in calls.items()}).static_order():
            sizes[key] = sum(sizes.get(c, 1) for c in calls[key])
    except CycleError:
        return 0
    return sum(sizes.get(node.op_identifier(), 1) for node in model.graph.all_nodes())
