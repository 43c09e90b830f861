"""Weights of few bits as our kernels read them inside other runtimes: the layout bits64 of the native backend."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from edgec.compress.low_bit import LowBit, check_dense, low_bit_of, low_bit_of_blocks
from edgec.ir.model import Builder, const_tensor, is_op, op_of
from edgec.ir.ops import DOMAIN

LINEAR, GATHER = "LinearBits", "GatherBits"
LIBRARY_VERSION = 1  # of the operators in the domain `edgec`
_DENSE = ((DOMAIN, "BitPlaneToDense"), (DOMAIN, "PaletteToDense"), ("", "DequantizeLinear"))
_PARTS = re.compile(r"\.(planes|codes)$")


@dataclass(frozen=True)
class FewBits:
    """A matrix [N, K] in front of an operator. name: of the weight."""

    name: str
    low: LowBit

    def attributes(self) -> dict[str, int]:
        """What an operator of the library is told: docs/kernels.md."""
        bits, group, form = self.low.matrix.ints
        return {"N": self.low.matrix.n, "K": self.low.matrix.k, "bits": bits, "group": group, "form": form}

    def weight(self, op: Builder) -> ir.Value:
        """The initializer u8 [bytes], packed whenever it is read."""
        def compute() -> ir.TensorProtocol:
            return ir.Tensor(self.low.pack(), dtype=ir.DataType.UINT8, name=name)

        name = f"{self.name}.bits64"
        shape = ir.Shape((self.low.matrix.bytes,))
        return op.tensor(ir.LazyTensor(compute, dtype=ir.DataType.UINT8, shape=shape, name=name, cache=False), name)


def find_few_bits(value: ir.Value | None) -> FewBits | str | None:
    """The matrix of few bits that `value` is; a reason why no kernel knows it; None for anything else."""
    node = None if value is None else value.producer()
    if node is None or op_of(node) not in _DENSE:
        return None
    if any(v is not None and const_tensor(v) is None for v in node.inputs):
        return "its codes are known only at run time"
    blocks = is_op(node, "DequantizeLinear")
    wrong = None if blocks else check_dense(node)
    if wrong is not None:
        return wrong
    low = low_bit_of_blocks(node) if blocks else low_bit_of(node)
    if low is None:
        return "its codes are not [rows, columns] in blocks of 32, 64 or 128 columns with scales that float16 holds"
    name = (node.inputs[0].name if node.inputs[0] is not None else "") or "weight"
    return FewBits(_PARTS.sub("", name), low) if low.known else f"no kernel reads {low.matrix.spec}"
