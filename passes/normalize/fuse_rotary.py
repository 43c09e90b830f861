"""Recognizes rotary position embedding in its decomposed spellings and says RotaryEmbedding.

x cos + rotate_half(x) sin, where rotate_half(x) is Concat(-x[d/2:], x[:d/2]) and both halves of cos and of sin are the
same angles; and the two halves written out. RotaryEmbedding reads one half, so equal halves have to be proven: they
are where both come from Concat(a, a) or from a constant table of equal halves, through operators that treat the
columns alike. Heads lie before tokens: x [B, H, T, D].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Builder,
    const_of,
    const_tensor,
    describe,
    dims_of,
    graph_of,
    input_of,
    int_attr,
    ints_of,
    producer,
    rank_of,
    required,
    same_shape,
    scalar_of,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules

# Tables of angles up to 64 Mi numbers are looked into.
_TABLE = 1 << 26
_HEADS = 1
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_Halves = dict[tuple[ir.Graph, ir.Value], ir.Value]


class _Rotary(Rule):
    """`halves` remembers which half stands for which value: all layers read the same angles."""

    def __init__(self, halves: _Halves) -> None:
        self._halves = halves

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        x: ir.Value = parts["x"]
        dims = dims_of(x)
        if dims is None or len(dims) != 4:
            return "the value is not [batch, heads, tokens, width]"
        if not isinstance(dims[_HEADS], int):
            return "the number of heads is not known"
        if x.dtype not in _TYPES:
            return "its type is none that RotaryEmbedding takes"
        if not same_shape(node.outputs[0], x):
            return "the angles are not known to keep the shape of the value"
        for name in ("cos", "sin"):
            angles: ir.Value = parts[name]
            reason = _one_row_per_token(angles) or ("" if parts["half"] else self.unequal(angles))
            if reason:
                return f"{name}: {reason}"
        return None

    def unequal(self, value: ir.Value) -> str:
        """Why the two halves of the columns may differ; empty where they are equal."""
        if const_tensor(value) is not None:
            array = const_of(value, _TABLE)
            if array is None:
                return "the table of angles is too large to be looked into"
            width = array.shape[-1] if array.ndim else 1
            equal = width % 2 == 0 and np.array_equal(array[..., : width // 2], array[..., width // 2 :])
            return "" if equal else "the halves of the table differ"
        node = value.producer()
        if node is not None and _doubled(node):
            return ""
        if node is None or not _by_columns(node):
            made = "an input" if node is None else describe(node)
            return f"the halves of what {made} makes are not known to be equal"
        return self.unequal(required(node, _data(node)))

    def half(self, op: Builder, value: ir.Value) -> ir.Value:
        """The first half of the columns of `value`, made of the half of what it is made of."""
        # A value made inside a branch is not seen outside of it.
        key = graph_of(op.anchor), value
        if key in self._halves:
            return self._halves[key]
        node = value.producer()
        if (array := const_of(value, _TABLE)) is not None:
            new = op.const(np.ascontiguousarray(array[..., : array.shape[-1] // 2]))
        else:
            assert node is not None  # checked by `unequal`
            if _doubled(node):
                new = required(node, 0)
            else:
                inputs = list(node.inputs)
                inputs[_data(node)] = self.half(op, required(node, _data(node)))
                made = op.node(node.op_type, inputs, {})
                made.attributes.update(node.attributes)
                new = made.outputs[0]
                new.type = value.type
                dims = None if value.shape is None else list(value.shape)
                if dims and isinstance(dims[-1], int):
                    new.shape = ir.Shape([*dims[:-1], dims[-1] // 2])
        self._halves[key] = new
        return new

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x: ir.Value = parts["x"]
        tables = [self.rows(op, x, parts[n] if parts["half"] else self.half(op, parts[n]), dims_of(parts[n]))
                  for n in ("cos", "sin")]
        return op.RotaryEmbedding(x, *tables)

    def rows(self, op: Builder, x: ir.Value, half: ir.Value, dims: tuple[int | str | None, ...] | None) -> ir.Value:
        """[batch, tokens, D/2] of angles that broadcast with x."""
        of_x = dims_of(x)
        assert dims is not None  # checked
        assert of_x is not None
        if len(dims) == 4:
            unsqueeze = producer(half, "Unsqueeze")
            if unsqueeze is not None and ints_of(input_of(unsqueeze, 1)) == (_HEADS,):
                half = required(unsqueeze, 0)
            else:
                half = op.Squeeze(half, op.ints([_HEADS]))
        elif len(dims) == 2:
            half = op.Unsqueeze(half, op.ints([0]))
        batch = dims[0] if len(dims) == 4 else 1
        if batch != of_x[0] or dims[-2] != of_x[2] or None in (batch, dims[-2]):
            sizes = [op.Shape(x, start=0, end=1), op.Shape(x, start=2, end=3), op.ints([1])]
            half = op.Expand(half, op.Concat(*sizes, axis=0))
        return half


def _one_row_per_token(angles: ir.Value) -> str:
    dims = dims_of(angles)
    if dims is None or not 2 <= len(dims) <= 4:
        return "the angles are not [batch, 1, tokens, width]"
    return "the angles differ between heads" if len(dims) > 2 and dims[-3] != 1 else ""


def _doubled(node: ir.Node) -> bool:
    """Concat(a, a) of columns."""
    return (node is producer(node.outputs[0], "Concat") and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
            and _columns(node.outputs[0], int_attr(node, "axis", 0)))


def _columns(value: ir.Value | None, axis: int) -> bool:
    rank = rank_of(value)
    return axis == -1 or (rank is not None and axis == rank - 1)


def _data(node: ir.Node) -> int:
    """Which input carries the columns: of a product with a number the other one."""
    return 1 if node.op_type == "Mul" and scalar_of(node.inputs[0]) is not None else 0


def _by_columns(node: ir.Node) -> bool:
    """True when every output column depends in one way on the same column of input `_data(node)`."""
    if node is not producer(node.outputs[0], "Cos", "Sin", "Cast", "Identity", "Mul", "Div", "Unsqueeze", "Squeeze",
                            "Gather", "Slice"):
        return False
    x = required(node, 0)
    if node.op_type in ("Mul", "Div"):
        other = input_of(node, 1 - _data(node))
        return scalar_of(other) is not None and (rank_of(other) or 0) <= (rank_of(required(node, _data(node))) or 0)
    rank = rank_of(x)
    if node.op_type == "Gather":
        axis = int_attr(node, "axis", 0)
        return rank is not None and axis % rank != rank - 1
    if node.op_type == "Slice":
        axes = ints_of(input_of(node, 3))
        return rank is not None and axes is not None and all(a % rank != rank - 1 for a in axes)
    if node.op_type in ("Unsqueeze", "Squeeze"):
        axes, whole = ints_of(input_of(node, 1)), rank_of(node.outputs[0] if node.op_type == "Unsqueeze" else x)
        return axes is not None and whole is not None and all(a % whole != whole - 1 for a in axes)
    return True


def _halves_of(low: ir.Value | None, high: ir.Value | None) -> ir.Value | None:
    """x when the two are x[..., :D/2] and x[..., D/2:]."""
    a, b = producer(low, "Slice", "Split"), producer(high, "Slice", "Split")
    if a is None or b is None or a.inputs[0] is not b.inputs[0]:
        return None
    x = required(a, 0)
    width = (dims_of(x) or (None,))[-1]
    if not isinstance(width, int) or width % 2:
        return None
    if a.op_type == "Split":
        sizes = ints_of(input_of(a, 1)) if input_of(a, 1) is not None else (width // 2,) * len(a.outputs)
        halved = a is b and low is a.outputs[0] and high is a.outputs[1] and sizes == (width // 2, width // 2)
        return x if halved and _columns(x, int_attr(a, "axis", 0)) else None
    return x if _range(a, width) == (0, width // 2) and _range(b, width) == (width // 2, width) else None


def _range(node: ir.Node, width: int) -> tuple[int, int] | None:
    """Which columns a Slice of nothing else takes."""
    starts, ends, axes = (ints_of(input_of(node, i)) for i in (1, 2, 3))
    steps = (1,) if input_of(node, 4) is None else ints_of(input_of(node, 4))
    if node.op_type != "Slice" or starts is None or ends is None or axes is None or steps != (1,) or len(axes) != 1:
        return None
    return slice(starts[0], ends[0]).indices(width)[:2] if _columns(node.inputs[0], axes[0]) else None


def _orders(node: ir.Node | None) -> Iterator[tuple[ir.Value, ir.Value]]:
    if node is not None:
        a, b = required(node, 0), required(node, 1)
        yield a, b
        if node.op_type != "Sub":
            yield b, a


def _products(node: ir.Node | None) -> Iterator[tuple[ir.Value, ir.Value, ir.Value, ir.Value]]:
    """(a, b, c, d) of every way to read a b ± c d."""
    for left, right in _orders(node):
        for a, b in _orders(producer(left, "Mul")):
            for c, d in _orders(producer(right, "Mul")):
                yield a, b, c, d


class FuseRotateHalf(_Rotary):
    """x cos + Concat(-x[d/2:], x[:d/2]) sin."""

    roots = ("Add",)

    def match(self, node: ir.Node) -> Bindings | None:
        for x, cos, turned, sin in _products(node):
            concat = producer(turned, "Concat")
            if concat is None or len(concat.inputs) != 2 or not _columns(turned, int_attr(concat, "axis", 0)):
                continue
            negated = producer(concat.inputs[0], "Neg")
            if negated is not None and _halves_of(concat.inputs[1], negated.inputs[0]) is x:
                return {"x": x, "cos": cos, "sin": sin, "half": False}
        return None


class FuseRotaryHalves(_Rotary):
    """Concat(a cos - b sin, b cos + a sin), where a and b are the halves of x."""

    roots = ("Concat",)

    def match(self, node: ir.Node) -> Bindings | None:
        if len(node.inputs) != 2 or not _columns(node.outputs[0], int_attr(node, "axis", 0)):
            return None
        for a, cos, b, sin in _products(producer(node.inputs[0], "Sub")):
            x = _halves_of(a, b)
            if x is not None and (b, cos, a, sin) in _products(producer(node.inputs[1], "Add")):
                width = (dims_of(cos) or (None,))[-1], (dims_of(sin) or (None,))[-1]
                half = (dims_of(a) or (None,))[-1]
                return {"x": x, "cos": cos, "sin": sin, "half": True} if width == (half, half) else None
        return None


class FuseRotary(Pass):
    """The angles of a whole model become one pair of halves, not one per layer."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        halves: _Halves = {}
        ctx.rules.extend(apply_rules(model, (FuseRotateHalf(halves), FuseRotaryHalves(halves))))
        return model, ctx.rules.modified
