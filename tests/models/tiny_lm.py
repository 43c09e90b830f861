"""Random language models of the families that the Hugging Face door reads, as folders: a few kilobytes each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB = 97
WINDOW = 8

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}
# name -> (model_type, what differs from the common settings)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_mha_tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3_rope": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": WINDOW}),
    "mistral_long_window": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "phi3": ("phi3", {"sliding_window": None}),
    "gemma2": ("gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}),
}


def make(folder: Path, family: str, seed: int = 0) -> Path:
    """Writes a random float32 model of FAMILIES[family] to `folder` and returns the folder."""
    import torch
    import transformers

    kind, changes = FAMILIES[family]
    config = transformers.AutoConfig.for_model(kind, **{**_COMMON, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in module.parameters():
                # Large enough that attention and every bias show in the logits.
                parameter.add_(torch.randn_like(parameter) * 0.1)
    module.save_pretrained(folder)
    return folder
