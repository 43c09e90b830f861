"""Light blocks to put in the place of others: inverted residuals and LS convolutions, of the zoo's parts."""

from __future__ import annotations

from torch import Tensor, nn

from edgec.errors import EdgecError
from edgec.zoo.lsnet import LSConv, conv_bn
from edgec.zoo.mobilenet_v2 import InvertedResidual

_SHARE = 8  # channels of an LS convolution that one predicted kernel serves


class LSBlock(nn.Module):
    """Where shapes change: 3 x 3 per channel and 1 x 1, both with BN. Then an LS convolution, then x + FFN(x).

    Raises EdgecError (E0002) for outputs that are no multiple of 8.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs % _SHARE:
            raise EdgecError("E0002", stage="train blocks", where="LSBlock", found=f"{outputs} channels",
                             wanted=f"a multiple of {_SHARE}", hint="an inverted residual takes any number")
        same = stride == 1 and inputs == outputs
        self.down = nn.Identity() if same else nn.Sequential(conv_bn(inputs, inputs, 3, stride, inputs),
                                                             conv_bn(inputs, outputs))
        self.mix = LSConv(outputs)
        self.ffn = nn.Sequential(conv_bn(outputs, 2 * outputs), nn.ReLU(), conv_bn(2 * outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.down(x))
        out: Tensor = y + self.ffn(y)
        return out


def inverted_residual(inputs: int, outputs: int, stride: int, expansion: int = 2) -> nn.Module:
    return InvertedResidual(inputs, outputs, stride, expansion, folded=False)


def ls_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    return LSBlock(inputs, outputs, stride)
