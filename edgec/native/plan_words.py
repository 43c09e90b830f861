"""The PLAN section: a Plan as 32-bit words and back (docs/format.md)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from edgec.compress.formats import Dtype, Format
from edgec.errors import EdgecError
from edgec.native.dims import MAX_SIZE, Dim, DimTable, Op, build, dim, symbol
from edgec.native.plan import KERNELS, Call, Entry, Operand, Plan, Port, Space, State, Weight

T = TypeVar("T")

_MAX_DIMS = _MAX_STATES = 4096
_MAX_ENTRIES, _MAX_CALLS, _MAX_OPERANDS, _MAX_INTS, _MAX_FLOATS, _MAX_RANK = 16, 65536, 64, 64, 16, 8
_MAX_PORTS = 4096


def damaged(where: str, found: str, wanted: str = "") -> EdgecError:
    """The error for a bundle that breaks a rule of the format."""
    return EdgecError("E0401", stage="bundle", where=where, found=found, wanted=wanted,
                      hint="compile the model again, or copy the file again")


class Strings:
    """Text to index, each text once, in order of first use."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self._known: dict[str, int] = {}

    def add(self, text: str) -> int:
        """The index of `text`. Raises ValueError for text that the format cannot hold."""
        if text not in self._known:
            if not 1 <= len(text.encode()) <= 1024 or not text.isprintable():
                raise ValueError(f"{text!r} cannot be a string of a bundle")
            self._known[text] = len(self.items)
            self.items.append(text)
        return self._known[text]


def encode(plan: Plan, strings: Strings) -> bytes:
    """The words of `plan`; names go into `strings`. Raises ValueError where the plan exceeds a limit of the format."""
    table = DimTable()
    body = _Writer(strings, table)
    body.count(len(plan.states), _MAX_STATES)
    for state in plan.states:
        body.port(Port(state.name, state.dtype, state.dims))
        body.u32(state.sequence_axis)
    body.count(len(plan.entries), _MAX_ENTRIES)
    for entry in plan.entries:
        body.u32(strings.add(entry.name))
        body.u64(entry.arena_bytes)
        body.u64(entry.scratch_bytes)
        for ports in (entry.inputs, entry.outputs):
            body.count(len(ports), _MAX_PORTS)
            for port in ports:
                body.port(port)
        body.count(len(entry.calls), _MAX_CALLS)
        for call in entry.calls:
            body.call(call)
    head = _Writer(strings, table)
    for word in (plan.model_kind, plan.max_context, plan.vocab_size, plan.prefill_chunk):
        head.u32(word)
    # The body was written first, so the table is complete here.
    head.count(len(table.rows), _MAX_DIMS)
    for op, a, b, c in table.rows:
        head.u32(op)
        head.u32(strings.add(a) if isinstance(a, str) else a)
        head.u32(b)
        head.u32(c)
    return bytes(head.data + body.data)


class _Writer:
    def __init__(self, strings: Strings, table: DimTable) -> None:
        self.strings, self.table, self.data = strings, table, bytearray()

    def u32(self, value: int) -> None:
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{value} is no 32-bit word")
        self.data += struct.pack("<I", value)

    def u64(self, value: int) -> None:
        self.data += struct.pack("<Q", value)

    def count(self, value: int, most: int) -> None:
        if value > most:
            raise ValueError(f"{value} records, at most {most}")
        self.u32(value)

    def shape(self, dims: Sequence[Dim]) -> None:
        self.count(len(dims), _MAX_RANK)
        for d in dims:
            self.u32(self.table.add(d))

    def port(self, port: Port) -> None:
        self.u32(self.strings.add(port.name))
        self.u32(port.dtype)
        self.shape(port.dims)

    def call(self, call: Call) -> None:
        self.u32(self.strings.add(call.kernel))
        self.u32(self.strings.add(call.layer))
        self.count(len(call.operands), _MAX_OPERANDS)
        for operand in call.operands:
            self.u32(operand.space)
            if operand.space is Space.NONE:
                continue
            self.u32(operand.index)
            self.u64(operand.offset)
            self.u32(operand.dtype)
            self.u32(operand.format)
            self.shape(operand.dims)
        self.count(len(call.ints), _MAX_INTS)
        for value in call.ints:
            if isinstance(value, Dim):
                self.u32(1)
                self.data += struct.pack("<q", self.table.add(value))
            else:
                self.u32(0)
                self.data += struct.pack("<q", value)
        self.count(len(call.floats), _MAX_FLOATS)
        for number in call.floats:
            if math.isnan(number):
                raise EdgecError("E0301", stage="bundle", where=f"{call.kernel} of {call.layer}",
                                 found="a parameter that is NaN", wanted="numbers")
            self.data += struct.pack("<f", number)


