"""Hugging Face models that are not causal language models: encoders of text, images and sound, and pairs of networks.

Such a model becomes one graph without memory, traced from the transformers class that config.json names. Pairs are
imported one network at a time, as FOLDER:PART:

    one network                input_ids (and token_type_ids), pixel_values, input_values or input_features
    encoder-decoder            :encoder  input_ids or input_features -> last_hidden_state
                               :decoder  input_ids, encoder_hidden_states -> logits, of all tokens so far
    text and image (CLIP)      :text     input_ids -> text_embeds
                               :vision   pixel_values -> image_embeds

There is no attention mask: the batch is 1 (`dynamic` may widen it) and sequences are not padded. Token ids come from
outside: a bundle has a tokenizer only when it generates text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError, did_you_mean
from edgec.importers import torch as door
from edgec.importers.hf_folder import Folder
from edgec.importers.hf_trace import drop_wrapper_scope
from edgec.importers.hf_transformers import load_transformers, read_config
from edgec.ir.info import ModelInfo, attach_info

STAGE = "import"
_NO_CACHE = ("a decoder without a key/value cache: it is given all tokens so far, and each step computes all of them, "
             "and the keys and values of the encoder's states, anew")
_ATTENTION = "edgec_part"
# Lengths during the trace: different from each other and from every size that is likely in a model.
_TOKENS, _SOURCE_TOKENS, _FRAMES = 11, 13, 19
# Where the configuration gives no longest sequence (T5), and the longest sound: ten seconds.
_LONGEST_TEXT, _LONGEST_SOUND = 512, 160_000
_WINDOWS = ("sliding_window", "local_attention", "attention_chunk_size")


@dataclass(frozen=True)
class Input:
    """An example tensor and its axes that vary: axis -> (name, smallest, largest)."""

    example: Any
    axes: Mapping[int, tuple[str, int, int]]


@dataclass(frozen=True)
class Part:
    """One graph of a model. inputs: of the loaded module. forward: (module, tensors by name) -> a mapping."""

    name: str
    inputs: Callable[[Any], dict[str, Input]]
    forward: Callable[[Any, dict[str, Any]], Mapping[str, Any]]


def parts_of(module: Any) -> tuple[Part, ...]:
    """The graphs that a loaded transformers module consists of. Raises EdgecError E0103 for none that is known."""
    config = module.config
    if config.is_encoder_decoder:
        return (Part("encoder", _main_input, _encode), Part("decoder", _decoder_inputs, _decode))
    if hasattr(module, "get_text_features") and hasattr(module, "get_image_features"):
        return (Part("text", _text_tower_inputs, _text_tower), Part("vision", _image_tower_inputs, _image_tower))
    return (Part("", _main_input, _whole),)


def choose(module: Any, wanted: str, where: str) -> Part:
    """The part called `wanted`; E0002 when the model has no such part, or several and none was named."""
    parts = {p.name: p for p in parts_of(module)}
    if wanted in parts:
        return parts[wanted]
    if "" in parts:
        raise EdgecError("E0002", stage=STAGE, where=f"part {wanted!r}", found=f"{type(module).__name__}, one network",
                         wanted=f"{where}, without a part")
    listed = " or ".join(f"{where}:{name}" for name in parts)
    raise EdgecError("E0002", stage=STAGE, where=where, wanted=listed,
                     found=f"part {wanted!r}" if wanted else f"{type(module).__name__}, which is two networks",
                     hint=did_you_mean(wanted, parts) if wanted else "compile each of them to a bundle of its own")


def load(folder: Folder, part: str, *, name: str | None = None, check: bool = True,
         dynamic: door.Dynamic | None = None) -> ir.Model:
    """Imports a part ("" for the only one) of `folder`.

    dynamic: as edgec.importers.torch.load; it is joined with the axes that vary anyway and replaces their ranges.
    Raises EdgecError: E0002, E0101, E0102 untraceable, E0103, E0104 when the graph and transformers differ.
    """
    import torch

    _register_attention()
    module = load_module(folder, _ATTENTION)
    chosen = choose(module, part, str(folder.path))
    inputs = chosen.inputs(module)
    name = name or "-".join(filter(None, (folder.name, part)))
    wrapped = wrap(module, chosen)
    model = door.load(wrapped, {k: i.example for k, i in inputs.items()}, dynamic=_joined(inputs, dynamic or {}),
                      name=name, source=folder.source, check=False, trusted="input_values" in inputs)
    drop_wrapper_scope(model)
    if check:
        # Compared with transformers' own attention, not with the one that was traced.
        module.set_attn_implementation("eager")
        call = door.Call.bind(wrapped, {k: i.example for k, i in inputs.items()}, _joined(inputs, dynamic or {}))
        with torch.no_grad():
            # Beyond a window, on both sides of a token, its mask shows.
            door.compare(model, wrapped, call, str(module.config.model_type), 2 * _window(module.config.to_dict()) + 9)
    traced: ModelInfo = model.meta["edgec.info"]
    return attach_info(model, ModelInfo(name=name, source=folder.source, hash_source=folder.sha256,
                                        dynamic=traced.dynamic, notes=(_NO_CACHE,) if chosen.name == "decoder" else ()))


def reference(folder: Folder, part: str) -> tuple[Any, dict[str, Any]]:
    """(module, example tensors) of a part as transformers computes it."""
    module = load_module(folder, "eager")
    chosen = choose(module, part, str(folder.path))
    return wrap(module, chosen), {k: i.example for k, i in chosen.inputs(module).items()}


def load_module(folder: Folder, attention: str) -> Any:
    """The class that config.json names, in float32 and eval mode, without weight norms in the way of constants."""
    module = load_transformers(folder, read_config(folder), attention)
    _fold_parametrizations(module)
    return module


def wrap(module: Any, part: Part) -> Any:
    """A module with the part's inputs as keyword parameters, which returns a mapping to tensors."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, **tensors: Any) -> dict[str, Any]:
            return _tensors(part.forward(self.model, tensors))

    # torch.export assigns dynamic sizes to parameters, and **tensors is only one.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ("self", *part.inputs(module))
    forward: Any = Wrapped.forward
    forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])
    return Wrapped().eval()


