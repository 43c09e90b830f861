"""A language model of any size as a folder that takes almost no disk: its weight file is one long hole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WIDTH, _INNER, _HEADS, _VOCAB = 2048, 5504, 16, 32000


def make(folder: Path, gigabytes: float) -> Path:
    """Writes a llama of about so many GB of float16, all zeros except that the file says nothing of it."""
    folder.mkdir(parents=True, exist_ok=True)
    layer = 4 * _WIDTH * _WIDTH + 3 * _WIDTH * _INNER
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * _VOCAB * _WIDTH) / layer))
    config: dict[str, Any] = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": _VOCAB, "hidden_size": _WIDTH,
        "intermediate_size": _INNER, "num_hidden_layers": layers, "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [_VOCAB, _WIDTH], "model.norm.weight": [_WIDTH],
                                    "lm_head.weight": [_VOCAB, _WIDTH]}
    for i in range(layers):
        stem = f"model.layers.{i}"
        shapes |= {f"{stem}.{norm}.weight": [_WIDTH] for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{stem}.self_attn.{p}_proj.weight": [_WIDTH, _WIDTH] for p in "qkvo"}
        shapes |= {f"{stem}.mlp.{p}_proj.weight": [_INNER, _WIDTH] for p in ("gate", "up")}
        shapes[f"{stem}.mlp.down_proj.weight"] = [_WIDTH, _INNER]
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder
