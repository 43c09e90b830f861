"""Bundles in Python: the C interface of the native runtime with numpy arrays.

    with Model("model.edgec") as model, model.session() as session:
        outputs = session.run({"image": array})              # generic models
        tokens = session.generate(model.tokenize("Once"), 50)  # language models

A Model may be shared between threads; a Session belongs to one at a time.
"""

from __future__ import annotations

import ctypes as c
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgec.errors import EdgecError, did_you_mean
from edgec.native.library import (
    MAX_RANK,
    MESSAGE_BYTES,
    ON_TOKEN,
    CallProfile,
    GenerateOptions,
    Memory,
    ModelInfo,
    NativeError,
    OpenOptions,
    SessionOptions,
    Status,
    Tensor,
    library,
    library_path,
    library_version,
)

__all__ = [
    "CallTime",
    "Info",
    "MemoryUse",
    "Model",
    "NativeError",
    "Port",
    "Session",
    "Status",
    "library_path",
    "library_version",
]

Array = NDArray[Any]
Tokens = Sequence[int] | NDArray[np.integer[Any]]
S = TypeVar("S", bound=c.Structure)

# edgec_dtype -> numpy; numpy has no bfloat16, so its bits are passed as they are.
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32), 2: np.dtype(np.float16), 3: np.dtype(np.uint16), 4: np.dtype(np.int8),
    5: np.dtype(np.uint8), 6: np.dtype(np.int32), 7: np.dtype(np.int64), 8: np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Port:
    """A declared input or output; symbolic dims are given at their maximum. bfloat16 appears as uint16."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Info:
    """kind: 0 generic, 1 causal language model. bos_token, eos_token: -1 for none. isa: the instruction set in use.

    warning: empty, or what happened at opening.
    """

    kind: int
    max_context: int
    vocab_size: int
    prefill_chunk: int
    has_tokenizer: bool
    bos_token: int
    eos_token: int
    weight_bytes: int
    file_bytes: int
    isa: str
    warning: str


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a session holds."""

    arena: int
    scratch: int
    state: int
    other: int
    total: int


@dataclass(frozen=True)
class CallTime:
    """A call of the plan as profiled. nanoseconds: summed over `count` runs. bytes: operand bytes of one run. isa: the
    instruction set whose body of the kernel runs. waited: nanoseconds of its threads together without work."""

    entry: str
    layer: str
    kernel: str
    threads: int
    count: int
    nanoseconds: int
    bytes: int
    isa: str
    waited: int


def _sized(kind: type[S], **values: Any) -> S:
    return kind(struct_size=c.sizeof(kind), **values)


def _tokens(tokens: Tokens) -> tuple[NDArray[np.int32], Any]:
    """Tokens as int32, and the pointer to them. Ids beyond 32 bits become -1, which the runtime refuses."""
    wide = np.asarray(tokens, dtype=np.int64).reshape(-1)
    narrow = np.where((wide < 0) | (wide > 2**31 - 1), -1, wide).astype(np.int32)
    return narrow, narrow.ctypes.data_as(c.POINTER(c.c_int32))


