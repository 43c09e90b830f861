// One row of activations times a palette of at most 4 bits with one table: the products of every column with the table's
// values are fixed point numbers that codes look up, 64 rows at a time. Part of avx512vbmi.cpp.
//
// Numbers have 14 bits, value = 128 upper + lower, both signed bytes that vpermb finds; it ignores what stands above six bits of
// an index. 4 bits: [four columns][lower, upper][column][16]. Fewer: the sums of two columns, [pair][lower, upper][64].
// Bytes of two lookups are added, then those of eight columns within 16 bits. Behind the tables: a scale per chunk of 32
// columns, NaN or infinite where an activation is not finite.
constexpr float kEntryLimit = 8126, kEightLimit = 32760;  // with roundings still below 8128 and 32768

EDGEC_INLINE float *palette_scales(const BitsShape &s, const uint8_t *tables) {
    return (float *)(tables + s.chunks() * (s.bits == 4 ? 8 : 16) * 128);
}

template <int S> EDGEC_INLINE vi vshift_right(vi a) { return _mm512_srli_epi32(a, S); }

// 64 numbers, to each of which 64 was added: their lower bytes, then the upper ones. Byte 16 l + 8 h + i is of p[h] lane 8 l + i.
EDGEC_INLINE void palette_split(const vi *p, uint8_t *to) {
    const vi mask = _mm512_set1_epi16(127), middle = _mm512_set1_epi8(64);
    const vi lower = _mm512_packs_epi16(viand(p[0], mask), viand(p[1], mask));
    vbstore(to, _mm512_sub_epi8(lower, middle));
    vbstore(to + 64, _mm512_packs_epi16(_mm512_srai_epi16(p[0], 7), _mm512_srai_epi16(p[1], 7)));
}

// Products are at least 2^-127 apart, so that the factor to them is finite: smaller ones lose bits.
template <bool kFour>
EDGEC_NOINLINE void palette_products(const BitsShape &s, const float *values, const float *x, uint8_t *to) {
    // [column of a pair, h as palette_split() has it]: where among the words of 8 products that with an index's value is.
    alignas(64) uint8_t place[4][64];
    for (int i = 0; i < 64; ++i)
        for (int byte = 0; byte < 2; ++byte) {
            const int most = (1 << s.bits) - 1, h = i / 8 % 2, to = i / 16 * 16 + i % 8 * 2 + byte;
            place[h][to] = (uint8_t)((i & most) * 2 + byte);
            place[2 + h][to] = (uint8_t)((i >> s.bits & most) * 2 + byte);
        }
    vi at[4];
    for (int i = 0; i < 4; ++i) at[i] = _mm512_load_si512(place[i]);
    // The first 8 values twice, and the others.
    const vf table = vload(values), half[2] = {_mm512_shuffle_f32x4(table, table, 0x44), _mm512_shuffle_f32x4(table, table, 0xee)};
    const vi middle = _mm512_set1_epi16(64);
    const float largest = vhmax(vabs(table));
    float *scale = palette_scales(s, to);
    for (int64_t k = 0; k < s.k; k += 32, ++scale) {
        const vf v[2] = {vload_upto(x + k, s.k - k), vload_upto(x + k + 16, imax(0, s.k - k - 16))};
        alignas(64) float column[32];
        vf most = vset(kEightLimit * 0x1p-127f);
        for (int h = 0; h < 2; ++h) {
            vf sum = vmul(vabs(v[h]), vset(largest)), entry = sum;  // products: activations alone may overflow
            sum = vadd(sum, _mm512_permute_ps(sum, 0xb1));
            if (!kFour) entry = sum;  // an entry is made of two neighbours
            sum = vadd(sum, _mm512_permute_ps(sum, 0x4e));
            sum = vadd(sum, _mm512_shuffle_f32x4(sum, sum, 0xb1));
            most = vmax(vmax(sum, vmul(entry, vset(kEightLimit / kEntryLimit))), most);
            vstore(column + 16 * h, v[h]);
        }
        const float reach = vhmax(most);
        const vf inverse = vset(kEightLimit / reach);
        *scale = reach / kEightLimit + vsum(vfma(v[0], vset(0), vmul(v[1], vset(0))));
        for (int i = 0; i < 32; i += kFour ? 4 : 2, to += 128) {
            alignas(32) __m256i words[2][2];  // [pair of columns][half of the values]
            for (int c = 0; c < (kFour ? 2 : 1); ++c) {
                const vf pair = _mm512_mask_blend_ps(0xff00, vset(column[i + 2 * c]), vset(column[i + 2 * c + 1]));
                for (int h = 0; h < (kFour ? 2 : 1); ++h)
                    words[c][h] = _mm512_cvtepi32_epi16(vtoi(vmul(vmul(pair, half[h]), inverse)));
            }
            vi p[2];
            for (int h = 0; h < 2; ++h) {
                if (kFour) {
                    p[h] = _mm512_inserti64x4(_mm512_castsi256_si512(words[0][h]), words[1][h], 1);
                } else {
                    const uint8_t *word = (const uint8_t *)&words[0][0];
                    p[h] = _mm512_add_epi16(vblookup(vbtable(word), at[h]), vblookup(vbtable(word + 16), at[2 + h]));
                }
                p[h] = _mm512_add_epi16(p[h], middle);
            }
            palette_split(p, to);
        }
    }
}

