// Things that go wrong below the runtime: faults CNN_BUNDLE LM_BUNDLE. Prints "N passed, M failed".
//
// Starving: everything an application does is done once for every allocation it makes, and that allocation fails. The
// call it belongs to must say so, give everything back, and work when it is called again.
// Accounting: a session allocates no more than edgec_session_memory says.
// Fallback: kernels of the chosen instruction set that answer wrongly must be noticed at open.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../kernels/kernel.h"
#include "edgec.h"

namespace {

int passed, failed;

bool expect(bool good, const char *what, uint64_t n) {
    if (good) return true;
    printf("faults: case %llu: %s\n", static_cast<unsigned long long>(n), what);
    failed++;
    return false;
}

struct Bytes {
    uint8_t *data;
    uint64_t n;
};

Bytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) exit(2);
    Bytes b = {nullptr, uint64_t(ftell(file))};
    rewind(file);
    b.data = static_cast<uint8_t *>(aligned_alloc(64, (b.n + 63) / 64 * 64));
    if (!b.data || fread(b.data, 1, b.n, file) != b.n) exit(2);
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
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
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

    void generic() {
        edgec_tensor in = {}, out = {};
        in.struct_size = out.struct_size = sizeof in;
        if (!step("input", false, [&] { return edgec_model_input(model, 0, &in); }) ||
            !step("output", false, [&] { return edgec_model_output(model, 0, &out); }))
            return;
        // One byte off, so that both have to be staged.
        char *memory = static_cast<char *>(calloc(1, in.bytes + out.bytes + 16));
        in.data = memory + 1, out.data = memory + 1 + in.bytes;
        step("run", true, [&] { return edgec_run(session, &in, 1, &out, 1); });
        free(memory);
    }

    void language() {
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
        step("generate", true, [&] { return edgec_generate(session, tokens, 4, &options, nullptr); });
        expect(edgec_session_position(session) <= 7 && edgec_session_position(session) >= 4, "the position", number);
        step("step", true, [&] { return edgec_step(session, tokens, 3, nullptr); });
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
            step("selftest", true, [&] { return edgec_selftest(model, 0, message, sizeof message); });
            edgec_model_info info = {};
            info.struct_size = sizeof info;
            edgec_model_get_info(model, &info);
            if (info.kind == 1) language();
            else generic();
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
    expect(edgec_selftest(model, 0, message, sizeof message) == EDGEC_ERROR_SELFTEST && strstr(message, "linear"),
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
    if (argc != 3) return fprintf(stderr, "usage: faults CNN_BUNDLE LM_BUNDLE\n"), 2;
    const Bytes cnn = read_file(argv[1]), lm = read_file(argv[2]);
    starve(cnn);
    starve(lm);
    accounting(cnn);
    accounting(lm);
    fallback(cnn);
    free(cnn.data);
    free(lm.data);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
