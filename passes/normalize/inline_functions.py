"""Inlines every model-local function but those of `edgec::`, and spells vendor operators in standard ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import Builder, describe, float_attr, input_of, int_attr, op_of, required, walk
from edgec.ir.ops import DOMAIN
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules

_VENDOR = "com.microsoft"


class SkipNorm(Rule):
    """Skip(Simplified)LayerNormalization(x, skip, gamma, [beta], [bias]) -> (norm, mean, inv_std, sum)."""

    roots = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
    domain = _VENDOR

    def match(self, node: ir.Node) -> Bindings | None:
        return {"simplified": node.op_type.startswith("SkipSimplified")}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        statistics = [v for v in node.outputs[1:3] if v.uses() or v.is_graph_output()]
        return "its mean or inverse deviation is read" if statistics else None

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


class SimplifiedNorm(Rule):
    """SimplifiedLayerNormalization, which exporters also write in the standard domain."""

    roots = ("SimplifiedLayerNormalization",)
    domain = _VENDOR

    def match(self, node: ir.Node) -> Bindings | None:
        return {}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return "its inverse deviation is read" if any(v.uses() for v in node.outputs[1:]) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.RMSNormalization(*node.inputs[:2], axis=int_attr(node, "axis", -1),
                                   epsilon=float_attr(node, "epsilon", 1e-5))


class StandardSimplifiedNorm(SimplifiedNorm):
    """The same in the standard domain, where onnxruntime's own exporters put it."""

    domain = ""


class VendorGelu(Rule):
    """Gelu, FastGelu and BiasGelu."""

    roots = ("Gelu", "FastGelu", "BiasGelu")
    domain = _VENDOR

    def match(self, node: ir.Node) -> Bindings | None:
        return {}

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x, bias = required(node, 0), input_of(node, 1)
        if bias is not None:
            x = op.Add(x, bias)
        return op.Gelu(x, approximate="tanh" if node.op_type == "FastGelu" else "none")


class QuickGelu(Rule):
    """x * sigmoid(alpha x) is Swish."""

    roots = ("QuickGelu",)
    domain = _VENDOR

    def match(self, node: ir.Node) -> Bindings | None:
        return {}

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Swish(required(node, 0), alpha=float_attr(node, "alpha", 1.702))


_RULES = (SkipNorm(), SimplifiedNorm(), StandardSimplifiedNorm(), VendorGelu(), QuickGelu())


class InlineFunctions(Pass):
    """After this only standard and `edgec::` operators are left, or EDGEC-E0301 lists the others."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        import onnx_ir.passes.common as common

        # Vendor operators first: their bodies, where there are any, spell out what a standard operator says shortly.
        ctx.rules.extend(apply_rules(model, _RULES))
        modified = ctx.rules.modified
        try:
            result = common.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)
        except (ValueError, ir.passes.PassError, ir.passes.PreconditionError) as e:
            raise EdgecError("E0101", stage=f"pass {self.name}", where="functions of the model", found=str(e),
                             wanted="functions of the model's own opset, not calling each other in a circle") from e
        modified |= result.modified
        for key in [key for key in model.functions if key[0] != DOMAIN]:
            del model.functions[key]
            modified = True
        if result.modified:
            common.NameFixPass()(model)
        return model, modified

    def ensures(self, model: ir.Model) -> Sequence[str]:
        left = [describe(node) for node in walk(model) if op_of(node)[0] not in ("", DOMAIN)]
        if left:
            raise EdgecError("E0301", stage=f"pass {self.name}", where="; ".join(left[:20]),
                             found=f"{len(left)} operator(s) of other domains without a function body",
                             wanted="standard ONNX operators", hint="export the model without vendor fusions")
        return ()
