"""Activations, reductions and elementwise operators in simpler ones.

Each entry: (op, node) -> values, or the reason why not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Builder,
    const_of,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_attr,
    ints_of,
    rank_of,
    required,
    scalar_of,
    str_attr,
)

Decomposed = ir.Value | Sequence[ir.Value] | str
Entry = Callable[[Builder, ir.Node], Decomposed]
FLOAT = int(ir.DataType.FLOAT)
# Types of which every value is one of FLOAT.
EXACT = (ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def gelu(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    if str_attr(node, "approximate", "none") == "tanh":
        cube = op.Mul(op.Mul(x, x), x)
        inner = op.Mul(op.Add(x, op.Mul(cube, op.like(0.044715, x))), op.like(math.sqrt(2 / math.pi), x))
        bend = op.Tanh(inner)
    else:
        bend = op.Erf(op.Mul(x, op.like(math.sqrt(0.5), x)))
    return op.Mul(op.Mul(x, op.like(0.5, x)), op.Add(bend, op.like(1.0, x)))


def swish(op: Builder, node: ir.Node) -> Decomposed:
    x, alpha = required(node, 0), float_attr(node, "alpha", 1.0)
    return op.Mul(x, op.Sigmoid(x if alpha == 1.0 else op.Mul(x, op.like(alpha, x))))


def hard_swish(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5))


def hard_sigmoid(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    line = op.Mul(x, op.like(float_attr(node, "alpha", 0.2), x))
    return op.Clip(op.Add(line, op.like(float_attr(node, "beta", 0.5), x)), op.like(0.0, x), op.like(1.0, x))


def mish(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Mul(x, op.Tanh(op.Softplus(x)))


def softplus(op: Builder, node: ir.Node) -> Decomposed:
    # max(x, 0) + log(1 + exp(-|x|)) never overflows.
    x = required(node, 0)
    return op.Add(op.Relu(x), op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), op.like(1.0, x))))


def softsign(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Div(x, op.Add(op.Abs(x), op.like(1.0, x)))


def sigmoid(op: Builder, node: ir.Node) -> Decomposed:
    # (1 + tanh(x / 2)) / 2 never overflows.
    x = required(node, 0)
    bend = op.Tanh(op.Mul(x, op.like(0.5, x)))
    return op.Mul(op.Add(bend, op.like(1.0, x)), op.like(0.5, x))


def relu(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Max(x, op.like(0.0, x))


def _negative_part(op: Builder, x: ir.Value) -> ir.Value:
    return op.Min(x, op.like(0.0, x))


def _bent(op: Builder, x: ir.Value, alpha: float, slope: float) -> ir.Value:
    """max(x, 0) + alpha (exp(min(x, 0) / slope) - 1)."""
    low = _negative_part(op, x)
    if slope != 1.0:
        low = op.Mul(low, op.like(1.0 / slope, x))
    return op.Add(op.Relu(x), op.Mul(op.Sub(op.Exp(low), op.like(1.0, x)), op.like(alpha, x)))


def elu(op: Builder, node: ir.Node) -> Decomposed:
    return _bent(op, required(node, 0), float_attr(node, "alpha", 1.0), 1.0)


def celu(op: Builder, node: ir.Node) -> Decomposed:
    alpha = float_attr(node, "alpha", 1.0)
    return _bent(op, required(node, 0), alpha, alpha)


def selu(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    alpha, gamma = float_attr(node, "alpha", 1.67326319217681884765625), float_attr(node, "gamma", 1.05070102214813232)
    return op.Mul(_bent(op, x, alpha, 1.0), op.like(gamma, x))


def leaky_relu(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Add(op.Relu(x), op.Mul(_negative_part(op, x), op.like(float_attr(node, "alpha", 0.01), x)))


def prelu(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Add(op.Relu(x), op.Mul(_negative_part(op, x), required(node, 1)))


def thresholded_relu(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Where(op.Greater(x, op.like(float_attr(node, "alpha", 1.0), x)), x, op.like(0.0, x))


def shrink(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    bias, edge = op.like(float_attr(node, "bias", 0.0), x), float_attr(node, "lambd", 0.5)
    above = op.Where(op.Greater(x, op.like(edge, x)), op.Sub(x, bias), op.like(0.0, x))
    return op.Where(op.Less(x, op.like(-edge, x)), op.Add(x, bias), above)


def clip(op: Builder, node: ir.Node) -> Decomposed:
    x, low, high = required(node, 0), input_of(node, 1), input_of(node, 2)
    # The standard applies the lower bound first, so that the upper one wins where they cross.
    if low is not None:
        x = op.Max(x, low)
    if high is not None:
        x = op.Min(x, high)
    return x


def _exp_shifted(op: Builder, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(x - max, exp(x - max), sum of the latter) along the axis."""
    x, axis = required(node, 0), op.ints([int_attr(node, "axis", -1)])
    shifted = op.Sub(x, op.ReduceMax(x, axis, keepdims=1))
    powers = op.Exp(shifted)
    return shifted, powers, op.ReduceSum(powers, axis, keepdims=1)


