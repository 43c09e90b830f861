"""The second route of the Hugging Face door: trace the transformers module with torch.export.

The module runs with an attention implementation of ours, which becomes one ONNX Attention node per layer over
Concat(past, new), with a mask written from positions. It works for every decoder that calls transformers' attention
interface; a family that does something else in its attention differs in the import check and is refused there.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.importers.hf_folder import Folder
from edgec.importers.hf_transformers import load_transformers
from edgec.importers.torch import rename_symbols, to_ir
from edgec.ir.model import walk

STAGE = "import"
_ATTENTION = "edgec_export"
# Sizes during the trace: different from each other and from 0 and 1, which torch treats as constants.
_PAST, _TOKENS = 5, 7


def build(folder: Folder, config: Any) -> ir.Model:
    """Traces the folder's model with batch 1; weights are the loaded module's.

    Raises EdgecError E0102 or E0103 when transformers cannot load it or torch cannot trace it.
    """
    _register_attention()
    module = load_transformers(folder, config, _ATTENTION)
    return trace(module)


def trace(module: Any) -> ir.Model:
    """A transformers causal language model, loaded with our attention, as a graph in the form of hf.load."""
    import torch
    from transformers.cache_utils import DynamicCache

    config = module.config

    class Flat(torch.nn.Module):
        """The cache as plain tensors on both sides."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input_ids: Any, position_ids: Any, past: Any) -> Any:
            pairs = [(past[i], past[i + 1]) for i in range(0, len(past), 2)]
            cache: Any = DynamicCache(ddp_cache_data=pairs)
            out = self.model(input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True)
            states = [t for layer in cache.layers for t in (layer.keys, layer.values)]
            return (out.logits, *states)

    dynamic = torch.export.Dim.DYNAMIC
    ids = torch.arange(_TOKENS)[None] % config.vocab_size
    positions = torch.arange(_PAST, _PAST + _TOKENS)[None]
    shapes = _cache_shapes(module, ids)
    past = tuple(torch.zeros(1, heads, _PAST, size) for pair in shapes for heads, size in pair)
    names = [f"{i}.{part}" for i in range(len(shapes)) for part in ("key", "value")]
    try:
        with torch.no_grad():
            exported = torch.export.export(
                Flat().eval(), (ids, positions, past), strict=False,
                dynamic_shapes=({1: dynamic}, {1: dynamic}, tuple({2: dynamic} for _ in past)),
            )
    except Exception as e:
        raise _untraceable(module, e) from e
    model = to_ir(exported, ["input_ids", "position_ids", *(f"past_key_values.{n}" for n in names)],
                  ["logits", *(f"present.{n}" for n in names)])
    _name_symbols(model)
    drop_wrapper_scope(model)
    return model


def _untraceable(module: Any, error: Exception) -> EdgecError:
    reason = next(iter(str(error).splitlines()), "")[:300]
    return EdgecError("E0102", stage=STAGE, where=module.config.model_type,
                      found=f"torch.export: {type(error).__name__}: {reason}")


def _cache_shapes(module: Any, ids: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(heads, size) of keys and values per layer, from a run without numbers: layers may differ from one another."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            cache = module(input_ids=ids, use_cache=True).past_key_values
    except Exception as e:
        raise _untraceable(module, e) from e
    try:
        return [((k.shape[1], k.shape[3]), (v.shape[1], v.shape[3]))
                for k, v in ((layer.keys, layer.values) for layer in cache.layers)]
    except (AttributeError, IndexError, TypeError) as e:
        raise EdgecError("E0103", stage=STAGE, where=module.config.model_type,
                         found=f"a cache of type {type(cache).__name__} that is not keys and values per layer") from e


def _register_attention() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attention)


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
               scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
               **rest: Any) -> tuple[Any, None]:
    """transformers' attention interface. query [B, Hq, T, D], key and value [B, Hkv, S, D] -> [B, T, Hq, D].

    The mask is made here from positions: transformers makes none for an implementation it does not know, and a batch
    of one sequence has no padding.
    """
    import torch

    if rest.get("s_aux") is not None:
        raise EdgecError("E0103", stage=STAGE, where=type(module).__name__, found="attention sinks")
    tokens, total = query.shape[2], key.shape[2]
    row = torch.arange(tokens)[:, None] + (total - tokens)
    column = torch.arange(total)[None]
    mask = column <= row
    if sliding_window:
        mask = mask & (column > row - sliding_window)
    result = torch.onnx.ops.attention(query, key, value, mask[None, None], scale=scaling, softcap=softcap or 0.0)[0]
    return result.transpose(1, 2).contiguous(), None


def _name_symbols(model: ir.Model) -> None:
    """One name for each of the two sizes: torch gives every past its own symbol because nothing ties them."""
    names: dict[str, str | int] = {}
    for value in model.graph.inputs:
        axis, name = (2, "past_sequence_len") if value.name and value.name.startswith("past") else (1, "sequence_len")
        size = value.shape[axis] if value.shape is not None else None
        if not isinstance(size, ir.SymbolicDim) or size.value is None:
            raise EdgecError("E0102", stage=STAGE, where=str(value.name),
                             found=f"a graph in which axis {axis} is {size}")
        names[str(size.value)] = name
    rename_symbols(model, names)


def drop_wrapper_scope(model: ir.Model) -> None:
    """Names and module paths without the `model.` of a wrapper, so that they are the checkpoint's."""
    for node in walk(model):
        if "namespace" in node.metadata_props:
            node.metadata_props["namespace"] = node.metadata_props["namespace"].removeprefix("model.")
    for key, value in list(model.graph.initializers.items()):
        short = key.removeprefix("model.")
        if short != key and short not in model.graph.initializers:
            del model.graph.initializers[key]
            value.name = short
            model.graph.initializers[short] = value
