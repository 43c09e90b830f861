"""What the lowering knows about each ONNX value, and the calls it has drafted so far.

A `Value` has logical dims (what ONNX says) and an `order`: the logical axes in the order in which they lie in memory.
So a Transpose costs nothing until somebody needs another order, and image values stay NHWC from one convolution to the
next. Shape arithmetic never becomes calls: small integer values carry their elements as `data`, and arithmetic
sequences over unknown lengths as `run`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype, Format, lossless_dtype
from edgec.compress.low_bit import LowBit
from edgec.errors import EdgecError
from edgec.ir.model import SMALL, input_of
from edgec.ir.weights import release
from edgec.native.dims import LIMIT, Dim, dim, product
from edgec.native.plan import Space, Weight

Storage = Literal["auto", "f32", "f16", "bf16"]
Dims = tuple[Dim, ...]


# Entries of a table that lowering itself makes: places of a padded axis, numbers of a range.
MOST_ENTRIES = 1 << 22


class UnsupportedError(Exception):
    """A node cannot be lowered; the text says why, in words a user understands."""


FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
DTYPES: dict[ir.DataType, Dtype] = {
    ir.DataType.FLOAT: Dtype.F32, ir.DataType.INT8: Dtype.I8, ir.DataType.UINT8: Dtype.U8,
    ir.DataType.INT32: Dtype.I32, ir.DataType.INT64: Dtype.I64, ir.DataType.BOOL: Dtype.BOOL,
}
_ADD = 0  # of `binary`
# Values of these types come and go as they are, and are float32 in between.
HALVES: dict[ir.DataType, Dtype] = {ir.DataType.FLOAT16: Dtype.F16, ir.DataType.BFLOAT16: Dtype.BF16}


class Buf:
    """Memory that exactly one call writes, or an input, weight or state. Compared by identity."""

    __slots__ = ("bytes", "index", "space")

    def __init__(self, space: Space, size: Dim, index: int = 0) -> None:
        self.space, self.bytes, self.index = space, size, index


@dataclass(frozen=True)
class View:
    """An operand before its place is known."""

    buf: Buf
    dtype: Dtype
    dims: Dims
    format: Format = Format.PLAIN

    def as_dims(self, dims: Iterable[Dim | int]) -> View:
        """The same bytes under other dims of equal count."""
        wanted = tuple(dim(d) for d in dims)
        if product(wanted) != product(self.dims):
            raise UnsupportedError(f"a tensor of {list(map(str, self.dims))} was read as {list(map(str, wanted))}")
        return replace(self, dims=wanted)


@dataclass
class Draft:
    """A call before its operands are placed."""

    kernel: str
    layer: str
    operands: list[View | None]
    ints: list[int | Dim]
    floats: list[float]


@dataclass(frozen=True)
class Const:
    """A constant: `base` read by `read`, seen through `perm`. dtype F32 stands for any float type.

    base: names the bytes (equal base, equal bytes); label: the model's own name, for people; source: the tensor whose
    file is unmapped after use; low: the same matrix in few bits; origin: how the model stores it, "" for as it is.
    """

    base: str
    read: Callable[[], Array]
    base_dims: tuple[int, ...]
    dtype: Dtype
    perm: tuple[int, ...]
    label: str = ""
    source: ir.TensorProtocol | None = None
    low: LowBit | None = None
    origin: str = ""

    @property
    def low_bit(self) -> LowBit | None:
        """`low` while this is the whole matrix in its own order."""
        same = self.low is not None and self.perm == (0, 1) and self.dims == self.low.dims
        return self.low if same else None

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.base_dims[p] for p in self.perm)

    @property
    def name(self) -> str:
        if self.perm == tuple(range(len(self.perm))):
            return self.base
        return f"{self.base}.t{'_'.join(map(str, self.perm))}"

    def load(self) -> Array:
        return self.read().reshape(self.base_dims).transpose(self.perm)

    def release(self) -> None:
        """Unmaps the file that the values were read from, if any."""
        if self.source is not None:
            release(self.source)

    def transpose(self, perm: Sequence[int]) -> Const:
        return replace(self, perm=tuple(self.perm[p] for p in perm))

    def derive(self, suffix: str, dims: Sequence[int], change: Callable[[Array], Array]) -> Const:
        """A constant computed from this one when it is read."""
        name = f"{self.name}.{suffix}"
        return Const(
            name, lambda: change(self.load()), tuple(dims), self.dtype, identity(len(dims)), self.label or self.base,
            self.source, origin=self.origin,
        )

    def reshape(self, dims: Sequence[int]) -> Const:
        shape = tuple(dims)
        if shape == self.dims:
            return self
        if self.perm == identity(len(self.perm)):
            return replace(self, base_dims=shape, perm=identity(len(shape)))  # the same bytes
        return self.derive("r" + "_".join(map(str, shape)), shape, lambda a: a.reshape(shape))


def const_from(name: str, tensor: ir.TensorProtocol) -> Const:
    """The constant behind an initializer. Raises UnsupportedError for types without a kernel (strings, float8, ...)."""
    dims = tuple(int(d) for d in tensor.shape.numpy())
    if tensor.dtype not in FLOATS and tensor.dtype not in DTYPES:
        raise UnsupportedError(f"constant {name!r} has type {tensor.dtype.name}")
    is_float = tensor.dtype in FLOATS

    def read() -> Array:
        try:
            array = np.asarray(tensor.numpy())
        except (OSError, ValueError) as e:
            raise EdgecError("E0101", stage="weights", where=name, found=str(e),
                             wanted="readable values in the model's weight file") from e
        return array.astype(np.float32, copy=False) if is_float else array

    dtype = Dtype.F32 if is_float else DTYPES[tensor.dtype]
    return Const(name, read, dims, dtype, identity(len(dims)), source=tensor)


@dataclass(frozen=True, eq=False)
class Value:
    """One of buf (memory), const, data (small known integers; entries int, bool or Dim) or run (start, step)."""

    dims: Dims
    dtype: Dtype
    order: tuple[int, ...]
    buf: Buf | None = None
    const: Const | None = None
    data: Array | None = None
    run: tuple[Dim, int] | None = None

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def physical(self) -> Dims:
        """Dims in memory order."""
        return tuple(self.dims[a] for a in self.order)

    @property
    def count(self) -> Dim:
        return product(self.dims)


def of_const(const: Const) -> Value:
    dims = tuple(dim(d) for d in const.dims)
    return Value(dims, const.dtype, identity(len(dims)), const=const)


def of_data(data: Any, dtype: Dtype = Dtype.I64) -> Value:
    """A value known element by element; `data` is anything numpy turns into an object array."""
    array = np.empty(np.shape(data), dtype=object)
    array[...] = data
    return Value(tuple(dim(d) for d in array.shape), dtype, identity(array.ndim), data=array)


def of_run(start: Dim, step: int, dims: Sequence[Dim]) -> Value:
    """start, start + step, ... laid out in `dims`."""
    return Value(tuple(dims), Dtype.I64, identity(len(dims)), run=(start, step))


def identity(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


def same_order(dims: Sequence[Dim], a: Sequence[int], b: Sequence[int]) -> bool:
    """True when both orders put the same bytes in the same places: axes of size 1 do not count."""
    return [x for x in a if dims[x] != 1] == [x for x in b if dims[x] != 1]


def settled(dims: Sequence[Dim], order: Sequence[int]) -> tuple[int, ...]:
    """`order` with each axis of size 1 right behind the axis before it: the same bytes, and identity where possible,
    so that a size of 1 that is expanded later grows where it reads best."""
    result = [a for a in order if dims[a] != 1]
    for a, d in enumerate(dims):
        if d == 1:
            result.insert(result.index(a - 1) + 1 if a else 0, a)
    return tuple(result)


@dataclass
class Weights:
    """The bundle's tensors, shared by all entries; a request for the same packing of the same constant is the same
    tensor."""

    storage: Storage
    low_bit: bool = True  # False: every weight dense, and nothing is read before the bundle is written
    items: list[Weight] = field(default_factory=list)
    known: dict[str, LowBit | None] = field(default_factory=dict)  # what was found out by reading, by name of the base
    _index: dict[tuple[object, ...], int] = field(default_factory=dict)
    _lossless: dict[str, Dtype] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)

    def add(self, const: Const, fmt: Format = Format.PLAIN, *, wide: bool = True) -> int:
        """The tensor's index. wide: keep float32; else the storage type that the build asks for."""
        dtype = const.dtype if wide or const.dtype is not Dtype.F32 else self._stored(const)
        as_is = fmt is Format.PLAIN and const.perm == identity(len(const.perm))
        key = (const.base, None if as_is else (const.base_dims, const.perm), fmt, dtype)
        if key not in self._index:
            self._put(key, const, lambda name: Weight(name, dtype, fmt, const.dims or (1,), const.load, const.release,
                                                      const.origin))
        return self._index[key]

    def add_packed(self, const: Const, low: LowBit) -> int:
        """The index of the tensor that holds the bytes of `low`, the few-bit form of `const`."""
        key = (const.base, "bits64")
        if key not in self._index:
            self._put(key, const, lambda name: Weight(name, Dtype.U8, Format.PLAIN, (low.matrix.bytes,), low.pack,
                                                      const.release))
        return self._index[key]

    def _put(self, key: tuple[object, ...], const: Const, make: Callable[[str], Weight]) -> None:
        self._index[key] = len(self.items)
        # Tensors are called as in the model; a second packing of the same one is numbered.
        label = safe_name(const.label or const.base)
        used = self._names[label] = self._names.get(label, 0) + 1
        self.items.append(make(label + (f".{used}" if used > 1 else "")))

    def _stored(self, const: Const) -> Dtype:
        if self.storage != "auto":
            return Dtype[self.storage.upper()]
        # Exactness does not depend on the order of the values, so one look serves every packing of the base.
        if const.base not in self._lossless:
            self._lossless[const.base] = lossless_dtype(const.read())
            const.release()
        return self._lossless[const.base]


