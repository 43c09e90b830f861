// Depthwise convolution of 8-bit integers: taps one above the other are a pair of 16-bit ones (vdot16), so that an input
// vector of two rows serves every pixel and tap it lies under. Sixteen channels at a time; the last sixteen overlap
// others, fewer than sixteen go through a copy, as do windows that reach outside. A tile is one output row.

struct DwQ8 {
    const uint8_t *x;  // this image
    const uint8_t *pad;
    uint8_t *window;   // room for one
    const int32_t *w;  // pairs [ceil(kh / 2)][kw][channels], the last sixteen channels again in the last sixteen
    const int32_t *bias;
    const float *scale;
    uint8_t *y;        // this output row
    Window g;
    Q8Range range;
    int64_t channels, iy;  // in whole sixteens; input row under kernel row 0
    uint8_t flip;
};

// The `at / 16`-th sixteen channels, from c on, of four neighbouring pixels. x: the first of their windows' pixels, which lie side by side
// in rows `line` bytes apart.
template <int KW, int S>
EDGEC_INLINE void dw_q8_vector(const DwQ8 &r, const uint8_t *x, int64_t line, uint8_t *y, int64_t at, int64_t c) {
    vi acc[4][kSixteen];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
        for (int j = 0; j < kSixteen; ++j) acc[p][j] = viload(r.bias + c + j * L);
    const int64_t step = r.g.co;
    const int32_t *w = r.w + at;
    x += c;
    for (int64_t ky = 0; ky < r.g.kh; ky += 2, x += 2 * line) {
        vi k[KW][kSixteen];
#pragma GCC unroll 8
        for (int i = 0; i < KW; ++i, w += r.channels)
#pragma GCC unroll 4
            for (int j = 0; j < kSixteen; ++j) k[i][j] = viload(w + j * L);
        const uint8_t *a = x, *b = ky + 1 < r.g.kh ? x + line : x;  // a last row's second weights are zero
#pragma GCC unroll 16
        for (int i = 0; i < 3 * S + KW; ++i, a += step, b += step) {
            vi v[kSixteen];
            vpairs16(a, b, v);
#pragma GCC unroll 4
            for (int j = 0; j < kSixteen; ++j)
#pragma GCC unroll 4
                for (int p = 0; p < 4; ++p)
                    if (i - p * S >= 0 && i - p * S < KW) vdot16(&acc[p][j], k[i - p * S][j], v[j]);
        }
    }
    alignas(64) uint8_t out[64];
#pragma GCC unroll 4
    for (int h = 0; h < kSixteen; ++h) {
        vf v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const int n = 4 * h + i, j = n % kSixteen;
            v[i] = vmul(vtof(acc[n / kSixteen][j]), vload(r.scale + c + j * L));
        }
        q8_store(out + h * 4 * L, v, r.range);
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) memcpy(y + p * step + c, out + 16 * p, 16);
}

// Input rows from iy and columns from ix on, as u8, with padding where they lie outside.
EDGEC_NOINLINE void dw_q8_copy(const DwQ8 &r, int64_t iy, int64_t ix, int64_t columns) {
    const Window &g = r.g;
    uint8_t *to = r.window;
    const int64_t first = imin(columns, imax(0, -ix)), last = imax(first, imin(columns, g.w - ix));
    for (int64_t y = iy; y < iy + g.kh; ++y, to += columns * g.co) {
        const bool inside = y >= 0 && y < g.h && first < last;
        for (int64_t i = 0; i < columns; ++i)
            if (!inside || i < first || i >= last) memcpy(to + i * g.co, r.pad, (size_t)g.co);
        if (!inside) continue;
        uint8_t *image = to + first * g.co;
        const int64_t n = (last - first) * g.co;
        memcpy(image, r.x + (y * g.w + ix + first) * g.co, (size_t)n);
        for (int64_t i = 0; i < n && r.flip; ++i) image[i] ^= r.flip;
    }
}

// A whole row, at least four pixels wide; the last four overlap others.
template <int KW, int S> EDGEC_NOINLINE void dw_q8_span(const DwQ8 &row) {
    const DwQ8 r = row;  // of its own: nothing that is stored can change it
    const Window &g = r.g;
    constexpr int64_t kColumns = 3 * S + KW;
    const bool rows_inside = r.iy >= 0 && r.iy + g.kh <= g.h && !r.flip;
    for (int64_t four = 0; four < g.ow; four += 4) {
        const int64_t ox = imin(four, g.ow - 4), ix = ox * S - g.pl;
        const bool inside = rows_inside && ix >= 0 && ix + kColumns <= g.w;
        if (!inside) dw_q8_copy(row, r.iy, ix, kColumns);
        const uint8_t *x = inside ? r.x + (r.iy * g.w + ix) * g.co : r.window;
        const int64_t line = (inside ? g.w : kColumns) * g.co;
        for (int64_t at = 0; at < g.co; at += 16)
            dw_q8_vector<KW, S>(r, x, line, r.y + ox * g.co, at, imin(at, g.co - 16));
    }
}

