"""Scales and sizes in a file that no image can have are reasons, not crashes or tables of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.native.lower import build_plan
from tests.native.lower_cases import Case, f, i, model_of


def reason(inputs: str, constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> str:
    node = ("Resize", inputs, "y", {"mode": "linear", "antialias": 1, "axes": [2, 3]})
    with pytest.raises(EdgecError) as caught:
        build_plan(model_of(Case("resize", [node], {"x": f(1, 2, 4, 4)}, constants)))
    assert caught.value.code == "E0301"
    return caught.value.found


@pytest.mark.parametrize("scale", [math.inf, math.nan, 0.0, -1.0, 1e-30, 1e8])
def test_scales(scale: float) -> None:
    assert "scale" in reason("x - s", {"s": np.float32([scale, scale])})


@pytest.mark.parametrize("size", [0, -2, 1 << 30])
def test_sizes(size: int) -> None:
    assert f"to {size} pixels" in reason("x - - s", {"s": i(size, size)})
