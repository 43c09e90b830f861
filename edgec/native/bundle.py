"""`model.edgec`: writer and strict reader of the format of docs/format.md.

The writer streams: each tensor is read, packed, written and released before the next, and the bytes depend on the
arguments only. The reader serves inspection, comparison and tests; on devices `runtime/bundle.cpp` reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from edgec.compress.formats import Array, Dtype, Format, pack, storage_bytes, unpack
from edgec.errors import EdgecError
from edgec.native.plan import ALIGN, Plan, Weight
from edgec.native.plan_check import plan_problems
from edgec.native.plan_words import Strings, damaged, decode, encode

MAGIC = b"EDGECBDL"
MAJOR, MINOR = 1, 0
HEADER, RECORD = 128, 64  # bytes of the header, and of a record of the section table
MAX_SECTIONS = 16
_CHUNK_LOG2 = 20
_CHUNK = 1 << _CHUNK_LOG2
_MANIFEST_LIMIT = 1 << 20
_STAGE = "bundle"


@dataclass(frozen=True)
class Signature:
    """An Ed25519 signature as the section SIGNATURE holds it. key: 32 bytes, the public one. value: 64 bytes."""

    key: bytes
    value: bytes

    BYTES: ClassVar[int] = 104

    def to_bytes(self) -> bytes:
        return struct.pack("<II32s64s", 1, 0, self.key, self.value)

    @classmethod
    def from_bytes(cls, data: bytes) -> Signature:
        """Raises EdgecError (E0401) for a section that is no signature; whether it is a valid one is not looked at."""
        if len(data) != cls.BYTES or struct.unpack_from("<II", data) != (1, 0):
            raise damaged("SIGNATURE", f"{len(data)} bytes: {data[:8].hex()}...", "an Ed25519 signature of 104 bytes")
        return cls(data[8:40], data[40:])


class Kind(IntEnum):
    """Section kinds."""

    STRINGS = 1
    TENSORS = 2
    PLAN = 3
    WEIGHTS = 4
    TOKENIZER = 5
    GOLDEN = 6
    MANIFEST = 7
    HASHES = 8
    SIGNATURE = 9


_REQUIRED = (Kind.STRINGS, Kind.TENSORS, Kind.PLAN, Kind.WEIGHTS, Kind.MANIFEST, Kind.HASHES)


def aligned(size: int) -> int:
    """`size` rounded up to where a section or tensor may begin."""
    return -(-size // ALIGN) * ALIGN


# -- writing ---------------------------------------------------------------------------------------------------------


def write_bundle(
    path: Path, plan: Plan, *, tokenizer: bytes | None, golden: bytes | None, manifest: Mapping[str, Any]
) -> None:
    """Writes `plan` with its weights; an existing file is replaced only when the new one is complete.

    tokenizer, golden: sections as bytes, None: left out. manifest: anything JSON can hold, at most 1 MiB.
    Raises EdgecError: E0004 when the file cannot be written, E0002 when a weight does not fit its storage type, E0001
    when the plan breaks a rule of the format.
    """
    problems = plan_problems(plan)
    if problems:
        raise EdgecError("E0001", stage=_STAGE, where="the plan", found="; ".join(problems[:5]))
    strings = Strings()
    offsets, weight_bytes = _weight_offsets(plan)
    tensors = _tensor_table(plan, strings, offsets)
    words = encode(plan, strings)
    text = json.dumps(manifest, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > _MANIFEST_LIMIT:
        raise EdgecError("E0002", stage=_STAGE, where="manifest", found=f"{len(text)} bytes", wanted="at most 1 MiB")
    small = {
        Kind.STRINGS: _string_table(strings), Kind.TENSORS: tensors, Kind.PLAN: words, Kind.TOKENIZER: tokenizer,
        Kind.GOLDEN: golden, Kind.MANIFEST: text,
    }
    with replacing(path) as file:
        _write_sections(file, plan, {k: v for k, v in small.items() if v}, offsets, weight_bytes)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place and the permissions of `path` when it is complete, or leaves it as it is.

    Raises EdgecError (E0004) when it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, part)
        part.replace(path)
    except OSError as e:
        raise EdgecError("E0004", stage=_STAGE, where=str(path), found=e.strerror or str(e),
                         wanted="a folder with room that can be written",
                         hint="make room there, change its permissions, or choose another folder") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _weight_offsets(plan: Plan) -> tuple[list[int], int]:
    offsets, end = [], 0
    for weight in plan.weights:
        offsets.append(aligned(end))
        end = offsets[-1] + weight.bytes
    return offsets, end or ALIGN


def _tensor_table(plan: Plan, strings: Strings, offsets: list[int]) -> bytes:
    table = bytearray(struct.pack("<II", len(plan.weights), 0))
    for weight, offset in zip(plan.weights, offsets, strict=True):
        dims = [*weight.dims, *[0] * (8 - len(weight.dims))]
        table += struct.pack("<IBBBBQQ8IQ", strings.add(weight.name), weight.dtype, weight.format, len(weight.dims), 0,
                             offset, weight.bytes, *dims, 0)
    return bytes(table)


def _string_table(strings: Strings) -> bytes:
    blob, starts = b"", [0]
    for text in strings.items:
        blob += text.encode() + b"\0"
        starts.append(len(blob))
    return struct.pack(f"<{len(starts) + 1}I", len(strings.items), *starts) + blob


def _write_sections(file: BinaryIO, plan: Plan, small: Mapping[Kind, bytes], offsets: list[int], weight_bytes: int
                    ) -> None:
    chunks = -(-weight_bytes // _CHUNK)
    sizes = {**{k: len(v) for k, v in small.items()}, Kind.HASHES: 8 + 32 * chunks, Kind.WEIGHTS: weight_bytes}
    places: dict[Kind, int] = {}
    at = HEADER + RECORD * len(sizes)
    for kind, size in sizes.items():
        places[kind] = aligned(at)
        at = places[kind] + size
    total = at
    file.seek(places[Kind.WEIGHTS])
    hashes = struct.pack("<II", _CHUNK_LOG2, chunks) + _write_weights(file, plan, offsets, weight_bytes)
    table = b""
    for kind, size in sizes.items():
        data = hashes if kind is Kind.HASHES else small.get(kind, b"")
        if data:
            file.seek(places[kind])
            file.write(data)
        digest = bytes(32) if kind is Kind.WEIGHTS else hashlib.sha256(data).digest()
        table += struct.pack("<IIQQ32sQ", kind, 0, places[kind], size, digest, 0)
    head = struct.pack("<8sHHHHQQII32s24x", MAGIC, MAJOR, MINOR, MAJOR, 0, 0, total, len(sizes), HEADER,
                       hashlib.sha256(table).digest())
    file.seek(0)
    file.write(head + hashlib.sha256(head).digest() + table)


def _write_weights(file: BinaryIO, plan: Plan, offsets: list[int], size: int) -> bytes:
    """Streams the tensors and returns the digests of the chunks."""
    digests, current, room = b"", hashlib.sha256(), _CHUNK

    def put(data: memoryview) -> None:
        nonlocal digests, current, room
        file.write(data)
        while len(data):
            current.update(data[:room])
            taken = min(room, len(data))
            data, room = data[taken:], room - taken
            if room == 0:
                digests, current, room = digests + current.digest(), hashlib.sha256(), _CHUNK

    end = 0
    for weight, offset in zip(plan.weights, offsets, strict=True):
        put(memoryview(bytes(offset - end)))
        values = weight.load()
        if tuple(values.shape or (1,)) != weight.dims:
            raise EdgecError("E0001", stage=_STAGE, where=weight.name, found=f"shape {values.shape}",
                             wanted=str(weight.dims))
        packed = pack(values, weight.dtype, weight.format, where=weight.name)
        put(packed.reshape(-1).view(np.uint8).data)
        # Both may be views of a mapped file, which can go only after them.
        del values, packed
        weight.release()
        end = offset + weight.bytes
    put(memoryview(bytes(size - end)))
    return digests + (current.digest() if room < _CHUNK else b"")


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BundleFile:
    """An opened bundle. data: the file, mapped. sections: kind -> its bytes there.

    plan: its weights are read from the file when asked.
    signature: as stored; nobody has verified it (`Model(path, public_key=...)` does).
    """

    path: Path
    data: memoryview = field(repr=False)
    version: tuple[int, int]
    sections: Mapping[Kind, memoryview] = field(repr=False)
    plan: Plan
    manifest: dict[str, Any]
    signature: Signature | None

    @property
    def tokenizer(self) -> bytes | None:
        return bytes(self.sections[Kind.TOKENIZER]) if Kind.TOKENIZER in self.sections else None

    @property
    def golden(self) -> bytes | None:
        return bytes(self.sections[Kind.GOLDEN]) if Kind.GOLDEN in self.sections else None

    def tensor(self, name: str) -> Array:
        """The logical values of a stored tensor, float32 for float types; KeyError when there is none."""
        return {w.name: w for w in self.plan.weights}[name].load()

    def verify_weights(self) -> None:
        """Compares the weights with their hashes. Raises EdgecError (E0402) naming the first damaged MiB."""
        hashes, weights = self.sections[Kind.HASHES], self.sections[Kind.WEIGHTS]
        for i in range(-(-len(weights) // _CHUNK)):
            stored = bytes(hashes[8 + 32 * i : 40 + 32 * i])
            if hashlib.sha256(weights[i * _CHUNK : (i + 1) * _CHUNK]).digest() != stored:
                raise EdgecError("E0402", stage=_STAGE, where=f"{self.path}, WEIGHTS, MiB {i}",
                                 hint="copy the file again")


def read_bundle(path: Path) -> BundleFile:
    """Opens and checks a bundle; the weights' hashes are checked by `verify_weights` only.

    Raises EdgecError: E0003 when there is no such file, E0401 when it breaks a rule of the format, E0402 when a
    section does not match its hash.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
    except OSError as e:
        raise EdgecError("E0003", stage=_STAGE, where=str(path), found=e.strerror or str(e)) from e
    version, count = _read_header(data)
    sections = _read_sections(data, count)
    strings = _read_strings(bytes(sections[Kind.STRINGS]))
    weights = _read_tensors(bytes(sections[Kind.TENSORS]), strings, sections[Kind.WEIGHTS])
    _check_hash_table(sections[Kind.HASHES], len(sections[Kind.WEIGHTS]))
    plan = decode(bytes(sections[Kind.PLAN]), strings, weights)
    problems = plan_problems(plan)
    if problems:
        raise damaged("PLAN", problems[0])
    signed = sections.get(Kind.SIGNATURE)
    return BundleFile(path, data, version, sections, plan, _read_manifest(bytes(sections[Kind.MANIFEST])),
                      None if signed is None else Signature.from_bytes(bytes(signed)))


