// SplitMix64, as docs/format.md uses it for golden inputs.
#pragma once
#include <stdint.h>

namespace edgec {

struct SplitMix {
    uint64_t state;

    uint64_t next() {
        state += 0x9E3779B97F4A7C15u;
        uint64_t z = state;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    float unit() { return float(next() >> 40) * 0x1p-23f - 1; }  // [-1, 1)
};

}  // namespace edgec
