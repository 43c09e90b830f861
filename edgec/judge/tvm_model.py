"""An output folder of the tvm backend, opened by TVM's runtime, with the interface of the native runtime.

model.so is a program: opening it runs code of whoever made the folder. There is no other way to run it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import EdgecError, did_you_mean
from edgec.judge.opened import Array, FolderModel, Tokens, port_of
from edgec.native.session import Info
from edgec.targets import tvm as backend
from edgec.targets.tvm import MODEL


def _no_language_model(stage: str) -> EdgecError:
    return EdgecError("E0403", stage=stage, found="a model of the tvm backend", wanted="a language model",
                      hint="--backend native or ort")


class TvmModel(FolderModel):
    """The model in `folder`. Raises EdgecError: E0005, E0401."""

    def __init__(self, folder: Path) -> None:
        version = backend.require_tvm()
        self.folder = folder
        try:
            self._manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self._ports = {side: [port_of(port) for port in self._manifest[side]] for side in ("inputs", "outputs")}
            size = (folder / MODEL).stat().st_size
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise EdgecError("E0401", stage="open", where=str(folder), found=f"{type(e).__name__}: {e}",
                             wanted="an output folder of compile --backend tvm", hint="compile again") from e
        self.info = Info(0, 0, 0, 0, False, -1, -1, size, size, f"tvm {version}", backend.version_note(version))

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        raise _no_language_model("tokenize")

    def session(self, *, threads: int = 0, context: int = 0) -> TvmSession:
        """A session; threads: of TVM's pool, which the whole process shares; 0 is what TVM chooses."""
        return TvmSession(self, threads)


class TvmSession:
    """One stream of runs."""

    def __init__(self, model: TvmModel, threads: int) -> None:
        import tvm
        from tvm import relax

        self.model, self._tvm = model, tvm
        try:
            if threads:
                tvm.get_global_func("runtime.config_threadpool")(-1, threads)
            loaded = tvm.runtime.load_module(str(model.folder / MODEL))
            self._main = relax.VirtualMachine(loaded, tvm.cpu())["main"]
        except Exception as e:  # TVM's exceptions share no public base
            raise EdgecError("E0401", stage="open", where=str(model.folder / MODEL), found=str(e).strip()[-800:],
                             wanted="a model that TVM's runtime loads", hint="compile again") from e

    def __enter__(self) -> TvmSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._main

    def reset(self) -> None:
        """There is nothing to forget."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the model. Raises EdgecError (E0403) for names, dtypes or shapes that do not fit."""
        ports = {port.name: port for port in self.model.inputs}
        names = [port.name for port in self.model.outputs]
        for kind, given, known in (("input", inputs, list(ports)), ("output", outputs or (), names)):
            for name in given:
                if name not in known:
                    raise EdgecError("E0403", stage="run", where=kind, found=name, wanted=did_you_mean(name, known))
        for name, port in ports.items():
            if name not in inputs:
                raise EdgecError("E0403", stage="run", where=f"input {name!r}", found="nothing", wanted="a value")
            if inputs[name].dtype != port.dtype:
                raise EdgecError("E0403", stage="run", where=f"input {name!r}", found=str(inputs[name].dtype),
                                 wanted=str(port.dtype))
        try:
            made = self._main(*(self._tvm.runtime.tensor(np.ascontiguousarray(inputs[name])) for name in ports))
        except Exception as e:  # as above
            raise EdgecError("E0403", stage="run", where="tvm", found=str(e).strip()[-800:],
                             wanted="inputs that the model takes") from e
        values = [made] if hasattr(made, "numpy") else list(made)
        found = {name: np.asarray(value.numpy()) for name, value in zip(names, values, strict=True)}
        return {name: found[name] for name in outputs or names}

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        raise _no_language_model("step")

    def score(self, tokens: Tokens) -> NDArray[np.float32]:
        raise _no_language_model("score")

    def generate(
        self, prompt: Tokens, max_tokens: int, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        seed: int = 0, ignore_eos: bool = False, on_token: Callable[[int, str], bool | None] | None = None,
    ) -> list[int]:
        raise _no_language_model("generate")
