"""Planned peak memory against what the process really grows by, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_MEASURE = """
import json, sys
import numpy as np
from edgec.native.session import Model

def resident():
    with open("/proc/self/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return int(fields["VmRSS"].split()[0]) * 1024

bundle = sys.argv[1]
with Model(bundle) as warm:  # the library, numpy and ctypes paths are paid for before the measurement
    pass
before = resident()
with Model(bundle) as model, model.session(threads=1) as session:
    info = model.info
    if info.kind == 1:
        # The whole context, one prefill and one decode: every byte of the plan is touched.
        tokens = np.arange(info.max_context - 1, dtype=np.int32) % info.vocab_size
        session.step(tokens)
        session.step([1])
    else:
        feeds = {p.name: np.zeros(p.shape, p.dtype) for p in model.inputs}
        fed = sum(a.nbytes for a in feeds.values())
        session.run(feeds)
    grown = resident() - before
    memory = session.memory
    planned = memory.total + info.weight_bytes
    if info.kind == 0:
        grown -= fed
print(json.dumps({"grown": grown, "planned": planned}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("which", ["prose_lm", "mobilenet_v2"])
def test_planned_peak_is_within_ten_percent_of_the_growth(
    which: str, lm_bundles: dict[str, Path], mobilenet_bundle: Path
) -> None:
    bundle = mobilenet_bundle if which == "mobilenet_v2" else lm_bundles[which]
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["planned"] * 0.9 < found["grown"] < found["planned"] * 1.1, found
    compiled = json.loads((bundle.parent / "reports" / "memory.json").read_text())
    # What the compile printed is what the session takes (its own bookkeeping is the difference).
    assert abs(max(compiled["peak"].values()) / found["planned"] - 1) < 0.02
