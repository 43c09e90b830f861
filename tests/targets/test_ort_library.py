"""edgec's library for onnxruntime: its operators compute what the formats say, on every instruction set and any number
of threads; whatever does not fit is refused in words; and compiled models need nothing else."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec import env
from edgec.compress.formats import (
    BitsSpec,
    PaletteSpec,
    PaletteTensor,
    Quantized,
    dequantize,
    dequantize_palette,
)
from edgec.compress.low_bit import LowBit, LowBitMatrix
from edgec.errors import EdgecError
from edgec.judge.bundle import open_bundle
from edgec.judge.compare import random_feeds
from edgec.pipeline import CompileOptions, import_model
from edgec.targets import EmitOptions, ort, ort_library, toolchain
from edgec.targets.binary import read_binary
from edgec.targets.devices import device, host
from tests.models import tiny_lm
from tests.models.graphs_for_quantization import small_cnn
from tests.passes.harness import Array
from tests.targets.test_ort import compiled, distance, operators, quantized

SPECS = ("hlq2g128", "hlq3g64", "hlq4g128", "int4g32", "int8g128", "palette4", "palette3r5", "palette8v2")
# Relative L2 error of a product: docs/kernels.md, linear_bits; `many`: rows that are multiplied, not looked up.
BOUND = {"scalar": (1e-5, 1e-5), "avx2": (1e-3, 1e-3), "avx512": (1e-3, 1e-5), "avx512vbmi": (2e-4, 1e-3),
         "amx": (2e-4, 5e-3), "neon": (1e-3, 1e-5), "neondot": (1e-3, 1e-5)}
ISAS = host().isa


@pytest.fixture(scope="module")
def library(require: Callable[[bool, str], None]) -> Path:
    try:
        return toolchain.ort_library(host())
    except EdgecError:
        require(False, "libedgec_ort is not built: make build")
        raise


def random_matrix(text: str, n: int, k: int, seed: int = 0) -> tuple[LowBit, Array]:
    """(a matrix of few bits, its values float64 [n, k])."""
    rng = np.random.default_rng(seed)
    if text.startswith("palette"):
        palette = PaletteSpec.parse(text)
        table = (palette.tables(n), 1 << palette.bits, *((palette.vector,) if palette.vector > 1 else ()))
        lut = rng.standard_normal(table).astype(np.float16)
        codes = rng.integers(0, 1 << palette.bits, (n, palette.indices(k))).astype(np.uint8)
        value = PaletteTensor(palette, codes, lut, k)
        return LowBit(LowBitMatrix(palette, n, k), lambda: value), dequantize_palette(value).astype(np.float64)
    spec = BitsSpec.parse(text)
    planes = () if spec.uniform else (spec.bits,)
    scale = (rng.uniform(0.5, 1.5, (*planes, n, spec.groups(k))) / spec.levels).astype(np.float16)
    offset = rng.standard_normal((n, spec.groups(k))) + (spec.levels / 2 if spec.uniform else 0)
    made = Quantized(spec, rng.integers(0, spec.levels, (n, k)).astype(np.uint8), scale, offset.astype(np.float16))
    return LowBit(LowBitMatrix(spec, n, k), lambda: made), dequantize(made).astype(np.float64)


def node(op_type: str, inputs: list[str], low: LowBit, **changes: Any) -> onnx.NodeProto:
    bits, group, form = low.matrix.ints
    given = {"N": low.matrix.n, "K": low.matrix.k, "bits": bits, "group": group, "form": form, **changes}
    return helper.make_node(op_type, inputs, ["y"], "product", domain="edgec",
                            **{key: value for key, value in given.items() if value is not None})


def graph(made: onnx.NodeProto, inputs: dict[str, tuple[int, list[Any]]], weights: dict[str, Array]) -> bytes:
    ports = [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    body = helper.make_graph([made], "g", ports, out, [numpy_helper.from_array(w, k) for k, w in weights.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edgec", 1)]
    return bytes(helper.make_model(body, opset_imports=opsets, ir_version=10).SerializeToString())


def session(content: bytes, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    ort_library.register(options)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def linear(low: LowBit, bias: Array | None = None, **changes: Any) -> bytes:
    weights = {"w": low.pack(), **({} if bias is None else {"b": bias})}
    return graph(node("LinearBits", ["x", *weights], low, **changes), {"x": (TensorProto.FLOAT, None)}, weights)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", SPECS)
def test_products(text: str, isa: str, library: Path) -> None:
    n, k = 150, 333
    low, dense = random_matrix(text, n, k)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(n).astype(np.float32)
    with env.ISA.override(isa):
        plain, shifted = session(linear(low)), session(linear(low, bias))
    palette = text.startswith("palette")
    for shape in ((k,), (1, k), (2, 3, k), (40, k), (0, k)):
        x = rng.standard_normal(shape).astype(np.float32)
        exact = x.astype(np.float64) @ dense.T
        (found,), (moved,) = plain.run(None, {"x": x}), shifted.run(None, {"x": x})
        assert found.shape == (*shape[:-1], n)
        if found.size:
            bound = 1e-5 if palette else BOUND[isa][int(shape == (40, k))]
            if text == "palette4" and shape in ((k,), (1, k)) and isa in ("avx512vbmi", "amx"):
                bound = 1e-3  # products of one row are looked up
            assert np.linalg.norm(found - exact) <= bound * np.linalg.norm(exact)
            assert np.linalg.norm(moved - exact - bias) <= bound * np.linalg.norm(exact)


@pytest.mark.parametrize("text", SPECS)
def test_lookups(text: str, library: Path) -> None:
    n, k = 70, 100
    low, dense = random_matrix(text, n, k)
    inputs = {"i": (TensorProto.INT64, None)}
    ours = session(graph(node("GatherBits", ["w", "i"], low), inputs, {"w": low.pack()}))
    for index in ([[0, 69, 3], [-1, -70, 5]], 7, []):
        rows = np.array(index, np.int64)
        (found,) = ours.run(None, {"i": rows})
        assert found.shape == (*rows.shape, k)
        np.testing.assert_allclose(found, dense[rows], rtol=1e-6, atol=1e-6)
    for bad in (70, -71):
        with pytest.raises(Exception, match="GatherBits: an index is out of range"):
            ours.run(None, {"i": np.array([bad])})


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_threads_change_no_bit(rows: int, library: Path) -> None:
    """Enough work for several parts; the tiles are the same whoever computes them."""
    low, _ = random_matrix("hlq3g128", 2048, 2048)
    x = np.random.default_rng(2).standard_normal((rows, 2048)).astype(np.float32)
    (one,), (many,) = (session(linear(low), threads).run(None, {"x": x}) for threads in (1, 4))
    assert np.array_equal(one, many)


def test_one_session_of_many_callers(library: Path) -> None:
    low, dense = random_matrix("hlq2g128", 512, 512)
    ours = session(linear(low), 2)
    feeds = [np.random.default_rng(i).standard_normal((i % 5 + 1, 512)).astype(np.float32) for i in range(64)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: ours.run(None, {"x": x})[0], feeds))
    for x, y in zip(feeds, found, strict=True):
        assert np.linalg.norm(y - x @ dense.T) <= 5e-3 * np.linalg.norm(y)
        assert np.array_equal(y, ours.run(None, {"x": x})[0])


_PARAMETER, _SIZE = "a parameter is out of range", "the weight is not as large as its codes and scales are"


@pytest.mark.parametrize(("change", "reason"), [
    ({"bits": 9}, _PARAMETER), ({"group": 48}, _PARAMETER), ({"form": 7}, _PARAMETER), ({"bits": 3}, _SIZE),
    ({"N": 151}, "shapes|bias"), ({"N": -1}, "not possible"), ({"N": 1 << 62}, "not possible"), ({"N": 1 << 38}, _SIZE),
])
def test_what_does_not_fit_is_refused(change: dict[str, int], reason: str, library: Path) -> None:
    """In the kernel's words, before memory for the output is asked for: 2**41 bytes would not be there.

    150 rows lie in three tiles of 64, as 151 would: there the bias tells."""
    low, _ = random_matrix("hlq2g128", 150, 100)
    ours = session(linear(low, np.zeros(150, np.float32), **change))
    with pytest.raises(Exception, match=f"edgec: LinearBits: .*({reason})") as raised:
        ours.run(None, {"x": np.zeros((2, 100), np.float32)})
    told = {"N": 150, "K": 100, "bits": 2, "group": 128, "form": 0, **change}
    assert f"found {', '.join(f'{key} {value}' for key, value in list(told.items())[:4])}" in str(raised.value)
    assert f"a weight of {low.matrix.bytes} bytes, wanted" in str(raised.value)
    assert "Name:'product'" in str(raised.value)


def test_a_table_that_is_too_large_is_refused(library: Path) -> None:
    low, _ = random_matrix("hlq2g128", 64, 100)
    inputs = {"i": (TensorProto.INT64, None)}
    ours = session(graph(node("GatherBits", ["w", "i"], low, K=1 << 38), inputs, {"w": low.pack()}))
    with pytest.raises(Exception, match=f"edgec: GatherBits: {_SIZE}: found N 64, K {1 << 38}"):
        ours.run(None, {"i": np.zeros(2, np.int64)})


def test_wrong_operands_are_refused(library: Path) -> None:
    low, _ = random_matrix("hlq2g128", 150, 100)
    for missing in ("group", "K"):
        with pytest.raises(Exception, match=missing):
            session(linear(low, **{missing: None}))
    ours = session(linear(low))
    for shape, reason in (((), "x has no dimensions"), ((2, 101), "found 101, wanted K = 100"),
                          ((1,) * 8 + (100,), "8 dim")):
        with pytest.raises(Exception, match=reason):
            ours.run(None, {"x": np.zeros(shape, np.float32)})
    cut = graph(node("LinearBits", ["x", "w"], low), {"x": (TensorProto.FLOAT, None)}, {"w": low.pack()[:-64]})
    wanted = f"{_SIZE}: .* {low.matrix.bytes - 64} bytes, wanted {low.matrix.bytes} bytes"
    with pytest.raises(Exception, match=wanted):
        session(cut).run(None, {"x": np.zeros((1, 100), np.float32)})


# -- the interface ---------------------------------------------------------------------------------------------------

GET_API = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
GET_VERSION = ctypes.CFUNCTYPE(ctypes.c_void_p)
CREATE_STATUS = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)


class Api(ctypes.Structure):
    _fields_ = (("create_status", CREATE_STATUS),)


class Base(ctypes.Structure):
    _fields_ = (("get_api", GET_API), ("get_version_string", GET_VERSION))


@pytest.mark.parametrize("version", [
    "1.19.2", "1.33.0", "2.0.0", "", "one", "1", "1.32foo", "1.4294967316.0", " 1.+20", "1.+20", "4294967297.20"])
def test_an_untested_onnxruntime_is_refused_by_name(version: str, library: Path) -> None:
    """By a stand-in that has nothing but the first entry of the table: nothing else may be touched."""
    said: list[str] = []

    @CREATE_STATUS
    def create_status(code: int, message: bytes) -> int:
        said.append(message.decode())
        return 1

    api = Api(create_status)
    asked: list[int] = []

    @GET_API
    def get_api(number: int) -> int:
        asked.append(number)
        return ctypes.addressof(api)

    name = ctypes.create_string_buffer(version.encode())
    base = Base(get_api, GET_VERSION(lambda: ctypes.addressof(name)))
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype, register.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)
    assert register(None, ctypes.addressof(base)) == 1
    (text,) = said
    assert f"found ONNX Runtime {version}, wanted 1.20 to 1.32 (tested: 1.20, 1.26, 1.32)" in text
    assert asked == [1]


def test_an_instruction_set_that_is_none(library: Path) -> None:
    with env.ISA.override("sse9"), pytest.raises(EdgecError, match="sse9") as caught:
        session(linear(random_matrix("hlq2g128", 64, 128)[0]))
    assert (caught.value.code, caught.value.hint) == ("E0007", "unset EDGEC_ISA")


def test_what_the_library_takes_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler for another system, the installed file for this one: before anything is quantized."""
    options = EmitOptions(library=True)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(EdgecError, match="ziglang"):
        ort.check_options(options, device("apple-m2"))
    monkeypatch.setattr(toolchain, "ORT", replace(toolchain.ORT, stem="edgec_nowhere"))
    with pytest.raises(EdgecError, match="edgec_nowhere"):
        ort.check_options(options, host())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it is unloaded (docs/ort_library.md)")
