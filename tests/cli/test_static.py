"""`compile --quant static8`: what comes out runs, says what was done, and mistakes are named before work begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.ir.execute import Runner, save
from edgec.ir.info import ModelInfo, attach_info
from edgec.native.session import Model
from edgec.quantization import StaticOptions, open_static
from tests.cli.conftest import Outcome
from tests.models.graphs_for_quantization import small_cnn

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small network with a residual sum."""
    path = tmp_path_factory.mktemp("static") / "cnn.onnx"
    save(small_cnn(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, and a file that is none."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("")
    return folder


def test_compile_runs_and_reports(edgec_cli: Cli, cnn: Path, images: Path, tmp_path: Path) -> None:
    done = edgec_cli("compile", cnn, "-o", tmp_path / "out", "--quant", "static8", "--calib", images, "--calib-method",
                     "percentile:99.9", "--quant-override", "head=f32", "--dump-dir", tmp_path / "dump", "--json")
    assert done.code == 0, done.err
    quant = json.loads(done.out)["quant"]
    assert quant == json.loads((tmp_path / "out" / "reports" / "quant.json").read_text())
    assert quant["arguments"]["method"] == "percentile:99.9"
    assert quant["arguments"]["calibration"]["source"] == images.name
    assert [k["name"] for k in quant["kept"]] == ["head.weight"]
    names = [layer["name"] for layer in quant["layers"]]
    assert names[:3] == ["stem.weight", "narrow.weight", "depthwise.weight"]
    assert all(layer["bytes"] < 0.5 * layer["float_bytes"] for layer in quant["layers"] if "bytes" in layer)
    # The native runtime computes what the dumped graph computes.
    (dumped,) = (tmp_path / "dump").glob("*_quantize_static.onnx")
    from edgec import importers

    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 12, 12)).astype(np.float32)}
    with Runner(importers.load(str(dumped), check=False), "test") as runner:
        (wanted,) = runner.run(feeds).values()
    with Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        model.selftest(golden=True)
        (found,) = session.run(feeds).values()
    # A value between two codes may be rounded to either; the layers behind it see a step more or less.
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    with Runner(small_cnn(), "test") as runner:
        (true,) = runner.run(feeds).values()
    assert np.abs(wanted - true).max() < 0.15 * np.abs(true).max()


def test_the_same_samples_give_the_same_bytes_and_a_table(edgec_cli: Cli, cnn: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(2).standard_normal((5, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples)
    for out in ("a", "b"):
        done = edgec_cli("compile", cnn, "-o", tmp_path / out, "--quant", "static8", "--calib", tmp_path / "data.npz",
                         "--equalize")
        assert done.code == 0, done.err
        assert "own SQNR" in done.out
        assert "operators on 8-bit integers" in done.err
    for name in ("model.edgec", "reports/quant.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert not (tmp_path / "a.quant").exists()


@pytest.mark.parametrize(("words", "wanted"), [
    ((), "--calib"),
    (("--calib", "self"), "--calib"),
    (("--calib", "none"), "--calib"),
    (("--calib", "missing"), "no such file or folder"),
    (("--calib", "IMAGES", "--calib-method", "max"), "--calib-method"),
    (("--calib", "IMAGES", "--quant-override", "head=hlq4"), "GLOB=f32"),
    (("--calib", "IMAGES", "--quant-override", "tail=f32"), "no such layer"),
    (("--calib", "IMAGES", "--quant-method", "gptq"), "--quant-method"),
    (("--calib", "IMAGES", "--max-memory", "1G"), "--max-memory"),
    (("--calib", "IMAGES", "--force"), "--force"),
    (("--calib", "EMPTY"), "no image among them"),
])
def test_mistakes(edgec_cli: Cli, cnn: Path, images: Path, tmp_path: Path, words: tuple[str, ...], wanted: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": images, "EMPTY": tmp_path / "empty"}
    done = edgec_cli("compile", cnn, "-o", tmp_path / "out", "--quant", "static8", *(places.get(w, w) for w in words))
    assert done.code == 2
    assert wanted in done.err
    assert not (tmp_path / "out").exists()


def test_samples_with_nan(edgec_cli: Cli, cnn: Path, tmp_path: Path) -> None:
    samples = np.zeros((2, 3, 12, 12), np.float32)
    samples[1, 0, 3, 3] = np.nan
    np.savez(tmp_path / "data.npz", x=samples)
    done = edgec_cli("compile", cnn, "-o", tmp_path / "out", "--quant", "static8", "--calib", tmp_path / "data.npz")
    assert done.code == 2
    assert "EDGEC-E0502" in done.err
    assert "sample 1" in done.err


def test_options_of_static_belong_to_it(edgec_cli: Cli, cnn: Path, tmp_path: Path) -> None:
    for option in (("--calib-method", "mse"), ("--equalize",), ("--bias-correction",)):
        done = edgec_cli("compile", cnn, "-o", tmp_path / "out", "--quant", "int8", *option)
        assert done.code == 2
        assert "static8" in done.err
    done = edgec_cli("quantize", cnn, "-o", tmp_path / "q", "--quant", "static8")
    assert done.code == 2
    assert "compile --quant static8" in done.err


def test_language_models_are_refused(images: Path) -> None:
    model = attach_info(small_cnn(), ModelInfo(task="causal-lm"))
    with pytest.raises(EdgecError, match="static8 for a language model"):
        open_static(model, StaticOptions(str(images)), lambda *_: None)
