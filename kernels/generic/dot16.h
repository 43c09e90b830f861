// Many rows of activations times weights of few bits, in 16-bit integers: for instruction sets that multiply and add
// pairs of them about twice as fast as floats (vocabulary: vdot16 and what stands beside it).
//
// A group of one row of weights, and a group of one row of activations, each become integers of at most kDotLimit and a
// float scale. Their products are added up in 32 bits within the group: 128 columns of 4095 * 4095 are 2146435200, just
// below 2^31, and so is every part of that sum. One conversion and one fma per group add it to the float result.
// Columns k and k + 16 of a chunk are a pair, and a lane holds a pair: neither side has to be shuffled into place.
//
// What is not finite makes its scale NaN: of activations all outputs of that row, of weights that output of all rows.
constexpr int kDotLimit = 4095, kDotPairs = 16;  // pairs of a chunk
constexpr int64_t kDotWidth = 2 * L;             // outputs that are summed up together

// Pairs of group g that are not all beyond k.
EDGEC_INLINE int64_t dot_pairs(const BitsShape &s, int64_t g) {
    const int64_t chunks = s.group_chunks(g), last = imin(s.group, s.k - g * s.group) - 32 * (chunks - 1);
    return kDotPairs * (chunks - 1) + imin(kDotPairs, last);
}

// x[m][k] -> pairs [group][padded()][16 chunks] and behind them the scales [group][padded()]; row m is zero.
// Values are at least 2^-127 apart, so that the factor to them is finite: smaller activations lose bits.
EDGEC_NOINLINE void dot_prepare(const BitsShape &s, const float *x, uint8_t *tables) {
    const int64_t rows = s.padded();
    int32_t *to = (int32_t *)tables;
    float *scale = (float *)(to + rows * s.chunks() * kDotPairs);
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g), columns = imin(s.group, s.k - g * s.group);
        for (int64_t m = 0; m < s.m; ++m) {
            const float *from = x + m * s.k + g * s.group;
            alignas(64) float whole[kBitsMostGroup];
            if (columns < 32 * chunks) {
                memset(whole, 0, sizeof whole);
                memcpy(whole, from, (size_t)columns * sizeof(float));
                from = whole;
            }
            vf most = vset(kDotLimit * 0x1p-127f), bad = vset(0);
            for (int64_t k = 0; k < 32 * chunks; k += L) {
                const vf v = vload(from + k);
                most = vmax(vabs(v), most);
                bad = vfma(v, vset(0), bad);
            }
            const float limit = vhmax(most);
            const vf inverse = vset(kDotLimit / limit);
            scale[m] = limit / kDotLimit + vsum(bad);
            int32_t *pair = to + m * chunks * kDotPairs;
            for (int64_t c = 0; c < chunks; ++c, from += 32)
                for (int64_t k = 0; k < kDotPairs; k += L, pair += L)
                    vistore(pair, vpair(vtoi(vmul(vload(from + k), inverse)),
                                        vtoi(vmul(vload(from + 16 + k), inverse))));
        }
        if (s.m < rows) {
            memset(to + s.m * chunks * kDotPairs, 0, (size_t)(chunks * kDotPairs) * sizeof(int32_t));
            scale[s.m] = 0;
        }
        to += rows * chunks * kDotPairs;
        scale += rows;
    }
}

// The levels of a tile's part of a group as pairs [64 / kDotWidth][16 chunks][kDotWidth], and its rows' scales [64].
// Levels are added up in eighths and rounded once: no plane's rounding counts, and 8 * 4095 still fits into 16 bits
// (sums may wrap on the way). Uniform codes whose levels are fewer than 4095 steps take a whole number of steps of the
// weights for theirs, which loses nothing where the zero point is whole.
EDGEC_NOINLINE void dot_levels(const BitsShape &s, const uint8_t *codes, int64_t chunks, int32_t *to, float *scale) {
    const uint16_t *h = (const uint16_t *)(codes + s.code_bytes(chunks));
    vi mask[8];
#pragma GCC unroll 8
    for (int b = 0; b < 8; ++b) mask[b] = viset(1 << b | 1 << (16 + b)), vipin(&mask[b]);
    for (int64_t row = 0; row < kBitsRows; row += L) {
        const int64_t i = row % 16;
        const int v = (int)(row / 16);
        vf base = bits_centre(s, h, row), most = vabs(base);
        vi step[kBitsMost];
        for (int64_t j = 0; j < s.bits; ++j) {
            const vf one = bits_scale(s, h, row, j);
            base = vsub(base, one);
            most = vadd(most, vabs(one));
        }
        // Half an eighth for each of nine roundings is left below 8 * 4095 + 4.
        vf factor = vdiv(vset(8.0f * kDotLimit - 2), vmax(most, vset(0x1p-100f)));
        if (s.uniform) {
            const vf unit = vload_f16(h + row), units = vfloor(vmul(vmul(unit, factor), vset(0.125f)));
            factor = vsel(vlt(vset(0), units), vdiv(vmul(units, vset(8)), unit), factor);
        }
        vstore(scale + row, vfma(most, vset(0), vdiv(vset(8), factor)));
        for (int64_t j = 0; j < s.bits; ++j) {
            const vi one = vtoi(vmul(bits_scale(s, h, row, j), vadd(factor, factor)));
            step[j] = vpair(one, one);
        }
        const vi whole = vtoi(vmul(base, factor)), start = vpair(whole, whole);
        int32_t *column = to + row / kDotWidth * chunks * kDotPairs * kDotWidth + row % kDotWidth;
        for (int64_t c = 0; c < 4 * chunks; c += c % 4 ? 3 : 1) {  // byte columns 0 and 1 of each chunk, with 2 and 3
            vi w[8] = {start, start, start, start, start, start, start, start};
            const uint8_t *p = codes + c * kBitsRows + 4 * i;
            for (int64_t j = 0; j < s.bits; ++j, p += chunks * 4 * kBitsRows) {
                const vi bits = vpair_bytes(p, p + 2 * kBitsRows, v);
#pragma GCC unroll 8
                for (int b = 0; b < 8; ++b) w[b] = vadd_where(w[b], bits, mask[b], step[j]);
            }
#pragma GCC unroll 8
            for (int b = 0; b < 8; ++b) vistore(column + b * kDotWidth, veighth(w[b]));
            column += 8 * kDotWidth;
        }
    }
}