def test_it_stays_loaded(library: Path, tmp_path: Path) -> None:
    """onnxruntime closes it with its last session; each later opening would register, and leak, anew."""
    import _ctypes
    import shutil

    copy = shutil.copyfile(library, tmp_path / library.name)
    _ctypes.dlclose(ctypes.CDLL(str(copy))._handle)
    assert str(copy) in Path("/proc/self/maps").read_text()


def test_it_belongs_to_this_release_and_exports_nothing_else(library: Path) -> None:
    loaded = ctypes.CDLL(str(library)).edgec_ort_version
    loaded.restype = ctypes.c_char_p
    import edgec

    assert loaded() == edgec.__version__.encode()
    shown = {name for name in read_binary(library).exports if not name.startswith("_")}
    assert shown == {"RegisterCustomOps", "edgec_ort_version"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "found"), [
    ("aarch64-linux", ("elf", "aarch64")), ("apple-m2", ("mach-o", "aarch64"))])
def test_cross_builds(name: str, found: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                      require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed")
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    row = device(name)
    folder = tmp_path / "out"
    source = small_cnn()
    layers = quantized(source, "hlq2", tmp_path / "layers")
    artifact = compiled(source, folder, "ort", layers, target=name, library=True)
    assert artifact.library == folder / ("libedgec_ort.dylib" if row.os == "macos" else "libedgec_ort.so")
    binary = read_binary(artifact.library)
    assert (binary.format, binary.arch, binary.kind) == (*found, "shared")
    assert {word for word in binary.exports if not word.startswith("_")} == {"RegisterCustomOps", "edgec_ort_version"}


# -- compiled models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["hlq2", "hlq3", "hlq4", "int4", "int8", "palette4"])
def test_a_net_equals_the_native_one(quant: str, library: Path, tmp_path: Path) -> None:
    source = small_cnn()
    layers = quantized(source, quant, tmp_path / "layers")
    compiled(source, tmp_path / "native", "native", layers)
    artifact = compiled(source, tmp_path / "ort", "ort", layers, library=True)
    assert operators(tmp_path / "ort")["edgec::LinearBits"] == 1
    assert artifact.library == (tmp_path / "ort" / library.name).resolve()
    assert artifact.manifest["library"] == library.name
    assert library.name in artifact.manifest["files"]
    with env.ISA.override("scalar"):
        found, wanted = (answers(tmp_path / name) for name in ("ort", "native"))
    for name, array in wanted.items():
        assert distance(found[name], array) < 1e-4, name
    weights, quant_report = (json.loads((tmp_path / "ort" / "reports" / name).read_text())
                             for name in ("weights.json", "quant.json"))
    (head,) = (w for w in weights["weights"] if w["name"] == "head.weight")
    (told,) = (layer for layer in quant_report["layers"] if layer["name"] == "head.weight")
    assert head["form"].startswith(quant[:3])
    spec = PaletteSpec.parse(head["form"]) if quant.startswith("palette") else BitsSpec.parse(head["form"])
    assert (head["shape"], head["bytes"]) == ([48, 1152], LowBitMatrix(spec, 48, 1152).bytes)
    assert (told["stored"], told["stored_bytes"], told["kernels"]) == (head["form"], head["bytes"], ["LinearBits"])


def test_the_checks_end_where_the_library_begins(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                  ) -> None:
    source = small_cnn()
    layers = quantized(source, "hlq2", tmp_path / "layers")
    with env.CHECK.override(1):
        compiled(source, tmp_path / "ort", "ort", layers, library=True)
    assert "after linear_bits the graph needs edgec's library" in capsys.readouterr().err


def answers(folder: Path) -> dict[str, Array]:
    with open_bundle(folder) as opened, opened.session(threads=1) as run:
        return run.run(random_feeds(opened, 0))


@pytest.fixture(scope="module")
def small_lm(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Path:
    """native and ort folders of a random language model, head and embedding one tensor of few bits."""
    folder = tmp_path_factory.mktemp("lm")
    source = import_model(str(tiny_lm.make(folder / "hf", "qwen3")), CompileOptions())
    layers = quantized(source, "hlq2", folder / "layers")
    compiled(source, folder / "native", "native", layers)
    compiled(source, folder / "ort", "ort", layers, library=True)
    return folder


def test_a_language_model_equals_the_native_one(small_lm: Path) -> None:
    found = operators(small_lm / "ort")
    assert found["edgec::LinearBits"] > 8
    assert found["edgec::GatherBits"] == 1
    with (open_bundle(small_lm / "ort") as ours, open_bundle(small_lm / "native") as native,
          ours.session(threads=2, context=64) as a, native.session(context=64) as b):
        tokens = np.random.default_rng(1).integers(3, 97, 24)
        assert distance(a.score(tokens), b.score(tokens)) < 5e-3
        for token in (7, 11, 5):
            assert distance(a.step([token]), b.step([token])) < 5e-3


def test_genai_is_told_of_the_library(small_lm: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed (edgec[ort])")
    made = genai.Model(str(small_lm / "ort"))
    params = genai.GeneratorParams(made)
    prompt = [5, 9, 23, 41]
    params.set_search_options(max_length=len(prompt) + 12)
    generator = genai.Generator(made, params)
    generator.append_tokens(prompt)
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    with open_bundle(small_lm / "native") as native, native.session() as run:
        wanted = run.generate(prompt, 12)
    assert found[: len(wanted)] == wanted


def test_opening_a_folder_runs_no_code_of_it(small_lm: Path, library: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(small_lm / "ort", tmp_path / "copy")
    (tmp_path / "copy" / library.name).write_bytes(b"no library")
    with open_bundle(tmp_path / "copy") as opened, opened.session(threads=1, context=16) as run:
        assert np.isfinite(run.score([5, 6])).all()


def test_a_model_without_such_weights_needs_no_library(tmp_path: Path) -> None:
    artifact = compiled(small_cnn(), tmp_path / "out", library=True)
    assert artifact.library is None
    assert "library" not in artifact.manifest
    assert any("not needed" in note for note in artifact.notes)


@pytest.mark.parametrize(("backend", "target", "where"), [
    ("native", "host", "--library"), ("coreml", "host", "--library"), ("ort", "wasm32", "--library"),
    ("coreml", "aarch64-linux", "--target")])
def test_options_that_do_not_go_together(backend: str, target: str, where: str, tmp_path: Path) -> None:
    if backend == "coreml":
        pytest.importorskip("coremltools", reason="coremltools is not installed (edgec[coreml])")
    with pytest.raises(EdgecError) as raised:
        compiled(small_cnn(), tmp_path / "out", backend, target=target, library=where == "--library")
    assert (raised.value.code, raised.value.where) == ("E0002", where)

