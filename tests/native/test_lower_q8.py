"""QDQ graphs run in integers of 8 bits: against onnxruntime and float64, operator by operator and as whole networks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.compress.formats import Array
from edgec.ir.execute import Runner
from edgec.native.lower_q8 import pack_pairs
from edgec.pipeline import CompileOptions, prepare_model

KINDS = {"u8": (np.uint8, TensorProto.UINT8), "s8": (np.int8, TensorProto.INT8)}
FLOAT = {"conv2d", "dwconv2d", "linear", "matmul", "binary", "pool2d", "reduce"}


class Net:
    """A QDQ graph: `q` rounds a value, `weight` and `bias` add constants of codes."""

    def __init__(self, shape: tuple[int, ...], kind: str, seed: int) -> None:
        self.rng, self.kind = np.random.default_rng(seed), kind
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.shape, self.count = shape, 0
        self.scale: dict[str, float] = {}

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def const(self, array: Array) -> str:
        name = self.name()
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = self.name()
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n_{out}", **attributes))
        return out

    def q(self, value: str, scale: float, zero: int) -> str:
        """`value` rounded and back; zero: of u8."""
        dtype, _ = KINDS[self.kind]
        args = (self.const(np.float32(scale)), self.const(dtype(zero - (128 if self.kind == "s8" else 0))))
        out = self.op("DequantizeLinear", self.op("QuantizeLinear", value, *args), *args)
        self.scale[out] = scale
        return out

    def weight(self, shape: tuple[int, ...], axis: int | None, most: int = 127) -> tuple[str, Array]:
        codes = self.rng.integers(-most, most + 1, shape).astype(np.int8)
        scales = self.rng.uniform(0.002, 0.02, () if axis is None else shape[axis]).astype(np.float32)
        args = (self.const(codes), self.const(scales), self.const(np.zeros(scales.shape, np.int8)))
        attributes = {} if axis is None else {"axis": axis}
        return self.op("DequantizeLinear", *args, **attributes), scales

    def bias(self, x: str, scales: Array, n: int) -> str:
        unit = np.broadcast_to(np.float32(self.scale[x]) * scales, (n,)).astype(np.float32)
        codes = self.rng.integers(-4000, 4000, n).astype(np.int32)
        zero = self.const(np.zeros(n, np.int32))
        return self.op("DequantizeLinear", self.const(codes), self.const(unit), zero, axis=0)

    def conv(self, x: str, co: int, ci: int, k: int, **attributes: Any) -> str:
        w, scales = self.weight((co, ci, k, k), 0)
        return self.op("Conv", x, w, self.bias(x, scales, co), **attributes)

    def model(self, out: str, opset: int = 21) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(self.nodes, "net", [value("x", TensorProto.FLOAT, self.shape)],
                                  [value(out, TensorProto.FLOAT, None)], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run_both(model: onnx.ModelProto, folder: Path, x: Array, fast: bool = False) -> tuple[Array, Array, Counter[str]]:
    """(ours, onnxruntime's, how often each kernel runs)."""
    path = folder / "net.onnx"
    onnx.save(model, path)
    edgec.compile(path, folder / "out")
    options = ort.SessionOptions()
    if not fast:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    theirs = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = theirs.get_inputs()[0].name
    with edgec.Model(folder / "out" / "model.edgec") as m, m.session(threads=2, profile=True) as session:
        ours = session.run({m.inputs[0].name: x})[m.outputs[0].name]
        kernels = Counter(call.kernel for call in session.profile())
    return ours, theirs.run(None, {name: x})[0], kernels


def same(net: Net, out: str, folder: Path, least: float = 0.999) -> Counter[str]:
    """Never more than a step from onnxruntime's, and nearly always equal."""
    x = net.rng.uniform(-2, 2, net.shape).astype(np.float32)
    ours, theirs, kernels = run_both(net.model(out), folder, x)
    steps = np.abs(ours.astype(np.float64) - theirs) / net.scale[out]
    assert ours.shape == theirs.shape
    assert len(np.unique(theirs)) > min(8, theirs.size // 4)
    assert steps.max() < 1.01
    assert (steps < 0.01).mean() >= least or (steps >= 0.01).sum() <= 1
    return kernels


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions(kind: str, tmp_path: Path) -> None:
    net = Net((1, 3, 13, 11), kind, 1)
    x = net.q("x", 0.017, 119)
    y = net.q(net.op("Relu", net.conv(x, 20, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1])), 0.9, 3)
    y = net.q(net.op("Clip", net.conv(y, 20, 1, 3, group=20, pads=[1, 1, 1, 1]), net.const(np.float32(-9)),
                     net.const(np.float32(150))), 1.1, 20)
    y = net.q(net.conv(y, 18, 10, 3, group=2, pads=[2, 0, 1, 1], dilations=[2, 1]), 60, 131)
    y = net.q(net.conv(y, 33, 18, 1), 900, 128)
    kernels = same(net, y, tmp_path, 0.99)
    assert kernels["conv2d_q8"] == 3
    assert kernels["dwconv2d_q8"] == 1
    assert not FLOAT & set(kernels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [False, True])
def test_products(kind: str, turned: bool, tmp_path: Path) -> None:
    net = Net((5, 37), kind, 2)
    x = net.q("x", 0.017, 119)
    w, scales = net.weight((21, 37) if turned else (37, 21), 0 if turned else 1)
    y = net.q(net.op("Gemm", x, w, net.bias(x, scales, 21), transB=int(turned)), 0.4, 130)
    w, _ = net.weight((9, 21) if turned else (21, 9), None)
    w = net.op("Transpose", w, perm=[1, 0]) if turned else w
    y = net.q(net.op("MatMul", y, w), 0.7, 128)
    kernels = same(net, y, tmp_path)
    assert kernels["conv2d_q8"] == 2
    assert not FLOAT & set(kernels)


@pytest.mark.parametrize("kind", KINDS)
def test_between_products(kind: str, tmp_path: Path) -> None:
    net = Net((2, 5, 9, 8), kind, 3)
    x = net.q("x", 0.017, 119)
    a = net.q(net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0.017, 119)
    b = net.q(net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0.011, 140)
    total = net.q(net.op("Relu", net.op("Add", a, b)), 0.019, 30)
    both = net.q(net.op("Concat", total, b, axis=1), 0.02, 60)
    bent = net.q(net.op("HardSwish", both), 0.02, 60)
    pooled = net.q(net.op("GlobalAveragePool", bent), 0.004, 90)
    flat = net.q(net.op("Flatten", pooled), 0.004, 90)
    kernels = same(net, flat, tmp_path)
    assert kernels["pool2d_q8"] == 3
    assert kernels["add_q8"] == 1
    assert not FLOAT & set(kernels)


def test_what_has_no_kernel_stays_in_float32(tmp_path: Path) -> None:
    net = Net((1, 4, 6, 6), "u8", 4)
    x = net.q("x", 0.017, 119)
    y = net.q(net.op("Softmax", x), 1 / 255, 0)
    y = net.q(net.op("Mul", y, net.q("x", 0.02, 128)), 0.01, 100)
    kernels = same(net, y, tmp_path, 0.99)
    assert kernels["softmax"] == 1
    assert kernels["dequantize"] == 4
    assert kernels["quantize"] == 4


def test_a_sum_that_leaves_32_bits_is_not_one_of_integers(tmp_path: Path) -> None:
    net = Net((1, 70000), "u8", 5)
    x = net.q("x", 0.017, 119)
    w, _ = net.weight((70000, 3), 1)
    y = net.q(net.op("MatMul", x, w), 0.9, 128)
    model = net.model(y)
    _, _, kernels = run_both(model, tmp_path, net.rng.uniform(-2, 2, net.shape).astype(np.float32))
    assert kernels["linear"] == 1
    assert not kernels["conv2d_q8"]


@pytest.mark.parametrize(("op", "shape"), [("Gemm", (9, 1)), ("Gemm", (1, 9)), ("MatMul", (9, 1)),
                                           ("MatMul", (1, 9)), ("MatMul", (1, 1, 9)), ("MatMul", ())])
def test_a_bias_lies_along_the_last_axis(op: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    net = Net((9, 37), "u8", 7)
    x = net.q("x", 0.017, 119)
    w, _ = net.weight((37, 9), 1)
    bias = net.const(np.arange(9).astype(np.float32)[: 9 if shape else 1].reshape(shape))
    y = net.op("Gemm", x, w, bias) if op == "Gemm" else net.op("Add", net.op("MatMul", x, w), bias)
    kernels = same(net, net.q(y, 0.4, 130), tmp_path)
    assert kernels["conv2d_q8"] == (shape in ((), (1, 9)))


@pytest.mark.parametrize("op", ["Gemm", "Transpose"])
def test_one_square_weight_read_both_ways(op: str, tmp_path: Path) -> None:
    net = Net((5, 16), "s8", 8)
    x = net.q("x", 0.017, 119)
    w, _ = net.weight((16, 16), None)
    y = net.q(net.op("MatMul", x, w), 0.2, 130)
    y = net.op("Gemm", y, w, transB=1) if op == "Gemm" else net.op("MatMul", y, net.op("Transpose", w, perm=[1, 0]))
    assert same(net, net.q(y, 3.0, 130), tmp_path)["conv2d_q8"] == 2


@pytest.mark.parametrize("shape", [(1, 3, 33000), (1, 1, 2900, 2900)])
def test_a_mean_of_too_many_values_is_one_of_floats(shape: tuple[int, ...], tmp_path: Path) -> None:
    net = Net(shape, "u8", 9)
    y = net.q(net.op("GlobalAveragePool", net.q("x", 0.017, 119)), 1e-4, 130)
    ours, theirs, kernels = run_both(net.model(y), tmp_path, net.rng.uniform(-2, 2, shape).astype(np.float32))
    assert np.abs(ours - theirs).max() < 1.01e-4
    assert not kernels["pool2d_q8"]


def test_pairs_lie_as_documented() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (2 * 19, 7)).astype(np.int8)
    packed = pack_pairs(codes, 2)
    assert packed.shape == (2, 2, 4, 32)
    for group, n, k in ((0, 0, 0), (1, 18, 6), (0, 17, 3), (1, 2, 5)):
        assert packed[group, n // 16, k // 2, 2 * (n % 16) + k % 2] == codes[group * 19 + n, k]
    assert not packed[:, 1, :, 6:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_quantize_static(kind: str, tmp_path: Path) -> None:
    """A residual network in float32, quantized by onnxruntime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    net = Net((1, 3, 32, 32), kind, 6)

    def conv(x: str, co: int, ci: int, k: int, **attributes: Any) -> str:
        w = net.rng.standard_normal((co, ci, k, k)) * np.sqrt(2 / (ci * k * k))
        bias = net.const(net.rng.normal(0, 0.1, co).astype(np.float32))
        return net.op("Conv", x, net.const(w.astype(np.float32)), bias, pads=[k // 2] * 4, **attributes)

    y = net.op("Relu", conv("x", 16, 3, 3, strides=[2, 2]))
    for width in (16, 24):
        z = net.op("Clip", conv(y, 4 * width, 16, 1), net.const(np.float32(0)), net.const(np.float32(6)))
        z = net.op("Relu", conv(z, 4 * width, 1, 3, group=4 * width))
        z = conv(z, 16, 4 * width, 1)
        y = net.op("Add", y, z)
    y = net.op("Flatten", net.op("GlobalAveragePool", y))
    y = net.op("Gemm", y, net.const(net.rng.standard_normal((16, 10)).astype(np.float32)))
    onnx.save(net.model(y, 17), tmp_path / "float.onnx")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{"x": net.rng.standard_normal(net.shape).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.left, None)

    # Seven bits: onnxruntime's own product of bytes saturates on CPUs without VNNI.
    quantize_static(tmp_path / "float.onnx", tmp_path / "q.onnx", Reader(), per_channel=True, reduce_range=True,
                    activation_type=QuantType.QUInt8 if kind == "u8" else QuantType.QInt8, weight_type=QuantType.QInt8)
    model = onnx.load(tmp_path / "q.onnx")
    x = net.rng.standard_normal(net.shape).astype(np.float32)
    ours, theirs, kernels = run_both(model, tmp_path, x, fast=True)
    last = [n for n in model.graph.node if n.op_type == "DequantizeLinear"][-1]
    scale = next(float(numpy_helper.to_array(t)) for t in model.graph.initializer if t.name == last.input[1])
    assert np.abs(ours - theirs).max() / scale < 1.01
    assert not FLOAT & set(kernels)
    assert kernels["conv2d_q8"] == 6
    assert kernels["dwconv2d_q8"] == 2
    assert kernels["add_q8"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_in_integers_is_exact(kind: str, tmp_path: Path) -> None:
    """Golden vectors are of it. Large weights and activations: sums of pairs in 16 bits would saturate."""
    net = Net((1, 8, 9, 9), kind, 11)
    x = y = net.q("x", 0.017, 119)
    for depth in range(8):
        y = net.q(net.op("Relu", net.conv(y, 8, 8, 3, pads=[1, 1, 1, 1])), 0.6 * 1.6**depth, 0)
    y = net.q(net.op("Add", y, x), net.scale[y], 100)
    onnx.save(net.model(y), tmp_path / "net.onnx")
    graph = prepare_model(str(tmp_path / "net.onnx"), CompileOptions()).model
    feed = net.rng.uniform(-2, 2, net.shape).astype(np.float32)
    with Runner(graph, "test", integers=True) as runner:
        (wanted,) = runner.run({"x": feed}).values()
    edgec.compile(tmp_path / "net.onnx", tmp_path / "out")
    with edgec.Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        model.selftest(golden=True)
        (found,) = session.run({"x": feed}).values()
    assert len(np.unique(wanted)) > 30
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
