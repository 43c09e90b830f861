// linear, conv2d, dwconv2d, pool2d, matmul: sizes below, at and above every tile of every instruction set.
#include <limits>

#include "reference.h"

using namespace kt;

static const float kActA = -0.4f, kActB = 1.25f;  // a sensible a and b for every activation code

// A sum of k products of values in [-1, 1] is of size sqrt(k) / 3: errors are relative to that or to the result.
static void scaled(Case &c, int64_t k) {
    c.scale = ELEMENT;
    c.floor = std::max(1.0, sqrt((double)k) / 3);
    c.tolerance = 5e-6;
}

// v + bias -> act -> residual as the operands at `bias` and bias + 1 and the ints from `act` on say.
static double finish(const Case &c, double v, int64_t element, int64_t channel, size_t bias, size_t act) {
    const Operand &b = c.op[bias], &r = c.op[bias + 1];
    if (!b.absent) v += b.real[(size_t)channel];
    const double add = r.absent ? 0 : r.real[(size_t)element];
    return c.i[act + 1] ? ref_act(c.i[act], v + add, c.f[0], c.f[1]) : ref_act(c.i[act], v, c.f[0], c.f[1]) + add;
}

static void linear_reference(Case &c) {
    const int64_t n = c.op[2].dim(0), k = c.op[2].dim(1);
    for (int64_t e = 0; e < c.op[0].count(); ++e) {
        double v = 0;
        for (int64_t j = 0; j < k; ++j) v += c.op[1].real[(size_t)(e / n * k + j)] * c.op[2].real[(size_t)(e % n * k + j)];
        c.op[0].real[(size_t)e] = finish(c, v, e, e % n, 3, 0);
    }
}

static Case &add_linear(Suite &s, const Dims &lead, int64_t n, int64_t k, uint8_t dtype, int64_t act, int features) {
    Dims y = lead, x = lead;
    y.push_back(n);
    x.push_back(k);
    int64_t m = 1;
    for (const int64_t d : lead) m *= d;
    const bool bias = features & 1, residual = features & 2, first = features & 4;
    Case &c = s.add(text("m %lld n %lld k %lld dtype %d act %lld features %d", (long long)m, (long long)n, (long long)k, dtype,
                         (long long)act, features));
    c.out(F32, y).in(F32, x).in(dtype, {n, k}, PANEL16);
    bias ? c.in(F32, {n}) : c.none();
    residual ? c.in(F32, y) : c.none();
    c.ints({act, first}).floats({kActA, kActB});
    c.reference = linear_reference;
    scaled(c, k);
    return c;
}

CASES(linear) {
    const uint8_t dtypes[] = {F32, F16, BF16};
    int64_t turn = 0;
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 23, 24, 25, 47, 48, 49, 97})
        for (const int64_t n : {1, 15, 16, 17, 31, 32, 33, 64, 65, 130}) {
            const int64_t ks[] = {1, 2, 3, 4, 7, 8, 9, 17, 40, 129}, k = ks[turn % 10];
            add_linear(s, {m}, n, k, dtypes[turn % 3], turn % 14, (int)(turn % 8));
            ++turn;
        }
    // Every k around the unrolled loops of the matrix-vector path, and one around the row chunk of the cache blocking.
    for (int64_t m = 1; m <= 4; ++m)
        for (int64_t k = 0; k <= 20; ++k) add_linear(s, {m}, 18, k, dtypes[k % 3], 0, (int)(k % 8));
    for (const uint8_t dtype : dtypes) add_linear(s, {150}, 100, 1500, dtype, 1, 3);
    for (const uint8_t dtype : dtypes) add_linear(s, {2, 3, 4}, 48, 32, dtype, 2, 7);
    add_linear(s, {}, 7, 5, F32, 0, 1);
    add_linear(s, {0, 3}, 7, 5, F16, 0, 3);
    add_linear(s, {3}, 0, 5, F32, 0, 0);
    // Sums that are -0 stay so, into whichever tiles the columns are cut.
    for (const int64_t m : {4, 97}) {
        Case &c = add_linear(s, {m}, 70, 4, F32, 0, 1);
        std::fill(c.op[1].real.begin(), c.op[1].real.end(), 0.0);
        std::fill(c.op[2].real.begin(), c.op[2].real.end(), -1.0);
        std::fill(c.op[3].real.begin(), c.op[3].real.end(), -0.0);
    }
}

