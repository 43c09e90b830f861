"""Taking a bundle apart, changing one field, and putting it together with hashes that fit again."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from edgec.native.bundle import Kind

HEADER, RECORD, ALIGN, CHUNK = 128, 64, 64, 1 << 20


class Surgery:
    """The sections of a bundle as bytearrays, in file order; `build` lays them out and hashes them."""

    def __init__(self, data: bytes) -> None:
        self.header = bytearray(data[:HEADER])
        self.sections: dict[int, bytearray] = {}
        self.flags: dict[int, int] = {}
        for i in range(struct.unpack_from("<I", data, 32)[0]):
            kind, flags, offset, length = struct.unpack_from("<IIQQ", data, HEADER + RECORD * i)
            self.sections[kind] = bytearray(data[offset : offset + length])
            self.flags[kind] = flags

    def u32(self, kind: int, word: int, value: int) -> Surgery:
        """Overwrites one word of a section."""
        struct.pack_into("<I", self.sections[kind], 4 * word, value & 0xFFFFFFFF)
        return self

    def pack(self, kind: int, layout: str, offset: int, *values: float) -> Surgery:
        """struct.pack_into a section."""
        struct.pack_into("<" + layout, self.sections[kind], offset, *values)
        return self

    def build(self) -> bytes:
        """The file, with all hashes (those of the weights too) of what the sections hold now."""
        weights = self.sections[Kind.WEIGHTS]
        digests = [hashlib.sha256(weights[i : i + CHUNK]).digest() for i in range(0, len(weights), CHUNK)]
        if self.sections.get(Kind.HASHES, bytearray())[:4] == struct.pack("<I", 20):
            self.sections[Kind.HASHES] = bytearray(struct.pack("<II", 20, len(digests)) + b"".join(digests))
        table, body = b"", b""
        start = HEADER + RECORD * len(self.sections)
        for kind, data in self.sections.items():
            body += b"\0" * (-(start + len(body)) % ALIGN)
            digest = b"\0" * 32 if kind == Kind.WEIGHTS else hashlib.sha256(data).digest()
            table += struct.pack("<IIQQ32sQ", kind, self.flags.get(kind, 0), start + len(body), len(data), digest, 0)
            body += data
        header = bytearray(self.header)
        struct.pack_into("<QI", header, 24, start + len(body), len(self.sections))
        return rehash(bytes(header) + table + body)


def rehash(data: bytes) -> bytes:
    """Makes the hashes of the section table and of the header fit."""
    fixed = bytearray(data)
    count = struct.unpack_from("<I", fixed, 32)[0]
    fixed[40:72] = hashlib.sha256(fixed[HEADER : HEADER + RECORD * count]).digest()
    fixed[96:128] = hashlib.sha256(fixed[:96]).digest()
    return bytes(fixed)


def patch(data: bytes, layout: str, offset: int, *values: float) -> bytes:
    """struct.pack_into the file itself, then rehash: for fields of the header and the table."""
    fixed = bytearray(data)
    struct.pack_into("<" + layout, fixed, offset, *values)
    return rehash(bytes(fixed))


def record(data: bytes, kind: int) -> int:
    """Offset of a section's record in the table."""
    count = struct.unpack_from("<I", data, 32)[0]
    starts = (HEADER + RECORD * i for i in range(count))
    return next(at for at in starts if struct.unpack_from("<I", data, at)[0] == kind)


def plan_fields(words: Sequence[int]) -> dict[str, int]:
    """Where each field of a PLAN section is: path -> word index, as docs/format.md lays it out."""
    fields: dict[str, int] = {}
    at = 0

    def take(name: str, n: int = 1) -> int:
        nonlocal at
        fields[name] = at
        at += n
        return words[at - n]

    def shape(name: str) -> None:
        for k in range(take(f"{name}.rank")):
            take(f"{name}.dim[{k}]")

    def port(name: str) -> None:
        take(f"{name}.name")
        take(f"{name}.dtype")
        shape(name)

    for name in ("model_kind", "max_context", "vocab_size", "prefill_chunk"):
        take(name)
    for i in range(take("n_dims")):
        for part in "op", "a", "b", "c":
            take(f"dims[{i}].{part}")
    for i in range(take("n_states")):
        port(f"states[{i}]")
        take(f"states[{i}].axis")
    for e in range(take("n_entries")):
        entry = f"entries[{e}]"
        take(f"{entry}.name")
        take(f"{entry}.arena", 2)
        take(f"{entry}.scratch", 2)
        for kind in ("inputs", "outputs"):
            for i in range(take(f"{entry}.n_{kind}")):
                port(f"{entry}.{kind}[{i}]")
        for k in range(take(f"{entry}.n_calls")):
            call = f"{entry}.calls[{k}]"
            take(f"{call}.kernel")
            take(f"{call}.layer")
            for o in range(take(f"{call}.n_operands")):
                operand = f"{call}.operands[{o}]"
                if take(f"{operand}.space") == 0:
                    continue
                take(f"{operand}.index")
                take(f"{operand}.offset", 2)
                take(f"{operand}.dtype")
                take(f"{operand}.format")
                shape(operand)
            for i in range(take(f"{call}.n_ints")):
                take(f"{call}.ints[{i}].kind")
                take(f"{call}.ints[{i}].value", 2)
            for i in range(take(f"{call}.n_floats")):
                take(f"{call}.floats[{i}]")
    if at != len(words):
        raise ValueError(f"the plan has {len(words)} words, the layout {at}")
    return fields
