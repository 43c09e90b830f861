// Many short jobs of changing size on one pool: every tile runs exactly once, and no run() returns early or never.
// A worker that wakes late must not take tiles of a job it does not belong to. Prints "N passed, M failed".
#include <stdio.h>
#include <stdlib.h>

#include "threads.h"

using namespace edgec;

namespace {

struct Job {
    uint32_t hits[64];
    int64_t n;
};

void tile(void *arg, int64_t begin, int64_t end, uint32_t) {
    Job &job = *static_cast<Job *>(arg);
    for (int64_t i = begin; i < end; i++) {
        if (i < 0 || i >= job.n) {
            printf("tile %lld of a job of %lld\n0 passed, 1 failed\n", (long long)i, (long long)job.n);
            exit(1);
        }
        __atomic_fetch_add(&job.hits[i], 1u, __ATOMIC_RELAXED);
    }
}

// A host's pool: the last piece on a thread of its own, the others here in reverse order. Some it leaves out or does
// twice, which a pool should not do but must not break anything.
struct Piece {
    void (*work)(void *, uint32_t);
    void *arg;
    uint32_t index;
};
void piece_main(void *memory) {
    const Piece &p = *static_cast<Piece *>(memory);
    p.work(p.arg, p.index);
}
void host_run(void *user, void (*work)(void *, uint32_t), void *arg, uint32_t n) {
    uint32_t &calls = *static_cast<uint32_t *>(user);
    const uint32_t style = calls++ % 8;
    Piece last = {work, arg, n - 1};
    Thread thread;
    const bool started = style < 2 && thread_start(&thread, piece_main, &last);
    for (uint32_t i = n - (started ? 1 : 0); i-- > 0;) {
        if (style == 3 && i == 1) continue;
        work(arg, i);
        if (style == 4) work(arg, i);
    }
    if (started) thread_join(&thread);
}

}  // namespace

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 200000;
    int failed = 0;
    for (uint32_t kind = 0; kind < 8; kind++) {
        const uint32_t threads = kind % 4 + 1;
        const bool hosted = kind >= 4;
        uint32_t host_calls = 0;
        const PoolHook hook = {host_run, &host_calls};
        Pool pool;
        if (!pool.start(default_allocator(), threads, hosted ? hook : PoolHook{})) return 2;
        uint32_t random = 12345 + threads;
        bool good = true;
        for (int i = 0; i < (hosted ? rounds / 20 : rounds) && good; i++) {
            random = random * 1664525u + 1013904223u;
            Job job = {};
            job.n = 1 + (random >> 24) % 64;
            const int64_t chunk = 1 + (random >> 16) % 4;
            pool.run(tile, &job, job.n, chunk, 1 + (random >> 20) % threads);
            for (int64_t k = 0; k < job.n; k++) good = good && job.hits[k] == 1;
            // Now and then long enough for the workers to fall asleep.
            if (i % 5000 == 0) {
                const uint64_t start = now_ns();
                while (now_ns() - start < 200000) cpu_pause();
            }
        }
        pool.stop();
        good = good && (hosted && threads > 1) == (host_calls > 0);
        if (!good) printf("%u threads%s: a tile ran not exactly once\n", threads, hosted ? " of a host" : ""), failed++;
    }
    // Stopping at any moment: while workers start, spin, fall asleep or sleep.
    for (uint32_t i = 0; i < 400; i++) {
        Pool pool;
        if (!pool.start(default_allocator(), 4, PoolHook{})) return 2;
        Job job = {};
        job.n = 64;
        if (i % 2) pool.run(tile, &job, job.n, 1, 4);
        const uint64_t start = now_ns();
        while (now_ns() - start < i % 50 * 2000) cpu_pause();
    }
    printf("%d passed, %d failed\n", 8 - failed, failed);
    return failed != 0;
}
