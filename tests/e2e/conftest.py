"""Models compiled once for all end-to-end tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgec
from edgec.importers.reference import Reference, load_reference
from edgec.native.session import Model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "models"))


@pytest.fixture(scope="session")
def mobilenet_source(asset: Callable[[str], Path]) -> Iterator[str]:
    """The example's factory; it finds the real weights through EDGEC_ASSETS, made absolute here."""
    weights = asset("mobilenet_v2/model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEC_ASSETS", str(weights.parents[1]))
        yield f"{ROOT / 'examples' / 'mobilenet_v2.py'}:create"


@pytest.fixture(scope="session")
def mobilenet_bundle(mobilenet_source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mobilenet") / "out"
    edgec.compile(mobilenet_source, out)
    return out / "model.edgec"


@pytest.fixture(scope="session")
def stories_folder(asset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stories260k import convert

    out = tmp_path_factory.mktemp("stories") / "stories260k"
    convert(asset("stories260k/stories260K.bin").parent, out)
    return out


@pytest.fixture(scope="session")
def lm_folders(prose_lm: Path, stories_folder: Path) -> dict[str, Path]:
    return {"prose_lm": prose_lm, "stories260k": stories_folder}


@pytest.fixture(scope="session")
def lm_bundles(lm_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    bundles = {}
    for name, folder in lm_folders.items():
        out = tmp_path_factory.mktemp(name) / "out"
        edgec.compile(folder, out)
        bundles[name] = out / "model.edgec"
    return bundles


@pytest.fixture(params=["prose_lm", "stories260k"])
def lm_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lm(lm_name: str, lm_bundles: dict[str, Path]) -> Iterator[Model]:
    with Model(lm_bundles[lm_name]) as model:
        yield model


@pytest.fixture(scope="session")
def references(lm_folders: dict[str, Path]) -> dict[str, Reference]:
    return {name: load_reference(folder) for name, folder in lm_folders.items()}
