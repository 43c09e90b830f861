"""Every network of the table, compiled and run natively on each instruction set, against eager PyTorch."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import edgec
from edgec import env
from edgec.native.session import Model
from edgec.targets.devices import host
from tests.models.families import TOLERANCE, relative_error
from tests.models.torch_zoo import NETS, build


@pytest.mark.parametrize("name", NETS)
def test_matches_pytorch_on_every_instruction_set(name: str, tmp_path: Path) -> None:
    module, x = build(name)
    with torch.no_grad():
        result = module(x)
    wanted = [t.numpy() for t in (result if isinstance(result, tuple) else (result,))]
    edgec.compile(module, tmp_path / "out", example_inputs=(x,))
    for isa in host().isa:
        with env.ISA.override(isa), Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
            assert model.info.isa == isa
            found = session.run({model.inputs[0].name: x.numpy()})
            for port, expected in zip(model.outputs, wanted, strict=True):
                assert found[port.name].shape == expected.shape
                error = relative_error(found[port.name], expected)
                assert error <= TOLERANCE, f"{port.name} on {isa}: {error:.2e}"


def test_statistics_and_weights_are_not_trivial() -> None:
    """The twin of the test above: fresh BatchNorms give other numbers, so folding them wrongly is seen."""
    module, x = build("mobilenet_v1")
    with torch.no_grad():
        before = module(x)
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.reset_parameters()
        assert not torch.allclose(before, module(x), rtol=1e-2)


@pytest.mark.parametrize("name", ["mobilenet_v3", "unet", "lstm"])
def test_batch_that_varies(name: str, tmp_path: Path) -> None:
    module, x = build(name)
    key = next(iter(inspect.signature(module.forward).parameters))
    edgec.compile(module, tmp_path / "out", example_inputs=(x,), dynamic={key: {0: (1, 3)}})
    with Model(tmp_path / "out" / "model.edgec") as model, model.session() as session, torch.no_grad():
        for batch in (1, 2, 3):
            images = torch.randn(batch, *x.shape[1:])
            result = module(images)
            expected = (result[0] if isinstance(result, tuple) else result).numpy()
            found = session.run({model.inputs[0].name: images.numpy()})[model.outputs[0].name]
            assert relative_error(found, expected) <= TOLERANCE

