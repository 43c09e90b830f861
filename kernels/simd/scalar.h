// The SIMD vocabulary in portable C: four lanes of the compilers' own vector type, no intrinsics; meanings as in
// avx512.h. It is the fallback of every build and the reference of the self-test. Included once, in `edgec::scalar`.
constexpr int L = 4;
// Matrix product tile in rows and 16-wide panels (2 x 4 accumulators, 1 weight, 1 broadcast: 10 of the 16 registers that SSE2 has),
// and the independent sums a dot product needs to hide the latency of fma.
constexpr int kTileRows = 2, kTilePanels = 1, kSums = 8;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef int32_t vm __attribute__((vector_size(16)));  // all-ones or all-zero lanes

EDGEC_INLINE vf vset(float x) { return vf{x, x, x, x}; }
EDGEC_INLINE vi viset(int32_t x) { return vi{x, x, x, x}; }
EDGEC_INLINE vf vload(const float *p) {
    vf a;
    memcpy(&a, p, 16);
    return a;
}
EDGEC_INLINE vf vload_n(const float *p, int64_t n) {
    vf a = vset(0);
    for (int64_t i = 0; i < n; ++i) a[i] = p[i];
    return a;
}
EDGEC_INLINE void vstore(float *p, vf a) { memcpy(p, &a, 16); }
EDGEC_INLINE void vstore_n(float *p, vf a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = a[i];
}
// Conversions in software are long: as calls they keep every half-precision loop small.
EDGEC_NOINLINE vf vload_f16_n(const uint16_t *p, int64_t n) {
    vf a = vset(0);
    for (int64_t i = 0; i < n; ++i) {
        uint16_t h;  // scales between codes of a byte need not lie at even addresses
        memcpy(&h, p + i, 2);
        a[i] = f16_to_f32(h);
    }
    return a;
}
EDGEC_INLINE vf vload_f16(const uint16_t *p) { return vload_f16_n(p, 4); }
EDGEC_INLINE vf vload_bf16_n(const uint16_t *p, int64_t n) {
    vf a = vset(0);
    for (int64_t i = 0; i < n; ++i) a[i] = bf16_to_f32(p[i]);
    return a;
}
EDGEC_INLINE vf vload_bf16(const uint16_t *p) { return vload_bf16_n(p, 4); }
EDGEC_NOINLINE void vstore_f16_n(uint16_t *p, vf a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = f32_to_f16(a[i]);
}
EDGEC_INLINE void vstore_f16(uint16_t *p, vf a) { vstore_f16_n(p, a, 4); }

EDGEC_INLINE vf vcast_f(vi a) { return (vf)a; }
EDGEC_INLINE vi vcast_i(vf a) { return (vi)a; }
EDGEC_INLINE vm vlt(vf a, vf b) { return (vm)(a < b); }
EDGEC_INLINE vm vle(vf a, vf b) { return (vm)(a <= b); }
EDGEC_INLINE vm veq(vf a, vf b) { return (vm)(a == b); }
EDGEC_INLINE vm vgt(vf a, vf b) { return (vm)(a > b); }
EDGEC_INLINE vf vsel(vm m, vf a, vf b) { return (vf)(((vi)a & m) | ((vi)b & ~m)); }

