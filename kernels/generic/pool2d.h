// Maximum and average over windows, vectorised over channels. A tile is one output row.

// N channel vectors from channel c on; `part` channels of the last one exist.
template <int N, bool MAX>
EDGEC_INLINE void pool_vectors(const float *x, int64_t rows, int64_t cols, int64_t row_step, int64_t col_step,
                               float scale, float *y, int64_t part) {
    vf acc[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[j] = vset(MAX ? -INFINITY : 0.0f);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t q = 0; q < cols; ++q) {
            const float *p = x + r * row_step + q * col_step;
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) {
                vf v = j == N - 1 ? load_part(p + j * L, part) : vload(p + j * L);
                acc[j] = MAX ? vmax(acc[j], v) : vadd(acc[j], v);
            }
        }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
        if (!MAX) acc[j] = vmul(acc[j], vset(scale));
        if (j == N - 1) store_part(y + j * L, acc[j], part);
        else vstore(y + j * L, acc[j]);
    }
}

template <bool MAX>
EDGEC_NOINLINE void pool_row(const Window &g, bool count_pad, const float *x, float *y, int64_t oy) {
    int64_t y0, y1, x0, x1;
    tap_range(oy, g.sh, g.pt, g.dh, g.kh, g.h, &y0, &y1);
    for (int64_t ox = 0; ox < g.ow; ++ox, y += g.co) {
        tap_range(ox, g.sw, g.pl, g.dw, g.kw, g.w, &x0, &x1);
        const int64_t rows = y1 - y0, cols = x1 - x0, cells = count_pad ? g.kh * g.kw : rows * cols;
        const float scale = cells ? 1.0f / (float)cells : 0.0f;
        const int64_t at = rows && cols ? (oy * g.sh - g.pt + y0 * g.dh) * g.w + ox * g.sw - g.pl + x0 * g.dw : 0;
        const float *p = x + at * g.co;
        int64_t c = 0;
        for (; c + 4 * L <= g.co; c += 4 * L)
            pool_vectors<4, MAX>(p + c, rows, cols, g.dh * g.w * g.co, g.dw * g.co, scale, y + c, L);
        for (; c < g.co; c += L)
            pool_vectors<1, MAX>(p + c, rows, cols, g.dh * g.w * g.co, g.dw * g.co, scale, y + c, g.co - c);
    }
}

void pool2d(const Args &a, int64_t t0, int64_t t1, void *) {
    const Window g = window_of(a.op[0], a.op[1], a.i + 1);
    for (int64_t t = t0; t < t1; ++t) {
        const float *x = (const float *)a.op[1].data + t / g.oh * g.h * g.w * g.co;
        float *y = (float *)a.op[0].data + t * g.ow * g.co;
        if (a.i[0] == 0) pool_row<true>(g, false, x, y, t % g.oh);
        else pool_row<false>(g, a.i[9] != 0, x, y, t % g.oh);
    }
}
