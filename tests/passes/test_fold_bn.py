from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir import verify
from edgec.ir.model import walk
from edgec.passes.normalize.fold_bn import FoldBN
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def bn(channels: int, prefix: str = "") -> dict[str, np.ndarray]:
    return {f"{prefix}g": RNG.random(channels) + 0.5, f"{prefix}b": RNG.standard_normal(channels),
            f"{prefix}m": RNG.standard_normal(channels), f"{prefix}v": RNG.random(channels) + 0.5}


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def graph(inputs: str, output: str, body: str, channels: int, **weights: np.ndarray) -> ir.Model:
    c = f"float[{channels}]"
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    return model(f"g ({inputs}{listed}, {c} g, {c} b, {c} m, {c} v) => ({output}) {{ {body} }}",
                 **weights, **bn(channels))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("op", "shape", "out"), [
    ("Conv<pads = [1, 1, 1, 1]>", (6, 4, 3, 3), "N,6,5,5"),
    ("Conv<group = 2>", (6, 2, 3, 3), "N,6,3,3"),
    ("ConvTranspose", (4, 6, 2, 2), "N,6,6,6"),
    ("ConvTranspose<group = 2>", (4, 3, 2, 2), "N,6,6,6"),
])
def test_into_convolution(op: str, shape: tuple[int, ...], out: str, bias: bool) -> None:
    weights = {"w": normal(*shape), **({"c": normal(6)} if bias else {})}
    before = graph("float[N,4,5,5] x", f"float[{out}] y",
                   f"t = {op}(x, w{', c' if bias else ''}) y = BatchNormalization(t, g, b, m, v)", 6, **weights)
    # The reference evaluator cannot run a grouped ConvTranspose.
    after, modified, _ = run(FoldBN(), before, engine="onnxruntime")
    assert modified
    assert list(ops(after)) == [op.split("<")[0]]
    assert len(after.graph.initializers) == 2


@pytest.mark.parametrize("attributes", ["", "<transB = 1, alpha = 0.5, beta = 2.0>"])
def test_into_gemm(attributes: str) -> None:
    w = normal(6, 4) if "transB" in attributes else normal(4, 6)
    before = graph("float[N,4] x", "float[N,6] y",
                   f"t = Gemm{attributes}(x, w, c) y = BatchNormalization(t, g, b, m, v)", 6, w=w, c=normal(6))
    after, _, _ = run(FoldBN(), before)
    assert ops(after) == {"Gemm": 1}


def test_into_matmul_with_bias() -> None:
    before = graph("float[N,4] x", "float[N,6] y", "p = MatMul(x, w) t = Add(c, p) y = BatchNormalization(t, g,"
                                                   " b, m, v)",
                   6, w=normal(4, 6), c=normal(6))
    after, _, _ = run(FoldBN(), before)
    assert ops(after) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize(("op", "shape", "out"), [
    ("Conv", (5, 6, 3, 3), "N,5,3,3"), ("Conv<group = 3>", (6, 2, 3, 3), "N,6,3,3"),
])
def test_forward_into_unpadded_convolution(op: str, shape: tuple[int, ...], out: str) -> None:
    before = graph("float[N,6,5,5] x", f"float[{out}] y",
                   f"r = Relu(x) t = BatchNormalization(r, g, b, m, v) y = {op}(t, w)", 6, w=normal(*shape))
    after, _, _ = run(FoldBN(), before)
    assert ops(after) == {"Relu": 1, "Conv": 1}


def test_forward_into_two_gemms() -> None:
    before = graph("float[N,6] x", "float[N,3] y, float[N,2] z",
                   "t = BatchNormalization(x, g, b, m, v) y = Gemm(t, w, c) z = Gemm<transB = 1, alpha = 3.0>(t, u)", 6,
                   w=normal(6, 3), c=normal(3), u=normal(2, 6))
    after, _, _ = run(FoldBN(), before)
    assert ops(after) == {"Gemm": 2}


