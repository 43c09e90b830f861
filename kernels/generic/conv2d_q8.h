// Convolution of 8-bit integers as a matrix product. Windows are gathered, one row each; panels of weights are brought into
// the form of a product once per block of rows. A names the product:
// int16_t: pairs of 16-bit integers (vocabulary: vdot16 and what stands beside it), always exact.
// uint8_t, int8_t: fours of bytes (vdot8), faster where an instruction set has them, but the sums of two products are kept
// in 16 bits. What two neighbours in a row must not exceed for that is so much, whatever their weights are, that few do:
// as unsigned bytes of a range that begins near its zero point, or else as signed ones, 128 less, with weights that are 128
// more. The fours where some do (doubts) are found first and what they lose is added; where they are many, pairs it is.

// Eight columns or fewer are half a panel, where a tile is a panel wide and its vectors are no wider than that.
constexpr bool kHalfTile = kTilePanels == 1 && kTileRows > 4;

// One rounding in the product and one to an integer, on every instruction set; a NaN is the upper bound.
EDGEC_INLINE void q8_store(uint8_t *p, const vf *four, const Q8Range &r) {
    vstore_q8(p, four, vset(r.hi), r.zero, r.lo, r.flip);
}

struct Q8Input {
    const uint8_t *x, *end;
    uint8_t flip, pad[16];
};

EDGEC_INLINE void q8_take16(int16_t *to, const uint8_t *from, uint8_t flip) { vwiden16(to, from, flip); }
EDGEC_INLINE void q8_take16(uint8_t *to, const uint8_t *from, uint8_t flip) {
    uint64_t v[2];
    memcpy(v, from, 16);
    for (uint64_t &x : v) x ^= flip * 0x0101010101010101u;
    memcpy(to, v, 16);
}
// to[0..n) = from[0..n); up to 15 more are written, and read where they lie before the end.
template <class A> EDGEC_INLINE A *q8_take(A *to, const uint8_t *from, int64_t n, const Q8Input &in) {
    for (int64_t i = 0; i < n; i += 16) {
        if (in.end - from >= i + 16) q8_take16(to + i, from + i, in.flip);
        else
            for (int64_t j = i; j < imin(n, i + 16); ++j) to[j] = (A)(from[j] ^ in.flip);
    }
    return to + n;
}
EDGEC_INLINE int16_t *q8_pad(int16_t *to, int64_t n, const Q8Input &in) {
    for (int64_t i = 0; i < n; i += 16) vwiden16(to + i, in.pad, 0);
    return to + n;
}
EDGEC_INLINE uint8_t *q8_pad(uint8_t *to, int64_t n, const Q8Input &in) {
    for (int64_t i = 0; i < n; i += 16) memcpy(to + i, in.pad, 16);
    return to + n;
}

// One row of `lda` for each pixel [p0, p1): its k = kh kw ci/groups values, from the group's first channel on, and zeros.
template <class A>
EDGEC_NOINLINE void conv_q8_rows(const ConvShape &s, const Q8Input &input, int64_t channel, int64_t p0, int64_t p1,
                                 A *to, int64_t lda) {
    const Window g = s.g;  // of its own, as the input: nothing that is stored can change them
    const Q8Input in = input;
    if (s.pointwise && s.groups == 1 && s.k == lda) {
        q8_take(to, in.x + p0 * s.k, (p1 - p0) * s.k, in);
        return;
    }
    const int64_t ci = g.ci / s.groups, row = g.kw * ci;
    // Places outside x may be anywhere: they wrap around, and become addresses only inside.
    const uint64_t line = (uint64_t)g.dh * (uint64_t)g.w * (uint64_t)g.ci, tap = (uint64_t)g.dw * (uint64_t)g.ci;
    const bool runs = s.groups == 1 && g.dw == 1;
    int64_t ox = p0 % g.ow, oy = p0 / g.ow % g.oh, b = p0 / g.ow / g.oh;
    for (int64_t p = p0; p < p1; ++p, to += lda) {
        A *t = to;
        const int64_t ix = ox * g.sw - g.pl, iy = oy * g.sh - g.pt;
        uint64_t at = ((uint64_t)(b * g.h + iy) * (uint64_t)g.w + (uint64_t)ix) * (uint64_t)g.ci + (uint64_t)channel;
        const bool inside = ix >= 0 && ix + g.kw <= g.w && iy >= 0 && iy + (g.kh - 1) * g.dh < g.h;
        if (runs && inside && in.end - in.x >= (int64_t)(at + (uint64_t)(g.kh - 1) * line) + row + 15) {
            const uint8_t *from = in.x + at;
            for (int64_t ky = 0; ky < g.kh; ++ky, from += line, t += row)
                for (int64_t i = 0; i < row; i += 16) q8_take16(t + i, from + i, in.flip);
        } else {
            for (int64_t ky = 0; ky < g.kh; ++ky, at += line)
                for (int64_t kx = 0; kx < g.kw; ++kx) {
                    const int64_t y = iy + ky * g.dh, x = ix + kx * g.dw;
                    if (y >= 0 && y < g.h && x >= 0 && x < g.w) t = q8_take(t, in.x + (at + (uint64_t)kx * tap), ci, in);
                    else t = q8_pad(t, ci, in);
                }
        }
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i)
            if (t < to + lda) *t++ = 0;
        if (++ox == g.ow) {
            ox = 0;
            if (++oy == g.oh) oy = 0, ++b;
        }
    }
}

