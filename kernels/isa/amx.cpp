// AMX: products of many rows with weights of few bits, as tiles of bfloat16 with sums in f32. Fewer rows are looked up
// as in avx512vbmi.cpp; all other kernels are those of AVX-512.
#include "../contract/bits.h"

#if EDGEC_HAVE_AVX512
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
#endif

namespace edgec {
namespace avx512 {
namespace amx {
#include "../simd/avx512.h"
#include "../generic/bits_scales.h"

constexpr int64_t kTile = 16 * 32;  // elements: 16 rows of 32 columns

// All eight tiles as 16 rows of 64 bytes.
EDGEC_INLINE void tiles_on() {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } form;
    __asm__ volatile("ldtilecfg %0" : : "m"(form) : "memory");
}
// Compilers do not know that tiles are loaded from and stored to memory.
EDGEC_INLINE void fence() { __asm__ volatile("" : : : "memory"); }

EDGEC_INLINE __mmask16 first(int64_t n) { return vfirst(n < 0 ? 0 : n > 16 ? 16 : n); }

// x[m][k] -> bf16 [m / 16][chunk][16][32]; zero beyond m and k.
EDGEC_NOINLINE void prepare(const BitsShape &s, const float *x, uint8_t *tables) {
    uint16_t *to = (uint16_t *)tables;
    for (int64_t m = 0; m < s.padded(); ++m)
        for (int64_t c = 0; c < s.chunks(); ++c) {
            const int64_t left = m < s.m ? s.k - 32 * c : 0;
            const float *p = x + (left > 0 ? m * s.k + 32 * c : 0);
            const vf a = _mm512_maskz_loadu_ps(first(left), p);
            const vf b = _mm512_maskz_loadu_ps(first(left - 16), left > 16 ? p + 16 : p);
            _mm512_storeu_si512(to + ((m / 16 * s.chunks() + c) * 16 + m % 16) * 32, (vi)_mm512_cvtne2ps_pbh(b, a));
        }
}

// Two f32 columns of 16 rows as pairs of bf16, to nearest with ties away from zero.
EDGEC_INLINE vi pairs(vf even, vf odd) {
    const vi half = viset(0x8000);
    const vi low = _mm512_srli_epi32(viadd(vcast_i(even), half), 16), high = viadd(vcast_i(odd), half);
    return _mm512_ternarylogic_epi32(low, high, viset((int32_t)0xffff0000u), 0xf8);  // low | high & mask
}

// Rows 16 v .. of a group -> bf16 [chunk][16 pairs of columns][16 rows][2], as a product's second tile is read.
EDGEC_NOINLINE void decode(const BitsShape &s, const uint8_t *codes, int64_t chunks, int v, uint16_t *to) {
    const uint16_t *h = (const uint16_t *)(codes + s.code_bytes(chunks));
    vf base = bits_centre(s, h, 16 * v), step[kBitsMost];
    for (int64_t j = 0; j < s.bits; ++j) {
        const vf scale = bits_scale(s, h, 16 * v, j);
        base = vsub(base, scale);
        step[j] = vadd(scale, scale);
    }
    for (int64_t c = 0; c < chunks; ++c, to += kTile) {
        vi bits[kBitsMost];  // of each plane: 16 rows of 32 columns
        for (int64_t j = 0; j < s.bits; ++j) {
            const uint8_t *p = codes + (j * chunks + c) * 256;
            const vi a = vbload(p), b = vbload(p + 64), d = vbload(p + 128), e = vbload(p + 192);
            const vi x = v < 2 ? _mm512_unpacklo_epi8(a, b) : _mm512_unpackhi_epi8(a, b);
            const vi y = v < 2 ? _mm512_unpacklo_epi8(d, e) : _mm512_unpackhi_epi8(d, e);
            bits[j] = v % 2 ? _mm512_unpackhi_epi16(x, y) : _mm512_unpacklo_epi16(x, y);
        }
        for (int half = 0; half < 2; ++half) {  // 16 columns at once, in registers
            vf weight[16];
#pragma GCC unroll 16
            for (int k = 0; k < 16; ++k) weight[k] = base;
            for (int64_t j = 0; j < s.bits; ++j) {
                const vi plane = _mm512_srli_epi32(bits[j], (unsigned)(16 * half));
#pragma GCC unroll 16
                for (int k = 0; k < 16; ++k) {
                    const vm set = _mm512_test_epi32_mask(plane, viset(1 << k));
                    weight[k] = _mm512_mask_add_ps(weight[k], set, weight[k], step[j]);
                }
            }
#pragma GCC unroll 8
            for (int k = 0; k < 16; k += 2)
                _mm512_storeu_si512(to + (8 * half + k / 2) * 32, pairs(weight[k], weight[k + 1]));
        }
    }
}

// out[16][64] += 16 rows of x times a tile's part of a group, both in `chunks` chunks.
EDGEC_INLINE void block_sums(const uint16_t *x, const uint16_t *w, int64_t chunks, float *out) {
    constexpr int64_t kStride = kBitsRows * (int64_t)sizeof(float);
    const int64_t part = chunks * kTile;
    _tile_loadd(0, out, kStride);
    _tile_loadd(1, out + 16, kStride);
    _tile_loadd(2, out + 32, kStride);
    _tile_loadd(3, out + 48, kStride);
    for (int64_t c = 0; c < part; c += kTile) {
        _tile_loadd(4, x + c, 64);
        _tile_loadd(5, w + c, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, w + part + c, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(5, w + 2 * part + c, 64);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(6, w + 3 * part + c, 64);
        _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, out, kStride);
    _tile_stored(1, out + 16, kStride);
    _tile_stored(2, out + 32, kStride);
    _tile_stored(3, out + 48, kStride);
}

// A group at a time: its weights stay in the first-level cache while all rows pass.
EDGEC_NOINLINE void sums(const BitsShape &s, const uint8_t *codes, const float *, const uint8_t *tables, float *out) {
    uint16_t *w = (uint16_t *)(tables + s.padded() * s.chunks() * 64);
    tiles_on();
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g);
        for (int v = 0; v < 4; ++v) decode(s, codes, chunks, v, w + v * chunks * kTile);
        fence();
        for (int64_t m = 0; m < s.padded(); m += 16)
            block_sums((const uint16_t *)tables + (m / 16 * s.chunks() + g * (s.group / 32)) * kTile, w, chunks,
                       out + m * kBitsRows);
        fence();
        codes += s.code_bytes(chunks) + s.scale_bytes();
    }
    _tile_release();
}

constexpr BitsMethod kTiles = {prepare, sums, {17, 17, 17, 17, 17, 17, 17, 17}};
static_assert(kTiles.within_scratch(), "bits_scratch() has no room for this");

// In the fast mode the first level's bytes beat tiles up to so many rows, by bits: to decode is most of the work there.
// Measured on an Intel Xeon with 480 MiB of L3 (benchmarks/bench_bits.cpp, 8 to 128 rows).
constexpr int64_t kFastRows[kBitsMost] = {24, 48, 48, 48, 64, 64, 64, 96};
static void run(const Args &a, int outputs, int64_t t0, int64_t t1, void *scratch) {
    const BitsShape s = bits_part(a, outputs, 0).s;
    const bool bytes = bits_fast(a, outputs) && s.m < kFastRows[s.bits - 1];
    bits_run(a, outputs, t0, t1, scratch, {vbmi::prepare, vbmi::sums, {}, &vbmi::kPaletteProducts}, bytes ? vbmi::kFastMany : kTiles);
}
void linear_bits(const Args &a, int64_t t0, int64_t t1, void *scratch) { run(a, 1, t0, t1, scratch); }
void linear_bits_split(const Args &a, int64_t t0, int64_t t1, void *scratch) { run(a, kBitsOutputs, t0, t1, scratch); }
}  // namespace amx
}  // namespace avx512
}  // namespace edgec

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
