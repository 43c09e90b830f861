"""Models of the zoo, compiled and run natively, against the unfolded modules in float64; norms are random."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgec
from edgec.native.session import Model
from edgec.zoo import ZOO, deeplab_v3, ssdlite
from edgec.zoo.lsnet import LSNet
from edgec.zoo.mobilenet_v2 import MobileNetV2, features
from edgec.zoo.ops import dynamic_depthwise
from edgec.zoo.slab import LinearAttention, PRepBN, linear_attention
from edgec.zoo.slab_deit import SlabDeiT
from edgec.zoo.slab_swin import SlabSwin, from_windows, shift_mask, to_windows
from edgec.zoo.weights import randomize

TOLERANCE = 1e-4
NORMS = {"BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"}


def native(module: nn.Module, image: torch.Tensor, folder: Path) -> tuple[list[np.ndarray], collections.Counter[str]]:
    """Outputs of the compiled module, and how often each operator stands in the normalized graph."""
    edgec.compile(module, folder / "out", example_inputs=(image,), dump_dir=folder / "passes")
    with Model(folder / "out" / "model.edgec") as model, model.session() as session:
        found = session.run({model.inputs[0].name: image.numpy()})
        outputs = [found[port.name] for port in model.outputs]
    return outputs, operators(folder / "passes")


def operators(passes: Path) -> collections.Counter[str]:
    """Of the graph before the lowering, which spells norms in other operators."""
    import onnx

    dumped = sorted(passes.glob("*.onnx"))
    last = next(p for p in reversed(dumped) if p.stem.endswith("quantize"))
    return collections.Counter(node.op_type for node in onnx.load(last, load_external_data=False).graph.node)


def agrees(module: nn.Module, image: torch.Tensor, folder: Path) -> collections.Counter[str]:
    """Holds the compiled module against itself in float64, with random weights and norms; its operators."""
    randomize(module.eval(), image=image)
    found, ops = native(module, image, folder)
    with torch.no_grad():
        wanted = module.double()(image.double())
    for ours, theirs in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        expected = theirs.numpy()
        assert ours.shape == expected.shape
        rms = float(np.sqrt(np.square(expected).mean()))
        assert np.isfinite(rms)
        assert expected.std() > 1e-3 * rms
        assert np.abs(ours - expected).max() <= TOLERANCE * rms
    return ops


def image(side: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(side))


# -- small forms of each, all kinds of layers kept -------------------------------------------------------------------


def test_slab_deit(tmp_path: Path) -> None:
    ops = agrees(SlabDeiT(48, 3, size=80, classes=11, depth=1), image(80), tmp_path)
    assert NORMS.isdisjoint(ops)
    assert ops["Mul"] == 0  # nor are there scales


def test_slab_swin_with_shifted_windows(tmp_path: Path) -> None:
    module = SlabSwin((1, 2), size=48, classes=11, channels=16, heads=(1, 2), kinds="LS", window=3, linear_window=6)
    block = module.layers[1].blocks[1]
    assert block.shift == 1
    ops = agrees(module, image(48), tmp_path)
    assert NORMS.isdisjoint(ops)
    assert ops["Gather"] == ops["GatherND"] == 0  # the biases by position are constants


def test_lsnet(tmp_path: Path) -> None:
    module = LSNet((16, 24), (2, 2), size=56, classes=11, distilled=True)
    ops = agrees(module, image(56), tmp_path)
    # What is left: the norm of predicted kernels, and the one behind dynamic convolutions.
    assert {op: ops[op] for op in NORMS if ops[op]} == {"GroupNormalization": 1, "BatchNormalization": 1}
    assert ops["GatherND"] == 0  # the biases of attention are constants
    assert ops["Gemm"] == 1  # of two heads


# -- parts -----------------------------------------------------------------------------------------------------------


def test_both_orders_of_linear_attention_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 7, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    q, k = q.relu(), k.relu()
    first, second = (linear_attention(q, k, v, keys_first=order) for order in (True, False))
    assert torch.allclose(first, second, rtol=1e-12)
    by_hand = torch.stack([
        sum(((q[b, i] @ k[b, j]) * v[b, j] for j in range(7)), torch.zeros(5)) / (q[b, i] @ k[b].sum(0) + 1e-6)
        for b in range(2) for i in range(7)]).reshape(2, 7, 5)
    assert torch.allclose(first, by_hand, rtol=1e-10)


def test_linear_attention_needs_a_square() -> None:
    with pytest.raises(RuntimeError):
        LinearAttention(8, 2, 6)(torch.randn(1, 6, 8))


def test_progressive_norm() -> None:
    """lam = 1 is LayerNorm, lam = 0 RepBN, and training statistics come from RepBN at any lam."""
    norm = randomize(PRepBN(6).eval())
    assert isinstance(norm, PRepBN)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rep = norm(x)
        norm.lam = 1.0
        layer = norm(x)
        norm.lam = 0.25
        mixed = norm(x)
    assert torch.equal(layer, norm.norm1(x).detach())
    assert torch.allclose(mixed, 0.25 * layer + 0.75 * rep)
    bn = norm.norm2.bn
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    assert torch.allclose(rep, x * (scale + norm.norm2.alpha) + bn.bias - bn.running_mean * scale, atol=1e-6)


def test_dynamic_kernels_share_modulo() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 16, 4, 5, generator=generator), torch.randn(2, 2, 9, 4, 5, generator=generator)
    windows = torch.nn.functional.unfold(x, 3, padding=1).reshape(2, 16, 9, 4, 5)
    shared = w[:, torch.arange(16) % 2]
    assert torch.allclose(dynamic_depthwise(x, w), torch.einsum("bckhw,bckhw->bchw", windows, shared), atol=1e-5)


@pytest.mark.parametrize(("side", "window"), [(6, 3), (8, 2), (14, 7)])
def test_windows(side: int, window: int) -> None:
    x = torch.arange(2 * side * side * 3.0).reshape(2, side, side, 3)
    windows = to_windows(x, window)
    assert torch.equal(windows[1, :, 0], x[0, :window, window : 2 * window, 0].flatten())
    assert torch.equal(from_windows(windows, window, side, side), x)
    # Brute force: two tokens may see each other when rolling did not tear them apart.
    shift = window // 2
    mask = shift_mask(side, window, shift)
    where = torch.roll(torch.arange(side), -shift)
    rows, columns = (to_windows(t[None, :, :, None].float(), window)[:, :, 0] for t in torch.meshgrid(
        where, where, indexing="ij"))
    near = ((rows[:, :, None] - rows[:, None, :]).abs() < window) & (
        (columns[:, :, None] - columns[:, None, :]).abs() < window)
    assert torch.equal(mask == 0, near)


def test_dilation_in_place_of_stride() -> None:
    """The dilated backbone computes the other one's pixels, and those between."""
    fine, coarse = features(0.25, output_stride=16, head=False), features(0.25, head=False)
    randomize(coarse.eval())
    fine.eval().load_state_dict(coarse.state_dict())
    x = image(97)
    with torch.no_grad():
        assert torch.allclose(fine(x)[:, :, ::2, ::2], coarse(x), atol=1e-4, rtol=1e-4)


