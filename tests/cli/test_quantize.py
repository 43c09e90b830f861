"""edgec quantize and compile --quant on a tiny language model and a network for images: kills, sources, bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.native.bundle import read_bundle
from tests.models import tiny_lm

Cli = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
CALIBRATED = ("--quant", "hlq2g64", "--calib-samples", "6", "--calib-window", "32")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm.make(tmp_path_factory.mktemp("lm") / "llama", "llama_mha_tied")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FILE.py:FACTORY of a small network for images, and 3 images beside it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    (folder / "net.py").write_text(
        "import torch\n"
        "def create():\n"
        "    torch.manual_seed(0)\n"
        "    nn = torch.nn\n"
        "    net = nn.Sequential(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.Conv2d(64, 128, 1), nn.ReLU(),\n"
        "                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100))\n"
        "    return net.eval(), (torch.zeros(1, 3, 32, 32),), {'name': 'net'}\n")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "photos" / f"{i}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# The command, saying when its work begins: what comes before are imports, which leave nothing to lose.
_PROGRAM = """
import sys
from edgec import quantization
from edgec.cli import main
opened = quantization.opened
def announced(*arguments):
    print("begun", flush=True)
    return opened(*arguments)
quantization.opened = announced
sys.exit(main(sys.argv[1:]))
"""


def begin(llama: Path, output: Path) -> subprocess.Popen[str]:
    """The running command at the moment when its work begins."""
    arguments = [sys.executable, "-c", _PROGRAM, "quantize", str(llama), "-o", str(output), *CALIBRATED]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def kill_and_resume(llama: Path, tmp_path: Path, kills: int) -> None:
    """Runs the same command, killed at `kills` random moments, and compares with one that was left alone."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = begin(llama, whole)
    begun = time.monotonic()
    process.communicate()
    length = time.monotonic() - begun
    assert process.returncode == 0
    chance = random.Random(kills)
    hits = 0
    for _ in range(kills):
        process = begin(llama, parts)
        # A run that continues has less to do, so most moments are early ones.
        time.sleep(length * chance.random() ** 2)
        hits += process.poll() is None
        if process.returncode is not None:
            length *= 0.7  # other processes were busy when it was measured
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert hits >= kills // 3
    process = begin(llama, parts)
    process.communicate()
    assert process.returncode == 0
    assert contents(parts) == contents(whole)


def test_killed_and_resumed(llama: Path, tmp_path: Path) -> None:
    kill_and_resume(llama, tmp_path, 3)


@pytest.mark.slow
def test_killed_and_resumed_twenty_times(llama: Path, tmp_path: Path) -> None:
    kill_and_resume(llama, tmp_path, 20)


