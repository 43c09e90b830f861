// The SIMD vocabulary for AVX2+FMA+F16C; meanings as in avx512.h. Included once, inside `namespace edgec::avx2`.
constexpr int L = 8;
// Matrix product tile in rows and 16-wide panels (6 x 2 accumulators, 2 weights, 1 broadcast: 15 of 16 registers),
// and the independent sums a dot product needs to hide the latency of fma.
constexpr int kTileRows = 6, kTilePanels = 1, kSums = 8;
using vf = __m256;
using vi = __m256i;
using vm = __m256;  // all-ones or all-zero lanes

// Lane i is all ones when i < n: a window that slides over eight ones and eight zeros.
alignas(32) static const int32_t kMaskWindow[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
EDGEC_INLINE __m256i vfirst(int64_t n) { return _mm256_loadu_si256((const __m256i *)(kMaskWindow + 8 - n)); }

EDGEC_INLINE vf vset(float x) { return _mm256_set1_ps(x); }
EDGEC_INLINE vf vload(const float *p) { return _mm256_loadu_ps(p); }
EDGEC_INLINE vf vload_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, vfirst(n)); }
EDGEC_INLINE void vstore(float *p, vf a) { _mm256_storeu_ps(p, a); }
EDGEC_INLINE void vstore_n(float *p, vf a, int64_t n) { _mm256_maskstore_ps(p, vfirst(n), a); }
// There is no masked 16-bit access here: the elements go through a buffer.
EDGEC_INLINE __m128i vload_u16_n_(const uint16_t *p, int64_t n) {
    uint16_t t[8] = {};
    for (int64_t i = 0; i < n; ++i) t[i] = p[i];
    return _mm_loadu_si128((const __m128i *)t);
}
EDGEC_INLINE vf vload_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
EDGEC_INLINE vf vload_f16_n(const uint16_t *p, int64_t n) { return _mm256_cvtph_ps(vload_u16_n_(p, n)); }
EDGEC_INLINE vf vwiden_bf16_(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
EDGEC_INLINE vf vload_bf16(const uint16_t *p) { return vwiden_bf16_(_mm_loadu_si128((const __m128i *)p)); }
EDGEC_INLINE vf vload_bf16_n(const uint16_t *p, int64_t n) { return vwiden_bf16_(vload_u16_n_(p, n)); }
EDGEC_INLINE void vstore_f16(uint16_t *p, vf a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
EDGEC_INLINE void vstore_f16_n(uint16_t *p, vf a, int64_t n) {
    uint16_t t[8];
    vstore_f16(t, a);
    for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}

EDGEC_INLINE vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
EDGEC_INLINE vf vsub(vf a, vf b) { return _mm256_sub_ps(a, b); }
EDGEC_INLINE vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
EDGEC_INLINE vf vdiv(vf a, vf b) { return _mm256_div_ps(a, b); }
EDGEC_INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
EDGEC_INLINE vf vfnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
EDGEC_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
EDGEC_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
EDGEC_INLINE vf vsqrt(vf a) { return _mm256_sqrt_ps(a); }
EDGEC_INLINE vf vneg(vf a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
EDGEC_INLINE vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
EDGEC_INLINE vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
EDGEC_INLINE vf vfloor(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
EDGEC_INLINE float vsum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
EDGEC_INLINE float vhmax(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

EDGEC_INLINE vi viset(int32_t x) { return _mm256_set1_epi32(x); }
EDGEC_INLINE vi viadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
EDGEC_INLINE vi visub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
EDGEC_INLINE vi viand(vi a, vi b) { return _mm256_and_si256(a, b); }
EDGEC_INLINE vi vixor(vi a, vi b) { return _mm256_xor_si256(a, b); }
template <int S> EDGEC_INLINE vi vishl(vi a) { return _mm256_slli_epi32(a, S); }
template <int S> EDGEC_INLINE vi vishr(vi a) { return _mm256_srai_epi32(a, S); }
EDGEC_INLINE vi vtoi(vf a) { return _mm256_cvtps_epi32(a); }
EDGEC_INLINE vf vtof(vi a) { return _mm256_cvtepi32_ps(a); }
EDGEC_INLINE vi vibytes(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
EDGEC_INLINE vi visigned(const uint8_t *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
EDGEC_INLINE vf vcast_f(vi a) { return _mm256_castsi256_ps(a); }
EDGEC_INLINE vi vcast_i(vf a) { return _mm256_castps_si256(a); }

EDGEC_INLINE vm vlt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
EDGEC_INLINE vm vle(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
EDGEC_INLINE vm veq(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
EDGEC_INLINE vm vgt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
EDGEC_INLINE vf vsel(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }

// Lane i of the result is the sum of a[i]; a holds L vectors.
EDGEC_INLINE vf vsums(const vf *a) {
    vf lo = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    vf hi = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(lo, hi, 0x20), _mm256_permute2f128_ps(lo, hi, 0x31));
}

// Rows 0..3 of columns j and j + 4 of the four rows, for j = 0..3.
EDGEC_INLINE void vcolumns_(const vf *a, vf *to) {
    vf p = _mm256_unpacklo_ps(a[0], a[2]), q = _mm256_unpackhi_ps(a[0], a[2]);
    vf r = _mm256_unpacklo_ps(a[1], a[3]), s = _mm256_unpackhi_ps(a[1], a[3]);
    to[0] = _mm256_unpacklo_ps(p, r);
    to[1] = _mm256_unpackhi_ps(p, r);
    to[2] = _mm256_unpacklo_ps(q, s);
    to[3] = _mm256_unpackhi_ps(q, s);
}
// Transposes the L x L matrix whose rows are a.
EDGEC_INLINE void vtranspose(vf *a) {
    vf lo[4], hi[4];
    vcolumns_(a, lo);
    vcolumns_(a + 4, hi);
    for (int j = 0; j < 4; ++j) {
        a[j] = _mm256_permute2f128_ps(lo[j], hi[j], 0x20);
        a[j + 4] = _mm256_permute2f128_ps(lo[j], hi[j], 0x31);
    }
}

// Bytes 4 v + e of each 128-bit part to the top of lane e.
alignas(16) static const uint32_t kTopBytes[4] = {0x00808080, 0x01808080, 0x02808080, 0x03808080};
EDGEC_INLINE vi vtop_bytes(const uint8_t *p, int v) {
    const __m256i at = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)kTopBytes));
    return _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)p), _mm256_add_epi32(at, _mm256_set1_epi32(v << 26)));
}
EDGEC_INLINE vm vnegative(vi a) { return _mm256_castsi256_ps(a); }  // vsel looks at nothing but the sign

EDGEC_INLINE void vquads(__m256i a, __m256i b, __m256i c, __m256i d, vi *to) {
    const __m256i u = _mm256_unpacklo_epi8(a, b), v = _mm256_unpackhi_epi8(a, b);
    const __m256i x = _mm256_unpacklo_epi8(c, d), y = _mm256_unpackhi_epi8(c, d);
    to[0] = _mm256_unpacklo_epi16(u, x);
    to[1] = _mm256_unpackhi_epi16(u, x);
    to[2] = _mm256_unpacklo_epi16(v, y);
    to[3] = _mm256_unpackhi_epi16(v, y);
}
EDGEC_INLINE void vrows(const uint8_t *p, vi *to) {
    const __m256i *q = (const __m256i *)p;
    vquads(_mm256_loadu_si256(q), _mm256_loadu_si256(q + 2), _mm256_loadu_si256(q + 4), _mm256_loadu_si256(q + 6), to);
}
struct vtable {
    vf low, high;
};
EDGEC_INLINE vtable vtable16(const float *p) { return {vload(p), vload(p + 8)}; }
EDGEC_INLINE vf vpick(const vtable &t, vi at) {
    const vf low = _mm256_permutevar8x32_ps(t.low, at), high = _mm256_permutevar8x32_ps(t.high, at);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
EDGEC_INLINE vf vgather(const float *p, vi at) { return _mm256_i32gather_ps(p, at, 4); }

constexpr int64_t kBytes = 32, kPrefetchStep = 4096;
using vb = __m256i;
EDGEC_INLINE vb vbload(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
EDGEC_INLINE void vbstore(uint8_t *p, vb a) { _mm256_storeu_si256((__m256i *)p, a); }
EDGEC_INLINE vb vbset16(int32_t x) { return _mm256_set1_epi16((int16_t)x); }
EDGEC_INLINE vb vbzero() { return _mm256_setzero_si256(); }
EDGEC_INLINE vi vbwords(vb a) { return a; }
EDGEC_INLINE vb vbytes(vi a) { return a; }
EDGEC_INLINE vb vbtable(const uint8_t *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }
EDGEC_INLINE vb vblookup(vb table, vb at) { return _mm256_shuffle_epi8(table, at); }
EDGEC_INLINE vb vblow(vb a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
// A product, for shifts compete with shuffles.
EDGEC_INLINE vb vbhigh(vb a) {
    return _mm256_and_si256(_mm256_mulhi_epu16(a, _mm256_set1_epi16(4096)), _mm256_set1_epi8(15));
}
EDGEC_INLINE vb vbadd(vb a, vb b) { return _mm256_add_epi8(a, b); }
template <int W> EDGEC_INLINE void vbwiden(vb a, vb b, vb *sum) {
    const __m256i weights = _mm256_set1_epi16(W << 8 | 1);
    sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), weights));
    sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), weights));
}
EDGEC_INLINE void vbrows(const vb *a, const vb *b, int32_t weights, vi *to) {
    const __m256i two = _mm256_set1_epi32(weights);
    for (int i = 0; i < 2; ++i) {
        to[2 * i] = _mm256_madd_epi16(_mm256_unpacklo_epi16(a[i], b[i]), two);
        to[2 * i + 1] = _mm256_madd_epi16(_mm256_unpackhi_epi16(a[i], b[i]), two);
    }
}
EDGEC_INLINE void vbpin(vb *a) { __asm__("" : "+x"(*a)); }
EDGEC_INLINE void vstore_bytes(uint8_t *p, const vi *a) {
    const __m256i half = _mm256_permute4x64_epi64(_mm256_packus_epi32(a[0], a[1]), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
EDGEC_INLINE vf vfours(vf a) {
    a = _mm256_add_ps(a, _mm256_permute_ps(a, 0xb1));
    return _mm256_add_ps(a, _mm256_permute_ps(a, 0x4e));
}

// Pairs of 16-bit integers (generic/dot16.h): meanings as in avx512.h.
EDGEC_INLINE vi viload(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
EDGEC_INLINE void vistore(int32_t *p, vi a) { _mm256_storeu_si256((__m256i *)p, a); }
EDGEC_INLINE vi vpair(vi low, vi high) { return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa); }
EDGEC_INLINE vi vpair_bytes(const uint8_t *p, const uint8_t *q, int v) {
    const vi at = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
    const vi low = viadd(at, viset((int32_t)(0x80808000u + 4u * (uint32_t)v)));
    const vi high = _mm256_or_si256(_mm256_slli_epi32(low, 16), viset(0x8080));
    return _mm256_or_si256(_mm256_shuffle_epi8(vbload(p), low), _mm256_shuffle_epi8(vbload(q), high));
}
EDGEC_INLINE vi vadd_where(vi a, vi bits, vi mask, vi step) {
    return _mm256_add_epi16(a, _mm256_sign_epi16(step, _mm256_and_si256(bits, mask)));
}
EDGEC_INLINE vi veighth(vi a) { return _mm256_mulhrs_epi16(a, _mm256_set1_epi16(1 << 12)); }
// As instructions: gcc 12 copies every other sum of the intrinsics.
EDGEC_INLINE void vdot16(vi *sum, vi a, vi b) {
    vi t;
    __asm__ volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(t) : "xm"(a), "x"(b));
}

// 8-bit integers: meanings as in avx512.h.
EDGEC_INLINE vi vpairs(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
EDGEC_INLINE vi vpset(const int16_t *p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    return viset(pair);
}
EDGEC_INLINE void vstore_q8(uint8_t *p, const vf *a, vf hi, int zero, int lo, int flip) {
    vi v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) v[i] = vtoi(vmin(a[i], hi));
    const __m256i z = _mm256_set1_epi16((int16_t)zero);
    const __m256i q = _mm256_packus_epi16(_mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), z),
                                          _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), z));
    const __m256i r = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    vbstore(p, _mm256_xor_si256(_mm256_max_epu8(r, _mm256_set1_epi8((char)lo)), _mm256_set1_epi8((char)flip)));
}
EDGEC_INLINE void vwiden16(int16_t *to, const uint8_t *p, uint8_t flip) {
    const __m128i v = _mm_xor_si128(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8((char)flip));
    _mm256_storeu_si256((__m256i *)to, _mm256_cvtepu8_epi16(v));
}
// Four unsigned bytes of a times four signed ones of b in every lane, added up: exact where each two products stay in 16
// bits; beyond, they saturate, which leaves doubts.
constexpr bool kDotBytes = true, kDoubts = true;
EDGEC_INLINE void vdot8(vi *sum, vi a, vi b, vi ones) {
    vi t;
    __asm__ volatile("vpmaddubsw %2, %3, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                     : "+x"(*sum), "=&x"(t) : "xm"(b), "x"(a), "xm"(ones));
}
// What vdot8() adds too little. Two products differ from their saturated sum by less than 2^15, so that the difference is
// right however its parts wrap.
EDGEC_INLINE vi vdot8_lost(vi a, vi b) {
    const vi low = _mm256_set1_epi16(255);
    const vi even = _mm256_maddubs_epi16(_mm256_and_si256(a, low), b);
    const vi odd = _mm256_maddubs_epi16(_mm256_andnot_si256(low, a), b);
    const vi lost = _mm256_sub_epi16(_mm256_add_epi16(even, odd), _mm256_maddubs_epi16(a, b));
    return _mm256_madd_epi16(lost, _mm256_set1_epi16(1));
}
// Four bits for each of eight fours of bytes that are not zero where products of two neighbours with any weights may leave
// 16 bits: of unsigned bytes with signed weights, or of signed ones with unsigned weights.
EDGEC_INLINE uint32_t vdot8_doubts(vi x, bool is_signed) {
    const vi both = _mm256_maddubs_epi16(is_signed ? _mm256_abs_epi8(x) : x, _mm256_set1_epi8(1));
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi16(both, _mm256_set1_epi16(is_signed ? 128 : 256)));
}
EDGEC_INLINE vi viload_upto(const void *p, int64_t n) { return _mm256_maskload_epi32((const int *)p, vfirst(n < 8 ? n : 8)); }
// The sum of n fours of signed bytes.
EDGEC_INLINE int32_t vsum_fours(const void *p, int64_t n) {
    const vi turn = _mm256_set1_epi8((char)128);
    vi sum = vbzero();
    for (int64_t i = 0; i < n; i += 8)
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_xor_si256(viload_upto((const int *)p + i, n - i), turn), vbzero()));
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const int64_t bytes = (n + 7) / 8 * 32;
    return _mm_cvtsi128_si32(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half))) - (int32_t)(128 * bytes);
}
// Two rows of sixteen pairs as sixteen fours, some bits of each byte turned.
EDGEC_INLINE void vfours16(uint8_t *to, const int8_t *p, const int8_t *q, int turn) {
    const __m256i a = vbload((const uint8_t *)p), b = vbload((const uint8_t *)q), t = _mm256_set1_epi8((char)turn);
    const __m256i low = _mm256_xor_si256(_mm256_unpacklo_epi16(a, b), t);
    const __m256i high = _mm256_xor_si256(_mm256_unpackhi_epi16(a, b), t);
    vbstore(to, _mm256_permute2x128_si256(low, high, 0x20));
    vbstore(to + 32, _mm256_permute2x128_si256(low, high, 0x31));
}
// (p[i], q[i]) of sixteen bytes as pairs of 16-bit integers, in 16 / L vectors.
EDGEC_INLINE void vpairs16(const uint8_t *p, const uint8_t *q, vi *to) {
    const __m128i a = _mm_loadu_si128((const __m128i *)p), b = _mm_loadu_si128((const __m128i *)q);
    to[0] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
    to[1] = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
}

// No code, but an order: *a is computed before this point, and memory is not read ahead of it.
EDGEC_INLINE void vpin(vf *a) { __asm__ volatile("" : "+x"(*a) : : "memory"); }
EDGEC_INLINE void vipin(vi *a) { __asm__("" : "+x"(*a)); }
