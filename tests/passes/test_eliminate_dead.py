from __future__ import annotations

import numpy as np
import pytest

from edgec.passes.normalize.eliminate_dead import EliminateDead
from tests.passes.harness import model, ops, reasons, run


@pytest.mark.parametrize(("body", "shape", "constants"), [
    ("a = Identity(x) y = Relu(a)", "2,3,4", {}),
    ("a = Relu(x) y = Identity(a)", "2,3,4", {}),
    ("a = Relu(x) b = Neg(a) y = Identity(a)", "2,3,4", {}),
    ("a = Dropout(x) y = Relu(a)", "2,3,4", {}),
    ("a = Cast<to = 1>(x) y = Relu(a)", "2,3,4", {}),
    ("a = Reshape(x, s) y = Relu(a)", "2,3,4", {"s": [2, -1, 4]}),
    ("a = Reshape(x, s) y = Relu(a)", "2,3,4", {"s": [0, 0, 0]}),
    ("a = Reshape(x, s) b = Reshape(a, t) y = Relu(b)", "2,3,4", {"s": [6, 4], "t": [2, 3, 4]}),
    ("a = Transpose<perm = [2, 0, 1]>(x) b = Transpose<perm = [1, 2, 0]>(a) y = Relu(b)", "2,3,4", {}),
    ("a = Transpose(x) b = Transpose(a) y = Relu(b)", "2,3,4", {}),
    ("a = Concat<axis = 1>(x) y = Relu(a)", "2,3,4", {}),
    ("a = Unsqueeze(x, s) b = Squeeze(a, s) c = Expand(b, t) y = Relu(c)", "2,3,4", {"s": [1], "t": [1, 1, 1]}),
    ("a = Sum(x) y = Relu(a)", "2,3,4", {}),
    ("a = Add(x, s) b = Mul(t, a) y = Relu(b)", "2,3,4", {"s": [0], "t": [1, 1, 1, 1]}),
])
def test_no_ops_go(body: str, shape: str, constants: dict[str, list[int]]) -> None:
    kind = "float" if "Add(x, s)" in body else "int64"
    listed = "".join(f", {kind}[{len(v)}] {k}" for k, v in constants.items())
    graph = model(f"g (float[2,3,4] x{listed}) => (float[{shape}] y) {{ {body} }}", **constants)
    after, modified, _ = run(EliminateDead(), graph)
    assert modified
    assert ops(after) == {"Relu": 1}
    assert not after.graph.initializers or "Reshape" in ops(after)


def test_transposes_merge_into_one() -> None:
    graph = model("g (float[2,3,4] x) => (float[4,2,3] y) { a = Transpose<perm = [1, 2, 0]>(x)"
                  " b = Transpose<perm = [2, 0, 1]>(a) y = Transpose<perm = [2, 0, 1]>(b) }")
    after, _, _ = run(EliminateDead(), graph)
    assert ops(after) == {"Transpose": 1}


def test_reshapes_merge_but_not_over_copied_dims() -> None:
    text = "g (float[N,3,4] x, int64[2] s, int64[3] t) => (float[M,2,2] y) { a = Reshape(x, s) y = Reshape(a, t) }"
    after, _, _ = run(EliminateDead(), model(text, s=[-1, 4], t=[-1, 2, 2]))
    assert ops(after) == {"Reshape": 1}
    _, modified, report = run(EliminateDead(), model(text, s=[-1, 4], t=[0, 2, 2]))
    assert not modified
    assert "copies a dim" in reasons(report)


def test_symbolic_reshape_to_itself() -> None:
    graph = model("g (float[N,3] x, int64[2] s) => (float[N,3] y) { a = Reshape(x, s) y = Relu(a) }", s=[-1, 3])
    after, _, _ = run(EliminateDead(), graph)
    assert ops(after) == {"Relu": 1}


def test_identity_between_input_and_output_stays() -> None:
    graph = model("g (float[2] x) => (float[2] y, float[2] z) { y = Identity(x) z = Cast<to = 1>(x) }")
    after, _, _ = run(EliminateDead(), graph)
    assert ops(after) == {"Identity": 2}


def test_unused_parts_go() -> None:
    graph = model("g (float[2] x, float[2] w) => (float[2] y) { y = Relu(x) a = Neg(w) b = Exp(a) }", w=[1, 2])
    after, modified, _ = run(EliminateDead(), graph)
    assert modified
    assert ops(after) == {"Relu": 1}
    assert not after.graph.initializers


def test_values_read_only_by_a_nested_graph_stay() -> None:
    graph = model(
        "g (bool c, float[2] x, float[2] w) => (float[2] y) { a = Exp(x) y = If (c) <"
        " then_branch = t () => (float[2] u) { u = Add(a, w) }, else_branch = e () => (float[2] v) { v = Neg(x) } > }",
        w=[1, 2])
    after, modified, _ = run(EliminateDead(), graph)
    assert not modified
    assert ops(after) == {"Exp": 1, "If": 1, "Add": 1, "Neg": 1}


def test_equal_subexpressions_and_constants_are_shared() -> None:
    graph = model("g (float[2] x, float[2] v, float[2] w) => (float[2] y) {"
                  " a = Mul(x, v) b = Mul(x, w) y = Add(a, b) }",
                  v=[1, 2], w=[1, 2])
    after, _, _ = run(EliminateDead(), graph)
    assert ops(after) == {"Mul": 1, "Add": 1}
    assert len(after.graph.initializers) == 1


@pytest.mark.parametrize(("body", "constant", "shape"), [
    ("y = Add(x, s)", [[0.0] * 3] * 2, "[2,3]"),
    ("y = Sub(s, x)", [0.0] * 3, "[3]"),
    ("y = Div(s, x)", [1.0] * 3, "[3]"),
    ("y = Mul(x, s)", [1.0, 1.0, 2.0], "[3]"),
])
def test_arithmetic_that_does_something_stays(body: str, constant: list[float], shape: str) -> None:
    graph = model(f"g (float[3] x, float{shape} s) => (float{shape} y) {{ {body} }}", s=constant)
    _, modified, _ = run(EliminateDead(), graph)
    assert not modified


@pytest.mark.parametrize(("body", "reason"), [
    ("a, m = Dropout(x) y = Where(m, a, x)", "mask"),
    ("y = Dropout(x, r, t)", "training"),
])
def test_dropout_with_effects_is_declined(body: str, reason: str) -> None:
    from edgec.ir.passes import Context

    graph = model(f"g (float[2] x, float r, bool t) => (float[2] y) {{ {body} }}", r=0.5, t=np.array(True))
    ctx = Context()
    after, _ = EliminateDead().call(graph, ctx)
    assert ops(after)["Dropout"] == 1
    assert reason in reasons(ctx.rules)
