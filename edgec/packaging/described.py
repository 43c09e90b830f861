"""What a package is made of: a bundle, with names and shapes as generated code spells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgec.compress.formats import Dtype, Format
from edgec.errors import EdgecError
from edgec.native.bundle import BundleFile, Kind, read_bundle
from edgec.native.dims import Compound, Dim, Op, Symbol
from edgec.native.plan import Port
from edgec.native.tokenizer import stop_tokens
from edgec.packaging.amalgamate import CACHES, Selection, curved
from edgec.packaging.names import identifier, package_identifier


@dataclass(frozen=True)
class Tensor:
    """An input or output. name: as the bundle has it. id: as code has it. dims: constants and expressions."""

    name: str
    id: str
    dtype: Dtype
    dims: tuple[Dim, ...]

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape when it is known and has no empty dim, else None."""
        known = tuple(d.const for d in self.dims if d.const)
        return known if len(known) == len(self.dims) else None


@dataclass(frozen=True)
class Described:
    """A bundle to be packaged. id: the model's name as an identifier. symbols: (as code has it, the symbol), of what
    the inputs leave open. language_model: then there are no tensors, but context and vocab."""

    id: str
    bundle: BundleFile
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    symbols: tuple[tuple[str, Symbol], ...]

    @property
    def path(self) -> Path:
        return self.bundle.path

    @property
    def language_model(self) -> bool:
        return self.bundle.plan.model_kind == 1

    @property
    def tokenizer(self) -> bool:
        return Kind.TOKENIZER in self.bundle.sections

    @property
    def stop_tokens(self) -> list[int]:
        """What ends a text."""
        return stop_tokens(bytes(self.bundle.sections[Kind.TOKENIZER])) if self.tokenizer else []

    @property
    def fixed(self) -> bool:
        """Whether every shape is a constant."""
        return not self.symbols and all(t.static is not None for t in (*self.inputs, *self.outputs))

    def selection(self, *, signatures: bool, without: tuple[str, ...]) -> Selection:
        """What its runtime holds."""
        plan = self.bundle.plan
        parts = {"language_models"} if self.language_model else set()
        parts |= {"tokenizer"} if self.tokenizer else set()
        parts |= {"signatures"} if signatures else set()
        return Selection(
            kernels=frozenset(call.kernel for entry in plan.entries for call in entry.calls),
            panels=frozenset(w.dtype.name for w in plan.weights if w.format is Format.PANEL16),
            parts=frozenset(parts), without=without,
            caches=frozenset(s.dtype.name for s in plan.states if s.dtype.name in CACHES),
            curved=any(curved(call.kernel, call.ints) for entry in plan.entries for call in entry.calls),
        )


def describe(path: Path, name: str | None) -> Described:
    """The bundle at `path`. name: instead of the model's own, taken as it is.

    Raises EdgecError: E0002 for a name that is no identifier, E0003, E0401, E0402 for the file.
    """
    bundle = read_bundle(path)
    if name is not None and package_identifier(name) != name:
        raise EdgecError("E0002", stage="package", where="--name", found=repr(name),
                         wanted="small letters, digits and _, a letter first, at most 48, no word of a language",
                         hint=f"--name {package_identifier(name)}")
    about = bundle.manifest.get("model")
    own = about.get("name") if isinstance(about, dict) else None
    chosen = name or package_identifier(own if isinstance(own, str) else "")
    if bundle.plan.model_kind == 1:
        return Described(chosen, bundle, (), (), ())
    entry = bundle.plan.entry("main")
    taken = ["model", "counts", "outputs", "env"]  # what wrappers call things of their own
    symbols = sorted({s for port in (*entry.inputs, *entry.outputs) for d in port.dims for s in d.symbols},
                     key=lambda s: s.name)
    named = []
    for symbol in symbols:
        taken.append(identifier(symbol.name, fallback="size", taken=taken))
        named.append((taken[-1], symbol))

    def tensors(ports: tuple[Port, ...], fallback: str) -> tuple[Tensor, ...]:
        found = []
        for port in ports:
            taken.append(identifier(port.name, fallback=fallback, taken=taken))
            found.append(Tensor(port.name, taken[-1], port.dtype, port.dims))
        return tuple(found)

    return Described(chosen, bundle, tensors(entry.inputs, "input"), tensors(entry.outputs, "output"), tuple(named))


def expression(dim: Dim, symbols: dict[str, str]) -> str:
    """A dim in C and in every language with its operators, on 64-bit integers; symbols: name -> what stands for it."""
    words = []
    for atoms, coefficient in dim.terms:
        factors = [_atom(atom, symbols) for atom in atoms]
        if coefficient != 1 or not factors:
            factors.insert(0, str(coefficient))
        words.append(" * ".join(factors))
    return " + ".join(words).replace("+ -", "- ") if words else "0"


def _atom(atom: Symbol | Compound, symbols: dict[str, str]) -> str:
    if isinstance(atom, Symbol):
        return symbols[atom.name]
    a, b = (f"({expression(d, symbols)})" for d in (atom.a, atom.b))
    return {
        Op.FLOORDIV: f"({a} / {b})", Op.CEILDIV: f"(({a} + {b} - 1) / {b})",
        Op.MAX: f"({a} > {b} ? {a} : {b})", Op.MIN: f"({a} < {b} ? {a} : {b})",
    }[atom.op]


def shape_text(tensor: Tensor, symbols: dict[str, str]) -> str:
    """`float32 [batch, 3]`, for comments."""
    words = {Dtype.F32: "float32", Dtype.F16: "float16", Dtype.BF16: "bfloat16", Dtype.I8: "int8", Dtype.U8: "uint8",
             Dtype.I32: "int32", Dtype.I64: "int64", Dtype.BOOL: "bool"}
    return f"{words[tensor.dtype]} [{', '.join(expression(d, symbols) for d in tensor.dims)}]"
