"""Lowering of elementwise operators, reductions, softmax, norms and arg-reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype
from edgec.ir.model import float_attr, input_of, int_attr, str_attr
from edgec.native.dims import Dim, dim, dim_max, dim_min, product
from edgec.native.lower_values import (
    DTYPES,
    HALVES,
    Dims,
    Lowering,
    UnsupportedError,
    Value,
    View,
    identity,
    of_const,
    of_data,
    of_run,
    settled,
)

# docs/kernels.md: `act` codes, then the codes of `unary` alone.
ACT: dict[str, int] = {
    "Relu": 1, "Clip": 2, "Sigmoid": 3, "Swish": 4, "Tanh": 5, "Gelu": 6, "HardSwish": 8, "HardSigmoid": 9,
    "LeakyRelu": 10, "Elu": 11, "Softplus": 12, "Mish": 13,
}
GELU_TANH = 7
UNARY: dict[str, int] = {
    "Neg": 32, "Abs": 33, "Exp": 34, "Log": 35, "Sqrt": 36, "Reciprocal": 37, "Erf": 38, "Sin": 39, "Cos": 40,
    "Floor": 41, "Ceil": 42, "Round": 43, "Sign": 44, "Not": 45,
}
SQUARE = 47
BINARY: dict[str, int] = {
    "Add": 0, "Sub": 1, "Mul": 2, "Div": 3, "Pow": 4, "Min": 5, "Max": 6, "Mod": 7, "Equal": 8, "Less": 9,
    "LessOrEqual": 10, "Greater": 11, "GreaterOrEqual": 12, "And": 13, "Or": 14, "Xor": 15,
}
REDUCE: dict[str, int] = {
    "ReduceSum": 0, "ReduceMean": 1, "ReduceMax": 2, "ReduceMin": 3, "ReduceProd": 4, "ReduceSumSquare": 5,
    "ReduceL2": 6, "ReduceL1": 7,
}
_COMPARES = range(8, 13)
_LOGIC = range(13, 16)


def need_f32(value: Value, what: str = "the input") -> Value:
    """`value`. Raises UnsupportedError unless it is float32."""
    if value.dtype is not Dtype.F32:
        raise UnsupportedError(f"{what} is {value.dtype.name.lower()}; the kernel computes in float32")
    return value


# -- broadcasting ----------------------------------------------------------------------------------------------------


def broadcast(shapes: Sequence[Dims]) -> Dims:
    """The common shape by numpy's rules. Raises UnsupportedError when sizes differ or cannot be compared."""
    rank = max(map(len, shapes))
    result: list[Dim] = []
    for axis in range(rank):
        found = dim(1)
        for shape in shapes:
            at = axis - (rank - len(shape))
            d = shape[at] if at >= 0 else dim(1)
            if d == 1 or d == found:
                continue
            if found != 1:
                raise UnsupportedError(f"sizes {found} and {d} of axis {axis} do not broadcast")
            found = d
        result.append(found)
    return tuple(result)


def lift(value: Value, rank: int) -> Value:
    """`value` with axes of size 1 in front up to `rank`."""
    extra = rank - value.rank
    if extra == 0:
        return value
    dims = (dim(1),) * extra + value.dims
    if value.const is not None:
        return of_const(value.const.reshape((1,) * extra + value.const.dims))
    data = None if value.data is None else value.data.reshape((1,) * extra + value.data.shape)
    order = (*range(extra), *(a + extra for a in value.order))
    return Value(dims, value.dtype, order, buf=value.buf, data=data, run=value.run)


def together(ctx: Lowering, values: Sequence[Value]) -> tuple[list[View], tuple[int, ...], Dims]:
    """Views of all operands in one memory order, that order, and the common logical shape."""
    dims = broadcast([v.dims for v in values])
    lifted = [lift(v, len(dims)) for v in values]
    # The order of the largest computed operand wins: it is the one that is costly to move.
    lead = max(lifted, key=lambda v: (v.const is None, v.count.hi))
    return [ctx.view(v, lead.order) for v in lifted], lead.order, dims


def _output(ctx: Lowering, dims: Dims, order: tuple[int, ...], dtype: Dtype) -> tuple[View, Value]:
    out = ctx.fresh([dims[a] for a in order], dtype)
    return out, Value(dims, dtype, order, buf=out.buf)


# -- elementwise -----------------------------------------------------------------------------------------------------


def unary(ctx: Lowering, x: Value, op: int, a: float = 0.0, b: float = 0.0) -> Value:
    view = ctx.view(x)
    out, value = _output(ctx, x.dims, x.order, x.dtype)
    ctx.emit("unary", [out], [view], [op], [a, b])
    return value


