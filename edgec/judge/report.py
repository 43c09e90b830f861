"""A profile as tables, Markdown, a Chrome trace and one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgec.judge.profile import UNATTRIBUTED_LIMIT

Row = tuple[str, ...]
CALL_COLUMNS = ("layer", "kernel", "isa", "shape", "weights", "ms", "share", "GB/s", "GOP/s", "of roofline", "waits",
                "SQNR dB", "next")
TEST_COLUMNS = ("phase", "n", "p50 ms", "p90 ms", "min ms", "95 % of median", "per second", "calls ms",
                "unattributed", "profiling costs")


def _number(value: float | None, form: str = "{:.3f}") -> str:
    """A figure, or a dash for one that the device does not tell."""
    return "-" if value is None else form.format(value)


def _percent(value: float | None) -> str:
    return _number(value, "{:.1%}")


def _bytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:.2f} MiB"


def test_rows(report: Mapping[str, Any]) -> list[Row]:
    """One row per phase, in the order of TEST_COLUMNS."""
    return [(
        test["name"], str(test["n"]), _number(test["p50_ms"]), _number(test["p90_ms"]), _number(test["min_ms"]),
        "{:.3f} .. {:.3f}".format(*test["median_ci95_ms"]), _number(test["per_second"], "{:.2f}"),
        _number(test["sum_of_calls_ms"]), f"{test['unattributed_ms']:.3f} ms ({_percent(test['unattributed_share'])})",
        f"{test['overhead']['clocks']:.2%} ({test['overhead']['of_medians']:+.1%} measured)",
    ) for test in report["tests"]]


def _unattributed(test: Mapping[str, Any]) -> str:
    return (f"p50 less the medians of the calls: {test['outside_ms']:.3f} ms outside the calls, the rest moments in "
            "which something else ran")


def call_rows(test: Mapping[str, Any], most: int = 0) -> list[Row]:
    """The calls of a phase, the longest first (most: at most so many, 0 all), in the order of CALL_COLUMNS. What
    they leave of p50 is a row when it is above 3 % of it: with that row they add up to p50."""
    ordered = sorted(test["calls"], key=lambda row: -row["median_ms"])
    rows: list[Row] = [(
        row["layer"], row["kernel"], row["isa"], "x".join(map(str, row["shape"])), " ".join(row["weights"]) or "-",
        _number(row["median_ms"]), _percent(row["share"]), _number(row["gb_s"], "{:.1f}"),
        _number(row["gop_s"], "{:.1f}"), _number(row["of_roofline"], "{:.0%}"),
        _number(row["waiting"] if row["threads"] > 1 else None, "{:.0%}"), _number(row["sqnr_db"], "{:.1f}"),
        row["next"] or "",
    ) for row in ordered[: most or None]]
    if len(rows) < len(ordered):
        left = ordered[len(rows):]
        rows.append((f"{len(left)} more calls", "", "", "", "", _number(sum(r["median_ms"] for r in left)),
                     _percent(sum(r["share"] or 0 for r in left)), "", "", "", "", "", ""))
    if abs(test["unattributed_share"]) > UNATTRIBUTED_LIMIT:
        rows.append(("unattributed", "", "", "", "", _number(test["unattributed_ms"]),
                     f"{_percent(test['unattributed_share'])} of p50", "", "", "", "", "", _unattributed(test)))
    return rows


def fact_rows(report: Mapping[str, Any]) -> list[Row]:
    """What was measured where, how much memory, how fast the machine is."""
    device, roofline, memory = report["device"], report["roofline"], report["memory"]
    clocks = [f"{khz / 1e6:.2f}" for khz in device["khz_after"] or [] if khz is not None]
    heat = [device["millidegrees_before"], device["millidegrees_after"]]
    energy, bundle = report["energy"], report["bundle"]
    planned, measured = memory["planned"], memory["measured"]
    return [
        ("bundle", f"{bundle['model'] or '-'}, {_bytes(bundle['bytes'])}, SHA-256 {bundle['sha256'][:16]}"),
        ("device", f"{device['transport']}: {device['cpu'] or 'CPU unknown'}, {device['os'] or 'system unknown'}"),
        ("instruction set, threads", f"{report['isa']}, {report['threads']} of {device['cores'] or '-'} cores"),
        ("governor, clocks GHz", f"{device['governor'] or '-'}, {' '.join(clocks) or '-'}"),
        ("degrees before, after", " -> ".join(_number(None if t is None else t / 1e3, "{:.1f}") for t in heat)),
        ("throttled", "-" if device["throttles"] is None else f"{device['throttles']} times"),
        ("battery", device["battery"] or "-"),
        ("energy", "-" if energy is None else f"{energy['joules']:.2f} J, {energy['samples']} runs, whole package"),
        ("reads, the model's bytes", f"{roofline['weights_gb_s']:.1f} GB/s ({_bytes(roofline['weights_bytes'])})"),
        ("reads, memory", f"{roofline['memory_gb_s']:.1f} GB/s ({_bytes(roofline['memory_bytes'])})"),
        ("multiplies and adds f32",
         f"{roofline['multiply_add_gop_s']:.1f} GOP/s ({roofline['vector_bits']}-bit vectors)"),
        ("planned peak", ", ".join(f"{name} {_bytes(planned[name])}" for name in ("peak", "weights", "session"))),
        ("measured peak", ", ".join(f"{name} {_bytes(measured[key])}" for name, key in (
            ("peak", "resident_peak"), ("own", "resident_own"), ("mapped files", "resident_mapped")))),
        ("opening, session, first run", ", ".join(f"{report['phases_ms'][k]:.2f} ms"
                                                  for k in ("open", "session", "first_run"))),
        *([("warning", report["warning"])] if report["warning"] else []),
    ]


# Names that --fail-if knows, of a phase and of the whole; `figures` gives their values.
PHASES = ("run", "prefill", "decode")
PHASE_FIGURES = ("p50_ms", "p90_ms", "p99_ms", "min_ms", "per_s", "unattributed_pct", "overhead_pct")
FIGURES = ("peak_mb", "planned_mb", "open_ms", "first_run_ms", *PHASE_FIGURES,
           *(f"{phase}.{name}" for phase in PHASES for name in PHASE_FIGURES))


def figures(report: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures that --fail-if may name: of each phase with its name before them, and of the only or last phase (a
    language model's is decode) without."""
    found: dict[str, float | None] = {}
    for test in report["tests"]:
        values = dict(zip(PHASE_FIGURES, (
            test["p50_ms"], test["p90_ms"], test["p99_ms"], test["min_ms"], test["per_second"],
            100 * test["unattributed_share"], 100 * test["overhead"]["of_medians"]), strict=True))
        found |= values
        found |= {f"{test['name']}.{key}": value for key, value in values.items()}
    peak = report["memory"]["measured"]["resident_peak"]
    return found | {
        "peak_mb": None if peak is None else peak / 1e6, "planned_mb": report["memory"]["planned"]["peak"] / 1e6,
        "open_ms": report["phases_ms"]["open"], "first_run_ms": report["phases_ms"]["first_run"],
    }


