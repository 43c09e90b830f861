"""check: everything that is missing, in one run, and nothing left behind by a compile that cannot succeed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from edgec.importers.onnx_original import Original
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]

TORCH = """
import torch

class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x):
        x = self.inner(x)
        y = torch.linalg.det(x) + torch.linalg.det(x * 2)
        spots = torch.nonzero(x).sum()
        return torch.fft.fft(x, n=8192).real.sum() + y + spots

def create():
    return Odd(), (torch.randn(3, 3),)
"""
# Operators of the standard, of a vendor and of nobody, one of them only because of an attribute.
DETECTOR = """
g (float[1,6,4] boxes, float[1,2,6] scores, float[2,3] x) => (int64[N,3] kept, float[2,3] y, float[2,3] z, float[K] w) {
    most = Constant<value = int64 {3}>()
    kept = NonMaxSuppression(boxes, scores, most)
    a = lab.Sharpen<strength = 0.5>(x)
    y = lab.Sharpen<strength = 0.7>(a)
    z = com.microsoft.BiasSoftmaxOfNobody(y)
    flags = Cast<to = 9>(x)
    w = Compress(x, flags)
}
"""
BRANCHES = """
g (float[2,3] x, bool b, int64 n) => (float[2,3] y, float[2,3] z, uint16[2,3] q) {
    y = If (b) <
        then_branch = one () => (float[2,3] o) { o = Neg(x) },
        else_branch = two () => (float[2,3] p) { p = Bernoulli(x) }
    >
    z = RandomNormalLike(x)
    s = Constant<value_float: float = 0.5>()
    zero = Constant<value = uint16 {7}>()
    q = QuantizeLinear(x, s, zero)
}
"""


def written(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.onnx"
    domains = '"" : 24, "lab" : 1, "com.microsoft" : 1'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{domains}]>\n{text}")
    path.write_bytes(proto.SerializeToString())
    return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "odd.py").write_text(TORCH)
    return {"torch": f"{tmp_path}/odd.py:create", "detector": written(tmp_path, "detector", DETECTOR),
            "branches": written(tmp_path, "branches", BRANCHES)}


EXPECTED = {
    "torch": {"Det": 2, "NonZero": 1, "DFT": 1},
    "detector": {"NonMaxSuppression": 1, "lab::Sharpen": 2, "com.microsoft::BiasSoftmaxOfNobody": 1, "Compress": 1},
    "branches": {"If": 1, "Bernoulli": 1, "RandomNormalLike": 1, "QuantizeLinear": 1},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_everything_is_listed_at_once(edgec_cli: Cli, sources: dict[str, str], tmp_path: Path, name: str) -> None:
    outcome = edgec_cli("check", sources[name], "--json")
    assert outcome.code == 3, outcome.err
    document: dict[str, Any] = json.loads(outcome.out)
    problems = {p["op"]: p for p in document["problems"]}
    assert {op: p["count"] for op, p in problems.items()} == EXPECTED[name]
    for problem in problems.values():
        assert len(problem["layers"]) == len(problem["lines"]) == len(problem["shapes"]) == problem["count"]
        assert problem["reason"]
        assert problem["suggestion"]
    before = sorted(tmp_path.iterdir())
    failed = edgec_cli("compile", sources[name], "-o", tmp_path / "out")
    assert failed.code == 3
    assert all(op.split("::")[-1] in failed.err for op in EXPECTED[name])
    assert sorted(tmp_path.iterdir()) == before
    table = edgec_cli("check", sources[name])
    assert table.code == 3
    assert all(op in table.out for op in EXPECTED[name])


def test_a_torch_model_names_its_lines(edgec_cli: Cli, sources: dict[str, str]) -> None:
    document = json.loads(edgec_cli("check", sources["torch"], "--json").out)
    lines = {p["op"]: p["lines"] for p in document["problems"]}
    text = TORCH.splitlines()
    for op, words in (("Det", "linalg.det"), ("NonZero", "nonzero"), ("DFT", "fft")):
        for line in lines[op]:
            file, _, number = line.rpartition(":")
            assert file.endswith("odd.py")
            assert words in text[int(number) - 1]


def test_reasons_of_passes_are_given(edgec_cli: Cli, sources: dict[str, str]) -> None:
    document = json.loads(edgec_cli("check", sources["branches"], "--json").out)
    reasons = {p["op"]: p["reason"] for p in document["problems"]}
    assert "UINT16" in reasons["QuantizeLinear"]


def test_saved_nodes_run(edgec_cli: Cli, sources: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "nodes"
    document = json.loads(edgec_cli("check", sources["torch"], "--json", "--save-node", folder).out)
    saved = [file for p in document["problems"] for file in p["saved"]]
    assert sorted(map(str, folder.iterdir())) == sorted(saved)
    # Both determinants are the same operator on the same shape.
    assert len(saved) == 3
    det = next(file for p in document["problems"] if p["op"] == "Det" for file in p["saved"])
    onnx.checker.check_model(det)
    original = Original(Path(det))
    x = np.diag([2.0, 3.0, 4.0]).astype(np.float32)
    assert float(next(iter(original.run({original.input_names[0]: x}).values()))) == pytest.approx(24.0)


def test_saved_nodes_hold_their_branches(edgec_cli: Cli, sources: dict[str, str], tmp_path: Path) -> None:
    document = json.loads(edgec_cli("check", sources["branches"], "--json", "--save-node", tmp_path / "nodes").out)
    file = next(file for p in document["problems"] if p["op"] == "If" for file in p["saved"])
    saved = onnx.load(file)
    assert {v.name for v in saved.graph.input} == {"x", "b"}
    foreign = edgec_cli("check", sources["detector"], "--json", "--save-node", tmp_path / "more")
    files = [f for p in json.loads(foreign.out)["problems"] if p["op"] == "lab::Sharpen" for f in p["saved"]]
    assert len(files) == 2  # they differ in an attribute
    assert {o.domain for o in onnx.load(files[0]).opset_import} == {"", "lab"}
