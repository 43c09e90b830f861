"""LinearBits: which products become LinearBits, with which bytes; test_ort_library.py computes with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.formats import BitsSpec, pack_bits64
from edgec.ir.model import walk
from edgec.ir.ops import DOMAIN, LIBRARY
from edgec.ir.passes import Context
from edgec.passes.compress.quantize import Quantize
from edgec.passes.lower.linear_bits import LinearBits
from edgec.passes.lower.ort_matmul_nbits import OrtMatmulNbits
from edgec.pipeline import run_passes
from edgec.targets import ort, tvm
from tests.compress.random_weights import random_quantized
from tests.passes.harness import model, ops

CAPABLE = Context(capabilities=frozenset((DOMAIN, name) for name in LIBRARY))
RNG = np.random.default_rng(14)
N, K = 70, 100
GEMM = "y = Gemm<transB = 1>(x, w, b)"
MATMUL = "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)"


def linear(spec: BitsSpec, body: str = GEMM, bias: int = N, shift: float = 0) -> tuple[ir.Model, np.ndarray]:
    """(a product with a weight of `spec`, its packed bytes). shift: added to its zero points."""
    q = random_quantized(RNG, spec, N, K)
    q = replace(q, offset=(q.offset + shift).astype(np.float16))
    needed = {"b": np.ones(bias)} if ", b)" in body else {}
    inputs = f"float[5,{K}] x, float[{N},{K}] w" + (f", float[{bias}] b" if needed else "")
    graph = model(f"g ({inputs}) => (float[5,{N}] y) {{ {body} }}", w=np.zeros((N, K)), **needed)
    return run_passes(graph, [Quantize()], Context(quantized={"w": q})).model, pack_bits64(q)


@pytest.mark.parametrize("body", [GEMM, MATMUL])
@pytest.mark.parametrize("spec", [BitsSpec(2), BitsSpec(3, 64), BitsSpec(4, 32, True), BitsSpec(8, 128, True)])
def test_the_weight_is_what_the_native_backend_stores(spec: BitsSpec, body: str) -> None:
    graph, packed = linear(spec, body)
    report = run_passes(graph, [LinearBits()], CAPABLE)
    (node,) = (n for n in walk(report.model) if n.op_type == "LinearBits")
    assert not {"MatMul", "Gemm", "BitPlaneToDense", "DequantizeLinear"} & set(ops(report.model))
    told = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    assert told == {"N": N, "K": K, "bits": spec.bits, "group": spec.group, "form": int(spec.uniform)}
    tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), packed)
    assert len(node.inputs) == (3 if body == GEMM else 2)
    assert not run_passes(report.model, [LinearBits()], CAPABLE).records[0].modified


def test_nothing_changes_for_a_target_without_the_library() -> None:
    graph, _ = linear(BitsSpec(2))
    report = run_passes(graph, [LinearBits()], Context())
    assert not report.records[0].modified


@pytest.mark.parametrize("dims", [[5, None], None])
def test_reports_know_the_weight_where_the_operand_is_unknown(dims: list[None] | None) -> None:
    graph, packed = linear(BitsSpec(2), MATMUL)
    lowered = run_passes(graph, [LinearBits()], CAPABLE).model
    lowered.graph.inputs[0].shape = None if dims is None else ir.Shape(dims)
    for stored in (ort.stored(lowered, {"w.bits64": packed.size}), tvm.stored(lowered)):
        assert [(w.name, list(w.shape), w.bytes) for w in stored] == [("w", [N, K], packed.size)]


@pytest.mark.parametrize(("body", "bias", "reason"), [
    (GEMM, 1, "no vector of one number per row"), ("y = Gemm<transB = 1, alpha = 2.0>(x, w, b)", N, "not x Wᵀ + b")])
def test_other_products_stay(body: str, bias: int, reason: str) -> None:
    graph, _ = linear(BitsSpec(2), body, bias)
    (record,) = run_passes(graph, [LinearBits()], CAPABLE).records
    assert not record.modified
    assert reason in "".join(event.reason for event in record.rules.declined)


def test_scales_beyond_float16_stay() -> None:
    """Codes with float32 scales that float16 would round: those stay for MatMulNBits, exactly."""
    text = (f"g (float[5,64] x, uint4[{N},64] c, float[{N},2] s) => (float[5,{N}] y) {{"
            " w = DequantizeLinear<axis = 1, block_size = 32>(c, s) t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }")
    for step, stays in ((0.1, True), (0.125, False)):
        graph = model(text, c=RNG.integers(0, 16, (N, 64)), s=np.full((N, 2), step))
        (record,) = run_passes(graph, [LinearBits()], CAPABLE).records
        assert record.modified is not stays
        assert ("scales that float16 holds" in "".join(e.reason for e in record.rules.declined)) is stays


@pytest.mark.parametrize(("change", "reason"), [
    ("planes", f"wanted UINT8 [3, {N}, 13]"), ("scale", f"wanted FLOAT16 [1, {N}, 1]"), ("bits", "bits = 9, wanted")])
@pytest.mark.parametrize("made", [LinearBits, OrtMatmulNbits])
def test_weights_that_do_not_fit_their_attributes_stay(
        made: type[LinearBits] | type[OrtMatmulNbits], change: str, reason: str) -> None:
    """A stage that was dumped and edited: what its body broadcasts, a kernel would read as other numbers."""
    graph, _ = linear(BitsSpec(3, 128, True), shift=0.25)  # no whole zero points: planes, no DequantizeLinear
    (node,) = (n for n in walk(graph) if n.op_type == "BitPlaneToDense")
    if change == "bits":
        node.attributes["bits"] = ir.AttrInt64("bits", 9)
    else:
        value = node.inputs[0 if change == "planes" else 1]
        assert value is not None
        assert value.const_value is not None
        whole = value.const_value.numpy()
        value.const_value = ir.tensor(whole[:1] if change == "planes" else whole[:, :1], name=value.name)
    (record,) = run_passes(graph, [made()], CAPABLE).records
    assert not record.modified
    assert reason in "".join(event.reason for event in record.rules.declined)


def test_scales_of_other_blocks_stay() -> None:
    text = (f"g (float[5,64] x, uint4[{N},64] c, float[{N},1] s) => (float[5,{N}] y) {{"
            " w = DequantizeLinear<axis = 1, block_size = 32>(c, s) t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }")
    graph = model(text, c=RNG.integers(0, 16, (N, 64)), s=np.full((N, 1), 0.125))
    (record,) = run_passes(graph, [LinearBits()], CAPABLE).records
    assert not record.modified
