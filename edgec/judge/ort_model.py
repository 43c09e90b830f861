"""An output folder of the ort backend, opened by onnxruntime, with the interface of the native runtime.

The cache of a language model is handed from one run to the next as the graph returns it. Tokens are chosen greedily:
sampling is the business of onnxruntime-genai.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import EdgecError, did_you_mean, missing_extra
from edgec.judge.opened import Array, FolderModel, Tokens, port_of
from edgec.native.session import Info
from edgec.targets import ort_kernels, ort_library
from edgec.targets.ort import LIBRARY, MODEL

_PAST = "past_key_values."
_CHUNK = 256  # tokens of one run of a prompt


class OrtModel(FolderModel):
    """The model in `folder`. Raises EdgecError: E0003, E0005, E0401."""

    def __init__(self, folder: Path) -> None:
        version = ort_kernels.require_onnxruntime()
        self.folder = folder
        try:
            self._manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            about = self._manifest["model"]
            self._ports = {side: [port_of(port) for port in self._manifest[side]] for side in ("inputs", "outputs")}
            kind = int(about["task"] == "causal-lm")
            eos = about["eos_tokens"]
            self.library = bool(self._manifest.get(LIBRARY))
            sizes = [(folder / name).stat().st_size for name in (MODEL, f"{MODEL}.data") if (folder / name).is_file()]
            self.eos: tuple[int, ...] = tuple(eos)
            self.info = Info(
                kind, int(about["max_context"]), int(about["vocab_size"]), _CHUNK,
                (folder / "tokenizer.json").is_file(), -1 if about["bos_token"] is None else int(about["bos_token"]),
                eos[0] if eos else -1, sum(sizes[1:]), sum(sizes), f"onnxruntime {version}",
                ort_kernels.version_note(version))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise EdgecError("E0401", stage="open", where=str(folder), found=f"{type(e).__name__}: {e}",
                             wanted="an output folder of compile --backend ort", hint="compile again") from e
        self._tokenizer: Any = None

    def _texts(self) -> Any:
        if self._tokenizer is None:
            if not self.info.has_tokenizer:
                raise EdgecError("E0403", stage="tokenize", found="an output without a tokenizer",
                                 wanted="one that holds tokenizer.json")
            try:
                import tokenizers
            except ImportError as e:
                raise missing_extra("ort", "tokenizers", "tokenize") from e
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return self._tokenizer

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        return list(self._texts().encode(text, add_special_tokens=add_special).ids)

    def detokenize(self, tokens: Tokens) -> str:
        return str(self._texts().decode([int(t) for t in tokens], skip_special_tokens=True))

    def session(self, *, threads: int = 0, context: int = 0) -> OrtSession:
        """A session; threads: 0 is what onnxruntime chooses, context: 0 is the model's. Raises EdgecError."""
        if context > self.info.max_context > 0:
            raise EdgecError("E0403", stage="session", where="context", found=f"{context} tokens",
                             wanted=f"at most {self.info.max_context}, as the model")
        return OrtSession(self, threads, context or self.info.max_context)


