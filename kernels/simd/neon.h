// The SIMD vocabulary for aarch64 Advanced SIMD; meanings as in avx512.h. Included once, inside `namespace edgec::neon`.
constexpr int L = 4;
// Matrix product tile in rows and 16-wide panels (6 x 4 accumulators, 4 weights, 1 broadcast: 29 of 32 registers),
// and the independent sums a dot product needs to hide the latency of fma.
constexpr int kTileRows = 6, kTilePanels = 1, kSums = 16;
using vf = float32x4_t;
using vi = int32x4_t;
using vm = uint32x4_t;

EDGEC_INLINE vf vset(float x) { return vdupq_n_f32(x); }
EDGEC_INLINE vf vload(const float *p) { return vld1q_f32(p); }
EDGEC_INLINE vf vload_n(const float *p, int64_t n) {
    float t[4] = {};
    for (int64_t i = 0; i < n; ++i) t[i] = p[i];
    return vld1q_f32(t);
}
EDGEC_INLINE void vstore(float *p, vf a) { vst1q_f32(p, a); }
EDGEC_INLINE void vstore_n(float *p, vf a, int64_t n) {
    float t[4];
    vst1q_f32(t, a);
    for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}
EDGEC_INLINE uint16x4_t vload_u16_n_(const uint16_t *p, int64_t n) {
    uint16_t t[4] = {};
    for (int64_t i = 0; i < n; ++i) t[i] = p[i];
    return vld1_u16(t);
}
EDGEC_INLINE vf vload_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
EDGEC_INLINE vf vload_f16_n(const uint16_t *p, int64_t n) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vload_u16_n_(p, n)));
}
EDGEC_INLINE vf vload_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
EDGEC_INLINE vf vload_bf16_n(const uint16_t *p, int64_t n) {
    return vreinterpretq_f32_u32(vshll_n_u16(vload_u16_n_(p, n), 16));
}
EDGEC_INLINE void vstore_f16(uint16_t *p, vf a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
EDGEC_INLINE void vstore_f16_n(uint16_t *p, vf a, int64_t n) {
    uint16_t t[4];
    vstore_f16(t, a);
    for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}

EDGEC_INLINE vf vadd(vf a, vf b) { return vaddq_f32(a, b); }
EDGEC_INLINE vf vsub(vf a, vf b) { return vsubq_f32(a, b); }
EDGEC_INLINE vf vmul(vf a, vf b) { return vmulq_f32(a, b); }
EDGEC_INLINE vf vdiv(vf a, vf b) { return vdivq_f32(a, b); }
EDGEC_INLINE vf vfma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
EDGEC_INLINE vf vfnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
// Not vminq / vmaxq: those return NaN when either operand is one, the other instruction sets return b.
EDGEC_INLINE vf vmin(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
EDGEC_INLINE vf vmax(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
EDGEC_INLINE vf vsqrt(vf a) { return vsqrtq_f32(a); }
EDGEC_INLINE vf vneg(vf a) { return vnegq_f32(a); }
EDGEC_INLINE vf vabs(vf a) { return vabsq_f32(a); }
EDGEC_INLINE vf vround(vf a) { return vrndnq_f32(a); }
EDGEC_INLINE vf vfloor(vf a) { return vrndmq_f32(a); }
EDGEC_INLINE float vsum(vf a) { return vaddvq_f32(a); }
EDGEC_INLINE float vhmax(vf a) { return vmaxvq_f32(a); }

EDGEC_INLINE vi viset(int32_t x) { return vdupq_n_s32(x); }
EDGEC_INLINE vi viadd(vi a, vi b) { return vaddq_s32(a, b); }
EDGEC_INLINE vi visub(vi a, vi b) { return vsubq_s32(a, b); }
EDGEC_INLINE vi viand(vi a, vi b) { return vandq_s32(a, b); }
EDGEC_INLINE vi vixor(vi a, vi b) { return veorq_s32(a, b); }
template <int S> EDGEC_INLINE vi vishl(vi a) { return vshlq_n_s32(a, S); }
template <int S> EDGEC_INLINE vi vishr(vi a) { return vshrq_n_s32(a, S); }
EDGEC_INLINE vi vtoi(vf a) { return vcvtnq_s32_f32(a); }
EDGEC_INLINE vf vtof(vi a) { return vcvtq_f32_s32(a); }
EDGEC_INLINE uint8x8_t vfour_bytes_(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(four));
}
EDGEC_INLINE vi vibytes(const uint8_t *p) {
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vfour_bytes_(p)))));
}
EDGEC_INLINE vi visigned(const uint8_t *p) {
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(vfour_bytes_(p)))));
}
EDGEC_INLINE vf vcast_f(vi a) { return vreinterpretq_f32_s32(a); }
EDGEC_INLINE vi vcast_i(vf a) { return vreinterpretq_s32_f32(a); }

