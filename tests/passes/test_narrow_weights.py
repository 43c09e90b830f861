from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.passes import Context
from edgec.passes.lower.narrow_weights import OPTION, NarrowWeights
from edgec.pipeline import run_passes
from tests.passes.harness import Array, evaluate, model, ops

RNG = np.random.default_rng(14)
HALF = RNG.standard_normal((32, 48)).astype(np.float16).astype(np.float32)
BRAIN = RNG.standard_normal((32, 48)).astype(ml_dtypes.bfloat16).astype(np.float32)
FULL = RNG.standard_normal((32, 48)).astype(np.float32)


def narrowed(weights: Array, choice: str) -> ir.Model:
    graph = model("g (float[3,48] x, float[32,48] w, float[32] b) => (float[3,32] y) { y = Gemm<transB = 1>(x, w, b) }",
                  w=weights, b=np.ones(32))
    return run_passes(graph, [NarrowWeights(), NarrowWeights()], Context(options={OPTION: choice})).model


def kind(graph: ir.Model) -> ir.DataType | None:
    return graph.graph.initializers["w.16"].dtype if "w.16" in graph.graph.initializers else None


@pytest.mark.parametrize(("weights", "choice", "wanted"), [
    (HALF, "auto", ir.DataType.FLOAT16), (BRAIN, "auto", ir.DataType.BFLOAT16), (FULL, "auto", None),
    (HALF, "f32", None), (FULL, "f16", ir.DataType.FLOAT16), (FULL, "bf16", ir.DataType.BFLOAT16)])
def test_the_type_chosen(weights: Array, choice: str, wanted: ir.DataType | None) -> None:
    graph = narrowed(weights, choice)
    assert kind(graph) == wanted
    assert ops(graph)["Cast"] == (0 if wanted is None else 1)
    x = RNG.standard_normal((3, 48)).astype(np.float32)
    found = evaluate(graph, {"x": x}, "onnxruntime")["y"]
    rounded = weights if wanted is None else weights.astype(wanted.numpy()).astype(np.float32)
    assert np.allclose(found, x.astype(np.float64) @ rounded.T + 1, rtol=1e-5, atol=1e-5)


def test_a_value_too_large_for_the_type_is_refused() -> None:
    graph = narrowed(FULL * np.float32(1e6), "f16")
    tensor = graph.graph.initializers["w.16"].const_value
    assert tensor is not None
    with pytest.raises(EdgecError, match="E0002"):
        tensor.numpy()


def test_small_and_other_constants_stay() -> None:
    graph = model("g (float[1,48] x, float[32,48] t) => (float[32,48] y) { y = Add(x, t) }", t=HALF)
    report = run_passes(graph, [NarrowWeights()], Context(options={OPTION: "f16"}))
    assert not report.records[0].modified


@pytest.mark.parametrize("owner", ["outer", "body", "both"])
def test_weights_of_a_loop(owner: str) -> None:
    """Read in the body alone, whichever graph has it, or in the body and by a node behind the loop."""
    behind = "y = MatMul(s, w)" if owner == "both" else "y = Identity(s)"
    graph = model("""g (float[3,48] x, float[48,48] w, int64 n, bool c) => (float[3,48] y) {
        s = Loop(n, c, x) <body = b (int64 i, bool k, float[3,48] v) => (bool o, float[3,48] t) {
            o = Identity(k) h = MatMul(v, w) t = Tanh(h) }> """ + behind + " }", w=RNG.standard_normal((48, 48)),
                  n=np.array(3), c=np.array(True))
    if owner == "body":
        body = next(a.as_graph() for node in graph.graph for a in node.attributes.values() if a.name == "body")
        outer = graph.graph.initializers.pop("w")
        inner = ir.Value(name="w", const_value=outer.const_value, type=outer.type, shape=outer.shape)
        outer.replace_all_uses_with(inner)
        body.register_initializer(inner)
    feeds = {"x": RNG.standard_normal((3, 48)).astype(np.float32)}
    before = evaluate(graph, feeds, "onnxruntime")["y"]
    report = run_passes(graph, [NarrowWeights(), NarrowWeights()], Context(options={OPTION: "f16"}))
    assert [record.modified for record in report.records] == [True, False]
    after = evaluate(report.model, feeds, "onnxruntime")["y"]
    assert 0 < np.abs(after - before).max() < 2e-2  # rounded to float16
    assert "w" not in report.model.graph.initializers