def test_forward_into_padded_convolution_without_shift() -> None:
    before = graph("float[N,6,5,5] x", "float[N,5,5,5] y",
                   "t = BatchNormalization(x, g, b, m, v) y = Conv<pads = [1, 1, 1, 1]>(t, w)", 6, w=normal(5, 6, 3, 3))
    for name in ("b", "m"):
        before.graph.initializers[name].const_value = ir.tensor(np.zeros(6, np.float32))
    after, _, _ = run(FoldBN(), before)
    assert ops(after) == {"Conv": 1}


@pytest.mark.parametrize(("body", "out", "extra", "reason"), [
    ("t = BatchNormalization(x, g, b, m, v) y = Conv<pads = [1, 1, 1, 1]>(t, w)", "float[N,6,5,5] y", {}, "pads"),
    ("t = Conv<pads = [1, 1, 1, 1]>(x, w) q = Relu(t) s = BatchNormalization(t, g, b, m, v) y = Add(s, q)",
     "float[N,6,5,5] y", {}, "read by others"),
    ("y = Conv<pads = [1, 1, 1, 1]>(x, w) z = BatchNormalization(y, g, b, m, v)",
     "float[N,6,5,5] y, float[N,6,5,5] z", {}, "read by others"),
    ("t = Conv<pads = [1, 1, 1, 1]>(x, w) q = BatchNormalization(t, g, b, m, v) y = Conv<pads = [1, 1, 1, 1]>(q, w)",
     "float[N,6,5,5] y", {}, "shared"),
    ("t = MatMul(x, u) y = BatchNormalization(t, g, b, m, v)", "float[N,6,5,3] y", {"u": (5, 3)}, "not a matrix"),
])
def test_declined(body: str, out: str, extra: dict[str, tuple[int, ...]], reason: str) -> None:
    weights = {"w": normal(6, 6, 3, 3), **{k: normal(*s) for k, s in extra.items()}}
    before = graph("float[N,6,5,5] x", out, body, 6, **weights)
    after, modified, report = run(FoldBN(), before)
    assert not modified
    assert ops(after)["BatchNormalization"] == 1
    assert reason in reasons(report)
    assert verify.unfolded_batch_norms(after) == [], "the specification asks only for what the pass does"


@pytest.mark.parametrize(("w", "c", "out"), [((6, 6), (1, 6, 6), "1,6,6"), ((6, 1), (6,), "6,6")])
def test_a_bias_that_changes_the_channels(w: tuple[int, ...], c: tuple[int, ...], out: str) -> None:
    """The sum has a dim more, so that its channels are rows; or it repeats the only channel of the product."""
    before = graph("float[6,6] x", f"float[{out}] y", "p = MatMul(x, w) t = Add(p, c)"
                   " y = BatchNormalization(t, g, b, m, v)", 6, w=normal(*w), c=normal(*c))
    _, modified, _ = run(FoldBN(), before, engine="onnxruntime")
    assert not modified


def test_runtime_parameters_are_declined() -> None:
    before = model("g (float[N,6,5,5] x, float[6,6,3,3] w, float[6] g, float[6] b, float[6] m, float[6] u) =>"
                   " (float[N,6,3,3] y) { v = Exp(u) t = Conv(x, w) y = BatchNormalization(t, g, b, m, v) }",
                   w=normal(6, 6, 3, 3))
    _, modified, report = run(FoldBN(), before)
    assert not modified
    assert "not constants" in reasons(report)


def test_without_a_neighbour_it_stays() -> None:
    before = graph("float[N,6] x", "float[N,6] y", "r = Relu(x) y = BatchNormalization(r, g, b, m, v)", 6)
    after, modified, _ = run(FoldBN(), before)
    assert not modified
    assert ops(after)["BatchNormalization"] == 1


def test_a_chain_folds_into_one() -> None:
    before = graph("float[N,4,5,5] x", "float[N,6,3,3] y",
                   "t = Conv(x, w) u = BatchNormalization(t, g, b, m, v) y = BatchNormalization(u, g, b, m, v)", 6,
                   w=normal(6, 4, 3, 3))
    after, _, _ = run(FoldBN(), before)
    assert ops(after) == {"Conv": 1}


