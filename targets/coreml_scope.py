"""What the emitters of Core ML operators share: the builder, the types of the program, and how constants enter it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import Array, const_tensor, describe, dims_of, input_of, ints_of, required
from edgec.ir.weights import opened

# Core ML's integers are of 32 bits; ends of slices and the like say "as far as there is" with larger ones.
_INT32 = np.iinfo(np.int32)
_AS_FAR_AS_THERE_IS = 2.0**62
# What a graph writes for minus infinity in a mask, where float16 ends at 65504.
_AS_GOOD_AS_INFINITE = 1e9
_SMALLEST_HALF = 2.0**-24
_IOS = {"iOS16": 16, "iOS17": 17, "iOS18": 18}
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def ios(target: str) -> int:
    """16 of "iOS16"."""
    return _IOS[target]


class NewerNeededError(Exception):
    """Something that only a later deployment target can express. what: in words, for the user."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)
        self.what, self.where = what, where


@dataclass
class Scope:
    """One program while it is built.

    mb, types: coremltools' builder and its element types. half: float16 instead of float32. target: "iOS16" and so on.
    dense: makes the Var of a compressed weight, set by coreml_weights. values: ONNX value -> Var. stored: weight ->
    (shape, form, bytes), for the report. permissive: formats are allowed that cost more than they promise.
    """

    mb: Any
    types: Any
    half: bool
    target: str
    dense: Callable[[Scope, ir.Value], Any]
    is_dense: Callable[[ir.Value], bool]
    permissive: bool = False
    values: dict[ir.Value, Any] = field(default_factory=dict)
    stored: dict[str, tuple[tuple[int, ...], str, int]] = field(default_factory=dict)

    @property
    def real(self) -> Any:
        return np.float16 if self.half else np.float32

    @property
    def float_name(self) -> str:
        return "fp16" if self.half else "fp32"

    def var(self, value: ir.Value) -> Any:
        """The Var of a value; constants and compressed weights are made when first asked for. Raises EdgecError."""
        if value not in self.values:
            if self.is_dense(value):
                self.values[value] = self.dense(self, value)
            else:
                self.values[value] = self.mb.const(val=self._constant(value))
        return self.values[value]

    def input(self, node: ir.Node, index: int) -> Any:
        return self.var(required(node, index))

    def optional(self, node: ir.Node, index: int) -> Any:
        """The Var of an input that may be left out, else None."""
        value = input_of(node, index)
        return None if value is None else self.var(value)

    def _constant(self, value: ir.Value) -> Array:
        if const_tensor(value) is None:
            raise EdgecError("E0001", stage="emit coreml", where=value.name or "?", found="a value before its node",
                             wanted="nodes in order")
        with opened(value) as array:
            made = self.array(array, value.name or "a constant")
        if made.ndim > 1 and made.dtype != np.int32 and made.dtype != np.bool_:
            self.stored[value.name or "?"] = (made.shape, self.float_name, made.nbytes)
        return made

    def array(self, array: Array, where: str) -> Array:
        """A constant in the program's types: float16 or float32, int32, bool. Raises EdgecError (E0002)."""
        if array.dtype == np.bool_:
            return np.array(array)
        if np.issubdtype(array.dtype, np.integer):
            # Ends of slices say "as far as there is" by the largest numbers; others would become other numbers.
            size = np.abs(array.astype(np.float64))
            strange = array[(size > _INT32.max) & (size < _AS_FAR_AS_THERE_IS)]
            if strange.size:
                raise EdgecError("E0301", stage="emit coreml", where=where, found=f"the constant {strange.flat[0]}",
                                 wanted="integers of 32 bits: Core ML has no larger ones",
                                 hint="--backend native or ort")
            return np.clip(array, _INT32.min, _INT32.max).astype(np.int32)
        return self.floats(array, where)

    def floats(self, array: Array, where: str) -> Array:
        """Numbers in the program's float type; large finite stand-ins for infinity become its largest number."""
        wide = np.asarray(array, np.float32)
        if not self.half:
            return np.ascontiguousarray(wide).copy()
        with np.errstate(over="ignore"):
            made: Array = wide.astype(np.float16)
        lost = np.isinf(made) & np.isfinite(wide)
        if lost.any():
            largest = float(np.abs(wide[lost]).min())
            if largest < _AS_GOOD_AS_INFINITE:
                raise EdgecError("E0002", stage="emit coreml", where=where, found=f"a value of {largest:g}",
                                 wanted="values that float16 holds, up to 65504",
                                 hint="compile with --coreml-precision fp32")
            made = np.where(lost, np.sign(wide) * np.float16(65504), made).astype(np.float16)
        if made.size == 1 and not made.any() and wide.any():
            # An epsilon keeps a division from zero; it must not become one.
            made = np.full(made.shape, np.sign(wide.reshape(-1)[0]) * _SMALLEST_HALF, np.float16)
        return made

    def number(self, number: float) -> Any:
        """A scalar attribute in the program's float type."""
        return self.floats(np.array(number), "an attribute")[()]

    def newer(self, node: ir.Node, what: str) -> NewerNeededError:
        return NewerNeededError(what, describe(node))

    def rank(self, value: ir.Value) -> int:
        return len(self.var(value).shape)


def constant_ints(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """Input `index` as numbers when it is a constant."""
    value = input_of(node, index)
    return None if value is None else ints_of(value)


def static_dims(value: ir.Value) -> tuple[int | None, ...]:
    """Sizes of the dims, None for those known at run time only."""
    return tuple(d if isinstance(d, int) else None for d in dims_of(value) or ())


def is_float(value: ir.Value) -> bool:
    return value.dtype in FLOATS
