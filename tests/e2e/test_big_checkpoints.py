"""Checkpoints larger than the memory that compiling them may take; in processes of their own, to see their peaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import big_lm

_COMPILE = """
import sys
import edgec
edgec.compile(sys.argv[1], sys.argv[2])
# Not ru_maxrss: that begins with the peak of the process that started this one.
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024)
"""


_QUANTIZE = """
import sys
from edgec.cli import main
code = main(sys.argv[1:])
# Not ru_maxrss: that begins with the peak of the process that started this one.
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024)
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("options", [("--quant", "hlq2", "--force"), ("--quant", "int4")], ids=lambda x: x[1])
def test_quantizes_four_gigabytes_in_one(tmp_path: Path, options: tuple[str, ...]) -> None:
    """--max-memory is kept by the process as a whole, its imports and the check of the graph included."""
    folder = big_lm.make(tmp_path / "big", 4)
    out = tmp_path / "q"
    done = subprocess.run(
        [sys.executable, "-c", _QUANTIZE, "quantize", str(folder), "-o", str(out), "--calib", "none",
         "--max-memory", "1G", *options],
        capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    peak = int(done.stdout.split()[-1])
    assert peak <= 1 << 30, f"{peak / 1e6:.0f} MB"
    assert len(list((out / "layers").iterdir())) > 250
