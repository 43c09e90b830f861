"""`edgec doctor`: what this installation has, what works, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from edgec import version
from edgec.errors import EdgecError

State = Literal["ok", "missing", "failed"]

# Extra -> the modules it brings.
EXTRAS = {
    "torch": ("torch",), "hf": ("transformers", "mobius"), "cross": ("ziglang",), "images": ("PIL",),
    "sign": ("cryptography",), "ort": ("onnxruntime_genai",), "coreml": ("coremltools",), "tvm": ("tvm",),
    "dev": ("pytest", "hypothesis", "mypy", "ruff"),
}
_CORE = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Finding:
    """One line of the report. missing: an optional part is not there. failed: edgec cannot work like this."""

    name: str
    state: State
    details: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def _python() -> Finding:
    try:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _CORE)
    except importlib.metadata.PackageNotFoundError as e:
        return Finding("python", "failed", f"{e}: install edgec again")
    return Finding("python", "ok", f"edgec {version.__version__}, Python {platform.python_version()}, {versions}")


def _cpu() -> Finding:
    from edgec.targets.devices import host

    here = host()
    return Finding("cpu", "ok", f"{here.arch} {here.os}, {here.cores} cores, instruction sets {' '.join(here.isa)}")


def _library() -> Finding:
    from edgec.native.session import library_path, library_version
    from edgec.targets.devices import host
    from edgec.targets.toolchain import check_library

    path = library_path()
    check_library(path, host())
    size = path.stat().st_size / 1024
    return Finding("runtime library", "ok", f"{path}, {size:.0f} KiB, version {library_version()}")


def _sources() -> Finding:
    from edgec.targets.toolchain import source_root

    return Finding("runtime sources", "ok", str(source_root()))


def _compiler() -> Finding:
    found = [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if not found:
        return Finding("C++ compiler", "missing", "only needed for --target generic-c and to build from source")
    return Finding("C++ compiler", "ok", ", ".join(found))


def _extra(name: str) -> Finding:
    absent = [module for module in EXTRAS[name] if importlib.util.find_spec(module) is None]
    if absent:
        return Finding(f"extra [{name}]", "missing", f"no {', '.join(absent)}: pip install 'edgec[{name}]'")
    return Finding(f"extra [{name}]", "ok", ", ".join(EXTRAS[name]))


def _selftest() -> Finding:
    from edgec.judge.selftest import run_selftest

    return Finding("self-test", "ok", run_selftest())


def _devices() -> Finding:
    """What `edgec profile --device` can reach from here."""
    from edgec.native.library import library_path
    from edgec.targets.transport import TOOLS

    ready = ["local"] if (library_path().parent / "edgec_bench").is_file() else []
    absent = [] if ready else ["local needs edgec_bench (make build)"]
    for kind, (tools, hint) in TOOLS.items():
        if any(map(shutil.which, tools)):
            ready.append(kind)
        else:
            absent.append(f"{kind} needs {tools[0]} ({hint})")
    return Finding("devices of profile", "missing" if absent else "ok", ", ".join(ready) + "".join(
        f"; {text}" for text in absent))


_CHECKS: tuple[tuple[str, Callable[[], Finding]], ...] = (
    ("python", _python), ("cpu", _cpu), ("runtime library", _library), ("runtime sources", _sources),
    ("C++ compiler", _compiler), ("self-test", _selftest),
    ("devices of profile", _devices),
)


def examine() -> list[Finding]:
    """Every finding; a check that raises EdgecError is a failed one."""
    findings: list[Finding] = []
    for name, check in _CHECKS:
        try:
            findings.append(check())
        except EdgecError as e:
            findings.append(Finding(name, "failed", e.render().replace("\n", ";")))
    return findings + [_extra(name) for name in EXTRAS]
