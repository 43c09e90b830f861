"""Runs a saved .mlpackage in NumPy: the specification and weight.bin are read anew, operators are computed in float64.

It knows nothing of how the package was made. What it shows is that the program means what the ONNX graph means; that
Core ML computes it so, only a device of Apple can show. float16 is only how numbers are stored: sums are not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from coremltools.proto import MIL_pb2, Model_pb2

Array = npt.NDArray[Any]
Values = dict[str, Any]

_BITS = {MIL_pb2.UINT1: 1, MIL_pb2.UINT2: 2, MIL_pb2.UINT3: 3, MIL_pb2.UINT4: 4, MIL_pb2.UINT6: 6, MIL_pb2.INT4: 4}
_DTYPES = {
    MIL_pb2.FLOAT16: np.float16, MIL_pb2.FLOAT32: np.float32, MIL_pb2.INT8: np.int8, MIL_pb2.UINT8: np.uint8,
    MIL_pb2.INT16: np.int16, MIL_pb2.UINT16: np.uint16, MIL_pb2.INT32: np.int32, MIL_pb2.UINT32: np.uint32,
    MIL_pb2.BOOL: np.bool_,
}


class Package:
    """A package that can be run. ops: the operators in it."""

    def __init__(self, path: Path) -> None:
        inside = path / "Data" / "com.apple.CoreML"
        self.spec = Model_pb2.Model()
        self.spec.ParseFromString((inside / "model.mlmodel").read_bytes())
        weights = inside / "weights" / "weight.bin"
        self.blob = weights.read_bytes() if weights.exists() else b""
        function = self.spec.mlProgram.functions["main"]
        self.block = function.block_specializations[function.opset]
        self.ops = {op.type for op in self.block.operations} - {"const"}

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Output name -> value. Floats come and go as they are; everything between is float64."""
        values: Values = {name: _wide(np.asarray(array)) for name, array in feeds.items()}
        for op in self.block.operations:
            outs = [self._value(op.attributes["val"])] if op.type == "const" else _outputs(self._call(op, values))
            for named, value in zip(op.outputs, outs, strict=True):
                _check_type(named, value, op.type)
                assert named.name not in values, f"two values are called {named.name}"
                values[named.name] = value
        return {feature.name: values[feature.name] for feature in self.spec.description.output}

    def _call(self, op: Any, values: Values) -> Any:
        given: dict[str, Any] = {}
        for name, argument in op.inputs.items():
            parts = [values[b.name] if b.WhichOneof("binding") == "name" else self._value(b.value)
                     for b in argument.arguments]
            given[name] = parts if name == "values" else parts[0]
        # Before iOS 18 the constants of a constexpr operator are attributes.
        given |= {name: self._value(value) for name, value in op.attributes.items() if name != "name"}
        return OPS[op.type](given)

    def _value(self, value: Any) -> Any:
        kind = value.type.tensorType
        shape = tuple(d.constant.size for d in kind.dimensions)
        if value.WhichOneof("value") == "blobFileValue":
            return _wide(self._stored(value.blobFileValue.offset, kind.dataType, shape))
        tensor = value.immediateValue.tensor
        held = tensor.WhichOneof("value")
        if held == "strings":
            return tensor.strings.values[0]
        if held == "bytes":
            return _wide(np.frombuffer(tensor.bytes.values, _DTYPES[kind.dataType]).reshape(shape))
        numbers = np.array(getattr(tensor, held).values, _DTYPES[kind.dataType]).reshape(shape)
        return _wide(numbers)

    def _stored(self, offset: int, kind: int, shape: tuple[int, ...]) -> Array:
        """The blob whose record of 64 bytes is at `offset`: sentinel, type, bytes, where they are, unused bits."""
        sentinel, _ = np.frombuffer(self.blob, "<u4", 2, offset)
        size, at = (int(v) for v in np.frombuffer(self.blob, "<u8", 2, offset + 8))
        assert sentinel == 0xDEADBEEF
        count = math.prod(shape)
        raw = np.frombuffer(self.blob, np.uint8, size, at)
        if kind not in _BITS:
            return raw.view(_DTYPES[kind]).reshape(shape)
        bits = _BITS[kind]
        planes = np.unpackbits(raw, bitorder="little")[: count * bits].reshape(count, bits)
        codes = np.zeros(count, np.int16)
        for j in range(bits):
            codes |= planes[:, j].astype(np.int16) << j
        if kind == MIL_pb2.INT4:
            codes = (codes ^ 8) - 8
        return codes.reshape(shape)


def _wide(array: Array) -> Array:
    """Floats as float64, integers as int64."""
    if array.dtype == np.bool_:
        return array
    return array.astype(np.float64 if np.issubdtype(array.dtype, np.floating) else np.int64)


