"""The shape of the house: who may import whom, one copy of every module, the public interface."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import edgec

ROOT = Path(__file__).resolve().parent.parent

# Part -> parts it may import besides itself. docs/architecture.md shows the same as a picture.
BASE = {"errors", "env", "version"}
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "env": {"errors"},
    "ir": BASE,
    "compress": BASE | {"ir"},
    "passes": BASE | {"ir", "compress"},
    "native": BASE | {"ir", "compress"},
    "keys": BASE,
    "targets": BASE | {"ir", "compress", "native"},
    "importers": BASE | {"ir", "compress", "passes", "zoo"},
    "zoo": BASE,
    "train": BASE | {"zoo", "native", "api", "compress", "ir", "pipeline", "importers", "passes"},
    "calibration": BASE | {"ir", "compress", "native", "judge"},
    "quantization": BASE | {"ir", "compress", "calibration"},
    "decoupling": BASE | {"ir", "compress", "passes", "native", "calibration"},
    "backends": BASE | {"ir", "passes", "targets"},
    "pipeline": BASE | {"ir", "compress", "importers", "passes", "native", "targets", "quantization", "decoupling",
                        "backends"},
    "support": BASE | {"ir", "importers", "native", "targets", "pipeline", "backends"},
    "judge": BASE | {"compress", "importers", "native", "targets"},
    "api": BASE | {"zoo", "ir", "compress", "importers", "native", "passes", "targets", "pipeline", "quantization",
                   "judge", "decoupling", "support", "keys", "size", "backends", "packaging"},
    "packaging": BASE | {"compress", "native", "targets", "judge"},
    "size": BASE | {"native", "targets", "judge"},
    "doctor": BASE | {"native", "targets", "judge"},
    "cli_values": BASE | {"judge"},
    "cli_output": BASE,
    "cli_quantize": BASE | {"api", "quantization", "compress", "cli_values", "cli_output"},
    "cli_build": BASE | {"api", "support", "doctor", "targets", "decoupling", "quantization", "cli_quantize",
                         "cli_values", "cli_output"},
    "cli_use": BASE | {"api", "cli_build", "cli_quantize", "targets", "judge", "native", "keys", "cli_values",
                       "cli_output"},
    "cli_ship": BASE | {"api", "keys", "cli_build", "cli_use", "cli_values", "cli_output"},
    "cli_train": BASE | {"train", "cli_values", "cli_output"},
    "cli": BASE | {"cli_build", "cli_train", "cli_use", "cli_ship", "cli_output", "targets"},
    "__main__": {"cli"},
    "__init__": {"api", "errors", "native", "version"},
}
# Seconds to import, so only inside functions: a command that does not need them must not pay for them.
HEAVY = {"torch", "transformers", "mobius", "onnxruntime", "onnxscript", "PIL", "ziglang", "rich", "coremltools",
         "tvm"}
HEAVY_ALLOWED = {  # modules that are themselves only imported inside functions
    "importers": {"torch", "onnxscript", "onnxruntime", "transformers", "mobius"},
    "zoo": {"torch"}, "train": {"torch"},
    "ir": {"onnxscript"}, "passes": {"onnxscript"},
}


def modules() -> list[tuple[str, Path]]:
    """(part, file) of every Python file of the package."""
    found = [(p.stem, p) for p in sorted((ROOT / "edgec").glob("*.py"))]
    folders = (p for p in (ROOT / "edgec").iterdir() if p.is_dir() and p.name not in ("__pycache__", "_native"))
    for folder in sorted(folders):
        found += [(folder.name, p) for p in sorted(folder.resolve().rglob("*.py"))]
    return found


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(dotted name, line) of everything a file imports, functions and TYPE_CHECKING blocks included."""
    names: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return names


def top_level_imports(tree: ast.Module) -> list[tuple[str, int]]:
    """Imports that run when the module is imported."""
    names: list[tuple[str, int]] = []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names += imports(node)
    return names


FILES = modules()


