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
    cores: 0 when the row covers machines of many sizes; l1d, l2, l3: bytes, of the fastest cores, 0 when unknown.
    clusters: (kind of core, how many), the fastest first. bandwidth_gb_s: of the memory, in GB/s, as its maker
    publishes it, or as it was measured on this machine; bandwidth_source says where it is from, and without a source
    there is none.
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
    clusters: tuple[tuple[str, int], ...] = ()
    bandwidth_gb_s: float | None = None
    bandwidth_source: str = ""

    def __post_init__(self) -> None:
        if not self.isa or self.isa[-1] != "scalar":
            raise ValueError(f"device {self.name}: the last instruction set must be scalar, found {self.isa}")
        known = {"x86_64": {"amx", "avx512vbmi", "avx512", "avx2", "scalar"}, "aarch64": {"neondot", "neon", "scalar"},
                 "wasm32": {"wasm", "scalar"}}
        foreign = set(self.isa) - known.get(self.arch, {"scalar"})
        if foreign:
            raise ValueError(f"device {self.name}: {self.arch} has no {', '.join(sorted(foreign))}")
        if "avx512" in self.isa and not set(X86_64_V4) <= set(self.features):
            raise ValueError(f"device {self.name}: avx512 needs every feature of x86-64-v4")
        if (self.bandwidth_gb_s is None) != (not self.bandwidth_source):
            raise ValueError(f"device {self.name}: a bandwidth goes with its source")
        if self.clusters and sum(count for _, count in self.clusters) != self.cores:
            raise ValueError(f"device {self.name}: clusters {self.clusters} are not {self.cores} cores")

    @property
    def library_name(self) -> str:
        """File name of the runtime library there."""
        return {"macos": "libedgec.dylib", "windows": "edgec.dll", "wasi": "edgec.wasm"}.get(self.os, "libedgec.so")

    @property
    def default_threads(self) -> int:
        """Threads to begin with: one per core, the slowest kind left out where there are several; 0 when unknown."""
        fast = self.clusters[:-1] if len(self.clusters) > 1 else self.clusters
        return sum(count for _, count in fast) or self.cores

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"default_threads": self.default_threads}


_ARM_V82 = ("asimd", "asimddp", "asimdhp", "fp")
_ARM_V86 = ("asimd", "asimddp", "asimdhp", "bf16", "fp", "i8mm")


def _apple(name: str, system: str, features: tuple[str, ...], l2: int, fast: int, slow: int,
           bandwidth: float | None = None, source: str = "") -> Device:
    """l2: of the performance cores together."""
    triple = {"macos": "aarch64-macos.11.0", "ios": "aarch64-ios.14.0"}[system]
    chip = name.replace("apple-", "").upper()
    return Device(name, "aarch64", system, ("neondot", "neon", "scalar"), triple, features, fast + slow, 128 * KIB, l2,
                  0, 16384, f"Apple {chip}: {fast} performance and {slow} efficiency cores",
                  (("performance", fast), ("efficiency", slow)), bandwidth, source)


def _android(name: str, features: tuple[str, ...], cores: int, about: str,
             clusters: tuple[tuple[str, int], ...] = ()) -> Device:
    isa = ("neondot", "neon", "scalar") if "asimddp" in features else ("neon", "scalar")
    return Device(name, "aarch64", "android", isa, "aarch64-linux-android", features, cores, 0, 0, 0,
                  4096, about, clusters)


