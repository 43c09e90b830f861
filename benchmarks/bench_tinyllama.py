"""Claim: a 1.1 B Llama at 2, 3 and 4 bits decodes 1.3 to 2 times as fast as llama.cpp's types of like size.

Random weights in TinyLlama-1.1B's shape: this times, it says nothing about quality. Every contender is a process of
its own; commands go to one after the other in turn, idle ones sleep. Beside tokens per second the table says how much
of the memory's reading speed a decoded token reaches: bytes of the weights that one token reads, over the time that a
plain read of as many bytes of the same file takes (`probe.c`), interleaved with the rest.

The first run builds llama-cpp-python from its source distribution (about 15 minutes on 2 cores) and makes all files
under build/bench (about 9 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT, WORK

import edgec
from edgec.judge.bundle import BUNDLE

LLAMA_CPP = "llama-cpp-python==0.3.36"
OURS = ("hlq2", "hlq3", "hlq4")
THEIRS = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q8_0")
# Ours against theirs, and by how much decoding should win.
CLAIMS = {"hlq2": (("Q2_K",), 2.0), "hlq3": (("Q3_K_M",), 1.9), "hlq4": (("Q4_0", "Q4_K_M"), 1.3)}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float16",
}
CONTEXT, PROMPT, DECODE = 1024, 512, 24
SETTLE = 0.3  # seconds; spinning workers of the process before fall asleep


def checkpoint() -> Path:
    """A Hugging Face folder of random float16 weights, one shard per layer."""
    from safetensors.numpy import save_file

    folder = WORK / "tinyllama"
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]

    def matrix(rows: int, columns: int) -> Any:
        return (rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)).astype(np.float16)

    norm = np.ones(hidden, np.float16)
    shards: list[dict[str, Any]] = []
    for i in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
                  "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
                  "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        shards.append({f"{at}{name}.weight": matrix(*shape) for name, shape in shapes.items()}
                      | {f"{at}{name}.weight": norm for name in ("input_layernorm", "post_attention_layernorm")})
        _write(save_file, folder, i, shards)
    shards.append({"model.embed_tokens.weight": matrix(CONFIG["vocab_size"], hidden), "model.norm.weight": norm,
                   "lm_head.weight": matrix(CONFIG["vocab_size"], hidden)})
    _write(save_file, folder, len(shards) - 1, shards)
    index = {name: _shard(i) for i, names in enumerate(shards) for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    return folder


def _shard(i: int) -> str:
    return f"model-{i:05d}.safetensors"


def _write(save_file: Any, folder: Path, i: int, shards: list[dict[str, Any]]) -> None:
    """Writes shard i and keeps only its names."""
    save_file(shards[i], folder / _shard(i), metadata={"format": "pt"})
    shards[i] = dict.fromkeys(shards[i])


def llama_python() -> Path:
    """The Python of an environment with llama.cpp built for this very CPU."""
    home = WORK / "llama_cpp"
    python = home / "bin" / "python"
    if not (home / "built").exists():
        print(f"building {LLAMA_CPP} from its source distribution (once)", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        # Its build system regenerates itself for ever without the first flag. gcc 12 takes the AMX tile configuration
        # for 8 bytes and drops the stores of the rest (prompts then crash): without dead store elimination it does not.
        flags = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_SUPPRESS_REGENERATION=ON "
                                            "-DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'"}
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", LLAMA_CPP, "gguf"],
                       check=True, env=flags)
        (home / "built").touch()
    return python


class Worker:
    """A contender's process. command(): sends one line, returns the answer."""

    def __init__(self, name: str, arguments: list[str | Path], threads: int, **env: str) -> None:
        self.name = name
        self.process = subprocess.Popen([*map(str, arguments), str(threads), str(CONTEXT)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=os.environ | env)
        self.about = self._answer()
        self.peak = self.growth = 0

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the process of {self.name} ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def command(self, text: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.peak, self.growth = answer["peak_bytes"], answer.get("growth_bytes", 0)
        return float(answer["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait()


def compiled(source: Path, quant: str) -> tuple[Path, float]:
    """The bundle and the seconds its compilation took (0 when it was there)."""
    out = WORK / f"tinyllama_{quant}"
    if (out / BUNDLE).exists():
        return out / BUNDLE, 0.0
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edgec", "compile", source, "-o", out, "--quant", quant, "--calib", "none",
                    "--force", "--ctx", str(CONTEXT)], check=True, cwd=ROOT)
    return out / BUNDLE, time.perf_counter() - start


def probe_library() -> Path:
    path = WORK / "libprobe.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", str(ROOT / "benchmarks" / "probe.c"), "-o", str(path)],
                   check=True)
    return path


