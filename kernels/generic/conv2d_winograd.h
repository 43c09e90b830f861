// A 3 x 3 convolution of stride 1 by 4 x 4 outputs at a time, Winograd's F(4x4, 3x3): 36 products instead of 144. Image
// and weights are turned into values of polynomials, products of matrices multiply those point by point, and a third
// turn makes pixels of the results. The points 0, sqrt(1/2), -sqrt(1/2), sqrt(2), -sqrt(2) and infinity lose half as
// much as whole ones (A. Lavin, S. Gray, arXiv 1509.09308; B. Barabasz et al., arXiv 1803.10986).

constexpr float kPoint = 0.70710678f;  // the other is twice as far out
// Stores go to 36 places in turn, more than the CPU itself looks ahead for.
constexpr int64_t kStoreAhead = 2 * L;
// The values of six pixels in a line.
EDGEC_INLINE void winograd_values(const vf *x, vf *v) {
    const vf p = vset(kPoint), q = vset(2 * kPoint), two = vset(2.0f), half = vset(0.5f), more = vset(2.5f);
    const vf even = vfnma(two, x[2], x[4]), odd = vfnma(two, x[1], x[3]);
    const vf even2 = vfnma(half, x[2], x[4]), odd2 = vfnma(half, x[1], x[3]);
    v[0] = vfnma(more, x[2], vadd(x[0], x[4]));
    v[1] = vfma(p, odd, even);
    v[2] = vfnma(p, odd, even);
    v[3] = vfma(q, odd2, even2);
    v[4] = vfnma(q, odd2, even2);
    v[5] = vfnma(more, x[3], vadd(x[1], x[5]));
}
// The four pixels that six products make.
EDGEC_INLINE void winograd_pixels(const vf *m, vf *y) {
    const vf near = vadd(m[1], m[2]), far = vadd(m[3], m[4]), slope = vsub(m[1], m[2]), slope2 = vsub(m[3], m[4]);
    y[0] = vadd(m[0], vadd(near, far));
    y[1] = vfma(vset(2 * kPoint), slope2, vmul(vset(kPoint), slope));
    y[2] = vfma(vset(2.0f), far, vmul(vset(0.5f), near));
    y[3] = vfma(vset(4 * kPoint), slope2, vfma(vset(0.5f * kPoint), slope, m[5]));
}

// Tiles [t0, t1) of x as 36 matrices [tile, ci]; zeros: ci of them.
EDGEC_NOINLINE void winograd_image(const WinogradShape &s, const float *x, int64_t t0, int64_t t1, const float *zeros,
                                   float *to) {
    const Window &g = s.g;
    for (int64_t t = t0; t < t1; ++t, to += g.ci) {
        const int64_t b = t / (s.down * s.across), y0 = t / s.across % s.down * 4 - g.pt, x0 = t % s.across * 4 - g.pl;
        const float *at[6][6];
        for (int i = 0; i < 6; ++i)
            for (int j = 0; j < 6; ++j) {
                const int64_t iy = y0 + i, ix = x0 + j;
                const bool inside = iy >= 0 && iy < g.h && ix >= 0 && ix < g.w;
                at[j][i] = inside ? x + ((b * g.h + iy) * g.w + ix) * g.ci : zeros;
            }
        for (int64_t next = 0; next < g.ci; next += L) {
            const int64_t c = imin(next, g.ci - L);  // the last vector may do some channels twice
            vf line[6], v[6], turned[6][6];
            for (int j = 0; j < 6; ++j) {
#pragma GCC unroll 6
                for (int i = 0; i < 6; ++i) {
                    if (j >= 2) __builtin_prefetch(at[j][i] + 4 * g.ci + c);  // of the next tile
                    line[i] = vload(at[j][i] + c);
                }
                winograd_values(line, v);
#pragma GCC unroll 6
                for (int i = 0; i < 6; ++i) turned[i][j] = v[i];
            }
            float *u = to + c;
            for (int i = 0; i < 6; ++i) {
                winograd_values(turned[i], v);
#pragma GCC unroll 6
                for (int j = 0; j < 6; ++j, u += s.image) {
                    __builtin_prefetch(u + kStoreAhead, 1);
                    vstore(u, v[j]);
                }
            }
        }
    }
}

// What the rows of a kernel weigh in each row of its values.
constexpr float kKernelRows[6][3] = {{1, 0, 0},
                                     {-2.0f / 3, -2.0f / 3 * kPoint, -1.0f / 3},
                                     {-2.0f / 3, 2.0f / 3 * kPoint, -1.0f / 3},
                                     {1.0f / 6, 1.0f / 3 * kPoint, 1.0f / 3},
                                     {1.0f / 6, -1.0f / 3 * kPoint, 1.0f / 3},
                                     {0, 0, 1}};

// Row i of the values of `channels` of a panel's kernels, as six panels of channels x 16.
EDGEC_NOINLINE void winograd_kernels(const WinogradShape &s, const float *w, int64_t channels, int i, float *to) {
    const int64_t tap = s.g.ci * 16;
    const vf a = vset(kKernelRows[i][0]), b = vset(kKernelRows[i][1]), c = vset(kKernelRows[i][2]);
    const bool outer = i == 0 || i == 5;  // one row of the kernel itself
    const float *only = w + (i == 5 ? 6 * tap : 0);
    for (int64_t at = 0; at < channels * 16; at += L) {
        vf g[3];
        if (outer) {
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k) g[k] = vload(only + k * tap + at);
        } else {
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k)
                g[k] = vfma(a, vload(w + k * tap + at),
                            vfma(b, vload(w + (3 + k) * tap + at), vmul(c, vload(w + (6 + k) * tap + at))));
        }
        const vf near = vmul(vset(-1.0f / 3), vfma(vset(2.0f), g[0], g[2]));
        const vf far = vmul(vset(1.0f / 6), vfma(vset(2.0f), g[2], g[0]));
        const vf p = vset(2.0f / 3 * kPoint), q = vset(1.0f / 3 * kPoint);
        float *u = to + at;
        vstore(u, g[0]);
        vstore(u + s.kernels, vfnma(p, g[1], near));
        vstore(u + 2 * s.kernels, vfma(p, g[1], near));
        vstore(u + 3 * s.kernels, vfma(q, g[1], far));
        vstore(u + 4 * s.kernels, vfnma(q, g[1], far));
        vstore(u + 5 * s.kernels, g[2]);
    }
}

