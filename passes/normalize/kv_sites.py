"""Finds attention over a growing cache: what `static_kv` turns into edgec::CachedAttention.

Three spellings are read: Attention with its own past inputs, Attention over Concat(past, new), and the decomposed
softmax(scale q kᵀ + mask) v over the same Concat, with grouped heads repeated by Unsqueeze, Expand and Reshape.
A spelling that is nearly one of these is refused with a reason; nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgec.ir.model import (
    describe,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_attr,
    is_op,
    producer,
    rank_of,
    required,
    scalar_of,
)

# An additive mask or a fill below this hides a position: exp() of it is 0 in float32.
HIDDEN = -1e4


class RefusedError(Exception):
    """An attention that cannot become CachedAttention; the text says why."""


@dataclass(frozen=True)
class Site:
    """One attention layer.

    anchor makes `output`: [1, T, Hq*Dv], or [1, Hq, T, Dv] when `heads_first`. q, k, v are of this call's tokens,
    3-D or [1, H, T, D]; past_* are graph inputs, present_* the values that follow them out. mask: BOOL, or FLOAT to
    be added, over [.., T, past + T]; `inverted` when true hides. causal: on top of the mask, offset by the past.
    """

    anchor: ir.Node
    output: ir.Value
    heads_first: bool
    q: ir.Value
    k: ir.Value
    v: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value
    q_heads: int
    scale: float
    softcap: float = 0.0
    mask: ir.Value | None = None
    inverted: bool = False
    causal: bool = False


def find_sites(graph: ir.Graph) -> tuple[list[Site], list[str]]:
    """All attention layers over a cache, and the reasons for those refused."""
    sites, refused = [], []
    for node in graph:
        try:
            site = _fused(node) if is_op(node, "Attention") else _decomposed(node) if is_op(node, "MatMul") else None
        except RefusedError as e:
            refused.append(f"{describe(node)}: {e}")
            continue
        if site is not None:
            sites.append(site)
    return sites, refused


def cache_dims(past: ir.Value) -> tuple[int, int]:
    """(heads, size) of a past [batch, heads, length, size]. Raises RefusedError."""
    dims = dims_of(past)
    if dims is None or len(dims) != 4 or not isinstance(dims[1], int) or not isinstance(dims[3], int):
        raise RefusedError(f"the cache {past.name!r} has shape {dims}, not [batch, heads, length, size] with known "
                           "heads and size")
    if past.dtype != ir.DataType.FLOAT:
        raise RefusedError(f"the cache {past.name!r} is {past.dtype}, not FLOAT")
    return dims[1], dims[3]


def _fused(node: ir.Node) -> Site | None:
    q, k, v = (required(node, i) for i in range(3))
    mask, past_key, past_value = (input_of(node, i) for i in (3, 4, 5))
    causal = bool(int_attr(node, "is_causal", 0))
    if past_key is not None and past_value is not None:
        if not (past_key.is_graph_input() and past_value.is_graph_input()):
            raise RefusedError("its past is not an input of the model")
        if len(node.outputs) < 3:
            raise RefusedError("it does not return its present keys and values")
        present_key, present_value = node.outputs[1], node.outputs[2]
        repeated = 1
    else:
        keys, values = _cached(k), _cached(v)
        if keys is None and values is None:
            return None  # attention without a cache, as in an encoder
        if keys is None or values is None:
            raise RefusedError("only one of keys and values comes from a cache")
        if causal:
            raise RefusedError("is_causal over Concat(past, new) counts tokens from the start of the cache")
        k, v, past_key, past_value = keys.new, values.new, keys.past, values.past
        present_key, present_value = keys.present, values.present
        if keys.repeat != values.repeat:
            raise RefusedError("keys and values are repeated differently")
        repeated = keys.repeat
    if input_of(node, 6) is not None:
        raise RefusedError("it has a length per sequence (nonpad_kv_seqlen)")
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        raise RefusedError("its scores are read")
    heads_first = rank_of(q) == 4
    kv_heads, size = cache_dims(past_key)
    q_heads = _heads(q) if heads_first else int_attr(node, "q_num_heads", 0)
    if q_heads <= 0 or q_heads % kv_heads:
        raise RefusedError(f"{q_heads} query heads over {kv_heads} cached heads")
    if repeated not in (1, q_heads // kv_heads):
        raise RefusedError(f"{kv_heads} cached heads repeated {repeated} times for {q_heads} query heads")
    return Site(node, node.outputs[0], heads_first, q, k, v, past_key, past_value, present_key, present_value, q_heads,
                float_attr(node, "scale", size**-0.5), float_attr(node, "softcap", 0.0), mask, causal=causal)


@dataclass(frozen=True)
class _Cached:
    """Concat(past, new) along the tokens, each head repeated `repeat` times on the way to its reader."""

    past: ir.Value
    new: ir.Value
    present: ir.Value
    repeat: int


def _cached(value: ir.Value) -> _Cached | None:
    repeat, value = _unrepeated(value)
    node = producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or int_attr(node, "axis", 0) not in (2, -2):
        return None
    past, new = required(node, 0), required(node, 1)
    if not past.is_graph_input() or rank_of(new) != 4:
        return None
    return _Cached(past, new, value, repeat)


def _unrepeated(value: ir.Value) -> tuple[int, ir.Value]:
    """(n, x) when value is x [B, H, S, D] with every head n times in a row, else (1, value)."""
    reshape = producer(value, "Reshape")
    expand = producer(input_of(reshape, 0), "Expand") if reshape is not None else None
    lift = producer(input_of(expand, 0), "Unsqueeze") if expand is not None else None
    if lift is None:
        return 1, value
    inner, wide = required(lift, 0), dims_of(expand.outputs[0] if expand is not None else None)
    narrow, result = dims_of(inner), dims_of(value)
    if narrow is None or result is None or wide is None or len(narrow) != 4 or len(result) != 4:
        return 1, value
    if scalar_of(input_of(lift, 1)) not in (2.0, -3.0):
        return 1, value
    heads, more = narrow[1], result[1]
    if not isinstance(heads, int) or not isinstance(more, int) or more % heads or wide[1:3] != (heads, more // heads):
        return 1, value
    return more // heads, inner


def _heads(value: ir.Value) -> int:
    dims = dims_of(value)
    if dims is None or len(dims) != 4 or not isinstance(dims[1], int):
        raise RefusedError(f"the number of heads of {value.name!r} {dims} is not known")
    return dims[1]


def _decomposed(node: ir.Node) -> Site | None:
    """MatMul(Softmax(...), V)."""
    softmax = producer(_uncast(required(node, 0)), "Softmax")
    values = None if softmax is None else _cached(required(node, 1))
    if softmax is None or values is None:
        return None
    if int_attr(softmax, "axis", -1) not in (-1, 3):
        raise RefusedError("its softmax is not over the last axis")
    for scores in _scores(required(softmax, 0)):
        keys = _cached(scores.keys)
        if keys is None:
            continue
        if keys.repeat != values.repeat:
            raise RefusedError("keys and values are repeated differently")
        kv_heads, _ = cache_dims(keys.past)
        q_heads = _heads(scores.q)
        if q_heads != kv_heads * keys.repeat:
            raise RefusedError(f"{q_heads} query heads over {kv_heads} cached heads repeated {keys.repeat} times")
        return Site(node, node.outputs[0], True, scores.q, keys.new, values.new, keys.past, values.past, keys.present,
                    values.present, q_heads, scores.scale, scores.softcap, scores.mask, scores.inverted)
    raise RefusedError("the way from its softmax to q and the cached keys is not scale, softcap, mask")


@dataclass(frozen=True)
class _Scores:
    q: ir.Value
    keys: ir.Value
    scale: float = 1.0
    softcap: float = 0.0
    mask: ir.Value | None = None
    inverted: bool = False


def _scores(value: ir.Value) -> Iterator[_Scores]:
    """Readings of masked, capped, scaled q kᵀ; Add gives two, one per order of its operands."""
    value = _uncast(value)
    add, where = producer(value, "Add"), producer(value, "Where")
    if add is not None:
        for i in (0, 1):
            for scores in _capped(required(add, i)):
                yield replace(scores, mask=required(add, 1 - i))
        return
    if where is not None:
        condition, a, b = (required(where, i) for i in range(3))
        for inner, fill, inverted in ((a, b, False), (b, a, True)):
            number = scalar_of(fill)
            if number is not None and number <= HIDDEN:
                for scores in _capped(inner):
                    yield replace(scores, mask=condition, inverted=inverted)
        return
    yield from _capped(value)


def _capped(value: ir.Value) -> Iterator[_Scores]:
    """cap * tanh(scores / cap), or the scores as they are."""
    factor, inner = _scaled(value)
    tanh = producer(inner, "Tanh")
    if tanh is None:
        yield from _product(value)
        return
    ratio, scores = _scaled(required(tanh, 0))
    if factor <= 0 or ratio <= 0:
        return
    # factor * tanh(ratio * s) is a soft cap of s * (ratio * factor).
    for found in _product(scores):
        yield replace(found, scale=found.scale * ratio * factor, softcap=factor)


def _product(value: ir.Value) -> Iterator[_Scores]:
    scale, inner = _scaled(value)
    product = producer(inner, "MatMul")
    if product is None:
        return
    q_scale, q = _scaled(required(product, 0))
    k_scale, turned = _scaled(required(product, 1))
    transpose = producer(turned, "Transpose")
    if transpose is None or ints_attr(transpose, "perm") != (0, 1, 3, 2):
        return
    inner_scale, keys = _scaled(required(transpose, 0))
    yield _Scores(q, keys, scale * q_scale * k_scale * inner_scale)


def _scaled(value: ir.Value) -> tuple[float, ir.Value]:
    """(c, x) for c * x with constant factors; (1, value) when there is none."""
    factor = 1.0
    while True:
        value = _uncast(value)
        mul, div = producer(value, "Mul"), producer(value, "Div")
        if mul is not None:
            a, b = scalar_of(mul.inputs[0]), scalar_of(mul.inputs[1])
            if a is None and b is None:
                return factor, value
            number, value = (b, required(mul, 0)) if b is not None else (a, required(mul, 1))
            factor *= number if number is not None else 1.0
        elif div is not None and scalar_of(div.inputs[1]):
            factor /= scalar_of(div.inputs[1]) or 1.0
            value = required(div, 0)
        else:
            return factor, value


def _uncast(value: ir.Value) -> ir.Value:
    """Looks through a Cast from FLOAT to FLOAT, which exporters leave around a softmax."""
    cast = producer(value, "Cast")
    if cast is not None and required(cast, 0).dtype == ir.DataType.FLOAT == ir.DataType(int_attr(cast, "to", 0)):
        return required(cast, 0)
    return value
