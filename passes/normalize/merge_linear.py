"""Multiplies linears that follow each other, and adds to a weight what runs beside it: low-rank paths (LoRA), skips.

y = W2 (W1 x + b1) + b2 is (W2 W1) x + (W2 b1 + b2): done only where the product is not larger than its two factors, so
neither bytes nor work grow and low-rank layers stay. W x + s B (A x) is (W + s B A) x, W x + s V x is (W + s V) x, and
x + W x is (I + W) x, so that (I + W2)(I + W1) is a chain. A convolution is a linear of its window; where one must be
of single pixels, it is 1 x 1 without padding or stride. Products in float64, stored in the type of the weight, computed
when it is written out; weights that 16 bits hold exactly stay apart when their product would need 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Dtype, lossless_dtype
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
    single_use,
    str_attr,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.weights import lazy, release
from edgec.passes.normalize.fold_bn import Vector

_CHANNELS = 1 << 20
# How a convolution reads its input: kernel, strides, pads, dilations.
_Window = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Linear:
    """value = x Wᵀ + bias in the form of NormalizeLinear, or a convolution without groups. inner: the values between,
    which nobody else may read. window: None for matrices."""

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    tensor: ir.TensorProtocol
    bias: Vector | None
    inner: tuple[ir.Value, ...]
    window: _Window | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(int(d) for d in self.tensor.shape.numpy())

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: a convolution's columns are the input channels times the places of its kernel."""
        return self.dims[0], math.prod(self.dims[1:])

    @property
    def pointwise(self) -> bool:
        if self.window is None:
            return True
        kernel, strides, pads, _ = self.window
        return {*kernel, *strides} == {1} and not any(pads)

    def problem(self) -> str | None:
        """Why it cannot become part of another one."""
        if not all(single_use(v) for v in self.inner):
            return f"{describe(self.node)} is read by others, too"
        read = required(self.node, 1)
        if any(len(v.uses()) > 1 or v.is_graph_output() for v in (self.weight, read)):
            return f"the weight of {describe(self.node)} is shared"
        return None

    def read(self) -> Vector:
        """The matrix."""
        matrix = np.asarray(self.tensor.numpy(), np.float64).reshape(self.shape)
        release(self.tensor)
        return matrix


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
    node = producer(source, "MatMul", "Gemm", "Conv")
    if node is None or (add is not None and bias is None):
        return None
    if is_op(node, "Conv"):
        return _convolution(node)
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
    rows = int(tensor.shape.numpy()[0])
    if bias is not None and bias.size not in (1, rows):
        return None  # the addition repeats the only column
    bias = None if bias is None else np.broadcast_to(bias, (rows,))
    return _Linear(node, required(node, 0), weight, tensor, bias, inner)


def _convolution(node: ir.Node) -> _Linear | None:
    weight, bias = required(node, 1), input_of(node, 2)
    tensor, vector = const_tensor(weight), const_of(bias, _CHANNELS)
    plain = int_attr(node, "group", 1) == 1 and str_attr(node, "auto_pad", "NOTSET") == "NOTSET"
    if tensor is None or not plain or (bias is not None and vector is None):
        return None
    kernel = tuple(int(d) for d in tensor.shape.numpy()[2:])
    ones = (1,) * len(kernel)
    window = (kernel, ints_attr(node, "strides") or ones, ints_attr(node, "pads") or (0,) * (2 * len(kernel)),
              ints_attr(node, "dilations") or ones)
    return _Linear(node, required(node, 0), weight, tensor, None if vector is None else np.asarray(vector, np.float64),
                   (), window)


def _widens(linears: Sequence[_Linear], product: Callable[[slice], Vector]) -> str | None:
    """The reason to leave them: 16 bits hold a weight exactly and would not hold `product`, which makes some rows."""
    for linear in linears:
        if lossless_dtype(linear.read().astype(np.float32)) is not Dtype.F32:
            # A few rows tell nearly always, and cost nearly nothing.
            fits = all(lossless_dtype(np.asarray(product(rows), np.float32)) is not Dtype.F32
                       for rows in (slice(0, 8), slice(None)))
            return None if fits else f"the weight of {describe(linear.node)} fits 16 bits and the product would not"
    return None


def _emit(op: Builder, like: _Linear, x: ir.Value, weight: ir.TensorProtocol, bias: Vector | None) -> ir.Value:
    """The same kind of node over another weight."""
    name = like.weight.name or "weight"
    made = op.tensor(weight, name)
    vector = None if bias is None else op.const(bias, weight.dtype, f"{name}.bias")
    if is_op(like.node, "Conv"):
        result = op.node("Conv", [x, made, vector], {k: a.value for k, a in like.node.attributes.items()}).outputs[0]
    elif is_op(like.node, "Gemm"):
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

    roots = ("Add", "MatMul", "Gemm", "Conv")

    def match(self, node: ir.Node) -> Bindings | None:
        second = _linear(node.outputs[0])
        if is_op(node, "MatMul") and single_use(node.outputs[0]):
            whole = _linear(next(iter(node.outputs[0].uses())).node.outputs[0])
            if whole is not None and whole.node is node:
                return None  # its bias is merged with it, from the Add
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
        if second.node.op_type != first.node.op_type or first.tensor.dtype != second.tensor.dtype:
            return "they are of different operators or types"
        if not second.pointwise:
            return f"{describe(second.node)} reads more than single pixels"
        return first.problem() or second.problem() or _widens(
            (first, second), lambda rows: second.read()[rows] @ first.read())

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        first: _Linear = parts["first"]
        second: _Linear = parts["second"]

        def change(w: Array) -> Array:
            return (w.astype(np.float64).reshape(second.shape) @ first.read()).reshape(shape).astype(w.dtype)

        shape = (second.dims[0], *first.dims[1:])
        weight = lazy(second.tensor, change, shape, second.weight.name or "weight")
        bias = second.bias
        if first.bias is not None:
            bias = second.read() @ first.bias + (0.0 if bias is None else bias)
        return _emit(op, second if first.window is None else first, first.x, weight, bias)


