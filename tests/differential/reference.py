"""The answer of a graph node by node in onnxruntime, and how far it moves when every float operation is a bit off.

Every node is a session of its own: nothing is fused, every intermediate value is at hand, and a node that onnxruntime
cannot run, or is known to answer wrongly, is answered by the reference evaluator of ONNX alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, Any]
OPSET = 24
IR_VERSION = 10

# Operators whose results are a choice among their inputs, or whole numbers: nothing is rounded.
EXACT = frozenset((
    "Abs", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast",
    "CastLike", "Ceil", "CenterCropPad", "Clip", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace",
    "Dropout", "Equal", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "GlobalMaxPool",
    "Greater", "GreaterOrEqual", "Hardmax", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Max", "MaxPool",
    "MaxUnpool", "Min", "Neg", "Not", "OneHot", "Or", "Pad", "Range", "ReduceMax", "ReduceMin", "Relu", "Reshape",
    "ReverseSequence", "Round", "ScatterElements", "ScatterND", "Shape", "Sign", "Size", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "TensorScatter", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze",
    "Where", "Xor",
))
# Operators that make whole numbers by rounding: their scales are moved, which are constants.
QUANTIZING = frozenset(("QuantizeLinear", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"))
# Far below 0 these are nearly 0, and onnxruntime's are exact beside the argument, not beside the result.
SATURATING = frozenset(("Gelu", "Swish", "Mish", "Sigmoid", "Softplus", "Elu", "Selu", "Celu"))
# Relative to the largest magnitude of a tensor: some roundings of its type.
NOISE = {np.dtype(np.float32): 2.0**-20, np.dtype(np.float16): 2.0**-9}


@dataclass(frozen=True)
class Defect:
    """A wrong answer of onnxruntime. applies(node, inputs): whether this node meets it.

    instead: another spelling of the node, which it answers rightly; None: the evaluator of ONNX does.
    """

    operators: tuple[str, ...]
    applies: Callable[[onnx.NodeProto, Sequence[Array | None]], bool]
    reason: str
    instead: Callable[[onnx.NodeProto, Sequence[Array | None]], onnx.NodeProto] | None = None


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _odd_same(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> bool:
    known = attributes(node)
    strides = known.get("strides", [1] * len(known["kernel_shape"]))
    return known.get("auto_pad", b"")[:4] == b"SAME" and (
        max(known.get("dilations", (1,))) > 1
        or any(s > k for s, k in zip(strides, known["kernel_shape"], strict=True)))


def _padded(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> onnx.NodeProto:
    """SAME written out."""
    known = attributes(node)
    x, kernel = inputs[0], known["kernel_shape"]
    assert x is not None
    begins, ends = [], []
    for a, k in enumerate(kernel):
        stride, size = known.get("strides", [1] * len(kernel))[a], x.shape[2 + a]
        reach = (k - 1) * known.get("dilations", [1] * len(kernel))[a] + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if known["auto_pad"] == b"SAME_UPPER" else more)
        ends.append(more if known["auto_pad"] == b"SAME_UPPER" else less)
    del known["auto_pad"]
    return helper.make_node(node.op_type, node.input, node.output, pads=[*begins, *ends], **known)


def _symmetric_nearest(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> bool:
    known = attributes(node)
    return known.get("mode", b"nearest") == b"nearest" and (
        known.get("coordinate_transformation_mode", b"") == b"half_pixel_symmetric")


def _still(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> bool:
    """Whether what is normalized hardly varies in some group."""
    x = inputs[0]
    assert x is not None
    axes = tuple(range(2, x.ndim))
    if node.op_type == "MeanVarianceNormalization":
        axes = tuple(attributes(node).get("axes", (0, 2, 3)))
    spread, mean = x.std(axes, dtype=np.float64), np.abs(x.mean(axes, dtype=np.float64))
    return bool((spread <= 1e-2 * mean + 1e-3).any())


def _of_two_signs(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> bool:
    return {np.dtype(np.uint8), np.dtype(np.int8)} <= {x.dtype for x in inputs if x is not None}


DEFECTS: tuple[Defect, ...] = (
    Defect(("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"), _of_two_signs,
           "adds pairs of products in 16 bits on CPUs with AVX2 and no VNNI, which saturates"),
    Defect(("MaxPool", "AveragePool", "LpPool"), _odd_same,
           "SAME pads as if nothing were dilated, so that the result is smaller than the standard says, and fails "
           "where a stride is longer than its kernel", _padded),
    Defect(("MeanVarianceNormalization",), _still,
           "divides 0 by 0 where the standard adds 1e-9, and takes the difference of two squares for the variance"),
    Defect(("Resize",), _symmetric_nearest,
           "the float32 position of a pixel that lies exactly on another one is less than that by a rounding"),
    Defect(("InstanceNormalization",), _still,
           "computes x s + (b - m s), which cancels where the mean m is far larger than the deviation"),
)


class InvalidNodeError(Exception):
    """Neither onnxruntime nor the reference evaluator takes the node: the graph is no test."""


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Step:
    """One node. constants: its inputs that are initializers. run() takes the others, and returns all outputs."""

    def __init__(self, node: onnx.NodeProto, constants: Mapping[str, Array]) -> None:
        self.node = node
        self.names = tuple(dict.fromkeys(n for n in node.input if n))
        self.constants = {n: constants[n] for n in self.names if n in constants}
        self.asked = [name for name in self.names if name not in self.constants]
        # ScatterElements and ScatterND may sum.
        self.exact = node.op_type in EXACT and attributes(node).get("reduction", b"none") not in (b"add", b"mul")
        self.reasons: list[str] = []
        self._sessions: dict[tuple[Any, ...], ort.InferenceSession] = {}

    def _model(self, node: onnx.NodeProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(feeds[n].dtype),
                                                [None] * feeds[n].ndim) for n in self.asked]
        # Element types of results are inferred.
        outputs = [onnx.ValueInfoProto(name=n) for n in self.node.output if n]
        graph = helper.make_graph([node], "step", inputs, outputs,
                                  [numpy_helper.from_array(a, n) for n, a in self.constants.items()])
        domains = {"": OPSET, **({self.node.domain: 1} if self.node.domain else {})}
        return helper.make_model(graph, ir_version=IR_VERSION,
                                 opset_imports=[helper.make_opsetid(d, v) for d, v in domains.items()])

    @cached_property
    def _evaluator(self) -> ReferenceEvaluator:
        graph = helper.make_graph([self.node], "step", [onnx.ValueInfoProto(name=n) for n in self.names],
                                  [onnx.ValueInfoProto(name=n) for n in self.node.output if n])
        return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))

    def defect(self, values: Mapping[str, Array]) -> Defect | None:
        ins = [values.get(n) for n in self.node.input]
        return next((d for d in DEFECTS if self.node.op_type in d.operators and d.applies(self.node, ins)), None)

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Raises InvalidNodeError."""
        everything = {**{n: values[n] for n in self.asked}, **self.constants}
        feeds = {n: values[n] for n in self.asked}
        names = [n for n in self.node.output if n]
        defect = self.defect(everything)
        if defect is None or defect.instead is not None:
            shapes = () if defect is None else tuple(a.shape for a in feeds.values())
            key = (*((a.dtype, a.ndim) for a in feeds.values()), shapes)
            try:
                if key not in self._sessions:
                    node = self.node
                    if defect is not None and defect.instead is not None:
                        node = defect.instead(node, [everything.get(n) for n in node.input])
                    self._sessions[key] = session(self._model(node, feeds))
                return dict(zip(names, map(np.asarray, self._sessions[key].run(names, feeds)), strict=True))
            except Exception as e:  # its exceptions share no base
                self.reasons.append(str(e))
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = self._evaluator.run(names, everything)
        except Exception as e:  # whatever numpy says to an input that does not fit
            raise InvalidNodeError(f"{self.node.op_type}: {'; '.join(self.reasons)[:300]}; {e}"[:500]) from e
        return dict(zip(names, map(np.asarray, found), strict=True))


