"""The ONNX door from file to native bundle: classic exports, quantized ones, ranges, language models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import edgec
from edgec import importers
from edgec.errors import EdgecError
from edgec.importers.onnx_original import Original
from edgec.ir.execute import save
from edgec.ir.info import info_of
from tests.passes.harness import Array, ops

RNG = np.random.default_rng(0)
CNN = """
g (float[batch,3,16,16] image) => (float[batch,5] y) {
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(image, w1, b1)
    n = BatchNormalization<epsilon = 0.001>(c, s, b, m, v)
    r = Clip<min = 0.0, max = 6.0>(n)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
    q = Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(p)
    d = Conv<kernel_shape = [3, 3], group = 8>(q, w2)
    f = ReduceMean<axes = [2, 3], keepdims = 0>(d)
    t = Slice<axes = [1], starts = [0], ends = [8]>(f)
    z = Dropout<ratio = 0.5>(t)
    l = Gemm<transB = 1>(z, w3, b3)
    y = Softmax(l)
}
"""
CNN_WEIGHTS = {"w1": (8, 3, 3, 3), "b1": (8,), "s": (8,), "b": (8,), "m": (8,), "v": (8,), "w2": (8, 1, 3, 3),
               "w3": (5, 8), "b3": (5,)}


def write(path: Path, text: str, opset: int, domains: str = "", **weights: Array) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{domains}]>\n{text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in weights.items())
    path.write_bytes(proto.SerializeToString())
    return path


def cnn(folder: Path, opset: int = 9) -> Path:
    weights = {k: RNG.standard_normal(s).astype(np.float32) for k, s in CNN_WEIGHTS.items()}
    weights["v"] = np.abs(weights["v"])
    return write(folder / "cnn.onnx", CNN, opset, **weights)


def refused(source: Path, code: str, **options: object) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        importers.load(source, **options)
    assert caught.value.code == code, caught.value.render()
    return caught.value


def test_a_classic_export_runs_natively(tmp_path: Path) -> None:
    """Opset 9: attributes that became inputs, statistics, a symbolic batch."""
    path = cnn(tmp_path)
    edgec.compile(path, tmp_path / "out", dynamic={"image": {0: (1, 4)}})
    with edgec.Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        for batch in (1, 3, 4):
            image = RNG.standard_normal((batch, 3, 16, 16)).astype(np.float32)
            wanted = Original(path).run({"image": image})["y"]
            np.testing.assert_allclose(session.run({"image": image})["y"], wanted, rtol=1e-4, atol=1e-6)
    report = edgec.compare(tmp_path / "out", str(path))
    assert report["outputs"]["y"]["max_abs"] < 1e-5


def test_ranges(tmp_path: Path) -> None:
    path = cnn(tmp_path)
    assert info_of(importers.load(path, dynamic={"image": {0: (1, 4)}})).dynamic == {"batch": (1, 4)}
    fixed = importers.load(path, dynamic={"image": {0: (2, 2)}})
    assert list(fixed.graph.inputs[0].shape or ()) == [2, 3, 16, 16]
    assert info_of(fixed).dynamic == {}
    assert "image" in refused(path, "E0002", dynamic={"picture": {0: (1, 2)}}).wanted
    assert "16" in refused(path, "E0002", dynamic={"image": {2: (1, 2)}}).found
    refused(path, "E0002", dynamic={"image": {0: (4, 1)}})
    refused(path, "E0002", dynamic={"image": {7: (1, 2)}})
    refused(path, "E0002", max_context=5)
    with pytest.raises(EdgecError) as caught:
        edgec.compile(path, tmp_path / "out")
    assert caught.value.code == "E0302"


def test_names_and_weights_that_are_inputs(tmp_path: Path) -> None:
    """Sizes with names of any characters; initializers listed as inputs, as old exporters did."""
    path = write(tmp_path / "m.onnx", "g (float[N,4] x, float[4,2] w) => (float[N,2] y) { y = MatMul(x, w) }", 11,
                 w=RNG.standard_normal((4, 2)).astype(np.float32))
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch size?"
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch size?"
    onnx.save(proto, path)
    model = importers.load(path, dynamic={"x": {0: (1, 3)}})
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert info_of(model).dynamic == {"batch_size": (1, 3)}
    edgec.compile(path, tmp_path / "out", dynamic={"x": {0: (1, 3)}})


def sized(path: Path, size: int | str) -> Path:
    """y = x + x of [size, 4]."""
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)'
                                    " { y = Add(x, x) }")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        dim = value.type.tensor_type.shape.dim[0]
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("numbers", ["0,137438953472,1", "0,1,0", "5,-900000000,-2"])
def test_ranges_have_an_end(tmp_path: Path, numbers: str) -> None:
    """ONNX's shape inference makes the numbers of a Range of constants, which can be a terabyte."""
    start, limit, step = numbers.split(",")
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (int64[3] x) => (int64[N] y) '
                                    f"<int64 a = {{{start}}}, int64 b = {{{limit}}}, int64 c = {{{step}}}> "
                                    "{ r = Range(a, b, c) y = Gather(r, x) }")
    onnx.save(proto, tmp_path / "m.onnx")
    assert "Range" in refused(tmp_path / "m.onnx", "E0101").found


