from __future__ import annotations

import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgec.importers import load
from edgec.ir.model import walk
from edgec.ir.passes import Context
from edgec.passes import NORMALIZE
from edgec.passes.normalize.eliminate_dead import EliminateDead
from edgec.passes.normalize.fuse_group_norm import FuseGroupNorm
from edgec.pipeline import run_passes
from tests.passes.harness import close, evaluate, model, ops, reasons, run

RNG = np.random.default_rng(0)
IN, OUT = "g = Reshape(x, groups)", "shape = Shape(x) n = Reshape(t, shape)"
INSTANCE = "t = InstanceNormalization<epsilon = 0.01>(g, gs, gb)"
MEANS = "m = ReduceMean(g, ax) d = Sub(g, m) q = Pow(d, two) v = ReduceMean(q, ax) p = Add(v, e) s = Sqrt(p)"
END = "u = Mul(n, w) y = Add(b, u)"


def spelled(body: str, groups: tuple[int, ...] = (0, 3, -1), axes: tuple[int, ...] = (2,),
            weight: tuple[int, ...] = (6, 1, 1), plain: bool = True) -> ir.Model:
    per_group = (np.ones(3), np.zeros(3)) if plain else RNG.standard_normal((2, 3))
    return model(f"g (float[N,6,5,7] x, int64[{len(groups)}] groups, int64[{len(axes)}] ax, float[3] gs, float[3] gb,"
                 f" float two, float e, float{list(weight)} w, float[6,1,1] b) => (float[N,6,5,7] y) {{ {body} }}",
                 groups=groups, ax=axes, gs=per_group[0], gb=per_group[1], two=2, e=1e-2,
                 w=RNG.standard_normal(weight), b=RNG.standard_normal((6, 1, 1)))


@pytest.mark.parametrize("norm", [INSTANCE, f"{MEANS} t = Div(d, s)", f"{MEANS} i = Reciprocal(s) t = Mul(i, d)"])
@pytest.mark.parametrize(("groups", "axes"), [
    ((0, 3, -1), (2,)), ((0, 3, 2, -1), (2, 3)), ((0, 3, 2, 5, 7), (2, 3, -1)),
])
@pytest.mark.parametrize("weight", [(6, 1, 1), (1, 6, 1, 1), (1,)])
def test_group_norm(norm: str, groups: tuple[int, ...], axes: tuple[int, ...], weight: tuple[int, ...]) -> None:
    after, modified, _ = run(FuseGroupNorm(), spelled(f"{IN} {norm} {OUT} {END}", groups, axes, weight))
    assert modified
    assert ops(after) == {"GroupNormalization": 1}
    node = next(walk(after))
    assert node.attributes["num_groups"].as_int() == 3
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-2)


def test_numbers_per_group_are_repeated_and_a_scale_after_a_bias_stays() -> None:
    after, modified, _ = run(FuseGroupNorm(), spelled(f"{IN} {INSTANCE} {OUT} {END}", plain=False))
    assert modified
    assert ops(after) == {"GroupNormalization": 1, "Mul": 1, "Add": 1}


@pytest.mark.parametrize(("body", "axes", "groups"), [
    (f"{IN} {MEANS} t = Div(d, s) {OUT} {END}", (3,), (0, 3, 2, -1)),
    (f"{IN} {MEANS} t = Div(g, s) {OUT} {END}", (2,), (0, 3, -1)),
    (f"{IN} {MEANS} t = Div(d, v) {OUT} {END}", (2,), (0, 3, -1)),
])
def test_look_alikes_stay(body: str, axes: tuple[int, ...], groups: tuple[int, ...]) -> None:
    _, modified, _ = run(FuseGroupNorm(), spelled(body, groups, axes))
    assert not modified


def test_groups_across_images_are_declined() -> None:
    graph = model("g (float[3,6,5,7] x, int64[3] groups, float[2] s, float[2] b) => (float[3,6,5,7] y) {"
                  " g = Reshape(x, groups) t = InstanceNormalization(g, s, b) h = Shape(x) y = Reshape(t, h) }",
                  groups=[9, 2, -1], s=[1, 1], b=[0, 0])
    _, modified, report = run(FuseGroupNorm(), graph)
    assert not modified
    assert "not regrouped" in reasons(report)


def test_uneven_groups_are_declined() -> None:
    graph = model("g (float[2,6,4,2] x, int64[3] groups, float[4] s, float[4] b) => (float[2,6,4,2] y) {"
                  " g = Reshape(x, groups) t = InstanceNormalization(g, s, b) h = Shape(x) y = Reshape(t, h) }",
                  groups=[0, 4, -1], s=np.ones(4), b=np.zeros(4))
    _, modified, report = run(FuseGroupNorm(), graph)
    assert not modified
    assert "6 channels are not 4 groups" in reasons(report)


