"""Every change of a standard operator from opset 7 to 24 is extended, rewritten, or refused by name: never restamped.

The numbers before and after are onnxruntime's on the old graph and on the lifted one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import onnx.parser
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.importers.onnx_opset import OLDEST, STEPS, lift
from edgec.importers.onnx_original import Original
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.model import walk
from edgec.ir.opset import extends, schema
from edgec.ir.shapes import infer_shapes
from tests.passes.harness import Array, close, evaluate, ops

RNG = np.random.default_rng(0)
# Changed operators without an entry: a model that holds one is refused.
REFUSED = {("Scan", 9)}


def changes() -> set[tuple[str, int]]:
    """(operator, version) of every change between OLDEST and 24 that is not a plain extension."""
    found = set()
    names = {row.name for row in onnx.defs.get_all_schemas_with_history() if row.domain == ""}
    for name in names:
        for version in range(OLDEST + 1, 25):
            new, old = schema(name, version), schema(name, version - 1)
            if new is not None and old is not None and new.since_version == version and not extends(old, new):
                found.add((name, version))
    return found


def test_every_change_has_a_rule_or_is_refused() -> None:
    assert changes() - set(STEPS) == REFUSED
    # These changed their meaning under the same signature; each has a test below or in the operators' changelog.
    assert set(STEPS) - changes() == {("Split", 18), ("GroupNormalization", 21), ("RoiAlign", 16)}


def old(text: str, opset: int, **weights: Array) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        kept = [v for v in proto.graph.input if v.name != name]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
    return proto


def x(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


CASES = {
    "clip": (10, "g (float[2,3] a) => (float[2,3] y) { y = Clip<min = -0.5, max = 0.5>(a) }", {"a": x(2, 3)}),
    "clip below": (7, "g (float[2,3] a) => (float[2,3] y) { y = Clip<min = 0.0>(a) }", {"a": x(2, 3)}),
    "pad": (10, "g (float[2,3] a) => (float[4,3] y) { y = Pad<pads = [1, 0, 1, 0], value = 2.5>(a) }", {"a": x(2, 3)}),
    "pad reflect": (9, 'g (float[2,3] a) => (float[2,5] y) { y = Pad<pads = [0, 1, 0, 1], mode = "reflect">(a) }',
                    {"a": x(2, 3)}),
    "slice": (9, "g (float[4,5] a) => (float[2,5] y) { y = Slice<starts = [1], ends = [3]>(a) }", {"a": x(4, 5)}),
    "slice axes": (9, "g (float[4,5] a) => (float[4,2] y) { y = Slice<starts = [-2], ends = [99], axes = [1]>(a) }",
                   {"a": x(4, 5)}),
    "squeeze": (11, "g (float[1,3,1] a) => (float[3] y) { y = Squeeze(a) }", {"a": x(1, 3, 1)}),
    "squeeze axes": (11, "g (float[1,3,1] a) => (float[1,3] y) { y = Squeeze<axes = [2]>(a) }", {"a": x(1, 3, 1)}),
    "unsqueeze": (12, "g (float[3] a) => (float[1,3,1] y) { y = Unsqueeze<axes = [0, 2]>(a) }", {"a": x(3)}),
    "split": (12, "g (float[6] a) => (float[2] y, float[4] z) { y, z = Split<split = [2, 4], axis = 0>(a) }",
              {"a": x(6)}),
    "split evenly": (11, "g (float[6] a) => (float[3] y, float[3] z) { y, z = Split<axis = 0>(a) }", {"a": x(6)}),
    "split evenly 13": (13, "g (float[6] a) => (float[3] y, float[3] z) { y, z = Split<axis = 0>(a) }", {"a": x(6)}),
    "top k": (9, "g (float[2,5] a) => (float[2,3] y, int64[2,3] i) { y, i = TopK<k = 3>(a) }", {"a": x(2, 5)}),
    "dropout": (11, "g (float[5] a) => (float[5] y) { y = Dropout<ratio = 0.3>(a) }", {"a": x(5)}),
    "upsample 7": (7, 'g (float[1,1,2,3] a) => (float[1,1,4,6] y) { y = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(a) }',
                   {"a": x(1, 1, 2, 3)}),
    "upsample 9": (9, ('g (float[1,1,2,3] a) => (float[1,1,4,6] y) {'
                   ' s = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>() y = Upsample<mode = "linear">(a, s) }'),
                   {"a": x(1, 1, 2, 3)}),
    "resize 10": (10, ("g (float[1,1,4,6] a) => (float[1,1,2,3] y) {"
                  " s = Constant<value = float[4] {1.0, 1.0, 0.5, 0.5}>() y = Resize(a, s) }"), {"a": x(1, 1, 4, 6)}),
    "softmax": (11, "g (float[2,3,4] a) => (float[2,3,4] y) { y = Softmax<axis = 1>(a) }", {"a": x(2, 3, 4)}),
    "softmax last": (11, "g (float[2,4] a) => (float[2,4] y) { y = Softmax(a) }", {"a": x(2, 4)}),
    "log softmax": (9, "g (float[2,3,4] a) => (float[2,3,4] y) { y = LogSoftmax(a) }", {"a": x(2, 3, 4)}),
    "batch norm": (8, ("g (float[2,3,4,4] a, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2,3,4,4] y) {"
                   " y = BatchNormalization<epsilon = 0.001>(a, s, b, m, v) }"), {"a": x(2, 3, 4, 4)}),
    "scatter": (10, "g (float[2,3] a, int64[1,3] i, float[1,3] u) => (float[2,3] y) { y = Scatter<axis = 0>(a, i, u) }",
                {"a": x(2, 3), "i": np.array([[1, 0, 1]]), "u": x(1, 3)}),
    "group norm": (18, ("g (float[1,4,3,3] a, float[2] s, float[2] b) => (float[1,4,3,3] y) {"
                   " y = GroupNormalization<num_groups = 2>(a, s, b) }"),
                   {"a": x(1, 4, 3, 3), "s": x(2), "b": x(2)}),
    "grid sample": (16, ('g (float[1,1,4,4] a, float[1,2,2,2] p) => (float[1,1,2,2] y) {'
                    ' y = GridSample<mode = "bilinear">(a, p) }'), {"a": x(1, 1, 4, 4), "p": x(1, 2, 2, 2)}),
    "dft": (17, "g (float[1,4,1] a) => (float[1,4,2] y) { y = DFT<axis = 1>(a) }", {"a": x(1, 4, 1)}),
}
for _name in ("ReduceMean", "ReduceL2", "ReduceSum", "ReduceMax", "ReduceLogSumExp", "ReduceProd"):
    CASES[_name] = (12, f"g (float[2,3,4] a) => (float[2,4] y) {{ y = {_name}<axes = [1], keepdims = 0>(a) }}",
                    {"a": x(2, 3, 4)})
BATCH_NORM = {"s": x(3), "b": x(3), "m": x(3), "v": np.abs(x(3))}


@pytest.mark.parametrize("case", CASES)
def test_numbers_stay(case: str, tmp_path: Path) -> None:
    opset, text, feeds = CASES[case]
    proto = old(text, opset, **(BATCH_NORM if case == "batch norm" else {}))
    onnx.save(proto, tmp_path / "old.onnx")
    graph = ir.from_proto(proto)
    infer_shapes(graph)
    lift(graph)
    onnx.checker.check_model(ir.to_proto(graph))
    assert graph.graph.opset_imports[""] == 24
    ir.save(graph, tmp_path / "new.onnx")
    close(Original(tmp_path / "new.onnx").run(feeds), Original(tmp_path / "old.onnx").run(feeds))


def lifted(text: str, opset: int) -> ir.Model:
    graph = ir.from_proto(old(text, opset))
    lift(graph)
    return graph


def test_roi_align_keeps_its_corners() -> None:
    """onnxruntime has no kernel for its newest version; the old meaning has a name of its own in the new one."""
    node = next(walk(lifted("g (float[1,1,6,6] a, float[1,4] r, int64[1] i) => (float[1,1,2,2] y) {"
                            " y = RoiAlign<output_height = 2, output_width = 2>(a, r, i) }", 10)))
    assert node.attributes["coordinate_transformation_mode"].as_string() == "output_half_pixel"


def test_what_cannot_be_spelled_is_listed() -> None:
    with pytest.raises(EdgecError) as caught:
        lifted("g (float[2,3] a, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2,3] y, float[3] n) {"
               " y, n, o, p, q = BatchNormalization(a, s, b, m, v) }", 9)
    assert caught.value.code == "E0102"
    assert "training mode" in caught.value.found


@pytest.mark.parametrize("opset", [6, 1])
def test_too_old(opset: int) -> None:
    with pytest.raises(EdgecError) as caught:
        lifted("g (float[2] a) => (float[2] y) { y = Add(a, a) }", opset)
    assert caught.value.code == "E0101"


NEWEST = onnx.defs.onnx_opset_version()


def test_newer_than_known_by_operator() -> None:
    """An opset above 24 is fine as long as its operators can be spelled in those of 24."""
    assert ops(lifted("g (float[2] a) => (float[2] y) { y = Mul(a, a) }", NEWEST)) == {"Mul": 1}
    attention = "g (float[1,2,4,8] a) => (float[1,2,4,8] y) {{ y = Attention<left_window_size = {}>(a, a, a) }}"
    # More types and attributes: the node stays, without what only repeats a new default.
    node = next(walk(lifted(attention.format(-1), NEWEST)))
    assert (node.op_type, set(node.attributes), node.version) == ("Attention", set(), 24)
    # What the standard spells out in operators of 24.
    depth = 'g (float[1,4,4,4] a) => (float[1,16,2,2] y) { y = SpaceToDepth<blocksize = 2, mode = "CRD">(a) }'
    for text, name in ((attention.format(2), "Attention"), (depth, "SpaceToDepth"),
                       ("g (float[2,8] a) => (float[2,4] y) { y = SwiGLU(a) }", "SwiGLU")):
        graph = lifted(text, NEWEST)
        assert name not in ops(graph)
        assert all(schema(n.op_type, 24) is not None for n in walk(graph))


def test_newer_than_can_be_spelled() -> None:
    with pytest.raises(EdgecError) as caught:
        lifted("g (float[2] a) => (int32[2] y) { y = BitCast<to = 6>(a) }", NEWEST)
    assert caught.value.code == "E0102"
    assert "BitCast" in caught.value.found


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_product(exclusive: int, reverse: int) -> None:
    attributes = f"exclusive = {exclusive}, reverse = {reverse}"
    graph = lifted(f"g (float[7,2] a, int64 k) => (float[7,2] y) {{ y = CumProd<{attributes}>(a, k) }}".replace(
        ", int64 k)", ")").replace("{ y", "{ k = Constant<value = int64 {0}>() y"), NEWEST)
    attach_info(graph, ModelInfo())
    a = x(7, 2)
    turned = a[::-1] if reverse else a
    wanted = np.cumprod(np.vstack([np.ones((1, 2)), turned[:-1]]) if exclusive else turned, axis=0)
    close(evaluate(graph, {"a": a}), {"y": (wanted[::-1] if reverse else wanted).astype(np.float32)})
