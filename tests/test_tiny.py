"""The smallest proof that this checkout works: seconds, no torch, no assets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgec.cli import main
from edgec.env import EnvVar
from edgec.errors import CODES, EdgecError
from edgec.judge.selftest import run_selftest
from edgec.targets.devices import host

ROOT = Path(__file__).resolve().parent.parent


def test_a_bundle_runs_on_every_instruction_set() -> None:
    """Plan, bundle writer, loader, kernels and ctypes together, on each instruction set this CPU has."""
    assert run_selftest() == f"one layer on {', '.join(host().isa)}"


def test_command_line_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["targets"][0]["name"] == "host"


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"EDGEC-{code}"]) == 0
    shown = capsys.readouterr().out
    assert CODES[code].explain in shown
    assert f"Exit status {CODES[code].exit}." in shown


def test_an_error_says_everything() -> None:
    error = EdgecError("E0403", stage="run", where="input x", found="f16", wanted="f32", hint="convert it")
    assert str(error).splitlines() == [
        "EDGEC-E0403 wrong argument at run time (run)", "  at: input x", "  found: f16", "  wanted: f32",
        "  next: convert it",
    ]
    assert error.to_dict()["code"] == "EDGEC-E0403"
    with pytest.raises(KeyError, match="E9999"):
        EdgecError("E9999", stage="none")


def test_environment_variables_are_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(EnvVar.declared))
    with pytest.raises(ValueError, match="declared twice"):
        EnvVar(name, 0, "again")
    variable = EnvVar.declared["EDGEC_CHECK"]
    monkeypatch.setenv("EDGEC_CHECK", "many")
    with pytest.raises(EdgecError) as caught:
        variable.get()
    assert caught.value.code == "E0002"


def test_environment_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in EnvVar.declared if name not in text] == []


def test_commands_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/cli.md names every command; every command has help."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in ("inspect", "check", "compile", "run", "compare", "eval", "bench", "targets", "doctor", "explain"):
        assert f"| `{command}" in text
        assert main([command, "--help"]) == 0
        assert "Usage" in capsys.readouterr().out
