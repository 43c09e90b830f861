// Pieces of check functions, and the sentences they answer with.
//
// Dims and parameters come from files and may be anything. `sized` bounds the product of a view's non-zero dims by
// 2^56, so that every partial product (strides, row counts, bytes) of an accepted view is exact.
#pragma once
#include "../view.h"

namespace edgec {

constexpr char kArity[] = "wrong number of operands or parameters";
constexpr char kMissing[] = "an operand is missing, or its dtype, format or size is not possible";
constexpr char kShape[] = "the operands' shapes do not fit together";
constexpr char kType[] = "the operands' dtypes do not fit this kernel";
constexpr char kParam[] = "a parameter is out of range";

EDGEC_INLINE bool arity(const Args &a, int ops, int ints, int floats) {
    return a.n_op == ops && a.n_i == ints && a.n_f == floats;
}

EDGEC_NOINLINE bool sized(const View &v) {
    if (!v.data || v.rank > kMaxRank || dtype_size(v.dtype) == 0) return false;
    int64_t n = 1;
    for (int d = 0; d < v.rank; ++d) {
        if (v.dim[d] < 0 || imax(v.dim[d], 1) > (int64_t(1) << 56) / n) return false;
        n *= imax(v.dim[d], 1);
    }
    return true;
}
EDGEC_INLINE bool plain(const View &v) { return sized(v) && v.format == PLAIN; }
EDGEC_INLINE bool plain(const View &v, uint8_t dtype) { return plain(v) && v.dtype == dtype; }

EDGEC_NOINLINE bool same_dims(const View &a, const View &b) {
    if (a.rank != b.rank) return false;
    for (int d = 0; d < a.rank; ++d)
        if (a.dim[d] != b.dim[d]) return false;
    return true;
}

EDGEC_INLINE bool empty(const View &v) { return count_of(v) == 0; }
EDGEC_INLINE int64_t image_rows(const View &y) { return empty(y) ? 0 : y.dim[0] * y.dim[1]; }

EDGEC_INLINE bool is_vector(const View &v, int64_t n) { return v.rank == 1 && v.dim[0] == n; }

EDGEC_INLINE bool between(int64_t x, int64_t lo, int64_t hi) { return x >= lo && x <= hi; }

EDGEC_INLINE bool bounded(const View &v) {
    if (!sized(v)) return false;  // first: the rank may be larger than there are dims
    for (int d = 0; d < v.rank; ++d)
        if (v.dim[d] > kMaxDim) return false;
    return true;
}
EDGEC_INLINE bool activation(const View &v) { return plain(v, F32) && bounded(v); }
EDGEC_INLINE bool flag(int64_t x) { return between(x, 0, 1); }

constexpr int64_t kMaxTap = 1 << 15;  // kernel sizes, strides, dilations
constexpr int kActs = EDGEC_CURVED ? 14 : 3;

// compute.cpp. bias? [n], residual? as y, act, residual_first: what every product ends with.
const char *epilogue_check(const View &y, const View &bias, const View &residual, int64_t n, int64_t act, int64_t first);
// y and x as images, and kh kw sh sw pt pl dh dw.
const char *window_check(const View &y, const View &x, const int64_t *i);
const char *window_param_check(int k, int64_t value);  // the k-th of those eight
// About the time of a product on one core: bound by arithmetic or by reading the weights once.
int64_t product_cost(double m, double n, double k, double weight_bytes);

// y is exactly what numpy makes of the inputs' shapes.
EDGEC_NOINLINE bool broadcasts(const View &y, const View *x, int inputs) {
    for (int k = 0; k < inputs; ++k)
        if (x[k].rank > y.rank) return false;
    for (int d = 0; d < y.rank; ++d) {
        int64_t want = 1;
        for (int k = 0; k < inputs; ++k) {
            const int at = d - (y.rank - x[k].rank);
            if (at < 0 || x[k].dim[at] == 1) continue;
            if (want != 1 && want != x[k].dim[at]) return false;
            want = x[k].dim[at];
        }
        if (y.dim[d] != want) return false;
    }
    return true;
}

// Nanoseconds of n elements at `tenths` tenths of a nanosecond each.
EDGEC_INLINE int64_t price(int64_t n, int64_t tenths) { return imin(n, int64_t(1) << 50) * tenths / 10 + 1; }

}  // namespace edgec
