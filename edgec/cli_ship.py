"""Commands on finished bundles before they go to a device: package, sign, verify, size."""

from __future__ import annotations

import getpass
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgec.cli_build import Json
from edgec.cli_output import envelope, note, print_json, print_table
from edgec.cli_use import Bundle, PublicKey
from edgec.cli_values import bad_value, format_bytes
from edgec.env import KEY_PASSPHRASE

# As edgec.packaging.FORMATS, which is imported only when it is used; tests/packaging compares the two.
FORMAT_NAMES = "cmake, single-header, pip, wasm, swiftpm, gradle"


def register(app: typer.Typer) -> None:
    app.command()(package)
    app.command()(sign)
    app.command()(verify)
    app.command()(size)


def package(
    bundle: Annotated[
        Path, typer.Argument(help="An output folder of compile, or its model.edgec.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.", show_default=False)],
    format: Annotated[str, typer.Option("--format", help=FORMAT_NAMES)] = "cmake",
    weights: Annotated[
        str, typer.Option("--weights", help="file: mapped by the app; object: linked into it.")
    ] = "file",
    name: Annotated[
        str | None, typer.Option("--name", help="What files and identifiers are called; by default as the model.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Only the instruction sets of this device; by default those of the "
                                                  "device that the folder was compiled for.")
    ] = None,
    signatures: Annotated[bool, typer.Option("--signatures", help="The runtime can verify signatures.")] = False,
    json: Json = False,
) -> None:
    """Write a bundle and the runtime it needs as a folder that an app builds: see docs/packages.md."""
    from edgec import api

    started = time.time()
    found = api.package(bundle, output, format=format, weights=weights, name=name, target=target, signatures=signatures)
    files = {file: entry["bytes"] for file, entry in found.manifest["files"].items()}
    if json:
        print_json(envelope("package", started, folder=str(found.folder), format=found.format, name=found.name,
                            kernels=list(found.kernels), build=found.build, files=files))
        return
    print_table(("file", "bytes"), [(file, format_bytes(size)) for file, size in files.items()], str(found.folder))
    note(f"kernels: {', '.join(found.kernels)}")
    note(f"in that folder: {found.build}")


def _passphrase() -> str:
    """Asked for at the terminal. Raises EdgecError where there is none."""
    chosen = KEY_PASSPHRASE.get()
    if chosen:
        return chosen
    if not sys.stdin.isatty():
        raise bad_value("--key", "an encrypted key, and no terminal to ask for its passphrase",
                        f"the passphrase in {KEY_PASSPHRASE.name}, or a terminal")
    return getpass.getpass("Passphrase of the key: ", sys.stderr)


def sign(
    bundle: Annotated[
        Path | None, typer.Argument(help="An output folder of compile, or its model.edgec.", show_default=False)
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="Private key: PKCS8 PEM, as openssl genpkey -algorithm ed25519 writes.")
    ] = None,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", help="Only make a key pair: FILE (private) and FILE.pub.")
    ] = None,
    json: Json = False,
) -> None:
    """Sign a bundle with an Ed25519 key; an earlier signature is replaced."""
    from edgec import api, keys

    started = time.time()
    if (bundle is None) == (new_key is None) or (bundle is None) != (key is None):
        raise bad_value("BUNDLE, --key, --new-key", "another combination",
                        "BUNDLE --key KEY.pem, or --new-key FILE alone")
    if new_key is not None:
        public = keys.new_key_pair(new_key).hex()
        if json:
            print_json(envelope("sign", started, private=str(new_key), public=f"{new_key}.pub", public_key=public))
        else:
            print_table(("key", "file"), [("private: keep it to yourself", str(new_key)), ("public", f"{new_key}.pub"),
                                          ("public, as digits", public)])
        return
    assert bundle is not None
    assert key is not None
    found = api.sign(bundle, key, passphrase=_passphrase)
    if json:
        print_json(envelope("sign", started, **found))
        return
    print_table(("field", "value"), [("bundle", found["bundle"]), ("signed by", found["public_key"]),
                                     ("bytes", found["bytes"]), ("SHA-256", found["sha256"])])
    if found["replaced"]:
        note(f"replaced the signature by {found['replaced']}")


