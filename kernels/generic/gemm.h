// The matrix product that linear, conv2d, matmul and attention share: rows of a (row-major) times panel16 weights.

struct f16_t {
    uint16_t bits;
};
struct bf16_t {
    uint16_t bits;
};
EDGEC_INLINE vf wload(const float *p) { return vload(p); }
EDGEC_INLINE vf wload(const f16_t *p) { return vload_f16((const uint16_t *)p); }
EDGEC_INLINE vf wload(const bf16_t *p) { return vload_bf16((const uint16_t *)p); }

// How the rows of a lie in memory: `runs` pieces of `run` values, each `line` behind the one before.
struct Rows {
    int64_t lda, runs, run, line;
};

struct Gemm {
    const float *a;
    int64_t lda;
    int64_t m, n, k;  // n: columns that exist; the weights are padded to whole panels
    float *y;         // also where the residual is indexed from: both have row stride ldy
    int64_t ldy;
    Epilogue e;       // bias and residual already point at column 0 of this product
    int64_t runs = 0, run = 0, line = 0;  // as in Rows, of f32 weights only; no runs: rows of one piece
    int64_t skip = 0;                     // rows of weights that each panel has before those of the first piece
};

// Relu and clip are cheap enough to be done on the accumulators; none is a clip that never binds and is skipped.
struct Clamp {
    bool on;
    float lo, hi;
};
EDGEC_INLINE Clamp clamp_of(const Epilogue &e) {
    return e.act == 1 ? Clamp{true, 0.0f, INFINITY} : e.act == 2 ? Clamp{true, e.a, e.b} : Clamp{false, 0, 0};
}

// acc += a[0..R)[k] x b[k][0..L NV). Rows are reached from every third one, which keeps the addresses in few registers.
template <int R, int NV>
EDGEC_INLINE void gemm_step(vf (&acc)[R][NV], const float *const *a, int64_t lda, const float *b,
                            int64_t panel, int64_t k) {
    vf w[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j)
        w[j] = vload(b + (j / kPanelVecs) * panel + k * 16 + (j % kPanelVecs) * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        vf x = vset(a[r / 3][(r % 3) * lda + k]);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
            acc[r][j] = vfma(x, w[j], acc[r][j]);
            vpin(&acc[r][j]);  // else compilers load the values of all rows first and run out of registers
        }
    }
}

// c[0..R)[0..L NV) = clamp(init + a b). init: L NV floats for every row, or null for zero, or (each_row) a row of its
// own with stride ldc. b: panels of k x 16, `panel` elements apart, of
// which the last may be used by half. Stays inside exactly those extents.
template <int R, int NV>
EDGEC_NOINLINE void gemm_tile(const float *a, const Rows &rows, const float *b, int64_t panel, const float *init,
                              bool each_row, float *c, int64_t ldc, Clamp clamp) {
    vf acc[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j)
            acc[r][j] = init ? vload(init + (each_row ? r * ldc : 0) + j * L) : vset(0.0f);
    const int64_t lda = rows.lda;
    for (int64_t piece = 0; piece < rows.runs; ++piece) {
        const float *q[(R + 2) / 3];
#pragma GCC unroll 8
        for (int i = 0; i < (R + 2) / 3; ++i) q[i] = a + piece * rows.line + i * 3 * lda;
        int64_t i = 0;
        for (; i + 2 <= rows.run; i += 2) {
            gemm_step<R, NV>(acc, q, lda, b, panel, 0);
            gemm_step<R, NV>(acc, q, lda, b, panel, 1);
            b += 32;
#pragma GCC unroll 8
            for (int s = 0; s < (R + 2) / 3; ++s) q[s] += 2;
        }
        if (i < rows.run) {
            gemm_step<R, NV>(acc, q, lda, b, panel, 0);
            b += 16;
        }
    }
    if (clamp.on) {
        vf lo = vset(clamp.lo), hi = vset(clamp.hi);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) acc[r][j] = vmin(hi, vmax(lo, acc[r][j]));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) vstore(c + r * ldc + j * L, acc[r][j]);
}

