"""An .onnx file as it is, in onnxruntime: what its import, and the bundle made of it, are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgec.errors import EdgecError
from edgec.ir.info import Task
from edgec.ir.model import Array

_STAGE = "reference"
_NOT_CACHES = ("input_ids", "attention_mask", "position_ids")


class Original:
    """The file in onnxruntime on the CPU, without onnxruntime's own rewriting.

    input_names, output_names: as in the file. Language models (a graph with input_ids and a past) have `logits` and
    `generate` besides `run`. Raises EdgecError E0102 when onnxruntime cannot load the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exception classes share no public base
            raise EdgecError("E0102", stage="import", where=str(path), found=f"ONNX Runtime: {_first_line(e)}",
                             wanted="a file that onnxruntime runs, to compare with") from e
        self.input_names: list[str] = [v.name for v in self._session.get_inputs()]
        self.output_names: list[str] = [v.name for v in self._session.get_outputs()]
        self._caches = {v.name: v for v in self._session.get_inputs() if v.name not in _NOT_CACHES}

    @property
    def task(self) -> Task:
        ranks = {len(v.shape) for v in self._caches.values()}
        return "causal-lm" if "input_ids" in self.input_names and ranks == {4} else "generic"

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output name -> value. Raises EdgecError E0403 when onnxruntime refuses the inputs."""
        missing = [name for name in self.input_names if name not in feeds]
        if missing:
            raise EdgecError("E0403", stage=_STAGE, where="inputs", found=f"no {', '.join(missing)}",
                             wanted=", ".join(self.input_names))
        try:
            values = self._session.run(self.output_names, {k: feeds[k] for k in self.input_names})
        except Exception as e:  # as above
            raise EdgecError("E0403", stage=_STAGE, where="inputs", found=_first_line(e),
                             wanted="inputs the model accepts") from e
        return dict(zip(self.output_names, (np.asarray(v) for v in values), strict=True))

    def logits(self, tokens: Sequence[int]) -> Array:
        """FLOAT [T, vocab]: row t is what the model expects after tokens[:t + 1]."""
        return self._step(tokens, 0, {})[0]

    def generate(self, tokens: Sequence[int], n: int) -> list[int]:
        """The n tokens that follow greedily, the smallest id among equals."""
        produced: list[int] = []
        logits, caches = self._step(tokens, 0, {})
        past = len(tokens)
        while len(produced) < n:
            produced.append(int(np.argmax(logits[-1])))
            if len(produced) < n:
                logits, caches = self._step(produced[-1:], past, caches)
                past += 1
        return produced

    def token_feeds(self, tokens: Sequence[int], past: int, caches: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs for `tokens` after `past` others whose keys and values are `caches` (by input name; {}: zeros)."""
        count = len(tokens)
        known: dict[str, Array] = {
            "input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, past + count), np.int64),
            "position_ids": np.arange(past, past + count, dtype=np.int64)[None],
        }
        kinds = {v.name: np.int32 if "int32" in v.type else np.int64 for v in self._session.get_inputs()}
        feeds = {k: v.astype(kinds[k]) for k, v in known.items() if k in kinds}
        for name, port in self._caches.items():
            half = np.float16 if "float16" in port.type else np.float32
            feeds[name] = caches.get(name, np.zeros((1, port.shape[1], past, port.shape[3]), half))
        return feeds

    def _step(self, tokens: Sequence[int], past: int, caches: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        if self.task != "causal-lm":
            raise EdgecError("E0403", stage=_STAGE, where="tokens", found="a generic model", wanted="a language model")
        if len(tokens) == 0:
            raise EdgecError("E0403", stage=_STAGE, where="tokens", found="no token", wanted="at least one token")
        found = self.run(self.token_feeds(tokens, past, caches))
        logits = found.pop("logits", None)
        if logits is None or len(found) != len(self._caches):
            raise EdgecError("E0403", stage=_STAGE, where="outputs", found=", ".join(self.output_names),
                             wanted="logits and one present for each past")
        # Presents follow in the order of the pasts.
        return logits[0].astype(np.float32), dict(zip(self._caches, found.values(), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
