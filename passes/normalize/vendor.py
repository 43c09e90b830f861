"""What the rules for `com.microsoft` operators share. Their meaning: onnxruntime, docs/ContribOperators.md.

Exporters and onnxruntime's own optimizer leave these operators in files. Each rule spells one in standard operators;
tests/passes/test_vendor_*.py run both spellings in onnxruntime and compare the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from edgec.ir.model import Builder, rank_of, required
from edgec.ir.rules import Bindings, Rule

VENDOR = "com.microsoft"


class VendorRule(Rule):
    """A rule for single nodes. `check` finds the uses without an equivalent; `rewrite` spells the others."""

    domain: ClassVar[str] = VENDOR

    def match(self, node: ir.Node) -> Bindings | None:
        return {}


def read(node: ir.Node, *indices: int) -> bool:
    """Whether somebody reads one of these outputs."""
    return any(v.name and (v.uses() or v.is_graph_output()) for i, v in enumerate(node.outputs) if i in indices)


def given(node: ir.Node, *indices: int) -> list[int]:
    """Those of the optional inputs `indices` that are there."""
    return [i for i in indices if i < len(node.inputs) and node.inputs[i] is not None]


def attributes(node: ir.Node, *without: str) -> dict[str, Any]:
    """The attributes of a node as Builder keywords, leaving out `without`."""
    return {k: a.value for k, a in node.attributes.items() if k not in without}


def channel_order(rank: int, channels_first: bool) -> tuple[int, ...]:
    """The order of axes that brings the channels from the end to place 1, or back to the end."""
    return (0, rank - 1, *range(1, rank - 1)) if channels_first else (0, *range(2, rank), 1)


def swapped(op: Builder, value: ir.Value) -> ir.Value:
    """`value` with its last two axes exchanged; its rank must be known."""
    rank = rank_of(value) or 2
    return op.Transpose(value, perm=(*range(rank - 2), rank - 1, rank - 2))


# Activation of a fused operator -> (standard operator, its attributes in the order of `activation_params`).
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "HardSwish": (), "Softplus": (), "Softsign": (), "LeakyRelu": ("alpha",),
    "Elu": ("alpha",), "ThresholdedRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max"),
}


def activation_problem(name: str) -> str | None:
    return None if not name or name in _ACTIVATIONS else f"its activation {name} has no standard spelling here"


def activated(op: Builder, x: ir.Value, name: str, params: Sequence[float]) -> ir.Value:
    """The activation of a fused operator after `x`; no name, no activation."""
    if not name:
        return x
    if name == "Clip":
        return op.Clip(x, *(op.like(p, required(op.anchor, 0)) for p in params))
    given_params = dict(zip(_ACTIVATIONS[name], params, strict=False))
    return op.node(name, [x], given_params).outputs[0]
