"""Claim: static 8-bit quantization loses at most 1.0 point of top-1, and no more than onnxruntime's and NNCF's.

Every row (model, tool, settings) is calibrated on images that no row is judged on. Quantized graphs of ours and of
onnxruntime's quantize_static are run by onnxruntime with integer kernels whose sums are exact on any CPU (its setting
x64quantprecision), and once more with those it takes by default; NNCF's by OpenVINO. A finished row is kept in
build/bench/int8; `--only TEXT` measures rows whose name holds TEXT, `--tables` only writes docs/int8_quality.md. torch
trains the small nets; scikit-learn and NNCF come from an environment of their own, build/bench/nncf.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import venv
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from harness import RESULTS, ROOT, WORK, asset

from edgec import importers
from edgec.compress.ranges import Histogram, Method
from edgec.compress.regions import Region
from edgec.compress.static import RegionError, Static, observe
from edgec.ir.execute import save
from edgec.ir.passes import Context
from edgec.judge.images import labelled_images, load_image
from edgec.judge.metrics import distance
from edgec.native.lower import capabilities
from edgec.passes import NORMALIZE
from edgec.passes.compress.correct_bias import CorrectBias
from edgec.passes.compress.equalize import Equalize
from edgec.passes.compress.quantize_static import QuantizeStatic
from edgec.pipeline import run_passes

CACHE, VENV = WORK / "int8", WORK / "nncf"
DOCS, KEPT = ROOT / "docs" / "int8_quality.md", RESULTS / "quality_int8.json"
MARK = "<!-- Below this line: written by benchmarks/quality_int8.py -->"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = ("minmax", "percentile:99.9", "percentile:99.99", "percentile:99.999", "entropy", "mse", "mse bc", "mse eq",
            "mse eq+bc", "minmax bc", "minmax eq")


@dataclass(frozen=True)
class Stack:
    """Samples for calibration: images [N, C, H, W]."""

    name: str
    images: Any

    @property
    def count(self) -> int:
        return len(self.images)

    def feed(self, index: int) -> Mapping[str, Any]:
        return {self.name: np.array(self.images[index])[None]}


class Subject(ABC):
    """A model with images to calibrate on, others to judge on, and their classes."""

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = name, about
        self.folder = CACHE / name
        self.folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def source(self) -> tuple[Any, dict[str, Any]]:
        """What importers.load takes."""

    @abstractmethod
    def data(self) -> tuple[Any, Any, Any]:
        """Calibration images, images to judge on, their classes."""

    @cached_property
    def sets(self) -> tuple[Any, Any, Any]:
        files = [self.folder / f"{part}.npy" for part in ("calib", "eval", "labels")]
        if not all(file.is_file() for file in files):
            for file, array in zip(files, self.data(), strict=True):
                np.save(file, array)
        calib, judged, labels = (np.load(file, mmap_mode="r") for file in files)
        return calib, judged, np.array(labels)

    def graph(self) -> ir.Model:
        """A new copy of the normalized float model: what all tools start from."""
        path = self.folder / "float.onnx"
        if not path.is_file():
            source, options = self.source()
            model = importers.load(source, check=False, **options)
            save(run_passes(model, NORMALIZE, Context(capabilities=capabilities())).model, path)
        return importers.load(str(path), check=False)

    @property
    def float_file(self) -> Path:
        self.graph()
        return self.folder / "float.onnx"


class MobileNet(Subject):
    def source(self) -> tuple[Any, dict[str, Any]]:
        asset("mobilenet_v2/model.safetensors")
        return "examples/mobilenet_v2.py:create", {}

    def data(self) -> tuple[Any, Any, Any]:
        files = labelled_images(asset("imagenet_sample"))
        pixels = [load_image(path, 224, 224, MEAN, STD)[0] for path, _ in files]
        rest = [i for i in range(len(files)) if i % 5]
        return (np.stack(pixels[::5]), np.stack([pixels[i] for i in rest]),
                np.array([files[i][1] for i in rest]))


class Digits(Subject):
    """Trained on 1000 of scikit-learn's digits, calibrated on 100 of those, judged on the other 797."""

    def splits(self) -> tuple[Any, Any, Any]:
        path = CACHE / "digits.npz"
        if not path.is_file():
            worker("digits", path)
        found = np.load(path)
        order = np.random.default_rng(0).permutation(len(found["images"]))
        return found["images"][order][:, None] / np.float32(16), found["labels"][order], 1000

    def source(self) -> tuple[Any, dict[str, Any]]:
        import torch
        from digit_nets import LSNet, ResNet, trained

        images, labels, cut = self.splits()
        torch.manual_seed(0)
        torch.set_num_threads(1)  # two threads wait for each other on layers as small as these
        net = {"resnet_digits": ResNet, "lsnet_digits": LSNet}[self.name]()
        trained(net, torch.from_numpy(images[:cut]), torch.from_numpy(labels[:cut]))
        return net, {"example_inputs": (torch.zeros(1, 1, 8, 8),)}

    def data(self) -> tuple[Any, Any, Any]:
        images, labels, cut = self.splits()
        return images[:100], images[cut:], labels[cut:]


