"""Walking and editing an `onnx_ir` graph.

Everything here works on the main graph, on the graphs inside If, Loop and Scan nodes, and on values that are graph
outputs. Functions of the `edgec` domain are bodies of table rows (`edgec/ir/ops.py`): passes never edit them, so the
walk leaves functions out unless asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgec.errors import EdgecError

Array = npt.NDArray[np.generic]
AttrValue = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | ir.TensorProtocol | ir.Graph

# Standard operators written under this name are the same operators.
_STANDARD_ALIAS = "ai.onnx"
# Key of `Node.meta`, which never leaves the process: FILE:LINE of the user's code behind a node.
LINE = "edgec.line"
# Constants a pass looks into without being asked for more: scalars, shapes, small tables.
SMALL = 4096


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that `node` carries as attributes, in attribute order."""
    for attr in node.attributes.values():
        if attr.is_ref():
            continue
        if attr.type == ir.AttributeType.GRAPH:
            yield attr.as_graph()
        elif attr.type == ir.AttributeType.GRAPHS:
            yield from attr.as_graphs()


def graphs(model: ir.Model, *, functions: bool = False) -> Iterator[ir.Graph]:
    """The main graph and every nested graph, outer before inner; with `functions` those of the functions too."""
    stack = [function.graph for function in reversed(list(model.functions.values()))] if functions else []
    stack.append(model.graph)
    while stack:
        graph = stack.pop()
        yield graph
        nested = [inner for node in graph for inner in subgraphs(node)]
        stack.extend(reversed(nested))


def walk(model: ir.Model, *, functions: bool = False) -> Iterator[ir.Node]:
    """Every node of `graphs(model)`; nodes may be replaced or removed while walking."""
    for graph in graphs(model, functions=functions):
        yield from graph


def op_of(node: ir.Node) -> tuple[str, str]:
    """(domain, op_type) with the standard domain spelled ''."""
    return ("" if node.domain == _STANDARD_ALIAS else node.domain, node.op_type)


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """True when `node` exists and is one of `op_types` of `domain`."""
    return node is not None and node.op_type in op_types and op_of(node)[0] == domain


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The standard node of one of `op_types` that makes `value`, or None."""
    node = None if value is None else value.producer()
    return node if is_op(node, *op_types) else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`; None when it is left out or empty."""
    return node.inputs[index] if index < len(node.inputs) else None


def required(node: ir.Node, index: int) -> ir.Value:
    """Input `index` of a node whose schema makes it mandatory."""
    value = input_of(node, index)
    if value is None:
        raise EdgecError("E0101", stage="graph", where=describe(node), found=f"no input {index}", wanted="a value")
    return value


# Files may hold anything: an attribute of another type than its operator has is the file's fault (E0101).


def int_attr(node: ir.Node, name: str, default: int) -> int:
    attr = _attr(node, name, ir.AttributeType.INT)
    return default if attr is None else attr.as_int()


def float_attr(node: ir.Node, name: str, default: float) -> float:
    attr = _attr(node, name, ir.AttributeType.FLOAT)
    return default if attr is None else attr.as_float()


def str_attr(node: ir.Node, name: str, default: str) -> str:
    attr = _attr(node, name, ir.AttributeType.STRING)
    return default if attr is None else attr.as_string()


