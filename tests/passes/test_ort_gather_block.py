from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.formats import BitsSpec, dequantize
from edgec.ir.passes import Context
from edgec.passes.compress.quantize import Quantize
from edgec.passes.lower.ort_gather_block import OrtGatherBlock
from edgec.pipeline import run_passes
from tests.compress.random_weights import random_quantized
from tests.passes.harness import evaluate, model, ops, reasons, run

RNG = np.random.default_rng(12)
ROWS = 11


def lookup(spec: BitsSpec, k: int, axis: int = 0) -> tuple[ir.Model, np.ndarray]:
    q = random_quantized(RNG, spec, ROWS, k)
    graph = model(f"g (int64[2,3] i, float[{ROWS},{k}] w) => (float y) {{ y = Gather<axis = {axis}>(w, i) }}",
                  w=np.zeros((ROWS, k)))
    return run_passes(graph, [Quantize()], Context(quantized={"w": q})).model, dequantize(q)


@pytest.mark.parametrize(("bits", "k"), [(2, 64), (4, 64), (4, 70), (8, 64), (8, 33)])
def test_rows_are_those_of_the_codes(bits: int, k: int) -> None:
    graph, values = lookup(BitsSpec(bits, 32, True), k)
    index = np.array([[0, 10, 3], [7, 7, 1]])
    graph, modified, _ = run(OrtGatherBlock(), graph, feeds={"i": index}, engine="onnxruntime")
    assert modified
    assert set(ops(graph)) == {"com.microsoft::GatherBlockQuantized"}
    assert np.allclose(evaluate(graph, {"i": index}, "onnxruntime")["y"], values[index], rtol=1e-6, atol=1e-6)


def test_what_chooses_columns_stays() -> None:
    graph, _ = lookup(BitsSpec(4, 32, True), 64, axis=1)
    _, modified, rules = run(OrtGatherBlock(), graph, feeds={"i": np.array([[0, 1, 2], [3, 4, 5]])},
                             engine="onnxruntime")
    assert not modified
    assert "does not choose rows" in reasons(rules)


def test_rows_of_half_bytes_stay() -> None:
    graph, _ = lookup(BitsSpec(4, 32, True), 33)
    _, modified, rules = run(OrtGatherBlock(), graph, feeds={"i": np.zeros((2, 3), np.int64)}, engine="onnxruntime")
    assert not modified
    assert "no whole bytes" in reasons(rules)
