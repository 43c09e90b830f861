"""`edgec train`: a model, data, formats and a folder; out comes a model of few bits that `compile` takes.

    OUT/run/       checkpoints and log.json of the loop (loop.py)
    OUT/model/     the trained model with its values of few bits: a Hugging Face folder, or model.onnx
    OUT/layers/    the same as packed layers: edgec compile MODEL --quant-from OUT/layers
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgec.compress.layers import matrix_of
from edgec.compress.store import Packed, load_finished
from edgec.errors import EdgecError, missing_extra
from edgec.train.bits import harden_bits, hold, no_bit_planes, tune_bits, weight_named
from edgec.train.cluster import ClusterOptions, Engine, Schedule, cluster, harden
from edgec.train.finalize import check_source, write_layers
from edgec.train.loop import Batches, FitOptions, Fitted, Progress, fit, logits_of
from edgec.train.losses import label_loss
from edgec.train.sharded import Processes, launched, shard

_STAGE = "train"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json",
               "merges.txt")


@dataclass(frozen=True)
class TuneOptions:
    """quant: a palette for the layers, with overrides `GLOB=paletteB` or `GLOB=none`; or None with `layers`: a folder
    of `edgec quantize` whose bit planes are tuned and nothing else. milestone, anneal, temperatures: of Schedule;
    anneal None: three quarters of the steps after the milestone, which must be below `steps`. batch, window: of text.
    Raises EdgecError (E0002)."""

    fit: FitOptions
    quant: str | None = "palette2"
    overrides: tuple[str, ...] = ()
    layers: Path | None = None
    engine: Engine = "auto"
    milestone: int = 0
    anneal: int | None = None
    temperatures: tuple[float, float] = (0.5, 0.05)
    batch: int = 4
    window: int = 256

    def __post_init__(self) -> None:
        if (self.quant is None) == (self.layers is None):
            raise _bad("quant, layers", "both or neither", "a palette to train, or layers of bit planes to tune")
        if self.layers is not None and self.overrides:
            raise _bad("overrides", "with layers", "formats of the layers as they are", "quantize with other formats")
        if self.batch < 1 or self.window < 2:
            raise _bad("batch, window", f"{self.batch}, {self.window}", "at least 1, at least 2 tokens")
        if self.milestone >= self.fit.steps:
            raise _bad("milestone", f"{self.milestone} of {self.fit.steps} steps", "fewer than all the steps",
                       "weights are clustered from the milestone on; give more --steps or a smaller --milestone")
        self.schedule()

    def schedule(self) -> Schedule:
        anneal = (self.fit.steps - self.milestone) * 3 // 4 if self.anneal is None else self.anneal
        return Schedule(self.milestone, anneal, *self.temperatures)


@dataclass(frozen=True)
class _Subject:
    """A model, the same as compile takes it, and how it leaves: save(model, FOLDER) writes it there and gives the name
    below it, "" for itself, that compile is to read."""

    module: nn.Module
    importable: tuple[object, dict[str, Any]]
    batches: Batches
    save: Callable[[nn.Module, Path], str]
    evaluate: Callable[[nn.Module], float] | None
    higher_is_better: bool


def tune(source: str, data: str, output: Path | str, options: TuneOptions, *, evaluation: str | None = None,
         progress: Progress | None = None) -> dict[str, Any]:
    """Trains `source` in few bits on `data` into the folder `output`, or goes on where the same call was interrupted.

    source: a Hugging Face folder of a language model, or FILE.py:FACTORY as of compile. data: for the first FILE.txt,
    of which windows are drawn; for the second FILE.py:FUNCTION, a function batches(number) -> (inputs, labels or None).
    evaluation: FILE.txt, whose perplexity decides, or FILE.py:FUNCTION of the model, the higher the better. The teacher
    is the model as it was. Started by torchrun, the processes share the model and every batch, and the first writes;
    the folder must be one that all see. Returns losses, evaluations, layers and what to compile. Raises EdgecError.
    """
    with launched() as here:
        return _tuned(here, source, data, Path(output), options, evaluation, progress)


def _tuned(here: Processes, source: str, data: str, output: Path, options: TuneOptions, evaluation: str | None,
           progress: Progress | None) -> dict[str, Any]:
    if (evaluation is None) != (options.fit.evaluate_every == 0):
        raise _bad("evaluation", f"{evaluation or 'none'} every {options.fit.evaluate_every} steps",
                   "both or neither", "--eval FILE with --evaluate-every N")
    folder = Path(source)
    if folder.is_dir() and options.batch % here.count:
        raise _bad("batch", f"{options.batch} windows for {here.count} processes", f"a multiple of {here.count}",
                   "another --batch, or another --nproc-per-node")
    here.once(lambda: check_folder(output))
    subject = (_language(folder, Path(data), options, evaluation) if folder.is_dir() else
               _module(source, data, evaluation))
    chosen = dataclasses.replace(options.fit, higher_is_better=subject.higher_is_better)
    model = subject.module
    source_sha256 = _sha_of_weights(model)
    here.same(source_sha256, "the weights of the model", "a factory that seeds what it draws: torch.manual_seed")
    teacher = copy.deepcopy(model) if chosen.distill != "none" else None
    schedule = options.schedule()
    take: Callable[[nn.Module], Mapping[str, Packed]]
    held: dict[str, Packed] = {}
    if options.layers is not None:
        quantized = load_finished(options.layers)
        held = no_bit_planes(quantized)
        # A run with the layers of few bits alone is comparable with them, and biases and norms stay the teacher's.
        model.requires_grad_(False)
        tune_bits(model, quantized)
        take, used = harden_bits, None
    else:
        cluster(model, cast(str, options.quant), options.overrides, schedule=schedule,
                options=ClusterOptions(engine=options.engine))
        take, used = harden, schedule

    def check() -> None:
        if not (output / "run").exists():
            # What the compiler does not have as it is here would be found out after the training.
            source_, importer = subject.importable
            weights = {**_trained(model), **{name: weight_named(model, name) for name in held}}
            check_source({name: matrix_of(weight.detach().float().numpy()) for name, weight in weights.items()},
                         source_, **importer)

    here.once(check)
    hold(model, held)
    made = model
    if here.count > 1:
        # What is trained is put into it at the end: whole again, for the compiler.
        made = copy.deepcopy(model) if here.first else model
        for one in (model, teacher):
            if one is not None:
                shard(one)
    fitted = fit(model, subject.batches, output / "run", chosen, schedule=used, teacher=teacher,
                 evaluate=subject.evaluate, identity={
                     "quant": options.quant, "overrides": options.overrides, "engine": options.engine,
                     "source_sha256": source_sha256,
                     "layers": None if options.layers is None else _sha(options.layers / "quant.json"),
                     "batch": [options.batch, options.window], "data": _sha(data), "evaluation": _sha(evaluation)},
                 **({} if progress is None else {"progress": progress}))
    state = here.whole(model.state_dict()) if here.count > 1 else None

    def finish() -> dict[str, Any]:
        if state is not None:
            made.load_state_dict(state)
            made.eval()
        layers = {**take(made), **held}
        compiled = _saved(subject, made, output)
        # What an earlier end of the same run may have left is of the same layers, or of none.
        shutil.rmtree(output / "layers", ignore_errors=True)
        report = write_layers(layers, str(compiled), output / "layers")
        return {**report, **_told(fitted), "model": str(compiled)}

    return here.once(finish)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are parametrized, as they were."""
    return {f"{path}.weight": cast(Any, module).parametrizations.weight.original
            for path, module in model.named_modules() if parametrize.is_parametrized(module, "weight")}


