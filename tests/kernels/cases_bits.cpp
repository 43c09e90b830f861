// linear_bits, linear_bits_split, conv2d_bits and gather_bits: weights of 1 to 8 bits, read back from the stored bytes as docs/format.md
// says where they are. Errors are root mean squares, as a part of that of sqrt(sum (w x)^2) over the outputs.
#include <string.h>

#include "reference.h"

using namespace kt;

namespace {

// vector: values of a palette's code, else 0; group: then the rows that share a table; wide: its tables are f32.
struct Bits {
    int64_t n, k, bits, group;
    bool uniform;
    int64_t vector = 0;
    bool wide = false;
    int64_t form() const { return vector ? (wide ? 80 : 64) + vector : uniform; }
    int64_t codes() const { return vector ? (k + vector - 1) / vector : k; }
    int64_t share() const { return group ? group : std::max<int64_t>(1, n); }
    int64_t table_values() const { return vector << bits; }
    int64_t code_bytes() const { return (n + 63) / 64 * ((codes() + 31) / 32) * bits * 256; }
    int64_t tables() const { return group ? (n + group - 1) / group : 1; }
};

int64_t bits_bytes(const Bits &b) {
    if (b.vector) return b.code_bytes() + b.tables() * b.table_values() * (b.wide ? 4 : 2);
    int64_t bytes = 0;
    for (int64_t k = 0; k < b.k; k += b.group) {
        const int64_t chunks = (std::min(b.group, b.k - k) + 31) / 32;
        bytes += b.bits * chunks * 256 + (b.uniform ? 2 : b.bits + 1) * 128;
    }
    return (b.n + 63) / 64 * bytes;
}

// Calls visit(code byte offset, bit in it, plane, n, k) and scale(offset of a scale, which, n, group) over the layout.
template <class Visit, class Scale> void walk(const Bits &b, Visit visit, Scale scale) {
    int64_t at = 0;
    for (int64_t tile = 0; tile * 64 < b.n; ++tile)
        for (int64_t first = 0; first < b.k; first += b.group) {
            const int64_t columns = std::min(b.group, b.k - first), chunks = (columns + 31) / 32;
            for (int64_t plane = 0; plane < b.bits; ++plane)
                for (int64_t chunk = 0; chunk < chunks; ++chunk)
                    for (int64_t byte = 0; byte < 4; ++byte)
                        for (int64_t p = 0; p < 64; ++p, ++at)
                            for (int64_t bit = 0; bit < 8; ++bit)
                                visit(at, bit, plane, 64 * tile + 16 * (p % 16 / 4) + 4 * (p / 16) + p % 4,
                                      first + 32 * chunk + 8 * byte + bit);
            for (int64_t which = 0; which < (b.uniform ? 2 : b.bits + 1); ++which)
                for (int64_t row = 0; row < 64; ++row, at += 2) scale(at, which, 64 * tile + row, first / b.group);
        }
}

// Calls visit(n, code column, first byte of its eight, distance to the next, number among the eight) for every code of a palette.
template <class Visit> void walk_palette(const Bits &b, Visit visit) {
    for (int64_t n = 0; n < b.n; ++n)
        for (int64_t c = 0; c < b.codes(); ++c) {
            const int64_t row = n % 64, p = row % 16 / 4 * 16 + row / 16 * 4 + row % 4;
            const int64_t chunk = n / 64 * ((b.codes() + 31) / 32) + c / 32;
            visit(n, c, chunk * b.bits * 256 + c % 32 / 8 * 64 + p, 256, c % 8);
        }
}

// Byte and bit of bit `j` of code `i` of eight.
std::pair<int64_t, int64_t> palette_place(int64_t bits, int64_t i, int64_t j) {
    static const char *const kThree[8] = {"000102", "030405", "101112", "131415", "202122", "232425", "060716", "172627"};
    if (bits == 2) return {i / 4, 2 * (i % 4) + j};
    if (bits == 3) return {kThree[i][2 * j] - '0', kThree[i][2 * j + 1] - '0'};
    if (bits == 4) return {i % 4, i < 4 ? j : 4 + j};
    return {j, i};
}

std::vector<double> random_palette(const Bits &b, Rng &rng) {
    std::vector<double> bytes((size_t)bits_bytes(b));
    walk_palette(b, [&](int64_t, int64_t, int64_t at, int64_t plane, int64_t bit) {
        for (int64_t j = 0; j < b.bits; ++j) {
            const auto place = palette_place(b.bits, bit, j);
            if (rng.range(0, 1)) bytes[(size_t)(at + place.first * plane)] += 1 << place.second;
        }
    });
    for (int64_t at = b.code_bytes(); at < bits_bytes(b);) {
        const auto wide = (float)rng.uniform(-1, 1);
        const uint16_t half = encode_half(wide, false);
        uint8_t raw[4];
        memcpy(raw, b.wide ? (const void *)&wide : &half, b.wide ? 4 : 2);
        for (int e = 0; e < (b.wide ? 4 : 2); ++e) bytes[(size_t)at++] = raw[e];
    }
    return bytes;
}

std::vector<double> decode_palette(const Bits &b, const std::vector<int64_t> &bytes) {
    std::vector<double> w((size_t)(b.n * b.k));
    walk_palette(b, [&](int64_t n, int64_t c, int64_t at, int64_t plane, int64_t bit) {
        int64_t code = 0;
        for (int64_t j = 0; j < b.bits; ++j) {
            const auto place = palette_place(b.bits, bit, j);
            code |= (bytes[(size_t)(at + place.first * plane)] >> place.second & 1) << j;
        }
        for (int64_t e = 0; e < b.vector && c * b.vector + e < b.k; ++e) {
            const int64_t i = n / b.share() * b.table_values() + code * b.vector + e;
            uint8_t raw[4];
            for (int64_t r = 0; r < (b.wide ? 4 : 2); ++r)
                raw[r] = (uint8_t)bytes[(size_t)(b.code_bytes() + i * (b.wide ? 4 : 2) + r)];
            float wide;
            memcpy(&wide, raw, 4);
            w[(size_t)(n * b.k + c * b.vector + e)] = b.wide ? wide : decode_half((uint16_t)(raw[0] | raw[1] << 8), false);
        }
    });
    return w;
}

// Random codes; scales as they come from fits: each plane about twice the one before, a centre near zero.
std::vector<double> random_bits(const Bits &b, Rng &rng) {
    if (b.vector) return random_palette(b, rng);
    std::vector<double> bytes((size_t)bits_bytes(b));
    std::vector<uint8_t> zero((size_t)((b.n + 63) / 64 * 64));
    for (uint8_t &z : zero) z = rng.range(0, 9) == 0;  // rows of nothing but zeros
    walk(b, [&](int64_t at, int64_t bit, int64_t, int64_t n, int64_t k) {
        if (n < b.n && k < b.k && rng.range(0, 1)) bytes[(size_t)at] += 1 << bit;
    }, [&](int64_t at, int64_t which, int64_t n, int64_t) {
        double v = 0.02 * rng.uniform(0.7, 1.4);
        if (b.uniform) v = which ? (double)rng.range(0, (1 << b.bits) - 1) : v;
        else v = which == b.bits ? v * rng.uniform(-2, 2) : v * (1 << which);
        const uint16_t h = n < b.n && !zero[(size_t)n] ? encode_half(v, false) : 0;
        bytes[(size_t)at] = h & 255;
        bytes[(size_t)at + 1] = h >> 8;
    });
    return bytes;
}

// [n][k] in double.
std::vector<double> decode_bits(const Bits &b, const std::vector<int64_t> &bytes) {
    if (b.vector) return decode_palette(b, bytes);
    const int64_t groups = (b.k + b.group - 1) / b.group;
    std::vector<double> w((size_t)(b.n * b.k)), scale((size_t)(b.n * groups * 9));
    walk(b, [](int64_t, int64_t, int64_t, int64_t, int64_t) {}, [&](int64_t at, int64_t which, int64_t n, int64_t g) {
        const auto h = (uint16_t)(bytes[(size_t)at] | bytes[(size_t)at + 1] << 8);
        if (n < b.n) scale[(size_t)((n * groups + g) * 9 + which)] = decode_half(h, false);
    });
    walk(b, [&](int64_t at, int64_t bit, int64_t plane, int64_t n, int64_t k) {
        if (n >= b.n || k >= b.k) return;
        const double *s = &scale[(size_t)((n * groups + k / b.group) * 9)];
        const int64_t set = bytes[(size_t)at] >> bit & 1;
        double &v = w[(size_t)(n * b.k + k)];
        if (b.uniform) v += s[0] * (double)(set << plane) - (plane ? 0 : s[0] * s[1]);
        else v += (set ? s[plane] : -s[plane]) + (plane ? 0 : s[b.bits]);
    }, [](int64_t, int64_t, int64_t, int64_t) {});
    return w;
}

struct Product {
    std::vector<Bits> b;  // of each output, absent ones included
    int64_t m;
    bool fast = false;  // 8 bits, in tables or products, where an instruction set has them
    int outputs() const { return (int)b.size(); }
};

// Output o before the epilogue; adds the squares of its terms to *squares.
std::vector<double> product(const Case &c, const Product &p, int o, double *squares) {
    const Bits &b = p.b[(size_t)o];
    const std::vector<double> w = decode_bits(b, c.op[(size_t)(p.outputs() + 1 + o)].whole);
    const std::vector<double> &x = c.op[(size_t)p.outputs()].real;
    std::vector<double> y((size_t)(p.m * b.n));
    for (int64_t e = 0; e < p.m * b.n; ++e)
        for (int64_t k = 0; k < b.k; ++k) {
            const double t = x[(size_t)(e / b.n * b.k + k)] * w[(size_t)(e % b.n * b.k + k)];
            y[(size_t)e] += t;
            *squares += t * t;
        }
    return y;
}

void finish(Case &c, const Product &p) {
    for (int o = 0; o < p.outputs(); ++o) {
        Operand &y = c.op[(size_t)o];
        if (y.absent) continue;
        double squares = 0;
        const std::vector<double> v = product(c, p, o, &squares);
        const Operand &bias = c.op[(size_t)(2 * p.outputs() + 1 + o)];
        const bool one = p.outputs() == 1;
        for (int64_t e = 0; e < p.m * p.b[(size_t)o].n; ++e) {
            const double s = v[(size_t)e] + (bias.absent ? 0 : bias.real[(size_t)(e % p.b[(size_t)o].n)]);
            const double add = one && !c.op[4].absent ? c.op[4].real[(size_t)e] : 0;
            y.real[(size_t)e] = one && c.i[1] ? ref_act(c.i[0], s + add, c.f[0], c.f[1])
                                              : ref_act(c.i[0], s, c.f[0], c.f[1]) + add;
        }
    }
}

// The bounds of docs/kernels.md; a mean over few outputs strays.
void bounds(Case &c, const Product &p) {
    int64_t least = INT64_MAX;
    for (int o = 0; o < p.outputs(); ++o) {
        double squares = 0;
        const int64_t values = p.m * p.b[(size_t)o].n;
        if (!c.op[(size_t)o].absent) {
            product(c, p, o, &squares);
            least = std::min(least, values);
        }
        // Bias and residual are rounded too.
        c.floors.push_back(std::max(sqrt(squares / (double)std::max<int64_t>(1, values)), 0.01));
    }
    c.scale = NORM;
    const double stray = 1 + 4 / sqrt((double)std::max<int64_t>(1, least));
    const int64_t bits = p.b[0].bits;
    // isa/avx512vbmi_palette.h
    const bool products = p.m == 1 && std::any_of(p.b.begin(), p.b.end(), [](const Bits &b) {
        return b.vector == 1 && b.bits <= 4 && (b.group == 0 || b.group >= b.n);
    });
    c.bound = [m = p.m, bits, palette = p.b[0].vector != 0, fast = p.fast, stray, products](Isa isa) {
        // Where the fast mode's bytes begin, and on amx end (isa/avx512vbmi.cpp, amx.cpp).
        const bool bytes = fast && m >= (bits == 1 ? 11 : bits == 2 ? 6 : 5);
        const int64_t tiles = bits == 1 ? 24 : bits < 5 ? 48 : bits < 8 ? 64 : 96;
        const bool few = m <= 16;
        if (palette || isa == SCALAR) return products && (isa == AVX512VBMI || isa == AMX) ? 5e-4 * stray : 1e-5;
        if (bytes && (isa == AVX512VBMI || (isa == AMX && m < tiles))) return 1.5e-2 * stray;
        if (fast && isa == NEONDOT) return 1.5e-2 * stray;
        if (!few && (isa == AVX512 || isa == NEON || isa == NEONDOT || isa == WASM)) return 1e-5;
        if (!few) return (isa == AMX ? 5e-3 : 1e-3) * stray;
        if (fast && (isa == AVX2 || isa == NEON || isa == WASM)) return 1.5e-2 * stray;
        return (isa == AVX512VBMI || isa == AMX ? 2e-4 : 1e-3) * stray;
    };
}

std::string form_text(const Bits &b) {
    return b.vector ? text(" palette of %lld wide %d", (long long)b.vector, b.wide) : "";
}

// features: 1 bias, 2 residual, 4 residual first, 8 outlier activations, 16 rows of zeros, 32 the parameter `fast`, 64
// that it is on.
void add_linear(Suite &s, int64_t m, const Bits &b, int64_t act, int features) {
    Case &c = s.add(text("m %lld n %lld k %lld bits %lld group %lld uniform %d act %lld features %d", (long long)m,
                         (long long)b.n, (long long)b.k, (long long)b.bits, (long long)b.group, b.uniform,
                         (long long)act, features) + form_text(b));
    c.out(F32, {m, b.n}).in(F32, {m, b.k}).values(U8, {bits_bytes(b)}, random_bits(b, s.rng));
    features & 1 ? c.in(F32, {b.n}) : c.none();
    features & 2 ? c.in(F32, {m, b.n}) : c.none();
    std::vector<double> &x = c.op[1].real;
    for (size_t e = 0; e < x.size(); ++e) {
        if (features & 8 && s.rng.range(0, 99) == 0) x[e] = round_to(F32, x[e] * s.rng.uniform(15, 40));
        if (features & 16 && (int64_t)e / b.k % 2 == 0) x[e] = 0;
    }
    std::vector<int64_t> ints = {act, (features & 4) != 0, b.n, b.bits, b.group, b.form()};
    if (features & 32) ints.push_back((features & 64) != 0);
    c.ints(ints).floats({-0.4f, 1.25f});
    const Product p = {{b}, m, (features & 96) == 96};
    c.reference = [p](Case &asked) { finish(asked, p); };
    bounds(c, p);
}

// Activations of about `size`. Where `nan`, row 1 holds one: all of its outputs are NaN, and no other row's.
void add_extreme(Suite &s, int64_t m, const Bits &b, double size, bool nan, bool fast = false) {
    add_linear(s, m, b, 0, fast ? 96 : 0);
    Case &c = *s.cases.back();
    c.label += text(" size %g nan %d", size, nan);
    std::vector<double> &x = c.op[1].real;
    for (double &v : x) v = round_to(F32, v * size);
    if (nan) x[(size_t)(b.k + s.rng.range(0, b.k - 1))] = NAN;
    // AMX takes products and sums below the smallest normal number (1.2e-38) for zero.
    c.bound = [size, tolerance = fast ? 0.03 : 0.01](Isa isa) { return isa == AMX && size < 1e-35 ? 0.1 : tolerance; };
    double squares = 0;
    product(c, {{b}, m}, 0, &squares);
    if (nan) c.scale = ROW;
    else c.floors = {sqrt(squares / (double)(m * b.n))};
}

// The largest sums there are: every activation `x`, every weight the largest level, so that integer sums of a group are
// as near to their limit as they can be. Nothing of it is rounded but the scales.
void add_largest(Suite &s, int64_t m, const Bits &b, double x, bool fast = false) {
    add_linear(s, m, b, 0, fast ? 96 : 0);
    Case &c = *s.cases.back();
    c.label += text(" all %g", x);
    for (double &v : c.op[1].real) v = x;
    std::vector<int64_t> &bytes = c.op[2].whole;
    walk(b, [&](int64_t at, int64_t bit, int64_t, int64_t n, int64_t k) {
        if (n < b.n && k < b.k) bytes[(size_t)at] |= 1 << bit;
    }, [&](int64_t at, int64_t which, int64_t, int64_t) {
        if (b.uniform && which) bytes[(size_t)at] = bytes[(size_t)at + 1] = 0;  // zero point 0
        else bytes[(size_t)at + 1] &= 127;                                      // centre above zero
    });
    c.scale = ROW;
    c.bound = [fast](Isa isa) { return isa == AMX || fast ? 1e-2 : 1e-3; };
}

// Activations of one sign but for a large one in each chunk, and weights with a mean: what roundings of one sign lose would
// add up. More than evenly spread errors make (docs/kernels.md).
void add_mean(Suite &s, int64_t m, const Bits &b, double outlier) {
    add_linear(s, m, b, 0, 96);
    Case &c = *s.cases.back();
    c.label += text(" mean, one of %g", outlier);
    std::vector<double> &x = c.op[1].real;
    for (size_t e = 0; e < x.size(); ++e)
        x[e] = round_to(F32, (int64_t)e % b.k % 32 == 5 ? (s.rng.range(0, 1) ? outlier : -outlier) : fabs(x[e]) + 0.01);
    std::vector<int64_t> &bytes = c.op[2].whole;
    walk(b, [](int64_t, int64_t, int64_t, int64_t, int64_t) {}, [&](int64_t at, int64_t which, int64_t n, int64_t) {
        if (n >= b.n) return;
        const double v = b.uniform ? (which ? 0 : 0.02) : which == b.bits ? 0.02 : 0.01 * (1 << which);
        const uint16_t h = encode_half(v, false);
        bytes[(size_t)at] = h & 255, bytes[(size_t)at + 1] = h >> 8;
    });
    c.floors.clear();
    bounds(c, {{b}, m, true});
    c.bound = [](Isa isa) { return isa == SCALAR || isa == AVX512 ? 5e-3 : 2.3e-2; };
}

// Uniform codes with whole zero points and activations that are whole multiples of a 4095th of their group's largest:
// where 16-bit integers are multiplied, these are exact. In the fast mode the same of 8 bits, a 127th and each 32 columns.
void add_whole(Suite &s, int64_t m, const Bits &b, bool fast = false) {
    add_linear(s, m, b, 0, fast ? 96 : 0);
    Case &c = *s.cases.back();
    c.label += " whole";
    const auto whole = [&](int64_t column) {
        const int64_t most = fast ? 127 : 4095;
        return (double)(column % (fast ? 32 : b.group) ? s.rng.range(-most, most) : most);
    };
    for (size_t e = 0; e < c.op[1].real.size(); ++e)
        c.op[1].real[e] = whole((int64_t)e % b.k);
    c.floors.clear();
    bounds(c, {{b}, m});
    // Sums of bytes are added to numbers that are larger than any of them.
    c.bound = [fast](Isa isa) { return isa == AMX ? 1e-2 : !fast ? 1e-5 : isa == AVX512VBMI || isa == NEONDOT ? 1e-4 : 1e-3; };
}

// A palette whose last value is a hundred times as large as the others, and not used.
void add_crest(Suite &s, const Bits &b) {
    add_linear(s, 1, b, 0, 0);
    Case &c = *s.cases.back();
    c.label += " one large value";
    std::vector<int64_t> &bytes = c.op[2].whole;
    const size_t size = b.wide ? 4 : 2;
    const float wide = 100;
    const uint16_t half = encode_half(wide, false);
    uint8_t raw[4];
    memcpy(raw, b.wide ? (const void *)&wide : &half, size);
    for (size_t e = 0; e < size; ++e) bytes[bytes.size() - size + e] = raw[e];
    for (int64_t at = 0; at < b.code_bytes(); ++at) bytes[(size_t)at] &= b.bits == 4 ? 0xee : 0x36;  // codes are even
    c.floors.clear();
    bounds(c, {{b}, 1});
    c.bound = [](Isa) { return 1e-5; };
}

Bits any_bits(Rng &r, int64_t n, int64_t k) {
    return {n, k, r.range(1, 8), (int64_t)32 << r.range(0, 2), r.range(0, 1) != 0};
}

}  // namespace

