// attention_cached and attention: head groups, windows, caches of every type, masks, rows that see nothing.
#include <limits>

#include "kv_rows.h"

using namespace kt;

static const double kInf = std::numeric_limits<double>::infinity();

// The softmax of the scores times the value rows; -inf scores see nothing, and a row of them gives 0.
static double mix(const std::vector<double> &score, const std::function<double(int64_t)> &value) {
    double top = -kInf, total = 0, sum = 0;
    for (const double v : score) top = std::max(top, v);
    if (top == -kInf) return 0;
    for (size_t p = 0; p < score.size(); ++p) {
        const double e = exp(score[p] - top);
        total += e;
        sum += e * value((int64_t)p);
    }
    return sum / total;
}

static double capped(double v, double cap) { return cap > 0 ? cap * tanh(v / cap) : v; }

static void cached_reference(Case &c) {
    Operand &y = c.op[0], &q = c.op[1], &k = c.op[2], &v = c.op[3];
    const int64_t past = c.i[0], hq = c.i[1], group = hq / c.i[2], window = c.i[3], length = k.dim(1), d = q.dim(1) / hq, dv = y.dim(1) / hq;
    std::vector<std::vector<double>> keys, values;
    for (int64_t e = 0; e < k.dim(0) * length; ++e) keys.push_back(kv_row_of(k, e, d)), values.push_back(kv_row_of(v, e, dv));
    for (int64_t t = 0; t < y.dim(0); ++t)
        for (int64_t h = 0; h < hq; ++h) {
            const int64_t end = past + t + 1, begin = window ? std::max<int64_t>(0, end - window) : 0;
            std::vector<double> score;
            for (int64_t p = begin; p < end; ++p) {
                double dot = 0;
                for (int64_t j = 0; j < d; ++j)
                    dot += q.real[(size_t)((t * hq + h) * d + j)] * keys[(size_t)(h / group * length + p)][(size_t)j];
                score.push_back(capped(dot * c.f[0], c.f[1]));
            }
            for (int64_t j = 0; j < dv; ++j)
                y.real[(size_t)((t * hq + h) * dv + j)] =
                    mix(score, [&](int64_t p) { return values[(size_t)(h / group * length + begin + p)][(size_t)j]; });
        }
}

static void full_reference(Case &c) {
    Operand &y = c.op[0], &q = c.op[1], &k = c.op[2], &v = c.op[3], &mask = c.op[4];
    const int64_t hq = c.i[0], hkv = c.i[1], group = hq / hkv, d = q.dim(2) / hq, dv = y.dim(2) / hq, tokens = q.dim(1), length = k.dim(1);
    for (int64_t b = 0; b < y.dim(0); ++b)
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t h = 0; h < hq; ++h) {
                std::vector<double> score;
                for (int64_t p = 0; p < length; ++p) {
                    double dot = 0;
                    for (int64_t j = 0; j < d; ++j)
                        dot += q.real[(size_t)(((b * tokens + t) * hq + h) * d + j)] *
                               k.real[(size_t)(((b * length + p) * hkv + h / group) * d + j)];
                    dot = capped(dot * c.f[0], c.f[1]);
                    if (!mask.absent) {
                        const int64_t e = ref_flat(mask.view, {b, h, t, p});
                        if (mask.view.dtype == F32) dot += mask.real[(size_t)e];
                        else if (!mask.whole[(size_t)e]) dot = -kInf;
                    }
                    if (c.i[2] && p > t + c.i[3]) dot = -kInf;
                    score.push_back(dot);
                }
                for (int64_t j = 0; j < dv; ++j)
                    y.real[(size_t)(((b * tokens + t) * hq + h) * dv + j)] =
                        mix(score, [&](int64_t p) { return v.real[(size_t)(((b * length + p) * hkv + h / group) * dv + j)]; });
            }
}

static void finish(Case &c, void (*reference)(Case &)) {
    c.reference = reference;
    c.scale = ELEMENT;
    c.tolerance = 5e-6;
}

