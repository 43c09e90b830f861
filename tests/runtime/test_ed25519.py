"""The runtime's Ed25519 against RFC 8032, against the library that signs, and against a third implementation here,
which also makes the cases that no honest signer makes. All of it under AddressSanitizer and UBSan."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tests/runtime/signatures.cpp", "runtime/ed25519.cpp", "runtime/sha512.cpp")
RANDOM_CASES = 4000

# RFC 8032, section 7.1: TEST 1, 2, 3 and SHA(abc), as (public key, message, R, S).
RFC = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155",
     "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da",
     "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac",
     "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
    ("ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf", hashlib.sha512(b"abc").hexdigest(),
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589",
     "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"),
]

Case = tuple[bytes, bytes, bytes]
Point = tuple[int, int]

# -- a third implementation, in affine coordinates --------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
BASE: Point = (15112221349535400772501151409588531511454012693041857206046113283949847762202,
               46316835694926478169428394003475163141307993866256225615783033603165251855960)
NEUTRAL: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    t = D * a[0] * b[0] * a[1] * b[1] % P
    return ((a[0] * b[1] + a[1] * b[0]) * pow(1 + t, -1, P) % P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P) % P)


def times(n: int, a: Point) -> Point:
    total = NEUTRAL
    while n:
        total = add(total, a) if n & 1 else total
        a, n = add(a, a), n >> 1
    return total


def encode(a: Point, more: int = 0) -> bytes:
    """more: 1 encodes y as y + p, which RFC 8032 does not."""
    return (a[1] + more * P | (a[0] & 1) << 255).to_bytes(32, "little")


def points_of_small_order() -> list[Point]:
    """All eight: multiples of L P for any P whose result has order 8."""
    for y in range(2, 100):
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(square, (P + 3) // 8, P)
        x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
        if x * x % P != square:
            continue
        small = times(L, (x, y))
        if times(4, small) != NEUTRAL:
            return [times(i, small) for i in range(8)]
    raise AssertionError("no point of order 8")


def challenge(r: bytes, key: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + key + message).digest(), "little") % L


def forged(secret: int, nonce: int, message: bytes, torsion_key: Point = NEUTRAL, torsion_r: Point = NEUTRAL, *,
           wrap: int = 0) -> Case:
    """A signature by the key secret B + torsion_key, with R = nonce B + torsion_r and S raised by wrap L."""
    key = encode(add(times(secret, BASE), torsion_key))
    r = encode(add(times(nonce, BASE), torsion_r))
    s = (nonce + challenge(r, key, message) * secret) % L + wrap * L
    return key, r + s.to_bytes(32, "little"), message


# -- the runtime's ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    require(compiler is not None, "no C++ compiler")
    built = tmp_path_factory.mktemp("ed25519") / "signatures"
    subprocess.run([str(compiler), "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-exceptions",
                    "-fno-rtti", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *SOURCES,
                    "-o", str(built)], cwd=ROOT, check=True)
    return built


@pytest.fixture(scope="module")
def verdicts(program: Path) -> Callable[[Iterable[Case]], str]:
    def ask(cases: Iterable[Case]) -> str:
        lines = "".join(" ".join(part.hex() or "-" for part in case) + "\n" for case in cases)
        done = subprocess.run([program], input=lines, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return ask


def test_rfc_8032(verdicts: Callable[[Iterable[Case]], str]) -> None:
    cases = [(bytes.fromhex(key), bytes.fromhex(r + s), bytes.fromhex(text)) for key, text, r, s in RFC]
    assert verdicts(cases) == "1111"
    assert verdicts((key, signature, text + b"\0") for key, signature, text in cases) == "0000"


def test_messages_of_every_length(verdicts: Callable[[Iterable[Case]], str]) -> None:
    """SHA-512 pads to blocks of 128 bytes, of which R and the key take 64."""
    cases = [forged(3, 4, bytes(range(n % 256)) + bytes(n - n % 256)) for n in range(260)]
    assert verdicts(cases) == "1" * len(cases)


def test_one_bit_anywhere(verdicts: Callable[[Iterable[Case]], str]) -> None:
    """Every bit of a key, a signature and a message counts."""
    key, text, *halves = map(bytes.fromhex, RFC[2])
    signature = b"".join(halves)
    whole = key + signature + text
    cases = []
    for i in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[i // 8] ^= 1 << i % 8
        cases.append((bytes(changed[:32]), bytes(changed[32:96]), bytes(changed[96:])))
    assert verdicts(cases) == "0" * len(cases)
    assert verdicts([(key, signature, text)]) == "1"


def test_against_the_library_that_signs(
    verdicts: Callable[[Iterable[Case]], str], require: Callable[[bool, str], None]
) -> None:
    """Random keys and messages of 0 to 400 bytes: what it signs is valid, and of what is changed it says the same."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    except ImportError:
        require(False, "cryptography is not installed")
    rng = np.random.default_rng(25519)
    cases, wanted = [], ""
    for i in range(RANDOM_CASES):
        key = Ed25519PrivateKey.from_private_bytes(rng.bytes(32))
        message = rng.bytes(int(rng.integers(0, 400)))
        parts = [bytearray(key.public_key().public_bytes_raw()), bytearray(key.sign(message)), bytearray(message)]
        if i % 2:  # one bit or byte of one part
            part = parts[int(rng.integers(0, 3))] or parts[1]
            part[int(rng.integers(0, len(part)))] ^= 1 << int(rng.integers(0, 8)) if i % 4 == 1 else rng.bytes(1)[0]
        case = tuple(map(bytes, parts))
        try:
            Ed25519PublicKey.from_public_bytes(case[0]).verify(case[1], case[2])
            wanted += "1"
        except InvalidSignature:
            wanted += "0"
        cases.append(case)
    assert wanted.count("1") >= RANDOM_CASES // 2 > wanted.count("0") > RANDOM_CASES // 3
    assert verdicts(cases) == wanted


