"""Versions of the standard operators: their schemas, and the graph of opset 24 spelled in an older opset.

From one version to the next an operator either stayed, was only extended (more types, new attributes with the old
meaning as default), or changed its meaning. The steps up are in importers/onnx_opset.py; `_STEPS` here has the steps
down, from 24 to `OLDEST`. What has no spelling is named by `misfit`, and a backend then writes it in other operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import describe, input_of, int_attr, ints_of, op_of, scalar_of, str_attr, walk
from edgec.ir.ops import OPSET

OLDEST = 17  # the first that has LayerNormalization

Step = Callable[[ir.Node], str]
_TYPE_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}


@cache
def _history() -> dict[str, dict[int, Any]]:
    import onnx.defs

    found: dict[str, dict[int, Any]] = {}
    for row in onnx.defs.get_all_schemas_with_history():
        if row.domain == "":
            found.setdefault(row.name, {})[row.since_version] = row
    return found


@cache
def schema(op_type: str, version: int) -> Any:
    """The standard operator's schema in force at `version`, None when there was none yet (or never is)."""
    rows = _history().get(op_type, {})
    since = max((v for v in rows if v <= version), default=None)
    return None if since is None else rows[since]


def latest(op_type: str) -> Any:
    """The newest schema of a standard operator that has one."""
    return max(_history()[op_type].items())[1]


def extends(old: Any, new: Any) -> bool:
    """Whether every node that is valid under `old` means the same under `new`, as far as signatures tell."""
    inputs, outputs = [i.name for i in old.inputs], [o.name for o in old.outputs]
    return (
        not new.deprecated
        and [i.name for i in new.inputs][: len(inputs)] == inputs
        and [o.name for o in new.outputs][: len(outputs)] == outputs
        and all(
            key in new.attributes
            and new.attributes[key].default_value.SerializeToString() == a.default_value.SerializeToString()
            for key, a in old.attributes.items()
        )
    )


def type_name(value: ir.Value) -> str:
    """`tensor(float)`, as schemas and onnxruntime write it; "" for an unknown type."""
    kind = value.dtype
    return "" if kind is None else f"tensor({_TYPE_NAMES.get(kind, kind.name.lower())})"


def misfit(node: ir.Node, version: int) -> str | None:
    """Why a node of opset 24 has no spelling at opset `version`, None when it has one.

    Nodes of other domains always fit: they have versions of their own.
    """
    domain, op_type = op_of(node)
    if domain:
        return None
    old = schema(op_type, version)
    if old is None:
        first = min(_history().get(op_type, {OPSET: None}))
        return f"{op_type} came with opset {first}"
    for name, since in _STEPS:
        reason = _STEPS[name, since][0](node) if name == op_type and version < since else ""
        if reason:
            return f"{reason} before opset {since}"
    return _signature(node, old, version)


def _signature(node: ir.Node, old: Any, version: int) -> str | None:
    """What in `node` the schema `old` does not know; attributes that a step down removes are not looked at."""
    new = schema(node.op_type, OPSET)
    moved = any(name == node.op_type and version < since for name, since in _STEPS)
    if not moved and (len(node.inputs) > old.max_input or len(node.outputs) > old.max_output):
        return f"opset {version} has {old.max_input} inputs and {old.max_output} outputs of it"
    for name, attr in node.attributes.items():
        if name not in old.attributes and not moved and not _is_default(attr, new, name):
            return f"opset {version} does not have its attribute {name}"
    for values, formals in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        for i, value in enumerate(values):
            formal = formals[min(i, len(formals) - 1)] if formals else None
            if value is not None and formal is not None and i < len(formals) and value.dtype is not None and (
                    type_name(value) not in formal.types):
                return f"opset {version} does not take {type_name(value)} as its {formal.name}"
    return None


def _is_default(attr: ir.Attr, new: Any, name: str) -> bool:
    known = new.attributes.get(name)
    if known is None or not known.default_value.name:
        return False
    return bool(ir.serde.deserialize_attribute(known.default_value).value == attr.value)


def restate(model: ir.Model, version: int) -> None:
    """Spells a graph of opset 24 in opset `version`, in place; nested graphs too.

    Raises EdgecError (E0301) with every node that has no spelling there; the graph is then not changed.
    """
    problems = [f"{describe(node)}: {reason}" for node in walk(model) if (reason := misfit(node, version)) is not None]
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise EdgecError("E0301", stage="opset", where=f"{len(problems)} node(s)", found="; ".join(shown),
                         wanted=f"operators that opset {version} can spell", hint="a newer --opset")
    for node in walk(model):
        if op_of(node)[0]:
            continue
        for name, since in _STEPS:
            if name == node.op_type and version < since:
                _STEPS[name, since][1](node)
        old = schema(node.op_type, version)
        for name in [n for n in node.attributes if n not in old.attributes]:
            del node.attributes[name]
        node.version = None
    model.graph.opset_imports[""] = version


# -- steps down: (why not, "" when it can; how) ----------------------------------------------------------------------


def _axes_known(node: ir.Node) -> str:
    axes = input_of(node, 1)
    known = () if axes is None else ints_of(axes)
    if known is None:
        return "its axes were constant"
    return "it reduced over all axes where none were given" if not known and int_attr(
        node, "noop_with_empty_axes", 0) else ""


def _axes_as_attribute(node: ir.Node) -> None:
    axes = ints_of(value) if (value := input_of(node, 1)) is not None else None
    if axes:
        node.attributes.add(ir.AttrInt64s("axes", axes))
    node.resize_inputs(1)


def _equal_parts(node: ir.Node) -> str:
    if input_of(node, 1) is not None:
        return ""
    dims = node.inputs[0].shape if node.inputs[0] is not None else None
    size = None if dims is None else dims[int_attr(node, "axis", 0)]
    return "" if isinstance(size, int) and size % len(node.outputs) == 0 else "all its parts were of one size"


def _without_count(node: ir.Node) -> None:
    node.attributes.pop("num_outputs", None)


def _flat_grid(node: ir.Node) -> str:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return "" if shape is not None and len(shape) == 4 else "it sampled images only"


def _grid_modes(node: ir.Node) -> None:
    mode = str_attr(node, "mode", "linear")
    node.attributes.add(ir.AttrString("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)))


def _axis_known(node: ir.Node) -> str:
    axis = input_of(node, 2)
    return "its axis was constant" if axis is not None and scalar_of(axis) is None else ""


def _axis_as_attribute(node: ir.Node) -> None:
    axis = input_of(node, 2)
    number = -2.0 if axis is None else scalar_of(axis)
    node.attributes.add(ir.AttrInt64("axis", int(number or 0)))
    node.resize_inputs(2)


def _never(reason: str) -> tuple[Step, Callable[[ir.Node], None]]:
    return lambda node: reason, lambda node: None


_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSumSquare")
# (operator, version that changed it) -> (why a node has no older spelling, what makes one of it).
_STEPS: Mapping[tuple[str, int], tuple[Step, Callable[[ir.Node], None]]] = MappingProxyType({
    **{(name, 18): (_axes_known, _axes_as_attribute) for name in _REDUCTIONS},
    ("Split", 18): (_equal_parts, _without_count),
    ("GridSample", 20): (_flat_grid, _grid_modes),
    ("DFT", 20): (_axis_known, _axis_as_attribute),
    ("GroupNormalization", 21): _never("its scale and bias were one number per group"),
})
