"""What each stage promises the next (docs/ir.md), as code that finds every violation.

A specification is a function from a model to violations in words. `check` raises them all at once.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.info import info_of
from edgec.ir.model import (
    const_tensor,
    describe,
    dims_of,
    graphs,
    input_of,
    int_attr,
    is_op,
    op_of,
    producer,
    rank_of,
    single_use,
    subgraphs,
    walk,
)
from edgec.ir.ops import DOMAIN, OPSET, row_of

Spec = Callable[[ir.Model], list[str]]
_SHOWN = 20


def check(model: ir.Model, spec: Spec, stage: str, code: str = "E0201", hint: str = "") -> None:
    """Raises EdgecError (EDGEC-E0201 or `code`) with every violation of `spec`, the first 20 spelled out."""
    found = spec(model)
    if found:
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise EdgecError(code, stage=stage, where=f"{len(found)} place(s)", found="; ".join([*found[:_SHOWN], *more]),
                         wanted="what docs/ir.md says of this stage", hint=hint)


def well_formed(model: ir.Model) -> list[str]:
    """Holds at every stage: opset 24, every value is made before it is read, names are unique, edgec:: rows are met."""
    found = []
    version = model.graph.opset_imports.get("", 0)
    if version != OPSET:
        found.append(f"standard opset {version}, not {OPSET}")
    _scope(model.graph, set(), {}, found)
    for node in walk(model):
        row = row_of(node)
        if row is not None:
            found += [f"{describe(node)} {problem}" for problem in row.problems(node)]
    return found


def _scope(graph: ir.Graph, outer: set[ir.Value], names: dict[str, ir.Value], found: list[str]) -> None:
    known = outer | set(graph.inputs) | set(graph.initializers.values())
    names = dict(names)

    def name(value: ir.Value) -> None:
        if not value.name:
            if value.uses() or value.is_graph_output():
                found.append("a value that is used has no name")
        elif names.setdefault(value.name, value) is not value:
            found.append(f"two values are called {value.name!r}")

    for value in (*graph.inputs, *graph.initializers.values()):
        name(value)
    for node in graph:
        for inner in subgraphs(node):
            _scope(inner, known, names, found)
        for i, read in enumerate(node.inputs):
            if read is not None and read not in known:
                found.append(f"{describe(node)} reads input {i} ({read.name!r}) before it is made")
        for value in node.outputs:
            known.add(value)
            name(value)
    found += [f"graph output {value.name!r} is made by nothing" for value in graph.outputs if value not in known]


def imported(model: ir.Model) -> list[str]:
    """Any operators; those that nothing knows are listed at the end. Graph inputs have dtype and rank."""
    found = well_formed(model)
    for value in model.graph.inputs:
        if value.dtype is None or rank_of(value) is None:
            found.append(f"graph input {value.name!r} has no dtype or no rank")
    return found


def normalized(model: ir.Model) -> list[str]:
    """The canonical spellings: see docs/ir.md, stage "normalized"."""
    return canonical(model) + (_language_model(model) if info_of(model).task == "causal-lm" else [])


def canonical(model: ir.Model) -> list[str]:
    """The same for backends that keep the past of a language model as it was imported."""
    found = well_formed(model)
    found += [f"function {key[0]}::{key[1]} is left" for key in model.functions if key[0] != DOMAIN]
    for graph in graphs(model):
        for node in graph:
            domain, op_type = op_of(node)
            # What a graph gives must be made by a node of its own.
            if op_type == "Constant" and domain == "" and not node.outputs[0].is_graph_output():
                found.append(f"{describe(node)} is not an initializer")
            elif op_type == "Identity" and not any(v.is_graph_output() for v in node.outputs):
                found.append(f"{describe(node)} does nothing")
            elif op_type in ("Gemm", "MatMul") and domain == "":
                found += _linear(node)
    found += unfolded_batch_norms(model)
    return found


def _linear(node: ir.Node) -> list[str]:
    weight = input_of(node, 1)
    if const_tensor(weight) is None:
        return []
    if is_op(node, "MatMul"):
        turned = rank_of(weight) != 2 or rank_of(node.inputs[0]) == 1  # a vector times a matrix stays as it is
        return [] if turned else [f"{describe(node)} has its constant weight as [in, out]"]
    alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
    plain = (alpha is None or alpha.as_float() == 1.0) and (beta is None or beta.as_float() == 1.0)
    if int_attr(node, "transA", 0) or not int_attr(node, "transB", 0) or not plain:
        return [f"{describe(node)} is not x Wᵀ + b with W [out, in]"]
    return []


def _language_model(model: ir.Model) -> list[str]:
    """The interface after static_kv."""
    found = []
    layers = sum(1 for node in walk(model) if op_of(node) == (DOMAIN, "CachedAttention"))
    inputs, outputs = [v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs]
    caches = [(f"key_cache.{i}", f"value_cache.{i}") for i in range(layers)]
    want_in = ["input_ids", "past_len", *(name for pair in caches for name in pair)]
    want_out = ["logits", *(name.replace("_cache.", "_cache_out.") for pair in caches for name in pair)]
    if inputs != want_in:
        found.append(f"inputs are {inputs}, not {want_in}")
    if outputs != want_out:
        found.append(f"outputs are {outputs}, not {want_out}")
    for value in model.graph.inputs:
        dims = dims_of(value)
        if value.name == "past_len" and (value.dtype != ir.DataType.INT64 or dims != ()):
            found.append(f"past_len is {value.dtype} {dims}, not INT64 []")
        if value.name == "input_ids" and (value.dtype != ir.DataType.INT64 or dims is None or dims[:1] != (1,)):
            found.append(f"input_ids is {value.dtype} {dims}, not INT64 [1, seq]")
        if "_cache." in (value.name or "") and (value.dtype != ir.DataType.FLOAT or rank_of(value) != 4):
            found.append(f"{value.name} is {value.dtype} {dims}, not FLOAT [1, heads, context, dim]")
    for node in walk(model):
        past = input_of(node, 5) if op_of(node) == (DOMAIN, "CachedAttention") else None
        if past is not None and not past.is_graph_input():
            found.append(f"{describe(node)} reads its position from {past.name!r}, not from past_len")
    return found


def lowered(capabilities: frozenset[tuple[str, str]], nested: bool = False,
            refuses: Callable[[ir.Node], str | None] = lambda node: None) -> Spec:
    """Normalized, without nested graphs unless `nested`, and only operators of `capabilities` that are not refused."""
    def spec(model: ir.Model) -> list[str]:
        found = well_formed(model)
        for node in walk(model):
            if reason := refuses(node):
                found.append(f"{describe(node)}: {reason}")
            elif op_of(node) not in capabilities:
                found.append(f"{describe(node)} is not implemented by the target")
            if not nested and any(True for _ in subgraphs(node)):
                found.append(f"{describe(node)} has a nested graph")
        return found

    return spec


def unfolded_batch_norms(model: ir.Model) -> list[str]:
    """BatchNormalization after a Conv of its own, everything about both constant, must have been folded.

    All others may stay: without a neighbour, with shared weights, with parameters known only at run time.
    """
    found = []
    for node in walk(model):
        conv = producer(input_of(node, 0), "Conv") if is_op(node, "BatchNormalization") else None
        if conv is None or int_attr(node, "training_mode", 0) or not single_use(conv.outputs[0]):
            continue
        constants = [*node.inputs[1:], *conv.inputs[1:]]
        weight = input_of(conv, 1)
        own = weight is not None and single_use(weight) and all(
            v is None or const_tensor(v) is not None for v in constants
        )
        if own and not any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            found.append(f"{describe(node)} follows {describe(conv)} and was not folded")
    return found
