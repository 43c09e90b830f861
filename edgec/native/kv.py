"""How a session stores keys and values: the formats of `kv_format`, and the rows of a state (docs/format.md)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from edgec.compress.formats import Dtype

KvFormat = Literal["f32", "f16", "int8", "int4"]
# What a state's dtype stands for: one number per element, or bytes of rows of codes.
KV_DTYPES = MappingProxyType({"f32": Dtype.F32, "f16": Dtype.F16, "int8": Dtype.I8, "int4": Dtype.U8})
KV_NAMES = MappingProxyType({dtype: name for name, dtype in KV_DTYPES.items()})
GROUP = 32  # numbers with one scale and minimum, of 4-bit codes


def kv_row(dtype: Dtype, width: int) -> int:
    """Elements of a row that holds `width` numbers (kv_row() in kernels/contract/shapes.h)."""
    if dtype is Dtype.I8:
        return 2 + width
    if dtype is Dtype.U8:
        return -(-width // GROUP) * 4 + width // GROUP * (GROUP // 2) + -(-(width % GROUP) // 2)
    return width

