"""Device rows: what they promise, and what an unknown name gets."""

from __future__ import annotations

import dataclasses

import pytest

from edgec.errors import EdgecError
from edgec.targets import devices
from edgec.targets.toolchain import runtime_library


def test_every_row_is_found_by_its_name() -> None:
    assert set(devices.names()) == {
        "host", "x86-64-v2", "x86-64-v3", "x86-64-v4", "zen5", "generic-c", "aarch64-linux", "rpi4", "rpi5",
        "jetson-orin-cpu", "android-arm64", "pixel-8", "snapdragon-8-gen3", "apple-m1", "apple-m2", "apple-m3",
        "apple-m4", "apple-a15", "apple-a16", "apple-a17", "apple-a18", "riscv64", "wasm32"}
    for name in devices.names():
        assert devices.device(name).name == name
    assert [row.name for row in devices.devices()] == list(devices.names())


def test_v4_is_its_true_feature_set() -> None:
    features = set(devices.device("x86-64-v4").features)
    assert {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= features
    assert not any(word in f for f in features for word in ("vnni", "vbmi", "bf16", "amx"))
    assert set(devices.device("x86-64-v3").features) < features


def test_bandwidths_have_sources() -> None:
    rows = {row.name: row for row in devices.devices()}
    assert {name for name, row in rows.items() if row.bandwidth_gb_s is not None} == {
        "jetson-orin-cpu", "apple-m2", "apple-m3", "apple-m4"}
    for change in ({"bandwidth_gb_s": 50.0}, {"bandwidth_source": "a data sheet"}):
        with pytest.raises(ValueError, match="source"):
            dataclasses.replace(rows["rpi5"], **change)
    with pytest.raises(ValueError, match="clusters"):
        dataclasses.replace(rows["rpi5"], cores=8)


@pytest.mark.parametrize(("name", "threads"), [
    ("apple-m1", 4), ("apple-a18", 2), ("pixel-8", 5), ("rpi5", 4), ("x86-64-v3", 0), ("wasm32", 1)])
def test_threads_to_begin_with(name: str, threads: int) -> None:
    row = devices.device(name)
    assert row.default_threads == row.to_dict()["default_threads"] == threads


def test_systems_without_a_c_library_here_say_where_it_is() -> None:
    for name, word in (("apple-a17", "Xcode"), ("pixel-8", "NDK")):
        with pytest.raises(EdgecError, match=word) as caught:
            runtime_library(devices.device(name))
        assert caught.value.code == "E0007"


def test_near_miss_is_suggested() -> None:
    with pytest.raises(EdgecError) as caught:
        devices.device("apple-m22")
    assert caught.value.code == "E0006"
    assert "did you mean 'apple-m2'?" in str(caught.value)
    assert caught.value.exit_code == 2


def test_host_is_this_machine() -> None:
    row = devices.host()
    assert row.cores >= 1
    assert row.page_size >= 4096
    assert row.isa[-1] == "scalar"


@pytest.mark.parametrize(("arch", "features", "isa"), [
    ("aarch64", ("asimd", "fp"), ("neon", "scalar")),
    ("aarch64", ("asimd", "asimddp", "fp"), ("neondot", "neon", "scalar")),
    ("x86_64", ("avx2", "f16c", "fma"), ("avx2", "scalar")),
])
def test_host_has_what_its_cpu_says(
    monkeypatch: pytest.MonkeyPatch, arch: str, features: tuple[str, ...], isa: tuple[str, ...]
) -> None:
    monkeypatch.setattr(devices, "host_arch", lambda: arch)
    monkeypatch.setattr(devices, "host_features", lambda: features)
    assert devices.host().isa == isa


@pytest.mark.parametrize("change", [
    {"isa": ()}, {"isa": ("avx2",)}, {"isa": ("neon", "scalar")}, {"features": devices.X86_64_V3},
])
def test_contradictions_are_rejected(change: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="device"):
        dataclasses.replace(devices.device("x86-64-v4"), **change)
