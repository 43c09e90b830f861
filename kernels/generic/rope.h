// Rotary position embedding: the first R of each head's D values turn by the angles whose cos and sin [T, R/2] are
// given, in halves (j with j + R/2) or interleaved pairs (2j with 2j + 1). Both of a pair are loaded before either is
// stored, which is what makes working in place safe.

EDGEC_INLINE void rope_halves(float *y, const float *x, const float *c, const float *s, int64_t half) {
    for (int64_t j = 0; j < half; j += L) {
        const int64_t m = imin(L, half - j);
        const vf p = vload_upto(x + j, m), q = vload_upto(x + half + j, m), co = vload_upto(c + j, m),
                 si = vload_upto(s + j, m);
        vstore_upto(y + j, vfnma(q, si, vmul(p, co)), m);
        vstore_upto(y + half + j, vfma(p, si, vmul(q, co)), m);
    }
}

EDGEC_INLINE void rope_pairs(float *y, const float *x, const float *c, const float *s, int64_t half) {
    for (int64_t j = 0; j < half; ++j) {
        const float p = x[2 * j], q = x[2 * j + 1];
        y[2 * j] = p * c[j] - q * s[j];
        y[2 * j + 1] = q * c[j] + p * s[j];
    }
}

void rope(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const int64_t heads = a.i[0], r = a.i[1], d = a.op[0].dim[1] / heads;
    const float *c = (const float *)a.op[2].data, *s = (const float *)a.op[3].data;
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
            const float *x = (const float *)a.op[1].data + (t * heads + h) * d;
            float *y = (float *)a.op[0].data + (t * heads + h) * d;
            if (a.i[2]) rope_pairs(y, x, c + t * (r / 2), s + t * (r / 2), r / 2);
            else rope_halves(y, x, c + t * (r / 2), s + t * (r / 2), r / 2);
            if (y != x && r < d) memcpy(y + r, x + r, (size_t)(d - r) * sizeof(float));
        }
    }
}
