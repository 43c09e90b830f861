"""Device rows: one frozen row per thing that can be compiled for. Adding a device is adding a row."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError, did_you_mean

KIB, MIB = 1 << 10, 1 << 20

# What the three x86 levels promise, in the names of /proc/cpuinfo. VBMI, VNNI, BF16 and AMX are in no level.
X86_64_V2 = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
X86_64_V3 = (*X86_64_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
X86_64_V4 = (*X86_64_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")


@dataclass(frozen=True)
class Device:
    """What a compile is for.

    isa: instruction sets of the runtime library a bundle may use there, best first; scalar is always last.
    triple: for the cross compiler. features: instruction-set extensions that may be relied on.
    cores: 0 when the row covers machines of many sizes; l1d, l2, l3: bytes, 0 when unknown.
    """

    name: str
    arch: str
    os: str
    isa: tuple[str, ...]
    triple: str
    features: tuple[str, ...]
    cores: int
    l1d: int
    l2: int
    l3: int
    page_size: int
    about: str

    def __post_init__(self) -> None:
        if not self.isa or self.isa[-1] != "scalar":
            raise ValueError(f"device {self.name}: the last instruction set must be scalar, found {self.isa}")
        known = {"x86_64": {"amx", "avx512vbmi", "avx512", "avx2", "scalar"}, "aarch64": {"neon", "scalar"},
                 "wasm32": {"wasm", "scalar"}}
        foreign = set(self.isa) - known.get(self.arch, {"scalar"})
        if foreign:
            raise ValueError(f"device {self.name}: {self.arch} has no {', '.join(sorted(foreign))}")
        if "avx512" in self.isa and not set(X86_64_V4) <= set(self.features):
            raise ValueError(f"device {self.name}: avx512 needs every feature of x86-64-v4")

    @property
    def library_name(self) -> str:
        """File name of the runtime library there."""
        return {"macos": "libedgec.dylib", "windows": "edgec.dll", "wasi": "edgec.wasm"}.get(self.os, "libedgec.so")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_ROWS: tuple[Device, ...] = (
    Device("x86-64-v3", "x86_64", "linux", ("avx2", "scalar"), "x86_64-linux-gnu.2.31", X86_64_V3,
           0, 32 * KIB, 512 * KIB, 0, 4096, "PCs and servers since 2013 (AVX2, FMA, F16C)"),
    Device("x86-64-v4", "x86_64", "linux", ("avx512", "avx2", "scalar"), "x86_64-linux-gnu.2.31", X86_64_V4,
           0, 32 * KIB, 1 * MIB, 0, 4096, "AVX-512 F, BW, CD, DQ, VL and nothing beyond: no VBMI, no VNNI"),
    Device("aarch64-linux", "aarch64", "linux", ("neon", "scalar"), "aarch64-linux-gnu.2.31", ("asimd", "fp"),
           0, 32 * KIB, 512 * KIB, 0, 4096, "64-bit Arm boards and servers (Armv8.0, NEON)"),
    Device("apple-m2", "aarch64", "macos", ("neon", "scalar"), "aarch64-macos.11.0",
           ("asimd", "asimddp", "asimdhp", "bf16", "fp", "i8mm"),
           8, 128 * KIB, 16 * MIB, 0, 16384, "Apple M2: 4 performance and 4 efficiency cores"),
    Device("wasm32", "wasm32", "wasi", ("wasm", "scalar"), "wasm32-wasi", ("simd128",),
           1, 0, 0, 0, 65536, "any browser or node with WebAssembly SIMD; one thread, models up to 2 GiB"),
)

_ARCH = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_OS = {"darwin": "macos", "win32": "windows"}


def host_arch() -> str:
    machine = platform.machine().lower()
    return _ARCH.get(machine, machine)


def host_os() -> str:
    return _OS.get(sys.platform, sys.platform)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def host_features() -> tuple[str, ...]:
    """Extensions of this CPU in the names of /proc/cpuinfo, sorted; empty where the system does not say."""
    if host_os() == "macos":
        words = ["asimd", "fp"] if host_arch() == "aarch64" else _sysctl("machdep.cpu.features").lower().split()
        return tuple(sorted(words))
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return tuple(sorted(found.group(1).split())) if found else ()


def _host_cache(level: int) -> int:
    """Bytes of this machine's data or unified cache of `level`; 0 when the system does not say."""
    if host_os() == "macos":
        text = _sysctl("hw.l1dcachesize" if level == 1 else f"hw.l{level}cachesize")
        return int(text) if text.isdigit() else 0
    for index in range(8):
        at = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        if _read(f"{at}/level").strip() == str(level) and _read(f"{at}/type").strip() != "Instruction":
            found = re.fullmatch(r"(\d+)([KM]?)", _read(f"{at}/size").strip())
            if found:
                return int(found.group(1)) * {"": 1, "K": KIB, "M": MIB}[found.group(2)]
    return 0


def host_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host() -> Device:
    """The row of this machine, detected now."""
    arch, system, features = host_arch(), host_os(), host_features()
    isa: tuple[str, ...] = ("scalar",)
    if arch == "x86_64" and {"avx2", "fma", "f16c"} <= set(features):
        isa = ("avx2", "scalar")
        if set(X86_64_V4) <= set(features):
            isa = ("avx512", *isa)
            if {"avx512vbmi", "avx512_vnni"} <= set(features):
                isa = ("avx512vbmi", *isa)
                if {"amx_bf16", "amx_tile", "avx512_bf16"} <= set(features):
                    isa = ("amx", *isa)
    elif arch == "aarch64":
        isa = ("neon", "scalar")
    triple = {"linux": f"{arch}-linux-gnu.2.31", "macos": f"{arch}-macos.11.0"}.get(system, f"{arch}-{system}")
    page = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096
    return Device("host", arch, system, isa, triple, features, host_cores(), _host_cache(1), _host_cache(2),
                  _host_cache(3), page, "this machine, detected")


def _generic() -> Device:
    """Plain C++ without intrinsics: this machine's system, scalar kernels only."""
    here = host()
    return Device("generic-c", here.arch, here.os, ("scalar",), here.triple, (), 0, 0, 0, 0, here.page_size,
                  "scalar kernels only: no instruction-set extension is used")


def names() -> tuple[str, ...]:
    return ("host", *(row.name for row in _ROWS), "generic-c")


def devices() -> tuple[Device, ...]:
    """Every row, host first."""
    return (host(), *_ROWS, _generic())


def device(name: str) -> Device:
    """The row called `name`. Raises EdgecError EDGEC-E0006 for any other name."""
    for row in devices():
        if row.name == name:
            return row
    raise EdgecError(
        "E0006", stage="targets", where="--target", found=repr(name), wanted="the name of a device row",
        hint=did_you_mean(name, names()),
    )
