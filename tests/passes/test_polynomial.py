from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.passes.normalize.polynomial import close, factors, polynomial
from tests.passes.harness import evaluate, model


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    """Text in x and constants, fully parenthesized, as nested (op left right) triples."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["x", "a", "b"]))
    op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Neg"]))
    left = draw(expressions(depth=depth - 1))
    if op == "Neg":
        return f"Neg({left})"
    return f"{op}({left}, {draw(st.sampled_from(['a', 'b'])) if op == 'Div' else draw(expressions(depth=depth - 1))})"


def flat(expression: str) -> str:
    """Nested calls as statements."""
    lines: list[str] = []

    def visit(text: str) -> str:
        if "(" not in text:
            return text
        head, _, rest = text.partition("(")
        parts, depth, start = [], 0, 0
        for i, c in enumerate(rest[:-1]):
            depth += (c == "(") - (c == ")")
            if c == "," and depth == 0:
                parts.append(rest[start:i])
                start = i + 1
        parts.append(rest[start:-1])
        names = [visit(p.strip()) for p in parts]
        lines.append(f"t{len(lines)} = {head}({', '.join(names)})")
        return f"t{len(lines) - 1}"

    root = visit(expression)
    return " ".join([*lines, f"y = Identity({root})"])


@settings(max_examples=60, deadline=None)
@given(expressions())
def test_a_polynomial_has_the_values_of_its_expression(expression: str) -> None:
    graph = model(f"g (float[5] x, float a, float b) => (float[N] y) {{ {flat(expression)} }}", a=1.5, b=-0.5)
    found = polynomial(graph.graph.outputs[0], graph.graph.inputs[0])
    if found is None:
        return
    x = np.linspace(-2, 2, 5, dtype=np.float32)
    wanted = evaluate(graph, {"x": x})["y"]
    np.testing.assert_allclose(sum(c * x.astype(np.float64)**p for p, c in found.items()), np.broadcast_to(wanted, 5),
                               rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("body", ["y = Exp(x)", "y = Div(a, x)", "y = Add(x, z)",
                                  "p = Mul(x, x) q = Mul(p, p) y = Mul(q, x)"])
def test_other_expressions_are_none(body: str) -> None:
    graph = model(f"g (float[5] x, float[5] z, float a) => (float[5] y) {{ {body} }}", a=2)
    assert polynomial(graph.graph.outputs[0], graph.graph.inputs[0]) is None


def test_cubes() -> None:
    graph = model("g (float[5] x, float three) => (float[5] y) {"
                  " p = Mul(x, x) q = Mul(p, x) r = Pow(x, three) y = Add(q, r) }", three=3)
    assert polynomial(graph.graph.outputs[0], graph.graph.inputs[0]) == {3: 2.0}


def test_close_wants_the_same_powers() -> None:
    assert close({1: 0.5, 2: 0.0}, {1: 0.5005})
    assert not close({1: 0.5}, {1: 0.51})
    assert not close({1: 0.5, 2: 1e-3}, {1: 0.5})
    assert not close(None, {})


def test_factors() -> None:
    graph = model("g (float[5] x, float[5] z, float two) => (float[5] y) {"
                  " a = Mul(two, x) b = Div(z, two) c = Mul(a, b) y = Mul(c, two) }", two=2)
    coefficient, leaves = factors(graph.graph.outputs[0])
    assert coefficient == 2.0
    assert leaves == list(graph.graph.inputs)
