"""Runs saved cases again on every instruction set and says where they differ from the reference.

    python -m tests.differential.replay build/repros/*.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

from edgec.errors import EdgecError
from tests.differential.case import load
from tests.differential.compare import Disagreement, answers, check
from tests.differential.reference import Reference


def replay(path: Path) -> bool:
    """Prints the graph, the answers and the differences; whether all agree."""
    case = load(path)
    say = sys.stdout.write
    say(f"{path}\n{onnx.printer.to_text(case.model.graph)}\ndynamic {case.dynamic}\n")
    reference = Reference(case.model)
    try:
        found = answers(case)
    except (EdgecError, Disagreement) as e:
        say(f"{type(e).__name__}: {e}\n")
        return False
    for feeds, by_isa in zip(case.feeds, found, strict=True):
        wanted = reference.run(feeds)
        for name, array in wanted.items():
            say(f"{name} {array.dtype}{list(array.shape)} reference  {_some(array)}\n")
            for isa, outputs in by_isa.items():
                with np.errstate(all="ignore"):
                    off = np.abs(outputs[name].astype(np.float64) - array.astype(np.float64))
                most = f"{np.nanmax(off):.3g}" if off.size and not np.isnan(off).all() else "-"
                say(f"    {isa:10} most {most}  {_some(outputs[name])}\n")
    try:
        check(case, threads=True)
    except Disagreement as e:
        say(f"{e}\n")
        return False
    say("all agree\n")
    return True


def _some(array: np.ndarray) -> str:  # type: ignore[type-arg]
    return np.array2string(array.reshape(-1)[:12], precision=7, max_line_width=200)


if __name__ == "__main__":
    sys.exit(0 if sum(not replay(Path(name)) for name in sys.argv[1:]) == 0 else 1)
