// Sixteen rows at a time: vectors of 16 floats or integers, 8 doubles, on any instruction set.
// Included inside a namespace per instruction set after kWidth, the bytes of its registers, is defined. Every operation
// is rounded by itself (the library is built with -ffp-contract=off), so all instruction sets give the same bits.
constexpr int kLanes = 16;
constexpr int kParts = 4 * kLanes / kWidth;

#define LANES inline __attribute__((always_inline))
#define EACH for (int i = 0; i < kParts; ++i)

typedef float VecF __attribute__((vector_size(kWidth)));
typedef int32_t VecI __attribute__((vector_size(kWidth)));
typedef double VecD __attribute__((vector_size(kWidth)));

struct F {
    VecF v[kParts];
};
struct I {
    VecI v[kParts];
};
struct D {
    VecD v[kParts];
};

LANES F operator+(F a, const F &b) { EACH a.v[i] += b.v[i]; return a; }
LANES F operator-(F a, const F &b) { EACH a.v[i] -= b.v[i]; return a; }
LANES F operator*(F a, const F &b) { EACH a.v[i] *= b.v[i]; return a; }
LANES F operator/(F a, const F &b) { EACH a.v[i] /= b.v[i]; return a; }
LANES I operator+(I a, const I &b) { EACH a.v[i] += b.v[i]; return a; }
LANES I operator-(I a, const I &b) { EACH a.v[i] -= b.v[i]; return a; }
LANES I operator&(I a, const I &b) { EACH a.v[i] &= b.v[i]; return a; }
LANES I operator|(I a, const I &b) { EACH a.v[i] |= b.v[i]; return a; }
LANES I operator^(I a, const I &b) { EACH a.v[i] ^= b.v[i]; return a; }
LANES I operator<<(I a, int by) { EACH a.v[i] <<= by; return a; }
LANES I operator>>(I a, int by) { EACH a.v[i] >>= by; return a; }
LANES D operator+(D a, const D &b) { EACH a.v[i] += b.v[i]; return a; }
LANES D operator*(D a, const D &b) { EACH a.v[i] *= b.v[i]; return a; }
// Masks: -1 where true.
LANES I operator>(const F &a, const F &b) { I m; EACH m.v[i] = (VecI)(a.v[i] > b.v[i]); return m; }
LANES I operator<(const F &a, const F &b) { return b > a; }
LANES I operator==(const F &a, const F &b) { I m; EACH m.v[i] = (VecI)(a.v[i] == b.v[i]); return m; }
LANES F pick(const I &m, const F &a, F b) { EACH b.v[i] = m.v[i] ? a.v[i] : b.v[i]; return b; }
LANES I pick(const I &m, const I &a, I b) { EACH b.v[i] = m.v[i] ? a.v[i] : b.v[i]; return b; }
LANES F min(const F &a, const F &b) { return pick(a < b, a, b); }
LANES F max(const F &a, const F &b) { return pick(a > b, a, b); }

LANES F splat(float x) { F f; EACH f.v[i] = x - VecF{}; return f; }
LANES I splat(int32_t x) { I f; EACH f.v[i] = x + VecI{}; return f; }
LANES I bits(const F &a) { I r; EACH r.v[i] = (VecI)a.v[i]; return r; }
LANES F floats(const I &a) { F r; EACH r.v[i] = (VecF)a.v[i]; return r; }
LANES F load(const float *p) { F f; memcpy(&f, p, sizeof f); return f; }
LANES D load(const double *p) { D f; memcpy(&f, p, sizeof f); return f; }
LANES void store(float *p, const F &f) { memcpy(p, &f, sizeof f); }
LANES void store(int32_t *p, const I &f) { memcpy(p, &f, sizeof f); }
LANES I load(const int32_t *p) { I f; memcpy(&f, p, sizeof f); return f; }
LANES F abs(const F &a) { return floats(bits(a) & splat(0x7fffffff)); }
LANES bool any(const I &m) {
    VecI all = m.v[0];
    for (int i = 1; i < kParts; ++i) all |= m.v[i];
    int32_t lane[kWidth / 4], found = 0;
    memcpy(lane, &all, sizeof all);
    for (int32_t x : lane) found |= x;
    return found != 0;
}

// To the nearest integer, ties to even; |x| < 2^22.
LANES F nearest(const F &x) { return x + splat(12582912.0f) - splat(12582912.0f); }
LANES F real(const I &x) { return floats(x | splat(0x4b000000)) - splat(8388608.0f); }  // 0 <= x < 2^23
LANES I integer(const F &x) { return bits(x + splat(12582912.0f)) - splat(0x4b400000); }

// To the nearest float16, ties to even, saturating.
LANES F half(const F &x) {
    I u = bits(x), sign = u & splat((int32_t)0x80000000), size = u ^ sign;
    F small = floats(size) + splat(0.5f) - splat(0.5f);  // steps of 2^-24
    I rounded = (size + splat(0xfff) + ((size >> 13) & splat(1))) & splat(~0x1fff);
    F normal = min(floats(rounded), splat(65504.0f));
    return floats(bits(pick(floats(size) < splat(6.103515625e-05f), small, normal)) | sign);
}

// x where bit `bit` of the code is set, else -x.
LANES F signed_by(const I &codes, int bit, const F &x) {
    return floats(bits(x) ^ (((codes >> bit) ^ splat(1)) << 31));
}
