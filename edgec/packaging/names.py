"""Names from models as they may stand in generated files.

A name comes from a file that somebody else made. It becomes an identifier of a closed alphabet, or a string literal in
which everything unusual is escaped; it never reaches a comment, a file name or a build file in any other way.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

_LONGEST = 48
# Words of C, C++, Swift, Kotlin, Python and TypeScript, what generated code itself calls things, macros of compilers
# (linux), and prefixes of C functions that would come out as those of a system header (sem_open, shm_open, ...).
_PLAIN = re.compile(r"[A-Za-z0-9_.:/ -]")
_TAKEN = frozenset(re.findall(r"\w+", """
aio alignas alignof and any argc argv array as asm assert async atomic auto await bool boolean break by byte case
catch char char8_t class close companion const constexpr constructor context continue count data def default defer del
delegate delete dl dlopen do double dynamic edgec elif else enum epoll errno error except expect explicit export
extends extension extern external false far file final finally float for foreign friend from fun func function
generate get global goto guard handle i i386 if implements import in infix init inline inout int interface internal is
it lambda lateinit let linux long m main message module mq mutable namespace native near new nil noexcept none
nonlocal noreturn not null nullptr object open operator options or out override package pass pointer private prompt
protected protocol pthread public raise real register repeat reset restrict result return run sealed self sem session
set shape shm short signed sizeof small static status std stderr stdin stdout step string struct subscript super
suspend switch symbol t template tensor text this thread throw throws timer token tokens trait true try type typealias
typedef typename typeof uint union unix unsafe unsigned using val value var vararg vector virtual vocab void volatile
wchar_t when where while with xor yield
abs acos asin atan bitand bitor bound bsearch calloc ceil check clock compl cos decltype difftime div dup exit exp fabs
fail fileprivate floor fmod found fprintf free getenv index isnan link log malloc memchr memcmp memcpy memmove memset
pause pipe pow printf putenv puts qsort rand random read remove rename rindex round sin sink snprintf sqrt srand srandom
stat strcmp strcpy strlen strncmp system tan time truncate typeid unlink write
"""))
# A package of Python of such a name would take the place of another one; files and folders of packages have the last.
_KNOWN = frozenset([*sys.stdlib_module_names, *re.findall(r"\w+", """
coremltools cv2 datasets flask jax matplotlib mlx numpy onnx onnxruntime pandas pillow pip requests safetensors scipy
setuptools sklearn tensorflow tokenizers torch torchvision transformers tvm wheel
bundle build dist example int8 src
""")])


def identifier(name: str, *, fallback: str, taken: Iterable[str] = ()) -> str:
    """An identifier of every language that packages are written for: [a-z][a-z0-9_]*, at most 52 characters.

    fallback: what a name becomes of which nothing is left. taken: identifiers that are used already; one of them gets a
    number. Words that mean something in one of the languages, and names that begin like ours, get `fallback_` in front.
    """
    word = re.sub(r"[^a-z0-9]+", "_", name.lower().encode("ascii", "replace").decode()).strip("_")[:_LONGEST].strip("_")
    if not word:
        word = fallback
    elif not word[0].isalpha() or word in _TAKEN or word.startswith("edgec"):
        word = f"{fallback}_{word}"[:_LONGEST]
    used, found, number = set(taken), word, 2
    while found in used:
        found, number = f"{word}_{number}", number + 1
    return found


def package_identifier(name: str) -> str:
    """An identifier for a whole package: also no module that Python programs import, and no file beside it."""
    # One that ends as another with what prefix.py puts behind names would define the other's functions.
    word = re.sub(r"_edgec(?=_|$)", "_model", identifier(name, fallback="model"))
    return f"model_{word}"[:_LONGEST] if word in _KNOWN else word


def camel(name: str) -> str:
    """`logits_of_it` -> `LogitsOfIt`; for identifiers as `identifier` makes them."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def literal(text: str) -> str:
    """A string literal of C and C++, the quotes included, for any text: what is not plain is escaped byte by byte,
    three digits each, so that it ends neither the literal nor a comment around it."""
    words = ((chr(b), b) for b in text.encode())
    return '"' + "".join(c if _PLAIN.match(c) else f"\\{b:03o}" for c, b in words) + '"'