// One pixel, any kernel.
EDGEC_NOINLINE void dw_q8_pixel(const DwQ8 &r, int64_t ox) {
    const Window &g = r.g;
    const vi flip = viset(r.flip * 0x10001);
    const int64_t n = imin(16, g.co);
    for (int64_t at = 0; at < r.channels; at += 16) {
        const int64_t c = imax(0, imin(at, g.co - 16));
        vi acc[4] = {};
        for (int j = 0; j < kSixteen; ++j) acc[j] = viload(r.bias + c + j * L);
        const int32_t *w = r.w + at;
        for (int64_t ky = 0; ky < g.kh; ky += 2)
            for (int64_t kx = 0; kx < g.kw; ++kx, w += r.channels) {
                const uint8_t *tap[2];
                uint8_t few[2][16];
                for (int k = 0; k < 2; ++k) {
                    const int64_t row = r.iy + (ky + k) * g.dh, col = ox * g.sw - g.pl + kx * g.dw;
                    const bool inside = ky + k < g.kh && row >= 0 && row < g.h && col >= 0 && col < g.w;
                    tap[k] = (inside ? r.x + (row * g.w + col) * g.co : r.pad) + c;
                    if (n < 16) memset(few[k], 0, 16), tap[k] = (const uint8_t *)memcpy(few[k], tap[k], (size_t)n);
                    // Padding is u8 already.
                    if (!inside && r.flip) {
                        for (int i = 0; i < 16; ++i) few[k][i] = tap[k][i] ^ r.flip;
                        tap[k] = few[k];
                    }
                }
                vi v[kSixteen];
                vpairs16(tap[0], tap[1], v);
                for (int j = 0; j < kSixteen; ++j) vdot16(&acc[j], vixor(v[j], flip), viload(w + j * L));
            }
        vf v[4] = {};
        for (int j = 0; j < kSixteen; ++j) v[j] = vmul(vtof(acc[j]), vload(r.scale + c + j * L));
        uint8_t out[4 * L];
        q8_store(out, v, r.range);
        memcpy(r.y + ox * g.co + c, out, (size_t)n);
    }
}

EDGEC_NOINLINE void dw_q8_pairs_of(const int8_t *w, const Window &g, int64_t channels, int32_t *to) {
    static const uint8_t zero[16] = {};
    for (int64_t ky = 0; ky < g.kh; ky += 2)
        for (int64_t kx = 0; kx < g.kw; ++kx, to += channels)
            for (int64_t at = 0; at < channels; at += 16) {
                const int64_t c = imax(0, imin(at, g.co - 16)), n = g.co;
                const uint8_t *p = (const uint8_t *)w + (ky * g.kw + kx) * g.co + c;
                uint8_t few[2][16];
                vi low[kSixteen], high[kSixteen];
                q8_load16(q8_few<16>(p, n, few[0]), viset(0), low);
                q8_load16(ky + 1 < g.kh ? q8_few<16>(p + g.kw * g.co, n, few[1]) : zero, viset(0), high);
#pragma GCC unroll 4
                for (int j = 0; j < kSixteen; ++j)
                    vistore(to + at + j * L, vpair(vishr<24>(vishl<24>(low[j])), vishr<24>(vishl<24>(high[j]))));
            }
}

void dwconv2d_q8(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    DwQ8 r;
    const Window g = r.g = window_of(a.op[0], a.op[1], a.i);
    r.channels = dw_q8_channels(g.co);
    r.range = q8_range(a.op[0], a.i + 9);
    r.flip = q8_flip(a.op[1].dtype);
    int32_t *w = (int32_t *)scratch, bias[16] = {};
    float scale[16] = {};
    uint8_t *pad = (uint8_t *)(w + dw_q8_pairs(a) * r.channels);
    dw_q8_pairs_of((const int8_t *)a.op[2].data, g, r.channels, w);
    memset(pad, (int)a.i[8], (size_t)r.channels);
    r.w = w;
    r.pad = pad;
    r.window = pad + r.channels;
    r.bias = (const int32_t *)a.op[3].data;
    r.scale = (const float *)a.op[4].data;
    if (g.co < 16) {
        memcpy(bias, r.bias, (size_t)g.co * sizeof(int32_t));
        memcpy(scale, r.scale, (size_t)g.co * sizeof(float));
        r.bias = bias, r.scale = scale;
    }
    for (int64_t t = t0; t < t1; ++t) {
        r.x = (const uint8_t *)a.op[1].data + t / g.oh * g.h * g.w * g.co;
        r.y = (uint8_t *)a.op[0].data + t * g.ow * g.co;
        r.iy = t % g.oh * g.sh - g.pt;
        const bool four = g.co >= 16 && g.ow >= 4 && g.kh <= kDwQ8Rows && g.dh == 1 && g.dw == 1;
        // An instruction set with a small product tile has no registers for four pixels either: it saves the code.
        if constexpr (kTileRows > 2) {
            void (*span)(const DwQ8 &) = nullptr;
            if (g.kw == 3) span = g.sw == 1 ? dw_q8_span<3, 1> : g.sw == 2 ? dw_q8_span<3, 2> : nullptr;
            if (g.kw == 5) span = g.sw == 1 ? dw_q8_span<5, 1> : g.sw == 2 ? dw_q8_span<5, 2> : nullptr;
            if (four && span) {
                span(r);
                continue;
            }
        }
        for (int64_t ox = 0; ox < g.ow; ++ox) dw_q8_pixel(r, ox);
    }
}
