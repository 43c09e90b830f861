"""The weights of a normalized graph that can be stored in few bits, and where each meets its input.

A layer is an initializer of float type that is read as `Gemm(x, W, b, transB=1)`, `MatMul(x, Transpose(W))`, as the
weight of a Conv without groups, or as the table of a Gather. Its matrix is [N, K]: output channels by inputs, for a
convolution [out, kernel * in] with the channel innermost, as the kernels multiply it (ONNX has it outermost: see
`matrix_of` and `weight_of`); for an embedding [vocabulary, width].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import (
    Array,
    const_tensor,
    describe,
    dims_of,
    int_attr,
    ints_attr,
    is_op,
    rank_of,
    required,
    str_attr,
    subgraphs,
)
from edgec.ir.weights import opened

Kind = Literal["linear", "conv", "embedding"]

# Between the last linear and the output of a model, these change neither the order nor the number of the logits.
_BEHIND_HEAD = ("Add", "Mul", "Div", "Tanh", "Softmax", "LogSoftmax", "Reshape", "Squeeze", "Flatten", "Identity")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution. pads: before, then after, per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One weight. node: the first linear or convolution that reads it, None for a mere embedding. head: makes the
    logits. table: also, or only, an embedding. first: a convolution that reads the model's input. refused: why it
    stays as it is, whatever the user says; "" otherwise."""

    name: str
    kind: Kind
    rows: int
    columns: int
    weight: ir.Value
    node: ir.Node | None
    window: Window | None = None
    head: bool = False
    table: bool = False
    first: bool = False
    refused: str = ""

    @property
    def source(self) -> ir.Value | None:
        """The input that meets the weight."""
        return None if self.node is None else self.node.inputs[0]

    def read(self) -> Array:
        """The float32 matrix [N, K], newly read. Raises EdgecError for weights with infinities or NaNs."""
        with opened(self.weight) as values:
            # What a lazy tensor gives is ours; anything else may be the model's own memory, or a mapping about to go.
            own = isinstance(self.weight.const_value, ir.LazyTensor)
            weight = np.array(values, np.float32, copy=None if own else True, order="C")
        matrix = matrix_of(weight)
        # A sum is NaN or infinite when one value is; float64 cannot overflow on float32 values.
        if not np.isfinite(matrix.sum(dtype=np.float64)):
            raise EdgecError("E0101", stage="quantize", where=self.name, found="infinity or NaN among the weights",
                             wanted="finite weights", hint=f"leave it as it is: --quant-override '{self.name}=none'")
        return matrix

    def rows_of(self, x: Array) -> Array:
        """float32 [T, K]: what the matrix is multiplied with when the layer's input is `x`."""
        if self.window is None:
            return np.asarray(x, np.float32).reshape(-1, self.columns)
        return _patches(np.asarray(x, np.float32), self.window)


def matrix_of(weight: Array) -> Array:
    """The matrix [N, K] of a weight: a linear's own; of a convolution's [out, in, *kernel] columns (*kernel, in)."""
    return np.ascontiguousarray(np.moveaxis(weight, 1, -1)).reshape(len(weight), -1)


def weight_of(matrix: Array, dims: Sequence[int]) -> Array:
    """The inverse of `matrix_of` for a weight of these dims."""
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(dims[0], *dims[2:], dims[1]), -1, 1))


def _patches(x: Array, window: Window) -> Array:
    """im2col: [N, C, *spatial] to [N * positions, kernel * C]."""
    axes = len(window.kernel)
    pads = tuple(zip(window.pads[:axes], window.pads[axes:], strict=True))
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    spatial = tuple(range(2, 2 + axes))
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, spatial)
    cut = (slice(None), slice(None), *(slice(None, None, s) for s in window.strides),
           *(slice(None, None, d) for d in window.dilations))
    order = (0, *spatial, *range(2 + axes, 2 + 2 * axes), 1)
    return np.ascontiguousarray(views[cut].transpose(order)).reshape(-1, x.shape[1] * math.prod(window.kernel))


def find_layers(model: ir.Model) -> list[Layer]:
    """All layers in the order in which the graph reads them; `refused` says what cannot be quantized at all.

    The graph must be sorted (`ir.Graph.sort`). Weights of other operators are not layers.
    """
    found: dict[str, Layer] = {}
    inputs = set(model.graph.inputs)
    convolutions = [n for n in model.graph if is_op(n, "Conv")]
    for node in model.graph:
        weight = _weight(node)
        if weight is None or weight.name in found:
            continue
        layer = _layer(model, weight)
        if layer is None:
            continue
        at_start = bool(convolutions) and layer.node is convolutions[0] and layer.source in inputs
        found[layer.name] = replace(layer, first=at_start)
    return list(found.values())