// acc += one step of R rows times NV vectors of weights, which lie in panels of sixteen columns.
template <int R, int NV>
EDGEC_INLINE void q8_step(vi (&acc)[R][NV], const int16_t *const *a, int64_t lda, const vi *w, int64_t pair, vi) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const vi x = vpset(a[r / 3] + (r % 3) * lda + 2 * pair);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) vdot16(&acc[r][j], x, w[j]);
    }
}
// Weights are the unsigned bytes where the rows are signed.
EDGEC_INLINE void q8_dot(vi *sum, vi x, vi w, vi ones, uint8_t) { vdot8(sum, x, w, ones); }
EDGEC_INLINE void q8_dot(vi *sum, vi x, vi w, vi ones, int8_t) { vdot8(sum, w, x, ones); }
EDGEC_INLINE vi q8_lost(vi x, vi w, uint8_t) { return vdot8_lost(x, w); }
EDGEC_INLINE vi q8_lost(vi x, vi w, int8_t) { return vdot8_lost(w, x); }
template <class A> EDGEC_INLINE vi q8_four(const A *a) {
    int32_t bytes;
    memcpy(&bytes, a, 4);
    return viset(bytes);
}
template <int R, int NV, class A>
EDGEC_INLINE void q8_step(vi (&acc)[R][NV], const A *const *a, int64_t lda, const vi *w, int64_t four, vi ones) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const vi x = q8_four(a[r / 3] + (r % 3) * lda + 4 * four);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) q8_dot(&acc[r][j], x, w[j], ones, A());
    }
}

template <class A> struct Q8Tile {
    const A *a;
    int64_t lda;
    const int32_t *b;
    int64_t panel, steps;  // int32 from one panel to the next
    const int32_t *bias;   // NV vectors of both; of bytes, a row's bias is `ldb` behind the last one's
    const float *scale;
    uint8_t *y;
    int64_t ldy, ldb;
    const int32_t *sums;   // of signed bytes: one number for each row
};

// y[0..R)[0..NV L) = the results of a b + bias.
template <int R, int NV, class A> EDGEC_NOINLINE void q8_tile(const Q8Tile<A> &t, const Q8Range &range) {
    vi acc[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
            acc[r][j] = viload(t.bias + (sizeof(A) == 1 ? r * t.ldb : 0) + j * L);
            if (A(-1) < 0 && sizeof(A) == 1) acc[r][j] = viadd(acc[r][j], viset(t.sums[r]));
        }
    const A *q[(R + 2) / 3];
#pragma GCC unroll 8
    for (int i = 0; i < (R + 2) / 3; ++i) q[i] = t.a + i * 3 * t.lda;
    const int32_t *b = t.b;
    const vi ones = vpair(viset(1), viset(1));
    constexpr int kUnroll = R * NV > 8 ? 4 : 2;
    int64_t left = t.steps;
    for (; left > 0; left -= kUnroll) {
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u, b += 16) {
            vi w[NV];
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) w[j] = viload(b + (j / kPanelVecs) * t.panel + (j % kPanelVecs) * L);
            q8_step<R, NV>(acc, q, t.lda, w, u, ones);
            if (u + 1 < kUnroll && left == u + 1) goto done;
        }
#pragma GCC unroll 8
        for (int s = 0; s < (R + 2) / 3; ++s) q[s] += kUnroll * 4 / (int)sizeof(A);
    }
