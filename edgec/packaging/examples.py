"""The example programs of a package in C and C++."""

from __future__ import annotations

from edgec.compress.formats import Dtype
from edgec.packaging.described import Described, Tensor
from edgec.packaging.header import C_TYPES, count, fill
from edgec.packaging.names import camel, literal
from edgec.packaging.template import template

# Made-up values: reals between -1 and 1, ones for everything else (ids, masks).
_VALUE = {Dtype.F32: "(float)(i * 7919 % 1000) / 500 - 1", Dtype.F16: "0x3800", Dtype.BF16: "0x3f00"}


def usage(model: Described, *, linked: bool) -> list[str]:
    """What the examples are given."""
    prompt = ["PROMPT" if model.tokenizer else "TOKEN", "COUNT"] if model.language_model else []
    return [*([] if linked else ["MODEL.edgec"]), *prompt]


def example(model: Described, language: str, *, linked: bool, program: str, header: str = "") -> str:
    """The text of the example. language: c or cpp. program: how a shell calls it. header: other than `<model>.h`."""
    words = usage(model, linked=linked)
    common = {"PROGRAM": program, "USAGE": " ".join(words), "ARGC": str(1 + len(words)), "LAST": str(len(words))}
    call = "open_linked(@M@NULL)" if linked else "open(@M@argv[1], NULL)"
    common |= {"OPEN_C": f"@ID@_{call}".replace("@M@", "&m, "),
               "OPEN_CPP": call.replace("@M@", "").replace("NULL", "nullptr").replace(", nullptr", "")}
    if model.language_model:
        text = template(f"example_lm.{language}")
        at = f"argv[{len(words) - 1}]"
        prompt = "" if model.tokenizer else f"    const int32_t token = (int32_t)atoi({at});\n"
        options = "&options" if language == "c" else f"@ID@_options((uint32_t)std::atoi(argv[{len(words)}])), say"
        what = at if model.tokenizer else "&token, 1"
        name = "generate" if model.tokenizer else "generate_tokens"
        generate = f"@ID@_{name}(&m, {what}, {options}, NULL)" if language == "c" else f"{name}({what}, {options})"
        common |= {"PROMPT": prompt, "GENERATE": generate}
    else:
        text = template(f"example.{language}")
        tensors = (*model.inputs, *model.outputs)
        buffers = [f"    const int64_t {name} = {max(1, s.min) if s.max else 0};" for name, s in model.symbols]
        buffers += [line for t in tensors for line in _buffer(model, t, language)]
        buffers += [f"    for (i = 0; i < {count(model, t)}; i++) {_flat(model, t, language)}[i] = "
                    f"{_VALUE.get(t.dtype, '1')};" for t in model.inputs]
        call = ", ".join([name for name, _ in model.symbols] + [t.id for t in tensors])
        common |= {"BUFFERS": "\n".join(buffers), "CALL": call,
                   "PRINTS": "".join(_print(model, t, language) for t in model.outputs)}
    text = fill(text, **common)
    return fill(text.replace('#include "@ID@.h"', f'#include "{header or "@ID@.h"}"'), ID=model.id)


def _arrays(model: Described, language: str) -> bool:
    return language == "cpp" and model.fixed and all(t.dims for t in (*model.inputs, *model.outputs))


def _flat(model: Described, t: Tensor, language: str) -> str:
    return f"(&{t.id}{'[0]' * len(t.dims)})" if _arrays(model, language) else t.id


def _buffer(model: Described, t: Tensor, language: str) -> list[str]:
    if _arrays(model, language):
        return [f"    static {model.id}::Model::{camel(t.id)}Array {t.id};"]
    kind = C_TYPES[t.dtype]
    if t.static is not None:
        return [f"    static {kind} {t.id}[{count(model, t)}];"]
    return [f"    {kind} *{t.id} = ({kind} *)malloc((size_t)({count(model, t)} + 1) * sizeof *{t.id});",
            f"    if (!{t.id}) return 1;"]


def _print(model: Described, t: Tensor, language: str) -> str:
    number = "%.9g" if t.dtype is Dtype.F32 else "%lld"
    cast = "(double)" if t.dtype is Dtype.F32 else "(long long)"
    return (f"    for (i = 0; !status && i < {count(model, t)}; i++)\n"
            f"        printf(\"%s {number}\\n\", {literal(t.name)}, {cast}{_flat(model, t, language)}[i]);\n")
