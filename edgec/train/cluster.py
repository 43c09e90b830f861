"""Weights that are trained as palettes: a parametrization for the weights of linears, convolutions and embeddings.

    schedule = Schedule(milestone=100, anneal=1_000)
    cluster(model, "palette2", ["classifier=palette4"], schedule=schedule)
    for batch in data:                  # as before, and after each optimizer.step(): schedule.step()
        ...
    palettes = harden(model)            # ordinary weights again, of 2^bits values each (see finalize.py)

In training mode a weight is what `soft_kmeans` makes of it, in eval mode what `harden` will. Centroids are state: an
optimizer step begins with those that the step before ended with, and however many forward passes it has, with
accumulated gradients or recomputed activations, all of them begin there. The temperature has no unit: tau =
r (D / 2)^2 with D = 3.5 sigma / 2^(bits / vector), about the distance of neighbouring centroids for weights of
standard deviation sigma, and r is annealed towards hard assignments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgec.compress.formats import Array, PaletteSpec, PaletteTensor
from edgec.compress.policy import Override, module_of, parse_override, parse_spec
from edgec.compress.solvers import fit_tables
from edgec.errors import EdgecError, did_you_mean
from edgec.train import soft_kmeans
from edgec.train.sharded import is_sharded, whole_tensor

_STAGE = "train cluster"
_LEAST_WEIGHTS, _LEAST_COLUMNS = 4096, 32  # as compress/policy.py leaves small layers alone
_EMBEDDING_BITS = 4
_SAMPLED, _LLOYD = 1 << 16, 25  # vectors and iterations of a warm start
_NEAREST = 1 << 14  # vectors compared with all centroids at once
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)

Engine = Literal["auto", "table", "dense"]
ENGINES: tuple[Engine, ...] = ("auto", "table", "dense")
Method = Literal["soft", "straight-through"]


class Schedule:
    """When clustering begins and how soft it is, counted in optimizer steps that it is told of.

    milestone: steps before which weights are left alone. anneal: steps after it in which the temperature r goes from
    `start` to `end`, by the same factor each. Raises EdgecError (E0002).
    """

    def __init__(self, milestone: int = 0, anneal: int = 0, start: float = 0.5, end: float = 0.05) -> None:
        if milestone < 0 or anneal < 0 or not 0 < end <= start < math.inf:
            raise _bad("milestone, anneal, start, end", f"{milestone}, {anneal}, {start}, {end}",
                       "steps of at least 0 and temperatures 0 < end <= start")
        self.milestone, self.anneal, self.start, self.end, self.steps = milestone, anneal, start, end, 0

    def step(self) -> None:
        """Once after each step of the optimizer."""
        self.steps += 1

    @property
    def active(self) -> bool:
        return self.steps >= self.milestone

    @property
    def temperature(self) -> float:
        """r."""
        done = min(1.0, max(0, self.steps - self.milestone) / self.anneal) if self.anneal else 1.0
        return float(self.start * (self.end / self.start) ** done)

    def __deepcopy__(self, memo: dict[int, Any]) -> Schedule:
        # A copy of a model (its moving average, say) is as far as the training that makes it.
        return self

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.steps = state["steps"]


@dataclass(frozen=True)
class ClusterOptions:
    """engine: `table` over the different values of the weights rounded to `half`, `dense` over the weights; auto: table
    for single values, unless tables are of less than 65536 weights, else dense with recomputed maps. iterations: T.
    method: `soft` (DKM), or the nearest centroid with the gradient straight through, which is the plain baseline. seed:
    of warm starts of vectors. Raises EdgecError (E0002)."""

    engine: Engine = "auto"
    iterations: int = 3
    half: torch.dtype = torch.bfloat16
    method: Method = "soft"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES or self.method not in ("soft", "straight-through"):
            raise _bad("engine, method", f"{self.engine}, {self.method}",
                       "auto, table or dense; soft or straight-through")
        if self.iterations < 1 or self.half not in soft_kmeans.HALVES:
            raise _bad("iterations, half", f"{self.iterations}, {self.half}",
                       "at least one iteration, torch.bfloat16 or torch.float16")


class Cluster(nn.Module):
    """The parametrization of one weight, of any float type and on any device.

    Buffers: centroids float64 [tables, 2^bits, vector] at the beginning of optimizer step `step`, `following` after
    it, sigma [tables]. They keep their type when the model is converted.
    """

    centroids: Tensor
    following: Tensor
    sigma: Tensor
    step: Tensor
    ready: Tensor

    def __init__(self, spec: PaletteSpec, shape: Sequence[int], schedule: Schedule, options: ClusterOptions,
                 where: str = "weight", importance: Array | None = None) -> None:
        super().__init__()
        self.spec, self.schedule, self.options, self.where, self.importance = spec, schedule, options, where, importance
        self.rows, self.columns = shape[0], math.prod(shape[1:])
        if options.engine == "table" and spec.vector > 1:
            raise _bad(where, f"{spec} on the table engine", "single values, which alone have a table",
                       "engine dense or auto")
        if self.columns % spec.vector:
            raise _bad(where, f"{self.columns} columns in vectors of {spec.vector}", "a whole number of vectors")
        if importance is not None and (importance.shape != (self.columns,) or spec.vector > 1 or not
                                       np.isfinite(importance).all() or importance.min() <= 0):
            raise _bad(where, f"importance {list(importance.shape)} for {spec}",
                       f"a positive number for each of {self.columns} columns, and a palette of single values")
        size = (spec.tables(self.rows), 1 << spec.bits, spec.vector)
        self.register_buffer("centroids", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("following", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("sigma", torch.zeros(size[0], dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Cluster:
        # model.to(torch.bfloat16) is about weights; 2^bits values in float64 are few, and their sums are what counts.
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    # Data-dependent shapes and a gradient of its own: a compiled model runs this part as it is.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, weight: Tensor) -> Tensor:
        if not self.schedule.active:
            return weight
        if not self.ready:
            self._start(weight)
        with torch.autocast(weight.device.type, enabled=False):
            if not self.training:
                return self._nearest(weight.detach()).to(weight.dtype)
            self._advance()
            if self.options.method == "straight-through":
                with torch.no_grad():
                    self.following.copy_(self._lloyd(weight.detach()))
                    hard = self._nearest(weight.detach()).to(weight.dtype)
                return cast(Tensor, _Straight.apply(weight, hard))  # type: ignore[no-untyped-call]
            soft, centroids = self._soft(weight)
        with torch.no_grad():
            self.following.copy_(centroids)
        return soft

    def palette(self, weight: Tensor) -> PaletteTensor:
        """`weight` with every value at its nearest centroid; tables float16, those of single values ascending.

        Raises EdgecError (E0002) before the milestone, and for centroids that float16 does not hold.
        """
        if not self.schedule.active:
            raise _bad(self.where, f"step {self.schedule.steps}, before the milestone {self.schedule.milestone}",
                       "weights that have been clustered", "train on, with schedule.step() after each step")
        if not self.ready:
            self._start(weight)
        tables = self._tables(self.following, weight.dtype)
        lut = tables.cpu().numpy().astype(np.float16)
        indices = self._indices(weight.detach(), tables).to(torch.uint8).cpu().numpy()
        return PaletteTensor(self.spec, indices, lut if self.spec.vector > 1 else lut[..., 0], self.columns)

    @torch.no_grad()
    def gap(self, weight: Tensor) -> float:
        """Root mean square of (soft - hard) relative to that of the weight; 0 before the milestone."""
        if not self.schedule.active or not self.ready or self.options.method != "soft":
            return 0.0
        soft, centroids = self._soft(weight.detach())
        norm = float(weight.detach().double().norm())
        return float((soft.double() - self._nearest(weight.detach(), centroids)).norm()) / (norm or 1.0)

    def _advance(self) -> None:
        """The centroids of the last step become those that this one begins with, once per step."""
        if int(self.step) != self.schedule.steps:
            with torch.no_grad():
                self.centroids.copy_(self.following)
                self.step.fill_(self.schedule.steps)

    def _tau(self) -> Tensor:
        spacing = 3.5 * self.sigma / 2 ** (self.spec.bits / self.spec.vector)
        tau = self.schedule.temperature * (spacing / 2).square()
        # Weights that are all equal have no scale; any temperature gives them back.
        return torch.where(tau > 0, tau, 1.0)

    def _soft(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        tau, start, options = self._tau(), self.centroids, self.options
        if self._has_table:
            parts = [soft_kmeans.table(rows, start[i, :, 0], tau[i], options.iterations, options.half)
                     for i, rows in enumerate(self._rows(weight))]
            soft = parts[0][0] if len(parts) == 1 else torch.cat([p[0] for p in parts])
            return soft, torch.stack([p[1] for p in parts])[..., None]
        matrix = self._matrix(weight)
        exact = matrix if matrix.dtype == torch.float64 else matrix.float()
        made, after, first = [], [], 0
        for block in self._blocks(exact):
            part = slice(first, first + len(block))
            soft, centroids = soft_kmeans.dense(block, start[part], tau[part], options.iterations,
                                                recompute=options.engine == "auto" or self.spec.vector > 1)
            made.append(soft.reshape(-1, self.columns))
            after.append(centroids)
            first = part.stop
        return self._shaped(torch.cat(made), weight), torch.cat(after).double()

    @property
    def _has_table(self) -> bool:
        # Many small tables are sooner computed all at once than one after the other.
        large = not self.spec.rows or self.spec.rows * self.columns >= soft_kmeans.VALUES
        return self.options.engine == "table" or (self.options.engine == "auto" and self.spec.vector == 1 and large)

    def _rounded(self, weight: Tensor) -> Tensor:
        """What is clustered: the table engine sees 16 bits of a weight."""
        return weight.to(self.options.half) if self._has_table else weight

    def _rows(self, weight: Tensor) -> Sequence[Tensor]:
        """The rows of each table."""
        return torch.split(weight, self.spec.rows) if self.spec.rows else (weight,)

    def _matrix(self, weight: Tensor) -> Tensor:
        """[N, K] as the compiler has it: the channel of a convolution innermost (compress/layers.py)."""
        return (weight.movedim(1, -1) if weight.ndim > 2 else weight).reshape(self.rows, self.columns)

    def _shaped(self, matrix: Tensor, weight: Tensor) -> Tensor:
        if weight.ndim == 2:
            return matrix.to(weight.dtype)
        shape = (weight.shape[0], *weight.shape[2:], weight.shape[1])
        return matrix.reshape(shape).movedim(-1, 1).to(weight.dtype).contiguous()

    def _blocks(self, matrix: Tensor) -> Iterator[Tensor]:
        """[tables, vectors of a table, vector]: all tables of as many rows at once, then a last one of fewer."""
        rows = min(self.spec.rows or self.rows, self.rows)
        whole = self.rows // rows * rows
        yield matrix[:whole].reshape(whole // rows, -1, self.spec.vector)
        if whole < self.rows:
            yield matrix[whole:].reshape(1, -1, self.spec.vector)

    def _tables(self, centroids: Tensor, dtype: torch.dtype) -> Tensor:
        """float32 [tables, k, d]: centroids as they will be stored, which weights of `dtype` hold, too."""
        stored = centroids.to(dtype).to(torch.float16).to(dtype).to(torch.float32)
        if not bool(stored.isfinite().all()):
            raise _bad(self.where, f"a centroid of {float(self.following.abs().max()):g}",
                       "centroids that float16 holds, up to 65504", "a smaller learning rate")
        return stored.sort(1)[0] if self.spec.vector == 1 else stored

    def _indices(self, weight: Tensor, tables: Tensor) -> Tensor:
        """int64 [N, K / vector] of the nearest of `tables`."""
        found, first = [], 0
        for block in self._blocks(self._rounded(self._matrix(weight)).float()):
            for points in block:
                levels = tables[first]
                if self.spec.vector == 1:
                    middles = (levels[1:, 0] + levels[:-1, 0]) / 2
                    index = torch.bucketize(points[:, 0].contiguous(), middles)
                else:
                    index = torch.cat([torch.cdist(p, levels).argmin(1) for p in torch.split(points, _NEAREST)])
                found.append(index.reshape(-1, self.columns // self.spec.vector))
                first += 1
        return torch.cat(found)

    def _nearest(self, weight: Tensor, centroids: Tensor | None = None) -> Tensor:
        """float32: what `palette` stores."""
        tables = self._tables(self.following if centroids is None else centroids, weight.dtype)
        rows = torch.arange(self.rows, device=weight.device) // (self.spec.rows or self.rows)
        return self._shaped(tables[rows[:, None], self._indices(weight, tables)].reshape(self.rows, -1), weight.float())

    def _lloyd(self, weight: Tensor) -> Tensor:
        """The means of what is nearest to each centroid of the beginning of the step."""
        moved, first = self.centroids.clone(), 0
        for block in self._blocks(self._matrix(weight).double()):
            for points in block:
                moved[first] = _means(points, self.centroids[first])
                first += 1
        return moved

    @torch.no_grad()
    def _start(self, weight: Tensor) -> None:
        """Warm start: exact one-dimensional k-means, or Lloyd's iterations from k-means++ for vectors."""
        matrix = self._rounded(self._matrix(weight.detach())).float().contiguous()
        if not bool(matrix.isfinite().all()):
            raise _bad(self.where, "infinity or NaN among the weights", "finite weights")
        if self.spec.vector == 1:
            # A copy: what numpy has seen cannot be resized, and FSDP does that with the storage of gathered weights.
            tables = fit_tables(matrix.cpu().clone().numpy(), self.spec, self.importance, self.where)
            found = torch.from_numpy(tables)[..., None]
        else:
            generator = torch.Generator().manual_seed(self.options.seed)
            found = torch.stack([_vectors(points.cpu().double(), 1 << self.spec.bits, generator)
                                 for block in self._blocks(matrix) for points in block])
        self.sigma.copy_(torch.cat([b.reshape(len(b), -1).double().std(1, correction=0)
                                    for b in self._blocks(matrix)]))
        self.centroids.copy_(found)
        self.following.copy_(found)
        self.step.fill_(self.schedule.steps)
        self.ready.fill_(True)

    def extra_repr(self) -> str:
        return f"{self.spec}, {self.options.method}, {self.options.engine}"


