"""Recognizes GroupNormalization where an exporter spelled it over a reshaped value.

x [N, C, ...] as [N, G, ...] is brought to mean 0 and deviation 1 per group, by InstanceNormalization or by means, and
reshaped back; that is GroupNormalization with one scale and bias per channel. A following Mul by one number per channel
is its scale, a following Add its bias. Each step is exact. Where groups are single channels of [N, C, T], the reshapes
do nothing; what is left of the spelling is InstanceNormalization, and takes scale and bias in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Array,
    Builder,
    const_of,
    const_tensor,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_of,
    producer,
    rank_of,
    required,
    same_shape,
    single_use,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.passes.normalize.norm_parts import deviation, mean_of

# More channels than any network has; what is larger is not a scale.
_CHANNELS = 1 << 20


class FuseGroups(Rule):
    """Reshape -> a normalization over the dims from 2 on -> Reshape to the first shape."""

    roots = ("Reshape",)

    def match(self, node: ir.Node) -> Bindings | None:
        found = _instance(node.inputs[0]) or _centered(node.inputs[0])
        split = None if found is None else producer(found["grouped"], "Reshape")
        return None if found is None or split is None else {**found, "split": split, "x": required(split, 0)}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        x: ir.Value = parts["x"]
        dims = dims_of(x)
        if dims is None or len(dims) < 2 or not isinstance(dims[1], int):
            return "the number of channels is not known"
        groups = _groups(parts["split"])
        if groups is None:
            return "the value is not regrouped as [batch, groups, ...]"
        if dims[1] % groups:
            return f"{dims[1]} channels are not {groups} groups of one size"
        if not _restored(node, x):
            return "the shape is not brought back"
        for name in ("scale", "bias"):
            value: ir.Value | None = parts[name]
            if value is not None and (array := const_of(value, _CHANNELS)) is None:
                return f"the {name} of the groups is not constant"
            if value is not None and array is not None and array.size != groups:
                return f"the {name} is not one number per group"
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x: ir.Value = parts["x"]
        dims, groups = dims_of(x), _groups(parts["split"])
        assert dims is not None  # checked, as are the next two
        assert isinstance(dims[1], int)
        assert groups is not None
        vectors = [op.const(_per_channel(parts[name], plain, groups, dims[1]), x.dtype or ir.DataType.FLOAT)
                   for name, plain in (("scale", 1.0), ("bias", 0.0))]
        return op.GroupNormalization(x, *vectors, num_groups=groups, epsilon=parts["epsilon"])


class DropRestore(Rule):
    """A Reshape that gives an InstanceNormalization the shape it has already."""

    roots = ("Reshape",)

    def match(self, node: ir.Node) -> Bindings | None:
        norm = producer(node.inputs[0], "InstanceNormalization")
        return {} if norm is not None and _restored(node, required(norm, 0)) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return required(node, 0)


def _instance(value: ir.Value | None) -> Bindings | None:
    node = producer(value, "InstanceNormalization")
    if node is None:
        return None
    return {"grouped": required(node, 0), "scale": required(node, 1), "bias": required(node, 2),
            "epsilon": float_attr(node, "epsilon", 1e-5)}


def _centered(value: ir.Value | None) -> Bindings | None:
    """(x - mean) / sqrt(mean((x - mean)²) + eps), also as a product with the inverse."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return None
    a, b = required(node, 0), required(node, 1)
    for center, factor in ((a, b),) if node.op_type == "Div" else ((a, b), (b, a)):
        sub = producer(center, "Sub")
        found = None if sub is None else deviation(factor, inverse=node.op_type == "Mul", start=2)
        if sub is not None and found is not None and found[0] is center \
                and mean_of(sub.inputs[1], start=2) is sub.inputs[0]:
            return {"grouped": required(sub, 0), "scale": None, "bias": None, "epsilon": found[1]}
    return None


