from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.passes.normalize.fold_affine import FoldAffine
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) + 0.01


def graph(body: str, out: str, x: str = "2,4,5,5", **weights: np.ndarray) -> ir.Model:
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    return model(f"g (float[{x}] x{listed}) => (float[{out}] y) {{ {body} }}", **weights)


CONV = {"w": normal(6, 4, 3, 3)}
PADDED = "Conv<pads = [1, 1, 1, 1]>"


@pytest.mark.parametrize("op", ["t = Mul(p, a)", "t = Mul(a, p)", "t = Div(p, a)", "t = Add(p, a)", "t = Sub(p, a)",
                                "t = Sub(a, p)"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,)])
def test_behind_a_padded_convolution(op: str, shape: tuple[int, ...]) -> None:
    before = graph(f"p = {PADDED}(x, w) {op} y = Relu(t)", "2,6,5,5", **CONV, a=normal(*shape))
    after, modified, _ = run(FoldAffine(), before)
    assert modified
    assert ops(after) == {"Conv": 1, "Relu": 1}


@pytest.mark.parametrize("mean", ["GlobalAveragePool(p)", "ReduceMean(p, axes)"])
def test_through_a_mean_and_a_flattening(mean: str) -> None:
    before = graph(f"p = {PADDED}(x, w) q = {mean} r = Flatten(q) s = Mul(r, a) y = Add(s, c)", "2,6", **CONV,
                   a=normal(6), c=normal(6), **({"axes": np.array([2.0, 3.0])} if "axes" in mean else {}))
    if "axes" in mean:
        before.graph.initializers["axes"].const_value = ir.tensor(np.array([2, 3], np.int64))
        before.graph.initializers["axes"].dtype = ir.DataType.INT64
    after, _, _ = run(FoldAffine(), before)
    assert set(ops(after)) == {"Conv", "Flatten", mean.split("(")[0]}


def test_behind_linears() -> None:
    before = graph("p = MatMul(x, w) q = Add(p, b) r = Mul(q, a) s = Add(r, c) y = Relu(s)", "2,3,6", "2,3,4",
                   w=normal(4, 6), b=normal(6), a=normal(6), c=normal(6))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"MatMul": 1, "Add": 1, "Relu": 1}


def test_in_front_of_an_unpadded_convolution() -> None:
    before = graph("p = Sub(x, m) q = Div(p, a) y = Conv(q, w)", "2,6,3,3", **CONV,
                   m=normal(4, 1, 1), a=normal(4, 1, 1))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"Conv": 1}


def test_in_front_of_two_linears() -> None:
    before = graph("p = Mul(x, a) q = MatMul(p, w) r = MatMul(p, v) s = Relu(r) y = Mul(q, s)", "2,3,6", "2,3,4",
                   w=normal(4, 6), v=normal(4, 6), a=normal(4))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"MatMul": 2, "Relu": 1, "Mul": 1}


@pytest.mark.parametrize(("body", "reason"), [
    (f"q = Sub(x, k) y = {PADDED}(q, w)", "pads with zeros"),
    (f"q = Mul(x, k) p = {PADDED}(q, w) r = Relu(q) s = ReduceSum(r) y = Add(p, s)", ""),
    (f"p = {PADDED}(x, w) q = Relu(p) r = Mul(q, a) y = Relu(r)", ""),
    (f"p = {PADDED}(x, w) q = Mul(p, wide) y = Relu(q)", "other axes"),
    (f"p = {PADDED}(x, w) q = Mul(p, a) y = Add(p, q)", "read by others"),
    (f"p = {PADDED}(x, half) q = Mul(p, a) y = Relu(q)", "16 bits"),
    (f"p = {PADDED}(x, w) z = Sub(a, a) q = Div(p, nil) y = Relu(q)", "divides by zero"),
])
def test_declined(body: str, reason: str) -> None:
    weights = {"w": CONV["w"], "half": CONV["w"].astype(np.float16), "a": normal(6, 1, 1), "k": normal(4, 1, 1),
               "wide": normal(6, 5, 5), "nil": np.zeros((6, 1, 1))}
    body = body.replace(" z = Sub(a, a)", "")
    used = {k: w for k, w in weights.items() if f", {k})" in body}
    before = graph(body, "2,6,5,5", **used)
    feeds = {"x": np.abs(normal(2, 4, 5, 5)).astype(np.float32)}
    if "nil" in used:
        from edgec.ir.rules import apply_rules
        from edgec.ir.shapes import infer_shapes
        from edgec.passes.normalize.fold_affine import AffineIntoProducer

        infer_shapes(before)
        report = apply_rules(before, (AffineIntoProducer(),))
        assert not report.modified
    else:
        _, modified, report = run(FoldAffine(), before, feeds=feeds)
        assert not modified
    assert reason in reasons(report)


def test_powers_of_two_keep_16_bits() -> None:
    before = graph(f"p = {PADDED}(x, w) y = Mul(p, a)", "2,6,5,5", w=CONV["w"].astype(np.float16), a=np.array([0.25]))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"Conv": 1}
