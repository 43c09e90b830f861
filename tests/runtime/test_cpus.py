"""The library on CPUs that this machine does not have (qemu): each starts, chooses the instruction set it should,
passes its own self-test and computes the same numbers; a set that the CPU lacks is refused in words, not by an illegal
instruction.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgec.native.library import library_path
from tests.fuzz.seeds import write_seeds

ROOT = Path(__file__).resolve().parents[2]
Require = Callable[[bool, str], None]
SMOKE = ROOT / "tests" / "runtime" / "smoke.c"
# CPU -> the instruction set that an open chooses.
X86 = {"qemu64": "scalar", "Nehalem": "scalar", "Westmere": "scalar", "SandyBridge": "scalar", "IvyBridge": "scalar",
       "Haswell": "avx2", "max": "avx2"}
ARM = ("cortex-a53", "cortex-a76", "max")
# Weights of few bits go through tables that differ by this much (docs/kernels.md); sums of 8 layers stay below.
TOLERANCE = 3e-2
ON_X86 = platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_seeds(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Path:
    """The program with the library that the tests use."""
    require(ON_X86, "needs x86-64 Linux")
    require(shutil.which("cc") is not None, "no C compiler")
    program = tmp_path_factory.mktemp("smoke") / "smoke"
    folder = library_path().parent
    subprocess.run(["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "runtime" / "include", SMOKE, "-L",
                    folder, "-ledgec", f"-Wl,-rpath,{folder}", "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def arm(request: pytest.FixtureRequest, require: Require) -> Path:
    """The same with everything linked in, for aarch64; kept in pytest's cache."""
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir("edgec_smoke"))
    sources = sorted(p for part in ("kernels", "runtime") for p in (ROOT / part).rglob("*.cpp")
                     if p.parent.name != "solve")
    digest = hashlib.sha256()
    files = sorted(p for part in ("kernels", "runtime") for p in (ROOT / part).rglob("*") if p.is_file())
    for path in (*files, SMOKE):
        digest.update(path.read_bytes())
    program = folder / f"arm-{digest.hexdigest()[:20]}"
    if program.exists():
        return program
    for old in folder.iterdir():
        old.unlink()
    zig = [sys.executable, "-m", "ziglang"]
    flags = ["-target", "aarch64-linux-musl", "-O1", "-fno-sanitize=undefined",
             *(f"-I{ROOT / part}" for part in ("runtime", "runtime/include", "kernels"))]

    def compile_one(source: Path) -> Path:
        to = folder / (str(source.relative_to(ROOT)).replace("/", "_") + ".o")
        language = ["cc"] if source.suffix == ".c" else ["c++", "-std=c++17", "-fno-exceptions", "-fno-rtti"]
        subprocess.run([*zig, *language, *flags, "-c", source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compile_one, [*sources, SMOKE]))
    subprocess.run([*zig, "c++", *flags, "-static", *objects, "-o", folder / "program"], check=True)
    for made in objects:
        made.unlink()
    (folder / "program").rename(program)
    return program


def _run(command: Sequence[str | Path], isa: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"EDGEC_ISA": isa} if isa else {}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def _answers(done: subprocess.CompletedProcess[str]) -> list[tuple[str, np.ndarray]]:
    """(instruction set, numbers) of each bundle; a warning means that the self-test has failed."""
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        isa, warning, numbers = line.split("|")
        assert warning == ""
        found.append((isa, np.array(numbers.split(), np.float64)))
    return found


def _agree(done: subprocess.CompletedProcess[str], wanted: list[tuple[str, np.ndarray]], isa: str) -> None:
    answers = _answers(done)
    assert [name for name, _ in answers] == [isa] * len(wanted)
    for (_, found), (_, numbers) in zip(answers, wanted, strict=True):
        assert len(found) == len(numbers) > 0
        np.testing.assert_allclose(found, numbers, rtol=0, atol=TOLERANCE * np.abs(numbers).max())


@pytest.fixture(scope="module")
def wanted(native: Path, bundles: list[Path]) -> list[tuple[str, np.ndarray]]:
    return _answers(_run([native, *bundles], "scalar"))


@pytest.mark.parametrize("cpu", X86)
def test_x86(
    cpu: str, native: Path, bundles: list[Path], wanted: list[tuple[str, np.ndarray]], require: Require
) -> None:
    emulator = shutil.which("qemu-x86_64")
    require(emulator is not None, "qemu-x86_64 is not installed (apt-get install qemu-user)")
    assert emulator is not None
    command = [emulator, "-cpu", cpu, native, *bundles]
    _agree(_run(command), wanted, X86[cpu])
    for lacking in ("avx512", "amx") if X86[cpu] == "avx2" else ("avx2", "avx512"):
        done = _run(command, lacking)
        assert done.returncode == 3
        assert f"found '{lacking}', wanted an instruction set of this machine" in done.stderr


@pytest.mark.parametrize("cpu", ARM)
def test_arm(
    cpu: str, arm: Path, bundles: list[Path], wanted: list[tuple[str, np.ndarray]], require: Require
) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    require(emulator is not None, "qemu-aarch64 is not installed (apt-get install qemu-user)")
    assert emulator is not None
    _agree(_run([emulator, "-cpu", cpu, arm, *bundles]), wanted, "neon")
