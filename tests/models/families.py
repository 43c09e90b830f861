"""Tiny random models of every Hugging Face family that edgec promises to import, as folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCAB = 97
PROMPT, STEPS = 37, 32
# Of the largest value of an output: float32 sums in another order, through many layers.
TOLERANCE = 1e-4

_LM: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """kind: transformers' model_type. auto: the transformers class that makes the module. settings: of the config."""

    kind: str
    auto: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _lm(kind: str, **changes: Any) -> Family:
    return Family(kind, "AutoModelForCausalLM", {**_LM, **changes})


LANGUAGE: dict[str, Family] = {
    "llama": _lm("llama"),
    "qwen2": _lm("qwen2"),
    "qwen3": _lm("qwen3", head_dim=16),
    "mistral": _lm("mistral", sliding_window=8),
    "gemma2": _lm("gemma2", head_dim=16, sliding_window=8, query_pre_attn_scalar=24),
    "gemma3": _lm("gemma3_text", head_dim=16, sliding_window=8, query_pre_attn_scalar=24,
                  layer_types=["sliding_attention", "full_attention"]),
    "phi3": _lm("phi3", sliding_window=16),
    "smollm3": _lm("smollm3", no_rope_layers=[1, 0]),
    "olmo2": _lm("olmo2"),
    "gpt2": Family("gpt2", "AutoModelForCausalLM", {
        "vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128,
        "bos_token_id": 1, "eos_token_id": 2}),
    "opt": Family("opt", "AutoModelForCausalLM", {
        "vocab_size": VOCAB, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "word_embed_proj_dim": 64, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0}),
    "granite": _lm("granite", embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5,
                   attention_multiplier=0.3),
    "stablelm": _lm("stablelm", partial_rotary_factor=0.25, use_qkv_bias=True),
}

_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_IMAGES: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 4, "pad_token_id": 0, "decoder_start_token_id": 0,
}
_CLIP_TEXT: dict[str, Any] = {**_ENCODER, "bos_token_id": 1, "eos_token_id": 96, "pad_token_id": 0}

