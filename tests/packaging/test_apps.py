"""What can be said of packages for phones without their compilers: the native half is built, and called from Java."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgec
from tests.packaging.test_formats import greedy
from tests.packaging.test_package import Run, shown, values

LM = """
import java.nio.charset.StandardCharsets;
package_line
class Model { interface Listener { boolean say(int id, byte[] text); } }
class Native {
    native long open(String path, int threads, byte[] publicKey);
    native void close(long handle);
    native void reset(long handle);
    native void generate(long handle, byte[] text, int[] tokens, int count, float temperature, long seed,
                         Model.Listener listener);
}
public class Main {
    public static void main(String[] words) {
        System.load(words[0]);
        Native n = new Native();
        long handle = n.open(words[1], 1, null);
        StringBuilder said = new StringBuilder();
        n.generate(handle, "the thing".getBytes(StandardCharsets.UTF_8), null, 20, 0f, 0, (id, text) -> {
            said.append(new String(text, StandardCharsets.UTF_8));
            return true;
        });
        System.out.println(said);
        n.reset(handle);
        int[] seen = {0};
        n.generate(handle, null, new int[] {1, 2, 3}, 20, 0f, 0, (id, text) -> ++seen[0] < 3);
        System.out.println(seen[0]);
        try {
            n.generate(handle, null, new int[] {999999}, 2, 0f, 0, (id, text) -> true);
        } catch (IllegalStateException e) {
            System.out.println(e.getMessage());
        }
        n.close(handle);
        try {
            n.open("/nowhere", 1, null);
        } catch (IllegalStateException e) {
            System.out.println(e.getMessage());
        }
    }
}
"""

TENSORS = """
package_line
class Native {
    native long open(String path, int threads, byte[] publicKey);
    native void close(long handle);
    native long[] counts(long batch);
    native void run(long handle, long batch, float[] image, float[] probabilities);
}
public class Main {
    public static void main(String[] words) {
        System.load(words[0]);
        Native n = new Native();
        long handle = n.open(words[1], 1, null);
        float[] image = new float[192], found = new float[(int) n.counts(1)[0]];
        for (int i = 0; i < image.length; i++) image[i] = (float) (i * 7919 % 1000) / 500 - 1;
        n.run(handle, 1, image, found);
        for (float value : found) System.out.println("p " + value);
        for (long batch : new long[] {2, 5, -1}) {
            try {
                n.run(handle, batch, image, found);
                System.out.println("no error");
            } catch (IllegalStateException e) {
                System.err.println(e.getMessage());
            }
        }
        n.close(handle);
    }
}
"""


@pytest.fixture(scope="session")
def jni(run: Run, tools: None, require: Callable[[bool, str], None]) -> Callable[[Path, str, str, Path], str]:
    """jni(package, name, program, bundle): what a Java program says that calls the native half of a package."""
    compiler = shutil.which("javac")
    require(compiler is not None, "no javac (apt-get install default-jdk-headless)")
    home = Path(str(compiler)).resolve().parents[1] / "include"

    def call(folder: Path, name: str, program: str, bundle: Path) -> str:
        build = folder / "b"
        run("cmake", "-S", folder / "src" / "main" / "cpp", "-B", build,
            f"-DCMAKE_C_FLAGS=-I{home} -I{home}/linux -Wall -Wextra -Werror -O1", "-DCMAKE_CXX_FLAGS=-O1")
        run("cmake", "--build", build)
        source = folder / "java" / "Main.java"
        source.parent.mkdir()
        imports = "import java.nio.charset.StandardCharsets;\n" if "StandardCharsets" in program else ""
        text = program.replace(imports, "").replace("package_line", "")
        source.write_text(f"package edgec.{name};\n{imports}{text}")
        run(str(compiler), "-d", folder / "classes", source)
        return run(Path(str(compiler)).parent / "java", "-cp", folder / "classes", f"edgec.{name}.Main",
                   build / f"libedgec_{name}.so", bundle)

    return call


@pytest.mark.slow
def test_jni_of_a_language_model(bundles: dict[str, Path], tmp_path: Path, run: Run,
                                 jni: Callable[[Path, str, str, Path], str]) -> None:
    folder = edgec.package(bundles["lm"], tmp_path / "p", format="gradle", target="x86-64-v2").folder
    said = jni(folder, "tiny_lm", LM, bundles["lm"]).rstrip("\n").rsplit("\n", 3)
    assert said[0] == greedy(bundles["lm"], "the thing", 20)[1]
    assert said[1] == "3"
    assert "999999" in said[2]
    assert "/nowhere" in said[3]
    alignment = re.findall(r"LOAD .*(0x[0-9a-f]+)$", run("readelf", "-lW", folder / "b" / "libedgec_tiny_lm.so"), re.M)
    assert set(alignment) == {"0x4000"}


@pytest.mark.slow
def test_jni_of_tensors(bundles: dict[str, Path], tmp_path: Path, jni: Callable[[Path, str, str, Path], str]) -> None:
    folder = edgec.package(bundles["cnn"], tmp_path / "p", format="gradle", target="x86-64-v2").folder
    wanted = values(bundles["cnn"])
    said = jni(folder, "tiny_cnn", TENSORS, bundles["cnn"])
    assert "no error" not in said
    assert np.abs(shown(said) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_what_the_folders_hold(bundles: dict[str, Path], tmp_path: Path) -> None:
    """The files that their tools look for, no placeholder left, the page size, and that nobody compiled them."""
    for format, files in {
        "swiftpm": ("Package.swift", "Sources/TinyCnn/TinyCnn.swift", "Sources/CTinyCnn/include/CTinyCnn.h"),
        "gradle": ("build.gradle.kts", "settings.gradle.kts", "src/main/kotlin/edgec/tiny_cnn/Model.kt"),
    }.items():
        for name in ("cnn", "lm", "ids"):
            folder = edgec.package(bundles[name], tmp_path / format / name, format=format).folder
            for path in folder.rglob("*"):
                if path.is_file() and path.name != "model.edgec":
                    assert not re.findall(r"@[A-Z_]{2,}@", path.read_text(encoding="utf-8")), path
            for file in files:
                assert (folder / file.replace("TinyCnn", f"Tiny{name.title()}").replace("cnn", name)).is_file()
            assert "**Unchecked:**" in (folder / "README.md").read_text(encoding="utf-8")
    swift = (tmp_path / "swiftpm/cnn/Sources/TinyCnn/TinyCnn.swift").read_text(encoding="utf-8")
    assert "public func run(batch: Int64, image: [Float]) throws -> [Float]" in swift
    native = (tmp_path / "gradle/cnn/src/main/cpp/CMakeLists.txt").read_text(encoding="utf-8")
    assert "-Wl,-z,max-page-size=16384" in native
