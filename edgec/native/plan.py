"""The plan: a flat list of kernel calls per entry, with every byte placed before the first run.

A `Plan` is immutable data without pointers; `edgec/native/bundle.py` writes and reads it, `Plan.text()` shows it, and
docs/format.md states its rules. Weights carry a loader instead of values, so a plan of a large model is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from edgec.compress.formats import Array, Dtype, Format, storage_bytes
from edgec.compress.low_bit import LowBitMatrix
from edgec.native.dims import Dim, product

ALIGN = 64


class Space(IntEnum):
    """Where an operand lies, numbered as in docs/format.md."""

    NONE = 0
    ARENA = 1
    WEIGHT = 2
    INPUT = 3
    OUTPUT = 4
    STATE = 5


@dataclass(frozen=True)
class KernelRow:
    """n_out: leading operands that are written. in_place: (output, input) operand pairs that may share all bytes."""

    n_out: int = 1
    in_place: tuple[tuple[int, int], ...] = ()


_NORM = ((0, 2), (0, 3), (1, 2), (1, 3))
# One row per kernel of docs/kernels.md; kernels/kernels.def holds the same names and counts.
KERNELS: dict[str, KernelRow] = {
    "linear": KernelRow(), "linear_split": KernelRow(4), "linear_bits": KernelRow(), "linear_bits_split": KernelRow(4),
    "gather_bits": KernelRow(), "conv2d": KernelRow(), "conv2d_winograd": KernelRow(),
    "conv2d_bits": KernelRow(), "dwconv2d": KernelRow(), "mbconv2d": KernelRow(),
    "conv2d_q8": KernelRow(), "dwconv2d_q8": KernelRow(), "pool2d_q8": KernelRow(), "add_q8": KernelRow(),
    "table_q8": KernelRow(), "quantize": KernelRow(), "dequantize": KernelRow(),
    "pool2d": KernelRow(), "resize2d": KernelRow(), "rnn": KernelRow(3),
    "selective_scan": KernelRow(2), "causal_conv1d": KernelRow(2), "dynamic_depthwise": KernelRow(),
    "groupnorm": KernelRow(1, ((0, 1),)),
    "matmul": KernelRow(), "attention_cached": KernelRow(), "attention": KernelRow(), "kv_write": KernelRow(),
    "rmsnorm": KernelRow(2, _NORM), "layernorm": KernelRow(2, _NORM), "rope": KernelRow(1, ((0, 1),)),
    "unary": KernelRow(1, ((0, 1),)), "binary": KernelRow(1, ((0, 1), (0, 2))), "glu": KernelRow(1, ((0, 1), (0, 2))),
    "where": KernelRow(), "softmax": KernelRow(1, ((0, 1),)), "reduce": KernelRow(), "argmax": KernelRow(),
    "gather": KernelRow(), "scatter": KernelRow(), "topk": KernelRow(2), "bitwise": KernelRow(),
    "transpose": KernelRow(), "slice": KernelRow(), "concat": KernelRow(), "pad": KernelRow(),
    "expand": KernelRow(), "cast": KernelRow(), "copy": KernelRow(), "iota": KernelRow(),
}


@dataclass(frozen=True)
class Operand:
    """A view of `dims` values in a space. offset: bytes, arena only. index: which tensor, input, output or state."""

    space: Space
    index: int = 0
    offset: int = 0
    dtype: Dtype = Dtype.F32
    format: Format = Format.PLAIN
    dims: tuple[Dim, ...] = ()

    @property
    def bytes(self) -> Dim:
        """Stored bytes as an expression."""
        if self.format is Format.PANEL16:
            *lead, n, k = self.dims
            return product([*lead, n.ceildiv(16), 16, k]) * self.dtype.size
        return product(self.dims) * self.dtype.size


ABSENT = Operand(Space.NONE)


@dataclass(frozen=True)
class Call:
    """One kernel run. layer: the module path it came from. ints: values or dims."""

    kernel: str
    layer: str
    operands: tuple[Operand, ...]
    ints: tuple[int | Dim, ...] = ()
    floats: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"no kernel {self.kernel!r}")
        # As the file holds them, so that a plan that was read equals the one that was written.
        object.__setattr__(self, "floats", tuple(float(np.float32(f)) for f in self.floats))

    @property
    def outputs(self) -> tuple[Operand, ...]:
        return self.operands[: KERNELS[self.kernel].n_out]

    @property
    def inputs(self) -> tuple[Operand, ...]:
        return self.operands[KERNELS[self.kernel].n_out :]


@dataclass(frozen=True)
class Port:
    """A named input or output of an entry."""

    name: str
    dtype: Dtype
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class State:
    """Memory kept between runs, zero at session creation; dims are constant or use the symbol `context` only."""

    name: str
    dtype: Dtype
    dims: tuple[Dim, ...]
    sequence_axis: int

    @property
    def bytes(self) -> Dim:
        return product(self.dims) * self.dtype.size


def _nothing() -> None:
    """Weights that hold no file need no release."""


@dataclass(frozen=True)
class Weight:
    """A constant tensor. load: its logical values (float32 for float types), read anew at every call. release: gives
    back the memory behind them, once no array from `load` is in use. origin: the compressed form that the model has it
    in, while the plan stores it dense; not in the file."""

    name: str
    dtype: Dtype
    format: Format
    dims: tuple[int, ...]
    load: Callable[[], Array] = field(compare=False, repr=False)
    release: Callable[[], None] = field(default=_nothing, compare=False, repr=False)
    origin: str = field(default="", compare=False)

    @property
    def bytes(self) -> int:
        return storage_bytes(self.dtype, self.format, self.dims)


@dataclass(frozen=True)
class Entry:
    """One callable of the model. arena_bytes, scratch_bytes (per thread): with every symbol at its maximum."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calls: tuple[Call, ...]
    arena_bytes: int
    scratch_bytes: int = 0


