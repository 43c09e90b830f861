"""Runs an imported graph in ONNX Runtime and compares it with what the original answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.model import Array


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
    """The largest absolute difference, and the largest magnitude of the wanted values."""

    absolute: float
    magnitude: float

    def within(self, rtol: float) -> bool:
        # Comparison with NaN is false: a NaN on one side only never passes.
        return self.absolute <= rtol * self.magnitude + 1e-6

    def __str__(self) -> str:
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
    return Difference(float(gap.max()), float(np.abs(b[finite]).max()) if finite.any() else 0.0)
