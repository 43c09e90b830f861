"""Which layer is stored how: the default format, what stays as it is and why, overrides by name.

Defaults: embeddings and heads take at least 4 bits, tables that are only looked up take them in uniform codes; the
first convolution, depthwise ones and small weights stay as they are. An override decides
about a layer in place of these rules; what no format can hold (groups, a weight that other operators read too) stays
whatever it says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from edgec.compress.formats import GROUPS, BitsSpec, PaletteSpec
from edgec.compress.layers import Layer
from edgec.errors import EdgecError, did_you_mean

Spec = BitsSpec | PaletteSpec
NONE = "none"
_LEAST_WEIGHTS, _LEAST_COLUMNS = 4096, 32
_LEAST_BITS = 4  # of embeddings and heads
_MOST_BITS = 12.0  # stored bits per weight from which float16 is the better bargain
CALIBRATED_BITS = 3  # so many bits and fewer need calibration


@dataclass(frozen=True)
class Override:
    """Layers whose weight or module name matches `pattern` (of fnmatch) get `spec`; None: they stay as they are."""

    pattern: str
    spec: Spec | None

    def matches(self, layer: Layer) -> bool:
        return any(fnmatchcase(name, self.pattern) for name in (layer.name, module_of(layer.name)))

    def __str__(self) -> str:
        return f"{self.pattern}={NONE if self.spec is None else self.spec}"


@dataclass(frozen=True)
class Choice:
    """A layer and its format."""

    layer: Layer
    spec: Spec


@dataclass(frozen=True)
class Kept:
    """A layer that stays as it is, and why."""

    name: str
    reason: str


def parse_spec(text: str, option: str = "--quant") -> Spec:
    """`hlq2`, `int4g64`, `palette4`. Raises EdgecError (E0002)."""
    try:
        return PaletteSpec.parse(text) if text.startswith("palette") else BitsSpec.parse(text)
    except EdgecError as e:
        raise EdgecError("E0002", stage="quantize", where=option, found=e.found, wanted=e.wanted,
                         hint=e.hint or "1 to 8 bits: hlq2, hlq3, hlq4, int4, int8, palette4; groups g32, g64, g128"
                         ) from e


def parse_override(text: str, option: str = "--quant-override") -> Override:
    """`GLOB=SPEC` or `GLOB=none`. Raises EdgecError (E0002)."""
    pattern, equals, spec = text.rpartition("=")
    if not pattern or not equals or not spec:
        raise EdgecError("E0002", stage="quantize", where=option, found=repr(text), wanted="GLOB=SPEC or GLOB=none",
                         hint="as 'model.layers.0.*=int8'; a run's table and quant.json show the names of the layers")
    return Override(pattern, None if spec == NONE else parse_spec(spec, option))


def module_of(name: str) -> str:
    """The module that a weight belongs to: the name without `.weight`."""
    return name.removesuffix(".weight")


def choose(layers: Sequence[Layer], default: Spec, overrides: Sequence[Override] = (), uniform_heads: bool = False
           ) -> tuple[list[Choice], list[Kept]]:
    """The layers to quantize, in the given order, and those that stay. The last override that matches decides.

    Raises EdgecError (E0002) for an override that matches nothing, or asks for what cannot be.
    """
    for override in overrides:
        if not any(override.matches(layer) for layer in layers):
            raise EdgecError("E0002", stage="quantize", where=f"override {str(override)!r}", found="no such layer",
                             wanted="a pattern that matches the name of a weight or module",
                             hint=did_you_mean(override.pattern, _some(module_of(x.name) for x in layers)))
    chosen: list[Choice] = []
    kept: list[Kept] = []
    for layer in layers:
        spec: Spec | None
        override_ = next((o for o in reversed(overrides) if o.matches(layer)), None)
        if override_ is None:
            spec = _default_spec(default, layer, uniform_heads)
            reason = layer.refused or _default_reason(layer, spec)
        else:
            spec = override_.spec
            reason = "" if spec is not None else "by override"
            if spec is not None and layer.refused:
                # A glob over a whole block may well cover such a layer; only one that names it asks for the impossible.
                if override_.pattern in (layer.name, module_of(layer.name)):
                    raise EdgecError("E0002", stage="quantize", where=f"override {str(override_)!r}",
                                     found=f"{layer.name}: {layer.refused}", wanted="a layer that can be quantized")
                reason = layer.refused
        if spec is None or reason:
            kept.append(Kept(layer.name, reason))
        else:
            chosen.append(Choice(layer, spec))
    if not chosen:
        raise EdgecError("E0002", stage="quantize", where="the model", wanted="at least one layer to quantize",
                         found="; ".join(f"{k.name}: {k.reason}" for k in kept[:6]) or "no linear or convolution",
                         hint="compile without --quant, or --quant-override GLOB=FORMAT for a layer that is kept")
    return chosen, kept


def needs_calibration(choices: Iterable[Choice]) -> list[Choice]:
    """The choices of so few bits that they are not made blindly."""
    return [c for c in choices if c.spec.bits <= CALIBRATED_BITS and c.layer.source is not None]


def _default_reason(layer: Layer, spec: Spec) -> str:
    """Why a layer stays as it is unless the user says otherwise; "" when it is quantized."""
    if layer.first:
        return "the first convolution"
    if layer.columns < _LEAST_COLUMNS or layer.rows * layer.columns < _LEAST_WEIGHTS:
        return f"small: {layer.rows} x {layer.columns}"
    stored = spec.bits_per_weight(layer.rows, layer.columns)
    # Rows are padded to whole tiles, so a matrix of few rows may not become smaller.
    return f"{stored:.3g} bits per weight in {spec}" if stored >= _MOST_BITS else ""


def _default_spec(default: Spec, layer: Layer, uniform_heads: bool) -> Spec:
    """Embeddings and heads at 4 bits or more. A lookup gains nothing from the sums that bit planes make cheap, so a
    table that is no head takes uniform codes, and raised to 4 bits it does not pay for small groups."""
    if not (layer.head or layer.table):
        return default
    spec = default if default.bits >= _LEAST_BITS else replace(default, bits=_LEAST_BITS)
    raised = uniform_heads and spec != default
    if (layer.head and not raised) or not isinstance(spec, BitsSpec):
        return spec
    return replace(spec, uniform=True, group=spec.group if spec == default else max(GROUPS))


def _some(names: Iterable[str], most: int = 12) -> list[str]:
    listed = list(names)
    return listed[:: max(1, math.ceil(len(listed) / most))]