def _read_header(data: memoryview) -> tuple[tuple[int, int], int]:
    if len(data) < HEADER or bytes(data[:8]) != MAGIC:
        raise damaged("header", "no bundle: the first bytes are others", "EDGECBDL")
    head = bytes(data[:HEADER])
    major, minor, need_major, need_minor, features, total, count, length = struct.unpack_from("<HHHHQQII", head, 8)
    if major != MAJOR:
        raise damaged("header", f"format {major}.{minor}", f"{MAJOR}.x")
    if hashlib.sha256(head[:96]).digest() != head[96:]:
        raise EdgecError("E0402", stage=_STAGE, where="header", hint="copy the file again")
    if (need_major, need_minor) > (MAJOR, MINOR) or features:
        raise damaged("header", f"a reader {need_major}.{need_minor} with features {features:#x} is needed",
                      f"at most {MAJOR}.{MINOR}, no features")
    if total != len(data):
        raise damaged("header", f"a length of {total}", f"the file's {len(data)}")
    if not 1 <= count <= MAX_SECTIONS or length != HEADER or any(head[72:96]):
        raise damaged("header", f"{count} sections, header of {length}, or reserved bytes that are not zero")
    if len(data) < HEADER + RECORD * count:
        raise damaged("header", "the section table lies beyond the end")
    if hashlib.sha256(data[HEADER : HEADER + RECORD * count]).digest() != head[40:72]:
        raise EdgecError("E0402", stage=_STAGE, where="section table", hint="copy the file again")
    return (major, minor), count


