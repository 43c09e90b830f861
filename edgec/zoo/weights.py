"""Random weights for models that nobody has trained: their speed and size are right, their answers mean nothing.

Fresh norms (mean 0, variance 1, no shift) and zero biases would hide mistakes in folding and make networks faster to
compress than real ones, so those are drawn too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SEED = 0
# Parameters that begin as zeros, by the end of their name.
_TABLES = ("positional_encoding", "pos_embed", "attention_biases", "relative_position_bias_table")


def randomize(module: nn.Module, seed: int = SEED, image: Tensor | None = None) -> nn.Module:
    """Draws every weight and statistic of `module` anew, the same for the same seed; torch's own state stays.

    image: what BatchNorm sees, so that its statistics are near those of its input, as they are in trained networks.
    Without it deep ones overflow, or compute little but rounding errors.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    nn.init.normal_(part.bias, 0.0, 0.1)
            elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                nn.init.uniform_(part.weight, 0.1, 0.5)
                nn.init.normal_(part.bias, 0.0, 0.2)
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert part.running_mean is not None
                assert part.running_var is not None
                nn.init.normal_(part.running_mean, 0.0, 0.2)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
        for name, parameter in module.named_parameters():
            if name.endswith(_TABLES):
                nn.init.normal_(parameter, 0.0, 0.2)
            elif name.endswith("alpha"):
                nn.init.uniform_(parameter, 0.1, 0.4)
        if image is not None:
            norms = [part for part in module.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
            hooks = [part.register_forward_pre_hook(_near_its_input) for part in norms]
            module(image)
            for hook in hooks:
                hook.remove()
    return module


def _near_its_input(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Statistics of BatchNorm: those of `inputs`, off by up to half."""
    x = inputs[0].transpose(0, 1).flatten(1)
    # Channels that hardly vary, or have one value, are not stretched: that would show rounding errors.
    spread = 0.5 * x.square().mean() + (0.5 * x.var(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0]))
    center = x.mean(1) if x.shape[1] > 1 else torch.zeros_like(spread)
    assert isinstance(part.running_mean, Tensor)
    assert isinstance(part.running_var, Tensor)
    part.running_mean.copy_(center + 0.2 * spread.sqrt() * torch.randn_like(spread))
    part.running_var.copy_(spread * (0.5 + torch.rand_like(spread)))
