"""The Hugging Face door: a folder (config.json, *.safetensors, tokenizer.json), or a hub id that names one.

Causal language models are read here, all others in edgec.importers.hf_parts. Two routes lead to the graph: mobius
builds it from the configuration, and torch.export traces the transformers module. Whatever a route builds is compared
with transformers (edgec.importers.hf_check); the first that agrees wins, and when none does the import fails with the
figures of both. Nothing here runs the folder's code, and only edgec.importers.hub opens the network.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError, missing_extra
from edgec.importers import hub
from edgec.importers.packed import Packed, attach, packed_of
from edgec.importers.stored import Held, Placeholders, Stored, lazy_float, open_safetensors
from edgec.importers.torch import Dynamic, keep_module_paths, quiet
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.weights import sha256_of

STAGE = "import"
ROUTE_KEY = "edgec.import_route"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_LARGEST = 1 << 24
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Tensors that old checkpoints store and every implementation computes.
_DERIVED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")


@dataclass(frozen=True)
class Folder:
    """A model folder that has been looked at: its configuration as written and its weight files, links resolved.

    Checkpoints that are not plain safetensors (edgec.importers.hf_source) have their `tensors` here under the names
    that transformers uses; path is then a temporary folder, alive as long as `keep`, and origin the user's.
    label: ORG/NAME@COMMIT of a model of the hub.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: dict[str, Stored] | None = None
    origin: Path | None = None
    keep: object = None
    label: str = ""

    @classmethod
    def read(cls, path: Path, *, allow_pickle: bool = False) -> Folder:
        """Raises EdgecError: E0101 for what cannot be read or is not plain data, E0103 for quantized weights."""
        from edgec.importers import hf_source

        if path.is_file():
            return hf_source.from_gguf(path)
        config, where = _json(path / "config.json"), str(path / "config.json")
        if not isinstance(config.get("model_type"), str):
            raise EdgecError("E0101", stage=STAGE, where=where, found="no model_type",
                             wanted="the config.json of a Hugging Face model")
        if "auto_map" in config:
            raise EdgecError("E0101", stage=STAGE, where=where, found="auto_map: the model is code in the folder",
                             wanted="an architecture that transformers has built in",
                             hint="code from model folders is never run")
        if "quantization_config" in config:
            return hf_source.from_quantized(path, config, tuple(_weight_files(path)))
        if allow_pickle and not ((path / _SINGLE).is_file() or (path / _INDEX).is_file()):
            unpickled = hf_source.from_pickles(path, config)
            if unpickled is not None:
                return unpickled
        return cls(path, config, tuple(_weight_files(path)))

    @property
    def architecture(self) -> str:
        """The transformers class that config.json names, "" for none."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @property
    def name(self) -> str:
        """What the model is called that nobody named: as the hub calls it, or as its folder or file."""
        return self.label.partition("@")[0].rpartition("/")[2] or _name_of(self.origin or self.path)

    @property
    def source(self) -> str:
        return self.label or str(self.origin or self.path)

    def sha256(self) -> str:
        """Of the weight file, or of the names and hashes of several."""
        import hashlib

        if len(self.weights) == 1:
            return sha256_of(self.weights[0])
        lines = "".join(f"{w.name} {sha256_of(w)}\n" for w in self.weights)
        return hashlib.sha256(lines.encode()).hexdigest()

    def stored(self) -> dict[str, Stored]:
        """The checkpoint's tensors, none of them read."""
        if self.tensors is not None:
            return dict(self.tensors)
        return {name: tensor for file in self.weights for name, tensor in open_safetensors(file).items()}

    def state(self) -> dict[str, Any]:
        """name -> torch tensor. Over the mapped file where that holds them plainly: nothing is read until a tensor's
        values are."""
        import safetensors
        import torch

        if self.tensors is not None:
            return {name: torch.from_numpy(np.array(t.read())) for name, t in self.tensors.items()}
        tensors: dict[str, Any] = {}
        for file in self.weights:
            try:
                with safetensors.safe_open(file, framework="pt") as opened:
                    names: list[str] = opened.keys()
                    tensors.update({key: opened.get_tensor(key) for key in names})
            except Exception as e:
                raise _unreadable(file, e) from e
        return tensors