def lower_unary(ctx: Lowering, node: ir.Node) -> Value:
    x, name = ctx.need(node, 0), node.op_type
    known = ctx.known(x) if x.dtype is not Dtype.F32 else None
    if name == "Neg" and known is not None:
        return of_data(np.vectorize(lambda v: -dim(v), otypes=[object])(known), x.dtype)
    if name == "Not":
        if x.dtype is not Dtype.BOOL:
            raise UnsupportedError("Not takes a boolean")
        return unary(ctx, x, UNARY[name])
    if name in ("Neg", "Abs") and x.dtype in (Dtype.I8, Dtype.U8):
        wide = ctx.cast(x, Dtype.I32)
        minus = binary(ctx, "Sub", ctx.cast(of_data(np.zeros((), np.int64)), Dtype.I32), wide)
        return ctx.cast(minus if name == "Neg" else binary(ctx, "Max", wide, minus), x.dtype)
    if name in ("Neg", "Abs") and x.dtype in (Dtype.I64, Dtype.I32):
        # The kernel has no integers; the binary one has.
        zero = ctx.cast(of_data(np.zeros((), np.int64)), x.dtype)
        minus = binary(ctx, "Sub", zero, x)
        return minus if name == "Neg" else binary(ctx, "Max", x, minus)
    need_f32(x)
    if name in UNARY:
        return unary(ctx, x, UNARY[name])
    a = b = 0.0
    code = ACT[name]
    if name == "Clip":
        low, high = ctx.get(node, 1), ctx.get(node, 2)
        a = -math.inf if low is None else ctx.scalar(low, "the lower bound")
        b = math.inf if high is None else ctx.scalar(high, "the upper bound")
    elif name == "Gelu":
        code = GELU_TANH if str_attr(node, "approximate", "none") == "tanh" else code
    elif name == "HardSigmoid":
        a, b = float_attr(node, "alpha", 0.2), float_attr(node, "beta", 0.5)
    elif name in ("LeakyRelu", "Elu"):
        a = float_attr(node, "alpha", 0.01 if name == "LeakyRelu" else 1.0)
    return unary(ctx, x, code, a, b)


def check_unary(node: ir.Node) -> str | None:
    if node.op_type == "Swish" and float_attr(node, "alpha", 1.0) != 1.0:
        return f"alpha = {float_attr(node, 'alpha', 1.0):g}; the kernel has alpha = 1"
    if node.op_type == "Gelu" and str_attr(node, "approximate", "none") not in ("none", "tanh"):
        return f"approximate = {str_attr(node, 'approximate', 'none')!r}"
    return None


