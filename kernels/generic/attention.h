// Softmax attention with an online softmax: positions are taken in steps of kAttentionSpan, all query rows of a tile
// against each step, so keys and values are read once for every query head and token of the tile.

EDGEC_INLINE vf kload(const float *p) { return vload(p); }
EDGEC_INLINE vf kload_n(const float *p, int64_t n) { return vload_n(p, n); }
EDGEC_INLINE vf kload(const f16_t *p) { return vload_f16((const uint16_t *)p); }
EDGEC_INLINE vf kload_n(const f16_t *p, int64_t n) { return vload_f16_n((const uint16_t *)p, n); }

// Whether keys and values of an AttentionTile<T> may be codes: these are decoded to f32.
template <class T> constexpr bool kOfCodes = sizeof(T) == sizeof(float) && (reads_caches(I8) || reads_caches(U8));
// Whether codes are of 4 bits, said by their cache: known when a build has codes of one kind only.
EDGEC_INLINE bool kv_four(bool four) { return reads_caches(U8) && (four || !reads_caches(I8)); }

// Groups of codes in n rows (kv_row() in contract/shapes.h): what codes are multiplied with, and what is added.
struct KvUnits {
    float step[kAttentionSpan], first[kAttentionSpan];
};
EDGEC_INLINE void kv_units(const uint8_t *from, int64_t row, int64_t n, bool four, KvUnits *to) {
    uint16_t step[kAttentionSpan] = {}, first[kAttentionSpan] = {};
    for (int64_t i = 0; i < n; ++i, from += row) {
        memcpy(step + i, from, 2);
        if (four) memcpy(first + i, from + 2, 2);
    }
    for (int64_t i = 0; i < n; i += L) {
        vstore(to->step + i, vload_f16(step + i));
        if (four) vstore(to->first + i, vload_f16(first + i));
    }
}
EDGEC_INLINE vf kv_low(vi codes) { return vtof(viand(codes, viset(15))); }
EDGEC_INLINE vf kv_high(vi codes) { return vtof(vishr<4>(codes)); }

// One row of a group as f32: bytes of codes, or halves of bytes, first the low ones.
template <bool Four>
EDGEC_INLINE void kv_decode_row(const uint8_t *from, int64_t width, vf step, vf first, float *to) {
    const int64_t half = Four ? ceil_div(width, 2) : width;
    int64_t c = 0;
    for (; c + L <= (Four ? width - half : half); c += L) {
        if constexpr (Four) {
            const vi codes = vibytes(from + c);
            vstore(to + c, vfma(kv_low(codes), step, first));
            vstore(to + half + c, vfma(kv_high(codes), step, first));
        } else {
            vstore(to + c, vmul(vtof(visigned(from + c)), step));
        }
    }
    if (c >= half) return;
    uint8_t part[L] = {};
    constexpr int kHalf = L > 8 ? 8 : L;
    if (half - c == kHalf) memcpy(part, from + c, kHalf);  // the end of heads of 80: no call
    else memcpy(part, from + c, (size_t)(half - c));
    if constexpr (Four) {
        const vi codes = vibytes(part);
        store_part(to + c, vfma(kv_low(codes), step, first), half - c);
        if (width - half > c) store_part(to + half + c, vfma(kv_high(codes), step, first), width - half - c);
    } else {
        store_part(to + c, vmul(vtof(visigned(part)), step), half - c);
    }
}
// A whole group, or 32 codes of 8 bits.
template <bool Four> EDGEC_INLINE void kv_decode_group(const uint8_t *from, vf step, vf first, float *to) {
    constexpr int kBytes32 = Four ? 16 : 32;
#pragma GCC unroll 8
    for (int c = 0; c < kBytes32; c += L) {
        if constexpr (Four) {
            const vi codes = vibytes(from + c);
            vstore(to + c, vfma(kv_low(codes), step, first));
            vstore(to + kBytes32 + c, vfma(kv_high(codes), step, first));
        } else {
            vstore(to + c, vmul(vtof(visigned(from + c)), step));
        }
    }
}
// n rows as f32, zero up to `padded` columns. Scales of a group of all rows are widened together.
template <bool Four>
EDGEC_NOINLINE void kv_decode(const uint8_t *from, int64_t row, int64_t n, int64_t width, int64_t padded, float *to) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = width; c < padded; ++c) to[i * padded + c] = 0;
    const int64_t group = Four ? kKvGroup : width;
    for (int64_t c = 0; c < width; c += group, from += kKvFour + kKvGroup / 2) {
        KvUnits unit;
        kv_units(from, row, n, Four, &unit);
        const uint8_t *at = from + (Four ? kKvFour : kKvWide);
        for (int64_t i = 0; i < n; ++i, at += row) {
            const vf step = vset(unit.step[i]), first = vset(unit.first[i]);
            float *y = to + i * padded + c;
            int64_t done = 0;
            for (; done + kKvGroup <= imin(group, width - c); done += kKvGroup) kv_decode_group<Four>(at + done, step, first, y + done);
            if (done < imin(group, width - c)) kv_decode_row<Four>(at + done, width - c - done, step, first, y + done);
        }
    }
}
EDGEC_INLINE void attention_decode(const uint8_t *from, int64_t row, int64_t n, int64_t width, bool four, int64_t padded, float *to) {
    if (kv_four(four)) kv_decode<true>(from, row, n, width, padded, to);
    else kv_decode<false>(from, row, n, width, padded, to);
}