EDGEC_INLINE vm vlt(vf a, vf b) { return vcltq_f32(a, b); }
EDGEC_INLINE vm vle(vf a, vf b) { return vcleq_f32(a, b); }
EDGEC_INLINE vm veq(vf a, vf b) { return vceqq_f32(a, b); }
EDGEC_INLINE vm vgt(vf a, vf b) { return vcgtq_f32(a, b); }
EDGEC_INLINE vf vsel(vm m, vf a, vf b) { return vbslq_f32(m, a, b); }

// Lane i of the result is the sum of a[i]; a holds L vectors.
EDGEC_INLINE vf vsums(const vf *a) { return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])); }

// Transposes the L x L matrix whose rows are a.
EDGEC_INLINE void vtranspose(vf *a) {
    vf p = vzip1q_f32(a[0], a[2]), q = vzip2q_f32(a[0], a[2]), r = vzip1q_f32(a[1], a[3]), s = vzip2q_f32(a[1], a[3]);
    a[0] = vzip1q_f32(p, r);
    a[1] = vzip2q_f32(p, r);
    a[2] = vzip1q_f32(q, s);
    a[3] = vzip2q_f32(q, s);
}

EDGEC_INLINE vi vtop_bytes(const uint8_t *p, int v) {
    const uint32x4_t at = {0x00ffffff, 0x01ffffff, 0x02ffffff, 0x03ffffff};  // out of range: zero
    const uint8x16_t from = vreinterpretq_u8_u32(vaddq_u32(at, vdupq_n_u32((uint32_t)v << 26)));
    return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(p), from));
}
EDGEC_INLINE vm vnegative(vi a) { return vreinterpretq_u32_s32(vshrq_n_s32(a, 31)); }

EDGEC_INLINE void vquads(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d, vi *to) {
    const uint16x8_t u = vreinterpretq_u16_u8(vzip1q_u8(a, b)), v = vreinterpretq_u16_u8(vzip2q_u8(a, b));
    const uint16x8_t x = vreinterpretq_u16_u8(vzip1q_u8(c, d)), y = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    to[0] = vreinterpretq_s32_u16(vzip1q_u16(u, x));
    to[1] = vreinterpretq_s32_u16(vzip2q_u16(u, x));
    to[2] = vreinterpretq_s32_u16(vzip1q_u16(v, y));
    to[3] = vreinterpretq_s32_u16(vzip2q_u16(v, y));
}
EDGEC_INLINE void vrows(const uint8_t *p, vi *to) {
    vquads(vld1q_u8(p), vld1q_u8(p + 64), vld1q_u8(p + 128), vld1q_u8(p + 192), to);
}
using vtable = uint8x16x4_t;
EDGEC_INLINE vtable vtable16(const float *p) {
    const uint8_t *b = (const uint8_t *)p;
    return {{vld1q_u8(b), vld1q_u8(b + 16), vld1q_u8(b + 32), vld1q_u8(b + 48)}};
}
EDGEC_INLINE vf vpick(const vtable &t, vi at) {
    // The four bytes of lane value i lie at 4 i .. 4 i + 3.
    const vi from = vaddq_s32(vmulq_n_s32(vandq_s32(at, vdupq_n_s32(15)), 0x04040404), vdupq_n_s32(0x03020100));
    return vreinterpretq_f32_u8(vqtbl4q_u8(t, vreinterpretq_u8_s32(from)));
}
EDGEC_INLINE vf vgather(const float *p, vi at) {
    const float t[4] = {p[vgetq_lane_s32(at, 0)], p[vgetq_lane_s32(at, 1)], p[vgetq_lane_s32(at, 2)],
                        p[vgetq_lane_s32(at, 3)]};
    return vld1q_f32(t);
}

