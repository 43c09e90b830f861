"""libedgec_solve in ctypes: kernels/solve/solve.h says what each function does."""

from __future__ import annotations

import ctypes as c
import os
import sys
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgec.env import LIBRARY
from edgec.errors import EdgecError

Array = npt.NDArray[Any]

VERSION = 1
LARGEST = 65504.0  # what float16 holds
MAX_THREADS = 256
_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
_NAME = f"libedgec_solve.{_SUFFIX}"


class Status(IntEnum):
    """edgec_solve_status."""

    OK, ARGUMENT, MEMORY, VALUE, SINGULAR, ISA = range(6)


class Kind(IntEnum):
    """edgec_solve_kind."""

    HLQ, UNIFORM, UNIFORM_REAL, TABLE = range(4)


class Fit(IntEnum):
    """edgec_solve_fit."""

    MIN_MAX, CLIP, ALS, PUBLISHED = range(4)


class Options(c.Structure):
    """edgec_solve_options."""

    _fields_ = (
        ("struct_size", c.c_uint32), ("kind", c.c_int32), ("bits", c.c_int32), ("group", c.c_int32),
        ("fit", c.c_int32), ("iterations", c.c_int32), ("frozen", c.c_int32), ("refits", c.c_int32),
        ("sweeps", c.c_int32), ("threads", c.c_int32), ("isa", c.c_int32), ("rows_per_table", c.c_int32),
        ("tables", c.c_void_p),
    )


_POINTER, _SIZE, _OPTIONS = c.c_void_p, c.c_int64, c.POINTER(Options)
_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "edgec_solve_version": (c.c_uint32, ()),
    "edgec_solve_best_isa": (c.c_int, ()),
    "edgec_solve_groups": (c.c_int, (_OPTIONS, _POINTER, _SIZE, _SIZE, *(_POINTER,) * 4)),
    "edgec_solve_compensated": (c.c_int, (_OPTIONS, _POINTER, _SIZE, _SIZE, *(_POINTER,) * 6)),
    "edgec_solve_factor": (c.c_int, (_POINTER, _SIZE, c.c_double, c.c_int32, c.c_int32, _POINTER, _POINTER)),
    "edgec_solve_kmeans": (c.c_int, (_POINTER, _POINTER, _SIZE, c.c_int32, _POINTER)),
}
_loaded: dict[Path, c.CDLL] = {}


def library_path() -> Path:
    """The solver library: beside EDGEC_LIBRARY, else the packaged one, else the one in the repository's build folder.

    Raises EdgecError (EDGEC-E0007) when there is none.
    """
    chosen = LIBRARY.get()
    package = Path(__file__).resolve().parent.parent.parent
    folders = [Path(chosen).resolve().parent] if chosen else [package / "_native", package.parent / "build"]
    for folder in folders:
        if (folder / _NAME).is_file():
            return (folder / _NAME).resolve()
    raise EdgecError(
        "E0007", stage="quantize", where=_NAME, found="no file in " + ", ".join(map(str, folders)),
        wanted="the native solver library", hint="make build; it lies beside the runtime that EDGEC_LIBRARY names",
    )


def library() -> c.CDLL:
    """The loaded library with its prototypes. Raises EdgecError (EDGEC-E0007)."""
    path = library_path()
    if path not in _loaded:
        try:
            found = c.CDLL(str(path))
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as e:
            raise _unusable(path, str(e)) from e
        if found.edgec_solve_version() != VERSION:
            raise _unusable(path, f"version {found.edgec_solve_version()}")
        _loaded[path] = found
    return _loaded[path]


def _unusable(path: Path, found: str) -> EdgecError:
    return EdgecError("E0007", stage="quantize", where=str(path), found=found,
                      wanted=f"the solver library of this machine, version {VERSION}", hint="make build")


def default_threads() -> int:
    """Cores that this process may use, at most MAX_THREADS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, MAX_THREADS)


def options(**values: int) -> Options:
    """Options with defaults for what is not named."""
    defaults: Mapping[str, int] = {"group": 128, "iterations": 10, "threads": 1}
    return Options(struct_size=c.sizeof(Options), **{**defaults, **values})


def pointer(array: Array | None, dtype: type[np.generic]) -> int | None:
    """The address of a contiguous array of `dtype`."""
    if array is None:
        return None
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"{array.dtype} array, contiguous {array.flags.c_contiguous}; wanted contiguous {dtype}")
    return int(array.ctypes.data)


def raise_for(status: int, where: str, weight: Array | None = None) -> None:
    """Turns a status into the EdgecError that says what to do."""
    if status == Status.OK:
        return
    if status == Status.VALUE and weight is not None:
        size = np.abs(weight)
        worst = weight.flat[int(np.argmax(np.where(np.isnan(size), np.inf, size)))]
        raise EdgecError("E0002", stage="quantize", where=where, found=f"a weight of {worst}",
                         wanted="finite weights, at most float16's 65504", hint="leave this layer as it is")
    if status == Status.SINGULAR:
        raise EdgecError("E0002", stage="quantize", where=where, found="calibration statistics that are not positive",
                         wanted="H = sum x xT of finite inputs, not all zero",
                         hint="calibrate with other inputs, or without calibration")
    if status == Status.MEMORY:
        raise EdgecError("E0405", stage="quantize", where=where, found="no memory for the solver",
                         hint="close other programs, or use fewer threads")
    raise EdgecError("E0001", stage="quantize", where=where, found=f"solver status {Status(status).name}")
