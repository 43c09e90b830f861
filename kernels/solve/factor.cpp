// A = H / mean(diag H) + damp I, and the upper triangular U with A^-1 = U^T U, in double.
//
// With J the reversal of the order, J A J = L L^T and U = J L^-1 J: one Cholesky factorization and one triangular
// inverse, no inverse of A. Both go by blocks; every sum has one order, whatever the threads.
#include "problem.h"

namespace edgec_solve {

constexpr int64_t kBlock = 64;

struct Factor {
    const Isa &isa;
    int64_t k, at;   // at: first row of the current block
    double *l, *x;   // L; the rows of x are the columns of its inverse
    double *diagonal;  // inverse of the current diagonal block, or of all of them, [k][kBlock]
    int64_t size(int64_t first) const { return k - first < kBlock ? k - first : kBlock; }
};

// Factors the diagonal block at `at` and inverts its triangle. False when it is not positive definite.
static bool corner(Factor &f) {
    int64_t n = f.size(f.at);
    double *a = f.l + f.at * f.k + f.at, *inverse = f.diagonal + f.at * kBlock;
    for (int64_t j = 0; j < n; ++j)
        for (int64_t i = j; i < n; ++i) {
            double t = a[i * f.k + j];
            for (int64_t m = 0; m < j; ++m) t -= a[i * f.k + m] * a[j * f.k + m];
            if (i > j) {
                a[i * f.k + j] = t / a[j * f.k + j];
            } else if (t > 1e-12 && t < INFINITY) {
                a[j * f.k + j] = sqrt(t);
            } else {
                return false;
            }
        }
    for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < n; ++i) {
            double t = i == j;
            for (int64_t m = j; m < i; ++m) t -= a[i * f.k + m] * inverse[m * kBlock + j];
            inverse[i * kBlock + j] = i < j ? 0 : t / a[i * f.k + i];
        }
    return true;
}

// Block row `at` + 64 (1 + i) of L: what is left of A times the inverse of the corner, transposed.
static int below(void *context, int64_t i, void *scratch) {
    Factor &f = *(Factor *)context;
    int64_t n = f.size(f.at), row = f.at + kBlock * (i + 1), m = f.size(row);
    double *a = f.l + row * f.k + f.at, *copy = (double *)scratch;
    f.isa.subtract_product(f.l + row * f.k, f.k, f.l + f.at * f.k, f.k, m, n, f.at, a, f.k);
    for (int64_t r = 0; r < m; ++r)
        for (int64_t c = 0; c < n; ++c) copy[r * kBlock + c] = -a[r * f.k + c], a[r * f.k + c] = 0;
    f.isa.subtract_product(copy, kBlock, f.diagonal + f.at * kBlock, kBlock, m, n, n, a, f.k);
    return EDGEC_SOLVE_OK;
}

// 64 columns of the inverse of L, as rows of x.
static int inverse_columns(void *context, int64_t block, void *scratch) {
    Factor &f = *(Factor *)context;
    int64_t first = block * kBlock, n = f.size(first);
    double *right = (double *)scratch;
    for (int64_t row = first; row < f.k; row += kBlock) {
        int64_t m = f.size(row);
        double *x = f.x + first * f.k;
        for (int64_t j = 0; j < n; ++j)
            for (int64_t i = 0; i < m; ++i) right[j * kBlock + i] = row == first && i == j;
        f.isa.subtract_product(x + first, f.k, f.l + row * f.k + first, f.k, n, m, row - first, right, kBlock);
        for (int64_t j = 0; j < n; ++j)
            for (int64_t i = 0; i < m; ++i) right[j * kBlock + i] = -right[j * kBlock + i], x[j * f.k + row + i] = 0;
        f.isa.subtract_product(right, kBlock, f.diagonal + row * kBlock, kBlock, n, m, m, x + row, f.k);
    }
    return EDGEC_SOLVE_OK;
}

int factor(const Isa &isa, const double *h, int64_t k, double damp, int32_t threads, float *a, float *u) {
    size_t scratch = sizeof(double) * kBlock * kBlock;
    double *l = (double *)malloc(sizeof(double) * (size_t)(k * k)), *x = (double *)malloc(sizeof(double) * (size_t)(k * k));
    double *diagonal = (double *)calloc((size_t)(k * kBlock), sizeof(double)), mean = 0;
    int status = l && x && diagonal ? EDGEC_SOLVE_OK : EDGEC_SOLVE_MEMORY;
    for (int64_t i = 0; i < k; ++i) mean += h[i * k + i];
    mean /= (double)k;
    if (!(mean > 0 && mean < INFINITY) && status == EDGEC_SOLVE_OK) status = EDGEC_SOLVE_SINGULAR;
    if (status == EDGEC_SOLVE_OK) {
        for (int64_t i = 0; i < k; ++i)
            for (int64_t j = 0; j <= i; ++j) {
                double value = h[i * k + j] / mean + (i == j ? damp : 0);
                l[(k - 1 - j) * k + k - 1 - i] = value;
                a[i * k + j] = a[j * k + i] = (float)value;
            }
        Factor f = {isa, k, 0, l, x, diagonal};
        for (; f.at < k && status == EDGEC_SOLVE_OK; f.at += kBlock) {
            int64_t n = f.size(f.at), rest = (k - f.at - n + kBlock - 1) / kBlock;
            isa.subtract_product(l + f.at * k, k, l + f.at * k, k, n, n, f.at, l + f.at * k + f.at, k);
            if (!corner(f)) status = EDGEC_SOLVE_SINGULAR;
            else if (rest) status = run_parallel(below, &f, rest, threads, scratch);
        }
        if (status == EDGEC_SOLVE_OK)
            status = run_parallel(inverse_columns, &f, (k + kBlock - 1) / kBlock, threads, scratch);
        if (status == EDGEC_SOLVE_OK)
            for (int64_t i = 0; i < k; ++i)
                for (int64_t j = 0; j < k; ++j)
                    u[i * k + j] = j < i ? 0.0f : (float)x[(k - 1 - j) * k + k - 1 - i];
    }
    free(l);
    free(x);
    free(diagonal);
    return status;
}

}  // namespace edgec_solve
