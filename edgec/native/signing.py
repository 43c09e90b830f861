"""Signing bundles: the message that a signature signs, and the file with another SIGNATURE section (docs/format.md).

The runtime verifies; here is only what the side with the private key needs.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgec.errors import EdgecError
from edgec.native.bundle import HEADER, MAX_SECTIONS, RECORD, Kind, Signature, aligned, read_bundle, replacing

_DOMAIN = b"edgec bundle signature 1\0"
_COPIED = 1 << 20


@dataclass(frozen=True)
class Signed:
    """A file after it was signed. size: in bytes. sha256: of all of it. replaced: the key that had signed, or None."""

    size: int
    sha256: str
    replaced: bytes | None


@dataclass(frozen=True)
class _Record:
    kind: int
    flags: int
    offset: int
    length: int
    digest: bytes


def _records(data: memoryview) -> list[_Record]:
    """The section table of a checked bundle without SIGNATURE."""
    (count,) = struct.unpack_from("<I", data, 32)
    found = (_Record(*struct.unpack_from("<IIQQ32s", data, HEADER + RECORD * i)) for i in range(count))
    return [record for record in found if record.kind != Kind.SIGNATURE]


def _message(data: memoryview, records: list[_Record]) -> bytes:
    parts = [_DOMAIN, bytes(data[8:24]), struct.pack("<I", len(records))]
    return b"".join(parts + [struct.pack("<IIQ32s", r.kind, r.flags, r.length, r.digest) for r in records])


def sign_file(path: Path, key: bytes, sign: Callable[[bytes], bytes],
              ready: Callable[[Signed], None] = lambda signed: None) -> Signed:
    """Signs the bundle `path` in place of the signature that it may have; nothing else in it changes.

    key: the 32 bytes of the public key. sign: message -> 64 bytes by its private key. ready: called when the new file
    is complete and not yet in place; when it raises, nothing has changed. The bundle is checked first, its weights too,
    and replaced only when the new file is complete. Raises EdgecError: E0003, E0401, E0402 as read_bundle,
    E0004 when the file cannot be written.
    """
    path = path.resolve()  # where the bytes are: a link stays one
    bundle = read_bundle(path)
    bundle.verify_weights()
    data, records = bundle.data, _records(bundle.data)
    if len(records) >= MAX_SECTIONS:
        raise EdgecError("E0401", stage="sign", where=str(path), found=f"{len(records)} sections besides a signature",
                         wanted=f"at most {MAX_SECTIONS - 1}: there is no room for one")
    signature = Signature(key, sign(_message(data, records))).to_bytes()
    places, end = [], HEADER + RECORD * (len(records) + 1)
    for length in (*(r.length for r in records), len(signature)):
        places.append(aligned(end))
        end = places[-1] + length
    table = b"".join(struct.pack("<IIQQ32sQ", r.kind, r.flags, place, r.length, r.digest, 0)
                     for r, place in zip(records, places, strict=False))
    table += struct.pack("<IIQQ32sQ", Kind.SIGNATURE, 0, places[-1], len(signature),
                         hashlib.sha256(signature).digest(), 0)
    head = bytes(data[:24]) + struct.pack("<QII32s24x", end, len(records) + 1, HEADER, hashlib.sha256(table).digest())
    whole, written = hashlib.sha256(), 0
    with replacing(path) as file:
        def put(part: bytes | memoryview) -> None:
            nonlocal written
            whole.update(part)
            written += file.write(part)

        put(head + hashlib.sha256(head).digest() + table)
        for record, place in zip(records, places, strict=False):
            put(bytes(place - written))
            for at in range(record.offset, record.offset + record.length, _COPIED):
                put(data[at : min(at + _COPIED, record.offset + record.length)])
        put(bytes(places[-1] - written) + signature)
        if written != end:
            raise EdgecError("E0001", stage="sign", where=str(path), found=f"{written} bytes", wanted=str(end))
        signed = Signed(written, whole.hexdigest(), bundle.signature.key if bundle.signature else None)
        ready(signed)
    return signed
