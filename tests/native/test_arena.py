"""The arena planner on random lifetimes: nothing overlaps, everything is aligned, and little is wasted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.native.arena import Buffer, aligned, live_bytes, place

_buffer = st.tuples(st.integers(0, 5000), st.integers(0, 40), st.integers(0, 12)).map(
    lambda t: Buffer(t[0], t[1], t[1] + t[2])
)


@given(st.lists(_buffer, max_size=40))
def test_no_two_live_buffers_overlap(buffers: list[Buffer]) -> None:
    placed = place(buffers)
    assert placed.live == live_bytes(buffers)
    assert placed.live <= placed.total <= sum(aligned(b.bytes) for b in buffers)
    for i, a in enumerate(buffers):
        start = placed.offsets[i]
        assert start % 64 == 0
        assert start + a.bytes <= placed.total
        for j, b in enumerate(buffers[:i]):
            if a.first <= b.last and b.first <= a.last and a.bytes and b.bytes:
                assert start + a.bytes <= placed.offsets[j] or placed.offsets[j] + b.bytes <= start


@given(st.lists(_buffer, max_size=30))
def test_the_same_input_gives_the_same_arena(buffers: list[Buffer]) -> None:
    assert place(buffers) == place(list(buffers))


@pytest.mark.parametrize(("buffers", "total"), [
    ([], 0),
    ([Buffer(1, 0, 0)], 64),
    ([Buffer(64, i, i + 1) for i in range(100)], 128),  # a chain needs two places
    ([Buffer(640, 0, 9), *(Buffer(64, i, i) for i in range(10))], 704),
    # First-come placement would leave a hole of 64 below the 128; the orders tried find the tight one.
    ([Buffer(64, 0, 1), Buffer(64, 0, 3), Buffer(128, 2, 3)], 192),
])
def test_known_answers(buffers: list[Buffer], total: int) -> None:
    assert place(buffers).total == total


def test_impossible_lifetimes() -> None:
    with pytest.raises(ValueError, match="no lifetime"):
        Buffer(1, 2, 1)
