"""One bundle in a process of its own, with the protocol of llama_worker.py:
`edgec_worker.py MODEL.edgec THREADS CONTEXT`.

It also answers `probe BYTES N`: the seconds that `probe.c` needs to read the first BYTES of the file N times over, as N
decoded tokens do: what of the weights a large cache keeps from pass to pass, it keeps for both.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from edgec import Model


def main() -> None:
    path, threads, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = Model(path)
    session = model.session(threads=threads, context=size)
    probe = ctypes.CDLL(os.environ["EDGEC_PROBE"]).edgec_probe
    probe.restype, probe.argtypes = ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with Path(path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)

    def timed(what: str, n: int) -> float:
        ids = [1 + (i * 7919) % (model.info.vocab_size - 2) for i in range(n)]
        session.reset()
        start = time.perf_counter()
        if what == "pp":
            session.step(ids)
        else:
            for token in ids:
                session.step([token])
        return time.perf_counter() - start

    def read(size: int, n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            probe(data.ctypes.data, min(size, data.size) // 64 * 64, threads)
        return time.perf_counter() - start

    print(json.dumps({"ready": True, "isa": model.info.isa}), flush=True)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "quit":
            break
        seconds = read(int(rest[0]), int(rest[1])) if command == "probe" else timed(command, int(rest[0]))
        # ru_maxrss counts the probe's pages too, but those are pages of the same file.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak, "growth_bytes": peak - before}), flush=True)


if __name__ == "__main__":
    main()
