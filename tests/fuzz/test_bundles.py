"""Fifty thousand damaged bundles through the runtime under AddressSanitizer and UBSan, no phase of a case more than a
second. Reproduce one with --one SEED.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.programs import build
from tests.fuzz.seeds import write_seeds

CASES = 50_000


@pytest.fixture(scope="module")
def fuzzer(require: Callable[[bool, str], None]) -> Path:
    require(shutil.which("cmake") is not None, "cmake is not installed")
    return build("sanitize", ["edgec_fuzz_bundle"]) / "edgec_fuzz_bundle"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in write_seeds(tmp_path_factory.mktemp("seeds"))]


def test_mutations(fuzzer: Path, seeds: list[str]) -> None:
    done = subprocess.run([fuzzer, *seeds, "--seed", "1", "--count", str(CASES)], capture_output=True, text=True,
                          check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith(f"{CASES} passed, 0 failed\n")
    found = re.search(r"cases (\d+) opened (\d+) sessions (\d+) ran (\d+)", done.stdout)
    assert found is not None
    cases, opened, _, ran = map(int, found.groups())
    assert cases == CASES
    # A fuzzer that nothing gets past is shallow, and one that nothing stops damages nothing.
    assert 0.05 * cases < opened < 0.6 * cases
    assert ran > 0.05 * cases


def test_threads_under_thread_sanitizer(seeds: list[str], require: Callable[[bool, str], None]) -> None:
    require(shutil.which("cmake") is not None, "cmake is not installed")
    program = build("thread", ["edgec_fuzz_bundle"]) / "edgec_fuzz_bundle"
    done = subprocess.run([program, *seeds, "--count", "2000"], capture_output=True, text=True, check=False,
                          timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_replay_is_exact(fuzzer: Path, seeds: list[str]) -> None:
    command = [fuzzer, *seeds, "--one", "77"]
    # Which case was the slowest is a matter of time: a phase of less than a microsecond has none.
    first, second = (
        re.sub(r"\d+ us, case --one \d+", "", subprocess.run(command, capture_output=True, text=True,
                                                                    check=True).stdout)
        for _ in range(2)
    )
    assert first == second
    assert "open: " in first


def test_a_bundle_that_does_not_run_is_reported(fuzzer: Path, seeds: list[str], tmp_path: Path) -> None:
    """The fuzzer's own oracle: its starting bundles must work."""
    broken = bytearray(Path(seeds[0]).read_bytes())
    broken[-1] ^= 1
    broken[100] ^= 1
    (tmp_path / "broken").write_bytes(broken)
    done = subprocess.run([fuzzer, tmp_path / "broken", "--count", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "does not open and run" in done.stdout
