"""Every command doing its work on a small model, and its JSON."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgec
from edgec.targets.binary import read_binary
from edgec.targets.devices import host
from edgec.targets.output import file_sha256

Cli = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


def document(outcome: Any, command: str) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    assert found["schema_version"] == 1
    assert found["edgec_version"] == edgec.__version__
    assert found["command"] == command
    assert {"target", "started_at", "seconds"} <= found.keys()
    return found


def test_output_folder(prose_bundle: Path) -> None:
    """Every file is in the manifest with its hash, and nothing names a path of this machine."""
    manifest = json.loads((prose_bundle / "manifest.json").read_text())
    files = {p.relative_to(prose_bundle).as_posix(): p for p in prose_bundle.rglob("*") if p.is_file()}
    assert set(files) == {"model.edgec", host().library_name, "include/edgec.h", "edgec.json",
                          "reports/memory.json", "manifest.json"}
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": files[name].stat().st_size, "sha256": file_sha256(files[name])}
    assert set(manifest["files"]) | {"manifest.json"} == set(files)
    for name in ("manifest.json", "edgec.json", "reports/memory.json", "model.edgec"):
        assert str(ROOT).encode() not in files[name].read_bytes(), name


def test_compile_json_and_same_bytes(edgec_cli: Cli, prose_lm: Path, prose_bundle: Path, tmp_path: Path) -> None:
    found = document(edgec_cli("compile", prose_lm, "-o", tmp_path / "out", "--json"), "compile")
    assert found["target"] == "host"
    assert max(found["memory"]["peak"].values()) < 64 << 20
    assert {"fold_bn", "static_kv"} <= {p["pass"] for p in found["passes"]}
    assert (tmp_path / "out" / "model.edgec").read_bytes() == (prose_bundle / "model.edgec").read_bytes()


def test_dry_run_budget_and_stop_after(edgec_cli: Cli, prose_lm: Path, tmp_path: Path) -> None:
    arguments = ("compile", prose_lm, "-o", tmp_path / "out")
    dry = document(edgec_cli(*arguments, "--dry-run", "--ctx", 512, "--json"), "compile")
    assert set(dry["memory"]["state"]) == {"256", "512"}
    assert dry["memory"]["state"]["512"] == 512 * dry["memory"]["state_per_token"]
    codes = document(edgec_cli(*arguments, "--dry-run", "--ctx", 512, "--kv", "int4", "--json"), "compile")["memory"]
    assert codes["state_per_token"] * 32 == dry["memory"]["state_per_token"] * 5  # 5 bits of 32
    over = edgec_cli(*arguments, "--dry-run", "--memory-budget", "1M")
    assert over.code == 4
    assert over.err.startswith("EDGEC-E0303")
    early = edgec_cli(*arguments, "--stop-after", "fold_bn", "--dump-dir", tmp_path / "dump")
    assert early.code == 0
    assert any(p.name.endswith("_fold_bn.onnx") for p in (tmp_path / "dump").iterdir())
    assert not (tmp_path / "out").exists()


def test_compile_for_apple(
    edgec_cli: Cli, prose_lm: Path, prose_bundle: Path, tmp_path: Path, require: Callable[[bool, str], None]
) -> None:
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed")
    arguments = ("compile", prose_lm, "-o", tmp_path / "out", "--target", "apple-m2")
    found = document(edgec_cli(*arguments, "--json"), "compile")
    assert found["target"] == "apple-m2"
    binary = read_binary(tmp_path / "out" / "libedgec.dylib")
    assert (binary.format, binary.arch, binary.kind) == ("mach-o", "aarch64", "shared")
    assert "edgec_generate" in binary.exports


def test_inspect(edgec_cli: Cli, prose_lm: Path, prose_bundle: Path) -> None:
    model = document(edgec_cli("inspect", prose_lm, "--json"), "inspect")
    assert (model["kind"], model["task"], model["vocab_size"], model["max_context"]) == (
        "model", "causal-lm", 4096, 2048)
    assert 5_700_000 < model["parameters"] < 6_000_000
    bundle = document(edgec_cli("inspect", prose_bundle, "--json"), "inspect")
    assert (bundle["kind"], bundle["task"], bundle["vocab_size"]) == ("bundle", "causal-lm", 4096)
    assert bundle["file_bytes"] == (prose_bundle / "model.edgec").stat().st_size
    assert bundle["sha256"] == hashlib.sha256((prose_lm / "model.safetensors").read_bytes()).hexdigest()
    assert bundle["kernels"]["linear"] > 30
    for source in (prose_lm, prose_bundle):
        assert edgec_cli("inspect", source).code == 0


def test_run(edgec_cli: Cli, prose_bundle: Path) -> None:
    """Streamed and collected text are the same; a seed repeats itself; --isa changes nothing in greedy text."""
    prompt = "It was a quiet evening"
    found = document(edgec_cli("run", prose_bundle, "-p", prompt, "-n", 24, "--json"), "run")
    assert len(found["tokens"]) == 24
    streamed = edgec_cli("run", prose_bundle, "-p", prompt, "-n", 24, "--stream")
    assert streamed.out.rstrip("\n") == (prompt + found["text"]).rstrip("\n")
    assert "tokens/s" in streamed.err
    scalar = document(edgec_cli("run", prose_bundle, "-p", prompt, "-n", 24, "--isa", "scalar", "--json"), "run")
    assert scalar["isa"] == "scalar"
    assert scalar["tokens"] == found["tokens"]

    def sampled(seed: int) -> Any:
        return document(edgec_cli("run", prose_bundle, "-p", prompt, "-n", 24, "--temperature", 1, "--seed", seed,
                                  "--json"), "run")["tokens"]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_run_arrays(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = ("run", layer_bundle, "--input", f"x={tmp_path}/x.npy", "-o", tmp_path / "out.npz")
    found = document(edgec_cli(*arguments, "--json"), "run")
    y = np.load(tmp_path / "out.npz")["y"]
    assert found["outputs"]["y"]["shape"] == [3, 24]
    assert found["outputs"]["y"]["max"] == pytest.approx(float(y.max()))
    assert found["outputs"]["y"]["top"][0] == int(y.argmax())
    assert "y" in edgec_cli(*arguments).out


def test_compare(edgec_cli: Cli, prose_lm: Path, prose_bundle: Path) -> None:
    arguments = ("compare", prose_bundle, "--reference", prose_lm, "-n", 64,
                 "--text", ROOT / "examples" / "text" / "sample.txt")
    found = document(edgec_cli(*arguments, "--json", "--tol", "sqnr:80", "--tol", "top1:1"), "compare")
    assert found["outputs"]["logits"]["max_rel"] < 1e-4
    assert found["greedy"]["equal"] == found["greedy"]["tokens"] == 56
    missed = edgec_cli(*arguments, "--tol", "sqnr:400")
    assert missed.code == 1
    assert missed.err.startswith("EDGEC-E0501 gate failed (compare)")
    assert "sqnr" in missed.err


def test_eval(edgec_cli: Cli, prose_lm: Path, prose_bundle: Path, tmp_path: Path) -> None:
    text = ROOT / "examples" / "text" / "sample.txt"
    found = document(edgec_cli("eval", prose_bundle, "--ppl", text, "--reference", prose_lm, "--json"), "eval")
    ours, theirs = found["sides"]["bundle"], found["sides"]["reference"]
    assert ours["window"] == 256
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)
    assert 20 < ours["perplexity"] < 120
    assert found["agreement"] > 0.999
    assert "perplexity" in edgec_cli("eval", prose_bundle, "--ppl", text, "--window", 64, "--samples", 2).out


def test_bench(edgec_cli: Cli, prose_bundle: Path, layer_bundle: Path) -> None:
    found = document(edgec_cli("bench", prose_bundle, "-p", 16, "-n", 4, "-r", 3, "-t", "1,2", "--json"), "bench")
    assert [(t["test"], t["threads"], len(t["samples_s"])) for t in found["tests"]] == [
        ("pp16", 1, 3), ("tg4", 1, 3), ("pp16", 2, 3), ("tg4", 2, 3)]
    assert all(t["per_second"]["median"] > 0 for t in found["tests"])
    assert found["device"]["name"] == "host"
    latency = document(edgec_cli("bench", layer_bundle, "-r", 5, "-t", 1, "--json"), "bench")["tests"][0]
    assert latency["seconds"]["p50"] <= latency["seconds"]["p90"] <= latency["seconds"]["p99"]
    assert "t/s" in edgec_cli("bench", prose_bundle, "-p", 8, "-n", 0, "-r", 1).out


def test_the_same_model_gives_the_same_bytes(
    edgec_cli: Cli, prose_lm: Path, prose_bundle: Path, tmp_path: Path
) -> None:
    """Compiled again, from another path, with everything that watches switched on."""
    (tmp_path / "prose_lm").symlink_to(prose_lm)
    outcome = edgec_cli("compile", tmp_path / "prose_lm", "-o", tmp_path / "out", "--dump-dir", tmp_path / "dump")
    assert outcome.code == 0, outcome.err
    for name in ("model.edgec", "manifest.json", "edgec.json", "reports/memory.json"):
        assert (tmp_path / "out" / name).read_bytes() == (prose_bundle / name).read_bytes(), name


def test_doctor_without_a_package(edgec_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there for broken installations, so it must not break on one."""
    monkeypatch.setattr("edgec.doctor._CORE", ("no-such-package",))
    outcome = edgec_cli("doctor")
    assert outcome.code == 1
    assert "no-such-package" in outcome.out


