// Kernels that work along rows: rmsnorm, layernorm, rope, kv_write, softmax, reduce, argmax.
#include <limits>

#include "kv_rows.h"

using namespace kt;

static const double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();
static const int64_t kRows[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257, 511, 513, 1000};

// y, sum?; x, add?, gamma?, beta? of either norm.
static void norm_reference(Case &c) {
    const bool centre = c.op.size() == 6;
    const int64_t k = c.op[2].dim(-1), rows = c.op[2].count() / k;
    for (int64_t r = 0; r < rows; ++r) {
        std::vector<double> s;
        double mean = 0, squares = 0;
        for (int64_t j = 0; j < k; ++j) {
            double v = c.op[2].real[(size_t)(r * k + j)];
            if (!c.op[3].absent)
                v = (double)(float)(v + c.op[3].real[(size_t)(r * k + j)]);  // the sum is an f32 tensor
            if (!c.op[1].absent) c.op[1].real[(size_t)(r * k + j)] = v;
            s.push_back(v);
            mean += v / (double)k;
        }
        if (!centre) mean = 0;
        for (const double v : s) squares += (v - mean) * (v - mean);
        for (int64_t j = 0; j < k; ++j) {
            double y = (s[(size_t)j] - mean) / sqrt(squares / (double)k + (double)c.f[0]);
            if (!c.op[4].absent) y *= c.op[4].real[(size_t)j];
            if (centre && !c.op[5].absent) y += c.op[5].real[(size_t)j];
            c.op[0].real[(size_t)(r * k + j)] = y;
        }
    }
}

static void norm_case(Suite &s, bool centre, const Dims &dims, int present, double mean) {
    const int64_t k = dims.back();
    Case &c = s.add(text("K %lld present %d mean %g", (long long)k, present, mean));
    c.out(F32, dims);
    if (present & 1) c.out(F32, dims);
    else c.none();
    c.in(F32, dims, mean - 1, mean + 1);
    if (present & 2) c.in(F32, dims);
    else c.none();
    if (present & 4) c.in(F32, {k}, 0.5, 2);
    else c.none();
    if (centre && (present & 8)) c.in(F32, {k});
    else if (centre) c.none();
    c.floats({1e-5f});
    c.also_in_place(0, 2);
    if (present & 2) c.also_in_place(0, 3);
    if (present & 1) c.also_in_place(1, 2);
    if ((present & 3) == 3) c.also_in_place(1, 3);
    c.reference = norm_reference;
}

static void norm_cases(Suite &s, bool centre) {
    for (const int64_t k : kRows) norm_case(s, centre, {s.rng.range(1, 5), k}, (int)s.rng.range(0, 15), 0);
    for (int present = 0; present < 16; ++present) norm_case(s, centre, {2, 2, s.rng.range(17, 90)}, present, 0);
    norm_case(s, centre, {100000}, 4, 0);
    norm_case(s, centre, {2, 100000}, 15, 1);
    norm_case(s, centre, {150, 257}, 15, 0);  // several tiles
    for (const double mean : {10.0, 1e3, 1e4, -1e5}) norm_case(s, centre, {3, 1000}, 12, mean);
    norm_case(s, centre, {3, 100001}, 0, 3e4);
    // The first value of the row says nothing about its mean.
    norm_case(s, centre, {2, 777}, 4, 1e4);
    s.cases.back()->op[2].real[0] = s.cases.back()->op[2].real[777] = -0.25;
    norm_case(s, centre, {2, 50}, 4, 0);  // a row of zeros gives zeros
    for (int64_t j = 0; j < 50; ++j) s.cases.back()->op[2].real[(size_t)j] = 0;
    norm_case(s, centre, {2, 0}, 0, 0);
    s.cases.back()->reference = [](Case &) {};
}

CASES(rmsnorm) { norm_cases(s, false); }
CASES(layernorm) { norm_cases(s, true); }

CASES(rope) {
    for (const int64_t half : {1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33}) {
        for (const int64_t interleaved : {0, 1}) {
            const int64_t t = s.rng.range(1, 5), heads = s.rng.range(1, 4),
                          d = 2 * half + s.rng.range(0, 1) * s.rng.range(1, 9);
            Case &c = s.add(text("R %lld D %lld heads %lld", (long long)(2 * half), (long long)d, (long long)heads));
            c.out(F32, {t, heads * d}).in(F32, {t, heads * d}).in(F32, {t, half}).in(F32, {t, half});
            c.ints({heads, 2 * half, interleaved}).also_in_place(0, 1);
            c.reference = [](Case &k) {
                const int64_t heads = k.i[0], r = k.i[1], d = k.op[0].dim(1) / heads;
                k.op[0].real = k.op[1].real;
                for (int64_t row = 0; row < k.op[0].dim(0) * heads; ++row) {
                    for (int64_t j = 0; j < r / 2; ++j) {
                        const int64_t p = row * d + (k.i[2] ? 2 * j : j),
                                      q = row * d + (k.i[2] ? 2 * j + 1 : j + r / 2);
                        const double co = k.op[2].real[(size_t)(row / heads * (r / 2) + j)],
                                     si = k.op[3].real[(size_t)(row / heads * (r / 2) + j)];
                        const double x = k.op[1].real[(size_t)p], z = k.op[1].real[(size_t)q];
                        k.op[0].real[(size_t)p] = x * co - z * si;
                        k.op[0].real[(size_t)q] = z * co + x * si;
                    }
                }
            };
            c.tolerance = 1e-6;
        }
    }
}

