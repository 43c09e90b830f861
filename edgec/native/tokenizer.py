"""From a `tokenizer.json` (or a llama2.c vocabulary) to the bytes of the TOKENIZER section (docs/tokenizer.md).

What the runtime cannot repeat exactly is refused by name: a bundle then carries no tokenizer and its user tokenizes
outside. Nothing is approximated.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError

NO_TOKEN = 0xFFFFFFFF
META = "\u2581"  # how SentencePiece writes a space; the section writes the space itself


class Pattern(IntEnum):
    """How text is cut into words; runtime/pretokenize.h."""

    NONE, GPT2, LLAMA3, QWEN2, MARKS, O200K, SPACES, WORDS = range(8)


class Flag(IntFlag):
    """Header flags; runtime/tokenizer_section.h."""

    CHARACTERS = 1
    NORMALIZE_SPACE = 2
    NORMALIZE_PREFIX = 4
    NFC = 8
    WORD_SPACE = 16
    WORD_PREFIX = 32
    FIRST_PREFIX = 64
    WHOLE_WORDS = 128
    FUSE_UNKNOWN = 256
    BYTE_RUNS = 512
    STRIP_ONE = 1024
    STRIP_FIRST = 2048


NO_FLAG = Flag(0)


class AddedFlag(IntFlag):
    LATE = 1
    STRIP_LEFT = 2
    STRIP_RIGHT = 4


NO_ADDED_FLAG = AddedFlag(0)

DIGITS_NONE, DIGITS_ALONE, DIGITS_RUNS = range(3)

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Exact pattern strings; each is written out by hand in runtime/pretokenize.cpp.
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": Pattern.GPT2,
    _WORD + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL: Pattern.LLAMA3,
    _WORD + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL: Pattern.QWEN2,
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL: Pattern.MARKS,
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL: Pattern.O200K,
}

Json = Mapping[str, Any]


def _unsupported(what: str, found: object, wanted: str) -> EdgecError:
    return EdgecError(
        "E0103", stage="tokenizer", where=what, found=str(found)[:200], wanted=wanted,
        hint="compile without a tokenizer; the bundle then takes and gives token ids, made by an external tokenizer",
    )


@dataclass
class Added:
    """A token cut out of the text before anything else (late: after normalization)."""

    id: int
    pattern: bytes
    flags: AddedFlag = NO_ADDED_FLAG


@dataclass
class TokenizerData:
    """The content of a TOKENIZER section.

    pieces: the bytes each id decodes to. lookup: ids that characters (or whole words) are found by.
    merges: (left id, right id) -> (rank, id of the two joined); the lowest rank is merged first.
    byte_piece: the id of each single byte, or None.
    """

    pieces: list[bytes]
    lookup: list[int] = field(default_factory=list)
    merges: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    byte_piece: list[int | None] = field(default_factory=lambda: [None] * 256)
    added: list[Added] = field(default_factory=list)
    special: list[int] = field(default_factory=list)
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    flags: Flag = NO_FLAG
    pattern: Pattern = Pattern.NONE
    digits: int = DIGITS_NONE
    unknown: int | None = None
    bos: int | None = None
    eos: int | None = None

    def to_bytes(self) -> bytes:
        """The section."""
        lookup = sorted(self.lookup, key=lambda i: self.pieces[i])
        added = sorted(self.added, key=lambda a: (AddedFlag.LATE in a.flags, a.pattern))
        merges = sorted((pair, value) for pair, value in self.merges.items())
        for what, ids in (("prefix", self.prefix), ("suffix", self.suffix), ("stop", self.stop)):
            if len(ids) > 16:
                raise _unsupported(f"{what} tokens", len(ids), "at most 16")
        for i, piece in enumerate(self.pieces):
            if len(piece) > 1024:
                raise _unsupported(f"piece {i}", f"{len(piece)} bytes", "at most 1024 bytes")
        for a in added:
            if not 1 <= len(a.pattern) <= 255:
                raise _unsupported(f"added token {a.id}", f"{len(a.pattern)} bytes", "1..255 bytes")

        def optional(i: int | None) -> int:
            return NO_TOKEN if i is None else i

        piece_bytes, pattern_bytes = b"".join(self.pieces), b"".join(a.pattern for a in added)
        special = sorted(set(self.special))
        header = struct.pack(
            "<24I", 1, len(self.pieces), len(lookup), len(merges), len(added), len(special), len(self.prefix),
            len(self.suffix), len(self.stop), len(piece_bytes), len(pattern_bytes), self.flags, self.pattern,
            self.digits, optional(self.unknown), optional(self.bos), optional(self.eos), *[0] * 7,
        )
        merge_start = np.zeros(len(self.pieces) + 1, np.uint32)
        np.add.at(merge_start, [left + 1 for (left, _), _ in merges], 1)
        starts, offset = [], 0
        for a in added:
            starts.append((a.id, int(a.flags), offset, len(a.pattern)))
            offset += len(a.pattern)
        words: list[Sequence[int] | np.ndarray[Any, Any]] = [
            [optional(i) for i in self.byte_piece], self.prefix, self.suffix, self.stop, special, lookup,
            np.cumsum([0, *map(len, self.pieces)]), np.cumsum(merge_start),
            np.array([(right, rank, result) for (_, right), (rank, result) in merges]).ravel(),
            np.array(starts).ravel(),
        ]
        body = b"".join(np.asarray(w, dtype="<u4").tobytes() for w in words)
        return header + body + piece_bytes + pattern_bytes


def stop_tokens(section: bytes) -> list[int]:
    """The tokens that end a text, of a TOKENIZER section that to_bytes() wrote."""
    prefix, suffix, stop = struct.unpack_from("<3I", section, 4 * 6)
    return list(struct.unpack_from(f"<{stop}I", section, 4 * (24 + 256 + prefix + suffix)))


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _flatten(component: Json | None, parts: str) -> list[Json]:
    """A component as a list: a Sequence's parts, one, or none."""
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [leaf for part in component[parts] for leaf in _flatten(part, parts)]
    return [component]


