"""What every decomposed normalization is spelled with: means, and roots of mean squares."""

from __future__ import annotations

import onnx_ir as ir

from edgec.ir.model import input_of, int_attr, ints_attr, ints_of, producer, rank_of, required, scalar_of


def _square_of(value: ir.Value | None) -> ir.Value | None:
    node = producer(value, "Pow", "Mul")
    if node is None:
        return None
    a, b = required(node, 0), required(node, 1)
    square = scalar_of(b) == 2.0 if node.op_type == "Pow" else a is b
    return a if square else None


def mean_of(value: ir.Value | None, start: int = -1) -> ir.Value | None:
    """x when `value` is its mean over the dims from `start` on, kept as dims of 1."""
    node = producer(value, "ReduceMean")
    if node is None or not int_attr(node, "keepdims", 1):
        return None
    axes = ints_of(input_of(node, 1)) if input_of(node, 1) is not None else ints_attr(node, "axes")
    rank = rank_of(node.inputs[0])
    if axes is None or rank is None:
        return required(node, 0) if axes == (-1,) == (start,) else None
    return required(node, 0) if sorted(a % rank for a in axes) == list(range(start % rank, rank)) else None


def _variance(value: ir.Value | None, start: int) -> tuple[ir.Value, float] | None:
    """(x, eps) when `value` is mean(x²) + eps, the mean over the dims from `start` on."""
    node = producer(value, "Add")
    if node is None:
        return None
    for i in (0, 1):
        epsilon, x = scalar_of(node.inputs[1 - i]), _square_of(mean_of(node.inputs[i], start))
        if epsilon is not None and x is not None:
            return x, epsilon
    return None


def deviation(value: ir.Value | None, inverse: bool, start: int = -1) -> tuple[ir.Value, float] | None:
    """(x, eps) when `value` is sqrt(mean(x²) + eps), or one over it."""
    node = producer(value, "Sqrt", "Pow", "Reciprocal", "Div")
    if node is None:
        return None
    if node.op_type == "Pow":
        return _variance(node.inputs[0], start) if scalar_of(node.inputs[1]) == (-0.5 if inverse else 0.5) else None
    if node.op_type == "Sqrt":
        inner = producer(node.inputs[0], "Reciprocal")
        if inverse:
            return None if inner is None else _variance(inner.inputs[0], start)
        return _variance(node.inputs[0], start)
    if not inverse or (node.op_type == "Div" and scalar_of(node.inputs[0]) != 1.0):
        return None
    return deviation(node.inputs[0 if node.op_type == "Reciprocal" else 1], inverse=False, start=start)
