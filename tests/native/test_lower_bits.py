"""Compressed weights in plans: which calls keep them in few bits, which get them dense, and the numbers of both."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.formats import BitsSpec, PaletteSpec, planes_of
from edgec.errors import EdgecError
from edgec.ir.shapes import infer_shapes
from edgec.native.bundle import read_bundle, write_bundle
from edgec.native.golden import golden_section
from edgec.native.lower import build_plan, unsupported_nodes
from edgec.native.lower_fuse import _common_layer
from edgec.native.lower_values import Draft
from edgec.native.plan import Plan
from edgec.native.plan_check import plan_problems
from tests.compress.random_weights import random_palette, random_quantized
from tests.native.plan_interpreter import Interpreter
from tests.passes.harness import Array, evaluate, model

RNG = np.random.default_rng(11)
N, K = 70, 45
HLQ2 = BitsSpec(2, 32)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def graph(body: str, inputs: str, output: str, spec: BitsSpec = HLQ2, **consts: Any) -> ir.Model:
    """A model whose `body` reads the decompressed matrix w [N, K]; `consts`: declared type and array by name."""
    q = random_quantized(RNG, spec, N, K)
    planes, scale = planes_of(q.codes, spec.bits), q.scale[None] if spec.uniform else q.scale
    tensors = {"p": ("uint8", planes), "s": ("float16", scale), "o": ("float16", q.offset), **consts}
    declared = "".join(f", {t}[{','.join(map(str, np.shape(a)))}] {n}" for n, (t, a) in tensors.items())
    attributes = f"bits = {spec.bits}, group_size = {spec.group}, columns = {K}, uniform = {int(spec.uniform)}"
    body = f"w = edgec.BitPlaneToDense<{attributes}>(p, s, o) {body}"
    made = model(f"g ({inputs}{declared}) => ({output} y) {{ {body} }}",
                 domains={"edgec": 1}, **{n: a for n, (_, a) in tensors.items()})
    infer_shapes(made)
    return made


def check(made: ir.Model, feeds: dict[str, Array], kernels: list[str], tolerance: float = 1e-5) -> Plan:
    plan = build_plan(made)
    assert [c.kernel for c in plan.entries[0].calls if c.kernel not in ("transpose", "copy")] == kernels
    assert not plan_problems(plan)
    wanted = evaluate(made, feeds, "onnxruntime")["y"]
    found = Interpreter(plan).run("main", feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())
    dense = build_plan(made, low_bit=False)
    assert not {"linear_bits", "gather_bits"} & {c.kernel for c in dense.entries[0].calls}
    np.testing.assert_allclose(Interpreter(dense).run("main", feeds)["y"], wanted, rtol=1e-3,
                               atol=1e-3 + 1e-6 * np.abs(wanted).max())
    return plan


@pytest.mark.parametrize("spec", [BitsSpec(1, 32), BitsSpec(3, 64), BitsSpec(4, 128, True), BitsSpec(8, 32)], ids=str)
def test_a_linear_keeps_its_weight_in_few_bits(spec: BitsSpec) -> None:
    made = graph("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", f"float[2,3,{K}] x", f"float[2,3,{N}]", spec)
    plan = check(made, {"x": f(2, 3, K)}, ["linear_bits"])
    (weight,), (stored,) = plan.weights, plan.stored()
    assert weight.bytes == stored.bytes == spec.bytes(N, K)
    assert (stored.form, stored.shape, stored.kernels) == (str(spec), (N, K), ("linear_bits",))
    assert f"w0 p: u8[{weight.bytes}] = {spec}[{N}, {K}] {spec.bits_per_weight(N, K):.4g} bits\n" in plan.text()
    assert plan.memory_table().bits_per_weight == pytest.approx(spec.bits_per_weight(N, K))
    ints = plan.entries[0].calls[0].ints
    assert ints == (0, 0, N, spec.bits, spec.group, int(spec.uniform))


def test_bias_activation_and_residual_join_the_product() -> None:
    made = graph("t = Transpose<perm = [1, 0]>(w) m = MatMul(x, t) b1 = Add(m, b) a = Relu(b1) y = Add(a, r)",
                 f"float[4,{K}] x, float[4,{N}] r", f"float[4,{N}]", b=("float", f(N)))
    plan = check(made, {"x": f(4, K), "r": f(4, N)}, ["linear_bits"])
    assert plan.entries[0].calls[0].ints[:3] == (1, 0, N)


def test_gemm() -> None:
    made = graph("y = Gemm<transB = 1>(x, w, b)", f"float[4,{K}] x", f"float[4,{N}]", b=("float", f(N)))
    check(made, {"x": f(4, K)}, ["linear_bits"])


def test_a_scaled_gemm_is_dense_and_says_so() -> None:
    made = graph("y = Gemm<transB = 1, alpha = 0.5>(x, w)", f"float[4,{K}] x", f"float[4,{N}]")
    plan = check(made, {"x": f(4, K)}, ["linear"], 1e-3)
    assert plan.weights[0].origin == "hlq2g32"
    assert "dense from hlq2g32" in plan.text()
    assert plan.memory_table().to_json()["unpacked"] == [
        {"name": "p", "from": "hlq2g32", "stored": "f32/p16", "read_by": ["linear"]}]


def test_a_tied_table_is_stored_once() -> None:
    made = graph("e = Gather(w, i) t = Transpose<perm = [1, 0]>(w) y = MatMul(e, t)", "int64[2,3] i",
                 f"float[2,3,{N}]", BitsSpec(4, 64))
    plan = check(made, {"i": np.array([[0, 69, 3], [-1, 5, 5]])}, ["gather_bits", "linear_bits"])
    assert len(plan.weights) == 1
    assert plan.stored()[0].kernels == ("gather_bits", "linear_bits")


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_gathered_rows_are_exact(kind: str) -> None:
    made = graph("y = Gather(w, i)", f"{kind}[5] i", f"float[5,{K}]", BitsSpec(3, 32))
    index = np.array([0, 69, 3, 3, 41]).astype(kind)
    plan = check(made, {"i": index}, ["gather_bits"])
    assert np.array_equal(Interpreter(plan).run("main", {"i": index})["y"],
                          evaluate(made, {"i": index}, "onnxruntime")["y"])


@pytest.mark.parametrize("image", [(2, K, 3, 5), (2, K, 7)])
def test_a_pointwise_convolution_is_a_linear_over_pixels(image: tuple[int, ...]) -> None:
    dims = ",".join(map(str, image))
    shape = np.array([N, K, *[1] * (len(image) - 2)])
    made = graph("v = Reshape(w, d) y = Conv(x, v, b)", f"float[{dims}] x",
                 f"float[{','.join(map(str, (image[0], N, *image[2:])))}]", d=("int64", shape), b=("float", f(N)))
    check(made, {"x": f(*image)}, ["linear_bits"])


def siblings(parts: list[tuple[int, BitsSpec]], body: str, outputs: str, **consts: Any) -> ir.Model:
    """A model whose `body` reads x [3, K] and t0, t1, ..., the transposes of matrices of (rows, spec)."""
    made, tensors = "", dict(consts)
    for i, (n, spec) in enumerate(parts):
        q = random_quantized(RNG, spec, n, K)
        scale = q.scale[None] if spec.uniform else q.scale
        tensors |= {f"p{i}": ("uint8", planes_of(q.codes, spec.bits)), f"s{i}": ("float16", scale),
                    f"o{i}": ("float16", q.offset)}
        made += (f"w{i} = edgec.BitPlaneToDense<bits = {spec.bits}, group_size = {spec.group}, columns = {K}, "
                 f"uniform = {int(spec.uniform)}>(p{i}, s{i}, o{i}) t{i} = Transpose<perm = [1, 0]>(w{i}) ")
    declared = "".join(f", {t}[{','.join(map(str, np.shape(a)))}] {n}" for n, (t, a) in tensors.items())
    graph = model(f"g (float[3,{K}] x{declared}) => ({outputs}) {{ {made}{body} }}", domains={"edgec": 1},
                  **{n: a for n, (_, a) in tensors.items()})
    infer_shapes(graph)
    return graph


def check_siblings(made: ir.Model, kernels: list[str]) -> Plan:
    plan = build_plan(made)
    assert not plan_problems(plan)
    assert [c.kernel for c in plan.entries[0].calls] == kernels
    feeds = {"x": f(3, K)}
    wanted, found = evaluate(made, feeds, "onnxruntime"), Interpreter(plan).run("main", feeds)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max())
    return plan


@pytest.mark.parametrize(("count", "kernels"), [
    (2, ["linear_bits_split"]), (4, ["linear_bits_split"]), (5, ["linear_bits_split", "linear_bits"]),
    (6, ["linear_bits_split", "linear_bits_split"])])
def test_siblings_become_one_call_up_to_four(count: int, kernels: list[str]) -> None:
    """Every one with rows, bits and form of its own, some with a bias; all are outputs of the entry."""
    parts = [(20 + 33 * i, BitsSpec(1 + i, 32, i % 3 == 1)) for i in range(count)]
    biases = {f"b{i}": ("float", f(parts[i][0])) for i in range(0, count, 2)}
    body = " ".join(f"m{i} = MatMul(x, t{i}) y{i} = Add(m{i}, b{i})" if f"b{i}" in biases else f"y{i} = MatMul(x, t{i})"
                    for i in range(count))
    outputs = ", ".join(f"float[3,{n}] y{i}" for i, (n, _) in enumerate(parts))
    plan = check_siblings(siblings(parts, body, outputs, **biases), kernels)
    assert [w.form for w in plan.stored() if w.form != "f32"] == [str(spec) for _, spec in parts]


def test_siblings_that_differ_stay_apart() -> None:
    """Another group, another activation, a residual; and a bias that is computed after the first sibling."""
    parts = [(64, BitsSpec(2, 32)), (64, BitsSpec(2, 64)), (64, BitsSpec(2, 32)), (64, BitsSpec(2, 32)),
             (64, BitsSpec(2, 32))]
    body = ("y0 = MatMul(x, t0) y1 = MatMul(x, t1) m2 = MatMul(x, t2) y2 = Relu(m2) m3 = MatMul(x, t3) "
            "e = Exp(y0) y3 = Add(m3, e) i = Identity(z) h = Sin(i) m4 = MatMul(x, t4) y4 = Add(m4, h)")
    outputs = ", ".join(f"float[3,64] y{i}" for i in range(5))
    plan = build_plan(siblings(parts, body, outputs, z=("float", f(64))))
    assert not [c for c in plan.entries[0].calls if c.kernel == "linear_bits_split" and c.ints[1] != 32]
    check_siblings(siblings(parts[:4], body[: body.index("i = ")], outputs[: outputs.index(", float[3,64] y4")]),
                   ["linear_bits", "linear_bits", "linear_bits", "unary", "linear_bits"])


def test_a_reader_between_two_siblings() -> None:
    """What the second writes is read after both; what lies between them reads the first."""
    body = "a = MatMul(x, t0) b = Relu(a) c = Exp(b) d = MatMul(x, t1) e = Sigmoid(d) y = Add(c, e) z = Mul(a, d)"
    check_siblings(siblings([(64, HLQ2), (64, HLQ2)], body, "float[3,64] y, float[3,64] z"),
                   ["linear_bits_split", "unary", "unary", "unary", "binary", "binary"])


def test_joined_calls_are_named_after_the_module_around_them() -> None:
    assert _common_layer([Draft("linear_bits", layer, [], [], []) for layer in ("m.0.q", "m.0.k")]) == "m.0"
    # Equal names below different modules say nothing.
    assert _common_layer([Draft("linear_bits", layer, [], [], []) for layer in ("m.0.q", "m.1.q")]) == "m"
    assert _common_layer([Draft("linear_bits", layer, [], [], []) for layer in ("a.q", "b.q")]) == "a.q"


def test_golden_vectors_of_joined_products_allow_for_tables() -> None:
    made = siblings([(64, HLQ2), (64, HLQ2)], "y = MatMul(x, t0) z = MatMul(x, t1)", "float[3,64] y, float[3,64] z")
    section = golden_section(made, build_plan(made))
    assert section is not None
    assert np.float32(5e-2).tobytes() in section


def test_fast_products_say_so_and_travel_with_the_plan(tmp_path: Any) -> None:
    """The last parameter of both kernels; nothing else of the plan changes, and without the option nothing does."""
    body = "y = MatMul(x, t0) z = MatMul(x, t1) v = MatMul(x, t2)"
    parts = [(64, HLQ2), (64, HLQ2), (70, BitsSpec(3, 64))]
    made = siblings(parts, body, "float[3,64] y, float[3,64] z, float[3,70] v")
    exact, fast = build_plan(made), build_plan(made, arithmetic="fast")
    assert [c.kernel for c in fast.entries[0].calls] == ["linear_bits_split", "linear_bits"]
    for old, new in zip(exact.entries[0].calls, fast.entries[0].calls, strict=True):
        assert new.ints == (*old.ints, 1)
        assert new.operands == old.operands
    assert not plan_problems(fast)
    assert [w.kernels for w in fast.stored()] == [("linear_bits_split fast",)] * 2 + [("linear_bits fast",)]
    assert [w.kernels for w in exact.stored()] == [("linear_bits_split",)] * 2 + [("linear_bits",)]
    section = golden_section(made, fast)
    assert section is not None
    assert np.float32(1.5e-1).tobytes() in section
    write_bundle(tmp_path / "m.edgec", fast, tokenizer=None, golden=None, manifest={})
    assert read_bundle(tmp_path / "m.edgec").plan == fast
    feeds = {"x": f(3, K)}
    assert np.array_equal(Interpreter(fast).run("main", feeds)["v"], Interpreter(exact).run("main", feeds)["v"])


def test_fast_changes_no_other_plan() -> None:
    made = graph("y = Gather(w, i)", "int64[5] i", f"float[5,{K}]")
    assert build_plan(made, arithmetic="fast") == build_plan(made)


def test_a_joined_palette_says_that_it_is_dense() -> None:
    p = random_palette(RNG, PaletteSpec(3), 32, K)
    body = "".join(f"w{i} = edgec.PaletteToDense<bits = 3, columns = {K}>(p{i}, l{i}) " for i in range(2))
    tensors = {f"{n}{i}": a for i in range(2) for n, a in (("p", planes_of(p.indices, 3)), ("l", p.lut))}
    declared = "".join(f", {'uint8' if n[0] == 'p' else 'float16'}[{','.join(map(str, a.shape))}] {n}"
                       for n, a in tensors.items())
    made = model(f"g (float[3,{K}] x{declared}) => (float[3,64] y) {{ {body} w = Concat<axis = 0>(w0, w1) "
                 "y = Gemm<transB = 1>(x, w) }", domains={"edgec": 1}, **tensors)
    infer_shapes(made)
    (weight,) = check(made, {"x": f(3, K)}, ["linear"]).weights
    assert weight.origin == "palette3"


@pytest.mark.parametrize(("attributes", "window"), [
    ("strides = [2, 2]", (1, 1)), ("pads = [1, 1, 1, 1]", (1, 1)), ("pads = [1, 0, 1, 2]", (3, 1)),
    ("strides = [2, 1], dilations = [1, 2]", (3, 3))])
def test_convolutions_of_any_kernel_keep_their_weight_in_few_bits(attributes: str, window: tuple[int, int]) -> None:
    """Columns are (kh, kw, channel); the graph turns them to ONNX's order."""
    channels = K // (window[0] * window[1])
    made = graph(f"v = Reshape(w, d) t = Transpose<perm = [0, 3, 1, 2]>(v) c = Conv<{attributes}>(x, t, b) y = Relu(c)",
                 f"float[1,{channels},7,6] x", f"float[1,{N},A,B]", d=("int64", np.array([N, *window, channels])),
                 b=("float", f(N)))
    plan = check(made, {"x": f(1, channels, 7, 6)}, ["conv2d_bits"])
    assert [w.kernels for w in plan.stored() if w.form == "hlq2g32"] == [("conv2d_bits",)]
    (call,) = [c for c in plan.entries[0].calls if c.kernel == "conv2d_bits"]
    assert call.ints[8:] == (1, 0, N, 2, 32, 0)


