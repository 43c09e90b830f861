"""Claim: MobileNetV2 in fp32 is not slower than onnxruntime. One image, both sides in turn, 1 and 2 threads."""

from __future__ import annotations

import numpy as np
from harness import WORK, Report, arguments, asset, compiled, ort_session

from edgec import Model, importers
from edgec.ir.execute import save

SOURCE = "examples/mobilenet_v2.py:create"


def main() -> None:
    chosen = arguments(__doc__ or "", turns=10)
    asset("mobilenet_v2/model.safetensors")
    bundle = compiled(SOURCE, "mobilenet_v2")
    # onnxruntime gets the graph as torch exported it, before any of our passes.
    graph = WORK / "mobilenet_v2.onnx"
    save(importers.load(SOURCE, check=False), graph)
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    report = Report("mobilenet_v2")
    with Model(bundle) as model:
        name, output = model.inputs[0].name, model.outputs[0].name
        for threads in chosen.threads:
            theirs = ort_session(graph, threads)
            feed = {theirs.get_inputs()[0].name: image}
            with model.session(threads=threads) as ours:
                error = float(np.abs(ours.run({name: image})[output] - theirs.run(None, feed)[0]).max())
                if not error < 1e-3:
                    raise SystemExit(f"error: outputs differ by {error}: timing wrong answers says nothing")
                report.add("one image", threads, 1, lambda s=ours: s.run({name: image}),
                           lambda s=theirs, f=feed: s.run(None, f), chosen.turns)
        report.write(isa=model.info.isa, model=SOURCE, dtype="float32")


if __name__ == "__main__":
    main()