def load(source: str, *, name: str | None = None, check: bool = True, dynamic: Dynamic | None = None,
         allow_pickle: bool = False) -> ir.Model:
    """Imports FOLDER or a hub id, with :PART of a model that is several networks (edgec.importers.hf_parts).

    Of causal language models weights stay in their files until a pass or the emitter reads them.
    Inputs: input_ids INT64 [batch, sequence], position_ids, attention_mask (of the mobius route), and per layer
    past_key_values.i.{key,value} [batch, Hkv, past, D]. Outputs: logits, then present.i.{key,value}.
    Other models: see hf_parts; `dynamic` is for them alone.
    Raises EdgecError: E0002, E0003, E0005, E0101, E0102, E0103, and E0104 when no route gives a graph that agrees with
    transformers.
    """
    from edgec.importers import hf_check, hf_parts

    folder, part = open_source(source, allow_pickle=allow_pickle)
    failures: list[str] = []
    differs = False
    with offline(), quiet():
        if not is_causal_lm(folder):
            return hf_parts.load(folder, part, name=name, check=check, dynamic=dynamic)
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


def open_source(source: str, *, allow_pickle: bool = False) -> tuple[Folder, str]:
    """(folder, part) of FOLDER, FOLDER:PART, FILE.gguf or a hub id. Raises EdgecError as Folder.read and hub.fetch."""
    model = hub.parse(source)
    if model is None:
        path, part = split_part(source)
        return Folder.read(path, allow_pickle=allow_pickle), part
    path = hub.fetch(model, allow_pickle=allow_pickle)
    return replace(Folder.read(path, allow_pickle=allow_pickle), label=f"{model.repository}@{path.name}"), model.part


def split_part(source: str) -> tuple[Path, str]:
    """FOLDER or FOLDER:PART as (folder, part); a folder whose name has a colon is that folder."""
    folder, colon, part = source.rpartition(":")
    return (Path(folder), part) if colon and not Path(source).exists() else (Path(source), "")


def is_causal_lm(folder: Folder) -> bool:
    """By the class that config.json names, else by its family, where a family of encoders is none."""
    auto = _transformers().models.auto.modeling_auto
    if folder.config.get("is_encoder_decoder"):
        return False
    if folder.architecture:
        return folder.architecture in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    kind = folder.config["model_type"]
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def read_config(folder: Folder) -> Any:
    """The transformers configuration object; E0103 when this transformers does not know the family."""
    transformers = _transformers()
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
    from edgec.importers import hf_trace

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


