from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from edgec.importers import load
from edgec.ir.passes import Context
from edgec.passes import NORMALIZE
from edgec.passes.normalize.fuse_rotary import FuseRotary
from edgec.pipeline import run_passes
from tests.passes.harness import Array, model, ops, reasons, run

RNG = np.random.default_rng(0)
HALF = RNG.standard_normal((9, 3)).astype(np.float32)
SLICES = "lo = Slice(x, zero, three, last) hi = Slice(x, three, far, last)"
SPLITS = ["lo, hi = Split<axis = 3>(x, sizes)", "lo, hi = Split<axis = -1, num_outputs = 2>(x)"]
TURN = "no = Neg(hi) r = Concat<axis = -1>(no, lo)"
END = "p = Mul(x, c) q = Mul(r, s) y = Add(p, q)"
COMPUTED = ("d = Concat<axis = 2>(f, f) k = Cos(d) i = Sin(d) kk = Mul(k, scale) ii = Mul(scale, i)"
            " c = Unsqueeze(kk, one) s = Unsqueeze(ii, one)")
GATHERED = "k = Gather(ct, at) i = Gather(st, at) c = Unsqueeze(k, one) s = Unsqueeze(i, one)"


def spelled(body: str, extra: str = "", tables: Mapping[str, npt.ArrayLike] | None = None) -> ir.Model:
    whole = np.concatenate([HALF, HALF], 1)
    given: dict[str, Any] = {"ct": whole, "st": whole ** 2, **(tables or {})}
    shapes = "".join(f", float{list(np.shape(v))} {k}" for k, v in given.items())
    return model(f"g (float[2,5,7,6] x{extra}{shapes}, float scale, int64[1] zero, int64[1] one, int64[1] three,"
                 f" int64[1] far, int64[1] last, int64[2] sizes) => (float[2,5,7,6] y) {{ {body} }}",
                 scale=1.5, zero=[0], one=[1], three=[3], far=[2**63 - 1], last=[-1], sizes=[3, 3], **given)


@pytest.mark.parametrize("halves", [SLICES, *SPLITS])
@pytest.mark.parametrize("end", [END, "p = Mul(c, x) q = Mul(s, r) y = Add(q, p)"])
@pytest.mark.parametrize("batch", [1, 2])
def test_computed_angles(halves: str, end: str, batch: int) -> None:
    after, modified, _ = run(FuseRotary(), spelled(f"{COMPUTED} {halves} {TURN} {end}", f", float[{batch},7,3] f"))
    assert modified
    assert ops(after)["RotaryEmbedding"] == 1
    assert ops(after)["Cos"] == ops(after)["Sin"] == 1
    assert not {"Neg", "Slice", "Split", "Add", "Unsqueeze"} & set(ops(after))
    assert ("Expand" in ops(after)) == (batch == 1)


def test_gathered_angles() -> None:
    graph = spelled(f"{GATHERED} {SLICES} {TURN} {END}", ", int64[2,7] at")
    x = RNG.standard_normal((2, 5, 7, 6)).astype(np.float32)
    feeds: dict[str, Array] = {"x": x, "at": RNG.integers(0, 9, (2, 7))}
    after, modified, _ = run(FuseRotary(), graph, feeds=feeds)
    assert modified
    assert ops(after) == {"RotaryEmbedding": 1, "Gather": 2}
    assert {tuple(v.shape or ()) for v in after.graph.initializers.values()} == {(9, 3)}


@pytest.mark.parametrize("shape", [(7, 6), (1, 7, 6), (1, 1, 7, 6), (2, 1, 7, 6), (1, 1, 1, 6)])
def test_constant_angles_of_every_rank(shape: tuple[int, ...]) -> None:
    c, s = (np.tile(RNG.standard_normal((*shape[:-1], 3)), 2) for _ in range(2))
    after, modified, _ = run(FuseRotary(), spelled(f"{SLICES} {TURN} {END}", tables={"c": c, "s": s}))
    assert modified
    assert ops(after)["RotaryEmbedding"] == 1
    assert "Mul" not in ops(after)


@pytest.mark.parametrize("halves", [SLICES, *SPLITS])
def test_halves_written_out(halves: str) -> None:
    body = (f"c = Unsqueeze(f, one) s = Unsqueeze(h, one) {halves} p = Mul(lo, c) q = Mul(s, hi) u = Sub(p, q)"
            " v = Mul(hi, c) w = Mul(lo, s) z = Add(w, v) y = Concat<axis = 3>(u, z)")
    after, modified, _ = run(FuseRotary(), spelled(body, ", float[2,7,3] f, float[2,7,3] h"))
    assert modified
    assert ops(after) == {"RotaryEmbedding": 1}


