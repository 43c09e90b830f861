"""runtime/include/edgec.h compiles alone, as C99 and as C++17, without a warning."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# Included twice, and something of every kind used, so that the header cannot hide behind not being instantiated.
SOURCE = """
#include "edgec.h"
#include "edgec.h"
edgec_status use(edgec_model *model, edgec_model_info *info);
edgec_status use(edgec_model *model, edgec_model_info *info) {
    info->struct_size = (uint32_t)sizeof *info;
    return edgec_model_get_info(model, info);
}
"""


@pytest.mark.parametrize(
    ("language", "standard", "compiler"), [("c", "c99", "cc"), ("c++", "c++17", "c++")], ids=["c99", "c++17"]
)
def test_header_is_clean(
    language: str, standard: str, compiler: str, require: Callable[[bool, str], None]
) -> None:
    require(shutil.which(compiler) is not None, f"no compiler {compiler}")
    command = [compiler, "-x", language, f"-std={standard}", *WARNINGS, "-fsyntax-only", "-I",
               str(ROOT / "runtime" / "include"), "-"]
    done = subprocess.run(command, input=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_embedding_example_is_small_and_clean(require: Callable[[bool, str], None]) -> None:
    example = ROOT / "examples" / "embed_c" / "main.c"
    require(shutil.which("cc") is not None, "no compiler cc")
    done = subprocess.run(
        ["cc", "-std=c99", *WARNINGS, "-fsyntax-only", "-I", str(ROOT / "runtime" / "include"), str(example)],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(example.read_text().splitlines()) <= 40


def test_embedding_example_generates(prose_bundle: Path, tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(shutil.which("cc") is not None, "no compiler cc")
    program = tmp_path / "generate"
    subprocess.run(
        ["cc", "-std=c99", *WARNINGS, "-I", str(prose_bundle / "include"),
         str(ROOT / "examples" / "embed_c" / "main.c"),
         "-L", str(prose_bundle), "-ledgec", f"-Wl,-rpath,{prose_bundle}", "-o", str(program)],
        check=True,
    )
    done = subprocess.run(
        [str(program), str(prose_bundle / "model.edgec"), "It was a quiet evening"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20
    assert done.stdout.endswith("\n")
    missing = subprocess.run([str(program), "missing.edgec", "x"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert "missing.edgec" in missing.stderr