def softmax(op: Builder, node: ir.Node) -> Decomposed:
    _, powers, total = _exp_shifted(op, node)
    return op.Div(powers, total)


def log_softmax(op: Builder, node: ir.Node) -> Decomposed:
    shifted, _, total = _exp_shifted(op, node)
    return op.Sub(shifted, op.Log(total))


def variadic(op: Builder, node: ir.Node) -> Decomposed:
    """Sum, Max, Min of any number of inputs as a chain of binary ones."""
    step = {"Sum": op.Add, "Max": op.Max, "Min": op.Min}[node.op_type]
    total = required(node, 0)
    for i in range(1, len(node.inputs)):
        total = step(total, required(node, i))
    return total


def mean(op: Builder, node: ir.Node) -> Decomposed:
    total = required(node, 0)
    for i in range(1, len(node.inputs)):
        total = op.Add(total, required(node, i))
    return op.Mul(total, op.like(1.0 / len(node.inputs), total))


def _reduce(op: Builder, kind: str, x: ir.Value, node: ir.Node, keepdims: int | None = None) -> ir.Value:
    # With noop_with_empty_axes the sum is skipped, and what surrounds it is not.
    return op.node(kind, [x, input_of(node, 1)], {
        "keepdims": int_attr(node, "keepdims", 1) if keepdims is None else keepdims,
        "noop_with_empty_axes": int_attr(node, "noop_with_empty_axes", 0) or None,
    }).outputs[0]


def reduce_log_sum(op: Builder, node: ir.Node) -> Decomposed:
    return op.Log(_reduce(op, "ReduceSum", required(node, 0), node))


