from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import edgec
from edgec.errors import EdgecError
from edgec.native.bundle import read_bundle
from edgec.train.prepbn import PRepBN, RepBN, Schedule, finish, refresh, swap

VOCAB, WIDTH, LENGTH = 24, 32, 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.permute(0, 2, 1, 3).reshape(b, t, c))
        out: Tensor = x + self.down(F.relu(self.up(self.norm2(x))))
        return out


class TinyLM(nn.Module):
    """x [B, T, VOCAB] one-hot -> logits [B, T, VOCAB]: floats in, so that any backend takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(VOCAB, WIDTH)
        self.place = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(x) + self.place)))
        return logits


def batch(generator: Any, size: int = 32) -> Tensor:
    """Sequences in which a token follows from the two before it."""
    tokens = torch.randint(VOCAB, (size, 2), generator=generator)
    for _ in range(LENGTH - 1):
        following = (3 * tokens[:, -1] + 5 * tokens[:, -2] + 1) % VOCAB
        tokens = torch.cat([tokens, following[:, None]], 1)
    return tokens


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(F.one_hot(tokens[:, :-1], VOCAB).float())
    return F.cross_entropy(logits[:, 1:].reshape(-1, VOCAB), tokens[:, 2:].reshape(-1))


def fitted(model: nn.Module, steps: int, schedule: Schedule | None = None, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch(generator)).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def judged(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return float(loss_of(model, batch(torch.Generator().manual_seed(99), 256)))


def refreshed(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    refresh(model, [batch(generator, 64) for _ in range(10)],
            lambda m, tokens: m(F.one_hot(tokens[:, :-1], VOCAB).float()))


def test_the_schedule_reaches_exactly_zero() -> None:
    for decay, warmup in ((3, 0), (7, 2), (1000, 13)):
        schedule = Schedule(decay, warmup)
        values = []
        for _ in range(decay + warmup + 3):
            values.append(schedule.value)
            schedule.step()
        assert values[: warmup + 1] == [1.0] * (warmup + 1)
        assert values[decay + warmup :] == [0.0] * 3
        assert values[decay + warmup - 1] > 0
        assert np.allclose(np.diff(values[warmup : warmup + decay + 1]), -1 / decay)
    other = Schedule(1000)
    other.load_state_dict(schedule.state_dict())
    assert other.steps == schedule.steps == 1016
    for bad in ((0, 0), (5, -1)):
        with pytest.raises(EdgecError, match="E0002"):
            Schedule(*bad)


def test_forward_passes_do_not_advance_it() -> None:
    torch.manual_seed(0)
    model, schedule = TinyLM(), Schedule(4)
    swap(model, schedule)
    tokens = batch(torch.Generator().manual_seed(0))
    x = F.one_hot(tokens[:, :-1], VOCAB).float()
    for _ in range(3):
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    model.eval()(x)
    assert schedule.value == 1.0


def test_a_blend_is_what_it_says_in_both_modes() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    schedule = Schedule(4)
    blend, x = PRepBN(norm, schedule, eta=0.3), torch.randn(2, 5, 6) + 1
    assert torch.equal(blend(x), norm(x))
    schedule.step()
    flat = x.reshape(-1, 6)
    normed = (flat - flat.mean(0)) / torch.sqrt(flat.var(0, unbiased=False) + 1e-5) * norm.weight + norm.bias
    wanted = 0.75 * norm(x) + 0.25 * (normed.reshape(x.shape) + 0.3 * x)
    assert torch.allclose(blend(x), wanted, atol=1e-6)
    # eval mode blends, too, with the statistics so far.
    blend.eval()
    bn = blend.rep.bn
    wanted = 0.75 * norm(x) + 0.25 * (F.batch_norm(flat, bn.running_mean, bn.running_var, bn.weight, bn.bias).reshape(
        x.shape) + 0.3 * x)
    assert torch.allclose(blend(x), wanted, atol=1e-6)


def test_refresh_changes_statistics_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.LayerNorm(6), nn.Linear(6, 2))
    swap(model, Schedule(1))
    before = copy.deepcopy(dict(model.named_parameters()))
    batches = [torch.randn(50, 4) for _ in range(3)]
    refresh(model, batches)
    hidden = [model[0](x) for x in batches]  # no dropout
    rep = model[2].rep
    assert torch.allclose(rep.bn.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0), atol=1e-6)
    assert torch.allclose(rep.bn.running_var, torch.stack([h.var(0) for h in hidden]).mean(0), atol=1e-6)
    assert model.training
    assert rep.bn.momentum == 0.1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(EdgecError, match="E0502"):
        refresh(model, [])


def test_every_kind_of_place_is_found() -> None:
    torch.manual_seed(0)
    shared = nn.LayerNorm(8, elementwise_affine=False)
    model = nn.ModuleDict({"layer": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
                           "a": shared, "b": shared})
    schedule = Schedule(1)
    x = torch.randn(3, 5, 8)
    wanted = model["a"](model["layer"](x))
    assert sorted(swap(model, schedule)) == ["a", "b", "layer.norm1", "layer.norm2"]
    assert not any(isinstance(m, nn.LayerNorm) for p in model.modules() for m in p.children()
                   if not isinstance(p, PRepBN))
    assert model["a"] is model["b"]
    # The encoder's fused path would read norm1.eps.
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model["a"](model["layer"](x)), wanted, atol=1e-5)
    with pytest.raises(EdgecError, match="schedule is at 0"):
        finish(model)
    schedule.step()
    assert len(finish(model)) == 4
    assert not any(isinstance(m, (PRepBN, nn.LayerNorm)) for m in model.modules())


def test_refusals() -> None:
    for model in (nn.Linear(3, 3), nn.Sequential(nn.LayerNorm(3), nn.LayerNorm((4, 5)))):
        with pytest.raises(EdgecError, match="E0002"):
            swap(model, Schedule(3))
    assert isinstance(model[0], nn.LayerNorm)  # nothing was changed
    with pytest.raises(EdgecError, match="no PRepBN"):
        finish(nn.Linear(3, 3))


def _native(bundle: Path, x: Tensor) -> Any:
    with edgec.Model(bundle) as model, model.session(threads=1) as session:
        return session.run({model.inputs[0].name: x.numpy()})[model.outputs[0].name]


def test_nothing_of_the_norms_is_left_after_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, schedule = TinyLM(), Schedule(3)
    swap(model, schedule, eta=0.4)
    fitted(model, 6, schedule)
    refreshed(model)
    finish(model)
    model.eval()
    x = F.one_hot(batch(torch.Generator().manual_seed(1), 1)[:, :-1], VOCAB).float()
    edgec.compile(model, tmp_path / "out", example_inputs=(x,))
    calls = read_bundle(tmp_path / "out" / "model.edgec").plan.entries[0].calls
    kernels = [call.kernel for call in calls]
    # Not even an affine: all of them went into the linears behind them. What is added are skips and places.
    assert not {"layernorm", "rmsnorm", "unary", "glu"} & set(kernels)
    assert "linear" in kernels
    assert kernels.count("binary") <= 1
    with torch.no_grad():
        wanted = model(x).numpy()
    found = _native(tmp_path / "out" / "model.edgec", x)
    assert np.abs(found - wanted).max() < 1e-5 * max(1.0, float(np.abs(wanted).max()))


class _Hard(nn.Module):
    """LayerNorm exchanged for BatchNorm at once: the baseline."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.rep = RepBN(norm.normalized_shape[0])
        self.rep.eta.requires_grad_(False)
        self.rep.bn.weight.data.copy_(norm.weight.data)
        self.rep.bn.bias.data.copy_(norm.bias.data)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rep(x)
        return out


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="not reproduced: 0.018 against 0.011 here, 0.094 against 0.047 from scratch, "
                                       "where BatchNorm at once is better than LayerNorm, too")
def test_the_progressive_swap_loses_no_more_than_a_hard_one() -> None:
    """The same trained model, the same number of steps for both."""
    losses: dict[str, list[float]] = {"progressive": [], "hard": []}
    for seed in range(3):
        torch.manual_seed(seed)
        trained = TinyLM()
        fitted(trained, 300, seed=seed)
        model, schedule = copy.deepcopy(trained), Schedule(150, 10)
        swap(model, schedule)
        fitted(model, 250, schedule, seed + 10)
        refreshed(model)
        finish(model)
        hard = copy.deepcopy(trained)
        for parent in list(hard.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.LayerNorm):
                    setattr(parent, name, _Hard(child))
        fitted(hard, 250, seed=seed + 10)
        refreshed(hard)
        losses["progressive"].append(judged(model))
        losses["hard"].append(judged(hard))
    assert np.mean(losses["progressive"]) <= np.mean(losses["hard"]), losses
