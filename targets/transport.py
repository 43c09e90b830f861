"""Where edgec_bench runs: this machine, another over ssh, a phone over adb, an emulator, node, or any command.

A transport takes the program and a bundle there, runs it, brings its JSON document back and removes what it brought.
Commands are lists of arguments; only a shell that is at the other end sees text, every word of it quoted.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.env import ISA
from edgec.errors import EdgecError
from edgec.targets.devices import Device, device
from edgec.targets.toolchain import NODE_RUNNER, bench_program, source_root

KINDS = "local, ssh:HOST, adb, adb:SERIAL, qemu:ARCH, qemu:ARCH:CPU, wasm:node, exec:'CMD {program} {args}'"
# Kind of device -> (the programs that reach it, of which one is enough; where they are from).
TOOLS: dict[str, tuple[tuple[str, ...], str]] = {
    "ssh": (("ssh",), "apt-get install openssh-client"),
    "adb": (("adb",), "install Android's platform-tools"),
    "qemu:aarch64": (("qemu-aarch64", "qemu-aarch64-static"), "apt-get install qemu-user"),
    "wasm:node": (("node",), "apt-get install nodejs"),
}
_TIMEOUT_S = 3600
_ASKING_S = 60
# What `uname -m` or Android's ABI says -> the device row whose program runs there. The program is linked whole.
_ROWS = {"x86_64": "x86-64-v3", "amd64": "x86-64-v3", "aarch64": "aarch64-linux", "arm64": "aarch64-linux",
         "arm64-v8a": "aarch64-linux", "riscv64": "riscv64"}


@dataclass(frozen=True)
class Transport:
    """name: as --device spells it. run: (bundle, arguments, environment) -> what edgec_bench printed."""

    name: str
    run: Callable[[Path, Sequence[str], dict[str, str]], str]

    def measure(self, bundle: Path, arguments: Sequence[str], isa: str = "") -> dict[str, Any]:
        """The document of edgec_bench for `bundle`. isa: "" or the instruction set to force there.

        Raises EdgecError: E0601 when the device, its tool or the compiler for it is missing, E0602 when the run fails.
        """
        chosen = isa or ISA.get()
        text = self.run(bundle, arguments, {"EDGEC_ISA": chosen} if chosen else {})
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("edgec_bench") != 1:
                raise ValueError("no document of edgec_bench")
        except (ValueError, RecursionError) as e:
            raise EdgecError("E0602", stage="profile", where=f"--device {self.name}",
                             found=f"{e}; the output begins with {text[:200]!r}", wanted="one JSON document",
                             hint="does the program print there, and nothing else?") from e
        if chosen and document.get("isa") != chosen:
            raise EdgecError("E0602", stage="profile", where=f"--device {self.name}",
                             found=f"a run with the instruction set {document.get('isa')!r}", wanted=repr(chosen),
                             hint="does the command pass EDGEC_ISA of its environment on?")
        return document


def transport(text: str, target: str = "") -> Transport:
    """The device that `--device` names. target: the device row that its program is built for, "" for what fits.

    Nothing is connected or built before it measures. Raises EdgecError: E0002 for a name that is no device, or a target
    for one that is what it is; E0006 an unknown target.
    """
    kind, _, rest = text.partition(":")
    if target and kind in ("local", "qemu", "wasm"):
        raise EdgecError("E0002", stage="profile", where="--target", found=f"{target!r} with --device {text}",
                         wanted="without it: only ssh, adb and exec may be any machine")
    if target:
        device(target)
    if kind == "local" and not rest:
        return Transport(text, lambda bundle, words, env: _run(
            text, [str(_local_program(text)), str(bundle), *words], env))
    if kind == "ssh" and re.fullmatch(r"[\w.\[][\w.@%\[\]:-]*", rest):
        return Transport(text, lambda bundle, words, env: _ssh(text, rest, target, bundle, words, env))
    if kind == "adb" and re.fullmatch(r"([\w.][\w.:-]*)?", rest):
        return Transport(text, lambda bundle, words, env: _adb(text, rest, target, bundle, words, env))
    if kind == "qemu" and re.fullmatch(r"\w+(:[\w.-]+(,[\w.=+-]+)*)?", rest):
        return Transport(text, lambda bundle, words, env: _qemu(text, rest, bundle, words, env))
    if text == "wasm:node":
        return Transport(text, _node)
    if kind == "exec" and rest.strip():
        return Transport(text, lambda bundle, words, env: _exec(text, rest, target, bundle, words, env))
    raise EdgecError("E0002", stage="profile", where="--device", found=repr(text), wanted=KINDS)


def _unreachable(name: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0601", stage="profile", where=f"--device {name}", found=found, wanted=wanted, hint=hint)


def _tool(name: str, words: Sequence[str], hint: str) -> str:
    """The first of `words` that is installed."""
    for word in words:
        found = shutil.which(word)
        if found:
            return found
    raise _unreachable(name, f"no {' or '.join(words)} on the PATH", "that program", hint)


def _local_program(name: str) -> Path:
    """The program beside this machine's runtime library, which was built together with it."""
    from edgec.native.library import library_path

    program = library_path().parent / "edgec_bench"
    if not program.is_file():
        raise _unreachable(name, f"no file {program}", "the program of the runtime library in use", "make build")
    return program


