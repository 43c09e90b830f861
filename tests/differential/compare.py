"""Compiles a case, runs it on every instruction set of this CPU, and compares.

Bounds, for each output with largest finite magnitude m in the reference:
- values that exact operators alone make of the inputs, integers and booleans: equal;
- float32: 1e-5 m; float16: 4e-3 m (it is computed in float32 and rounded at the end, in the reference at every step);
- where a graph amplifies errors, that is not enough: then every float that a rounding operator of the reference reads
  or makes is moved by up to 2^-20 (float16: 2^-9) of the largest magnitude in its tensor, at random or all one way, and
  an element may be off by 8 times the most that it moved in `DRAWS` draws. An integer or boolean that changes in one
  of them lies on a threshold and is not compared.
The same bounds hold between instruction sets. One thread and two give the same bits.
"""

from __future__ import annotations

import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgec import env
from edgec.errors import EXIT_INTERNAL, EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.session import Model
from edgec.pipeline import CompileOptions, prepare_model
from edgec.targets import EmitOptions
from edgec.targets.native import plan_model
from tests.differential.case import Case
from tests.differential.reference import Array, Reference

STRICT = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 4e-3}
DRAWS = (8, 48)  # the second when the first leave something
FACTOR = 8.0
ISAS = ("scalar", "avx2", "avx512", "avx512vbmi", "amx", "neon", "neondot")


class Disagreement(AssertionError):  # noqa: N818  # what a test reports
    """The runtime answers otherwise, or not at all. where: which output and instruction set."""


@dataclass(frozen=True)
class Declined:
    """A refusal at compile time."""

    code: str
    reason: str


@contextmanager
def compiled(case: Case, name: str = "case") -> Iterator[Path]:
    """The bundle. Raises EdgecError when it is declined."""
    with tempfile.TemporaryDirectory(prefix="differential-") as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(case.model, path)
        options = CompileOptions(importer={"check": False, "dynamic": case.dynamic})
        plan, _ = plan_model(prepare_model(path, options).model, EmitOptions())
        bundle = Path(folder) / "model.edgec"
        write_bundle(bundle, plan, tokenizer=None, golden=None, manifest={})
        yield bundle


def run(bundle: Path, isa: str, feeds: Mapping[str, Array], threads: int = 1) -> dict[str, Array]:
    with (env.ISA.override(isa), Model(bundle, selftest=False) as model, model.session(threads=threads) as session):
        assert model.info.isa == isa
        return session.run({port.name: feeds[port.name] for port in model.inputs})


