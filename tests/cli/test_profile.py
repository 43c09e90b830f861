"""edgec profile, edgec diff and bench --sweep-threads as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgec.errors import CODES
from edgec.judge import report as views
from edgec.judge.bench import fastest, sweep
from edgec.judge.detect import _clusters
from edgec.judge.speed import Samples
from edgec.native.library import library_path
from edgec.targets.devices import host
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]
QUICK = ("-t", "1", "-r", "5", "--warmup", "1", "--min-ms", "0")


@pytest.fixture(autouse=True)
def _built(require: Callable[[bool, str], None]) -> None:
    require((library_path().parent / "edgec_bench").is_file(), "edgec_bench is not built (make build)")


def test_json_and_files(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"p.{name}" for name in ("trace", "html", "markdown", "output")}
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    done = edgec_cli("profile", layer_bundle, *QUICK, *options, "--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert (document["schema_version"], document["command"], document["profile_version"]) == (1, "profile", 1)
    assert document["options"] == {"runs": 5, "warmup": 1, "min_ms": 0}
    assert [c["layer"] for c in document["tests"][0]["calls"]] == ["selftest"]
    assert json.loads(files["output"].read_text())["tests"] == document["tests"]
    assert files["html"].read_text().startswith("<!doctype html>")
    assert json.loads(files["trace"].read_text())["traceEvents"]
    assert files["markdown"].read_text().startswith("# Profile of ")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files.values())


def test_the_table(edgec_cli: Cli, layer_bundle: Path) -> None:
    done = edgec_cli("profile", layer_bundle, *QUICK)
    assert done.code == 0
    for word in ("Phases", "Calls of run", "selftest", "linear", "unattributed", "GB/s", "instruction set, threads"):
        assert word in done.out


@pytest.mark.parametrize(("condition", "code"), [
    ("p50_ms>100000", 0), ("p50_ms>0", 1), ("run.p50_ms<=100000", 1), ("p50>1", 2), ("p50_ms", 2), ("1>2", 2)])
def test_fail_if(edgec_cli: Cli, layer_bundle: Path, condition: str, code: int) -> None:
    done = edgec_cli("profile", layer_bundle, *QUICK, "--fail-if", "p99_ms<0", "--fail-if", condition, "--json")
    assert done.code == code
    if code == 1:
        assert "E0501" in done.err
        assert condition in done.err


@pytest.mark.parametrize("words", [("--write-overrides", "o"), ("--fail-if", "decode.p50_ms>1")])
def test_what_cannot_be_said_is_refused_before_anything_runs(
    edgec_cli: Cli, layer_bundle: Path, words: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a bundle that is not quantized, and of a phase that this model has not: before the device is asked."""
    monkeypatch.chdir(tmp_path)
    done = edgec_cli("profile", layer_bundle, "--device", "exec:/nonexistent {program} {args}", *words)
    assert done.code == 2
    assert "E0601" not in done.err
    assert words[0] in done.err


