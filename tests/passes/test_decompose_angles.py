"""Inverse and hyperbolic functions keep float32's digits over their whole range: against numpy in double."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgec.ir.passes import Context
from edgec.native.lower import capabilities, unsupported
from edgec.passes.lower.decompose import Decompose
from edgec.pipeline import run_passes
from tests.passes.harness import Array, evaluate, model, ops

_TINY = 10.0 ** -np.arange(0, 30, 2)
WIDE = np.concatenate([np.linspace(-80, 80, 4001), np.linspace(-2, 2, 4001), _TINY, -_TINY, [0.0]])
HUGE = np.concatenate([WIDE, 10.0 ** np.arange(2, 38), -(10.0 ** np.arange(2, 38)), [3e38, -3e38]])
UNIT = np.concatenate([np.linspace(-1, 1, 4001), _TINY, -_TINY, 1 - _TINY[1:4], [0.0]])
ABOVE = np.concatenate([1 + _TINY, np.linspace(1, 50, 4001), 10.0 ** np.arange(2, 38), [3e38]])
CASES: dict[str, tuple[Callable[[Array], Array], Array]] = {
    "Sinh": (np.sinh, WIDE), "Cosh": (np.cosh, WIDE), "Asinh": (np.arcsinh, HUGE), "Acosh": (np.arccosh, ABOVE),
    "Atanh": (np.arctanh, UNIT), "Asin": (np.arcsin, UNIT), "Acos": (np.arccos, UNIT), "Atan": (np.arctan, HUGE),
}


@pytest.mark.parametrize("op", CASES)
def test_digits(op: str) -> None:
    function, points = CASES[op]
    x = points.astype(np.float32)
    graph = model(f"g (float[{x.size}] x) => (float[{x.size}] y) {{ y = {op}(x) }}")
    after = run_passes(graph, [Decompose()], Context(capabilities=capabilities())).model
    assert op not in ops(after)
    found = evaluate(after, {"x": x}, "onnxruntime")["y"]
    with np.errstate(all="ignore"):
        wanted = function(x.astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=1e-30)


def test_not_numbers() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, 1e38, -3], np.float32)
    for spelling, wanted in (("IsNaN", np.isnan(x)), ("IsInf", np.isinf(x)), (
            "IsInf<detect_negative = 0>", x == np.inf), ("IsInf<detect_positive = 0>", x == -np.inf)):
        graph = model(f"g (float[6] x) => (bool[6] y) {{ y = {spelling}(x) }}")
        after = run_passes(graph, [Decompose()], Context(capabilities=capabilities())).model
        assert np.array_equal(evaluate(after, {"x": x}, "onnxruntime")["y"], wanted)


def test_remainder_of_the_least_number() -> None:
    least = np.iinfo(np.int64).min
    a, b = np.array([least, least, 5, -5, 7]), np.array([3, 7, least, 3, -4])
    graph = model("g (int64[5] a, int64[5] b) => (int64[5] y) { y = Mod<fmod = 1>(a, b) }")
    after = run_passes(graph, [Decompose()], Context(capabilities=capabilities(), refuses=unsupported)).model
    assert "Mod" not in ops(after)
    assert np.array_equal(evaluate(after, {"a": a, "b": b}, "onnxruntime")["y"], np.fmod(a, b))
