// Softmax attention with an online softmax: positions are taken in steps of kAttentionSpan, all query rows of a tile
// against each step, so keys and values are read once for every query head and token of the tile.

EDGEC_INLINE vf kload(const float *p) { return vload(p); }
EDGEC_INLINE vf kload_n(const float *p, int64_t n) { return vload_n(p, n); }
EDGEC_INLINE vf kload(const f16_t *p) { return vload_f16((const uint16_t *)p); }
EDGEC_INLINE vf kload_n(const f16_t *p, int64_t n) { return vload_f16_n((const uint16_t *)p, n); }

// One tile: its query rows share the keys and values of one head, whose positions are k_step and v_step apart.
struct AttentionRows {
    const AttentionShape *s;
    int64_t k_step, v_step;
    const View *mask;       // null without one
    int64_t batch, head;    // head: the first query head of the group
    int64_t t0, t1;         // tokens
    float softcap;
    bool causal;
    int64_t offset, window; // token t sees positions (t + offset - window, t + offset], window 0: all from 0 on
    float *q, *score, *sum, *top, *total, *k_copy, *v_panel;  // scratch

    // Positions [lo, hi) that token t sees.
    inline __attribute__((always_inline)) void range(int64_t t, int64_t *lo, int64_t *hi) const {
        *lo = 0;
        *hi = s->s;
        if (!causal) return;
        *hi = imax(0, imin(s->s, t + offset + 1));
        if (window > 0) *lo = imin(*hi, imax(0, t + offset - window + 1));
    }
};
template <class T> struct AttentionTile : AttentionRows {
    const T *k, *v;
};

// Rows of k or v as f32, zero up to `padded` columns.
template <class T>
EDGEC_NOINLINE void attention_widen(const T *from, int64_t step, int64_t n, int64_t width, int64_t padded, float *to) {
    for (int64_t i = 0; i < n; ++i, from += step, to += padded) {
        int64_t c = 0;
        for (; c + L <= width; c += L) vstore(to + c, kload(from + c));
        for (; c < padded; c += L) vstore(to + c, c < width ? kload_n(from + c, width - c) : vset(0.0f));
    }
}

// score[0..span) = q . k[i]; span is n rounded up to whole vectors, where keys beyond n repeat the last one.
EDGEC_NOINLINE void attention_scores(const float *q, int64_t d, const float *k, int64_t step, int64_t n, float *score) {
    for (int64_t i = 0; i < n; i += L) {
        vf acc[L];
        const float *at[L];
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) {
            acc[j] = vset(0.0f);
            at[j] = k + imin(i + j, n - 1) * step;
        }
        for (int64_t c = 0; c < d; c += L) {
            vf x = vload(q + c);
#pragma GCC unroll 16
            for (int j = 0; j < L; ++j) acc[j] = vfma(x, vload(at[j] + c), acc[j]);
        }
        vstore(score + i, vsums(acc));
    }
}

