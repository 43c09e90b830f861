"""What is made of a profile: tables, Markdown, a trace, one HTML file."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgec.judge import report as views
from edgec.judge.profile import ProfileOptions, profile_bundle
from edgec.native.library import library_path
from edgec.targets.transport import transport

EVIL = '</svg><script src="https://example.org/x.js"></script>|<img src=x onerror=alert(1)>"\'&`'


@pytest.fixture(scope="module")
def report(require: Callable[[bool, str], None], prose_bundle: Path) -> dict[str, Any]:
    """Of our language model; a layer's name is hostile, and one phase has much time outside its calls."""
    require((library_path().parent / "edgec_bench").is_file(), "edgec_bench is not built (make build)")
    options = ProfileOptions(threads=1, runs=6, warmup=1, min_ms=0, prompt=16, tokens=4)
    found = copy.deepcopy(profile_bundle(prose_bundle, transport("local"), options))
    longest = max(found["tests"][0]["calls"], key=lambda row: row["median_ms"])
    longest["layer"] = EVIL
    # Of the other nothing, however disturbed this machine is.
    found["tests"][0]["unattributed_share"], found["tests"][1]["unattributed_share"] = 0.0, 0.5
    return found


EMPTY = {"meta", "line", "rect", "circle", "polyline", "br"}


class _Tags(HTMLParser):
    """Every tag and attribute of a file; fails on tags that do not fit together."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag


def test_html_is_one_file_that_needs_no_other(report: dict[str, Any]) -> None:
    text = views.html_report(report)
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    names = {tag for tag, _ in tags.seen}
    assert names & {"script", "img", "link", "iframe", "object", "embed", "base", "use", "image"} == set()
    attributes = {name for _, attrs in tags.seen for name in attrs}
    assert attributes & {"src", "href", "xlink:href", "srcset", "data", "action"} == set()
    assert not any(name.startswith("on") for name in attributes)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in text
    assert EVIL not in text
    drawings = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(drawings) == 2 * 4  # calls, kernels, roofline, samples
    for drawing in drawings:
        ET.fromstring(drawing)
    for test in report["tests"]:
        assert len(re.findall(f"<h2>Calls of {test['name']}</h2>", text)) == 1
    assert text.count('class="warn"') == 1


def test_drawings_lie_inside_their_frames(report: dict[str, Any]) -> None:
    for drawing in re.findall(r"<svg .*?</svg>", views.html_report(report), re.DOTALL):
        tree = ET.fromstring(drawing)
        width, height = float(tree.attrib["width"]), float(tree.attrib["height"])
        for node in tree.iter():
            for key, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                assert 0 <= float(node.attrib.get(key, 0)) <= limit, (node.tag, node.attrib)
            for point in node.attrib.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_rows(report: dict[str, Any]) -> None:
    prefill, decode = report["tests"]
    rows = views.call_rows(prefill)
    assert len(rows) == len(prefill["calls"])
    times = [float(row[5]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert rows[0][0] == EVIL
    assert all(len(row) == len(views.CALL_COLUMNS) for row in rows + views.call_rows(decode, 3))
    few = views.call_rows(decode, 3)
    assert [row[0] for row in few[3:]] == [f"{len(decode['calls']) - 3} more calls", "unattributed"]
    assert all(len(row) == len(views.TEST_COLUMNS) for row in views.test_rows(report))
    assert {len(row) for row in views.fact_rows(report)} == {2}


def test_what_nobody_told_is_a_dash(report: dict[str, Any]) -> None:
    bare = copy.deepcopy(report)
    bare["device"] = dict.fromkeys(bare["device"]) | {"transport": "wasm:node"}
    bare["memory"]["measured"] = dict.fromkeys(bare["memory"]["measured"])
    for test in bare["tests"]:
        for row in test["calls"]:
            row |= dict.fromkeys(("gb_s", "gop_s", "of_roofline", "ops_per_byte", "sqnr_db", "share", "next"))
    facts = dict(views.fact_rows(bare))
    assert (facts["governor, clocks GHz"], facts["battery"], facts["degrees before, after"]) == ("-, -", "-", "- -> -")
    assert "None" not in views.html_report(bare) + views.markdown(bare) + views.trace(bare)


def test_markdown_has_whole_tables(report: dict[str, Any]) -> None:
    text = views.markdown(report)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert "## Calls of prefill" in text


def test_the_trace_adds_up(report: dict[str, Any]) -> None:
    document = json.loads(views.trace(report))
    assert document["displayTimeUnit"] == "ms"
    for process, test in enumerate(report["tests"], 1):
        events = [e for e in document["traceEvents"] if e["pid"] == process and e["ph"] == "X"]
        whole, parts = events[0], events[1:]
        assert whole["dur"] == pytest.approx(1e3 * test["samples_ms"][whole["args"]["sample"]])
        assert [e["name"] for e in parts[: len(test["calls"])]] == [row["layer"] for row in test["calls"]]
        at = 0.0
        for event in parts:
            assert event["ts"] == pytest.approx(at)
            at += event["dur"]
        assert at == pytest.approx(whole["dur"], rel=1e-6)
        below = [1 for value in test["samples_ms"] if value < whole["dur"] / 1e3 - 1e-9]
        assert len(below) == (test["n"] - 1) // 2


def test_figures(report: dict[str, Any]) -> None:
    found = views.figures(report)
    assert found["p50_ms"] == found["decode.p50_ms"] == report["tests"][1]["p50_ms"]
    assert found["prefill.p50_ms"] == report["tests"][0]["p50_ms"]
    assert found["decode.unattributed_pct"] == 50
    assert set(found) == {name for name in views.FIGURES if not name.startswith("run.")}
    assert found["planned_mb"] == report["memory"]["planned"]["peak"] / 1e6


@pytest.mark.slow
def test_a_browser_draws_it(report: dict[str, Any], tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    """Chromium opens the file without a network, complains about nothing, and the picture has the colours of text, bars
    and the roofline."""
    browser = next((b for name in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(name))), None)
    require(browser is not None, "no Chromium (apt-get install chromium)")
    assert browser is not None
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(views.html_report(report), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,2400",
         "--enable-logging=stderr", "--log-level=0", "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={tmp_path}/home", f"--screenshot={picture}", page.as_uri()],
        capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    from PIL import Image

    with Image.open(picture) as image:
        pixels = image.convert("RGB")
        counts = {colour: n for n, colour in pixels.getcolors(1 << 24) or []}
    assert pixels.size == (1280, 2400)
    for colour in ((0x2F, 0x6F, 0xB2), (0xC7, 0x77, 0x2E), (0x1B, 0x1F, 0x24), (255, 255, 255)):
        assert counts.get(colour, 0) > 200, f"nothing is {colour}"
