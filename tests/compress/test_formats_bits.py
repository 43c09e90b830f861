"""bits64 and palette64: byte-exact examples by hand, every size, and errors for arrays that no format has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compress.formats import (
    BitsSpec,
    PaletteSpec,
    PaletteTensor,
    Quantized,
    codes_of,
    dequantize,
    dequantize_palette,
    pack_bits64,
    pack_palette,
    planes_of,
    unpack_bits64,
    unpack_palette,
)
from edgec.errors import EdgecError
from tests.compress.random_weights import Array, random_palette, random_quantized

SPEC = st.builds(BitsSpec, st.integers(1, 8), st.sampled_from([32, 64, 128]), st.booleans())
SIZE = st.one_of(st.integers(1, 140), st.sampled_from([63, 64, 65, 127, 128, 129, 256, 300]))


def same(a: Any, b: Any) -> None:
    assert a.spec == b.spec
    for name in ("codes", "scale", "offset") if isinstance(a, Quantized) else ("indices", "lut"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def row_at(position: int) -> int:
    return 16 * (position % 16 // 4) + 4 * (position // 16) + position % 4


def drawn(q: Quantized) -> bytes:
    """The layout of docs/format.md, one value at a time."""
    (n, k), spec, out = q.shape, q.spec, bytearray()
    for tile in range(-(-n // 64)):
        for g in range(spec.groups(k)):
            columns = range(g * spec.group, min(k, (g + 1) * spec.group))
            for j in range(spec.bits):
                for chunk in range(-(-len(columns) // 32)):
                    for b in range(4):
                        for p in range(64):
                            row, byte = 64 * tile + row_at(p), 0
                            for i in range(8):
                                c = g * spec.group + 32 * chunk + 8 * b + i
                                if row < n and c < k:
                                    byte |= (int(q.codes[row, c]) >> j & 1) << i
                            out.append(byte)
            for part in ([q.scale] if spec.uniform else list(q.scale)) + [q.offset]:
                for r in range(64):
                    row = 64 * tile + r
                    out += np.float16(part[row, g] if row < n else 0).astype("<f2").tobytes()
    return bytes(out)


@settings(deadline=None, max_examples=25)
@given(SPEC, SIZE, SIZE, st.integers(0, 99))
def test_every_byte_is_where_the_drawing_says(spec: BitsSpec, n: int, k: int, seed: int) -> None:
    q = random_quantized(np.random.default_rng(seed), spec, n, k)
    assert pack_bits64(q).tobytes() == drawn(q)


@settings(deadline=None, max_examples=150)
@given(SPEC, st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_round_trip(spec: BitsSpec, n: int, k: int, seed: int) -> None:
    q = random_quantized(np.random.default_rng(seed), spec, n, k)
    data = pack_bits64(q)
    assert data.size == spec.bytes(n, k)
    assert data.size % 64 == 0
    assert spec.bits_per_weight(n, k) == 8 * data.size / (n * k)
    same(unpack_bits64(data.tobytes(), spec, n, k), q)
    assert np.array_equal(codes_of(planes_of(q.codes, spec.bits), k), q.codes)


def test_a_golden_hlq_matrix() -> None:
    """2 bits, one row, 9 columns: one tile, one group, one chunk; row 0 is position 0."""
    codes = np.array([[3, 0, 1, 0, 0, 2, 0, 0, 3]], np.uint8)
    scale = np.array([1.0, 2.0], np.float16).reshape(2, 1, 1)
    q = Quantized(BitsSpec(2, 32), codes, scale, np.full((1, 1), 0.5, np.float16))
    data = pack_bits64(q)
    assert data.size == 2 * 256 + 3 * 128
    filled = {int(i): int(data[i]) for i in np.flatnonzero(data)}
    assert filled == {
        0: 0b00000101, 64: 0b1,  # plane 0: columns 0 and 2, column 8
        256: 0b00100001, 320: 0b1,  # plane 1: columns 0 and 5, column 8
        512 + 1: 0x3C, 640 + 1: 0x40, 768 + 1: 0x38,  # float16 1.0, 2.0, 0.5 of row 0
    }
    wanted = np.array([[3.5, -2.5, -0.5, -2.5, -2.5, 1.5, -2.5, -2.5, 3.5]], np.float32)
    assert np.array_equal(dequantize(q), wanted)


def test_a_golden_uniform_matrix() -> None:
    """4 bits, 66 rows, 33 columns in groups of 32: two tiles, and a second group of one chunk."""
    codes = np.zeros((66, 33), np.uint8)
    codes[20, 31], codes[65, 32] = 8, 1
    ones = np.ones((66, 2), np.float16)
    data = pack_bits64(Quantized(BitsSpec(4, 32, True), codes, ones, ones))
    group = 4 * 256 + 2 * 128
    assert data.size == 2 * 2 * group
    # Row 20 = 16 + 4 is position 4 * 1 + 16 * 1; its bit 3 is in plane 3, byte column 3, bit 7.
    assert data[3 * 256 + 3 * 64 + 20] == 0x80
    # Row 65 is row 1 of tile 1, position 1; column 32 is the first of group 1.
    assert data[2 * group + group + 1] == 1
    scales = data.reshape(2, 2, group)[:, :, 1024:].copy().view("<f2").reshape(2, 2, 2, 64)
    assert (scales[0] == 1).all()
    assert (scales[1, ..., :2] == 1).all()
    assert (scales[1, ..., 2:] == 0).all()
    assert np.count_nonzero(data.reshape(2, 2, group)[:, :, :1024]) == 2


@settings(deadline=None, max_examples=60)
@given(SPEC, SIZE, SIZE, st.integers(0, 99))
def test_values(spec: BitsSpec, n: int, k: int, seed: int) -> None:
    q = random_quantized(np.random.default_rng(seed), spec, n, k)
    group = np.arange(k) // spec.group
    offset = q.offset.astype(np.float64)[:, group]
    if spec.uniform:
        wanted = q.scale.astype(np.float64)[:, group] * (q.codes - offset)
    else:
        bits = q.codes >> np.arange(spec.bits)[:, None, None] & 1
        wanted = offset + (q.scale.astype(np.float64)[:, :, group] * (2.0 * bits - 1)).sum(0)
    assert np.array_equal(dequantize(q), wanted.astype(np.float32))


def test_slices_of_a_large_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    q = random_quantized(np.random.default_rng(3), BitsSpec(3, 64), 300, 70)
    whole, values = pack_bits64(q), dequantize(q)
    monkeypatch.setattr("edgec.compress.formats_bits._SLICE", 64 * 70)
    assert np.array_equal(pack_bits64(q), whole)
    assert np.array_equal(dequantize(q), values)


PALETTE = st.builds(PaletteSpec, st.integers(1, 8), st.integers(0, 9), st.integers(1, 5))


@settings(deadline=None, max_examples=80)
@given(PALETTE, st.integers(1, 60), st.integers(1, 60), st.sampled_from([np.float16, np.float32]), st.integers(0, 99))
def test_palette(spec: PaletteSpec, n: int, k: int, dtype: Any, seed: int) -> None:
    p = random_palette(np.random.default_rng(seed), spec, n, k, dtype)
    data = pack_palette(p)
    size = np.dtype(dtype).itemsize
    assert data.size == spec.bytes(n, k, size)
    same(unpack_palette(data.tobytes(), spec, n, k, size), p)
    values = dequantize_palette(p)
    for row, column in ((0, 0), (n - 1, k - 1), (n // 2, k // 2)):
        table = p.lut[row // spec.rows if spec.rows else 0]
        entry = np.atleast_1d(table[p.indices[row, column // spec.vector]])
        assert values[row, column] == np.float32(entry[column % spec.vector])


def test_a_golden_palette() -> None:
    p = PaletteTensor(PaletteSpec(2), np.array([[0, 1, 2, 3], [3, 0, 0, 0]], np.uint8),
                      np.array([[1, 2, 0.5, -1]], np.float16), 4)
    data = pack_palette(p)
    assert data[:512].tolist() == [0b11_10_01_00, 0b00_00_00_11, *[0] * 510]
    assert data[512:].tolist() == [0, 0x3C, 0, 0x40, 0, 0x38, 0, 0xBC]
    assert dequantize_palette(p).tolist() == [[1, 2, 0.5, -1], [-1, 1, 1, 1]]


@pytest.mark.parametrize("text", ["hlq2g128", "hlq3g64", "hlq1g32", "int8g128", "int4g32"])
def test_names(text: str) -> None:
    assert str(BitsSpec.parse(text)) == text
    assert BitsSpec.parse("hlq2") == BitsSpec(2)
    for name in ("palette4", "palette8r16", "palette6v2", "palette3r4v2"):
        assert str(PaletteSpec.parse(name)) == name


@pytest.mark.parametrize("text", ["", "hlq", "hlq9", "int0", "hlq2g", "hlq2g48", "hlq2 ", "fp4", "HLQ2"])
def test_names_of_nothing(text: str) -> None:
    with pytest.raises(EdgecError, match="E0002"):
        BitsSpec.parse(text)
    with pytest.raises(EdgecError, match="E0002"):
        PaletteSpec.parse(text)


def test_bytes_of_known_shapes() -> None:
    assert BitsSpec(2).bits_per_weight(4096, 4096) == 2 + 16 * 3 / 128
    assert BitsSpec(4, 64, True).bits_per_weight(4096, 4096) == 4 + 32 / 64
    assert BitsSpec(3, 64).bytes(1, 1) == 3 * 256 + 4 * 128
    assert PaletteSpec(4).bytes(4096, 4096) == 4096 * 4096 // 2 + 32


GOOD = random_quantized(np.random.default_rng(1), BitsSpec(2, 32), 3, 40)
INT = random_quantized(np.random.default_rng(1), BitsSpec(2, 32, True), 3, 40)


def poisoned(array: Array) -> Array:
    array = array.copy()
    array.reshape(-1)[-1] = np.nan
    return array


@pytest.mark.parametrize(("good", "changes", "where"), [
    (GOOD, {"codes": GOOD.codes.astype(np.int32)}, "codes"),
    (GOOD, {"codes": GOOD.codes[:, :0]}, "codes"),
    (GOOD, {"codes": GOOD.codes[0]}, "codes"),
    (GOOD, {"codes": GOOD.codes + np.uint8(4)}, "codes"),
    (GOOD, {"scale": GOOD.scale[:1]}, "scale"),
    (GOOD, {"scale": GOOD.scale.astype(np.float32)}, "scale"),
    (GOOD, {"scale": poisoned(GOOD.scale)}, "scale"),
    (GOOD, {"offset": GOOD.offset[:, :1]}, "offset"),
    (GOOD, {"offset": GOOD.offset + np.float16(np.inf)}, "offset"),
    (INT, {"scale": GOOD.scale}, "scale"),
])
def test_arrays_that_no_format_has(good: Quantized, changes: dict[str, Array], where: str) -> None:
    with pytest.raises(EdgecError, match=where) as caught:
        replace(good, **changes)
    assert caught.value.code == "E0002"


@pytest.mark.parametrize("changes", [
    {"indices": np.zeros((2, 5), np.uint8)}, {"indices": np.full((2, 4), 4, np.uint8)}, {"columns": 5},
    {"lut": np.zeros((2, 4), np.float16)}, {"lut": np.zeros((1, 4), np.float64)},
    {"lut": np.full((1, 4), np.inf, np.float16)}, {"indices": np.zeros((2, 4), np.int8)},
])
def test_palettes_that_do_not_exist(changes: dict[str, Any]) -> None:
    good = PaletteTensor(PaletteSpec(2), np.zeros((2, 4), np.uint8), np.zeros((1, 4), np.float16), 4)
    with pytest.raises(EdgecError, match="E0002"):
        replace(good, **changes)


@pytest.mark.parametrize("make", [
    lambda: BitsSpec(0), lambda: BitsSpec(9), lambda: BitsSpec(2, 48), lambda: PaletteSpec(0),
    lambda: PaletteSpec(4, rows=-1), lambda: PaletteSpec(4, vector=0),
    lambda: unpack_bits64(bytes(64), BitsSpec(2), 3, 40), lambda: unpack_palette(bytes(64), PaletteSpec(2), 3, 40),
    lambda: unpack_palette(bytes(72), PaletteSpec(2), 2, 4, 3),
])
def test_settings_that_do_not_exist(make: Any) -> None:
    with pytest.raises(EdgecError, match="E0002"):
        make()
