"""Runtime libraries for devices: the installed one for this machine's architecture, cross-built ones by ziglang.

A cross build compiles the C++ sources that ship with edgec. Results are kept in the user's cache under a hash of
sources, flags and compiler, written under a temporary name and renamed, so an interrupted build leaves nothing that
could be mistaken for a library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgec import version
from edgec.env import CACHE
from edgec.errors import EdgecError, missing_extra
from edgec.targets.binary import read_binary
from edgec.targets.devices import Device, host, host_arch, host_os

# The code generation flags of CMakeLists.txt; tests/targets/test_toolchain.py compares the two lists. There only the
# vector kernels get -O2 and the rest -Os; here one command compiles everything, and clang's -O2 is small enough.
COMPILE_FLAGS = (
    "-std=c++17", "-O2", "-DNDEBUG", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fno-threadsafe-statics",
    "-ffunction-sections", "-fdata-sections", "-fno-math-errno", "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
)
INCLUDES = ("runtime", "runtime/include", "kernels")
LINK_FLAGS = {
    "linux": ("-fPIC", "-shared", "-Wl,--gc-sections", "-Wl,-z,max-page-size=16384", "-Wl,-z,relro", "-Wl,-z,now",
              "-Wl,--no-undefined", "-lm", "-lpthread", "-s"),
    "macos": ("-fPIC", "-dynamiclib", "-Wl,-dead_strip"),  # and the name that it is found by
    # The host places its buffers in the module's memory, which grows on demand. The stack lies first: where it ends,
    # the engine stops the program.
    "wasi": ("-mexec-model=reactor", "-Wl,--export-dynamic", "-Wl,--export=malloc", "-Wl,--export=aligned_alloc",
             "-Wl,--export=free", "-Wl,--gc-sections", "-Wl,-z,stack-size=1048576", "-s"),
}
# Programs are linked whole: with musl they run on every Linux, Android's included.
PROGRAM_FLAGS = {
    "linux": ("-static", "-Wl,--gc-sections", "-Wl,-z,max-page-size=16384", "-lm", "-lpthread", "-s"),
    "macos": ("-Wl,-dead_strip",),
    "wasi": ("-Wl,--gc-sections", "-Wl,-z,stack-size=1048576", "-s"),
}
BENCH = Path("runtime") / "bench" / "edgec_bench.c"  # and as C++, so that one command compiles everything
NODE_RUNNER = Path("runtime") / "bench" / "node.mjs"
# Systems whose C library comes with their makers' tools alone.
_FOREIGN = {
    "ios": "Xcode has its C library: build the sources of edgec there; --backend coreml writes a package for it",
    "android": "the NDK has its C library: build the sources of edgec there; `edgec profile --device adb` needs none",
}
_FORMAT = {"linux": "elf", "android": "elf", "macos": "mach-o", "wasi": "wasm"}
_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Product:
    """A library of CMakeLists.txt. units: globs in the sources' root of what is compiled beside the kernels. exports:
    names that it must have. linux_flags: for the linker, beside LINK_FLAGS."""

    stem: str
    units: tuple[str, ...]
    exports: tuple[str, ...]
    archive: bool = False
    linux_flags: tuple[str, ...] = ()

    def file_name(self, device: Device) -> str:
        return f"lib{self.stem}.a" if self.archive else device.library_name.replace("edgec", self.stem, 1)


RUNTIME = Product("edgec", ("runtime/*.cpp",),
                  ("edgec_version", "edgec_open", "edgec_session_create", "edgec_run", "edgec_step"))
ORT = Product("edgec_ort", ("runtime/isa.cpp", "runtime/platform.cpp", "runtime/ort/*.cpp"),
              ("RegisterCustomOps", "edgec_ort_version"),
              linux_flags=("-Wl,-z,nodelete",))  # CMakeLists.txt says why
# Linked into what TVM compiles; built with the others, not here.
TVM = Product("edgec_tvm", ("runtime/isa.cpp", "runtime/platform.cpp", "runtime/tvm/*.cpp"), ("edgec_tvm_linear",),
              archive=True)


def source_root() -> Path:
    """The folder that holds kernels/ and runtime/: the checkout, or the copy inside the installed package."""
    package = Path(version.__file__).resolve().parent
    for root in (package.parent, package / "_native" / "src"):
        if (root / "kernels" / "kernel.h").is_file() and (root / "runtime" / "include" / "edgec.h").is_file():
            return root
    raise EdgecError(
        "E0007", stage="toolchain", where=str(package), found="no runtime sources", wanted="kernels/ and runtime/",
        hint="reinstall edgec: its sources are part of the package",
    )


def header() -> Path:
    """The C interface, edgec.h."""
    return source_root() / "runtime" / "include" / "edgec.h"


def cache_folder() -> Path:
    """Where cross-built libraries are kept: EDGEC_CACHE, else the user's cache folder."""
    chosen = CACHE.get()
    if chosen:
        return Path(chosen)
    if host_os() == "macos":
        return Path.home() / "Library" / "Caches" / "edgec"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgec"


