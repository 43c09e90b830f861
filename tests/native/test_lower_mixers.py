"""SelectiveScan, CausalConv1d and DynamicDepthwise as plans: in numpy, and through the real runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, attach_info
from edgec.native.bundle import write_bundle
from edgec.native.lower import build_plan
from edgec.native.plan import Plan
from edgec.native.plan_check import plan_problems
from edgec.native.session import Model, library_path
from tests.ir.mixers import ALL, CASES, close, conv_inputs, depthwise, depthwise_inputs, graph, scan_inputs, some
from tests.native.plan_interpreter import Interpreter
from tests.passes.harness import Array, evaluate, model

Native = Callable[[Plan, dict[str, Array]], dict[str, Array]]


@pytest.fixture
def native(tmp_path: Path, require: Callable[[bool, str], None]) -> Native:
    try:
        found = library_path().exists()
    except EdgecError:
        found = False
    require(found, "the runtime library is not built")

    def run(plan: Plan, feeds: dict[str, Array]) -> dict[str, Array]:
        path = tmp_path / "model.edgec"
        bare = dataclasses.replace(plan, entries=tuple(dataclasses.replace(e, scratch_bytes=0) for e in plan.entries))
        write_bundle(path, bare, tokenizer=None, golden=None, manifest={})
        with Model(path) as opened, opened.session(threads=2) as session:
            found: dict[str, Array] = session.run(dict(feeds))
            assert session.memory.scratch == 2 * plan.memory_table().scratch_per_thread
        return found

    return run


def planned(made: ir.Model, constant: Iterable[str], feeds: dict[str, Array]) -> tuple[Plan, dict[str, Array]]:
    """The plan with the inputs `constant` as weights, and the other inputs' values."""
    for name in constant:
        value = next(v for v in made.graph.inputs if v.name == name)
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(feeds[name], name=name)
        made.graph.register_initializer(value)
    plan = build_plan(attach_info(made, ModelInfo()))
    assert plan_problems(plan) == []
    return plan, {k: v for k, v in feeds.items() if k not in constant}


WEIGHTS = {"SelectiveScan": ("A", "D"), "CausalConv1d": ("weight", "bias"), "DynamicDepthwise": ()}
KERNEL = {"SelectiveScan": "selective_scan", "CausalConv1d": "causal_conv1d", "DynamicDepthwise": "dynamic_depthwise"}


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("name", "shape", "attributes"), ALL)
def test_one_call(name: str, shape: tuple[int, ...], attributes: dict[str, int], constant: bool, native: Native
                  ) -> None:
    inputs, reference, _ = CASES[name]
    feeds = inputs(*shape)
    plan, rest = planned(graph(name, feeds, **attributes), WEIGHTS[name] if constant else (), feeds)
    kernels = [c.kernel for c in plan.entries[0].calls]
    assert set(kernels) <= {KERNEL[name], "transpose", "copy"}
    assert kernels.count(KERNEL[name]) == 1
    wanted = reference(feeds, **attributes)
    close(Interpreter(plan).run("main", rest), wanted)
    close(native(plan, rest), wanted)


def test_zeros_of_the_exporter_are_no_operands() -> None:
    feeds = scan_inputs(1, 4, 5, 3)
    for name in ("D", "state"):
        feeds[name] = np.zeros_like(feeds[name])
    plan, _ = planned(graph("SelectiveScan", feeds), ("A", "D", "state"), feeds)
    call = next(c for c in plan.entries[0].calls if c.kernel == "selective_scan")
    assert [o.space.name for o in call.operands[-2:]] == ["NONE", "NONE"]
    feeds = conv_inputs(1, 4, 5, 3)
    feeds["tail"] = np.zeros_like(feeds["tail"])
    plan, _ = planned(graph("CausalConv1d", feeds), ("weight", "bias", "tail"), feeds)
    assert [o.space.name for o in plan.entries[0].calls[0].operands[-2:]] == ["WEIGHT", "NONE"]


