"""To be shown: in onnxruntime, edgec's library needs at most 1.11 times the native runtime's time for a product with
weights of 2, 3 or 4 bits (HLQ, one row), and less than onnxruntime's own MatMulNBits of 2 and 4 bits.

A chain of layers of 4096 x 4096 in groups of 128; every contender in turn in one process. Large caches may hold it all.
Nothing is written when the times of a contender say more about the machine's other work than about it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from harness import WORK, Report, arguments, ort_session
from onnx import TensorProto, helper, numpy_helper

from edgec.compress.formats import BitsSpec
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.ops import DOMAIN, OPSET
from edgec.judge.bundle import open_bundle
from edgec.judge.speed import interleaved
from edgec.pipeline import CompileOptions, compile_model

SIZE, LAYERS, GROUP = 4096, 8, 128
LEAST_OF_NATIVE = 0.9
CLOSE = 1e-3
MOST_SPREAD = 1.25  # the median over the tenth percentile: on a quiet machine a few percent


def hlq(bits: int) -> ir.Model:
    """A chain of random layers. Scales are such that values keep their size from layer to layer."""
    rng, spec = np.random.default_rng(bits), BitsSpec(bits, GROUP)
    groups = spec.groups(SIZE)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((1, SIZE)))
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []

    def weight(name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        initializers.append(ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype),
                                     shape=ir.Shape(array.shape)))
        return initializers[-1]

    value = x
    for layer in range(LAYERS):
        name = f"layer.{layer}.weight"
        planes = weight(f"{name}.planes", rng.integers(0, 256, (bits, SIZE, SIZE // 8), dtype=np.uint8))
        steps = 2.0 ** np.arange(bits)[:, None, None] / np.sqrt(4.0**bits / 3 * SIZE)
        scale = weight(f"{name}.scale", (steps * rng.uniform(0.9, 1.1, (bits, SIZE, groups))).astype(np.float16))
        offset = weight(f"{name}.offset", np.zeros((SIZE, groups), np.float16))
        dense = ir.node("BitPlaneToDense", [planes, scale, offset], domain=DOMAIN,
                        attributes={"bits": bits, "group_size": GROUP, "columns": SIZE, "uniform": 0})
        turn = ir.node("Transpose", [dense.outputs[0]], {"perm": [1, 0]})
        product = ir.node("MatMul", [value, turn.outputs[0]], name=f"layer.{layer}")
        for node in (dense, turn, product):
            node.outputs[0].name = f"{node.op_type}_{layer}"
        nodes += [dense, turn, product]
        value = product.outputs[0]
    value.name, value.type, value.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, name="g",
                     opset_imports={"": OPSET, DOMAIN: 1})
    return attach_info(ir.Model(graph, ir_version=10), ModelInfo(name=f"hlq{bits}"))


def nbits(bits: int, accuracy: int, path: Path) -> Path:
    """The same chain in onnxruntime's own operator."""
    rng, groups = np.random.default_rng(bits), SIZE // GROUP
    nodes, tensors = [], []
    for layer in range(LAYERS):
        codes = rng.integers(0, 256, (SIZE, groups, GROUP * bits // 8), dtype=np.uint8)
        scale = rng.uniform(0.9, 1.1, (SIZE, groups)).astype(np.float32) * 4 / (2**bits * np.sqrt(SIZE))
        parts = {"codes": codes, "scale": scale.astype(np.float32)}
        tensors += [numpy_helper.from_array(array, f"{key}{layer}") for key, array in parts.items()]
        nodes.append(helper.make_node(
            "MatMulNBits", [f"h{layer}" if layer else "x", f"codes{layer}", f"scale{layer}"],
            ["y" if layer == LAYERS - 1 else f"h{layer + 1}"], domain="com.microsoft", K=SIZE, N=SIZE, bits=bits,
            block_size=GROUP, accuracy_level=accuracy))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIZE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21),
                                                      helper.make_opsetid("com.microsoft", 1)], ir_version=10), path)
    return path


