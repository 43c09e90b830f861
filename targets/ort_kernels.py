"""What stock ONNX Runtime has kernels for on the CPU, asked of the installed package itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir as ir

from edgec.errors import missing_extra
from edgec.ir.model import op_of
from edgec.ir.opset import misfit, schema, type_name
from edgec.ir.passes import Capabilities

TESTED = "1.32"  # the release that tests and docs/backends.md speak about
_PROVIDER = "CPUExecutionProvider"
# What it handles without a kernel in that list.
_BUILT_IN = frozenset({("", "If"), ("", "Loop"), ("", "Scan"), ("", "Constant")})


@dataclass(frozen=True)
class Kernel:
    """A kernel of the operator's versions first..last; types: type parameter (or input) -> those it takes."""

    first: int
    last: int
    types: dict[str, frozenset[str]]

    def fits(self, node: ir.Node, row: Any) -> bool:
        """Whether it takes the types of `node`, whose schema is `row`; unknown types are taken to fit."""
        for values, formals in ((node.inputs, row.inputs), (node.outputs, row.outputs)):
            for i, value in enumerate(values):
                # Beyond a schema's inputs are those that become attributes when the node is spelled in that opset.
                last = formals[-1] if formals and formals[-1].option.name == "Variadic" else None
                formal = formals[i] if i < len(formals) else last
                known = None if formal is None else self.types.get(formal.type_str, self.types.get(formal.name))
                # Of float16 it casts where it has no kernel.
                wanted = "" if value is None else type_name(value)
                halves = wanted == "tensor(float16)" and known is not None and "tensor(float)" in known
                if known is not None and wanted and wanted not in known and not halves:
                    return False
        return True


def require_onnxruntime() -> str:
    """The version of the installed onnxruntime. Raises EdgecError (E0005) without one."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise missing_extra("ort", "onnxruntime", "backend ort")
    return importlib.metadata.version("onnxruntime")


def version_note(version: str) -> str:
    """A sentence for a version that nobody tested, "" for the one that was."""
    if version.startswith(f"{TESTED}."):
        return ""
    return f"onnxruntime {version} is installed; edgec was tested with {TESTED}, and other versions may lack operators"


@cache
def _kernels() -> dict[tuple[str, str], list[Kernel]]:
    require_onnxruntime()
    import onnxruntime.capi.onnxruntime_pybind11_state as native

    found: dict[tuple[str, str], list[Kernel]] = {}
    for row in native.get_all_opkernel_def():
        if row.provider == _PROVIDER:
            types = {name: frozenset(kinds) for name, kinds in row.type_constraints.items()}
            first, last = row.version_range
            found.setdefault((row.domain, row.op_name), []).append(Kernel(first, last, types))
    return found


def _of(op: tuple[str, str], version: int) -> list[Kernel]:
    """The kernels that run the operator as opset `version` has it."""
    row = schema(op[1], version)
    since = 1 if op[0] else row.since_version if row is not None else 0
    return [kernel for kernel in _kernels().get(op, ()) if kernel.first <= since <= kernel.last]


@cache
def capabilities(version: int) -> Capabilities:
    """Operators that a model of opset `version` may hold: with a kernel for some types."""
    return frozenset(op for op in _kernels() if _of(op, version)) | _BUILT_IN


def refuses(node: ir.Node, version: int) -> str | None:
    """Why onnxruntime does not run a node of opset 24 once it is spelled in opset `version`; None when it does."""
    reason = misfit(node, version)
    if reason is not None or op_of(node) in _BUILT_IN:
        return reason
    kernels = _of(op_of(node), version)
    if not kernels:
        return "onnxruntime has no kernel for it"
    row = None if node.domain else schema(node.op_type, version)
    if row is None or any(kernel.fits(node, row) for kernel in kernels):
        return None
    kinds = ", ".join(sorted({type_name(v) for v in (*node.inputs, *node.outputs) if v is not None and type_name(v)}))
    return f"onnxruntime has no kernel for it with {kinds}"


def unsupported(nodes: Sequence[ir.Node], version: int) -> list[tuple[ir.Node, str]]:
    """Every node that onnxruntime does not run, and why."""
    lacks = ((node, "onnxruntime has no such operator" if node.domain and op_of(node) not in capabilities(version)
              else refuses(node, version)) for node in nodes)
    return [(node, reason) for node, reason in lacks if reason is not None]