def test_negative_sizes(tmp_path: Path) -> None:
    """-1 is what some tools write for an unknown size; no other one means anything."""
    model = importers.load(sized(tmp_path / "m.onnx", -1), dynamic={"x": {0: (1, 3)}})
    assert info_of(model).dynamic == {"x_0": (1, 3)}
    assert ["x:0" in note for note in info_of(model).notes] == [True]
    assert info_of(importers.load(sized(tmp_path / "m.onnx", 3))).notes == ()
    edgec.compile(sized(tmp_path / "m.onnx", -1), tmp_path / "out", dynamic={"x": {0: (1, 3)}})
    for size in (-2, -5, -(1 << 62)):
        error = refused(sized(tmp_path / "m.onnx", size), "E0101")
        assert "axis 0" in error.where
        assert str(size) in error.found


@pytest.mark.parametrize("symbol", ["A" * 100_000, "a b " * 30_000, "\x1b[31m" * 20_000])
def test_symbols_of_any_length(tmp_path: Path, symbol: str) -> None:
    path = sized(tmp_path / "m.onnx", symbol)
    assert list(importers.load(path).graph.inputs[0].shape or ()) == ["x_0", 4]
    error = EdgecError("E0101", stage="import", where=symbol, found=symbol)
    assert len(str(error)) < 40_000
    assert "\x1b" not in str(error)


def test_a_difference_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgec.importers import onnx_opset

    monkeypatch.setattr(onnx_opset, "STEPS", {
        **onnx_opset.STEPS, ("Clip", 11): lambda op, node: op.Clip(node.inputs[0], None, op.like(0.5, node.inputs[0]))})
    error = refused(cnn(tmp_path), "E0104")
    assert "cnn.onnx" in error.where
    importers.load(tmp_path / "cnn.onnx", check=False)


