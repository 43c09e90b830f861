from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.model import Builder, producer, required, scalar_of
from edgec.ir.rules import Bindings, PatternRule, Rule, apply_rules
from tests.passes.harness import model, ops


class SinOfCos(Rule):
    roots = ("Sin",)

    def match(self, node: ir.Node) -> Bindings | None:
        inner = producer(node.inputs[0], "Cos")
        return None if inner is None else {"x": required(inner, 0)}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return "x is a graph input" if parts["x"].is_graph_input() else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Tanh(parts["x"])


class Double(PatternRule):
    roots = ("Add",)

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        return op.Add(op.Mul(x, c), x)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return None if scalar_of(parts["c"]) == 1.0 else "c is not 1"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Sum(parts["x"], parts["x"])


class Restless(Rule):
    roots = ("Exp",)

    def match(self, node: ir.Node) -> Bindings | None:
        return {}

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Exp(required(node, 0))


def test_fires_and_declines_with_reason_and_place() -> None:
    graph = model("g (float[2] x) => (float[2] y, float[2] z) {"
                  " a = Cos(x) y = Sin(a) b = Abs(x) c = Cos(b) z = Sin(c) }")
    report = apply_rules(graph, [SinOfCos()])
    assert report.modified
    assert [(e.rule, e.where) for e in report.fired] == [("SinOfCos", "Sin 'z'")]
    assert [(e.where, e.reason) for e in report.declined] == [("Sin 'y'", "x is a graph input")]
    assert report.lines() == ["SinOfCos: fired 1", "SinOfCos: declined at Sin 'y': x is a graph input"]
    assert ops(graph) == {"Cos": 1, "Sin": 1, "Abs": 1, "Tanh": 1}


def test_nothing_to_do() -> None:
    report = apply_rules(model("g (float[2] x) => (float[2] y) { y = Sin(x) }"), [SinOfCos(), Double()])
    assert not report.modified
    assert report.lines() == []


@pytest.mark.parametrize("body", ["m = Mul(x, c) y = Add(m, x)", "m = Mul(c, x) y = Add(m, x)",
                                  "m = Mul(x, c) y = Add(x, m)", "m = Mul(c, x) y = Add(x, m)"])
def test_pattern_in_every_order(body: str) -> None:
    graph = model(f"g (float[2] x, float c) => (float[2] y) {{ {body} }}", c=1)
    assert apply_rules(graph, [Double()]).modified
    assert ops(graph) == {"Sum": 1}


def test_pattern_declines() -> None:
    graph = model("g (float[2] x, float c) => (float[2] y) { m = Mul(x, c) y = Add(m, x) }", c=2)
    report = apply_rules(graph, [Double()])
    assert not report.modified
    assert report.declined[0].reason == "c is not 1"


def test_shared_inner_node_survives() -> None:
    graph = model("g (float[2] x) => (float[2] y, float[2] c) { b = Abs(x) c = Cos(b) y = Sin(c) }")
    apply_rules(graph, [SinOfCos()])
    assert ops(graph) == {"Abs": 1, "Cos": 1, "Tanh": 1}


def test_rules_that_never_rest_are_an_error() -> None:
    graph = model("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    with pytest.raises(EdgecError) as caught:
        apply_rules(graph, [Restless()])
    assert caught.value.code == "E0203"
    assert "Restless" in str(caught.value)


def test_new_names_are_unique() -> None:
    graph = model("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    for _ in range(3):
        apply_rules(graph, [Restless()], until_stable=False)
    graph = model("g (float[2] x) => (float[2] y) { a = Abs(x) b = Cos(a) c = Sin(b) d = Abs(c) e = Cos(d) y ="
                  " Sin(e) }")
    apply_rules(graph, [SinOfCos()])
    names = [v.name for n in graph.graph for v in n.outputs]
    assert len(names) == len(set(names))
