// The kernels for 8-bit integers: equal to integer references to the last bit, on every instruction set. What is rounded
// is one product in float32, as docs/kernels.md says.
#include "reference.h"

using namespace kt;

// A value of an operand, of u8.
static int64_t byte_at(const Operand &o, int64_t e) { return o.whole[(size_t)e] + (o.view.dtype == I8 ? 128 : 0); }

static void put_result(Operand &y, int64_t e, float v, int64_t zero, int64_t lo, int64_t hi) {
    int64_t r = hi;  // of a NaN, too
    if (v <= (float)(lo - zero)) r = lo;
    else if (v < (float)(hi - zero)) r = (int64_t)nearbyint((double)v) + zero;
    y.whole[(size_t)e] = r - (y.view.dtype == I8 ? 128 : 0);
}

static const uint8_t kKinds[] = {U8, I8};

static Case &bytes(Case &c, uint8_t dtype, const Dims &dims, bool extreme) {
    c.in(dtype, dims, dtype == I8 ? -128 : 0, dtype == I8 ? 127 : 255);
    if (extreme)
        for (int64_t &x : c.op.back().whole) x = dtype == I8 ? (x < 0 ? -128 : 127) : (x < 128 ? 0 : 255);
    return c;
}

CASES(quantize) {
    for (const int64_t n : {0, 1, 3, 7, 8, 9, 16, 37, 1000, 16384, 16390}) {
        const int64_t t[] = {n % 3 * 100, n % 2 * 10, 255 - n % 2 * 9};
        const int64_t zero = t[0], lo = t[1], hi = t[2];
        const float scale = (float)s.rng.uniform(0.001, 0.5);
        Case &c = s.add(text("%lld", (long long)n));
        c.out(kKinds[n % 2], {n}).in(F32, {n}, -40, 40).ints({zero, lo, hi}).floats({scale});
        if (n == 1000) {
            const double odd[] = {NAN, INFINITY, -INFINITY, 1e30, -1e30, 0.0, -0.0, 1e-40};
            for (size_t k = 0; k < 8; ++k) c.op[1].real[k] = (double)(float)odd[k];
            for (size_t k = 8; k < 500; ++k) c.op[1].real[k] = (double)(float)(((double)k - 250.5) * (double)scale);  // ties
        }
        c.reference = [=](Case &k) {
            for (int64_t e = 0; e < n; ++e) put_result(k.op[0], e, (float)k.op[1].real[(size_t)e] / scale, zero, lo, hi);
        };
    }
}

CASES(dequantize) {
    for (const int64_t n : {0, 1, 3, 7, 8, 9, 16, 37, 1000, 16390}) {
        const int64_t zero = n * 13 % 256;
        const float scale = (float)s.rng.uniform(0.001, 0.5);
        Case &c = s.add(text("%lld", (long long)n));
        bytes(c.out(F32, {n}), kKinds[n % 2], {n}, false).ints({zero}).floats({scale});
        c.reference = [=](Case &k) {
            for (int64_t e = 0; e < n; ++e) k.op[0].real[(size_t)e] = (double)((float)(byte_at(k.op[1], e) - zero) * scale);
        };
        c.tolerance = 0;
    }
}

CASES(table_q8) {
    for (const int64_t n : {0, 1, 300, 16390})
        for (int turn = 0; turn < 4; ++turn) {
            Case &c = s.add(text("%lld turn %d", (long long)n, turn));
            bytes(bytes(c.out(kKinds[turn % 2], {n}), kKinds[turn / 2], {n}, false), U8, {256}, false);
            c.reference = [=](Case &k) {
                for (int64_t e = 0; e < n; ++e)
                    k.op[0].whole[(size_t)e] =
                        k.op[2].whole[(size_t)byte_at(k.op[1], e)] - (k.op[0].view.dtype == I8 ? 128 : 0);
            };
        }
}