// A cache of numbers in [lo, hi]; of codes: a row of zeros, rows with a number far from the others, and what nobody wrote.
static void cache_in(Case &c, uint8_t dtype, const Dims &dims, double lo, double hi) {
    if (is_float(dtype)) return (void)c.in(dtype, dims, lo, hi);
    c.in(dtype, {dims[0], dims[1], kv_bytes(dtype, dims[2])});
    Operand &o = c.op.back();
    for (int64_t e = 0; e < dims[0] * dims[1]; ++e) {
        std::vector<double> x((size_t)dims[2]);
        for (double &v : x) v = e % 11 == 3 ? 0 : round_to(F32, c.rng->uniform(lo, hi));
        if (e % 7 == 2) x[(size_t)c.rng->range(0, dims[2] - 1)] = round_to(F32, 4 * hi);
        std::vector<uint8_t> row = kv_encode(dtype, x.data(), dims[2]);
        if (e % 13 == 5) std::fill(row.begin(), row.end(), (uint8_t)0);
        for (size_t j = 0; j < row.size(); ++j) kv_set_byte(&o, e * o.dim(2) + (int64_t)j, row[j]);
    }
}

CASES(attention_cached) {
    struct Test {
        int64_t t, past, context, hq, hkv, d, dv, window;
        float softcap;
    };
    std::vector<Test> tests = {
        {1, 0, 8, 1, 1, 16, 16, 0, 0},     {1, 7, 8, 4, 2, 64, 64, 0, 0},    {1, 300, 320, 9, 3, 64, 64, 0, 0},
        {5, 0, 64, 9, 3, 64, 64, 0, 0},    {40, 100, 200, 6, 2, 32, 32, 0, 0}, {70, 61, 140, 2, 1, 48, 80, 0, 0},
        {1, 130, 140, 8, 1, 20, 24, 0, 0}, {3, 130, 140, 4, 4, 17, 19, 0, 0}, {9, 130, 140, 4, 2, 33, 5, 0, 0},
        {1, 200, 256, 4, 2, 64, 64, 33, 0}, {60, 90, 150, 4, 2, 32, 32, 64, 0}, {60, 90, 150, 4, 2, 32, 32, 1, 0},
        {17, 63, 80, 2, 1, 8, 8, 1000, 30}, {1, 63, 64, 60, 1, 16, 16, 0, 50}, {2, 62, 64, 60, 1, 16, 16, 0, 0},
        {64, 0, 64, 1, 1, 64, 64, 0, 0},   {49, 64, 113, 1, 1, 1, 1, 0, 0},   {0, 3, 8, 2, 1, 16, 16, 0, 0},
        {1, 70, 80, 3, 1, 128, 130, 0, 0}, {8, 70, 80, 3, 1, 130, 127, 0, 0}, {1, 200, 256, 3, 3, 64, 96, 33, 0}};
    tests.push_back({2, 70, 80, 1, 1, 64, 64, 8, 0}), tests.push_back({2, 71, 80, 2, 1, 80, 48, 8, 30});
    for (const int64_t past : {0, 3, 63, 64, 77}) tests.push_back({1, past, past + 1, 2 * (past % 4 + 1), 2, 32 * s.rng.range(1, 4), 32, 0, 0});

    for (int n = 0; n < 30; ++n) {
        Rng &r = s.rng;
        const int64_t hkv = r.range(1, 3), t = r.range(1, 30), past = r.range(0, 150);
        tests.push_back({t, past, t + past + r.range(0, 5), hkv * r.range(1, 5), hkv, r.range(1, 70), r.range(1, 70),
                         r.range(0, 1) * r.range(1, 90), (float)(r.range(0, 1) * 5)});
    }
    for (const Test &t : tests)
        for (const uint8_t dtype : {F32, F16, I8, U8}) {
            Case &c = s.add(text("t %lld past %lld heads %lld/%lld d %lld dv %lld window %lld dtype %d", (long long)t.t,
                                 (long long)t.past, (long long)t.hq, (long long)t.hkv, (long long)t.d, (long long)t.dv,
                                 (long long)t.window, dtype));
            c.out(F32, {t.t, t.hq * t.dv}).in(F32, {t.t, t.hq * t.d}, -3, 3);
            cache_in(c, dtype, {t.hkv, t.context, t.d}, -3, 3);
            cache_in(c, dtype, {t.hkv, t.context, t.dv}, -1, 1);
            c.ints({t.past, t.hq, t.hkv, t.window}).floats({1 / sqrtf((float)t.d), t.softcap});
            finish(c, cached_reference);
        }
}

