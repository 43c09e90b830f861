"""Devices of --device: real ones where this machine has them (this one, sshd on loopback, qemu, node), an `adb` that
only records and carries out what a phone's shell would, and everything that must be refused."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgec.env import CACHE
from edgec.errors import EdgecError
from edgec.judge.profile import ProfileOptions, profile_bundle
from edgec.native.library import library_path
from edgec.targets import transport as module
from edgec.targets.toolchain import BENCH
from edgec.targets.transport import transport

ROOT = Path(__file__).resolve().parents[2]
Require = Callable[[bool, str], None]
ARGUMENTS = ProfileOptions(threads=1, runs=3, warmup=0, min_ms=0).arguments()


@pytest.fixture(scope="module")
def program(require: Require) -> Path:
    found = library_path().parent / "edgec_bench"
    require(found.is_file(), "edgec_bench is not built (make build)")
    return found


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def carried(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of a cross-built program, one that can be copied anywhere on this machine and starts the built one."""
    (tmp_path / "built").mkdir()
    made = script(tmp_path / "built" / "edgec_bench", f'#!/bin/sh\nexec "{program}" "$@"\n')
    monkeypatch.setattr(module, "bench_program", lambda row: made)
    return made


def check(document: dict[str, Any]) -> None:
    assert document["edgec_bench"] == 1
    (test,) = document["tests"]
    assert len(test["wall_ns"]) >= 3
    assert [call["kernel"] for call in test["calls"]] == ["linear"]
    assert document["roofline"]["multiply_add_gop_s"] > 0


# Words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "", "phone", "local:x", "ssh", "ssh:", "ssh:-oProxyCommand=sh", "ssh:a b", "ssh:host;sh", "ssh:$(x)", "adb:-s",
    "adb:a b",
    "qemu:", "qemu:../x", "qemu:aarch64:a b", "qemu:aarch64:-x y", "wasm", "wasm:deno", "exec:", "exec: ",
])
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(EdgecError) as caught:
        transport(text)
    assert caught.value.code == "E0002"
    assert "ssh:HOST" in caught.value.wanted


@pytest.mark.parametrize(("text", "target", "code"), [
    ("local", "rpi5", "E0002"), ("qemu:aarch64", "rpi5", "E0002"), ("wasm:node", "wasm32", "E0002"),
    ("ssh:box", "rpi55", "E0006")])
def test_targets_that_do_not_fit(text: str, target: str, code: str) -> None:
    with pytest.raises(EdgecError) as caught:
        transport(text, target)
    assert caught.value.code == code


@pytest.mark.parametrize("command", [
    "echo {program}", "echo {args}", "echo '{program} {args}", "echo {program} x{args}"])
def test_commands_without_program_or_arguments(command: str, layer_bundle: Path) -> None:
    with pytest.raises(EdgecError) as caught:
        transport(f"exec:{command}").measure(layer_bundle, ARGUMENTS)
    assert caught.value.code == "E0002"


def refused(name: str, bundle: Path, target: str = "") -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        transport(name, target).measure(bundle, ARGUMENTS)
    assert caught.value.exit_code == 5
    return caught.value


