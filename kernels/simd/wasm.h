// The SIMD vocabulary for WebAssembly's 128-bit vectors; meanings as in avx512.h. Included once, inside
// `namespace edgec::wasm`. Only instructions whose result the standard fixes: no relaxed ones, so nothing is fused.
constexpr int L = 4;
// Matrix product tile in rows and 16-wide panels (2 x 4 accumulators, 1 weight, 1 broadcast, 1 product: 11 of the 16
// registers that an engine has on x86), and the independent sums that hide the latency of an addition.
constexpr int kTileRows = 2, kTilePanels = 1, kSums = 8;
using vf = v128_t;
using vi = v128_t;
using vm = v128_t;  // all-ones or all-zero lanes

EDGEC_INLINE vf vset(float x) { return wasm_f32x4_splat(x); }
EDGEC_INLINE vf vload(const float *p) { return wasm_v128_load(p); }
EDGEC_INLINE vf vload_n(const float *p, int64_t n) {
    float t[4] = {};
    for (int64_t i = 0; i < n; ++i) t[i] = p[i];
    return wasm_v128_load(t);
}
EDGEC_INLINE void vstore(float *p, vf a) { wasm_v128_store(p, a); }
EDGEC_INLINE void vstore_n(float *p, vf a, int64_t n) {
    float t[4];
    wasm_v128_store(t, a);
    for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}
EDGEC_INLINE v128_t vload_u16_n_(const uint16_t *p, int64_t n) {
    uint16_t t[4] = {};
    for (int64_t i = 0; i < n; ++i) t[i] = p[i];
    return wasm_u32x4_load16x4(t);
}
// Half precision in software. The exponent is 112 too low, which a multiplication puts right, subnormals included;
// infinities and NaN then still lack the upper bits of theirs, and adding zero makes a NaN quiet.
EDGEC_INLINE vf vwiden_f16_(v128_t h) {
    const v128_t sign = wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_const_splat(0x8000)), 16);
    const v128_t rest = wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_const_splat(0x7fff)), 13);
    const v128_t x = wasm_f32x4_mul(rest, wasm_f32x4_const_splat(0x1p112f));
    const v128_t top = wasm_v128_and(wasm_i32x4_gt(rest, wasm_i32x4_const_splat(0x0f7fffff)),
                                     wasm_i32x4_const_splat(0x7f800000));
    return wasm_v128_or(wasm_f32x4_add(wasm_v128_or(x, top), wasm_f32x4_const_splat(0)), sign);
}
EDGEC_INLINE vf vload_f16(const uint16_t *p) { return vwiden_f16_(wasm_u32x4_load16x4(p)); }
EDGEC_INLINE vf vload_f16_n(const uint16_t *p, int64_t n) { return vwiden_f16_(vload_u16_n_(p, n)); }
EDGEC_INLINE vf vload_bf16(const uint16_t *p) { return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16); }
EDGEC_INLINE vf vload_bf16_n(const uint16_t *p, int64_t n) { return wasm_i32x4_shl(vload_u16_n_(p, n), 16); }
// A call, because the conversion is long and only caches and casts store halves.
EDGEC_NOINLINE void vstore_f16_n(uint16_t *p, vf a, int64_t n) {
    float t[4];
    wasm_v128_store(t, a);
    for (int64_t i = 0; i < n; ++i) p[i] = f32_to_f16(t[i]);
}
EDGEC_INLINE void vstore_f16(uint16_t *p, vf a) { vstore_f16_n(p, a, 4); }

