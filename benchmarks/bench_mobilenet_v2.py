"""Claim: MobileNetV2 in fp32 and in int8 is not slower than onnxruntime. One image, both in turn, 1 and 2 threads.

int8: by onnxruntime's tool, weights of 7 bits. static8: by ours, 8 bits. onnxruntime's default kernels saturate there
on CPUs without VNNI; they are what is timed, and its exact ones are what our outputs are compared with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness import WORK, Report, arguments, asset, compiled, ort_session

import edgec
from edgec import Model, importers
from edgec.ir.execute import save
from edgec.judge.bundle import BUNDLE
from edgec.judge.images import labelled_images, load_image
from edgec.quantization import StaticOptions

SOURCE = "examples/mobilenet_v2.py:create"


def quantized(graph: Path, shape: tuple[int, ...]) -> Path:
    """The graph in 8 bits by onnxruntime's own tool, with its advice for CPUs without VNNI."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            name = ort_session(graph, 1).get_inputs()[0].name
            images = (np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(4))
            self.left = iter([{name: image} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    path = graph.with_name("mobilenet_v2_int8.onnx")
    quantize_static(graph, path, Images(), per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8)
    return path


def static8() -> tuple[Path, Path]:
    """The graph that --quant static8 makes, and its bundle."""
    passes, out = WORK / "static8_passes", WORK / "static8"
    edgec.compile(SOURCE, out, quant=StaticOptions(str(asset("imagenet_sample")), samples=32), dump_dir=passes)
    (graph,) = passes.glob("*_quantize_static.onnx")
    return graph, out / BUNDLE


def photograph() -> np.ndarray:
    options = StaticOptions(str(asset("imagenet_sample")))
    path, _ = labelled_images(asset("imagenet_sample"))[101]
    return np.asarray(load_image(path, 224, 224, options.mean, options.std), np.float32).reshape(1, 3, 224, 224)


def main() -> None:
    chosen = arguments(__doc__ or "", turns=10)
    asset("mobilenet_v2/model.safetensors")
    bundle = compiled(SOURCE, "mobilenet_v2")
    # onnxruntime gets the graph as torch exported it, before any of our passes.
    graph = WORK / "mobilenet_v2.onnx"
    save(importers.load(SOURCE, check=False), graph)
    image = photograph()  # how fast 8-bit products are depends on the data
    report = Report("mobilenet_v2")
    whole = quantized(graph, image.shape)
    isa = ""
    # Roundings add up over 53 layers: a few steps of the last one.
    tests = (("one image", graph, bundle, 1e-3), ("int8", whole, compiled(whole, "int8"), 0.5),
             ("static8", *static8(), 0.5))
    for test, path, source, most in tests:
        with Model(source) as model:
            name, output, isa = model.inputs[0].name, model.outputs[0].name, model.info.isa
            for threads in chosen.threads:
                theirs = ort_session(path, threads)
                feed = {theirs.get_inputs()[0].name: image}
                exact = ort_session(path, threads, exact=True)
                with model.session(threads=threads) as ours:
                    error = float(np.abs(ours.run({name: image})[output] - exact.run(None, feed)[0]).max())
                    if not error < most:
                        raise SystemExit(f"error: outputs differ by {error}: timing wrong answers says nothing")
                    report.add(test, threads, 1, lambda s=ours, n=name: s.run({n: image}),
                               lambda s=theirs, f=feed: s.run(None, f), chosen.turns)
    report.write(isa=isa, model=SOURCE, dtype="float32, int8")


if __name__ == "__main__":
    main()
