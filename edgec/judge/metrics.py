"""Numbers that say how far two sets of outputs are apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Distance:
    """How far `found` is from `wanted`.

    max_abs: largest difference. max_rel: that over the largest wanted magnitude. sqnr_db: signal power over error
    power in dB (inf when equal). cosine: of the flat vectors. top1: share of rows (last axis) whose largest element
    is at the same place; the first one counts among equals.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    cosine: float
    top1: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def distance(found: Array, wanted: Array) -> Distance:
    """Distance of two arrays of one shape, computed in float64; a NaN of `found` alone gives NaN."""
    if found.shape != wanted.shape:
        raise ValueError(f"shapes differ: {found.shape} and {wanted.shape}")
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if b.size == 0:
        return Distance(0.0, 0.0, math.inf, 1.0, 1.0)
    # Infinities at the same place agree; they have no difference to measure.
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, a - b)
    finite = np.where(np.isfinite(b), b, 0.0)
    max_abs, largest = float(np.abs(error).max()), float(np.abs(finite).max())
    signal, noise = float((finite * finite).sum()), float((error * error).sum())
    ratio = math.inf if noise == 0 else signal / noise
    sqnr = 10 * math.log10(ratio) if ratio > 0 or math.isnan(ratio) else -math.inf
    other = np.where(np.isfinite(a), a, 0.0)
    norms = math.sqrt(float((other * other).sum()) * signal)
    cosine = float((other * finite).sum()) / norms if norms > 0 else float(noise == 0)
    width = a.shape[-1] if a.ndim else 1
    rows_a, rows_b = a.reshape(-1, width), b.reshape(-1, width)
    top1 = float((rows_a.argmax(-1) == rows_b.argmax(-1)).mean())
    relative = max_abs / largest if largest > 0 else (0.0 if max_abs == 0 else math.inf)
    return Distance(max_abs, relative, sqnr, cosine, top1)


def log_softmax(logits: Array) -> Array:
    """Row-wise log softmax of [..., vocab] in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def negative_log_likelihood(logits: Array, tokens: Array) -> float:
    """Sum of -log p(tokens[i + 1] | tokens[..i]) in nats; logits [T, vocab] of the same T tokens."""
    table = log_softmax(logits[:-1])
    return float(-table[np.arange(len(tokens) - 1), tokens[1:]].sum())