EDGEC_INLINE vf vadd(vf a, vf b) { return wasm_f32x4_add(a, b); }
EDGEC_INLINE vf vsub(vf a, vf b) { return wasm_f32x4_sub(a, b); }
EDGEC_INLINE vf vmul(vf a, vf b) { return wasm_f32x4_mul(a, b); }
EDGEC_INLINE vf vdiv(vf a, vf b) { return wasm_f32x4_div(a, b); }
EDGEC_INLINE vf vfma(vf a, vf b, vf c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }
EDGEC_INLINE vf vfnma(vf a, vf b, vf c) { return wasm_f32x4_sub(c, wasm_f32x4_mul(a, b)); }
// pmin(a, b) is `b < a ? b : a`, hence the order; min and max proper return NaN when either operand is one.
EDGEC_INLINE vf vmin(vf a, vf b) { return wasm_f32x4_pmin(b, a); }
EDGEC_INLINE vf vmax(vf a, vf b) { return wasm_f32x4_pmax(b, a); }
EDGEC_INLINE vf vsqrt(vf a) { return wasm_f32x4_sqrt(a); }
EDGEC_INLINE vf vneg(vf a) { return wasm_f32x4_neg(a); }
EDGEC_INLINE vf vabs(vf a) { return wasm_f32x4_abs(a); }
EDGEC_INLINE vf vround(vf a) { return wasm_f32x4_nearest(a); }
EDGEC_INLINE vf vfloor(vf a) { return wasm_f32x4_floor(a); }
EDGEC_INLINE vf vupper_(vf a) { return wasm_i32x4_shuffle(a, a, 2, 3, 2, 3); }
EDGEC_INLINE vf vodd_(vf a) { return wasm_i32x4_shuffle(a, a, 1, 1, 3, 3); }
EDGEC_INLINE float vsum(vf a) {
    a = wasm_f32x4_add(a, vupper_(a));
    return wasm_f32x4_extract_lane(wasm_f32x4_add(a, vodd_(a)), 0);
}
EDGEC_INLINE float vhmax(vf a) {
    a = vmax(a, vupper_(a));
    return wasm_f32x4_extract_lane(vmax(a, vodd_(a)), 0);
}

EDGEC_INLINE vi viset(int32_t x) { return wasm_i32x4_splat(x); }
EDGEC_INLINE vi viand(vi a, vi b) { return wasm_v128_and(a, b); }
EDGEC_INLINE vi vixor(vi a, vi b) { return wasm_v128_xor(a, b); }
EDGEC_INLINE vi viadd(vi a, vi b) { return wasm_i32x4_add(a, b); }
EDGEC_INLINE vi visub(vi a, vi b) { return wasm_i32x4_sub(a, b); }
template <int S> EDGEC_INLINE vi vishl(vi a) { return wasm_i32x4_shl(a, S); }
template <int S> EDGEC_INLINE vi vishr(vi a) { return wasm_i32x4_shr(a, S); }
EDGEC_INLINE vi vtoi(vf a) { return wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(a)); }
EDGEC_INLINE vf vtof(vi a) { return wasm_f32x4_convert_i32x4(a); }
EDGEC_INLINE vi vibytes(const uint8_t *p) {
    return wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p)));
}
EDGEC_INLINE vi visigned(const uint8_t *p) {
    return wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p)));
}
EDGEC_INLINE vf vcast_f(vi a) { return a; }
EDGEC_INLINE vi vcast_i(vf a) { return a; }

EDGEC_INLINE vm vlt(vf a, vf b) { return wasm_f32x4_lt(a, b); }
EDGEC_INLINE vm vle(vf a, vf b) { return wasm_f32x4_le(a, b); }
EDGEC_INLINE vm veq(vf a, vf b) { return wasm_f32x4_eq(a, b); }
EDGEC_INLINE vm vgt(vf a, vf b) { return wasm_f32x4_gt(a, b); }
EDGEC_INLINE vf vsel(vm m, vf a, vf b) { return wasm_v128_bitselect(a, b, m); }

// Transposes the L x L matrix whose rows are a.
EDGEC_INLINE void vtranspose(vf *a) {
    const vf p = wasm_i32x4_shuffle(a[0], a[2], 0, 4, 1, 5), q = wasm_i32x4_shuffle(a[0], a[2], 2, 6, 3, 7);
    const vf r = wasm_i32x4_shuffle(a[1], a[3], 0, 4, 1, 5), s = wasm_i32x4_shuffle(a[1], a[3], 2, 6, 3, 7);
    a[0] = wasm_i32x4_shuffle(p, r, 0, 4, 1, 5);
    a[1] = wasm_i32x4_shuffle(p, r, 2, 6, 3, 7);
    a[2] = wasm_i32x4_shuffle(q, s, 0, 4, 1, 5);
    a[3] = wasm_i32x4_shuffle(q, s, 2, 6, 3, 7);
}
// Lane i of the result is the sum of a[i]; a holds L vectors.
EDGEC_INLINE vf vsums(const vf *a) {
    vf t[4] = {a[0], a[1], a[2], a[3]};
    vtranspose(t);
    return wasm_f32x4_add(wasm_f32x4_add(t[0], t[2]), wasm_f32x4_add(t[1], t[3]));
}

