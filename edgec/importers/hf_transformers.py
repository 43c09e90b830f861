"""transformers as the Hugging Face door uses it: offline, in float32, and never with code from a model folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from edgec.errors import EdgecError, missing_extra
from edgec.importers.hf_folder import Folder

STAGE = "import"
_LARGEST = 1 << 24


def is_causal_lm(folder: Folder) -> bool:
    """By the class that config.json names, else by its family, where a family of encoders is none."""
    auto = library().models.auto.modeling_auto
    if folder.config.get("is_encoder_decoder"):
        return False
    if folder.architecture:
        return folder.architecture in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    kind = folder.config["model_type"]
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def read_config(folder: Folder) -> Any:
    """The transformers configuration object; E0103 when this transformers does not know the family."""
    transformers = library()
    where = str(folder.path / "config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as e:
        raise EdgecError("E0103", stage=STAGE, where=where,
                         found=f"{folder.config['model_type']}: {type(e).__name__}: {str(e)[:300]}",
                         wanted="a family that transformers has built in") from e
    # Tables are as long as these say, before any weight has been looked at.
    for key in ("max_position_embeddings", "vocab_size"):
        value = getattr(config, key, None)
        if value is None and not is_causal_lm(folder):
            continue
        if not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise EdgecError("E0103", stage=STAGE, where=where, found=f"{key} = {value!r}",
                             wanted=f"{key} in 1..{_LARGEST}")
    # A graph as long as this says would be built before its weights are missed.
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > (count := len(folder.stored())):
        raise EdgecError("E0101", stage=STAGE, where=where, found=f"num_hidden_layers = {layers}",
                         wanted=f"no more layers than tensors, {count}")
    return config


def load_transformers(folder: Folder, config: Any, attention: str) -> Any:
    """The transformers module in float32 and eval mode; `attention` names its attention implementation.

    Of a hollow folder its weights are stand-ins that take no memory.
    Raises EdgecError E0103 when transformers cannot load it, E0101 when the files lack tensors of the model.
    """
    transformers = library()
    import torch

    if folder.tensors is not None:
        return _with_tensors(folder, config, attention)
    auto: Any = transformers.AutoModelForCausalLM if is_causal_lm(folder) else transformers.AutoModel
    weights = {"state_dict": folder.state()} if folder.hollow else {"use_safetensors": True}
    try:
        module, report = (getattr(transformers, folder.architecture, None) or auto).from_pretrained(
            None if folder.hollow else folder.path, config=config, dtype=torch.float32, attn_implementation=attention,
            local_files_only=True, trust_remote_code=False, output_loading_info=True, **weights,
        )
    except Exception as e:
        raise EdgecError("E0103", stage=STAGE, where=str(folder.path),
                         found=f"transformers cannot load it: {type(e).__name__}: {str(e)[:300]}") from e
    # transformers fills what is missing with random numbers and only warns.
    absent = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if absent:
        raise EdgecError("E0101", stage=STAGE, where=str(folder.path),
                         found=f"tensors missing or of another shape: {', '.join(absent[:5])}",
                         wanted=f"all weights of {config.model_type}")
    return module.eval()


def _with_tensors(folder: Folder, config: Any, attention: str) -> Any:
    """The transformers module with the tensors of the folder, dense; raises EdgecError as load_transformers."""
    import torch

    transformers = library()
    family = getattr(transformers, folder.architecture, None) or transformers.AutoModelForCausalLM
    make: Any = getattr(family, "_from_config", None) or family.from_config
    try:
        module = make(config, dtype=torch.float32, attn_implementation=attention)
        loaded = module.load_state_dict(folder.state(), strict=False, assign=True)
        module.tie_weights()
    except Exception as e:
        raise EdgecError("E0103", stage=STAGE, where=str(folder.origin or folder.path),
                         found=f"transformers cannot load it: {type(e).__name__}: {str(e)[:300]}") from e
    absent = [k for k in loaded.missing_keys if not (config.tie_word_embeddings and k == "lm_head.weight")]
    if absent:
        raise EdgecError("E0101", stage=STAGE, where=str(folder.origin or folder.path),
                         found=f"tensors missing or of another shape: {', '.join(absent[:5])}",
                         wanted=f"all weights of {config.model_type}")
    return module.eval()


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """No network for the libraries used here, whatever the environment says."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {n: os.environ.get(n) for n in names}
    os.environ.update(dict.fromkeys(names, "1"))
    transformers = library()
    import huggingface_hub.constants as hub

    # The hub library reads the variable once, when it is imported, which may have been long ago.
    online, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = online
        if bars:
            transformers.utils.logging.enable_progress_bar()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def library() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise missing_extra("hf", "transformers", STAGE) from e
    return transformers
