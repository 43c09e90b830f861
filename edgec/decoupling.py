"""`compile --decouple`: which convolutions become depthwise-separable pairs, of which rank, within a budget.

The factors come from compress/decouple.py; here are the user's options, the times of layers and of the model on this
machine, the choice, and the report. A time is that of one thread: of a layer the calls that compute it, profiled in a
small model of its own with the layer's shapes; of the model one run.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.calibration import NONE, CalibOptions, open_samples
from edgec.compress.decouple import Candidate, Pairs, Progress, candidates, choose_ranks, fit_all
from edgec.errors import EdgecError, did_you_mean
from edgec.ir.estimate import multiplications
from edgec.ir.execute import random_inputs
from edgec.ir.info import ModelInfo, attach_info, info_of
from edgec.ir.model import dims_of, ints_attr
from edgec.ir.passes import Context
from edgec.passes.compress.decouple_conv import DecoupleConv

_STAGE = "decouple"
_OPTION = "--decouple"
_BUDGETS = ("macs", "latency")
# The calls of a layer's own model that are not the layer: the pool before it, copies to and from the ports' layout.
_AROUND = frozenset({"pool2d", "transpose", "copy"})
_ROUNDS, _RUNS = 5, 3

Bundle = Callable[[ir.Model, Path], None]


@dataclass(frozen=True)
class DecoupleOptions:
    """budget: `macs=SHARE` or `latency=SHARE`, of what the model takes now, 0 < SHARE < 1. calib, samples, seed: as of
    QuantizeOptions; without samples the weights decide instead of the outputs. Raises EdgecError (E0002, E0003)."""

    budget: str
    calib: str | None = None
    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        kind, _, text = self.budget.partition("=")
        if kind not in _BUDGETS:
            raise EdgecError("E0002", stage=_STAGE, where=_OPTION, found=repr(self.budget), wanted="macs=SHARE, "
                             "latency=SHARE", hint=did_you_mean(kind, _BUDGETS))
        try:
            fits = 0 < float(text) < 1
        except ValueError:
            fits = False
        if not fits:
            raise EdgecError("E0002", stage=_STAGE, where=_OPTION, found=repr(text), wanted="a share between 0 and 1",
                             hint=f"{kind}=0.5 keeps half")
        self.samples_from()

    @property
    def kind(self) -> str:
        return self.budget.partition("=")[0]

    @property
    def share(self) -> float:
        return float(self.budget.partition("=")[2])

    def samples_from(self) -> CalibOptions:
        return CalibOptions(NONE if self.calib is None else self.calib, self.samples, 0, self.seed)


@dataclass(frozen=True)
class Decoupled:
    """pairs: for the pass DecoupleConv. report: what reports/decouple.json says."""

    pairs: Mapping[str, Pairs]
    report: dict[str, Any] = field(default_factory=dict)


def decouple(model: ir.Model, options: DecoupleOptions, bundle: Bundle, *, timed: bool, progress: Progress
             ) -> Decoupled:
    """Fits pairs to the convolutions of the normalized `model`, which stays as it is, and chooses their ranks.

    bundle: compiles a model for this machine to a path. timed: whether what is compiled for runs here, so that times
    mean something. Of a budget of multiplications the result depends on model and options alone, of one of latency on
    the times too. Raises EdgecError: E0002 a budget that cannot be kept or needs times that are not to be had.
    """
    if options.kind == "latency" and not timed:
        raise EdgecError("E0002", stage=_STAGE, where=_OPTION, found="a target that is not this machine",
                         wanted="times, which are measured here", hint=f"{_OPTION} macs=SHARE")
    timed = timed and info_of(model).task == "generic"
    copy = model.clone()
    copy.meta.update(model.meta)
    copy.graph.sort()
    found, kept = candidates(copy)
    if options.kind == "latency" and not timed:
        raise EdgecError("E0002", stage=_STAGE, where=_OPTION, found="a language model", wanted="a generic model",
                         hint=f"{_OPTION} macs=SHARE")
    calibration = options.samples_from()
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        work = Path(folder)
        samples = None
        if calibration.source != NONE:
            samples = open_samples(copy, calibration, work, lambda path: bundle(model, path), progress)
        fits = fit_all(copy, found, samples, work / "samples", progress)
        clock = _Clock(bundle, work, info_of(model)) if timed else None
        chosen, whole = _choose(copy, options, found, fits, kept, clock)
        pairs = {name: fits[name][rank - 1] for name, rank in chosen.items() if rank}
        macs = {"before": multiplications(model), "after": multiplications(model) - sum(
            c.macs - c.macs_at(chosen[c.layer.name]) for c in found if chosen.get(c.layer.name))}
        report: dict[str, Any] = {
            "budget": options.budget, "calibration": calibration.identity(), "macs": macs,
            "layers": [_row(c, pairs[c.layer.name], clock) for c in found if c.layer.name in pairs],
            "kept": [{"name": name, "reason": reason} for name, reason in kept.items()],
        }
        if clock is not None:
            before = whole if whole is not None else clock.model(model)
            report["ms"] = {"before": before, "after": clock.model(_replaced(model, pairs)) if pairs else before}
    return Decoupled(pairs, report)


def _choose(model: ir.Model, options: DecoupleOptions, found: Sequence[Candidate], fits: Mapping[str, list[Pairs]],
            kept: dict[str, str], clock: _Clock | None) -> tuple[dict[str, int], float | None]:
    """(the rank of every candidate, 0: as it is; the time of the model where that decided). kept grows."""
    choices: list[list[tuple[float, float]]] = []
    ranks: list[list[int]] = []
    whole = None
    if options.kind == "macs":
        total = float(multiplications(model))
        dense = [float(c.macs) for c in found]
        costs = [[float(c.macs_at(rank)) for rank in c.ranks] for c in found]
    else:
        assert clock is not None  # checked by the caller
        total = whole = clock.model(model)
        times = [clock.layer(c, [None, *fits[c.layer.name]]) for c in found]
        dense, costs = [t[0] for t in times], [t[1:] for t in times]
    for candidate, full, cost in zip(found, dense, costs, strict=True):
        useful = [(rank, t) for rank, t in zip(candidate.ranks, cost, strict=True) if t < full]
        ranks.append([0, *(rank for rank, _ in useful)])
        name = candidate.layer.name
        choices.append([(full, 0.0), *((t, fits[name][rank - 1].error) for rank, t in useful)])
        if not useful:
            kept[name] = f"no rank is faster than {full:.3f} ms here"
    rest = total - sum(dense)
    picked = choose_ranks(choices, options.share * total - rest)
    if picked is None:
        least = (rest + sum(min(cost for cost, _ in c) for c in choices)) / total
        reasons = "; ".join(f"{name}: {why}" for name, why in list(kept.items())[:6])
        if all(len(c) == 1 for c in choices):
            raise EdgecError("E0002", stage=_STAGE, where=_OPTION, found=reasons or "no convolution",
                             wanted="a convolution that pairs make cheaper", hint=f"compile without {_OPTION}")
        # Rounded up: what is said here must be enough.
        raise EdgecError("E0002", stage=_STAGE, where=_OPTION, found=options.budget,
                         wanted=f"at least {options.kind}={math.ceil(1e3 * least) / 1e3:.3f}, what the cheapest ranks "
                         "leave", hint="the rest are layers that cannot be decoupled"
                         + (f": {reasons}" if reasons else ""))
    result = {c.layer.name: r[i] for c, r, i in zip(found, ranks, picked, strict=True)}
    for candidate in found:
        if not result[candidate.layer.name]:
            kept.setdefault(candidate.layer.name, "the budget is kept without it")
    return result, whole


def _row(candidate: Candidate, pairs: Pairs, clock: _Clock | None) -> dict[str, Any]:
    outputs, inputs, _ = candidate.sizes
    window = candidate.layer.window
    assert window is not None  # a candidate
    row = {"name": candidate.layer.name, "outputs": outputs, "inputs": inputs, "kernel": list(window.kernel),
           "rank": pairs.rank, "error": pairs.error, "macs": candidate.macs,
           "macs_after": candidate.macs_at(pairs.rank)}
    if clock is not None:
        row["ms"], row["ms_after"] = clock.layer(candidate, [None, pairs])
    return row


def _replaced(model: ir.Model, pairs: Mapping[str, Pairs]) -> ir.Model:
    copy = model.clone()
    copy.meta.update(model.meta)
    DecoupleConv().call(copy, Context(decoupled=pairs))
    return copy


class _Clock:
    """Milliseconds on this machine, one thread; layers of the same shape are measured once."""

    def __init__(self, bundle: Bundle, work: Path, info: ModelInfo) -> None:
        self._bundle, self._path, self._info = bundle, work, info
        self._known: dict[Any, float] = {}
        self._files = 0

    def model(self, model: ir.Model) -> float:
        """The fastest of a few runs on random inputs."""
        from edgec.native.session import Model

        path = self._compiled(model)
        feeds = random_inputs(model)
        with Model(path) as opened, opened.session(threads=1) as session:
            feeds = {p.name: np.resize(feeds[p.name], p.shape).astype(p.dtype) for p in opened.inputs}
            seconds = []
            for _ in range(2 * _ROUNDS):
                start = time.perf_counter()
                session.run(feeds)
                seconds.append(time.perf_counter() - start)
        return 1e3 * min(seconds)

    def layer(self, candidate: Candidate, versions: Sequence[Pairs | None]) -> list[float]:
        """Of each version (None: as it is) the calls that compute it, all in turn, the fastest of a few rounds."""
        from edgec.native.session import Model

        shape = self._shape(candidate)
        keys = [(shape, candidate.layer.rows, candidate.layer.window, 0 if v is None else v.rank) for v in versions]
        fresh = [(key, v) for key, v in zip(keys, versions, strict=True) if key not in self._known]
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        with ExitStack() as stack:
            sessions = []
            for key, version in fresh:
                alone = _alone(candidate, shape)
                path = self._compiled(alone if version is None else _replaced(alone, {"w": version}))
                opened = stack.enter_context(Model(path))
                sessions.append((key, stack.enter_context(opened.session(threads=1, profile=True))))
            for turn in range(_ROUNDS + 1):
                for key, session in sessions:
                    session.reset_profile()
                    for _ in range(_RUNS):
                        session.run({"x": x})
                    calls = [c for c in session.profile() if c.kernel.split("[")[0] not in _AROUND]
                    if turn:  # the first round warms up
                        took = sum(c.nanoseconds for c in calls) / _RUNS / 1e6
                        self._known[key] = min(took, self._known.get(key, took))
        return [self._known[key] for key in keys]

    def _compiled(self, model: ir.Model) -> Path:
        self._files += 1
        path = self._path / f"{self._files}.edgec"
        self._bundle(model, path)
        return path

    def _shape(self, candidate: Candidate) -> tuple[int, ...]:
        """Of the layer's input; sizes that vary at the end of their range."""
        dims = dims_of(candidate.layer.source) or ()
        return tuple(d if isinstance(d, int) else self._info.dynamic.get(d or "", (1, 1))[1] for d in dims)


