// Values of test operands: random contents, storage encodings (written apart from the kernels' own), case building.
#include <math.h>
#include <string.h>

#include "harness.h"

namespace kt {

Group *g_groups = nullptr;
Group::Group(const char *k, void (*f)(Suite &)) : kernel(k), fill(f), next(g_groups) { g_groups = this; }

uint64_t Rng::next() {  // SplitMix64
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
int64_t Rng::range(int64_t lo, int64_t hi) { return lo + (int64_t)(next() % ((uint64_t)(hi - lo) + 1)); }
double Rng::uniform(double lo, double hi) { return lo + (hi - lo) * ((double)(next() >> 11) * 0x1p-53); }

bool is_float(uint8_t d) { return d == F32 || d == F16 || d == BF16; }

int64_t Operand::count() const {
    int64_t n = 1;
    for (int d = 0; d < view.rank; ++d) n *= view.dim[d];
    return n;
}

// Both 16-bit formats: `p` bits of fraction, exponents from `lo`, largest finite value below 2^hi.
double decode_half(uint16_t b, bool bf16) {
    const int p = bf16 ? 7 : 10, bias = bf16 ? 127 : 15, exp_max = bf16 ? 255 : 31;
    const int e = (b & 0x7fff) >> p, m = b & ((1 << p) - 1);
    double x = e == exp_max ? (m ? (double)NAN : (double)INFINITY)
               : e == 0     ? ldexp(m, 1 - bias - p)
                            : ldexp(m + (1 << p), e - bias - p);
    return (b & 0x8000) ? -x : x;
}

uint16_t encode_half(double x, bool bf16) {
    const int p = bf16 ? 7 : 10, bias = bf16 ? 127 : 15, exp_max = bf16 ? 255 : 31;
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return (uint16_t)(sign | (exp_max << p) | (1 << (p - 1)));
    x = fabs(x);
    int e = 0;
    if (!isinf(x)) frexp(x, &e);
    e = x == 0 || e - 1 < 1 - bias ? 1 - bias : e - 1;
    const double units =
        isinf(x) ? INFINITY : nearbyint(ldexp(x, p - e));  // to nearest even, carries into the exponent
    if (ldexp(units, e - p) >= ldexp(1, exp_max - bias)) return (uint16_t)(sign | (exp_max << p));
    return (uint16_t)(sign + (((e + bias - 1) << p) + (int)units));
}

double round_to(uint8_t dtype, double x) {
    if (dtype == F16 || dtype == BF16) return decode_half(encode_half(x, dtype == BF16), dtype == BF16);
    return (double)(float)x;
}

static void put(uint8_t *p, uint8_t dtype, double real, int64_t whole) {
    if (dtype == F32) {
        const float x = (float)real;
        memcpy(p, &x, 4);
    } else if (is_float(dtype)) {
        const uint16_t h = encode_half(real, dtype == BF16);
        memcpy(p, &h, 2);
    } else {
        memcpy(p, &whole, (size_t)dtype_size(dtype));  // little-endian
    }
}

static void get(const uint8_t *p, uint8_t dtype, double *real, int64_t *whole) {
    if (dtype == F32) {
        float x;
        memcpy(&x, p, 4);
        *real = x;
    } else if (is_float(dtype)) {
        uint16_t h;
        memcpy(&h, p, 2);
        *real = decode_half(h, dtype == BF16);
    } else if (dtype == I8) {
        *whole = (int8_t)*p;
    } else if (dtype == I32) {
        int32_t x;
        memcpy(&x, p, 4);
        *whole = x;
    } else if (dtype == I64) {
        memcpy(whole, p, 8);
    } else {
        *whole = *p;
    }
}

// Index of logical element e in storage.
static int64_t place(const Operand &o, int64_t e) {
    if (o.view.format == PLAIN) return e;
    const int64_t n_rows = o.dim(-2), k_cols = o.dim(-1), k = e % k_cols, n = e / k_cols % n_rows,
                  lead = e / k_cols / n_rows;
    return ((lead * ((n_rows + 15) / 16) + n / 16) * k_cols + k) * 16 + n % 16;
}

std::vector<uint8_t> encode(const Operand &o) {
    const int64_t size = dtype_size(o.view.dtype);
    std::vector<uint8_t> bytes((size_t)bytes_of(o.view));
    for (int64_t e = 0; e < o.count(); ++e)
        put(bytes.data() + place(o, e) * size, o.view.dtype, is_float(o.view.dtype) ? o.real[(size_t)e] : 0,
            is_float(o.view.dtype) ? 0 : o.whole[(size_t)e]);
    return bytes;
}

void decode(Operand *o, const uint8_t *bytes) {
    const int64_t size = dtype_size(o->view.dtype), n = o->count();
    if (is_float(o->view.dtype)) o->real.assign((size_t)n, 0);
    else o->whole.assign((size_t)n, 0);
    double real = 0;
    int64_t whole = 0;
    for (int64_t e = 0; e < n; ++e) {
        get(bytes + place(*o, e) * size, o->view.dtype, &real, &whole);
        if (is_float(o->view.dtype)) o->real[(size_t)e] = real;
        else o->whole[(size_t)e] = whole;
    }
}

static Operand make(uint8_t dtype, const Dims &dims, Format format) {
    Operand o;
    o.view.dtype = dtype;
    o.view.format = format;
    o.view.rank = (uint8_t)dims.size();
    for (size_t d = 0; d < dims.size(); ++d) o.view.dim[d] = dims[d];
    return o;
}

static void fill(Operand *o, Rng &rng, double lo, double hi) {
    const int64_t n = o->count();
    for (int64_t e = 0; e < n; ++e) {
        if (is_float(o->view.dtype)) o->real.push_back(round_to(o->view.dtype, rng.uniform(lo, hi)));
        else o->whole.push_back(rng.range((int64_t)lo, (int64_t)hi));
    }
}

Case &Case::in(uint8_t dtype, const Dims &dims, double lo, double hi) {
    op.push_back(make(dtype, dims, PLAIN));
    fill(&op.back(), *rng, lo, hi);
    return *this;
}

Case &Case::in(uint8_t dtype, const Dims &dims, Format format) {
    op.push_back(make(dtype, dims, format));
    if (is_float(dtype)) fill(&op.back(), *rng, -1, 1);
    else fill(&op.back(), *rng, dtype == U8 || dtype == BOOL ? 0 : -100, dtype == BOOL ? 1 : 100);
    return *this;
}

Case &Case::out(uint8_t dtype, const Dims &dims) { return in(dtype, dims); }

Case &Case::values(uint8_t dtype, const Dims &dims, const std::vector<double> &values) {
    op.push_back(make(dtype, dims, PLAIN));
    for (const double x : values) {
        if (is_float(dtype)) op.back().real.push_back(round_to(dtype, x));
        else op.back().whole.push_back((int64_t)x);
    }
    return *this;
}

Case &Case::none() {
    op.emplace_back();
    op.back().absent = true;
    return *this;
}

Case &Suite::add(const std::string &label) {
    cases.push_back(std::make_unique<Case>());
    Case &c = *cases.back();
    c.label = label;
    c.kernel = kernel;
    c.rng = &rng;
    return c;
}

}  // namespace kt