CASES(linear_bits) {
    for (int64_t bits = 1; bits <= 8; ++bits)
        for (const int64_t group : {32, 64, 128})
            for (const bool uniform : {false, true})
                for (const int64_t m : {1, 3, 17})
                    add_linear(s, m, {s.rng.range(1, 300), s.rng.range(1, 300), bits, group, uniform}, 0, 0);
    for (int64_t m = 1; m <= 40; ++m)
        add_linear(s, m, any_bits(s.rng, s.rng.range(1, 300), s.rng.range(1, 300)), m % 14, (int)s.rng.range(0, 31));
    for (const int64_t k : {1, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 160, 255, 256, 257})
        for (const int64_t m : {1, 2, 18}) add_linear(s, m, any_bits(s.rng, 70, k), 0, 1);
    for (const int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129})
        for (const int64_t m : {1, 16, 33}) add_linear(s, m, any_bits(s.rng, n, 100), 0, 3);
    for (const int64_t bits : {2, 3, 4})
        for (const int64_t m : {1, 4, 50}) add_linear(s, m, {512, 1111, bits, 128, bits == 3}, 0, 8);
    for (const int64_t m : {2, 5, 16, 19})
        for (int turn = 0; turn < 4; ++turn) add_extreme(s, m, any_bits(s.rng, 70, s.rng.range(1, 300)), 1, true);
    for (const double size : {1e-30, 1e-34, 1e-35, 1.4e-36})
        for (const int64_t m : {1, 3, 18}) add_extreme(s, m, {70, 300, 2, 128, false}, size, false);
    // The fast mode.
    for (int64_t bits = 1; bits <= 8; ++bits)
        for (const int64_t group : {32, 64, 128})
            for (const bool uniform : {false, true})
                for (const int64_t m : {1, 5})
                    add_linear(s, m, {s.rng.range(1, 300), s.rng.range(1, 300), bits, group, uniform}, 0, 96);
    for (int64_t m = 1; m <= 20; ++m)
        add_linear(s, m, any_bits(s.rng, s.rng.range(1, 300), s.rng.range(1, 300)), m % 14,
                   96 | (int)s.rng.range(0, 31));
    for (const int64_t k : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 160, 255, 256, 257})
        add_linear(s, k % 3 + 1, any_bits(s.rng, 70, k), 0, 96);
    for (const int64_t bits : {2, 3, 4})
        for (const int64_t m : {1, 4}) add_linear(s, m, {512, 1111, bits, 128, bits == 3}, 0, 96 | 8);
    for (const int64_t m : {1, 3, 20}) add_linear(s, m, any_bits(s.rng, 70, 200), 0, 32);
    for (const int64_t m : {2, 16}) add_extreme(s, m, any_bits(s.rng, 70, s.rng.range(1, 300)), 1, true, true);
    for (const double size : {1e-30, 1e-34, 1.4e-35}) add_extreme(s, 2, {70, 300, 2, 128, false}, size, false, true);
    for (int64_t bits = 1; bits <= 8; ++bits)
        for (const int64_t group : {32, 64, 128})
            for (const double x : {-1.0, 1.0}) add_largest(s, bits % 2 ? 18 : 16, {70, 300, bits, group, x > 0}, x);
    for (const int64_t bits : {2, 4, 8})
        for (const bool uniform : {false, true})
            for (const int64_t m : {3, 7, 20}) add_mean(s, m, {70, 1024, bits, 128, uniform}, bits == 4 ? 300 : 100);
    for (const int64_t bits : {1, 2, 4, 8}) add_whole(s, 16 + bits, {70, 333, bits, 128, true});
    // The fast mode, many rows.
    for (int64_t bits = 1; bits <= 8; ++bits)
        for (const int64_t group : {32, 64, 128})
            for (const bool uniform : {false, true})
                add_linear(s, 17 + (bits + group / 32) % 6, {s.rng.range(1, 300), s.rng.range(1, 300), bits, group, uniform}, 0, 96);
    for (int64_t m = 21; m <= 40; ++m)
        add_linear(s, m, any_bits(s.rng, s.rng.range(1, 300), s.rng.range(1, 300)), m % 14, 96 | (int)s.rng.range(0, 31));
    for (const int64_t k : {1, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 160, 255, 256, 257})
        add_linear(s, 17 + k % 2, any_bits(s.rng, 70, k), 0, 97);
    for (const int64_t n : {1, 15, 16, 17, 63, 64, 65, 129}) add_linear(s, 18, any_bits(s.rng, n, 100), 0, 99);
    for (const int64_t bits : {2, 3, 4, 8}) add_linear(s, 50, {512, 1111, bits, 128, bits == 3}, 0, 96 | 8);
    for (const int64_t m : {7, 16, 19, 22}) add_extreme(s, m, any_bits(s.rng, 70, s.rng.range(1, 300)), 1, true, true);
    for (const double size : {1e-30, 1e-34, 1.4e-35, 1e33}) add_extreme(s, 18, {70, 300, 2, 128, false}, size, false, true);
    for (int64_t bits = 1; bits <= 8; ++bits)
        for (const int64_t group : {32, 64, 128})
            for (const double x : {-1.0, 1.0}) add_largest(s, 18, {70, 300, bits, group, x > 0}, x, true);
    for (int64_t bits = 1; bits <= 8; ++bits) add_whole(s, 16 + bits, {70, 333, bits, 128, true}, true);
    for (int64_t bits = 1; bits <= 8; ++bits)
        for (const int64_t rows : {0, 1, 3, 8, 16, 64, 1000})
            for (const int64_t m : {1, 5, 17}) {
                const int64_t vector = s.rng.range(0, 1) ? 1 : s.rng.range(2, 8);
                add_linear(s, m, {s.rng.range(1, 300), s.rng.range(1, 300), bits, rows, false, vector, s.rng.range(0, 1) != 0},
                           (int64_t)s.cases.size() % 14, (int)s.rng.range(0, 31));
            }
    for (const int64_t k : {1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129, 255, 256, 257, 511, 512, 513})
        for (const int64_t vector : {1, 2, 4, 8}) add_linear(s, 1 + k % 3, {130, k, 4, 16, false, vector, false}, 0, 1);
    // One row of activations and one table of up to 4 bits; a table with one large value is decoded.
    for (int64_t bits = 3; bits <= 4; ++bits) add_crest(s, {130, 300, bits, 0, false, 1, bits == 4});
    for (int64_t bits = 1; bits <= 4; ++bits)
        for (const int64_t k : {1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255, 256, 257, 1111})
            add_linear(s, 1, {s.rng.range(1, 200), k, bits, k % 2 ? 0 : 1000, false, 1, k % 3 == 0}, k % 14,
                       (int)s.rng.range(0, 31));
    for (int64_t bits = 1; bits <= 4; ++bits)
        for (const double size : {1e-30, 1e-34, 1.4e-36, 1e30})
            add_extreme(s, 1, {70, 300, bits, 0, false, 1, true}, size, false);
    add_linear(s, 0, {70, 40, 3, 16, false, 1, true}, 0, 0);
    add_linear(s, 3, {0, 40, 3, 16, false, 1, true}, 0, 0);
    add_linear(s, 3, {0, 40, 3, 0, false, 1, true}, 0, 0);
    add_linear(s, 0, {70, 40, 2, 32, false}, 0, 0);
    add_linear(s, 3, {0, 40, 2, 32, false}, 0, 0);
}

