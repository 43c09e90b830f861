"""Compressed weights as Core ML stores them: constexpr operators, which the runtime decompresses itself.

A weight [N, K] is an edgec:: or DequantizeLinear node, for a convolution followed by Reshape and Transpose (its
channels are innermost in K). Core ML decompresses only constants that stand directly before their reader, so the
reordering is done here, on the codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import codes_of
from edgec.compress.formats_bits import bit_signs
from edgec.errors import EdgecError
from edgec.ir.model import Array, const_tensor, describe, dims_of, input_of, int_attr, ints_attr, is_op, required
from edgec.ir.ops import DOMAIN
from edgec.ir.weights import opened
from edgec.targets.coreml_scope import Scope, ios

_STAGE = "emit coreml"
# Index types of a table in Core ML; before iOS 18 packed by the writer.
_INDEX_BITS, _OLD_INDEX_BITS = (1, 2, 3, 4, 6, 8), (1, 2, 4, 6, 8)
_CODES = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)
# Blocks shorter than this would cost more in parameters than the codes do.
_SHORTEST = 8
# A table per group of 128 columns: 2 bits per weight become 2.5, but 3 become 4.0 and 4 become 6.0.
_MOST_BITS = 2


@dataclass(frozen=True)
class Form:
    """Where the K columns of a weight [N, K] lie: kernel dims outside, channels innermost."""

    rows: int
    kernel: tuple[int, ...]
    channels: int

    def put(self, array: Array, tail: int = 0) -> Array:
        """[N, M, ...] with M a divisor of K to [N, M / kernel, *kernel, ...]; `tail` dims at the end stay there."""
        if not self.kernel:
            return array
        end = array.shape[array.ndim - tail :]
        split = array.reshape(self.rows, *self.kernel, -1, *end)
        return np.ascontiguousarray(np.moveaxis(split, 1 + len(self.kernel), 1))

    def whole(self, array: Array, tail: int = 0) -> Array:
        """[N or fewer, 1, ...], one for all columns, with a 1 for each kernel dim."""
        end = array.shape[array.ndim - tail :]
        return array.reshape(array.shape[0], 1, *(1 for _ in self.kernel), *end)

    def blocks(self, array: Array, group: int, node: ir.Node, tail: int = 0) -> Array:
        """Parameters [N, G, ...] of groups of `group` columns as Core ML wants them: dims that divide the weight's."""
        count = array.shape[1]
        if count == 1:
            return self.whole(array, tail)
        block = math.gcd(group, self.channels)
        if block < _SHORTEST:
            raise _refused(node, f"groups of {group} columns over {self.channels} channels and a kernel of "
                           f"{list(self.kernel)}", "groups that end where the channels end",
                           "quantize with a smaller group, leave this layer in float, or --backend native")
        columns = math.prod(self.kernel) * self.channels
        return self.put(array[:, np.arange(columns // block) * block // group], tail)


def _refused(node: ir.Node, found: str, wanted: str, hint: str) -> EdgecError:
    return EdgecError("E0301", stage=_STAGE, where=describe(node), found=found, wanted=wanted, hint=hint)


def root_of(value: ir.Value | None) -> ir.Node | None:
    """The decompressing node behind a weight, through Reshape and Transpose; None for other values."""
    node = None if value is None else value.producer()
    while is_op(node, "Reshape", "Transpose"):
        assert node is not None
        before = input_of(node, 0)
        node = None if before is None else before.producer()
    return node if node is not None and decompresses(node) else None


def decompresses(node: ir.Node) -> bool:
    """Whether a node makes a dense weight of constants."""
    if node.domain == DOMAIN:
        return node.op_type in ("BitPlaneToDense", "PaletteToDense")
    codes = input_of(node, 0)
    if not is_op(node, "DequantizeLinear") or codes is None or codes.dtype not in _CODES:
        return False
    return len(dims_of(codes) or ()) > 1 and all(const_tensor(v) is not None for v in node.inputs if v)


def is_dense(value: ir.Value) -> bool:
    return root_of(value) is not None


def dense(s: Scope, value: ir.Value) -> Any:
    """The Var of a compressed weight, in the form that its reader wants. Raises EdgecError (E0301)."""
    node = root_of(value)
    assert node is not None
    form, perm = _form(value, node)
    made = _EMIT[node.op_type](s, node, form)
    return made if perm is None else s.mb.transpose(x=made, perm=list(perm))


def _form(value: ir.Value, node: ir.Node) -> tuple[Form, tuple[int, ...] | None]:
    """(where the columns lie, a transposition that Core ML has to do at run time or None)."""
    dims = _known(node.outputs[0], node)
    rows, columns = dims[0], math.prod(dims[1:])
    final = _known(value, node)
    maker = value.producer()
    if maker is node:
        # Codes that already have the shape of a convolution's weight.
        return Form(rows, (), columns), None
    if is_op(maker, "Transpose") and len(dims) == 2 == len(final):
        return Form(rows, (), columns), (1, 0)
    assert maker is not None
    last = len(final) - 1
    moved = is_op(maker, "Transpose") and ints_attr(maker, "perm") == (0, last, *range(1, last))
    alone = is_op(maker, "Reshape") and math.prod(final[2:]) == 1
    if final[0] != rows or not (moved or alone):
        raise _refused(node, f"a weight {list(dims)} that is read as {list(final)}",
                       "a matrix or a convolution's weight", "leave this layer in float, or --backend native")
    return Form(rows, final[2:], final[1]), None


def _known(value: ir.Value, node: ir.Node) -> tuple[int, ...]:
    dims = tuple(d for d in dims_of(value) or () if isinstance(d, int))
    if not dims or len(dims) != len(dims_of(value) or ()):
        raise _refused(node, "a weight of unknown shape", "known sizes", "report this model")
    return dims


def _read(node: ir.Node, index: int) -> Array:
    with opened(required(node, index)) as array:
        return np.array(array)


def _note(s: Scope, node: ir.Node, form: str, bits: int, codes: int, *parameters: Array) -> None:
    """For the report: `codes` of `bits` each, and tables, scales or offsets."""
    value = required(node, 0)
    name = (value.name or "?").rpartition(".")[0] or value.name or "?"
    total = -(-codes * bits // 8) + sum(p.nbytes for p in parameters)
    s.stored[name] = (_known(node.outputs[0], node), form, total)


def _palette(s: Scope, node: ir.Node, form: Form) -> Any:
    bits, vector, rows = int_attr(node, "bits", 0), int_attr(node, "vector", 1), int_attr(node, "rows_per_table", 0)
    columns = int_attr(node, "columns", 0)
    indices = codes_of(_read(node, 0), -(-columns // vector))
    lut = s.floats(_read(node, 1), describe(node))
    name = f"palette{bits}" + (f"r{rows}" if rows else "") + (f"v{vector}" if vector > 1 else "")
    if vector > 1 and form.channels % vector:
        raise _refused(node, f"vectors of {vector} over {form.channels} channels", "vectors that end where they end",
                       "quantize with --vector 1, or --backend native")
    tables = lut.reshape(len(lut), 1 << bits, vector)
    if rows and form.rows % rows:
        # A last group that is shorter: the tables are repeated for groups that divide the rows.
        step = math.gcd(rows, form.rows)
        tables = tables[np.arange(form.rows // step) * step // rows]
    return _lookup(s, node, form, indices, form.whole(tables[:, None], 2), bits, name)


def _lookup(s: Scope, node: ir.Node, form: Form, indices: Array, lut: Array, bits: int, name: str) -> Any:
    """indices [N, M]; lut [groups, ..., entries, vector], in front one dim for each of the weight's."""
    allowed = _INDEX_BITS if ios(s.target) >= 18 else _OLD_INDEX_BITS
    if bits not in _INDEX_BITS:
        raise _refused(node, f"indices of {bits} bits", f"one of {', '.join(map(str, _INDEX_BITS))}",
                       "quantize with 4, 6 or 8 bits, or --backend native")
    _note(s, node, name, bits, indices.size, lut)
    vector, many = lut.shape[-1], math.prod(lut.shape[:-2]) > 1
    if ios(s.target) < 18:
        if many or vector > 1 or bits not in allowed:
            raise s.newer(node, "tables for groups, of vectors, or of 3 bits")
        return _old_lookup(s, form.put(indices), lut.reshape(-1), bits)
    kind = np.dtype(np.uint8) if bits == 8 else getattr(s.types, f"np_uint{bits}_dtype")
    more = {"vector_axis": 1} if vector > 1 else {}
    return s.mb.constexpr_lut_to_dense(indices=form.put(indices).astype(kind), lut=lut, **more)


def _old_lookup(s: Scope, indices: Array, lut: Array, bits: int) -> Any:
    flat = indices.astype(np.uint8).reshape(-1, 1)
    bools = np.unpackbits(flat, axis=1, count=bits, bitorder="little")
    packed = np.packbits(bools.reshape(-1), bitorder="little")
    return s.mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array(indices.shape, np.uint32))


def _bit_planes(s: Scope, node: ir.Node, form: Form) -> Any:
    bits, group, uniform = int_attr(node, "bits", 0), int_attr(node, "group_size", 0), int_attr(node, "uniform", 0)
    codes = codes_of(_read(node, 0), int_attr(node, "columns", 0))
    scale, offset = _read(node, 1), _read(node, 2)
    if uniform and bits > _MOST_BITS:
        return _shift_scale(s, node, form, codes, scale[0], offset, group, bits)
    if bits > _MOST_BITS and not s.permissive:
        cost = bits + (1 << bits) * 16 / group
        raise _refused(node, f"hlq{bits}g{group}, which Core ML could only store as tables of {1 << bits} values per "
                       f"group: {cost:.2f} bits per weight", "hlq2, int4, int8 or a palette",
                       f"--quant-override for this layer with int4g{group}, or allow the tables with --coreml-force")
    wide, shift = np.moveaxis(scale.astype(np.float64), 0, -1), offset.astype(np.float64)[..., None]
    levels = wide * (np.arange(1 << bits) - shift) if uniform else wide @ bit_signs(bits) + shift
    lut = s.floats(levels, describe(node))[..., None]
    return _lookup(s, node, form, codes, form.blocks(lut, group, node, 2), bits,
                   f"{'int' if uniform else 'hlq'}{bits}g{group}")


def _dequantize(s: Scope, node: ir.Node, form: Form) -> Any:
    source = required(node, 0)
    kind = source.dtype
    codes, scale = _read(node, 0), _read(node, 1)
    signed = kind in (ir.DataType.INT4, ir.DataType.INT8)
    bits = 4 if kind in (ir.DataType.INT4, ir.DataType.UINT4) else 8
    codes = codes.astype(np.int8 if signed else np.uint8)
    zero = np.zeros(scale.shape, codes.dtype) if input_of(node, 2) is None else _read(node, 2).astype(codes.dtype)
    group = int_attr(node, "block_size", 0)
    dims = codes.shape
    if not group:
        scale, zero = (np.broadcast_to(p.reshape(-1, 1), (dims[0], 1)) for p in (scale, zero))
    whole = dims if len(dims) > 2 else ()
    return _shift_scale(s, node, form, codes.reshape(dims[0], -1), scale, zero, group, bits, whole)


def _shift_scale(s: Scope, node: ir.Node, form: Form, codes: Array, scale: Array, offset: Array, group: int, bits: int,
                 dims: tuple[int, ...] = ()) -> Any:
    """scale (codes - offset); codes [N, K], scale and offset [N, G]. dims: the shape when it is not the form's."""
    wide = 4 if bits <= 4 else 8
    signed = codes.dtype == np.int8
    whole = _whole(offset, wide, signed)
    middle = 0 if signed else 1 << (wide - 1)
    if (not signed and whole and (offset == middle).all()) or (signed and not offset.any()):
        # Symmetric: no offsets are stored.
        codes, offset_part = (codes.astype(np.int16) - middle).astype(np.int8), None
        kind = "int"
    else:
        kind = "int" if signed else "uint"
        offset_part = offset
    storage = np.dtype(f"{kind}8") if wide == 8 else getattr(s.types, f"np_{kind}4_dtype")
    if ios(s.target) < 18:
        return _old_affine(s, node, form, codes, scale, offset_part, wide, dims)
    given = {} if offset_part is None else {"offset": _spread(form, offset_part, group, node, dims).astype(
        storage if whole else s.real)}
    data = codes.reshape(dims) if dims else form.put(codes)
    values = s.floats(_spread(form, scale, group, node, dims), describe(node))
    # An offset that is a code is as narrow as one.
    extra = [p.reshape(-1)[: p.size * wide // 8] if p.itemsize == 1 else p for p in given.values()]
    _note(s, node, _uniform_name(bits, wide, group), wide, codes.size, values, *extra)
    return s.mb.constexpr_blockwise_shift_scale(data=data.astype(storage), scale=values, **given)


def _whole(offset: Array, wide: int, signed: bool) -> bool:
    """Whether offsets are codes: whole numbers that `wide` bits hold."""
    low = -(1 << (wide - 1)) if signed else 0
    return bool(np.isin(offset.astype(np.float32), np.arange(low, low + (1 << wide), dtype=np.float32)).all())


def _spread(form: Form, parameters: Array, group: int, node: ir.Node, dims: tuple[int, ...]) -> Array:
    if dims:
        return parameters.reshape(dims[0], *(1 for _ in dims[1:]))
    return form.blocks(parameters, group, node)


def _old_affine(s: Scope, node: ir.Node, form: Form, codes: Array, scale: Array, offset: Array | None, wide: int,
                dims: tuple[int, ...]) -> Any:
    if scale.shape[1] > 1 or wide == 4:
        raise s.newer(node, "integers in groups of columns, or of 4 bits")
    if offset is not None and not _whole(offset, wide, codes.dtype == np.int8):
        raise s.newer(node, "offsets that are no integers")
    zero = np.zeros(len(codes), codes.dtype) if offset is None else offset.reshape(-1).astype(codes.dtype)
    data, values = codes.reshape(dims) if dims else form.put(codes), s.floats(scale.reshape(-1), describe(node))
    _note(s, node, "int8 per row", wide, codes.size, values, zero)
    return s.mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero, scale=values, axis=0)


def _uniform_name(bits: int, wide: int, group: int) -> str:
    return f"int{bits}" + (f"g{group}" if group else " per row") + (f" in {wide} bits" if bits != wide else "")


_EMIT: dict[str, Callable[[Scope, ir.Node, Form], Any]] = {
    "PaletteToDense": _palette, "BitPlaneToDense": _bit_planes, "DequantizeLinear": _dequantize,
}
# What the functions above may emit.
MIL = ("constexpr_lut_to_dense", "constexpr_blockwise_shift_scale", "constexpr_affine_dequantize")
