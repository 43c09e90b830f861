"""Runs an imported graph in ONNX Runtime and compares it with what the original answered."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgec.errors import EdgecError

Array = npt.NDArray[Any]
# A protobuf message ends at 2 GiB; above this the weights go to a file of their own.
_INLINE_BYTES = 1 << 30


class OrtModel:
    """An imported graph inside ONNX Runtime, for the length of one comparison."""

    def __init__(self, model: ir.Model) -> None:
        import onnxruntime

        def session(source: bytes | str) -> Any:
            try:
                return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            except Exception as e:  # its exception classes are private
                raise EdgecError("E0102", stage="import", where=model.graph.name or "graph",
                                 found=f"ONNX Runtime cannot run it: {str(e).splitlines()[0][:300]}",
                                 wanted="a graph that can be compared with the original") from e

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        if size < _INLINE_BYTES:
            self._session = session(ir.to_proto(model).SerializeToString())
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                held = {k: v.const_value for k, v in model.graph.initializers.items()}
                ir.save(model, path, external_data="weights")
                for key, tensor in held.items():  # saving may repoint them into the temporary folder
                    model.graph.initializers[key].const_value = tensor
                self._session = session(str(path))
        self.inputs: dict[str, tuple[str, list[Any]]] = {
            i.name: (i.type, list(i.shape)) for i in self._session.get_inputs()
        }
        self._outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(None, dict(feeds)), strict=True))


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
    """Compares two arrays of equal shape; equal infinities and NaNs in the same places count as equal.

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
