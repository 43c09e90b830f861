"""Profiles of small bundles on this machine: what is in them, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.judge.profile import ProfileOptions, _next, _row, median_interval, overrides, profile_bundle, quantile
from edgec.judge.report import call_rows
from edgec.native.bundle import read_bundle, write_bundle
from edgec.native.cost import bindings_of
from edgec.native.library import library_path
from edgec.native.session import Model
from edgec.targets.transport import Transport, transport
from tests.native.tiny_plans import tiny_lm

QUICK = ProfileOptions(threads=1, runs=6, warmup=1, min_ms=0, prompt=12, tokens=4)


@pytest.fixture(scope="module")
def local(require: Callable[[bool, str], None]) -> Transport:
    require((library_path().parent / "edgec_bench").is_file(), "edgec_bench is not built (make build)")
    return transport("local")


@pytest.fixture(scope="module")
def lm_report(local: Transport, prose_bundle: Path) -> dict[str, Any]:
    # Twice over a chunk of the prompt, whose last part is a single token.
    return profile_bundle(prose_bundle, local, ProfileOptions(threads=1, runs=8, min_ms=0, prompt=40, tokens=8))


def recorded(documents: Sequence[str]) -> Transport:
    left = list(documents)
    return Transport("recorded", lambda bundle, words, env: left.pop(0))


def raw_of(bundle: Path, local: Transport, threads: int = 1) -> dict[str, Any]:
    return local.measure(bundle, replace(QUICK, threads=threads).arguments())


@pytest.fixture(scope="module")
def lm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "model.edgec"
    write_bundle(path, tiny_lm(), tokenizer=None, golden=None, manifest={})
    return path


def test_a_single_layer(local: Transport, layer_bundle: Path) -> None:
    report = profile_bundle(layer_bundle, local, QUICK)
    with Model(layer_bundle) as model:
        assert report["isa"] == model.info.isa
    (test,) = report["tests"]
    (call,) = test["calls"]
    assert (call["layer"], call["kernel"], call["entry"], call["shape"]) == ("selftest", "linear", "main", [3, 24])
    assert (call["macs"], call["weight_bytes"]) == (3 * 24 * 40, 4 * (32 * 40 + 24))
    assert call["activation_bytes"] == 4 * 3 * (24 + 40)
    assert (call["share"], call["threads"], call["count"]) == (1.0, 1, 1)
    assert test["n"] == len(test["samples_ms"]) == len(call["samples_ms"]) >= 6
    assert min(test["samples_ms"]) == test["min_ms"] <= test["p50_ms"] <= test["p90_ms"] <= test["p99_ms"]
    assert len(test["plain_samples_ms"]) == test["n"]
    # Nothing is invented: GB/s and GOP/s are bytes and operations over the median.
    assert call["gb_s"] == pytest.approx((call["weight_bytes"] + call["activation_bytes"]) / call["median_ms"] / 1e6)
    assert call["gop_s"] == pytest.approx(2 * call["macs"] / call["median_ms"] / 1e6)
    assert (call["sqnr_db"], call["specs"]) == (None, [])
    assert call["waiting"] == 0
    assert json.loads(json.dumps(report)) == report


def test_threads_that_wait(local: Transport, prose_bundle: Path) -> None:
    raw = raw_of(prose_bundle / "model.edgec", local, threads=2)
    calls = [call for test in raw["tests"] for call in test["calls"]]
    for call in calls:
        assert call["waited_ns"] <= call["threads"] * sum(call["ns"])
        assert (call["waited_ns"] > 0) == (call["threads"] > 1)
    divided = next(call for call in calls if call["threads"] == 2)
    divided["waited_ns"] = sum(divided["ns"])  # one of its two threads all the time
    report = profile_bundle(prose_bundle, recorded([json.dumps(raw)]), QUICK)
    rows = [row for test in report["tests"] for row in test["calls"]]
    same = next(row for row in rows if (row["index"], row["entry"]) == (divided["index"], divided["entry"]))
    assert same["waiting"] == pytest.approx(0.5)
    assert max(row["waiting"] for row in rows) <= 1


def test_phases_of_a_language_model(lm_report: dict[str, Any]) -> None:
    prefill, decode = lm_report["tests"]
    assert [t["name"] for t in lm_report["tests"]] == ["prefill", "decode"]
    assert (prefill["work"], decode["work"], decode["position"]) == (40, 1, 40)
    assert {c["entry"] for c in decode["calls"]} == {"decode"}
    for test in (prefill, decode):
        assert sum(c["share"] for c in test["calls"]) == pytest.approx(1)
        assert len(test["calls"]) > 50
        # The bound: what no call accounts for is below 3 % of the wall time, or is said (here a few clocks).
        assert abs(test["outside_ms"]) < 0.03 * test["p50_ms"] or test["outside_ms"] < 0.05
        # Every weight is read once, but for the table of embeddings, which is the head's too.
        assert sum(c["weight_bytes"] for c in test["calls"]) == pytest.approx(
            lm_report["memory"]["planned"]["weights"], rel=0.08)
    head = next(c for c in decode["calls"] if c["layer"] == "lm_head")
    assert head["macs"] == head["shape"][-1] * 256
    assert prefill["per_second"] == pytest.approx(40e3 / float(np.median(prefill["samples_ms"])))
    planned, measured = lm_report["memory"]["planned"], lm_report["memory"]["measured"]
    assert planned["peak"] == planned["weights"] + planned["session"]
    assert measured["resident_peak"] is None or measured["resident_peak"] < planned["peak"] + 40e6


def test_a_prompt_of_several_chunks(local: Transport, lm_file: Path) -> None:
    """Chunks of 8: twelve tokens are one of 8 and one of 4, and their costs add up; nine end in a single token, which
    the entry `decode` takes."""
    def prefill(prompt: int) -> dict[str, Any]:
        options = ProfileOptions(threads=1, runs=4, warmup=0, min_ms=0, prompt=prompt, tokens=2)
        found: dict[str, Any] = profile_bundle(lm_file, local, options)["tests"][0]
        return found

    def macs(test: dict[str, Any], kernel: str) -> int:
        return sum(c["macs"] for c in test["calls"] if c["kernel"] == kernel)

    eight, nine, twelve = prefill(8), prefill(9), prefill(12)
    assert {c["entry"] for c in nine["calls"]} == {"prefill", "decode"}
    assert {c["count"] for c in twelve["calls"]} == {2}
    pairs = {n: n * (n + 1) // 2 for n in (8, 9, 12)}
    scale = macs(eight, "attention_cached") // pairs[8]
    assert scale > 0
    assert macs(nine, "attention_cached") == scale * pairs[9]
    assert macs(twelve, "attention_cached") == scale * pairs[12]


def test_the_document_of_another_bundle_is_refused(local: Transport, layer_bundle: Path, lm_file: Path) -> None:
    other = json.dumps(raw_of(lm_file, local))
    with pytest.raises(EdgecError) as caught:
        profile_bundle(layer_bundle, recorded([other]), QUICK)
    assert caught.value.code == "E0602"


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"edgec_bench": 2}', '{"edgec_bench": 1}', "[" * 100000])
def test_documents_that_are_none(text: str, layer_bundle: Path) -> None:
    with pytest.raises(EdgecError) as caught:
        profile_bundle(layer_bundle, recorded([text]), QUICK)
    assert caught.value.code == "E0602"


def test_what_a_device_does_not_tell_is_none(local: Transport, layer_bundle: Path) -> None:
    raw = raw_of(layer_bundle, local)
    for key in ("resident_peak", "resident_own", "resident_mapped"):
        raw["memory"][key] = None
    raw["device"] = dict.fromkeys(raw["device"])
    report = profile_bundle(layer_bundle, recorded([json.dumps(raw)]), QUICK)
    assert report["energy"] is None
    assert set(report["memory"]["measured"].values()) == {None}


def test_documents_that_make_no_sense(local: Transport, layer_bundle: Path) -> None:
    raw = raw_of(layer_bundle, local)
    test = raw["tests"][0]
    for changed in (
        {"tests": [{**test, "wall_ns": [0] * len(test["wall_ns"])}]}, {"tests": [{**test, "plain_ns": [0, 0, 0]}]},
        {"tests": [{**test, "wall_ns": []}]}, {"tests": [{**test, "wall_ns": "fast"}]}, {"phases": [1]}, {"kind": 7},
        {"tests": [{**test, "calls": [{**test["calls"][0], "index": 9}]}]}, {"device": None},
    ):
        with pytest.raises(EdgecError) as caught:
            profile_bundle(layer_bundle, recorded([json.dumps(raw | changed)]), QUICK)
        assert caught.value.code == "E0602"


def test_times_follow_the_samples(local: Transport, layer_bundle: Path) -> None:
    raw = raw_of(layer_bundle, local)
    slow = copy.deepcopy(raw)
    slow["tests"][0]["wall_ns"] = [10_000_000] * 6
    slow["tests"][0]["plain_ns"] = [8_000_000] * 6
    slow["tests"][0]["calls"][0]["ns"] = [6_000_000, 7_000_000, 7_000_000, 7_000_000, 7_000_000, 9_000_000]
    (test,) = profile_bundle(layer_bundle, recorded([json.dumps(slow)]), QUICK)["tests"]
    assert (test["p50_ms"], test["unattributed_ms"], test["unattributed_share"]) == (10, 3, 0.3)
    assert test["overhead"]["of_medians"] == pytest.approx(0.25)
    assert (test["calls"][0]["median_ms"], test["calls"][0]["min_ms"], test["calls"][0]["p90_ms"]) == (7, 6, 9)


def test_rows_and_the_rest_add_up_to_the_median_run(local: Transport, layer_bundle: Path) -> None:
    """A disturbed machine: in each run another program holds up another of three calls for 9 ms. No call's median shows
    that, so what the rows leave of the run is said, in the figures and as a row of the table."""
    raw = raw_of(layer_bundle, local)
    call = raw["tests"][0]["calls"][0]
    raw["tests"][0] |= {"wall_ns": [12_100_000] * 6, "plain_ns": [12_000_000] * 6, "calls": [
        {**call, "ns": [10_000_000 if sample % 3 == k else 1_000_000 for sample in range(6)]} for k in range(3)]}
    (test,) = profile_bundle(layer_bundle, recorded([json.dumps(raw)]), QUICK)["tests"]
    assert [row["median_ms"] for row in test["calls"]] == [1, 1, 1]
    assert (test["p50_ms"], test["sum_of_calls_ms"]) == (12.1, 3)
    assert test["unattributed_ms"] == pytest.approx(9.1)
    assert test["outside_ms"] == pytest.approx(0.1)
    rows = call_rows(test)
    assert rows[-1][0] == "unattributed"
    assert sum(float(row[5]) for row in rows) == pytest.approx(test["p50_ms"])


def test_the_clock_s_cost_counts_every_call_of_a_sample(local: Transport, layer_bundle: Path) -> None:
    """A prompt of several chunks runs each call several times, and the clock is read before and after each."""
    raw = raw_of(layer_bundle, local)
    raw["roofline"]["clock_ns"] = 50.0
    raw["tests"][0]["plain_ns"] = [1_000_000] * 6
    raw["tests"][0]["calls"][0]["count"] = 4
    (test,) = profile_bundle(layer_bundle, recorded([json.dumps(raw)]), QUICK)["tests"]
    assert test["overhead"]["clocks"] == pytest.approx(2 * 4 * 50 / 1e6)


@pytest.mark.parametrize(("kernel", "isa", "gb_s", "known"), [
    ("linear", "avx2", 1000.0, True), ("conv2d_q8", "avx2", 1000.0, False), ("linear_bits", "amx", 1000.0, False),
    ("linear", "amx", 1000.0, False), ("conv2d_winograd", "neon", 1000.0, False), ("linear_bits", "avx2", 0.001, True)])
def test_no_roofline_of_products_that_were_not_probed(
    kernel: str, isa: str, gb_s: float, known: bool, local: Transport, layer_bundle: Path
) -> None:
    """The probe multiplies float32. A kernel of integers is far above that, which says nothing about what it could do:
    only reading limits it for sure. (Operands stay those of a float32 layer.)"""
    plan = read_bundle(layer_bundle).plan
    (call,) = plan.entries[0].calls
    raw = raw_of(layer_bundle, local)
    raw["roofline"] |= {"weights_gb_s": gb_s, "multiply_add_gop_s": 1.0}
    found = {**raw["tests"][0]["calls"][0], "isa": isa}
    row = _row(found, replace(call, kernel=kernel, ints=(1,) * 9), [bindings_of(plan)], plan.stored(), raw, {})
    row |= {"share": 1.0, "specs": ["int8"]}
    assert row["macs"] > 0
    assert (row["of_roofline"] is not None) == known
    _, step = _next(row, 1, 0.0)
    assert step is not None
    assert ("was not measured" in step) == (not known)


def test_quantized_layers_have_sqnr_and_overrides(
    local: Transport, layer_bundle: Path, tmp_path: Path
) -> None:
    """A report beside the bundle gives each layer its error; poor ones ask for a bit more, dear good ones give one."""
    bundle = tmp_path / "model.edgec"
    bundle.write_bytes(layer_bundle.read_bytes())
    (tmp_path / "reports").mkdir()

    def profiled(error: float) -> dict[str, Any]:
        layer = {"name": "w", "spec": "hlq3g64", "error": error}
        (tmp_path / "reports" / "quant.json").write_text(json.dumps({"layers": [layer]}))
        return profile_bundle(tmp_path, local, QUICK)

    poor = profiled(0.09)
    (call,) = poor["tests"][0]["calls"]
    assert call["sqnr_db"] == pytest.approx(-10 * np.log10(0.09))
    assert "one bit more" in call["next"]
    assert overrides(poor) == ["w=hlq4g64"]
    good = profiled(0.0001)
    assert good["tests"][0]["calls"][0]["sqnr_db"] == pytest.approx(40)
    assert "one bit less" in good["tests"][0]["calls"][0]["next"]
    assert overrides(good) == ["w=hlq2g64"]
    assert overrides(profiled(0.01)) == []
    assert profiled(0.0)["tests"][0]["calls"][0]["sqnr_db"] is None
    # static8 says SQNR itself; float is its only other format.
    for sqnr, lines in ((33.5, []), (9.0, ["w=f32"]), (None, [])):
        layer = {"name": "w", "spec": "static8", "op": "Gemm", "sqnr_db": sqnr}
        (tmp_path / "reports" / "quant.json").write_text(json.dumps({"layers": [layer]}))
        fixed = profile_bundle(tmp_path, local, QUICK)
        assert fixed["tests"][0]["calls"][0]["sqnr_db"] == sqnr
        assert overrides(fixed) == lines
    for damaged in ("{", "[]", '{"layers": [{}]}', '{"layers": [3]}', '{"layers": [{"name": "w", "error": "x"}]}'):
        (tmp_path / "reports" / "quant.json").write_text(damaged)
        with pytest.raises(EdgecError) as caught:
            profile_bundle(tmp_path, local, QUICK)
        assert caught.value.code == "E0101"
    with pytest.raises(EdgecError) as caught:
        overrides(profile_bundle(layer_bundle, local, QUICK))
    assert caught.value.code == "E0502"


def test_the_context_is_a_limit(local: Transport, lm_file: Path) -> None:
    with pytest.raises(EdgecError) as caught:
        profile_bundle(lm_file, local, ProfileOptions(prompt=30, tokens=9))
    assert caught.value.code == "E0404"


def test_statistics() -> None:
    assert [quantile([5, 1, 4, 2, 3], q) for q in (0.0, 0.2, 0.5, 0.9, 1.0)] == [1, 1, 3, 5, 5]
    values = np.random.default_rng(0).normal(10, 1, 200)
    low, high = median_interval(list(values))
    assert low < np.median(values) < high
    # Of a normal sample the median's standard error is 1.2533 sigma / sqrt(n).
    assert 0.6 < (high - low) / (2 * 1.96 * 1.2533 / np.sqrt(200)) < 1.5
