"""Equal branches of one input whose channels are joined in the end become one branch: horizontal fusion.

The convolutions that read the input become one that is wider, those behind them one with a group per branch; pools and
activations in between work on all channels at once, and the Concat is gone (DualCNN, arXiv:2501.15547; Inception's and
ResNeXt's branches). A Gemm of a flattened map is a convolution with a kernel as large as the map, and is taken as one
here. The sums are the same, so it is exact; the work is the same, too, in fewer calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    AttrValue,
    Builder,
    const_of,
    const_tensor,
    describe,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    is_op,
    producer,
    rank_of,
    required,
    single_use,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.weights import lazy
from edgec.passes.normalize.fold_bn import Vector

_CHANNELS = 1 << 20
# What does the same to every channel, whatever its neighbours are; limits of Clip are numbers.
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Softplus", "Gelu")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")
# Longer branches that are all alike are nobody's network.
_STEPS = 64


@dataclass(frozen=True)
class _Conv:
    """A convolution, or a Gemm [N, K] of a flattened map [N, C, *window] as one. value: what it reads as a map."""

    node: ir.Node
    value: ir.Value
    tensor: ir.TensorProtocol
    window: tuple[int, ...]
    dense: bool

    @property
    def outputs(self) -> int:
        return int(self.tensor.shape.numpy()[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """[outputs, inputs per group, *window]."""
        columns = int(self.tensor.shape.numpy()[1])
        return (self.outputs, columns // math.prod(self.window) if self.dense else columns, *self.window)

    def bias(self) -> Vector:
        bias = input_of(self.node, 2)
        return np.zeros(self.outputs) if bias is None else np.broadcast_to(
            np.asarray(const_of(bias, _CHANNELS), np.float64).reshape(-1), (self.outputs,))


def _conv(value: ir.Value) -> _Conv | str | None:
    """The convolution that makes `value`; why it cannot be joined; None for something else."""
    node = producer(value, "Conv", "Gemm")
    if node is None:
        return None
    tensor, bias = const_tensor(node.inputs[1]), input_of(node, 2)
    if tensor is None or not single_use(required(node, 1)):
        return f"the weight of {describe(node)} is not a constant of its own"
    if bias is not None and const_of(bias, _CHANNELS) is None:
        return f"the bias of {describe(node)} is not a constant"
    if is_op(node, "Conv"):
        return _Conv(node, required(node, 0), tensor, tuple(int(d) for d in tensor.shape.numpy()[2:]), False)
    flat = producer(node.inputs[0], "Flatten", "Reshape")
    source, result = None if flat is None else dims_of(flat.inputs[0]), dims_of(node.inputs[0])
    plain = int_attr(node, "transB", 0) == 1 and not int_attr(node, "transA", 0) and (
        float_attr(node, "alpha", 1.0), float_attr(node, "beta", 1.0)) == (1.0, 1.0)
    map_dims = [d for d in source or () if isinstance(d, int)]
    if flat is None or source is None or len(source) < 3 or not plain or result is None or (
            result[:1] != source[:1] or map_dims[-len(source) + 1 :] != list(source[1:]) or result[1] != math.prod(
                map_dims[-len(source) + 1 :]) or not single_use(required(node, 0))):
        return f"{describe(node)} is no linear of a flattened map"
    return _Conv(node, required(flat, 0), tensor, tuple(map_dims[-len(source) + 2 :]), True)


def _attributes(node: ir.Node) -> dict[str, AttrValue]:
    return {k: a.value for k, a in node.attributes.items()}


def _step(node: ir.Node) -> tuple[object, ...] | None:
    """What a node between two convolutions must have in common with its siblings; None when it may not be there."""
    known = tuple(sorted((k, repr(a.value)) for k, a in node.attributes.items()))
    if is_op(node, *_ACTIVATIONS):
        limits = tuple(None if v is None else const_of(v, 1) for v in node.inputs[1:])
        if any(v is not None and limit is None for v, limit in zip(node.inputs[1:], limits, strict=True)):
            return None
        return node.op_type, known, *(None if v is None else float(v.reshape(-1)[0]) for v in limits)
    if is_op(node, *_POOLS) and (len(node.outputs) == 1 or not node.outputs[1].uses()):
        return node.op_type, known
    return None


def _flattens(node: ir.Node) -> bool:
    """[N, C, 1, ...] -> [N, C]."""
    before, after = dims_of(required(node, 0)), dims_of(node.outputs[0])
    return is_op(node, "Flatten", "Reshape", "Squeeze") and before is not None and after == before[:2] and (
        set(before[2:]) <= {1})


@dataclass(frozen=True)
class _Branches:
    """x: what all read. steps: from the joined values back to x, the siblings of each step; a list of convolutions, or
    of nodes that stand between."""

    x: ir.Value
    steps: tuple[Sequence[_Conv] | Sequence[ir.Node], ...]


def _branches(join: ir.Node) -> _Branches | str | None:
    """The equal branches that `join` joins; why they are none; None where no two of them begin at one value."""
    values: list[ir.Value] = [v for v in join.inputs if v is not None]
    steps: list[Sequence[_Conv] | Sequence[ir.Node]] = []
    for _ in range(_STEPS):
        if len(set(values)) == 1 and steps:
            return _Branches(values[0], tuple(steps))
        if any(len(v.uses()) > 1 or v.is_graph_output() for v in values):
            return "a branch is read by others, too" if steps else None
        nodes = [v.producer() for v in values]
        found = [_conv(v) for v in values]
        if all(isinstance(c, _Conv) for c in found):
            convs = [c for c in found if isinstance(c, _Conv)]
            steps.append(convs)
            values = [c.value for c in convs]
            continue
        reason = next((c for c in found if isinstance(c, str)), None)
        kinds = {None if n is None else ("flat",) if _flattens(n) else _step(n) for n in nodes}
        if len(kinds) > 1 or None in kinds:
            return reason or ("the branches differ" if steps else None)
        steps.append([n for n in nodes if n is not None])
        values = [required(n, 0) for n in nodes if n is not None]
    return f"more than {_STEPS} operators stand between"


def _unequal(branches: _Branches) -> str | None:
    """Why convolutions of one step cannot become one."""
    convolutions = [step for step in branches.steps if isinstance(step[0], _Conv)]
    if not convolutions or convolutions[-1] is not branches.steps[-1]:
        return "what reads the common input is no convolution"
    for step in convolutions:
        first, *others = (c for c in step if isinstance(c, _Conv))
        for other in others:
            if other.tensor.dtype != first.tensor.dtype or other.dense != first.dense:
                return f"{describe(first.node)} and {describe(other.node)} are of different operators or types"
            if other.window != first.window or (not first.dense and _looks(other) != _looks(first)):
                return f"{describe(first.node)} and {describe(other.node)} see different pixels"
            if step is not convolutions[-1] and (other.shape != first.shape or _groups(other) != _groups(first)):
                return f"{describe(first.node)} and {describe(other.node)} have different channels"
        if step is convolutions[-1] and any(_groups(c) > 1 for c in step if isinstance(c, _Conv)):
            return f"{describe(first.node)} reads its input in groups"
    return None


def _looks(conv: _Conv) -> list[str]:
    """How it reads its input, besides its window and groups."""
    return sorted(f"{k}={a.value!r}" for k, a in conv.node.attributes.items() if k not in ("group", "kernel_shape"))


def _groups(conv: _Conv) -> int:
    return 1 if conv.dense else int_attr(conv.node, "group", 1)


class MergeBranchesOfOneInput(Rule):
    """A Concat of channels whose parts come from one value in the same steps."""

    roots = ("Concat",)

    def match(self, node: ir.Node) -> Bindings | None:
        rank = rank_of(node.outputs[0])
        if len(node.inputs) < 2 or None in node.inputs or not rank or int_attr(node, "axis", 0) % rank != 1:
            return None
        found = _branches(node)
        return None if found is None else {"branches": found}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        found: _Branches | str = parts["branches"]
        if any(is_op(use.node, "BatchNormalization") for use in node.outputs[0].uses()):
            # It was not folded through the Concat; behind one convolution the stage would not have it.
            return "a BatchNormalization reads it"
        return found if isinstance(found, str) else _unequal(found)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        branches: _Branches = parts["branches"]
        value = branches.x
        for i, step in enumerate(reversed(branches.steps)):
            convs = [c for c in step if isinstance(c, _Conv)]
            if convs:
                value = _joined(op, value, convs, shared=i == 0)
                continue
            (first, *_) = (n for n in step if isinstance(n, ir.Node))
            if _flattens(first):
                value = op.Reshape(value, op.ints((0, -1)))
                continue
            made = op.node(first.op_type, [value, *first.inputs[1:]], _attributes(first))
            made.metadata_props.update(first.metadata_props)
            value = made.outputs[0]
        return value


def _joined(op: Builder, value: ir.Value, convs: list[_Conv], shared: bool) -> ir.Value:
    """All convolutions in one. shared: they read the same channels, otherwise each its own."""
    first, outputs = convs[0], sum(c.outputs for c in convs)

    def stacked(_: object) -> np.ndarray[Any, np.dtype[Any]]:
        return np.concatenate([np.asarray(c.tensor.numpy()).reshape(c.shape) for c in convs])

    name = "+".join(required(c.node, 1).name or "weight" for c in convs)
    weight = op.tensor(lazy(first.tensor, stacked, (outputs, *first.shape[1:]), name), name)
    bias = None
    if any(input_of(c.node, 2) is not None for c in convs):
        bias = op.const(np.concatenate([c.bias() for c in convs]), first.tensor.dtype, f"{name}.bias")
    attributes = {} if first.dense else _attributes(first.node)
    groups = 1 if shared else len(convs) * _groups(first)
    made = op.node("Conv", [value, weight, bias], {**attributes, "group": groups, "kernel_shape": first.window})
    made.metadata_props.update(first.node.metadata_props)
    if not first.dense:
        return made.outputs[0]
    return op.Reshape(made.outputs[0], op.ints((0, -1)))


class MergeTrunks(Pass):
    """Runs before weights are compressed, so that the joined ones are."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (MergeBranchesOfOneInput(),)))
        return model, ctx.rules.modified
