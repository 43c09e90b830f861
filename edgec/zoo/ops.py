"""Operators that `torch.export` keeps as one node each, with reference implementations in plain PyTorch.

The torch door turns them into the operators of the same names in edgec/ir/ops.py; importing this file registers them.
The functions here take what their inputs are often left without; `torch.ops.edgec` has the operators themselves.
Gradients are those of the reference implementations, which a backward pass runs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 64  # steps of a scan that are in memory at once, with all their states


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None,
                   z: Tensor | None = None, state: Tensor | None = None, *, softplus: bool = False
                   ) -> tuple[Tensor, Tensor]:
    """S6 of Mamba (Gu and Dao, 2023): (y [B, L, D], last state [B, D, N]).

    x, delta, z [B, L, D]; a [D, N]; b, c [B, L, N]; d [D]; state [B, D, N], zeros when left out. softplus: delta is
    its argument. z gates y with silu(z).
    """
    d = x.new_zeros(x.shape[2]) if d is None else d
    state = x.new_zeros(x.shape[0], x.shape[2], a.shape[1]) if state is None else state
    y, last = torch.ops.edgec.selective_scan(x, delta, a, b, c, d, state, softplus)
    return (y if z is None else y * F.silu(z)), last


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None, *,
                  silu: bool = False) -> tuple[Tensor, Tensor]:
    """Depthwise over the past: (y [B, L, C], last tail [B, K - 1, C]).

    x [B, L, C]; weight [C, K], the last tap meets the newest row; bias [C]; tail: the rows before the first, zeros when
    left out.
    """
    bias = x.new_zeros(x.shape[2]) if bias is None else bias
    tail = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if tail is None else tail
    y, last = torch.ops.edgec.causal_conv1d(x, weight, bias, tail, silu)
    return y, last


def dynamic_depthwise(x: Tensor, w: Tensor) -> Tensor:
    """SKA of LSNet (Wang et al., 2025): kernels of each pixel's own, shared by the channels that are equal modulo G.

    y[c, h, w] = sum over i, j of x[c, h + i - k/2, w + j - k/2] w[c mod G, k i + j, h, w], zeros outside x.
    x [B, C, H, W]; w [B, G, k k, H, W] with odd k and C a multiple of G -> [B, C, H, W].
    """
    y: Tensor = torch.ops.edgec.dynamic_depthwise(x, w, _kernel_size(w))
    return y


def _kernel_size(w: Tensor) -> int:
    k = math.isqrt(int(w.shape[2]))
    if k * k != w.shape[2] or k % 2 == 0:
        raise ValueError(f"w has kernels of {w.shape[2]} values; k * k of an odd k is wanted")
    return k


def _scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, softplus: bool
          ) -> tuple[Tensor, Tensor]:
    """Chunk by chunk; inside one by doubling: after round k every step knows the 2^k steps before it. All products are
    of decays, none is divided by, so that nothing overflows."""
    delta = F.softplus(delta, threshold=1e4) if softplus else delta  # a threshold of 20 would jump by 2e-9
    outs = []
    for first in range(0, x.shape[1], _CHUNK):
        part = slice(first, first + _CHUNK)
        size = delta[:, part, :, None]
        decay, h = torch.exp(size * a), size * x[:, part, :, None] * b[:, part, None, :]
        for reach in (1 << k for k in range((h.shape[1] - 1).bit_length())):
            h = torch.cat([h[:, :reach], h[:, reach:] + decay[:, reach:] * h[:, :-reach]], 1)
            decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        h = h + decay * state[:, None]
        outs.append((h * c[:, part, None, :]).sum(3))
        state = h[:, -1]
    y = torch.cat(outs, 1) + x * d if outs else x * d
    return y, state.clone()  # never an input itself


def _conv(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    rows = torch.cat([tail, x], 1)
    y = F.conv1d(rows.transpose(1, 2), weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2).contiguous()
    return (F.silu(y) if silu else y), rows[:, x.shape[1]:].contiguous()


def _depthwise(x: Tensor, w: Tensor, kernel_size: int) -> Tensor:
    batch, channels, height, width = x.shape
    groups = w.shape[1]
    windows = F.unfold(x, kernel_size, padding=kernel_size // 2).reshape(
        batch, channels // groups, groups, kernel_size * kernel_size, height, width)
    return (windows * w[:, None]).sum(3).reshape(x.shape)


_scan_op = torch.library.custom_op(
    "edgec::selective_scan", _scan, mutates_args=(),
    schema="(Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor d, Tensor state, bool softplus)"
           " -> (Tensor, Tensor)")
_conv_op = torch.library.custom_op(
    "edgec::causal_conv1d", _conv, mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor tail, bool silu) -> (Tensor, Tensor)")
_depthwise_op = torch.library.custom_op(
    "edgec::dynamic_depthwise", _depthwise, mutates_args=(), schema="(Tensor x, Tensor w, int kernel_size) -> Tensor")


@_scan_op.register_fake
def _(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, softplus: bool
      ) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(state)


@_conv_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(tail)


@_depthwise_op.register_fake
def _(x: Tensor, w: Tensor, kernel_size: int) -> Tensor:
    return torch.empty_like(x)


def _differentiable(operator: Any, reference: Callable[..., Any]) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(v for v in inputs if isinstance(v, Tensor)))
        ctx.settings = [v for v in inputs if not isinstance(v, Tensor)]

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [v.detach().requires_grad_() for v in ctx.saved_tensors]
            found = reference(*inputs, *ctx.settings)
            outputs = found if isinstance(found, tuple) else (found,)
            wanted = torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)
        return (*wanted, *(None for _ in ctx.settings))

    operator.register_autograd(backward, setup_context=keep)


for _operator, _reference in ((_scan_op, _scan), (_conv_op, _conv), (_depthwise_op, _depthwise)):
    _differentiable(_operator, _reference)