def _read_sections(data: memoryview, count: int) -> dict[Kind, memoryview]:
    sections: dict[Kind, memoryview] = {}
    seen: set[int] = set()
    end = HEADER + RECORD * count
    for i in range(count):
        kind, flags, offset, length, digest, zero = struct.unpack_from("<IIQQ32sQ", data, HEADER + RECORD * i)
        where = f"section {i}"
        if kind in seen or flags & ~1 or zero or not length:
            raise damaged(where, f"kind {kind}, flags {flags}, length {length}")
        seen.add(kind)
        if offset != aligned(end) or offset + length > len(data):
            raise damaged(where, f"bytes {offset}..{offset + length}", f"from {aligned(end)}, within the file")
        if any(data[end:offset]):
            raise damaged(where, "padding that is not zero")
        end = offset + length
        section = data[offset:end]
        if kind == Kind.WEIGHTS:
            if any(digest):
                raise damaged(where, "a hash for WEIGHTS", "zeros: HASHES holds them")
        elif hashlib.sha256(section).digest() != digest:
            raise EdgecError("E0402", stage=_STAGE, where=where, hint="copy the file again")
        if kind in Kind.__members__.values():
            sections[Kind(kind)] = section
        elif not flags & 1:
            raise damaged(where, f"kind {kind}, which must not be skipped", "a newer reader")
    if end != len(data):
        raise damaged("section table", f"{len(data) - end} bytes after the last section")
    missing = [k.name for k in _REQUIRED if k not in sections]
    if missing:
        raise damaged("section table", f"lacks {', '.join(missing)}")
    if Kind.SIGNATURE in sections and (kind, flags) != (Kind.SIGNATURE, 0):  # those of the last section
        raise damaged("section table", "SIGNATURE", "the last section, without flags")
    return sections


