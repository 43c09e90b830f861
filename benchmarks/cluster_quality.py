"""Claim: at 2 bits, palettes trained with the model close a good part of the gap that palettes fitted afterwards leave.

MobileNetV2 learns from the uncompressed one on half of the sample images and is judged on the other half; prose_lm
learns from prose/train.txt and is judged on windows of prose/valid.txt. Each cell (model, method, seed) is kept in
build/bench/cluster_quality, and in results/ when the table is written, so a run that was stopped goes on; inside a cell
the training goes on from its last checkpoint. `--minutes` ends the run after the cell in which they are over.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import RESULTS, ROOT, WORK, asset
from torch import Tensor, nn

from edgec.api import quantize
from edgec.compress.store import load_finished
from edgec.judge.images import labelled_images, load_image
from edgec.quantization import QuantizeOptions
from edgec.train.bits import harden_bits, tune_bits
from edgec.train.cluster import ClusterOptions, Schedule, cluster, clusters, harden
from edgec.train.loop import FitOptions, fit

CACHE = WORK / "cluster_quality"
KEPT = RESULTS / "cluster_quality.json"
DOCS = ROOT / "docs" / "clustering.md"
MARK = "<!-- Below this line: written by benchmarks/cluster_quality.py -->"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEEDS = (0, 1)
HLQ = "hlq2g128"


class Subject(ABC):
    """A model, what it learns from, how it is judged. palette: its format. steps, batch, lr: of the training."""

    name: str
    palette: str
    steps: int
    batch: int
    lr: float
    unit: str
    lower_is_better: bool

    @abstractmethod
    def make(self) -> nn.Module:
        """The uncompressed model."""

    @abstractmethod
    def batches(self, seed: int, number: int) -> tuple[Tensor, Tensor | None]:
        """The batch of that number."""

    @abstractmethod
    def to_quantize(self, model: nn.Module) -> tuple[Any, Path, dict[str, Any]]:
        """What `quantize` takes: the source, samples to calibrate with, more."""

    @abstractmethod
    def judge(self, model: nn.Module) -> dict[str, float]:
        """Figures of the model in eval mode, `unit` among them."""


class Vision(Subject):
    # A table per row, as channels differ in size by what BatchNorm was folded into them: with one per matrix nothing is
    # left of the network, and 60 steps do not bring it back.
    name, palette, steps, batch, lr, unit, lower_is_better = "mobilenet_v2", "palette2r1", 150, 8, 3e-4, "top1", False

    def make(self) -> nn.Module:
        from safetensors.torch import load_file

        from edgec.zoo.mobilenet_v2 import MobileNetV2

        model = MobileNetV2(folded=True)
        model.load_state_dict(load_file(asset("mobilenet_v2/model.safetensors")))
        return model.eval()

    @cached_property
    def images(self) -> tuple[Tensor, list[int]]:
        found = labelled_images(asset("imagenet_sample"))
        pixels = [torch.from_numpy(load_image(path, 224, 224, MEAN, STD)) for path, _ in found]
        return torch.cat(pixels), [c for _, c in found]

    def batches(self, seed: int, number: int) -> tuple[Tensor, Tensor | None]:
        rng = np.random.default_rng((seed, number))
        pixels = self.images[0][0::2]
        made = []
        for i in rng.choice(len(pixels), self.batch, replace=False):
            side = int(rng.integers(144, 225))
            top, left = (int(rng.integers(0, 225 - side)) for _ in range(2))
            cut = pixels[i : i + 1, :, top : top + side, left : left + side]
            cut = F.interpolate(cut, (224, 224), mode="bilinear", align_corners=False)
            made.append(cut.flip(3) if rng.integers(2) else cut)
        return torch.cat(made), None

    def to_quantize(self, model: nn.Module) -> tuple[Any, Path, dict[str, Any]]:
        folder = CACHE / "calibration"
        folder.mkdir(parents=True, exist_ok=True)
        for path, _ in labelled_images(asset("imagenet_sample"))[0::2]:
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        return model, folder, {"example_inputs": (torch.zeros(1, 3, 224, 224),)}

    def judge(self, model: nn.Module) -> dict[str, float]:
        logits = self._logits(model)
        labels = np.array(self.images[1][1::2])
        return {"top1": 100 * float((logits.argmax(1) == labels).mean()),
                "agreement": 100 * float((logits.argmax(1) == self.original.argmax(1)).mean())}

    @cached_property
    def original(self) -> Any:
        return self._logits(self.make())

    def _logits(self, model: nn.Module) -> Any:
        with torch.no_grad():
            return torch.cat([model(part) for part in torch.split(self.images[0][1::2], 10)]).numpy()


class Language(Subject):
    name, palette, steps, batch, lr, unit, lower_is_better = "prose_lm", "palette2", 60, 3, 3e-4, "ppl", True
    window, windows = 256, 160

    def make(self) -> nn.Module:
        import transformers

        # Gradients of bfloat16 weights lose more than 2 bits do: float32 holds what the file says exactly.
        found: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(asset("prose_lm"), dtype=torch.float32)
        found.config.use_cache = False
        return found.eval()

    def tokens(self, text: str) -> Tensor:
        import tokenizers

        return torch.tensor(tokenizers.Tokenizer.from_file(str(asset("prose_lm/tokenizer.json"))).encode(text).ids)

    @cached_property
    def train(self) -> Tensor:
        with lzma.open(asset("prose/train.txt.xz"), "rt", encoding="utf-8") as text:
            return self.tokens(text.read(1_000_000))

    @cached_property
    def valid(self) -> Tensor:
        found = self.tokens(asset("prose/valid.txt").read_text(encoding="utf-8"))
        starts = np.linspace(0, len(found) - self.window, self.windows).astype(int)
        return torch.stack([found[i : i + self.window] for i in starts])

    def batches(self, seed: int, number: int) -> tuple[Tensor, Tensor | None]:
        rng = np.random.default_rng((seed, number))
        ids = torch.stack([self.train[i : i + self.window]
                           for i in rng.integers(0, len(self.train) - self.window, self.batch)])
        return ids, torch.cat([ids[:, 1:], torch.full((len(ids), 1), -100)], 1)

    def to_quantize(self, model: nn.Module) -> tuple[Any, Path, dict[str, Any]]:
        text = CACHE / "train.txt"
        if not text.exists():
            with lzma.open(asset("prose/train.txt.xz"), "rt", encoding="utf-8") as source:
                text.write_text(source.read(1_000_000), encoding="utf-8")
        return str(asset("prose_lm")), text, {}

    def judge(self, model: nn.Module) -> dict[str, float]:
        total = 0.0
        with torch.no_grad():
            for ids in torch.split(self.valid, 8):
                logits = model(ids).logits[:, :-1].reshape(-1, 4096)
                total += float(F.cross_entropy(logits, ids[:, 1:].reshape(-1), reduction="sum"))
        return {"ppl": float(np.exp(total / (self.windows * (self.window - 1))))}


SUBJECTS: dict[str, Subject] = {s.name: s for s in (Vision(), Language())}


@dataclass(frozen=True)
class Cell:
    subject: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.subject}-{self.method}-{self.seed}"


METHODS = {"fp32": "not compressed", "kmeans": "k-means after training", "straight": "straight-through",
           "dkm": "**DKM**", "hlq": "HLQ, our solver, calibrated", "hlq_tuned": "HLQ, scales and offsets tuned"}
_TRAINED = ("straight", "dkm", "hlq_tuned")


def cells(only: str) -> list[Cell]:
    """The most telling first. Without training there is no seed."""
    found = [Cell(s, m, seed) for seed in SEEDS for m in METHODS for s in SUBJECTS if seed == 0 or m in _TRAINED]
    return [c for c in found if only in c.key]


def measure(cell: Cell) -> dict[str, Any]:
    subject = SUBJECTS[cell.subject]
    model = subject.make()
    if cell.method == "fp32":
        return {**subject.judge(model), "bytes": sum(4 * p.numel() for p in model.parameters())}
    if cell.method.startswith("hlq"):
        return bit_planes(cell, subject, model)
    schedule = Schedule(anneal=subject.steps * 3 // 4)
    options = ClusterOptions(method="straight-through" if cell.method == "straight" else "soft")
    cluster(model, subject.palette, schedule=schedule, options=options)
    found = learn(cell, subject, model, schedule, subject.palette) if cell.method in _TRAINED else {}
    trained = {id(weight): (one.spec, one.rows, one.columns) for one, weight in clusters(model).values()}
    harden(model)
    return {**subject.judge(model.eval()), **found, "bytes": stored_bytes(model, trained.values())}


def bit_planes(cell: Cell, subject: Subject, model: nn.Module) -> dict[str, Any]:
    """Bit planes of `edgec quantize`, and what training makes of their scales and offsets."""
    folder = CACHE / f"{subject.name}-{HLQ}"
    source, calib, more = subject.to_quantize(model)
    quantize(source, folder, QuantizeOptions(HLQ, calib=str(calib), samples=32), **more)
    layers = load_finished(folder)
    model.requires_grad_(False)  # as `edgec train --layers` does
    tune_bits(model, layers)
    found = learn(cell, subject, model, None, HLQ) if cell.method in _TRAINED else {}
    harden_bits(model)
    sizes = [(layer.spec, *layer.shape) for layer in layers.values()]
    return {**subject.judge(model.eval()), **found, "bytes": stored_bytes(model, sizes)}


def learn(cell: Cell, subject: Subject, model: nn.Module, schedule: Schedule | None, form: str) -> dict[str, Any]:
    options = FitOptions(subject.steps, subject.lr, distill="forward", labels=0.0, checkpoint_every=10)
    fitted = fit(model, lambda i: subject.batches(cell.seed, i), CACHE / "runs" / cell.key, options, schedule=schedule,
                 teacher=subject.make(), identity={"form": form, "method": cell.method, "seed": cell.seed},
                 progress=lambda done, total, what: print(cell.key, done, total, what, flush=True))
    return {"steps": len(fitted.losses), "first_loss": fitted.losses[0],
            "last_loss": statistics.fmean(fitted.losses[-10:])}


def stored_bytes(model: nn.Module, compressed: Any) -> int:
    """Weights of few bits as they are stored, the rest in 16 bits."""
    compressed = list(compressed)
    rest = sum(p.numel() for p in model.parameters()) - sum(n * k for _, n, k in compressed)
    return 2 * rest + sum(spec.bytes(n, k) for spec, n, k in compressed)


def result_of(cell: Cell) -> dict[str, Any] | None:
    for path in (CACHE / f"{cell.key}.json",):
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
    kept = json.loads(KEPT.read_text(encoding="utf-8"))["cells"] if KEPT.exists() else {}
    return kept.get(cell.key)


def table(results: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for subject in SUBJECTS.values():
        rows = {m: [results[c.key] for c in cells("") if (c.subject, c.method) == (subject.name, m)
                    and c.key in results] for m in METHODS}
        if not rows.get("fp32"):
            continue
        keys = [k for k in ("top1", "agreement", "ppl") if k in rows["fp32"][0]]
        lines += [f"**{subject.name}**", "", f"| method | {' | '.join(keys)} | KB | seeds | of the gap closed |",
                  "|---" * (len(keys) + 4) + "|"]
        best, worst = rows["fp32"][0][subject.unit], [r[subject.unit] for r in rows["kmeans"]]
        for method, found in rows.items():
            if not found:
                continue
            values = [" / ".join(f"{r[k]:.2f}" for r in found) for k in keys]
            mean = statistics.fmean(r[subject.unit] for r in found)
            closed = f"{100 * (mean - worst[0]) / (best - worst[0]):.0f} %" if worst else ""
            lines.append(f"| {METHODS[method]} | {' | '.join(values)} | {found[0]['bytes'] / 1e3:.0f} | {len(found)} | "
                         f"{closed if method not in ('fp32', 'kmeans') else ''} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--only", default="", help="part of MODEL-METHOD-SEED")
    parser.add_argument("--tables", action="store_true", help="only write what there is")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    CACHE.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for cell in cells(chosen.only):
        if chosen.tables or time.monotonic() - start > 60 * chosen.minutes or result_of(cell) is not None:
            continue
        began = time.monotonic()
        found = {**measure(cell), "seconds": round(time.monotonic() - began)}
        temporary = CACHE / f"{cell.key}.tmp"
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
        os.replace(temporary, CACHE / f"{cell.key}.json")
        shutil.rmtree(CACHE / "runs" / cell.key, ignore_errors=True)
        print(cell.key, found, flush=True)
    results = {c.key: r for c in cells("") if (r := result_of(c)) is not None}
    text = table(results)
    print(text)
    if chosen.tables:
        KEPT.write_text(json.dumps({"cells": results}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        head = DOCS.read_text(encoding="utf-8").partition(MARK)[0]
        DOCS.write_text(f"{head}{MARK}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
