// What the parts of the library share: one job, and what an instruction set provides for it.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "solve.h"

namespace edgec_solve {

constexpr int kMaxBits = 8;
constexpr int kMaxLevels = 1 << kMaxBits;
constexpr int kMaxPlanes = kMaxBits + 1;
constexpr int kMaxGroup = 128;
constexpr int kPanel = 8;  // columns of U or H that lie together, see pack_panels

struct Problem {
    edgec_solve_options options;
    const float *w;
    int64_t n, k;
    const float *d;          // [k]
    const float *u_panels;   // [panels][k][kPanel]; null for single groups
    const float *h_panels;   // as u_panels; null without sweeps
    uint8_t *codes;
    uint16_t *scale, *offset;

    int64_t groups() const { return (k + options.group - 1) / options.group; }
    int planes() const { return options.kind == EDGEC_SOLVE_HLQ ? options.bits : 1; }
};

// What is written once and compiled per instruction set.
struct Isa {
    // One tile of rows; returns a status. scratch is aligned to 64.
    int (*groups)(const Problem &, int64_t tile, void *scratch);       // kGroupRows rows
    int (*compensated)(const Problem &, int64_t tile, void *scratch);  // kCompensatedRows rows
    size_t (*groups_scratch)(const Problem &);
    size_t (*compensated_scratch)(const Problem &);
    // c [m, n] -= a [m, depth] b [n, depth]^T, row-major with strides; all sums in one order.
    void (*subtract_product)(const double *a, int64_t a_stride, const double *b, int64_t b_stride, int64_t m, int64_t n,
                             int64_t depth, double *c, int64_t c_stride);
};
constexpr int64_t kGroupRows = 16, kCompensatedRows = 32;

extern const Isa kScalar;
#if defined(__x86_64__)
extern const Isa kAvx2, kAvx512;
#endif

// Runs job(i, scratch) for i in 0..count - 1 on up to `threads` threads, each with its own scratch memory. Returns the
// status of the lowest i that failed. A thread that the system refuses is work for the others.
typedef int (*Job)(void *context, int64_t i, void *scratch);
int run_parallel(Job job, void *context, int64_t count, int32_t threads, size_t scratch);

// Least squares by the pseudo-inverse: x of least norm that minimizes |A x - b|; A symmetric [m, m], m <= kMaxPlanes.
void pseudo_solve(double (*a)[kMaxPlanes], const double *b, int m, double *x);

int factor(const Isa &isa, const double *h, int64_t k, double damp, int32_t threads, float *a, float *u);

}  // namespace edgec_solve
