"""What happens when memory or threads run out, when a kernel is wrong, and when a generation is stopped from another
thread: faults.cpp, under AddressSanitizer and UBSan, and its threads under ThreadSanitizer.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.programs import build
from tests.fuzz.seeds import write_seeds


@pytest.mark.parametrize("kind", ["sanitize", "thread"])
def test_faults(kind: str, tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(shutil.which("cmake") is not None, "cmake is not installed")
    program = build(kind, ["edgec_faults"]) / "edgec_faults"
    command = [program, *write_seeds(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith(" passed, 0 failed\n")
