// AVX-512 (x86-64-v4): every kernel that wider vectors serve, compiled in a target region so that the build needs no -m flags.
#include "../contract/bits.h"
#include "../contract/q8.h"
#include "../strided.h"

#if EDGEC_HAVE_AVX512
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
// gcc 12 warns of its own headers' deliberately undefined lanes once they are inlined here (gcc bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace edgec {
namespace avx512 {
#include "../simd/avx512.h"
#include "../simd/no_bytes.h"
#define EDGEC_MATH EDGEC_INLINE
#include "../simd/math.h"
#include "../generic/lanes.h"
#include "../generic/bits_scales.h"
#include "../generic/tables.h"
#include "../generic/lut.h"
#include "../generic/palette_turn.h"
#include "../generic/palette_bytes.h"
constexpr BitsMethod kFastLookups = kLookups;  // memory is the limit here
// Adding up pairs of 16-bit integers takes as long here as floats do: the weights are decoded.
constexpr BitsMethod kMany = kDecoded;
EDGEC_INLINE void vdot16(vi *sum, vi a, vi b) {
    vi t;
    __asm__ volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+v"(*sum), "=&v"(t) : "v"(a), "v"(b));
}
#include "../generic/all.h"
}  // namespace avx512
}  // namespace edgec

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
