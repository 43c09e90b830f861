"""Ranges of activations for 8-bit integers, from streaming histograms: min-max, percentile, entropy, least squares.

An activation is stored as uint8 with one scale and one zero point, x ~ scale (q - zero), and the range always holds 0,
which is then stored exactly: padding and what a ReLU cuts off cost no error. Values outside the range saturate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgec.compress.formats import Array
from edgec.errors import EdgecError, did_you_mean

BINS = 2048
LEVELS = 256
METHODS = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
_STAGE = "calibration"
# Products of two scales, which biases are stored in, must not underflow in float32.
_LEAST_SCALE = 2.0**-60
_FAR = 2.0**30  # steps, beyond any code
_NARROW = 1e-30  # of ranges so narrow that a bin would be no float32 number
_STEPS = 128  # ends of a range that `mse` tries, on either side
_STRIDE = 16  # bins from one end that `entropy` tries to the next


@dataclass(frozen=True)
class QParams:
    """x ~ scale (q - zero), q uint8. scale: a float32 number above 0."""

    scale: float
    zero: int

    @property
    def low(self) -> float:
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        return (LEVELS - 1 - self.zero) * self.scale

    def code(self, value: float) -> int:
        """What QuantizeLinear makes of `value`, before it saturates."""
        with np.errstate(over="ignore"):
            steps = np.rint(np.float32(value) / np.float32(self.scale))
        return int(np.clip(steps, -_FAR, _FAR)) + self.zero

    @staticmethod
    def of(low: float, high: float) -> QParams:
        """Of the range from min(low, 0) to max(high, 0). One that is 0 alone gets the scale 1."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32(max((high - low) / (LEVELS - 1), _LEAST_SCALE))) if high > low else 1.0
        return QParams(scale, int(np.clip(np.rint(-low / scale), 0, LEVELS - 1)))


@dataclass(frozen=True)
class Method:
    """How a range is chosen. percentile: of the values that `percentile` keeps, half of the others lost at each end."""

    name: str
    percentile: float = PERCENTILE

    @staticmethod
    def parse(text: str) -> Method:
        """`minmax`, `percentile`, `percentile:99.9`, `entropy`, `mse`. Raises EdgecError (E0002)."""
        name, colon, number = text.partition(":")
        if name not in METHODS or (colon and name != "percentile"):
            raise EdgecError("E0002", stage=_STAGE, where="--calib-method", found=repr(text),
                             wanted=did_you_mean(name, METHODS), hint="percentile may have a number: percentile:99.9")
        try:
            share = float(number) if colon else PERCENTILE
        except ValueError:
            share = 0.0
        if not 50.0 < share <= 100.0:
            raise EdgecError("E0002", stage=_STAGE, where="--calib-method", found=repr(text),
                             wanted="a percentage above 50, at most 100, as percentile:99.9")
        return Method(name, share)

    def __str__(self) -> str:
        return f"{self.name}:{self.percentile:g}" if self.name == "percentile" else self.name


