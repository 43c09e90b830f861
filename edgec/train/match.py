"""A small trainer: tensors of a student are to match those of a teacher. AdamW, a short warm-up, a cosine to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgec.errors import EdgecError

# Of a step number: inputs of the model, and labels where there are some.
Batches = Callable[[int], tuple[Tensor, Tensor | None]]

_WARMUP = 0.05


def optimize(parameters: Iterable[nn.Parameter], loss: Callable[[int], Tensor], steps: int, *, lr: float = 3e-3,
             weight_decay: float = 1e-4) -> list[float]:
    """Minimizes loss(step) for `steps` steps; returns the losses. Raises EdgecError (E0502) when one is not finite."""
    optimizer = torch.optim.AdamW(list(parameters), lr, weight_decay=weight_decay)
    warmup = max(1, round(_WARMUP * steps))
    losses = []
    for step in range(steps):
        factor = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.zero_grad()
        value = loss(step)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise EdgecError("E0502", stage="train", where=f"step {step}", found=f"a loss of {losses[-1]}",
                             wanted="a finite one", hint="a smaller learning rate")
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return losses


@contextmanager
def tapped(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """(input, output) of the modules at `paths`, as of the last forward pass; modules of one tensor each."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
                raise EdgecError("E0002", stage="train", where=path, wanted="a block of one tensor in and one out",
                                 found=f"{len(inputs)} inputs of {type(module).__name__}")
            seen[path] = (inputs[0], output)

        return keep

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def match_blocks(students: Mapping[str, nn.Module], teacher: nn.Module, batches: Batches, steps: int, *,
                 lr: float = 3e-3) -> dict[str, float]:
    """Teaches each student what the teacher's module of the same path makes of its own input, all in the same passes.

    The loss of each is its squared error relative to the variance of what it is to match. Returns the mean loss of each
    over the last tenth of the steps.
    """
    for student in students.values():
        student.train()
    teacher.eval()
    last: dict[str, list[float]] = {path: [] for path in students}

    def loss(step: int) -> Tensor:
        with torch.no_grad():
            teacher(batches(step)[0])
        errors = []
        for path, student in students.items():
            x, y = seen[path]
            errors.append(F.mse_loss(student(x), y) / y.var().clamp_min(1e-12))
            if step >= steps - max(1, steps // 10):
                last[path].append(float(errors[-1].detach()))
        return torch.stack(errors).sum()

    with tapped(teacher, students) as seen:
        optimize([p for s in students.values() for p in s.parameters()], loss, steps, lr=lr)
    return {path: sum(values) / len(values) for path, values in last.items() if values}


def distill(student: nn.Module, teacher: nn.Module, batches: Batches, steps: int, *, lr: float = 1e-3,
            temperature: float = 2.0, labels: float = 0.5) -> list[float]:
    """Trains all of `student` on the teacher's softened logits (Hinton et al., 2015), and on labels where there are
    some; labels: their share of the loss. Returns the losses."""
    student.train()
    teacher.eval()

    def loss(step: int) -> Tensor:
        x, y = batches(step)
        with torch.no_grad():
            wanted = F.softmax(teacher(x) / temperature, dim=-1)
        logits = student(x)
        soft = F.kl_div(F.log_softmax(logits / temperature, dim=-1), wanted, reduction="batchmean") * temperature**2
        return soft if y is None else (1 - labels) * soft + labels * F.cross_entropy(logits, y)

    return optimize(student.parameters(), loss, steps, lr=lr)
