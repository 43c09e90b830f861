"""From training to every backend: one palette, the same outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgec
from edgec import env
from edgec.compress.formats import BitsSpec, PaletteTensor, Quantized, dequantize
from edgec.compress.solvers import quantize_matrix
from edgec.errors import EdgecError
from edgec.judge.bundle import open_bundle
from edgec.native.bundle import read_bundle
from edgec.native.session import Model
from edgec.pipeline import relative_error
from edgec.targets.coreml_options import CoreMLOptions
from edgec.train.cluster import Schedule, cluster, harden
from edgec.train.finalize import write_layers
from tests.models import tiny_lm


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 16, 3, 2, 1)
            self.conv = nn.Conv2d(16, 64, 3, padding=1)
            self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
            self.point = nn.Conv2d(64, 64, 1)
            self.head = nn.Linear(64, 100)

    def forward(self, image: Tensor) -> Tensor:
        y = F.relu(self.depthwise(F.relu(self.conv(F.relu(self.first(image))))))
        out: Tensor = self.head(F.relu(self.point(y)).mean((2, 3)))
        return out


IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def trained(palette: str, model: nn.Module, x: Tensor) -> dict[str, PaletteTensor]:
    schedule = Schedule()
    cluster(model, palette, schedule=schedule)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        out = model(x)
        (out if isinstance(out, Tensor) else out.logits).square().mean().backward()
        optimizer.step()
        schedule.step()
    palettes = harden(model)
    model.eval()
    return palettes


@pytest.mark.parametrize("palette", [
    "palette3r16", *(pytest.param(p, marks=pytest.mark.slow) for p in ("palette1", "palette2", "palette4", "palette6",
                                                                      "palette8", "palette8v2"))])
def test_native_onnxruntime_and_core_ml_agree(palette: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from tests.targets.mil_interpreter import Package

    model = Vision()
    palettes = trained(palette, model, IMAGE)
    report = write_layers(palettes, model, tmp_path / "palettes", example_inputs=(IMAGE,))
    assert [(layer["name"], layer["spec"]) for layer in report["layers"]] == [
        (name, palette) for name in ("conv.weight", "point.weight", "head.weight")]
    assert {k["name"]: k["reason"] for k in report["kept"]} == {
        "first.weight": "not trained in few bits", "depthwise.weight": "depthwise"}
    with torch.no_grad():
        wanted = model(IMAGE).numpy()
    for backend in ("native", "ort", "coreml"):
        options = CoreMLOptions(precision="fp32", target="iOS18") if backend == "coreml" else None
        made = edgec.compile(model, tmp_path / backend, example_inputs=(IMAGE,), backend=backend, coreml=options,
                             quant_from=tmp_path / "palettes")
        assert made.artifact is not None
        if backend == "coreml":
            (found,) = Package(made.artifact.bundle).run({"image": IMAGE.numpy()}).values()
        else:
            with env.ISA.override("scalar"), open_bundle(tmp_path / backend) as opened, (
                opened.session(threads=1)) as session:
                (found,) = session.run({"image": IMAGE.numpy()}).values()
        assert relative_error(np.asarray(found).reshape(wanted.shape), wanted) < 2e-5, backend
    with Model(tmp_path / "native" / "model.edgec") as best, best.session(threads=1) as session:
        (found,) = session.run({"image": IMAGE.numpy()}).values()
        looked_up = best.info.isa in ("avx512vbmi", "amx")  # the head's single row (docs/kernels.md)
        assert relative_error(found.reshape(wanted.shape), wanted) < (2e-3 if looked_up else 2e-5)
    forms = {w.name: w.form for w in read_bundle(tmp_path / "native" / "model.edgec").plan.stored()}
    assert all(forms[name].startswith(palette) for name in palettes), forms


@pytest.mark.slow
def test_language_model_with_a_tied_embedding(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_lm.make(tmp_path / "float", "llama_mha_tied")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    palettes = trained("palette3", model, torch.arange(12)[None] % tiny_lm.VOCAB)
    assert "model.embed_tokens.weight" in palettes
    model.save_pretrained(tmp_path / "hard")
    report = write_layers(palettes, str(tmp_path / "hard"), tmp_path / "palettes")
    assert {layer["spec"] for layer in report["layers"]} == {"palette3", "palette4"}
    made = edgec.compile(str(tmp_path / "hard"), tmp_path / "out", quant_from=tmp_path / "palettes")
    assert made.artifact is not None
    distances = edgec.compare(tmp_path / "out", str(tmp_path / "hard"))
    assert max(o["max_rel"] for o in distances["outputs"].values()) < 1e-4
    # The compiled model is not the one that training began with.
    others = edgec.compare(tmp_path / "out", str(folder))
    assert max(o["max_rel"] for o in others["outputs"].values()) > 1e-3


def test_refuses_what_is_not_the_model(tmp_path: Path) -> None:
    model = Vision()
    palettes = trained("palette2", model, IMAGE)

    def refused(changed: dict[str, PaletteTensor], said: str) -> None:
        with pytest.raises(EdgecError, match=said) as caught:
            write_layers(changed, model, tmp_path / "palettes", example_inputs=(IMAGE,))
        assert caught.value.code == "E0002"
        assert not (tmp_path / "palettes").exists()

    refused({**palettes, "none.weight": PaletteTensor(palettes["head.weight"].spec, np.zeros((4, 32), np.uint8),
                                                      palettes["head.weight"].lut, 32)}, "no such weight")
    refused({**palettes, "conv.weight": palettes["head.weight"]}, "palette2 of")
    refused({}, "no layer")
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] += 1
    refused(palettes, "1 of 9216 weights that are not")


def test_a_folder_of_other_layers_is_refused(tmp_path: Path) -> None:
    model = Vision()
    palettes = trained("palette2", model, IMAGE)
    first = write_layers(palettes, model, tmp_path / "palettes", example_inputs=(IMAGE,))
    assert write_layers(palettes, model, tmp_path / "palettes", example_inputs=(IMAGE,)) == first
    head = palettes["head.weight"]
    # Other bytes for the same values: a table in another order.
    turned = PaletteTensor(head.spec, (3 - head.indices).astype(np.uint8), head.lut[:, ::-1].copy(), head.columns)
    for other in ({"head.weight": head}, {**palettes, "head.weight": turned}):
        with pytest.raises(EdgecError, match="layers") as caught:
            write_layers(other, model, tmp_path / "palettes", example_inputs=(IMAGE,))
        assert caught.value.code == "E0002"


def test_bit_planes_with_other_offsets_are_no_tied_weight(tmp_path: Path) -> None:
    model = Vision()
    one = quantize_matrix(model.head.weight.detach().numpy(), BitsSpec.parse("hlq2g32"))
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(dequantize(one)))
    other = Quantized(one.spec, one.codes, one.scale, one.offset + np.float16(1))
    with pytest.raises(EdgecError, match="no such weight"):
        write_layers({"head.weight": one, "gone.weight": other}, model, tmp_path / "a", example_inputs=(IMAGE,))
    same = Quantized(one.spec, one.codes, one.scale, one.offset)
    assert write_layers({"head.weight": one, "gone.weight": same}, model, tmp_path / "a", example_inputs=(IMAGE,))


def test_a_palette_of_another_model_is_refused_by_compile(tmp_path: Path) -> None:
    model = Vision()
    write_layers(trained("palette2", model, IMAGE), model, tmp_path / "palettes", example_inputs=(IMAGE,))
    with torch.no_grad():
        model.first.weight.add_(1e-3)
    with pytest.raises(EdgecError, match="made of a model"):
        edgec.compile(model, tmp_path / "out", example_inputs=(IMAGE,), quant_from=tmp_path / "palettes")


@pytest.mark.slow
def test_folded_norms_are_refused(tmp_path: Path) -> None:
    class Normed(nn.Sequential):
        def forward(self, image: Tensor) -> Tensor:
            out: Tensor = super().forward(image)
            return out

    model = Normed(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))
    palettes = trained("palette2", model, IMAGE)
    with pytest.raises(EdgecError, match="fuse_conv_bn_eval"):
        write_layers(palettes, model, tmp_path / "palettes", example_inputs=(IMAGE,))