def test_another_shape_at_the_end_is_declined() -> None:
    graph = model("g (float[2,6,5,7] x, int64[3] groups, int64[3] h, float[3] s, float[3] b) => (float[2,6,35] y) {"
                  " g = Reshape(x, groups) t = InstanceNormalization(g, s, b) y = Reshape(t, h) }",
                  groups=[0, 3, -1], h=[2, 6, 35], s=np.ones(3), b=np.zeros(3))
    _, modified, report = run(FuseGroupNorm(), graph)
    assert not modified
    assert "not brought back" in reasons(report)


def test_computed_numbers_per_group_are_declined() -> None:
    graph = model("g (float[2,6,5] x, float[3] s, int64[3] groups, float[3] b) => (float[2,6,5] y) {"
                  " g = Reshape(x, groups) t = InstanceNormalization(g, s, b) h = Shape(x) y = Reshape(t, h) }",
                  groups=[0, 3, -1], b=np.zeros(3))
    _, modified, report = run(FuseGroupNorm(), graph)
    assert not modified
    assert "scale of the groups is not constant" in reasons(report)


def test_scale_per_column_stays_outside() -> None:
    after, _, report = run(FuseGroupNorm(), spelled(f"{IN} {INSTANCE} {OUT} {END}", weight=(5, 1)))
    assert ops(after) == {"GroupNormalization": 1, "Mul": 1, "Add": 1}
    assert "per channel" in reasons(report)


def test_scale_of_a_value_that_others_read_stays_outside() -> None:
    after, _, report = run(FuseGroupNorm(), spelled(f"{IN} {INSTANCE} {OUT} u = Mul(n, w) y = Add(n, u)"))
    assert ops(after) == {"GroupNormalization": 1, "Mul": 1, "Add": 1}
    assert "read by others" in reasons(report)


@pytest.mark.parametrize("restore", ["", "shape = Shape(x) "])
def test_groups_of_single_channels(restore: str) -> None:
    """On [N, C, T] the reshapes do nothing, and the first one is gone before this pass."""
    back = f"{restore}n = Reshape(t, shape)" if restore else "n = Identity(t)"
    graph = model("g (float[N,5,7] x, float[5] s, float[5] z, float[5,1] w, float[1,5,1] b) => (float[N,5,7] y) {"
                  f" t = InstanceNormalization<epsilon = 0.01>(x, s, z) {back} u = Mul(n, w) y = Add(b, u) }}",
                  s=np.ones(5), z=np.zeros(5), w=RNG.standard_normal((5, 1)), b=RNG.standard_normal((1, 5, 1)))
    graph = run_passes(graph, [EliminateDead()], Context()).model
    after, modified, _ = run(FuseGroupNorm(), graph)
    assert modified
    assert ops(after) == {"InstanceNormalization": 1}
    assert next(walk(after)).attributes["epsilon"].as_float() == pytest.approx(1e-2)


def test_another_shape_behind_single_channels_stays() -> None:
    graph = model("g (float[2,5,7] x, float[5] s, float[5] z, int64[2] h) => (float[2,35] y) {"
                  " t = InstanceNormalization(x, s, z) y = Reshape(t, h) }", s=np.ones(5), z=np.zeros(5), h=[2, 35])
    _, modified, _ = run(FuseGroupNorm(), graph)
    assert not modified


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 6, 5, 7)])
@pytest.mark.parametrize(("dynamo", "opset"), [(False, 17), (False, 20), (True, 18), (True, 22)])
def test_what_torch_exports(dynamo: bool, opset: int, shape: tuple[int, ...], groups: int,
                            tmp_path_factory: pytest.TempPathFactory) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.GroupNorm(groups, 6).eval()
    with torch.no_grad():
        net.weight.normal_()
        net.bias.normal_()
    path, buffer = tmp_path_factory.mktemp("torch") / "net.onnx", io.BytesIO()
    axes = {"dynamic_shapes": ({0: torch.export.Dim("N"), 2: torch.export.Dim("H")},)} if dynamo else {
        "dynamic_axes": {"x": {0: "N", 2: "H"}}}
    made = torch.onnx.export(net, (torch.randn(*shape),), None if dynamo else buffer, dynamo=dynamo,
                             opset_version=opset, input_names=["x"], **axes)
    onnx.save(made.model_proto if dynamo else onnx.load_from_string(buffer.getvalue()), path)
    after = run_passes(load(path), NORMALIZE, Context()).model
    assert len(list(walk(after))) == 1
    single = groups == 6 and len(shape) == 3
    assert set(ops(after)) <= {"GroupNormalization", *(["InstanceNormalization"] if single else [])}
    x = torch.randn(*shape)
    with torch.no_grad():
        close(evaluate(after, {"x": x.numpy()}), {after.graph.outputs[0].name: net(x).numpy()})