def test_what_no_honest_signer_makes(verdicts: Callable[[Iterable[Case]], str]) -> None:
    small = points_of_small_order()
    assert len(set(small)) == 8
    rng = np.random.default_rng(1)
    secrets = [int.from_bytes(rng.bytes(31), "little") for _ in range(8)]
    valid = [forged(secret, secret + 5, b"text") for secret in secrets]
    assert verdicts(valid) == "1" * 8
    # S + L signs the same for a verifier that does not look: one signature must not have two spellings.
    assert verdicts(forged(s, s + 5, b"text", wrap=n) for s in secrets for n in (1, 2, 7)) == "0" * 24
    # S = L and what lies beside it, with the R that would fit.
    key = encode(times(7, BASE))
    assert verdicts((key, encode(NEUTRAL) + s.to_bytes(32, "little"), b"") for s in (0, L - 1, L, L + 1, 2**256 - 1)) \
        == "00000"
    # R with a part of small order: only the equation with cofactor holds.
    assert verdicts(forged(s, s + 5, b"text", torsion_r=t) for s, t in zip(secrets[1:], small[1:], strict=True)) \
        == "0" * 7
    # Keys of small order, all spellings: anything would be signed by [S]B = R.
    spellings = {encode(t) for t in small} | {encode(t, 1) for t in small if t[1] < 19} | {
        (t[1] | 1 << 255).to_bytes(32, "little") for t in small}
    assert len(spellings) >= 12
    assert set(verdicts((key, encode(times(9, BASE)) + (9).to_bytes(32, "little"), b"%d" % i)
                        for key in spellings for i in range(16))) == {"0"}


def test_keys_with_a_part_of_small_order(verdicts: Callable[[Iterable[Case]], str]) -> None:
    """A signer may have such a key: [k]A must be taken with k below L, as RFC 8032 says, and then one in eight fits."""
    torsion = next(t for t in points_of_small_order() if times(4, t) != NEUTRAL)
    cases, wanted = [], ""
    for i in range(64):
        case = forged(1234567, 99 + i, b"%d" % i, torsion_key=torsion)
        wanted += "01"[challenge(case[1][:32], case[0], case[2]) % 8 == 0]
        cases.append(case)
    assert 1 <= wanted.count("1") <= 20
    assert verdicts(cases) == wanted


def test_encodings_that_are_not_rfc_8032s(verdicts: Callable[[Iterable[Case]], str]) -> None:
    """y + p fits the 255 bits for y < 19 only; x = 0 has no odd one; half of all y have no x."""
    sign = 1 << 255
    ys = [*range(P, 2**255), *(y | sign for y in range(P, 2**255)), 1 | sign, P - 1 | sign, P + 1 | sign]
    no_point = [y for y in range(2, 60) if pow((y * y - 1) * pow(D * y * y + 1, -1, P) % P, (P - 1) // 2, P) == P - 1]
    assert len(no_point) > 20
    r, s = encode(times(9, BASE)), (9).to_bytes(32, "little")
    assert set(verdicts((y.to_bytes(32, "little"), r + s, b"") for y in (*ys, *no_point))) == {"0"}
    # The same as R under a good key.
    key, signature, text = forged(77, 88, b"text")
    assert verdicts([(key, signature, text)]) == "1"
    assert set(verdicts((key, y.to_bytes(32, "little") + signature[32:], text) for y in (*ys, *no_point))) == {"0"}
