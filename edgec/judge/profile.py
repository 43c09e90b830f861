"""`edgec profile`: what edgec_bench measured on a device, joined with the plan: one row per call, phases, memory.

Every figure is measured there or follows from the plan; what the device does not tell is None. Measuring rules: blocks
of runs with and without profiling alternate, the first of each untimed (runtime/bench/edgec_bench.c); all samples stay
in the report. A call's time is the median of its samples; shares are of the sum of these medians, because a slow moment
of the machine hits one call of a run and not the others. So medians of calls add up to less than the median run on a
machine that is often disturbed: `unattributed` is what the rows leave of p50, `outside` the part of it that is no
call's in any sample, the median over the samples of wall time less all calls of the same sample.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compress.formats_bits import MAX_BITS
from edgec.compress.policy import module_of, parse_spec
from edgec.errors import EdgecError
from edgec.judge.bundle import bundle_path, ort_folder
from edgec.judge.layers import layer_quality
from edgec.native.bundle import read_bundle
from edgec.native.cost import Cost, bindings_of, call_cost
from edgec.native.plan import Call, Plan, Space, StoredWeight, kernel_text
from edgec.targets.output import file_sha256
from edgec.targets.transport import Transport

PROFILE_VERSION = 1
UNATTRIBUTED_LIMIT = 0.03  # of the wall time: more is a line of its own in every report
_RESAMPLES = 1000


# Layer -> (format, SQNR), as layers.layer_quality gives it.
Quality = Mapping[str, tuple[str, float | None]]


@dataclass(frozen=True)
class ProfileOptions:
    """threads: 0, one per core there. runs: at least so many timed ones, for at least min_ms; warmup: untimed ones
    before. prompt, tokens: of language models. isa: "" or an instruction set to force there."""

    threads: int = 0
    runs: int = 20
    warmup: int = 3
    min_ms: int = 300
    prompt: int = 128
    tokens: int = 32
    isa: str = ""

    def arguments(self) -> list[str]:
        """For edgec_bench."""
        pairs = (("threads", self.threads), ("runs", self.runs), ("warmup", self.warmup), ("min-ms", self.min_ms),
                 ("prompt", self.prompt), ("tokens", self.tokens))
        return [word for name, value in pairs for word in (f"--{name}", str(value))]


def profile_bundle(bundle: Path, device: Transport, options: ProfileOptions) -> dict[str, Any]:
    """Runs edgec_bench with `bundle` on `device` and says what was found (docs/cli.md describes the document).

    Raises EdgecError: E0003, E0401 an unusable bundle, E0002 one of another backend, E0404 a prompt and tokens beyond
    the context, E0601 an unreachable device, E0602 a run that failed there.
    """
    if ort_folder(bundle) is not None:
        raise EdgecError("E0002", stage="profile", where=str(bundle), found="a folder of the ort backend",
                         wanted="a bundle", hint="its own profiler is SessionOptions.enable_profiling; or compile with "
                                                 "--backend native")
    path = bundle_path(bundle)
    read = read_bundle(path)
    plan = read.plan
    if plan.model_kind == 1 and options.prompt + options.tokens > plan.max_context:
        raise EdgecError("E0404", stage="profile", where="-p, -n", wanted=f"together at most {plan.max_context}",
                         found=f"{options.prompt} and {options.tokens} tokens")
    quality = layer_quality(bundle)
    raw = device.measure(path, options.arguments(), options.isa)
    try:
        report = _report(raw, plan, quality)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise EdgecError("E0602", stage="profile", where=device.name, found=f"{type(e).__name__}: {e}",
                         wanted="the document of edgec_bench of this version") from e
    about = read.manifest.get("model")
    report["bundle"] = {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path),
                        "model": about.get("name") if isinstance(about, dict) else None}
    report["device"] = {"transport": device.name, **report["device"]}
    report["options"] = {"runs": options.runs, "warmup": options.warmup, "min_ms": options.min_ms}
    return report


def check_wanted(bundle: Path, names: Sequence[str], changes: bool) -> None:
    """What --fail-if names and --write-overrides (changes) want, before anything is measured. Raises EdgecError: E0002
    for a figure of a phase that the bundle's kind of model has not, E0502 for overrides without quantized layers."""
    if ort_folder(bundle) is not None:
        return  # which profile_bundle refuses
    if changes and not layer_quality(bundle):
        raise _nothing_quantized()
    named = [name for name in names if "." in name]
    if not named:
        return
    phases = ("prefill", "decode") if read_bundle(bundle_path(bundle)).plan.model_kind == 1 else ("run",)
    for name in named:
        if name.partition(".")[0] not in phases:
            raise EdgecError("E0002", stage="profile", where="--fail-if", found=repr(name),
                             wanted=f"a figure of {' or '.join(phases)}", hint="other phases are other models'")


