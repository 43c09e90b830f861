// Feeds damaged bundles to the runtime: fuzz_bundle BUNDLE... [--seed S] [--count N] [--one SEED]
//
// Case number i is made from bundle i modulo their count and nothing else, so --one repeats it exactly. Most cases get
// correct hashes again, or nothing behind the hash check would ever be reached. A case fails when the runtime breaks a
// promise: memory not given back, more taken than allowed, an answer that is no status, or too much time. What a
// sanitizer finds ends the program after naming the case.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "../../runtime/sha256.h"
#include "edgec.h"

extern "C" void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));

namespace {

constexpr uint32_t kMaxSections = 16, kPlan = 3, kWeights = 4, kTokenizer = 5, kSignature = 9, kKinds = 10;
constexpr uint64_t kSlack = 1 << 20, kMaxMemory = uint64_t(256) << 20;
// No phase of a case may take longer, under sanitizers too. For opening and for creating a session that is the
// runtime's promise, since both are bounded by the file. How long a legal plan computes is the plan's own affair:
// what is made here of two tiny models stays a hundred times below the limit, so a hang is seen.
constexpr long kSeconds = 1;

struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    uint64_t below(uint64_t n) { return n ? next() % n : 0; }
    bool chance(uint32_t percent) { return below(100) < percent; }
};

struct Bytes {
    uint8_t *data;
    uint64_t n;
};

struct Part {
    uint32_t kind, flags;
    Bytes bytes;
};

struct File {
    Part part[kMaxSections];
    uint32_t count;
};

uint64_t current_seed;
bool verbose;
const char *phase = "";

uint32_t get32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
uint64_t get64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

void *need(void *memory) {
    if (!memory) {
        fprintf(stderr, "fuzz_bundle: out of memory\n");
        exit(2);
    }
    return memory;
}

void name_case() {
    char text[128];
    const int n = snprintf(text, sizeof text, "\nfuzz_bundle: died in case --one %llu during %s\n",
                           static_cast<unsigned long long>(current_seed), phase);
    if (write(2, text, size_t(n)) < 0) _exit(3);
}

void on_alarm(int) {
    name_case();
    static const char late[] = "fuzz_bundle: over the time limit\n0 passed, 1 failed\n";
    if (write(1, late, sizeof late - 1) < 0) _exit(3);
    _exit(1);
}

struct Slowest {
    const char *phase;
    uint64_t seed, microseconds;
};
Slowest slowest[] = {{"open", 0, 0}, {"session_create", 0, 0}, {"run", 0, 0}};

uint64_t now_us() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return uint64_t(t.tv_sec) * 1000000 + uint64_t(t.tv_nsec) / 1000;
}

// Begins a phase, which ends where the next one begins.
void set_timer(const char *what, long seconds) {
    static uint64_t begun;
    const uint64_t now = now_us(), took = now - begun;
    for (Slowest &s : slowest)
        if (!strcmp(s.phase, phase) && took > s.microseconds) s.seed = current_seed, s.microseconds = took;
    begun = now;
    phase = what;
    const itimerval timer = {{0, 0}, {seconds, 0}};
    setitimer(ITIMER_REAL, &timer, nullptr);
}

// An allocator that counts, so that every case shows its leaks and its greed at once.
struct Meter {
    uint64_t live = 0, peak = 0, blocks = 0;
};
void *meter_allocate(void *user, size_t bytes, size_t alignment) {
    Meter &m = *static_cast<Meter *>(user);
    void *memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (!memory) return nullptr;
    const uint64_t live = __atomic_add_fetch(&m.live, bytes, __ATOMIC_RELAXED);
    __atomic_add_fetch(&m.blocks, 1, __ATOMIC_RELAXED);
    if (live > m.peak) m.peak = live;
    return memory;
}
void meter_release(void *user, void *memory, size_t bytes) {
    Meter &m = *static_cast<Meter *>(user);
    __atomic_sub_fetch(&m.live, bytes, __ATOMIC_RELAXED);
    __atomic_sub_fetch(&m.blocks, 1, __ATOMIC_RELAXED);
    free(memory);
}