// What attention_scores() does, on codes and for R rows of q and of scores, q_step and kAttentionSpan apart: the products of
// a whole group, added to the scores where it is not the first one.
template <bool Four, int R>
EDGEC_INLINE void kv_group_scores(const float *q, int64_t q_step, int64_t width, const uint8_t *from, int64_t row, int64_t n,
                                  const KvUnits &unit, bool more, float *score) {
    constexpr int P = L / R;  // positions of a vector of sums
    const int64_t half = Four ? width / 2 : width;
    float sum[R], dots[R * kAttentionSpan] = {};
    for (int r = 0; r < R; ++r) {
        vf all = vset(0.0f);
        for (int64_t c = 0; c < width && Four; c += L) all = vadd(all, vload(q + r * q_step + c));
        sum[r] = vsum(all);
    }
    for (int64_t i = 0; i < n; i += P) {
        vf acc[L];
        const uint8_t *at[P];
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) acc[j] = vset(0.0f);
#pragma GCC unroll 16
        for (int j = 0; j < P; ++j) at[j] = from + imin(i + j, n - 1) * row;
        for (int64_t c = 0; c < half; c += L) {
            vf x[R], y[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) x[r] = vload(q + r * q_step + c), y[r] = Four ? vload(q + r * q_step + half + c) : x[r];
#pragma GCC unroll 16
            for (int j = 0; j < P; ++j) {
                const vi codes = Four ? vibytes(at[j] + c) : visigned(at[j] + c);
                const vf low = Four ? kv_low(codes) : vtof(codes), high = Four ? kv_high(codes) : low;
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) {
                    acc[r * P + j] = vfma(x[r], low, acc[r * P + j]);
                    if (Four) acc[r * P + j] = vfma(y[r], high, acc[r * P + j]);
                }
            }
        }
        float one[L];
        vstore(one, vsums(acc));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) memcpy(dots + r * kAttentionSpan + i, one + r * P, P * sizeof(float));
    }
    for (int r = 0; r < R; ++r)
        for (int64_t i = 0; i < n; i += L) {
            float *to = score + r * kAttentionSpan + i;
            vf all = vmul(vload(dots + r * kAttentionSpan + i), vload(unit.step + i));
            if (Four) all = vfma(vset(sum[r]), vload(unit.first + i), all);
            vstore(to, more ? vadd(vload(to), all) : all);
        }
}
template <bool Four>
EDGEC_NOINLINE void kv_scores(const float *q, int64_t rows, int64_t q_step, int64_t d, const uint8_t *k, int64_t row, int64_t n,
                              float *score) {
    const int64_t group = Four ? kKvGroup : d;
    for (int64_t c = 0; c < d; c += group, k += kKvGroup / 2) {
        KvUnits unit;
        kv_units(k, row, n, Four, &unit);
        k += Four ? kKvFour : kKvWide;
        int64_t r = 0;
        for (; r + 2 <= rows; r += 2)
            kv_group_scores<Four, 2>(q + r * q_step + c, q_step, group, k, row, n, unit, c > 0, score + r * kAttentionSpan);
        if (r < rows)
            kv_group_scores<Four, 1>(q + r * q_step + c, q_step, group, k, row, n, unit, c > 0, score + r * kAttentionSpan);
    }
}

