"""What edgec knows about a model besides its graph; travels in `ir.Model.meta` from the importer to the emitter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

Task = Literal["generic", "causal-lm"]
_KEY = "edgec.info"


@dataclass
class ModelInfo:
    """task: what the model is; decides the plan's entries.

    name: for people. source: what the user typed. hash_source: gives the SHA-256 of the weights; reads all of them.
    max_context, vocab_size, bos_token, eos_tokens: language models only (0, 0, None, ()). query_heads: of each of their
    attention layers, 0 for unknown.
    tokenizer: the `tokenizer.json` beside the model, or None.
    dynamic: symbolic dim name -> (min, max) of generic models.
    graph_sha256: of the graph as it was imported (structure_sha256), once the pipeline has taken it over.
    parameters: of the checkpoint, 0 for unknown; a graph has tables and scales besides.
    notes: sentences that a user should read before compiling.
    random_weights: nobody has trained the model.
    """

    task: Task = "generic"
    name: str = "model"
    source: str = ""
    hash_source: Callable[[], str] = str
    max_context: int = 0
    vocab_size: int = 0
    query_heads: int = 0
    bos_token: int | None = None
    eos_tokens: tuple[int, ...] = ()
    tokenizer: Path | None = None
    dynamic: dict[str, tuple[int, int]] = field(default_factory=dict)
    graph_sha256: str = ""
    parameters: int = 0
    notes: tuple[str, ...] = ()
    random_weights: bool = False

    @functools.cached_property
    def source_sha256(self) -> str:
        """SHA-256 of the weights that were read, "" for unknown; computed when somebody asks."""
        return self.hash_source()


def info_of(model: ir.Model) -> ModelInfo:
    """The model's ModelInfo; a default one is attached when there is none."""
    found = model.meta.get(_KEY)
    if not isinstance(found, ModelInfo):
        found = ModelInfo()
        model.meta[_KEY] = found
    return found


def attach_info(model: ir.Model, info: ModelInfo) -> ir.Model:
    """Attaches `info` and returns the model."""
    model.meta[_KEY] = info
    return model
