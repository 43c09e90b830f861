"""Folds multiplications and additions by a constant per channel into the linears before them, or into those after.

Mul, Div, Add, Sub of constants that vary along the channels only, and a BatchNormalization that FoldBN left; also
through operators that commute with it (channel_paths). Behind a Concat every part must be able to take its share. A
ReLU does not commute and stays in the way. Weights whose values all fit 16 bits stay what they are: a model must not
double for a saved product. The scales of normalizations stay, too: their kernels apply them for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Dtype, lossless_dtype
from edgec.ir.model import (
    Builder,
    const_of,
    const_tensor,
    describe,
    dims_of,
    is_op,
    producer,
    rank_of,
    required,
    single_use,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.shapes import infer_shapes
from edgec.passes.normalize.channel_paths import CHANNELS, MOVES, Along, backward, forward, joins_alike
from edgec.passes.normalize.fold_bn import (
    Affine,
    Before,
    Vector,
    affine_of,
    channels_of,
    fold_forward,
    forward_problem,
    linear_before,
    weight_of,
)

_ROOTS = ("Mul", "Div", "Add", "Sub", "BatchNormalization")
# A longer way between two linears is nobody's network.
_STEPS = 256
# Goes on where the real one cannot: whether a linear is near decides if the reason is worth telling.
_NOTHING = Along.make(Affine(np.ones(1), np.zeros(1)), None)


def _data_side(node: ir.Node) -> int | None:
    """Which operand varies; None where both or neither do, and for a constant divided by something."""
    if is_op(node, "BatchNormalization"):
        return 0
    sides = [i for i in (0, 1) if const_tensor(node.inputs[i]) is None]
    return sides[0] if len(sides) == 1 and not (node.op_type == "Div" and sides[0] == 1) else None


def _along(node: ir.Node, side: int) -> Along | str:
    """What `node` does per channel of operand `side`, or why that is nothing to fold."""
    if is_op(node, "BatchNormalization"):
        affine, dims = affine_of(node), dims_of(node.inputs[0])
        if isinstance(affine, str):
            return affine
        return Along.make(affine, 1) if dims is not None and dims[1] == affine.scale.size else (
            "the number of channels is not known")
    dims, array = dims_of(node.inputs[side]), const_of(node.inputs[1 - side], CHANNELS)
    if dims is None or array is None or array.dtype.kind != "f":
        return "its constant is not a number per channel"
    if array.ndim > len(dims):
        return "it adds dims"
    places = [i for i, d in enumerate(array.shape, len(dims) - array.ndim) if d != 1]
    if len(places) > 1:
        return "its constant varies along other axes than the channels"
    if any(dims[i] != array.size for i in places):
        return "its constant is not known to have the size of the channels"
    affine = _affine(node, np.asarray(array, np.float64).reshape(-1), side)
    if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        return "it divides by zero, or its constant is not finite"
    return Along.make(affine, places[0] if places else None)


def _affine(node: ir.Node, vector: Vector, side: int) -> Affine:
    ones, zeros = np.ones_like(vector), np.zeros_like(vector)
    if node.op_type == "Mul":
        return Affine(vector, zeros)
    if node.op_type == "Div":
        with np.errstate(divide="ignore"):
            return Affine(1 / vector, zeros)
    if node.op_type == "Sub":
        return Affine(ones, -vector) if side == 0 else Affine(-ones, vector)
    return Affine(ones, vector)


def _share(linear: ir.Node, value: ir.Value, along: Along, before: bool) -> Affine | str:
    """The affine that `linear` has to take in when `along` is what happens to `value`."""
    channels, rank = channels_of(linear, before), rank_of(value)
    if channels is None or rank is None:
        return f"the weight of {describe(linear)} is not a constant of known channels"
    return along.of(channels, rank - 1 if is_op(linear, "MatMul", "Gemm") else 1)


def _unable(linear: ir.Node, affine: Affine | str) -> str | None:
    """The reason not to scale: none was found to do, or 16 bits hold the weights exactly and would no longer."""
    tensor = const_tensor(weight_of(linear)[0])
    if isinstance(affine, str):
        return affine
    if tensor is None or (np.frexp(np.abs(affine.scale))[0] == 0.5).all():
        return None
    exact = lossless_dtype(np.asarray(tensor.numpy(), np.float32)) is not Dtype.F32
    return f"the weight of {describe(linear)} fits 16 bits and would not any more" if exact else None


@dataclass
class _Walk:
    """Linears that all ways from a value end at. problem: why not all of them do, or why it cannot go there; near:
    there is at least one, perhaps behind what is in the way."""

    ends: dict[ir.Value, tuple[Before, Along]] = field(default_factory=dict)
    readers: dict[ir.Node, tuple[ir.Value, Along]] = field(default_factory=dict)
    problem: str | None = None
    near: bool = False

    def stop(self, reason: str) -> None:
        self.problem = self.problem or reason


def _back(value: ir.Value, along: Along) -> _Walk:
    """Fills `ends`: what makes `value` and, behind operators that move values, its parts."""
    walk, todo = _Walk(), [(value, along)]
    for _ in range(_STEPS):
        if not todo:
            return walk
        value, along = todo.pop()
        node = value.producer()
        if (before := linear_before(value)) is not None:
            walk.ends[value], walk.near = (before, along), True
        elif node is None or not is_op(node, *MOVES):
            walk.stop(f"{value.name!r} is an input" if node is None else f"{describe(node)} stands between")
            behind = node.inputs[0] if node is not None and node.inputs else None
            walk.near |= behind is not None and linear_before(behind) is not None
        else:
            if not single_use(value):
                walk.stop(f"{describe(node)} is read by others, too")
            if isinstance(found := backward(node, along), str):
                walk.stop(found)
                found = backward(node, _NOTHING)
            assert not isinstance(found, str)  # what is the same everywhere goes everywhere
            todo += found
    walk.stop(f"more than {_STEPS} operators stand between")
    return walk


def _forth(value: ir.Value, along: Along) -> _Walk:
    """Fills `readers`: what reads `value` and, behind operators that move values, what they make of it."""
    walk, todo, seen = _Walk(), [(value, along)], {value}
    arrived: dict[ir.Node, list[Along]] = {}
    for _ in range(_STEPS):
        if not todo:
            for join in arrived:
                walk.stop(f"{describe(join)} joins it along another axis with values that it is not done to")
                todo.append((join.outputs[0], _NOTHING))
            arrived.clear()
        if not todo:
            return walk
        value, along = todo.pop()
        if value.is_graph_output():
            walk.stop("its result is a graph output")
        for user, index in value.uses():
            if is_op(user, "Conv", "Gemm", "MatMul"):
                walk.readers[user], walk.near = (value, along), True
            elif not is_op(user, *MOVES):
                walk.stop(f"{describe(user)} reads it, too")
            elif is_op(user, "Concat") and joins_alike(user, along):
                # As in a rolled map: what reaches it by all its inputs, and is the same there, goes on.
                ways = arrived.setdefault(user, [])
                ways.append(along)
                if not along.same(ways[0]):
                    walk.stop(f"{describe(user)} reads it in two ways")
                if len(ways) == len(user.inputs):
                    del arrived[user]
                    todo.append((user.outputs[0], along))
            elif user.outputs[0] in seen:
                walk.stop(f"{describe(user)} reads it in two ways")
            else:
                if isinstance(moved := forward(user, index, along), str):
                    walk.stop(moved)
                    moved = _NOTHING
                seen.add(user.outputs[0])
                todo.append((user.outputs[0], moved))
    walk.stop(f"more than {_STEPS} operators stand between")
    return walk


def _parts(node: ir.Node, side: int, walk: Callable[[Along], _Walk]) -> Bindings | None:
    along = _along(node, side)
    found = walk(_NOTHING if isinstance(along, str) else along)
    return {"side": side, "along": along, "walk": found} if found.near else None


class AffineIntoProducer(Rule):
    """Conv, ConvTranspose, Gemm or MatMul (with its bias), several of them joined, times or plus a constant."""

    roots = _ROOTS

    def match(self, node: ir.Node) -> Bindings | None:
        side = _data_side(node)
        if side is None or (node.op_type == "Add" and producer(node.inputs[side], "MatMul") is not None):
            return None  # an Add behind a MatMul is how that has its bias
        return _parts(node, side, lambda along: _back(required(node, side), along))

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        walk: _Walk = parts["walk"]
        reason = parts["along"] if isinstance(parts["along"], str) else walk.problem
        for value, (before, along) in walk.ends.items():
            if reason:
                return reason
            if before.linear.graph is not node.graph:
                return f"{describe(before.linear)} is in another graph"
            share = _share(before.linear, value, along, before=True)
            # A BatchNormalization right behind it goes whatever the bits, as in FoldBN, which came too early for it.
            direct = is_op(node, "BatchNormalization") and value is node.inputs[0] and not isinstance(share, str)
            reason = before.problem() or (None if direct else _unable(before.linear, share))
        return reason

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return self._rebuilt(op, required(node, parts["side"]), parts["along"], parts["walk"])

    def _rebuilt(self, op: Builder, value: ir.Value, along: Along, walk: _Walk) -> ir.Value:
        """`value` with `along` done to it where it is made."""
        if value in walk.ends:
            before, _ = walk.ends[value]
            affine = _share(before.linear, value, along, before=True)
            assert isinstance(affine, Affine)  # checked
            new = before.fold(op, affine)
        else:
            node = value.producer()
            assert node is not None  # walked through
            found = backward(node, along)
            assert not isinstance(found, str)  # walked through
            moved = [self._rebuilt(op, v, part, walk) for v, part in found]
            made = op.node(node.op_type, [*moved, *node.inputs[len(moved):]],
                           {k: a.value for k, a in node.attributes.items()})
            made.metadata_props.update(node.metadata_props)
            new = made.outputs[0]
        new.type, new.shape = value.type, value.shape
        return new


class AffineIntoConsumers(Rule):
    """A product or sum with a constant that only Conv, Gemm or MatMul with weights of their own read in the end."""

    roots = _ROOTS

    def match(self, node: ir.Node) -> Bindings | None:
        side = _data_side(node)
        return None if side is None else _parts(node, side, lambda along: _forth(node.outputs[0], along))

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        walk: _Walk = parts["walk"]
        reason = parts["along"] if isinstance(parts["along"], str) else walk.problem
        for user, (value, along) in walk.readers.items():
            if reason:
                return reason
            affine = _share(user, value, along, before=False)
            reason = affine if isinstance(affine, str) else (
                forward_problem(node, value, user, affine) or _unable(user, affine))
        return reason

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        walk: _Walk = parts["walk"]
        for user, (value, along) in walk.readers.items():
            affine = _share(user, value, along, before=False)
            assert isinstance(affine, Affine)  # checked
            fold_forward(op, user, affine)
        return required(node, parts["side"])


class FoldAffine(Pass):
    """Backward first: that is legal with any padding and needs no bias at the other end."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        # A folded operator changes what stands before the next one, whose shapes must be known again.
        while (report := apply_rules(model, (AffineIntoProducer(), AffineIntoConsumers()))).modified:
            ctx.rules.extend(report)
            infer_shapes(model)
        ctx.rules.extend(report)
        return model, ctx.rules.modified
