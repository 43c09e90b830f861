"""Solvers against slow float64 references, their guarantees, and arguments that nobody should pass."""

from __future__ import annotations

import ctypes as c
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compress.formats import BitsSpec, PaletteSpec, Quantized, dequantize, dequantize_palette
from edgec.compress.solvers import LinearStats, Method, Tuning, native, quantize_matrix, quantize_palette
from edgec.compress.solvers.matrix import factor
from edgec.compress.solvers.palette import kmeans
from edgec.errors import EdgecError

Array = npt.NDArray[Any]

SPEC = st.builds(BitsSpec, st.integers(1, 8), st.sampled_from([32, 64, 128]), st.booleans())
HLQ = st.builds(BitsSpec, st.integers(1, 5), st.sampled_from([32, 64, 128]))
SIZE = st.integers(1, 200)
PLAIN = Tuning(weighted=False, refits=0, sweeps=0)


def weights(seed: int, n: int, k: int) -> Array:
    rng = np.random.default_rng(seed)
    rows = 10.0 ** rng.uniform(-3, 1, (n, 1))
    return ((rng.standard_t(4, (n, k)) + rng.normal(0, 0.5, (n, 1))) * rows).astype(np.float32)


def statistics(seed: int, k: int) -> LinearStats:
    """Correlated inputs with channels of very different size."""
    rng = np.random.default_rng(seed)
    mix = np.eye(k) + rng.standard_normal((k, k)) / np.sqrt(k)
    x = rng.standard_normal((2 * k + 8, k)) @ mix * np.exp(0.7 * rng.standard_normal(k))
    h = x.T @ x
    return LinearStats(h, h.diagonal().copy(), np.abs(x).max(0), len(x), x.sum(0))


def group_errors(w: Array, q: Quantized, d: Array | None = None) -> Array:
    """float64 [N, groups]: sums of d (w - q)^2."""
    squares = (w.astype(np.float64) - dequantize(q)) ** 2 * (1.0 if d is None else d)
    return np.add.reduceat(squares, np.arange(0, w.shape[1], q.spec.group), axis=1)


def output_error(w: Array, q: Array, h: Array) -> float:
    e = w.astype(np.float64) - q
    return float(np.einsum("nk,kl,nl->", e, h, e, optimize=True))


def damped(stats: LinearStats, damp: float = Tuning().damp) -> Array:
    h: Array = stats.h / stats.diag.mean()
    return h + damp * np.eye(len(h))


def levels_of(q: Quantized) -> Array:
    """float64 [N, groups, 2^bits]: every value that a group can take."""
    spec, codes = q.spec, np.arange(q.spec.levels)
    offset = q.offset.astype(np.float64)[..., None]
    if spec.uniform:
        return q.scale.astype(np.float64)[..., None] * (codes - offset)
    signs = 2.0 * (codes >> np.arange(spec.bits)[:, None] & 1) - 1
    return np.moveaxis(q.scale.astype(np.float64), 0, -1) @ signs + offset


def same(a: Quantized, b: Quantized) -> None:
    for name in ("codes", "scale", "offset"):
        x, y = getattr(a, name), getattr(b, name)
        assert np.array_equal(x.view(np.uint8), y.view(np.uint8)), name


# Each group by itself ---------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=80)
@given(SPEC, SIZE, SIZE, st.integers(0, 99), st.sampled_from(["rtn", "clip", "als"]))
def test_every_weight_takes_its_nearest_level(spec: BitsSpec, n: int, k: int, seed: int, method: str) -> None:
    w = weights(seed, n, k)
    q = quantize_matrix(w, spec, "clip" if spec.uniform and method == "als" else method)
    levels = np.repeat(levels_of(q), spec.group, axis=1)[:, :k]
    best = np.abs(levels - w[..., None]).min(-1)
    assert (np.abs(dequantize(q) - w) <= best + 1e-5 * np.abs(w).max(1, keepdims=True)).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.sampled_from([32, 64, 128]), SIZE, SIZE, st.integers(0, 99))
