"""The judge itself: distances, perplexity, ranks and timing on cases whose answers are known."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.judge.compare import gate
from edgec.judge.images import labelled_images, load_image, rank_of
from edgec.judge.metrics import distance, log_softmax
from edgec.judge.perplexity import perplexity, read_text, windows_of
from edgec.judge.speed import Samples, interleaved, measure


def test_distance_of_equal_arrays() -> None:
    x = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    d = distance(x, x)
    assert (d.max_abs, d.max_rel, d.sqnr_db, d.top1) == (0, 0, math.inf, 1)
    assert d.cosine == pytest.approx(1)


def test_distance_of_known_arrays() -> None:
    d = distance(np.array([[3.0, 4.0, 0.0]]), np.array([[3.0, 4.5, 5.0]]))
    assert d.max_abs == 5
    assert d.max_rel == 1
    assert d.sqnr_db == pytest.approx(10 * math.log10((9 + 20.25 + 25) / (25 + 0.25)))
    assert d.top1 == 0


def test_infinities_agree_and_nan_does_not_pass() -> None:
    x = np.array([[-np.inf, 1.0]])
    assert distance(x, x).max_abs == 0
    bad = distance(np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]]))
    assert math.isnan(bad.max_abs)
    assert gate({"outputs": {"y": bad.to_dict()}}, {"max_abs": 1e9}) != []
    assert distance(np.array([[np.inf, 1.0]]), np.array([[0.0, 1.0]])).max_abs == math.inf
    with pytest.raises(ValueError, match="shapes"):
        distance(np.zeros(2), np.zeros(3))


def test_gate_directions() -> None:
    report = {"outputs": {"y": {"max_abs": 0.5, "max_rel": 0.5, "sqnr_db": 20.0, "cosine": 0.9, "top1": 1.0}}}
    assert gate(report, {"max_abs": 0.5, "sqnr": 20, "cosine": 0.9, "top1": 1}) == []
    assert len(gate(report, {"max_abs": 0.4, "sqnr": 21, "cosine": 0.95, "max_rel": 0.1})) == 4


def test_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    found = perplexity(lambda piece: np.zeros((len(piece), 50), np.float32), [*range(30), 1], 10)
    assert found.perplexity == pytest.approx(50)
    assert (found.windows, found.predictions) == (3, 27)


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    sure = np.array([[1e4, 0.0], [1e4, 0.0]])
    assert perplexity(lambda piece: sure, [0, 1], 2).perplexity == math.inf
    assert math.isnan(perplexity(lambda piece: sure * np.nan, [0, 1], 2).perplexity)


def test_perplexity_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1, 1, 1]]))
    found = perplexity(lambda piece: logits, [0, 1, 2], 3)
    assert found.nll == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    assert np.exp(log_softmax(np.array([1000.0, 1000.0]))).tolist() == [0.5, 0.5]


def test_windows() -> None:
    assert windows_of([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]]
    for tokens, window, code in (([1], 4, "E0502"), ([1, 2], 1, "E0002")):
        with pytest.raises(EdgecError) as caught:
            windows_of(tokens, window)
        assert caught.value.code == code


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" \n")
    for name, code in (("binary", "E0502"), ("empty", "E0502"), ("absent", "E0003"), (".", "E0003")):
        with pytest.raises(EdgecError) as caught:
            read_text(tmp_path / name)
        assert caught.value.code == code, name


def test_ranks() -> None:
    logits = np.array([0.1, 0.9, 0.9, 0.5])
    assert [rank_of(logits, label) for label in range(4)] == [3, 0, 1, 2]
    assert rank_of(np.full(4, np.nan), 0) == 4
    assert rank_of(np.array([1.0, np.nan]), 0) == 1
    with pytest.raises(EdgecError):
        rank_of(logits, 4)


def test_images(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("PIL") is not None, "Pillow is not installed")
    image_module = importlib.import_module("PIL.Image")
    red = image_module.new("RGB", (40, 20), (255, 0, 0))
    red.save(tmp_path / "0007_red.png")
    (tmp_path / "notes.txt").write_text("")
    assert labelled_images(tmp_path) == [(tmp_path / "0007_red.png", 7)]
    pixels = load_image(tmp_path / "0007_red.png", 20, 20, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pixels.shape == (1, 3, 20, 20)
    assert pixels.dtype == np.float32
    assert [float(pixels[0, c].mean()) for c in range(3)] == [1, -1, -1]
    assert load_image(tmp_path / "0007_red.png", 33, 47, (0, 0, 0), (1, 1, 1)).shape == (1, 3, 33, 47)
    (tmp_path / "0001_broken.jpg").write_text("no image")
    with pytest.raises(EdgecError) as caught:
        load_image(tmp_path / "0001_broken.jpg", 8, 8, (0, 0, 0), (1, 1, 1))
    assert caught.value.code == "E0502"


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    for folder, code in ((tmp_path, "E0502"), (tmp_path / "absent", "E0003")):
        with pytest.raises(EdgecError) as caught:
            labelled_images(folder)
        assert caught.value.code == code


def test_timing() -> None:
    order: list[str] = []
    rows = interleaved([("a", lambda: order.append("a")), ("b", lambda: order.append("b"))], 3, 1, 5,
                       settle=0, untimed=1, timed=2)
    assert order == ["a", "a", "a", "b", "b", "b"] * 3, "each turn: one untimed run, two timed"
    assert [(r.name, len(r.seconds)) for r in rows] == [("a", 6), ("b", 6)]
    prepared: list[int] = []
    row = measure("x", 2, 10, lambda: None, 4, 2, lambda: prepared.append(1))
    assert (len(row.seconds), len(prepared), row.threads) == (4, 6, 2)


def test_summary_of_samples() -> None:
    row = Samples("tg10", 1, 10, (1.0, 2.0, 4.0, 10.0)).to_dict()
    assert row["per_second"]["mean"] == pytest.approx((10 + 5 + 2.5 + 1) / 4)
    assert row["per_second"]["median"] == pytest.approx(3.75)
    assert row["seconds"] == {"p50": 2.0, "p90": 10.0, "p99": 10.0}
    assert row["samples_s"] == [1.0, 2.0, 4.0, 10.0]
