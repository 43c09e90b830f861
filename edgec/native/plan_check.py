"""The rules of docs/format.md that concern more than one record of a plan, as a list of what breaks them.

The writer refuses a plan with problems and the reader a file with problems: a defect of the compiler becomes an error
message here and not wrong memory accesses on a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgec.compress.formats import Format
from edgec.errors import EdgecError
from edgec.native.dims import LIMIT, MAX_SIZE, Dim, product
from edgec.native.plan import ALIGN, KERNELS, Call, Entry, Operand, Plan, Port, Space, State, Weight, low_bit_matrices


def plan_problems(plan: Plan) -> list[str]:
    """Every broken rule in words; empty for a sound plan."""
    dims = sorted(set(plan.dims()), key=str)
    found = [f"dim {d} leaves 0..2^40" for d in dims if d.lo < 0 or d.hi > LIMIT]
    found += [f"dim {d} is too large an expression" for d in dims if d.size > MAX_SIZE]
    found += [
        f"state {s.name}: its dims use more than `context`"
        for s in plan.states if any(x.name != "context" for d in s.dims for x in d.symbols)
    ]
    for entry in plan.entries:
        found += [f"{entry.name}: {text}" for text in _entry(plan, entry)]
    return found


def _entry(plan: Plan, entry: Entry) -> Iterator[str]:
    regions, written = _Regions(), set[int]()
    for number, call in enumerate(entry.calls):
        where = f"call {number} ({call.kernel}, {call.layer})"
        if len(call.operands) < KERNELS[call.kernel].n_out:
            yield f"{where}: too few operands"
            continue
        for text in (*(t for o in call.operands for t in _operand(plan, entry, o)), *_low_bit(plan, call)):
            yield f"{where}: {text}"
        for operand in call.inputs:
            start, end = operand.offset, operand.offset + operand.bytes.hi
            if operand.space is Space.ARENA and end > start and not regions.holds(start, end):
                yield f"{where}: reads arena bytes {start}..{end} that no call left there"
            if operand.space is Space.OUTPUT and operand.index not in written:
                yield f"{where}: reads output {operand.index} before it is written"
        for text in _overlaps(call):
            yield f"{where}: {text}"
        for operand in call.outputs:
            if operand.space in (Space.INPUT, Space.WEIGHT):
                yield f"{where}: writes an {operand.space.name.lower()}"
            elif operand.space is Space.ARENA:
                regions.write(operand.offset, operand.offset + operand.bytes.hi)
            elif operand.space is Space.OUTPUT:
                written.add(operand.index)
                declared = entry.outputs[operand.index]
                if product(declared.dims) != product(operand.dims):
                    yield f"{where}: writes {product(operand.dims)} of {product(declared.dims)} values"
    for i, port in enumerate(entry.outputs):
        if i not in written:
            yield f"output {port.name} is written by no call"


def _operand(plan: Plan, entry: Entry, o: Operand) -> Iterator[str]:
    if o.space is Space.NONE:
        return
    if o.space is Space.ARENA:
        if o.index or o.offset % ALIGN or o.offset + o.bytes.hi > entry.arena_bytes:
            yield f"arena operand {o.index}, {o.offset} + {o.bytes.hi} of {entry.arena_bytes} bytes"
        return
    if o.offset:
        yield f"offset {o.offset} outside the arena"
    declared: Mapping[Space, Sequence[Weight | Port | State]] = {
        Space.WEIGHT: plan.weights, Space.INPUT: entry.inputs, Space.OUTPUT: entry.outputs, Space.STATE: plan.states
    }
    if o.index >= len(declared[o.space]):
        yield f"{o.space.name.lower()} {o.index} does not exist"
        return
    thing = declared[o.space][o.index]
    if o.dtype is not thing.dtype:
        yield f"{o.dtype.name} operand of the {thing.dtype.name} {o.space.name.lower()} {thing.name}"
    if isinstance(thing, Weight):
        if o.format is not thing.format or not _fits(o.bytes, thing.bytes, exact=thing.format is not Format.PLAIN):
            yield f"operand of {o.bytes} bytes of the tensor {thing.name}"
    elif o.format is not Format.PLAIN or (product(thing.dims) - product(o.dims)).lo < 0:
        yield f"operand {[str(d) for d in o.dims]} of {o.space.name.lower()} {thing.name}"


def _low_bit(plan: Plan, call: Call) -> Iterator[str]:
    """Parameters that do not give the bytes of the weight they are about."""
    try:
        matrices = low_bit_matrices(call)
    except EdgecError as e:
        yield f"{e.where} = {e.found}, wanted {e.wanted}"
        return
    for index, m in matrices:
        if index < len(plan.weights) and (m.n < 1 or m.k < 1 or m.bytes != plan.weights[index].bytes):
            yield f"{m.spec} of {m.n} x {m.k} in a tensor of {plan.weights[index].bytes} bytes"


def _fits(size: Dim, whole: int, *, exact: bool) -> bool:
    return size == whole if exact else size.hi <= whole


def _overlaps(call: Call) -> Iterator[str]:
    """Outputs that share bytes with an input where the kernel's row does not allow it, or with another output."""
    row = KERNELS[call.kernel]
    for i, out in enumerate(call.outputs):
        for j, other in enumerate(call.operands):
            if j == i or out.space is Space.NONE or not _share(out, other):
                continue
            same = out.offset == other.offset and out.bytes == other.bytes
            if j < row.n_out or not same or (i, j) not in row.in_place:
                yield f"output {i} overlaps operand {j}"


def _share(a: Operand, b: Operand) -> bool:
    same = (a.space, a.index) == (b.space, b.index)
    return same and a.offset < b.offset + b.bytes.hi and b.offset < a.offset + a.bytes.hi


@dataclass
class _Regions:
    """Byte ranges that hold what one call wrote and nobody wrote over since."""

    spans: list[tuple[int, int]] = field(default_factory=list)

    def write(self, start: int, end: int) -> None:
        kept = []
        for a, b in self.spans:
            if b <= start or a >= end:
                kept.append((a, b))
                continue
            # What sticks out on either side stays readable.
            kept += [(x, y) for x, y in ((a, start), (end, b)) if x < y]
        self.spans = [*kept, (start, end)]

    def holds(self, start: int, end: int) -> bool:
        return any(a <= start and end <= b for a, b in self.spans)
