"""Claim: clustering over the different values keeps less for the gradient than eDKM's sharded maps, on one machine.

One bfloat16 weight, 3 bits, T = 3, one forward and one backward pass, each variant in a process of its own: what the
clustering layer keeps for the gradient (as a hook counts it, every saved tensor a copy in host memory as in the paper's
setting; parameters are not counted), how much the process grew at its peak, and seconds. Sharding runs as many
processes as learners, and counts one of them. What is finished is kept in build/bench/cluster_memory.json, and the
table of docs/clustering.md is written anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from harness import RESULTS, ROOT, WORK
from torch import nn

from edgec.compress.driver import resident_bytes
from edgec.train.saved_tensors import SavedTensors
from edgec.train.soft_kmeans import dense, table

BITS, ITERATIONS = 3, 3
VARIANTS = {"dense": "dense", "M": "+ marshaling", "MU": "+ uniquification", "MUS": "+ sharding",
            "table": "table engine"}
DOCS = ROOT / "docs" / "clustering.md"
PUBLISHED = {"dense": 1.0, "M": 2.9, "MU": 23.5, "MUS": 129.9}


class Peak:
    """The largest resident size of this process, looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self.start = self.most = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def pass_over(variant: str, w: nn.Parameter, group: Any) -> tuple[int, float, float]:
    """(bytes kept for the gradient, seconds of the forward, of the backward pass)."""
    k = 1 << BITS
    start = torch.linspace(-0.04, 0.04, k, dtype=torch.float64)
    tau = torch.tensor(0.1 * (1.75 * 0.02 / k) ** 2, dtype=torch.float64)
    saved = SavedTensors(marshal=variant != "dense", uniquify=variant in ("MU", "MUS"), group=group)
    began = time.perf_counter()
    with saved:
        if variant == "table":
            soft = table(w, start, tau, ITERATIONS, torch.bfloat16)[0]
        else:
            saved.watch(w)
            soft = dense(w.reshape(1, -1, 1).float(), start[None, :, None], tau[None], ITERATIONS)[0].to(w.dtype)
    forward, kept = time.perf_counter() - began, saved.bytes
    began = time.perf_counter()
    soft.backward(w.detach().reshape(soft.shape))
    return kept, forward, time.perf_counter() - began


def worker(variant: str, side: int, rank: int, learners: int, store: str) -> None:
    torch.set_num_threads(1)
    group = None
    if learners > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=learners)
        group = dist.group.WORLD
    values = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    w = nn.Parameter(values.to(torch.bfloat16))
    del values
    pass_over(variant, nn.Parameter(w.detach()[:64, :64].clone()), group)  # libraries are loaded, buffers are made
    with Peak() as peak:
        kept, forward, backward = pass_over(variant, w, group)
    print(json.dumps({"kept": kept, "grown": peak.most - peak.start, "forward": forward, "backward": backward,
                      "grad": float(w.grad.double().norm()) if w.grad is not None else 0.0}))
    if learners > 1:
        dist.barrier()
        dist.destroy_process_group()


def measure(variant: str, side: int, learners: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        count = learners if variant == "MUS" else 1
        processes = [subprocess.Popen([sys.executable, __file__, "--worker", variant, "--side", str(side), "--rank",
                                       str(rank), "--learners", str(count), "--store", f"{folder}/store"],
                                      stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                     for rank in range(count)]
        outs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"error: {variant} of {side} x {side} failed")
    found: dict[str, Any] = json.loads(outs[0].splitlines()[-1])
    return {**found, "side": side, "learners": count}


def rows(results: dict[str, dict[str, Any]]) -> list[str]:
    columns = ("variant", "weight", "learners", "kept, MB", "bytes per weight", "ratio", "published",
               "process grew, MB", "seconds / dense")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key, r in sorted(results.items(), key=lambda item: (item[1]["side"], [*VARIANTS].index(item[0].split("@")[0]))):
        name, side = key.split("@")
        base = results.get(f"dense@{side}")
        ratio = f"{base['kept'] / r['kept']:,.1f}" if base else "-"
        # Seconds themselves say little on a machine with other work.
        times = f"{(r['forward'] + r['backward']) / (base['forward'] + base['backward']):.2f}" if base else "-"
        published = f"{PUBLISHED[name]:g}" if name in PUBLISHED else "-"
        lines.append(
            f"| {VARIANTS[name]} | {side} x {side} | {r['learners']} | {r['kept'] / 1e6:,.3f} | "
            f"{r['kept'] / r['side'] ** 2:.4f} | {ratio} | {published} | {r['grown'] / 1e6:,.0f} | {times} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--small", type=int, default=1024, help="of the weight that all learners hold")
    parser.add_argument("--learners", type=int, default=8)
    parser.add_argument("--only", default="", help="part of VARIANT@SIDE")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--store", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        worker(chosen.worker, chosen.side, chosen.rank, chosen.learners, chosen.store)
        return
    kept = WORK / "cluster_memory.json"
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for side in sorted({chosen.small, chosen.side}):
        for name in VARIANTS:
            key = f"{name}@{side}"
            # Eight learners with whole maps of the large weight are more than one machine holds.
            if key in results or (name == "MUS" and side != chosen.small) or chosen.only not in key:
                continue
            results[key] = measure(name, side, chosen.learners)
            print(name, side, results[key], flush=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".tmp").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            os.replace(kept.with_suffix(".tmp"), kept)
    table = "\n".join(rows(results))
    print(table)
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(re.sub(r"\| variant \| weight \|.*?(?=\n\n)", lambda _: table, text, count=1, flags=re.DOTALL),
                    encoding="utf-8")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cluster_memory.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