def test_rtn_is_the_textbook_formula(bits: int, group: int, n: int, k: int, seed: int) -> None:
    w, spec = weights(seed, n, k), BitsSpec(bits, group, True)
    q = quantize_matrix(w, spec, Method.RTN)
    starts, top = np.arange(0, k, group), spec.levels - 1
    low = np.minimum(np.minimum.reduceat(w, starts, axis=1), 0).astype(np.float64)
    high = np.maximum(np.maximum.reduceat(w, starts, axis=1), 0).astype(np.float64)
    scale = ((high - low) / top).astype(np.float16)
    assert np.allclose(q.scale.astype(np.float64), scale.astype(np.float64), rtol=2**-10, atol=2**-24)
    zero = np.rint(np.clip(-low / np.maximum(q.scale.astype(np.float64), 1e-9), 0, top))
    assert (np.abs(q.offset - zero) <= 1).all()
    assert (q.offset == zero).mean() > 0.9


def als_reference(w: Array, spec: BitsSpec, iterations: int) -> Array:
    """float64 values of the published solver for one row of one group [n]: from min-max, no weights."""
    codes = np.arange(spec.levels)
    design = np.stack([*(2.0 * (codes >> j & 1) - 1 for j in range(spec.bits)), np.ones(len(codes))])
    low, high = w.min(), w.max()
    step = (high - low) / (spec.levels - 1)
    p = np.array([*(step * 2.0 ** (j - 1) for j in range(spec.bits)), (low + high) / 2])
    for _ in range(iterations):
        chosen = np.abs(w[:, None] - p @ design).argmin(1)
        p = np.linalg.pinv(design[:, chosen].T) @ w
    value: Array = (p @ design)[np.abs(w[:, None] - p @ design).argmin(1)]
    return value


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_als_against_the_reference(bits: int) -> None:
    """The published steps in float64 end where ours do, and the best of ours is never above them by much."""
    w, spec = weights(bits, 64, 128), BitsSpec(bits)
    wanted = sum(float(((row - als_reference(row, spec, 10)) ** 2).sum() / (row**2).sum()) for row in w.astype(float))
    size = (w.astype(float) ** 2).sum(1, keepdims=True)
    identity = LinearStats(np.eye(128), np.ones(128), np.ones(128), 1, np.ones(128))
    published = (group_errors(w, quantize_matrix(w, spec, "published", identity)) / size).sum()
    assert abs(published - wanted) < 0.02 * wanted
    assert (group_errors(w, quantize_matrix(w, spec, "als")) / size).sum() < 1.001 * wanted


@settings(deadline=None, max_examples=80)
@given(HLQ, SIZE, SIZE, st.integers(0, 999), st.booleans(), st.booleans())
def test_hlq_is_never_worse_than_clipped_uniform(
    spec: BitsSpec, n: int, k: int, seed: int, weighted: bool, integer: bool
) -> None:
    """In the error of the group itself, but for what rounding HLQ's offset to float16 can cost."""
    w, stats = weights(seed, n, k), statistics(seed, k) if weighted else None
    d = stats.diag / stats.diag.max() if stats else np.ones(k)
    ours = quantize_matrix(w, spec, "als", stats)
    uniform = quantize_matrix(w, BitsSpec(spec.bits, spec.group, True), "clip", stats,
                              tuning=Tuning(integer_zero=integer))
    offset = np.abs(levels_of(uniform).mean(-1))
    total = np.add.reduceat(np.broadcast_to(d, w.shape), np.arange(0, k, spec.group), axis=1)
    allowed = (np.sqrt(group_errors(w, uniform, d)) + np.sqrt(total) * (offset * 2**-11 + 2**-24)) ** 2
    size = np.add.reduceat(w.astype(np.float64) ** 2 * d, np.arange(0, k, spec.group), axis=1)
    assert (group_errors(w, ours, d) <= allowed + 1e-6 * size).all()


@settings(deadline=None, max_examples=40)
@given(HLQ, st.integers(0, 9999), st.booleans(), st.booleans())
def test_hlq_is_never_worse_than_clipped_uniform_off_the_grid(
    spec: BitsSpec, seed: int, weighted: bool, integer: bool
) -> None:
    """Without any allowance but for sums in float32: groups of more weights than levels, on no grid beforehand."""
    k = 2 * max(spec.group, 2 * spec.levels)
    w, stats = weights(seed, 48, k), statistics(seed, k) if weighted else None
    d = stats.diag / stats.diag.max() if stats else np.ones(k)
    ours = quantize_matrix(w, spec, "als", stats)
    uniform = quantize_matrix(w, BitsSpec(spec.bits, spec.group, True), "clip", stats,
                              tuning=Tuning(integer_zero=integer))
    assert (group_errors(w, ours, d) <= group_errors(w, uniform, d) * (1 + 1e-5)).all()


