"""Elementwise operators, comparisons, casts, reductions, softmax, products of matrices, quantization."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tests.differential.draft import BOOL, F16, F32, I8, I32, I64, INTEGERS, U8, Draft, RejectedError, Value

Drawer = Callable[[Draft], object]

# Operator -> the inputs it is defined and well behaved on.
_UNARY: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("Abs", "Neg", "Erf", "Floor", "Ceil", "Round", "Sign", "Relu", "Sigmoid", "Softplus", "Softsign",
                     "HardSwish", "Mish", "Atan", "Tanh", "Identity", "Sin", "Cos"), (-1e4, 1e4)),
    "Exp": (-20, 8), "Log": (0.01, 1e4), "Sqrt": (0, 1e4), "Reciprocal": (0.1, 1e3), "Tan": (-1.4, 1.4),
    "Asin": (-1, 1), "Acos": (-1, 1), "Sinh": (-6, 6), "Cosh": (-6, 6), "Asinh": (-1e3, 1e3), "Acosh": (1, 1e3),
    "Atanh": (-0.95, 0.95),
}
_EXACT_ON_INTEGERS = ("Abs", "Neg", "Sign", "Identity", "Relu")


def unary(op: str, g: Draft) -> Value:
    low, high = _UNARY[op]
    if op in _EXACT_ON_INTEGERS and g.chance(4):
        return g.node(op, [g.pick((I64, I32, I8) if op != "Relu" else (I32, I8))])
    return g.node(op, [g.bounded(g.pick(largest=1e5), low, high)])


def activation(op: str, g: Draft) -> Value:
    """With attributes, given or not."""
    attrs: dict[str, object] = {}
    choices: dict[str, dict[str, tuple[object, ...]]] = {
        "Elu": {"alpha": (1.0, 0.5)}, "Celu": {"alpha": (1.0, 2.0)}, "LeakyRelu": {"alpha": (0.01, 0.3)},
        "Selu": {"alpha": (1.6, 1.2), "gamma": (1.05, 2.0)}, "ThresholdedRelu": {"alpha": (1.0, 0.25)},
        "HardSigmoid": {"alpha": (0.2, 0.5), "beta": (0.5, 0.25)}, "Gelu": {"approximate": ("none", "tanh")},
        "Swish": {"alpha": (1.0, 1.5, -1.0)}, "Shrink": {"bias": (0.0, 0.5), "lambd": (0.5, 1.5)},
    }
    for name, options in choices[op].items():
        if g.flag():
            attrs[name] = g.one(options)
    return g.node(op, [g.pick(largest=50.0)], **attrs)


def clip(g: Draft) -> Value:
    x = g.pick((g.float, I32, I64, I8, U8), largest=1e4)
    low = g.const(g.one((-2, 0, 1) if x.dtype != U8 else (0, 1, 9)), x.dtype) if g.flag() else None
    high = g.const(g.one((1, 3, 50)), x.dtype) if g.flag() else None
    return g.node("Clip", [x, low, high])


def dropout(g: Draft) -> Value:
    return g.node("Dropout", [g.pick()])


def special(op: str, g: Draft) -> Value:
    """Of what may be no number."""
    x = g.pick((F32,), largest=np.inf) if g.chance(3) else g.new(g.dims(), F32, "special", constant=False)
    if op == "IsInf":
        return g.node(op, [x], detect_negative=g.int(0, 1), detect_positive=g.int(0, 1))
    return g.node(op, [x])


def binary(op: str, g: Draft) -> Value:
    wide = (g.float, g.float, g.float, I32, I64, *((I8, U8) if op in ("Min", "Max", "Mod") else ()))
    a = g.pick(wide, largest=200.0)
    if op in ("Div", "Mod"):
        if a.dtype in INTEGERS:
            by: object = g.one((2, 3, 7, -3)) if a.dtype != U8 else g.one((2, 3, 7))
            if a.rank and a.shape[-1] == 3 and g.flag():
                by = (1, 2, 3)
            b = g.const(by, a.dtype)
            return g.node(op, [a, b], fmod=1 if op == "Mod" and g.chance(3) else None)
        if op == "Mod":
            return g.node(op, [a, g.like(a, kind="positive")], fmod=1)
        b = g.like(a)
        return g.node(op, [a, b if b.within(0.1, 1e3) else g.node("Add", [g.node("Abs", [b]), g.const(0.5, a.dtype)])])
    if op == "Pow":
        if a.dtype in INTEGERS:
            return g.node(op, [g.bounded(a, -9, 9), g.const(g.one((0, 1, 2, 3)), a.dtype)])
        power = g.one((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -1.0, 4.0))
        if power not in (0.0, 1.0, 2.0, 3.0, 4.0):
            a = g.bounded(a, 0.1, 50)
        if g.chance(3):
            return g.node(op, [g.bounded(a, 0.1, 20), g.bounded(g.like(a), -3, 3)])
        if g.flag():
            return g.node(op, [a, g.const(int(power), g.one((I32, I64)))])
        return g.node(op, [a, g.const([power] if g.flag() else power, a.dtype)])
    b = g.like(a)
    return g.node(op, [a, b] if g.flag() else [b, a])


def variadic(op: str, g: Draft) -> Value:
    a = g.pick((F32,) if op in ("Sum", "Mean") else (F32, I32, I64))
    return g.node(op, [a, *(g.like(a) for _ in range(g.int(0, 3)))])


def prelu(g: Draft) -> Value:
    x = g.pick(low=1)
    slope = [1 if g.chance(3) or not isinstance(d, int) else d for d in x.dims]
    return g.node("PRelu", [x, g.new(slope[g.int(0, x.rank - 1):], x.dtype, constant=True)])


def compare(op: str, g: Draft) -> Value:
    a = g.pick((g.float, I32, I64, U8, *((BOOL,) if op == "Equal" else ())))
    return g.node(op, [a, g.like(a)])


def logic(op: str, g: Draft) -> Value:
    a = g.pick((BOOL,))
    return g.node(op, [a, g.like(a, BOOL)])


def negate(g: Draft) -> Value:
    return g.node("Not", [g.pick((BOOL,))])


def bitwise(op: str, g: Draft) -> Value:
    a = g.pick((I32, I64, U8, I8) if op != "BitShift" else (U8,), largest=1e9)
    if op == "BitwiseNot":
        return g.node(op, [a])
    if op == "BitShift":
        return g.node(op, [a, g.const(g.int(0, 7), U8)], direction=g.one(("LEFT", "RIGHT")))
    return g.node(op, [a, g.like(a, largest=1e9)])


def where(g: Draft) -> Value:
    a = g.pick((g.float, I64, I32, U8, I8, BOOL) if g.flag() else ())
    return g.node("Where", [g.like(a, BOOL), a, g.like(a)])


_TYPES = {F32: 1, U8: 2, I8: 3, I32: 6, I64: 7, BOOL: 9, F16: 10}


def cast(op: str, g: Draft) -> Value:
    x = g.pick(tuple(_TYPES), largest=6e4)
    to = g.one(tuple(_TYPES))
    if to in (U8, I8) and x.dtype != BOOL:
        # What does not fit has no defined result, from floats; integers wrap.
        x = g.bounded(x, 0 if to == U8 else -100, 200 if to == U8 else 100) if x.dtype not in INTEGERS else x
    if op == "CastLike":
        return g.node(op, [x, g.const([1], to)])
    return g.node(op, [x], to=_TYPES[to])


def reduction(op: str, g: Draft) -> Value:
    whole = g.chance(4) and op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
    x = g.pick((I32, I64) if whole else (), largest=100.0)
    if op in ("ReduceLogSum", "ReduceProd") and not whole:
        x = g.bounded(x, 0.5, 1.5)
    elif op == "ReduceLogSumExp":
        x = g.bounded(x, -20, 20)
    elif whole and op == "ReduceProd":
        x = g.bounded(x, -2, 2)
    axes = [a - x.rank if g.flag() else a for a in g.some(range(x.rank))]
    listed = g.ints(axes) if axes or g.chance(3) else None
    return g.node(op, [x, listed], keepdims=g.int(0, 1), noop_with_empty_axes=g.int(0, 1) if not axes else None)


def arg(op: str, g: Draft) -> Value:
    x = g.pick((g.float, g.float, I32, U8), low=1)
    return g.node(op, [x], axis=g.axis(x.rank), keepdims=g.int(0, 1), select_last_index=g.int(0, 1))


def softmax(op: str, g: Draft) -> Value:
    x = g.pick(low=1, largest=100.0)
    return g.node(op, [x], axis=g.axis(x.rank))


def lp_normalization(g: Draft) -> Value:
    x = g.pick(low=1)
    return g.node("LpNormalization", [g.bounded(x, 0.1, 100) if g.flag() else x], axis=g.axis(x.rank), p=g.int(1, 2))


def matmul(g: Draft) -> Value:
    a = g.pick((g.float,), low=1)
    k = a.dims[-1]
    if g.chance(5) and a.rank > 1:
        return g.node("MatMul", [g.new([*([g.size()] if g.flag() else ()), a.dims[-2]], a.dtype), a])
    batch = [d if not g.chance(3) else 1 for d in a.dims[:-2]] if g.chance(3) else []
    shape = (k,) if g.chance(8) else (*batch, k, g.size())
    return g.node("MatMul", [a, g.new(shape, a.dtype, constant=not g.chance(3))])


def gemm(g: Draft) -> Value:
    a, ta, tb = g.pick(low=2, high=2), g.int(0, 1), g.int(0, 1)
    m, k = (a.dims[1], a.dims[0]) if ta else a.dims
    n = g.size()
    b = g.new((n, k) if tb else (k, n), a.dtype, constant=not g.chance(4))
    shapes = [(m, n), (n,), (1, n), (), (1,), (m, 1)]
    c = g.new(g.one(shapes), a.dtype) if g.flag() else None
    return g.node("Gemm", [a, b, c], transA=ta, transB=tb, alpha=g.one((1.0, 0.5, -2.0)), beta=g.one((1.0, 0.25, 0.0)))


def einsum(g: Draft) -> Value:
    a = g.pick((F32,), low=2, high=3)
    if a.rank == 2:
        equation, dims = g.one((("ij,jk->ik", (a.dims[1], 5)), ("ij,kj->ik", (3, a.dims[1])),
                                ("ij,ij->i", a.dims), ("ij,j->i", a.dims[1:]), ("ij,ik->jk", (a.dims[0], 4))))
    else:
        equation, dims = g.one((("bij,bjk->bik", (a.dims[0], a.dims[2], 5)), ("bij,jk->bik", (a.dims[2], 7)),
                                ("bij,bkj->bik", (a.dims[0], 3, a.dims[2])), ("bij,bij->b", a.dims)))
    return g.node("Einsum", [a, g.new(dims, F32)], equation=equation)


def cumulative(g: Draft) -> Value:
    x = g.pick((F32, I32, I64), low=1)
    return g.node("CumSum", [x, g.const(g.axis(x.rank), g.one((I64, I32)))], exclusive=g.int(0, 1),
                  reverse=g.int(0, 1))


# -- quantization ----------------------------------------------------------------------------------------------------


def _scale(g: Draft, dims: tuple[int, ...]) -> Value:
    return g.const(g.rng().uniform(0.02, 0.3, dims).astype(np.float32))


def _zero(g: Draft, dims: tuple[int, ...], dtype: np.dtype[np.generic]) -> Value:
    low, high = (0, 255) if dtype == U8 else (-128, 127)
    return g.const(g.rng().integers(low // 2, high // 2, dims).astype(dtype))


def quantize(g: Draft) -> Value:
    """There and back, or only there."""
    x = g.pick((F32,), low=1, largest=1e4)
    dtype = g.one((U8, I8))
    per_axis = g.flag()
    axis = g.axis(x.rank)
    size = x.shape[axis]
    if per_axis and size < 1:
        raise RejectedError("a varying size has no constant scales")
    dims = (size,) if per_axis else ()
    scale, zero = _scale(g, dims), _zero(g, dims, dtype) if g.flag() else None
    extra = {"output_dtype": 3} if zero is None and dtype == I8 else {}
    q = g.node("QuantizeLinear", [x, scale, zero], axis=axis if per_axis else None, **extra)
    return g.node("DequantizeLinear", [q, scale, zero], axis=axis if per_axis else None) if g.flag() else q


def dequantize(g: Draft) -> Value:
    x = g.pick((U8, I8), low=1)
    axis = g.axis(x.rank)
    dims = (x.shape[axis],) if g.flag() and x.shape[axis] > 0 else ()
    return g.node("DequantizeLinear", [x, _scale(g, dims), _zero(g, dims, x.dtype) if g.flag() else None], axis=axis)


def dynamic_quantize(g: Draft) -> Value:
    return g.nodes_of("DynamicQuantizeLinear", [g.pick((F32,), low=1)], 3)[0]


def integer_matmul(g: Draft) -> Value:
    a = g.pick((U8, I8), low=2, high=3)
    dtype = g.one((U8, I8)) if a.dtype == U8 else I8
    b = g.new((a.dims[-1], g.size()), dtype, constant=True)
    return g.node("MatMulInteger", [a, b, _zero(g, (), a.dtype) if g.flag() else None,
                                    _zero(g, (), dtype) if g.flag() else None])


def quantized_matmul(g: Draft) -> Value:
    a = g.pick((U8, I8), low=2, high=3)
    b = g.new((a.dims[-1], g.size()), I8 if a.dtype == I8 else g.one((U8, I8)), constant=True)
    return g.node("QLinearMatMul", [a, _scale(g, ()), _zero(g, (), a.dtype), b, _scale(g, ()), _zero(g, (), b.dtype),
                                    g.const(np.float32(2.5)), _zero(g, (), a.dtype)])


MATH: dict[str, Drawer] = {
    **{op: partial(unary, op) for op in _UNARY},
    **{op: partial(activation, op) for op in ("Elu", "Celu", "LeakyRelu", "Selu", "ThresholdedRelu", "HardSigmoid",
                                              "Gelu", "Swish", "Shrink")},
    "Clip": clip, "Dropout": dropout, "IsNaN": partial(special, "IsNaN"), "IsInf": partial(special, "IsInf"),
    **{op: partial(binary, op) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max")},
    **{op: partial(variadic, op) for op in ("Sum", "Mean")}, "Max of many": partial(variadic, "Max"),
    "PRelu": prelu,
    **{op: partial(compare, op) for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")},
    **{op: partial(logic, op) for op in ("And", "Or", "Xor")}, "Not": negate,
    **{op: partial(bitwise, op) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift")},
    "Where": where, "Cast": partial(cast, "Cast"), "CastLike": partial(cast, "CastLike"),
    **{op: partial(reduction, op) for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd",
                                             "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
                                             "ReduceLogSumExp")},
    "ArgMax": partial(arg, "ArgMax"), "ArgMin": partial(arg, "ArgMin"),
    **{op: partial(softmax, op) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    "LpNormalization": lp_normalization, "MatMul": matmul, "Gemm": gemm, "Einsum": einsum, "CumSum": cumulative,
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize, "DynamicQuantizeLinear": dynamic_quantize,
    "MatMulInteger": integer_matmul, "QLinearMatMul": quantized_matmul,
}