def _sources(root: Path, product: Product) -> tuple[list[Path], list[Path]]:
    """(files to compile, every file the result depends on), both sorted."""
    # kernels/solve compresses weights on the host: not part of the runtime.
    kernels = sorted(path for path in (root / "kernels").rglob("*.cpp") if path.parent.name != "solve")
    units = kernels + [path for pattern in product.units for path in sorted(root.glob(pattern))]
    depends = [
        path for folder in ("kernels", "runtime") for path in sorted((root / folder).rglob("*"))
        if path.suffix in (".cpp", ".c", ".h", ".def") and path.is_file()
    ]
    return units, depends


def _compiler(device: Device) -> tuple[list[str], str]:
    """(command that starts the compiler, its version for the cache key).

    A device of this very system takes the system's compiler, if there is one; everything else, whatever is linked
    with musl included, takes ziglang.
    """
    if device.arch == host_arch() and device.os == host_os() and not device.triple.endswith("-musl"):
        # The C driver compiles .cpp files as C++ and links no C++ library, which every compiler spells otherwise.
        for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
            found = shutil.which(name) if name else None
            if found:
                asked = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=False)
                return [found], asked.stdout.partition("\n")[0]
    if importlib.util.find_spec("ziglang") is None:
        raise missing_extra("cross", "ziglang", "toolchain")
    command = [sys.executable, "-m", "ziglang", "c++", "-nostdlib++", "-target", device.triple]
    return command, importlib.metadata.version("ziglang")


def build_command(device: Device, root: Path, output: Path, product: Product = RUNTIME) -> list[str]:
    """The one command that builds the runtime library of `device` into `output`.

    Raises EdgecError EDGEC-E0005 without ziglang where it is needed, EDGEC-E0007 for a system without link rules.
    """
    if device.os not in LINK_FLAGS:
        raise EdgecError(
            "E0007", stage="toolchain", where=f"--target {device.name}", found=f"operating system {device.os}",
            wanted=" or ".join(LINK_FLAGS), hint=_FOREIGN.get(device.os, ""),
        )
    named = [f"-Wl,-install_name,@rpath/{product.file_name(device)}"] if device.os == "macos" else []
    named += product.linux_flags if device.os == "linux" else ()
    return [*_compile_words(device, root, product), *LINK_FLAGS[device.os], *named, "-o", str(output)]


def _compile_words(device: Device, root: Path, product: Product = RUNTIME) -> list[str]:
    units, _ = _sources(root, product)
    # kernels/view.h leaves an instruction set out for each of these.
    only = [f"-DEDGEC_NO_{isa}" for isa in ("AVX2", "AVX512", "NEON", "WASM")] if device.isa == ("scalar",) else []
    return [
        *_compiler(device)[0], *COMPILE_FLAGS, f'-DEDGEC_VERSION="{version.__version__}"', *only, *_whole(device),
        *(f"-I{root / folder}" for folder in INCLUDES), *map(str, units),
    ]


