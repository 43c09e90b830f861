"""MobileNetV2: its form, its real weights, its way through the door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgec.importers import load
from edgec.importers.reference import load_reference
from edgec.ir.info import info_of
from edgec.zoo.mobilenet_v2 import MobileNetV2

EXAMPLE = str(Path(__file__).resolve().parents[2] / "examples" / "mobilenet_v2.py")


def test_sizes() -> None:
    folded, plain = MobileNetV2(folded=True), MobileNetV2(classes=10)
    assert sum(p.numel() for p in folded.parameters()) == 3_487_816
    plain.eval()
    assert plain(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_real_weights(asset: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    images = sorted(asset("imagenet_sample").glob("*.jpg"))[::10]
    monkeypatch.setenv("EDGEC_ASSETS", str(asset("mobilenet_v2/model.safetensors").parents[1]))
    original = load_reference(f"{EXAMPLE}:create")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    right = 0
    for path in images:
        pixels = (np.asarray(Image.open(path).convert("RGB")) / 255 - mean) / std
        logits = original.run({"image": pixels.astype(np.float32).transpose(2, 0, 1)[None]})["output"]
        right += int(logits.argmax() == int(path.name[:4]))
    assert right / len(images) >= 0.75


def test_without_weights_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEC_ASSETS", str(tmp_path))
    model = load(f"{EXAMPLE}:create")
    out, err = capfd.readouterr()
    assert "RANDOM" in err
    assert out == ""
    assert info_of(model).name == "mobilenet_v2"
    assert [v.name for v in model.graph.inputs] == ["image"]
    assert {n.op_type for n in model.graph} == {"Conv", "Clip", "Add", "ReduceMean", "Gemm"}
