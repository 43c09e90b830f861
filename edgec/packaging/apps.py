"""Packages for apps of phones: a Swift package, and an Android library with Kotlin over JNI."""

from __future__ import annotations

import math

from edgec.compress.formats import Dtype
from edgec.packaging.described import Described, Tensor, shape_text
from edgec.packaging.header import count
from edgec.packaging.names import camel

_SWIFT = {Dtype.F32: "Float", Dtype.F16: "UInt16", Dtype.BF16: "UInt16", Dtype.I8: "Int8", Dtype.U8: "UInt8",
          Dtype.I32: "Int32", Dtype.I64: "Int64", Dtype.BOOL: "UInt8"}
# Kind of array in Kotlin (FloatArray) and JNI (jfloatArray, GetFloatArrayElements).
_JAVA = {Dtype.F32: "Float", Dtype.F16: "Short", Dtype.BF16: "Short", Dtype.I8: "Byte", Dtype.U8: "Byte",
         Dtype.I32: "Int", Dtype.I64: "Long", Dtype.BOOL: "Byte"}


def _shapes(model: Described) -> str:
    symbols = {s.name: name for name, s in model.symbols}
    return "; ".join(f"{t.id}: {shape_text(t, symbols)}" for t in (*model.inputs, *model.outputs)) + "."


def swift_words(model: Described) -> dict[str, str]:
    """What the templates of Swift want."""
    words = {"CAMEL": camel(model.id)}
    if model.language_model:
        call = f"{model.id}_generate(&model, prompt, &options, nil)"
        tokens = f"{model.id}_generate_tokens(&model, prompt, UInt32(prompt.count), &options, nil)"
        return words | {"PROMPT_TYPE": "String" if model.tokenizer else "[Int32]",
                        "GENERATE": call if model.tokenizer else tokens}
    sizes = ", ".join(name for name, _ in model.symbols)

    def values(t: Tensor) -> str:
        return str(math.prod(t.static)) if t.static is not None else f"{model.id}_{t.id}_count({sizes})"

    parameters = [f"{name}: Int64" for name, _ in model.symbols]
    parameters += [f"{t.id}: [{_SWIFT[t.dtype]}]" for t in model.inputs]
    kinds = [f"[{_SWIFT[t.dtype]}]" for t in model.outputs]
    labelled = ", ".join(f"{t.id}: {kind}" for t, kind in zip(model.outputs, kinds, strict=True))
    body = [f'try count("{t.id}", {t.id}.count, {values(t)})' for t in model.inputs]
    body += [f"var {t.id} = [{_SWIFT[t.dtype]}](repeating: 0, count: Int({values(t)}))" for t in model.outputs]
    call = ", ".join([name for name, _ in model.symbols] + [t.id for t in model.inputs] +
                     [f"&{t.id}" for t in model.outputs])
    body += [f"try check({model.id}_run(&model, {call}))",
             "return " + (model.outputs[0].id if len(kinds) == 1 else f"({', '.join(t.id for t in model.outputs)})")]
    return words | {"PARAMETERS": ", ".join(parameters), "RESULT": kinds[0] if len(kinds) == 1 else f"({labelled})",
                    "BODY": "\n".join("        " + line for line in body), "SHAPES": _shapes(model)}


def kotlin_words(model: Described) -> dict[str, str]:
    """What the templates of Kotlin want."""
    if model.language_model:
        return {"PROMPT_TYPE": "String" if model.tokenizer else "IntArray",
                "PROMPT_ARGS": "prompt.encodeToByteArray(), null" if model.tokenizer else "null, prompt"}
    sizes = [f"{name}: Long" for name, _ in model.symbols]
    arrays = [(t.id, f"{_JAVA[t.dtype]}Array") for t in (*model.inputs, *model.outputs)]
    inputs, outputs = arrays[: len(model.inputs)], arrays[len(model.inputs) :]
    names = [name for name, _ in model.symbols]
    return {
        "OUTPUTS": ", ".join(f"val {name}: {kind}" for name, kind in outputs), "SHAPES": _shapes(model),
        "PARAMETERS": ", ".join([*sizes, *(f"{name}: {kind}" for name, kind in inputs)]), "SIZES": ", ".join(names),
        "NEW": ", ".join(f"{kind}(counts[{i}].toInt())" for i, (_, kind) in enumerate(outputs)),
        "CALL": ", ".join(["handle", *names, *(name for name, _ in inputs), *(f"outputs.{n}" for n, _ in outputs)]),
        "SIZE_PARAMETERS": ", ".join(sizes),
        "NATIVE_PARAMETERS": ", ".join(["handle: Long", *sizes, *(f"{name}: {kind}" for name, kind in arrays)]),
    }


def jni_words(model: Described) -> dict[str, str]:
    """What the templates of JNI want. Lengths of arrays are checked here, where they become pointers."""
    words = {"JNI": model.id.replace("_", "_1")}
    if model.language_model:
        call = f"{model.id}_generate(of(handle), (const char *)bytes, &options, NULL)"
        text = ("        jbyte *bytes = (jbyte *)calloc((size_t)n + 1, 1);\n        if (bytes) {\n"
                "            (*env)->GetByteArrayRegion(env, text, 0, n, bytes);\n"
                f"            status = {call};\n        }}\n        free(bytes);\n")
        return words | {"TEXT": text if model.tokenizer else "        status = EDGEC_ERROR_UNSUPPORTED;\n"}
    names, tensors = [name for name, _ in model.symbols], (*model.inputs, *model.outputs)
    kinds = {t.id: _JAVA[t.dtype] for t in tensors}
    checks = [f"    if ((*env)->GetArrayLength(env, {t.id}) < {_least(model, t)}) {{\n"
              f'        fail(env, EDGEC_ERROR_ARGUMENT, "{t.id}: found too few values");\n        return;\n    }}\n'
              for t in tensors]
    gets = [f"    j{kinds[t.id].lower()} *{t.id}_ = (*env)->Get{kinds[t.id]}ArrayElements(env, {t.id}, NULL);\n"
            for t in tensors]
    releases = [f"    if ({t.id}_) (*env)->Release{kinds[t.id]}ArrayElements(env, {t.id}, {t.id}_, "
                f"{'JNI_ABORT' if t in model.inputs else '0'});\n" for t in tensors]
    given = [*names, *(f"(const void *){t.id}_" for t in model.inputs), *(f"(void *){t.id}_" for t in model.outputs)]
    return words | {
        "SIZES": "".join(f", jlong {name}" for name in names),
        "ARRAYS": "".join(f", j{kinds[t.id].lower()}Array {t.id}" for t in tensors),
        "COUNTS": ", ".join(f"(jlong)bounded({count(model, t)})" for t in model.outputs),
        "N_OUTPUTS": str(len(model.outputs)), "CHECKS": "".join(checks), "GETS": "".join(gets),
        "ALL": " && ".join(f"{t.id}_" for t in tensors), "RELEASES": "".join(releases),
        "CALL": ", ".join(given),
    }


def _least(model: Described, t: Tensor) -> str:
    return f"bounded({count(model, t)})"
