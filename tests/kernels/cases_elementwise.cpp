// unary, binary, glu, where. The special values go through every function at every lane position.
#include <limits>

#include "reference.h"

using namespace kt;

// Around the lanes of every instruction set, and around a tile of flat kernels.
static const int64_t kSizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100, 16383, 16384, 16385, 40001};

static const double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();

static void unary_reference(Case &c) {
    for (size_t e = 0; e < c.op[0].real.size(); ++e)
        c.op[0].real[e] = ref_unary(c.i[0], c.op[1].real[e], (double)c.f[0], (double)c.f[1]);
}

struct UnaryTest {
    int64_t code;
    double lo, hi, tolerance;
    float a, b;
};

CASES(unary) {
    // Tolerances: exact operations at one rounding; functions as math.h promises, relative to max(1, |y|).
    static const UnaryTest tests[] = {
        {0, -9, 9, 0, 0, 0},           {1, -9, 9, 0, 0, 0},           {2, -9, 9, 0, -1.5f, 4.25f},
        {3, -30, 30, 4e-7, 0, 0},      {4, -30, 30, 4e-7, 0, 0},      {5, -12, 12, 4e-7, 0, 0},
        {6, -9, 9, 4e-7, 0, 0},        {7, -9, 9, 4e-7, 0, 0},        {8, -9, 9, 2e-7, 0, 0},
        {9, -9, 9, 2e-7, 0.2f, 0.5f},  {10, -9, 9, 1e-7, 0.1f, 0},    {11, -20, 20, 3e-7, 1.3f, 0},
        {12, -30, 30, 4e-7, 0, 0},     {13, -30, 30, 5e-7, 0, 0},     {32, -9, 9, 0, 0, 0},
        {33, -9, 9, 0, 0, 0},          {34, -20, 20, 3e-7, 0, 0},     {35, 1e-6, 1e6, 3e-7, 0, 0},
        {36, 0, 1e6, 1e-7, 0, 0},      {37, 0.1, 9, 1e-7, 0, 0},      {38, -5, 5, 4e-7, 0, 0},
        {39, -1000, 1000, 2e-7, 0, 0}, {40, -1000, 1000, 2e-7, 0, 0}, {41, -9, 9, 0, 0, 0},
        {42, -9, 9, 0, 0, 0},          {43, -9, 9, 0, 0, 0},          {44, -9, 9, 0, 0, 0},
        {46, 0.01, 9, 3e-7, 0, 0},     {47, -9, 9, 1e-7, 0, 0}};
    for (const UnaryTest &t : tests) {
        for (const int64_t n : {s.rng.range(1, 40), kSizes[s.rng.range(0, 17)]}) {
            Case &c = s.add(text("code %lld n %lld", (long long)t.code, (long long)n));
            c.out(F32, {n}).in(F32, {n}, t.lo, t.hi).ints({t.code}).floats({t.a, t.b}).also_in_place(0, 1);
            c.reference = unary_reference;
            c.scale = ELEMENT;
            c.tolerance = t.tolerance;
        }
    }
    for (const int64_t n : kSizes) {
        Case &c = s.add(text("silu n %lld", (long long)n));
        c.out(F32, {n}).in(F32, {n}, -9, 9).ints({4}).floats({0, 0}).also_in_place(0, 1);
        c.reference = unary_reference;
        c.scale = ELEMENT;
        c.tolerance = 4e-7;
    }
    // Tails: relative to the result itself. exp down to its smallest normal result, log across the whole range.
    struct Tail { int64_t code; double lo, hi, tolerance; };
    for (const Tail &t : {Tail{34, -87, 88.7, 3e-7}, Tail{3, -60, 0, 1e-6}, Tail{6, -5, -1, 3e-6},
                          Tail{12, -60, 0, 6e-7}, Tail{4, -60, 0, 1e-6}, Tail{13, -60, 0, 1e-6},
                          Tail{11, -1e-3, 0, 3e-7}, Tail{5, -0.01, 0.01, 3e-7}, Tail{38, -0.01, 0.01, 3e-7}}) {
        Case &c = s.add(text("tail of code %lld", (long long)t.code));
        c.out(F32, {999}).in(F32, {999}, t.lo, t.hi).ints({t.code}).floats({1, 0});
        c.reference = unary_reference;
        c.scale = ELEMENT;
        c.floor = 1e-38;
        c.tolerance = t.tolerance;
    }
    {
        std::vector<double> x;
        for (int n = 0; n < 2000; ++n) x.push_back(exp(s.rng.uniform(-103, 88)));
        Case &c = s.add("log from denormals to the largest");
        c.out(F32, {2000}).values(F32, {2000}, x).ints({35}).floats({0, 0});
        c.reference = unary_reference;
        c.scale = ELEMENT;
        c.tolerance = 3e-7;
    }
    // inf, NaN, zeros, overflow and underflow, rotated through all lanes. Where the formula of a smooth activation is
    // inf * 0 or inf / inf at -inf (silu, gelu by tanh, mish), the kernel has the formula's NaN; erf-gelu has 0.
    for (const UnaryTest &t : tests) {
        std::vector<double> special = {0,      -0.0, kNan, kInf, 89,      -104,     -150, 700, 1e-30,
                                       -1e-30, 0.5,  -0.5, 2.5,  8388609, -8388609, 3e9,  -3e9};
        const bool formula = t.code == 4 || t.code == 7 || t.code == 13;
        if (!formula) special.push_back(-kInf);
        if (t.code == 39 || t.code == 40) special.resize(3);
        std::vector<double> x;
        for (size_t shift = 0; shift < special.size(); ++shift)
            for (size_t j = 0; j < special.size(); ++j) x.push_back(special[(j + shift) % special.size()]);
        Case &c = s.add(text("special values of code %lld", (long long)t.code));
        c.out(F32, {(int64_t)x.size()}).values(F32, {(int64_t)x.size()}, x).ints({t.code}).floats({t.a, t.b});
        c.reference = [](Case &k) {
            unary_reference(k);
            for (size_t e = 0; e < k.op[0].real.size(); ++e)
                if (k.i[0] == 6 && k.op[1].real[e] == -kInf) k.op[0].real[e] = 0;
        };
        c.scale = ELEMENT;
        c.tolerance = std::max(t.tolerance, 1e-7);
    }
    for (const int64_t n : {1, 17, 40000}) {
        Case &c = s.add(text("not n %lld", (long long)n));
        c.out(BOOL, {n}).in(BOOL, {n}).ints({45}).floats({0, 0}).also_in_place(0, 1);
        c.reference = [](Case &k) {
            for (size_t e = 0; e < k.op[0].whole.size(); ++e) k.op[0].whole[e] = !k.op[1].whole[e];
        };
    }
    Case &c = s.add("a scalar");
    c.out(F32, {}).in(F32, {}).ints({32}).floats({0, 0});
    c.reference = unary_reference;
    Case &z = s.add("nothing");
    z.out(F32, {3, 0, 2}).in(F32, {3, 0, 2}).ints({32}).floats({0, 0});
    z.reference = unary_reference;
}