class _Straight(torch.autograd.Function):
    """`hard`, with the gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, hard: Tensor) -> Tensor:
        return hard

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _means(points: Tensor, centroids: Tensor) -> Tensor:
    """One of Lloyd's iterations: points [M, d], centroids [k, d]; those that nothing is near to stay."""
    nearest = torch.cat([torch.cdist(p, centroids).argmin(1) for p in torch.split(points, _NEAREST)])
    count = torch.bincount(nearest, minlength=len(centroids))[:, None]
    sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
    return torch.where(count > 0, sums / count.clamp_min(1), centroids)


def _vectors(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count, d]: k-means++ (Arthur and Vassilvitskii, 2007) on a sample, then Lloyd's iterations on it."""
    if len(points) > _SAMPLED:
        points = points[torch.randperm(len(points), generator=generator)[:_SAMPLED]]
    chosen = [points[int(torch.randint(len(points), (1,), generator=generator))]]
    far = (points - chosen[0]).square().sum(1)
    for _ in range(count - 1):
        # Fewer different vectors than centroids: what is left over repeats.
        at = int(torch.multinomial(far, 1, generator=generator)) if float(far.sum()) > 0 else 0
        chosen.append(points[at])
        far = torch.minimum(far, (points - chosen[-1]).square().sum(1))
    centroids = torch.stack(chosen)
    for _ in range(_LLOYD):
        centroids = _means(points, centroids)
    return centroids


