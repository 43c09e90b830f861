"""Small bundles to package, and how their packages are built."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.native.bundle import write_bundle
from edgec.native.plan import Plan
from tests.native import tiny_plans


def _written(folder: Path, name: str, plan: Plan, tokenizer: bytes | None = None) -> Path:
    write_bundle(folder / "model.edgec", plan, tokenizer=tokenizer, golden=None, manifest={"model": {"name": name}})
    return folder / "model.edgec"


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, layer_bundle: Path) -> dict[str, Path]:
    """layer: fixed shapes. cnn: an open batch. lm: a language model with a tokenizer, ids: one without."""
    top = tmp_path_factory.mktemp("bundles")
    text = tiny_plans.tiny_tokenizer().to_bytes()
    plans = {"cnn": (tiny_plans.tiny_cnn(), None), "lm": (tiny_plans.tiny_lm(), text),
             "ids": (tiny_plans.tiny_lm(), None)}
    found = {"layer": layer_bundle}
    for name, (plan, tokenizer) in plans.items():
        (top / name).mkdir()
        found[name] = _written(top / name, f"tiny {name}", plan, tokenizer)
    return found


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """run(words..., cwd=..., stdin=...): standard output of a program that must end well."""

    def start(*words: object, cwd: Path | None = None, timeout: int = 240, stdin: str = "") -> str:
        done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, timeout=timeout,
                              check=False, input=stdin)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout

    return start


@pytest.fixture(scope="session")
def tools(require: Callable[[bool, str], None]) -> None:
    """Skips with a reason where there is no CMake or compiler."""
    for tool in ("cmake", "cc", "c++"):
        require(shutil.which(tool) is not None, f"no {tool}")


@pytest.fixture(scope="session")
def zig_cache(request: pytest.FixtureRequest, require: Callable[[bool, str], None]) -> str:
    """Where zig keeps its C libraries from one run of the tests to the next."""
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")
    assert request.config.cache is not None
    return str(request.config.cache.mkdir("edgec_wasm"))
