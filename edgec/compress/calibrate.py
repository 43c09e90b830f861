"""Calibration: what stands at the input of every layer, with everything before it already quantized.

The graph is cut right before each group of siblings, layers that read the same tensor (q, k, v | o | gate, up | down).
The part between two cuts is a small model of its own, run by onnxruntime once per sample; the tensors that cross a cut
lie in mapped files until nothing later reads them. At a cut the statistics of the group's input are summed up, the
group is quantized, and the next part runs with the quantized weights: every node runs once per sample, with one part's
weights, one group's statistics and one sample in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.compress.layers import Layer, Window, check_plain
from edgec.compress.products import add_gram, in_parallel, mirror, product
from edgec.compress.solvers import LinearStats
from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.weights import total_bytes

_STAGE = "calibration"
_ROWS = 4096  # rows of an input that are multiplied at once
_CHUNK = 1 << 20
_SLICE = 1024  # rows of a weight whose errors are computed at once


class Samples(Protocol):
    """Inputs of the model. All samples have the same shapes."""

    @property
    def count(self) -> int: ...

    def feed(self, index: int) -> Mapping[str, Array]:
        """Every input of the graph, by name."""
        ...


@dataclass(frozen=True)
class Group:
    """Layers that meet the same rows of the same tensor. position: of the first of their nodes in the graph."""

    source: ir.Value
    window: Window | None
    position: int
    layers: tuple[Layer, ...]

    @property
    def columns(self) -> int:
        return self.layers[0].columns


@dataclass(frozen=True)
class Cut:
    """A place between two nodes. live: what is computed before it and read behind it, the group's input among it."""

    group: Group
    live: tuple[ir.Value, ...]


class Accumulator:
    """Sums over the rows of a layer's input. Rows are multiplied in float32, a few thousand at a time, and the
    products added in float64."""

    def __init__(self, columns: int) -> None:
        self.h = np.zeros((columns, columns))
        self.absmax = np.zeros(columns)
        self.sums = np.zeros(columns)
        self.count = 0

    def add(self, rows: Array) -> None:
        """rows: float32 [T, K]."""
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            add_gram(self.h, part)
            np.maximum(self.absmax, np.abs(part).max(0), out=self.absmax)
            self.sums += part.sum(0, dtype=np.float64)
        self.count += len(rows)

    def stats(self, where: str) -> LinearStats:
        """Raises EdgecError (E0502) when an input was infinite or NaN: the samples are none that the model can read."""
        mirror(self.h)
        if not np.isfinite(self.h).all():
            raise EdgecError("E0502", stage=_STAGE, where=where, found="infinity or NaN at the input of the layer",
                             wanted="samples on which the model stays finite")
        return LinearStats(h=self.h, diag=self.h.diagonal().copy(), absmax=self.absmax, count=self.count,
                           sums=self.sums)


def groups_of(graph: ir.Graph, layers: Iterable[Layer]) -> list[Group]:
    """The groups in the order of the graph; layers that meet no input (embeddings) are in none."""
    positions = {node: i for i, node in enumerate(graph)}
    members: dict[tuple[ir.Value, Window | None], list[Layer]] = {}
    for layer in layers:
        if layer.source is not None:
            members.setdefault((layer.source, layer.window), []).append(layer)
    found = [
        Group(source, window, min(positions[x.node] for x in group if x.node is not None), tuple(group))
        for (source, window), group in members.items()
    ]
    return sorted(found, key=lambda group: group.position)