def _tensors(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a transformers output; what the decoder was given comes back in it too and is left out."""
    import torch

    return {k: v for k, v in outputs.items() if isinstance(v, torch.Tensor) and not k.startswith("encoder_")}


def _joined(inputs: Mapping[str, Input], dynamic: door.Dynamic) -> dict[str, dict[int, tuple[str, int, int]]]:
    """The part's own ranges and the user's: a range of the user's holds wherever that dim's name stands."""
    axes = {key: dict(i.axes) for key, i in inputs.items() if i.axes}
    for key, ranges in dynamic.items():
        for axis, wanted in ranges.items():
            own = axes.get(key, {}).get(axis)
            low, high = wanted[-2], wanted[-1]
            name = own[0] if own else str(wanted[0]) if len(wanted) == 3 else f"{key}_{axis}"
            axes.setdefault(key, {})[axis] = (name, int(low), int(high))
            for other in axes.values():
                other.update({a: (name, int(low), int(high)) for a, dim in other.items() if dim[0] == name})
    return axes


def _window(config: Mapping[str, Any]) -> int:
    """The widest window of attention that a configuration, or one inside it, speaks of; 0 for none."""
    inner = [_window(v) for v in config.values() if isinstance(v, Mapping)]
    return max([v for k, v in config.items() if k in _WINDOWS and isinstance(v, int)] + inner, default=0)


def _fold_parametrizations(module: Any) -> None:
    """Replaces weights that are computed at each call (weight norm) by their values."""
    from torch.nn.utils import parametrize

    for child in module.modules():
        if parametrize.is_parametrized(child):
            for key in list(child.parametrizations):
                parametrize.remove_parametrizations(child, key, leave_parametrized=True)


# -- inputs ----------------------------------------------------------------------------------------------------------


def _main_input(module: Any) -> dict[str, Input]:
    """By the name of what forward takes first."""
    make = {"input_ids": _text_inputs, "pixel_values": _image_inputs, "input_values": _sound_inputs,
            "input_features": _spectrum_inputs}.get(module.main_input_name)
    if make is None:
        raise EdgecError("E0103", stage=STAGE, where=str(module.config.model_type),
                         found=f"a model that reads {module.main_input_name}",
                         wanted="input_ids, pixel_values, input_values or input_features")
    return make(module)


def _ids(count: int, config: Any) -> Any:
    """Token ids [1, count], none of them one that a model may treat as padding."""
    import torch

    first = 1 + max((t for t in (config.pad_token_id, 0) if isinstance(t, int)), default=0)
    return torch.arange(first, first + count)[None] % config.vocab_size


def _positions_before(module: Any) -> int:
    """Learned positions that stand before the first token's: RoBERTa and its kin count from padding_idx + 1."""
    for child in module.modules():
        padding = getattr(getattr(child, "position_embeddings", None), "padding_idx", None)
        if padding is not None:
            return int(padding) + 1
    return 0


def _longest_text(module: Any) -> int:
    config = module.config
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(longest or _LONGEST_TEXT) - _positions_before(module)


def _text_inputs(module: Any) -> dict[str, Input]:
    import torch

    config, axes = module.config, {1: ("seq", 1, _longest_text(module))}
    ids = _ids(min(_TOKENS, _longest_text(module)), config)
    inputs = {"input_ids": Input(ids, axes)}
    if (getattr(config, "type_vocab_size", None) or 0) > 1:
        inputs["token_type_ids"] = Input((torch.arange(ids.shape[1]) >= ids.shape[1] // 2).long()[None], axes)
    return inputs


def _image_inputs(module: Any) -> dict[str, Input]:
    import torch

    size = getattr(module.config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": Input(torch.randn(1, module.config.num_channels, height, width, generator=generator), {})}


def _sound_inputs(module: Any) -> dict[str, Input]:
    import torch

    shortest = 2  # frames: torch.export takes one frame for a constant
    for kernel, stride in zip(reversed(module.config.conv_kernel), reversed(module.config.conv_stride), strict=True):
        shortest = (shortest - 1) * stride + kernel
    step = 1
    for stride in module.config.conv_stride:
        step *= stride
    count = shortest + step * (_FRAMES - 1)
    axes = {1: ("samples", shortest, max(_LONGEST_SOUND, count))}
    return {"input_values": Input(torch.randn(1, count, generator=torch.Generator().manual_seed(0)), axes)}


def _spectrum_inputs(module: Any) -> dict[str, Input]:
    """Whisper: every spectrum has the same length."""
    import torch

    config = module.config
    shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": Input(torch.randn(shape, generator=torch.Generator().manual_seed(0)), {})}


def _decoder_inputs(module: Any) -> dict[str, Input]:
    import torch

    config = module.config
    longest = int(getattr(config, "max_target_positions", None) or _longest_text(module))
    if module.main_input_name == "input_ids":
        source, axes = _SOURCE_TOKENS, {1: ("source", 1, _longest_text(module))}
    else:
        source, axes = int(config.max_source_positions), {}
    states = torch.randn(1, source, config.hidden_size, generator=torch.Generator().manual_seed(0))
    return {"input_ids": Input(_ids(min(_TOKENS, longest), config), {1: ("seq", 1, longest)}),
            "encoder_hidden_states": Input(states, axes)}


def _text_tower_inputs(module: Any) -> dict[str, Input]:
    config = module.config.text_config
    longest = int(config.max_position_embeddings)
    return {"input_ids": Input(_ids(min(_TOKENS, longest), config), {1: ("seq", 1, longest)})}


def _image_tower_inputs(module: Any) -> dict[str, Input]:
    return _image_inputs(module.vision_model)


# -- calls -----------------------------------------------------------------------------------------------------------


def _whole(module: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
    before = _positions_before(module)
    if before:
        import torch

        # transformers counts the tokens that are not padding; here all of them are not.
        count = tensors["input_ids"].shape[1]
        tensors = {**tensors, "position_ids": torch.arange(before, before + count)[None]}
    result: Mapping[str, Any] = module(**tensors, return_dict=True)
    return result


def _encode(module: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
    result: Mapping[str, Any] = module.get_encoder()(**tensors, return_dict=True)
    return result


def _decode(module: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
    from transformers.modeling_outputs import BaseModelOutput

    result: Mapping[str, Any] = module(
        encoder_outputs=BaseModelOutput(last_hidden_state=tensors["encoder_hidden_states"]),
        decoder_input_ids=tensors["input_ids"], use_cache=False, return_dict=True,
    )
    return result


def _text_tower(module: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
    return {"text_embeds": module.get_text_features(**tensors).pooler_output}


def _image_tower(module: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
    return {"image_embeds": module.get_image_features(**tensors).pooler_output}


# -- attention -------------------------------------------------------------------------------------------------------


def _register_attention() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attention)


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
               scaling: float | None = None, is_causal: bool | None = None, position_bias: Any = None,
               sliding_window: int | None = None, **rest: Any) -> tuple[Any, None]:
    """transformers' attention interface. query [B, H, T, D], key and value [B, Hkv, S, D] -> [B, T, H, D].

    transformers makes no masks for an implementation that it does not know, so a mask that comes is the model's own.
    """
    import torch

    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    mask = position_bias
    if attention_mask is not None:
        mask = attention_mask if mask is None else mask + attention_mask
    if causal or sliding_window:
        row, column = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None]
        reach = sliding_window or 0
        visible = column <= row if causal else column < row + reach
        if reach:
            visible = visible & (column > row - reach)
        mask = visible[None, None] if mask is None else torch.where(visible, mask, torch.finfo(query.dtype).min)
    result = torch.onnx.ops.attention(query, key, value, mask, scale=scaling, softcap=rest.get("softcap") or 0.0)[0]
    return result.transpose(1, 2).contiguous(), None
