"""Adds parallel convolutions of one input together: RepVGG (k x k, 1 x 1 and the input itself), RepDW.

A smaller kernel is a larger one with zeros around it, and the input itself is a kernel with a single one per channel
(times what a BatchNormalization on it does). Sums in float64, stored in the weight's own type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Array,
    Builder,
    const_of,
    const_tensor,
    describe,
    input_of,
    int_attr,
    ints_attr,
    producer,
    required,
    same_shape,
    single_use,
    str_attr,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.weights import lazy
from edgec.passes.normalize.fold_bn import Affine, Vector, affine_of

_CHANNELS = 1 << 20


@dataclass(frozen=True)
class _Window:
    """How a convolution reads its input."""

    kernel: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    strides: tuple[int, ...]


def _window(conv: ir.Node, tensor: ir.TensorProtocol) -> _Window:
    kernel = tuple(int(d) for d in tensor.shape.numpy()[2:])
    rank = len(kernel)
    pads = ints_attr(conv, "pads") or (0,) * (2 * rank)
    return _Window(kernel, pads[:rank], pads[rank:], ints_attr(conv, "strides") or (1,) * rank)


def _plain(conv: ir.Node) -> str | None:
    """Why a convolution cannot be added to another: weights that are not its own, or unusual attributes."""
    weight, bias = required(conv, 1), input_of(conv, 2)
    if const_tensor(weight) is None or not single_use(weight):
        return f"the weight of {describe(conv)} is not a constant of its own"
    if bias is not None and const_of(bias, _CHANNELS) is None:
        return f"the bias of {describe(conv)} is not a constant"
    if any(d != 1 for d in ints_attr(conv, "dilations") or ()) or str_attr(conv, "auto_pad", "NOTSET") != "NOTSET":
        return f"{describe(conv)} is dilated or pads by itself"
    return None


class MergeBranches(Pass):
    """Conv + Conv, Conv + BatchNormalization(x) and Conv + x, where they read the same x, become one Conv."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (AddBranches(),)))
        return model, ctx.rules.modified


class AddBranches(Rule):
    """An Add of a convolution and a smaller branch of the same input."""

    roots = ("Add",)

    def match(self, node: ir.Node) -> Bindings | None:
        found: Bindings | None = None
        for i in (0, 1):
            conv, other = producer(node.inputs[i], "Conv"), required(node, 1 - i)
            if conv is None:
                continue
            x, branch = required(conv, 0), producer(other, "Conv", "BatchNormalization")
            if other is not x and (branch is None or branch.inputs[0] is not x or branch is conv):
                continue
            tensor = const_tensor(conv.inputs[1])
            if tensor is None:
                continue
            size = int(np.prod(tensor.shape.numpy()[2:]))
            # Of two convolutions the one with the larger kernel takes the other in.
            if found is None or size > found["size"]:
                found = {"conv": conv, "branch": None if other is x else branch, "other": other, "size": size}
        return found

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        conv: ir.Node = parts["conv"]
        branch: ir.Node | None = parts["branch"]
        if not single_use(conv.outputs[0]) or (branch is not None and not single_use(branch.outputs[0])):
            return "a branch is read by others, too"
        if not same_shape(conv.outputs[0], parts["other"]):
            return "the branches are not known to have the same shape"
        reason = _plain(conv)
        if reason:
            return reason
        tensor = const_tensor(conv.inputs[1])
        assert tensor is not None  # matched
        large = _window(conv, tensor)
        if branch is not None and branch.op_type == "Conv":
            small_tensor = const_tensor(branch.inputs[1])
            if small_tensor is None or small_tensor.dtype != tensor.dtype:
                return f"the weight of {describe(branch)} is not a constant of the same type"
            small = _window(branch, small_tensor)
            if int_attr(branch, "group", 1) != int_attr(conv, "group", 1) or small.strides != large.strides:
                return "strides or groups differ"
            return _plain(branch) or _misplaced(large, small)
        if branch is not None:
            affine = affine_of(branch)
            if isinstance(affine, str):
                return affine
        if any(s != 1 for s in large.strides):
            return f"{describe(conv)} leaves out pixels that the other branch keeps"
        ones = (1,) * len(large.kernel)
        return _misplaced(large, _Window(ones, (0,) * len(ones), (0,) * len(ones), ones))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        conv: ir.Node = parts["conv"]
        branch: ir.Node | None = parts["branch"]
        weight = required(conv, 1)
        tensor = const_tensor(weight)
        assert tensor is not None  # matched
        large = _window(conv, tensor)
        shape = tuple(int(d) for d in tensor.shape.numpy())
        bias = _bias(conv, shape[0])
        if branch is not None and branch.op_type == "Conv":
            small_tensor = const_tensor(branch.inputs[1])
            assert small_tensor is not None  # checked
            small = _window(branch, small_tensor)
            place = tuple(slice(p - q, p - q + m) for p, q, m in zip(large.begins, small.begins, small.kernel,
                                                                     strict=True))
            bias = bias + _bias(branch, shape[0])

            def change(w: Array) -> Array:
                total = w.astype(np.float64)
                total[(slice(None), slice(None), *place)] += np.asarray(small_tensor.numpy(), np.float64)
                return total.astype(w.dtype)
        else:
            affine = Affine(np.ones(shape[0]), np.zeros(shape[0])) if branch is None else affine_of(branch)
            assert isinstance(affine, Affine)  # checked
            bias = bias + affine.shift
            channel = np.arange(shape[0])

            def change(w: Array) -> Array:
                total = w.astype(np.float64)
                place: tuple[Any, ...] = (channel, channel % shape[1], *large.begins)
                total[place] += affine.scale
                return total.astype(w.dtype)

        name = weight.name or "weight"
        merged = op.tensor(lazy(tensor, change, shape, name), name)
        out = op.node("Conv", [conv.inputs[0], merged, op.const(bias, tensor.dtype, f"{name}.bias")],
                      {k: a.value for k, a in conv.attributes.items()})
        out.metadata_props.update(conv.metadata_props)
        return out.outputs[0]


def _misplaced(large: _Window, small: _Window) -> str | None:
    """None when the small window lies inside the large one at every position, both ends included."""
    for k, m, begin, other, end, other_end in zip(large.kernel, small.kernel, large.begins, small.begins, large.ends,
                                                  small.ends, strict=True):
        offset = begin - other
        if not 0 <= offset <= k - m or end - other_end != k - m - offset:
            return "the smaller kernel does not lie inside the larger one"
    return None


def _bias(conv: ir.Node, channels: int) -> Vector:
    bias = input_of(conv, 2)
    return np.zeros(channels) if bias is None else np.asarray(const_of(bias, _CHANNELS), np.float64)
