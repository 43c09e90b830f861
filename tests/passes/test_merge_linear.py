from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgec.importers import load
from edgec.ir.passes import Context
from edgec.passes import NORMALIZE
from edgec.passes.normalize.eliminate_dead import EliminateDead
from edgec.passes.normalize.merge_linear import MergeLinear
from edgec.pipeline import run_passes
from tests.passes.harness import close, evaluate, model, ops, reasons, run

RNG = np.random.default_rng(0)
T = "Transpose<perm = [1, 0]>"


def graph(body: str, out: str, x: str = "2,3,8", **weights: np.ndarray) -> ir.Model:
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    return model(f"g (float[{x}] x{listed}) => (float[{out}] y) {{ {body} }}", **weights)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def size(after: ir.Model) -> int:
    return sum(v.const_value.size for v in after.graph.initializers.values() if v.const_value)


def test_chain_with_biases() -> None:
    before = graph(f"s = {T}(w) p = MatMul(x, s) q = Add(p, b) t = {T}(v) r = MatMul(q, t) y = Add(r, c)", "2,3,6",
                   w=normal(20, 8), b=normal(20), v=normal(6, 20), c=normal(6))
    after, modified, _ = run(MergeLinear(), before)
    assert modified
    assert ops(after) == {"MatMul": 1, "Add": 1, "Transpose": 1}
    assert size(after) == 6 * 8 + 6


def test_chain_with_biases_of_one_number() -> None:
    before = graph(f"s = {T}(w) p = MatMul(x, s) q = Add(p, b) t = {T}(v) r = MatMul(q, t) y = Add(r, c)", "2,3,6",
                   w=normal(20, 8), b=normal(1), v=normal(6, 20), c=normal(1))
    after, _, _ = run(MergeLinear(), before)
    assert ops(after) == {"MatMul": 1, "Add": 1, "Transpose": 1}


def test_a_bias_that_repeats_the_only_column() -> None:
    before = graph(f"s = {T}(w) p = MatMul(x, s) q = Add(p, b) t = {T}(v) y = MatMul(q, t)", "2,3,1", x="2,3,1",
                   w=normal(1, 1), b=normal(4), v=normal(1, 4))
    assert not run(MergeLinear(), before)[1]


def test_a_convolution_of_a_product_is_no_path_beside_a_product() -> None:
    """Of [1, 8, 8] one works on the last dim and the other on dim 1."""
    before = graph(f"s = {T}(w) t = {T}(v) n = MatMul(x, s) d = MatMul(x, t) l = Conv(d, k) y = Add(n, l)",
                   "1,8,8", x="1,8,8", w=normal(8, 8), v=normal(8, 8), k=normal(8, 8, 1))
    _, modified, report = run(MergeLinear(), before, engine="onnxruntime")
    assert not modified
    assert "of different operators" in reasons(report)


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


def test_two_heads_with_biases() -> None:
    before = graph("p = Gemm<transB = 1>(x, w, b) q = Gemm<transB = 1>(x, v, c) y = Add(p, q)", "5,6", "5,8",
                   w=normal(6, 8), b=normal(6), v=normal(6, 8), c=normal(6))
    after, _, _ = run(MergeLinear(), before)
    assert ops(after) == {"Gemm": 1}


@pytest.mark.parametrize("biases", ["inner", "outer", "both"])
def test_a_side_path_of_two_linears_with_biases(biases: str) -> None:
    inner = "e = MatMul(x, t) d = Add(e, i)" if biases != "outer" else "d = MatMul(x, t)"
    outer = "f = MatMul(d, u) l = Add(o, f)" if biases != "inner" else "l = MatMul(d, u)"
    weights = {**({"i": normal(2)} if biases != "outer" else {}), **({"o": normal(6)} if biases != "inner" else {})}
    before = graph(f"s = {T}(w) t = {T}(a) u = {T}(b) n = MatMul(x, s) {inner} {outer} y = Add(n, l)", "2,3,6",
                   w=normal(6, 8), a=normal(2, 8), b=normal(6, 2), **weights)
    after, _, _ = run(MergeLinear(), before)
    assert ops(after) == {"MatMul": 1, "Transpose": 1, "Add": 1}