def read_per_token(bundle: Path) -> int:
    """Bytes of the weights a decoded token reads: all but the tables, of which it reads one row each."""
    found = subprocess.run([sys.executable, "-m", "edgec", "inspect", bundle, "--json"], check=True, cwd=ROOT,
                           stdout=subprocess.PIPE)
    return sum(int(t["bytes"]) for t in json.loads(found.stdout)["storage"]
               if not all(k.startswith("gather") for k in t["kernels"]))


def measure(threads: int, turns: int, names: list[str]) -> list[dict[str, Any]]:
    probe = probe_library()
    source, python = checkpoint(), llama_python()
    files = WORK / "gguf"
    wanted = [n for n in THEIRS if n in names]
    config = files / "config.json"
    files.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(CONFIG))
    subprocess.run([python, ROOT / "benchmarks" / "llama_files.py", config, files, *wanted], check=True)
    workers: list[Worker] = []
    bytes_read: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for name in (n for n in OURS if n in names):
        bundle, _ = compiled(source, name)
        bytes_read[name], sizes[name] = read_per_token(bundle), bundle.stat().st_size
        workers.append(Worker(name, [sys.executable, ROOT / "benchmarks" / "edgec_worker.py", bundle], threads,
                              EDGEC_PROBE=str(probe)))
    for name in wanted:
        sizes[name] = (files / f"{name}.gguf").stat().st_size
        workers.append(Worker(name, [python, ROOT / "benchmarks" / "llama_worker.py", files / f"{name}.gguf"], threads))
    times: dict[str, dict[str, list[float]]] = {w.name: {"tg": [], "pp": [], "probe": []} for w in workers}
    for turn in range(turns + 1):  # the first is a warm-up
        for worker in workers:
            time.sleep(SETTLE)
            tests = [("tg", f"tg {DECODE}", DECODE), ("pp", f"pp {PROMPT}", PROMPT)]
            if worker.name in bytes_read:
                tests.insert(0, ("probe", f"probe {bytes_read[worker.name]} {DECODE}", DECODE))
            for test, command, work in tests:
                seconds = worker.command(command) / work
                if turn:
                    times[worker.name][test].append(seconds)
    rows = []
    for worker in workers:
        found = {test: statistics.median(v) for test, v in times[worker.name].items() if v}
        rows.append({
            "name": worker.name, "threads": threads, "file_bytes": sizes[worker.name], "peak_bytes": worker.peak,
            "growth_bytes": worker.growth, "isa": worker.about.get("isa", ""), "decode_per_s": 1 / found["tg"],
            "prompt_per_s": 1 / found["pp"], "read_bytes": bytes_read.get(worker.name, 0),
            "of_probe": found["probe"] / found["tg"] if "probe" in found else None, "samples": times[worker.name],
        })
        worker.close()
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':8}{'threads':>8}{'file MB':>9}{'peak MB':>9}{'tokens/s':>10}{'prompt/s':>10}{'of probe':>10}")
    for r in rows:
        share = f"{100 * r['of_probe']:9.0f}%" if r["of_probe"] else ""
        print(f"{r['name']:8}{r['threads']:8}{r['file_bytes'] / 1e6:9.0f}{r['peak_bytes'] / 1e6:9.0f}"
              f"{r['decode_per_s']:10.1f}{r['prompt_per_s']:10.1f}{share:>10}")
    by_name = {r["name"]: r for r in rows}
    for ours, (theirs, factor) in CLAIMS.items():
        if ours in by_name and all(n in by_name for n in theirs):
            best = max(theirs, key=lambda n: by_name[n]["decode_per_s"])
            ratio = by_name[ours]["decode_per_s"] / by_name[best]["decode_per_s"]
            print(f"{ours} decodes {ratio:.2f} times as fast as {best} (wanted: {factor})")
    peers = [r for r in rows if r["name"] in THEIRS]
    if peers:
        fastest = max(peers, key=lambda r: r["prompt_per_s"])
        for r in (r for r in rows if r["name"] in OURS):
            print(f"{r['name']} reads a prompt {r['prompt_per_s'] / fastest['prompt_per_s']:.2f} times as fast as "
                  f"{fastest['name']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-r", "--turns", type=int, default=5)
    parser.add_argument("-t", "--threads", default="1,2")
    parser.add_argument("--only", default=",".join((*OURS, *THEIRS)), help="contenders, comma-separated")
    chosen = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rows = []
    for threads in (int(t) for t in chosen.threads.split(",")):
        found = measure(threads, chosen.turns, chosen.only.split(","))
        show(found)
        rows += found
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {"schema_version": 1, "benchmark": "tinyllama", "edgec_version": edgec.__version__,
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "llama_cpp": LLAMA_CPP, "rows": rows}
    (RESULTS / "tinyllama.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