def _is_string(pattern: object, text: str) -> bool:
    return pattern == {"String": text}


def _normalizer(spec: Json, data: TokenizerData) -> None:
    parts = _flatten(spec.get("normalizer"), "normalizers")
    for part in parts:
        kind = part["type"]
        if kind == "NFC" and len(parts) == 1:
            data.flags |= Flag.NFC
        elif kind == "Prepend" and part["prepend"] == META:
            data.flags |= Flag.NORMALIZE_PREFIX
        elif kind == "Replace" and _is_string(part["pattern"], " ") and part["content"] == META:
            data.flags |= Flag.NORMALIZE_SPACE
        else:
            raise _unsupported("normalizer", dict(part), "NFC, or Prepend and Replace of a space by U+2581, or none")
    if Flag.NORMALIZE_PREFIX in data.flags and Flag.NORMALIZE_SPACE not in data.flags:
        raise _unsupported("normalizer", "Prepend without Replace", "both")


def _metaspace(part: Json, data: TokenizerData) -> None:
    if part["replacement"] != META:
        raise _unsupported("pre_tokenizer Metaspace", part["replacement"], "the replacement U+2581")
    data.flags |= Flag.WORD_SPACE
    # Older files say add_prefix_space instead of a scheme.
    scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
    data.flags |= {"always": Flag.WORD_PREFIX, "first": Flag.FIRST_PREFIX, "never": NO_FLAG}[scheme]
    if part.get("split", True):
        data.pattern = Pattern.SPACES


def _pre_tokenizer(spec: Json, data: TokenizerData) -> bool:
    """Sets the pattern; True when words are bytes (byte-level), False when they are characters."""
    parts = _flatten(spec.get("pre_tokenizer"), "pretokenizers")
    kinds = [part["type"] for part in parts]
    if not kinds:
        return False
    if kinds == ["Metaspace"]:
        _metaspace(parts[0], data)
        return False
    if kinds == ["Split"] and _is_string(parts[0]["pattern"], " ") and Flag.NORMALIZE_SPACE in data.flags:
        return False  # the normalizer has left no space to split at
    if kinds[-1:] != ["ByteLevel"] or not set(kinds[:-1]) <= {"Split", "Digits"} or len(kinds) > 2:
        raise _unsupported("pre_tokenizer", kinds, "ByteLevel after at most one Split or Digits, or Metaspace, or none")
    level = parts[-1]
    if level.get("use_regex", True):
        data.pattern = Pattern.GPT2
    if level.get("add_prefix_space", True):
        if len(parts) > 1:
            raise _unsupported("pre_tokenizer ByteLevel", "add_prefix_space", "it without another step")
        data.flags |= Flag.WORD_PREFIX
    if kinds[0] == "Digits":
        data.digits = DIGITS_ALONE if parts[0]["individual_digits"] else DIGITS_RUNS
    elif kinds[0] == "Split":
        split = parts[0]
        pattern = PATTERNS.get(split["pattern"].get("Regex", ""))
        # The known patterns match every character, so isolating matches and removing the rest are the same.
        whole = (split["behavior"], split["invert"]) in (("Isolated", False), ("Removed", True), ("Isolated", True))
        if pattern is None or not whole:
            raise _unsupported("pre_tokenizer Split", dict(split), "a pattern that edgec knows, isolated")
        if level.get("use_regex", True):
            raise _unsupported("pre_tokenizer ByteLevel", "use_regex after Split", "use_regex false")
        data.pattern = pattern
    return True


