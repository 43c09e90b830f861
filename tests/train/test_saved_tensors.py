"""What autograd keeps, marshaled, uniquified and sharded: the same gradients from fewer bytes."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgec.errors import EdgecError
from edgec.train.saved_tensors import SavedTensors
from edgec.train.soft_kmeans import dense, histogram

ROOT = Path(__file__).resolve().parents[2]
ROWS, K = 128 * 96, 8


def layer(w: Tensor) -> Tensor:
    start = torch.linspace(-0.04, 0.04, K)[None, :, None]
    return dense(w.float().reshape(1, -1, 1), start, torch.tensor([1e-4]), 3)[0]


def weight(seed: int = 0) -> nn.Parameter:
    values = torch.randn(128, 96, generator=torch.Generator().manual_seed(seed)) * 0.02
    return nn.Parameter(values.to(torch.bfloat16))


def gradient(saved: SavedTensors | None) -> Tensor:
    w = weight()
    grad = torch.linspace(-1, 1, ROWS)[None, :, None]
    if saved is None:
        layer(w).backward(grad)
    else:
        with saved:
            saved.watch(w)
            soft = layer(w)
        soft.backward(grad)
    assert w.grad is not None
    return w.grad


def test_same_gradient_from_fewer_bytes() -> None:
    wanted = gradient(None)
    peaks = {}
    for name, marshal, uniquify in (("none", False, False), ("M", True, False), ("U", False, True), ("MU", True, True)):
        saved = SavedTensors(marshal=marshal, uniquify=uniquify)
        assert torch.equal(gradient(saved), wanted), name
        peaks[name] = saved.peak
        gc.collect()
        assert saved.bytes == 0, name
        assert (saved.aliased > 0) == marshal
        assert (saved.uniquified > 0) == uniquify
    assert peaks["M"] < 0.8 * peaks["none"]
    assert peaks["MU"] < peaks["U"] < peaks["M"]
    # Nothing of a size of |W| k is left: an index list, and tables over the values that occur.
    unique = len(histogram(weight().detach(), torch.bfloat16)[0])
    assert peaks["MU"] < 2 * ROWS + 4 * unique * (K + 1) * 12


@pytest.mark.parametrize("view", [
    lambda x: x, lambda x: x.T, lambda x: x[3:40, ::2], lambda x: x[:1].expand(5, -1), lambda x: x.reshape(-1),
    lambda x: x[2], lambda x: x.unsqueeze(0).movedim(0, -1), lambda x: x[:0],
])
def test_views_come_back_as_they_were(view: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).mul(3)
    wanted = view(x).clone()
    y = torch.ones_like(wanted).requires_grad_()
    with SavedTensors() as saved:
        out = (y * view(x)).sum() + (y * view(x)).sum()
    x.zero_()
    (found,) = torch.autograd.grad(out, y)
    assert torch.equal(found, 2 * wanted)
    if view(x).numel() == x.numel():
        assert (saved.copied, saved.aliased) == (1, 1)


def test_what_has_changed_since_is_no_alias() -> None:
    x = torch.full((2048,), 2.0)
    y = torch.ones(2048, requires_grad=True)
    with SavedTensors() as saved:
        first = (y * x).sum()
        x.fill_(5.0)
        second = (y * x).sum()
    assert saved.aliased == 0
    assert torch.autograd.grad(first, y)[0][0] == 2.0
    assert torch.autograd.grad(second, y)[0][0] == 5.0


def test_a_storage_that_is_gone_is_no_alias() -> None:
    y = torch.ones(4096, requires_grad=True)
    total = torch.zeros(())
    with SavedTensors():
        for value in range(20):  # the allocator gives the same address again and again
            total = total + (y * torch.full((4096,), float(value))).sum()
    assert torch.autograd.grad(total, y)[0][0] == sum(range(20))


def test_rows_that_differ_are_copied() -> None:
    w = weight()
    other = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(1))
    y = torch.ones(ROWS, K, requires_grad=True)
    with SavedTensors() as saved:
        saved.watch(w)
        out = (y * other).sum()
    assert (saved.copied, saved.uniquified) == (1, 0)
    assert torch.equal(torch.autograd.grad(out, y)[0], other)


def test_maps_of_either_layout_are_uniquified() -> None:
    w = weight()
    wide = w.detach().float().reshape(-1, 1) * torch.arange(1.0, K + 1)
    for rows in (wide, wide.T.contiguous()):
        y = torch.ones_like(rows, requires_grad=True)
        with SavedTensors() as saved:
            saved.watch(w)
            out = (y * rows).sum()
        assert (saved.copied, saved.uniquified) == (0, 1)
        assert torch.equal(torch.autograd.grad(out, y)[0], rows)


def test_a_parameter_that_changed_too_early_is_found_out() -> None:
    w = nn.Parameter(torch.ones(2000))
    x = torch.ones(2000, requires_grad=True)
    with SavedTensors():
        out = (w * x).sum()
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(EdgecError, match="between forward and backward"):
        out.backward()


def test_a_watched_weight_may_change() -> None:
    w = weight()
    flat = w.detach().view(-1)
    first, y = {}, torch.ones(ROWS, K, requires_grad=True)
    for at, value in enumerate(flat.tolist()):
        first.setdefault(value, at)
    # What every value is first met at stays; a later place gets another of the values.
    at = next(at for at, value in enumerate(flat.tolist()) if first[value] < at)
    other = next(i for i in first.values() if flat[i] != flat[at])
    made = []
    with SavedTensors() as saved:
        saved.watch(w)
        out = torch.zeros(())
        for _ in range(2):
            made.append(w.detach().float().reshape(-1, 1) * torch.arange(1.0, K + 1))
            out = out + (y * made[-1]).sum()
            with torch.no_grad():
                flat[at] = flat[other]
    assert not torch.equal(*made)
    assert (saved.copied, saved.uniquified) == (0, 2)
    assert torch.equal(torch.autograd.grad(out, y)[0], made[0] + made[1])


def test_conjugated_and_negated_values_come_back_as_they_were() -> None:
    x = torch.randn(40, 30, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    y = torch.ones(40, 30, dtype=torch.complex64, requires_grad=True)
    z = torch.ones(40, 30, requires_grad=True)
    assert x.conj().is_conj()
    assert x.conj().imag.is_neg()

    def loss() -> Tensor:
        return (y * x.conj()).real.sum() + (y * x).imag.sum() + (z * x.conj().imag).sum()

    wanted = torch.autograd.grad(loss(), (y, z))
    with SavedTensors():
        out = loss()
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(out, (y, z)), wanted, strict=True))


def test_views_of_a_parameter_are_not_copied() -> None:
    linear = nn.Linear(96, 64, bias=False)
    x = torch.ones(2, 96, requires_grad=True)
    (wanted,) = torch.autograd.grad(linear(x).sum(), x)
    for of in (lambda: linear(x).sum(), lambda: (x[:, :40] * linear.weight[3:5, 1:41]).sum()):
        (wanted,) = torch.autograd.grad(of(), x)
        with SavedTensors() as saved:
            out = of()
        assert saved.bytes <= x.nbytes  # the inputs
        assert torch.equal(torch.autograd.grad(out, x)[0], wanted)
    with SavedTensors():
        out = linear(x).sum()
    with torch.no_grad():
        linear.weight.add_(1)
    with pytest.raises(EdgecError, match="between forward and backward"):
        out.backward()


def test_refuses() -> None:
    with pytest.raises(EdgecError, match="an empty weight"):
        SavedTensors().watch(torch.zeros(0, 4, dtype=torch.bfloat16))
    with pytest.raises(EdgecError, match="float32"):
        SavedTensors().watch(torch.zeros(4))
    with pytest.raises(EdgecError, match="without uniquification"):
        SavedTensors(uniquify=False, group=object())  # type: ignore[arg-type]


WORKER = """
import sys
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from tests.train.test_saved_tensors import gradient, weight
from edgec.errors import EdgecError
from edgec.train.saved_tensors import SavedTensors

