"""Control flow that is decided when the model is compiled: loops of a known number of turns are written out, and of a
branch whose condition is known one side is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Builder, const_tensor, dims_of, input_of, int_attr, ints_attr, op_of, scalar_of, subgraphs
from edgec.passes.lower.decompose_math import Decomposed, Entry

_NODES = 8192  # of all turns together


class _Body:
    """A nested graph whose nodes are copied into the graph around it, once for each turn."""

    def __init__(self, op: Builder, graph: ir.Graph) -> None:
        self.op, self.graph = op, graph
        self.size = sum(1 for _ in graph)
        self._constants: dict[ir.Value, ir.Value] = {}
        for value in graph.initializers.values():
            if value.const_value is not None:
                self._constants[value] = op.tensor(value.const_value)
        for node in graph:
            tensor = const_tensor(node.outputs[0]) if op_of(node) == ("", "Constant") else None
            if tensor is not None:
                self._constants[node.outputs[0]] = op.tensor(tensor)

    def turn(self, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """The outputs for these inputs."""
        known: dict[ir.Value, ir.Value] = {**self._constants, **dict(zip(self.graph.inputs, inputs, strict=True))}
        for node in self.graph:
            if node.outputs[0] in self._constants:
                continue
            made = self.op.node(node.op_type, [None if v is None else known.get(v, v) for v in node.inputs],
                                {k: a.value for k, a in node.attributes.items()}, domain=op_of(node)[0],
                                outputs=len(node.outputs))
            for old, new in zip(node.outputs, made.outputs, strict=True):
                new.type, new.shape = old.type, old.shape
                known[old] = new
        return [known.get(v, v) for v in self.graph.outputs]


def _body(op: Builder, node: ir.Node, name: str, turns: int) -> _Body | str:
    graph = node.attributes[name].as_graph()
    if any(True for inner in graph for _ in subgraphs(inner)):
        return "there is another graph inside"
    size = sum(1 for _ in graph)
    return _Body(op, graph) if size * turns <= _NODES else f"{turns} turns of {size} operators are too many"


def _stacked(op: Builder, parts: Sequence[ir.Value], axis: int, backwards: bool) -> ir.Value:
    along = op.ints([axis])
    rows = [op.Unsqueeze(p, along) for p in (reversed(parts) if backwards else parts)]
    return op.Concat(*rows, axis=axis) if len(rows) > 1 else rows[0]


def scan(op: Builder, node: ir.Node) -> Decomposed:
    count = int_attr(node, "num_scan_inputs", 0)
    given = [v for v in node.inputs if v is not None]
    states, sequences = list(given[: len(given) - count]), given[len(given) - count :]
    axes = ints_attr(node, "scan_input_axes") or (0,) * count
    turned = ints_attr(node, "scan_input_directions") or (0,) * count
    dims = dims_of(sequences[0])
    steps = None if dims is None else dims[axes[0]]
    if not isinstance(steps, int) or steps < 1:
        return "the length of its sequence is not known"
    body = _body(op, node, "body", steps)
    if isinstance(body, str):
        return body
    made: list[list[ir.Value]] = [[] for _ in range(len(node.outputs) - len(states))]
    for t in range(steps):
        parts = [op.Gather(v, op.const(np.int64(steps - 1 - t if back else t)), axis=a)
                 for v, a, back in zip(sequences, axes, turned, strict=True)]
        results = body.turn([*states, *parts])
        states = results[: len(states)]
        for row, value in zip(made, results[len(states) :], strict=True):
            row.append(value)
    ends = ints_attr(node, "scan_output_axes") or (0,) * len(made)
    back = ints_attr(node, "scan_output_directions") or (0,) * len(made)
    return [*states, *(_stacked(op, row, a, bool(b)) for row, a, b in zip(made, ends, back, strict=True))]


def loop(op: Builder, node: ir.Node) -> Decomposed:
    """A loop that counts to a constant and never stops before."""
    trips, going = scalar_of(input_of(node, 0)), input_of(node, 1)
    graph = node.attributes["body"].as_graph()
    last = graph.outputs[0]
    while (maker := last.producer()) is not None and maker.op_type == "Identity" and maker.inputs[0] is not None:
        last = maker.inputs[0]
    goes_on = last is graph.inputs[1] or scalar_of(last) == 1
    if trips is None or trips < 1 or not goes_on or (going is not None and scalar_of(going) != 1):
        return "its number of turns is known only at run time"
    body = _body(op, node, "body", int(trips))
    if isinstance(body, str):
        return body
    states = [v for v in node.inputs[2:] if v is not None]
    made: list[list[ir.Value]] = [[] for _ in range(len(node.outputs) - len(states))]
    for t in range(int(trips)):
        results = body.turn([op.const(np.int64(t)), op.const(np.array(True)), *states])[1:]
        states = results[: len(states)]
        for row, value in zip(made, results[len(states) :], strict=True):
            row.append(value)
    return [*states, *(_stacked(op, row, 0, False) for row in made)]


def branch(op: Builder, node: ir.Node) -> Decomposed:
    condition = scalar_of(input_of(node, 0))
    if condition is None:
        return "its condition is known only at run time"
    body = _body(op, node, "then_branch" if condition else "else_branch", 1)
    return body if isinstance(body, str) else body.turn([])


TABLE: Mapping[str, Entry] = {"Scan": scan, "Loop": loop, "If": branch}
