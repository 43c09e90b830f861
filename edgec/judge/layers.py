"""Which layers of a quantized bundle lose most, from reports/quant.json beside it, and overrides that raise them."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.compress.formats_bits import MAX_BITS
from edgec.compress.policy import module_of, parse_spec
from edgec.errors import EdgecError
from edgec.judge.bundle import bundle_path, ort_folder
from edgec.targets.output import write_text

_SHARE = 4  # one layer in so many is raised


def layer_errors(bundle: Path) -> list[dict[str, Any]]:
    """The layers of reports/quant.json of an output folder, the worst own error first.

    Raises EdgecError: E0003 for a bundle without the report, E0101 for one that is not as `compile --quant` wrote it.
    """
    report = _report(bundle)
    if not report.is_file():
        raise EdgecError("E0003", stage="compare", where=str(report), found="no such file",
                         wanted="the output folder of compile --quant or --quant-from")
    try:
        layers = json.loads(report.read_text(encoding="utf-8"))["layers"]
        return sorted(layers, key=lambda layer: (-float(layer["error"]), str(layer["name"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise EdgecError("E0101", stage="compare", where=str(report), found=f"{type(e).__name__}: {e}",
                         wanted="a report of compile --quant", hint="compile again") from e


def layer_quality(bundle: Path) -> dict[str, tuple[str, float | None]]:
    """Name -> (format, SQNR of the layer's own output against the original's in dB) of every layer of
    reports/quant.json; SQNR None where nothing was lost. Empty without the report.

    Raises EdgecError (E0101) for a report that is not as `compile --quant` wrote it.
    """
    report = _report(bundle)
    if not report.is_file():
        return {}
    try:
        found: dict[str, tuple[str, float | None]] = {}
        for layer in json.loads(report.read_text(encoding="utf-8"))["layers"]:
            # Errors are ratios of energies.
            error = None if "sqnr_db" in layer else float(layer["error"])
            sqnr = layer["sqnr_db"] if error is None else -10 * math.log10(error) if error > 0 else None
            found[str(layer["name"])] = (str(layer["spec"]), None if sqnr is None else float(sqnr))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise EdgecError("E0101", stage="profile", where=str(report), found=f"{type(e).__name__}: {e}",
                         wanted="a report of compile --quant", hint="compile again") from e


def _report(bundle: Path) -> Path:
    return (ort_folder(bundle) or bundle_path(bundle).parent) / "reports" / "quant.json"


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
    write_text(path, "".join(f"{line}\n" for line in overrides))
