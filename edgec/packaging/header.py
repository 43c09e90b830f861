"""`<model>.h`: the typed interface of one model, for C99 and C++17, over edgec_runtime.h.

Everything in it is inline, so that there is nothing to link beside the runtime. It reads as if written by hand, and its
text is held by golden files (tests/golden/package).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgec import version
from edgec.compress.formats import Dtype
from edgec.packaging.described import Described, Tensor, expression, shape_text
from edgec.packaging.names import camel, literal
from edgec.packaging.prefix import renamed
from edgec.targets.toolchain import header as runtime_header

C_TYPES = {Dtype.F32: "float", Dtype.F16: "uint16_t", Dtype.BF16: "uint16_t", Dtype.I8: "int8_t", Dtype.U8: "uint8_t",
           Dtype.I32: "int32_t", Dtype.I64: "int64_t", Dtype.BOOL: "uint8_t"}

_COMMON = """\
/* The runtime's functions have names of this package, so that a program can link several. */
@RENAMED@#include "edgec_runtime.h"

#include <stdio.h>
#include <string.h>
@INCLUDES@
#ifdef __cplusplus
extern "C" {
#endif
@LINKED@@CONSTANTS@
/* A model with one session. Initialize it with {0}; what fails leaves a sentence in `message`. */
typedef struct @ID@_model {
    edgec_model *model;
    edgec_session *session;
    char message[512];
} @ID@_model;

static inline void @ID@_close(@ID@_model *m) {
    edgec_session_destroy(m->session);
    edgec_close(m->model);
    m->model = NULL, m->session = NULL;
}

/* What the model answered when something failed. */
static inline const char *@ID@_error(const @ID@_model *m) { return m->message; }

static inline edgec_status @ID@_begin_(@ID@_model *m, edgec_status status, const edgec_session_options *options) {
    if (!status) status = edgec_session_create(m->model, options, &m->session, m->message, sizeof m->message);
    if (status) @ID@_close(m);
    return status;
}

static inline edgec_status @ID@_end_(@ID@_model *m, edgec_status status) {
    if (status) snprintf(m->message, sizeof m->message, "%s", edgec_last_error(m->session));
    return status;
}

/* Opens the bundle at `path`, which is mapped and not read. options: of the session; NULL for the defaults. */
static inline edgec_status @ID@_open(@ID@_model *m, const char *path, const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return @ID@_begin_(m, edgec_open(path, NULL, &m->model, m->message, sizeof m->message), options);
}

/* Opens a bundle in memory: 64-byte aligned, there until the model is closed. */
static inline edgec_status @ID@_open_buffer(@ID@_model *m, const void *data, uint64_t bytes,
                                            const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return @ID@_begin_(m, edgec_open_buffer(data, bytes, NULL, &m->model, m->message, sizeof m->message), options);
}
"""

_LINKED = """\

/* The bundle, linked into the program (@ID@_data.c). */
extern const unsigned char @ID@_bundle[], @ID@_bundle_end[];
"""

_OPEN_SIGNED = """
/* As @ID@_open, and only a bundle that the holder of the Ed25519 key (32 bytes) has signed. Reads the whole file. What
 * was packaged without signatures refuses every key. */
static inline edgec_status @ID@_open_signed(@ID@_model *m, const char *path, const uint8_t *public_key,
                                            const edgec_session_options *options) {
    edgec_open_options wanted;
    memset(m, 0, sizeof *m);
    memset(&wanted, 0, sizeof wanted);
    if (!public_key) {
        snprintf(m->message, sizeof m->message, "public_key: found NULL, wanted 32 bytes");
        return EDGEC_ERROR_ARGUMENT;
    }
    wanted.struct_size = sizeof wanted, wanted.public_key = public_key;
    return @ID@_begin_(m, edgec_open(path, &wanted, &m->model, m->message, sizeof m->message), options);
}
"""

_OPEN_LINKED = """
/* Opens the bundle that is part of the program. */
static inline edgec_status @ID@_open_linked(@ID@_model *m, const edgec_session_options *options) {
    return @ID@_open_buffer(m, @ID@_bundle, (uint64_t)(@ID@_bundle_end - @ID@_bundle), options);
}
"""

_LANGUAGE_MODEL = """
/* Options to change: greedy, `max_tokens` tokens. */
static inline edgec_generate_options @ID@_options(uint32_t max_tokens) {
    edgec_generate_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options, options.max_tokens = max_tokens, options.top_p = 1;
    return options;
}

/* Appends the tokens, then generates; options->on_token is called with each new one. *generated may be NULL. */
static inline edgec_status @ID@_generate_tokens(@ID@_model *m, const int32_t *tokens, uint32_t n,
                                                const edgec_generate_options *options, uint32_t *generated) {
    return @ID@_end_(m, edgec_generate(m->session, tokens, n, options, generated));
}

/* Appends tokens; logits (may be NULL) receives @UPPER@_VOCAB floats for the last one. */
static inline edgec_status @ID@_step(@ID@_model *m, const int32_t *tokens, uint32_t n, float *logits) {
    return @ID@_end_(m, edgec_step(m->session, tokens, n, logits));
}

/* Forgets everything that was said. */
static inline edgec_status @ID@_reset(@ID@_model *m) { return @ID@_end_(m, edgec_session_reset(m->session)); }
"""

_TEXT = """
/* Appends a text (UTF-8), then generates, as @ID@_generate_tokens. Tokens that begin a text come where nothing was said
 * before. */
static inline edgec_status @ID@_generate(@ID@_model *m, const char *text, const edgec_generate_options *options,
                                         uint32_t *generated) {
    const int first = edgec_session_position(m->session) == 0;
    uint64_t n = 0;
    int32_t *tokens = NULL;
    edgec_status status = edgec_tokenize(m->model, text, strlen(text), first, NULL, &n);
    if (!status && n > @UPPER@_CONTEXT) status = EDGEC_ERROR_CONTEXT;
    if (!status && !(tokens = (int32_t *)malloc((size_t)(n + 1) * sizeof *tokens))) status = EDGEC_ERROR_MEMORY;
    if (!status) status = edgec_tokenize(m->model, text, strlen(text), first, tokens, &n);
    if (status) snprintf(m->message, sizeof m->message, "text: %s", edgec_status_text(status));
    else status = @ID@_generate_tokens(m, tokens, (uint32_t)n, options, generated);
    free(tokens);
    return status;
}
"""

_CPP_HEAD = """
#ifdef __cplusplus
}  // extern "C"

