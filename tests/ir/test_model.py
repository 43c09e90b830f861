from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.model import (
    Builder,
    const_of,
    const_tensor,
    describe,
    dims_of,
    fingerprint,
    graphs,
    ints_of,
    op_of,
    remove_unused,
    same_shape,
    scalar_of,
    single_use,
    splice,
    static_shape,
    walk,
)
from tests.passes.harness import evaluate, model

NESTED = (
    "g (bool c, float[2] x) => (float[2] y) { a = Exp(x) y = If (c) <"
    " then_branch = t () => (float[2] u) { u = If (c) <then_branch = s () => (float[2] p) { p = Neg(a) },"
    " else_branch = r () => (float[2] q) { q = Abs(a) }> }, else_branch = e () => (float[2] v) { v = Sin(x) } > }")


def test_walk_visits_nested_graphs_outer_first() -> None:
    graph = model(NESTED)
    assert len(list(graphs(graph))) == 5
    assert {n.op_type for n in walk(graph)} == {"Exp", "If", "Neg", "Abs", "Sin"}
    assert next(walk(graph)).op_type == "Exp"


def test_walk_includes_functions_on_request() -> None:
    graph = model("g (float[2] x) => (float[2] y) { y = local.F(x) }", domains={"local": 1},
                  functions='<opset_import: ["" : 24], domain: "local"> F (x) => (y) { y = Tanh(x) }')
    assert [n.op_type for n in walk(graph)] == ["F"]
    assert [n.op_type for n in walk(graph, functions=True)] == ["F", "Tanh"]


def test_standard_domain_has_one_spelling() -> None:
    assert op_of(ir.node("Relu", [], domain="ai.onnx")) == ("", "Relu")


def test_constants() -> None:
    graph = model("g (float[2] x, float[3] w, float s) => (float[2] y) {"
                  " k = Constant<value_ints = [1, 2]>() y = Relu(x) z = Add(w, s) u = Reshape(x, k)"
                  " }", w=[1, 2, 3], s=0.5)
    weight, scalar = graph.graph.initializers["w"], graph.graph.initializers["s"]
    ints = next(n for n in walk(graph) if n.op_type == "Constant").outputs[0]
    assert np.array_equal(const_of(weight), [1, 2, 3])  # type: ignore[arg-type]
    assert const_of(weight, limit=2) is None
    assert scalar_of(scalar) == 0.5
    assert scalar_of(weight) is None
    assert ints_of(ints) == (1, 2)
    assert ints_of(weight) is None
    assert const_tensor(graph.graph.inputs[0]) is None
    assert const_tensor(None) is None
    assert const_tensor(graph.graph.outputs[0]) is None


def test_an_initializer_that_is_an_input_is_no_constant() -> None:
    graph = model("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", w=[1, 2])
    value = graph.graph.initializers["w"]
    graph.graph.inputs.append(value)
    assert const_tensor(value) is None


def test_shapes() -> None:
    graph = model("g (float[N,3] x, float[N,3] z, float[2,3] s) => (float[N,3] y) { y = Add(x, z) }")
    x, z, s = graph.graph.inputs
    assert dims_of(x) == ("N", 3)
    assert static_shape(x) is None
    assert static_shape(s) == (2, 3)
    assert same_shape(x, z)
    assert not same_shape(x, s)
    z.shape = ir.Shape([None, 3])
    assert not same_shape(z, z), "an unknown dim equals nothing, not even itself"


def test_single_use() -> None:
    graph = model("g (float[2] x) => (float[2] y, float[2] a) { a = Exp(x) b = Abs(a) y = Add(b, b) }")
    a, b, y = (n.outputs[0] for n in walk(graph))
    assert not single_use(a), "a graph output is read by the caller"
    assert not single_use(b)
    assert not single_use(y)


def test_describe_names_operator_node_and_module() -> None:
    node = ir.node("Conv", [], name="conv_3", metadata_props={"namespace": "features.3"})
    assert describe(node) == "Conv 'conv_3' (features.3)"
    assert describe(ir.node("Foo", [], domain="x", name="n")) == "x::Foo 'n'"


def replace(graph: ir.Model, op_type: str) -> None:
    node = next(n for n in walk(graph) if n.op_type == op_type)
    op = Builder(node)
    splice(node, op, [op.Sqrt(node.inputs[0])])


