"""MobileNetV2 for `edgec compile examples/mobilenet_v2.py:create`.

With real weights when $EDGEC_ASSETS holds mobilenet_v2/model.safetensors, else with random ones.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from edgec.zoo.mobilenet_v2 import MobileNetV2


def create() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], dict[str, Any]]:
    """(module, example inputs, options): BatchNorm folded, one image of 224 x 224."""
    weights = Path(os.environ.get("EDGEC_ASSETS", "../shared/assets")) / "mobilenet_v2" / "model.safetensors"
    torch.manual_seed(0)
    module = MobileNetV2(folded=True)
    if weights.is_file():
        from safetensors.torch import load_file

        module.load_state_dict(load_file(weights))
    else:
        print(f"WARNING: no {weights}: MobileNetV2 has RANDOM weights, its answers mean nothing", file=sys.stderr)
    return module.eval(), (torch.randn(1, 3, 224, 224),), {"name": "mobilenet_v2"}


def create_batch_norm() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], dict[str, Any]]:
    """The trainable form with random weights and statistics, for any batch of 1..8: BatchNorm is folded by edgec."""
    torch.manual_seed(0)
    module = MobileNetV2()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0.0, 0.2)
            torch.nn.init.normal_(layer.running_mean, 0.0, 0.2)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
    print("WARNING: MobileNetV2 with BatchNorm has RANDOM weights, its answers mean nothing", file=sys.stderr)
    options = {"name": "mobilenet_v2_bn", "dynamic": {"image": {0: ("batch", 1, 8)}}}
    return module.eval(), (torch.randn(1, 3, 224, 224),), options