namespace @ID@ {

// The same, closed when it goes out of scope. One thread at a time.
class Model {
  public:
    Model() : m_() {}
    ~Model() { close(); }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    edgec_status open(const char *path, const edgec_session_options *options = nullptr) {
        close();
        return @ID@_open(&m_, path, options);
    }
    edgec_status open_signed(const char *path, const uint8_t *public_key,
                             const edgec_session_options *options = nullptr) {
        close();
        return @ID@_open_signed(&m_, path, public_key, options);
    }
    edgec_status open_buffer(const void *data, uint64_t bytes, const edgec_session_options *options = nullptr) {
        close();
        return @ID@_open_buffer(&m_, data, bytes, options);
    }
"""

_CPP_LINKED = """\
    edgec_status open_linked(const edgec_session_options *options = nullptr) {
        close();
        return @ID@_open_linked(&m_, options);
    }
"""

_CPP_LANGUAGE_MODEL = """
    // on_token(int32_t token, const char *text, size_t bytes): whether to go on. It must not throw.
    template <class OnToken>
    edgec_status generate_tokens(const int32_t *tokens, uint32_t n, edgec_generate_options options, OnToken &&on_token,
                                 uint32_t *generated = nullptr) {
        set(options, on_token);
        return @ID@_generate_tokens(&m_, tokens, n, &options, generated);
    }
    edgec_status step(const int32_t *tokens, uint32_t n, float *logits) { return @ID@_step(&m_, tokens, n, logits); }
    edgec_status reset() { return @ID@_reset(&m_); }
"""

_CPP_TEXT = """\
    template <class OnToken>
    edgec_status generate(const char *text, edgec_generate_options options, OnToken &&on_token,
                          uint32_t *generated = nullptr) {
        set(options, on_token);
        return @ID@_generate(&m_, text, &options, generated);
    }
"""

_CPP_SET = """\
    template <class OnToken>
    static void set(edgec_generate_options &options, OnToken &on_token) {
        options.user = const_cast<void *>(static_cast<const void *>(&on_token));
        options.on_token = [](void *user, int32_t token, const char *text, size_t bytes) -> int {
            return (*static_cast<OnToken *>(user))(token, text, bytes) ? 0 : 1;
        };
    }

"""

_CPP_TAIL = """
    void close() { @ID@_close(&m_); }
    const char *error() const { return @ID@_error(&m_); }
    // For the rest of the runtime's interface.
    edgec_model *model() { return m_.model; }
    edgec_session *session() { return m_.session; }

