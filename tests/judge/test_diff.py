"""Comparing profiles: the test against all permutations, its error rates, and what is said of which documents."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.judge.diff import (
    change_interval,
    diff_figures,
    diff_profiles,
    mann_whitney,
    read_profile,
    samples_wanted,
)
from edgec.judge.profile import PROFILE_VERSION, ProfileOptions, profile_bundle
from edgec.native.library import library_path
from edgec.targets.transport import transport


@pytest.fixture(scope="module")
def profile(require: Callable[[bool, str], None], layer_bundle: Path) -> dict[str, Any]:
    """Of one layer, with samples drawn here: 5 ms in a call of 4 ms."""
    require((library_path().parent / "edgec_bench").is_file(), "edgec_bench is not built (make build)")
    found = profile_bundle(layer_bundle, transport("local"), ProfileOptions(threads=1, runs=3, min_ms=0))
    return scaled(found, 1.0, 0)


def scaled(report: dict[str, Any], factor: float, seed: int, samples: int = 40) -> dict[str, Any]:
    new = copy.deepcopy(report)
    rng = np.random.default_rng(seed)
    (test,) = new["tests"]
    test["samples_ms"] = list(factor * 5 * rng.lognormal(0, 0.02, samples))
    test["calls"][0]["samples_ms"] = list(factor * 4 * rng.lognormal(0, 0.02, samples))
    return new


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_are_those_of_all_permutations(ties: bool) -> None:
    """The normal approximation against the exact distribution over all ways to divide 12 values, and against what the
    sum of ranks is in the first place."""
    rng = np.random.default_rng(3)
    values = rng.integers(0, 6, 12).astype(float) if ties else rng.permutation(12).astype(float)

    def u(first: tuple[int, ...]) -> float:
        a = [values[i] for i in first]
        b = [values[i] for i in range(12) if i not in first]
        return sum((x > y) + 0.5 * (x == y) for x in a for y in b)

    everything = [abs(u(chosen) - 18) for chosen in itertools.combinations(range(12), 6)]
    for chosen in itertools.islice(itertools.combinations(range(12), 6), 0, None, 97):
        a = [values[i] for i in chosen]
        b = [values[i] for i in range(12) if i not in chosen]
        exact = float(np.mean([d >= abs(u(chosen) - 18) - 1e-9 for d in everything]))
        assert mann_whitney(a, b) == pytest.approx(exact, abs=0.05)
        assert mann_whitney(a, b) == pytest.approx(mann_whitney(b, a))


def test_error_rates() -> None:
    rng = np.random.default_rng(0)
    same = [mann_whitney(rng.lognormal(0, 0.1, 30), rng.lognormal(0, 0.1, 30)) for _ in range(1000)]
    assert 0.002 < np.mean([p < 0.01 for p in same]) < 0.02
    assert 0.4 < np.mean([p < 0.5 for p in same]) < 0.6
    other = [mann_whitney(rng.lognormal(0, 0.1, 30), rng.lognormal(0.12, 0.1, 30)) for _ in range(200)]
    assert np.mean([p < 0.01 for p in other]) > 0.9
    assert mann_whitney([1.0] * 9, [1.0] * 9) == 1


def test_intervals_cover_the_change() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for turn in range(100):
        low, high = change_interval(rng.lognormal(0, 0.1, 50), rng.lognormal(np.log(1.1), 0.1, 50), turn)
        covered += low <= 0.1 <= high
    assert 86 <= covered <= 100


def test_nothing_changed(profile: dict[str, Any]) -> None:
    found = diff_profiles(profile, profile)
    (test,) = found["tests"]
    assert (test["change"], test["significant"], test["p"] > 0.9) == (0, False, True)
    assert [c["significant"] for c in test["calls"]] == [False]
    assert (test["only_a"], test["only_b"], found["conditions"]) == ([], [], [])
    assert diff_figures(found)["p50_pct"] == 0


@pytest.mark.parametrize(("factor", "least", "significant"), [
    (1.10, 0.02, True), (0.9, 0.02, True), (1.0, 0.02, False), (1.10, 0.25, False), (1.005, 0.02, False),
])
def test_changes(profile: dict[str, Any], factor: float, least: float, significant: bool) -> None:
    found = diff_profiles(profile, scaled(profile, factor, 1), least)
    (test,) = found["tests"]
    assert test["significant"] is significant
    assert test["change"] == pytest.approx(factor - 1, abs=0.02)
    assert test["calls"][0]["significant"] is significant
    figure = diff_figures(found)["run.p50_pct"]
    assert figure == (pytest.approx(100 * test["change"]) if significant else 0)


def test_layers_in_another_format_are_the_same_layers(profile: dict[str, Any]) -> None:
    other = scaled(profile, 0.5, 1)
    other["tests"][0]["calls"][0]["kernel"] = "linear_bits fast"
    other["tests"][0]["calls"].append({**other["tests"][0]["calls"][0], "layer": "new"})
    other["isa"] = "scalar"
    other["tests"][0]["work"] = 7
    found = diff_profiles(profile, other)
    (test,) = found["tests"]
    assert [(c["layer"], c["kernel_a"], c["kernel_b"]) for c in test["calls"]] == [
        ("selftest", "linear", "linear_bits fast")]
    assert (test["only_a"], test["only_b"]) == ([], ["new"])
    assert [row["name"] for row in found["conditions"]] == ["isa", "run work"]


def test_profiles_that_cannot_be_compared(profile: dict[str, Any]) -> None:
    few, other, broken = scaled(profile, 1, 1, samples=2), copy.deepcopy(profile), copy.deepcopy(profile)
    foreign = copy.deepcopy(profile)
    foreign["memory"]["planned"]["peak"] = "much"
    other["tests"][0]["name"] = "decode"
    del broken["tests"][0]["samples_ms"]
    for b, words in ((few, "40 and 2 samples"), (other, "no test"), (broken, "samples_ms"), (foreign, "much")):
        with pytest.raises(EdgecError, match=words) as caught:
            diff_profiles(profile, b)
        assert caught.value.code == "E0502"


def test_a_gate_that_could_not_fail_is_refused(profile: dict[str, Any]) -> None:
    """With five samples on each side even a hundredfold time has p = 0.012: a gate at 0.01 would always pass. With the
    number that the error names it does not."""
    def compared(samples: int) -> dict[str, Any]:
        slow = scaled(profile, 100, 1, samples)
        return diff_profiles(scaled(profile, 1, 0, samples), slow)["tests"][0]

    wanted = samples_wanted()
    with pytest.raises(EdgecError, match=f"at least {wanted} each") as caught:
        compared(wanted - 1)
    assert caught.value.code == "E0502"
    assert compared(wanted)["significant"] is True


def test_too_few_samples_for_many_calls_are_said(profile: dict[str, Any]) -> None:
    """Holm's correction of 30 rows wants more samples than the phase alone."""
    def compared(samples: int) -> dict[str, Any]:
        sides = [scaled(profile, factor, seed, samples) for seed, factor in enumerate((1, 100))]
        for side in sides:
            calls = side["tests"][0]["calls"]
            calls[:] = [{**calls[0], "layer": f"layer {k}"} for k in range(30)]
        return diff_profiles(*sides)["tests"][0]

    few = compared(samples_wanted())
    assert few["significant"] is True
    assert (few["calls_decidable"], [c["significant"] for c in few["calls"]]) == (False, [False] * 30)
    assert few["samples_for_calls"] == samples_wanted(30) > samples_wanted()
    enough = compared(few["samples_for_calls"])
    assert (enough["calls_decidable"], [c["significant"] for c in enough["calls"]]) == (True, [True] * 30)


@pytest.mark.parametrize(("text", "code"), [
    (None, "E0003"), ("{", "E0502"), ("[]", "E0502"), ("{}", "E0502"),
    (json.dumps({"profile_version": PROFILE_VERSION + 1}), "E0502"), ("[" * 100000, "E0502"),
])
def test_files_that_are_no_profiles(text: str | None, code: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(EdgecError) as caught:
        read_profile(tmp_path / "a.json")
    assert caught.value.code == code
