"""The PyTorch door: `torch.export`, `torch.onnx`, opset 23 lifted to 24, compared with the eager module."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import io
import itertools
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec import zoo
from edgec.errors import EdgecError, did_you_mean, missing_extra
from edgec.importers import torch_program
from edgec.importers.check import difference, other_values, require_numbers, runner
from edgec.importers.custom_ops import translations
from edgec.ir.info import ModelInfo, attach_info, info_of
from edgec.ir.model import LINE, Array, describe, op_of, walk
from edgec.zoo import ZooModel

STAGE = "import"
EXPORT_OPSET, OPSET = 23, 24
# Float32 kernels of two libraries add in different orders; real defects are orders of magnitude above this.
RTOL = 1e-4

_RAISED_AT = re.compile(r'The following call raised this error:\s+File "([^"]+)", line (\d+), in \w+\s+([^\n]*)')
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Lines of torch's messages that speak to its developers.
_BOILERPLATE = ("For ", "The error above", "C++", "If you", "consider", "Caused by", "The following call", "File ")

_TALKERS = ("torch", "torch.onnx", "torch.fx", "onnxscript", "mobius", "transformers")

_DECLARED = ("name", "dynamic", "custom_ops")  # options that a factory may return

DimRange = tuple[int, int] | tuple[str, int, int]
Dynamic = Mapping[str, Mapping[int, DimRange]]


def load_factory(spec: str, **options: Any) -> ir.Model:
    """Imports `path/to/file.py:factory` by running that file.

    factory() returns (module, example_inputs) or (module, example_inputs, options), where options has the keys
    of `load`; `options` given here win. Raises EdgecError as `load`, E0101 when the file or the factory fails.
    """
    module, example_inputs, declared = call_factory(spec)
    options = {"name": Path(spec.rpartition(":")[0]).stem, **declared, **options}
    example_inputs = options.pop("example_inputs", example_inputs)
    return load(module, example_inputs, source=spec, **options)


def load_zoo(spec: str, **options: Any) -> ir.Model:
    """Imports `zoo:NAME` or `zoo:NAME@SIZE` with random weights, which it says on stderr and in the ModelInfo."""
    row, module, example = zoo_module(spec)
    model = load(module, (example,), source=spec, **{"name": row.name, **options})
    info = info_of(model)
    info.parameters, info.random_weights = row.parameters, True
    info.notes = (f"{row.name} has random weights: its answers mean nothing",)
    return model


def zoo_module(spec: str) -> tuple[ZooModel, Any, Any]:
    """(row, module, example image) of the zoo; a warning goes to stderr, for nobody has trained the weights."""
    _torch()
    from edgec.zoo.weights import randomize

    row, size = zoo.find(spec)
    sys.stderr.write(f"WARNING: {spec} has RANDOM weights: its speed and size are right, its answers mean nothing\n")
    image = row.example(size)
    return row, randomize(row.build(size), image=image), image


def call_factory(spec: str) -> tuple[Any, Any, dict[str, Any]]:
    """Runs `file.py:factory` and returns (module, example_inputs, options), checked."""
    torch = _torch()
    file, _, name = spec.rpartition(":")
    path = Path(file).resolve()
    loader = importlib.util.spec_from_file_location(f"edgec_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}",
                                                    path)
    if loader is None or loader.loader is None:
        raise EdgecError("E0101", stage=STAGE, where=file, found="not a Python file", wanted="FILE.py:FACTORY")
    module = importlib.util.module_from_spec(loader)
    # The user's file may import its neighbours and may define dataclasses, which look themselves up in sys.modules.
    sys.modules[loader.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loader.loader.exec_module(module)
            factory = getattr(module, name, None)
            if not callable(factory):
                own = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == loader.name]
                raise EdgecError("E0101", stage=STAGE, where=spec, found=f"no function {name!r}",
                                 wanted=did_you_mean(name, own) if own else "a function that returns (module, inputs)")
            result = factory()
    except EdgecError:
        raise
    except (Exception, SystemExit) as e:
        raise EdgecError("E0101", stage=STAGE, where=_user_line(e, path) or spec, found=f"{type(e).__name__}: {e}",
                         wanted="a file and a factory that run") from e
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(result, tuple) or len(result) not in (2, 3) or not (
        isinstance(result[0], torch.nn.Module) or torch_program.is_program(result[0])
    ):
        shown = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise EdgecError("E0101", stage=STAGE, where=spec, found=shown,
                         wanted="(module, example_inputs) or (module, example_inputs, options)")
    declared = dict(result[2]) if len(result) == 3 else {}
    for key in declared:
        if key not in _DECLARED:
            raise EdgecError("E0002", stage=STAGE, where=f"{spec}: option {key!r}", found="an unknown option",
                             wanted=did_you_mean(key, _DECLARED))
    return result[0], result[1], declared


def load(module: Any, example_inputs: Any = None, *, dynamic: Dynamic | None = None, name: str | None = None,
         source: str = "", check: bool = True, trusted: bool = False, custom_ops: Mapping[Any, Any] | None = None,
         ) -> ir.Model:
    """Exports `module` (torch.nn.Module, run in eval mode, left as it was; or an ExportedProgram) to an opset-24 graph.

    example_inputs: a tensor, a tuple for positional or a mapping for keyword parameters of forward; tensors become
    inputs named after the parameters, other values are constants. dynamic: {"x": {0: (1, 8)}} lets axis 0 of x vary
    in that range under the name `x_0`; {"x": {0: ("batch", 1, 8)}} names it, and one name is one size everywhere.
    custom_ops: translations of torch.library operators (edgec.importers.custom_ops).
    trusted: the ranges are known to be right where torch cannot prove it, as for lengths that are divided many times.
    Raises EdgecError: E0002 a bad option, E0102 with the user's source line, E0104 when ONNX Runtime on the
    exported graph differs from the module by more than 1e-4 of the largest value.
    """
    torch = _torch()
    program = module if torch_program.is_program(module) else None
    if program is not None:
        module, example_inputs, dynamic = torch_program.opened(program, example_inputs, dynamic or {})
    name = name or ("exported" if program is not None else type(module).__name__)
    call = Call.bind(module, example_inputs, dynamic or {})
    # An exported program has no modes: what training changes is fixed in it.
    with evaluating(module) if program is None else contextlib.nullcontext(), quiet(), torch.no_grad():
        outputs = output_names(_run_pure(module, call), set(call.tensors))
        exported = _export(module, call, trusted) if program is None else program
        model = to_ir(exported, list(call.tensors), outputs, custom_ops)
        _name_dims(model, call)
        model.graph.name = name
        if check:
            compare(model, module, call, source or type(module).__name__)
    info = ModelInfo(task="generic", name=name, source=source or f"torch module {type(module).__name__}",
                     hash_source=functools.partial(_state_sha256, module),
                     dynamic={d.name: (d.low, d.high) for d in call.dims.values()})
    return attach_info(model, info)


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """`module` in eval mode, and afterwards as it was."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


