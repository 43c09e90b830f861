"""The ort backend: stock onnxruntime runs what it wrote and computes what the native runtime computes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgec import backends
from edgec.env import ISA
from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, attach_info
from edgec.judge import evaluate, execute
from edgec.judge.bundle import open_bundle
from edgec.judge.compare import compare_bundle, random_feeds
from edgec.pipeline import CompileOptions, QuantStep, compile_model, import_model, quantize_model
from edgec.quantization import QuantizeOptions
from edgec.targets import Artifact, ort_kernels
from tests.ir import mixers
from tests.models.graphs_for_quantization import small_cnn
from tests.passes.harness import Array, model

FORMATS = ("fp32", "int4", "int8", "int2", "int3", "hlq2", "palette4")
TOLERANCE = 1e-4  # of the root mean square
NEWER = """
    a = LayerNormalization<axis = -1>(x, s)
    b = Gelu(a)
    c = RMSNormalization<axis = -1>(b, s)
    d = Swish(c)
    q = MatMul(d, w)
    h = Attention<q_num_heads = 2, kv_num_heads = 2, is_causal = 1>(q, d, d)
    r = RotaryEmbedding<num_heads = 2>(h, cos, sin)
    t = Transpose<perm = [0, 2, 1]>(r)
    g = GroupNormalization<num_groups = 4>(t, s, s)
    y = ReduceMax<keepdims = 0>(g, axis)
