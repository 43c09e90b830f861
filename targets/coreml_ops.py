"""The operators of Core ML: a table from ONNX operators to functions that emit them.

Each function takes the scope and the node and returns the Var of the output, or one per output (None for outputs that
nobody may read). `check` says why a node cannot be taken, from its attributes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    const_of,
    const_tensor,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_attr,
    ints_of,
    is_op,
    producer,
    rank_of,
    required,
    scalar_of,
    str_attr,
)
from edgec.targets.coreml_scope import FLOATS, Scope, constant_ints, is_float, static_dims
from edgec.targets.coreml_weights import MIL as WEIGHTS_MIL
from edgec.targets.coreml_weights import decompresses, is_dense

MOST_DIMS = 5
_FAR = 1 << 31
_VECTOR = 1 << 22  # numbers of a norm's scale

Made = Any
Emit = Callable[[Scope, ir.Node], Made]


@dataclass(frozen=True)
class Row:
    """emit: as above. mil: the operators of Core ML that it may emit. check: why not, or None."""

    emit: Emit
    mil: tuple[str, ...]
    check: Callable[[ir.Node], str | None] | None = None


# -- elementwise


def _unary(name: str, **fixed: Any) -> Row:
    return Row(lambda s, n: getattr(s.mb, name)(x=s.input(n, 0), **fixed), (name,))


def _binary(name: str) -> Row:
    return Row(lambda s, n: getattr(s.mb, name)(x=s.input(n, 0), y=s.input(n, 1)), (name,))


def _mod(s: Scope, n: ir.Node) -> Made:
    """Core ML's remainder has the divisor's sign; that of fmod the dividend's."""
    x, y, mb = s.input(n, 0), s.input(n, 1), s.mb
    if not int_attr(n, "fmod", 0):
        return mb.mod(x=x, y=y)
    return mb.mul(x=mb.mod(x=mb.abs(x=x), y=mb.abs(x=y)), y=mb.sign(x=x))


def _negative(s: Scope, n: ir.Node) -> Made:
    x = s.input(n, 0)
    return s.mb.mul(x=x, y=s.number(-1.0) if is_float(required(n, 0)) else np.int32(-1))


def _reciprocal(s: Scope, n: ir.Node) -> Made:
    # Core ML's own inverse adds a number to its input.
    return s.mb.real_div(x=s.number(1.0), y=s.input(n, 0))


def _log(s: Scope, n: ir.Node) -> Made:
    return s.mb.log(x=s.input(n, 0), epsilon=s.real(0.0))


def _divide(s: Scope, n: ir.Node) -> Made:
    """Integers are truncated towards zero, where Core ML rounds down: quotients below zero with a rest get one more."""
    x, y = s.input(n, 0), s.input(n, 1)
    if is_float(required(n, 0)):
        return s.mb.real_div(x=x, y=y)
    down = s.mb.floor_div(x=x, y=y)
    rest = s.mb.not_equal(x=s.mb.mul(x=down, y=y), y=x)
    signs = s.mb.logical_xor(x=s.mb.less(x=x, y=np.int32(0)), y=s.mb.less(x=y, y=np.int32(0)))
    return s.mb.add(x=down, y=s.mb.cast(x=s.mb.logical_and(x=rest, y=signs), dtype="int32"))


def _clip(s: Scope, n: ir.Node) -> Made:
    x, low, high = s.input(n, 0), input_of(n, 1), input_of(n, 2)
    ends = [None if v is None else scalar_of(v) for v in (low, high)]
    if is_float(required(n, 0)) and all(e is not None for e in ends):
        return s.mb.clip(x=x, alpha=s.number(float(ends[0] or 0.0)), beta=s.number(float(ends[1] or 0.0)))
    x = x if low is None else s.mb.maximum(x=x, y=s.var(low))
    return x if high is None else s.mb.minimum(x=x, y=s.var(high))


def _swish(s: Scope, n: ir.Node) -> Made:
    x, alpha = s.input(n, 0), float_attr(n, "alpha", 1.0)
    if alpha == 1.0:
        return s.mb.silu(x=x)
    return s.mb.mul(x=x, y=s.mb.sigmoid(x=s.mb.mul(x=x, y=s.number(alpha))))


def _hard_sigmoid(s: Scope, n: ir.Node) -> Made:
    return s.mb.sigmoid_hard(x=s.input(n, 0), alpha=s.number(float_attr(n, "alpha", 0.2)),
                             beta=s.number(float_attr(n, "beta", 0.5)))