def verify(
    bundle: Bundle,
    public_key: PublicKey = None,
    json: Json = False,
) -> None:
    """Check every hash of a bundle and its signature. Exit code 6 when something does not fit."""
    from edgec import api

    started = time.time()
    found = api.verify(bundle, public_key=public_key)
    if json:
        print_json(envelope("verify", started, **found))
        return
    about = "as --public-key wants it" if found["pinned"] else "any key would do: there was no --public-key"
    print_table(("field", "value"), [
        ("bundle", found["bundle"]),
        *((f"hash of {name}", f"right, {format_bytes(size)}") for name, size in found["sections"].items()),
        *([("files of the folder", f"{found['files']}, as its manifest lists them")] if found["files"] else []),
        ("signed by", f"{found['signed_by']} ({about})" if found["signed_by"] else "nobody"),
    ])


def size(
    bundle: Annotated[
        Path | None, typer.Argument(help="An output folder of compile, its model.edgec, or a folder of package; "
                                         "nothing: only the library.", show_default=False)
    ] = None,
    layers: Annotated[int, typer.Option("--layers", min=0, help="So many of the largest weights.")] = 10,
    json: Json = False,
) -> None:
    """What the bytes of a bundle and of this machine's runtime library are: sections, weights, code per kernel."""
    from edgec import api

    started = time.time()
    found = api.size(bundle, layers=layers)
    if json:
        print_json(envelope("size", started, **found))
        return
    if "package" in found:
        _print_package(found["package"])
        return
    model = found["model"]
    if model is not None:
        _print_model(model)
    _print_library(found["library"], model["kernels"] if model else {})


def _print_model(model: dict[str, Any]) -> None:
    def share(count: int) -> tuple[str, str]:
        return format_bytes(count), f"{count / model['bytes']:.2%}"

    print_table(("section", "bytes", "share"), [
        *((name, *share(count)) for name, count in model["sections"].items()),
        ("header, table, padding", *share(model["padding"])), ("all", *share(model["bytes"]))], model["bundle"])
    rows = [(form, c["tensors"], *share(c["bytes"]), f"{8 * c['bytes'] / c['values']:.3f}")
            for form, c in model["forms"].items()]
    print_table(("stored as", "tensors", "bytes", "share", "bits per value"),
                [*rows, ("padding between", "", *share(model["weight_padding"]), "")], "\nWeights")
    if model["layers"]:
        print_table(("weight", "shape", "stored as", "bytes", "share"), [
            (w["name"], "x".join(map(str, w["shape"])), w["form"], *share(w["bytes"])) for w in model["layers"]],
            "\nLargest weights")
    if model["files"]:
        print_table(("file", "bytes"), [(name, format_bytes(count)) for name, count in model["files"].items()],
                    "\nOutput folder")


def _print_package(package: dict[str, Any]) -> None:
    print_table(("file", "bytes"), [(name, format_bytes(count)) for name, count in package["files"].items()],
                package["folder"])
    _print_kernels(package["kernels"], {})
    alone = sum(row["alone"] for row in package["kernels"].values())
    print_table(("code and constants of the runtime", "bytes"), [
        ("of one kernel each", alone), ("of several kernels", package["shared"]), ("of no kernel", package["rest"]),
        ("all, before the linker drops what the app does not call", package["object"])])


def _print_library(library: dict[str, Any], calls: dict[str, int]) -> None:
    stripped = "not known for this format" if library["stripped"] is None else format_bytes(library["stripped"])
    print_table(("runtime library", "bytes"), [
        (library["path"], format_bytes(library["bytes"])), ("without symbols", stripped)], "\n" if calls else "")
    if "kernels" not in library:
        note(f"code per kernel is not known: {library['missing']}")
        return
    kernels = library["kernels"]
    _print_kernels(kernels, calls)
    alone = sum(row["alone"] for row in kernels.values())
    print_table(("code", "bytes"), [
        ("of one kernel each", alone), ("of several kernels", library["shared"]),
        ("of all kernels", alone + library["shared"])])


def _print_kernels(kernels: dict[str, Any], calls: dict[str, int]) -> None:
    sets = sorted({isa for row in kernels.values() for isa in row["isa"]})
    print_table(("kernel", *(["calls"] if calls else []), *sets, "checks", "alone"), [
        (name, *([calls.get(name, "-")] if calls else []), *(row["isa"].get(isa, "-") for isa in sets), row["checks"],
         row["alone"]) for name, row in sorted(kernels.items())],
        "\nBytes of code that each kernel needs; alone: that no other one needs")
