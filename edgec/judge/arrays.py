"""Arrays that somebody hands in as .npy and .npz files: no pickled objects, and one error whatever is wrong."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.judge.metrics import Array

# What numpy raises for damaged files, lengths that no memory holds and compressions it does not know among them.
_DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path, stage: str) -> dict[str, Array]:
    """The arrays of an .npz file by name. Raises EdgecError: E0003 no such file, E0502 not an .npz, or damaged."""
    wanted = "a .npz file, as numpy.savez writes it"
    if path.is_file() and not zipfile.is_zipfile(path):
        raise EdgecError("E0502", stage=stage, where=str(path), found="not a .npz file", wanted=wanted)
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays: dict[str, Any] = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as e:
        raise _missing(path, stage) from e
    except _DAMAGED as e:
        raise EdgecError("E0502", stage=stage, where=str(path), found=str(e), wanted=wanted) from e
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise EdgecError("E0502", stage=stage, where=f"{path}, {name}", found="not an array", wanted=wanted)
    return arrays


def read_npy(path: Path, stage: str) -> Array:
    """The array of an .npy file. Raises EdgecError: E0003 no such file, E0502 not an .npy, or damaged."""
    wanted = "a .npy file, as numpy.save writes it"
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as e:
        raise _missing(path, stage) from e
    except _DAMAGED as e:
        raise EdgecError("E0502", stage=stage, where=str(path), found=str(e), wanted=wanted) from e
    if not isinstance(array, np.ndarray):
        array.close()
        raise EdgecError("E0502", stage=stage, where=str(path), found="a .npz file", wanted=wanted)
    return array


def _missing(path: Path, stage: str) -> EdgecError:
    return EdgecError("E0003", stage=stage, where=str(path), found="no such file", wanted="an array")
