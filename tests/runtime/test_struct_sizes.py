"""Callers built against another edgec.h: what an older one leaves out is zero; what only a newer one knows is refused
unless it is zero, for an option that the library does not know must not be ignored."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgec.native.bundle import write_bundle
from edgec.native.library import (
    MESSAGE_BYTES,
    CallProfile,
    GenerateOptions,
    Memory,
    ModelInfo,
    OpenOptions,
    SessionOptions,
    library,
)
from edgec.native.session import Model, Status
from tests.native.tiny_plans import tiny_lm

BEYOND = 40  # bytes that only the newer caller knows
ALLOCATE = c.CFUNCTYPE(c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t)
RELEASE = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_size_t)
RUN = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_void_p, c.c_uint32)


class Allocator(c.Structure):
    _fields_ = (("struct_size", c.c_uint32), ("allocate", ALLOCATE), ("release", RELEASE), ("user", c.c_void_p))


class Threadpool(c.Structure):
    _fields_ = (("struct_size", c.c_uint32), ("run", RUN), ("user", c.c_void_p))


WORK = c.CFUNCTYPE(None, c.c_void_p, c.c_uint32)


@RUN
def run_all(user: int, work: int, arg: int, n: int) -> None:
    for i in range(n):
        WORK(work)(arg, i)


class Interface:
    """The calls that take structs, each with one struct replaced; they answer (status, words)."""

    def __init__(self, folder: Path) -> None:
        self.native = library()
        self.path = folder / "lm"
        write_bundle(self.path, tiny_lm(), tokenizer=None, golden=None, manifest={})
        self.model = Model(self.path)
        libc = c.CDLL(None)
        libc.aligned_alloc.restype, libc.aligned_alloc.argtypes = c.c_void_p, (c.c_size_t, c.c_size_t)
        libc.free.restype, libc.free.argtypes = None, (c.c_void_p,)
        allocator = Allocator(
            c.sizeof(Allocator), ALLOCATE(lambda user, n, align: libc.aligned_alloc(align, -(-n // align) * align)),
            RELEASE(lambda user, memory, n: libc.free(memory)))
        self.structs: dict[str, c.Structure] = {
            "open": OpenOptions(c.sizeof(OpenOptions), skip_selftest=1),
            "session": SessionOptions(c.sizeof(SessionOptions), threads=1, context=8),
            "generate": GenerateOptions(c.sizeof(GenerateOptions), max_tokens=2, top_p=1),
            "open: allocator": allocator, "session: allocator": allocator,
            "session: threadpool": Threadpool(c.sizeof(Threadpool), run_all),
        }

    def call(self, what: str, given: c.Structure | c.Array[c.c_char]) -> tuple[int, str]:
        handle, words = c.c_void_p(), c.create_string_buffer(MESSAGE_BYTES)
        at = c.addressof(given)
        if what == "open" or what == "open: allocator":
            options = OpenOptions(c.sizeof(OpenOptions), skip_selftest=1, allocator=at)
            pointer = c.cast(at, c.POINTER(OpenOptions)) if what == "open" else c.byref(options)
            status = self.native.edgec_open(str(self.path).encode(), pointer, c.byref(handle), words, MESSAGE_BYTES)
            self.native.edgec_close(handle)
        elif what == "generate":
            with self.model.session(threads=1) as session:
                status = self.native.edgec_generate(session.handle, (c.c_int32 * 1)(3), 1,
                                                    c.cast(at, c.POINTER(GenerateOptions)), None)
                words.value = self.native.edgec_last_error(session.handle)
        else:
            part = what.partition(": ")[2]
            session_options = SessionOptions(c.sizeof(SessionOptions), threads=1, **({part: at} if part else {}))
            pointer = c.byref(session_options) if part else c.cast(at, c.POINTER(SessionOptions))
            status = self.native.edgec_session_create(self.model.handle, pointer, c.byref(handle), words, MESSAGE_BYTES)
            self.native.edgec_session_destroy(handle)
        return status, words.value.decode()


@pytest.fixture(scope="module")
def interface(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interface]:
    found = Interface(tmp_path_factory.mktemp("structs"))
    yield found
    found.model.close()


def longer(struct: c.Structure, size: int) -> c.Array[c.c_char]:
    """The struct as a caller of another header passes it: struct_size `size`, zeros behind its own bytes."""
    block = c.create_string_buffer(max(size, c.sizeof(struct)) + 8)
    c.memmove(block, c.addressof(struct), c.sizeof(struct))
    c.memmove(block, size.to_bytes(4, "little"), 4)
    return block


KINDS = ["open", "session", "generate", "open: allocator", "session: allocator", "session: threadpool"]


@pytest.mark.parametrize("what", KINDS)
def test_newer_callers(what: str, interface: Interface) -> None:
    struct = interface.structs[what]
    known = c.sizeof(struct)
    assert interface.call(what, struct) == (Status.OK, "")
    block = longer(struct, known + BEYOND)
    assert interface.call(what, block) == (Status.OK, "")
    for place in (known, known + 7, known + BEYOND - 1):
        block[place] = b"\x01"
        status, words = interface.call(what, block)
        assert status == Status.ARGUMENT, place
        assert "older than the caller's edgec.h" in words
        assert f"at byte {place} " in words
        block[place] = b"\0"
    block[known + BEYOND] = b"\x01"  # no longer part of it
    assert interface.call(what, block) == (Status.OK, "")


@pytest.mark.parametrize("what", KINDS)
def test_sizes_that_no_header_gives(what: str, interface: Interface) -> None:
    struct = interface.structs[what]
    for size in (0, 3, c.sizeof(struct) - 1, c.sizeof(struct) - 4, c.sizeof(struct) + 1, 4104, 2**31, 2**32 - 8):
        block = longer(struct, c.sizeof(struct))  # of a larger one, nothing behind may be looked at
        c.memmove(block, size.to_bytes(4, "little"), 4)
        status, words = interface.call(what, block)
        assert status == Status.ARGUMENT, size
        assert "struct_size" in words or "not set" in words


def test_older_callers_leave_the_rest_at_its_default(interface: Interface) -> None:
    """What lies behind an older caller's struct is not looked at: here a context of no tokens at all, far too many."""
    wild = SessionOptions(c.sizeof(SessionOptions), threads=1, context=2**32 - 1)
    assert interface.call("session", wild)[0] == Status.ARGUMENT
    assert interface.call("session", longer(wild, SessionOptions.context.offset)) == (Status.OK, "")


