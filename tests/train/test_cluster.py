"""Weights trained as palettes: which layers, when, from where, and what comes out."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgec.compress.formats import PaletteSpec, dequantize_palette
from edgec.compress.solvers import fit_tables, quantize_palette
from edgec.errors import EdgecError
from edgec.train.cluster import Cluster, ClusterOptions, Schedule, cluster, clusters, gaps, harden


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """An embedding tied to a head, two convolutions, two linears."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(200, 64)
            self.first = nn.Conv1d(64, 64, 3, padding=1)
            self.conv = nn.Conv1d(64, 64, 3, padding=1)
            self.wide = nn.Linear(64, 96, bias=False)
            self.narrow = nn.Linear(96, 64)
            self.head = nn.Linear(64, 200, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.first(self.embed(x).transpose(1, 2)))).transpose(1, 2)
        out: Tensor = self.head(self.narrow(F.relu(self.wide(y))))
        return out


def tokens(seed: int, batch: int = 4) -> Tensor:
    return torch.randint(0, 200, (batch, 8), generator=torch.Generator().manual_seed(seed))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), x.flatten())


def train(model: nn.Module, schedule: Schedule, steps: int, lr: float = 1e-2) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, tokens(step))
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
    return losses


FORMS = [("palette2", ClusterOptions()), ("palette3r20", ClusterOptions()),
         ("palette3r20", ClusterOptions(engine="dense")), ("palette4v2", ClusterOptions()),
         ("palette2", ClusterOptions(method="straight-through"))]


@pytest.mark.parametrize(("palette", "options"), FORMS, ids=lambda v: v if isinstance(v, str) else
                         f"{v.engine}-{v.method}")
def test_trains_and_hardens_to_what_eval_mode_shows(palette: str, options: ClusterOptions) -> None:
    model, schedule = Net(), Schedule(milestone=2, anneal=10)
    cluster(model, palette, ["narrow=none"], schedule=schedule, options=options)
    losses = train(model, schedule, 20)
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        wanted = model(tokens(0))
    tied = clusters(model)["embed"][1]
    palettes = harden(model)
    assert torch.equal(model(tokens(0)), wanted)
    assert model.head.weight is model.embed.weight is tied
    assert not clusters(model)
    assert list(palettes) == ["embed.weight", "conv.weight", "wide.weight", "head.weight"]
    for name, one in palettes.items():
        weight = model.get_parameter(name).detach()
        matrix = (weight.movedim(1, -1) if weight.ndim > 2 else weight).reshape(len(weight), -1)
        assert np.array_equal(dequantize_palette(one), matrix.numpy())
        assert one.spec.bits == (max(4, PaletteSpec.parse(palette).bits) if name[0] in "eh" else
                                 PaletteSpec.parse(palette).bits)


def test_starts_from_exact_kmeans_of_the_rounded_weights() -> None:
    model = nn.Sequential(nn.Linear(96, 64))
    before = model[0].weight.detach().to(torch.bfloat16).float().numpy()
    cluster(model, "palette3r16", schedule=Schedule(), options=ClusterOptions(engine="table"))
    found = harden(model)["0.weight"]
    assert np.array_equal(found.lut, quantize_palette(before, PaletteSpec(3, 16)).lut)


def test_starts_where_columns_count() -> None:
    column = np.geomspace(1e-3, 10, 96)
    model = nn.Sequential(nn.Linear(96, 64))
    w = model[0].weight.detach().to(torch.bfloat16).float().numpy()
    cluster(model, "palette2", schedule=Schedule(), importance={"0": column})
    found = harden(model)["0.weight"]
    tables = fit_tables(w, PaletteSpec(2), column).astype(np.float16)
    assert np.array_equal(found.lut, tables)
    assert not np.array_equal(tables, fit_tables(w, PaletteSpec(2)).astype(np.float16))
    for wrong, said in (({"0": column[:5]}, "96 columns"), ({"1": column}, "no layer"), ({"0": -column}, "positive")):
        with pytest.raises(EdgecError, match=said):
            cluster(nn.Sequential(nn.Linear(96, 64)), "palette2", schedule=Schedule(), importance=wrong)


def test_left_alone_before_the_milestone_and_equal_engines_after() -> None:
    schedule = Schedule(milestone=1)
    models = [Net(), Net(), Net()]
    for model, engine in zip(models[1:], ("table", "dense"), strict=True):
        model.to(torch.bfloat16).float()
        cluster(model, "palette3", schedule=schedule, options=ClusterOptions(engine=engine))  # type: ignore[arg-type]
    models[0].to(torch.bfloat16).float()
    outs = [m(tokens(0)) for m in models]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    with pytest.raises(EdgecError, match="before the milestone 1"):
        harden(models[1])
    schedule.step()
    grads = []
    for model in models[1:]:
        loss(model, tokens(0)).backward()
        grads.append(model.wide.parametrizations.weight.original.grad)
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < 1e-4
    assert not torch.allclose(models[0](tokens(0)), models[1](tokens(0)), rtol=1e-2)


def test_accumulated_gradients_are_those_of_one_batch() -> None:
    whole, parts = Net(), Net()
    for model, pieces in ((whole, 1), (parts, 4)):
        schedule = Schedule()
        cluster(model, "palette2", schedule=schedule)
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        for step in range(3):
            optimizer.zero_grad()
            for piece in tokens(step).chunk(pieces):
                (loss(model, piece) / pieces).backward()
            optimizer.step()
            schedule.step()
    for (name, a), (_, b) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert float((a - b).detach().norm() / a.detach().norm().clamp_min(1e-9)) < 1e-4, name


