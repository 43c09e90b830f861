"""Running the command line inside the test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgec.cli import main
from edgec.judge.selftest import tiny_plan
from edgec.native.bundle import write_bundle


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def edgec_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """edgec_cli("run", bundle, ...): exit code, stdout, stderr."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def layer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generic bundle made by hand: y [3, 24] = relu(x [3, 40] W^T + b). Needs no torch."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("layer") / "model.edgec"
    weight, bias = rng.standard_normal((24, 40)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    write_bundle(path, tiny_plan(weight, bias), tokenizer=None, golden=None, manifest={"purpose": "test"})
    return path
