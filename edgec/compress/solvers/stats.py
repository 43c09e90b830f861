"""What calibration knows of the inputs of one linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgec.errors import EdgecError

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LinearStats:
    """Sums over `count` input vectors x of K values.

    h f64 or f32 [K, K]: sum of x xT; diag [K]: its diagonal; absmax [K]: largest |x|; sums [K]: sum of x.
    Raises EdgecError (E0002) when h or diag does not fit the other or is not finite, or diag is negative.
    """

    h: Array
    diag: Array
    absmax: Array
    count: int
    sums: Array

    def __post_init__(self) -> None:
        k = len(self.diag)
        if self.diag.ndim != 1 or self.h.shape != (k, k):
            raise _bad(f"h {self.h.shape}, diag {self.diag.shape}", "h [K, K] and diag [K]")
        if not (np.isfinite(self.diag).all() and (self.diag >= 0).all()):
            raise _bad("an infinite, NaN or negative value in diag", "finite sums of squares")


def _bad(found: str, wanted: str) -> EdgecError:
    return EdgecError("E0002", stage="quantize", where="calibration statistics", found=found, wanted=wanted,
                      hint="look for NaN in the calibration inputs or the model")
