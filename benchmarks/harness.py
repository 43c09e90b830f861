"""Shared by the benchmarks: compile once, time both sides in turn, print a table, keep the figures as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edgec
from edgec.env import ASSETS
from edgec.judge.bundle import BUNDLE
from edgec.judge.speed import Samples, interleaved
from edgec.targets.devices import host

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "build" / "bench"


def asset(name: str) -> Path:
    folder = Path(ASSETS.get())
    path = (folder if folder.is_absolute() else ROOT / folder) / name
    if not path.exists():
        raise SystemExit(f"error: this benchmark needs {path} (EDGEC_ASSETS)")
    return path


def arguments(about: str, turns: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("-r", "--turns", type=int, default=turns, help="turns of each side")
    parser.add_argument("-t", "--threads", default="1,2", help="thread counts, comma-separated")
    found = parser.parse_args()
    found.threads = [int(t) for t in found.threads.split(",")]
    return found


def compiled(source: str | Path, name: str) -> Path:
    """The bundle of `source`, compiled now: figures of a stale bundle would be worse than waiting."""
    edgec.compile(source, WORK / name)
    return WORK / name / BUNDLE


def ort_session(path: Path, threads: int, exact: bool = False) -> Any:
    """onnxruntime as its users run it: all optimizations, the given number of threads, spinning left on. exact: no sums
    of 8-bit products in 16 bits."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Report:
    """Rows of one benchmark: ours and onnxruntime's times of the same work, and their ratio."""

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, list[dict[str, Any]]()

    def add(self, test: str, threads: int, work: int, ours: Callable[[], None], theirs: Callable[[], None],
            turns: int) -> None:
        """Times both in turn; ratio = our median time over theirs, below 1 is faster."""
        a, b = interleaved([("edgec", ours), ("onnxruntime", theirs)], turns, threads, work)
        ratio = statistics.median(a.seconds) / statistics.median(b.seconds)
        self.rows.append({"test": test, "threads": threads, "ratio": ratio,
                          "edgec": a.to_dict(), "onnxruntime": b.to_dict()})
        print(f"{test:<14}{threads:>3} threads   edgec {_ms(a)} ms   onnxruntime {_ms(b)} ms   ratio {ratio:.3f}",
              flush=True)

    def write(self, **facts: Any) -> None:
        import onnxruntime

        RESULTS.mkdir(parents=True, exist_ok=True)
        here = host()
        document = {
            "schema_version": 1, "benchmark": self.name, "edgec_version": edgec.__version__,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "onnxruntime": onnxruntime.__version__,
            "machine": {"arch": here.arch, "os": here.os, "cores": here.cores, "isa": list(here.isa),
                        "python": platform.python_version()},
            **facts, "rows": self.rows,
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")


def _ms(samples: Samples) -> str:
    return f"{1e3 * statistics.median(samples.seconds):9.3f}"
