"""The same model and options give the same bytes: in another process, with other hashes, in another folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgec.ir.weights import sha256_of
from edgec.native.bundle import read_bundle
from tests.models.tiny_lm import make

ROOT = Path(__file__).resolve().parents[2]
CNN = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 24, 3, stride=2), torch.nn.BatchNorm2d(24), torch.nn.ReLU(),
            torch.nn.Conv2d(24, 24, 3, groups=24), torch.nn.SiLU(), torch.nn.Conv2d(24, 40, 1))
        self.head = torch.nn.Linear(40, 10)

    def forward(self, image):
        return self.head(self.body(image).mean((2, 3)))

def create():
    return Net(), (torch.zeros(1, 3, 16, 16),), {"dynamic": {"image": {0: (1, 4)}}}
"""
FEW_BITS = ("--quant", "hlq2", "--calib", "self", "--calib-samples", "4", "--calib-window", "24")
COMPILES = {"lm": FEW_BITS, "cnn": (), "int4": ("--quant", "int4")}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[Path]]:
    """(sources, two folders with an output of each of COMPILES)."""
    top = tmp_path_factory.mktemp("reproducible")
    (top / "cnn.py").write_text(CNN)
    lm = make(top / "lm", "llama")
    sources = {"lm": lm, "cnn": top / "cnn.py", "int4": lm}
    folders = [top / "a", top / "another folder"]
    for seed, folder in enumerate(folders, 1):
        # One process for all three: importing torch takes longer than compiling.
        calls = [["compile", f"{sources[name]}{':create' if name == 'cnn' else ''}", "-o", str(folder / name), *options]
                 for name, options in COMPILES.items()]
        code = f"from edgec.cli import main\nraise SystemExit(max(main(call) for call in {calls!r}))"
        # Another folder to start in, too, and another number of threads.
        work = top / f"start{seed}"
        work.mkdir()
        env = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(seed)}
        done = subprocess.run([sys.executable, "-c", code], cwd=work, env=env, capture_output=True, text=True,
                              timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    return sources, folders


@pytest.mark.parametrize("name", COMPILES)
def test_two_compiles_are_the_same(outputs: tuple[dict[str, Path], list[Path]], name: str) -> None:
    first, second = (
        {p.relative_to(folder / name).as_posix(): p.read_bytes() for p in (folder / name).rglob("*") if p.is_file()}
        for folder in outputs[1])
    assert "model.edgec" in first
    assert [file for file in first if first[file] != second.get(file)] == []
    assert first.keys() == second.keys()


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("name", COMPILES)
def test_provenance(outputs: tuple[dict[str, Path], list[Path]], name: str) -> None:
    """What docs/format.md says of it, recomputed."""
    sources, (folder, _) = outputs
    manifest = read_bundle(folder / name / "model.edgec").manifest
    told = manifest["provenance"]
    assert told["config_sha256"] == digest(manifest["config"])
    assert told["source_sha256"] == digest(told["source"])
    assert {len(value) for value in told["source"].values()} == {64}
    assert told["passes"][:2] == ["inline_functions", "fold_constants"]
    assert told["passes"][-1] == "eliminate_dead"
    if name != "cnn":
        assert told["source"]["weights"] == sha256_of(sources[name] / "model.safetensors")
    text = json.dumps(manifest)
    assert str(folder.parent) not in text
    assert os.uname().nodename not in text


def test_provenance_tells_sources_and_options_apart(outputs: tuple[dict[str, Path], list[Path]]) -> None:
    told = {name: read_bundle(outputs[1][0] / name / "model.edgec").manifest["provenance"] for name in COMPILES}
    assert told["lm"]["source"] == told["int4"]["source"]
    assert told["lm"]["config_sha256"] != told["int4"]["config_sha256"]
    assert told["lm"]["source"] != told["cnn"]["source"]
