// rmsnorm and layernorm over the last dim, with the residual sum they usually follow: s = x + add; sum = s.
// Operands: y, sum?; x, add?, gamma?, beta? (layernorm). Preconditions: kernels/contract/data.cpp.
//
// Working in place decides where a pass may read: once `sum` is written, s is read back from there, and y is written
// last, element by element over whatever x or add it replaces.

// Sum (or sum of squares) of s - shift. Lanes collect 32 vectors at most before they move to double: the error does not
// grow with K.
struct NormSums {
    double sum, squares;
};
EDGEC_NOINLINE NormSums norm_sums(const float *s, const float *add, float *store, int64_t n, float shift) {
    NormSums total = {0, 0};
    const vf sh = vset(shift);
    for (int64_t i = 0; i < n;) {
        vf a = vset(0), q = vset(0);
        const int64_t stop = imin(n, i + 32 * L);
        for (; i + L <= stop; i += L) {
            vf v = vload(s + i);
            if (add) v = vadd(v, vload(add + i));
            if (store) vstore(store + i, v);
            v = vsub(v, sh);
            a = vadd(a, v);
            q = vfma(v, v, q);
        }
        total.sum += (double)vsum(a);
        total.squares += (double)vsum(q);
        for (; i < stop; ++i) {
            float v = add ? s[i] + add[i] : s[i];
            if (store) store[i] = v;
            v -= shift;
            total.sum += (double)v;
            total.squares += (double)v * (double)v;
        }
    }
    return total;
}

// y = (s - shift - rest) * scale * gamma + beta.
EDGEC_NOINLINE void norm_write(float *y, const float *s, const float *add, const float *gamma, const float *beta,
                               int64_t n, float shift, float rest, float scale) {
    const vf sh = vset(shift), re = vset(rest), sc = vset(scale);
    for (int64_t i = 0; i < n; i += L) {
        const int64_t m = imin(L, n - i);
        vf v = vload_upto(s + i, m);
        if (add) v = vadd(v, vload_upto(add + i, m));
        v = vmul(vsub(vsub(v, sh), re), sc);
        if (gamma) v = vmul(v, vload_upto(gamma + i, m));
        if (beta) v = vadd(v, vload_upto(beta + i, m));
        vstore_upto(y + i, v, m);
    }
}

EDGEC_NOINLINE void norm_rows(const Args &a, int64_t tile_begin, int64_t tile_end, bool centre) {
    const View &x = a.op[2];
    const int64_t k = x.dim[x.rank - 1], rows = row_count(x), per_tile = tile_rows(k);
    const float eps = a.f[0];
    const float *gamma = (const float *)a.op[4].data, *beta = centre ? (const float *)a.op[5].data : nullptr;
    for (int64_t r = tile_begin * per_tile; r < imin(rows, tile_end * per_tile); ++r) {
        const float *s = (const float *)x.data + r * k;
        const float *add = a.op[3].data ? (const float *)a.op[3].data + r * k : nullptr;
        float *sum = a.op[1].data ? (float *)a.op[1].data + r * k : nullptr;
        NormSums t = norm_sums(s, add, sum, k, 0.0f);
        if (sum) {
            s = sum;
            add = nullptr;
        }
        // The variance is taken about the rounded mean, and the rest of the mean after it: with a mean far larger than
        // the deviation, squares of the values themselves would leave nothing but rounding.
        float mean = 0.0f, rest = 0.0f;
        if (centre) {
            mean = (float)(t.sum / (double)k);
            t = norm_sums(s, add, nullptr, k, mean);
            const double r1 = t.sum / (double)k;
            rest = (float)r1;
            t.squares -= r1 * t.sum;
            if (t.squares < 0) t.squares = 0;
        }
        const float scale = (float)(1.0 / sqrt(t.squares / (double)k + (double)eps));
        norm_write((float *)a.op[0].data + r * k, s, add, gamma, beta, k, mean, rest, scale);
    }
}

void rmsnorm(const Args &a, int64_t tile_begin, int64_t tile_end, void *) { norm_rows(a, tile_begin, tile_end, false); }
void layernorm(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    norm_rows(a, tile_begin, tile_end, true);
}
