"""A graph that grows node by node while the reference computes it, so that the next node can be chosen to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.differential.case import Case, Ranges
from tests.differential.reference import IR_VERSION, OPSET, Array, InvalidNodeError, Step

T = TypeVar("T")
Dim = int | tuple[int, ...]  # the sizes in all sets of inputs; an int when they are the same
Dims = tuple[Dim, ...]

SIZES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 65)
SMALL = (1, 2, 3, 4, 5, 7)
MOST = 6000  # elements of a tensor
F32, F16, I64, I32 = (np.dtype(t) for t in (np.float32, np.float16, np.int64, np.int32))
BOOL, U8, I8 = (np.dtype(t) for t in (np.bool_, np.uint8, np.int8))
INTEGERS = (I64, I32, U8, I8)
# What a float tensor that is made up holds.
KINDS = ("normal", "normal", "ties", "zeros", "large", "tiny", "ones")


@dataclass(frozen=True)
class Value:
    """arrays: in each set of inputs. constant: an initializer."""

    name: str
    arrays: tuple[Array, ...]
    constant: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype

    @property
    def rank(self) -> int:
        return self.arrays[0].ndim

    @property
    def dims(self) -> Dims:
        return tuple(s[0] if len(set(s)) == 1 else s for s in zip(*(a.shape for a in self.arrays), strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes that do not vary; -1 for the others."""
        return tuple(d if isinstance(d, int) else -1 for d in self.dims)

    @property
    def fixed(self) -> bool:
        return -1 not in self.shape

    @property
    def count(self) -> int:
        return max(a.size for a in self.arrays)

    @property
    def largest(self) -> float:
        """The largest magnitude; infinite when something is not finite."""
        tops = [float(np.abs(a.astype(np.float64)).max()) for a in self.arrays if a.size]
        return max((np.inf if np.isnan(t) else t for t in tops), default=0.0)

    def within(self, low: float, high: float) -> bool:
        return all(bool(((a >= low) & (a <= high)).all()) for a in self.arrays)


class RejectedError(Exception):
    """What was drawn leads nowhere; the graph goes on without it."""