def _fold(op: str, a: object, b: object) -> object:
    """One elementwise result on int or Dim; None when it cannot be decided before the run."""
    x, y = dim(a), dim(b)  # type: ignore[arg-type]
    p, q = x.const, y.const
    if op in ("Add", "Sub", "Mul"):
        return x + y if op == "Add" else x - y if op == "Sub" else x * y
    if op in ("Min", "Max"):
        return dim_min(x, y) if op == "Min" else dim_max(x, y)
    if op == "Div":
        if p is not None and q is not None:
            return None if q == 0 else abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)
        return x // y if x.lo >= 0 and y.lo > 0 else None  # truncation is floor only there
    if op == "Mod":
        if p is not None and q is not None:
            return p % q if q else None
        return dim_max(x - x // y * y, 0) if x.lo >= 0 and y.lo > 0 else None  # the bounds of a difference are wider
    if op == "Pow":
        return p**q if p is not None and q is not None and q >= 0 else None
    if op in ("And", "Or", "Xor"):
        if p is None or q is None:
            return None
        return {"And": bool(p and q), "Or": bool(p or q), "Xor": bool(p) != bool(q)}[op]
    d = x - y
    if op == "Equal":
        return True if d == 0 else False if d.lo > 0 or d.hi < 0 else None
    if op in ("Greater", "LessOrEqual"):
        d = -d
    # Less: d < 0; GreaterOrEqual: d >= 0; the two others are these with the operands exchanged.
    negative = True if d.hi < 0 else False if d.lo >= 0 else None
    return negative if op in ("Less", "Greater") or negative is None else not negative


def fold(ctx: Lowering, op: str, a: Value, b: Value) -> Value | None:
    """The result as data or run when both operands are known integers, else None."""
    if Dtype.F32 in (a.dtype, b.dtype):
        return None
    dtype = Dtype.BOOL if BINARY[op] in (*_COMPARES, *_LOGIC) else a.dtype
    x, y = ctx.known(a), ctx.known(b)
    if x is not None and y is not None:
        result = np.frompyfunc(lambda p, q: _fold(op, p, q), 2, 1)(x, y)
        array = np.empty(np.shape(result), dtype=object)
        array[...] = result
        return None if any(i is None for i in array.reshape(-1)) else of_data(array, dtype)
    for sequence, other, flip in ((a, y, False), (b, x, True)):
        if sequence.run is None or other is None or other.size != 1 or other.ndim > sequence.rank:
            continue
        start, step = sequence.run
        number = dim(other.reshape(-1)[0])
        if op == "Add":
            return of_run(start + number, step, sequence.dims)
        if op == "Sub" and not flip:
            return of_run(start - number, step, sequence.dims)
        if op == "Mul" and number.const is not None:
            return of_run(start * number, step * number.const, sequence.dims)
    return None


def binary(ctx: Lowering, op: str, a: Value, b: Value) -> Value:
    """One `binary` call, or nothing where the result is known."""
    code = BINARY[op]
    folded = fold(ctx, op, a, b)
    if folded is not None:
        return folded
    if code in _LOGIC and (a.dtype, b.dtype) != (Dtype.BOOL, Dtype.BOOL):
        raise UnsupportedError(f"{op} takes booleans")
    if op == "Pow" and a.dtype is Dtype.F32:
        power = _maybe_scalar(ctx, b)
        if power in (0.5, 2.0) and broadcast([a.dims, b.dims]) == a.dims:
            return unary(ctx, a, UNARY["Sqrt"] if power == 0.5 else SQUARE)
        b = ctx.cast(b, Dtype.F32)
    elif op == "Pow" and b.dtype is not a.dtype:
        # The result has the type of the base.
        wide = binary(ctx, op, ctx.cast(a, Dtype.F32), b) if b.dtype is Dtype.F32 else None
        return ctx.cast(wide, a.dtype) if wide is not None else binary(ctx, op, a, ctx.cast(b, a.dtype))
    if a.dtype is b.dtype and a.dtype in (Dtype.I8, Dtype.U8):
        # In INT32 nothing is lost before it is cut to 8 bits again.
        wide = binary(ctx, op, ctx.cast(a, Dtype.I32), ctx.cast(b, Dtype.I32))
        return wide if code in _COMPARES else ctx.cast(wide, a.dtype)
    allowed = (Dtype.F32, Dtype.I64, Dtype.I32, *((Dtype.BOOL,) if op == "Equal" else ()))
    if a.dtype is not b.dtype or (code not in _LOGIC and a.dtype not in allowed):
        raise UnsupportedError(f"{op} of {a.dtype.name.lower()} and {b.dtype.name.lower()} has no kernel")
    views, order, dims = together(ctx, [a, b])
    out, value = _output(ctx, dims, order, Dtype.BOOL if code in (*_COMPARES, *_LOGIC) else a.dtype)
    ctx.emit("binary", [out], views, [code])
    return value


def _maybe_scalar(ctx: Lowering, value: Value) -> float | None:
    try:
        return ctx.scalar(value, "")
    except UnsupportedError:
        return None


def lower_binary(ctx: Lowering, node: ir.Node) -> Value:
    result = ctx.need(node, 0)
    for i in range(1, len(node.inputs)):
        result = binary(ctx, node.op_type, result, ctx.need(node, i))
    return result


def check_binary(node: ir.Node) -> str | None:
    if node.op_type == "Mod" and int_attr(node, "fmod", 0):
        return "fmod = 1; the kernel takes the sign of the divisor"
    return None


def lower_where(ctx: Lowering, node: ir.Node) -> Value:
    condition, a, b = (ctx.need(node, i) for i in range(3))
    known, x, y = ctx.known(condition), ctx.known(a), ctx.known(b)
    if known is not None and Dtype.F32 not in (a.dtype, b.dtype) and x is not None and y is not None:
        pick = np.frompyfunc(lambda c, p, q: p if c else q, 3, 1)(known, x, y)
        return of_data(pick, a.dtype)
    if known is not None and known.size and all(bool(c) == bool(known.flat[0]) for c in known.flat):
        chosen = a if known.flat[0] else b
        if broadcast([condition.dims, a.dims, b.dims]) == chosen.dims:
            return chosen
    if a.dtype is not b.dtype:
        raise UnsupportedError(f"branches of {a.dtype.name.lower()} and {b.dtype.name.lower()}")
    views, order, dims = together(ctx, [condition, a, b])
    out, value = _output(ctx, dims, order, a.dtype)
    ctx.emit("where", [out], views)
    return value


def lower_cast(ctx: Lowering, node: ir.Node) -> Value:
    wanted = ir.DataType(int_attr(node, "to", 1))
    x = ctx.need(node, 0)
    if wanted in HALVES:
        # A value of 16 bits is one that 16 bits hold, kept in float32.
        source = input_of(node, 0)
        rounded = source is not None and source.dtype is wanted
        return x if rounded else ctx.cast(ctx.cast(ctx.cast(x, Dtype.F32), HALVES[wanted]), Dtype.F32)
    return ctx.cast(x, DTYPES[wanted])


def check_cast(node: ir.Node) -> str | None:
    wanted = ir.DataType(int_attr(node, "to", 1))
    return None if wanted in DTYPES or wanted in HALVES else f"to = {wanted.name}; activations are float32"


# -- reductions ------------------------------------------------------------------------------------------------------


def norm_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises UnsupportedError when it does not exist."""
    if not -rank <= axis < rank:
        raise UnsupportedError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def split_middle(ctx: Lowering, x: Value, axes: Sequence[int]) -> tuple[View, tuple[int, ...], tuple[Dim, Dim, Dim]]:
    """A view in which `axes` are adjacent: the view, the order of the axes that stay, and (outer, middle, inner)."""
    chosen = [a for a in x.order if a in axes]
    at = [k for k, a in enumerate(x.order) if a in axes and x.dims[a] != 1]
    between = [a for a in x.order[min(at) : max(at) + 1] if a not in axes and x.dims[a] != 1] if at else []
    order = x.order
    if between:
        # Not adjacent in memory: move the reduced axes last.
        order = (*(a for a in x.order if a not in axes), *chosen)
    view = ctx.view(x, order)
    places = [k for k, a in enumerate(order) if a in axes and x.dims[a] != 1]
    first, last = (min(places), max(places) + 1) if places else (len(order), len(order))
    sizes = [x.dims[a] for a in order]
    parts = product(sizes[:first]), product(sizes[first:last]), product(sizes[last:])
    return view, tuple(a for a in order if a not in axes), parts


def dropped(x: Value, axes: Sequence[int], kept: Sequence[int], keepdims: bool) -> tuple[Dims, tuple[int, ...]]:
    """Dims and order after reducing `axes`; `kept` are the other axes in memory order."""
    if keepdims:
        dims = tuple(dim(1) if a in axes else d for a, d in enumerate(x.dims))
        return dims, settled(dims, (*kept, *axes))
    rest = [a for a in range(x.rank) if a not in axes]
    return tuple(x.dims[a] for a in rest), tuple(rest.index(a) for a in kept)


def reduce(ctx: Lowering, x: Value, op: int, axes: Sequence[int], keepdims: bool) -> Value:
    need_f32(x)
    view, kept, parts = split_middle(ctx, x, axes)
    dims, order = dropped(x, axes, kept, keepdims)
    out, value = _output(ctx, dims, order, Dtype.F32)
    outer, middle, inner = parts
    ctx.emit("reduce", [out.as_dims([outer, inner])], [view.as_dims([outer, middle, inner])], [op])
    return value


def lower_reduce(ctx: Lowering, node: ir.Node) -> Value:
    x, axes_input = ctx.need(node, 0), ctx.get(node, 1)
    axes = [] if axes_input is None else [norm_axis(a, x.rank) for a in ctx.ints(axes_input, "the list of axes")]
    if not axes:
        if int_attr(node, "noop_with_empty_axes", 0):
            # Nothing is summed; the elementwise part stays.
            elementwise = {"ReduceSumSquare": SQUARE, "ReduceL1": UNARY["Abs"], "ReduceL2": UNARY["Abs"]}
            code = elementwise.get(node.op_type)
            return x if code is None else unary(ctx, need_f32(x), code)
        axes = list(range(x.rank))
    known = ctx.known(x) if x.dtype is not Dtype.F32 else None
    if known is not None and node.op_type in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"):
        step: Callable[[Dim, Dim], Dim] = {
            "ReduceSum": lambda p, q: p + q, "ReduceProd": lambda p, q: p * q, "ReduceMax": dim_max,
            "ReduceMin": dim_min,
        }[node.op_type]
        return of_data(_reduce_known(known, step, sorted(axes), bool(int_attr(node, "keepdims", 1))), x.dtype)
    return reduce(ctx, x, REDUCE[node.op_type], axes, bool(int_attr(node, "keepdims", 1)))


def _reduce_known(known: Array, step: Callable[[Dim, Dim], Dim], axes: Sequence[int], keepdims: bool) -> Array:
    result = known
    for axis in reversed(axes):
        result = np.frompyfunc(lambda p, q: step(dim(p), dim(q)), 2, 1).reduce(result, axis=axis, keepdims=keepdims)
    array = np.empty(np.shape(result), dtype=object)
    array[...] = result
    return array


def lower_global_pool(ctx: Lowering, node: ir.Node) -> Value:
    x = ctx.need(node, 0)
    op = REDUCE["ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"]
    return reduce(ctx, x, op, range(2, x.rank), True)


def lower_arg(ctx: Lowering, node: ir.Node) -> Value:
    x = need_f32(ctx.need(node, 0))
    axis = norm_axis(int_attr(node, "axis", 0), x.rank)
    view, kept, (outer, middle, inner) = split_middle(ctx, x, [axis])
    dims, order = dropped(x, [axis], kept, bool(int_attr(node, "keepdims", 1)))
    out, value = _output(ctx, dims, order, Dtype.I64)
    ctx.emit(
        "argmax", [out.as_dims([outer, inner])], [view.as_dims([outer, middle, inner])], [node.op_type == "ArgMin"]
    )
    return value


def check_arg(node: ir.Node) -> str | None:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    if dtype not in (None, ir.DataType.FLOAT):
        return f"its input is {dtype}; the kernel takes float32"
    return "select_last_index = 1; the kernel takes the first" if int_attr(node, "select_last_index", 0) else None


# -- rows: softmax and norms -----------------------------------------------------------------------------------------


def axis_last(value: Value, axis: int) -> tuple[int, ...]:
    """The value's order with `axis` moved to the end; the same bytes when it is there already."""
    return (*(a for a in value.order if a != axis), axis)


def lower_softmax(ctx: Lowering, node: ir.Node) -> Value:
    x = need_f32(ctx.need(node, 0))
    order = axis_last(x, norm_axis(int_attr(node, "axis", -1), x.rank))
    view = ctx.view(x, order)
    out, value = _output(ctx, x.dims, order, Dtype.F32)
    ctx.emit("softmax", [out], [view], [node.op_type == "LogSoftmax"])
    return value


def lower_norm(ctx: Lowering, node: ir.Node) -> Value:
    x = need_f32(ctx.need(node, 0))
    if norm_axis(int_attr(node, "axis", -1), x.rank) != x.rank - 1:
        raise UnsupportedError(f"axis = {int_attr(node, 'axis', -1)} of rank {x.rank}; the kernel normalizes the last")
    order = axis_last(x, x.rank - 1)
    view = ctx.view(x, order)
    out, value = _output(ctx, x.dims, order, Dtype.F32)
    gamma = ctx.rows(need_f32(ctx.need(node, 1), "the scale")).as_dims([x.dims[-1]])
    ins: list[View | None] = [view, None, gamma]
    if node.op_type == "LayerNormalization":
        beta = ctx.get(node, 2)
        ins.append(None if beta is None else ctx.rows(need_f32(beta, "the bias")).as_dims([x.dims[-1]]))
    kernel = "layernorm" if node.op_type == "LayerNormalization" else "rmsnorm"
    ctx.emit(kernel, [out, None], ins, [], [float_attr(node, "epsilon", 1e-5)])
    return value


def check_norm(node: ir.Node) -> str | None:
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return "the mean or inverse deviation output is used"
    if int_attr(node, "stash_type", 1) != 1:
        return f"stash_type = {int_attr(node, 'stash_type', 1)}; the kernel computes in float32"
    return None if input_of(node, 1) is not None else "the scale is missing"


def reorder(value: Value, perm: Sequence[int]) -> Value:
    """ONNX Transpose as a change of view: axis k of the result is axis perm[k] of `value`."""
    if sorted(perm) != list(range(value.rank)):
        raise UnsupportedError(f"an order {list(perm)} of the axes of a tensor of rank {value.rank}")
    dims = tuple(value.dims[p] for p in perm)
    if value.const is not None:
        return of_const(value.const.transpose(perm))
    if value.data is not None:
        return Value(dims, value.dtype, identity(len(dims)), data=value.data.transpose(perm))
    if value.run is not None and sum(d != 1 for d in dims) > 1:
        raise UnsupportedError("a transposed range")
    order = tuple(perm.index(a) for a in value.order)
    return Value(dims, value.dtype, identity(len(dims)) if value.run else order, buf=value.buf, run=value.run)