@pytest.mark.parametrize(("body", "reason"), [
    (f"s = {T}(a) t = {T}(b) p = MatMul(x, s) y = MatMul(p, t)", "would have 48 weights, the two have 28"),
    (f"s = {T}(w) t = {T}(v) p = MatMul(x, s) q = MatMul(p, t) r = Relu(p) z = ReduceSum(r) y = Add(q, z)",
     "read by others"),
    (f"s = {T}(k) p = MatMul(x, s) y = MatMul(p, s)", "shared"),
    (f"s = {T}(h) p = MatMul(x, s) q = Add(p, d) l = Mul(q, f) o = {T}(g) n = MatMul(x, o) y = Add(n, l)",
     "biases and a scale"),
    # 2 x and then half of the sum: the bias is halved all the same.
    (f"e = Mul(x, k2) s = {T}(h) p = MatMul(e, s) q = Add(p, d) l = Mul(q, f) o = {T}(g) n = MatMul(x, o) y = Add(n,l)",
     "biases and a scale"),
])
def test_declined(body: str, reason: str) -> None:
    weights = {"w": normal(20, 8), "v": normal(6, 20), "a": normal(2, 8), "b": normal(6, 2), "k": normal(8, 8),
               "d": normal(6), "h": normal(6, 8), "g": normal(6, 8), "f": np.array(0.5),
               "k2": np.array(2.0)}
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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_skips_become_one_linear(bias: bool, swapped: bool) -> None:
    """z = (I + W2)((I + W1) x + b1) + b2."""
    w, v = normal(7, 7).astype(np.float32), normal(7, 7).astype(np.float32)
    first, second = ("q = Add(p, b)", "l = Add(c, k)") if bias else ("q = Identity(p)", "l = Identity(k)")
    sums = ("n = Add(q, x)", "y = Add(l, n)") if swapped else ("n = Add(x, q)", "y = Add(n, l)")
    before = graph(f"s = {T}(w) t = {T}(v) p = MatMul(x, s) {first} {sums[0]} k = MatMul(n, t) {second} {sums[1]}",
                   "2,3,7", "2,3,7", w=w, v=v, **({"b": normal(7), "c": normal(7)} if bias else {}))
    run_passes(before, [EliminateDead()], Context())
    after, modified, _ = run(MergeLinear(), before)
    assert modified
    assert ops(after) == {"MatMul": 1, "Transpose": 1, **({"Add": 1} if bias else {})}
    assert size(after) == 49 + 7 * bias
    merged = next(v.const_value for v in after.graph.initializers.values() if len(v.shape or ()) == 2)
    wanted = (np.eye(7) + v.astype(np.float64)) @ (np.eye(7) + w.astype(np.float64))
    np.testing.assert_allclose(merged.numpy(), wanted, rtol=0, atol=3e-7 * np.abs(wanted).max())


def test_skips_of_gemms_and_of_a_convolution() -> None:
    before = graph("p = Gemm<transB = 1>(x, w, b) n = Add(p, x) q = Gemm<transB = 1>(n, v) y = Add(n, q)", "5,8", "5,8",
                   w=normal(8, 8), b=normal(8), v=normal(8, 8))
    assert ops(run(MergeLinear(), before)[0]) == {"Gemm": 1}
    before = graph("p = Conv(x, w, b) n = Add(x, p) q = Conv(n, v, c) y = Add(q, n)", "2,3,5,7", "2,3,5,7",
                   w=normal(3, 3, 1, 1), b=normal(3), v=normal(3, 3, 1, 1), c=normal(3))
    assert ops(run(MergeLinear(), before)[0]) == {"Conv": 1}


