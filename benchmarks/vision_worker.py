"""One network in one runtime, in a process of its own driven over stdin and stdout, with the protocol of
llama_worker.py; runs in the environment that bench_vision.py makes, so it imports of edgec only what it times.

`vision_worker.py convert RUNTIME FOLDER` makes the runtime's own file from FOLDER's model.onnx or model.pt2.
`vision_worker.py RUNTIME FOLDER THREADS` opens it. Commands, one a line: `answer FILE.npy` writes the output of
FOLDER's image.npy; `run UNTIMED TIMED` runs it so often and answers the seconds of each timed run; `profile N` (edgec
alone) the calls of the plan with their nanoseconds summed over N runs; `quit`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], Any]


def edgec(folder: Path, image: Any, threads: int) -> Run:
    from edgec import Model

    global profiled
    model = Model(folder / "edgec" / "model.edgec")
    session, feed = model.session(threads=threads), {model.inputs[0].name: image}
    name = model.outputs[0].name

    def profile(runs: int) -> list[dict[str, Any]]:
        with model.session(threads=threads, profile=True) as watched:
            for _ in range(3):
                watched.run(feed)
            watched.reset_profile()
            for _ in range(runs):
                watched.run(feed)
            return [{"layer": c.layer, "kernel": c.kernel, "nanoseconds": c.nanoseconds / runs, "bytes": c.bytes}
                    for c in watched.profile()]

    profiled = profile
    return lambda: session.run(feed)[name]


def onnxruntime(folder: Path, image: Any, threads: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, feed)[0]


def openvino(folder: Path, image: Any, threads: int) -> Run:
    import openvino as ov

    compiled = ov.Core().compile_model(str(folder / "model.onnx"), "CPU", {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads})
    request, output = compiled.create_infer_request(), compiled.output(0)
    return lambda: request.infer({0: image}, share_inputs=True, share_outputs=True)[output]


def ncnn(folder: Path, image: Any, threads: int) -> Run:
    import ncnn as api

    net = api.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = threads, False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(folder / "ncnn" / "model.ncnn.param")) or net.load_model(
            str(folder / "ncnn" / "model.ncnn.bin")):
        raise RuntimeError("ncnn cannot load what pnnx wrote")
    given = api.Mat(image[0]).clone()  # a Mat of an array does not keep it alive

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", given)
        status, found = extractor.extract("out0")
        if status:
            raise RuntimeError(f"ncnn: extract answers {status}")
        return np.array(found)[None]

    return run


def executorch(folder: Path, image: Any, threads: int) -> Run:
    import torch
    from executorch.extension.pybindings import portable_lib as api

    api._unsafe_reset_threadpool(threads)
    module = api._load_for_executorch(str(folder / "model.pte"))
    tensor = torch.from_numpy(image)

    def run() -> Any:
        return module.forward((tensor,))[0].numpy()

    return run


def litert(folder: Path, image: Any, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=threads)  # XNNPACK takes what it can
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        interpreter.set_tensor(given, image)
        interpreter.invoke()
        return interpreter.get_tensor(answer)

    return run


def convert_ncnn(folder: Path) -> None:
    import pnnx

    (folder / "ncnn").mkdir(exist_ok=True)
    names = {f"{kind}": f"model.{kind[:4]}.{kind[4:]}" for kind in (
        "pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnparam", "ncnnbin", "ncnnpy")}
    done = subprocess.run(
        [pnnx.EXEC_PATH, "../model.onnx", "inputshape=[1,3,224,224]f32", "fp16=0", "device=cpu",
         *(f"{kind}={name}" for kind, name in names.items())],
        cwd=folder / "ncnn", capture_output=True, text=True, check=False)
    if done.returncode or not (folder / "ncnn" / "model.ncnn.param").exists():
        raise RuntimeError(f"pnnx ends with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")


def convert_executorch(folder: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.load(folder / "model.pt2")
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    (folder / "model.pte").write_bytes(lowered.buffer)


def convert_litert(folder: Path) -> None:
    import litert_torch
    import torch

    module = torch.export.load(folder / "model.pt2").module()
    image = torch.from_numpy(np.load(folder / "image.npy"))
    litert_torch.convert(module, (image,)).export(str(folder / "model.tflite"))


profiled: Callable[[int], list[dict[str, Any]]]
RUNTIMES = {f.__name__: f for f in (edgec, onnxruntime, openvino, ncnn, executorch, litert)}
CONVERT = {"ncnn": convert_ncnn, "executorch": convert_executorch, "litert": convert_litert}


def main() -> None:
    if sys.argv[1] == "convert":
        CONVERT[sys.argv[2]](Path(sys.argv[3]))
        return
    folder = Path(sys.argv[2])
    run = RUNTIMES[sys.argv[1]](folder, np.load(folder / "image.npy"), int(sys.argv[3]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command, *rest = line.split()
        answer: dict[str, Any] = {}
        if command == "quit":
            break
        if command == "answer":
            np.save(rest[0], run())
        elif command == "profile":
            answer["calls"] = profiled(int(rest[0]))
        else:
            for _ in range(int(rest[0])):
                run()
            answer["seconds"] = []
            for _ in range(int(rest[1])):
                start = time.perf_counter()
                run()
                answer["seconds"].append(time.perf_counter() - start)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