@pytest.mark.parametrize("zero", [0, 2, 8, 15])
def test_weights_on_a_uniform_grid_already(zero: int) -> None:
    """The one exception, and that it is one. HLQ's levels are symmetric about c. Where all 16 levels of a uniform grid
    occur, only its middle, s (15 - 2 z) / 2, makes them exact, and that may take 15 bits: the nearest float16 is left.
    """
    step = np.float16(1.3974609375)  # all 11 bits are used, the last one is set
    w = (float(step) * (np.arange(128) % 16 - zero)).astype(np.float32)[None]
    uniform, ours = quantize_matrix(w, BitsSpec(4, 128, True), "clip"), quantize_matrix(w, BitsSpec(4), "als")
    assert group_errors(w, uniform) == 0
    middle = float(step) * (15 - 2 * zero) / 2
    around = np.float16(middle)
    if float(around) == middle:
        assert zero == 8
        assert group_errors(w, ours) == 0
        return
    # With the middle of 16 levels at c, the squares of their distances from the weights sum up to at least 128 times
    # the square of c's from the middle, whatever the scales are; the nearest float16 reaches that.
    least = min(abs(float(c) - middle) for c in (np.nextafter(around, np.float16(-99), dtype=np.float16), around,
                                                 np.nextafter(around, np.float16(99), dtype=np.float16)))
    assert 0 < least <= abs(middle) * 2**-11
    assert group_errors(w, ours) == pytest.approx(128 * least**2, rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(HLQ, SIZE, SIZE, st.integers(0, 99))
def test_more_steps_are_never_worse(spec: BitsSpec, n: int, k: int, seed: int) -> None:
    w = weights(seed, n, k)
    errors = [group_errors(w, quantize_matrix(w, spec, "als", tuning=Tuning(iterations=i))) for i in (0, 1, 3, 10, 30)]
    size = np.add.reduceat(w.astype(np.float64) ** 2, np.arange(0, k, spec.group), axis=1)
    for before, after in itertools.pairwise(errors):
        assert (after <= before + 1e-6 * size).all()
    assert errors[3].sum() < errors[0].sum() or k < 8


@pytest.mark.parametrize("spec", [BitsSpec(2, 32), BitsSpec(3, 64), BitsSpec(4, 128), BitsSpec(3, 32, True)], ids=str)
def test_weighting_lowers_the_weighted_error(spec: BitsSpec) -> None:
    w, stats = weights(5, 60, 200), statistics(5, 200)
    method = "clip" if spec.uniform else "als"
    plain, ours = quantize_matrix(w, spec, method), quantize_matrix(w, spec, method, stats)
    assert group_errors(w, ours, stats.diag).sum() < 0.97 * group_errors(w, plain, stats.diag).sum()


@pytest.mark.parametrize("spec", [BitsSpec(1, 32), BitsSpec(2, 32), BitsSpec(4, 64), BitsSpec(8, 32),
                                  BitsSpec(2, 32, True), BitsSpec(8, 64, True)], ids=str)
def test_dull_groups(spec: BitsSpec) -> None:
    """Zeros stay zero; a constant, two values, the smallest and the largest float16 are kept to float16's precision."""
    w = np.zeros((7, 96), np.float32)
    w[1], w[2], w[3] = 0.7, -3.25, 65504
    w[4] = np.where(np.arange(96) % 3, 2.0, 0.0)
    w[5], w[6] = 2.0**-24, np.float32(1e-30)
    stats = statistics(1, 96)
    for method, given_stats in (("rtn", None), ("clip", None), ("gptq", stats)):
        got = dequantize(quantize_matrix(w, spec, method, given_stats))
        assert (got[0] == 0).all()
        # Compensated, the rounding error of one column moves the next.
        tolerance = np.abs(w).max(1, keepdims=True) * (0.01 if method == "gptq" else 2**-10) + 2**-24 * spec.levels
        assert (np.abs(got - w) <= tolerance).all(), method


# Compensated ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 2, 5, 63, 64, 65, 130, 300])
def test_factor(k: int) -> None:
    stats = statistics(k, k)
    a, u = factor(stats, 0.01, 2)
    wanted = damped(stats, 0.01)
    assert np.allclose(a, wanted, rtol=1e-6, atol=1e-6)
    assert (np.tril(u, -1) == 0).all()
    assert np.allclose(u.astype(np.float64), np.linalg.cholesky(np.linalg.inv(wanted)).T, rtol=1e-4,
                       atol=1e-5 * np.abs(u).max())


def gptq_reference(w: Array, spec: BitsSpec, a: Array) -> Array:
    """Column by column in float64, min-max uniform levels taken at the start of every group."""
    u = np.linalg.cholesky(np.linalg.inv(a)).T
    t, out, top = w.astype(np.float64).copy(), np.empty(w.shape), spec.levels - 1
    for k in range(w.shape[1]):
        if k % spec.group == 0:
            part = t[:, k : k + spec.group]
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = ((high - low) / top).astype(np.float16).astype(np.float64)
            zero = np.rint(np.clip(-low / scale, 0, top))
        out[:, k] = scale * (np.clip(np.rint(t[:, k] / scale + zero), 0, top) - zero)
        t[:, k:] -= ((t[:, k] - out[:, k]) / u[k, k])[:, None] * u[k, k:]
    return out


@pytest.mark.parametrize(("bits", "group", "n", "k"),
                         [(2, 32, 37, 70), (3, 64, 33, 200), (4, 128, 5, 300), (8, 32, 1, 33)])
def test_gptq_against_the_reference(bits: int, group: int, n: int, k: int) -> None:
    w, stats, spec = weights(bits, n, k), statistics(bits, k), BitsSpec(bits, group, True)
    a = damped(stats)
    tuning = Tuning(weighted=False, refits=0, sweeps=0, fit=Method.RTN)
    got = dequantize(quantize_matrix(w, spec, "gptq", stats, tuning=tuning))
    wanted = gptq_reference(w, spec, a)
    # A weight on the other side of a tie changes all that follow in its row.
    assert np.isclose(got, wanted, rtol=1e-3, atol=1e-6).mean() > 0.85
    errors = np.array([[output_error(row[None], x[i][None], a) for x in (got, wanted)] for i, row in enumerate(w)])
    assert np.abs(np.log(errors[:, 0] / errors[:, 1])).mean() < 0.05
    rtn = output_error(w, dequantize(quantize_matrix(w, spec, "rtn")), a)
    assert errors[:, 0].sum() < rtn


@settings(deadline=None, max_examples=25)
@given(SPEC, st.integers(1, 70), st.integers(2, 200), st.integers(0, 99))
def test_compensation_descent_and_no_step_back(spec: BitsSpec, n: int, k: int, seed: int) -> None:
    w, stats = weights(seed, n, k), statistics(seed, k)
    a = damped(stats)
    zero, one, four = (
        [output_error(w[i : i + 1], dequantize(q)[i : i + 1], a) for i in range(n)]
        for q in (quantize_matrix(w, spec, "gptq", stats, tuning=Tuning(sweeps=s)) for s in (0, 1, 4))
    )
    noise = 2e-6 * np.array([output_error(row[None], 0 * row[None], a) for row in w])
    assert (np.array(one) <= np.array(zero) + noise).all()
    assert (np.array(four) <= np.array(one) + noise).all()


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_far_below_the_published_solver(bits: int, group: int) -> None:
    w, stats, spec = weights(3, 96, 384), statistics(3, 384), BitsSpec(bits, group)
    w /= np.abs(w).max(1, keepdims=True)
    error = {
        name: output_error(w, dequantize(quantize_matrix(w, spec, method, stats, tuning=tuning)), stats.h)
        for name, method, tuning in (
            ("published", "published", Tuning()), ("gptq", "gptq", PLAIN), ("refits", "gptq", Tuning(sweeps=0)),
            ("ours", "gptq", Tuning()),
        )
    }
    assert error["refits"] < error["gptq"] < error["published"]
    assert error["ours"] < 0.8 * error["published"]


def test_dead_columns_and_singular_statistics() -> None:
    """Inputs that are never or always the same: no NaN, and the live columns are served as well."""
    w, stats = weights(2, 20, 96), statistics(2, 96)
    h = stats.h.copy()
    h[10:14], h[:, 10:14] = 0, 0
    h[50], h[:, 50] = h[51], h[:, 51]
    h[50, 50] = h[51, 51]
    dead = LinearStats(h, h.diagonal().copy(), stats.absmax, stats.count, stats.sums)
    for spec in (BitsSpec(2, 32), BitsSpec(3, 64, True)):
        ours = output_error(w, dequantize(quantize_matrix(w, spec, "gptq", dead)), h)
        assert ours < 0.8 * output_error(w, dequantize(quantize_matrix(w, spec, "clip")), h)


# Same bits --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", [BitsSpec(1, 32), BitsSpec(2, 64), BitsSpec(3, 128), BitsSpec(6, 32),
                                  BitsSpec(2, 32, True), BitsSpec(8, 64, True)], ids=str)