class Histogram:
    """Counts of the values of one tensor over all samples, in BINS equal bins from its smallest to its largest.

    Filled in two passes: `widen` with everything, then `add` with the same again. Zeros are counted apart: they are
    stored exactly in any range. All counts are integers, so that neither order nor threads change anything.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.counts = np.zeros(BINS, np.int64)
        self.zeros = 0

    def widen(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    @property
    def _narrow(self) -> bool:
        """Whether all values are one number, or as good as that: then the range is what was seen."""
        return not self.high - self.low > _NARROW

    @property
    def edges(self) -> Array:
        """float64 [BINS + 1]."""
        return np.linspace(self.low, self.high, BINS + 1, dtype=np.float64)

    def count(self, values: Array) -> tuple[Array, int]:
        """What `add` adds for `values` (float32): counts [BINS], zeros. Values outside the range count at its ends."""
        flat = values.reshape(-1)
        zeros = int(flat.size - np.count_nonzero(flat))
        if self._narrow:
            counts = np.zeros(BINS, np.int64)
            counts[-1] = flat.size - zeros
            return counts, zeros
        low, per_bin = np.float32(self.low), np.float32(BINS / (self.high - self.low))

        def bins(x: Array) -> Array:
            with np.errstate(over="ignore"):
                places: Array = np.clip((x - low) * per_bin, 0, BINS - 1).astype(np.int32)
            return places

        counts = np.bincount(bins(flat), minlength=BINS).astype(np.int64)
        counts[bins(np.zeros(1, np.float32))[0]] -= zeros if self.low <= 0 <= self.high else 0
        return counts, zeros

    def add(self, counts: Array, zeros: int) -> None:
        self.counts += counts
        self.zeros += zeros

    def range(self, method: Method) -> tuple[float, float]:
        """(low, high) with low <= 0 <= high. Raises EdgecError (E0502) before anything was seen."""
        if not self.low <= self.high:
            raise EdgecError("E0502", stage=_STAGE, found="no value", wanted="at least one sample")
        low, high = min(float(self.low), 0.0), max(float(self.high), 0.0)
        if method.name == "minmax" or self._narrow or not self.counts.any():
            return low, high
        found = {"percentile": self._percentile, "entropy": self._entropy, "mse": self._mse}[method.name](method)
        return min(max(found[0], low), 0.0), max(min(found[1], high), 0.0)

    def _percentile(self, method: Method) -> tuple[float, float]:
        edges, counts = self.edges, self.counts.copy()
        if self.low <= 0 <= self.high:
            counts[min(BINS - 1, int(np.searchsorted(edges, 0.0, "right")) - 1)] += self.zeros
        below = np.cumsum(counts) / counts.sum()
        cut = (100.0 - method.percentile) / 200.0
        first = int(np.searchsorted(below, cut, "right"))
        last = int(np.searchsorted(below, 1.0 - cut, "left"))
        return float(edges[min(first, BINS - 1)]), float(edges[min(last, BINS - 1) + 1])

    def _mse(self, method: Method) -> tuple[float, float]:
        """The ends, each in _STEPS steps, with the least sum of scale^2 / 12 inside and of squared distances outside.

        Inside, rounding errors are spread evenly over a step, whatever the bins hold.
        """
        edges = self.edges
        centers = (edges[:-1] + edges[1:]) / 2
        moments = np.array([self.counts, self.counts * centers, self.counts * centers**2])
        lows = np.linspace(min(self.low, 0.0), 0.0, _STEPS, endpoint=False) if self.low < 0 else np.zeros(1)
        highs = np.linspace(max(self.high, 0.0), 0.0, _STEPS, endpoint=False) if self.high > 0 else np.zeros(1)

        def outside(ends: Array, beyond: Array) -> tuple[Array, Array]:
            """Squared distances of what lies beyond each end, and how many that are. beyond: [ends, BINS]."""
            n, s, q = beyond.astype(np.float64) @ moments[0], beyond @ moments[1], beyond @ moments[2]
            return q - 2 * ends * s + ends**2 * n, n

        below, n_below = outside(lows, centers[None] < lows[:, None])
        above, n_above = outside(highs, centers[None] > highs[:, None])
        inside = moments[0].sum() - n_below[:, None] - n_above[None]
        step = (highs[None] - lows[:, None]) / (LEVELS - 1)
        error = below[:, None] + above[None] + inside * step**2 / 12
        i, j = np.unravel_index(int(np.argmin(error)), error.shape)
        return float(lows[i]), float(highs[j])

    def _entropy(self, method: Method) -> tuple[float, float]:
        """The upper end with the least divergence, then the lower one. Source: TensorRT's calibration (S. Migacz, GTC
        2017), for 256 levels and for ranges that need not be symmetric."""
        edges = self.edges
        zero = int(np.clip(np.searchsorted(edges, 0.0), 0, BINS))
        counts = self.counts.astype(np.float64)
        first, last = 0, BINS
        if self.high > 0:
            ends = range(BINS, max(zero, LEVELS) - 1, -_STRIDE)
            last = min(ends, key=lambda end: (_divergence(counts, 0, end), -end), default=BINS)
        if self.low < 0:
            ends = range(0, min(zero, last - LEVELS) + 1, _STRIDE)
            first = min(ends, key=lambda start: (_divergence(counts, start, last), start), default=0)
        return float(edges[first]), float(edges[last])


def _divergence(counts: Array, first: int, last: int) -> float:
    """KL divergence of counts[first:last], what lies outside moved to its ends, from the same in 256 levels."""
    inner = counts[first:last]
    wanted = inner.copy()
    wanted[0] += counts[:first].sum()
    wanted[-1] += counts[last:].sum()
    total = inner.sum()
    if total <= 0:
        return float("inf")
    level = np.arange(len(inner)) * LEVELS // len(inner)
    held = wanted > 0
    sums = np.bincount(level, inner, LEVELS)
    bins = np.bincount(level, held, LEVELS)
    # A level's count is spread over those of its bins that are not empty.
    coarse = np.where(held, (sums / np.maximum(bins, 1))[level], 0.0)
    p, q = wanted[held] / wanted.sum(), coarse[held] / coarse.sum()
    # What the level lost altogether would be infinitely far: a little is left to it.
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))
