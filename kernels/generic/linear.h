// y = act(x wT + bias) + residual, in one piece or in several. Few rows stream each panel once (bound by memory); more rows are a blocked product.

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

// At most kVectorRows rows by panels [p0, p1).
template <class W>
EDGEC_NOINLINE void linear_vector(const Gemm &g, const W *w, int64_t p0, int64_t p1) {
    float init[16] = {}, out[kVectorRows * 16];
    for (int64_t p = p0; p < p1; ++p) {
        int64_t cols = imin(16, g.n - p * 16);
        if (g.e.bias) {
            memset(init, 0, sizeof init);
            memcpy(init, g.e.bias + p * 16, (size_t)cols * sizeof(float));
        }
        const W *b = w + p * g.k * 16;
        if (g.m == 1) gemv_panel<1, W>(g.a, g.lda, b, g.k, init, out);
        else if (g.m == 2) gemv_panel<2, W>(g.a, g.lda, b, g.k, init, out);
        else gemv_panel<3, W>(g.a, g.lda, b, g.k, init, out);
        gemm_finish(g, out, 16, 0, (int)g.m, p * 16, cols);
    }
}

// Tiles [t0, t1) of g by the panels w.
EDGEC_NOINLINE void linear_run(const Gemm &g, const LinearShape &s, const void *w, uint8_t dtype, float *wide,
                               int64_t t0, int64_t t1) {
    if (s.m <= kVectorRows) {
        if (dtype == F32) linear_vector(g, (const float *)w, t0, t1);
        else if (dtype == F16) linear_vector(g, (const f16_t *)w, t0, t1);
        else linear_vector(g, (const bf16_t *)w, t0, t1);
        return;
    }
    // The tiles of one run of the inner index are one block; whole runs are done together.
    const int64_t inner = s.rows_outer ? s.panel_blocks : s.row_blocks;
    while (t0 < t1) {
        int64_t i0 = t0 % inner, o0 = t0 / inner, i_n = imin(inner - i0, t1 - t0);
        int64_t o_n = i_n == inner ? (t1 - t0) / inner : 1;
        int64_t rb = s.rows_outer ? o0 : i0, rows = s.rows_outer ? o_n : i_n;
        int64_t pb = s.rows_outer ? i0 : o0, panels = s.rows_outer ? i_n : o_n;
        int64_t m0 = rb * kLinearRows, m1 = imin(s.m, (rb + rows) * kLinearRows);
        int64_t p0 = pb * kLinearPanels, p1 = imin(s.panels, (pb + panels) * kLinearPanels);
        if (dtype == F32) gemm_block(g, (const float *)w, wide, m0, m1, p0, p1);
        else if (dtype == F16) gemm_block(g, (const f16_t *)w, wide, m0, m1, p0, p1);
        else gemm_block(g, (const bf16_t *)w, wide, m0, m1, p0, p1);
        t0 += i_n * o_n;
    }
}

EDGEC_NOINLINE void linear_outputs(const Args &a, int outputs, int64_t t0, int64_t t1, float *wide) {
    LinearPart parts[kSplitOutputs];
    const int n = linear_parts(a, outputs, t0, t1, parts);
    for (const LinearPart *p = parts; p < parts + n; ++p) {
        const LinearShape &s = p->shape;
        const Gemm g = {p->x, s.k, s.m, s.n, s.k, p->y, s.n, p->e};
        linear_run(g, s, p->w, p->dtype, wide, p->t0, p->t1);
    }
}

void linear(const Args &a, int64_t t0, int64_t t1, void *scratch) { linear_outputs(a, 1, t0, t1, (float *)scratch); }
void linear_split(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    linear_outputs(a, kSplitOutputs, t0, t1, (float *)scratch);
}
