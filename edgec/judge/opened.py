"""What the judge needs of a compiled model, whichever backend made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgec.native.session import Info, Port

Array = NDArray[Any]
_DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "int64": np.int64, "int32": np.int32,
           "int8": np.int8, "uint8": np.uint8, "bool": np.bool_}
Tokens = Sequence[int] | NDArray[np.integer[Any]]
M = TypeVar("M", bound="FolderModel")


class OpenedSession(Protocol):
    """As native.session.Session: a context manager with the state of one conversation, or of one stream of runs."""

    def __enter__(self) -> OpenedSession: ...

    def __exit__(self, *error: Any) -> None: ...

    def reset(self) -> None: ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]: ...

    def step(self, tokens: Tokens) -> NDArray[np.float32]: ...

    def score(self, tokens: Tokens) -> NDArray[np.float32]: ...

    def generate(
        self, prompt: Tokens, max_tokens: int, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        seed: int = 0, ignore_eos: bool = False, on_token: Callable[[int, str], bool | None] | None = None,
    ) -> list[int]: ...


class Opened(Protocol):
    """As native.session.Model."""

    def __enter__(self) -> Opened: ...

    def __exit__(self, *error: Any) -> None: ...

    @property
    def info(self) -> Info: ...

    @property
    def inputs(self) -> list[Port]: ...

    @property
    def outputs(self) -> list[Port]: ...

    @property
    def manifest(self) -> dict[str, Any]: ...

    def tokenize(self, text: str, add_special: bool = True) -> list[int]: ...

    def session(self, *, threads: int = 0, context: int = 0) -> OpenedSession: ...


class FolderModel:
    """What models have in common that other runtimes open from an output folder. Sessions close themselves."""

    info: Info
    _manifest: dict[str, Any]
    _ports: dict[str, list[Port]]

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The model holds nothing open."""

    @property
    def manifest(self) -> dict[str, Any]:
        return self._manifest

    @property
    def inputs(self) -> list[Port]:
        """Declared inputs of a generic model, varying dims at their largest; empty for language models."""
        return [] if self.info.kind else self._ports["inputs"]

    @property
    def outputs(self) -> list[Port]:
        return [] if self.info.kind else self._ports["outputs"]


def port_of(port: Mapping[str, Any]) -> Port:
    """An entry of "inputs" or "outputs" in the manifest of a folder. Raises KeyError, TypeError for anything else."""
    # A dim that nothing bounds is 1, as of a batch.
    shape = tuple(d if isinstance(d, int) else 1 for d in port["shape"])
    return Port(str(port["name"]), np.dtype(_DTYPES.get(str(port["dtype"]), np.float32)), shape)
