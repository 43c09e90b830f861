"""A training loop for small fine-tunes that can be killed at any moment and goes on with the same numbers.

    schedule = Schedule(anneal=800)
    cluster(model, "palette2", schedule=schedule)
    result = fit(model, batches, "run", FitOptions(steps=1_000, distill="mix"), schedule=schedule, teacher=original)

batches(i) is a function of the number of the batch alone, so that a run that goes on sees what it would have seen.
The folder holds `checkpoint.pt` (parameters, buffers, optimizer, schedule, random state, losses), `best.pt` with
early stopping, and `log.json`; each is written beside its place and renamed. Of a model that is sharded over
processes (sharded.py) the files have whole parameters; the first process writes them, all read them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgec.errors import EdgecError
from edgec.train.cluster import Schedule, clusters, gaps
from edgec.train.losses import DISTILL, Distill, distillation, label_loss
from edgec.train.sharded import of_model, sharded_like, whole_tensor

_STAGE = "train"
CHECKPOINT, BEST, LOG = "checkpoint.pt", "best.pt", "log.json"
_FORMAT = 1

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
# Of the number of a batch: what the model takes, and labels where there are some (-100: does not count).
Batches = Callable[[int], tuple[Inputs, Tensor | None]]
# (finished steps, all, what)
Progress = Callable[[int, int, str], None]


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class FitOptions:
    """steps: of the optimizer (AdamW), each of `accumulate` batches; lr: after a warm-up over the share `warmup`, then
    a cosine to 0. clip: largest norm of a gradient, 0: any. distill: what is learnt from the teacher's logits, softened
    by `temperature`; labels: the share of cross entropy in the loss where there are labels. checkpoint_every,
    evaluate_every: steps, 0: never. patience: evaluations without a better value after which the run ends, 0: never.
    higher_is_better: of the evaluation. autocast: bfloat16 on the model's device. seed: of dropout and the like.

    Raises EdgecError (E0002).
    """

    steps: int
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.05
    accumulate: int = 1
    clip: float = 1.0
    distill: Distill = "none"
    temperature: float = 1.0
    labels: float = 0.5
    checkpoint_every: int = 50
    evaluate_every: int = 0
    patience: int = 0
    higher_is_better: bool = True
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least: dict[str, float] = {"steps": 1, "accumulate": 1, "clip": 0, "weight_decay": 0, "checkpoint_every": 0,
                                   "evaluate_every": 0, "patience": 0}
        for name, value in least.items():
            if not value <= getattr(self, name) < math.inf:
                raise _bad(name, str(getattr(self, name)), f"at least {value:g}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise _bad(name, str(getattr(self, name)), "more than 0")
        for name in ("warmup", "labels"):
            if not 0 <= getattr(self, name) <= 1:
                raise _bad(name, str(getattr(self, name)), "0 to 1")
        if self.distill not in DISTILL:
            raise _bad("distill", repr(self.distill), ", ".join(DISTILL))
        if self.patience and not self.evaluate_every:
            raise _bad("patience", f"{self.patience} without evaluations", "evaluate_every")


@dataclass(frozen=True)
class Evaluation:
    """After `step` steps. gap: the largest soft-hard gap of a clustered weight (Cluster.gap)."""

    step: int
    value: float
    gap: float


@dataclass(frozen=True)
class Fitted:
    """losses: of every step. best: the evaluation whose weights the model has now, None: those of the last step.
    stopped: whether it ended early."""

    losses: list[float]
    evaluations: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None
    stopped: bool = False


def fit(model: nn.Module, batches: Batches, folder: Path | str, options: FitOptions, *,
        schedule: Schedule | None = None, teacher: nn.Module | None = None,
        evaluate: Callable[[nn.Module], float] | None = None, identity: Mapping[str, Any] | None = None,
        progress: Progress = _silent) -> Fitted:
    """Trains `model` in place, in `folder`, or goes on where the same call was interrupted.

    schedule: told after each step. teacher: run in eval mode without gradients. evaluate: of the model in eval mode,
    where clustered weights are hard; at the end the model has the weights of the best one, of those after the
    schedule's milestone. identity: what else decides about the numbers and must be the same in a run that goes on, as
    options and schedule must (formats, data). A model that fully_shard has sharded over all processes is trained by
    them together, each with its rows of every batch. Raises EdgecError: E0002 for options that do not fit, or a folder
    of another run; E0004 a folder that is something else; E0101 a damaged checkpoint; E0502 batches without
    labels and teacher, or a loss or a gradient that is not finite.
    """
    if (options.distill != "none") != (teacher is not None):
        raise _bad("distill", f"{options.distill} {'with' if teacher is not None else 'without'} a teacher",
                   "a teacher and forward, reverse or mix; or neither")
    if (options.evaluate_every > 0) != (evaluate is not None):
        raise _bad("evaluate_every", f"{options.evaluate_every} {'with' if evaluate else 'without'} an evaluation",
                   "both or neither")
    return _Run(model, batches, Path(folder), options, schedule, teacher, evaluate, identity or {}, progress).run()


class _Run:
    def __init__(self, model: nn.Module, batches: Batches, folder: Path, options: FitOptions,
                 schedule: Schedule | None, teacher: nn.Module | None,
                 evaluate: Callable[[nn.Module], float] | None, identity: Mapping[str, Any], progress: Progress
                 ) -> None:
        self.model, self.batches, self.folder, self.options = model, batches, folder, options
        self.schedule, self.teacher, self.evaluate, self.progress = schedule, teacher, evaluate, progress
        self.here = of_model(model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise _bad(type(model).__name__, "no parameter to train", "parameters that require gradients")
        self.parameters = parameters
        # Norms and biases are not drawn to 0.
        groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
                  {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], options.lr)
        self.step, self.losses, self.evaluations = 0, list[float](), list[Evaluation]()
        self.best: Evaluation | None = None
        # As it will be read back: tuples are lists there.
        self.identity = json.loads(json.dumps({
            "options": dataclasses.asdict(options), **identity,
            **({"processes": self.here.count} if self.here.count > 1 else {}),
            "schedule": None if schedule is None else {k: v for k, v in vars(schedule).items() if k != "steps"},
            "parameters": {name: list(p.shape) for name, p in model.named_parameters()}}))

    def run(self) -> Fitted:
        self._begin()
        if self.teacher is not None:
            self.teacher.eval()
        stopped = self._waited() if self.step else False
        while self.step < self.options.steps and not stopped:
            self.losses.append(self._one())
            self.step += 1
            every = self.options.evaluate_every
            if every and (self.step % every == 0 or self.step == self.options.steps):
                stopped = self._evaluated()
            if self.here.first:
                self.progress(self.step, self.options.steps, f"loss {self.losses[-1]:.4g}" + (
                    f", evaluation {self.evaluations[-1].value:.4g}" if self.evaluations else ""))
            every = self.options.checkpoint_every
            if (every and self.step % every == 0) or self.step == self.options.steps or stopped:
                self._save()
        if self.best is not None:
            with _whole(self.folder / BEST):
                self._restore_best()
        self.model.eval()
        return Fitted(self.losses, self.evaluations, self.best, stopped)

    def _one(self) -> float:
        """One step of the optimizer."""
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * self._rate()
        self.model.train()
        self.optimizer.zero_grad()
        total = 0.0
        for part in range(options.accumulate):
            value = self._loss(self.step * options.accumulate + part)
            number = float(self.here.total(value.detach()))
            if not math.isfinite(number):
                raise EdgecError("E0502", stage=_STAGE, where=f"step {self.step}", found=f"a loss of {number:g}",
                                 wanted="a finite one", hint="a smaller learning rate; the checkpoint is from before")
            # FSDP takes the mean of the processes' gradients; their parts of the loss add up.
            (value * self.here.count / options.accumulate).backward()  # type: ignore[no-untyped-call]
            total += number / options.accumulate
        norm = float(whole_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, options.clip or math.inf)))
        # A finite loss says nothing about its gradient, and after such a step no checkpoint were of any use.
        if not math.isfinite(norm):
            raise EdgecError("E0502", stage=_STAGE, where=f"step {self.step}", found=f"a gradient of norm {norm:g}",
                             wanted="a finite one", hint="a smaller learning rate; the checkpoint is from before")
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return total

    def _rate(self) -> float:
        warmup = max(1, round(self.options.warmup * self.options.steps))
        return min(1.0, (self.step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * self.step / self.options.steps))

    def _loss(self, number: int) -> Tensor:
        options = self.options
        inputs, labels = self._batch(number)
        device = self.parameters[0].device
        with torch.autocast(device.type, torch.bfloat16, enabled=options.autocast):
            wanted = None
            # The model as it was first: what it does not take is the data's fault.
            if self.teacher is not None:
                with torch.no_grad(), _blaming(f"batch {number}", "inputs that the model takes"):
                    wanted = logits_of(self.teacher, inputs)
            with _blaming(f"batch {number}", "inputs that the model takes"):
                logits = logits_of(self.model, inputs)
        if labels is None and wanted is None:
            raise EdgecError("E0502", stage=_STAGE, where=f"batch {number}", found="neither labels nor a teacher",
                             wanted="something to learn from")
        if wanted is None:
            assert labels is not None
            with _blaming(f"batch {number}", "labels of as many positions as the logits, below the number of classes"):
                return label_loss(logits, labels, self.here.total)
        learnt = distillation(logits, wanted, options.distill, options.temperature, labels, self.here.total)
        if labels is None or not options.labels:
            return learnt
        return (1 - options.labels) * learnt + options.labels * label_loss(logits, labels, self.here.total)

    def _batch(self, number: int) -> tuple[Inputs, Tensor | None]:
        with _blaming(f"batch {number}", "batches(number) -> (inputs, labels or None)"):
            found: Any = self.batches(number)
        if not isinstance(found, tuple) or len(found) != 2 or not (found[1] is None or isinstance(found[1], Tensor)):
            raise EdgecError("E0502", stage=_STAGE, where=f"batch {number}", found=type(found).__name__,
                             wanted="(inputs, labels), labels a tensor or None")
        share: tuple[Inputs, Tensor | None] = self.here.share(found, f"batch {number}")
        return share

    def _evaluated(self) -> bool:
        """Evaluates; True when there was nothing better for as long as the options say."""
        assert self.evaluate is not None
        self.model.eval()
        with torch.no_grad(), _blaming(f"evaluation after step {self.step}", "a number"):
            value = self.here.every(float(self.evaluate(self.model)))[0]
        if math.isnan(value):
            raise EdgecError("E0502", stage=_STAGE, where=f"evaluation after step {self.step}", found="NaN",
                             wanted="a number")
        now = Evaluation(self.step, value, max(gaps(self.model).values(), default=0.0) if clusters(self.model) else 0.0)
        self.evaluations.append(now)
        # Float weights are nearly always the best, and none of few bits can be had of them.
        if self.schedule is not None and not self.schedule.active:
            return False
        sign = 1 if self.options.higher_is_better else -1
        if self.best is None or sign * now.value > sign * self.best.value:
            self.best = now
            best = self.here.whole({**self._state(), "step": self.step})
            self.here.once(lambda: _write(self.folder / BEST, best))
        return self._waited()

    def _waited(self) -> bool:
        if not self.options.patience or self.best is None:
            return False
        return sum(e.step > self.best.step for e in self.evaluations) >= self.options.patience

    def _state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(),
                "schedule": self.schedule.state_dict() if self.schedule is not None else {}}

    def _restore(self, state: Mapping[str, Any]) -> None:
        model = state["model"]
        if self.here.count > 1:
            own = self.model.state_dict()
            model = {name: sharded_like(value, own.get(name, value)) for name, value in model.items()}
        self.model.load_state_dict(model)
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])

    def _restore_best(self) -> None:
        assert self.best is not None
        state = _load(self.folder / BEST)
        if state["step"] != self.best.step:
            raise _damaged(self.folder / BEST, f"weights of step {state['step']}, the best evaluation was after step "
                                               f"{self.best.step}")
        self._restore(state)

    def _save(self) -> None:
        random = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
        state = self.here.whole({
            **self._state(), "format": _FORMAT, "identity": json.dumps(self.identity, sort_keys=True),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "losses": self.losses,
            "evaluations": [dataclasses.astuple(e) for e in self.evaluations],
            "best": dataclasses.astuple(self.best) if self.best is not None else (),
            "random": [one for own in self.here.every(random) for one in own]})
        text = json.dumps({"identity": self.identity, "losses": self.losses,
                           "evaluations": [dataclasses.asdict(e) for e in self.evaluations]}, indent=1)

        def write() -> None:
            _write(self.folder / CHECKPOINT, state)
            replace_file(self.folder / LOG, lambda path: path.write_text(text + "\n", encoding="utf-8"))

        self.here.once(write)

    def _begin(self) -> None:
        self._find()
        self.here.same(self.step, f"the steps in {self.folder}", "a folder that all processes see")

    def _find(self) -> None:
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            foreign = sorted(p.name for p in folder.iterdir()
                             if p.name not in (CHECKPOINT, BEST, LOG) and not p.name.endswith(".tmp"))
        except OSError as e:
            raise EdgecError("E0004", stage=_STAGE, where=str(folder), found=str(e), wanted="a writable folder") from e
        if not (folder / CHECKPOINT).exists():
            if foreign:
                raise EdgecError("E0004", stage=_STAGE, where=str(folder), wanted="a new folder, or an earlier run's",
                                 found=f"other files ({', '.join(foreign[:4])})")
            torch.manual_seed(self.options.seed + self.here.rank)
            return
        state = _load(folder / CHECKPOINT)
        if state.get("format") != _FORMAT:
            raise _damaged(folder / CHECKPOINT, f"format {state.get('format')!r}")
        with _whole(folder / CHECKPOINT):
            self._go_on(state)

    def _go_on(self, state: Mapping[str, Any]) -> None:
        """What a checkpoint says, when it is of this run."""
        then = json.loads(state["identity"])
        differing = sorted(k for k in {*then, *self.identity} if then.get(k) != self.identity.get(k))
        if differing:
            raise _bad(str(self.folder), "; ".join(
                           f"{k}: {_short(then.get(k))} then, {_short(self.identity.get(k))} now" for k in differing),
                       "the options and the model of the run that began it", "choose another folder or delete this one")
        self._restore(state)
        optimizer = state["optimizer"]
        if self.here.count > 1:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            optimizer = {**optimizer, "state": {
                at: {name: sharded_like(value, trained[at]) for name, value in of_one.items()}
                for at, of_one in optimizer["state"].items()}}
        self.optimizer.load_state_dict(optimizer)
        self.step, self.losses = int(state["step"]), list(state["losses"])
        self.evaluations = [Evaluation(*e) for e in state["evaluations"]]
        self.best = Evaluation(*state["best"]) if state["best"] else None
        each = len(state["random"]) // self.here.count
        random = state["random"][self.here.rank * each :][:each]
        torch.set_rng_state(random[0])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(random[1:])


@contextmanager
def _blaming(where: str, wanted: str) -> Iterator[None]:
    """What a user's data and functions raise, as an error that says where it arose."""
    try:
        yield
    except EdgecError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, OSError) as e:
        if isinstance(e, RuntimeError) and "gloo" in str(e):
            raise EdgecError("E0502", stage=_STAGE, where=where, found="a process that has ended",
                             wanted="all of them at work", hint="its own message says why") from e
        raise EdgecError("E0502", stage=_STAGE, where=where, found=f"{type(e).__name__}: {str(e)[:300]}", wanted=wanted
                         ) from e


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What is missing from a checkpoint or does not fit, as an error that names it."""
    try:
        yield
    except EdgecError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as e:
        raise _damaged(path, f"{type(e).__name__}: {e}") from e


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's only output, or what is called logits of several."""
    if isinstance(inputs, Mapping):
        out = model(**inputs)
    else:
        out = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    found = out if isinstance(out, Tensor) else out[0] if isinstance(out, tuple) else getattr(out, "logits", None)
    if not isinstance(found, Tensor):
        raise _bad(type(model).__name__, f"an output of {type(out).__name__}", "a tensor of logits, or .logits")
    return found


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside its place, flushes it to the disk and renames it there. Raises EdgecError (E0004)."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        raise EdgecError("E0004", stage=_STAGE, where=str(path), found=str(e), wanted="room for a checkpoint",
                         hint="the same call goes on from the last one") from e


def _write(path: Path, state: Mapping[str, Any]) -> None:
    replace_file(path, lambda to: torch.save(dict(state), to))


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises whatever its reader stumbles over
        raise _damaged(path, f"{type(e).__name__}: {e}") from e
    if not isinstance(state, dict):
        raise _damaged(path, type(state).__name__)
    return state


def _damaged(path: Path, found: str) -> EdgecError:
    return EdgecError("E0101", stage=_STAGE, where=str(path), found=found[:300], wanted="a checkpoint of `edgec train`",
                      hint="delete the folder and begin anew")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