def _groups(split: ir.Node) -> int | None:
    """G when the Reshape makes [N, G, ...] of [N, C, ...]."""
    before, after = dims_of(split.inputs[0]), dims_of(split.outputs[0])
    wanted = ints_of(split.inputs[1])
    rank = rank_of(split.outputs[0]) if wanted is None else len(wanted)
    if rank is None or rank < 3:
        return None
    copied = wanted is not None and wanted[0] == 0 and not int_attr(split, "allowzero", 0)
    same = before is not None and after is not None and before[0] is not None and before[0] == after[0]
    if not copied and not same:
        return None
    groups = wanted[1] if wanted is not None else None if after is None else after[1]
    return groups if isinstance(groups, int) and groups > 0 else None


def _restored(node: ir.Node, x: ir.Value) -> bool:
    shape = producer(node.inputs[1], "Shape")
    whole = shape is not None and shape.inputs[0] is x and not {"start", "end"} & {
        name for name, attr in shape.attributes.items() if name == "end" or attr.as_int() != 0}
    return whole or same_shape(node.outputs[0], x)


def _per_channel(value: ir.Value | None, plain: float, groups: int, channels: int) -> Array:
    array = np.full(groups, plain, np.float32) if value is None else const_of(value, _CHANNELS)
    return np.repeat(np.asarray(array).reshape(-1), channels // groups)


class _AfterGroups(Rule):
    """A Mul or Add of a constant right after a normalization of groups or channels that only it reads."""

    def match(self, node: ir.Node) -> Bindings | None:
        for i in (0, 1):
            norm = producer(node.inputs[i], "GroupNormalization", "InstanceNormalization")
            if norm is None or const_tensor(node.inputs[1 - i]) is None:
                continue
            scale, bias = const_of(norm.inputs[1], _CHANNELS), const_of(input_of(norm, 2), _CHANNELS)
            if scale is not None and bias is not None:
                return {"norm": norm, "scale": scale, "bias": bias, "vector": required(node, 1 - i)}
        return None

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        norm: ir.Node = parts["norm"]
        if not single_use(norm.outputs[0]):
            return "the normalized value is read by others, too"
        vector, rank = const_tensor(parts["vector"]), rank_of(norm.inputs[0])
        shape = () if vector is None else tuple(vector.shape.numpy())
        if rank is None or len(shape) > rank:
            return "the constant has more dims than the value"
        lined_up = (1,) * (rank - len(shape)) + shape
        if lined_up[1] not in (1, parts["scale"].size) or any(d != 1 for i, d in enumerate(lined_up) if i != 1):
            return "the constant is not one number per channel"
        return None

    def renormed(self, op: Builder, norm: ir.Node, scale: Array, bias: Array) -> ir.Value:
        vectors = [op.const(array) for array in (scale, bias)]
        new = op.node(norm.op_type, [norm.inputs[0], *vectors], {k: a.value for k, a in norm.attributes.items()})
        new.metadata_props.update(norm.metadata_props)
        return new.outputs[0]


class ScaleAfterGroups(_AfterGroups):
    """Becomes the scale where that was all ones and the bias all zeros."""

    roots = ("Mul",)

    def match(self, node: ir.Node) -> Bindings | None:
        parts = super().match(node)
        plain = parts is not None and bool((parts["scale"] == 1).all()) and not parts["bias"].any()
        return parts if plain else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        vector = np.asarray(const_of(parts["vector"], _CHANNELS)).reshape(-1)
        return self.renormed(op, parts["norm"], np.ascontiguousarray(np.broadcast_to(vector, parts["scale"].shape)),
                             parts["bias"])


class BiasAfterGroups(_AfterGroups):
    """Becomes the bias where that was all zeros."""

    roots = ("Add",)

    def match(self, node: ir.Node) -> Bindings | None:
        parts = super().match(node)
        return parts if parts is not None and not parts["bias"].any() else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        vector = np.asarray(const_of(parts["vector"], _CHANNELS)).reshape(-1)
        return self.renormed(op, parts["norm"], parts["scale"],
                             np.ascontiguousarray(np.broadcast_to(vector, parts["bias"].shape)))


class FuseGroupNorm(Pass):
    """Runs before the last dim alone is looked at: with three dims both spellings look alike."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (FuseGroups(), DropRestore(), ScaleAfterGroups(), BiasAfterGroups())))
        return model, ctx.rules.modified
