"""Scales and sizes in a file that no image can have are reasons, not crashes or tables of any size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgec.errors import EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.lower import build_plan
from edgec.native.session import Model
from edgec.pipeline import CompileOptions, prepare_model
from tests.native.lower_cases import Case, f, i, model_of, proto


def reason(inputs: str, constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> str:
    node = ("Resize", inputs, "y", {"mode": "linear", "antialias": 1, "axes": [2, 3]})
    with pytest.raises(EdgecError) as caught:
        build_plan(model_of(Case("resize", [node], {"x": f(1, 2, 4, 4)}, constants)))
    assert caught.value.code == "E0301"
    return caught.value.found


@pytest.mark.parametrize("scale", [math.inf, math.nan, 0.0, -1.0, 1e-30, 1e8])
def test_scales(scale: float) -> None:
    assert "scale" in reason("x - s", {"s": np.float32([scale, scale])})


@pytest.mark.parametrize("size", [0, -2, 1 << 30])
def test_sizes(size: int) -> None:
    assert f"to {size} pixels" in reason("x - - s", {"s": i(size, size)})


def compiled(case: Case, folder: Path) -> np.ndarray[Any, Any]:
    """What the runtime answers to the file that `case` is."""
    (folder / "m.onnx").write_bytes(proto(case).SerializeToString())
    report = prepare_model(str(folder / "m.onnx"), CompileOptions(importer={"check": False}))
    write_bundle(folder / "bundle", build_plan(report.model), tokenizer=None, golden=None, manifest={})
    with Model(folder / "bundle", selftest=False) as model, model.session(threads=1) as session:
        return session.run(dict(case.feeds))["y"]


def whole_numbers(seed: int) -> tuple[Case, Case]:
    """A random Resize to the nearest of int32 that onnxruntime runs, and the same one of another type, which holds
    numbers that float32 does not; one of both is of a constant."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 6))
    shape = rng.integers(1, 8, rank)
    axes = sorted(rng.permutation(rank)[: rng.integers(1, rank + 1)].tolist())
    attributes: dict[str, Any] = {
        "mode": "nearest",
        "nearest_mode": str(rng.choice(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])),
        "coordinate_transformation_mode": str(rng.choice(["half_pixel", "pytorch_half_pixel", "align_corners",
                                                          "asymmetric", "half_pixel_symmetric"]))}
    if len(axes) < rank:
        attributes["axes"] = axes
    x = rng.integers(-(1 << 31), 1 << 31, shape).astype(np.int32)
    if rng.random() < 0.5:
        inputs, constants = "x - s", {"s": rng.choice([0.5, 0.7, 1.0, 1.3, 2.0, 3.0], len(axes)).astype(np.float32)}
        constants["s"] = np.maximum(constants["s"], np.float32(1.01) / shape[axes].astype(np.float32))
    else:
        inputs, constants = "x - - s", {"s": rng.integers(1, 12, len(axes))}
    kind = rng.choice([np.int64, np.int32, np.bool_])
    wide = np.where(x % 3 == 0, x.astype(np.int64) << 31, x).astype(kind)

    def case(values: np.ndarray[Any, Any], constant: bool) -> Case:
        # Something must come from outside: the sum with an input that is 0.
        nodes = [("Resize", inputs, "r", attributes), ("Cast", "r", "l", {"to": 7}), ("Add", "l zero", "y")]
        zero = {"zero": np.zeros(1, np.int64)}
        return Case("resize", nodes, zero if constant else {"x": values} | zero,
                    constants | ({"x": values} if constant else {}))

    return case(x, seed % 2 == 0), case(wide, seed % 2 == 1)


@pytest.mark.parametrize("seed", range(24))
def test_whole_numbers_to_the_nearest(seed: int, tmp_path: Path) -> None:
    narrow, wide = whole_numbers(seed)
    x = (narrow.feeds | narrow.consts)["x"]
    feeds = {"x": np.arange(x.size, dtype=np.int32).reshape(x.shape)}
    places = Case("places", [(*narrow.nodes[0][:2], "y", narrow.nodes[0][3])], feeds,  # type: ignore[misc]
                  {"s": narrow.consts["s"]})
    model = proto(places)
    model.graph.output[0].type.tensor_type.elem_type = 6
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (at,) = session.run(None, feeds)
    for name, case in (("narrow", narrow), ("wide", wide)):
        (tmp_path / name).mkdir()
        values = (case.feeds | case.consts)["x"]
        np.testing.assert_array_equal(compiled(case, tmp_path / name), values.reshape(-1)[at].astype(np.int64))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("attributes", "words"), [
    ({"mode": "linear"}, "how its fractions become whole numbers"), ({"mode": "cubic"}, "cast to float32"),
    ({"mode": "nearest", "coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize' of i64")])
def test_whole_numbers_that_are_refused(attributes: dict[str, str], words: str, constant: bool, tmp_path: Path) -> None:
    values = {"x": i(*range(16)).reshape(1, 1, 4, 4)}
    constants = {"s": i(1, 1, 6, 7), "r": np.float32([0, 0, 0, 0, 1, 1, 1, 1])}
    nodes = [("Resize", "x r - s", "l", attributes), ("Add", "l zero", "y")]
    feeds = {"zero": np.zeros(1, np.int64)} | ({} if constant else values)
    with pytest.raises(EdgecError, match="E0301") as caught:
        compiled(Case("resize", nodes, feeds, constants | (values if constant else {})), tmp_path)
    assert words in caught.value.found