def cluster(model: nn.Module, palette: str, overrides: Sequence[str] = (), *, schedule: Schedule,
            options: ClusterOptions = ClusterOptions(), importance: Mapping[str, Array] | None = None
            ) -> dict[str, Cluster]:
    """Parametrizes the weights of `model` in place; returns path of module -> Cluster.

    palette: the format of every linear, convolution without groups and embedding but the first convolution and what is
    small; embeddings take at least 4 bits. overrides: `GLOB=paletteB` or `GLOB=none` over paths of modules, as of
    `edgec quantize`; the last that matches decides in place of these rules. A weight in two places (tied embeddings)
    has one Cluster, and none when one of them is to have none. importance: path -> [K], how much an error of a column
    counts in the warm start (the mean square of the layer's inputs), K as the compiler has the columns; others count 1.
    Parameters stay the same objects, so an optimizer may be made before or after. Raises EdgecError (E0002) before
    anything is changed: another format, a glob that matches nothing or asks for what cannot be, a module that is
    parametrized already.
    """
    default = _palette(palette, "palette")
    rules = [parse_override(text, "overrides") for text in overrides]
    modules = {path: module for path, module in model.named_modules() if isinstance(module, _KINDS)}
    for rule in rules:
        if rule.spec is not None and not isinstance(rule.spec, PaletteSpec):
            _palette(str(rule.spec), f"override {str(rule)!r}")
        if not any(_matches(rule, path) for path in modules):
            raise _bad(f"override {str(rule)!r}", "no such module", "a pattern that matches the path of a layer",
                       did_you_mean(rule.pattern, modules))
    first = next((path for path, m in modules.items() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), "")
    # Of a tied weight the place with the higher demands decides: an embedding's bits also for the head.
    specs: dict[int, tuple[PaletteSpec, str]] = {}
    # In one place they cannot be of few bits and in another not.
    alone = {id(module.weight) for path, module in modules.items() if _left_alone(path, rules)}
    for path, module in modules.items():
        spec = None if id(module.weight) in alone else _spec_of(path, module, default, rules, path == first)
        if spec is None:
            continue
        if parametrize.is_parametrized(module, "weight"):
            raise _bad(path, "a weight that is parametrized already", "a plain parameter", "remove_parametrizations")
        known = specs.get(id(module.weight))
        if known is None or spec.bits > known[0].bits:
            specs[id(module.weight)] = spec, path if known is None else known[1]
    unknown = sorted({*(importance or {})} - {path for _, path in specs.values()})
    if unknown:
        raise _bad(f"importance of {unknown[0]!r}", "no layer that is clustered under this path",
                   did_you_mean(unknown[0], (path for _, path in specs.values())))
    if not specs:
        raise _bad(type(model).__name__, "no layer to cluster",
                   "a linear, convolution or embedding that is large enough", "an override that names a layer")
    made = {}
    for key, (spec, path) in specs.items():
        weight = cast(Tensor, model.get_submodule(path).weight)
        made[key] = Cluster(spec, tuple(weight.shape), schedule, options, path, (importance or {}).get(path)
                            ).to(weight.device)
    found: dict[str, Cluster] = {}
    places = [(path, module, made[id(module.weight)]) for path, module in modules.items()
              if id(module.weight) in made]
    for path, module, one in places:
        parametrize.register_parametrization(module, "weight", one, unsafe=True)
        one.train(module.training)
        found[path] = one
    return found


