"""SLAB (Guo et al., 2024, arXiv:2405.11582): PRepBN, a norm that vanishes at export, and simplified linear attention.

Names of parameters and buffers are those of the authors' checkpoints. Attention is computed in float32, as they do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LN_EPS, NORMALIZER_EPS = 1e-6, 1e-6


class RepBN(nn.Module):
    """x [B, N, C] -> BatchNorm over batch and tokens, plus alpha x: at inference an affine per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        y: Tensor = self.bn(x) + self.alpha * x
        return y.transpose(1, 2)


class PRepBN(nn.Module):
    """lam LayerNorm(x) + (1 - lam) RepBN(x), x [B, N, C]; whoever trains lowers lam from 1 to 0, where only RepBN runs.

    Evaluation uses the same mixture as training, unlike the authors' code, which would show RepBN alone while the
    network still relies on LayerNorm.
    """

    def __init__(self, channels: int, lam: float = 0.0) -> None:
        super().__init__()
        self.lam = lam
        self.norm1 = nn.LayerNorm(channels, LN_EPS)
        self.norm2 = RepBN(channels)

    def forward(self, x: Tensor) -> Tensor:
        rep: Tensor = self.norm2(x)
        return rep if self.lam == 0.0 else self.lam * self.norm1(x) + (1.0 - self.lam) * rep


def linear_attention(q: Tensor, k: Tensor, v: Tensor, keys_first: bool | None = None) -> Tensor:
    """q, k >= 0 [B, N, D], v [B, N, E] -> [B, N, E]: o_i = q_i (sum_j k_j v_j^T) / (q_i sum_j k_j + 1e-6).

    keys_first: which product comes first; None: the cheaper one, k^T v for more tokens than channels.
    """
    scores = q @ k.sum(1, keepdim=True).transpose(1, 2) + NORMALIZER_EPS
    if keys_first if keys_first is not None else q.shape[1] > q.shape[2]:
        return q @ (k.transpose(1, 2) @ v) / scores
    return q @ k.transpose(1, 2) @ v / scores


class LinearAttention(nn.Module):
    """x [B, N, C] -> [B, N, C], N a square of at most `tokens`: ReLU(q), ReLU(k + P), and a 5x5 depthwise convolution
    of v, whose kernels the heads share."""

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, width = heads, channels // heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.dwc = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.positional_encoding = nn.Parameter(torch.zeros(1, tokens, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        side = math.isqrt(tokens)
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, channels).unbind(2)
        q, k, v = (self._split(t) for t in (torch.relu(q), torch.relu(k + self.positional_encoding), v))
        image = v.transpose(1, 2).reshape(-1, channels // self.heads, side, side)
        local = self.dwc(image).flatten(2).transpose(1, 2)
        y = (linear_attention(q, k, v) + local).reshape(batch, self.heads, tokens, -1)
        result: Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, channels))
        return result

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B heads, N, C / heads]."""
        batch, tokens, channels = x.shape
        parts = x.reshape(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)
        return parts.reshape(batch * self.heads, tokens, channels // self.heads)


class Mlp(nn.Module):
    """C -> 4 C -> C with GELU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return y


class PatchEmbed(nn.Module):
    """image [B, 3, H, W] -> tokens [B, H W / patch^2, C], with PRepBN where `norm` says so."""

    def __init__(self, patch: int, channels: int, norm: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)
        self.norm = PRepBN(channels) if norm else None

    def forward(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return tokens if self.norm is None else self.norm(tokens)
