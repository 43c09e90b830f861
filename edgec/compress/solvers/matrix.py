"""quantize_matrix: codes and float16 parameters of one weight. docs/quantization.md describes the methods."""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from edgec.compress.formats_bits import BitsSpec, Quantized
from edgec.compress.solvers import native
from edgec.compress.solvers.native import Fit, Kind
from edgec.compress.solvers.stats import LinearStats
from edgec.errors import EdgecError

Array = npt.NDArray[Any]


class Method(str, Enum):
    """How codes and parameters are found."""

    RTN = "rtn"  # min-max levels, round to nearest
    CLIP = "clip"  # evenly spaced levels over the best part of the range
    ALS = "als"  # HLQ: alternating least squares from both
    PUBLISHED = "published"  # HLQ, needs H: ALS from min-max, unweighted; codes frozen per group
    GPTQ = "gptq"  # needs H: column-wise compensation, exact refits, then coordinate descent


@dataclass(frozen=True)
class Tuning:
    """weighted: errors of single groups are weighted by diag(H). refits per group, sweeps over the matrix: GPTQ.
    damp: part of mean(diag H) that is added to H (PUBLISHED has its own).
    integer_zero: uniform zero points are integers 0..2^bits - 1, which ONNX can say; else any float16.
    fit: what starts GPTQ's groups, by default ALS or, uniform, CLIP. Defaults are the best we measured."""

    weighted: bool = True
    iterations: int = 10
    refits: int = 4
    sweeps: int = 4
    damp: float = 0.05
    integer_zero: bool = True
    fit: Method | None = None


BEST = Tuning()
_PUBLISHED_DAMP = 0.01
_FITS = {Method.RTN: Fit.MIN_MAX, Method.CLIP: Fit.CLIP, Method.ALS: Fit.ALS, Method.PUBLISHED: Fit.PUBLISHED}


def quantize_matrix(
    w: Array, spec: BitsSpec, method: Method | str | None = None, stats: LinearStats | None = None, *,
    threads: int | None = None, tuning: Tuning = BEST, isa: int = 0, where: str = "weight",
) -> Quantized:
    """float32 `w` [N, K] as codes of `spec`; the same bits for any number of threads and any CPU.

    method: by default GPTQ with stats, else ALS (uniform: CLIP). Raises EdgecError: E0002 for weights that are not
    finite or beyond float16, statistics of another K or not positive, a method that does not fit; E0007, no library.
    """
    chosen = _method(method, spec, stats)
    w = check_weight(w, stats, where)
    (n, k), groups = w.shape, spec.groups(w.shape[1])
    codes = np.empty((n, k), np.uint8)
    scale = np.empty((n, groups) if spec.uniform else (spec.bits, n, groups), np.float16)
    offset = np.empty((n, groups), np.float16)
    count = native.default_threads() if threads is None else threads
    options = native.options(
        kind=_kind(spec, tuning), bits=spec.bits, group=spec.group, fit=_fit(chosen, spec, tuning),
        iterations=tuning.iterations, frozen=int(chosen is Method.PUBLISHED), threads=count, isa=isa,
        refits=tuning.refits if chosen is Method.GPTQ else 0, sweeps=tuning.sweeps if chosen is Method.GPTQ else 0,
    )
    weights = None
    if stats is not None and tuning.weighted and chosen is not Method.PUBLISHED:
        weights = np.ascontiguousarray(stats.diag / max(float(stats.diag.max()), 1e-300), np.float32)
    pointers = (native.pointer(w, np.float32), n, k, native.pointer(weights, np.float32))
    results = (native.pointer(codes, np.uint8), native.pointer(scale, np.float16), native.pointer(offset, np.float16))
    if chosen in (Method.GPTQ, Method.PUBLISHED):
        assert stats is not None
        damp = _PUBLISHED_DAMP if chosen is Method.PUBLISHED else tuning.damp
        a, u = factor(stats, damp, count, isa, where)
        status = native.library().edgec_solve_compensated(
            c.byref(options), *pointers, native.pointer(u, np.float32), native.pointer(a, np.float32), *results)
    else:
        status = native.library().edgec_solve_groups(c.byref(options), *pointers, *results)
    native.raise_for(status, where, w)
    return Quantized(spec, codes, scale, offset)


def check_weight(w: Array, stats: LinearStats | None, where: str) -> Array:
    """`w` as contiguous float32 [N, K]. Raises EdgecError (E0002) for another rank or statistics of another K."""
    if w.ndim != 2 or not w.size:
        raise _bad(where, f"shape {w.shape}", "a matrix [N, K]")
    if stats is not None and len(stats.diag) != w.shape[1]:
        raise _bad(where, f"statistics of {len(stats.diag)} inputs", f"{w.shape[1]} inputs")
    return np.ascontiguousarray(w, np.float32)


def _method(method: Method | str | None, spec: BitsSpec, stats: LinearStats | None) -> Method:
    if method is None:
        return Method.GPTQ if stats is not None else Method.CLIP if spec.uniform else Method.ALS
    try:
        chosen = Method(method)
    except ValueError as e:
        raise _bad("method", repr(method), ", ".join(m.value for m in Method)) from e
    if spec.uniform and chosen in (Method.ALS, Method.PUBLISHED):
        raise _bad("method", f"{chosen.value} for {spec}", "rtn, clip or gptq for uniform codes")
    if stats is None and chosen in (Method.GPTQ, Method.PUBLISHED):
        raise _bad("method", f"{chosen.value} without calibration", "calibration statistics", "use rtn, clip or als")
    return chosen


def _kind(spec: BitsSpec, tuning: Tuning) -> Kind:
    if not spec.uniform:
        return Kind.HLQ
    return Kind.UNIFORM if tuning.integer_zero else Kind.UNIFORM_REAL


def _fit(method: Method, spec: BitsSpec, tuning: Tuning) -> Fit:
    if method is Method.GPTQ:
        return _FITS[tuning.fit or (Method.CLIP if spec.uniform else Method.ALS)]
    return _FITS[method]


_factors: WeakKeyDictionary[LinearStats, dict[tuple[float, int], tuple[Array, Array]]] = WeakKeyDictionary()


def factor(
    stats: LinearStats, damp: float, threads: int, isa: int = 0, where: str = "weight"
) -> tuple[Array, Array]:
    """(A, U), float32 [K, K]: A = H / mean(diag H) + damp I, U upper triangular with A^-1 = U^T U; kept with `stats`.

    Raises EdgecError (E0002) when A is not positive definite.
    """
    known = _factors.setdefault(stats, {})
    if (damp, isa) not in known:
        h = np.ascontiguousarray(stats.h, np.float64)
        a, u = np.empty(h.shape, np.float32), np.empty(h.shape, np.float32)
        native.raise_for(native.library().edgec_solve_factor(
            native.pointer(h, np.float64), len(h), damp, threads, isa, native.pointer(a, np.float32),
            native.pointer(u, np.float32)), where)
        known[damp, isa] = a, u
    return known[damp, isa]


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage="quantize", where=where, found=found, wanted=wanted, hint=hint)
