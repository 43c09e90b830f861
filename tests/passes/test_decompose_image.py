"""Pooling, sampling and scattering of images, against onnxruntime on random inputs."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.ir.passes import Context
from edgec.native.lower import capabilities, unsupported
from edgec.passes.lower.decompose import Decompose
from edgec.pipeline import run_passes
from tests.passes.harness import Array, close, evaluate, model, ops, run

RNG = np.random.default_rng(5)


def x(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def check(text: str, gone: str, feeds: dict[str, Array], engine: str = "onnxruntime", tolerance: float = 1e-4,
          **weights: Array) -> None:
    after, modified, _ = run(Decompose(), model(text, **weights), capabilities=capabilities(), feeds=feeds,
                             engine=engine, tolerance=tolerance)
    assert modified
    assert gone not in ops(after)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    text = ("g (float[2,3,5,6] x, float[2,4,7,2] p) => (float[2,3,4,7] y) { y = GridSample<"
            f'mode = "{mode}", padding_mode = "{padding}", align_corners = {align}>(x, p) }}')
    # Far beyond the image, too: it is mirrored as often as it takes.
    check(text, "GridSample", {"x": x(2, 3, 5, 6), "p": 1.6 * x(2, 4, 7, 2)}, tolerance=3e-4)


@pytest.mark.parametrize("attributes", [
    "kernel_shape = [3, 2], p = 1", "kernel_shape = [2, 2], strides = [2, 2], p = 2, ceil_mode = 1",
    "kernel_shape = [3, 3], pads = [1, 0, 1, 2], p = 3", 'kernel_shape = [2, 3], auto_pad = "SAME_UPPER"',
    "kernel_shape = [2, 2], dilations = [2, 1]",
])
def test_lp_pool(attributes: str) -> None:
    check(f"g (float[2,3,7,8] x) => (float[N,C,H,W] y) {{ y = LpPool<{attributes}>(x) }}", "LpPool",
          {"x": x(2, 3, 7, 8)})


@pytest.mark.parametrize("spelling", [
    "MaxPool<kernel_shape = [2, 3, 2], strides = [2, 1, 2], pads = [1, 1, 0, 0, 1, 1]>",
    "AveragePool<kernel_shape = [2, 3, 2], pads = [1, 1, 0, 0, 1, 1]>",
    "AveragePool<kernel_shape = [2, 2, 2], pads = [1, 1, 1, 1, 1, 1], count_include_pad = 1, strides = [2, 2, 1]>",
    "MaxPool<kernel_shape = [2, 2, 2], dilations = [1, 2, 2]>",
    "AveragePool<kernel_shape = [3, 2, 2], ceil_mode = 1, strides = [2, 2, 2]>",
])
def test_pools_over_three_axes(spelling: str) -> None:
    graph, feeds = model(f"g (float[2,3,5,6,7] x) => (float[N,C,D,H,W] y) {{ y = {spelling} (x) }}"), {
        "x": x(2, 3, 5, 6, 7)}
    wanted = evaluate(graph, feeds, "onnxruntime")
    after = run_passes(graph, [Decompose()], Context(capabilities=capabilities(), refuses=unsupported)).model
    pools = [n for n in after.graph if "Pool" in n.op_type]
    assert [len(n.attributes["kernel_shape"].as_ints()) for n in pools] == [2, 2]
    close(evaluate(after, feeds, "onnxruntime"), wanted)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size: int) -> None:
    check(f"g (float[2,7,4,5] x) => (float[2,7,4,5] y) {{ y = LRN<size = {size}, alpha = 0.3, bias = 1.5>(x) }}", "LRN",
          {"x": x(2, 7, 4, 5)})


def test_global_lp_pool() -> None:
    feeds = {"x": x(2, 7, 4, 5)}
    graph = model("g (float[2,7,4,5] x) => (float[2,7,1,1] y) { y = GlobalLpPool<p = 2>(x) }")
    after = run_passes(graph, [Decompose()], Context(capabilities=capabilities())).model
    wanted = np.sqrt((feeds["x"] ** 2).sum(axis=(2, 3), keepdims=True))
    close(evaluate(after, feeds, "onnxruntime"), {"y": wanted})


def test_col2im_adds_what_overlaps() -> None:
    check("g (float[2,12,16] x, int64[2] i, int64[2] b) => (float[N,C,H,W] y) {"
          " y = Col2Im<pads = [1, 0, 1, 0], strides = [1, 1], dilations = [1, 2]>(x, i, b) }", "Col2Im",
          {"x": x(2, 12, 16)}, "reference", i=np.array([4, 6]), b=np.array([3, 2]))


def test_max_unpool() -> None:
    text = ("g (float[1,2,4,6] x) => (float[N,C,H,W] y) { v, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)"
            " y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(v, i) }")
    check(text, "MaxUnpool", {"x": x(1, 2, 4, 6)})


@pytest.mark.parametrize("align", [0, 1])
def test_affine_grid(align: int) -> None:
    check(f"g (float[2,2,3] t, int64[4] s) => (float[N,H,W,D] y) {{ y = AffineGrid<align_corners = {align}>(t, s) }}",
          "AffineGrid", {"t": x(2, 2, 3)}, "reference", s=np.array([2, 3, 4, 5]))


@pytest.mark.parametrize("align", [0, 1])
def test_affine_grid_of_one_line(align: int) -> None:
    check(f"g (float[2,2,3] t, int64[4] s) => (float[N,H,W,D] y) {{ y = AffineGrid<align_corners = {align}>(t, s) }}",
          "AffineGrid", {"t": x(2, 2, 3)}, s=np.array([2, 3, 1, 3]))
