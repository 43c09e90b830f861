"""Claim: a selective scan needs at most half of onnxruntime's time for the same graph, which it runs through the
operator's body (Scan). One layer of LightM-UNet at 64 x 64 and one of a Mamba of 130 M, in turn, 1 and 2 threads."""

from __future__ import annotations

import numpy as np
import torch
from harness import WORK, Report, arguments, ort_session
from torch import Tensor, nn

import edgec
from edgec import Model, importers
from edgec.ir.execute import save
from edgec.judge.bundle import BUNDLE
from edgec.zoo.ops import selective_scan

LIMIT = 0.5
LAYERS = {"unet": (4096, 64, 16), "mamba_130m": (512, 1536, 16)}  # steps, channels, states of a channel
NAMES = ("x", "delta", "b", "c")


class Layer(nn.Module):
    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.a_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(channels, 1))
        self.d = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return selective_scan(x, delta, -torch.exp(self.a_log), b, c, self.d, softplus=True)[0]


def main() -> None:
    chosen = arguments(__doc__ or "", turns=7)
    report, torch_rng = Report("scan"), torch.manual_seed(0)
    for name, (steps, channels, states) in LAYERS.items():
        layer = Layer(channels, states).eval()
        example = tuple(torch.randn(1, steps, n, generator=torch_rng) for n in (channels, channels, states, states))
        folder, graph = WORK / f"scan_{name}", WORK / f"scan_{name}.onnx"
        edgec.compile(layer, folder, example_inputs=example)
        save(importers.load(layer, example_inputs=example, check=False), graph)
        feed = {n: t.numpy() for n, t in zip(NAMES, example, strict=True)}
        with Model(folder / BUNDLE) as model:
            for threads in chosen.threads:
                theirs = ort_session(graph, threads)
                with model.session(threads=threads) as ours:
                    error = float(np.abs(ours.run(feed)[model.outputs[0].name] - theirs.run(None, feed)[0]).max())
                    if not error < 1e-4:
                        raise SystemExit(f"error: outputs differ by {error}: timing wrong answers says nothing")
                    report.add(name, threads, 1, lambda s=ours, f=feed: s.run(f),
                               lambda s=theirs, f=feed: s.run(None, f), chosen.turns)
    report.write(limit=LIMIT, layers=LAYERS, dtype="float32")
    over = [f"{row['test']} with {row['threads']}: {row['ratio']:.3f}" for row in report.rows if row["ratio"] > LIMIT]
    if over:
        raise SystemExit(f"error: above {LIMIT} of onnxruntime's time: {', '.join(over)}")


if __name__ == "__main__":
    main()