_ROWS: tuple[Device, ...] = (
    Device("x86-64-v2", "x86_64", "linux", ("scalar",), "x86_64-linux-gnu.2.31", X86_64_V2,
           0, 32 * KIB, 256 * KIB, 0, 4096, "PCs and servers since 2009 (SSE4.2); scalar kernels"),
    Device("x86-64-v3", "x86_64", "linux", ("avx2", "scalar"), "x86_64-linux-gnu.2.31", X86_64_V3,
           0, 32 * KIB, 512 * KIB, 0, 4096, "PCs and servers since 2013 (AVX2, FMA, F16C)"),
    Device("x86-64-v4", "x86_64", "linux", ("avx512", "avx2", "scalar"), "x86_64-linux-gnu.2.31", X86_64_V4,
           0, 32 * KIB, 1 * MIB, 0, 4096, "AVX-512 F, BW, CD, DQ, VL and nothing beyond: no VBMI, no VNNI"),
    Device("zen5", "x86_64", "linux", ("avx512vbmi", "avx512", "avx2", "scalar"), "x86_64-linux-gnu.2.31",
           tuple(sorted((*X86_64_V4, "avx512_bf16", "avx512_vnni", "avx512vbmi", "avx_vnni"))),
           0, 48 * KIB, 1 * MIB, 32 * MIB, 4096, "AMD Zen 5 (Ryzen 9000, EPYC 9005); the third level is a chiplet's"),
    Device("aarch64-linux", "aarch64", "linux", ("neon", "scalar"), "aarch64-linux-gnu.2.31", ("asimd", "fp"),
           0, 32 * KIB, 512 * KIB, 0, 4096, "64-bit Arm boards and servers (Armv8.0, NEON)"),
    Device("rpi4", "aarch64", "linux", ("neon", "scalar"), "aarch64-linux-gnu.2.31", ("asimd", "fp"),
           4, 32 * KIB, 1 * MIB, 0, 4096, "Raspberry Pi 4 (BCM2711); the second level is shared", (("Cortex-A72", 4),)),
    Device("rpi5", "aarch64", "linux", ("neondot", "neon", "scalar"), "aarch64-linux-gnu.2.31", _ARM_V82,
           4, 64 * KIB, 512 * KIB, 2 * MIB, 16384, "Raspberry Pi 5 (BCM2712); 16 KiB pages as Raspberry Pi OS has them",
           (("Cortex-A76", 4),)),
    Device("jetson-orin-cpu", "aarch64", "linux", ("neondot", "neon", "scalar"), "aarch64-linux-gnu.2.31", _ARM_V82,
           12, 64 * KIB, 256 * KIB, 2 * MIB, 4096, "Jetson AGX Orin 64 GB, its CPU; the third level is four cores'",
           (("Cortex-A78AE", 12),), 204.8, "NVIDIA, Jetson AGX Orin Series data sheet: 256-bit LPDDR5, 204.8 GB/s"),
    _android("android-arm64", ("asimd", "fp"), 0, "any 64-bit Android phone (Armv8.0)"),
    _android("pixel-8", (*_ARM_V86, "sve2"), 9, "Google Pixel 8 (Tensor G3)",
             (("Cortex-X3", 1), ("Cortex-A715", 4), ("Cortex-A510", 4))),
    _android("snapdragon-8-gen3", (*_ARM_V86, "sve2"), 8, "Qualcomm Snapdragon 8 Gen 3",
             (("Cortex-X4", 1), ("Cortex-A720", 5), ("Cortex-A520", 2))),
    _apple("apple-m1", "macos", _ARM_V82, 12 * MIB, 4, 4),
    _apple("apple-m2", "macos", _ARM_V86, 16 * MIB, 4, 4, 100.0,
           "Apple, newsroom, 6 June 2022: 100GB/s of unified memory bandwidth"),
    _apple("apple-m3", "macos", _ARM_V86, 16 * MIB, 4, 4, 100.0,
           "Apple, technical specifications of MacBook Air (M3): 100GB/s memory bandwidth"),
    _apple("apple-m4", "macos", _ARM_V86, 16 * MIB, 4, 6, 120.0,
           "Apple, newsroom, 7 May 2024: 120GB/s of unified memory bandwidth"),
    *(_apple(f"apple-a{number}", "ios", _ARM_V86, 0, 2, 4) for number in (15, 16, 17, 18)),
    Device("riscv64", "riscv64", "linux", ("scalar",), "riscv64-linux-gnu.2.31", (),
           0, 0, 0, 0, 4096, "64-bit RISC-V boards (RV64GC); scalar kernels"),
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
        if host_arch() != "aarch64":
            return tuple(sorted(_sysctl("machdep.cpu.features").lower().split()))
        return ("asimd", *(["asimddp"] if _sysctl("hw.optional.arm.FEAT_DotProd") == "1" else []), "fp")
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
        isa = ("neondot", "neon", "scalar") if "asimddp" in features else ("neon", "scalar")
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
