// reduce: y[O, I] from x[O, R, I]; argmax likewise, to int64. With I = 1 a row is reduced along vectors, otherwise the
// lanes are neighbouring i. Sums collect at most 64 values per lane in f32 and then move to double.

enum ReduceOp { SUM = 0, MEAN = 1, MAX = 2, MIN = 3, PROD = 4, SUMSQ = 5, L2 = 6, L1 = 7 };

EDGEC_INLINE bool reduce_sums(int64_t op) { return op == SUM || op == MEAN || op >= SUMSQ; }

EDGEC_INLINE vf reduce_term(int64_t op, vf v) {
    if (op == L1) return vabs(v);
    return op == SUMSQ || op == L2 ? vmul(v, v) : v;
}

EDGEC_INLINE float reduce_finish(int64_t op, double s, int64_t r) {
    if (op == MEAN) return (float)(s / (double)r);
    return (float)(op == L2 ? sqrt(s) : s);
}

// NaN wins, as in numpy.
EDGEC_INLINE float reduce_pick(bool least, float best, float v) {
    return v != v || (best == best && (least ? v < best : v > best)) ? v : best;
}

EDGEC_NOINLINE float reduce_row(const float *x, int64_t r, int64_t op) {
    double s = op == PROD ? 1.0 : 0.0;
    float best = op == MIN ? INFINITY : -INFINITY;
    int64_t i = 0;
    if (reduce_sums(op)) {
        while (i + L <= r) {
            vf p = vset(0);
            const int64_t stop = imin(r, i + 64 * L);
            for (; i + L <= stop; i += L) p = vadd(p, reduce_term(op, vload(x + i)));
            s += (double)vsum(p);
        }
        for (; i < r; ++i) {
            const double v = (double)x[i];
            s += op == L1 ? (v < 0 ? -v : v) : op == SUMSQ || op == L2 ? v * v : v;
        }
        return reduce_finish(op, s, r);
    }
    if (op == PROD) {
        for (; i < r; ++i) s *= (double)x[i];
        return (float)s;
    }
    for (; i < r; ++i) best = reduce_pick(op == MIN, best, x[i]);
    return best;
}

// n <= L neighbouring columns; x[j] is row 0 of column j, rows are `stride` apart.
EDGEC_NOINLINE void reduce_columns(float *y, const float *x, int64_t r, int64_t stride, int64_t n, int64_t op) {
    if (reduce_sums(op)) {
        double total[L] = {};
        for (int64_t i = 0; i < r;) {
            vf p = vset(0);
            for (const int64_t stop = imin(r, i + 64); i < stop; ++i)
                p = vadd(p, reduce_term(op, vload_upto(x + i * stride, n)));
            float lane[L];
            vstore(lane, p);
            for (int64_t j = 0; j < n; ++j) total[j] += (double)lane[j];
        }
        for (int64_t j = 0; j < n; ++j) y[j] = reduce_finish(op, total[j], r);
        return;
    }
    if (op == PROD) {
        for (int64_t j = 0; j < n; ++j) {
            double s = 1.0;
            for (int64_t i = 0; i < r; ++i) s *= (double)x[i * stride + j];
            y[j] = (float)s;
        }
        return;
    }
    vf best = vset(op == MIN ? INFINITY : -INFINITY);
    for (int64_t i = 0; i < r; ++i) {
        const vf v = vload_upto(x + i * stride, n);
        // vmin and vmax give `best` when v is a NaN and v when best is one: the first line keeps best, the second
        // takes v.
        const vf pick = vsel(veq(best, best), op == MIN ? vmin(v, best) : vmax(v, best), best);
        best = vsel(veq(v, v), pick, v);
    }
    vstore_upto(y, best, n);
}

void reduce(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &x = a.op[1];
    const int64_t outer = x.dim[0], r = x.dim[1], inner = x.dim[2], op = a.i[0];
    const float *from = (const float *)x.data;
    float *y = (float *)a.op[0].data;
    if (inner == 1) {
        const int64_t per_tile = tile_rows(r);
        for (int64_t o = tile_begin * per_tile; o < imin(outer, tile_end * per_tile); ++o)
            y[o] = reduce_row(from + o * r, r, op);
        return;
    }
    const int64_t blocks = ceil_div(inner, kColumnTile);
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        const int64_t o = t / blocks, begin = t % blocks * kColumnTile, end = imin(inner, begin + kColumnTile);
        for (int64_t i = begin; i < end; i += L)
            reduce_columns(y + o * inner + i, from + o * r * inner + i, r, inner, imin(L, end - i), op);
    }
}

// The first of the equals; a NaN counts as the largest (for min: the smallest), as in numpy.
EDGEC_NOINLINE int64_t arg_of(const float *x, int64_t r, int64_t stride, bool least) {
    int64_t at = 0;
    float best = x[0];
    for (int64_t i = 1; i < r && best == best; ++i) {
        const float v = x[i * stride];
        if (v != v || (least ? v < best : v > best)) {
            best = v;
            at = i;
        }
    }
    return at;
}

// A row of a vocabulary: first the largest value, then where it stands.
EDGEC_NOINLINE int64_t arg_of_row(const float *x, int64_t r, bool least) {
    if (r < 4 * L) return arg_of(x, r, 1, least);
    vf best = vload(x), bad = vset(0);
    int64_t i = 0;
    for (; i + L <= r; i += L) {
        const vf v = vload(x + i);
        best = least ? vmin(v, best) : vmax(v, best);
        bad = vsel(veq(v, v), bad, vset(1.0f));
    }
    if (vhmax(bad) > 0) return arg_of(x, r, 1, least);
    float top = least ? -vhmax(vneg(best)) : vhmax(best);
    for (; i < r; ++i) {
        if (x[i] != x[i]) return i;
        if (least ? x[i] < top : x[i] > top) top = x[i];
    }
    for (i = 0; x[i] != top; ++i) {}
    return i;
}

void argmax(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &x = a.op[1];
    const int64_t r = x.dim[1], inner = x.dim[2], n = x.dim[0] * inner;
    const bool least = a.i[0] != 0;
    const int64_t per_tile = tile_rows(r);
    for (int64_t t = tile_begin * per_tile; t < imin(n, tile_end * per_tile); ++t) {
        const float *from = (const float *)x.data + t / inner * r * inner + t % inner;
        ((int64_t *)a.op[0].data)[t] = inner == 1 ? arg_of_row(from, r, least) : arg_of(from, r, inner, least);
    }
}
