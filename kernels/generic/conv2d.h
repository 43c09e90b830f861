// Convolution as a matrix product: the windows of a block of output pixels are gathered into scratch, one row each.

EDGEC_INLINE void copy_floats(float *to, const float *from, int64_t n) {
    for (; n >= L; n -= L, to += L, from += L) vstore(to, vload(from));
    if (n > 0) vstore_n(to, vload_n(from, n), n);
}
EDGEC_INLINE void zero_floats(float *to, int64_t n) {
    for (; n >= L; n -= L, to += L) vstore(to, vset(0.0f));
    if (n > 0) vstore_n(to, vset(0.0f), n);
}

// One row of k = kh kw ci/groups values per pixel [p0, p1); x points at the group's first channel.
EDGEC_NOINLINE void conv_gather(const ConvShape &s, const float *x, int64_t p0, int64_t p1, float *to) {
    const Window &g = s.g;
    const int64_t ci = g.ci / s.groups, row = g.kw * ci;
    // Without groups or dilation the taps of one kernel row lie side by side in memory.
    const bool runs = s.groups == 1 && g.dw == 1;
    int64_t ox = p0 % g.ow, oy = p0 / g.ow % g.oh, b = p0 / g.ow / g.oh;
    for (int64_t p = p0; p < p1; ++p) {
        int64_t y0, y1, x0, x1;
        tap_range(oy, g.sh, g.pt, g.dh, g.kh, g.h, &y0, &y1);
        tap_range(ox, g.sw, g.pl, g.dw, g.kw, g.w, &x0, &x1);
        if (x0 == x1) y0 = y1 = 0;
        zero_floats(to, y0 * row);
        for (int64_t ky = y0; ky < y1; ++ky) {
            float *t = to + ky * row;
            const int64_t iy = oy * g.sh - g.pt + ky * g.dh, ix = ox * g.sw - g.pl + x0 * g.dw;
            const float *from = x + ((b * g.h + iy) * g.w + ix) * g.ci;
            zero_floats(t, x0 * ci);
            if (runs) {
                copy_floats(t + x0 * ci, from, (x1 - x0) * ci);
            } else {
                for (int64_t kx = x0; kx < x1; ++kx, from += g.dw * g.ci) copy_floats(t + kx * ci, from, ci);
            }
            zero_floats(t + x1 * ci, (g.kw - x1) * ci);
        }
        zero_floats(to + y1 * row, (g.kh - y1) * row);
        to += s.k;
        if (++ox == g.ow) {
            ox = 0;
            if (++oy == g.oh) oy = 0, ++b;
        }
    }
}

// Pixels [ox, end) of output row `row` (of all images), whose windows lie between the left and the right border: the
// windows of neighbours are rows of a product where they stand, a piece for each kernel row inside the image. False
// when there is no such kernel row.
EDGEC_INLINE bool conv_direct(const ConvShape &s, const float *x, int64_t row, int64_t ox, int64_t end, Gemm *g) {
    const Window &c = s.g;
    int64_t y0, y1;
    tap_range(row % c.oh, c.sh, c.pt, c.dh, c.kh, c.h, &y0, &y1);
    if (y0 == y1) return false;
    const int64_t iy = row % c.oh * c.sh - c.pt + y0 * c.dh;
    g->a = x + ((row / c.oh * c.h + iy) * c.w + ox * c.sw - c.pl) * c.ci;
    g->lda = c.sw * c.ci;
    g->m = end - ox;
    g->runs = y1 - y0;
    g->run = c.kw * c.ci;
    g->line = c.dh * c.w * c.ci;
    g->skip = y0 * g->run;
    return true;
}

template <class W>
EDGEC_NOINLINE void conv_run(const ConvShape &s, const Args &a, const W *w, float *scratch, int64_t t0, int64_t t1) {
    const float *x = (const float *)a.op[1].data, *bias = (const float *)a.op[3].data;
    const float *residual = (const float *)a.op[4].data;
    float *y = (float *)a.op[0].data, *rows = scratch;
    float *wide = s.pointwise ? scratch : scratch + s.pixel_block * s.k;
    const int64_t ci = s.g.ci / s.groups;
    while (t0 < t1) {
        int64_t pb = t0 % s.panel_blocks, rest = t0 / s.panel_blocks, group = rest % s.groups;
        int64_t p0 = rest / s.groups * s.pixel_block, p1 = imin(s.pixels, p0 + s.pixel_block);
        int64_t panel_blocks = imin(s.panel_blocks - pb, t1 - t0);
        const W *panels = w + group * s.panels * s.k * 16;
        const int64_t first = pb * s.panel_block, last = imin(s.panels, (pb + panel_blocks) * s.panel_block);
        for (int64_t p = p0, end; p < p1; p = end) {
            const int64_t row = p / s.g.ow, ox = p % s.g.ow;
            const bool inside = s.direct && ox >= s.in0 && ox < s.in1;
            end = !s.direct ? p1 : imin(p1, row * s.g.ow + (ox < s.in0 ? s.in0 : inside ? s.in1 : s.g.ow));
            Gemm g;
            g.m = end - p;
            g.n = s.n;
            g.k = s.k;
            g.a = rows;
            g.lda = s.k;
            if (s.pointwise) {
                g.a = x + p * s.g.ci + group * ci;
                g.lda = s.g.ci;
            } else if (!inside || !conv_direct(s, x, row, ox, ox + end - p, &g)) {
                conv_gather(s, x + group * ci, p, end, rows);
            }
            int64_t at = p * s.g.co + group * s.n;
            g.y = y + at;
            g.ldy = s.g.co;
            g.e = Epilogue{bias ? bias + group * s.n : nullptr, residual ? residual + at : nullptr,
                           (int)a.i[9], (int)a.i[10], a.f[0], a.f[1]};
            gemm_block<W>(g, panels, wide, 0, g.m, first, last);
        }
        t0 += panel_blocks;
    }
}

void conv2d(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    ConvShape s = conv_shape(a, a.i[8]);
    const View &w = a.op[2];
    if (reads_panels(F32) && w.dtype == F32) conv_run<float>(s, a, (const float *)w.data, (float *)scratch, t0, t1);
    else if (reads_panels(F16) && w.dtype == F16) conv_run<f16_t>(s, a, (const f16_t *)w.data, (float *)scratch, t0, t1);
    else if (reads_panels(BF16)) conv_run<bf16_t>(s, a, (const bf16_t *)w.data, (float *)scratch, t0, t1);
}