def test_threads_and_instruction_sets_change_nothing(spec: BitsSpec) -> None:
    w, best = weights(9, 150, 133), native.library().edgec_solve_best_isa()
    for method in ("rtn", "clip") if spec.uniform else ("clip", "als", "published", "gptq"):
        def solve(threads: int, isa: int, method: str = method) -> Quantized:
            needs = method in ("published", "gptq")
            return quantize_matrix(w, spec, method, statistics(9, 133) if needs else None, threads=threads, isa=isa,
                                   tuning=Tuning(sweeps=2))
        first = solve(1, 0)
        for threads, isa in [(2, 0), (5, 0), *((2, isa) for isa in range(1, best + 1))]:
            same(first, solve(threads, isa))


# Palettes ---------------------------------------------------------------------------------------------------------
def cost(values: Array, weight: Array, centres: Array) -> float:
    return float((weight * ((values[:, None] - centres) ** 2).min(1)).sum())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 9999))
def test_kmeans_is_the_best_of_all_partitions(n: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weight = np.sort(rng.integers(-6, 7, n) * 1.5), rng.uniform(0.1, 3, n)
    best = np.inf
    for cuts in itertools.combinations(range(1, n), min(count, n) - 1):
        parts = itertools.pairwise([0, *cuts, n])
        centres = [np.average(values[a:b], weights=weight[a:b]) for a, b in parts]
        best = min(best, cost(values, weight, np.array(centres)))
    got = kmeans(values, weight, count)
    assert (np.diff(got) >= 0).all()
    assert cost(values, weight, got) <= best + 1e-9


def test_kmeans_stays_among_values_of_very_unequal_weights() -> None:
    rng = np.random.default_rng(0)
    for n in rng.integers(3, 40, 200).tolist():
        values, weight = np.sort(rng.normal(size=n)), 10.0 ** rng.uniform(-18, 0, n)
        got = kmeans(values, weight, int(rng.integers(2, 17)))
        assert (np.abs(got - np.clip(got, values[0], values[-1])) <= 1e-12).all(), got
    assert kmeans(np.array([0.0, 1, 6e4]), np.array([1e3, 1e3, 1e-14]), 3).tolist() == [0, 1, 6e4]


def test_kmeans_against_the_quadratic_program() -> None:
    rng = np.random.default_rng(0)
    values, weight = np.sort(rng.standard_t(3, 300)), rng.uniform(0.1, 3, 300)
    sums = [np.concatenate([[0], np.cumsum(weight * values**p)]) for p in range(3)]
    layer = np.array([0, *(sums[2][1:] - sums[1][1:] ** 2 / sums[0][1:])])
    for count in range(2, 18):
        layer = np.array([0.0, *(
            min(layer[i] + sums[2][t] - sums[2][i] - (sums[1][t] - sums[1][i]) ** 2 / (sums[0][t] - sums[0][i])
                for i in range(t)) for t in range(1, 301))])
        assert cost(values, weight, kmeans(values, weight, count)) == pytest.approx(layer[-1], rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 8), st.sampled_from([0, 1, 5, 16]), SIZE, SIZE, st.integers(0, 99))
