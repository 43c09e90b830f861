"""Memory and multiplications a graph will need, before any pass and without reading a weight."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgec.ir.info import info_of
from edgec.ir.model import dims_of, int_attr, is_op, walk
from edgec.ir.weights import total_bytes

# What a dim without a known size counts as: the estimate is a lower bound then.
_UNKNOWN = 1


def estimated_ram(model: ir.Model) -> dict[str, int]:
    """Bytes: `weights` as they are now, `activations` at the worst moment, `cache` at the full context, and `total`.

    Sizes that vary count with the end of their range, tokens of a language model with one. The plan of `edgec compile`
    is exact; this is what can be said before the passes.
    """
    info = info_of(model)
    sizes = {name: high for name, (_, high) in info.dynamic.items()}
    cache = 0
    if info.task == "causal-lm":
        for value in model.graph.inputs:
            dims = dims_of(value) or ()
            if len(dims) == 4 and isinstance(dims[1], int) and isinstance(dims[3], int):
                cache += dims[1] * dims[3] * info.max_context * 4
    weights, activations = total_bytes(model), _peak(model.graph, sizes)
    return {"weights": weights, "activations": activations, "cache": cache, "total": weights + activations + cache}


def _peak(graph: ir.Graph, sizes: dict[str, int]) -> int:
    """The most bytes alive at once when the nodes run in order and a value goes after its last reader."""
    nodes = list(graph)
    last = {value: i for i, node in enumerate(nodes) for value in node.inputs if value is not None}
    for value in graph.outputs:
        last[value] = len(nodes)
    alive = sum(_bytes(v, sizes) for v in graph.inputs)
    most = alive
    for i, node in enumerate(nodes):
        alive += sum(_bytes(v, sizes) for v in node.outputs if v in last)
        most = max(most, alive)
        gone = {v for v in node.inputs if v is not None and last.get(v) == i and not v.is_initializer()}
        alive -= sum(_bytes(v, sizes) for v in gone)
    return most


def _bytes(value: ir.Value, sizes: dict[str, int]) -> int:
    dims = dims_of(value)
    if dims is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    counts = [d if isinstance(d, int) else sizes.get(d or "", _UNKNOWN) for d in dims]
    return math.ceil(math.prod(counts) * value.dtype.itemsize)


def multiplications(model: ir.Model, *nodes: ir.Node) -> int:
    """Multiply-accumulates of one run in Conv, Gemm and MatMul: of `nodes`, or of the whole graph. Sizes that vary
    count with the end of their range; shapes that are not known count as ones."""
    sizes = {name: high for name, (_, high) in info_of(model).dynamic.items()}
    return sum(_multiplications(node, sizes) for node in nodes or walk(model))


def _multiplications(node: ir.Node, sizes: dict[str, int]) -> int:
    if not is_op(node, "Conv", "Gemm", "MatMul"):
        return 0

    def counts(value: ir.Value | None) -> list[int]:
        return [d if isinstance(d, int) else sizes.get(d or "", _UNKNOWN) for d in dims_of(value) or ()]

    if node.op_type == "Conv":
        inner = math.prod(counts(node.inputs[1])[1:])
    else:
        first = counts(node.inputs[0])[-2:] or [1]
        inner = first[0] if node.op_type == "Gemm" and int_attr(node, "transA", 0) else first[-1]
    return math.prod(counts(node.outputs[0])) * inner
