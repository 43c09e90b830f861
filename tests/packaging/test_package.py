"""`edgec package`: what is in the folder, what names may do there, what its compiler and its runtime say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec import cli, cli_ship
from edgec.compress.formats import Dtype
from edgec.errors import EdgecError
from edgec.judge.selftest import tiny_plan
from edgec.native.dims import dim, symbol
from edgec.native.session import Model
from edgec.packaging import FORMATS
from edgec.packaging.amalgamate import Selection, amalgamate, curved, kernel_rows
from edgec.packaging.described import describe, expression
from edgec.packaging.header import model_header
from edgec.packaging.names import identifier, literal
from edgec.targets.toolchain import COMPILE_FLAGS, source_root
from tests.native import tiny_plans
from tests.packaging.conftest import _written

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "package"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
Run = Callable[..., str]
HOSTILE = ("*/ int main(){} /*",
           'a"\n#include "/etc/passwd"\n//', "$(touch pwned)", "x\\", "??/", "${IFS}", "é\u202e", "",
           "int", "class", "edgec", "__proto__", "-o", "../../x", "%s%n", "9", "A" * 500)


@pytest.mark.parametrize(("name", "linked"), [("layer", False), ("cnn", True), ("lm", False)])
def test_header_is_the_golden_text_and_clean(name: str, linked: bool, bundles: dict[str, Path], tmp_path: Path,
                                             require: Callable[[bool, str], None]) -> None:
    text = model_header(describe(bundles[name], None), linked=linked)
    path = GOLDEN / f"{name}.h"
    if os.environ.get("EDGEC_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"EDGEC_UPDATE_GOLDEN=1 writes {path.name}, to be read in the diff"
    require(shutil.which("cc") is not None, "no compiler cc")
    (tmp_path / "m.h").write_text(text, encoding="utf-8")
    shutil.copyfile(source_root() / "runtime" / "include" / "edgec.h", tmp_path / "edgec_runtime.h")
    for language, standard in (("c", "c99"), ("c++", "c++17")):
        words = ["cc", "-x", language, f"-std={standard}", *WARNINGS, "-fsyntax-only", f"-I{tmp_path}", "-"]
        done = subprocess.run(words, input='#include "m.h"\n#include "m.h"\n', capture_output=True, text=True,
                              check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_become_identifiers_and_literals(name: str, require: Callable[[bool, str], None], tmp_path: Path) -> None:
    word = identifier(name, fallback="model")
    assert word.isidentifier()
    assert word.isascii()
    assert len(word) <= 52
    assert word == word.lower()
    assert not word.startswith(("edgec", "_"))
    assert identifier(word, fallback="model") == word
    assert identifier(name, fallback="model", taken=[word]) != word
    text = literal(name)
    assert not set(text[1:-1]) & set('"*\n?%$`')
    require(shutil.which("cc") is not None, "no compiler cc")
    source = (f"/* {text} */\n#include <stdio.h>\nint main(void) {{ static const char t[] = {text}; "
              "fwrite(t, 1, sizeof t - 1, stdout); return 0; }\n")
    program = tmp_path / "t"
    subprocess.run(["cc", "-std=c99", *WARNINGS, "-x", "c", "-", "-o", program], input=source.encode(), check=True)
    assert subprocess.run([program], capture_output=True, check=True).stdout == name.encode()


def test_a_hostile_name_stays_inside_its_files(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _written(tmp_path, HOSTILE[1] + HOSTILE[0], tiny_plans.tiny_cnn())
    for format in FORMATS:
        if format == "wasm":  # compiles; what it writes beside the module is the same as in the others
            continue
        found = edgec.package(bundle, tmp_path / format, format=format)
        assert found.name == "a_include_etc_passwd_int_main"
        for file in found.folder.rglob("*"):
            assert "passwd\"" not in file.name
            if file.is_file() and file.name != "model.edgec":
                assert '#include "/etc' not in file.read_text(encoding="utf-8"), file


def test_hostile_names_of_tensors_compile_and_are_only_shown(tmp_path: Path, tools: None) -> None:
    """Two that would be one identifier, a format of printf, a function of C."""
    from dataclasses import replace

    plan = tiny_plans.tiny_siblings()
    (entry,) = plan.entries
    names = iter(["%s%n", "memset", "x_1", "x1", "__proto__", "@ID@"])
    entry = replace(entry, inputs=tuple(replace(p, name=next(names)) for p in entry.inputs),
                    outputs=tuple(replace(p, name=next(names)) for p in entry.outputs))
    bundle = _written(tmp_path, "random", replace(plan, entries=(entry,)))
    found = edgec.package(bundle, tmp_path / "out", format="cmake")
    assert found.name == "model_random"
    for language, standard in (("c", "c99"), ("c++", "c++17")):
        source = found.folder / ("example.c" if language == "c" else "example.cpp")
        words = ["cc", "-x", language, f"-std={standard}", *WARNINGS, "-Wformat=2", "-fsyntax-only",
                 f"-I{found.folder}", str(source)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_trials_of_types_that_are_not_there_are_left_out() -> None:
    """Else they are refused when a bundle is opened, and everything runs on scalar kernels."""
    text = amalgamate(source_root(), "1", Selection(frozenset({"rnn", "linear"}), frozenset({"F32"}), frozenset(), ()))
    trials = text[text.index('{"rnn", 8'):]
    assert trials.count('{"rnn", 8') == 1
    assert "panel(F16" not in text


def test_caches_that_are_not_there_are_left_out() -> None:
    kernels = frozenset({"attention_cached", "kv_write"})
    for caches in (frozenset({"F16"}), frozenset({"F32", "U8"})):
        text = amalgamate(source_root(), "1", Selection(kernels, frozenset(), caches=caches))
        trials = [line for line in text.splitlines() if line.startswith(('    {"attention_cached', '    {"kv_write'))]
        assert len(trials) == (2 if caches == {"F16"} else 6)
        assert not any("other(I8" in line for line in trials)
    with pytest.raises(ValueError, match="BF16"):
        Selection(kernels, frozenset(), caches=frozenset({"BF16"}))


def test_caches_left_out_are_refused(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    """A bundle whose caches have another type, by name and when it is opened; and their kernels take no room."""
    sizes = {}
    for caches in (1 << Dtype.F32, 1 << Dtype.F32 | 1 << Dtype.I8 | 1 << Dtype.U8, 1 << Dtype.I8):
        folder = edgec.package(bundles["ids"], tmp_path / str(caches), target="x86-64-v2").folder
        text = (folder / "edgec_runtime.cpp").read_text()
        assert text.count(f"#define EDGEC_CACHES {1 << Dtype.F32}\n") == 1
        (folder / "edgec_runtime.cpp").write_text(text.replace(
            f"#define EDGEC_CACHES {1 << Dtype.F32}\n", f"#define EDGEC_CACHES {caches}\n"))
        run("c++", "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", "-c", "edgec_runtime.cpp", cwd=folder)
        sizes[caches] = (folder / "edgec_runtime.o").stat().st_size
        run("cc", "-O1", "-I.", '-DHEADER="tiny_ids.h"', "-x", "c", "-", "-x", "none", "edgec_runtime.o", "-lm",
            "-lpthread", "-o", "open", stdin=_OPEN, cwd=folder)
        said = run(folder / "open", bundles["ids"])
        if caches & 1 << Dtype.F32:
            assert said.startswith("0 ")
        else:
            assert said.startswith("10 ")
            assert "found a cache of dtype 1, which this program was packaged without; package this bundle" in said
    only, both, _ = sizes.values()
    assert only < both - 8000


def test_a_compile_s_folder_is_not_replaced(bundles: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bundles["layer"].parent, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"edgec_version": "0.1.0", "files": {
        p.name: {} for p in (tmp_path / "out").iterdir()}}))
    with pytest.raises(EdgecError, match="E0004"):
        edgec.package(tmp_path / "out" / "model.edgec", tmp_path / "out", format="pip")
    with pytest.raises(EdgecError, match="E0004"):
        edgec.package(bundles["layer"], tmp_path / "out", format="pip")
    assert (tmp_path / "out" / "model.edgec").is_file()


def test_expressions_are_what_the_dims_are() -> None:
    n, m = symbol("n", 1, 9), symbol("m", 0, 5)
    shapes = [n * 3 + m - 2, n.ceildiv(4) * 2, (n + m) // 3, n * n * m, dim(0), dim(7)]
    for shape in shapes:
        text = expression(shape, {"n": "n", "m": "m"})
        for a in range(1, 10):
            for b in range(6):
                assert eval(text.replace("/", "//"), {"n": a, "m": b}) == shape.at({"n": a, "m": b}), text


def test_formats_are_listed_in_the_help() -> None:
    assert ", ".join(FORMATS) == cli_ship.FORMAT_NAMES


def test_every_kernel_alone_is_complete(require: Callable[[bool, str], None], tmp_path: Path) -> None:
    """One of them here; all in the nightly run."""
    _alone(["conv2d_q8"], require, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", kernel_rows(source_root()))
def test_each_kernel_alone_is_complete(kernel: str, require: Callable[[bool, str], None], tmp_path: Path) -> None:
    _alone([kernel], require, tmp_path)


def _alone(kernels: list[str], require: Callable[[bool, str], None], tmp_path: Path) -> None:
    require(shutil.which("c++") is not None, "no compiler c++")
    shutil.copyfile(source_root() / "runtime" / "include" / "edgec.h", tmp_path / "edgec_runtime.h")
    for kernel in kernels:
        text = amalgamate(source_root(), "1", Selection(frozenset({kernel}), frozenset({"F32"})))
        (tmp_path / "r.cpp").write_text(text, encoding="utf-8")
        done = subprocess.run(["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti",
                               "-fsyntax-only", str(tmp_path / "r.cpp")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{kernel}: {done.stderr[:3000]}"


def test_options_that_do_not_go(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, code in (({"format": "cmak"}, "E0002"), ({"weights": "glue"}, "E0002"), ({"name": "Int x"}, "E0002"),
                          ({"target": "pdp11"}, "E0006")):
        with pytest.raises(EdgecError) as error:
            edgec.package(bundles["layer"], tmp_path / "out", **options)  # type: ignore[arg-type]
        assert error.value.code == code
        assert not (tmp_path / "out").exists()
    with pytest.raises(EdgecError, match="no such file"):
        edgec.package(tmp_path / "none", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert cli.main(["package", str(bundles["layer"]), "-o", str(tmp_path / "out"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "EDGEC-E0004"
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def values(bundle: Path) -> np.ndarray:
    """Outputs of the examples' made-up inputs, with open sizes at 1: the same program in Python."""
    feeds = {}
    for port in describe(bundle, None).inputs:
        shape = tuple(1 if d.const is None else d.const for d in port.dims)
        i = np.arange(int(np.prod(shape)))
        made = (i * 7919 % 1000).astype(np.float32) / 500 - 1 if port.dtype is Dtype.F32 else np.ones(i.size)
        feeds[port.name] = made.astype(port.dtype.numpy).reshape(shape)
    with Model(bundle) as model, model.session(threads=1) as session:
        return np.concatenate([np.ravel(v) for v in session.run(feeds).values()])


