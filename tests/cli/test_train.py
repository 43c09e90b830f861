"""The command train: from a model and data to a compiled model of few bits."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import typer
from typer.testing import CliRunner

import edgec
from edgec.cli import app, main
from edgec.compress.store import load_finished
from edgec.errors import EXIT_USAGE
from edgec.judge.bundle import open_bundle

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80)), (torch.ones(1, 64),)

def batches(number):
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(number))
    return x, x[:, :80].argmax(1)

def chain():
    return nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 80)), (torch.ones(1, 64),)

def normed():
    return nn.Sequential(nn.Conv1d(64, 64, 3), nn.BatchNorm1d(64), nn.Conv1d(64, 64, 3), nn.BatchNorm1d(64)), (
        torch.ones(1, 64, 8),)

def evaluate(model):
    x, y = batches(1000)
    return float((model(x).argmax(1) == y).float().mean())
"""


def test_module(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    net, out = tmp_path / "net.py", tmp_path / "out"
    words = ["train", f"{net}:make", "--data", f"{net}:batches", "--eval", f"{net}:evaluate", "--evaluate-every", "10",
             "--steps", "20", "--quant", "palette2", "--quant-override", "2=palette3", "--lr", "1e-2", "-o", str(out)]
    made = CliRunner().invoke(app, [*words, "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert [(x["name"], x["spec"]) for x in found["layers"]] == [("0.weight", "palette2"), ("2.weight", "palette3")]
    assert [e["step"] for e in found["evaluations"]] == [10, 20]
    again = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(again.stdout)["layers"] == found["layers"]
    edgec.compile(found["model"], tmp_path / "compiled", quant_from=out / "layers")
    with open_bundle(tmp_path / "compiled") as opened, opened.session(threads=1) as session:
        (y,) = session.run({opened.inputs[0].name: np.ones((1, 64), np.float32)}).values()
    assert np.isfinite(np.asarray(y)).all()
    report = json.loads((tmp_path / "compiled" / "reports" / "quant.json").read_text())
    assert [x["stored"].split()[0] for x in report["layers"]] == ["palette2", "palette3"]


@pytest.mark.slow
def test_language_model(tmp_path: Path, prose_lm: Path) -> None:
    text = "It was a quiet evening, and the rain had not yet come to the hills beyond the river. " * 60
    (tmp_path / "text.txt").write_text(text)
    made = CliRunner().invoke(app, [
        "train", str(prose_lm), "--data", str(tmp_path / "text.txt"), "--eval", str(tmp_path / "text.txt"), "--steps",
        "12", "--batch", "2", "--window", "64", "--evaluate-every", "6", "--lr", "1e-3", "--quant", "palette2",
        "-o", str(tmp_path / "out"), "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert found["evaluations"][1]["value"] < found["evaluations"][0]["value"]
    edgec.compile(found["model"], tmp_path / "compiled", quant_from=tmp_path / "out" / "layers")
    same = edgec.compare(tmp_path / "compiled", found["model"])
    assert max(o["max_rel"] for o in same["outputs"].values()) < 1e-3


def test_tunes_the_bit_planes_of_a_quantization(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    net, out = f"{tmp_path / 'net.py'}:make", tmp_path / "out"
    quantized = CliRunner().invoke(app, ["quantize", net, "--quant", "hlq2g32", "--force", "-o", str(tmp_path / "q")])
    assert quantized.exit_code == 0, quantized.output
    made = CliRunner().invoke(app, ["train", net, "--data", f"{tmp_path / 'net.py'}:batches", "--layers",
                                    str(tmp_path / "q"), "--steps", "8", "--lr", "1e-3", "-o", str(out), "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert {x["spec"] for x in found["layers"]} == {"hlq2g32", "hlq4g32"}
    before, after = load_finished(tmp_path / "q"), load_finished(out / "layers")
    for name in before:
        assert np.array_equal(before[name].read("planes"), after[name].read("planes"))
        assert not np.array_equal(before[name].read("scale"), after[name].read("scale"))


def test_what_is_no_bit_plane_stays_as_it_is_stored(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    net, out = f"{tmp_path / 'net.py'}:make", tmp_path / "out"
    quantized = CliRunner().invoke(app, ["quantize", net, "--quant", "hlq2g32", "--quant-override", "2.weight=int4g32",
                                         "--force", "-o", str(tmp_path / "q")])
    assert quantized.exit_code == 0, quantized.output
    made = CliRunner().invoke(app, ["train", net, "--data", f"{tmp_path / 'net.py'}:batches", "--layers",
                                    str(tmp_path / "q"), "--steps", "4", "--lr", "1e-3", "-o", str(out), "--json"])
    assert made.exit_code == 0, made.output
    before, after = load_finished(tmp_path / "q"), load_finished(out / "layers")
    assert {name: str(after[name].spec) for name in after} == {"0.weight": "hlq2g32", "2.weight": "int4g32"}
    for part in ("planes", "scale", "offset"):
        assert np.array_equal(before["2.weight"].read(part), after["2.weight"].read(part))
    assert not np.array_equal(before["0.weight"].read("scale"), after["0.weight"].read("scale"))
    # Nothing else is trained: the biases are the source's.
    biases = {t.name: t.const_value.numpy() for t in ir.load(out / "model" / "model.onnx").graph.initializers.values()
              if t.name.endswith("bias")}
    model = runpy.run_path(str(tmp_path / "net.py"))["make"]()[0]
    assert {name: np.array_equal(model.state_dict()[name].numpy(), value) for name, value in biases.items()} == {
        "0.bias": True, "2.bias": True}


def test_another_source_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.py"
    words = ["train", f"{net}:make", "--data", f"{tmp_path / 'data.py'}:batches", "--steps", "2", "--engine", "dense",
             "-o", str(tmp_path / "out")]
    (tmp_path / "data.py").write_text(FACTORY)
    net.write_text(FACTORY)
    assert main(words) == 0
    net.write_text(FACTORY.replace("manual_seed(0)", "manual_seed(1)"))
    assert main(words) == EXIT_USAGE
    assert "source_sha256" in capsys.readouterr().err


def test_every_option_is_documented() -> None:
    section = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8").partition(
        "## Training in few bits")[2].partition("\n## ")[0]
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    options = {word for p in command.params for word in p.opts if word.startswith("--")} - {"--output", "--help"}
    assert {"--engine", "--layers", "--threads"} <= options
    # A whole word: --eval is not --evaluate-every.
    assert not {option for option in options if not re.search(rf"{option}(?![\w-])", section)}


def test_anneals_after_the_milestone() -> None:
    from edgec.train.loop import FitOptions
    from edgec.train.tune import TuneOptions

    schedule = TuneOptions(FitOptions(100), milestone=60).schedule()
    assert (schedule.milestone, schedule.anneal) == (60, 30)


@pytest.mark.parametrize(("words", "said"), [
    (["--milestone", "2"], "fewer than all the steps"), (["--engine", "fast"], "auto, table, dense"),
    (["--quant", "hlq2"], "a palette"), (["--distill", "both"], "none, forward, reverse, mix"),
    (["--patience", "3"], "evaluate_every"), (["--evaluate-every", "3"], "both or neither"),
    (["--layers", "none", "--quant", "palette2"], "both or neither"), (["--lr", "0"], "more than 0"),
])
def test_bad_settings(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    net = tmp_path / "net.py"
    code = main(["train", f"{net}:make", "--data", f"{net}:batches", "--steps", "2", "-o", str(tmp_path / "out"),
                 *words])
    assert code == EXIT_USAGE
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()


def test_what_the_compiler_changes_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                            ) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    net = tmp_path / "net.py"
    for factory, said in (("chain", "merged"), ("normed", "fuse_conv_bn_eval")):
        words = ["train", f"{net}:{factory}", "--data", f"{net}:batches", "--steps", "2", "-o", str(tmp_path / "out")]
        assert main(words) == EXIT_USAGE
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    net = tmp_path / "net.py"

    def refused(model: str, data: str, output: str = "out") -> str:
        assert main(["train", model, "--data", data, "--steps", "2", "-o", str(tmp_path / output)]) == EXIT_USAGE
        return capsys.readouterr().err

    assert "no function 'none'" in refused(f"{net}:make", f"{net}:none")
    assert "no such file" in refused(f"{net}:make", str(tmp_path / "nothing.py:batches"))
    assert "neither a folder nor FILE.py:FACTORY" in refused(str(tmp_path / "model.onnx"), f"{net}:batches")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refused(f"{net}:make", f"{net}:batches", "full")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without RANK, MASTER_ADDR, MASTER_PORT" in refused(f"{net}:make", f"{net}:batches")
