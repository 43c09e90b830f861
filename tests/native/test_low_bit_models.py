"""Language models whose weights are all in few bits: the plan in float64, and the real runtime, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgec import env, importers
from edgec.compress.formats import BitsSpec, PaletteSpec, Quantized, dequantize
from edgec.compress.layers import find_layers
from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.info import info_of
from edgec.ir.passes import Context
from edgec.ir.weights import total_bytes
from edgec.native.bundle import write_bundle
from edgec.native.golden import golden_section, left_out
from edgec.native.lower import build_plan, capabilities, unsupported
from edgec.native.plan import Plan
from edgec.native.session import Model, library_path
from edgec.passes import COMPRESS, LOWER, NORMALIZE
from edgec.pipeline import run_passes
from tests.compress.random_weights import Array, round_to_nearest
from tests.models.tiny_lm import make
from tests.native.models import CONTEXT, VOCAB, llama, llama_reference
from tests.native.plan_interpreter import Interpreter

# Relative distance of logits from float32's. A product is off by 0.02 % with tables of 15 bits, 0.1 % with 6+6 and in
# 16-bit integers (many tokens on avx2 and avx512vbmi), and by up to 0.5 % where amx rounds activations to bf16 for many
# tokens; layers of random weights add that up.
BOUNDS = {"scalar": 1e-5, "amx": 2e-2, "avx512vbmi": 2e-3, "avx512": 5e-3, "avx2": 5e-3, "neon": 5e-3, "neondot": 5e-3}
SPECS = [BitsSpec(2, 64), BitsSpec(3, 32), BitsSpec(4, 128, True)]


def quantized(model: ir.Model, spec: BitsSpec) -> tuple[ir.Model, dict[str, Quantized]]:
    """The lowered graph of a normalized one, every layer rounded to `spec`; the tables and the head to 4 bits."""
    layers = {}
    for layer in find_layers(model):
        if not layer.refused:
            wide = BitsSpec(4, spec.group, spec.uniform) if layer.head or layer.table else spec
            layers[layer.name] = round_to_nearest(layer.read(), wide)
    ctx = Context(capabilities(), unsupported, quantized=layers)
    report = run_passes(model, COMPRESS, ctx)
    (quantize,) = (r for r in report.records if r.name == "quantize")
    assert {e.where for e in quantize.rules.fired} == set(layers)
    return run_passes(report.model, LOWER, ctx).model, layers


def imported(folder: Path) -> ir.Model:
    model = importers.load(str(folder), check=False)
    return run_passes(model, NORMALIZE, Context(capabilities(), unsupported)).model


def answers(model: ir.Model, plan: Plan, tokens: Array) -> Array:
    """Logits [n, vocab] of the whole prompt, by onnxruntime on the graph with the operators' bodies."""
    feeds: dict[str, Array] = {"input_ids": tokens[None].astype(np.int64), "past_len": np.array(0, np.int64)}
    for state in plan.states:
        heads, _, width = (d.at({"context": len(tokens)}) for d in state.dims)
        feeds[state.name] = np.zeros((1, heads, len(tokens), width), np.float32)
    with Runner(model, "test") as runner:
        logits: Array = runner.run(feeds)["logits"]
    return logits[0]


def relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


# -- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_a_plan_computes_what_onnxruntime_computes(spec: BitsSpec, tied: bool) -> None:
    lowered, layers = quantized(llama(tied=tied), spec)
    plan = build_plan(lowered, prefill_chunk=16)
    stored = {w.name: w for w in plan.stored()}
    for name, q in layers.items():
        assert stored[name].form == str(q.spec)
    assert stored["embed"].kernels == (("gather_bits", "linear_bits") if tied else ("gather_bits",))
    assert len(plan.weights) == len(stored)
    calls = {c.kernel for e in plan.entries for c in e.calls}
    assert {"linear_bits", "gather_bits"} <= calls
    assert "linear" not in calls
    tokens = np.random.default_rng(5).integers(0, VOCAB, 12).astype(np.int32)
    wanted = llama_reference(lowered, tokens)
    runner = Interpreter(plan, CONTEXT)
    np.testing.assert_allclose(runner.run("score", {"tokens": tokens}, past=0)["logits"], wanted, atol=2e-5)
    again = Interpreter(plan, CONTEXT)
    again.run("prefill", {"tokens": tokens[:-1]}, past=0)
    last = again.run("decode", {"tokens": tokens[-1:]}, past=11)["logits"]
    np.testing.assert_allclose(last, wanted[-1], atol=2e-5)


