// y = act(x wT + bias) + residual. Few rows stream each panel once (bound by memory); more rows are a blocked product.

// out[r][0..16) = init + x[r] . panel, for R rows: U sums per output so that fma latency is hidden.
template <int R, class W>
EDGEC_NOINLINE void gemv_panel(const float *x, int64_t ldx, const W *w, int64_t k, const float *init, float *out) {
    constexpr int V = kPanelVecs, U = kSums / (R * V) > 1 ? kSums / (R * V) : 1;
    constexpr int64_t kAhead = 2048 / sizeof(W);  // hardware prefetchers stop at page borders
    vf acc[U][R][V];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) acc[u][r][j] = u == 0 ? vload(init + j * L) : vset(0.0f);
    int64_t i = 0;
    for (; i + U <= k; i += U) {
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
            if (u * 16 * sizeof(W) % 64 == 0) __builtin_prefetch(w + kAhead + u * 16);
            vf b[V];
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) b[j] = wload(w + u * 16 + j * L);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                vf a = vset(x[r * ldx + i + u]);
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j) acc[u][r][j] = vfma(a, b[j], acc[u][r][j]);
            }
        }
        w += U * 16;
    }
    for (; i < k; ++i, w += 16)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) acc[0][r][j] = vfma(vset(x[r * ldx + i]), wload(w + j * L), acc[0][r][j]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
            vf s = acc[0][r][j];
#pragma GCC unroll 8
            for (int u = 1; u < U; ++u) s = vadd(s, acc[u][r][j]);
            vstore(out + r * 16 + j * L, s);
        }
}

template <class W>
EDGEC_NOINLINE void linear_run(const Gemm &g, const LinearShape &s, const W *w, float *wide, int64_t t0, int64_t t1) {
    if (s.m <= kVectorRows) {
        float init[16] = {}, out[kVectorRows * 16];
        for (int64_t p = t0; p < t1; ++p) {
            int64_t cols = imin(16, s.n - p * 16);
            if (g.e.bias) {
                memset(init, 0, sizeof init);
                memcpy(init, g.e.bias + p * 16, (size_t)cols * sizeof(float));
            }
            const W *b = w + p * s.k * 16;
            if (s.m == 1) gemv_panel<1, W>(g.a, g.lda, b, s.k, init, out);
            else if (s.m == 2) gemv_panel<2, W>(g.a, g.lda, b, s.k, init, out);
            else gemv_panel<3, W>(g.a, g.lda, b, s.k, init, out);
            gemm_finish(g, out, 16, 0, (int)s.m, p * 16, cols);
        }
        return;
    }
    // The tiles of one run of the inner index are one block; whole runs are done together.
    const int64_t inner = s.rows_outer ? s.panel_blocks : s.row_blocks;
    while (t0 < t1) {
        int64_t i0 = t0 % inner, o0 = t0 / inner, i_n = imin(inner - i0, t1 - t0);
        int64_t o_n = i_n == inner ? (t1 - t0) / inner : 1;
        int64_t rb = s.rows_outer ? o0 : i0, rows = s.rows_outer ? o_n : i_n;
        int64_t pb = s.rows_outer ? i0 : o0, panels = s.rows_outer ? i_n : o_n;
        gemm_block<W>(g, w, wide, rb * kLinearRows, imin(s.m, (rb + rows) * kLinearRows), pb * kLinearPanels,
                      imin(s.panels, (pb + panels) * kLinearPanels));
        t0 += i_n * o_n;
    }
}

void linear(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    LinearShape s = linear_shape(a);
    const View &w = a.op[2];
    Gemm g = {(const float *)a.op[1].data, s.k, s.m, s.n, s.k, (float *)a.op[0].data, s.n,
              Epilogue{(const float *)a.op[3].data, (const float *)a.op[4].data, (int)a.i[0], (int)a.i[1],
                       a.f[0], a.f[1]}};
    if (w.dtype == F32) linear_run<float>(g, s, (const float *)w.data, (float *)scratch, t0, t1);
    else if (w.dtype == F16) linear_run<f16_t>(g, s, (const f16_t *)w.data, (float *)scratch, t0, t1);
    else linear_run<bf16_t>(g, s, (const bf16_t *)w.data, (float *)scratch, t0, t1);
}