def load_transformers(folder: Folder, config: Any, attention: str) -> Any:
    """The transformers module in float32 and eval mode; `attention` names its attention implementation.

    Raises EdgecError E0103 when transformers cannot load it, E0101 when the files lack tensors of the model.
    """
    transformers = _transformers()
    import torch

    if folder.tensors is not None:
        return _with_tensors(folder, config, attention)
    auto: Any = transformers.AutoModelForCausalLM if is_causal_lm(folder) else transformers.AutoModel
    try:
        module, report = (getattr(transformers, folder.architecture, None) or auto).from_pretrained(
            folder.path, config=config, dtype=torch.float32, attn_implementation=attention, local_files_only=True,
            trust_remote_code=False, use_safetensors=True, output_loading_info=True,
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

    transformers = _transformers()
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
    transformers = _transformers()
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


def _info(folder: Folder, config: Any, name: str | None) -> ModelInfo:
    generation = folder.path / "generation_config.json"
    settings = {**folder.config, **(_json(generation) if generation.is_file() else {})}

    def tokens(key: str) -> tuple[int, ...]:
        value = settings.get(key, getattr(config, key, None))
        values = value if isinstance(value, list) else [value]
        return tuple(v for v in values if isinstance(v, int) and 0 <= v < config.vocab_size)

    bos = tokens("bos_token_id")
    tokenizer = folder.path / "tokenizer.json"
    return ModelInfo(
        task="causal-lm", name=name or folder.name, source=folder.source,
        source_sha256=folder.sha256(), max_context=int(config.max_position_embeddings),
        vocab_size=int(config.vocab_size), bos_token=bos[0] if bos else None, eos_tokens=tokens("eos_token_id"),
        tokenizer=tokenizer.resolve() if tokenizer.is_file() else None,
    )


def _name_of(source: Path) -> str:
    """Its folder's name, or its file's without the suffix.

    Without control characters: the name goes into the manifest and onto terminals.
    """
    name = source.resolve().stem if source.is_file() else source.resolve().name
    return "".join(c if c.isprintable() else "?" for c in name)


def _weight_files(path: Path) -> list[Path]:
    if (path / _INDEX).is_file():
        index = _json(path / _INDEX).get("weight_map")
        names = sorted({str(v) for v in index.values()}) if isinstance(index, dict) else []
        if not names:
            raise EdgecError("E0101", stage=STAGE, where=str(path / _INDEX), found="no weight_map",
                             wanted="a map from tensors to files")
        for name in names:
            if name != Path(name).name or name in ("", ".", ".."):
                raise EdgecError("E0101", stage=STAGE, where=str(path / _INDEX), found=f"shard {name!r}",
                                 wanted="file names inside the folder")
    elif (path / _SINGLE).is_file():
        names = [_SINGLE]
    else:
        others = sorted(p.name for p in path.iterdir() if p.suffix in _OTHER_WEIGHTS)
        raise EdgecError(
            "E0101", stage=STAGE, where=str(path), wanted=f"{_SINGLE} or {_INDEX}",
            found=f"weights only as {', '.join(others[:4])}" if others else "no weights",
            hint="convert them with transformers: save_pretrained(..., safe_serialization=True); or --allow-pickle, if "
                 "torch's restricted reader of pickles is enough for you" if others else "",
        )
    files = [path / name for name in names]
    for file in files:
        if not file.is_file():
            raise EdgecError("E0101", stage=STAGE, where=str(file), found="a shard that the index names is missing",
                             wanted="all shards", hint="a link to a file that is gone looks like this too")
        _check_header(file.resolve())
    return [file.resolve() for file in files]


def _check_header(file: Path) -> None:
    """Opens a safetensors file, which checks its header against its length."""
    import safetensors

    try:
        with safetensors.safe_open(file, framework="np") as opened:
            if not list(opened.keys()):
                raise ValueError("it holds no tensors")
    except Exception as e:
        raise _unreadable(file, e) from e


def _unreadable(file: Path, error: Exception) -> EdgecError:
    return EdgecError("E0101", stage=STAGE, where=str(file), found=str(error)[:300],
                      wanted="a complete safetensors file", hint="copy or download the file again")


def _constant(word: str) -> float:
    """Some configurations hold infinite limits; a NaN would only make NaNs."""
    if word == "NaN":
        raise ValueError("it holds a NaN")
    return float(word)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_constant)
    except OSError as e:
        raise EdgecError("E0003", stage=STAGE, where=str(path), found=str(e), wanted="a readable file") from e
    except ValueError as e:
        raise EdgecError("E0101", stage=STAGE, where=str(path), found=f"not JSON: {e}", wanted="a JSON object") from e
    if not isinstance(data, dict):
        raise EdgecError("E0101", stage=STAGE, where=str(path), found=f"a JSON {type(data).__name__}",
                         wanted="a JSON object")
    return data


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise missing_extra("hf", "transformers", STAGE) from e
    return transformers
