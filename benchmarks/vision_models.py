"""Networks of bench_vision.py in plain PyTorch, with seeded random weights and BatchNorm statistics; 1000 classes.

They time what the published networks do; their answers mean nothing, but for MobileNetV2's, whose weights are real
where the assets are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness import ROOT
from torch import Tensor, nn

from edgec.importers import torch as torch_door
from edgec.zoo import lsnet

ZOO = ("zoo:lsnet_t", "zoo:slab_deit_t")
SIZE = 224


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
         activation: nn.Module | None = None) -> nn.Sequential:
    """Convolution padded by kernel // 2, BatchNorm, activation."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
              nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation] if activation else []))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the input, through a 1x1 convolution where shapes differ (He et al., 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, 3, stride, activation=nn.ReLU())
        self.second = conv(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 64, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(channels, outputs, stride), BasicBlock(outputs, outputs, 1)]
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate made from the means of all."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.SiLU(),
                                  nn.Conv2d(inner, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class MBConv(nn.Module):
    """Widen, filter per channel, gate, narrow; the input is added where shapes agree (Tan and Le, 2019)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        widen = [conv(inputs, inner, 1, activation=nn.SiLU())] if expansion != 1 else []
        self.body = nn.Sequential(*widen, conv(inner, inner, kernel, stride, inner, nn.SiLU()),
                                  SqueezeExcite(inner, inputs // 4), conv(inner, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def efficientnet_b0() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 32, 3, 2, activation=nn.SiLU())]
    channels = 32
    for expansion, outputs, blocks, kernel, stride in ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2),
                                                       (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2),
                                                       (6, 320, 1, 3, 1)):
        for i in range(blocks):
            layers.append(MBConv(channels, outputs, expansion, kernel, stride if i == 0 else 1))
            channels = outputs
    layers.append(conv(channels, 1280, 1, activation=nn.SiLU()))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """7x7 per channel, LayerNorm, a two-layer perceptron with GELU, scaled, and the input (Liu et al., 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.empty(channels).uniform_(0.1, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        y = self.narrow(nn.functional.gelu(self.widen(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


def convnext_t() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4), ChannelNorm(96, eps=1e-6)]
    channels = 96
    for outputs, blocks in ((96, 3), (192, 3), (384, 9), (768, 3)):
        if outputs != channels:
            layers += [ChannelNorm(channels, eps=1e-6), nn.Conv2d(channels, outputs, 2, 2)]
        layers += [ConvNeXtBlock(outputs) for _ in range(blocks)]
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(768, eps=1e-6),
                         nn.Linear(768, 1000))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18, "efficientnet_b0": efficientnet_b0, "convnext_t": convnext_t,
}
NAMES = ("mobilenet_v2", *MODELS, *ZOO)


def randomized(module: nn.Module) -> nn.Module:
    """In eval mode, with statistics and shifts that a norm left out would show in the answer."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, 0.0, 0.2)
            nn.init.normal_(part.running_mean, 0.0, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


def build(name: str) -> nn.Module:
    """The module in eval mode. Raises LookupError with the reason for a network that this version cannot make."""
    torch.manual_seed(0)
    if name == "mobilenet_v2":
        return torch_door.call_factory(f"{ROOT}/examples/mobilenet_v2.py:create")[0]
    if name.startswith("zoo:"):
        made = getattr(torch_door, "zoo_module", None)
        if made is None:
            raise LookupError(f"this version of edgec has no {name}")
        return made(name)[1].eval()
    return randomized(MODELS[name]())


@contextmanager
def standard_ops() -> Iterator[None]:
    """Inside, LSNet's dynamic convolution is nine shifted products of standard operators, which every runtime takes."""
    def shifted(x: Tensor, w: Tensor) -> Tensor:
        (height, width), groups, taps = x.shape[2:], w.shape[1], math.isqrt(w.shape[2])
        padded = nn.functional.pad(x, [taps // 2] * 4)
        parts = [padded[:, :, i : i + height, j : j + width].reshape(-1, groups, height, width) * w[:, :, taps * i + j]
                 for i in range(taps) for j in range(taps)]
        return functools.reduce(torch.add, parts).reshape(x.shape)

    network: Any = lsnet
    own, network.dynamic_depthwise = network.dynamic_depthwise, shifted
    try:
        yield
    finally:
        network.dynamic_depthwise = own


def macs_of(module: nn.Module, image: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every convolution and linear layer, by its name in the module."""
    found: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def count(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = part.weight
            assert isinstance(weight, Tensor)
            found[name] = found.get(name, 0) + output.numel() * weight[0].numel()
        return count

    handles = [p.register_forward_hook(hook(n)) for n, p in module.named_modules()
               if isinstance(p, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        module(image)
    for handle in handles:
        handle.remove()
    return found