def reduce_log_sum_exp(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    top = _reduce(op, "ReduceMax", x, node, keepdims=1)
    total = _reduce(op, "ReduceSum", op.Exp(op.Sub(x, top)), node, keepdims=1)
    result = op.Add(op.Log(total), top)
    # Summing over axes of length 1 only drops them.
    return result if int_attr(node, "keepdims", 1) else _reduce(op, "ReduceSum", result, node, keepdims=0)


def reduce_l1(op: Builder, node: ir.Node) -> Decomposed:
    return _reduce(op, "ReduceSum", op.Abs(required(node, 0)), node)


def reduce_sum_square(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return _reduce(op, "ReduceSum", op.Mul(x, x), node)


def reduce_l2(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Sqrt(_reduce(op, "ReduceSum", op.Mul(x, x), node))


def reciprocal(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Div(op.like(1.0, x), x)


def negative(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Mul(x, op.like(-1, x))


def absolute(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Max(x, op.Neg(x))


def or_equal(op: Builder, node: ir.Node) -> Decomposed:
    # Not(opposite) would be true for NaN.
    a, b = required(node, 0), required(node, 1)
    strict = op.Greater(a, b) if node.op_type == "GreaterOrEqual" else op.Less(a, b)
    return op.Or(strict, op.Equal(a, b))


def tangent(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Div(op.Sin(x), op.Cos(x))


def power(op: Builder, node: ir.Node) -> Decomposed:
    x, exponent = required(node, 0), const_of(node.inputs[1], 1)
    number = None if exponent is None or exponent.size != 1 else float(exponent.reshape(-1)[0])
    if number == 2.0:
        return op.Mul(x, x)
    if number == 3.0:
        return op.Mul(op.Mul(x, x), x)
    if number == 0.5:
        return op.Sqrt(x)
    if number == -0.5:
        return op.Reciprocal(op.Sqrt(x))
    return "its exponent is not a constant 2, 3, 0.5 or -0.5"


def arg_max(op: Builder, node: ir.Node) -> Decomposed:
    """Of INT32, in FLOAT, which has 24 bits: the largest upper 20 bits first, then the largest lower 12 among those.

    The last of equals is the first of the reversed axis.
    """
    x, axis, keepdims = required(node, 0), int_attr(node, "axis", 0), int_attr(node, "keepdims", 1)
    dims = dims_of(x)
    if int_attr(node, "select_last_index", 0):
        size = None if dims is None else dims[axis]
        if not isinstance(size, int):
            return "it takes the last of equals along an axis of unknown length"
        turned = op.Slice(x, op.ints([-1]), op.ints([-(1 << 62)]), op.ints([axis]), op.ints([-1]))
        found = op.node(node.op_type, [turned], {"axis": axis, "keepdims": keepdims}).outputs[0]
        return op.Sub(op.const(np.array(size - 1, np.int64)), found)
    if x.dtype in EXACT:
        return op.node(node.op_type, [op.Cast(x, to=int(ir.DataType.FLOAT))], {"axis": axis, "keepdims": keepdims}
                       ).outputs[0]
    if node.op_type == "ArgMin" or x.dtype != ir.DataType.INT32:
        return f"its input is {x.dtype}"
    low = op.Mod(x, op.like(1 << 12, x))
    high = op.Cast(op.Div(op.Sub(x, low), op.like(1 << 12, x)), to=int(ir.DataType.FLOAT))
    top = op.ReduceMax(high, op.ints([int_attr(node, "axis", 0)]), keepdims=1)
    rest = op.Cast(low, to=int(ir.DataType.FLOAT))
    among = op.Where(op.Equal(high, top), rest, op.const(np.array(-1, np.float32)))
    return op.ArgMax(among, axis=int_attr(node, "axis", 0), keepdims=int_attr(node, "keepdims", 1))


def gemm(op: Builder, node: ir.Node) -> Decomposed:
    a, b, c = required(node, 0), required(node, 1), input_of(node, 2)
    alpha, beta = float_attr(node, "alpha", 1.0), float_attr(node, "beta", 1.0)
    a = op.Transpose(a, perm=(1, 0)) if int_attr(node, "transA", 0) else a
    b = op.Transpose(b, perm=(1, 0)) if int_attr(node, "transB", 0) else b
    y = op.MatMul(a, b)
    if alpha != 1.0:
        y = op.Mul(y, op.like(alpha, a))
    if c is None or beta == 0.0:
        return y
    return op.Add(y, c if beta == 1.0 else op.Mul(c, op.like(beta, c)))


def global_pool(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    rank = rank_of(x)
    if rank is None:
        return "the rank of its input is not known"
    kind = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
    return op.node(kind, [x, op.ints(range(2, rank))], {"keepdims": 1}).outputs[0]


def einsum(op: Builder, node: ir.Node) -> Decomposed:
    """One or two operands without repeated labels or ellipsis: transposes, a sum over lone labels, one MatMul."""
    equation = str_attr(node, "equation", "").replace(" ", "")
    if "." in equation:
        return "its equation has an ellipsis"
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if not _:
        flat = "".join(terms)
        right = "".join(sorted(c for c in set(flat) if flat.count(c) == 1))
    if any(len(set(term)) != len(term) for term in (*terms, right)):
        return "a label is repeated in one operand"
    if len(terms) > 2:
        return "it has more than two operands"
    size: dict[str, int | str | None] = {}
    operands = []
    for i, term in enumerate(terms):
        x = required(node, i)
        dims = dims_of(x)
        if dims is None or len(dims) != len(term):
            return f"the rank of operand {i} is not known or not {len(term)}"
        size.update(zip(term, dims, strict=True))
        others = right + (terms[1 - i] if len(terms) == 2 else "")
        lone = [k for k, c in enumerate(term) if c not in others]
        if lone:
            x = op.ReduceSum(x, op.ints(lone), keepdims=0)
        operands.append((x, "".join(c for c in term if c in others)))
    if len(operands) == 1:
        return _permuted(op, *operands[0], right)
    (a, a_labels), (b, b_labels) = operands
    batch = [c for c in right if c in a_labels and c in b_labels]
    summed = [c for c in a_labels if c in b_labels and c not in right]
    a_free = [c for c in a_labels if c not in b_labels]
    b_free = [c for c in b_labels if c not in a_labels]
    known = {c: d for c, d in size.items() if isinstance(d, int)}
    a = _permuted(op, a, a_labels, "".join(batch + a_free + summed))
    b = _permuted(op, b, b_labels, "".join(batch + summed + b_free))
    if len(a_free) == len(b_free) == len(summed) == 1:
        return _permuted(op, op.MatMul(a, b), "".join(batch + a_free + b_free), right)
    if any(c not in known for c in size):
        return "it joins or adds labels of unknown size"
    lead = [known[c] for c in batch]
    rows, inner, columns = (math.prod(known[c] for c in group) for group in (a_free, summed, b_free))
    y = op.MatMul(op.Reshape(a, op.ints([*lead, rows, inner])), op.Reshape(b, op.ints([*lead, inner, columns])))
    order = batch + a_free + b_free
    return _permuted(op, op.Reshape(y, op.ints([known[c] for c in order])), "".join(order), right)


def _permuted(op: Builder, x: ir.Value, have: str, want: str) -> ir.Value:
    return x if have == want else op.Transpose(x, perm=tuple(have.index(c) for c in want))


def cast_like(op: Builder, node: ir.Node) -> Decomposed:
    target = required(node, 1).dtype
    return "the type of its example is not known" if target is None else op.Cast(required(node, 0), to=int(target))


def trilu(op: Builder, node: ir.Node) -> Decomposed:
    x, offset = required(node, 0), input_of(node, 1)
    dims, k = dims_of(x), (0,) if offset is None else ints_of(offset)
    if dims is None or k is None or not (isinstance(dims[-1], int) and isinstance(dims[-2], int)):
        return "its matrix size or diagonal is not known"
    keep = np.tri(dims[-2], dims[-1], k[0] - 1, bool) if int_attr(node, "upper", 1) else np.tri(
        dims[-2], dims[-1], k[0], bool)
    return op.Where(op.const(~keep if int_attr(node, "upper", 1) else keep), x, op.like(0, x))


def lp_normalization(op: Builder, node: ir.Node) -> Decomposed:
    x, axis = required(node, 0), op.ints([int_attr(node, "axis", -1)])
    norm = op.ReduceL1(x, axis, keepdims=1) if int_attr(node, "p", 2) == 1 else op.ReduceL2(x, axis, keepdims=1)
    # The standard defines 0 / 0 as 0 here.
    safe = op.Where(op.Equal(norm, op.like(0.0, x)), op.like(1.0, x), norm)
    return op.Div(x, safe)


def mean_variance_normalization(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    axes = op.ints(ints_attr(node, "axes") or (0, 2, 3))
    center = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    deviation = op.Sqrt(op.ReduceMean(op.Mul(center, center), axes, keepdims=1))
    return op.Div(center, op.Add(deviation, op.like(1e-9, x)))


def _series(op: Builder, x: ir.Value, factors: Sequence[float]) -> ir.Value:
    """x (f0 + f1 x^2 + f2 x^4 + ...): an odd function near 0, where its usual formula cancels."""
    square = op.Mul(x, x)
    total = op.like(factors[-1], x)
    for factor in reversed(factors[:-1]):
        total = op.Add(op.Mul(total, square), op.like(factor, x))
    return op.Mul(x, total)


def _near_zero(op: Builder, x: ir.Value, edge: float, factors: Sequence[float], far: ir.Value) -> ir.Value:
    return op.Where(op.Less(op.Abs(x), op.like(edge, x)), _series(op, x, factors), far)


def sinh(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    # Half of e^x as (e^(x/2))^2 / 2 reaches as far as the result does.
    up, down = op.Exp(op.Mul(x, op.like(0.5, x))), op.Exp(op.Mul(x, op.like(-0.5, x)))
    half = op.like(0.5, x)
    far = op.Sub(op.Mul(op.Mul(up, half), up), op.Mul(op.Mul(down, half), down))
    return _near_zero(op, x, 0.5, (1, 1 / 6, 1 / 120, 1 / 5040), far)


def cosh(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    up, down = op.Exp(op.Mul(x, op.like(0.5, x))), op.Exp(op.Mul(x, op.like(-0.5, x)))
    half = op.like(0.5, x)
    return op.Add(op.Mul(op.Mul(up, half), up), op.Mul(op.Mul(down, half), down))


def asinh(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    size, one = op.Abs(x), op.like(1.0, x)
    # |x| sqrt(1 + 1 / x^2) does not overflow where x^2 would.
    part = op.Reciprocal(size)
    root = op.Mul(size, op.Sqrt(op.Add(op.Mul(part, part), one)))
    half = op.like(0.5, x)
    mean = op.Add(op.Mul(size, half), op.Mul(root, half))
    far = op.Mul(op.Sign(x), op.Add(op.Log(mean), op.like(math.log(2), x)))
    return _near_zero(op, x, 0.35, (1, -1 / 6, 3 / 40, -15 / 336, 105 / 3456, -945 / 42240), far)


def acosh(op: Builder, node: ir.Node) -> Decomposed:
    # log(1 + t + sqrt(t (t + 2))) for t = x - 1, of which nothing cancels.
    x = required(node, 0)
    one = op.like(1.0, x)
    t = op.Sub(x, one)
    root = op.Mul(op.Sqrt(t), op.Sqrt(op.Add(t, op.like(2.0, x))))
    # Where t + root would overflow, x is twice their half.
    huge = op.Add(op.Log(x), op.like(math.log(2), x))
    return op.Where(op.Greater(x, op.like(1e18, x)), huge, _log1p(op, op.Add(t, root)))


def _log1p(op: Builder, t: ir.Value) -> ir.Value:
    """log(1 + t) for t >= 0: what 1 + t rounded away is put back by the ratio (Kahan)."""
    one = op.like(1.0, t)
    whole = op.Add(t, one)
    kept = op.Sub(whole, one)
    safe = op.Where(op.Equal(kept, op.like(0.0, t)), one, kept)
    large = op.Greater(whole, op.like(1e6, t))
    found = op.Where(large, op.Log(whole), op.Mul(op.Log(whole), op.Div(t, safe)))
    return op.Where(op.Equal(kept, op.like(0.0, t)), t, found)


def atanh(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    one = op.like(1.0, x)
    far = op.Mul(op.Log(op.Div(op.Add(one, x), op.Sub(one, x))), op.like(0.5, x))
    return _near_zero(op, x, 0.3, (1, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11), far)


def _arc_tangent(op: Builder, x: ir.Value) -> ir.Value:
    """Two halvings of the angle, atan x = 2 atan(x / (1 + sqrt(1 + x^2))), bring every x below 0.42."""
    one = op.like(1.0, x)
    size = op.Abs(x)
    far = op.Greater(size, one)
    # Beyond 1 the angle is a right one less that of 1 / x.
    t = op.Where(far, op.Reciprocal(size), size)
    t = op.Div(t, op.Add(one, op.Sqrt(op.Add(op.Mul(t, t), one))))
    angle = op.Mul(op.like(2.0, x), _series(op, t, tuple((-1) ** k / (2 * k + 1) for k in range(9))))
    angle = op.Where(far, op.Sub(op.like(math.pi / 2, x), angle), angle)
    return op.Where(op.Less(x, op.like(0.0, x)), op.Neg(angle), angle)


def atan(op: Builder, node: ir.Node) -> Decomposed:
    return _arc_tangent(op, required(node, 0))


def _arc_sine(op: Builder, x: ir.Value) -> ir.Value:
    one = op.like(1.0, x)
    return _arc_tangent(op, op.Div(x, op.Sqrt(op.Mul(op.Sub(one, x), op.Add(one, x)))))


def asin(op: Builder, node: ir.Node) -> Decomposed:
    return _arc_sine(op, required(node, 0))


def acos(op: Builder, node: ir.Node) -> Decomposed:
    # 2 atan(sqrt((1 - x) / (1 + x))) keeps the digits near 1.
    x = required(node, 0)
    one = op.like(1.0, x)
    return op.Mul(op.like(2.0, x), _arc_tangent(op, op.Sqrt(op.Div(op.Sub(one, x), op.Add(one, x)))))


def is_nan(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    return op.Not(op.Equal(x, x))


def is_inf(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    up, down = int_attr(node, "detect_positive", 1), int_attr(node, "detect_negative", 1)
    if up and down:
        return op.Equal(op.Abs(x), op.like(math.inf, x))
    if up or down:
        return op.Equal(x, op.like(math.inf if up else -math.inf, x))
    return op.Not(op.Equal(op.Equal(x, x), op.Equal(x, x)))


def hardmax(op: Builder, node: ir.Node) -> Decomposed:
    """1 at the first of the largest along the axis, 0 elsewhere."""
    x, axis = required(node, 0), int_attr(node, "axis", -1)
    dims = dims_of(x)
    size = None if dims is None else dims[axis]
    if dims is None or not isinstance(size, int):
        return "the length of its axis is not known"
    form = [1] * len(dims)
    form[axis] = size
    at = op.ArgMax(x, axis=axis, keepdims=1)
    return op.Cast(op.Equal(op.const(np.arange(size).reshape(form)), at), to=int(x.dtype or FLOAT))


def mod_as_in_c(op: Builder, node: ir.Node) -> Decomposed:
    """fmod = 1: the sign of the dividend; x mod y of sizes, which the divisor's sign does not touch."""
    a, b = required(node, 0), required(node, 1)
    if not int_attr(node, "fmod", 0):
        return "it is a kernel's"
    if a.dtype in (ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64):
        # The least number has no size of its own type; a quotient of whole numbers is truncated.
        return op.Sub(a, op.Mul(op.Div(a, b), b))
    rest = op.Mod(op.Abs(a), op.Abs(b))
    return op.Where(op.Less(a, op.like(0, a)), op.Neg(rest), rest)


def dropout(op: Builder, node: ir.Node) -> Decomposed:
    """Outside training: the input, and a mask that keeps all of it."""
    x, training = required(node, 0), input_of(node, 2)
    if training is not None and scalar_of(training) != 0:
        return "it is in training mode"
    return [op.Identity(x), op.Expand(op.const(np.array(True)), op.Shape(x))]


TABLE: Mapping[str, Entry] = {
    "Sinh": sinh, "Cosh": cosh, "Asinh": asinh, "Acosh": acosh, "Atanh": atanh, "Atan": atan, "Asin": asin,
    "Acos": acos, "IsNaN": is_nan, "IsInf": is_inf, "Hardmax": hardmax, "Mod": mod_as_in_c,
    "Dropout": dropout, "ArgMin": arg_max,
    "Gelu": gelu, "Swish": swish, "HardSwish": hard_swish, "HardSigmoid": hard_sigmoid, "Mish": mish,
    "Softplus": softplus, "Softsign": softsign, "Sigmoid": sigmoid, "Relu": relu, "Elu": elu, "Celu": celu,
    "Selu": selu, "LeakyRelu": leaky_relu, "PRelu": prelu, "ThresholdedRelu": thresholded_relu, "Shrink": shrink,
    "Clip": clip,
    "Softmax": softmax, "LogSoftmax": log_softmax, "Sum": variadic, "Mean": mean, "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp, "ReduceL1": reduce_l1, "ReduceL2": reduce_l2,
    "ReduceSumSquare": reduce_sum_square, "Reciprocal": reciprocal, "Neg": negative, "Abs": absolute,
    "GreaterOrEqual": or_equal, "LessOrEqual": or_equal, "Tan": tangent, "Pow": power, "Gemm": gemm, "ArgMax": arg_max,
    "GlobalAveragePool": global_pool, "GlobalMaxPool": global_pool, "Einsum": einsum, "CastLike": cast_like,
    "Trilu": trilu, "LpNormalization": lp_normalization, "MeanVarianceNormalization": mean_variance_normalization,
}