def _left_alone(path: str, rules: Sequence[Override]) -> bool:
    rule = next((r for r in reversed(rules) if _matches(r, path)), None)
    return rule is not None and rule.spec is None


def _shape(module: nn.Module) -> tuple[int, ...]:
    return tuple(cast(Tensor, module.weight).shape)


def _matches(rule: Override, path: str) -> bool:
    return fnmatchcase(path, module_of(rule.pattern))


def _palette(text: str, where: str) -> PaletteSpec:
    spec = parse_spec(text, where)
    if not isinstance(spec, PaletteSpec):
        raise _bad(where, text, "a palette: palette2, palette4r16, palette8v2")
    return spec


def _spec_of(path: str, module: nn.Module, default: PaletteSpec, rules: Sequence[Override], first: bool
             ) -> PaletteSpec | None:
    rule = next((r for r in reversed(rules) if _matches(r, path)), None)
    groups = getattr(module, "groups", 1)
    if rule is not None:
        named = rule.pattern in (path, f"{path}.weight")
        if rule.spec is not None and groups != 1 and named:
            raise _bad(path, f"a convolution in {groups} groups", "a layer that the compiler stores as a palette",
                       f"leave it alone: {path}=none")
        return cast(PaletteSpec | None, rule.spec) if groups == 1 else None
    shape = _shape(module)
    columns = math.prod(shape[1:])
    if groups != 1 or first or columns < _LEAST_COLUMNS or shape[0] * columns < _LEAST_WEIGHTS:
        return None
    if isinstance(module, nn.Embedding) and default.bits < _EMBEDDING_BITS:
        return PaletteSpec(_EMBEDDING_BITS, default.rows)
    return default


