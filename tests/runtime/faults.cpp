// Things that go wrong below the runtime, on every bundle given: faults CNN_BUNDLE BUNDLE...
// Prints "N passed, M failed".
//
// Starving: everything an application does is done once for every allocation it makes, and that allocation fails. The
// call it belongs to must say so, give everything back, and work when it is called again.
// Accounting: a session allocates no more than edgec_session_memory says.
// Threads: those that the system refuses, and a host's pool that does less than it was told, change no result.
// Sharing: sessions of one model on several threads compute what one does alone; a flag from another thread stops a
// generation. Built with ThreadSanitizer, this shows races.
// Fallback: kernels of the chosen instruction set that answer wrongly must be noticed at open.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../kernels/kernel.h"
#include "edgec.h"

namespace {

int passed, failed;
const char *file_name = "";

bool expect(bool good, const char *what, uint64_t n) {
    if (good) return true;
    printf("faults: %s: case %llu: %s\n", file_name, static_cast<unsigned long long>(n), what);
    failed++;
    return false;
}

// Thread number `refused` (from 1) and all later ones are not started; 0: all are. The linker puts this function
// before the system's (--wrap, CMakeLists.txt).
uint32_t threads_asked, threads_refused;

}  // namespace

extern "C" int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
extern "C" int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*entry)(void *),
                                     void *arg) {
    const uint32_t number = __atomic_add_fetch(&threads_asked, 1u, __ATOMIC_RELAXED);
    const bool refuse = threads_refused && number >= threads_refused;
    return refuse ? EAGAIN : __real_pthread_create(thread, attributes, entry, arg);
}

namespace {

struct Bytes {
    uint8_t *data;
    uint64_t n;
};

Bytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) exit(2);
    Bytes b = {nullptr, uint64_t(ftell(file))};
    rewind(file);
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, b.n)) exit(2);
    b.data = static_cast<uint8_t *>(memory);
    if (fread(b.data, 1, b.n, file) != b.n) exit(2);
    fclose(file);
    return b;
}

// Allocation number `fail` (from 1) fails; nothing else does.
struct Starver {
    uint64_t made = 0, fail = 0, live = 0;
};
void *starve_allocate(void *user, size_t bytes, size_t alignment) {
    Starver &s = *static_cast<Starver *>(user);
    if (++s.made == s.fail) return nullptr;
    s.live += bytes;
    void *memory = nullptr;
    return posix_memalign(&memory, alignment, bytes) ? nullptr : memory;
}
void starve_release(void *user, void *memory, size_t bytes) {
    static_cast<Starver *>(user)->live -= bytes;
    free(memory);
}

int on_token(void *, int32_t, const char *, size_t) { return 0; }

// One application. Every call is tried until it succeeds: at most twice.
struct Application {
    Application(const Bytes &file, uint64_t fail) : bundle(file), number(fail) {}

    const Bytes &bundle;
    Starver starver;
    uint64_t number;
    uint32_t refusals = 0;
    char message[512];
    edgec_model *model = nullptr;
    edgec_session *session = nullptr;

    template <class Call>
    bool step(const char *what, bool words, Call call) {
        for (int attempt = 0; attempt < 2; attempt++) {
            message[0] = 0;
            const edgec_status status = call();
            if (status == EDGEC_OK) return true;
            refusals++;
            expect(status == EDGEC_ERROR_MEMORY, what, number);
            expect(!words || message[0] || edgec_last_error(session)[0], "a failure without words", number);
        }
        return expect(false, "a call fails although there is memory again", number);
    }

    void generic(const edgec_model_info &info) {
        constexpr uint32_t kMost = 4;
        edgec_tensor in[kMost] = {}, out[kMost] = {};
        if (!expect(info.n_inputs <= kMost && info.n_outputs <= kMost, "more ports than expected", number)) return;
        uint64_t total = 0;
        for (uint32_t k = 0; k < info.n_inputs + info.n_outputs; k++) {
            const bool input = k < info.n_inputs;
            const uint32_t i = input ? k : k - info.n_inputs;
            edgec_tensor &t = input ? in[i] : out[i];
            t.struct_size = sizeof t;
            const auto describe = input ? edgec_model_input : edgec_model_output;
            if (!step("a port", false, [&] { return describe(model, i, &t); })) return;
            total += t.bytes;
        }
        // One byte off, so that all have to be staged.
        char *const memory = static_cast<char *>(calloc(1, total + 1)), *at = memory + 1;
        for (uint32_t k = 0; k < info.n_inputs + info.n_outputs; k++) {
            edgec_tensor &t = k < info.n_inputs ? in[k] : out[k - info.n_inputs];
            t.data = at, at += t.bytes;
        }
        step("run", true, [&] { return edgec_run(session, in, info.n_inputs, out, info.n_outputs); });
        free(memory);
        save_and_load();
    }

