"""Symbolic dims: canonical form, bounds, rounding, and the table they are stored as."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.native.dims import Dim, DimTable, Op, Symbol, apply, build, dim, dim_max, dim_min, symbol

N, P = symbol("n", 1, 9), symbol("p", 0, 5)
SYMBOLS = {"n": N, "p": P}
Pair = tuple[Dim, Callable[[dict[str, int]], int]]

_leaf: st.SearchStrategy[Pair] = st.one_of(
    st.sampled_from(["n", "p"]).map(lambda s: (SYMBOLS[s], lambda b: b[s])),
    st.integers(-6, 6).map(lambda c: (dim(c), lambda b: c)),
)


def _join(parts: tuple[Pair, Pair, Op, int]) -> Pair:
    (a, f), (b, g), op, divisor = parts
    if op in (Op.FLOORDIV, Op.CEILDIV):
        up = op is Op.CEILDIV
        return build(op, a, dim(divisor)), lambda e: -(-f(e) // divisor) if up else f(e) // divisor
    table: dict[Op, Callable[[int, int], int]] = {
        Op.ADD: lambda x, y: x + y, Op.SUB: lambda x, y: x - y, Op.MUL: lambda x, y: x * y, Op.MAX: max, Op.MIN: min,
    }
    return build(op, a, b), lambda e: table[op](f(e), g(e))


_ops = st.sampled_from([o for o in Op if o not in (Op.CONST, Op.SYMBOL)])
_pairs = st.recursive(_leaf, lambda inner: st.tuples(inner, inner, _ops, st.integers(1, 4)).map(_join), max_leaves=8)


@given(_pairs, st.integers(1, 9), st.integers(0, 5))
def test_value_and_bounds(pair: Pair, n: int, p: int) -> None:
    value, wanted = pair
    bound = {"n": n, "p": p}
    assert value.at(bound) == wanted(bound)
    assert value.lo <= wanted(bound) <= value.hi


def _values(rows: list[tuple[Op, str | int, int, int]], bound: dict[str, int]) -> list[int]:
    """Every row at `bound`, as the runtime evaluates it."""
    found: list[int] = []
    for op, a, b, _ in rows:
        if op in (Op.SYMBOL, Op.CONST):
            found.append(bound[str(a)] if op is Op.SYMBOL else int(a))
        else:
            found.append(apply(op, found[int(a)], found[b]))
    return found


@given(_pairs, st.integers(1, 9), st.integers(0, 5))
def test_rows_have_the_value_and_none_on_the_way_is_negative(pair: Pair, n: int, p: int) -> None:
    value, wanted = pair
    table, bound = DimTable(), {"n": n, "p": p}
    index = table.add(value)
    found = _values(table.rows, bound)
    assert found[index] == wanted(bound)
    assert found[index] < 0 or min(found) >= 0


@given(_pairs)
def test_table_rebuilds_the_same_dim(pair: Pair) -> None:
    table = DimTable()
    index = table.add(pair[0])
    built: list[Dim] = []
    for op, a, b, c in table.rows:
        if op is Op.SYMBOL:
            built.append(symbol(str(a), b, c))
        elif op is Op.CONST:
            built.append(dim(int(a)))
        else:
            built.append(build(op, built[int(a)], built[b]))
    # What may be negative inside is stored in another form, as max(0, 2 - n) = max(2, n) - n.
    negative = any(low < 0 for low in _lows(pair[0]))
    assert negative or built[index] == pair[0]


def _lows(value: Dim) -> Iterator[int]:
    for atoms, _ in value.terms:
        for atom in atoms:
            if not isinstance(atom, Symbol):
                for inner in (atom.a, atom.b):
                    yield inner.lo
                    yield from _lows(inner)


def test_a_negative_part_of_a_maximum_is_moved() -> None:
    table = DimTable()
    index = table.add(dim_max(2 - N, 0))
    for n in range(1, 10):
        values = _values(table.rows, {"n": n})
        assert values[index] == max(2 - n, 0)
        assert min(values) >= 0


def test_bounds_of_parts_that_may_be_negative() -> None:
    s, t = symbol("s", 0, 9), symbol("t", 1, 10)
    third = (s - 4) // 3
    assert (third * third).lo <= 0
    assert dim_max(third * third, 3).at({"s": 4}) == 3
    assert dim_max((s - 9).ceildiv(t), -1).at({"s": 0, "t": 1}) == -1
    assert dim_max(third * t + 5, 0).at({"s": 0, "t": 10}) == 0
    for value in ((t - s).ceildiv(t) + 4, (s - 3).ceildiv(t) + s + 4):
        table = DimTable()
        index = table.add(value)
        for bound in ({"s": x, "t": y} for x in range(10) for y in range(1, 11)):
            rows = _values(table.rows, bound)
            assert rows[index] == value.at(bound)
            assert rows[index] < 0 or min(rows) >= 0, (str(value), bound)
    with pytest.raises(ValueError, match="division"):
        s // dim(0)


def test_canonical_form() -> None:
    assert (P + N) - P == N
    assert hash(P + N) == hash(N + P)
    assert (2 * N * P + 4 * N).exact_div(2 * N) == P + 2
    assert (N + 1).exact_div(N) is None
    assert (4 * N + 3) // 2 == 2 * N + 1
    assert (N + 1) // 2 != N // 2
    assert dim(7).ceildiv(2) == 4
    assert dim_max(N, 0) is N or dim_max(N, 0) == N
    assert dim_min(N + P, 20) == N + P
    assert dim(0).const == 0
    assert N.const is None
    assert dim(3) == 3


def test_text_is_readable() -> None:
    assert str(P + N - 1) == "n + p - 1"
    assert str((N + 1) // 2 + 1) == "((n + 1) // 2) + 1"
    assert str(dim_max(N, 4)) == "max(4, n)"


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (4, 3), (0, 1 << 31)])
def test_impossible_ranges(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="range"):
        Symbol("n", low, high)


def test_division_by_zero_is_refused_when_evaluated() -> None:
    with pytest.raises(ValueError, match="division"):
        (N // P).at({"n": 4, "p": 0})
