"""Differentiable k-means (DKM, Cho et al., ICLR 2022, arXiv:2108.12659), twice: over weights and over unique values.

One iteration with centroids c [k, d]: A = softmax_j(-|w_i - c_j|^2 / tau), c_j = sum_i A_ij w_i / sum_i A_ij; after T
of them the weights are A c, A being that of the last iteration. A centroid whose attention has vanished stays.

`dense` differentiates that as it stands: T maps of k values per weight. `table` needs weights of 16 bits, of which
there are at most 65536 different ones: with u the unique values and n how often each occurs the iteration is the same
over (u, n), and the result is y(w) for a function y of one variable. Its gradient is exact as well. With g = dL/dW,
G_u = sum of g over the weights of value u, s(u) = dy/du at fixed centroids and R(u) = dL/du through the centroids,

    dL/dw = g s(w) + R(w) / n(w)

so nothing per weight is kept for it but the weights themselves. What is kept is (u, n): 10 bytes a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

VALUES = 1 << 16
_PIECE = 1 << 20  # weights whose indices exist at once
_CHUNK = 1 << 14  # vectors whose map exists at once
HALVES = (torch.bfloat16, torch.float16)


def dense(w: Tensor, start: Tensor, tau: Tensor, iterations: int, *, recompute: bool = False) -> tuple[Tensor, Tensor]:
    """(soft weights like `w`, centroids after the last iteration, detached).

    w: [tables, M, d], float32 or float64, d values of an index. start: [tables, k, d]. tau: [tables]. recompute: keep
    no map, but compute each a second time for the gradient, some vectors at a time.
    """
    pieces = list(torch.split(w, _CHUNK, 1)) if recompute else [w]
    scale, centroids = tau.to(w.dtype)[:, None, None], start.to(w.dtype)

    def call(function: Any, *args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False) if recompute else function(*args)

    before, maps = centroids, []
    for _ in range(iterations):
        before = centroids
        sums = [call(_sums, piece, before, scale, recompute) for piece in pieces]
        maps = [s[2] for s in sums]
        numerator, denominator = _total([s[0] for s in sums]), _total([s[1] for s in sums])
        centroids = _moved(numerator, denominator, before)
    if recompute:
        soft = torch.cat([call(_mixed, piece, before, centroids, scale) for piece in pieces], 1)
    else:
        soft = torch.bmm(maps[0].transpose(1, 2), centroids)
    return soft, centroids.detach()


def table(w: Tensor, start: Tensor, tau: Tensor, iterations: int, half: torch.dtype) -> tuple[Tensor, Tensor]:
    """(soft weights in w's dtype and shape, centroids [k] float64 after the last iteration).

    w: any shape; rounded to `half` (bfloat16 or float16), through which its gradient goes as if it were not. start:
    [k], tau: a number; both without gradient. All arithmetic over the table is float64.
    """
    return _Table.apply(w, start.to(torch.float64), tau.to(torch.float64), iterations, half)  # type: ignore[no-any-return, no-untyped-call]


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def attention(w: Tensor, centroids: Tensor, scale: Tensor) -> Tensor:
    """softmax over k of -|w - c|^2 / scale; w [..., M, d], centroids [..., k, d] -> [..., k, M]."""
    # Differences of single values instead of |w|^2 - 2 w c + |c|^2, which cancels where the map is nearly hard; and
    # value by value, so that nothing of k d values per vector exists. M is innermost: k may be as small as 2.
    far = (w[..., None, :, 0] - centroids[..., :, None, 0]).square()
    for j in range(1, w.shape[-1]):
        far = far + (w[..., None, :, j] - centroids[..., :, None, j]).square()
    return torch.softmax(-far / scale, -2)


def _sums(w: Tensor, centroids: Tensor, scale: Tensor, forget: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    shares = attention(w, centroids, scale)
    return torch.bmm(shares, w), shares.sum(2)[..., None], None if forget else shares


def _mixed(w: Tensor, before: Tensor, centroids: Tensor, scale: Tensor) -> Tensor:
    return torch.bmm(attention(w, before, scale).transpose(1, 2), centroids)


def _moved(numerator: Tensor, denominator: Tensor, before: Tensor) -> Tensor:
    alive = denominator > torch.finfo(denominator.dtype).tiny
    # The divisor is replaced before the division: a NaN behind where() would still have a gradient.
    return torch.where(alive, numerator / torch.where(alive, denominator, 1), before)


def index_of(piece: Tensor) -> Tensor:
    """int64 in [0, 65536): the bit patterns of 16-bit values."""
    return piece.view(torch.int16).to(torch.int64) & (VALUES - 1)


def histogram(w: Tensor, half: torch.dtype) -> tuple[Tensor, Tensor]:
    """(values in `half`, int64 counts) of the different bit patterns of `w`, in the order of these patterns."""
    counts = torch.zeros(VALUES, dtype=torch.int64, device=w.device)
    for piece in torch.split(w.reshape(-1), _PIECE):
        counts += torch.bincount(index_of(piece.to(half)), minlength=VALUES)
    present = counts.nonzero()[:, 0]
    # Bit patterns above 32767 are negative as int16.
    values = torch.where(present > VALUES // 2 - 1, present - VALUES, present).to(torch.int16).view(half)
    return values, counts[present]


def _chain(values: Tensor, counts: Tensor, start: Tensor, tau: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The centroids before and after the last iteration, over `values` that occur `counts` times."""
    before = after = start[:, None]
    points, weights = values[:, None], counts.to(values.dtype)
    for _ in range(iterations):
        before = after
        shares = attention(points, before, tau) * weights
        after = _moved(shares @ points, shares.sum(1)[:, None], before)
    return before, after


class _Table(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, start: Tensor, tau: Tensor, iterations: int, half: torch.dtype
                ) -> tuple[Tensor, Tensor]:
        values, counts = histogram(w, half)
        exact = values.to(torch.float64)
        before, after = _chain(exact, counts, start, tau, iterations)
        soft = attention(exact[:, None], before, tau).T @ after
        out = torch.empty_like(w, memory_format=torch.contiguous_format)
        function = _spread(values, soft[:, 0].to(w.dtype))
        for piece, made in _together(w, out):
            torch.index_select(function, 0, index_of(piece.to(half)), out=made)
        ctx.save_for_backward(w, start, tau, values, counts)
        ctx.iterations, ctx.half = iterations, half
        centroids = after[:, 0]
        ctx.mark_non_differentiable(centroids)
        return out, centroids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        w, start, tau, values, counts = ctx.saved_tensors
        sums = torch.zeros(VALUES, dtype=torch.float64, device=w.device)
        for piece, g in _together(w, grad):
            sums += torch.bincount(index_of(piece.to(ctx.half)), g.to(torch.float64), VALUES)
        with torch.enable_grad():
            exact = values.to(torch.float64)
            own, through = exact.clone().requires_grad_(), exact.clone().requires_grad_()
            before, after = _chain(through, counts, start, tau, ctx.iterations)
            soft = (attention(own[:, None], before, tau).T @ after)[:, 0]
            (slope,) = torch.autograd.grad(soft.sum(), own, retain_graph=True)
            (rest,) = torch.autograd.grad(soft, through, sums[index_of(values)])
        slopes, shared = _spread(values, slope), _spread(values, rest / counts)
        out = torch.empty_like(w, memory_format=torch.contiguous_format)
        for piece, g, made in _together(w, grad, out):
            index = index_of(piece.to(ctx.half))
            made.copy_(g.to(torch.float64) * slopes[index] + shared[index])
        return out, None, None, None, None


def _together(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors of as many values: views of those that are contiguous."""
    return zip(*(torch.split(t.reshape(-1), _PIECE) for t in tensors), strict=True)


def _spread(values: Tensor, results: Tensor) -> Tensor:
    """[65536]: the result of each value at its bit pattern."""
    full = torch.zeros(VALUES, dtype=results.dtype, device=results.device)
    full[index_of(values)] = results
    return full
