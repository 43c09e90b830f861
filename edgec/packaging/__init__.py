"""`edgec package`: a compiled bundle as a folder that an app builds with its ecosystem's ordinary command.

A format is a row of FORMATS and its function in formats.py. What all of them share: the runtime in one file with only
the kernels that the bundle's plan calls (amalgamate.py) and a typed header (header.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec import version
from edgec.errors import EdgecError, did_you_mean
from edgec.judge.bundle import bundle_path
from edgec.packaging.described import describe
from edgec.packaging.formats import FORMATS, Parts
from edgec.targets.devices import Device
from edgec.targets.devices import device as find_device
from edgec.targets.output import MANIFEST, check_output, output_folder, write_manifest

WEIGHTS = ("file", "object")


@dataclass(frozen=True)
class Packaged:
    """What `package` wrote. folder: absolute. kernels: in the runtime, sorted. build: the command that builds it."""

    folder: Path
    format: str
    name: str
    kernels: tuple[str, ...]
    build: str
    manifest: dict[str, Any]


def package(bundle: Path | str, out: Path | str, *, format: str = "cmake", weights: str = "file",
            name: str | None = None, target: str | None = None, signatures: bool = False) -> Packaged:
    """Writes the folder `out` from a compiled bundle (model.edgec, or the output folder of `compile`).

    format: a row of FORMATS. weights: "file", to be mapped, or "object", linked into the program. name: for files and
    identifiers, instead of the model's. target: a device whose instruction sets suffice; by default the one that the
    folder was compiled for, or all. signatures: the runtime can verify them. The folder appears only when it is
    complete; an earlier package in its place is replaced. Raises EdgecError: E0002 to E0007, E0401, E0402.
    """
    if format not in FORMATS:
        raise EdgecError("E0002", stage="package", where="--format", found=format, wanted=did_you_mean(format, FORMATS))
    row = FORMATS[format]
    if weights not in row.weights:
        raise EdgecError("E0002", stage="package", where="--weights", found=f"{weights} with --format {format}",
                         wanted=" or ".join(row.weights), hint=row.weights_hint if weights in WEIGHTS else "")
    folder = Path(out)
    check_output(folder)
    _check_replaced(folder, Path(bundle))
    model = describe(bundle_path(Path(bundle)), name)
    device = find_device(target) if target is not None else _compiled_for(Path(bundle))
    chosen = model.selection(signatures=signatures, without=_left_out(device))
    parts = Parts(model, chosen, linked=weights == "object", device=device)
    with output_folder(folder) as work:
        row.write(work, parts)
        manifest = write_manifest(work, {
            "edgec_version": version.__version__, "package": format, "name": model.id, "weights": weights,
            "kernels": sorted(chosen.kernels), "parts": sorted(chosen.parts), "panels": sorted(chosen.panels),
            "caches": sorted(chosen.caches), "activations": "all" if chosen.curved else "clamps",
            "without": list(chosen.without),
        })
    return Packaged(folder.resolve(), format, model.id, tuple(sorted(chosen.kernels)), row.build, manifest)


def _check_replaced(folder: Path, bundle: Path) -> None:
    """Raises EdgecError (E0004) where something else than an earlier package would be replaced."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # check_output() has refused folders with anything in them
    if folder.resolve() in (bundle.resolve(), *bundle.resolve().parents) or "package" not in manifest:
        raise EdgecError("E0004", stage="package", where=str(folder), found="the output folder of a compile",
                         wanted="a new folder, or an earlier package", hint="choose another -o folder")


def _compiled_for(bundle: Path) -> Device | None:
    """The device in the manifest of an output folder; None where there is none, or for the host, whose CPU says nothing
    about those that the package will run on."""
    try:
        target = json.loads((bundle / MANIFEST).read_text(encoding="utf-8")).get("target")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return find_device(target) if isinstance(target, str) and target != "host" else None


def _left_out(device: Device | None) -> tuple[str, ...]:
    """Instruction sets that a device of x86-64 does not have; others have one that is always there."""
    if device is None or device.arch != "x86_64":
        return ()
    return tuple(name.upper() for name in ("avx2", "avx512") if name not in device.isa)