"""


def named(graph: ir.Model, name: str) -> ir.Model:
    return attach_info(graph, ModelInfo(name=name))


def newer_operators() -> ir.Model:
    rng = np.random.default_rng(2)
    return named(model(
        "g (float[1,5,16] x, float[16] s, float[16,16] w, float[1,5,4] cos, float[1,5,4] sin, int64[1] axis) =>"
        " (float[1,16] y) {" + NEWER + "}",
        s=rng.random(16) + 0.5, w=rng.standard_normal((16, 16)), cos=np.cos(rng.random((1, 5, 4))),
        sin=np.sin(rng.random((1, 5, 4))), axis=[2]), "newer")


def compiled(source: Any, folder: Path, backend: str = "ort", layers: Path | None = None, target: str = "host",
             **emitter: Any) -> Artifact:
    result = compile_model(source, CompileOptions(
        target=target, backend=backend, outdir=folder, emitter=emitter,
        quant=None if layers is None else QuantStep(layers)))
    assert result.artifact is not None
    return result.artifact


def quantized(source: Any, quant: str, folder: Path) -> Path | None:
    if quant == "fp32":
        return None
    quantize_model(source, {}, QuantStep(folder, QuantizeOptions(quant, calib="none", force=True)))
    return folder


def outputs(folder: Path) -> dict[str, Array]:
    """Of random inputs. Native kernels of few bits are off by up to 0.1 % (docs/kernels.md), not the scalar ones."""
    with ISA.override("scalar"), open_bundle(folder) as opened, opened.session(threads=1) as session:
        return session.run(random_feeds(opened, 0))


def distance(found: Array, wanted: Array) -> float:
    """The largest difference in units of the root mean square of the values."""
    assert found.shape == wanted.shape
    rms = float(np.sqrt(np.mean(wanted.astype(np.float64) ** 2)))
    return float(np.max(np.abs(found.astype(np.float64) - wanted)) / rms)


def both_agree(source: Any, quant: str, folder: Path) -> Artifact:
    layers = quantized(source, quant, folder / "layers")
    compiled(source, folder / "native", "native", layers)
    artifact = compiled(source, folder / "ort", "ort", layers)
    found, wanted = outputs(folder / "ort"), outputs(folder / "native")
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert distance(found[name], array) < TOLERANCE, name
    return artifact


def operators(folder: Path) -> Counter[str]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in graph.node)


@pytest.mark.parametrize("quant", FORMATS)
def test_a_convolutional_net_equals_the_native_one(quant: str, tmp_path: Path) -> None:
    artifact = both_agree(small_cnn(), quant, tmp_path)
    found = operators(tmp_path / "ort")
    assert not any(name.startswith("edgec::") for name in found)
    if quant.startswith("int"):
        assert found["com.microsoft::MatMulNBits"] == 1  # the head
        # spatial and point; the latter is too small for a gain in 8 bits and stays in float.
        assert found["DequantizeLinear"] == (1 if quant == "int8" else 2)
        assert artifact.notes == ()
    elif quant != "fp32":
        (note,) = artifact.notes
        assert "become dense when onnxruntime loads the model" in note
        report = json.loads((tmp_path / "ort" / "reports" / "weights.json").read_text())
        assert report["notes"] == [note]


@pytest.mark.parametrize("opset", [17, 20, 21, 23, 24])
def test_opsets(opset: int, tmp_path: Path) -> None:
    source = newer_operators()
    compiled(source, tmp_path / "native", "native")
    compiled(source, tmp_path / "ort", opset=opset)
    proto = onnx.load(tmp_path / "ort" / "model.onnx")
    assert {i.domain: i.version for i in proto.opset_import}[""] == opset
    onnx.checker.check_model(proto)
    kept = {"Attention": 23, "RotaryEmbedding": 23, "RMSNormalization": 23, "Gelu": 20, "GroupNormalization": 21}
    found = operators(tmp_path / "ort")
    for name, since in kept.items():
        # GroupNormalization has no kernel in onnxruntime, whatever the opset.
        assert found[name] == (name != "GroupNormalization" and opset >= since), name
    assert distance(outputs(tmp_path / "ort")["y"], outputs(tmp_path / "native")["y"]) < 1e-5


@pytest.mark.parametrize("opset", [17, 21, 24])
def test_codes_in_opsets(opset: int, tmp_path: Path) -> None:
    source = small_cnn()
    layers = quantized(source, "int4", tmp_path / "layers")
    compiled(source, tmp_path / "native", "native", layers)
    compiled(source, tmp_path / "ort", "ort", layers, opset=opset)
    found = operators(tmp_path / "ort")
    assert found["com.microsoft::MatMulNBits"] == 1
    # Blocks came with opset 21.
    assert found["DequantizeLinear"] == (2 if opset >= 21 else 0)
    for name, array in outputs(tmp_path / "native").items():
        assert distance(outputs(tmp_path / "ort")[name], array) < TOLERANCE


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("name", mixers.CASES)
def test_operators_of_ours_become_their_bodies(name: str, opset: int, tmp_path: Path) -> None:
    """A recurrence is a Scan there, with a graph inside."""
    inputs, compute, cases = mixers.CASES[name]
    sizes, attributes = cases[1]
    feeds = inputs(*sizes)
    compiled(named(mixers.graph(name, feeds, **attributes), name), tmp_path / "ort", opset=opset)
    assert not any(op.startswith("edgec::") for op in operators(tmp_path / "ort"))
    with open_bundle(tmp_path / "ort") as opened, opened.session(threads=1) as session:
        found = session.run(feeds)
    for key, array in compute(feeds, **attributes).items():
        assert distance(found[key], array.astype(np.float32)) < 1e-4


def test_what_an_opset_cannot_say_is_refused_by_name(tmp_path: Path) -> None:
    source = small_cnn()
    layers = quantized(source, "hlq2", tmp_path / "layers")
    with pytest.raises(EdgecError) as raised:
        compiled(source, tmp_path / "ort", "ort", layers, opset=17)
    assert raised.value.code == "E0301"
    assert "head.weight.planes: no BitwiseAnd" in raised.value.found
    assert "--opset 18" in raised.value.hint
    assert not (tmp_path / "ort").exists()


def test_formats_without_a_kernel_above_the_limit(tmp_path: Path) -> None:
    source = small_cnn()
    layers = quantized(source, "palette4", tmp_path / "layers")
    assert layers is not None
    with pytest.raises(EdgecError) as raised:
        compile_model(source, CompileOptions(backend="ort", outdir=tmp_path / "ort", quant=QuantStep(layers),
                                             passes={"ort_unpack.limit": 1000}))
    assert raised.value.code == "E0304"
    assert not (tmp_path / "ort").exists()


@pytest.mark.parametrize(("setting", "value", "where"), [
    ("opset", 16, "--opset"), ("opset", 25, "--opset"), ("kv", "f16", "--kv"), ("arithmetic", "fast", "--arithmetic"),
    ("memory_budget", 1 << 30, "--memory-budget")])
def test_settings_without_effect_are_refused(setting: str, value: Any, where: str, tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as raised:
        compiled(small_cnn(), tmp_path / "ort", **{setting: value})
    assert (raised.value.code, raised.value.where) == ("E0002", where)


def test_an_opset_is_none_of_the_native_backend(tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="--opset"):
        compiled(small_cnn(), tmp_path / "out", "native", opset=21)


def test_an_unknown_backend_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as raised:
        compiled(small_cnn(), tmp_path / "out", "onnx")
    assert raised.value.code == "E0002"
    assert all(row.name in raised.value.hint for row in backends.BACKENDS)


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ort_kernels.importlib.util.find_spec
    monkeypatch.setattr(ort_kernels.importlib.util, "find_spec",
                        lambda name, *rest: None if name == "onnxruntime" else real(name, *rest))
    with pytest.raises(EdgecError) as raised:
        compiled(small_cnn(), tmp_path / "out")
    assert raised.value.code == "E0005"
    assert "edgec[ort]" in raised.value.hint


def test_another_version_is_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_kernels, "TESTED", "1.5")
    artifact = compiled(small_cnn(), tmp_path / "out")
    assert any("tested with 1.5" in note for note in artifact.notes)
    with open_bundle(tmp_path / "out") as opened:
        assert "tested with 1.5" in opened.info.warning


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    source = small_cnn()
    layers = quantized(source, "int4", tmp_path / "layers")
    for name in ("one", "two"):
        compiled(source, tmp_path / name, "ort", layers)
    files = [sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("one", "two")]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    for a, b in zip(*files, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


@pytest.mark.parametrize(("weights", "share"), [("f32", 1.0), ("f16", 0.5), ("bf16", 0.5), ("auto", 1.0)])
def test_storage_of_float_weights(weights: str, share: float, tmp_path: Path) -> None:
    compiled(small_cnn(), tmp_path / "out", weights=weights)
    whole = sum(4 * int(np.prod(v.const_value.shape.numpy())) for name, v in small_cnn().graph.initializers.items()
                if v.const_value is not None and v.const_value.size >= 1024)
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == pytest.approx(share * whole, rel=0.1)


def test_an_operator_that_onnxruntime_lacks(tmp_path: Path) -> None:
    """TopK of 16-bit integers: nothing to spell it with."""
    graph = named(model("g (uint16[9] x, int64[1] k) => (uint16[3] y, int64[3] i) { y, i = TopK(x, k) }", k=[3]), "top")
    with pytest.raises(EdgecError) as raised:
        compiled(graph, tmp_path / "out")
    assert raised.value.code == "E0301"
    assert "TopK" in raised.value.found
    assert not (tmp_path / "out").exists()


def test_weights_of_a_qdq_graph_have_their_own_names(tmp_path: Path) -> None:
    """Names without a dot, and with dots of the user's own."""
    rng = np.random.default_rng(4)
    weights = {name: rng.integers(-100, 100, (16, 64)) for name in ("first", "layer_1_second")}
    body = "".join(f" w{i} = DequantizeLinear<axis = 0>({name}, s{i}) t{i} = Transpose<perm = [1, 0]>(w{i})"
                   f" m{i} = MatMul(x, t{i})" for i, name in enumerate(weights))
    graph = named(model(
        "g (float[2,64] x, int8[16,64] first, int8[16,64] layer_1_second, float[16] s0, float[16] s1)"
        f" => (float[2,16] y) {{{body} y = Add(m0, m1) }}", s0=rng.random(16), s1=rng.random(16), **weights), "qdq")
    graph.graph.initializers["layer_1_second"].name = "layer.1.second"
    compiled(graph, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "reports" / "weights.json").read_text())["weights"]
    assert {w["name"]: (w["form"], w["bytes"]) for w in report} == {
        "first": ("int8", 16 * 64 + 16 * 4), "layer.1.second": ("int8", 16 * 64 + 16 * 4)}