// sum[r][0..C) += p[r] . C columns of codes, `first` of a group of 4 bits among them; rows of p are kAttentionSpan apart.
template <bool Four, int R, int C>
EDGEC_INLINE void kv_group_mix(const float *p, int64_t n, const uint8_t *from, int64_t row, const float *first, float *sum,
                               int64_t sum_step) {
    constexpr int kVectors = C / L, kHalf = Four ? kVectors / 2 : kVectors;
    // Two sums, so that one need not wait for the other, where registers allow.
    constexpr int kTurns = kVectors * R <= 4 ? 2 : 1;
    vf acc[kTurns][R][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
            acc[0][r][j] = vadd(vload(sum + r * sum_step + j * L), vset(first[r]));
            if (kTurns > 1) acc[kTurns - 1][r][j] = vset(0.0f);
        }
    const auto add = [&](vf (*to)[kVectors], int64_t i) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int j = 0; j < kHalf; ++j) {
            const vi codes = Four ? vibytes(from + i * row + j * L) : visigned(from + i * row + j * L);
            const vf low = Four ? kv_low(codes) : vtof(codes), high = Four ? kv_high(codes) : low;
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const vf weight = vset(p[r * kAttentionSpan + i]);
                to[r][j] = vfma(weight, low, to[r][j]);
                if (Four) to[r][j + kVectors - kHalf] = vfma(weight, high, to[r][j + kVectors - kHalf]);
            }
        }
    };
    int64_t i = 0;
    for (; i + kTurns <= n; i += kTurns)
