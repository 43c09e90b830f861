"""Runs the ONNX backend node tests and writes what became of them: the ledger, and docs/conformance.md from it.

    python tools/conformance.py            both
    python tools/conformance.py --table    the table alone, from the ledger as it is
    python tools/conformance.py FILE       a ledger of what is found, nothing else
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "tests" / "conformance" / "ledger.tsv"
TABLE = ROOT / "docs" / "conformance.md"

_HEAD = """# Conformance

What became of the {total} ONNX backend node tests (onnx {version}), each imported, compiled and run by the native
runtime alone: {passed} pass, {declined} are declined at compile time with an error that says why, before anything runs,
and {differs} give other values than the case for the reason named below. None gives a wrong answer.

The case is the reference, with its own tolerances; nothing else computes at run time, and a case none of whose outputs
depends on what the session is given is counted as declined. Inputs that are sizes, axes, bounds or weights in models
are constants where they have to be (`constant:` in the ledger, tests/conformance/ledger.tsv). *Expanded* cases spell an
operator by its body of the standard and are counted with it. Types without a place in the runtime (DOUBLE, integers of
16 bits and unsigned ones above 8, strings, float8 and 4-bit numbers as activations) are declined. Operators without a
case are in the table too: the last column says whether they compile.

Written by tools/conformance.py from the ledger, which tests/conformance checks case by case.

| operator | pass | declined | differs | why |
|---|---:|---:|---:|---|
"""


def _reason(detail: str) -> str:
    """Why, without what differs between cases of one kind; a table cell."""
    text = re.sub(r" '[^']*'", "", detail.split(";")[0])
    text = re.sub(r"\s+", " ", re.sub(r"\[[^\]]*\]", "", text)).replace("|", "/")
    return text[:110].strip()


def _without_a_case(known: Iterable[str]) -> dict[str, str]:
    """Standard operators of the newest operator set that no case is about -> whether they compile."""
    import onnx

    sys.path.insert(0, str(ROOT))
    from edgec.native.lower import capabilities
    from edgec.passes.lower.decompose import TABLE as RULES

    names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated} - set(known)
    return {name: "no case; compiled" if ("", name) in capabilities() or name in RULES else
            f"no case; E0301 {name} is not implemented by the target" for name in names}


def table(ledger: Path) -> str:
    """docs/conformance.md of a ledger."""
    from importlib.metadata import version

    rows: dict[str, dict[str, Counter[str]]] = {}
    total: Counter[str] = Counter()
    for line in ledger.read_text(encoding="utf-8").splitlines():
        operator, _, status, detail = (*line.split("\t"), "")[:4]
        total[status] += 1
        reasons = rows.setdefault(operator, {}).setdefault(status, Counter())
        reasons["" if status == "pass" else _reason(detail)] += 1
    text = _HEAD.format(total=total.total(), version=version("onnx"), passed=total["pass"], declined=total["declined"],
                        differs=total["differs"])
    other = _without_a_case(rows)
    for operator in sorted({*rows, *other}, key=lambda name: (name.casefold(), name)):
        if operator in other:
            text += f"| {operator} |  |  |  | {other[operator]} |\n"
            continue
        found = rows[operator]
        counts = " | ".join(str(found[s].total()) if s in found else "" for s in ("pass", "declined", "differs"))
        why = [f"{reason} ({n})" for s in ("declined", "differs") for reason, n in sorted(
            found.get(s, Counter()).items(), key=lambda item: (-item[1], item[0]))]
        text += f"| {operator} | {counts} | {'; '.join(why)} |\n"
    return text


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.conformance.node_cases import cases, run_all

    wrong: list[str] = []
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    if asked != "--table":
        lines = [o.line() for o in run_all(list(cases()))]
        wrong = [line for line in lines if line.split("\t")[2] == "wrong"]
        Path(asked or LEDGER).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    if asked in ("", "--table"):
        TABLE.write_text(table(LEDGER), encoding="utf-8")
    sys.stderr.write("".join(line + "\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
