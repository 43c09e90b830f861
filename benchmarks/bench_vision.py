"""Small vision networks in fp32, one image of 224 x 224, against the runtimes people use, 1 and 2 threads.

Every contender is a process of its own; commands go to one after the other in turn, idle ones sleep. Each answer is
compared with onnxruntime's first, relative to its root mean square. A runtime that cannot take a network, or answers
something else, is listed with the reason. The first run makes an environment with the other runtimes and all files
under build/bench (about 6 GB with torch). Rows of an earlier run that this one does not measure are kept.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, ROOT, WORK
from vision_models import NAMES, SIZE, build, macs_of, standard_ops

import edgec
from edgec.targets.devices import host

PEERS = ("onnxruntime==1.32.0", "openvino==2026.4.1", "ncnn==1.0.20261020", "pnnx==20261020", "torchao==0.18.0",
         "flatbuffers", "ruamel.yaml", "pandas", "tabulate", "mpmath", "sympy", "pyyaml", "packaging",
         "typing-extensions", "scikit-learn", "parameterized", "expecttest", "hypothesis")
TORCH, EXECUTORCH = "torch==2.13.0", "executorch==1.5.1"  # the latter names an older torch: without dependencies
LITERT = "litert-torch==0.10.0"
CONTENDERS = ("edgec", "onnxruntime", "openvino", "ncnn", "executorch", "litert")
PROFILED = ("mobilenet_v2", "resnet18")
WORKER = ROOT / "benchmarks" / "vision_worker.py"
FILE = RESULTS / "vision.json"
SETTLE = 0.1  # seconds; spinning workers of the process before fall asleep
UNTIMED, TIMED = 2, 3
TOLERANCE = 1e-3
STEADY = 0.8  # of the peak: below, others held the cores and the ratio would say who copes with that best


def peers_python() -> Path:
    """The Python of an environment with the other runtimes."""
    home = WORK / "peers"
    python = home / "bin" / "python"
    if not (home / "built").exists():
        print("installing the other runtimes (once)", flush=True)
        venv.create(home, with_pip=True)
        pin = WORK / "peers.txt"
        pin.write_text(TORCH + "\n", encoding="utf-8")
        pip = [python, "-m", "pip", "install", "-q"]
        # torch first: pnnx alone would bring the newest one.
        for wanted in ([TORCH], ["-c", str(pin), *PEERS], ["--no-deps", EXECUTORCH],
                       ["-c", str(pin), LITERT]):
            subprocess.run([*pip, *wanted], check=True)
        (home / "built").touch()
    return python


class Worker:
    """A contender's process. ask(): sends one line, returns the answer. Raises RuntimeError when it ends."""

    def __init__(self, name: str, folder: Path, threads: int, python: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen([python, WORKER, name, folder, str(threads)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log, text=True)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # some runtimes print there
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"ended with {self.process.wait()}: {last_line(self.log.read_text(errors='replace'))}")

    def ask(self, text: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word of it"


def prepare(name: str, fresh: bool) -> Path:
    """The folder of a network's files for every runtime; errors.json there: what a runtime said that cannot take it."""
    folder = WORK / "vision" / name.replace(":", "_")
    module, image = build(name), torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if fresh or not (folder / "errors.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        np.save(folder / "image.npy", image.numpy())
        (folder / "macs.json").write_text(json.dumps(macs_of(module, image)))
        with standard_ops():
            torch.onnx.export(module, (image,), str(folder / "model.onnx"), dynamo=True, external_data=False,
                              opset_version=18, verbose=False)
            torch.export.save(torch.export.export(module, (image,)), folder / "model.pt2")
        errors = {}
        for runtime in ("ncnn", "executorch", "litert"):
            done = subprocess.run([peers_python(), WORKER, "convert", runtime, folder], capture_output=True, text=True,
                                  check=False)
            if done.returncode:
                errors[runtime] = last_line(done.stderr)
        (folder / "errors.json").write_text(json.dumps(errors))
    # Ours anew each time: figures of a stale bundle would be worse than waiting.
    edgec.compile(module, folder / "edgec", example_inputs=(image,))
    return folder


def measure(name: str, folder: Path, threads: int, turns: int, only: list[str]) -> dict[str, Any]:
    """One row: each contender's seconds or error, in turn."""
    found: dict[str, dict[str, Any]] = {}
    workers = []
    reference: Any = None
    errors = json.loads((folder / "errors.json").read_text())
    # onnxruntime first: the others are compared with it.
    for contender in sorted((c for c in CONTENDERS if c in only), key=lambda c: c != "onnxruntime"):
        found[contender] = {}
        if contender in errors:
            found[contender]["error"] = errors[contender]
            continue
        worker = Worker(contender, folder, threads,
                        Path(sys.executable) if contender == "edgec" else peers_python())
        try:
            worker.answer()
            path = folder / f"{contender}.npy"
            worker.ask(f"answer {path}")
            answer = np.load(path).reshape(-1)
            reference = answer if reference is None else reference
            error = float(np.abs(answer - reference).max() / np.sqrt(np.mean(np.square(reference))))
            found[contender]["distance"] = error
            if not error < TOLERANCE:
                raise RuntimeError(f"wrong: differs from onnxruntime by {error:.2g} of the root mean square")
            workers.append(worker)
            found[contender]["seconds"] = []
        except RuntimeError as e:
            found[contender]["error"] = str(e)
            worker.close()
    alone, together = peak_probe(1), peak_probe(threads)
    single, peaks = [], []
    for turn in range(turns + 1):  # the first is a warm-up
        time.sleep(SETTLE)
        single.append(alone())
        peaks.append(together())
        for worker in workers:
            time.sleep(SETTLE)
            seconds = worker.ask(f"run {UNTIMED} {TIMED}")["seconds"]
            if turn:
                found[worker.name]["seconds"] += seconds
    # The best of all threads would be low too where others hold a core all the time: the best of one is taken.
    peak = threads * max(single)
    row: dict[str, Any] = {"model": name, "threads": threads, "at": now(), "contenders": found,
                           "peak_macs_per_s": peak, "steady": statistics.median(peaks) / peak}
    if name in PROFILED and "edgec" in only:
        ours = next(w for w in workers if w.name == "edgec")
        time.sleep(SETTLE)
        row["profile"] = layers(ours.ask(f"profile {10 * turns}")["calls"], json.loads(
            (folder / "macs.json").read_text()), peak)
    for worker in workers:
        worker.close()
    medians = {c: statistics.median(v["seconds"]) for c, v in found.items() if v.get("seconds")}
    for contender, seconds in medians.items():
        found[contender]["median_ms"] = 1e3 * seconds
    peers = [c for c in medians if c != "edgec"]
    if row["steady"] < STEADY:
        row["busy"] = f"no ratio: other programs left {100 * row['steady']:.0f}% of {threads} cores"
    elif "edgec" in medians and peers:
        row["best_peer"] = min(peers, key=lambda c: medians[c])
        row["ratio"] = medians["edgec"] / medians[row["best_peer"]]
    return row


def peak_probe(threads: int) -> Callable[[], float]:
    """A function that measures the multiply-accumulates a second of all threads together (peak.c), in some 30 ms."""
    path = WORK / "libpeak.so"
    subprocess.run(["cc", "-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread",
                    str(ROOT / "benchmarks" / "peak.c"), "-o", str(path)], check=True)
    run = ctypes.CDLL(str(path)).edgec_peak
    run.restype, run.argtypes = ctypes.c_uint64, [ctypes.c_uint64, ctypes.c_int]

    def rate() -> float:
        start = time.perf_counter()
        done: int = run(10_000_000, threads)
        return done / (time.perf_counter() - start)

    return rate


def layers(calls: list[dict[str, Any]], macs: dict[str, int], peak: float) -> list[dict[str, Any]]:
    """Calls in a row of one layer together, with its multiply-accumulates and its fraction of the peak."""
    rows: list[dict[str, Any]] = []
    for call in calls:
        if rows and rows[-1]["layer"] == call["layer"]:
            rows[-1]["kernels"].append(call["kernel"])
            rows[-1]["us"] += call["nanoseconds"] / 1e3
        else:
            rows.append({"layer": call["layer"], "kernels": [call["kernel"]], "us": call["nanoseconds"] / 1e3})
    left = dict(macs)
    # The longest names first: `features.1` must not take what is of `features.1.conv`.
    for row in sorted(rows, key=lambda r: -len(r["layer"])):
        # A folded BatchNorm leaves its own name: its convolution is beside it.
        mine = _inside(row["layer"], left) or _inside(row["layer"].rpartition(".")[0], left)
        row["macs"] = sum(left.pop(n) for n in mine)
        row["of_peak"] = row["macs"] / (row["us"] * 1e-6) / peak
    if left:
        print(f"no call of the plan is named after {', '.join(left)}")
    return rows


def _inside(layer: str, names: Iterable[str]) -> list[str]:
    return [n for n in names if n == layer or n.startswith(layer + ".")] if layer else []


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per network and thread count, then the reasons of those that have no figure."""
    lines = [f"| network | threads | {' | '.join(CONTENDERS)} | best peer | ratio | steady |",
             "| --- " * (len(CONTENDERS) + 5) + "|"]
    reasons = []
    for row in rows:
        cells = []
        for contender in CONTENDERS:
            found = row["contenders"].get(contender, {"error": "not run"})
            cells.append(f"{found['median_ms']:.2f}" if "median_ms" in found else "-")
            if "error" in found:
                reasons.append(f"{contender}, {row['model']}, {row['threads']} threads: {found['error']}")
        if "busy" in row:
            reasons.append(f"{row['model']}, {row['threads']} threads: {row['busy']}")
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
        lines.append(f"| {row['model']} | {row['threads']} | {' | '.join(cells)} | {row.get('best_peer', '-')} "
                     f"| {ratio} | {100 * row['steady']:.0f}% |")
    return "\n".join([*lines, "", *(f"- {r}" for r in reasons)])


def layer_table(row: dict[str, Any], count: int = 12) -> str:
    """Markdown: the calls with the most time beyond what the peak would take."""
    peak = row["peak_macs_per_s"]
    total = sum(r["us"] for r in row["profile"])
    done = sum(r["macs"] for r in row["profile"]) / (total * 1e-6) / peak
    title = (f"{row['model']}, {row['threads']} threads: peak {peak / 1e9:.1f} GMAC/s, all calls {total / 1e3:.2f} ms, "
             f"{100 * done:.0f}% of the peak")
    lines = [title, "",
             "| layer | kernels | us | MMAC | of peak |", "| --- | --- | --- | --- | --- |"]
    worst = sorted(row["profile"], key=lambda r: r["macs"] / peak * 1e6 - r["us"])[:count]
    lines += [f"| {r['layer']} | {' + '.join(r['kernels'])} | {r['us']:.0f} | {r['macs'] / 1e6:.1f} "
              f"| {100 * r['of_peak']:.0f}% |" for r in worst]
    return "\n".join(lines)


def merge(new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes the file: new rows in the place of older ones of the same network and threads."""
    rows = {(r["model"], r["threads"]): r for r in (json.loads(FILE.read_text())["rows"] if FILE.exists() else [])}
    rows |= {(r["model"], r["threads"]): r for r in new}
    order = {name: i for i, name in enumerate(NAMES)}
    kept = sorted(rows.values(), key=lambda r: (order.get(r["model"], len(order)), r["threads"]))
    here = host()
    document = {
        "schema_version": 1, "benchmark": "vision", "edgec_version": edgec.__version__, "at": now(),
        "peers": [*PEERS[:4], EXECUTORCH, LITERT, TORCH], "dtype": "float32", "image": [1, 3, SIZE, SIZE],
        "machine": {"arch": here.arch, "os": here.os, "cores": here.cores, "isa": list(here.isa),
                    "python": platform.python_version()},
        "rows": kept,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-r", "--turns", type=int, default=7)
    parser.add_argument("-t", "--threads", default="1,2")
    parser.add_argument("-m", "--models", default=",".join(NAMES), help="networks, comma-separated")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, comma-separated")
    parser.add_argument("--prepare", choices=("fresh", "only", "no", "yes"), default="yes",
                        help="files: all anew; without timing; ours too as they are; ours anew (default)")
    parser.add_argument("--show", action="store_true", help="print the tables of the file and measure nothing")
    chosen = parser.parse_args()
    if chosen.show:
        rows = json.loads(FILE.read_text())["rows"]
        print(table(rows), *(layer_table(r) for r in rows if "profile" in r), sep="\n\n")
        return
    for name in chosen.models.split(","):
        try:
            folder = (WORK / "vision" / name.replace(":", "_") if chosen.prepare == "no"
                      else prepare(name, chosen.prepare == "fresh"))
        except LookupError as e:
            print(f"{name} is skipped: {e}")
            continue
        if chosen.prepare == "only":
            continue
        for threads in (int(t) for t in chosen.threads.split(",")):
            row = measure(name, folder, threads, chosen.turns, chosen.only.split(","))
            print(table([row]), flush=True)
            if "profile" in row:
                print(layer_table(row), flush=True)
            merge([row])


if __name__ == "__main__":
    main()
