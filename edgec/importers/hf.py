"""The Hugging Face door: a folder (config.json, *.safetensors, tokenizer.json), or a hub id that names one.

Causal language models are read here, all others in edgec.importers.hf_parts. Two routes lead to the graph: mobius
builds it from the configuration, and torch.export traces the transformers module. Whatever a route builds is compared
with transformers (edgec.importers.hf_check); the first that agrees wins, and when none does the import fails with the
figures of both. Nothing here runs the folder's code, and only edgec.importers.hub opens the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError, missing_extra
from edgec.importers import hf_check, hf_parts, hf_trace
from edgec.importers.hf_folder import Folder, read_json
from edgec.importers.hf_source import open_source
from edgec.importers.hf_transformers import is_causal_lm, offline, read_config
from edgec.importers.packed import Packed, attach, packed_of
from edgec.importers.stored import Held, Placeholders, Stored, lazy_float
from edgec.importers.torch import Dynamic, keep_module_paths, quiet
from edgec.ir.info import ModelInfo, attach_info

STAGE = "import"
ROUTE_KEY = "edgec.import_route"
# Tensors that old checkpoints store and every implementation computes.
_DERIVED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")


def load(source: str, *, name: str | None = None, check: bool = True, dynamic: Dynamic | None = None,
         allow_pickle: bool = False, hollow: bool = False) -> ir.Model:
    """Imports FOLDER or a hub id, with :PART of a model that is several networks (edgec.importers.hf_parts).

    Of causal language models weights stay in their files until a pass or the emitter reads them.
    Inputs: input_ids INT64 [batch, sequence], position_ids, attention_mask (of the mobius route), and per layer
    past_key_values.i.{key,value} [batch, Hkv, past, D]. Outputs: logits, then present.i.{key,value}.
    Other models: see hf_parts; `dynamic` is for them alone.
    hollow: from configuration and headers alone, to be looked at: no weight is read, and nothing is compared.
    Raises EdgecError: E0002, E0003, E0005, E0101, E0102, E0103, and E0104 when no route gives a graph that agrees with
    transformers.
    """
    folder, part = open_source(source, allow_pickle=allow_pickle)
    folder, check = replace(folder, hollow=hollow), check and not hollow
    failures: list[str] = []
    differs = False
    with offline(), quiet():
        if not is_causal_lm(folder):
            model = hf_parts.load(folder, part, name=name, check=check, dynamic=dynamic)
            model.metadata_props[ROUTE_KEY] = "torch"
            return model
        if part:
            raise EdgecError("E0002", stage=STAGE, where=f"part {part!r}", found="a language model of one network",
                             wanted=source.removesuffix(f":{part}"), hint="name it without :PART")
        if dynamic:
            raise EdgecError("E0002", stage=STAGE, where=f"--dynamic {', '.join(dynamic)}",
                             found="a language model, which takes any number of tokens up to its context",
                             wanted="no ranges of axes",
                             hint="leave --dynamic out; --ctx N limits the tokens of a session")
        config = read_config(folder)
        for route, build in (("mobius", build_with_mobius), ("torch", build_by_tracing)):
            try:
                model = build(folder, config)
                if check:
                    hf_check.verify(model, folder, config, build)
            except EdgecError as e:
                if e.code not in ("E0005", "E0102", "E0103", "E0104"):  # the files or the machine, not the route
                    raise
                differs = differs or e.code == "E0104"
                failures.append(f"{route}: {e.found or e.code}")
                continue
            model.metadata_props[ROUTE_KEY] = route
            info = _info(folder, config, name)
            model.graph.name = info.name  # mobius puts the path of the folder there
            model.meta["edgec.files"] = folder.keep  # the tokenizer's file goes with it
            return attach_info(model, info)
    raise EdgecError("E0104" if differs else "E0103", stage=STAGE, where=folder.source, found="; ".join(failures),
                     wanted="a graph whose logits equal those of transformers",
                     hint="please report the model's config.json with this message")


def build_with_mobius(folder: Folder, config: Any) -> ir.Model:
    """The graph that mobius builds for the configuration, with weights mapped from the folder.

    Raises EdgecError E0103 when mobius cannot build it or its parameters and the files' do not match.
    """
    try:
        import mobius
    except ImportError as e:
        raise missing_extra("hf", "mobius", STAGE) from e

    kind = config.model_type
    built: list[Any] = []
    try:
        family = mobius.registry.get(kind)

        # Only the instance knows how the files' tensors map to its parameters, and build() does not return it.
        class Recorded(family):  # type: ignore[misc, valid-type]
            def __init__(self, settings: Any) -> None:
                super().__init__(settings)
                built.append(self)

        Recorded.__name__ = Recorded.__qualname__ = family.__name__
        package = mobius.build(str(folder.path), task="text-generation", dtype="f32", load_weights=False,
                               module_class=Recorded, trust_remote_code=False)
        if list(package) != ["model"]:
            raise ValueError(f"it consists of {', '.join(package)}")
        model: ir.Model = package["model"]
        state = _rearranged(getattr(built[0], "preprocess_weights", dict), folder)
    except EdgecError:
        raise
    except Exception as e:
        raise EdgecError("E0103", stage=STAGE, where=str(folder.path),
                         found=f"mobius cannot build {kind}: {type(e).__name__}: {str(e)[:300]}") from e
    _assign(model, state, folder)
    keep_module_paths(model)
    return model


def build_by_tracing(folder: Folder, config: Any) -> ir.Model:
    """The graph that torch.export traces; quantized weights stay packed where they are used as they are stored."""
    model = hf_trace.build(folder, config)
    packed = {name: t for name, t in (folder.tensors or {}).items() if isinstance(t, Packed)}
    known = {name: v.shape for name, v in model.graph.initializers.items() if v.shape is not None}
    attach(model, {k: t for k, t in packed.items() if k in known and tuple(known[k].numpy()) == t.shape})
    return model


def _rearranged(change: Callable[[dict[str, Any]], dict[str, Any]], folder: Folder) -> dict[str, Stored]:
    """The checkpoint after mobius renamed, cut and turned its tensors.

    Done with placeholders first, so that nothing is read. Where mobius computes with values it gets them, mapped.
    """
    stored = folder.stored()
    held = Placeholders(stored)
    try:
        origins = {name: held.origin(t) for name, t in change(dict(held.state)).items()}
    except (RuntimeError, NotImplementedError):  # what torch says of values that are not there
        origins = {"": None}
    found = {name: t for name, t in origins.items() if t is not None}
    if len(found) == len(origins):
        return found
    if any(isinstance(t, Packed) for t in stored.values()):
        raise ValueError("it computes with weights that are quantized here")
    return {name: Held(t) for name, t in change(folder.state()).items()}


def _assign(model: ir.Model, state: dict[str, Stored], folder: Folder) -> None:
    """Gives every empty initializer its tensor; every tensor of the files must have found its place."""
    parameters = model.graph.initializers
    missing = [k for k, v in parameters.items() if v.const_value is None and k not in state]
    spare = [k for k in state if k not in parameters and not k.endswith(_DERIVED)]
    if folder.config.get("tie_word_embeddings"):
        spare = [k for k in spare if k != "lm_head.weight"]
    wrong = [f"{k} {list(state[k].shape)}" for k, v in parameters.items()
             if k in state and v.shape is not None and tuple(state[k].shape) != tuple(v.shape.numpy())]
    for what, names in (("no weights for", missing), ("no place for", spare), ("another shape for", wrong)):
        if names:
            raise EdgecError("E0103", stage=STAGE, where=str(folder.path),
                             found=f"{what} {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}")
    matrices: dict[str, Packed] = {}
    for key, value in list(parameters.items()):
        if value.const_value is None:
            value.const_value = lazy_float(state[key], key)
            matrix = packed_of(state[key])
            if matrix is not None:
                matrices[key] = matrix
    attach(model, matrices)


def _info(folder: Folder, config: Any, name: str | None) -> ModelInfo:
    generation = folder.path / "generation_config.json"
    settings = {**folder.config, **(read_json(generation) if generation.is_file() else {})}

    def tokens(key: str) -> tuple[int, ...]:
        value = settings.get(key, getattr(config, key, None))
        values = value if isinstance(value, list) else [value]
        return tuple(v for v in values if isinstance(v, int) and 0 <= v < config.vocab_size)

    tied = folder.config.get("tie_word_embeddings")
    sizes = [math.prod(t.shape) for name, t in folder.stored().items()
             if not name.endswith(_DERIVED) and not (tied and name == "lm_head.weight")]
    bos = tokens("bos_token_id")
    tokenizer = folder.path / "tokenizer.json"
    return ModelInfo(
        task="causal-lm", name=name or folder.name, source=folder.source,
        hash_source=folder.sha256, max_context=int(config.max_position_embeddings),
        query_heads=int(getattr(config, "num_attention_heads", 0) or 0),
        vocab_size=int(config.vocab_size), bos_token=bos[0] if bos else None, eos_tokens=tokens("eos_token_id"),
        tokenizer=tokenizer.resolve() if tokenizer.is_file() else None, parameters=sum(sizes),
    )
