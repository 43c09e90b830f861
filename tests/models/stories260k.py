"""Karpathy's stories260K (llama2.c, version 0) as a Hugging Face folder with its tokenizer."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BOS, EOS = 1, 2
_FIRST_BYTE = 3  # tokens 3..258 are the 256 bytes
_SPACE = "\u2581"


def convert(source: Path, folder: Path) -> Path:
    """source: holds stories260K.bin and tok512.bin. Writes config, weights and tokenizer to `folder`; returns it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    raw = (source / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", raw)
    tied, vocab, size = vocab > 0, abs(vocab), dim // heads
    values = np.frombuffer(raw, "<f4", offset=28)
    position = 0

    def take(*shape: int) -> npt.NDArray[np.float32]:
        nonlocal position
        count = int(np.prod(shape))
        position += count
        return values[position - count : position].reshape(shape)

    state = {"model.embed_tokens.weight": take(vocab, dim)}
    per_layer = {
        "input_layernorm": take(layers, dim), "self_attn.q_proj": take(layers, heads * size, dim),
        "self_attn.k_proj": take(layers, kv_heads * size, dim), "self_attn.v_proj": take(layers, kv_heads * size, dim),
        "self_attn.o_proj": take(layers, dim, heads * size), "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim), "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    per_layer["self_attn.q_proj"] = _half_split(per_layer["self_attn.q_proj"], heads)
    per_layer["self_attn.k_proj"] = _half_split(per_layer["self_attn.k_proj"], kv_heads)
    for name, stacked in per_layer.items():
        state.update({f"model.layers.{i}.{name}.weight": stacked[i] for i in range(layers)})
    state["model.norm.weight"] = take(dim)
    take(2, context, size // 2)  # cosines and sines, which everyone computes
    if not tied:
        state["lm_head.weight"] = take(vocab, dim)
    if position != len(values):
        raise ValueError(f"{source}: {len(values) - position} values are left over")
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    _write(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim, "intermediate_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": size,
        "vocab_size": vocab, "max_position_embeddings": context, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": tied,
        "bos_token_id": BOS, "eos_token_id": EOS, "dtype": "float32",
    })
    _write(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})
    _write(folder / "tokenizer.json", tokenizer(read_vocabulary(source / "tok512.bin", vocab)))
    return folder


def _half_split(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of each head from pairs (0, 1), (2, 3), ... to first halves, then second halves."""
    layers, rows, columns = weights.shape
    pairs = weights.reshape(layers, heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(2, 3).reshape(layers, rows, columns)


def read_vocabulary(path: Path, count: int) -> list[tuple[str, float]]:
    """(piece, score) per token; spaces as in the file."""
    raw, position, pieces = path.read_bytes(), 4, []
    for _ in range(count):
        score, length = struct.unpack_from("<fi", raw, position)
        position += 8
        pieces.append((raw[position : position + length].decode("utf-8"), score))
        position += length
    return pieces


def tokenizer(pieces: list[tuple[str, float]]) -> dict[str, Any]:
    """tokenizer.json: the usual Llama layout (BPE with byte fallback, a space in front, the beginning token added)."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    names += [piece.replace(" ", _SPACE) for piece, _ in pieces[len(names):]]
    ids = {name: i for i, name in enumerate(names)}
    merges: list[tuple[float, int, int, list[str]]] = []
    for piece, (_, score) in list(zip(names, pieces, strict=True))[_FIRST_BYTE + 256:]:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], [left, right]))
    merges.sort(key=lambda m: m[:3])

    def special(name: str) -> dict[str, Any]:
        return {"id": ids[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True}

    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special(n) for n in names[:3]],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": ids,
                  "merges": [pair for *_, pair in merges]},
    }


def encode(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """Token ids as llama2.c's own encoder finds them: the best-scored merge first, leftmost among equals."""
    ids = {piece: i for i, (piece, _) in reversed(list(enumerate(pieces)))}
    tokens: list[int] = []
    for character in " " + text:
        if character in ids:
            tokens.append(ids[character])
        else:
            tokens += [byte + _FIRST_BYTE for byte in character.encode()]
    while True:
        best: tuple[float, int, int] | None = None
        for i in range(len(tokens) - 1):
            merged = ids.get(pieces[tokens[i]][0] + pieces[tokens[i + 1]][0])
            if merged is not None and (best is None or pieces[merged][1] > best[0]):
                best = (pieces[merged][1], i, merged)
        if best is None:
            return [BOS, *tokens]
        tokens[best[1] : best[1] + 2] = [best[2]]


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
