"""Values of command line options: sizes, ranges, thread lists, tolerances, arrays. Errors are EDGEC-E0002."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.errors import EdgecError, did_you_mean

if TYPE_CHECKING:
    from edgec.judge.metrics import Array

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def bad_value(option: str, found: object, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage="command line", where=option, found=repr(found), wanted=wanted, hint=hint)


def parse_bytes(option: str, text: str) -> int:
    """`1.5G`, `900M`, `4096`: bytes, in powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise bad_value(option, text, "a size such as 900M or 1.5G")
    return int(float(found.group(1)) * _UNITS[found.group(2).upper()])


def format_bytes(count: float) -> str:
    """Three significant digits with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def parse_dynamic(option: str, texts: Iterable[str]) -> dict[str, dict[int, tuple[int, int]]]:
    """`x:0=1..8` -> {"x": {0: (1, 8)}}: axis 0 of input x takes 1 to 8. Several, also comma-separated."""
    ranges: dict[str, dict[int, tuple[int, int]]] = {}
    for text in (part for whole in texts for part in whole.split(",")):
        found = re.fullmatch(r"([\w.\-]+):(\d+)=(\d+)\.\.(\d+)", text.strip())
        if not found:
            raise bad_value(option, text, "INPUT:AXIS=MIN..MAX, as x:0=1..8")
        low, high = int(found.group(3)), int(found.group(4))
        if not 1 <= low <= high:
            raise bad_value(option, text, "1 <= MIN <= MAX")
        axes = ranges.setdefault(found.group(1), {})
        if int(found.group(2)) in axes:
            raise bad_value(option, text, "each axis once")
        axes[int(found.group(2))] = (low, high)
    return ranges


def parse_counts(option: str, text: str, low: int = 1, high: int = 1 << 20) -> list[int]:
    """`1,2,4` -> [1, 2, 4], each in low..high."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as e:
        raise bad_value(option, text, "whole numbers separated by commas") from e
    if any(not low <= value <= high for value in values):
        raise bad_value(option, text, f"numbers from {low} to {high}")
    return values


def parse_triple(option: str, text: str) -> tuple[float, float, float]:
    """`0.485,0.456,0.406`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as e:
        raise bad_value(option, text, "three numbers separated by commas") from e
    if len(values) != 3:
        raise bad_value(option, text, "three numbers separated by commas")
    return values[0], values[1], values[2]


# Option of `compare --tol`: name -> whether larger is better.
TOLERANCES = {"max_abs": False, "max_rel": False, "sqnr": True, "cosine": True, "top1": True}


def parse_tolerances(option: str, texts: Iterable[str]) -> dict[str, float]:
    """`sqnr:30`, `max_abs:1e-3` -> {"sqnr": 30.0, ...}."""
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        if name not in TOLERANCES:
            raise bad_value(option, text, "METRIC:LIMIT", did_you_mean(name, TOLERANCES))
        try:
            limits[name] = float(value)
        except ValueError as e:
            raise bad_value(option, text, "METRIC:LIMIT with a number as limit") from e
    return limits


def choice(option: str, value: str, choices: dict[str, str]) -> str:
    """The entry of `choices` called `value`."""
    if value not in choices:
        raise bad_value(option, value, "one of the choices", did_you_mean(value, choices))
    return choices[value]


def read_arrays(files: Iterable[str], archive: Path | None) -> dict[str, Array]:
    """Named input tensors of `--input NAME=FILE.npy` and `--inputs FILE.npz`; pickled objects are refused."""
    from edgec.judge.arrays import read_npy, read_npz

    arrays = {} if archive is None else read_npz(archive, "run")
    for text in files:
        name, _, path = text.partition("=")
        if not name or not path:
            raise bad_value("--input", text, "NAME=FILE.npy")
        arrays[name] = read_npy(Path(path), "run")
    return arrays