CASES(attention) {
    struct Test {
        int64_t b, t, s, hq, hkv, d, dv, causal, offset;
        int mask;  // 0 none, 1 added, 2 keep; 3 added, all -inf for some rows
        Dims dims;
        float softcap;
    };
    std::vector<Test> tests = {
        {1, 1, 1, 1, 1, 16, 16, 0, 0, 0, {}, 0},    {1, 197, 197, 3, 3, 64, 64, 0, 0, 0, {}, 0},
        {2, 50, 77, 4, 2, 32, 40, 0, 0, 0, {}, 0},  {2, 5, 9, 4, 2, 17, 19, 1, 4, 0, {}, 0},
        {1, 9, 5, 2, 1, 16, 16, 1, -4, 0, {}, 0},   {1, 9, 5, 2, 1, 16, 16, 1, -100, 0, {}, 0},
        {1, 9, 5, 2, 1, 16, 16, 1, 100, 0, {}, 0},  {2, 6, 70, 4, 2, 16, 16, 0, 0, 1, {2, 4, 6, 70}, 0},
        {2, 6, 70, 4, 2, 16, 16, 0, 0, 2, {1, 1, 6, 70}, 0}, {2, 6, 70, 4, 4, 16, 16, 0, 0, 2, {2, 1, 1, 70}, 0},
        {2, 60, 70, 4, 2, 16, 16, 1, 10, 1, {1, 4, 1, 70}, 20}, {1, 20, 130, 2, 2, 16, 16, 0, 0, 3, {1, 1, 20, 130}, 0},
        {1, 20, 130, 2, 2, 16, 16, 0, 0, 2, {1, 2, 20, 130}, 5}, {1, 3, 0, 2, 2, 16, 16, 0, 0, 0, {}, 0}};
    for (int n = 0; n < 30; ++n) {
        Rng &r = s.rng;
        const int64_t b = r.range(1, 2), hkv = r.range(1, 3), hq = hkv * r.range(1, 4), t = r.range(1, 60), length = r.range(1, 140);
        const Dims dims = {r.range(0, 1) ? b : 1, r.range(0, 1) ? hq : 1, r.range(0, 1) ? t : 1, length};
        tests.push_back({b, t, length, hq, hkv, r.range(1, 70), r.range(1, 70), r.range(0, 1), r.range(-20, 100), (int)r.range(0, 3),
                         dims, (float)(r.range(0, 1) * 4)});
    }
    for (const Test &t : tests) {
        Case &c = s.add(text("b %lld t %lld s %lld heads %lld/%lld d %lld dv %lld causal %lld offset %lld mask %d", (long long)t.b,
                             (long long)t.t, (long long)t.s, (long long)t.hq, (long long)t.hkv, (long long)t.d, (long long)t.dv,
                             (long long)t.causal, (long long)t.offset, t.mask));
        c.out(F32, {t.b, t.t, t.hq * t.dv}).in(F32, {t.b, t.t, t.hq * t.d}, -3, 3);
        c.in(F32, {t.b, t.s, t.hkv * t.d}, -3, 3).in(F32, {t.b, t.s, t.hkv * t.dv});
        if (t.mask == 0) c.none();
        else if (t.mask == 1) c.in(F32, t.dims, -4, 4);
        else if (t.mask == 2) c.in(BOOL, t.dims);
        else {
            std::vector<double> v;
            for (int64_t e = 0; e < t.dims[0] * t.dims[1] * t.dims[2] * t.s; ++e) v.push_back(e / t.s % 3 == 1 ? -kInf : s.rng.uniform(-2, 2));
            c.values(F32, t.dims, v);
        }
        c.ints({t.hq, t.hkv, t.causal, t.offset}).floats({1 / sqrtf((float)t.d), t.softcap});
        finish(c, full_reference);
    }
}