// x[t, h] becomes row past + t of the cache's head h; everything else stays.
static void kv_reference(Case &c) {
    Operand &cache = c.op[0];
    const int64_t heads = cache.dim(0), capacity = cache.dim(1), width = cache.dim(2), d = c.op[1].dim(1) / heads;
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < c.op[1].dim(0); ++t) {
            const double *x = &c.op[1].real[(size_t)((t * heads + h) * d)];
            const int64_t at = (h * capacity + c.i[0] + t) * width;
            if (is_float(cache.view.dtype)) {
                for (int64_t j = 0; j < d; ++j) cache.real[(size_t)(at + j)] = round_to(cache.view.dtype, x[j]);
                continue;
            }
            const std::vector<uint8_t> row = kv_encode(cache.view.dtype, x, d);
            for (size_t j = 0; j < row.size(); ++j) kv_set_byte(&cache, at + (int64_t)j, row[j]);
        }
}

CASES(kv_write) {
    for (const uint8_t dtype : {F32, F16, I8, U8}) {
        for (const int64_t d : {1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 130}) {
            const int64_t heads = s.rng.range(1, 3), t = s.rng.range(5, 9), past = s.rng.range(0, 4),
                          capacity = past + t + s.rng.range(0, 1) * 3;
            Case &c = s.add(
                text("D %lld dtype %d past %lld of %lld", (long long)d, dtype, (long long)past, (long long)capacity));
            c.out(dtype, {heads, capacity, kv_elements(dtype, d)}).in(F32, {t, heads * d}, -3, 3).ints({past});
            // Token 0: what f16 does not hold. 1: zeros. 2: a number far from the others. 3: all beyond f16 and tiny ones.
            // 4: one that is no number.
            std::vector<double> &x = c.op[1].real;
            const int64_t row = heads * d;
            if (d > 2) x[0] = 70000, x[1] = round_to(F32, -1e-9), x[2] = kInf;
            for (int64_t j = 0; j < row; ++j) {
                x[(size_t)(row + j)] = 0;
                x[(size_t)(3 * row + j)] = round_to(F32, j % 2 ? 3e8 * s.rng.uniform(-1, 1) : 1e-6 * s.rng.uniform(-1, 1));
            }
            x[(size_t)(2 * row + s.rng.range(0, row - 1))] = 1e4;
            if (dtype != F32) x[(size_t)(4 * row)] = kNan;  // F32 is a copy of bits
            c.reference = kv_reference;
            c.scale = ELEMENT;
            c.tolerance = 0;
        }
    }
}

static void softmax_reference(Case &c) {
    const int64_t k = c.op[1].dim(-1);
    for (int64_t r = 0; r < c.op[1].count() / k; ++r) {
        const double *x = &c.op[1].real[(size_t)(r * k)];
        double *y = &c.op[0].real[(size_t)(r * k)];
        double top = -kInf, sum = 0;
        for (int64_t j = 0; j < k; ++j) top = std::max(top, x[j]);
        for (int64_t j = 0; j < k; ++j) sum += exp(x[j] - top);
        for (int64_t j = 0; j < k; ++j) y[j] = c.i[0] ? x[j] - top - log(sum) : exp(x[j] - top) / sum;
    }
}

CASES(softmax) {
    auto add = [&](const Dims &dims, double range, int64_t log) -> Case & {
        Case &c = s.add(text("K %lld log %lld range %g", (long long)dims.back(), (long long)log, range));
        c.out(F32, dims).in(F32, dims, -range, range).ints({log}).also_in_place(0, 1);
        c.reference = softmax_reference;
        return c;
    };
    for (const int64_t k : kRows)
        for (const int64_t log : {0, 1}) add({s.rng.range(1, 4), k}, s.rng.range(0, 1) ? 30 : 3, log);
    for (const int64_t log : {0, 1}) {
        add({2, 50257}, 12, log);
        add({300, 2, 40}, 5, log);
        add({3, 19}, 3e38, log);
        Case &c = add({4, 37}, 4, log);  // -inf masks single values; a NaN or a row of -inf makes the row NaN
        for (size_t j = 0; j < 37; ++j) {
            if (j % 3 == 0) c.op[1].real[j] = -kInf;
            c.op[1].real[37 + j] = -kInf;
        }
        c.op[1].real[74 + 20] = kNan;
        c.op[1].real[111 + 5] = kInf;
    }
}

