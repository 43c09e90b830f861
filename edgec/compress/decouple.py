"""A dense convolution as a sum of r depthwise-separable pairs: the factors, and which rank each layer gets.

For input channel i the weights W[:, i] are a matrix [Co, taps]. A sum of r outer products p_s d_s of it is r filters of
the channel (depthwise) and r columns that mix them into the outputs (pointwise); at r = min(taps, Co) it is the
convolution itself, and it multiplies less as long as r (taps + Co) < taps Co. The truncated SVD is the best such sum
for white input. With the sums of the layer's real input, H = XᵀX over its windows, the outputs decide instead: the
columns are solved for by least squares against the convolution's outputs (all channels together, the mean apart, which
the bias takes), then filters and columns in turn. Every step is damped so that it never makes the error larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgec.compress.calibrate import Samples, Stream, cuts_of, groups_of, statistics
from edgec.compress.formats import Array
from edgec.compress.layers import Layer, find_layers
from edgec.compress.solvers import LinearStats
from edgec.ir.estimate import multiplications
from edgec.ir.model import const_tensor, input_of

Matrix = npt.NDArray[np.floating[Any]]
Progress = Callable[[int, int, str], None]

_SWEEPS = 2
# Relative to the mean eigenvalue of what is inverted: channels that are always zero leave nothing to solve for.
_DAMPING, _CHANNEL_DAMPING = 1e-7, 1e-6
_SHARES = 1 << 12  # of a budget, into which the costs of layers are rounded (up)


@dataclass(frozen=True)
class Pairs:
    """depthwise: float32 [r, Ci, *kernel]. pointwise: float32 [Co, r Ci], pair after pair. shift: float32 [Co], to be
    added to the bias. error: squared error of the outputs (without calibration: of the weights), relative to their
    energy about the mean."""

    depthwise: Array
    pointwise: Array
    shift: Array
    error: float

    @property
    def rank(self) -> int:
        return len(self.depthwise)


@dataclass(frozen=True)
class Candidate:
    """A convolution that fewer multiplications may do. macs: of one run of the model as it is; ranks: those that
    multiply less."""

    layer: Layer
    macs: int
    ranks: range

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(outputs, inputs, taps)"""
        window = self.layer.window
        assert window is not None  # found so
        taps = math.prod(window.kernel)
        return self.layer.rows, self.layer.columns // taps, taps

    def macs_at(self, rank: int) -> int:
        outputs, inputs, taps = self.sizes
        return self.macs // (self.layer.rows * self.layer.columns) * rank * inputs * (taps + outputs)


