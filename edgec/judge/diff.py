"""`edgec diff A B`: two profiles, test by test and call by call, and which differences are more than noise.

Per row: the change of the median, its 95 % bootstrap interval, and the p-value of the Mann-Whitney test (Mann and
Whitney 1947, "On a test of whether one of two random variables is stochastically larger than the other"; normal
approximation with ties) on the stored samples. Samples of one process are not independent of each other, for a slow
moment of a machine lasts longer than a run, so p-values are too small: a difference counts when it is significant and
also at least `least`. Rows of calls are corrected for their number (Holm 1979). With few samples no p-value can be
small: where even samples that do not overlap would count as noise, a phase is refused and calls are said to be
undecided.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.judge.profile import PROFILE_VERSION

ALPHA = 0.01
LEAST = 0.02  # of the median
_RESAMPLES = 1000
_CALL_RESAMPLES = 200  # of each of many calls, whose intervals are only shown


def read_profile(path: Path) -> dict[str, Any]:
    """A document of `edgec profile --json`. Raises EdgecError: E0003 no such file, E0502 another document."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise EdgecError("E0003", stage="diff", where=str(path), found=e.strerror or str(e),
                         wanted="a document of edgec profile --json") from e
    except (ValueError, RecursionError) as e:
        raise EdgecError("E0502", stage="diff", where=str(path), found=f"no JSON: {e}",
                         wanted="a document of edgec profile --json") from e
    found = document.get("profile_version") if isinstance(document, dict) else None
    if found != PROFILE_VERSION:
        raise EdgecError("E0502", stage="diff", where=str(path), found=f"profile_version {found}",
                         wanted=f"a document of edgec profile --json, profile_version {PROFILE_VERSION}")
    return dict(document)


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p-value that neither of a and b tends to be larger; 1 where all values are equal."""
    n, m = len(a), len(b)
    values = np.asarray([*a, *b], np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # equal values share the mean of their ranks
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    total = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    # Corrected for continuity.
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def least_p(n: int, m: int) -> float:
    """The smallest p-value that n and m samples can have: of two that do not overlap. 1 without samples."""
    return mann_whitney(range(n), range(n, n + m)) if n and m else 1.0


def samples_wanted(rows: int = 1) -> int:
    """So many samples on each side that one of `rows` changes can be more than noise."""
    return next(n for n in range(2, 1000) if least_p(n, n) * rows < ALPHA)


def change_interval(a: Sequence[float], b: Sequence[float], seed: int = 0, resamples: int = _RESAMPLES
                    ) -> tuple[float, float]:
    """95 % bootstrap interval of median(b) / median(a) - 1."""
    rng = np.random.default_rng(seed)
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    below = np.median(first[rng.integers(0, len(first), (resamples, len(first)))], axis=1)
    above = np.median(second[rng.integers(0, len(second), (resamples, len(second)))], axis=1)
    ratios = above[below > 0] / below[below > 0] - 1
    if not len(ratios):
        return math.nan, math.nan
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _compared(a: Sequence[float], b: Sequence[float], resamples: int = _RESAMPLES) -> dict[str, Any]:
    first, second = float(np.median(a)), float(np.median(b))
    low, high = change_interval(a, b, resamples=resamples)
    return {"a_ms": first, "b_ms": second, "change": second / first - 1 if first > 0 else None,
            "ci95": [low, high], "p": mann_whitney(a, b)}


def _decide(row: dict[str, Any], p: float, least: float) -> None:
    row["significant"] = bool(p < ALPHA and row["change"] is not None and abs(row["change"]) >= least)


def diff_profiles(a: Mapping[str, Any], b: Mapping[str, Any], least: float = LEAST) -> dict[str, Any]:
    """What changed from profile `a` to profile `b`: tests, calls, memory, and what the two do not share.

    Raises EdgecError (E0502) when they have no test in common, or too few samples.
    """
    try:
        return _diff(a, b, least)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as e:
        raise EdgecError("E0502", stage="diff", found=f"{type(e).__name__}: {e}",
                         wanted="documents of edgec profile --json", hint="profile again") from e


def _diff(a: Mapping[str, Any], b: Mapping[str, Any], least: float) -> dict[str, Any]:
    theirs = {test["name"]: test for test in b["tests"]}
    tests = []
    for test in a["tests"]:
        other = theirs.get(test["name"])
        if other is None:
            continue
        counts = len(test["samples_ms"]), len(other["samples_ms"])
        if least_p(*counts) >= ALPHA:
            raise EdgecError("E0502", stage="diff", where=test["name"], wanted=f"at least {samples_wanted()} each",
                             found=f"{counts[0]} and {counts[1]} samples: no change could be more than noise",
                             hint="profile with more -r (of a language model also -n)")
        row = {"name": test["name"], **_compared(test["samples_ms"], other["samples_ms"])}
        _decide(row, row["p"], least)
        calls, gone, new = _calls(test["calls"], other["calls"], least)
        # Also what calls would need: with fewer, Holm's correction lets none of them count.
        decidable = not calls or least_p(*counts) * len(calls) < ALPHA
        tests.append({**row, "calls": calls, "only_a": gone, "only_b": new, "calls_decidable": decidable,
                      "samples_for_calls": samples_wanted(max(1, len(calls)))})
    if not tests:
        raise EdgecError("E0502", stage="diff", found="no test that both profiles have",
                         wanted="two profiles of models of one kind")
    return {"tests": tests, "alpha": ALPHA, "least": least, "conditions": [
        {"name": name, "a": x, "b": y} for name, x, y in _conditions(a, b) if x != y],
        "memory": {"a": _peak(a["memory"]["measured"]["resident_peak"]),
                   "b": _peak(b["memory"]["measured"]["resident_peak"]),
                   "planned_a": _peak(a["memory"]["planned"]["peak"]),
                   "planned_b": _peak(b["memory"]["planned"]["peak"])}}


def _peak(value: float | None) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
        raise ValueError(f"bytes of memory: {value!r}")
    return value


def _conditions(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What should be equal for the times to say something about the models alone."""
    fields = [(name, a[name], b[name]) for name in ("isa", "threads", "kind", "context", "runtime")]
    others = {test["name"]: test for test in b["tests"]}
    fields += [(f"{test['name']} {key}", test[key], others[test["name"]][key]) for test in a["tests"]
               if test["name"] in others for key in ("work", "position")]
    fields += [(name, a["device"][name], b["device"][name]) for name in ("transport", "cpu", "os", "governor")]
    return [*fields, ("bundle", a["bundle"]["sha256"], b["bundle"]["sha256"])]


