"""Quantizes the layers of a normalized graph one after the other into a folder (store.py), within a memory limit.

Without samples each layer is solved from its weights alone. With samples the groups of calibrate.py are solved in the
order of the graph, each from the statistics of its input in the already quantized model; a second stream of a few
samples through the original says how far the two have come apart. A weight that is a table and a head at once
(tied embeddings) is solved where it is a head: until there the lookups read the original.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.calibrate import Cut, Errors, Samples, Stream, cuts_of, groups_of, statistics
from edgec.compress.formats import Array, PaletteSpec, PaletteTensor, Quantized, dequantize, dequantize_palette
from edgec.compress.layers import Layer, find_layers, weight_of
from edgec.compress.policy import Choice, Kept, Override, Spec, choose
from edgec.compress.solvers import LinearStats
from edgec.compress.store import Packed, Store, read_layer
from edgec.errors import EdgecError

_STAGE = "quantize"
_PROBES = 4  # samples that also run through the original
_TILE = 64  # rows that are never divided
_SLAB = 1 << 20  # weights solved at once when nothing is shared between rows

# (weights [N, K], format, statistics of the input, name) -> the packed matrix; rows are independent but for palettes.
Solver = Callable[[Array, Spec, LinearStats | None, str], Packed]
# (done, all, what) in units of work
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Work:
    """What a quantization is to do. model: normalized, a copy that is changed. max_memory: bytes of the process."""

    model: ir.Model
    choices: tuple[Choice, ...]
    kept: tuple[Kept, ...]
    solver: Solver
    max_memory: int | None = None


def plan_work(model: ir.Model, default: Spec, overrides: Sequence[Override], solver: Solver,
              max_memory: int | None = None, uniform_heads: bool = False) -> Work:
    """Decides what becomes of every layer of `model`, which is copied, not changed. Raises EdgecError (E0002)."""
    copy = model.clone()
    copy.meta.update(model.meta)
    copy.graph.sort()
    chosen, kept = choose(find_layers(copy), default, overrides, uniform_heads)
    return Work(copy, tuple(chosen), tuple(kept), solver, max_memory)


def run(work: Work, samples: Samples | None, store: Store, progress: Progress) -> None:
    """Makes all layers that `store` has not got yet. Raises EdgecError; the store then continues from its last step."""
    if store.complete:
        store.finish({})
        return
    steps = _steps(work, samples is not None)
    done = [c for step in steps[: store.step] for c in step.choices]
    runner = _Run(work, steps, samples, store, progress)
    for choice, record in zip(done, store.state["layers"], strict=True):
        runner.use(choice.layer, record)
    for step in steps[store.step:]:
        runner.step(step)
    store.finish({"kept": [dataclasses.asdict(k) for k in work.kept]})


@dataclass(frozen=True)
class _Step:
    """Layers that are solved together; cut: number of the cut at which their input stands, None without one."""

    choices: tuple[Choice, ...]
    cut: int | None


def _steps(work: Work, calibrated: bool) -> list[_Step]:
    if not calibrated:
        return [_Step((choice,), None) for choice in work.choices]
    by_name = {c.layer.name: c for c in work.choices}
    groups = groups_of(work.model.graph, (c.layer for c in work.choices))
    tables = [_Step((c,), None) for c in work.choices if c.layer.source is None]
    return [*tables, *(_Step(tuple(by_name[x.name] for x in g.layers), i) for i, g in enumerate(groups))]


class _Run:
    """The state of a run: the graph that is quantized step by step, and the samples on their way through it."""

    def __init__(self, work: Work, steps: list[_Step], samples: Samples | None, store: Store, progress: Progress
                 ) -> None:
        self.work, self.store, self._progress = work, store, progress
        self._index = {c.layer.name: i for i, c in enumerate(c for step in steps for c in step.choices)}
        self._total = sum(_weights(step) for step in steps) * 2
        self._done = sum(_weights(step) for step in steps[: store.step]) * 2
        self.cuts: list[Cut] = []
        if samples is not None:
            graph = work.model.graph
            self.cuts = cuts_of(graph, groups_of(graph, (c.layer for c in work.choices)))
            # The original's weights stay in this copy when those of the first are replaced.
            original = work.model.clone()
            probes = min(_PROBES, samples.count)
            self.quantized = Stream(work.model, self.cuts, samples, samples.count, store.work, "quantized")
            self.original = Stream(original, self.cuts, samples, probes, store.work, "original")
        self._check_memory(steps[store.step:])

    def use(self, layer: Layer, record: dict[str, Any]) -> None:
        """From here on the graph reads the layer as it was stored."""
        value, folder = layer.weight, self.store.folder
        source = value.const_value
        assert source is not None
        shape, dtype = tuple(source.shape.numpy()), source.dtype

        def restored() -> ir.TensorProtocol:
            weights = _dense(read_layer(folder, record).load())
            return ir.Tensor(weight_of(weights, shape).astype(dtype.numpy()), name=layer.name)

        value.const_value = ir.LazyTensor(restored, dtype=dtype, shape=ir.Shape(shape), name=layer.name, cache=False)

    def step(self, step: _Step) -> None:
        stats: LinearStats | None = None
        pairs: list[tuple[Array, Array]] = []
        if step.cut is not None:
            self._advance(step, step.cut)
            stats = statistics(self.quantized, step.cut, self.cuts[step.cut].group)
            if not stats.diag.any():
                stats = None  # zeros alone say nothing about the weights: as without samples, and the report says so
            layer = step.choices[0].layer
            sides = [[layer.rows_of(stream.source(step.cut, i)) for i in range(self.original.count)]
                     for stream in (self.quantized, self.original)]
            pairs = list(zip(*sides, strict=True))
        else:
            self._done += _weights(step)
        records = []
        for choice in step.choices:
            records.append(self._solve(choice, stats, pairs))
            self._done += choice.layer.rows * choice.layer.columns
            self._progress(self._done, self._total, choice.layer.name)
        self.store.commit(records)
        for choice, record in zip(step.choices, records, strict=True):
            self.use(choice.layer, record)

    def _advance(self, step: _Step, cut: int) -> None:
        streams = (self.quantized, self.original)
        runs, size, passed = sum(stream.count for stream in streams), _weights(step), 0
        start = self._done

        def tick() -> None:
            nonlocal passed
            passed += 1
            self._done = start + size * passed // runs
            self._progress(self._done, self._total, f"samples up to {step.choices[0].layer.name}")

        for stream in streams:
            if cut:
                stream.forget(cut - 1)
            stream.advance(cut, tick)
        self._done = start + size

    def _solve(self, choice: Choice, stats: LinearStats | None, pairs: Sequence[tuple[Array, Array]]) -> dict[str, Any]:
        layer, weight = choice.layer, choice.layer.read()
        slab = self._slab(choice, stats is not None)
        whole = _joined([self.work.solver(weight[at : at + slab], choice.spec, stats, layer.name)
                         for at in range(0, layer.rows, slab)])
        errors = Errors(stats, pairs)
        for rows in _slices(whole):
            errors.add(weight[rows], _dense(_rows(whole, rows)))
        record = {
            "name": layer.name, "kind": layer.kind, "spec": str(choice.spec), "rows": layer.rows,
            "columns": layer.columns, "bytes": choice.spec.bytes(layer.rows, layer.columns), "error": errors.own,
            "file": self.store.write_layer(self._index[layer.name], layer.name, whole),
        }
        if pairs and stats is None:
            record["input"] = "zero in every sample"
        if errors.accumulated is not None:
            record["accumulated"] = errors.accumulated
        return record

    def _slab(self, choice: Choice, calibrated: bool) -> int:
        """Rows that are solved together: all of them where they share something, else as the memory allows.

        What is in use at the moment must not matter: the same run gives the same bytes.
        """
        layer, limit = choice.layer, self.work.max_memory
        if isinstance(choice.spec, PaletteSpec) or (calibrated and limit is None):
            return layer.rows
        share = _SLAB * _PER_WEIGHT if limit is None or not calibrated else limit // 8
        return _tiles(share // (_PER_WEIGHT * layer.columns))

    def _check_memory(self, steps: Sequence[_Step]) -> None:
        """Refuses a limit that the smallest possible pieces of one of `steps` do not fit in."""
        limit = self.work.max_memory
        if limit is None or not steps:
            return
        need, layer, calibrated = max((self._need(step) for step in steps), key=lambda found: found[0])
        used = resident_bytes()
        if used + need > limit:
            # With samples an eighth of the limit goes into slabs, and never more than all rows take.
            whole = max(self._need(step, slabs=False)[0] for step in steps)
            enough = used + min(whole, need + (used + need) // 7) if calibrated else used + need
            raise EdgecError(
                "E0303", stage=_STAGE, where=f"--max-memory, layer {layer.name}",
                found=f"{used} bytes in use and about {need} for this layer of {layer.rows} x {layer.columns}"
                      + (" with its statistics" if calibrated else ""),
                wanted=f"at most {limit} bytes", hint=f"--max-memory {(enough >> 20) + 16}M"
                + (", or --calib none where that is allowed" if calibrated else ""),
            )

    def _need(self, step: _Step, slabs: bool = True) -> tuple[int, Layer, bool]:
        """The bytes that a step needs, for which layer, and whether that counts statistics.

        Without `slabs` all rows of a layer are solved at once: the most that any limit can lead to.
        """
        calibrated, part, found = step.cut is not None, 0, []
        if step.cut is not None:
            # The part's weights are restored and written, or mapped by onnxruntime and packed once more.
            part = 3 * max(s.part_bytes(step.cut) for s in (self.quantized, self.original))
        for choice in step.choices:
            layer = choice.layer
            rows = min(self._slab(choice, calibrated), layer.rows) if slabs else layer.rows
            need = _fixed_bytes(layer, calibrated) + _PER_WEIGHT * rows * layer.columns
            found.append((max(part, need), layer, calibrated))
        return max(found, key=lambda x: x[0])


# A solver's float64 copies of a slab and what it remembers of each weight.
_PER_WEIGHT = 40


def _fixed_bytes(layer: Layer, calibrated: bool) -> int:
    """What a layer needs however it is cut: the file's values, their float32 form and the codes; sums and factors."""
    return 7 * layer.rows * layer.columns + (4 * 8 * layer.columns**2 if calibrated else 0)


