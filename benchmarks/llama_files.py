"""Makes the GGUF files of bench_tinyllama.py: an f16 file of random weights, then llama.cpp's own quantizations of it.

Runs in the environment that bench_tinyllama.py makes. `llama_files.py CONFIG.json FOLDER TYPE...` writes
FOLDER/TYPE.gguf for each type (f16, Q2_K, Q3_K_M, Q4_0, Q4_K_M, Q8_0) that is not there yet.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import llama_cpp as api
import numpy as np
from gguf import GGUFWriter

FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "TQ2_0": 37}


def write_f16(config: dict[str, int], path: Path) -> None:
    rng = np.random.default_rng(0)
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, kv_heads, vocab = config["num_attention_heads"], config["num_key_value_heads"], config["vocab_size"]
    kv = hidden // heads * kv_heads
    out = GGUFWriter(str(path), "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(hidden)
    out.add_block_count(layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(hidden // heads)
    out.add_vocab_size(vocab)
    out.add_tokenizer_model("none")
    out.add_file_type(1)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        out.add_tensor(f"{name}.weight", values.astype(np.float16))

    def norm(name: str) -> None:
        out.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", vocab, hidden)
    for i in range(layers):
        norm(f"blk.{i}.attn_norm")
        matrix(f"blk.{i}.attn_q", hidden, hidden)
        matrix(f"blk.{i}.attn_k", kv, hidden)
        matrix(f"blk.{i}.attn_v", kv, hidden)
        matrix(f"blk.{i}.attn_output", hidden, hidden)
        norm(f"blk.{i}.ffn_norm")
        matrix(f"blk.{i}.ffn_gate", inner, hidden)
        matrix(f"blk.{i}.ffn_up", inner, hidden)
        matrix(f"blk.{i}.ffn_down", hidden, inner)
    norm("output_norm")
    matrix("output", vocab, hidden)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main() -> None:
    config, folder = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "f16.gguf"
    for name in ("f16", *sys.argv[3:]):
        path, unfinished = folder / f"{name}.gguf", folder / f"{name}.gguf.part"
        if path.exists():
            continue
        if name == "f16":
            write_f16(config, unfinished)
        else:
            params = api.llama_model_quantize_default_params()
            params.ftype = FILE_TYPES[name]
            if api.llama_model_quantize(str(source).encode(), str(unfinished).encode(), ctypes.byref(params)) != 0:
                raise SystemExit(f"error: llama.cpp cannot make {name}")
        os.replace(unfinished, path)


if __name__ == "__main__":
    main()