done:
    constexpr int kFours = (R * NV + 3) / 4;
    alignas(64) uint8_t y[kFours * 4 * L];
#pragma GCC unroll 16
    for (int f = 0; f < kFours; ++f) {
        vf v[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const int at = (4 * f + k) % (R * NV);
            v[k] = vmul(vtof(acc[at / NV][at % NV]), vload(t.scale + at % NV * L));
        }
        q8_store(y + f * 4 * L, v, range);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) memcpy(t.y + r * t.ldy, y + r * NV * L, NV * L);
}

template <class A> struct Q8Product {
    const A *a;
    int64_t lda, m, n, steps;  // n: columns that exist
    const int32_t *bias;
    const float *scale;
    uint8_t *y;
    int64_t ldy;
    Q8Range range;
    // Of bytes: a number for each row; row r's doubts are at[first[r]] up to at[first[r + 1]], `first` null: there are none.
    const int32_t *sums, *first, *at;
};

// Finds the doubts of g's rows, which lie side by side. False: they are too many.
template <class A> EDGEC_NOINLINE bool q8_find_doubts(Q8Product<A> *g, int32_t *words) {
    constexpr bool kSigned = A(-1) < 0;
    int32_t *const sums = words, *const first = sums + g->m, *const at = first + g->m + 1;
    const int64_t most = q8_doubts(g->m, g->steps), all = g->m * g->steps;
    int64_t n = 0, row = -1;
    for (int64_t i = 0; i < all; i += 8)
        for (uint32_t bits = vdot8_doubts(viload_upto(g->a + 4 * i, all - i), kSigned); bits;) {
            const int place = __builtin_ctz(bits) / 4;
            bits &= ~(15u << 4 * place);
            if (n == most) return false;
            const int64_t r = (i + place) / g->steps;
            while (row < r) first[++row] = (int32_t)n;
            at[n++] = (int32_t)(i + place - r * g->steps);
        }
    while (n && row < g->m) first[++row] = (int32_t)n;
    for (int64_t r = 0; r < g->m && kSigned; ++r) sums[r] = -128 * vsum_fours(g->a + r * g->lda, g->steps);
    g->sums = sums, g->first = n ? first : nullptr, g->at = at;
    return true;
}

// The biases of those of rows [m, m + rows) that have doubts, with what vdot8() will lose there.
template <int NV, class A>
EDGEC_NOINLINE void q8_care(const Q8Product<A> &g, const int32_t *b, const int32_t *bias, int64_t m, int64_t rows,
                            int32_t *to) {
    for (int64_t r = m; r < m + rows; ++r, to += NV * L) {
        if (g.first[r] == g.first[r + 1]) continue;
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
            vi sum = viload(bias + j * L);
            for (int32_t i = g.first[r]; i < g.first[r + 1]; ++i) {
                const int64_t four = g.at[i];
                const int32_t *w = b + (j / kPanelVecs) * g.steps * 16 + four * 16 + (j % kPanelVecs) * L;
                sum = viadd(sum, q8_lost(q8_four(g.a + r * g.lda + 4 * four), viload(w), A()));
            }
            vistore(to + j * L, sum);
        }
    }
}

// bias + 128 times the sums of the columns of weights, which are 128 more here.
template <int NV>
EDGEC_NOINLINE void q8_turned_bias(const int32_t *b, int64_t steps, int64_t panel, const int32_t *bias, int32_t *to) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
        const int32_t *w = b + (j / kPanelVecs) * panel + (j % kPanelVecs) * L;
        vi sum = viset((int32_t)(-512 * steps));
        for (int64_t i = 0; i < steps; ++i) vdot8(&sum, viload(w + 16 * i), viset(0x01010101), vpair(viset(1), viset(1)));
        vistore(to + j * L, viadd(viload(bias + j * L), vishl<7>(sum)));
    }
}