    void language(const edgec_model_info &info) {
        static const char text[] = "the thing in the <s>than</s>  x \xC3\xA9t\xCC\x81 <tool> 12";
        int32_t tokens[64];
        char back[256];
        uint64_t n = 64, size = sizeof back;
        const bool encoded = step("tokenize", false, [&] {
            n = 64;
            return edgec_tokenize(model, text, sizeof text - 1, 1, tokens, &n);
        });
        if (!encoded) return;
        step("detokenize", false, [&] { return edgec_detokenize(model, tokens, n, back, &size); });
        edgec_generate_options options = {};
        options.struct_size = sizeof options;
        options.max_tokens = 3, options.temperature = 1, options.top_p = 0.9f, options.on_token = on_token;
        options.ignore_eos = 1;
        step("generate", true, [&] { return edgec_generate(session, tokens, 4, &options, nullptr); });
        expect(edgec_session_position(session) == 7, "the position", number);
        step("step", true, [&] { return edgec_step(session, tokens, 3, nullptr); });
        float *rows = static_cast<float *>(calloc(2 * uint64_t(info.vocab_size), sizeof(float)));
        step("score", true, [&] { return edgec_score(session, tokens, 2, rows); });
        free(rows);
        expect(edgec_session_position(session) == 12, "the position", number);
        save_and_load();
        step("seek", true, [&] { return edgec_session_seek(session, 5); });
        step("reset", true, [&] { return edgec_session_reset(session); });
    }

    void save_and_load() {
        uint64_t bytes = 0;
        step("the size of a state", true, [&] { return edgec_session_save(session, nullptr, &bytes); });
        void *state = calloc(1, bytes);
        step("save", true, [&] { return edgec_session_save(session, state, &bytes); });
        step("load", true, [&] { return edgec_session_load(session, state, bytes); });
        free(state);
    }

    void run() {
        const edgec_allocator allocator = {sizeof allocator, starve_allocate, starve_release, &starver};
        edgec_open_options open = {};
        open.struct_size = sizeof open;
        open.allocator = &allocator;
        edgec_session_options options = {};
        options.struct_size = sizeof options;
        options.threads = 3;
        const bool ready = step("open", true, [&] {
            return edgec_open_buffer(bundle.data, bundle.n, &open, &model, message, sizeof message);
        }) && step("session", true, [&] {
            return edgec_session_create(model, &options, &session, message, sizeof message);
        });
        if (ready) {
            step("selftest", true, [&] { return edgec_selftest(model, nullptr, message, sizeof message); });
            edgec_model_info info = {};
            info.struct_size = sizeof info;
            edgec_model_get_info(model, &info);
            if (info.kind == 1) language(info);
            else generic(info);
        }
        edgec_session_destroy(session);
        edgec_close(model);
        expect(starver.live == 0, "memory is not given back", number);
    }
};

void starve(const Bytes &bundle) {
    for (uint64_t fail = 0;; fail++) {
        Application a(bundle, fail);
        a.starver.fail = fail;
        const int before = failed;
        a.run();
        const bool reached = fail && a.starver.made >= fail;
        expect(a.refusals == (reached ? 1u : 0u), "one failed allocation is one failed call", fail);
        passed += failed == before;
        if (fail && !reached) {
            expect(fail > 20, "too few allocations were tried", fail);
            return;
        }
    }
}

