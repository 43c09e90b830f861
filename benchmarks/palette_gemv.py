"""Claim: one row times a 4096 x 4096 matrix in a palette takes little longer than a plain read of its bytes (probe.c).

Several such matrices one after the other, in a compiled model, beside a read of as many bytes from a buffer of its own,
in turn; one thread. Every run goes over all of them, so that none stays in a core's own caches.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import RESULTS, ROOT, WORK
from torch import nn

import edgec
from edgec.compress.formats import PaletteSpec
from edgec.native.session import Model
from edgec.targets.devices import host
from edgec.train.cluster import Schedule, cluster, harden
from edgec.train.finalize import write_layers

SIDE = 4096


def probe_library() -> ctypes.CDLL:
    path = WORK / "libprobe.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", str(ROOT / "benchmarks" / "probe.c"), "-o", str(path)],
                   check=True)
    library = ctypes.CDLL(str(path))
    library.edgec_probe.argtypes, library.edgec_probe.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), (
        ctypes.c_uint64)
    return library


def compiled(palette: str, layers: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(layers)))
    cluster(model, palette, schedule=Schedule())
    trained = harden(model)
    x = torch.zeros(1, SIDE)
    write_layers(trained, model, folder / "layers", example_inputs=(x,))
    edgec.compile(model, folder / "out", example_inputs=(x,), quant_from=folder / "layers")


def measure(palette: str, layers: int, turns: int) -> dict[str, object]:
    size = layers * PaletteSpec.parse(palette).bytes(SIDE, SIDE)
    raw = np.ones(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    data = raw[start : start + size]
    probe, ours, reads = probe_library(), [], []
    x = np.random.default_rng(0).standard_normal((1, SIDE)).astype(np.float32)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        compiled(palette, layers, Path(folder))
        with Model(Path(folder) / "out" / "model.edgec") as model, model.session(threads=1) as session:
            name = model.inputs[0].name
            for _ in range(turns):
                session.run({name: x})
                began = time.perf_counter()
                session.run({name: x})
                ours.append(time.perf_counter() - began)
                probe.edgec_probe(data.ctypes.data, size, 1)
                began = time.perf_counter()
                probe.edgec_probe(data.ctypes.data, size, 1)
                reads.append(time.perf_counter() - began)
    return {"palette": palette, "bytes": size, "ms": 1e3 * min(ours), "probe_ms": 1e3 * min(reads),
            "of_probe": min(reads) / min(ours), "median_of_probe": float(np.median(reads) / np.median(ours))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-r", "--turns", type=int, default=200)
    parser.add_argument("--layers", type=int, default=4)
    chosen = parser.parse_args()
    results = [measure(palette, chosen.layers, chosen.turns) for palette in ("palette3", "palette4", "palette2")]
    print("| format | MB | ms | probe, ms | of the probe (fastest) | (medians) |")
    print("|---|---|---|---|---|---|")
    for r in results:
        print(f"| {r['palette']} | {r['bytes'] / 1e6:.1f} | {r['ms']:.2f} | {r['probe_ms']:.2f} | "
              f"{100 * r['of_probe']:.0f} % | {100 * r['median_of_probe']:.0f} % |")
    (RESULTS / "palette_gemv.json").write_text(json.dumps(
        {"machine": host().name, "layers": chosen.layers, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