@dataclass(frozen=True)
class _Dim:
    """A named size that may vary: low..high; `traced` is the size during export (0 and 1 would become constants)."""

    name: str
    low: int
    high: int
    traced: int


@dataclass
class Call:
    """How forward is called: every argument by its parameter's name, the tensors among them, and what varies."""

    constants: dict[str, Any]
    tensors: dict[str, Any]
    dims: dict[str, _Dim] = field(default_factory=dict)
    axes: dict[str, dict[int, str]] = field(default_factory=dict)  # input -> axis -> name of the dim

    @classmethod
    def bind(cls, module: Any, example_inputs: Any, dynamic: Dynamic) -> Call:
        torch = _torch()
        forward = f"{type(module).__name__}.forward"
        if isinstance(module, torch.jit.ScriptModule):
            raise EdgecError("E0102", stage=STAGE, where=type(module).__name__, found="a TorchScript module",
                             wanted="the module in Python that it was made from",
                             hint="build that and load the weights: module.load_state_dict(script.state_dict())")
        if example_inputs is None:
            raise EdgecError("E0002", stage=STAGE, where="example_inputs", found="none",
                             wanted="a tensor, a tuple or a mapping of what forward takes")
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(example_inputs, Mapping):
            kwargs = dict(example_inputs)
        else:
            args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        signature = inspect.signature(module.forward)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as e:
            raise EdgecError("E0002", stage=STAGE, where=forward, found=str(e),
                             wanted=f"inputs for forward{signature}") from e
        named: dict[str, Any] = {}
        for key, value in bound.arguments.items():
            kind = signature.parameters[key].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
                raise EdgecError("E0002", stage=STAGE, where=forward, found=f"a parameter without a name: {key}",
                                 wanted="inputs that have names", hint="wrap the module in one that names its inputs")
            else:
                named[key] = value
        for key, value in named.items():
            if isinstance(value, (tuple, list, dict)) and _holds_tensor(value):
                raise EdgecError("E0002", stage=STAGE, where=f"{forward}, input {key!r}",
                                 found=f"tensors inside a {type(value).__name__}",
                                 wanted="tensors as direct parameters",
                                 hint="wrap the module in one that takes them flat")
        tensors = {k: v.detach() for k, v in named.items() if isinstance(v, torch.Tensor)}
        if not tensors:
            raise EdgecError("E0002", stage=STAGE, where="example_inputs", found="no tensor",
                             wanted="at least one tensor")
        call = cls({k: v for k, v in named.items() if k not in tensors}, tensors)
        call._declare(dynamic)
        call.tensors = call.sized({d.name: d.traced for d in call.dims.values()})
        return call

    def _declare(self, dynamic: Dynamic) -> None:
        for key, ranges in dynamic.items():
            if key not in self.tensors:
                raise EdgecError("E0002", stage=STAGE, where=f"dynamic {key!r}", found="no such input",
                                 wanted=did_you_mean(key, self.tensors))
            for axis, wanted in ranges.items():
                shape = self.tensors[key].shape
                where = f"dynamic {key}:{axis}"
                if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
                    raise EdgecError("E0002", stage=STAGE, where=where, found=f"an input of rank {len(shape)}",
                                     wanted=f"an axis in 0..{len(shape) - 1}")
                axis %= len(shape)
                name, low, high = wanted if len(wanted) == 3 else (f"{key}_{axis}", *wanted)
                if not str(name).isidentifier() or not 1 <= int(low) <= int(high) < 2**31:
                    raise EdgecError("E0002", stage=STAGE, where=where, found=f"{name}={low}..{high}",
                                     wanted="a name and a range MIN..MAX with 1 <= MIN <= MAX")
                if not low <= shape[axis] <= high:
                    raise EdgecError("E0002", stage=STAGE, where=where, found=f"an example of size {shape[axis]}",
                                     wanted=f"an example inside {low}..{high}")
                if low == high:
                    continue
                dim = _Dim(str(name), int(low), int(high), max(int(shape[axis]), 2))
                if self.dims.setdefault(dim.name, dim) != dim:
                    raise EdgecError("E0002", stage=STAGE, where=where, found=f"{dim} and {self.dims[dim.name]}",
                                     wanted="one range and one example size for one name")
                self.axes.setdefault(key, {})[axis] = dim.name

    def sized(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The tensors with every varying axis repeated or cut to `sizes`."""
        torch = _torch()
        out = {}
        for key, tensor in self.tensors.items():
            for axis, name in self.axes.get(key, {}).items():
                size = sizes[name]
                tensor = torch.cat([tensor] * -(-size // tensor.shape[axis]), dim=axis).narrow(axis, 0, size)
            out[key] = tensor
        return out


def _holds_tensor(value: Any) -> bool:
    torch = _torch()
    if isinstance(value, dict):
        value = list(value.values())
    return any(isinstance(v, torch.Tensor) or (isinstance(v, (tuple, list, dict)) and _holds_tensor(v)) for v in value)


def _run_pure(module: Any, call: Call) -> Any:
    """The eager result; E0102 when forward changed a buffer, which a graph without memory cannot repeat."""
    torch = _torch()
    before = {k: b.detach().clone() for k, b in module.named_buffers()}
    try:
        result = module(**call.constants, **call.tensors)
    except Exception as e:
        raise _untraceable(module, e) from e
    after = dict(module.named_buffers())
    changed = [k for k, b in before.items() if k in after and not torch.equal(b, after[k])]
    if changed:
        for key in changed:
            after[key].copy_(before[key])
        raise EdgecError("E0102", stage=STAGE, where=f"{type(module).__name__}.forward",
                         found=f"it changes the buffer {', '.join(changed)}", wanted="a forward without side effects",
                         hint="return the new value as an output instead")
    return result


def _export(module: Any, call: Call, trusted: bool = False) -> Any:
    """torch.export first and by itself: its errors name the user's line, those of later stages do not."""
    torch = _torch()
    dims = {d.name: torch.export.Dim(d.name, min=d.low, max=d.high) for d in call.dims.values()}
    shapes: dict[str, Any] = dict.fromkeys(call.constants) | {
        key: {axis: dims[name] for axis, name in call.axes.get(key, {}).items()} for key in call.tensors
    }
    arguments = {**call.constants, **call.tensors}
    try:
        # torch prints the half-made graph before it raises; the error below says what matters of it.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exported = torch.export.export(module, (), arguments, strict=False,
                                           dynamic_shapes=_nest_keywords(module, shapes) if dims else None,
                                           prefer_deferred_runtime_asserts_over_guards=trusted)
    except Exception as e:
        raise _untraceable(module, e) from e
    return exported


