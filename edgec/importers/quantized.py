"""Quantized Hugging Face checkpoints: GPTQ, AWQ and compressed-tensors layers as packed matrices.

Sources: the packing code of AutoGPTQ (qweight rows hold 32 / bits rows of codes each, zeros are stored minus one in
format "gptq" and plain in "gptq_v2", g_idx is the group of each input channel), AutoAWQ (eight 4-bit columns per word
in the order 0 2 4 6 1 3 5 7) and compressed-tensors (pack-quantized: codes plus half their range, along the columns).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.errors import EdgecError
from edgec.importers.packed import Blocks, Packed
from edgec.importers.stored import Dense, Stored

STAGE = "import"
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_words(words: Array, bits: int, axis: int, count: int) -> Array:
    """Unsigned codes of `bits` (2, 3, 4, 8) out of 32-bit words, lowest bits first, `count` of them along `axis`.

    The words along `axis` are one stream of bits, so 3-bit codes may cross from one word to the next.
    """
    words = np.moveaxis(np.ascontiguousarray(words), axis, -1).astype("<u4")
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = ((words[..., None] >> shifts) & np.uint32((1 << bits) - 1)).astype(np.uint8)
        codes = codes.reshape(*words.shape[:-1], -1)
    else:
        stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
        stream = stream[..., : stream.shape[-1] // bits * bits].reshape(*words.shape[:-1], -1, bits)
        codes = np.packbits(stream, axis=-1, bitorder="little")[..., 0]
    return np.ascontiguousarray(np.moveaxis(codes[..., :count], -1, axis))


class _Layer:
    """The tensors of one quantized linear, with their shapes checked before anything is computed from them."""

    def __init__(self, name: str, tensors: Mapping[str, Stored]) -> None:
        self.name, self._tensors = name, tensors

    def get(self, part: str) -> Dense | None:
        tensor = self._tensors.get(f"{self.name}.{part}")
        return tensor if isinstance(tensor, Dense) else None

    def need(self, part: str, shape: tuple[int | None, ...] | None = None) -> Dense:
        tensor = self.get(part)
        fits = tensor is not None and (shape is None or (len(shape) == len(tensor.shape) and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )))
        if tensor is None or not fits:
            raise self.wrong(part, "missing" if tensor is None else str(list(tensor.shape)), str(shape or "a tensor"))
        return tensor

    def wrong(self, part: str, found: str, wanted: str) -> EdgecError:
        return EdgecError("E0101", stage=STAGE, where=f"{self.name}.{part}", found=found, wanted=wanted,
                          hint="the checkpoint does not fit its quantization_config")


def _code_type(bits: int, largest_zero: int) -> ir.DataType:
    """4-bit codes where zero points fit, too."""
    return ir.DataType.UINT4 if bits <= 4 and largest_zero < 16 else ir.DataType.UINT8


def _floats(tensor: Dense, transpose: bool = False) -> Callable[[], Array]:
    return lambda: np.ascontiguousarray(tensor.read().T if transpose else tensor.read())


def _gptq(layer: _Layer, settings: Mapping[str, Any]) -> Packed:
    bits = int(settings.get("bits", 0))
    if bits not in (2, 3, 4, 8):
        raise layer.wrong("qweight", f"{bits} bits", "2, 3, 4 or 8 bits")
    qweight, scales = layer.need("qweight", (None, None)), layer.need("scales", (None, None))
    groups, n = scales.shape
    k = qweight.shape[0] * 32 // bits
    size = int(settings.get("group_size", -1))
    block = k if size <= 0 else size
    if qweight.shape[1] != n or -(-k // block) != groups:
        raise layer.wrong("scales", str([groups, n]), f"{[-(-k // block), qweight.shape[1]]} for groups of {block}")
    qzeros = layer.need("qzeros", (groups, -(-n * bits // 32)))
    plus = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    # Small: one value per group. A stored zero of all ones means one more than the codes can hold.
    zeros = np.ascontiguousarray((unpack_words(qzeros.raw(), bits, 1, n).astype(np.int32) + plus).T)
    kind = _code_type(bits, int(zeros.max(initial=0)))
    order = _group_order(layer, k, block)

    def codes() -> Array:
        values = unpack_words(qweight.raw(), bits, 0, k).T
        return values if order is None else values[:, order]

    return Packed(Blocks((n, k), codes, kind, Blocks((n, groups), _floats(scales, transpose=True)),
                         Blocks((n, groups), lambda: zeros.astype(np.uint8), kind), block), order=order)


def _group_order(layer: _Layer, k: int, block: int) -> Array | None:
    """The columns group by group, where activation order has scattered the groups; None when they lie in order."""
    index = layer.get("g_idx") or layer.get("weight_g_idx")
    if index is None:
        return None
    group = layer.need("g_idx" if layer.get("g_idx") else "weight_g_idx", (k,)).raw().astype(np.int64)
    if group.min(initial=0) < 0:
        return None  # compressed-tensors writes -1 for "not used"
    if np.array_equal(group, np.arange(k) // block):
        return None
    order = np.argsort(group, kind="stable")
    if not np.array_equal(group[order], np.arange(k) // block):
        raise layer.wrong("g_idx", "groups of unequal size", f"groups of {block} columns")
    return order


def _awq(layer: _Layer, settings: Mapping[str, Any]) -> Packed:
    bits, version = int(settings.get("bits", 0)), str(settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise layer.wrong("qweight", f"{bits} bits, version {version}", "4 bits, version gemm")
    qweight, scales = layer.need("qweight", (None, None)), layer.need("scales", (None, None))
    groups, n = scales.shape
    k = qweight.shape[0]
    size = int(settings.get("group_size", -1))
    block = k if size <= 0 else size
    if qweight.shape[1] * 8 != n or -(-k // block) != groups:
        raise layer.wrong("scales", str([groups, n]), f"{[-(-k // block), qweight.shape[1] * 8]}")
    qzeros = layer.need("qzeros", (groups, n // 8))

    def columns(tensor: Dense) -> Array:
        straight = unpack_words(tensor.raw(), 4, 1, n).reshape(-1, n // 8, 8)
        return np.ascontiguousarray(straight[..., np.argsort(_AWQ_ORDER)].reshape(-1, n).T)

    kind = ir.DataType.UINT4
    return Packed(Blocks((n, k), lambda: columns(qweight), kind, Blocks((n, groups), _floats(scales, transpose=True)),
                         Blocks((n, groups), lambda: columns(qzeros), kind), block))


def _compressed(layer: _Layer, settings: Mapping[str, Any]) -> Packed:
    weights = _scheme(layer, settings)
    bits = int(weights.get("num_bits", 0))
    scales = layer.need("weight_scale")
    if layer.get("weight_packed") is not None:
        if bits not in (4, 8):
            raise layer.wrong("weight_packed", f"{bits} bits", "4 or 8 bits")
        words = layer.need("weight_packed", (None, None))
        n, k = (int(d) for d in layer.need("weight_shape", (2,)).raw())
        if words.shape != (n, -(-k * bits // 32)):
            raise layer.wrong("weight_packed", str(list(words.shape)), f"{[n, -(-k * bits // 32)]}")
        half = 1 << (bits - 1)
        kind = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8

        def signed(tensor: Dense, axis: int, count: int) -> Array:
            return (unpack_words(tensor.raw(), bits, axis, count).astype(np.int16) - half).astype(np.int8)

        def codes() -> Array:
            return signed(words, 1, k)
    else:
        plain = layer.need("weight", (None, None))
        (n, k), kind = plain.shape, ir.DataType.INT8

        def codes() -> Array:
            return plain.raw()

        def signed(tensor: Dense, axis: int, count: int) -> Array:
            return tensor.raw()

    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    block = int(weights.get("group_size") or 0) if weights.get("strategy") == "group" else k
    per_tensor = scales.shape in ((), (1,))
    if block < 1 or -(-k // block) != groups or not (per_tensor or scales.shape in ((n, groups), (n,))):
        raise layer.wrong("weight_scale", str(list(scales.shape)), f"{[n, -(-k // max(block, 1))]}")

    def spread(values: Array) -> Array:
        return np.ascontiguousarray(np.broadcast_to(values.reshape(-1, groups), (n, groups)))

    order = _group_order(layer, k, block) if weights.get("strategy") == "group" else None
    zero = None
    if not weights.get("symmetric", True):
        points = layer.need("weight_zero_point")
        is_words = points.dtype.itemsize == 4
        zero = Blocks((n, groups), lambda: spread(signed(points, 0, n) if is_words else points.raw()), kind)
    return Packed(Blocks((n, k), (lambda: codes()[:, order]) if order is not None else codes, kind,
                         Blocks((n, groups), lambda: spread(scales.read())), zero, block), order=order)


def _scheme(layer: _Layer, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights' part of the one group of settings that compressed-tensors checkpoints of integers have."""
    groups = list((settings.get("config_groups") or {}).values())
    weights = groups[0].get("weights") or {} if len(groups) == 1 and isinstance(groups[0], dict) else {}
    if weights.get("type") != "int" or groups[0].get("input_activations") or groups[0].get("output_activations"):
        raise EdgecError("E0103", stage=STAGE, where=f"{layer.name}, quantization_config",
                         found=f"{settings.get('format', '?')} with {len(groups)} groups, weights of type "
                               f"{weights.get('type', '?')}",
                         wanted="integer weights in one group, activations that are not quantized",
                         hint="use the original model and let edgec compress it")
    return weights


