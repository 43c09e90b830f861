"""`zoo:NAME` through every verb, in the shell and in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.errors import EdgecError
from edgec.zoo import ZOO
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]


def test_a_bad_name_on_the_command_line(edgec_cli: Cli) -> None:
    done = edgec_cli("compile", "zoo:nonsense")
    assert done.code == 2
    assert all(name in done.err for name in (row.name for row in ZOO))


def test_every_verb(tmp_path: Path, edgec_cli: Cli) -> None:
    name, out = "zoo:dual_cnn", tmp_path / "out"
    done = edgec_cli("compile", name, "-o", out)
    assert done.code == 0, done.err
    assert f"WARNING: {name} has RANDOM weights" in done.err
    assert json.loads((out / "manifest.json").read_text())["model"]["weights"] == "random"
    assert edgec.inspect(out)["name"] == "dual_cnn"
    done = edgec_cli("compare", out, "--reference", name, "--tol", "max_rel:1e-4", "--json")
    assert done.code == 0, done.err
    assert edgec.compare(out, name)["outputs"]["output"]["max_rel"] < 1e-4
    done = edgec_cli("inspect", name, "--json")
    assert json.loads(done.out)["parameters"] == 14_862
    assert "random weights" in " ".join(json.loads(done.out)["notes"])
    assert edgec_cli("check", name).code == 0
    done = edgec_cli("bench", name, "-r", 1, "--json")
    assert json.loads(done.out)["tests"][0]["seconds"]["p50"] > 0
    np.save(tmp_path / "image.npy", np.zeros((1, 1, 28, 28), np.float32))
    done = edgec_cli("run", name, "--input", f"image={tmp_path / 'image.npy'}", "--json")
    assert json.loads(done.out)["outputs"]
    text = tmp_path / "text.txt"
    text.write_text("words")
    for arguments in (("--images", tmp_path), ("--ppl", text)):
        for bundle in (out, name):
            done = edgec_cli("eval", bundle, *arguments)
            assert done.code == 2
            assert "E0503" in done.err
    with pytest.raises(EdgecError) as caught:
        edgec.evaluate(out, images=tmp_path)
    assert caught.value.code == "E0503"


def test_the_zoo_is_no_reference_of_quality(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    done = edgec_cli("eval", layer_bundle, "--images", tmp_path, "--reference", "zoo:mobilenet_v2")
    assert done.code == 2
    assert "E0503" in done.err
    assert "E0503" not in edgec_cli("eval", layer_bundle, "--images", tmp_path).err
