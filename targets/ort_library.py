"""edgec's library of operators for ONNX Runtime, as the ort backend ships it and as it is registered here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgec.env import ISA
from edgec.errors import EdgecError
from edgec.ir.model import op_of, walk
from edgec.ir.ops import DOMAIN, LIBRARY
from edgec.ir.passes import Capabilities
from edgec.targets.devices import Device, host
from edgec.targets.toolchain import ORT, ort_library, require_ort_library

OPERATORS: Capabilities = frozenset((DOMAIN, name) for name in LIBRARY)


def check_device(device: Device) -> None:
    """Raises EdgecError (E0002) for a device that edgec builds no library for, E0005 and E0007 where this installation
    lacks what that takes: now, not after minutes of quantizing."""
    if device.os not in ("linux", "macos"):
        raise EdgecError("E0002", stage="options", where="--library", found=f"--target {device.name}",
                         wanted="a target of Linux or macOS: edgec builds its library for these only",
                         hint="without --library, or --backend native")
    require_ort_library(device)


def needed(model: ir.Model) -> bool:
    """Whether a lowered model holds an operator of the library."""
    return any(op_of(node) in OPERATORS for node in walk(model))


def ship(device: Device, folder: Path) -> str:
    """Copies the library for `device` into `folder` and returns its name. Raises EdgecError (E0005, E0007)."""
    name = ORT.file_name(device)
    shutil.copyfile(ort_library(device), folder / name)
    return name


def register(options: Any) -> None:
    """Gives onnxruntime's SessionOptions the operators of the installed library.

    Of this installation, whichever library lies beside a model: opening a folder must not run code that came with it.
    Raises EdgecError (E0007) when onnxruntime refuses the library, or the library onnxruntime or EDGEC_ISA.
    """
    path = ort_library(host())
    try:
        options.register_custom_ops_library(str(path))
    except Exception as e:  # onnxruntime's exception classes share no public base
        # The library's own words: runtime/isa.cpp and runtime/ort/library.cpp.
        said = str(e)
        hint = (f"unset {ISA.name}" if f"{ISA.name}: found" in said else
                "pip install 'onnxruntime>=1.32,<1.33'" if "found ONNX Runtime" in said else "make build")
        raise EdgecError("E0007", stage="onnxruntime", where=str(path), found=said, hint=hint,
                         wanted="an onnxruntime and an instruction set that edgec's library knows") from e
