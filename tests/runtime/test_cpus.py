"""The library on CPUs that this machine does not have (qemu): each starts, chooses the instruction set it should,
passes its own self-test and computes the same numbers; a set that the CPU lacks is refused in words, not by an illegal
instruction.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
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
ARM = {"cortex-a53": "neon", "cortex-a76": "neondot", "max": "neondot"}
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
def arm(arm_program: Callable[[Path], Path]) -> Path:
    """The same with everything linked in, for aarch64."""
    return arm_program(SMOKE)


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
    command = [emulator, "-cpu", cpu, arm, *bundles]
    _agree(_run(command), wanted, ARM[cpu])
    _agree(_run(command, "neon"), wanted, "neon")
    if ARM[cpu] == "neon":
        done = _run(command, "neondot")
        assert done.returncode == 3
        assert "found 'neondot', wanted an instruction set of this machine and build: scalar, neon" in done.stderr
