"""A small part of benchmarks/quality_low_bit.py: what the solvers promise holds on a real language model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def quality(asset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with few samples and a cache of its own."""
    # Its own file, and the harness beside it.
    monkeypatch.setenv("EDGEC_ASSETS", str(asset("prose_lm").parent))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("quality_low_bit", BENCHMARKS / "quality_low_bit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, "quality_low_bit", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CACHE", tmp_path)
    monkeypatch.setattr(module, "TRAIN_BYTES", 200_000)
    subject = module.SUBJECTS["prose_lm"]
    subject.samples, subject.windows = 8, 8
    return module


@pytest.mark.slow
def test_two_bits_of_a_language_model(quality: ModuleType) -> None:
    """Held-out layer errors and perplexities: ours below the published solver below min-max uniform codes."""
    found = {method: quality.measure(quality.cell_of("prose_lm", "train", method, 2, 128, 0))
             for method in ("ours", "published", "rtn")}
    errors = [quality.mean_error(cell) for cell in found.values()]
    assert errors == sorted(errors)
    assert errors[0] < 0.9 * errors[1]
    perplexities = [cell["metrics"]["ppl"] for cell in found.values()]
    assert perplexities == sorted(perplexities)
    assert found["ours"]["layer_bytes"] == found["published"]["layer_bytes"]


@pytest.mark.slow
def test_a_finished_cell_is_not_measured_again(quality: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = quality.cell_of("prose_lm", "train", "rtn", 4, 128, 0)
    quality.finish(cell)
    first = quality.load(cell)
    assert first["metrics"]["ppl"] > 1
    monkeypatch.setattr(quality, "measure", lambda cell: pytest.fail("measured twice"))
    quality.finish(cell)
    assert quality.load(cell) == first
