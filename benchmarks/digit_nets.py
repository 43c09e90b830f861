"""Two small classifiers of 8 x 8 digits, trained in seconds: residual, and with the blocks of LSNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """relu(x + conv(relu(conv(x)))), He et al., arXiv 1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        self.shortcut = conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.second(torch.relu(self.first(x))))


class ResNet(nn.Module):
    """The four stages of two blocks of ResNet-18, narrow. image [N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32, 48)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = widths[0]
        for i, width in enumerate(widths):
            blocks += [Basic(channels, width, 1 if i in (0, 3) else 2), Basic(width, width, 1)]
            channels = width
        self.stem, self.blocks, self.head = conv(1, widths[0], 3), nn.Sequential(*blocks), nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(image))).mean((2, 3)))


class LSConv(nn.Module):
    """LSNet's convolution, Wang et al., arXiv 2503.23135: 3 x 3 kernels that are predicted for every place; channels of
    the same number modulo C / 8 share one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, self.kernels = channels // 2, channels // 8
        self.see = nn.Sequential(conv(channels, half), nn.ReLU(), conv(half, half, 7, groups=half), nn.ReLU(),
                                 conv(half, half), nn.ReLU(), nn.Conv2d(half, 9 * self.kernels, 1),
                                 nn.GroupNorm(self.kernels, 9 * self.kernels))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernels = self.see(x).view(n, self.kernels, 9, h, w)
        padded = F.pad(x, (1, 1, 1, 1)).view(n, c // self.kernels, self.kernels, h + 2, w + 2)
        mixed = sum(padded[..., i // 3 : i // 3 + h, i % 3 : i % 3 + w] * kernels[:, None, :, i] for i in range(9))
        assert isinstance(mixed, Tensor)
        return x + self.norm(mixed.reshape(n, c, h, w))


class Mixer(nn.Module):
    """Depthwise 3 x 3 and 1 x 1 beside the input, then squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.narrow = conv(channels, channels, 3, groups=channels), conv(channels, channels, 1,
                                                                                     groups=channels)
        self.excite = nn.Sequential(nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
                                    nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.narrow(x) + x
        return y * self.excite(y.mean((2, 3), keepdim=True))


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(channels, 2 * channels), nn.ReLU(), conv(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class LSNet(nn.Module):
    """Two stages of LSNet's blocks. image [N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self, widths: tuple[int, int] = (32, 64)) -> None:
        super().__init__()
        a, b = widths
        self.stem = nn.Sequential(conv(1, a // 2, 3), nn.ReLU(), conv(a // 2, a, 3))
        self.blocks = nn.Sequential(
            Mixer(a), FeedForward(a), LSConv(a), FeedForward(a), conv(a, a, 3, 2, a), conv(a, b),
            Mixer(b), FeedForward(b), LSConv(b), FeedForward(b),
        )
        self.norm, self.head = nn.BatchNorm1d(b), nn.Linear(b, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(image)).mean((2, 3))))


def trained(net: nn.Module, images: Tensor, labels: Tensor, epochs: int = 12) -> nn.Module:
    """`net` after AdamW with a rate that falls to 0, batches of 50 images shifted by up to a pixel."""
    torch.manual_seed(0)
    steps = epochs * (len(images) // 50)
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: len(images) // 50 * 50].view(-1, 50):
            shift = [int(s) for s in torch.randint(-1, 2, (2,))]
            loss = F.cross_entropy(net(images[batch].roll(shift, (2, 3))), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()
