"""Vendor attention operators as standard Attention and RotaryEmbedding.

Their masks come in several forms; all become one FLOAT bias [B, 1, 1 or S, T] that is added to the scores, with the
finite value these operators use for hidden positions (a row that sees nothing then averages, as theirs does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Builder,
    dims_of,
    float_attr,
    graph_of,
    input_of,
    int_attr,
    ints_attr,
    rank_of,
    required,
    static_shape,
)
from edgec.passes.normalize.vendor import VendorRule, given, read

_HIDDEN = -10000.0


def _scale(node: ir.Node) -> float | None:
    """The attribute scale; 0 or left out means 1 / sqrt(head size), which Attention takes by itself."""
    return float_attr(node, "scale", 0.0) or None


def _added(op: Builder, a: ir.Value | None, b: ir.Value | None) -> ir.Value | None:
    return b if a is None else a if b is None else op.Add(a, b)


def _padding_bias(op: Builder, mask: ir.Value, queries: ir.Value, total: ir.Value, hidden: float) -> ir.Value:
    """A bias from a mask: [B] lengths, [B, T] or [B, S, T] with 1 for what is seen. queries, total: INT64 [1], S, T."""
    rank = rank_of(mask)
    if rank == 1:
        steps = op.Range(op.const(np.array(0, np.int64)), op.Squeeze(total), op.const(np.array(1, np.int64)))
        sees = op.Less(steps, op.Unsqueeze(op.Cast(mask, to=int(ir.DataType.INT64)), op.ints([1])))
    else:
        sees = op.Cast(mask, to=int(ir.DataType.BOOL))
    wide = op.Unsqueeze(sees, op.ints([1] if rank == 3 else [1, 2]))
    bias = op.Where(wide, op.const(np.array(0, np.float32)), op.const(np.array(hidden, np.float32)))
    # Attention broadcasts rows and heads, but onnxruntime's wants every query.
    return bias if rank == 3 else op.Expand(bias, op.Concat(op.ints([1, 1]), queries, op.ints([1]), axis=0))


def _mask_problem(node: ir.Node, index: int, query: ir.Value) -> str | None:
    mask = input_of(node, index)
    if mask is None:
        return None
    rank = rank_of(mask)
    if rank is None or rank > 3:
        return f"its mask has rank {rank}"
    if rank == 1:
        rows, batch = (dims_of(mask) or (None,))[0], (dims_of(query) or (None,))[0]
        if rows is None or rows != batch:
            return f"its mask [{rows}] is not one length for each of {batch} rows"
    return None


def _tokens(op: Builder, value: ir.Value) -> ir.Value:
    """INT64 [1]: the size of axis 1."""
    return op.Shape(value, start=1, end=2)


def _attend(op: Builder, node: ir.Node, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None,
            past: tuple[ir.Value | None, ir.Value | None], heads: tuple[int, int], *, causal: bool,
            softcap: float | None = None) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(y, present key, present value) of q, k, v [B, S, H*D]; presents are [B, H, T, D]."""
    settings: dict[str, Any] = {"q_num_heads": heads[0], "kv_num_heads": heads[1], "scale": _scale(node),
                                "softcap": softcap, "is_causal": int(causal)}
    if past[0] is not None and past[1] is not None:
        y, key, value = op.Attention.many(3, q, k, v, mask, *past, **settings)
        return y, key, value
    y = op.Attention(q, k, v, mask, **settings)
    if len(node.outputs) < 2:
        return y, y, y
    key, value = (op.Transpose(op.Reshape(x, op.ints([0, 0, heads[1], -1])), perm=(0, 2, 1, 3)) for x in (k, v))
    return y, key, value


