from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.formats import (
    BitsSpec,
    PaletteSpec,
    PaletteTensor,
    Quantized,
    dequantize,
    dequantize_palette,
    planes_of,
)
from edgec.compress.layers import weight_of
from edgec.compress.stored import StoredLayer
from edgec.errors import EdgecError
from edgec.ir.passes import Context
from edgec.native.lower import build_plan
from edgec.passes import COMPRESS
from edgec.passes.compress.quantize import Quantize
from edgec.pipeline import PassReport, run_passes
from tests.compress.random_weights import random_palette, random_quantized
from tests.native.plan_interpreter import Interpreter
from tests.passes.harness import Array, close, evaluate, model, ops, reasons

RNG = np.random.default_rng(5)
N, K = 9, 40


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def compressed(graph: ir.Model, **layers: Any) -> PassReport:
    return run_passes(graph, [Quantize()], Context(quantized=layers))


def linear(n: int = N, k: int = K) -> ir.Model:
    return model(f"g (float[3,{k}] x, float[{n},{k}] w, float[{n}] b) => (float[3,{n}] y)"
                 " { y = Gemm<transB = 1>(x, w, b) }", w=f(n, k), b=f(n))


def product(values: Array, x: Array, graph: ir.Model) -> Array:
    bias = graph.graph.initializers["b"].const_value
    assert bias is not None
    return (x.astype(np.float64) @ values.T + bias.numpy()).astype(np.float32)


CASES = [(BitsSpec(2, 32), "edgec::BitPlaneToDense"), (BitsSpec(4, 64, True), "DequantizeLinear"),
         (BitsSpec(2, 32, True), "DequantizeLinear"), (BitsSpec(8, 128, True), "DequantizeLinear"),
         (PaletteSpec(3, rows=4), "edgec::PaletteToDense"), (PaletteSpec(6, vector=2), "edgec::PaletteToDense")]


def random_layer(spec: BitsSpec | PaletteSpec, k: int) -> tuple[Quantized | PaletteTensor, Array]:
    """A random layer of N rows and its values."""
    if isinstance(spec, BitsSpec):
        q = random_quantized(RNG, spec, N, k)
        return q, dequantize(q)
    p = random_palette(RNG, spec, N, k)
    return p, dequantize_palette(p)


@pytest.mark.parametrize(("spec", "op"), CASES, ids=[str(s) for s, _ in CASES])
def test_a_linear(spec: BitsSpec | PaletteSpec, op: str) -> None:
    q, values = random_layer(spec, K)
    graph = linear()
    report = compressed(graph, w=q)
    assert report.records[0].modified
    assert ops(report.model) == {op: 1, "Gemm": 1}
    assert "w" not in report.model.graph.initializers
    assert op == "DequantizeLinear" or report.model.graph.opset_imports["edgec"] == 1
    x = f(3, K)
    for engine in ("reference", "onnxruntime"):
        close(evaluate(report.model, {"x": x}, engine), {"y": product(values, x, report.model)})


def test_zero_points_between_integers() -> None:
    q = random_quantized(RNG, BitsSpec(4, 32, True), N, K)
    q.offset[:] += np.float16(0.25)
    report = compressed(linear(), w=q)
    assert ops(report.model) == {"edgec::BitPlaneToDense": 1, "Gemm": 1}
    x = f(3, K)
    wanted = {"y": product(dequantize(q), x, report.model)}
    close(evaluate(report.model, {"x": x}), wanted)
    plan = build_plan(report.model)
    assert "int4g32" in [s.form for s in plan.stored()]
    close(Interpreter(plan).run("main", {"x": x}), wanted)


def test_a_tied_table_stays_one() -> None:
    graph = model(f"g (int64[2,3] i, float[{N},{K}] w) => (float[2,3,{N}] y)"
                  " { e = Gather(w, i) t = Transpose<perm = [1, 0]>(w) y = MatMul(e, t) }", w=f(N, K))
    q = random_quantized(RNG, BitsSpec(4, 32), N, K)
    report = compressed(graph, w=q)
    assert ops(report.model) == {"edgec::BitPlaneToDense": 1, "Gather": 1, "Transpose": 1, "MatMul": 1}
    plan = build_plan(report.model)
    (stored,) = plan.stored()
    assert (stored.name, stored.form, stored.kernels) == ("w", "hlq4g32", ("gather_bits", "linear_bits"))
    feeds = {"i": np.array([[0, 3, 8], [1, 1, 2]])}
    close(Interpreter(plan).run("main", feeds), evaluate(report.model, feeds, "onnxruntime"))


