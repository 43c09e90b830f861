"""A bundle that is cut while it is open: everything but the weights was copied when it was opened (docs/format.md)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.fuzz.seeds import write_seeds

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="files that are mapped cannot be cut on this system")

# Opens a copy of the bundle, cuts it, and does what it is told.
PROGRAM = """
    import os, sys
    from pathlib import Path
    from edgec.native.session import Model

    path, what, source = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    model = Model(path.read_bytes() if source == "buffer" else path, selftest=False)
    with model.session(threads=1) as session:
        os.truncate(path, 0)
        assert model.info.vocab_size == 300 and model.manifest["name"] == "lm"
        assert model.detokenize(model.tokenize("the thing")) == "the thing"
        assert session.memory.total > 0
        if what == "run":
            print(session.step([1, 2, 3]).shape)
    print("done")
"""


def _child(folder: Path, what: str, source: str) -> subprocess.CompletedProcess[str]:
    bundle = next(path for path in write_seeds(folder) if path.name == "lm")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(bundle), what, source]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("what", "source"), [("look", "file"), ("look", "buffer"), ("run", "buffer")])
def test_what_was_copied_still_answers(what: str, source: str, tmp_path: Path) -> None:
    done = _child(tmp_path, what, source)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


def test_weights_that_are_gone_end_the_process(tmp_path: Path) -> None:
    """The limit of what a mapping can promise, as docs/format.md says; not with edgec_open_buffer."""
    done = _child(tmp_path, "run", "file")
    assert done.returncode == -signal.SIGBUS
    assert "done" not in done.stdout
