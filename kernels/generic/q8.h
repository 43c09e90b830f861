// quantize, dequantize, add_q8, pool2d_q8: what stands around and between products of 8-bit integers.

constexpr int kSixteen = 16 / L;  // vectors of sixteen values

// Sixteen values as 32-bit integers, of u8.
EDGEC_INLINE void q8_load16(const uint8_t *p, vi flip, vi *to) {
    const vi first = vpair(viset(1), viset(0));
    vi v[kSixteen];
    vpairs16(p, p, v);
#pragma GCC unroll 4
    for (int j = 0; j < kSixteen; ++j) to[j] = viset(0), vdot16(&to[j], vixor(v[j], flip), first);
}
// p, or a copy of its n bytes with zeros behind them where a block is longer.
template <int N, class T> EDGEC_INLINE const T *q8_few(const T *p, int64_t n, T *room) {
    if (n >= N) return p;
    memset(room, 0, N * sizeof(T));
    return (const T *)memcpy(room, p, (size_t)n * sizeof(T));
}
constexpr int kQ8Block = 4 * L;  // what q8_store() writes at once
EDGEC_INLINE void q8_store_upto(uint8_t *y, const vf *four, const Q8Range &r, int64_t n) {
    if (n >= kQ8Block) return q8_store(y, four, r);
    uint8_t t[kQ8Block];
    q8_store(t, four, r);
    memcpy(y, t, (size_t)n);
}

void quantize(const Args &a, int64_t t0, int64_t t1, void *) {
    const int64_t end = imin(elements(a.op[0]), t1 * kFlatTile);
    const Q8Range range = q8_range(a.op[0], a.i);
    const vf scale = vset(a.f[0]);
    for (int64_t i = t0 * kFlatTile; i < end; i += kQ8Block) {
        float room[kQ8Block];
        const float *p = q8_few<kQ8Block>((const float *)a.op[1].data + i, end - i, room);
        vf v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) v[j] = vdiv(vload(p + j * L), scale);
        q8_store_upto((uint8_t *)a.op[0].data + i, v, range, end - i);
    }
}

void dequantize(const Args &a, int64_t t0, int64_t t1, void *) {
    const int64_t end = imin(elements(a.op[0]), t1 * kFlatTile);
    const vi flip = viset(q8_flip(a.op[1].dtype) * 0x10001), zero = viset((int32_t)a.i[0]);
    const vf scale = vset(a.f[0]);
    for (int64_t i = t0 * kFlatTile; i < end; i += 16) {
        const int64_t n = end - i;
        uint8_t few[16];
        vi v[kSixteen];
        q8_load16(q8_few<16>((const uint8_t *)a.op[1].data + i, n, few), flip, v);
        float t[16], *y = (float *)a.op[0].data + i, *to = n < 16 ? t : y;
#pragma GCC unroll 2
        for (int j = 0; j < kSixteen; ++j) vstore(to + j * L, vmul(vtof(visub(v[j], zero)), scale));
        if (n < 16) memcpy(y, t, (size_t)n * sizeof(float));
    }
}

// ((a - za) A + (b - zb) B) 2^-shift: both factors as 2^14 high + low, whose sums are exact in 32 bits and in f32, so
// that there is one rounding, fused or not.
void add_q8(const Args &a, int64_t t0, int64_t t1, void *) {
    const int64_t end = imin(elements(a.op[0]), t1 * kFlatTile), *i = a.i;
    const Q8Range range = q8_range(a.op[0], i + 2);
    const int32_t high[2] = {(int32_t)i[5] >> 14, (int32_t)i[6] >> 14};
    const int32_t low[2] = {(int32_t)i[5] & 0x3fff, (int32_t)i[6] & 0x3fff};
    const int32_t z[2] = {(int32_t)i[0], (int32_t)i[1]};
    const vi h = vpair(viset(high[0]), viset(high[1])), l = vpair(viset(low[0]), viset(low[1]));
    const vi h0 = viset(-z[0] * high[0] - z[1] * high[1]), l0 = viset(-z[0] * low[0] - z[1] * low[1]);
    const vi flip = vpair(viset(q8_flip(a.op[1].dtype)), viset(q8_flip(a.op[2].dtype)));
    const float unit = bits_to_f32((uint32_t)(127 - i[7]) << 23);
    const vf high_unit = vset(unit * 16384), low_unit = vset(unit);
    for (int64_t at = t0 * kFlatTile; at < end; at += kQ8Block) {
        uint8_t room[2][kQ8Block];
        const uint8_t *p = q8_few<kQ8Block>((const uint8_t *)a.op[1].data + at, end - at, room[0]);
        const uint8_t *q = q8_few<kQ8Block>((const uint8_t *)a.op[2].data + at, end - at, room[1]);
        vi pairs[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j += kSixteen) vpairs16(p + j * L, q + j * L, pairs + j);
        vf v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            vi upper = h0, lower = l0;
            pairs[j] = vixor(pairs[j], flip);
            vdot16(&upper, pairs[j], h);
            vdot16(&lower, pairs[j], l);
            v[j] = vfma(vtof(lower), low_unit, vmul(vtof(upper), high_unit));
        }
        q8_store_upto((uint8_t *)a.op[0].data + at, v, range, end - at);
    }
}