def subjects() -> list[Subject]:
    return [MobileNet("mobilenet_v2", "MobileNetV2, 100 images to calibrate, 400 to judge"),
            Digits("resnet_digits", "ResNet-18-like on digits, 100 of the training images to calibrate, 797 to judge"),
            Digits("lsnet_digits", "LSNet-like on digits, the same images")]


def worker(*arguments: object) -> None:
    """Runs nncf_worker.py in its own environment, which is made when it is not there."""
    python = VENV / "bin" / "python"
    if not (VENV / "ready").is_file():
        venv.create(VENV, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "openvino", "nncf", "-c", "constraints.txt"],
                       cwd=ROOT, check=True)
        (VENV / "ready").touch()
    script = Path(__file__).with_name("nncf_worker.py")
    subprocess.run([str(a) for a in (python, script, *arguments)], check=True)


@dataclass(frozen=True)
class Row:
    """tool: edgec, onnxruntime, nncf or float."""

    tool: str
    setting: str

    @property
    def key(self) -> str:
        return f"{self.tool}-{self.setting}".replace(":", "_").replace(" ", "_")

    def logits(self, subject: Subject) -> tuple[Any, int]:
        """Of every image to judge on; bytes of the model file."""
        file = subject.folder / f"{self.key}.onnx"
        if self.tool == "float":
            file = subject.float_file
        elif self.tool == "edgec":
            _edgec(subject, self.setting, file)
        elif self.tool == "onnxruntime":
            _onnxruntime(subject, self.setting, file)
        else:
            out = subject.folder / f"{self.key}.npz"
            calib, judged = subject.folder / "calib.npy", subject.folder / "eval.npy"
            worker("quantize", subject.float_file, calib, judged, out, *self.setting.split()[:1])
            found = np.load(out)
            return found["logits"], int(found["bytes"])
        data = file.with_name(file.name + ".data")
        return run(file, subject.sets[1]), file.stat().st_size + (data.stat().st_size if data.is_file() else 0)


# In the order of the tables. Those that say most are measured first.
ROWS = (Row("float", "fp32"), *(Row("edgec", setting) for setting in SETTINGS),
        *(Row("onnxruntime", method) for method in ("MinMax", "Entropy", "Percentile")),
        *(Row("nncf", f"{speed} bias correction") for speed in ("fast", "slow")))
FIRST = ("float-fp32", "edgec-minmax", "edgec-mse", "edgec-mse_bc", "onnxruntime-MinMax", "nncf-fast_bias_correction",
         "onnxruntime-Percentile", "edgec-entropy", "edgec-percentile_99.99", "edgec-mse_eq", "edgec-mse_eq+bc",
         "onnxruntime-Entropy", "edgec-minmax_bc", "edgec-minmax_eq")
# Also run with onnxruntime's default kernels.
DEFAULT_KERNELS = ("edgec-minmax", "edgec-mse", "edgec-mse_bc", "onnxruntime-MinMax")


@dataclass
class Remembering(Static):
    """Counts the activations once for all methods: the graphs are the same."""

    known: dict[str, Mapping[str, Histogram]] = field(default_factory=dict)
    key: str = ""

    def histograms(self, model: ir.Model, values: Sequence[ir.Value]) -> Mapping[str, Histogram]:
        if self.key not in self.known:
            self.known[self.key] = observe(model, values, self.samples, True, self.progress)
        return self.known[self.key]

    def probed(self, model: ir.Model, regions: Sequence[Region]) -> dict[str, RegionError]:
        """The report is not read here: one sample is enough."""
        return self.errors(model, regions, 1)


_KNOWN: dict[str, Mapping[str, Histogram]] = {}


def _edgec(subject: Subject, setting: str, file: Path) -> None:
    method, _, more = setting.partition(" ")
    model = subject.graph()
    static = Remembering(Stack(model.graph.inputs[0].name or "", subject.sets[0]), Method.parse(method),
                         equalize="eq" in more, correct="bc" in more, known=_KNOWN,
                         key=f"{subject.name} {'eq' in more}")
    ctx = Context(capabilities=capabilities(), static=static)
    save(run_passes(model, (Equalize(), CorrectBias(), QuantizeStatic()), ctx).model, file)


