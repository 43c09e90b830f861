"""Recognizes softmax(scale Q Kᵀ + mask) V over heads and writes it as one Attention.

Starts from the product with V and walks back. The scale may sit on the scores, on Q, on K, or be spread over them. A
mask may be added, or be a Where with a fill so low that nothing shines through; it becomes an added mask, so that a
row that sees nothing still averages as the spelled-out form does. Runs after static_kv, which wants the cached ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from edgec.ir.model import (
    Builder,
    dims_of,
    int_attr,
    ints_attr,
    producer,
    rank_of,
    required,
    scalar_of,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules

# Added to any score, such a fill is the fill itself in float32.
_HIDDEN = -1e30


@dataclass(frozen=True)
class _Scores:
    """scale * product(q, key permuted by perm), then perhaps `mask` added, or `where` applied.

    where: (condition, keep when true, fill).
    """

    q: ir.Value
    key: ir.Value
    perm: tuple[int, ...]
    scale: float
    mask: ir.Value | None = None
    where: tuple[ir.Value, bool, float] | None = None


def _scaled(value: ir.Value) -> tuple[float, ir.Value]:
    """(c, x) when value is c x with constant scalars multiplied or divided in, else (1, value)."""
    scale = 1.0
    while (node := producer(value, "Mul", "Div")) is not None:
        a, b = required(node, 0), required(node, 1)
        number, rest = scalar_of(b), a
        if number is None and node.op_type == "Mul":
            number, rest = scalar_of(a), b
        if not number or rank_of(rest) != rank_of(value):
            break
        scale, value = scale * number if node.op_type == "Mul" else scale / number, rest
    return scale, value


def _product(value: ir.Value) -> _Scores | None:
    scale, inner = _scaled(value)
    node = producer(inner, "MatMul")
    if node is None:
        return None
    (q_scale, q), (k_scale, key) = _scaled(required(node, 0)), _scaled(required(node, 1))
    perm: tuple[int, ...] = (0, 1, 2, 3)
    # A scale on K may also sit before its Transpose.
    turn = producer(key, "Transpose")
    turned = None if turn is None else ints_attr(turn, "perm")
    if turn is not None and turned is not None and len(turned) == 4:
        before, key = _scaled(required(turn, 0))
        k_scale, perm = k_scale * before, turned
    return _Scores(q, key, perm, scale * q_scale * k_scale)


def _scores(value: ir.Value) -> _Scores | None:
    node = producer(value, "Add", "Where")
    if node is None:
        return _product(value)
    if node.op_type == "Add":
        for i in (0, 1):
            found = _product(required(node, i))
            if found is not None:
                return replace(found, mask=required(node, 1 - i))
        return _product(value)
    condition = required(node, 0)
    for keep, i in ((True, 1), (False, 2)):
        fill = scalar_of(node.inputs[3 - i])
        found = _product(required(node, i))
        if fill is not None and found is not None:
            return replace(found, where=(condition, keep, fill))
    return None


def _softmax(value: ir.Value) -> ir.Node | None:
    """The Softmax over the last dim behind `value`; torch puts zeros for NaN rows after it."""
    node = producer(value, "Softmax")
    safe = producer(value, "Where")
    if safe is not None and scalar_of(safe.inputs[1]) == 0.0:
        test = producer(safe.inputs[0], "IsNaN")
        node = producer(safe.inputs[2], "Softmax") if test is not None and test.inputs[0] is safe.inputs[2] else None
    if node is None or int_attr(node, "axis", -1) not in (-1, (rank_of(node.inputs[0]) or 0) - 1):
        return None
    return node


class FuseSDPA(Rule):
    """Four dims each: Q [B, H, T, D], Kᵀ [B, H, D, S], V [B, H, S, Dv]."""

    roots = ("MatMul",)

    def match(self, node: ir.Node) -> Bindings | None:
        softmax = _softmax(required(node, 0))
        found = None if softmax is None else _scores(required(softmax, 0))
        if softmax is None or found is None:
            return None
        return {"found": found, "v": required(node, 1), "scores": required(softmax, 0)}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        found: _Scores = parts["found"]
        all_dims = [dims_of(x) for x in (found.q, found.key, parts["v"], parts["scores"])]
        q, key, v, scores = (dims if dims is not None and len(dims) == 4 else () for dims in all_dims)
        if not (q and key and v and scores):
            return "query, key, value and scores do not all have four known dims"
        lead = tuple(key[i] for i in found.perm[:2])
        if None in q[:2] or not q[:2] == lead == v[:2] == scores[:2]:
            return "batch or heads of query, key, value and mask differ or are not known"
        if found.scale <= 0:
            return f"its scale is {found.scale}"
        if found.where is not None and found.where[2] > _HIDDEN:
            return f"its fill {found.where[2]:g} lets hidden positions shine through"
        mask = found.mask if found.where is None else found.where[0]
        if mask is not None and rank_of(mask) not in (2, 3, 4):
            return "its mask has another number of dims than 2, 3 or 4"
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        found: _Scores = parts["found"]
        mask = found.mask
        if found.where is not None:
            condition, keep, fill = found.where
            zero, hidden = op.like(0.0, found.q), op.like(fill, found.q)
            mask = op.Where(condition, zero, hidden) if keep else op.Where(condition, hidden, zero)
        perm = tuple(found.perm[i] for i in (0, 1, 3, 2))
        key = found.key if perm == (0, 1, 2, 3) else op.Transpose(found.key, perm=perm)
        return op.Attention(found.q, key, parts["v"], mask, scale=found.scale)


class FuseAttention(Pass):
    """Exact up to the order of rounding; what does not fit stays spelled out."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        ctx.rules.extend(apply_rules(model, (FuseSDPA(),)))
        return model, ctx.rules.modified
