"""Damaged .onnx and safetensors files through the doors that read them, and .onnx files all the way to a bundle.

    python -m tests.fuzz.importers onnx|safetensors|compile [--seed S] [--count N] [--one S]   cases made from numbers
    python -m tests.fuzz.importers onnx|safetensors|compile --seconds N                atheris: guided by coverage

The only outcomes allowed are a model (compile: a bundle that the runtime opens), or an EdgecError that is no bug of
ours; in CPU_SECONDS, with at most MEMORY bytes more than the libraries take. Mutations follow the structure: fields of
the protobuf messages, entries of the JSON header.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import logging
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError

CPU_SECONDS = 10
MEMORY = 1 << 30
_INTERNAL = 70  # exit status of errors that are bugs
_ODD = (0, 1, -1, 2, 3, 7, 8, 16, 64, 255, 65536, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1,
        -(1 << 63))
_WORDS = ("", "x", "y", "w", "Relu", "Add", "Loop", "If", "Reshape", "ai.onnx.ml", "é", "a\0b", "n" * 300, "../x",
          "/etc/passwd")


def onnx_seeds() -> list[bytes]:
    """Small models: a convolution, a shape computed in the graph, control flow and sequences, quantized layers."""
    from onnx import TensorProto, helper, numpy_helper

    f32, i64 = TensorProto.FLOAT, TensorProto.INT64
    rng = np.random.default_rng(0)

    def value(name: str, kind: int, *dims: int | str) -> Any:
        return helper.make_tensor_value_info(name, kind, dims)

    def constant(name: str, values: Any) -> Any:
        return numpy_helper.from_array(np.asarray(values), name)

    def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], *constants: Any, opset: int = 17) -> bytes:
        graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        return bytes(made.SerializeToString(deterministic=True))

    def weights(*dims: int) -> Any:
        return rng.standard_normal(dims).astype(np.float32)

    node = helper.make_node
    conv = model(
        [node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
         node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"]), node("Relu", ["n"], ["r"]),
         node("GlobalAveragePool", ["r"], ["p"]), node("Flatten", ["p"], ["f"]),
         node("Gemm", ["f", "h"], ["y"], transB=1)],
        [value("x", f32, "batch", 3, 8, 8)], [value("y", f32, "batch", 5)],
        constant("w", weights(4, 3, 3, 3)), constant("b", weights(4)), constant("s", np.ones(4, np.float32)),
        constant("h", weights(5, 4)))
    shapes = model(
        [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"], axis=0),
         node("Unsqueeze", ["n", "zeros"], ["m"]), node("Concat", ["m", "rest"], ["t"], axis=0),
         node("Reshape", ["x", "t"], ["r"]), node("Transpose", ["r"], ["q"], perm=[0, 2, 1]),
         node("MatMul", ["r", "q"], ["p"]), node("Softmax", ["p"], ["o"], axis=-1),
         node("Slice", ["o", "zeros", "ones", "ones"], ["y"])],
        [value("x", f32, "n", 6)], [value("y", f32, "k", 2, 2)],
        constant("zero", np.int64(0)), constant("zeros", np.zeros(1, np.int64)), constant("ones", np.ones(1, np.int64)),
        constant("rest", np.array([2, 3], np.int64)))
    body = helper.make_graph(
        [node("Add", ["i", "one"], ["next"]), node("Identity", ["c"], ["more"]), node("Mul", ["a", "two"], ["b"])],
        "body",
        [value("i", i64), value("c", TensorProto.BOOL), value("a", f32, 4)],
        [value("more", TensorProto.BOOL), value("b", f32, 4)],
        [constant("one", np.int64(1)), constant("two", np.float32(2))])
    branch = [helper.make_graph([node("Neg" if i else "Abs", ["l"], [f"o{i}"])], f"b{i}", [], [value(f"o{i}", f32, 4)])
              for i in (0, 1)]
    control = model(
        [node("Loop", ["turns", "yes", "x"], ["l"], body=body),
         node("If", ["yes"], ["y"], then_branch=branch[0], else_branch=branch[1])],
        [value("x", f32, 4)], [value("y", f32, 4)], constant("turns", np.int64(3)), constant("yes", np.bool_(True)))
    quantized = model(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]),
         node("DequantizeLinear", ["w", "ws"], ["v"], axis=0), node("MatMul", ["d", "v"], ["m"]),
         node("Cast", ["m"], ["y"], to=f32),
         node("TopK", ["m", "two"], ["t", "at"], axis=-1), node("LSTM", ["l", "lw", "lr"], ["h"], hidden_size=2)],
        [value("x", f32, 2, 4), value("l", f32, 3, 1, 2)],
        [value("y", f32, 2, 3), value("t", f32, 2, 2), value("at", i64, 2, 2), value("h", f32, 3, 1, 1, 2)],
        constant("s", np.float32(0.1)), constant("z", np.uint8(128)),
        constant("w", rng.integers(-9, 9, (4, 3)).astype(np.int8)),
        constant("ws", np.ones(4, np.float32)), constant("two", np.array([2], np.int64)),
        constant("lw", weights(1, 8, 2)), constant("lr", weights(1, 8, 2)), opset=13)
    old = model([node("Upsample", ["x"], ["u"], scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
                 node("Dropout", ["u"], ["d"]),
                 node("Clip", ["d"], ["y"], min=0.0, max=6.0)],
                [value("x", f32, 1, 2, 3, 3)], [value("y", f32, 1, 2, 6, 6)], opset=7)
    return [conv, shapes, control, quantized, old]


def compile_seeds() -> list[bytes]:
    """The models above and a small one for each way to lower an operator."""
    from tests.native.lower_cases import CASES, proto

    return onnx_seeds() + [bytes(proto(case).SerializeToString(deterministic=True)) for case in CASES]


def safetensors_seeds() -> list[bytes]:
    from safetensors.numpy import save

    rng = np.random.default_rng(0)
    return [save({"a": rng.standard_normal((3, 4)).astype(np.float32), "b.c": np.arange(5),
                  "e": np.zeros((0, 2), np.float16)}, {"format": "pt"}),
            save({"x": np.ones((), np.float32), "flag": np.array([True, False]), "u": np.arange(7, dtype=np.uint8)})]


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if _repeated(field) else [value]:
                yield from _messages(item)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _scalar(field: Any, old: Any, rng: random.Random) -> Any:
    """Another value that the field's type can hold."""
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            data = bytearray(old)
            if rng.random() < 0.3 or not data:
                return bytes(data[: rng.randrange(len(data) + 1)]) + rng.randbytes(rng.randrange(9))
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(data)
        return rng.choice(_WORDS)
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan"), old * 2))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return not old
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    wide = field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64)
    signed = field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_INT32)
    bits = 63 if wide else 31
    value = rng.choice((*_ODD, old + 1, old - 1, old * 2, rng.randrange(40)))
    return max(-(1 << bits) if signed else 0, min(value, (1 << bits) - 1))