CASES(linear_bits_split) {
    for (int turn = 0; turn < 60; ++turn) {
        const int64_t m = turn % 3 ? s.rng.range(1, 16) : s.rng.range(17, 40), k = s.rng.range(1, 300);
        const bool present[4] = {true, turn % 2 == 0, turn % 5 != 0, turn % 7 == 0};
        Product p = {{}, m, turn % 4 == 3};
    const bool palette = turn % 4 == 1;
        Bits b = any_bits(s.rng, 0, k);
        if (palette) b.group = turn % 8 == 1 ? 0 : s.rng.range(1, 70);
        std::vector<int64_t> ints = {turn % 14, b.group};
        for (const bool here : present) {
            b = {here ? s.rng.range(1, 150) : 0, k, s.rng.range(1, 8), b.group, s.rng.range(0, 1) != 0};
            if (palette) b.uniform = false, b.vector = s.rng.range(1, 4), b.wide = s.rng.range(0, 1) != 0;
            p.b.push_back(b);
            ints.insert(ints.end(), {here ? b.bits : 0, here ? b.form() : 0});
        }
        if (p.fast) ints.push_back(1);
        Case &c = s.add(text("m %lld k %lld turn %d", (long long)m, (long long)k, turn));
        for (int o = 0; o < 4; ++o) present[o] ? c.out(F32, {m, p.b[(size_t)o].n}) : c.none();
        c.in(F32, {m, k});
        for (int o = 0; o < 4; ++o) {
            const Bits &part = p.b[(size_t)o];
            present[o] ? c.values(U8, {bits_bytes(part)}, random_bits(part, s.rng)) : c.none();
        }
        for (int o = 0; o < 4; ++o) present[o] && (turn + o) % 3 ? c.in(F32, {p.b[(size_t)o].n}) : c.none();
        c.ints(ints).floats({-0.4f, 1.25f});
        c.reference = [p](Case &asked) { finish(asked, p); };
        bounds(c, p);
    }
}

