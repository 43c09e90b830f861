"""Dimensions of plan operands: integers known now, or expressions in symbols bound at run time.

A `Dim` is a polynomial with integer coefficients over atoms; an atom is a symbol or a rounded division, maximum or
minimum of two Dims. The polynomial form is canonical, so `(past + seq) - past == seq` holds without a prover, and
equality of Dims is equality of shapes. Constants compare equal to ints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

LIMIT = 1 << 40  # no dim may exceed this at any evaluation (docs/format.md)
# Larger expressions do not come from models, and a hostile file could make them grow without end.
MAX_SIZE = 256


class Op(IntEnum):
    """Rows of the bundle's dim table."""

    CONST = 0
    SYMBOL = 1
    ADD = 2
    SUB = 3
    MUL = 4
    FLOORDIV = 5
    CEILDIV = 6
    MAX = 7
    MIN = 8


@dataclass(frozen=True)
class Symbol:
    """A size bound at run time, within [min, max]."""

    name: str
    min: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max < 1 << 31:
            raise ValueError(f"symbol {self.name}: range {self.min}..{self.max} is not within 0..2^31-1")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Compound:
    """FLOORDIV, CEILDIV, MAX or MIN of two dims."""

    op: Op
    a: Dim
    b: Dim

    def __str__(self) -> str:
        if self.op in (Op.MAX, Op.MIN):
            return f"{self.op.name.lower()}({self.a}, {self.b})"
        sign = "//" if self.op is Op.FLOORDIV else "/^"
        return f"(({self.a}) {sign} {self.b})"


Atom = Symbol | Compound
Terms = tuple[tuple[tuple[Atom, ...], int], ...]