def low_bit_matrices(call: Call) -> list[tuple[int, LowBitMatrix]]:
    """(tensor, what it is) of each weight of few bits that a call reads.

    Raises EdgecError (E0002) for parameters that no format has.
    """
    ints = [_number(i) for i in call.ints]
    if call.kernel == "linear_bits":
        n, *form = ints[2:6]
        return [(call.operands[2].index, LowBitMatrix.of(n, call.operands[1].dims[-1].hi, *form))]
    if call.kernel == "linear_bits_split":
        outs = KERNELS[call.kernel].n_out
        parts = zip(call.operands[:outs], call.operands[outs + 1 :], ints[2::2], ints[3::2], strict=False)
        return [(w.index, LowBitMatrix.of(y.dims[-1].hi, call.operands[outs].dims[-1].hi, bits, ints[1], form))
                for y, w, bits, form in parts if w.space is not Space.NONE]
    if call.kernel == "conv2d_bits":
        n, *form = ints[10:14]
        k = ints[0] * ints[1] * call.operands[1].dims[-1].hi
        return [(call.operands[2].index, LowBitMatrix.of(n, k, *form))]
    if call.kernel == "gather_bits":
        n, k, *form = ints[:5]
        return [(call.operands[1].index, LowBitMatrix.of(n, k, *form))]
    return []


# Products that look few rows up in tables, and how many ints they have without the last, optional one: fast.
TABLES = {"linear_bits": 6, "linear_bits_split": 2 + 2 * KERNELS["linear_bits_split"].n_out}


def is_fast(call: Call) -> bool:
    """Whether the call may compute in 8 bits."""
    return len(call.ints) > TABLES.get(call.kernel, len(call.ints)) and bool(call.ints[-1])


def kernel_text(call: Call) -> str:
    """The kernel as reports name it."""
    return f"{call.kernel} fast" if is_fast(call) else call.kernel