def _outputs(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _check_type(named: Any, value: Any, op: str) -> None:
    """What the program declares of an output holds: rank, known sizes, kind of element."""
    if isinstance(value, str):
        return
    kind = named.type.tensorType
    found = np.asarray(value)
    assert found.ndim == kind.rank, f"{op} {named.name}: {found.shape}, declared rank {kind.rank}"
    for size, dim in zip(found.shape, kind.dimensions, strict=False):
        known = dim.WhichOneof("dimension") == "constant"
        assert not known or dim.constant.size == size, f"{op} {named.name}: {found.shape}"
    declared = _DTYPES.get(kind.dataType, np.int64)
    group = "b" if declared is np.bool_ else "f" if np.issubdtype(declared, np.floating) else "i"
    assert found.dtype.kind == group, f"{op} {named.name}: {found.dtype} for {declared}"


# -- operators


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (np.tanh(0.5 * x) + 1.0)


def _gelu(g: Values) -> Array:
    x = g["x"]
    if g.get("mode") == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x * math.sqrt(0.5)))


def _softmax(g: Values) -> Array:
    x, axis = g["x"], int(g["axis"])
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def _reduce(function: Callable[..., Any]) -> Callable[[Values], Array]:
    def run(g: Values) -> Array:
        axes = tuple(int(a) for a in g["axes"]) if "axes" in g else None
        return np.asarray(function(g["x"], axis=axes, keepdims=bool(g.get("keep_dims", False))))

    return run


def _arg(function: Callable[..., Any]) -> Callable[[Values], Array]:
    def run(g: Values) -> Array:
        found = function(g["x"], axis=int(g["axis"]))
        return np.asarray(np.expand_dims(found, int(g["axis"])) if g.get("keep_dims", False) else found)

    return run


def _pads(g: Values, sizes: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...],
          dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    kind = g["pad_type"]
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "custom":
        return [(int(a), int(b)) for a, b in np.asarray(g["pad"]).reshape(-1, 2)]
    pads = []
    for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        low = (total + 1) // 2 if kind == "same_lower" else total // 2
        pads.append((low, total - low))
    return pads


def _windows(x: Array, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]) -> Array:
    """[N, C, *out, *kernel] of a padded image [N, C, *in]."""
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    dims = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, dims)
    picks = (slice(None), slice(None), *(slice(None, None, s) for s in strides),
             *(slice(None, None, d) for d in dilations))
    return np.asarray(view[picks])


def _conv(g: Values) -> Array:
    x, w, groups = g["x"], g["weight"], int(g.get("groups", 1))
    kernel, dims = w.shape[2:], w.ndim - 2
    strides, dilations = (tuple(int(v) for v in g.get(key, [1] * dims)) for key in ("strides", "dilations"))
    x = np.pad(x, [(0, 0), (0, 0), *_pads(g, x.shape[2:], kernel, strides, dilations)])
    parts = []
    for i in range(groups):
        inner = x[:, i * w.shape[1] : (i + 1) * w.shape[1]]
        rows = w[i * w.shape[0] // groups : (i + 1) * w.shape[0] // groups]
        windows = _windows(inner, kernel, strides, dilations)
        axes = (1, *range(2 + dims, 2 + 2 * dims))
        parts.append(np.moveaxis(np.tensordot(windows, rows, (axes, range(1, 2 + dims))), -1, 1))
    y = np.concatenate(parts, 1)
    return y if "bias" not in g else y + g["bias"].reshape(-1, *[1] * dims)


def _pool(g: Values, largest: bool) -> Array:
    x, kernel = g["x"], tuple(int(k) for k in g["kernel_sizes"])
    ones, strides = (1,) * len(kernel), tuple(int(s) for s in g.get("strides", (1,) * len(kernel)))
    assert not g.get("ceil_mode", False)
    pads = [(0, 0), (0, 0), *_pads(g, x.shape[2:], kernel, strides, ones)]
    axes = tuple(range(x.ndim, x.ndim + len(kernel)))
    windows = _windows(np.pad(x, pads, constant_values=-np.inf if largest else 0.0), kernel, strides, ones)
    if largest:
        return np.asarray(windows.max(axes))
    if not g.get("exclude_padding_from_average", False):
        return np.asarray(windows.mean(axes))
    counts = _windows(np.pad(np.ones_like(x), pads), kernel, strides, ones).sum(axes)
    return np.asarray(windows.sum(axes) / counts)


def _bilinear(g: Values) -> Array:
    x, corners = g["x"], g["sampling_mode"] == "STRICT_ALIGN_CORNERS"
    for axis, size in ((2, int(g["target_size_height"])), (3, int(g["target_size_width"]))):
        n = x.shape[axis]
        at = np.arange(size) * ((n - 1) / max(size - 1, 1)) if corners else (np.arange(size) + 0.5) * n / size - 0.5
        at = np.clip(at, 0, n - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, n - 1), axis) * share
    return np.asarray(x)


