"""From drafted calls to an Entry: dead calls out, fusions, buffers merged in place, offsets."""

from __future__ import annotations

from edgec.native.arena import Buffer, place
from edgec.native.lower_fuse import fuse
from edgec.native.lower_values import Buf, Draft, Lowering, Value, View
from edgec.native.plan import ABSENT, KERNELS, Call, Entry, Operand, Port, Space
from edgec.native.scratch import scratch_bytes


def bind_output(ctx: Lowering, value: Value, index: int) -> None:
    """Lets `value` end up in the entry's output `index`, row-major.

    The call that makes it writes there directly, unless it is an input, a weight, a state or another output already.
    """
    view = ctx.rows(value)
    if view.buf.space is Space.ARENA:
        view.buf.space, view.buf.index = Space.OUTPUT, index
        return
    ctx.emit("copy", [View(Buf(Space.OUTPUT, view.buf.bytes, index), view.dtype, view.dims)], [view])


def finish(name: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...], drafts: list[Draft]) -> Entry:
    """The entry with every operand placed."""
    drafts = fuse(_alive(drafts))
    offsets, total = _place(drafts)

    def operand(view: View | None) -> Operand:
        if view is None:
            return ABSENT
        offset = offsets[view.buf] if view.buf.space is Space.ARENA else 0
        return Operand(view.buf.space, view.buf.index, offset, view.dtype, view.format, view.dims)

    calls = tuple(
        Call(d.kernel, d.layer, tuple(map(operand, d.operands)), tuple(d.ints), tuple(d.floats)) for d in drafts
    )
    return Entry(name, inputs, outputs, calls, total, scratch_bytes(calls))


def _alive(drafts: list[Draft]) -> list[Draft]:
    """Without the calls whose results nobody reads."""
    needed: set[Buf] = set()
    kept: list[Draft] = []
    for draft in reversed(drafts):
        n_out = KERNELS[draft.kernel].n_out
        outs = [v.buf for v in draft.operands[:n_out] if v is not None]
        if any(buf.space is not Space.ARENA or buf in needed for buf in outs):
            needed.update(v.buf for v in draft.operands[n_out:] if v is not None)
            kept.append(draft)
    return kept[::-1]


def _place(drafts: list[Draft]) -> tuple[dict[Buf, int], int]:
    """Arena offset of every buffer, and the arena's size with every symbol at its maximum."""
    first: dict[Buf, int] = {}
    last: dict[Buf, int] = {}
    for step, draft in enumerate(drafts):
        for view in draft.operands:
            if view is not None and view.buf.space is Space.ARENA:
                first.setdefault(view.buf, step)
                last[view.buf] = step
    home = _merged(drafts, last)
    groups: dict[Buf, list[Buf]] = {}
    for buf in first:
        groups.setdefault(home(buf), []).append(buf)
    roots = list(groups)
    # `hi` and not the value at the maxima: a size that shrinks while a symbol grows must fit, too.
    buffers = [
        Buffer(root.bytes.hi, min(first[b] for b in groups[root]), max(last[b] for b in groups[root])) for root in roots
    ]
    placed = place(buffers)
    at = dict(zip(roots, placed.offsets, strict=True))
    return {buf: at[home(buf)] for buf in first}, placed.total


class _Homes:
    """Which buffers share memory; `homes(buf)` is the first of them."""

    def __init__(self) -> None:
        self.parent: dict[Buf, Buf] = {}

    def __call__(self, buf: Buf) -> Buf:
        while buf in self.parent:
            buf = self.parent[buf]
        return buf


def _merged(drafts: list[Draft], last: dict[Buf, int]) -> _Homes:
    """Merges an output with an input that dies at the call, where the kernel's row allows working in place."""
    homes = _Homes()
    for step, draft in enumerate(drafts):
        row = KERNELS[draft.kernel]
        for out_place, in_place in row.in_place:
            if in_place >= len(draft.operands):
                continue
            out, source = draft.operands[out_place], draft.operands[in_place]
            if out is None or source is None or {out.buf.space, source.buf.space} != {Space.ARENA}:
                continue
            places = [i for i, v in enumerate(draft.operands) if v is not None and v.buf is source.buf]
            allowed = all((out_place, i) in row.in_place for i in places)
            same = out.buf.bytes == source.buf.bytes and out.dtype is source.dtype and out.dims == source.dims
            if allowed and same and last[source.buf] == step:
                homes.parent[out.buf] = homes(source.buf)
                break  # one pair per call: two would let one output overwrite what the other still needs
    return homes
