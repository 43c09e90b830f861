"""From a lowered graph to a Core ML program: inputs and their shapes, the operators in order, outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.model import describe, dims_of, is_op, rank_of
from edgec.ir.ops import DOMAIN
from edgec.targets.coreml_ops import MOST_DIMS, outputs, row_of
from edgec.targets.coreml_options import CoreMLOptions, ImageInput
from edgec.targets.coreml_scope import FLOATS, NewerNeededError, Scope, ios
from edgec.targets.coreml_weights import dense, is_dense

_STAGE = "emit coreml"
_NAME = re.compile(r"[^A-Za-z0-9_]")


@dataclass
class Built:
    """program, inputs: what coremltools converts. names: of the graph's inputs and outputs -> of the package's.
    stored: weight -> (shape, form, bytes)."""

    program: Any
    inputs: list[Any]
    names: dict[str, str] = field(default_factory=dict)
    stored: dict[str, tuple[tuple[int, ...], str, int]] = field(default_factory=dict)


def ports(model: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """Inputs and outputs of the package: without the caches of a language model, which it neither takes nor gives."""
    past = {use.node.inputs[i] for value in model.graph.inputs for use in value.uses()
            if is_op(use.node, "CachedAttention", domain=DOMAIN) for i in (3, 4, 5)}
    caches = {v for node in model.graph if is_op(node, "CachedAttention", domain=DOMAIN) for v in node.outputs[1:]}
    return ([v for v in model.graph.inputs if v not in past and not v.is_initializer()],
            [v for v in model.graph.outputs if v not in caches])


def problems(model: ir.Model) -> list[tuple[ir.Node, str]]:
    """Every node that cannot be emitted, and why."""
    found = [(node, reason) for node in model.graph if (reason := refusal(node)) is not None]
    return found + [(node, "Core ML has tensors of at most 5 dims") for node in model.graph if any(
        (rank_of(v) or 0) > MOST_DIMS for v in node.outputs)]


_ARITHMETIC = ("Add", "Sub", "Mul", "Neg", "Div", "Pow", "Abs", "ReduceSum", "ReduceProd")
_NARROW = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.UINT32)


def refusal(node: ir.Node) -> str | None:
    """Why a node cannot be taken; None when it can."""
    row = row_of(node)
    if row is None:
        return "Core ML has no such operator, and there is no decomposition"
    kind = next((v.dtype for v in node.inputs if v is not None), None)
    if node.op_type in _ARITHMETIC and kind in _NARROW:
        return f"its {kind.name if kind else ''} values would not wrap around: Core ML computes in 32 bits"
    return None if row.check is None else row.check(node)


def check_inputs(model: ir.Model, options: CoreMLOptions, context: int, target: str) -> None:
    """Raises EdgecError (E0002, E0302), NewerNeededError for inputs that cannot be described, or are not there."""
    shaped = _Inputs(model, options, context, ios(target))
    for value in ports(model)[0]:
        shaped.described(value)


def build(model: ir.Model, options: CoreMLOptions, target: str, context: int) -> Built:
    """The program for `target`. context: most tokens of a language model. Raises EdgecError, NewerNeededError."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import Function, Program, types

    # Names of operators are numbered; another compile before this one must not show in them.
    mb.name_count.clear()
    scope = Scope(mb, types, options.precision == "fp16", target, dense, is_dense, options.force)
    given, wanted = ports(model)
    shaped = _Inputs(model, options, context, ios(target))
    placeholders = {shaped.name(v): mb.placeholder(shape=shaped.symbolic(v), dtype=_kind(types, v)) for v in given}
    program = Program()
    with Function(placeholders, opset_version=getattr(ct.target, target)) as function:
        for value in given:
            scope.values[value] = _entering(scope, value, function.inputs[shaped.name(value)])
        for value in model.graph.inputs:
            if value not in scope.values and value.name == "past_len":
                scope.values[value] = mb.const(val=np.int32(0))
        for node in model.graph:
            _emit(scope, node)
        names = [shaped.free(v.name or "output") for v in wanted]
        function.set_outputs([_leaving(scope, v, n) for v, n in zip(wanted, names, strict=True)])
        program.add_function("main", function)
    inputs = [shaped.described(v) for v in given]
    return Built(program, inputs, {**{v.name or "": shaped.name(v) for v in given},
                                   **{v.name or "": n for v, n in zip(wanted, names, strict=True)}}, scope.stored)