CASES(add_q8) {
    for (const int64_t n : {0, 1, 3, 7, 8, 9, 16, 37, 1000, 16390})
        for (int turn = 0; turn < 5; ++turn) {
            const int64_t most = (int64_t(1) << 28) - 1, shift = turn == 4 ? 0 : s.rng.range(24, 30);
            const int64_t za = s.rng.range(0, 255), zb = s.rng.range(0, 255), zero = s.rng.range(0, 255);
            const int64_t p = turn == 4 ? most : s.rng.range(-most, most), q = turn == 4 ? -most : s.rng.range(-most, most);
            Case &c = s.add(text("%lld turn %d", (long long)n, turn));
            c.out(kKinds[turn % 2], {n});
            bytes(bytes(c, kKinds[turn / 2 % 2], {n}, turn == 3), kKinds[(turn + 1) / 2 % 2], {n}, turn == 3);
            c.ints({za, zb, zero, turn % 3, 255 - turn % 2, p, q, shift});
            c.reference = [=](Case &k) {
                for (int64_t e = 0; e < n; ++e) {
                    const int64_t sum = (byte_at(k.op[1], e) - za) * p + (byte_at(k.op[2], e) - zb) * q;
                    put_result(k.op[0], e, (float)ldexp((double)sum, (int)-shift), zero, k.i[3], k.i[4]);
                }
            };
        }
}

struct Window8 {
    int64_t b, h, w, ci, co, kh, kw, sh, sw, pt, pl, pb, pr, dh, dw, groups;
};

static Dims out_dims(const Window8 &t, int64_t channels) {
    const auto size = [](int64_t in, int64_t k, int64_t s, int64_t pads, int64_t d) {
        return std::max<int64_t>(0, (in + pads - d * (k - 1) - 1) / s + 1);
    };
    return {t.b, size(t.h, t.kh, t.sh, t.pt + t.pb, t.dh), size(t.w, t.kw, t.sw, t.pl + t.pr, t.dw), channels};
}

// Where tap (ky, kx) of output (oy, ox) lies in x, or -1 outside.
static int64_t tap8(const Operand &x, const int64_t *i, const Dims &at, int64_t ky, int64_t kx) {
    const int64_t y = at[1] * i[2] - i[4] + ky * i[6], z = at[2] * i[3] - i[5] + kx * i[7];
    if (y < 0 || y >= x.dim(1) || z < 0 || z >= x.dim(2)) return -1;
    return ((at[0] * x.dim(1) + y) * x.dim(2) + z) * x.dim(3);
}

static void conv_q8_reference(Case &c) {
    Operand &y = c.op[0];
    const int64_t kh = c.i[0], kw = c.i[1], groups = c.i[8], ci = c.op[1].dim(3) / groups, co = y.dim(3) / groups;
    const int64_t panels = c.op[2].dim(1), pairs = c.op[2].dim(2), pad = c.i[9];
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        const int64_t g = at[3] / co, n = at[3] % co;
        int64_t sum = c.op[3].whole[(size_t)at[3]];
        for (int64_t t = 0; t < kh * kw; ++t) {
            const int64_t from = tap8(c.op[1], c.i.data(), at, t / kw, t % kw);
            for (int64_t j = 0; j < ci; ++j) {
                const int64_t k = t * ci + j;
                const int64_t w = c.op[2].whole[(size_t)((((g * panels + n / 16) * pairs + k / 2) * 16 + n % 16) * 2 + k % 2)];
                sum += w * (from < 0 ? pad : byte_at(c.op[1], from + g * ci + j));
            }
        }
        put_result(y, e, (float)(int32_t)sum * (float)c.op[4].real[(size_t)at[3]], c.i[10], c.i[11], c.i[12]);
    }
}

static void dwconv_q8_reference(Case &c) {
    Operand &y = c.op[0];
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        int64_t sum = c.op[3].whole[(size_t)at[3]];
        for (int64_t k = 0; k < c.i[0] * c.i[1]; ++k) {
            const int64_t from = tap8(c.op[1], c.i.data(), at, k / c.i[1], k % c.i[1]);
            sum += (from < 0 ? c.i[8] : byte_at(c.op[1], from + at[3])) * c.op[2].whole[(size_t)(k * y.dim(3) + at[3])];
        }
        put_result(y, e, (float)(int32_t)sum * (float)c.op[4].real[(size_t)at[3]], c.i[9], c.i[10], c.i[11]);
    }
}

