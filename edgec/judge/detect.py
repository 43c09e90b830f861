"""`edgec targets detect`: this machine as a device row, its bandwidth measured."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgec import version
from edgec.judge.selftest import tiny_plan
from edgec.native.bundle import write_bundle
from edgec.targets.devices import MIB, Device, host
from edgec.targets.transport import transport

# More than the last cache holds, as far as a small machine's memory allows.
_LEAST_MIB, _MOST_MIB = 64, 512
MAX_THREADS = 1024  # of edgec_bench and of a session; the row says how many threads read


def detect() -> Device:
    """The row of this machine, named after its CPU.

    clusters: by the clock that the system says each core can reach, none where it does not say. Bandwidth: all cores
    reading at once (runtime/bench/edgec_bench.c). Raises EdgecError E0601, E0602.
    """
    row = host()
    size = min(_MOST_MIB, max(_LEAST_MIB, 2 * row.l3 // MIB))
    weight = np.zeros((24, 40), np.float32)
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        bundle = Path(folder) / "detect.edgec"
        write_bundle(bundle, tiny_plan(weight, weight[:, 0].copy()), tokenizer=None, golden=None, manifest={})
        threads = min(row.cores, MAX_THREADS)
        found = transport("local").measure(bundle, ["--threads", str(threads), "--runs", "1", "--min-ms", "0",
                                                    "--warmup", "0", "--probe-mb", str(size)])
    cpu = found["device"]["cpu"]
    roofline = found["roofline"]
    name = re.sub(r"[^a-z0-9]+", "-", (cpu or row.arch).lower()).strip("-")
    source = (f"measured by edgec {version.__version__} on {time.strftime('%Y-%m-%d')}: {roofline['threads']} threads "
              f"read {size} MiB; they multiply and add {roofline['multiply_add_gop_s']:.1f} GOP/s of f32")
    return replace(row, name=name or "detected", about=f"{cpu or 'CPU unknown'}, detected",
                   clusters=_clusters(found["device"], row.cores),
                   bandwidth_gb_s=round(float(roofline["memory_gb_s"]), 2), bandwidth_source=source)


def _clusters(device: dict[str, Any], cores: int) -> tuple[tuple[str, int], ...]:
    """Cores by their highest clock; none where the system tells it of other cores than this process may use."""
    clocks = device["max_khz"]
    if not clocks or len(clocks) != cores or None in clocks:
        return ()
    return tuple((f"{khz / 1e6:.2f} GHz", count) for khz, count in sorted(Counter(clocks).items(), reverse=True))
