"""Claims: a sum of depthwise-separable pairs costs fewer milliseconds than the convolution it stands for, and blocks
that are replaced and distilled keep a digits network's accuracy at half of its multiplications. Writes
docs/lightweight_blocks.md.

    python benchmarks/lightweight_blocks.py times nets errors digits decouple tables

Every part adds to results/lightweight_blocks.json; `times` and `nets` want a machine that does nothing else. The digits
are those of scikit-learn (pip install scikit-learn); no other part of edgec needs it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import torch
import torch.nn.functional as F
from harness import RESULTS, ROOT
from torch import Tensor, nn

import edgec
from edgec.compress.calibrate import Accumulator
from edgec.compress.decouple import Candidate, Fitter, candidates
from edgec.compress.layers import Window, _patches
from edgec.decoupling import DecoupleOptions, _Clock
from edgec.ir.info import ModelInfo
from edgec.pipeline import _float_bundle
from edgec.train.blocks import inverted_residual, ls_block
from edgec.train.match import optimize
from edgec.train.replace_blocks import macs_of, replace_blocks

FILE = RESULTS / "lightweight_blocks.json"
DOC = ROOT / "docs" / "lightweight_blocks.md"
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
RANKS = (1, 2, 3, 4, 6)
SEEDS = (0, 1, 2)
TEACHER, MATCH, JOINT, BATCH = 250, 200, 800, 32


# ---- (a) stages ----

def stage(channels: int, size: int) -> Candidate:
    """The 3 x 3 convolution of a ResNet-18 stage."""
    c, image = channels, f"float[1,{channels},{size},{size}]"
    made = ir.from_proto(onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 24]>'
        f"g ({image} x, float[{c},{c},3,3] w) => ({image} y) {{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }}"))
    weight = made.graph.inputs.pop()
    weight.const_value = ir.tensor(np.ones((c, c, 3, 3), np.float32), name="w")
    made.graph.register_initializer(weight)
    return candidates(made)[0][0]


def times(found: dict[str, Any]) -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for channels, size in STAGES:
            candidate = stage(channels, size)
            weight = np.random.default_rng(0).standard_normal((channels, 9 * channels))
            fitter = Fitter(weight.astype(np.float32), (3, 3))
            clock = _Clock(_float_bundle, Path(folder), ModelInfo())
            ms = clock.layer(candidate, [None, *(fitter.at(rank) for rank in RANKS)])
            rows[f"{channels}@{size}"] = {"macs": [candidate.macs, *map(candidate.macs_at, RANKS)], "ms": ms}
            print(channels, size, [round(t, 3) for t in ms], flush=True)
    save(times=rows)


def nets(found: dict[str, Any]) -> None:
    times: dict[str, Any] = {}
    for name, (build, paths, kinds) in NETS.items():
        model, x = build().eval(), torch.zeros(1, 1, 8, 8)
        variants = {"dense": model} | {kind: replace_blocks(
            model, paths, make, lambda step: (torch.rand(4, 1, 8, 8), None), x, match_steps=0, joint_steps=0,
            timed=False).model for kind, make in kinds.items()}
        times[name] = _together(variants, x)
        print(name, times[name], flush=True)
    save(net_times=times)


def _together(variants: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Medians of all variants run in turn, one thread."""
    best: dict[str, list[float]] = {kind: [] for kind in variants}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for kind, model in variants.items():
            edgec.compile(model.eval(), Path(folder) / kind, example_inputs=(x,))
            opened = edgec.Model(Path(folder) / kind / "model.edgec")
            sessions[kind] = (opened.session(threads=1), {opened.inputs[0].name: x.numpy()})
        for _ in range(200):
            for kind, (session, feeds) in sessions.items():
                start = time.perf_counter()
                session.run(feeds)
                best[kind].append(1e3 * (time.perf_counter() - start))
    return {kind: statistics.median(values[20:]) for kind, values in best.items()}


