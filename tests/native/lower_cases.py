"""Small graphs for tests of the lowering: a table of operator cases and helpers that build and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Node = tuple[str, str, str, Mapping[str, Any]] | tuple[str, str, str]


@dataclass(frozen=True)
class Case:
    """nodes: (op, "inputs", "outputs", attributes). feeds: run-time inputs. consts: initializers.

    dynamic: symbol -> (min, max); `dims` names symbols in the shape of an input. kernels: what the plan must call.
    """

    name: str
    nodes: Sequence[Node]
    feeds: Mapping[str, Array]
    consts: Mapping[str, Array] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    dims: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    dynamic: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    kernels: Sequence[str] | None = None


def proto(case: Case) -> onnx.ModelProto:
    nodes = []
    for row in case.nodes:
        op, inputs, outputs = row[:3]
        attributes = row[3] if len(row) == 4 else {}
        names = ["" if n == "-" else n for n in inputs.split()]
        nodes.append(helper.make_node(op, names, outputs.split(), name=f"node_{outputs.split()[0]}", **attributes))
    inputs_info = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), case.dims.get(k, v.shape))
        for k, v in case.feeds.items()
    ]
    outputs_info = [onnx.ValueInfoProto(name=n) for n in case.outputs]
    graph = helper.make_graph(
        nodes, case.name, inputs_info, outputs_info, [numpy_helper.from_array(v, k) for k, v in case.consts.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for out in inferred.graph.output:
        if not out.type.tensor_type.elem_type:
            out.type.tensor_type.elem_type = TensorProto.FLOAT
    return inferred


def model_of(case: Case) -> ir.Model:
    from edgec.ir.info import ModelInfo, attach_info

    return attach_info(ir.from_proto(proto(case)), ModelInfo(dynamic=dict(case.dynamic)))


def reference(case: Case) -> dict[str, Array]:
    """onnxruntime's answer, or the reference evaluator's where onnxruntime has no kernel."""
    import onnxruntime as ort
    from onnx.reference import ReferenceEvaluator

    model = proto(case)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(list(case.outputs), dict(case.feeds))
    except Exception:  # onnxruntime's exceptions share no public base
        values = ReferenceEvaluator(model).run(list(case.outputs), dict(case.feeds))
    return dict(zip(case.outputs, values, strict=True))


_RNG = np.random.default_rng(7)


def f(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    return _RNG.uniform(low, high, shape).astype(np.float32)


def i(*values: int) -> Array:
    return np.array(values, np.int64)


def one(op: str, x: Array, kernel: str | None = None, consts: Mapping[str, Array] | None = None, name: str = "",
        **attributes: Any) -> Case:
    """A graph of one node: its inputs are x and the constants."""
    consts = consts or {}
    node = (op, " ".join(["x", *consts]), "y", attributes)
    return Case(name or op, [node], {"x": x}, consts, kernels=None if kernel is None else [kernel])


_X4 = f(2, 4, 7, 9)
_W33 = f(6, 4, 3, 3)
CASES: list[Case] = [
    *(one(op, f(3, 5), "unary") for op in (
        "Relu", "Sigmoid", "Tanh", "Swish", "Gelu", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Softplus", "Mish",
        "Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign")),
    *(one(op, f(3, 5, low=0.1), "unary") for op in ("Log", "Sqrt", "Reciprocal")),
    one("Gelu", f(9), "unary", name="Gelu_tanh", approximate="tanh"),
    one("HardSigmoid", f(9), "unary", name="HardSigmoid_ab", alpha=0.3, beta=0.4),
    one("LeakyRelu", f(9), "unary", name="LeakyRelu_a", alpha=0.3),
    one("Clip", f(9), "unary", {"lo": np.float32(-1).reshape(()), "hi": np.float32(0.5).reshape(())}),
    one("Clip", f(9), "unary", {"lo": np.float32(-1).reshape(())}, name="Clip_low"),
    *(Case(op, [(op, "a b", "y")], {"a": f(2, 3, 4), "b": f(3, 1, low=0.5)}, kernels=["binary"]) for op in (
        "Add", "Sub", "Mul", "Div", "Min", "Max")),
    *(Case(op, [(op, "a b", "y")], {"a": np.round(f(2, 3, 4)), "b": np.round(f(3, 1))}, kernels=["binary"]) for op in (
        "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    Case("Max_three", [("Max", "a b c", "y")], {"a": f(4), "b": f(4), "c": f(1)}, kernels=["binary"] * 2),
    Case("Pow", [("Pow", "a b", "y")], {"a": f(3, low=0.1), "b": f(3)}, kernels=["binary"]),
    one("Pow", f(5), "unary", {"p": np.float32(2).reshape(())}, name="Pow_square"),
    one("Pow", f(5, low=0.1), "unary", {"p": np.float32(0.5).reshape(())}, name="Pow_root"),
    one("Pow", f(5), "binary", {"p": i(3).reshape(())}, name="Pow_integer"),
    Case("Mod", [("Mod", "a b", "y")], {"a": i(7, -7, 8), "b": i(3, 3, -5)}, kernels=["binary"]),
    Case("integer_neg", [("Neg", "a", "y")], {"a": i(7, 0, -8)}, kernels=["binary"]),
    Case("integer_abs", [("Abs", "a", "y")], {"a": i(7, 0, -8)}, kernels=["binary"] * 2),
    Case("integer_div", [("Div", "a b", "y")], {"a": i(7, -7, 8), "b": i(2, 2, -3)}, kernels=["binary"]),
    Case("logic", [("Less", "a b", "p"), ("Less", "b c", "q"), ("And", "p q", "r"), ("Or", "r p", "s"),
                   ("Xor", "s q", "t"), ("Not", "t", "y")], {"a": f(9), "b": f(9), "c": f(9)}),
    Case("Where", [("Less", "a b", "p"), ("Where", "p a b", "y")], {"a": f(2, 3), "b": f(3)}),
    one("Softmax", f(2, 3, 5), "softmax"), one("LogSoftmax", f(2, 3, 5), "softmax"),
    one("Softmax", f(2, 3, 5), name="Softmax_middle", axis=1),
    one("LayerNormalization", f(2, 3, 8), "layernorm", {"g": f(8), "b": f(8)}),
    one("LayerNormalization", f(2, 3, 8), "layernorm", {"g": f(8)}, name="LayerNormalization_plain"),
    one("RMSNormalization", f(2, 3, 8), "rmsnorm", {"g": f(8)}, epsilon=1e-3),
    *(one(op, f(2, 3, 4, 5), "reduce", {"axes": i(1, 2)}) for op in (
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")),
    one("ReduceMean", f(2, 3, 4, 5), "reduce", {"axes": i(-1)}, name="ReduceMean_flat", keepdims=0),
    one("ReduceMean", f(2, 3, 4), None, {"axes": i(0, 2)}, name="ReduceMean_apart", keepdims=0),
    one("ReduceMax", f(2, 3), "reduce", name="ReduceMax_all"),
    one("ReduceSum", f(2, 3), "copy", name="ReduceSum_noop", noop_with_empty_axes=1),
    one("ArgMax", f(2, 5, 3), "argmax", axis=1), one("ArgMin", f(2, 5, 3), "argmax", axis=-1, keepdims=0),
    # convolution and pooling
    one("Conv", _X4, None, {"w": _W33, "b": f(6)}, name="Conv_bias", pads=[1, 1, 1, 1]),
    one("Conv", _X4, None, {"w": _W33}, name="Conv_stride", strides=[2, 1], pads=[0, 1, 2, 0]),
    one("Conv", _X4, None, {"w": _W33}, name="Conv_dilation", dilations=[2, 3]),
    one("Conv", _X4, None, {"w": f(6, 2, 3, 3)}, name="Conv_groups", group=2),
    one("Conv", _X4, None, {"w": f(4, 1, 3, 3), "b": f(4)}, name="Conv_depthwise", group=4, pads=[1, 1, 1, 1]),
    one("Conv", _X4, None, {"w": f(8, 1, 3, 3)}, name="Conv_multiplier", group=4),
    one("Conv", _X4, None, {"w": f(5, 4, 1, 1), "b": f(5)}, name="Conv_pointwise"),
    one("Conv", _X4, None, {"w": f(5, 4, 1, 1)}, name="Conv_pointwise_stride", strides=[2, 2]),
    one("Conv", _X4, None, {"w": _W33}, name="Conv_same_upper", auto_pad="SAME_UPPER", strides=[2, 2]),
    one("Conv", _X4, None, {"w": _W33}, name="Conv_same_lower", auto_pad="SAME_LOWER", strides=[2, 2]),
    one("Conv", _X4, None, {"w": _W33}, name="Conv_valid", auto_pad="VALID"),
    one("Conv", f(2, 4, 11), None, {"w": f(6, 4, 3), "b": f(6)}, name="Conv_1d", strides=[2], pads=[1, 0]),
    one("Conv", f(2, 4, 11), None, {"w": f(4, 1, 3)}, name="Conv_1d_depthwise", group=4, dilations=[2]),
    one("MaxPool", _X4, None, name="MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    one("MaxPool", _X4, None, name="MaxPool_ceil", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    one("MaxPool", _X4, None, name="MaxPool_dilated", kernel_shape=[2, 2], dilations=[2, 3]),
    one("MaxPool", f(2, 4, 11), None, name="MaxPool_1d", kernel_shape=[3], strides=[2]),
    one("AveragePool", _X4, None, name="AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    one("AveragePool", _X4, None, name="AveragePool_pad", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    one("AveragePool", _X4, None, name="AveragePool_ceil", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    *(one("Resize", f(2, 3, 5, 6), None, {"roi": np.zeros(0, np.float32), "k": np.float32([1, 1, v, h])},
          name=f"Resize_{mode}_{where}_{v}_{h}", mode=mode, coordinate_transformation_mode=where)
      for mode, where, v, h in (
          ("nearest", "asymmetric", 2, 3), ("nearest", "half_pixel", 1.6, 0.5), ("nearest", "align_corners", 2, 2),
          ("linear", "half_pixel", 2, 1.5), ("linear", "align_corners", 3, 1), ("linear", "pytorch_half_pixel", 0.2, 2),
          ("linear", "half_pixel_symmetric", 1.3, 0.7), ("cubic", "half_pixel", 1.5, 0.6),
          ("cubic", "align_corners", 2, 2))),
    *(one("Resize", f(1, 2, 9, 5), None, {"roi": np.zeros(0, np.float32), "k": np.float32([v, h])},
          name=f"Resize_{mode}_{name}", mode=mode, axes=[2, 3], **{name: 1})
      for mode, name, v, h in (("linear", "antialias", 0.4, 0.7), ("cubic", "antialias", 0.5, 2),
                               ("cubic", "exclude_outside", 2, 1.5))),
    one("Resize", f(1, 2, 9, 5), None, {"roi": np.zeros(0, np.float32), "k": np.float32([0.3, 0.7])},
        name="Resize_antialias_inside", mode="cubic", axes=[2, 3], antialias=1, exclude_outside=1),
    *(one("Resize", f(1, 2, 5, 6), None, {"roi": np.zeros(0, np.float32), "k": np.float32([1, 1, 1.5, 0.7])},
          name=f"Resize_{how}", nearest_mode=how) for how in ("round_prefer_ceil", "floor", "ceil")),
    Case("Resize_sizes", [("Conv", "x w", "c"), ("Resize", "c - - s", "y", {"mode": "linear", "axes": [2, 3]})],
         {"x": f(1, 3, 5, 6)}, {"w": f(4, 3, 1, 1), "s": i(7, 9)}, dims={"x": ["b", 3, 5, 6]},
         dynamic={"b": (1, 4)}, kernels=["transpose", "linear", "resize2d", "transpose"]),
    Case("Resize_line", [("Resize", "x - k", "y", {"mode": "linear"})], {"x": f(2, 3, 5)},
         {"k": np.float32([1, 1, 2.5])}, kernels=["transpose", "resize2d", "transpose"]),
    # recurrent layers
    *(Case(f"{op}_{direction}_{layout}", [(op, "x w r b - h" + (" c" if op == "LSTM" else ""),
           "y z" + (" q" if op == "LSTM" else ""), {
               "hidden_size": 5, "direction": direction, "layout": layout,
               **({"linear_before_reset": 1} if op == "GRU" else {})})],
           {"x": f(*((2, 4, 3) if layout else (4, 2, 3))), "h": f(*((2, d, 5) if layout else (d, 2, 5)))}
           | ({"c": f(*((2, d, 5) if layout else (d, 2, 5)))} if op == "LSTM" else {}),
           {"w": f(d, 5 * n, 3), "r": f(d, 5 * n, 5), "b": f(d, 10 * n)},
           outputs=("y", "z", "q") if op == "LSTM" else ("y", "z"))
      for op, n in (("RNN", 1), ("GRU", 3), ("LSTM", 4))
      for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2)) for layout in (0,)),
    Case("LSTM_gates_in_pieces", [("Slice", "w zero four", "a"), ("Slice", "w four end", "b"),
                                  ("Concat", "b a", "v", {"axis": 0}), ("Unsqueeze", "v zero", "u"),
                                  ("LSTM", "x u r", "y", {"hidden_size": 2})], {"x": f(3, 1, 5)},
         {"w": f(8, 5), "r": f(1, 8, 2), "zero": i(0), "four": i(4), "end": i(8)}, kernels=["linear", "rnn"]),
    Case("GRU_reset_first", [("GRU", "x w r b", "y", {"hidden_size": 17})], {"x": f(6, 1, 3)},
         {"w": f(1, 51, 3), "r": f(1, 51, 17), "b": f(1, 102)}, kernels=["linear", "rnn"]),
    Case("RNN_relu", [("RNN", "x w r", "- y", {"hidden_size": 5, "activations": ["Relu"]})], {"x": f(4, 9, 3)},
         {"w": f(1, 5, 3), "r": f(1, 5, 5, low=-0.4, high=0.4)}, kernels=["linear", "rnn"]),
    Case("LSTM_dynamic", [("LSTM", "x w r b", "y z q", {"hidden_size": 20})], {"x": f(5, 3, 4)},
         {"w": f(1, 80, 4), "r": f(1, 80, 20), "b": f(1, 160)}, outputs=("y", "q"), dims={"x": ["t", "n", 4]},
         dynamic={"t": (1, 40), "n": (1, 20)}, kernels=["linear", "rnn"]),
    one("GlobalAveragePool", _X4), one("GlobalMaxPool", _X4),
    # matrix products
    one("MatMul", f(2, 3, 4), "linear", {"w": f(4, 5)}),
    one("MatMul", f(4), "linear", {"w": f(4, 5)}, name="MatMul_vector"),
    Case("MatMul_dynamic", [("MatMul", "a b", "y")], {"a": f(2, 1, 3, 4), "b": f(5, 4, 6)}, kernels=["matmul"]),
    Case("MatMul_dynamic_vectors", [("MatMul", "a b", "y")], {"a": f(4), "b": f(3, 4, 2)}, kernels=["matmul"]),
    Case("MatMul_times_vector", [("MatMul", "a b", "y")], {"a": f(3, 4), "b": f(4)}, kernels=["matmul"]),
    Case("MatMul_transposed", [("Transpose", "b", "t", {"perm": [0, 2, 1]}), ("MatMul", "a t", "y")],
         {"a": f(2, 3, 4), "b": f(2, 5, 4)}, kernels=["matmul"]),
    Case("MatMul_const_left", [("MatMul", "w x", "y")], {"x": f(4, 5)}, {"w": f(3, 4)}, kernels=["matmul"]),
    one("Gemm", f(3, 4), "linear", {"w": f(5, 4), "b": f(5)}, transB=1),
    one("Gemm", f(3, 4), "linear", {"w": f(4, 5), "b": f(1, 5)}, name="Gemm_scaled", alpha=0.5, beta=2.0),
    one("Gemm", f(4, 3), None, {"w": f(4, 5)}, name="Gemm_transA", transA=1),
    one("Gemm", f(3, 4), "linear", {"w": f(4, 5), "c": f(3, 5)}, name="Gemm_matrix_bias"),
    one("Gemm", f(3, 4), None, {"w": f(4, 5), "c": f(3, 1)}, name="Gemm_column_bias"),
    Case("Gemm_dynamic", [("Gemm", "a b c", "y", {"transB": 1, "alpha": 2.0})],
         {"a": f(3, 4), "b": f(5, 4), "c": f(5)}),
    # fusions
    Case("linear_epilogue", [("MatMul", "x w", "p"), ("Add", "p b", "q"), ("Gelu", "q", "y")], {"x": f(3, 4)},
         {"w": f(4, 5), "b": f(5)}, kernels=["linear"]),
    Case("linear_residual_then_act", [("MatMul", "x w", "p"), ("Add", "r p", "q"), ("Relu", "q", "y")],
         {"x": f(3, 4), "r": f(3, 5)}, {"w": f(4, 5)}, kernels=["linear"]),
    Case("linear_act_then_residual", [("MatMul", "x w", "p"), ("Relu", "p", "q"), ("Add", "q r", "y")],
         {"x": f(3, 4), "r": f(3, 5)}, {"w": f(4, 5)}, kernels=["linear"]),
    Case("linear_used_twice", [("MatMul", "x w", "p"), ("Relu", "p", "q"), ("Sub", "q p", "y")], {"x": f(3, 4)},
         {"w": f(4, 5)}, kernels=["linear", "unary", "binary"]),
    Case("linear_act_is_output", [("MatMul", "x w", "p"), ("Relu", "p", "y")], {"x": f(3, 4)}, {"w": f(4, 5)},
         outputs=("p", "y"), kernels=["linear", "unary"]),
    *(Case(f"inverted_residual_{name}",
           [("Conv", "x s", "p"), ("Conv", "p w", "a"), ("Clip", "a lo hi", "b"),
            ("Conv", "b v d", "c", {**spec, "group": 124}), ("Clip", "c lo hi", "e"), ("Conv", "e u t", "g"), *end],
           {"x": f(1, 5, 34, 32)},
           {"s": f(5, 5, 1, 1) * 0.3, "w": f(124, 5, 1, 1) * 0.3, "v": f(124, 1, 3, 3) * 0.3, "d": f(124),
            "u": f(5, 124, 1, 1) * 0.1, "t": f(5),
            "lo": np.float32(0), "hi": np.float32(6)}, outputs=outs, kernels=kernels)
      for name, spec, end, outs, kernels in (
          ("added", {"pads": [1, 1, 1, 1]}, [("Add", "p g", "y")], ("y",),
           ["transpose", "linear", "mbconv2d", "transpose"]),
          ("strided", {"strides": [1, 2], "pads": [1, 1, 1, 1]}, [("Relu", "g", "y")], ("y",),
           ["transpose", "linear", "mbconv2d", "transpose"]),
          ("low", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, [("Relu", "g", "y")], ("y",),
           ["transpose", "linear", "linear", "dwconv2d", "linear", "transpose"]),
          ("read_twice", {"pads": [1, 1, 1, 1]}, [("ReduceMean", "b", "m"), ("Add", "g m", "y")], ("y",), None))),
    Case("separable", [("Conv", "x v d", "a", {"group": 130, "pads": [1, 1, 1, 1]}), ("Relu", "a", "b"),
                       ("Conv", "b u", "y")],
         {"x": f(2, 130, 32, 36)}, {"v": f(130, 1, 3, 3) * 0.3, "d": f(130), "u": f(7, 130, 1, 1) * 0.1},
         kernels=["transpose", "mbconv2d", "transpose"]),
    Case("conv_epilogue", [("Conv", "x w", "p"), ("Add", "p b", "q"), ("Add", "q x", "r"), ("Clip", "r lo hi", "y")],
         {"x": f(1, 4, 5, 5)}, {"w": f(4, 4, 1, 1), "b": f(1, 4, 1, 1), "lo": np.float32(0).reshape(()),
                                "hi": np.float32(1).reshape(())}, kernels=["transpose", "linear", "transpose"]),
    # windows of 3 x 3 by tiles: with all epilogues, and where they are not worth it
    *(Case(f"conv_by_tiles_{name}", [("Conv", "x w b", "p", spec), ("Add", "p r", "q"), ("Relu", "q", "y")],
           {"x": f(2, ci, *size), "r": f(2, co, *out)},
           {"w": f(co, 16 if name == "grouped" else ci, 3, 3) * 0.1, "b": f(co)},
           kernels=["transpose", "transpose", kernel, "transpose"])
      for name, ci, co, size, out, spec, kernel in (
          ("odd", 17, 18, (9, 14), (9, 14), {"pads": [1, 1, 1, 1]}, "conv2d_winograd"),
          ("padded_unevenly", 16, 35, (8, 7), (9, 9), {"pads": [2, 0, 1, 4]}, "conv2d_winograd"),
          ("small", 17, 18, (5, 5), (5, 5), {"pads": [1, 1, 1, 1]}, "conv2d"),
          ("flat", 16, 16, (1, 90), (1, 90), {"pads": [1, 1, 1, 1]}, "conv2d"),
          ("few_in", 15, 18, (9, 14), (9, 14), {"pads": [1, 1, 1, 1]}, "conv2d"),
          ("few_out", 17, 15, (9, 14), (9, 14), {"pads": [1, 1, 1, 1]}, "conv2d"),
          ("strided", 17, 18, (17, 14), (9, 14), {"pads": [1, 1, 1, 1], "strides": [2, 1]}, "conv2d"),
          ("dilated", 17, 18, (9, 16), (9, 14), {"pads": [1, 1, 1, 1], "dilations": [1, 2]}, "conv2d"),
          ("grouped", 32, 32, (9, 14), (9, 14), {"pads": [1, 1, 1, 1], "group": 2}, "conv2d"))),
    *(Case(f"conv_by_tiles_of_any_{name}", [("Conv", "x w", "y", {"pads": [1, 1, 1, 1]})], {"x": f(n, 16, h, w)},
           {"w": f(16, 16, 3, 3) * 0.1}, dims={"x": ["n", 16, "h", "w"]},
           dynamic={"n": (1, 3), "h": (7, 40), "w": (8, 37)}, kernels=["transpose", "conv2d_winograd", "transpose"])
      for name, n, h, w in (("most", 3, 40, 37), ("least", 1, 7, 8), ("block", 1, 24, 24), ("less", 2, 16, 19))),
    Case("conv_by_tiles_of_few_images", [("Conv", "x w", "y", {"pads": [1, 1, 1, 1]})], {"x": f(1, 16, 5, 5)},
         {"w": f(16, 16, 3, 3) * 0.1}, dims={"x": ["n", 16, 5, 5]}, dynamic={"n": (1, 64)},
         kernels=["transpose", "conv2d", "transpose"]),
    Case("gate", [("MatMul", "x w", "p"), ("Swish", "p", "q"), ("MatMul", "x v", "r"), ("Mul", "q r", "y")],
         {"x": f(3, 4)}, {"w": f(4, 5), "v": f(4, 5)}, kernels=["linear", "linear", "glu"]),
    Case("linear_bias_of_one_row", [("MatMul", "x w", "p"), ("Add", "p b", "q"), ("Add", "q r", "y")],
         {"x": f(1, 4), "r": f(1, 5)}, {"w": f(4, 5), "b": f(5)}, kernels=["linear"]),
    Case("linear_two_biases_of_one_row", [("MatMul", "x w", "p"), ("Add", "p b", "q"), ("Add", "q c", "y")],
         {"x": f(1, 4)}, {"w": f(4, 5), "b": f(5), "c": f(5)}, kernels=["linear"]),
    # the pieces of one wide product
    Case("split_linear", [("MatMul", "x w", "p"), ("Split", "p s", "y q", {"axis": -1})], {"x": f(2, 3, 4)},
         {"w": f(4, 37), "s": i(16, 21)}, outputs=("y", "q"), kernels=["linear_split"]),
    Case("split_linear_bias_act", [("MatMul", "x w", "p"), ("Add", "b p", "q"), ("Relu", "q", "r"),
                                   ("Split", "r s", "y t u v", {"axis": 1})], {"x": f(5, 4)},
         {"w": f(4, 113), "b": f(113), "s": i(16, 48, 48, 1)}, outputs=("v", "y", "u", "t"), kernels=["linear_split"]),
    Case("split_linear_joined", [("Concat", "w v", "c", {"axis": 0}), ("Concat", "a b", "d", {"axis": 0}),
                                 ("Gemm", "x c d", "p", {"transB": 1}), ("Split", "p s", "q r", {"axis": 1}),
                                 ("Sigmoid", "q", "t"), ("Mul", "t r", "y")], {"x": f(3, 4)},
         {"w": f(16, 4), "v": f(16, 4), "a": f(16), "b": f(16), "s": i(16, 16)}, kernels=["linear_split", "glu"]),
    Case("split_linear_one_bias_twice", [("Concat", "w v", "c", {"axis": 0}), ("Concat", "b b", "d", {"axis": 0}),
                                         ("Gemm", "x c d", "p", {"transB": 1}), ("Split", "p s", "y q", {"axis": 1})],
         {"x": f(1, 4)}, {"w": f(16, 4), "v": f(16, 4), "b": f(16), "s": i(16, 16)}, outputs=("y", "q"),
         kernels=["linear_split"]),
    Case("split_linear_dynamic", [("MatMul", "x w", "p"), ("Split", "p s", "q r", {"axis": 2}), ("Add", "q r", "y")],
         {"x": f(2, 3, 4)}, {"w": f(4, 32), "s": i(16, 16)}, dims={"x": ["b", "n", 4]},
         dynamic={"b": (1, 3), "n": (0, 40)}, kernels=["linear_split", "binary"]),
    Case("split_pointwise_conv", [("Conv", "x w b", "c"), ("Split", "c s", "p q", {"axis": 1}),
                                  ("Conv", "p v", "d"), ("Add", "d q", "y")], {"x": f(1, 4, 3, 5)},
         {"w": f(32, 4, 1, 1), "b": f(32), "v": f(16, 16, 1, 1), "s": i(16, 16)},
         kernels=["transpose", "linear_split", "linear", "transpose"]),
    Case("split_inside_a_panel", [("MatMul", "x w", "p"), ("Split", "p s", "y q", {"axis": 1})], {"x": f(3, 4)},
         {"w": f(4, 40), "s": i(24, 16)}, outputs=("y", "q"), kernels=["linear", "slice", "slice"]),
    Case("split_in_five", [("MatMul", "x w", "p"), ("Split", "p s", "a b c d y", {"axis": 1})], {"x": f(3, 4)},
         {"w": f(4, 80), "s": i(16, 16, 16, 16, 16)}, outputs=("a", "b", "c", "d", "y"),
         kernels=["linear", *["slice"] * 5]),
    Case("split_piece_unread", [("MatMul", "x w", "p"), ("Split", "p s", "a b y", {"axis": 1}), ("Add", "a y", "z")],
         {"x": f(3, 4)}, {"w": f(4, 48), "s": i(16, 16, 16)}, outputs=("z",),
         kernels=["linear", "slice", "slice", "binary"]),
    Case("split_and_whole", [("MatMul", "x w", "p"), ("Split", "p s", "y q", {"axis": 1}), ("Abs", "p", "z")],
         {"x": f(3, 4)}, {"w": f(4, 32), "s": i(16, 16)}, outputs=("y", "q", "z"),
         kernels=["linear", "slice", "slice", "unary"]),
    Case("split_is_output", [("MatMul", "x w", "p"), ("Split", "p s", "y q", {"axis": 1})], {"x": f(3, 4)},
         {"w": f(4, 32), "s": i(16, 16)}, outputs=("y", "q", "p"), kernels=["linear", "slice", "slice"]),
    Case("split_rows", [("MatMul", "x w", "p"), ("Split", "p s", "y q", {"axis": 0})], {"x": f(32, 4)},
         {"w": f(4, 16), "s": i(16, 16)}, outputs=("y", "q"), kernels=["linear", "slice", "slice"]),
    Case("split_after_residual", [("MatMul", "x w", "p"), ("Add", "p r", "t"), ("Split", "t s", "y q", {"axis": 1})],
         {"x": f(3, 4), "r": f(3, 32)}, {"w": f(4, 32), "s": i(16, 16)}, outputs=("y", "q"),
         kernels=["linear", "slice", "slice"]),
    Case("split_rest_unread", [("MatMul", "x w", "p"), ("Split", "p s", "y q r", {"axis": 1})], {"x": f(3, 4)},
         {"w": f(4, 48), "s": i(16, 16, 16)}, outputs=("y", "q"), kernels=["linear", "slice", "slice"]),
    Case("split_overlapping", [("MatMul", "x w", "p"), ("Slice", "p zero b one", "y"), ("Slice", "p a b one", "q")],
         {"x": f(3, 4)}, {"w": f(4, 48), "zero": i(0), "one": i(1), "a": i(16), "b": i(32)},
         outputs=("y", "q"), kernels=["linear", "slice", "slice"]),
    Case("split_in_steps", [("MatMul", "x w", "p"), ("Slice", "p zero b one two", "y"), ("Slice", "p a b one", "q")],
         {"x": f(3, 4)}, {"w": f(4, 32), "zero": i(0), "one": i(1), "two": i(2), "a": i(16), "b": i(32)},
         outputs=("y", "q"), kernels=["linear", "slice", "slice"]),
    Case("add_norm", [("Add", "a b", "s"), ("RMSNormalization", "s g", "n"), ("Mul", "s n", "y")],
         {"a": f(3, 8), "b": f(3, 8)}, {"g": f(8)}, kernels=["rmsnorm", "binary"]),
    Case("add_norm_alone", [("Add", "a b", "s"), ("LayerNormalization", "s g h", "y")],
         {"a": f(3, 8), "b": f(3, 8)}, {"g": f(8), "h": f(8)}, kernels=["layernorm"]),
    Case("add_read_before_norm", [("Add", "a b", "s"), ("Abs", "s", "t"), ("RMSNormalization", "s g", "n"),
                                  ("Mul", "t n", "y")], {"a": f(3, 8), "b": f(3, 8)}, {"g": f(8)}),
    # attention and rotary embedding
    Case("Attention_3d", [("Attention", "q k v", "y", {"q_num_heads": 4, "kv_num_heads": 2})],
         {"q": f(2, 3, 16), "k": f(2, 5, 8), "v": f(2, 5, 12)}, kernels=["attention"]),
    Case("Attention_4d_causal", [("Attention", "q k v", "y", {"is_causal": 1, "scale": 0.3, "softcap": 2.0})],
         {"q": f(2, 4, 3, 8), "k": f(2, 4, 5, 8), "v": f(2, 4, 5, 8)}),
    Case("Attention_mask", [("Attention", "q k v m", "y", {"q_num_heads": 2, "kv_num_heads": 2})],
         {"q": f(2, 3, 8), "k": f(2, 5, 8), "v": f(2, 5, 8), "m": f(3, 5)}, kernels=["attention"]),
    Case("Attention_bool", [("Attention", "q k v m", "y", {"q_num_heads": 2, "kv_num_heads": 2})],
         {"q": f(2, 3, 8), "k": f(2, 5, 8), "v": f(2, 5, 8),
          "m": np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)}, kernels=["attention"]),
    Case("Rotary_3d", [("RotaryEmbedding", "x c s", "y", {"num_heads": 2})],
         {"x": f(2, 3, 16), "c": f(2, 3, 4), "s": f(2, 3, 4)}, kernels=["rope"]),
    Case("Rotary_4d_positions", [("RotaryEmbedding", "x c s p", "y", {"interleaved": 1})],
         {"x": f(2, 4, 3, 8), "p": np.array([[0, 3, 1], [2, 2, 5]], np.int64)}, {"c": f(6, 4), "s": f(6, 4)}),
    Case("Rotary_partial", [("RotaryEmbedding", "x c s", "y", {"num_heads": 2, "rotary_embedding_dim": 4})],
         {"x": f(1, 3, 16), "c": f(1, 3, 2), "s": f(1, 3, 2)}, kernels=["rope"]),
    # movement
    one("Transpose", f(2, 3, 4), "transpose", perm=[2, 0, 1]),
    one("Transpose", f(2, 1, 4), "copy", name="Transpose_free", perm=[1, 0, 2]),
    Case("Transpose_pair", [("Transpose", "x", "t", {"perm": [0, 2, 1]}), ("Relu", "t", "u"),
                            ("Transpose", "u", "y", {"perm": [0, 2, 1]})], {"x": f(2, 3, 4)}, kernels=["unary"]),
    one("Reshape", f(2, 6), "copy", {"s": i(0, -1, 3)}), one("Flatten", f(2, 3, 4), "copy", axis=2),
    Case("Flatten_conv", [("Conv", "x w", "c"), ("Flatten", "c", "f"), ("MatMul", "f m", "y")], {"x": f(1, 3, 4, 4)},
         {"w": f(5, 3, 2, 2), "m": f(45, 2)}, kernels=["transpose", "conv2d", "transpose", "linear"]),
    Case("patches", [("Conv", "x w", "c", {"strides": [2, 2]}), ("Reshape", "c s", "r"),
                     ("Transpose", "r", "t", {"perm": [0, 2, 1]}), ("MatMul", "t m", "y")], {"x": f(1, 3, 4, 4)},
         {"w": f(5, 3, 2, 2), "m": f(5, 2), "s": i(0, 0, -1)}, kernels=["transpose", "conv2d", "linear"]),
    one("Squeeze", f(2, 1, 3, 1), "copy", {"a": i(1)}), one("Squeeze", f(2, 1, 3, 1), "copy", name="Squeeze_all"),
    one("Unsqueeze", f(2, 3), "copy", {"a": i(0, -1)}), one("Identity", f(2), "copy"), one("Dropout", f(3), "copy"),
    Case("Concat", [("Concat", "a b", "y", {"axis": 1})], {"a": f(2, 3), "b": f(2, 4)}, kernels=["concat"]),
    Case("Concat_many", [("Concat", " ".join(["a"] * 70), "y", {"axis": 0})], {"a": f(1, 3)}, kernels=["concat"] * 2),
    Case("Split", [("Split", "x", "p q", {"axis": 1, "num_outputs": 2}), ("Sub", "q p", "y")], {"x": f(2, 6)}),
    Case("Split_sizes", [("Split", "x s", "p y", {"axis": 0})], {"x": f(5, 2)}, {"s": i(2, 3)}, kernels=["slice"]),
    one("Slice", f(5, 6), "slice", {"s": i(1, -2), "e": i(4, -100), "a": i(0, 1), "t": i(2, -2)}),
    one("Slice", f(5, 6), "copy", {"s": i(0), "e": i(2**62)}, name="Slice_all"),
    one("Gather", f(5, 6), "gather", {"g": np.array([[0, -1], [2, 2]], np.int64)}, axis=1),
    one("Gather", f(5, 6), "slice", {"g": np.array(-2, np.int64)}, name="Gather_scalar", axis=0),
    Case("Gather_table", [("Gather", "t x", "y")], {"x": i(3, 0, 4).astype(np.int32)}, {"t": f(5, 6)},
         kernels=["gather"]),
    Case("ScatterElements", [("ScatterElements", "x g u", "y", {"axis": 1})],
         {"x": f(3, 5), "g": np.array([[1, -1], [0, 3]], np.int64), "u": f(2, 2)}),
    Case("ScatterElements_add", [("ScatterElements", "x g u", "y", {"reduction": "add"})],
         {"x": f(4), "g": i(1, 1, -3), "u": f(3)}),
    Case("ScatterND", [("ScatterND", "x g u", "y")], {"x": f(4, 5, 2), "g": np.array([[1, 2], [-1, 0]], np.int64),
                                                     "u": f(2, 2)}),
    Case("ScatterND_rows", [("ScatterND", "x g u", "y", {"reduction": "max"})],
         {"x": f(4, 3), "g": np.array([[2], [2]], np.int64), "u": f(2, 3)}, kernels=["scatter"]),
    Case("TopK", [("TopK", "x k", "y z", {"axis": 0, "largest": 0})], {"x": f(6, 3)}, {"k": i(2)}, outputs=("y", "z"),
         kernels=["transpose", "topk", "transpose", "transpose"]),
    Case("TopK_last", [("TopK", "x k", "y z")], {"x": f(2, 3, 7)}, {"k": i(4)}, outputs=("y", "z"), kernels=["topk"]),
    *(Case(op, [(op, "x z", "y")], {"x": i(5, -6, 7), "z": i(3, 3, -4)}, kernels=["bitwise"])
      for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("BitwiseNot", [("BitwiseNot", "x", "y")], {"x": i(5, -6, 7).astype(np.int32)}),
    Case("BitShift", [("BitShift", "x z", "y", {"direction": "RIGHT"})],
         {"x": np.array([255, 7], np.uint8), "z": np.array([3, 1], np.uint8)}),
    one("Pad", f(2, 3), None, {"p": i(0, -1, 2, 1)}, name="Pad_negative"),
    one("Pad", f(3, 4), "gather", {"p": i(0, 2, 0, 3)}, name="Pad_wrap", mode="wrap"),
    Case("Pad_whole", [("Pad", "x p v", "y")], {"x": i(1, 2)}, {"p": i(2, 1), "v": np.array(9, np.int64)}),
    Case("Pad_whole_edge", [("Pad", "x p", "y", {"mode": "edge"})], {"x": i(1, 2)}, {"p": i(2, 1)}),
    Case("ReduceSum_whole", [("ReduceSum", "x a", "y", {"keepdims": 0})],
         {"x": np.arange(21, dtype=np.int64).reshape(3, 7) << 40}, {"a": i(1)}),
    Case("ReduceMax_few_bits", [("ReduceMax", "x a", "y")], {"x": np.array([[3, 250], [7, 1]], np.uint8)}, {"a": i(0)}),
    Case("Add_few_bits", [("Add", "x z", "y")], {"x": np.array([250, 3], np.uint8), "z": np.array([9, 9], np.uint8)}),
    Case("Clip_computed", [("Clip", "x low high", "y")],
         {"x": f(5), "low": np.array(-0.5, np.float32), "high": np.array(0.25, np.float32)}, kernels=["binary"] * 2),
    Case("Half", [("Mul", "x z", "y")], {"x": f(5).astype(np.float16), "z": f(5).astype(np.float16)},
         kernels=["cast", "cast", "binary", "cast"]),
    one("Pad", f(2, 3), "pad", {"p": i(0, 1, 2, 0), "v": np.float32(3).reshape(())}),
    one("Pad", f(4, 5), "pad", {"p": i(1, 2, 2, 1)}, name="Pad_reflect", mode="reflect"),
    one("Pad", f(4, 5), "pad", {"p": i(1, 2, 2, 1)}, name="Pad_edge", mode="edge"),
    one("Expand", f(3, 1), "expand", {"s": i(2, 1, 4)}), one("Tile", f(2, 3), None, {"r": i(2, 3)}),
    one("Tile", f(1, 3), "expand", {"r": i(4, 1)}, name="Tile_row"),
    Case("Cast", [("Cast", "x", "i", {"to": TensorProto.INT32}), ("Cast", "i", "y", {"to": TensorProto.FLOAT})],
         {"x": f(9)}, kernels=["cast", "cast"]),
    Case("fill", [("Shape", "x", "s"), ("ConstantOfShape", "s", "c"), ("Add", "c x", "y")], {"x": f(2, 3)}),
    # an image layout that must survive broadcasting, reductions and concatenation
    Case("squeeze_excite", [("Conv", "x w", "c"), ("GlobalAveragePool", "c", "g"), ("Conv", "g v", "s"),
                            ("Sigmoid", "s", "t"), ("Mul", "c t", "y")], {"x": f(2, 3, 5, 5)},
         {"w": f(4, 3, 3, 3), "v": f(4, 4, 1, 1)},
         kernels=["transpose", "conv2d", "reduce", "linear", "binary", "transpose"]),
    Case("channel_concat", [("Conv", "x w", "c"), ("Concat", "c c", "d", {"axis": 1}), ("ReduceMean", "d a", "m"),
                            ("Mul", "d k", "n"), ("Sub", "n m", "y")], {"x": f(2, 3, 5, 5)},
         {"w": f(4, 3, 3, 3), "a": i(1), "k": f(8, 1, 1)}),
    # sizes known at run time only
    Case("dynamic_reshape", [("Shape", "x", "s"), ("Gather", "s z", "n"), ("Unsqueeze", "n zero", "u"),
                             ("Concat", "u rest", "t", {"axis": 0}), ("Reshape", "x t", "r"),
                             ("Softmax", "r", "y")], {"x": f(3, 4, 2)}, {"z": i(1).reshape(()), "zero": i(0),
                                                                        "rest": i(-1)},
         dims={"x": ["b", "n", 2]}, dynamic={"b": (1, 4), "n": (1, 6)}),
    Case("dynamic_conv", [("Conv", "x w", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), ("Relu", "c", "r"),
                          ("GlobalAveragePool", "r", "y")], {"x": f(1, 3, 6, 9)}, {"w": f(4, 3, 3, 3)},
         dims={"x": ["b", 3, "h", "v"]}, dynamic={"b": (1, 2), "h": (4, 16), "v": (4, 16)}),
    Case("dynamic_slice", [("Shape", "x", "s", {"start": 0, "end": 1}), ("Sub", "s one", "e"),
                           ("Slice", "x e s", "y")], {"x": f(5, 2)}, {"one": i(1)}, dims={"x": ["n", 2]},
         dynamic={"n": (1, 8)}, kernels=["slice"]),
    Case("dynamic_range", [("Shape", "x", "s", {"start": 0, "end": 1}), ("Squeeze", "s", "n"),
                           ("Range", "zero n one", "r"), ("Gather", "t r", "g"), ("Add", "x g", "y")],
         {"x": f(5, 2)}, {"zero": i(0).reshape(()), "one": i(1).reshape(()), "t": f(8, 2)}, dims={"x": ["n", 2]},
         dynamic={"n": (1, 8)}, kernels=["iota", "gather", "binary"]),
    Case("two_outputs_of_one_value", [("Relu", "x", "y"), ("Identity", "y", "z")], {"x": f(4)}, outputs=("y", "z"),
         kernels=["unary", "copy"]),
    Case("constant_output", [("Identity", "c", "y"), ("Relu", "x", "z")], {"x": f(2)}, {"c": f(3)}, outputs=("y", "z")),
    # appended, so that the random numbers above stay what they are
    *(one(op, f(2, 3), "unary", name=f"{op}_noop", noop_with_empty_axes=1) for op in (
        "ReduceL1", "ReduceL2", "ReduceSumSquare")),
    one("ReduceSumSquare", i(3, -4, 0), "binary", name="integer_ReduceSumSquare_noop", noop_with_empty_axes=1),
    one("BitwiseNot", np.array(5, np.int64), "bitwise", name="BitwiseNot_scalar"),
    Case("dynamic_mod", [("Shape", "x", "s"), ("Mod", "s two", "m"), ("Sub", "s nine", "d")], {"x": f(5)},
         {"two": i(2), "nine": i(9)}, dims={"x": ["n"]}, dynamic={"n": (1, 20)}, outputs=("m", "d")),
    one("GroupNormalization", f(2, 6, 3, 5), None, {"g": f(6), "b": f(6)}, num_groups=2),
    Case("GroupNormalization_act", [("Conv", "x w", "c"), ("GroupNormalization", "c g b", "n", {"num_groups": 4}),
                                    ("Relu", "n", "r"), ("Conv", "r v", "y")], {"x": f(2, 3, 5, 4)},
         {"w": f(36, 3, 1, 1), "g": f(36), "b": f(36), "v": f(3, 36, 1, 1)},
         kernels=["transpose", "linear", "groupnorm", "linear", "transpose"]),
    Case("GroupNormalization_dynamic", [("GroupNormalization", "x g b", "n", {"num_groups": 3, "epsilon": 1e-3}),
                                        ("Sigmoid", "n", "y")], {"x": f(2, 6, 4, 3)}, {"g": f(6), "b": f(6)},
         dims={"x": ["b", 6, "h", 3]}, dynamic={"b": (1, 3), "h": (1, 9)},
         kernels=["transpose", "groupnorm", "transpose"]),
    one("InstanceNormalization", f(2, 5, 4, 3), None, {"g": f(5), "b": f(5)}),
    one("InstanceNormalization", f(1, 3, 7), None, {"g": f(3), "b": f(3)}, name="InstanceNormalization_1d"),
    # Channels repeated, but in pixels of another size: the depthwise convolution reads no image of them.
    Case("repeated_reshaped", [("Relu", "x", "r"), ("Concat", "r r", "c", {"axis": 2}), ("Reshape", "c s", "q"),
                               ("Transpose", "q", "t", {"perm": [0, 3, 1, 2]}),
                               ("Conv", "t w", "y", {"group": 3, "pads": [1, 1, 1, 1]})], {"x": f(1, 4, 3)},
         {"s": i(1, 2, 4, 3), "w": f(3, 1, 3, 3)}, kernels=["unary", "concat", "dwconv2d", "transpose"]),
    # One row, which is cut into tiles of a part each: the scratch for its borders does not grow with it.
    one("Conv", f(2, 2, 701), None, {"w": f(5, 2, 3)}, name="Conv_long_signal", pads=[1, 1]),
]