EDGEC_INLINE vf vadd(vf a, vf b) { return a + b; }
EDGEC_INLINE vf vsub(vf a, vf b) { return a - b; }
EDGEC_INLINE vf vmul(vf a, vf b) { return a * b; }
EDGEC_INLINE vf vdiv(vf a, vf b) { return a / b; }
EDGEC_INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; }
EDGEC_INLINE vf vfnma(vf a, vf b, vf c) { return c - a * b; }
EDGEC_INLINE vf vmin(vf a, vf b) { return vsel(vlt(a, b), a, b); }
EDGEC_INLINE vf vmax(vf a, vf b) { return vsel(vgt(a, b), a, b); }
EDGEC_INLINE vf vsqrt(vf a) { return vf{sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
EDGEC_INLINE vf vneg(vf a) { return -a; }
EDGEC_INLINE vf vabs(vf a) { return (vf)((vi)a & viset(0x7fffffff)); }
// Adding and taking away 2^23 drops the fraction, to nearest even; larger magnitudes are whole already.
EDGEC_INLINE vf vround(vf a) {
    vf big = vset(8388608.0f), m = vabs(a);
    vf r = (m + big) - big;
    r = (vf)((vi)r | ((vi)a & viset((int32_t)0x80000000u)));
    return vsel(vlt(m, big), r, a);
}
EDGEC_INLINE vf vfloor(vf a) {
    vf r = vround(a);
    return r - vsel(vgt(r, a), vset(1.0f), vset(0.0f));
}
EDGEC_INLINE float vsum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
EDGEC_INLINE float vhmax(vf a) {
    float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
    return x > y ? x : y;
}

typedef uint32_t vu_ __attribute__((vector_size(16)));  // integer lanes wrap around, which signed ones may not
EDGEC_INLINE vi viadd(vi a, vi b) { return (vi)((vu_)a + (vu_)b); }
EDGEC_INLINE vi visub(vi a, vi b) { return (vi)((vu_)a - (vu_)b); }
EDGEC_INLINE vi viand(vi a, vi b) { return a & b; }
EDGEC_INLINE vi vixor(vi a, vi b) { return a ^ b; }
template <int S> EDGEC_INLINE vi vishl(vi a) { return (vi)((vu_)a << S); }
template <int S> EDGEC_INLINE vi vishr(vi a) { return a >> S; }
EDGEC_INLINE vi vtoi(vf a) {
    vf r = vround(a);
    return vi{(int32_t)r[0], (int32_t)r[1], (int32_t)r[2], (int32_t)r[3]};
}
EDGEC_INLINE vf vtof(vi a) { return vf{(float)a[0], (float)a[1], (float)a[2], (float)a[3]}; }
// L bytes as 32-bit integers, and L signed ones.
EDGEC_INLINE vi vibytes(const uint8_t *p) { return vi{p[0], p[1], p[2], p[3]}; }
EDGEC_INLINE vi visigned(const uint8_t *p) { return vi{(int8_t)p[0], (int8_t)p[1], (int8_t)p[2], (int8_t)p[3]}; }

// Lane i of the result is the sum of a[i]; a holds L vectors.
EDGEC_INLINE vf vsums(const vf *a) { return vf{vsum(a[0]), vsum(a[1]), vsum(a[2]), vsum(a[3])}; }

// Transposes the L x L matrix whose rows are a.
EDGEC_INLINE void vtranspose(vf *a) {
    for (int i = 0; i < L; ++i)
        for (int j = 0; j < i; ++j) {
            float t = a[i][j];
            a[i][j] = a[j][i];
            a[j][i] = t;
        }
}

EDGEC_INLINE vi vtop_bytes(const uint8_t *p, int v) {
    p += 4 * v;
    return (vi)(vu_{p[0], p[1], p[2], p[3]} << 24);
}
EDGEC_INLINE vm vnegative(vi a) { return a >> 31; }

EDGEC_INLINE void vrows(const uint8_t *p, vi *to) {
    for (int v = 0; v < 4; ++v, p += 4)
        for (int e = 0; e < 4; ++e)
            to[v][e] = (int32_t)(p[e] | (uint32_t)p[64 + e] << 8 | (uint32_t)p[128 + e] << 16 | (uint32_t)p[192 + e] << 24);
}
using vtable = const float *;
EDGEC_INLINE vtable vtable16(const float *p) { return p; }
EDGEC_INLINE vf vgather(const float *p, vi at) { return vf{p[at[0]], p[at[1]], p[at[2]], p[at[3]]}; }
EDGEC_INLINE vf vpick(vtable t, vi at) { return vgather(t, at & viset(15)); }

// Pairs of 16-bit integers and 8-bit ones: meanings as in avx512.h and avx2.h.
EDGEC_INLINE vi viload(const int32_t *p) {
    vi a;
    memcpy(&a, p, 16);
    return a;
}
EDGEC_INLINE void vistore(int32_t *p, vi a) { memcpy(p, &a, 16); }
EDGEC_INLINE vi vpair(vi low, vi high) { return (vi)(((vu_)low & 0xffffu) | (vu_)high << 16); }
EDGEC_INLINE vi vlower_(vi a) { return (vi)((vu_)a << 16) >> 16; }
EDGEC_INLINE void vdot16(vi *sum, vi a, vi b) {
    *sum = viadd(*sum, viadd(vlower_(a) * vlower_(b), (a >> 16) * (b >> 16)));
}
EDGEC_INLINE vi vpairs(const int8_t *p) { return vpair(vi{p[0], p[2], p[4], p[6]}, vi{p[1], p[3], p[5], p[7]}); }
EDGEC_INLINE vi vpset(const int16_t *p) { return vpair(viset(p[0]), viset(p[1])); }
EDGEC_INLINE void vwiden16(int16_t *to, const uint8_t *p, uint8_t flip) {
    for (int i = 0; i < 16; ++i) to[i] = (int16_t)(p[i] ^ flip);
}
EDGEC_INLINE void vpairs16(const uint8_t *p, const uint8_t *q, vi *to) {
    for (int i = 0; i < 4; ++i, p += 4, q += 4)
        to[i] = vi{p[0] | q[0] << 16, p[1] | q[1] << 16, p[2] | q[2] << 16, p[3] | q[3] << 16};
}
EDGEC_INLINE void vstore_q8(uint8_t *p, const vf *a, vf hi, int zero, int lo, int flip) {
    for (int i = 0; i < 4; ++i) {
        const vi v = vtoi(vmax(vmin(a[i], hi), vset((float)(lo - zero))));
        for (int j = 0; j < 4; ++j) *p++ = (uint8_t)((v[j] + zero) ^ flip);
    }
}

#include "no_bytes.h"

// An order of computation for the other instruction sets; portable code leaves that to the compiler.
EDGEC_INLINE void vpin(vf *) {}