def _decoder(spec: Json, data: TokenizerData) -> None:
    parts = _flatten(spec.get("decoder"), "decoders")
    kinds = [part["type"] for part in parts]
    byte_level = Flag.CHARACTERS not in data.flags
    if byte_level and kinds == ["ByteLevel"]:
        return
    if not byte_level and kinds == ["Metaspace"] and parts[0]["replacement"] == META:
        scheme = parts[0].get("prepend_scheme", "always" if parts[0].get("add_prefix_space", True) else "never")
        data.flags |= NO_FLAG if scheme == "never" else Flag.STRIP_FIRST
        return
    if not byte_level and kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        replace, strip = parts[0], parts[3] if len(parts) == 4 else None
        if _is_string(replace["pattern"], META) and replace["content"] == " " and (
            strip is None or (strip["content"], strip["start"], strip["stop"]) == (" ", 1, 0)
        ):
            data.flags |= Flag.BYTE_RUNS | (Flag.STRIP_ONE if strip else NO_FLAG)
            return
    raise _unsupported("decoder", kinds, "ByteLevel, or Metaspace, or Replace, ByteFallback, Fuse[, Strip]")


def _post_processor(spec: Json, data: TokenizerData) -> None:
    templates = []
    for part in _flatten(spec.get("post_processor"), "processors"):
        kind = part["type"]
        if kind == "TemplateProcessing":
            templates.append(part)
        elif kind in ("RobertaProcessing", "BertProcessing"):
            data.prefix, data.suffix = [part["cls"][1]], [part["sep"][1]]
            templates.append(part)
        elif kind != "ByteLevel":  # ByteLevel only changes offsets
            raise _unsupported("post_processor", kind, "TemplateProcessing, RobertaProcessing or ByteLevel")
    if len(templates) > 1:
        raise _unsupported("post_processor", f"{len(templates)} templates", "one")
    if not templates or templates[0]["type"] != "TemplateProcessing":
        return
    seen = False
    for item in templates[0]["single"]:
        if "Sequence" in item:
            if seen or item["Sequence"]["id"] != "A":
                raise _unsupported("post_processor", templates[0]["single"], "the text once")
            seen = True
        else:
            ids = templates[0]["special_tokens"][item["SpecialToken"]["id"]]["ids"]
            (data.suffix if seen else data.prefix).extend(ids)
    if not seen:
        raise _unsupported("post_processor", templates[0]["single"], "the text once")


def _normalize_added(content: str, flags: Flag) -> str:
    """How an added token reads in normalized text."""
    if Flag.NFC in flags:
        from tokenizers import normalizers

        return str(normalizers.NFC().normalize_str(content))
    if Flag.NORMALIZE_PREFIX in flags:
        content = META + content
    return content.replace(" ", META) if Flag.NORMALIZE_SPACE in flags else content


