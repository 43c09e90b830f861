"""Shared by all tests: where the assets are, and what happens when they are not there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.env import ASSETS, REQUIRE_ASSETS

os.environ["HF_HUB_OFFLINE"] = "1"  # no test opens the network
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("differential", "the long run of tests/differential")
    group.addoption("--differential-graphs", type=int, default=2000, help="random graphs to compare")
    group.addoption("--differential-seed", type=int, default=None, help="of the graphs; a fresh one is printed")


def _require(present: bool, reason: str) -> None:
    """Skips with `reason` unless `present`; under EDGEC_REQUIRE_ASSETS=1 (CI) it fails instead."""
    if present:
        return
    if REQUIRE_ASSETS.get():
        pytest.fail(reason + " (EDGEC_REQUIRE_ASSETS=1)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def require() -> Callable[[bool, str], None]:
    """require(condition, reason): for tools and parts a test needs besides assets."""
    return _require


@pytest.fixture(scope="session")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """key_pair("alice"): the file of a private key, made once per test run; the public one is beside it, `.pub`."""
    folder = tmp_path_factory.mktemp("keys")

    def make(name: str) -> Path:
        _require(importlib.util.find_spec("cryptography") is not None, "cryptography is not installed")
        from edgec.keys import new_key_pair

        if not (folder / name).exists():
            new_key_pair(folder / name)
        return folder / name

    return make


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """asset("mobilenet_v2/model.safetensors"): the path below EDGEC_ASSETS, or a skip with a reason."""

    def find(name: str) -> Path:
        folder = Path(ASSETS.get())
        folder = folder if folder.is_absolute() else ROOT / folder
        path = folder / name
        _require(path.exists(), f"asset {name} is not below EDGEC_ASSETS ({folder})")
        return path.resolve()

    return find


@pytest.fixture(scope="session")
def node() -> tuple[str, ...]:
    """The words that start node with WASI and without its warnings; or a skip with a reason."""
    found = shutil.which("node")
    shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout if found else ""
    version = re.match(r"v(\d+)", shown)
    _require(version is not None and int(version[1]) >= 18, "no node of version 18 or newer (apt-get install nodejs)")
    # Version 18 has WASI behind a flag that later ones accept. Version 20 crashes in one of six exits when its threads
    # are still compiling a module, after the program has ended well (measured); with one thread it never did.
    return str(found), "--no-warnings", "--experimental-wasi-unstable-preview1", "--single-threaded"


@pytest.fixture(scope="session")
def prose_lm() -> Path:
    """Our own small language model, part of the repository."""
    return ROOT / "examples" / "models" / "prose_lm"


@pytest.fixture(scope="session")
def prose_bundle(prose_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of our small language model for this machine, compiled once per test run."""
    import edgec

    folder = tmp_path_factory.mktemp("compiled") / "prose_lm"
    edgec.compile(str(prose_lm), folder)
    return folder