class MultiHeadAttention(VendorRule):
    """MultiHeadAttention(q, k, v, [bias], [key padding], [scores' bias], [past key], [past value], ...)."""

    roots = ("MultiHeadAttention",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if len(given(node, 1, 2)) < 2 or rank_of(input_of(node, 0)) != 3:
            return "its queries, keys and values are packed into one input"
        if rank_of(input_of(node, 1)) not in (3, 4) or rank_of(input_of(node, 2)) not in (3, 4):
            return "the rank of its keys or values is not 3 or 4"
        if len(given(node, 6, 7)) == 1 or given(node, 8, 9):
            return "its cache is of fixed length or shared between beams"
        if given(node, 3) and static_shape(input_of(node, 3)) is None:
            return "the width of its bias is not known"
        if given(node, 3) and self._widths(node) is None:
            return "the widths of its queries and values are not known"
        if read(node, 3):
            return "its scores are read"
        return _mask_problem(node, 4, required(node, 0))

    @staticmethod
    def _widths(node: ir.Node) -> tuple[int, int] | None:
        """(of q and k, of v), from the queries and the bias over all three."""
        width, whole = (dims_of(input_of(node, 0)) or (None,))[-1], static_shape(input_of(node, 3))
        if not isinstance(width, int) or whole is None or len(whole) != 1:
            return None
        return width, whole[0] - 2 * width

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> Sequence[ir.Value]:
        heads = int_attr(node, "num_heads", 0)
        q, k, v = (required(node, i) for i in range(3))
        if given(node, 3):
            width, value_width = self._widths(node) or (0, 0)
            biases = op.Split.many(3, required(node, 3), op.ints([width, width, value_width]), axis=0)
            k, v = self._flat(op, k), self._flat(op, v)
            q, k, v = (op.Add(x, b) for x, b in zip((q, k, v), biases, strict=True))
        k, v = self._flat(op, k), self._flat(op, v)
        past_key, past_value = input_of(node, 6), input_of(node, 7)
        padding = input_of(node, 4)
        mask = None
        if padding is not None:
            total = _tokens(op, k)
            if past_key is not None:
                total = op.Add(total, op.Shape(past_key, start=2, end=3))
            mask = _padding_bias(op, padding, _tokens(op, q), total, float_attr(node, "mask_filter_value", _HIDDEN))
        mask = _added(op, mask, input_of(node, 5))
        y, key, value = _attend(op, node, q, k, v, mask, (past_key, past_value), (heads, heads),
                                causal=bool(int_attr(node, "unidirectional", 0)))
        return [y, key, value, y][: len(node.outputs)]

    @staticmethod
    def _flat(op: Builder, x: ir.Value) -> ir.Value:
        """Keys and values of another sequence may already be [B, H, S, D]."""
        if rank_of(x) != 4:
            return x
        return op.Reshape(op.Transpose(x, perm=(0, 2, 1, 3)), op.ints([0, 0, -1]))


class PackedAttention(VendorRule):
    """Attention(x, weights, [bias], [mask], [past], [scores' bias]): the projections are inside."""

    roots = ("Attention",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if given(node, 6) or int_attr(node, "do_rotary", 0):
            return "its cache is shared with its output, or it rotates positions"
        if self._widths(node) is None:
            return "the widths of its queries, keys and values are not known"
        return _mask_problem(node, 3, required(node, 0))

    @staticmethod
    def _widths(node: ir.Node) -> tuple[int, ...] | None:
        named, shape = ints_attr(node, "qkv_hidden_sizes"), static_shape(input_of(node, 1))
        if named:
            return named if len(named) == 3 else None
        return None if shape is None or len(shape) != 2 else (shape[1] // 3,) * 3

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> Sequence[ir.Value]:
        x, heads, past = required(node, 0), int_attr(node, "num_heads", 0), input_of(node, 4)
        # Three products instead of one: each weight then is a linear of its own, as in every other model.
        widths = op.ints(self._widths(node) or ())
        qkv = [op.MatMul(x, w) for w in op.Split.many(3, required(node, 1), widths, axis=1)]
        if given(node, 2):
            biases = op.Split.many(3, required(node, 2), widths, axis=0)
            qkv = [op.Add(y, b) for y, b in zip(qkv, biases, strict=True)]
        pasts: tuple[ir.Value | None, ir.Value | None] = (None, None)
        total = _tokens(op, x)
        if past is not None:
            key, value = (op.Squeeze(part, op.ints([0])) for part in op.Split.many(2, past, axis=0, num_outputs=2))
            pasts = (key, value)
            total = op.Add(total, op.Shape(past, start=3, end=4))
        mask = None
        if given(node, 3):
            mask = _padding_bias(op, required(node, 3), _tokens(op, x), total,
                                 float_attr(node, "mask_filter_value", _HIDDEN))
        mask = _added(op, mask, input_of(node, 5))
        q, k, v = qkv
        y, key, value = _attend(op, node, q, k, v, mask, pasts, (heads, heads),
                                causal=bool(int_attr(node, "unidirectional", 0)))
        if len(node.outputs) == 1:
            return [y]
        return [y, op.Concat(op.Unsqueeze(key, op.ints([0])), op.Unsqueeze(value, op.ints([0])), axis=0)]


class VendorRotary(VendorRule):
    """RotaryEmbedding(x, positions, cos, sin) with x [B, S, H*D] or [B, H, S, D]."""

    roots = ("RotaryEmbedding",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if float_attr(node, "scale", 1.0) != 1.0 or int_attr(node, "is_packed_batching", 0):
            return "it scales positions or packs sequences"
        rank, width = rank_of(input_of(node, 0)), (dims_of(input_of(node, 0)) or (None,))[-1]
        if rank not in (3, 4) or rank_of(input_of(node, 1)) is None:
            return "the rank of an input is not known"
        table = static_shape(input_of(node, 2)) or ()
        known = isinstance(width, int) and len(table) == 2 and table[1] > 0
        return None if known or int_attr(node, "num_heads", 0) or rank == 4 else "its number of heads is not known"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        x, positions, cos, sin = (required(node, i) for i in range(4))
        rank, heads = rank_of(x), int_attr(node, "num_heads", 0)
        if rank == 3 and not heads:
            width, half = (dims_of(x) or (0,))[-1], (static_shape(cos) or (0, 1))[1]
            heads = width // (2 * half) if isinstance(width, int) else 0
        if rank_of(positions) == 1:
            positions = _counted(op, op.Squeeze(positions), x, 1 if rank == 3 else 2)
        return op.RotaryEmbedding(
            x, cos, sin, positions, interleaved=int_attr(node, "interleaved", 0),
            rotary_embedding_dim=int_attr(node, "rotary_embedding_dim", 0), num_heads=heads if rank == 3 else None,
        )


def _counted(op: Builder, first: ir.Value, x: ir.Value, axis: int) -> ir.Value:
    """INT64 [B, S]: first, first + 1, ... along `axis` of x. first: INT64 []."""
    length = op.Shape(x, start=axis, end=axis + 1)
    steps = op.Range(first, op.Add(first, op.Squeeze(length)), op.const(np.array(1, np.int64)))
    return op.Expand(steps, op.Concat(op.Shape(x, start=0, end=1), length, axis=0))


class GroupQueryAttention(VendorRule):
    """GroupQueryAttention(q, k, v, past key, past value, seqlens_k, total length, [cos], [sin], [positions], [bias]).

    The lengths per row (seqlens_k) matter only where rows are padded; they are computed from an attention mask, and
    edgec's language models have no padding. Where the lengths are an input of the model the node stays.
    """

    roots = ("GroupQueryAttention",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        lengths = input_of(node, 5)
        if lengths is not None and lengths in graph_of(node).inputs:
            return "the lengths of its rows are an input of the model"
        if given(node, 11, 12, 13) or int_attr(node, "smooth_softmax", 0) > 0:
            return "it has a sink or a quantized cache"
        if read(node, 3) or len(given(node, 3, 4)) == 1:
            return "its scores are read, or half of its cache is missing"
        if not given(node, 1) and not isinstance((dims_of(input_of(node, 0)) or (None,))[-1], int):
            return "the width of its packed queries, keys and values is not known"
        if min(int_attr(node, "num_heads", 1), int_attr(node, "kv_num_heads", 1)) < 1:
            return "it has no heads"
        rotates = int_attr(node, "do_rotary", 0)
        return "its table of cosines is no matrix" if rotates and rank_of(input_of(node, 7)) != 2 else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> Sequence[ir.Value]:
        heads, kv_heads = int_attr(node, "num_heads", 1), int_attr(node, "kv_num_heads", 1)
        q, past_key = required(node, 0), input_of(node, 3)
        if given(node, 1):
            k, v = required(node, 1), required(node, 2)
        else:
            width = (dims_of(q) or (0,))[-1]
            size = width // (heads + 2 * kv_heads) if isinstance(width, int) else 0
            q, k, v = op.Split.many(3, q, op.ints([heads * size, kv_heads * size, kv_heads * size]), axis=-1)
        zero = op.const(np.array(0, np.int64))
        first = zero if past_key is None else op.Squeeze(op.Shape(past_key, start=2, end=3))
        if int_attr(node, "do_rotary", 0):
            positions = input_of(node, 9) or _counted(op, first, q, 1)
            tables = (required(node, 7), required(node, 8), positions)
            interleaved = int_attr(node, "rotary_interleaved", 0)
            # The tables may cover a part of each head only.
            rotated = 2 * (static_shape(input_of(node, 7)) or (0, 0))[1]
            q, k = (op.RotaryEmbedding(x, *tables, num_heads=n, interleaved=interleaved, rotary_embedding_dim=rotated)
                    for x, n in ((q, heads), (k, kv_heads)))
        window = int_attr(node, "local_window_size", -1)
        mask = input_of(node, 10)
        if window > 0:
            mask = _added(op, mask, self._window_bias(op, q, first, window))
        softcap = float_attr(node, "softcap", 0.0)
        y, key, value = _attend(op, node, q, k, v, mask, (past_key, input_of(node, 4)), (heads, kv_heads),
                                causal=True, softcap=softcap or None)
        return [y, key, value, y][: len(node.outputs)]

    @staticmethod
    def _window_bias(op: Builder, q: ir.Value, first: ir.Value, window: int) -> ir.Value:
        """FLOAT [S, T]: 0 for the last `window` positions up to the token's own, else minus infinity for float32."""
        one = op.const(np.array(1, np.int64))
        last = op.Add(first, op.Squeeze(_tokens(op, q)))
        own = op.Unsqueeze(op.Range(first, last, one), op.ints([1]))
        others = op.Range(op.const(np.array(0, np.int64)), last, one)
        near = op.Greater(others, op.Sub(own, op.const(np.array(window, np.int64))))
        lowest = np.array(np.finfo(np.float32).min, np.float32)
        return op.Where(near, op.const(np.array(0, np.float32)), op.const(lowest))


RULES = (MultiHeadAttention(), PackedAttention(), VendorRotary(), GroupQueryAttention())
