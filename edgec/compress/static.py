"""Static quantization to 8-bit integers: what samples say about a graph, for the passes that round it.

The float graph is run by onnxruntime with every activation of a region as an output; two runs give each a histogram
(ranges.py). A third runs every region a second time beside itself, rounded and on the same rounded input: the
difference is the region's own error, its mean per channel what bias correction takes away. One sample's activations
are in memory per thread, and every figure is the same on any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.calibrate import Samples
from edgec.compress.formats import Array
from edgec.compress.layers import check_plain
from edgec.compress.policy import Kept
from edgec.compress.products import in_parallel
from edgec.compress.qdq import Emitter
from edgec.compress.ranges import Histogram, Method, QParams
from edgec.compress.regions import Choice, Region, activations_of, find_regions
from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.model import Builder, add_initializer, is_op, rank_of

_STAGE = "calibration"
_PROBES = 16  # samples that the errors of the report are measured on

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RegionError:
    """Of a region's own, on its rounded input. mean: float64 [N] of the result before its activation, found minus
    wanted, linears only. noise, signal: sums of squares of the rounded result's difference and of the result."""

    mean: Array | None
    noise: float
    signal: float

    @property
    def relative(self) -> float:
        return self.noise / self.signal if self.signal > 0 else float(self.noise > 0)

    @property
    def sqnr_db(self) -> float:
        return float(-10 * np.log10(self.relative)) if self.relative > 0 else float("inf")


@dataclass
class Static:
    """A static quantization on its way through the passes: samples, what was asked for, and what was found.

    equalize, correct: whether the passes of these names do anything. report: what the pass QuantizeStatic did.
    """

    samples: Samples
    method: Method
    overrides: tuple[Choice, ...] = ()
    equalize: bool = False
    correct: bool = False
    progress: Progress = lambda done, total, what: None
    report: dict[str, Any] = field(default_factory=dict)
    _params: dict[str, QParams] = field(default_factory=dict)

    def regions(self, model: ir.Model) -> tuple[list[Region], list[Kept]]:
        check_plain(model)
        return find_regions(model, self.overrides)

    def params(self, model: ir.Model, regions: Sequence[Region]) -> Mapping[str, QParams]:
        """Scale and zero point of every activation by name; measured once, as later passes change biases alone."""
        if not self._params:
            shared = {r.out.name or "": r.inputs[0].name or "" for r in regions if r.same}
            values = list(activations_of(regions))
            found = self.histograms(model, [v for v in values if v.name not in shared])
            for value in values:
                name = value.name or ""
                self._params[name] = self._params[shared[name]] if name in shared else QParams.of(
                    *found[name].range(self.method))
        return self._params

    def histograms(self, model: ir.Model, values: Sequence[ir.Value]) -> Mapping[str, Histogram]:
        return observe(model, values, self.samples, self.method.name != "minmax", self.progress)

    def errors(self, model: ir.Model, regions: Sequence[Region], probes: int = 0) -> dict[str, RegionError]:
        """The own error of every region by the name of its result, on all samples or the first `probes`."""
        count = min(self.samples.count, probes or self.samples.count)
        return own_errors(model, regions, self.params(model, regions), self.samples, count, self.progress)

    def probed(self, model: ir.Model, regions: Sequence[Region]) -> dict[str, RegionError]:
        return self.errors(model, regions, _PROBES)


def tapped(model: ir.Model, values: Iterable[ir.Value]) -> ir.Model:
    """A copy of the graph, sharing the tensors, whose outputs are `values`, none of them a graph input."""
    outputs = list(values)
    names = {v.name for v in outputs}
    copy = model.clone()
    made = {v.name: v for node in copy.graph for v in node.outputs if v.name in names}
    copy.graph.outputs[:] = [made[v.name] for v in outputs]
    return copy