// The largest tile height that fits into `rows`; the heights below it exist so that remainders stay efficient.
template <int NV = kTileVecs> EDGEC_INLINE int gemm_height(int64_t rows) {
    if (kTileRows >= 12 && rows >= 12) return 12;
    if (kTileRows >= 12 && rows >= 8) return 8;
    if (kTileRows == 6 && NV <= kTileVecs && rows >= 6) return 6;
    if (kTileRows >= 4 && rows >= 4) return 4;
    return rows >= 2 ? 2 : 1;
}

template <int NV>
EDGEC_INLINE void gemm_rows(int r, const float *a, const Rows &rows, const float *b, int64_t panel,
                            const float *init, bool each_row, float *c, int64_t ldc, Clamp clamp) {
    if constexpr (kTileRows >= 12) {
        if (r == 12) return gemm_tile<12, NV>(a, rows, b, panel, init, each_row, c, ldc, clamp);
        if (r == 8) return gemm_tile<8, NV>(a, rows, b, panel, init, each_row, c, ldc, clamp);
    }
    if constexpr (kTileRows == 6 && NV <= kTileVecs)
        if (r == 6) return gemm_tile<6, NV>(a, rows, b, panel, init, each_row, c, ldc, clamp);
    if constexpr (kTileRows >= 4)
        if (r == 4) return gemm_tile<4, NV>(a, rows, b, panel, init, each_row, c, ldc, clamp);
    if (r == 2) return gemm_tile<2, NV>(a, rows, b, panel, init, each_row, c, ldc, clamp);
    gemm_tile<1, NV>(a, rows, b, panel, init, each_row, c, ldc, clamp);
}

EDGEC_INLINE vf load_part(const float *p, int64_t n) { return n >= L ? vload(p) : vload_n(p, n); }
EDGEC_INLINE void store_part(float *p, vf v, int64_t n) {
    if (n >= L) vstore(p, v);
    else vstore_n(p, v, n);
}

// The part of the epilogue that the tile left: from `t` (rows of ldt, whole panels), which it changes, to
// y[m..m+rows)[n..n+cols). Rows are few at a time, so that they stay in the first-level cache.
EDGEC_NOINLINE void gemm_finish(const Gemm &g, float *t, int64_t ldt, int64_t m, int rows, int64_t n, int64_t cols) {
    constexpr int kFew = 16;
    const Epilogue &e = g.e;
    for (int first = 0; first < rows; first += kFew, t += kFew * ldt) {
        const int few = rows - first < kFew ? rows - first : kFew;
        // Nothing is added where there is nothing: -0 would become 0, here and not in a tile that is done.
        for (int r = 0; r < few && e.residual && e.residual_first; ++r)
            for (int64_t c = 0; c < cols; c += L) {
                const float *res = e.residual + (m + first + r) * g.ldy + n + c;
                vstore(t + r * ldt + c, vadd(vload(t + r * ldt + c), load_part(res, cols - c)));
            }
        vact_run(e.act, t, few * ldt, e.a, e.b);
        for (int r = 0; r < few; ++r)
            for (int64_t c = 0; c < cols; c += L) {
                const int64_t at = (m + first + r) * g.ldy + n + c;
                vf v = vload(t + r * ldt + c);
                if (e.residual && !e.residual_first) v = vadd(v, load_part(e.residual + at, cols - c));
                store_part(g.y + at, v, cols - c);
            }
    }
}

// Rows [m0, m1) of NV vectors of columns, whose weights `b` begin at column n.
template <int NV>
EDGEC_NOINLINE void gemm_panels(const Gemm &g, const float *b, int64_t panel, int64_t n, int64_t m0, int64_t m1) {
    constexpr int64_t kColumns = NV * L;
    float bias[kColumns], t[kTileRows * kColumns];
    const int64_t cols = imin(kColumns, g.n - n);
    const float *init = g.e.bias ? g.e.bias + n : nullptr;
    if (init && cols < kColumns) {
        memset(bias, 0, sizeof bias);
        memcpy(bias, init, (size_t)cols * sizeof(float));
        init = bias;
    }
    const bool direct = cols == kColumns && !g.e.residual && g.e.act <= 2;
    const Clamp clamp = direct ? clamp_of(g.e) : Clamp{false, 0, 0};
    const Rows rows = g.runs ? Rows{g.lda, g.runs, g.run, g.line} : Rows{g.lda, 1, g.k, 0};
    for (int64_t m = m0; m < m1;) {
        const int r = gemm_height<NV>(m1 - m);
        float *c = direct ? g.y + m * g.ldy + n : t;
        gemm_rows<NV>(r, g.a + m * g.lda, rows, b, panel, init, false, c, direct ? g.ldy : kColumns, clamp);
        if (!direct) gemm_finish(g, t, kColumns, m, r, n, cols);
        m += r;
    }
}

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

