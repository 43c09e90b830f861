"""Signed bundles: what is refused with a pinned key, and what always. Each refusal beside the same file opening."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.errors import EdgecError
from edgec.keys import private_key, public_key
from edgec.native.bundle import HEADER, RECORD, Kind, Signature, read_bundle, write_bundle
from edgec.native.library import MESSAGE_BYTES, OpenOptions, library
from edgec.native.session import Model, NativeError, Status
from edgec.native.signing import sign_file
from tests.native.tiny_plans import tiny_lm, tiny_tokenizer
from tests.runtime.bundle_surgery import Surgery, patch, record

OPTIONAL = 1


def write(path: Path) -> Path:
    write_bundle(path, tiny_lm(), tokenizer=tiny_tokenizer().to_bytes(), golden=None, manifest={"name": "tiny"})
    return path


def sign(path: Path, key: Path) -> bytes:
    """Signs the file; the public key."""
    private = private_key(key)
    sign_file(path, private.public, private.sign)
    return private.public


@pytest.fixture(scope="module")
def key(key_pair: Callable[[str], Path]) -> Path:
    return key_pair("alice")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, key: Path) -> tuple[bytes, bytes]:
    """(a signed bundle, the public key)."""
    path = write(tmp_path_factory.mktemp("signed") / "lm")
    public = sign(path, key)
    return path.read_bytes(), public


def opens(data: bytes, public: bytes | None = None) -> None:
    with Model(data, public_key=public) as model, model.session(threads=1) as session:
        assert session.step(model.tokenize("the thing")).shape == (model.info.vocab_size,)


def refused(data: bytes, status: Status, text: str, public: bytes | None = None, **options: bool) -> None:
    with pytest.raises(NativeError) as caught:
        Model(data, selftest=False, public_key=public, **options)
    assert caught.value.status == status, caught.value
    assert text in caught.value.found, caught.value
    assert caught.value.exit_code == 6


def without_signature(data: bytes) -> bytes:
    surgery = Surgery(data)
    del surgery.sections[Kind.SIGNATURE]
    return surgery.build()


def test_signing_adds_one_section_and_changes_nothing_else(tmp_path: Path, key: Path,
                                                           key_pair: Callable[[str], Path]) -> None:
    path = write(tmp_path / "lm")
    path.chmod(0o640)
    plain = path.read_bytes()
    sign(path, key)
    first = path.read_bytes()
    assert without_signature(first) == plain
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    sign(path, key_pair("bob"))
    assert without_signature(path.read_bytes()) == plain
    sign(path, key)
    assert path.read_bytes() == first  # signatures of Ed25519 are the same each time
    found = read_bundle(path).signature
    assert found is not None
    assert found.key == public_key(f"{key}.pub")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lm"]


def test_a_link_stays_a_link(tmp_path: Path, key: Path) -> None:
    write(tmp_path / "lm")
    (tmp_path / "link").symlink_to("lm")
    sign(tmp_path / "link", key)
    assert (tmp_path / "link").is_symlink()
    assert read_bundle(tmp_path / "lm").signature is not None


def test_what_the_document_says_is_what_is_signed(signed: tuple[bytes, bytes], key: Path) -> None:
    """docs/format.md, SIGNATURE, spelled out once more."""
    data, _ = signed
    (count,) = struct.unpack_from("<I", data, 32)
    message = b"edgec bundle signature 1\0" + data[8:24] + struct.pack("<I", count - 1)
    for i in range(count - 1):
        at = HEADER + RECORD * i
        message += data[at : at + 8] + data[at + 16 : at + 56]  # kind, flags; length, digest
    assert len(message) == 45 + 48 * (count - 1)
    assert data.endswith(private_key(key).sign(message))


def test_damaged_files_are_not_signed(tmp_path: Path, key: Path) -> None:
    path = write(tmp_path / "lm")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the weights are last
    path.write_bytes(data)
    with pytest.raises(EdgecError, match="E0402"):
        sign(path, key)
    assert path.read_bytes() == data


def test_a_pinned_key(signed: tuple[bytes, bytes], key_pair: Callable[[str], Path]) -> None:
    data, public = signed
    opens(data)
    opens(data, public)
    other = public_key(f"{key_pair('bob')}.pub")
    refused(data, Status.SIGNATURE, f"the key {public.hex()[:16]}..., wanted one by {other.hex()[:16]}", other)
    plain = without_signature(data)
    opens(plain)
    refused(plain, Status.SIGNATURE, "found none", public)
    with pytest.raises(EdgecError, match="31 bytes"):
        Model(data, public_key=public[:31])


def test_every_bit_of_the_signature(signed: tuple[bytes, bytes]) -> None:
    """With the hashes made right again."""
    data, public = signed
    for i in range(8 * 64):
        surgery = Surgery(data)
        surgery.sections[Kind.SIGNATURE][40 + i // 8] ^= 1 << i % 8
        changed = surgery.build()
        refused(changed, Status.SIGNATURE, "has not signed this", public)
    opens(changed)  # nobody asked


def test_a_signature_of_another_bundle(tmp_path: Path, signed: tuple[bytes, bytes], key: Path) -> None:
    path = tmp_path / "other"
    write_bundle(path, tiny_lm(), tokenizer=tiny_tokenizer().to_bytes(), golden=None, manifest={"name": "other"})
    sign(path, key)
    data, public = signed
    swapped = Surgery(path.read_bytes())
    opens(swapped.build(), public)
    swapped.sections[Kind.SIGNATURE] = Surgery(data).sections[Kind.SIGNATURE]
    opens(swapped.build())
    refused(swapped.build(), Status.SIGNATURE, "has not signed this", public)


def test_everything_in_the_file_is_signed(signed: tuple[bytes, bytes]) -> None:
    """Whatever is changed with every hash made right again, a reader that pins the key refuses it for the signature,
    and a reader without it does not notice."""
    data, public = signed
    changes: dict[str, Callable[[Surgery], object]] = {
        "manifest": lambda s: s.sections[Kind.MANIFEST].extend(b" "),
        "weights": lambda s: s.u32(Kind.WEIGHTS, 5, 0x3F800000),
        "strings": lambda s: s.sections.update(
            {Kind.STRINGS: bytearray(s.sections[Kind.STRINGS].replace(b"layer.1", b"lawyer1"))}),
        "flags": lambda s: s.flags.__setitem__(Kind.MANIFEST, OPTIONAL),
        "no tokenizer": lambda s: s.sections.pop(Kind.TOKENIZER),
        "order": lambda s: s.sections.update(
            {k: s.sections.pop(k) for k in (Kind.MANIFEST, Kind.SIGNATURE)}),
        "minor version": lambda s: struct.pack_into("<H", s.header, 10, 7),
    }
    opens(Surgery(data).build(), public)
    for name, change in changes.items():
        surgery = Surgery(data)
        change(surgery)
        changed = surgery.build()
        Model(changed, selftest=False).close()
        with pytest.raises(NativeError) as caught:
            Model(changed, selftest=False, public_key=public)
        assert caught.value.status == Status.SIGNATURE, (name, caught.value)
    # A section that the reader skips counts as well.
    more = Surgery(data)
    tail = more.sections.pop(Kind.SIGNATURE)
    more.sections[77], more.flags[77], more.sections[Kind.SIGNATURE] = bytearray(b"new"), OPTIONAL, tail
    Model(more.build(), selftest=False).close()
    refused(more.build(), Status.SIGNATURE, "has not signed this", public)


def test_sections_that_the_signer_does_not_know_are_kept_and_signed(tmp_path: Path, key: Path) -> None:
    path = write(tmp_path / "lm")
    more = Surgery(path.read_bytes())
    more.sections[77], more.flags[77] = bytearray(b"new"), OPTIONAL
    path.write_bytes(more.build())
    public = sign(path, key)
    opens(path.read_bytes(), public)
    assert without_signature(path.read_bytes()) == more.build()


def test_a_bundle_without_room_for_a_signature_is_left_as_it_is(tmp_path: Path, key: Path) -> None:
    path = write(tmp_path / "lm")
    full = Surgery(path.read_bytes())
    for kind in range(77, 77 + 16 - len(full.sections)):
        full.sections[kind], full.flags[kind] = bytearray(b"new"), OPTIONAL
    path.write_bytes(full.build())
    with pytest.raises(EdgecError) as caught:
        sign(path, key)
    assert caught.value.code == "E0401"
    assert path.read_bytes() == full.build()


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        (lambda s: s.u32(Kind.SIGNATURE, 0, 2), Status.VERSION, "algorithm"),
        (lambda s: s.u32(Kind.SIGNATURE, 1, 1), Status.FORMAT, "SIGNATURE"),
        (lambda s: s.sections[Kind.SIGNATURE].extend(b"\0"), Status.FORMAT, "105 bytes"),
        (lambda s: s.sections[Kind.SIGNATURE].__delitem__(slice(100, None)), Status.FORMAT, "100 bytes"),
        (lambda s: s.flags.__setitem__(Kind.SIGNATURE, OPTIONAL), Status.FORMAT, "SIGNATURE"),
        (lambda s: s.sections.update({Kind.MANIFEST: s.sections.pop(Kind.MANIFEST)}), Status.FORMAT, "last section"),
    ],
    ids=["algorithm", "padding", "long", "short", "flags", "place"],
)
def test_the_section_itself_is_always_checked(
    signed: tuple[bytes, bytes], change: Callable[[Surgery], object], status: Status, text: str, tmp_path: Path
) -> None:
    """Whether a key is pinned or not, and by both readers."""
    data, public = signed
    opens(data)
    surgery = Surgery(data)
    change(surgery)
    for pinned in (None, public):
        refused(surgery.build(), status, text, pinned)
    (tmp_path / "changed").write_bytes(surgery.build())
    with pytest.raises(EdgecError, match="E0401"):
        read_bundle(tmp_path / "changed")


def test_a_pinned_key_checks_the_weights(signed: tuple[bytes, bytes]) -> None:
    data, public = signed
    offset, length = struct.unpack_from("<QQ", data, record(data, Kind.WEIGHTS) + 8)
    changed = bytearray(data)
    changed[offset + length - 1] ^= 1
    opens(bytes(changed))
    refused(bytes(changed), Status.HASH, "WEIGHTS", public)
    refused(bytes(changed), Status.HASH, "WEIGHTS", verify_weights=True)


def test_a_flipped_bit_in_every_section(signed: tuple[bytes, bytes]) -> None:
    """In header, table, padding and every section but the weights: refused at every open; in the weights: when they
    are checked. First, last and some places between, all eight bits of each."""
    data, _ = signed
    (count,) = struct.unpack_from("<I", data, 32)
    parts = [("header", 0, HEADER), ("table", HEADER, RECORD * count)]
    for i in range(count):
        kind, _, offset, length = struct.unpack_from("<IIQQ", data, HEADER + RECORD * i)
        parts.append((Kind(kind).name, offset, length))
    gaps = [("padding", end, after - end) for (_, end, after) in (
        (None, a[1] + a[2], b[1]) for a, b in itertools.pairwise(parts)) if after > end]
    assert {name for name, _, _ in parts} >= {"header", "table", "PLAN", "WEIGHTS", "SIGNATURE", "TOKENIZER"}
    assert gaps
    for name, offset, length in parts + gaps:
        for place in {0, 1, length // 3, length // 2, length - 1} & set(range(length)):
            for bit in range(8):
                changed = bytearray(data)
                changed[offset + place] ^= 1 << bit
                with pytest.raises(NativeError) as caught:
                    Model(bytes(changed), selftest=False, verify_weights=name == "WEIGHTS")
                assert caught.value.exit_code == 6, (name, place, bit, caught.value)


def test_callers_of_the_first_interface(signed: tuple[bytes, bytes]) -> None:
    """Their edgec_open_options end before public_key, and whatever lies behind is not looked at."""
    data, public = signed
    native = library()
    room = ctypes.create_string_buffer(len(data) + 64)
    at = ctypes.addressof(room) + -ctypes.addressof(room) % 64
    ctypes.memmove(at, data, len(data))

    def open_with(options: OpenOptions) -> int:
        handle, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE_BYTES)
        status: int = native.edgec_open_buffer(at, len(data), ctypes.byref(options), ctypes.byref(handle), message,
                                               MESSAGE_BYTES)
        native.edgec_close(handle)
        return status

    first = OpenOptions.public_key.offset
    assert first == OpenOptions.allocator.offset + ctypes.sizeof(ctypes.c_void_p)
    wrong = bytes(32)
    assert open_with(OpenOptions(struct_size=first, skip_selftest=1, public_key=wrong)) == Status.OK
    assert open_with(OpenOptions(struct_size=ctypes.sizeof(OpenOptions), skip_selftest=1, public_key=wrong)) == 14
    assert open_with(OpenOptions(struct_size=ctypes.sizeof(OpenOptions), skip_selftest=1, public_key=public)) == 0


def test_opening_by_path(tmp_path: Path, signed: tuple[bytes, bytes]) -> None:
    data, public = signed
    path = tmp_path / "lm"
    path.write_bytes(data)
    Model(path, public_key=public).close()
    path.write_bytes(patch(data, "B", record(data, Kind.SIGNATURE) + 24, 0))  # its digest in the table
    with pytest.raises(NativeError) as caught:
        Model(path, public_key=public)
    assert caught.value.status == Status.HASH


def test_keys(tmp_path: Path, key: Path) -> None:
    text = Path(f"{key}.pub").read_text()
    digits = public_key(f"{key}.pub").hex()
    assert public_key(digits) == public_key(digits.upper()) == private_key(key).public
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    wrong = tmp_path / "wrong"
    for content, found in (("", "no PEM"), (text.replace("MCow", "MCox"), "another algorithm"),
                           (text.replace("MCow", "!!!!"), "another algorithm"), (key.read_text(), "PRIVATE KEY")):
        wrong.write_text(content)
        with pytest.raises(EdgecError, match="E0002") as caught:
            public_key(str(wrong))
        assert found in caught.value.found
    for name in (digits[:-1], str(tmp_path / "none")):
        with pytest.raises(EdgecError, match="E0003"):
            public_key(name)
    wrong.write_text(text)
    with pytest.raises(EdgecError, match="no private key"):
        private_key(wrong)


def test_other_kinds_of_private_keys(tmp_path: Path, require: Callable[[bool, str], None], key: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    path = tmp_path / "key"
    path.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*form, serialization.NoEncryption()))
    with pytest.raises(EdgecError, match="another algorithm"):
        private_key(path)
    locked = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(locked.private_bytes(*form, serialization.BestAvailableEncryption(b"open")))
    assert private_key(path, lambda: "open").public == locked.public_key().public_bytes_raw()
    with pytest.raises(EdgecError, match="another passphrase"):
        private_key(path, lambda: "shut")
    with pytest.raises(EdgecError, match="no passphrase"):
        private_key(path)


def test_signature_bytes() -> None:
    whole = Signature(bytes(range(32)), bytes(range(64)))
    assert Signature.from_bytes(whole.to_bytes()) == whole
    assert hashlib.sha256(whole.to_bytes()[8:]).digest() == hashlib.sha256(whole.key + whole.value).digest()
