"""SLAB-Swin: Swin (Liu et al., 2021, arXiv:2103.14030) with PRepBN, and linear attention over the map in two stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgec.zoo.slab import LinearAttention, Mlp, PatchEmbed, PRepBN

PATCH = 4
# Side of a window of linear attention and of softmax attention; a smaller map is one window.
LINEAR_WINDOW, WINDOW = 56, 7
_BLOCKED = -100.0


def to_windows(x: Tensor, side: int) -> Tensor:
    """[B, H, W, C] -> [B H W / side^2, side^2, C], windows row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(-1, side * side, channels)


def from_windows(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """What `to_windows` was given."""
    x = windows.reshape(-1, height // side, width // side, side, side, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


class WindowAttention(nn.Module):
    """windows [B n, side^2, C] -> the same: softmax attention, a bias by relative position, a mask [n, N, N]."""

    relative_position_index: Tensor
    attn_mask: Tensor | None

    def __init__(self, channels: int, heads: int, side: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        rows, columns = place[:, :, None] - place[:, None, :] + side - 1
        self.register_buffer("relative_position_index", rows * (2 * side - 1) + columns)
        self.register_buffer("attn_mask", mask)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        scores = q * (channels // self.heads) ** -0.5 @ k.transpose(2, 3) + bias
        if self.attn_mask is not None:
            many = scores.reshape(-1, self.attn_mask.shape[0], self.heads, tokens, tokens)
            scores = (many + self.attn_mask[:, None]).reshape(scores.shape)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(windows, tokens, channels)
        result: Tensor = self.proj(y)
        return result


def shift_mask(map_side: int, side: int, shift: int) -> Tensor:
    """[windows, side^2, side^2]: 0 between tokens of one region of the map before rolling, -100 between others."""
    edges = torch.arange(map_side)
    region = (edges >= map_side - side).long() + (edges >= map_side - shift).long()
    numbered = (3 * region[:, None] + region[None, :])[None, :, :, None]
    windows = to_windows(numbered, side)[:, :, 0]
    return (windows[:, None, :] != windows[:, :, None]).float() * _BLOCKED


class Block(nn.Module):
    """tokens [B, side^2, C] of a square map; attention within windows, which every second block shifts by half."""

    def __init__(self, channels: int, heads: int, map_side: int, window: int, shifted: bool, linear: bool) -> None:
        super().__init__()
        self.map_side, self.window = map_side, min(window, map_side)
        self.shift = window // 2 if shifted and window < map_side else 0
        self.norm1, self.norm2 = PRepBN(channels), PRepBN(channels)
        mask = shift_mask(map_side, window, self.shift) if self.shift and not linear else None
        self.attn: nn.Module = LinearAttention(channels, heads, self.window**2) if linear else WindowAttention(
            channels, heads, self.window, mask)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        side = self.map_side
        y = self.norm1(x)
        if self.window == side:
            y = self.attn(y)
        else:
            image = y.reshape(x.shape[0], side, side, x.shape[2])
            if self.shift:
                image = torch.roll(image, (-self.shift, -self.shift), (1, 2))
            image = from_windows(self.attn(to_windows(image, self.window)), self.window, side, side)
            if self.shift:
                image = torch.roll(image, (self.shift, self.shift), (1, 2))
            y = image.reshape(x.shape)
        x = x + y
        z: Tensor = x + self.mlp(self.norm2(x))
        return z


class PatchMerging(nn.Module):
    """tokens [B, side^2, C] -> [B, side^2 / 4, 2 C]: the four of each 2 x 2 square side by side."""

    def __init__(self, channels: int, map_side: int) -> None:
        super().__init__()
        self.map_side = map_side
        self.norm = PRepBN(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        half = self.map_side // 2
        squares = x.reshape(batch, half, 2, half, 2, channels)
        # In the order (column, row), as the authors join them.
        y = squares.permute(0, 1, 3, 4, 2, 5).reshape(batch, half * half, 4 * channels)
        z: Tensor = self.reduction(self.norm(y))
        return z


class Stage(nn.Module):
    """Blocks on one map, then, but for the last stage, a map of half the side."""

    def __init__(self, channels: int, heads: int, map_side: int, depth: int, window: int, linear: bool,
                 last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(channels, heads, map_side, window, i % 2 == 1, linear) for i in range(depth))
        self.downsample = None if last else PatchMerging(channels, map_side)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class SlabSwin(nn.Module):
    """image [B, 3, size, size] FLOAT -> logits [B, classes].

    size: a multiple of 32 whose maps (size / 4 halved three times) are no larger than their windows or divide into
    them: 32, 64, 96, 224, 448. depths: 2-2-6-2 (T), 2-2-18-2 (S). kinds: L linear, S softmax attention, per stage.
    """

    def __init__(self, depths: Sequence[int], size: int = 224, classes: int = 1000, channels: int = 96,
                 heads: Sequence[int] = (3, 6, 12, 24), kinds: str = "LLSS", window: int = WINDOW,
                 linear_window: int = LINEAR_WINDOW) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(PATCH, channels, norm=True)
        self.layers = nn.ModuleList(
            Stage(channels << i, heads[i], size // PATCH >> i, depth, linear_window if kind == "L" else window,
                  kind == "L", i == len(depths) - 1)
            for i, (depth, kind) in enumerate(zip(depths, kinds, strict=True)))
        last = channels << (len(depths) - 1)
        self.norm = PRepBN(last)
        self.head = nn.Linear(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits
