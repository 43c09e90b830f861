// C interface of libedgec_solve: codes and float16 parameters for weight matrices. Host only, not part of the runtime.
//
// A matrix w is float [n, k], row-major, finite, |w| <= 65504. Per row and group of `group` columns (the last may be
// short) the result is either HLQ, w = c + sum_j h_j (2 b_j - 1), or uniform, w = s (code - z); all errors are computed
// with the stored float16 parameters. Results are the same bits for any number of threads and any instruction set.
// Functions check their arguments, throw nothing and keep nothing; several may run at once.
#pragma once
#include <stdint.h>

#define EDGEC_SOLVE_VERSION 1

enum edgec_solve_status {
    EDGEC_SOLVE_OK = 0,
    EDGEC_SOLVE_ARGUMENT = 1,  // a null pointer, a size or an option out of range
    EDGEC_SOLVE_MEMORY = 2,
    EDGEC_SOLVE_VALUE = 3,     // a weight that is not finite or beyond float16
    EDGEC_SOLVE_SINGULAR = 4,  // the damped H is not positive definite, or errors passed on by its U leave float32
    EDGEC_SOLVE_ISA = 5,       // this CPU lacks the instruction set that was asked for
};

enum edgec_solve_kind {
    EDGEC_SOLVE_HLQ = 0,
    EDGEC_SOLVE_UNIFORM = 1,       // z an integer in 0..2^bits - 1
    EDGEC_SOLVE_UNIFORM_REAL = 2,  // z any float16
    EDGEC_SOLVE_TABLE = 3,         // fixed levels, float [tables, 2^bits]; only for edgec_solve_compensated
};

enum edgec_solve_fit {
    EDGEC_SOLVE_MIN_MAX = 0,    // evenly spaced levels over the range
    EDGEC_SOLVE_CLIP = 1,       // ... over the part of the range that has the smallest error
    EDGEC_SOLVE_ALS = 2,        // HLQ: alternating least squares from those grids, the best of all steps
    EDGEC_SOLVE_PUBLISHED = 3,  // HLQ: the published solver: from min-max, unweighted, the last step
};

typedef struct edgec_solve_options {
    uint32_t struct_size;
    int32_t kind, bits, group;  // bits 1..8; group 32, 64, 128
    int32_t fit, iterations;    // iterations of ALS, 0..1000
    int32_t frozen;             // compensated: the codes of a group are chosen before any of its errors is passed on
    int32_t refits;             // compensated: exact refits per group, 0..100
    int32_t sweeps;             // compensated: passes of coordinate descent with all of H, 0..100
    int32_t threads;            // 1..256
    int32_t isa;                // 0 the best of this CPU, 1 scalar, 2 avx2, 3 avx512
    int32_t rows_per_table;     // TABLE: rows that share one, 0 all
    const float *tables;        // TABLE
} edgec_solve_options;

#if defined(_WIN32)
#define EDGEC_SOLVE_API __declspec(dllexport)
#else
#define EDGEC_SOLVE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

EDGEC_SOLVE_API uint32_t edgec_solve_version(void);
EDGEC_SOLVE_API int edgec_solve_best_isa(void);

// Each group by itself. d [k] or null: weights of squared errors per column, finite and >= 0 (the diagonal of H).
// codes [n, k]; scale float16 bits [planes, n, groups], planes = bits for HLQ, else 1; offset float16 bits [n, groups].
EDGEC_SOLVE_API int edgec_solve_groups(const edgec_solve_options *options, const float *w, int64_t n, int64_t k,
                                       const float *d, uint8_t *codes, uint16_t *scale, uint16_t *offset);

// Groups in order, the errors of each column compensated by the columns behind it. u [k, k]: from edgec_solve_factor;
// h [k, k] (only read when sweeps > 0): the same damped, scaled H. TABLE: scale and offset are not written.
EDGEC_SOLVE_API int edgec_solve_compensated(const edgec_solve_options *options, const float *w, int64_t n, int64_t k,
                                            const float *d, const float *u, const float *h, uint8_t *codes,
                                            uint16_t *scale, uint16_t *offset);

// H / mean(diag H) + damp I = A: writes a = A and u, the upper triangle with A^-1 = u^T u, both float [k, k].
// h [k, k] is symmetric; its lower triangle is read.
EDGEC_SOLVE_API int edgec_solve_factor(const double *h, int64_t k, double damp, int32_t threads, int32_t isa, float *a,
                                       float *u);

// Exact weighted k-means of ascending values [n] with weights > 0: at most `count` intervals with the least sum of
// weight (value - centre)^2. centres ascending, the last one repeated when there are fewer values than centres.
EDGEC_SOLVE_API int edgec_solve_kmeans(const double *values, const double *weights, int64_t n, int32_t count,
                                       double *centres);

#ifdef __cplusplus
}
#endif
