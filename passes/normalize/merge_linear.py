"""Multiplies linears that follow each other, and adds a low-rank side path (LoRA) to the weight it runs beside.

y = W2 (W1 x + b1) + b2 is (W2 W1) x + (W2 b1 + b2): done only where the product is not larger than its two factors, so
neither bytes nor work grow and low-rank layers stay. W x + s B (A x) is (W + s B A) x, and W x + s V x is (W + s V) x.
Products in float64, stored in the type of the weight, computed when it is written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Array,
    Builder,
    const_of,
    const_tensor,
    describe,
    input_of,
    int_attr,
    ints_attr,
    is_op,
    producer,
    required,
    scalar_of,
    single_use,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.weights import lazy
from edgec.passes.normalize.fold_bn import Vector

_CHANNELS = 1 << 20


@dataclass(frozen=True)
class _Linear:
    """value = x Wᵀ + bias in the form of NormalizeLinear. inner: the values between, which nobody else may read."""

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    tensor: ir.TensorProtocol
    bias: Vector | None
    inner: tuple[ir.Value, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.tensor.shape.numpy()
        return int(rows), int(columns)

    def problem(self) -> str | None:
        """Why it cannot become part of another one."""
        if not all(single_use(v) for v in self.inner):
            return f"{describe(self.node)} is read by others, too"
        read = required(self.node, 1)
        if any(len(v.uses()) > 1 or v.is_graph_output() for v in (self.weight, read)):
            return f"the weight of {describe(self.node)} is shared"
        return None

    def read(self) -> Vector:
        return np.asarray(self.tensor.numpy(), np.float64)


def _linear(value: ir.Value | None) -> _Linear | None:
    """The linear that makes `value`, bias included."""
    if value is None:
        return None
    add = producer(value, "Add")
    bias: Vector | None = None
    inner: tuple[ir.Value, ...] = ()
    source: ir.Value = value
    if add is not None:
        for i in (0, 1):
            vector = const_of(add.inputs[i], _CHANNELS)
            if vector is not None and vector.ndim == 1 and producer(add.inputs[1 - i], "MatMul") is not None:
                bias, source = np.asarray(vector, np.float64), required(add, 1 - i)
                inner = (source,)
    node = producer(source, "MatMul", "Gemm")
    if node is None or (add is not None and bias is None):
        return None
    weight = node.inputs[1]
    if is_op(node, "MatMul"):
        turned = producer(weight, "Transpose")
        if turned is None or ints_attr(turned, "perm") not in (None, (1, 0)):
            return None
        weight = turned.inputs[0]
    elif int_attr(node, "transB", 0) != 1 or int_attr(node, "transA", 0):
        return None
    elif input_of(node, 2) is not None:
        vector = const_of(input_of(node, 2), _CHANNELS)
        if vector is None or vector.ndim != 1:
            return None
        bias = np.asarray(vector, np.float64)
    tensor = const_tensor(weight)
    if tensor is None or weight is None or len(tensor.shape) != 2:
        return None
    return _Linear(node, required(node, 0), weight, tensor, bias, inner)


def _emit(op: Builder, like: _Linear, x: ir.Value, weight: ir.TensorProtocol, bias: Vector | None) -> ir.Value:
    """The same kind of node over another weight."""
    name = like.weight.name or "weight"
    made = op.tensor(weight, name)
    vector = None if bias is None else op.const(bias, weight.dtype, f"{name}.bias")
    if is_op(like.node, "Gemm"):
        result = op.Gemm(x, made, vector, transB=1)
    else:
        result = op.MatMul(x, op.Transpose(made, perm=(1, 0)))
        if vector is not None:
            result = op.Add(result, vector)
    for node in op.nodes:
        node.metadata_props.update(like.node.metadata_props)
    return result


class MergeChain(Rule):
    """A linear of a linear."""

    roots = ("MatMul", "Gemm")

    def match(self, node: ir.Node) -> Bindings | None:
        second = _linear(node.outputs[0])
        first = None if second is None else _linear(second.x)
        return None if first is None else {"first": first, "second": second}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        first: _Linear = parts["first"]
        second: _Linear = parts["second"]
        (inner, columns), rows = first.shape, second.shape[0]
        if rows * columns > inner * (rows + columns):
            return f"the product would have {rows * columns} weights, the two have {inner * (rows + columns)}"
        if not single_use(second.x):
            return f"{describe(first.node)} is read by others, too"
        if is_op(second.node, "Gemm") != is_op(first.node, "Gemm") or first.tensor.dtype != second.tensor.dtype:
            return "one is a Gemm and one a MatMul, or their types differ"
        return first.problem() or second.problem()

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        first: _Linear = parts["first"]
        second: _Linear = parts["second"]

        def change(w: Array) -> Array:
            return (w.astype(np.float64) @ first.read()).astype(w.dtype)

        shape = (second.shape[0], first.shape[1])
        weight = lazy(second.tensor, change, shape, second.weight.name or "weight")
        bias = second.bias
        if first.bias is not None:
            bias = second.read() @ first.bias + (0.0 if bias is None else bias)
        return _emit(op, second, first.x, weight, bias)


@dataclass(frozen=True)
class _Side:
    """scale * B (A x), or scale * V x with one linear."""

    linears: tuple[_Linear, ...]
    scale: float
    inner: tuple[ir.Value, ...]


def _side(value: ir.Value, x: ir.Value) -> _Side | None:
    """The side path that leads from `x` to `value`; the scale may stand before, between or behind the linears."""
    scale, inner = 1.0, [value]
    linears: list[_Linear] = []
    while value is not x:
        factor = producer(value, "Mul", "Div")
        if factor is not None:
            i = 1 if scalar_of(factor.inputs[1]) is not None else 0
            number = scalar_of(factor.inputs[i])
            if number is None or (i == 0 and factor.op_type == "Div"):
                return None
            scale *= number if factor.op_type == "Mul" else 1 / number
            value = required(factor, 1 - i)
        else:
            linear = _linear(value)
            if linear is None or len(linears) == 2:
                return None
            linears.append(linear)
            value = linear.x
        if value is not x:
            inner.append(value)
    return _Side(tuple(linears), scale, tuple(inner)) if linears else None


class MergeSide(Rule):
    """A linear plus a scaled product of one or two linears of the same input."""

    roots = ("Add",)

    def match(self, node: ir.Node) -> Bindings | None:
        for i in (0, 1):
            main = _linear(node.inputs[i])
            side = None if main is None else _side(required(node, 1 - i), main.x)
            if side is not None and all(s.shape[0] for s in side.linears):
                return {"main": main, "side": side, "value": node.inputs[i]}
        return None

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        main: _Linear = parts["main"]
        side: _Side = parts["side"]
        if any(s.bias is not None for s in side.linears):
            return "the side path has biases"
        if not all(single_use(v) for v in (parts["value"], *side.inner)):
            return "a path is read by others, too"
        if side.linears[0].shape[0] != main.shape[0]:
            return "the paths are added with broadcasting"
        return next(filter(None, (s.problem() for s in (main, *side.linears))), None)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        main: _Linear = parts["main"]
        side: _Side = parts["side"]

        def change(w: Array) -> Array:
            product = side.linears[0].read()
            for linear in side.linears[1:]:
                product = product @ linear.read()
            return (w.astype(np.float64) + side.scale * product).astype(w.dtype)

        weight = lazy(main.tensor, change, main.shape, main.weight.name or "weight")
        return _emit(op, main, main.x, weight, main.bias)


class MergeLinear(Pass):
    """Runs after NormalizeLinear, so that there are only two spellings of a linear. Side paths come first: the two
    linears of one would otherwise be looked at as a chain."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (MergeSide(), MergeChain())))
        return model, ctx.rules.modified
