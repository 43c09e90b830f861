// libFuzzer targets; EDGEC_FUZZ_TARGET says which one this build is:
//   open       bytes as a bundle: opened, looked at, closed
//   session    opened and used as an application does
//   tokenizer  the TOKENIZER section above all, and SCRIPT as text
//   calls      SCRIPT as calls of the C interface with odd arguments (calls.h)
// An input of each is a bundle (tests/fuzz/seeds.py makes the first ones). The mutator damages what the target is about
// and makes the hashes fit again.
#include "calls.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

using namespace fuzz;

void fuzz::begin_phase(const char *) {}  // libFuzzer has a clock of its own: -timeout

namespace {

uint64_t digest(const uint8_t *data, size_t n) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ data[i]) * 0x100000001B3u;
    return h;
}

edgec_model *open_plain(const Bytes &whole) {
    edgec_open_options options = {};
    options.struct_size = sizeof options;
    options.skip_selftest = 1;
    edgec_model *model = nullptr;
    return edgec_open_buffer(whole.data, whole.n, &options, &model, nullptr, 0) == EDGEC_OK ? model : nullptr;
}

template <class With>
void with_script(const Bytes &whole, With with) {
    File parts;
    if (!split(whole.data, whole.n, &parts)) return;
    for (uint32_t i = 0; i < parts.count; i++)
        if (parts.part[i].kind == kScript) with(parts.part[i].bytes);
    release(&parts);
}

// What each target does with a bundle, and how often its mutator chooses a kind of section.
namespace targets {

struct open {
    static uint32_t weigh(uint32_t kind) { return kind == kScript ? 1 : weigh_all(kind); }
    static void run(const Bytes &whole, Statistics *s) {
        edgec_model *model = open_plain(whole);
        if (!model) return;
        use_facts(model, s);
        edgec_verify(model);
        edgec_close(model);
    }
};

struct session {
    static uint32_t weigh(uint32_t kind) { return weigh_all(kind); }
    static void run(const Bytes &whole, Statistics *s) {
        Random r = {digest(whole.data, whole.n)};
        use(&r, whole, nullptr, s);
    }
};

struct tokenizer {
    static uint32_t weigh(uint32_t kind) { return kind == edgec::SECTION_TOKENIZER || kind == kScript ? 100 : 1; }
    static void run(const Bytes &whole, Statistics *s) {
        edgec_model *model = open_plain(whole);
        if (!model) return;
        edgec_model_info info = {};
        info.struct_size = sizeof info;
        edgec_model_get_info(model, &info);
        Random r = {digest(whole.data, whole.n)};
        if (info.has_tokenizer)
            with_script(whole, [&](const Bytes &text) { use_text(r, model, info.vocab_size, text, s); });
        edgec_close(model);
    }
};

struct calls {
    static uint32_t weigh(uint32_t kind) { return kind == kScript ? 100 : 1; }
    static void run(const Bytes &whole, Statistics *s) {
        edgec_model *model = open_plain(whole);
        if (!model) return;
        with_script(whole, [&](const Bytes &b) { Calls(model, whole, {b.data, b.n}, s).run(); });
        edgec_close(model);
    }
};

}  // namespace targets

using Target = targets::EDGEC_FUZZ_TARGET;

// libFuzzer's own changes to one section, or ours.
void change(Random &r, Part *p) {
    if (r.chance(p->kind == kScript ? 10 : 50)) return damage(r, p);
    const uint64_t most = p->bytes.n + 64;
    p->bytes.data = static_cast<uint8_t *>(need(realloc(p->bytes.data, most)));
    const size_t n = LLVMFuzzerMutate(p->bytes.data, p->bytes.n, most);
    p->bytes.n = n ? n : 1;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    const Bytes whole = copy_of(data, n);
    Statistics s = {};
    Target::run(whole, &s);
    if (s.failed) __builtin_trap();
    free(whole.data);
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t most, unsigned seed) {
    Random r = {seed};
    const Bytes old = copy_of(data, n), made = mutate(r, old, Target::weigh, change);
    size_t size = n;
    if (made.n <= most && made.n) {
        memcpy(data, made.data, made.n);
        size = made.n;
    }
    free(old.data);
    free(made.data);
    return size;
}
