"""torch.export.ExportedProgram as a source: its module, example and varying sizes, as the torch door takes them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from edgec.errors import EdgecError, did_you_mean

STAGE = "import"
Axes = dict[str, dict[int, tuple[str, int, int]]]


def is_program(source: object) -> bool:
    """Imports nothing: whoever holds a program has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.export.ExportedProgram)


def opened(program: Any, example_inputs: Any, dynamic: Mapping[str, Mapping[int, Any]]) -> tuple[Any, Any, Axes]:
    """(module, example inputs by name, dynamic) of a program.

    The program decides which axes vary; `dynamic` may name and narrow them and must bound those without an upper end.
    One size that several axes share has one name, that of the first. Raises EdgecError E0002 when `dynamic` asks for
    something else, E0102 for an input size that is computed from another one.
    """
    module = _named_module(program)
    names = list(inspect.signature(module.forward).parameters)
    if example_inputs is None:
        if program.example_inputs is None:
            raise EdgecError("E0002", stage=STAGE, where="example_inputs", found="a program without examples",
                             wanted="example_inputs", hint="torch.export.save drops them when it is told to")
        args, kwargs = program.example_inputs
        example_inputs = dict(zip(names, args, strict=False)) | dict(kwargs)
    varying = _varying(program)
    for name, axes in dynamic.items():
        for axis in axes:
            if name not in varying or axis not in varying[name]:
                listed = [f"{n}:{a}" for n, found in varying.items() for a in found]
                raise EdgecError("E0002", stage=STAGE, where=f"dynamic {name}:{axis}", wanted=did_you_mean(
                    f"{name}:{axis}", listed) if listed else "an axis that torch.export was told to vary",
                    found="an axis of fixed size in the exported program")
    ranges: dict[str, tuple[str, int, int]] = {}
    for asked_first in (True, False):
        for name, axes in varying.items():
            for axis, symbol in axes.items():
                asked = dynamic.get(name, {}).get(axis)
                if symbol not in ranges and (asked is not None) == asked_first:
                    ranges[symbol] = _range(program, symbol, name, axis, asked)
    return module, example_inputs, {n: {a: ranges[s] for a, s in axes.items()} for n, axes in varying.items()}


def _named_module(program: Any) -> Any:
    """The program's module, which insists on positional and keyword arguments as in its example, taking any by name."""
    inner = program.module()
    signature = inspect.signature(inner.forward)
    count = len(program.call_spec.in_spec.child(0).children())

    def forward(*args: Any, **kwargs: Any) -> Any:
        values = signature.bind(*args, **kwargs).arguments
        names = list(values)
        return inner(*(values[n] for n in names[:count]), **{n: values[n] for n in names[count:]})

    # Around it and not in its place: the module's own hooks look at the arguments before forward does.
    outer = sys.modules["torch"].nn.Module()
    outer.program = inner
    forward.__signature__ = signature  # type: ignore[attr-defined]
    outer.forward = forward
    return outer


def _varying(program: Any) -> dict[str, dict[int, str]]:
    """Input -> axis -> symbol."""
    found: dict[str, dict[int, str]] = {}
    wanted = {n for n in program.graph_signature.user_inputs if isinstance(n, str)}
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted:
            continue
        for axis, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
            if isinstance(size, int):
                continue
            if not str(size).isidentifier():
                raise EdgecError("E0102", stage=STAGE, where=f"input {node.name}, axis {axis}", found=f"size {size}",
                                 wanted="a size of its own", hint="export with the sizes independent of each other")
            found.setdefault(node.name, {})[axis] = str(size)
    return found


def _range(program: Any, symbol: str, name: str, axis: int, asked: Any) -> tuple[str, int, int]:
    limits = next(r for s, r in program.range_constraints.items() if str(s) == symbol)
    low = max(1, int(limits.lower))
    high = int(limits.upper) if limits.upper.is_Integer else None
    if asked is not None:
        label, first, last = asked if len(asked) == 3 else (f"{name}_{axis}", *asked)
        if first < low or (high is not None and last > high):
            raise EdgecError("E0002", stage=STAGE, where=f"dynamic {name}:{axis}", found=f"{first}..{last}",
                             wanted=f"a range inside {low}..{high or 'any'}, what the program was exported for")
        return str(label), int(first), int(last)
    if high is None:
        raise EdgecError("E0002", stage=STAGE, where=f"input {name}, axis {axis}", found="a size without an upper end",
                         wanted="a declared range", hint=f"--dynamic {name}:{axis}={low}..MAX")
    return f"{name}_{axis}", low, high