# Markdown and trace ------------------------------------------------------------------------------------------------


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def markdown(report: Mapping[str, Any]) -> str:
    """The whole profile as Markdown tables."""
    parts = [f"# Profile of {report['bundle']['model'] or report['bundle']['path']}",
             _markdown_table(("what", "found"), fact_rows(report)), "## Phases",
             _markdown_table(TEST_COLUMNS, test_rows(report))]
    for test in report["tests"]:
        parts += [f"## Calls of {test['name']}", _markdown_table(CALL_COLUMNS, call_rows(test))]
    return "\n\n".join(parts) + "\n"


def trace(report: Mapping[str, Any]) -> str:
    """A Chrome trace (chrome://tracing, Perfetto): of each phase the sample whose wall time is nearest to the median.

    Known is how long calls take, not when they begin: they follow each other, and what no call accounts for comes
    last. Times are microseconds.
    """
    events: list[dict[str, Any]] = []
    for process, test in enumerate(report["tests"], 1):
        wall = test["samples_ms"]
        middle = sorted(wall)[(len(wall) - 1) // 2]
        chosen = wall.index(middle)
        events += [{"ph": "M", "pid": process, "tid": 1, "name": "process_name", "args": {"name": test["name"]}},
                   {"ph": "X", "pid": process, "tid": 1, "ts": 0, "dur": 1e3 * wall[chosen], "name": test["name"],
                    "cat": "run", "args": {"sample": chosen}}]
        at = 0.0
        for row in test["calls"]:
            spent = 1e3 * row["samples_ms"][chosen]
            events.append({
                "ph": "X", "pid": process, "tid": 1, "ts": at, "dur": spent, "name": row["layer"],
                "cat": row["kernel"], "args": {key: row[key] for key in (
                    "kernel", "isa", "threads", "waiting", "shape", "weights", "macs", "weight_bytes",
                    "activation_bytes")}})
            at += spent
        if 1e3 * wall[chosen] > at:
            events.append({"ph": "X", "pid": process, "tid": 1, "ts": at, "dur": 1e3 * wall[chosen] - at,
                           "name": "unattributed", "cat": "rest", "args": {}})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {
        "bundle": report["bundle"]["sha256"], "device": report["device"]["transport"], "isa": report["isa"],
        "threads": report["threads"], "order": "calls one after the other; only their durations were measured"}},
        ensure_ascii=False, allow_nan=False) + "\n"