def test_palette_takes_the_nearest_value(bits: int, rows: int, n: int, k: int, seed: int) -> None:
    w, spec = weights(seed, n, k), PaletteSpec(bits, rows)
    p = quantize_palette(w, spec)
    table = np.repeat(p.lut.astype(np.float64), rows or n, axis=0)[:n]
    best = np.abs(table[:, None, :] - w[..., None]).min(-1)
    assert np.allclose(np.abs(dequantize_palette(p) - w), best, atol=1e-6 * np.abs(w).max())


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_large_tables_are_as_good_as_the_distinct_values_allow(kind: str) -> None:
    """Above 65536 entries values are counted; against k-means over all of them."""
    w = np.random.default_rng(4).standard_t(5, (300, 256)).astype(np.float32)
    if kind == "f16":
        w = w.astype(np.float16).astype(np.float32)
    if kind == "bf16":
        w = (w.view(np.uint32) & 0xFFFF0000).view(np.float32)
    values = np.sort(w.reshape(-1)).astype(np.float64)
    wanted = cost(values, np.ones(len(values)), kmeans(values, np.ones(len(values)), 8))
    got = dequantize_palette(quantize_palette(w, PaletteSpec(3))).astype(np.float64)
    assert wanted * (1 - 1e-9) <= ((w - got) ** 2).sum() <= wanted * 1.0001


