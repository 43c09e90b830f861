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

}  // namespace

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 200000;
    int failed = 0;
    for (uint32_t threads = 1; threads <= 4; threads++) {
        Pool pool;
        if (!pool.start(default_allocator(), threads, PoolHook{})) return 2;
        uint32_t random = 12345 + threads;
        bool good = true;
        for (int i = 0; i < rounds && good; i++) {
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
        if (!good) printf("%u threads: a tile ran not exactly once\n", threads), failed++;
    }
    printf("%d passed, %d failed\n", 4 - failed, failed);
    return failed != 0;
}
