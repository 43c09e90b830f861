from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgec import decoupling
from edgec.calibration import CalibOptions
from edgec.compress.calibrate import Accumulator
from edgec.compress.decouple import Fitter, Pairs, candidates, choose_ranks
from edgec.compress.layers import Layer, find_layers
from edgec.compress.solvers import LinearStats
from edgec.decoupling import DecoupleOptions, decouple
from edgec.errors import EdgecError
from edgec.ir.estimate import multiplications
from edgec.ir.execute import random_inputs
from edgec.ir.passes import Context
from edgec.native.session import Model
from edgec.passes.compress.decouple_conv import DecoupleConv
from edgec.pipeline import _float_bundle, relative_error, run_passes
from tests.passes.harness import Array, evaluate, model, ops, reasons

RNG = np.random.default_rng(11)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def conv(x: str, outputs: int, inputs: int, kernel: tuple[int, ...], attributes: str = "", bias: bool = True,
         groups: int = 1) -> ir.Model:
    """One convolution of an image of shape `x`, behind a Relu."""
    window = ",".join(map(str, kernel))
    rank = 2 + len(kernel)
    unknown = ",".join(["1", *"nopq"[: rank - 1]])
    weights = {"w": f(outputs, inputs // groups, *kernel), **({"b": f(outputs)} if bias else {})}
    listed = f"float[{outputs},{inputs // groups},{window}] w" + (f", float[{outputs}] b" if bias else "")
    graph = model(f"g (float[{x}] x, {listed}) => (float[{unknown}] y) {{ a = Relu(x) "
                  f"y = Conv<group = {groups} {attributes}>(a, w{', b' if bias else ''}) }}", **weights)
    return run_passes(graph, [], Context()).model


def layer_of(graph: ir.Model) -> Layer:
    return find_layers(graph)[0]


def fitter(layer: Layer, stats: LinearStats | None = None) -> Fitter:
    assert layer.window is not None
    return Fitter(layer.read(), layer.window.kernel, stats)


def native(graph: ir.Model, feeds: dict[str, Array], folder: Path) -> dict[str, Array]:
    _float_bundle(graph, folder / "m.edgec")
    with Model(folder / "m.edgec") as opened, opened.session(threads=1) as session:
        return session.run(feeds)


def replaced(graph: ir.Model, pairs: Pairs) -> ir.Model:
    copy = graph.clone()
    copy.meta.update(graph.meta)
    return run_passes(copy, [DecoupleConv()], Context(decoupled={"w": pairs})).model


EXACT = [
    ("1,5,9,11", 7, 5, (3, 3), ", pads = [1,1,1,1]", True),
    ("1,3,12,10", 16, 3, (5, 5), ", strides = [2,2], pads = [2,1,0,2]", True),
    ("1,13,9,9", 5, 13, (3, 3), ", dilations = [2,2], pads = [2,2,2,2]", False),
    ("2,17,8,7", 31, 17, (2, 3), ", strides = [1,2]", True),
    ("1,6,21", 9, 6, (4,), ", strides = [3], pads = [1,2]", True),
    ("1,1,8,8", 3, 1, (7, 7), ", pads = [3,3,3,3]", False),
]


@pytest.mark.parametrize(("x", "outputs", "inputs", "kernel", "attributes", "bias"), EXACT)
def test_the_full_rank_is_the_convolution(x: str, outputs: int, inputs: int, kernel: tuple[int, ...], attributes: str,
                                          bias: bool, tmp_path: Path) -> None:
    graph = conv(x, outputs, inputs, kernel, attributes, bias)
    feeds = random_inputs(graph, seed=3)
    wanted = evaluate(graph, feeds)["y"]
    layer = layer_of(graph)
    full = min(int(np.prod(kernel)), outputs)
    pairs = fitter(layer, statistics(layer, feeds["x"])).at(full)
    made = replaced(graph, pairs)
    counted = ops(made)
    assert counted["Conv"] == 2
    assert relative_error(evaluate(made, feeds)["y"], wanted) < 1e-4
    assert relative_error(native(made, feeds, tmp_path)["y"], wanted) < 1e-4
    # One rank less is something else: the comparison can fail.
    assert relative_error(evaluate(replaced(graph, fitter(layer).at(full - 1)), feeds)["y"], wanted) > 1e-3


def statistics(layer: Layer, *images: Array) -> LinearStats:
    sums = Accumulator(layer.columns)
    for image in images:
        sums.add(layer.rows_of(np.maximum(image, 0)))
    return sums.stats("test")


def test_a_repeated_image_is_read_again_and_never_made(tmp_path: Path) -> None:
    graph = model("g (float[1,3,9,9] x, float[20,3,1,1] v, float[8,20,3,3] w) => (float[1,8,9,9] y)"
                  "{ a = Conv(x, v) y = Conv<pads = [1,1,1,1]>(a, w) }", v=f(20, 3, 1, 1), w=f(8, 20, 3, 3))
    pairs = fitter(find_layers(graph)[1]).at(3)
    made = replaced(graph, pairs)
    feeds = random_inputs(graph)
    assert ops(made)["Concat"] == 1
    _float_bundle(made, tmp_path / "m.edgec")
    with Model(tmp_path / "m.edgec") as opened, opened.session(threads=1, profile=True) as session:
        found = session.run(feeds)["y"]
        kernels = [call.kernel for call in session.profile()]
    assert [k for k in kernels if k.startswith(("dwconv2d", "concat"))] == ["dwconv2d"]
    assert relative_error(found, evaluate(made, feeds)["y"]) < 1e-5


def correlated(count: int, channels: int, size: int) -> list[Array]:
    """Images whose channels are mixtures of a few, smooth, and far from zero on average."""
    mix = RNG.standard_normal((channels, max(2, channels // 3)))
    found = []
    for _ in range(count):
        base = RNG.standard_normal((mix.shape[1], size + 1, size + 1))
        smooth = base[:, 1:, 1:] + base[:, :-1, 1:] + base[:, 1:, :-1]
        found.append((np.einsum("ck,kij->cij", mix, smooth) + 1.5)[None].astype(np.float32))
    return found


def outputs_error(graph: ir.Model, pairs: Pairs, images: list[Array]) -> tuple[float, float]:
    """(relative squared error about the mean, largest mean difference of a channel) of the calibration's outputs."""
    made = replaced(graph, pairs)
    wanted = np.concatenate([evaluate(graph, {"x": x})["y"] for x in images]).astype(np.float64)
    found = np.concatenate([evaluate(made, {"x": x})["y"] for x in images]).astype(np.float64)
    axes = (0, *range(2, wanted.ndim))
    energy = float(((wanted - wanted.mean(axes, keepdims=True)) ** 2).sum())
    return float(((found - wanted) ** 2).sum()) / energy, float(np.abs((found - wanted).mean(axes)).max())


def test_errors_fall_with_the_rank_and_a_refit_is_never_worse() -> None:
    graph = conv("1,12,10,10", 20, 12, (3, 3), ", pads = [1,1,1,1]")
    layer, images = layer_of(graph), correlated(6, 12, 10)
    made = fitter(layer, statistics(layer, *images))
    previous = 1.0
    for rank in range(1, 10):
        plain, best = made.at(rank, refit=False), made.at(rank)
        found, off = outputs_error(graph, best, images)
        assert best.error <= plain.error + 1e-12
        assert best.error <= previous
        previous = best.error
        # What the fitter says is what the graph does, and the bias keeps the means.
        assert found == pytest.approx(best.error, rel=1e-2, abs=1e-9)
        assert off < 1e-4
        if rank < 6:
            assert outputs_error(graph, plain, images)[0] > 1.5 * found
    assert previous < 1e-9


def test_dead_channels_and_few_samples_leave_finite_pairs() -> None:
    graph = conv("1,12,5,5", 20, 12, (3, 3))
    layer = layer_of(graph)
    image = correlated(1, 12, 5)[0]
    image[:, 4:7] = -1  # behind the Relu: nothing
    pairs = fitter(layer, statistics(layer, image)).at(2)
    assert all(np.isfinite(part).all() for part in (pairs.depthwise, pairs.pointwise, pairs.shift))
    assert pairs.error < 1e-3  # 9 windows are learnt by heart


def test_what_stays_and_why() -> None:
    graph = run_passes(model(
        "g (float[1,6,8,8] x, float[6,6,3,3] w, float[6,6,1,1] p, float[6,1,3,3] d, float[6,6,3,3] t, float[1,6,3,3] n,"
        "   float[6,6,3,3] s) => (float[1,1,4,4] y) { a = Conv<pads = [1,1,1,1]>(x, w) b = Conv(a, p)"
        "  c = Conv<group = 6, pads = [1,1,1,1]>(b, d) e = Conv<pads = [1,1,1,1]>(c, t)"
        '  h = Conv<pads = [1,1,1,1]>(e, t) k = Conv<auto_pad = "SAME_UPPER">(h, s)'
        ' z = Conv<strides = [2,2], pads = [1,1,1,1]>(k, n)  y = Relu(z) }',
        w=f(6, 6, 3, 3), p=f(6, 6, 1, 1), d=f(6, 1, 3, 3), t=f(6, 6, 3, 3), n=f(1, 6, 3, 3), s=f(6, 6, 3, 3)),
        [], Context()).model
    found, kept = candidates(graph)
    assert [(c.layer.name, list(c.ranks)) for c in found] == [("w", [1, 2, 3])]
    assert found[0].macs == 6 * 6 * 9 * 64
    assert found[0].macs_at(2) == 2 * 6 * (9 + 6) * 64
    assert {k: v.split(":")[0] for k, v in kept.items()} == {
        "p": "1 x 1", "d": "depthwise", "t": "2 nodes read its weight", "s": "its padding depends on the input's size",
        "n": "no rank multiplies less"}
    assert multiplications(graph) == 64 * 36 * (9 * 4 + 1) + 64 * 54 + 16 * 54
    # The pass itself refuses them, too.
    pairs = fitter(found[0].layer).at(2)
    report = run_passes(graph, [DecoupleConv()], Context(decoupled={"t": pairs, "s": pairs}))
    assert not report.records[0].modified
    assert reasons(report.records[0].rules).count("\n") == 1


@pytest.mark.parametrize("shape", [(6, 6, 5, 5), (5, 6, 3, 3)])
def test_pairs_of_another_model_are_refused(shape: tuple[int, ...]) -> None:
    graph = conv("1,6,8,8", 6, 6, (3, 3))
    other = fitter(layer_of(conv("1,6,8,8", shape[0], 6, shape[2:]))).at(1)
    with pytest.raises(EdgecError, match="E0002"):
        run_passes(graph, [DecoupleConv()], Context(decoupled={"w": other}))
    with pytest.raises(EdgecError, match="no such weight"):
        run_passes(graph, [DecoupleConv()], Context(decoupled={"v": other}))


def test_the_choice_is_the_best_within_the_budget() -> None:
    """Against all combinations; costs are whole parts of the budget, so that rounding them changes nothing."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        layers = [[(float(c), float(e)) for c, e in zip(rng.integers(1, 40, n), rng.random(n), strict=True)]
                  for n in rng.integers(1, 5, 5)]
        least = sum(min(c for c, _ in o) for o in layers)
        budget = least + 64.0
        picked = choose_ranks(layers, budget)
        assert picked is not None
        spent = [sum(o[i][k] for o, i in zip(layers, picked, strict=True)) for k in (0, 1)]
        best = min(sum(e for _, e in combination) for combination in itertools.product(*layers)
                   if sum(c for c, _ in combination) <= budget)
        assert spent[0] <= budget
        assert spent[1] == pytest.approx(best)
        assert choose_ranks(layers, least - 0.5) is None
        assert choose_ranks(layers, least) is not None


def network() -> ir.Model:
    weights = {"a": f(16, 4, 3, 3), "b": f(24, 16, 3, 3), "c": f(24, 24, 3, 3), "d": f(24, 24, 1, 1)}
    listed = ", ".join(f"float[{','.join(map(str, w.shape))}] {k}" for k, w in weights.items())
    return run_passes(model(
        f"g (float[1,4,16,16] x, {listed}) => (float[1,24,8,8] y) {{ p = Conv<pads = [1,1,1,1]>(x, a) q = Relu(p)"
        " r = Conv<pads = [1,1,1,1], strides = [2,2]>(q, b) s = Relu(r) t = Conv<pads = [1,1,1,1]>(s, c) u = Relu(t)"
        " y = Conv(u, d) }", **weights), [], Context()).model


def silent(done: int, total: int, what: str) -> None: ...


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, x=np.concatenate(correlated(5, 4, 16)))
    return str(path)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_budget_of_multiplications_is_kept(share: float, samples: str) -> None:
    graph = network()
    found, _ = candidates(network())
    made = decouple(graph, DecoupleOptions(f"macs={share}", samples), _float_bundle, timed=False, progress=silent)
    after = run_passes(graph, [DecoupleConv()], Context(decoupled=made.pairs)).model
    macs = made.report["macs"]
    assert multiplications(after) == macs["after"] <= share * macs["before"]
    assert {r["name"] for r in made.report["layers"]} | {r["name"] for r in made.report["kept"]} == set("abcd")
    assert made.report["calibration"] == CalibOptions(samples).identity()
    # A layer that could still be one rank better would not fit.
    spare = share * macs["before"] - macs["after"]
    steps = [c.macs_at(made.pairs[c.layer.name].rank + 1) - c.macs_at(made.pairs[c.layer.name].rank)
             for c in found if c.layer.name in made.pairs and made.pairs[c.layer.name].rank < max(c.ranks)]
    assert spare < min(steps) + share * macs["before"] / 1000


def test_budgets_that_cannot_be_kept() -> None:
    graph = network()
    for text in ("macs", "macs=0", "macs=1", "macs=x", "flops=0.5", "latency=nan"):
        with pytest.raises(EdgecError, match="E0002"):
            DecoupleOptions(text)
    with pytest.raises(EdgecError, match=r"at least macs=0\.\d+"):
        decouple(graph, DecoupleOptions("macs=0.05"), _float_bundle, timed=False, progress=silent)
    with pytest.raises(EdgecError, match="at least macs=") as told:
        decouple(graph, DecoupleOptions("macs=0.05"), _float_bundle, timed=False, progress=silent)
    least = told.value.wanted.split(",")[0].removeprefix("at least ")
    decouple(graph, DecoupleOptions(least), _float_bundle, timed=False, progress=silent)  # what is said is enough
    pointwise = model("g (float[1,4,5,5] x, float[6,4,1,1] w) => (float[1,6,5,5] y) { y = Conv(x, w) }",
                      w=np.ones((6, 4, 1, 1)))
    with pytest.raises(EdgecError, match="w: 1 x 1: it is pointwise already"):
        decouple(pointwise, DecoupleOptions("macs=0.9"), _float_bundle, timed=False, progress=silent)
    with pytest.raises(EdgecError, match="not this machine"):
        decouple(graph, DecoupleOptions("latency=0.5"), _float_bundle, timed=False, progress=silent)


def test_a_budget_of_latency_goes_by_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says what each rank takes: only layers that it calls faster are taken."""
    times = {"a": [1.0, 2.0, 2.0, 2.0], "b": [4.0, 1.0, 2.0, 3.0, 3.5, 3.9], "c": [4.0, 1.5, 2.5, 3.5, 4.5, 5.0]}

    def layer(self: Any, candidate: Any, versions: Any) -> list[float]:
        row = times[candidate.layer.name]
        return [row[0 if v is None else min(v.rank, len(row) - 1)] for v in versions]

    monkeypatch.setattr(decoupling._Clock, "layer", layer)
    monkeypatch.setattr(decoupling._Clock, "model", lambda self, graph: 10.0)
    made = decouple(network(), DecoupleOptions("latency=0.6"), _float_bundle, timed=True, progress=silent)
    assert {r["name"]: r["rank"] for r in made.report["layers"]} in ({"b": 2, "c": 1}, {"b": 1, "c": 2})
    assert sum(r["ms_after"] - r["ms"] for r in made.report["layers"]) <= -4 + 1e-9
    assert {r["name"]: r["reason"] for r in made.report["kept"]}["a"].startswith("no rank is faster than 1.000 ms")


def test_the_clock_measures(tmp_path: Path) -> None:
    graph = network()
    found, _ = candidates(graph.clone())
    clock = decoupling._Clock(_float_bundle, tmp_path, decoupling.info_of(graph))
    dense, first = clock.layer(found[2], [None, fitter(found[2].layer).at(1)])
    assert 0 < first < 1e3
    assert 0 < dense < 1e3
    assert clock.layer(found[2], [None]) == [dense]
    assert clock.model(graph) > 0
    # Large images run both halves of a pair in one call.
    large, _ = candidates(conv("1,32,60,60", 32, 32, (3, 3), ", pads = [1,1,1,1]"))
    dense, first, third = clock.layer(large[0], [None, *(fitter(large[0].layer).at(rank) for rank in (1, 3))])
    assert min(dense, first, third) > 0.01
    assert first < third
