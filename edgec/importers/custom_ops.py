"""The one table through which operators of torch.library become ONNX.

    load(module, x, custom_ops={"mylib::swish": "Swish", torch.ops.mylib.norm: norm})

    def norm(x, weight, eps):                 # the operator's arguments, in order; `op` is onnxscript's opset
        return op.RMSNormalization(x, weight, epsilon=eps)

Operators of ours (edgec/zoo/ops.py) are known without being named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from edgec.errors import EdgecError
from edgec.ir.ops import DOMAIN, OPS

STAGE = "import"
# torch.ops.edgec.NAME -> row of edgec/ir/ops.py; its arguments are the row's inputs and attributes, in this order.
OWN = {"selective_scan": "SelectiveScan", "causal_conv1d": "CausalConv1d", "dynamic_depthwise": "DynamicDepthwise"}


def translations(custom_ops: Mapping[Any, Any], opset: int) -> dict[Any, Callable[..., Any]]:
    """`custom_ops`, and our own that are registered, as torch.onnx wants it: overload -> function that builds ONNX.

    Keys: "namespace::name", "namespace::name.overload", torch.ops.namespace.name (all its overloads), one overload, or
    what torch.library.custom_op returned. Values: an onnxscript function or a Python function that calls onnxscript
    operators; or the name of a standard operator, which takes the tensors in order.
    Raises EdgecError E0002 for an operator that is not registered and for a translation that is neither.
    """
    import torch

    registered = getattr(torch.ops, DOMAIN)
    table = {overload: _own(row) for name, row in OWN.items() if hasattr(registered, name)
             for overload in _overloads(f"{DOMAIN}::{name}")}
    for key, value in custom_ops.items():
        translation = _named(value, opset) if isinstance(value, str) else value
        if not callable(translation):
            raise EdgecError("E0002", stage=STAGE, where=f"custom_ops[{key!r}]", found=type(value).__name__,
                             wanted="a function, or the name of a standard ONNX operator")
        table.update(dict.fromkeys(_overloads(key), translation))
    return table


def _overloads(key: Any) -> list[Any]:
    import torch

    found = key
    if isinstance(key, str):
        namespace, _, rest = key.partition("::")
        name, _, overload = rest.partition(".")
        found = getattr(getattr(torch.ops, namespace, None), name, None) if namespace and name else None
        found = getattr(found, overload, None) if overload and found is not None else found
    found = getattr(found, "_opoverload", found)
    if isinstance(found, torch._ops.OpOverload):
        return [found]
    if isinstance(found, torch._ops.OpOverloadPacket):
        names: list[str] = found.overloads()  # type: ignore[no-untyped-call]
        return [getattr(found, name) for name in names]
    raise EdgecError("E0002", stage=STAGE, where=f"custom_ops[{key!r}]", found="no such operator of torch.library",
                     wanted="namespace::name of a registered operator",
                     hint="import the module that registers it before the model is compiled")


def _named(name: str, opset: int) -> Callable[..., Any]:
    import onnx.defs
    import onnxscript

    if not onnx.defs.has(name, opset):
        raise EdgecError("E0002", stage=STAGE, where="custom_ops", found=repr(name),
                         wanted=f"a standard ONNX operator of opset {opset}, or a function")
    operator = getattr(onnxscript.values.Opset("", opset), name)

    def translate(*tensors: Any) -> Any:
        return operator(*tensors)

    return _named_as(translate, name, inspect.signature(translate))


def _own(name: str) -> Callable[..., Any]:
    import onnx.defs
    import onnxscript

    row, schema = OPS[name], onnx.defs.OpSchema
    integer = schema.AttrType.INT
    declared = schema(
        name, DOMAIN, 1, type_constraints=[("T", ["tensor(float)"], "what the kernels compute in")],
        inputs=[schema.FormalParameter(i, "T") for i in row.inputs],
        outputs=[schema.FormalParameter(o, "T") for o in row.outputs],
        attributes=[schema.Attribute(a, integer, required=default is None) for a, default in row.attributes.items()])
    operator = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), name, declared)

    def translate(*arguments: Any) -> Any:
        tensors, rest = arguments[: len(row.inputs)], arguments[len(row.inputs) :]
        return operator(*tensors, **{a: int(v) for a, v in zip(row.attributes, rest, strict=True)})

    return _named_as(translate, name, inspect.Signature(
        [inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in (*row.inputs, *row.attributes)]))


def _named_as(function: Callable[..., Any], name: str, signature: inspect.Signature) -> Callable[..., Any]:
    """torch.onnx names the call after the function and looks at its parameters."""
    function.__name__, function.__signature__ = name, signature  # type: ignore[attr-defined]
    return function