def test_a_pixelwise_convolution_behind_another() -> None:
    before = graph("p = Conv<pads = [1, 2, 1, 2], strides = [2, 1], dilations = [1, 2]>(x, w, b) y = Conv(p, v, c)",
                   "2,5,3,7", "2,4,5,7", w=normal(9, 4, 3, 3), b=normal(9), v=normal(5, 9, 1, 1), c=normal(5))
    after, modified, _ = run(MergeLinear(), before)
    assert modified
    assert ops(after) == {"Conv": 1}
    assert size(after) == 5 * 4 * 9 + 5


@pytest.mark.parametrize("scale", ["x", "between", "behind", "division", "none"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("main", ["Conv", "Conv<pads = [1, 1, 1, 1], strides = [2, 1]>"])
def test_lora_of_convolutions(scale: str, rank: int, main: str) -> None:
    x = "z" if scale == "x" else "x"
    first = {"x": "z = Mul(f, x) "}.get(scale, "")
    middle, between = ("k", "k = Mul(d, f) ") if scale == "between" else ("d", "")
    last = {"behind": "u = Conv({}, b) l = Mul(u, f)", "division": "u = Conv({}, b) l = Div(u, f)"}.get(
        scale, "l = Conv({}, b)").format(middle)
    kernel = (3, 3) if "pads" in main else (1, 1)
    out = "2,6,3,7" if "pads" in main else "2,6,5,7"
    before = graph(f"n = {main}(x, w, c) {first}d = {main}({x}, a) {between}{last} y = Add(n, l)", out, "2,8,5,7",
                   w=normal(6, 8, *kernel), c=normal(6), a=normal(rank, 8, *kernel), b=normal(6, rank, 1, 1),
                   **({} if scale == "none" else {"f": np.array([0.3] if rank == 1 else 0.3)}))
    after, modified, report = run(MergeLinear(), before)
    assert modified, reasons(report)
    assert ops(after) == {"Conv": 1}


@pytest.mark.parametrize("main", ["n = Gemm<transB = 1>(x, w, c)", "n = Gemm<transB = 1>(x, w)"])
@pytest.mark.parametrize("side", ["d = Gemm<transB = 1>(x, a) l = Gemm<transB = 1>(d, b)",
                                  "z = Mul(x, f) d = Gemm<transB = 1>(z, a) l = Gemm<transB = 1>(d, b)",
                                  f"t = {T}(a) u = {T}(b) d = MatMul(x, t) k = MatMul(d, u) l = Mul(k, f)"])
def test_lora_of_gemms(main: str, side: str) -> None:
    before = graph(f"{main} {side} y = Add(n, l)", "5,6", "5,8", w=normal(6, 8), a=normal(2, 8), b=normal(6, 2),
                   **({"f": np.array([0.7])} if "f)" in side else {}), **({"c": normal(6)} if "c)" in main else {}))
    assert ops(run(MergeLinear(), before)[0]) == {"Gemm": 1}


def narrow(*shape: int) -> np.ndarray:
    return normal(*shape).astype(np.float16)


@pytest.mark.parametrize(("body", "weights"), [
    (f"s = {T}(w) t = {T}(v) p = MatMul(x, s) y = MatMul(p, t)", {"w": narrow(20, 8), "v": normal(8, 20)}),
    (f"s = {T}(w) t = {T}(v) p = MatMul(x, s) y = MatMul(p, t)", {"w": normal(20, 8), "v": narrow(8, 20)}),
    (f"s = {T}(w) t = {T}(a) u = {T}(b) n = MatMul(x, s) d = MatMul(x, t) l = MatMul(d, u) y = Add(l, n)",
     {"w": narrow(8, 8), "a": normal(2, 8), "b": normal(8, 2)}),
    (f"s = {T}(w) n = MatMul(x, s) y = Add(x, n)", {"w": narrow(8, 8)}),
])
def test_16_bits_that_the_product_would_not_fit(body: str, weights: dict[str, np.ndarray]) -> None:
    _, modified, report = run(MergeLinear(), graph(body, "2,3,8", **weights))
    assert not modified
    assert "fits 16 bits and the product would not" in reasons(report)


def test_16_bits_that_the_product_fits() -> None:
    weights = {k: RNG.integers(-3, 4, s) / 4 for k, s in {"w": (9, 8), "v": (8, 9), "a": (2, 8), "b": (8, 2)}.items()}
    before = graph(f"s = {T}(w) r = {T}(v) t = {T}(a) u = {T}(b) p = MatMul(x, s) m = MatMul(p, r) n = Add(m, x)"
                   " d = MatMul(x, t) l = MatMul(d, u) y = Add(l, n)", "2,3,8", **weights)
    assert ops(run(MergeLinear(), before)[0]) == {"MatMul": 1, "Transpose": 1}


def test_side_of_float32_beside_16_bits_that_vanish() -> None:
    """Only the weight that stays counts."""
    before = graph(f"s = {T}(w) t = {T}(a) u = {T}(b) n = MatMul(x, s) d = MatMul(x, t) l = MatMul(d, u) y = Add(l, n)",
                   "2,3,8", w=normal(8, 8), a=narrow(2, 8), b=narrow(8, 2))
    assert ops(run(MergeLinear(), before)[0]) == {"MatMul": 1, "Transpose": 1}


@pytest.mark.parametrize(("body", "out", "reason"), [
    # A skip over a low-rank pair would need the product of the pair.
    (f"s = {T}(a) t = {T}(b) p = MatMul(x, s) q = MatMul(p, t) y = Add(x, q)", "2,3,8", "would have 64 weights"),
    (f"s = {T}(k) p = MatMul(x, s) q = Add(x, p) y = Mul(p, q)", "2,3,8", "MatMul 'p' is read by others"),
    (f"s = {T}(k) p = MatMul(x, s) q = Add(p, c) r = Add(x, q) y = Mul(p, r)", "2,3,8", "MatMul 'p' is read by others"),
    (f"s = {T}(k) p = MatMul(x, s) q = Add(x, p) r = MatMul(q, s) y = Add(q, r)", "2,3,8", "shared"),
    (f"s = {T}(o) p = MatMul(x, s) y = Add(x, p)", "2,3,8", "broadcasting"),
])
def test_declined_skips(body: str, out: str, reason: str) -> None:
    weights = {"a": normal(2, 8), "b": normal(8, 2), "k": normal(8, 8), "c": normal(8), "o": normal(1, 8)}
    used = {k: w for k, w in weights.items() if f"({k})" in body or f", {k})" in body}
    _, modified, report = run(MergeLinear(), graph(body, out, **used))
    assert not modified
    assert reason in reasons(report)


def test_a_relu_between_two_skips_keeps_them_apart() -> None:
    before = graph(f"s = {T}(w) t = {T}(v) p = MatMul(x, s) n = Add(x, p) r = Relu(n) q = MatMul(r, t) y = Add(r, q)",
                   "2,3,8", w=normal(8, 8), v=normal(8, 8))
    assert ops(run(MergeLinear(), before)[0]) == {"MatMul": 2, "Transpose": 2, "Relu": 1}


@pytest.mark.parametrize(("body", "reason"), [
    ("p = Conv(x, w) y = Conv(p, k)", "reads more than single pixels"),
    ("p = Conv(x, w) y = Conv<pads = [1, 1, 1, 1]>(p, v)", "reads more than single pixels"),
    ("p = Conv(x, w) y = Conv<strides = [2, 2]>(p, v)", "reads more than single pixels"),
    ("p = Conv(x, w) q = Conv(p, v) r = ReduceSum(p) y = Add(q, r)", "read by others"),
    ("n = Conv<pads = [1, 1, 1, 1]>(x, k) d = Conv(x, a) l = Conv(d, b) y = Add(n, l)", "see different pixels"),
    ("n = Conv<pads = [1, 1, 1, 1]>(x, w) d = Conv(x, a) l = Conv<pads = [1, 1, 1, 1]>(d, b) y = Add(n, l)",
     "see different pixels"),
    ("n = Conv(x, w) d = Conv(x, a) l = Conv<pads = [1, 1, 1, 1]>(d, e) y = Add(n, l)", "see different pixels"),
    ("p = Conv<pads = [1, 1, 1, 1]>(x, k) y = Add(x, p)", "broadcasting"),
    ("p = Conv<group = 2>(x, g) y = Conv(p, v)", ""),
    ("p = Conv<auto_pad = \"SAME_UPPER\">(x, w) y = Conv(p, v)", ""),
])
def test_declined_convolutions(body: str, reason: str) -> None:
    weights = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1), "k": normal(4, 4, 3, 3), "a": normal(1, 4, 1, 1),
               "b": normal(4, 1, 1, 1), "g": normal(4, 2, 1, 1), "e": normal(4, 1, 3, 3)}
    used = {k: w for k, w in weights.items() if f", {k})" in body}
    _, modified, report = run(MergeLinear(), graph(body, "2,4,N,M", "2,4,5,7", **used))
    assert not modified
    assert reason in reasons(report)


