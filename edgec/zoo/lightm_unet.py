"""LightM-UNet (Liao et al., 2024, arXiv:2403.05246), 2D: a UNet whose layers are selective scans over all pixels.

As released, it has 5,011,683 parameters with 32 filters, one channel in and two out; that is five times what the paper
says. The 3D form is not here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgec.zoo.ops import causal_conv1d, selective_scan

STATES, TAPS, EXPANSION, GROUPS = 16, 4, 2, 8
BLOCKS_DOWN, BLOCKS_UP = (1, 2, 2, 4), (1, 1, 1)


class Mamba(nn.Module):
    """tokens [B, L, C] -> [B, L, C]: gated selective scan after a short convolution (Gu and Dao, 2023)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, self.rank = EXPANSION * channels, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(inner, TAPS))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.x_proj = nn.Linear(inner, self.rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        # Rates 1, 2, .. of every channel, and steps between 1 ms and 0.1 s, as the authors begin.
        self.a_log = nn.Parameter(torch.arange(1, STATES + 1).float().log().repeat(inner, 1))
        self.d = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        nn.init.uniform_(self.conv_weight, -TAPS ** -0.5, TAPS ** -0.5)
        with torch.no_grad():
            step = torch.exp(torch.rand(inner) * math.log(100) + math.log(0.001))
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=2)
        x, _ = causal_conv1d(x, self.conv_weight, self.conv_bias, silu=True)
        delta, b, c = self.x_proj(x).split([self.rank, STATES, STATES], dim=2)
        y, _ = selective_scan(x, self.dt_proj(delta), -torch.exp(self.a_log), b, c, self.d, z, softplus=True)
        out: Tensor = self.out_proj(y)
        return out


class VisionMamba(nn.Module):
    """image [B, C, H, W] -> [B, outputs, H, W]: the pixels, row by row, through Mamba; both norms share weights."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels)
        self.proj = nn.Linear(channels, outputs)
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(2).transpose(1, 2)
        y = self.mamba(self.norm(x)) + self.skip_scale * x
        out: Tensor = self.proj(self.norm(y)).transpose(1, 2).unflatten(2, image.shape[2:])
        return out


class MambaBlock(nn.Module):
    """The image plus two VisionMambas of it, each after GroupNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, channels)
        self.conv1, self.conv2 = VisionMamba(channels, channels), VisionMamba(channels, channels)

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.conv1(F.relu(self.norm1(image)))
        y = self.conv2(F.relu(self.norm2(y)))
        return y + image


class UpBlock(nn.Module):
    """Convolution after GroupNorm and ReLU, plus the scaled image; GroupNorm and ReLU again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, channels)
        self.conv = separable(channels, channels)
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        y = self.conv(F.relu(self.norm1(image))) + self.skip_scale * image
        return F.relu(self.norm2(y))


def separable(inputs: int, outputs: int, kernel: int = 3, bias: bool = False) -> nn.Sequential:
    """Depthwise, then pointwise convolution; no activation."""
    return nn.Sequential(nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=bias),
                         nn.Conv2d(inputs, outputs, 1, bias=bias))


class LightMUNet(nn.Module):
    """image [B, channels, H, W] FLOAT, H and W multiples of 8 -> logits [B, classes, H, W]."""

    def __init__(self, channels: int = 1, classes: int = 2, filters: int = 32) -> None:
        super().__init__()
        self.stem = separable(channels, filters)
        self.down = nn.ModuleList()
        for stage, blocks in enumerate(BLOCKS_DOWN):
            width = filters << stage
            shrink = [VisionMamba(width // 2, width), nn.MaxPool2d(2)] if stage else []
            self.down.append(nn.Sequential(*shrink, *(MambaBlock(width) for _ in range(blocks))))
        widths = [filters << stage for stage in reversed(range(len(BLOCKS_UP)))]
        self.narrow = nn.ModuleList(nn.Conv2d(2 * width, width, 1, bias=False) for width in widths)
        self.up = nn.ModuleList(nn.Sequential(*(UpBlock(width) for _ in range(blocks)))
                                for width, blocks in zip(widths, BLOCKS_UP, strict=True))
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, filters), nn.ReLU(), separable(filters, classes, 1, bias=True))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for narrow, up, skip in zip(self.narrow, self.up, reversed(skips[:-1]), strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = up(x + skip)
        logits: Tensor = self.head(x)
        return logits


def create(channels: int = 1, classes: int = 2, filters: int = 32, size: int = 64
           ) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, str]]:
    """(module with random weights, example image, options of the torch door)."""
    module = LightMUNet(channels, classes, filters).eval()
    return module, (torch.randn(1, channels, size, size),), {"name": "lightm_unet"}
