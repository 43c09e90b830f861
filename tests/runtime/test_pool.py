"""The thread pool, its own threads and a host's, under many short jobs, plain and under the thread sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tests/runtime/stress_pool.cpp", "runtime/threads.cpp", "runtime/platform.cpp")


@pytest.mark.parametrize(("flags", "rounds"), [((), 100_000), (("-fsanitize=thread",), 15_000)])
def test_every_tile_runs_once(
    flags: tuple[str, ...], rounds: int, tmp_path: Path, require: Callable[[bool, str], None]
) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    require(compiler is not None, "no C++ compiler")
    program = tmp_path / "stress_pool"
    subprocess.run(
        [str(compiler), "-std=c++17", "-g", "-O2", "-fno-exceptions", "-fno-rtti", *flags, "-Iruntime", "-Ikernels",
         "-Iruntime/include", *SOURCES, "-lpthread", "-o", str(program)],
        cwd=ROOT, check=True,
    )
    # A pool that loses a tile waits for ever: the time limit is the check.
    done = subprocess.run([str(program), str(rounds)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed, 0 failed" in done.stdout
