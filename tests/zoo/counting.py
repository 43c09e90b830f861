"""What the methods of the zoo count by hand: parameters of the folded form, and multiply-accumulates.

Independent of the compiler: both are derived from the modules alone.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from edgec.zoo import lsnet, slab, slab_swin


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def folded_parameters(module: nn.Module) -> int:
    """Norms are gone, every layer has a bias, of parallel depthwise convolutions and of two heads one is left; the
    BatchNorm behind dynamic kernels stays as a scale and a shift."""
    total = parameters(module)
    for part in module.modules():
        if isinstance(part, (slab.PRepBN, nn.BatchNorm2d)):
            total -= parameters(part)
        elif isinstance(part, lsnet.Head):
            total -= parameters(part[0])
        elif isinstance(part, (nn.Conv2d, nn.Linear)) and part.bias is None:
            total += part.weight.shape[0]
        if isinstance(part, lsnet.LSConv):
            total += parameters(part.bn)
        elif isinstance(part, lsnet.LSNet) and part.head_dist is not None:
            total -= parameters(part.head_dist[1])
        elif isinstance(part, lsnet.RepDW):
            total -= part.conv1[0].weight.numel() + part.conv1[0].weight.shape[0]
    return total


def multiply_adds(module: nn.Module, image: torch.Tensor) -> int:
    """Of convolutions, linears, products of attention and dynamic kernels, in the folded form; without data."""
    total = 0

    def count(part: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(part, nn.Conv2d):
            total += output.numel() * math.prod(part.weight.shape[1:])
        elif isinstance(part, nn.Linear):
            total += output.numel() * part.in_features
        elif isinstance(part, lsnet.RepDW):  # the 1x1 convolution becomes a part of the other one
            total -= output.numel()
        elif isinstance(part, lsnet.LSNet) and part.head_dist is not None:  # two heads become one
            total -= part.head_dist[1].weight.numel() * output.shape[0]
        elif isinstance(part, lsnet.LSConv):
            total += 9 * output.numel()
        elif isinstance(part, lsnet.Attention):
            pixels = output.shape[2] * output.shape[3]
            total += pixels**2 * (lsnet.KEY * lsnet.HEADS + output.shape[1])
        elif isinstance(part, slab_swin.WindowAttention):
            total += 2 * output.numel() * output.shape[1]
        elif isinstance(part, slab.LinearAttention):
            total += 2 * output.numel() * min(output.shape[1], output.shape[2] // part.heads)

    for part in module.modules():
        part.register_forward_hook(count)
    with torch.no_grad():
        module.to("meta")(image.to("meta"))
    return total
