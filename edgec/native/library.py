"""Finding and loading libedgec, and runtime/include/edgec.h in ctypes."""

from __future__ import annotations

import ctypes as c
import sys
from enum import IntEnum
from pathlib import Path

from edgec.env import LIBRARY
from edgec.errors import EdgecError

MAX_RANK = 8
MESSAGE_BYTES = 1024
_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
_NAME = f"libedgec.{_SUFFIX}"


class Status(IntEnum):
    """edgec_status."""

    OK, ARGUMENT, IO, FORMAT, VERSION, HASH, MEMORY, LIMIT, TENSOR, CONTEXT, UNSUPPORTED, CANCELLED, SELFTEST, FAULT, \
        SIGNATURE = range(15)


_CODES = {
    Status.ARGUMENT: "E0403", Status.IO: "E0003", Status.FORMAT: "E0401", Status.VERSION: "E0401",
    Status.HASH: "E0402", Status.MEMORY: "E0405", Status.LIMIT: "E0405", Status.TENSOR: "E0403",
    Status.CONTEXT: "E0404", Status.UNSUPPORTED: "E0403", Status.CANCELLED: "E0403", Status.SELFTEST: "E0406",
    Status.FAULT: "E0403", Status.SIGNATURE: "E0407",
}


class NativeError(EdgecError):
    """A call of the native runtime that failed; `status` is its edgec_status."""

    def __init__(self, status: int, stage: str, message: str, where: str = "") -> None:
        self.status = Status(status)
        # At opening, "unsupported" is a kernel or a rule that this reader does not have: the file's problem.
        code = "E0401" if self.status is Status.UNSUPPORTED and stage == "open" else _CODES[self.status]
        if stage == "open" and "EDGEC_ISA:" in message:
            code = "E0002"  # the setting is at fault, not the file
        super().__init__(code, stage=stage, where=where, found=message or self.status.name.lower())


class Tensor(c.Structure):
    _fields_ = (
        ("struct_size", c.c_uint32), ("dtype", c.c_uint32), ("rank", c.c_uint32), ("reserved", c.c_uint32),
        ("shape", c.c_int64 * MAX_RANK), ("strides", c.c_int64 * MAX_RANK), ("data", c.c_void_p),
        ("bytes", c.c_uint64), ("name", c.c_char_p),
    )


class OpenOptions(c.Structure):
    _fields_ = (
        ("struct_size", c.c_uint32), ("verify_weights", c.c_uint32), ("skip_selftest", c.c_uint32),
        ("reserved", c.c_uint32), ("allocator", c.c_void_p), ("public_key", c.c_char_p),
    )


class SessionOptions(c.Structure):
    _fields_ = (
        ("struct_size", c.c_uint32), ("threads", c.c_uint32), ("max_memory", c.c_uint64), ("context", c.c_uint32),
        ("profile", c.c_uint32), ("allocator", c.c_void_p), ("threadpool", c.c_void_p),
    )


class ModelInfo(c.Structure):
    _fields_ = (
        ("struct_size", c.c_uint32), ("kind", c.c_uint32), ("max_context", c.c_uint32), ("vocab_size", c.c_uint32),
        ("prefill_chunk", c.c_uint32), ("n_inputs", c.c_uint32), ("n_outputs", c.c_uint32),
        ("has_tokenizer", c.c_uint32), ("bos_token", c.c_int32), ("eos_token", c.c_int32),
        ("weight_bytes", c.c_uint64), ("file_bytes", c.c_uint64), ("isa", c.c_char_p), ("warning", c.c_char_p),
    )


class Memory(c.Structure):
    _fields_ = (
        ("struct_size", c.c_uint32), ("reserved", c.c_uint32), ("arena", c.c_uint64), ("scratch", c.c_uint64),
        ("state", c.c_uint64), ("other", c.c_uint64), ("total", c.c_uint64),
    )


class CallProfile(c.Structure):
    _fields_ = (
        ("struct_size", c.c_uint32), ("threads", c.c_uint32), ("entry", c.c_char_p), ("layer", c.c_char_p),
        ("kernel", c.c_char_p), ("count", c.c_uint64), ("nanoseconds", c.c_uint64), ("bytes", c.c_uint64),
        ("isa", c.c_char_p), ("waited", c.c_uint64),
    )


ON_TOKEN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int32, c.c_void_p, c.c_size_t)


class GenerateOptions(c.Structure):
    _fields_ = (
        ("struct_size", c.c_uint32), ("max_tokens", c.c_uint32), ("temperature", c.c_float), ("top_p", c.c_float),
        ("top_k", c.c_uint32), ("ignore_eos", c.c_uint32), ("seed", c.c_uint64), ("on_token", ON_TOKEN),
        ("user", c.c_void_p), ("cancel", c.POINTER(c.c_int)),
    )


