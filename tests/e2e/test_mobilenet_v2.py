"""MobileNetV2 with real weights: every image of the sample, against eager PyTorch in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgec import env
from edgec.importers.reference import load_reference
from edgec.judge.images import labelled_images, load_image, rank_of
from edgec.native.session import Model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_top1_and_logits_of_500_images(
    mobilenet_source: str, mobilenet_bundle: Path, asset: Callable[[str], Path]
) -> None:
    images = labelled_images(asset("imagenet_sample"))
    assert len(images) == 500
    reference = load_reference(mobilenet_source)
    right, worst = 0, 0.0
    with Model(mobilenet_bundle) as model, model.session() as session:
        (entrance,), (exit_,) = model.inputs, model.outputs
        for path, label in images:
            pixels = load_image(path, 224, 224, MEAN, STD)
            found = session.run({entrance.name: pixels})[exit_.name]
            wanted = reference.run({reference.input_names[0]: pixels})
            (wanted_logits,) = wanted.values()
            assert found.argmax() == wanted_logits.argmax(), path.name
            worst = max(worst, float(np.abs(found - wanted_logits).max()))
            right += rank_of(found, label) == 0
    assert worst < 1e-3
    # The assets' README: 83.1 % on twice as many images.
    assert 0.78 < right / len(images) < 0.9


def test_every_instruction_set_gives_the_same_logits(mobilenet_bundle: Path) -> None:
    pixels = np.random.default_rng(3).standard_normal((1, 3, 224, 224), dtype=np.float32)
    logits = {}
    for isa in ("scalar", "avx2", "avx512"):
        if isa != "scalar" and not _has(isa):
            continue
        with env.ISA.override(isa), Model(mobilenet_bundle) as model, model.session(threads=2) as session:
            logits[isa] = session.run({model.inputs[0].name: pixels})[model.outputs[0].name]
    assert len(logits) > 1, "this machine has no vector instruction set: nothing is compared"
    scale = np.abs(logits["scalar"]).max()
    for isa, found in logits.items():
        assert np.abs(found - logits["scalar"]).max() / scale < 1e-5, isa


def _has(isa: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text()
    return {"avx2": "avx2" in flags, "avx512": "avx512bw" in flags and "avx512vl" in flags}[isa]
