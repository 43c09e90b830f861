"""Fusions on the drafted calls: activations, biases and residuals into products, additions into norms, gates, the
slices of a product into its outputs, and products of few bits that read one value into one call.

Every arena buffer is written once, so a call may move down to the place of a later call that absorbs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

from edgec.compress.formats import PANEL, Dtype
from edgec.compress.low_bit import PALETTE_HALF
from edgec.native.dims import Dim, dim, product
from edgec.native.lower_values import Buf, Draft, View
from edgec.native.plan import KERNELS, Space

# Products, with the place of `act, residual_first` among their ints.
_PRODUCTS = {"linear": 0, "linear_bits": 0, "conv2d": -2, "conv2d_winograd": -2, "conv2d_bits": 8, "dwconv2d": -2,
             "dynamic_depthwise": 1}
_ACTIVATIONS = range(1, 32)
_ADD, _MUL, _SILU = 0, 2, 4
_BIAS, _RESIDUAL, _SCALE = 3, 4, 5  # operand places of a product: y, x, w, bias, residual; dynamic_depthwise's scale
# An inverted residual is worth a call of its own when its widened image would leave the L2 cache (bytes), and when it
# has rows enough to cut (contract/compute.cpp): a thread's tiles compute the rows between them twice.
_WIDE, _TALL = 512 * 1024, 24


class _Calls:
    """The drafts with who writes and reads each buffer."""

    def __init__(self, drafts: list[Draft]) -> None:
        self.drafts: list[Draft | None] = list(drafts)
        self.writer: dict[Buf, int] = {}
        self.readers: dict[Buf, list[int]] = {}
        for i, draft in enumerate(drafts):
            for place, view in enumerate(draft.operands):
                if view is not None and place < KERNELS[draft.kernel].n_out:
                    self.writer[view.buf] = i
                elif view is not None:
                    self.readers.setdefault(view.buf, []).append(i)

    def maker(self, view: View | None) -> int | None:
        """The call that writes `view`, when the only reading of it is one operand of one call and it is in the
        arena."""
        if view is None or view.buf.space is not Space.ARENA or len(self.readers.get(view.buf, [])) != 1:
            return None
        return self.writer.get(view.buf)

    def put(self, at: int, draft: Draft, gone: int) -> None:
        """`draft` replaces the call at `at`; the call at `gone` is absorbed."""
        self.drafts[gone] = None
        self.drafts[at] = draft
        for place, view in enumerate(draft.operands):
            if view is None:
                continue
            if place < KERNELS[draft.kernel].n_out:
                self.writer[view.buf] = at
            elif view.buf in self.readers:
                self.readers[view.buf] = [at if i == gone else i for i in self.readers[view.buf]]


def fuse(drafts: list[Draft]) -> list[Draft]:
    """The drafts with every fusion applied; gates first, because a gate's activation must not join its product."""
    calls = _Calls(drafts)
    steps: tuple[Callable[[_Calls, int, Draft], None], ...] = (
        _gate, _scaled, _epilogue, _repeated, _sum_into_norm, _split, _inverted)
    for step in steps:
        for at in range(len(calls.drafts)):
            draft = calls.drafts[at]
            if draft is not None:
                step(calls, at, draft)
    _join_siblings(calls)
    return [d for d in calls.drafts if d is not None]


def _gate(calls: _Calls, at: int, draft: Draft) -> None:
    """act(a) * b -> glu."""
    if draft.kernel != "binary" or draft.ints[0] != _MUL:
        return
    out, left, right = draft.operands
    assert out is not None
    assert left is not None
    assert right is not None
    if left.dims != right.dims or left.dims != out.dims:
        return
    for gate, other in ((left, right), (right, left)):
        made = calls.maker(gate)
        act = None if made is None else calls.drafts[made]
        if made is None or act is None or act.kernel != "unary" or act.ints[0] not in _ACTIVATIONS:
            continue
        source = act.operands[1]
        assert source is not None
        ins: list[View | None] = [out, replace(source, dims=out.dims), other]
        calls.put(at, Draft("glu", draft.layer, ins, [act.ints[0]], list(act.floats)), made)
        return