def ints_attr(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attr = _attr(node, name, ir.AttributeType.INTS)
    return None if attr is None else tuple(attr.as_ints())


def floats_attr(node: ir.Node, name: str) -> tuple[float, ...] | None:
    attr = _attr(node, name, ir.AttributeType.FLOATS)
    return None if attr is None else tuple(attr.as_floats())


def _attr(node: ir.Node, name: str, kind: ir.AttributeType) -> ir.Attr | None:
    attr = node.attributes.get(name)
    if attr is not None and attr.type != kind:
        raise EdgecError("E0101", stage="graph", where=f"{describe(node)}, attribute {name!r}",
                         found=f"the type {attr.type.name}", wanted=kind.name)
    return attr


def const_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind an initializer or a Constant node, not yet read; None for anything that may vary.

    An initializer that is also a graph input is only a default a caller may override, hence not constant.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if not is_op(node, "Constant"):
        return None
    return ir.convenience.get_const_tensor(value)


def const_of(value: ir.Value | None, limit: int = SMALL) -> Array | None:
    """The constant as numpy when it has at most `limit` elements, else None."""
    tensor = const_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING or math.prod(tensor.shape.numpy()) > limit:
        return None
    return np.asarray(tensor.numpy())


def scalar_of(value: ir.Value | None) -> float | None:
    """The number held by a constant of one element, else None."""
    array = const_of(value, 1)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def ints_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a constant integer vector or scalar, else None."""
    array = const_of(value)
    if array is None or not np.issubdtype(array.dtype, np.integer):
        return None
    return tuple(int(i) for i in array.reshape(-1))


def dims_of(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """Dims as int, symbol name or None (unknown); None when the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def rank_of(value: ir.Value | None) -> int | None:
    dims = dims_of(value)
    return None if dims is None else len(dims)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape when every dim is a number, else None."""
    dims = dims_of(value)
    if dims is None:
        return None
    known = tuple(d for d in dims if isinstance(d, int))
    return known if len(known) == len(dims) else None


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """True when both shapes are known and equal, symbols by name."""
    x, y = dims_of(a), dims_of(b)
    return x is not None and x == y and None not in x


def single_use(value: ir.Value) -> bool:
    """True when exactly one node input reads the value and it is not a graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def describe(node: ir.Node) -> str:
    """How messages name a node: operator, node name and, where the importer kept it, the module path."""
    domain, op_type = op_of(node)
    op = f"{domain}::{op_type}" if domain else op_type
    name = node.name or (node.outputs[0].name if node.outputs else None) or "?"
    path = node.metadata_props.get("namespace", "")
    return f"{op} {name!r}" + (f" ({path})" if path else "")


@dataclass
class Builder:
    """Makes the nodes that replace `anchor`: `op.Mul(a, b)`, `op.LayerNormalization(x, w, axis=-1)`, `op.const(...)`.

    Keyword arguments are attributes (None: left out). `_outputs=n` asks for n outputs and returns a tuple, `_domain`
    names another operator domain. New nodes inherit the anchor's metadata, so profiles still show the module path,
    and its line.
    """

    anchor: ir.Node
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: list[ir.Value] = field(default_factory=list)

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, AttrValue | None],
        *, domain: str = "", outputs: int = 1,
    ) -> ir.Node:
        trimmed = list(inputs)
        while trimmed and trimmed[-1] is None:
            trimmed.pop()
        new = ir.node(
            op_type, trimmed, {k: v for k, v in attributes.items() if v is not None}, domain=domain,
            num_outputs=outputs, metadata_props=dict(self.anchor.metadata_props),
        )
        if LINE in self.anchor.meta:
            new.meta[LINE] = self.anchor.meta[LINE]
        stem = self.stem
        new.name = f"{stem}/{op_type}_{len(self.nodes)}"
        for i, out in enumerate(new.outputs):
            out.name = new.name if i == 0 else f"{new.name}.{i}"
        self.nodes.append(new)
        return new

    @property
    def stem(self) -> str:
        return self.anchor.outputs[0].name or self.anchor.name or self.anchor.op_type

    def __getattr__(self, op_type: str) -> _Maker:
        if not op_type[0].isupper():
            raise AttributeError(op_type)
        return _Maker(self, op_type)

    def const(self, array: npt.ArrayLike, dtype: ir.DataType | None = None, name: str = "") -> ir.Value:
        """A new initializer holding `array`, converted to `dtype` when given."""
        data = np.asarray(array)
        return self.tensor(ir.tensor(data if dtype is None else data.astype(dtype.numpy())), name)

    def tensor(self, tensor: ir.TensorProtocol, name: str = "") -> ir.Value:
        """A new initializer backed by `tensor`, which is not read."""
        value = ir.Value(
            name=name or f"{self.stem}/const_{len(self.initializers)}", const_value=tensor,
            type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()),
        )
        self.initializers.append(value)
        return value

    def ints(self, values: Iterable[int]) -> ir.Value:
        """An INT64 vector."""
        return self.const(np.array(list(values), np.int64))

    def like(self, number: float, value: ir.Value) -> ir.Value:
        """A scalar of the element type of `value` (FLOAT when that is unknown)."""
        return self.const(np.array(number), value.dtype or ir.DataType.FLOAT)


@dataclass(frozen=True)
class _Maker:
    builder: Builder
    op_type: str

    def __call__(self, *inputs: ir.Value | None, _domain: str = "", **attributes: AttrValue | None) -> ir.Value:
        return self.builder.node(self.op_type, inputs, attributes, domain=_domain).outputs[0]

    def many(self, n: int, *inputs: ir.Value | None, _domain: str = "", **attributes: AttrValue | None
             ) -> tuple[ir.Value, ...]:
        """The same for a node of `n` outputs."""
        return tuple(self.builder.node(self.op_type, inputs, attributes, domain=_domain, outputs=n).outputs)


def unique_name(graph: ir.Graph, wanted: str) -> str:
    """`wanted`, or `wanted_2`, ... not yet the name of an initializer of `graph`."""
    name, i = wanted, 1
    while name in graph.initializers:
        i += 1
        name = f"{wanted}_{i}"
    return name


def add_initializer(graph: ir.Graph, value: ir.Value) -> None:
    """Registers an initializer under a free name."""
    value.name = unique_name(graph, value.name or "const")
    graph.register_initializer(value)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph `node` is in."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{describe(node)} is not in a graph")
    return graph


