"""A checkpoint larger than the memory that compiling it may take; in a process of its own, to see its peak."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import big_lm

_COMPILE = """
import resource, sys
import edgec
edgec.compile(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs between systems")
@pytest.mark.parametrize("gigabytes", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_compiles_in_little_memory(tmp_path: Path, gigabytes: int) -> None:
    folder = big_lm.make(tmp_path / "big", gigabytes)
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", _COMPILE, str(folder), str(out)], capture_output=True, text=True,
                          check=True, cwd=Path(__file__).resolve().parents[2])
    peak = int(done.stdout.split()[-1])
    assert peak < 1.5e9, f"{peak / 1e6:.0f} MB"
    assert (out / "model.edgec").stat().st_size > 0.9e9 * gigabytes
    assert "bytes of weights" in json.loads((out / "manifest.json").read_text())["golden"]
    # A gigabyte of zeros per run would soon fill the disk: pytest keeps the folders of the last runs.
    (out / "model.edgec").unlink()
