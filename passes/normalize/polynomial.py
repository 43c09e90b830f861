"""Reads a small expression of one value as a polynomial in it.

Exporters spell the same activation in many orders (0.5 x (1 + t), x t' 0.5, x (1 + c x x), Pow(x, 3), ...). As
polynomials they are equal, so one comparison replaces a list of pictures.
"""

from __future__ import annotations

import onnx_ir as ir

from edgec.ir.model import is_op, rank_of, required, scalar_of

# power -> coefficient
Polynomial = dict[int, float]
_DEPTH, _DEGREE = 8, 4


def polynomial(value: ir.Value | None, x: ir.Value, depth: int = _DEPTH) -> Polynomial | None:
    """`value` as a polynomial in `x` with constant coefficients, or None when it is something else."""
    if value is None or depth == 0:
        return None
    if value is x:
        return {1: 1.0}
    number = scalar_of(value)
    if number is not None:
        # A constant of higher rank than x would widen the shape.
        return {0: number} if (rank_of(value) or 0) <= (rank_of(x) or 0) else None
    node = value.producer()
    if not is_op(node, "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Identity") or node is None:
        return None
    left = polynomial(required(node, 0), x, depth - 1)
    if left is None or node.op_type == "Identity":
        return left
    if node.op_type == "Neg":
        return {p: -c for p, c in left.items()}
    right = polynomial(required(node, 1), x, depth - 1)
    if right is None:
        return None
    if node.op_type in ("Add", "Sub"):
        sign = 1.0 if node.op_type == "Add" else -1.0
        return {p: left.get(p, 0.0) + sign * right.get(p, 0.0) for p in {*left, *right}}
    if node.op_type == "Mul":
        return _times(left, right)
    constant = right.get(0) if set(right) == {0} else None
    if not constant:
        return None
    if node.op_type == "Div":
        return {p: c / constant for p, c in left.items()}
    if constant not in range(1, _DEGREE + 1):
        return None
    result: Polynomial | None = {0: 1.0}
    for _ in range(int(constant)):
        result = None if result is None else _times(result, left)
    return result


def _times(a: Polynomial, b: Polynomial) -> Polynomial | None:
    product: Polynomial = {}
    for p, c in a.items():
        for q, d in b.items():
            product[p + q] = product.get(p + q, 0.0) + c * d
    return product if max(product) <= _DEGREE else None


def close(found: Polynomial | None, wanted: Polynomial, tolerance: float = 2e-3) -> bool:
    """Equal powers and coefficients within `tolerance`: exporters round constants to the weights' type."""
    if found is None:
        return False
    found = {p: c for p, c in found.items() if c}
    return set(found) == set(wanted) and all(abs(found[p] - c) <= tolerance * abs(c) for p, c in wanted.items())


def factors(value: ir.Value, depth: int = 5) -> tuple[float, list[ir.Value]]:
    """`value` as coefficient times values: products and divisions by constants multiplied out."""
    node = value.producer()
    if depth and node is not None and is_op(node, "Mul", "Div"):
        a, b = required(node, 0), required(node, 1)
        number = scalar_of(b)
        other = a
        if number is None and node.op_type == "Mul":
            number, other = scalar_of(a), b
        if number is not None and (rank_of(a if other is b else b) or 0) <= (rank_of(other) or 0) and number:
            coefficient, leaves = factors(other, depth - 1)
            return coefficient * (number if node.op_type == "Mul" else 1.0 / number), leaves
        if node.op_type == "Mul":
            c, left = factors(a, depth - 1)
            d, right = factors(b, depth - 1)
            return c * d, left + right
    return 1.0, [value]