class Model:
    """An opened bundle.

    source: the path of a bundle, or its bytes. verify_weights: check the hashes of all weights now. selftest: compare
    the kernels of this CPU with the scalar ones. public_key: the 32 bytes of an Ed25519 key that must have signed the
    bundle, with verify_weights; None: it does not matter who did.
    Raises EdgecError: EDGEC-E0003 no such file, E0007 no native library, E0401 not a usable bundle, E0402 hashes that
    do not match, E0405 out of memory, E0407 not signed by public_key. A NativeError among them carries the runtime's
    status.
    """

    def __init__(
        self, source: Path | str | bytes, *, verify_weights: bool = False, selftest: bool = True,
        public_key: bytes | None = None,
    ) -> None:
        self._library = library()
        self._handle: int | None = None
        self._buffer: Array | None = None
        if public_key is not None and len(public_key) != 32:
            raise EdgecError("E0403", stage="open", where="public_key", found=f"{len(public_key)} bytes", wanted="32")
        options = _sized(OpenOptions, verify_weights=int(verify_weights), skip_selftest=int(not selftest),
                         public_key=public_key)
        message = c.create_string_buffer(MESSAGE_BYTES)
        handle = c.c_void_p()
        tail = (c.byref(options), c.byref(handle), message, MESSAGE_BYTES)
        if isinstance(source, bytes):
            self._buffer = _aligned_copy(source)
            status = self._library.edgec_open_buffer(self._buffer.ctypes.data, len(source), *tail)
        else:
            status = self._library.edgec_open(os.fsencode(source), *tail)
        if status != Status.OK:
            where = "" if isinstance(source, bytes) else str(source)
            raise NativeError(status, "open", message.value.decode("utf-8", "replace"), where)
        self._handle = handle.value
        self._sessions = 0

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A session keeps its model alive, so none is left here.
        if getattr(self, "_handle", None) is not None:
            self._library.edgec_close(self._handle)

    def close(self) -> None:
        """Closes the bundle. Raises EdgecError (EDGEC-E0403) while sessions of it are open."""
        if self._handle is None:
            return
        if self._sessions:
            raise EdgecError("E0403", stage="close", found=f"{self._sessions} open sessions", wanted="none",
                             hint="close the sessions first")
        self._library.edgec_close(self._handle)
        self._handle = None

    @property
    def handle(self) -> int:
        """The edgec_model pointer. Raises EdgecError (EDGEC-E0403) when closed."""
        if self._handle is None:
            raise EdgecError("E0403", stage="model", found="a closed model", wanted="an open one")
        return self._handle

    def _check(self, status: int, stage: str, message: str = "") -> None:
        if status != Status.OK:
            raise NativeError(status, stage, message)

    @property
    def info(self) -> Info:
        raw = self._info()
        return Info(
            raw.kind, raw.max_context, raw.vocab_size, raw.prefill_chunk, bool(raw.has_tokenizer), raw.bos_token,
            raw.eos_token, raw.weight_bytes, raw.file_bytes, raw.isa.decode(), raw.warning.decode("utf-8", "replace"),
        )

    def _info(self) -> ModelInfo:
        raw = _sized(ModelInfo)
        self._check(self._library.edgec_model_get_info(self.handle, c.byref(raw)), "info")
        return raw

    @property
    def inputs(self) -> list[Port]:
        """Declared inputs of a generic model; empty for language models."""
        return self._ports(self._library.edgec_model_input, self._info().n_inputs)

    @property
    def outputs(self) -> list[Port]:
        """Declared outputs of a generic model; empty for language models."""
        return self._ports(self._library.edgec_model_output, self._info().n_outputs)

    def _ports(self, get: Callable[..., int], count: int) -> list[Port]:
        if self._info().kind != 0:
            return []
        ports = []
        for i in range(count):
            t = _sized(Tensor)
            self._check(get(self.handle, i, c.byref(t)), "info")
            ports.append(Port(t.name.decode(), _DTYPES[t.dtype], tuple(t.shape[: t.rank])))
        return ports

    @property
    def manifest(self) -> dict[str, Any]:
        """The compiler's notes: version, source, configuration, passes, memory table."""
        text, size = c.c_void_p(), c.c_uint64()
        self._check(self._library.edgec_model_manifest(self.handle, c.byref(text), c.byref(size)), "manifest")
        found = json.loads(c.string_at(text.value or 0, size.value))
        return found if isinstance(found, dict) else {"manifest": found}

    def verify(self) -> None:
        """Checks the hashes of all weights. Raises EdgecError (EDGEC-E0402)."""
        self._check(self._library.edgec_verify(self.handle), "verify")

    def selftest(self, golden: bool = False, max_memory: int = 0) -> str:
        """Compares kernels with the scalar ones and, with `golden`, answers with the compiler's golden ones.

        max_memory: bytes that running the golden ones may take; 0: no limit. Returns what the runtime says of it.
        Raises EdgecError: EDGEC-E0406 for a difference, E0403 for `golden` with a bundle that holds none, E0405 when
        max_memory is too little.
        """
        message = c.create_string_buffer(MESSAGE_BYTES)
        options = c.byref(_sized(SessionOptions, max_memory=max_memory)) if golden else None
        status = self._library.edgec_selftest(self.handle, options, message, MESSAGE_BYTES)
        text = message.value.decode("utf-8", "replace")
        self._check(status, "selftest", text)
        return text

    def tokenize(self, text: str | bytes, add_special: bool = True) -> list[int]:
        """Token ids of UTF-8 text. add_special: with the tokens that the tokenizer puts around a text.

        Raises EdgecError (EDGEC-E0403) for text that is not UTF-8, or a bundle without a tokenizer.
        """
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        # One token for each byte is the most there can be without the special ones; else the second call has room.
        capacity = len(data) + 32
        while True:
            ids = np.empty(capacity, np.int32)
            count = c.c_uint64(capacity)
            status = self._library.edgec_tokenize(
                self.handle, data, len(data), int(add_special), ids.ctypes.data_as(c.POINTER(c.c_int32)),
                c.byref(count),
            )
            if status == Status.OK:
                return [int(i) for i in ids[: count.value]]
            if status != Status.ARGUMENT or count.value <= capacity:
                self._check(status, "tokenize", self._why_no_text(status, "text that is not UTF-8"))
            capacity = count.value

    def detokenize(self, tokens: Tokens) -> str:
        """The text of token ids; special tokens give nothing. Raises EdgecError (EDGEC-E0403)."""
        ids, pointer = _tokens(tokens)
        size = c.c_uint64()
        why = f"a token id outside 0..{self._info().vocab_size - 1}"
        status = self._library.edgec_detokenize(self.handle, pointer, ids.size, None, c.byref(size))
        self._check(status, "detokenize", self._why_no_text(status, why))
        text = c.create_string_buffer(max(1, size.value))
        status = self._library.edgec_detokenize(self.handle, pointer, ids.size, text, c.byref(size))
        self._check(status, "detokenize", self._why_no_text(status, why))
        return text.raw[: size.value].decode("utf-8")

    def _why_no_text(self, status: int, usual: str) -> str:
        if status == Status.UNSUPPORTED:
            return "a bundle without a tokenizer"
        return usual if status in (Status.ARGUMENT, Status.TENSOR) else ""

    def session(
        self, *, threads: int = 0, context: int = 0, max_memory: int = 0, profile: bool = False
    ) -> Session:
        """A session of this model; arguments and errors as Session."""
        return Session(self, threads=threads, context=context, max_memory=max_memory, profile=profile)


