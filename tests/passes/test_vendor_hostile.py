"""Vendor operators that no exporter writes: each is spelled, left alone with a reason, or an EdgecError."""

from __future__ import annotations

from contextlib import suppress

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, attach_info
from edgec.passes.normalize import vendor_attention, vendor_fused, vendor_norms, vendor_quantized
from edgec.passes.normalize.inline_functions import spell_vendor_operators

RULES = (*vendor_norms.RULES, *vendor_fused.RULES, *vendor_attention.RULES, *vendor_quantized.RULES)
ROOTS = sorted({(rule.domain, root) for rule in RULES for root in rule.roots})
NAMES = ("activation", "activation_params", "activation_alpha", "alpha", "axes", "axis", "bits", "block_size", "K", "N",
         "channels_last", "do_rotary", "epsilon", "gather_axis", "interleaved", "is_packed_batching", "keepdims",
         "kernel_shape", "kv_num_heads", "local_window_size", "mask_filter_value", "num_heads", "opset", "pads",
         "qkv_hidden_sizes", "quantize_axis", "rotary_embedding_dim", "scale", "softcap", "transA", "transB",
         "transBatchA", "unidirectional")
VALUES = (-1, 0, 1, 3, 4, 8, 1 << 62, -(1 << 62), 0.5, float("nan"), "Relu", "", [1, 2], [-1], [0.5], [2, 2, 1 << 40])
DTYPES = (np.float32, np.float16, np.uint8, np.int32, np.int64, ml_dtypes.uint4)


def drawn(rng: np.random.Generator, name: str) -> ir.Value | None:
    """Nothing, a graph input of perhaps unknown rank, or a constant."""
    kind = rng.integers(4)
    if kind == 0:
        return None
    dtype = ir.DataType.from_numpy(np.dtype(DTYPES[rng.integers(len(DTYPES))]))
    dims = [int(d) for d in rng.choice([0, 1, 2, 3, 4, 16], rng.integers(5))]
    if kind == 1:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims) if rng.integers(4) else None)
    tensor = ir.Tensor(rng.integers(0, 8, dims).astype(dtype.numpy()), name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def graph_of(domain: str, op_type: str, rng: np.random.Generator) -> ir.Model:
    values = [drawn(rng, f"v{i}") for i in range(rng.integers(11))]
    chosen = rng.choice(NAMES, rng.integers(6), replace=False)
    node = ir.node(op_type, values, {str(k): VALUES[rng.integers(len(VALUES))] for k in chosen}, domain=domain,
                   num_outputs=int(rng.integers(1, 4)))
    for i, out in enumerate(node.outputs):
        out.name = f"y{i}"
    known = [v for v in values if v is not None]
    graph = ir.Graph([v for v in known if v.const_value is None], node.outputs, nodes=[node], name="g",
                     initializers=[v for v in known if v.const_value is not None],
                     opset_imports={"": 24, "com.microsoft": 1})
    return attach_info(ir.Model(graph, ir_version=10), ModelInfo())


@pytest.mark.parametrize(("domain", "op_type"), ROOTS, ids=lambda v: v or "standard")
def test_no_other_error(domain: str, op_type: str) -> None:
    rng = np.random.default_rng(ROOTS.index((domain, op_type)))
    for _ in range(100):
        graph = graph_of(domain, op_type, rng)
        with suppress(EdgecError):
            spell_vendor_operators(graph)
