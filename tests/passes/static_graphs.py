"""Graphs for static quantization, their samples, and a reference of the rounded graph in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.nn import functional as F

from edgec.compress.ranges import Method
from edgec.compress.static import Static
from edgec.ir.model import const_of, ints_attr, ints_of
from edgec.ir.passes import Context, Pass
from edgec.native.lower import capabilities
from edgec.passes import COMPRESS
from edgec.pipeline import run_passes

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fed:
    """Samples: one dict per sample."""

    feeds: Sequence[Mapping[str, Array]]

    @property
    def count(self) -> int:
        return len(self.feeds)

    def feed(self, index: int) -> Mapping[str, Array]:
        return self.feeds[index]


def drawn(shape: Sequence[int], count: int = 4, seed: int = 0, name: str = "x", spread: float = 1.0) -> Fed:
    rng = np.random.default_rng(seed)
    return Fed([{name: (spread * rng.standard_normal(shape)).astype(np.float32)} for _ in range(count)])


def quantized(model: ir.Model, samples: Fed, method: str = "minmax", passes: Sequence[Pass] = COMPRESS,
              **options: Any) -> tuple[ir.Model, Static]:
    static = Static(samples, Method.parse(method), **options)
    return run_passes(model, passes, Context(capabilities=capabilities(), static=static)).model, static


def reference(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a graph with QuantizeLinear and DequantizeLinear, everything between them in float64."""
    values: dict[ir.Value | None, Array] = {None: np.zeros(0)}
    for value in model.graph.inputs:
        values[value] = np.asarray(feeds[value.name or ""], np.float64)
    for value in model.graph.initializers.values():
        found = const_of(value, 1 << 24)
        assert found is not None
        values[value] = np.asarray(found)
    for node in model.graph:
        read = [values[v] for v in node.inputs]
        values[node.outputs[0]] = _compute(node, read)
    return {v.name or "": values[v] for v in model.graph.outputs}


def _compute(node: ir.Node, read: list[Array]) -> Array:
    a = {k: attr.value for k, attr in node.attributes.items()}
    op = node.op_type
    if op == "QuantizeLinear":
        # The division is the operator's: float32.
        x = np.rint(read[0].astype(np.float32) / read[1])
        return np.clip(x.astype(np.float64) + read[2], 0, 255)
    if op == "DequantizeLinear":
        shape = [1] * read[0].ndim
        if read[1].ndim:
            shape[a["axis"]] = -1
        zero = read[2].astype(np.float64).reshape(shape) if len(read) > 2 else 0.0
        return (read[0].astype(np.float64) - zero) * read[1].astype(np.float64).reshape(shape)
    x = torch.from_numpy(np.ascontiguousarray(read[0], np.float64))
    rest = [torch.from_numpy(np.ascontiguousarray(r, np.float64)) for r in read[1:] if r.dtype.kind == "f"]
    if op == "Conv":
        pads = a.get("pads", [0] * 2 * (x.ndim - 2))
        half = len(pads) // 2
        x = F.pad(x, [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])])
        kernel = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
        return kernel(x, rest[0], rest[1] if len(rest) > 1 else None, list(a.get("strides", [1] * half)), 0,
                      list(a.get("dilations", [1] * half)), a.get("group", 1)).numpy()
    if op == "Gemm":
        y = x @ rest[0].T
        return (y + rest[1] if len(rest) > 1 else y).numpy()
    if op in ("MatMul", "Add", "Mul"):
        return {"MatMul": torch.matmul, "Add": torch.add, "Mul": torch.mul}[op](x, rest[0]).numpy()
    if op == "Relu":
        return torch.relu(x).numpy()
    if op == "Sigmoid":
        return torch.sigmoid(x).numpy()
    if op == "Clip":
        return np.clip(read[0], *(float(r) for r in read[1:3]))
    if op == "Concat":
        return np.concatenate(read, a["axis"])
    if op == "Transpose":
        return read[0].transpose(a["perm"])
    if op in ("Reshape", "Flatten"):
        return read[0].reshape(*(read[1] if op == "Reshape" else (len(read[0]), -1)))
    if op in ("GlobalAveragePool", "ReduceMean"):
        axes = tuple(range(2, x.ndim)) if op == "GlobalAveragePool" else tuple(
            ints_attr(node, "axes") or ints_of(node.inputs[1]) or ())
        return read[0].mean(axes, keepdims=op == "GlobalAveragePool" or bool(a.get("keepdims", 1)))
    if op in ("MaxPool", "AveragePool"):
        pool = F.max_pool2d if op == "MaxPool" else F.avg_pool2d
        return pool(x, list(a["kernel_shape"]), list(a.get("strides", [1, 1]))).numpy()
    if op == "Resize":
        return F.interpolate(x, scale_factor=tuple(read[2][2:].tolist()), mode="nearest").numpy()
    raise AssertionError(op)


def same_codes(found: Array, wanted: Array, scale: float, share: float = 0.02) -> None:
    """Equal but for values that float32 rounds to the neighbouring code, at most `share` of them."""
    assert found.shape == wanted.shape
    steps = np.abs(found - wanted) / scale
    assert steps.max(initial=0.0) < 1.01, steps.max()
    assert (steps > 0.5).mean() <= share, (steps > 0.5).mean()
