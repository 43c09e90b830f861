// One row of activations times a palette of at most 4 bits with one table: the products of every column with the table's
// values are fixed point numbers that codes look up, 64 rows at a time. Part of avx512vbmi.cpp.
//
// 4 bits: 16-bit products, [column][16], looked up by words (vpermw), whose upper bits it ignores. Fewer: 14-bit sums of
// two columns' products, [pair][lower bytes, upper bytes][64], value = 128 upper + lower, both signed (vpermb). Either
// way those of eight columns add up within 16 bits. Behind the tables: a scale per chunk of 32 columns, NaN or infinite where an
// activation is not finite.
constexpr float kWordLimit = 32760, kPairLimit = 8126;  // roundings of 4 and 1 left below 32767 and 8127

EDGEC_INLINE float *palette_scales(const BitsShape &s, const uint8_t *tables) {
    return (float *)(tables + s.chunks() * (s.bits == 4 ? 32 * 32 : 16 * 128));
}

// to[2][64] from the products of two columns with 8 values, in the lower words of `both`: as a pair of codes looks up.
EDGEC_INLINE void pair_table(vi both, const vi *at, uint8_t *to) {
    for (int half = 0; half < 2; ++half) {
        const vi sum = _mm512_add_epi16(_mm512_permutexvar_epi16(at[half], both), _mm512_permutexvar_epi16(at[2 + half], both));
        const vi middle = _mm512_set1_epi16(64);
        const vi low = _mm512_sub_epi16(viand(_mm512_add_epi16(sum, middle), _mm512_set1_epi16(127)), middle);
        const vi high = _mm512_srai_epi16(_mm512_sub_epi16(sum, low), 7);
        _mm256_storeu_si256((__m256i *)(to + 32 * half), _mm512_cvtepi16_epi8(low));
        _mm256_storeu_si256((__m256i *)(to + 64 + 32 * half), _mm512_cvtepi16_epi8(high));
    }
}

// Products are at least 2^-127 apart, so that the factor to them is finite: smaller ones lose bits.
EDGEC_NOINLINE void palette_prepare(const BitsShape &s, const float *values, const float *x, uint8_t *to) {
    const bool words = s.bits == 4;
    const float limit = words ? kWordLimit : kPairLimit;
    alignas(64) uint16_t place[4][32];  // [column of the pair, half][index]: where its product is
    for (int i = 0; i < 64; ++i) {
        const int a = (i & 1) | (i >> 1 & 2) | (i >> 2 & 4), b = (i >> 1 & 1) | (i >> 2 & 2) | (i >> 3 & 4), most = (1 << s.bits) - 1;
        place[i / 32][i % 32] = (uint16_t)(a & most);
        place[2 + i / 32][i % 32] = (uint16_t)(8 + (b & most));
    }
    vi at[4];
    for (int i = 0; i < 4; ++i) at[i] = _mm512_load_si512(place[i]);
    const vf table = words ? vload(values) : _mm512_shuffle_f32x4(vload(values), vload(values), 0x44);  // 8 values, twice
    const float largest = vhmax(vabs(vload(values)));
    float *scale = palette_scales(s, to);
    for (int64_t k = 0; k < s.k; k += 32, ++scale) {
        const vf v[2] = {vload_upto(x + k, s.k - k), vload_upto(x + k + 16, imax(0, s.k - k - 16))};
        alignas(64) float column[32];
        vf most = vset(limit * 0x1p-127f);
        for (int h = 0; h < 2; ++h) {
            vf sum = vabs(v[h]);
            sum = vadd(sum, _mm512_permute_ps(sum, 0xb1));  // of two neighbours
            if (words) {
                sum = vadd(sum, _mm512_permute_ps(sum, 0x4e));
                sum = vadd(sum, _mm512_shuffle_f32x4(sum, sum, 0xb1));
            }
            most = vmax(vmul(sum, vset(largest)), most);
            vstore(column + 16 * h, v[h]);
        }
        const float reach = vhmax(most);
        const vf inverse = vset(limit / reach);
        *scale = reach / limit + vsum(vmul(vadd(v[0], v[1]), vset(0)));
        for (int i = 0; i < 32; i += words ? 1 : 2, to += words ? 32 : 128) {
            const vf pair = _mm512_mask_blend_ps(0xff00, vset(column[i]), vset(column[words ? i : i + 1]));
            const __m256i products = _mm512_cvtepi32_epi16(vtoi(vmul(vmul(pair, table), inverse)));
            if (words) _mm256_storeu_si256((__m256i *)to, products);
            else pair_table(_mm512_zextsi256_si512(products), at, to);
        }
    }
}

// Bits of *b at mask change places with those S above in *a.
template <int S> EDGEC_INLINE void palette_exchange(vi *a, vi *b, int32_t mask) {
    const vi up = _mm512_slli_epi32(*b, S), down = _mm512_srli_epi32(*a, S);
    *a = _mm512_ternarylogic_epi32(viset(mask), *a, up, 0xca);  // mask ? a : up
    *b = _mm512_ternarylogic_epi32(viset(mask), down, *b, 0xca);
}

