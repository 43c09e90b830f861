"""Divergences from a teacher, against what their formulas give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgec.errors import EdgecError
from edgec.train.losses import distillation, label_loss

GENERATOR = torch.Generator().manual_seed(0)
S, T = (torch.randn(3, 5, 7, generator=GENERATOR) * 2 for _ in range(2))


def kl(p: torch.Tensor, q: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    a, b = (np.exp(x.double().numpy()) / np.exp(x.double().numpy()).sum(-1, keepdims=True) for x in (p, q))
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (a * np.log(a / b)).sum(-1)
    return found


def test_forward_reverse_and_temperature() -> None:
    assert float(distillation(S, T, "forward")) == pytest.approx(kl(T, S).mean(), rel=1e-5)
    assert float(distillation(S, T, "reverse")) == pytest.approx(kl(S, T).mean(), rel=1e-5)
    assert float(distillation(S, T, "forward", 3.0)) == pytest.approx(9 * kl(T / 3, S / 3).mean(), rel=1e-4)
    assert float(distillation(T, T, "mix")) == pytest.approx(0, abs=1e-6)


def test_mix_follows_the_teachers_entropy() -> None:
    p = np.exp(T.double().numpy())
    p /= p.sum(-1, keepdims=True)
    entropy = np.minimum(-(p * np.log(p)).sum(-1), math.log(16)).mean()
    gamma = 1 - entropy / math.log(16)
    assert float(distillation(S, T, "mix")) == pytest.approx(
        gamma * kl(S, T).mean() + (1 - gamma) * kl(T, S).mean(), rel=1e-5)
    wide = torch.zeros(2, 64)  # of more than 16 equal classes: as unsure as can be, not less than that
    narrow = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    assert float(distillation(narrow, wide, "mix")) == pytest.approx(kl(wide, narrow).mean(), rel=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "mix"])
def test_positions_without_a_label_do_not_count(kind: str) -> None:
    labels = torch.zeros(3, 5, dtype=torch.int64)
    labels[1:] = -100
    broken = S.clone()
    broken[2] = math.inf
    broken.requires_grad_()
    value = distillation(broken, T, kind, labels=labels)  # type: ignore[arg-type]
    assert float(value.detach()) == pytest.approx(float(distillation(S[:1], T[:1], kind)))  # type: ignore[arg-type]
    assert float(label_loss(S, labels)) == pytest.approx(float(label_loss(S[:1], labels[:1])))
    with pytest.raises(EdgecError, match="those of the teacher"):
        distillation(S, T[:1], kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["forward", "reverse", "mix"])
def test_gradients_of_excluded_classes_and_positions_are_finite(kind: str) -> None:
    student, teacher = S.clone(), T.clone()
    student[..., 6] = teacher[..., 6] = -math.inf
    wanted = distillation(S[..., :6], T[..., :6], kind)  # type: ignore[arg-type]
    student.requires_grad_()
    found = distillation(student, teacher, kind)  # type: ignore[arg-type]
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert torch.autograd.grad(found, student)[0].isfinite().all()
    teacher[2] = math.nan
    labels = torch.zeros(3, 5, dtype=torch.int64)
    labels[2] = -100
    value = distillation(student, teacher, kind, labels=labels)  # type: ignore[arg-type]
    assert torch.autograd.grad(value, student)[0].isfinite().all()
