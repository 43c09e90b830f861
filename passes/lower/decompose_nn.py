"""Normalizations, rotary embedding and attention in simpler operators."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Builder, const_of, dims_of, float_attr, input_of, int_attr, rank_of, required
from edgec.passes.lower.decompose_math import Decomposed, Entry

_CHANNELS = 1 << 20


def batch_normalization(op: Builder, node: ir.Node) -> Decomposed:
    """Mul and Add per channel; constants are merged in float64."""
    if int_attr(node, "training_mode", 0):
        return "it is in training mode"
    x = required(node, 0)
    rank = rank_of(x)
    if rank is None:
        return "the rank of its input is not known"
    form = [1, -1] + [1] * (rank - 2) if rank > 1 else [-1]
    epsilon = float_attr(node, "epsilon", 1e-5)
    arrays = [const_of(v, _CHANNELS) for v in node.inputs[1:5]]
    known = [np.asarray(a, np.float64).reshape(form) for a in arrays if a is not None]
    if len(known) == 4:
        gamma, beta, mean, var = known
        factor = gamma / np.sqrt(var + epsilon)
        dtype = x.dtype or ir.DataType.FLOAT
        return op.Add(op.Mul(x, op.const(factor, dtype)), op.const(beta - mean * factor, dtype))
    shape = op.ints(form)
    scale, bias, center, spread = (op.Reshape(required(node, i), shape) for i in (1, 2, 3, 4))
    deviation = op.Sqrt(op.Add(spread, op.like(epsilon, x)))
    return op.Add(op.Mul(op.Div(op.Sub(x, center), deviation), scale), bias)


_SCALAR = "its input is a scalar, which has no dim to normalize over"


def _standardized(op: Builder, x: ir.Value, axes: ir.Value, epsilon: float) -> tuple[ir.Value, ir.Value, ir.Value]:
    """((x - mean) / sqrt(var + eps), mean, 1 / sqrt(var + eps)) over `axes`, which are kept."""
    mean = op.ReduceMean(x, axes, keepdims=1)
    center = op.Sub(x, mean)
    var = op.ReduceMean(op.Mul(center, center), axes, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(var, op.like(epsilon, x))))
    return op.Mul(center, inverse), mean, inverse


def layer_normalization(op: Builder, node: ir.Node) -> Decomposed:
    x, bias = required(node, 0), input_of(node, 2)
    rank = rank_of(x)
    if rank is None:
        return "the rank of its input is not known"
    if not rank:
        return _SCALAR
    axis = int_attr(node, "axis", -1) % rank
    y, mean, inverse = _standardized(op, x, op.ints(range(axis, rank)), float_attr(node, "epsilon", 1e-5))
    y = op.Mul(y, required(node, 1))
    y = y if bias is None else op.Add(y, bias)
    return [y, mean, inverse][: len(node.outputs)]


def rms_normalization(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    rank = rank_of(x)
    if rank is None:
        return "the rank of its input is not known"
    if not rank:
        return _SCALAR
    axes = op.ints(range(int_attr(node, "axis", -1) % rank, rank))
    square = op.ReduceMean(op.Mul(x, x), axes, keepdims=1)
    y = op.Div(x, op.Sqrt(op.Add(square, op.like(float_attr(node, "epsilon", 1e-5), x))))
    return op.Mul(y, required(node, 1))


def last_axis_norm(op: Builder, node: ir.Node) -> Decomposed:
    """A normalization over several last dims as one over a single joined dim."""
    x = required(node, 0)
    dims = dims_of(x)
    if dims is None:
        return "the rank of its input is not known"
    if not dims:
        return _SCALAR
    axis = int_attr(node, "axis", -1) % len(dims)
    if axis == len(dims) - 1:
        return "it is over the last dim already"
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its statistics are read"
    joined = [d for d in dims[axis:] if isinstance(d, int)]
    if len(joined) != len(dims) - axis:
        return "the dims it normalizes over are not known"
    width = op.ints([math.prod(joined)])
    full = op.Shape(x)
    shape = op.Concat(op.Shape(x, end=axis), width, axis=0) if axis else width
    scale, bias = op.Reshape(required(node, 1), width), input_of(node, 2)
    inputs = [op.Reshape(x, shape), scale] + ([] if bias is None else [op.Reshape(bias, width)])
    y = op.node(node.op_type, inputs, {"axis": -1, "epsilon": float_attr(node, "epsilon", 1e-5)}).outputs[0]
    return op.Reshape(y, full)


def _per_channel(op: Builder, vector: ir.Value, rank: int) -> ir.Value:
    array = const_of(vector, _CHANNELS)
    shape = [1, -1] + [1] * (rank - 2)
    return op.Reshape(vector, op.ints(shape)) if array is None else op.const(array.reshape(shape))


def group_normalization(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    rank = rank_of(x)
    if rank is None:
        return "the rank of its input is not known"
    grouped = op.Reshape(x, op.ints([0, int_attr(node, "num_groups", 1), -1]))
    y, _, _ = _standardized(op, grouped, op.ints([2]), float_attr(node, "epsilon", 1e-5))
    y = op.Reshape(y, op.Shape(x))
    return op.Add(op.Mul(y, _per_channel(op, required(node, 1), rank)), _per_channel(op, required(node, 2), rank))


def instance_normalization(op: Builder, node: ir.Node) -> Decomposed:
    x = required(node, 0)
    rank = rank_of(x)
    if rank is None:
        return "the rank of its input is not known"
    y, _, _ = _standardized(op, x, op.ints(range(2, rank)), float_attr(node, "epsilon", 1e-5))
    return op.Add(op.Mul(y, _per_channel(op, required(node, 1), rank)), _per_channel(op, required(node, 2), rank))


def rotary_embedding(op: Builder, node: ir.Node) -> Decomposed:
    """X [B, H, T, D], or [B, T, H*D] with num_heads; caches [max, R/2] with position_ids, else [B, T, R/2]."""
    x, cos, sin = required(node, 0), required(node, 1), required(node, 2)
    positions = input_of(node, 3)
    rank, heads = rank_of(x), int_attr(node, "num_heads", 0)
    if rank not in (3, 4) or (rank == 3 and not heads):
        return "the rank of its input or the number of heads is not known"
    # Everything in [B, T, H, D]: there the caches need one more dim before the last.
    split = op.Reshape(x, op.ints([0, 0, heads, -1])) if rank == 3 else op.Transpose(x, perm=(0, 2, 1, 3))
    if positions is not None:
        cos, sin = op.Gather(cos, positions, axis=0), op.Gather(sin, positions, axis=0)
    cos, sin = op.Unsqueeze(cos, op.ints([2])), op.Unsqueeze(sin, op.ints([2]))
    rotated = int_attr(node, "rotary_embedding_dim", 0)
    axis, one, far = op.ints([3]), op.ints([1]), op.ints([np.iinfo(np.int64).max])
    turning, rest = split, None
    if rotated:
        turning = op.Slice(split, op.ints([0]), op.ints([rotated]), axis)
        rest = op.Slice(split, op.ints([rotated]), far, axis)
    if int_attr(node, "interleaved", 0):
        a = op.Slice(turning, op.ints([0]), far, axis, op.ints([2]))
        b = op.Slice(turning, one, far, axis, op.ints([2]))
    else:
        half = op.Shape(cos, start=3, end=4)
        a = op.Slice(turning, op.ints([0]), half, axis)
        b = op.Slice(turning, half, far, axis)
    real = op.Sub(op.Mul(a, cos), op.Mul(b, sin))
    imaginary = op.Add(op.Mul(a, sin), op.Mul(b, cos))
    if int_attr(node, "interleaved", 0):
        pairs = op.Concat(op.Unsqueeze(real, op.ints([4])), op.Unsqueeze(imaginary, op.ints([4])), axis=4)
        y = op.Reshape(pairs, op.Shape(turning))
    else:
        y = op.Concat(real, imaginary, axis=3)
    if rest is not None:
        y = op.Concat(y, rest, axis=3)
    return op.Reshape(y, op.Shape(x)) if rank == 3 else op.Transpose(y, perm=(0, 2, 1, 3))


def attention(op: Builder, node: ir.Node) -> Decomposed:
    """softmax(cap(Q Kᵀ scale + mask)) V over heads; grouped heads through a fifth dim, nothing repeated.

    Rows that see nothing give 0, as the standard says. Softmax is in the type of the scores.
    """
    q, k, v = (required(node, i) for i in range(3))
    mask, past_key, past_value = (input_of(node, i) for i in (3, 4, 5))
    rank = rank_of(q)
    reason = _attention_reason(node, rank)
    if reason:
        return reason
    q_heads, kv_heads = _heads(node, q, "q_num_heads"), _heads(node, k, "kv_num_heads")
    if q_heads is None or kv_heads is None:
        return "the number of heads is not known"
    if rank == 3:
        q, k, v = (op.Transpose(op.Reshape(x, op.ints([0, 0, h, -1])), perm=(0, 2, 1, 3))
                   for x, h in ((q, q_heads), (k, kv_heads), (v, kv_heads)))
    if past_key is not None and past_value is not None:
        k, v = op.Concat(past_key, k, axis=2), op.Concat(past_value, v, axis=2)
    present = [k, v]
    group = q_heads // kv_heads
    width = op.Shape(q, start=3, end=4)
    scale = float_attr(node, "scale", 0.0)
    # The default scale depends on the head size, which only the run may know.
    dtype = int(required(node, 0).dtype or ir.DataType.FLOAT)
    factor = op.like(scale, q) if scale else op.Reciprocal(op.Sqrt(op.Cast(width, to=dtype)))
    q5 = op.Reshape(op.Mul(q, factor), op.Concat(op.ints([0, kv_heads, group, -1]), width, axis=0))
    k5, v5 = op.Unsqueeze(k, op.ints([2])), op.Unsqueeze(v, op.ints([2]))
    scores = op.MatMul(q5, op.Transpose(k5, perm=(0, 1, 2, 4, 3)))
    softcap = float_attr(node, "softcap", 0.0)
    bias, visible = _mask(op, node, q, k, past_key, mask, kv_heads, group)
    if softcap:
        cap = op.like(softcap, q)
        scores = op.Mul(op.Tanh(op.Div(scores, cap)), cap)
    if bias is not None:
        scores = op.Add(scores, bias)
    if visible is not None:
        scores = op.Where(visible, scores, op.like(float(np.finfo(np.float32).min) / 2, q))
    weights = op.Softmax(scores, axis=-1)
    if visible is not None:
        # A row that sees nothing would otherwise see everything evenly.
        weights = op.Where(visible, weights, op.like(0.0, q))
    y = op.MatMul(weights, v5)
    tokens = op.Shape(q, start=2, end=3)
    y = op.Reshape(y, op.Concat(op.ints([0, q_heads]), tokens, op.Shape(v, start=3, end=4), axis=0))
    if rank == 3:
        y = op.Reshape(op.Transpose(y, perm=(0, 2, 1, 3)), op.ints([0, 0, -1]))
    return [y, *present][: len(node.outputs)]


def _attention_reason(node: ir.Node, rank: int | None) -> str:
    if rank not in (3, 4):
        return "the rank of its query is not known"
    if input_of(node, 6) is not None:
        return "it takes a number of valid keys per batch"
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        return "its scores are read"
    mask = input_of(node, 3)
    if mask is not None and (mask.dtype is None or rank_of(mask) not in (2, 3, 4)):
        return "the type or rank of its mask is not known"
    return ""


def _heads(node: ir.Node, x: ir.Value, attribute: str) -> int | None:
    if rank_of(x) == 3:
        return int_attr(node, attribute, 0) or None
    dims = dims_of(x)
    return dims[1] if dims is not None and isinstance(dims[1], int) else None


def _mask(op: Builder, node: ir.Node, q: ir.Value, k: ir.Value, past: ir.Value | None, mask: ir.Value | None,
          kv_heads: int, group: int) -> tuple[ir.Value | None, ir.Value | None]:
    """(what is added to the scores, what is visible), both to broadcast with [B, Hkv, G, T, S]."""
    bias = visible = None
    if mask is not None:
        rank, dims = rank_of(mask), dims_of(mask)
        if rank == 3:
            # [Hq, T, S]
            mask, rank, dims = op.Unsqueeze(mask, op.ints([0])), 4, None if dims is None else (1, *dims)
        if rank == 4:
            per_head = dims is None or dims[1] != 1
            lead = [kv_heads, group] if per_head else [1, 1]
            mask = op.Reshape(mask, op.Concat(op.ints([0, *lead]), op.Shape(mask, start=2, end=4), axis=0))
        if mask.dtype == ir.DataType.BOOL or required(node, 3).dtype == ir.DataType.BOOL:
            visible = mask
        else:
            bias = mask
    if int_attr(node, "is_causal", 0):
        zero, one = op.const(np.array(0, np.int64)), op.const(np.array(1, np.int64))
        tokens = op.Squeeze(op.Shape(q, start=2, end=3))
        context = op.Squeeze(op.Shape(k, start=2, end=3))
        rows = op.Range(zero, tokens, one)
        if past is not None:
            rows = op.Add(rows, op.Squeeze(op.Shape(past, start=2, end=3)))
        causal = op.LessOrEqual(op.Range(zero, context, one), op.Unsqueeze(rows, op.ints([1])))
        visible = causal if visible is None else op.And(visible, causal)
    return bias, visible


TABLE: Mapping[str, Entry] = {
    "BatchNormalization": batch_normalization, "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization, "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization, "RotaryEmbedding": rotary_embedding, "Attention": attention,
}