def _scaled(calls: _Calls, at: int, draft: Draft) -> None:
    """A constant factor per channel joins dynamic_depthwise, which has nothing to fold it into."""
    if draft.kernel != "binary" or draft.ints[0] != _MUL:
        return
    out, left, right = draft.operands
    for mine, other in ((left, right), (right, left)):
        made = calls.maker(mine)
        call = None if made is None else calls.drafts[made]
        if made is None or call is None or call.kernel != "dynamic_depthwise" or call.operands[_SCALE] is not None:
            continue
        y = call.operands[0]
        assert y is not None
        assert out is not None
        assert other is not None
        channels = y.dims[-1]
        if out.dims == y.dims and other.dims[-1:] == (channels,) and product(other.dims) == channels \
                and other.buf.space is Space.WEIGHT:
            operands = [replace(y, buf=out.buf), *call.operands[1:_SCALE], replace(other, dims=(channels,))]
            calls.put(at, Draft(call.kernel, call.layer, operands, call.ints, call.floats), made)
            return


def _epilogue(calls: _Calls, at: int, draft: Draft) -> None:
    """A following activation, constant bias or addition joins linear, conv2d, dwconv2d or dynamic_depthwise; an
    activation joins groupnorm, too."""
    if draft.kernel == "unary" and draft.ints[0] in _ACTIVATIONS:
        made = calls.maker(draft.operands[1])
        product_call = None if made is None else calls.drafts[made]
        if made is not None and product_call is not None and product_call.kernel == "groupnorm":
            y, out = product_call.operands[0], draft.operands[0]
            assert y is not None
            assert out is not None
            if product_call.ints[1] == 0:
                calls.put(at, Draft("groupnorm", product_call.layer,
                                    [replace(y, buf=out.buf), *product_call.operands[1:]],
                                    [product_call.ints[0], draft.ints[0]],
                                    [product_call.floats[0], *draft.floats]), made)
            return
        if made is None or product_call is None or _act(product_call) != 0:
            return
        # The activation comes after whatever was added before.
        first = int(product_call.operands[_RESIDUAL] is not None)
        calls.put(at, _extended(product_call, draft, act=draft.ints[0], first=first, floats=draft.floats), made)
    elif draft.kernel == "binary" and draft.ints[0] == _ADD:
        out, left, right = draft.operands
        assert out is not None
        assert left is not None
        assert right is not None
        for mine, other in ((left, right), (right, left)):
            made = calls.maker(mine)
            product_call = None if made is None else calls.drafts[made]
            if made is None or product_call is None or product_call.kernel not in _PRODUCTS or mine.dims != out.dims:
                continue
            if product_call.operands[_RESIDUAL] is not None:
                continue
            y = product_call.operands[0]
            assert y is not None
            channels = y.dims[-1]
            is_row = product(other.dims) == channels and other.dims[-1:] == (channels,) and mine.dims[-1] == channels
            # With one row both shapes are the same; then a constant is a bias and anything else a residual.
            is_bias = is_row and (other.dims != out.dims or other.buf.space is Space.WEIGHT)
            if is_bias and not _act(product_call) and product_call.operands[_BIAS] is None:
                bias = replace(other, dims=(channels,))
                calls.put(at, _extended(product_call, draft, bias=bias), made)
                return
            if other.dims == out.dims and other.buf is not mine.buf:
                calls.put(at, _extended(product_call, draft, residual=replace(other, dims=y.dims)), made)
                return


def _repeated(calls: _Calls, at: int, draft: Draft) -> None:
    """A depthwise convolution of one image's channels several times over reads the image itself."""
    source = draft.operands[1] if draft.kernel == "dwconv2d" else None
    made = calls.maker(source)
    joined = None if made is None else calls.drafts[made]
    if source is None or made is None or joined is None or joined.kernel != "concat":
        return
    part = joined.operands[1]
    if part is None or any(p != part for p in joined.operands[1:]) or joined.ints[0] != len(part.dims) - 1:
        return
    if source.dims[-1] != part.dims[-1] * (len(joined.operands) - 1):  # reshaped on the way: a pixel has other channels
        return
    image = replace(part, dims=(*source.dims[:-1], part.dims[-1]))
    calls.put(at, replace(draft, operands=[draft.operands[0], image, *draft.operands[2:]]), made)


