"""Builds the kernel test program and runs it: every instruction set of this CPU, others by emulation, sanitizers.

The program (main.cpp) fails where a row of kernels.def has no case. Builds are kept in pytest's cache folder under a
hash of what they were made from, so a second run compiles nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RUN_IN_BOCHS = ROOT / "tools" / "run_in_bochs.py"
KERNELS_DEF = (ROOT / "kernels" / "kernels.def").read_text()
ROWS = re.findall(r"^(?:KERNEL|NARROW|PORTABLE|PREPARED|DOTTED|LEVELED)\((\w+),", KERNELS_DEF, re.MULTILINE)
# As CMakeLists.txt compiles the library; test code gets -O1, which compiles in a third of the time.
COMMON = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti", "-fno-math-errno")
ZIG = (sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=undefined", "-target")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")
X86_ISAS = ("scalar", "avx2", "avx512", "avx512vbmi", "amx")
NATIVE_ISAS = X86_ISAS if platform.machine() in ("x86_64", "AMD64") else ("scalar", "neon", "neondot")

Build = Callable[..., Path]


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    pytest.fail("no C++ compiler: install g++ or clang, or set CXX", pytrace=False)


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest) -> Build:
    """build(name, compiler, kernel_flags, test_flags, link_flags): the path of a test program.

    Where kernel_flags has -fPIC there is a shared library of the same beside it, with the suffix .so.
    """
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir("edgec_kernel_tests"))

    def make(
        name: str,
        compiler: Sequence[str],
        kernel_flags: Sequence[str],
        test_flags: Sequence[str],
        link_flags: Sequence[str] = (),
    ) -> Path:
        kernels = sorted(p for p in (ROOT / "kernels").rglob("*.cpp") if p.parent.name != "solve")
        tests = sorted((ROOT / "tests" / "kernels").glob("*.cpp"))
        digest = hashlib.sha256(repr((compiler, kernel_flags, test_flags, link_flags, COMMON)).encode())
        digest.update(_run([*compiler, "--version"]).stdout.encode())
        for part in ("kernels", "tests/kernels"):
            for path in sorted((ROOT / part).rglob("*")):
                if path.suffix in (".cpp", ".h", ".def"):
                    digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
        program = folder / f"{name}-{digest.hexdigest()[:20]}"
        if program.exists():
            return program
        for old in folder.glob(f"{name}-*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        objects = folder / f"{name}-objects"
        objects.mkdir()

        def compile_one(path: Path) -> Path:
            target = objects / (str(path.relative_to(ROOT)).replace("/", "_") + ".o")
            own = kernel_flags if path in kernels else test_flags
            done = _run([*compiler, *COMMON, *own, "-c", path, "-o", target])
            assert done.returncode == 0, f"{path.relative_to(ROOT)}:\n{done.stderr[-4000:]}"
            return target

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            made = list(pool.map(compile_one, kernels + tests))
        done = _run([*compiler, *link_flags, *made, "-o", objects / "program"])
        assert done.returncode == 0, done.stderr[-4000:]
        if "-fPIC" in kernel_flags:
            done = _run([*compiler, *link_flags, "-shared", *made, "-o", objects / "library"])
            assert done.returncode == 0, done.stderr[-4000:]
            (objects / "library").rename(program.with_suffix(".so"))
        (objects / "program").rename(program)  # whole or not there
        shutil.rmtree(objects)
        return program

    return make


@pytest.fixture(scope="session")
def program(build: Build) -> Path:
    return build("native", (_compiler(),), ("-O3", "-fPIC"), ("-O1", "-fPIC"))


def _passes(command: Sequence[str | Path], rows: Sequence[str] = tuple(ROWS)) -> None:
    done = _run(command)
    shown = done.stdout[-6000:] + done.stderr[-6000:]
    assert done.returncode == 0, shown
    last = re.fullmatch(r"(\d+) passed, 0 failed", done.stdout.strip().splitlines()[-1])
    assert last is not None, shown
    assert int(last[1]) >= len(rows), shown
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == list(rows), shown


def _lacks(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 2 and "lacks instruction set" in done.stderr


@pytest.mark.parametrize("isa", NATIVE_ISAS)
def test_every_kernel_matches_its_reference(program: Path, isa: str) -> None:
    if _lacks(_run([program, "--isa", isa, "--list"])):
        assert isa != "scalar"
        pytest.skip(f"this CPU has no {isa}")
    _passes([program, "--isa", isa, "--hostile", "10"])  # many more of them below, where sanitizers see more


def test_the_seed_changes_the_inputs(program: Path) -> None:
    first, same, other = (
        _run([program, "--isa", "scalar", "--filter", "rmsnorm", "--seed", seed]).stdout for seed in ("7", "7", "8")
    )
    assert first == same
    assert first != other
    _passes([program, "--isa", "scalar", "--filter", "rmsnorm", "--seed", "8"], ["rmsnorm"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--isa", "mmx"], "unknown instruction set 'mmx'"),
        (["--isa", "neon" if "avx2" in NATIVE_ISAS else "avx2"], "lacks instruction set"),
        (["--filter", "lineal"], "unknown kernel 'lineal'"),
        (["--isa", "scalar", "--filter", "iota", "--case", "no such"], "no case for 'no such'"),
        (["--seed", "x"], "not a number"),
        (["--every", "0"], "not a number"),
        (["--isa"], "incomplete argument"),
        (["--fast"], "unknown or incomplete argument '--fast'"),
    ],
)
def test_bad_arguments_end_cleanly(program: Path, arguments: list[str], message: str) -> None:
    done = _run([program, *arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_hostile_arguments_under_sanitizers(build: Build) -> None:
    """What check() accepts runs without touching a byte outside its operands, reads included."""
    # Only the kernels are instrumented: the test code's own arithmetic would take most of the time.
    kernel_flags = (*SANITIZERS, "-O1")
    made = build("sanitized", (_compiler(),), kernel_flags, ("-DKT_ASAN=1", "-O1"), SANITIZERS[:1])
    _passes([made, "--hostile", "12", "--seed", "3", "--every", "2"])


@pytest.mark.slow
@pytest.mark.parametrize("isa", NATIVE_ISAS)
def test_every_kernel_under_sanitizers(build: Build, isa: str) -> None:
    program = build("sanitized", (_compiler(),), (*SANITIZERS, "-O1"), ("-DKT_ASAN=1", "-O1"), SANITIZERS[:1])
    if _lacks(_run([program, "--isa", isa, "--list"])):
        pytest.skip(f"this CPU has no {isa}")
    _passes([program, "--isa", isa, "--hostile", "40"])


@pytest.fixture
def aarch64(build: Build, require: Callable[[bool, str], None]) -> dict[str, list[str | Path]]:
    """The program on a CPU without dot products and on one with them."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    require(emulator is not None, "qemu-aarch64 is not installed (apt-get install qemu-user)")
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")
    assert emulator is not None
    program = build("aarch64", (*ZIG, "aarch64-linux-musl"), ("-O2",), ("-O1",), ("-static",))
    assert _lacks(_run([emulator, program, "--isa", "avx2"]))
    return {cpu: [emulator, "-cpu", cpu, program] for cpu in ("cortex-a53", "cortex-a76")}