def test_what_was_measured_is_written_before_a_late_error(
    edgec_cli: Cli, layer_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That a device does not tell a figure is known only afterwards."""
    known = views.figures
    monkeypatch.setattr(views, "figures", lambda report: known(report) | {"peak_mb": None})
    done = edgec_cli("profile", layer_bundle, *QUICK, "-o", tmp_path / "p.json", "--fail-if", "peak_mb>1")
    assert (done.code, "not measured" in done.err, "Phases" in done.out) == (2, True, True)
    assert json.loads((tmp_path / "p.json").read_text())["tests"]


def test_doctor_says_what_reaches_devices(
    edgec_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adb").write_text("#!/bin/sh\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = {f["name"]: f for f in json.loads(edgec_cli("doctor", "--json").out)["findings"]}
    found = findings["devices of profile"]
    assert (found["state"], found["details"].startswith("local, adb; ")) == ("missing", True)
    assert "ssh needs ssh (apt-get install openssh-client)" in found["details"]
    assert "wasm:node needs node" in found["details"]


def test_conditions_are_checked_before_anything_runs(edgec_cli: Cli, layer_bundle: Path) -> None:
    done = edgec_cli("profile", layer_bundle, "--device", "exec:/nonexistent {program} {args}", "--fail-if", "speed>1")
    assert (done.code, "speed" in done.err) == (2, True)


def test_errors_of_devices_are_explained(edgec_cli: Cli, layer_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    done = edgec_cli("profile", layer_bundle, "--device", "adb", "--json")
    assert done.code == 5
    assert json.loads(done.out)["error"]["code"] == "EDGEC-E0601"
    assert edgec_cli("profile", layer_bundle, "--device", "toaster").code == 2
    for code in ("E0601", "E0602"):
        assert CODES[code].title in edgec_cli("explain", code).out


def test_files_that_cannot_be_written_are_refused_first(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    for option in ("--trace", "--html", "--markdown", "-o", "--write-overrides"):
        done = edgec_cli("profile", layer_bundle, *QUICK, option, tmp_path / "none" / "file")
        assert (done.code, "E0004" in done.err, done.out) == (2, True, "")
        assert edgec_cli("profile", layer_bundle, *QUICK, option, tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []


def test_overrides_feed_the_next_compile(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    assert edgec_cli("profile", layer_bundle, *QUICK, "--write-overrides", tmp_path / "o").code == 2
    (tmp_path / "reports").mkdir()
    (tmp_path / "model.edgec").write_bytes(layer_bundle.read_bytes())
    (tmp_path / "reports" / "quant.json").write_text(json.dumps(
        {"layers": [{"name": "w", "spec": "int3", "error": 0.4}]}))
    done = edgec_cli("profile", tmp_path, *QUICK, "--write-overrides", tmp_path / "o")
    assert done.code == 0
    assert "one bit more" in done.out
    assert (tmp_path / "o").read_text() == "w=int4g128\n"


def test_diff(edgec_cli: Cli, layer_bundle: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert edgec_cli("profile", layer_bundle, *QUICK, "-r", "20", "-o", a, "--json").code == 0
    document: dict[str, Any] = json.loads(a.read_text())
    for rows in ([document["tests"][0]], document["tests"][0]["calls"]):
        for row in rows:
            row["samples_ms"] = [20 * value for value in row["samples_ms"]]
    b.write_text(json.dumps(document))
    same = edgec_cli("diff", a, a, "--json", "--fail-if", "p50_pct>1")
    assert (same.code, json.loads(same.out)["tests"][0]["significant"]) == (0, False)
    slower = edgec_cli("diff", a, b, "--fail-if", "run.p50_pct>5")
    assert (slower.code, "E0501" in slower.err) == (1, True)
    assert "+1900.0%" in slower.out
    assert edgec_cli("diff", b, a, "--fail-if", "p50_pct>5").code == 0
    assert edgec_cli("diff", a, b, "--fail-if", "speed>5").code == 2
    assert edgec_cli("diff", a, tmp_path / "c.json").code == 2


def test_sweep(edgec_cli: Cli, layer_bundle: Path) -> None:
    done = edgec_cli("bench", layer_bundle, "--sweep-threads", "-r", "2", "--json")
    document = json.loads(done.out)
    cores = document["device"]["cores"]
    assert [t["threads"] for t in document["tests"]] == sweep(cores)
    assert 1 <= document["fastest_threads"]["run"] <= cores
    assert edgec_cli("bench", layer_bundle, "--sweep-threads", "-t", "1").code == 2
    assert "fastest with" in edgec_cli("bench", layer_bundle, "--sweep-threads", "-r", "2").err
    assert json.loads(edgec_cli("bench", layer_bundle, "-r", "2", "--json").out)["fastest_threads"] is None


def test_detect(edgec_cli: Cli) -> None:
    """This machine as a row: what `host` says, and a measured bandwidth with how it was measured."""
    done = edgec_cli("targets", "detect", "--json")
    assert done.code == 0
    (row,) = json.loads(done.out)["targets"]
    here = host().to_dict()
    changed = {"name", "about", "clusters", "bandwidth_gb_s", "bandwidth_source", "default_threads"}
    assert {key: value for key, value in row.items() if key not in changed} == json.loads(json.dumps(
        {key: value for key, value in here.items() if key not in changed}))
    assert 0.1 < row["bandwidth_gb_s"] < 10000
    assert "measured by edgec" in row["bandwidth_source"]
    shown = edgec_cli("targets", "apple-m4").out
    assert "4 performance, 6 efficiency" in shown
    assert "newsroom" in shown


@pytest.mark.parametrize(("clocks", "clusters"), [
    (None, ()), ([2000000, 1000000, 2000000], (("2.00 GHz", 2), ("1.00 GHz", 1))), ([1000000, None, 1], ()), ([1], ())])
def test_clusters(clocks: list[int] | None, clusters: tuple[tuple[str, int], ...]) -> None:
    assert _clusters({"max_khz": clocks}, 3) == clusters


@pytest.mark.parametrize(("cores", "counts"), [
    (1, [1]), (2, [1, 2]), (6, [1, 2, 3, 4, 5, 6]), (8, [1, 2, 3, 4, 5, 6, 7, 8]),
    (12, [1, 2, 3, 4, 5, 6, 7, 8, 12]), (32, [1, 2, 3, 4, 5, 6, 7, 8, 16, 32])])
def test_counts_of_a_sweep(cores: int, counts: list[int]) -> None:
    assert sweep(cores) == counts


def test_the_fastest_count() -> None:
    rows = [Samples("a", 2, 1, (3.0, 3.0, 9.0)), Samples("a", 1, 1, (3.0, 3.0, 3.0)), Samples("b", 1, 1, (2.0,)),
            Samples("b", 4, 1, (1.0,))]
    assert fastest(rows) == {"a": 1, "b": 4}
