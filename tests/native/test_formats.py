"""Stored weights: byte order of panel16, rounding of 16-bit types, the choice of the smallest lossless type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compress.formats import (
    Dtype,
    Format,
    from_storage,
    lossless_dtype,
    pack,
    pack_panel16,
    storage_bytes,
    to_storage,
    unpack,
    unpack_panel16,
)
from edgec.errors import EdgecError


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
def test_panel16_places_every_element(n: int, k: int, lead: int) -> None:
    matrix = np.arange(1, lead * n * k + 1, dtype=np.float32).reshape(lead, n, k)
    flat = pack_panel16(matrix).reshape(lead, -1)
    assert flat.size * 4 == storage_bytes(Dtype.F32, Format.PANEL16, (lead, n, k))
    for row in range(n):
        for col in range(k):
            assert (flat[:, ((row // 16) * k + col) * 16 + row % 16] == matrix[:, row, col]).all()
    assert np.count_nonzero(flat) == matrix.size  # rows beyond n are zero
    assert np.array_equal(unpack_panel16(pack_panel16(matrix), n), matrix)


@settings(deadline=None)  # the first example imports torch
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_bf16_rounds_to_nearest_even(values: list[float]) -> None:
    import torch

    array = np.array(values, np.float32)
    wanted = torch.from_numpy(array).to(torch.bfloat16).view(torch.uint16).numpy()
    overflow = ((wanted & 0x7FFF) == 0x7F80).any()
    if overflow:
        with pytest.raises(EdgecError, match="E0002"):
            to_storage(array, Dtype.BF16)
    else:
        assert np.array_equal(to_storage(array, Dtype.BF16), wanted)


def test_nan_stays_nan_and_infinity_infinity() -> None:
    array = np.array([0x7F800001, 0xFF800001, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    for dtype in (Dtype.F16, Dtype.BF16):
        back = from_storage(to_storage(array, dtype), dtype)
        assert np.isnan(back[:2]).all()
        assert back[2:].tolist() == [np.inf, -np.inf]


def test_overflow_names_the_tensor() -> None:
    with pytest.raises(EdgecError, match=r"layer\.weight") as e:
        to_storage(np.float32([70000]), Dtype.F16, where="layer.weight")
    assert e.value.code == "E0002"


@pytest.mark.parametrize(("values", "dtype"), [
    ([1.0, -2.5, 0.0], Dtype.BF16), ([1.0 + 2**-10], Dtype.F16), ([1.0 + 2**-20], Dtype.F32), ([1e30], Dtype.F32),
    ([1e30 * 0 + 2.0**100], Dtype.BF16), ([2.0**-24], Dtype.BF16), ([3 * 2.0**-24 + 2.0**-14], Dtype.F16),
])
def test_lossless_type(values: list[float], dtype: Dtype) -> None:
    assert lossless_dtype(np.array(values, np.float32)) is dtype


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=20))
def test_lossless_type_keeps_every_value(values: list[float]) -> None:
    array = np.array(values, np.float32)
    dtype = lossless_dtype(array)
    assert dtype is not Dtype.F32
    assert np.array_equal(from_storage(to_storage(array, dtype), dtype), array)


@pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16, Dtype.BF16])
@pytest.mark.parametrize("fmt", list(Format))
def test_pack_and_unpack(dtype: Dtype, fmt: Format) -> None:
    values = np.round(np.random.default_rng(0).standard_normal((2, 19, 5)) * 8).astype(np.float32)
    packed = pack(values, dtype, fmt)
    assert packed.nbytes == storage_bytes(dtype, fmt, values.shape)
    assert np.array_equal(unpack(packed.tobytes(), dtype, fmt, values.shape), values)


def test_integers_are_stored_as_they_are() -> None:
    values = np.array([[1, -2], [3, 4]], np.int64)
    assert pack(values, Dtype.I64, Format.PLAIN).tobytes() == values.tobytes()


@pytest.mark.parametrize(("dtype", "dims"), [(Dtype.F32, (4,)), (Dtype.I64, (4, 4))])
def test_panel16_of_the_impossible(dtype: Dtype, dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="float matrices"):
        storage_bytes(dtype, Format.PANEL16, dims)