// What a session says it takes is what it takes, whatever the number of threads.
void accounting(const Bytes &bundle) {
    for (uint32_t threads = 1; threads <= 64; threads *= 4) {
        Starver starver;
        const edgec_allocator allocator = {sizeof allocator, starve_allocate, starve_release, &starver};
        edgec_session_options options = {};
        options.struct_size = sizeof options;
        options.threads = threads, options.allocator = &allocator;
        edgec_memory memory = {};
        memory.struct_size = sizeof memory;
        edgec_model *model = nullptr;
        edgec_session *session = nullptr;
        bool good = edgec_open_buffer(bundle.data, bundle.n, nullptr, &model, nullptr, 0) == EDGEC_OK &&
                    edgec_session_create(model, &options, &session, nullptr, 0) == EDGEC_OK &&
                    edgec_session_memory(session, &memory) == EDGEC_OK;
        good = expect(good && starver.live <= memory.total, "a session takes more than it says", threads);
        edgec_session_destroy(session);
        edgec_close(model);
        passed += expect(starver.live == 0, "memory is not given back", threads) && good;
    }
}

// A tensor of another struct_size is refused, and nothing behind that word is read (a sanitizer sees it).
void short_struct(const Bytes &bundle) {
    edgec_model *model = nullptr;
    edgec_session *session = nullptr;
    edgec_tensor out = {};
    uint32_t *size = static_cast<uint32_t *>(malloc(sizeof *size));
    if (!size) exit(2);
    *size = sizeof *size;
    const bool good =
        edgec_open_buffer(bundle.data, bundle.n, nullptr, &model, nullptr, 0) == EDGEC_OK &&
        edgec_session_create(model, nullptr, &session, nullptr, 0) == EDGEC_OK &&
        edgec_run(session, reinterpret_cast<edgec_tensor *>(size), 1, &out, 1) == EDGEC_ERROR_ARGUMENT &&
        strstr(edgec_last_error(session), "struct_size");
    edgec_session_destroy(session);
    edgec_close(model);
    free(size);
    passed += expect(good, "a tensor struct of four bytes", 0);
}

// The numbers a session gives: the logits after some tokens, or the outputs for inputs of 0.5.
constexpr uint64_t kMostValues = 2048;  // of one tensor that a seed bundle takes, or of all that it gives
struct Answer {
    float values[kMostValues];
    uint64_t n;
};
bool answer(edgec_model *model, edgec_session *session, Answer *a) {
    edgec_model_info info = {};
    info.struct_size = sizeof info;
    memset(a, 0, sizeof *a);
    if (edgec_model_get_info(model, &info) != EDGEC_OK) return false;
    if (info.kind == 1) {
        const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
        a->n = info.vocab_size;
        return edgec_step(session, tokens, 10, a->values) == EDGEC_OK;
    }
    edgec_tensor in = {}, out[3] = {};
    float input[kMostValues];
    for (float &x : input) x = 0.5f;
    in.struct_size = sizeof in;
    if (info.n_inputs != 1 || info.n_outputs > 3 || edgec_model_input(model, 0, &in) != EDGEC_OK) return false;
    in.data = input;
    if (in.bytes > sizeof input) return false;
    for (uint32_t i = 0; i < info.n_outputs; i++) {
        out[i].struct_size = sizeof out[i];
        if (edgec_model_output(model, i, &out[i]) != EDGEC_OK) return false;
        out[i].data = a->values + a->n;
        a->n += out[i].bytes / sizeof(float);
        if (a->n > kMostValues) return false;
    }
    return edgec_run(session, &in, 1, out, info.n_outputs) == EDGEC_OK;
}

bool same(const Answer &a, const Answer &b) { return a.n == b.n && !memcmp(a.values, b.values, a.n * sizeof(float)); }

// A host's pool by styles: 0 does nothing, so that the caller has to do it all; 1 only the last piece; 2 all of them
// twice, backwards.
void host_run(void *user, void (*work)(void *, uint32_t), void *arg, uint32_t n) {
    const uint32_t style = *static_cast<uint32_t *>(user);
    for (uint32_t round = 0; round < style; round++)
        for (uint32_t i = n; i-- > (style == 1 ? n - 1 : 0);) work(arg, i);
}