constexpr int64_t kBytes = 16, kPrefetchStep = 1024;
using vb = uint8x16_t;
EDGEC_INLINE vb vbload(const uint8_t *p) { return vld1q_u8(p); }
EDGEC_INLINE void vbstore(uint8_t *p, vb a) { vst1q_u8(p, a); }
EDGEC_INLINE vb vbset16(int32_t x) { return vreinterpretq_u8_u16(vdupq_n_u16((uint16_t)x)); }
EDGEC_INLINE vb vbzero() { return vdupq_n_u8(0); }
EDGEC_INLINE vi vbwords(vb a) { return vreinterpretq_s32_u8(a); }
EDGEC_INLINE vb vbytes(vi a) { return vreinterpretq_u8_s32(a); }
EDGEC_INLINE vb vbtable(const uint8_t *p) { return vld1q_u8(p); }
EDGEC_INLINE vb vblookup(vb table, vb at) { return vqtbl1q_u8(table, at); }
EDGEC_INLINE vb vblow(vb a) { return vandq_u8(a, vdupq_n_u8(15)); }
EDGEC_INLINE vb vbhigh(vb a) { return vshrq_n_u8(a, 4); }
EDGEC_INLINE vb vbadd(vb a, vb b) { return vaddq_u8(a, b); }
template <int W> EDGEC_INLINE void vbwiden(vb a, vb b, vb *sum) {
    uint16x8_t low = vaddw_u8(vreinterpretq_u16_u8(sum[0]), vget_low_u8(a));
    uint16x8_t high = vaddw_high_u8(vreinterpretq_u16_u8(sum[1]), a);
    low = W == 1 ? vaddw_u8(low, vget_low_u8(b)) : vmlal_u8(low, vget_low_u8(b), vdup_n_u8(W));
    high = W == 1 ? vaddw_high_u8(high, b) : vmlal_high_u8(high, b, vdupq_n_u8(W));
    sum[0] = vreinterpretq_u8_u16(low);
    sum[1] = vreinterpretq_u8_u16(high);
}
EDGEC_INLINE void vbrows(const vb *a, const vb *b, int32_t weights, vi *to) {
    const int16_t u = (int16_t)weights, v = (int16_t)(weights >> 16);
    for (int i = 0; i < 2; ++i) {
        const int16x8_t p = vreinterpretq_s16_u8(a[i]), q = vreinterpretq_s16_u8(b[i]);
        to[2 * i] = vmlal_n_s16(vmull_n_s16(vget_low_s16(p), u), vget_low_s16(q), v);
        to[2 * i + 1] = vmlal_high_n_s16(vmull_high_n_s16(p, u), q, v);
    }
}
EDGEC_INLINE void vbpin(vb *a) { __asm__("" : "+w"(*a)); }
EDGEC_INLINE void vstore_bytes(uint8_t *p, const vi *a) {
    const int16x8_t x = vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1])), y = vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3]));
    vst1q_u8(p, vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(x), vmovn_s16(y))));
}
EDGEC_INLINE vf vfours(vf a) {
    a = vpaddq_f32(a, a);
    return vpaddq_f32(a, a);
}

// Pairs of 16-bit integers and 8-bit ones: meanings as in avx512.h and avx2.h. Here the first of a vector's pairs fill
// its lower half and the second ones the upper: products of halves are added up in one instruction each.
EDGEC_INLINE vi viload(const int32_t *p) { return vld1q_s32(p); }
EDGEC_INLINE void vistore(int32_t *p, vi a) { vst1q_s32(p, a); }
EDGEC_INLINE vi vpair(vi low, vi high) {
    return vreinterpretq_s32_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high)));
}
EDGEC_INLINE void vdot16(vi *sum, vi a, vi b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    *sum = vmlal_high_s16(vmlal_s16(*sum, vget_low_s16(x), vget_low_s16(y)), x, y);
}
EDGEC_INLINE vi vpairs(const int8_t *p) {
    const int16x8_t a = vmovl_s8(vld1_s8(p));
    return vreinterpretq_s32_s16(vcombine_s16(vget_low_s16(vuzp1q_s16(a, a)), vget_low_s16(vuzp2q_s16(a, a))));
}
EDGEC_INLINE vi vpset(const int16_t *p) {
    return vreinterpretq_s32_s16(vcombine_s16(vdup_n_s16(p[0]), vdup_n_s16(p[1])));
}
EDGEC_INLINE void vwiden16(int16_t *to, const uint8_t *p, uint8_t flip) {
    const uint8x16_t v = veorq_u8(vld1q_u8(p), vdupq_n_u8(flip));
    vst1q_s16(to, vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(v))));
    vst1q_s16(to + 8, vreinterpretq_s16_u16(vmovl_high_u8(v)));
}
EDGEC_INLINE void vpairs16(const uint8_t *p, const uint8_t *q, vi *to) {
    for (int h = 0; h < 2; ++h) {
        const uint16x8_t a = vmovl_u8(vld1_u8(p + 8 * h)), b = vmovl_u8(vld1_u8(q + 8 * h));
        to[2 * h] = vreinterpretq_s32_u16(vcombine_u16(vget_low_u16(a), vget_low_u16(b)));
        to[2 * h + 1] = vreinterpretq_s32_u16(vcombine_u16(vget_high_u16(a), vget_high_u16(b)));
    }
}
EDGEC_INLINE void vstore_q8(uint8_t *p, const vf *a, vf hi, int zero, int lo, int flip) {
    int16x4_t v[4];
    for (int i = 0; i < 4; ++i) v[i] = vqmovn_s32(vtoi(vmin(a[i], hi)));
    const int16x8_t z = vdupq_n_s16((int16_t)zero);
    const uint8x16_t r = vcombine_u8(vqmovun_s16(vqaddq_s16(vcombine_s16(v[0], v[1]), z)),
                                     vqmovun_s16(vqaddq_s16(vcombine_s16(v[2], v[3]), z)));
    vst1q_u8(p, veorq_u8(vmaxq_u8(r, vdupq_n_u8((uint8_t)lo)), vdupq_n_u8((uint8_t)flip)));
}

#include "no_bytes.h"

// No code, but an order: *a is computed before this point, and memory is not read ahead of it.
EDGEC_INLINE void vpin(vf *a) { __asm__ volatile("" : "+w"(*a) : : "memory"); }