def test_aarch64_by_emulation(aarch64: dict[str, list[str | Path]]) -> None:
    older, newer = aarch64["cortex-a53"], aarch64["cortex-a76"]
    assert not _lacks(_run([*older, "--isa", "neon", "--list"]))
    assert _lacks(_run([*older, "--isa", "neondot", "--list"]))
    _passes([*older, "--isa", "neon", "--hostile", "0", "--filter", "linear_bits_split"], ["linear_bits_split"])
    found = _run([*newer, "--isa", "neondot", "--hostile", "0", "--filter", "linear_bits_split"]).stdout
    assert re.search(r"neondot [\d.e-]+", found), found
    _passes([*newer, "--isa", "neon", "--hostile", "2", "--every", "4"])


@pytest.mark.slow
def test_every_level_of_aarch64(aarch64: dict[str, list[str | Path]]) -> None:
    _passes([*aarch64["cortex-a76"], "--hostile", "5"])
    _passes([*aarch64["cortex-a53"], "--isa", "neon", "--hostile", "0"])


FOR_BOCHS = platform.machine() == "x86_64" and sys.platform == "linux"


def _emulator() -> bool:
    return FOR_BOCHS and importlib.util.find_spec("bochscpu") is not None


def _emulated(program: Path, isa: str, *arguments: str) -> list[str | Path]:
    return [sys.executable, RUN_IN_BOCHS, program.with_suffix(".so"), "--isa", isa, *arguments]


