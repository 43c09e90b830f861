from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.model import walk
from edgec.passes.normalize.fuse_norms import FuseNorms
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)
CONSTANTS = {"two": 2, "e": 1e-2, "o": 1, "h": -0.5, "r": 0.5}
MEANS = ["q = Pow(x, two) n = ReduceMean(q, ax)", "q = Mul(x, x) n = ReduceMean(q, ax)"]
EPSILONS = ["p = Add(n, e)", "p = Add(e, n)"]
ROOTS = ["s = Sqrt(p) t = Div(x, s)", "s = Sqrt(p) i = Reciprocal(s) t = Mul(x, i)",
         "s = Sqrt(p) i = Div(o, s) t = Mul(i, x)",
         "i = Pow(p, h) t = Mul(x, i)", "s = Pow(p, r) t = Div(x, s)", "c = Reciprocal(p) i = Sqrt(c) t = Mul(x, i)"]


def spelled(body: str, axis: int = -1, weight: tuple[int, ...] = (4,)) -> ir.Model:
    listed = "".join(f", float {k}" for k in CONSTANTS)
    return model(f"g (float[N,3,4] x{listed}, int64[1] ax, float{list(weight)} w, float[4] b) =>"
                 f" (float[N,3,4] y) {{ {body} }}",
                 **CONSTANTS, ax=[axis], w=RNG.standard_normal(weight), b=RNG.standard_normal(4))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("scale", ["y = Mul(w, t)", "y = Mul(t, w)"])
def test_rms(mean: str, epsilon: str, root: str, scale: str) -> None:
    after, modified, _ = run(FuseNorms(), spelled(f"{mean} {epsilon} {root} {scale}"))
    assert modified
    assert ops(after) == {"RMSNormalization": 1}
    assert next(walk(after)).attributes["epsilon"].as_float() == pytest.approx(1e-2)


def test_rms_without_scale() -> None:
    after, _, _ = run(FuseNorms(), spelled(f"{MEANS[0]} {EPSILONS[0]} s = Sqrt(p) y = Div(x, s)"))
    assert ops(after) == {"RMSNormalization": 1}


@pytest.mark.parametrize("square", ["q = Pow(d, two)", "q = Mul(d, d)"])
@pytest.mark.parametrize("end", ["y = Identity(t)", "y = Mul(t, w)", "u = Mul(w, t) y = Add(u, b)",
                                 "u = Mul(t, w) y = Add(b, u)"])
def test_layer_norm(square: str, end: str) -> None:
    body = f"m = ReduceMean(x, ax) d = Sub(x, m) {square} n = ReduceMean(q, ax) p = Add(n, e) s = Sqrt(p) t = Div(d, s)"
    after, modified, _ = run(FuseNorms(), spelled(f"{body} {end}", axis=2))
    assert modified
    assert ops(after)["LayerNormalization"] == 1
    assert set(ops(after)) <= {"LayerNormalization", "Identity"}


def test_weight_with_leading_ones_is_flattened() -> None:
    after, _, _ = run(FuseNorms(), spelled(f"{MEANS[0]} {EPSILONS[0]} {ROOTS[0]} y = Mul(w, t)", weight=(1, 1, 4)))
    assert ops(after) == {"RMSNormalization": 1}


@pytest.mark.parametrize("body", [
    f"{MEANS[0]} {EPSILONS[0]} s = Sqrt(p) t = Div(b, s) y = Mul(x, t)",
    f"q = Pow(x, o) n = ReduceMean(q, ax) {EPSILONS[0]} s = Sqrt(p) y = Div(x, s)",
    "q = Mul(x, x) n = ReduceMean<keepdims = 1>(q, ax) p = Sub(n, e) a = Abs(p) s = Sqrt(a) y = Div(x, s)",
])
def test_look_alikes_stay(body: str) -> None:
    _, modified, _ = run(FuseNorms(), spelled(body))
    assert not modified


def test_other_axes_stay() -> None:
    _, modified, _ = run(FuseNorms(), spelled(f"{MEANS[0]} {EPSILONS[0]} s = Sqrt(p) y = Div(x, s)", axis=1))
    assert not modified


def test_unknown_width_is_declined() -> None:
    graph = model("g (float[2,K] x, float e, int64[1] ax) => (float[2,K] y) {"
                  " q = Mul(x, x) n = ReduceMean(q, ax) p = Add(n, e) s = Sqrt(p) y = Div(x, s) }", e=0.1, ax=[-1])
    _, modified, report = run(FuseNorms(), graph)
    assert not modified
    assert "not known" in reasons(report)


def test_scale_of_a_value_that_others_read_is_declined() -> None:
    graph = model("g (float[2,4] x, float[4] o, float[4] w) => (float[2,4] y, float[2,4] t) {"
                  " t = RMSNormalization(x, o) y = Mul(t, w) }", o=np.ones(4), w=RNG.standard_normal(4))
    _, modified, report = run(FuseNorms(), graph)
    assert not modified
    assert "read by others" in reasons(report)


def test_scale_per_row_is_declined() -> None:
    graph = model("g (float[4,4] x, float[4] o, float[4,1] w) => (float[4,4] y) {"
                  " t = RMSNormalization(x, o) y = Mul(t, w) }",
                  o=np.ones(4), w=RNG.standard_normal((4, 1)))
    _, modified, report = run(FuseNorms(), graph)
    assert not modified
    assert "per channel" in reasons(report)
