// y = alpha a b of two activations: b is packed into panels in scratch, then it is the product of gemm.h.

// Panel p of b as k x 16, columns beyond n zero. step_k, step_n: distance between neighbours along k and n.
EDGEC_NOINLINE void matmul_pack(const float *b, int64_t k, int64_t n, int64_t step_k, int64_t step_n, float alpha,
                                float *to) {
    if (step_n == 1 && n == 16) {
        for (int64_t i = 0; i < k; ++i)
            for (int j = 0; j < 16; j += L) vstore(to + i * 16 + j, vmul(vset(alpha), vload(b + i * step_k + j)));
        return;
    }
    if (n < 16) zero_floats(to, k * 16);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < k; ++i) to[i * 16 + j] = alpha * b[i * step_k + j * step_n];
}

// Where matrix number `index` of the broadcast batch begins in v, in elements.
EDGEC_INLINE int64_t batch_offset(const View &y, const View &v, int64_t index) {
    int64_t offset = 0, stride = v.dim[v.rank - 1] * v.dim[v.rank - 2];
    for (int d = y.rank - 3, e = v.rank - 3; d >= 0; --d, --e) {
        int64_t i = index % y.dim[d];
        index /= y.dim[d];
        if (e < 0) continue;
        if (v.dim[e] != 1) offset += i * stride;
        stride *= v.dim[e];
    }
    return offset;
}

void matmul(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const MatmulShape s = matmul_shape(a);
    const View &yv = a.op[0], &av = a.op[1], &bv = a.op[2];
    const bool trans = a.i[0] != 0;
    const int64_t step_k = trans ? 1 : s.n, step_n = trans ? s.k : 1, panel = s.k * 16;
    float *packed = (float *)scratch;
    for (int64_t t = t0; t < t1; ++t) {
        const int64_t rb = t % s.row_blocks, pb = t / s.row_blocks % s.panel_blocks;
        const int64_t batch = t / s.row_blocks / s.panel_blocks;
        Gemm g;
        g.a = (const float *)av.data + batch_offset(yv, av, batch);
        g.lda = s.k;
        g.m = s.m;
        g.n = s.n;
        g.k = s.k;
        g.y = (float *)yv.data + batch * s.m * s.n;
        g.ldy = s.n;
        const float *b = (const float *)bv.data + batch_offset(yv, bv, batch);
        const int64_t m0 = rb * kMatmulRows, m1 = imin(s.m, m0 + kMatmulRows);
        const int64_t p1 = imin(s.panels, (pb + 1) * kMatmulPanels);
        for (int64_t p = pb * kMatmulPanels; p < p1;) {
            const int np = p + kTilePanels <= p1 ? kTilePanels : 1;
            for (int i = 0; i < np; ++i)
                matmul_pack(b + (p + i) * 16 * step_n, s.k, imin(16, s.n - (p + i) * 16), step_k, step_n, a.f[0],
                            packed + i * panel);
            if (np == kTilePanels) gemm_panels<kTileVecs>(g, packed, panel, p * 16, m0, m1);
            else gemm_panels<kPanelVecs>(g, packed, panel, p * 16, m0, m1);
            p += np;
        }
    }
}
