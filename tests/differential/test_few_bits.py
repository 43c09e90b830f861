"""Products with weights in our own formats, of random sizes, against onnxruntime on the graph with their bodies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.compress.formats import BitsSpec, PaletteSpec
from edgec.compress.layers import find_layers
from edgec.ir.execute import Runner
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.passes import Context
from edgec.native.bundle import write_bundle
from edgec.native.lower import build_plan, capabilities, unsupported
from edgec.passes import COMPRESS, LOWER, NORMALIZE
from edgec.pipeline import run_passes
from tests.compress.random_weights import random_palette, random_quantized
from tests.differential import uniform
from tests.differential.compare import instruction_sets, run
from tests.native.test_low_bit_models import BOUNDS, relative
from tests.passes.harness import model

ROWS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 65)


@st.composite
def specs(draw: st.DrawFn) -> BitsSpec | PaletteSpec:
    bits = draw(st.integers(1, 8))
    if draw(st.booleans()):
        return PaletteSpec(bits)
    return BitsSpec(bits, (32, 64, 128)[draw(st.integers(0, 2))], draw(st.booleans()))


def compare_product(folder: Path, spec: BitsSpec | PaletteSpec, rows: int, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((n, k)).astype(np.float32)
    graph = model(f"g (float[M,{k}] x, float[{n},{k}] w) => (float[M,{n}] y) {{ t = Transpose<perm = [1, 0]>(w)"
                  " y = MatMul(x, t) }", w=weight)
    attach_info(graph, ModelInfo(dynamic={"M": (1, max(ROWS))}))
    ctx = Context(capabilities(), unsupported)
    graph = run_passes(graph, NORMALIZE, ctx).model
    (layer,) = find_layers(graph)
    few = random_palette(rng, spec, n, k) if isinstance(spec, PaletteSpec) else random_quantized(rng, spec, n, k)
    ctx = Context(capabilities(), unsupported, quantized={layer.name: few})
    lowered = run_passes(run_passes(graph, COMPRESS, ctx).model, LOWER, ctx).model
    plan = build_plan(lowered)
    assert {c.kernel for c in plan.entries[0].calls} & {"linear_bits", "linear_bits_split"}
    bundle = folder / "model.edgec"
    write_bundle(bundle, plan, tokenizer=None, golden=None, manifest={})
    x = rng.standard_normal((rows, k)).astype(np.float32)
    with Runner(lowered, "test", threads=1) as runner:
        wanted = runner.run({"x": x})["y"]
    for isa in instruction_sets():
        found = run(bundle, isa, {"x": x})["y"]
        assert relative(found, wanted) <= BOUNDS[isa], f"{isa}: {spec}, {rows} rows of {n} x {k}, seed {seed}"
        assert run(bundle, isa, {"x": x}, threads=2)["y"].tobytes() == found.tobytes()


def test_products_with_few_bits_agree(tmp_path: Path) -> None:
    uniform.Uniform.seed = 5

    @settings(max_examples=60, backend=uniform.NAME, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(specs(), st.integers(0, len(ROWS) - 1), st.integers(1, 200), st.integers(1, 40), st.integers(0, 999))
    def one(spec: BitsSpec | PaletteSpec, rows: int, n: int, parts: int, seed: int) -> None:
        compare_product(tmp_path, spec, ROWS[rows], n, 8 * parts, seed)

    one()


def test_another_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, "scalar", 1e-9)
    with pytest.raises(AssertionError, match="scalar"):
        compare_product(tmp_path, BitsSpec(4, 32), 3, 16, 64, 0)
