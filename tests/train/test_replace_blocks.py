from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgec.errors import EdgecError
from edgec.train.blocks import LSBlock, inverted_residual, ls_block
from edgec.train.match import match_blocks, optimize, tapped
from edgec.train.replace_blocks import macs_of, measure, replace_blocks
from edgec.zoo.lsnet import LSConv


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(),
                         nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(dense(1, 16, 1), dense(16, 24, 2))
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(x).mean((2, 3)))
        return logits


def stripes(seed: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy waves in one of four directions, 10 x 10."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    angle = labels * torch.pi / 4
    at = torch.arange(10.0)
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin(1.3 * (at[None, :, None] * torch.cos(angle)[:, None, None]
                            + at[None, None] * torch.sin(angle)[:, None, None]) + phase)
    return (wave + 0.7 * torch.randn(count, 10, 10, generator=generator))[:, None], labels


def accuracy(model: nn.Module) -> float:
    x, labels = stripes(10**6, 400)
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).float().mean())


@pytest.fixture(scope="module")
def trained() -> Net:
    torch.manual_seed(0)
    model = Net()

    def loss(step: int) -> Tensor:
        x, labels = stripes(step)
        return F.cross_entropy(model(x), labels)

    losses = optimize(model.parameters(), loss, 80)
    assert losses[-1] < losses[0] / 3
    return model.eval()


@pytest.mark.parametrize(("make", "tolerance"), [(inverted_residual, 0.06), (ls_block, 0.06)])
def test_blocks_learn_from_those_they_replace(trained: Net, make: Any, tolerance: float) -> None:
    before = copy.deepcopy(trained.state_dict())
    torch.manual_seed(1)
    x = stripes(0, 1)[0]
    done = replace_blocks(trained, ["stages.1"], make, stripes, x, match_steps=80, joint_steps=40, evaluate=accuracy,
                          timed=False)
    assert done.before.accuracy is not None
    assert done.after.accuracy is not None
    assert done.before.accuracy > 0.9
    assert done.after.accuracy > done.before.accuracy - tolerance
    assert done.after.macs < 0.8 * done.before.macs
    assert done.after.bytes < 0.7 * done.before.bytes
    assert set(done.blocks) == {"stages.1"}
    assert done.blocks["stages.1"] < 0.5
    # The original is as it was, and what was not asked for is the same module.
    assert all(torch.equal(t, before[name]) for name, t in trained.state_dict().items())
    assert isinstance(done.model.stages[0], nn.Sequential)  # type: ignore[attr-defined]
    assert done.before.ms is None
    # Without any training the new block knows nothing: the comparison can fail.
    raw = replace_blocks(trained, ["stages.1"], make, stripes, x, match_steps=0, joint_steps=0, evaluate=accuracy,
                         timed=False)
    assert raw.after.accuracy is not None
    assert raw.after.accuracy < 0.7


def test_what_is_matched_and_what_refused(trained: Net) -> None:
    x = stripes(0, 1)[0]
    arguments: dict[str, Any] = {"match_steps": 1, "joint_steps": 0, "timed": False}
    done = replace_blocks(trained, ["stages.*", "stages.0.0"], inverted_residual, stripes, x, **arguments)
    assert list(done.blocks) == ["stages.0", "stages.1"]  # what lies inside a block is not a block of its own
    for paths, make, message in (
        (["stage.*"], inverted_residual, "the path of a module"),
        (["head"], inverted_residual, r"\[B, C, H, W\] to"),
        (["stages.1"], lambda i, o, s: nn.Conv2d(i, o, 3, s), "a new block that gives"),
        (["stages.1"], lambda i, o, s: ls_block(i, o + 1, s), "a multiple of 8"),
    ):
        with pytest.raises(EdgecError, match=message):
            replace_blocks(trained, paths, make, stripes, x, **arguments)


def test_a_block_of_two_tensors_is_refused() -> None:
    model = nn.ModuleDict({"b": nn.Bilinear(2, 2, 2)})
    with tapped(model, ["b"]), pytest.raises(EdgecError, match="one tensor in and one out"):
        model["b"](torch.zeros(1, 2), torch.zeros(1, 2))


def test_a_linear_teacher_is_matched_exactly() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1))
    student = nn.Conv2d(3, 5, 1)
    found = match_blocks({"1": student}, teacher, lambda i: (torch.randn(16, 3, 4, 4), None), 400, lr=3e-2)
    assert found["1"] < 1e-3


def test_a_loss_that_explodes_ends_the_training() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(EdgecError, match="E0502"):
        optimize([weight], lambda step: weight / 0, 2)


def test_macs_of_an_ls_convolution() -> None:
    c, pixels = 16, 36
    half, predicted = c // 2, 9 * c // 8
    wanted = pixels * (c * half + 49 * half + half * half + half * predicted + 9 * c)
    assert macs_of(LSConv(c).eval(), torch.zeros(1, c, 6, 6)) == wanted


def test_an_ls_block_runs_natively() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(LSBlock(5, 16, 2), nn.Conv2d(16, 3, 1))
    found = measure(block, torch.randn(1, 5, 9, 11))  # compiling compares with torch
    assert found.ms is not None
    assert 0 < found.ms < 1e4
    assert found.accuracy is None
    assert np.isfinite(found.bytes)