static void palette_prepare(const BitsShape &s, const float *values, const float *x, uint8_t *to) {
    if (s.bits == 4) palette_products<true>(s, values, x, to);
    else palette_products<false>(s, values, x, to);
}

// sum[4] += eight columns of all rows, whose codes' bytes begin at `part`, 256 apart; t: their tables. Lane 4 l + i of sum[v]
// is that of byte 16 l + 8 (v / 2) + 2 i + v % 2.
template <int kBits> EDGEC_INLINE void palette_eight(const uint8_t *part, const uint8_t *t, vi *sum) {
    const vi weights = _mm512_set1_epi16((int16_t)0x8001);  // 1 and 128
    vi w[4], total[2] = {vbzero(), vbzero()};
#pragma GCC unroll 4
    for (int j = 0; j < kBits; ++j) {
        table_prefetch(part + j * 256);
        w[j] = vbload(part + j * 256);
    }
    // Two lookups: of columns r and r + 4, or of columns 4 r and 4 r + 1, then 4 r + 2 and 4 r + 3.
#pragma GCC unroll 4
    for (int r = 0; r < (kBits == 4 ? 4 : 2); ++r) {
        vi low = vbzero(), high = vbzero();
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            vi at, lower, upper;
            if (kBits == 4) {
                const uint8_t *u = t + i * 128 + r * 16;
                at = i ? vshift_right<4>(w[r]) : w[r];
                lower = vbtable(u), upper = vbtable(u + 64);
            } else {
                const int pair = 2 * r + i;
                if (kBits == 1) at = pair ? _mm512_srli_epi32(w[0], (unsigned)(2 * pair)) : w[0];
                if (kBits == 2) at = i ? vshift_right<4>(w[r]) : w[r];
                if (kBits == 3 && pair < 3) at = w[pair];
                if (kBits == 3 && pair == 3) {  // what the others left
                    const vi first = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), vshift_right<6>(w[0]), vshift_right<4>(w[1]), 0xca);
                    at = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), first, vshift_right<2>(w[2]), 0xca);
                }
                lower = vbload(t + pair * 128), upper = vbload(t + pair * 128 + 64);
            }
            const vi p = _mm512_permutexvar_epi8(at, lower), q = _mm512_permutexvar_epi8(at, upper);
            low = i ? vbadd(low, p) : p, high = i ? vbadd(high, q) : q;
        }
        const vi p = _mm512_maddubs_epi16(weights, _mm512_unpacklo_epi8(low, high));
        const vi q = _mm512_maddubs_epi16(weights, _mm512_unpackhi_epi8(low, high));
        total[0] = r ? _mm512_add_epi16(total[0], p) : p, total[1] = r ? _mm512_add_epi16(total[1], q) : q;
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vdot16(sum + v, total[v / 2], viset(v % 2 ? 1 << 16 : 1));
}

// out[tiles][64] += the products with so many tiles. A chunk's tables, from the second-level cache, serve all of them.
template <int kBits>
EDGEC_NOINLINE void palette_tiles(const BitsShape &s, const uint8_t *codes, int64_t tiles, const uint8_t *t, float *out) {
    const float *scale = palette_scales(s, t);
    vf all[kPaletteTiles][4];
    for (int64_t i = 0; i < tiles; ++i) all[i][0] = all[i][1] = all[i][2] = all[i][3] = vset(0);
    for (int64_t c = 0; c < s.chunks(); ++c, codes += kBits * 256, t += (kBits == 4 ? 8 : 16) * 128) {
        const uint8_t *tile = codes;
        for (int64_t i = 0; i < tiles; ++i, tile += s.tile_bytes()) {
            vi sum[4] = {vbzero(), vbzero(), vbzero(), vbzero()};
#pragma GCC unroll 1
            for (int b = 0; b < 4; ++b) {
                palette_eight<kBits>(tile + b * kBitsRows, t + b * (kBits == 4 ? 2 : 4) * 128, sum);
            }
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) all[i][v] = vfma(vtof(sum[v]), vset(scale[c]), all[i][v]);
        }
    }
    for (int64_t i = 0; i < tiles; ++i, out += kBitsRows) {
        const vf *v = all[i];
        const vf row[4] = {_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]),
                           _mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3])};
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