static void linear_split_reference(Case &c) {
    const Operand &x = c.op[4], &w = c.op[5], &bias = c.op[6];
    const int64_t k = w.dim(1);
    int64_t first = 0;  // the row of w where an output begins
    for (size_t o = 0; o < 4; ++o) {
        Operand &y = c.op[o];
        if (y.absent) continue;
        const int64_t n = y.dim(-1);
        for (int64_t e = 0; e < y.count(); ++e) {
            const int64_t row = first + e % n;
            double v = bias.absent ? 0 : bias.real[(size_t)row];
            for (int64_t j = 0; j < k; ++j) v += x.real[(size_t)(e / n * k + j)] * w.real[(size_t)(row * k + j)];
            y.real[(size_t)e] = ref_act(c.i[0], v, c.f[0], c.f[1]);
        }
        first += n;
    }
}

// n: the widths of the four outputs; -1 for an absent one.
static void add_linear_split(Suite &s, const Dims &lead, const Dims &n, int64_t k, uint8_t dtype, int64_t act, bool bias) {
    Dims x = lead;
    x.push_back(k);
    int64_t total = 0;
    Case &c = s.add(text("rows %lld n %lld %lld %lld %lld k %lld dtype %d act %lld bias %d",
                         (long long)(lead.empty() ? 1 : lead.back()), (long long)n[0], (long long)n[1], (long long)n[2],
                         (long long)n[3], (long long)k, dtype, (long long)act, bias));
    for (const int64_t width : n) {
        Dims y = lead;
        y.push_back(width);
        width < 0 ? c.none() : c.out(F32, y);
        total += std::max<int64_t>(width, 0);
    }
    c.in(F32, x).in(dtype, {total, k}, PANEL16);
    bias ? c.in(F32, {total}) : c.none();
    c.ints({act}).floats({kActA, kActB});
    c.reference = linear_split_reference;
    scaled(c, k);
}

CASES(linear_split) {
    const uint8_t dtypes[] = {F32, F16, BF16};
    const Dims widths[] = {{48, 16, 16, -1}, {16, 33, -1, -1},  {64, 64, -1, -1}, {16, -1, -1, -1}, {32, -1, 16, 1},
                           {16, 80, 16, 15}, {7, -1, -1, -1},   {128, -1, -1, 65}, {16, 0, 32, 17}};
    int64_t turn = 0;
    for (const int64_t m : {1, 2, 3, 4, 5, 13, 23, 24, 47, 48, 49, 97, 200})
        for (const Dims &n : widths) {
            const int64_t ks[] = {1, 2, 7, 8, 9, 40, 129};
            add_linear_split(s, {m}, n, ks[turn % 7], dtypes[turn % 3], turn % 14, turn & 1);
            ++turn;
        }
    for (const uint8_t dtype : dtypes) add_linear_split(s, {150}, {96, 32, 100, -1}, 1500, dtype, 0, true);
    for (const uint8_t dtype : dtypes) add_linear_split(s, {2, 3, 4}, {48, 16, 16, 16}, 32, dtype, 2, false);
    add_linear_split(s, {}, {16, 7, -1, -1}, 5, F32, 0, true);
    add_linear_split(s, {0, 3}, {16, 7, -1, -1}, 5, F16, 0, true);
    add_linear_split(s, {3}, {16, 16, -1, -1}, 0, F32, 0, true);
}

struct Conv {
    int64_t b, h, w, ci, co, kh, kw, sh, sw, pt, pl, pb, pr, dh, dw, groups;
};

static int64_t out_size(int64_t in, int64_t k, int64_t s, int64_t before, int64_t after, int64_t d) {
    return std::max<int64_t>(0, (in + before + after - d * (k - 1) - 1) / s + 1);
}