def test_recomputed_activations_change_nothing() -> None:
    class Recomputed(nn.Module):
        def __init__(self, net: Net) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)
            return made

    plain, again = Net(), Recomputed(Net())
    schedules = [Schedule(), Schedule()]
    for model, schedule in zip((plain, again), schedules, strict=True):
        cluster(model, "palette2", schedule=schedule)
    assert train(plain, schedules[0], 4) == train(again, schedules[1], 4)


def test_state_goes_on_where_it_was() -> None:
    model, schedule = Net(), Schedule(anneal=8)
    cluster(model, "palette2", schedule=schedule)
    train(model, schedule, 3)
    other, resumed = Net(seed=5), Schedule(anneal=8)
    cluster(other, "palette2", schedule=resumed)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(schedule.state_dict())
    assert train(model, schedule, 3) == train(other, resumed, 3)


def test_annealing_makes_soft_weights_hard() -> None:
    model, schedule = Net(), Schedule(anneal=10, start=1.0, end=1e-3)
    cluster(model, "palette2", schedule=schedule)
    model(tokens(0))
    early = gaps(model)
    schedule.steps = 10
    late = gaps(model)
    assert schedule.temperature == pytest.approx(1e-3)
    assert list(early) == list(late) == ["embed", "conv", "wide", "narrow", "head"]
    assert all(late[path] < 0.2 * early[path] for path in early)


def test_a_tied_weight_is_rounded_once() -> None:
    model, schedule = Net(), Schedule()
    cluster(model, "palette8", schedule=schedule)
    train(model, schedule, 8, 1e-3)
    model.eval()
    with torch.no_grad():
        wanted = model(tokens(0))
    palettes = harden(model)
    assert torch.equal(model(tokens(0)), wanted)
    assert np.array_equal(dequantize_palette(palettes["embed.weight"]), model.embed.weight.detach().numpy())


def test_a_tied_weight_is_left_alone_in_both_places() -> None:
    model = Net()
    assert "head" not in cluster(model, "palette2", ["embed=none"], schedule=Schedule())
    before = model.embed.weight.detach().clone()
    harden(model)
    assert torch.equal(model.head.weight, before)


def test_small_tables_are_dense_and_copies_follow_the_schedule() -> None:
    schedule = Schedule(milestone=1)
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 64))
    cluster(model, "palette2r256", ["1=palette2r16"], schedule=schedule)
    assert [one._has_table for one, _ in clusters(model).values()] == [True, False]
    copied = copy.deepcopy(model)
    schedule.step()
    assert all(one.schedule is schedule and one.schedule.active for one, _ in clusters(copied).values())


def test_autocast_other_types_and_compile() -> None:
    model = Net()
    cluster(model, "palette2", schedule=Schedule())
    with torch.no_grad():
        wanted = model(tokens(0))
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    found = compiled(tokens(0))
    assert torch.allclose(found, wanted, atol=1e-6)
    found.sum().backward()
    assert all(p.grad is not None for p in compiled.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(tokens(0)).dtype == torch.bfloat16
    model.to(torch.bfloat16)
    assert model(tokens(0)).dtype == torch.bfloat16
    one = clusters(model)["wide"][0]
    assert one.centroids.dtype == torch.float64
    assert one.ready.dtype == torch.bool


def test_equal_weights_stay_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    nn.init.constant_(model[0].weight, 0.375)
    cluster(model, "palette2", schedule=Schedule())
    assert torch.equal(model[0].weight, torch.full((64, 64), 0.375))
    assert gaps(model) == {"0": 0.0}


@pytest.mark.parametrize(("arguments", "said"), [
    (("hlq2",), "a palette"), (("palette2", ["none_such=palette4"]), "did you mean|known:"),
    (("palette2", ["depth=palette2"]), "64 groups"), (("palette2", ["*=none"]), "no layer to cluster"),
    (("palette2v5", ["depth=none"]), "vectors of 5"), (("palette2", ["wide=int4"]), "a palette"),
])
def test_refuses(arguments: tuple[str, list[str]], said: str) -> None:
    model = Net()
    model.depth = nn.Conv1d(64, 64, 3, groups=64)
    with pytest.raises(EdgecError, match=said) as caught:
        cluster(model, *arguments, schedule=Schedule())
    assert caught.value.code == "E0002"
    assert not clusters(model)


def test_refuses_settings() -> None:
    for call in (lambda: Schedule(-1), lambda: Schedule(start=0.1, end=0.2), lambda: ClusterOptions(iterations=0),
                 lambda: ClusterOptions(engine="fast"), lambda: ClusterOptions(half=torch.float32),  # type: ignore[arg-type]
                 lambda: Cluster(PaletteSpec(2, 0, 2), (4, 8), Schedule(), ClusterOptions(engine="table")),
                 lambda: harden(Net())):
        with pytest.raises(EdgecError) as caught:
            call()
        assert caught.value.code == "E0002"
    model = Net()
    cluster(model, "palette2", schedule=Schedule())
    with pytest.raises(EdgecError, match="parametrized already"):
        cluster(model, "palette2", schedule=Schedule())
