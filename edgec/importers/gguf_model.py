"""A GGUF language model in Hugging Face terms: configuration, tensor names, tokenizer.

Source of the names and of the row order: llama.cpp's convert_hf_to_gguf.py, which stores the query and key rows of
llama models with the two halves of each head interleaved. What has no equal on the other side is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgec.compress.formats import Array
from edgec.errors import EdgecError
from edgec.importers.gguf import GGUF
from edgec.importers.packed import Packed
from edgec.importers.stored import Stored, Window

STAGE = "import"
# architecture -> (model_type, class, rows of q and k interleaved)
_FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM", True),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", False),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", False),
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
# Above every real head and every real base of the frequencies.
_LARGEST = 1 << 32
_FREQUENCIES = "rope_freqs.weight"
# Llama 3.1 and later: all of its models share these, and differ in the factor.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _refused(file: GGUF, found: str, wanted: str) -> EdgecError:
    return EdgecError("E0103", stage=STAGE, where=str(file.path), found=found, wanted=wanted,
                      hint="import the original Hugging Face model")


def config_of(file: GGUF) -> dict[str, Any]:
    """config.json of the model. Raises EdgecError: E0103 for an architecture that is not read here, E0101 for metadata
    that is missing or of another type."""
    kind = str(file.metadata.get("general.architecture"))
    if kind not in _FAMILIES:
        raise _refused(file, f"architecture {kind!r}", f"one of {', '.join(_FAMILIES)}")

    def need(key: str, types: tuple[type, ...] = (int,)) -> Any:
        value = file.metadata.get(f"{kind}.{key}")
        if not isinstance(value, types) or isinstance(value, bool):
            raise EdgecError("E0101", stage=STAGE, where=f"{file.path}, {kind}.{key}", found=repr(value)[:100],
                             wanted=" or ".join(t.__name__ for t in types))
        return value

    if file.metadata.get(f"{kind}.expert_count"):
        raise _refused(file, "a mixture of experts", "a dense model")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise EdgecError("E0101", stage=STAGE, where=str(file.path), found="no token_embd.weight",
                         wanted="an embedding [vocabulary, width]")
    heads = need("attention.head_count")
    if not 0 < heads <= 1 << 16:
        raise EdgecError("E0101", stage=STAGE, where=f"{file.path}, {kind}.attention.head_count", found=str(heads),
                         wanted="1 or more")
    width = need("embedding_length")
    theta = _number(file, f"{kind}.rope.freq_base", 10000.0)
    model_type, architecture, _ = _FAMILIES[kind]
    size = int(_number(file, f"{kind}.attention.key_length", width // heads))
    config: dict[str, Any] = {
        "model_type": model_type, "architectures": [architecture], "vocab_size": embedding.shape[0],
        "hidden_size": width, "num_hidden_layers": need("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": int(_number(file, f"{kind}.attention.head_count_kv", heads)),
        "head_dim": size,
        "intermediate_size": need("feed_forward_length"),
        "rms_norm_eps": float(need("attention.layer_norm_rms_epsilon", (float,))),
        "max_position_embeddings": need("context_length"), "hidden_act": "silu", "torch_dtype": "float32",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "rope_parameters": _rope(file, kind, theta, size),
    }
    for key in ("bos_token_id", "eos_token_id"):
        value = file.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(value, int):
            config[key] = value
    return config


def _number(file: GGUF, key: str, default: float) -> float:
    """An optional positive number of the metadata; E0101 for anything else under its key."""
    value = file.metadata.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        raise EdgecError("E0101", stage=STAGE, where=f"{file.path}, {key}", found=repr(value)[:100],
                         wanted=f"a number above 0, at most {_LARGEST}")
    return value


def _rope(file: GGUF, kind: str, theta: float, size: int) -> dict[str, Any]:
    scaling = file.metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling not in ("none", "linear") or file.metadata.get(f"{kind}.rope.dimension_count", size) != size:
        raise _refused(file, f"rope scaling {scaling!r} over "
                             f"{file.metadata.get(f'{kind}.rope.dimension_count')} of {size} values",
                       "rotary positions over whole heads, plain or scaled linearly")
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta,
                "factor": _number(file, f"{kind}.rope.scaling.factor", 1.0)}
    if _FREQUENCIES not in file.tensors:
        return {"rope_type": "default", "rope_theta": theta}
    stored = file.tensors[_FREQUENCIES].read().reshape(-1)
    factor = float(stored.max(initial=1.0))
    # The sizes first: what the metadata says may be any number.
    if stored.size != -(-size // 2) or not np.allclose(stored, _llama3_factors(theta, size, factor), rtol=1e-4):
        raise _refused(file, f"{_FREQUENCIES} of its own", "the frequencies of Llama 3")
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **_LLAMA3}


def _llama3_factors(theta: float, size: int, factor: float) -> Array:
    """What each frequency is divided by: nothing for short waves, `factor` for long ones, smoothly between."""
    longest = _LLAMA3["original_max_position_embeddings"]
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = longest * theta ** (-np.arange(0, size, 2, dtype=np.float64) / size) / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def tensors_of(file: GGUF, config: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors under the names of the Hugging Face checkpoint, rows in its order."""
    interleaved = _FAMILIES[str(file.metadata["general.architecture"])][2]
    result: dict[str, Stored] = {}
    for name, tensor in file.tensors.items():
        if name == _FREQUENCIES:
            continue
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        known = _LAYER_NAMES.get(layer[2]) if layer else _NAMES.get(stem)
        if known is None or kind not in ("weight", "bias"):
            raise _refused(file, f"tensor {name!r}", "the tensors of a llama or qwen model")
        if layer is not None and interleaved and layer[2] in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if layer[2] == "attn_q" else "num_key_value_heads"]
            tensor = _halves_apart(file, name, tensor, int(heads))
        result[f"model.layers.{layer[1]}.{known}.{kind}" if layer else f"{known}.{kind}"] = tensor
    return result


