"""Progressive re-parameterized BatchNorm (SLAB, Guo et al., 2024, arXiv:2405.11582): LayerNorms that vanish at export.

    schedule = Schedule(decay=20_000, warmup=1_000)
    swap(model, schedule)
    for batch in data:                  # as before, and after each optimizer.step(): schedule.step()
        ...
    refresh(model, batches)             # statistics of the final weights
    finish(model)                       # RepBN alone: an affine per channel, which compile folds into the linears

PRepBN(x) = l LN(x) + (1 - l) RepBN(x) with RepBN(x) = BN(x) + eta x, BN over all tokens of the batch, and l going from
1 to 0. The schedule counts optimizer steps, told to it: forward passes that recompute activations, add up gradients or
validate do not advance it. In eval mode the same blend is computed as in training, so a validation on the way means
something. A LayerNorm that a model calls in several places gets one set of statistics over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgec.errors import EdgecError

_STAGE = "train prepbn"


class Schedule:
    """l: 1 for `warmup` steps, then linearly to exactly 0 within `decay` more. Raises EdgecError (E0002)."""

    def __init__(self, decay: int, warmup: int = 0) -> None:
        if decay < 1 or warmup < 0:
            raise EdgecError("E0002", stage=_STAGE, where="decay, warmup", found=f"{decay}, {warmup}",
                             wanted="at least 1 step of decay, no negative warm-up")
        self.decay, self.warmup, self.steps = decay, warmup, 0

    def step(self) -> None:
        """Once after each step of the optimizer."""
        self.steps += 1

    @property
    def value(self) -> float:
        left = self.warmup + self.decay - self.steps  # whole numbers: it ends at 0, not near it
        return min(1.0, max(0, left) / self.decay)

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class RepBN(nn.Module):
    """x [..., C] -> BN(x) + eta x over the last axis. In eval mode one affine per channel."""

    def __init__(self, channels: int, eta: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, eps=eps)
        self.eta = nn.Parameter(torch.tensor(float(eta)))

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) [C] of eval mode: a = gamma / s + eta, c = beta - gamma mu / s."""
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert var is not None
        slope = self.bn.weight * torch.rsqrt(var + self.bn.eps)
        return slope + self.eta, self.bn.bias - slope * mean

    def forward(self, x: Tensor) -> Tensor:
        # The mode of the statistics, not of the block: refresh() updates them while dropout is off.
        if not self.bn.training:
            scale, shift = self.affine()
            return x * scale + shift
        normed: Tensor = self.bn(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return normed + self.eta * x


class PRepBN(nn.Module):
    """The blend while training. norm: the LayerNorm it began as; schedule: shared by all blends of a model."""

    def __init__(self, norm: nn.LayerNorm, schedule: Schedule, eta: float = 0.0) -> None:
        super().__init__()
        self.norm, self.schedule = norm, schedule
        self.rep = RepBN(norm.normalized_shape[0], eta)
        # The normalized value is scaled as before: the swap starts where the LayerNorm stands.
        if norm.weight is not None:
            with torch.no_grad():
                self.rep.bn.weight.copy_(norm.weight)
        if norm.bias is not None:
            with torch.no_grad():
                self.rep.bn.bias.copy_(norm.bias)
        self.rep.to(norm.weight.device if norm.weight is not None else "cpu")

    def forward(self, x: Tensor) -> Tensor:
        left = self.schedule.value
        # In training the statistics are kept from the first step on, so that eval mode has some.
        replaced: Tensor = self.rep(x)
        if left == 0:
            return replaced
        kept: Tensor = self.norm(x)
        return torch.lerp(replaced, kept, left)


def swap(model: nn.Module, schedule: Schedule, eta: float = 0.0) -> list[str]:
    """Replaces every LayerNorm of `model` in place; returns their paths. eta: its start (0 for a trained model; the
    paper trains from scratch with 1). New parameters want to be in the optimizer: make that afterwards.

    Raises EdgecError (E0002) for a model without LayerNorms, or with one over several axes, before it changes anything.
    """
    # A module that stands in two places is a child of both: named_children() tells of the first alone.
    places = [(parent, name, child, f"{path}.{name}" if path else name)
              for path, parent in model.named_modules() for name, child in parent._modules.items()
              if isinstance(child, nn.LayerNorm)]
    if not places:
        raise EdgecError("E0002", stage=_STAGE, where=type(model).__name__, found="no LayerNorm", wanted="at least one")
    wide = [path for _, _, norm, path in places if len(norm.normalized_shape) != 1]
    if wide:
        raise EdgecError("E0002", stage=_STAGE, where=", ".join(wide), found="a LayerNorm over several axes",
                         wanted="LayerNorms over the last axis", hint="statistics per channel cannot stand for it")
    blends: dict[nn.LayerNorm, PRepBN] = {}
    for parent, name, norm, _ in places:
        if norm not in blends:
            blends[norm] = PRepBN(norm, schedule, eta).train(norm.training)
        setattr(parent, name, blends[norm])
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its fused path for inference computes LayerNorms of its own from the parameters.
            parent.activation_relu_or_gelu = 0
    return [path for *_, path in places]


def refresh(model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] | None = None
            ) -> None:
    """Computes the statistics of all RepBN anew with the weights as they are: the mean over `batches`, nothing else in
    training mode. forward(model, batch): default model(batch). Raises EdgecError (E0502) without a batch."""
    norms = [m.bn for m in model.modules() if isinstance(m, RepBN)]
    modes = [(m, m.training) for m in model.modules()]
    momenta = [bn.momentum for bn in norms]
    model.eval()
    seen = 0
    try:
        for bn in norms:
            bn.reset_running_stats()
            bn.momentum = None  # a plain mean
            bn.train()
        with torch.no_grad():
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
                seen += 1
    finally:
        for bn, momentum in zip(norms, momenta, strict=True):
            bn.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not seen:
        raise EdgecError("E0502", stage=_STAGE, where="refresh", found="no batch", wanted="batches of training data")


def finish(model: nn.Module) -> list[str]:
    """Replaces every PRepBN of `model` by its RepBN; returns their paths. Raises EdgecError (E0002) while a schedule is
    not at 0, or when there is nothing to finish."""
    places = [(parent, name, child, f"{path}.{name}" if path else name)
              for path, parent in model.named_modules() for name, child in parent._modules.items()
              if isinstance(child, PRepBN)]
    waiting = [(path, blend.schedule.value) for _, _, blend, path in places if blend.schedule.value > 0]
    if waiting or not places:
        found = f"{waiting[0][0]} at {waiting[0][1]:.3g}" if waiting else "no PRepBN"
        raise EdgecError("E0002", stage=_STAGE, where="finish", found=found, wanted="blends whose schedule is at 0",
                         hint="train on, with schedule.step() after each step" if waiting else "swap(model, schedule)")
    for parent, name, blend, _ in places:
        setattr(parent, name, blend.rep)
    return [path for *_, path in places]