# Everything else: name -> (family, parts that a folder of it is imported as).
OTHERS: dict[str, tuple[Family, tuple[str, ...]]] = {
    "bert": (Family("bert", "BertModel", _ENCODER), ("",)),
    "distilbert": (Family("distilbert", "DistilBertModel", {
        "vocab_size": VOCAB, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 64}), ("",)),
    "roberta": (Family("roberta", "RobertaForMaskedLM", {**_ENCODER, "pad_token_id": 1}), ("",)),
    # Windows on both sides, RoBERTa's positions in another spelling, attention that is spelled out.
    "modernbert": (Family("modernbert", "ModernBertModel", {
        **_ENCODER, "local_attention": 16, "global_attn_every_n_layers": 2, "pad_token_id": 0, "cls_token_id": 1,
        "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}), ("",)),
    "mpnet": (Family("mpnet", "MPNetModel", {**_ENCODER, "pad_token_id": 1}), ("",)),
    "deberta": (Family("deberta-v2", "DebertaV2ForSequenceClassification", _ENCODER), ("",)),
    "t5": (Family("t5", "T5ForConditionalGeneration", _T5), ("encoder", "decoder")),
    "whisper": (Family("whisper", "WhisperForConditionalGeneration", {
        "vocab_size": VOCAB, "num_mel_bins": 20, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
        "max_source_positions": 50, "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 3}), ("encoder", "decoder")),
    "vit": (Family("vit", "ViTForImageClassification", _IMAGES), ("",)),
    "deit": (Family("deit", "DeiTForImageClassificationWithTeacher", _IMAGES), ("",)),
    "swin": (Family("swin", "SwinForImageClassification", {
        "image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4}), ("",)),
    "convnext": (Family("convnext", "ConvNextForImageClassification", {
        "image_size": 64, "hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2}), ("",)),
    "clip": (Family("clip", "CLIPModel", {
        "text_config": _CLIP_TEXT, "vision_config": _IMAGES, "projection_dim": 48}), ("text", "vision")),
    # The original checkpoints say 2 and mean the largest id of the sequence.
    "clip_largest_id": (Family("clip", "CLIPModel", {
        "text_config": {**_CLIP_TEXT, "eos_token_id": 2}, "vision_config": _IMAGES}), ("text",)),
    "wav2vec2": (Family("wav2vec2", "Wav2Vec2ForCTC", {
        **_ENCODER, "conv_dim": [32, 32, 32], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2],
        "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}), ("",)),
}


def make(folder: Path, family: Family, seed: int = 0) -> Path:
    """Writes a random float32 model of `family` to `folder` and returns the folder."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family.kind, **family.settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: Any = getattr(transformers, family.auto)
        module = made.from_config(config, dtype=torch.float32) if family.auto.startswith("Auto") else made(config)
        with torch.no_grad():
            for parameter in module.parameters():
                # Large enough that attention and every bias show in the outputs.
                parameter.add_(torch.randn_like(parameter) * 0.1)
    module.save_pretrained(folder)
    return folder


def relative_error(found: Any, wanted: Any) -> float:
    """Largest difference of two arrays over the largest wanted magnitude; NaN where either has one, infinite where
    shapes differ."""
    import numpy as np

    if found.shape != wanted.shape:
        return float("inf")
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(a - b).max() / np.maximum(np.abs(b).max(), np.finfo(np.float32).tiny))


def worst_of(errors: Iterable[float]) -> float:
    """The largest; unlike max(), a NaN among them is the worst."""
    import numpy as np

    return float(np.max(list(errors)))


def language_error(source: str, bundle: Path) -> float:
    """Relative error of logits, the worst of all steps: a prompt in one piece, then one token at a time, against one
    pass of the original."""
    import numpy as np

    from edgec.importers.reference import load_reference
    from edgec.native.session import Model

    tokens = np.random.default_rng(3).integers(3, VOCAB, PROMPT + STEPS).tolist()
    wanted = load_reference(source).logits(tokens)[PROMPT - 1 :]
    with Model(bundle) as model, model.session() as session:
        found = [session.step(tokens[:PROMPT]), *(session.step([t]) for t in tokens[PROMPT:])]
    return worst_of(relative_error(np.ravel(a), np.ravel(b)) for a, b in zip(found, wanted, strict=True))


def other_error(source: str, bundle: Path) -> float:
    """Relative error, the worst of all outputs, at the traced size and, where sizes vary, at others."""
    from edgec.importers.reference import load_reference
    from edgec.native.session import Model

    original, errors = load_reference(source), list[float]()
    with Model(bundle) as model, model.session() as session:
        for feeds in feeds_of(source):
            wanted, found = original.run(feeds), session.run(feeds)
            if set(found) != set(wanted):
                return float("inf")
            errors += [relative_error(found[key], value) for key, value in wanted.items()]
    return worst_of(errors)


def feeds_of(source: str) -> list[dict[str, Any]]:
    """Arrays for a model of OTHERS: the import's example and, where sizes vary, others down to the smallest."""
    import numpy as np

    from edgec.importers import hf_parts, hf_source
    from edgec.importers.hf_transformers import offline

    folder, part = hf_source.open_source(source)
    with offline():
        module = hf_parts.load_module(folder, "eager")
    inputs = hf_parts.choose(module, part, source).inputs(module)
    dims = {dim for value in inputs.values() for dim in value.axes.values()}
    rng = np.random.default_rng(5)
    result = [{key: value.example.numpy() for key, value in inputs.items()}]
    for step in (0, 1, 40) if dims else ():
        feeds = {}
        for key, value in inputs.items():
            shape = [d if a not in value.axes else min(value.axes[a][1] + step, value.axes[a][2])
                     for a, d in enumerate(value.example.shape)]
            if value.example.is_floating_point():
                feeds[key] = rng.standard_normal(shape).astype(np.float32)
            else:
                feeds[key] = rng.integers(0, 2, shape) if key == "token_type_ids" else rng.integers(5, VOCAB - 1, shape)
        result.append(feeds)
    return result
