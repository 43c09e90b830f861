"""The libFuzzer targets for a few seconds each, from the corpus; `make fuzz` lets them run for longer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.programs import build, has_libfuzzer
from tests.fuzz.seeds import TARGETS, write_corpus

RUNS = 3000


@pytest.fixture(scope="module")
def programs(require: Callable[[bool, str], None]) -> Path:
    require(has_libfuzzer(), "clang or its runtime libraries are not installed (apt-get install clang libclang-rt-dev)")
    return build("libfuzzer", [f"edgec_fuzz_{target}" for target in TARGETS])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(zip(TARGETS, write_corpus(tmp_path_factory.mktemp("corpus")), strict=True))


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_and_what_follows(target: str, programs: Path, corpus: dict[str, Path], tmp_path: Path) -> None:
    program = programs / f"edgec_fuzz_{target}"
    files = sorted(corpus[target].iterdir())
    replay = subprocess.run([program, *files], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert replay.returncode == 0, replay.stderr[-6000:]
    assert len(re.findall(r"^Executed ", replay.stderr, re.MULTILINE)) == len(files)
    command = [program, corpus[target], f"-runs={RUNS}", "-seed=1", "-max_len=65536", "-timeout=20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-6000:]
    found = [int(n) for n in re.findall(r"ft: (\d+)", done.stderr)]
    # A mutator that only breaks bundles would learn nothing; how many edges are new depends on the threads' timing.
    assert found[-1] > 1.2 * found[0], done.stderr[-2000:]