def _added(spec: Json, data: TokenizerData, byte_level: bool) -> None:
    for token in spec.get("added_tokens", []):
        content, i = token["content"], token["id"]
        if token["single_word"]:
            raise _unsupported(f"added token {content!r}", "single_word", "no single_word")
        if content == "":
            continue  # matches nothing
        flags = AddedFlag.STRIP_LEFT if token["lstrip"] else NO_ADDED_FLAG
        flags |= AddedFlag.STRIP_RIGHT if token["rstrip"] else NO_ADDED_FLAG
        if token["normalized"]:
            flags |= AddedFlag.LATE
            content = _normalize_added(content, data.flags)
            data.pieces[i] = _bytes_of(content, byte_level, byte_alphabet())
            if Flag.NORMALIZE_SPACE in data.flags:
                content = content.replace(META, " ")
        data.added.append(Added(i, content.encode(), flags))
        if token["special"]:
            data.special.append(i)
    patterns = [(AddedFlag.LATE in a.flags, a.pattern) for a in data.added]
    if len(set(patterns)) != len(patterns):
        raise _unsupported("added_tokens", "two that read the same", "distinct contents")


def _pairs(merges: Iterable[Any]) -> Iterable[tuple[str, str]]:
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _crosses_space(merges: Iterable[tuple[str, str]]) -> bool:
    """Whether some merge puts a space after something else: then words cannot be cut at spaces beforehand."""
    return any((right.startswith(META) and left.strip(META)) or META in right.lstrip(META) for left, right in merges)


def _bytes_of(token: str, byte_level: bool, alphabet: Mapping[str, int]) -> bytes:
    if byte_level:
        return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
    return token.replace(META, " ").encode()


