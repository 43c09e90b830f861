// The C interface: checks, the choice of an instruction set, panels.
#include "problem.h"

namespace edgec_solve {

constexpr int64_t kMaxSize = (int64_t)1 << 31;

static const Isa *isa_of(int32_t wanted) {
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (wanted == 0) wanted = avx512 ? 3 : avx2 ? 2 : 1;
    if (wanted == 3) return avx512 ? &kAvx512 : nullptr;
    if (wanted == 2) return avx2 ? &kAvx2 : nullptr;
#endif
    return wanted <= 1 ? &kScalar : nullptr;
}

static bool in(int32_t x, int32_t low, int32_t high) { return low <= x && x <= high; }

static int check(const edgec_solve_options *o, const float *w, int64_t n, int64_t k, const void *codes,
                 const void *scale, const void *offset, bool compensated) {
    if (!o || o->struct_size != sizeof *o || !w || !codes || n < 1 || k < 1 || n > kMaxSize || k > kMaxSize ||
        n > kMaxSize * 1024 / k)
        return EDGEC_SOLVE_ARGUMENT;
    bool table = o->kind == EDGEC_SOLVE_TABLE;
    if (!in(o->kind, 0, compensated ? 3 : 2) || !in(o->bits, 1, kMaxBits) ||
        (o->group != 32 && o->group != 64 && o->group != 128) || !in(o->fit, 0, 3) || !in(o->iterations, 0, 1000) ||
        !in(o->frozen, 0, 1) || !in(o->refits, 0, 100) || !in(o->sweeps, 0, 100) || !in(o->threads, 1, 256) ||
        !in(o->isa, 0, 3) || o->rows_per_table < 0 || table != (o->tables != nullptr) ||
        (!table && (!scale || !offset)))
        return EDGEC_SOLVE_ARGUMENT;
    if (o->kind != EDGEC_SOLVE_HLQ && o->fit > EDGEC_SOLVE_CLIP) return EDGEC_SOLVE_ARGUMENT;
    if (table) {
        int64_t tables = o->rows_per_table ? (n + o->rows_per_table - 1) / o->rows_per_table : 1;
        for (int64_t i = 0; i < tables << o->bits; ++i)
            if (!(fabsf(o->tables[i]) <= 65504.0f)) return EDGEC_SOLVE_VALUE;
    }
    return isa_of(o->isa) ? EDGEC_SOLVE_OK : EDGEC_SOLVE_ISA;
}

// d per column, its largest value in each group 1; all ones where it is null or zero throughout the group.
static int column_weights(const float *d, int64_t k, int group, float *out) {
    for (int64_t first = 0; first < k; first += group) {
        int64_t last = first + group < k ? first + group : k;
        float largest = 0;
        for (int64_t i = first; d && i < last; ++i) {
            if (!(d[i] >= 0 && d[i] < INFINITY)) return EDGEC_SOLVE_ARGUMENT;
            largest = d[i] > largest ? d[i] : largest;
        }
        for (int64_t i = first; i < last; ++i) out[i] = largest > 0 ? d[i] / largest : 1.0f;
    }
    return EDGEC_SOLVE_OK;
}

// Columns in panels [ceil(k / kPanel)][k][kPanel], zero beyond the last one; nullptr without memory.
static float *pack_panels(const float *matrix, int64_t k) {
    int64_t panels = (k + kPanel - 1) / kPanel;
    float *out = (float *)calloc((size_t)(panels * k * kPanel), sizeof(float));
    for (int64_t i = 0; out && i < k; ++i)
        for (int64_t j = 0; j < k; ++j) out[(j / kPanel * k + i) * kPanel + j % kPanel] = matrix[i * k + j];
    return out;
}

struct TileJob {
    const Problem *problem;
    int (*run)(const Problem &, int64_t, void *);
};

static int run_tile(void *context, int64_t i, void *scratch) {
    const TileJob &job = *(const TileJob *)context;
    return job.run(*job.problem, i, scratch);
}

static int run_tiles(const Problem &p, bool compensated) {
    const Isa &isa = *isa_of(p.options.isa);
    TileJob job = {&p, compensated ? isa.compensated : isa.groups};
    int64_t rows = compensated ? kCompensatedRows : kGroupRows;
    size_t scratch = compensated ? isa.compensated_scratch(p) : isa.groups_scratch(p);
    return run_parallel(run_tile, &job, (p.n + rows - 1) / rows, p.options.threads, scratch);
}

}  // namespace edgec_solve

using namespace edgec_solve;

uint32_t edgec_solve_version(void) { return EDGEC_SOLVE_VERSION; }

int edgec_solve_best_isa(void) {
    for (int isa = 3; isa > 1; --isa)
        if (isa_of(isa)) return isa;
    return 1;
}

int edgec_solve_groups(const edgec_solve_options *options, const float *w, int64_t n, int64_t k, const float *d,
                       uint8_t *codes, uint16_t *scale, uint16_t *offset) {
    int status = check(options, w, n, k, codes, scale, offset, false);
    if (status != EDGEC_SOLVE_OK) return status;
    float *weights = (float *)malloc(sizeof(float) * (size_t)k);
    if (!weights) return EDGEC_SOLVE_MEMORY;
    status = column_weights(d, k, options->group, weights);
    Problem p = {*options, w, n, k, weights, nullptr, nullptr, codes, scale, offset};
    if (status == EDGEC_SOLVE_OK) status = run_tiles(p, false);
    free(weights);
    return status;
}

int edgec_solve_compensated(const edgec_solve_options *options, const float *w, int64_t n, int64_t k, const float *d,
                            const float *u, const float *h, uint8_t *codes, uint16_t *scale, uint16_t *offset) {
    int status = check(options, w, n, k, codes, scale, offset, true);
    if (status != EDGEC_SOLVE_OK) return status;
    if (!u || (options->sweeps && !h)) return EDGEC_SOLVE_ARGUMENT;
    for (int64_t i = 0; i < k; ++i)
        if (!(u[i * k + i] > 0 && u[i * k + i] < INFINITY) || (options->sweeps && !(h[i * k + i] > 0)))
            return EDGEC_SOLVE_SINGULAR;
    float *weights = (float *)malloc(sizeof(float) * (size_t)k), *u_panels = pack_panels(u, k);
    float *h_panels = options->sweeps ? pack_panels(h, k) : nullptr;
    status = weights && u_panels && (h_panels || !options->sweeps) ? EDGEC_SOLVE_OK : EDGEC_SOLVE_MEMORY;
    if (status == EDGEC_SOLVE_OK) status = column_weights(d, k, options->group, weights);
    Problem p = {*options, w, n, k, weights, u_panels, h_panels, codes, scale, offset};
    if (status == EDGEC_SOLVE_OK) status = run_tiles(p, true);
    free(h_panels);
    free(u_panels);
    free(weights);
    return status;
}

int edgec_solve_factor(const double *h, int64_t k, double damp, int32_t threads, int32_t isa, float *a, float *u) {
    if (!h || !a || !u || k < 1 || k > 1 << 20 || !(damp >= 0 && damp < INFINITY) || !in(threads, 1, 256) ||
        !in(isa, 0, 3))
        return EDGEC_SOLVE_ARGUMENT;
    const Isa *chosen = isa_of(isa);
    return chosen ? factor(*chosen, h, k, damp, threads, a, u) : EDGEC_SOLVE_ISA;
}
