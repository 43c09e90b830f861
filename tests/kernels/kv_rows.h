// Rows of a key/value cache of codes, written from docs/format.md: f32 arithmetic one number at a time.
#pragma once
#include "reference.h"

namespace kt {

inline int64_t kv_bytes(uint8_t dtype, int64_t d) {
    if (dtype == I8) return 2 + d;
    int64_t bytes = 0;
    for (int64_t c = 0; c < d; c += 32) bytes += 4 + (std::min<int64_t>(32, d - c) + 1) / 2;
    return bytes;
}
// Elements of a row of d numbers in a cache of any type.
inline int64_t kv_elements(uint8_t dtype, int64_t d) { return is_float(dtype) ? d : kv_bytes(dtype, d); }

inline void kv_put_half(std::vector<uint8_t> *to, double x) {
    const uint16_t bits = encode_half(x, false);
    to->push_back((uint8_t)bits);
    to->push_back((uint8_t)(bits >> 8));
}
inline double kv_half(const uint8_t *p) { return decode_half((uint16_t)(p[0] | p[1] << 8), false); }

inline std::vector<uint8_t> kv_encode(uint8_t dtype, const double *x, int64_t d) {
    std::vector<uint8_t> row;
    const bool four = dtype == U8;
    for (int64_t c = 0, n; c < d; c += n) {
        n = four ? std::min<int64_t>(32, d - c) : d;
        float low = (float)x[c], high = low, most = 65504;
        bool finite = true;
        for (int64_t j = c; j < c + n; ++j) {
            low = std::min(low, (float)x[j]), high = std::max(high, (float)x[j]);
            finite &= isfinite(x[j]) != 0;
        }
        const float start = four ? (float)round_to(F16, std::max(-most, std::min(most, low))) + 0.0f : 0;
        const float range = four ? std::max(0.0f, high - start) / 15.0f : std::max(high, -low) / 127.0f + 0.0f;
        const float unit = (float)round_to(F16, std::min(most, range)), step = std::max(unit, (float)ldexp(1, -24));
        kv_put_half(&row, finite ? (double)unit : (double)NAN);
        if (four) kv_put_half(&row, finite ? (double)start : 0);
        std::vector<int> code;
        for (int64_t j = c; j < c + n; ++j) {
            const float q = finite ? nearbyintf(((float)x[j] - start) / step) : 0;
            code.push_back(!finite ? 0 : (int)(four ? std::max(0.0f, std::min(15.0f, q)) : std::max(-127.0f, std::min(127.0f, q))));
        }
        if (!four)
            for (const int v : code) row.push_back((uint8_t)v);
        else
            for (int64_t j = 0; j < (n + 1) / 2; ++j)
                row.push_back((uint8_t)(code[(size_t)j] | (j + (n + 1) / 2 < n ? code[(size_t)(j + (n + 1) / 2)] << 4 : 0)));
    }
    return row;
}

inline std::vector<double> kv_decode(uint8_t dtype, const uint8_t *row, int64_t d) {
    std::vector<double> x((size_t)d);
    if (dtype == I8) {
        for (int64_t j = 0; j < d; ++j) x[(size_t)j] = kv_half(row) * (int8_t)row[2 + j];
        return x;
    }
    for (int64_t c = 0; c < d; c += 32) {
        const int64_t n = std::min<int64_t>(32, d - c), half = (n + 1) / 2;
        for (int64_t j = 0; j < n; ++j) {
            const int code = j < half ? row[4 + j] & 15 : row[4 + j - half] >> 4;
            x[(size_t)(c + j)] = kv_half(row) * code + kv_half(row + 2);
        }
        row += 4 + half;
    }
    return x;
}

// Byte e of an operand of I8 or U8, and the other way.
inline uint8_t kv_byte(const Operand &o, int64_t e) { return (uint8_t)o.whole[(size_t)e]; }
inline void kv_set_byte(Operand *o, int64_t e, uint8_t byte) {
    o->whole[(size_t)e] = o->view.dtype == I8 ? (int64_t)(int8_t)byte : (int64_t)byte;
}
// Number j of row e of a cache of any type.
inline std::vector<double> kv_row_of(const Operand &o, int64_t e, int64_t d) {
    const int64_t width = o.dim(2);
    if (is_float(o.view.dtype)) return {o.real.begin() + e * width, o.real.begin() + e * width + d};
    std::vector<uint8_t> row;
    for (int64_t j = 0; j < width; ++j) row.push_back(kv_byte(o, e * width + j));
    return kv_decode(o.view.dtype, row.data(), d);
}

}  // namespace kt