// groups 0: depthwise. The turn chooses kinds, zero points, extreme values.
static Case &add_conv_q8(Suite &s, const Window8 &t, int64_t turn) {
    Case &c = s.add(text("x %lldx%lldx%lldx%lld co %lld k %lldx%lld s %lldx%lld p %lld,%lld,%lld,%lld d %lldx%lld g %lld turn %lld",
                         (long long)t.b, (long long)t.h, (long long)t.w, (long long)t.ci, (long long)t.co, (long long)t.kh,
                         (long long)t.kw, (long long)t.sh, (long long)t.sw, (long long)t.pt, (long long)t.pl,
                         (long long)t.pb, (long long)t.pr, (long long)t.dh, (long long)t.dw, (long long)t.groups,
                         (long long)turn));
    const bool extreme = turn % 5 == 4;
    const int64_t groups = std::max<int64_t>(1, t.groups), k = t.kh * t.kw * (t.groups ? t.ci / groups : 1);
    bytes(c.out(kKinds[turn % 2], out_dims(t, t.co)), kKinds[turn / 2 % 2], {t.b, t.h, t.w, t.ci}, extreme);
    // Values as networks have them: most are near the zero point, and a few are anywhere.
    if (turn % 3 == 0)
        for (int64_t &x : c.op[1].whole)
            if (s.rng.range(0, 199))
                x = std::clamp<int64_t>(turn * 101 % 256 + s.rng.range(-30, 60), 0, 255) - (c.op[1].view.dtype == I8 ? 128 : 0);
    if (t.groups) bytes(c, I8, {groups, (t.co / groups + 15) / 16, (k + 1) / 2, 32}, extreme);
    else bytes(c, I8, {t.kh * t.kw, t.co}, extreme);
    if (t.groups && k % 2)  // no column that the sum does not have
        for (size_t e = 0; e < c.op[2].whole.size(); ++e)
            if (e % 2 && (int64_t)(e / 32) % ((k + 1) / 2) == k / 2) c.op[2].whole[e] = 0;
    const bool narrow = t.groups && turn % 4 != 1;
    if (narrow)
        for (int64_t &x : c.op[2].whole) x = x < 0 ? x / 2 : (x + 1) / 2;
    c.in(I32, {t.co}, -20000, 20000);
    const double unit = 1.0 / (30 * sqrt((double)k * 40) + 1);
    c.in(F32, {t.co}, unit * 0.2, unit * 3);
    c.ints({t.kh, t.kw, t.sh, t.sw, t.pt, t.pl, t.dh, t.dw});
    if (t.groups) c.i.push_back(t.groups);
    const int64_t zero = turn * 37 % 256, lo = turn % 3 ? 0 : 5, hi = turn % 4 ? 255 : 250;
    for (const int64_t x : {turn * 101 % 256, zero, lo, hi}) c.i.push_back(x);
    if (t.groups) c.i.push_back(narrow);
    c.reference = t.groups ? conv_q8_reference : dwconv_q8_reference;
    return c;
}

