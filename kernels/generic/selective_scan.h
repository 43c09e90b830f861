// S6: state h[N] of each channel, h = exp(delta a) h + delta x b, y = h c + d x. Steps follow each other, channels do
// not: a tile is kScanChannels channels of a sequence, one per lane, so that nothing is summed across lanes and a row of
// b and c serves all of them. What a tile needs between steps is in scratch: rates and states, [N][kScanChannels].

// vpoly() unrolled: as a loop it would take longer than what it adds up.
template <int N>
EDGEC_INLINE vf scan_poly(vf x, const float (&c)[N]) {
    vf s = vset(c[N - 1]);
#pragma GCC unroll 8
    for (int k = N - 2; k >= 0; --k) s = vfma(s, x, vset(c[k]));
    return s;
}

// 2^t for t held in [-125, 127], where one step of scaling is exact: a decay below is as good as 0, one above none that
// a model can have. Within 2e-7; NaN gives NaN. The polynomial is 1 at 0, so that decays near 1 do not drift.
EDGEC_INLINE vf scan_exp2(vf t) {
    static constexpr float c[] = {1.0f, 0.693146884f, 0.24022238f, 0.0555089302f, 0.00967169832f, 0.00132186722f};
    t = vmin(vset(127.0f), vmax(vset(-125.0f), t));
    const vf n = vround(t);
    // A NaN becomes 127 here and stays in the polynomial.
    const vi k = viadd(vtoi(vmin(n, vset(127.0f))), viset(127));
    return vmul(scan_poly(vsub(t, n), c), vcast_f(vishl<23>(k)));
}

// max(x, 0) + log(1 + u), u = exp(-|x|) in (0, 1]; a third of the work of vsoftplus().
EDGEC_INLINE vf scan_softplus(vf x) {
    static constexpr float c[] = {1.0f, -0.499995977f, 0.33320114f, -0.248473048f, 0.191149443f, -0.136717275f,
                                  0.0782420039f, -0.0294781085f, 0.00521900365f};
    const vf u = scan_exp2(vmul(vabs(x), vset(-kLog2e)));
    return vfma(u, scan_poly(u, c), vmax(vset(0.0f), x));
}

constexpr int64_t kScanAhead = 8;  // steps whose sizes are computed together: one alone would wait for its softplus

EDGEC_INLINE void scan_sizes(const float *delta, int64_t stride, int64_t steps, int64_t part, bool softplus, float *to) {
    for (int64_t t = 0; t < steps; ++t, delta += stride, to += kScanChannels)
        for (int64_t j = 0; j < part; j += L) {
            const vf v = vload_upto(delta + j, part - j);
            vstore(to + j, softplus ? scan_softplus(v) : v);
        }
}

// One step of V vectors of channels; `part` channels of the tile exist. Pointers are those of the step's rows.
template <int V>
EDGEC_INLINE void scan_step(const ScanShape &s, const float *x, const float *sizes, const float *b, const float *c,
                            const float *d, float *y, const float *rate, float *h, int64_t part) {
    vf size[V], in[V], gain[V], out[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const int64_t m = imax(0, imin(L, part - v * L));
        in[v] = vload_upto(x + v * L, m);
        size[v] = vload(sizes + v * L);
        gain[v] = vmul(size[v], in[v]);
        out[v] = d ? vmul(vload_upto(d + v * L, m), in[v]) : vset(0.0f);
    }
    for (int64_t n = 0; n < s.n; ++n, rate += kScanChannels, h += kScanChannels) {
        const vf write = vset(b[n]), read = vset(c[n]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const vf next = vfma(scan_exp2(vmul(size[v], vload(rate + v * L))), vload(h + v * L), vmul(gain[v], write));
            vstore(h + v * L, next);
            out[v] = vfma(next, read, out[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const int64_t m = imin(L, part - v * L);
        if (m > 0) vstore_upto(y + v * L, out[v], m);
    }
}

void selective_scan(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const ScanShape s = scan_shape(a);
    const float *d = (const float *)a.op[7].data, *from = (const float *)a.op[8].data;
    float *last = (float *)a.op[1].data, *rate = (float *)scratch, *h = rate + s.n * kScanChannels;
    for (int64_t tile = t0; tile < t1; ++tile) {
        const int64_t batch = tile / s.blocks, c = tile % s.blocks * kScanChannels, part = imin(kScanChannels, s.d - c);
        const int64_t row = batch * s.l * s.d + c, at = (batch * s.d + c) * s.n;
        memset(rate, 0, (size_t)(2 * s.n * kScanChannels) * sizeof(float));
        for (int64_t n = 0; n < s.n; ++n)
            for (int64_t j = 0; j < part; ++j) {
                rate[n * kScanChannels + j] = ((const float *)a.op[4].data)[n * s.d + c + j] * kLog2e;
                if (from) h[n * kScanChannels + j] = from[at + j * s.n + n];
            }
        const float *x = (const float *)a.op[2].data + row, *delta = (const float *)a.op[3].data + row;
        const float *b = (const float *)a.op[5].data + batch * s.l * s.n;
        const float *read = (const float *)a.op[6].data + batch * s.l * s.n;
        float *y = (float *)a.op[0].data + row, sizes[kScanAhead * kScanChannels] = {};
        for (int64_t t = 0; t < s.l; ++t, x += s.d, y += s.d, b += s.n, read += s.n) {
            if (t % kScanAhead == 0)
                scan_sizes(delta + t * s.d, s.d, imin(kScanAhead, s.l - t), part, a.i[0] != 0, sizes);
            scan_step<kScanChannels / L>(s, x, sizes + t % kScanAhead * kScanChannels, b, read, d ? d + c : nullptr, y,
                                         rate, h, part);
        }
        for (int64_t n = 0; last && n < s.n; ++n)
            for (int64_t j = 0; j < part; ++j) last[at + j * s.n + n] = h[n * kScanChannels + j];
    }
}