File split(const Bytes &whole) {
    File file = {};
    file.count = get32(whole.data + 32);
    for (uint32_t i = 0; i < file.count && i < kMaxSections; i++) {
        const uint8_t *record = whole.data + 128 + 64 * i;
        Part &p = file.part[i];
        p.kind = get32(record), p.flags = get32(record + 4);
        p.bytes.n = get64(record + 16);
        p.bytes.data = static_cast<uint8_t *>(need(malloc(p.bytes.n + 1)));
        memcpy(p.bytes.data, whole.data + get64(record + 8), p.bytes.n);
    }
    return file;
}

void hash_header(const Bytes &whole) {
    const uint64_t table = 64 * uint64_t(get32(whole.data + 32));
    if (128 + table <= whole.n) edgec::sha256(whole.data + 128, table, whole.data + 40);
    edgec::sha256(whole.data, 96, whole.data + 96);
}

// The file with offsets, lengths and hashes that fit its parts again. `like`: a valid header to start from.
Bytes join(const File &file, const uint8_t *like) {
    uint64_t at = 128 + 64 * uint64_t(file.count), total = at;
    for (uint32_t i = 0; i < file.count; i++) total = (total + 63) / 64 * 64 + file.part[i].bytes.n;
    Bytes whole = {static_cast<uint8_t *>(need(aligned_alloc(64, (total + 127) / 64 * 64))), total};
    memset(whole.data, 0, total);
    memcpy(whole.data, like, 40);
    put64(whole.data + 24, total);
    put32(whole.data + 32, file.count);
    for (uint32_t i = 0; i < file.count; i++) {
        const Part &p = file.part[i];
        at = (at + 63) / 64 * 64;
        uint8_t *record = whole.data + 128 + 64 * i;
        put32(record, p.kind), put32(record + 4, p.flags);
        put64(record + 8, at), put64(record + 16, p.bytes.n);
        memcpy(whole.data + at, p.bytes.data, p.bytes.n);
        if (p.kind != kWeights) edgec::sha256(p.bytes.data, p.bytes.n, record + 24);
        at += p.bytes.n;
    }
    hash_header(whole);
    return whole;
}

uint32_t interesting(Random &r, uint32_t old) {
    static const uint32_t values[] = {0, 1, 2, 3, 7, 8, 16, 63, 64, 65, 255, 256, 4095, 4096, 65535, 65536, 65537,
                                      0xFFFFFF, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF,
                                      0x7F800000, 0x7FC00000, 0xFF800000};
    switch (r.below(6)) {
        case 0: return old + 1;
        case 1: return old - 1;
        case 2: return old * 2;
        case 3: return old ^ 1u << r.below(32);
        case 4: return uint32_t(r.below(40));
        default: return values[r.below(sizeof values / sizeof *values)];
    }
}

// One change inside a part. Word changes keep to multiples of four: the sections are made of words.
void damage(Random &r, Part *p) {
    Bytes &b = p->bytes;
    const uint64_t words = b.n / 4;
    if (words < 4) {
        if (b.n) b.data[r.below(b.n)] ^= uint8_t(1u << r.below(8));
        return;
    }
    const uint64_t at = 4 * r.below(words), other = 4 * r.below(words), action = r.below(10);
    if (verbose) printf("  section %u: action %llu at word %llu (%u)\n", p->kind, static_cast<unsigned long long>(action),
                        static_cast<unsigned long long>(at / 4), get32(b.data + at));
    if (action == 0) {
        b.data[r.below(b.n)] ^= uint8_t(1u << r.below(8));
    } else if (action <= 5) {
        put32(b.data + at, interesting(r, get32(b.data + at)));
    } else if (action == 6) {
        const uint32_t word = get32(b.data + at);
        put32(b.data + at, get32(b.data + other));
        if (r.chance(50)) put32(b.data + other, word);
    } else if (action == 7) {  // some words out
        const uint64_t n = 4 * (1 + r.below(4)), cut = n < b.n - at ? n : b.n - at;
        memmove(b.data + at, b.data + at + cut, b.n - at - cut);
        b.n -= cut;
        if (b.n == 0) b.n = 1;
    } else if (action == 8) {  // some words twice
        const uint64_t n = 4 * (1 + r.below(4)), twice = n < b.n - at ? n : b.n - at;
        b.data = static_cast<uint8_t *>(need(realloc(b.data, b.n + twice + 1)));
        memmove(b.data + at + twice, b.data + at, b.n - at);
        b.n += twice;
    } else {  // a range over another
        const uint64_t from = at < other ? other : at, n = 4 * (1 + r.below(16)), take = n < b.n - from ? n : b.n - from;
        memmove(b.data + at, b.data + other, take);
    }
}

