"""Ed25519 keys in the files that openssl writes. Private ones need the package cryptography, public ones nothing."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgec.errors import EdgecError, missing_extra

_STAGE = "keys"
# DER of a SubjectPublicKeyInfo of this algorithm (RFC 8410) before its last 32 bytes, the key.
_PUBLIC_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s+(.*?)-----END \1-----", re.DOTALL)
_LARGEST = 1 << 16


@dataclass(frozen=True)
class PrivateKey:
    """public: 32 bytes. sign: message -> 64 bytes."""

    public: bytes
    sign: Callable[[bytes], bytes]


def _read(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError as e:
        raise EdgecError("E0003", stage=_STAGE, where=option, found=f"{path}: {e.strerror or e}",
                         wanted="a key file") from e


def public_key(text: str, option: str = "--public-key") -> bytes:
    """The 32 bytes of a public key: `text` is 64 hexadecimal digits, or the path of a PEM file.

    Raises EdgecError: E0003 no such file, E0002 another kind of key.
    """
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    data = _read(Path(text), option)
    found = _PEM.search(data)
    kind = found[1].decode() if found else "no PEM file"
    if found and kind == "PUBLIC KEY":
        with contextlib.suppress(binascii.Error):
            der = base64.b64decode(b"".join(found[2].split()), validate=True)
            if der.startswith(_PUBLIC_PREFIX) and len(der) == len(_PUBLIC_PREFIX) + 32:
                return der[-32:]
        kind = "a public key of another algorithm"
    raise EdgecError("E0002", stage=_STAGE, where=option, found=f"{text}: {kind}",
                     wanted="an Ed25519 public key: a PEM file, or 64 hexadecimal digits",
                     hint="openssl pkey -in KEY.pem -pubout -out KEY.pub" if "PRIVATE" in kind else "")


def private_key(path: Path, passphrase: Callable[[], str] | None = None, option: str = "--key") -> PrivateKey:
    """The key in a PKCS8 PEM file. passphrase: called when the file is encrypted; None: there is none to give.

    Raises EdgecError: E0003 no such file, E0002 another kind of key, or one that the passphrase does not open, E0005
    without cryptography.
    """
    data = _read(path, option)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as e:
        raise missing_extra("sign", "cryptography", _STAGE) from e

    def refuse(found: str, hint: str = "") -> EdgecError:
        return EdgecError("E0002", stage=_STAGE, where=option, found=f"{path}: {found}",
                          wanted="an Ed25519 private key in a PEM file (PKCS8)", hint=hint)

    password = None
    if b"BEGIN ENCRYPTED PRIVATE KEY" in data:
        if passphrase is None:
            raise refuse("encrypted, and no passphrase")
        password = passphrase().encode()
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        if password is not None:
            raise refuse("encrypted with another passphrase, or damaged") from e
        raise refuse("no private key that can be read",
                     "openssl genpkey -algorithm ed25519 -out KEY.pem, or edgec sign --new-key KEY.pem") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise refuse(f"a key of another algorithm ({type(key).__name__.lstrip('_')})")
    return PrivateKey(key.public_key().public_bytes_raw(), key.sign)


def new_key_pair(path: Path) -> bytes:
    """Makes a private key in `path`, which only its owner may read, and the public one in `path`.pub; the public one.

    Raises EdgecError: E0004 when one of the files exists or cannot be written, E0005 without cryptography.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )
    except ImportError as e:
        raise missing_extra("sign", "cryptography", _STAGE) from e
    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + ".pub")
    files = ((path, 0o600, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
             (public, 0o644, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)))
    made: list[Path] = []
    try:
        for file, mode, text in files:
            # Never over a file that is there: it may be the only copy of a key.
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(file)
            with os.fdopen(handle, "wb") as stream:
                stream.write(text)
    except OSError as e:
        for file in made:
            file.unlink()
        raise EdgecError("E0004", stage=_STAGE, where="--new-key", found=f"{e.filename}: {e.strerror}",
                         wanted="two new files, KEY and KEY.pub, in a folder that can be written") from e
    return key.public_key().public_bytes_raw()