CASES(conv2d_bits) {
    for (int turn = 0; turn < 90; ++turn) {
        Rng &r = s.rng;
        // kh kw sh sw pt pl dh dw; every third is pointwise, of which some read the image as it is
        std::vector<int64_t> i = {r.range(1, 5), r.range(1, 5), r.range(1, 3), r.range(1, 3), r.range(0, 4), r.range(0, 4),
                                  r.range(1, 3), r.range(1, 3)};
        const int64_t batch = r.range(1, 2), h = r.range(1, 14), w = r.range(1, 16), ci = r.range(1, 40);
        if (turn % 3 == 0) i = {1, 1, turn % 2 + 1, 1, 0, 0, 1, 1};
        const auto size = [](int64_t x, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
            return std::max<int64_t>(0, x + 2 * pad - (taps - 1) * dilation - 1 + stride) / stride;
        };
        Bits b = any_bits(r, r.range(1, 150), i[0] * i[1] * ci);
        if (turn % 4 == 3) b = {b.n, b.k, b.bits, turn % 8 == 3 ? 0 : r.range(1, 70), false, r.range(1, 4), turn % 3 == 0};
        const Dims y = {batch, size(h, i[0], i[2], i[4], i[6]), size(w, i[1], i[3], i[5], i[7]), b.n};
        Case &c = s.add(text("x %lldx%lldx%lldx%lld k %lldx%lld bits %lld group %lld uniform %d turn %d", (long long)batch,
                             (long long)h, (long long)w, (long long)ci, (long long)i[0], (long long)i[1],
                             (long long)b.bits, (long long)b.group, b.uniform, turn) + form_text(b));
        c.out(F32, y).in(F32, {batch, h, w, ci}).values(U8, {bits_bytes(b)}, random_bits(b, r));
        turn & 1 ? c.in(F32, {b.n}) : c.none();
        turn & 2 ? c.in(F32, y) : c.none();
        i.insert(i.end(), {turn % 14, turn >> 2 & 1, b.n, b.bits, b.group, b.form()});
        c.ints(i).floats({-0.4f, 1.25f});
        c.reference = [b](Case &asked) {
            const std::vector<double> weight = decode_bits(b, asked.op[2].whole);
            const std::vector<int64_t> &p = asked.i;
            const Operand &x = asked.op[1];
            for (int64_t e = 0; e < asked.op[0].count(); ++e) {
                const Dims at = ref_index(asked.op[0].view, e);
                double sum = asked.op[3].absent ? 0 : asked.op[3].real[(size_t)at[3]];
                for (int64_t k = 0; k < b.k; ++k) {
                    const int64_t channel = k % x.dim(3), tap = k / x.dim(3);
                    const int64_t row = at[1] * p[2] - p[4] + tap / p[1] * p[6], column = at[2] * p[3] - p[5] + tap % p[1] * p[7];
                    if (row < 0 || row >= x.dim(1) || column < 0 || column >= x.dim(2)) continue;
                    sum += weight[(size_t)(at[3] * b.k + k)] *
                           x.real[(size_t)(((at[0] * x.dim(1) + row) * x.dim(2) + column) * x.dim(3) + channel)];
                }
                const double add = asked.op[4].absent ? 0 : asked.op[4].real[(size_t)e];
                asked.op[0].real[(size_t)e] = p[9] ? ref_act(p[8], sum + add, asked.f[0], asked.f[1])
                                                   : ref_act(p[8], sum, asked.f[0], asked.f[1]) + add;
            }
        };
        // Root mean squares: of the weights about 0.02 2^bits, of x a half.
        c.scale = NORM;
        const double level = b.vector ? 0.5 : 0.02 * (double)(1 << b.bits);
        c.floor = std::max(0.5, level * sqrt((double)b.k) / 3);
        c.tolerance = 1e-5;
    }
}