def _weight(node: ir.Node) -> ir.Value | None:
    """The initializer that `node` reads as a weight, possibly through a transposition."""
    if is_op(node, "Transpose", "Gather"):
        value = node.inputs[0]
    elif is_op(node, "Gemm", "Conv"):
        value = node.inputs[1]
    else:
        return None
    tensor = const_tensor(value)
    if value is None or tensor is None or not value.is_initializer() or tensor.dtype not in _FLOATS:
        return None
    return value if len(tensor.shape) >= 2 else None


def _layer(model: ir.Model, weight: ir.Value) -> Layer | None:
    """What all readers of `weight` together make of it; None when none of them is a layer."""
    shape = tuple(int(d) for d in (dims_of(weight) or ()) if isinstance(d, int))
    uses = list(_uses(weight))
    kinds = {kind for kind, _ in uses}
    products = [node for kind, node in uses if kind in ("linear", "conv")]
    if not products and "embedding" not in kinds:
        return None
    kind: Kind = "conv" if "conv" in kinds else "linear" if products else "embedding"
    others = sorted({describe(node) for use, node in uses if use == ""})
    refused = f"also read by {others[0]}" if others else ""
    window = None
    if kind == "conv":
        window, problem = _window(products[0], shape)
        refused = refused or problem
    first = products[0] if products else None
    return Layer(
        name=weight.name or "?", kind=kind, rows=shape[0], columns=math.prod(shape[1:]), weight=weight, node=first,
        window=window, head=any(_is_head(model, node) for node in products), table="embedding" in kinds,
        refused=refused or ("" if kinds & {"linear", "conv"} or _is_vocabulary(model, uses) else
                            "a table that no input of the model is looked up in"),
    )


def _uses(weight: ir.Value) -> Iterator[tuple[str, ir.Node]]:
    """(kind, node) of every reader, "" for a kind that is no layer; a linear is its product, not the transposition."""
    for use in weight.uses():
        node, index = use.node, use.idx
        if is_op(node, "Gemm") and index == 1:
            yield ("linear" if int_attr(node, "transB", 0) and not int_attr(node, "transA", 0) else ""), node
        elif is_op(node, "Transpose") and ints_attr(node, "perm") == (1, 0):
            for inner in node.outputs[0].uses():
                yield ("linear" if is_op(inner.node, "MatMul") and inner.idx == 1 else ""), inner.node
        elif is_op(node, "Conv") and index == 1:
            yield "conv", node
        elif is_op(node, "Gather") and index == 0 and int_attr(node, "axis", 0) == 0 and rank_of(weight) == 2:
            yield "embedding", node
        else:
            yield "", node


def _window(node: ir.Node, shape: tuple[int, ...]) -> tuple[Window | None, str]:
    """(geometry, "") or (None, why the convolution cannot be quantized)."""
    groups, axes = int_attr(node, "group", 1), len(shape) - 2
    if groups != 1:
        return None, "depthwise" if groups == shape[0] else f"{groups} groups"
    if str_attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None, "its padding depends on the input's size"
    return Window(
        shape[2:], ints_attr(node, "strides") or (1,) * axes, ints_attr(node, "pads") or (0,) * 2 * axes,
        ints_attr(node, "dilations") or (1,) * axes,
    ), ""


def _is_head(model: ir.Model, node: ir.Node) -> bool:
    """Whether the model's first output is the result of `node`, but for a bias, a softcap and the like."""
    value = node.outputs[0]
    for _ in range(8):
        if value is model.graph.outputs[0]:
            return True
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or not is_op(readers[0], *_BEHIND_HEAD):
            return False
        value = readers[0].outputs[0]
    return False


def _is_vocabulary(model: ir.Model, uses: list[tuple[str, ir.Node]]) -> bool:
    """Whether a table is looked up with ids that the caller gives; positions and angles are not."""
    for kind, node in uses:
        value = required(node, 1)
        while (maker := value.producer()) is not None and is_op(maker, "Cast", "Identity", "Reshape", "Unsqueeze"):
            value = required(maker, 0)
        if kind == "embedding" and not value.is_graph_input():
            return False
    return True


def check_plain(model: ir.Model) -> None:
    """Raises EdgecError (E0301) for control flow, which is not calibrated through."""
    for node in model.graph:
        if next(subgraphs(node), None) is not None:
            raise EdgecError("E0301", stage="quantize", where=describe(node), found="a graph inside a node",
                             wanted="a graph without control flow", hint="quantize without calibration: --calib none")

