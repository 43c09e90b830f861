"""sign, verify and size on finished bundles, and the options of the commands that open one."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgec.env import KEY_PASSPHRASE, LIBRARY
from edgec.errors import EdgecError
from edgec.native.bundle import HEADER, RECORD, Kind, read_bundle
from edgec.native.library import library_path
from edgec.targets import output
from edgec.targets.output import check_listing
from tests.runtime.bundle_surgery import Surgery
from tests.runtime.test_kernel_sizes import KERNELS
from tests.runtime.test_library import LIMIT

Cli = Callable[..., Any]
Keys = Callable[[str], Path]


@pytest.fixture
def folder(prose_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prose_bundle, tmp_path / "out"))


@pytest.fixture(scope="module")
def signed(prose_bundle: Path, tmp_path_factory: pytest.TempPathFactory, key_pair: Keys) -> Path:
    """An output folder signed by alice. Not to be changed."""
    from edgec import api

    folder = Path(shutil.copytree(prose_bundle, tmp_path_factory.mktemp("signed") / "out"))
    api.sign(folder, key_pair("alice"))
    return folder


def test_sign_and_verify(edgec_cli: Cli, folder: Path, key_pair: Keys) -> None:
    alice, bob = key_pair("alice"), key_pair("bob")
    unsigned = edgec_cli("verify", folder)
    assert unsigned.code == 0
    assert "nobody" in unsigned.out
    assert edgec_cli("verify", folder, "--public-key", f"{alice}.pub").code == 6
    made = json.loads(edgec_cli("sign", folder, "--key", alice, "--json").out)
    assert made["replaced"] == ""
    found = json.loads(edgec_cli("verify", folder, "--public-key", f"{alice}.pub", "--json").out)
    assert (found["signed_by"], found["pinned"], found["files"]) == (made["public_key"], True, 5)
    assert found["sections"]["SIGNATURE"] == 104
    assert not json.loads(edgec_cli("verify", folder / "model.edgec", "--json").out)["pinned"]
    assert edgec_cli("verify", folder, "--public-key", made["public_key"]).code == 0
    other = edgec_cli("verify", folder, "--public-key", f"{bob}.pub")
    assert other.code == 6
    assert other.err.startswith("EDGEC-E0407")
    assert edgec_cli("sign", folder / "model.edgec", "--key", bob).err.startswith("replaced")
    assert edgec_cli("verify", folder, "--public-key", f"{bob}.pub").code == 0
    assert edgec_cli("verify", folder, "--public-key", f"{alice}.pub").code == 6


def test_the_folder_stays_an_output_of_ours(edgec_cli: Cli, folder: Path, prose_lm: Path, key_pair: Keys) -> None:
    before = json.loads((folder / "manifest.json").read_text())
    assert edgec_cli("sign", folder, "--key", key_pair("alice")).code == 0
    after = json.loads((folder / "manifest.json").read_text())
    assert check_listing(folder) == 5
    assert {name for name in after["files"] if after["files"][name] != before["files"][name]} == {"model.edgec"}
    assert {k: v for k, v in after.items() if k != "files"} == {k: v for k, v in before.items() if k != "files"}
    assert edgec_cli("compile", prose_lm, "-o", folder).code == 0  # and may be replaced by the next compile
    assert read_bundle(folder / "model.edgec").signature is None


def test_a_bundle_that_is_a_link(edgec_cli: Cli, folder: Path, tmp_path: Path, key_pair: Keys) -> None:
    """The file is signed where it lies; the manifests of the folder that was named and of the file's own follow."""
    alice, bundle = key_pair("alice"), folder / "model.edgec"
    named = tmp_path / "named"
    shutil.copytree(folder, named)
    (tmp_path / "between").mkdir()
    (tmp_path / "between" / "link").symlink_to("../out/model.edgec")
    (named / "model.edgec").unlink()
    (named / "model.edgec").symlink_to(Path("..", "between", "link"))
    manifests = [f / "manifest.json" for f in (folder, named)]
    assert [edgec_cli("verify", f).code for f in (folder, named)] == [0, 0]
    assert edgec_cli("sign", named, "--key", alice).code == 0
    assert (named / "model.edgec").is_symlink()
    assert not bundle.is_symlink()
    for place in (folder, named):
        assert edgec_cli("verify", place, "--public-key", f"{alice}.pub").code == 0, place
        assert not [p for p in place.iterdir() if p.name.endswith(".part")]
    # The other way round, nobody can know who else has a link; and a file without a manifest needs none.
    before = [m.read_text() for m in manifests]
    assert edgec_cli("sign", tmp_path / "between" / "link", "--key", key_pair("bob")).code == 0
    assert [m.read_text() != b for m, b in zip(manifests, before, strict=True)] == [True, False]
    assert edgec_cli("verify", named).code == 6
    assert edgec_cli("sign", named, "--key", alice).code == 0
    assert edgec_cli("verify", named).code == 0


