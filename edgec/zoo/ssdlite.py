"""SSDLite on MobileNetV2 (Sandler et al., 2018): boxes of 91 classes from six maps of a 320 x 320 image.

The module gives raw scores and offsets; anchors, decoding and suppression are functions, outside the graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgec.zoo.mobilenet_v2 import InvertedResidual, conv, features

CLASSES = 91  # class 0 is the background
EXTRAS = (512, 256, 256, 128)
EXPANSION = 13  # the block whose widened map, of stride 16, is the first source
ANCHORS = (3, 6, 6, 6, 6, 6)  # per pixel of each map
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
_SMALLEST, _LARGEST = 0.2, 0.95
_SIDES = 6


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 depthwise and 1x1 convolution, each with BatchNorm and ReLU6."""
    return nn.Sequential(conv(inputs, inputs, 3, stride=stride, groups=inputs), conv(inputs, outputs, 1))


def predictor(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 depthwise convolution with BatchNorm and ReLU6, then 1x1 with a bias."""
    return nn.Sequential(conv(inputs, inputs, 3, groups=inputs), nn.Conv2d(inputs, outputs, 1))


class SSDLite(nn.Module):
    """image [B, 3, H, W] FLOAT -> scores [B, anchors, 91], offsets [B, anchors, 4] (x, y, width, height of the center
    form, relative to the anchors of `anchors`)."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = features()
        widened = self.backbone[EXPANSION + 1]
        assert isinstance(widened, InvertedResidual)
        sources = [int(widened.conv[0][0].out_channels), 1280]  # type: ignore[index]
        self.extras = nn.ModuleList()
        for outputs in EXTRAS:
            self.extras.append(nn.Sequential(conv(sources[-1], outputs // 2, 1),
                                             *separable(outputs // 2, outputs, stride=2)))
            sources.append(outputs)
        self.score = nn.ModuleList(predictor(c, n * classes) for c, n in zip(sources, ANCHORS, strict=True))
        self.offset = nn.ModuleList(predictor(c, n * 4) for c, n in zip(sources, ANCHORS, strict=True))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps: list[Tensor] = []
        x = image
        for i, block in enumerate(self.backbone):
            if i == EXPANSION + 1:
                assert isinstance(block, InvertedResidual)
                wide = block.conv[0](x)
                maps.append(wide)
                x = block.conv[1:](wide)
            else:
                x = block(x)
        maps.append(x)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        scores = [self._rows(head(m), self.classes) for head, m in zip(self.score, maps, strict=True)]
        offsets = [self._rows(head(m), 4) for head, m in zip(self.offset, maps, strict=True)]
        return torch.cat(scores, 1), torch.cat(offsets, 1)

    @staticmethod
    def _rows(x: Tensor, width: int) -> Tensor:
        """[B, n width, H, W] -> [B, H W n, width]."""
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)


def anchors(size: int = 320) -> Tensor:
    """[anchors, 4] center x, center y, width, height in parts of the image, in the order of the module's outputs.

    Scales grow evenly from 0.2 to 0.95. Each pixel has ratios 1, 2, 1/2, 3, 1/3 and a square between its scale and the
    next one; the first map has ratios 1 (at half the scale), 2, 1/2.
    """
    scales = [_SMALLEST + (_LARGEST - _SMALLEST) * i / (_SIDES - 1) for i in range(_SIDES)] + [1.0]
    side, rows = -(-size // 16), []
    for level in range(_SIDES):
        scale, following = scales[level], scales[level + 1]
        pairs = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 1 / 3)] + [(math.sqrt(scale * following), 1.0)]
        shapes = [(0.5 * scale, 1.0), (scale, 2.0), (scale, 0.5)] if level == 0 else pairs
        for y in range(side):
            for x in range(side):
                rows += [((x + 0.5) / side, (y + 0.5) / side, s * math.sqrt(r), s / math.sqrt(r)) for s, r in shapes]
        side = -(-side // 2)
    return torch.tensor(rows)


def decode(offsets: Tensor, boxes: Tensor) -> Tensor:
    """offsets [B, N, 4] of anchors `boxes` [N, 4] -> corners [B, N, 4] x0, y0, x1, y1 in parts of the image."""
    center = boxes[:, :2] + offsets[..., :2] * CENTER_VARIANCE * boxes[:, 2:]
    half = boxes[:, 2:] * torch.exp(offsets[..., 2:] * SIZE_VARIANCE) / 2
    return torch.cat([center - half, center + half], -1)


def suppress(corners: Tensor, scores: Tensor, overlap: float) -> list[int]:
    """Indices of the boxes [N, 4] that stay, best score first: none overlaps a better one by more than `overlap`
    (intersection over union)."""
    area = (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)
    order, kept = [int(i) for i in scores.argsort(descending=True, stable=True)], []
    while order:
        best, order = order[0], order[1:]
        kept.append(best)
        rest = torch.tensor(order, dtype=torch.long)
        low = torch.maximum(corners[best, :2], corners[rest, :2])
        high = torch.minimum(corners[best, 2:], corners[rest, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        union = area[best] + area[rest] - shared
        order = rest[shared <= overlap * union].tolist()
    return kept


@dataclass(frozen=True)
class Detection:
    """label: a class above 0. box: x0, y0, x1, y1 in parts of the image, cut at its borders."""

    label: int
    score: float
    box: tuple[float, float, float, float]


def detect(scores: Tensor, offsets: Tensor, boxes: Tensor, *, threshold: float = 0.3, overlap: float = 0.6,
           most: int = 100, candidates: int = 200) -> list[Detection]:
    """Detections in one image, best first: scores [N, classes], offsets [N, 4] of the module, anchors `boxes` [N, 4].

    Softmax over classes; per class the best `candidates` above `threshold` that do not overlap; `most` in all.
    """
    likely, corners = scores.softmax(-1), decode(offsets, boxes).clamp(0, 1)
    found: list[Detection] = []
    for label in range(1, scores.shape[-1]):
        above = (likely[:, label] > threshold).nonzero()[:, 0]
        best = above[likely[above, label].argsort(descending=True, stable=True)[:candidates]]
        for i in suppress(corners[best], likely[best, label], overlap):
            x0, y0, x1, y1 = corners[best[i]].tolist()
            found.append(Detection(label, float(likely[best[i], label]), (x0, y0, x1, y1)))
    return sorted(found, key=lambda d: -d.score)[:most]
