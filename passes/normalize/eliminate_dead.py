"""Removes what nobody reads and what does nothing."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from edgec.ir.model import (
    Builder,
    const_of,
    dims_of,
    input_of,
    int_attr,
    ints_attr,
    ints_of,
    producer,
    rank_of,
    remove_unused,
    required,
    same_shape,
    static_shape,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class DropIdentity(Rule):
    """Identity, Dropout of inference, Concat, Sum, Max, Min and Mean of one input."""

    roots = ("Identity", "Dropout", "Concat", "Sum", "Max", "Min", "Mean")

    def match(self, node: ir.Node) -> Bindings | None:
        if node.op_type not in ("Identity", "Dropout") and len(node.inputs) != 1:
            return None
        # Between an input or initializer and a graph output the Identity is what makes the output.
        x = required(node, 0)
        maker = x.producer()
        if node.outputs[0].is_graph_output() and (
            maker is None or maker.graph is not node.graph or x.is_graph_output()
        ) and node.op_type == "Identity":
            return None
        return {"x": x}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if node.op_type != "Dropout":
            return None
        if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
            return "the mask is read"
        training = input_of(node, 2)
        mode = const_of(training)
        if training is not None and (mode is None or bool(mode.reshape(-1)[0])):
            return "it may run in training mode"
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> list[ir.Value]:
        return [parts["x"]] * len(node.outputs)


class DropCast(Rule):
    """A Cast to the type the value has."""

    roots = ("Cast",)

    def match(self, node: ir.Node) -> Bindings | None:
        x = required(node, 0)
        return {"x": x} if x.dtype is not None and int(x.dtype) == int_attr(node, "to", 0) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x: ir.Value = parts["x"]
        return x


class DropReshape(Rule):
    """Reshape, Expand, Flatten, Squeeze or Unsqueeze to the shape the value has, or had before others like it."""

    roots = ("Reshape", "Expand", "Flatten", "Squeeze", "Unsqueeze")

    def match(self, node: ir.Node) -> Bindings | None:
        x = required(node, 0)
        if same_shape(x, node.outputs[0]):
            return {"x": x}
        before = producer(x, *_RESHAPES) if node.op_type != "Expand" else None
        while before is not None:
            if same_shape(before.inputs[0], node.outputs[0]):
                return {"x": required(before, 0)}
            before = producer(before.inputs[0], *_RESHAPES)
        # One unknown dim on both sides: equal element counts make it equal, too.
        a, b = dims_of(x), dims_of(node.outputs[0])
        target = ints_of(input_of(node, 1)) if node.op_type == "Reshape" else None
        if a is None or b is None or target is None or len(a) != len(target):
            return None
        zero_copies = not int_attr(node, "allowzero", 0)
        same = [t == d or (t == 0 and zero_copies) for t, d in zip(target, a, strict=True)]
        unknown = [i for i, ok in enumerate(same) if not ok]
        return {"x": x} if len(unknown) == 0 or (len(unknown) == 1 and target[unknown[0]] == -1
                                                 and 0 not in a) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x: ir.Value = parts["x"]
        return x


class MergeReshapes(Rule):
    """Reshape of a Reshape: only the last shape counts."""

    roots = ("Reshape",)

    def match(self, node: ir.Node) -> Bindings | None:
        inner = producer(node.inputs[0], *_RESHAPES)
        target = ints_of(input_of(node, 1))
        if inner is None or target is None:
            return None
        return {"x": required(inner, 0), "target": target}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return "its shape copies a dim of the first" if 0 in parts["target"] else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Reshape(parts["x"], required(node, 1), allowzero=int_attr(node, "allowzero", 0) or None)


class MergeTransposes(Rule):
    """Transpose of a Transpose is one; one that moves only dims of size 1 past each other is none."""

    roots = ("Transpose",)

    def match(self, node: ir.Node) -> Bindings | None:
        x = required(node, 0)
        rank = rank_of(x)
        perm = _perm(node, rank)
        inner = producer(x, "Transpose")
        if inner is not None:
            first = _perm(inner, rank)
            if perm is not None and first is not None:
                return {"x": required(inner, 0), "perm": tuple(first[p] for p in perm)}
        if perm is not None and perm == tuple(range(len(perm))):
            return {"x": x, "perm": perm}
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        perm: tuple[int, ...] = parts["perm"]
        if perm == tuple(range(len(perm))):
            x: ir.Value = parts["x"]
            return x
        return op.Transpose(parts["x"], perm=perm)


def _perm(node: ir.Node, rank: int | None) -> tuple[int, ...] | None:
    perm = ints_attr(node, "perm")
    if perm is not None:
        return perm
    return None if rank is None else tuple(reversed(range(rank)))


class DropArithmetic(Rule):
    """x + 0, x - 0, x * 1, x / 1 with a constant that neither widens the shape nor changes the type."""

    roots = ("Add", "Sub", "Mul", "Div")

    def match(self, node: ir.Node) -> Bindings | None:
        neutral = 0 if node.op_type in ("Add", "Sub") else 1
        sides = ((0, 1), (1, 0)) if node.op_type in ("Add", "Mul") else ((0, 1),)
        for keep, other in sides:
            x, array = required(node, keep), const_of(node.inputs[other])
            dims = static_shape(x)
            rank = rank_of(x)
            if array is None or rank is None or array.ndim > rank or not (array == neutral).all():
                continue
            # A constant of one element never widens; a larger one must not be broader than x.
            if math.prod(array.shape) == 1 or (
                dims is not None and all(c in (1, d) for c, d in zip(array.shape[::-1], dims[::-1], strict=False))
            ):
                return {"x": x}
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x: ir.Value = parts["x"]
        return x


_RULES = (DropIdentity(), DropCast(), DropReshape(), MergeReshapes(), MergeTransposes(), DropArithmetic())


class EliminateDead(Pass):
    """Unused nodes and initializers, no-ops, equal small initializers and equal subexpressions."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        import onnx_ir.passes.common as common

        modified = remove_unused(model) > 0
        ctx.rules.extend(apply_rules(model, _RULES))
        modified |= ctx.rules.modified
        for share in (common.DeduplicateInitializersPass(size_limit=1024), common.CommonSubexpressionEliminationPass()):
            modified |= share(model).modified
        modified |= remove_unused(model) > 0
        return model, modified
