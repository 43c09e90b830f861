"""Bundles written and read back; every rule of docs/format.md that the reader checks has a file that breaks it."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.compress.formats import Dtype, Format
from edgec.errors import EdgecError
from edgec.native.bundle import Kind, read_bundle, write_bundle
from edgec.native.dims import Op, dim
from edgec.native.lower import build_plan
from edgec.native.plan import Call, Entry, Operand, Plan, Port, Space, Weight
from edgec.native.plan_words import decode
from tests.native.lower_cases import model_of
from tests.native.models import encoder, llama, mobilenet

MANIFEST = {"name": "test", "zeta": 1, "alpha": [1, 2], "umlaut": "ä"}


def plans() -> list[Plan]:
    return [build_plan(model_of(mobilenet())), build_plan(model_of(encoder())), build_plan(llama(), weights="f16")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.edgec"
    write_bundle(path, plans()[2], tokenizer=b"tokens", golden=b"gold", manifest=MANIFEST)
    return path


@pytest.mark.parametrize("index", range(3))
def test_round_trip(index: int, tmp_path: Path) -> None:
    plan, path = plans()[index], tmp_path / "model.edgec"
    write_bundle(path, plan, tokenizer=None, golden=None, manifest=MANIFEST)
    bundle = read_bundle(path)
    bundle.verify_weights()
    assert bundle.plan == plan
    assert bundle.plan.text() == plan.text()
    assert bundle.manifest == MANIFEST
    assert (bundle.tokenizer, bundle.golden) == (None, None)
    for stored, made in zip(bundle.plan.weights, plan.weights, strict=True):
        wanted = made.load().reshape(made.dims)
        if made.dtype is Dtype.F16:
            wanted = wanted.astype(np.float16).astype(np.float32)
        assert np.array_equal(bundle.tensor(stored.name), wanted)


def test_optional_sections(written: Path) -> None:
    bundle = read_bundle(written)
    assert (bundle.tokenizer, bundle.golden) == (b"tokens", b"gold")
    assert bundle.version == (1, 0)


def test_bytes_depend_on_the_arguments_only(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.edgec"
    write_bundle(again, plans()[2], tokenizer=b"tokens", golden=b"gold", manifest=dict(reversed(MANIFEST.items())))
    assert again.read_bytes() == written.read_bytes()


def test_weights_are_read_one_at_a_time(tmp_path: Path) -> None:
    log: list[str] = []

    def weight(n: int) -> Weight:
        def read() -> np.ndarray:
            log.append(f"read {n}")
            return np.full((4, 4), n, np.float32)

        return Weight(f"w{n}", Dtype.F32, Format.PLAIN, (4, 4), read, lambda: log.append(f"release {n}"))

    plan = plans()[0]
    weights = tuple(weight(n) for n in range(5))
    entry = dataclasses.replace(
        plan.entries[0], calls=(_copy(5),), arena_bytes=0, inputs=(), outputs=(Port("y", Dtype.F32, (dim(16),)),)
    )
    write_bundle(tmp_path / "m", Plan(0, 0, 0, 0, weights, (), (entry,)), tokenizer=None, golden=None, manifest={})
    assert log == [f"{what} {n}" for n in range(5) for what in ("read", "release")]


def _copy(n: int) -> Call:
    y = Operand(Space.OUTPUT, dims=(dim(16),))
    return Call("copy", "layer", (y, Operand(Space.WEIGHT, index=n - 1, dims=(dim(16),))))


def test_weights_over_several_chunks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(3 << 18).astype(np.float32)
    n = values.size
    weights = (Weight("a", Dtype.F32, Format.PLAIN, (7,), lambda: values[:7]),
               Weight("b", Dtype.F32, Format.PLAIN, (n,), lambda: values))
    call = Call("copy", "layer", (Operand(Space.OUTPUT, dims=(dim(n),)), Operand(Space.WEIGHT, 1, dims=(dim(n),))))
    entry = Entry("main", (), (Port("y", Dtype.F32, (dim(n),)),), (call,), 0)
    path = tmp_path / "model.edgec"
    write_bundle(path, Plan(0, 0, 0, 0, weights, (), (entry,)), tokenizer=None, golden=None, manifest={})
    bundle = read_bundle(path)
    bundle.verify_weights()
    weights_section = bytes(bundle.sections[Kind.WEIGHTS])
    chunks = [weights_section[i : i + (1 << 20)] for i in range(0, len(weights_section), 1 << 20)]
    assert len(chunks) == 4
    assert bytes(bundle.sections[Kind.HASHES])[8:] == b"".join(hashlib.sha256(c).digest() for c in chunks)


def test_damaged_weights_are_found_on_request(written: Path, tmp_path: Path) -> None:
    data = bytearray(written.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(EdgecError, match="MiB 0") as e:
        read_bundle(path).verify_weights()
    assert e.value.code == "E0402"


def test_plan_that_breaks_a_rule_is_not_written(tmp_path: Path) -> None:
    plan = plans()[0]
    broken = dataclasses.replace(plan, entries=(dataclasses.replace(plan.entries[0], arena_bytes=64),))
    with pytest.raises(EdgecError, match="arena operand") as e:
        write_bundle(tmp_path / "m", broken, tokenizer=None, golden=None, manifest={})
    assert e.value.code == "E0001"
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.edgec"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EdgecError, match="No space left") as e:
        write_bundle(path, plans()[0], tokenizer=None, golden=None, manifest={})
    assert e.value.code == "E0004"
    assert [p.name for p in tmp_path.iterdir()] == ["model.edgec"]
    assert path.read_bytes() == b"old"


def test_unreadable_weights_are_not_a_write_error(tmp_path: Path) -> None:
    model = model_of(mobilenet())
    (tmp_path / "data").write_bytes(bytes(40))
    model.graph.initializers["fc.bias"].const_value = ir.ExternalTensor(
        "data", 0, 40, ir.DataType.FLOAT, shape=ir.Shape([10]), name="fc.bias", base_dir=tmp_path
    )
    plan = build_plan(model)
    (tmp_path / "data").unlink()
    with pytest.raises(EdgecError, match=r"fc\.bias") as e:
        write_bundle(tmp_path / "m", plan, tokenizer=None, golden=None, manifest={})
    assert e.value.code == "E0101"
    assert not (tmp_path / "m").exists()


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="E0004"):
        write_bundle(tmp_path / "no" / "m", plans()[0], tokenizer=None, golden=None, manifest={})
    with pytest.raises(EdgecError, match="E0003"):
        read_bundle(tmp_path / "absent")


def test_manifest_has_a_limit(tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="1 MiB"):
        write_bundle(tmp_path / "m", plans()[0], tokenizer=None, golden=None, manifest={"x": "y" * (1 << 20)})


# -- files that break a rule -----------------------------------------------------------------------------------------


def _record(data: bytearray, kind: Kind) -> int:
    (count,) = struct.unpack_from("<I", data, 32)
    return next(at for at in range(128, 128 + 64 * count, 64) if struct.unpack_from("<I", data, at)[0] == kind)


def _seal(data: bytearray) -> bytes:
    """Hashes recomputed, so that only the broken rule can be at fault."""
    (count,) = struct.unpack_from("<I", data, 32)
    for at in range(128, 128 + 64 * min(count, 16), 64):
        kind, _, offset, length = struct.unpack_from("<IIQQ", data, at)
        if kind != Kind.WEIGHTS and offset + length <= len(data):
            data[at + 24 : at + 56] = hashlib.sha256(data[offset : offset + length]).digest()
    data[40:72] = hashlib.sha256(data[128 : 128 + 64 * count]).digest()
    data[96:128] = hashlib.sha256(data[:96]).digest()
    return bytes(data)


def _header(offset: int, layout: str, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(layout, data, offset, value)


def _table(kind: Kind, offset: int, layout: str, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(layout, data, _record(data, kind) + offset, value)


def _inside(kind: Kind, offset: int, layout: str, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        (start,) = struct.unpack_from("<Q", data, _record(data, kind) + 8)
        struct.pack_into(layout, data, start + offset, value)

    return change


def _gap(data: bytearray) -> None:
    at = _record(data, Kind.PLAN)
    _, _, offset, length = struct.unpack_from("<IIQQ", data, at)
    assert (offset + length) % 64, "this test needs padding after PLAN"
    data[offset + length] = 1


RULES: list[tuple[str, Callable[[bytearray], None], str]] = [
    ("magic", _header(0, "<B", 0), "EDGECBDL"),
    ("major", _header(8, "<H", 2), "format 2.0"),
    ("reader", _header(14, "<H", 1), "a reader 1.1"),
    ("features", _header(16, "<Q", 4), "features 0x4"),
    ("length", _header(24, "<Q", 10**6), "a length of"),
    ("no sections", _header(32, "<I", 0), "0 sections"),
    ("header length", _header(36, "<I", 64), "header of 64"),
    ("reserved", _header(72, "<B", 1), "reserved"),
    ("kind twice", _table(Kind.GOLDEN, 0, "<I", Kind.PLAN), "kind 3"),
    ("unknown kind", _table(Kind.GOLDEN, 0, "<I", 77), "kind 77"),
    ("flags", _table(Kind.PLAN, 4, "<I", 2), "flags 2"),
    ("missing", _table(Kind.MANIFEST, 0, "<I", 9), "lacks MANIFEST"),
    ("unaligned", _table(Kind.PLAN, 8, "<Q", 1001), "section"),
    ("empty", _table(Kind.PLAN, 16, "<Q", 0), "length 0"),
    ("beyond", _table(Kind.WEIGHTS, 16, "<Q", 10**9), "within the file"),
    ("zero", _table(Kind.PLAN, 56, "<Q", 1), "kind 3"),
    ("padding", _gap, "padding"),
    ("weights hash", _table(Kind.WEIGHTS, 24, "<B", 1), "a hash for WEIGHTS"),
    ("string count", _inside(Kind.STRINGS, 0, "<I", 70000), "70000 strings"),
    ("string start", _inside(Kind.STRINGS, 4, "<I", 1), "do not cover"),
    ("string order", _inside(Kind.STRINGS, 8, "<I", 0), "string 0"),
    ("tensor count", _inside(Kind.TENSORS, 0, "<I", 9), "9 records"),
    ("tensor name", _inside(Kind.TENSORS, 8, "<I", 60000), "name 60000"),
    ("tensor type", _inside(Kind.TENSORS, 12, "<B", 9), "type 9"),
    ("tensor format", _inside(Kind.TENSORS, 13, "<B", 2), "format 2"),
    ("tensor rank", _inside(Kind.TENSORS, 14, "<B", 0), "rank 0"),
    ("tensor place", _inside(Kind.TENSORS, 16, "<Q", 64), "tensor 0"),
    ("tensor bytes", _inside(Kind.TENSORS, 24, "<Q", 64), "tensor 0"),
    ("tensor dim", _inside(Kind.TENSORS, 32, "<I", 0), "dims"),
    ("plan kind", _inside(Kind.PLAN, 0, "<I", 2), "model kind 2"),
    ("plan dims", _inside(Kind.PLAN, 16, "<I", 5000), "5000 dims"),
    ("plan context", _inside(Kind.PLAN, 4, "<I", 0), "context 0"),
    ("dim operation", _inside(Kind.PLAN, 20, "<I", 9), "dim operation 9"),
    ("hash chunks", _inside(Kind.HASHES, 0, "<I", 19), "hashes of 1 MiB"),
    ("manifest", _inside(Kind.MANIFEST, 0, "<B", 0x5B), "no JSON"),
]


@pytest.mark.parametrize(("change", "problem"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_rule(change: Callable[[bytearray], None], problem: str, written: Path, tmp_path: Path) -> None:
    data = bytearray(written.read_bytes())
    change(data)
    path = tmp_path / "bad"
    path.write_bytes(_seal(data))
    with pytest.raises(EdgecError) as e:
        read_bundle(path)
    assert e.value.code == "E0401"
    assert problem in str(e.value)


def test_unsealed_change_is_a_hash_mismatch(written: Path, tmp_path: Path) -> None:
    for change in (_header(32, "<I", 5), _table(Kind.PLAN, 4, "<I", 1), _inside(Kind.PLAN, 0, "<I", 0)):
        data = bytearray(written.read_bytes())
        change(data)
        path = tmp_path / "bad"
        path.write_bytes(data)
        with pytest.raises(EdgecError, match="E0402"):
            read_bundle(path)


def test_every_truncation_is_refused(written: Path, tmp_path: Path) -> None:
    data, path = written.read_bytes(), tmp_path / "short"
    for size in [*range(0, 700, 37), *range(700, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(EdgecError):
            read_bundle(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutations_of_tables_and_plan_never_crash(written: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    kind = data.draw(st.sampled_from([Kind.STRINGS, Kind.TENSORS, Kind.PLAN]))
    _, _, offset, length = struct.unpack_from("<IIQQ", content, _record(content, kind))
    for _ in range(data.draw(st.integers(1, 3))):
        at = offset + data.draw(st.integers(0, length - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated"
    path.write_bytes(_seal(content))
    found = "sound"
    try:
        read_bundle(path).plan.text()
    except EdgecError as e:
        found = e.code
    assert found in ("sound", "E0401")


def test_dims_that_grow_without_end_are_refused(written: Path, tmp_path: Path) -> None:
    """Each row the square of the one before: a table of a few lines whose polynomial no machine could hold."""
    rows = [struct.pack("<4I", Op.SYMBOL, 0, 0, 1), struct.pack("<4I", Op.ADD, 0, 0, 0)]
    rows += [struct.pack("<4I", Op.MUL, n, n, 0) for n in range(1, 60)]
    with pytest.raises(EdgecError, match="too large an expression"):
        decode(struct.pack("<5I", 0, 0, 0, 0, len(rows)) + b"".join(rows), ["n"], ())