def _promised() -> set[str]:
    """What the CPU itself says it has, so that a level that is lost on the way is not left out in silence."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return set()
    flags = set(re.findall(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split())
    wanted = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    wanted["avx512vbmi"] = wanted["avx512"] | {"avx512_vnni", "avx512vbmi"}
    return {isa for isa, needed in wanted.items() if needed <= flags}


@cache
def instruction_sets() -> tuple[str, ...]:
    """Those of this CPU and build, by what the runtime says to a name it does not have."""
    found = []
    graph = onnx.parser.parse_graph("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])
    case = Case(model, ({"x": np.ones(1, np.float32)},), {})
    with compiled(case) as bundle:
        for isa in ISAS:
            try:
                run(bundle, isa, case.feeds[0])
            except EdgecError as e:
                if "EDGEC_ISA" not in str(e):
                    raise
            else:
                found.append(isa)
    assert set(found) >= {"scalar", *_promised()}, found
    return tuple(found)


def answers(case: Case, threads: int = 1) -> list[dict[str, dict[str, Array]]]:
    """Per set of inputs: instruction set -> output -> value. Raises EdgecError, Disagreement."""
    with compiled(case) as bundle:
        try:
            return [{isa: run(bundle, isa, feeds, threads) for isa in instruction_sets()} for feeds in case.feeds]
        except EdgecError as e:
            raise Disagreement(f"what compiles must run: {e.code} {e.where} {e.found}") from e


def check(case: Case, threads: bool = False) -> Declined | None:
    """None when all agree. threads: compare two with one as well. Raises Disagreement."""
    try:
        found = answers(case)
    except EdgecError as e:
        if e.exit_code == EXIT_INTERNAL:
            raise Disagreement(f"internal error while compiling: {e}") from e
        return Declined(e.code, f"{e.found or e.wanted}")
    if threads:
        for one, two in zip(found, answers(case, threads=2), strict=True):
            for isa, outputs in one.items():
                for name, array in outputs.items():
                    if array.tobytes() != two[isa][name].tobytes():
                        raise Disagreement(f"output {name} on {isa}: two threads give other bits than one")
    reference = Reference(case.model)
    exact = reference.exact()
    for feeds, by_isa in zip(case.feeds, found, strict=True):
        wanted = reference.run(feeds)
        limits = _Limits(reference, feeds, wanted, exact)
        for isa, outputs in by_isa.items():
            for name, array in outputs.items():
                limits.judge(f"output {name} on {isa}", name, array, wanted[name])
                limits.judge(f"output {name} on {isa} beside scalar", name, array, by_isa["scalar"][name])
    return None


class _Limits:
    """How far each element may be off; the costly part is computed when something is off by more than the least."""

    def __init__(self, reference: Reference, feeds: Mapping[str, Array], wanted: Mapping[str, Array],
                 exact: frozenset[str]) -> None:
        self._reference, self._feeds, self._wanted, self._exact = reference, feeds, wanted, exact
        self._rng = np.random.default_rng(0)
        self._moved: dict[str, Array] = {n: np.zeros(a.shape) for n, a in wanted.items()}
        self._drawn = 0

    def judge(self, where: str, name: str, found: Array, wanted: Array) -> None:
        """Raises Disagreement."""
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise Disagreement(f"{where}: {found.dtype}{list(found.shape)} instead of "
                               f"{wanted.dtype}{list(wanted.shape)}")
        off = _distance(found, wanted)
        limit = 0.0 if name in self._exact else _strict(self._wanted[name])
        if (off <= limit).all():
            return
        for draws in () if name in self._exact else DRAWS:
            self._draw(draws)
            allowed = limit + FACTOR * self._moved[name]
            if (off <= allowed).all():
                return
        allowed = np.broadcast_to(limit + FACTOR * self._moved[name], off.shape)
        at = np.unravel_index(int(np.argmax(np.where(off <= allowed, -1.0, off))), off.shape)
        raise Disagreement(f"{where}: {int((off > allowed).sum())} of {off.size} elements; at {list(map(int, at))} "
                           f"{found[at]!s} instead of {wanted[at]!s}, allowed {float(allowed[at]):.3g}")

    def _draw(self, count: int) -> None:
        while self._drawn < count:
            self._drawn += 1
            for name, array in self._reference.run(self._feeds, self._rng).items():
                moved = _distance(array, self._wanted[name]) if array.shape == self._wanted[name].shape else np.inf
                if array.dtype not in STRICT:
                    moved = np.where(np.asarray(moved) > 0, np.inf, 0.0)
                self._moved[name] = np.maximum(self._moved[name], moved)


def _strict(wanted: Array) -> float:
    part = STRICT.get(wanted.dtype)
    if part is None:
        return 0.0
    finite = wanted[np.isfinite(wanted)]
    return part * float(np.abs(finite).max()) if finite.size else 0.0


def _distance(a: Array, b: Array) -> Array:
    """Element by element in float64; 0 where both are the same, infinities and NaN included, else infinite there."""
    if a.dtype.kind not in "f":
        return np.where(a == b, 0.0, np.maximum(np.abs(a.astype(np.float64) - b.astype(np.float64)), 1.0))
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(all="ignore"):
        off: Any = np.abs(x - y)
    off = np.where(np.isnan(off), np.inf, off)
    return np.where(same, 0.0, off)
