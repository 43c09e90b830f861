"""Runs a graph of any stage in onnxruntime, on inputs made from what is known about the model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.model import Array, add_initializer, const_of, dims_of, graph_of, input_of, is_op, required, walk
from edgec.ir.ops import attach_bodies
from edgec.ir.weights import total_bytes

# Above this the protobuf would come near its limit of 2 GB, and one copy in memory is enough.
_INLINE_BYTES = 64 << 20
_TOKENS, _PAST, _CONTEXT = 5, 3, 16
_CODES = 1 << 24  # values of a scale


def runnable(model: ir.Model) -> ir.Model:
    """A copy of the graph, sharing the tensors, with the bodies of `edgec::` operators attached."""
    return attach_bodies(model.clone())


def save(model: ir.Model, path: Path) -> None:
    """Writes a stage as an .onnx file other tools open; big or mapped weights go to `<name>.data` beside it.

    Raises EdgecError (EDGEC-E0004) when the file cannot be written.
    """
    copy = runnable(model)
    # Mapped weights would be written as references to a file that is not beside the new one.
    apart = total_bytes(copy) > _INLINE_BYTES or any(
        isinstance(v.const_value, ir.ExternalTensor) for v in copy.graph.initializers.values()
    )
    data = f"{path.name}.data" if apart else None
    try:
        ir.save(copy, path, external_data=data)
    except OSError as e:
        raise EdgecError("E0004", stage="dump", where=str(path), found=str(e), wanted="a writable path") from e


class Runner:
    """An onnxruntime session of one stage. The file lives as long as the object; use it in a `with` block.

    threads: of one run, 0: all cores; sums may be rounded differently for it. Runs may go on in several threads at
    once. integers: what lies between roundings to 8 bits is computed in integers, exactly, where onnxruntime can; in
    float32 a sum may round to the next code, and after many layers no code is the same any more.
    """

    def __init__(self, model: ir.Model, stage: str, threads: int = 0, integers: bool = False) -> None:
        import onnxruntime as ort

        self.stage = stage
        self.input_names = [v.name or "" for v in model.graph.inputs]
        self.output_names = [v.name or "" for v in model.graph.outputs]
        self._folder = tempfile.TemporaryDirectory(prefix="edgec-")
        path = Path(self._folder.name) / "model.onnx"
        save(_unsigned(model) if integers else model, path)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if not integers:
            # Its own rewriting would hide ours, and costs more than one run of the plain graph.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exception classes share no public base
            raise EdgecError("E0202", stage=stage, where="onnxruntime", found=str(e), wanted="a loadable graph") from e

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output name -> value. Raises EdgecError (EDGEC-E0202) when onnxruntime cannot run the graph."""
        try:
            values = self._session.run(self.output_names, {k: feeds[k] for k in self.input_names})
        except Exception as e:  # as above
            raise EdgecError("E0202", stage=self.stage, where="onnxruntime", found=str(e), wanted="a run") from e
        return dict(zip(self.output_names, (np.asarray(v) for v in values), strict=True))

    def close(self) -> None:
        self._folder.cleanup()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _unsigned(model: ir.Model) -> ir.Model:
    """A copy whose int8 codes are the uint8 ones of the same numbers: weights, and activations that only
    DequantizeLinear reads. Of uint8 both ways onnxruntime's sums are exact; of two signs they are made of sums in 16
    bits, which saturate, on CPUs with AVX2 and without VNNI."""
    copy = model.clone()
    turned: dict[ir.Value, ir.Value] = {}
    for node in list(walk(copy)):
        codes = node.inputs[0] if is_op(node, "DequantizeLinear") else None
        if codes is not None and codes.dtype is ir.DataType.INT8 and codes.const_value is not None and _fixed(node):
            if codes not in turned:
                turned[codes] = _turned(node, codes.name or "codes", codes.const_value.numpy())
            node.replace_input_with(0, turned[codes])
            _turn_zero(node)
        elif is_op(node, "QuantizeLinear") and node.outputs[0].dtype is ir.DataType.INT8:
            coded = node.outputs[0]
            readers = [use.node for use in coded.uses()]
            alike = all(is_op(each, "QuantizeLinear", "DequantizeLinear") and _fixed(each) for each in (node, *readers))
            if alike and not coded.is_graph_output():
                for each in (node, *readers):
                    _turn_zero(each)
                node.attributes.pop("output_dtype", None)
                coded.type = ir.TensorType(ir.DataType.UINT8)
    return copy


def _fixed(node: ir.Node) -> bool:
    """Whether the scale and the zero point, if there is one, are constants."""
    zero, scale = input_of(node, 2), required(node, 1)
    return scale.const_value is not None and (zero is None or zero.const_value is not None)


def _turn_zero(node: ir.Node) -> None:
    zero, scale = const_of(input_of(node, 2), _CODES), const_of(required(node, 1), _CODES)
    assert scale is not None  # _fixed
    codes = np.broadcast_to(np.int8(0) if zero is None else zero, scale.shape)
    node.resize_inputs(3)
    node.replace_input_with(2, _turned(node, f"{node.outputs[0].name}.zero", codes))


def _turned(node: ir.Node, name: str, codes: Array) -> ir.Value:
    data = (codes.astype(np.int16) + 128).astype(np.uint8)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(data.shape),
                     const_value=ir.tensor(data))
    add_initializer(graph_of(node), value)
    return value


def random_inputs(model: ir.Model, seed: int = 0) -> dict[str, Array]:
    """One value per graph input, consistent with ModelInfo: symbols bound once, token ids below the vocabulary.

    Generic models: a symbol takes the middle of its declared range. Language models: batch 1, 5 new tokens after 3.
    """
    info = info_of(model)
    rng = np.random.default_rng(seed)
    return {
        value.name or "": _random(value, info, rng) for value in model.graph.inputs if not value.is_initializer()
    }


def _random(value: ir.Value, info: ModelInfo, rng: np.random.Generator) -> Array:
    name = value.name or ""
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    shape = tuple(_size(dim, info) for dim in dims_of(value) or ())
    if name == "position_ids":
        return np.broadcast_to(np.arange(_PAST, _PAST + shape[-1], dtype=dtype), shape).copy()
    if name == "attention_mask":
        return np.ones(shape, dtype)
    if name == "past_len":
        return np.full(shape, _PAST, dtype)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, info.vocab_size or 2, shape).astype(dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    return rng.standard_normal(shape).astype(dtype)


def _size(dim: int | str | None, info: ModelInfo) -> int:
    if isinstance(dim, int):
        return dim
    text = dim or "?"
    if "+" in text:
        return sum(_size(part.strip(), info) for part in text.split("+"))
    if re.fullmatch(r"\d+", text):
        return int(text)
    if text in info.dynamic:
        low, high = info.dynamic[text]
        return max(low, min((low + high) // 2, low + 4))
    if info.task == "causal-lm":
        if "total" in text:
            return _PAST + _TOKENS
        if "past" in text:
            return _PAST
        if "context" in text or "max" in text:
            return _CONTEXT
        return 1 if "batch" in text else _TOKENS
    return 2