_ON_CORES = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
from edgec.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to cores")
def test_any_number_of_cores_gives_the_same_bytes(
    prose_lm: Path, asset: Callable[[str], Path], tmp_path: Path, require: Callable[[bool, str], None]
) -> None:
    """Libraries of matrices divide products by the number of threads, and round differently for it."""
    require(len(os.sched_getaffinity(0)) > 1, "two cores")
    for cores in "12":
        subprocess.run(
            [sys.executable, "-c", _ON_CORES, cores, "quantize", str(prose_lm), "-o", str(tmp_path / cores),
             "-t", cores, "--quant", "hlq3", "--quant-override", "*=none",
             "--quant-override", "*layers.0.self_attn.*=hlq3",
             "--calib", str(asset("prose/valid.txt")), "--calib-samples", "3", "--calib-window", "32"],
            cwd=ROOT, check=True, capture_output=True)
    assert len(contents(tmp_path / "1")) == 5
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_quantize_then_compile_and_both_at_once(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", *CALIBRATED, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["command"] == "quantize"
    specs = {x["name"]: x["spec"] for x in found["layers"]}
    assert specs["model.embed_tokens.weight"] == "hlq4g64"
    assert specs["model.layers.1.mlp.down_proj.weight"] == "hlq2g64"
    assert all(0 < x["error"] < 1 and 0 < x["accumulated"] < 2 for x in found["layers"])
    assert {k["reason"] for k in found["kept"]} == {"a table that no input of the model is looked up in"}
    assert found["arguments"]["calibration"]["source"] == "self"

    done = edgec_cli("compile", llama, "-o", tmp_path / "from", "--quant-from", tmp_path / "q")
    assert done.code == 0, done.err
    assert "linear_bits" in done.out
    done = edgec_cli("compile", llama, "-o", tmp_path / "at_once", *CALIBRATED)
    assert done.code == 0, done.err
    assert (tmp_path / "from" / "model.edgec").read_bytes() == (tmp_path / "at_once" / "model.edgec").read_bytes()
    assert not (tmp_path / "at_once.quant").exists()
    report = json.loads((tmp_path / "from" / "reports" / "quant.json").read_text())
    kernels = {x["name"]: (x["stored"], x["kernels"]) for x in report["layers"]}
    assert kernels["model.layers.0.mlp.up_proj.weight"] == ("hlq2g64", ["linear_bits_split"])
    assert set(kernels["model.embed_tokens.weight"][1]) == {"gather_bits", "linear_bits"}
    assert read_bundle(tmp_path / "from" / "model.edgec").manifest["config"]["quant"]["quant"] == "hlq2g64"


def test_the_same_command_gives_the_same_bytes_and_does_nothing_twice(
    llama: Path, tmp_path: Path, edgec_cli: Cli
) -> None:
    for name in ("a", "b"):
        assert edgec_cli("quantize", llama, "-o", tmp_path / name, *CALIBRATED).code == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.safetensors")}
    assert edgec_cli("quantize", llama, "-o", tmp_path / "a", *CALIBRATED, "-t", 1).code == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.safetensors")}


@pytest.mark.parametrize("changed", [
    ("--quant", "hlq2g32"), ("--quant-override", "*down_proj=int8"), ("--calib-samples", "5"), ("--calib-seed", "1"),
    ("--quant-method", "published"),
])
def test_other_arguments_are_refused(
    llama: Path, tmp_path: Path, edgec_cli: Cli, changed: tuple[str, str]
) -> None:
    assert edgec_cli("quantize", llama, "-o", tmp_path / "q", *CALIBRATED).code == 0
    before = contents(tmp_path / "q")
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", *CALIBRATED, *changed)
    assert done.code == 2
    assert "then," in done.err
    assert contents(tmp_path / "q") == before


def test_another_model_is_refused(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    other = tiny_lm.make(tmp_path / "other" / "llama", "llama_mha_tied", seed=9)
    four = ("--quant", "int4g32")
    assert edgec_cli("quantize", llama, "-o", tmp_path / "q", *four).code == 0
    assert "model_sha256" in edgec_cli("quantize", other, "-o", tmp_path / "q", *four).err
    done = edgec_cli("compile", other, "-o", tmp_path / "out", "--quant-from", tmp_path / "q")
    assert done.code == 2
    assert "--quant-from" in done.err
    assert not (tmp_path / "out").exists()


def test_four_bits_need_no_samples(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", "--quant", "palette4", "--quant-override",
                     "*.layers.0.*=hlq8g32", "--quant-override", "*gate_proj=none", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    specs = {x["name"]: x["spec"] for x in found["layers"]}
    assert specs["model.layers.0.mlp.up_proj.weight"] == "hlq8g32"
    assert specs["model.layers.1.mlp.up_proj.weight"] == "palette4"
    assert "by override" in {k["reason"] for k in found["kept"]}
    assert all("accumulated" not in x for x in found["layers"])
    assert found["arguments"]["calibration"] == {"source": "none"}
    # The table of the bundle says what is stored: palettes keep their indices, siblings too.
    done = edgec_cli("compile", llama, "-o", tmp_path / "out", "--quant-from", tmp_path / "q")
    assert done.code == 0, done.err
    assert "palette4 as" not in done.out
    report = json.loads((tmp_path / "out" / "reports" / "quant.json").read_text())
    assert all(x["kernels"] and x["stored_bytes"] > 0 for x in report["layers"])
    palettes = [x for x in report["layers"] if x["spec"] == "palette4"]
    assert palettes
    assert all(x["stored"] == "palette4" and x["stored_bytes"] == x["bytes"] for x in palettes)
    assert {k for x in palettes for k in x["kernels"]} <= {"linear_bits", "linear_bits_split", "gather_bits"}


def test_images(images: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    source = f"{images}/net.py:create"
    done = edgec_cli("quantize", source, "-o", tmp_path / "q", "--quant", "int3g32")
    assert done.code == 2
    assert "--calib FOLDER" in done.err
    assert not (tmp_path / "q").exists()
    done = edgec_cli("quantize", source, "-o", tmp_path / "q", "--quant", "int3g32", "--calib", images / "photos",
                     "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {x["name"]: x["spec"] for x in found["layers"]} == {"2.weight": "int3g32", "6.weight": "int4g32"}
    assert found["kept"] == [{"name": "0.weight", "reason": "the first convolution"}]
    # The same pixels as arrays are the same calibration, layer for layer.
    from edgec.judge.images import load_image

    means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.concatenate([load_image(p, 32, 32, means, stds) for p in sorted((images / "photos").iterdir())])
    model_input = json.loads(edgec_cli("inspect", source, "--json").out)["inputs"][0]["name"]
    np.savez(tmp_path / "pixels.npz", **{model_input: pixels})
    done = edgec_cli("quantize", source, "-o", tmp_path / "n", "--quant", "int3g32", "--calib", tmp_path / "pixels.npz")
    assert done.code == 0, done.err
    assert contents(tmp_path / "n" / "layers") == contents(tmp_path / "q" / "layers")


def test_texts(prose_lm: Path, asset: Callable[[str], Path], tmp_path: Path, edgec_cli: Cli) -> None:
    text = asset("prose/valid.txt")
    common = ("quantize", prose_lm, "-o", tmp_path / "q", "--quant", "hlq3", "--calib", text, "--calib-window", 64)
    done = edgec_cli(*common, "--calib-samples", 2, "--json")
    assert done.code == 0, done.err
    errors = [x["accumulated"] for x in json.loads(done.out)["layers"]]
    assert max(errors) < 0.2
    small = tmp_path / "small.txt"
    small.write_text(text.read_text()[:4000])
    done = edgec_cli("compile", prose_lm, "-o", tmp_path / "out", "--quant-from", tmp_path / "q", "--ppl", small,
                     "--json")
    assert done.code == 0, done.err
    assert 5 < json.loads(done.out)["eval"]["sides"]["bundle"]["perplexity"] < 200
    assert edgec_cli("compile", prose_lm, "-o", tmp_path / "out", "--ppl", tmp_path / "no.txt").code == 2
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[:20000])
    refused = edgec_cli(*common[:-3], other, "--calib-window", 64, "--calib-samples", 2)
    assert refused.code == 2
    assert "sha256" in refused.err


@pytest.mark.parametrize(("arguments", "words"), [
    ((), "--quant"),
    (("--quant", "hlq9"), "hlqB or intB"),
    (("--quant", "int4", "--quant-override", "nothing=int4"), "no such layer"),
    (("--quant", "int4", "--quant-override", "int4"), "GLOB=SPEC"),
    (("--quant", "int4", "--quant-method", "best"), "rtn"),
    (("--quant", "int4", "--quant-method", "gptq"), "gptq without samples"),
    (("--quant", "int4", "--calib", "missing.txt"), "no such file"),
    (("--quant", "int2", "--calib", "none"), "--force"),
    (("--quant", "int4", "--max-memory", "lots"), "900M"),
    (("--quant", "int4", "--max-memory", "1M"), "max-memory"),
    (("--quant", "int4", "--calib", "self", "--calib-window", "1"), "2 tokens"),
    (("--quant", "int4", "--calib", "self", "--calib-window", "999"), "at most 128"),
    (("--quant", "int4", "--mean", "1,2"), "three numbers"),
    (("--quant", "int4", "--calib", "."), "--calib ."),
    (("--quant", "int4", "--calib", ""), "no such file"),
    (("--quant", "int4", "--std", "1,0,1"), "at: --std"),
    (("--quant", "int4", "-t", "300"), "0 (all cores) to 256"),
    (("--quant", "int4", "--quant-method", "als"), "auto, rtn, clip, gptq"),
    (("--quant", "palette4", "--quant-method", "rtn"), "auto, gptq"),
    (("--quant", "palette4v2"), "palette4"),
    (("--quant", "int4", "--quant-override", "*up_proj=palette4v2"), "at: --quant-override"),
    (("--quant", "int4", "--quant-override", "*=none"), "next: compile without --quant"),
])
def test_bad_input(
    llama: Path, tmp_path: Path, edgec_cli: Cli, arguments: tuple[str, ...], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", *arguments)
    assert done.code in (2, 4), done.err
    assert words in done.err
    assert "crash" not in done.err
    # The next attempt has other arguments and must not find this one in its way.
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(("arrays", "words"), [
    ({"input_ids": np.zeros((2, 8))}, "integer type"),
    ({"input_ids": np.full((2, 8), 97)}, "96"),
    ({"input_ids": np.zeros((2, 200), int)}, "at most 128"),
    ({"ids": np.zeros((2, 8), int)}, "input_ids"),
    ({"input_ids": np.zeros((0, 8), int)}, "0 samples of 8 tokens"),
    ({}, "no array"),
])
def test_bad_arrays(
    llama: Path, tmp_path: Path, edgec_cli: Cli, arrays: dict[str, np.ndarray], words: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", "--quant", "int2", "--calib", tmp_path / "a.npz")
    assert done.code == 2
    assert words in done.err


def test_files_that_are_no_samples(
    llama: Path, images: Path, asset: Callable[[str], Path], tmp_path: Path, edgec_cli: Cli
) -> None:
    """One error of the calibration each, no crash, and nothing left in the way of the next attempt."""
    np.savez(tmp_path / "good.npz", input_ids=np.zeros((2, 8), np.int64))
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    at = whole.index(b"descr") + 200
    (tmp_path / "bent.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with (tmp_path / "npy.npz").open("wb") as file:
        np.save(file, np.zeros((2, 8), np.int64))
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("input_ids", "hello")
    np.savez(tmp_path / "objects.npz", input_ids=np.array([None, 1], object))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("hi")
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_text("no pixels")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "0.txt").write_text("dear")
    net, prose = f"{images}/net.py:create", asset("prose_lm")
    for model, name, words in (
        (llama, "cut.npz", "not a .npz"), (llama, "bent.npz", "CRC"), (llama, "npy.npz", "not a .npz"),
        (llama, "zip.npz", "not an array"), (llama, "objects.npz", "Object arrays"),
        (llama, "short.txt", "without tokenizer.json"), (prose, "empty.txt", "an empty text"),
        (prose, "short.txt", "2 tokens"), (prose, "latin.txt", "not UTF-8"), (net, "photos", "0.png"),
        (net, "letters", "no image among them"), (net, "short.txt", "a folder of images"),
        (net, "good.npz", "inputs of the model"),
    ):
        done = edgec_cli("quantize", model, "-o", tmp_path / "q", "--quant", "int4", "--calib", tmp_path / name)
        assert done.code == 2, (name, done.err)
        assert "(calibration)" in done.err, (name, done.err)
        assert words in done.err, (name, done.err)
        assert name in done.err, (name, done.err)
        assert not (tmp_path / "q").exists(), name
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", "--quant", "int4", "--calib", tmp_path / "good.npz")
    assert done.code == 0, done.err


def test_a_method_is_for_the_layers_that_it_can_make(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    """A uniform layer among HLQ ones, as tables are by default, takes the solver that it would have taken."""
    common = ("quantize", llama, "--quant", "hlq4g64", "--quant-override", "*up_proj=int4g64")
    for name, method in (("als", "als"), ("auto", "auto"), ("rtn", "rtn")):
        done = edgec_cli(*common, "-o", tmp_path / name, "--quant-method", method)
        assert done.code == 0, done.err
    als, auto, rtn = (contents(tmp_path / name / "layers") for name in ("als", "auto", "rtn"))
    assert als == auto
    assert all(als[name] != rtn[name] for name in als)


def test_override_files_name_their_lines(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    common = ("quantize", llama, "-o", tmp_path / "q", "--quant", "int4g64", "--quant-override",
              f"@{tmp_path / 'o.txt'}")
    (tmp_path / "o.txt").write_text("# the worst first\n\n *up_proj=int8g64 \n*down_proj=int9\n")
    done = edgec_cli(*common)
    assert done.code == 2
    assert "o.txt, line 4" in done.err
    assert "int9" in done.err
    (tmp_path / "o.txt").write_text("# the worst first\n\n *up_proj=int8g64 \n")
    done = edgec_cli(*common, "--json")
    assert done.code == 0, done.err
    assert {x["spec"] for x in json.loads(done.out)["layers"] if "up_proj" in x["name"]} == {"int8g64"}
    (tmp_path / "o.txt").write_bytes(b"\xff")
    assert "not UTF-8" in edgec_cli(*common).err


def test_overrides_that_raise_the_worst_layers(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    from edgec.judge.layers import layer_errors, raising_overrides, write_overrides

    assert edgec_cli("compile", llama, "-o", tmp_path / "out", *CALIBRATED).code == 0
    layers = layer_errors(tmp_path / "out")
    assert [x["error"] for x in layers] == sorted((x["error"] for x in layers), reverse=True)
    lines = raising_overrides(layers)
    assert len(lines) == 3
    assert lines[0] == f"{layers[0]['name'].removesuffix('.weight')}=hlq3g64"
    write_overrides(tmp_path / "raise.txt", lines)
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", *CALIBRATED, "--quant-override",
                     f"@{tmp_path / 'raise.txt'}", "--json")
    assert done.code == 0, done.err
    specs = {x["name"]: x["spec"] for x in json.loads(done.out)["layers"]}
    assert [specs[x["name"]] for x in layers[:4]] == ["hlq3g64"] * 3 + [layers[3]["spec"]]
    errors = {x["name"]: x["error"] for x in json.loads(done.out)["layers"]}
    assert errors[layers[0]["name"]] < 0.5 * layers[0]["error"]
    # Nothing is worse than eight bits can help.
    assert raising_overrides([{"name": "a", "spec": "int8g64", "error": 1.0}]) == []


def test_layer_reports_that_are_missing_or_damaged(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    assert edgec_cli("compile", llama, "-o", tmp_path / "out").code == 0
    common = ("compare", tmp_path / "out", "--reference", llama, "--per-layer")
    done = edgec_cli(*common)
    assert done.code == 2
    assert "quant.json" in done.err
    (tmp_path / "out" / "reports" / "quant.json").write_text("{}")
    assert "E0101" in edgec_cli(*common).err
    done = edgec_cli("quantize", llama, "-o", tmp_path / "q", "--quant", "int4", "--quant-override", "@nowhere")
    assert done.code == 2
    assert "@FILE" in done.err


def test_compile_with_contradictions(llama: Path, tmp_path: Path, edgec_cli: Cli) -> None:
    for extra in (("--quant", "int4", "--dry-run"), ("--quant", "int4", "--quant-from", tmp_path),
                  ("--quant-override", "*=int8"), ("--quant-from", tmp_path / "nowhere"), ("--force",),
                  ("--quant-method", "rtn"), ("--calib-samples", "3"), ("--calib-seed", "1"), ("--calib-window", "9"),
                  ("--quant-from", tmp_path, "--calib", "self")):
        done = edgec_cli("compile", llama, "-o", tmp_path / "out", *extra)
        assert done.code == 2, done.err
        assert "--quant" in done.err or "quant" in done.err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [("--quant", "int4g32"), ("--quant", "hlq2g32", "--force"), ("--ctx", "5")])
def test_what_cannot_be_compiled_is_found_before_the_layers_are_made(
    llama: Path, tmp_path: Path, edgec_cli: Cli, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgec import quantization

    def late(*ignored: object) -> None:
        pytest.fail("the layers were begun")

    monkeypatch.setattr(quantization, "quantize", late)
    if options[0] == "--ctx":
        done = edgec_cli("compile", llama, "-o", tmp_path / "out", "--quant", "int4g32", "--ctx", "999")
    else:
        (tmp_path / "net.py").write_text(
            "import torch\n"
            "class Net(torch.nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.a = torch.nn.Linear(64, 256)\n"
            "    def forward(self, x):\n"
            "        return torch.linalg.det(self.a(x).reshape(-1, 16, 16))\n"
            "def create():\n"
            "    return Net().eval(), (torch.zeros(1, 64),)\n")
        done = edgec_cli("compile", f"{tmp_path}/net.py:create", "-o", tmp_path / "out", *options)
        assert "Det" in done.err
        assert done.code == 3
    assert done.code in (2, 3, 4), done.err
    assert not (tmp_path / "out.quant").exists()