// Rows [m0, m1) of one panel, whose weights `b` begin at column n, as matrix-vector products of four rows at most.
template <class W>
EDGEC_NOINLINE void gemv_rows(const Gemm &g, const W *b, int64_t n, int64_t m0, int64_t m1) {
    float init[16] = {}, out[4 * 16];
    const int64_t cols = imin(16, g.n - n);
    if (g.e.bias) memcpy(init, g.e.bias + n, (size_t)cols * sizeof(float));
    for (int64_t m = m0; m < m1; m += 4) {
        const int rows = (int)imin(4, m1 - m);
        const float *a = g.a + m * g.lda;
        if (rows == 1) gemv_panel<1, W>(a, g.lda, b, g.k, init, out);
        else if (rows == 2) gemv_panel<2, W>(a, g.lda, b, g.k, init, out);
        else if (rows == 3) gemv_panel<3, W>(a, g.lda, b, g.k, init, out);
        else gemv_panel<4, W>(a, g.lda, b, g.k, init, out);
        gemm_finish(g, out, 16, m, rows, n, cols);
    }
}

EDGEC_INLINE void gemm_some(const Gemm &g, const float *b, int np, int64_t n, int64_t m0, int64_t m1) {
    if constexpr (kTilePanels == 1 && kPanelVecs == 2)
        if (np == 2) return gemm_panels<3>(g, b, g.k * 16, n, m0, m1);
    if (np == kTilePanels) gemm_panels<kTileVecs>(g, b, g.k * 16, n, m0, m1);
    else gemm_panels<kPanelVecs>(g, b, g.k * 16, n, m0, m1);
}

// Rows [m0, m1) by panels [p0, p1) of w (panel16, panel 0 first). `wide` has room for kTilePanels panels of f32.
template <class W>
EDGEC_NOINLINE void gemm_block(const Gemm &g, const W *w, float *wide, int64_t m0, int64_t m1, int64_t p0,
                               int64_t p1) {
    const int64_t panel = g.k * 16;
    // A chunk of rows is read once per panel and its results are written a panel at a time: both should stay in the
    // L2 cache. But each chunk streams all weights again, so it is never so small that this dominates.
    const int64_t chunk = imax(8, imin(512, 131072 / imax(1, g.k + (p1 - p0) * 16) / 12)) * 12;
    for (int64_t m = m0; m < m1; m += chunk) {
        int64_t end = imin(m1, m + chunk);
        for (int64_t p = p0; p < p1;) {
            int np = (int)imin(kTilePanels, p1 - p);
            // Where two vectors are a panel, three of them do its neighbour's last columns as well if these are few.
            if (sizeof(W) == sizeof(float) && kTilePanels == 1 && kPanelVecs == 2 && p + 2 == p1 && g.n - p * 16 <= 3 * L) np = 2;
            const W *b = w + p * panel;
            if constexpr (sizeof(W) == sizeof(float)) {
                gemm_some(g, b + g.skip * 16, np, p * 16, m, end);
            } else if (g.m >= kWidenRows) {  // of all rows: results must not depend on how they are cut
                for (int64_t i = 0; i < np * panel; i += L) vstore(wide + i, wload(b + i));
                gemm_some(g, wide, np, p * 16, m, end);
            } else {
                for (int i = 0; i < np; ++i) gemv_rows<W>(g, b + i * panel, (p + i) * 16, m, end);
            }
            p += np;
        }
    }
}
