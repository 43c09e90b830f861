"""Mobile DeepLabv3 (Sandler et al., 2018): MobileNetV2 with a last map of stride 16 and a small head, 21 classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgec.zoo.mobilenet_v2 import conv, features

BACKBONE, HEAD = 320, 256


def conv_relu(inputs: int, outputs: int) -> nn.Sequential:
    """1x1 convolution, BatchNorm, ReLU."""
    return nn.Sequential(*conv(inputs, outputs, 1, activation=False), nn.ReLU())


class MobileDeepLabV3(nn.Module):
    """image [B, 3, H, W] FLOAT -> scores [B, classes, H, W], corners aligned: sides of 16 n + 1 are scaled by 16."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.backbone = features(output_stride=16, head=False)
        self.aspp, self.pooled = conv_relu(BACKBONE, HEAD), conv_relu(BACKBONE, HEAD)
        self.project, self.classifier = conv_relu(2 * HEAD, HEAD), nn.Conv2d(HEAD, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.backbone(image)
        whole = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        scores = self.classifier(self.project(torch.cat([self.aspp(x), whole], 1)))
        return functional.interpolate(scores, image.shape[2:], mode="bilinear", align_corners=True)


def decode(scores: Tensor) -> Tensor:
    """scores [B, classes, H, W] -> the class of each pixel [B, H, W] INT64; outside the graph."""
    return scores.argmax(1)