CASES(gather_bits) {
    for (int turn = 0; turn < 120; ++turn) {
        Bits b = any_bits(s.rng, s.rng.range(1, 300), s.rng.range(1, 300));
        if (turn >= 80) b = {b.n, b.k, b.bits, turn % 3 ? s.rng.range(1, 100) : 0, false, s.rng.range(1, 8), turn % 2 != 0};
        const int64_t count = s.rng.range(0, 20);
        Case &c = s.add(text("n %lld k %lld bits %lld group %lld uniform %d turn %d", (long long)b.n, (long long)b.k,
                             (long long)b.bits, (long long)b.group, b.uniform, turn) + form_text(b));
        c.out(F32, {count, b.k}).values(U8, {bits_bytes(b)}, random_bits(b, s.rng));
        std::vector<double> index((size_t)count);
        for (double &i : index) i = (double)s.rng.range(-b.n, b.n - 1);
        c.fault = turn % 16 == 15 && count > 0;
        if (c.fault) index[0] = turn & 16 ? (double)b.n : (double)(-b.n - 1);
        c.values(turn & 1 ? I32 : I64, {count}, index);
        c.ints({b.n, b.k, b.bits, b.group, b.form()});
        c.reference = [b](Case &asked) {
            const std::vector<double> w = decode_bits(b, asked.op[1].whole);
            for (int64_t e = 0; e < asked.op[0].count(); ++e) {
                const int64_t i = asked.op[2].whole[(size_t)(e / b.k)];
                asked.op[0].real[(size_t)e] = w[(size_t)((i < 0 ? i + b.n : i) * b.k + e % b.k)];
            }
        };
        c.tolerance = 1e-6;
    }
}