CASES(glu) {
    for (int64_t act = 0; act <= 13; ++act) {
        for (const int64_t n : {s.rng.range(1, 40), kSizes[act + 4]}) {
            Case &c = s.add(text("act %lld n %lld", (long long)act, (long long)n));
            c.out(F32, {n}).in(F32, {n}, -4, 4).in(F32, {n}, -4, 4).ints({act}).floats({0.25f, 0.5f});
            c.also_in_place(0, 1).also_in_place(0, 2);
            c.reference = [](Case &k) {
                for (size_t e = 0; e < k.op[0].real.size(); ++e)
                    k.op[0].real[e] =
                        ref_act(k.i[0], k.op[1].real[e], (double)k.f[0], (double)k.f[1]) * k.op[2].real[e];
            };
            c.scale = ELEMENT;
            c.tolerance = 2e-6;
        }
    }
}

static void binary_reference(Case &c) {
    Operand &y = c.op[0];
    const Operand &p = c.op[1], &q = c.op[2];
    const int64_t op = c.i[0];
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        const size_t l = (size_t)ref_flat(p.view, at), r = (size_t)ref_flat(q.view, at), to = (size_t)e;
        if (p.view.dtype == F32) {
            if (op >= 8) y.whole[to] = ref_compare(op, p.real[l], q.real[r]);
            else y.real[to] = ref_binary(op, p.real[l], q.real[r]);
            continue;
        }
        const int64_t a = p.whole[l], b = q.whole[r];
        if (op == 13) y.whole[to] = a && b;
        else if (op == 14) y.whole[to] = a || b;
        else if (op == 15) y.whole[to] = a != b;
        else if (op >= 8) y.whole[to] = ref_compare(op, a, b);
        else if (p.view.dtype == I32) y.whole[to] = (int32_t)ref_binary_whole(op, a, b);
        else y.whole[to] = ref_binary_whole(op, a, b);
    }
}

struct Shapes { Dims y, p, q; };

