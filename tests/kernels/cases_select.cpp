// scatter, topk, bitwise.
#include <algorithm>
#include <limits>

#include "reference.h"

using namespace kt;

static const double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();

CASES(scatter) {
    auto add = [&](uint8_t dtype, uint8_t index, int64_t rows, int64_t inner, int64_t n, int64_t op) -> Case & {
        Case &c = s.add(text("dtype %d [%lld, %lld] n %lld op %lld", dtype, (long long)rows, (long long)inner,
                             (long long)n, (long long)op));
        c.out(dtype, {rows, inner}).in(dtype, {rows, inner}).in(index, {n}, (double)-rows, (double)(rows - 1));
        c.in(dtype, {n, inner}).ints({op});
        c.reference = [](Case &k) {
            const int64_t n_rows = k.op[0].dim(0), width = k.op[0].dim(1), mode = k.i[0];
            for (int64_t e = 0; e < k.op[0].count(); ++e) ref_move(&k.op[0], e, k.op[1], e);
            for (int64_t e = 0; e < k.op[3].count(); ++e) {
                int64_t row = k.op[2].whole[(size_t)(e / width)];
                if (row < 0) row += n_rows;
                const int64_t to = row * width + e % width;
                if (mode == 0) {
                    ref_move(&k.op[0], to, k.op[3], e);
                    continue;
                }
                double &p = k.op[0].real[(size_t)to];
                const double q = k.op[3].real[(size_t)e];
                if (mode == 1) p += q;
                else if (mode == 2) p *= q;
                else p = isnan(p) || isnan(q) ? kNan : mode == 3 ? std::min(p, q) : std::max(p, q);
            }
        };
        c.tolerance = op == 0 ? 0 : 1e-5;
        return c;
    };
    for (const uint8_t dtype : {F32, F16, BF16, I8, U8, I32, I64, BOOL})
        for (const uint8_t index : {I32, I64})
            add(dtype, index, s.rng.range(1, 40), s.rng.range(1, 9), s.rng.range(1, 30), 0);
    for (const int64_t op : {1, 2, 3, 4}) {
        add(F32, I64, 5, 3, 40, op);  // every row many times
        add(F32, I32, 300, 1, 77, op);
        Case &c = add(F32, I64, 4, 2, 6, op);
        c.op[1].real[1] = c.op[3].real[2] = kNan;
        c.op[3].real[5] = kInf;
    }
    add(F32, I64, 7, 5, 0, 0);
    for (const int64_t bad : {(int64_t)8, (int64_t)-9, INT64_MAX, INT64_MIN}) {
        Case &c = add(F32, I64, 8, 20, 3, 1);
        c.op[2].whole[1] = bad;
        c.fault = true;
    }
}

CASES(topk) {
    auto add = [&](const Dims &x, int64_t k, int64_t least, double range) -> Case & {
        Case &c = s.add(text("R %lld I %lld k %lld min %lld", (long long)x[1], (long long)x[2], (long long)k,
                             (long long)least));
        c.out(F32, {x[0], k, x[2]}).out(I64, {x[0], k, x[2]}).in(F32, x, -range, range).ints({least});
        c.reference = [](Case &v) {
            const int64_t r = v.op[2].dim(1), inner = v.op[2].dim(2), many = v.op[0].dim(1);
            for (int64_t o = 0; o < v.op[2].dim(0); ++o)
                for (int64_t i = 0; i < inner; ++i) {
                    std::vector<int64_t> order;
                    for (int64_t j = 0; j < r; ++j) order.push_back(j);
                    auto value = [&](int64_t j) { return v.op[2].real[(size_t)((o * r + j) * inner + i)]; };
                    std::stable_sort(order.begin(), order.end(), [&](int64_t p, int64_t q) {
                        if (isnan(value(p)) || isnan(value(q))) return !isnan(value(p)) && isnan(value(q));
                        return v.i[0] ? value(p) < value(q) : value(p) > value(q);
                    });
                    for (int64_t j = 0; j < many; ++j) {
                        const size_t at = (size_t)((o * many + j) * inner + i);
                        v.op[0].real[at] = value(order[(size_t)j]);
                        v.op[1].whole[at] = order[(size_t)j];
                    }
                }
        };
        c.tolerance = 0;
        return c;
    };
    for (const int64_t least : {0, 1}) {
        for (const int64_t r : {1, 2, 7, 33, 130}) {
            Case &c = add({3, r, 1}, s.rng.range(1, r), least, 4);
            for (double &v : c.op[2].real) v = round(v);  // many equals: the first one first
            add({2, r, 5}, r, least, 1);
        }
        add({1, 5000, 1}, 40, least, 10);
        add({600, 40, 3}, 2, least, 10);
        Case &c = add({1, 9, 1}, 9, least, 1);
        c.op[2].real[0] = c.op[2].real[4] = kNan;
        c.op[2].real[2] = kInf;
        c.op[2].real[7] = -kInf;
        add({2, 6, 2}, 0, least, 1);
    }
}

CASES(bitwise) {
    auto add = [&](const Dims &y, const Dims &p, const Dims &q, int64_t op, double lo, double hi) -> Case & {
        Case &c = s.add(text("op %lld rank %zu", (long long)op, y.size()));
        c.out(I64, y).in(I64, p, -1e15, 1e15).in(I64, q, lo, hi).ints({op});
        c.reference = [](Case &k) {
            for (int64_t e = 0; e < k.op[0].count(); ++e) {
                const Dims at = ref_index(k.op[0].view, e);
                int64_t v[2];
                for (int j = 0; j < 2; ++j) {
                    const Operand &o = k.op[(size_t)j + 1];
                    Dims from;
                    for (int d = 0; d < o.view.rank; ++d)
                        from.push_back(o.dim(d) == 1 ? 0 : at[(size_t)(d + (int)at.size() - o.view.rank)]);
                    v[j] = o.whole[(size_t)ref_flat(o.view, from)];
                }
                int64_t result = 0;
                for (int b = 0; b < 64; ++b) {  // bit by bit: no shift of the language is trusted
                    auto bit = [&](int64_t x, int64_t n) { return n < 0 ? 0 : (uint64_t)x >> (n > 63 ? 63 : n) & 1; };
                    const bool far = v[1] < 0 || v[1] > 63;
                    const uint64_t l = bit(v[0], b), r = bit(v[1], b);
                    const uint64_t made = k.i[0] == 0   ? l & r
                                          : k.i[0] == 1 ? l | r
                                          : k.i[0] == 2 ? l ^ r
                                          : k.i[0] == 3 ? (far ? 0 : bit(v[0], b - v[1]))
                                                        : bit(v[0], far ? 63 : b + v[1]);
                    result |= (int64_t)(made << b);
                }
                k.op[0].whole[(size_t)e] = result;
            }
        };
        return c;
    };
    for (int64_t op = 0; op <= 4; ++op) {
        const double lo = op < 3 ? -1e15 : -2, hi = op < 3 ? 1e15 : 66;
        add({37}, {37}, {37}, op, lo, hi);
        add({3, 5, 7}, {3, 1, 7}, {5, 1}, op, lo, hi);
        add({4, 9}, {4, 9}, {}, op, lo, hi);
        add({16400}, {16400}, {1}, op, lo, hi);
        add({2, 0}, {2, 0}, {1}, op, lo, hi);
        Case &c = add({6, 6}, {6, 1}, {1, 6}, op, lo, hi);
        c.op[1].whole = {INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX};
        c.op[2].whole = {INT64_MIN, -1, 0, 63, 64, INT64_MAX};
    }
}