def splice(node: ir.Node, op: Builder, new_values: Sequence[ir.Value]) -> None:
    """Puts the nodes of `op` where `node` is and lets everyone who read its outputs read `new_values`.

    `node` is removed; nodes that only it read stay until dead code is eliminated. `new_values` may be values of the
    builder or any value visible at `node`, one per output of `node` that is used.
    """
    graph = graph_of(node)
    for value in op.initializers:
        if isinstance(node.graph, ir.Graph):
            add_initializer(graph, value)
    graph.insert_before(node, op.nodes)
    for old, new in zip(node.outputs, new_values, strict=False):
        # An output nobody reads must not lend its shape to the value that stands in for it.
        if old.uses() or old.is_graph_output():
            replace_value(old, new)
    graph.remove(node, safe=True)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Lets every reader of `old`, graph outputs included, read `new`; a graph output keeps its name.

    A graph output must be a value made by a node of the same graph and listed once; where `new` is not that, an
    Identity stands between.
    """
    if old is new:
        return
    if new.type is None:
        new.type = old.type
    if new.shape is None or (old.shape is not None and old.is_graph_output()):
        new.shape = old.shape
    if old.is_graph_output():
        node = old.producer()
        maker = new.producer()
        if node is None:
            raise ValueError(f"graph input {old.name!r} is a graph output and cannot be replaced")
        if maker is None or maker.graph is not node.graph or new.is_graph_output():
            identity = ir.node("Identity", [new], metadata_props=dict(node.metadata_props))
            identity.outputs[0].type, identity.outputs[0].shape = old.type, old.shape
            graph_of(node).insert_before(node, identity)
            new = identity.outputs[0]
        name, old.name = old.name, None
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove_unused(model: ir.Model) -> int:
    """Removes nodes nobody reads and initializers nobody reads; returns how many."""
    count = 0
    # Inner graphs first, so that the outer values they read become unused.
    for graph in reversed(list(graphs(model))):
        for node in reversed(graph):
            if all(not v.uses() and not v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)
                count += 1
    for graph in graphs(model):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
                count += 1
    return count


@dataclass(frozen=True)
class Fingerprint:
    """A cheap identity of the structure: operators, wiring, attributes, and which tensors are where.

    Names of inner values do not count. Big tensors are compared by identity; `alive` keeps them from being freed so
    that an identity is not reused while two fingerprints are compared.
    """

    digest: str
    alive: tuple[object, ...] = field(default=(), compare=False, repr=False)


def structure_sha256(model: ir.Model) -> str:
    """SHA-256 of the graph, the same in any process; of tensors above 1 KiB only types and shapes count."""
    return _fingerprint(model, identities=False).digest


def fingerprint(model: ir.Model) -> Fingerprint:
    """The fingerprint of the main graph with its nested graphs, and of the set of functions."""
    return _fingerprint(model, identities=True)


def _fingerprint(model: ir.Model, identities: bool) -> Fingerprint:
    hasher = hashlib.sha256()
    alive: list[object] = []
    numbers: dict[ir.Value, int] = {}

    def number(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        if value not in numbers:
            numbers[value] = len(numbers)
            if value.is_initializer():
                put(f"init {numbers[value]} {tensor(value.const_value)}")
        return str(numbers[value])

    def put(text: str) -> None:
        hasher.update(text.encode() + b"\n")

    def tensor(t: ir.TensorProtocol | None) -> str:
        if t is None:
            return "none"
        head = f"{t.dtype} {list(t.shape.numpy())}"
        if t.dtype != ir.DataType.STRING and t.nbytes <= 1024:
            return f"{head} {hashlib.sha256(t.tobytes()).hexdigest()}"
        if not identities:
            return head
        alive.append(t)
        return f"{head} at {id(t)}"

    def attribute(attr: ir.Attr) -> str:
        if attr.is_ref():
            return f"@{attr.ref_attr_name}"
        if attr.type == ir.AttributeType.TENSOR:
            return tensor(attr.as_tensor())
        return repr(attr.value)

    def visit(graph: ir.Graph) -> None:
        put("inputs " + " ".join(f"{number(v)}:{v.name}:{v.type}:{v.shape}" for v in graph.inputs))
        for node in graph:
            attrs = [
                f"{k}={attribute(a)}" for k, a in sorted(node.attributes.items())
                if a.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            ]
            ins, outs = [number(v) for v in node.inputs], [number(v) for v in node.outputs]
            put(f"{op_of(node)}:{node.overload} {ins} {outs} {attrs}")
            for inner in subgraphs(node):
                visit(inner)
        put("outputs " + " ".join(f"{number(v)}:{v.name}" for v in graph.outputs))
        put(f"initializers {len(graph.initializers)}")

    visit(model.graph)
    put(f"functions {sorted(model.functions)}")
    return Fingerprint(hasher.hexdigest(), tuple(alive))
