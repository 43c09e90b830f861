"""Bit planes (HLQ) that are trained: scales and offsets given the codes, or the weights with straight-through codes.

    tune_bits(model, layers)            # name of a weight -> Quantized or StoredLayer, as of `edgec quantize`
    fit(...)                            # any loop: the parameters are scales [bits, N, groups] and offsets [N, groups]
    layers = harden_bits(model)         # to write_layers

A weight is w = c + sum_j h_j sigma_j with sigma_j = 2 b_j - 1 in {-1, 1} (compress/formats_bits.py), so given the
codes it is linear in h and c and the gradient is exact: dL/dh_j of a group is the sum over it of sigma_j dL/dW, dL/dc
that of dL/dW. That is the second stage of the ELUTQ recipe (arXiv:2510.19482, section on fine-tuning, which has the
form of EfficientQAT). `codes=True` is its first: weights are trained too, each step takes their nearest levels, and
what the rounding does to a weight's gradient is left out (straight-through). Stored are float16 values; so training
sees them rounded, with gradients as if they were not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgec.compress.formats import PaletteTensor, Quantized, dequantize, dequantize_palette
from edgec.compress.layers import weight_of
from edgec.compress.stored import StoredLayer
from edgec.errors import EdgecError, did_you_mean

_STAGE = "train bits"
_PIECE = 1 << 18  # weights compared with all their levels at once


class Bits(nn.Module):
    """The parametrization of one weight. scale [bits, N, groups], offset [N, groups]: parameters, float32. codes: u8
    [N, K], the columns of a convolution as the compiler has them. train_codes: the weight decides about them."""

    codes: Tensor

    def __init__(self, quantized: Quantized, train_codes: bool = False) -> None:
        super().__init__()
        self.spec, self.train_codes = quantized.spec, train_codes
        self.scale = nn.Parameter(torch.from_numpy(quantized.scale.astype(np.float32)))
        self.offset = nn.Parameter(torch.from_numpy(quantized.offset.astype(np.float32)))
        self.register_buffer("codes", torch.from_numpy(np.array(quantized.codes)))

    def forward(self, weight: Tensor) -> Tensor:
        matrix = (weight.movedim(1, -1) if weight.ndim > 2 else weight).reshape(len(weight), -1)
        with torch.autocast(weight.device.type, enabled=False):
            scale, offset = _stored(self.scale), _stored(self.offset)
            if self.train_codes:
                self.codes.copy_(nearest(matrix.detach().float(), scale.detach(), offset.detach(), self.spec.group))
            made = cast(Tensor, _Dense.apply(scale, offset, self.codes.clone() if self.train_codes else self.codes,
                                             self.spec.group))  # type: ignore[no-untyped-call]
            if self.train_codes:
                made = made + (matrix - matrix.detach())
        if weight.ndim == 2:
            return made.to(weight.dtype)
        shape = (weight.shape[0], *weight.shape[2:], weight.shape[1])
        return made.reshape(shape).movedim(-1, 1).to(weight.dtype).contiguous()

    def quantized(self) -> Quantized:
        """What is stored. Raises EdgecError (E0002) for values that float16 does not hold."""
        with np.errstate(over="ignore"):
            half = [p.detach().cpu().numpy().astype(np.float16) for p in (self.scale, self.offset)]
        if not all(np.isfinite(values).all() for values in half):
            raise _bad("bits", "a scale or an offset beyond 65504", "values that float16 holds",
                       "a smaller learning rate")
        return Quantized(self.spec, self.codes.cpu().numpy(), *half)


def _stored(values: Tensor) -> Tensor:
    return values + (values.detach().to(torch.float16).float() - values.detach())


class _Dense(torch.autograd.Function):
    """scale [q, N, G], offset [N, G], codes u8 [N, K] -> [N, K]. Keeps the codes alone: they are the layer's anyway."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, offset: Tensor, codes: Tensor, group: int) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.group, ctx.bits = group, len(scale)
        columns = codes.shape[1]
        # Sums of a few float16 values are exact in float64, so this is what `dequantize` gives.
        made = _spread(offset.double(), group, columns)
        for bit, values in enumerate(scale.double()):
            made = made + _spread(values, group, columns) * _sign(codes, bit)
        return made.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (codes,) = ctx.saved_tensors
        scales = torch.stack([_sums(grad * _sign(codes, bit), ctx.group) for bit in range(ctx.bits)])
        return scales, _sums(grad, ctx.group), None, None


def _sign(codes: Tensor, bit: int) -> Tensor:
    return ((codes >> bit) & 1).to(torch.float32).mul_(2).sub_(1)


def _spread(values: Tensor, group: int, columns: int) -> Tensor:
    """[N, G] -> [N, K]."""
    return values.repeat_interleave(group, 1)[:, :columns]


def _sums(values: Tensor, group: int) -> Tensor:
    """[N, K] -> [N, G]; the last group may be shorter."""
    short = -values.shape[1] % group
    padded = nn.functional.pad(values, (0, short)) if short else values
    return padded.reshape(len(values), -1, group).sum(2)