def test_two_places_share_the_angles() -> None:
    body = f"{COMPUTED} {SLICES} {TURN} p = Mul(x, c) q = Mul(r, s) z = Add(p, q)"
    again = ("lo2 = Slice(z, zero, three, last) hi2 = Slice(z, three, far, last) no2 = Neg(hi2)"
             " r2 = Concat<axis = -1>(no2, lo2) p2 = Mul(z, c) q2 = Mul(r2, s) y = Add(p2, q2)")
    after, _, _ = run(FuseRotary(), spelled(f"{body} {again}", ", float[2,7,3] f"))
    assert ops(after) == {"RotaryEmbedding": 2, "Cos": 1, "Sin": 1, "Mul": 2}


@pytest.mark.parametrize("body", [
    f"{COMPUTED} {SLICES} no = Neg(lo) r = Concat<axis = -1>(no, hi) {END}",
    f"{COMPUTED} {SLICES} no = Neg(lo) r = Concat<axis = -1>(hi, no) {END}",
    f"{COMPUTED} lo = Slice(x, zero, three, last) hi = Slice(x, three, far, last) r = Concat<axis = -1>(hi, lo) {END}",
])
def test_look_alikes_stay(body: str) -> None:
    _, modified, _ = run(FuseRotary(), spelled(body, ", float[2,7,3] f"))
    assert not modified


@pytest.mark.parametrize(("body", "extra", "tables", "why"), [
    ("d = Concat<axis = 2>(f, h) k = Cos(d) c = Unsqueeze(k, one) s = Unsqueeze(k, one)",
     ", float[2,7,3] f, float[2,7,3] h", {}, "not known to be equal"),
    ("", ", float[2,1,7,6] c, float[2,1,7,6] s", {}, "an input"),
    ("", "", {"c": RNG.standard_normal((7, 6)), "s": np.ones((7, 6))}, "halves of the table differ"),
    ("", "", {"c": np.ones((5, 7, 6)), "s": np.ones((5, 7, 6))}, "differ between heads"),
])
def test_declined(body: str, extra: str, tables: dict[str, npt.ArrayLike], why: str) -> None:
    _, modified, report = run(FuseRotary(), spelled(f"{body} {SLICES} {TURN} {END}", extra, tables))
    assert not modified
    assert why in reasons(report)


def test_values_of_three_dims_are_declined() -> None:
    graph = model("g (float[5,7,6] x, int64[2] sizes, float[7,6] c) => (float[5,7,6] y) {"
                  f" {SPLITS[0].replace('3', '2')} {TURN} p = Mul(x, c) q = Mul(r, c) y = Add(p, q) }}",
                  sizes=[3, 3], c=np.ones((7, 6)))
    _, modified, report = run(FuseRotary(), graph)
    assert not modified
    assert "[batch, heads, tokens, width]" in reasons(report)


def test_an_unknown_number_of_heads_is_declined() -> None:
    graph = model("g (float[2,H,7,6] x, int64[2] sizes, float[7,6] c) => (float[2,H,7,6] y) {"
                  f" {SPLITS[0]} {TURN} p = Mul(x, c) q = Mul(r, c) y = Add(p, q) }}", sizes=[3, 3], c=np.ones((7, 6)))
    _, modified, report = run(FuseRotary(), graph)
    assert not modified
    assert "number of heads" in reasons(report)


def test_double_is_declined() -> None:
    graph = model("g (double[2,5,7,6] x, int64[2] sizes, double[7,6] c) => (double[2,5,7,6] y) {"
                  f" {SPLITS[0]} {TURN} p = Mul(x, c) q = Mul(r, c) y = Add(p, q) }}", sizes=[3, 3], c=np.ones((7, 6)))
    _, modified, report = run(FuseRotary(), graph)
    assert not modified
    assert "none that RotaryEmbedding takes" in reasons(report)


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_torch_exports(dynamo: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, positions: Any) -> Any:
            angles = positions[:, :, None].float() * torch.tensor([1.0, 0.1, 0.01])
            whole = torch.cat((angles, angles), dim=-1)
            cos, sin = whole.cos().unsqueeze(1), whole.sin().unsqueeze(1)
            half = x.shape[-1] // 2
            return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    path = tmp_path / "net.onnx"
    inputs = torch.randn(2, 5, 7, 6), torch.arange(14).reshape(2, 7)
    torch.onnx.export(Net(), inputs, path, dynamo=dynamo, opset_version=18, input_names=["x", "positions"])
    after = run_passes(load(path), NORMALIZE, Context()).model
    assert ops(after)["RotaryEmbedding"] == 1
    assert ops(after)["Cos"] == ops(after)["Sin"] == 1
    assert not {"Neg", "Slice", "Split"} & set(ops(after))