def shown(text: str) -> np.ndarray:
    return np.array([float(line.rpartition(" ")[2]) for line in text.splitlines()])


def test_cmake_package_with_linked_weights(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    """C and C++ examples, built by the documented command, against the library on the same inputs."""
    found = edgec.package(bundles["cnn"], tmp_path / "p", weights="object", target="x86-64-v3")
    run("cmake", "-S", found.folder, "-B", tmp_path / "b", "-DEDGEC_OPTIMIZE=-O1")
    run("cmake", "--build", tmp_path / "b")
    wanted = values(bundles["cnn"])
    for language in ("c", "cpp"):
        program = tmp_path / "b" / f"edgec_tiny_cnn_example_{language}"
        assert np.abs(shown(run(program)) - wanted).max() <= 1e-5 * np.abs(wanted).max()
        needed = run("readelf", "-d", program) if shutil.which("readelf") else ""
        assert "stdc++" not in needed
    # What another bundle needs is refused by name.
    run("cc", "-O1", f"-I{found.folder}", '-DHEADER="tiny_cnn.h"', "-x", "c", "-", "-x", "none",
        tmp_path / "b" / "libedgec_tiny_cnn.a", "-lm", "-lpthread", "-o", tmp_path / "open", stdin=_OPEN)
    for bundle, words in (("lm", "which this build lacks: it was packaged for another bundle"),):
        assert words in run(tmp_path / "open", bundles[bundle])


_OPEN = """
#include HEADER
int main(int argc, char **argv) {
    edgec_model *model;
    char message[512];
    const unsigned char *key = (const unsigned char *)"12345678901234567890123456789012";
    edgec_open_options pinned = {sizeof pinned, 0, 0, 0, NULL, key};
    edgec_status status = edgec_open(argv[1], argc > 2 ? &pinned : NULL, &model, message, sizeof message);
    return printf("%d %s\\n", status, message) < 0;
}
"""


def test_without_a_call_to_wait_on_an_address(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    """How threads sleep on Apple's systems, whose own call an app's store refuses: here, under the thread sanitizer."""
    folder = edgec.package(bundles["cnn"], tmp_path / "p", target="x86-64-v3").folder
    words = ["-DEDGEC_NO_FUTEX", "-fsanitize=thread", "-O1", "-g"]
    run("c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", *words, "-c", "edgec_runtime.cpp", "-o", "r.o", cwd=folder)
    assert "pthread_cond_wait" in run("nm", "-u", folder / "r.o")
    run("cc", *words, "example.c", "r.o", "-lm", "-lpthread", "-o", "t", cwd=folder)
    wanted = values(bundles["cnn"])
    for _ in range(5):
        assert np.abs(shown(run(folder / "t", bundles["cnn"])) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_language_model_in_one_process(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    """The plain compiler line of the README; a bundle that is mapped; tokens equal those of the library."""
    found = edgec.package(bundles["lm"], tmp_path / "p", target="x86-64-v2")
    run("c++", "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", "-c", "edgec_runtime.cpp", cwd=found.folder)
    run("cc", "-O1", "example.c", "edgec_runtime.o", "-lm", "-lpthread", "-o", "example", cwd=found.folder)
    with Model(bundles["lm"]) as model, model.session() as session:
        tokens = session.generate(model.tokenize("the thing"), 20)
        wanted = model.detokenize(tokens)
    assert run(found.folder / "example", "model.edgec", "the thing", 20, cwd=found.folder).rstrip("\n") == wanted
    run("cc", "-O1", "-I.", "-x", "c", "-", "-x", "none", "edgec_runtime.o", "-lm", "-lpthread", "-o", "talk",
        stdin=_TALK, cwd=found.folder)
    with Model(bundles["lm"]) as model, model.session() as session:
        wanted = model.detokenize(session.generate(model.tokenize("the thing"), 8))
        wanted += model.detokenize(session.generate(model.tokenize(" and the", add_special=False), 8))
    assert run(found.folder / "talk", bundles["lm"]) == wanted
    run("cc", "-O1", "-I.", '-DHEADER="tiny_lm.h"', "-x", "c", "-", "-x", "none", "edgec_runtime.o", "-lm",
        "-lpthread", "-o", "open", stdin=_OPEN, cwd=found.folder)
    assert run(found.folder / "open", bundles["lm"]).startswith("0 ")
    assert "packaged without signatures" in run(found.folder / "open", bundles["lm"], "pinned")


_TALK = """
#include "tiny_lm.h"
static int say(void *user, int32_t token, const char *text, size_t bytes) {
    return (void)user, (void)token, fwrite(text, 1, bytes, stdout) != bytes;
}
int main(int argc, char **argv) {
    tiny_lm_model m = {0};
    edgec_generate_options options = tiny_lm_options(8);
    edgec_status status = tiny_lm_open(&m, argv[argc - 1], NULL);
    options.on_token = say;
    if (!status) status = tiny_lm_generate(&m, "the thing", &options, NULL);
    if (!status) status = tiny_lm_generate(&m, " and the", &options, NULL);
    if (status) puts(tiny_lm_error(&m));
    tiny_lm_close(&m);
    return (int)status;
}
"""


def test_two_packages_in_one_program(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    """Each with its own runtime: a network with a language model, in one file of C that includes both headers."""
    objects = []
    for name in ("cnn", "lm"):
        folder = edgec.package(bundles[name], tmp_path / name, target="x86-64-v3").folder
        run("c++", "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", "-c", "edgec_runtime.cpp", cwd=folder)
        objects.append(folder / "edgec_runtime.o")
        if shutil.which("nm"):
            symbols = [line.split()[-1] for line in run("nm", "-g", "--defined-only", objects[-1]).splitlines()]
            assert len(symbols) > 20
            assert not [s for s in symbols if f"tiny_{name}_" not in s]
    run("cc", "-std=c99", *WARNINGS, "-O1", *(f"-I{tmp_path / name}" for name in ("cnn", "lm")), "-x", "c", "-",
        "-x", "none", *objects, "-lm", "-lpthread", "-o", tmp_path / "both", stdin=_BOTH)
    said = run(tmp_path / "both", bundles["cnn"], bundles["lm"])
    text, _, numbers = said.partition("\n--\n")
    wanted = values(bundles["cnn"])
    assert np.abs(shown(numbers) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    with Model(bundles["lm"]) as model, model.session() as session:
        assert text == model.detokenize(session.generate(model.tokenize("the thing"), 20))


_BOTH = """
#include "tiny_cnn.h"
#include "tiny_lm.h"
static int say(void *user, int32_t token, const char *text, size_t bytes) {
    return (void)user, (void)token, fwrite(text, 1, bytes, stdout) != bytes;
}
int main(int argc, char **argv) {
    tiny_cnn_model cnn = {0};
    tiny_lm_model lm = {0};
    float image[192], found[10];
    int i;
    edgec_generate_options options = tiny_lm_options(20);
    options.on_token = say;
    for (i = 0; i < 192; i++) image[i] = (float)(i * 7919 % 1000) / 500 - 1;
    if (argc != 3 || tiny_cnn_open(&cnn, argv[1], NULL) || tiny_lm_open(&lm, argv[2], NULL)) return 1;
    if (tiny_lm_generate(&lm, "the thing", &options, NULL) || tiny_cnn_run(&cnn, 1, image, found)) return 2;
    /* edgec_ is the last header's: handles of the other runtime are none to it, and the other way round. */
    if (edgec_selftest(cnn.model, NULL, NULL, 0) != EDGEC_ERROR_ARGUMENT) return 3;
    if (edgec_session_reset(cnn.session) != EDGEC_ERROR_ARGUMENT) return 4;
    if (tiny_cnn_edgec_session_reset(lm.session) != EDGEC_ERROR_ARGUMENT) return 5;
    if (edgec_session_reset(lm.session) || tiny_cnn_edgec_session_reset(cnn.session)) return 6;
    puts("\\n--");
    for (i = 0; i < 10; i++) printf("p %.9g\\n", found[i]);
    tiny_lm_close(&lm);
    tiny_cnn_close(&cnn);
    return 0;
}
"""


@pytest.mark.slow
def test_size_of_a_package(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None,
                           capsys: pytest.CaptureFixture[str]) -> None:
    """What `edgec size` says of a package is what its compiler makes of it."""
    found = edgec.package(bundles["layer"], tmp_path / "p", target="x86-64-v3")
    assert cli.main(["size", str(found.folder), "--json"]) == 0
    package = json.loads(capsys.readouterr().out)["package"]
    assert list(package["kernels"]) == list(found.kernels)
    assert set(package["kernels"]["linear"]["isa"]) == {"scalar", "avx2"}
    alone = sum(row["alone"] for row in package["kernels"].values())
    assert alone + package["shared"] + package["rest"] == package["object"]
    program = tmp_path / "example"
    run("c++", *COMPILE_FLAGS, "-c", "edgec_runtime.cpp", cwd=found.folder)
    run("cc", "-O2", "example.c", "edgec_runtime.o", "-Wl,--gc-sections", "-lm", "-lpthread", "-s", "-o", program,
        cwd=found.folder)
    assert 0.5 * package["object"] < program.stat().st_size < 1.5 * package["object"]
    wasm = tmp_path / "w"
    wasm.mkdir()
    (wasm / "manifest.json").write_text('{"edgec_version": "1", "package": "wasm", "files": {}}')
    assert cli.main(["size", str(wasm)]) == 2
    assert "--format cmake" in capsys.readouterr().err


@pytest.mark.slow
def test_signatures_are_verified_where_they_were_asked_for(prose_bundle: Path, key_pair: Callable[[str], Path],
                                                           tmp_path: Path, run: Run, tools: None) -> None:
    from edgec import api
    from edgec.keys import public_key

    signed = tmp_path / "signed.edgec"
    shutil.copyfile(prose_bundle / "model.edgec", signed)
    api.sign(signed, key_pair("alice"))
    folder = edgec.package(signed, tmp_path / "p", signatures=True, name="lm", target="x86-64-v2").folder
    run("c++", "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", "-c", "edgec_runtime.cpp", cwd=folder)
    for name, status in (("alice", 0), ("bob", 14)):
        key = ", ".join(map(str, public_key(f"{key_pair(name)}.pub")))
        source = (f'#include "lm.h"\nint main(void) {{ lm_model m = {{0}}; const uint8_t key[32] = {{{key}}};\n'
                  'printf("%d", (int)lm_open_signed(&m, "model.edgec", key, NULL)); lm_close(&m); return 0; }\n')
        run("cc", "-I.", "-x", "c", "-", "-x", "none", "edgec_runtime.o", "-lm", "-lpthread", "-o", "open", cwd=folder,
            stdin=source)
        assert run("./open", cwd=folder) == str(status)


def test_activations_left_out(tmp_path: Path, run: Run, tools: None) -> None:
    """Those but clamps are in packages of plans that have some, and refused with words by others."""
    plan = tiny_plan(np.ones((24, 40), np.float32), np.zeros(24, np.float32))
    (call,), sizes = plan.entries[0].calls, {}
    for act in (1, 4):
        entry = replace(plan.entries[0], calls=(replace(call, ints=(act, *call.ints[1:])),))
        bundle = _written(tmp_path, f"act{act}", replace(plan, entries=(entry,)))
        folder = edgec.package(bundle, tmp_path / f"p{act}", target="x86-64-v3").folder
        text = (folder / "edgec_runtime.cpp").read_text()
        assert ("#define EDGEC_CURVED 0\n" in text) == (act == 1)
        assert ("{4, 0}, {}}," in text) == (act == 4)  # a trial
        run("c++", "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", "-c", "edgec_runtime.cpp", cwd=folder)
        sizes[act] = (folder / "edgec_runtime.o").stat().st_size
        run("cc", "-O1", "-I.", f'-DHEADER="act{act}.h"', "-x", "c", "-", "-x", "none", "edgec_runtime.o", "-lm",
            "-lpthread", "-o", "open", stdin=_OPEN, cwd=folder)
        assert run(folder / "open", bundle).startswith("0 ")
    assert sizes[1] < sizes[4] - 4000
    assert "an activation that this program was packaged without" in run(tmp_path / "p1" / "open", bundle)
    assert [curved(*words) for words in (("linear", [2, 0]), ("linear", [3, 0]), ("reduce", [7]), ("unary", [1]),
                                         ("mbconv2d", [2] * 12), ("mbconv2d", [2] * 10 + [5, 0]))
            ] == [False, True, False, True, False, True]


@pytest.mark.slow
def test_bfloat16_panels_left_out_are_refused(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    """Weights of a type that the program does not read are refused by name, not misread."""
    found = edgec.package(bundles["layer"], tmp_path / "p", target="generic-c")
    text = (found.folder / "edgec_runtime.cpp").read_text()
    assert f"#define EDGEC_PANELS {1 << Dtype.F32}\n" in text
    # The same program, made to lack the type that this bundle has.
    (found.folder / "edgec_runtime.cpp").write_text(text.replace(
        f"#define EDGEC_PANELS {1 << Dtype.F32}\n", f"#define EDGEC_PANELS {1 << Dtype.F16}\n"))
    run("c++", "-std=c++17", "-O0", "-fno-exceptions", "-fno-rtti", "-c", "edgec_runtime.cpp", cwd=found.folder)
    run("cc", "-O1", "-I.", '-DHEADER="model.h"', "-x", "c", "-", "-x", "none", "edgec_runtime.o", "-lm",
        "-lpthread", "-o", "open", stdin=_OPEN, cwd=found.folder)
    assert "found weights of dtype 1, which this program was packaged without" in run(
        found.folder / "open", bundles["layer"])
