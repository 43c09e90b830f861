"""Older ONNX operator sets lifted to opset 24, one version at a time.

From one version to the next an operator either stayed, was only extended (the same inputs and outputs first, every
old attribute with its old default), or changed; what changed has an entry in `STEPS`. An operator that changed and has
none is refused by name, never restamped. The rules follow the operators' changelog:
https://onnx.ai/onnx/operators/ ; tests/importers/test_onnx_opset.py walks all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import (
    Builder,
    const_of,
    describe,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_attr,
    op_of,
    rank_of,
    required,
    splice,
    str_attr,
    walk,
)
from edgec.ir.ops import OPSET
from edgec.ir.opset import extends, latest, schema
from edgec.ir.standard_body import standard_body
from edgec.passes.lower.decompose_index import cum_prod

STAGE = "import"
# onnxruntime, the reference of this door, promises nothing below.
OLDEST = 7

Step = Callable[[Builder, ir.Node], "Sequence[ir.Value] | ir.Value | None"]


class _CannotError(Exception):
    """This use of an operator has no equivalent in the next version; the text says why."""


def lift(model: ir.Model) -> None:
    """Rewrites the main and nested graphs of `model` in place to opset 24; functions must have been inlined.

    Raises EdgecError: E0101 for an operator set this door cannot read, E0102 with every operator whose meaning changed
    in a way that cannot be spelled in opset 24.
    """
    version = model.graph.opset_imports.get("") or model.graph.opset_imports.get("ai.onnx")
    if version is None:
        raise EdgecError("E0101", stage=STAGE, where="opset_import", found="no version of the standard operators",
                         wanted=f"an opset from {OLDEST} to {OPSET}")
    if version < 1 or (version < OLDEST and any(
        op_of(n)[0] == "" and schema(n.op_type, version) is not schema(n.op_type, OLDEST) for n in walk(model)
    )):
        raise EdgecError("E0101", stage=STAGE, where="opset_import", found=f"opset {version}",
                         wanted=f"an opset from {OLDEST} to {OPSET}", hint="export the model again with a newer opset")
    _check_nodes(model, version)
    problems: list[str] = []
    for node in walk(model) if version > OPSET else ():
        if op_of(node)[0] == "":
            problems += [f"{describe(node)}: {reason}" for reason in _restated(node, version)]
    for step in range(version + 1, OPSET + 1):
        for node in walk(model):
            if op_of(node)[0] == "":
                try:
                    _advance(node, step)
                except _CannotError as e:
                    problems.append(f"{describe(node)}: {e}")
    if problems:
        raise EdgecError("E0102", stage=STAGE, where=f"{len(problems)} operator(s) of opset {version}",
                         found="; ".join(problems[:20]), wanted=f"operators that opset {OPSET} can spell",
                         hint="export the model again with a newer opset")
    for node in walk(model):
        if op_of(node)[0] == "":
            node.version = OPSET
    model.graph.opset_imports.pop("ai.onnx", None)
    model.graph.opset_imports[""] = OPSET


def _check_nodes(model: ir.Model, version: int) -> None:
    """Standard operators have no more inputs and outputs than their operator set gives them, and attributes of its
    types: every later stage reads them as that. Raises EdgecError (E0101)."""
    for node in walk(model):
        known = schema(node.op_type, version) if op_of(node)[0] == "" else None
        if known is None:
            continue
        for what, count, most in (("inputs", len(node.inputs), known.max_input),
                                  ("outputs", len(node.outputs), known.max_output)):
            if count > most:
                raise EdgecError("E0101", stage=STAGE, where=describe(node), found=f"{count} {what}",
                                 wanted=f"at most {most}")
        for name, attr in node.attributes.items():
            if name not in known.attributes:
                continue
            wanted = known.attributes[name].type.name
            # onnx_ir leaves text that is not UTF-8 as bytes.
            texts = {"STRING": (attr.value,), "STRINGS": attr.value}.get(attr.type.name, ())
            if attr.type.name != wanted or not all(isinstance(t, str) for t in texts):
                found = f"the type {attr.type.name}" if attr.type.name != wanted else "text that is not UTF-8"
                raise EdgecError("E0101", stage=STAGE, where=f"{describe(node)}, attribute {name!r}", found=found,
                                 wanted=wanted)


def _restated(node: ir.Node, version: int) -> list[str]:
    """Spells a node of a newer opset in operators of OPSET, if need be by its body; the reasons why that fails."""
    reason = _newer(node, version)
    if not reason:
        return []
    op = Builder(node)
    rule = NEWER.get(node.op_type)
    spelled = standard_body(op, node, version) if rule is None else rule(op, node)
    if isinstance(spelled, str):
        return [f"{reason}; {spelled}"]
    splice(node, op, [spelled] if isinstance(spelled, ir.Value) else spelled)
    return [problem for inner in op.nodes if op_of(inner)[0] == "" for problem in _restated(inner, version)]


def _newer(node: ir.Node, version: int) -> str:
    """Takes from a node of a newer opset what only repeats the new defaults; why it is not one of OPSET, else "".

    After 24 operators were given more types and attributes, and none another meaning (up to opset 28).
    """
    new, old = schema(node.op_type, version), schema(node.op_type, OPSET)
    if new is None or new.since_version <= OPSET:
        return ""
    if old is None or not extends(old, new):
        return f"it is of opset {new.since_version}"
    for name in set(new.attributes) - set(old.attributes):
        attr = node.attributes.get(name)
        default = ir.serde.deserialize_attribute(new.attributes[name].default_value)
        if attr is not None and attr.value != default.value:
            return f"its attribute {name} is of opset {new.since_version}"
        node.attributes.pop(name, None)
    return ""


def _advance(node: ir.Node, version: int) -> None:
    new = schema(node.op_type, version)
    if new is None or new.since_version != version:
        return
    old = schema(node.op_type, version - 1)
    step = STEPS.get((node.op_type, version))
    if step is None:
        if old is not None and not extends(old, new):
            raise _CannotError(f"it changed its meaning in opset {version}")
        return
    op = Builder(node)
    result = step(op, node)
    if result is not None:
        splice(node, op, [result] if isinstance(result, ir.Value) else result)


def misused(node: ir.Node, version: int) -> str:
    """What in a node of the standard domain is not as its operator's signature says, "" for nothing.

    The types of values that nodes make are left to shape inference. Later versions, which the file may have been of,
    take more types and mean the same by them.
    """
    found = schema(node.op_type, version) if not node.domain else None
    if found is None:
        return ""
    newest = latest(node.op_type)
    given, made = len(node.inputs), len(node.outputs)
    while given and node.inputs[given - 1] is None:
        given -= 1
    if not found.min_input <= given <= found.max_input:
        return f"{given} inputs, not {found.min_input} to {found.max_input}"
    if not found.min_output <= made <= found.max_output:
        return f"{made} outputs, not {found.min_output} to {found.max_output}"
    missing = [name for name, a in found.attributes.items() if a.required and name not in node.attributes]
    if missing:
        return f"no attribute {missing[0]!r}"
    kinds: dict[str, ir.DataType] = {}
    for i, value in enumerate(node.inputs[:given]):
        formal = found.inputs[min(i, len(found.inputs) - 1)]
        if value is None:
            if formal.option != type(formal.option).Optional:
                return f"no input {formal.name!r}"
            continue
        if value.producer() is not None or not isinstance(value.type, ir.TensorType):
            continue
        kind = value.type.dtype
        name = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}.get(kind, kind.name.lower())
        later = newest.inputs[min(i, len(newest.inputs) - 1)].types if newest.inputs else ()
        if f"tensor({name})" not in formal.types | set(later):
            return f"input {formal.name!r} of {kind.name.lower()}"
        if formal.is_homogeneous and kinds.setdefault(formal.type_str, kind) != kind:
            return f"inputs of {kinds[formal.type_str].name.lower()} and {kind.name.lower()} that must be of one type"
    return ""


# -- the changes -----------------------------------------------------------------------------------------------------


def _axes_to_input(op: Builder, node: ir.Node) -> ir.Value | None:
    """Reductions, Squeeze and Unsqueeze: the attribute axes becomes the second input."""
    axes = ints_attr(node, "axes")
    if axes is None:
        return None
    rest = {k: a.as_int() for k, a in node.attributes.items() if k != "axes"}
    return op.node(node.op_type, [required(node, 0), op.ints(axes)], rest).outputs[0]


def _flat_axis(op: Builder, node: ir.Node) -> ir.Value | None:
    """Softmax and its kin worked on the input flattened to a matrix at `axis`, which was 1 by default."""
    x, axis = required(node, 0), int_attr(node, "axis", 1)
    rank = rank_of(x)
    if rank is not None and axis % rank == rank - 1:
        node.attributes.add(ir.AttrInt64("axis", -1))
        return None
    flat = op.node(node.op_type, [op.Flatten(x, axis=axis)], {"axis": -1}).outputs[0]
    return op.Reshape(flat, op.Shape(x))


def _batch_norm_9(op: Builder, node: ir.Node) -> None:
    if not int_attr(node, "spatial", 1):
        raise _CannotError("spatial = 0: one mean per position")
    node.attributes.pop("spatial", None)


def _batch_norm_14(op: Builder, node: ir.Node) -> ir.Value:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise _CannotError("its statistics are read: the model is in training mode")
    return op.BatchNormalization(*node.inputs, epsilon=float_attr(node, "epsilon", 1e-5),
                                 momentum=float_attr(node, "momentum", 0.9))


def _clip(op: Builder, node: ir.Node) -> ir.Value:
    x = required(node, 0)
    low, high = (None if name not in node.attributes else op.like(float_attr(node, name, 0.0), x)
                 for name in ("min", "max"))
    return op.Clip(x, low, high)


def _dft(op: Builder, node: ir.Node) -> ir.Value:
    axis = op.const(np.array(int_attr(node, "axis", 1), np.int64))
    return op.DFT(required(node, 0), input_of(node, 1), axis, inverse=int_attr(node, "inverse", 0),
                  onesided=int_attr(node, "onesided", 0))


def _dropout(op: Builder, node: ir.Node) -> Sequence[ir.Value]:
    ratio = op.const(np.array(float_attr(node, "ratio", 0.5), np.float32))
    return op.Dropout.many(len(node.outputs), required(node, 0), ratio)


def _grid_sample(op: Builder, node: ir.Node) -> None:
    mode = str_attr(node, "mode", "bilinear")
    node.attributes.add(ir.AttrString("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)))


def _group_norm(op: Builder, node: ir.Node) -> ir.Value:
    """scale and bias were one number per group and are one per channel."""
    x, groups = required(node, 0), int_attr(node, "num_groups", 1)
    dims = dims_of(x)
    if dims is None or len(dims) < 2 or not isinstance(dims[1], int):
        raise _CannotError("the number of channels is not known")
    per_group = dims[1] // groups
    scale, bias = (
        op.Reshape(op.Expand(op.Unsqueeze(required(node, i), op.ints([1])), op.ints([groups, per_group])),
                   op.ints([-1]))
        for i in (1, 2)
    )
    return op.GroupNormalization(x, scale, bias, num_groups=groups, epsilon=float_attr(node, "epsilon", 1e-5))


def _pad(op: Builder, node: ir.Node) -> ir.Value:
    x = required(node, 0)
    return op.Pad(x, op.ints(ints_attr(node, "pads") or ()), op.like(float_attr(node, "value", 0.0), x),
                  mode=str_attr(node, "mode", "constant"))


def _resize_11(op: Builder, node: ir.Node) -> ir.Value:
    """Coordinates were x / scale; the nearest one was below when enlarging and above when shrinking."""
    known = const_of(input_of(node, 1))
    scales = None if known is None else known.astype(np.float64)
    mode = str_attr(node, "mode", "nearest")
    nearest = "floor"
    if mode == "nearest":
        if scales is None or (np.any(scales < 1) and np.any(scales > 1)):
            raise _CannotError("its scales are not known, or enlarge one axis and shrink another")
        nearest = "ceil" if np.any(scales < 1) else "floor"
    return op.Resize(required(node, 0), None, required(node, 1), mode=mode, nearest_mode=nearest,
                     coordinate_transformation_mode="asymmetric")


def _roi_align(op: Builder, node: ir.Node) -> None:
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))


def _scatter(op: Builder, node: ir.Node) -> ir.Value:
    return op.ScatterElements(*node.inputs, axis=int_attr(node, "axis", 0))


def _slice(op: Builder, node: ir.Node) -> ir.Value:
    starts, ends, axes = (ints_attr(node, name) for name in ("starts", "ends", "axes"))
    if starts is None or ends is None:
        raise _CannotError("starts or ends is missing")
    return op.Slice(required(node, 0), op.ints(starts), op.ints(ends),
                    op.ints(range(len(starts)) if axes is None else axes))


def _split_13(op: Builder, node: ir.Node) -> Sequence[ir.Value] | None:
    sizes = ints_attr(node, "split")
    if sizes is None:
        return None
    return op.Split.many(len(node.outputs), required(node, 0), op.ints(sizes), axis=int_attr(node, "axis", 0))


def _split_18(op: Builder, node: ir.Node) -> None:
    """Equal parts used to be understood; now their number is said."""
    if input_of(node, 1) is None:
        node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _top_k(op: Builder, node: ir.Node) -> Sequence[ir.Value]:
    return op.TopK.many(2, required(node, 0), op.ints([int_attr(node, "k", 1)]), axis=int_attr(node, "axis", -1))


def _upsample_9(op: Builder, node: ir.Node) -> ir.Value:
    attr = node.attributes.get("scales")
    scales = np.array([] if attr is None else attr.as_floats(), np.float32)
    return op.Upsample(required(node, 0), op.const(scales), mode=str_attr(node, "mode", "nearest"))


def _upsample_10(op: Builder, node: ir.Node) -> ir.Value:
    return op.Resize(*node.inputs[:2], mode=str_attr(node, "mode", "nearest"))


# Operators of newer opsets that have no body there.
NEWER: Mapping[str, Callable[[Builder, ir.Node], Sequence[ir.Value] | ir.Value | str]] = MappingProxyType({
    "CumProd": cum_prod,
})
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSumSquare")
# (operator, version in which it changed) -> what to do. None: edited in place, or nothing to do at this node.
# Two changes are invisible in the signatures: Split's num_outputs and what GroupNormalization's scale belongs to.
STEPS: Mapping[tuple[str, int], Step] = MappingProxyType({
    **{(name, 18): _axes_to_input for name in _REDUCTIONS},
    **{(name, 13): _axes_to_input for name in ("ReduceSum", "Squeeze", "Unsqueeze")},
    **{(name, 13): _flat_axis for name in ("Softmax", "LogSoftmax", "Hardmax")},
    ("BatchNormalization", 9): _batch_norm_9,
    ("BatchNormalization", 14): _batch_norm_14,
    ("Clip", 11): _clip,
    ("DFT", 20): _dft,
    ("Dropout", 12): _dropout,
    ("GridSample", 20): _grid_sample,
    ("GroupNormalization", 21): _group_norm,
    ("Pad", 11): _pad,
    ("Resize", 11): _resize_11,
    ("RoiAlign", 16): _roi_align,
    ("Scatter", 11): _scatter,
    ("Slice", 10): _slice,
    ("Split", 13): _split_13,
    ("Split", 18): _split_18,
    ("TopK", 10): _top_k,
    ("Upsample", 9): _upsample_9,
    ("Upsample", 10): _upsample_10,
})
