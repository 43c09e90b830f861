"""One llama.cpp model in a process of its own, driven over stdin and stdout; runs in the environment that
bench_tinyllama.py makes, so it imports nothing of edgec.

Started as `llama_worker.py MODEL.gguf THREADS CONTEXT`. Commands, one a line: `pp N` reads N tokens in one batch from
an empty context, `tg N` decodes N tokens one at a time from an empty context, `quit`. Each answers one JSON line with
the seconds it took and the peak memory of the process.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from typing import Any

import llama_cpp as api


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, user: Any) -> None:
    """llama.cpp writes its log through this."""


def main() -> None:
    path, threads, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    api.llama_log_set(_silent, None)
    api.llama_backend_init()
    model_params = api.llama_model_default_params()
    model = api.llama_model_load_from_file(path.encode(), model_params)
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = size
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model, params)
    if not model or not context:
        raise SystemExit(f"error: llama.cpp cannot open {path}")
    memory = api.llama_get_memory(context)

    def decode(tokens: list[int]) -> None:
        array = (api.llama_token * len(tokens))(*tokens)
        if api.llama_decode(context, api.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("error: llama_decode failed")
        api.llama_synchronize(context)

    def timed(what: str, n: int) -> float:
        api.llama_memory_clear(memory, True)
        ids = [1 + (i * 7919) % 31000 for i in range(n)]
        start = time.perf_counter()
        if what == "pp":
            decode(ids)
        else:
            for token in ids:
                decode([token])
        return time.perf_counter() - start

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "quit":
            break
        seconds = timed(command, int(rest[0]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
