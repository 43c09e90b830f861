"""A compressed weight that is read part by part, when somebody needs it: what the pass Quantize is given per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgec.compress.formats_bits import Array, BitsSpec, Quantized, bad, codes_of, planes_of
from edgec.compress.formats_palette import PaletteSpec, PaletteTensor


@dataclass(frozen=True)
class StoredLayer:
    """A matrix of `shape` [N, K] (a convolution's [out, in * kernel]) in `spec`.

    parts: readers by name. `planes` u8 [bits, N, ceil(M / 8)] as of planes_of (M = K, for palettes of vectors the
    indices of a row); then `scale` and `offset` as of Quantized, or `lut` as of PaletteTensor.
    """

    spec: BitsSpec | PaletteSpec
    shape: tuple[int, int]
    parts: Mapping[str, Callable[[], Array]]

    def __post_init__(self) -> None:
        if set(self.parts) != set(self.layout()):
            raise bad("parts", ", ".join(sorted(self.parts)) or "none", ", ".join(self.layout()))

    @classmethod
    def of(cls, value: Quantized | PaletteTensor) -> StoredLayer:
        """The same for a value in memory."""
        if isinstance(value, Quantized):
            return cls(value.spec, value.shape, {
                "planes": lambda: planes_of(value.codes, value.spec.bits), "scale": lambda: value.scale,
                "offset": lambda: value.offset})
        return cls(value.spec, value.shape, {
            "planes": lambda: planes_of(value.indices, value.spec.bits), "lut": lambda: value.lut})

    def layout(self) -> dict[str, tuple[int, ...]]:
        """The shape of each part."""
        spec, (n, k) = self.spec, self.shape
        count = spec.indices(k) if isinstance(spec, PaletteSpec) else k
        planes = {"planes": (spec.bits, n, -(-count // 8))}
        if isinstance(spec, PaletteSpec):
            vector = (spec.vector,) if spec.vector > 1 else ()
            return {**planes, "lut": (spec.tables(n), 1 << spec.bits, *vector)}
        groups = (n, spec.groups(k))
        return {**planes, "scale": groups if spec.uniform else (spec.bits, *groups), "offset": groups}

    def read(self, part: str) -> Array:
        """One part. Raises EdgecError (E0002) when it has another shape than `layout` says."""
        array = np.asarray(self.parts[part]())
        if array.shape != self.layout()[part]:
            raise bad(part, array.shape, str(self.layout()[part]), "quantize the layer again")
        return array

    def load(self) -> Quantized | PaletteTensor:
        """The whole layer. Raises EdgecError (E0002) for parts that do not fit each other."""
        (_, k), spec = self.shape, self.spec
        if isinstance(spec, PaletteSpec):
            return PaletteTensor(spec, codes_of(self.read("planes"), spec.indices(k)), self.read("lut"), k)
        return Quantized(spec, codes_of(self.read("planes"), k), self.read("scale"), self.read("offset"))
