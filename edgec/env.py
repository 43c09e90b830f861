"""Environment variables, each declared once.

A declaration gives the name, the type (from the default), and one line of help; declaring a name twice is an
error. `VAR.get()` reads the environment every time, so tests may change it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

T = TypeVar("T", int, str)


@dataclass(frozen=True)
class EnvVar(Generic[T]):
    """One environment variable: `EDGEC_<NAME>`; empty counts as unset."""

    name: str
    default: T
    help: str

    declared: ClassVar[dict[str, EnvVar[int] | EnvVar[str]]] = {}

    def __post_init__(self) -> None:
        if self.name in EnvVar.declared:
            raise ValueError(f"environment variable {self.name} is declared twice")
        EnvVar.declared[self.name] = self

    def get(self) -> T:
        """The value from the environment, or the default.

        Raises EdgecError (EDGEC-E0002) when an integer variable holds something else.
        """
        raw = os.environ.get(self.name, "")
        if raw == "":
            return self.default
        if isinstance(self.default, int):
            try:
                return int(raw)
            except ValueError as e:
                from edgec.errors import EdgecError

                raise EdgecError(
                    "E0002", stage="environment", where=self.name, found=repr(raw), wanted="an integer"
                ) from e
        return raw

    @contextlib.contextmanager
    def override(self, value: T) -> Iterator[None]:
        """Sets the variable for the duration of a `with` block."""
        before = os.environ.get(self.name)
        os.environ[self.name] = str(value)
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(self.name, None)
            else:
                os.environ[self.name] = before


DEBUG = EnvVar("EDGEC_DEBUG", 0, "1 summary, 2 time per pass and kernel, 3 rules fired, 4 plan text, 5 IR text")
CHECK = EnvVar("EDGEC_CHECK", 0, "1 runs the model before and after each pass and names the pass that broke it")
SPEC = EnvVar("EDGEC_SPEC", 1, "0 skips the executable stage specifications")
ISA = EnvVar("EDGEC_ISA", "", "forces an instruction set: scalar, avx2, avx512, avx512vbmi, amx, neon, neondot")
ASSETS = EnvVar("EDGEC_ASSETS", "../shared/assets", "where tests and benchmarks find weights, images and text")
REQUIRE_ASSETS = EnvVar("EDGEC_REQUIRE_ASSETS", 0, "1 turns a skip for missing assets into a failure")
CACHE = EnvVar("EDGEC_CACHE", "", "folder for cross-built runtimes (default: the user's cache folder)")
KEY_PASSPHRASE = EnvVar("EDGEC_KEY_PASSPHRASE", "", "passphrase of an encrypted private key of `edgec sign`")
OFFLINE = EnvVar("EDGEC_OFFLINE", 0, "1 never downloads a model, as HF_HUB_OFFLINE: hub ids come from the cache alone")
LIBRARY = EnvVar("EDGEC_LIBRARY", "", "path of the native runtime library to load instead of the packaged one")