CASES(binary) {
    const int64_t n = s.rng.range(18, 70);
    const std::vector<Shapes> shapes = {{{n}, {n}, {n}},
                                        {{5, n}, {5, n}, {n}},
                                        {{5, n}, {n}, {5, n}},
                                        {{5, n}, {5, n}, {5, 1}},
                                        {{5, n}, {5, 1}, {5, n}},
                                        {{3, n}, {3, n}, {}},
                                        {{3, n}, {1}, {3, n}},
                                        {{4, 3, n}, {4, 1, n}, {1, 3, 1}},
                                        {{2, 3, 4, 5}, {2, 1, 4, 1}, {3, 1, 5}},
                                        {{2, 7, 9, 5}, {2, 7, 9, 5}, {2, 1, 1, 5}},
                                        {{2, 3, 1, 5}, {2, 3, 1, 5}, {2, 3, 1, 5}},
                                        {{}, {}, {}},
                                        {{1}, {1}, {}},
                                        {{4, 5}, {4, 1}, {1, 5}},
                                        {{2, 0, 3}, {2, 1, 3}, {0, 1}},
                                        {{16400}, {16400}, {1}},
                                        {{5, 8191}, {5, 1}, {8191}},
                                        {{2, 1, 2, 1, 2, 3, 2, 2}, {2, 1, 2, 1, 2, 3, 2, 2}, {2, 1, 1, 1, 2, 1, 2, 1}}};
    auto add = [&](int64_t op, uint8_t dtype, const Shapes &x, double lo, double hi) -> Case & {
        Case &c = s.add(text("op %lld dtype %d rank %zu n %lld", (long long)op, dtype, x.y.size(), (long long)n));
        c.out(op >= 8 && op <= 12 ? (uint8_t)BOOL : dtype, x.y)
            .in(dtype, x.p, lo, hi)
            .in(dtype, x.q, lo, hi)
            .ints({op});
        const bool alike = !(op >= 8 && op <= 12);
        if (alike && x.p == x.y) c.also_in_place(0, 1);
        if (alike && x.q == x.y) c.also_in_place(0, 2);
        c.reference = binary_reference;
        c.scale = ELEMENT;
        c.tolerance = 1e-6;
        return c;
    };
    for (const Shapes &x : shapes) {
        add(0, F32, x, -2, 2);
        add(9, F32, x, -2, 2);
        add(13, BOOL, x, 0, 1);
        add(0, I64, x, -100, 100);
    }
    for (int64_t op = 0; op <= 12; ++op)
        for (const size_t k : {0, 1, 2, 3, 4, 5, 6, 7}) add(op, F32, shapes[k], op == 4 ? 0.1 : op == 3 ? 0.5 : -2, 3);
    for (int64_t op = 0; op <= 12; ++op)
        for (const size_t k : {0, 1, 4})
            for (const uint8_t dtype : {(uint8_t)I32, (uint8_t)I64})
                add(op, dtype, shapes[k], op == 4 ? -2 : -5, op == 4 ? 3 : 5);
    for (const int64_t op : {8, 13, 14, 15}) add(op, BOOL, shapes[1], 0, 1);
    for (const int64_t size : kSizes) add(2, F32, {{size}, {size}, {size}}, -2, 2);
    // The corners of integer arithmetic, each with each.
    for (const uint8_t dtype : {(uint8_t)I32, (uint8_t)I64}) {
        const int64_t lo = dtype == I32 ? INT32_MIN : INT64_MIN, hi = dtype == I32 ? INT32_MAX : INT64_MAX;
        for (const int64_t op : {0, 1, 2, 3, 5, 6, 7, 8, 9, 12}) {
            Case &c = s.add(text("corners of op %lld dtype %d", (long long)op, dtype));
            c.out(op >= 8 ? (uint8_t)BOOL : dtype, {8, 8}).in(dtype, {8, 1}).in(dtype, {1, 8}).ints({op});
            const std::vector<int64_t> corner = {lo, lo + 1, -1, 0, 1, 2, hi - 1, hi};
            c.op[1].whole = c.op[2].whole = corner;
            c.reference = binary_reference;
        }
    }
    // Comparisons, minimum and maximum with NaN on either side, division by zero, infinities.
    const std::vector<double> special = {kNan, kInf, -kInf, 0, 1, -1, 3e38, 1e-38, 0.5, kNan, 2, 3, 4, 5, 6, 7, 8};
    for (const int64_t op : {0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 12}) {
        Case &c = s.add(text("special values of op %lld", (long long)op));
        c.out(op >= 8 ? (uint8_t)BOOL : (uint8_t)F32, {17, 17})
            .values(F32, {17, 1}, special)
            .values(F32, {17}, special)
            .ints({op});
        c.reference = binary_reference;
        c.scale = ELEMENT;
    }
}

CASES(where) {
    const int64_t n = s.rng.range(18, 70);
    struct Four { Dims y, c, p, q; };
    const std::vector<Four> shapes = {
        {{n}, {n}, {n}, {n}},      {{4, n}, {4, 1}, {n}, {4, n}},       {{4, n}, {1, n}, {}, {4, n}},
        {{4, n}, {4, n}, {1}, {}}, {{2, 3, 5}, {3, 1}, {2, 1, 5}, {5}}, {{3, 7000}, {3, 7000}, {3, 7000}, {1}},
        {{}, {}, {}, {}},          {{0, 2}, {0, 2}, {2}, {1, 1}}};
    for (const Four &x : shapes) {
        for (const uint8_t dtype : {F32, F16, I8, I32, I64, BOOL}) {
            Case &c = s.add(text("dtype %d rank %zu", dtype, x.y.size()));
            c.out(dtype, x.y).in(BOOL, x.c).in(dtype, x.p).in(dtype, x.q);
            c.reference = [](Case &k) {
                for (int64_t e = 0; e < k.op[0].count(); ++e) {
                    const Dims at = ref_index(k.op[0].view, e);
                    const int from = k.op[1].whole[(size_t)ref_flat(k.op[1].view, at)] ? 2 : 3;
                    ref_move(&k.op[0], e, k.op[(size_t)from], ref_flat(k.op[(size_t)from].view, at));
                }
            };
            c.tolerance = 0;
        }
    }
}