def test_module_path_of_the_convolution_is_kept() -> None:
    before = graph("float[N,4,5,5] x", "float[N,6,3,3] y", "t = Conv(x, w) y = BatchNormalization(t, g, b, m, v)", 6,
                   w=normal(6, 4, 3, 3))
    next(iter(before.graph)).metadata_props["namespace"] = "features.0.conv"
    after, _, _ = run(FoldBN(), before)
    assert next(walk(after)).metadata_props["namespace"] == "features.0.conv"


@pytest.mark.parametrize(("skip", "eta"), [
    ("k = Mul(t, e) y = Add(n, k)", 0.7), ("k = Mul(e, t) y = Add(k, n)", -0.3), ("y = Add(n, t)", None),
    ("y = Add(t, n)", None),
])
def test_rep_bn_behind_a_convolution(skip: str, eta: float | None) -> None:
    """SLAB: BN(x) + eta x. What eta does to the convolution's bias must not be lost."""
    body = f"t = Conv(x, w, c) n = BatchNormalization(t, g, b, m, v) {skip}"
    before = graph("float[N,4,5,5] x", "float[N,6,3,3] y", body, 6, w=normal(6, 4, 3, 3), c=normal(6),
                   **({} if eta is None else {"e": np.array([eta])}))
    after, modified, _ = run(FoldBN(), before)
    assert modified
    assert ops(after) == {"Conv": 1}


def test_rep_bn_in_front_of_a_linear() -> None:
    before = graph("float[N,6] x", "float[N,3] y", "n = BatchNormalization(x, g, b, m, v) k = Mul(e, x) s = Add(n, k)"
                   " y = Gemm(s, w)", 6, w=normal(6, 3), e=np.array([0.7]))
    assert ops(run(FoldBN(), before)[0]) == {"Gemm": 1}


@pytest.mark.parametrize(("body", "reason"), [
    ("k = Mul(x, e) y = Add(n, k) z = Relu(n)", "read by others"),
    ("k = Mul(x, o) y = Add(n, k) z = Relu(x)", ""),
    ("r = Relu(x) k = Mul(r, e) y = Add(n, k) z = Relu(r)", ""),
])
def test_what_is_no_rep_bn(body: str, reason: str) -> None:
    """A norm that others read, a scale per channel, a skip of something else."""
    weights = {"e": np.array([0.7]), "o": normal(6)}
    before = graph("float[5,6] x", "float[5,6] y, float[5,6] z", f"n = BatchNormalization(x, g, b, m, v) {body}", 6,
                   **{k: w for k, w in weights.items() if f", {k})" in body})
    _, modified, report = run(FoldBN(), before)
    assert not modified
    assert reason in reasons(report)


def faded(lam: float, epsilon: float = 1e-6) -> ir.Model:
    """PRepBN with its lambda as a constant."""
    return graph("float[N,5,6] x", "float[N,5,3] y", f"l = LayerNormalization<axis = -1, epsilon = {epsilon}>(x, h)"
                 " q = Mul(l, a) t = Transpose<perm = [0, 2, 1]>(x) n = BatchNormalization(t, g, b, m, v)"
                 " k = Mul(t, e) s = Add(n, k) u = Transpose<perm = [0, 2, 1]>(s) r = Add(q, u) y = MatMul(r, w)", 6,
                 h=normal(6), a=np.array([lam]), e=np.array([0.4]), w=normal(6, 3))


def test_a_norm_that_has_faded_out_is_dropped() -> None:
    after, modified, _ = run(FoldBN(), faded(0.0))
    assert modified
    assert ops(after) == {"Transpose": 2, "BatchNormalization": 1, "MatMul": 1}


def test_a_norm_that_is_still_there_stays() -> None:
    assert ops(run(FoldBN(), faded(0.01))[0])["LayerNormalization"] == 1
    after, _, report = run(FoldBN(), faded(0.0, epsilon=0.0))
    assert ops(after)["LayerNormalization"] == 1
    assert "divides by zero" in reasons(report)