class Dim:
    """A canonical polynomial; build with `const`, `symbol` and arithmetic, never from `terms`.

    lo, hi: bounds over all bindings (interval arithmetic: safe, not always tight).
    """

    __slots__ = ("__dict__", "terms")

    def __init__(self, terms: Mapping[tuple[Atom, ...], int]) -> None:
        self.terms: Terms = tuple(sorted(((k, c) for k, c in terms.items() if c), key=_term_key))

    @cached_property
    def const(self) -> int | None:
        """The value when it does not depend on a symbol, else None."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    @cached_property
    def bounds(self) -> tuple[int, int]:
        lo = hi = 0
        for atoms, coefficient in self.terms:
            low = high = 1
            for atom in atoms:
                corners = [x * y for x in (low, high) for y in _atom_bounds(atom)]
                low, high = min(corners), max(corners)
            lo += coefficient * (low if coefficient > 0 else high)
            hi += coefficient * (high if coefficient > 0 else low)
        return lo, hi

    @property
    def lo(self) -> int:
        return self.bounds[0]

    @property
    def hi(self) -> int:
        return self.bounds[1]

    @cached_property
    def symbols(self) -> frozenset[Symbol]:
        """Every symbol the value depends on."""
        found: set[Symbol] = set()
        for atoms, _ in self.terms:
            for atom in atoms:
                found |= {atom} if isinstance(atom, Symbol) else atom.a.symbols | atom.b.symbols
        return frozenset(found)

    @cached_property
    def size(self) -> int:
        """Nodes of the expression, shared parts counted each time they occur."""
        nested = [atom for atoms, _ in self.terms for atom in atoms]
        return 1 + len(self.terms) + sum(1 if isinstance(a, Symbol) else 1 + a.a.size + a.b.size for a in nested)

    def at(self, bindings: Mapping[str, int]) -> int:
        """The value with every symbol bound. Raises KeyError for an unbound symbol."""
        total = 0
        for atoms, coefficient in self.terms:
            product = coefficient
            for atom in atoms:
                if isinstance(atom, Symbol):
                    product *= bindings[atom.name]
                else:
                    product *= apply(atom.op, atom.a.at(bindings), atom.b.at(bindings))
            total += product
        return total

    def at_max(self) -> int:
        """The value with every symbol at its maximum."""
        return self.at({s.name: s.max for s in self.symbols})

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.const == other
        return isinstance(other, Dim) and self.terms == other.terms

    @cached_property
    def _hash(self) -> int:
        return hash(self.const if self.const is not None else self.terms)

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim | int) -> Dim:
        total = dict(self.terms)
        for atoms, coefficient in dim(other).terms:
            total[atoms] = total.get(atoms, 0) + coefficient
        return Dim(total)

    def __neg__(self) -> Dim:
        return Dim({atoms: -c for atoms, c in self.terms})

    def __sub__(self, other: Dim | int) -> Dim:
        return self + -dim(other)

    def __rsub__(self, other: int) -> Dim:
        return dim(other) - self

    def __mul__(self, other: Dim | int) -> Dim:
        total: dict[tuple[Atom, ...], int] = {}
        for a, x in self.terms:
            for b, y in dim(other).terms:
                atoms = tuple(sorted(a + b, key=str))
                total[atoms] = total.get(atoms, 0) + x * y
        return Dim(total)

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, other: Dim | int) -> Dim:
        return _divide(Op.FLOORDIV, self, dim(other))

    def ceildiv(self, other: Dim | int) -> Dim:
        return _divide(Op.CEILDIV, self, dim(other))

    def exact_div(self, other: Dim | int) -> Dim | None:
        """The quotient when it divides term by term, else None."""
        divisor = dim(other)
        if len(divisor.terms) != 1:
            return dim(1) if self == divisor and divisor.terms else None
        atoms, coefficient = divisor.terms[0]
        quotient: dict[tuple[Atom, ...], int] = {}
        for mine, value in self.terms:
            rest = list(mine)
            for atom in atoms:
                if atom not in rest:
                    return None
                rest.remove(atom)
            if value % coefficient:
                return None
            quotient[tuple(rest)] = value // coefficient
        return Dim(quotient)

    def __str__(self) -> str:
        if self.const is not None:
            return str(self.const)
        parts: list[str] = []
        # Positive terms first, as the dim table evaluates them: no value on the way is negative.
        for atoms, coefficient in sorted(self.terms, key=lambda t: t[1] < 0):
            names = [str(a) for a in atoms]
            size = abs(coefficient)
            body = "*".join(([str(size)] if size != 1 or not names else []) + names)
            parts.append((" - " if coefficient < 0 else " + ") + body)
        return "".join(parts).removeprefix(" + ").strip()

    def __repr__(self) -> str:
        return f"Dim({self})"


def dim(value: Dim | int) -> Dim:
    """An int as a constant Dim; a Dim unchanged."""
    return value if isinstance(value, Dim) else Dim({(): int(value)})


def symbol(name: str, low: int, high: int) -> Dim:
    """A symbol that a run binds within [low, high]."""
    return Dim({(Symbol(name, low, high),): 1})


def product(values: Iterable[Dim | int]) -> Dim:
    """The product; 1 for none."""
    result = dim(1)
    for value in values:
        result = result * value
    return result


def dim_max(a: Dim | int, b: Dim | int) -> Dim:
    """max(a, b), decided now where the bounds allow it."""
    a, b = dim(a), dim(b)
    difference = a - b
    if difference.lo >= 0:
        return a
    return b if difference.hi <= 0 else _compound(Op.MAX, *sorted((a, b), key=str))


def dim_min(a: Dim | int, b: Dim | int) -> Dim:
    """min(a, b), decided now where the bounds allow it."""
    a, b = dim(a), dim(b)
    difference = a - b
    if difference.lo >= 0:
        return b
    return a if difference.hi <= 0 else _compound(Op.MIN, *sorted((a, b), key=str))


def apply(op: Op, a: int, b: int) -> int:
    """One row of the dim table on integers."""
    if op in (Op.FLOORDIV, Op.CEILDIV) and b <= 0:
        raise ValueError(f"division of {a} by {b}")
    match op:
        case Op.ADD:
            return a + b
        case Op.SUB:
            return a - b
        case Op.MUL:
            return a * b
        case Op.FLOORDIV:
            return a // b
        case Op.CEILDIV:
            return -(-a // b)
        case Op.MAX:
            return max(a, b)
        case Op.MIN:
            return min(a, b)
        case _:
            raise ValueError(f"{op!r} takes no two operands")


def build(op: Op, a: Dim, b: Dim) -> Dim:
    """One row of the dim table on Dims, simplified."""
    match op:
        case Op.ADD:
            return a + b
        case Op.SUB:
            return a - b
        case Op.MUL:
            return a * b
        case Op.FLOORDIV:
            return a // b
        case Op.CEILDIV:
            return a.ceildiv(b)
        case Op.MAX:
            return dim_max(a, b)
        case Op.MIN:
            return dim_min(a, b)
        case _:
            raise ValueError(f"{op!r} takes no two operands")


def _term_key(term: tuple[tuple[Atom, ...], int]) -> tuple[int, str]:
    return (-len(term[0]), " ".join(map(str, term[0])))


def _compound(op: Op, a: Dim, b: Dim) -> Dim:
    return Dim({(Compound(op, a, b),): 1})


def _divide(op: Op, a: Dim, b: Dim) -> Dim:
    if a.const is not None and b.const is not None:
        return dim(apply(op, a.const, b.const))
    exact = a.exact_div(b)
    if exact is not None:
        return exact
    if b.const is None:
        return _compound(op, a, b)
    if b.const <= 0:
        raise ValueError(f"division of {a} by {b}")
    # Whole multiples of the divisor leave the rounding: (2 h + 1) // 2 = h + 1 // 2.
    whole = Dim({atoms: c // b.const * b.const for atoms, c in a.terms if atoms})
    rest = a - whole
    if rest.const is not None:
        return Dim({atoms: c // b.const for atoms, c in whole.terms}) + apply(op, rest.const, b.const)
    return _compound(op, a, b)


def _atom_bounds(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, Symbol):
        return atom.min, atom.max
    (a, b), (c, d) = atom.a.bounds, atom.b.bounds
    if atom.op in (Op.MAX, Op.MIN):
        return apply(atom.op, a, c), apply(atom.op, b, d)
    # A divisor of zero is refused where it is evaluated; here it only must not spoil the bounds.
    corners = [apply(atom.op, x, max(y, 1)) for x in (a, b) for y in (c, d)]
    return min(corners), max(corners)


class DimTable:
    """Dims as rows `(op, a, b, c)`, each row referring to earlier ones; equal dims share a row.

    name_index: turns a symbol's name into the bundle's string index.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[Op, str | int, int, int]] = []
        self._known: dict[tuple[Op, str | int, int, int], int] = {}

    def _row(self, op: Op, a: str | int, b: int = 0, c: int = 0) -> int:
        row = (op, a, b, c)
        if row not in self._known:
            self._known[row] = len(self.rows)
            self.rows.append(row)
        return self._known[row]

    def add(self, value: Dim) -> int:
        """The row of `value`, added with all it needs. No row on the way to a value of 0 or more is negative."""
        plus, minus = self._parts(value)
        total = self._sum(plus)
        for row in minus:
            total = self._row(Op.SUB, total, row)
        return total

    def _parts(self, value: Dim) -> tuple[list[int], list[int]]:
        """Rows of 0 or more: the value is the sum of the first less that of the second."""
        plus: list[int] = []
        minus: list[int] = []
        for atoms, coefficient in sorted(value.terms, key=lambda t: t[1] < 0):
            up: int | None = None
            down: int | None = None
            for p, m in map(self._atom, atoms):
                up, down = (p, m) if up is None else self._times((up, down), (p, m))
            if up is None or abs(coefficient) != 1:
                scale = self._row(Op.CONST, abs(coefficient))
                up, down = (scale, None) if up is None else self._times((up, down), (scale, None))
            ours, others = (plus, minus) if coefficient > 0 else (minus, plus)
            ours.append(up)
            others += [] if down is None else [down]
        return plus, minus

    def _times(self, x: tuple[int, int | None], y: tuple[int, int | None]) -> tuple[int, int | None]:
        """The product of two differences, as a difference."""
        (a, b), (c, d) = x, y
        same = [self._row(Op.MUL, a, c)] + ([self._row(Op.MUL, b, d)] if b is not None and d is not None else [])
        cross = [self._row(Op.MUL, p, q) for p, q in ((a, d), (b, c)) if p is not None and q is not None]
        return self._sum(same), self._sum(cross) if cross else None

    def _sum(self, rows: Sequence[int]) -> int:
        if not rows:
            return self._row(Op.CONST, 0)
        total = rows[0]
        for row in rows[1:]:
            total = self._row(Op.ADD, total, row)
        return total

    def _atom(self, atom: Atom) -> tuple[int, int | None]:
        """The value as a row, or as the difference of two where it may be negative."""
        if isinstance(atom, Symbol):
            return self._row(Op.SYMBOL, atom.name, atom.min, atom.max), None
        if atom.a.lo >= 0 and atom.b.lo >= 0:
            return self._row(atom.op, self.add(atom.a), self.add(atom.b)), None
        plus, minus = self._parts(atom.a)
        if atom.op in (Op.MAX, Op.MIN):  # max(p - m, q - n) = max(p + n, q + m) - (m + n)
            more, less = self._parts(atom.b)
            found = self._row(atom.op, self._sum(plus + less), self._sum(more + minus))
            taken = self._sum(minus + less)
        else:  # (p - m) // d = (p + k d - m) // d - k, here with k = m /^ d
            divisor = self.add(atom.b)
            taken = self._row(Op.CEILDIV, self._sum(minus), divisor)
            rest = self._row(Op.SUB, self._row(Op.MUL, taken, divisor), self._sum(minus))
            found = self._row(atom.op, self._sum([*plus, rest]), divisor)
        return (self._row(Op.SUB, found, taken), None) if _atom_bounds(atom)[0] >= 0 else (found, taken)
