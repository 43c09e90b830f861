"""Palettes that coremltools trained come over as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

import edgec
from edgec.compress.formats import dequantize_palette
from edgec.compress.layers import matrix_of
from edgec.errors import EdgecError
from edgec.judge.bundle import open_bundle
from edgec.pipeline import relative_error
from edgec.train.coreml_checkpoint import palettes_of
from edgec.train.finalize import write_layers

# coremltools takes most of a minute to train anything.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]
IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(64 * 16, 80)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.b(torch.relu(self.a(image)))).flatten(1))
        return out


def trained(**settings: Any) -> nn.Module:
    from coremltools.optimize.torch.palettization import (
        DKMPalettizer,
        DKMPalettizerConfig,
        ModuleDKMPalettizerConfig,
    )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ModuleDKMPalettizerConfig(weight_threshold=2000, milestone=0, **settings)
        palettizer = DKMPalettizer(Net(), DKMPalettizerConfig(global_config=config))
        model = palettizer.prepare(inplace=True)
        for _ in range(2):
            model(IMAGE).square().mean().backward()
            palettizer.step()
        made: nn.Module = palettizer.finalize(inplace=True)
    return made.eval()


@pytest.mark.parametrize(("settings", "spec"), [
    ({"n_bits": 2}, "palette2"),
    ({"n_bits": 3, "granularity": "per_grouped_channel", "group_size": 16}, "palette3r16"),
    ({"n_bits": 2, "enable_per_channel_scale": True}, "palette2r1"),
])
def test_taken_over(settings: dict[str, Any], spec: str, tmp_path: Path) -> None:
    model = trained(**settings)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if "weight" in name}
    palettes = palettes_of(model)
    assert {name: str(p.spec) for name, p in palettes.items()} == {"b.weight": spec, "head.weight": spec}
    for name, palette in palettes.items():
        assert np.array_equal(dequantize_palette(palette), matrix_of(weights[name].numpy()))
    assert not any("_COREML_" in key for key in model.state_dict())
    if spec != "palette3r16":
        return
    write_layers(palettes, model, tmp_path / "layers", example_inputs=(IMAGE,))
    edgec.compile(model, tmp_path / "out", example_inputs=(IMAGE,), quant_from=tmp_path / "layers")
    with open_bundle(tmp_path / "out") as opened, opened.session(threads=1) as session:
        (found,) = session.run({"image": IMAGE.numpy()}).values()
    with torch.no_grad():
        assert relative_error(np.asarray(found), model(IMAGE).numpy()) < 1e-5


def test_refuses() -> None:
    with pytest.raises(EdgecError, match="version 1"):
        palettes_of(Net())
    state = dict(trained(n_bits=2).state_dict())
    with pytest.raises(EdgecError, match="palettization alone"):
        palettes_of({**state, "b._COREML_/weight/compression_type": torch.tensor([1, 2])})
    with pytest.raises(EdgecError, match="not values of their table") as caught:
        palettes_of({**state, "b.weight": state["b.weight"] + 1})
    assert caught.value.code == "E0101"
    grouped = state["b._COREML_/weight/lut"].repeat(1, 4, 1, 1, 1, 1)
    with pytest.raises(EdgecError, match="groups of output channels") as caught:
        palettes_of({**state, "b._COREML_/weight/lut": grouped})
    assert caught.value.code == "E0103"
    pairs = state["b._COREML_/weight/lut"].repeat(1, 1, 1, 1, 1, 2)
    with pytest.raises(EdgecError, match="along axis 0"):
        palettes_of({**state, "b._COREML_/weight/lut": pairs, "b._COREML_/weight/vector_axis": torch.tensor(0)})