@dataclass(frozen=True)
class _Side:
    """scale * B (A x), or scale * V x with one linear."""

    linears: tuple[_Linear, ...]
    scale: float
    inner: tuple[ir.Value, ...]
    plain: bool  # nothing scales anywhere on the way: 3 x and then / 3 is not plain, though their product is 1

    def product(self) -> Vector:
        product = self.scale * self.linears[0].read()
        for linear in self.linears[1:]:
            product = product @ linear.read()
        return product

    def bias(self) -> Vector | None:
        """What the biases of a plain path add; of another one a scale may stand before or behind them."""
        total: Vector | None = None
        for linear in reversed(self.linears):
            inner = None if total is None else linear.read() @ total
            total = inner if linear.bias is None else linear.bias + (0.0 if inner is None else inner)
        return total


def _factor(value: ir.Value | None) -> float | None:
    """A constant number that does not add dims to what it multiplies."""
    array = const_of(value, 1)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim < 2 else None


def _side(value: ir.Value, x: ir.Value) -> _Side | None:
    """The side path that leads from `x` to `value`; the scale may stand before, between or behind the linears."""
    scale, inner, plain = 1.0, [value], True
    linears: list[_Linear] = []
    while value is not x:
        factor = producer(value, "Mul", "Div")
        if factor is not None:
            i = 1 if _factor(factor.inputs[1]) is not None else 0
            number = _factor(factor.inputs[i])
            if number is None or (factor.op_type == "Div" and (i == 0 or number == 0)):
                return None
            scale *= number if factor.op_type == "Mul" else 1 / number
            plain = plain and number == 1.0
            value = required(factor, 1 - i)
        else:
            linear = _linear(value)
            if linear is None or len(linears) == 2:
                return None
            linears.append(linear)
            value = linear.x
        if value is not x:
            inner.append(value)
    return _Side(tuple(linears), scale, tuple(inner), plain) if linears else None


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
        if not side.plain and any(s.bias is not None for s in side.linears):
            return "the side path has biases and a scale"
        if not all(single_use(v) for v in (parts["value"], *side.inner)):
            return "a path is read by others, too"
        if side.linears[0].shape[0] != main.shape[0]:
            return "the paths are added with broadcasting"
        if any((s.window is None) != (main.window is None) for s in side.linears):
            return "the paths are of different operators"
        if side.linears[-1].window != main.window or not all(s.pointwise for s in side.linears[:-1]):
            return "the paths see different pixels"
        return next(filter(None, (s.problem() for s in (main, *side.linears))), None) or _widens(
            (main,), lambda rows: (main.read() + side.product())[rows])

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        main: _Linear = parts["main"]
        side: _Side = parts["side"]

        def change(w: Array) -> Array:
            return (w.astype(np.float64) + side.product().reshape(w.shape)).astype(w.dtype)

        weight = lazy(main.tensor, change, main.dims, main.weight.name or "weight")
        added, bias = side.bias(), main.bias
        return _emit(op, main, main.x, weight, added if bias is None else bias + (0.0 if added is None else added))


class MergeSkip(Rule):
    """A linear plus its own input."""

    roots = ("Add",)

    def match(self, node: ir.Node) -> Bindings | None:
        for i in (0, 1):
            linear = _linear(node.inputs[i])
            if linear is not None and linear.x is node.inputs[1 - i]:
                return {"linear": linear, "value": node.inputs[i]}
        return None

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        linear: _Linear = parts["linear"]
        if not single_use(parts["value"]):
            return f"{describe(linear.node)} is read by others, too"
        if linear.shape[0] != linear.shape[1]:
            return "the paths are added with broadcasting"
        if not linear.pointwise:
            return f"{describe(linear.node)} reads more than single pixels"
        return linear.problem() or _widens(
            (linear,), lambda rows: (linear.read() + np.eye(linear.shape[0]))[rows])

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        linear: _Linear = parts["linear"]

        def change(w: Array) -> Array:
            return (w.astype(np.float64) + np.eye(len(w)).reshape(w.shape)).astype(w.dtype)

        weight = lazy(linear.tensor, change, linear.dims, linear.weight.name or "weight")
        return _emit(op, linear, linear.x, weight, linear.bias)


class MergeLinear(Pass):
    """Runs after NormalizeLinear, so that there are only two spellings of a linear. Side paths come first: the two
    linears of one would otherwise be looked at as a chain."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (MergeSide(), MergeSkip(), MergeChain())))
        return model, ctx.rules.modified
