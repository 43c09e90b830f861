// Depthwise convolution, vectorised over channels. A tile is one output row. With a multiplier the channels of x repeat:
// output channel c reads channel c mod ci, so that a run of ci channels stays a run.

// Pixels by vectors of a block: the sums, a column's weights and an input fit into the registers of the product tile.
constexpr int kDwPixels = kTileRows >= 6 ? 4 : 2, kDwVecs = 2;

struct DwRow {
    const float *x;     // the first row that is in memory, less the channels before the run that c0 is in
    const float *w, *bias, *residual;
    float *y;           // this output row
    Window g;
    Epilogue e;
    Clamp clamp;
    bool plain;         // clamping is all that is left to do with a sum
    int64_t iy, k0, k1; // row of x under kernel row 0 (may lie outside), kernel rows inside the image
    int64_t c0, c1;     // channels to do
};

// What clamping does not cover: `sums` holds NP pixels of NV vectors, of which n channels exist.
template <int NP, int NV>
EDGEC_NOINLINE void dw_finish(const DwRow &r, vf *sums, int64_t at, int64_t n) {
    const bool later = r.residual && !r.e.residual_first;
    for (int p = 0; p < NP && r.residual && !later; ++p)
        for (int64_t j = 0; j * L < n; ++j)
            sums[p * NV + j] = vadd(sums[p * NV + j], load_part(r.residual + at + p * r.g.co + j * L, n - j * L));
    vact_all<NP * NV>(r.e.act, sums, r.e.a, r.e.b);
    for (int p = 0; p < NP; ++p, at += r.g.co)
        for (int64_t j = 0; j * L < n; ++j) {
            vf v = sums[p * NV + j];
            if (later) v = vadd(v, load_part(r.residual + at + j * L, n - j * L));
            store_part(r.y + at + j * L, v, n - j * L);
        }
}

// NV vectors of channels from c on (of the last one only n channels exist if PART) of NP neighbouring pixels, kernel
// columns [x0, x1) inside. x: the first pixel's value under kernel row k0 and column x0. Inputs are read again for each
// column that uses them: to keep them would take the registers that hold eight sums, as many as hide the latency of fma.
template <int NP, int NV, bool PART>
EDGEC_INLINE void dw_block(const DwRow &r, const float *x, int64_t x0, int64_t x1, int64_t at, int64_t c, int64_t n) {
    static_assert(!PART || NV == 1, "only one vector is ever partial");
    const Window &g = r.g;
    const int64_t c_all = g.co, step = g.sw * g.ci, tap = g.dw * g.ci, line = g.dh * g.w * g.ci;
    vf acc[NP][NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
        const vf first = !r.bias ? vset(0.0f) : PART ? vload_n(r.bias + c, n) : vload(r.bias + c + j * L);
#pragma GCC unroll 8
        for (int p = 0; p < NP; ++p) acc[p][j] = first;
    }
    const float *w = r.w + (r.k0 * g.kw + x0) * c_all + c;
    x += c;
    for (int64_t ky = r.k0; ky < r.k1; ++ky, x += line, w += g.kw * c_all) {
        const float *from = x, *tapw = w;
        for (int64_t kx = x0; kx < x1; ++kx, from += tap, tapw += c_all) {
            vf weight[NV];
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) weight[j] = PART ? vload_n(tapw, n) : vload(tapw + j * L);
#pragma GCC unroll 8
            for (int p = 0; p < NP; ++p)
#pragma GCC unroll 8
                for (int j = 0; j < NV; ++j) {
                    const vf v = PART ? vload_n(from + p * step, n) : vload(from + p * step + j * L);
                    acc[p][j] = vfma(v, weight[j], acc[p][j]);
                }
        }
    }
    if (!r.plain) {
        vf sums[NP * NV];
#pragma GCC unroll 8
        for (int p = 0; p < NP; ++p)
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) sums[p * NV + j] = acc[p][j];
        return dw_finish<NP, NV>(r, sums, at + c, PART ? n : NV * L);
    }
    const vf lo = vset(r.clamp.lo), hi = vset(r.clamp.hi);
    float *y = r.y + at + c;
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
            const vf v = vmin(hi, vmax(lo, acc[p][j]));
            if (PART) vstore_n(y + p * c_all, v, n);
            else vstore(y + p * c_all + j * L, v);
        }
}

