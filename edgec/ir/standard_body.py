"""What the ONNX standard says an operator means, where it says so in simpler operators: its function body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from edgec.ir.model import Builder, op_of, subgraphs

# Bodies that only end in what is no better: random numbers, operators over lists of tensors. Those of reductions say
# something else than the text where no axis is reduced.
_USELESS = ("Bernoulli", "SequenceMap")


def standard_body(op: Builder, node: ir.Node, version: int) -> Sequence[ir.Value] | str:
    """Values for the outputs of a standard `node`, built in `op` from the body that opset `version` gives.

    A string says why there is none. The new nodes are of opset `version`, as the body is.
    """
    import onnx.defs

    name = op_of(node)[1]
    try:
        schema = onnx.defs.get_schema(name, version, "")
    except onnx.defs.SchemaError:
        return f"opset {version} has no {name}"
    if name in _USELESS or name.startswith("Reduce") or any(True for _ in subgraphs(node)):
        return "its body cannot be used here"
    if any(v is not None and v.dtype is None for v in node.inputs):
        return "the type of an input is not known"
    body = _function(schema, node)
    if body is None:
        return "the standard has no body for it"
    # Bodies make only what is asked for; anything may stand for an output that nobody reads.
    names = list(body.output)[: len(node.outputs)]
    kept = [name for name in names if name in {*body.input, *(o for n in body.node for o in n.output)}]
    del body.output[:]
    body.output.extend(kept)
    function = ir.from_proto(body)
    defaults = {key: a.default_value for key, a in schema.attributes.items() if a.default_value.name}
    defaults |= {a.name: a for a in body.attribute_proto}
    known: dict[ir.Value, ir.Value | None] = dict.fromkeys(function.inputs)
    known.update(zip(function.inputs, node.inputs, strict=False))
    for inner in function:
        attributes: dict[str, Any] = {}
        for key, attr in inner.attributes.items():
            if attr.is_ref():
                given = node.attributes.get(attr.ref_attr_name or "")
                if given is not None:
                    attributes[key] = given.value
                elif attr.ref_attr_name in defaults:
                    attributes[key] = ir.serde.deserialize_attribute(defaults[attr.ref_attr_name]).value
            else:
                nested = attr.type == ir.AttributeType.GRAPH
                attributes[key] = _grafted(attr.as_graph(), known) if nested else attr.value
        made = op.node(inner.op_type, [None if v is None else known[v] for v in inner.inputs], attributes,
                       outputs=len(inner.outputs))
        constant = ir.convenience.get_const_tensor(made.outputs[0]) if inner.op_type == "Constant" else None
        if constant is not None:
            op.nodes.remove(made)
            known[inner.outputs[0]] = op.tensor(constant)
        else:
            known.update(zip(inner.outputs, made.outputs, strict=True))
    made_by = {name: known[v] for name, v in zip(kept, function.outputs, strict=True)}
    some = next(v for v in made_by.values() if v is not None)
    return [made_by.get(name) or some for name in names]


def _grafted(graph: ir.Graph, known: Mapping[ir.Value, ir.Value | None]) -> ir.Graph:
    """A copy of a nested graph that reads `known` instead of the values around the original."""
    copy = graph.clone(allow_outer_scope_values=True)
    _reread(copy, known)
    return copy


def _reread(graph: ir.Graph, known: Mapping[ir.Value, ir.Value | None]) -> None:
    for inner in graph:
        for i, value in enumerate(inner.inputs):
            if value is not None and value in known:
                inner.replace_input_with(i, known[value])
        for nested in subgraphs(inner):
            _reread(nested, known)


def _function(schema: Any, node: ir.Node) -> Any:
    """The body as a FunctionProto, None when there is none."""
    import onnx

    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    types = []
    for value in node.inputs:
        kind = onnx.TypeProto()
        if value is not None:
            kind.tensor_type.elem_type = int(value.dtype or 0)
            for d in value.shape if value.shape is not None else ():
                size = kind.tensor_type.shape.dim.add()
                if isinstance(d, int):
                    size.dim_value = d
                elif d.value:
                    size.dim_param = d.value
        types.append(kind.SerializeToString())
    made = schema.get_context_dependent_function(ir.to_proto(node).SerializeToString(), types)
    return onnx.FunctionProto.FromString(made) if made else None
