"""--backend ort on the command line: compile, check, compare, eval, run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from edgec.ir.execute import Runner
from tests.cli.conftest import Outcome
from tests.models import tiny_lm

Cli = Callable[..., Outcome]
NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,3,8,8] image) => (float[1,64] scores) {
    a = Conv<pads = [1, 1, 1, 1]>(image, first)
    b = Relu(a)
    c = Flatten(b)
    scores = Gemm<transB = 1>(c, head, bias)
}
"""
LACKING = """
<ir_version: 8, opset_import: ["" : 17, "lab" : 1]>
net (float[2,3] x, uint16[9] t, int64[1] k) => (float[2,3] y, uint16[3] z, int64[3] i) {
    y = lab.Sharpen(x)
    z, i = TopK(t, k)
}
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET)
    for name, shape in (("first", (16, 3, 3, 3)), ("head", (64, 1024)), ("bias", (64,))):
        proto.graph.initializer.append(numpy_helper.from_array(
            (rng.standard_normal(shape) / 8).astype(np.float32), name))
    folder = tmp_path_factory.mktemp("net")
    onnx.save(proto, folder / "net.onnx")
    images = rng.standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", image=images)
    np.savez(folder / "one.npz", image=images[:1])
    return folder


def test_compile_compare_and_run(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edgec_cli("compile", net / "net.onnx", "-o", out, "--backend", "ort", "--opset", 21, "--json")
    assert done.code == 0, done.err
    assert "model.onnx" in json.loads(done.out)["files"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["backend"], manifest["opset"]) == ("ort", 21)
    done = edgec_cli("compare", out, "--reference", net / "net.onnx", "--tol", "sqnr:100", "--json")
    assert done.code == 0, done.err
    done = edgec_cli("compare", out / "model.onnx", "--reference", net / "net.onnx", "--inputs", net / "one.npz")
    assert done.code == 0, done.err
    done = edgec_cli("run", out, "--inputs", net / "one.npz", "--json")
    assert json.loads(done.out)["outputs"]["scores"]["shape"] == [1, 64]
    done = edgec_cli("run", out, "--verify", "--inputs", net / "one.npz")
    assert done.code == 0, done.err
    # A changed byte is found.
    data = bytearray((out / "model.onnx.data").read_bytes())
    data[5] ^= 1
    (out / "model.onnx.data").write_bytes(data)
    assert edgec_cli("run", out, "--verify", "--inputs", net / "one.npz").code == 6


def test_few_bits_say_what_reads_them(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    words = ("compile", net / "net.onnx", "--backend", "ort", "--quant")
    done = edgec_cli(*words, "int4", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    (layer,) = json.loads(done.out)["quant"]["layers"]
    assert (layer["stored"], layer["kernels"]) == ("int4g128", ["MatMulNBits"])
    done = edgec_cli(*words, "hlq4", "-o", tmp_path / "hlq")
    assert done.code == 0, done.err
    assert "become dense when onnxruntime loads the model" in done.err.replace("\n", " ")


def test_static_integers_go_through(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    for backend in ("native", "ort"):
        done = edgec_cli("compile", net / "net.onnx", "-o", tmp_path / backend, "--backend", backend, "--quant",
                         "static8", "--calib", net / "images.npz")
        assert done.code == 0, done.err
    names = {n.op_type for n in onnx.load(tmp_path / "ort" / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= names
    found = {}
    for backend in ("native", "ort"):
        target = tmp_path / f"{backend}.npz"
        assert edgec_cli("run", tmp_path / backend, "--inputs", net / "one.npz", "-o", target).code == 0
        found[backend] = np.load(target)["scores"]
    feeds = dict(np.load(net / "one.npz"))
    with Runner(ir.load(tmp_path / "ort" / "model.onnx"), "test", integers=True) as runner:
        exact = runner.run(feeds)["scores"]
    code = np.ptp(found["native"]) / 127
    # Rounded from the same exact sums; stock onnxruntime adds pairs of products in 16 bits, which saturate, on CPUs
    # with AVX2 and without VNNI.
    assert np.abs(found["native"] - exact).max() <= 1.01 * code
    assert np.abs(found["native"] - found["ort"]).max() <= 5 * code


def test_check_lists_what_the_backend_lacks(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    done = edgec_cli("check", net / "net.onnx", "--backend", "ort", "--opset", 17)
    assert done.code == 0, done.err
    lacking = tmp_path / "lacking.onnx"
    onnx.save(onnx.parser.parse_model(LACKING), lacking)
    done = edgec_cli("check", lacking, "--backend", "ort", "--json")
    assert done.code == 3
    reasons = {p["op"]: p["reason"] for p in json.loads(done.out)["problems"]}
    assert set(reasons) == {"lab::Sharpen", "TopK"}
    assert "no kernel for it with tensor(uint16)" in reasons["TopK"] or "tensor(uint16)" in reasons["TopK"]


@pytest.mark.parametrize(("words", "message"), [
    (("--backend", "tflite"), "nown: coreml, native, ort"),
    (("--opset", "21"), "a bundle holds no ONNX"),
    (("--backend", "ort", "--opset", "12"), "17 to 24"),
    (("--backend", "ort", "--kv", "fp16"), "--kv"),
    (("--backend", "ort", "--stop-after", "static_kv"), "the name of a pass"),
])
def test_refusals(edgec_cli: Cli, net: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = edgec_cli("compile", net / "net.onnx", "-o", tmp_path / "out", *words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    done = edgec_cli("compile", net / "net.onnx", "-o", tmp_path / "out", "--backend", "ort", "--dry-run")
    assert done.code == 0, done.err
    assert not (tmp_path / "out").exists()


def test_a_damaged_folder_is_named(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    assert edgec_cli("compile", net / "net.onnx", "-o", tmp_path / "out", "--backend", "ort").code == 0
    (tmp_path / "out" / "manifest.json").write_text("{}")
    done = edgec_cli("run", tmp_path / "out", "--inputs", net / "one.npz")
    assert done.code == 6
    assert "E0401" in done.err


def test_the_library_and_what_folders_are_no_bundles(edgec_cli: Cli, net: Path, tmp_path: Path) -> None:
    words = ("compile", net / "net.onnx", "--backend", "ort")
    few = ("--library", "--quant", "hlq2", "--calib", "none", "--force", "-o", tmp_path / "few", "--json")
    done = edgec_cli(*words, *few)
    assert done.code == 0, done.err
    (layer,) = json.loads(done.out)["quant"]["layers"]
    assert layer["kernels"] == ["LinearBits"]
    inputs = ("--inputs", net / "one.npz")
    assert edgec_cli("compare", tmp_path / "few", "--reference", net / "net.onnx", *inputs).code == 0
    # The instruction set of the library's kernels can be chosen, that of onnxruntime's own cannot.
    run = ("run", *inputs, "--isa", "scalar")
    assert edgec_cli(*run, tmp_path / "few").code == 0
    assert edgec_cli(*words, "-o", tmp_path / "plain").code == 0
    done = edgec_cli(*run, tmp_path / "plain")
    assert done.code == 2
    assert "--library" in done.err
    for command in ("inspect", "verify", "size"):
        done = edgec_cli(command, tmp_path / "few")
        assert done.code == 2
        assert "EDGEC-E0003" in done.err
        assert "a folder of the ort backend" in done.err
    done = edgec_cli("inspect", tmp_path / "few" / "model.onnx", "--json")
    assert json.loads(done.out)["operators"]["edgec::LinearBits"] == 1


@pytest.mark.parametrize(("options", "where"), [
    (("--backend", "native", "--library"), "--library"),
    (("--backend", "ort", "--library", "--target", "wasm32"), "--library")])
def test_a_library_where_none_is_loaded(edgec_cli: Cli, net: Path, tmp_path: Path, options: tuple[str, ...], where: str
                                        ) -> None:
    done = edgec_cli("compile", net / "net.onnx", "-o", tmp_path / "out", *options)
    assert done.code == 2
    assert where in done.err
    assert edgec_cli("check", net / "net.onnx", *options).code == 2


def test_somebody_else_s_manifest_beside_a_model(edgec_cli: Cli, tmp_path: Path) -> None:
    folder = tiny_lm.make(tmp_path / "m", "llama_mha_tied")
    (folder / "model.onnx").write_bytes(b"an export")
    (folder / "manifest.json").write_text('{"name": "an app"}')
    done = edgec_cli("inspect", folder)
    assert done.code == 0, done.err
    (folder / "manifest.json").write_text('{"edgec_version": "0.1.0", "backend": "ort"}')
    assert "a folder of the ort backend" in edgec_cli("inspect", folder).err
