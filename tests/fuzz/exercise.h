// Everything that an application does with a bundle, with what the runtime promises about it checked on the way: memory
// is given back, no more is taken than allowed, every answer is a status. Shared as bundles.h is.
#pragma once
#include "bundles.h"
#include "edgec.h"

namespace fuzz {

constexpr uint64_t kSlack = 1 << 20, kMaxMemory = uint64_t(256) << 20;
constexpr uint64_t kMostAtOnce = 2 * kMaxMemory;  // far above what any promise below allows
constexpr uint32_t kMostStatuses = 64;

inline uint64_t current_seed;

void begin_phase(const char *what);  // the program's own; "" ends the last

// An allocator that counts, so that every case shows its leaks and its greed at once.
struct Meter {
    uint64_t live = 0, peak = 0, blocks = 0;
};
inline void *meter_allocate(void *user, size_t bytes, size_t alignment) {
    Meter &m = *static_cast<Meter *>(user);
    void *memory = nullptr;
    if (bytes > kMostAtOnce || posix_memalign(&memory, alignment, bytes)) return nullptr;
    const uint64_t live = __atomic_add_fetch(&m.live, bytes, __ATOMIC_RELAXED);
    __atomic_add_fetch(&m.blocks, 1, __ATOMIC_RELAXED);
    if (live > m.peak) m.peak = live;
    return memory;
}
inline void meter_release(void *user, void *memory, size_t bytes) {
    Meter &m = *static_cast<Meter *>(user);
    __atomic_sub_fetch(&m.live, bytes, __ATOMIC_RELAXED);
    __atomic_sub_fetch(&m.blocks, 1, __ATOMIC_RELAXED);
    free(memory);
}

struct Statistics {
    uint64_t cases, opened, sessions, ran, failed, refused[kMostStatuses];
};

inline int on_token(void *user, int32_t, const char *text, size_t bytes) {
    // The text must be readable for as long as it says.
    for (size_t i = 0; i < bytes; i++) *static_cast<uint64_t *>(user) += uint8_t(text[i]);
    return 0;
}

// Prints a broken promise and counts it.
inline bool promise(bool kept, const char *what, Statistics *s) {
    if (kept) return true;
    printf("fuzz_bundle: case --one %llu: %s\n", static_cast<unsigned long long>(current_seed), what);
    s->failed++;
    return false;
}

// The library's own list of statuses.
inline bool status_known(edgec_status status) {
    return uint32_t(status) < kMostStatuses && strcmp(edgec_status_text(status), "unknown status") != 0;
}

inline void use_text(Random &r, const edgec_model *model, uint32_t vocab, const Bytes &script, Statistics *s) {
    static const char fixed[] = "the thing in the <s>than</s>  x \xC3\xA9t\xCC\x81 'll <tool> 12\r\n\t ";
    const Bytes texts[] = {{nullptr, 0}, {reinterpret_cast<uint8_t *>(const_cast<char *>(fixed)), sizeof fixed - 1},
                           {reinterpret_cast<uint8_t *>(const_cast<char *>("\xFF")), 1}, script};
    int32_t tokens[64];
    char text[256];
    for (const Bytes &t : texts) {
        uint64_t n = 64, size = sizeof text;
        const edgec_status status =
            edgec_tokenize(model, reinterpret_cast<const char *>(t.data), t.n, int(r.below(2)), tokens, &n);
        promise(status_known(status), "tokenize gave no status", s);
        if (status == EDGEC_OK) promise(status_known(edgec_detokenize(model, tokens, n, text, &size)), "detokenize", s);
    }
    for (int32_t &token : tokens) token = int32_t(r.below(uint64_t(vocab) + 3)) - 1;
    uint64_t size = sizeof text;
    const uint64_t n = 1 + r.below(64);
    promise(status_known(edgec_detokenize(model, tokens, n, text, &size)), "detokenize gave no status", s);
}

inline bool use_language(Random &r, edgec_session *session, uint32_t vocab, Statistics *s) {
    int32_t tokens[8];
    for (int32_t &token : tokens) token = int32_t(r.below(vocab));
    float *logits = static_cast<float *>(need(malloc(4 * 4 * uint64_t(vocab))));
    uint64_t sum = 0;
    edgec_generate_options options = {};
    options.struct_size = sizeof options;
    options.max_tokens = 3, options.top_p = 1, options.on_token = on_token, options.user = &sum;
    if (r.chance(50)) options.temperature = 1, options.top_k = 5, options.top_p = 0.9f;
    const edgec_status status[] = {edgec_step(session, tokens, 3, logits), edgec_step(session, tokens, 1, nullptr),
                                   edgec_score(session, tokens, 4, logits),
                                   edgec_generate(session, tokens, 2, &options, nullptr),
                                   edgec_session_seek(session, 1), edgec_step(session, tokens + 3, 1, logits)};
    bool ran = false;
    for (const edgec_status each : status) {
        promise(status_known(each), "a language model call gave no status", s);
        ran = ran || each == EDGEC_OK;
    }
    uint64_t bytes = 0;
    if (edgec_session_save(session, nullptr, &bytes) == EDGEC_OK && bytes < kSlack) {
        void *saved = need(malloc(bytes));
        if (edgec_session_save(session, saved, &bytes) == EDGEC_OK)
            promise(edgec_session_load(session, saved, bytes) == EDGEC_OK, "a saved state does not load", s);
        free(saved);
    }
    free(logits);
    return ran;
}

inline bool use_generic(Random &r, const edgec_model *model, edgec_session *session, const edgec_model_info &info,
                        Statistics *s) {
    constexpr uint32_t kPorts = 8;
    constexpr uint64_t kElements = 1 << 16;
    edgec_tensor in[kPorts] = {}, out[kPorts] = {};
    if (info.n_inputs > kPorts || info.n_outputs > kPorts) return false;
    const bool largest = r.chance(50);
    bool fits = true;
    for (uint32_t i = 0; i < info.n_inputs; i++) {
        in[i].struct_size = sizeof in[i];
        if (edgec_model_input(model, i, &in[i]) != EDGEC_OK) return false;
        uint64_t n = 1;
        if (!largest && in[i].rank) in[i].shape[0] = 1 + int64_t(r.below(3));
        for (uint32_t k = 0; k < in[i].rank; k++) n = n > kElements ? n : n * uint64_t(in[i].shape[k]);
        fits = fits && n <= kElements;
        in[i].bytes = 8 * (fits ? n : 0);
        in[i].data = need(calloc(1, in[i].bytes + 1));
    }
    for (uint32_t i = 0; i < info.n_outputs; i++) {
        out[i].struct_size = sizeof out[i];
        fits = edgec_model_output(model, i, &out[i]) == EDGEC_OK && fits;
        out[i].data = nullptr, out[i].rank = 0;
    }
    bool ran = false;
    if (fits) {
        edgec_status status = edgec_run(session, in, info.n_inputs, out, info.n_outputs);
        promise(status_known(status), "run gave no status", s);
        if (status == EDGEC_OK) {
            for (uint32_t i = 0; i < info.n_outputs; i++) {
                uint64_t n = 8;
                for (uint32_t k = 0; k < out[i].rank; k++) n = n > kMaxMemory ? n : n * uint64_t(out[i].shape[k]);
                if (n > kMaxMemory) n = 8;  // too small: an error of the call
                out[i].data = need(malloc(n + 1)), out[i].bytes = n;
            }
            status = edgec_run(session, in, info.n_inputs, out, info.n_outputs);
            promise(status_known(status), "run gave no status", s);
            ran = status == EDGEC_OK;
        }
    }
    for (const edgec_tensor &t : in) free(t.data);
    for (const edgec_tensor &t : out) free(t.data);
    return ran;
}

// r: nullptr for what an application does that wants nothing unusual.
inline void use_session(Random *given, edgec_model *model, const edgec_model_info &info, Statistics *s) {
    Random fixed = {1}, &r = given ? *given : fixed;
    Meter meter;
    edgec_allocator allocator = {sizeof allocator, meter_allocate, meter_release, &meter};
    edgec_session_options options = {};
    options.struct_size = sizeof options;
    // A thread costs as much as the rest of a case.
    options.threads = r.chance(15) ? 2 : 1, options.max_memory = kMaxMemory, options.profile = uint32_t(r.below(2));
    options.context = given && r.chance(30) ? uint32_t(r.below(uint64_t(info.max_context) + 2)) : 0;
    options.allocator = r.chance(50) ? &allocator : nullptr;
    char message[512] = "";
    edgec_session *session = nullptr;
    begin_phase("session_create");
    edgec_status status = edgec_session_create(model, &options, &session, message, sizeof message);
    if (verbose) printf("session: %s %s\n", edgec_status_text(status), message);
    promise(status_known(status) && (status == EDGEC_OK) == (session != nullptr), "session_create gave no status", s);
    if (status == EDGEC_OK) {
        s->sessions++;
        begin_phase("run");
        const bool ran = info.kind == 1 ? use_language(r, session, info.vocab_size, s)
                                        : use_generic(r, model, session, info, s);
        if (verbose) printf("run: %s %s\n", ran ? "ran" : "refused", edgec_last_error(session));
        s->ran += ran;
        edgec_call_profile profile = {};
        profile.struct_size = sizeof profile;
        for (uint32_t i = 0; i < edgec_profile_count(session); i++)
            promise(edgec_profile_get(session, i, &profile) == EDGEC_OK && profile.layer, "no profile", s);
        edgec_session_destroy(session);
    }
    promise(meter.live == 0 && meter.blocks == 0, "the session leaked", s);
    promise(meter.peak <= kMaxMemory + kSlack, "the session took more than max_memory", s);
}

// What can be asked about a model without a session.
inline void use_facts(const edgec_model *model, Statistics *s) {
    const char *json = nullptr;
    uint64_t bytes = 0, sum = 0;
    promise(edgec_model_manifest(model, &json, &bytes) == EDGEC_OK, "no manifest", s);
    for (uint64_t i = 0; i < bytes; i++) sum += uint8_t(json[i]);
    for (uint32_t i = 0; i < 3; i++) {
        edgec_tensor tensor = {};
        tensor.struct_size = sizeof tensor;
        promise(status_known(edgec_model_input(model, i, &tensor)), "no input", s);
        promise(status_known(edgec_model_output(model, i, &tensor)), "no output", s);
    }
    if (verbose) printf("manifest: %llu\n", static_cast<unsigned long long>(sum));
}

// The key of a SIGNATURE section, copied to `key`; false where there is none.
inline bool key_of(const Bytes &bundle, uint8_t *key) {
    File parts;
    bool found = false;
    if (!split(bundle.data, bundle.n, &parts)) return false;
    for (uint32_t i = 0; i < parts.count; i++) {
        const Part &p = parts.part[i];
        if (p.kind != edgec::SECTION_SIGNATURE || p.bytes.n < 40) continue;
        memcpy(key, p.bytes.data + 8, 32);
        found = true;
    }
    release(&parts);
    return found;
}

// original: what `whole` was made of, or nullptr where that is not known.
inline void use(Random *given, const Bytes &whole, const Bytes *original, Statistics *s) {
    Random fixed = {1}, &r = given ? *given : fixed;
    Meter meter;
    edgec_allocator allocator = {sizeof allocator, meter_allocate, meter_release, &meter};
    edgec_open_options options = {};
    options.struct_size = sizeof options;
    options.skip_selftest = 1, options.verify_weights = uint32_t(r.below(4) == 0), options.allocator = &allocator;
    uint8_t key[32];
    const bool pinned = (!given || r.chance(30)) && key_of(original ? *original : whole, key);
    options.public_key = pinned ? key : nullptr;
    char message[512] = "";
    edgec_model *model = nullptr;
    begin_phase("open");
    const edgec_status status = edgec_open_buffer(whole.data, whole.n, &options, &model, message, sizeof message);
    if (verbose) printf("open: %s %s\n", edgec_status_text(status), message);
    s->cases++;
    promise(status_known(status) && (status == EDGEC_OK) == (model != nullptr), "open gave no status", s);
    promise(status == EDGEC_OK || message[0], "open refused without a reason", s);
    // Nobody but the signer makes another file that a pinned key accepts.
    const bool same = original && whole.n == original->n && memcmp(whole.data, original->data, whole.n) == 0;
    promise(!original || !pinned || status != EDGEC_OK || same, "a pinned key opened a changed file", s);
    // The handle itself comes on top of what the file may cause.
    promise(meter.peak <= whole.n + 2 * kSlack, "opening took more than the file's size and some", s);
    if (status_known(status)) s->refused[status]++;
    if (status == EDGEC_OK) {
        s->opened++;
        edgec_model_info info = {};
        info.struct_size = sizeof info;
        if (promise(edgec_model_get_info(model, &info) == EDGEC_OK, "no info", s)) {
            use_facts(model, s);
            File parts;
            Bytes script = {nullptr, 0};
            if (split(whole.data, whole.n, &parts))
                for (uint32_t i = 0; i < parts.count; i++)
                    if (parts.part[i].kind == kScript) script = parts.part[i].bytes;
            if (info.has_tokenizer) use_text(r, model, info.vocab_size, script, s);
            release(&parts);
            use_session(given, model, info, s);
            if (r.chance(3)) {
                begin_phase("run");
                Meter own;
                const edgec_allocator counted = {sizeof counted, meter_allocate, meter_release, &own};
                edgec_session_options golden = {};
                golden.struct_size = sizeof golden, golden.threads = 1, golden.allocator = &counted;
                golden.max_memory = r.chance(50) ? kMaxMemory : 1 + r.below(1 << 18);
                promise(status_known(edgec_selftest(model, &golden, message, sizeof message)),
                        "selftest gave no status", s);
                promise(own.peak <= golden.max_memory, "golden vectors took more than max_memory", s);
                promise(own.live == 0 && own.blocks == 0, "golden vectors leaked", s);
            }
        }
        edgec_close(model);
    }
    begin_phase("");
    promise(meter.live == 0 && meter.blocks == 0, "the model leaked", s);
}

}  // namespace fuzz
