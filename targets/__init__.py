"""Device rows, toolchains, and one emitter per backend: `emit(model, device, outdir, options) -> Artifact`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgec.errors import EdgecError, did_you_mean
from edgec.targets.coreml_options import CoreMLOptions

if TYPE_CHECKING:
    from edgec.native.plan import StoredWeight

Weights = Literal["auto", "f32", "f16", "bf16"]
Cache = Literal["f32", "f16", "int8", "int4"]
Arithmetic = Literal["exact", "fast"]


@dataclass(frozen=True)
class EmitOptions:
    """What the user decided about the output; the same for every backend.

    weights: storage of linear, convolution and embedding weights; auto keeps the smallest lossless one.
    kv: storage of the key/value cache. arithmetic: fast lets products with weights of few bits be computed in 8 bits
    (docs/kernels.md). max_context: tokens (None: the model's own maximum).
    prefill_chunk: tokens of one prefill or score call. memory_budget: bytes of planned peak memory, None: no limit.
    golden, tokenizer: store the reference's answers, and the tokenizer, in the bundle.
    config: the resolved command, written beside the bundle. passes: names of those that ran, in order.
    opset: of the ONNX file, for backends that write one (None: their default). library: of the ort backend alone, give
    edgec's kernels along as custom operators. coreml: of the coreml backend alone.
    reports: more files for reports/, each made of how the weights are stored.
    """

    weights: Weights = "auto"
    kv: Cache = "f32"
    arithmetic: Arithmetic = "exact"
    max_context: int | None = None
    prefill_chunk: int = 256
    memory_budget: int | None = None
    golden: bool = True
    tokenizer: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    opset: int | None = None
    library: bool = False
    coreml: CoreMLOptions = field(default_factory=CoreMLOptions)
    reports: Mapping[str, Callable[[Sequence[StoredWeight]], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises EdgecError EDGEC-E0002 for a value out of range."""
        for name, value, choices in (("weights", self.weights, get_args(Weights)), ("kv", self.kv, get_args(Cache)),
                                     ("arithmetic", self.arithmetic, get_args(Arithmetic))):
            if value not in choices:
                raise EdgecError("E0002", stage="options", where=name, found=repr(value), wanted="one of the choices",
                                 hint=did_you_mean(str(value), choices))
        for name, count in (("max_context", self.max_context), ("prefill_chunk", self.prefill_chunk)):
            if count is not None and count < 1:
                raise EdgecError("E0002", stage="options", where=name, found=str(count), wanted="at least 1")


@dataclass(frozen=True)
class Artifact:
    """A finished output folder. Paths are absolute.

    bundle: the file with the model, model.edgec or model.onnx. library, header: what it needs besides, if the backend
    gives it along. memory: the content of reports/memory.json, empty where another runtime decides about it.
    notes: sentences for the user.
    """

    outdir: Path
    bundle: Path
    manifest: dict[str, Any]
    library: Path | None = None
    header: Path | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