def _act(call: Draft) -> int | Dim | None:
    """The activation that a product applies already; None for a call that is no product."""
    return call.ints[_PRODUCTS[call.kernel]] if call.kernel in _PRODUCTS else None


def _extended(
    call: Draft, last: Draft, *, act: int | Dim | None = None, first: int = 0, floats: list[float] | None = None,
    bias: View | None = None, residual: View | None = None,
) -> Draft:
    """`call` with one more epilogue part, writing what `last` wrote."""
    operands = list(call.operands)
    y, out = operands[0], last.operands[0]
    assert y is not None
    assert out is not None
    operands[0] = replace(y, buf=out.buf)
    operands[_BIAS] = operands[_BIAS] if bias is None else bias
    operands[_RESIDUAL] = operands[_RESIDUAL] if residual is None else residual
    ints = list(call.ints)
    if act is not None:
        at = _PRODUCTS[call.kernel] % len(ints)
        ints[at : at + 2] = [act, first]
    return Draft(call.kernel, call.layer, operands, ints, list(call.floats if floats is None else floats))


def _sum_into_norm(calls: _Calls, at: int, draft: Draft) -> None:
    """norm(a + b) adds on the way; the sum stays available for its other readers."""
    if draft.kernel not in ("rmsnorm", "layernorm") or draft.operands[3] is not None:
        return
    x = draft.operands[2]
    assert x is not None
    made = calls.writer.get(x.buf)
    add = None if made is None else calls.drafts[made]
    if made is None or add is None or add.kernel != "binary" or add.ints[0] != _ADD:
        return
    total, left, right = add.operands
    assert total is not None
    assert left is not None
    assert right is not None
    readers = calls.readers.get(x.buf, [])
    if left.dims != total.dims or right.dims != total.dims or min(readers) != at:
        return
    operands = list(draft.operands)
    # Somebody else reads the sum, or it is an output of the entry: then the norm writes it too.
    if len(readers) > 1 or x.buf.space is not Space.ARENA:
        operands[1] = x
    operands[2], operands[3] = replace(left, dims=x.dims), replace(right, dims=x.dims)
    calls.readers[x.buf] = [i for i in readers if i != at]
    calls.put(at, Draft(draft.kernel, draft.layer, operands, draft.ints, draft.floats), made)


def _split(calls: _Calls, at: int, draft: Draft) -> None:
    """A linear whose result is only cut along its last axis, whole panels each, writes the pieces itself."""
    y = draft.operands[0]
    if draft.kernel != "linear" or draft.operands[_RESIDUAL] is not None or y is None:
        return
    readers = calls.readers.get(y.buf, [])
    pieces = sorted((start, i) for i in readers if (start := _start_of_piece(calls.drafts[i], y)) is not None)
    most = KERNELS["linear_split"].n_out
    if y.buf.space is not Space.ARENA or not 2 <= len(pieces) == len(readers) <= most:
        return
    outs: list[View | None] = []
    covered = dim(0)
    for start, i in pieces:
        piece = calls.drafts[i]
        assert piece is not None
        out = piece.operands[0]
        assert out is not None
        if covered != start or start % PANEL:
            return
        outs.append(out)
        covered = covered + out.dims[-1]
    if covered != y.dims[-1]:
        return
    for _, i in pieces:
        calls.drafts[i] = None
    outs += [None] * (most - len(outs))
    calls.drafts[at] = Draft("linear_split", draft.layer, [*outs, *draft.operands[1:_RESIDUAL]], draft.ints[:1],
                             draft.floats)


