// AVX-512 with VBMI and VNNI: lookups with 15 bits per entry for weights of few bits. A vector holds 32 columns of 16 rows;
// vpermb looks up four tables at once, one per byte of a row's 32 bits, and vpdpbusd adds the four up. It is also what
// products of 8-bit integers want. All other kernels are those of AVX-512.
#include "../contract/bits.h"
#include "../contract/q8.h"
#include "../strided.h"

#if EDGEC_HAVE_AVX512
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")
#endif

namespace edgec {
namespace avx512 {
namespace vbmi {
#include "../simd/avx512.h"
#include "../generic/lanes.h"
#include "../generic/bits_scales.h"
#include "../generic/tables.h"

// value = 128 upper + lower, both signed. A chunk: the tables of nibbles 0, 2, 4, 6 (lower bytes, then upper), then of
// the odd nibbles.
struct Code15 {
    static constexpr int kBias = 64, kShift = 7, kLow = 64, kUpper = 64, kChunk = 256;
    static constexpr float kLimit = 16319;
    static constexpr bool kPairs = false;
    static constexpr int64_t at(int64_t nibble) { return nibble % 2 * 128 + nibble / 2 * 16; }
};

// As instructions: gcc 12 copies the accumulators of the intrinsic.
EDGEC_INLINE vi dot(vi sum, vi bytes, vi signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(signed_bytes));
    return sum;
}

// Where each byte of 16 rows by 32 columns is looked up: its lower nibble, and its upper one.
EDGEC_INLINE void table_index(vi code, vi *low, vi *high) {
    const vi nibble = _mm512_set1_epi8(15), table = _mm512_set1_epi32(0x30201000);
    *low = _mm512_ternarylogic_epi32(code, nibble, table, 0xea);  // code & nibble | table
    *high = _mm512_ternarylogic_epi32(_mm512_srli_epi32(code, 4), nibble, table, 0xea);
}

// sum[4] = the sums of a plane of a group. kReady: `p` holds the indices of many_sums(), else the codes.
template <bool kReady>
EDGEC_INLINE void plane_sums(const uint8_t *p, int64_t chunks, const uint8_t *t, vf scale, vf *sum) {
    const vi one = _mm512_set1_epi8(1), upper = _mm512_set1_epi8((char)128);
    vi low[4], high[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) low[r] = high[r] = vbzero();
    // Rolled: prefetchers follow one stream of loads, not dozens.
#pragma GCC unroll 1
    for (int64_t c = 0; c < chunks; ++c, t += 256, p += kReady ? 512 : 256) {
        const vi a = vbload(t), b = vbload(t + 64), d = vbload(t + 128), e = vbload(t + 192);
        vi row[4];
        if (!kReady) {
            vrows(p, row);  // the four bytes of a row, a column each, side by side
        }
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            vi even, odd;
            if (!kReady) table_prefetch(p + r * 64);
            if (kReady) even = vbload(p + r * 128), odd = vbload(p + r * 128 + 64);
            else table_index(row[r], &even, &odd);
            low[r] = dot(low[r], one, _mm512_permutexvar_epi8(even, a));
            high[r] = dot(high[r], upper, _mm512_permutexvar_epi8(even, b));
            low[r] = dot(low[r], one, _mm512_permutexvar_epi8(odd, d));
            high[r] = dot(high[r], upper, _mm512_permutexvar_epi8(odd, e));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sum[r] = vmul(vtof(viadd(low[r], high[r])), scale);
}

// to[bits][64] = the sums of a group's planes. Scales come last: reads that wait for them here, between the planes, held
// up those of the codes (Zen 4: half the speed at 4 bits).
EDGEC_NOINLINE void one_sums(const BitsShape &s, const uint8_t *p, int64_t chunks, const uint8_t *t, vf scale, float *to) {
    for (int64_t j = 0; j < s.bits; ++j, p += chunks * 256, to += kBitsRows) {
        vf sum[4];
        plane_sums<false>(p, chunks, t, scale, sum);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) vstore(to + r * L, sum[r]);
    }
}
// Several rows of activations share the indices.
EDGEC_NOINLINE void many_sums(const BitsShape &s, const uint8_t *p, int64_t chunks, const uint8_t *t, int64_t g,
                              const uint16_t *scales, int64_t j, float *out) {
    vf h[4];
    for (int r = 0; r < 4; ++r) h[r] = bits_scale(s, scales, r * L, j);
    alignas(64) uint8_t index[kBitsMostGroup / 32 * 512];
    for (int64_t c = 0; c < chunks; ++c) {
        vi row[4], even, odd;
        vrows(p + c * 256, row);
        for (int r = 0; r < 4; ++r) {
            table_prefetch(p + c * 256 + r * 64);
            table_index(row[r], &even, &odd);
            _mm512_store_si512(index + c * 512 + r * 128, even);
            _mm512_store_si512(index + c * 512 + r * 128 + 64, odd);
        }
    }
    for (int64_t m = 0; m < s.m; ++m, t += s.table_bytes(), out += kBitsRows) {
        const float *scale = (const float *)(t + s.chunks() * 256);
        vf sum[4];
        plane_sums<true>(index, chunks, t + g * (s.group / 32) * 256, vset(scale[g]), sum);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) vstore(out + r * L, vfma(sum[r], h[r], vload(out + r * L)));
    }
}

EDGEC_INLINE void vdot16(vi *sum, vi a, vi b) {
    __asm__ volatile("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
#include "../generic/dot16.h"
#include "avx512vbmi_palette.h"
constexpr BitsMethod kMany = {dot_prepare, dot_sums, {17, 17, 17, 17, 17, 17, 17, 17}};
static_assert(kMany.within_scratch(), "bits_scratch() has no room for this");

void prepare(const BitsShape &s, const float *x, uint8_t *tables) { tables_of<Code15>(s, x, tables); }

void sums(const BitsShape &s, const uint8_t *p, const float *, const uint8_t *tables, float *out) {
    alignas(64) float found[kBitsMost * kBitsRows];
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g);
        const uint16_t *scales = (const uint16_t *)(p + s.code_bytes(chunks));
        const float *scale = (const float *)(tables + s.chunks() * 256);
        if (s.m == 1) {
            scale_prefetch(scales, s.scale_bytes());
            one_sums(s, p, chunks, tables + g * (s.group / 32) * 256, vset(scale[g]), found);
        }
        for (int64_t j = 0; j < s.bits && s.m > 1; ++j)
            many_sums(s, p + j * chunks * 256, chunks, tables, g, scales, j, out);
        for (int64_t m = 0; m < s.m; ++m) {
            const float sum = ((const float *)(tables + m * s.table_bytes() + s.chunks() * 256) + s.groups())[g];
            for (int64_t r = 0; r < kBitsRows; r += L) {
                float *to = out + m * kBitsRows + r;
                vf v = vfma(vset(sum), bits_centre(s, scales, r), vload(to));
                for (int64_t j = 0; j < s.bits && s.m == 1; ++j)
                    v = vfma(vload(found + j * kBitsRows + r), bits_scale(s, scales, r, j), v);
                vstore(to, v);
            }
        }
        p += s.code_bytes(chunks) + s.scale_bytes();
    }
}

// What dot8.h wants: numbers stay unsigned; a four of x goes into every lane. A tile is so many rows and vectors of sums,
// in integers and in floats.
constexpr int kDot8Rows = 6, kDot8Vectors = 2, kDot8Fours = 1;
constexpr float kDot8Turn = 0;
EDGEC_INLINE void vdot8_row(vi *sum, vi w, vi x, int) { *sum = dot(*sum, w, x); }
EDGEC_INLINE vi vfours8(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return viset(four);
}
EDGEC_INLINE vi dot8_spread(vi a) {
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c)));
}
EDGEC_INLINE vi vbadd_where(vi a, vi bits, vi mask, vi step) {
    return _mm512_mask_add_epi8(a, _mm512_test_epi8_mask(bits, mask), a, step);
}
// The low bytes of 32 lanes, the four eights of them side by side.
EDGEC_INLINE void vstore_fours(uint8_t *to, const vi *v) {
    const __m256i at = _mm256_setr_epi32(0x18100800, 0x19110901, 0x1a120a02, 0x1b130b03, 0x1c140c04, 0x1d150d05,
                                         0x1e160e06, 0x1f170f07);
    const __m256i b = _mm256_set_m128i(_mm512_cvtepi32_epi8(v[1]), _mm512_cvtepi32_epi8(v[0]));
    _mm256_storeu_si256((__m256i *)to, _mm256_permutexvar_epi8(at, b));
}
#include "../generic/dot8.h"
// Where lookups end in the fast mode, by bits; measured on Sapphire Rapids (benchmarks/bench_bits.cpp, 5 to 16 rows).
constexpr BitsMethod kFastMany = {dot8_prepare, dot8_sums, {11, 6, 5, 5, 5, 5, 5, 5}};
static_assert(kFastMany.within_scratch(), "bits_scratch() has no room for this");

constexpr bool kDotBytes = true;
EDGEC_INLINE void vdot8(vi *sum, vi a, vi b, vi) { *sum = dot(*sum, a, b); }
EDGEC_INLINE void vfours16(uint8_t *to, const int8_t *p, const int8_t *q, int) {
    const vi low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    const vi high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)q));
    vbstore(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
#include "../simd/no_doubts.h"
#include "../generic/conv2d_q8.h"

void linear_bits(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    bits_run(a, 1, t0, t1, scratch, {prepare, sums, {}, &kPaletteProducts}, bits_fast(a, 1) ? kFastMany : kMany);
}
void linear_bits_split(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    bits_run(a, kBitsOutputs, t0, t1, scratch, {prepare, sums, {}, &kPaletteProducts}, bits_fast(a, kBitsOutputs) ? kFastMany : kMany);
}
}  // namespace vbmi
}  // namespace avx512
}  // namespace edgec

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