def test_depthwise_of_few_bits() -> None:
    made = graph("v = Reshape(w, d) y = Conv<group = 70>(x, v)", "float[1,70,9,9] x", "float[1,70,A,B]",
                 d=("int64", np.array([70, 1, 5, 9])))
    assert check(made, {"x": f(1, 70, 9, 9)}, ["dwconv2d"], 1e-3).stored()[0].origin == "hlq2g32"


def palette(spec: PaletteSpec, body: str, inputs: str, output: str, dtype: str = "float16") -> ir.Model:
    """A model whose `body` reads the matrix w [N, K] of a palette."""
    p = random_palette(RNG, spec, N, K, np.float16 if dtype == "float16" else np.float32)
    planes = planes_of(p.indices, spec.bits)
    made = model(
        f"g ({inputs}, uint8[{','.join(map(str, planes.shape))}] p, {dtype}[{','.join(map(str, p.lut.shape))}] l)"
        f" => ({output} y) {{ w = edgec.PaletteToDense<bits = {spec.bits}, columns = {K}, rows_per_table = {spec.rows},"
        f" vector = {spec.vector}>(p, l) {body} }}", domains={"edgec": 1}, p=planes, l=p.lut)
    infer_shapes(made)
    return made


@pytest.mark.parametrize("dtype", ["float16", "float"])
@pytest.mark.parametrize("spec", [
    PaletteSpec(4), PaletteSpec(3, 8), PaletteSpec(1, 1), PaletteSpec(8, 1000, 2), PaletteSpec(5, 64, 8)], ids=str)