def main() -> None:
    chosen = arguments(__doc__ or "", turns=5)
    WORK.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).standard_normal((1, SIZE)).astype(np.float32)
    report, facts = Report("ort_library"), dict[str, Any]()
    folders = {}
    for bits in (2, 3, 4):
        for backend, library in (("native", False), ("ort", True)):
            folders[bits, backend] = WORK / f"ort_library_hlq{bits}_{backend}"
            compile_model(hlq(bits), CompileOptions(backend=backend, outdir=folders[bits, backend],
                                                    emitter={"library": library, "golden": False}))
    theirs = {(bits, level): nbits(bits, level, WORK / f"ort_library_nbits{bits}_{level}.onnx")
              for bits in (2, 4) for level in (0, 4)}
    for threads in chosen.threads:
        sides: list[tuple[str, Callable[[], object]]] = []
        opened = {key: open_bundle(folder) for key, folder in folders.items()}
        sessions = {key: model.session(threads=threads) for key, model in opened.items()}
        for bits in (2, 3, 4):
            found, wanted = (sessions[bits, name].run({"x": x})["y"] for name in ("ort", "native"))
            error = float(np.abs(found - wanted).max() / np.sqrt(np.mean(wanted**2)))
            if not error <= CLOSE:
                raise SystemExit(f"error: hlq{bits}: outputs differ by {error}: timing wrong answers says nothing")
            facts[f"hlq{bits}_error_{threads}"] = error
        for (bits, name), session in sessions.items():
            sides.append((f"{'native' if name == 'native' else 'library'} hlq{bits}",
                          lambda s=session: s.run({"x": x})))  # type: ignore[misc]
        for (bits, level), path in theirs.items():
            session = ort_session(path, threads)
            sides.append((f"MatMulNBits {bits} bits, level {level}", lambda s=session: s.run(None, {"x": x})))
        for samples in interleaved([(name, lambda r=run: r() and None) for name, run in sides],  # type: ignore[misc]
                                   chosen.turns, threads, LAYERS):
            per_layer = statistics.median(samples.seconds) / LAYERS
            report.rows.append({"test": samples.name, "threads": threads, "us_per_layer": round(1e6 * per_layer, 1),
                                "spread": samples.quantile(0.5) / samples.quantile(0.1),
                                "samples": samples.to_dict()})
            print(f"{samples.name:<28}{threads:>3} threads  {1e6 * per_layer:9.1f} us per layer", flush=True)
    busy = [f"{row['test']}, {row['threads']} threads: {row['spread']:.2f}" for row in report.rows
            if row["spread"] > MOST_SPREAD]
    if busy:
        raise SystemExit(f"error: the median is more than {MOST_SPREAD} times the tenth percentile, so that other work "
                         f"was measured too: {'; '.join(busy)}; nothing is written: repeat on a quiet machine")
    report.write(size=SIZE, layers=LAYERS, group=GROUP, **facts)
    failures = list(_failures(report.rows))
    if failures:
        raise SystemExit("error: " + "; ".join(failures))


def _failures(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for threads in sorted({row["threads"] for row in rows}):
        times = {row["test"]: row["us_per_layer"] for row in rows if row["threads"] == threads}
        for bits in (2, 3, 4):
            share = times[f"native hlq{bits}"] / times[f"library hlq{bits}"]
            if share < LEAST_OF_NATIVE:
                found.append(f"hlq{bits} with {threads} threads has {share:.2f} of the native speed")
        for bits in (2, 4):
            for level in (0, 4):
                if times[f"library hlq{bits}"] >= times[f"MatMulNBits {bits} bits, level {level}"]:
                    found.append(f"hlq{bits} with {threads} threads is slower than MatMulNBits, level {level}")
    return found


if __name__ == "__main__":
    main()