def _read_strings(data: bytes) -> list[str]:
    if len(data) < 8:
        raise damaged("STRINGS", f"{len(data)} bytes")
    (count,) = struct.unpack_from("<I", data)
    if count > 65536 or len(data) < 8 + 4 * count:
        raise damaged("STRINGS", f"{count} strings in {len(data)} bytes")
    starts = struct.unpack_from(f"<{count + 1}I", data, 4)
    blob = data[8 + 4 * count :]
    if starts[0] != 0 or starts[-1] != len(blob):
        raise damaged("STRINGS", "starts that do not cover the text")
    texts: list[str] = []
    for a, b in itertools.pairwise(starts):
        raw = blob[a:b]
        try:
            text = raw[:-1].decode()
        except UnicodeDecodeError as e:
            raise damaged("STRINGS", "text that is not UTF-8") from e
        if not 2 <= len(raw) <= 1025 or raw[-1] or any(ord(c) < 32 or ord(c) == 127 for c in text):
            raise damaged("STRINGS", f"string {len(texts)} is empty, too long, or holds control characters")
        texts.append(text)
    return texts


def _read_tensors(data: bytes, strings: list[str], weights: memoryview) -> tuple[Weight, ...]:
    if len(data) < 8:
        raise damaged("TENSORS", f"{len(data)} bytes")
    count, zero = struct.unpack_from("<II", data)
    if count > 65536 or zero or len(data) != 8 + RECORD * count:
        raise damaged("TENSORS", f"{count} records in {len(data)} bytes")
    found, end = [], 0
    for i in range(count):
        record = struct.unpack_from("<IBBBBQQ8IQ", data, 8 + RECORD * i)
        name, dtype, fmt, rank, pad, offset, size, *dims, tail = record
        where = f"tensor {i}"
        if name >= len(strings) or not 1 <= dtype <= 8 or fmt > 1 or not 1 <= rank <= 8 or pad or tail:
            raise damaged(where, f"name {name}, type {dtype}, format {fmt}, rank {rank}")
        shape = tuple(dims[:rank])
        if not all(shape) or any(dims[rank:]):
            raise damaged(where, f"dims {dims}")
        try:
            wanted = storage_bytes(Dtype(dtype), Format(fmt), shape)
        except ValueError as e:
            raise damaged(where, str(e)) from e
        if size != wanted or offset != aligned(end) or offset + size > len(weights):
            raise damaged(where, f"bytes {offset}..{offset + size}", f"{wanted} bytes from {aligned(end)}")
        if any(weights[end:offset]):
            raise damaged(where, "padding that is not zero")
        end = offset + size
        found.append(_stored(strings[name], Dtype(dtype), Format(fmt), shape, weights[offset:end]))
    if len(weights) != (end or ALIGN) or (not end and any(weights)):
        raise damaged("WEIGHTS", f"{len(weights)} bytes", f"{end or ALIGN}")
    return tuple(found)


def _stored(name: str, dtype: Dtype, fmt: Format, dims: tuple[int, ...], data: memoryview) -> Weight:
    return Weight(name, dtype, fmt, dims, lambda: unpack(data, dtype, fmt, dims))


def _check_hash_table(data: memoryview, weight_bytes: int) -> None:
    count = -(-weight_bytes // _CHUNK)
    if len(data) != 8 + 32 * count or struct.unpack_from("<II", data) != (_CHUNK_LOG2, count):
        raise damaged("HASHES", f"{len(data)} bytes", f"{count} hashes of 1 MiB")


def _read_manifest(data: bytes) -> dict[str, Any]:
    if len(data) > _MANIFEST_LIMIT:
        raise damaged("MANIFEST", f"{len(data)} bytes", "at most 1 MiB")
    try:
        manifest = json.loads(data)
    except ValueError as e:
        raise damaged("MANIFEST", "no JSON") from e
    if not isinstance(manifest, dict):
        raise damaged("MANIFEST", "no JSON object")
    return manifest
