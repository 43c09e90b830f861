from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.passes.normalize.merge_linear import MergeLinear
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)
T = "Transpose<perm = [1, 0]>"


def graph(body: str, out: str, x: str = "2,3,8", **weights: np.ndarray) -> ir.Model:
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    return model(f"g (float[{x}] x{listed}) => (float[{out}] y) {{ {body} }}", **weights)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def test_chain_with_biases() -> None:
    before = graph(f"s = {T}(w) p = MatMul(x, s) q = Add(p, b) t = {T}(v) r = MatMul(q, t) y = Add(r, c)", "2,3,6",
                   w=normal(20, 8), b=normal(20), v=normal(6, 20), c=normal(6))
    after, modified, _ = run(MergeLinear(), before)
    assert modified
    assert ops(after)["MatMul"] == 1
    assert sum(v.const_value.size for v in after.graph.initializers.values() if v.const_value) == 6 * 8 + 6 + 6


def test_chain_of_gemms() -> None:
    before = graph("p = Gemm<transB = 1>(x, w, b) y = Gemm<transB = 1>(p, v)", "5,6", "5,8",
                   w=normal(9, 8), b=normal(9), v=normal(6, 9))
    after, _, _ = run(MergeLinear(), before)
    assert ops(after) == {"Gemm": 1}


@pytest.mark.parametrize("scale", ["", "behind", "between", "division"])
@pytest.mark.parametrize("bias", [False, True])
def test_lora(scale: str, bias: bool) -> None:
    side = {"": "l = MatMul(d, u)", "behind": "k = MatMul(d, u) l = Mul(f, k)",
            "between": "k = Mul(d, f) l = MatMul(k, u)", "division": "k = MatMul(d, u) l = Div(k, f)"}[scale]
    main = "m = MatMul(x, s) n = Add(m, c)" if bias else "n = MatMul(x, s)"
    weights = {"w": normal(6, 8), "a": normal(2, 8), "b": normal(6, 2), **({"f": np.array(0.25)} if scale else {}),
               **({"c": normal(6)} if bias else {})}
    before = graph(f"s = {T}(w) t = {T}(a) u = {T}(b) {main} d = MatMul(x, t) {side} y = Add(l, n)", "2,3,6", **weights)
    after, _, _ = run(MergeLinear(), before)
    assert ops(after) == {"MatMul": 1, "Transpose": 1, **({"Add": 1} if bias else {})}


def test_two_linears_of_one_input() -> None:
    before = graph("p = Gemm<transB = 1>(x, w, b) q = Gemm<transB = 1>(x, v) y = Add(p, q)", "5,6", "5,8",
                   w=normal(6, 8), b=normal(6), v=normal(6, 8))
    after, _, _ = run(MergeLinear(), before)
    assert ops(after) == {"Gemm": 1}


@pytest.mark.parametrize(("body", "reason"), [
    (f"s = {T}(a) t = {T}(b) p = MatMul(x, s) y = MatMul(p, t)", "would have 48 weights, the two have 28"),
    (f"s = {T}(w) t = {T}(v) p = MatMul(x, s) q = MatMul(p, t) r = Relu(p) z = ReduceSum(r) y = Add(q, z)",
     "read by others"),
    (f"s = {T}(k) p = MatMul(x, s) y = MatMul(p, s)", "shared"),
    (f"s = {T}(w) p = MatMul(x, s) r = Add(p, c) t = {T}(v) q = MatMul(r, t) o = {T}(h) n = MatMul(x, o) y = Add(n, q)",
     "biases"),
])
def test_declined(body: str, reason: str) -> None:
    weights = {"w": normal(20, 8), "v": normal(6, 20), "a": normal(2, 8), "b": normal(6, 2), "k": normal(8, 8),
               "c": normal(20), "h": normal(6, 8)}
    used = {k: w for k, w in weights.items() if f"({k})" in body or f", {k})" in body}
    before = graph(body, "2,3,8" if "(k)" in body else "2,3,6", **used)
    _, _, report = run(MergeLinear(), before)
    assert reason in reasons(report)


def test_shared_weight_stays() -> None:
    before = graph(f"s = {T}(w) t = {T}(a) u = {T}(b) n = MatMul(x, s) d = MatMul(x, t) l = MatMul(d, u) m = Add(l, n)"
                   " e = MatMul(m, s) y = Add(e, m)", "2,3,8", w=normal(8, 8), a=normal(2, 8), b=normal(8, 2))
    _, modified, report = run(MergeLinear(), before)
    assert not modified
    assert "shared" in reasons(report)