def _nothing_quantized() -> EdgecError:
    return EdgecError("E0502", stage="profile", where="--write-overrides", found="no quantized layers",
                      wanted="the output folder of compile --quant, with its reports")


def _report(raw: Mapping[str, Any], plan: Plan, quality: Quality) -> dict[str, Any]:
    roofline = dict(raw["roofline"])
    planned = plan.memory_table((raw["context"],) if raw["context"] else ())
    session = raw["memory"]
    tests = [_test(test, plan, raw, quality) for test in raw["tests"]]
    measured = {"resident_peak": session["resident_peak"], "resident_own": session["resident_own"],
                "resident_mapped": session["resident_mapped"]}
    return {
        "profile_version": PROFILE_VERSION, "isa": raw["isa"], "warning": raw["warning"], "threads": raw["threads"],
        "kind": ("generic", "causal-lm")[raw["kind"]], "context": raw["context"], "runtime": raw["edgec_version"],
        "device": raw["device"], "roofline": roofline,
        "phases_ms": {name.removesuffix("_ns"): ns / 1e6 for name, ns in raw["phases"].items()},
        "memory": {
            "planned": {"weights": planned.weights, "session": session["session"],
                        **{k: session[k] for k in ("arena", "scratch", "state", "other")},
                        "peak": planned.weights + session["session"]},
            "measured": measured,
        },
        "tests": tests,
        "energy": _energy(raw, tests),
        "steps": _steps(tests, raw["threads"]),
    }


def _energy(raw: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Joules of the whole package while the tests ran, idle ones included; None where the system does not count."""
    used = raw["device"]["microjoules"]
    return None if used is None else {"joules": used / 1e6, "samples": sum(2 * len(t["samples_ms"]) for t in tests)}


def median_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median (percentile method; Efron and Tibshirani 1993, chapter 13)."""
    values = np.asarray(samples, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), (0.025, 0.975))
    return float(low), float(high)