@pytest.mark.parametrize("text", [
    "g (float[2] x) => (float[2] y) { y = Exp(x) }",
    "g (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Neg(y) }",
    "g (float[2] x) => (float[2] z) { y = Exp(x) z = Neg(y) }",
])
def test_splice_keeps_names_of_graph_outputs(text: str) -> None:
    graph = model(text)
    names = [v.name for v in graph.graph.outputs]
    replace(graph, "Exp")
    assert [v.name for v in graph.graph.outputs] == names
    found = evaluate(graph, {"x": np.array([4, 9], np.float32)})
    assert abs(next(iter(found.values()))).tolist() == [2, 3]


@pytest.mark.parametrize("body", ["y = Identity(x)", "z = Neg(x) y = Identity(z)", "y = Identity(w)"])
def test_replacing_an_output_by_something_that_cannot_be_one(body: str) -> None:
    outputs = "float[2] y, float[2] z" if "z" in body else "float[2] y"
    graph = model(f"g (float[2] x, float[2] w) => ({outputs}) {{ {body} }}", w=[1, 2])
    before = evaluate(graph, {"x": np.array([4, 9], np.float32)})
    node = next(n for n in walk(graph) if n.op_type == "Identity")
    splice(node, Builder(node), [node.inputs[0]])  # type: ignore[list-item]
    after = evaluate(graph, {"x": np.array([4, 9], np.float32)})
    assert {k: v.tolist() for k, v in after.items()} == {k: v.tolist() for k, v in before.items()}


def test_nested_graphs_see_the_replacement() -> None:
    graph = model(NESTED)
    replace(graph, "Exp")
    found = evaluate(graph, {"c": np.array(True), "x": np.array([4, 9], np.float32)})
    assert found["y"].tolist() == [-2, -3]


def test_builder() -> None:
    anchor = ir.node("Exp", [ir.val("x")], metadata_props={"namespace": "layer.1"})
    anchor.outputs[0].name = "y"
    op = Builder(anchor)
    a, b = op.Split.many(2, anchor.inputs[0], axis=0, num_outputs=2)
    c = op.Clip(a, None, op.like(1.0, b), None)
    assert [n.op_type for n in op.nodes] == ["Split", "Clip"]
    assert len(op.nodes[1].inputs) == 3, "trailing empty inputs are left out"
    assert c.name == "y/Clip_1"
    assert op.nodes[0].metadata_props == {"namespace": "layer.1"}
    with pytest.raises(AttributeError):
        op.lower  # noqa: B018


def test_remove_unused_keeps_what_nested_graphs_read() -> None:
    graph = model(NESTED)
    assert remove_unused(graph) == 0
    graph = model("g (float[2] x, float[2] w) => (float[2] y) { y = Exp(x) a = Neg(w) b = Abs(a) }", w=[1, 2])
    assert remove_unused(graph) == 3
    assert not graph.graph.initializers


CHANGES = {
    "operator": "g (float[2] x, float[2] w) => (float[2] y) { y = Sub(x, w) }",
    "wiring": "g (float[2] x, float[2] w) => (float[2] y) { y = Add(w, x) }",
    "output name": "g (float[2] x, float[2] w) => (float[2] z) { z = Add(x, w) }",
    "more": "g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) z = Neg(y) }",
}
BASE = "g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }"


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_sees(change: str) -> None:
    assert fingerprint(model(BASE, w=[1, 2])) != fingerprint(model(CHANGES[change], w=[1, 2]))


def test_fingerprint_sees_values_attributes_and_nested_graphs() -> None:
    assert fingerprint(model(BASE, w=[1, 2])) == fingerprint(model(BASE, w=[1, 2]))
    assert fingerprint(model(BASE, w=[1, 2])) != fingerprint(model(BASE, w=[1, 3]))
    big = np.zeros(2000)
    first, second = model(BASE.replace("[2]", "[2000]"), w=big), model(BASE.replace("[2]", "[2000]"), w=big)
    assert fingerprint(first) == fingerprint(first)
    assert fingerprint(first) != fingerprint(second), "big tensors are compared by identity"
    axis = "g (float[2,2] x) => (float[2,2] y) {{ y = Softmax<axis = {}>(x) }}"
    assert fingerprint(model(axis.format(0))) != fingerprint(model(axis.format(1)))
    assert fingerprint(model(NESTED)) != fingerprint(model(NESTED.replace("Sin", "Cos")))


def test_fingerprint_ignores_inner_names() -> None:
    text = "g (float[2] x) => (float[2] y) {{ {0} = Exp(x) y = Neg({0}) }}"
    assert fingerprint(model(text.format("a"))) == fingerprint(model(text.format("b")))
