// AVX2+FMA+F16C: every kernel, compiled in a target region so that the build needs no -m flags.
#include "../contract/bits.h"
#include "../contract/q8.h"
#include "../strided.h"

#if EDGEC_HAVE_AVX2
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace edgec {
namespace avx2 {
#include "../simd/avx2.h"
#define EDGEC_MATH EDGEC_INLINE
#include "../simd/no_scale.h"
#include "../simd/math.h"
#include "../generic/lanes.h"
#include "../generic/bits_scales.h"
#include "../generic/tables.h"
#include "../generic/lut.h"
#include "../generic/palette_turn.h"
#include "../generic/palette_bytes.h"
constexpr BitsMethod kFastLookups = {tables_of<Code8>, lut_sums<Code8>};
#include "../generic/dot16.h"
// Where lookups end, by bits; measured on Zen 3 (benchmarks/bench_bits.cpp, 4 to 17 rows).
constexpr BitsMethod kMany = {dot_prepare, dot_sums, {17, 17, 17, 17, 17, 15, 13, 11}};
#include "../generic/all.h"
#include "../generic/narrow.h"
}  // namespace avx2
}  // namespace edgec

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
