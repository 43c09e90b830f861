"""Histograms and the ranges that the four methods find in them, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgec.compress.ranges import BINS, METHODS, Histogram, Method, QParams
from edgec.errors import EdgecError

Array = npt.NDArray[Any]


def filled(*parts: Array) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.widen(float(part.min()), float(part.max()))
    for part in parts:
        histogram.add(*histogram.count(part))
    return histogram


def rounding_error(values: Array, low: float, high: float) -> float:
    params = QParams.of(low, high)
    codes = np.clip(np.rint(values / params.scale) + params.zero, 0, 255)
    return float(np.mean(((codes - params.zero) * params.scale - values) ** 2))


def heavy(seed: int, shift: float = 0.0, relu: bool = False) -> Array:
    """Mostly small, a few far away."""
    x = np.random.default_rng(seed).standard_t(3, 60_000).astype(np.float32) + np.float32(shift)
    return np.maximum(x, 0) if relu else x


def test_counts_are_those_of_numpy_and_zeros_are_apart() -> None:
    x = heavy(0, relu=True)
    histogram = filled(x[:20_000], x[20_000:])
    assert histogram.zeros == (x == 0).sum()
    assert histogram.counts.sum() == (x != 0).sum()
    wanted, _ = np.histogram(x[x != 0], BINS, (x.min(), x.max()))
    # float32 puts values at an edge on either side of it.
    assert np.abs(histogram.counts - wanted).sum() < 1e-3 * x.size
    whole = filled(x)
    assert np.array_equal(whole.counts, histogram.counts)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.5, -4.0])
def test_mse_finds_what_brute_force_finds(shift: float, relu: bool) -> None:
    x = heavy(1, shift, relu)
    low, high = filled(x).range(Method("mse"))
    error = rounding_error(x, low, high)
    smallest, largest = min(0.0, float(x.min())), max(0.0, float(x.max()))
    tried = [rounding_error(x, smallest * a, largest * b) for a in np.linspace(0.02, 1, 25) for b in
             np.linspace(0.02, 1, 25)]
    assert error <= 1.05 * min(tried)
    assert error <= rounding_error(x, smallest, largest)
    assert relu or error < 0.9 * rounding_error(x, smallest, largest)


def test_percentile_keeps_its_share() -> None:
    x = heavy(2)
    for share in (99.0, 99.9):
        low, high = filled(x).range(Method("percentile", share))
        lost = [(x < low).mean(), (x > high).mean()]
        # Half at either end, but for what shares a bin with the end.
        assert max(lost) <= (100 - share) / 200 + 1e-9
    assert filled(x).range(Method("percentile", 100.0)) == pytest.approx((x.min(), x.max()))
    x = heavy(2, relu=True)
    low, high = filled(x).range(Method("percentile", 98.0))
    # Zeros count as the values they are.
    assert low == 0
    assert high == pytest.approx(np.quantile(x, 0.99), abs=float(x.max()) / BINS)


def test_entropy_cuts_outliers_and_keeps_what_is_even() -> None:
    x = np.abs(np.random.default_rng(3).standard_normal(200_000)).astype(np.float32)
    x[:20] = 60.0
    low, high = filled(x).range(Method("entropy"))
    assert low == 0
    assert 3 < high < 20
    even = np.random.default_rng(4).uniform(-1, 2, 200_000).astype(np.float32)
    assert filled(even).range(Method("entropy")) == pytest.approx((-1, 2), abs=0.02)
    both = heavy(5)
    low, high = filled(both).range(Method("entropy"))
    assert both.min() < low < -2 < 2 < high < both.max()


@pytest.mark.parametrize("name", METHODS)
def test_ranges_hold_zero_and_stay_inside_what_was_seen(name: str) -> None:
    for x in (heavy(6, 30.0), heavy(6, -30.0), heavy(7), np.full(9, 2.5, np.float32), np.full(9, -2.5, np.float32),
              np.zeros(5, np.float32), np.float32([1e-38, 3e38]), np.float32([-1e-30, 0]),
              np.float32([0, 1e-44]), np.float32([-3e38, 1, 3e38])):
        low, high = filled(x).range(Method(name))
        assert min(x.min(), 0) <= low <= 0 <= high <= max(x.max(), 0), (name, x[:3])
        assert np.isfinite(QParams.of(low, high).scale)


def test_minmax_is_the_smallest_and_the_largest() -> None:
    x = heavy(8)
    assert filled(x).range(Method("minmax")) == (x.min(), x.max())


def test_an_empty_histogram_has_no_range() -> None:
    with pytest.raises(EdgecError, match="no value") as caught:
        Histogram().range(Method("mse"))
    assert caught.value.code == "E0502"


def test_methods_are_read_from_text() -> None:
    assert Method.parse("percentile:99.5") == Method("percentile", 99.5)
    assert str(Method.parse("percentile")) == "percentile:99.99"
    assert str(Method.parse("mse")) == "mse"
    for bad in ("", "max", "mse:3", "percentile:", "percentile:x", "percentile:50", "percentile:100.1",
                "percentile:nan"):
        with pytest.raises(EdgecError, match="--calib-method"):
            Method.parse(bad)