def _number(value: int | Dim) -> int:
    return value.hi if isinstance(value, Dim) else value


@dataclass(frozen=True)
class StoredWeight:
    """How the plan stores a weight of logical `shape`. form: "f16/p16", "hlq2g128"; origin: as of Weight; kernels:
    that read it."""

    name: str
    shape: tuple[int, ...]
    form: str
    bytes: int
    origin: str
    kernels: tuple[str, ...]

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=object))

    @property
    def bits(self) -> float:
        """Stored bits per value, padding and scales included."""
        return 8 * self.bytes / self.count if self.count else 0.0

    def text(self) -> str:
        return f"{self.form}[{', '.join(map(str, self.shape))}] {self.bits:.4g} bits"


@dataclass(frozen=True)
class MemoryTable:
    """Bytes a process needs: the mapped weights, one arena (the largest entry's), scratch per thread, and the state.

    bits_per_weight: of all tensors together. unpacked: weights that the model has compressed and the plan has not.
    state: context length -> bytes; the key is 0 for models without state. state_per_token: what each token adds to it.
    """

    weights: int
    bits_per_weight: float
    unpacked: tuple[StoredWeight, ...]
    arena: dict[str, int]
    scratch_per_thread: int
    state: dict[int, int]
    state_per_token: int

    @property
    def peak(self) -> dict[int, int]:
        """Context length -> total bytes with one thread."""
        fixed = self.weights + max(self.arena.values()) + self.scratch_per_thread
        return {context: fixed + state for context, state in self.state.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": self.weights, "bits_per_weight": round(self.bits_per_weight, 4),
            "unpacked": [{"name": w.name, "from": w.origin, "stored": w.form, "read_by": list(w.kernels)}
                         for w in self.unpacked],
            "arena": dict(self.arena),
            "scratch_per_thread": self.scratch_per_thread, "state_per_token": self.state_per_token,
            "state": {str(k): v for k, v in self.state.items()}, "peak": {str(k): v for k, v in self.peak.items()},
        }