def _nest_keywords(module: Any, shapes: dict[str, Any]) -> dict[str, Any]:
    """`shapes` as torch.export wants them: what goes into **kwargs stands under that parameter's name."""
    parameters = inspect.signature(module.forward).parameters
    flat = {k: v for k, v in shapes.items() if k in parameters}
    rest = {k: v for k, v in shapes.items() if k not in parameters}
    if rest:
        name = next(k for k, p in parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD)
        flat[name] = rest
    return flat


def to_ir(exported: Any, inputs: Sequence[str], outputs: Sequence[str], custom_ops: Mapping[Any, Any] | None = None,
          ) -> ir.Model:
    """A torch ExportedProgram as an opset-24 graph whose large weights are still the module's own tensors.

    Raises EdgecError E0102 when torch.onnx has no translation for an operator.
    """
    torch = _torch()
    import onnxscript.optimizer
    import onnxscript.rewriter.onnx_fusions

    table = translations(custom_ops or {}, EXPORT_OPSET)
    try:
        program = torch.onnx.export(exported, dynamo=True, opset_version=EXPORT_OPSET, verbose=False, optimize=False,
                                    input_names=list(inputs), output_names=list(outputs),
                                    custom_translation_table=table or None)
    except Exception as e:
        raise _untraceable(None, e) from e
    model: ir.Model = program.model
    # torch.onnx's own optimization would fold Transpose(W) into copies of the weights and so untie shared ones.
    onnxscript.optimizer.optimize_ir(model, should_fold=lambda node: False if node.op_type == "Transpose" else None)
    onnxscript.rewriter.onnx_fusions.fuse(model)
    lift_opset(model)
    keep_module_paths(model)
    return model


