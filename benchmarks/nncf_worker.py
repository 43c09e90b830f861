"""What needs packages that the project does without, in an environment of its own (quality_int8.py makes it):

    nncf_worker.py digits OUT.npz                        scikit-learn's digits: images [1797, 8, 8], labels
    nncf_worker.py quantize MODEL.onnx CALIB.npy EVAL.npy OUT.npz [slow]
                                                         NNCF's PTQ of the model, run by OpenVINO: logits, bytes
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np


def digits(out: str) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    np.savez(out, images=found.images.astype(np.float32), labels=found.target.astype(np.int64))


def quantize(model: str, calib: str, images: str, out: str, *options: str) -> None:
    import nncf
    import openvino

    samples, judged = np.load(calib, mmap_mode="r"), np.load(images, mmap_mode="r")
    quantized = nncf.quantize(
        openvino.Core().read_model(model), nncf.Dataset([np.array(x)[None] for x in samples]),
        subset_size=len(samples), fast_bias_correction="slow" not in options, target_device=nncf.TargetDevice.CPU,
    )
    path = Path(out).with_suffix(".xml")
    openvino.save_model(quantized, path, compress_to_fp16=False)
    network = openvino.compile_model(quantized, "CPU", {"INFERENCE_NUM_THREADS": 1})
    logits = np.concatenate([network(np.array(x)[None])[0].reshape(1, -1) for x in judged])
    np.savez(out, logits=logits, bytes=path.with_suffix(".bin").stat().st_size, version=version("nncf"),
             openvino=version("openvino"))


if __name__ == "__main__":
    {"digits": digits, "quantize": quantize}[sys.argv[1]](*sys.argv[2:])