@pytest.mark.parametrize(("name", "tool"), [
    ("ssh:host", "ssh"), ("adb", "adb"), ("adb:1234", "adb"), ("qemu:aarch64", "qemu-aarch64"), ("wasm:node", "node"),
])
def test_missing_tools(
    name: str, tool: str, layer_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(name, layer_bundle)
    assert error.code == "E0601"
    assert f"no {tool}" in error.found


def test_missing_compiler(layer_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "qemu-riscv64", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused("qemu:riscv64", layer_bundle)
    assert error.code == "E0601"
    assert "[cross]" in error.render()


def test_machines_without_a_row(layer_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "qemu-vax", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "'vax'" in refused("qemu:vax", layer_bundle).found


@pytest.mark.parametrize(("text", "words"), [
    ("ssh:box", ["--", "box"]), ("ssh:me@box:2222", ["-p", "2222", "--", "me@box"]),
    ("ssh:me@[fe80::1%eth0]:22", ["-p", "22", "--", "me@fe80::1%eth0"]), ("ssh:[::1]", ["--", "::1"])])
def test_names_of_hosts(text: str, words: list[str], layer_bundle: Path, tmp_path: Path,
                        monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "ssh", f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{tmp_path}/log"\nexit 9\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert refused(text, layer_bundle).code == "E0601"
    assert (tmp_path / "log").read_text().splitlines() == [
        "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", *words, "uname -sm"]


def test_the_first_error_is_the_one_that_is_told(
    adb: Path, carried: Path, layer_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone that is pulled out in the middle: not that its folder cannot be removed, but what failed before."""
    script(carried, f"#!/bin/sh\necho gone > {adb}/gone\nexit 3\n")
    with (adb / "adb").open("r+") as fake:
        text = fake.read()
        fake.seek(0)
        fake.write(text.replace(
            "here = lambda", "sys.exit('no devices') if os.path.exists(top + '/gone') else None\nhere = lambda"))
    assert "status 3" in refused("adb", layer_bundle).found


# This machine ------------------------------------------------------------------------------------------------------


def test_local(program: Path, layer_bundle: Path) -> None:
    check(transport("local").measure(layer_bundle, ARGUMENTS))
    assert transport("local").measure(layer_bundle, ARGUMENTS, "scalar")["isa"] == "scalar"


def test_local_failures(program: Path, layer_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="wanted an instruction set of this machine") as caught:
        transport("local").measure(layer_bundle, ARGUMENTS, "vax")
    assert caught.value.code == "E0602"
    damaged = tmp_path / "model.edgec"
    damaged.write_bytes(layer_bundle.read_bytes()[:-64])
    with pytest.raises(EdgecError, match="it was cut or extended"):
        transport("local").measure(damaged, ARGUMENTS)
    with pytest.raises(EdgecError, match="found '0', wanted 1"):
        transport("local").measure(layer_bundle, ["--runs", "0"])
    with pytest.raises(EdgecError, match="--runs wants a number"):
        transport("local").measure(layer_bundle, ["--runs"])


def test_an_instruction_set_that_was_not_used_is_an_error(program: Path, layer_bundle: Path, require: Require) -> None:
    native = transport("local").measure(layer_bundle, ARGUMENTS)["isa"]
    require(native != "scalar", "this machine has scalar kernels only")
    lost = transport("exec:env -u EDGEC_ISA {program} {args}")
    assert lost.measure(layer_bundle, ARGUMENTS, native)["isa"] == native
    with pytest.raises(EdgecError, match="'scalar'") as caught:
        lost.measure(layer_bundle, ARGUMENTS, "scalar")
    assert caught.value.code == "E0602"


def test_a_command_of_the_user_s(program: Path, layer_bundle: Path, tmp_path: Path) -> None:
    """Words are words: nothing in them reaches a shell, and a bundle's name may be anything."""
    odd = tmp_path / "a b; touch $(echo x)" / "model.edgec"
    odd.parent.mkdir()
    odd.write_bytes(layer_bundle.read_bytes())
    log = tmp_path / "log"
    wrap = script(tmp_path / "wrap", f'#!/bin/sh\nprintf "%s\\n" "$@" > "{log}"\nshift\nexec "$@"\n')
    check(transport(f"exec:{wrap} 'first word' {{program}} {{args}}").measure(odd, ARGUMENTS))
    assert log.read_text().splitlines() == ["first word", str(program), str(odd), *ARGUMENTS]
    check(transport(f"exec:{wrap} --model={{bundle}} env {{program}} {odd.parent.as_posix()!r}/model.edgec {{args}}")
          .measure(odd, ARGUMENTS))
    assert log.read_text().splitlines() == [f"--model={odd}", "env", str(program), str(odd), *ARGUMENTS]


def test_threads_are_the_cores_of_the_process(program: Path, layer_bundle: Path, require: Require) -> None:
    require(shutil.which("taskset") is not None, "no taskset")
    core = min(os.sched_getaffinity(0))
    words = ProfileOptions(runs=1, warmup=0, min_ms=0).arguments()
    assert transport(f"exec:taskset -c {core} {{program}} {{args}}").measure(layer_bundle, words)["threads"] == 1
    wanted = min(1024, len(os.sched_getaffinity(0)))
    assert transport("local").measure(layer_bundle, words)["threads"] == wanted


def test_machines_of_many_cores(program: Path, layer_bundle: Path) -> None:
    """As many threads as a session may have. The least bytes that so many of the probe read, 64 KiB each, are read."""
    document = transport("local").measure(layer_bundle, ["--threads", "200", "--runs", "1", "--warmup", "0", "--min-ms",
                                                         "0", "--probe-mb", "1"])
    assert (document["threads"], document["roofline"]["threads"]) == (200, 200)
    assert document["roofline"]["memory_bytes"] == 200 << 16


# Another machine ---------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, require: Require, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real sshd on loopback with keys, port and settings of its own, and an `ssh` that knows them; USER@HOST:PORT."""
    server, client = shutil.which("sshd") or "/usr/sbin/sshd", shutil.which("ssh")
    require(Path(server).is_file() and client is not None, "no sshd (apt-get install openssh-server)")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start as root without it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = folder / "sshd_config"
    settings.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\n"
        f"SetEnv TMPDIR={folder}/tmp\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "bin").mkdir()
    (folder / "tmp").mkdir()
    script(folder / "bin" / "ssh",
           f'#!/bin/sh\nexec {client} -F none -o IdentitiesOnly=yes -o "IdentityFile={folder}/user" '
           f'-o "UserKnownHostsFile={folder}/known" "$@"\n')
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    command = [server, "-D", "-e", "-f", settings]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as running:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert running.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"{getpass.getuser()}@127.0.0.1:{port}"
        finally:
            running.terminate()


def test_ssh(host: str, carried: Path, layer_bundle: Path, tmp_path: Path) -> None:
    check(transport(f"ssh:{host}").measure(layer_bundle, ARGUMENTS))
    assert transport(f"ssh:{host}").measure(layer_bundle, ARGUMENTS, "scalar")["isa"] == "scalar"
    with pytest.raises(EdgecError, match="wanted an instruction set of this machine") as caught:
        transport(f"ssh:{host}").measure(layer_bundle, ARGUMENTS, f"v'ax; touch {tmp_path}/ssh/tmp/made")
    assert caught.value.code == "E0602"
    assert list((tmp_path / "ssh" / "tmp").iterdir()) == [], "something was left behind"


def test_ssh_hosts_that_do_not_answer(host: str, carried: Path, layer_bundle: Path) -> None:
    where = host.rpartition(":")[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    error = refused(f"ssh:{where}:{closed}", layer_bundle)
    assert (error.code, "refused" in error.found) == ("E0601", True)
    error = refused("ssh:nobody-at-all@127.0.0.1:" + host.rpartition(":")[2], layer_bundle)
    assert (error.code, "ermission denied" in error.found) == ("E0601", True)


ADB = """#!{python}
# Not a device: records its arguments, and carries out on this machine what a phone's shell would be asked to do.
import json, os, pathlib, subprocess, sys
top, words = {top!r}, sys.argv[1:]
with open(top + "/log", "a") as log:
    log.write(json.dumps(words) + "\\n")
if words[:1] == ["-s"]:
    words = words[2:]
here = lambda text: text.replace("/data/local/tmp", top + "/phone")
if words == ["get-state"]:
    state = pathlib.Path(top + "/state")
    print(state.read_text() if state.exists() else "device")
elif words == ["shell", "getprop ro.product.cpu.abi"]:
    print("x86_64")
elif words[0] == "push":
    pathlib.Path(here(words[2])).write_bytes(pathlib.Path(words[1]).read_bytes())
elif words[0] in ("shell", "exec-out"):
    sys.exit(subprocess.run(["sh", "-c", here(words[1])]).returncode)
else:
    sys.exit("what is " + " ".join(words))
"""


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake `adb`, on the PATH."""
    (tmp_path / "phone").mkdir()
    script(tmp_path / "adb", ADB.format(python=sys.executable, top=str(tmp_path)))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("serial", ["", "emulator-5554"])
def test_adb_with_a_fake(adb: Path, carried: Path, layer_bundle: Path, serial: str) -> None:
    check(transport(f"adb:{serial}" if serial else "adb").measure(layer_bundle, ARGUMENTS, "scalar"))
    calls = [json.loads(line) for line in (adb / "log").read_text().splitlines()]
    assert all(words[:2] == ["-s", serial] for words in calls) or not serial
    words = [call[2:] if serial else call for call in calls]
    folder = words[2][1].rpartition(" ")[2]
    assert folder.startswith("/data/local/tmp/edgec-")
    assert words == [
        ["get-state"], ["shell", "getprop ro.product.cpu.abi"], ["shell", f"mkdir -m 700 {folder}"],
        ["push", str(carried), f"{folder}/edgec_bench"], ["push", str(layer_bundle), f"{folder}/model.edgec"],
        ["shell", f"chmod 700 {folder}/edgec_bench"],
        ["shell", " ".join(["EDGEC_ISA=scalar", f"{folder}/edgec_bench", f"{folder}/model.edgec", *ARGUMENTS, ">",
                            f"{folder}/profile.json"])],
        ["exec-out", f"cat {folder}/profile.json"], ["shell", f"rm -rf {folder}"]]
    assert list((adb / "phone").iterdir()) == []


def test_adb_devices_that_do_not_serve(adb: Path, carried: Path, layer_bundle: Path) -> None:
    (adb / "state").write_text("unauthorized")
    assert "unauthorized" in refused("adb", layer_bundle).found
    (adb / "state").unlink()
    script(carried, "#!/bin/sh\necho broken >&2\nexit 3\n")
    error = refused("adb", layer_bundle)
    assert (error.code, "broken" in error.found) == ("E0602", True)
    assert list((adb / "phone").iterdir()) == [], "the folder was left on the device"


# Emulators ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cross(request: pytest.FixtureRequest, require: Require) -> Iterator[None]:
    """Programs for other machines, kept in pytest's cache."""
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")
    assert request.config.cache is not None
    with CACHE.override(str(request.config.cache.mkdir("edgec_bench"))):
        yield


def test_qemu(
    layer_bundle: Path, arm_program: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch, require: Require
) -> None:
    """With a program made from objects that other tests need too; the next test builds what users get."""
    monkeypatch.setattr(module, "bench_program", lambda row: arm_program(ROOT / BENCH))
    _emulated("aarch64:cortex-a53", "neon", layer_bundle, require)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "isa"), [("aarch64:cortex-a53", "neon"), ("riscv64", "scalar")])
def test_qemu_with_the_users_program(arch: str, isa: str, cross: None, layer_bundle: Path, require: Require) -> None:
    _emulated(arch, isa, layer_bundle, require)


def _emulated(name: str, isa: str, layer_bundle: Path, require: Require) -> None:
    arch = name.partition(":")[0]
    found = shutil.which(f"qemu-{arch}") or shutil.which(f"qemu-{arch}-static")
    require(found is not None, f"qemu-{arch} is not installed (apt-get install qemu-user)")
    report = profile_bundle(layer_bundle, transport(f"qemu:{name}"), ProfileOptions(threads=1, runs=3, min_ms=0))
    assert report["isa"] == isa
    assert [(c["layer"], c["isa"]) for c in report["tests"][0]["calls"]] == [("selftest", isa)]
    assert report["device"]["machine"] == arch


def test_node(cross: None, layer_bundle: Path, node: tuple[str, ...]) -> None:
    report = profile_bundle(layer_bundle, transport("wasm:node"), ProfileOptions(threads=4, runs=3, min_ms=0))
    assert (report["isa"], report["threads"]) == ("wasm", 1)
    assert [c["isa"] for c in report["tests"][0]["calls"]] == ["wasm"]
    # A module sees neither a CPU nor an operating system, and says so.
    assert {report["device"][k] for k in ("cpu", "os", "machine", "cores", "governor", "max_khz", "battery")} == {None}
    assert set(report["memory"]["measured"].values()) == {None}
    assert report["energy"] is None
