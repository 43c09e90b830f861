"""PyTorch modules of small architectures, written out so that they can be read, changed and compiled: `zoo:NAME`.

`ZOO` is the table: one row is one model of the door, of `edgec.zoo.create`, and of docs/zoo.md. Nothing here has
trained weights; see `edgec.zoo.weights`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError, did_you_mean

if TYPE_CHECKING:
    import torch

PREFIX = "zoo:"
# Larger images are a slip of the keyboard.
_LARGEST = 4096
# Every map of Swin is no larger than its window, or divides into windows.
_SWIN_SIDES = (32, 64, 96, 224, 448)


@dataclass(frozen=True)
class ZooModel:
    """A row of the table.

    name: after `zoo:`. factory: module and class below edgec.zoo, called with `arguments` and, where the weights
    belong to it (`sized`), the size. size: side of the square image by default; step: what any size is a multiple of,
    plus 1 where `odd`; sides: all that it can be. parameters: trainable; folded: those of the compiled form. macs:
    multiply-accumulates of the compiled form at the default size, of convolutions, linears, attention and dynamic
    kernels.
    """

    name: str
    factory: str
    parameters: int
    folded: int
    macs: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224
    step: int = 32
    odd: bool = False
    sized: bool = False
    sides: tuple[int, ...] = ()
    channels: int = 3

    def build(self, size: int | None = None) -> torch.nn.Module:
        """The module in eval mode, as PyTorch initializes it. Raises EdgecError E0101 for a size it does not take."""
        module, _, cls = self.factory.partition(".")
        side = self.checked(size)
        made: torch.nn.Module = getattr(importlib.import_module(f"edgec.zoo.{module}"), cls)(
            **self.arguments, **({"size": side} if self.sized else {}))
        return made.eval()

    def example(self, size: int | None = None) -> torch.Tensor:
        """A random image [1, channels, size, size]."""
        import torch

        side = self.checked(size)
        return torch.randn(1, self.channels, side, side, generator=torch.Generator().manual_seed(0))

    def checked(self, size: int | None) -> int:
        """The side of the image, the default for None. Raises EdgecError E0101."""
        side = self.size if size is None else size
        if not self.step <= side <= _LARGEST or (side - self.odd) % self.step or (
                self.sides and side not in self.sides):
            wanted = f"{', '.join(map(str, self.sides))}" if self.sides else (
                f"a multiple of {self.step}{' plus 1' if self.odd else ''}, at most {_LARGEST}")
            raise EdgecError("E0101", stage="import", where=f"{PREFIX}{self.name}", found=f"images of {side} x {side}",
                             wanted=wanted, hint=f"{PREFIX}{self.name} alone is {self.size}")
        return side


def _mobilenet(name: str, width: float, parameters: int, folded: int, macs: int) -> ZooModel:
    return ZooModel(name, "mobilenet_v2.MobileNetV2", parameters, folded, macs, {"width": width})


def _lsnet(name: str, widths: tuple[int, ...], depths: tuple[int, ...], parameters: int, folded: int, macs: int,
           distilled: bool = False) -> ZooModel:
    arguments = {"widths": widths, "depths": depths, "distilled": distilled}
    return ZooModel(name, "lsnet.LSNet", parameters, folded, macs, arguments, sized=True)


def _slab_deit(name: str, channels: int, heads: int, parameters: int, folded: int, macs: int) -> ZooModel:
    arguments = {"channels": channels, "heads": heads}
    return ZooModel(name, "slab_deit.SlabDeiT", parameters, folded, macs, arguments, step=16, sized=True)


_LSNET = {"t": ((64, 128, 256, 384), (0, 2, 8, 10)), "s": ((96, 192, 320, 448), (1, 2, 8, 10)),
          "b": ((128, 256, 384, 512), (4, 6, 8, 10))}

ZOO: tuple[ZooModel, ...] = (
    _mobilenet("mobilenet_v2_1.4", 1.4, 6_108_776, 6_084_808, 582_195_824),
    _mobilenet("mobilenet_v2_1.3", 1.3, 5_386_792, 5_364_664, 509_374_560),
    _mobilenet("mobilenet_v2", 1.0, 3_504_872, 3_487_816, 300_774_272),
    _mobilenet("mobilenet_v2_0.75", 0.75, 2_636_424, 2_623_104, 209_069_792),
    _mobilenet("mobilenet_v2_0.5", 0.5, 1_968_680, 1_959_408, 97_131_840),
    _mobilenet("mobilenet_v2_0.35", 0.35, 1_677_128, 1_670_088, 59_285_808),
    _mobilenet("mobilenet_v2_0.25", 0.25, 1_519_112, 1_513_784, 37_201_312),
    _mobilenet("mobilenet_v2_0.1", 0.1, 1_356_696, 1_353_556, 12_918_088),
    ZooModel("ssdlite_mobilenet_v2", "ssdlite.SSDLite", 4_500_543, 4_475_167, 804_397_504, size=320),
    ZooModel("deeplab_v3_mobilenet_v2", "deeplab_v3.MobileDeepLabV3", 2_113_557, 2_097_013, 2_740_709_056, size=513,
             step=16, odd=True),
    _lsnet("lsnet_t", *_LSNET["t"], 11_409_832, 11_370_488, 315_718_784),
    _lsnet("lsnet_s", *_LSNET["s"], 16_146_304, 16_098_232, 537_761_344),
    _lsnet("lsnet_b", *_LSNET["b"], 23_313_608, 23_249_320, 1_244_277_760),
    _lsnet("lsnet_t_distilled", *_LSNET["t"], 11_795_600, 11_370_488, 315_718_784, distilled=True),
    _lsnet("lsnet_s_distilled", *_LSNET["s"], 16_596_200, 16_098_232, 537_761_344, distilled=True),
    _lsnet("lsnet_b_distilled", *_LSNET["b"], 23_827_632, 23_249_320, 1_244_277_760, distilled=True),
    _slab_deit("slab_deit_t", 192, 3, 6_198_401, 6_179_176, 1_138_635_264),
    _slab_deit("slab_deit_s", 384, 6, 22_992_641, 22_954_216, 4_358_169_600),
    ZooModel("slab_swin_t", "slab_swin.SlabSwin", 29_216_605, 29_168_384, 4_482_438_144, {"depths": (2, 2, 6, 2)},
             sized=True, sides=_SWIN_SIDES),
    ZooModel("slab_swin_s", "slab_swin.SlabSwin", 50_552_965, 50_467_856, 8_732_746_752, {"depths": (2, 2, 18, 2)},
             sized=True, sides=_SWIN_SIDES),
    ZooModel("lightm_unet", "lightm_unet.LightMUNet", 5_011_683, 5_028_774, 737_677_312, size=64, step=8, channels=1),
    ZooModel("dual_cnn", "dual_cnn.DualCNN", 14_862, 14_862, 568_240, size=28, step=28, sides=(28,), channels=1),
)


def find(source: str) -> tuple[ZooModel, int]:
    """(row, size) of `zoo:NAME` or `zoo:NAME@SIZE`. Raises EdgecError E0101 for a name or size that is not there."""
    name, at, size = source.removeprefix(PREFIX).partition("@")
    rows = {row.name: row for row in ZOO}
    if name not in rows:
        raise EdgecError("E0101", stage="import", where=source, found=f"no model {name!r} in the zoo",
                         wanted=did_you_mean(name, rows))
    if at and not (size.isascii() and size.isdigit() and len(size) < 20):
        raise EdgecError("E0101", stage="import", where=source, found=f"size {size!r}",
                         wanted=f"a number, as {PREFIX}{name}@{rows[name].size}")
    row = rows[name]
    return row, row.checked(int(size) if at else None)