def test_a_palette_keeps_its_indices(spec: PaletteSpec, dtype: str) -> None:
    made = palette(spec, "y = Gemm<transB = 1>(x, w)", f"float[4,{K}] x", f"float[4,{N}]", dtype)
    plan = check(made, {"x": f(4, K)}, ["linear_bits"])
    size, form = (2, 64) if dtype == "float16" else (4, 80)
    assert plan.weights[0].bytes == spec.bytes(N, K, size) == plan.weights[0].load().nbytes
    assert plan.stored()[0].form == str(spec)
    assert plan.entries[0].calls[0].ints == (0, 0, N, spec.bits, spec.rows, form + spec.vector)
    section = golden_section(made, plan)
    assert section is not None
    looked_up = spec == PaletteSpec(4)  # one table for all rows
    assert np.float32(5e-2 if looked_up else 1e-3).tobytes() in section


@pytest.mark.parametrize("spec", [PaletteSpec(4), PaletteSpec(6, 3, 2)], ids=str)
def test_rows_of_a_palette_are_exact(spec: PaletteSpec) -> None:
    made = palette(spec, "y = Gather(w, i)", "int64[5] i", f"float[5,{K}]")
    index = np.array([0, N - 1, 3, 3, 41])
    plan = check(made, {"i": index}, ["gather_bits"])
    assert np.array_equal(Interpreter(plan).run("main", {"i": index})["y"],
                          evaluate(made, {"i": index}, "onnxruntime")["y"])