@pytest.mark.parametrize("kind", [ModelInfo, Memory, CallProfile])
def test_structs_that_are_filled_in(kind: type[c.Structure], interface: Interface) -> None:
    native = interface.native
    with interface.model.session(threads=1, profile=True) as session:
        calls: dict[type[c.Structure], Callable[[c.Array[c.c_char]], int]] = {
            ModelInfo: lambda at: native.edgec_model_get_info(interface.model.handle, c.cast(at, c.POINTER(ModelInfo))),
            Memory: lambda at: native.edgec_session_memory(session.handle, c.cast(at, c.POINTER(Memory))),
            CallProfile: lambda at: native.edgec_profile_get(session.handle, 0, c.cast(at, c.POINTER(CallProfile))),
        }
        size = c.sizeof(kind) + BEYOND
        block = c.create_string_buffer(b"\xee" * (size + 8), size + 8)
        c.memmove(block, size.to_bytes(4, "little"), 4)
        assert calls[kind](block) == Status.OK
        assert block.raw[:4] == size.to_bytes(4, "little")
        assert block.raw[c.sizeof(kind) : size] == bytes(BEYOND)
        assert block.raw[size:] == b"\xee" * 8
        for wrong in (3, c.sizeof(kind) - 1, 2**32 - 8):
            c.memmove(block, wrong.to_bytes(4, "little"), 4)
            before = block.raw
            assert calls[kind](block) == Status.ARGUMENT
            assert block.raw == before
