"""Valid bundles that fuzzing starts from: python -m tests.fuzz.seeds FOLDER writes them, the same every time.

Each also has a section of a kind that no reader knows (SCRIPT, to be skipped): the text that a fuzz target tokenizes,
or the calls it makes. So every input of every target is one bundle, and one mutator serves them all.
"""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgec.compress.formats import Dtype
from edgec.native.bundle import write_bundle
from edgec.native.plan import Plan
from edgec.native.signing import sign_file
from tests.native.tiny_plans import (
    tiny_bits,
    tiny_cnn,
    tiny_lm,
    tiny_mixers,
    tiny_q8,
    tiny_recurrent,
    tiny_scored_tokenizer,
    tiny_siblings,
    tiny_tokenizer,
)
from tests.runtime.bundle_surgery import Surgery

SCRIPT = 100  # kScript in bundles.h
TARGETS = ("open", "session", "tokenizer", "calls")
CORPUS = Path(__file__).with_name("corpus.txt")
TEXT = "the thing in the <s>than</s>  x é\u0301 12 <tool> 's\r\n\t".encode()


def _golden() -> bytes:
    """Of the recurrent network: two outputs, compared so coarsely that any values do."""
    outputs = b"".join(struct.pack("<IIf", 1, 1, 0.0) for _ in range(2))
    return struct.pack("<IfQI", 0, 1.0, 7, 2) + outputs


def write_seeds(folder: Path) -> list[Path]:
    """Writes the bundles into `folder` and returns their paths."""
    plans: dict[str, tuple[Plan, bytes | None, bytes | None]] = {
        "cnn": (tiny_cnn(), None, None),
        "lm": (tiny_lm(), tiny_tokenizer().to_bytes(), None),
        "siblings": (tiny_siblings(), None, None),
        "bits": (tiny_bits(), None, None),
        "recurrent": (tiny_recurrent(), None, _golden()),
        "lm_f16": (tiny_lm(Dtype.F16), tiny_scored_tokenizer().to_bytes(), None),
    }
    paths = []
    for name, (plan, tokenizer, golden) in plans.items():
        path = folder / name
        write_bundle(path, plan, tokenizer=tokenizer, golden=golden, manifest={"name": name})
        path.write_bytes(with_script(path.read_bytes(), TEXT))
        paths.append(path)
    # Its key is pinned in some of its cases: then nothing but the file itself may open.
    signed = folder / "signed"
    shutil.copy(folder / "cnn", signed)
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    sign_file(signed, key.public_key().public_bytes_raw(), key.sign)
    later = []  # behind the others: corpus.txt counts them
    for name, plan in (("q8", tiny_q8()), ("mixers", tiny_mixers()),
                       ("lm_int8", tiny_lm(Dtype.I8, 32, 2)), ("lm_int4", tiny_lm(Dtype.U8, 32, 2))):
        later.append(folder / name)
        tokenizer = tiny_tokenizer().to_bytes() if plan.model_kind else None
        write_bundle(later[-1], plan, tokenizer=tokenizer, golden=None, manifest={"name": name})
        later[-1].write_bytes(with_script(later[-1].read_bytes(), TEXT))
    return [*paths, signed, *later]


def with_script(bundle: bytes, script: bytes) -> bytes:
    """The bundle with this SCRIPT instead of its own."""
    surgery = Surgery(bundle)
    surgery.sections[SCRIPT], surgery.flags[SCRIPT] = bytearray(script), 1
    return surgery.build()


def write_corpus(folder: Path) -> list[Path]:
    """A folder below `folder` for each of TARGETS: the seeds, and those that corpus.txt makes of them."""
    seeds = [path.read_bytes() for path in write_seeds(folder)]
    for target in TARGETS:
        (folder / target).mkdir(exist_ok=True)
        for i, seed in enumerate(seeds):
            (folder / target / f"seed{i}").write_bytes(seed)
    for i, line in enumerate(CORPUS.read_text().splitlines()[1:]):
        target, seed_number, script = line.split()
        (folder / target / f"found{i}").write_bytes(with_script(seeds[int(seed_number)], bytes.fromhex(script)))
    return [folder / target for target in TARGETS]


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    write_corpus(Path(sys.argv[1]))