def candidates(model: ir.Model) -> tuple[list[Candidate], dict[str, str]]:
    """(the convolutions of a sorted graph that some rank makes cheaper, why each other one stays)."""
    found, kept = [], {}
    for layer in find_layers(model):
        if layer.kind != "conv" or layer.node is None:
            continue
        reason = layer.refused or _refusal(layer)
        outputs, taps = layer.rows, math.prod(layer.window.kernel) if layer.window is not None else 1
        # r (taps + Co) < taps Co
        most = min((taps * outputs - 1) // (taps + outputs), min(taps, outputs))
        if not reason and taps == 1:
            reason = "1 x 1: it is pointwise already"
        if not reason and most < 1:
            reason = f"no rank multiplies less: {taps} taps and {outputs} outputs"
        if reason:
            kept[layer.name] = reason
        else:
            found.append(Candidate(layer, multiplications(model, layer.node), range(1, most + 1)))
    return found, kept


def _refusal(layer: Layer) -> str:
    if len(layer.weight.uses()) != 1:
        return f"{len(layer.weight.uses())} nodes read its weight"
    bias = input_of(layer.node, 2) if layer.node is not None else None
    if bias is not None and const_tensor(bias) is None:
        return "its bias is computed"
    return ""


def fit_all(model: ir.Model, found: Sequence[Candidate], samples: Samples | None, work: Path, progress: Progress
            ) -> dict[str, list[Pairs]]:
    """Of each candidate the best pairs at each of its ranks; samples stream through the model as it is.

    Everything is kept in memory: about rank times the size of the layer for each. Raises EdgecError (E0301, E0502).
    """
    by_name = {c.layer.name: c for c in found}
    fits: dict[str, list[Pairs]] = {}

    def fit_layer(candidate: Candidate, stats: LinearStats | None) -> None:
        layer, window = candidate.layer, candidate.layer.window
        assert window is not None  # found so
        fitter = Fitter(layer.read(), window.kernel, stats)
        fits[layer.name] = [fitter.at(rank) for rank in candidate.ranks]
        progress(len(fits), len(found), layer.name)

    if samples is None:
        for candidate in found:
            fit_layer(candidate, None)
        return fits
    groups = groups_of(model.graph, (c.layer for c in found))
    stream = Stream(model, cuts_of(model.graph, groups), samples, samples.count, work, "decouple")
    for i, group in enumerate(groups):
        if i:
            stream.forget(i - 1)
        stream.advance(i, lambda: None)
        stats = statistics(stream, i, group)
        for layer in group.layers:
            fit_layer(by_name[layer.name], stats if stats.diag.any() else None)
    return fits


class Fitter:
    """One layer's pairs at any rank. weight: [Co, taps * Ci], channel innermost (`matrix_of`).

    stats: of the windows of the layer's input; None stands for white input, where the SVD is the answer.
    """

    def __init__(self, weight: Array, kernel: Sequence[int], stats: LinearStats | None = None) -> None:
        self._kernel = tuple(kernel)
        taps, inputs = math.prod(kernel), weight.shape[1] // math.prod(kernel)
        mean = np.zeros(weight.shape[1]) if stats is None or stats.sums is None else stats.sums / stats.count
        # Channels outermost from here on: what belongs to one lies together.
        self._mean = mean.reshape(taps, inputs).T.reshape(-1)
        w = weight.reshape(-1, taps, inputs).transpose(0, 2, 1).astype(np.float64)
        self._w, self._shape = w.reshape(len(w), -1), (inputs, taps)
        self._h: Matrix | None = None
        plain = np.broadcast_to(np.eye(taps), (inputs, taps, taps))
        self._plain = _channel_svd(w, plain)
        self._energy = float(np.sum(self._w * self._w))
        if stats is None:
            return
        moved = stats.h.reshape(taps, inputs, taps, inputs).transpose(1, 0, 3, 2).reshape(stats.h.shape)
        self._h = moved / stats.count - np.outer(self._mean, self._mean)
        self._wh = self._w @ self._h
        self._energy = float(np.sum(self._wh * self._w))
        own = np.stack([self._h[i * taps : (i + 1) * taps, i * taps : (i + 1) * taps] for i in range(inputs)])
        damping = _CHANNEL_DAMPING * np.trace(own, axis1=1, axis2=2) / taps + _floor(self._h)
        own += damping[:, None, None] * np.eye(taps)
        self._own_inverse = np.linalg.inv(own)
        self._weighted = _channel_svd(w, np.linalg.cholesky(own))

    def at(self, rank: int, *, refit: bool = True) -> Pairs:
        """The pairs of `rank`, at most min(taps, Co). refit: False keeps the plain SVD."""
        inputs, taps = self._shape
        if not 1 <= rank <= min(taps, len(self._w)):
            raise ValueError(f"rank {rank} of matrices {len(self._w)} x {taps}")
        best = self._measured(*_cut(self._plain, rank))
        if self._h is not None and refit:
            start = self._columns(self._measured(*_cut(self._weighted, rank)))
            # The channels together may want other filters than each of them alone.
            best = start if start.error <= best.error else self._columns(best)
            for _ in range(_SWEEPS):
                moved = self._measured(self._filters(best), best.columns)
                if moved.error > best.error:  # nothing but rounding is left to gain
                    break
                best = self._columns(moved)
        shift = (self._w - _dense(best.filters, best.columns)) @ self._mean if refit else np.zeros(len(self._w))
        columns = best.columns.reshape(-1, inputs, rank).transpose(0, 2, 1).reshape(len(self._w), -1)
        depthwise = best.filters.transpose(1, 0, 2).reshape(rank, inputs, *self._kernel)
        error = max(0.0, best.error)
        return Pairs(depthwise.astype(np.float32), columns.astype(np.float32), shift.astype(np.float32),
                     error / self._energy if self._energy > 0 else float(error > 0))

    def _measured(self, filters: Matrix, columns: Matrix) -> _Factors:
        """With H the error is |W|² - 2 W B Pᵀ + P BᵀB Pᵀ in its product, of matrices as small as P."""
        if self._h is None:
            left = self._w - _dense(filters, columns)
            return _Factors(filters, columns, None, None, float(np.sum(left * left)))
        inputs, taps = self._shape
        hb = (filters @ self._h.reshape(inputs, taps, -1)).reshape(filters.shape[0] * filters.shape[1], -1)
        gram, cross = (_spread(part, filters) for part in (hb, self._wh))
        error = self._energy - 2 * float(np.sum(cross * columns)) + float(np.sum((columns @ gram) * columns))
        return _Factors(filters, columns, gram, cross, error)

    def _columns(self, f: _Factors) -> _Factors:
        """The best columns for these filters, drawn a little towards those they had."""
        assert f.gram is not None
        assert f.cross is not None
        damping = _floor(f.gram)
        gram = (f.gram + f.gram.T) / 2
        right = f.cross + damping * f.columns
        columns: Matrix = np.linalg.solve(gram + damping * np.eye(len(gram)), right.T).T
        error = self._energy - 2 * float(np.sum(f.cross * columns)) + float(np.sum((columns @ gram) * columns))
        # Rounding alone can spoil a system that is nearly singular.
        return _Factors(f.filters, columns, f.gram, f.cross, error) if error <= f.error else f

    def _filters(self, f: _Factors) -> Matrix:
        """One channel's filters after the other, each the best for all the rest as it is then."""
        assert self._h is not None
        inputs, taps = self._shape
        filters = f.filters.copy()
        rank = filters.shape[1]
        overlap = f.columns.T @ f.columns
        left = f.columns.T @ (self._w - _dense(filters, f.columns))
        for i in range(inputs):
            rows, window = slice(i * rank, (i + 1) * rank), slice(i * taps, (i + 1) * taps)
            own = overlap[rows, rows]
            own = own + (_CHANNEL_DAMPING * float(np.trace(own)) / rank + 1e-30) * np.eye(rank)
            change = np.linalg.solve(own, left[rows] @ self._h[:, window] @ self._own_inverse[i])
            filters[i] += change
            left[:, window] -= overlap[:, rows] @ change
        return filters


@dataclass(frozen=True)
class _Factors:
    """filters: [Ci, r, taps]. columns: P [Co, Ci r]. gram: BᵀHB, cross: WHB, where B [Ci taps, Ci r] spreads the
    filters over the windows. error: squared, of the outputs."""

    filters: Matrix
    columns: Matrix
    gram: Matrix | None
    cross: Matrix | None
    error: float


_Svd = tuple[Matrix, Matrix]


def _channel_svd(w: Matrix, root: Matrix) -> _Svd:
    """(filters [Ci, n, taps], columns [Co, Ci, n]) of every channel's matrix, best for inputs of covariance root rootᵀ;
    filters have length one, so that a storage type of few bits serves both alike."""
    u, s, vt = np.linalg.svd(w.transpose(1, 0, 2) @ root, full_matrices=False)
    rows = np.linalg.solve(root.transpose(0, 2, 1), vt.transpose(0, 2, 1)).transpose(0, 2, 1)
    length = np.maximum(np.linalg.norm(rows, axis=2), 1e-30)
    return rows / length[:, :, None], (u * (s * length)[:, None]).transpose(1, 0, 2)


def _cut(full: _Svd, rank: int) -> _Svd:
    return full[0][:, :rank], full[1][:, :, :rank].reshape(len(full[1]), -1)


def _spread(rows: Matrix, filters: Matrix) -> Matrix:
    """rows [N, Ci taps] times B: [N, Ci r]."""
    inputs, _, taps = filters.shape
    by_channel = rows.reshape(len(rows), inputs, taps).transpose(1, 0, 2)
    return (by_channel @ filters.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(rows), -1)


def _dense(filters: Matrix, columns: Matrix) -> Matrix:
    """P Bᵀ: [Co, Ci taps]."""
    inputs, rank, _ = filters.shape
    by_channel = columns.reshape(len(columns), inputs, rank).transpose(1, 0, 2)
    return (by_channel @ filters).transpose(1, 0, 2).reshape(len(columns), -1)


def _floor(h: Matrix) -> float:
    return _DAMPING * float(np.trace(h)) / len(h) + 1e-30


def choose_ranks(options: Sequence[Sequence[tuple[float, float]]], budget: float) -> list[int] | None:
    """Of each layer the index of one (cost, error), so that the costs stay within `budget` and the errors add up to the
    least; None when even the cheapest ones do not fit.

    Relative errors of layers add up to first order. A knapsack with costs rounded up to parts of the budget: the
    budget is kept, and where the rounding alone leaves nothing, the cheapest ones are taken.
    """
    cheapest = [min(range(len(o)), key=lambda i: o[i]) for o in options]
    least = sum(o[i][0] for o, i in zip(options, cheapest, strict=True))
    if least > budget:
        return None
    room = budget - least
    unit = room / _SHARES if room > 0 else 1.0
    best = np.zeros(_SHARES + 1)
    taken: list[npt.NDArray[np.int64]] = []
    for layer, low in zip(options, cheapest, strict=True):
        totals = np.full((len(layer), _SHARES + 1), np.inf)
        for i, (cost, error) in enumerate(layer):
            parts = math.ceil((cost - layer[low][0]) / unit)
            if parts <= _SHARES:
                totals[i, parts:] = best[: _SHARES + 1 - parts] + error
        taken.append(totals.argmin(0))
        best = totals.min(0)
    chosen, at = [], _SHARES
    for layer, low, choice in zip(reversed(options), reversed(cheapest), reversed(taken), strict=True):
        i = int(choice[at])
        at -= math.ceil((layer[i][0] - layer[low][0]) / unit)
        chosen.append(i)
    return chosen[::-1]