// Scores of one row -> unnormalised probabilities; keeps the running maximum and total. False: nothing is seen here.
EDGEC_NOINLINE bool attention_softmax(const AttentionRows &a, int64_t row, int64_t p0, int64_t n) {
    const AttentionShape &s = *a.s;
    float *score = a.score + row * kAttentionSpan;
    const int64_t t = a.t0 + row / s.group;
    int64_t lo, hi;
    a.range(t, &lo, &hi);
    lo = imax(0, lo - p0);
    hi = imin(n, hi - p0);
    const int64_t padded = ceil_div(n, L) * L;
    if (lo >= hi) {
        zero_floats(score, padded);
        return false;
    }
    if (a.softcap > 0)
        for (int64_t i = 0; i < padded; i += L)
            vstore(score + i, vmul(vset(a.softcap), vtanh(vdiv(vload(score + i), vset(a.softcap)))));
    if (a.mask) {
        const View &m = *a.mask;
        int64_t b = m.dim[0] == 1 ? 0 : a.batch, h = m.dim[1] == 1 ? 0 : a.head + row % s.group;
        int64_t at = ((b * m.dim[1] + h) * m.dim[2] + (m.dim[2] == 1 ? 0 : t)) * s.s + p0;
        if (m.dtype == F32) {
            const float *add = (const float *)m.data + at;
            for (int64_t i = 0; i < n; i += L) vstore(score + i, vadd(vload(score + i), load_part(add + i, n - i)));
        } else {
            const uint8_t *keep = (const uint8_t *)m.data + at;
            for (int64_t i = 0; i < n; ++i)
                if (!keep[i]) score[i] = -INFINITY;
        }
    }
    for (int64_t i = 0; i < lo; ++i) score[i] = -INFINITY;
    for (int64_t i = hi; i < padded; ++i) score[i] = -INFINITY;
    vf best = vset(-INFINITY);
    for (int64_t i = 0; i < padded; i += L) best = vmax(vload(score + i), best);
    const float before = a.top[row];
    float top = fmaxf(before, vhmax(best));
    if (top == -INFINITY) {  // nothing is seen, or NaNs, which vmax passes over: those must reach the result
        for (int64_t i = lo; i < hi; ++i)
            if (score[i] != score[i]) top = 0;
    }
    if (top == -INFINITY) {
        zero_floats(score, padded);
        return false;
    }
    vf shift = vset(top), total = vset(0.0f);
    for (int64_t i = 0; i < padded; i += L) {
        vf p = vexp(vsub(vload(score + i), shift));
        total = vadd(total, p);
        vstore(score + i, p);
    }
    a.top[row] = top;
    if (before == top) {
        a.total[row] += vsum(total);
        return true;
    }
    // A new maximum: what was summed so far shrinks by exp(before - top), which is 0 at the first step.
    float one[L];
    vstore(one, vexp(vset(before - top)));
    a.total[row] = a.total[row] * one[0] + vsum(total);
    float *sum = a.sum + row * s.dv_pad;
    for (int64_t c = 0; c < s.dv_pad; c += L) vstore(sum + c, vmul(vload(sum + c), vset(one[0])));
    return true;
}

// sum[0..dv) += p . v for one row, v read in place: for few rows, where packing v would not pay.
template <class T>
EDGEC_NOINLINE void attention_mix(const float *p, int64_t n, const T *v, int64_t step, int64_t dv, float *sum) {
    int64_t c = 0;
    for (; c + 4 * L <= dv; c += 4 * L) {
        vf even[4], odd[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) even[j] = vload(sum + c + j * L), odd[j] = vset(0.0f);
        const T *at = v + c;
        int64_t i = 0;
        for (; i + 2 <= n; i += 2, at += 2 * step)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                even[j] = vfma(vset(p[i]), kload(at + j * L), even[j]);
                odd[j] = vfma(vset(p[i + 1]), kload(at + step + j * L), odd[j]);
            }
        if (i < n)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) even[j] = vfma(vset(p[i]), kload(at + j * L), even[j]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) vstore(sum + c + j * L, vadd(even[j], odd[j]));
    }
    for (; c < dv; c += L) {  // sum is padded to whole vectors, v is not
        vf acc = vload(sum + c);
        for (int64_t i = 0; i < n; ++i)
            acc = vfma(vset(p[i]), c + L <= dv ? kload(v + i * step + c) : kload_n(v + i * step + c, dv - c), acc);
        vstore(sum + c, acc);
    }
}

// The scores of all rows as a matrix product: keys p0.. are turned into panels of 16 positions by d.
template <class T>
EDGEC_NOINLINE void attention_score_rows(const AttentionTile<T> &a, int64_t rows, const T *k, int64_t n) {
    const int64_t d = a.s->d, pad = a.s->d_pad, panel = d * 16, panels = ceil_div(n, 16);
    const Rows shape = {pad, 1, d, 0};
    for (int64_t i = 0; i < panels * 16; i += L)
        for (int64_t c = 0; c < d; c += L) {
            vf t[L];
            for (int j = 0; j < L; ++j) {  // positions beyond n repeat the last one; their scores are not looked at
                const T *from = k + imin(i + j, n - 1) * a.k_step + c;
                t[j] = c + L <= d ? kload(from) : kload_n(from, d - c);
            }
            vtranspose(t);
            float *to = a.k_copy + i / 16 * panel + c * 16 + i % 16;
            for (int j = 0; j < L && c + j < d; ++j) vstore(to + j * 16, t[j]);
        }
    for (int64_t r = 0; r < rows;) {
        const int height = gemm_height(rows - r);
        const float *q = a.q + r * pad;
        float *score = a.score + r * kAttentionSpan;
        int64_t p = 0;
        for (; p + kTilePanels <= panels; p += kTilePanels)
            gemm_rows<kTileVecs>(height, q, shape, a.k_copy + p * panel, panel, nullptr, false, score + p * 16,
                                   kAttentionSpan, Clamp{false, 0, 0});
        for (; p < panels; ++p)
            gemm_rows<kPanelVecs>(height, q, shape, a.k_copy + p * panel, panel, nullptr, false, score + p * 16, kAttentionSpan,
                         Clamp{false, 0, 0});
        r += height;
    }
}