def _pad(g: Values) -> Array:
    x, pairs = g["x"], [(int(a), int(b)) for a, b in np.asarray(g["pad"]).reshape(-1, 2)]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}[g.get("mode", "constant")]
    more = {"constant_values": g.get("constant_val", 0)} if mode == "constant" else {}
    return np.pad(x, pairs, mode=mode, **more)


def _linear(g: Values) -> Array:
    y = g["x"] @ g["weight"].T
    return np.asarray(y + g["bias"] if "bias" in g else y)


def _matmul(g: Values) -> Array:
    x = np.swapaxes(g["x"], -1, -2) if g.get("transpose_x", False) else g["x"]
    y = np.swapaxes(g["y"], -1, -2) if g.get("transpose_y", False) else g["y"]
    return np.asarray(x @ y)


def _layer_norm(g: Values) -> Array:
    x, axes = g["x"], tuple(int(a) for a in g["axes"])
    center = x - x.mean(axes, keepdims=True)
    y = center / np.sqrt((center**2).mean(axes, keepdims=True) + g["epsilon"])
    y = y * g["gamma"] if "gamma" in g else y
    return np.asarray(y + g["beta"] if "beta" in g else y)


def _slice(g: Values) -> Array:
    x, rank = g["x"], g["x"].ndim
    steps = g.get("stride", np.ones(rank, int))
    masks = [g.get(key, np.zeros(rank, bool)) for key in ("begin_mask", "end_mask", "squeeze_mask")]
    picks: list[Any] = []
    for i in range(rank):
        if masks[2][i]:
            picks.append(int(g["begin"][i]))
            continue
        picks.append(slice(None if masks[0][i] else int(g["begin"][i]), None if masks[1][i] else int(g["end"][i]),
                           int(steps[i])))
    return np.asarray(x[tuple(picks)])


def _reshape(g: Values) -> Array:
    shape = [g["x"].shape[i] if d == 0 else int(d) for i, d in enumerate(g["shape"])]
    return np.asarray(g["x"].reshape(shape))


def _squeeze(g: Values) -> Array:
    return np.asarray(np.squeeze(g["x"], tuple(int(a) for a in g["axes"]) if "axes" in g else None))


def _split(g: Values) -> list[Array]:
    return list(np.split(g["x"], np.cumsum(g["split_sizes"])[:-1], int(g["axis"])))


def _cast(g: Values) -> Array:
    kind = {"bool": np.bool_, "int32": np.int64}.get(g["dtype"], np.float64)
    return np.asarray(g["x"]).astype(kind)


def _top_k(g: Values) -> list[Array]:
    x, k, axis = g["x"], int(g["k"]), int(g["axis"])
    order = np.argsort(x if g.get("ascending", False) else -x, axis, kind="stable").take(np.arange(k), axis)
    return [np.take_along_axis(x, order, axis), order]


