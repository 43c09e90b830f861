// Weights of 1 to 8 bits in the layout bits64 (docs/format.md), and how products with them are cut into tiles.
//
// 64 rows are a tile. Per tile and group of columns there are codes u8 [bits][chunks][4][64], a chunk being 32 columns
// and a byte 8 of them, then f16 scales [64]: one per bit and the centre, or (uniform) the step and the zero point.
// Byte p of a column holds row 16 (p % 16 / 4) + 4 (p / 16) + p % 4, so that unpacking whole vectors gives rows in order.
#pragma once
#include "shapes.h"

namespace edgec {

constexpr int kBitsRows = 64, kBitsMostGroup = 128, kBitsMost = 8;
// At most this many rows of activations are looked up in tables of their sums, on any instruction set.
constexpr int64_t kTableRows = 16;
// At least so many are prepared in another way (BitsMethod::least).
constexpr int64_t kManyRows = 5;
constexpr int kBitsOutputs = 4;  // linear_bits_split: absent ones included
constexpr int64_t kBitsBlock = 4 * 4 * 1024;  // bytes: a tile's part of a group as bf16, or in 16-bit integers

struct BitsShape {
    int64_t n, k, bits, group;
    bool uniform;
    int64_t m = 0;  // rows of activations
    int64_t groups() const { return ceil_div(k, group); }
    int64_t chunks() const { return ceil_div(k, 32); }
    int64_t group_chunks(int64_t g) const { return imin(group / 32, chunks() - g * (group / 32)); }
    int64_t code_bytes(int64_t group_chunks) const { return bits * group_chunks * 256; }
    int64_t scale_bytes() const { return (uniform ? 2 : bits + 1) * kBitsRows * 2; }
    int64_t tiles() const { return ceil_div(n, kBitsRows); }
    int64_t tile_bytes() const { return code_bytes(chunks()) + groups() * scale_bytes(); }
    // The tables of one row of activations: 256 bytes per chunk, then per group the tables' scale and the sum of x.
    int64_t table_bytes() const { return ceil_div(chunks() * 256 + groups() * 8, 64) * 64; }
    // The same for generic/dot16.h: 16 bits per column, and a scale per group, of padded() rows.
    int64_t pair_bytes() const { return padded() * (chunks() * 64 + groups() * 4); }
    // Rows of sums that a tile is given room for: whole blocks of 16.
    int64_t padded() const { return ceil_div(m, 16) * 16; }
};

// N bits group uniform, as the kernels' ints have them.
EDGEC_INLINE BitsShape bits_shape(const int64_t *i, int64_t k) { return BitsShape{i[0], k, i[1], i[2], i[3] != 0}; }

// An output with its own weight and bias: the only one of linear_bits, or number `p` of linear_bits_split. All read one
// x, in groups of one size, so that what prepare() makes serves every one of them.
struct BitsPart {
    const View *y, *w, *bias;
    BitsShape s;
};
EDGEC_INLINE BitsPart bits_part(const Args &a, int outputs, int p) {
    const View &x = a.op[outputs], &y = a.op[p];
    const int64_t k = x.dim[x.rank - 1];
    BitsPart part = {&y, &a.op[outputs + 1 + p], &a.op[2 * outputs + 1 + p], {}};
    const int64_t split[] = {y.data ? y.dim[y.rank - 1] : 0, a.i[2 + 2 * p], a.i[1], a.i[3 + 2 * p]};
    part.s = bits_shape(outputs == 1 ? a.i + 2 : split, k);
    part.s.m = leading(x);
    return part;
}

// Ints of a product before the last, optional one: whether few rows may be looked up in tables of 8 bits.
EDGEC_INLINE int bits_ints(int outputs) { return outputs == 1 ? 6 : 2 + 2 * kBitsOutputs; }
EDGEC_INLINE bool bits_fast(const Args &a, int outputs) {
    return a.n_i > bits_ints(outputs) && a.i[bits_ints(outputs)];
}

// What an instruction set brings to a product. `tables` is what prepare() made of x[m][k], once per thread and call;
// sums() adds the product with one tile to out[m][64]; without it the weights are decoded to f32. least: from how many
// rows of activations on a method for many serves weights of 1, 2, .. bits (kManyRows to kTableRows + 1). The outputs of
// one call are prepared alike: the first one's bits decide.
struct BitsMethod {
    void (*prepare)(const BitsShape &s, const float *x, uint8_t *tables) = nullptr;
    void (*sums)(const BitsShape &s, const uint8_t *tile, const float *x, const uint8_t *tables, float *out) = nullptr;
    uint8_t least[kBitsMost] = {};
    constexpr bool decodes() const { return !sums; }
    constexpr bool within_scratch() const {
        for (const int64_t rows : least)
            if (prepare && (rows < kManyRows || rows > kTableRows + 1)) return false;
        return true;
    }
};
constexpr BitsMethod kDecoded = {nullptr, nullptr, {17, 17, 17, 17, 17, 17, 17, 17}};

// The tables, or the prepared rows and a decoded block, follow the sums in scratch. Which it is depends on the
// instruction set, so there is room for both. Fewer rows never need more: a session has room for its largest shapes.
EDGEC_INLINE int64_t bits_scratch(const BitsShape &s) {
    const int64_t tables = imin(s.m, kTableRows) * s.table_bytes();
    const int64_t decoded = s.m < kManyRows ? 0 : s.pair_bytes() + kBitsBlock;
    return s.padded() * kBitsRows * (int64_t)sizeof(float) + imax(tables, decoded);
}

// Defined for every instruction set by generic/bits.h. The levels above AVX-512 bring methods of their own.
namespace avx512 {
void bits_run(const Args &a, int outputs, int64_t t0, int64_t t1, void *scratch, BitsMethod few, BitsMethod many);
namespace vbmi {
void prepare(const BitsShape &s, const float *x, uint8_t *tables);
void sums(const BitsShape &s, const uint8_t *tile, const float *x, const uint8_t *tables, float *out);
}  // namespace vbmi
}  // namespace avx512

}  // namespace edgec