def _calls(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], least: float
           ) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """(calls that both have, layers of those that only a has, and only b). A call is its entry, layer, kind of kernel
    and the how-manieth of these it is: a layer in another format runs `linear_bits` in place of `linear`."""
    first, second = _named(a), _named(b)
    rows = []
    for name, call in first.items():
        if name in second:
            other = second[name]
            rows.append({"layer": call["layer"], "kernel_a": call["kernel"], "kernel_b": other["kernel"],
                         **_compared(call["samples_ms"], other["samples_ms"], _CALL_RESAMPLES)})
    # Holm: the smallest p-value is multiplied by the number of rows, the next by one less, and so on.
    order = sorted(rows, key=lambda row: row["p"])
    highest = 0.0
    for rank, row in enumerate(order):
        highest = max(highest, min(1.0, row["p"] * (len(order) - rank)))
        _decide(row, highest, least)
    rows.sort(key=lambda row: -abs(row["b_ms"] - row["a_ms"]))
    return (rows, [call["layer"] for name, call in first.items() if name not in second],
            [call["layer"] for name, call in second.items() if name not in first])


_FAMILY = ("_bits_split", "_split", "_bits", "_winograd", "_q8")


def _named(calls: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, int], Mapping[str, Any]]:
    seen: Counter[tuple[str, str, str]] = Counter()
    found = {}
    for call in calls:
        kind = str(call["kernel"]).removesuffix(" fast")
        for suffix in _FAMILY:
            kind = kind.removesuffix(suffix)
        key = (str(call["entry"]), str(call["layer"]), kind)
        found[(*key, seen[key])] = call
        seen[key] += 1
    return found


def diff_figures(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Figures of a diff for --fail-if, in percent; the change of a time is 0 unless it is significant."""
    found: dict[str, float | None] = {}
    for test in report["tests"]:
        value = 100 * test["change"] if test["significant"] else 0.0
        found[f"{test['name']}.p50_pct"] = value
    found["p50_pct"] = max(value for value in found.values() if value is not None)
    memory = report["memory"]
    found["peak_pct"] = _percent(memory["a"], memory["b"])
    found["planned_pct"] = _percent(memory["planned_a"], memory["planned_b"])
    return found


def _percent(a: float | None, b: float | None) -> float | None:
    return None if not a or b is None else 100 * (b / a - 1)