class Reference:
    """A graph, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.steps = [Step(node, self.constants) for node in model.graph.node]
        self.outputs = [v.name for v in model.graph.output]

    def exact(self) -> frozenset[str]:
        """Names of the values that exact operators make of inputs and constants."""
        rounded: set[str] = set()
        known = set(self.constants)
        for step in self.steps:
            known.update(step.node.output)
            if not step.exact or rounded.intersection(step.names):
                rounded.update(n for n in step.node.output if n)
        return frozenset(n for n in self.outputs if n not in rounded)

    def run(self, feeds: Mapping[str, Array], noise: np.random.Generator | None = None) -> dict[str, Array]:
        """The outputs. noise: with an error on everything that an operator that rounds reads and makes."""
        values: dict[str, Array] = {**self.constants, **feeds}
        for step in self.steps:
            moved = values
            if noise is not None and not step.exact:
                moved = {n: _shake(values[n], noise) for n in step.asked}
            one = step
            if noise is not None and step.node.op_type in QUANTIZING:
                one = Step(step.node, {n: _shake(a, noise) for n, a in step.constants.items()})
            try:
                made = one.run(moved)
            except InvalidNodeError:
                if noise is None:
                    raise
                made = step.run(values)  # moved out of the operator's domain
            if noise is not None and not step.exact:
                beside = max((_largest(values[n]) / 16 for n in step.names), default=0.0)
                least = beside if step.node.op_type in SATURATING else 0.0
                made = {n: _shake(a, noise, least) for n, a in made.items()}
            values.update(made)
        return {n: values[n] for n in self.outputs}


def _largest(array: Array) -> float:
    """The largest finite magnitude."""
    finite = array[np.isfinite(array)]
    return float(np.abs(finite.astype(np.float64)).max()) if finite.size else 0.0


def _shake(array: Array, rng: np.random.Generator, least: float = 0.0) -> Array:
    """least: the magnitude to which the error is relative where the array's own is smaller."""
    size = NOISE.get(array.dtype)
    if size is None:
        return array
    with np.errstate(all="ignore"):
        scale = max(_largest(array), least) * size
        # All one way, all the other, or at random: what is compared with a threshold crosses it.
        way = rng.choice((-1.0, 0.0, 1.0))
        moves = np.full(array.shape, way) if way else rng.uniform(-1, 1, array.shape)
        return np.asarray(array + scale * moves).astype(array.dtype)
