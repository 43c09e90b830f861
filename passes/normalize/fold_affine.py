"""Folds multiplications and additions by a constant per channel into the linear before them, or into those after.

Mul, Div, Add and Sub of constants that vary along the channels only, as FoldBN does it for BatchNormalization; also
where means over other axes or a flattening of single pixels stand between, which commute with it. A ReLU does not, and
stays in the way. Weights whose values all fit 16 bits stay what they are: a model must not double for a saved product.
The scales of normalizations stay, too: their kernels apply them for nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Dtype, lossless_dtype
from edgec.ir.model import (
    Builder,
    const_of,
    const_tensor,
    describe,
    input_of,
    int_attr,
    ints_attr,
    ints_of,
    is_op,
    producer,
    rank_of,
    required,
    static_shape,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, apply_rules
from edgec.ir.shapes import infer_shapes
from edgec.passes.normalize.fold_bn import Affine, FoldIntoConsumers, FoldIntoProducer, Vector, linear_before

_CHANNELS = 1 << 20
_ROOTS = ("Mul", "Div", "Add", "Sub")


def _constant_side(node: ir.Node) -> int | None:
    """Which operand is the constant; None for both or neither, and for a constant divided by something."""
    sides = [i for i in (0, 1) if const_tensor(node.inputs[i]) is not None]
    return sides[0] if len(sides) == 1 and not (node.op_type == "Div" and sides[0] == 0) else None


def _channel_affine(node: ir.Node, axis: int, channels: int) -> Affine | str:
    """What `node` does per channel, the channels along `axis` of its result."""
    side, rank = _constant_side(node), rank_of(node.outputs[0])
    array = None if side is None else const_of(node.inputs[side], _CHANNELS)
    if side is None or array is None or rank is None or array.dtype.kind != "f" or array.ndim > rank:
        return "its constant is not a number per channel"
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(d != 1 for a, d in enumerate(shape) if a != axis % rank) or shape[axis] not in (1, channels):
        return "its constant varies along other axes than the channels"
    if rank_of(node.inputs[1 - side]) != rank:
        return "it adds dims"
    vector: Vector = np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (channels,))
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return Affine(vector, zeros)
    if node.op_type == "Div":
        return Affine(1 / vector, zeros) if vector.all() else "it divides by zero"
    if node.op_type == "Sub":
        return Affine(ones, -vector) if side == 1 else Affine(-ones, vector)
    return Affine(ones, vector)


def _axis(linear: ir.Node) -> int:
    return -1 if is_op(linear, "MatMul", "Gemm") else 1


def _outputs(linear: ir.Node) -> int | None:
    shape = linear.outputs[0].shape
    size = None if shape is None else shape[_axis(linear)]
    return size if isinstance(size, int) else None


def _widens(linear: ir.Node, scale: Vector) -> str | None:
    """The reason not to scale weights that 16 bits hold exactly and would no longer."""
    tensor = const_tensor(linear.inputs[1])
    if tensor is None or (np.frexp(np.abs(scale))[0] == 0.5).all():
        return None
    exact = lossless_dtype(np.asarray(tensor.numpy(), np.float32)) is not Dtype.F32
    return f"the weight of {describe(linear)} fits 16 bits and would not any more" if exact else None


def _hop(value: ir.Value, axis: int) -> ir.Value | None:
    """What a mean over other axes than the channels', or a flattening of single pixels, is made of."""
    node = producer(value, "GlobalAveragePool", "ReduceMean", "Flatten", "Reshape")
    if node is None:
        return None
    x = required(node, 0)
    shape, rank = static_shape(x), rank_of(x)
    if node.op_type == "GlobalAveragePool":
        return x if axis == 1 else None
    if node.op_type == "ReduceMean":
        axes = ints_of(input_of(node, 1)) if input_of(node, 1) is not None else ints_attr(node, "axes")
        if axes is None or rank is None or not int_attr(node, "keepdims", 1):
            return None
        return x if axis % rank not in {a % rank for a in axes} else None
    # [N, C, 1, 1] -> [N, C]
    flat = static_shape(value)
    single = shape is not None and flat is not None and axis == 1 and flat == shape[:2] and set(shape[2:]) == {1}
    return x if single else None


class AffineIntoProducer(FoldIntoProducer):
    """Conv, ConvTranspose, Gemm or MatMul (with its bias), perhaps a mean of it, times or plus a constant."""

    roots = _ROOTS

    def match(self, node: ir.Node) -> Bindings | None:
        side = _constant_side(node)
        if side is None:
            return None
        value = required(node, 1 - side)
        if node.op_type == "Add" and producer(value, "MatMul") is not None:
            return None  # that is how a MatMul has its bias
        for axis in (1, -1):
            hops, at = [], value
            while (before := _hop(at, axis)) is not None:
                hops.append(at)
                at = before
            found = linear_before(at)
            if found is not None and _axis(found["linear"]) == axis:
                return {**found, "chain": [*found["chain"], *hops], "hops": hops}
        return None

    def affine(self, node: ir.Node, **parts: Any) -> Affine | str:
        linear: ir.Node = parts["linear"]
        channels = _outputs(linear)
        return "the number of channels is not known" if channels is None else (
            _channel_affine(node, _axis(linear), channels))

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        reason = super().check(node, **parts)
        affine = self.affine(node, **parts)
        return reason or (_widens(parts["linear"], affine.scale) if isinstance(affine, Affine) else affine)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        value = super().rewrite(op, node, **parts)
        for hop in reversed(parts["hops"]):
            maker = hop.producer()
            value = op.node(maker.op_type, [value, *maker.inputs[1:]],
                            {k: a.value for k, a in maker.attributes.items()}).outputs[0]
        return value


class AffineIntoConsumers(FoldIntoConsumers):
    """A product or sum with a constant, read only by Conv, Gemm or MatMul with constant weights of their own."""

    roots = _ROOTS

    def match(self, node: ir.Node) -> Bindings | None:
        return None if _constant_side(node) is None else super().match(node)

    def affine(self, node: ir.Node, **parts: Any) -> Affine | str:
        axes = {_axis(user) for user in parts["users"]}
        shape = node.outputs[0].shape
        size = None if shape is None or len(axes) != 1 else shape[next(iter(axes))]
        if not isinstance(size, int):
            return "its readers count channels in different ways, or their number is not known"
        return _channel_affine(node, next(iter(axes)), size)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        reason = super().check(node, **parts)
        affine = self.affine(node, **parts)
        if reason or isinstance(affine, str):
            return reason or str(affine)
        return next(filter(None, (_widens(user, affine.scale) for user in parts["users"])), None)


class FoldAffine(Pass):
    """Backward first: that is legal with any padding and needs no bias at the other end."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        # A folded operator changes what stands before the next one, whose shapes must be known again.
        while (report := apply_rules(model, (AffineIntoProducer(), AffineIntoConsumers()))).modified:
            ctx.rules.extend(report)
            infer_shapes(model)
        ctx.rules.extend(report)
        return model, ctx.rules.modified