def _damage_field(message: Any, rng: random.Random) -> None:
    present = [field for field, _ in message.ListFields()]
    fields = [field for field in message.DESCRIPTOR.fields if field in present or rng.random() < 0.15]
    if not fields:
        return
    field = rng.choice(fields)
    value = getattr(message, field.name)
    if _repeated(field):
        n, action = len(value), rng.randrange(5)
        if field.message_type is not None:
            if action == 0 and n:
                del value[rng.randrange(n)]
            elif action == 1 and n:
                value.add().CopyFrom(value[rng.randrange(n)])
            elif action == 2 and n > 1:
                a, b = rng.sample(range(n), 2)
                kept = type(value[a])()
                kept.CopyFrom(value[a])
                value[a].CopyFrom(value[b])
                value[b].CopyFrom(kept)
            elif action == 3:
                value.add()
        elif n and action < 3:
            i = rng.randrange(n)
            value[i] = _scalar(field, value[i], rng)
        elif n and action == 3:
            del value[rng.randrange(n)]
        else:
            zero = field.default_value if field.default_value not in (None, []) else 0
            if field.cpp_type == field.CPPTYPE_STRING:
                zero = b"" if field.type == field.TYPE_BYTES else ""
            value.append(_scalar(field, zero, rng))
    elif field.message_type is not None:
        message.ClearField(field.name) if rng.random() < 0.5 else value.SetInParent()
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(field, value, rng))


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy: most often one to four fields of its messages, now and then plain bytes."""
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        return mutate_bytes(data, rng)
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    for _ in range(1 if rng.random() < 0.6 else rng.randrange(2, 5)):
        _damage_field(rng.choice(list(_messages(proto))), rng)
    return bytes(proto.SerializePartialToString(deterministic=True))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bits turned, or the end cut off."""
    if not data or rng.random() < 0.3:
        return data[: rng.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy: entries of the header, with its length right again, or plain bytes."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not header or rng.random() < 0.2:
        return mutate_bytes(data, rng)
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(list(header) or ["a"])
        entry, action = header.get(name), rng.randrange(8)
        if action == 0:
            header.pop(name, None)
        elif action == 1:
            header[rng.choice(_WORDS)] = entry
        elif isinstance(entry, dict) and entry:
            key = rng.choice(list(entry))
            if action == 2:
                del entry[key]
            elif action == 3:
                key = rng.choice(("shape", "dtype", "data_offsets", "more"))
                entry[key] = rng.choice((1, "F32", [], {}, None, [1, 2]))
            elif isinstance(entry[key], list) and entry[key]:
                at = rng.randrange(len(entry[key]))
                entry[key][at] = rng.choice((*_ODD, 1.5, "1", None, True, [1], 10**30))
            else:
                entry[key] = rng.choice(("F64", "F32", "BF16", "I64", "U8", "BOOL", "F8_E4M3", 5, None, [],
                                         [1 << 62] * 9))
    text = json.dumps(header)
    if rng.random() < 0.1:
        text = rng.choice(("[" * 100_000, text.replace(":", ":" * 2), text + " " * 50, '{"a":' * 5000,
                           text[:-1] + ',"a":{}}'))
    raw = text.encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + length :]


