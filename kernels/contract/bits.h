// Weights of 1 to 8 bits in the layout bits64 (docs/format.md), and how products with them are cut into tiles.
//
// 64 rows are a tile. Per tile and group of columns there are codes u8 [bits][chunks][4][64], a chunk being 32 columns
// and a byte 8 of them, then f16 scales [64]: one per bit and the centre, or (uniform) the step and the zero point.
// Byte p of a column holds row 16 (p % 16 / 4) + 4 (p / 16) + p % 4, so that unpacking whole vectors gives rows in order.
//
// Palettes: codes in the same places in groups of 32 columns without scales, one for `vector` neighbours along K, but those of
// 2 to 4 bits not as planes: side by side (palette_code). Behind all tiles the
// tables f16 or f32 [tables][2^bits][vector].
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
// What the int `form` says: kHlq, kUniform, or kPaletteHalf or kPaletteWide (f16 or f32 tables) plus the values of a code.
constexpr int64_t kHlq = 0, kUniform = 1, kPaletteHalf = 64, kPaletteWide = 80, kMostVector = 8;

struct BitsShape {
    int64_t n, k, bits, group;  // group: columns; of palettes rows that share a table, 0 for all
    bool uniform, wide;         // wide: palettes with f32 tables
    int64_t vector;             // palettes: values of a code; else 0
    int64_t group_n, chunk_n, tile_size;
    int64_t m = 0;  // rows of activations
    int64_t groups() const { return group_n; }
    int64_t chunks() const { return chunk_n; }
    int64_t group_chunks(int64_t g) const { return imin(group / 32, chunks() - g * (group / 32)); }
    int64_t code_bytes(int64_t group_chunks) const { return bits * group_chunks * 256; }
    int64_t scale_bytes() const { return (uniform ? 2 : bits + 1) * kBitsRows * 2; }
    int64_t tiles() const { return ceil_div(n, kBitsRows); }
    int64_t tile_bytes() const { return tile_size; }
    // The tables of one row of activations: 256 bytes per chunk, then per group the tables' scale and the sum of x.
    int64_t table_bytes() const { return ceil_div(chunks() * 256 + groups() * 8, 64) * 64; }
    // The same for generic/dot16.h: 16 bits per column, and a scale per group, of padded() rows. What dot8.h makes is less:
    // 8 bits, a scale per chunk and two numbers per group.
    int64_t pair_bytes() const { return padded() * (chunks() * 64 + groups() * 4); }
    // Rows of sums that a tile is given room for: whole blocks of 16.
    int64_t padded() const { return ceil_div(m, 16) * 16; }
    // Palettes: the values of a table, how many tables the rows of a tile can need, and what is decoded together: the
    // columns of one or two chunks.
    int64_t table_values() const { return vector << bits; }
    int64_t tile_tables() const { return group ? (kBitsRows - 1) / group + 2 : 1; }
    int64_t block_columns() const { return vector > 1 ? 32 * vector : 64; }
    // What a PaletteMethod makes of one row of activations: 64 bytes per column, and a scale per chunk; 0 for weights that
    // none takes. Several rows need none of it, but a session has room for its largest shapes only.
    int64_t palette_room() const {
        const bool takes = m > 0 && vector == 1 && bits <= 4 && (group == 0 || group >= n);
        return takes ? ceil_div(chunks() * (32 * 64 + 4), 64) * 64 : 0;
    }
};