def _halves_apart(file: GGUF, name: str, tensor: Stored, heads: int) -> Stored:
    """Rows (0, half, 1, half + 1, ...) of each head as (0, 1, ..., half, half + 1, ...)."""
    rows = tensor.shape[0]
    if heads < 1 or rows % (2 * heads):
        raise EdgecError("E0101", stage=STAGE, where=f"{file.path}, {name}", found=f"{rows} rows",
                         wanted=f"{heads} heads of an even size")
    half = rows // heads // 2
    if isinstance(tensor, Packed):
        order = np.arange(rows).reshape(heads, half, 2).swapaxes(1, 2).reshape(-1)
        return tensor.map_rows(lambda a: a[order], rows)
    inner = 1
    for d in tensor.shape[1:]:
        inner *= d
    apart = Window(tensor, (heads, 2, half, inner), (2 * half * inner, inner, 2 * inner, 1), 0)
    return Window(apart, tensor.shape, tuple(_row_major(tensor.shape)), 0)


def _row_major(shape: tuple[int, ...]) -> list[int]:
    strides = [1]
    for d in reversed(shape[1:]):
        strides.insert(0, strides[0] * d)
    return strides


# tokenizer.ggml.pre -> how words are cut, as tokenizer.json says it
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA_BPE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA_BPE.replace("{1,3}", "")
_CUTS = {"gpt-2": _GPT2, "llama-bpe": _LLAMA_BPE, "llama3": _LLAMA_BPE, "qwen2": _QWEN2}
_NORMAL, _CONTROL, _USER = 1, 3, 4


def tokenizer_of(file: GGUF) -> dict[str, Any] | None:
    """tokenizer.json of a byte-level BPE vocabulary; None for other kinds, whose text rules the file does not hold."""
    meta = file.metadata
    tokens, merges, kinds = (meta.get(f"tokenizer.ggml.{k}") for k in ("tokens", "merges", "token_type"))
    cut = _CUTS.get(str(meta.get("tokenizer.ggml.pre", "")))
    if meta.get("tokenizer.ggml.model") != "gpt2" or cut is None:
        return None
    if not isinstance(tokens, list) or not isinstance(merges, list) or not all(
            isinstance(t, str) for t in (*tokens, *merges)):
        return None
    kinds = kinds if isinstance(kinds, list) and len(kinds) == len(tokens) else [_NORMAL] * len(tokens)
    added = [
        {"id": i, "content": token, "special": kind == _CONTROL, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (_CONTROL, _USER)
    ]
    # Added tokens stand beside the vocabulary, as in the files that transformers writes.
    plain = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
             if kind not in (_CONTROL, _USER)}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": _first_token(meta, tokens), "decoder": {"type": "ByteLevel", "add_prefix_space": True,
                                                                  "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": plain, "merges": merges},
    }


def _first_token(meta: Mapping[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """The post-processor that writes the start token, where the metadata asks for one."""
    bos = meta.get("tokenizer.ggml.bos_token_id")
    if not meta.get("tokenizer.ggml.add_bos_token") or not isinstance(bos, int) or not 0 <= bos < len(tokens):
        return None
    start = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    text = [{"Sequence": {"id": which, "type_id": 0}} for which in ("A", "B")]
    return {"type": "TemplateProcessing", "single": [start, text[0]], "pair": [start, text[0], start, text[1]],
            "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}}}