def test_a_large_matrix_of_one_value() -> None:
    """More values than the exact solver takes at once, and not one that 16 bits hold."""
    w = np.full((260, 260), 0.1, np.float32)
    np.testing.assert_array_equal(dequantize_palette(quantize_palette(w, PaletteSpec(4))), np.float16(0.1))


def test_compensated_palette() -> None:
    w, stats = weights(3, 40, 192), statistics(3, 192)
    for spec in (PaletteSpec(2, 1), PaletteSpec(4, 16), PaletteSpec(4), PaletteSpec(6, 7)):
        plain, ours = quantize_palette(w, spec), quantize_palette(w, spec, stats)
        again = quantize_palette(w, spec, stats, threads=3, isa=1)
        errors = [output_error(w, dequantize_palette(p), stats.h) for p in (plain, ours)]
        assert errors[1] < 0.7 * errors[0]
        assert np.array_equal(ours.indices, again.indices)


# Errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65536.0, -1e30])
@pytest.mark.parametrize("at", [(0, 0), (36, 69), (17, 40)])
def test_weights_that_float16_cannot_hold(value: float, at: tuple[int, int]) -> None:
    w, stats = weights(0, 37, 70), statistics(0, 70)
    w[at] = value
    for call in (
        lambda: quantize_matrix(w, BitsSpec(2, 32), "als", threads=3, where="model.w"),
        lambda: quantize_matrix(w, BitsSpec(4, 32, True), "gptq", stats, where="model.w"),
        lambda: quantize_palette(w, PaletteSpec(4), where="model.w"),
    ):
        with pytest.raises(EdgecError, match=r"E0002[\s\S]*model\.w[\s\S]*(nan|inf|65536|1\.0\d*e\+30)"):
            call()


def test_bad_requests() -> None:
    w, stats = weights(0, 8, 64), statistics(0, 64)
    hlq, uniform = BitsSpec(2, 32), BitsSpec(4, 32, True)
    zero = LinearStats(np.zeros((64, 64)), np.zeros(64), np.zeros(64), 1, np.zeros(64))
    broken = LinearStats(np.where(np.eye(64) > 0, stats.h, 1e9), stats.diag, stats.absmax, 1, stats.sums)
    for words, call in (
        ("als", lambda: quantize_matrix(w, uniform, "als")),
        ("published", lambda: quantize_matrix(w, uniform, "published", stats)),
        ("without calibration", lambda: quantize_matrix(w, hlq, "gptq")),
        ("nearest", lambda: quantize_matrix(w, hlq, "nearest")),
        ("32 inputs", lambda: quantize_matrix(w, hlq, "als", statistics(0, 32))),
        ("shape", lambda: quantize_matrix(w[0], hlq)),
        ("shape", lambda: quantize_matrix(w[:0], hlq)),
        ("positive", lambda: quantize_matrix(w, hlq, "gptq", zero)),
        ("positive", lambda: quantize_matrix(w, hlq, "gptq", broken)),
        ("vectors", lambda: quantize_palette(w, PaletteSpec(4, 0, 2))),
        ("diag", lambda: LinearStats(stats.h, stats.diag[:3], stats.absmax, 1, stats.sums)),
        ("diag", lambda: LinearStats(stats.h, stats.diag * np.nan, stats.absmax, 1, stats.sums)),
    ):
        with pytest.raises(EdgecError, match=words):
            call()