@dataclass(frozen=True)
class Plan:
    """A compiled model. model_kind: 0 generic (then the three fields after it are 0), 1 causal language model."""

    model_kind: int
    max_context: int
    vocab_size: int
    prefill_chunk: int
    weights: tuple[Weight, ...]
    states: tuple[State, ...]
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if self.model_kind not in (0, 1):
            raise ValueError(f"model kind {self.model_kind} does not exist")
        wanted = {"main"} if self.model_kind == 0 else {"prefill", "decode", "score"}
        if {e.name for e in self.entries} != wanted:
            raise ValueError(f"entries {[e.name for e in self.entries]}, wanted {sorted(wanted)}")

    def entry(self, name: str) -> Entry:
        """The entry `name`; KeyError when there is none."""
        return {e.name: e for e in self.entries}[name]

    def dims(self) -> Iterator[Dim]:
        """Every dim the plan uses, in file order, with repetition."""
        for state in self.states:
            yield from state.dims
        for entry in self.entries:
            for port in (*entry.inputs, *entry.outputs):
                yield from port.dims
            for call in entry.calls:
                for operand in call.operands:
                    yield from operand.dims
                yield from (i for i in call.ints if isinstance(i, Dim))

    def memory_table(self, contexts: Sequence[int] = ()) -> MemoryTable:
        """Memory at the given context lengths (default: the maximum)."""
        chosen = (tuple(contexts) or (self.max_context,)) if self.states else (0,)
        state = {c: sum(s.bytes.at({"context": c}) for s in self.states) for c in chosen}
        stored = self.stored()
        weights, values = sum(w.bytes for w in stored), sum(w.count for w in stored)
        return MemoryTable(
            weights=weights, bits_per_weight=8 * weights / max(1, values),
            unpacked=tuple(w for w in stored if w.origin),
            arena={e.name: e.arena_bytes for e in self.entries},
            scratch_per_thread=max(e.scratch_bytes for e in self.entries), state=state,
            state_per_token=sum(s.bytes.at({"context": 1}) for s in self.states) if self.model_kind else 0,
        )

    def stored(self) -> tuple[StoredWeight, ...]:
        """Every weight, in order, with its logical shape and the kernels that read it."""
        low: dict[int, LowBitMatrix] = {}
        kernels: dict[int, dict[str, None]] = {}
        for call in (c for e in self.entries for c in e.calls):
            low.update(low_bit_matrices(call))
            for operand in call.inputs:
                if operand.space is Space.WEIGHT:
                    kernels.setdefault(operand.index, {})[kernel_text(call)] = None
        found = []
        for i, w in enumerate(self.weights):
            form, shape = _form(w.dtype, w.format), w.dims
            if i in low:
                form, shape = str(low[i].spec), (low[i].n, low[i].k)
            found.append(StoredWeight(w.name, shape, form, w.bytes, w.origin, tuple(kernels.get(i, ()))))
        return tuple(found)

    def text(self) -> str:
        """The whole plan, one line per weight, state and call; stable between runs."""
        lines = [f"kind {('generic', 'causal-lm')[self.model_kind]}"]
        if self.model_kind:
            lines[0] += f"  context {self.max_context}  vocab {self.vocab_size}  chunk {self.prefill_chunk}"
        for symbol in sorted({s for d in self.dims() for s in d.symbols}, key=lambda s: s.name):
            lines.append(f"symbol {symbol.name} in {symbol.min}..{symbol.max}")
        for i, (weight, stored) in enumerate(zip(self.weights, self.stored(), strict=True)):
            low = f" = {stored.text()}" if stored.form != _form(weight.dtype, weight.format) else ""
            dense = f", dense from {weight.origin}" if weight.origin else ""
            lines.append(f"w{i} {weight.name}: {_type(weight.dtype, weight.format, weight.dims)}{low}{dense}")
        for i, state in enumerate(self.states):
            shape = _type(state.dtype, Format.PLAIN, state.dims)
            lines.append(f"s{i} {state.name}: {shape} axis {state.sequence_axis}")
        for entry in self.entries:
            lines.append(f"entry {entry.name}  arena {entry.arena_bytes}  scratch {entry.scratch_bytes}")
            for tag, ports in (("in", entry.inputs), ("out", entry.outputs)):
                for i, port in enumerate(ports):
                    lines.append(f"  {tag}{i} {port.name}: {_type(port.dtype, Format.PLAIN, port.dims)}")
            lines.extend("  " + call_text(call) for call in entry.calls)
        return "\n".join(lines) + "\n"


def call_text(call: Call) -> str:
    """One line: `y, sum = kernel(x, w; ints | floats)  # layer`."""
    outs = ", ".join(map(_operand, call.outputs))
    ins = ", ".join(map(_operand, call.inputs))
    params = " ".join(map(str, call.ints))
    if call.floats:
        params += " | " + " ".join(f"{f:.9g}" for f in call.floats)
    return f"{outs} = {call.kernel}({ins}{'; ' + params.strip() if params else ''})  # {call.layer}"


_PREFIX: Mapping[Space, str] = {Space.WEIGHT: "w", Space.INPUT: "in", Space.OUTPUT: "out", Space.STATE: "s"}


def _form(dtype: Dtype, fmt: Format) -> str:
    return f"{dtype.name.lower()}{'/p16' if fmt is Format.PANEL16 else ''}"


def _type(dtype: Dtype, fmt: Format, dims: Sequence[Dim | int]) -> str:
    return f"{_form(dtype, fmt)}[{', '.join(map(str, dims))}]"


def _operand(operand: Operand) -> str:
    if operand.space is Space.NONE:
        return "-"
    place = f"@{operand.offset}" if operand.space is Space.ARENA else f"{_PREFIX[operand.space]}{operand.index}"
    return f"{place}:{_type(operand.dtype, operand.format, operand.dims)}"