// Two of the largest weights, and values at what the sum of their products may be in 16 bits, some of them a step beyond:
// about a zero point at an end of the range, and about one in its middle. Each unit of the sum is seen in the result.
static void add_edge_q8(Suite &s, int64_t k, int64_t zero, int64_t value) {
    Case &c = add_conv_q8(s, {13, 1, 1, k, 33, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, 1);
    c.label += text(" edge %lld of zero %lld", (long long)value, (long long)zero);
    c.i[9] = zero, c.i[10] = 100, c.i[11] = 0, c.i[12] = 255;
    for (int64_t &x : c.op[1].whole) x = value + (s.rng.range(0, 3) ? 0 : 1);
    for (size_t e = 0; e < c.op[2].whole.size(); ++e) {
        const bool first = (int64_t)(e / 32) % ((k + 1) / 2) == 0;
        c.op[2].whole[e] = !first ? 0 : e / 2 % 2 ? -128 : 127;
    }
    for (size_t n = 0; n < 33; ++n) c.op[3].whole[n] = (n % 2 ? 128 : -127) * 2 * value, c.op[4].real[n] = 0.25;
}

CASES(conv2d_q8) {
    int64_t turn = 0;
    // Pointwise: rows and columns around every tile, odd and even inner sizes.
    for (const int64_t m : {1, 2, 3, 5, 6, 7, 12, 13, 25, 49, 97, 200})
        for (const int64_t n : {1, 7, 15, 16, 17, 31, 32, 33, 65, 130}) {
            const int64_t ks[] = {1, 2, 3, 4, 5, 8, 16, 17, 40, 129};
            add_conv_q8(s, {m, 1, 1, ks[turn % 10], n, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, turn);
            ++turn;
        }
    for (const int64_t k : {2, 40}) add_edge_q8(s, k, 0, 128);
    for (const int64_t k : {30, 130}) add_edge_q8(s, k, 128, 192), add_edge_q8(s, k, 128, 63);
    for (const int64_t k : {600, 1283}) add_conv_q8(s, {1, 5, 9, k, 50, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, turn++);
    const Window8 some[] = {
        {1, 9, 11, 3, 16, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1}, {2, 7, 7, 8, 20, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
        {1, 6, 5, 5, 33, 3, 2, 1, 2, 0, 1, 2, 0, 1, 1, 1},  {1, 12, 12, 6, 18, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, 1},
        {1, 8, 8, 12, 36, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 3}, {1, 5, 5, 4, 8, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 4},
        {1, 4, 4, 2, 5, 5, 5, 1, 1, 4, 4, 4, 4, 1, 1, 1},   {1, 3, 3, 1, 1, 7, 7, 3, 3, 6, 6, 6, 6, 1, 2, 1},
        {2, 14, 13, 24, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 30, 7, 9, 1, 5, 1, 2, 0, 2, 0, 2, 1, 1, 1},
        {0, 4, 4, 3, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},   {1, 20, 20, 2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
    for (const Window8 &t : some)
        for (int k = 0; k < 5; ++k) add_conv_q8(s, t, turn++);
}

CASES(dwconv2d_q8) {
    int64_t turn = 0;
    for (const int64_t c : {1, 3, 7, 8, 9, 15, 16, 17, 24, 40, 67})
        for (const int64_t k : {1, 2, 3, 5})
            for (const int64_t stride : {1, 2}) {
                const int64_t pad = k / 2, size = 5 + turn % 9;
                add_conv_q8(s, {1 + turn % 2, size, size + 3, c, c, k, k, stride, stride, pad, pad, pad, pad, 1, 1, 0}, turn);
                ++turn;
            }
    const Window8 some[] = {{1, 9, 9, 10, 10, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, 0},   {1, 4, 17, 12, 12, 3, 5, 1, 2, 0, 3, 1, 1, 1, 1, 0},
                            {1, 3, 3, 9, 9, 3, 3, 1, 1, 5, 5, 5, 5, 1, 1, 0},     {1, 8, 8, 33, 33, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 0},
                            {0, 8, 8, 33, 33, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 0}};
    for (const Window8 &t : some)
        for (int k = 0; k < 5; ++k) add_conv_q8(s, t, turn++);
}

static void pool_q8_reference(Case &c) {
    Operand &y = c.op[0];
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        int64_t sum = 0, most = -1, cells = 0;
        for (int64_t k = 0; k < c.i[1] * c.i[2]; ++k) {
            const int64_t from = tap8(c.op[1], c.i.data() + 1, at, k / c.i[2], k % c.i[2]);
            if (from < 0) continue;
            const int64_t v = byte_at(c.op[1], from + at[3]);
            sum += v - c.i[10];
            most = std::max(most, v);
            ++cells;
        }
        const int64_t by = c.i[9] ? c.i[1] * c.i[2] : cells;
        const float v = c.i[0]   ? (by ? (float)sum * (c.f[0] / (float)by) : 0)
                        : cells ? (float)(most - c.i[10]) * c.f[0]
                                : -INFINITY;
        put_result(y, e, v, c.i[11], c.i[12], c.i[13]);
    }
}

CASES(pool2d_q8) {
    int64_t turn = 0;
    for (const int64_t c : {1, 3, 7, 8, 9, 16, 17, 40})
        for (const int64_t kind : {0, 1}) {
            const Window8 some[] = {{1, 7, 7, c, c, 7, 7, 1, 1, 0, 0, 0, 0, 1, 1, 0}, {2, 9, 8, c, c, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 0},
                                    {1, 6, 5, c, c, 2, 3, 1, 2, 2, 3, 2, 3, 2, 1, 0}, {1, 5, 5, c, c, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0},
                                    {1, 20, 21, c, c, 20, 21, 1, 1, 0, 0, 0, 0, 1, 1, 0}};
            for (const Window8 &t : some) {
                Case &k = s.add(text("channels %lld kind %lld window %lldx%lld turn %lld", (long long)c, (long long)kind,
                                     (long long)t.kh, (long long)t.kw, (long long)turn));
                bytes(k.out(kKinds[turn % 2], out_dims(t, c)), kKinds[turn / 2 % 2], {t.b, t.h, t.w, c}, turn % 5 == 4);
                k.ints({kind, t.kh, t.kw, t.sh, t.sw, t.pt, t.pl, t.dh, t.dw, turn / 3 % 2, turn * 91 % 256, turn * 57 % 256,
                        turn % 3, 255 - turn % 2});
                k.floats({turn % 4 ? (float)s.rng.uniform(0.3, 2) : 1.0f});
                k.reference = pool_q8_reference;
                ++turn;
            }
        }
}
