"""Common architectures in compact PyTorch, small and with random weights: the table `NETS` is what the tests walk.

Each is its published form with few channels and few blocks; every kind of layer, stride and connection is kept.
BatchNorm statistics are randomised by `build`: fresh ones (mean 0, variance 1) would hide folding mistakes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1,
            act: nn.Module | None = None) -> nn.Sequential:
    """Convolution with "same" padding for odd kernels, BatchNorm, and an activation unless it is None."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if act is None else [act]))


class Classifier(nn.Module):
    """features -> global average -> linear."""

    def __init__(self, features: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.features, self.pool, self.head = features, nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


# -- residual networks (He et al. 2015) ------------------------------------------------------------------------------


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); bottleneck: 1x1, 3x3, 1x1 with four times the channels."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        relu = nn.ReLU()
        if bottleneck:
            self.body = nn.Sequential(conv_bn(inputs, width, 1, act=relu), conv_bn(width, width, 3, stride, act=relu),
                                      conv_bn(width, outputs, 1))
        else:
            self.body = nn.Sequential(conv_bn(inputs, width, 3, stride, act=relu), conv_bn(width, outputs, 3))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return nnf.relu(self.body(x) + self.shortcut(x))


def resnet(bottleneck: bool, blocks: tuple[int, ...], width: int = 16) -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, width, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Residual(channels, width << stage, 2 if stage and not block else 1, bottleneck))
            channels = (width << stage) * (4 if bottleneck else 1)
    return Classifier(nn.Sequential(*layers), channels)


# -- mobile networks -------------------------------------------------------------------------------------------------