def _program(name: str, row: Device) -> Path:
    try:
        return bench_program(row)
    except EdgecError as e:
        if e.code not in ("E0005", "E0007"):
            raise
        raise _unreachable(name, f"{e.code}: {e.found}", f"a compiler for {row.name}; {e.wanted}",
                           e.hint or "`edgec doctor` shows the compilers") from e


def _row(name: str, target: str, machine: str) -> Device:
    """The row of --target, else the one whose programs run on `machine`."""
    if target:
        return device(target)
    if machine not in _ROWS:
        raise _unreachable(name, f"a machine called {machine!r}", ", ".join(sorted(_ROWS)), "--target names a row")
    return device(_ROWS[machine])


def _start(name: str, command: Sequence[str], *, timeout: float, env: dict[str, str] | None = None,
           file: Path | None = None, code: str = "E0602") -> subprocess.CompletedProcess[bytes]:
    """Runs `command`, its standard input being `file` or nothing. Raises EdgecError `code` unless it ends with 0."""
    try:
        with (file or Path(os.devnull)).open("rb") as stream:
            done = subprocess.run(command, stdin=stream, capture_output=True, timeout=timeout, check=False,
                                  env=None if env is None else {**os.environ, **env})
    except (OSError, subprocess.TimeoutExpired) as e:
        raise EdgecError(code, stage="profile", where=f"--device {name}", found=str(e), wanted="a command that ends",
                         hint="is the device there?") from e
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-2000:]
        raise EdgecError(code, stage="profile", where=f"--device {name}",
                         found=f"{Path(command[0]).name} ended with status {done.returncode}: {said}",
                         wanted="status 0")
    return done