def _kind(types: Any, value: ir.Value) -> Any:
    return types.fp32 if value.dtype in FLOATS else types.int32


def _entering(s: Scope, value: ir.Value, var: Any) -> Any:
    """Numbers come in as float32 or int32; inside they are of the program's type, and scalars have no dim."""
    if rank_of(value) == 0:
        var = s.mb.squeeze(x=var)
    if value.dtype == ir.DataType.BOOL:
        return s.mb.cast(x=var, dtype="bool")
    return s.mb.cast(x=var, dtype="fp16") if s.half and value.dtype in FLOATS else var


def _leaving(s: Scope, value: ir.Value, name: str) -> Any:
    var = s.var(value)
    if not len(var.shape):
        var = s.mb.expand_dims(x=var, axes=[0])
    if value.dtype == ir.DataType.BOOL:
        return s.mb.cast(x=var, dtype="int32", name=name)
    if s.half and value.dtype in FLOATS:
        return s.mb.cast(x=var, dtype="fp32", name=name)
    return s.mb.identity(x=var, name=name)


def _emit(s: Scope, node: ir.Node) -> None:
    row = row_of(node)
    if row is None:
        raise EdgecError("E0301", stage=_STAGE, where=describe(node), found=node.op_type,
                         wanted="an operator of the backend's table")
    if any(v is not None and is_dense(v) for v in node.outputs):
        return  # made for its reader
    try:
        made = outputs(row.emit(s, node))
    except (EdgecError, NewerNeededError):
        raise
    except (ValueError, TypeError, AssertionError, NotImplementedError) as e:  # coremltools' words for "no"
        raise EdgecError("E0301", stage=_STAGE, where=describe(node), found=str(e) or type(e).__name__,
                         wanted=f"a {node.op_type} that Core ML takes",
                         hint="--backend native or ort; please report it") from e
    for value, var in zip(node.outputs, made, strict=False):
        if var is not None:
            s.values[value] = var