// sum += p v for all rows as a matrix product, v packed into panels.
template <class T>
EDGEC_NOINLINE void attention_mix_rows(const AttentionTile<T> &a, int64_t rows, const T *v, int64_t n) {
    const int64_t dv = a.s->dv, pad = a.s->dv_pad, panel = n * 16;
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < pad; c += L) {
            const T *from = v + i * a.v_step + c;
            vstore(a.v_panel + c / 16 * panel + i * 16 + c % 16,
                   c + L <= dv ? kload(from) : c < dv ? kload_n(from, dv - c) : vset(0.0f));
        }
    const Rows shape = {kAttentionSpan, 1, n, 0};
    for (int64_t r = 0; r < rows;) {
        const int height = gemm_height(rows - r);
        float *sum = a.sum + r * pad;
        const float *p = a.score + r * kAttentionSpan;
        int64_t c = 0;
        for (; c + 16 * kTilePanels <= pad; c += 16 * kTilePanels)
            gemm_rows<kTileVecs>(height, p, shape, a.v_panel + c * n, panel, sum + c, true, sum + c, pad,
                                   Clamp{false, 0, 0});
        for (; c < pad; c += 16)
            gemm_rows<kPanelVecs>(height, p, shape, a.v_panel + c * n, panel, sum + c, true, sum + c, pad, Clamp{false, 0, 0});
        r += height;
    }
}

constexpr int64_t kPackRows = 6;  // from this many rows on packing keys and values pays

// A step for few rows: keys and values are read where they are. Only keys that need widening or end within a vector
// are copied, once for all rows.
template <class T>
EDGEC_NOINLINE void attention_few_rows(const AttentionTile<T> &a, int64_t rows, const T *k, const T *v, int64_t p0,
                                       int64_t n) {
    const AttentionShape &s = *a.s;
    const bool copy = sizeof(T) != sizeof(float) || s.d % L != 0;
    const float *keys = (const float *)(const void *)k;
    if (copy) {
        attention_widen<T>(k, a.k_step, n, s.d, s.d_pad, a.k_copy);
        keys = a.k_copy;
    }
    for (int64_t r = 0; r < rows; ++r) {
        float *score = a.score + r * kAttentionSpan;
        attention_scores(a.q + r * s.d_pad, copy ? s.d_pad : s.d, keys, copy ? s.d_pad : a.k_step, n, score);
        if (attention_softmax(a, r, p0, n)) attention_mix<T>(score, n, v, a.v_step, s.dv, a.sum + r * s.dv_pad);
    }
}