def test_few_bits_change_the_answers_and_take_less_room() -> None:
    """The twin that would show a plan which ignores the quantization."""
    lowered, _ = quantized(llama(), BitsSpec(2, 64))
    tokens = np.arange(9, dtype=np.int32)
    assert relative(llama_reference(lowered, tokens), llama_reference(llama(), tokens)) > 0.02


def test_the_reference_counts_dense_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered, _ = quantized(llama(), BitsSpec(2, 64))
    monkeypatch.setattr("edgec.native.golden._LARGEST", total_bytes(llama()))
    assert total_bytes(lowered) < total_bytes(llama())
    assert "the reference would hold" in left_out(lowered)
    assert not left_out(llama())


# -- the real runtime ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(require: Callable[[bool, str], None]) -> None:
    try:
        found = library_path().exists()
    except EdgecError:
        found = False
    require(found, "the runtime library is not built")


@pytest.fixture(scope="module")
def sources(prose_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tiny = tmp_path_factory.mktemp("tiny")
    return {"prose_lm": prose_lm, **{name: make(tiny / name, name) for name in ("llama", "llama_mha_tied")}}


def instruction_sets(bundle: Path) -> list[str]:
    """Those of BOUNDS that this CPU has."""
    found = []
    for isa in BOUNDS:
        try:
            with env.ISA.override(isa), Model(bundle):
                found.append(isa)
        except EdgecError as e:
            if "EDGEC_ISA" not in str(e):
                raise
    assert "scalar" in found
    return found


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", ["llama", "llama_mha_tied", "prose_lm"])
def test_the_runtime_computes_what_onnxruntime_computes(
    name: str, spec: BitsSpec, sources: dict[str, Path], tmp_path: Path
) -> None:
    lowered, layers = quantized(imported(sources[name]), spec)
    plan = build_plan(lowered, kv="f32")
    path = tmp_path / "model.edgec"
    write_bundle(path, plan, tokenizer=None, golden=golden_section(lowered, plan), manifest={})
    tokens = np.random.default_rng(9).integers(2, info_of(lowered).vocab_size, 40).astype(np.int32)
    wanted = answers(lowered, plan, tokens)
    assert len(layers) > 14
    for isa in instruction_sets(path):
        with env.ISA.override(isa), Model(path) as model:
            bound = BOUNDS[model.info.isa]
            model.selftest(golden=True)
            with model.session(threads=2) as session:
                assert relative(session.score(tokens), wanted) < bound, isa
                session.reset()
                prefilled = session.step(tokens[:20])
                assert relative(prefilled, wanted[19]) < bound, isa
                # One token at a time and a few at once take other kernels than many.
                for i in range(20, 26):
                    assert relative(session.step(tokens[i : i + 1]), wanted[i]) < bound, isa
                for start, stop in ((26, 28), (28, 33), (33, 40)):
                    assert relative(session.step(tokens[start:stop]), wanted[stop - 1]) < bound, isa
                assert session.memory.scratch == 2 * plan.memory_table().scratch_per_thread


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("spec", [BitsSpec(3, 32), BitsSpec(4, 64, True), BitsSpec(8, 128)], ids=str)
def test_gathered_rows_are_exact(spec: BitsSpec, tmp_path: Path) -> None:
    from tests.passes.harness import model as graph

    n, k = 130, 75
    rng = np.random.default_rng(2)
    q = round_to_nearest(rng.standard_normal((n, k)).astype(np.float32), spec)
    made = graph(f"g (int64[7] i, float[{n},{k}] w) => (float[7,{k}] y) {{ y = Gather(w, i) }}",
                 w=np.zeros((n, k), np.float32))
    plan = build_plan(run_passes(made, COMPRESS, Context(quantized={"w": q})).model)
    write_bundle(tmp_path / "m.edgec", plan, tokenizer=None, golden=None, manifest={})
    index = np.array([0, 129, 64, 63, 5, 5, 128])
    with Model(tmp_path / "m.edgec") as opened, opened.session(threads=1) as session:
        assert np.array_equal(session.run({"i": index})["y"], dequantize(q)[index])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("bits", [2, 4])
def test_a_palette_has_room_for_one_row_and_for_many(bits: int, tmp_path: Path) -> None:
    """One row looks up products, which take room that more rows do not need; the memory table knows. Two products of
    one input have tables each."""
    from edgec.compress.formats import PaletteTensor, dequantize_palette
    from edgec.ir.info import ModelInfo, attach_info
    from tests.passes.harness import model as graph

    rng = np.random.default_rng(bits)
    sizes = {"v": (64, 600), "w": (200, 600)}
    made = graph("g (float[rows,600] x, float[64,600] v, float[200,600] w) => (float[rows,64] y, float[rows,200] z)"
                 " { y = Gemm<transB = 1>(x, v) z = Gemm<transB = 1>(x, w) }",
                 **{name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()})
    attach_info(made, ModelInfo(dynamic={"rows": (1, 8)}))
    spec = PaletteSpec(bits)
    layers = {name: PaletteTensor(spec, rng.integers(0, 1 << bits, size).astype(np.uint8),
                                  rng.standard_normal((1, 1 << bits)).astype(np.float16), size[1])
              for name, size in sizes.items()}
    plan = build_plan(run_passes(made, COMPRESS, Context(quantized=layers)).model)
    assert [call.kernel for call in plan.entries[0].calls] == ["linear_bits_split"]
    path = tmp_path / "m.edgec"
    write_bundle(path, plan, tokenizer=None, golden=None, manifest={})
    for isa in instruction_sets(path):
        with env.ISA.override(isa), Model(path) as opened, opened.session(threads=1) as session:
            for rows in (8, 1, 2, 1, 8):
                x = rng.standard_normal((rows, 600)).astype(np.float32)
                found = session.run({"x": x})
                for name, of in (("y", "v"), ("z", "w")):
                    wanted = x.astype(np.float64) @ dequantize_palette(layers[of]).T
                    assert relative(found[name], wanted) < (2e-3 if rows == 1 else 1e-5), (isa, rows)
            assert session.memory.scratch == plan.memory_table().scratch_per_thread


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("most", [16, 17, 20, 40, 300])
def test_a_session_has_room_for_every_number_of_rows(most: int, tmp_path: Path) -> None:
    """Tables for 16 rows take more room than decoding takes for somewhat more rows."""
    from edgec.ir.info import ModelInfo, attach_info
    from tests.passes.harness import model as graph

    n, k = 64, 512
    w = np.random.default_rng(2).standard_normal((n, k)).astype(np.float32)
    made = graph(f"g (float[rows,{k}] x, float[{n},{k}] w) => (float[rows,{n}] y)"
                 " { y = Gemm<transB = 1>(x, w) }", w=w)
    attach_info(made, ModelInfo(dynamic={"rows": (1, most)}))
    q = round_to_nearest(w, BitsSpec(3, 64))
    plan = build_plan(run_passes(made, COMPRESS, Context(quantized={"w": q})).model)
    write_bundle(tmp_path / "m.edgec", plan, tokenizer=None, golden=None, manifest={})
    with Model(tmp_path / "m.edgec") as opened, opened.session(threads=1) as session:
        for rows in {1, 2, 4, 5, 8, 11, 15, 16, min(17, most), most}:
            x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
            assert relative(session.run({"x": x})["y"], x.astype(np.float64) @ dequantize(q).T) < 1e-2


@pytest.mark.usefixtures("library")
def test_images_through_pointwise_and_other_convolutions(tmp_path: Path) -> None:
    from tests.native.lower_cases import model_of
    from tests.native.models import mobilenet

    case = mobilenet()
    made = run_passes(model_of(case), NORMALIZE, Context(capabilities(), unsupported)).model
    layers: dict[str, Any] = {x.name: round_to_nearest(x.read(), BitsSpec(4, 32)) for x in find_layers(made)
                              if not x.refused}
    ctx = Context(capabilities(), unsupported, quantized=layers)
    lowered = run_passes(run_passes(made, COMPRESS, ctx).model, LOWER, ctx).model
    plan = build_plan(lowered)
    kernels = {w.name: w.kernels for w in plan.stored()}
    assert kernels["stem.weight"] == ("conv2d_bits",)
    assert kernels["a.expand.weight"] == kernels["fc.weight"] == ("linear_bits",)
    assert "dense from" not in plan.text()
    with Runner(lowered, "test") as runner:
        wanted = runner.run(dict(case.feeds))
    found = Interpreter(plan).run("main", case.feeds)
    write_bundle(tmp_path / "m.edgec", plan, tokenizer=None, golden=None, manifest={})
    with Model(tmp_path / "m.edgec") as opened, opened.session(threads=1) as session:
        for name, values in session.run(dict(case.feeds)).items():
            assert relative(found[name], wanted[name]) < 1e-3
            assert relative(values, wanted[name]) < BOUNDS[opened.info.isa]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("spec", [PaletteSpec(4), PaletteSpec(3, 16), PaletteSpec(6, 5, 2)], ids=str)
def test_a_model_of_palettes(spec: PaletteSpec, sources: dict[str, Path], tmp_path: Path) -> None:
    """Every layer keeps its indices and answers as the dense weights do, unless a single row looks up its products."""
    from edgec.compress.formats import PaletteTensor

    layers, rng = {}, np.random.default_rng(6)
    for layer in find_layers(made := imported(sources["llama"])):
        if not layer.refused:
            w = layer.read()
            lut = (0.1 * rng.standard_normal((spec.tables(len(w)), 1 << spec.bits, spec.vector))).astype(np.float16)
            indices = rng.integers(0, 1 << spec.bits, (len(w), spec.indices(w.shape[1]))).astype(np.uint8)
            layers[layer.name] = PaletteTensor(spec, indices, lut if spec.vector > 1 else lut[..., 0], w.shape[1])
    ctx = Context(capabilities(), unsupported, quantized=layers)
    lowered = run_passes(run_passes(made, COMPRESS, ctx).model, LOWER, ctx).model
    plan = build_plan(lowered, kv="f32")
    forms = {w.name: w.form for w in plan.stored()}
    assert {forms[name] for name in layers} == {str(spec)}
    path, tokens = tmp_path / "m.edgec", np.random.default_rng(4).integers(2, 90, 30).astype(np.int32)
    wanted = answers(lowered, plan, tokens)
    write_bundle(path, plan, tokenizer=None, golden=golden_section(lowered, plan), manifest={})
    for isa in instruction_sets(path):
        with env.ISA.override(isa), Model(path) as model:
            model.selftest(golden=True)
            with model.session(threads=2) as session:
                assert relative(session.score(tokens), wanted) < 1e-4, isa
                session.reset()
                for start, stop in ((0, 1), (1, 4), (4, 24), (24, 25)):
                    looked_up = stop - start == 1 and spec == PaletteSpec(4) and isa in ("avx512vbmi", "amx")
                    bound = 4e-3 if looked_up else 1e-4
                    assert relative(session.step(tokens[start:stop]), wanted[stop - 1]) < bound, isa
                assert session.memory.scratch == 2 * plan.memory_table().scratch_per_thread


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("spec", [BitsSpec(8, 32, True), BitsSpec(4, 128, True), BitsSpec(2, 64), PaletteSpec(4)],
                         ids=str)
def test_a_residual_network(spec: BitsSpec | PaletteSpec, tmp_path: Path) -> None:
    """Kernels of 3 x 3 in few bits: the file shrinks by what the format says, and the answers are those of the restored
    weights. The convolutions decode theirs, so nothing rounds the activations."""
    import torch

    from edgec.compress.policy import choose
    from edgec.compress.solvers import quantize_matrix, quantize_palette
    from tests.models.torch_zoo import resnet

    torch.manual_seed(1)
    x = torch.randn(1, 3, 48, 40)
    source = importers.load(resnet(bottleneck=False, blocks=(1, 1), width=64).eval(), example_inputs=(x,), check=False)
    ctx = Context(capabilities(), unsupported)
    made = run_passes(source, NORMALIZE, ctx).model
    copy = made.clone()
    copy.meta.update(made.meta)
    dense = build_plan(run_passes(copy, LOWER, ctx).model)
    layers: dict[str, Any] = {}
    saved = 0
    for choice in choose(find_layers(made), spec)[0]:
        w, wanted_spec = choice.layer.read(), choice.spec
        layers[choice.layer.name] = (quantize_palette(w, wanted_spec) if isinstance(wanted_spec, PaletteSpec)
                                     else quantize_matrix(w, wanted_spec))
        saved += w.nbytes - wanted_spec.bytes(*w.shape)
    ctx = Context(capabilities(), unsupported, quantized=layers)
    lowered = run_passes(run_passes(made, COMPRESS, ctx).model, LOWER, ctx).model
    plan = build_plan(lowered)
    kernels = {w.name: w.kernels for w in plan.stored()}
    assert sum(kernels[name] == ("conv2d_bits",) for name in layers) == 5  # of 2 blocks, one of them with a 1 x 1 skip
    before, after = (sum(w.bytes for w in p.weights) for p in (dense, plan))
    assert after == before - saved
    assert after < before * (spec.bits + 3) / 32
    feeds = {plan.entries[0].inputs[0].name: x.numpy()}
    with Runner(lowered, "test") as runner:
        (wanted,) = runner.run(feeds).values()
    path = tmp_path / "m.edgec"
    write_bundle(path, plan, tokenizer=None, golden=golden_section(lowered, plan), manifest={})
    for isa in instruction_sets(path):
        with env.ISA.override(isa), Model(path) as model, model.session(threads=2) as session:
            model.selftest(golden=True)
            (found,) = session.run(feeds).values()
            assert relative(found, wanted) < 1e-4, isa
            assert session.memory.scratch == 2 * plan.memory_table().scratch_per_thread
