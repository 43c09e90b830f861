"""`edgec size`: what a bundle's bytes are, and what the runtime library's are."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgec.errors import EdgecError
from edgec.judge.bundle import bundle_path
from edgec.native.bundle import Kind, read_bundle
from edgec.native.kernel_sizes import Objects, UnreadableError, sizes
from edgec.native.library import library_path
from edgec.targets.binary import stripped_bytes
from edgec.targets.output import listed
from edgec.targets.toolchain import compile_object

_TABLE = "kernel_sizes.json"  # beside the library, by edgec/native/kernel_sizes.py


def bundle_size(path: Path, layers: int) -> dict[str, Any]:
    """The bytes of the bundle `path` (the file, or its output folder).

    bytes: of the file. sections: name -> bytes. padding: header, section table and alignment. forms: of each kind of
    weight, tensors, values, bytes. layers: the `layers` largest weights. kernels: name -> calls. files: of the folder.
    Raises EdgecError: E0003, E0401, E0402.
    """
    file = bundle_path(path)
    bundle = read_bundle(file)
    stored = bundle.plan.stored()
    forms: dict[str, Counter[str]] = {}
    for weight in stored:
        forms.setdefault(weight.form, Counter()).update(
            tensors=1, values=math.prod(weight.shape), bytes=weight.bytes)
    sections = {kind.name: len(data) for kind, data in bundle.sections.items()}
    largest = sorted(stored, key=lambda weight: (-weight.bytes, weight.name))[:layers]
    return {
        "bundle": str(file), "bytes": len(bundle.data), "sections": sections,
        "padding": len(bundle.data) - sum(sections.values()),
        "weight_padding": sections[Kind.WEIGHTS.name] - sum(weight.bytes for weight in stored),
        "forms": {form: dict(counts) for form, counts in sorted(forms.items(), key=lambda pair: -pair[1]["bytes"])},
        "layers": [{"name": w.name, "shape": list(w.shape), "form": w.form, "bytes": w.bytes} for w in largest],
        "kernels": dict(Counter(call.kernel for entry in bundle.plan.entries for call in entry.calls)),
        "files": {p.relative_to(path).as_posix(): p.stat().st_size for p in sorted(path.rglob("*")) if p.is_file()}
        if path.is_dir() else {},
    }


def library_size() -> dict[str, Any]:
    """The bytes of this machine's runtime library.

    path, bytes; stripped: without symbols, None where that cannot be said. kernels: name -> isa, checks, alone as
    native/kernel_sizes.py says, shared: of several kernels; without them missing: why there are none. Raises EdgecError
    E0007.
    """
    path = library_path()
    found: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size, "stripped": stripped_bytes(path)}
    table = path.with_name(_TABLE)
    try:
        measured = json.loads(table.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return found | {"missing": f"no {_TABLE} beside the library: it is made when the library is built on Linux, "
                                   "with Python 3.9 or newer; the output of the build may say more"}
    except (OSError, ValueError, RecursionError) as e:
        raise _damaged(table, str(e)) from e
    if not isinstance(measured, dict) or not ("missing" in measured or {"kernels", "shared"} <= set(measured)):
        raise _damaged(table, "neither sizes of kernels nor why there are none")
    return found | {key: measured[key] for key in ("kernels", "shared", "missing") if key in measured}


def is_package(path: Path) -> bool:
    """Whether the folder `path` is one that `edgec package` wrote."""
    return "package" in listed(path) if path.is_dir() else False


def package_size(path: Path) -> dict[str, Any]:
    """What the runtime of the package `path` takes of a program, kernel by kernel, as this machine's compiler makes it.

    name, format; files: name -> bytes. object: bytes of code and constants of the whole runtime, of which a linker
    drops what the app does not call. kernels, shared: as in library_size. rest: what no kernel needs. Raises
    EdgecError: E0005, E0007 when there is no compiler, or when it does not write ELF.
    """
    about = listed(path)
    units = [file for name in ("edgec_runtime.cpp", "implementation.cpp") for file in sorted(path.rglob(name))]
    if not units:
        raise EdgecError("E0007", stage="size", where=str(path), found=f"a package of the format {about['package']}",
                         wanted="one with the runtime as source",
                         hint="--format cmake of the same bundle has the same kernels")
    with TemporaryDirectory(prefix="edgec-") as work:
        compile_object(units[0], [*{file.parent for file in path.rglob("edgec_runtime.h")}], Path(work) / "runtime.o")
        try:
            objects = Objects([Path(work) / "runtime.o"])
            found = sizes(objects, list(about["kernels"]))
        except UnreadableError as e:
            raise EdgecError("E0007", stage="size", where=str(units[0]), found=str(e), wanted="an ELF object") from e
        total = sum(objects.size.values())
    kernels: Any = found["kernels"]
    shared: Any = found["shared"]
    return {"folder": str(path), "name": about["name"], "format": about["package"], "kernels": kernels,
            "files": {name: entry["bytes"] for name, entry in sorted(about["files"].items())}, "object": total,
            "shared": shared, "rest": total - shared - sum(row["alone"] for row in kernels.values())}


def _damaged(table: Path, found: str) -> EdgecError:
    return EdgecError("E0007", stage="size", where=str(table), found=found, wanted="the table of this library",
                      hint="make build")
