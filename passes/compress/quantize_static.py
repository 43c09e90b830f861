"""Lets convolutions, linears and what lies between them compute on 8-bit integers, as standard QuantizeLinear and
DequantizeLinear around the float operators (edgec/compress/qdq.py says in which form).

What a region makes is rounded for everybody who reads it; a value that something else makes is rounded only for the
regions that read it. All other operators stay as they are, between a DequantizeLinear and a QuantizeLinear.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import onnx_ir as ir

from edgec.compress.qdq import Emitter, IntegerWeight
from edgec.compress.ranges import QParams
from edgec.compress.regions import STATIC, Region, activations_of
from edgec.compress.static import RegionError, Static
from edgec.ir.model import Builder, add_initializer, graph_of, op_of, remove_unused, replace_value
from edgec.ir.passes import Context, Pass


class QuantizeStatic(Pass):
    """Does what `ctx.static` asks for; nothing without it. Leaves the report there. Raises EdgecError: E0002 for
    overrides that match nothing and models without a layer, E0502 for unusable samples."""

    exact: ClassVar[bool] = False

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        static = ctx.static
        if not isinstance(static, Static):
            return model, False
        regions, kept = static.regions(model)
        params = static.params(model, regions)
        errors = static.probed(model, regions)
        emitter = Emitter({value: params[value.name or ""] for value in activations_of(regions)})
        # Outputs keep their names, values in front of them do not: what the report calls them is their name here.
        layers = [_record(region, emitter, errors[region.out.name or ""]) for region in regions]
        results = [region.raw.name or "" for region in regions]
        activations = [_activation(value.name or "", found) for value, found in emitter.params.items()]
        restored: dict[ir.Value, ir.Value] = {}
        for region in regions:
            _put(region, emitter, restored)
            ctx.rules.add(self.name, region.name)
        for entry in kept:
            ctx.rules.add(self.name, entry.name, entry.reason)
        remove_unused(model)
        for record, result in zip(layers, results, strict=True):
            record |= _sizes(emitter.weights.get(result))
        static.report |= {"layers": layers, "activations": activations,
                          "kept": [{"name": k.name, "reason": k.reason} for k in kept]}
        return model, True


def _put(region: Region, emitter: Emitter, restored: dict[ir.Value, ir.Value]) -> None:
    """Replaces the chain of `region`; restored: what is read in place of a value that has been rounded."""
    graph = graph_of(region.node)
    front, op = Builder(region.node), Builder(region.chain[-1])
    for value in region.inputs:
        if value not in restored:
            restored[value] = _rounding(front, value, value, emitter)
    _, out = emitter.region(op, region, restored.__getitem__)
    # Profiles and later passes know the operator by its name.
    for new in op.nodes:
        if op_of(new) == op_of(region.node):
            new.name = region.node.name
    dense = _rounding(op, out, region.out, emitter)
    for made in (front, op):
        for constant in made.initializers:
            add_initializer(graph, constant)
    graph.insert_before(region.node, front.nodes)
    graph.insert_before(region.chain[-1], op.nodes)
    old = region.out
    replace_value(old, dense)
    restored[old] = dense
    for node in reversed(region.chain):
        graph.remove(node, safe=True)


def _rounding(op: Builder, value: ir.Value, activation: ir.Value, emitter: Emitter) -> ir.Value:
    """`value` after QuantizeLinear and DequantizeLinear with the range of `activation`, called after that."""
    first = len(op.nodes)
    dense = emitter.rounded(op, value, emitter.params[activation])
    for node in op.nodes[first:]:
        node.name = node.outputs[0].name = f"{activation.name}/{node.op_type}"
    return dense


def _activation(name: str, params: QParams) -> dict[str, Any]:
    return {"name": name, "scale": params.scale, "zero": params.zero, "low": params.low, "high": params.high}


def _record(region: Region, emitter: Emitter, error: RegionError) -> dict[str, Any]:
    """A row of the report, without its sizes."""
    own = emitter.params[region.out]
    return {
        "name": region.name if region.weight is not None else region.out.name, "op": region.node.op_type,
        "spec": STATIC, "error": error.relative, "sqnr_db": error.sqnr_db if math.isfinite(error.sqnr_db) else None,
        "low": own.low, "high": own.high, "scale": own.scale, "zero": own.zero,
        "folded": region.bounds is not None and emitter.folds(region),
    }


def _sizes(weight: IntegerWeight | None) -> dict[str, int]:
    """bytes: of codes, scales and biases; float_bytes: of the same in float32."""
    if weight is None:
        return {}
    rows = len(weight.codes)
    return {"rows": rows, "columns": weight.codes.size // rows, "bytes": weight.bytes,
            "float_bytes": 4 * (weight.codes.size + (0 if weight.bias is None else rows))}
