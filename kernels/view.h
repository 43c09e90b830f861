// Small helpers shared by every kernel and ISA: storage conversions, view arithmetic, pieces of check functions.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernel.h"

// Which instruction sets this build contains. EDGEC_NO_x leaves one out (smaller binaries, tests of the fallback).
#if defined(__x86_64__) && !defined(EDGEC_NO_AVX2)
#define EDGEC_HAVE_AVX2 1
#else
#define EDGEC_HAVE_AVX2 0
#endif
#if defined(__x86_64__) && !defined(EDGEC_NO_AVX512)
#define EDGEC_HAVE_AVX512 1
#else
#define EDGEC_HAVE_AVX512 0
#endif
#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(EDGEC_NO_NEON)
#define EDGEC_HAVE_NEON 1
#else
#define EDGEC_HAVE_NEON 0
#endif
#if defined(__wasm_simd128__) && !defined(EDGEC_NO_WASM)
#define EDGEC_HAVE_WASM 1
#else
#define EDGEC_HAVE_WASM 0
#endif

// Types of weights in panels (1 << Dtype) that this build reads; a package leaves out those that its bundle lacks.
#if !defined(EDGEC_PANELS)
#define EDGEC_PANELS (1 << 1 | 1 << 2 | 1 << 3)
#endif
// The same of caches of keys and values: f32, f16, and codes of 8 and of 4 bits (kv_row() in contract/shapes.h).
#if !defined(EDGEC_CACHES)
#define EDGEC_CACHES (1 << 1 | 1 << 2 | 1 << 4 | 1 << 5)
#endif
// Whether activations but clamps (codes above 2 of docs/kernels.md) are there.
#if !defined(EDGEC_CURVED)
#define EDGEC_CURVED 1
#endif

// Always inlined: besides speed, this makes the compiler refuse a vector helper that is used outside its target region.
#define EDGEC_INLINE static inline __attribute__((always_inline, unused))
// For static functions that are to stay calls.
#define EDGEC_NOINLINE static __attribute__((noinline, unused))

namespace edgec {

EDGEC_INLINE constexpr bool reads_panels(uint8_t dtype) { return dtype < 31 && (EDGEC_PANELS) >> dtype & 1; }
EDGEC_INLINE constexpr bool reads_caches(uint8_t dtype) { return dtype < 31 && (EDGEC_CACHES) >> dtype & 1; }

EDGEC_INLINE int64_t imin(int64_t a, int64_t b) { return a < b ? a : b; }
EDGEC_INLINE int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }
EDGEC_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0, b > 0

EDGEC_INLINE float bits_to_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
EDGEC_INLINE uint32_t f32_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
EDGEC_INLINE float bf16_to_f32(uint16_t h) { return bits_to_f32((uint32_t)h << 16); }
// Round to nearest even; NaN stays NaN.
EDGEC_INLINE uint16_t f32_to_bf16(float f) {
    uint32_t u = f32_to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
// Exact. A subnormal half is a small integer times 2^-24; the rest only needs its exponent rebiased.
EDGEC_INLINE float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    if (e == 0) return bits_to_f32(sign | f32_to_bits((float)m * 5.9604644775390625e-8f));
    if (e == 31) return bits_to_f32(sign | 0x7f800000u | (m << 13) | (m ? 0x400000u : 0u));
    return bits_to_f32(sign | ((e + 112u) << 23) | (m << 13));
}
// Round to nearest even, overflow to infinity, as the hardware instructions do.
EDGEC_INLINE uint16_t f32_to_f16(float f) {
    uint32_t u = f32_to_bits(f), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (u < 0x38800000u) {
        // Subnormal: adding 0.5 aligns the value so that its last bit is 2^-24; the addition itself rounds.
        float r = bits_to_f32(u) + 0.5f;
        return (uint16_t)(sign | (f32_to_bits(r) - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1u);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

}  // namespace edgec