Part *choose(Random &r, File *file) {
    // The plan is where the rules are; the weights have none.
    for (;;) {
        Part *p = &file->part[r.below(file->count)];
        const uint32_t percent = p->kind == kPlan ? 100 : p->kind == kTokenizer ? 60 : p->kind == kWeights ? 10 : 35;
        if (r.chance(percent)) return p;
    }
}

Bytes mutate(Random &r, const Bytes &original) {
    File file = split(original);
    const uint64_t style = r.below(100);
    if (style < 70) {
        for (uint64_t n = 1 + (r.chance(30) ? r.below(4) : 0); n; n--) damage(r, choose(r, &file));
    } else if (style < 75) {  // parts in another order, missing, or twice
        const uint32_t a = uint32_t(r.below(file.count)), b = uint32_t(r.below(file.count));
        const Part part = file.part[a];
        if (r.chance(50)) {
            file.part[a] = file.part[b], file.part[b] = part;
        } else if (r.chance(50)) {
            file.part[a].kind = uint32_t(r.below(kKinds + 2));
        } else {
            free(part.bytes.data);
            file.part[a] = file.part[--file.count];
        }
    }
    Bytes whole = join(file, original.data);
    for (uint32_t i = 0; i < file.count; i++) free(file.part[i].bytes.data);
    if (style >= 75 && style < 88) {  // header and table
        const uint64_t end = 128 + 64 * uint64_t(file.count);
        for (uint64_t n = 1 + r.below(3); n; n--) {
            const uint64_t at = 4 * r.below(end / 4);
            if (verbose) printf("  header or table: word at byte %llu\n", static_cast<unsigned long long>(at));
            put32(whole.data + at, interesting(r, get32(whole.data + at)));
        }
        if (r.chance(85)) hash_header(whole);
    } else if (style >= 88 && style < 94) {  // anywhere, hashes as they were
        for (uint64_t n = 1 + r.below(8); n; n--) whole.data[r.below(whole.n)] ^= uint8_t(1u << r.below(8));
    } else if (style >= 94) {
        whole.n = r.below(whole.n);
        if (whole.n >= 128 && r.chance(60)) {
            put64(whole.data + 24, whole.n);
            hash_header(whole);
        }
    }
    return whole;
}

struct Statistics {
    uint64_t cases, opened, sessions, ran, failed, refused[EDGEC_ERROR_SIGNATURE + 1];
};

int on_token(void *user, int32_t, const char *text, size_t bytes) {
    // The text must be readable for as long as it says.
    for (size_t i = 0; i < bytes; i++) *static_cast<uint64_t *>(user) += uint8_t(text[i]);
    return 0;
}

// Prints a broken promise and counts it.
bool promise(bool kept, const char *what, Statistics *s) {
    if (kept) return true;
    printf("fuzz_bundle: case --one %llu: %s\n", static_cast<unsigned long long>(current_seed), what);
    s->failed++;
    return false;
}

bool status_known(edgec_status status) { return status >= EDGEC_OK && status <= EDGEC_ERROR_SIGNATURE; }

