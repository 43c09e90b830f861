"""What the comparison at the doors takes for agreement: tolerances per output, and outputs that prove nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from edgec import importers
from edgec.errors import EdgecError
from edgec.importers import onnx as door
from edgec.importers.check import difference, rounded_outputs
from edgec.passes.normalize.inline_functions import inline
from tests.passes.harness import Array, model

RNG = np.random.default_rng(0)
NAN, INF = np.nan, np.inf


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("found", "wanted", "agrees", "blind"), [
    ((1, 2), (1, 2), True, False), ((1, 2.1), (1, 2), False, False), ((1, NAN), (1, NAN), True, False),
    ((1, NAN), (1, 2), False, False), ((1, 2), (1, NAN), False, False), ((INF, -INF), (INF, -INF), True, False),
    ((INF, INF), (INF, -INF), False, False), ((NAN, NAN), (NAN, NAN), False, True),
    ((NAN, INF), (NAN, INF), False, True), ((0, 0), (NAN, NAN), False, False), ((NAN, NAN), (0, 0), False, False),
    ((INF, 0), (NAN, NAN), False, False), ((), (), True, False),
])
def test_differences(found: tuple[float, ...], wanted: tuple[float, ...], agrees: bool, blind: bool) -> None:
    gap = difference(floats(*found), floats(*wanted))
    assert (gap.within(1e-3), gap.blind) == (agrees, blind)
    assert ("NaN" in str(gap)) == blind


def test_integers_and_truth_values_are_numbers() -> None:
    for dtype in (np.int64, np.uint8, np.bool_):
        gap = difference(np.zeros(3, dtype), np.zeros(3, dtype))
        assert gap.within(0)
        assert not gap.blind
    with pytest.raises(EdgecError):
        difference(np.zeros(3, np.float32), np.zeros(3, np.float64))


# -- which outputs are rounded ---------------------------------------------------------------------------------------

QDQ = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
IF = (f"{QDQ} c = CastLike(z, t) t = Constant<value = bool {{1}}>() u = Not(c)"
      " a, b = If(u) <then_branch = g1 () => (float[2,4] e, float[2,4] f) { e = Relu(x) f = Relu(d) },"
      " else_branch = g2 () => (float[2,4] k, float[2,4] l) { k = Abs(x) l = Abs(x) }>")
LOOP = ("n = Constant<value = int64 {{2}}>() t = Constant<value = bool {{1}}>() b = Relu(x)"
        " a = Loop(n, t, x) <body = g1 (int64 i, bool c, float[2,4] h) => (bool o, float[2,4] r)"
        " {{ o = Identity(c) q = QuantizeLinear({state}, s, z) v = DequantizeLinear(q, s, z) r = Add(h, v) }}>")
HEAD = "(float[2,4] x, float s, uint8 z, float[4,4] w) => (float[2,4] a, float[2,4] b)"


def levels(text: str, functions: str = "", **weights: Array) -> list[bool]:
    domains = {"com.microsoft": 1, **({"own": 1} if functions else {})}
    graph = model(text, functions=functions, domains=domains, s=np.array(0.1, np.float32), z=np.array(128, np.uint8),
                  w=RNG.standard_normal((4, 4)).astype(np.float32), **weights)
    if graph.functions:
        inline(graph)
    return rounded_outputs(graph)


@pytest.mark.parametrize(("body", "wanted"), [
    (f"{QDQ} a = MatMul(d, w) b = MatMul(x, w)", [True, False]),
    ("wq = QuantizeLinear(w, s, z) wd = DequantizeLinear(wq, s, z) a = MatMul(x, wd) b = MatMul(x, w)", [False, False]),
    ("t = Transpose(w) wq = QuantizeLinear(t, s, z) wd = DequantizeLinear(wq, s, z) a = MatMul(x, wd) b = Relu(a)",
     [False, False]),
    ("q, qs, qz = DynamicQuantizeLinear(x) d = DequantizeLinear(q, qs, qz) a = Relu(x) b = Relu(d)", [False, True]),
    ("a = com.microsoft.DynamicQuantizeMatMul(x, wq, s, z) wq = QuantizeLinear(w, s, z) b = Relu(x)", [True, False]),
    (IF, [False, True]), (LOOP.format(state="h"), [True, False]), (LOOP.format(state="w"), [False, False]),
])
def test_rounding_is_found_per_output(body: str, wanted: list[bool]) -> None:
    assert levels(f"g {HEAD} {{ {body} }}") == wanted


def test_rounding_to_16_bits_needs_no_more_room() -> None:
    head, text = HEAD.replace("uint8 z", "uint8 z, uint16 z16"), QDQ.replace("z)", "z16)")
    assert levels(f"g {head} {{ {text} a = Relu(d) b = Relu(x) }}", z16=np.array(0, np.uint16)) == [False, False]
    assert levels(f"g {HEAD} {{ {QDQ} a = Relu(d) b = Relu(x) }}") == [True, False]


def test_rounding_inside_a_function() -> None:
    function = ('<domain: "own", opset_import: ["" : 24]> round (v, fs, fz) => (r)'
                " { q = QuantizeLinear(v, fs, fz) r = DequantizeLinear(q, fs, fz) }")
    assert levels(f"g {HEAD} {{ c = own.round(w, s, z) d = own.round(x, s, z) a = MatMul(x, c) b = MatMul(d, w) }}",
                  function) == [False, True]


# -- at the door -----------------------------------------------------------------------------------------------------


def write(path: Path, text: str, opset: int = 17, **weights: Array) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in weights.items())
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("broken", ["rounded", "exact"])
def test_the_tolerance_is_that_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """One part in a hundred is nothing behind a rounding to 8 bits, and a defect beside it."""
    path = write(tmp_path / "m.onnx", "g (float[2,4] x) => (float[2,4] rounded, float[2,4] exact) {"
                 " q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) rounded = Mul(d, one)"
                 " exact = Mul(x, uno) }", s=np.array(0.05, np.float32), z=np.array(128, np.uint8),
                 one=np.ones(1, np.float32), uno=np.ones(1, np.float32))
    importers.load(path)
    real = door.spell_vendor_operators

    def spoil(graph: door.ir.Model) -> object:
        factor = graph.graph.initializers["one" if broken == "rounded" else "uno"]
        factor.const_value = door.ir.Tensor(np.full(1, 1.01, np.float32))
        return real(graph)

    monkeypatch.setattr(door, "spell_vendor_operators", spoil)
    if broken == "rounded":
        importers.load(path)
        return
    with pytest.raises(EdgecError, match="'exact'") as caught:
        importers.load(path)
    assert caught.value.code == "E0104"


def test_products_that_round_their_left_operand(tmp_path: Path) -> None:
    """MatMulNBits with accuracy_level 4, as language models for phones are exported."""
    weights = {"b": RNG.integers(0, 256, (24, 2, 16)).astype(np.uint8),
               "s": RNG.uniform(0.01, 0.1, 48).astype(np.float32)}
    for level in (0, 4):
        importers.load(write(tmp_path / f"{level}.onnx", "g (float[3,64] x) => (float[3,24] y) {"
                             " y = com.microsoft.MatMulNBits<K = 64, N = 24, bits = 4, block_size = 32,"
                             f" accuracy_level = {level}>(x, b, s) }}", **weights))


NUMBERS = "float[1] minus = {-1.0}, float[1] half = {0.5}, float[1] one = {1.0}"


@pytest.mark.parametrize(("body", "proven"), [
    ("m = ReduceMin(x) y = Log(m)", True),  # positive values
    ("m = ReduceMin(x) d = Sub(m, one) y = Sqrt(d)", True),  # from 1
    ("a = Abs(x) m = ReduceMax(a) d = Sub(half, m) y = Sqrt(d)", True),  # small ones
    ("a = Abs(x) d = Sub(minus, a) y = Sqrt(d)", False),
    ("d = Sub(x, x) y = Div(d, d)", False),
    ("d = Sub(x, x) y = Log(d)", True),  # -inf everywhere, as masks are
    ("m = ReduceMin(x) l = Log(m) y = IsNaN(l)", True),
])
def test_nan_alone_proves_nothing(tmp_path: Path, body: str, proven: bool) -> None:
    kind = "bool" if "IsNaN" in body else "float"
    path = write(tmp_path / "m.onnx", f"g (float[64] x) => ({kind}[n] y, float[64] z) <{NUMBERS}> {{ {body}"
                 " z = Relu(x) }")
    if proven:
        importers.load(path)
        return
    with pytest.raises(EdgecError) as caught:
        importers.load(path)
    assert caught.value.code == "E0105"
    assert "'y'" in caught.value.where
    assert "'z'" not in caught.value.where


class Root(torch.nn.Module):
    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.offset - x.abs().max()).sqrt(), x + 1


def test_nan_alone_proves_nothing_of_a_module_either() -> None:
    example = torch.full((64,), 5.0)
    importers.load(Root(0.5), example_inputs=example)
    with pytest.raises(EdgecError) as caught:
        importers.load(Root(-0.5), example_inputs=example)
    assert caught.value.code == "E0105"
    assert "output_0" in caught.value.where
    assert "output_1" not in caught.value.where


class Picky(Root):
    """NaN on what it is given, and no other values are accepted."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not torch.compiler.is_exporting() and float(x.abs().max()) < 1.5:
            raise ValueError("small numbers")
        return super().forward(x)


def test_a_module_need_not_accept_other_values() -> None:
    with pytest.raises(EdgecError) as caught:
        importers.load(Picky(-0.5), example_inputs=torch.full((64,), 5.0))
    assert caught.value.code == "E0105"
