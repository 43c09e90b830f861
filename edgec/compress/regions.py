"""Which operators of a normalized graph compute on 8-bit integers, and what a rounded activation stands between.

A region is one operator with what is folded into it: a bias added behind a matrix, a Relu or Clip. Convolutions and
linears with constant weights are regions of their own accord; the others (sums, pools, moves) only where everything
they read comes from a region, so that rounding it costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from edgec.compress.policy import Kept, module_of
from edgec.errors import EdgecError, did_you_mean
from edgec.ir.model import (
    Array,
    const_of,
    const_tensor,
    dims_of,
    input_of,
    int_attr,
    ints_attr,
    ints_of,
    is_op,
    op_of,
    producer,
    rank_of,
    required,
    same_shape,
    scalar_of,
    single_use,
    str_attr,
)

STATIC, FLOAT, NONE = "static8", "f32", "none"
# What only carries values elsewhere or takes means of neighbours: the result has the scale of what is read.
_SAME = ("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
_OWN = ("AveragePool", "GlobalAveragePool", "ReduceMean", "Concat", "Add")
_CHANNELS = 1 << 20

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Region:
    """name: of the weight, or of the node. inputs: the activations. weight: initializer [N, ...] of a linear, bias:
    float64 [N]. chain: the node, and what is folded into it. raw: the result before the activation. out: after it.
    bounds: of the activation, None where there is none. same: the result has the scale of the first input."""

    name: str
    node: ir.Node
    inputs: tuple[ir.Value, ...]
    raw: ir.Value
    out: ir.Value
    chain: tuple[ir.Node, ...]
    weight: ir.Value | None = None
    bias: Array | None = None
    bounds: Bounds | None = None
    same: bool = False

    @property
    def activation(self) -> ir.Node | None:
        return self.chain[-1] if self.bounds is not None else None


@dataclass(frozen=True)
class Choice:
    """An override: regions whose name, module or node matches `pattern` become integers, or not."""

    pattern: str
    integers: bool

    @staticmethod
    def parse(text: str, option: str = "--quant-override") -> Choice:
        """`GLOB=f32`, `GLOB=none` or `GLOB=static8`. Raises EdgecError (E0002)."""
        pattern, _, format_ = text.rpartition("=")
        if not pattern or format_ not in (STATIC, FLOAT, NONE):
            raise EdgecError("E0002", stage="quantize", where=option, found=repr(text),
                             wanted=f"GLOB={FLOAT} or GLOB={STATIC} with --quant {STATIC}",
                             hint="as '*classifier*=f32'; weights of few bits are another --quant")
        return Choice(pattern, format_ == STATIC)

    def matches(self, name: str, node: ir.Node) -> bool:
        names = (name, module_of(name), node.name or name)
        return any(fnmatchcase(n, self.pattern) for n in names)


def find_regions(model: ir.Model, overrides: Sequence[Choice] = ()) -> tuple[list[Region], list[Kept]]:
    """The regions in the order of the sorted graph, and the linears that stay in float, with the reason.

    Raises EdgecError (E0002) for an override that matches nothing, and for a model without a region.
    """
    regions: list[Region] = []
    kept: list[Kept] = []
    integers: set[ir.Value] = set()
    matched: set[Choice] = set()
    names: list[str] = []
    for node in model.graph:
        found = _region(node, integers)
        if found is None:
            continue
        name = found.name if isinstance(found, Region) else _name(node)
        names.append(module_of(name))
        fitting = [choice for choice in overrides if choice.matches(name, node)]
        matched.update(fitting)
        if fitting and not fitting[-1].integers:
            found = "by override"
        if isinstance(found, Region):
            regions.append(found)
            integers.add(found.out)
        else:
            kept.append(Kept(name, found))
    for choice in overrides:
        if choice not in matched:
            raise EdgecError("E0002", stage="quantize", where=f"--quant-override {choice.pattern!r}",
                             found="no such layer", wanted="a pattern that matches a weight, module or node",
                             hint=did_you_mean(choice.pattern, names[:: max(1, len(names) // 12)]))
    if not any(region.weight for region in regions):
        raise EdgecError("E0002", stage="quantize", where="the model", wanted="at least one layer to quantize",
                         found="; ".join(f"{k.name}: {k.reason}" for k in kept[:6]) or "no linear or convolution")
    return regions, kept


def _region(node: ir.Node, integers: set[ir.Value]) -> Region | str | None:
    """The region that begins at `node`; why a linear is none; None for other operators."""
    if op_of(node)[0] != "":
        return None
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return _linear(node)
    if node.op_type not in (*_SAME, *_OWN, "Resize") or len(node.outputs) != 1:
        return None
    inputs = tuple(v for v in (node.inputs if node.op_type in ("Concat", "Add") else node.inputs[:1]) if v is not None)
    if not inputs or any(value not in integers for value in inputs) or not _takes(node, inputs):
        return None
    out, bounds, chain = _activated(node.outputs[0], (node,)) if node.op_type == "Add" else (
        node.outputs[0], None, (node,))
    same = node.op_type in _SAME or node.op_type == "Resize"
    return Region(_name(node), node, inputs, node.outputs[0], out, chain, bounds=bounds, same=same)


def _takes(node: ir.Node, inputs: tuple[ir.Value, ...]) -> bool:
    """Whether a region can be made of `node` as it is written."""
    if node.op_type == "Add":
        return same_shape(*inputs)
    if node.op_type == "ReduceMean":
        axes = ints_of(input_of(node, 1)) if input_of(node, 1) is not None else ints_attr(node, "axes")
        rank = rank_of(inputs[0])
        return axes is not None and rank is not None and rank >= 3 and all(a % rank >= 1 for a in axes) and bool(axes)
    if node.op_type == "Resize":
        # A cubic interpolation leaves the range of what it reads.
        plain = str_attr(node, "coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
        return str_attr(node, "mode", "nearest") in ("nearest", "linear") and plain
    return True


def _linear(node: ir.Node) -> Region | str | None:
    x, weight = required(node, 0), required(node, 1)
    turn = producer(weight, "Transpose") if node.op_type == "MatMul" else None
    if turn is not None and ints_attr(turn, "perm") in (None, (1, 0)):
        weight = required(turn, 0)
    elif node.op_type == "MatMul" and const_tensor(weight) is not None:
        return "a vector, or matrices one by one, times a constant"
    tensor = const_tensor(weight)
    if tensor is None or not weight.is_initializer():
        return None if node.op_type == "MatMul" else "its weight is not a constant"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {tensor.dtype.name}"
    if const_tensor(x) is not None or x.dtype not in (None, ir.DataType.FLOAT):
        return "its input is no float32 activation"
    if node.op_type == "Gemm" and (int_attr(node, "transA", 0) or not int_attr(node, "transB", 0)):
        return "it is not x Wᵀ + b"
    rows = int(tensor.shape.numpy()[0])
    raw, bias_value, chain = _biased(node, rows) if node.op_type == "MatMul" else (
        node.outputs[0], input_of(node, 2), (node,))
    bias: Array | None = None
    if bias_value is not None:
        found = const_of(bias_value, _CHANNELS)
        if found is None or found.size not in (1, rows):
            return "its bias is not a constant per channel"
        bias = np.broadcast_to(np.asarray(found, np.float64).reshape(-1), (rows,))
    out, bounds, chain = _activated(raw, chain)
    return Region(weight.name or "?", node, (x,), raw, out, chain, weight, bias, bounds)


def _reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`."""
    return next(iter(value.uses())).node if single_use(value) else None


