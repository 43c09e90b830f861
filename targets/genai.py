"""What onnxruntime-genai reads beside a language model's graph: genai_config.json and the tokenizer's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo
from edgec.ir.model import dims_of, int_attr, is_op, rank_of, walk
from edgec.targets.output import write_json

CONFIG = "genai_config.json"
# Files of a tokenizer in a Hugging Face folder; the first one must be there.
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
              "chat_template.jinja")
_PAST, _PRESENT = "past_key_values.%d.", "present.%d."


def write_genai(folder: Path, model: ir.Model, info: ModelInfo, context: int, filename: str, library: str = ""
                ) -> list[str]:
    """Writes the files and returns notes about what is missing. library: the file with operators of the model, or "".

    Raises EdgecError (E0301) for caches of odd forms.
    """
    write_json(folder / CONFIG, _config(model, info, context, filename, library))
    if info.tokenizer is None:
        return ["the model has no tokenizer.json: onnxruntime-genai needs one beside the model"]
    source = info.tokenizer.parent
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return []


def check(model: ir.Model) -> None:
    """Raises EdgecError (E0301) for caches of odd forms."""
    _cache(model, _layers(model))


def _layers(model: ir.Model) -> int:
    names = (v.name or "" for v in model.graph.inputs)
    return sum(name.startswith("past_key_values.") and name.endswith(".key") for name in names)


def _config(model: ir.Model, info: ModelInfo, context: int, filename: str, library: str) -> dict[str, Any]:
    names = [v.name or "" for v in model.graph.inputs]
    layers = _layers(model)
    heads, size = _cache(model, layers)
    hidden = _hidden(model)
    inputs = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in names}
    eos = list(info.eos_tokens)
    return {
        "model": {
            "bos_token_id": info.bos_token if info.bos_token is not None else (eos or [0])[0],
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": [],
                                    **({"custom_ops_library": library} if library else {})},
                "filename": filename, "head_size": size, "hidden_size": hidden,
                "inputs": inputs | {"past_key_names": f"{_PAST}key", "past_value_names": f"{_PAST}value"},
                "outputs": {"logits": "logits", "present_key_names": f"{_PRESENT}key",
                            "present_value_names": f"{_PRESENT}value"},
                "num_attention_heads": info.query_heads or _query_heads(model) or heads, "num_hidden_layers": layers,
                "num_key_value_heads": heads,
            },
            "eos_token_id": eos, "pad_token_id": (eos or [0])[0], "type": "decoder", "vocab_size": info.vocab_size,
        },
        # The graph returns its cache longer than it took it, so the two are never one buffer.
        "search": {"do_sample": False, "early_stopping": True, "max_length": context, "min_length": 0, "num_beams": 1,
                   "num_return_sequences": 1, "past_present_share_buffer": False, "repetition_penalty": 1.0,
                   "temperature": 1.0, "top_k": 1, "top_p": 1.0, "diversity_penalty": 0.0, "length_penalty": 1.0,
                   "no_repeat_ngram_size": 0},
    }


def _cache(model: ir.Model, layers: int) -> tuple[int, int]:
    """(heads, head size) of the caches, which must be those of every layer."""
    forms = {(dims_of(v) or ())[1::2] for v in model.graph.inputs if (v.name or "").startswith("past_key_values.")}
    form = next(iter(forms), ())
    if len(forms) != 1 or len(form) != 2 or not all(isinstance(d, int) for d in form) or not layers:
        raise EdgecError("E0301", stage="emit ort", where="past_key_values.*",
                         found=f"caches of {len(forms)} forms in {layers} layers",
                         wanted="one number of heads and one size of all layers, as onnxruntime-genai has",
                         hint="--backend native")
    return int(form[0] or 0), int(form[1] or 0)


def _query_heads(model: ir.Model) -> int:
    found = (int_attr(node, "q_num_heads", 0) for node in walk(model) if is_op(node, "Attention"))
    return next((n for n in found if n), 0)


def _hidden(model: ir.Model) -> int:
    """Width of the embedding: what the first lookup of token ids gives."""
    tokens = next(v for v in model.graph.inputs if v.name == "input_ids")
    for use in tokens.uses():
        dims = dims_of(use.node.outputs[0]) if rank_of(use.node.outputs[0]) == 3 else None
        if dims is not None and isinstance(dims[2], int):
            return dims[2]
    return 0
