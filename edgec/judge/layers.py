"""Which layers of a quantized bundle lose most, from reports/quant.json beside it, and overrides that raise them."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.compress.formats_bits import MAX_BITS
from edgec.compress.policy import module_of, parse_spec
from edgec.errors import EdgecError
from edgec.judge.bundle import bundle_path

_SHARE = 4  # one layer in so many is raised


def layer_errors(bundle: Path) -> list[dict[str, Any]]:
    """The layers of reports/quant.json of an output folder, the worst own error first.

    Raises EdgecError: E0003 for a bundle without the report, E0101 for one that is not as `compile --quant` wrote it.
    """
    report = bundle_path(bundle).parent / "reports" / "quant.json"
    if not report.is_file():
        raise EdgecError("E0003", stage="compare", where=str(report), found="no such file",
                         wanted="the output folder of compile --quant or --quant-from")
    try:
        layers = json.loads(report.read_text(encoding="utf-8"))["layers"]
        return sorted(layers, key=lambda layer: (-float(layer["error"]), str(layer["name"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise EdgecError("E0101", stage="compare", where=str(report), found=f"{type(e).__name__}: {e}",
                         wanted="a report of compile --quant", hint="compile again") from e


def raising_overrides(layers: Sequence[dict[str, Any]]) -> list[str]:
    """`MODULE=FORMAT` with one bit more for the worst quarter of `layers` (worst first) that can take one."""
    chosen: list[str] = []
    for layer in layers:
        spec = parse_spec(str(layer["spec"]), "reports/quant.json")
        if spec.bits < MAX_BITS and len(chosen) < max(1, len(layers) // _SHARE):
            chosen.append(f"{glob.escape(module_of(str(layer['name'])))}={replace(spec, bits=spec.bits + 1)}")
    return chosen


def write_overrides(path: Path, overrides: Sequence[str]) -> None:
    """A file for `--quant-override @FILE`. Raises EdgecError (E0004)."""
    try:
        path.write_text("".join(f"{line}\n" for line in overrides), encoding="utf-8")
    except OSError as e:
        raise EdgecError("E0004", stage="compare", where=str(path), found=e.strerror or str(e),
                         wanted="a file that can be written") from e