// out[0..R)[0..kDotWidth) += x[0..R) times one width of levels.
template <int R>
EDGEC_NOINLINE void dot_tile(const int32_t *x, int64_t ldx, const float *x_scale, const int32_t *w,
                             const float *w_scale, int64_t pairs, float *out) {
    vi acc[R][2];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = viset(0);
    const int32_t *q[(R + 2) / 3];
#pragma GCC unroll 4
    for (int i = 0; i < (R + 2) / 3; ++i) q[i] = x + 3 * i * ldx;
#pragma GCC unroll 1
    for (int64_t k = 0; k < pairs; ++k) {
        const vi a = viload(w), b = viload(w + L);
        w += kDotWidth;
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const vi v = viset(q[r / 3][r % 3 * ldx]);
            vdot16(&acc[r][0], v, a);
            vdot16(&acc[r][1], v, b);
        }
#pragma GCC unroll 4
        for (int i = 0; i < (R + 2) / 3; ++i) ++q[i];
    }
    const vf a = vload(w_scale), b = vload(w_scale + L);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        const vf v = vset(x_scale[r]);
        float *to = out + r * kBitsRows;
        vstore(to, vfma(vmul(vtof(acc[r][0]), a), v, vload(to)));
        vstore(to + L, vfma(vmul(vtof(acc[r][1]), b), v, vload(to + L)));
    }
}

// A group at a time: its levels stay in the first-level cache while all rows pass. A last tile of an odd
// number of rows has one more, which is zero in x and not read from out; both have room for an even number.
EDGEC_NOINLINE void dot_sums(const BitsShape &s, const uint8_t *codes, const float *, const uint8_t *tables,
                             float *out) {
    constexpr int kOther = kTileRows >= 12 ? 12 : 4;  // a tile's height besides 6 and 2
    alignas(64) float w_scale[kBitsRows];
    const int64_t rows = s.padded();
    const int32_t *x = (const int32_t *)tables;
    const float *x_scale = (const float *)(x + rows * s.chunks() * kDotPairs);
    int32_t *w = (int32_t *)(tables + s.pair_bytes());
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g), ldx = chunks * kDotPairs, pairs = dot_pairs(s, g);
        dot_levels(s, codes, chunks, w, w_scale);
        const int64_t bytes = s.code_bytes(chunks) + s.scale_bytes();
        const uint8_t *next = codes + bytes;  // as much again comes from memory while this group is multiplied
        for (int64_t m = 0; m < s.m;) {
            const int64_t left = s.m - m;
            const int height = kOther == 12 && left > 10 ? 12 : left > 4 ? 6 : kOther == 4 && left > 2 ? 4 : 2;
            for (const uint8_t *end = codes + bytes + bytes * imin(s.m, m + height) / s.m; next < end; next += 64)
                __builtin_prefetch(next);
            for (int64_t n = 0; n < kBitsRows; n += kDotWidth) {
                const int32_t *a = x + m * ldx, *b = w + n * chunks * kDotPairs;
                float *to = out + m * kBitsRows + n;
                if (height == kOther) dot_tile<kOther>(a, ldx, x_scale + m, b, w_scale + n, pairs, to);
                if (height == 6) dot_tile<6>(a, ldx, x_scale + m, b, w_scale + n, pairs, to);
                if (height == 2) dot_tile<2>(a, ldx, x_scale + m, b, w_scale + n, pairs, to);
            }
            m += height;
        }
        codes += bytes;
        x += rows * ldx;
        x_scale += rows;
    }
}