@pytest.mark.parametrize("factor", [np.full((1, 1, 1, 1), 0.5), np.array([0.5, 0.25, 1, 1, 1, 1]), np.zeros(1)])
def test_factors_that_are_no_factors(factor: np.ndarray) -> None:
    """More dims than the value has, one number per channel, a division by zero."""
    op, out = ("Mul", "1,2,3,6" if factor.ndim == 4 else "2,3,6") if factor.any() else ("Div", "2,3,6")
    before = graph(f"s = {T}(w) t = {T}(a) u = {T}(b) n = MatMul(x, s) d = MatMul(x, t) k = MatMul(d, u)"
                   f" l = {op}(k, f) y = Add(l, n)", out, w=normal(6, 8), a=normal(2, 8), b=normal(6, 2), f=factor)
    with np.errstate(divide="ignore", invalid="ignore"):
        _, modified, _ = run(MergeLinear(), before)
    assert not modified


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("where", ["input", "between", "result", "weight"])
@pytest.mark.parametrize("kind", ["rows", "tokens", "pixels"])
def test_lora_as_torch_exports_it(kind: str, where: str, dynamo: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    scale = 0.3

    class Lora(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

            def linear(inputs: int, outputs: int, bias: bool) -> object:
                if kind == "pixels":
                    return nn.Conv2d(inputs, outputs, 1, bias=bias)
                return nn.Linear(inputs, outputs, bias)

            self.base, self.a, self.b = linear(9, 7, True), linear(9, 2, False), linear(2, 7, False)

        def forward(self, x: object) -> object:
            if where == "weight":
                weight = scale * self.b.weight
                side = nn.functional.conv2d(self.a(x), weight) if kind == "pixels" else nn.functional.linear(
                    self.a(x), weight)
                return self.base(x) + side
            side = self.a(scale * x if where == "input" else x)
            side = self.b(scale * side if where == "between" else side)
            return self.base(x) + (scale * side if where == "result" else side)

    net = Lora().eval()
    x = torch.randn({"rows": (5, 9), "tokens": (2, 5, 9), "pixels": (2, 9, 3, 5)}[kind])
    path = tmp_path / "net.onnx"
    made = torch.onnx.export(net, (x,), None if dynamo else path, dynamo=dynamo, opset_version=18, input_names=["x"])
    if dynamo:
        onnx.save(made.model_proto, path)
    after = run_passes(load(path), NORMALIZE, Context()).model
    found = ops(after)
    assert found["MatMul"] + found["Gemm"] + found["Conv"] == 1
    assert "Mul" not in found
    with torch.no_grad():
        close(evaluate(after, {"x": x.numpy()}), {after.graph.outputs[0].name: net(x).numpy()})