def read_onnx(path: Path) -> None:
    from edgec.importers import onnx

    model = onnx.load(path, check=False)
    # What every later stage does first: all constants are read.
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype.name != "STRING":
            value.const_value.numpy()


def compile_onnx(path: Path) -> None:
    """What `edgec compile` does except comparing and golden vectors, both of which run the model in onnxruntime."""
    from edgec.native.bundle import write_bundle
    from edgec.pipeline import CompileOptions, prepare_model
    from edgec.targets import EmitOptions, native

    report = prepare_model(str(path), CompileOptions(importer={"check": False, "dynamic": _ranges(path)}))
    bundle = path.with_name("model.edgec")
    write_bundle(bundle, native.plan_model(report.model, EmitOptions())[0], tokenizer=None, golden=None, manifest={})
    native.accept(bundle)


def _ranges(path: Path) -> dict[str, dict[int, tuple[int, int]]]:
    """Ranges for the sizes of inputs that are names."""
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        return {}
    constants = {tensor.name for tensor in proto.graph.initializer}
    return {value.name: {axis: (1, 4) for axis, dim in enumerate(value.type.tensor_type.shape.dim) if dim.dim_param}
            for value in proto.graph.input if value.name not in constants}


def read_safetensors(path: Path) -> None:
    from edgec.importers.stored import open_safetensors

    for tensor in open_safetensors(path).values():
        tensor.read()


