"""Small normalized graphs with every kind of layer, for the tests of calibration and policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec import importers
from edgec.ir.passes import Context
from edgec.ir.shapes import infer_shapes
from edgec.native.lower import capabilities
from edgec.passes import NORMALIZE
from edgec.pipeline import run_passes
from tests.models import tiny_lm


def normalized(source: object) -> ir.Model:
    ctx = Context(capabilities=capabilities())
    model = run_passes(importers.load(source, check=False), NORMALIZE, ctx).model
    model.graph.sort()
    return model


def normalized_lm(folder: Path, family: str) -> ir.Model:
    return normalized(tiny_lm.make(folder, family))


def small_cnn(seed: int = 0, classes: int = 48) -> ir.Model:
    """x [1, 3, 12, 12] -> stem 3x3 -> narrow 1x1 (8 in) -> depthwise -> point 1x1 -> spatial 3x3 stride 2 -> head."""
    rng = np.random.default_rng(seed)
    initializers: list[ir.Value] = []

    def weight(name: str, *shape: int) -> ir.Value:
        values = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:])).astype(np.float32)
        tensor = ir.tensor(values, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape))
        initializers.append(value)
        return value

    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 3, 12, 12]))
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op, list(inputs), attributes)
        node.name = node.outputs[0].name = f"{op}_{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    y = add("Relu", add("Conv", x, weight("stem.weight", 8, 3, 3, 3), pads=[1, 1, 1, 1]))
    y = add("Relu", add("Conv", y, weight("narrow.weight", 64, 8, 1, 1)))
    y = add("Conv", y, weight("depthwise.weight", 64, 1, 3, 3), pads=[1, 1, 1, 1], group=64)
    z = add("Conv", y, weight("point.weight", 64, 64, 1, 1))
    y = add("Add", y, z)
    y = add("Conv", y, weight("spatial.weight", 32, 64, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    y = add("Flatten", y)
    y = add("Gemm", y, weight("head.weight", classes, 32 * 36), weight("head.bias", classes), transB=1)
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, classes])
    graph = ir.Graph([x], [y], nodes=nodes, initializers=initializers, opset_imports={"": 24}, name="cnn")
    model = ir.Model(graph, ir_version=10)
    infer_shapes(model)
    return model