// Position of tap (ky, kx) of output (oy, ox) in x, or -1 outside.
static int64_t tap(const Operand &x, const int64_t *i, int64_t b, int64_t oy, int64_t ox, int64_t ky, int64_t kx) {
    const int64_t y = oy * i[2] - i[4] + ky * i[6], z = ox * i[3] - i[5] + kx * i[7];
    if (y < 0 || y >= x.dim(1) || z < 0 || z >= x.dim(2)) return -1;
    return ((b * x.dim(1) + y) * x.dim(2) + z) * x.dim(3);
}

static void conv_reference(Case &c) {
    Operand &y = c.op[0];
    const int64_t kh = c.i[0], kw = c.i[1], groups = c.i[8], ci = c.op[1].dim(3) / groups, co = y.dim(3) / groups;
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        const int64_t g = at[3] / co;
        double v = 0;
        for (int64_t ky = 0; ky < kh; ++ky)
            for (int64_t kx = 0; kx < kw; ++kx) {
                const int64_t from = tap(c.op[1], c.i.data(), at[0], at[1], at[2], ky, kx);
                if (from < 0) continue;
                for (int64_t j = 0; j < ci; ++j)
                    v += c.op[1].real[(size_t)(from + g * ci + j)] *
                         c.op[2].real[(size_t)((at[3] * kh * kw + ky * kw + kx) * ci + j)];
            }
        y.real[(size_t)e] = finish(c, v, e, at[3], 3, 9);
    }
}

static void dwconv_reference(Case &c) {
    Operand &y = c.op[0];
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        double v = 0;
        for (int64_t k = 0; k < c.i[0] * c.i[1]; ++k) {
            const int64_t from = tap(c.op[1], c.i.data(), at[0], at[1], at[2], k / c.i[1], k % c.i[1]);
            if (from >= 0) v += c.op[1].real[(size_t)(from + at[3] % c.op[1].dim(3))] * c.op[2].real[(size_t)(k * y.dim(3) + at[3])];
        }
        y.real[(size_t)e] = finish(c, v, e, at[3], 3, 8);
    }
}

static void pool_reference(Case &c) {
    Operand &y = c.op[0];
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        double sum = 0, most = -std::numeric_limits<double>::infinity();
        int64_t cells = 0;
        for (int64_t k = 0; k < c.i[1] * c.i[2]; ++k) {
            const int64_t from = tap(c.op[1], c.i.data() + 1, at[0], at[1], at[2], k / c.i[2], k % c.i[2]);
            if (from < 0) continue;
            const double v = c.op[1].real[(size_t)(from + at[3])];
            sum += v;
            most = std::max(most, v);
            ++cells;
        }
        const int64_t by = c.i[9] ? c.i[1] * c.i[2] : cells;
        y.real[(size_t)e] = c.i[0] == 0 ? most : by ? sum / (double)by : 0;
    }
}

static std::string conv_label(const Conv &t, int64_t turn) {
    return text("x %lldx%lldx%lldx%lld co %lld k %lldx%lld s %lldx%lld p %lld,%lld,%lld,%lld d %lldx%lld g %lld turn %lld",
                (long long)t.b, (long long)t.h, (long long)t.w, (long long)t.ci, (long long)t.co, (long long)t.kh,
                (long long)t.kw, (long long)t.sh, (long long)t.sw, (long long)t.pt, (long long)t.pl, (long long)t.pb,
                (long long)t.pr, (long long)t.dh, (long long)t.dw, (long long)t.groups, (long long)turn);
}