def keep_module_paths(model: ir.Model) -> None:
    """Leaves on each node the path of the module it came from, as `namespace`, and drops the exporters' other notes.

    Those hold source lines with the paths of this machine, which have no place in a file that travels. The line of the
    user's own code stays in memory (LINE), for messages.
    """
    for node in walk(model, functions=True):
        notes = node.metadata_props
        line = _users_line(notes.get("pkg.torch.onnx.stack_trace", ""))
        if line:
            node.meta[LINE] = line
        scopes = notes.get("pkg.torch.onnx.name_scopes") or notes.get("pkg.onnxscript.name_scopes")
        path = ""
        if scopes is not None:
            names = [str(s) for s in ast.literal_eval(scopes)]
            # torch: full paths, the last one is the operator; mobius: one step each.
            traced = "pkg.torch.onnx.name_scopes" in notes and len(names) > 1
            path = names[-2] if traced else ".".join(filter(None, names))
        for key in [k for k in notes if k.startswith("pkg.") or k == "namespace"]:
            del notes[key]
        if path:
            notes["namespace"] = path


def _users_line(trace: str) -> str:
    """FILE:LINE of the innermost frame that is no library's, "" when there is none."""
    frames = [(file, line) for file, line in _FRAME.findall(trace) if "site-packages" not in Path(file).parts]
    return ":".join(frames[-1]) if frames else ""


