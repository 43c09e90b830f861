"""Bad input: one error of the agreed form on stderr, the agreed exit code, nothing on stdout, nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import CODES
from edgec.judge.selftest import tiny_plan
from edgec.native.bundle import write_bundle

Cli = Callable[..., Any]


def check(outcome: Any, code: str, *words: str) -> None:
    """The error form: `EDGEC-Ennnn title (stage)`, then indented lines; exit status as the table says."""
    found = outcome.code, outcome.out, outcome.err
    assert found[0] == CODES[code].exit, found
    lines = found[2].splitlines()
    assert lines[0].startswith(f"EDGEC-{code} {CODES[code].title} ("), found
    assert all(line.startswith("  ") for line in lines[1:]), found
    assert "Traceback" not in found[2]
    for word in words:
        assert word in found[2], f"{word!r} not in {found[2]!r}"
    assert found[1] == ""


# Sources ---------------------------------------------------------------------------------------------------------
def test_missing_model(edgec_cli: Cli, tmp_path: Path) -> None:
    for command in ("inspect", "check"):
        check(edgec_cli(command, tmp_path / "absent"), "E0003", "absent")
    check(edgec_cli("compile", tmp_path / "absent", "-o", tmp_path / "out"), "E0003", "absent")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model(edgec_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    check(edgec_cli("check", tmp_path), "E0101", "config.json")


def test_unknown_target_with_a_near_miss(edgec_cli: Cli, prose_lm: Path, tmp_path: Path) -> None:
    check(edgec_cli("compile", prose_lm, "--target", "aple-m2", "-o", tmp_path / "out"), "E0006",
          "did you mean 'apple-m2'?")
    check(edgec_cli("targets", "x86-64-v5"), "E0006", "did you mean 'x86-64-v4'?")


def test_unwritable_output(edgec_cli: Cli, prose_lm: Path, tmp_path: Path) -> None:
    """A file in the way, somebody's folder, and (unless we are root, who may write anywhere) a read-only folder."""
    (tmp_path / "file").write_text("x")
    check(edgec_cli("compile", prose_lm, "-o", tmp_path / "file"), "E0004", "a file")
    check(edgec_cli("compile", prose_lm, "-o", tmp_path / "file" / "out"), "E0004", "file is a file")
    check(edgec_cli("compile", prose_lm, "-o", tmp_path), "E0004", "other files")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        check(edgec_cli("compile", prose_lm, "-o", tmp_path / "locked" / "out"), "E0004", "ermission")
    assert {p.name for p in tmp_path.iterdir()} <= {"file", "locked"}


