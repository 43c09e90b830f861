"""Every Hugging Face family of families.py: imported, compiled, run natively, held against transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec import importers
from edgec.errors import EdgecError
from edgec.importers import hf_parts
from edgec.native.session import Model
from tests.models import families, torch_zoo

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            family = families.LANGUAGE.get(name) or families.OTHERS[name][0]
            made[name] = families.make(tmp_path_factory.mktemp(name), family)
        return made[name]

    return get


@pytest.mark.parametrize("name", families.LANGUAGE)
def test_language_models(name: str, folder: Make, tmp_path: Path) -> None:
    edgec.compile(folder(name), tmp_path / "out")
    assert families.language_error(str(folder(name)), tmp_path / "out" / "model.edgec") <= families.TOLERANCE


@pytest.mark.parametrize(("name", "part"), [(n, p) for n, (_, parts) in families.OTHERS.items() for p in parts])
def test_other_models(name: str, part: str, folder: Make, tmp_path: Path) -> None:
    source = f"{folder(name)}:{part}" if part else str(folder(name))
    edgec.compile(source, tmp_path / "out")
    assert families.other_error(source, tmp_path / "out" / "model.edgec") <= families.TOLERANCE


def test_the_error_is_of_the_largest_value() -> None:
    """Small outputs do not pass because they are small, and a NaN anywhere is no pass."""
    wanted = np.array([[2e-6, -1e-6], [0, 1e-7]], np.float32)
    assert families.relative_error(wanted * np.float32(1.01), wanted) == pytest.approx(0.01, rel=1e-3)
    assert families.relative_error(wanted, wanted) == 0
    assert families.relative_error(wanted, np.zeros_like(wanted)) > 1
    assert families.relative_error(np.zeros_like(wanted), np.zeros_like(wanted)) == 0
    assert families.relative_error(wanted[0], wanted) == float("inf")
    for pair in ((np.array([1, np.nan]), np.ones(2)), (np.ones(2), np.array([1, np.nan])), (np.full(2, np.inf),) * 2):
        with np.errstate(invalid="ignore"):
            assert not families.relative_error(*pair) <= families.TOLERANCE
    assert not families.worst_of([0.0, float("nan"), 0.0]) <= families.TOLERANCE


def test_documentation_lists_every_family() -> None:
    """docs/models.md is made by tools/models_table.py; the figures in it are of one machine and not compared."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    listed = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    parts = [f"{n}:{p}" if p else n for n, (_, parts) in families.OTHERS.items() for p in parts]
    assert listed[1:] == [*families.LANGUAGE, *parts, *torch_zoo.NETS]


def test_a_pair_is_imported_by_parts(folder: Make, tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as caught:
        edgec.compile(folder("t5"), tmp_path / "out")
    assert caught.value.code == "E0002"
    assert ":encoder" in caught.value.wanted
    assert ":decoder" in caught.value.wanted
    with pytest.raises(EdgecError) as caught:
        edgec.compile(f"{folder('t5')}:encodr", tmp_path / "out")
    assert "did you mean 'encoder'" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_one_network_has_no_parts(folder: Make) -> None:
    for name in ("bert", "llama"):
        with pytest.raises(EdgecError) as caught:
            edgec.compile(f"{folder(name)}:encoder", "never-written")
        assert caught.value.code == "E0002"


def test_language_models_have_no_ranges(folder: Make) -> None:
    with pytest.raises(EdgecError) as caught:
        edgec.compile(folder("llama"), "never-written", dynamic={"input_ids": {1: (1, 8)}})
    assert (caught.value.code, caught.value.where) == ("E0002", "--dynamic input_ids")
    assert "--ctx" in caught.value.hint


def test_windows_wider_than_the_usual_lengths_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its window of 50 on each side this model is wrong from 51 tokens on, and only there."""
    family = families.OTHERS["modernbert"][0]
    source = families.make(tmp_path / "made", replace(family, settings={**family.settings, "local_attention": 100}))
    importers.load(source)
    real = hf_parts._attention
    monkeypatch.setattr(hf_parts, "_attention", lambda *args, sliding_window, **rest: real(*args, **rest))
    with pytest.raises(EdgecError) as caught:
        importers.load(source)
    assert caught.value.code == "E0104"


def test_ranges_can_be_changed(folder: Make, tmp_path: Path) -> None:
    """A range holds for all inputs with that size; an axis that did not vary may."""
    edgec.compile(folder("bert"), tmp_path / "out", dynamic={"input_ids": {1: (2, 20)}})
    with Model(tmp_path / "out" / "model.edgec") as model:
        assert {p.name: p.shape for p in model.inputs} == {"input_ids": (1, 20), "token_type_ids": (1, 20)}
    edgec.compile(folder("vit"), tmp_path / "wide", dynamic={"pixel_values": {0: (1, 3)}})
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with Model(tmp_path / "wide" / "model.edgec") as model, model.session() as session:
        together = session.run({"pixel_values": images})["logits"]
        alone = [session.run({"pixel_values": image[None]})["logits"][0] for image in images]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)