_HANDLE, _TEXT, _TOKENS, _LOGITS = c.c_void_p, c.c_char_p, c.POINTER(c.c_int32), c.POINTER(c.c_float)
_MESSAGE = (c.c_char_p, c.c_size_t)
# name -> (result, arguments); c.c_int is edgec_status.
_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "edgec_version": (_TEXT, ()),
    "edgec_open": (c.c_int, (_TEXT, c.POINTER(OpenOptions), c.POINTER(_HANDLE), *_MESSAGE)),
    "edgec_open_buffer": (c.c_int, (c.c_void_p, c.c_uint64, c.POINTER(OpenOptions), c.POINTER(_HANDLE), *_MESSAGE)),
    "edgec_close": (None, (_HANDLE,)),
    "edgec_model_get_info": (c.c_int, (_HANDLE, c.POINTER(ModelInfo))),
    "edgec_model_input": (c.c_int, (_HANDLE, c.c_uint32, c.POINTER(Tensor))),
    "edgec_model_output": (c.c_int, (_HANDLE, c.c_uint32, c.POINTER(Tensor))),
    "edgec_model_manifest": (c.c_int, (_HANDLE, c.POINTER(c.c_void_p), c.POINTER(c.c_uint64))),
    "edgec_verify": (c.c_int, (_HANDLE,)),
    "edgec_selftest": (c.c_int, (_HANDLE, c.POINTER(SessionOptions), *_MESSAGE)),
    "edgec_session_create": (c.c_int, (_HANDLE, c.POINTER(SessionOptions), c.POINTER(_HANDLE), *_MESSAGE)),
    "edgec_session_destroy": (None, (_HANDLE,)),
    "edgec_last_error": (_TEXT, (_HANDLE,)),
    "edgec_session_memory": (c.c_int, (_HANDLE, c.POINTER(Memory))),
    "edgec_session_reset": (c.c_int, (_HANDLE,)),
    "edgec_session_position": (c.c_uint32, (_HANDLE,)),
    "edgec_session_seek": (c.c_int, (_HANDLE, c.c_uint32)),
    "edgec_session_save": (c.c_int, (_HANDLE, c.c_void_p, c.POINTER(c.c_uint64))),
    "edgec_session_load": (c.c_int, (_HANDLE, c.c_void_p, c.c_uint64)),
    "edgec_run": (c.c_int, (_HANDLE, c.POINTER(Tensor), c.c_uint32, c.POINTER(Tensor), c.c_uint32)),
    "edgec_step": (c.c_int, (_HANDLE, _TOKENS, c.c_uint32, _LOGITS)),
    "edgec_score": (c.c_int, (_HANDLE, _TOKENS, c.c_uint32, _LOGITS)),
    "edgec_generate": (
        c.c_int, (_HANDLE, _TOKENS, c.c_uint32, c.POINTER(GenerateOptions), c.POINTER(c.c_uint32)),
    ),
    "edgec_tokenize": (c.c_int, (_HANDLE, _TEXT, c.c_uint64, c.c_int, _TOKENS, c.POINTER(c.c_uint64))),
    "edgec_detokenize": (c.c_int, (_HANDLE, _TOKENS, c.c_uint64, c.c_void_p, c.POINTER(c.c_uint64))),
    "edgec_profile_count": (c.c_uint32, (_HANDLE,)),
    "edgec_profile_get": (c.c_int, (_HANDLE, c.c_uint32, c.POINTER(CallProfile))),
    "edgec_profile_reset": (None, (_HANDLE,)),
}


def library_path() -> Path:
    """The native library: EDGEC_LIBRARY, else the packaged one, else the one in the repository's build folder.

    Raises EdgecError (EDGEC-E0007) when there is none.
    """
    chosen = LIBRARY.get()
    package = Path(__file__).resolve().parent.parent
    candidates = [Path(chosen)] if chosen else [package / "_native" / _NAME, package.parent / "build" / _NAME]
    for path in candidates:
        if path.is_file():
            return path.resolve()
    raise EdgecError(
        "E0007", stage="native runtime", where=_NAME, found="no file at " + ", ".join(map(str, candidates)),
        wanted="the native runtime library",
        hint="set EDGEC_LIBRARY to an existing library, or unset it" if chosen else "make build",
    )


_loaded: dict[Path, c.CDLL] = {}


def library() -> c.CDLL:
    """The loaded library with its prototypes. Raises EdgecError (EDGEC-E0007)."""
    path = library_path()
    found = _loaded.get(path)
    if found is None:
        try:
            found = c.CDLL(str(path))
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as e:
            raise EdgecError(
                "E0007", stage="native runtime", where=str(path), found=str(e),
                wanted="an edgec runtime library for this machine", hint="make build",
            ) from e
        _loaded[path] = found
    return found


def library_version() -> str:
    """The version of the loaded library. Raises EdgecError (EDGEC-E0007)."""
    text: bytes = library().edgec_version()
    return text.decode()
