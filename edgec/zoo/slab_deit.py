"""SLAB-DeiT: a vision transformer without class token, with PRepBN for LayerNorm and linear for softmax attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgec.zoo.slab import LinearAttention, Mlp, PatchEmbed, PRepBN

PATCH, DEPTH = 16, 12


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = PRepBN(channels), PRepBN(channels)
        self.attn = LinearAttention(channels, heads, tokens)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class SlabDeiT(nn.Module):
    """image [B, 3, size, size] FLOAT, size a multiple of 16 -> logits [B, classes], of the mean of all tokens.

    channels, heads: 192, 3 (T); 384, 6 (S).
    """

    def __init__(self, channels: int, heads: int, size: int = 224, classes: int = 1000, depth: int = DEPTH) -> None:
        super().__init__()
        tokens = (size // PATCH) ** 2
        self.patch_embed = PatchEmbed(PATCH, channels, norm=False)
        # Nobody reads it; it is in the authors' checkpoints, and in their count of parameters.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, channels))
        self.blocks = nn.Sequential(*(Block(channels, heads, tokens) for _ in range(depth)))
        self.norm = PRepBN(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.blocks(self.patch_embed(image) + self.pos_embed)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits
