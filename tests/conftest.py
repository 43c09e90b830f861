"""Shared by all tests: where the assets are, and what happens when they are not there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from edgec.env import ASSETS, REQUIRE_ASSETS

os.environ["HF_HUB_OFFLINE"] = "1"  # no test opens the network
if "PYTEST_XDIST_WORKER" in os.environ:
    # A process per core: with more threads than cores OpenMP's spin at its barriers (measured: five times slower).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent


# Long files, begun first so that no process is left with one of them at the end.
LONG = ("tests/kernels/test_kernels.py", "tests/fuzz/test_targets.py", "tests/models/test_families.py",
        "tests/cli/test_quantize.py", "tests/fuzz/test_bundles.py", "tests/models/test_torch_nets.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: names.get(item.nodeid.partition("::")[0], len(LONG)))


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
def arm_program(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    """arm_program(SOURCE.c): a static program for aarch64 Linux with the runtime in it; kept in pytest's cache.

    Compiled with -O1, for tests; edgec.targets.toolchain.bench_program makes what users run.
    """
    _require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir("edgec_arm"))
    kernels = [p for p in (ROOT / "kernels").rglob("*.cpp") if p.parent.name != "solve"]
    sources = sorted([*kernels, *(ROOT / "runtime").glob("*.cpp")])  # libraries for others' runtimes lie deeper
    files = sorted(p for part in ("kernels", "runtime") for p in (ROOT / part).rglob("*") if p.is_file())
    zig = [sys.executable, "-m", "ziglang"]
    flags = ["-target", "aarch64-linux-musl", "-O1", "-fno-sanitize=undefined",
             *(f"-I{ROOT / part}" for part in ("runtime", "runtime/include", "kernels"))]

    def named(paths: list[Path]) -> str:
        digest = hashlib.sha256()
        for path in paths:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:20]

    def compile_one(source: Path) -> Path:
        to = folder / (str(source.relative_to(ROOT)).replace("/", "_") + ".o")
        language = ["cc"] if source.suffix == ".c" else ["c++", "-std=c++17", "-fno-exceptions", "-fno-rtti"]
        subprocess.run([*zig, *language, *flags, "-c", source, "-o", to], check=True)
        return to

    archive = folder / f"runtime-{named(files)}.a"

    def make(source: Path) -> Path:
        with FileLock(folder.with_suffix(".lock")):  # tests run in several processes
            return make_alone(source)

    def make_alone(source: Path) -> Path:
        program = folder / f"{source.stem}-{named([*files, source])}"
        if program.exists():
            return program
        if not archive.exists():
            for old in folder.iterdir():
                old.unlink()
            with ThreadPoolExecutor(max_workers=2) as pool:
                objects = list(pool.map(compile_one, sources))
            subprocess.run([*zig, "ar", "rcs", folder / "new.a", *objects], check=True)
            for made in objects:
                made.unlink()
            (folder / "new.a").rename(archive)
        made = compile_one(source)
        subprocess.run([*zig, "c++", *flags, "-static", made, archive, "-o", folder / "new"], check=True)
        made.unlink()
        (folder / "new").rename(program)
        return program

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


@pytest.fixture(scope="session")
def layer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generic bundle made by hand: y [3, 24] = relu(x [3, 40] W^T + b). Needs no torch."""
    import numpy as np

    from edgec.judge.selftest import tiny_plan
    from edgec.native.bundle import write_bundle

    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("layer") / "model.edgec"
    weight, bias = rng.standard_normal((24, 40)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    write_bundle(path, tiny_plan(weight, bias), tokenizer=None, golden=None, manifest={"purpose": "test"})
    return path
