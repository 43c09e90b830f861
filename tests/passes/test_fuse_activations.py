from __future__ import annotations

import numpy as np
import pytest

from edgec.passes.normalize.fuse_activations import FuseActivations
from tests.passes.harness import model, ops, reasons, run

X = np.linspace(-7, 7, 24, dtype=np.float32).reshape(2, 3, 4)

FACTORED = ("s = Mul(x, x) i = Mul(s, c) j = Add(i, o) k = Mul(j, x) l = Mul(q, k) e = Tanh(l) f = Add(e, o)"
            " a = Mul(h, f) y = Mul(x, a)")
SPELLINGS = [
    ("Swish", {}, "s = Sigmoid(x) y = Mul(x, s)"),
    ("Swish", {}, "s = Sigmoid(x) y = Mul(s, x)"),
    ("Swish", {"c": 1.702}, "t = Mul(c, x) s = Sigmoid(t) y = Mul(s, x)"),
    ("HardSwish", {"k": 3, "z": 0, "h": 6}, "a = Add(x, k) r = Clip(a, z, h) p = Mul(x, r) y = Div(p, h)"),
    ("HardSwish", {"k": 3, "z": 0, "h": 6}, "a = Add(k, x) r = Clip(a, z, h) d = Div(r, h) y = Mul(d, x)"),
    ("HardSwish", {"k": 3, "z": 0, "h": 6, "i": 1 / 6},
     "a = Add(x, k) f = Max(a, z) r = Min(f, h) p = Mul(x, i) y = Mul(p, r)"),
    ("HardSwish", {}, "r = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(r, x)"),
    ("Mish", {}, "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"),
    ("Gelu", {"h": 0.5, "o": 1, "q": 2**0.5}, "a = Mul(x, h) d = Div(x, q) e = Erf(d) f = Add(e, o) y = Mul(a, f)"),
    ("Gelu", {"h": 0.5, "o": 1, "q": 0.5**0.5}, "d = Mul(q, x) e = Erf(d) f = Add(o, e) a = Mul(f, x) y = Mul(h, a)"),
    ("Gelu", {"o": 1, "q": 0.5**0.5, "w": 2}, "d = Mul(q, x) e = Erf(d) f = Add(o, e) a = Mul(f, x) y = Div(a, w)"),
    ("Gelu", {"h": 0.5, "o": 1, "q": 0.7978845608, "c": 0.044715, "t": 3},
     "p = Pow(x, t) i = Mul(p, c) j = Add(x, i) k = Mul(j, q) e = Tanh(k) f = Add(e, o) a = Mul(x, h) y = Mul(a, f)"),
    ("Gelu", {"h": 0.5, "o": 1, "q": 0.7978845608, "c": 0.044715}, FACTORED),
    ("Relu", {"z": 0}, "y = Max(x, z)"),
    ("Relu", {"z": 0}, "y = Max(z, x)"),
    ("Relu", {"z": 0}, "y = Clip(x, z)"),
    ("Clip", {"z": 0, "h": 6}, "r = Relu(x) y = Min(r, h)"),
    ("Clip", {"z": -1, "h": 1}, "r = Min(h, x) y = Max(r, z)"),
    ("Clip", {"z": -1, "h": 5, "j": 2}, "r = Clip(x, z, h) s = Relu(r) y = Min(s, j)"),
    ("HardSigmoid", {"k": 3, "z": 0, "h": 6}, "a = Add(x, k) r = Clip(a, z, h) y = Div(r, h)"),
    ("Softplus", {"o": 1}, "e = Exp(x) a = Add(e, o) y = Log(a)"),
    ("Softplus", {"o": 1}, "e = Exp(x) a = Add(o, e) y = Log(a)"),
]


@pytest.mark.parametrize(("name", "constants", "body"), SPELLINGS)
def test_spelling(name: str, constants: dict[str, float], body: str) -> None:
    listed = "".join(f", float {k}" for k in constants)
    graph = model(f"g (float[2,3,4] x{listed}) => (float[2,3,4] y) {{ {body} }}", **constants)
    after, modified, _ = run(FuseActivations(), graph, feeds={"x": X})
    assert modified
    assert ops(after) == {name: 1}
    assert after.graph.outputs[0].name == "y"


def test_inner_values_that_others_read_stay() -> None:
    graph = model("g (float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] s) { s = Sigmoid(x) y = Mul(x, s) }")
    after, _, _ = run(FuseActivations(), graph)
    assert ops(after) == {"Swish": 1, "Sigmoid": 1}


def test_gated_product_keeps_its_other_factor() -> None:
    graph = model("g (float[2,4] x, float[2,4] u) => (float[2,4] y) { s = Sigmoid(x) a = Mul(x, s) y = Mul(a, u) }")
    after, _, _ = run(FuseActivations(), graph)
    assert ops(after) == {"Swish": 1, "Mul": 1}


@pytest.mark.parametrize(("constants", "body"), [
    ({}, "s = Sigmoid(x) y = Mul(u, s)"),
    ({"k": 2, "z": 0, "h": 6}, "a = Add(x, k) r = Clip(a, z, h) p = Mul(x, r) y = Div(p, h)"),
    ({"h": 0.5, "o": 1, "q": 1.5}, "a = Mul(x, h) d = Div(x, q) e = Erf(d) f = Add(e, o) y = Mul(a, f)"),
    ({"h": 0.4, "o": 1, "q": 2**0.5}, "a = Mul(x, h) d = Div(x, q) e = Erf(d) f = Add(e, o) y = Mul(a, f)"),
    ({"k": 2}, "e = Pow(x, k) y = Mul(x, e)"),
])
def test_look_alikes_stay(constants: dict[str, float], body: str) -> None:
    listed = "".join(f", float {k}" for k in constants)
    graph = model(f"g (float[2,3,4] x, float[2,3,4] u{listed}) => (float[2,3,4] y) {{ {body} }}", **constants)
    _, modified, _ = run(FuseActivations(), graph)
    assert not modified


def test_a_constant_that_widens_the_shape_is_not_a_bound() -> None:
    graph = model("g (float[3] x, float[1,1] z) => (float[1,3] y) { y = Max(x, z) }", z=[[0]])
    _, modified, _ = run(FuseActivations(), graph)
    assert not modified


def test_crossing_bounds_are_declined() -> None:
    graph = model("g (float[3] x, float l, float h) => (float[3] y) { r = Relu(x) y = Clip(r, l, h) }", l=1, h=-1)
    _, modified, report = run(FuseActivations(), graph)
    assert not modified
    assert "cross" in reasons(report)


def test_in_a_nested_graph() -> None:
    graph = model(
        "g (bool c, float[2,3] x) => (float[2,3] y) { y = If (c) <"
        " then_branch = a () => (float[2,3] t) { s = Sigmoid(x) t = Mul(x, s) },"
        " else_branch = b () => (float[2,3] e) { e = Relu(x) } > }")
    after, _, _ = run(FuseActivations(), graph)
    assert ops(after) == {"If": 1, "Swish": 1, "Relu": 1}