def mobilenet_v1() -> nn.Module:
    """Howard et al. 2017: depthwise 3x3, pointwise 1x1."""
    layers: list[nn.Module] = [conv_bn(3, 8, 3, 2, act=nn.ReLU())]
    for inputs, outputs, stride in ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
        layers += [conv_bn(inputs, inputs, 3, stride, groups=inputs, act=nn.ReLU()),
                   conv_bn(inputs, outputs, 1, act=nn.ReLU())]
    return Classifier(nn.Sequential(*layers), 64)


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image says (Hu et al. 2017)."""

    def __init__(self, channels: int, inner: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), act,
                                  nn.Conv2d(inner, channels, 1), gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x)


class InvertedResidual(nn.Module):
    """Expand, depthwise, optional squeeze-excite, project (Sandler et al. 2018)."""

    def __init__(self, inputs: int, inner: int, outputs: int, kernel: int, stride: int, act: nn.Module,
                 excite: nn.Module | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if inner == inputs else [conv_bn(inputs, inner, 1, act=act)]
        layers.append(conv_bn(inner, inner, kernel, stride, groups=inner, act=act))
        layers += [] if excite is None else [excite]
        self.body = nn.Sequential(*layers, conv_bn(inner, outputs, 1))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 8, 3, 2, act=nn.ReLU6())]
    for inputs, outputs, stride in ((8, 12, 1), (12, 16, 2), (16, 16, 1), (16, 24, 2)):
        layers.append(InvertedResidual(inputs, inputs * 6, outputs, 3, stride, nn.ReLU6()))
    return Classifier(nn.Sequential(*layers, conv_bn(24, 64, 1, act=nn.ReLU6())), 64)


def mobilenet_v3() -> nn.Module:
    """Howard et al. 2019: hardswish, squeeze-excite with hardsigmoid, 5x5 kernels."""
    swish, relu = nn.Hardswish(), nn.ReLU()

    def excite(channels: int) -> SqueezeExcite:
        return SqueezeExcite(channels, max(8, channels // 4), nn.ReLU(), nn.Hardsigmoid())

    return Classifier(nn.Sequential(
        conv_bn(3, 8, 3, 2, act=swish),
        InvertedResidual(8, 8, 8, 3, 2, relu, excite(8)), InvertedResidual(8, 40, 12, 3, 2, relu),
        InvertedResidual(12, 48, 12, 5, 1, swish, excite(48)), InvertedResidual(12, 60, 20, 5, 2, swish, excite(60)),
        conv_bn(20, 72, 1, act=swish),
    ), 72)


def efficientnet_b0() -> nn.Module:
    """Tan, Le 2019: SiLU everywhere, squeeze-excite from the block's input width."""
    layers: list[nn.Module] = [conv_bn(3, 8, 3, 2, act=nn.SiLU())]
    for inputs, outputs, factor, kernel, stride in ((8, 8, 1, 3, 1), (8, 12, 6, 3, 2), (12, 12, 6, 3, 1),
                                                    (12, 20, 6, 5, 2), (20, 20, 6, 5, 1)):
        excite = SqueezeExcite(inputs * factor, max(1, inputs // 4), nn.SiLU(), nn.Sigmoid())
        layers.append(InvertedResidual(inputs, inputs * factor, outputs, kernel, stride, nn.SiLU(), excite))
    return Classifier(nn.Sequential(*layers, conv_bn(20, 64, 1, act=nn.SiLU())), 64)


class Shuffle(nn.Module):
    """ShuffleNetV2's unit (Ma et al. 2018): half of the channels pass, then the channels of both halves interleave."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        entering = inputs if stride == 2 else half
        self.main = nn.Sequential(conv_bn(entering, half, 1, act=nn.ReLU()),
                                  conv_bn(half, half, 3, stride, groups=half), conv_bn(half, half, 1, act=nn.ReLU()))
        self.side = nn.Sequential(conv_bn(inputs, inputs, 3, 2, groups=inputs), conv_bn(inputs, half, 1, act=nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            joined = torch.cat((left, self.main(right)), 1)
        else:
            joined = torch.cat((self.side(x), self.main(x)), 1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(joined.shape)


def shufflenet_v2() -> nn.Module:
    return Classifier(nn.Sequential(
        conv_bn(3, 12, 3, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1), Shuffle(12, 24, 2), Shuffle(24, 24, 1),
        Shuffle(24, 48, 2), Shuffle(48, 48, 1), conv_bn(48, 64, 1, act=nn.ReLU())), 64)


# -- other classifiers -----------------------------------------------------------------------------------------------


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al. 2016)."""

    def __init__(self, inputs: int, squeezed: int, each: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.small, self.large = nn.Conv2d(squeezed, each, 1), nn.Conv2d(squeezed, each, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = nnf.relu(self.squeeze(x))
        return torch.cat([nnf.relu(self.small(x)), nnf.relu(self.large(x))], 1)


def squeezenet() -> nn.Module:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), pool, Fire(16, 4, 16), Fire(32, 4, 16), pool, Fire(32, 8, 24),
        nn.Dropout(0.5), nn.Conv2d(48, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Dense(nn.Module):
    """A layer that adds `growth` channels to what it read (Huang et al. 2016)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False), nn.BatchNorm2d(4 * growth),
            nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    dense = [Dense(12 + 6 * i, 6) for i in range(4)]
    between = [nn.BatchNorm2d(36), nn.ReLU(), nn.Conv2d(36, 18, 1, bias=False), nn.AvgPool2d(2)]
    return Classifier(nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), *dense, *between, Dense(18, 6),
                                    nn.BatchNorm2d(24), nn.ReLU()), 24)


class RepVGGBlock(nn.Module):
    """3x3, 1x1 and identity in parallel, each with its own BatchNorm (Ding et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.large, self.small = conv_bn(inputs, outputs, 3, stride), conv_bn(inputs, outputs, 1, stride)
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.large(x) + self.small(x)
        return nnf.relu(y if self.identity is None else y + self.identity(x))


def repvgg() -> nn.Module:
    return Classifier(nn.Sequential(RepVGGBlock(3, 16, 2), RepVGGBlock(16, 16), RepVGGBlock(16, 24, 2),
                                    RepVGGBlock(24, 24)), 24)


def dilated() -> nn.Module:
    """Depthwise separable convolutions with growing dilation."""
    layers: list[nn.Module] = [conv_bn(3, 12, 3, 2, act=nn.ReLU())]
    for dilation in (1, 2, 4):
        layers += [conv_bn(12, 12, 3, groups=12, dilation=dilation, act=nn.LeakyReLU(0.1)),
                   conv_bn(12, 12, 1, act=nn.PReLU(12))]
    return Classifier(nn.Sequential(*layers), 12)


# -- dense prediction ------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Ronneberger et al. 2015; going up by transposed convolution, bilinear and nearest interpolation in turn."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        widths = [width, width * 2, width * 3, width * 4]
        self.down = nn.ModuleList(self._double(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.rise = nn.ConvTranspose2d(widths[3], widths[2], 2, 2)
        self.soft = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.hard = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = nn.ModuleList([self._double(2 * widths[2], widths[2]), self._double(widths[2] + widths[1], widths[1]),
                                 self._double(widths[1] + widths[0], widths[0])])
        self.head = nn.Conv2d(widths[0], 2, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv_bn(inputs, outputs, act=nn.ReLU()), conv_bn(outputs, outputs, act=nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nnf.max_pool2d(x, 2))
            skips.append(x)
        for i, rise in enumerate((self.rise, self.soft, self.hard)):
            x = self.up[i](torch.cat([skips[2 - i], rise(x)], 1))
        return self.head(x)


class Decoder(nn.Module):
    """The remaining ways up: transposed convolution with groups, padding and output_padding; bilinear without aligned
    corners to a given size; bicubic; pixel shuffle; instance normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.second = nn.ConvTranspose2d(12, 16, (4, 3), stride=(2, 1), padding=1, dilation=(1, 2), bias=False)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = nnf.elu(self.norm(self.first(x)))
        x = nnf.interpolate(x, size=(11, 14), mode="bilinear", align_corners=False)
        x = self.shuffle(torch.sigmoid(self.second(x)))
        return nnf.interpolate(nnf.pad(x, (1, 2, 0, 1), mode="reflect"), scale_factor=1.5, mode="bicubic")


# -- sequences -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A torch.nn recurrent network over [B, T, 6], its last output and its states as results."""

    def __init__(self, kind: type[nn.RNNBase], units: int = 20, **options: object) -> None:
        super().__init__()
        self.cell = kind(6, units, batch_first=True, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(units * (2 if self.cell.bidirectional else 1), 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.cell(x)
        return self.head(y), state[1] if isinstance(state, tuple) else state


class AudioNet(nn.Module):
    """Raw waveform to classes: strided, dilated and grouped 1-D convolutions, GroupNorm, gated units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 16, 10, stride=5, bias=False), nn.GroupNorm(4, 16), nn.GELU(),
                                  nn.MaxPool1d(2))
        self.dilated = nn.ModuleList(nn.Conv1d(16, 32, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.mixed = nn.Sequential(nn.Conv1d(16, 24, 3, stride=2, padding=1, groups=4), nn.BatchNorm1d(24), nn.ReLU(),
                                   nn.Conv1d(24, 24, 5, padding=2, groups=24), nn.AvgPool1d(2))
        self.rise = nn.ConvTranspose1d(24, 12, 4, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.dilated:
            x = x + nnf.glu(layer(x), dim=1)
        x = nnf.interpolate(self.rise(self.mixed(x)), scale_factor=2.0, mode="linear")
        return self.head(x.mean(2))


class ViT(nn.Module):
    """Patches, a class token, learned positions and pre-norm encoder layers (Dosovitskiy et al. 2020)."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
                                 for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        batch, length, width = x.shape
        for i in range(2):
            mixed = self.qkv[i](self.norms[2 * i](x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = nnf.scaled_dot_product_attention(mixed[0], mixed[1], mixed[2])
            x = x + self.out[i](y.transpose(1, 2).reshape(batch, length, width))
            x = x + self.mlp[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x)[:, 0])


# -- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """make: builds the module. shape: of its one float input, named x, unless the module names it otherwise."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (1, 3, 32, 32)


NETS: dict[str, Net] = {
    "resnet18": Net(lambda: resnet(False, (2, 2, 2, 2)), (1, 3, 48, 48)),
    "resnet50": Net(lambda: resnet(True, (3, 4, 6, 3), 8), (1, 3, 48, 48)),
    "mobilenet_v1": Net(mobilenet_v1),
    "mobilenet_v2": Net(mobilenet_v2),
    "mobilenet_v3": Net(mobilenet_v3, (2, 3, 33, 35)),
    "efficientnet_b0": Net(efficientnet_b0),
    "shufflenet_v2": Net(shufflenet_v2),
    "squeezenet": Net(squeezenet, (1, 3, 37, 41)),
    "densenet": Net(densenet),
    "repvgg": Net(repvgg),
    "dilated": Net(dilated, (1, 3, 30, 26)),
    "unet": Net(UNet),
    "decoder": Net(Decoder, (2, 8, 5, 6)),
    "gru": Net(lambda: Recurrent(nn.GRU), (1, 12, 6)),
    "lstm": Net(lambda: Recurrent(nn.LSTM), (1, 12, 6)),
    "rnn": Net(lambda: Recurrent(nn.RNN, nonlinearity="relu"), (2, 9, 6)),
    "gru_deep": Net(lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), (2, 9, 6)),
    "lstm_deep": Net(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), (3, 70, 6)),
    "lstm_wide": Net(lambda: Recurrent(nn.LSTM, 160), (1, 5, 6)),  # too large to be folded while it is imported
    "audio": Net(AudioNet, (1, 1, 800)),
    "vit": Net(ViT),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """(the module in eval mode with random weights and statistics, a random input)."""
    torch.manual_seed(seed)
    net = NETS[name]
    module = net.make().eval()
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module, torch.randn(net.shape)
