"""Both engines of differentiable k-means: against numbers, against each other, and what they keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgec.train.soft_kmeans import dense, histogram, table


def weights(shape: tuple[int, ...], seed: int, half: torch.dtype = torch.bfloat16) -> Tensor:
    """float64 values that `half` holds: rounding does nothing, and gradients keep all their digits."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    return values.to(half).double().requires_grad_()


def centroids(k: int, seed: int) -> tuple[Tensor, Tensor]:
    made = torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.02
    return made.sort()[0], torch.tensor(0.1 * (1.75 * 0.02 / k) ** 2, dtype=torch.float64)


@pytest.mark.parametrize("k", [2, 8, 32, 256])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
def test_table_equals_dense_autograd(iterations: int, k: int) -> None:
    rng = np.random.default_rng(100 * k + iterations)
    shape = tuple(int(n) for n in rng.integers(1, 60, int(rng.integers(1, 4))))
    w = weights(shape, k)
    start, tau = centroids(k, iterations)
    grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    soft, after = table(w, start, tau, iterations, torch.bfloat16)
    (found,) = torch.autograd.grad(soft, w, grad)
    for recompute in (False, True):
        plain, wanted_after = dense(w.reshape(1, -1, 1), start[None, :, None], tau[None], iterations,
                                    recompute=recompute)
        (wanted,) = torch.autograd.grad(plain.reshape(shape), w, grad)
        assert (soft - plain.reshape(shape)).abs().max() < 1e-12 * w.abs().max()
        assert (found - wanted).norm() < 1e-10 * wanted.norm()
        assert (after - wanted_after[0, :, 0]).abs().max() < 1e-12


def test_table_of_float16_and_of_float32_masters() -> None:
    w = weights((40, 50), 3, torch.float16)
    start, tau = centroids(8, 0)
    wanted, _ = dense(w.reshape(1, -1, 1), start[None, :, None], tau[None], 3)
    soft, _ = table(w, start, tau, 3, torch.float16)
    assert (soft - wanted.reshape(w.shape)).abs().max() < 1e-14
    # A float32 master is rounded, and its gradient is that of the rounded weight.
    master = (w.detach().to(torch.bfloat16).float() * (1 + 1e-4)).requires_grad_()
    rounded = master.detach().to(torch.bfloat16).float().requires_grad_()
    grads = [torch.autograd.grad(table(x, start, tau, 3, torch.bfloat16)[0].sin().sum(), x)[0]
             for x in (master, rounded)]
    assert not torch.equal(master, rounded)
    assert torch.equal(*grads)


@pytest.mark.parametrize("recompute", [False, True])
def test_dense_gradient_is_the_derivative(recompute: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 11, 2, dtype=torch.float64, generator=generator).requires_grad_()
    start = torch.randn(2, 4, 2, dtype=torch.float64, generator=generator)
    tau = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dense(x, start, tau, 3, recompute=recompute)[0], (w,))


def test_dense_is_softmax_as_published() -> None:
    w, c, tau = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.0, 3.0]), 2.0
    shares = np.exp(-np.subtract.outer([0.0, 1.0, 4.0], [0.0, 3.0]) ** 2 / tau)
    shares /= shares.sum(1, keepdims=True)
    moved = shares.T @ [0.0, 1.0, 4.0] / shares.sum(0)
    soft, after = dense(w[None, :, None], c[None, :, None], torch.tensor([tau]), 1)
    assert np.allclose(after[0, :, 0], moved, rtol=1e-6)
    assert np.allclose(soft[0, :, 0], shares @ moved, rtol=1e-6)


def test_a_centroid_without_weights_stays_and_gives_no_nan() -> None:
    w = weights((200,), 1)
    start = torch.tensor([-0.01, 0.01, 1e3], dtype=torch.float64)
    tau = torch.tensor(1e-5, dtype=torch.float64)
    for soft, after in (table(w, start, tau, 3, torch.bfloat16),
                        dense(w.reshape(1, -1, 1), start[None, :, None], tau[None], 3)):
        (grad,) = torch.autograd.grad(soft.sum(), w)
        assert after.reshape(-1)[2] == 1e3
        assert grad.isfinite().all()
        assert float(grad.abs().sum()) > 0


def test_table_keeps_nothing_per_weight() -> None:
    kept: list[Tensor] = []
    w = torch.nn.Parameter(weights((512, 512), 0).detach().to(torch.bfloat16))
    start, tau = centroids(8, 0)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        soft, _ = table(w, start, tau, 3, torch.bfloat16)
    unique = len(histogram(w.detach(), torch.bfloat16)[0])
    assert soft.dtype == torch.bfloat16
    assert sum(t.nbytes for t in kept if t.data_ptr() != w.data_ptr()) == 10 * unique + 8 * (8 + 1)


def test_histogram_counts_every_bit_pattern() -> None:
    w = torch.tensor([0.0, -0.0, 1.0, 1.0, -2.5, 65280.0], dtype=torch.bfloat16)
    values, counts = histogram(w, torch.bfloat16)
    assert dict(zip([str(float(v)) for v in values], counts.tolist(), strict=True)) == {
        "0.0": 1, "1.0": 2, "65280.0": 1, "-0.0": 1, "-2.5": 1}