def _onnxruntime(subject: Subject, setting: str, file: Path) -> None:
    """onnxruntime's quantize_static with its defaults, per channel, U8S8; its histograms are fed a few images at a
    time, which changes nothing but the memory it needs."""
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry

    stack = Stack(subject.graph().graph.inputs[0].name or "", subject.sets[0])

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, indices: range) -> None:
            self.left = iter(indices)

        def get_next(self) -> Mapping[str, Any] | None:
            i = next(self.left, None)
            return None if i is None else stack.feed(i)

    kinds = sorted(QDQRegistry)
    calibrator = create_calibrator(subject.float_file, kinds, augmented_model_path=str(file.with_suffix(".augmented")),
                                   calibrate_method=q.CalibrationMethod[setting],
                                   extra_options={"symmetric": False} if setting == "Percentile" else {})
    for start in range(0, stack.count, 10):
        calibrator.collect_data(Reader(range(start, min(start + 10, stack.count))))
    quantizer = QDQQuantizer(onnx.load(subject.float_file), True, False, q.QuantType.QInt8, q.QuantType.QUInt8,
                             calibrator.compute_data(), [], [], kinds, {})
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(file), False)
    file.with_suffix(".augmented").unlink(missing_ok=True)


def run(file: Path, images: Any, exact: bool = True) -> Any:
    """Logits [N, classes] in onnxruntime. exact: no sums in 16 bits, which saturate on CPUs without VNNI."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with ThreadPoolExecutor(2) as pool:
        return np.concatenate(list(pool.map(
            lambda x: session.run(None, {name: np.array(x)[None]})[0].reshape(1, -1), images)))


def measure(subject: Subject, row: Row) -> dict[str, Any]:
    """The row's figures, measured now or before."""
    kept = subject.folder / f"{row.key}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    _, judged, labels = subject.sets
    start = time.perf_counter()
    logits, size = row.logits(subject)
    wanted_file = subject.folder / "float.npy"
    if row.tool == "float":
        np.save(wanted_file, logits)
    wanted = np.load(wanted_file)
    right, was = logits.argmax(1) == labels, wanted.argmax(1) == labels
    change = right.astype(float) - was
    found = {
        "subject": subject.name, "tool": row.tool, "setting": row.setting, "images": len(labels),
        "top1": float(right.mean()), "change": float(change.mean()),
        "interval": float(1.96 * change.std(ddof=1) / np.sqrt(len(labels))),
        "agree": float((logits.argmax(1) == wanted.argmax(1)).mean()), "sqnr_db": distance(logits, wanted).sqnr_db,
        "bytes": size, "seconds": time.perf_counter() - start,
    }
    if row.key in DEFAULT_KERNELS:
        fast = run(subject.folder / f"{row.key}.onnx", judged, exact=False)
        found |= {"fused_top1": float((fast.argmax(1) == labels).mean()),
                  "fused_sqnr_db": distance(fast, wanted).sqnr_db}
    if row.tool == "float":
        found["sqnr_db"] = None
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| tool | settings | top-1 | change, 95 % | same class | logit SQNR | MB | default kernels: top-1, SQNR |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]
    for r in found:
        change = "" if r["tool"] == "float" else f"{100 * r['change']:+.2f} ± {100 * r['interval']:.2f}"
        sqnr = "" if r["sqnr_db"] is None else f"{r['sqnr_db']:.1f} dB"
        fused = f"{100 * r['fused_top1']:.2f}, {r['fused_sqnr_db']:.1f} dB" if "fused_top1" in r else ""
        lines.append(f"| {r['tool']} | {r['setting']} | {100 * r['top1']:.2f} | {change} | {100 * r['agree']:.1f} % | "
                     f"{sqnr} | {r['bytes'] / 1e6:.2f} | {fused} |")
    return lines


def write(results: Mapping[str, list[dict[str, Any]]], abouts: Mapping[str, str]) -> None:
    lines = [MARK, ""]
    for name, found in results.items():
        if found:
            lines += [f"## {abouts[name]}", "", *table(found), ""]
    head = DOCS.read_text(encoding="utf-8").partition(MARK)[0] if DOCS.is_file() else "# Quality of static int8\n\n"
    DOCS.write_text(head + "\n".join(lines).rstrip() + "\n", encoding="utf-8")
    RESULTS.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps({"schema_version": 1, "benchmark": "quality_int8", "rows": results}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose 'subject tool settings' holds this")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write what there is")
    chosen = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    known = subjects()
    for subject in known:
        found: dict[str, dict[str, Any]] = {}
        for row in sorted(ROWS, key=lambda row: FIRST.index(row.key) if row.key in FIRST else len(FIRST)):
            there = (subject.folder / f"{row.key}.json").is_file()
            wanted = chosen.only in f"{subject.name} {row.tool} {row.setting}"
            if there or (wanted and not chosen.tables):
                found[row.key] = measure(subject, row)
                if not there:
                    print(table([found[row.key]])[-1], flush=True)
        results[subject.name] = [found[row.key] for row in ROWS if row.key in found]
    write(results, {s.name: s.about for s in known})


if __name__ == "__main__":
    main()