# kind -> file name, first inputs, mutation, door.
Mutate = Callable[[bytes, random.Random], bytes]
KINDS: dict[str, tuple[str, Callable[[], list[bytes]], Mutate, Callable[[Path], None]]] = {
    "onnx": ("model.onnx", onnx_seeds, mutate_onnx, read_onnx),
    "compile": ("model.onnx", compile_seeds, mutate_onnx, compile_onnx),
    "safetensors": ("model.safetensors", safetensors_seeds, mutate_safetensors, read_safetensors),
}


class BrokenPromise(Exception):  # noqa: N818 - it is not an error of a call
    """A door did something else than to import or to refuse."""


def attempt(kind: str, data: bytes, folder: Path) -> bool:
    """Whether the file was taken. Raises BrokenPromise."""
    name, _, _, read = KINDS[kind]
    path = folder / name
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        read(path)
    except EdgecError as e:
        if e.exit_code == _INTERNAL:
            raise BrokenPromise(str(e)) from e
        return False
    except BrokenPromise:
        raise
    except BaseException as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        raise BrokenPromise(f"{type(e).__name__}: {e} ({Path(at.filename).name}:{at.lineno})") from e
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return True


@functools.cache
def _seeds(kind: str) -> list[bytes]:
    return KINDS[kind][1]()


def case(kind: str, number: int) -> bytes:
    """Case `number`: a seed with one to three mutations, which it alone decides."""
    mutate = KINDS[kind][2]
    first = _seeds(kind)
    data, rng = first[number % len(first)], random.Random(number)
    for _ in range(rng.randrange(1, 4)):
        data = mutate(data, rng)
    return data


def limit(kind: str) -> None:
    """No more memory than MEMORY above what is there when all is loaded, and a hang ends in an exception."""
    def late(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"more than {CPU_SECONDS} s of CPU")

    logging.disable(logging.CRITICAL)  # onnx_ir says at length what is wrong with a file
    with tempfile.TemporaryDirectory() as folder:
        for seed in _seeds(kind)[:12]:
            attempt(kind, seed, Path(folder))
    taken = int(re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, taken + MEMORY))
    signal.signal(signal.SIGPROF, late)


def run(kind: str, first: int, count: int, folder: Path) -> int:
    """How many of the cases broke a promise; each is printed."""
    taken = failed = 0
    for number in range(first, first + count):
        try:
            taken += attempt(kind, case(kind, number), folder)
        except BrokenPromise as e:
            failed += 1
            print(f"importers: {kind} --one {number}: {str(e)[:500]}", flush=True)
    print(f"{kind}: {count} cases, {taken} taken\n{count - failed} passed, {failed} failed")
    return failed


def run_atheris(kind: str, seconds: int, folder: Path) -> None:
    """Ends the process, with status 0 when nothing was found."""
    import atheris

    # Function by function: the finder of an editable install is not one that atheris instruments modules of.
    for name, module in list(sys.modules.items()):
        if name.startswith("edgec."):
            own = [value for value in vars(module).values() if getattr(value, "__module__", "") == name]
            methods = [method for value in own if inspect.isclass(value) for method in vars(value).values()]
            for function in filter(inspect.isfunction, own + methods):
                atheris.instrument_func(function)
    mutate = KINDS[kind][2]
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(_seeds(kind)):
        (corpus / str(i)).write_bytes(seed)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        changed = mutate(data, random.Random(seed))
        return changed if len(changed) <= most else data[:most]

    def one(data: bytes) -> None:
        attempt(kind, data, folder)

    limits = ["-timeout=60", "-rss_limit_mb=4096", "-max_len=65536", f"-max_total_time={seconds}"]
    atheris.Setup([sys.argv[0], str(corpus), *limits], one, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--one", type=int)
    parser.add_argument("--seconds", type=int)
    options = parser.parse_args()
    if options.one is not None:
        options.seed, options.count = options.one, 1
    limit(options.kind)
    with tempfile.TemporaryDirectory() as folder:
        if options.seconds is not None:
            run_atheris(options.kind, options.seconds, Path(folder))
        return 1 if run(options.kind, options.seed, options.count, Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