def _told(fitted: Fitted) -> dict[str, Any]:
    best = fitted.best
    return {"steps": len(fitted.losses), "first_loss": fitted.losses[0], "last_loss": fitted.losses[-1],
            "stopped": fitted.stopped, "evaluations": [dataclasses.asdict(e) for e in fitted.evaluations],
            "best": None if best is None else dataclasses.asdict(best)}


def check_folder(output: Path) -> None:
    """Raises EdgecError (E0004) for a folder with anything in it that no training has written."""
    if output.is_dir():
        foreign = sorted(p.name for p in output.iterdir() if p.name not in ("run", "model", "model.tmp", "layers"))
        if foreign:
            raise EdgecError("E0004", stage=_STAGE, where=str(output), found=f"other files ({', '.join(foreign[:4])})",
                             wanted="a new folder, or an earlier training", hint="choose another -o folder")
    elif output.exists():
        raise EdgecError("E0004", stage=_STAGE, where=str(output), found="a file", wanted="a folder")


def _language(folder: Path, data: Path, options: TuneOptions, evaluation: str | None) -> _Subject:
    try:
        import transformers
    except ImportError as e:
        raise missing_extra("hf", "transformers", _STAGE) from e
    try:
        # Small steps get lost in 16 bits; what the file says, float32 holds.
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as e:
        raise EdgecError("E0101", stage=_STAGE, where=str(folder), found=str(e)[:300],
                         wanted="a Hugging Face folder of a language model, or FILE.py:FACTORY") from e
    model.config.use_cache = False
    ids = _tokens(folder, data, options.window)
    judge = None
    if evaluation is not None:
        judge = partial(_perplexity, _tokens(folder, Path(evaluation), options.window), options.window, options.batch)

    def batches(number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((options.fit.seed, number))
        rows = torch.stack([ids[at : at + options.window]
                            for at in rng.integers(0, len(ids) - options.window + 1, options.batch)])
        return rows, _following(rows)

    return _Subject(model, (str(folder), {}), batches, partial(_save_language, folder), judge, higher_is_better=False)


def _following(rows: Tensor) -> Tensor:
    """What the logits of each position are to say: the next token; of the last one nothing is known."""
    return torch.cat([rows[:, 1:], torch.full((len(rows), 1), -100)], 1)


def _tokens(folder: Path, text: Path, window: int) -> Tensor:
    import tokenizers

    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise EdgecError("E0502", stage=_STAGE, where=str(text), found=str(e), wanted="a text file in UTF-8") from e
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise EdgecError("E0003", stage=_STAGE, where=str(file), found="no such file", wanted="the model's tokenizer")
    ids = tokenizers.Tokenizer.from_file(str(file)).encode(words).ids
    if len(ids) < window:
        raise EdgecError("E0502", stage=_STAGE, where=str(text), found=f"{len(ids)} tokens",
                         wanted=f"at least a window of {window}", hint="--window N, or more text")
    return torch.tensor(ids)


def _perplexity(ids: Tensor, window: int, batch: int, model: nn.Module) -> float:
    """Over at most 64 windows that share no token."""
    rows = ids[: len(ids) // window * window].reshape(-1, window)[:64]
    total = [label_loss(logits_of(model, part), _following(part)) * len(part) for part in torch.split(rows, batch)]
    return float(torch.exp(torch.stack(total).sum() / len(rows)))


def _saved(subject: _Subject, model: nn.Module, output: Path) -> Path:
    """OUT/model, written beside its place."""
    made, temporary = output / "model", output / "model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        name = subject.save(model, temporary)
        shutil.rmtree(made, ignore_errors=True)
        os.replace(temporary, made)
    except OSError as e:
        raise EdgecError("E0004", stage=_STAGE, where=str(made), found=e.strerror or str(e),
                         wanted="room for the trained model", hint="the same call goes on from the last checkpoint"
                         ) from e
    return made / name if name else made


def _save_language(source: Path, model: nn.Module, folder: Path) -> str:
    cast(Any, model).config.use_cache = True
    cast(Any, model).save_pretrained(folder)
    for name in _TOKENIZERS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return ""


def _module(source: str, data: str, evaluation: str | None) -> _Subject:
    from edgec.importers.torch import call_factory

    if not source.rpartition(":")[0].endswith(".py"):
        raise EdgecError("E0101", stage=_STAGE, where=source, found="neither a folder nor FILE.py:FACTORY",
                         wanted="a Hugging Face folder of a language model, or FILE.py:FACTORY")
    model, example, declared = call_factory(source)
    if not isinstance(model, nn.Module):
        raise _bad(source, type(model).__name__, "a torch module", "an exported program cannot be trained")
    judge = None if evaluation is None else cast(Callable[[nn.Module], float], _function(evaluation))

    def save(model: nn.Module, folder: Path) -> str:
        from edgec import importers
        from edgec.ir.execute import save as save_onnx

        graph = importers.load(model, example_inputs=example, **{"name": Path(source.rpartition(":")[0]).stem,
                                                                **declared})
        save_onnx(graph, folder / "model.onnx")
        return "model.onnx"

    return _Subject(model, (copy.deepcopy(model), {"example_inputs": example, **declared}),
                    cast(Batches, _function(data)), save, judge, higher_is_better=True)


def _function(spec: str) -> Callable[..., Any]:
    """FILE.py:FUNCTION. Runs the file. Raises EdgecError (E0502)."""
    import runpy

    file, _, name = spec.rpartition(":")

    def unusable(found: str) -> EdgecError:
        return EdgecError("E0502", stage=_STAGE, where=spec, found=found, wanted="FILE.py:FUNCTION")

    if not file.endswith(".py") or not Path(file).is_file():
        raise unusable("no such file")
    try:
        found = runpy.run_path(file).get(name)
    except Exception as e:  # a user's file may fail in any way
        raise unusable(f"{type(e).__name__}: {e}") from e
    if not callable(found):
        raise unusable(f"no function {name!r}")
    return cast(Callable[..., Any], found)


def _sha_of_weights(model: nn.Module) -> str:
    """Of all parameters and buffers with their names and types."""
    found = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sha(path: object) -> str | None:
    """Of the file that is named, of FILE.py:FUNCTION with the name behind it."""
    if path is None:
        return None
    file, _, name = str(path).rpartition(":") if ".py:" in str(path) else (str(path), "", "")
    try:
        return hashlib.sha256(Path(file).read_bytes() + name.encode()).hexdigest()
    except OSError as e:
        raise EdgecError("E0003", stage=_STAGE, where=file, found=e.strerror or str(e), wanted="a file to read") from e


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
