// Depthwise convolution, vectorised over channels. A tile is one output row.

struct DwRow {
    const float *x;     // row 0 of this image
    const float *w, *bias, *residual;
    float *y;           // this output row
    Window g;
    Epilogue e;
    Clamp clamp;
    int64_t iy, k0, k1; // input row under kernel row 0 (may lie outside), kernel rows inside
    int64_t c0, c1;     // channels to do
};

EDGEC_INLINE vf load_part(const float *p, int64_t n) { return n >= L ? vload(p) : vload_n(p, n); }
EDGEC_INLINE void store_part(float *p, vf v, int64_t n) {
    if (n >= L) vstore(p, v);
    else vstore_n(p, v, n);
}

EDGEC_INLINE void dw_finish(const DwRow &r, int64_t at, vf v, int64_t n) {
    vf res = r.residual ? load_part(r.residual + at, n) : vset(0.0f);
    if (r.e.residual_first) v = vadd(v, res);
    if (r.clamp.on) v = vmin(vset(r.clamp.hi), vmax(vset(r.clamp.lo), v));
    else v = vact(r.e.act, v, r.e.a, r.e.b);
    if (r.residual && !r.e.residual_first) v = vadd(v, res);
    store_part(r.y + at, v, n);
}

// L channels from c on (n of them exist if PART) of NP neighbouring pixels, all kernel columns inside: an input column
// is loaded once for all the pixels that use it. x: first input column of kernel row k0.
template <int KW, int S, int NP, bool PART>
EDGEC_INLINE void dw_vector(const DwRow &r, const float *x, int64_t at, int64_t c, int64_t n) {
    const int64_t c_all = r.g.co, line = r.g.w * c_all;
    vf acc[NP], first = vset(0.0f);
    if (r.bias) first = PART ? vload_n(r.bias + c, n) : vload(r.bias + c);
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) acc[p] = first;
    const float *xc = x + c, *wc = r.w + r.k0 * KW * c_all + c;
    for (int64_t ky = r.k0; ky < r.k1; ++ky, xc += line, wc += KW * c_all) {
        vf w[KW];
#pragma GCC unroll 8
        for (int k = 0; k < KW; ++k) w[k] = PART ? vload_n(wc + k * c_all, n) : vload(wc + k * c_all);
#pragma GCC unroll 16
        for (int i = 0; i < (NP - 1) * S + KW; ++i) {
            vf v = PART ? vload_n(xc + i * c_all, n) : vload(xc + i * c_all);
#pragma GCC unroll 8
            for (int p = 0; p < NP; ++p)
                if (i - p * S >= 0 && i - p * S < KW) acc[p] = vfma(v, w[i - p * S], acc[p]);
        }
    }
    // Through memory and a real loop: the ends of four pixels would be most of the code.
    vf sums[NP];
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) sums[p] = acc[p];
#pragma GCC unroll 1
    for (int p = 0; p < NP; ++p) dw_finish(r, at + p * c_all + c, sums[p], PART ? n : L);
}

// Groups of four pixels in [ox, end); returns the first pixel not done.
template <int KW, int S>
EDGEC_NOINLINE int64_t dw_span(const DwRow &r, int64_t ox, int64_t end) {
    const int64_t c_all = r.g.co;
    for (; ox + 4 <= end; ox += 4) {
        const float *x = r.x + ((r.iy + r.k0) * r.g.w + ox * S - r.g.pl) * c_all;
        int64_t c = r.c0;
        for (; c + L <= r.c1; c += L) dw_vector<KW, S, 4, false>(r, x, ox * c_all, c, L);
        if (c < r.c1) dw_vector<KW, S, 4, true>(r, x, ox * c_all, c, r.c1 - c);
    }
    return ox;
}

