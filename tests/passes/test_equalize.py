"""The pass Equalize: the function stays, the ranges of channels become equal, bounds are respected."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.ranges import Method
from edgec.compress.static import Static
from edgec.ir.passes import Context
from edgec.passes.compress.equalize import Equalize
from edgec.pipeline import run_passes
from tests.passes.harness import Array, evaluate, model, reasons
from tests.passes.static_graphs import Fed, drawn

CHAIN = ("g (float[1,3,9,7] x, float[8,3,1,1] w, float[8] b, float[8,1,3,3] d, float[8] e, float[5,8,1,1] v, "
         "float low, float high) => (float[1,5,9,7] y) {{ c = Conv(x, w, b) r = {act}(c{bounds}) "
         "f = Conv<group=8, pads=[1,1,1,1]>(r, d, e) s = {act}(f{bounds}) y = Conv(s, v) }}")


def chain(act: str, seed: int = 0, high: float = 6.0) -> ir.Model:
    """Pointwise, depthwise, pointwise; channels of very different size."""
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-1.5, 0.7, 8)
    text = CHAIN.format(act=act, bounds=", low, high" if act == "Clip" else "")
    if act == "nothing":
        text = text.replace("r = nothing(c) ", "").replace("s = nothing(f) ", "").replace("(r, d", "(c, d").replace(
            "(s, v", "(f, v")
    return model(text, w=rng.standard_normal((8, 3, 1, 1)) * spread[:, None, None, None],
                 b=0.3 * rng.standard_normal(8) * spread, d=rng.standard_normal((8, 1, 3, 3)),
                 e=0.3 * rng.standard_normal(8), v=rng.standard_normal((5, 8, 1, 1)), low=0.0, high=high)


def equalized(made: ir.Model, samples: Fed) -> tuple[ir.Model, bool, str]:
    ctx = Context(static=Static(samples, Method("minmax"), equalize=True))
    report = run_passes(made, (Equalize(),), ctx)
    return report.model, report.records[0].modified, reasons(report.records[0].rules)


def array(made: ir.Model, name: str) -> Array:
    value = made.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


@pytest.mark.parametrize("act", ["Relu", "nothing"])
def test_the_function_stays_for_any_input(act: str) -> None:
    made, modified, _ = equalized(chain(act), drawn((1, 3, 9, 7)))
    assert modified
    for seed in range(3):
        (feeds,) = drawn((1, 3, 9, 7), 1, seed=10 + seed, spread=5.0).feeds
        found, wanted = evaluate(made, feeds)["y"], evaluate(chain(act), feeds)["y"]
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_ranges_become_equal_on_either_side() -> None:
    made, _, _ = equalized(chain("Relu"), drawn((1, 3, 9, 7)))
    before = chain("Relu")
    rows = [np.abs(array(m, "w")).reshape(8, -1).max(1) for m in (before, made)]
    filters = [np.abs(array(m, "d")).reshape(8, -1).max(1) for m in (before, made)]
    columns = [np.abs(array(m, "v")).max((0, 2, 3)) for m in (before, made)]
    assert np.abs(np.log(rows[0] / filters[0])).max() > 1
    np.testing.assert_allclose(rows[1], filters[1], rtol=0.01)
    np.testing.assert_allclose(filters[1], columns[1], rtol=0.01)


def test_a_bound_moves_no_channel_that_reaches_it() -> None:
    samples = drawn((1, 3, 9, 7), 6)
    before = chain("Clip")
    made, modified, _ = equalized(chain("Clip"), samples)
    assert modified
    for feeds in samples.feeds:
        found, wanted = evaluate(made, feeds)["y"], evaluate(before, feeds)["y"]
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    scale = np.abs(array(before, "w")).reshape(8, -1).max(1) / np.abs(array(made, "w")).reshape(8, -1).max(1)
    raw = np.max([np.einsum("nchw,oc->nohw", f["x"], array(before, "w")[:, :, 0, 0]).max((0, 2, 3)) for f in
                  samples.feeds], axis=0) + array(before, "b")
    reaching = raw * 1.1 >= 6
    assert 0 < reaching.sum() < 8
    np.testing.assert_allclose(scale[reaching], 1.0)
    assert (np.abs(scale[~reaching] - 1) > 1e-3).any()
    # The others stay a tenth below the bound.
    assert (raw[~reaching] / scale[~reaching] < 6 / 1.1 * (1 + 1e-5)).all()


def test_a_bound_that_is_not_respected_changes_the_function() -> None:
    """The twin of the test above: scaled as behind a Relu, the clip cuts elsewhere."""
    samples = drawn((1, 3, 9, 7), 6)
    free, _, _ = equalized(chain("Relu"), samples)
    clipped = chain("Clip")
    for name in ("w", "b", "d", "e", "v"):
        clipped.graph.initializers[name].const_value = free.graph.initializers[name].const_value
    feeds = samples.feeds[0]
    found, wanted = evaluate(clipped, feeds)["y"], evaluate(chain("Clip"), feeds)["y"]
    assert np.abs(found - wanted).max() > 1e-2 * np.abs(wanted).max()


def test_what_is_declined() -> None:
    text = ("g (float[2,7] x, float[5,7] w, float[5,5] v, float[3,5] u, float[3,5] t) => (float[2,3] y, float[2,3] z) "
            "{ a = Gemm<transB=1>(x, w) b = Gemm<transB=1>(a, v) s = Sigmoid(b) y = Gemm<transB=1>(s, u) "
            "z = Gemm<transB=1>(a, t) }")
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((5, 7)), "v": rng.standard_normal((5, 5)), "u": rng.standard_normal((3, 5)),
               "t": rng.standard_normal((3, 5))}
    _, modified, why = equalized(model(text, **weights), drawn((2, 7)))
    assert not modified
    assert "is read by others, too" in why
    shared = ("g (float[2,5] x, float[5,5] w) => (float[2,5] y) "
              "{ a = Gemm<transB=1>(x, w) y = Gemm<transB=1>(a, w) }")
    _, modified, why = equalized(model(shared, w=rng.standard_normal((5, 5))), drawn((2, 5)))
    assert not modified
    assert "is shared" in why


def test_linears_of_sequences() -> None:
    text = ("g (float[2,3,7] x, float[6,7] w, float[6] b, float[4,6] v) => (float[2,3,4] y) "
            "{ t = Transpose<perm=[1,0]>(w) m = MatMul(x, t) a = Add(b, m) r = Relu(a) u = Transpose<perm=[1,0]>(v) "
            "y = MatMul(r, u) }")
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((6, 7)) * 10.0 ** rng.uniform(-2, 1, (6, 1)), "b": rng.standard_normal(6),
               "v": rng.standard_normal((4, 6))}
    samples = drawn((2, 3, 7))
    made, modified, _ = equalized(model(text, **weights), samples)
    assert modified
    (feeds,) = drawn((2, 3, 7), 1, seed=5).feeds
    found, wanted = evaluate(made, feeds)["y"], evaluate(model(text, **weights), feeds)["y"]
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    np.testing.assert_allclose(np.abs(array(made, "w")).max(1), np.abs(array(made, "v")).max(0), rtol=0.01)
