"""What a student learns from: labels, and the teacher's distribution in either direction or in a mix of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edgec.errors import EdgecError

Distill = Literal["none", "forward", "reverse", "mix"]
DISTILL: tuple[Distill, ...] = ("none", "forward", "reverse", "mix")
IGNORED = -100  # a label that counts for nothing, as of torch's cross entropy
_CONFUSED = math.log(16)  # entropy from which a teacher counts as knowing nothing (EdgeRazor, arXiv:2605.04062)
# Of a number of this process, that of all of them. With it a loss is this process's part, and the parts add up.
Total = Callable[[Tensor], Tensor]


def _alone(value: Tensor) -> Tensor:
    return value


def distillation(student: Tensor, teacher: Tensor, kind: Distill, temperature: float = 1.0,
                 labels: Tensor | None = None, total: Total = _alone) -> Tensor:
    """Mean over positions of a divergence of softened distributions, times temperature^2 (Hinton et al., 2015).

    student, teacher: logits [..., classes]. kind: forward KL(T | S), which covers what the teacher holds possible;
    reverse KL(S | T), which looks for its modes; mix: gamma KL(S | T) + (1 - gamma) KL(T | S) with gamma = 1 -
    mean(min(H(T), ln 16)) / ln 16 (EdgeRazor): the surer the teacher, the more the student seeks its mode. labels:
    positions with -100 do not count. Raises EdgecError (E0002) for other shapes.
    """
    if student.shape != teacher.shape:
        raise EdgecError("E0002", stage="train loss", where="logits", found=f"{list(student.shape)}",
                         wanted=f"those of the teacher, {list(teacher.shape)}")
    if labels is not None:
        # Selected, not multiplied by 0: what does not count may be NaN, and so would its gradient be.
        counted = labels.reshape(student.shape[:-1]) != IGNORED
        student, teacher = student[counted], teacher[counted]
    own = F.log_softmax(student.float() / temperature, -1)
    wanted = F.log_softmax(teacher.float() / temperature, -1)
    positions = max(1, int(total(torch.tensor(own.numel() // own.shape[-1]))))
    # Classes that both exclude by a logit of -inf differ in nothing.
    excluded = torch.isneginf(own) & torch.isneginf(wanted)
    difference = (wanted - own).masked_fill(excluded, 0)
    share = 0.0
    if kind == "mix":
        entropy = torch.special.entr(wanted.exp()).sum(-1).clamp(max=_CONFUSED)
        share = 1 - float(total(entropy.sum())) / positions / _CONFUSED
    forward = (wanted.exp() * difference).sum() / positions if kind in ("forward", "mix") else own.new_zeros(())
    reverse = (own.exp() * -difference).sum() / positions if kind in ("reverse", "mix") else own.new_zeros(())
    divergence = {"forward": forward, "reverse": reverse, "mix": share * reverse + (1 - share) * forward}[kind]
    return divergence * temperature**2


def label_loss(logits: Tensor, labels: Tensor, total: Total = _alone) -> Tensor:
    """Cross entropy: logits [..., classes], labels [...] int64, -100 for what does not count."""
    lost = F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED,
                           reduction="sum")
    return lost / int(total((labels != IGNORED).sum()))