def safe_name(text: str) -> str:
    """`text` as a bundle string: no control characters, 1..1000 bytes of UTF-8."""
    clean = "".join(c if c.isprintable() else "?" for c in text) or "?"
    return clean.encode("utf-8", "replace")[:1000].decode("utf-8", "ignore")


@dataclass
class Lowering:
    """The state of lowering one entry: values known so far and calls drafted."""

    weights: Weights
    max_context: int
    values: dict[ir.Value, Value] = field(default_factory=dict)
    drafts: list[Draft] = field(default_factory=list)
    layer: str = ""
    past: Dim | None = None  # tokens already in the state
    tied: frozenset[str] = frozenset()  # constants that a linear reads too: gathered from its panels
    narrow: frozenset[ir.Node] = frozenset()  # nodes that need the last token only
    tokens: Dim | None = None  # the symbol of the token axis that `narrow` nodes drop
    unpacked: set[ir.Value] = field(default_factory=set)  # constants that are stored smaller than they are used
    _narrowed: dict[ir.Value, Value] = field(default_factory=dict)
    _shared: dict[object, View] = field(default_factory=dict)

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, node: ir.Node, index: int) -> Value | None:
        """Input `index` of `node`, or None when it is left out."""
        source = input_of(node, index)
        if source is None:
            return None
        if source not in self.values:
            kind = source.dtype.name if source.dtype else "?"
            raise UnsupportedError(f"the constant {source.name!r} has type {kind}")
        value = self.values[source]
        if node in self.narrow and source.producer() not in self.narrow and self.tokens in value.dims:
            if source not in self._narrowed:
                self._narrowed[source] = self.last(value)
            return self._narrowed[source]
        return value

    def need(self, node: ir.Node, index: int) -> Value:
        """A mandatory input."""
        value = self.get(node, index)
        if value is None:
            raise UnsupportedError(f"input {index} is missing")
        return value

    def last(self, value: Value) -> Value:
        """The last token's part of a value that has the token axis."""
        axis = value.dims.index(dim(self.tokens or 1))
        view = self.view(value)
        dims = tuple(dim(1) if a == axis else d for a, d in enumerate(value.dims))
        starts: list[int | Dim] = [value.dims[axis] - 1 if a == axis else 0 for a in value.order]
        out = self.fresh([dims[a] for a in value.order], value.dtype)
        self.emit("slice", [out], [view], [*starts, *[1] * value.rank])
        return Value(dims, value.dtype, value.order, buf=out.buf)

    def known(self, value: Value) -> Array | None:
        """The elements of a small integer or boolean value as an object array (int, bool or Dim), else None."""
        if value.data is not None:
            return value.data
        if value.const is not None and value.const.dtype is not Dtype.F32 and (value.count.const or 0) <= SMALL:
            return np.asarray(value.const.load()).astype(object)
        if value.run is not None and value.count.const is not None and value.count.const <= SMALL:
            start, step = value.run
            items = np.empty(value.count.const, dtype=object)
            items[:] = [start + i * step for i in range(value.count.const)]
            return items.reshape([int(d.const or 0) for d in value.dims])
        return None

    def ints(self, value: Value, what: str) -> list[int]:
        """Known constant integers. Raises UnsupportedError when they depend on the run."""
        known = self.known(value)
        items = None if known is None else [dim(i).const for i in known.reshape(-1)]
        if items is None or any(i is None for i in items):
            raise UnsupportedError(f"{what} is not known at compile time")
        return [int(i) for i in items if i is not None]

    def scalar(self, value: Value, what: str) -> float:
        """A constant of one element."""
        if value.const is not None and value.count == 1:
            return float(value.const.load().reshape(-1)[0])
        known = self.known(value)
        if known is not None and known.size == 1 and dim(known.reshape(-1)[0]).const is not None:
            return float(dim(known.reshape(-1)[0]).const or 0)
        raise UnsupportedError(f"{what} is not known at compile time")

    # -- writing -------------------------------------------------------------------------------------------------

    def fresh(self, dims: Iterable[Dim | int], dtype: Dtype = Dtype.F32) -> View:
        """New arena memory. Raises UnsupportedError when a dim can become negative, or there can be too many values."""
        wanted = tuple(dim(d) for d in dims)
        for d in wanted:
            if d.lo < 0:
                ranges = ", ".join(f"{s.name} in {s.min}..{s.max}" for s in sorted(d.symbols, key=lambda s: s.name))
                raise UnsupportedError(f"a dimension of {d} can be negative ({ranges or 'for the given input shape'})")
        if any(d.hi > LIMIT for d in (*wanted, product(wanted))):
            raise UnsupportedError(f"a result of [{', '.join(map(str, wanted))}]: more than 2^40 values")
        return View(Buf(Space.ARENA, product(wanted) * dtype.size), dtype, wanted)

    def emit(
        self, kernel: str, outs: Sequence[View | None], ins: Sequence[View | None],
        ints: Sequence[int | Dim] = (), floats: Sequence[float] = (),
    ) -> None:
        plain: list[int | Dim] = []
        for i in ints:
            value = i.const if isinstance(i, Dim) else i
            plain.append(i if value is None else int(value))
        self.drafts.append(Draft(kernel, self.layer, [*outs, *ins], plain, list(floats)))

    def view(self, value: Value, order: Sequence[int] | None = None) -> View:
        """Memory that holds `value` with its axes in `order` (default: as it lies); dims in that order."""
        wanted = tuple(value.order if order is None else order)
        dims = tuple(value.dims[a] for a in wanted)
        if value.const is not None and value.count == 0:
            value = self._nothing(value)
        if value.const is not None:
            return self.weight(value.const.transpose(wanted))
        if value.buf is None:
            value = self._materialize(value)
        assert value.buf is not None
        if same_order(value.dims, value.order, wanted):
            return View(value.buf, value.dtype, dims)
        # Axes of size 1 only make the kernel's loops deeper.
        source = [a for a in value.order if value.dims[a] != 1]
        target = [a for a in wanted if value.dims[a] != 1]
        key = (value.buf, tuple(value.dims), tuple(target))
        if key not in self._shared:
            out = self.fresh([value.dims[a] for a in target], value.dtype)
            self.emit(
                "transpose", [out], [View(value.buf, value.dtype, tuple(value.dims[a] for a in source))],
                [source.index(a) for a in target],
            )
            self._shared[key] = out
        return replace(self._shared[key], dims=dims)

    def rows(self, value: Value) -> View:
        """Memory in logical (row-major) order."""
        return self.view(value, identity(value.rank))

    def weight(self, const: Const, fmt: Format = Format.PLAIN, *, wide: bool = True) -> View:
        """A weight operand; float32 plain unless said otherwise. Raises UnsupportedError for an empty tensor."""
        if 0 in const.dims:
            raise UnsupportedError(f"the constant {const.label or const.base!r} has no elements")
        index = self.weights.add(const, fmt, wide=wide)
        stored = self.weights.items[index]
        dims = tuple(dim(d) for d in const.dims)
        # A scalar is stored as one value: tensors have rank 1 or more.
        return View(Buf(Space.WEIGHT, dim(stored.bytes), index), stored.dtype, dims, fmt)

    def packed(self, const: Const, low: LowBit) -> View:
        """The operand that holds `low`, the few-bit form of `const`."""
        index = self.weights.add_packed(const, low)
        size = dim(self.weights.items[index].bytes)
        return View(Buf(Space.WEIGHT, size, index), Dtype.U8, (size,))

    def shared(self, key: object, make: Callable[[], View]) -> View:
        """`make()` once per key and entry."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _nothing(self, value: Value) -> Value:
        """A value without elements in memory: files hold no empty tensors."""
        empty = self._iota(dim(0), 0, dim(0))
        return self.cast(Value(value.dims, Dtype.I64, identity(value.rank), buf=empty.buf), value.dtype)

    def _materialize(self, value: Value) -> Value:
        """Puts data or a run into memory."""
        known = value.data
        if known is not None and known.size == 0:
            return self._nothing(value)
        if known is not None and all(dim(i).const is not None for i in known.reshape(-1)):
            items = np.array([int(dim(i).const or 0) for i in known.reshape(-1)]).reshape(known.shape)
            array = items.astype(value.dtype.numpy)
            digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
            name = f"const.{value.dtype.name.lower()}.{'x'.join(map(str, array.shape))}.{digest}"
            const = Const(name, lambda: array, array.shape, value.dtype, identity(array.ndim))
            return replace(value, buf=self.weight(const).buf)
        if value.run is not None or (known is not None and known.size == 1):
            start, step = value.run if value.run is not None else (dim(known.flat[0] if known is not None else 0), 0)
            view = self.shared(("iota", start, step, value.count), lambda: self._iota(start, step, value.count))
            return replace(value, buf=view.buf, data=None, run=None, order=identity(value.rank), dtype=Dtype.I64)
        if known is not None and value.dtype is Dtype.I64 and known.size:
            parts = [self._iota(dim(i), 0, dim(1)) for i in known.reshape(-1)]
            out = self.fresh([known.size], Dtype.I64)
            self.emit("concat", [out], parts, [0])
            return replace(value, buf=out.buf, data=None)
        raise UnsupportedError("a value known only as a shape is used as a tensor")

    def _iota(self, start: Dim, step: int, count: Dim) -> View:
        out = self.fresh([count], Dtype.I64)
        if start.const is None and start.lo < 0:
            # What is evaluated when it runs is a size, 0 or more: from its least value on, which is added after it.
            above, least = self._iota(start - start.lo, step, count), self._iota(dim(start.lo), 0, dim(1))
            self.emit("binary", [out], [above, least], [_ADD])
            return out
        self.emit("iota", [out], [], [start, step])
        return out

    def cast(self, value: Value, dtype: Dtype) -> Value:
        """`value` as `dtype`; free when it is that already."""
        if value.dtype is dtype:
            return value
        if value.const is not None and dtype not in HALVES.values():
            const = value.const
            changed = const.derive(dtype.name.lower(), const.dims, lambda a: convert(a, dtype))
            return of_const(replace(changed, dtype=dtype))
        if value.data is not None and dtype in (Dtype.I64, Dtype.I32) and value.dtype in (Dtype.I64, Dtype.I32):
            return replace(value, dtype=dtype)
        if value.run is not None and dtype is Dtype.I64:
            return value
        source = self.view(value)
        out = self.fresh(source.dims, dtype)
        self.emit("cast", [out], [source])
        return Value(value.dims, dtype, value.order, buf=out.buf)


def convert(array: Array, dtype: Dtype) -> Array:
    """The cast kernel's rule: float to int truncates and saturates, NaN gives 0."""
    if dtype in (Dtype.F32, Dtype.BOOL) or array.dtype.kind != "f":
        return array.astype(dtype.numpy)
    limits = np.iinfo(dtype.numpy)
    wide = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    inside = np.clip(wide, -(2.0**62), 2.0**62).astype(np.int64)
    result = np.clip(inside, limits.min, limits.max).astype(dtype.numpy)
    if dtype is Dtype.I64:
        result = np.where(wide >= 2.0**63, limits.max, np.where(wide <= -(2.0**63), limits.min, result))
    return np.asarray(result, dtype=dtype.numpy)