def lift_opset(model: ir.Model) -> None:
    """Restamps an opset-23 model as opset 24, after proving that this changes nothing.

    Each operator's opset-24 schema must extend the opset-23 one: the same inputs first, the same outputs, and every
    old attribute with its old default. Raises EdgecError E0102 for an operator where that does not hold.
    """
    import onnx.defs

    for node in walk(model, functions=True):
        if op_of(node)[0] != "":
            continue
        old = onnx.defs.get_schema(node.op_type, EXPORT_OPSET, "")
        new = onnx.defs.get_schema(node.op_type, OPSET, "")
        same = (
            [i.name for i in new.inputs][: len(old.inputs)] == [i.name for i in old.inputs]
            and [o.name for o in new.outputs] == [o.name for o in old.outputs]
            and all(
                key in new.attributes
                and new.attributes[key].default_value.SerializeToString() == a.default_value.SerializeToString()
                for key, a in old.attributes.items()
            )
        )
        if not same:
            raise EdgecError("E0102", stage=STAGE, where=describe(node),
                             found=f"{node.op_type} changed its meaning in opset {OPSET}",
                             wanted=f"an operator of opset {EXPORT_OPSET} that opset {OPSET} only extends")
        node.version = OPSET
    for function in model.functions.values():
        function.opset_imports[""] = OPSET
    model.opset_imports[""] = OPSET


def _name_dims(model: ir.Model, call: Call) -> None:
    """Gives torch's symbols (s77) the names the user knows; expressions (2*s77) follow."""
    names: dict[str, str | int] = {}
    inputs = {v.name: v for v in model.graph.inputs}
    for key, axes in call.axes.items():
        for axis, name in axes.items():
            shape = inputs[key].shape if key in inputs else None
            size = shape[axis] if shape is not None else None
            if not isinstance(size, ir.SymbolicDim) or size.value is None:
                raise EdgecError("E0102", stage=STAGE, where=f"dynamic {key}:{axis}",
                                 found=f"a graph in which this size is {size}", wanted=f"a size that varies ({name})")
            names[str(size.value)] = name
    rename_symbols(model, names)