def _whole(device: Device) -> list[str]:
    """A WebAssembly module has an extension in all of its functions or in none (kernels/isa/wasm.cpp)."""
    return [f"-m{feature}" for feature in device.features] if device.arch == "wasm32" else []


def program_command(device: Device, root: Path, output: Path) -> list[str]:
    """The one command that builds edgec_bench with the runtime of `device` in it into `output`.

    Raises EdgecError EDGEC-E0005 without ziglang, EDGEC-E0007 for a system without link rules.
    """
    if device.os == "android":  # a program that is linked whole needs no C library there
        device = replace(device, os="linux")
    if device.os not in PROGRAM_FLAGS:
        raise EdgecError("E0007", stage="toolchain", where=f"--target {device.name}",
                         found=f"operating system {device.os}", wanted=" or ".join((*PROGRAM_FLAGS, "android")),
                         hint=_FOREIGN.get(device.os, ""))
    if device.os == "linux":
        device = replace(device, triple=f"{device.arch}-linux-musl")
    return [*_compile_words(device, root), "-x", "c++", str(root / BENCH), "-x", "none",
            *PROGRAM_FLAGS[device.os], "-o", str(output)]


Command = Callable[[Device, Path, Path], list[str]]


def _cache_key(device: Device, root: Path, command_of: Command = build_command) -> str:
    digest = hashlib.sha256()
    for word in (*command_of(device, root, Path("out")), _compiler(device)[1]):
        digest.update(word.replace(str(root), "src").encode() + b"\0")
    for path in _sources(root, RUNTIME)[1]:
        digest.update(str(path.relative_to(root)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def compile_unit(device: Device, unit: Path, output: Path) -> None:
    """Builds a library of `device` from one file of C++ with everything that it includes, as cross_library does.

    Raises EdgecError EDGEC-E0005 without ziglang, EDGEC-E0007 when the compiler fails.
    """
    command = [*_compiler(device)[0], *COMPILE_FLAGS, *_whole(device), f"-I{unit.parent}", str(unit),
               *LINK_FLAGS[device.os], "-o", str(output)]
    with tempfile.TemporaryDirectory(prefix="edgec-") as work:
        _run_compiler(command, Path(work), device, output)


def compile_object(unit: Path, includes: list[Path], output: Path) -> None:
    """Compiles one file of C++ for this machine, without linking. Raises EdgecError EDGEC-E0005, E0007."""
    device = host()
    command = [*_compiler(device)[0], *COMPILE_FLAGS, *(f"-I{folder}" for folder in includes), "-c", str(unit),
               "-o", str(output)]
    with tempfile.TemporaryDirectory(prefix="edgec-") as work:
        _run_compiler(command, Path(work), device, output)


def check_library(path: Path, device: Device, product: Product = RUNTIME) -> None:
    """Raises EdgecError EDGEC-E0007 unless `path` is a library for `device` with the functions of `product`."""
    binary = read_binary(path)
    found = (binary.format, binary.arch, binary.kind)
    wanted = (_FORMAT.get(device.os, device.os), device.arch, "shared")
    if found != wanted:
        raise EdgecError("E0007", stage="toolchain", where=str(path), found=" ".join(found), wanted=" ".join(wanted))
    missing = set(product.exports) - binary.exports
    if missing:
        raise EdgecError(
            "E0007", stage="toolchain", where=str(path), found=f"without {', '.join(sorted(missing))}",
            wanted="the functions of edgec.h" if product is RUNTIME else f"what lib{product.stem} exports",
        )


def cross_library(device: Device, product: Product = RUNTIME) -> Path:
    """A library for `device`, built now unless the cache has it.

    Raises EdgecError EDGEC-E0005 without ziglang, EDGEC-E0007 when the compiler fails or its output is wrong.
    """
    return _built(device, "lib", product.file_name(device), partial(build_command, product=product),
                  partial(check_library, product=product))


def bench_program(device: Device) -> Path:
    """The program edgec_bench of `device` with the runtime in it, built now unless the cache has it.

    Raises EdgecError EDGEC-E0005 without ziglang, EDGEC-E0007 when the compiler fails or its output is wrong.
    """
    name = "edgec_bench.wasm" if device.os == "wasi" else "edgec_bench"
    return _built(device, "bench", name, program_command, _check_program)


def _check_program(path: Path, device: Device) -> None:
    binary = read_binary(path)
    if (binary.format, binary.arch) != (_FORMAT.get(device.os, device.os), device.arch):
        raise EdgecError("E0007", stage="toolchain", where=str(path), found=f"{binary.format} {binary.arch}",
                         wanted=f"a program for {device.name}")


def _run_compiler(command: list[str], work: Path, device: Device, output: Path) -> None:
    """Raises EdgecError EDGEC-E0007 unless `command`, run in the folder `work`, writes `output`."""
    environment = dict(os.environ, ZIG_GLOBAL_CACHE_DIR=str(cache_folder() / "zig"), ZIG_LOCAL_CACHE_DIR=str(work))
    try:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True,
                              timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise EdgecError("E0007", stage="toolchain", where=f"--target {device.name}", found=str(e)) from e
    if done.returncode != 0 or not output.is_file():
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise EdgecError(
            "E0007", stage="toolchain", where=f"--target {device.name}", wanted=f"a compiled {output.name}",
            found=f"{Path(command[0]).name} ended with status {done.returncode}:\n{tail}",
        )


def _built(device: Device, kind: str, name: str, command_of: Command, check: Callable[[Path, Device], None]) -> Path:
    """What `command_of` makes, called `name`, from the cache folder's part `kind`, or built into it."""
    root = source_root()
    folder = cache_folder() / kind / f"{device.name}-{_cache_key(device, root, command_of)}"
    built = folder / name
    if built.is_file():
        check(built, device)
        return built
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
    except OSError as e:
        raise EdgecError("E0004", stage="toolchain", where=str(folder), found=str(e), wanted="a writable cache folder",
                         hint="set EDGEC_CACHE") from e
    try:
        output = work / name
        _run_compiler(command_of(device, root, output), work, device, output)
        check(output, device)
        os.replace(output, built)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return built


def _own_system(device: Device) -> bool:
    return device.arch == host_arch() and device.os == host_os() and device.isa != ("scalar",)


def runtime_library(device: Device) -> Path:
    """The library to ship beside a bundle for `device`.

    This machine's own architecture and system: the installed library, which holds every instruction set of the
    architecture and chooses at run time. A scalar-only row or anything else: cross_library.
    """
    if not _own_system(device):
        return cross_library(device)
    from edgec.native.session import library_path

    installed = library_path()
    check_library(installed, device)
    return installed


def ort_library(device: Device) -> Path:
    """The library of operators for ONNX Runtime on `device`: the installed one, or as runtime_library.

    Raises EdgecError EDGEC-E0007 when this installation has none.
    """
    return installed_library(device, ORT) if _own_system(device) else cross_library(device, ORT)


def require_ort_library(device: Device) -> None:
    """Raises what ort_library would for want of a file or a compiler, and builds nothing."""
    if _own_system(device):
        ort_library(device)
    else:
        build_command(device, source_root(), Path("out"), ORT)


def installed_library(device: Device, product: Product) -> Path:
    """A library of this installation, for this machine's architecture and system. Raises EdgecError EDGEC-E0007."""
    package = Path(version.__file__).resolve().parent
    candidates = [folder / product.file_name(device) for folder in (package / "_native", package.parent / "build")]
    for path in candidates:
        if path.is_file():
            if not product.archive:
                check_library(path, device, product)
            return path
    raise EdgecError("E0007", stage="toolchain", where=product.file_name(device), found="no file at "
                     + ", ".join(map(str, candidates)), wanted="a library of this installation", hint="make build")
