"""Names of a package's own for what its runtime defines, so that a program can link several packages.

The functions of edgec.h get the model's name in front, by macros that the model's header sets: an app goes on writing
edgec_last_error, which is then the one of the header that it included last. Types stay as they are, for they are the
same. A handle of one package's is refused by the functions of another's (runtime/session.h).
"""

from __future__ import annotations

import re

_FUNCTION = re.compile(r"^EDGEC_API [^;(]*?\b(edgec_\w+)\(", re.MULTILINE)
_LAST = "#ifdef __cplusplus\n}\n#endif\n#endif\n"
_UNGUARDED = """\
#ifdef __cplusplus
}
#endif
#endif

/* Functions, outside the guard: the header of each packaged model declares them under names of its own. */
#ifdef __cplusplus
extern "C" {
#endif

"""


def renamed(header: str, name: str) -> str:
    """Directives that give the functions of edgec.h (its text) names of the package `name`."""
    return "".join(f"#undef {word}\n#define {word} {name}_{word}\n" for word in _FUNCTION.findall(header))


def unguarded(header: str) -> str:
    """edgec.h as edgec_runtime.h: its functions are declared as often as it is included."""
    first = header.index("EDGEC_API const char *edgec_version")
    if not header.endswith(_LAST):
        raise ValueError("edgec.h does not end as it used to")
    return header[:first] + _UNGUARDED + header[first : -len("#endif\n")]