@pytest.mark.parametrize(("window", "kernel"), [((1, 1), "linear_bits"), ((2, 2), "conv2d_bits")])
@pytest.mark.parametrize("spec", [BitsSpec(3, 32), BitsSpec(4, 32, True), PaletteSpec(3, 4, 2)], ids=str)
def test_convolutions_get_their_dims_back(window: tuple[int, int], kernel: str, spec: BitsSpec | PaletteSpec) -> None:
    dims = (N, 10, *window)
    graph = model(f"g (float[1,10,5,6] x, float[{','.join(map(str, dims))}] w) => (float[1,{N},A,B] y)"
                  " { y = Conv(x, w) }", w=f(*dims))
    k = 10 * window[0] * window[1]
    q, values = random_layer(spec, k)
    feeds = {"x": f(1, 10, 5, 6)}
    dense = model(f"g (float[1,10,5,6] x, float[{','.join(map(str, dims))}] w) => (float[1,{N},A,B] y)"
                  " { y = Conv(x, w) }", w=weight_of(values, dims))
    report = compressed(graph, w=q)
    found = evaluate(report.model, feeds, "onnxruntime")
    close(found, evaluate(dense, feeds, "onnxruntime"))
    plan = build_plan(report.model)
    assert [c.kernel for c in plan.entries[0].calls if c.kernel != "transpose"] == [kernel]
    close(Interpreter(plan).run("main", feeds), found, 1e-3)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    n, k = 64, 500  # tensors that are large enough not to be looked at for comparisons
    q = random_quantized(RNG, BitsSpec(2, 32), n, k)
    reads: list[str] = []

    def part(name: str, array: Array) -> Any:
        return lambda: reads.append(name) or array

    layer = StoredLayer(q.spec, q.shape, {"planes": part("planes", planes_of(q.codes, 2)),
                                          "scale": part("scale", q.scale), "offset": part("offset", q.offset)})
    report = compressed(linear(n, k), w=layer)
    plan = build_plan(report.model)
    assert "planes" not in reads
    plan.weights[[w.name for w in plan.weights].index("w")].load()
    assert reads.count("planes") == 1


@pytest.mark.parametrize(("body", "reason"), [
    ("y = Gemm<transB = 1>(x, w, b) z = Relu(w)", "also read by Relu"),
    ("y = Gemm<transB = 1>(x, w, b) t = Transpose<perm = [1, 0]>(w) z = Relu(t)", "also read by Transpose"),
    ("t = Transpose<perm = [1, 0]>(w) y = Gemm(x, t, b) z = Relu(x)", "also read by Transpose"),
    ("y = Relu(x) z = Gemm<transB = 1>(x, x, w)", "also read by Gemm"),
    ("y = Relu(x) z = Neg(x)", "nothing reads it"),
])
def test_declines(body: str, reason: str) -> None:
    graph = model(f"g (float[3,{K}] x, float[{N},{K}] w, float[{N}] b) => (float[A,B] y, float[C,D] z) {{ {body} }}",
                  w=f(N, K), b=f(N))
    report = compressed(graph, w=random_quantized(RNG, BitsSpec(2, 32), N, K))
    assert not report.records[0].modified
    assert reason in reasons(report.records[0].rules)


def test_other_types_and_outputs_are_declined() -> None:
    graph = model(f"g (float16[3,{K}] x, float16[{N},{K}] w) => (float16[3,{N}] y) {{ y = Gemm<transB = 1>(x, w) }}",
                  w=f(N, K))
    q = random_quantized(RNG, BitsSpec(2, 32), N, K)
    assert "FLOAT16" in reasons(compressed(graph, w=q).records[0].rules)
    graph = linear()
    graph.graph.outputs.append(graph.graph.initializers["w"])
    assert "an output of the model" in reasons(compressed(graph, w=q).records[0].rules)


@pytest.mark.parametrize(("name", "shape"), [
    ("v", (N, K)), ("w", (N, K + 1)), ("w", (K, N)), ("b", (N, 1)), ("x", (3, K)),
])
def test_results_of_another_model(name: str, shape: tuple[int, int]) -> None:
    q = random_quantized(RNG, BitsSpec(2, 32), *shape)
    with pytest.raises(EdgecError, match="edgec quantize") as caught:
        compressed(linear(), **{name: q})
    assert caught.value.code == "E0002"


def test_parts_of_another_layer_are_found_when_they_are_read() -> None:
    q = random_quantized(RNG, BitsSpec(2, 32), 64, 500)
    parts = {"planes": lambda: planes_of(q.codes, 2)[:, :63], "scale": lambda: q.scale, "offset": lambda: q.offset}
    report = compressed(linear(64, 500), w=StoredLayer(q.spec, q.shape, parts))
    planes = report.model.graph.initializers["w.planes"].const_value
    assert planes is not None
    with pytest.raises(EdgecError, match="planes"):
        planes.numpy()
    with pytest.raises(EdgecError, match="parts"):
        StoredLayer(q.spec, q.shape, {"planes": parts["planes"]})


def test_without_results_nothing_happens() -> None:
    report = run_passes(linear(), COMPRESS, Context())
    assert not report.records[0].modified


def test_the_numeric_check_knows_that_numbers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_CHECK", "1")
    compressed(linear(), w=random_quantized(RNG, BitsSpec(2, 32), N, K))