  private:
@PRIVATE@    @ID@_model m_;
};

}  // namespace @ID@
#endif
"""


def fill(text: str, **values: str) -> str:
    """`text` with each @NAME@ replaced by values[NAME]."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def model_header(model: Described, *, linked: bool) -> str:
    """The header's text. linked: the bundle is an object of the program."""
    words = {"ID": model.id, "UPPER": model.id.upper()}
    lm, symbols = model.language_model, {s.name: name for name, s in model.symbols}
    about = [f" * {role} {literal(t.name)}: {shape_text(t, symbols)}"
             for role, tensors in (("input", model.inputs), ("output", model.outputs)) for t in tensors]
    about += [f" * {name}: {s.min} to {s.max}" for name, s in model.symbols]
    if lm:
        about.append(" * A language model: tokens in, tokens out.")
    guard = f"EDGEC_PACKAGE_{model.id.upper()}_H"
    head = [f"/* {model.id}, compiled to a bundle and packaged by edgec {version.__version__}. Generated: do not edit.",
            " *", *about, " */", f"#ifndef {guard}", f"#define {guard}", "", ""]
    own_names = renamed(runtime_header().read_text(encoding="utf-8"), model.id)
    c = fill(_COMMON, RENAMED=own_names, INCLUDES="#include <stdlib.h>\n" if lm and model.tokenizer else "",
             LINKED=_LINKED if linked else "", CONSTANTS=_constants(model, symbols))
    c += _OPEN_SIGNED + (_OPEN_LINKED if linked else "")
    c += _LANGUAGE_MODEL if lm else _run(model)
    c += _TEXT if lm and model.tokenizer else ""
    cpp = _CPP_HEAD + (_CPP_LINKED if linked else "") + (_CPP_LANGUAGE_MODEL if lm else _cpp_run(model, symbols))
    cpp += _CPP_TEXT if lm and model.tokenizer else ""
    cpp += fill(_CPP_TAIL, PRIVATE=_CPP_SET if lm else "")
    return "\n".join(head) + fill(c + cpp, **words) + f"\n#endif  /* {guard} */\n"


def _constants(model: Described, symbols: dict[str, str]) -> str:
    """How many values tensors have."""
    upper, lines = model.id.upper(), [""]
    if model.language_model:
        plan = model.bundle.plan
        return f"\n#define {upper}_CONTEXT {plan.max_context}u\n#define {upper}_VOCAB {plan.vocab_size}u\n"
    arguments = sizes(model)
    for t in (*model.inputs, *model.outputs):
        open_sizes = "; -1 for sizes that the model does not take" if t.static is None and model.symbols else ""
        lines.append(f"/* Values of {literal(t.name)}{open_sizes}. */")
        if t.static is not None:
            values = " * ".join(f"(int64_t){d}" for d in t.static) or "1"
            lines.append(f"#define {upper}_{t.id.upper()}_COUNT ({values})")
            continue
        factors = " * ".join(f"(uint64_t)({expression(d, symbols)})" for d in t.dims) or "1"
        wrong = " || ".join(f"{name} < {s.min} || {name} > {s.max}" for name, s in model.symbols)
        lines.append(f"static inline int64_t {model.id}_{t.id}_count({arguments or 'void'}) {{\n"
                     + (f"    if ({wrong}) return -1;\n" if wrong else "") + f"    return (int64_t)({factors});\n}}")
    return "\n".join(lines) + "\n"


