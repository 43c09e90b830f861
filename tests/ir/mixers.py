"""SelectiveScan, CausalConv1d and DynamicDepthwise in float64 loops, and graphs and inputs to compare with them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.ops import OPS, infer_ops
from tests.passes.harness import Array, model

RNG = np.random.default_rng(20261130)


def some(*shape: int, low: float = -1.0, high: float = 1.0) -> Array:
    return RNG.uniform(low, high, shape).astype(np.float32)


def graph(name: str, feeds: dict[str, Array], **attributes: int) -> ir.Model:
    """One node of the operator, its inputs in the order of `feeds`."""
    row = OPS[name]
    ins = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in feeds.items())
    outs = ", ".join(f"float[{','.join(['?'] * r)}] {n}" for n, r in zip(row.outputs, RANKS[name], strict=True))
    listed = f"<{', '.join(f'{k} = {v}' for k, v in attributes.items())}>" if attributes else ""
    text = f"g ({ins}) => ({outs}) {{ {', '.join(row.outputs)} = edgec.{name}{listed}({', '.join(feeds)}) }}"
    made = model(text, domains={"edgec": 1})
    for value in made.graph.outputs:
        value.shape = None
    infer_ops(made)
    return made


RANKS = {"SelectiveScan": (3, 3), "CausalConv1d": (3, 3), "DynamicDepthwise": (4,)}


def scan_inputs(batch: int, length: int, channels: int, states: int, softplus: int = 0) -> dict[str, Array]:
    return {
        "x": some(batch, length, channels),
        "delta": some(batch, length, channels, low=-4.0 if softplus else 0.001, high=2.0 if softplus else 0.2),
        "A": some(channels, states, low=-16.0, high=-0.5), "B": some(batch, length, states),
        "C": some(batch, length, states), "D": some(channels), "state": some(batch, channels, states),
    }


def scan(f: dict[str, Array], softplus: int = 0) -> dict[str, Array]:
    x, delta, a, b, c, d, h = (v.astype(np.float64) for v in f.values())
    delta = np.logaddexp(0, delta) if softplus else delta
    y = np.empty_like(x)
    for t in range(x.shape[1]):
        h = np.exp(delta[:, t, :, None] * a) * h + (delta[:, t] * x[:, t])[..., None] * b[:, t, None]
        y[:, t] = np.einsum("bdn,bn->bd", h, c[:, t]) + d * x[:, t]
    return {"y": y, "last_state": h}


def conv_inputs(batch: int, length: int, channels: int, taps: int) -> dict[str, Array]:
    return {"x": some(batch, length, channels), "weight": some(channels, taps), "bias": some(channels),
            "tail": some(batch, taps - 1, channels)}


def conv(f: dict[str, Array], silu: int = 0) -> dict[str, Array]:
    x, weight, bias, tail = (v.astype(np.float64) for v in f.values())
    rows = np.concatenate([tail, x], 1)
    length, taps = x.shape[1], weight.shape[1]
    y = bias + sum(rows[:, k:k + length] * weight[:, k] for k in range(taps))
    return {"y": y / (1 + np.exp(-y)) if silu else y, "last_tail": rows[:, length:]}


def depthwise_inputs(batch: int, channels: int, groups: int, height: int, width: int, k: int) -> dict[str, Array]:
    return {"x": some(batch, channels, height, width), "w": some(batch, groups, k * k, height, width)}


def depthwise(f: dict[str, Array], kernel_size: int) -> dict[str, Array]:
    x, w = (v.astype(np.float64) for v in f.values())
    k, (height, width) = kernel_size, x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        for i in range(k):
            for j in range(k):
                y[:, c] += padded[:, c, i:i + height, j:j + width] * w[:, c % w.shape[1], k * i + j]
    return {"y": y}


CASES = {
    "SelectiveScan": (scan_inputs, scan, [((1, 1, 1, 1), {}), ((2, 7, 5, 3), {"softplus": 1}),
                                          ((1, 33, 20, 16), {"softplus": 1}), ((3, 4, 17, 16), {"softplus": 0})]),
    "CausalConv1d": (conv_inputs, conv, [((1, 1, 1, 1), {}), ((2, 2, 5, 4), {"silu": 1}), ((2, 9, 17, 4), {}),
                                         ((1, 6, 8, 3), {"silu": 1})]),
    "DynamicDepthwise": (depthwise_inputs, depthwise, [
        ((1, 1, 1, 1, 1, 1), {"kernel_size": 1}), ((2, 8, 1, 3, 5, 3), {"kernel_size": 3}),
        ((1, 24, 3, 4, 2, 3), {"kernel_size": 3}), ((1, 6, 2, 7, 6, 5), {"kernel_size": 5})]),
}
ALL = [pytest.param(name, shape, attributes, id=f"{name}-{'x'.join(map(str, shape))}")
       for name, (_, _, cases) in CASES.items() for shape, attributes in cases]


def close(found: dict[str, Array], wanted: dict[str, Array], tolerance: float = 1e-5) -> None:
    assert list(found) == list(wanted)
    for name, want in wanted.items():
        assert found[name].shape == want.shape, name
        np.testing.assert_allclose(found[name], want, rtol=tolerance, atol=tolerance, err_msg=name)
