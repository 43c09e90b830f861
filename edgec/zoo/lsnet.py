"""LSNet (Wang et al., 2025, arXiv:2503.23135): a 7x7 depthwise path predicts 3x3 kernels per pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgec.zoo.ops import dynamic_depthwise

TAPS = 3  # of the side of a dynamic kernel
KEY, HEADS = 16, 4
_SHARE = 8  # channels that share a dynamic kernel


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, padded by kernel // 2, and BatchNorm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs))


class KernelPrediction(nn.Module):
    """x [B, C, H, W] -> kernels [B, C / 8, 9, H, W]; each is normalized over its 9 taps and the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, kernels = channels // 2, channels // _SHARE
        self.cv1, self.cv2 = conv_bn(channels, half), conv_bn(half, half, 7, groups=half)
        self.cv3, self.cv4 = conv_bn(half, half), nn.Conv2d(half, TAPS**2 * kernels, 1)
        self.norm = nn.GroupNorm(kernels, TAPS**2 * kernels)
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.cv3(self.cv2(torch.relu(self.cv1(x)))))
        w: Tensor = self.norm(self.cv4(x))
        return w.reshape(x.shape[0], self.kernels, TAPS**2, *x.shape[2:])


class LSConv(nn.Module):
    """BN(SKA(x, kernels(x))) + x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lkp, self.bn = KernelPrediction(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(dynamic_depthwise(x, self.lkp(x))) + x
        return y


class RepDW(nn.Module):
    """A 3x3 and a 1x1 depthwise convolution, each with BatchNorm, and the input itself, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.conv1 = conv_bn(channels, channels, 3, groups=channels), conv_bn(channels, channels, 1,
                                                                                         groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.conv1(x) + x
        return y


class SqueezeExcite(nn.Module):
    """x times a gate per channel, from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * gate


class Attention(nn.Module):
    """x + attention of a map of `side`^2 pixels, with a bias by distance; queries go through a 3x3 depthwise path."""

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        keys = KEY * HEADS
        self.qkv, self.dw = conv_bn(channels, 2 * keys + channels), conv_bn(keys, keys, 3, groups=keys)
        self.proj = conv_bn(channels, channels)
        place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        rows, columns = (place[:, :, None] - place[:, None, :]).abs()
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, side * side))
        self.register_buffer("attention_bias_idxs", rows * side + columns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        keys = KEY * HEADS
        q, k, v = self.qkv(x).split([keys, keys, channels], 1)
        q, k, v = (t.reshape(batch, HEADS, -1, height * width) for t in (self.dw(q), k, v))
        scores = q.transpose(2, 3) @ k * KEY**-0.5 + self.attention_biases[:, self.attention_bias_idxs]
        y = v @ scores.softmax(-1).transpose(2, 3)
        z: Tensor = x + self.proj(torch.relu(y.reshape(x.shape)))
        return z


class Block(nn.Module):
    """Pixels are mixed, then channels. Even ones are local, odd ones see far: LSConv, in the last stage attention."""

    def __init__(self, channels: int, index: int, attention_side: int | None) -> None:
        super().__init__()
        self.mixer: nn.Module
        if index % 2 == 0:
            self.mixer = nn.Sequential(RepDW(channels), SqueezeExcite(channels))
        else:
            self.mixer = LSConv(channels) if attention_side is None else Attention(channels, attention_side)
        self.pw1, self.pw2 = conv_bn(channels, 2 * channels), conv_bn(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        y: Tensor = x + self.pw2(torch.relu(self.pw1(x)))
        return y


class Head(nn.Sequential):
    """BatchNorm and linear of [B, C]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.BatchNorm1d(channels), nn.Linear(channels, classes))


class LSNet(nn.Module):
    """image [B, 3, size, size] FLOAT -> logits [B, classes]; the biases of attention belong to the size.

    distilled: two heads, whose logits are averaged.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int], size: int = 224, classes: int = 1000,
                 distilled: bool = False) -> None:
        super().__init__()
        first = widths[0]
        layers: list[nn.Module] = [conv_bn(3, first // 4, 3, 2), nn.ReLU(), conv_bn(first // 4, first // 2, 3, 2),
                                   nn.ReLU(), conv_bn(first // 2, first, 3, 2)]
        side = -(-size // 8)
        for stage, (channels, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                before = widths[stage - 1]
                layers += [conv_bn(before, before, 3, 2, groups=before), conv_bn(before, channels)]
                side = -(-side // 2)
            last = stage == len(widths) - 1
            layers += [Block(channels, i, side if last else None) for i in range(depth)]
        self.features = nn.Sequential(*layers)
        self.head = Head(widths[-1], classes)
        self.head_dist = Head(widths[-1], classes) if distilled else None

    def forward(self, image: Tensor) -> Tensor:
        x = self.features(image).mean((2, 3))
        logits: Tensor = self.head(x)
        return logits if self.head_dist is None else (logits + self.head_dist(x)) / 2
