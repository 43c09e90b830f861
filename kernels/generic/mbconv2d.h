// Inverted residual: a pointwise convolution widens, a depthwise one filters, a pointwise one narrows. Bands of rows go
// through all three while they are in the L2 cache, so the widened image never exists; a thread that takes neighbouring
// tiles keeps the rows that two bands share.

void mbconv2d(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const MbconvShape s = mbconv_shape(a);
    const Window &g = s.g;
    const float *x = (const float *)a.op[1].data, *widen = (const float *)a.op[2].data;
    const float *bias = (const float *)a.op[7].data, *residual = (const float *)a.op[8].data;
    float *wide = (float *)scratch, *thin = wide + s.wide_rows * g.w * g.ci;
    DwRow r;
    r.w = (const float *)a.op[4].data;
    r.bias = (const float *)a.op[5].data;
    r.residual = nullptr;
    r.g = g;
    r.e = Epilogue{nullptr, nullptr, (int)a.i[9], 0, a.f[2], a.f[3]};
    dw_prepare(&r);
    int64_t in0, in1, image = -1, have0 = 0, have1 = 0;  // rows [have0, have1) of `image` are in `wide`
    columns_inside(g, &in0, &in1);
    for (int64_t t = t0; t < t1; ++t) {
        const int64_t b = t / s.tiles, last = imin(g.oh, (t % s.tiles + 1) * s.tile_rows);
        for (int64_t oy = t % s.tiles * s.tile_rows, end; oy < last; oy = end) {
            end = imin(last, oy + s.band);
            const int64_t need0 = imin(g.h, imax(0, oy * g.sh - g.pt));
            const int64_t need1 = imax(need0, imin(g.h, (end - 1) * g.sh - g.pt + (g.kh - 1) * g.dh + 1));
            const float *rows = x + (b * g.h + need0) * g.w * g.ci;
            if (widen) {
                const int64_t keep = b == image && need0 >= have0 ? imax(0, imin(have1, need1) - need0) : 0;
                if (keep > 0 && wide)  // no channels, no scratch
                    memmove(wide, wide + (need0 - have0) * g.w * g.ci, (size_t)(keep * g.w * g.ci) * sizeof(float));
                image = b, have0 = need0, have1 = need1;
                Gemm e;
                e.a = x + (b * g.h + need0 + keep) * g.w * s.ci;
                e.lda = e.k = s.ci;
                e.m = (need1 - need0 - keep) * g.w;
                e.n = e.ldy = g.ci;
                e.y = wide + keep * g.w * g.ci;
                e.e = Epilogue{(const float *)a.op[3].data, nullptr, (int)a.i[8], 0, a.f[0], a.f[1]};
                gemm_block(e, widen, (float *)nullptr, 0, e.m, 0, ceil_div(e.n, 16));
                rows = wide;
            }
            r.x = rows;
            r.y = thin;
            r.c0 = 0, r.c1 = g.ci;
            for (int64_t row = oy; row < end; ++row, r.y += g.ow * g.ci) dw_row(r, row, need0, in0, in1);
            const int64_t at = (b * g.oh + oy) * g.ow * s.co;
            Gemm n;
            n.a = thin;
            n.lda = n.k = g.ci;
            n.m = (end - oy) * g.ow;
            n.n = n.ldy = s.co;
            n.y = (float *)a.op[0].data + at;
            n.e = Epilogue{bias, residual ? residual + at : nullptr, (int)a.i[10], (int)a.i[11], a.f[4], a.f[5]};
            gemm_block(n, (const float *)a.op[6].data, (float *)nullptr, 0, n.m, 0, ceil_div(n.n, 16));
        }
    }
}