def _aligned_copy(data: bytes) -> Array:
    """The bytes at a 64-byte aligned address, as edgec_open_buffer asks."""
    room = np.empty(len(data) + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return room[start:]  # never empty: the address of an empty array is not the one asked for


class Session:
    """The memory of one conversation, or of one stream of runs.

    threads: 0 is one per core. context: tokens, 0 is the model's maximum. max_memory: bytes, 0 is no limit. profile:
    time every call.
    Raises EdgecError: EDGEC-E0405 more than max_memory, E0403 a context that the model does not have.
    """

    def __init__(
        self, model: Model, *, threads: int = 0, context: int = 0, max_memory: int = 0, profile: bool = False
    ) -> None:
        self.model = model
        self._library = model._library
        self._handle: int | None = None
        for name, value in (("threads", threads), ("context", context), ("max_memory", max_memory)):
            if not 0 <= value < 2 ** (64 if name == "max_memory" else 32):
                raise EdgecError("E0403", stage="session", where=name, found=str(value), wanted="0 or more")
        options = _sized(
            SessionOptions, threads=threads, context=context, max_memory=max_memory, profile=int(profile)
        )
        message = c.create_string_buffer(MESSAGE_BYTES)
        handle = c.c_void_p()
        status = self._library.edgec_session_create(
            model.handle, c.byref(options), c.byref(handle), message, MESSAGE_BYTES
        )
        if status != Status.OK:
            raise NativeError(status, "session", message.value.decode("utf-8", "replace"))
        self._handle = handle.value
        model._sessions += 1

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Frees the session's memory."""
        if self._handle is not None:
            self._library.edgec_session_destroy(self._handle)
            self._handle = None
            self.model._sessions -= 1

    @property
    def handle(self) -> int:
        """The edgec_session pointer. Raises EdgecError (EDGEC-E0403) when closed."""
        if self._handle is None:
            raise EdgecError("E0403", stage="session", found="a closed session", wanted="an open one")
        return self._handle

    def _check(self, status: int, stage: str) -> None:
        if status != Status.OK:
            text: bytes = self._library.edgec_last_error(self.handle)
            raise NativeError(status, stage, text.decode("utf-8", "replace"))

    @property
    def memory(self) -> MemoryUse:
        raw = _sized(Memory)
        self._check(self._library.edgec_session_memory(self.handle, c.byref(raw)), "memory")
        return MemoryUse(raw.arena, raw.scratch, raw.state, raw.other, raw.total)

    @property
    def position(self) -> int:
        """Tokens so far."""
        return int(self._library.edgec_session_position(self.handle))

    def reset(self) -> None:
        """Forgets everything."""
        self._check(self._library.edgec_session_reset(self.handle), "reset")

    def seek(self, position: int) -> None:
        """Forgets every token from `position` on. Raises EdgecError (EDGEC-E0403) past the current one."""
        if position < 0:
            raise EdgecError("E0403", stage="seek", found=str(position), wanted="0 or more")
        self._check(self._library.edgec_session_seek(self.handle, position), "seek")

    def save(self) -> bytes:
        """The state, for load() in a session of the same model and context."""
        size = c.c_uint64()
        self._check(self._library.edgec_session_save(self.handle, None, c.byref(size)), "save")
        data = c.create_string_buffer(size.value)
        self._check(self._library.edgec_session_save(self.handle, data, c.byref(size)), "save")
        return data.raw[: size.value]

    def load(self, data: bytes) -> None:
        """Takes a saved state. Raises EdgecError (EDGEC-E0401, E0404) for one that does not belong here."""
        self._check(self._library.edgec_session_load(self.handle, data, len(data)), "load")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs a generic model.

        inputs: every declared input by name, of its dtype and shape. outputs: names wanted (default: all).
        Returns new arrays. Raises EdgecError (EDGEC-E0403) for names, dtypes or shapes that do not fit.
        """
        ports = {port.name: port for port in self.model.inputs}
        results = {port.name: port for port in self.model.outputs}
        for kind, given, known in (("input", inputs, ports), ("output", outputs or (), results)):
            for name in given:
                if name not in known:
                    raise EdgecError("E0403", stage="run", where=kind, found=name, wanted=did_you_mean(name, known))
        arrays = [_input_array(ports[name], array) for name, array in inputs.items()]
        ins = (Tensor * max(1, len(arrays)))(*(_view(n, a) for n, a in zip(inputs, arrays, strict=True)))
        wanted = list(results) if outputs is None else list(outputs)
        outs = (Tensor * max(1, len(wanted)))(
            *(_sized(Tensor, dtype=_dtype_code(results[n].dtype), name=n.encode()) for n in wanted)
        )
        # First without memory: the runtime fills in the shapes.
        call = (self.handle, ins, len(arrays), outs, len(wanted))
        self._check(self._library.edgec_run(*call), "run")
        found = {
            n: np.empty(tuple(t.shape[: t.rank]), results[n].dtype) for n, t in zip(wanted, outs, strict=False)
        }
        for name, t in zip(wanted, outs, strict=False):
            t.data, t.bytes = found[name].ctypes.data, found[name].nbytes
        self._check(self._library.edgec_run(*call), "run")
        return found

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        """Appends tokens; the logits [vocab_size] after the last one. Raises EdgecError (EDGEC-E0403, E0404)."""
        ids, pointer = _tokens(tokens)
        logits = np.empty(self.model.info.vocab_size, np.float32)
        status = self._library.edgec_step(self.handle, pointer, ids.size, logits.ctypes.data_as(c.POINTER(c.c_float)))
        self._check(status, "step")
        return logits

    def score(self, tokens: Tokens) -> NDArray[np.float32]:
        """Appends tokens; the logits [len(tokens), vocab_size] after each. Raises EdgecError (EDGEC-E0403, E0404)."""
        ids, pointer = _tokens(tokens)
        logits = np.empty((ids.size, self.model.info.vocab_size), np.float32)
        status = self._library.edgec_score(self.handle, pointer, ids.size, logits.ctypes.data_as(c.POINTER(c.c_float)))
        self._check(status, "score")
        return logits

    def generate(
        self, prompt: Tokens, max_tokens: int, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        seed: int = 0, ignore_eos: bool = False, on_token: Callable[[int, str], bool | None] | None = None,
    ) -> list[int]:
        """Appends the prompt (at least one token), then generates; the new tokens.

        temperature 0: greedy. top_k 0, top_p 1: off. on_token(token, text): called with each token and the text that
        it completes; returning False stops. Raises EdgecError: EDGEC-E0403 options or tokens that do not fit, E0404
        prompt and max_tokens beyond the context. An error that on_token raises is raised again here.
        """
        if not 0 <= max_tokens < 2**32 or not 0 <= top_k < 2**32:
            raise EdgecError("E0403", stage="generate", found=f"max_tokens {max_tokens}, top_k {top_k}",
                             wanted="0 or more")
        made: list[int] = []
        raised: list[BaseException] = []

        def callback(user: int | None, token: int, text: int | None, size: int) -> int:
            if interrupted:
                return 1
            made.append(token)
            if on_token is None:
                return 0
            try:
                return int(on_token(token, c.string_at(text, size).decode() if text else "") is False)
            except BaseException as e:  # it must not leave through C frames
                raised.append(e)
                return 1

        ids, pointer = _tokens(prompt)
        options = _sized(
            GenerateOptions, max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
            ignore_eos=int(ignore_eos), seed=seed & (2**64 - 1), on_token=ON_TOKEN(callback),
        )
        with _interrupts() as interrupted:
            status = self._library.edgec_generate(self.handle, pointer, ids.size, c.byref(options), None)
        if interrupted:
            raise KeyboardInterrupt
        if raised:
            raise raised[0]
        if status != Status.CANCELLED:
            self._check(status, "generate")
        return made

    def profile(self) -> list[CallTime]:
        """Every call of the plan with its time so far; the session must have been made with profile=True."""
        calls = []
        for i in range(self._library.edgec_profile_count(self.handle)):
            raw = _sized(CallProfile)
            self._check(self._library.edgec_profile_get(self.handle, i, c.byref(raw)), "profile")
            calls.append(CallTime(raw.entry.decode(), raw.layer.decode(), raw.kernel.decode(), raw.threads, raw.count,
                                  raw.nanoseconds, raw.bytes, raw.isa.decode(), raw.waited))
        return calls

    def reset_profile(self) -> None:
        """Sets all times to zero."""
        self._library.edgec_profile_reset(self.handle)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C while the runtime calls back: raised at a callback's first instruction, it would be lost."""
    seen: list[int] = []
    mine = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    if mine:
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield seen
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _dtype_code(dtype: np.dtype[Any]) -> int:
    return next(code for code, known in _DTYPES.items() if known == dtype)


def _input_array(port: Port, array: Array) -> Array:
    """The array in a form that the runtime reads. A wrong dtype is an error here: nothing is converted silently."""
    array = np.asarray(array)
    if array.dtype != port.dtype or array.ndim > MAX_RANK:
        raise EdgecError("E0403", stage="run", where=f"input {port.name!r}", found=f"{array.dtype}, rank {array.ndim}",
                         wanted=f"{port.dtype}, rank {len(port.shape)}")
    # Strides that repeat elements, go backwards or are not whole elements are only numpy's.
    plain = all((s > 0 and s % array.itemsize == 0) or n == 1 for n, s in zip(array.shape, array.strides, strict=True))
    return array if plain and array.size else np.ascontiguousarray(array)


def _view(name: str, array: Array) -> Tensor:
    t = _sized(Tensor, dtype=_dtype_code(array.dtype), rank=array.ndim, data=array.ctypes.data, name=name.encode())
    t.shape[: array.ndim] = array.shape
    steps = [0 if n == 1 else s for n, s in zip(array.shape, array.strides, strict=True)]
    t.strides[: array.ndim] = [s // array.itemsize for s in steps]
    # What lies between the first byte and the end of the last element.
    reach = sum((n - 1) * s for n, s in zip(array.shape, steps, strict=True)) + array.itemsize
    t.bytes = reach if array.size else 0
    return t
