"""Damaged .onnx and safetensors files: each is imported, or compiled to a bundle that the runtime opens, or
refused with an EdgecError. One case: importers.py KIND --one N; `make fuzz` runs atheris for longer.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import importers

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("kind", "count"), [("onnx", 1500), ("safetensors", 2500), ("compile", 250)])
def test_every_file_is_taken_or_refused(kind: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz.importers", kind, "--count", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) cases, (\d+) taken\n(\d+) passed, 0 failed", done.stdout)
    assert found is not None
    assert int(found[3]) == count
    # Both outcomes happen: else the mutations are too harsh, or harmless.
    assert 0.02 * count < int(found[2]) < 0.7 * count


@pytest.mark.parametrize("kind", list(importers.KINDS))
def test_seeds_are_taken_and_other_errors_are_noticed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seeds, mutate, _ = importers.KINDS[kind]
    for seed in seeds()[:12]:
        assert importers.attempt(kind, seed, tmp_path)

    def broken(path: Path) -> None:
        raise KeyError(path.name)

    monkeypatch.setitem(importers.KINDS, kind, (name, seeds, mutate, broken))
    with pytest.raises(importers.BrokenPromise, match="KeyError"):
        importers.attempt(kind, seeds()[0], tmp_path)


def test_coverage_guides_the_long_run(require: Callable[[bool, str], None]) -> None:
    """Atheris sees which lines of edgec run: otherwise its corpus would never grow."""
    require(importlib.util.find_spec("atheris") is not None,
            "atheris is not installed, or has no wheel for this Python (tools/setup_test_tools.sh)")
    command = [sys.executable, "-m", "tests.fuzz.importers", "safetensors", "--seconds", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(int(n) for n in re.findall(r"cov: (\d+)", done.stderr)) > 30, done.stderr[-2000:]