def decode(data: bytes, strings: Sequence[str], weights: tuple[Weight, ...]) -> Plan:
    """The plan of a PLAN section. Raises EdgecError (E0401) for anything but a well-formed one."""
    reader = _Reader(data, strings)
    kind, context, vocab, chunk = (reader.u32() for _ in range(4))
    reader.read_dims()
    states = tuple(reader.state() for _ in range(reader.count(_MAX_STATES, "states")))
    entries = tuple(reader.entry() for _ in range(reader.count(_MAX_ENTRIES, "entries")))
    if reader.at != len(data):
        raise damaged("PLAN", f"{len(data) - reader.at} bytes after the last entry")
    if (kind, bool(context), bool(vocab), bool(chunk)) not in ((0, False, False, False), (1, True, True, True)):
        raise damaged("PLAN", f"model kind {kind} with context {context}, vocabulary {vocab}, chunk {chunk}")
    try:
        return Plan(kind, context, vocab, chunk, weights, states, entries)
    except ValueError as e:
        raise damaged("PLAN", str(e)) from e


class _Reader:
    def __init__(self, data: bytes, strings: Sequence[str]) -> None:
        self.data, self.strings, self.at = data, strings, 0
        self.dims: list[Dim] = []

    def take(self, layout: str) -> int | float:
        size = struct.calcsize(layout)
        if self.at + size > len(self.data):
            raise damaged("PLAN", "it ends in the middle of a record")
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += size
        return value  # type: ignore[no-any-return]

    def u32(self) -> int:
        return int(self.take("<I"))

    def count(self, most: int, what: str) -> int:
        value = self.u32()
        if value > most:
            raise damaged("PLAN", f"{value} {what}", f"at most {most}")
        return value

    def pick(self, items: Sequence[T], what: str) -> T:
        index = self.u32()
        if index >= len(items):
            raise damaged("PLAN", f"{what} {index}", f"below {len(items)}")
        return items[index]

    def text(self) -> str:
        return self.pick(self.strings, "string")

    def kind(self, make: Callable[[int], T], what: str) -> T:
        value = self.u32()
        try:
            return make(value)
        except ValueError as e:
            raise damaged("PLAN", f"{what} {value}") from e

    def read_dims(self) -> None:
        for _ in range(self.count(_MAX_DIMS, "dims")):
            op = self.kind(Op, "dim operation")
            if op is Op.SYMBOL:
                name, low, high = self.text(), self.u32(), self.u32()
                try:
                    value = symbol(name, low, high)
                except ValueError as e:
                    raise damaged("PLAN", str(e)) from e
            elif op is Op.CONST:
                value = dim(self.u32())
                if self.u32() or self.u32():
                    raise damaged("PLAN", "a constant dim with operands")
            else:
                a, b = self.pick(self.dims, "dim"), self.pick(self.dims, "dim")
                if self.u32():
                    raise damaged("PLAN", "a dim with three operands")
                try:
                    value = build(op, a, b)
                except ValueError as e:
                    raise damaged("PLAN", str(e)) from e
            if value.size > MAX_SIZE:
                raise damaged("PLAN", f"dim {len(self.dims)} is too large an expression")
            self.dims.append(value)

    def shape(self) -> tuple[Dim, ...]:
        return tuple(self.pick(self.dims, "dim") for _ in range(self.count(_MAX_RANK, "dims of one operand")))

    def port(self) -> Port:
        return Port(self.text(), self.kind(Dtype, "type"), self.shape())

    def state(self) -> State:
        port, axis = self.port(), self.u32()
        if axis >= len(port.dims):
            raise damaged("PLAN", f"sequence axis {axis} of rank {len(port.dims)}")
        return State(port.name, port.dtype, port.dims, axis)

    def entry(self) -> Entry:
        name, arena, scratch = self.text(), int(self.take("<Q")), int(self.take("<Q"))
        inputs = tuple(self.port() for _ in range(self.count(_MAX_PORTS, "inputs")))
        outputs = tuple(self.port() for _ in range(self.count(_MAX_PORTS, "outputs")))
        calls = tuple(self.call() for _ in range(self.count(_MAX_CALLS, "calls")))
        return Entry(name, inputs, outputs, calls, arena, scratch)

    def call(self) -> Call:
        kernel, layer = self.text(), self.text()
        if kernel not in KERNELS:
            raise damaged("PLAN", f"kernel {kernel!r}")
        operands = tuple(self.operand() for _ in range(self.count(_MAX_OPERANDS, "operands")))
        ints: list[int | Dim] = []
        for _ in range(self.count(_MAX_INTS, "integers")):
            kind, value = self.u32(), int(self.take("<q"))
            if kind > 1 or (kind == 1 and not 0 <= value < len(self.dims)):
                raise damaged("PLAN", f"integer of kind {kind}, value {value}")
            ints.append(self.dims[value] if kind else value)
        floats = tuple(float(self.take("<f")) for _ in range(self.count(_MAX_FLOATS, "floats")))
        if any(math.isnan(f) for f in floats):
            raise damaged("PLAN", f"NaN among the parameters of {layer!r}")
        return Call(kernel, layer, operands, tuple(ints), floats)

    def operand(self) -> Operand:
        space = self.kind(Space, "space")
        if space is Space.NONE:
            return Operand(Space.NONE)
        index, offset = self.u32(), int(self.take("<Q"))
        dtype, fmt = self.kind(Dtype, "type"), self.kind(Format, "format")
        return Operand(space, index, offset, dtype, fmt, self.shape())