// N bits group form, as the kernels' ints have them; parameters that do not exist leave the sizes zero.
BitsShape bits_shape(const int64_t *i, int64_t k);
// Value i of a palette's tables, which lie at `p`.
EDGEC_INLINE float palette_value(const BitsShape &s, const uint8_t *p, int64_t i) {
    float wide;
    uint16_t half;
    if (s.wide) return memcpy(&wide, p + 4 * i, 4), wide;
    return memcpy(&half, p + 2 * i, 2), f16_to_f32(half);
}
// Code i of the eight whose bytes, 256 apart, begin at `p`.
EDGEC_INLINE int64_t palette_code(const BitsShape &s, const uint8_t *p, int64_t i) {
    if (s.bits == 4) return p[i % 4 * 256] >> i / 4 * 4 & 15;
    if (s.bits == 3 && i < 6) return p[i / 2 * 256] >> i % 2 * 3 & 7;
    if (s.bits == 3) return (p[0] >> 6 | p[256] >> 6 << 2 | p[512] >> 6 << 4) >> (i - 6) * 3 & 7;
    if (s.bits == 2) return p[i / 4 * 256] >> i % 4 * 2 & 3;
    int64_t code = 0;
    for (int64_t j = 0; j < s.bits; ++j) code |= (int64_t)(p[j * 256] >> i & 1) << j;
    return code;
}
// How an instruction set with a shuffle of bytes decodes a part of a chunk, or multiplies it with one row x
// (generic/palette_bytes.h).
using PaletteBytes = void (*)(const BitsShape &s, const uint8_t *codes, const uint8_t *t, const float *x, int64_t panel, float *to);
// The tables of a tile's rows as f32 [table][vector][2^bits], and where each row's begins.
void palette_tables(const BitsShape &s, const uint8_t *w, int64_t tile, float *to, int32_t *offset);

// An output with its own weight and bias: the only one of linear_bits, or number `p` of linear_bits_split. All read one
// x, in groups of one size, so that what prepare() makes serves every one of them.
struct BitsPart {
    const View *y, *w, *bias;
    BitsShape s;
};
BitsPart bits_part(const Args &a, int outputs, int p);

// Ints of a product before the last, optional one: whether it may be computed in 8 bits, by tables or as integers.
EDGEC_INLINE int bits_ints(int outputs) { return outputs == 1 ? 6 : 2 + 2 * kBitsOutputs; }
EDGEC_INLINE bool bits_fast(const Args &a, int outputs) {
    return a.n_i > bits_ints(outputs) && a.i[bits_ints(outputs)];
}

// One row of activations times a palette of up to 4 bits with one table, whose values are `values`[16]: finite, and none
// larger than kPaletteCrest times their mean size, for the largest decides how finely products are rounded. prepare()
// makes palette_room() bytes of x; sums() adds the products with up to kPaletteTiles tiles to out[tiles][64].
constexpr int64_t kPaletteTiles = 4;
constexpr float kPaletteCrest = 4;
struct PaletteMethod {
    void (*prepare)(const BitsShape &s, const float *values, const float *x, uint8_t *tables);
    void (*sums)(const BitsShape &s, const uint8_t *codes, int64_t tiles, const uint8_t *tables, float *out);
};

// What an instruction set brings to a product. `tables` is what prepare() made of x[m][k], once per thread and call;
// sums() adds the product with one tile to out[m][64]; without it the weights are decoded to f32. least: from how many
// rows of activations on a method for many serves weights of 1, 2, .. bits (kManyRows to kTableRows + 1). The outputs of
// one call are prepared alike: the first one's bits decide.
struct BitsMethod {
    void (*prepare)(const BitsShape &s, const float *x, uint8_t *tables) = nullptr;
    void (*sums)(const BitsShape &s, const uint8_t *tile, const float *x, const uint8_t *tables, float *out) = nullptr;
    uint8_t least[kBitsMost] = {};
    const PaletteMethod *palette = nullptr;
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
int64_t bits_scratch(const BitsShape &s);
// Where in scratch, behind that, the tables of output `p` lie that a PaletteMethod makes; p = outputs: where they end.
int64_t palette_place(const Args &a, int outputs, int p);

// Defined for every instruction set by generic/bits.h. The levels above AVX-512 and NEON bring methods of their own.
namespace avx512 {
void bits_run(const Args &a, int outputs, int64_t t0, int64_t t1, void *scratch, BitsMethod few, BitsMethod many);
namespace vbmi {
extern const BitsMethod kFastMany;
extern const PaletteMethod kPaletteProducts;
void prepare(const BitsShape &s, const float *x, uint8_t *tables);
void sums(const BitsShape &s, const uint8_t *tile, const float *x, const uint8_t *tables, float *out);
}  // namespace vbmi
}  // namespace avx512
namespace neon {
extern const BitsMethod kLookups, kFastLookups;
void bits_run(const Args &a, int outputs, int64_t t0, int64_t t1, void *scratch, BitsMethod few, BitsMethod many);
}  // namespace neon

}  // namespace edgec