// NP pixels from ox on, kernel columns [x0, x1) inside.
template <int NP, int NV>
EDGEC_NOINLINE void dw_pixels(const DwRow &r, int64_t ox, int64_t x0, int64_t x1) {
    const Window &g = r.g;
    const int64_t at = ox * g.co;
    const float *x = r.x + ((r.iy + r.k0 * g.dh) * g.w + ox * g.sw - g.pl + x0 * g.dw) * g.ci;
    int64_t c = r.c0;
    for (; c + NV * L <= r.c1; c += NV * L) dw_block<NP, NV, false>(r, x, x0, x1, at, c, L);
    for (; c + L <= r.c1; c += L) dw_block<NP, 1, false>(r, x, x0, x1, at, c, L);
    if (c < r.c1) dw_block<NP, 1, true>(r, x, x0, x1, at, c, r.c1 - c);
}

// A pixel whose window may reach over the left or right border.
EDGEC_INLINE void dw_pixel(const DwRow &r, int64_t ox) {
    int64_t x0, x1;
    tap_range(ox, r.g.sw, r.g.pl, r.g.dw, r.g.kw, r.g.w, &x0, &x1);
    dw_pixels<1, kDwPixels * kDwVecs>(r, ox, x0, x1);
}

// What of `r` follows from its epilogue.
EDGEC_INLINE void dw_prepare(DwRow *r) {
    r->clamp = clamp_of(r->e);
    r->plain = !r->residual && r->e.act <= 2;
    if (!r->clamp.on) r->clamp = Clamp{true, -INFINITY, INFINITY};
}

// Channels [c0, c1) of output row oy of an image whose row `above` is the first that r.x holds; columns [in0, in1) as of
// columns_inside().
EDGEC_NOINLINE void dw_row(DwRow r, int64_t oy, int64_t above, int64_t in0, int64_t in1) {
    const Window &g = r.g;
    tap_range(oy, g.sh, g.pt, g.dh, g.kh, g.h, &r.k0, &r.k1);
    r.iy = oy * g.sh - g.pt - above;
    if (r.k0 == r.k1) r.iy = r.k0 = r.k1 = 0;  // nothing is read: keep the addresses small
    int64_t ox = 0;
    for (; ox < in0; ++ox) dw_pixel(r, ox);
    for (; ox + kDwPixels <= in1; ox += kDwPixels) dw_pixels<kDwPixels, kDwVecs>(r, ox, 0, g.kw);
    for (; ox < g.ow; ++ox) dw_pixel(r, ox);
}

void dwconv2d(const Args &a, int64_t t0, int64_t t1, void *) {
    const Window g = window_of(a.op[0], a.op[1], a.i);
    DwRow r;
    r.w = (const float *)a.op[2].data;
    r.bias = (const float *)a.op[3].data;
    r.g = g;
    r.e = Epilogue{nullptr, nullptr, (int)a.i[8], (int)a.i[9], a.f[0], a.f[1]};
    const float *residual = (const float *)a.op[4].data;
    r.residual = residual;
    dw_prepare(&r);
    int64_t in0, in1;
    columns_inside(g, &in0, &in1);
    // Blocks of channels whose input rows stay in the L1 cache from one output row to the next. Wide images would need
    // blocks so narrow, and small kernels read a row so few times, that this costs more than it saves.
    const int64_t fit = 6144 / (imax(1, g.w) * (g.kh + 1));
    const int64_t block = fit < 32 || g.kh <= 3 ? g.co : imax(1, fit / 64) * 64;
    for (r.c0 = 0; r.c0 < g.co; r.c0 = r.c1) {
        r.c1 = imin((r.c0 / g.ci + 1) * g.ci, r.c0 + block);
        for (int64_t t = t0; t < t1; ++t) {
            const int64_t at = t * g.ow * g.co;
            r.x = (const float *)a.op[1].data + t / g.oh * g.h * g.w * g.ci - r.c0 / g.ci * g.ci;
            r.y = (float *)a.op[0].data + at;
            if (residual) r.residual = residual + at;
            dw_row(r, t % g.oh, 0, in0, in1);
        }
    }
}
