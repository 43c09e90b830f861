"""Recognizes activations in their decomposed spellings: Swish, HardSwish, HardSigmoid, Mish, Gelu, Relu, Clip.

The match is on values, not on pictures: products are multiplied out and inner expressions read as polynomials
(`polynomial.py`), so the order in which an exporter wrote them does not matter.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from edgec.ir.model import Builder, float_attr, input_of, is_op, producer, rank_of, required, scalar_of
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, PatternRule, Rule, apply_rules
from edgec.passes.normalize.polynomial import close, factors, polynomial

_SQRT_HALF = math.sqrt(0.5)
_TANH_SCALE = math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715


def _near(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= 2e-3 * abs(wanted)


class FuseProduct(Rule):
    """c * x * f(x): Swish, HardSwish, Mish, and both Gelus."""

    roots = ("Mul", "Div")

    def match(self, node: ir.Node) -> Bindings | None:
        coefficient, leaves = factors(node.outputs[0])
        if len(leaves) != 2:
            return None
        for x, gate in (leaves, leaves[::-1]):
            found = _gate(coefficient, x, gate)
            if found is not None:
                return {"x": x, "op_type": found[0], "attributes": found[1]}
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.node(parts["op_type"], [parts["x"]], parts["attributes"]).outputs[0]


def _gate(coefficient: float, x: ir.Value, gate: ir.Value) -> tuple[str, dict[str, float | str]] | None:
    node = gate.producer()
    if node is None or node.domain != "":
        return None
    inner = node.inputs[0] if node.inputs else None
    if node.op_type == "Sigmoid" and _near(coefficient, 1.0):
        slope = polynomial(inner, x)
        if slope is not None and set(slope) == {1}:
            return "Swish", {} if slope[1] == 1.0 else {"alpha": slope[1]}
    if node.op_type == "HardSigmoid" and inner is x and _near(coefficient, 1.0) \
            and _near(float_attr(node, "alpha", 0.2), 1 / 6) and float_attr(node, "beta", 0.5) == 0.5:
        return "HardSwish", {}
    if node.op_type == "Clip" and _bounds(node) == (0.0, 6.0) and _near(coefficient, 1 / 6) \
            and close(polynomial(inner, x), {0: 3.0, 1: 1.0}):
        return "HardSwish", {}
    if node.op_type == "Tanh" and _near(coefficient, 1.0):
        softplus = producer(inner, "Softplus")
        if softplus is not None and softplus.inputs[0] is x:
            return "Mish", {}
    if node.op_type == "Add" and _near(coefficient, 0.5):
        return _gelu(node, x)
    return None


def _gelu(node: ir.Node, x: ir.Value) -> tuple[str, dict[str, float | str]] | None:
    for i in (0, 1):
        if scalar_of(node.inputs[i]) != 1.0:
            continue
        bend = producer(node.inputs[1 - i], "Erf", "Tanh")
        if bend is None:
            return None
        inner = polynomial(bend.inputs[0], x)
        if bend.op_type == "Erf" and close(inner, {1: _SQRT_HALF}):
            return "Gelu", {"approximate": "none"}
        if bend.op_type == "Tanh" and close(inner, {1: _TANH_SCALE, 3: _TANH_SCALE * _CUBIC}):
            return "Gelu", {"approximate": "tanh"}
    return None


def _bounds(node: ir.Node) -> tuple[float | None, float | None] | None:
    """(low, high) of Relu, Clip, Max or Min with scalar constants; None for a missing bound; None when not constant."""
    if is_op(node, "Relu"):
        return 0.0, None
    if is_op(node, "Clip"):
        low, high = input_of(node, 1), input_of(node, 2)
        a, b = scalar_of(low), scalar_of(high)
        return None if (low is not None and a is None) or (high is not None and b is None) else (a, b)
    if is_op(node, "Max", "Min") and len(node.inputs) == 2:
        for i in (1, 0):
            number = scalar_of(node.inputs[i])
            if number is not None and (rank_of(node.inputs[i]) or 0) <= (rank_of(node.inputs[1 - i]) or 0):
                return (number, None) if node.op_type == "Max" else (None, number)
    return None


class FuseClip(Rule):
    """Max and Min with a constant, Clip from 0 alone, and chains of them become one Clip or Relu."""

    roots = ("Clip", "Max", "Min", "Relu")

    def match(self, node: ir.Node) -> Bindings | None:
        bounds = _bounds(node)
        if bounds is None:
            return None
        x = _clipped(node)
        if x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
            return None
        low, high = bounds
        inner = x.producer()
        before = None if inner is None else _bounds(inner)
        if inner is not None and before is not None:
            # clip(clip(x, a, b), c, d): the later bounds also bend the earlier ones.
            x = _clipped(inner)
            merged = [
                None if b is None and n is None else n if b is None else _clamp(b, low, high) if n is None
                else (max(n, _clamp(b, low, high)) if is_low else min(n, _clamp(b, low, high)))
                for b, n, is_low in zip(before, (low, high), (True, False), strict=True)
            ]
            low, high = merged
        op_type = "Relu" if low == 0.0 and high is None else "Clip"
        if inner is not None and before is None and node.op_type == op_type:
            return None
        if inner is None and node.op_type == op_type:
            return None
        return {"x": x, "low": low, "high": high, "op_type": op_type}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        low, high = parts["low"], parts["high"]
        if low is not None and high is not None and low > high:
            return f"its bounds cross: {low} > {high}"
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x, low, high = parts["x"], parts["low"], parts["high"]
        if parts["op_type"] == "Relu":
            return op.Relu(x)
        return op.Clip(x, None if low is None else op.like(low, x), None if high is None else op.like(high, x))


def _clamp(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def _clipped(node: ir.Node) -> ir.Value:
    first = is_op(node, "Max", "Min") and scalar_of(node.inputs[0]) is not None and scalar_of(node.inputs[1]) is None
    return required(node, 1 if first else 0)


class FuseHardSigmoid(Rule):
    """clip(x + 3, 0, 6) / 6."""

    roots = ("Div", "Mul")

    def match(self, node: ir.Node) -> Bindings | None:
        coefficient, leaves = factors(node.outputs[0])
        clip = producer(leaves[0], "Clip") if len(leaves) == 1 else None
        if clip is None or _bounds(clip) != (0.0, 6.0) or not _near(coefficient, 1 / 6):
            return None
        add = producer(clip.inputs[0], "Add")
        for i in (0, 1):
            if add is not None and scalar_of(add.inputs[1 - i]) == 3.0:
                return {"x": required(add, i)}
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.HardSigmoid(parts["x"], alpha=1 / 6, beta=0.5)


class FuseSoftplus(PatternRule):
    """log(exp(x) + 1)."""

    roots = ("Log",)

    def pattern(self, op: Any, x: Any, one: Any) -> Any:
        return op.Log(op.Add(op.Exp(x), one))

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return None if scalar_of(parts["one"]) == 1.0 else "adds something other than 1"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Softplus(parts["x"])


class FuseActivations(Pass):
    """Fused operators round once where their spellings round several times; otherwise the numbers are the same."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (FuseClip(), FuseProduct(), FuseSoftplus())))
        # After the products: a HardSwish contains the same clip and is the better reading.
        ctx.rules.extend(apply_rules(model, (FuseHardSigmoid(),)))
        if ctx.rules.modified:
            ctx.rules.extend(apply_rules(model, (FuseProduct(),)))
        return model, ctx.rules.modified
