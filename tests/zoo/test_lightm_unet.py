"""LightM-UNet: the counts of the released code, and PyTorch against the compiled model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import edgec
from edgec.native.bundle import read_bundle
from edgec.zoo.lightm_unet import LightMUNet, Mamba, MambaBlock, UpBlock, create


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts() -> None:
    assert parameters(LightMUNet()) == 5_011_683
    assert parameters(LightMUNet(filters=16)) == 1_342_915
    assert [parameters(Mamba(c)) for c in (32, 64, 128, 256)] == [9_920, 32_640, 116_480, 437_760]


def compiled_and_eager(module: torch.nn.Module, image: torch.Tensor, folder: Path
                       ) -> tuple[Counter[str], np.ndarray, np.ndarray]:
    """(kernels of the plan, what the session gives, what PyTorch gives) for a new image."""
    with torch.no_grad():  # norms as trained ones are, and rates of their own in every channel
        for m in module.modules():
            if isinstance(m, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                m.weight.uniform_(0.5, 1.5)
                m.bias.uniform_(-0.5, 0.5)
            elif isinstance(m, Mamba):
                m.a_log.add_(torch.randn_like(m.a_log) * 0.1)
    edgec.compile(module, folder, example_inputs=(image,))
    calls = Counter(c.kernel for c in read_bundle(folder / "model.edgec").plan.entries[0].calls)
    other = torch.randn_like(image)
    with edgec.Model(folder / "model.edgec") as model, model.session(threads=2) as session:
        found = session.run({model.inputs[0].name: other.numpy()})[model.outputs[0].name]
    with torch.no_grad():
        return calls, found, module(other).numpy()


def test_blocks_compiled(tmp_path: Path) -> None:
    torch.manual_seed(2)
    blocks = torch.nn.Sequential(MambaBlock(16), torch.nn.MaxPool2d(2), UpBlock(16)).eval()
    calls, found, wanted = compiled_and_eager(blocks, torch.randn(1, 16, 10, 6), tmp_path)
    assert calls["selective_scan"] == calls["causal_conv1d"] == 2
    assert calls["groupnorm"] == calls["layernorm"] == 4
    assert calls["unary"] == calls["reduce"] == 0  # ReLU is the end of a group norm, and all statistics are inside
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module, (example,), _ = create(size=64)
    calls, found, wanted = compiled_and_eager(module, example, tmp_path)
    # 3 stages that shrink and 9 blocks of two; every norm and scan is one call.
    assert calls["selective_scan"] == calls["causal_conv1d"] == 21
    assert calls["groupnorm"] == 2 * 9 + 2 * 3 + 1
    assert calls["layernorm"] == 42
    assert calls["reduce"] == 0
    assert wanted.shape == (1, 2, 64, 64)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