static void reduce_reference(Case &c) {
    const Operand &x = c.op[1];
    const int64_t r = x.dim(1), inner = x.dim(2), op = c.i[0];
    for (int64_t o = 0; o < x.dim(0); ++o) {
        for (int64_t i = 0; i < inner; ++i) {
            long double s = op == 2 ? -INFINITY : op == 3 ? INFINITY : op == 4 ? 1 : 0;
            for (int64_t j = 0; j < r; ++j) {
                const long double v = x.real[(size_t)((o * r + j) * inner + i)];
                if (op == 2) s = isnan(v) || v > s ? v : s;
                else if (op == 3) s = isnan(v) || v < s ? v : s;
                else if (op == 4) s *= v;
                else s += op == 5 || op == 6 ? v * v : op == 7 ? fabsl(v) : v;
            }
            c.op[0].real[(size_t)(o * inner + i)] = (double)(op == 1 ? s / r : op == 6 ? sqrtl(s) : s);
        }
    }
}

CASES(reduce) {
    auto add = [&](const Dims &x, int64_t op, double lo, double hi) -> Case & {
        Case &c = s.add(text("op %lld R %lld I %lld", (long long)op, (long long)x[1], (long long)x[2]));
        c.out(F32, {x[0], x[2]}).in(F32, x, lo, hi).ints({op});
        c.reference = reduce_reference;
        return c;
    };
    for (int64_t op = 0; op < 8; ++op) {
        const double lo = op == 4 ? 0.9 : -1, hi = op == 4 ? 1.1 : op < 2 ? 3 : 1;
        for (const int64_t k : {s.rng.range(1, 9), kRows[s.rng.range(0, 18)], kRows[s.rng.range(0, 18)]}) {
            add({s.rng.range(1, 4), k, 1}, op, lo, hi);
            add({s.rng.range(1, 3), s.rng.range(1, 130), k}, op, lo, hi);
        }
        add({200, 150, 1}, op, lo, hi);
    }
    for (const int64_t k : kRows) add({2, 3, k}, 1, -1, 1);
    add({2, 100000, 1}, 0, 0, 1);
    add({1, 100000, 3}, 1, 0, 1);
    add({1, 100000, 1}, 5, 100, 101);
    add({1, 49, 1280}, 1, -1, 6);
    for (const int64_t inner : {1, 5})
        for (const int64_t op : {0, 2, 3}) {  // NaN and infinities anywhere in the row
            Case &c = add({3, 40, inner}, op, -1, 1);
            c.op[1].real[(size_t)(7 * inner)] = kNan;
            c.op[1].real[(size_t)(50 * inner)] = kInf;
            c.op[1].real[(size_t)(119 * inner)] = -kInf;
        }
    for (const int64_t inner : {1, 4})
        for (const int64_t op : {0, 1, 2, 3, 4, 6}) add({2, 0, inner}, op, 0, 1);  // an empty dim: the neutral element
}

static void argmax_reference(Case &c) {
    const Operand &x = c.op[1];
    const int64_t r = x.dim(1), inner = x.dim(2);
    for (int64_t n = 0; n < x.dim(0) * inner; ++n) {
        int64_t best = 0;
        for (int64_t j = 1; j < r; ++j) {
            const double v = x.real[(size_t)((n / inner * r + j) * inner + n % inner)];
            const double b = x.real[(size_t)((n / inner * r + best) * inner + n % inner)];
            if (!isnan(b) && (isnan(v) || (c.i[0] ? v < b : v > b))) best = j;
        }
        c.op[0].whole[(size_t)n] = best;
    }
}

CASES(argmax) {
    auto add = [&](const Dims &x, int64_t least, double range) -> Case & {
        Case &c = s.add(text("R %lld I %lld min %lld", (long long)x[1], (long long)x[2], (long long)least));
        c.out(I64, {x[0], x[2]}).in(F32, x, -range, range).ints({least});
        c.reference = argmax_reference;
        return c;
    };
    for (const int64_t k : kRows) {
        for (const int64_t least : {0, 1}) {
            Case &c = add({3, k, 1}, least, 4);
            for (double &v : c.op[1].real) v = round(v);  // many equals: the first one counts
            add({2, k, 3}, least, 1);
        }
    }
    add({1, 50257, 1}, 0, 10);
    for (const int64_t least : {0, 1}) {
        for (const size_t at : {size_t(3), size_t(70), size_t(97)}) {  // a NaN early, late, in the tail
            Case &c = add({2, 99, 1}, least, 1);
            c.op[1].real[at] = kNan;
            if (at < 98) c.op[1].real[at + 1] = kNan;
            c.op[1].real[99 + 50] = least ? -kInf : kInf;
        }
        Case &all = add({1, 80, 1}, least, 1);  // nothing is above -inf (below +inf)
        for (double &v : all.op[1].real) v = least ? kInf : -kInf;
    }
}