def cuts_of(graph: ir.Graph, groups: Sequence[Group]) -> list[Cut]:
    """One cut before each group. Constants, and what is computed from them alone, cross none."""
    nodes = list(graph)
    made: dict[ir.Value, int] = dict.fromkeys(graph.inputs, -1)
    for i, node in enumerate(nodes):
        if any(value in made for value in node.inputs if value is not None):
            made.update(dict.fromkeys(node.outputs, i))
    last: dict[ir.Value, int] = {}
    wanted = {group.source for group in groups}
    # Backwards: a node matters when something that matters reads it.
    for i in range(len(nodes) - 1, -1, -1):
        if any(out in wanted for out in nodes[i].outputs):
            for value in nodes[i].inputs:
                if value is not None:
                    wanted.add(value)
                    last.setdefault(value, i)
    cuts = []
    for group in groups:
        live = [v for v, at in made.items() if at < group.position and last.get(v, -1) >= group.position]
        cuts.append(Cut(group, tuple(dict.fromkeys([group.source, *live]))))
    return cuts


class Stream:
    """The samples on their way through one graph: the tensors that are live at the current cut, in files."""

    def __init__(self, model: ir.Model, cuts: Sequence[Cut], samples: Samples, count: int, folder: Path,
                 label: str) -> None:
        check_plain(model)
        self.model, self.samples, self.count, self.folder, self.label = model, samples, count, folder, label
        # The cuts may be those of another copy of the graph: names say which values are meant.
        self._live = [[v.name or "" for v in cut.live] for cut in cuts]
        self._inputs = {v.name or "" for v in model.graph.inputs}
        names = dict.fromkeys(name for live in self._live for name in live)
        self._files = {name: folder / f"{label}-{i:05d}.npy" for i, name in enumerate(names)}
        folder.mkdir(parents=True, exist_ok=True)

    def advance(self, cut: int, tick: Callable[[], None]) -> None:
        """From the cut before `cut` to it: makes the files of everything that is live there. Calls tick per sample."""
        part = self._part(cut)
        if part is None:
            return
        out: dict[str, Array] = {}

        def sample(i: int) -> None:
            for name, value in runner.run(self._feeds(i, runner.input_names)).items():
                if i == 0:
                    out[name] = self._create(name, value)
                elif value.shape != out[name].shape[1:]:
                    raise EdgecError("E0502", stage=_STAGE, where=f"sample {i}, value {name!r}",
                                     found=f"shape {value.shape}", wanted=f"{out[name].shape[1:]}, as of sample 0")
                out[name][i] = value

        # One thread per sample: the same numbers on any number of cores.
        with Runner(part, f"{_STAGE}, part {cut}", threads=1) as runner:
            sample(0)
            tick()
            in_parallel(sample, range(1, self.count), tick)
        for mapped in out.values():
            assert isinstance(mapped, np.memmap)
            mapped.flush()

    def source(self, cut: int, sample: int) -> Array:
        """The input of the group behind `cut`."""
        return self._value(self._live[cut][0], sample)

    def part_bytes(self, cut: int) -> int:
        """Weights of the part between the cut before and `cut`."""
        part = self._part(cut)
        return 0 if part is None else total_bytes(part)

    def forget(self, cut: int) -> None:
        """Deletes the files of everything that is not live at `cut`; other cuts' files may be left of a killed run."""
        for name, file in self._files.items():
            if name not in self._live[cut]:
                file.unlink(missing_ok=True)

    def _part(self, cut: int) -> ir.Model | None:
        """The graph between two cuts; None when it computes nothing that is not there yet."""
        before = self._live[cut - 1] if cut else []
        given = {*self._inputs, *before}
        new = [name for name in self._live[cut] if name not in given]
        if not new:
            return None
        graph = self.model.graph
        by_name = {v.name: v for v in graph.inputs} | {v.name: v for node in graph for v in node.outputs}
        outputs = [by_name[name] for name in new]
        part = ir.convenience.extract(graph, _needed(outputs, {by_name[name] for name in given}), outputs)
        return ir.Model(part, ir_version=self.model.ir_version)

    def _feeds(self, sample: int, names: Sequence[str]) -> dict[str, Array]:
        given = self.samples.feed(sample) if self._inputs & set(names) else {}
        return {name: given[name] if name in self._inputs else self._value(name, sample) for name in names}

    def _value(self, name: str, sample: int) -> Array:
        if name in self._inputs:
            return self.samples.feed(sample)[name]
        stored: Array = np.load(self._files[name], mmap_mode="r")[sample]
        return np.array(stored)

    def _create(self, name: str, value: Array) -> Array:
        file, shape = self._files[name], (self.count, *value.shape)
        header = {"descr": np.lib.format.dtype_to_descr(value.dtype), "fortran_order": False, "shape": shape}
        try:
            with file.open("wb") as out:
                np.lib.format.write_array_header_1_0(out, header)
                _reserve(out, self.count * value.nbytes)
            mapped: Array = np.lib.format.open_memmap(file, mode="r+")
            return mapped
        except OSError as e:
            file.unlink(missing_ok=True)
            raise EdgecError("E0004", stage=_STAGE, where=str(self._files[name]), found=e.strerror or str(e),
                             wanted=f"room for {self.count * value.nbytes} bytes of activations",
                             hint="fewer --calib-samples need less") from e