def errors(found: dict[str, Any]) -> None:
    """Random weights on smooth, correlated, non-negative inputs: without training there is nothing else to be had at
    these shapes. What trained weights do is in part `decouple`."""
    rows: dict[str, Any] = {}
    rng = np.random.default_rng(1)
    for channels, size in STAGES:
        weight = (rng.standard_normal((channels, 9 * channels)) / np.sqrt(9 * channels)).astype(np.float32)
        mix = rng.standard_normal((channels, channels // 4))
        images = [_smooth(rng, mix, size) for _ in range(2 * max(1, 24 * channels // size**2))]
        half = len(images) // 2
        stats = [_stats(part) for part in (images[:half], images[half:])]
        fitter, held = Fitter(weight, (3, 3), stats[0]), Fitter(weight, (3, 3), stats[1])
        cells = rows[f"{channels}@{size}"] = []
        for rank in RANKS:
            fitted = fitter.at(rank)
            cells.append({"rank": rank, "svd": _error(held, fitter.at(rank, refit=False)), "fitted": fitted.error,
                          "held_out": _error(held, fitted)})
        print(channels, rows[f"{channels}@{size}"], flush=True)
    save(errors=rows)


def _smooth(rng: np.random.Generator, mix: Any, size: int) -> Any:
    base = rng.standard_normal((mix.shape[1], size + 2, size + 2))
    smooth = sum(base[:, i : i + size, j : j + size] for i in range(3) for j in range(3)) / 3
    mixed = np.einsum("ck,kij->cij", mix, smooth) / np.sqrt(mix.shape[1])
    return np.maximum(mixed + 0.3 * rng.standard_normal(mixed.shape), 0)[None].astype(np.float32)


def _stats(images: list[Any]) -> Any:
    window = Window((3, 3), (1, 1), (1,) * 4, (1, 1))
    sums = Accumulator(images[0].shape[1] * 9)
    for image in images:
        sums.add(_patches(image, window))
    return sums.stats("stage")


def _error(held: Fitter, pairs: Any) -> float:
    """Of pairs on inputs they were not fitted to."""
    rank, inputs = pairs.depthwise.shape[:2]
    filters = pairs.depthwise.reshape(rank, inputs, -1).transpose(1, 0, 2).astype(np.float64)
    columns = pairs.pointwise.reshape(-1, rank, inputs).transpose(0, 2, 1).reshape(len(pairs.pointwise), -1)
    return max(0.0, held._measured(filters, columns.astype(np.float64)).error) / held._energy


# ---- (b) digits ----

class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, stride),
                                  nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                                                             nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Head(nn.Module):
    def __init__(self, blocks: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))


def resnet() -> Head:
    """18 weighted layers as in ResNet-18, at an eighth of its width and for 8 x 8 pixels."""
    shapes = [(16, 16, 1), (16, 16, 1), (16, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2), (64, 64, 1)]
    return Head([conv(1, 16), *(Basic(*s) for s in shapes)], 64)


def plain() -> Head:
    return Head([conv(1, 32), conv(32, 64), conv(64, 64), conv(64, 96, 2), conv(96, 96)], 96)


def separable(inputs: int, outputs: int, stride: int) -> nn.Module:
    return inverted_residual(inputs, outputs, stride, 1)


Kinds = dict[str, Callable[[int, int, int], nn.Module]]
NETS: dict[str, tuple[Callable[[], Head], list[str], Kinds]] = {
    "resnet": (resnet, ["blocks.[1-8]"], {"inverted residual": inverted_residual, "ls": ls_block}),
    "plain": (plain, ["blocks.[1-4]"], {"separable": separable, "inverted residual": inverted_residual}),
}


class Digits:
    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        order = np.random.default_rng(0).permutation(len(data.images))
        x = torch.tensor(data.images[order, None] / 8 - 1, dtype=torch.float32)
        y = torch.tensor(data.target[order])
        self.train, self.test = (x[500:], y[500:]), (x[:500], y[:500])

    def batches(self, seed: int, size: int = BATCH) -> Callable[[int], tuple[Tensor, Tensor]]:
        def batch(step: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(10**6 * seed + step)
            rows = torch.randint(len(self.train[0]), (size,), generator=generator)
            dx, dy = (int(v) for v in torch.randint(-1, 2, (2,), generator=generator))
            return torch.roll(self.train[0][rows], (dx, dy), (2, 3)), self.train[1][rows]

        return batch

    def accuracy(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(self.test[0]).argmax(1) == self.test[1]).float().mean())


def fit(model: nn.Module, batches: Callable[[int], tuple[Tensor, Tensor]], steps: int) -> None:
    model.train()

    def loss(step: int) -> Tensor:
        x, y = batches(step)
        return F.cross_entropy(model(x), y)

    optimize(model.parameters(), loss, steps)


def digits(found: dict[str, Any]) -> None:
    data, x = Digits(), torch.zeros(1, 1, 8, 8)
    cells = found.get("digits", {})
    teachers: dict[tuple[str, int], nn.Module] = {}
    # The first kind of each network at all seeds before the others.
    for turn in range(2):
        for name, (build, paths, kinds) in NETS.items():
            kind, make = list(kinds.items())[turn]
            for seed in SEEDS:
                key = f"{name}/{kind}/{seed}"
                if key in cells:
                    continue
                if (name, seed) not in teachers:
                    torch.manual_seed(seed)
                    teachers[name, seed] = build()
                    fit(teachers[name, seed], data.batches(seed), TEACHER)
                teacher = teachers[name, seed]
                torch.manual_seed(100 + seed)
                done = replace_blocks(teacher, paths, make, data.batches(seed + 10), x, match_steps=MATCH,
                                      joint_steps=JOINT, evaluate=data.accuracy, timed=False)
                # The same network without a teacher, with all the steps that teacher and student had together.
                torch.manual_seed(100 + seed)
                scratch = replace_blocks(build(), paths, make, data.batches(seed), x, match_steps=0, joint_steps=0,
                                         timed=False).model
                fit(scratch, data.batches(seed + 20), TEACHER + MATCH + JOINT)
                cells[key] = {
                    "teacher": done.before.accuracy, "distilled": done.after.accuracy,
                    "scratch": data.accuracy(scratch), "macs": [done.before.macs, done.after.macs],
                    "bytes": [done.before.bytes, done.after.bytes],
                    "block_error": statistics.fmean(done.blocks.values())}
                print(key, cells[key], flush=True)
                save(digits=cells)


# ---- (c) the pass on a trained network ----

def decouple(found: dict[str, Any]) -> None:
    data = Digits()
    torch.manual_seed(0)
    teacher = resnet()
    fit(teacher, data.batches(0, 64), TEACHER)
    rows: list[dict[str, Any]] = [{"budget": "none", "accuracy": data.accuracy(teacher),
                                   "macs": macs_of(teacher, torch.zeros(1, 1, 8, 8))}]
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "x.npz"
        np.savez(samples, x=data.train[0][:256].numpy())
        for share in (0.7, 0.5, 0.35):
            for calib in (None, str(samples)):
                out = Path(folder) / "out"
                done = edgec.compile(teacher, out, example_inputs=(torch.zeros(1, 1, 8, 8),),
                                     decouple=DecoupleOptions(f"macs={share}", calib, 256))
                with edgec.Model(out / "model.edgec") as model, model.session(threads=1) as session:
                    name = model.inputs[0].name
                    hits = [int(next(iter(session.run({name: image[None].numpy()}).values())).argmax()) == int(label)
                            for image, label in zip(*data.test, strict=True)]
                layers = done.decoupled["layers"]
                rows.append({"budget": f"macs={share}", "calibrated": calib is not None,
                             "accuracy": statistics.fmean(hits),
                             "macs": done.decoupled["macs"]["after"], "layers": len(layers),
                             "error": statistics.fmean(x["error"] for x in layers)})
                print(rows[-1], flush=True)
    save(decouple=rows)


# ---- tables ----

def tables(found: dict[str, Any]) -> None:
    out: list[str] = []

    def table(heads: list[str], rows: list[list[object]]) -> None:
        out.extend(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)])
        out.extend("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
        out.append("")

    out.append("## Stages of a ResNet-18: one 3 x 3 convolution\n")
    rows: list[list[object]] = []
    for name, t in found["times"].items():
        rows.append([name, "dense", "", "", "", f"{t['macs'][0] / 1e6:.1f}", f"{t['ms'][0]:.3f}", "1.00", "1.00"])
        for i, rank in enumerate(RANKS, 1):
            e = found["errors"][name][i - 1]
            rows.append([name, rank, f"{e['svd']:.3f}", f"{e['fitted']:.3f}", f"{e['held_out']:.3f}",
                         f"{t['macs'][i] / 1e6:.1f}", f"{t['ms'][i]:.3f}", f"{t['macs'][i] / t['macs'][0]:.2f}",
                         f"{t['ms'][i] / t['ms'][0]:.2f}"])
    table(["channels@size", "rank", "error, SVD", "fitted", "fitted, held out", "MMACs", "ms", "of MACs", "of ms"],
          rows)
    out.append("## The pass on a trained network\n")
    table(["budget", "samples", "convolutions", "mean error", "MMACs", "accuracy %"], [
        [r["budget"], {True: 256, False: "none"}.get(r.get("calibrated"), ""), r.get("layers", ""),
         f"{r['error']:.3f}" if "error" in r else "", f"{r['macs'] / 1e6:.2f}", f"{100 * r['accuracy']:.1f}"]
        for r in found["decouple"]])
    out.append("## Blocks replaced and distilled\n")
    rows = []
    for name, (_, _, kinds) in NETS.items():
        for kind in kinds:
            runs = [found["digits"][f"{name}/{kind}/{s}"] for s in SEEDS if f"{name}/{kind}/{s}" in found["digits"]]
            if not runs:
                continue
            cells = [" / ".join(f"{100 * r[k]:.1f}" for r in runs) for k in ("teacher", "distilled", "scratch")]
            ms, macs, size = found["net_times"][name], runs[0]["macs"], runs[0]["bytes"]
            rows.append([name, kind, *cells, f"{macs[0] / 1e6:.2f} to {macs[1] / 1e6:.2f} ({macs[1] / macs[0]:.0%})",
                         f"{size[0] / 1e3:.0f} to {size[1] / 1e3:.0f}", f"{ms['dense']:.3f} to {ms[kind]:.3f}"])
    table(["network", "new blocks", "accuracy %, seeds 0 / 1 / 2", "distilled", "from scratch", "MMACs", "kB", "ms"],
          rows)
    head, mark, _ = DOC.read_text(encoding="utf-8").partition("\n---\n")
    DOC.write_text(head + mark + "\n" + "\n".join(out), encoding="utf-8")


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def save(**parts: Any) -> None:
    """Parts that run at the same time each write their own."""
    FILE.write_text(json.dumps(read() | parts, indent=1) + "\n", encoding="utf-8")


PARTS = {"times": times, "nets": nets, "errors": errors, "digits": digits, "decouple": decouple, "tables": tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    torch.set_num_threads(1)
    for part in parser.parse_args().parts:
        PARTS[part](read())


if __name__ == "__main__":
    main()