def _model(spec: Json, data: TokenizerData, byte_level: bool) -> None:
    model: Json = spec["model"]
    if model.get("type", "BPE") != "BPE":
        raise _unsupported("model", model["type"], "BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unsupported(f"model.{key}", model[key], "none")
    vocab: dict[str, int] = model["vocab"]
    tokens = dict(vocab) | {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
    alphabet = byte_alphabet()
    data.pieces = [b""] * (max(tokens.values(), default=-1) + 1)
    for token, i in tokens.items():
        data.pieces[i] = _bytes_of(token, byte_level, alphabet)
    merges = list(_pairs(model["merges"]))
    # Later duplicates win, as they do where the file was made.
    for rank, (left, right) in enumerate(merges):
        if byte_level and not all(c in alphabet for c in left + right):
            continue  # no text becomes such a character
        if not byte_level and " " in left + right:
            continue  # every space is U+2581 by then
        data.merges[vocab[left], vocab[right]] = rank, vocab[left + right]
    if model.get("unk_token") is not None:
        data.unknown = vocab[model["unk_token"]]
    data.flags |= Flag.FUSE_UNKNOWN if model.get("fuse_unk") else NO_FLAG
    whole = bool(model.get("ignore_merges"))
    data.flags |= Flag.WHOLE_WORDS if whole else NO_FLAG
    fallback = bool(model.get("byte_fallback"))
    if byte_level:
        if fallback:
            raise _unsupported("model.byte_fallback", True, "false in a byte-level model")
        for c, byte in alphabet.items():
            data.byte_piece[byte] = vocab.get(c)
        data.lookup = [i for t, i in vocab.items() if t and all(c in alphabet for c in t)] if whole else []
        return
    if whole:
        raise _unsupported("model.ignore_merges", True, "false where words are characters")
    # U+2581 is found as the space it stands for; a raw space never gets this far.
    data.lookup = [i for t, i in vocab.items() if len(t) == 1 and t != " "]
    if fallback:
        names = [vocab.get(f"<0x{b:02X}>") for b in range(256)]
        if any(i is not None for i in names):
            if None in names:
                raise _unsupported("model.byte_fallback", f"{names.count(None)} bytes have no token", "all 256 or none")
            data.byte_piece = names
    if Flag.BYTE_RUNS in data.flags:
        for token, i in tokens.items():
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                if i not in data.byte_piece:
                    raise _unsupported("decoder ByteFallback", token, "byte tokens that the model falls back to")
                data.pieces[i] = bytes([int(token[3:5], 16)])
    if data.pattern is Pattern.NONE and META in vocab and not _crosses_space(merges):
        data.pattern = Pattern.WORDS  # exact, and keeps words short


def parse_tokenizer(
    spec: Json, *, bos: int | None = None, eos: Sequence[int] = (), vocab_size: int | None = None
) -> TokenizerData:
    """TokenizerData from a parsed `tokenizer.json`.

    bos, eos: the model's own; generation stops at each of `eos`. vocab_size: of the model's logits.
    Raises EdgecError (EDGEC-E0103) naming the component that the runtime cannot repeat, and (EDGEC-E0101) when the
    file contradicts itself.
    """
    try:
        data = TokenizerData(pieces=[])
        if spec.get("truncation") is not None:
            raise _unsupported("truncation", spec["truncation"], "none")
        _normalizer(spec, data)
        byte_level = _pre_tokenizer(spec, data)
        if not byte_level:
            data.flags |= Flag.CHARACTERS
            if not data.flags & (Flag.NORMALIZE_SPACE | Flag.WORD_SPACE):
                raise _unsupported("pre_tokenizer", "none, and no normalizer that replaces spaces", "a known family")
        elif data.flags & Flag.NORMALIZE_SPACE:
            raise _unsupported("normalizer", "Replace before ByteLevel", "none or NFC before ByteLevel")
        _decoder(spec, data)
        _model(spec, data, byte_level)
        _added(spec, data, byte_level)
        _post_processor(spec, data)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as e:
        raise EdgecError(
            "E0101", stage="tokenizer", where="tokenizer.json", found=f"{type(e).__name__}: {e}",
            wanted="a file as the tokenizers library writes it",
        ) from e
    data.bos, data.eos, data.stop = bos, (eos[0] if eos else None), list(eos)
    _check_ids(data, vocab_size)
    return data


def _check_ids(data: TokenizerData, vocab_size: int | None) -> None:
    """Every id must be one the model has a logit for; those that only the model knows become empty pieces."""
    named = [*data.prefix, *data.suffix, *data.stop, *data.special, *(i for i in (data.bos, data.eos) if i is not None)]
    size = max([len(data.pieces), *(i + 1 for i in named)])
    if vocab_size is not None and size > vocab_size:
        raise _unsupported("vocabulary", f"ids up to {size - 1}", f"ids below the model's {vocab_size}")
    data.pieces += [b""] * (size - len(data.pieces))


def tokenizer_section(
    path: Path, *, bos: int | None = None, eos: Sequence[int] = (), vocab_size: int | None = None
) -> bytes:
    """The TOKENIZER section of a `tokenizer.json` file; arguments and errors as parse_tokenizer.

    Raises EdgecError (EDGEC-E0003) when the file cannot be read.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise EdgecError("E0003", stage="tokenizer", where=str(path), found=str(e)) from e
    except ValueError as e:
        raise EdgecError("E0101", stage="tokenizer", where=str(path), found=str(e), wanted="UTF-8 JSON") from e
    if not isinstance(spec, dict):
        raise EdgecError("E0101", stage="tokenizer", where=str(path), found=type(spec).__name__, wanted="an object")
    return parse_tokenizer(spec, bos=bos, eos=eos, vocab_size=vocab_size).to_bytes()


def parse_scored(vocabulary: Sequence[tuple[bytes, float]], *, bos: int = 1, eos: int = 2) -> TokenizerData:
    """TokenizerData of a score-based SentencePiece vocabulary, llama2.c's `tok512.bin` for one.

    vocabulary: (piece, score) by id; ids 3..258 are the bytes `<0x00>`.. `<0xFF>`. At each step the neighbours whose
    joined piece scores best are merged, the leftmost of equals: a merge table ranked by score.
    """
    n = len(vocabulary)
    if n < 259 or any(vocabulary[3 + b][0] != b"<0x%02X>" % b for b in range(256)):
        raise _unsupported("vocabulary", "no byte pieces at ids 3..258", "a llama2.c vocabulary")
    pieces = [piece for piece, _ in vocabulary]
    ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    rank = {score: r for r, score in enumerate(sorted({score for _, score in vocabulary}, reverse=True))}
    data = TokenizerData(
        pieces=pieces[:3] + [bytes([b]) for b in range(256)] + pieces[259:], byte_piece=list(range(3, 259)),
        flags=Flag.CHARACTERS | Flag.NORMALIZE_PREFIX | Flag.BYTE_RUNS | Flag.STRIP_ONE,
        special=[0, bos, eos], prefix=[bos], stop=[eos], unknown=0, bos=bos, eos=eos,
    )
    for i, (piece, score) in enumerate(vocabulary):
        if i < 259:
            continue
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None and min(left, right) >= 259:
                data.merges[left, right] = rank[score], i
    data.lookup = [i for p, i in ids.items() if i >= 259 and len(p.decode("utf-8", "replace")) == 1]
    return data