void threads(const Bytes &bundle) {
    edgec_model *model = nullptr;
    if (!expect(edgec_open_buffer(bundle.data, bundle.n, nullptr, &model, nullptr, 0) == EDGEC_OK, "open", 0)) return;
    Answer alone;
    for (uint32_t number = 0; number < 8; number++) {
        const uint32_t style = number > 4 ? number - 5 : 0;
        uint32_t user = style;
        const edgec_threadpool pool = {sizeof pool, host_run, &user};
        Starver starver;
        const edgec_allocator allocator = {sizeof allocator, starve_allocate, starve_release, &starver};
        edgec_session_options options = {};
        options.struct_size = sizeof options;
        options.threads = number ? 4 : 1, options.allocator = &allocator;
        options.threadpool = number > 4 ? &pool : nullptr;
        threads_asked = 0, threads_refused = number < 5 ? number : 0;
        edgec_session *session = nullptr;
        Answer got;
        const edgec_status status = edgec_session_create(model, &options, &session, nullptr, 0);
        bool good = expect(status == EDGEC_OK, "a session", number) &&
                    expect(answer(model, session, number ? &got : &alone), "a run", number) &&
                    expect(!number || same(got, alone), "another result with other threads", number);
        edgec_session_destroy(session);
        // Refused once, no more are asked for; a host's pool needs none.
        const uint32_t wanted = number == 0 || number > 4 ? 0 : number < 3 ? number : 3;
        good = expect(threads_asked == wanted, "the number of threads that were asked for", number) && good;
        passed += expect(starver.live == 0, "memory is not given back", number) && good;
    }
    threads_refused = 0;
    edgec_close(model);
}

// A thread of its own that uses a model which others use too.
struct User {
    edgec_model *model;
    uint32_t threads;
    Answer got;
    bool good;
};
void *use_model(void *memory) {
    User &u = *static_cast<User *>(memory);
    u.good = true;
    for (int round = 0; round < 5; round++) {
        edgec_session_options options = {};
        options.struct_size = sizeof options;
        options.threads = u.threads, options.profile = 1;
        edgec_session *session = nullptr;
        char message[512];
        const char *json;
        uint64_t bytes, n = 0;
        edgec_model_info info = {};
        info.struct_size = sizeof info;
        u.good = u.good && edgec_session_create(u.model, &options, &session, message, sizeof message) == EDGEC_OK &&
                 answer(u.model, session, &u.got) && edgec_model_get_info(u.model, &info) == EDGEC_OK &&
                 edgec_model_manifest(u.model, &json, &bytes) == EDGEC_OK && edgec_verify(u.model) == EDGEC_OK &&
                 (!info.has_tokenizer || edgec_tokenize(u.model, "the thing", 9, 1, nullptr, &n) == EDGEC_OK) &&
                 (round || edgec_selftest(u.model, nullptr, message, sizeof message) == EDGEC_OK);
        edgec_session_destroy(session);
    }
    return nullptr;
}

void sharing(const Bytes &bundle) {
    constexpr uint32_t kUsers = 3;
    edgec_model *model = nullptr;
    if (!expect(edgec_open_buffer(bundle.data, bundle.n, nullptr, &model, nullptr, 0) == EDGEC_OK, "open", 0)) return;
    static User alone, user[kUsers];
    alone.model = model, alone.threads = 1;
    use_model(&alone);
    bool good = expect(alone.good, "one session", 0);
    pthread_t thread[kUsers];
    for (uint32_t i = 0; i < kUsers; i++) {
        user[i].model = model, user[i].threads = 1 + i % 2;
        if (pthread_create(&thread[i], nullptr, use_model, &user[i])) exit(2);
    }
    for (uint32_t i = 0; i < kUsers; i++) {
        pthread_join(thread[i], nullptr);
        good = expect(user[i].good && same(user[i].got, alone.got), "a session beside others", i) && good;
    }
    edgec_close(model);
    passed += good;
}