def _hard_swish(s: Scope, n: ir.Node) -> Made:
    x = s.input(n, 0)
    return s.mb.mul(x=x, y=s.mb.sigmoid_hard(x=x, alpha=s.number(1 / 6), beta=s.number(0.5)))


def _gelu(s: Scope, n: ir.Node) -> Made:
    mode = "TANH_APPROXIMATION" if str_attr(n, "approximate", "none") == "tanh" else "EXACT"
    return s.mb.gelu(x=s.input(n, 0), mode=mode)


def _elu(s: Scope, n: ir.Node) -> Made:
    return s.mb.elu(x=s.input(n, 0), alpha=s.number(float_attr(n, "alpha", 1.0)))


def _leaky_relu(s: Scope, n: ir.Node) -> Made:
    return s.mb.leaky_relu(x=s.input(n, 0), alpha=s.number(float_attr(n, "alpha", 0.01)))


def _where(s: Scope, n: ir.Node) -> Made:
    return s.mb.select(cond=s.input(n, 0), a=s.input(n, 1), b=s.input(n, 2))


def _cast(s: Scope, n: ir.Node) -> Made:
    kind = ir.DataType(int_attr(n, "to", 1))
    name = s.float_name if kind in FLOATS else "bool" if kind == ir.DataType.BOOL else "int32"
    return s.mb.cast(x=s.input(n, 0), dtype=name)


def _check_cast(node: ir.Node) -> str | None:
    kind = ir.DataType(int_attr(node, "to", 1))
    if kind in (*FLOATS, ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64):
        return None
    return f"it rounds to {kind.name}, which Core ML does not compute in"


# -- reductions and products


def _reduce(name: str) -> Row:
    def emit(s: Scope, n: ir.Node) -> Made:
        axes, x = constant_ints(n, 1), s.input(n, 0)
        if not axes and int_attr(n, "noop_with_empty_axes", 0):
            return s.mb.identity(x=x)
        given = {"axes": list(axes)} if axes else {}
        return getattr(s.mb, name)(x=x, keep_dims=bool(int_attr(n, "keepdims", 1)), **given)

    return Row(emit, (name, "identity"), _check_reduce)


def _check_reduce(node: ir.Node) -> str | None:
    axes = input_of(node, 1)
    return "its axes are no constants" if axes is not None and const_tensor(axes) is None else None


def _arg(name: str) -> Row:
    def emit(s: Scope, n: ir.Node) -> Made:
        return getattr(s.mb, name)(x=s.input(n, 0), axis=int_attr(n, "axis", 0),
                                   keep_dims=bool(int_attr(n, "keepdims", 1)))

    return Row(emit, (name,), _check_arg)


def _check_arg(node: ir.Node) -> str | None:
    return "it asks for the last of equals" if int_attr(node, "select_last_index", 0) else None


def _softmax(s: Scope, n: ir.Node) -> Made:
    return s.mb.softmax(x=s.input(n, 0), axis=int_attr(n, "axis", -1))


def _global_pool(name: str) -> Row:
    def emit(s: Scope, n: ir.Node) -> Made:
        return getattr(s.mb, name)(x=s.input(n, 0), axes=list(range(2, s.rank(required(n, 0)))), keep_dims=True)

    return Row(emit, (name,))


def _weight_of_linear(node: ir.Node, index: int) -> ir.Value | None:
    """The constant matrix [out, in] whose transpose is the second factor; None when there is none."""
    turned = producer(required(node, index), "Transpose")
    if turned is None or ints_attr(turned, "perm") != (1, 0):
        return None
    weight = required(turned, 0)
    return weight if is_dense(weight) or const_tensor(weight) is not None else None


def _matmul(s: Scope, n: ir.Node) -> Made:
    x, weight = s.input(n, 0), _weight_of_linear(n, 1)
    if weight is not None and 2 <= s.rank(required(n, 0)) <= 3:
        return s.mb.linear(x=x, weight=s.var(weight))
    if weight is not None:
        return s.mb.matmul(x=x, y=s.var(weight), transpose_y=True)
    return s.mb.matmul(x=x, y=s.input(n, 1))


def _gemm(s: Scope, n: ir.Node) -> Made:
    x, bias = s.input(n, 0), input_of(n, 2)
    weight = required(n, 1)
    constant = is_dense(weight) or const_tensor(weight) is not None
    if int_attr(n, "transA", 0) == 0 and int_attr(n, "transB", 0) and constant:
        vector = bias is not None and const_tensor(bias) is not None and rank_of(bias) == 1
        vector = vector and static_dims(bias) == static_dims(weight)[:1] if bias is not None else False
        y = s.mb.linear(x=x, weight=s.var(weight), **({"bias": s.var(bias)} if vector and bias is not None else {}))
        return y if vector or bias is None else s.mb.add(x=y, y=s.var(bias))
    y = s.mb.matmul(x=x, y=s.var(weight), transpose_x=bool(int_attr(n, "transA", 0)),
                    transpose_y=bool(int_attr(n, "transB", 0)))
    return y if bias is None else s.mb.add(x=y, y=s.var(bias))


