// Decoded arguments of the kernels for 8-bit integers. Activations are u8 or i8; arithmetic and all zero points, bounds
// and folded biases are about u8, of which i8 is the same bits with the topmost one turned: x + 128.
#pragma once
#include "shapes.h"

namespace edgec {

// Products of a sum: 65536 of 255 * 128 stay below 2^31.
constexpr int64_t kMostQ8Taps = 65536;
// What is added up of whole windows: 2^23 of 255.
constexpr int64_t kMostQ8Cells = int64_t(1) << 23;
constexpr int64_t kQ8Panel = 16;  // output channels of a panel of weights [k / 2][16][2]

EDGEC_INLINE uint8_t q8_flip(uint8_t dtype) { return dtype == I8 ? 0x80 : 0; }

// Where a result of 32 bits goes: y = clamp(round(s * scale) + zero, lo, hi), all of u8.
struct Q8Range {
    float hi;  // less the zero point
    int32_t zero, lo;
    uint8_t flip;
};
EDGEC_INLINE Q8Range q8_range(const View &y, const int64_t *i) {  // i: zero, lo, hi
    return Q8Range{(float)(i[2] - i[0]), (int32_t)i[0], (int32_t)i[1], q8_flip(y.dtype)};
}

struct ConvQ8Shape {
    ConvShape c;       // k: of one group, without the column that makes it even
    int64_t pairs;     // of columns
    int64_t row_bytes; // of the gathered rows, a vector's slack included
    int64_t doubt_bytes;
};
// Products of bytes (conv2d_q8.h): two numbers of each row, and fours of columns that are computed with care; of more than
// an eighth of all, pairs of 16-bit integers are faster.
EDGEC_INLINE int64_t q8_doubts(int64_t rows, int64_t fours) { return rows * ceil_div(fours, 8); }
ConvQ8Shape conv_q8_shape(const Args &a);  // q8.cpp

// Depthwise: pairs of vertical taps; four neighbouring pixels at a time, whose windows are copied where some of them lie
// outside: kernels of at most eight rows, 3 * 2 + 5 columns.
constexpr int64_t kDwQ8Rows = 8, kDwQ8Columns = 11;
EDGEC_INLINE int64_t dw_q8_pairs(const Args &a) { return ceil_div(a.i[0], 2) * a.i[1]; }
EDGEC_INLINE int64_t dw_q8_channels(int64_t c) { return ceil_div(c, 16) * 16; }

}  // namespace edgec