// depthwise: plain weights [taps, C], else panels; the turn chooses dtype, activation, bias and residual.
static void add_conv(Suite &s, const Conv &t, int64_t turn, bool depthwise) {
    const uint8_t dtypes[] = {F32, F16, BF16};
    const Dims y = {t.b, out_size(t.h, t.kh, t.sh, t.pt, t.pb, t.dh), out_size(t.w, t.kw, t.sw, t.pl, t.pr, t.dw), t.co};
    Case &c = s.add(conv_label(t, turn));
    c.out(F32, y).in(F32, {t.b, t.h, t.w, t.ci});
    if (depthwise) c.in(F32, {t.kh * t.kw, t.co});
    else c.in(dtypes[turn % 3], {t.groups, t.co / t.groups, t.kh * t.kw * t.ci / t.groups}, PANEL16);
    turn & 1 ? c.in(F32, {t.co}) : c.none();
    turn & 2 ? c.in(F32, y) : c.none();
    std::vector<int64_t> i = {t.kh, t.kw, t.sh, t.sw, t.pt, t.pl, t.dh, t.dw};
    if (!depthwise) i.push_back(t.groups);
    i.push_back(turn % 14);
    i.push_back(turn >> 2 & 1);
    c.ints(i).floats({kActA, kActB});
    c.reference = depthwise ? dwconv_reference : conv_reference;
    scaled(c, t.kh * t.kw * (depthwise ? 1 : t.ci / t.groups));
}

// Any window that fits: kernel, stride, padding (also more than the kernel covers) and dilation at random.
static Conv random_conv(Rng &r) {
    Conv t = {r.range(1, 2), r.range(1, 12), r.range(1, 14), r.range(1, 9), r.range(1, 20), r.range(1, 5), r.range(1, 5),
              r.range(1, 3), r.range(1, 3), r.range(0, 4), r.range(0, 4), r.range(0, 4), r.range(0, 4), r.range(1, 3),
              r.range(1, 3), r.range(1, 4)};
    t.ci *= t.groups;
    t.co *= t.groups;
    return t;
}