def _check_gemm(node: ir.Node) -> str | None:
    plain = float_attr(node, "alpha", 1.0) == 1.0 and float_attr(node, "beta", 1.0) == 1.0
    return None if plain else "it has factors"


# -- windows


def _padding(node: ir.Node, dims: int) -> dict[str, Any]:
    auto = str_attr(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return {"pad_type": "same" if auto == "SAME_UPPER" else "same_lower"}
    pads = ints_attr(node, "pads") or (0,) * (2 * dims)
    if auto == "VALID" or not any(pads):
        return {"pad_type": "valid"}
    return {"pad_type": "custom", "pad": [p for pair in zip(pads[:dims], pads[dims:], strict=True) for p in pair]}


def _conv(s: Scope, n: ir.Node) -> Made:
    dims = s.rank(required(n, 0)) - 2
    bias = input_of(n, 2)
    more = {} if bias is None else {"bias": s.var(bias)}
    return s.mb.conv(x=s.input(n, 0), weight=s.input(n, 1), strides=list(ints_attr(n, "strides") or (1,) * dims),
                     dilations=list(ints_attr(n, "dilations") or (1,) * dims), groups=int_attr(n, "group", 1),
                     **_padding(n, dims), **more)


def _check_conv(node: ir.Node) -> str | None:
    weight, bias = required(node, 1), input_of(node, 2)
    if rank_of(required(node, 0)) not in (3, 4, 5):
        return "the rank of its input is not known"
    if const_tensor(weight) is None and not is_dense(weight):
        return "its weight is no constant"
    return None if bias is None or const_tensor(bias) is not None else "its bias is no constant"


def _pool(name: str) -> Row:
    def emit(s: Scope, n: ir.Node) -> Made:
        kernel = ints_attr(n, "kernel_shape") or ()
        more = {} if name == "max_pool" else {
            "exclude_padding_from_average": not int_attr(n, "count_include_pad", 0)}
        return getattr(s.mb, name)(x=s.input(n, 0), kernel_sizes=list(kernel),
                                   strides=list(ints_attr(n, "strides") or (1,) * len(kernel)),
                                   **_padding(n, len(kernel)), **more)

    return Row(emit, (name,), _check_pool)


def _check_pool(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "its indices are read"
    if any(d != 1 for d in ints_attr(node, "dilations") or ()):
        return "its window is dilated"
    if int_attr(node, "ceil_mode", 0):
        return "it rounds the number of windows up"
    return None if is_float(required(node, 0)) else "it is of integers"


def _resize(s: Scope, n: ir.Node) -> Made:
    before, after = _sizes(n)
    height, width = after[2:]
    if str_attr(n, "mode", "nearest") == "nearest":
        return s.mb.upsample_nearest_neighbor(x=s.input(n, 0), scale_factor_height=height // before[2],
                                              scale_factor_width=width // before[3])
    corners = str_attr(n, "coordinate_transformation_mode", "half_pixel") == "align_corners"
    return s.mb.resize_bilinear(x=s.input(n, 0), target_size_height=height, target_size_width=width,
                                sampling_mode="STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS")


def _sizes(node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = [tuple(d for d in static_dims(v) if d is not None) for v in (required(node, 0), node.outputs[0])]
    return sizes[0], sizes[1]


def _check_resize(node: ir.Node) -> str | None:
    before, after = _sizes(node)
    if len(before) != 4 or len(after) != 4 or before[:2] != after[:2]:
        return "it is not of images of known sizes"
    given = [v for v in (const_of(input_of(node, 2), 8),) if v is not None and v.size]
    exact = all(int(b * f) == a == b * f for b, a, f in zip(before, after, given[0].tolist(), strict=True)
                ) if given else True
    mode, where = str_attr(node, "mode", "nearest"), str_attr(node, "coordinate_transformation_mode", "half_pixel")
    if int_attr(node, "antialias", 0) or not exact:
        return "it smooths, or its factors do not give whole sizes"
    whole = all(a % b == 0 for b, a in zip(before, after, strict=True))
    if mode == "nearest" and whole and (where, str_attr(node, "nearest_mode", "round_prefer_floor")) in (
            ("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")):
        return None
    if mode == "linear" and where in ("half_pixel", "align_corners"):
        return None
    return f"Core ML has no {mode} of {where}"


def _pad(s: Scope, n: ir.Node) -> Made:
    x, mode = s.input(n, 0), {"edge": "replicate"}.get(str_attr(n, "mode", "constant"), str_attr(n, "mode", "constant"))
    pads = constant_ints(n, 1) or ()
    half = len(pads) // 2
    value = input_of(n, 2)
    number = scalar_of(value) if value is not None else 0.0
    return s.mb.pad(x=x, pad=[p for pair in zip(pads[:half], pads[half:], strict=True) for p in pair], mode=mode,
                    constant_val=s.number(float(number or 0.0)))


def _check_pad(node: ir.Node) -> str | None:
    pads, value, rank = constant_ints(node, 1), input_of(node, 2), rank_of(required(node, 0))
    if pads is None or min(pads, default=0) < 0 or input_of(node, 3) is not None or rank != len(pads) // 2:
        return "its sizes are no constants, cut, or of some dims only"
    if value is not None and scalar_of(value) is None:
        return "what it pads with is no constant"
    if not is_float(required(node, 0)):
        return "it pads integers"
    mode = str_attr(node, "mode", "constant")
    inner = [p for i, p in enumerate(pads) if i % rank < rank - 2]
    return None if mode == "constant" or (mode in ("edge", "reflect") and not any(inner)) else f"it pads by {mode}"


# -- shapes


def _shape(s: Scope, n: ir.Node) -> Made:
    x = required(n, 0)
    sizes = s.mb.shape(x=s.var(x))
    rank = s.rank(x)
    start, end = (_clamped(int_attr(n, key, default), rank) for key, default in (("start", 0), ("end", rank)))
    return sizes if (start, end) == (0, rank) else s.mb.slice_by_index(x=sizes, begin=[start], end=[end])


def _clamped(at: int, size: int) -> int:
    return min(max(at + size if at < 0 else at, 0), size)


def _reshape(s: Scope, n: ir.Node) -> Made:
    x, wanted = required(n, 0), constant_ints(n, 1)
    before, after = static_dims(x), static_dims(n.outputs[0])
    if after and after.count(None) <= 1:
        return s.mb.reshape(x=s.var(x), shape=[-1 if d is None else d for d in after])
    if wanted is None:
        return s.mb.reshape(x=s.var(x), shape=_computed_shape(s, n))
    zeros = [] if int_attr(n, "allowzero", 0) else [i for i, d in enumerate(wanted) if d == 0]
    if all(before[i] is not None for i in zeros):
        return s.mb.reshape(x=s.var(x), shape=[before[i] if i in zeros else d for i, d in enumerate(wanted)])
    sizes = s.mb.shape(x=s.var(x))
    parts = [s.mb.slice_by_index(x=sizes, begin=[i], end=[i + 1]) if i in zeros else np.array([d], np.int32)
             for i, d in enumerate(wanted)]
    return s.mb.reshape(x=s.var(x), shape=s.mb.concat(values=parts, axis=0))


def _computed_shape(s: Scope, n: ir.Node) -> Any:
    """The shape that is computed, with what a 0 in it stands for."""
    shape, parts = s.input(n, 1), producer(required(n, 1), "Concat")
    constants = [ints_of(v) or () for v in parts.inputs] if parts is not None else [(0,)]
    if int_attr(n, "allowzero", 0) or not any(0 in part for part in constants):
        return shape
    mb, rank, length = s.mb, s.rank(required(n, 0)), int(shape.shape[0])
    sizes = mb.shape(x=s.input(n, 0))
    sizes = mb.concat(values=[sizes, np.ones(length - rank, np.int32)], axis=0) if length > rank else sizes
    sizes = mb.slice_by_index(x=sizes, begin=[0], end=[length]) if length < rank else sizes
    return mb.select(cond=mb.equal(x=shape, y=np.int32(0)), a=sizes, b=shape)


def _transpose(s: Scope, n: ir.Node) -> Made:
    perm = ints_attr(n, "perm") or tuple(reversed(range(s.rank(required(n, 0)))))
    return s.mb.transpose(x=s.input(n, 0), perm=list(perm))


def _squeeze(s: Scope, n: ir.Node) -> Made:
    axes = constant_ints(n, 1)
    return s.mb.squeeze(x=s.input(n, 0), **({"axes": list(axes)} if axes else {}))


def _unsqueeze(s: Scope, n: ir.Node) -> Made:
    return s.mb.expand_dims(x=s.input(n, 0), axes=list(constant_ints(n, 1) or ()))


def _concat(s: Scope, n: ir.Node) -> Made:
    return s.mb.concat(values=[s.var(v) for v in n.inputs if v is not None], axis=int_attr(n, "axis", 0))


def _split(s: Scope, n: ir.Node) -> Made:
    axis, sizes = int_attr(n, "axis", 0), [static_dims(v) for v in n.outputs]
    made = s.mb.split(x=s.input(n, 0), split_sizes=[d[axis] for d in sizes], axis=axis)
    return list(made)


def _check_split(node: ir.Node) -> str | None:
    axis = int_attr(node, "axis", 0)
    known = all(dims_of(v) and static_dims(v)[axis] for v in node.outputs)
    return None if known else "the sizes of its parts are not known"


def _slice(s: Scope, n: ir.Node) -> Made:
    x = required(n, 0)
    dims, rank = static_dims(x), s.rank(x)
    starts, ends = constant_ints(n, 1), constant_ints(n, 2)
    axes = constant_ints(n, 3) or tuple(range(static_dims(required(n, 1))[0] or 0))
    steps = constant_ints(n, 4) or (1,) * len(axes)
    if starts is None or ends is None:
        return _slice_at_run_time(s, n, rank, axes)
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    begin_mask, end_mask = [True] * rank, [True] * rank
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        at = axis % rank
        size, stride[at] = dims[at], step
        begin[at], begin_mask[at] = _bound(start, size, step, first=True)
        end[at], end_mask[at] = _bound(stop, size, step, first=False)
    return s.mb.slice_by_index(x=s.var(x), begin=begin, end=end, stride=stride, begin_mask=begin_mask,
                               end_mask=end_mask)


def _bound(at: int, size: int | None, step: int, *, first: bool) -> tuple[int, bool]:
    """(a bound, whether it is as far as there is)."""
    if size is not None:
        at = max(at + size, -1 if step < 0 and not first else 0) if at < 0 else min(at, size - (step < 0 and first))
        outermost = (0 if first else size) if step > 0 else (size - 1 if first else -1)
        return (0, True) if at == outermost else (at, False)
    outside = at >= _FAR - 1 or at <= -_FAR
    return (0, True) if outside or (first and at == 0 and step > 0) else (at, False)


def _slice_at_run_time(s: Scope, n: ir.Node, rank: int, axes: tuple[int, ...]) -> Made:
    """Bounds that are computed, of positive steps."""
    places = [a % rank for a in axes]
    bounds, masks = [], []
    for index in (1, 2):
        known = constant_ints(n, index)
        whole = s.input(n, index)
        parts: list[Any] = [np.array([0], np.int32)] * rank
        for i, at in enumerate(places):
            parts[at] = s.mb.slice_by_index(x=whole, begin=[i], end=[i + 1])
        bounds.append(s.mb.concat(values=parts, axis=0))
        far = [known is not None and abs(known[places.index(a)]) >= _FAR - 1 if a in places else True
               for a in range(rank)]
        masks.append(far)
    return s.mb.slice_by_index(x=s.input(n, 0), begin=bounds[0], end=bounds[1], begin_mask=masks[0], end_mask=masks[1])


def _check_slice(node: ir.Node) -> str | None:
    axes, steps = input_of(node, 3), input_of(node, 4)
    if (axes is not None and constant_ints(node, 3) is None) or (steps is not None and constant_ints(node, 4) is None):
        return "its axes or steps are no constants"
    if axes is None and (static_dims(required(node, 1)) or (None,))[0] is None:
        return "the number of dims it cuts is not known"
    known = constant_ints(node, 1) is not None and constant_ints(node, 2) is not None
    if not known and any(step != 1 for step in constant_ints(node, 4) or ()):
        return "its bounds are computed and its steps are not 1"
    return None


def _expand(s: Scope, n: ir.Node) -> Made:
    x, shape = required(n, 0), s.input(n, 1)
    before, after = static_dims(x), static_dims(n.outputs[0])
    var, extra = s.var(x), len(after) - len(before)
    if len(after) and None not in after and None not in before:
        var = s.mb.expand_dims(x=var, axes=list(range(extra))) if extra else var
        padded = (1,) * extra + before
        return s.mb.tile(x=var, reps=[1 if a == b else a for a, b in zip(after, padded, strict=True)])
    if x.dtype == ir.DataType.BOOL:
        return s.mb.logical_or(x=var, y=s.mb.cast(x=s.mb.fill(shape=shape, value=np.int32(0)), dtype="bool"))
    zero = s.number(0.0) if is_float(x) else np.int32(0)
    return s.mb.add(x=var, y=s.mb.fill(shape=shape, value=zero))


def _tile(s: Scope, n: ir.Node) -> Made:
    return s.mb.tile(x=s.input(n, 0), reps=s.input(n, 1))


def _gather(s: Scope, n: ir.Node) -> Made:
    """Core ML does not count places from the end."""
    x, axis, known = s.input(n, 0), int_attr(n, "axis", 0), const_tensor(required(n, 1))
    places = s.input(n, 1)
    if known is None or bool(np.any(known.numpy() < 0)):
        places = s.mb.cast(x=places, dtype="int32")
        size = static_dims(required(n, 0))[axis]
        count = s.mb.gather(x=s.mb.shape(x=x), indices=axis % len(x.shape), axis=0) if size is None else np.int32(size)
        places = s.mb.select(cond=s.mb.less(x=places, y=np.int32(0)), a=s.mb.add(x=places, y=count), b=places)
    return s.mb.gather(x=x, indices=places, axis=axis)


def _range(s: Scope, n: ir.Node) -> Made:
    return s.mb.range_1d(start=s.input(n, 0), end=s.input(n, 1), step=s.input(n, 2))


def _top_k(s: Scope, n: ir.Node) -> Made:
    count = constant_ints(n, 1) or (1,)
    return list(s.mb.topk(x=s.input(n, 0), k=count[0], axis=int_attr(n, "axis", -1),
                          ascending=not int_attr(n, "largest", 1)))


# -- normalizations and what is ours


def _layer_norm(s: Scope, n: ir.Node) -> Made:
    bias = input_of(n, 2)
    more = {} if bias is None else {"beta": s.var(bias)}
    return s.mb.layer_norm(x=s.input(n, 0), axes=[-1], gamma=s.input(n, 1),
                           epsilon=s.number(float_attr(n, "epsilon", 1e-5)), **more)


def _check_norm(node: ir.Node) -> str | None:
    rank = rank_of(required(node, 0))
    if not rank or int_attr(node, "axis", -1) % rank != rank - 1:
        return "it is not over the last dim"
    if any(v is not None and const_tensor(v) is None for v in node.inputs[1:]):
        return "its scale or offset is no constant"
    read = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return "its statistics are read" if read else None


def _rms_norm(s: Scope, n: ir.Node) -> Made:
    """The squares in float32: activations of language models pass 256, and the square of that float16's end."""
    x, mb = s.input(n, 0), s.mb
    wide = mb.cast(x=x, dtype="fp32") if s.half else x
    mean = mb.reduce_mean(x=mb.mul(x=wide, y=wide), axes=[-1], keep_dims=True)
    inverse = mb.rsqrt(x=mean, epsilon=np.float32(float_attr(n, "epsilon", 1e-5)))
    scaled = mb.mul(x=wide, y=inverse)
    return mb.mul(x=mb.cast(x=scaled, dtype="fp16") if s.half else scaled, y=s.input(n, 1))


def _dynamic_depthwise(s: Scope, n: ir.Node) -> Made:
    """Sum over the taps of a shifted image times its weight; channel c uses kernel c mod G. w [B, G, k k, H, W]."""
    x, w, k, mb = required(n, 0), required(n, 1), int_attr(n, "kernel_size", 1), s.mb
    (batch, channels, height, width), groups = (d or 0 for d in static_dims(x)), static_dims(w)[1] or 1
    padded = mb.pad(x=s.var(x), pad=[k // 2] * 4, mode="constant", constant_val=s.number(0.0))
    grouped = mb.reshape(x=padded, shape=[batch, channels // groups, groups, height + k // 2 * 2, width + k // 2 * 2])
    total = None
    for tap in range(k * k):
        row, column = divmod(tap, k)
        part = mb.slice_by_index(x=grouped, begin=[0, 0, 0, row, column],
                                 end=[batch, channels // groups, groups, row + height, column + width])
        weight = mb.slice_by_index(x=s.var(w), begin=[0, 0, tap, 0, 0], end=[batch, groups, tap + 1, height, width])
        weight = mb.reshape(x=weight, shape=[batch, 1, groups, height, width])
        product = mb.mul(x=part, y=weight)
        total = product if total is None else mb.add(x=total, y=product)
    return mb.reshape(x=total, shape=[batch, channels, height, width])


def _check_depthwise(node: ir.Node) -> str | None:
    known = all(dims_of(v) and None not in static_dims(v) for v in node.inputs if v is not None)
    return None if known else "its sizes are not known"


def _cached_attention(s: Scope, n: ir.Node) -> Made:
    """Attention of a prefill over its own tokens; the caches, which the package does not have, are not made.

    q [1, T, Hq D], k, v [1, T, Hkv D]. Heads are grouped over those of the keys by a fifth dim.
    """
    mb, heads, kv_heads = s.mb, int_attr(n, "q_num_heads", 1), int_attr(n, "kv_num_heads", 1)
    q, k, v = (s.input(n, i) for i in range(3))
    width = int(q.shape[-1]) // heads
    q = mb.transpose(x=mb.reshape(x=q, shape=[1, -1, kv_heads, heads // kv_heads, width]), perm=[0, 2, 3, 1, 4])
    k, v = (mb.transpose(x=mb.reshape(x=each, shape=[1, -1, kv_heads, 1, int(each.shape[-1]) // kv_heads]),
                         perm=[0, 2, 3, 1, 4]) for each in (k, v))
    scores = mb.matmul(x=mb.mul(x=q, y=s.number(float_attr(n, "scale", 1.0))), y=k, transpose_y=True)
    softcap = float_attr(n, "softcap", 0.0)
    if softcap:
        scores = mb.mul(x=mb.tanh(x=mb.real_div(x=scores, y=s.number(softcap))), y=s.number(softcap))
    masked = mb.select(cond=_visible(s, n), a=scores, b=s.number(-6e4 if s.half else -3e38))
    mixed = mb.matmul(x=mb.softmax(x=masked, axis=-1), y=v)
    y = mb.reshape(x=mb.transpose(x=mixed, perm=[0, 3, 1, 2, 4]), shape=[1, -1, heads * int(v.shape[-1])])
    return [y, None, None]


def _visible(s: Scope, n: ir.Node) -> Any:
    """bool [T, T]: a token sees itself and those before, the last `window` of them if there is one."""
    mb, window = s.mb, int_attr(n, "window", 0)
    tokens = mb.gather(x=mb.shape(x=s.input(n, 0)), indices=np.int32(1), axis=0)
    keys = mb.range_1d(start=np.int32(0), end=tokens, step=np.int32(1))
    rows = mb.expand_dims(x=keys, axes=[1])
    columns = mb.expand_dims(x=keys, axes=[0])
    seen = mb.less_equal(x=columns, y=rows)
    if not window:
        return seen
    return mb.logical_and(x=seen, y=mb.greater(x=columns, y=mb.sub(x=rows, y=np.int32(window))))


def _weight(s: Scope, n: ir.Node) -> Made:
    """Made when a reader asks for it, in the form that the reader wants."""
    return None


_ATTENTION = ("reshape", "transpose", "mul", "matmul", "tanh", "real_div", "select", "softmax", "shape", "gather",
              "range_1d", "expand_dims", "less_equal", "greater", "sub", "logical_and")

STANDARD: Mapping[str, Row] = {
    "Abs": _unary("abs"), "Acos": _unary("acos"), "Asin": _unary("asin"), "Atan": _unary("atan"),
    "Ceil": _unary("ceil"), "Cos": _unary("cos"), "Cosh": _unary("cosh"), "Erf": _unary("erf"), "Exp": _unary("exp"),
    "Floor": _unary("floor"), "Identity": _unary("identity"), "Not": _unary("logical_not"), "Relu": _unary("relu"),
    "Round": _unary("round"), "Sigmoid": _unary("sigmoid"), "Sign": _unary("sign"), "Sin": _unary("sin"),
    "Sinh": _unary("sinh"), "Softplus": _unary("softplus"), "Softsign": _unary("softsign"), "Sqrt": _unary("sqrt"),
    "Tan": _unary("tan"), "Tanh": _unary("tanh"),
    "Add": _binary("add"), "Sub": _binary("sub"), "Mul": _binary("mul"), "Max": _binary("maximum"),
    "Min": _binary("minimum"), "Mod": Row(_mod, ("mod", "abs", "sign", "mul")),
    "Pow": _binary("pow"), "And": _binary("logical_and"),
    "Or": _binary("logical_or"), "Xor": _binary("logical_xor"), "Equal": _binary("equal"),
    "Greater": _binary("greater"), "GreaterOrEqual": _binary("greater_equal"), "Less": _binary("less"),
    "LessOrEqual": _binary("less_equal"),
    "Cast": Row(_cast, ("cast",), _check_cast),
    "Clip": Row(_clip, ("clip", "maximum", "minimum")),
    "Div": Row(_divide, ("real_div", "floor_div", "mul", "not_equal", "less", "logical_xor", "logical_and", "cast",
                         "add")),
    "Elu": Row(_elu, ("elu",)), "Gelu": Row(_gelu, ("gelu",)), "HardSigmoid": Row(_hard_sigmoid, ("sigmoid_hard",)),
    "HardSwish": Row(_hard_swish, ("mul", "sigmoid_hard")), "LeakyRelu": Row(_leaky_relu, ("leaky_relu",)),
    "Log": Row(_log, ("log",)), "Neg": Row(_negative, ("mul",)), "Reciprocal": Row(_reciprocal, ("real_div",)),
    "Swish": Row(_swish, ("silu", "mul", "sigmoid")), "Where": Row(_where, ("select",)),
    "ReduceMax": _reduce("reduce_max"), "ReduceMean": _reduce("reduce_mean"), "ReduceMin": _reduce("reduce_min"),
    "ReduceProd": _reduce("reduce_prod"), "ReduceSum": _reduce("reduce_sum"),
    "ArgMax": _arg("reduce_argmax"), "ArgMin": _arg("reduce_argmin"),
    "GlobalAveragePool": _global_pool("reduce_mean"), "GlobalMaxPool": _global_pool("reduce_max"),
    "Softmax": Row(_softmax, ("softmax",)), "MatMul": Row(_matmul, ("linear", "matmul")),
    "Gemm": Row(_gemm, ("linear", "matmul", "add"), _check_gemm),
    "Conv": Row(_conv, ("conv",), _check_conv), "AveragePool": _pool("avg_pool"), "MaxPool": _pool("max_pool"),
    "Resize": Row(_resize, ("upsample_nearest_neighbor", "resize_bilinear"), _check_resize),
    "Pad": Row(_pad, ("pad",), _check_pad),
    "Shape": Row(_shape, ("shape", "slice_by_index")),
    "Reshape": Row(_reshape, ("reshape", "shape", "slice_by_index", "concat", "select", "equal")),
    "Transpose": Row(_transpose, ("transpose",)), "Squeeze": Row(_squeeze, ("squeeze",)),
    "Unsqueeze": Row(_unsqueeze, ("expand_dims",)), "Concat": Row(_concat, ("concat",)),
    "Split": Row(_split, ("split",), _check_split),
    "Slice": Row(_slice, ("slice_by_index", "concat"), _check_slice),
    "Expand": Row(_expand, ("expand_dims", "tile", "logical_or", "cast", "fill", "add")),
    "Tile": Row(_tile, ("tile",)), "Gather": Row(_gather, ("gather", "cast", "shape", "less", "add", "select")),
    "Range": Row(_range, ("range_1d",)),
    "TopK": Row(_top_k, ("topk",), lambda n: None if constant_ints(n, 1) else "its count is no constant"),
    "LayerNormalization": Row(_layer_norm, ("layer_norm",), _check_norm),
    "RMSNormalization": Row(_rms_norm, ("cast", "mul", "reduce_mean", "rsqrt"), _check_norm),
    "DequantizeLinear": Row(_weight, WEIGHTS_MIL, lambda n: None if decompresses(n) and _rows(n) else (
        "it is not of a constant weight with scales per row")),
}
OURS: Mapping[str, Row] = {
    "BitPlaneToDense": Row(_weight, WEIGHTS_MIL), "PaletteToDense": Row(_weight, WEIGHTS_MIL),
    "CachedAttention": Row(_cached_attention, _ATTENTION),
    "DynamicDepthwise": Row(_dynamic_depthwise, ("pad", "reshape", "slice_by_index", "mul", "add"), _check_depthwise),
}
# Every operator of Core ML that a program of ours may hold; besides those, constants and the casts at both ends.
MIL = frozenset(name for row in (*STANDARD.values(), *OURS.values()) for name in row.mil) | {"cast", "identity"}


def _rows(node: ir.Node) -> bool:
    """Whether the scales of a DequantizeLinear are one per row, one for all, or blocks along the columns."""
    codes, scale = static_dims(required(node, 0)), static_dims(required(node, 1))
    if int_attr(node, "block_size", 0):
        return len(codes) == 2 and int_attr(node, "axis", 1) % 2 == 1
    return scale in ((), (1,)) or (int_attr(node, "axis", 1) == 0 and scale == codes[:1])


def row_of(node: ir.Node) -> Row | None:
    return OURS.get(node.op_type) if node.domain == "edgec" else STANDARD.get(node.op_type) if is_op(
        node, node.op_type) else None


def outputs(made: Made) -> Sequence[Any]:
    return made if isinstance(made, list) else [made]