def _reserve(file: BinaryIO, count: int) -> None:
    """Lengthens a new file by `count` bytes that the disk has: a mapped hole of a full disk kills who writes there."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, file.tell() + count)
        return
    for at in range(0, count, _CHUNK):
        file.write(bytes(min(_CHUNK, count - at)))


def _needed(outputs: Iterable[ir.Value], ends: set[ir.Value]) -> list[ir.Value]:
    """Those of `ends` that `outputs` are computed from, in a fixed order."""
    stack, seen = list(outputs), set()
    found: dict[ir.Value, None] = {}
    while stack:
        value = stack.pop()
        if value in ends:
            found[value] = None
            continue
        node = value.producer()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(v for v in reversed(node.inputs) if v is not None)
    return list(found)


def statistics(stream: Stream, cut: int, group: Group) -> LinearStats:
    """The sums over all samples of `stream` at `cut`."""
    sums = Accumulator(group.columns)
    for i in range(stream.count):
        sums.add(group.layers[0].rows_of(stream.source(cut, i)))
    return sums.stats(group.layers[0].name)


class Errors:
    """Relative squared errors of a layer's output, summed over slices of its rows.

    own: on the input that it has in the quantized model, tr(E H Eᵀ) / tr(W H Wᵀ); without statistics |E|² / |W|².
    accumulated: distance of the output in the quantized model from that in the original, over pairs of inputs
    (float32 [T, K] in the quantized model, in the original); None without pairs.
    """

    def __init__(self, stats: LinearStats | None, pairs: Sequence[tuple[Array, Array]] = ()) -> None:
        self._h = None if stats is None else np.asarray(stats.h, np.float32)
        self._pairs = pairs
        self._own, self._accumulated = [0.0, 0.0], [0.0, 0.0]

    def add(self, weight: Array, restored: Array) -> None:
        """Both float32 [rows, K]."""
        for start in range(0, len(weight), _SLICE):
            w, r = weight[start : start + _SLICE], restored[start : start + _SLICE]
            for i, rows in enumerate((r - w, w)):
                self._own[i] += _dot(rows if self._h is None else product(rows, self._h), rows)
            for x, y in self._pairs:
                wanted = product(y, w.T)
                found = product(x, r.T) - wanted
                self._accumulated[0] += _dot(found, found)
                self._accumulated[1] += _dot(wanted, wanted)

    @property
    def own(self) -> float:
        return _ratio(*self._own)

    @property
    def accumulated(self) -> float | None:
        return _ratio(*self._accumulated) if self._pairs else None


def _dot(a: Array, b: Array) -> float:
    return float(np.einsum("nk,nk->", a, b, dtype=np.float64))


def _ratio(error: float, whole: float) -> float:
    # Rounding can make the energy of an exact restoration a little less than nothing.
    return max(0.0, error) / whole if whole > 0 else float(error > 0)
