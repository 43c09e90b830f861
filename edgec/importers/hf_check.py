"""The import check of the Hugging Face door: the graph's logits against those of transformers.

A short prompt runs through the graph in one piece and in two (so that the cache is used), and must give the logits of
one eager pass. Two things do not show on a short prompt with the real weights: a sliding window longer than the
prompt, and a model too big to run here. For those the same builder builds a tiny random model of the same
configuration, with a window of a few tokens, and that one is compared too.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.importers import hf_source, hf_transformers
from edgec.importers.check import difference, runner
from edgec.importers.hf_folder import Folder
from edgec.ir.execute import Runner
from edgec.ir.model import Array, dims_of

STAGE = "import"
# Two float32 implementations with other orders of addition stay far below this, a wrong mask or weight far above.
RTOL = 1e-4
# Parameters. Above it the original and ONNX Runtime, one after the other, would each hold more than 1 GB of float32.
_BIG = 250_000_000
_PROMPT = 24
_TINY_WINDOW = 8
_TINY_VOCAB, _TINY_INNER = 160, 128

_EMPTY = (1, 1, 0, 1)  # sizes of a past of no tokens where its shape has symbols

Builder = Callable[[Folder, Any], ir.Model]


def verify(model: ir.Model, folder: Folder, config: Any, build: Builder) -> None:
    """Raises EdgecError E0104 with the figures when `model`, or what `build` makes of a tiny sibling, differs.

    build(folder, config) is the route that made `model`.
    """
    windows = [w for w in _windows(config) if w > 0]
    parameters = sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)
    big = parameters > _BIG
    if not big:
        _compare(model, folder, config, "with its own weights")
    if big or any(w >= _PROMPT for w in windows):
        with _tiny_folder(folder, config) as (tiny, tiny_config):
            _compare(build(tiny, tiny_config), tiny, tiny_config,
                     f"as a tiny random model with a window of {_TINY_WINDOW}" if windows else "as a tiny random model")


def run_graph(session: Runner, model: ir.Model, tokens: Array, cuts: tuple[int, ...] = ()) -> Array:
    """Logits [T, vocab] of `tokens` [T] through an imported graph, cut into calls at `cuts`."""
    inputs = {v.name: v for v in model.graph.inputs}
    past: dict[str, Array] = {
        str(name): np.zeros([d if isinstance(d, int) else n for d, n in zip(dims_of(v) or (), _EMPTY, strict=True)],
                            np.float32)
        for name, v in inputs.items() if name is not None and name.startswith("past_key_values.")
    }
    pieces = []
    for start, end in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
        feeds: dict[str, Array] = {
            "input_ids": tokens[None, start:end].astype(np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
            "attention_mask": np.ones((1, end), np.int64),
        }
        out = session.run({k: v for k, v in feeds.items() if k in inputs} | past)
        pieces.append(out["logits"][0])
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
    return np.concatenate(pieces)


def _compare(model: ir.Model, folder: Folder, config: Any, how: str) -> None:
    # Longer than a short window, so that the window matters.
    length = _PROMPT + 8
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, length)
    wanted = _original(folder, config, tokens)
    with runner(model) as session:
        for cuts in ((), (length - 9, length - 1)):
            gap = difference(run_graph(session, model, tokens, cuts), wanted)
            if not gap.within(RTOL):
                pieces = f"in {len(cuts) + 1} pieces" if cuts else "in one piece"
                raise EdgecError("E0104", stage=STAGE, where=str(config.model_type),
                                 found=f"{gap} ({length} tokens {pieces}, {how})",
                                 wanted=f"logits within {RTOL:g} of the largest")


def _original(folder: Folder, config: Any, tokens: Array) -> Array:
    """The logits of transformers. Its copy of the weights is gone again before the graph gets one of its own."""
    import torch

    module = hf_transformers.load_transformers(folder, config, "eager")
    with torch.no_grad():
        logits: Array = module(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()
    return logits


def _windows(config: Any) -> list[int]:
    """The sliding windows that layers of this configuration use."""
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return []
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not any("sliding" in k for k in kinds):
        return []
    return [window]


class _tiny_folder:  # noqa: N801  (a context manager used like a function)
    """A folder with a random model of the same configuration, a few layers and heads, and a short window."""

    def __init__(self, folder: Folder, config: Any) -> None:
        self._folder, self._config = folder, config

    def __enter__(self) -> tuple[Folder, Any]:
        import torch
        import transformers

        self._temporary = tempfile.TemporaryDirectory(prefix="edgec-import-")
        path = Path(self._temporary.name)
        config = tiny_config(self._config)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            make: Any = transformers.AutoModelForCausalLM.from_config
            module = make(config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in module.parameters():
                    # The usual initialization is so small that attention hardly moves the logits.
                    spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
                    parameter.add_(torch.randn_like(parameter) * spread)
        module.save_pretrained(path)
        tiny = hf_source.read(path)
        return tiny, hf_transformers.read_config(tiny)

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()


def tiny_config(config: Any) -> Any:
    """`config` with 4 heads, few layers and a short window; everything that changes the graph's form is kept."""
    tiny = copy.deepcopy(config)
    heads = min(config.num_attention_heads, 4)
    kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None)
    layers = min(config.num_hidden_layers, 2)
    if kinds:  # as many layers as it takes to see every kind
        layers = min(config.num_hidden_layers, max(2, 1 + max(kinds.index(k) for k in set(kinds))))
        tiny.layer_types = list(kinds[:layers])
    tiny.num_hidden_layers = layers
    tiny.num_attention_heads = heads
    tiny.num_key_value_heads = 1 if kv == 1 else (heads if kv == config.num_attention_heads else max(heads // 2, 1))
    tiny.hidden_size = heads * size
    tiny.intermediate_size = _TINY_INNER
    tiny.vocab_size = _TINY_VOCAB
    if _windows(config):
        tiny.sliding_window = _TINY_WINDOW
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(tiny, key, None)
    return tiny