// sum[4] += eight columns of all rows, whose planes are `part`, the next 256 bytes on; t: their tables. Returns the sums in the
// order of the bytes 4 i, 4 i + 1, 4 i + 2, 4 i + 3 of a plane (4 bits), else 2 i and 2 i + 1 of each lower half, then of the upper.
EDGEC_INLINE void palette_words(const uint8_t *part, const uint8_t *t, vi *sum) {
    vi w[4], even = vbzero(), odd = vbzero();
    for (int j = 0; j < 4; ++j) {
        table_prefetch(part + j * 256);
        w[j] = vbload(part + j * 256);
    }
    palette_exchange<1>(w, w + 1, 0x55555555);
    palette_exchange<1>(w + 2, w + 3, 0x55555555);
    palette_exchange<2>(w, w + 2, 0x33333333);
    palette_exchange<2>(w + 1, w + 3, 0x33333333);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {  // a byte: columns r and r + 4
        const vi low = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(t + r * 32)));
        const vi high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(t + (r + 4) * 32)));
        even = _mm512_add_epi16(even, _mm512_add_epi16(_mm512_permutexvar_epi16(w[r], low),
                                                       _mm512_permutexvar_epi16(_mm512_srli_epi16(w[r], 4), high)));
        odd = _mm512_add_epi16(odd, _mm512_add_epi16(_mm512_permutexvar_epi16(_mm512_srli_epi16(w[r], 8), low),
                                                     _mm512_permutexvar_epi16(_mm512_srli_epi16(w[r], 12), high)));
    }
    const vi first = viset(1), second = viset(1 << 16);
    vdot16(sum, even, first), vdot16(sum + 2, even, second);
    vdot16(sum + 1, odd, first), vdot16(sum + 3, odd, second);
}
template <int kBits> EDGEC_INLINE void palette_pairs(const uint8_t *part, const uint8_t *t, vi *sum) {
    const vi two = _mm512_set1_epi8(3), four = _mm512_set1_epi8(15), weights = _mm512_set1_epi16((int16_t)0x8001);
    vi w[3];
    for (int j = 0; j < kBits; ++j) {
        table_prefetch(part + j * 256);
        w[j] = vbload(part + j * 256);
    }
    vi half[2][2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        vi low = vbzero(), high = vbzero();
#pragma GCC unroll 2
        for (int i = 2 * h; i < 2 * h + 2; ++i) {  // columns 2 i and 2 i + 1: two bits of each plane
            vi at = _mm512_srli_epi32(w[0], (unsigned)(2 * i));
            if (kBits > 1) at = _mm512_ternarylogic_epi32(two, at, i < 1 ? _mm512_slli_epi32(w[1], 2) : _mm512_srli_epi32(w[1], (unsigned)(2 * i - 2)), 0xca);
            if (kBits > 2) at = _mm512_ternarylogic_epi32(four, at, i < 2 ? _mm512_slli_epi32(w[2], (unsigned)(4 - 2 * i)) : _mm512_srli_epi32(w[2], (unsigned)(2 * i - 4)), 0xca);
            low = vbadd(low, _mm512_permutexvar_epi8(at, vbload(t + i * 128)));
            high = vbadd(high, _mm512_permutexvar_epi8(at, vbload(t + i * 128 + 64)));
        }
        half[h][0] = _mm512_maddubs_epi16(weights, _mm512_unpacklo_epi8(low, high));
        half[h][1] = _mm512_maddubs_epi16(weights, _mm512_unpackhi_epi8(low, high));
    }
    const vi first = viset(1), second = viset(1 << 16);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const vi eight = _mm512_add_epi16(half[0][i], half[1][i]);
        vdot16(sum + 2 * i, eight, first), vdot16(sum + 2 * i + 1, eight, second);
    }
}

// out[tiles][64] += the products with so many tiles. A chunk's tables, from the second-level cache, serve all of them.
template <int kBits>
EDGEC_NOINLINE void palette_tiles(const BitsShape &s, const uint8_t *codes, int64_t tiles, const uint8_t *t, float *out) {
    const float *scale = palette_scales(s, t);
    vf all[kPaletteTiles][4];
    for (int64_t i = 0; i < tiles; ++i) all[i][0] = all[i][1] = all[i][2] = all[i][3] = vset(0);
    for (int64_t c = 0; c < s.chunks(); ++c, codes += kBits * 256, t += kBits == 4 ? 32 * 32 : 16 * 128) {
        const uint8_t *tile = codes;
        for (int64_t i = 0; i < tiles; ++i, tile += s.tile_bytes()) {
            vi sum[4] = {vbzero(), vbzero(), vbzero(), vbzero()};
#pragma GCC unroll 1
            for (int b = 0; b < 4; ++b) {
                if constexpr (kBits == 4) palette_words(tile + b * kBitsRows, t + b * 8 * 32, sum);
                else palette_pairs<kBits>(tile + b * kBitsRows, t + b * 4 * 128, sum);
            }
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) all[i][v] = vfma(vtof(sum[v]), vset(scale[c]), all[i][v]);
        }
    }
    for (int64_t i = 0; i < tiles; ++i, out += kBitsRows) {
        vf row[4], *const v = all[i];
        if (kBits == 4) {
            vcolumns_(v, row);
        } else {
            row[0] = _mm512_unpacklo_ps(v[0], v[1]), row[1] = _mm512_unpackhi_ps(v[0], v[1]);
            row[2] = _mm512_unpacklo_ps(v[2], v[3]), row[3] = _mm512_unpackhi_ps(v[2], v[3]);
        }
        for (int k = 0; k < 4; ++k) vstore(out + 16 * k, vadd(vload(out + 16 * k), row[k]));
    }
}
static void palette_sums(const BitsShape &s, const uint8_t *codes, int64_t tiles, const uint8_t *tables, float *out) {
    if (s.bits == 4) palette_tiles<4>(s, codes, tiles, tables, out);
    if (s.bits == 3) palette_tiles<3>(s, codes, tiles, tables, out);
    if (s.bits == 2) palette_tiles<2>(s, codes, tiles, tables, out);
    if (s.bits == 1) palette_tiles<1>(s, codes, tiles, tables, out);
}
constexpr PaletteMethod kPaletteProducts = {palette_prepare, palette_sums};