def _tiles(rows: int) -> int:
    return max(_TILE, rows // _TILE * _TILE)


def _weights(step: _Step) -> int:
    return sum(c.layer.rows * c.layer.columns for c in step.choices)


def _dense(packed: Packed) -> Array:
    return dequantize(packed) if isinstance(packed, Quantized) else dequantize_palette(packed)


def _joined(parts: Sequence[Packed]) -> Packed:
    """One matrix of slabs of its rows; palettes are never cut."""
    first = parts[0]
    if len(parts) == 1 or isinstance(first, PaletteTensor):
        return first
    slabs = [part for part in parts if isinstance(part, Quantized)]
    return Quantized(
        first.spec, np.concatenate([q.codes for q in slabs]),
        np.concatenate([q.scale for q in slabs], axis=0 if first.spec.uniform else 1),
        np.concatenate([q.offset for q in slabs]),
    )


def _slices(packed: Packed) -> Iterator[slice]:
    """Rows that are restored at once: a few thousand, but all of a palette."""
    rows, columns = packed.shape
    step = _tiles(4 * _SLAB // columns) if isinstance(packed, Quantized) else rows
    return (slice(at, min(rows, at + step)) for at in range(0, rows, step))


def _rows(packed: Packed, rows: slice) -> Packed:
    if isinstance(packed, PaletteTensor):
        return packed
    scale = packed.scale[rows] if packed.spec.uniform else packed.scale[:, rows]
    return Quantized(packed.spec, packed.codes[rows], scale, packed.offset[rows])


def resident_bytes() -> int:
    """Memory of this process now; where the system does not say, the most it has had."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _page_size()
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _page_size() -> int:
    import resource

    return resource.getpagesize()