def rename_symbols(model: ir.Model, names: Mapping[str, str | int]) -> None:
    """Replaces symbols inside the shapes of all values; a symbol that becomes a number turns into that number."""
    pattern = re.compile("|".join(rf"\b{re.escape(k)}\b" for k in names)) if names else None
    if pattern is None:
        return

    def renamed(size: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if isinstance(size, int) or size.value is None:
            return size
        text = pattern.sub(lambda m: str(names[m.group(0)]), str(size.value))
        return int(text) if text.isdigit() else ir.SymbolicDim(text)

    for value in (*model.graph.inputs, *(v for node in walk(model) for v in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(s) for s in value.shape])


def output_names(result: Any, taken: set[str]) -> list[str]:
    """Names for what forward returned: the keys of a mapping, `output` for a tensor, `output_0`, ... for a tuple."""
    torch = _torch()
    if isinstance(result, torch.Tensor):
        names = ["output"]
    elif isinstance(result, Mapping):
        names = [str(k) for k, v in result.items() if isinstance(v, torch.Tensor)]
    elif isinstance(result, (tuple, list)):
        names = [f"output_{i}" for i in range(len(result))]
    else:
        names = []
    leaves = torch.utils._pytree.tree_leaves(result)
    if not names or len(names) != len(leaves) or not all(isinstance(t, torch.Tensor) for t in leaves):
        raise EdgecError("E0102", stage=STAGE, where="forward", found=f"a result of type {type(result).__name__}",
                         wanted="a tensor, a tuple of tensors, or a mapping to tensors")
    return [f"{n}_out" if n in taken else n for n in names]


def compare(model: ir.Model, module: Any, call: Call, where: str, reach: int = 0) -> None:
    """E0104 unless ONNX Runtime and the eager module agree, at the example's size and at the ends of the ranges.

    E0105 when an output is NaN whatever the values. reach: sizes up to this one show something that shorter ones do
    not.
    """
    torch = _torch()
    names = {v.name for v in model.graph.inputs}
    sizes = [{d.name: d.traced for d in call.dims.values()}]
    if call.dims:
        sizes.append({d.name: d.low for d in call.dims.values()})
        # The upper end can be far away; four times the example already shows a size that became a constant.
        sizes.append({d.name: min(d.high, max(4 * d.traced, reach)) for d in call.dims.values()})
    drawn = [_randomized(call.sized(size)) for size in sizes]
    others = ({k: torch.from_numpy(v) for k, v in feeds.items()}
              for feeds in other_values({k: t.numpy() for k, t in drawn[0].items()}))
    with runner(model) as session:
        unproven = set(session.output_names)
        for turn, tensors in enumerate(itertools.chain((call.tensors, *drawn), others)):
            if turn > len(drawn) and not unproven:
                break
            try:
                wanted = torch.utils._pytree.tree_leaves(module(**call.constants, **tensors))
            except Exception:  # whatever a module's own checks raise
                if turn > len(drawn):  # substitutes, which a module need not accept; the output stays unproven
                    continue
                raise
            found = session.run({k: t.numpy() for k, t in tensors.items() if k in names})
            unproven -= {key for (key, ours), theirs in zip(found.items(), wanted, strict=True)
                         if _judge(ours, theirs, f"{where}, output {key}")}
    require_numbers(unproven, where)


def _randomized(tensors: dict[str, Any]) -> dict[str, Any]:
    """Normal numbers for the float tensors. Integers stay: what they may be (ids, indices) only the example knows."""
    torch = _torch()
    rng = np.random.default_rng(0)
    return {
        k: torch.from_numpy(np.asarray(rng.standard_normal(tuple(t.shape)))).to(t.dtype) if t.is_floating_point() else t
        for k, t in tensors.items()
    }


def _judge(ours: Array, theirs: Any, where: str) -> bool:
    """E0104 unless both agree; False when that proves nothing, because both are NaN everywhere."""
    try:
        gap = difference(ours, theirs.numpy())
    except EdgecError as e:
        raise EdgecError(e.code, stage=STAGE, where=where, found=e.found, wanted=e.wanted) from e
    exact = not theirs.is_floating_point()
    if not (gap.absolute == 0 if exact or gap.blind else gap.within(RTOL)):
        raise EdgecError("E0104", stage=STAGE, where=where, found=str(gap),
                         wanted="equality" if exact else f"a difference of at most {RTOL:g} of that",
                         hint="please report the module: its export is wrong or depends on chance")
    return not gap.blind


def _untraceable(module: Any, error: Exception) -> EdgecError:
    """E0102 with the place in the user's code, which torch gives in the traceback or in its message."""
    import torch

    library = str(Path(torch.__file__).resolve().parent)
    own = str(Path(__file__).resolve().parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__)
              if f.filename.endswith(".py") and not str(Path(f.filename).resolve()).startswith((library, own))]
    where = f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    named = _RAISED_AT.search(str(error))
    if named:
        where = f"{named[1]}:{named[2]} ({named[3].strip()})"
    root: BaseException = error  # torch.onnx wraps the reason in advice to PyTorch's own developers
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [_ANSI.sub("", line).strip() for line in str(root).splitlines()]
    shown = [ln for ln in lines if ln and not ln.startswith(_BOILERPLATE)][:2]
    hint = "make branches and sizes independent of the input's values (torch.where, torch.cond), or export a part"
    if any(word in str(error) for word in ("Constraints violated", "specialized")):
        hint = "narrow or drop the dynamic range, or use sizes from the input's shape instead of constants"
    if "No ONNX function found" in str(error):
        hint = "translate the operator with custom_ops={'namespace::name': FUNCTION}, or replace it in the model's code"
    where = where or (type(module).__name__ if module is not None else "torch.onnx")
    return EdgecError("E0102", stage=STAGE, where=where,
                      found=f"{type(root).__name__}: {' '.join(shown)[:400]}", wanted="one graph", hint=hint)


def _user_line(error: BaseException, path: Path) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).name == path.name:
            return f"{frame.filename}:{frame.lineno} ({frame.line})"
    return ""


def _state_sha256(module: Any) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        torch = _torch()
        data = tensor.detach().contiguous().cpu()
        digest.update(f"{key} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's remarks away: stdout belongs to our data, and they are not about the user's model."""
    loggers = [logging.getLogger(n) for n in _TALKERS]
    levels = [x.level for x in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise missing_extra("torch", "torch", STAGE) from e
    return torch