def nearest(matrix: Tensor, scale: Tensor, offset: Tensor, group: int) -> Tensor:
    """u8 [N, K]: the codes of the nearest levels. Scales may have any sign and order, so all levels are compared."""
    bits, columns = len(scale), matrix.shape[1]
    signs = torch.tensor([[2.0 * (code >> bit & 1) - 1 for bit in range(bits)] for code in range(1 << bits)],
                         device=matrix.device)
    step = max(1, _PIECE // columns)
    found = []
    for at in range(0, len(matrix), step):
        rows = slice(at, at + step)
        levels = torch.einsum("qng,lq->lng", scale[:, rows], signs) + offset[rows]
        far = torch.full_like(matrix[rows], torch.inf)
        codes = torch.zeros_like(far, dtype=torch.uint8)
        for code, level in enumerate(levels):
            away = (matrix[rows] - _spread(level, group, columns)).abs()
            codes[away < far] = code
            far = torch.minimum(far, away)
        found.append(codes)
    return torch.cat(found)


def tune_bits(model: nn.Module, layers: Mapping[str, Quantized | StoredLayer], *, codes: bool = False
              ) -> dict[str, Bits]:
    """Parametrizes the weights of `model` that `layers` names (`path.weight`), in place; returns path -> Bits.

    codes: weights are trained, and their codes with them (first stage); otherwise they stay and scales and offsets are
    what is trained (second stage); other parameters train as before, unless they are frozen (`requires_grad_(False)`
    before this). Layers that are no bit planes (palettes, uniform codes) are left out: see `hold`. Raises EdgecError
    (E0002) before anything is changed: nothing to train, no such weight, another shape, a weight that is parametrized
    already.
    """
    known = dict(model.named_modules())
    chosen: dict[str, Quantized] = {}
    for name, layer in layers.items():
        loaded = layer.load() if isinstance(layer, StoredLayer) else layer
        if not isinstance(loaded, Quantized) or loaded.spec.uniform:
            continue
        module = known.get(name.removesuffix(".weight"))
        if module is not None and parametrize.is_parametrized(module, "weight"):
            raise _bad(name, "a weight that is parametrized already", "a plain parameter", "remove_parametrizations")
        weight = None if module is None else module._parameters.get("weight")
        if weight is None:
            raise _missing(model, name)
        _check_shape(name, weight, loaded)
        chosen[name.removesuffix(".weight")] = loaded
    if not chosen:
        raise _bad("layers", "no bit planes", "layers of hlq formats", "edgec quantize --quant hlq2")
    shared = {id(known[path].weight): Bits(q, codes).to(cast(Tensor, known[path].weight).device)
              for path, q in chosen.items()}
    found: dict[str, Bits] = {}
    # A weight that is in two places (tied embeddings) is named once and is the same in both.
    for path, module in known.items():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) not in shared:
            continue
        one = shared[id(weight)]
        weight.requires_grad_(codes)
        parametrize.register_parametrization(module, "weight", one, unsafe=True)
        found[path] = one
    return found


def no_bit_planes(layers: Mapping[str, Quantized | StoredLayer]) -> dict[str, Quantized | PaletteTensor]:
    """Those of `layers` that `tune_bits` leaves out: uniform codes (as of tables that are only looked up), palettes."""
    loaded = {name: layer.load() if isinstance(layer, StoredLayer) else layer for name, layer in layers.items()}
    return {name: one for name, one in loaded.items() if isinstance(one, PaletteTensor) or one.spec.uniform}


def weight_named(model: nn.Module, name: str) -> nn.Parameter:
    """Raises EdgecError (E0002) when there is none."""
    found = dict(model.named_parameters(remove_duplicate=False)).get(name)
    if found is None:
        raise _missing(model, name)
    return found


def hold(model: nn.Module, layers: Mapping[str, Quantized | PaletteTensor]) -> None:
    """Gives the weights that `layers` names the values that are stored, in place, and freezes them: what is trained
    beside them sees what will run, and they can be written as they are. Raises EdgecError (E0002): no such weight,
    another shape."""
    weights = {name: weight_named(model, name) for name in layers}
    for name, weight in weights.items():
        _check_shape(name, weight, layers[name])
    for name, layer in layers.items():
        dense = dequantize(layer) if isinstance(layer, Quantized) else dequantize_palette(layer)
        weights[name].requires_grad_(False)
        with torch.no_grad():
            weights[name].copy_(torch.from_numpy(weight_of(dense, weights[name].shape)))


def harden_bits(model: nn.Module) -> dict[str, Quantized]:
    """Replaces every weight that `tune_bits` has parametrized by its dense values, in place; returns `path.weight` ->
    Quantized. Tied weights stay tied. Raises EdgecError (E0002) without any."""
    places = [(path, module, cast(Any, module).parametrizations.weight) for path, module in model.named_modules()
              if parametrize.is_parametrized(module, "weight")]
    places = [place for place in places if isinstance(place[2][0], Bits)]
    if not places:
        raise _bad(type(model).__name__, "no bit planes", "a model that `tune_bits` was applied to")
    found: dict[str, Quantized] = {}
    plain: dict[int, nn.Parameter] = {}
    for path, module, chain in places:
        original = chain.original
        if id(original) not in plain:
            with torch.no_grad():
                values = chain[0](original.detach())
        found[f"{path}.weight"] = chain[0].quantized()
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        parameter = cast(nn.Parameter, module.weight)
        if id(original) not in plain:
            with torch.no_grad():
                parameter.copy_(values)
            parameter.requires_grad_(True)
        module.weight = plain.setdefault(id(original), parameter)
    return found


def _check_shape(name: str, weight: Tensor, layer: Quantized | PaletteTensor) -> None:
    if (len(weight), weight.numel() // len(weight)) != layer.shape:
        raise _bad(name, f"a weight of {list(weight.shape)}", f"a matrix of {list(layer.shape)}")


def _missing(model: nn.Module, name: str) -> EdgecError:
    return _bad(name, "no such weight", "the name of a weight of the model",
                did_you_mean(name, (n for n, _ in model.named_parameters())))


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