def test_an_output_that_is_constant(tmp_path: Path) -> None:
    body = "y = Add(x, x) z = Constant<value = float[2] {4, 5}>()"
    graph = named(model(f"g (float[3] x) => (float[3] y, float[2] z) {{ {body} }}"), "constant")
    compiled(graph, tmp_path / "out")
    assert list(outputs(tmp_path / "out")["z"]) == [4, 5]


# -- language models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prose(prose_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of our small language model."""
    folder = tmp_path_factory.mktemp("ort") / "prose_lm"
    compiled(str(prose_lm), folder)
    return folder


PROMPT = "Once upon a time, there was a little girl"


def test_a_language_model_keeps_its_past_outside(prose: Path, prose_bundle: Path) -> None:
    session = onnx.load(prose / "model.onnx", load_external_data=False).graph
    names = [v.name for v in session.input]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [v.name for v in session.output][:3] == ["logits", "present.0.key", "present.0.value"]
    assert operators(prose)["Attention"] == 6
    with open_bundle(prose) as ours, open_bundle(prose_bundle) as native:
        tokens = np.random.default_rng(1).integers(2, native.info.vocab_size, 300)
        assert ours.tokenize(PROMPT) == native.tokenize(PROMPT)
        with ours.session(threads=1, context=400) as a, native.session(context=400) as b:
            assert distance(a.score(tokens), b.score(tokens)) < TOLERANCE
            for token in (5, 900, 31):
                assert distance(a.step([token]), b.step([token])) < TOLERANCE
            a.reset()
            b.reset()
            prompt = native.tokenize(PROMPT)
            assert a.generate(prompt, 32, ignore_eos=True) == b.generate(prompt, 32, ignore_eos=True)
            a.score(tokens)
            with pytest.raises(EdgecError, match="E0404"):
                a.score(tokens)


