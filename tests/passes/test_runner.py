"""The pass runner: contract, dumps, debugging output, numeric check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgec import env
from edgec.errors import EdgecError
from edgec.ir.execute import Runner, random_inputs, save
from edgec.ir.info import ModelInfo, attach_info, info_of
from edgec.ir.model import Builder, required, splice, walk
from edgec.ir.passes import Context, Pass
from edgec.passes import COMPRESS, LOWER, NORMALIZE
from edgec.pipeline import RunOptions, relative_error, run_passes
from tests.passes.harness import model, ops

TEXT = "g (float[N,3] x, float[3,2] w) => (float[N,2] y) { a = Identity(x) b = MatMul(a, w) y = Relu(b) }"


def graph() -> ir.Model:
    return model(TEXT, w=np.arange(6).reshape(3, 2))


class Step(Pass):
    """A pass made of functions, for breaking the contract one clause at a time."""

    def __init__(self, work: Callable[[ir.Model], bool], label: str = "step",
                 needs: Sequence[str] = (), keeps: Sequence[str] = ()) -> None:
        self._work, self._label, self._needs, self._keeps = work, label, needs, keeps

    @property
    def name(self) -> str:
        return self._label

    def requires(self, model: ir.Model) -> Sequence[str]:
        return self._needs

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        return model, self._work(model)

    def ensures(self, model: ir.Model) -> Sequence[str]:
        return self._keeps


def swap(op_type: str, other: str) -> Callable[[ir.Model], bool]:
    def work(changed: ir.Model) -> bool:
        node = next(n for n in walk(changed) if n.op_type == op_type)
        op = Builder(node)
        splice(node, op, [op.node(other, [required(node, 0)], {}).outputs[0]])
        return True

    return work


def rewired(changed: ir.Model) -> bool:
    node = next(n for n in walk(changed) if n.op_type == "Relu")
    op = Builder(node)
    splice(node, op, [op.Relu(op.Identity(required(node, 0)))])
    return True


def nothing(unchanged: ir.Model) -> bool:
    return False


def failed(steps: Sequence[Pass], code: str) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        run_passes(graph(), steps, Context())
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize(("step", "clause"), [
    (Step(lambda m: True), "modified"),
    (Step(lambda m: swap("Relu", "Abs")(m) and False), "modified"),
    (Step(nothing, needs=["a cat"]), "requires"),
    (Step(nothing, keeps=["a dog"]), "ensures"),
])
def test_contract(step: Step, clause: str) -> None:
    error = failed([Step(nothing, "first"), step], "E0203")
    assert error.where == clause
    assert "first" in error.hint
    assert error.stage == "pass step"


def test_a_malformed_graph_is_found_right_after_the_pass() -> None:
    def work(changed: ir.Model) -> bool:
        next(iter(changed.graph)).replace_input_with(0, ir.val("elsewhere"))
        return True

    error = failed([Step(work, "vandal")], "E0201")
    assert "vandal" in error.stage
    with env.SPEC.override(0):
        run_passes(graph(), [Step(work, "vandal")], Context())


def test_errors_of_a_pass_name_the_passes_before() -> None:
    def work(changed: ir.Model) -> bool:
        raise EdgecError("E0301", stage="s", where="w", found="f", hint="h")

    error = failed([Step(nothing, "first"), Step(work)], "E0301")
    assert error.hint == "h; passes run so far: first"


def test_numeric_check_names_the_pass() -> None:
    steps = [Step(rewired, "harmless"), Step(swap("Relu", "Neg"), "culprit")]
    run_passes(graph(), steps, Context())
    with env.CHECK.override(1):
        error = failed(steps, "E0202")
    assert error.stage == "pass culprit"
    assert "'y'" in error.where


def test_numeric_check_accepts_exact_passes(capfd: pytest.CaptureFixture[str]) -> None:
    with env.CHECK.override(1):
        report = run_passes(graph(), NORMALIZE, Context())
    assert ops(report.model) == {"Transpose": 1, "MatMul": 1, "Relu": 1}
    assert capfd.readouterr().out == ""


def test_numeric_check_starts_anew_after_another_interface(capfd: pytest.CaptureFixture[str]) -> None:
    def work(changed: ir.Model) -> bool:
        changed.graph.outputs[0].name = "z"
        return True

    with env.CHECK.override(1):
        run_passes(graph(), [Step(work, "renames")], Context())
    assert "renames changed the interface" in capfd.readouterr().err


def test_dumps(tmp_path: Path) -> None:
    run_passes(graph(), [Step(nothing, "one"), Step(swap("Relu", "Abs"), "two")], Context(), RunOptions(tmp_path / "d"))
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["001_one.onnx", "002_two.onnx"]
    onnx.checker.check_model(str(tmp_path / "d" / "002_two.onnx"))
    assert ops(ir.load(tmp_path / "d" / "002_two.onnx"))["Abs"] == 1


def test_dumps_carry_the_bodies(tmp_path: Path) -> None:
    before = model(
        "g (float[1,T,8] q, float[1,2,9,4] kc, float[1,2,9,4] vc, int64 past_len) => (float[1,T,8] y) {"
        " y, k, v = edgec.CachedAttention<q_num_heads = 2, kv_num_heads = 2>(q, q, q, kc, vc, past_len) }",
        domains={"edgec": 1})
    run_passes(before, [Step(nothing, "one")], Context(), RunOptions(tmp_path))
    assert len(ir.load(tmp_path / "001_one.onnx").functions) == 1
    assert not before.functions


def test_dump_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(EdgecError) as caught:
        run_passes(graph(), [Step(nothing)], Context(), RunOptions(tmp_path / "f"))
    assert caught.value.code == "E0004"


def test_mapped_weights_are_written_out(tmp_path: Path) -> None:
    before = graph()
    (tmp_path / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    before.graph.initializers["w"].const_value = ir.ExternalTensor(
        "w.bin", 0, 24, ir.DataType.FLOAT, shape=ir.Shape([3, 2]), name="w", base_dir=str(tmp_path))
    (tmp_path / "d").mkdir()
    save(before, tmp_path / "d" / "m.onnx")
    (tmp_path / "w.bin").unlink()
    weight = ir.load(tmp_path / "d" / "m.onnx").graph.initializers["w"].const_value
    assert weight is not None
    assert weight.numpy().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_stop_and_print(capfd: pytest.CaptureFixture[str]) -> None:
    steps = [Step(nothing, "one"), Step(nothing, "two"), Step(nothing, "three")]
    report = run_passes(graph(), steps, Context(), RunOptions(print_after=("one",), stop_after="two"))
    assert report.stopped_after == "two"
    assert [r.name for r in report.records] == ["one", "two"]
    captured = capfd.readouterr()
    assert "MatMul" in captured.err
    assert captured.out == ""
    assert run_passes(report.model, steps, Context(), report=report) is report
    assert len(report.records) == 2, "a stopped run stays stopped"


def test_unknown_pass_names() -> None:
    with pytest.raises(EdgecError) as caught:
        RunOptions(stop_after="fold_bm").check([p.name for p in NORMALIZE])
    assert caught.value.code == "E0002"
    assert "did you mean 'fold_bn'" in caught.value.hint


@pytest.mark.parametrize(("level", "parts", "absent"), [
    (0, [], ["pass"]), (1, ["pass normalize_linear"], [" ms"]), (2, [" ms"], ["fired"]),
    (3, ["MatMulWeight: fired 1"], ["opset_imports"]), (5, ["opset_imports"], []),
])
def test_debug_ladder(level: int, parts: list[str], absent: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with env.DEBUG.override(level):
        run_passes(graph(), NORMALIZE, Context())
    text = capfd.readouterr().err
    assert all(part in text for part in parts)
    assert not any(part in text for part in absent)


def test_report_as_json() -> None:
    report = run_passes(graph(), NORMALIZE, Context())
    rows = {r["pass"]: r for r in report.to_json()}
    assert rows["normalize_linear"]["modified"]
    assert rows["normalize_linear"]["fired"] == 1
    assert not rows["fold_bn"]["modified"]


def test_information_survives_a_pass_that_returns_another_model() -> None:
    class Copy(Pass):
        def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
            copy = model.clone()
            copy.meta.clear()
            return copy, False

    before = attach_info(graph(), ModelInfo(name="keep me"))
    assert info_of(run_passes(before, [Copy()], Context()).model).name == "keep me"


def test_names_of_passes_are_those_of_their_files() -> None:
    for step in (*NORMALIZE, *COMPRESS, *LOWER):
        assert type(step).__module__.rpartition(".")[2] == step.name


def test_random_inputs_fit_the_model() -> None:
    before = model("g (float[batch,3] a, int64[1,seq] input_ids, bool[batch] m, float[P] p) =>"
                   " (float[batch,3] y) { y = Relu(a) }")
    before.graph.inputs[3].shape = ir.Shape(["past + seq"])
    attach_info(before, ModelInfo(vocab_size=7, dynamic={"batch": (4, 4), "seq": (2, 2), "past": (1, 1)}))
    values = random_inputs(before)
    assert {k: v.shape for k, v in values.items()} == {"a": (4, 3), "input_ids": (1, 2), "m": (4,), "p": (3,)}
    assert values["input_ids"].max() < 7
    again = random_inputs(before)
    assert all(np.array_equal(values[k], again[k]) for k in values)


def test_runner_says_what_cannot_be_run() -> None:
    with pytest.raises(EdgecError) as caught:
        Runner(model("g (float[2] x) => (float[2] y) { y = other.Foo(x) }", domains={"other": 1}), "here")
    assert (caught.value.code, caught.value.stage) == ("E0202", "here")


def test_relative_error() -> None:
    a = np.array([1.0, 2.0], np.float32)
    assert relative_error(a, a) == 0
    assert relative_error(a + np.float32(0.5), a) == pytest.approx(0.25)
    assert relative_error(a[:1], a) == float("inf")
    assert relative_error(np.array([1, np.nan]), a) == float("inf")
    assert relative_error(np.array([np.inf, 1]), np.array([-np.inf, 1])) == float("inf")
    assert relative_error(np.array([np.nan, 1]), np.array([np.nan, 1])) == 0
    assert relative_error(np.zeros(0), np.zeros(0)) == 0