def _alone(candidate: Candidate, shape: tuple[int, ...]) -> ir.Model:
    """The convolution as a model of its own, behind a pool of single pixels that gives it the layout it has inside a
    network."""
    node, axes = candidate.layer.node, len(shape) - 2
    assert node is not None  # a candidate
    _, inputs, _ = candidate.sizes
    kernel = candidate.layer.window.kernel if candidate.layer.window is not None else ()
    weight = np.ones((candidate.layer.rows, inputs, *kernel), np.float32)
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float32, shape=ir.Shape(shape))
    w = ir.Value(name="w", type=float32, shape=ir.Shape(weight.shape), const_value=ir.tensor(weight, name="w"))
    pool = ir.node("MaxPool", [x], {"kernel_shape": [1] * axes})
    attributes = {key: ints_attr(node, key) for key in ("strides", "dilations", "pads")}
    conv = ir.node("Conv", [pool.outputs[0], w], {k: v for k, v in attributes.items() if v is not None})
    conv.outputs[0].name, pool.outputs[0].name = "y", "pooled"
    conv.outputs[0].type = pool.outputs[0].type = float32
    pool.outputs[0].shape = ir.Shape(shape)
    graph = ir.Graph([x], [conv.outputs[0]], nodes=[pool, conv], initializers=[w], opset_imports={"": 24}, name="layer")
    return attach_info(ir.Model(graph, ir_version=10), ModelInfo())
