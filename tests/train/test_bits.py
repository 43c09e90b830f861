"""Bit planes that are trained: exact gradients given the codes, straight-through codes, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgec
from edgec.compress.formats import BitsSpec, Quantized, dequantize
from edgec.compress.layers import matrix_of
from edgec.compress.solvers import quantize_matrix
from edgec.errors import EdgecError
from edgec.judge.bundle import open_bundle
from edgec.pipeline import relative_error
from edgec.train.bits import Bits, harden_bits, hold, nearest, no_bit_planes, tune_bits
from edgec.train.finalize import write_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv1d(24, 40, 3, padding=1)
            self.wide = nn.Linear(40, 96, bias=False)
            self.tied = nn.Linear(40, 96, bias=False)
            self.tied.weight = self.wide.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x)).transpose(1, 2)
        out: Tensor = self.wide(y) + self.tied(torch.tanh(y))
        return out


def quantized(model: nn.Module, spec: str = "hlq2g32") -> dict[str, Quantized]:
    return {f"{path}.weight": quantize_matrix(matrix_of(model.get_submodule(path).weight.detach().numpy()),
                                              BitsSpec.parse(spec)) for path in ("conv", "wide")}


X = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0))


def test_values_are_those_that_are_stored() -> None:
    model = Net()
    layers = quantized(model)
    found = tune_bits(model, layers)
    assert set(found) == {"conv", "wide", "tied"}
    assert found["tied"] is found["wide"]
    for path in ("conv", "wide"):
        assert np.array_equal(matrix_of(model.get_submodule(path).weight.detach().numpy()),
                              dequantize(layers[f"{path}.weight"]))
    assert [n for n, p in model.named_parameters() if p.requires_grad and "weight" in n] == [
        f"{path}.parametrizations.weight.0.{part}" for path in ("conv", "wide") for part in ("scale", "offset")]


def test_gradient_is_exact_given_the_codes() -> None:
    model = Net()
    one = tune_bits(model, quantized(model, "hlq3g64"))["conv"]  # 72 columns: the second group is short
    grad = torch.randn(40, 24, 3, generator=torch.Generator().manual_seed(2))
    model.conv.weight.backward(grad)
    g = matrix_of(grad.numpy()).astype(np.float64)
    codes = one.codes.numpy()
    for bit in range(3):
        signed = (2.0 * (codes >> bit & 1) - 1) * g
        wanted = np.stack([signed[:, :64].sum(1), signed[:, 64:].sum(1)], 1)
        assert one.scale.grad is not None
        assert np.allclose(one.scale.grad[bit].numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert one.offset.grad is not None
    assert np.allclose(one.offset.grad.numpy(), np.stack([g[:, :64].sum(1), g[:, 64:].sum(1)], 1), atol=1e-4)


@pytest.mark.parametrize("codes", [False, True])
def test_tuning_gains_and_hardens(codes: bool, tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        wanted = model(X)
    layers = quantized(model)
    tune_bits(model, layers, codes=codes)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        error = (model(X) - wanted).square().mean()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < (0.8 if codes else 0.5) * errors[0]
    with torch.no_grad():
        soft = model(X)
    trained = harden_bits(model)
    with torch.no_grad():
        hard = model(X)
    assert torch.equal(soft, hard)
    assert model.tied.weight is model.wide.weight
    assert set(trained) == {"conv.weight", "wide.weight", "tied.weight"}
    same = all(np.array_equal(trained[name].codes, layer.codes) for name, layer in layers.items())
    assert same is not codes
    if codes:
        return
    write_layers(trained, model, tmp_path / "layers", example_inputs=(X,))
    edgec.compile(model, tmp_path / "out", example_inputs=(X,), quant_from=tmp_path / "layers")
    with open_bundle(tmp_path / "out") as opened, opened.session(threads=1) as session:
        (found,) = session.run({"x": X.numpy()}).values()
    assert relative_error(np.asarray(found), hard.numpy()) < 1e-3  # tables of 15 bits


def test_nearest_knows_levels_in_any_order() -> None:
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(5, 70, generator=generator)
    scale, offset = torch.randn(3, 5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    spec = BitsSpec.parse("hlq3g32")
    half = [x.numpy().astype(np.float16) for x in (scale, offset)]
    found = nearest(w, *(torch.from_numpy(x.astype(np.float32)) for x in half), spec.group)
    error = np.abs(dequantize(Quantized(spec, found.numpy(), *half)) - w.numpy())
    for code in range(8):
        other = dequantize(Quantized(spec, np.full((5, 70), code, np.uint8), *half))
        assert (error <= np.abs(other - w.numpy()) + 1e-6).all()


def test_other_layers_are_held_at_what_is_stored() -> None:
    model = Net()
    layers = {**quantized(model), "wide.weight": quantized(model, "int4g32")["wide.weight"],
              "conv.weight": quantized(model, "int4g32")["conv.weight"]}
    held = no_bit_planes({**layers, "other": quantized(model)["wide.weight"]})
    assert set(held) == {"wide.weight", "conv.weight"}
    hold(model, held)
    for path in ("conv", "wide"):
        weight = model.get_submodule(path).weight
        assert not weight.requires_grad
        assert np.array_equal(matrix_of(weight.detach().numpy()), dequantize(layers[f"{path}.weight"]))
    for wrong, said in (({"none.weight": layers["conv.weight"]}, "no such weight"),
                        ({"conv.weight": layers["wide.weight"]}, "a matrix of")):
        with pytest.raises(EdgecError, match=said):
            hold(model, wrong)


def test_a_weight_that_is_parametrized_already_is_refused() -> None:
    model = Net()
    layers = quantized(model)
    tune_bits(model, layers)
    with pytest.raises(EdgecError, match="parametrized already"):
        tune_bits(model, layers)
    del model.conv
    model.conv = nn.Conv1d(24, 40, 3)
    del model.conv.weight
    model.conv.weight = torch.zeros(40, 24, 3)  # no parameter
    with pytest.raises(EdgecError, match="no such weight"):
        tune_bits(model, {"conv.weight": layers["conv.weight"]})


def test_refuses() -> None:
    model = Net()
    layers = quantized(model)
    for wrong, said in (({"none.weight": layers["conv.weight"]}, "no such weight"), ({}, "no bit planes"),
                        ({"conv.weight": layers["wide.weight"]}, "a matrix of")):
        with pytest.raises(EdgecError, match=said):
            tune_bits(model, wrong)
    with pytest.raises(EdgecError, match="no bit planes"):
        harden_bits(model)
    one = Bits(layers["conv.weight"])
    with torch.no_grad():
        one.scale.fill_(1e6)
    with pytest.raises(EdgecError, match="beyond 65504"):
        one.quantized()