def test_vectors_longer_than_any_kernel_reads_are_dense_and_say_so() -> None:
    made = palette(PaletteSpec(4, 0, 9), "y = Gemm<transB = 1>(x, w)", f"float[4,{K}] x", f"float[4,{N}]")
    plan = check(made, {"x": f(4, K)}, ["linear"], 1e-3)
    assert plan.weights[0].origin == "palette4v9"


def test_sibling_palettes_become_one_call() -> None:
    """Palettes join with palettes only: what is prepared of x for bit planes is nothing to them."""
    made, tensors, specs = "", {}, [PaletteSpec(4, 32), PaletteSpec(2, 32, 2), BitsSpec(2, 32), BitsSpec(3, 32)]
    for i, spec in enumerate(specs):
        if isinstance(spec, PaletteSpec):
            p = random_palette(RNG, spec, 40, K)
            tensors |= {f"p{i}": ("uint8", planes_of(p.indices, spec.bits)), f"s{i}": ("float16", p.lut)}
            made += (f"w{i} = edgec.PaletteToDense<bits = {spec.bits}, columns = {K}, rows_per_table = {spec.rows}, "
                     f"vector = {spec.vector}>(p{i}, s{i}) ")
        else:
            q = random_quantized(RNG, spec, 40, K)
            tensors |= {f"p{i}": ("uint8", planes_of(q.codes, spec.bits)), f"s{i}": ("float16", q.scale),
                        f"o{i}": ("float16", q.offset)}
            made += (f"w{i} = edgec.BitPlaneToDense<bits = {spec.bits}, group_size = 32, columns = {K}>"
                     f"(p{i}, s{i}, o{i}) ")
        made += f"y{i} = Gemm<transB = 1>(x, w{i}) "
    declared = "".join(f", {t}[{','.join(map(str, np.shape(a)))}] {n}" for n, (t, a) in tensors.items())
    outputs = ", ".join(f"float[3,40] y{i}" for i in range(len(specs)))
    graph_ = model(f"g (float[3,{K}] x{declared}) => ({outputs}) {{ {made} }}", domains={"edgec": 1},
                   **{n: a for n, (_, a) in tensors.items()})
    infer_shapes(graph_)
    plan = check_siblings(graph_, ["linear_bits_split", "linear_bits_split"])
    assert [c.ints[3::2] for c in plan.entries[0].calls] == [(65, 66, 0, 0), (0, 0, 0, 0)]


# -- blocked DequantizeLinear ----------------------------------------------------------------------------------------


def blocked(kind: str, block: int, k: int = 256, *, scale: Array | None = None, zero: bool = True,
            low: int = 0, high: int = 16, axis: int = 1, body: str = "") -> tuple[ir.Model, dict[str, Array]]:
    n = 24
    type_of = {"uint4": ml_dtypes.uint4, "int4": ml_dtypes.int4}.get(kind) or np.dtype(kind)
    codes = RNG.integers(low, high, (n, k))
    codes[0, :2] = low, high - 1
    groups = -(-k // block)
    scale = (RNG.random((n, groups)) + 0.1).astype(np.float16).astype(np.float32) if scale is None else scale
    zeros = RNG.integers(low, high, (n, groups))
    parts = [codes, scale, zeros] if axis else [codes.T, scale.T, zeros.T]
    names: dict[str, tuple[str, Any]] = {"q": (kind, parts[0].astype(type_of)), "s": ("float", parts[1])}
    if zero:
        names["z"] = (kind, parts[2].astype(type_of))
    inputs = ", ".join(names)
    names["o"] = ("int64", RNG.permutation(k))
    declared = "".join(f", {t}[{','.join(map(str, a.shape))}] {m}" for m, (t, a) in names.items())
    body = body or ("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)" if axis else "y = MatMul(x, w)")
    made = model(f"g (float[3,{k}] x{declared}) => (float[3,{n}] y) {{ w = DequantizeLinear<axis = {axis}, "
                 f"block_size = {block}>({inputs}) {body} }}", **{m: a for m, (_, a) in names.items()})
    infer_shapes(made)
    return made, {"x": f(3, k)}


@pytest.mark.parametrize(("kind", "block", "low", "high", "form"), [
    ("uint4", 32, 0, 16, "int4g32"), ("uint4", 64, 0, 16, "int4g64"), ("uint4", 128, 0, 16, "int4g128"),
    ("uint4", 32, 0, 4, "int2g32"), ("int4", 64, -8, 8, "int4g64"), ("int8", 32, -127, 128, "int8g32"),
    ("uint8", 32, 0, 256, "int8g32"), ("int8", 128, -4, 4, "int3g128"), ("uint4", 256, 0, 16, "int4g128"),
    ("uint8", 96, 100, 102, "int1g32"), ("int8", 300, -128, 127, "int8g128"),
])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_stay_in_few_bits(kind: str, block: int, low: int, high: int, form: str, zero: bool, axis: int) -> None:
    made, feeds = blocked(kind, block, zero=zero, low=low, high=high, axis=axis)
    plan = check(made, feeds, ["linear_bits"])
    assert plan.stored()[0].form == form
    # Bit for bit what DequantizeLinear gives.
    k = 256
    made, _ = blocked(kind, block, zero=zero, low=low, high=high, axis=axis)
    eye = {"x": np.eye(3, k, dtype=np.float32)}
    assert np.array_equal(Interpreter(build_plan(made)).run("main", eye)["y"], evaluate(made, eye, "onnxruntime")["y"])


def test_wider_codes_are_dense() -> None:
    made, feeds = blocked("int16", 32, low=-1000, high=1000)
    assert check(made, feeds, ["linear"], 1e-3).weights[0].origin == "int16 in blocks of 32"


@pytest.mark.parametrize(("block", "scale", "origin"), [
    (16, None, "uint4 in blocks of 16"),
    (32, np.full((24, 8), 0.1, np.float32), "uint4 in blocks of 32"),
    (32, np.full((24, 8), 1e30, np.float32), "uint4 in blocks of 32"),
])
def test_what_would_not_be_exact_is_dense_and_says_so(block: int, scale: Array | None, origin: str) -> None:
    made, feeds = blocked("uint4", block, scale=scale)
    assert check(made, feeds, ["linear"], 1e-3).weights[0].origin == origin


def test_columns_in_another_order_are_dense() -> None:
    made, feeds = blocked("uint4", 32, body="v = Gather<axis = 1>(w, o) y = Gemm<transB = 1>(x, v)")
    assert check(made, feeds, ["linear"], 1e-3).weights[0].origin == "int4g32"


# -- refusals, files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value", "text"), [
    ("bits", 9, "bits = 9"), ("bits", 3, "an input UINT8"), ("group_size", 48, "group = 48"),
    ("columns", 99, "an input UINT8"), ("columns", 0, "an input UINT8"), ("uniform", 1, "an input FLOAT16"),
])
def test_attributes_that_do_not_fit_are_refused(name: str, value: int, text: str) -> None:
    made = graph("y = Gather(w, i)", "int64[5] i", f"float[5,{K}]")
    node = next(iter(made.graph))
    node.attributes.add(ir.AttrInt64(name, value))
    ((_, reason),) = unsupported_nodes(made)
    assert text in reason
    with pytest.raises(EdgecError, match="E0301"):
        build_plan(made)


def test_inputs_of_other_types_are_refused() -> None:
    made = graph("y = Gather(w, i)", "int64[5] i", f"float[5,{K}]")
    made.graph.initializers["s"].const_value = ir.tensor(np.ones((2, N, 2), np.float32), name="s")
    ((_, reason),) = unsupported_nodes(made)
    assert reason == f"an input FLOAT [2, {N}, 2], wanted FLOAT16 [2, {N}, 2]"


def test_values_known_at_run_time_are_refused() -> None:
    made = model("g (uint8[1,2,4] p, float16[1,2,1] s, float16[2,1] o) => (float[2,32] y)"
                 " { y = edgec.BitPlaneToDense<bits = 1, group_size = 32, columns = 32>(p, s, o) }",
                 domains={"edgec": 1})
    ((_, reason),) = unsupported_nodes(made)
    assert reason == "it decompresses values known only at run time"


def test_a_bundle_keeps_them(tmp_path: Any) -> None:
    made = graph("e = Gather(w, i) y = Gemm<transB = 1>(e, w)", "int64[5] i", f"float[5,{N}]", BitsSpec(3, 64))
    plan = build_plan(made)
    write_bundle(tmp_path / "m.edgec", plan, tokenizer=None, golden=None, manifest={})
    back = read_bundle(tmp_path / "m.edgec").plan
    assert back == plan
    assert back.text() == plan.text()
    assert np.array_equal(back.weights[0].load(), plan.weights[0].load())


def test_a_plan_with_other_sizes_than_its_weight_has_is_found() -> None:
    from dataclasses import replace

    plan = build_plan(graph("y = Gather(w, i)", "int64[5] i", f"float[5,{K}]"))
    entry = plan.entries[0]
    for ints, text in (((N, K, 3, 32, 0), "hlq3g32 of 70 x 45 in a tensor"), ((200, K, 2, 32, 0), "200 x 45"),
                       ((N, K, 2, 48, 0), "group = 48"), ((N, 0, 2, 32, 0), "70 x 0")):
        broken = replace(plan, entries=(replace(entry, calls=(replace(entry.calls[0], ints=ints),)),))
        assert text in "\n".join(plan_problems(broken))
