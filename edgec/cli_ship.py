"""Commands on finished bundles before they go to a device: sign, verify, size."""

from __future__ import annotations

import getpass
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from edgec.cli_build import Json
from edgec.cli_output import envelope, note, print_json, print_table
from edgec.cli_use import Bundle, PublicKey
from edgec.cli_values import bad_value, format_bytes
from edgec.env import KEY_PASSPHRASE


def register(app: typer.Typer) -> None:
    app.command()(sign)
    app.command()(verify)


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
