"""The strategy: random graphs of operators that the compiler supports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.differential.case import Case
from tests.differential.draft import Draft, RejectedError
from tests.differential.ops_math import MATH, Drawer
from tests.differential.ops_nn import NN
from tests.differential.ops_shape import SHAPE

DRAWERS: dict[str, Drawer] = {**MATH, **SHAPE, **NN}
# Nodes that nothing runs, by what was said: the generator's mistakes, which a test counts.
INVALID: Counter[str] = Counter()


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any], most: int = 12) -> Case:
    """A graph of 1 to about `most` nodes with one set of inputs, or three of different sizes."""
    g = Draft(draw)
    kinds = tuple(DRAWERS)
    wanted = g.int(1, most)
    for _ in range(3 * most):
        if len(g.nodes) >= wanted:
            break
        try:
            DRAWERS[g.one(kinds)](g)
        except RejectedError:
            continue
    INVALID.update(g.invalid)
    assume(g.nodes)
    return g.case()