#pragma GCC unroll 2
        for (int t = 0; t < kTurns; ++t) add(acc[t], i + t);
    if (i < n) add(acc[0], i);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j)
            vstore(sum + r * sum_step + j * L, kTurns > 1 ? vadd(acc[0][r][j], acc[kTurns - 1][r][j]) : acc[0][r][j]);
}
// The same for columns that have one scale.
template <bool Four, int R>
EDGEC_INLINE void kv_rows_mix(const float *p, int64_t n, const uint8_t *codes, int64_t row, int64_t width, const KvUnits &unit,
                              float *sum, int64_t sum_step) {
    float weight[R * kAttentionSpan], first[R] = {};
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
        vf all = vset(0.0f);
        for (int64_t i = 0; i < n; i += L) {
            const vf share = vload(p + r * kAttentionSpan + i);
            if (Four) all = vfma(share, vload(unit.first + i), all);
            vstore(weight + r * kAttentionSpan + i, vmul(share, vload(unit.step + i)));
        }
        if (Four) first[r] = vsum(all);
    }
    int64_t c = 0;
    for (; c + kKvGroup <= width; c += kKvGroup)
        kv_group_mix<Four, R, (int)kKvGroup>(weight, n, codes + c, row, first, sum + c, sum_step);
    if (!Four && c < width) kv_group_mix<false, R, 16>(weight, n, codes + c, row, first, sum + c, sum_step);
}
// What attention_mix() does, on codes and for all rows of p and of sums; by twos where both see something, for shares of
// rows that do not are 0, which times values that are not finite is no number.
template <bool Four>
EDGEC_NOINLINE void kv_mix(const float *p, const bool *seen, int64_t rows, int64_t n, const uint8_t *v, int64_t row, int64_t dv,
                           float *sum, int64_t sum_step) {
    const int64_t group = Four ? kKvGroup : dv;
    for (int64_t c = 0; c < dv; c += group, v += kKvGroup / 2) {
        KvUnits unit;
        kv_units(v, row, n, Four, &unit);
        v += Four ? kKvFour : kKvWide;
        for (int64_t r = 0; r < rows; ++r) {
            const float *shares = p + r * kAttentionSpan;
            float *to = sum + r * sum_step + c;
            if (r + 1 < rows && seen[r] && seen[r + 1]) kv_rows_mix<Four, 2>(shares, n, v, row, group, unit, to, sum_step), ++r;
            else if (seen[r]) kv_rows_mix<Four, 1>(shares, n, v, row, group, unit, to, sum_step);
        }
    }
}

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
    const uint8_t *k_codes, *v_codes;  // of caches of codes, of 4 bits where `four`; null of others
    int64_t k_row, v_row;
    bool four;
    float *wide;  // scratch: kKvDecoded rows of these, keys or values, as f32

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
EDGEC_NOINLINE void attention_score_rows(const AttentionTile<T> &a, int64_t rows, const T *k, const uint8_t *codes, int64_t n) {
    const int64_t d = a.s->d, pad = a.s->d_pad, panel = d * 16, panels = ceil_div(n, 16);
    const Rows shape = {pad, 1, d, 0};
    int64_t start = 0;  // the position that k begins with
    for (int64_t i = 0; i < panels * 16; i += L) {
        if (kOfCodes<T> && codes && i % kKvDecoded == 0) {
            start = i;
            attention_decode(codes + i * a.k_row, a.k_row, imin(kKvDecoded, n - i), d, a.four, pad, a.wide);
        }
        for (int64_t c = 0; c < d; c += L) {
            vf t[L];
            for (int j = 0; j < L; ++j) {  // positions beyond n repeat the last one; their scores are not looked at
                const T *from = k + (imin(i + j, n - 1) - start) * a.k_step + c;
                t[j] = c + L <= d ? kload(from) : kload_n(from, d - c);
            }
            vtranspose(t);
            float *to = a.k_copy + i / 16 * panel + c * 16 + i % 16;
            for (int j = 0; j < L && c + j < d; ++j) vstore(to + j * 16, t[j]);
        }
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
EDGEC_NOINLINE void attention_mix_rows(const AttentionTile<T> &a, int64_t rows, const T *v, const uint8_t *codes, int64_t n) {
    const int64_t dv = a.s->dv, pad = a.s->dv_pad, panel = n * 16;
    int64_t start = 0;  // the position that v begins with
    for (int64_t i = 0; i < n; ++i) {
        if (kOfCodes<T> && codes && i % kKvDecoded == 0) {
            start = i;
            attention_decode(codes + i * a.v_row, a.v_row, imin(kKvDecoded, n - i), dv, a.four, pad, a.wide);
        }
        for (int64_t c = 0; c < pad; c += L) {
            const T *from = v + (i - start) * a.v_step + c;
            vstore(a.v_panel + c / 16 * panel + i * 16 + c % 16,
                   c + L <= dv ? kload(from) : c < dv ? kload_n(from, dv - c) : vset(0.0f));
        }
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

// From this many rows on packing keys and values pays; of codes, of 4 and of 8 bits, which a step for few rows need not
// decode to memory.
constexpr int64_t kPackRows = 6, kPackFour = 8, kPackEight = 13;

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

// A step for few rows on codes: as they are, by twos, for which codes are decoded once. Where groups are not whole some
// positions are decoded for all rows, few enough to stay in the first-level cache.
template <bool Four>
EDGEC_NOINLINE void attention_few_codes(const AttentionRows &a, int64_t rows, const uint8_t *k, const uint8_t *v, int64_t p0,
                                        int64_t n) {
    const AttentionShape &s = *a.s;
    constexpr int64_t kWhole = Four ? kKvGroup : 16;
    const bool plain = s.d % kWhole == 0 && s.dv % kWhole == 0;
    bool seen[Four ? kPackFour : kPackEight];
    if (plain) kv_scores<Four>(a.q, rows, s.d_pad, s.d, k, a.k_row, n, a.score);
    for (int64_t p = 0; p < n && !plain; p += kKvDecoded) {
        kv_decode<Four>(k + p * a.k_row, a.k_row, imin(kKvDecoded, n - p), s.d, s.d_pad, a.wide);
        for (int64_t r = 0; r < rows; ++r)
            attention_scores(a.q + r * s.d_pad, s.d_pad, a.wide, s.d_pad, imin(kKvDecoded, n - p), a.score + r * kAttentionSpan + p);
    }
    for (int64_t r = 0; r < rows; ++r) seen[r] = attention_softmax(a, r, p0, n);
    if (plain) return kv_mix<Four>(a.score, seen, rows, n, v, a.v_row, s.dv, a.sum, s.dv_pad);
    for (int64_t p = 0; p < n; p += kKvDecoded) {
        kv_decode<Four>(v + p * a.v_row, a.v_row, imin(kKvDecoded, n - p), s.dv, s.dv_pad, a.wide);
        for (int64_t r = 0; r < rows; ++r)
            if (seen[r])
                attention_mix<float>(a.score + r * kAttentionSpan + p, imin(kKvDecoded, n - p), a.wide, s.dv_pad, s.dv, a.sum + r * s.dv_pad);
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
        const uint8_t *k_codes = nullptr, *v_codes = nullptr;
        const T *k = a.k, *v = a.v;
        if (kOfCodes<T> && a.k_codes) k_codes = a.k_codes + p0 * a.k_row, v_codes = a.v_codes + p0 * a.v_row;
        else k += p0 * a.k_step, v += p0 * a.v_step;
        if (rows >= (!k_codes ? kPackRows : a.four ? kPackFour : kPackEight)) {
            attention_score_rows<T>(a, rows, k, k_codes, n);
            for (int64_t r = 0; r < rows; ++r) attention_softmax(a, r, p0, n);
            attention_mix_rows<T>(a, rows, v, v_codes, n);
        } else if (kOfCodes<T> && k_codes) {
            if (kv_four(a.four)) attention_few_codes<true>(a, rows, k_codes, v_codes, p0, n);
            else attention_few_codes<false>(a, rows, k_codes, v_codes, p0, n);
        } else {
            attention_few_rows<T>(a, rows, k, v, p0, n);
        }
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
    a.wide = a.total + s.rows;
    const T *k = (const T *)g.op[2].data, *v = (const T *)g.op[3].data;
    for (int64_t i = t0; i < t1; ++i) {
        const int64_t block = i % s.token_blocks, h = i / s.token_blocks % s.hkv;
        a.batch = i / s.token_blocks / s.hkv;
        a.head = h * s.group;
        a.t0 = block * s.token_block;
        a.t1 = imin(s.t, a.t0 + s.token_block);
        if (kOfCodes<T> && s.codes) {
            a.four = g.op[2].dtype == U8;
            a.k_row = g.op[2].dim[2], a.v_row = g.op[3].dim[2];
            a.k_codes = (const uint8_t *)g.op[2].data + h * s.s * a.k_row;
            a.v_codes = (const uint8_t *)g.op[3].data + h * s.s * a.v_row;
            a.k = a.v = (const T *)(const void *)a.wide;
            a.k_step = s.d_pad, a.v_step = s.dv_pad;
        } else {
            a.k_step = cached ? s.d : s.hkv * s.d;
            a.v_step = cached ? s.dv : s.hkv * s.dv;
            a.k = k + (cached ? h * s.s * s.d : a.batch * s.s * a.k_step + h * s.d);
            a.v = v + (cached ? h * s.s * s.dv : a.batch * s.s * a.v_step + h * s.dv);
        }
        attention_tile<T>(a, (const float *)g.op[1].data + (a.batch * s.t * s.hq + a.head) * s.d,
                          (float *)g.op[0].data + (a.batch * s.t * s.hq + a.head) * s.dv, scale);
    }
}

void attention_cached(const Args &g, int64_t t0, int64_t t1, void *scratch) {
    const AttentionShape s = attention_shape(g, true);
    if (reads_caches(F16) && g.op[2].dtype == F16) {
        AttentionTile<f16_t> a = {};
        a.causal = true, a.offset = g.i[0], a.window = g.i[3], a.softcap = g.f[1];
        attention_run<f16_t>(s, a, g, true, g.f[0], t0, t1, (float *)scratch);
    } else if (reads_caches(F32) || kOfCodes<float>) {
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