def test_widths_keep_the_old_names() -> None:
    module = MobileNetV2(folded=True)
    assert {"features.0.0.weight", "features.2.conv.1.0.bias", "classifier.weight"} <= set(module.state_dict())


# -- detection and segmentation: what comes after the graph ----------------------------------------------------------


def test_anchors() -> None:
    boxes = ssdlite.anchors()
    assert boxes.shape == (2034, 4)
    assert torch.allclose(boxes[0], torch.tensor([0.5 / 20, 0.5 / 20, 0.1, 0.1]))
    assert torch.allclose(boxes[1, 2:].prod(), torch.tensor(0.04))
    assert torch.allclose(boxes[-6:, :2], torch.tensor(0.5))
    assert ((boxes[:, :2] > 0) & (boxes[:, :2] < 1)).all()


def test_decode_inverts_the_coding_of_boxes() -> None:
    boxes = ssdlite.anchors()[::97]
    wanted = torch.stack([boxes[:, :2] * 0.9, boxes[:, :2] * 0.9 + 0.05 + boxes[:, 2:] / 2], 1).flatten(1)
    center, size = (wanted[:, :2] + wanted[:, 2:]) / 2, wanted[:, 2:] - wanted[:, :2]
    coded = torch.cat([(center - boxes[:, :2]) / boxes[:, 2:] / 0.1, (size / boxes[:, 2:]).log() / 0.2], 1)
    assert torch.allclose(ssdlite.decode(coded[None], boxes)[0], wanted, atol=1e-6)


