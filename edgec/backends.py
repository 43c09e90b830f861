"""The table of backends. A backend is a row here and an emitter, one file in targets/.

A model takes the same way to all of them: import, the exact passes, compression; then the passes of the row's `lower`,
which leave only what the emitter's capabilities name, and the emitter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from edgec.errors import EdgecError, did_you_mean
from edgec.ir.passes import Capabilities, Pass
from edgec.passes import LOWER, LOWER_COREML, LOWER_ORT, LOWER_TVM
from edgec.targets import Artifact, EmitOptions, coreml, native, ort, tvm
from edgec.targets.devices import Device

DEFAULT = "native"


class Emitter(Protocol):
    """What a file in targets/ has. options: what the user decided, of which a backend refuses what it cannot heed."""

    def check_options(self, options: EmitOptions, device: Device) -> None:
        """Raises EdgecError (E0002, E0005) before anything is read."""

    def capabilities(self, options: EmitOptions) -> Capabilities:
        """The operators that a lowered graph may hold."""

    def refuses(self, options: EmitOptions) -> Callable[[ir.Node], str | None]:
        """Why a node with such an operator cannot be taken all the same."""

    def pass_options(self, options: EmitOptions) -> dict[str, object]:
        """What the row's passes read in Context.options."""

    def problems(self, model: ir.Model, options: EmitOptions) -> list[tuple[ir.Node, str]]:
        """Every node of a lowered model that cannot be taken, and why."""

    def check(self, model: ir.Model, options: EmitOptions) -> None:
        """What emit would find wrong with a lowered model, without reading weights. Raises EdgecError."""

    def emit(self, model: ir.Model, device: Device, outdir: Path, options: Mapping[str, Any]) -> Artifact:
        """Writes the output folder."""


@dataclass(frozen=True)
class Backend:
    """A row. lower: the passes after compression, in order. skips: exact passes that it does not want, by name.
    nested: whether a lowered graph may hold other graphs (If, Loop, Scan). uniform_heads: as of QuantizeOptions."""

    name: str
    about: str
    emitter: Emitter
    lower: tuple[Pass, ...]
    skips: frozenset[str] = frozenset()
    nested: bool = False
    uniform_heads: bool = False


BACKENDS: tuple[Backend, ...] = (
    Backend("native", "model.edgec and the runtime library", native, LOWER),
    # The past goes in and comes out: who calls onnxruntime keeps it.
    Backend("ort", "model.onnx for stock ONNX Runtime and onnxruntime-genai", ort, LOWER_ORT,
            skips=frozenset({"static_kv"}), nested=True),
    Backend("coreml", "model.mlpackage for Core ML on Apple's devices", coreml, LOWER_COREML,
            uniform_heads=True),
    Backend("tvm", "model.so, compiled by Apache TVM with our kernels in it", tvm, LOWER_TVM),
)


def backend(name: str) -> Backend:
    """The row of that name. Raises EdgecError (E0002)."""
    rows = {row.name: row for row in BACKENDS}
    if name not in rows:
        raise EdgecError("E0002", stage="options", where="--backend", found=repr(name), wanted="the name of a backend",
                         hint=did_you_mean(name, rows))
    return rows[name]
