#include "ed25519.h"

#include <string.h>

#include "sha512.h"

namespace edgec {
namespace {

// A number below 2^256, lowest word first. As an element of the field it stands for itself modulo p, reduced or not.
struct Number {
    uint32_t word[8];
};

constexpr Number kPrime = {{0xffffffed, 0xffffffff, 0xffffffff, 0xffffffff,  // p = 2^255 - 19
                            0xffffffff, 0xffffffff, 0xffffffff, 0x7fffffff}};
constexpr Number kInvert = {{0xffffffeb, 0xffffffff, 0xffffffff, 0xffffffff,  // p - 2
                             0xffffffff, 0xffffffff, 0xffffffff, 0x7fffffff}};
constexpr Number kRoot = {{0xfffffffd, 0xffffffff, 0xffffffff, 0xffffffff,  // (p - 5) / 8
                           0xffffffff, 0xffffffff, 0xffffffff, 0x0fffffff}};
constexpr Number kOrder = {{0x5cf5d3ed, 0x5812631a, 0xa2f79cd6, 0x14def9de, 0, 0, 0, 0x10000000}};  // of B
constexpr Number kD = {{0x135978a3, 0x75eb4dca, 0x4141d8ab, 0x00700a4d,  // -121665 / 121666
                        0x7779e898, 0x8cc74079, 0x2b6ffe73, 0x52036cee}};
constexpr Number kRootOfMinusOne = {{0x4a0ea0b0, 0xc4ee1b27, 0xad2fe478, 0x2f431806,
                                     0x3dfbd7a7, 0x2b4d0099, 0x4fc1df0b, 0x2b832480}};
constexpr Number kBaseX = {{0x8f25d51a, 0xc9562d60, 0x9525a7b2, 0x692cc760,
                            0xfdd6dc5c, 0xc0a4e231, 0xcd6e53fe, 0x216936d3}};
constexpr Number kBaseY = {{0x66666658, 0x66666666, 0x66666666, 0x66666666,  // 4 / 5
                            0x66666666, 0x66666666, 0x66666666, 0x66666666}};
constexpr Number kZero = {}, kOne = {{1}};

bool bit(const Number &a, int i) { return a.word[i / 32] >> (i % 32) & 1; }

Number load(const uint8_t bytes[32]) {
    Number a = {};
    for (int i = 0; i < 32; i++) a.word[i / 4] |= uint32_t(bytes[i]) << (8 * (i % 4));
    return a;
}

// a - b modulo 2^256, and whether a < b.
bool subtract(const Number &a, const Number &b, Number *difference) {
    uint64_t borrow = 0;
    for (int i = 0; i < 8; i++) {
        const uint64_t t = uint64_t(a.word[i]) - b.word[i] - borrow;
        difference->word[i] = uint32_t(t);
        borrow = t >> 63;
    }
    return borrow != 0;
}

bool below(const Number &a, const Number &b) {
    Number difference;
    return subtract(a, b, &difference);
}

// The field. 2^256 = 38 modulo p: what a sum or product has beyond 256 bits comes back 38 times.

void fold(uint64_t beyond, Number *a) {
    while (beyond) {
        uint64_t t = beyond * 38;
        for (uint32_t &word : a->word) {
            t += word;
            word = uint32_t(t);
            t >>= 32;
        }
        beyond = t;
    }
}

Number operator+(const Number &a, const Number &b) {
    Number sum;
    uint64_t t = 0;
    for (int i = 0; i < 8; i++) {
        t += uint64_t(a.word[i]) + b.word[i];
        sum.word[i] = uint32_t(t);
        t >>= 32;
    }
    fold(t, &sum);
    return sum;
}

Number operator-(const Number &a, const Number &b) {
    Number difference;
    bool beyond = subtract(a, b, &difference);
    while (beyond) beyond = subtract(difference, {{38}}, &difference);
    return difference;
}

Number operator*(const Number &a, const Number &b) {
    uint32_t product[16] = {};
    for (int i = 0; i < 8; i++) {
        uint64_t t = 0;
        for (int j = 0; j < 8; j++) {
            t += uint64_t(a.word[i]) * b.word[j] + product[i + j];  // at most 2^64 - 1
            product[i + j] = uint32_t(t);
            t >>= 32;
        }
        product[i + 8] = uint32_t(t);
    }
    Number low;
    uint64_t t = 0;
    for (int i = 0; i < 8; i++) {
        t += uint64_t(product[i + 8]) * 38 + product[i];
        low.word[i] = uint32_t(t);
        t >>= 32;
    }
    fold(t, &low);
    return low;
}

Number power(const Number &a, const Number &exponent) {
    Number result = kOne;
    for (int i = 255; i >= 0; i--) {
        result = result * result;
        if (bit(exponent, i)) result = result * a;
    }
    return result;
}

Number reduced(Number a) {
    Number less;
    while (!subtract(a, kPrime, &less)) a = less;  // at most twice
    return a;
}

bool equal(const Number &a, const Number &b) {
    const Number difference = reduced(a - b);
    return memcmp(&difference, &kZero, sizeof kZero) == 0;
}

// The curve -x^2 + y^2 = 1 + d x^2 y^2. A point is x = X / Z, y = Y / Z, x y = T / Z.
struct Point {
    Number x, y, z, t;
};

Point point(const Number &x, const Number &y) { return {x, y, kOne, x * y}; }

// Holds for any two points, equal and neutral ones included, because d is not a square.
Point operator+(const Point &p, const Point &q) {
    const Number a = (p.y - p.x) * (q.y - q.x), b = (p.y + p.x) * (q.y + q.x);
    const Number c = p.t * q.t * (kD + kD), d = p.z * q.z;
    const Number e = b - a, f = d + d - c, g = d + d + c, h = b + a;
    return {e * f, g * h, f * g, e * h};
}

// The point that 32 bytes stand for: y, and in the highest bit whether x is odd. False when there is none, or when
// RFC 8032 writes it otherwise.
bool decode(const uint8_t bytes[32], Point *p) {
    Number y = load(bytes);
    const bool odd = bit(y, 255);
    y.word[7] &= 0x7fffffff;
    if (!below(y, kPrime)) return false;
    const Number yy = y * y, u = yy - kOne, v = kD * yy + kOne;  // x^2 = u / v, and v is never zero
    const Number v3 = v * v * v;
    Number x = u * v3 * power(u * v3 * v3 * v, kRoot);
    if (!equal(v * x * x, u)) x = x * kRootOfMinusOne;
    if (!equal(v * x * x, u)) return false;
    x = reduced(x);
    if (bit(x, 0) != odd) {
        if (equal(x, kZero)) return false;
        x = kZero - x;
    }
    *p = point(x, y);
    return true;
}

void encode(const Point &p, uint8_t bytes[32]) {
    const Number inverse = power(p.z, kInvert);
    const Number x = reduced(p.x * inverse), y = reduced(p.y * inverse);
    for (int i = 0; i < 32; i++) bytes[i] = uint8_t(y.word[i / 4] >> (8 * (i % 4)));
    bytes[31] |= uint8_t(bit(x, 0) << 7);
}

bool small_order(Point p) {
    for (int i = 0; i < 3; i++) p = p + p;
    return equal(p.x, kZero) && equal(p.y, p.z);
}

// 64 bytes, lowest first, modulo the order of B.
Number modulo_order(const uint8_t bytes[64]) {
    Number rest = {};
    for (int i = 511; i >= 0; i--) {
        for (int k = 7; k > 0; k--) rest.word[k] = rest.word[k] << 1 | rest.word[k - 1] >> 31;
        rest.word[0] = rest.word[0] << 1 | (bytes[i / 8] >> (i % 8) & 1);
        Number less;
        if (!subtract(rest, kOrder, &less)) rest = less;
    }
    return rest;
}

}  // namespace

bool ed25519_verify(const uint8_t key[32], const uint8_t signature[64], const uint8_t *message, uint64_t bytes) {
    Point a;
    const Number s = load(signature + 32);
    if (!below(s, kOrder) || !decode(key, &a) || small_order(a)) return false;
    Sha512 hash;
    uint8_t digest[64];
    hash.update(signature, 32);
    hash.update(key, 32);
    hash.update(message, bytes);
    hash.finish(digest);
    const Number k = modulo_order(digest);
    // R = [s]B + [k](-A), both products bit by bit at once.
    const Point b = point(kBaseX, kBaseY), minus = point(kZero - a.x, a.y), both = b + minus;
    Point r = point(kZero, kOne);
    for (int i = 252; i >= 0; i--) {
        r = r + r;
        if (bit(s, i) && bit(k, i)) r = r + both;
        else if (bit(s, i)) r = r + b;
        else if (bit(k, i)) r = r + minus;
    }
    uint8_t found[32];
    encode(r, found);
    return memcmp(found, signature, 32) == 0;
}

}  // namespace edgec