def run_samples(model: ir.Model, samples: Samples, count: int, what: str, progress: Progress,
                take: Callable[[int, Mapping[str, Array], Mapping[str, Array]], None]) -> None:
    """take(sample, inputs, outputs) for the first `count` samples, several at once. One thread runs a sample."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, count, what)

    with Runner(model, _STAGE, threads=1) as runner:
        def sample(i: int) -> None:
            feeds = samples.feed(i)
            take(i, feeds, runner.run(feeds) if model.graph.outputs else {})

        in_parallel(sample, range(count), tick)


def _finite(name: str, index: int, low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise EdgecError("E0502", stage=_STAGE, where=f"sample {index}, value {name!r}", found="infinity or NaN",
                         wanted="samples on which the model stays finite")


def observe(model: ir.Model, values: Sequence[ir.Value], samples: Samples, counted: bool, progress: Progress
            ) -> dict[str, Histogram]:
    """The histogram of each of `values` by name; without `counted` its ends alone. Raises EdgecError (E0502) for
    samples with infinities or NaNs, or none."""
    if not samples.count:
        raise EdgecError("E0502", stage=_STAGE, where="--calib", found="no sample", wanted="at least one")
    found = {v.name or "": Histogram() for v in values}
    inner = tapped(model, [v for v in values if not v.is_graph_input()])
    lock = threading.Lock()

    def widen(i: int, feeds: Mapping[str, Array], outs: Mapping[str, Array]) -> None:
        for name, histogram in found.items():
            x = outs[name] if name in outs else feeds[name]
            if x.size:
                low, high = float(x.min()), float(x.max())
                _finite(name, i, low, high)
                with lock:
                    histogram.widen(low, high)

    def count(i: int, feeds: Mapping[str, Array], outs: Mapping[str, Array]) -> None:
        for name, histogram in found.items():
            added = histogram.count(outs[name] if name in outs else feeds[name])
            with lock:
                histogram.add(*added)

    run_samples(inner, samples, samples.count, "ranges of activations", progress, widen)
    if counted:
        run_samples(inner, samples, samples.count, "histograms of activations", progress, count)
    return found


def channel_maxima(model: ir.Model, values: Sequence[ir.Value], samples: Samples, progress: Progress
                   ) -> dict[str, Array]:
    """The largest value per channel (axis 1) of each of `values` over all samples, by name."""
    found: dict[str, Array] = {}
    lock = threading.Lock()

    def take(i: int, feeds: Mapping[str, Array], outs: Mapping[str, Array]) -> None:
        for name, x in outs.items():
            largest = x.max(tuple(a for a in range(x.ndim) if a != 1))
            _finite(name, i, float(largest.min()), float(largest.max()))
            with lock:
                found[name] = np.maximum(found.get(name, largest), largest)

    if values:
        run_samples(tapped(model, values), samples, samples.count, "largest values per channel", progress, take)
    return found


def own_errors(model: ir.Model, regions: Sequence[Region], params: Mapping[str, QParams], samples: Samples, count: int,
               progress: Progress) -> dict[str, RegionError]:
    """See RegionError; by the name of the region's result."""
    shadow = model.clone()
    mine = {region.raw.name for region in regions}
    copies = [region for region in find_regions(shadow)[0] if region.raw.name in mine]
    emitter, outputs = Emitter({v: params[v.name or ""] for v in activations_of(copies)}), list[ir.Value]()
    names: list[tuple[str, str, str, str]] = []
    for region in copies:
        op = Builder(region.chain[-1])
        inputs = {value: emitter.rounded(op, value, emitter.params[value]) for value in region.inputs}
        raw, out = emitter.region(op, region, inputs.__getitem__)
        rounded = emitter.rounded(op, out, emitter.params[region.out])
        noise = op.ReduceSumSquare(op.Sub(rounded, region.out), keepdims=0)
        signal = op.ReduceSumSquare(region.out, keepdims=0)
        made = [noise, signal]
        if region.weight is not None:
            rank, axis = rank_of(region.raw) or 2, 1 if is_op(region.node, "Conv") else -1
            axes = [a for a in range(rank) if a != axis % rank]
            # Of a vector nothing is averaged: no axes are none, not all.
            made.append(op.ReduceMean(op.Sub(raw, region.raw), op.ints(axes), keepdims=0, noop_with_empty_axes=1))
        for i, node in enumerate(op.nodes):
            node.name = f"{region.out.name}/shadow_{i}"
            node.outputs[0].name = node.name
        for value in made:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        for constant in op.initializers:
            add_initializer(shadow.graph, constant)
        shadow.graph.insert_after(region.chain[-1], op.nodes)
        outputs += made
        mean = made[2].name or "" if len(made) > 2 else ""
        names.append((region.out.name or "", made[0].name or "", made[1].name or "", mean))
    shadow.graph.outputs[:] = outputs
    results: list[Mapping[str, Array]] = [{}] * count

    def take(i: int, feeds: Mapping[str, Array], outs: Mapping[str, Array]) -> None:
        results[i] = outs

    run_samples(shadow, samples, count, "errors of layers", progress, take)
    # Summed in the order of the samples, whichever was finished first.
    found = {}
    for name, noise_, signal_, mean in names:
        means = np.mean([r[mean].astype(np.float64) for r in results], axis=0) if mean else None
        found[name] = RegionError(means, *(float(sum(float(r[k]) for r in results)) for k in (noise_, signal_)))
    return found