class _Inputs:
    """Names, symbols and described shapes of the inputs."""

    def __init__(self, model: ir.Model, options: CoreMLOptions, context: int, version: int) -> None:
        self._info: ModelInfo = info_of(model)
        self._options, self._context, self._version = options, context, version
        self._symbols: dict[str, Any] = {}
        self._taken: set[str] = set()
        given = ports(model)[0]
        self._names = {value: self.free(value.name or "input") for value in given}
        self._check(given)

    def free(self, wanted: str) -> str:
        """A name of letters, digits and underscores that no input or output has yet; from now on it is taken."""
        name = _NAME.sub("_", wanted)
        name = f"_{name}" if not name or name[0].isdigit() else name
        count, made = 1, name
        while made in self._taken:
            count += 1
            made = f"{name}_{count}"
        self._taken.add(made)
        return made

    def name(self, value: ir.Value) -> str:
        return self._names[value]

    def _check(self, given: list[ir.Value]) -> None:
        """Raises EdgecError (E0002) for options about inputs and dims that are not there."""
        known = {v.name: v for v in given}
        for name, image in self._options.images.items():
            dims = dims_of(known[name]) if name in known else None
            if dims is None or len(dims) != 4 or dims[1] != image.channels or known[name].dtype not in FLOATS:
                raise EdgecError("E0002", stage=_STAGE, where="--coreml-image", found=name,
                                 wanted=f"a float input [N, {image.channels}, H, W]",
                                 hint="inputs: " + ", ".join(f"{v.name} {list(dims_of(v) or ())}" for v in given))
        symbols = {d for v in given for d in dims_of(v) or () if isinstance(d, str)}
        for name in self._options.sizes:
            if name not in symbols:
                raise EdgecError("E0002", stage=_STAGE, where="--coreml-sizes", found=name,
                                 wanted="a dim that varies", hint="dims: " + (", ".join(sorted(symbols)) or "none"))
        many = [v.name for v in given if set(self._options.sizes) & set(dims_of(v) or ())]
        if len(many) > 1 and self._version < 18:
            raise NewerNeededError("several inputs with listed sizes", "--coreml-sizes")

    def symbolic(self, value: ir.Value) -> tuple[Any, ...]:
        """Sizes, and one symbol per dim that varies, the same in every input."""
        from coremltools.converters.mil.mil import get_new_symbol

        dims = dims_of(value)
        if dims is None or len(dims) > MOST_DIMS:
            raise EdgecError("E0302", stage=_STAGE, where=value.name or "?", found="unknown or more than 5 dims",
                             wanted="a tensor of known rank up to 5")
        for dim in dims:
            if not isinstance(dim, int) and str(dim) not in self._symbols:
                self._symbols[str(dim)] = get_new_symbol()
        return tuple(d if isinstance(d, int) else self._symbols[str(d)] for d in dims) or (1,)

    def _range(self, name: str) -> tuple[int, int]:
        if name in self._info.dynamic:
            return self._info.dynamic[name]
        if self._info.task == "causal-lm" and self._context:
            return 1, self._context
        raise EdgecError("E0302", stage=_STAGE, where=f"dim {name!r}", found="no range", wanted="sizes from A to B",
                         hint="say how large it may be: --dynamic INPUT:AXIS=MIN..MAX")

    def described(self, value: ir.Value) -> Any:
        """The input as coremltools describes it: a tensor or an image, with a range or a list of sizes."""
        import coremltools as ct

        dims = dims_of(value) or (1,)
        listed = sorted({str(d) for d in dims} & set(self._options.sizes))
        if len(listed) > 1:
            raise EdgecError("E0002", stage=_STAGE, where="--coreml-sizes", found=" and ".join(listed),
                             wanted="one dim of an input", hint="give the others a range with --dynamic")
        if listed:
            shape = ct.EnumeratedShapes(shapes=[self._sized(dims, listed[0], size)
                                                for size in self._options.sizes[listed[0]]])
        else:
            shape = ct.Shape([d if isinstance(d, int) else self._ranged(str(d)) for d in dims])
        image = self._options.images.get(value.name or "")
        if image is None:
            return ct.TensorType(name=self.name(value), shape=shape)
        return _image(ct, self.name(value), shape, image)

    def _ranged(self, name: str) -> Any:
        import coremltools as ct

        low, high = self._range(name)
        return ct.RangeDim(lower_bound=low, upper_bound=high, default=low) if high > low else low

    def _sized(self, dims: tuple[Any, ...], name: str, size: int) -> list[int]:
        sizes = []
        for dim in dims:
            low, high = (dim, dim) if isinstance(dim, int) else (size, size) if dim == name else self._range(str(dim))
            if low != high:
                raise EdgecError("E0002", stage=_STAGE, where=f"dim {dim!r}", found=f"{low} to {high}",
                                 wanted=f"one size, because {name!r} is a list of sizes",
                                 hint=f"--dynamic with {low}..{low}, or no --coreml-sizes")
            sizes.append(low)
        return sizes


def _image(ct: Any, name: str, shape: Any, image: ImageInput) -> Any:
    layout: Callable[..., Any] = getattr(ct.colorlayout, {"rgb": "RGB", "bgr": "BGR", "gray": "GRAYSCALE"}[image.color])
    bias = list(image.bias) or [0.0] * image.channels
    return ct.ImageType(name=name, shape=shape, scale=image.scale, bias=bias if image.channels > 1 else bias[0],
                        color_layout=layout, channel_first=True)