def quantile(samples: Sequence[float], q: float) -> float:
    """Nearest rank: a measured value, not an interpolated one."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def _test(test: Mapping[str, Any], plan: Plan, raw: Mapping[str, Any], quality: Quality) -> dict[str, Any]:
    wall = [ns / 1e6 for ns in test["wall_ns"]]
    plain = [ns / 1e6 for ns in test["plain_ns"]]
    if not wall or not plain:
        raise ValueError(f"no samples of {test['name']}")
    if not (quantile(wall, 0.5) > 0 and min(plain) > 0):
        raise ValueError(f"{test['name']} takes no time on that clock")
    sums = np.sum([call["ns"] for call in test["calls"]], axis=0) / 1e6
    middle, p50 = float(np.median(wall)), quantile(wall, 0.5)
    low, high = median_interval(wall)
    steps = [(entry, bindings_of(plan, **at)) for entry, at in _positions(test, raw)]
    stored = plan.stored()
    flat = [(entry.name, call) for entry in plan.entries for call in entry.calls]
    rows = []
    for found in test["calls"]:
        entry, call = flat[found["index"]]
        if (entry, call.kernel) != (found["entry"], found["kernel"]):
            raise ValueError(f"call {found['index']} is {found['entry']} {found['kernel']}, of this bundle's plan "
                             f"{entry} {call.kernel}")
        rows.append(_row(found, call, [at for name, at in steps if name == entry], stored, raw, quality))
    whole = sum(row["median_ms"] for row in rows)
    rest = p50 - whole
    for row in rows:
        row["share"] = row["median_ms"] / whole if whole > 0 else None
    return {
        "name": test["name"], "work": test["work"], "position": test["position"], "n": len(wall),
        "p50_ms": p50, "p90_ms": quantile(wall, 0.9), "p99_ms": quantile(wall, 0.99),
        "min_ms": min(wall), "mad_ms": float(np.median(np.abs(np.asarray(wall) - middle))),
        "median_ci95_ms": [low, high], "per_second": 1e3 * test["work"] / middle,
        "sum_of_calls_ms": whole, "unattributed_ms": rest, "unattributed_share": rest / p50,
        "outside_ms": float(np.median(np.asarray(wall) - sums)),
        "overhead": _overhead(wall, plain, sum(row["count"] * _readings(row["threads"]) for row in rows)
                              * raw["roofline"]["clock_ns"] / 1e6),
        "calls": rows,
        "samples_ms": wall, "plain_samples_ms": plain,
    }


def _readings(threads: int) -> int:
    """Of the clock, one after the other, in a call: around it, and in each thread around each of its parts."""
    return 2 if threads == 1 else 2 + 2 * _PARTS


def _overhead(wall: Sequence[float], plain: Sequence[float], clocks_ms: float) -> dict[str, float]:
    """What profiling costs, relative to a run without it. clocks: the clock readings of each call, as measured;
    of_medians and of_minima: from runs with and without profiling in turn, where other programs and the clock of the
    CPU disturb both sides."""
    return {"plain_p50_ms": quantile(plain, 0.5), "clocks": clocks_ms / quantile(plain, 0.5),
            "of_medians": quantile(wall, 0.5) / quantile(plain, 0.5) - 1, "of_minima": min(wall) / min(plain) - 1}


def _positions(test: Mapping[str, Any], raw: Mapping[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """(entry, symbols) of every run of an entry in one sample; a token of `decode` stands for the middle one."""
    if test["name"] == "run":
        return [("main", {})]
    context = int(raw["context"])
    if test["name"] == "decode":
        return [("decode", {"context": context, "past": (int(test["position"]) + context - 1) // 2, "seq": 1})]
    found: list[tuple[str, dict[str, int]]] = []
    done, prompt, chunk = 0, int(test["work"]), int(raw["prefill_chunk"])
    while done < prompt:
        now = min(chunk, prompt - done)
        found.append(("decode" if now == 1 else "prefill", {"context": context, "past": done, "seq": now}))
        done += now
    return found


def _row(found: Mapping[str, Any], call: Call, bindings: Sequence[Mapping[str, int]], stored: Sequence[StoredWeight],
         raw: Mapping[str, Any], quality: Quality) -> dict[str, Any]:
    costs = [call_cost(call, at) for at in bindings]
    cost = Cost(sum(c.macs for c in costs), sum(c.weight_bytes for c in costs), sum(c.activation_bytes for c in costs))
    ms = [ns / 1e6 for ns in found["ns"]]
    middle = float(np.median(ms))
    weights = [o.index for o in call.inputs if o.space is Space.WEIGHT]
    names = [part for i in weights for part in stored[i].name.removesuffix(".codes").split("+")]
    layers = [quality[name] for name in names if name in quality]
    roofline, least = raw["roofline"], None
    if cost.bytes and roofline["weights_gb_s"] > 0 and roofline["multiply_add_gop_s"] > 0:
        reading = cost.bytes / roofline["weights_gb_s"] / 1e6
        multiplying = 2 * cost.macs / roofline["multiply_add_gop_s"] / 1e6
        # A bound by reading holds for every kernel; one by multiplying for those that do what the probe does.
        if reading >= multiplying or _multiplies_as_probed(call.kernel, found["isa"]):
            least = max(reading, multiplying)
    return {
        "index": found["index"], "entry": found["entry"], "layer": found["layer"], "kernel": kernel_text(call),
        "isa": found["isa"], "threads": found["threads"], "count": found["count"],
        "waiting": found["waited_ns"] / (found["threads"] * total) if (total := sum(found["ns"])) else None,
        "shape": [d.at(bindings[-1]) for d in call.operands[0].dims],
        "weights": sorted({stored[i].form for i in weights if stored[i].name.removesuffix(".codes").split("+")[0]
                           in quality} or {stored[i].form for i in weights[:1]}),
        "quantized": [name for name in names if name in quality],
        "median_ms": middle, "min_ms": min(ms), "p90_ms": quantile(ms, 0.9),
        "macs": cost.macs, "weight_bytes": cost.weight_bytes, "activation_bytes": cost.activation_bytes,
        "ops_per_byte": 2 * cost.macs / cost.bytes if cost.bytes else None,
        "gb_s": cost.bytes / middle / 1e6 if middle > 0 else None,
        "gop_s": 2 * cost.macs / middle / 1e6 if middle > 0 and cost.macs else None,
        "roofline_ms": least, "of_roofline": least / middle if least is not None and middle > 0 else None,
        "sqnr_db": min((sqnr for _, sqnr in layers if sqnr is not None), default=None),
        "specs": sorted({spec for spec, _ in layers} - {""}),
        "samples_ms": ms,
    }


# Kernels whose products the probe of float32 says nothing about: of integers or bfloat16, several to a lane, or fewer
# than the operation has by definition.
_OTHER_PRODUCTS = ("_bits", "_bits_split", "_q8", "_winograd")


def _multiplies_as_probed(kernel: str, isa: str) -> bool:
    return not kernel.endswith(_OTHER_PRODUCTS) and isa != "amx"


STATIC = "static8"  # its layers have one format: float is the only other choice
# What a next step is said about: calls that take this share, and how near the roofline leaves nothing to gain there.
_WORTH, _NEAR = 0.03, 0.7
# A share of its threads' time from which a call is said to wait; parts of a call per thread (runtime/executor.cpp).
_WAITS, _PARTS = 0.3, 4
# Of a layer's own output: relative errors of 5 % and 20 %. A poor one is also among the worst quarter, for with few
# bits all are poor, and one bit more for all is a choice of another size.
_HEADROOM_DB, _POOR_DB = 26.0, 14.0


def _steps(tests: Sequence[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """Adds to every call `next`, a concrete step or None, and `override`, what --write-overrides makes of it. Returns
    the five largest calls of each test."""
    found = []
    for test in tests:
        known = [row["sqnr_db"] for row in test["calls"] if row["sqnr_db"] is not None]
        poor = min(_POOR_DB, quantile(known, 0.25)) if known else _POOR_DB
        for row in test["calls"]:
            row["override"], row["next"] = _next(row, threads, poor)
        largest = sorted(test["calls"], key=lambda row: -row["median_ms"])[:5]
        found += [{"test": test["name"], "layer": row["layer"], "kernel": row["kernel"], "share": row["share"],
                   "median_ms": row["median_ms"], "next": row["next"]} for row in largest]
    return found


def _next(row: Mapping[str, Any], threads: int, poor: float) -> tuple[str | None, str | None]:
    """(what --write-overrides is to do: more, fewer, float or None; a sentence or None)."""
    sqnr, worth, static = row["sqnr_db"], (row["share"] or 0) >= _WORTH, row["specs"] == [STATIC]
    if sqnr is not None and sqnr < _POOR_DB and sqnr <= poor:
        if static:
            return "float", f"loses most: SQNR {sqnr:.0f} dB; keep it in float (--write-overrides)"
        return "more", f"loses most: SQNR {sqnr:.0f} dB; one bit more (--write-overrides)"
    if not worth:
        return None, None
    memory = row["weight_bytes"] > row["activation_bytes"] and (row["ops_per_byte"] or 0) < 8
    if sqnr is not None and sqnr >= _HEADROOM_DB and memory and not static:
        return "fewer", f"SQNR {sqnr:.0f} dB leaves room: one bit less (--write-overrides)"
    return None, _advice(row, threads, memory)


def _advice(row: Mapping[str, Any], threads: int, memory: bool) -> str:
    if memory and not row["specs"] and any(form.startswith(("f32", "f16", "bf16")) for form in row["weights"]):
        return f"reads {row['weights'][0].partition('/')[0]} weights: --quant int8 or hlq4 reads a quarter or less"
    if row["of_roofline"] is not None and row["of_roofline"] >= _NEAR:
        return "as fast as this machine reads or multiplies: only fewer bytes or multiplications help"
    if row["isa"] == "scalar" and row["macs"]:
        return "runs the scalar body: is --isa or EDGEC_ISA set, or is the instruction set not in this build?"
    if not row["macs"]:
        return "computes no products: can the model do without it, or can it be fused with a neighbour?"
    if (row["waiting"] or 0) >= _WAITS:
        return (f"its {row['threads']} threads wait {row['waiting']:.0%} of the time: try fewer threads, or cores of "
                "one speed")
    if row["threads"] < threads:
        return f"runs on {row['threads']} of {threads} threads: too little work to divide it further"
    if row["of_roofline"] is None:
        return "multiplies in its own way, whose limit on this machine was not measured: compare with another --quant"
    return f"at {row['of_roofline']:.0%} of this machine's roofline: the kernel has room for this shape"


def overrides(report: Mapping[str, Any]) -> list[str]:
    """`MODULE=FORMAT` for `--quant-override @FILE`: what the next steps of quantized layers say, one bit more where
    SQNR is poor (static8: float), one less where time goes and SQNR leaves room. A layer that several calls read
    follows the neediest.

    Raises EdgecError (E0502) for a bundle without quantized layers.
    """
    wanted: dict[str, tuple[str, str]] = {}
    known = False
    for row in (row for test in report["tests"] for row in test["calls"]):
        known |= bool(row["specs"])
        # Siblings in one call may have formats of their own, of which the table shows the names only.
        if len(row["specs"]) == 1 and row["override"] is not None:
            for name in row["quantized"]:
                if wanted.get(name, ("", "fewer"))[1] == "fewer":
                    wanted[name] = (row["specs"][0], row["override"])
    if not known:
        raise _nothing_quantized()
    lines = []
    for name, (text, step) in sorted(wanted.items()):
        if step == "float":
            lines.append(f"{glob.escape(module_of(name))}=f32")
            continue
        spec = parse_spec(text, "reports/quant.json")
        bits = spec.bits + (1 if step == "more" else -1)
        if 1 <= bits <= MAX_BITS:
            lines.append(f"{glob.escape(module_of(name))}={replace(spec, bits=bits)}")
    return lines
