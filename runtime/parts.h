// A kernel call cut into parts for threads of somebody else, who does not say how many there are: every part takes chunks
// of tiles until none is left, with scratch of its own, and prepares it at its first chunk. Any number of parts may run;
// one alone computes everything.
#pragma once
#include "isa.h"
#include "memory.h"
#include "platform.h"

namespace edgec {

struct Parts {
    const Args *args;
    RunFn run;
    uint8_t *scratch;  // bytes() of them, aligned, by the caller
    int64_t stride, tiles, chunk, next;
    int64_t count;  // at most so many, 0: there is nothing to compute
    bool prepares;

    // 0 when none is needed; false when a size has no number.
    bool bytes(uint64_t *bytes) const { return mul_u64(uint64_t(stride), uint64_t(count), bytes); }
};

// nullptr, or what is wrong with the call. parts.scratch stays to be set.
inline const char *plan_parts(const Kernel &kernel, RunFn run, const Args &args, Parts *parts) {
    constexpr int64_t kNsPerThread = 6000, kChunksPerThread = 4, kMost = 256;  // the first two as in executor.cpp
    if (const char *why = kernel.check(args)) return why;
    const int64_t tiles = kernel.tiles(args), scratch = kernel.scratch(args);
    if (scratch < 0 || scratch > INT64_MAX / 2) return "needs more scratch memory than a machine has";
    int64_t count = kernel.cost(args) / kNsPerThread + 1;
    const int64_t limits[] = {tiles, int64_t(core_count()), kMost};
    for (const int64_t limit : limits) count = count < limit ? count : limit;
    const int64_t chunk = count > 0 ? tiles / (count * kChunksPerThread) : 0;
    const int64_t stride = (scratch + int64_t(kAlignment) - 1) / int64_t(kAlignment) * int64_t(kAlignment);
    *parts = {&args, run, nullptr, stride, tiles, chunk < 1 ? 1 : chunk, 0, count < 0 ? 0 : count, kernel.prepares != 0};
    return nullptr;
}

inline void run_part(Parts &parts, int64_t part) {
    uint8_t *scratch = parts.stride ? parts.scratch + parts.stride * part : nullptr;
    for (bool first = true;; first = false) {
        const int64_t begin = __atomic_fetch_add(&parts.next, parts.chunk, __ATOMIC_RELAXED);
        if (begin >= parts.tiles) return;
        if (first && parts.prepares) parts.run(*parts.args, 0, 0, scratch);
        parts.run(*parts.args, begin, begin + parts.chunk < parts.tiles ? begin + parts.chunk : parts.tiles, scratch);
    }
}

}  // namespace edgec