def _inverted(calls: _Calls, at: int, draft: Draft) -> None:
    """[pointwise ->] depthwise -> pointwise of an image too large for the cache: one call, a band of rows at a time."""
    y, thin, narrow, bias, residual = draft.operands if draft.kernel == "linear" else (None,) * 5
    middle = calls.maker(thin)
    depth = None if middle is None else calls.drafts[middle]
    if depth is None or depth.kernel != "dwconv2d" or depth.operands[_RESIDUAL] is not None:
        return
    out, wide, w, depth_bias, _ = depth.operands
    if thin is None or out is None or wide is None or y is None or thin.dims != out.dims or len(y.dims) != 4:
        return
    if wide.dims[3] != out.dims[3]:  # a multiplier: the channels that come out are others
        return
    outer = calls.maker(wide)
    first = None if outer is None else calls.drafts[outer]
    if first is not None and (first.kernel != "linear" or first.operands[_RESIDUAL] is not None
                              or first.operands[0] != wide or not _stored_wide(first)):
        first = None
    height, size = out.dims[1].const or 0, product((wide if first else out).dims[1:]).const or 0
    if 4 * size < _WIDE or height < _TALL or not _stored_wide(draft):
        return
    x, widen, widen_bias = (wide, None, None) if first is None else first.operands[1:_RESIDUAL]
    ints = [*depth.ints[:8], 0 if first is None else first.ints[0], depth.ints[8], *draft.ints]
    floats = [*([0.0, 0.0] if first is None else first.floats), *depth.floats, *draft.floats]
    made = Draft("mbconv2d", _common_layer([depth, draft]),
                 [y, x, widen, widen_bias, w, depth_bias, narrow, bias, residual], ints, floats)
    if first is not None and outer is not None:
        calls.drafts[outer] = None
    assert middle is not None
    calls.put(at, made, middle)


def _stored_wide(product_call: Draft) -> bool:
    """Whether the weights of a product are f32."""
    w = product_call.operands[2]
    return w is not None and w.dtype is Dtype.F32


def _join_siblings(calls: _Calls) -> None:
    """Linears of few bits that read one value, in groups of one size (palettes: tables of as many rows), become one
    call: x is prepared once for all."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for at, draft in enumerate(calls.drafts):
        if draft is None or draft.kernel != "linear_bits" or draft.operands[_RESIDUAL] is not None:
            continue
        x, bias = draft.operands[1], draft.operands[_BIAS]
        assert x is not None
        if bias is None or bias.buf.space is Space.WEIGHT:  # one that is computed may come later than the first sibling
            act, _, _, _, group, form = draft.ints
            palette = isinstance(form, int) and form >= PALETTE_HALF
            alike.setdefault((x.buf, x.dims, act, tuple(draft.floats), group, palette), []).append(at)
    most = KERNELS["linear_bits_split"].n_out
    for members in alike.values():
        for some in (members[i : i + most] for i in range(0, len(members), most)):
            if len(some) > 1:
                _join(calls, some)


def _join(calls: _Calls, members: list[int]) -> None:
    parts = [d for d in (calls.drafts[i] for i in members) if d is not None]
    absent = [None] * (KERNELS["linear_bits_split"].n_out - len(parts))
    operands = [[*(d.operands[place] for d in parts), *absent] for place in (0, 2, _BIAS)]
    first = parts[0]
    ints = [first.ints[0], first.ints[4]]
    for draft in parts:
        ints += [draft.ints[3], draft.ints[5]]
    for i in members:
        calls.drafts[i] = None
    # x is there when the first member runs, and what the others write is read behind them at the earliest.
    calls.drafts[members[0]] = Draft(
        "linear_bits_split", _common_layer(parts), [*operands[0], first.operands[1], *operands[1], *operands[2]],
        ints + [0, 0] * len(absent), first.floats)


def _common_layer(parts: list[Draft]) -> str:
    """The innermost module that all are in."""
    columns = zip(*(d.layer.split(".") for d in parts), strict=False)
    alike = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, columns)]
    return ".".join(alike) or parts[0].layer


def _start_of_piece(call: Draft | None, y: View) -> int | None:
    """Where the piece of `y` begins that `call` copies; None when it does something else."""
    if call is None or call.kernel != "slice":
        return None
    out, source = call.operands
    assert out is not None
    assert source is not None
    rank = len(y.dims)
    *before, start = call.ints[:rank]
    if source.dims != y.dims or any(s != 0 for s in before) or any(s != 1 for s in call.ints[rank:]):
        return None
    return start if isinstance(start, int) and out.dims[:-1] == y.dims[:-1] else None
