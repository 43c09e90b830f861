"""Two small trunks over one 28 x 28 image, grafted together (Isong, 2025, arXiv:2501.15547): 14,862 parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10


class Trunk(nn.Module):
    """image [B, 1, 28, 28] -> [B, 10]: a network that was trained alone; its last layer is a 5x5 convolution then."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 3), nn.Conv2d(10, 20, 3)
        self.head = nn.Conv2d(20, CLASSES, 5)
        self.pool = nn.MaxPool2d(2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(image)))
        x = self.pool(torch.relu(self.conv2(x)))
        return torch.relu(self.head(x)).flatten(1)


class DualCNN(nn.Module):
    """image [B, 1, 28, 28] FLOAT in 0..1 -> logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Trunk(), Trunk()
        self.hidden, self.output = nn.Linear(2 * CLASSES, 32), nn.Linear(32, CLASSES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.cat([self.left(image), self.right(image)], 1)
        logits: Tensor = self.output(self.dropout(torch.relu(self.hidden(x))))
        return logits