template <class T>
EDGEC_NOINLINE void attention_tile(const AttentionTile<T> &a, const float *q, float *y, float scale) {
    const AttentionShape &s = *a.s;
    const int64_t rows = (a.t1 - a.t0) * s.group;
    for (int64_t r = 0; r < rows; ++r) {
        const float *from = q + ((a.t0 + r / s.group) * s.hq + r % s.group) * s.d;
        float *to = a.q + r * s.d_pad;
        for (int64_t c = 0; c < s.d_pad; c += L)
            vstore(to + c, vmul(vset(scale), c + L <= s.d ? vload(from + c) : vload_n(from + c, imax(0, s.d - c))));
        a.top[r] = -INFINITY;
        a.total[r] = 0;
    }
    zero_floats(a.sum, rows * s.dv_pad);
    int64_t lo, hi, unused;
    a.range(a.t0, &lo, &unused);
    a.range(a.t1 - 1, &unused, &hi);
    for (int64_t p0 = lo; p0 < hi; p0 += kAttentionSpan) {
        const int64_t n = imin(kAttentionSpan, hi - p0);
        const T *k = a.k + p0 * a.k_step, *v = a.v + p0 * a.v_step;
        if (rows >= kPackRows) {
            attention_score_rows<T>(a, rows, k, n);
            for (int64_t r = 0; r < rows; ++r) attention_softmax(a, r, p0, n);
            attention_mix_rows<T>(a, rows, v, n);
            continue;
        }
        attention_few_rows<T>(a, rows, k, v, p0, n);
    }
    for (int64_t r = 0; r < rows; ++r) {
        float *to = y + ((a.t0 + r / s.group) * s.hq + r % s.group) * s.dv;
        const float *sum = a.sum + r * s.dv_pad;
        const vf inverse = vset(a.total[r] == 0 ? 0.0f : 1.0f / a.total[r]);
        for (int64_t c = 0; c < s.dv; c += L) store_part(to + c, vmul(vload(sum + c), inverse), s.dv - c);
    }
}

template <class T>
EDGEC_NOINLINE void attention_run(const AttentionShape &s, AttentionTile<T> a, const Args &g, bool cached, float scale,
                                  int64_t t0, int64_t t1, float *scratch) {
    a.s = &s;
    a.q = scratch;
    a.score = a.q + s.rows * s.d_pad;
    a.sum = a.score + s.rows * kAttentionSpan;
    a.k_copy = a.sum + s.rows * s.dv_pad;
    a.v_panel = a.k_copy + kAttentionSpan * s.d_pad;
    a.top = a.v_panel + kAttentionSpan * s.dv_pad;
    a.total = a.top + s.rows;
    const T *k = (const T *)g.op[2].data, *v = (const T *)g.op[3].data;
    for (int64_t i = t0; i < t1; ++i) {
        const int64_t block = i % s.token_blocks, h = i / s.token_blocks % s.hkv;
        a.batch = i / s.token_blocks / s.hkv;
        a.head = h * s.group;
        a.t0 = block * s.token_block;
        a.t1 = imin(s.t, a.t0 + s.token_block);
        a.k_step = cached ? s.d : s.hkv * s.d;
        a.v_step = cached ? s.dv : s.hkv * s.dv;
        a.k = k + (cached ? h * s.s * s.d : a.batch * s.s * a.k_step + h * s.d);
        a.v = v + (cached ? h * s.s * s.dv : a.batch * s.s * a.v_step + h * s.dv);
        attention_tile<T>(a, (const float *)g.op[1].data + (a.batch * s.t * s.hq + a.head) * s.d,
                          (float *)g.op[0].data + (a.batch * s.t * s.hq + a.head) * s.dv, scale);
    }
}

void attention_cached(const Args &g, int64_t t0, int64_t t1, void *scratch) {
    const AttentionShape s = attention_shape(g, true);
    if (g.op[2].dtype == F16) {
        AttentionTile<f16_t> a = {};
        a.causal = true, a.offset = g.i[0], a.window = g.i[3], a.softcap = g.f[1];
        attention_run<f16_t>(s, a, g, true, g.f[0], t0, t1, (float *)scratch);
    } else {
        AttentionTile<float> a = {};
        a.causal = true, a.offset = g.i[0], a.window = g.i[3], a.softcap = g.f[1];
        attention_run<float>(s, a, g, true, g.f[0], t0, t1, (float *)scratch);
    }
}

void attention(const Args &g, int64_t t0, int64_t t1, void *scratch) {
    const AttentionShape s = attention_shape(g, false);
    AttentionTile<float> a = {};
    a.causal = g.i[2] != 0, a.offset = g.i[3], a.softcap = g.f[1];
    a.mask = g.op[4].data ? &g.op[4] : nullptr;
    attention_run<float>(s, a, g, false, g.f[0], t0, t1, (float *)scratch);
}
