"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381), width 1.0: inverted residuals with linear bottlenecks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# (expansion, channels, blocks, stride of the first block)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, HEAD = 32, 1280


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, folded: bool,
         activation: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm (in the folded form: a bias), ReLU6; PyTorch padding of kernel // 2 on every side."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=folded)]
    if not folded:
        layers.append(nn.BatchNorm2d(outputs))
    if activation:
        layers.append(nn.ReLU6())
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Widen (1x1), filter per channel (3x3), narrow without activation (1x1); the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, folded: bool) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv(inputs, inner, 1, folded=folded))
        layers.append(conv(inner, inner, 3, stride=stride, groups=inner, folded=folded))
        layers.append(conv(inner, outputs, 1, folded=folded, activation=False))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """image [B, 3, H, W] FLOAT, normalized, H and W multiples of 32 -> logits [B, classes].

    folded: convolutions with a bias instead of BatchNorm, as converted checkpoints have them.
    """

    def __init__(self, classes: int = 1000, folded: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, STEM, 3, stride=2, folded=folded)]
        channels = STEM
        for expansion, outputs, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, outputs, stride if block == 0 else 1, expansion, folded))
                channels = outputs
        layers.append(conv(channels, HEAD, 1, folded=folded))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(HEAD, classes)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        pooled = torch.mean(self.features(image), dim=(2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits
