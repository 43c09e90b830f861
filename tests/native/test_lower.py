"""Every lowered operator computes what ONNX says: plans run in numpy, in their planned arena, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.native.lower import build_plan, capabilities, layer_of, unsupported, unsupported_nodes
from edgec.native.plan_check import plan_problems
from tests.ir.mixers import CASES as MIXERS
from tests.native.lower_cases import CASES, Case, f, i, model_of, one, reference
from tests.native.plan_interpreter import Interpreter


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_case(case: Case) -> None:
    plan = build_plan(model_of(case))
    assert plan_problems(plan) == []
    if case.kernels is not None:
        assert [c.kernel for c in plan.entries[0].calls] == list(case.kernels)
    got = Interpreter(plan).run("main", case.feeds)
    for name, wanted in reference(case).items():
        np.testing.assert_allclose(got[name], wanted, rtol=2e-5, atol=2e-5, err_msg=name)
        assert got[name].shape == wanted.shape


def test_table_has_every_case_once() -> None:
    assert len({c.name for c in CASES}) == len(CASES)


def test_every_capability_is_tested() -> None:
    seen = {("", row[0]) for case in CASES for row in case.nodes}
    # Covered by the language model's tests, test_lower_mixers, folding tests below, or a spelling of constants.
    elsewhere = {("edgec", "CachedAttention"), ("edgec", "BitPlaneToDense"), ("edgec", "PaletteToDense"), ("", "Size"),
                 ("", "Constant"), ("", "QuantizeLinear"), ("", "DequantizeLinear"),
                 *(("edgec", name) for name in MIXERS)}
    assert capabilities() - seen == elsewhere


def test_all_unsupported_nodes_are_listed() -> None:
    case = Case("bad", [("Det", "x", "a"), ("MaxPool", "p", "b c", {"kernel_shape": [2, 2]}), ("NonZero", "a", "d")],
                {"x": f(3, 3), "p": f(1, 1, 4, 4)}, outputs=("b", "c", "d"))
    with pytest.raises(EdgecError) as e:
        build_plan(model_of(case))
    assert e.value.code == "E0301"
    for part in ("Det 'node_a'", "MaxPool 'node_b'", "the indices output is used", "NonZero 'node_d'"):
        assert part in e.value.found


def test_reasons_found_while_lowering_are_collected() -> None:
    case = Case("bad", [("Add", "x z", "a"), ("Softmax", "a", "b"), ("Reshape", "y s", "c")],
                {"x": i(1, 2), "z": i(3, 4), "y": f(4), "s": i(2, 2)}, outputs=("b", "c"))
    model = model_of(case)
    with pytest.raises(EdgecError) as e:
        build_plan(model)
    assert [n.op_type for n, _ in unsupported_nodes(model)] == ["Softmax", "Reshape"]
    assert unsupported_nodes(model_of(CASES[0])) == ()
    assert "Softmax" in e.value.found
    assert "the target shape depends on the data" in e.value.found


def test_group_norm_of_other_channels_is_refused() -> None:
    case = Case("bad", [("GroupNormalization", "x g b", "y", {"num_groups": 2})], {"x": f(2, 8, 3, 5)},
                {"g": f(8), "b": f(6)})
    ((node, reason),) = unsupported_nodes(model_of(case))
    assert node.op_type == "GroupNormalization"
    assert reason == "a bias of [6] for 8 channels"


def test_results_beyond_the_format_are_refused() -> None:
    case = Case("bad", [("Tile", "x r", "y")], {"x": f(2, 3)}, {"r": np.array([1 << 40, 1])})
    ((_, reason),) = unsupported_nodes(model_of(case))
    assert reason.endswith("more than 2^40 values")


def test_parts_of_other_ranks_are_refused() -> None:
    case = Case("bad", [("Shape", "x", "a"), ("Concat", "a b", "s", {"axis": 0}), ("Reshape", "x s", "y")],
                {"x": f(2, 3)}, {"b": np.array([[1]])})
    ((node, reason),) = unsupported_nodes(model_of(case))
    assert (node.op_type, reason) == ("Concat", "parts of shapes [2] and [1, 1]")


@pytest.mark.parametrize(("op", "inputs", "reason"), [
    ("ScatterElements", {"i": np.zeros((2, 2), np.int64), "u": f(2, 2)}, "indices of [2, 2] and updates of [2, 2]"),
    ("ScatterElements", {"i": np.zeros(3, np.int64), "u": f(2)}, "indices of [3] and updates of [2] into data of [8]"),
    ("ScatterND", {"i": np.array(1), "u": f(1)}, "indices of [] into a tensor of rank 1"),
    ("ScatterND", {"i": np.array([[1], [2]]), "u": f(3)}, "3 updates for 2 indices of 1 values each"),
    ("TopK", {"k": np.array([1, 2])}, "2 numbers as k"),
])
def test_places_that_do_not_fit_are_refused(op: str, inputs: dict[str, np.ndarray], reason: str) -> None:
    case = Case("bad", [(op, " ".join(["x", *inputs]), "y p" if op == "TopK" else "y")], {"x": f(8)}, inputs)
    ((node, found),) = unsupported_nodes(model_of(case))
    assert node.op_type == op
    assert found.startswith(reason)


@pytest.mark.parametrize(("last", "step"), [(1.0, 0.0), (1e9, 1.0), (np.nan, 1.0), (np.inf, 1.0)])
def test_ranges_of_floats_have_an_end(last: float, step: float) -> None:
    numbers = {k: np.array(v, np.float32) for k, v in (("a", 0), ("b", last), ("c", step))}
    case = Case("bad", [("Range", "a b c", "r"), ("Add", "x r", "y")], {"x": f(3)}, numbers)
    (node, reason), *_ = unsupported_nodes(model_of(case))
    assert node.op_type == "Range"
    assert reason.startswith("a range from 0 to ")


@pytest.mark.parametrize("pads", [(1 << 40, 1 << 40), (0, 1 << 22), (-5, 1), (-3, -2), (2, -5)])
def test_lookups_of_padding_have_an_end(pads: tuple[int, int]) -> None:
    case = Case("bad", [("Pad", "x p", "y", {"mode": "wrap"})], {"x": f(5)}, {"p": np.array(pads)})
    ((_, reason),) = unsupported_nodes(model_of(case))
    assert reason == f"mode = 'wrap' with a padding of {pads[0]} and {pads[1]} of an axis of 5"


@pytest.mark.parametrize(("op", "attributes", "reason"), [
    ("Swish", {"alpha": 2.0}, "alpha = 2"),
    ("Mod", {"fmod": 1}, "fmod"),
    ("ArgMax", {"select_last_index": 1}, "select_last_index"),
    ("Cast", {"to": 11}, "DOUBLE"),
    ("Pad", {"mode": "odd"}, "odd"),
    ("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1, "count_include_pad": 1}, "ceil_mode"),
    ("MaxPool", {"kernel_shape": [2, 2, 2]}, "3 spatial axes"),
])
def test_attribute_reasons(op: str, attributes: dict[str, object], reason: str) -> None:
    node = ir.node(op, [ir.Value(name="x")], attributes)  # type: ignore[arg-type]
    found = unsupported(node)
    assert found is not None
    assert reason in found


def test_input_without_range_is_refused() -> None:
    case = Case("open", [("Relu", "x", "y")], {"x": f(2, 3)}, dims={"x": ["n", 3]})
    with pytest.raises(EdgecError, match="--dynamic n=MIN:MAX"):
        build_plan(model_of(case))


def test_size_that_can_become_negative_is_refused() -> None:
    case = Case("short", [("Conv", "x w", "y")], {"x": f(1, 1, 9, 9)}, {"w": f(1, 1, 5, 5)},
                dims={"x": [1, 1, "h", 9]}, dynamic={"h": (1, 32)})
    with pytest.raises(EdgecError, match=r"can be negative \(h in 1..32\)"):
        build_plan(model_of(case))


def test_shape_arithmetic_makes_no_calls() -> None:
    case = Case("sizes", [
        ("Shape", "x", "s"), ("Size", "x", "n"), ("Slice", "s one two", "w"), ("Div", "n w", "q"),
        ("Cast", "q", "c", {"to": 7}), ("Concat", "c minus", "t", {"axis": 0}), ("Equal", "t minus", "eq"),
        ("Where", "eq w t", "u"), ("ReduceProd", "u", "prod"), ("Max", "u one", "v"), ("Reshape", "x v", "y"),
    ], {"x": f(3, 4)}, {"one": i(1), "two": i(2), "minus": i(-1)}, dims={"x": ["b", 4]}, dynamic={"b": (1, 4)})
    plan = build_plan(model_of(case))
    assert [c.kernel for c in plan.entries[0].calls] == ["copy"]


def test_tied_embedding_is_stored_once_in_panels() -> None:
    case = Case("tied", [("Gather", "t x", "e"), ("Transpose", "t", "h", {"perm": [1, 0]}), ("MatMul", "e h", "y")],
                {"x": i(4, 0, 19)}, {"t": f(20, 8)})
    plan = build_plan(model_of(case))
    assert [(w.name, w.format.name) for w in plan.weights] == [("t", "PANEL16")]
    np.testing.assert_allclose(Interpreter(plan).run("main", case.feeds)["y"], reference(case)["y"], rtol=1e-5)


@pytest.mark.parametrize(("weights", "values", "stored"), [
    ("auto", np.float32([[1.0, 2.5], [3.0, -4.0]]), "BF16"), ("auto", np.float32([[1.0, 1.0009765625], [0, 0]]), "F16"),
    ("auto", np.float32([[1.1, 2.2], [3.3, 4.4]]), "F32"), ("f32", np.float32([[1, 2], [3, 4]]), "F32"),
    ("f16", np.float32([[1.1, 2], [3, 4]]), "F16"), ("bf16", np.float32([[1.1, 2], [3, 4]]), "BF16"),
])
def test_storage_of_weights(weights: str, values: np.ndarray, stored: str) -> None:
    case = one("Gemm", f(1, 2), consts={"w": values, "b": np.float32([1.1, 2.2])})
    plan = build_plan(model_of(case), weights=weights)  # type: ignore[arg-type]
    assert {w.name: w.dtype.name for w in plan.weights} == {"w": stored, "b": "F32"}


def test_value_too_large_for_the_storage_type() -> None:
    case = one("Gemm", f(1, 2), consts={"w": np.float32([[1e30, 1], [1, 1]])})
    plan = build_plan(model_of(case), weights="f16")
    with pytest.raises(EdgecError, match="E0002"):
        Interpreter(plan)


@pytest.mark.parametrize(("metadata", "layer"), [
    ({"namespace": ": LM/model: Text/layers.0: Layer/q_proj: Linear"}, "model.layers.0.q_proj"),
    ({"namespace": ": Net/body: Seq/body.0: Conv2d/conv2d: aten.conv2d.default"}, "body.0"),
    ({}, "node_y"),
])
def test_layer_names(metadata: dict[str, str], layer: str) -> None:
    assert layer_of(ir.node("Relu", [ir.Value(name="x")], name="node_y", metadata_props=metadata)) == layer