def _spread(parameters: Array, shape: tuple[int, ...]) -> Array:
    """Parameters of blocks, repeated to the shape of the values."""
    for axis, (n, size) in enumerate(zip(parameters.shape, shape, strict=True)):
        assert size % n == 0
        parameters = parameters.repeat(size // n, axis)
    return parameters


def _shift_scale(g: Values) -> Array:
    data, scale = g["data"], _spread(g["scale"], g["data"].shape)
    return np.asarray(scale * (data - _spread(g["offset"], data.shape) if "offset" in g else data))


def _affine(g: Values) -> Array:
    data, axis = g["quantized_data"], int(g["axis"])
    form = [-1 if i == axis else 1 for i in range(data.ndim)]
    return np.asarray((data - g["zero_point"].reshape(form)) * g["scale"].reshape(form))


def _lookup(g: Values) -> Array:
    indices, lut = g["indices"], g["lut"]
    if "shape" in g:
        bits = int(math.log2(len(lut)))
        count = math.prod(int(d) for d in g["shape"])
        flags = np.unpackbits(indices.astype(np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
        return np.asarray(lut[flags @ (1 << np.arange(bits))].reshape([int(d) for d in g["shape"]]))
    vector, groups = lut.shape[-1], lut.shape[: indices.ndim]
    at = tuple(np.arange(size).reshape([-1 if i == axis else 1 for i in range(indices.ndim)]) // (size // n)
               for axis, (size, n) in enumerate(zip(indices.shape, groups, strict=True)))
    values = lut[(*at, indices)]
    if vector == 1:
        return np.asarray(values[..., 0])
    axis = int(g["vector_axis"])
    shape = [size * vector if i == axis else size for i, size in enumerate(indices.shape)]
    return np.asarray(np.moveaxis(values, -1, axis + 1).reshape(shape))


def _one(function: Callable[[Array], Any]) -> Callable[[Values], Array]:
    return lambda g: np.asarray(function(g["x"]))


def _counted(places: Array) -> Array:
    assert (np.asarray(places) >= 0).all(), "Core ML does not count places from the end"
    return places


def _two(function: Callable[[Array, Array], Any]) -> Callable[[Values], Array]:
    return lambda g: np.asarray(function(g["x"], g["y"]))


OPS: dict[str, Callable[[Values], Any]] = {
    "abs": _one(np.abs), "acos": _one(np.arccos), "asin": _one(np.arcsin), "atan": _one(np.arctan),
    "ceil": _one(np.ceil), "cos": _one(np.cos), "cosh": _one(np.cosh), "erf": _one(_erf), "exp": _one(np.exp),
    "floor": _one(np.floor), "identity": _one(np.array), "logical_not": _one(np.logical_not),
    "relu": _one(lambda x: np.maximum(x, 0)), "round": _one(np.round), "sigmoid": _one(_sigmoid),
    "sign": _one(np.sign), "sin": _one(np.sin), "sinh": _one(np.sinh), "softplus": _one(lambda x: np.logaddexp(x, 0)),
    "softsign": _one(lambda x: x / (1 + np.abs(x))), "sqrt": _one(np.sqrt), "tan": _one(np.tan),
    "tanh": _one(np.tanh), "silu": _one(lambda x: x * _sigmoid(x)),
    "log": lambda g: np.log(g["x"] + g["epsilon"]), "rsqrt": lambda g: 1 / np.sqrt(g["x"] + g["epsilon"]),
    "add": _two(np.add), "sub": _two(np.subtract), "mul": _two(np.multiply), "real_div": _two(np.divide),
    "floor_div": _two(np.floor_divide), "maximum": _two(np.maximum), "minimum": _two(np.minimum), "mod": _two(np.mod),
    "pow": _two(np.power), "logical_and": _two(np.logical_and), "logical_or": _two(np.logical_or),
    "logical_xor": _two(np.logical_xor), "equal": _two(np.equal), "not_equal": _two(np.not_equal),
    "greater": _two(np.greater), "greater_equal": _two(np.greater_equal), "less": _two(np.less),
    "less_equal": _two(np.less_equal),
    "cast": _cast, "clip": lambda g: np.clip(g["x"], g["alpha"], g["beta"]),
    "elu": lambda g: np.where(g["x"] > 0, g["x"], g["alpha"] * np.expm1(np.minimum(g["x"], 0))), "gelu": _gelu,
    "sigmoid_hard": lambda g: np.clip(g["alpha"] * g["x"] + g["beta"], 0, 1),
    "leaky_relu": lambda g: np.where(g["x"] > 0, g["x"], g["alpha"] * g["x"]),
    "select": lambda g: np.where(g["cond"], g["a"], g["b"]),
    "reduce_max": _reduce(np.max), "reduce_mean": _reduce(np.mean), "reduce_min": _reduce(np.min),
    "reduce_prod": _reduce(np.prod), "reduce_sum": _reduce(np.sum), "reduce_argmax": _arg(np.argmax),
    "reduce_argmin": _arg(np.argmin), "softmax": _softmax, "linear": _linear, "matmul": _matmul, "conv": _conv,
    "avg_pool": lambda g: _pool(g, largest=False), "max_pool": lambda g: _pool(g, largest=True),
    "upsample_nearest_neighbor": lambda g: g["x"].repeat(int(g["scale_factor_height"]), 2).repeat(
        int(g["scale_factor_width"]), 3),
    "resize_bilinear": _bilinear, "pad": _pad, "shape": lambda g: np.array(g["x"].shape, np.int64),
    "slice_by_index": _slice, "reshape": _reshape,
    "transpose": lambda g: g["x"].transpose([int(p) for p in g["perm"]]), "squeeze": _squeeze,
    "expand_dims": lambda g: np.expand_dims(g["x"], tuple(int(a) for a in g["axes"])),
    "concat": lambda g: np.concatenate(g["values"], int(g["axis"])), "split": _split,
    "tile": lambda g: np.tile(g["x"], [int(r) for r in g["reps"]]),
    "fill": lambda g: np.full([int(d) for d in g["shape"]], g.get("value", 0.0)),
    "gather": lambda g: np.take(g["x"], _counted(g["indices"]), int(g.get("axis", 0))),
    "range_1d": lambda g: np.arange(g["start"], g["end"], g["step"]), "topk": _top_k, "layer_norm": _layer_norm,
    "constexpr_lut_to_dense": _lookup, "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_affine_dequantize": _affine,
}