// One pixel, any kernel, kernel columns [x0, x1) inside. Four channel vectors at a time hide the latency of fma.
EDGEC_NOINLINE void dw_pixel(const DwRow &r, int64_t ox) {
    const Window &g = r.g;
    const int64_t c_all = g.co;
    int64_t x0, x1;
    tap_range(ox, g.sw, g.pl, g.dw, g.kw, g.w, &x0, &x1);
    const int64_t ix = ox * g.sw - g.pl;
    int64_t c = r.c0;
    for (; c + 4 * L <= r.c1; c += 4 * L) {
        vf acc[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) acc[j] = r.bias ? vload(r.bias + c + j * L) : vset(0.0f);
        for (int64_t ky = r.k0; ky < r.k1; ++ky)
            for (int64_t kx = x0; kx < x1; ++kx) {
                const float *v = r.x + ((r.iy + ky * g.dh) * g.w + ix + kx * g.dw) * c_all + c;
                const float *w = r.w + (ky * g.kw + kx) * c_all + c;
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) acc[j] = vfma(vload(v + j * L), vload(w + j * L), acc[j]);
            }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) dw_finish(r, ox * c_all + c + j * L, acc[j], L);
    }
    for (; c < r.c1; c += L) {
        const int64_t n = r.c1 - c;
        vf acc = r.bias ? load_part(r.bias + c, n) : vset(0.0f);
        for (int64_t ky = r.k0; ky < r.k1; ++ky)
            for (int64_t kx = x0; kx < x1; ++kx)
                acc = vfma(load_part(r.x + ((r.iy + ky * g.dh) * g.w + ix + kx * g.dw) * c_all + c, n),
                           load_part(r.w + (ky * g.kw + kx) * c_all + c, n), acc);
        dw_finish(r, ox * c_all + c, acc, n);
    }
}

// Channels [c0, c1) of output row t; columns [in0, in1) have their whole window inside x.
EDGEC_NOINLINE void dw_row(const Args &a, DwRow r, int64_t t, int64_t in0, int64_t in1) {
    const Window &g = r.g;
    const int64_t b = t / g.oh, oy = t % g.oh, at = t * g.ow * g.co;
    r.x = (const float *)a.op[1].data + b * g.h * g.w * g.co;
    r.y = (float *)a.op[0].data + at;
    if (r.residual) r.residual += at;
    r.iy = oy * g.sh - g.pt;
    tap_range(oy, g.sh, g.pt, g.dh, g.kh, g.h, &r.k0, &r.k1);
    if (r.k0 == r.k1) r.iy = r.k0 = r.k1 = 0;  // nothing is read: keep the addresses small
    int64_t ox = 0;
    for (; ox < in0; ++ox) dw_pixel(r, ox);
    // An instruction set with a small product tile has no registers for four pixels either: it saves the code.
    if (kTileRows > 2 && g.dh == 1 && g.dw == 1) {
        if (g.kw == 3 && g.sw == 1) ox = dw_span<3, 1>(r, ox, in1);
        else if (g.kw == 3 && g.sw == 2) ox = dw_span<3, 2>(r, ox, in1);
        else if (g.kw == 5 && g.sw == 1) ox = dw_span<5, 1>(r, ox, in1);
        else if (g.kw == 5 && g.sw == 2) ox = dw_span<5, 2>(r, ox, in1);
        else if (g.kw == 7 && g.sw == 1) ox = dw_span<7, 1>(r, ox, in1);
    }
    for (; ox < g.ow; ++ox) dw_pixel(r, ox);
}

void dwconv2d(const Args &a, int64_t t0, int64_t t1, void *) {
    const Window g = window_of(a.op[0], a.op[1], a.i);
    DwRow r;
    r.w = (const float *)a.op[2].data;
    r.bias = (const float *)a.op[3].data;
    r.g = g;
    r.e = Epilogue{nullptr, nullptr, (int)a.i[8], (int)a.i[9], a.f[0], a.f[1]};
    r.clamp = clamp_of(r.e);
    r.residual = (const float *)a.op[4].data;
    // Columns whose window lies inside x.
    const int64_t reach = (g.kw - 1) * g.dw, room = g.w - 1 - reach + g.pl;
    const int64_t in0 = imin(g.ow, ceil_div(g.pl, g.sw)), in1 = room < 0 ? in0 : imax(in0, imin(g.ow, room / g.sw + 1));
    // Blocks of channels whose input rows stay in the L1 cache from one output row to the next. Wide images would need
    // blocks so narrow that reading them costs more than it saves.
    const int64_t fit = 6144 / (imax(1, g.w) * (g.kh + 1)), block = fit < 32 ? g.co : imax(1, fit / 64) * 64;
    for (r.c0 = 0; r.c0 < g.co; r.c0 = r.c1) {
        r.c1 = imin(g.co, r.c0 + block);
        for (int64_t t = t0; t < t1; ++t) dw_row(a, r, t, in0, in1);
    }
}