def _text(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stdout.decode("utf-8", "replace")


def _run(name: str, command: Sequence[str], env: dict[str, str]) -> str:
    return _text(_start(name, command, timeout=_TIMEOUT_S, env=env))


def _qemu(name: str, rest: str, bundle: Path, words: Sequence[str], env: dict[str, str]) -> str:
    arch, _, cpu = rest.partition(":")
    emulator = _tool(name, (f"qemu-{arch}", f"qemu-{arch}-static"), TOOLS["qemu:aarch64"][1])
    program = _program(name, _row(name, "", arch))
    return _run(name, [emulator, *(["-cpu", cpu] if cpu else []), str(program), str(bundle), *words], env)


def _node(bundle: Path, words: Sequence[str], env: dict[str, str]) -> str:
    name = "wasm:node"
    node = _tool(name, *TOOLS[name])
    program = _program(name, device("wasm32"))
    # One thread compiles and runs: version 20 crashes in some exits while others still compile.
    flags = ["--no-warnings", "--experimental-wasi-unstable-preview1", "--single-threaded"]
    return _run(name, [node, *flags, str(source_root() / NODE_RUNNER), str(program), str(bundle), *words], env)


def _exec(name: str, command: str, target: str, bundle: Path, words: Sequence[str], env: dict[str, str]) -> str:
    """{program}, {bundle} and {args} (the bundle first, unless {bundle} is named) are put into the command's words."""
    try:
        parts = shlex.split(command)
    except ValueError as e:
        raise EdgecError("E0002", stage="profile", where="--device", found=f"{command!r}: {e}", wanted=KINDS) from e
    if "{args}" not in parts or not any("{program}" in part for part in parts):
        raise EdgecError("E0002", stage="profile", where="--device", found=repr(command),
                         wanted="a command with {program}, and {args} as a word of its own")
    program = _program(name, device(target)) if target else _local_program(name)
    named = any("{bundle}" in part for part in parts)
    line: list[str] = []
    for part in parts:
        if part == "{args}":
            line += [*([] if named else [str(bundle)]), *words]
        else:
            line.append(part.replace("{program}", str(program)).replace("{bundle}", str(bundle)))
    line[0] = _tool(name, (line[0],), "the command's first word is a program")
    return _run(name, line, env)


@contextmanager
def _cleaned(remove: Callable[[], object]) -> Iterator[None]:
    """Calls `remove` afterwards. After an error, what `remove` says against it is less than the error says: the device
    that does not answer any more cannot be cleaned either."""
    try:
        yield
    except BaseException:
        with suppress(EdgecError):
            remove()
        raise
    remove()


def _remote_line(folder: str, words: Sequence[str], env: dict[str, str]) -> str:
    """A line for the shell at the other end: every word quoted."""
    assignments = [f"{key}={shlex.quote(value)}" for key, value in env.items()]
    return " ".join([*assignments, *map(shlex.quote, (f"{folder}/edgec_bench", f"{folder}/model.edgec", *words))])


def _ssh(name: str, where: str, target: str, bundle: Path, words: Sequence[str], env: dict[str, str]) -> str:
    # HOST, USER@HOST or either with :PORT; an IPv6 address stands in brackets.
    found = re.fullmatch(r"((?:[^@]*@)?(?:\[[^\]]*\]|[^:\[\]]*))(?::(\d+))?", where)
    if not found:
        raise EdgecError("E0002", stage="profile", where="--device", found=repr(name), wanted="ssh:[USER@]HOST[:PORT]")
    host_name = re.sub(r"[\[\]]", "", found[1])
    base = [_tool(name, *TOOLS["ssh"]), "-o", "BatchMode=yes", "-o", "ConnectTimeout=15",
            *(["-p", found[2]] if found[2] else []), "--", host_name]

    def remote(line: str, *, file: Path | None = None, timeout: float = _ASKING_S, code: str = "E0602") -> str:
        return _text(_start(name, [*base, line], timeout=timeout, file=file, code=code))

    system, _, machine = remote("uname -sm", code="E0601").strip().partition(" ")
    if system != "Linux" and not target:
        raise _unreachable(name, f"a system called {system!r}", "Linux", "--target names a row for other systems")
    program = _program(name, _row(name, target, machine))
    folder = remote('mktemp -d "${TMPDIR:-/tmp}/edgec-XXXXXXXX"').strip()
    if not re.fullmatch(r"/[\w./+@-]*edgec-\w+", folder):
        raise EdgecError("E0602", stage="profile", where=f"--device {name}", found=f"mktemp printed {folder!r}",
                         wanted="a new folder")
    at = shlex.quote(folder)
    with _cleaned(lambda: remote(f"rm -rf -- {at}")):
        remote(f"cat > {at}/edgec_bench && chmod 700 {at}/edgec_bench", file=program, timeout=_TIMEOUT_S)
        remote(f"cat > {at}/model.edgec", file=bundle, timeout=_TIMEOUT_S)
        return remote(_remote_line(folder, words, env), timeout=_TIMEOUT_S)


def _adb(name: str, serial: str, target: str, bundle: Path, words: Sequence[str], env: dict[str, str]) -> str:
    tool = _tool(name, *TOOLS["adb"])
    base = [tool, *(["-s", serial] if serial else [])]

    def adb(*line: str, timeout: float = _ASKING_S, code: str = "E0602") -> str:
        return _text(_start(name, [*base, *line], timeout=timeout, code=code))

    state = adb("get-state", code="E0601").strip()
    if state != "device":
        raise _unreachable(name, f"a device in state {state!r}", "device", "is debugging allowed on the phone?")
    program = _program(name, _row(name, target, adb("shell", "getprop ro.product.cpu.abi").strip()))
    # The one folder that adb may write and execute in on phones as they are sold.
    folder = f"/data/local/tmp/edgec-{secrets.token_hex(6)}"
    adb("shell", f"mkdir -m 700 {folder}")
    with _cleaned(lambda: adb("shell", f"rm -rf {folder}")):
        adb("push", str(program), f"{folder}/edgec_bench", timeout=_TIMEOUT_S)
        adb("push", str(bundle), f"{folder}/model.edgec", timeout=_TIMEOUT_S)
        adb("shell", f"chmod 700 {folder}/edgec_bench")
        # Through a file: what adb's shell prints passes through a terminal on old systems.
        adb("shell", f"{_remote_line(folder, words, env)} > {folder}/profile.json", timeout=_TIMEOUT_S)
        return adb("exec-out", f"cat {folder}/profile.json")
