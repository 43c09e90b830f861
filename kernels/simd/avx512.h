// The SIMD vocabulary for AVX-512 F+BW+DQ+VL. Included once, inside `namespace edgec::avx512` in a target region.
// Meanings that the four headers share: *_n touches only the first n elements (0 <= n <= L) and loads zero beyond;
// vmin / vmax are `a < b ? a : b` and `a > b ? a : b` (b when either is NaN); vround is to nearest even;
// vtoi needs |x| < 2^31. No pointer needs alignment beyond its element's.
constexpr int L = 16;
// Matrix product tile in rows and 16-wide panels (12 x 2 accumulators, 2 weights: 26 of 32 registers; broadcasts are memory operands),
// and the independent sums a dot product needs to hide the latency of fma.
constexpr int kTileRows = 12, kTilePanels = 2, kSums = 8;
using vf = __m512;
using vi = __m512i;
using vm = __mmask16;

EDGEC_INLINE vm vfirst(int64_t n) { return (vm)((1u << n) - 1u); }

EDGEC_INLINE vf vset(float x) { return _mm512_set1_ps(x); }
EDGEC_INLINE vf vload(const float *p) { return _mm512_loadu_ps(p); }
EDGEC_INLINE vf vload_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vfirst(n), p); }
EDGEC_INLINE void vstore(float *p, vf a) { _mm512_storeu_ps(p, a); }
EDGEC_INLINE void vstore_n(float *p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, vfirst(n), a); }
EDGEC_INLINE vf vload_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
EDGEC_INLINE vf vload_f16_n(const uint16_t *p, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vfirst(n), p));
}
EDGEC_INLINE vf vwiden_bf16_(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
EDGEC_INLINE vf vload_bf16(const uint16_t *p) { return vwiden_bf16_(_mm256_loadu_si256((const __m256i *)p)); }
EDGEC_INLINE vf vload_bf16_n(const uint16_t *p, int64_t n) {
    return vwiden_bf16_(_mm256_maskz_loadu_epi16(vfirst(n), p));
}
EDGEC_INLINE void vstore_f16(uint16_t *p, vf a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
EDGEC_INLINE void vstore_f16_n(uint16_t *p, vf a, int64_t n) {
    _mm256_mask_storeu_epi16(p, vfirst(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

EDGEC_INLINE vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
EDGEC_INLINE vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
EDGEC_INLINE vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
EDGEC_INLINE vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
// 2^n x for whole n in [-252, 129], rounded once.
EDGEC_INLINE vf vscale(vf x, vf n) { return _mm512_scalef_ps(x, n); }
// a / b for b >= 1, infinity and NaN included, to 2 units of the last place: a division takes four times as long.
EDGEC_INLINE vf vdiv_near(vf a, vf b) {
    const vf y = _mm512_rcp14_ps(b), e = _mm512_fnmadd_ps(b, y, _mm512_set1_ps(1.0f));
    const __mmask16 finite = _mm512_cmp_ps_mask(b, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    return _mm512_mul_ps(a, _mm512_mask_fmadd_ps(y, finite, e, y));
}
EDGEC_INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
EDGEC_INLINE vf vfnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
EDGEC_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
EDGEC_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
EDGEC_INLINE vf vsqrt(vf a) { return _mm512_sqrt_ps(a); }
EDGEC_INLINE vf vneg(vf a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
EDGEC_INLINE vf vabs(vf a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
EDGEC_INLINE vf vround(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
EDGEC_INLINE vf vfloor(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
EDGEC_INLINE float vsum(vf a) { return _mm512_reduce_add_ps(a); }
EDGEC_INLINE float vhmax(vf a) { return _mm512_reduce_max_ps(a); }

EDGEC_INLINE vi viset(int32_t x) { return _mm512_set1_epi32(x); }
EDGEC_INLINE vi viadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
EDGEC_INLINE vi visub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
EDGEC_INLINE vi viand(vi a, vi b) { return _mm512_and_si512(a, b); }
EDGEC_INLINE vi vixor(vi a, vi b) { return _mm512_xor_si512(a, b); }
template <int S> EDGEC_INLINE vi vishl(vi a) { return _mm512_slli_epi32(a, S); }
template <int S> EDGEC_INLINE vi vishr(vi a) { return _mm512_srai_epi32(a, S); }
EDGEC_INLINE vi vtoi(vf a) { return _mm512_cvtps_epi32(a); }
EDGEC_INLINE vf vtof(vi a) { return _mm512_cvtepi32_ps(a); }
// L bytes as 32-bit integers, and L signed ones.
EDGEC_INLINE vi vibytes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
EDGEC_INLINE vi visigned(const uint8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
EDGEC_INLINE vf vcast_f(vi a) { return _mm512_castsi512_ps(a); }
EDGEC_INLINE vi vcast_i(vf a) { return _mm512_castps_si512(a); }

EDGEC_INLINE vm vlt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
EDGEC_INLINE vm vle(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
EDGEC_INLINE vm veq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
EDGEC_INLINE vm vgt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
EDGEC_INLINE vf vsel(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }  // m ? a : b

// Adds neighbours as hadd does in each 128-bit part: {a0+a1, a2+a3, b0+b1, b2+b3}.
EDGEC_INLINE vf vpair_(vf a, vf b) { return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)); }
// The same on 128-bit parts: {A0+A1, A2+A3, B0+B1, B2+B3}.
EDGEC_INLINE vf vparts_(vf a, vf b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
EDGEC_INLINE vf vquad_(const vf *a) { return vpair_(vpair_(a[0], a[1]), vpair_(a[2], a[3])); }
// Lane i of the result is the sum of a[i]; a holds L vectors.
EDGEC_INLINE vf vsums(const vf *a) {
    return vparts_(vparts_(vquad_(a), vquad_(a + 4)), vparts_(vquad_(a + 8), vquad_(a + 12)));
}

// Rows 0..3 of columns j, j + 4, j + 8 and j + 12 of the four rows, for j = 0..3.
EDGEC_INLINE void vcolumns_(const vf *a, vf *to) {
    vf p = _mm512_unpacklo_ps(a[0], a[2]), q = _mm512_unpackhi_ps(a[0], a[2]);
    vf r = _mm512_unpacklo_ps(a[1], a[3]), s = _mm512_unpackhi_ps(a[1], a[3]);
    to[0] = _mm512_unpacklo_ps(p, r);
    to[1] = _mm512_unpackhi_ps(p, r);
    to[2] = _mm512_unpacklo_ps(q, s);
    to[3] = _mm512_unpackhi_ps(q, s);
}
// Transposes the L x L matrix whose rows are a: 4 x 4 blocks within 128-bit parts, then the parts.
EDGEC_INLINE void vtranspose(vf *a) {
    vf t[16];
    for (int i = 0; i < 4; ++i) vcolumns_(a + 4 * i, t + 4 * i);
    for (int j = 0; j < 4; ++j) {
        vf p = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88), q = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
        vf r = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd), s = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
        a[j] = _mm512_shuffle_f32x4(p, q, 0x88);
        a[8 + j] = _mm512_shuffle_f32x4(p, q, 0xdd);
        a[4 + j] = _mm512_shuffle_f32x4(r, s, 0x88);
        a[12 + j] = _mm512_shuffle_f32x4(r, s, 0xdd);
    }
}

// Lane 4 l + e: byte p[16 l + 4 v + e] in the top eight bits, zero below. p has 4 L bytes.
alignas(64) static const uint32_t kTopBytes[4] = {0x00808080, 0x01808080, 0x02808080, 0x03808080};
EDGEC_INLINE vi vtop_bytes(const uint8_t *p, int v) {
    const __m512i at = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)kTopBytes));
    return _mm512_shuffle_epi8(_mm512_loadu_si512(p), _mm512_add_epi32(at, _mm512_set1_epi32(v << 26)));
}
EDGEC_INLINE vm vnegative(vi a) { return _mm512_movepi32_mask(a); }  // lanes with the sign bit

// Palettes (generic/palette.h). Byte j of to[v] lane 4 l + e is byte 16 l + 4 v + e of vector j.
EDGEC_INLINE void vquads(__m512i a, __m512i b, __m512i c, __m512i d, vi *to) {
    const __m512i u = _mm512_unpacklo_epi8(a, b), v = _mm512_unpackhi_epi8(a, b);
    const __m512i x = _mm512_unpacklo_epi8(c, d), y = _mm512_unpackhi_epi8(c, d);
    to[0] = _mm512_unpacklo_epi16(u, x);
    to[1] = _mm512_unpackhi_epi16(u, x);
    to[2] = _mm512_unpacklo_epi16(v, y);
    to[3] = _mm512_unpackhi_epi16(v, y);
}
// The same of the vectors at p, p + 64, p + 128 and p + 192.
EDGEC_INLINE void vrows(const uint8_t *p, vi *to) {
    vquads(_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64), _mm512_loadu_si512(p + 128), _mm512_loadu_si512(p + 192), to);
}
// Sixteen values, and those at the lower four bits of each lane; values of a table in memory.
using vtable = vf;
EDGEC_INLINE vtable vtable16(const float *p) { return vload(p); }
EDGEC_INLINE vf vpick(const vtable &t, vi at) { return _mm512_permutexvar_ps(at, t); }
EDGEC_INLINE vf vgather(const float *p, vi at) { return _mm512_i32gather_ps(at, p, 4); }

// Tables (generic/tables.h, lut.h): vb is a vector of bytes; kPrefetchStep as table_prefetch() wants it.
constexpr int64_t kBytes = 64, kPrefetchStep = 1024;
using vb = __m512i;
EDGEC_INLINE vb vbload(const uint8_t *p) { return _mm512_loadu_si512(p); }
EDGEC_INLINE vb vbzero() { return _mm512_setzero_si512(); }
EDGEC_INLINE void vbstore(uint8_t *p, vb a) { _mm512_storeu_si512(p, a); }
EDGEC_INLINE vb vbset16(int32_t x) { return _mm512_set1_epi16((int16_t)x); }
EDGEC_INLINE vi vbwords(vb a) { return a; }
EDGEC_INLINE vb vbytes(vi a) { return a; }
// Sixteen bytes for every 128-bit part, and where bytes 0..15 of `at` look up.
EDGEC_INLINE vb vbtable(const uint8_t *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
EDGEC_INLINE vb vblookup(vb table, vb at) { return _mm512_shuffle_epi8(table, at); }
EDGEC_INLINE vb vblow(vb a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }                          // a & 15
EDGEC_INLINE vb vbhigh(vb a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }  // a >> 4
EDGEC_INLINE vb vbadd(vb a, vb b) { return _mm512_add_epi8(a, b); }
// Of each 128-bit part, sum[0] += the first eight bytes of a + W b, sum[1] += the others, as 16 bits; a + W b < 2^15.
template <int W> EDGEC_INLINE void vbwiden(vb a, vb b, vb *sum) {
    const __m512i weights = _mm512_set1_epi16(W << 8 | 1);
    sum[0] = _mm512_add_epi16(sum[0], _mm512_maddubs_epi16(_mm512_unpacklo_epi8(a, b), weights));
    sum[1] = _mm512_add_epi16(sum[1], _mm512_maddubs_epi16(_mm512_unpackhi_epi8(a, b), weights));
}
// Such sums, signed, of a times the lower half of weights and b times the upper one, as rows: to[v] lane 4 l + e is of
// byte 16 l + 4 v + e.
EDGEC_INLINE void vbrows(const vb *a, const vb *b, int32_t weights, vi *to) {
    const __m512i two = _mm512_set1_epi32(weights);
    for (int i = 0; i < 2; ++i) {
        to[2 * i] = _mm512_madd_epi16(_mm512_unpacklo_epi16(a[i], b[i]), two);
        to[2 * i + 1] = _mm512_madd_epi16(_mm512_unpackhi_epi16(a[i], b[i]), two);
    }
}
// No code, but an order: sums that contain *a are formed as they are written.
EDGEC_INLINE void vbpin(vb *a) { __asm__("" : "+v"(*a)); }
// The low bytes of sixteen lanes (which are 0..255 where an instruction set saturates).
EDGEC_INLINE void vstore_bytes(uint8_t *p, const vi *a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a[0])); }
// Every lane: the sum of its four.
EDGEC_INLINE vf vfours(vf a) {
    a = _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
    return _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e));
}

// Pairs of 16-bit integers in the lanes of vi (generic/dot16.h), of which `low` and `high` are the lower halves;
// vdot16(&sum, a, b) adds both products of each lane's pairs.
EDGEC_INLINE vi viload(const int32_t *p) { return _mm512_loadu_si512(p); }
EDGEC_INLINE void vistore(int32_t *p, vi a) { _mm512_storeu_si512(p, a); }
EDGEC_INLINE vi vpair(vi low, vi high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}
// Lane 4 l + e: the pair p[16 l + 4 v + e], q[16 l + 4 v + e]. Both have 4 L bytes.
EDGEC_INLINE vi vpair_bytes(const uint8_t *p, const uint8_t *q, int v) {
    const vi at = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 1, 2, 3));
    const vi low = viadd(at, viset((int32_t)(0x80808000u + 4u * (uint32_t)v)));
    const vi high = _mm512_or_si512(_mm512_slli_epi32(low, 16), viset(0x8080));
    return _mm512_or_si512(_mm512_shuffle_epi8(vbload(p), low), _mm512_shuffle_epi8(vbload(q), high));
}
// a + step where a bit of mask is set; masks leave out the sign. Sums wrap.
EDGEC_INLINE vi vadd_where(vi a, vi bits, vi mask, vi step) {
    return _mm512_mask_add_epi16(a, _mm512_test_epi16_mask(bits, mask), a, step);
}
EDGEC_INLINE vi veighth(vi a) { return _mm512_mulhrs_epi16(a, _mm512_set1_epi16(1 << 12)); }  // (a + 4) >> 3