// The other thread waits for the second token, then raises the flag; the callback waits for the flag, so that the
// generation can only end by it.
struct Stop {
    uint32_t tokens = 0;
    int flag = 0;
};
int count_token(void *user, int32_t, const char *, size_t) {
    Stop &stop = *static_cast<Stop *>(user);
    if (__atomic_add_fetch(&stop.tokens, 1u, __ATOMIC_RELAXED) == 2)
        while (!__atomic_load_n(&stop.flag, __ATOMIC_RELAXED)) usleep(100);
    return 0;
}
void *stop_generation(void *memory) {
    Stop &stop = *static_cast<Stop *>(memory);
    while (__atomic_load_n(&stop.tokens, __ATOMIC_RELAXED) < 2) usleep(100);
    __atomic_store_n(&stop.flag, 1, __ATOMIC_RELAXED);
    return nullptr;
}
void cancelling(const Bytes &bundle) {
    edgec_model *model = nullptr;
    edgec_session *session = nullptr;
    edgec_model_info info = {};
    info.struct_size = sizeof info;
    if (!expect(edgec_open_buffer(bundle.data, bundle.n, nullptr, &model, nullptr, 0) == EDGEC_OK &&
                    edgec_model_get_info(model, &info) == EDGEC_OK, "open", 0))
        return;
    if (info.kind == 1) {
        Stop stop;
        pthread_t thread;
        const int32_t prompt[] = {1, 2, 3};
        uint32_t made = 0;
        edgec_generate_options options = {};
        options.struct_size = sizeof options;
        options.max_tokens = 20, options.top_p = 1, options.ignore_eos = 1;
        options.on_token = count_token, options.user = &stop, options.cancel = &stop.flag;
        if (edgec_session_create(model, nullptr, &session, nullptr, 0) != EDGEC_OK) exit(2);
        if (pthread_create(&thread, nullptr, stop_generation, &stop)) exit(2);
        const edgec_status status = edgec_generate(session, prompt, 3, &options, &made);
        __atomic_store_n(&stop.tokens, 2u, __ATOMIC_RELAXED);  // whatever happened, the other thread ends
        pthread_join(thread, nullptr);
        bool good = expect(status == EDGEC_ERROR_CANCELLED && made == 2 && edgec_session_position(session) == 5,
                           "a generation that another thread stops", 0);
        // Stopped before the prompt was in: as if it had never been called.
        good = expect(edgec_generate(session, prompt, 3, &options, &made) == EDGEC_ERROR_CANCELLED && made == 0 &&
                          edgec_session_position(session) == 5, "a generation that is stopped at once", 1) && good;
        passed += expect(edgec_step(session, prompt, 3, nullptr) == EDGEC_OK, "the session afterwards", 2) && good;
        edgec_session_destroy(session);
    }
    edgec_close(model);
}

edgec::RunFn right;
void wrong(const edgec::Args &args, int64_t begin, int64_t end, void *scratch) {
    right(args, begin, end, scratch);
    static_cast<float *>(args.op[0].data)[0] += 1;
}

// Replaces one kernel of the instruction set in use by a wrong one, as a miscompiled one would be.
void fallback(const Bytes &bundle) {
    edgec_model *model = nullptr;
    edgec_model_info info = {};
    info.struct_size = sizeof info;
    char message[512];
    if (!expect(edgec_open_buffer(bundle.data, bundle.n, nullptr, &model, message, sizeof message) == EDGEC_OK &&
                    edgec_model_get_info(model, &info) == EDGEC_OK && !info.warning[0], "opening as it is", 0))
        return;
    edgec::Isa isa = edgec::SCALAR;
    edgec::parse_isa(info.isa, &isa);
    if (isa == edgec::SCALAR) {
        edgec_close(model);
        return;  // nothing to fall back from
    }
    edgec::Kernel *kernel = const_cast<edgec::Kernel *>(edgec::find_kernel("linear"));
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), first = uintptr_t(kernel) / page * page;
    if (mprotect(reinterpret_cast<void *>(first), uintptr_t(kernel + 1) - first, PROT_READ | PROT_WRITE)) exit(2);
    int level = isa;  // a level above may use the body of one below
    while (!kernel->run[level]) level--;
    right = kernel->run[level];
    edgec::RunFn volatile *const place = kernel->run + level;
    *place = wrong;
    expect(edgec_selftest(model, nullptr, message, sizeof message) == EDGEC_ERROR_SELFTEST && strstr(message, "linear"),
           "the self-test of an open model", 1);
    edgec_close(model);
    expect(edgec_open_buffer(bundle.data, bundle.n, nullptr, &model, message, sizeof message) == EDGEC_OK,
           "opening with a wrong kernel", 2);
    expect(edgec_model_get_info(model, &info) == EDGEC_OK && !strcmp(info.isa, "scalar"), "the instruction set", 3);
    expect(strstr(info.warning, "scalar") && strstr(info.warning, "linear"), "the warning", 4);
    edgec_close(model);
    *place = right;
    passed++;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: faults CNN_BUNDLE BUNDLE...\n"), 2;
    for (int i = 1; i < argc; i++) {
        const Bytes bundle = read_file(argv[i]);
        file_name = argv[i];
        starve(bundle);
        accounting(bundle);
        threads(bundle);
        sharing(bundle);
        cancelling(bundle);
        if (i == 1) {
            short_struct(bundle);
            fallback(bundle);
        }
        free(bundle.data);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