@pytest.mark.parametrize(("part", "path"), FILES, ids=[str(p.relative_to(ROOT)) for _, p in FILES])
def test_imports_go_one_way(part: str, path: Path) -> None:
    assert part in ALLOWED, f"new part {part!r}: decide in this file what it may import"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, line in imports(tree):
        words = name.split(".")
        assert words[0] not in ("passes", "targets"), f"{path}:{line}: import edgec.{name}, never the bare folder"
        if words[0] == "edgec" and len(words) > 1 and words[1] != part:
            assert words[1] in ALLOWED[part], f"{path}:{line}: {part} must not import {name}"
    for name, line in top_level_imports(tree):
        root = name.split(".")[0]
        assert root not in HEAVY - HEAVY_ALLOWED.get(part, set()), f"{path}:{line}: import {root} inside a function"


def test_the_check_sees_a_wrong_import() -> None:
    tree = ast.parse("def f():\n    from edgec.targets.devices import host\nimport edgec.cli\n")
    assert [name for name, _ in imports(tree)] == ["edgec.cli", "edgec.targets.devices.host"]
    assert "targets" not in ALLOWED["passes"]
    assert "cli" not in set().union(*(v for k, v in ALLOWED.items() if k != "__main__"))


def dotted(path: Path, package: Path = ROOT / "edgec") -> str:
    """The name under which code imports a file of `package`, or of a folder that is linked into it."""
    inside = package.parent if path.is_relative_to(package) else ROOT
    words = path.relative_to(inside).with_suffix("").parts
    words = words if words[0] == package.name else (package.name, *words)
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def dependencies(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> modules that it imports anywhere in its file. `from package import name` means the module of that name
    where there is one, else the package; that Python also runs the packages above a module is left out."""
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = [name for name, _ in imports(ast.parse(path.read_text(encoding="utf-8")))]
        named = {next((n for n in (name, name.rpartition(".")[0]) if n in files), "") for name in names}
        found[module] = named - {"", module}
    return found


def test_no_import_goes_round() -> None:
    """Not even inside functions: two modules that need each other are one concept, or three."""
    graph = dependencies({dotted(path): path for _, path in FILES})
    assert "edgec.importers.hf_folder" in graph["edgec.importers.hf"]
    assert "edgec.passes.normalize.fold_bn" in graph
    graphlib.TopologicalSorter(graph).prepare()


def test_a_round_of_imports_is_seen(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("from edgec import two\n")
    two.write_text("def late():\n    from edgec.one import name\n")
    graph = dependencies({"edgec.one": one, "edgec.two": two})
    assert graph == {"edgec.one": {"edgec.two"}, "edgec.two": {"edgec.one"}}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_every_module_exists_once() -> None:
    """edgec/passes and edgec/targets are links, and a module has the same identity through either name."""
    for name in ("passes", "targets"):
        link = ROOT / "edgec" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name
        assert importlib.import_module(f"edgec.{name}").__name__ == f"edgec.{name}"
        assert name not in sys.modules


def test_a_checkout_without_links_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "passes").write_text("../passes")
    with pytest.raises(ImportError, match=r"core\.symlinks"):
        edgec._check_links(tmp_path)


def test_public_names() -> None:
    """The public interface is at most ten names and each of them resolves."""
    assert len(edgec.__all__) <= 11
    for name in edgec.__all__:
        assert getattr(edgec, name) is not None
    assert set(edgec.__all__) == set(edgec._PUBLIC) | {"__version__"}
    with pytest.raises(AttributeError):
        edgec.no_such_name  # noqa: B018


def test_import_is_light() -> None:
    """`import edgec` and `edgec --help` load none of the heavy packages."""
    code = (
        "import sys, edgec.cli\n"
        f"heavy = sorted(set({sorted(HEAVY - {'rich'})!r}) & sys.modules.keys())\n"
        "sys.exit(', '.join(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_names_a_machine() -> None:
    """Nothing in the repository may depend on the place where it was written."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    bad = ["/" + word for word in ("work/", "root/", "home/")]
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".h", ".cpp", ".c", ".sh", ".txt", ".toml", ".def") and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in bad), f"{name} names a folder of one machine"