void use_text(Random &r, const edgec_model *model, uint32_t vocab, Statistics *s) {
    static const char *const texts[] = {"", "the thing in the <s>than</s>  x", "\xC3\xA9t\xCC\x81 'll <tool> 12\r\n\t ", "\xFF"};
    int32_t tokens[64];
    char text[256];
    for (const char *t : texts) {
        uint64_t n = 64, size = sizeof text;
        const edgec_status status = edgec_tokenize(model, t, strlen(t), 1, tokens, &n);
        promise(status_known(status), "tokenize gave no status", s);
        if (status == EDGEC_OK) promise(status_known(edgec_detokenize(model, tokens, n, text, &size)), "detokenize", s);
    }
    for (int32_t &token : tokens) token = int32_t(r.below(uint64_t(vocab) + 3)) - 1;
    uint64_t size = sizeof text;
    promise(status_known(edgec_detokenize(model, tokens, 1 + r.below(64), text, &size)), "detokenize gave no status", s);
}

bool use_language(Random &r, edgec_session *session, uint32_t vocab, Statistics *s) {
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

bool use_generic(Random &r, const edgec_model *model, edgec_session *session, const edgec_model_info &info, Statistics *s) {
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

void use_session(Random &r, edgec_model *model, const edgec_model_info &info, Statistics *s) {
    Meter meter;
    edgec_allocator allocator = {sizeof allocator, meter_allocate, meter_release, &meter};
    edgec_session_options options = {};
    options.struct_size = sizeof options;
    options.threads = 2, options.max_memory = kMaxMemory, options.profile = uint32_t(r.below(2));
    options.context = r.chance(30) ? uint32_t(r.below(uint64_t(info.max_context) + 2)) : 0;
    options.allocator = r.chance(50) ? &allocator : nullptr;
    char message[512] = "";
    edgec_session *session = nullptr;
    set_timer("session_create", kSeconds);
    edgec_status status = edgec_session_create(model, &options, &session, message, sizeof message);
    if (verbose) printf("session: %s %s\n", edgec_status_text(status), message);
    promise(status_known(status) && (status == EDGEC_OK) == (session != nullptr), "session_create gave no status", s);
    if (status == EDGEC_OK) {
        s->sessions++;
        set_timer("run", kSeconds);
        const bool ran = info.kind == 1 ? use_language(r, session, info.vocab_size, s)
                                        : use_generic(r, model, session, info, s);
        if (verbose) printf("run: %s %s\n", ran ? "ran" : "refused", edgec_last_error(session));
        s->ran += ran;
        edgec_session_destroy(session);
    }
    promise(meter.live == 0 && meter.blocks == 0, "the session leaked", s);
    promise(meter.peak <= kMaxMemory + kSlack, "the session took more than max_memory", s);
}

// The key in the SIGNATURE section of an undamaged bundle, or nullptr.
const uint8_t *key_of(const Bytes &bundle) {
    for (uint32_t i = 0; i < get32(bundle.data + 32); i++) {
        const uint8_t *record = bundle.data + 128 + 64 * i;
        if (get32(record) == kSignature) return bundle.data + get64(record + 8) + 8;
    }
    return nullptr;
}

// `original`: what `whole` was made of.
void use(Random &r, const Bytes &whole, const Bytes &original, Statistics *s) {
    Meter meter;
    edgec_allocator allocator = {sizeof allocator, meter_allocate, meter_release, &meter};
    edgec_open_options options = {};
    options.struct_size = sizeof options;
    options.skip_selftest = 1, options.verify_weights = uint32_t(r.below(4) == 0), options.allocator = &allocator;
    options.public_key = r.chance(30) ? key_of(original) : nullptr;
    char message[512] = "";
    edgec_model *model = nullptr;
    set_timer("open", kSeconds);
    const edgec_status status = edgec_open_buffer(whole.data, whole.n, &options, &model, message, sizeof message);
    if (verbose) printf("open: %s %s\n", edgec_status_text(status), message);
    s->cases++;
    promise(status_known(status) && (status == EDGEC_OK) == (model != nullptr), "open gave no status", s);
    promise(status == EDGEC_OK || message[0], "open refused without a reason", s);
    // Nobody but the signer makes another file that a pinned key accepts.
    const bool same = whole.n == original.n && memcmp(whole.data, original.data, whole.n) == 0;
    promise(!options.public_key || status != EDGEC_OK || same, "a pinned key opened a changed file", s);
    // The handle itself comes on top of what the file may cause.
    promise(meter.peak <= whole.n + 2 * kSlack, "opening took more than the file's size and some", s);
    if (status_known(status)) s->refused[status]++;
    if (status == EDGEC_OK) {
        s->opened++;
        edgec_model_info info = {};
        info.struct_size = sizeof info;
        if (promise(edgec_model_get_info(model, &info) == EDGEC_OK, "no info", s)) {
            if (info.has_tokenizer) use_text(r, model, info.vocab_size, s);
            use_session(r, model, info, s);
        }
        edgec_close(model);
    }
    set_timer("between cases", 0);
    promise(meter.live == 0 && meter.blocks == 0, "the model leaked", s);
}

Bytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) {
        fprintf(stderr, "fuzz_bundle: cannot read %s\n", path);
        exit(2);
    }
    Bytes b = {nullptr, uint64_t(ftell(file))};
    rewind(file);
    b.data = static_cast<uint8_t *>(need(aligned_alloc(64, (b.n + 127) / 64 * 64)));
    if (fread(b.data, 1, b.n, file) != b.n || b.n < 128 || get32(b.data + 32) > kMaxSections) {
        fprintf(stderr, "fuzz_bundle: %s is not a bundle to start from\n", path);
        exit(2);
    }
    fclose(file);
    return b;
}

}  // namespace

