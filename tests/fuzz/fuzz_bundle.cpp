// Feeds damaged bundles to the runtime: fuzz_bundle BUNDLE... [--seed S] [--count N] [--one SEED]
//
// Case number i is made from bundle i modulo their count and nothing else, so --one repeats it exactly. Most cases get
// correct hashes again, or nothing behind the hash check would ever be reached. A case fails when the runtime breaks a
// promise: memory not given back, more taken than allowed, an answer that is no status, or too much time. What a
// sanitizer finds ends the program after naming the case.
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "exercise.h"

extern "C" void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));

using namespace fuzz;

namespace {

// No phase of a case may take more time of the CPU, under sanitizers too. For opening and for creating a session that
// is the runtime's promise, since both are bounded by the file. How long a legal plan computes is the plan's own
// affair: what is made here of tiny models stays far below the limit, so a hang is seen. A thread that sleeps for ever
// takes no CPU: whoever starts this program limits its time.
constexpr long kSeconds = 1;
constexpr uint32_t kMostBundles = 16;

const char *phase = "";

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
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return uint64_t(t.tv_sec) * 1000000 + uint64_t(t.tv_nsec) / 1000;
}

Bytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) {
        fprintf(stderr, "fuzz_bundle: cannot read %s\n", path);
        exit(2);
    }
    Bytes b = {nullptr, uint64_t(ftell(file))};
    rewind(file);
    b.data = aligned(b.n);
    File parts;
    if (fread(b.data, 1, b.n, file) != b.n || !split(b.data, b.n, &parts)) {
        fprintf(stderr, "fuzz_bundle: %s is not a bundle to start from\n", path);
        exit(2);
    }
    release(&parts);
    fclose(file);
    return b;
}

}  // namespace

// A phase ends where the next one begins.
void fuzz::begin_phase(const char *what) {
    static uint64_t begun;
    const uint64_t now = now_us(), took = now - begun;
    for (Slowest &s : slowest)
        if (!strcmp(s.phase, phase) && took > s.microseconds) s.seed = current_seed, s.microseconds = took;
    begun = now;
    phase = what;
    const itimerval timer = {{0, 0}, {what[0] ? kSeconds : 0, 0}};
    setitimer(ITIMER_PROF, &timer, nullptr);
}

int main(int argc, char **argv) {
    Bytes bundle[kMostBundles];
    uint32_t bundles = 0;
    uint64_t first = 1, count = 1000;
    for (int i = 1; i < argc; i++) {
        const bool option = strncmp(argv[i], "--", 2) == 0;
        if (option && i + 1 == argc) return 2;
        const uint64_t value = option ? strtoull(argv[i + 1], nullptr, 10) : 0;
        if (!option && bundles < kMostBundles) bundle[bundles++] = read_file(argv[i]);
        else if (strcmp(argv[i], "--seed") == 0) first = value;
        else if (strcmp(argv[i], "--count") == 0) count = value;
        else if (strcmp(argv[i], "--one") == 0) first = value, count = 1, verbose = true;
        else return fprintf(stderr, "usage: fuzz_bundle BUNDLE... [--seed S] [--count N] [--one SEED]\n"), 2;
        i += option;
    }
    if (!bundles) return fprintf(stderr, "fuzz_bundle: no bundle given\n"), 2;
    signal(SIGPROF, on_alarm);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(name_case);
    Statistics s = {};
    // Undamaged, everything must work: else the cases below would show nothing.
    for (uint32_t i = 0; i < bundles; i++) {
        current_seed = 0;
        use(nullptr, bundle[i], &bundle[i], &s);
    }
    promise(s.opened == bundles && s.ran == bundles, "an undamaged bundle does not open and run", &s);
    const uint64_t failed_before = s.failed;
    s = {};
    s.failed = failed_before;
    for (uint64_t seed = first; seed < first + count; seed++) {
        Random r = {seed};
        current_seed = seed;
        const Bytes &original = bundle[seed % bundles], whole = mutate(r, original, weigh_all, damage);
        use(&r, whole, &original, &s);
        free(whole.data);
    }
    for (uint32_t i = 0; i < bundles; i++) free(bundle[i].data);
    printf("cases %llu opened %llu sessions %llu ran %llu\n", static_cast<unsigned long long>(s.cases),
           static_cast<unsigned long long>(s.opened), static_cast<unsigned long long>(s.sessions),
           static_cast<unsigned long long>(s.ran));
    for (const Slowest &each : slowest)
        printf("slowest %s: %llu us, case --one %llu\n", each.phase, static_cast<unsigned long long>(each.microseconds),
               static_cast<unsigned long long>(each.seed));
    for (uint32_t i = 1; i < kMostStatuses; i++)
        if (s.refused[i])
            printf("refused %llu: %s\n", static_cast<unsigned long long>(s.refused[i]),
                   edgec_status_text(edgec_status(i)));
    const uint64_t passed = s.cases - (s.failed < s.cases ? s.failed : s.cases);
    printf("%llu passed, %llu failed\n", static_cast<unsigned long long>(passed),
           static_cast<unsigned long long>(s.failed));
    return s.failed ? 1 : 0;
}
