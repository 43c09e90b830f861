from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.passes.normalize.fuse_attention import FuseAttention
from tests.passes.harness import model, ops, reasons, run

CONSTANTS = {"c": 0.5, "d": 2.0, "low": -3.4028234e38, "mild": -1e4, "zero": 0.0}
MASKS = {"": "", "m2": ", float[5,7] m", "m4": ", float[2,1,5,7] m", "b2": ", bool[5,7] m", "b4": ", bool[2,3,5,7] m"}


def spelled(body: str, mask: str = "", shapes: str = "float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,6] v",
            ) -> ir.Model:
    listed = "".join(f", float {k}" for k in CONSTANTS)
    return model(f"g ({shapes}{mask}{listed}) => (float[2,3,5,6] y) {{ {body} y = MatMul(p, v) }}", **CONSTANTS)


TURN = "t = Transpose<perm = [0, 1, 3, 2]>(k)"
END = "p = Softmax<axis = -1>(s)"


@pytest.mark.parametrize("body", [
    f"{TURN} s = MatMul(q, t) {END}",
    f"{TURN} r = MatMul(q, t) s = Mul(r, c) {END}",
    f"{TURN} r = MatMul(q, t) s = Div(r, d) p = Softmax<axis = 3>(s)",
    f"{TURN} a = Mul(c, q) s = MatMul(a, t) {END}",
    f"a = Mul(q, c) b = Mul(k, c) t = Transpose<perm = [0, 1, 3, 2]>(b) s = MatMul(a, t) {END}",
    f"{TURN} b = Mul(t, c) a = Div(q, d) s = MatMul(a, b) {END}",
    f"{TURN} s = MatMul(q, t) o = Softmax<axis = -1>(s) n = IsNaN(o) p = Where(n, zero, o)",
])
def test_scales(body: str) -> None:
    after, modified, _ = run(FuseAttention(), spelled(body))
    assert modified
    assert ops(after) == {"Attention": 1}


@pytest.mark.parametrize(("mask", "body"), [
    ("m2", "s = Add(r, m)"), ("m4", "s = Add(m, r)"), ("b2", "s = Where(m, r, low)"), ("b4", "s = Where(m, low, r)"),
])
def test_masks(mask: str, body: str) -> None:
    graph = spelled(f"{TURN} w = MatMul(q, t) r = Mul(w, c) {body} {END}", MASKS[mask])
    after, _, _ = run(FuseAttention(), graph)
    assert ops(after)["Attention"] == 1
    assert "Softmax" not in ops(after)


def test_a_row_that_sees_nothing_keeps_its_average() -> None:
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in
             (("q", (2, 3, 5, 8)), ("k", (2, 3, 7, 8)), ("v", (2, 3, 7, 6)))}
    graph = spelled(f"{TURN} r = MatMul(q, t) s = Where(m, r, low) {END}", MASKS["b2"])
    run(FuseAttention(), graph, feeds={**feeds, "m": np.arange(35).reshape(5, 7) > 8})


def test_keys_transposed_from_tokens_first() -> None:
    shapes = "float[2,3,5,8] q, float[2,7,3,8] k, float[2,3,7,6] v"
    graph = spelled(f"t = Transpose<perm = [0, 2, 3, 1]>(k) r = MatMul(q, t) s = Mul(r, c) {END}", shapes=shapes)
    after, _, _ = run(FuseAttention(), graph)
    assert ops(after) == {"Transpose": 1, "Attention": 1}


@pytest.mark.parametrize(("body", "mask", "shapes", "reason"), [
    (f"{TURN} r = MatMul(q, t) s = Where(m, r, mild) {END}", "b2", "", "shine through"),
    (f"{TURN} s = MatMul(q, t) {END}", "", "float[2,3,5,8] q, float[1,3,7,8] k, float[2,3,7,6] v", "differ"),
    (f"{TURN} s = MatMul(q, t) {END}", "", "float[2,3,5,8] q, float[2,3,7,8] k, float[3,7,6] v", "four"),
])
def test_declined(body: str, mask: str, shapes: str, reason: str) -> None:
    graph = spelled(body, MASKS[mask], **({"shapes": shapes} if shapes else {}))
    _, modified, report = run(FuseAttention(), graph)
    assert not modified
    assert reason in reasons(report)


def test_softmax_over_another_axis_stays() -> None:
    shapes = "float[2,3,5,8] q, float[2,3,5,8] k, float[2,3,5,6] v"
    _, modified, _ = run(FuseAttention(), spelled(f"{TURN} s = MatMul(q, t) p = Softmax<axis = 2>(s)", shapes=shapes))
    assert not modified


def test_scores_that_are_an_output_stay_available() -> None:
    graph = model("g (float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,6] v) => (float[2,3,5,6] y, float[2,3,5,7] p) {"
                  f" {TURN} s = MatMul(q, t) {END} y = MatMul(p, v) }}")
    after, _, _ = run(FuseAttention(), graph)
    assert ops(after) == {"Transpose": 1, "MatMul": 1, "Softmax": 1, "Attention": 1}