// All rows of NV vectors of columns, whose widened weights `b` begin at column n.
template <int NV, class A> EDGEC_NOINLINE void q8_panels(const Q8Product<A> &g, const int32_t *b, int64_t n) {
    constexpr int kFew = kTileRows > 4 ? 4 : 1, kWidth = NV * L;
    alignas(64) int32_t bias[kWidth];
    alignas(64) float scale[kWidth];
    alignas(64) uint8_t part[kTileRows * kWidth];
    alignas(64) int32_t careful[sizeof(A) == 1 ? kTileRows * kWidth : 1];
    const int64_t cols = imin(kWidth, g.n - n);
    const bool whole = cols == kWidth;
    Q8Tile<A> t = {g.a, g.lda, b, g.steps * 16, g.steps, g.bias + n, g.scale + n, g.y + n, g.ldy, 0, g.sums};
    if (!whole) {
        memset(bias, 0, sizeof bias);
        memset(scale, 0, sizeof scale);
        memcpy(bias, t.bias, (size_t)cols * sizeof(int32_t));
        memcpy(scale, t.scale, (size_t)cols * sizeof(float));
        t.bias = bias, t.scale = scale, t.y = part, t.ldy = kWidth;
    }
    if constexpr (sizeof(A) == 1 && A(-1) < 0) {
        q8_turned_bias<NV>(b, g.steps, t.panel, t.bias, bias);
        t.bias = bias;
    }
    const int32_t *const columns = t.bias;
    uint8_t *const y = t.y;
    bool doubts = false;
    for (int i = 0; i < kTileRows && sizeof(A) == 1 && g.first; ++i) memcpy(careful + i * kWidth, columns, kWidth * 4);
    for (int64_t at = 0, r; at < g.m; at += r) {
        // The lowest tile for what is left; it overlaps others where it is higher.
        const int64_t left = g.m - at;
        r = g.m >= kTileRows && left > kFew ? kTileRows : g.m >= kFew && left > 1 ? kFew : 1;
        const int64_t m = imin(at, g.m - r);
        t.a = g.a + m * g.lda;
        if (whole) t.y = y + m * g.ldy;
        if constexpr (sizeof(A) == 1) {
            doubts = g.first && g.first[m] < g.first[m + r];
            if (doubts) q8_care<NV>(g, b, columns, m, r, careful);
            t.bias = doubts ? careful : columns, t.ldb = doubts ? kWidth : 0, t.sums = g.sums ? g.sums + m : nullptr;
        }
        if (r == kTileRows) q8_tile<kTileRows, NV>(t, g.range);
        else if (kFew > 1 && r == kFew) q8_tile<kFew, NV>(t, g.range);
        else q8_tile<1, NV>(t, g.range);
        for (int64_t i = 0; i < r && doubts; ++i)
            if (g.first[m + i] < g.first[m + i + 1]) memcpy(careful + i * kWidth, columns, kWidth * 4);
        for (int64_t i = 0; i < r && !whole; ++i) memcpy(g.y + (m + i) * g.ldy + n, part + i * kWidth, (size_t)cols);
    }
}

// Panels [p, end) of w, in the form that A wants.
template <class A>
EDGEC_NOINLINE void q8_columns(const Q8Product<A> &g, const int8_t *w, int64_t pairs, int64_t p, int64_t end, int32_t *wide) {
    const int64_t panel = pairs * 2 * kQ8Panel;
    alignas(64) static const int8_t zero[2 * kQ8Panel] = {};
    while (p < end) {
        const int64_t n = imin(kTilePanels, end - p), left = g.n - p * kQ8Panel;
        const int8_t *from = w + p * panel;
        if constexpr (sizeof(A) == 2) {
            for (int64_t i = 0; i < n * panel; i += 2 * L) vistore(wide + i / 2, vpairs(from + i));
        } else {
            uint8_t *to = (uint8_t *)wide;
            for (int64_t k = 0; k < n; ++k, from += panel)
                for (int64_t i = 0; i < pairs; i += 2, to += 4 * kQ8Panel) {
                    const int8_t *pair = from + i * 2 * kQ8Panel;
                    vfours16(to, pair, i + 1 < pairs ? pair + 2 * kQ8Panel : zero, A(-1) < 0 ? 128 : 0);
                }
        }
        if (kHalfTile && left <= kQ8Panel / 2) q8_panels<kHalfTile ? kPanelVecs / 2 : 1>(g, wide, p * kQ8Panel);
        else if (n == kTilePanels) q8_panels<kTileVecs>(g, wide, p * kQ8Panel);
        else q8_panels<kPanelVecs>(g, wide, p * kQ8Panel);
        p += n;
    }
}

// What all of a call's blocks have in common.
struct ConvQ8 {
    ConvQ8Shape q;
    Q8Input in;
    void *rows;
    int32_t *doubts, *wide;
    bool narrow;
};

