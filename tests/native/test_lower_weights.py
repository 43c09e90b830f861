"""Weights stored smaller than they are used: unpacked per tensor while the bundle is written."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.native.lower import build_plan
from tests.native.lower_cases import Case, f, model_of, reference
from tests.native.plan_interpreter import Interpreter

RNG = np.random.default_rng(4)


def codes(dtype: Any, *shape: int) -> np.ndarray[Any, Any]:
    low, high = (-8, 8) if dtype == ml_dtypes.int4 else (0, 16) if dtype == ml_dtypes.uint4 else (-100, 100)
    return RNG.integers(low, high, shape).astype(dtype)


def positive(*shape: int) -> np.ndarray[Any, Any]:
    return (RNG.random(shape) * 0.1 + 0.01).astype(np.float32)


DQ = "DequantizeLinear"
BLOCKED = {"axis": 1, "block_size": 8}
CASES = [
    Case("uint4 blocks", [(DQ, "q s z", "w", BLOCKED), ("Gemm", "x w", "y", {"transB": 1})],
         {"x": f(3, 24)},
         {"q": codes(ml_dtypes.uint4, 20, 24), "s": positive(20, 3), "z": codes(ml_dtypes.uint4, 20, 3)}),
    Case("int4 blocks, transposed", [(DQ, "q s", "w", BLOCKED), ("Transpose", "w", "t", {"perm": [1, 0]}),
                                     ("MatMul", "x t", "y")],
         {"x": f(2, 3, 16)}, {"q": codes(ml_dtypes.int4, 5, 16), "s": positive(5, 2)}),
    Case("int8 per channel", [(DQ, "q s", "w", {"axis": 0}), ("Gemm", "x w", "y", {"transB": 1})],
         {"x": f(3, 7)}, {"q": codes(np.int8, 9, 7), "s": positive(9)}),
    Case("int8 per tensor", [(DQ, "q s z", "w"), ("Conv", "x w", "y")],
         {"x": f(1, 3, 5, 5)}, {"q": codes(np.int8, 4, 3, 3, 3), "s": positive(), "z": np.array(3, np.int8)}),
    Case("scales that are quantized, minima", [
        (DQ, "sq d", "s", BLOCKED), (DQ, "mq e", "m", BLOCKED),
        (DQ, "q s", "u", {"axis": 1, "block_size": 4}), ("Reshape", "u fine", "v"),
        ("Reshape", "m coarse", "n"), ("Sub", "v n", "o"), ("Reshape", "o flat", "w"),
        ("Gemm", "x w", "y", {"transB": 1})],
         {"x": f(2, 64)},
         {"q": codes(ml_dtypes.uint4, 6, 64), "sq": codes(np.int8, 6, 16), "mq": codes(np.int8, 6, 16),
          "d": positive(6, 2), "e": positive(6, 2), "fine": np.array([6, 16, 4]), "coarse": np.array([6, 16, 1]),
          "flat": np.array([6, 64])}),
    Case("columns in another order", [(DQ, "q s", "u", BLOCKED), ("Gather", "u order", "w", {"axis": 1}),
                                      ("Gemm", "x w", "y", {"transB": 1})],
         {"x": f(2, 16)}, {"q": codes(ml_dtypes.int4, 5, 16), "s": positive(5, 2), "order": RNG.permutation(16)}),
    Case("a table of rows", [(DQ, "q s", "w", BLOCKED), ("Gather", "w i", "y")],
         {"i": np.array([3, 0, 4])}, {"q": codes(ml_dtypes.uint4, 5, 16), "s": positive(5, 2)}),
]


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_unpacked(case: Case) -> None:
    model = model_of(case)
    plan = build_plan(model)
    # Images are turned around for the convolution; nothing of the unpacking is left for the device.
    assert len([c for c in plan.entries[0].calls if c.kernel != "transpose"]) == 1
    got = Interpreter(plan).run("main", case.feeds)["y"]
    np.testing.assert_allclose(got, reference(case)["y"], rtol=2e-5, atol=2e-5)


def test_run_time_values_are_refused() -> None:
    case = Case("dynamic", [("QuantizeLinear", "x s", "q"), (DQ, "q s", "y")], {"x": f(3)},
                {"s": np.array([0.1, 0.2, 0.3], np.float32)})
    with pytest.raises(EdgecError, match="its scale is not one constant above 0"):
        build_plan(model_of(case))


@pytest.mark.parametrize(("scale", "zero", "spec", "said"), [
    ((1, 4), (1, 4), {}, r"its scale \[1, 4\] does not fit codes \[4, 3\] along axis 1"),
    ((4,), (4,), {"axis": 1}, r"its scale \[4\] does not fit"),
    ((3,), (4,), {"axis": 1}, r"its zero point \[4\] does not fit"),
    ((4, 3), (4, 3), BLOCKED, r"does not fit codes \[4, 3\] along axis 1 in blocks of 8"),
])
def test_factors_of_another_shape_are_refused(scale: tuple[int, ...], zero: tuple[int, ...], spec: dict[str, int],
                                              said: str) -> None:
    case = Case("misfit", [(DQ, "q s z", "w", spec), ("Gemm", "x w", "y", {"transB": 1})], {"x": f(2, 3)},
                {"q": codes(np.int8, 4, 3), "s": positive(*scale), "z": codes(np.int8, *zero)})
    with pytest.raises(EdgecError, match=said):
        build_plan(model_of(case))


def test_other_readers_of_small_types_are_refused_by_name() -> None:
    case = Case("strange", [("Cast", "q", "c", {"to": 1}), ("Add", "x c", "y")], {"x": f(3)},
                {"q": codes(ml_dtypes.uint4, 3)})
    with pytest.raises(EdgecError, match="'q' has type UINT4"):
        build_plan(model_of(case))