CASES(conv2d) {
    const Conv tests[] = {
        {1, 17, 19, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1},   // the first layer of a mobile network
        {1, 16, 16, 3, 24, 3, 3, 2, 2, 0, 0, 1, 1, 1, 1, 1},   // padding of "same" with stride 2
        {2, 14, 14, 16, 24, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1},  // pointwise: no gathering
        {1, 9, 11, 24, 40, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 1},
        {1, 10, 10, 32, 48, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 4},  // pointwise with groups
        {1, 12, 13, 20, 36, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
        {1, 12, 13, 24, 33, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, 3},
        {1, 7, 7, 96, 160, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},   // more than one block of panels
        {1, 5, 5, 300, 17, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 1},   // a long inner dimension: the smallest pixel block
        {1, 3, 3, 4, 5, 3, 3, 1, 1, 6, 6, 6, 6, 1, 1, 1},      // windows that lie wholly in the padding
        {1, 8, 1, 4, 16, 3, 1, 2, 1, 1, 0, 1, 0, 1, 1, 1},     // one-dimensional
        {1, 9, 67, 3, 24, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1},    // wide images: rows of windows are not gathered
        {2, 5, 40, 4, 33, 5, 3, 1, 1, 7, 1, 7, 1, 1, 1, 1},    // nor those of which only some rows exist
        {1, 7, 70, 2, 96, 7, 7, 2, 2, 3, 3, 3, 3, 2, 1, 1},
        {2, 2, 701, 2, 17, 2, 3, 1, 1, 1, 1, 0, 1, 1, 1, 1},   // rows so long that several tiles share one
        {0, 8, 8, 4, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
    int64_t turn = 0;
    for (const Conv &t : tests)
        for (int n = 0; n < 3; ++n) add_conv(s, t, turn++, false);
    for (int n = 0; n < 60; ++n) add_conv(s, random_conv(s.rng), turn++, false);
}

// The operands of conv2d; the reference is told the window that this kernel need not be.
static void winograd_reference(Case &c) {
    const std::vector<int64_t> i = c.i;
    c.i = {3, 3, 1, 1, i[0], i[1], 1, 1, 1, i[2], i[3]};
    conv_reference(c);
    c.i = i;
}

CASES(conv2d_winograd) {
    struct Shape {
        int64_t b, h, w, ci, co, pt, pl, pb, pr;
    };
    std::vector<Shape> tests = {
        {1, 8, 8, 16, 16, 1, 1, 1, 1},      {1, 7, 7, 64, 33, 1, 1, 1, 1},   {2, 13, 10, 24, 48, 1, 1, 1, 1},
        {1, 3, 3, 17, 5, 0, 0, 0, 0},       {1, 1, 1, 40, 20, 1, 1, 1, 1},   {1, 6, 9, 150, 16, 2, 0, 0, 2},
        {1, 33, 30, 20, 40, 1, 1, 1, 1},    {3, 12, 21, 31, 18, 1, 1, 1, 1},  // several blocks of tiles, images in one
        {1, 14, 14, 65, 350, 1, 1, 1, 1},                                    // tiles of several panels
        {1, 2, 4, 19, 7, 7, 9, 6, 1},                                        // windows wholly in the padding
        {1, 0, 5, 16, 16, 2, 1, 2, 1},      {0, 8, 8, 16, 16, 1, 1, 1, 1},   {1, 8, 8, 16, 0, 1, 1, 1, 1}};
    for (int n = 0; n < 30; ++n)
        tests.push_back({s.rng.range(1, 2), s.rng.range(1, 14), s.rng.range(1, 14), s.rng.range(16, 70), s.rng.range(1, 70),
                         s.rng.range(0, 3), s.rng.range(0, 3), s.rng.range(0, 3), s.rng.range(0, 3)});
    int64_t turn = 0;
    for (const Shape &t : tests) {
        const Conv like = {t.b, t.h, t.w, t.ci, t.co, 3, 3, 1, 1, t.pt, t.pl, t.pb, t.pr, 1, 1, 1};
        const Dims y = {t.b, out_size(t.h, 3, 1, t.pt, t.pb, 1), out_size(t.w, 3, 1, t.pl, t.pr, 1), t.co};
        Case &c = s.add(conv_label(like, turn));
        c.out(F32, y).in(F32, {t.b, t.h, t.w, t.ci}).in(F32, {1, t.co, 9 * t.ci}, PANEL16);
        turn & 1 ? c.in(F32, {t.co}) : c.none();
        turn & 2 ? c.in(F32, y) : c.none();
        c.ints({t.pt, t.pl, turn % 14, turn >> 2 & 1}).floats({kActA, kActB});
        c.reference = winograd_reference;
        scaled(c, 9 * t.ci);
        c.tolerance = 2e-5;  // sums of values that are larger than what they make
        ++turn;
    }
}

CASES(dwconv2d) {
    int64_t turn = 0;
    for (const int64_t k : {3, 5, 7, 4})
        for (const int64_t stride : {1, 2, 3})
            for (const int64_t channels : {1, 8, 15, 16, 17, 65, 72}) {
                const int64_t w = s.rng.range(k, 17), h = s.rng.range(3, 9);
                const Conv t = {1, h, w, channels, channels, k, k, stride, stride, k / 2, k / 2, k / 2, k / 2, 1, 1, channels};
                add_conv(s, t, turn++, true);
            }
    for (int n = 0; n < 60; ++n) {
        Conv t = random_conv(s.rng);
        t.ci = t.co = s.rng.range(1, 80);
        add_conv(s, t, turn++, true);
        t.co *= s.rng.range(2, 4);
        add_conv(s, t, turn++, true);
    }
}

// Operands y; x, widen?, bias?, w, bias?, narrow, bias?, residual?; the widened image is zero beyond its borders.
static void mbconv_reference(Case &c) {
    Operand &y = c.op[0];
    const Operand &x = c.op[1], &widen = c.op[2], &w = c.op[4], &narrow = c.op[6];
    const int64_t ci = x.dim(3), channels = w.dim(1), co = y.dim(3);
    auto add = [](const Operand &bias, int64_t channel) { return bias.absent ? 0.0 : bias.real[(size_t)channel]; };
    auto act = [&c](int which, double v) { return ref_act(c.i[(size_t)(8 + which)], v, c.f[(size_t)(2 * which)], c.f[(size_t)(2 * which + 1)]); };
    std::vector<double> wide;
    for (int64_t p = 0; p < x.count() / std::max<int64_t>(1, ci); ++p)
        for (int64_t k = 0; k < channels; ++k) {
            double v = widen.absent ? x.real[(size_t)(p * ci + k)] : add(c.op[3], k);
            for (int64_t j = 0; j < ci && !widen.absent; ++j)
                v += x.real[(size_t)(p * ci + j)] * widen.real[(size_t)(k * ci + j)];
            wide.push_back(widen.absent ? v : act(0, v));
        }
    for (int64_t p = 0; p < y.count() / co; ++p) {
        const Dims at = ref_index(y.view, p * co);
        std::vector<double> thin;
        for (int64_t k = 0; k < channels; ++k) {
            double v = add(c.op[5], k);
            for (int64_t t = 0; t < c.i[0] * c.i[1]; ++t) {
                const int64_t from = tap(x, c.i.data(), at[0], at[1], at[2], t / c.i[1], t % c.i[1]);
                if (from >= 0) v += wide[(size_t)(from / ci * channels + k)] * w.real[(size_t)(t * channels + k)];
            }
            thin.push_back(act(1, v));
        }
        for (int64_t n = 0; n < co; ++n) {
            double v = add(c.op[7], n);
            for (int64_t k = 0; k < channels; ++k) v += thin[(size_t)k] * narrow.real[(size_t)(n * channels + k)];
            const double r = c.op[8].absent ? 0 : c.op[8].real[(size_t)(p * co + n)];
            y.real[(size_t)(p * co + n)] = c.i[11] ? act(2, v + r) : act(2, v) + r;
        }
    }
}

CASES(mbconv2d) {
    std::vector<Conv> tests = {{1, 30, 30, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                               {2, 57, 9, 3, 24, 3, 3, 2, 2, 1, 1, 0, 0, 1, 1, 1},    // several tiles of an image
                               {1, 50, 20, 4, 9, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 1},
                               {1, 9, 5, 4, 3, 2, 2, 3, 3, 0, 0, 0, 0, 1, 1, 1},      // rows that no window reads
                               {1, 3, 3, 4, 5, 3, 3, 1, 1, 6, 6, 6, 6, 1, 1, 1}};     // windows wholly in the padding
    for (int n = 0; n < 40; ++n) tests.push_back(random_conv(s.rng));
    tests.push_back({1, 5, 4, 0, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1});  // no channels come in, and none are between
    int64_t turn = 0;
    for (Conv &t : tests) {
        // Wide enough that a band is a part of the image.
        const bool widens = turn % 4 != 3;
        const int64_t channels = t.ci == 0 ? 0 : !widens ? t.ci : turn < 3 ? s.rng.range(150, 250) : s.rng.range(1, 40);
        const Dims y = {t.b, out_size(t.h, t.kh, t.sh, t.pt, t.pb, t.dh), out_size(t.w, t.kw, t.sw, t.pl, t.pr, t.dw), t.co};
        Case &c = s.add(conv_label(t, turn));
        c.out(F32, y).in(F32, {t.b, t.h, t.w, t.ci});
        widens ? c.in(F32, {channels, t.ci}, PANEL16) : c.none();
        widens && turn & 1 ? c.in(F32, {channels}) : c.none();
        c.in(F32, {t.kh * t.kw, channels});
        turn & 2 ? c.in(F32, {channels}) : c.none();
        c.in(F32, {t.co, channels}, PANEL16);
        turn & 4 ? c.in(F32, {t.co}) : c.none();
        turn & 8 ? c.in(F32, y) : c.none();
        c.ints({t.kh, t.kw, t.sh, t.sw, t.pt, t.pl, t.dh, t.dw, widens ? turn % 14 : 0, (turn + 2) % 14, turn % 3 ? 0 : turn % 14,
                turn >> 2 & 1});
        c.floats({kActA, kActB, -0.3f, 1.5f, kActA, kActB});
        c.reference = mbconv_reference;
        scaled(c, 4 * channels);
        ++turn;
    }
}

CASES(pool2d) {
    std::vector<Conv> tests = {{2, 7, 7, 70, 0, 7, 7, 1, 1, 0, 0, 0, 0, 1, 1, 1},    // global
                               {1, 3, 3, 5, 0, 2, 2, 1, 1, 4, 4, 4, 4, 1, 1, 1}};    // empty windows
    for (int n = 0; n < 80; ++n) tests.push_back(random_conv(s.rng));
    int64_t turn = 0;
    for (Conv &t : tests) {
        if (turn > 1) t.ci = s.rng.range(1, 80);
        const Dims y = {t.b, out_size(t.h, t.kh, t.sh, t.pt, t.pb, t.dh), out_size(t.w, t.kw, t.sw, t.pl, t.pr, t.dw), t.ci};
        for (int kind = 0; kind < 2; ++kind) {
            Case &c = s.add(conv_label(t, turn++));
            c.out(F32, y).in(F32, {t.b, t.h, t.w, t.ci});
            c.ints({kind, t.kh, t.kw, t.sh, t.sw, t.pt, t.pl, t.dh, t.dw, turn >> 1 & 1});
            c.reference = pool_reference;
            scaled(c, 1);
        }
    }
}

static void matmul_reference(Case &c) {
    Operand &y = c.op[0], &p = c.op[1], &q = c.op[2];
    const bool trans = c.i[0] != 0;
    const int64_t k = p.dim(-1);
    for (int64_t e = 0; e < y.count(); ++e) {
        Dims at = ref_index(y.view, e);
        const int64_t m = at[at.size() - 2], n = at[at.size() - 1];
        double v = 0;
        for (int64_t j = 0; j < k; ++j) {
            Dims left = at, right = at;
            left[at.size() - 2] = m;
            left[at.size() - 1] = j;
            right[at.size() - 2] = trans ? n : j;
            right[at.size() - 1] = trans ? j : n;
            v += p.real[(size_t)ref_flat(p.view, left)] * q.real[(size_t)ref_flat(q.view, right)];
        }
        y.real[(size_t)e] = v * c.f[0];
    }
}

static void add_matmul(Suite &s, const Dims &y, const Dims &p, Dims q, int64_t m, int64_t n, int64_t k, int64_t trans) {
    Dims to = y, from = p;
    to.insert(to.end(), {m, n});
    from.insert(from.end(), {m, k});
    if (trans) q.insert(q.end(), {n, k});
    else q.insert(q.end(), {k, n});
    Case &c = s.add(text("rank %zu m %lld n %lld k %lld trans %lld", to.size(), (long long)m, (long long)n, (long long)k,
                         (long long)trans));
    c.out(F32, to).in(F32, from).in(F32, q).ints({trans}).floats({(float)s.rng.uniform(0.5, 1.5)});
    c.reference = matmul_reference;
    scaled(c, k);
}

CASES(matmul) {
    for (int64_t trans = 0; trans < 2; ++trans) {
        for (const int64_t m : {1, 3, 12, 13, 200})
            for (const int64_t n : {1, 15, 16, 17, 33, 64, 90}) add_matmul(s, {}, {}, {}, m, n, s.rng.range(1, 70), trans);
        add_matmul(s, {2, 3}, {2, 3}, {2, 3}, 5, 20, 9, trans);
        add_matmul(s, {2, 3}, {2, 1}, {1, 3}, 5, 20, 9, trans);
        add_matmul(s, {2, 3}, {3}, {2, 1}, 5, 20, 9, trans);
        add_matmul(s, {2, 3}, {}, {2, 3}, 5, 20, 9, trans);
        add_matmul(s, {4, 2, 3}, {4, 1, 3}, {2, 1}, 5, 20, 9, trans);
        add_matmul(s, {2}, {2}, {2}, 5, 20, 0, trans);
        add_matmul(s, {0}, {0}, {1}, 5, 20, 3, trans);
    }
}
