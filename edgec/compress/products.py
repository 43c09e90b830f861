"""Products in float32 whose bits do not depend on how many threads there are, and work divided among threads.

Libraries for matrices divide a product by the number of threads, and round differently for it: the same model
quantized on other cores would come out in other bytes. Here every task belongs to one thread, and the tasks are always
the same: panels of columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.compress.solvers.native import default_threads

_PANEL = 512
_MOST_THREADS = 8  # every one has a panel or a sample in memory


def in_parallel(job: Callable[[int], None], tasks: Iterable[int], tick: Callable[[], None] | None = None) -> None:
    """Calls job(i) for every task, several at once, and tick after each; raises what the first that failed raised."""
    pool = ThreadPoolExecutor(min(default_threads(), _MOST_THREADS))
    try:
        for _ in pool.map(job, tasks):
            if tick is not None:
                tick()
    finally:
        pool.shutdown(cancel_futures=True)


def product(a: Array, b: Array) -> Array:
    """float32 a [M, T] times b [T, N]."""
    out = np.empty((a.shape[0], b.shape[1]), np.float32)

    def panel(at: int) -> None:
        out[:, at : at + _PANEL] = _multiplied(a, b[:, at : at + _PANEL])

    in_parallel(panel, range(0, b.shape[1], _PANEL))
    return out


def add_gram(h: Array, x: Array) -> None:
    """Adds xT x, x float32 [T, K], to the lower triangle of h float64 [K, K] and something to the rest."""
    turned = np.ascontiguousarray(x.T)

    def panel(at: int) -> None:
        end = min(at + _PANEL, len(h))
        h[at:end, :end] += _multiplied(turned[at:end], x[:, :end])

    in_parallel(panel, range(0, len(h), _PANEL))


def mirror(h: Array) -> None:
    """Copies the lower triangle of h [K, K] to the upper one."""
    for at in range(0, len(h), _PANEL):
        end = at + _PANEL
        h[:at, at:end] = h[at:end, :at].T
        corner = h[at:end, at:end]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T


def _multiplied(a: Array, b: Array) -> Array:
    values: Array = _session().run(None, {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b)})[0]
    return values


@functools.cache
def _session() -> Any:
    """A session of onnxruntime that multiplies two matrices in the calling thread."""
    import onnxruntime as ort

    a, b = (ir.Value(name=name, shape=ir.Shape([f"{name}0", f"{name}1"]), type=ir.TensorType(ir.DataType.FLOAT))
            for name in "ab")
    node = ir.node("MatMul", [a, b])
    node.outputs[0].name = "c"
    graph = ir.Graph([a, b], list(node.outputs), nodes=[node], opset_imports={"": 20}, name="product")
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["a0", "b1"])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