def _biased(node: ir.Node, rows: int) -> tuple[ir.Value, ir.Value | None, tuple[ir.Node, ...]]:
    """The sum of a MatMul and its constant [rows], or the MatMul alone; a sum that has more dims is not its own."""
    value = node.outputs[0]
    add = _reader(value)
    if add is not None and is_op(add, "Add") and add.graph is node.graph:
        other = required(add, 0) if add.inputs[1] is value else required(add, 1)
        fits = rank_of(add.outputs[0]) == rank_of(value) and dims_of(other) in ((rows,), (1, rows), (1, 1, rows))
        if const_tensor(other) is not None and fits:
            return add.outputs[0], other, (node, add)
    return value, None, (node,)


def _activated(value: ir.Value, chain: tuple[ir.Node, ...]) -> tuple[ir.Value, Bounds | None, tuple[ir.Node, ...]]:
    """The value after a Relu or Clip that alone reads `value`, its bounds, and the chain with it."""
    node = _reader(value)
    bounds = None if node is None or node.graph is not chain[0].graph else bounds_of(node)
    if node is None or bounds is None or node.inputs[0] is not value:
        return value, None, chain
    return node.outputs[0], bounds, (*chain, node)


def bounds_of(node: ir.Node) -> Bounds | None:
    """The constant bounds of a Relu or Clip; None for anything else."""
    if is_op(node, "Relu"):
        return 0.0, None
    if not is_op(node, "Clip"):
        return None
    ends = [input_of(node, 1), input_of(node, 2)]
    found = [scalar_of(v) for v in ends]
    if any(v is not None and f is None for v, f in zip(ends, found, strict=True)):
        return None
    return found[0], found[1]


def _name(node: ir.Node) -> str:
    weight = node.inputs[1] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 1 else None
    named = weight if weight is not None and weight.is_initializer() else node.outputs[0]
    return named.name or node.name or node.op_type


def activations_of(regions: Sequence[Region]) -> Iterator[ir.Value]:
    """Every value that is rounded, once, in the order in which the regions meet it."""
    yield from dict.fromkeys(value for region in regions for value in (*region.inputs, region.out))
