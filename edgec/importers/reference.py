"""The original, as it is: what compare, eval and the tests hold a compiled model against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError
from edgec.importers import classify
from edgec.ir.info import Task
from edgec.ir.model import Array

if TYPE_CHECKING:
    from edgec.importers.onnx_original import Original


class Reference:
    """An eager PyTorch module or a transformers model, in float32 on the CPU.

    task: as ModelInfo.task. input_names, output_names: of `run`.
    """

    def __init__(self, task: Task, module: Any, inputs: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
        self.task = task
        self.module = module
        self._inputs, self._constants = dict(inputs), dict(constants)

    @property
    def input_names(self) -> list[str]:
        return list(self._inputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Named arrays in, named arrays out, under the names the imported graph has.

        Raises EdgecError E0403 for a missing or unknown name and for shapes the module itself refuses.
        """
        import torch

        from edgec.importers.torch import output_names, quiet

        if set(feeds) != set(self._inputs):
            raise EdgecError("E0403", stage="reference", where="inputs", found=", ".join(sorted(feeds)) or "none",
                             wanted=", ".join(sorted(self._inputs)))
        tensors = {k: torch.from_numpy(np.array(v)).to(self._inputs[k].dtype) for k, v in feeds.items()}
        try:
            with torch.no_grad(), quiet():
                result = self.module(**self._constants, **tensors)
        except (RuntimeError, ValueError, IndexError) as e:
            raise EdgecError("E0403", stage="reference", where="inputs", found=str(e).splitlines()[0],
                             wanted="shapes the module accepts") from e
        names = output_names(result, set(tensors))
        leaves = torch.utils._pytree.tree_leaves(result)
        return {n: t.detach().numpy() for n, t in zip(names, leaves, strict=True)}

    def logits(self, tokens: Sequence[int]) -> Array:
        """FLOAT [T, vocab]: row t is what the model expects after tokens[:t + 1]. Language models only."""
        import torch

        ids = self._ids(tokens)
        with torch.no_grad():
            result: Array = self.module(input_ids=ids, use_cache=False).logits[0].float().numpy()
        return result

    def generate(self, tokens: Sequence[int], n: int) -> list[int]:
        """The n tokens that follow greedily (the smallest id among equals); ends early only at the context's end."""
        import torch

        ids, cache = self._ids(tokens), None
        context = int(self.module.config.max_position_embeddings)
        produced: list[int] = []
        with torch.no_grad():
            while len(produced) < n and len(tokens) + len(produced) < context + 1:
                out = self.module(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                produced.append(int(np.argmax(out.logits[0, -1].float().numpy())))
                ids = torch.tensor([[produced[-1]]])
        return produced

    def _ids(self, tokens: Sequence[int]) -> Any:
        import torch

        if self.task != "causal-lm":
            raise EdgecError("E0403", stage="reference", where="tokens", found="a generic model",
                             wanted="a language model")
        vocab = int(self.module.config.vocab_size)
        wrong = [t for t in tokens if not 0 <= int(t) < vocab]
        if len(tokens) == 0 or wrong:
            raise EdgecError("E0403", stage="reference", where="tokens", wanted=f"at least one token in 0..{vocab - 1}",
                             found=f"token {wrong[0]}" if wrong else "no token")
        return torch.tensor([[int(t) for t in tokens]])


def load_reference(source: object, **options: Any) -> Reference | Original:
    """The original of anything edgec.importers.load takes; a module object needs `example_inputs` too.

    Raises EdgecError as edgec.importers.load: E0002, E0003, E0005, E0101, E0103.
    """
    kind, what = classify(source)
    if options.get("allow_pickle") and kind != "hf":
        raise EdgecError("E0002", stage="reference", where="allow_pickle", found=f"a {kind} source",
                         wanted="a Hugging Face model, which may have pickled weights")
    if kind == "onnx":
        from edgec.importers.onnx_original import Original

        return Original(Path(what))
    if kind == "hf":
        return _from_folder(what, bool(options.get("allow_pickle")))
    from edgec.importers import torch as door
    from edgec.importers import torch_program

    module: Any = source
    example = options.get("example_inputs")
    if kind == "factory":
        module, example, _ = door.call_factory(what)
    elif kind == "zoo":
        _, module, tensor = door.zoo_module(what)
        example = (tensor,)
    if torch_program.is_program(module):
        module, example, _ = torch_program.opened(module, example, {})
    else:
        module.eval()
    call = door.Call.bind(module, example, {})
    return Reference("generic", module, call.tensors, call.constants)


def _from_folder(source: str, allow_pickle: bool) -> Reference:
    from edgec.importers import hf_parts, hf_source
    from edgec.importers import hf_transformers as door
    from edgec.importers.torch import quiet

    folder, part = hf_source.open_source(source, allow_pickle=allow_pickle)
    with door.offline(), quiet():
        if not door.is_causal_lm(folder):
            module, tensors = hf_parts.reference(folder, part)
            return Reference("generic", module, tensors, {})
        return Reference("causal-lm", door.load_transformers(folder, door.read_config(folder), "eager"), {}, {})