class Draft:
    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw
        self.float = F16 if self.chance(8) else F32
        # Sizes of "N", one per set of inputs; the range is what lies between the least and the largest.
        self.symbol: tuple[int, ...] = ()
        if self.chance(4):
            self.symbol = self.one(((1, 5, 16), (2, 3, 7), (1, 17, 33), (3, 8, 15), (1, 2, 65)))
        self.sets = max(1, len(self.symbol))
        self.values: list[Value] = []
        self.inputs: list[Value] = []
        self.nodes: list[onnx.NodeProto] = []
        self.invalid: list[str] = []
        self._names = 0

    # -- draws ---------------------------------------------------------------------------------------------------

    def one(self, choices: Sequence[T]) -> T:
        return choices[self._draw(st.integers(0, len(choices) - 1))]

    def int(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self._draw(st.booleans()))

    def chance(self, n: int) -> bool:
        """True once in n."""
        return bool(self._draw(st.integers(0, n - 1)) == n - 1)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self._draw(st.integers(0, 2**16)))

    def axis(self, rank: int) -> int:
        """From either end."""
        return self.int(-rank, rank - 1)

    def some(self, items: Sequence[T], least: int = 0) -> list[T]:
        """A subset in any order."""
        rest, chosen = list(items), []
        for _ in range(self.int(min(least, len(rest)), len(rest))):
            chosen.append(rest.pop(self.int(0, len(rest) - 1)))
        return chosen

    def size(self) -> int:
        return self.one(SIZES if self.chance(3) else SMALL)

    def dims(self, low: int = 0, high: int = 4) -> Dims:
        """Of a new tensor; one axis may vary."""
        rank = self.int(low, high)
        dims: list[Dim] = [self.size() for _ in range(rank)]
        while np.prod([d if isinstance(d, int) else 1 for d in dims]) > MOST // (8 if self.symbol else 1):
            dims[int(np.argmax(dims))] = 3
        if self.symbol and rank and self.flag():
            dims[self.int(0, rank - 1)] = self.symbol
        return tuple(dims)

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _name(self, letter: str) -> str:
        self._names += 1
        return f"{letter}{self._names}"

    def _fill(self, shape: Sequence[int], dtype: np.dtype[Any], kind: str, rng: np.random.Generator) -> Array:
        if dtype == BOOL:
            return rng.integers(0, 2, shape).astype(bool)
        if dtype in (U8, I8):
            return rng.integers(0 if dtype == U8 else -128, 256 if dtype == U8 else 128, shape).astype(dtype)
        if dtype in INTEGERS:
            return rng.integers(-9, 10, shape).astype(dtype)
        array: Array = rng.standard_normal(shape)
        if kind == "ties":
            array = rng.integers(-4, 5, shape) / 2
        elif kind == "zeros":
            array = array * rng.integers(0, 2, shape)
        elif kind in ("large", "tiny"):
            array = array * (40 if kind == "large" else 1e-2)
        elif kind == "ones":
            array = np.ones(shape)
        elif kind == "positive":
            array = np.abs(array) + 0.25
        elif kind == "unit":
            array = rng.uniform(0, 1, shape)
        elif kind == "special":
            array = np.where(rng.integers(0, 4, shape) > 0, array, rng.choice((np.inf, -np.inf, np.nan, 0.0), shape))
        return np.asarray(array).astype(dtype)

    def new(self, dims: Sequence[Dim], dtype: np.dtype[Any] | None = None, kind: str = "",
            constant: bool | None = None) -> Value:
        """An input or an initializer."""
        dtype = dtype or self.float
        kind = kind or (self.one(KINDS) if dtype in (F32, F16) else "")
        varies = any(not isinstance(d, int) for d in dims)
        if any(not isinstance(d, int) and d != self.symbol for d in dims):
            raise RejectedError("an input with a size that is computed")
        constant = not varies and (self.flag() if constant is None else constant)
        rng = self.rng()
        shapes = [[d if isinstance(d, int) else d[i] for d in dims] for i in range(self.sets)]
        if constant:
            return self.const(self._fill(shapes[0], dtype, kind, rng))
        value = Value(self._name("x"), tuple(self._fill(s, dtype, kind, rng) for s in shapes))
        self.inputs.append(value)
        self.values.append(value)
        return value

    def const(self, array: Any, dtype: np.dtype[Any] | None = None) -> Value:
        """An initializer of this value."""
        array = np.asarray(array, dtype=dtype)
        value = Value(self._name("c"), (array,) * self.sets, True)
        self.values.append(value)
        return value

    def ints(self, numbers: Sequence[int]) -> Value:
        """A constant list of sizes or axes; one that is there already, sometimes."""
        array = np.array(numbers, np.int64)
        for value in self.values:
            if value.constant and value.dtype == I64 and np.array_equal(value.arrays[0], array) and self.flag():
                return value
        return self.const(array)

    def fits(self, value: Value, dtypes: Sequence[np.dtype[Any]], low: int, high: int, largest: float) -> bool:
        return value.dtype in dtypes and low <= value.rank <= high and 0 < value.count <= MOST and (
            value.dtype == BOOL or value.largest <= largest)

    def pick(self, dtypes: Sequence[np.dtype[Any]] = (), low: int = 0, high: int = 4, largest: float = 300.0,
             where: Callable[[Value], bool] | None = None, kind: str = "") -> Value:
        """A value there is, or a new one, of one of these dtypes and of rank low..high."""
        dtypes = dtypes or (self.float,)
        found = [v for v in self.values if self.fits(v, dtypes, low, high, largest) and (where is None or where(v))]
        if found and not self.chance(5):
            # The latest first: chains are where operators meet.
            return found[-1 - min(self.int(0, len(found) - 1), self.int(0, len(found) - 1))]
        for _ in range(4):
            value = self.new(self.dims(low, high), self.one(dtypes), kind, constant=self.chance(4))
            if (value.dtype == BOOL or value.largest <= largest or dtypes[0] in INTEGERS) and (
                    where is None or where(value)):
                return value
        raise RejectedError("no such value")

    def like(self, other: Value, dtype: np.dtype[Any] | None = None, largest: float = 300.0, kind: str = "") -> Value:
        """A value that broadcasts with `other`, sometimes `other` itself."""
        dtype = dtype or other.dtype
        found = [v for v in self.values if self.fits(v, (dtype,), 0, 4, largest) and v.rank and _broadcast(v, other)]
        if found and not kind and self.flag():
            return self.one(found)
        dims = [1 if self.chance(4) or (not isinstance(d, int) and d != self.symbol) else d for d in other.dims]
        return self.new(dims[self.int(0, len(dims)) if self.chance(2) else 0 :], dtype, kind)

    def bounded(self, value: Value, low: float, high: float) -> Value:
        """`value` where it lies between the two, else cut to that."""
        if value.within(low, high):
            return value
        return self.node("Clip", [value, self.const(low, value.dtype), self.const(high, value.dtype)])

    def node(self, op_type: str, inputs: Sequence[Value | None], outputs: int = 1, domain: str = "",
             **attrs: Any) -> Value:
        return self.nodes_of(op_type, inputs, outputs, domain, **attrs)[0]

    def nodes_of(self, op_type: str, inputs: Sequence[Value | None], outputs: int, domain: str = "", skip: int = 0,
                 **attrs: Any) -> list[Value]:
        """Appends a node; its outputs, without the first `skip`, which it does not have.

        Raises RejectedError when nothing runs it, which the test counts.
        """
        names = ["" if i < skip else self._name("v") for i in range(outputs)]
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        attrs = {k: v for k, v in attrs.items() if v is not None}
        node = helper.make_node(op_type, [v.name if v else "" for v in given], names,
                                name=f"n{len(self.nodes) + 1}", domain=domain, **attrs)
        known = [v for v in given if v is not None]
        step = Step(node, {v.name: v.arrays[0] for v in known if v.constant})
        try:
            runs = [step.run({v.name: v.arrays[i] for v in known}) for i in range(self.sets)]
        except InvalidNodeError as e:
            self.invalid.append(str(e))
            raise RejectedError(str(e)) from e
        made = [Value(n, tuple(run[n] for run in runs)) for n in names if n]
        self.nodes.append(node)
        self.values += made
        return made

    # -- the whole -------------------------------------------------------------------------------------------------

    def case(self) -> Case:
        """Outputs: what nothing reads, sometimes not all of it, and more. Raises RejectedError for an empty graph."""
        if not self.nodes:
            raise RejectedError("an empty graph")
        computed = [v for v in self.values if not v.constant and v not in self.inputs]
        read = {name for node in self.nodes for name in node.input}
        ends = [v for v in computed if v.name not in read]
        chosen = [v for v in ends if v is ends[-1] or not self.chance(4)]
        chosen += [v for v in computed if v.name in read and self.chance(6)]
        chosen += [v for v in self.values if v.constant and v.dtype in (F32, I64) and self.chance(40)]
        initializers = [numpy_helper.from_array(v.arrays[0], v.name) for v in self.values if v.constant]
        used = read | {v.name for v in chosen}
        infos = {v.name: self._info(v) for v in (*self.inputs, *chosen)}
        inputs = [v for v in self.inputs if v.name in used or self.chance(2)]
        graph = helper.make_graph(self.nodes, "random", [infos[v.name] for v in inputs],
                                  [infos[v.name] for v in chosen], [t for t in initializers if t.name in used])
        domains = {"": OPSET, **{n.domain: 1 for n in self.nodes if n.domain}}
        model = helper.make_model(graph, ir_version=IR_VERSION,
                                  opset_imports=[helper.make_opsetid(d, v) for d, v in domains.items()])
        feeds = tuple({v.name: v.arrays[i] for v in inputs} for i in range(self.sets))
        dynamic: Ranges = {}
        for v in inputs:
            for axis, d in enumerate(v.dims):
                if not isinstance(d, int):
                    dynamic.setdefault(v.name, {})[axis] = (min(d), max(d))
        return Case(model, feeds, dynamic)

    def _info(self, value: Value) -> onnx.ValueInfoProto:
        dims = [d if isinstance(d, int) else "N" if d == self.symbol else None for d in value.dims]
        return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), dims)


def _broadcast(a: Value, b: Value) -> bool:
    pairs = zip(reversed(a.dims), reversed(b.dims), strict=False)
    return all(x == y or 1 in (x, y) for x, y in pairs)
