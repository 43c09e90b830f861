from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.model import walk
from edgec.passes.normalize.merge_branches import MergeBranches
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def graph(body: str, out: str = "1,6,8,8", x: str = "1,6,8,8", **weights: np.ndarray) -> ir.Model:
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    return model(f"g (float[{x}] x{listed}) => (float[{out}] y) {{ {body} }}", **weights)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def bn(channels: int) -> dict[str, np.ndarray]:
    return {"g": RNG.random(channels) + 0.5, "b": normal(channels), "m": normal(channels),
            "v": RNG.random(channels) + 0.5}


@pytest.mark.parametrize("group", [1, 2, 6])
def test_rep_vgg(group: int) -> None:
    before = graph(f"s = Conv<pads = [1, 1, 1, 1], group = {group}>(x, w, c) t = Conv<group = {group}>(x, u, d)"
                   " n = BatchNormalization(x, g, b, m, v) p = Add(s, t) y = Add(p, n)",
                   w=normal(6, 6 // group, 3, 3), c=normal(6), u=normal(6, 6 // group, 1, 1), d=normal(6), **bn(6))
    after, modified, _ = run(MergeBranches(), before)
    assert modified
    assert ops(after) == {"Conv": 1}


def test_strided_without_identity() -> None:
    before = graph("s = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w) t = Conv<strides = [2, 2]>(x, u)"
                   " y = Add(t, s)",
                   out="1,4,4,4", w=normal(4, 6, 3, 3), u=normal(4, 6, 1, 1))
    after, _, _ = run(MergeBranches(), before)
    assert ops(after) == {"Conv": 1}


def test_depthwise_kernels_of_three_sizes() -> None:
    before = graph("s = Conv<pads = [3, 3, 3, 3], group = 6>(x, w) t = Conv<pads = [1, 1, 1, 1], group = 6>(x, u)"
                   " p = Conv<pads = [0, 1, 0, 1], group = 6>(x, k) q = Add(p, s) r = Add(q, t) y = Add(r, x)",
                   w=normal(6, 1, 7, 7), u=normal(6, 1, 3, 3), k=normal(6, 1, 1, 3))
    after, _, _ = run(MergeBranches(), before)
    assert ops(after) == {"Conv": 1}
    assert next(walk(after)).attributes["pads"].as_ints() == (3, 3, 3, 3)


def test_one_dimension_and_equal_kernels() -> None:
    before = graph("s = Conv<pads = [1, 1]>(x, w) t = Conv<pads = [1, 1]>(x, u) y = Add(s, t)", x="1,6,9", out="1,4,9",
                   w=normal(4, 6, 3), u=normal(4, 6, 3))
    after, _, _ = run(MergeBranches(), before)
    assert ops(after) == {"Conv": 1}


@pytest.mark.parametrize(("body", "out", "reason"), [
    ("s = Conv<pads = [1, 1, 1, 1]>(x, w) t = Conv(x, u) p = Add(s, t) q = Relu(s) y = Add(p, q)", "1,6,8,8",
     "read by others"),
    ("s = Conv<pads = [0, 0, 2, 2]>(x, w) t = Conv<pads = [1, 1, 1, 1]>(x, k) y = Add(s, t)", "1,6,8,8", "inside"),
    ("s = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, w) y = Add(s, x)", "1,6,8,8", "dilated"),
    ("s = Conv<pads = [1, 1, 1, 1]>(x, w) t = Conv<pads = [1, 1, 1, 1]>(x, w) y = Add(s, t)", "1,6,8,8", "of its own"),
    ("s = Conv<pads = [1, 1, 1, 1]>(x, w) t = Conv<group = 2>(x, h) y = Add(s, t)", "1,6,8,8", "groups differ"),
])
def test_declined(body: str, out: str, reason: str) -> None:
    weights = {"w": normal(6, 6, 3, 3), "u": normal(6, 6, 1, 1), "k": normal(6, 6, 3, 3), "h": normal(6, 3, 1, 1)}
    used = {k: v for k, v in weights.items() if f", {k})" in body}
    before = graph(body, out, **used)
    _, modified, report = run(MergeBranches(), before)
    assert not modified
    assert reason in reasons(report)


def test_another_input_is_no_branch() -> None:
    before = graph("r = Relu(x) s = Conv<pads = [1, 1, 1, 1]>(r, w) y = Add(s, x)", w=normal(6, 6, 3, 3))
    _, modified, report = run(MergeBranches(), before)
    assert not modified
    assert reasons(report) == ""