// 8-bit integers (generic/conv2d_q8.h, q8.h). L pairs of signed bytes that lie side by side; one pair in every lane;
// sixteen bytes, some bits of each turned, in 16 bits.
EDGEC_INLINE vi vpairs(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
EDGEC_INLINE vi vpset(const int16_t *p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    return viset(pair);
}
// Four vectors to 4 L bytes: rounded to nearest even, plus zero, between lo (0..255) and `hi` + zero, some bits turned.
EDGEC_INLINE void vstore_q8(uint8_t *p, const vf *a, vf hi, int zero, int lo, int flip) {
    vi v[4];
    for (int i = 0; i < 4; ++i) v[i] = vtoi(vmin(a[i], hi));  // what is below 2^31 becomes the least number
    const __m512i z = _mm512_set1_epi16((int16_t)zero);
    const __m512i q = _mm512_packus_epi16(_mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), z),
                                          _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), z));
    const __m512i at = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i r = _mm512_max_epu8(_mm512_permutexvar_epi32(at, q), _mm512_set1_epi8((char)lo));
    _mm512_storeu_si512(p, _mm512_xor_si512(r, _mm512_set1_epi8((char)flip)));
}
EDGEC_INLINE void vwiden16(int16_t *to, const uint8_t *p, uint8_t flip) {
    const __m128i v = _mm_xor_si128(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8((char)flip));
    _mm256_storeu_si256((__m256i *)to, _mm256_cvtepu8_epi16(v));
}


// No code, but an order: *a is computed before this point, and memory is not read ahead of it.
EDGEC_INLINE void vpin(vf *a) { __asm__ volatile("" : "+v"(*a) : : "memory"); }
EDGEC_INLINE void vipin(vi *a) { __asm__("" : "+v"(*a)); }  // a value that compilers keep instead of making it again
