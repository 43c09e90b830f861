"""The grammar of --fail-if."""

from __future__ import annotations

import pytest

from edgec.errors import EdgecError
from edgec.judge.conditions import Condition, failing, parse_conditions

FIGURES = {"p50_ms": 12.5, "decode.p50_ms": 3.0, "peak_mb": None}


@pytest.mark.parametrize(("text", "wanted"), [
    ("p50_ms>12", Condition("p50_ms", ">", 12)), (" decode.p50_ms >= 3 ", Condition("decode.p50_ms", ">=", 3)),
    ("p50_ms<1e-3", Condition("p50_ms", "<", 1e-3)), ("p50_pct<=-.5", Condition("p50_pct", "<=", -0.5)),
])
def test_conditions(text: str, wanted: Condition) -> None:
    assert parse_conditions([text]) == [wanted]


@pytest.mark.parametrize("text", [
    "", "p50_ms", "p50_ms>", ">12", "p50_ms=12", "p50_ms==12", "p50_ms>12 or 1<2", "12<p50_ms", "p50_ms>nan",
    "p50_ms>inf", "p50_ms>12ms", "__import__('os').system('true')>1", "a b>1", "p50_ms>1\n>2", "p50_ms>1,2",
])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(EdgecError) as caught:
        parse_conditions([text])
    assert caught.value.code == "E0002"


@pytest.mark.parametrize(("text", "holds"), [
    ("p50_ms>12", True), ("p50_ms>12.5", False), ("p50_ms>=12.5", True), ("p50_ms<12.5", False),
    ("p50_ms<=12.5", True), ("decode.p50_ms<4", True),
])
def test_which_hold(text: str, holds: bool) -> None:
    assert bool(failing(parse_conditions([text]), FIGURES)) is holds


@pytest.mark.parametrize(("text", "said"), [("p5_ms>1", "did you mean 'p50_ms'"), ("peak_mb>1", "not measured")])
def test_figures_that_nobody_has(text: str, said: str) -> None:
    with pytest.raises(EdgecError, match=said) as caught:
        failing(parse_conditions([text]), FIGURES)
    assert caught.value.code == "E0002"