rank, store = int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
alone, shared = SavedTensors(), SavedTensors(group=dist.group.WORLD)
assert torch.equal(gradient(alone), gradient(shared)), "another gradient"
assert torch.equal(gradient(shared), gradient(None)), "another gradient"
w = weight()
with SavedTensors(group=dist.group.WORLD) as changed:
    changed.watch(w)
    with torch.no_grad():
        w.mul_(2)
    try:
        torch.ones(w.numel(), requires_grad=True) * w.detach().float().reshape(-1)
    except EdgecError as e:
        assert "changed in place after watch()" in str(e)
    else:
        raise AssertionError("an old index list")
try:
    SavedTensors(group=dist.group.WORLD).watch(weight(seed=rank))
except EdgecError as e:
    assert "different weights" in str(e)
else:
    raise AssertionError("learners with different weights")
print(alone.peak, shared.peak)
dist.barrier()
dist.destroy_process_group()
"""


def test_sharded_over_two_learners(tmp_path: Path) -> None:
    learners = [subprocess.Popen([sys.executable, "-c", WORKER, str(ROOT), str(rank), str(tmp_path / "store")],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for learner in learners:
        out, err = learner.communicate(timeout=240)
        assert learner.returncode == 0, err[-2000:]
        alone, shared = map(int, out.split()[-2:])
        assert alone - shared == ROWS  # half an index list of two bytes each