def test_suppression() -> None:
    corners = torch.tensor([[0, 0, 1, 1], [0.02, 0, 1, 1], [0.5, 0.5, 0.9, 0.9], [2, 2, 3, 3], [0, 0, 0, 0]])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.1, 0.05])
    assert ssdlite.suppress(corners, scores, 0.6) == [1, 2, 3, 4]
    assert ssdlite.suppress(corners, scores, 0.1) == [1, 3, 4]
    assert ssdlite.suppress(corners, scores, 1.0) == [1, 0, 2, 3, 4]
    assert ssdlite.suppress(corners[:0], scores[:0], 0.5) == []


def test_detections() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.51, 0.2, 0.2], [0.1, 0.1, 0.4, 0.4]])
    scores = torch.full((3, 4), -9.0)
    scores[0, 2], scores[1, 2], scores[2, 1], scores[2, 0] = 5.0, 4.0, 3.0, 2.0
    found = ssdlite.detect(scores, torch.zeros(3, 4), boxes)
    assert [d.label for d in found] == [2, 1]
    assert found[0].box == pytest.approx((0.4, 0.4, 0.6, 0.6))
    assert found[1].box == pytest.approx((0.0, 0.0, 0.3, 0.3))  # cut at the border
    assert found[1].score == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-3)
    assert len(ssdlite.detect(scores, torch.zeros(3, 4), boxes, most=1)) == 1
    assert ssdlite.detect(scores, torch.zeros(3, 4), boxes, threshold=0.9999999) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [320, 96])
def test_ssdlite_end_to_end(tmp_path: Path, size: int) -> None:
    x = image(size)
    module = randomize(ssdlite.SSDLite(classes=5).eval(), image=x)
    (scores, offsets), _ = native(module, x, tmp_path)
    boxes = ssdlite.anchors(size)
    assert scores.shape == (1, len(boxes), 5)
    with torch.no_grad():
        wanted = module.double()(x.double())
    for ours, theirs in zip((scores, offsets), wanted, strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= TOLERANCE * float(theirs.square().mean().sqrt())
    ours, theirs = (ssdlite.detect(s, o, boxes, threshold=0.5) for s, o in (
        (torch.from_numpy(scores[0]), torch.from_numpy(offsets[0])), (wanted[0][0], wanted[1][0])))
    assert [d.label for d in ours] == [d.label for d in theirs]
    assert ours
    for a, b in zip(ours, theirs, strict=True):
        assert a.box == pytest.approx(b.box, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [513, 97])
def test_deeplab_end_to_end(tmp_path: Path, size: int) -> None:
    x = image(size)
    module = randomize(deeplab_v3.MobileDeepLabV3().eval(), image=x)
    (scores,), _ = native(module, x, tmp_path)
    with torch.no_grad():
        wanted = module.double()(x.double())
    assert np.abs(scores - wanted.numpy()).max() <= TOLERANCE * float(wanted.square().mean().sqrt())
    ours, theirs = deeplab_v3.decode(torch.from_numpy(scores)), deeplab_v3.decode(wanted)
    assert ours.shape == (1, size, size)
    assert len(theirs.unique()) > 1
    assert (ours == theirs).float().mean() > 0.999  # a tie may fall to the other side


# -- every row, whole ------------------------------------------------------------------------------------------------

SMALL = {"mobilenet_v2": 96, "lsnet": 64, "slab_deit": 48, "slab_swin": 64, "deeplab": 65, "ssdlite": 96}


def sizes() -> Sequence[tuple[str, int]]:
    """A small size of each row, and the default one of the smallest of each architecture."""
    rows = [(row.name, next((s for key, s in SMALL.items() if row.name.startswith(key)), row.size)) for row in ZOO]
    whole = ("mobilenet_v2", "lsnet_t", "slab_deit_t", "slab_swin_t")
    return [*rows, *((row.name, row.size) for row in ZOO if row.name in whole)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), sizes())
def test_every_model(name: str, size: int, tmp_path: Path) -> None:
    row = next(row for row in ZOO if row.name == name)
    ops = agrees(row.build(size), row.example(size), tmp_path)
    if name.startswith("lsnet"):
        aggregations = sum(type(m).__name__ == "LSConv" for m in row.build(size).modules())
        assert {op: ops[op] for op in NORMS if ops[op]} == {"GroupNormalization": aggregations,
                                                            "BatchNormalization": aggregations}
    else:
        assert NORMS.isdisjoint(ops)
