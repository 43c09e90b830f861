"""Every ONNX backend node test does what the ledger says: passes, or is declined before anything runs, and why.

The ledger is written by `python tools/conformance.py`. A case that stops passing fails here, and so does one that
starts to: then the ledger is out of date, and with it docs/conformance.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.conformance import node_cases
from tests.conformance.node_cases import Outcome, runs
from tools import conformance

LEDGER = Path(__file__).parent / "ledger.tsv"


@pytest.fixture(scope="module")
def ledger() -> dict[str, str]:
    return {line.split("\t")[1]: line for line in LEDGER.read_text(encoding="utf-8").splitlines()}


def test_outcomes_are_those_of_the_ledger(ledger: dict[str, str], tmp_path: Path) -> None:
    # In a process of its own: its workers are forked, which threads of other tests would not survive.
    path = tmp_path / "found.tsv"
    subprocess.run([sys.executable, conformance.__file__, str(path)], capture_output=True, check=False, timeout=600)
    found = {line.split("\t")[1]: line for line in path.read_text(encoding="utf-8").splitlines()}
    changed = [f"ledger: {ledger.get(name)}\nfound:  {found.get(name)}" for name in sorted({*ledger, *found})
               if ledger.get(name) != found.get(name)]
    assert not changed, f"{len(changed)} cases changed; python tools/conformance.py writes the ledger\n" + "\n".join(
        changed[:20])


def test_no_wrong_answer_is_in_the_ledger(ledger: dict[str, str]) -> None:
    assert {line.split("\t")[2] for line in ledger.values()} == {"pass", "declined", "differs"}
    assert sum(line.split("\t")[2] == "pass" for line in ledger.values()) >= 1000


def test_table_is_that_of_the_ledger() -> None:
    text = conformance.TABLE.read_text(encoding="utf-8")
    assert text == conformance.table(LEDGER)
    # Every operator has a row, and one that does not compile a reason.
    rows = {row[0]: row[1:] for line in text.splitlines() if (row := [c.strip() for c in line.split("|")[1:-1]])}
    assert {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated} <= set(rows)
    assert not [name for name, (passed, *_, why) in rows.items() if not passed and not why]


@pytest.mark.parametrize(("name", "change", "status"), [
    ("test_relu", None, "pass"), ("test_relu", 1.0, "wrong"), ("test_nonzero_example", None, "declined"),
])
def test_outcomes_tell_apart(name: str, change: float | None, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value is found, a refusal has its code, and only what is computed at run time passes."""
    case = node_cases.cases()[name]
    if change is not None:
        monkeypatch.setattr(case, "data_sets", [(ins, [outs[0] + change]) for ins, outs in case.data_sets])
    outcome = node_cases.run_case(name)
    assert outcome.status == status
    assert status != "declined" or outcome.detail.startswith("E0301 NonZero")


def test_a_folded_graph_does_not_pass(tmp_path: Path) -> None:
    from edgec.native.lower import build_plan
    from edgec.pipeline import CompileOptions, prepare_model

    def plan(text: str) -> bool:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]>\n{text}')
        onnx.save(proto, tmp_path / "m.onnx")
        options = CompileOptions(importer={"check": False, "dynamic": {"x": {0: (1, 4)}}})
        return runs(build_plan(prepare_model(tmp_path / "m.onnx", options).model))

    assert not plan("g (float[n] x) => (float[2] y) { y = Constant <value = float[2] {1.0, 2.0}> () }")
    assert plan("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    assert plan("g (float[n] x) => (int64[1] y) { y = Shape(x) }")


def test_outcome_line() -> None:
    assert Outcome("Relu", "test_relu", "pass").line() == "Relu\ttest_relu\tpass"
    assert node_cases.base_of("test_elu_expanded_ver18") == "test_elu"
