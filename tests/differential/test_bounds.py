"""The comparison itself: what it catches, what it forgives, and that onnxruntime's known defects are still there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.differential import compare
from tests.differential.case import Case, load
from tests.differential.compare import Declined, Disagreement, check, instruction_sets
from tests.differential.reference import DEFECTS, Array, Reference, Step, session
from tests.differential.replay import replay
from tests.differential.shrink import shrink

RNG = np.random.default_rng(3)


def case(text: str, **feeds: Array) -> Case:
    graph = onnx.parser.parse_graph(text)
    return Case(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 24)]),
                (feeds,), {})


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def falsify(monkeypatch: pytest.MonkeyPatch, isa: str, change: float) -> None:
    """Lets one instruction set be off by `change` of the largest value in its first element."""
    original = compare.run

    def run(bundle: Path, name: str, feeds: Mapping[str, Array], threads: int = 1) -> dict[str, Array]:
        found = original(bundle, name, feeds, threads)
        for array in found.values() if name == isa else ():
            top = np.abs(array).max() if array.dtype.kind == "f" else 1 / change
            array.reshape(-1)[0] += array.dtype.type(change * top)
        return found

    monkeypatch.setattr(compare, "run", run)


@pytest.mark.parametrize("change", [0.0, 2e-6, 1e-3])
def test_an_answer_that_is_off_is_found(change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    product = case("g (float[5,7] x, float[7,3] w) => (float[5,3] y) { y = MatMul(x, w) }",
                   x=normal(5, 7), w=normal(7, 3))
    falsify(monkeypatch, instruction_sets()[-1], change)
    if change < 1e-5:
        assert check(product, threads=change == 0) is None
    else:
        with pytest.raises(Disagreement, match=f"output y on {instruction_sets()[-1]}: 1 of 15"):
            check(product)


@pytest.mark.parametrize("text", [
    "g (float[5,7] x) => (float[7,5] y) { y = Transpose(x) }",
    "g (float[5,7] x) => (int64[5,1] y) { y = ArgMax<axis = 1>(x) }",
])
def test_what_is_exact_must_be(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    falsify(monkeypatch, "scalar", 1e-6)
    with pytest.raises(Disagreement, match="allowed 0"):
        check(case(text, x=normal(5, 7)))


def test_a_graph_that_amplifies_errors_is_given_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference of two sums that nearly cancel, and a sign of it: neither says anything."""
    text = ("g (float[64] x) => (float d, bool s) { a = ReduceSum<keepdims = 0>(x) m = ReduceMean<keepdims = 0>(x)"
            " n = Constant<value = float {64.0}>() b = Mul(m, n) d = Sub(a, b) z = Constant<value = float {0.0}>()"
            " s = Less(z, d) }")
    reference = Reference(case(text).model)
    feeds = {"x": normal(64) + 100}
    wanted = reference.run(feeds)
    limits = compare._Limits(reference, feeds, wanted, reference.exact())
    limits.judge("d", "d", wanted["d"] + np.float32(2e-3), wanted["d"])
    limits.judge("s", "s", ~wanted["s"], wanted["s"])
    with pytest.raises(Disagreement):
        limits.judge("d", "d", wanted["d"] + np.float32(10), wanted["d"])


def test_a_refusal_is_none_of_these() -> None:
    found = check(case("g (float[5,5] x) => (float y) { y = Det(x) }", x=normal(5, 5)))
    assert isinstance(found, Declined)
    assert found.code == "E0301"


def test_a_case_is_cut_down_saved_and_replayed(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    whole = case("g (float[5,7] x, float[5,7] u) => (float[5,7] a, float[5,7] y, float[5,7] z) {"
                 " a = Relu(x) b = Exp(a) c = Erf(b) y = Add(c, u) z = Neg(y) }", x=normal(5, 7), u=normal(5, 7))
    small = shrink(whole, lambda c: c.operators()["Erf"] > 0)
    assert dict(small.operators()) == {"Erf": 1}
    np.testing.assert_allclose(small.feeds[0]["b"], np.exp(np.maximum(whole.feeds[0]["x"], 0)), rtol=1e-5)
    again = load(small.save("small", tmp_path))
    assert again.model.graph == small.model.graph
    np.testing.assert_array_equal(again.feeds[0]["b"], small.feeds[0]["b"])
    assert replay(tmp_path / "small.onnx")
    assert "scalar" in capfd.readouterr().out
    falsify(monkeypatch, "scalar", 1e-3)
    assert not replay(tmp_path / "small.onnx")


STILL_WRONG: Mapping[str, tuple[str, Array]] = {
    "MaxPool": ('y = MaxPool<kernel_shape = [3], dilations = [2], auto_pad = "SAME_UPPER">(x)', normal(1, 2, 9)),
    "MeanVarianceNormalization": ("y = MeanVarianceNormalization<axes = [1]>(x)", normal(2, 1, 3, 3)),
    "Resize": (('y = Resize<axes = [2], mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = '
                '"half_pixel_symmetric">(x, , , s)'), np.arange(3, dtype=np.float32).reshape(1, 1, 3)),
    "InstanceNormalization": ("y = InstanceNormalization<epsilon = 0.00001>(x, o, b)",
                              (normal(1, 2, 64) * 1e-3 + 50).astype(np.float32)),
}


@pytest.mark.parametrize("name", STILL_WRONG)
def test_known_defects_are_still_there(name: str) -> None:
    """A row that no version needs any more would hide what it covers."""
    text, x = STILL_WRONG[name]
    dims, constants = ",".join(map(str, x.shape)), "float[2] o = {1, 1}, float[2] b = {0, 0}, int64[1] s = {1}"
    model = case(f"g (float[{dims}] x) => (float[A,B] y) <{constants}> {{ {text} }}").model
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    constants = {"o": np.ones(2, np.float32), "b": np.zeros(2, np.float32), "s": np.ones(1, np.int64)}
    step = Step(model.graph.node[0], constants)
    assert step.defect({"x": x}) in DEFECTS
    right = step.run({"x": x})["y"]
    found = session(model).run(None, {"x": x})[0]
    assert found.shape != right.shape or not np.allclose(found, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())
    assert check(Case(model, ({"x": x},), {})) is None


def test_every_defect_is_shown() -> None:
    shown = set(STILL_WRONG) | {"MatMulInteger"}  # by CPUs with AVX2 and no VNNI alone
    assert {op for d in DEFECTS for op in d.operators[:1]} == shown
