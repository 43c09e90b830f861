// Softmax and log-softmax over the last dim: maximum, sum of exponentials, scaling. As in ONNX, a NaN, a +inf, or a row
// of nothing but -inf gives NaN in the whole row; single -inf give 0 (log: -inf). In place is safe: each
// pass writes where it has just read.

EDGEC_INLINE float row_max(const float *x, int64_t n) {
    float best = -INFINITY;
    int64_t i = 0;
    if (n >= L) {
        vf m = vload(x);
        for (i = L; i + L <= n; i += L) m = vmax(vload(x + i), m);
        best = vhmax(m);
    }
    for (; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
}

void softmax(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &view = a.op[1];
    const int64_t k = view.dim[view.rank - 1], rows = row_count(view), per_tile = tile_rows(k);
    const bool log = a.i[0] != 0;
    for (int64_t r = tile_begin * per_tile; r < imin(rows, tile_end * per_tile); ++r) {
        const float *x = (const float *)view.data + r * k;
        float *y = (float *)a.op[0].data + r * k;
        const float top = row_max(x, k);
        const vf m = vset(top);
        double total = 0;
        for (int64_t i = 0; i < k;) {
            vf s = vset(0);
            const int64_t stop = imin(k, i + 32 * L);
            for (; i + L <= stop; i += L) {
                const vf e = vexp(vsub(vload(x + i), m));
                if (!log) vstore(y + i, e);
                s = vadd(s, e);
            }
            total += (double)vsum(s);
            if (i < stop) {
                float t[L];
                vstore(t, vexp(vsub(vload_n(x + i, stop - i), m)));
                for (int64_t j = 0; i < stop; ++i, ++j) {
                    if (!log) y[i] = t[j];
                    total += (double)t[j];
                }
            }
        }
        const vf scale = vset((float)(1.0 / total)), shift = vset(logf((float)total));
        for (int64_t i = 0; i < k; i += L) {
            const int64_t n = imin(L, k - i);
            const vf v = log ? vsub(vsub(vload_upto(x + i, n), m), shift) : vmul(vload_upto(y + i, n), scale);
            vstore_upto(y + i, v, n);
        }
    }
}
