"""Runs an imported graph in ONNX Runtime and compares it with what the original answered.

What counts as agreement: numbers within a tolerance, and infinities and NaNs in the same places. An output in which
the original has nothing but NaN agrees with anything that is broken likewise; it has to show a number once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.model import Array, input_of, int_attr, op_of, subgraphs


@contextmanager
def runner(model: ir.Model) -> Iterator[Runner]:
    """The graph in ONNX Runtime for the length of a `with` block; E0102 when it cannot be loaded or run there."""
    try:
        with Runner(model, "import") as session:
            yield session
    except EdgecError as e:
        if e.code != "E0202":
            raise
        raise EdgecError("E0102", stage="import", where=model.graph.name or "graph",
                         found=f"ONNX Runtime: {e.found.splitlines()[0][:300]}",
                         wanted="a graph that can be compared with the original") from e


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference, and the largest magnitude of the wanted values.

    blind: both sides are NaN where the wanted values are, and those hold no number, which proves nothing.
    """

    absolute: float
    magnitude: float
    blind: bool = False

    def within(self, rtol: float) -> bool:
        # Comparison with NaN is false: a NaN on one side only never passes.
        return not self.blind and self.absolute <= rtol * self.magnitude + 1e-6

    def __str__(self) -> str:
        if self.blind:
            return "no number, only NaN"
        return f"largest difference {self.absolute:.3g} where values reach {self.magnitude:.3g}"


def difference(found: Array, wanted: Array) -> Difference:
    """Compares two arrays; equal infinities and NaNs in the same places count as equal.

    Raises EdgecError E0104 when shape or dtype differ.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise EdgecError("E0104", stage="import", found=f"{found.dtype}{list(found.shape)}",
                         wanted=f"{wanted.dtype}{list(wanted.shape)}")
    if found.size == 0:
        return Difference(0.0, 0.0)
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    blind = bool(np.isnan(b).any() and not finite.any() and gap.max() == 0)
    return Difference(float(gap.max()), float(np.abs(b[finite]).max()) if finite.any() else 0.0, blind)


def other_values(feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """The same inputs, floats smaller, positive, both, and from 1: for models with logarithms, roots and the like."""
    for change in (lambda v: v / 64, np.abs, lambda v: np.abs(v) / 64, lambda v: 1 + np.abs(v)):
        yield {k: np.asarray(change(v), v.dtype) if np.issubdtype(v.dtype, np.floating) else v
               for k, v in feeds.items()}


def require_numbers(unproven: Collection[str], where: str) -> None:
    """Raises EdgecError E0105 when there are outputs that were NaN in every comparison."""
    if unproven:
        raise EdgecError("E0105", stage="import", where=f"{where}, output {', '.join(map(repr, sorted(unproven)))}",
                         found="the original gives only NaN, also for smaller and for positive inputs",
                         wanted="a number to compare with",
                         hint="look for NaN in its weights and for a division of zero by zero, or drop the output")


# -- values that are rounded to 8 bits -------------------------------------------------------------------------------

# What is known of a value: it is always the same, it follows the inputs, it follows a rounded one that does.
_FIXED, _VARIES, _ROUNDED = range(3)
# MatMulNBits: its left operand may be rounded to this type, of 8 bits.
_INT8_LEVEL = 4


def rounded_outputs(model: ir.Model) -> list[bool]:
    """For each graph output whether a value that follows the inputs is rounded to 8 bits on the way to it.

    Such a value may fall to the other side of a tie and move all that follows by one part in 255. Weights that are
    quantized do not: they are the same codes on both sides. Functions must have been inlined.
    """
    levels = dict.fromkeys(model.graph.inputs, _VARIES)
    _follow(model.graph, levels)
    return [levels.get(v, _FIXED) == _ROUNDED for v in model.graph.outputs]


def _follow(graph: ir.Graph, levels: dict[ir.Value, int]) -> None:
    """Adds the levels of all values that nodes of `graph`, and graphs inside it, make."""
    for node in graph:
        level = max((levels.get(v, _FIXED) for v in node.inputs if v is not None), default=_FIXED)
        if level == _VARIES and _rounds(node):
            level = _ROUNDED
        bodies = list(subgraphs(node))
        for body in bodies:
            # What a loop carries changes from turn to turn, whatever it begins with.
            levels.update(dict.fromkeys(body.inputs, max(level, _VARIES)))
            _follow(body, levels)
        for i, out in enumerate(node.outputs):
            # Outputs of If are those of its branches; what a loop carries may reach all of its outputs.
            some = slice(i, i + 1) if node.op_type == "If" else slice(None)
            made = [v for body in bodies for v in body.outputs[some]]
            levels[out] = max((level, *(levels.get(v, _FIXED) for v in made)))


def _rounds(node: ir.Node) -> bool:
    """Whether onnxruntime rounds what this node computes, or what it reads, to 8 bits."""
    domain, op_type = op_of(node)
    if domain not in ("", "com.microsoft"):
        return False
    if op_type == "MatMulNBits":
        return int_attr(node, "accuracy_level", 0) == _INT8_LEVEL
    if op_type == "QuantizeLinear":
        zero = input_of(node, 2)
        kind = int_attr(node, "output_dtype", 0) if zero is None or zero.dtype is None else zero.dtype
        return kind not in (ir.DataType.INT16, ir.DataType.UINT16)  # those are fine enough for the ordinary tolerance
    return op_type == "QGemm" or op_type.startswith(("DynamicQuantize", "QLinear"))