# quant_method -> (the tensors that name a quantized layer, all tensors that belong to one, the reader)
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[_Layer, Mapping[str, Any]], Packed]]] = {
    "gptq": (("qweight",), ("qweight", "qzeros", "scales", "g_idx"), _gptq),
    "awq": (("qweight",), ("qweight", "qzeros", "scales"), _awq),
    "compressed-tensors": (
        ("weight_packed", "weight_scale"),
        ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"), _compressed,
    ),
}


def unpacked(tensors: Mapping[str, Stored], settings: Mapping[str, Any], where: str) -> dict[str, Stored]:
    """The checkpoint with every quantized layer as one `NAME.weight`; nothing but zero points and orders is read.

    settings: quantization_config of config.json. Raises EdgecError: E0103 for a method or variant that is not read
    here, E0101 when the tensors do not fit the settings.
    """
    method = str(settings.get("quant_method", "?"))
    if method not in METHODS:
        raise EdgecError("E0103", stage=STAGE, where=where, found=f"weights quantized with {method}",
                         wanted=f"float weights or one of {', '.join(METHODS)}",
                         hint="use the original model and let edgec compress it")
    marks, parts, read = METHODS[method]
    layers = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] in marks}
    taken = {f"{layer}.{part}" for layer in layers for part in parts}
    result = {name: tensor for name, tensor in tensors.items() if name not in taken}
    if not layers:
        raise EdgecError("E0101", stage=STAGE, where=where, found="no quantized layer",
                         wanted=f"layers as {method} has")
    for layer in sorted(layers):
        try:
            result[f"{layer}.weight"] = read(_Layer(layer, tensors), settings)
        except (TypeError, ValueError) as e:
            raise EdgecError("E0101", stage=STAGE, where=f"{layer}, {where}", found=str(e)[:300],
                             wanted=f"settings and tensors as {method} writes them") from e
    return result
