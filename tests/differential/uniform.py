"""Uniform draws for hypothesis, whose own prefer small numbers and repeat what they drew: good for finding one bug in
few tries, but a graph in six is new then. What fails is still replayed and shrunk by hypothesis itself."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, PrimitiveProvider

NAME = "uniform"


class Uniform(PrimitiveProvider):
    """Booleans and integers of bounded range, all that graphs are drawn from; another kind of draw is an error in the
    strategy. seed: of the next test function."""

    lifetime = "test_function"
    seed: ClassVar[int] = 0

    def __init__(self, data: Any, /) -> None:
        super().__init__(data)
        self._random = random.Random(Uniform.seed)

    def draw_boolean(self, p: float = 0.5) -> bool:
        return self._random.random() < p

    def draw_integer(self, min_value: int | None = None, max_value: int | None = None, **_: Any) -> int:
        assert min_value is not None
        assert max_value is not None
        return self._random.randint(min_value, max_value)

    def draw_float(self, **_: Any) -> float:
        raise AssertionError("graphs draw no floats")

    def draw_string(self, *_: Any, **__: Any) -> str:
        raise AssertionError("graphs draw no text")

    def draw_bytes(self, *_: Any, **__: Any) -> bytes:
        raise AssertionError("graphs draw no bytes")


AVAILABLE_PROVIDERS[NAME] = f"{__name__}.Uniform"