@pytest.mark.parametrize("place", ["named", "out"])
def test_a_manifest_that_cannot_follow_leaves_the_bundle(
    place: str, edgec_cli: Cli, folder: Path, tmp_path: Path, key_pair: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, bundle = tmp_path / "named", folder / "model.edgec"
    shutil.copytree(folder, named)
    (named / "model.edgec").unlink()
    (named / "model.edgec").symlink_to(bundle)
    files = [bundle, folder / "manifest.json", named / "manifest.json"]
    before, write = [f.read_bytes() for f in files], output.write_json

    def full(path: Path, content: dict[str, Any]) -> None:
        if path.parent == tmp_path / place:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(output, "write_json", full)
    outcome = edgec_cli("sign", named, "--key", key_pair("alice"))
    assert (outcome.code, outcome.err.splitlines()[0]) == (2, "EDGEC-E0004 unwritable output (output)")
    assert [f.read_bytes() for f in files] == before
    assert not [p for f in (folder, named) for p in f.iterdir() if ".part" in p.name]


def test_the_commands_that_open_a_bundle(edgec_cli: Cli, signed: Path, tmp_path: Path, key_pair: Keys) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a quiet evening, and the old house stood dark. " * 3)
    commands = {
        "run": ("run", signed, "-p", "It", "-n", 2),
        "eval": ("eval", signed, "--ppl", text, "--samples", 1),
        "bench": ("bench", signed, "-p", 2, "-n", 1, "-r", 1, "-t", 1),
    }
    keys = {"alice": 0, "bob": 6}
    for name, command in commands.items():
        for signer, code in keys.items():
            outcome = edgec_cli(*command, "--verify", "--public-key", f"{key_pair(signer)}.pub")
            assert outcome.code == code, (name, signer, outcome.err)
    damaged = tmp_path / "damaged.edgec"
    data = bytearray((signed / "model.edgec").read_bytes())
    data[len(data) // 2] ^= 1  # among the weights
    damaged.write_bytes(data)
    for name, command in commands.items():
        words = [damaged if word == signed else word for word in command]
        assert edgec_cli(*words).code == 0, name
        for extra in (("--verify",), ("--public-key", f"{key_pair('alice')}.pub")):
            outcome = edgec_cli(*words, *extra)
            assert outcome.code == 6, (name, extra)
            assert outcome.err.startswith("EDGEC-E0402")


def test_a_flipped_bit_in_every_section(edgec_cli: Cli, signed: Path, tmp_path: Path) -> None:
    data = (signed / "model.edgec").read_bytes()
    (count,) = struct.unpack_from("<I", data, 32)
    parts = {"header": (0, HEADER), "table": (HEADER, RECORD * count)}
    for i in range(count):
        kind, _, offset, length = struct.unpack_from("<IIQQ", data, HEADER + RECORD * i)
        parts[Kind(kind).name] = (offset, length)
    assert len(parts) == 11
    path = tmp_path / "flipped.edgec"
    for n, (name, (offset, length)) in enumerate(parts.items()):
        for place in {0, length // 2, length - 1}:
            changed = bytearray(data)
            changed[offset + place] ^= 1 << (n + place) % 8
            path.write_bytes(changed)
            outcomes = [edgec_cli("verify", path), edgec_cli("run", path, "-p", "It", "-n", 1, "--verify")]
            assert [outcome.code for outcome in outcomes] == [6, 6], (name, place)
            assert all(outcome.out == "" for outcome in outcomes)
            if name != "WEIGHTS":
                assert edgec_cli("run", path, "-p", "It", "-n", 1).code == 6, (name, place)


def test_a_stripped_signature(edgec_cli: Cli, signed: Path, tmp_path: Path, key_pair: Keys) -> None:
    surgery = Surgery((signed / "model.edgec").read_bytes())
    del surgery.sections[Kind.SIGNATURE]
    path = tmp_path / "stripped.edgec"
    path.write_bytes(surgery.build())
    assert edgec_cli("verify", path).code == 0
    outcome = edgec_cli("verify", path, "--public-key", f"{key_pair('alice')}.pub", "--json")
    assert outcome.code == 6
    assert json.loads(outcome.out)["error"]["code"] == "EDGEC-E0407"


def test_verify_looks_at_the_signature_without_a_key(edgec_cli: Cli, signed: Path, tmp_path: Path) -> None:
    surgery = Surgery((signed / "model.edgec").read_bytes())
    surgery.sections[Kind.SIGNATURE][60] ^= 4
    path = tmp_path / "forged.edgec"
    path.write_bytes(surgery.build())
    assert edgec_cli("run", path, "-p", "It", "-n", 1, "--verify").code == 0  # which asks for no signature
    assert edgec_cli("verify", path).code == 6


def test_verify_compares_the_other_files(edgec_cli: Cli, folder: Path) -> None:
    header = folder / "include" / "edgec.h"
    header.write_text(header.read_text() + " ")
    changed = edgec_cli("verify", folder)
    assert changed.code == 6
    assert "edgec.h" in changed.err
    assert edgec_cli("verify", folder / "model.edgec").code == 0
    header.unlink()
    assert edgec_cli("verify", folder).code == 6
    manifest = json.loads((folder / "manifest.json").read_text())
    outside = folder.parent / "outside"
    outside.write_text("x")
    entry = {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    for name in ("../outside", str(outside)):
        manifest["files"] = {name: entry}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert "no such file in this folder" in edgec_cli("verify", folder).err
    (folder / "manifest.json").write_text("{")
    assert edgec_cli("verify", folder).code == 6
    (folder / "manifest.json").unlink()
    assert edgec_cli("verify", folder).code == 0


def test_new_keys(edgec_cli: Cli, tmp_path: Path, require: Callable[[bool, str], None], key_pair: Keys) -> None:
    key_pair("alice")  # cryptography is there
    key = tmp_path / "key.pem"
    made = json.loads(edgec_cli("sign", "--new-key", key, "--json").out)
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert made["public"] == f"{key}.pub"
    kept = key.read_bytes(), Path(f"{key}.pub").read_bytes()
    again = edgec_cli("sign", "--new-key", key)
    assert (again.code, again.err.splitlines()[0]) == (2, "EDGEC-E0004 unwritable output (keys)")
    assert (key.read_bytes(), Path(f"{key}.pub").read_bytes()) == kept
    key.unlink()
    assert edgec_cli("sign", "--new-key", key).code == 2
    assert not key.exists(), "a private key without its public one"
    assert Path(f"{key}.pub").read_bytes() == kept[1]


def test_usage(edgec_cli: Cli, folder: Path, tmp_path: Path, key_pair: Keys) -> None:
    key, text = key_pair("alice"), tmp_path / "text"
    text.write_text("no key")
    for arguments in ((), (folder,), ("--key", key), (folder, "--new-key", tmp_path / "new"),
                      (folder, "--key", key, "--new-key", tmp_path / "new"), (folder, "--key", text),
                      (folder, "--key", tmp_path / "none"), (folder, "--key", f"{key}.pub"),
                      (tmp_path / "none", "--key", key)):
        assert edgec_cli("sign", *arguments).code == 2, arguments
    for public in (text, tmp_path / "none", "ab" * 31, key):
        assert edgec_cli("verify", folder, "--public-key", public).code == 2, public
    assert read_bundle(folder / "model.edgec").signature is None


def test_encrypted_keys(edgec_cli: Cli, folder: Path, tmp_path: Path, key_pair: Keys,
                        monkeypatch: pytest.MonkeyPatch) -> None:
    plain = key_pair("alice")
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    locked = tmp_path / "locked.pem"
    locked.write_bytes(load_pem_private_key(plain.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open")))
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    outcome = edgec_cli("sign", folder, "--key", locked)
    assert outcome.code == 2
    assert "EDGEC_KEY_PASSPHRASE" in outcome.err
    with KEY_PASSPHRASE.override("shut"):
        assert edgec_cli("sign", folder, "--key", locked).code == 2
    with KEY_PASSPHRASE.override("open"):
        assert edgec_cli("sign", folder, "--key", locked).code == 0
    assert edgec_cli("verify", folder, "--public-key", f"{plain}.pub").code == 0


def test_size_of_a_bundle(edgec_cli: Cli, prose_bundle: Path) -> None:
    found = json.loads(edgec_cli("size", prose_bundle, "--layers", 3, "--json").out)
    assert (found["schema_version"], found["command"]) == (1, "size")
    model, file = found["model"], prose_bundle / "model.edgec"
    assert model["bytes"] == file.stat().st_size == sum(model["sections"].values()) + model["padding"]
    assert model["files"]["model.edgec"] == model["bytes"]
    stored = read_bundle(file).plan.stored()
    forms = model["forms"]
    assert {form.form for form in stored} == set(forms)
    assert sum(form["tensors"] for form in forms.values()) == len(stored)
    weights = sum(form["bytes"] for form in forms.values())
    assert weights + model["weight_padding"] == model["sections"]["WEIGHTS"]
    assert [layer["bytes"] for layer in model["layers"]] == sorted((w.bytes for w in stored), reverse=True)[:3]
    assert model["kernels"]["linear"] > 1
    assert json.loads(edgec_cli("size", file, "--json").out)["model"]["files"] == {}
    text = edgec_cli("size", prose_bundle)
    assert text.code == 0
    for word in ("WEIGHTS", "Largest weights", "calls", "attention_cached", model["layers"][0]["name"]):
        assert word in text.out, word


def test_size_of_the_library(edgec_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = json.loads(edgec_cli("size", "--json").out)
    library = found["library"]
    assert found["model"] is None
    assert library["bytes"] == library_path().stat().st_size
    assert library["stripped"] <= LIMIT
    assert set(library["kernels"]) == set(KERNELS)
    copy = Path(shutil.copy(library_path(), tmp_path / "libedgec.so"))
    with LIBRARY.override(str(copy)):
        bare = edgec_cli("size")
        assert bare.code == 0
        assert "not known" in bare.err
        assert "alone" not in bare.out
        assert "kernels" not in json.loads(edgec_cli("size", "--json").out)["library"]
        copy.with_name("kernel_sizes.json").write_text('{"schema_version": 1, "missing": "a reason"}')
        assert "a reason" in edgec_cli("size").err
        for damaged in ("{", "[]", "{}", '{"kernels": {}}', "[" * 100_000):
            copy.with_name("kernel_sizes.json").write_text(damaged)
            assert edgec_cli("size").code == 2, damaged


@pytest.mark.parametrize(("manifest", "where"), [
    ('{"edgec_version": "1", "files": {"model.edgec": {}}}', "model.edgec"), ("[" * 100_000, "manifest.json")])
def test_a_manifest_that_hides_what_is_missing(manifest: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(EdgecError) as caught:
        check_listing(tmp_path)
    assert caught.value.code == "E0402"
    assert caught.value.where.endswith(where)
