"""compile --decouple: the report, the bundle, what it refuses, and that quantizing comes after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.ir.execute import save
from edgec.native.bundle import read_bundle
from tests.passes.harness import model

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx, a small network for images, and x.npz with samples beside it."""
    folder, rng = tmp_path_factory.mktemp("decouple"), np.random.default_rng(1)
    weights = {"a": rng.standard_normal((32, 3, 3, 3)), "b": rng.standard_normal((64, 32, 3, 3)),
               "c": rng.standard_normal((64, 64))}
    graph = model("g (float[1,3,16,16] input, float[32,3,3,3] a, float[64,32,3,3] b, float[64,64] c) => (float[1,64] y)"
                  "{ p = Conv<pads = [1,1,1,1]>(input, a) q = Relu(p) r = Conv<strides = [2,2]>(q, b) s = Relu(r)"
                  "  t = GlobalAveragePool(s) u = Flatten(t) y = MatMul(u, c) }", **weights)
    save(graph, folder / "net.onnx")
    np.savez(folder / "x.npz", input=np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32))
    return folder


def test_decouple_and_quantize(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edgec_cli("compile", str(net / "net.onnx"), "-o", str(out), "--decouple", "macs=0.6", "--calib",
               str(net / "x.npz"), "--calib-samples", "4", "--quant", "int8g32", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["decoupled"]
    assert json.loads((out / "reports" / "decouple.json").read_text()) == found
    assert found["macs"]["after"] <= 0.6 * found["macs"]["before"]
    assert found["calibration"]["samples"] == 4
    assert {"before", "after"} == set(found["ms"])
    layer = found["layers"][0]
    assert layer["name"] == "b"
    assert layer["macs_after"] < layer["macs"]
    assert 0 < layer["error"] < 1
    assert min(layer["ms"], layer["ms_after"]) > 0
    # The pairs' own columns were quantized, and the weight of before is gone.
    quant = json.loads((out / "reports" / "quant.json").read_text())
    assert "b.columns" in {x["name"] for x in quant["layers"]}
    assert "b.filters" in {x["name"] for x in quant["kept"]}
    manifest = read_bundle(out / "model.edgec").manifest
    assert manifest["config"]["decouple"]["budget"] == "macs=0.6"
    assert "decouple_conv" in manifest["provenance"]["passes"]


def test_the_table_and_times_of_another_machine(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    source = str(net / "net.onnx")
    done = edgec_cli("compile", source, "-o", str(tmp_path / "o"), "--decouple", "macs=0.8", "--dry-run")
    assert done.code == 0, done.err
    assert "rank" in done.out
    done = edgec_cli("compile", source, "-o", str(tmp_path / "o"), "--decouple", "macs=0.8")
    assert done.code == 0, done.err
    assert "rank" in done.out
    assert "million multiplications" in done.err
    done = edgec_cli("compile", source, "-o", str(tmp_path / "p"), "--decouple", "latency=0.8", "--target", "wasm32")
    assert done.code == 2
    assert "not this machine" in done.err


@pytest.mark.parametrize(("extra", "message"), [
    (("--decouple", "macs=2"), "between 0 and 1"),
    (("--decouple", "mac=0.5"), "did you mean 'macs'"),
    (("--decouple", "macs=0.01"), "at least macs="),
    (("--decouple", "macs=0.5", "--calib", "nowhere.npz"), "no such file"),
    (("--decouple", "macs=0.5", "--quant-from", "nowhere"), "whole convolutions"),
    (("--calib-samples", "3"), "would change nothing"),
    (("--decouple", "macs=0.5", "--calib-samples", "3"), "would change nothing"),
    (("--decouple", "macs=0.5", "--calib-seed", "3"), "would change nothing"),
    (("--decouple", "macs=0.5", "--calib-window", "3"), "would change nothing"),
])
def test_refusals(edgec_cli: Cli, net: Path, tmp_path: Path, extra: tuple[str, ...], message: str) -> None:
    done = edgec_cli("compile", str(net / "net.onnx"), "-o", str(tmp_path / "o"), *extra)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "o").exists()
