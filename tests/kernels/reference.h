// Reference implementations in double and int64, written from docs/kernels.md and as plainly as possible: one element
// at a time, no sharing with kernels/.
#pragma once
#include <math.h>

#include <algorithm>

#include "harness.h"

namespace kt {

inline double ref_act(int64_t code, double x, double a, double b) {
    const double sigmoid = 1 / (1 + exp(-x));
    switch (code) {
        case 0: return x;
        case 1: return x > 0 || isnan(x) ? x : 0;
        case 2: return isnan(x) ? x : std::min(std::max(x, a), b);
        case 3: return sigmoid;
        case 4: return x * sigmoid;
        case 5: return tanh(x);
        case 6: return 0.5 * x * erfc(-x / sqrt(2.0));
        case 7: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case 8: return x * std::min(std::max(x / 6 + 0.5, 0.0), 1.0);
        case 9: return isnan(x) ? x : std::max(0.0, std::min(1.0, a * x + b));
        case 10: return x < 0 ? a * x : x;
        case 11: return x < 0 ? a * expm1(x) : x;
        case 12: return std::max(x, 0.0) + log1p(exp(-fabs(x))) + (isnan(x) ? x : 0);
        default: return x * tanh(log1p(exp(std::min(x, 50.0))));
    }
}

inline double ref_unary(int64_t code, double x, double a, double b) {
    switch (code) {
        case 32: return -x;
        case 33: return fabs(x);
        case 34: return exp(x);
        case 35: return log(x);
        case 36: return sqrt(x);
        case 37: return 1 / x;
        case 38: return erf(x);
        case 39: return sin(x);
        case 40: return cos(x);
        case 41: return floor(x);
        case 42: return ceil(x);
        case 43: return nearbyint(x);
        case 44: return isnan(x) ? x : x > 0 ? 1 : x < 0 ? -1 : 0;
        case 46: return 1 / sqrt(x);
        case 47: return x * x;
        default: return ref_act(code, x, a, b);
    }
}

inline double ref_binary(int64_t op, double p, double q) {
    switch (op) {
        case 0: return p + q;
        case 1: return p - q;
        case 2: return p * q;
        case 3: return p / q;
        case 4: return pow(p, q);
        case 5: return isnan(p) || isnan(q) ? NAN : std::min(p, q);
        case 6: return isnan(p) || isnan(q) ? NAN : std::max(p, q);
        default: return p - floor(p / q) * q;
    }
}

// int64 with wrap-around; the caller cuts to 32 bits.
inline int64_t ref_binary_whole(int64_t op, int64_t p, int64_t q) {
    const __int128 l = p, r = q;
    switch (op) {
        case 0: return (int64_t)(uint64_t)(l + r);
        case 1: return (int64_t)(uint64_t)(l - r);
        case 2: return (int64_t)((uint64_t)p * (uint64_t)q);
        case 3: return r == 0 ? 0 : (int64_t)(uint64_t)(l / r);
        case 4: {
            if (q < 0) return p == 1 ? 1 : p == -1 ? (q & 1 ? -1 : 1) : 0;
            uint64_t product = 1;
            for (int64_t n = 0; n < q; ++n) product *= (uint64_t)p;
            return (int64_t)product;
        }
        case 5: return std::min(p, q);
        case 6: return std::max(p, q);
        default: {
            if (r == 0) return 0;
            const __int128 m = l % r;
            return (int64_t)(m != 0 && (m < 0) != (r < 0) ? m + r : m);
        }
    }
}

template <class T> bool ref_compare(int64_t op, T p, T q) {
    switch (op) {
        case 8: return p == q;
        case 9: return p < q;
        case 10: return p <= q;
        case 11: return p > q;
        default: return p >= q;
    }
}

// Index of every dim of flat element e of v.
inline Dims ref_index(const View &v, int64_t e) {
    Dims index((size_t)v.rank);
    for (int d = v.rank - 1; d >= 0; --d) {
        index[(size_t)d] = e % v.dim[d];
        e /= v.dim[d];
    }
    return index;
}
// Flat element of v at an index; dims of 1 repeat and leading ones may be missing.
inline int64_t ref_flat(const View &v, const Dims &index) {
    int64_t e = 0;
    for (int d = 0; d < v.rank; ++d) e = e * v.dim[d] + (v.dim[d] == 1 ? 0 : index[index.size() - v.rank + (size_t)d]);
    return e;
}

// Element e of `to` becomes element s of `from`, whatever the dtype.
inline void ref_move(Operand *to, int64_t e, const Operand &from, int64_t s) {
    if (is_float(to->view.dtype)) to->real[(size_t)e] = from.real[(size_t)s];
    else to->whole[(size_t)e] = from.whole[(size_t)s];
}

}  // namespace kt
