// Depthwise convolution over the past. The rows before the first are the tail of an earlier call, or zeros. A tile is a
// block of rows of a sequence; the first one writes the tail for the next call.

// Row r of tail and x, one after the other; nullptr for a row of zeros.
EDGEC_INLINE const float *conv_row(const ConvRows &s, const float *tail, const float *x, int64_t r) {
    if (r >= s.k - 1) return x + (r - (s.k - 1)) * s.c;
    return tail ? tail + r * s.c : nullptr;
}

void causal_conv1d(const Args &a, int64_t t0, int64_t t1, void *) {
    const ConvRows s = conv_rows(a);
    const float *w = (const float *)a.op[3].data, *bias = (const float *)a.op[4].data;
    for (int64_t tile = t0; tile < t1; ++tile) {
        const int64_t batch = tile / s.blocks, first = tile % s.blocks * s.rows, before = batch * (s.k - 1) * s.c;
        const float *x = (const float *)a.op[2].data + batch * s.l * s.c;
        const float *tail = a.op[5].data ? (const float *)a.op[5].data + before : nullptr;
        for (int64_t t = first; t < imin(s.l, first + s.rows); ++t) {
            float *y = (float *)a.op[0].data + (batch * s.l + t) * s.c;
            for (int64_t c = 0; c < s.c; c += L) {
                const int64_t n = s.c - c;
                vf v = bias ? vload_upto(bias + c, n) : vset(0.0f);
                for (int64_t k = 0; k < s.k; ++k) {
                    const float *row = conv_row(s, tail, x, t + k);
                    if (row) v = vfma(vload_upto(row + c, n), vload_upto(w + k * s.c + c, n), v);
                }
                vstore_upto(y + c, vact((int)a.i[0], v, a.f[0], a.f[1]), n);
            }
        }
        for (int64_t k = 0; first == 0 && a.op[1].data && k < s.k - 1; ++k) {
            float *to = (float *)a.op[1].data + before + k * s.c;
            const float *row = conv_row(s, tail, x, s.l + k);
            if (row) memcpy(to, row, (size_t)s.c * sizeof(float));
            else memset(to, 0, (size_t)s.c * sizeof(float));
        }
    }
}
