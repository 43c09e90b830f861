"""Folds BatchNormalization into the linear operator before it, or into those after it.

With s = gamma / sqrt(var + eps) and t = beta - mean s, y = s x + t per channel. Before: W' = s W, b' = s b + t. After:
W' = W s (over input channels), b' = b + W t, where a MatMul gets a bias if it has none; a padded convolution sees zeros
instead of t at the border, so there t must be zero. Arithmetic in float64, stored in the weight's own type, once,
lazily. RepBN (SLAB, arXiv:2405.11582), BN(x) + eta x, is first made the BatchNormalization that it is: s' = s + eta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgec.ir.model import (
    Array,
    Builder,
    add_initializer,
    const_of,
    const_tensor,
    describe,
    float_attr,
    graph_of,
    input_of,
    int_attr,
    ints_attr,
    is_op,
    producer,
    rank_of,
    required,
    same_shape,
    scalar_of,
    single_use,
    splice,
    str_attr,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.weights import lazy

Vector = npt.NDArray[np.float64]
_CHANNELS = 1 << 20
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Affine:
    """y = scale x + shift over channels."""

    scale: Vector
    shift: Vector


def affine_of(node: ir.Node) -> Affine | str:
    """The channel affine a BatchNormalization is at inference, or why it is none."""
    if int_attr(node, "training_mode", 0):
        return "it is in training mode"
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its running statistics are read"
    parts = [const_of(v, _CHANNELS) for v in node.inputs[1:5]]
    if any(p is None for p in parts):
        return "its parameters are not constants"
    gamma, beta, mean, var = (np.asarray(p, np.float64) for p in parts)
    scale = gamma / np.sqrt(var + float_attr(node, "epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def _group_scaled(weight: Array, scale: Vector, axis: int) -> Array:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return (weight.astype(np.float64) * scale.reshape(shape)).astype(weight.dtype)


def weight_of(linear: ir.Node) -> tuple[ir.Value | None, bool]:
    """The weight of a linear as it is stored, and whether a MatMul reads it through a Transpose."""
    weight = linear.inputs[1]
    turn = producer(weight, "Transpose") if is_op(linear, "MatMul") else None
    if turn is None or ints_attr(turn, "perm") not in (None, (1, 0)):
        return weight, False
    return turn.inputs[0], True


def channels_of(linear: ir.Node, before: bool) -> int | None:
    """How many channels a linear has at its result (`before`: it stands before the affine), or at its input."""
    weight, turned = weight_of(linear)
    tensor = const_tensor(weight)
    if tensor is None or len(tensor.shape) < 2:
        return None
    first, second = (int(d) for d in tensor.shape.numpy()[:2])
    groups = int_attr(linear, "group", 1)
    if is_op(linear, "Conv"):
        return first if before else second * groups
    if is_op(linear, "ConvTranspose"):
        return second * groups
    return first if before == (turned or bool(int_attr(linear, "transB", 0))) else second


def _shared(linear: ir.Node, weight: ir.Value) -> str | None:
    """Why the weight of `linear` cannot be changed for it alone."""
    values = {weight, required(linear, 1)}
    if any(v.is_graph_output() for v in values):
        return f"the weight of {describe(linear)} is a graph output"
    return f"the weight of {describe(linear)} is shared" if any(len(v.uses()) > 1 for v in values) else None


@dataclass(frozen=True)
class Before:
    """The linear that makes a value, the bias that an Add gives it, and the values on the way."""

    linear: ir.Node
    bias: ir.Value | None
    chain: tuple[ir.Value, ...]

    def problem(self) -> str | None:
        """Why nothing behind it can become part of it."""
        linear, (weight, _) = self.linear, weight_of(self.linear)
        if not all(single_use(value) for value in self.chain):
            return f"{describe(linear)} is read by others, too"
        tensor = const_tensor(weight)
        if tensor is None or weight is None:
            return f"the weight of {describe(linear)} is not a constant"
        if reason := _shared(linear, weight):
            return reason
        if is_op(linear, "MatMul", "Gemm") and len(tensor.shape) != 2:
            return f"{describe(linear)} is not a matrix of [batch, channels]"
        bias = self.any_bias()
        if bias is not None and const_of(bias, _CHANNELS) is None:
            return f"the bias of {describe(linear)} is not a constant"
        return None

    def any_bias(self) -> ir.Value | None:
        return self.bias or (None if is_op(self.linear, "MatMul") else input_of(self.linear, 2))

    def fold(self, op: Builder, affine: Affine) -> ir.Value:
        """The linear and `affine` in one."""
        linear, old = self.linear, self.any_bias()
        scale, shift = affine.scale, affine.shift
        weight, turned = weight_of(linear)
        tensor = const_tensor(weight)
        assert weight is not None  # checked, as is the next
        assert tensor is not None
        bias = np.zeros(1) if old is None else np.asarray(const_of(old, _CHANNELS), np.float64)
        if is_op(linear, "Gemm"):
            bias = float_attr(linear, "beta", 1.0) * bias
        groups = int_attr(linear, "group", 1)
        kind = linear.op_type
        axis = 0 if kind == "Conv" or turned or (kind == "Gemm" and int_attr(linear, "transB", 0)) else 1

        def change(w: Array) -> Array:
            if kind == "ConvTranspose" and groups > 1:
                # [Ci, Co/G, ...]: input channel block g makes output channels g Co/G .. (g + 1) Co/G.
                blocks = zip(np.split(w, groups), np.split(scale, groups), strict=True)
                return np.concatenate([_group_scaled(block, part, 1) for block, part in blocks])
            return _group_scaled(w, scale, axis)

        name = weight.name or "weight"
        new_weight = op.tensor(lazy(tensor, change, tuple(tensor.shape.numpy()), name), name)
        new_bias = None
        if old is not None or shift.any():
            new_bias = op.const(bias * scale + shift, tensor.dtype, f"{name}.bias")
        x = required(linear, 0)
        if kind == "MatMul":
            product = op.MatMul(x, op.Transpose(new_weight, perm=(1, 0)) if turned else new_weight)
            return product if new_bias is None else op.Add(product, new_bias)
        attributes = {k: a.value for k, a in linear.attributes.items()}
        if kind == "Gemm":
            attributes["beta"] = 1.0
        out = op.node(kind, [x, new_weight, new_bias], attributes)
        out.metadata_props.update(linear.metadata_props)
        return out.outputs[0]


def linear_before(value: ir.Value) -> Before | None:
    """The linear that makes `value`, perhaps with its bias as an Add."""
    x, add = value, producer(value, "Add")
    bias: ir.Value | None = None
    if add is not None:
        for i in (0, 1):
            if const_tensor(add.inputs[i]) is not None and producer(add.inputs[1 - i], "MatMul") is not None:
                bias, x = add.inputs[i], required(add, 1 - i)
    linear = producer(x, *_LINEAR)
    return None if linear is None else Before(linear, bias, (x, value))


class FoldIntoProducer(Rule):
    """Conv, ConvTranspose, Gemm or MatMul, perhaps with its bias as an Add, followed by BatchNormalization."""

    roots = ("BatchNormalization",)

    def match(self, node: ir.Node) -> Bindings | None:
        before = linear_before(required(node, 0))
        return None if before is None else {"before": before}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        before: Before = parts["before"]
        affine = affine_of(node)
        if isinstance(affine, str):
            return affine
        # BatchNormalization works on dim 1; a linear's channels are its last dim.
        # The addition of its bias may have added a dim, or repeated the only channel.
        if is_op(before.linear, "MatMul", "Gemm") and rank_of(node.inputs[0]) != 2:
            return f"{describe(before.linear)} is not a matrix of [batch, channels]"
        if (reason := before.problem()) is None and channels_of(before.linear, before=True) != affine.scale.size:
            return f"{describe(before.linear)} has other channels than its sum with the bias"
        return reason

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        before: Before = parts["before"]
        affine = affine_of(node)
        assert isinstance(affine, Affine)  # checked
        return before.fold(op, affine)


class FoldIntoConsumers(Rule):
    """BatchNormalization read only by Conv, Gemm or MatMul with constant weights of their own."""

    roots = ("BatchNormalization",)

    def match(self, node: ir.Node) -> Bindings | None:
        users = [use.node for use in node.outputs[0].uses()]
        if not users or not all(is_op(user, "Conv", "Gemm", "MatMul") for user in users):
            return None
        return {"users": users}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        affine = affine_of(node)
        if isinstance(affine, str):
            return affine
        if node.outputs[0].is_graph_output():
            return "its result is a graph output"
        for user in parts["users"]:
            if is_op(user, "MatMul") and rank_of(user.inputs[0]) != 2:
                return f"{describe(user)} is not a matrix of [batch, channels]"
            reason = forward_problem(node, node.outputs[0], user, affine)
            if reason:
                return reason
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        affine = affine_of(node)
        assert isinstance(affine, Affine)  # checked
        for user in parts["users"]:
            fold_forward(op, user, affine)
        return required(node, 0)


def forward_problem(node: ir.Node, value: ir.Value, user: ir.Node, affine: Affine) -> str | None:
    """Why the linear `user` of `value` cannot take `affine` of `node` in."""
    weight, _ = weight_of(user)
    tensor = const_tensor(weight)
    if tensor is None or weight is None or user.inputs[0] is not value:
        return f"the weight of {describe(user)} is not a constant"
    if reason := _shared(user, weight):
        return reason
    if user.graph is not node.graph:
        return f"{describe(user)} is in another graph"
    if is_op(user, "MatMul"):
        if len(tensor.shape) != 2:
            return f"{describe(user)} is not a matrix of [batch, channels]"
        return None
    bias = input_of(user, 2)
    if bias is not None and const_of(bias, _CHANNELS) is None:
        return f"the bias of {describe(user)} is not a constant"
    if is_op(user, "Gemm"):
        return f"{describe(user)} reads its input transposed" if int_attr(user, "transA", 0) else None
    padded = any(ints_attr(user, "pads") or ()) or str_attr(user, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if padded and affine.shift.any():
        return f"{describe(user)} pads with zeros where the shift would have to be"
    return None


def fold_forward(op: Builder, user: ir.Node, affine: Affine) -> None:
    """Lets `user` do to its own input what `affine` does before it."""
    weight, turned = weight_of(user)
    tensor = const_tensor(weight)
    assert weight is not None  # checked, as is the next
    assert tensor is not None
    scale, shift = affine.scale, affine.shift
    groups = int_attr(user, "group", 1)
    is_conv = is_op(user, "Conv")
    transposed = turned or bool(int_attr(user, "transB", 0))

    def change(w: Array) -> Array:
        if is_conv:
            # [Co, Ci/G, ...]: output channel block g reads input channels g Ci/G .. (g + 1) Ci/G.
            blocks = zip(np.split(w, groups), np.split(scale, groups), strict=True)
            return np.concatenate([_group_scaled(block, part, 1) for block, part in blocks])
        return _group_scaled(w, scale, 1 if transposed else 0)

    shape = tuple(tensor.shape.numpy())
    new_weight = op.tensor(lazy(tensor, change, shape, weight.name or "weight"), weight.name or "")
    user.replace_input_with(1, op.Transpose(new_weight, perm=(1, 0)) if turned else new_weight)
    if shift.any():
        w = np.asarray(tensor.numpy(), np.float64)
        if is_conv:
            taps = w.reshape(*w.shape[:2], -1).sum(-1)
            added = np.concatenate([
                block @ part for block, part in zip(np.split(taps, groups), np.split(shift, groups), strict=True)
            ])
        else:
            added = (w if transposed else w.T) @ shift * float_attr(user, "alpha", 1.0)
        if is_op(user, "MatMul"):
            _add_bias(user, added, tensor.dtype)
            return
        old = input_of(user, 2)
        bias = np.zeros(1) if old is None else np.asarray(const_of(old, _CHANNELS), np.float64)
        beta = float_attr(user, "beta", 1.0) if is_op(user, "Gemm") else 1.0
        new_bias = op.const(beta * bias + added, tensor.dtype, f"{weight.name}.bias")
        user.resize_inputs(3)
        user.replace_input_with(2, new_bias)
        if is_op(user, "Gemm"):
            user.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _add_bias(product: ir.Node, added: Vector, dtype: ir.DataType) -> None:
    """Adds a vector to what a MatMul makes: to the constant that is added to it already, or by an Add of its own."""
    value = product.outputs[0]
    add = next(iter(value.uses())).node if single_use(value) else None
    for i in (0, 1):
        old = const_of(add.inputs[i], _CHANNELS) if add is not None and is_op(add, "Add") else None
        if add is not None and old is not None and add.graph is product.graph:
            op = Builder(product)
            moved = op.const(np.asarray(old, np.float64) + added, dtype, f"{op.stem}.bias")
            add_initializer(graph_of(product), moved)
            add.replace_input_with(i, moved)
            return
    op = Builder(product)
    again = op.MatMul(*product.inputs)
    splice(product, op, [op.Add(again, op.const(added, dtype, f"{op.stem}.bias"))])


class RepBNToBN(Rule):
    """BN(x) + eta x with one number eta, or BN(x) + x: the BatchNormalization with s + eta for s."""

    roots = ("Add",)

    def match(self, node: ir.Node) -> Bindings | None:
        for i in (0, 1):
            norm, other = producer(node.inputs[i], "BatchNormalization"), required(node, 1 - i)
            if norm is None:
                continue
            if other is norm.inputs[0]:
                return {"norm": norm, "eta": 1.0}
            scaled = producer(other, "Mul")
            for j in (0, 1):
                if scaled is not None and scaled.inputs[j] is norm.inputs[0]:
                    eta = scalar_of(scaled.inputs[1 - j])
                    if eta is not None:
                        return {"norm": norm, "eta": eta}
        return None

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        norm: ir.Node = parts["norm"]
        affine = affine_of(norm)
        if isinstance(affine, str):
            return affine
        if not single_use(norm.outputs[0]):
            return f"{describe(norm)} is read by others, too"
        return None if same_shape(node.outputs[0], norm.inputs[0]) else "the sum has another shape than its input"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        norm: ir.Node = parts["norm"]
        affine = affine_of(norm)
        assert isinstance(affine, Affine)  # checked
        dtype = norm.inputs[1].dtype if norm.inputs[1] is not None else None
        zeros, ones = np.zeros_like(affine.scale), np.ones_like(affine.scale)
        rows = (op.const(row, dtype) for row in (affine.scale + parts["eta"], affine.shift, zeros, ones))
        return op.BatchNormalization(required(norm, 0), *rows, epsilon=0.0)


class DropFadedNorm(Rule):
    """0 LayerNorm(x) + y, what PRepBN is after its last step: y, for a norm of finite numbers is finite."""

    roots = ("Add",)

    def match(self, node: ir.Node) -> Bindings | None:
        for i in (0, 1):
            faded = producer(node.inputs[i], "Mul")
            for j in (0, 1):
                if faded is not None and scalar_of(faded.inputs[j]) == 0.0 and (
                        norm := producer(faded.inputs[1 - j], "LayerNormalization")) is not None:
                    return {"norm": norm, "y": required(node, 1 - i)}
        return None

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if float_attr(parts["norm"], "epsilon", 1e-5) <= 0:
            return f"{describe(parts['norm'])} divides by zero where its input is constant"
        return None if same_shape(node.outputs[0], parts["y"]) else "the sum has another shape"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        y: ir.Value = parts["y"]
        return y


class FoldBN(Pass):
    """A BatchNormalization without a foldable neighbour stays; lowering makes it Mul and Add."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        report = apply_rules(model, (DropFadedNorm(), RepBNToBN(), FoldIntoProducer(), FoldIntoConsumers()))
        ctx.rules.extend(report)
        return model, report.modified
