"""The loader's twelve rules. Each case is a valid bundle with one thing wrong and every hash correct again, so that
the rule's own check has to refuse it; that the same bundle opens and runs without the change is asserted each time.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.native.bundle import Kind, write_bundle
from edgec.native.library import MESSAGE_BYTES, OpenOptions, library
from edgec.native.session import Model, NativeError, Status
from edgec.native.tokenizer import TokenizerData
from tests.native.tiny_plans import VOCAB, tiny_cnn, tiny_lm, tiny_siblings, tiny_tokenizer
from tests.runtime.bundle_surgery import Surgery, patch, plan_fields, record, rehash

ROOT = Path(__file__).resolve().parent.parent.parent
NAN = 0x7FC00000
Change = Callable[[Surgery], object]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(folder / "cnn", tiny_cnn(), tokenizer=None, golden=None, manifest={"name": "cnn"})
    section = tiny_tokenizer().to_bytes()
    write_bundle(folder / "lm", tiny_lm(), tokenizer=section, golden=None, manifest={"name": "lm"})
    write_bundle(folder / "siblings", tiny_siblings(), tokenizer=None, golden=None, manifest={"name": "siblings"})
    return {name: (folder / name).read_bytes() for name in ("cnn", "lm", "siblings")}


def runs(data: bytes) -> None:
    """Opens and runs a valid bundle, or fails."""
    with Model(data, verify_weights=True) as model, model.session(threads=1) as session:
        if model.info.kind == 1:
            tokens = model.tokenize("the thing")
            assert np.isfinite(session.step(tokens)).all()
        elif len(model.outputs) == 1:
            out = session.run({"image": np.ones((1, 8, 8, 3), np.float32)})["probabilities"]
            np.testing.assert_allclose(out.sum(), 1, rtol=1e-5)
        else:
            image = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
            parts = session.run({"image": image})
            weight, bias = (w.load().astype(np.float64) for w in tiny_siblings().weights)
            np.testing.assert_allclose(np.concatenate([parts[k] for k in "abc"], axis=1),
                                       np.maximum(image, 0) @ weight.T + bias, rtol=1e-4, atol=1e-5)


def refused(data: bytes, status: Status, text: str, **options: bool) -> None:
    with pytest.raises(NativeError) as caught:
        Model(data, selftest=False, **options)
    assert caught.value.status == status, caught.value
    assert text in caught.value.found, caught.value


def check(whole: bytes, change: Change, status: Status, text: str) -> None:
    """`change` alone makes the difference between a bundle that runs and one that is refused with `status`, `text`."""
    runs(Surgery(whole).build())
    surgery = Surgery(whole)
    change(surgery)
    refused(surgery.build(), status, text)


def plan(path: str, value: int) -> Change:
    """Overwrites the plan field `path`."""

    def change(s: Surgery) -> None:
        words = np.frombuffer(s.sections[Kind.PLAN], "<u4").tolist()
        s.u32(Kind.PLAN, plan_fields(words)[path], value)

    return change


def wide(path: str, value: int) -> Change:
    """Overwrites the plan field `path` of two words."""

    def change(s: Surgery) -> None:
        words = np.frombuffer(s.sections[Kind.PLAN], "<u4").tolist()
        s.pack(Kind.PLAN, "Q", 4 * plan_fields(words)[path], value)

    return change


def tensor(index: int, offset: int, layout: str, *values: int) -> Change:
    """Overwrites a field of tensor record `index`."""
    return lambda s: s.pack(Kind.TENSORS, layout, 8 + 64 * index + offset, *values)


# -- 1: magic, version and total length before anything else ---------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "layout", "value", "status", "text"),
    [
        (0, "Q", 0x4C44424345474445 ^ 1, Status.FORMAT, "magic"),
        (8, "H", 2, Status.VERSION, "format"),
        (8, "H", 0, Status.VERSION, "format"),
        (12, "H", 2, Status.VERSION, "minimum reader"),
        (14, "H", 1, Status.VERSION, "minimum reader"),
        (16, "Q", 1 << 63, Status.VERSION, "required features"),
        (24, "Q", 1 << 40, Status.FORMAT, "total length"),
        (24, "Q", 128, Status.FORMAT, "total length"),
        (32, "I", 0, Status.FORMAT, "section count"),
        (32, "I", 17, Status.FORMAT, "section count"),
        (36, "I", 256, Status.FORMAT, "header length"),
        (72, "B", 1, Status.FORMAT, "reserved"),
    ],
)
def test_01_header(
    bundles: dict[str, bytes], offset: int, layout: str, value: int, status: Status, text: str
) -> None:
    runs(bundles["cnn"])
    refused(patch(bundles["cnn"], layout, offset, value), status, text)


def test_01_files_that_are_no_bundles(bundles: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(bundles["cnn"])
    with Model(tmp_path / "good") as model:
        assert model.info.file_bytes == len(bundles["cnn"])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "foreign").write_bytes(b"\x7fELF" + bytes(5000))
    (tmp_path / "short").write_bytes(b"EDGECBDL")
    for name, status in (("empty", Status.FORMAT), ("foreign", Status.FORMAT), ("short", Status.FORMAT),
                         ("missing", Status.IO), (".", Status.IO)):
        with pytest.raises(NativeError) as caught:
            Model(tmp_path / name)
        assert caught.value.status == status, (name, caught.value)
        assert caught.value.code == {Status.FORMAT: "E0401", Status.IO: "E0003"}[status]


def test_01_truncation_at_every_64_bytes(bundles: dict[str, bytes]) -> None:
    for whole in bundles.values():
        runs(whole)
        for n in range(0, len(whole), 64):
            cut = whole[:n]
            with pytest.raises(NativeError) as caught:
                Model(cut, selftest=False)
            assert caught.value.status == Status.FORMAT
            if n >= 192:  # even when the header says that this is all
                with pytest.raises(NativeError) as caught:
                    Model(patch(cut, "Q", 24, n), selftest=False)
                assert caught.value.status in (Status.FORMAT, Status.HASH)
        refused(whole + bytes(64), Status.FORMAT, "total length")


# -- 2: sizes are 64-bit and sums are checked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field", "value", "text"),
    [
        (Kind.PLAN, 8, 2**64 - 64, "offset"), (Kind.PLAN, 16, 2**64 - 1, "length"), (Kind.WEIGHTS, 16, 2**63, "length"),
        (Kind.TENSORS, 8, 0, "offset"), (Kind.STRINGS, 16, 0, "length"), (Kind.MANIFEST, 8, 1 << 33, "offset"),
    ],
)
def test_02_sums_of_section_offsets_and_lengths(
    bundles: dict[str, bytes], kind: Kind, field: int, value: int, text: str
) -> None:
    whole = bundles["cnn"]
    runs(whole)
    refused(patch(whole, "Q", record(whole, kind) + field, value), Status.FORMAT, text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (tensor(1, 8, "Q", 2**64 - 64), "offset"),
        (tensor(1, 16, "Q", 2**64 - 1), "bytes"),
        (tensor(0, 24, "3I", 2**31, 2**31, 2**31), "bytes"),
        (plan("entries[0].calls[1].operands[0].offset", 0xFFFFFFC0), ""),
        (wide("entries[0].arena", 2**64 - 1), "2^48"), (wide("entries[0].scratch", 2**48 + 1), "2^48"),
    ],
)
def test_02_products_and_sums_inside(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["cnn"], change, Status.FORMAT, text)


# -- 3: no allocation beyond what the file's bytes justify -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.u32(Kind.STRINGS, 0, 65536), "STRINGS: count"),
        (lambda s: s.u32(Kind.STRINGS, 0, 2**32 - 1), "STRINGS: count"),
        (lambda s: s.u32(Kind.TENSORS, 0, 65536), "TENSORS: count"),
        (lambda s: s.u32(Kind.TENSORS, 0, 2**32 - 1), "TENSORS: count"),
        (plan("n_dims", 4096), "dims"), (plan("n_dims", 2**32 - 1), "dims"), (plan("n_states", 4096), "PLAN"),
        (plan("n_entries", 16), "PLAN"), (plan("n_entries", 17), "entries"),
        (plan("entries[0].n_calls", 65536), "calls"), (plan("entries[0].n_inputs", 2**31), "inputs"),
        (plan("entries[0].calls[0].n_operands", 65), "operands"),
        (plan("entries[0].calls[0].n_ints", 65), "ints"), (plan("entries[0].calls[0].n_floats", 17), "floats"),
    ],
)
def test_03_huge_counts(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["cnn"], change, Status.FORMAT, text)


class _Meter(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("allocate", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)),
        ("release", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)),
        ("user", ctypes.c_void_p),
    )


def test_03_opening_allocates_at_most_the_files_size_and_1_mib(bundles: dict[str, bytes]) -> None:
    blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}
    live = peak = 0

    def allocate(user: int, size: int, alignment: int) -> int:
        nonlocal live, peak
        block = ctypes.create_string_buffer(size + alignment)
        address = -(-ctypes.addressof(block) // alignment) * alignment
        blocks[address] = block
        live += size
        peak = max(peak, live)
        return address

    def release(user: int, memory: int, size: int) -> None:
        nonlocal live
        del blocks[memory]
        live -= size

    meter = _Meter(ctypes.sizeof(_Meter), _Meter._fields_[1][1](allocate), _Meter._fields_[2][1](release), None)
    for whole in bundles.values():
        peak = 0
        room = np.empty(len(whole) + 64, np.uint8)
        data = room[-room.ctypes.data % 64 :][: len(whole)]
        data[:] = np.frombuffer(whole, np.uint8)
        options = OpenOptions(ctypes.sizeof(OpenOptions), 0, 0, 0, ctypes.addressof(meter))
        model, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE_BYTES)
        status = library().edgec_open_buffer(
            data.ctypes.data, len(whole), ctypes.byref(options), ctypes.byref(model), message, MESSAGE_BYTES
        )
        assert status == 0, message.value
        assert 0 < peak <= len(whole) + 2**20
        library().edgec_close(model)
        assert live == 0
        assert not blocks


# -- 4: dims above zero, exact byte counts, alignment ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (tensor(0, 24, "I", 0), "dim 0"),
        (tensor(0, 28, "I", 17), "bytes"),
        (tensor(0, 16, "Q", 1), "bytes"),
        (tensor(1, 28, "I", 1), "dim 1"),  # beyond its rank
        (tensor(1, 8, "Q", 32), "offset"),
        (tensor(0, 7, "B", 1), "zero padding"),
        (tensor(0, 56, "Q", 1), "TENSORS"),
        (plan("entries[0].calls[1].operands[0].offset", 4), "offset"),
        (plan("entries[0].calls[0].operands[1].offset", 64), "offset"),  # an input has none
    ],
)
def test_04_dims_bytes_alignment(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["cnn"], change, Status.FORMAT, text)


@pytest.mark.parametrize(("path", "text"), [("a", "symbol name"), ("b", "range")])
def test_04_ranges_of_symbols(bundles: dict[str, bytes], path: str, text: str) -> None:
    words = np.frombuffer(Surgery(bundles["cnn"]).sections[Kind.PLAN], "<u4").tolist()
    fields = plan_fields(words)
    index = next(i for i in range(words[fields["n_dims"]]) if words[fields[f"dims[{i}].op"]] == 1)
    value = {"a": 60000, "b": 5}[path]  # no such string; a minimum above the maximum
    check(bundles["cnn"], plan(f"dims[{index}].{path}", value), Status.FORMAT, text)


# -- 5: tensors inside, sorted, apart; nothing left over -------------------------------------------------------------


def _swap_tensors(s: Surgery) -> None:
    t = s.sections[Kind.TENSORS]
    t[8:72], t[72:136] = t[72:136], t[8:72]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (tensor(1, 8, "Q", 0), "offset"),
        (_swap_tensors, "offset"),
        (tensor(5, 8, "Q", 1 << 20), "offset"),
        (lambda s: s.sections[Kind.WEIGHTS].extend(bytes(64)), "WEIGHTS"),
        (lambda s: s.sections[Kind.WEIGHTS].__delitem__(slice(-64, None)), "TENSORS"),
        (lambda s: s.sections[Kind.TENSORS].extend(bytes(64)), "TENSORS"),
        (lambda s: s.sections[Kind.PLAN].extend(bytes(4)), "after the last entry"),
        (lambda s: s.sections[Kind.PLAN].__delitem__(slice(-4, None)), "PLAN"),
        (lambda s: s.sections[Kind.STRINGS].extend(b"\0"), "STRINGS"),
        (lambda s: s.u32(Kind.HASHES, 0, 19), "HASHES"),
    ],
)
def test_05_places_and_leftovers(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["cnn"], change, Status.FORMAT, text)


def test_05_sections(bundles: dict[str, bytes]) -> None:
    whole = bundles["cnn"]
    runs(whole)
    plan_record = record(whole, Kind.PLAN)
    refused(patch(whole, "I", plan_record, Kind.TENSORS), Status.FORMAT, "twice")
    refused(patch(whole, "I", plan_record + 4, 2), Status.FORMAT, "flags")
    refused(patch(whole, "I", plan_record, 77), Status.VERSION, "kind 77")
    # A kind that a reader may skip leaves the required one missing.
    refused(patch(patch(whole, "I", plan_record, 77), "I", plan_record + 4, 1), Status.FORMAT, "PLAN: found none")
    refused(patch(whole, "Q", plan_record + 56, 1), Status.FORMAT, "reserved")
    starts = sorted(struct.unpack_from("<QQ", whole, 128 + 64 * i + 8) for i in range(whole[32]))
    end = next(o + n for o, n in starts if (o + n) % 64)
    refused(patch(whole, "B", end, 1), Status.FORMAT, "padding")


# -- 6: ids and enums in range; the plan is verified, not trusted ----------------------------------------------------

CALL = "entries[0].calls"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (tensor(0, 4, "B", 0), "dtype 0"), (tensor(0, 4, "B", 9), "dtype 9"), (tensor(0, 5, "B", 2), "format 2"),
        (tensor(0, 6, "B", 9), "rank 9"), (tensor(0, 6, "B", 0), "rank 0"), (tensor(0, 0, "I", 60000), "string"),
        (plan("model_kind", 2), "PLAN"), (plan("max_context", 1), "PLAN"), (plan("dims[0].op", 9), "operation 9"),
        (plan("entries[0].name", 60000), "string"), (plan("entries[0].inputs[0].dtype", 255), "dtype 255"),
        (plan("entries[0].inputs[0].rank", 9), "rank 9"), (plan("entries[0].inputs[0].dim[0]", 4000), "dim 4000"),
        (plan(f"{CALL}[0].operands[1].space", 6), "space 6"), (plan(f"{CALL}[0].operands[2].index", 6), "index 6"),
        (plan(f"{CALL}[0].operands[1].index", 1), "index 1"), (plan(f"{CALL}[0].operands[1].dtype", 0), "dtype 0"),
        (plan(f"{CALL}[0].operands[2].format", 0), ""), (plan(f"{CALL}[0].operands[2].dtype", 2), ""),
        (plan(f"{CALL}[0].ints[0].kind", 2), "kind 2"), (plan(f"{CALL}[0].layer", 60000), "string"),
        # graph edges and lifetimes
        (plan("entries[0].arena", 64), ""), (plan(f"{CALL}[2].operands[1].offset", 64), "no earlier call"),
        (plan(f"{CALL}[0].operands[0].space", 3), "read-only"), (plan(f"{CALL}[4].operands[0].space", 3), ""),
        (plan(f"{CALL}[1].operands[0].offset", 0), "share bytes"),
        (plan(f"{CALL}[4].operands[0].space", 1), "no call writes it"),
    ],
)
def test_06_ids_and_edges(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["cnn"], change, Status.FORMAT, text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (plan("vocab_size", VOCAB - 1), ""), (plan("prefill_chunk", 0), ""), (plan("max_context", 16), "context"),
        (plan("states[0].axis", 3), "sequence axis"), (plan("entries[2].name", 0), "entry"),
        (plan("entries[0].inputs[0].dtype", 7), ""), (plan("n_states", 1), ""),
    ],
)
def test_06_language_model_form(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["lm"], change, Status.FORMAT, text)


def _as_dim(path: str, other: str) -> Change:
    """The dim `path` becomes what the dim `other` is."""

    def change(s: Surgery) -> None:
        words = np.frombuffer(s.sections[Kind.PLAN], "<u4").tolist()
        fields = plan_fields(words)
        s.u32(Kind.PLAN, fields[path], words[fields[other]])

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        # x lies at 0, then the parts of 32 and 16 columns; the operands are these two in the other order, an output, x
        (plan(f"{CALL}[1].operands[0].offset", 384), "operands 0 and 1 share bytes"),
        (plan(f"{CALL}[1].operands[0].offset", 832), "operands 0 and 1 share bytes"),
        (plan(f"{CALL}[1].operands[1].offset", 0), "operands 1 and 4 share bytes"),
        (plan(f"{CALL}[1].operands[0].offset", 1 << 20), "operand 0: found an extent"),
        (plan(f"{CALL}[1].operands[0].offset", 1024), "no earlier call"),
        (plan(f"{CALL}[1].operands[2].space", 3), "operand 2: found space 3"),
        (plan(f"{CALL}[1].operands[2].index", 1), "operand 2: found an extent"),
        (plan(f"{CALL}[1].operands[1].dtype", 6), ""),
        (plan(f"{CALL}[1].n_operands", 3), "found 3 operands, wanted 4"),
        (plan(f"{CALL}[1].ints[0].value", 14), "linear_split"),
        (_as_dim(f"{CALL}[1].operands[0].dim[1]", f"{CALL}[1].operands[1].dim[1]"), "shapes do not fit"),
        (_as_dim(f"{CALL}[1].operands[0].dim[1]", f"{CALL}[1].operands[2].dim[1]"), ""),
        (_as_dim(f"{CALL}[1].operands[1].dim[0]", f"{CALL}[1].operands[2].dim[1]"), ""),
        (_as_dim(f"{CALL}[1].operands[4].dim[1]", f"{CALL}[1].operands[0].dim[1]"), "shapes do not fit"),
        (_as_dim(f"{CALL}[1].operands[5].dim[0]", f"{CALL}[1].operands[1].dim[1]"), "operand 5: found an extent"),
        (_as_dim(f"{CALL}[1].operands[6].dim[0]", f"{CALL}[1].operands[1].dim[1]"), "the bias does not fit"),
    ],
)
def test_06_parts_of_one_product(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["siblings"], change, Status.FORMAT, text)


def test_06_a_part_that_begins_inside_a_panel(bundles: dict[str, bytes]) -> None:
    def change(s: Surgery) -> None:
        for operand in (f"{CALL}[1].operands[0]", f"{CALL}[2].operands[1]", f"{CALL}[2].operands[0]"):
            _as_dim(f"{operand}.dim[1]", f"{CALL}[1].operands[2].dim[1]")(s)
        _as_dim("entries[0].outputs[0].dim[1]", f"{CALL}[1].operands[2].dim[1]")(s)

    check(bundles["siblings"], change, Status.FORMAT, "begins inside a panel")


def test_06_a_kernel_that_does_not_exist(bundles: dict[str, bytes]) -> None:
    def rename(s: Surgery) -> None:
        strings = s.sections[Kind.STRINGS]
        at = strings.index(b"softmax\0")
        strings[at : at + 7] = b"softmix"

    check(bundles["cnn"], rename, Status.UNSUPPORTED, "softmix")


def test_06_token_ids_at_run_time(bundles: dict[str, bytes]) -> None:
    with Model(bundles["lm"]) as model, model.session() as session:
        session.step([0, VOCAB - 1])
        for bad in (VOCAB, -1, 2**31 - 1, 2**40):
            with pytest.raises(NativeError) as caught:
                session.step([1, bad])
            assert caught.value.status == Status.TENSOR
        assert session.position == 2


# -- 7: nothing in a bundle names a file ------------------------------------------------------------------------------


def test_07_no_paths(bundles: dict[str, bytes]) -> None:
    def rename(s: Surgery) -> None:
        strings = s.sections[Kind.STRINGS]
        at = strings.index(b"layer.0\0")
        strings[at : at + 7] = b"/etc/no"

    s = Surgery(bundles["cnn"])
    rename(s)
    runs(s.build())  # a name is a name
    # Only the platform layer can open anything, and only the path that the host gives.
    calls = re.compile(r"\b(fopen|open|openat|freopen|CreateFileA|CreateFileW)\s*\(")
    users = {p.name for p in (ROOT / "runtime").glob("*.cpp") if calls.search(p.read_text())}
    assert users == {"platform.cpp"}


@pytest.mark.parametrize("bad", [b"\n", b"\0", b"\x7f", b"\xff"])
def test_07_strings_are_clean_text(bundles: dict[str, bytes], bad: bytes) -> None:
    def change(s: Surgery) -> None:
        strings = s.sections[Kind.STRINGS]
        at = strings.index(b"layer.0\0")
        strings[at : at + 1] = bad

    check(bundles["cnn"], change, Status.FORMAT, "STRINGS")


# -- 8: no NaN, no division by zero ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (plan(f"{CALL}[0].floats[0]", NAN), "NaN"), (plan(f"{CALL}[0].floats[1]", 0xFFFFFFFF), "NaN"),
        (plan(f"{CALL}[0].ints[2].value", 0), "conv2d"), (plan(f"{CALL}[0].ints[8].value", 0), "conv2d"),
        (plan(f"{CALL}[2].ints[3].value", 0), "pool2d"), (plan(f"{CALL}[2].ints[1].value", 0), "pool2d"),
    ],
)
def test_08_numbers(bundles: dict[str, bytes], change: Change, text: str) -> None:
    check(bundles["cnn"], change, Status.FORMAT, text)


def test_08_dims_do_not_divide_by_zero(bundles: dict[str, bytes]) -> None:
    """A constant dim that becomes a quotient of two others; the divisor is 0 in the second half."""
    words = np.frombuffer(Surgery(bundles["lm"]).sections[Kind.PLAN], "<u4").tolist()
    fields = plan_fields(words)
    count = words[fields["n_dims"]]
    const = [(words[fields[f"dims[{i}].a"]], i) for i in range(count) if words[fields[f"dims[{i}].op"]] == 0]
    target = max(i for _, i in const)
    divisor = next(i for _, i in const if i < target)

    def change(s: Surgery) -> None:
        for part, value in (("op", 5), ("a", divisor), ("b", divisor)):
            s.u32(Kind.PLAN, fields[f"dims[{target}].{part}"], value)
        s.u32(Kind.PLAN, fields[f"dims[{divisor}].a"], 0)

    check(bundles["lm"], change, Status.FORMAT, "PLAN")


# -- 9: hashes -------------------------------------------------------------------------------------------------------


def test_09_every_hashed_section(bundles: dict[str, bytes]) -> None:
    for whole in bundles.values():
        runs(whole)
        for i in range(whole[32]):
            kind, _, offset, length = struct.unpack_from("<IIQQ", whole, 128 + 64 * i)
            for at in (offset, offset + length - 1):
                damaged = bytearray(whole)
                damaged[at] ^= 4
                if kind == Kind.WEIGHTS:
                    with Model(bytes(damaged)) as model, pytest.raises(NativeError) as caught:
                        model.verify()
                    assert caught.value.status == Status.HASH
                    refused(bytes(damaged), Status.HASH, "WEIGHTS", verify_weights=True)
                else:
                    refused(bytes(damaged), Status.HASH, "")


def test_09_table_and_header(bundles: dict[str, bytes]) -> None:
    whole = bytearray(bundles["cnn"])
    whole[128 + 8] ^= 64  # an offset in the table
    refused(bytes(whole), Status.HASH, "section table")
    whole = bytearray(bundles["cnn"])
    whole[10] ^= 1  # the minor version
    refused(bytes(whole), Status.HASH, "header")
    runs(rehash(bytes(whole)))  # a newer minor version alone is no obstacle


# -- 10: the tokenizer is data ---------------------------------------------------------------------------------------

# Word indices of the header, and of what follows it in tests/native/tiny_plans.py's tokenizer.
BYTE_PIECE = 24
PREFIX = BYTE_PIECE + 256
STOP = PREFIX + 1
SPECIAL = STOP + 1
LOOKUP = SPECIAL + 2
PIECE_START = LOOKUP + 26
MERGE_START = PIECE_START + VOCAB + 1
MERGES = MERGE_START + VOCAB + 1
ADDED = MERGES + 3 * 6


@pytest.mark.parametrize(
    ("word", "value", "text"),
    [
        (0, 2, "version"), (1, VOCAB + 1, "pieces"), (1, 0, "pieces"), (2, VOCAB + 1, "lookup"),
        (3, 2**32 - 1, "bytes"),
        (4, 65537, "added"), (5, VOCAB + 1, "special"), (6, 17, "prefix"), (7, 17, "suffix"), (8, 17, "stop"),
        (9, 2**32 - 1, "bytes"), (10, 2**32 - 1, "bytes"), (11, 1 << 12, "flags"), (12, 8, "pattern"),
        (13, 3, "digits"), (14, VOCAB, "unknown"), (15, VOCAB, "bos"), (16, VOCAB, "eos"), (17, 1, "reserved"),
        (BYTE_PIECE + 5, VOCAB, "byte piece"), (PREFIX, VOCAB, "prefix"), (STOP, 2**32 - 1, "stop"),
        (SPECIAL, 299, "special"), (SPECIAL + 1, VOCAB, "special"), (LOOKUP, VOCAB, "lookup"),
        (LOOKUP, 0x62, "lookup"), (PIECE_START, 1, "piece start"), (PIECE_START + 9, 2**31, "piece start"),
        (PIECE_START + VOCAB, 0, "piece start"),
        (MERGE_START, 1, "merge start"), (MERGE_START + 9, 7, "merge start"), (MERGE_START + VOCAB, 7, "merge start"),
        (MERGES, VOCAB, "merge"), (MERGES, 5, "merge"), (MERGES + 2, VOCAB, "merge"), (MERGES + 2, 0, "merge"),
        (ADDED, VOCAB, "added token"), (ADDED + 1, 8, "flags"), (ADDED + 2, 2**31, "start"), (ADDED + 3, 0, "length"),
        (ADDED + 3, 256, "length"), (ADDED + 1, 1, "early ones first"),
    ],
)
def test_10_tokenizer(bundles: dict[str, bytes], word: int, value: int, text: str) -> None:
    check(bundles["lm"], lambda s: s.u32(Kind.TOKENIZER, word, value), Status.FORMAT, text)


@pytest.mark.parametrize("size", [0, 4, 95, 96, 1024, -4, -1])
def test_10_tokenizer_length(bundles: dict[str, bytes], size: int) -> None:
    def change(s: Surgery) -> None:
        s.sections[Kind.TOKENIZER] = s.sections[Kind.TOKENIZER][:size] or bytearray(1)

    check(bundles["lm"], change, Status.FORMAT, "tokenizer: bytes")


def test_10_long_pieces(bundles: dict[str, bytes]) -> None:
    """Merges are compared with their pieces: without a cap on a piece that would cost the square of the section."""
    data = TokenizerData(pieces=[b"a" * 1024, b"a"], byte_piece=[None] * 256)
    valid = Surgery(bundles["lm"])
    valid.sections[Kind.TOKENIZER] = bytearray(data.to_bytes())
    second_start = BYTE_PIECE + 256 + 1  # of the second piece: it becomes empty, the first one byte longer

    Model(valid.build()).close()
    refused(valid.u32(Kind.TOKENIZER, second_start, 1025).build(), Status.FORMAT, "piece length")
    with pytest.raises(EdgecError, match="1024"):
        TokenizerData(pieces=[b"a" * 1025], byte_piece=[None] * 256).to_bytes()


# -- 11: errors are returned -----------------------------------------------------------------------------------------


def test_11_null_arguments_are_errors() -> None:
    runtime, null = library(), ctypes.c_void_p()
    assert runtime.edgec_open(None, None, None, None, 0) == Status.ARGUMENT
    assert runtime.edgec_open(b"x", None, ctypes.byref(null), None, 0) == Status.IO
    assert runtime.edgec_open_buffer(None, 100, None, ctypes.byref(null), None, 0) == Status.ARGUMENT
    assert runtime.edgec_step(None, None, 0, None) == Status.ARGUMENT
    assert runtime.edgec_tokenize(None, None, 0, 0, None, None) == Status.ARGUMENT
    runtime.edgec_close(None)
    runtime.edgec_session_destroy(None)


# -- 12: read-only, private, and a file cut off under the mapping ----------------------------------------------------


def test_12_file_is_only_read(bundles: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.edgec"
    path.write_bytes(bundles["lm"])
    path.chmod(0o444)
    with Model(path) as model, model.session() as session:
        session.generate(model.tokenize("the thing"), 4, ignore_eos=True)
    assert path.read_bytes() == bundles["lm"]


def test_12_truncated_under_the_mapping(bundles: dict[str, bytes], tmp_path: Path) -> None:
    """Everything but the weights has been copied at opening: a host that then closes survives."""
    path = tmp_path / "model.edgec"
    path.write_bytes(bundles["lm"])
    program = """
        import os, sys
        from edgec.native.session import Model
        model = Model(sys.argv[1], selftest=False)
        before = model.tokenize("the thing in the <s>"), model.info, model.manifest
        session = model.session()
        os.truncate(sys.argv[1], 0)
        assert (model.tokenize("the thing in the <s>"), model.info, model.manifest) == before
        session.seek(0)
        session.close()
        model.close()
        print("survived")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )
    assert done.stdout.strip() == "survived", done.stderr
