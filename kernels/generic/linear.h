// y = act(x wT + bias) + residual. Few rows stream each panel once (bound by memory); more rows are a blocked product.

template <class W>
EDGEC_NOINLINE void linear_run(const Gemm &g, const LinearShape &s, const W *w, float *wide, int64_t t0, int64_t t1) {
    if (s.m <= kVectorRows) {
        for (int64_t p = t0; p < t1; ++p) gemv_rows<W>(g, w + p * s.k * 16, p * 16, 0, s.m);
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
