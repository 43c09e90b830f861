"""Multiply-accumulates and bytes of calls, against loops that count them one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from edgec.compress.formats import Dtype
from edgec.native.cost import _MACS, bindings_of, call_cost
from edgec.native.dims import Dim, dim, symbol
from edgec.native.plan import ABSENT, KERNELS, Call, Operand, Plan, Space
from tests.native import tiny_plans

A, W = Space.ARENA, Space.WEIGHT


def op(space: Space, *dims: int | Dim, dtype: Dtype = Dtype.F32) -> Operand:
    return Operand(space, 0, 0, dtype, dims=tuple(map(dim, dims)))


def call(kernel: str, *operands: Operand, ints: Sequence[int | Dim] = ()) -> Call:
    return Call(kernel, "layer", operands, tuple(ints))


def conv_macs(out: tuple[int, int, int, int], kernel: tuple[int, int], inputs: int) -> int:
    """One multiplication per output, tap and input channel of its group, taps in the padding included."""
    return sum(1 for _ in itertools.product(*map(range, (*out, *kernel, inputs))))


def causal_pairs(rows: int, past: int, window: int) -> int:
    return sum(1 for t in range(rows) for s in range(past + t + 1) if not window or s > past + t - window)


CASES: dict[str, tuple[Call, int]] = {
    "linear": (call("linear", op(A, 2, 3, 5), op(A, 2, 3, 7), op(W, 5, 7), ABSENT, ABSENT), 2 * 3 * 5 * 7),
    "linear_bits": (call("linear_bits", op(A, 3, 64), op(A, 3, 128), op(W, 999, dtype=Dtype.U8), ABSENT, ABSENT),
                    3 * 64 * 128),
    "split": (call("linear_split", op(A, 2, 16), op(A, 2, 32), ABSENT, ABSENT, op(A, 2, 7), op(W, 48, 7), ABSENT),
              2 * 16 * 7 + 2 * 32 * 7),
    "conv": (call("conv2d", op(A, 1, 4, 5, 6), op(A, 1, 8, 9, 4), op(W, 2, 3, 18), ABSENT, ABSENT,
                  ints=(3, 3, 2, 2, 1, 1, 1, 1, 2, 0, 0)), conv_macs((1, 4, 5, 6), (3, 3), 2)),
    "winograd": (call("conv2d_winograd", op(A, 1, 4, 4, 6), op(A, 1, 4, 4, 16), op(W, 1, 6, 144), ABSENT, ABSENT),
                 conv_macs((1, 4, 4, 6), (3, 3), 16)),
    "depthwise": (call("dwconv2d", op(A, 1, 4, 4, 6), op(A, 1, 4, 4, 6), op(W, 9, 6), ABSENT, ABSENT,
                       ints=(3, 3, 1, 1, 1, 1, 1, 1, 0, 0)), conv_macs((1, 4, 4, 6), (3, 3), 1)),
    # 6 x 6 pixels widened from 4 to 8 channels, 3 x 3 to 3 x 3 pixels, narrowed to 5.
    "mbconv": (call("mbconv2d", op(A, 1, 3, 3, 5), op(A, 1, 6, 6, 4), op(W, 8, 4), ABSENT, op(W, 9, 8), ABSENT,
                    op(W, 5, 8), ABSENT, ABSENT, ints=(3, 3, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)),
               36 * 4 * 8 + 9 * 8 * 9 + 9 * 8 * 5),
    "mbconv without widening": (
        call("mbconv2d", op(A, 1, 3, 3, 5), op(A, 1, 3, 3, 8), ABSENT, ABSENT, op(W, 9, 8), ABSENT, op(W, 5, 8), ABSENT,
             ABSENT, ints=(3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)), 9 * 8 * 9 + 9 * 8 * 5),
    "matmul": (call("matmul", op(A, 2, 3, 4), op(A, 2, 3, 5), op(A, 5, 4), ints=(0,)), 2 * 3 * 4 * 5),
    "cached": (call("attention_cached", op(A, 3, 2 * 4), op(A, 3, 2 * 8), op(Space.STATE, 1, 20, 8),
                    op(Space.STATE, 1, 20, 4), ints=(5, 2, 1, 0)), 2 * (8 + 4) * causal_pairs(3, 5, 0)),
    "window": (call("attention_cached", op(A, 3, 8), op(A, 3, 8), op(Space.STATE, 1, 20, 8), op(Space.STATE, 1, 20, 8),
                    ints=(5, 1, 1, 4)), 16 * causal_pairs(3, 5, 4)),
    "attention": (call("attention", op(A, 2, 3, 8), op(A, 2, 3, 8), op(A, 2, 6, 8), op(A, 2, 6, 8), ABSENT,
                       ints=(2, 2, 0, 0)), 2 * 2 * (4 + 4) * 3 * 6),
    "causal": (call("attention", op(A, 1, 3, 8), op(A, 1, 3, 8), op(A, 1, 6, 8), op(A, 1, 6, 8), ABSENT,
                    ints=(2, 2, 1, 2)), 2 * (4 + 4) * causal_pairs(3, 2, 0)),
    "rnn": (call("rnn", op(A, 5, 2, 3), ABSENT, ABSENT, op(A, 5, 2, 12), op(W, 4, 3, 3), ABSENT, ABSENT, ABSENT,
                 ints=(4, 0)), 5 * 2 * 4 * 3 * 3),
    "copy": (call("copy", op(A, 4), op(A, 4)), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_multiplications(name: str) -> None:
    found, wanted = CASES[name]
    assert call_cost(found, {}).macs == wanted


def test_every_kernel_that_is_counted_exists() -> None:
    assert set(_MACS) <= set(KERNELS)


def test_bytes_are_those_that_are_read() -> None:
    linear = call_cost(call("linear", op(A, 3, 5), op(A, 3, 7), op(W, 5, 7), op(W, 5), ABSENT), {})
    assert (linear.weight_bytes, linear.activation_bytes) == (4 * (35 + 5), 4 * (15 + 21))
    rows = call_cost(call("gather", op(A, 1, 3, 8), op(W, 1, 1000, 8, dtype=Dtype.F16), op(A, 3, dtype=Dtype.I64)), {})
    assert (rows.weight_bytes, rows.activation_bytes) == (3 * 8 * 2, 3 * 8 * 4 + 3 * 8)
    bits = call_cost(call("gather_bits", op(A, 3, 64), op(W, 1000 * 40, dtype=Dtype.U8), op(A, 3, dtype=Dtype.I32),
                          ints=(1000, 64, 4, 64, 0)), {})
    assert bits.weight_bytes == 3 * 40
    past, seq = symbol("past", 0, 20), symbol("seq", 1, 4)
    write = call_cost(call("kv_write", op(Space.STATE, 2, 20, 8, dtype=Dtype.F16), op(A, seq, 16), ints=(past,)),
                      {"past": 5, "seq": 2})
    assert write.activation_bytes == 2 * 16 * (2 + 4)
    codes = call_cost(call("kv_write", op(Space.STATE, 2, 20, 10, dtype=Dtype.I8), op(A, seq, 16), ints=(past,)),
                      {"past": 5, "seq": 2})
    assert codes.activation_bytes == 2 * 2 * 10 + 2 * 16 * 4
    read = call_cost(call("attention_cached", op(A, seq, 16), op(A, seq, 16), op(Space.STATE, 2, 20, 8),
                          op(Space.STATE, 2, 20, 8), ints=(past, 2, 2, 0)), {"past": 5, "seq": 2})
    assert read.activation_bytes == 4 * (16 * 2 * 2 + 2 * 2 * 7 * 8)
    with pytest.raises(KeyError):
        call_cost(call("copy", op(A, seq), op(A, seq)), {"past": 1})


@pytest.mark.parametrize("make", [
    tiny_plans.tiny_cnn, tiny_plans.tiny_siblings, tiny_plans.tiny_q8, tiny_plans.tiny_bits, tiny_plans.tiny_mixers,
    tiny_plans.tiny_recurrent, tiny_plans.tiny_lm])
def test_whole_plans_have_costs(make: Callable[[], Plan]) -> None:
    plan = make()
    at = bindings_of(plan, past=0) if plan.model_kind else bindings_of(plan)
    costs = [call_cost(c, at) for e in plan.entries for c in e.calls]
    assert all(cost.bytes > 0 for cost in costs)
    assert sum(cost.macs for cost in costs) > 0