// m += v u for the six of a row: `tiles` rows of v, `channels` of them, one panel; the first channels begin the sums.
EDGEC_NOINLINE void winograd_products(const WinogradShape &s, const float *v, const float *u, int64_t tiles,
                                      int64_t channels, int row, const float *next, bool first, float *m) {
    const Rows rows = {s.g.ci, 1, channels, 0};
    v += row * 6 * s.image;
    m += row * 6 * s.sums;
    for (int i = row * 6; i < row * 6 + 6; ++i, v += s.image, u += s.kernels, m += s.sums) {
        // A 36th of the kernels that come after these.
        const float *ahead = next + (i / 4 * s.g.ci * 4 + i % 4 * channels) * 4;
        for (int64_t k = 0; k < channels * 4; k += 16) __builtin_prefetch(ahead + k);
        for (int64_t t = 0; t < tiles;) {
            const int r = gemm_height<kPanelVecs>(tiles - t);
            float *to = m + t * 16;
            gemm_rows<kPanelVecs>(r, v + t * s.g.ci, rows, u, channels * 16, first ? nullptr : to, true, to, 16,
                                  Clamp{false, 0, 0});
            t += r;
        }
    }
}

// Pixels of tiles [t0, t1) in the panel of columns that begins at n: m holds 36 matrices [tile, 16].
EDGEC_NOINLINE void winograd_finish(const WinogradShape &s, const Epilogue &e, const float *m, int64_t t0, int64_t t1,
                                    int64_t n, float *to) {
    const Window &g = s.g;
    float bias[16] = {};
    if (e.bias) memcpy(bias, e.bias + n, (size_t)imin(16, g.co - n) * sizeof(float));
    for (int64_t t = t0; t < t1; ++t, m += 16) {
        const int64_t row = t / s.across, y0 = row % s.down * 4, x0 = t % s.across * 4;
        const int64_t down = imin(4, g.oh - y0), across = imin(4, g.ow - x0);
        const int64_t pixel = (row / s.down * g.oh + y0) * g.ow + x0;
        for (int64_t c = 0; c < imin(16, g.co - n); c += L) {
            vf line[6], y[4], turned[4][6];
            const float *from = m + c;
            for (int i = 0; i < 6; ++i) {
#pragma GCC unroll 6
                for (int j = 0; j < 6; ++j, from += s.sums) line[j] = vload(from);
                winograd_pixels(line, y);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) turned[j][i] = y[j];
            }
            const vf add = vload(bias + c);
            const int64_t left = g.co - n - c;
            for (int64_t j = 0; j < across; ++j) {
                winograd_pixels(turned[j], y);
                int64_t at = (pixel + j) * g.co + n + c;
                for (int64_t i = 0; i < down; ++i, at += g.ow * g.co) {
                    vf v = vadd(y[i], add);
                    const vf res = e.residual ? vload_upto(e.residual + at, left) : vset(0.0f);
                    if (e.residual_first) v = vadd(v, res);
                    v = vact(e.act, v, e.a, e.b);
                    if (e.residual && !e.residual_first) v = vadd(v, res);
                    vstore_upto(to + at, v, left);
                }
            }
        }
    }
}

void conv2d_winograd(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const WinogradShape s = winograd_shape(a);
    const float *x = (const float *)a.op[1].data, *w = (const float *)a.op[2].data;
    const Epilogue e = {(const float *)a.op[3].data, (const float *)a.op[4].data, (int)a.i[2], (int)a.i[3], a.f[0],
                        a.f[1]};
    int64_t *have = (int64_t *)scratch;  // the block of tiles whose values are in `image`
    float *image = (float *)scratch + kWinogradHead, *kernels = image + 36 * s.image, *sums = kernels + 6 * s.kernels;
    float *zeros = sums + 36 * s.sums;
    if (t0 == t1) {
        *have = -1;
        zero_floats(zeros, s.g.ci);
    }
    for (int64_t t = t0; t < t1; ++t) {
        const int64_t block = t / s.panel_blocks, from = block * s.block, to = imin(s.tiles, from + s.block);
        if (block != *have) winograd_image(s, x, from, to, zeros, image);
        *have = block;
        const int64_t first = t % s.panel_blocks * s.panel_block, last = imin(s.panels, first + s.panel_block);
        for (int64_t p = first; p < last; ++p) {
            for (int64_t c = 0; c < s.g.ci; c += s.channels) {
                const int64_t channels = imin(s.channels, s.g.ci - c);
                const float *panel = w + (p * 9 * s.g.ci + c) * 16;
                const float *next = panel + (channels + (c + channels == s.g.ci ? 8 * s.g.ci : 0)) * 16;
                for (int row = 0; row < 6; ++row) {
                    winograd_kernels(s, panel, channels, row, kernels);
                    winograd_products(s, image + c, kernels, to - from, channels, row, next, c == 0, sums);
                }
            }
            winograd_finish(s, e, sums, from, to, p * 16, (float *)a.op[0].data);
        }
    }
}
