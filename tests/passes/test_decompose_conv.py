"""Transposed convolutions as convolutions: numbers, and how much is convolved."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.ir.passes import Context
from edgec.passes.lower.decompose import Decompose
from edgec.pipeline import run_passes
from tests.passes.harness import model, ops, reasons, run

BASE = frozenset(("", name) for name in (
    "Conv", "Reshape", "Transpose", "Slice", "Concat", "Shape", "Mul", "Squeeze", "Unsqueeze", "Gather"))


def graph(x: str, weight: tuple[int, ...], attributes: str, bias: int = 0) -> object:
    rng = np.random.default_rng(3)
    parts = {"w": rng.standard_normal(weight)} | ({"b": rng.standard_normal(bias)} if bias else {})
    listed = "".join(f", float[{','.join(map(str, a.shape))}] {k}" for k, a in parts.items())
    rank = ",".join("NABCD"[: len(weight)])
    return model(f"g (float[{x}] x{listed}) => (float[{rank}] y) {{ y = ConvTranspose<{attributes}>(x, w"
                 f"{', b' if bias else ''}) }}", **parts)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_one_axis(kernel: int, stride: int, dilation: int) -> None:
    for begin, end in ((0, 0), (1, 0), (1, 2), (2, 3)):
        for extra in range(stride):
            if (6 - 1) * stride + (kernel - 1) * dilation + 1 + extra - begin - end < 1:
                continue
            made = graph("2,4,6", (4, 3, kernel), f"strides = [{stride}], dilations = [{dilation}], pads = [{begin}, "
                         f"{end}], output_padding = [{extra}], kernel_shape = [{kernel}]", bias=3)
            after, modified, _ = run(Decompose(), made, capabilities=BASE, engine="onnxruntime")
            assert modified
            assert ops(after)["Conv"] == 1


@pytest.mark.parametrize(("attributes", "weight", "bias"), [
    ("strides = [2, 2], kernel_shape = [2, 2]", (4, 3, 2, 2), 3),
    ("strides = [2, 1], pads = [1, 0, 0, 1], kernel_shape = [3, 2]", (4, 3, 3, 2), 0),
    ("strides = [2, 3], group = 2, output_padding = [1, 0], kernel_shape = [3, 3]", (4, 5, 3, 3), 10),
    ("strides = [2, 2], group = 4, kernel_shape = [4, 4], pads = [1, 1, 1, 1]", (4, 1, 4, 4), 4),
    ('strides = [2, 2], kernel_shape = [3, 3], auto_pad = "SAME_UPPER"', (4, 3, 3, 3), 0),
    ('strides = [2, 2], kernel_shape = [3, 3], auto_pad = "SAME_LOWER"', (4, 3, 3, 3), 0),
    ('strides = [2, 2], kernel_shape = [3, 3], auto_pad = "VALID"', (4, 3, 3, 3), 0),
    ("strides = [3, 2], kernel_shape = [3, 3], output_shape = [14, 13]", (4, 3, 3, 3), 3),
])
def test_images(attributes: str, weight: tuple[int, ...], bias: int) -> None:
    run(Decompose(), graph("1,4,5,6", weight, attributes, bias), capabilities=BASE, engine="onnxruntime")


def test_sizes_that_vary() -> None:
    made = graph("N,4,H,W", (4, 3, 3, 3), "strides = [2, 2], pads = [1, 1, 1, 1], kernel_shape = [3, 3]", 3)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 5, 3)).astype(np.float32)}
    run(Decompose(), made, capabilities=BASE, feeds=feeds, engine="onnxruntime")


def test_the_usual_doubling_wastes_no_products() -> None:
    after, _, _ = run(Decompose(), graph("1,4,5,6", (4, 3, 2, 2), "strides = [2, 2], kernel_shape = [2, 2]"),
                      capabilities=BASE, engine="onnxruntime")
    (weight,) = (v for v in after.graph.initializers.values() if v.shape is not None and len(v.shape) == 4)
    assert list(weight.shape or ()) == [12, 4, 1, 1]


def test_a_weight_that_is_computed_is_declined() -> None:
    made = model("g (float[1,2,3] x, float[2,2,2] w) => (float[N,M,K] y) { y = ConvTranspose(x, w) }")
    report = run_passes(made, [Decompose()], Context(capabilities=BASE))
    assert "weight is not a constant" in reasons(report.records[0].rules)
