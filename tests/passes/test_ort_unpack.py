from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.formats import BitsSpec, PaletteSpec
from edgec.errors import EdgecError
from edgec.ir.info import info_of
from edgec.ir.passes import Context
from edgec.passes.compress.quantize import Quantize
from edgec.passes.lower.ort_unpack import OPTION, OrtUnpack
from edgec.pipeline import run_passes
from tests.compress.random_weights import random_palette, random_quantized
from tests.passes.harness import model, ops

RNG = np.random.default_rng(13)


def linear(spec: BitsSpec | PaletteSpec) -> ir.Model:
    made = random_quantized(RNG, spec, 8, 64) if isinstance(spec, BitsSpec) else random_palette(RNG, spec, 8, 64)
    graph = model("g (float[3,64] x, float[8,64] w, float[8] b) => (float[3,8] y) { y = Gemm<transB = 1>(x, w, b) }",
                  w=np.zeros((8, 64)), b=np.zeros(8))
    return run_passes(graph, [Quantize()], Context(quantized={"w": made})).model


@pytest.mark.parametrize(("spec", "kind"), [(BitsSpec(2, 32), "BitPlane"), (PaletteSpec(4), "Palette")])
def test_what_becomes_dense_is_said(spec: BitsSpec | PaletteSpec, kind: str) -> None:
    graph = linear(spec)
    before = ops(graph)
    report = run_passes(graph, [OrtUnpack(), OrtUnpack()], Context())
    assert not any(record.modified for record in report.records)
    assert ops(report.model) == before
    (note,) = info_of(report.model).notes  # once, although it ran twice
    assert note.startswith(f"1 weights ({kind}) become dense")


def test_above_the_limit_it_is_refused_with_what_to_do() -> None:
    graph = linear(BitsSpec(2, 32))
    run_passes(graph, [OrtUnpack()], Context(options={OPTION: 8 * 64 * 4}))
    with pytest.raises(EdgecError) as raised:
        run_passes(graph, [OrtUnpack()], Context(options={OPTION: 8 * 64 * 4 - 1}))
    assert raised.value.code == "E0304"
    assert "int4" in raised.value.hint
    assert "--backend native" in raised.value.hint


def test_uniform_codes_are_not_unpacked() -> None:
    report = run_passes(linear(BitsSpec(4, 32, True)), [OrtUnpack()], Context(options={OPTION: 0}))
    assert info_of(report.model).notes == ()
