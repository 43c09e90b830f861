"""What a user decides about a Core ML package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from edgec.errors import EdgecError, did_you_mean

CoreMLTarget = Literal["auto", "iOS16", "iOS17", "iOS18"]
Precision = Literal["fp16", "fp32"]
_SIZES = re.compile(r"([^=]+)=(\d+(?:,\d+)*)")
_COLORS = {"rgb": 3, "bgr": 3, "gray": 1}
_IMAGE = re.compile(r"([^=]+)=(rgb|bgr|gray)(?::([^:]+)(?::([^:]+))?)?")


@dataclass(frozen=True)
class ImageInput:
    """An input that takes a picture: pixels 0..255 times `scale` plus `bias` per channel is what the model wants."""

    color: str = "rgb"
    scale: float = 1.0
    bias: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        return _COLORS[self.color]

    @classmethod
    def parse(cls, text: str) -> tuple[str, ImageInput]:
        """(input, how) of INPUT=COLOR[:SCALE[:BIAS,...]], for example image=rgb:0.01745:-2.1,-2.0,-1.8."""
        match = _IMAGE.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            bias = tuple(float(part) for part in match[4].split(",")) if match[4] else ()
            made = cls(match[2], float(match[3] or 1.0), bias)
            if len(bias) not in (0, made.channels):
                raise ValueError
        except ValueError:
            raise EdgecError("E0002", stage="options", where="--coreml-image", found=repr(text),
                             wanted="INPUT=rgb, bgr or gray, then :SCALE and :BIAS per channel",
                             hint="image=rgb:0.0039:-0.5,-0.5,-0.5") from None
        return match[1], made


@dataclass(frozen=True)
class CoreMLOptions:
    """target: oldest system that shall run the package; auto: iOS17, or iOS18 where a weight format needs it.

    precision: of the computation. images: input -> how. sizes: symbolic dim -> the sizes it may have, instead of its
    range. force: allow weight formats that cost more bits in Core ML than they promise.
    """

    target: CoreMLTarget = "auto"
    precision: Precision = "fp16"
    images: Mapping[str, ImageInput] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    force: bool = False

    @classmethod
    def parse(cls, target: str, precision: str, images: Iterable[str], sizes: Iterable[str], force: bool
              ) -> CoreMLOptions:
        """From the command line: images as ImageInput.parse, sizes as DIM=16,64. Raises EdgecError (E0002)."""
        listed = {}
        for text in sizes:
            match = _SIZES.fullmatch(text)
            if match is None:
                raise EdgecError("E0002", stage="options", where="--coreml-sizes", found=repr(text),
                                 wanted="DIM=SIZE,SIZE,..., as seq=16,64")
            listed[match[1]] = tuple(int(part) for part in match[2].split(","))
        return cls(cast("CoreMLTarget", target), cast("Precision", precision),
                   dict(ImageInput.parse(text) for text in images), listed, force)

    def to_json(self) -> dict[str, Any]:
        return {"target": self.target, "precision": self.precision, "force": self.force,
                "images": {name: asdict(image) for name, image in sorted(self.images.items())},
                "sizes": {name: list(sizes) for name, sizes in sorted(self.sizes.items())}}

    def __post_init__(self) -> None:
        """Raises EdgecError (E0002) for a value out of range."""
        for name, value, choices in (("--coreml-target", self.target, get_args(CoreMLTarget)),
                                     ("--coreml-precision", self.precision, get_args(Precision))):
            if value not in choices:
                raise EdgecError("E0002", stage="options", where=name, found=repr(value), wanted="one of the choices",
                                 hint=did_you_mean(str(value), choices))
        for name, sizes in self.sizes.items():
            if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
                raise EdgecError("E0002", stage="options", where="--coreml-sizes", found=f"{name}={list(sizes)}",
                                 wanted="different sizes of at least 1")