def clusters(model: nn.Module) -> dict[str, tuple[Cluster, Tensor]]:
    """path of module -> (its Cluster, the trained weight), for every weight that `cluster` has parametrized."""
    found = {}
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        chain = cast(Any, module).parametrizations.weight
        if isinstance(chain[0], Cluster):
            found[path] = chain[0], chain.original
    return found


def gaps(model: nn.Module) -> dict[str, float]:
    """path -> how far the soft weights are from the hard ones (Cluster.gap)."""
    return {path: one.gap(whole_tensor(weight)) for path, (one, weight) in clusters(model).items()}


def harden(model: nn.Module) -> dict[str, PaletteTensor]:
    """Replaces every clustered weight by its palette's values, in place; returns `path.weight` -> palette.

    Tied weights stay tied. Raises EdgecError (E0002) without clusters, or before the milestone.
    """
    found = clusters(model)
    if not found:
        raise _bad(type(model).__name__, "no clustered weight", "a model that `cluster` was applied to")
    sharded = [path for path, (_, weight) in found.items() if is_sharded(weight)]
    if sharded:
        raise _bad(sharded[0], "a weight that is sharded over processes", "whole weights",
                   "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
                   "torch.distributed.checkpoint.state_dict, into a model that `cluster` was applied to")
    palettes = {f"{path}.weight": one.palette(weight) for path, (one, weight) in found.items()}
    plain: dict[int, nn.Parameter] = {}
    for path, (one, weight) in found.items():
        module = model.get_submodule(path)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        if id(weight) not in plain:
            # Once: the nearest centroid of a centroid that 16 bits have rounded may be another one.
            plain[id(weight)] = cast(nn.Parameter, module.weight)
            with torch.no_grad():
                plain[id(weight)].copy_(one._nearest(weight.detach()).to(weight.dtype))
        module.weight = plain[id(weight)]
    return palettes


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
