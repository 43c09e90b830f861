"""Writes GGUF files for tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ALIGNMENT = 32


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type and value: u32, f32, bool, text, or a list of one of them."""
    if isinstance(value, list):
        item = _value(value[0] if value else 0)[:4]
        return struct.pack("<I", 9) + item + struct.pack("<Q", len(value)) + b"".join(_value(v)[4:] for v in value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def write_gguf(path: Path, pairs: Mapping[str, Any], tensors: Mapping[str, tuple[int, tuple[int, ...], bytes]]) -> Path:
    """tensors: name -> (ggml type, shape slowest first, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    head += b"".join(_text(k) + _value(v) for k, v in pairs.items())
    body = b""
    for name, (kind, shape, data) in tensors.items():
        body += bytes(-len(body) % _ALIGNMENT)
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(body))
        body += data
    path.write_bytes(head + bytes(-len(head) % _ALIGNMENT) + body)
    return path
