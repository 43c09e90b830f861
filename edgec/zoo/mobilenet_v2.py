"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) in any width: inverted residuals with linear bottlenecks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# (expansion, channels, blocks, stride of the first block)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, HEAD = 32, 1280


def rounded(channels: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, halves up, but never more than 10 % below."""
    whole = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return whole + divisor if whole < 0.9 * channels else whole


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, dilation: int = 1,
         folded: bool = False, activation: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm (in the folded form: a bias), ReLU6; the same padding on every side, as PyTorch does."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=folded)]
    if not folded:
        layers.append(nn.BatchNorm2d(outputs))
    if activation:
        layers.append(nn.ReLU6())
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Widen (1x1), filter per channel (3x3), narrow without activation (1x1); the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, folded: bool = False,
                 dilation: int = 1) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv(inputs, inner, 1, folded=folded))
        layers.append(conv(inner, inner, 3, stride=stride, groups=inner, dilation=dilation, folded=folded))
        layers.append(conv(inner, outputs, 1, folded=folded, activation=False))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


def features(width: float = 1.0, folded: bool = False, output_stride: int = 32, head: bool = True) -> nn.Sequential:
    """Everything before the classifier. output_stride: 16 or 32, of the last map; strides beyond it become dilation.

    head: with the 1x1 convolution to 1280 channels (more where the width is above 1, never fewer).
    """
    divisor = 4 if width == 0.1 else 8
    channels, seen, dilation = rounded(STEM * width, divisor), 2, 1
    layers: list[nn.Module] = [conv(3, channels, 3, stride=2, folded=folded)]
    for expansion, wanted, blocks, stride in STAGES:
        outputs = rounded(wanted * width, divisor)
        for block in range(blocks):
            step = stride if block == 0 else 1
            if step == 2 and seen == output_stride:
                # The block that would have strode reads the same pixels; from the next one on they lie apart.
                layers.append(InvertedResidual(channels, outputs, 1, expansion, folded, dilation))
                dilation *= 2
            else:
                layers.append(InvertedResidual(channels, outputs, step, expansion, folded, dilation))
                seen *= step
            channels = outputs
    if head:
        layers.append(conv(channels, rounded(HEAD * max(width, 1.0), divisor), 1, folded=folded))
    return nn.Sequential(*layers)


class MobileNetV2(nn.Module):
    """image [B, 3, H, W] FLOAT, normalized, H and W multiples of 32 -> logits [B, classes].

    folded: convolutions with a bias instead of BatchNorm, as converted checkpoints have them. width: of every layer.
    """

    def __init__(self, classes: int = 1000, folded: bool = False, width: float = 1.0) -> None:
        super().__init__()
        self.features = features(width, folded)
        self.classifier = nn.Linear(rounded(HEAD * max(width, 1.0), 8), classes)
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