def test_hostile_arguments() -> None:
    """The C interface refuses; it neither crashes nor writes."""
    library = native.library()
    w, u = weights(0, 4, 40), np.eye(40, dtype=np.float32)
    outputs = [np.full((4, 40), 7, np.uint8), np.zeros((2, 4, 2), np.uint16), np.zeros((4, 2), np.uint16)]
    addresses = [native.pointer(a, a.dtype.type) for a in outputs]

    def groups(o: native.Options | None, w: int | None = w.ctypes.data, n: int = 4, k: int = 40,
               out: list[int | None] = addresses, d: int | None = None) -> int:
        return int(library.edgec_solve_groups(None if o is None else c.byref(o), w, n, k, d, *out))

    good = {"bits": 2, "group": 32}
    assert groups(native.options(**good)) == native.Status.OK
    outputs[0][:] = 7
    argument = native.Status.ARGUMENT
    for bad in ({"bits": 0}, {"bits": 9}, {"group": 0}, {"group": 48}, {"kind": -1}, {"kind": 3}, {"kind": 99},
                {"fit": 4}, {"fit": -1}, {"kind": 1, "fit": 2}, {"iterations": -1}, {"iterations": 1001}, {"frozen": 2},
                {"refits": -1}, {"sweeps": 101}, {"threads": 0}, {"threads": 257}, {"isa": 4}, {"isa": -1},
                {"rows_per_table": -1}, {"tables": w.ctypes.data}):
        assert groups(native.options(**{**good, **bad})) == argument, bad
    options = native.options(**good)
    assert groups(None) == groups(options, w=None) == groups(options, n=0) == groups(options, k=-5) == argument
    assert groups(options, n=1 << 40) == groups(options, n=1 << 31, k=1 << 31) == argument
    assert all(groups(options, out=[*addresses[:i], None, *addresses[i + 1 :]]) == argument for i in range(3))
    negative = np.full(40, -1, np.float32)
    assert groups(options, d=negative.ctypes.data) == argument
    short = native.options(**good)
    short.struct_size = 8
    assert groups(short) == argument

    def compensated(o: native.Options, u: int | None, h: int | None) -> int:
        return int(library.edgec_solve_compensated(c.byref(o), w.ctypes.data, 4, 40, None, u, h, *addresses))

    sweeping = native.options(**good, sweeps=1)
    assert compensated(options, None, None) == compensated(sweeping, u.ctypes.data, None) == argument
    flat = np.zeros((40, 40), np.float32)
    assert compensated(options, flat.ctypes.data, None) == native.Status.SINGULAR
    assert compensated(native.options(**good, kind=3), u.ctypes.data, None) == argument
    table = np.array([0, 1, np.nan, 3], np.float32)
    tabled = native.options(**good, kind=3, tables=table.ctypes.data)
    assert compensated(tabled, u.ctypes.data, None) == native.Status.VALUE
    table[2] = 2
    for hostile in (np.nan, np.inf, 1e38):  # else codes that nothing has written would index the table
        spoilt = u.copy()
        spoilt[0, 1:] = hostile
        for tried in (options, tabled):
            assert compensated(tried, spoilt.ctypes.data, None) == native.Status.SINGULAR, hostile
    assert (outputs[0] == 7).all()

    h = np.eye(40)
    for arguments in ((None, 40, 0.01, 1, 0), (h.ctypes.data, 0, 0.01, 1, 0), (h.ctypes.data, 1 << 40, 0.01, 1, 0),
                      (h.ctypes.data, 40, -1.0, 1, 0), (h.ctypes.data, 40, np.nan, 1, 0),
                      (h.ctypes.data, 40, 0.0, 0, 0)):
        assert library.edgec_solve_factor(*arguments, flat.ctypes.data, flat.ctypes.data) == argument
    values, ones, centres = np.array([0.0, 1, 2]), np.ones(3), np.zeros(4)
    for x, y, n, count in ((None, ones, 3, 2), (values, None, 3, 2), (values, ones, 0, 2), (values, ones, 3, 0),
                           (values, ones, 3, 257), (values[::-1].copy(), ones, 3, 2), (values, -ones, 3, 2)):
        assert library.edgec_solve_kmeans(native.pointer(x, np.float64), native.pointer(y, np.float64), n, count,
                                          centres.ctypes.data) == argument
    assert library.edgec_solve_kmeans((values * np.nan).ctypes.data, ones.ctypes.data, 3, 2, centres.ctypes.data) == (
        native.Status.VALUE)


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("EDGEC_LIBRARY", str(tmp_path / "libedgec.so"))
    with pytest.raises(EdgecError, match=r"E0007[\s\S]*make build"):
        quantize_matrix(weights(0, 4, 32), BitsSpec(2, 32))
    (tmp_path / native.library_path.__globals__["_NAME"]).write_bytes(b"not a library")
    with pytest.raises(EdgecError, match="E0007"):
        quantize_matrix(weights(0, 4, 32), BitsSpec(2, 32))
