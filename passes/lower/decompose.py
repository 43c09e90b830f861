"""Replaces what the target does not implement by simpler standard operators.

Keyed by the capability set: an operator in the set stays unless the target refuses that very node, one outside it is
rewritten by its table entry, again and again, until everything is inside or no entry applies. `edgec::` operators
outside the set are replaced by their bodies. What remains is left for the emitter to list, with the reasons in the
rule report.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from edgec.ir.model import Builder, dims_of, int_attr, op_of, walk
from edgec.ir.ops import DOMAIN, OPSET, attach_bodies, strip_bodies
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.shapes import infer_shapes
from edgec.ir.standard_body import standard_body
from edgec.passes.lower import (
    decompose_control,
    decompose_conv,
    decompose_image,
    decompose_index,
    decompose_math,
    decompose_nn,
    decompose_quantized,
    decompose_shape,
    decompose_signal,
)
from edgec.passes.lower.decompose_math import Decomposed, Entry

TABLE: Mapping[str, Entry] = MappingProxyType({
    **decompose_math.TABLE, **decompose_nn.TABLE, **decompose_shape.TABLE, **decompose_conv.TABLE,
    **decompose_index.TABLE, **decompose_quantized.TABLE, **decompose_image.TABLE, **decompose_signal.TABLE,
    **decompose_control.TABLE,
})


def _special_form(node: ir.Node) -> Entry | None:
    """The entry for a form that no backend takes although it takes the operator."""
    if node.op_type in ("Max", "Min") and len(node.inputs) > 2:
        return decompose_math.variadic
    if node.op_type in ("MaxPool", "Resize") and decompose_quantized.chooses(node):
        return decompose_quantized.in_float
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        dims = dims_of(node.inputs[0])
        if dims is not None and (not dims or int_attr(node, "axis", -1) % len(dims) != len(dims) - 1):
            return decompose_nn.last_axis_norm
    return None


class _Decomposition(Rule):
    """All table entries as one rule, so that a node meets exactly the entry of its operator."""

    def __init__(self, ctx: Context, roots: tuple[str, ...]) -> None:
        self.roots = roots  # type: ignore[misc]  # what the model contains
        self._ctx = ctx

    @property
    def name(self) -> str:
        return "Decompose"

    def match(self, node: ir.Node) -> Bindings | None:
        entry = TABLE.get(node.op_type)
        refused = op_of(node) not in self._ctx.capabilities or bool(self._ctx.refuses(node))
        if not refused:
            entry = _special_form(node)
            if entry is None:
                return None
        # Built here, used by rewrite: an entry finds out only while building whether it can.
        op = Builder(node)
        result: Decomposed = "there is no rule for it" if entry is None else entry(op, node)
        if refused and isinstance(result, str):
            # Last, what the standard itself says it means.
            spelled = Builder(node)
            body = standard_body(spelled, node, OPSET)
            if not isinstance(body, str):
                return {"built": (spelled, body)}
            if entry is None:
                return None
        return {"built": (op, result)}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        result: Decomposed = parts["built"][1]
        return result if isinstance(result, str) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> list[ir.Value]:
        built: Builder = parts["built"][0]
        result: Decomposed = parts["built"][1]
        op.nodes.extend(built.nodes)
        op.initializers.extend(built.initializers)
        assert not isinstance(result, str)  # checked
        return [result] if isinstance(result, ir.Value) else list(result)


class Decompose(Pass):
    """Works on `ctx.capabilities`; an empty set means a target that implements nothing and is refused."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        import onnx_ir.passes.common as common

        modified = False
        missing = {key[1] for key in map(op_of, walk(model)) if key[0] == DOMAIN and key not in ctx.capabilities}
        if missing:
            attach_bodies(model)
            common.InlinePass(criteria=lambda f: f.domain == DOMAIN and f.name in missing)(model)
            strip_bodies(model)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.NameFixPass()(model)
            modified = True
        while True:
            infer_shapes(model)
            roots = tuple(sorted({node.op_type for node in walk(model) if op_of(node)[0] == ""}))
            report = apply_rules(model, (_Decomposition(ctx, roots),), until_stable=False)
            ctx.rules.extend(report)
            if not report.modified:
                return model, modified or ctx.rules.modified
