"""`edgec check`: everything that stands between a model and a target, in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from edgec.backends import DEFAULT
from edgec.backends import backend as find_backend
from edgec.errors import EdgecError
from edgec.importers import classify
from edgec.ir.info import info_of
from edgec.ir.model import LINE, describe, op_of, subgraphs, walk
from edgec.native.lower_values import safe_name
from edgec.pipeline import CompileOptions, PassReport, emit_options, prepare_model
from edgec.targets import native
from edgec.targets.devices import device

# Constants up to this size go into a saved node; larger ones become its inputs.
_SAVED_BYTES = 1 << 20

_RANDOM = "draw random numbers outside the model and pass them in as an input"
_BRANCH = ("make the branch independent of input values: torch.where instead of if, or export one branch; an If whose "
           "condition is constant disappears with constant folding at export")
_LOOP = "unroll the loop at export (fixed number of steps), or run the loop in the app around a compiled step"
_SIZES = "its result has a size that depends on values; use a mask of fixed size (torch.where) instead"
_OUTSIDE = "leave this post-processing out: export the model up to its scores and do it in the app"
_TEXT = "strings have no place in a compiled model; convert them to ids in the app"
_SIGNAL = "compute spectra in the app and feed them as an input, or spell the transform as a convolution"
# Operator -> what a user can do about it. Anything else gets a sentence by its kind (`_suggestion`).
SUGGESTIONS: Mapping[str, str] = MappingProxyType({
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                     "Multinomial"), _RANDOM),
    "If": _BRANCH, "Loop": _LOOP, "Scan": _LOOP, "NonZero": _SIZES, "Unique": _SIZES, "Compress": _SIZES,
    "NonMaxSuppression": _OUTSIDE,
    **dict.fromkeys(("StringNormalizer", "TfIdfVectorizer", "StringConcat", "StringSplit", "RegexFullMatch"), _TEXT),
    **dict.fromkeys(("DFT", "STFT", "MelWeightMatrix"), _SIGNAL),
    "Det": "write the determinant out for its fixed size, or compute it outside the model",
    "BatchNormalization": "export the model in eval mode: model.eval()",
    "Dropout": "export the model in eval mode: model.eval()",
})


@dataclass(frozen=True)
class Problem:
    """An operator that cannot be compiled, for one reason. layers, lines, shapes: of its nodes in graph order.

    layers: module paths or node names. lines: FILE:LINE of the user's code where it is known, else "". shapes: types
    and shapes of inputs and outputs. saved: the files of `save_node`.
    """

    op: str
    reason: str
    count: int
    layers: tuple[str, ...]
    lines: tuple[str, ...]
    shapes: tuple[str, ...]
    suggestion: str
    saved: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """problems: empty when the model compiles. operators: name -> count after all passes. notes: of its ModelInfo."""

    problems: tuple[Problem, ...]
    operators: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"supported": not self.problems, "problems": [asdict(p) for p in self.problems],
                "operators": self.operators, "notes": list(self.notes)}


def examine(source: str | object, target: str, importer: Mapping[str, Any], ctx: int | None = None,
            save_node: Path | None = None, backend: str = DEFAULT, opset: int | None = None, library: bool = False
            ) -> CheckReport:
    """Imports `source`, runs all passes, and looks at every node; plans, but writes nothing except to `save_node`.

    backend, opset, library: as of compile.

    ctx: as of compile. save_node: a folder for one runnable .onnx file per different node that cannot be compiled.
    Raises EdgecError when the source cannot be imported, and for what is not about single nodes (a size without a
    range, a `ctx` beyond the model's).
    """
    from edgec.env import SPEC

    device(target)
    # An .onnx file is compared with itself in onnxruntime, which may lack the very operators to be listed: that
    # comparison comes last. The other doors choose their route by it.
    file = classify(source)[0] == "onnx"
    options = CompileOptions(
        target=target, backend=backend, importer={**importer, **({"check": False} if file else {})},
        emitter={"max_context": ctx, "opset": opset, "library": library})
    row, chosen = find_backend(backend), emit_options(options)
    # The specification of the last stage would stop at the operators that are to be listed here.
    with SPEC.override(0):
        report = prepare_model(source, options)
    found = _problems(report, row.emitter.problems(report.model, chosen))
    if not found and backend == DEFAULT:
        native.plan_model(report.model, chosen)
    elif not found:
        row.emitter.check(report.model, chosen)
    if file and not found:
        from edgec import importers

        importers.load(source, **importer)
    groups: dict[tuple[str, str], list[ir.Node]] = {}
    for node, reason in found:
        groups.setdefault((_operator(node), reason), []).append(node)
    saver = None if save_node is None else _Saver(save_node)
    problems = tuple(
        Problem(op, reason, len(nodes), tuple(map(_layer, nodes)), tuple(map(line_of, nodes)),
                tuple(map(_types, nodes)), _suggestion(nodes[0], reason),
                () if saver is None else saver.save(nodes))
        for (op, reason), nodes in sorted(groups.items(), key=lambda item: item[0])
    )
    return CheckReport(problems, dict(Counter(map(_operator, walk(report.model)))), info_of(report.model).notes)


def _problems(report: PassReport, found: Iterable[tuple[ir.Node, str]]) -> list[tuple[ir.Node, str]]:
    """Nodes that the backend does not take, and why; with what the passes have to say about them."""
    declined: dict[str, list[str]] = {}
    for record in report.records:
        for event in record.rules.declined:
            if event.reason not in declined.setdefault(event.where, []):
                declined[event.where].append(event.reason)
    # What the passes tried and why they did not succeed says more than that there is no kernel.
    result = []
    for node, reason in found:
        if op_of(node)[0] or "no kernel" in reason:
            reason = "; ".join([reason, *declined.get(describe(node), ())[:3]])
        result.append((node, reason))
    return result


def _suggestion(node: ir.Node, reason: str) -> str:
    domain, op_type = op_of(node)
    if op_type in SUGGESTIONS and not domain:
        return SUGGESTIONS[op_type]
    if domain == "com.microsoft" or domain.startswith("com.microsoft."):
        return ("save the model before onnxruntime's optimization, or with GraphOptimizationLevel.ORT_ENABLE_BASIC"
                if "nchwc" in domain or "Nhwc" in op_type else
                "export the model without this fusion (vendor operators off, or optimization level basic)")
    if domain:
        return f"give {domain}::{op_type} a model-local function body in standard operators, or replace it in the model"
    if op_type.startswith(("Sequence", "Optional", "SplitToSequence")):
        return "use tensors with a batch axis instead of lists of tensors"
    if "float16" in reason.lower() or "bfloat16" in reason.lower() or "double" in reason.lower():
        return "convert the model to float32; edgec chooses the storage type of weights by itself (--weights)"
    if "no kernel" in reason:
        return f"replace {op_type} in the model's code by operators that are supported, or compute it in the app"
    return "change this setting in the model's code: the operator itself is supported"


def line_of(node: ir.Node) -> str:
    """FILE:LINE of the user's code that made `node`, "" when no importer left it."""
    return str(node.meta.get(LINE, ""))


def _layer(node: ir.Node) -> str:
    """The module path the importer kept, else the node's name."""
    return node.metadata_props.get("namespace") or node.name or "?"


def _operator(node: ir.Node) -> str:
    domain, op_type = op_of(node)
    return f"{domain}::{op_type}" if domain else op_type


def _types(node: ir.Node) -> str:
    def one(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        kind = value.dtype.name.lower() if value.dtype is not None else "?"
        return f"{kind}[{'x'.join(map(str, value.shape))}]" if value.shape is not None else f"{kind}[?]"

    return ", ".join(map(one, node.inputs)) + " -> " + ", ".join(map(one, node.outputs))


# -- nodes as files --------------------------------------------------------------------------------------------------


class _Saver:
    """Writes nodes as models of one node; nodes that differ in nothing but their place share a file."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise EdgecError("E0004", stage="check", where=str(folder), found=str(e), wanted="a writable folder") from e
        self._folder = folder
        self._known: dict[str, str] = {}

    def save(self, nodes: Iterable[ir.Node]) -> tuple[str, ...]:
        files: list[str] = []
        for node in nodes:
            key = f"{_operator(node)} {_types(node)} {sorted((k, str(a.value)) for k, a in node.attributes.items())}"
            if key not in self._known:
                self._known[key] = self._write(node, len(self._known))
            if self._known[key] not in files:
                files.append(self._known[key])
        return tuple(files)

    def _write(self, node: ir.Node, number: int) -> str:
        from edgec.ir.execute import save

        path = self._folder / f"{number:03d}_{safe_name(node.op_type)}_{safe_name(_layer(node))[:60]}.onnx"
        save(alone(node), path)
        return str(path)


def alone(node: ir.Node) -> ir.Model:
    """A model of this one node: small constants inside, everything else it reads as inputs."""
    read = dict.fromkeys([v for v in node.inputs if v is not None] + list(_captured(node)))
    copies: dict[ir.Value, ir.Value] = {}
    inputs, initializers = [], []
    for i, value in enumerate(read):
        name = value.name or f"input_{i}"
        tensor = value.const_value if value.is_initializer() else None
        copy = ir.Value(name=name, type=value.type, shape=value.shape)
        if tensor is not None and tensor.nbytes <= _SAVED_BYTES:
            copy.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
            initializers.append(copy)
        else:
            inputs.append(copy)
        copies[value] = copy
    model = _around(node, copies, inputs, initializers)
    model.graph.opset_imports.update({op_of(node)[0]: 1} if op_of(node)[0] else {})
    return model


def _around(node: ir.Node, copies: dict[ir.Value, ir.Value], inputs: list[ir.Value], initializers: list[ir.Value]
            ) -> ir.Model:
    cloned = ir.Node(
        node.domain, node.op_type, [None if v is None else copies[v] for v in node.inputs],
        [a if a.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) else _regrafted(a, copies)
         for a in node.attributes.values()],
        num_outputs=len(node.outputs), name=node.name,
    )
    for old, new in zip(node.outputs, cloned.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
    graph = ir.Graph(inputs, list(cloned.outputs), nodes=[cloned], initializers=initializers, opset_imports={"": 24},
                     name="node")
    return ir.Model(graph, ir_version=10)


def _regrafted(attr: ir.Attr, copies: dict[ir.Value, ir.Value]) -> ir.Attr:
    """A graph attribute as a copy that reads `copies` instead of the values around the original."""
    def graft(graph: ir.Graph) -> ir.Graph:
        new = graph.clone(allow_outer_scope_values=True)
        for inner in new:
            for i, value in enumerate(inner.inputs):
                if value in copies:
                    inner.replace_input_with(i, copies[value])
        return new

    if attr.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attr.name, graft(attr.as_graph()))
    return ir.AttrGraphs(attr.name, [graft(g) for g in attr.as_graphs()])


def _captured(node: ir.Node) -> Iterable[ir.Value]:
    """Values of the graph around `node` that the graphs inside it read."""
    for graph in subgraphs(node):
        own = set(graph.inputs) | set(graph.initializers.values()) | {v for n in graph for v in n.outputs}
        for inner in graph:
            for value in (*(v for v in inner.inputs if v is not None), *_captured(inner)):
                if value not in own:
                    yield value
        yield from (v for v in graph.outputs if v not in own)
