"""Cuts a case that fails down: one set of inputs, one output, and inputs in place of whatever computes them.

Hypothesis shrinks what was drawn; this looks at the graph, which usually leaves the one node that answers wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import helper

from tests.differential.case import Case
from tests.differential.reference import Array, Reference


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case found for which `fails` still holds."""
    while True:
        smaller = next((c for c in _smaller(case) if fails(c)), None)
        if smaller is None:
            return case
        case = smaller


def _smaller(case: Case) -> Iterator[Case]:
    if len(case.feeds) > 1 or case.dynamic:
        for feeds in case.feeds:
            yield _fixed(case, feeds)
            yield Case(case.model, (feeds,), case.dynamic) if len(case.feeds) > 1 else _fixed(case, feeds)
    outputs = [v.name for v in case.model.graph.output]
    if len(outputs) > 1:
        yield from (_rebuilt(case, [name], {}) for name in outputs)
    reference = Reference(case.model)
    made = [name for step in reference.steps for name in step.node.output if name]
    reference.outputs = made
    values = [reference.run(feeds) for feeds in case.feeds]
    for name in made:
        alternatives = tuple(v[name] for v in values)
        if len({a.shape for a in alternatives}) == 1 and (name not in outputs or len(outputs) > 1):
            yield _rebuilt(case, outputs, {name: alternatives})
    if len(outputs) == 1:
        # An output further up may show it already.
        yield from (_rebuilt(case, [name], {}) for name in made if name != outputs[0])


def _fixed(case: Case, feeds: dict[str, Array]) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for value in model.graph.input:
        value.CopyFrom(_info(value.name, feeds[value.name]))
    return Case(_loose(model), (feeds,), {})


def _rebuilt(case: Case, outputs: list[str], given: dict[str, tuple[Array, ...]]) -> Case:
    """The part that computes `outputs`, with `given` as inputs."""
    wanted, nodes = set(outputs), []
    for node in reversed(case.model.graph.node):
        if any(n in wanted and n not in given for n in node.output):
            nodes.insert(0, node)
            wanted.update(n for n in node.input if n)
    made = {n for node in nodes for n in node.output if n}
    infos = [v for v in case.model.graph.input if v.name in wanted]
    infos += [_info(n, a[0]) for n, a in given.items() if n in wanted and n not in made]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    kinds = {v.name: v for v in case.model.graph.output}
    for part, items in ((graph.node, nodes), (graph.input, infos),
                        (graph.initializer, [t for t in case.model.graph.initializer if t.name in wanted]),
                        (graph.output, [kinds.get(n, onnx.ValueInfoProto(name=n)) for n in outputs])):
        del part[:]
        part.extend(items)  # type: ignore[attr-defined]
    names = {v.name for v in infos}
    feeds = tuple({**{k: a for k, a in feed.items() if k in names},
                   **{n: a[i] for n, a in given.items() if n in names}} for i, feed in enumerate(case.feeds))
    return Case(_loose(model), feeds, {k: v for k, v in case.dynamic.items() if k in names})


def _loose(model: onnx.ModelProto) -> onnx.ModelProto:
    """Outputs with their types as inferred, so that no declaration is left that does not hold."""
    names = [v.name for v in model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {v.name: v for v in (*inferred.graph.output, *inferred.graph.value_info)}
    del model.graph.output[:]
    model.graph.output.extend(known.get(n, onnx.ValueInfoProto(name=n)) for n in names)
    return model


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