EDGEC_INLINE vi vtop_bytes(const uint8_t *p, int v) {
    const v128_t at = wasm_u32x4_const(0x00ffffff, 0x01ffffff, 0x02ffffff, 0x03ffffff);  // out of range: zero
    return wasm_i8x16_swizzle(wasm_v128_load32_zero(p + 4 * v), at);
}
EDGEC_INLINE vm vnegative(vi a) { return wasm_i32x4_shr(a, 31); }

EDGEC_INLINE void vquads(v128_t a, v128_t b, v128_t c, v128_t d, vi *to) {
    const v128_t u = wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const v128_t v = wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    const v128_t x = wasm_i8x16_shuffle(c, d, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const v128_t y = wasm_i8x16_shuffle(c, d, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    to[0] = wasm_i16x8_shuffle(u, x, 0, 8, 1, 9, 2, 10, 3, 11);
    to[1] = wasm_i16x8_shuffle(u, x, 4, 12, 5, 13, 6, 14, 7, 15);
    to[2] = wasm_i16x8_shuffle(v, y, 0, 8, 1, 9, 2, 10, 3, 11);
    to[3] = wasm_i16x8_shuffle(v, y, 4, 12, 5, 13, 6, 14, 7, 15);
}
EDGEC_INLINE void vrows(const uint8_t *p, vi *to) {
    vquads(wasm_v128_load(p), wasm_v128_load(p + 64), wasm_v128_load(p + 128), wasm_v128_load(p + 192), to);
}
EDGEC_INLINE vf vgather(const float *p, vi at) {
    return wasm_f32x4_make(p[wasm_i32x4_extract_lane(at, 0)], p[wasm_i32x4_extract_lane(at, 1)],
                           p[wasm_i32x4_extract_lane(at, 2)], p[wasm_i32x4_extract_lane(at, 3)]);
}
// There is no shuffle of four vectors: the values stay in memory.
using vtable = const float *;
EDGEC_INLINE vtable vtable16(const float *p) { return p; }
EDGEC_INLINE vf vpick(vtable t, vi at) { return vgather(t, wasm_v128_and(at, wasm_i32x4_const_splat(15))); }

constexpr int64_t kBytes = 16, kPrefetchStep = 1024;  // requests are no instructions here
using vb = v128_t;
EDGEC_INLINE vb vbload(const uint8_t *p) { return wasm_v128_load(p); }
EDGEC_INLINE vb vbzero() { return wasm_i32x4_const_splat(0); }
EDGEC_INLINE void vbstore(uint8_t *p, vb a) { wasm_v128_store(p, a); }
EDGEC_INLINE vb vbset16(int32_t x) { return wasm_i16x8_splat((int16_t)x); }
EDGEC_INLINE vi vbwords(vb a) { return a; }
EDGEC_INLINE vb vbytes(vi a) { return a; }
EDGEC_INLINE vb vbtable(const uint8_t *p) { return wasm_v128_load(p); }
EDGEC_INLINE vb vblookup(vb table, vb at) { return wasm_i8x16_swizzle(table, at); }
EDGEC_INLINE vb vblow(vb a) { return wasm_v128_and(a, wasm_i8x16_const_splat(15)); }
EDGEC_INLINE vb vbhigh(vb a) { return wasm_u8x16_shr(a, 4); }
EDGEC_INLINE vb vbadd(vb a, vb b) { return wasm_i8x16_add(a, b); }
template <int W> EDGEC_INLINE void vbwiden(vb a, vb b, vb *sum) {
    const v128_t w = wasm_i8x16_const_splat(W);
    sum[0] = wasm_i16x8_add(sum[0], wasm_i16x8_add(wasm_u16x8_extend_low_u8x16(a), wasm_u16x8_extmul_low_u8x16(b, w)));
    sum[1] = wasm_i16x8_add(sum[1], wasm_i16x8_add(wasm_u16x8_extend_high_u8x16(a), wasm_u16x8_extmul_high_u8x16(b, w)));
}
EDGEC_INLINE void vbrows(const vb *a, const vb *b, int32_t weights, vi *to) {
    const v128_t two = wasm_i32x4_splat(weights);
    for (int i = 0; i < 2; ++i) {
        to[2 * i] = wasm_i32x4_dot_i16x8(wasm_i16x8_shuffle(a[i], b[i], 0, 8, 1, 9, 2, 10, 3, 11), two);
        to[2 * i + 1] = wasm_i32x4_dot_i16x8(wasm_i16x8_shuffle(a[i], b[i], 4, 12, 5, 13, 6, 14, 7, 15), two);
    }
}
EDGEC_INLINE void vbpin(vb *) {}
EDGEC_INLINE void vstore_bytes(uint8_t *p, const vi *a) {
    const v128_t x = wasm_i16x8_narrow_i32x4(a[0], a[1]), y = wasm_i16x8_narrow_i32x4(a[2], a[3]);
    wasm_v128_store(p, wasm_u8x16_narrow_i16x8(x, y));
}
EDGEC_INLINE vf vfours(vf a) {
    a = wasm_f32x4_add(a, wasm_i32x4_shuffle(a, a, 1, 0, 3, 2));
    return wasm_f32x4_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
}

// Pairs of 16-bit integers and 8-bit ones: meanings as in avx512.h and avx2.h.
EDGEC_INLINE vi viload(const int32_t *p) { return wasm_v128_load(p); }
EDGEC_INLINE void vistore(int32_t *p, vi a) { wasm_v128_store(p, a); }
EDGEC_INLINE vi vpair(vi low, vi high) {
    return wasm_i16x8_shuffle(low, high, 0, 8, 2, 10, 4, 12, 6, 14);
}
EDGEC_INLINE void vdot16(vi *sum, vi a, vi b) { *sum = wasm_i32x4_add(*sum, wasm_i32x4_dot_i16x8(a, b)); }
EDGEC_INLINE vi vpairs(const int8_t *p) { return wasm_i16x8_load8x8(p); }
EDGEC_INLINE vi vpset(const int16_t *p) { return wasm_v128_load32_splat(p); }
EDGEC_INLINE void vwiden16(int16_t *to, const uint8_t *p, uint8_t flip) {
    const v128_t v = wasm_v128_xor(wasm_v128_load(p), wasm_i8x16_splat((int8_t)flip));
    wasm_v128_store(to, wasm_u16x8_extend_low_u8x16(v));
    wasm_v128_store(to + 8, wasm_u16x8_extend_high_u8x16(v));
}
EDGEC_INLINE void vpairs16(const uint8_t *p, const uint8_t *q, vi *to) {
    const v128_t a = wasm_v128_load(p), b = wasm_v128_load(q);
    const v128_t low = wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const v128_t high = wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    to[0] = wasm_u16x8_extend_low_u8x16(low);
    to[1] = wasm_u16x8_extend_high_u8x16(low);
    to[2] = wasm_u16x8_extend_low_u8x16(high);
    to[3] = wasm_u16x8_extend_high_u8x16(high);
}
EDGEC_INLINE void vstore_q8(uint8_t *p, const vf *a, vf hi, int zero, int lo, int flip) {
    vi v[4];
    for (int i = 0; i < 4; ++i) v[i] = vtoi(vmin(a[i], hi));
    const v128_t z = wasm_i16x8_splat((int16_t)zero);
    const v128_t r = wasm_u8x16_narrow_i16x8(wasm_i16x8_add_sat(wasm_i16x8_narrow_i32x4(v[0], v[1]), z),
                                             wasm_i16x8_add_sat(wasm_i16x8_narrow_i32x4(v[2], v[3]), z));
    wasm_v128_store(p, wasm_v128_xor(wasm_u8x16_max(r, wasm_i8x16_splat((int8_t)lo)), wasm_i8x16_splat((int8_t)flip)));
}

#include "no_bytes.h"

// An order of computation for the other instruction sets; here the engine's own compiler decides.
EDGEC_INLINE void vpin(vf *) {}