def test_blocks_of_four_bits(tmp_path: Path) -> None:
    """A table of 4-bit rows and a product with 4-bit weights, as language models are exported."""
    n, k, block = 24, 64, 32
    text = (f"g (int64[1,6] ids) => (float[1,6,{n}] y) {{"
            " x = com.microsoft.GatherBlockQuantized<bits = 4, block_size = 32, quantize_axis = 1>(table, ids, ts)"
            " h = com.microsoft.SimplifiedLayerNormalization<axis = -1, epsilon = 0.001>(x, g)"
            f" y = com.microsoft.MatMulNBits<K = {k}, N = {n}, bits = 4, block_size = {block}>(h, b, s) }}")
    weights = {
        "table": RNG.integers(0, 256, (10, k // 2)).astype(np.uint8),
        "ts": RNG.uniform(0.01, 0.1, (10, k // block)).astype(np.float32), "g": np.ones(k, np.float32),
        "b": RNG.integers(0, 256, (n, k // block, block // 2)).astype(np.uint8),
        "s": RNG.uniform(0.01, 0.1, n * (k // block)).astype(np.float32),
    }
    path = write(tmp_path / "q.onnx", text.replace("com.microsoft.Simplified", "Simplified"), 21,
                 ', "com.microsoft" : 1', **weights)
    edgec.compile(path, tmp_path / "out")
    with edgec.Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        ids = np.array([[0, 9, 3, 3, 1, 7]])
        wanted = Original(path).run({"ids": ids})["y"]
        np.testing.assert_allclose(session.run({"ids": ids})["y"], wanted, rtol=1e-4, atol=1e-3)


def test_inspect_does_not_read_weights(tmp_path: Path) -> None:
    found = edgec.inspect(str(cnn(tmp_path)))
    assert found["task"] == "generic"
    assert found["parameters"] == sum(int(np.prod(s)) for s in CNN_WEIGHTS.values())
    assert found["inputs"][0]["shape"] == ["batch", 3, 16, 16]
    assert found["estimated_ram_bytes"] > found["weight_bytes"] >= 4 * found["parameters"]
    assert set(found["estimated_ram"]) == {"weights", "activations", "cache", "total"}


# -- language models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(prose_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our language model as other tools export it: past_key_values.i.*, attention_mask, config.json beside it."""
    folder = tmp_path_factory.mktemp("exported")
    save(importers.load(prose_lm, check=False), folder / "model.onnx")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((prose_lm / name).read_bytes())
    return folder / "model.onnx"


def test_a_language_model_with_a_configuration(exported: Path, prose_bundle: Path, tmp_path: Path) -> None:
    info = info_of(importers.load(exported))
    config = json.loads((exported.parent / "config.json").read_text())
    assert info.task == "causal-lm"
    assert (info.max_context, info.vocab_size) == (config["max_position_embeddings"], config["vocab_size"])
    edgec.compile(exported, tmp_path / "out", ctx=64)
    report = edgec.compare(tmp_path / "out", str(exported), tokens=40)
    assert report["greedy"]["equal"] == report["greedy"]["tokens"] == 32
    assert report["outputs"]["logits"]["max_abs"] < 1e-3
    with edgec.Model(tmp_path / "out" / "model.edgec") as ours, edgec.Model(prose_bundle / "model.edgec") as other:
        tokens = ours.tokenize("It was a quiet evening")
        with ours.session() as a, other.session() as b:
            np.testing.assert_allclose(a.score(tokens), b.score(tokens), rtol=1e-3, atol=1e-3)


def test_a_language_model_without_a_context(exported: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "model.onnx"
    lonely.write_bytes(exported.read_bytes())
    for data in exported.parent.glob("*.data"):
        (tmp_path / data.name).write_bytes(data.read_bytes())
    assert "--ctx" in refused(lonely, "E0101").hint
    assert info_of(importers.load(lonely, max_context=64, check=False)).max_context == 64
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    assert "config.json" in refused(lonely, "E0101").where


GQA = """
g (int64[batch,S] input_ids, int64[batch,T] attention_mask, float[batch,1,P,16] past_key_values.0.key,
   float[batch,1,P,16] past_key_values.0.value) => (float[batch,S,40] logits, float[batch,1,T,16] present.0.key,
   float[batch,1,T,16] present.0.value) {
    axes = Constant<value = int64[1] {1}>()
    one = Constant<value = int64[1] {1}>()
    sums = ReduceSum<keepdims = 0>(attention_mask, axes)
    lengths64 = Sub(sums, one)
    lengths = Cast<to = 6>(lengths64)
    shape = Shape<start = 1, end = 2>(attention_mask)
    total64 = Squeeze(shape)
    total = Cast<to = 6>(total64)
    x = Gather(table, input_ids)
    n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.00001>(x, g1)
    q = MatMul(n, wq)
    k = MatMul(n, wk)
    v = MatMul(n, wv)
    a, present.0.key, present.0.value = com.microsoft.GroupQueryAttention
        <num_heads = 2, kv_num_heads = 1, do_rotary = 1, local_window_size = WINDOW>
        (q, k, v, past_key_values.0.key, past_key_values.0.value, lengths, total, cos, sin)
    o = MatMul(a, wo)
    h, m, i, r = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.00001>(x, o, g2)
    logits = MatMul(h, head)
}
"""


@pytest.mark.parametrize("window", [-1, 9])
def test_grouped_attention_of_a_vendor_becomes_a_cache(tmp_path: Path, window: int) -> None:
    shapes = {"table": (40, 32), "wq": (32, 32), "wk": (32, 16), "wv": (32, 16), "wo": (32, 32), "head": (32, 40)}
    weights = {k: (RNG.standard_normal(s) * 0.3).astype(np.float32) for k, s in shapes.items()}
    angle = np.arange(64)[:, None] / 100 ** (np.arange(8) / 8)
    weights |= {"g1": np.ones(32, np.float32), "g2": np.ones(32, np.float32),
                "cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
    text = GQA.replace("WINDOW", str(window)).replace("past_key_values.0.", "past_").replace("present.0.", "new_")
    path = write(tmp_path / "lm.onnx", text, 21, ', "com.microsoft" : 1', **weights)
    edgec.compile(path, tmp_path / "out", ctx=64)
    report = edgec.compare(tmp_path / "out", str(path), tokens=45)
    assert report["outputs"]["logits"]["max_abs"] < 1e-4
    assert report["greedy"]["equal"] == report["greedy"]["tokens"]


def test_operators_of_nobody_are_left_for_the_list(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.onnx", "g (float[2] x) => (float[2] y) { y = lab.Sharpen(x) }", 17, ', "lab" : 1')
    assert ops(importers.load(path)) == {"lab::Sharpen": 1}
