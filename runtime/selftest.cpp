// The kernels of this CPU against the scalar ones, on inputs small enough to be compared at every open.
#include <math.h>

#include "../kernels/contract/shapes.h"
#include "../kernels/view.h"
#include "random.h"
#include "session.h"

namespace edgec {
namespace {

struct TrialOperand {
    uint8_t dtype, format, rank, dim[5];
};

constexpr uint32_t kTrialOperands = 8, kTrialViews = 13, kTrialInts = 14;

// One small call. Sizes lie just above a vector or a tile, so that main loops and remainders both run. Without pointers:
// the table then needs no relocations and takes half the room. Operands beyond `op` are absent.
struct Trial {
    char kernel[20];
    uint8_t n_op, n_i, n_f;
    TrialOperand op[kTrialOperands];
    int8_t i[kTrialInts];
    float f[6];
};

constexpr TrialOperand kAbsent = {0, 0, 0, {}};
constexpr TrialOperand f32(uint8_t a) { return {F32, PLAIN, 1, {a}}; }
constexpr TrialOperand f32(uint8_t a, uint8_t b) { return {F32, PLAIN, 2, {a, b}}; }
constexpr TrialOperand f32(uint8_t a, uint8_t b, uint8_t c) { return {F32, PLAIN, 3, {a, b, c}}; }
constexpr TrialOperand f32(uint8_t a, uint8_t b, uint8_t c, uint8_t d) { return {F32, PLAIN, 4, {a, b, c, d}}; }
constexpr TrialOperand f32(uint8_t a, uint8_t b, uint8_t c, uint8_t d, uint8_t e) { return {F32, PLAIN, 5, {a, b, c, d, e}}; }
constexpr TrialOperand panel(uint8_t dtype, uint8_t a, uint8_t b) { return {dtype, PANEL16, 2, {a, b}}; }
constexpr TrialOperand panel(uint8_t dtype, uint8_t a, uint8_t b, uint8_t c) { return {dtype, PANEL16, 3, {a, b, c}}; }
constexpr TrialOperand other(uint8_t dtype, uint8_t a) { return {dtype, PLAIN, 1, {a}}; }
constexpr TrialOperand other(uint8_t dtype, uint8_t a, uint8_t b) { return {dtype, PLAIN, 2, {a, b}}; }
constexpr TrialOperand other(uint8_t dtype, uint8_t a, uint8_t b, uint8_t c) { return {dtype, PLAIN, 3, {a, b, c}}; }

constexpr TrialOperand other(uint8_t dtype, uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
    return {dtype, PLAIN, 4, {a, b, c, d}};
}

const Trial kTrials[] = {
    {"linear", 5, 2, 2, {f32(1, 37), f32(1, 67), panel(F32, 37, 67), f32(37), f32(1, 37)}, {4, 0}, {}},
    {"linear", 5, 2, 2, {f32(19, 37), f32(19, 67), panel(F32, 37, 67), f32(37), kAbsent}, {1, 0}, {}},
    {"linear", 5, 2, 2, {f32(1, 37), f32(1, 67), panel(F16, 37, 67), kAbsent, f32(1, 37)}, {0, 1}, {}},
    {"linear", 5, 2, 2, {f32(19, 37), f32(19, 67), panel(F16, 37, 67), f32(37), kAbsent}, {6, 0}, {}},
    {"linear", 5, 2, 2, {f32(1, 37), f32(1, 67), panel(BF16, 37, 67), f32(37), kAbsent}, {0, 0}, {}},
    {"linear", 5, 2, 2, {f32(19, 37), f32(19, 67), panel(BF16, 37, 67), kAbsent, f32(19, 37)}, {7, 0}, {}},
    {"linear_bits", 5, 6, 2, {f32(1, 37), f32(1, 67), other(U8, 16, 168), f32(37), kAbsent}, {0, 0, 37, 2, 32, 0}, {}},
    {"linear_bits", 5, 6, 2, {f32(3, 37), f32(3, 67), other(U8, 12, 192), kAbsent, f32(3, 37)}, {1, 0, 37, 2, 32, 1}, {}},
    {"linear_bits", 5, 6, 2, {f32(19, 37), f32(19, 67), other(U8, 16, 168), f32(37), kAbsent}, {0, 0, 37, 2, 32, 0}, {}},
    {"linear_bits", 5, 7, 2, {f32(3, 37), f32(3, 67), other(U8, 16, 168), f32(37), kAbsent},
     {0, 0, 37, 2, 32, 0, 1}, {}},
    {"linear_bits", 5, 7, 2, {f32(19, 37), f32(19, 67), other(U8, 16, 168), kAbsent, f32(19, 37)},
     {1, 0, 37, 2, 32, 0, 1}, {}},
    {"linear_bits", 5, 7, 2, {f32(7, 37), f32(7, 67), other(U8, 16, 168), f32(37), kAbsent},
     {0, 0, 37, 2, 32, 0, 1}, {}},
    {"linear_bits", 5, 6, 2, {f32(1, 37), f32(1, 67), other(U8, 16, 145), f32(37), kAbsent}, {0, 0, 37, 3, 0, 65}, {}},
    {"linear_bits", 5, 6, 2, {f32(19, 37), f32(19, 67), other(U8, 16, 208), kAbsent, kAbsent}, {1, 0, 37, 5, 16, 82}, {}},
    {"conv2d_bits", 5, 14, 2, {f32(1, 5, 6, 37), f32(1, 5, 6, 5), other(U8, 16, 112), f32(37), kAbsent},
     {3, 3, 1, 1, 1, 1, 1, 1, 1, 0, 37, 2, 32, 0}, {}},
    {"linear_bits_split", 13, 10, 2,
     {f32(1, 37), kAbsent, f32(1, 21), kAbsent, f32(1, 67), other(U8, 16, 168), kAbsent, other(U8, 12, 192)},
     {0, 32, 2, 0, 0, 0, 2, 1, 0, 0}, {}},
    {"linear_bits_split", 13, 10, 2,
     {f32(19, 37), kAbsent, f32(19, 21), kAbsent, f32(19, 67), other(U8, 16, 168), kAbsent, other(U8, 12, 192)},
     {1, 32, 2, 0, 0, 0, 2, 1, 0, 0}, {}},
    {"linear_bits_split", 13, 11, 2,
     {f32(19, 37), kAbsent, f32(19, 21), kAbsent, f32(19, 67), other(U8, 16, 168), kAbsent, other(U8, 12, 192)},
     {1, 32, 2, 0, 0, 0, 2, 1, 0, 0, 1}, {}},
    {"linear_split", 7, 1, 2, {f32(19, 16), kAbsent, f32(19, 21), kAbsent, f32(19, 67), panel(BF16, 37, 67), f32(37)}, {1}, {}},
    {"conv2d", 5, 11, 2, {f32(1, 5, 6, 37), f32(1, 5, 6, 5), panel(F32, 1, 37, 45), f32(37), kAbsent},
     {3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0}, {}},
    {"conv2d", 5, 11, 2, {f32(1, 3, 3, 34), f32(1, 6, 6, 4), panel(F16, 2, 17, 18), kAbsent, f32(1, 3, 3, 34)},
     {3, 3, 2, 2, 1, 1, 1, 1, 2, 8, 0}, {}},
    {"conv2d", 5, 11, 2, {f32(1, 3, 3, 34), f32(1, 6, 6, 4), panel(BF16, 2, 17, 18), f32(34), kAbsent},
     {3, 3, 2, 2, 1, 1, 1, 1, 2, 2, 0}, {0, 6}},
    {"conv2d_winograd", 5, 4, 2, {f32(1, 5, 6, 37), f32(1, 5, 6, 21), panel(F32, 1, 37, 189), f32(37), f32(1, 5, 6, 37)},
     {1, 1, 1, 0}, {}},
    {"dwconv2d", 5, 10, 2, {f32(1, 7, 9, 37), f32(1, 7, 9, 37), f32(9, 37), f32(37), kAbsent},
     {3, 3, 1, 1, 1, 1, 1, 1, 1, 0}, {}},
    {"dwconv2d", 5, 10, 2, {f32(1, 4, 5, 37), f32(1, 7, 9, 37), f32(25, 37), kAbsent, f32(1, 4, 5, 37)},
     {5, 5, 2, 2, 2, 2, 1, 1, 8, 0}, {}},
    {"mbconv2d", 9, 12, 6,
     {f32(1, 4, 5, 19), f32(1, 7, 9, 5), panel(F32, 37, 5), f32(37), f32(9, 37), f32(37), panel(F32, 19, 37), f32(19)},
     {3, 3, 2, 2, 1, 1, 1, 1, 1, 2, 0, 0}, {0, 0, 0, 6}},
    {"conv2d_q8", 5, 14, 0,
     {other(U8, 1, 5, 6, 37), other(U8, 1, 5, 6, 4), other(I8, 1, 3, 18, 32), other(I32, 37), f32(37)},
     {3, 3, 1, 1, 1, 1, 1, 1, 1, 60, 20, 0, 127, 1}, {}},
    {"dwconv2d_q8", 5, 12, 0,
     {other(U8, 1, 7, 9, 37), other(U8, 1, 7, 9, 37), other(I8, 9, 37), other(I32, 37), f32(37)},
     {3, 3, 1, 1, 1, 1, 1, 1, 60, 20, 0, 127}, {}},
    {"pool2d_q8", 2, 14, 1, {other(U8, 1, 4, 4, 37), other(U8, 1, 7, 7, 37)},
     {1, 3, 3, 2, 2, 1, 1, 1, 1, 0, 9, 20, 0, 127}, {0.7f}},
    {"add_q8", 3, 8, 0, {other(U8, 3, 67), other(I8, 3, 67), other(U8, 3, 67)}, {60, 50, 20, 0, 127, 100, 90, 7}, {}},
    {"quantize", 2, 3, 1, {other(U8, 3, 67), f32(3, 67)}, {60, 0, 127}, {0.02f}},
    {"dequantize", 2, 1, 1, {f32(3, 67), other(I8, 3, 67)}, {60}, {0.02f}},
    {"pool2d", 2, 10, 0, {f32(1, 4, 4, 37), f32(1, 7, 7, 37)}, {0, 3, 3, 2, 2, 1, 1, 1, 1, 0}, {}},
    {"pool2d", 2, 10, 0, {f32(1, 4, 4, 37), f32(1, 7, 7, 37)}, {1, 3, 3, 2, 2, 1, 1, 1, 1, 0}, {}},
    {"resize2d", 6, 0, 0,
     {f32(1, 3, 4, 37), f32(1, 3, 3, 37), other(I32, 3, 2), f32(3, 2), other(I32, 4, 2), f32(4, 2)}, {}, {}},
    {"rnn", 8, 2, 0,
     {f32(3, 1, 37), f32(1, 37), kAbsent, f32(3, 1, 111), panel(F32, 3, 37, 37), f32(37), f32(1, 37), kAbsent}, {2, 0}, {}},
    {"rnn", 8, 2, 0,
     {f32(3, 4, 37), kAbsent, f32(4, 37), f32(3, 4, 148), panel(F16, 4, 37, 37), kAbsent, kAbsent, f32(4, 37)}, {4, 1}, {}},
    {"selective_scan", 9, 1, 0,
     {f32(1, 3, 37), f32(1, 37, 5), f32(1, 3, 37), f32(1, 3, 37), f32(5, 37), f32(1, 3, 5), f32(1, 3, 5), f32(37)}, {1}, {}},
    {"causal_conv1d", 6, 1, 2,
     {f32(1, 5, 37), f32(1, 3, 37), f32(1, 5, 37), f32(4, 37), f32(37), f32(1, 3, 37)}, {4}, {}},
    {"dynamic_depthwise", 6, 3, 2,
     {f32(1, 3, 4, 33), f32(1, 3, 4, 33), f32(1, 3, 4, 9, 11), f32(33), f32(1, 3, 4, 33), f32(33)}, {3, 0, 0}, {}},
    {"matmul", 3, 1, 1, {f32(2, 5, 37), f32(2, 5, 23), f32(2, 23, 37)}, {0}, {0.5f}},
    {"matmul", 3, 1, 1, {f32(2, 5, 37), f32(2, 5, 23), f32(2, 37, 23)}, {1}, {1}},
    {"attention_cached", 4, 4, 2, {f32(1, 80), f32(1, 80), f32(2, 41, 20), f32(2, 41, 20)}, {37, 4, 2, 0}, {0.25f, 0}},
    {"attention_cached", 4, 4, 2,
     {f32(9, 80), f32(9, 80), other(F16, 2, 41, 20), other(F16, 2, 41, 20)}, {20, 4, 2, 11}, {0.25f, 5}},
    {"attention_cached", 4, 4, 2, {f32(1, 192), f32(1, 192), other(I8, 1, 41, 66), other(I8, 1, 41, 66)}, {37, 3, 1, 0}, {0.25f, 0}},
    {"attention_cached", 4, 4, 2, {f32(1, 60), f32(1, 60), other(I8, 1, 41, 22), other(I8, 1, 41, 22)}, {37, 3, 1, 0}, {0.25f, 0}},
    {"attention_cached", 4, 4, 2, {f32(9, 80), f32(9, 80), other(I8, 2, 41, 22), other(I8, 2, 41, 22)}, {20, 4, 2, 11}, {0.25f, 5}},
    {"attention_cached", 4, 4, 2, {f32(1, 192), f32(1, 192), other(U8, 1, 41, 40), other(U8, 1, 41, 40)}, {37, 3, 1, 0}, {0.25f, 0}},
    {"attention_cached", 4, 4, 2, {f32(9, 80), f32(9, 80), other(U8, 2, 41, 14), other(U8, 2, 41, 14)}, {20, 4, 2, 11}, {0.25f, 0}},
    {"attention_cached", 4, 4, 2, {f32(2, 148), f32(2, 148), other(U8, 2, 41, 27), other(U8, 2, 41, 27)}, {20, 4, 2, 0}, {0.25f, 0}},
    {"attention", 5, 4, 2, {f32(1, 9, 80), f32(1, 9, 80), f32(1, 21, 40), f32(1, 21, 40), kAbsent}, {4, 2, 1, 12},
     {0.25f, 0}},
    {"attention", 5, 4, 2, {f32(1, 9, 80), f32(1, 9, 80), f32(1, 21, 40), f32(1, 21, 40), f32(1, 1, 9, 21)},
     {4, 2, 0, 0}, {0.25f, 0}},
    {"kv_write", 2, 1, 0, {f32(2, 12, 20), f32(3, 40)}, {4}, {}},
    {"kv_write", 2, 1, 0, {other(F16, 2, 12, 20), f32(3, 40)}, {4}, {}},
    {"kv_write", 2, 1, 0, {other(I8, 2, 12, 22), f32(3, 40)}, {4}, {}},
    {"kv_write", 2, 1, 0, {other(U8, 2, 12, 27), f32(3, 74)}, {4}, {}},
    {"rmsnorm", 5, 0, 1, {f32(3, 67), f32(3, 67), f32(3, 67), f32(3, 67), f32(67)}, {}, {1e-5f}},
    {"layernorm", 6, 0, 1, {f32(3, 67), f32(3, 67), f32(3, 67), f32(3, 67), f32(67), f32(67)}, {}, {1e-5f}},
    {"groupnorm", 4, 2, 3, {f32(1, 7, 36), f32(1, 7, 36), f32(36), f32(36)}, {4, 1}, {1e-5f}},
    {"rope", 4, 3, 0, {f32(3, 80), f32(3, 80), f32(3, 19), f32(3, 19)}, {2, 38, 0}, {}},
    {"rope", 4, 3, 0, {f32(3, 80), f32(3, 80), f32(3, 19), f32(3, 19)}, {2, 38, 1}, {}},
    {"unary", 2, 1, 2, {f32(3, 67), f32(3, 67)}, {4}, {}},
    {"unary", 2, 1, 2, {f32(3, 67), f32(3, 67)}, {6}, {}},
    {"unary", 2, 1, 2, {f32(3, 67), f32(3, 67)}, {5}, {}},
    {"unary", 2, 1, 2, {f32(3, 67), f32(3, 67)}, {34}, {}},
    {"binary", 3, 1, 0, {f32(3, 67), f32(3, 67), f32(67)}, {0}, {}},
    {"binary", 3, 1, 0, {f32(3, 67), f32(3, 67), f32(3, 67)}, {2}, {}},
    {"binary", 3, 1, 0, {f32(3, 67), f32(3, 1), f32(3, 67)}, {1}, {}},
    {"glu", 3, 1, 2, {f32(3, 67), f32(3, 67), f32(3, 67)}, {4}, {}},
    {"where", 4, 0, 0, {f32(3, 67), other(BOOL, 3, 67), f32(3, 67), f32(3, 67)}, {}, {}},
    {"softmax", 2, 1, 0, {f32(3, 67), f32(3, 67)}, {0}, {}},
    {"softmax", 2, 1, 0, {f32(3, 67), f32(3, 67)}, {1}, {}},
    {"reduce", 2, 1, 0, {f32(3, 1), f32(3, 67, 1)}, {1}, {}},
    {"reduce", 2, 1, 0, {f32(3, 37), f32(3, 19, 37)}, {2}, {}},
    {"argmax", 2, 1, 0, {other(I64, 3, 1), f32(3, 67, 1)}, {0}, {}},
    {"gather", 3, 0, 0, {f32(1, 5, 37), f32(1, 9, 37), other(I64, 5)}, {}, {}},
    {"gather", 3, 0, 0, {f32(1, 5, 37), panel(F32, 9, 37), other(I32, 5)}, {}, {}},
    {"gather", 3, 0, 0, {f32(1, 5, 37), panel(F16, 9, 37), other(I32, 5)}, {}, {}},
    {"gather", 3, 0, 0, {f32(1, 5, 37), panel(BF16, 9, 37), other(I32, 5)}, {}, {}},
    {"scatter", 4, 1, 0, {f32(9, 37), f32(9, 37), other(I64, 5), f32(5, 37)}, {1}, {}},
    {"topk", 3, 1, 0, {f32(3, 4, 5), other(I64, 3, 4, 5), f32(3, 19, 5)}, {0}, {}},
    {"bitwise", 3, 1, 0, {other(I64, 3, 37), other(I64, 3, 37), other(I64, 37)}, {2}, {}},
    {"transpose", 2, 3, 0, {f32(5, 37, 3), f32(3, 5, 37)}, {1, 2, 0}, {}},
    {"slice", 2, 4, 0, {f32(2, 17), f32(3, 37)}, {1, 2, 1, 2}, {}},
    {"concat", 3, 1, 0, {f32(3, 54), f32(3, 17), f32(3, 37)}, {1}, {}},
    {"pad", 2, 3, 1, {f32(5, 43), f32(3, 37)}, {1, 2, 0}, {0.5f}},
    {"expand", 2, 0, 0, {f32(3, 37), f32(1, 37)}, {}, {}},
    {"cast", 2, 0, 0, {other(F16, 3, 37), f32(3, 37)}, {}, {}},
    {"cast", 2, 0, 0, {f32(3, 37), other(BF16, 3, 37)}, {}, {}},
    {"copy", 2, 0, 0, {f32(37, 3), f32(3, 37)}, {}, {}},
    {"iota", 1, 2, 0, {other(I64, 37)}, {3, 2}, {}},
};

// Different, plausible sums of the same products differ by less than this part of the largest value.
constexpr float kTrialTolerance = 2e-5f;

void fill(const View &v, SplitMix &random) {
    const uint64_t n = uint64_t(bytes_of(v)) / uint64_t(dtype_size(v.dtype));
    uint8_t *p = static_cast<uint8_t *>(v.data);
    for (uint64_t i = 0; i < n; i++) {
        const float x = random.unit();
        const uint16_t half = v.dtype == F16 ? f32_to_f16(x) : f32_to_bf16(x);
        const int64_t index = int64_t(random.next() % 3);  // a valid row of every table above
        const int32_t index32 = int32_t(index);
        switch (v.dtype) {
        case F32: memcpy(p + 4 * i, &x, 4); break;
        case F16: case BF16: memcpy(p + 2 * i, &half, 2); break;
        case I64: memcpy(p + 8 * i, &index, 8); break;
        case I32: memcpy(p + 4 * i, &index32, 4); break;
        case U8: p[i] = uint8_t(random.next() % 0x3C); break;  // weights of few bits: codes, and scales in [0, 1)
        default: p[i] = uint8_t(index & 1); break;
        }
    }
}

// Rows of a cache: all codes that there are, behind halves that keep what is read near 1, minima of both signs.
void fill_codes(const View &v, SplitMix &random) {
    const uint64_t n = uint64_t(bytes_of(v)), row = uint64_t(v.dim[2]);
    const bool four = v.dtype == U8;
    const uint64_t group = four ? kKvFour + kKvGroup / 2 : row;
    uint8_t *p = static_cast<uint8_t *>(v.data);
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t at = i % row % group;
        p[i] = uint8_t(random.next() >> 56);
        if (at == 1) p[i] = uint8_t((four ? 0x20 : 0x10) | (p[i] & 15));
        if (at == 3 && four) p[i] = uint8_t(0x20 | (p[i] & 0x8F));
    }
}

float value_at(const View &v, uint64_t i) {
    const uint8_t *p = static_cast<const uint8_t *>(v.data);
    float x;
    uint16_t half;
    int64_t whole;
    switch (v.dtype) {
    case F32: memcpy(&x, p + 4 * i, 4); return x;
    case F16: memcpy(&half, p + 2 * i, 2); return f16_to_f32(half);
    case I8: case U8: return float(p[i]);
    default: memcpy(&whole, p + 8 * i, 8); return float(whole);
    }
}

// The largest difference, as a part of the largest value.
float difference(const View &a, const View &b) {
    float largest = 0, worst = 0;
    const uint64_t n = uint64_t(count_of(a));
    for (uint64_t i = 0; i < n; i++) {
        const float x = value_at(a, i), y = value_at(b, i), d = fabsf(x - y);
        if (fabsf(x) > largest) largest = fabsf(x);
        if (!(d <= worst)) worst = d;  // NaN sticks
    }
    return largest > 0 ? worst / largest : worst;
}

edgec_status run_trial(const Trial &trial, const Kernel &kernel, uint8_t isa, const Allocator &allocator,
                       Message &message) {
    View views[2][kTrialViews];
    int64_t ints[kTrialInts];
    for (uint32_t k = 0; k < trial.n_i; k++) ints[k] = trial.i[k];
    uint64_t bytes = 0, offset[2][kTrialViews];
    for (int run = 0; run < 2; run++) {
        for (uint32_t k = 0; k < trial.n_op; k++) {
            View &v = views[run][k];
            const TrialOperand &o = k < kTrialOperands ? trial.op[k] : kAbsent;
            v.dtype = o.dtype, v.format = o.format, v.rank = o.rank;
            for (uint32_t d = 0; d < v.rank; d++) v.dim[d] = o.dim[d];
            offset[run][k] = bytes;
            if (v.dtype) bytes += uint64_t(bytes_of(v) + 63) / 64 * 64;
        }
    }
    int32_t fault = 0;
    Array<uint8_t> memory, scratch;
    if (!memory.allocate(allocator, bytes)) return fail(message, EDGEC_ERROR_MEMORY, "selftest: cannot be allocated");
    for (int run = 0; run < 2; run++) {
        SplitMix random = {1};
        for (uint32_t k = 0; k < trial.n_op; k++) {
            View &v = views[run][k];
            if (!v.dtype) continue;
            v.data = memory.data() + offset[run][k];
            if (k < kernel.n_out) continue;
            const bool codes = (v.dtype == I8 || v.dtype == U8) && !strcmp(trial.kernel, "attention_cached");
            if (codes) fill_codes(v, random);
            else fill(v, random);
        }
        const Args args = {views[run], ints, trial.f, trial.n_op, trial.n_i, trial.n_f, &fault};
        if (const char *why = kernel.check(args))
            return fail(message, EDGEC_ERROR_SELFTEST, "selftest: %s refuses a valid call: %s", kernel.name, why);
        if (run == 0 && !scratch.allocate(allocator, uint64_t(kernel.scratch(args))))
            return fail(message, EDGEC_ERROR_MEMORY, "selftest: cannot be allocated");
        const RunFn body = kernel_run(kernel, run ? isa : uint8_t(SCALAR));
        if (kernel.prepares) body(args, 0, 0, scratch.data());
        body(args, 0, kernel.tiles(args), scratch.data());
    }
    for (uint32_t k = 0; k < kernel.n_out; k++) {
        if (!views[0][k].data) continue;
        const float d = difference(views[0][k], views[1][k]);
        // A half-precision result may round the other way; tables, arithmetic of 8 bits above all, and bfloat16
        // (docs/kernels.md) are coarser still.
        const bool few_bits = strncmp(trial.kernel, "linear_bits", 11) == 0, fast = few_bits && trial.n_i % 2 == 1;
        const float few = fast ? 5e-2f : 1e-2f;
        const float allowed = few_bits ? few : views[0][k].dtype == F16 ? 1e-3f : kTrialTolerance;
        if (!(d <= allowed))
            return fail(message, EDGEC_ERROR_SELFTEST,
                        "selftest: %s: found %s to differ from scalar by %g of the largest value, wanted at most %g",
                        kernel.name, isa_name(Isa(isa)), double(d), double(allowed));
    }
    return EDGEC_OK;
}

}  // namespace

edgec_status kernels_compare(const Plan &plan, uint8_t isa, const Allocator &allocator, Message &message) {
    Array<uint8_t> used;
    if (!used.allocate(allocator, uint64_t(kKernelCount)))
        return fail(message, EDGEC_ERROR_MEMORY, "selftest: cannot be allocated");
    for (uint32_t i = 0; i < plan.n_entries; i++)
        for (const Call &call : plan.entry[i].calls) used[call.kernel] = 1;
    for (const Trial &trial : kTrials) {
        const Kernel *kernel = find_kernel(trial.kernel);
        if (!kernel || !used[uint64_t(kernel - kKernels)] || kernel_run(*kernel, isa) == kernel->run[SCALAR]) continue;
        if (edgec_status s = run_trial(trial, *kernel, isa, allocator, message)) return s;
    }
    return EDGEC_OK;
}

}  // namespace edgec