struct PoolQ8 {
    const uint8_t *p;  // of the first cell inside
    int64_t rows, cols, row_step, col_step;
    vi flip;
};
// Sixteen channels from c on, n of which exist: the window's sum.
EDGEC_INLINE void pool_q8_sum(const PoolQ8 &w, int64_t c, int64_t n, vf *to) {
    const vi both = vpair(viset(1), viset(1)), one = vpair(viset(1), viset(0));
    vi acc[kSixteen];
#pragma GCC unroll 4
    for (int j = 0; j < kSixteen; ++j) acc[j] = viset(0);
    for (int64_t r = 0; r < w.rows; ++r)
        for (int64_t k = 0; k < w.cols; k += 2) {
            const uint8_t *p = w.p + r * w.row_step + k * w.col_step + c;
            const bool last = k + 1 == w.cols;
            uint8_t room[32];
            vi v[kSixteen];
            vpairs16(q8_few<16>(p, n, room), q8_few<16>(last ? p : p + w.col_step, n, room + 16), v);
#pragma GCC unroll 2
            for (int j = 0; j < kSixteen; ++j) vdot16(&acc[j], vixor(v[j], w.flip), last ? one : both);
        }
#pragma GCC unroll 4
    for (int j = 0; j < kSixteen; ++j) to[j] = vtof(acc[j]);
}
EDGEC_INLINE void pool_q8_max(const PoolQ8 &w, int64_t c, int64_t n, vf *to) {
#pragma GCC unroll 4
    for (int j = 0; j < kSixteen; ++j) to[j] = vset(-INFINITY);
    for (int64_t r = 0; r < w.rows; ++r)
        for (int64_t k = 0; k < w.cols; ++k) {
            uint8_t room[16];
            vi v[kSixteen];
            q8_load16(q8_few<16>(w.p + r * w.row_step + k * w.col_step + c, n, room), w.flip, v);
#pragma GCC unroll 2
            for (int j = 0; j < kSixteen; ++j) to[j] = vmax(to[j], vtof(v[j]));
        }
}

void pool2d_q8(const Args &a, int64_t t0, int64_t t1, void *) {
    const Window g = window_of(a.op[0], a.op[1], a.i + 1);
    const Q8Range range = q8_range(a.op[0], a.i + 11);
    const bool average = a.i[0] != 0;
    PoolQ8 w = {nullptr, 0, 0, g.dh * g.w * g.co, g.dw * g.co, viset(q8_flip(a.op[1].dtype) * 0x10001)};
    for (int64_t t = t0; t < t1; ++t) {
        const int64_t oy = t % g.oh;
        const uint8_t *x = (const uint8_t *)a.op[1].data + t / g.oh * g.h * g.w * g.co;
        uint8_t *y = (uint8_t *)a.op[0].data + t * g.ow * g.co;
        int64_t y0, y1, x0, x1;
        tap_range(oy, g.sh, g.pt, g.dh, g.kh, g.h, &y0, &y1);
        for (int64_t ox = 0; ox < g.ow; ++ox, y += g.co) {
            tap_range(ox, g.sw, g.pl, g.dw, g.kw, g.w, &x0, &x1);
            w.rows = y1 - y0, w.cols = x1 - x0;
            const int64_t inside = w.rows * w.cols, cells = average && a.i[9] ? g.kh * g.kw : inside;
            w.p = x + (inside ? (oy * g.sh - g.pt + y0 * g.dh) * g.w + ox * g.sw - g.pl + x0 * g.dw : 0) * g.co;
            if (!inside) w.rows = 0;
            // What the zero point adds to a sum; a maximum is one value.
            const vf zero = vset((float)(average ? inside * a.i[10] : a.i[10]));
            const vf scale = vset(!average ? a.f[0] : cells ? a.f[0] / (float)cells : 0.0f);
            for (int64_t c = 0; c < g.co; c += 16) {
                const int64_t n = g.co - c;
                vf v[4] = {};
                if (average) pool_q8_sum(w, c, n, v);
                else pool_q8_max(w, c, n, v);
#pragma GCC unroll 2
                for (int j = 0; j < kSixteen; ++j) v[j] = vmul(vsub(v[j], zero), scale);
                q8_store_upto(y + c, v, range, imin(16, n));
            }
        }
    }
}