@pytest.mark.parametrize("name", ["SelectiveScan", "CausalConv1d"])
def test_two_calls_equal_one(name: str, native: Native) -> None:
    """The state that the first part leaves is where the second begins; a step at a time is no different."""
    inputs, reference, _ = CASES[name]
    feeds = inputs(2, 37, 20, 4)
    steps = ("x", "delta", "B", "C") if name == "SelectiveScan" else ("x",)
    state, left = ("state", "last_state") if name == "SelectiveScan" else ("tail", "last_tail")
    parts, carried = [], feeds[state]
    for start, stop in ((0, 1), (1, 2), (2, 30), (30, 37)):
        part = {**feeds, **{k: feeds[k][:, start:stop] for k in steps}, state: carried}
        plan, rest = planned(graph(name, part), WEIGHTS[name], part)
        out = native(plan, rest)
        parts.append(out["y"])
        carried = out[left]
    close({"y": np.concatenate(parts, 1), left: carried}, reference(feeds))
    plan, rest = planned(graph(name, feeds), WEIGHTS[name], feeds)
    once = native(plan, rest)
    np.testing.assert_array_equal(np.concatenate(parts, 1), once["y"])
    np.testing.assert_array_equal(carried, once[left])


def test_what_follows_dynamic_depthwise_joins_it(native: Native) -> None:
    """LSNet: a folded BatchNorm, which may not go into the kernels of eight channels, and the input once more."""
    feeds = depthwise_inputs(2, 16, 2, 5, 4, 3)
    made = model(
        "g (float[2,16,5,4] x, float[2,2,9,5,4] w, float[1,16,1,1] a, float[1,16,1,1] c) => (float[2,16,5,4] y) {"
        " s = edgec.DynamicDepthwise<kernel_size = 3>(x, w)\n m = Mul(s, a)\n n = Add(m, c)\n y = Add(n, x) }",
        domains={"edgec": 1})
    feeds |= {"a": some(1, 16, 1, 1), "c": some(1, 16, 1, 1)}
    wanted = {"y": depthwise({k: feeds[k] for k in ("x", "w")}, 3)["y"] * feeds["a"] + feeds["c"] + feeds["x"]}
    close(evaluate(made, feeds, "onnxruntime"), wanted)
    plan, rest = planned(made, ("a", "c"), feeds)
    calls = [c.kernel for c in plan.entries[0].calls]
    assert calls == ["transpose", "transpose", "dynamic_depthwise", "transpose"]
    call = plan.entries[0].calls[2]
    assert [o.space.name for o in call.inputs[2:]] == ["WEIGHT", "ARENA", "WEIGHT"]
    close(Interpreter(plan).run("main", rest), wanted)
    close(native(plan, rest), wanted)


@pytest.mark.parametrize(("name", "shapes", "attributes", "said"), [
    ("DynamicDepthwise", {"x": (1, 6, 3, 3), "w": (1, 4, 9, 3, 3)}, {"kernel_size": 3}, "[1, 6, 3, 3]"),
    ("DynamicDepthwise", {"x": (1, 6, 3, 3), "w": (1, 3, 4, 3, 3)}, {"kernel_size": 2}, "kernel_size = 2"),
    ("SelectiveScan", {"x": (1, 0, 2), "delta": (1, 0, 2), "A": (2, 3), "B": (1, 0, 3), "C": (1, 0, 3), "D": (2,),
                       "state": (1, 2, 3)}, {}, "[1, 0, 2]"),
    ("CausalConv1d", {"x": (1, 0, 2), "weight": (2, 3), "bias": (2,), "tail": (1, 2, 2)}, {}, "[1, 0, 2]"),
])
def test_refused(name: str, shapes: dict[str, tuple[int, ...]], attributes: dict[str, int], said: str) -> None:
    feeds = {k: some(*shape) for k, shape in shapes.items()}
    with pytest.raises(EdgecError) as e:
        planned(graph(name, feeds, **attributes), (), feeds)
    assert e.value.code == "E0301"
    assert said in e.value.found