class OrtSession:
    """One conversation, or one stream of runs."""

    def __init__(self, model: OrtModel, threads: int, context: int) -> None:
        import onnxruntime

        self.model, self.context = model, context
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if model.library:
            ort_library.register(options)
        try:
            self._session = onnxruntime.InferenceSession(str(model.folder / MODEL), options,
                                                         providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exception classes share no public base
            raise EdgecError("E0401", stage="open", where=str(model.folder / MODEL), found=str(e),
                             wanted="a model that onnxruntime loads", hint="compile again") from e
        self._inputs = {port.name: port for port in self._session.get_inputs()}
        self._outputs = [port.name for port in self._session.get_outputs()]
        self.reset()

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session

    def reset(self) -> None:
        """Forgets everything."""
        self.position = 0
        self._cache = {
            name: np.zeros((1, port.shape[1], 0, port.shape[3]), np.float32)
            for name, port in self._inputs.items() if name.startswith(_PAST)
        }

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs a generic model. Raises EdgecError (E0403) for names, dtypes or shapes that do not fit."""
        ports = {port.name: port for port in self.model.inputs}
        for kind, given, known in (("input", inputs, ports), ("output", outputs or (), self._outputs)):
            for name in given:
                if name not in known:
                    raise EdgecError("E0403", stage="run", where=kind, found=name, wanted=did_you_mean(name, known))
        for name, array in inputs.items():
            if array.dtype != ports[name].dtype:
                raise EdgecError("E0403", stage="run", where=f"input {name!r}", found=str(array.dtype),
                                 wanted=str(ports[name].dtype))
        return self._run(list(outputs or self._outputs), dict(inputs))

    def _run(self, names: list[str], feeds: dict[str, Array]) -> dict[str, Array]:
        try:
            values = self._session.run(names, feeds)
        except Exception as e:  # as above
            raise EdgecError("E0403", stage="run", where="onnxruntime", found=str(e),
                             wanted="inputs that the model takes") from e
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    def _append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [T, vocab] of one run over `tokens` behind what was read before."""
        count, end = len(tokens), self.position + len(tokens)
        if end > self.context:
            raise EdgecError("E0404", stage="run", found=f"{end} tokens", wanted=f"at most {self.context}")
        known: dict[str, Array] = {
            "input_ids": tokens[None], "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.position, end, dtype=np.int64)[None],
        }
        feeds = {name: known[name] for name in known if name in self._inputs} | self._cache
        found = self._run(self._outputs, feeds)
        self._cache = {name: found[name.replace(_PAST, "present.")] for name in self._cache}
        self.position = end
        logits: NDArray[np.float32] = found["logits"][0].astype(np.float32, copy=False)
        assert len(logits) == count
        return logits

    def score(self, tokens: Tokens) -> NDArray[np.float32]:
        """Appends tokens; the logits [len(tokens), vocab_size] after each. Raises EdgecError (E0403, E0404)."""
        ids = np.asarray(tokens, np.int64).reshape(-1)
        if ids.size == 0 or ids.min() < 0 or ids.max() >= self.model.info.vocab_size:
            raise EdgecError("E0403", stage="score", found="no tokens, or a token id outside the vocabulary",
                             wanted=f"ids in 0..{self.model.info.vocab_size - 1}")
        return np.concatenate([self._append(ids[i : i + _CHUNK]) for i in range(0, len(ids), _CHUNK)])

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        """Appends tokens; the logits [vocab_size] after the last one. Raises EdgecError (E0403, E0404)."""
        last: NDArray[np.float32] = self.score(tokens)[-1]
        return last

    def generate(
        self, prompt: Tokens, max_tokens: int, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        seed: int = 0, ignore_eos: bool = False, on_token: Callable[[int, str], bool | None] | None = None,
    ) -> list[int]:
        """Appends the prompt, then the likeliest tokens; returns these. Raises EdgecError: E0002 for sampling."""
        if temperature > 0:
            raise EdgecError("E0002", stage="generate", where="--temperature", found=f"{temperature:g}",
                             wanted="0: with the ort backend edgec takes the likeliest token",
                             hint="onnxruntime-genai samples from this folder")
        made: list[int] = []
        shown = ""
        logits = self.step(prompt)
        while len(made) < max_tokens:
            token = int(logits.argmax())
            if token in self.model.eos and not ignore_eos:
                break
            made.append(token)
            if on_token is not None:
                text = self.model.detokenize(made)
                # Half a character shows as a replacement: wait for the rest of it.
                piece = "" if text.endswith("�") else text[len(shown):]
                shown += piece
                if on_token(token, piece) is False:
                    break
            if len(made) < max_tokens:
                logits = self.step([token])
        return made