@pytest.mark.parametrize(("arguments", "word"), [
    (("--weights", "int4"), "--weights"), (("--kv", "fp8"), "--kv"), (("--memory-budget", "lots"), "--memory-budget"),
    (("--dynamic", "x"), "--dynamic"), (("--ctx", "0"), "--ctx"), (("--no-such-option",), "--no-such-option"),
    (("--stop-after", "fold_bm"), "fold_bn"),
])
def test_bad_options(edgec_cli: Cli, prose_lm: Path, tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    check(edgec_cli("compile", prose_lm, "-o", tmp_path / "out", *arguments), "E0002", word)


def test_unknown_command_and_code(edgec_cli: Cli) -> None:
    check(edgec_cli("compil"), "E0002", "compil")
    check(edgec_cli("explain", "E0007x"), "E0002", "did you mean 'EDGEC-E0007'?")


@pytest.mark.parametrize(("key", "value", "code", "word"), [
    ("rms_norm_eps", float("nan"), "E0101", "NaN"), ("num_hidden_layers", 10**7, "E0101", "num_hidden_layers"),
    ("model_type", "llama2000", "E0103", "llama2000"), ("max_position_embeddings", 10**9, "E0103", "1000000000"),
    ("hidden_size", -4, "E0103", "-4"),
])
def test_wrong_configuration(
    edgec_cli: Cli, prose_lm: Path, tmp_path: Path, key: str, value: object, code: str, word: str
) -> None:
    (tmp_path / "model.safetensors").symlink_to(prose_lm / "model.safetensors")
    config = json.loads((prose_lm / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check(edgec_cli("compile", tmp_path, "-o", tmp_path / "out"), code, word)
    assert not (tmp_path / "out").exists()


def test_names_cannot_write_to_the_terminal(edgec_cli: Cli, tmp_path: Path) -> None:
    outcome = edgec_cli("inspect", tmp_path / "a\n\x1b[31mb")
    check(outcome, "E0003", "a \\x1b[31mb")
    assert "\x1b" not in outcome.err
    bundle = tmp_path / "odd.edgec"
    weight = np.zeros((24, 40), np.float32)
    write_bundle(bundle, tiny_plan(weight, np.zeros(24, np.float32)), tokenizer=None, golden=None,
                 manifest={"model": {"name": "a\x1b]0;title\x07\rb [red]"}})
    outcome = edgec_cli("inspect", bundle)
    assert outcome.code == 0
    assert "a\\x1b]0;title\\x07\\rb [red]" in outcome.out


def test_a_path_that_is_not_utf8(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.edgec"))
    try:
        odd.write_bytes(layer_bundle.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    check(edgec_cli("run", odd), "E0403", "x")  # opened, and then an input is missing
    assert json.loads(edgec_cli("run", Path(f"{odd}2"), "--json").out)["error"]["code"] == "EDGEC-E0003"


# Bundles ---------------------------------------------------------------------------------------------------------
def test_missing_bundle(edgec_cli: Cli, tmp_path: Path) -> None:
    for command in ("run", "bench"):
        check(edgec_cli(command, tmp_path / "absent"), "E0003", "absent")
    check(edgec_cli("run", tmp_path, "-p", "x"), "E0003", "model.edgec")


def test_truncated_bundle(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    data = layer_bundle.read_bytes()
    for size in (0, 1, 64, 127, 128, 500, len(data) // 2, len(data) - 1):
        (tmp_path / "short.edgec").write_bytes(data[:size])
        check(edgec_cli("run", tmp_path / "short.edgec"), "E0401")
        check(edgec_cli("inspect", tmp_path / "short.edgec"), "E0401")


def test_foreign_file(edgec_cli: Cli, prose_lm: Path, tmp_path: Path) -> None:
    check(edgec_cli("run", prose_lm / "model.safetensors"), "E0401")
    check(edgec_cli("inspect", prose_lm / "model.safetensors"), "E0101", "name its folder")
    for suffix, hint in ((".pt2", "torch.export.load"), (".pt", "weights without a model"), (".tflite", "tf2onnx")):
        (tmp_path / f"net{suffix}").write_bytes(b"x")
        for command in ("inspect", "check"):
            check(edgec_cli(command, tmp_path / f"net{suffix}"), "E0101", hint)
    (tmp_path / "text.edgec").write_text("This is a text, and not a bundle at all. " * 50)
    check(edgec_cli("bench", tmp_path / "text.edgec"), "E0401")


def test_damaged_bundle(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    data = bytearray(layer_bundle.read_bytes())
    data[200] ^= 1  # in the section table, whose hash the header holds
    (tmp_path / "bad.edgec").write_bytes(data)
    check(edgec_cli("run", tmp_path / "bad.edgec"), "E0402")


def test_unknown_instruction_set(edgec_cli: Cli, layer_bundle: Path) -> None:
    check(edgec_cli("run", layer_bundle, "--isa", "avx1024"), "E0002", "avx1024", "scalar")


# Running ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("arrays", "word"), [
    ({"z": np.zeros((3, 40), np.float32)}, "x"),
    ({"x": np.zeros((3, 41), np.float32)}, "41"),
    ({"x": np.zeros((3, 40, 1), np.float32)}, "x"),
    ({"x": np.zeros((3, 40), np.float64)}, "float64"),
    ({"x": np.zeros((3, 40), np.int32)}, "int32"),
    ({"x": np.zeros((3, 40), np.float32), "y": np.zeros(1, np.float32)}, "y"),
    ({}, "x"),
], ids=["name", "shape", "rank", "dtype", "integer", "extra", "none"])
def test_wrong_tensors(
    edgec_cli: Cli, layer_bundle: Path, tmp_path: Path, arrays: dict[str, np.ndarray], word: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    check(edgec_cli("run", layer_bundle, "--inputs", tmp_path / "in.npz"), "E0403", word)


def test_options_of_the_other_kind(edgec_cli: Cli, layer_bundle: Path) -> None:
    check(edgec_cli("run", layer_bundle, "-p", "text"), "E0002", "no language model")
    check(edgec_cli("eval", layer_bundle, "--ppl", layer_bundle), "E0002", "no language model")
    check(edgec_cli("eval", layer_bundle, "--images", layer_bundle.parent), "E0002", "[N, 3, H, W]")
    check(edgec_cli("eval", layer_bundle), "E0002", "one of the two")


def test_unwritable_result(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 40), np.float32))
    check(edgec_cli("run", layer_bundle, "--input", f"x={tmp_path}/x.npy", "-o", tmp_path / "no" / "out.npz"), "E0004")


def test_prompt_beyond_the_context(edgec_cli: Cli, prose_bundle: Path) -> None:
    check(edgec_cli("run", prose_bundle, "-p", "word " * 40, "-n", 8, "--ctx", 16), "E0404", "16")
    check(edgec_cli("run", prose_bundle, "-p", "Once", "-n", 5000), "E0404", "2048")
    check(edgec_cli("run", prose_bundle, "-p", ""), "E0002", "-p")
    check(edgec_cli("bench", prose_bundle, "-p", 4096), "E0404", "2048")


def test_unusable_texts(edgec_cli: Cli, prose_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "empty").write_text("")
    check(edgec_cli("eval", prose_bundle, "--ppl", tmp_path / "binary"), "E0502", "UTF-8")
    check(edgec_cli("eval", prose_bundle, "--ppl", tmp_path / "empty"), "E0502", "empty")
    check(edgec_cli("eval", prose_bundle, "--ppl", tmp_path / "absent"), "E0003", "absent")
    check(edgec_cli("eval", prose_bundle, "--ppl", tmp_path / "empty", "--window", 4096), "E0404", "4096")


def test_arrays_for_a_language_model(edgec_cli: Cli, prose_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3, np.float32))
    check(edgec_cli("run", prose_bundle, "--input", f"x={tmp_path}/x.npy"), "E0002", "language model")
    outcome = edgec_cli("run", prose_bundle, "-p", "text", "-o", tmp_path / "out.npz")
    check(outcome, "E0002", "language model", "at: -o", "--json")
    assert "--input" not in outcome.err


def test_pickles_have_to_be_somewhere(edgec_cli: Cli, prose_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Some words.")
    check(edgec_cli("inspect", prose_bundle, "--allow-pickle"), "E0002", "holds no pickles")
    check(edgec_cli("eval", prose_bundle, "--ppl", tmp_path / "text", "--allow-pickle"), "E0002", "--reference MODEL")
    (tmp_path / "net.py").write_text("")
    reference = ("--reference", f"{tmp_path}/net.py:create", "--allow-pickle")
    check(edgec_cli("compare", prose_bundle, *reference), "E0002", "a factory source")


def test_a_reference_of_another_kind(edgec_cli: Cli, prose_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\n\ndef create():\n    return torch.nn.Linear(4, 4), (torch.randn(1, 4),)\n")
    check(edgec_cli("compare", prose_bundle, "--reference", f"{tmp_path}/net.py:create"), "E0403", "language model")


# Machine-readable ------------------------------------------------------------------------------------------------
def test_json_errors(edgec_cli: Cli, tmp_path: Path) -> None:
    outcome = edgec_cli("run", tmp_path / "absent", "--json")
    document = json.loads(outcome.out)
    assert document["command"] == "run"
    assert document["error"]["code"] == "EDGEC-E0003"
    assert set(document["error"]) == {"code", "title", "stage", "where", "found", "wanted", "next"}


def test_a_defect_writes_a_crash_report(
    edgec_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgec import doctor

    def broken() -> None:
        raise RuntimeError("the reason")

    monkeypatch.setattr(doctor, "examine", broken)
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    check(edgec_cli("doctor"), "E0001", "RuntimeError: the reason", str(tmp_path))
    (report,) = (tmp_path / "crash").iterdir()
    assert "Traceback" in report.read_text()
    assert "doctor" in report.read_text()


def test_interrupt(edgec_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgec import doctor

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    outcome = edgec_cli("doctor")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")