def test_a_reader_that_goes_away(prose_bundle: Path) -> None:
    """`edgec ... | head` is no failure: 1 would say that a gate failed."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "edgec", "inspect", prose_bundle], cwd=ROOT, stdout=write,
                          stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_check(edgec_cli: Cli, prose_lm: Path, tmp_path: Path) -> None:
    assert document(edgec_cli("check", prose_lm, "--json"), "check")["supported"] is True
    beyond = edgec_cli("check", prose_lm, "--ctx", 100000)
    assert (beyond.code, beyond.out) == (2, "")
    (tmp_path / "odd.py").write_text(
        "import torch\n\n\nclass Odd(torch.nn.Module):\n    def forward(self, x):\n"
        "        return torch.fft.rfft(x, n=8192).real + torch.det(x[:4, :4])\n\n\n"
        "def create():\n    return Odd(), (torch.randn(4, 8),)\n"
    )
    outcome = edgec_cli("check", f"{tmp_path}/odd.py:create", "--json")
    assert outcome.code == 3
    report = json.loads(outcome.out)
    assert report["supported"] is False
    assert {"op", "reason", "count", "layers", "lines", "shapes", "suggestion", "saved"} == set(report["problems"][0])
    # All of them at once, not the first.
    assert {"DFT", "Det"} <= {p["op"] for p in report["problems"]}
    assert "DFT" in edgec_cli("check", f"{tmp_path}/odd.py:create").out
    failed = edgec_cli("compile", f"{tmp_path}/odd.py:create", "-o", tmp_path / "out")
    assert failed.code == 3
    assert failed.err.startswith("EDGEC-E0301")
    assert "Det" in failed.err
    assert "DFT" in failed.err


def test_doctor(edgec_cli: Cli) -> None:
    findings = document(edgec_cli("doctor", "--json"), "doctor")["findings"]
    states = {f["name"]: f["state"] for f in findings}
    assert states["runtime library"] == states["self-test"] == states["cpu"] == "ok"


def test_python_interface(prose_lm: Path, prose_bundle: Path) -> None:
    """The example of the README."""
    assert edgec.check(str(prose_lm)).problems == ()
    with edgec.Model(prose_bundle / "model.edgec") as model, model.session(threads=2) as session:
        logits = session.step(model.tokenize("It was a quiet evening"))
    assert logits.shape == (4096,)
    rows = edgec.bench(prose_bundle, prompt=8, tokens=2, repetitions=1)
    assert [row.name for row in rows] == ["pp8", "tg2"]