int main(int argc, char **argv) {
    Bytes bundle[16];
    uint32_t bundles = 0;
    uint64_t first = 1, count = 1000;
    for (int i = 1; i < argc; i++) {
        const bool option = strncmp(argv[i], "--", 2) == 0;
        if (option && i + 1 == argc) return 2;
        const uint64_t value = option ? strtoull(argv[i + 1], nullptr, 10) : 0;
        if (!option && bundles < 16) bundle[bundles++] = read_file(argv[i]);
        else if (strcmp(argv[i], "--seed") == 0) first = value;
        else if (strcmp(argv[i], "--count") == 0) count = value;
        else if (strcmp(argv[i], "--one") == 0) first = value, count = 1, verbose = true;
        else return fprintf(stderr, "usage: fuzz_bundle BUNDLE... [--seed S] [--count N] [--one SEED]\n"), 2;
        i += option;
    }
    if (!bundles) return fprintf(stderr, "fuzz_bundle: no bundle given\n"), 2;
    signal(SIGALRM, on_alarm);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(name_case);
    Statistics s = {};
    // Undamaged, everything must work: else the cases below would show nothing.
    for (uint32_t i = 0; i < bundles; i++) {
        Random r = {i};
        current_seed = 0;
        use(r, bundle[i], bundle[i], &s);
    }
    promise(s.opened == bundles && s.ran == bundles, "an undamaged bundle does not open and run", &s);
    const uint64_t failed_before = s.failed;
    s = {};
    s.failed = failed_before;
    for (uint64_t seed = first; seed < first + count; seed++) {
        Random r = {seed};
        current_seed = seed;
        const Bytes whole = mutate(r, bundle[seed % bundles]);
        use(r, whole, bundle[seed % bundles], &s);
        free(whole.data);
    }
    for (uint32_t i = 0; i < bundles; i++) free(bundle[i].data);
    printf("cases %llu opened %llu sessions %llu ran %llu\n", static_cast<unsigned long long>(s.cases),
           static_cast<unsigned long long>(s.opened), static_cast<unsigned long long>(s.sessions),
           static_cast<unsigned long long>(s.ran));
    for (const Slowest &each : slowest)
        printf("slowest %s: %llu us, case --one %llu\n", each.phase, static_cast<unsigned long long>(each.microseconds),
               static_cast<unsigned long long>(each.seed));
    for (uint32_t i = 1; i <= EDGEC_ERROR_SIGNATURE; i++) {
        if (s.refused[i]) printf("refused %llu: %s\n", static_cast<unsigned long long>(s.refused[i]), edgec_status_text(edgec_status(i)));
    }
    printf("%llu passed, %llu failed\n", static_cast<unsigned long long>(s.cases - (s.failed < s.cases ? s.failed : s.cases)),
           static_cast<unsigned long long>(s.failed));
    return s.failed ? 1 : 0;
}
