"""Writes runtime/unicode_tables.h from the `tokenizers` library: `python runtime/gen_unicode_tables.py`.

The tables must agree with the library that trained and first ran a tokenizer, not with a Unicode version of our
choice: one character in another class is one text with other tokens. So the library itself is asked about every
character. tests/native/test_tokenizer.py regenerates and compares.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

# Order = value in the table; 0 is everything else. NUMBER_ONLY: numeric to the `Digits` pre-tokenizer (which asks the
# Rust standard library) but not yet \p{N} to the regular expressions.
CLASSES = ("OTHER", "UPPER", "LOWER", "TITLE", "MODIFIER", "LETTER", "MARK", "NUMBER", "SPACE", "NUMBER_ONLY")
PATTERNS = {"UPPER": r"\p{Lu}+", "LOWER": r"\p{Ll}+", "TITLE": r"\p{Lt}+", "MODIFIER": r"\p{Lm}+", "LETTER": r"\p{Lo}+",
            "MARK": r"\p{M}+", "NUMBER": r"\p{N}+", "SPACE": r"\s+"}
SCALARS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic


def classes() -> list[int]:
    """The class of every code point (surrogates: OTHER)."""
    every = "".join(map(chr, SCALARS))
    table = [0] * 0x110000
    # Digits alternates between runs that are not numeric and runs that are; U+0000 begins one that is not.
    runs = pre_tokenizers.Digits(individual_digits=False).pre_tokenize_str(every)
    for run, _ in runs[1::2]:
        for c in run:
            table[ord(c)] = CLASSES.index("NUMBER_ONLY")
    for name, pattern in PATTERNS.items():
        for run, _ in pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(every):
            for c in run:
                if name != "NUMBER" and table[ord(c)] == CLASSES.index("NUMBER_ONLY"):
                    raise ValueError(f"U+{ord(c):04X} is both numeric and {name}")
                table[ord(c)] = CLASSES.index(name)
    for c in range(0x110000):
        if unicodedata.category(chr(c)) in ("Nd", "Nl", "No") and table[c] != CLASSES.index("NUMBER"):
            raise ValueError(f"U+{c:04X} is numeric but not to the library")
    return table


def decompositions() -> dict[int, str]:
    """Full canonical decompositions, without Hangul syllables."""
    nfd = normalizers.NFD()
    found = {c: nfd.normalize_str(chr(c)) for c in SCALARS if c not in HANGUL}
    return {c: d for c, d in found.items() if d != chr(c)}


def steps(full: dict[int, str]) -> list[tuple[int, int, int]]:
    """(character, first, second) with the first part perhaps decomposing further, the second never; 0: no second."""
    stable = compositions(full)
    # Where several characters have one decomposition, the one that composing gives stands for it.
    whole = {d: c for c, d in full.items() if len(d) > 1} | {full[c]: c for c in stable}
    found = []
    for c, d in sorted(full.items()):
        first = ord(d[0]) if len(d) <= 2 else whole[d[:-1]]
        found.append((c, first, ord(d[-1]) if len(d) > 1 else 0))
        if len(d) > 4 or ord(d[-1]) in full:
            raise ValueError(f"U+{c:04X} decomposes in a way that the table does not hold")
    return found


def compositions(full: dict[int, str]) -> list[int]:
    """The characters that composing gives."""
    nfc = normalizers.NFC()
    return [c for c, d in full.items() if len(d) > 1 and nfc.normalize_str(chr(c)) == chr(c)]


def combining_classes() -> list[int]:
    """Canonical combining classes; 0 where the library does not reorder the character."""
    nfd = normalizers.NFD()
    table = [0] * 0x110000
    for c in SCALARS:
        value = unicodedata.combining(chr(c))
        # U+0334 has class 1, U+0345 has class 240: one of the two trades places with any character of another class.
        for text in (chr(c) + "\u0334", "\u0345" + chr(c)) if value else ():
            if nfd.normalize_str(text) != text:
                table[c] = value
        if value in (1, 240):
            table[c] = value
    return table


def ranges(table: list[int]) -> Iterable[tuple[int, int]]:
    """(first code point, value) of every maximal range."""
    before = -1
    for c, value in enumerate(table):
        if value != before:
            yield c, value
        before = value


def array(name: str, kind: str, values: Iterable[int]) -> str:
    words = [str(v) if v < 10 else hex(v) for v in values]
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > 118:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return f"constexpr {kind} {name}[{len(words)}] = {{\n" + "\n".join([*lines, line]) + "\n};\n"


def text() -> str:
    """The header's text."""
    full = decompositions()
    table = steps(full)
    composed = set(compositions(full))
    by_parts = sorted((first, second, i) for i, (c, first, second) in enumerate(table) if c in composed)
    parts = [
        "// Generated by runtime/gen_unicode_tables.py from the tokenizers library; do not edit.",
        "#pragma once\n#include <stdint.h>\n\nnamespace edgec {\n",
        "enum CharClass : uint8_t { " + ", ".join(f"CLASS_{n} = {i}" for i, n in enumerate(CLASSES)) + " };\n",
        "// first code point << 4 | class, rising\n",
        array("kClassRanges", "uint32_t", (c << 4 | v for c, v in ranges(classes()))),
        "// first code point << 8 | canonical combining class, rising\n",
        array("kCombiningRanges", "uint32_t", (c << 8 | v for c, v in ranges(combining_classes()))),
        "// character << 42 | first part << 21 | second part or 0, rising; the first may decompose further\n",
        array("kDecompositions", "uint64_t", (c << 42 | first << 21 | second for c, first, second in table)),
        "// indices of those that also compose, by their parts\n",
        array("kCompositions", "uint16_t", (i for _, _, i in by_parts)),
        "}  // namespace edgec\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("unicode_tables.h").write_text(text(), encoding="ascii")