@pytest.mark.parametrize(("isa", "row"), [("avx512", "rmsnorm"), ("avx512vbmi", "linear_bits_split")])
def test_a_kernel_on_an_emulated_cpu(program: Path, require: Callable[[bool, str], None], isa: str, row: str) -> None:
    if not FOR_BOCHS or sys.version_info >= (3, 14):
        pytest.skip("bochscpu-python is for x86-64 Linux and Python up to 3.13")
    require(_emulator(), "bochscpu-python is not installed (tools/setup_test_tools.sh)")
    _passes(_emulated(program, isa, "--hostile", "0", "--filter", row), [row])


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx512", "avx512vbmi"])
def test_every_kernel_on_an_emulated_cpu(program: Path, isa: str) -> None:
    if not _emulator():
        pytest.skip("bochscpu-python is not installed, or not for this system (tools/setup_test_tools.sh)")
    # The level's own kernels; where it has none, those of a plainer level run, and others run them.
    own = "DOTTED|LEVELED" if isa == "avx512vbmi" else "KERNEL|PREPARED|DOTTED|LEVELED"
    for row in re.findall(rf"^(?:{own})\((\w+),", KERNELS_DEF, re.MULTILINE):
        _passes(_emulated(program, isa, "--hostile", "5", "--filter", row), [row])


def test_the_emulated_cpu_has_no_more_than_the_level(program: Path) -> None:
    """The twin: kernels of a higher level end with a message on the CPU of a lower one."""
    if not _emulator():
        pytest.skip("bochscpu-python is not installed, or not for this system (tools/setup_test_tools.sh)")
    lower = ("--model", "avx512", "--hostile", "0", "--filter", "linear_bits_split")
    done = _run(_emulated(program, "avx512vbmi", *lower))
    assert done.returncode != 0
    assert "the emulated CPU has no such instruction" in done.stderr


@pytest.mark.parametrize(
    ("isa", "flags"), [("wasm", ("-msimd128",)), pytest.param("scalar", (), marks=pytest.mark.slow)])
def test_webassembly(
    build: Build, node: tuple[str, ...], require: Callable[[bool, str], None], isa: str, flags: tuple[str, ...],
) -> None:
    """A module has vectors everywhere or nowhere: one build for each."""
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")
    # Sizes and addresses have 32 bits here: kernels must not count in them without saying so.
    kernel_flags = ("-O2", "-Wshorten-64-to-32", *flags)
    program = build(f"wasm32-{isa}", (*ZIG, "wasm32-wasi"), kernel_flags, ("-O1", *flags))
    command = [*node, ROOT / "tests" / "kernels" / "wasi.mjs", program]
    assert _lacks(_run([*command, "--isa", "avx2"]))
    assert _lacks(_run([*command, "--isa", "wasm", "--list"])) == (isa == "scalar")
    _passes([*command, "--isa", isa, "--hostile", "5"])