# HTML --------------------------------------------------------------------------------------------------------------

_STYLE = """
:root{--ink:#1b1f24;--soft:#5b6570;--line:#d9dee3;--paper:#fff;--bar:#2f6fb2;--bar2:#c7772e;--warn:#a33a1f}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#9aa5b0;--line:#39424b;--paper:#14181c;--bar:#6ea8e6;
--bar2:#e0a060;--warn:#f08a6c}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;max-width:76rem;
padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:13px}th,td{text-align:left;padding:.25rem .7rem .25rem 0;vertical-align:top;
border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:600}td.n{text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{overflow-x:auto}svg{max-width:100%;height:auto;display:block}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}
svg .soft{fill:var(--soft)}svg .bar{fill:var(--bar)}svg .bar2{fill:var(--bar2)}svg .axis{stroke:var(--line)}
svg .roof{stroke:var(--bar2);fill:none;stroke-width:2}.warn{color:var(--warn)}figure{margin:1rem 0}
figcaption{color:var(--soft);font-size:13px}
"""
# Nothing but the style above may act in the file, whatever a layer is called.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_BARS = 16


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    figures = [all(row[i][:1].isdigit() or row[i] in ("-", "") for row in rows) for i in range(len(columns))]
    lines = []
    for row in rows:
        cells = "".join(f"<td{' class=n' if figure else ''}>{html.escape(cell)}</td>"
                        for cell, figure in zip(row, figures, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _short(text: str, most: int) -> str:
    """The end of a module path says which layer it is."""
    return text if len(text) <= most else "…" + text[1 - most:]


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{mark}>{html.escape(text)}</text>'


def _figure(width: int, height: int, parts: Sequence[str], caption: str) -> str:
    return (f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{html.escape(caption)}">{"".join(parts)}</svg>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")


def _bars(pairs: Sequence[tuple[str, float, str]], caption: str) -> str:
    """Horizontal bars: (label, value, what stands behind the bar)."""
    most = max((value for _, value, _ in pairs), default=0.0) or 1.0
    parts = []
    for i, (label, value, note) in enumerate(pairs):
        y = 22 * i
        parts += [_text(300, y + 15, _short(label, 44), "end"),
                  f'<rect class="bar" x="308" y="{y + 3}" width="{max(1.0, 460 * value / most):.1f}" height="16"/>',
                  _text(314 + 460 * value / most, y + 15, note, kind="soft")]
    return _figure(960, 22 * len(pairs) + 4, parts, caption)


def _samples(test: Mapping[str, Any]) -> str:
    """Wall time of every sample in order: drifts and outliers show."""
    values = test["samples_ms"]
    high, wide = max(values) * 1.05, 900 / max(1, len(values) - 1)
    middle = 150 - 140 * test["p50_ms"] / high
    parts = ['<line class="axis" x1="50" y1="150" x2="950" y2="150"/>',
             f'<line class="roof" x1="50" y1="{middle:.1f}" x2="950" y2="{middle:.1f}"/>',
             _text(44, 154, "0", "end", "soft"), _text(44, 18, f"{high:.3g}", "end", "soft"),
             _text(44, middle + 4, f"{test['p50_ms']:.3g}", "end", "soft")]
    parts += [f'<circle class="bar" cx="{50 + wide * i:.1f}" cy="{150 - 140 * v / high:.1f}" r="2.5"/>'
              for i, v in enumerate(values)]
    return _figure(960, 160, parts, f"{test['name']}: ms of each of the {len(values)} samples; the line is the median")


def _roofline(report: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """GOP/s over operations per byte, both logarithmic, under what the machine was measured to do."""
    roofline = report["roofline"]
    peak, read = roofline["multiply_add_gop_s"], roofline["weights_gb_s"]
    points = [(row["ops_per_byte"], row["gop_s"], row) for row in test["calls"]
              if row["ops_per_byte"] and row["gop_s"]]
    if not points or peak <= 0 or read <= 0:
        return ""
    low_x, high_x = min(0.1, *(x for x, _, _ in points)), max(100.0, 2 * peak / read, *(x for x, _, _ in points))
    low_y, high_y = min(y for _, y, _ in points) / 2, 2 * max(peak, *(y for _, y, _ in points))

    def at(x: float, y: float) -> tuple[float, float]:
        return (60 + 880 * math.log(x / low_x) / math.log(high_x / low_x),
                300 - 280 * math.log(y / low_y) / math.log(high_y / low_y))

    knee = peak / read
    start, turn, end = (at(x, max(low_y, min(peak, read * x))) for x in (max(low_x, low_y / read), knee, high_x))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (start, turn, end))
    parts = [f'<polyline class="roof" points="{path}"/>', '<line class="axis" x1="60" y1="300" x2="940" y2="300"/>',
             '<line class="axis" x1="60" y1="20" x2="60" y2="300"/>',
             _text(940, 332, "operations per byte", "end", "soft"), _text(64, 16, "GOP/s", kind="soft")]
    parts += [_text(*at(10.0 ** k, low_y), f"{10.0 ** k:g}", "middle", "soft").replace('y="300.0"', 'y="316"')
              for k in range(math.ceil(math.log10(low_x)), math.floor(math.log10(high_x)) + 1)]
    parts += [_text(54, at(low_x, 10.0 ** k)[1] + 4, f"{10.0 ** k:g}", "end", "soft")
              for k in range(math.ceil(math.log10(low_y)), math.floor(math.log10(high_y)) + 1)]
    for x, y, row in points:
        cx, cy = at(x, y)
        title = html.escape(f"{row['layer']}: {row['kernel']}, {row['median_ms']:.3f} ms")
        radius = 2.5 + 10 * math.sqrt(row["share"] or 0)
        parts.append(f'<circle class="bar" fill-opacity=".6" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}">'
                     f"<title>{title}</title></circle>")
    return _figure(960, 336, parts, f"{test['name']}: every call that multiplies, under this machine's roofline "
                   f"({read:.1f} GB/s over the model's bytes, {peak:.0f} GOP/s of f32); the area is its time")


def html_report(report: Mapping[str, Any]) -> str:
    """The profile as one HTML file: no script, no font, no picture from elsewhere."""
    title = html.escape(f"Profile of {report['bundle']['model'] or report['bundle']['path']}")
    parts = [f"<h1>{title}</h1>", _table(("what", "found"), fact_rows(report)), "<h2>Phases</h2>",
             _table(TEST_COLUMNS, test_rows(report))]
    for test in report["tests"]:
        name = html.escape(test["name"])
        ordered = sorted(test["calls"], key=lambda row: -row["median_ms"])[:_BARS]
        kernels: dict[str, float] = {}
        for row in test["calls"]:
            kernel = f"{row['kernel']} ({row['isa']})"
            kernels[kernel] = kernels.get(kernel, 0.0) + row["median_ms"]
        if abs(test["unattributed_share"]) > UNATTRIBUTED_LIMIT:
            parts.append(f'<p class="warn">{test["unattributed_ms"]:.3f} ms of {name} '
                         f'({_percent(test["unattributed_share"])}) are unattributed: {_unattributed(test)}.</p>')
        parts += [
            f"<h2>{name}</h2>",
            _bars([(row["layer"], row["median_ms"],
                    f"{row['median_ms']:.3f} ms, {_percent(row['share'])}, {row['kernel']}") for row in ordered],
                  f"{test['name']}: the calls that take longest, median ms"),
            _bars([(kernel, ms, f"{ms:.3f} ms") for kernel, ms in sorted(kernels.items(), key=lambda pair: -pair[1])],
                  f"{test['name']}: ms by kernel"),
            _roofline(report, test), _samples(test),
            f"<h2>Calls of {name}</h2>", _table(CALL_COLUMNS, call_rows(test)),
        ]
    body = "\n".join(parts)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f'<meta name="viewport" content="width=device-width,initial-scale=1">\n'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n")
