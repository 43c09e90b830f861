// y = act(x wT + bias) + residual, in one piece or in several. Few rows stream each panel once (bound by memory); more rows are a blocked product.

// All rows, at most kVectorRows, by panels [p0, p1).
template <class W>
EDGEC_NOINLINE void linear_vector(const Gemm &g, const W *w, int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; ++p) gemv_rows<W>(g, w + p * g.k * 16, p * 16, 0, g.m);
}

// Tiles [t0, t1) of g by the panels w.
EDGEC_NOINLINE void linear_run(const Gemm &g, const LinearShape &s, const void *w, uint8_t dtype, float *wide,
                               int64_t t0, int64_t t1) {
    if (s.m <= kVectorRows) {
        if (reads_panels(F32) && dtype == F32) linear_vector(g, (const float *)w, t0, t1);
        else if (reads_panels(F16) && dtype == F16) linear_vector(g, (const f16_t *)w, t0, t1);
        else if (reads_panels(BF16)) linear_vector(g, (const bf16_t *)w, t0, t1);
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
        if (reads_panels(F32) && dtype == F32) gemm_block(g, (const float *)w, wide, m0, m1, p0, p1);
        else if (reads_panels(F16) && dtype == F16) gemm_block(g, (const f16_t *)w, wide, m0, m1, p0, p1);
        else if (reads_panels(BF16)) gemm_block(g, (const bf16_t *)w, wide, m0, m1, p0, p1);
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