template <class A>
EDGEC_INLINE Q8Product<A> q8_product(const Args &a, const ConvQ8 &c, int64_t group, int64_t p0, int64_t p1) {
    const ConvShape &s = c.q.c;
    const int64_t n = group * s.n, steps = ceil_div(c.q.pairs, sizeof(A) == 2 ? 1 : 2);
    return {(const A *)c.rows, steps * 4 / (int64_t)sizeof(A), p1 - p0, s.n, steps, (const int32_t *)a.op[3].data + n,
            (const float *)a.op[4].data + n, (uint8_t *)a.op[0].data + p0 * s.g.co + n, s.g.co,
            q8_range(a.op[0], a.i + 10), nullptr, nullptr, nullptr};
}

// Panels [p, end) of pixels [p0, p1) of a group as products of bytes. False, and nothing done: pairs are faster.
template <class A>
EDGEC_NOINLINE bool q8_as_bytes(const Args &a, const ConvQ8 &c, int64_t group, int64_t p0, int64_t p1, const int8_t *w,
                                int64_t p, int64_t end) {
    constexpr uint8_t kTurn = A(-1) < 0 ? 128 : 0;
    const ConvShape &s = c.q.c;
    Q8Product<A> g = q8_product<A>(a, c, group, p0, p1);
    Q8Input in = c.in;
    in.flip ^= kTurn;
    for (uint8_t &x : in.pad) x ^= kTurn;
    // Whole rows of fours are read where they lie.
    if (s.pointwise && s.groups == 1 && s.k % 4 == 0 && !in.flip) g.a = (const A *)in.x + p0 * s.k;
    else conv_q8_rows(s, in, group * (s.g.ci / s.groups), p0, p1, (uint8_t *)c.rows, g.lda);
    if constexpr (kDoubts) {
        if ((kTurn || !c.narrow) && !q8_find_doubts(&g, c.doubts)) return false;
    }
    q8_columns(g, w, c.q.pairs, p, end, c.wide);
    return true;
}

EDGEC_NOINLINE void q8_as_pairs(const Args &a, const ConvQ8 &c, int64_t group, int64_t p0, int64_t p1, const int8_t *w,
                                int64_t p, int64_t end) {
    const ConvShape &s = c.q.c;
    conv_q8_rows(s, c.in, group * (s.g.ci / s.groups), p0, p1, (int16_t *)c.rows, 2 * c.q.pairs);
    q8_columns(q8_product<int16_t>(a, c, group, p0, p1), w, c.q.pairs, p, end, c.wide);
}

void conv2d_q8(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const ConvQ8Shape q = conv_q8_shape(a);
    const ConvShape &s = q.c;
    const View &x = a.op[1];
    uint8_t *const doubts = (uint8_t *)scratch + q.row_bytes;
    ConvQ8 c = {q, {(const uint8_t *)x.data, (const uint8_t *)x.data + count_of(x), q8_flip(x.dtype), {}}, scratch,
                (int32_t *)doubts, (int32_t *)(doubts + q.doubt_bytes), a.i[13] != 0};
    memset(c.in.pad, (int)a.i[9], sizeof c.in.pad);
    while (t0 < t1) {
        const int64_t first = t0 % s.panel_blocks, rest = t0 / s.panel_blocks, group = rest % s.groups;
        const int64_t blocks = imin(s.panel_blocks - first, t1 - t0);
        const int64_t p0 = rest / s.groups * s.pixel_block, p1 = imin(s.pixels, p0 + s.pixel_block);
        const int8_t *w = (const int8_t *)a.op[2].data + group * s.panels * q.pairs * 2 * kQ8Panel;
        const int64_t p = first * s.panel_block, end = imin(s.panels, (first + blocks) * s.panel_block);
        bool done = false;
        if constexpr (kDotBytes && !kDoubts) {
            q8_as_bytes<uint8_t>(a, c, group, p0, p1, w, p, end);
            done = true;
        } else if constexpr (kDotBytes) {
            // Values lie around the zero point: near an end of the range those of rectified activations. What signed bytes
            // take for each row must be little beside its product.
            if (a.i[9] < 64 || c.narrow) done = q8_as_bytes<uint8_t>(a, c, group, p0, p1, w, p, end);
            else if (s.k > 28) done = q8_as_bytes<int8_t>(a, c, group, p0, p1, w, p, end);
        }
        if constexpr (!kDotBytes || kDoubts) {
            if (!done) q8_as_pairs(a, c, group, p0, p1, w, p, end);
        }
        t0 += blocks;
    }
}