def test_genai_generates_the_same_tokens(prose: Path, prose_bundle: Path, require: Callable[[bool, str], None]) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed (edgec[ort])")
    model_, length = genai.Model(str(prose)), 32
    tokenizer, params = genai.Tokenizer(model_), genai.GeneratorParams(model_)
    with open_bundle(prose_bundle) as native, native.session() as session:
        prompt = native.tokenize(PROMPT)
        wanted = session.generate(prompt, length, ignore_eos=True)
    assert [int(t) for t in tokenizer.encode(PROMPT)] == prompt
    params.set_search_options(max_length=len(prompt) + length)
    generator = genai.Generator(model_, params)
    generator.append_tokens(prompt)
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found == wanted


def test_the_judge_takes_the_folder(prose: Path, prose_lm: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The captain looked at the sea, and the sea looked back at him. " * 8)
    with open_bundle(prose) as opened:
        report = evaluate.text(opened, text, str(prose_lm), window=64, samples=2)
        assert report["agreement"] == 1.0
        ours, theirs = (report["sides"][side]["perplexity"] for side in ("bundle", "reference"))
        assert ours == pytest.approx(theirs, 1e-4)
        found = compare_bundle(opened, str(prose_lm), tokens=24)
        assert found["outputs"]["logits"]["sqnr_db"] > 80
        assert found["greedy"]["equal"] == found["greedy"]["tokens"] == 16
        pieces: list[str] = []
        made = execute.generate(opened, PROMPT, 8, on_text=pieces.append)
        assert "".join(pieces) == PROMPT + made.text
        with pytest.raises(EdgecError, match="--temperature"):
            execute.generate(opened, PROMPT, 8, temperature=1.0)


def test_a_context_beyond_the_models(prose_lm: Path, tmp_path: Path) -> None:
    source = import_model(str(prose_lm), CompileOptions(importer={"check": False}))
    with pytest.raises(EdgecError, match="--ctx"):
        compiled(source, tmp_path / "out", max_context=4096)
    artifact = compiled(source, tmp_path / "out", max_context=64, tokenizer=False)
    assert artifact.manifest["model"]["max_context"] == 64
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["context_length"] == 64
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert any("tokenizer.json" in note for note in artifact.notes)


# -- whole models ----------------------------------------------------------------------------------------------------

WHOLE = ("zoo:mobilenet_v2_0.25@64", "zoo:lsnet_t@32", "zoo:slab_deit_t@32")


@pytest.fixture(scope="module", params=WHOLE)
def whole(request: pytest.FixtureRequest) -> ir.Model:
    return import_model(request.param, CompileOptions())


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["fp32", "int8", "int4", "hlq2", "palette4"])
def test_whole_models_equal_the_native_ones(whole: ir.Model, quant: str, tmp_path: Path) -> None:
    both_agree(whole, quant, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int8", "int4", "hlq2", "palette4"])
def test_quantized_language_models_equal_the_native_ones(quant: str, prose_lm: Path, tmp_path: Path) -> None:
    source = import_model(str(prose_lm), CompileOptions(importer={"check": False}))
    layers = quantized(source, quant, tmp_path / "layers")
    compiled(source, tmp_path / "native", "native", layers)
    compiled(source, tmp_path / "ort", "ort", layers)
    with (ISA.override("scalar"), open_bundle(tmp_path / "ort") as ours,
          open_bundle(tmp_path / "native") as native):
        tokens = np.random.default_rng(1).integers(2, native.info.vocab_size, 40)
        with ours.session(threads=1, context=64) as a, native.session(context=64) as b:
            assert distance(a.score(tokens), b.score(tokens)) < TOLERANCE
            a.reset()
            b.reset()
            assert distance(a.step(tokens), b.step(tokens)) < TOLERANCE
            assert distance(a.step([7]), b.step([7])) < TOLERANCE
