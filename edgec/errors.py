"""The one error type, its stable codes, and the process exit codes.

Every error says at which stage it arose, where (node, field, file), what was found, what was wanted, and what to do
next. `edgec explain EDGEC-E0101` expands a code. A new error is one row in `CODES`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

# Process exit codes (docs/cli.md).
EXIT_OK, EXIT_GATE, EXIT_USAGE, EXIT_UNSUPPORTED, EXIT_LIMIT = 0, 1, 2, 3, 4
EXIT_DEVICE, EXIT_INTEGRITY, EXIT_INTERNAL, EXIT_INTERRUPTED = 5, 6, 70, 130


# Characters on a terminal: of a word, above the paths people have, and of a whole line.
_WORD, _LINE = 400, 16000
_LONG_WORD = re.compile(rf"\S{{{_WORD + 1},}}")


@dataclass(frozen=True)
class Code:
    """A row of the error table: exit status, a title, and the paragraph `edgec explain` prints."""

    exit: int
    title: str
    explain: str


CODES: dict[str, Code] = {
    "E0001": Code(EXIT_INTERNAL, "internal error", "A defect in edgec itself. Please report it with the full text."),
    "E0002": Code(EXIT_USAGE, "bad setting", "An option, environment variable or configuration value cannot be used."),
    "E0003": Code(EXIT_USAGE, "missing file", "A file or folder that was named does not exist or cannot be read."),
    "E0004": Code(EXIT_USAGE, "unwritable output", "The output folder or file cannot be created or written."),
    "E0005": Code(EXIT_USAGE, "missing extra", "This command needs an optional part of edgec: pip install 'edgec[NAME]'."),
    "E0006": Code(EXIT_USAGE, "unknown target", "No device row has this name; `edgec targets` lists them."),
    "E0007": Code(EXIT_USAGE, "toolchain problem", "A compiler needed for this target is missing or failed; see `edgec doctor`."),
    "E0101": Code(EXIT_USAGE, "unreadable model", "The source is not a model that edgec reads: a Hugging Face folder, FILE.onnx, FILE.py:FACTORY."),
    "E0102": Code(EXIT_UNSUPPORTED, "untraceable model", "PyTorch could not export the module as one graph."),
    "E0103": Code(EXIT_UNSUPPORTED, "unsupported architecture", "The model family is not one that this door can import."),
    "E0104": Code(EXIT_UNSUPPORTED, "import differs from the original", "The imported graph does not compute what the original computes; edgec stops rather than be silently wrong."),
    "E0105": Code(EXIT_UNSUPPORTED, "import that cannot be compared", "The original gives no number that the imported graph could be compared with: an output is NaN for every input tried."),
    "E0201": Code(EXIT_INTERNAL, "stage specification violated", "After a pass the graph is not what the next stage relies on."),
    "E0202": Code(EXIT_INTERNAL, "pass changed the numbers", "EDGEC_CHECK found that a pass changed the model's outputs beyond its tolerance."),
    "E0203": Code(EXIT_INTERNAL, "pass contract broken", "A pass reported `modified` wrongly or violated its own conditions."),
    "E0301": Code(EXIT_UNSUPPORTED, "unsupported operators", "The backend has no kernel or decomposition for some operators; all of them are listed."),
    "E0302": Code(EXIT_UNSUPPORTED, "unsupported shape", "A shape cannot be determined or planned before running."),
    "E0303": Code(EXIT_LIMIT, "memory budget exceeded", "The planned peak memory is above --memory-budget."),
    "E0304": Code(EXIT_UNSUPPORTED, "format without a kernel", "The backend could only unpack these weights at load, and they are too large for that; choose a format that it reads, or the native backend."),
    "E0401": Code(EXIT_INTEGRITY, "not a usable bundle", "The file is not an edgec bundle, is damaged, or needs a newer reader."),
    "E0402": Code(EXIT_INTEGRITY, "hash mismatch", "The bundle's bytes do not match its hashes: it was damaged or changed."),
    "E0403": Code(EXIT_USAGE, "wrong argument at run time", "A tensor name, shape, dtype, token or position does not fit the model."),
    "E0404": Code(EXIT_LIMIT, "context exceeded", "Prompt plus generated tokens do not fit the session's context."),
    "E0405": Code(EXIT_LIMIT, "out of memory", "The session would need more than max_memory, or an allocation failed."),
    "E0406": Code(EXIT_INTERNAL, "self-test failed", "A kernel of this machine's instruction set disagrees with the scalar one."),
    "E0407": Code(EXIT_INTEGRITY, "signature not valid", "The bundle is not signed, is signed by another key than the one asked for, or was changed after it was signed."),
    "E0501": Code(EXIT_GATE, "gate failed", "A measured value is outside the limit that was asked for."),
    "E0502": Code(EXIT_USAGE, "unusable evaluation data", "The text, images or input file given for evaluation cannot be used."),
    "E0503": Code(EXIT_USAGE, "random weights", "The model comes from the zoo, where nobody has trained it: there is no quality to measure."),
    "E0601": Code(EXIT_DEVICE, "device not reachable", "The device of --device, the tool that reaches it (ssh, adb, qemu, node) or the compiler for its program is missing or does not answer."),
    "E0602": Code(EXIT_DEVICE, "run on the device failed", "The device was reached, and the program or a command there failed, or what came back is not what the program prints."),
}


class EdgecError(Exception):
    """An error to show to the user.

    code: a key of CODES. stage: import, pass NAME, plan, bundle, run, ... where: node, field or file.
    found / wanted: the offending and the acceptable value. hint: what to do next.
    """

    def __init__(
        self, code: str, *, stage: str, where: str = "", found: str = "", wanted: str = "", hint: str = ""
    ) -> None:
        if code not in CODES:
            raise KeyError(f"error code {code} is not declared in edgec.errors.CODES")
        self.code, self.stage, self.where = code, stage, where
        self.found, self.wanted, self.hint = found, wanted, hint
        super().__init__(self.render())

    @property
    def exit_code(self) -> int:
        return CODES[self.code].exit

    def render(self) -> str:
        parts = [f"EDGEC-{self.code} {CODES[self.code].title} ({self.stage})"]
        for label, text in (
            ("at", self.where), ("found", self.found), ("wanted", self.wanted), ("next", self.hint)
        ):
            if text:
                parts.append(f"  {label}: {printable(text)}")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, str]:
        return {
            "code": f"EDGEC-{self.code}", "title": CODES[self.code].title, "stage": self.stage,
            "where": self.where, "found": self.found, "wanted": self.wanted, "next": self.hint,
        }


def printable(text: str) -> str:
    """`text` on one line for a terminal: names come from files, may hold escape sequences and be of any length."""
    line = " ".join(part.strip() for part in text.splitlines() if part.strip()) if "\n" in text else text
    line = _LONG_WORD.sub(lambda word: _shortened(word[0], _WORD), _shortened(line, _LINE))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _shortened(text: str, limit: int) -> str:
    """Both ends of a text that is longer than `limit`: names often differ in their last characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-(limit // 4) :]}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`choices` as a sentence, nearest name first when there is a near miss."""
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names)
    return f"did you mean {near[0]!r}? Known: {listed}" if near else f"known: {listed}"


def missing_extra(extra: str, module: str, stage: str) -> EdgecError:
    """The error for an optional dependency that is not installed."""
    return EdgecError(
        "E0005", stage=stage, where=f"import {module}", found="not installed", wanted=f"the extra [{extra}]",
        hint=f"pip install 'edgec[{extra}]'",
    )
