"""quantize_palette: tables by exact one-dimensional k-means, indices by nearest value or compensated."""

from __future__ import annotations

import ctypes as c
from typing import Any

import numpy as np
import numpy.typing as npt

from edgec.compress.formats import Dtype, from_storage, lossless_dtype, to_storage
from edgec.compress.formats_palette import PaletteSpec, PaletteTensor
from edgec.compress.solvers import native
from edgec.compress.solvers.matrix import BEST, Tuning, check_weight, factor
from edgec.compress.solvers.stats import LinearStats
from edgec.errors import EdgecError

Array = npt.NDArray[Any]

_DISTINCT = 1 << 16  # values that the exact solver takes at once: all that 16 bits can say


def quantize_palette(
    w: Array, spec: PaletteSpec, stats: LinearStats | None = None, *, threads: int | None = None, tuning: Tuning = BEST,
    isa: int = 0, where: str = "weight",
) -> PaletteTensor:
    """float32 `w` [N, K] as indices into float16 tables of `spec`; with stats weighted by diag(H) and compensated.

    The tables are the exact minimum for weights of at most 65536 distinct values per table, such as all 16-bit ones;
    others are first gathered in 65536 equal intervals. Raises EdgecError (E0002) as `quantize_matrix` does, and for
    palettes of vectors; E0007 without library.
    """
    if spec.vector > 1:
        raise EdgecError("E0002", stage="quantize", where=where, found=f"{spec}: a palette of vectors",
                         wanted="single values", hint=f"use palette{spec.bits}")
    w = check_weight(w, stats, where)
    n, k = w.shape
    column = stats.diag if stats is not None and tuning.weighted and stats.diag.max() > 0 else None
    lut = np.sort(fit_tables(w, spec, column, where).astype(np.float16))
    rows = spec.rows or n
    indices = np.empty((n, k), np.uint8)
    for table, levels in enumerate(lut.astype(np.float32)):
        part = slice(table * rows, (table + 1) * rows)
        indices[part] = np.searchsorted((levels[1:] + levels[:-1]) / 2, w[part])
    if stats is not None:
        count = native.default_threads() if threads is None else threads
        a, u = factor(stats, tuning.damp, count, isa, where)
        tables = lut.astype(np.float32)
        options = native.options(kind=native.Kind.TABLE, bits=spec.bits, threads=count, sweeps=tuning.sweeps, isa=isa,
                                 rows_per_table=spec.rows, tables=tables.ctypes.data)
        native.raise_for(native.library().edgec_solve_compensated(
            c.byref(options), native.pointer(w, np.float32), n, k, None, native.pointer(u, np.float32),
            native.pointer(a, np.float32), native.pointer(indices, np.uint8), None, None), where, w)
    return PaletteTensor(spec, indices, lut, k)


def fit_tables(w: Array, spec: PaletteSpec, column: Array | None = None, where: str = "weight") -> Array:
    """float64 [tables, 2^bits], ascending: the tables of single values for float32 `w` [N, K] with the least sum of
    column[k] (w - nearest value)^2; column: [K], None for ones. Exact as `quantize_palette` says, and not rounded.

    Raises EdgecError: E0002 for weights that are not finite or beyond float16, E0007 without library.
    """
    rows, weights = spec.rows or len(w), np.ones(w.shape[1]) if column is None else column
    tables = np.empty((spec.tables(len(w)), 1 << spec.bits))
    for table in range(len(tables)):
        part = w[table * rows : (table + 1) * rows]
        if not np.abs(part).max() <= native.LARGEST:
            native.raise_for(native.Status.VALUE, where, part)
        tables[table] = kmeans(*_histogram(part, weights), 1 << spec.bits, where)
    return tables


def kmeans(values: Array, weights: Array, count: int, where: str = "weight") -> Array:
    """float64 [count], ascending: the centres with the least sum of weight (value - nearest centre)^2, exactly.

    values float64 ascending, weights float64 > 0. Fewer distinct values than centres: the last centre repeats.
    """
    values, weights = np.ascontiguousarray(values, np.float64), np.ascontiguousarray(weights, np.float64)
    centres = np.empty(count, np.float64)
    native.raise_for(native.library().edgec_solve_kmeans(
        native.pointer(values, np.float64), native.pointer(weights, np.float64), len(values), count,
        native.pointer(centres, np.float64)), where)
    return centres


def _histogram(part: Array, column: Array) -> tuple[Array, Array]:
    """(ascending values, their weights > 0) of `part` [rows, K], an entry of column j weighing column[j]."""
    weights = np.broadcast_to(column / column.max(), part.shape).reshape(-1)
    flat = part.reshape(-1)
    dtype = lossless_dtype(flat)
    if flat.size <= _DISTINCT:
        values, index = np.unique(flat, return_inverse=True)
    elif dtype in (Dtype.F16, Dtype.BF16):
        index = to_storage(flat, dtype).view(np.uint16)
        values = np.arange(_DISTINCT, dtype=np.uint16)
    else:
        low, high = np.float64(flat.min()), np.float64(flat.max())
        steps = (_DISTINCT - 1) / (high - low) if high > low else 0.0
        index = ((flat - low) * steps).astype(np.int64)
        values = np.bincount(index, weights * flat, _DISTINCT)
    totals = np.bincount(index, weights, len(values))
    values, totals = values[totals > 0], totals[totals > 0]
    if values.dtype == np.uint16:
        values = from_storage(values.view(dtype.numpy), dtype)
    elif values.dtype == np.float64:
        values = values / totals
    order = np.argsort(values, kind="stable")
    return values[order].astype(np.float64), totals[order]
