"""The pass QuantizeStatic: the graph it makes against float64, in onnxruntime's integer kernels, and its edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgec.compress.qdq import quantize_weight
from edgec.compress.ranges import QParams
from edgec.compress.regions import Choice
from edgec.errors import EdgecError
from edgec.ir.execute import save
from edgec.ir.passes import Context
from edgec.passes.compress.quantize_static import QuantizeStatic
from tests.models.graphs_for_quantization import small_cnn
from tests.passes.harness import evaluate, model, ops
from tests.passes.static_graphs import Fed, drawn, quantized, reference, same_codes

# name -> (graph, shape of x, weights by shape)
GRAPHS: dict[str, tuple[str, tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "conv": (("g (float[2,5,9,7] x, float[6,5,3,3] w, float[6] b) => (float[2,6,5,4] y) "
             "{ y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b) }"), (2, 5, 9, 7), {"w": (6, 5, 3, 3), "b": (6,)}),
    "conv without bias": (("g (float[1,3,7,5] x, float[4,3,2,3] w) => (float[1,4,6,5] y) "
                          "{ y = Conv<pads=[0,1,0,1]>(x, w) }"), (1, 3, 7, 5), {"w": (4, 3, 2, 3)}),
    "dilated": (("g (float[1,3,9,9] x, float[4,3,3,3] w, float[4] b) => (float[1,4,5,5] y) "
                "{ y = Conv<dilations=[2,2]>(x, w, b) }"), (1, 3, 9, 9), {"w": (4, 3, 3, 3), "b": (4,)}),
    "depthwise": (("g (float[1,7,6,5] x, float[7,1,3,3] w, float[7] b) => (float[1,7,6,5] y) "
                  "{ y = Conv<group=7, pads=[1,1,1,1]>(x, w, b) }"), (1, 7, 6, 5), {"w": (7, 1, 3, 3), "b": (7,)}),
    "grouped": (("g (float[1,6,6,5] x, float[4,3,1,1] w, float[4] b) => (float[1,4,6,5] y) "
                "{ y = Conv<group=2>(x, w, b) }"), (1, 6, 6, 5), {"w": (4, 3, 1, 1), "b": (4,)}),
    "one axis": ("g (float[2,3,11] x, float[5,3,3] w, float[5] b) => (float[2,5,9] y) { y = Conv(x, w, b) }",
                 (2, 3, 11), {"w": (5, 3, 3), "b": (5,)}),
    "gemm": ("g (float[3,17] x, float[5,17] w, float[5] b) => (float[3,5] y) { y = Gemm<transB=1>(x, w, b) }",
             (3, 17), {"w": (5, 17), "b": (5,)}),
    "matmul": (("g (float[2,3,13] x, float[5,13] w, float[5] b) => (float[2,3,5] y) "
               "{ t = Transpose<perm=[1,0]>(w) m = MatMul(x, t) y = Add(m, b) }"), (2, 3, 13),
               {"w": (5, 13), "b": (5,)}),
    "matmul alone": (("g (float[2,3,13] x, float[5,13] w) => (float[2,3,5] y) "
                     "{ t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }"), (2, 3, 13), {"w": (5, 13)}),
    "relu": (("g (float[1,3,5,5] x, float[4,3,1,1] w, float[4] b) => (float[1,4,5,5] y) "
             "{ c = Conv(x, w, b) y = Relu(c) }"), (1, 3, 5, 5), {"w": (4, 3, 1, 1), "b": (4,)}),
    "residual": (("g (float[1,4,5,5] x, float[4,4,1,1] w, float[4,4,3,3] v) => (float[1,4,5,5] y) "
                 "{ a = Conv(x, w) c = Conv<pads=[1,1,1,1]>(a, v) s = Add(a, c) y = Relu(s) }"), (1, 4, 5, 5),
                 {"w": (4, 4, 1, 1), "v": (4, 4, 3, 3)}),
    "pools": (("g (float[1,3,8,8] x, float[4,3,1,1] w) => (float[1,4,1,1] y) "
              "{ c = Conv(x, w) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) "
              "a = AveragePool<kernel_shape=[3,3]>(m) y = GlobalAveragePool(a) }"), (1, 3, 8, 8), {"w": (4, 3, 1, 1)}),
    "mean": (("g (float[2,3,5,4] x, float[6,3,1,1] w, int64[2] axes) => (float[2,6] y) "
             "{ c = Conv(x, w) y = ReduceMean<keepdims=0>(c, axes) }"), (2, 3, 5, 4), {"w": (6, 3, 1, 1)}),
    "moves": (("g (float[2,3,5,4] x, float[6,3,1,1] w, int64[3] dims, float[5,6] v) => (float[2,20,5] y) "
              "{ c = Conv(x, w) r = Reshape(c, dims) t = Transpose<perm=[0,2,1]>(r) u = Transpose<perm=[1,0]>(v) "
              "y = MatMul(t, u) }"), (2, 3, 5, 4), {"w": (6, 3, 1, 1), "v": (5, 6)}),
    "concat": (("g (float[1,3,5,4] x, float[6,3,1,1] w, float[2,3,1,1] v) => (float[1,8,5,4] y) "
               "{ a = Conv(x, w) c = Conv(x, v) y = Concat<axis=1>(a, c) }"), (1, 3, 5, 4),
               {"w": (6, 3, 1, 1), "v": (2, 3, 1, 1)}),
    "resize": (("g (float[1,3,5,4] x, float[6,3,1,1] w, float[0] none, float[4] scales) => (float[1,6,10,12] y) "
               "{ c = Conv(x, w) y = Resize<mode=\"nearest\", coordinate_transformation_mode=\"asymmetric\", "
               "nearest_mode=\"floor\">(c, none, scales) }"), (1, 3, 5, 4), {"w": (6, 3, 1, 1)}),
}
_CONSTANTS: dict[str, Any] = {"axes": np.array([2, 3]), "dims": np.array([2, 6, 20]), "none": np.zeros(0),
                              "scales": np.array([1, 1, 2, 3.0])}


def graph(name: str, seed: int = 0) -> tuple[ir.Model, tuple[int, ...]]:
    text, shape, weights = GRAPHS[name]
    rng = np.random.default_rng(seed)
    arrays = {k: rng.standard_normal(s) / np.sqrt(np.prod(s[1:])) for k, s in weights.items()}
    return model(text, **arrays, **{k: v for k, v in _CONSTANTS.items() if f"] {k}" in text}), shape


def last_scale(made: ir.Model) -> float:
    node = made.graph.outputs[0].producer()
    assert node is not None
    assert node.op_type == "DequantizeLinear"
    scale = node.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    return float(scale.const_value.numpy())


@pytest.mark.parametrize("name", GRAPHS)
def test_numbers_are_those_of_the_rounded_graph_in_float64(name: str) -> None:
    made, shape = graph(name)
    float_graph, _ = graph(name)
    made, static = quantized(made, drawn(shape))
    (feeds,) = drawn(shape, 1, seed=9, spread=1.3).feeds  # some of it outside the ranges
    scale = last_scale(made)
    (found,), (wanted,) = evaluate(made, feeds, "onnxruntime").values(), reference(made, feeds).values()
    same_codes(found, wanted, scale)
    # And near the float model, as the report says.
    inside = static.samples.feed(0)
    (near,), (true,) = evaluate(made, inside, "onnxruntime").values(), evaluate(float_graph, inside).values()
    assert np.abs(near - true).max() < 0.05 * np.abs(true).max() + 2 * scale
    assert ops(made)["QuantizeLinear"]
    assert not static.report["kept"]


@pytest.mark.parametrize("name", GRAPHS)
def test_onnxruntime_takes_its_integer_kernels(name: str, tmp_path: Path) -> None:
    made, shape = graph(name)
    made, _ = quantized(made, drawn(shape))
    save(made, tmp_path / "q.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    # Kernels without VNNI add pairs of products of uint8 and int8 in 16 bits, which saturates; this asks for others.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    (feeds,) = drawn(shape, 1, seed=9).feeds
    (wanted,) = reference(made, feeds).values()
    same_codes(session.run(None, feeds)[0], wanted, last_scale(made), share=0.06)
    fused = {node.op_type for node in ir.load(tmp_path / "fused.onnx").graph}
    wanted_ops = {"gemm": {"QGemm"}, "matmul": {"QGemm"}, "matmul alone": {"QLinearMatMul"},
                  "residual": {"QLinearConv", "QLinearAdd"}}
    assert wanted_ops.get(name, {"QLinearConv"}) <= fused, fused
    assert not {"Conv", "Gemm", "MatMul", "Relu"} & fused


def test_every_value_is_rounded_once_and_movers_keep_the_scale() -> None:
    made, shape = graph("moves")
    made, static = quantized(made, drawn(shape))
    records = {r["name"]: r for r in static.report["activations"]}
    assert records["c"]["scale"] == records["r"]["scale"] == records["t"]["scale"] != records["y"]["scale"]
    assert ops(made)["QuantizeLinear"] == len(records) == 5


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (0.0, 1e-3), (-1e3, 1e3), (0.0, 1e3)])
def test_a_clip_goes_where_saturation_does_the_same(low: float, high: float) -> None:
    """At its bound, and inside bounds that no sample reached: the range saturates before them."""
    text = ("g (float[1,3,5,5] x, float[4,3,1,1] w, float low, float high) => (float[1,4,5,5] y) "
            "{ c = Conv(x, w) y = Clip(c, low, high) }")
    rng = np.random.default_rng(0)
    weights = {"w": 8 * rng.standard_normal((4, 3, 1, 1)), "low": low, "high": high}
    for spread in (1.0, 1e-3):
        made, static = quantized(model(text, **weights), drawn((1, 3, 5, 5), spread=spread))
        assert static.report["layers"][0]["folded"]
        assert ops(made)["Clip"] == 0
        (feeds,) = drawn((1, 3, 5, 5), 1, seed=2, spread=100.0).feeds
        (found,), (wanted,) = evaluate(made, feeds, "onnxruntime").values(), reference(made, feeds).values()
        same_codes(found, wanted, last_scale(made))
        assert low - 1e-6 <= found.min() < found.max() <= high * (1 + 1e-6)


def test_a_clip_that_saturation_is_not_stays() -> None:
    """The range reaches beyond the bound when another method than the samples chose it."""
    text = ("g (float[1,3,5,5] x, float[4,3,1,1] w, float low, float high) => (float[1,4,5,5] y) "
            "{ c = Conv(x, w) y = Clip(c, low, high) }")
    source = model(text, w=np.random.default_rng(0).standard_normal((4, 3, 1, 1)), low=0.5, high=0.75)
    made, static = quantized(source, drawn((1, 3, 5, 5)))
    # 0 is in every range, and below the lower bound.
    assert not static.report["layers"][0]["folded"]
    assert ops(made)["Clip"] == 1
    (feeds,) = drawn((1, 3, 5, 5), 1, seed=2).feeds
    (found,), (wanted,) = evaluate(made, feeds, "onnxruntime").values(), reference(made, feeds).values()
    same_codes(found, wanted, last_scale(made))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sum_with_more_dims_is_no_bias(swapped: bool) -> None:
    rng = np.random.default_rng(5)
    source = model("g (float[4,6] x, float[5,6] w, float[1,1,5] b) => (float[1,4,5] y) "
                   f"{{ t = Transpose<perm=[1,0]>(w) m = MatMul(x, t) y = Add({'b, m' if swapped else 'm, b'}) }}",
                   w=rng.standard_normal((5, 6)), b=rng.standard_normal((1, 1, 5)))
    samples = drawn((4, 6))
    wanted = evaluate(source, samples.feeds[0])["y"]
    made, _ = quantized(source, samples, correct=True)
    found = evaluate(made, samples.feeds[0], "onnxruntime")["y"]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=0.02 * float(np.abs(wanted).max()))


def test_others_stay_in_float() -> None:
    text = ("g (float[1,3,5,5] x, float[4,3,1,1] w, float[4,4,1,1] v) => (float[1,4,5,5] y) "
            "{ c = Conv(x, w) s = Sigmoid(c) m = Mul(c, s) y = Conv(m, v) }")
    rng = np.random.default_rng(0)
    made, _ = quantized(model(text, w=rng.standard_normal((4, 3, 1, 1)), v=rng.standard_normal((4, 4, 1, 1))),
                        drawn((1, 3, 5, 5)))
    sigmoid = next(n for n in made.graph if n.op_type == "Sigmoid")
    assert sigmoid.inputs[0] is not None
    before = sigmoid.inputs[0].producer()
    assert before is not None
    assert before.op_type == "DequantizeLinear"
    # x, c, m and y: the product is rounded for the convolution, the sigmoid is not.
    assert ops(made)["QuantizeLinear"] == 4
    (feeds,) = drawn((1, 3, 5, 5), 1, seed=2).feeds
    (found,), (wanted,) = evaluate(made, feeds, "onnxruntime").values(), reference(made, feeds).values()
    same_codes(found, wanted, last_scale(made))


def test_a_graph_output_in_the_middle_keeps_its_name() -> None:
    text = ("g (float[1,3,4,4] x, float[3,3,1,1] w, float[3,3,1,1] v) => (float[1,3,4,4] y, float[1,3,4,4] z) "
            "{ y = Conv(x, w) z = Conv(y, v) }")
    rng = np.random.default_rng(0)
    made, _ = quantized(model(text, w=rng.standard_normal((3, 3, 1, 1)), v=rng.standard_normal((3, 3, 1, 1))),
                        drawn((1, 3, 4, 4)))
    (feeds,) = drawn((1, 3, 4, 4), 1).feeds
    found, wanted = evaluate(made, feeds, "onnxruntime"), reference(made, feeds)
    assert list(found) == ["y", "z"]
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=0.1)


def test_constant_zero_and_one_sided_activations() -> None:
    text = "g (float[2,7] x, float[5,7] w, float[5] b) => (float[2,5] y) { y = Gemm<transB=1>(x, w, b) }"
    weights = {"w": np.zeros((5, 7)), "b": np.zeros(5)}
    zeros = Fed([{"x": np.zeros((2, 7), np.float32)}])
    made, static = quantized(model(text, **weights), zeros, "mse")
    assert static.report["activations"][0]["scale"] == 1.0
    assert not evaluate(made, zeros.feed(0), "onnxruntime")["y"].any()
    # A bias far above what the products are must not overflow 32 bits.
    weights["b"] = np.array([-3.0, -2.0, -1.0, -0.5, -1e4])
    weights["w"][0, 0] = 1e-12
    tiny = Fed([{"x": np.full((2, 7), 1e-9, np.float32)}])
    for method in ("minmax", "percentile", "entropy", "mse"):
        made, static = quantized(model(text, **weights), tiny, method)
        (y,) = [a for a in static.report["activations"] if a["name"] == "y"]
        assert (y["zero"], y["high"]) == (255, 0.0)
        found = evaluate(made, tiny.feed(0), "onnxruntime")["y"]
        np.testing.assert_allclose(found, np.broadcast_to(weights["b"], (2, 5)), atol=y["scale"] / 2)


def test_weights_are_symmetric_per_channel_and_biases_fit() -> None:
    rng = np.random.default_rng(5)
    weight, bias = rng.standard_normal((6, 3, 3, 3)), 1e6 * rng.standard_normal(6)
    weight[2], weight[3] = 0, 0
    bias[3] = 0
    found = quantize_weight(weight, bias, 1e-6, "w")
    assert found.codes.dtype == np.int8
    assert found.codes.min() >= -127
    assert found.bias is not None
    restored = found.bias.astype(np.float64) * (np.float32(1e-6) * found.scale)
    np.testing.assert_allclose(restored, bias, rtol=1e-6)
    assert found.scale[3] == 1.0
    plain = quantize_weight(weight, None, 1e-6, "w")
    assert plain.bias is None
    assert np.abs(plain.codes.reshape(6, -1)).max(1).tolist() == [127, 127, 0, 0, 127, 127]
    steps = plain.scale.reshape(-1, 1, 1, 1)
    assert (np.abs(plain.codes * steps - weight) <= steps / 2 * (1 + 1e-6)).all()
    with pytest.raises(EdgecError, match="infinity or NaN among the weights"):
        quantize_weight(np.full((1, 2), np.nan), None, 1.0, "w")


def test_ranges_hold_zero() -> None:
    assert QParams.of(-5.0, -1.0).zero == 255
    assert QParams.of(2.0, 3.0) == QParams(float(np.float32(3 / 255)), 0)
    assert QParams.of(0.0, 0.0) == QParams(1.0, 0)
    assert QParams.of(0.0, 1e-45).scale >= 2.0**-60
    middle = QParams.of(-1.0, 1.0)
    assert middle.zero in (127, 128)  # between the two
    assert middle.code(0.0) == middle.zero
    assert middle.code(3.4e38) > 255
    assert middle.code(-np.inf) < 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_numbers(bad: float) -> None:
    made, shape = graph("conv")
    samples = drawn(shape)
    samples.feeds[2]["x"][0, 0, 0, 0] = bad
    with pytest.raises(EdgecError, match="sample 2, value 'x'") as caught:
        quantized(made, samples)
    assert caught.value.code == "E0502"


def test_no_samples() -> None:
    with pytest.raises(EdgecError, match="no sample"):
        quantized(graph("conv")[0], Fed([]))


def test_overrides() -> None:
    names = ("*depthwise*=f32", "head=f32", "stem.weight=none")
    samples = drawn((1, 3, 12, 12))
    made, static = quantized(small_cnn(), samples, overrides=tuple(map(Choice.parse, names)))
    assert [k["name"] for k in static.report["kept"]] == ["stem.weight", "depthwise.weight", "head.weight"]
    assert {"narrow.weight", "point.weight", "spatial.weight"} <= {x["name"] for x in static.report["layers"]}
    assert "depthwise.weight" in made.graph.initializers
    # The last one that matches decides.
    _, static = quantized(small_cnn(), samples, overrides=tuple(map(Choice.parse, ("*=f32", "point=static8"))))
    assert [x["name"] for x in static.report["layers"]] == ["point.weight"]
    with pytest.raises(EdgecError, match="no such layer"):
        quantized(small_cnn(), samples, overrides=(Choice.parse("tail=f32"),))
    with pytest.raises(EdgecError, match="at least one layer"):
        quantized(small_cnn(), samples, overrides=(Choice.parse("*=f32"),))
    with pytest.raises(EdgecError, match="GLOB=f32"):
        Choice.parse("head=hlq4")


def test_nothing_without_being_asked_and_twice_the_same_bytes() -> None:
    made, shape = graph("residual")
    _, modified = QuantizeStatic().call(made, Context())
    assert not modified
    bytes_ = []
    for _ in range(2):
        made, _ = quantized(graph("residual")[0], drawn(shape), "entropy", correct=True, equalize=True)
        bytes_.append(ir.to_proto(made).SerializeToString(deterministic=True))
    assert bytes_[0] == bytes_[1]


def test_the_report_says_sizes_ranges_and_errors() -> None:
    made, static = quantized(small_cnn(), drawn((1, 3, 12, 12)))
    layers = {x["name"]: x for x in static.report["layers"]}
    stem = layers["stem.weight"]
    assert (stem["rows"], stem["columns"], stem["bytes"]) == (8, 27, 8 * 27 + 5 * 8)
    assert stem["folded"]
    assert (stem["low"], stem["zero"]) == (0.0, 0)
    assert layers["head.weight"]["bytes"] == 48 * 1152 + 9 * 48
    assert all(25 < x["sqnr_db"] < 60 for x in layers.values() if x["sqnr_db"] is not None)
    # The residual sum is one of them, and Flatten rounds nothing anew.
    assert layers["Add_6"]["op"] == "Add"
    assert layers["Flatten_8"]["sqnr_db"] is None or layers["Flatten_8"]["sqnr_db"] > 30
    stored = sum(v.const_value.nbytes for v in made.graph.initializers.values() if v.const_value is not None)
    assert stored < sum(x.get("bytes", 0) for x in layers.values()) + 1024


def test_what_cannot_be_integers_says_why() -> None:
    text = ("g (float[2,7] x, float[5,7] w, float[2,5] b, float[7] v) => (float[2,5] y, float[2] z) "
            "{ y = Gemm<transB=1>(x, w, b) z = MatMul(x, v) }")
    rng = np.random.default_rng(0)
    source = model(text, w=rng.standard_normal((5, 7)), b=rng.standard_normal((2, 5)), v=rng.standard_normal(7))
    with pytest.raises(EdgecError, match="its bias is not a constant per channel"):
        quantized(source, drawn((2, 7)))

