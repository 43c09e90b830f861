"""Five thousand damaged bundles through the runtime under AddressSanitizer and UBSan, each phase of a case in less than
a second. Reproduce one with --one SEED. And what happens when memory runs out, or a kernel is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.keys import private_key
from edgec.native.bundle import write_bundle
from edgec.native.signing import sign_file
from tests.native.tiny_plans import tiny_cnn, tiny_lm, tiny_siblings, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = 5000


@pytest.fixture(scope="module")
def programs(require: Callable[[bool, str], None]) -> Path:
    """The folder of the programs, built with sanitizers; it is kept, so that only the first run is slow."""
    require(shutil.which("cmake") is not None, "cmake is not installed")
    folder = ROOT / "build" / "sanitize"
    # Little optimization: the build is most of the time.
    optimize = "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1"
    options = ["-DEDGEC_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", optimize]
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), *options]
    if not (folder / "CMakeCache.txt").is_file() and shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    build = ["cmake", "--build", str(folder), "--target", "edgec_fuzz_bundle", "edgec_faults", "--parallel", jobs]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def fuzzer(programs: Path) -> Path:
    return programs / "edgec_fuzz_bundle"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, key_pair: Callable[[str], Path]) -> list[str]:
    folder = tmp_path_factory.mktemp("seeds")
    write_bundle(folder / "cnn", tiny_cnn(), tokenizer=None, golden=None, manifest={})
    write_bundle(folder / "siblings", tiny_siblings(), tokenizer=None, golden=None, manifest={})
    write_bundle(folder / "lm", tiny_lm(), tokenizer=tiny_tokenizer().to_bytes(), golden=None, manifest={})
    # Its key is pinned in some of its cases: then nothing but the file itself may open.
    shutil.copy(folder / "lm", folder / "signed")
    key = private_key(key_pair("fuzz"))
    sign_file(folder / "signed", key.public, key.sign)
    return [str(folder / name) for name in ("cnn", "lm", "siblings", "signed")]


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


def test_failed_allocations_and_wrong_kernels(programs: Path, seeds: list[str]) -> None:
    """Every allocation of open, session, run, generate and tokenize fails once: an error, nothing leaked, and the call
    works the next time. A wrong kernel: a warning, and the scalar kernels run."""
    done = subprocess.run([programs / "edgec_faults", *seeds[:2]], capture_output=True, text=True, check=False,
                          timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("passed, 0 failed\n")


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
