"""`--fail-if`: `NAME OPERATOR NUMBER`, as `decode.p50_ms>12`. A small fixed grammar; nothing is evaluated."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgec.errors import EdgecError, did_you_mean

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}
_FORM = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(>=|<=|>|<)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """A figure by its name, compared with a limit."""

    name: str
    operator: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.limit:g}"


def parse_conditions(texts: Sequence[str], known: Sequence[str] = ()) -> list[Condition]:
    """Raises EdgecError (E0002) for a text that is no condition, or, unless `known` is empty, about a figure that is
    not among them: before anything is measured."""
    found = []
    for text in texts:
        match = _FORM.fullmatch(text)
        if match is None:
            raise EdgecError("E0002", stage="command line", where="--fail-if", found=repr(text),
                             wanted="NAME>NUMBER, also with >=, < or <=", hint="as 'p50_ms>12'")
        condition = Condition(match[1], match[2], float(match[3]))
        if known and condition.name not in known:
            raise _unknown(condition, known)
        found.append(condition)
    return found


def _unknown(condition: Condition, known: Iterable[str]) -> EdgecError:
    return EdgecError("E0002", stage="gate", where="--fail-if", found=repr(condition.name),
                      wanted="a figure of this report", hint=did_you_mean(condition.name, known))


def check_names(conditions: Sequence[Condition], figures: Mapping[str, float | None]) -> None:
    """Raises EdgecError (E0002) for a condition about a figure that does not exist, or that nobody could measure."""
    for condition in conditions:
        if condition.name not in figures:
            raise _unknown(condition, figures)
        if figures[condition.name] is None:
            raise EdgecError("E0002", stage="gate", where="--fail-if", found=f"{condition.name}: not measured",
                             wanted="a figure that this device tells")


def failing(conditions: Sequence[Condition], figures: Mapping[str, float | None]) -> list[str]:
    """Sentences for the conditions that hold. Raises EdgecError as check_names."""
    check_names(conditions, figures)
    held = []
    for condition in conditions:
        value = figures[condition.name]
        assert value is not None
        if _OPERATORS[condition.operator](value, condition.limit):
            held.append(f"{condition.name} is {value:.6g}: {condition}")
    return held
