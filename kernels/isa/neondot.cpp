// NEON with the dot products of Armv8.2 (FEAT_DotProd): many rows times weights of few bits in the fast mode, as 8-bit
// integers. All other kernels are those of NEON.
#include "../contract/bits.h"

#if EDGEC_HAVE_NEON
#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

namespace edgec {
namespace neon {
namespace dot {
#include "../simd/neon.h"
#include "../generic/bits_scales.h"

// What dot8.h wants: both sides are signed; sixteen bytes of x are four fours, of which an instruction takes one.
constexpr int kDot8Rows = 4, kDot8Vectors = 2, kDot8Fours = 4;
constexpr float kDot8Turn = 128;
EDGEC_INLINE vi vfours8(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
// As instructions: compilers before 2023 have the intrinsic only where the whole build may use it.
EDGEC_INLINE void vdot8_row(vi *sum, vi w, vi x, int four) {
    switch (four) {
        case 0: __asm__("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(*sum) : "w"(w), "w"(x)); break;
        case 1: __asm__("sdot %0.4s, %1.16b, %2.4b[1]" : "+w"(*sum) : "w"(w), "w"(x)); break;
        case 2: __asm__("sdot %0.4s, %1.16b, %2.4b[2]" : "+w"(*sum) : "w"(w), "w"(x)); break;
        default: __asm__("sdot %0.4s, %1.16b, %2.4b[3]" : "+w"(*sum) : "w"(w), "w"(x));
    }
}
EDGEC_INLINE vi dot8_spread(vi a) { return vmulq_n_s32(vandq_s32(a, vdupq_n_s32(255)), 0x01010101); }
EDGEC_INLINE vi vbadd_where(vi a, vi bits, vi mask, vi step) {
    const uint8x16_t set = vtstq_u8(vreinterpretq_u8_s32(bits), vreinterpretq_u8_s32(mask));
    const uint8x16_t add = vandq_u8(set, vreinterpretq_u8_s32(step));
    return vreinterpretq_s32_u8(vaddq_u8(vreinterpretq_u8_s32(a), add));
}
EDGEC_INLINE uint8x8_t low_bytes(vi a, vi b) {
    return vmovn_u16(vreinterpretq_u16_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
}
EDGEC_INLINE void vstore_fours(uint8_t *to, const vi *v) {
    const uint8x8x4_t eights = {{low_bytes(v[0], v[1]), low_bytes(v[2], v[3]), low_bytes(v[4], v[5]), low_bytes(v[6], v[7])}};
    vst4_u8(to, eights);
}
#include "../generic/dot8.h"
// Where lookups of 8 bits end, by bits: counted in instructions, not measured.
constexpr BitsMethod kFastMany = {dot8_prepare, dot8_sums, {17, 14, 8, 7, 6, 5, 5, 5}};
static_assert(kFastMany.within_scratch(), "bits_scratch() has no room for this");

void linear_bits(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const bool fast = bits_fast(a, 1);
    bits_run(a, 1, t0, t1, scratch, fast ? kFastLookups : kLookups, fast ? kFastMany : kDecoded);
}
void linear_bits_split(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const bool fast = bits_fast(a, kBitsOutputs);
    bits_run(a, kBitsOutputs, t0, t1, scratch, fast ? kFastLookups : kLookups, fast ? kFastMany : kDecoded);
}
}  // namespace dot
}  // namespace neon
}  // namespace edgec

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
