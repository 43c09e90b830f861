"""Device rows: what they promise, and what an unknown name gets."""

from __future__ import annotations

import dataclasses

import pytest

from edgec.errors import EdgecError
from edgec.targets import devices


def test_every_row_is_found_by_its_name() -> None:
    assert set(devices.names()) == {
        "host", "x86-64-v3", "x86-64-v4", "generic-c", "aarch64-linux", "apple-m2", "wasm32"}
    for name in devices.names():
        assert devices.device(name).name == name
    assert [row.name for row in devices.devices()] == list(devices.names())


def test_v4_is_its_true_feature_set() -> None:
    features = set(devices.device("x86-64-v4").features)
    assert {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= features
    assert not any(word in f for f in features for word in ("vnni", "vbmi", "bf16", "amx"))
    assert set(devices.device("x86-64-v3").features) < features


def test_near_miss_is_suggested() -> None:
    with pytest.raises(EdgecError) as caught:
        devices.device("apple-m3")
    assert caught.value.code == "E0006"
    assert "did you mean 'apple-m2'?" in str(caught.value)
    assert caught.value.exit_code == 2


def test_host_is_this_machine() -> None:
    row = devices.host()
    assert row.cores >= 1
    assert row.page_size >= 4096
    assert row.isa[-1] == "scalar"


@pytest.mark.parametrize("change", [
    {"isa": ()}, {"isa": ("avx2",)}, {"isa": ("neon", "scalar")}, {"features": devices.X86_64_V3},
])
def test_contradictions_are_rejected(change: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="device"):
        dataclasses.replace(devices.device("x86-64-v4"), **change)