def sizes(model: Described) -> str:
    """Parameters for the sizes that inputs leave open."""
    return ", ".join(f"int64_t {name}" for name, _ in model.symbols)


def _signature(model: Described) -> str:
    tensors = [f"const {C_TYPES[t.dtype]} *{t.id}" for t in model.inputs]
    tensors += [f"{C_TYPES[t.dtype]} *{t.id}" for t in model.outputs]
    return ", ".join([*([sizes(model)] if model.symbols else []), *tensors])


def count(model: Described, t: Tensor) -> str:
    """An expression of C: how many values a tensor has."""
    if t.static is not None:
        return f"{model.id.upper()}_{t.id.upper()}_COUNT"
    return f"{model.id}_{t.id}_count({', '.join(name for name, _ in model.symbols)})"


def _run(model: Described) -> str:
    symbols = {s.name: name for name, s in model.symbols}

    def views(array: str, tensors: Sequence[Tensor], inputs: bool) -> list[str]:
        lines = [f"    edgec_tensor {array}[{max(1, len(tensors))}];", f"    memset({array}, 0, sizeof {array});"]
        for i, t in enumerate(tensors):
            at, data = f"{array}[{i}]", f"(void *){t.id}" if inputs else t.id
            kind = f"{at}.dtype = EDGEC_{t.dtype.name}, {at}.name = {literal(t.name)}"
            lines += [f"    {at}.struct_size = sizeof {at}, {kind};",
                      f"    {at}.data = {data}, {at}.bytes = (uint64_t){count(model, t)} * sizeof *{t.id};"]
            if inputs:
                shape = ", ".join(f"{at}.shape[{k}] = {expression(d, symbols)}" for k, d in enumerate(t.dims))
                lines.append(f"    {at}.rank = {len(t.dims)}{', ' + shape if shape else ''};")
        return lines

    ranges = [f"    if ({name} < {s.min} || {name} > {s.max}) {{\n"
              f'        snprintf(m->message, sizeof m->message, "{name}: found %lld, wanted {s.min} to {s.max}", '
              f"(long long){name});\n        return EDGEC_ERROR_TENSOR;\n    }}" for name, s in model.symbols]
    what = "\n/* Runs the model. Every tensor is row-major and has as many values as the counts above say. */\n"
    return "\n".join([
        f"{what}static inline edgec_status {model.id}_run({model.id}_model *m, {_signature(model)}) {{",
        *ranges, *views("in", model.inputs, True), *views("out", model.outputs, False),
        f"    return {model.id}_end_(m, edgec_run(m->session, in, {len(model.inputs)}, out, {len(model.outputs)}));",
        "}", "",
    ])


def _cpp_run(model: Described, symbols: dict[str, str]) -> str:
    names = [name for name, _ in model.symbols] + [t.id for t in (*model.inputs, *model.outputs)]
    call = f"{model.id}_run(&m_, {', '.join(names)})"
    if not model.fixed or any(not t.dims for t in (*model.inputs, *model.outputs)):
        return f"\n    edgec_status run({_signature(model)}) {{ return {call}; }}\n"
    lines, words, flat, taken = [""], [], [], set()
    for tensors, const in ((model.inputs, "const "), (model.outputs, "")):
        for t in tensors:
            kind = camel(t.id) + "Array"
            while kind in taken:
                kind += "_"
            taken.add(kind)
            bounds = "".join(f"[{d}]" for d in t.static or ())
            lines.append(f"    using {kind} = {C_TYPES[t.dtype]}{bounds};")
            words.append(f"{const}{kind} &{t.id}")
            flat.append(f"&{t.id}" + "[0]" * len(t.dims))
    lines += ["    // The compiler checks the shapes.",
              f"    edgec_status run({', '.join(words)}) {{",
              f"        return {model.id}_run(&m_, {', '.join(flat)});", "    }", ""]
    return "\n".join(lines)
