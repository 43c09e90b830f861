// Contracts of the kernels on weights of few bits.
#include "bits.h"

#include "checks.h"

namespace edgec {

static bool is_palette(int64_t form) {
    return between(form, kPaletteHalf + 1, kPaletteHalf + kMostVector) ||
           between(form, kPaletteWide + 1, kPaletteWide + kMostVector);
}

// Whether N bits group form are parameters that exist.
static bool possible(const int64_t *i, int64_t k) {
    if (!between(i[0], 0, kMaxDim) || !between(i[1], 1, kBitsMost) || !between(k, 1, kMaxDim)) return false;
    return flag(i[3]) ? i[2] == 32 || i[2] == 64 || i[2] == kBitsMostGroup : is_palette(i[3]) && between(i[2], 0, kMaxDim);
}

BitsShape bits_shape(const int64_t *i, int64_t k) {
    BitsShape s = {i[0], k, i[1], i[2], i[3] == kUniform, i[3] >= kPaletteWide, 0, 0, 0, 0};
    if (!possible(i, k)) return s;
    if (i[3] >= kPaletteHalf) s.vector = i[3] - (s.wide ? kPaletteWide : kPaletteHalf);
    s.group_n = s.vector ? 0 : ceil_div(k, s.group);
    s.chunk_n = ceil_div(k, 32 * imax(1, s.vector));
    s.tile_size = s.code_bytes(s.chunk_n) + s.group_n * s.scale_bytes();
    return s;
}

BitsPart bits_part(const Args &a, int outputs, int p) {
    const View &x = a.op[outputs], &y = a.op[p];
    const int64_t k = x.dim[x.rank - 1];
    BitsPart part = {&y, &a.op[outputs + 1 + p], &a.op[2 * outputs + 1 + p], {}};
    const int64_t split[] = {y.data ? y.dim[y.rank - 1] : 0, a.i[2 + 2 * p], a.i[1], a.i[3 + 2 * p]};
    part.s = bits_shape(outputs == 1 ? a.i + 2 : split, k);
    part.s.m = leading(x);
    return part;
}

int64_t bits_scratch(const BitsShape &s) {
    if (s.vector)  // the sums, a tile's tables and decoded columns, all f32
        return (s.padded() * kBitsRows + s.tile_tables() * s.table_values() + kBitsRows * s.block_columns()) * 4;
    const int64_t tables = imin(s.m, kTableRows) * s.table_bytes();
    const int64_t decoded = s.m < kManyRows ? 0 : s.pair_bytes() + kBitsBlock;
    return s.padded() * kBitsRows * (int64_t)sizeof(float) + imax(tables, decoded);
}

int64_t palette_place(const Args &a, int outputs, int p) {
    int64_t most = 0, before = 0;
    for (int o = 0; o < outputs; ++o) {
        if (!a.op[o].data) continue;
        const BitsShape s = bits_part(a, outputs, o).s;
        most = imax(most, bits_scratch(s));
        if (o < p) before += s.palette_room();
    }
    return ceil_div(most, 64) * 64 + before;
}

void palette_tables(const BitsShape &s, const uint8_t *w, int64_t tile, float *to, int32_t *offset) {
    const int64_t row = tile * kBitsRows, share = s.group ? s.group : s.n, last = imin(row + kBitsRows, s.n) - 1;
    const int64_t first = row / share * s.table_values(), entries = (int64_t)1 << s.bits;
    for (int64_t r = 0; r < kBitsRows; ++r)
        offset[r] = (int32_t)(imin(row + r, last) / share * s.table_values() - first);
    w += s.tiles() * s.tile_bytes();
    for (int64_t t = first; t <= first + offset[kBitsRows - 1]; t += s.table_values())
        for (int64_t e = 0; e < s.vector; ++e)
            for (int64_t i = 0; i < entries; ++i) *to++ = palette_value(s, w, t + i * s.vector + e);
}

// N bits group form, and whether w has exactly the bytes they mean. No product here can overflow: a tile has at most 2^35
// chunks of 2^11 bytes and as many groups of 1152, and there are at most 2^40 tables of 2^13.
static const char *bits_check(const View &w, const int64_t *i, int64_t k) {
    if (!plain(w, U8)) return kMissing;
    if (!possible(i, k)) return kParam;
    const BitsShape s = bits_shape(i, k);
    const int64_t tables = s.group ? ceil_div(s.n, s.group) : 1;
    const int64_t bytes = count_of(w) - (s.vector ? tables * s.table_values() * (s.wide ? 4 : 2) : 0);
    const bool fits = bytes >= 0 && bytes % s.tile_bytes() == 0 && bytes / s.tile_bytes() == s.tiles();
    return fits ? nullptr : "the weight is not as large as its codes and scales are";
}

static const char *product_check(const Args &a, int outputs) {
    const int ints = bits_ints(outputs);
    if (a.n_op != 3 * outputs + (outputs == 1 ? 2 : 1) || a.n_i < ints || a.n_i > ints + 1 || a.n_f != 2) return kArity;
    if (a.n_i > ints && !flag(a.i[ints])) return kParam;
    const View &x = a.op[outputs];
    if (!a.op[0].data || !activation(x)) return kMissing;
    if (x.rank < 1 || leading(x) > kMaxDim) return kShape;
    for (int p = 0; p < outputs; ++p) {
        const View &y = a.op[p];
        if (y.data ? !activation(y) || y.rank != x.rank : a.op[outputs + 1 + p].data || a.op[2 * outputs + 1 + p].data)
            return kMissing;
        if (!y.data) continue;
        for (int d = 0; d + 1 < x.rank; ++d)
            if (y.dim[d] != x.dim[d]) return kShape;
        const BitsPart part = bits_part(a, outputs, p);
        const int64_t form[] = {part.s.n, part.s.bits, part.s.group, outputs == 1 ? a.i[5] : a.i[3 + 2 * p]};
        if (const char *e = bits_check(*part.w, form, part.s.k)) return e;
        if (y.dim[y.rank - 1] != part.s.n) return kShape;
        // What is prepared of x, and the room for it, is that of the first output.
        if (!part.s.vector != !bits_part(a, outputs, 0).s.vector) return kParam;
        const bool one = outputs == 1;
        if (const char *e = epilogue_check(y, *part.bias, one ? a.op[4] : View(), part.s.n, a.i[0], one ? a.i[1] : 0))
            return e;
    }
    return nullptr;
}

// Few rows: every code byte is read once, and looked up for each of them; the tables are built in passing.
static int64_t bits_cost(const BitsShape &s, bool fast) {
    const double m = (double)s.m, bytes = (double)s.tiles() * (double)s.tile_bytes();
    if (s.m > kTableRows || s.vector || (fast && s.m >= kManyRows)) return product_cost(m, (double)s.n, (double)s.k, bytes);
    const double look = m * bytes / 25, memory = bytes / 15, ns = (look > memory ? look : memory) + m * (double)s.k;
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}

static int64_t product_tiles(const Args &a, int outputs) {
    int64_t tiles = 0;
    for (int p = 0; p < outputs && leading(a.op[outputs]) > 0; ++p)
        if (a.op[p].data) tiles += bits_part(a, outputs, p).s.tiles();
    return tiles;
}
static int64_t product_cost_of(const Args &a, int outputs) {
    int64_t ns = 0;
    for (int p = 0; p < outputs; ++p)
        if (a.op[p].data) ns += bits_cost(bits_part(a, outputs, p).s, bits_fast(a, outputs));
    return ns;
}

const char *linear_bits_check(const Args &a) { return product_check(a, 1); }
int64_t linear_bits_tiles(const Args &a) { return product_tiles(a, 1); }
int64_t linear_bits_cost(const Args &a) { return product_cost_of(a, 1); }
int64_t linear_bits_scratch(const Args &a) { return palette_place(a, 1, 1); }

const char *linear_bits_split_check(const Args &a) { return product_check(a, kBitsOutputs); }
int64_t linear_bits_split_tiles(const Args &a) { return product_tiles(a, kBitsOutputs); }
int64_t linear_bits_split_cost(const Args &a) { return product_cost_of(a, kBitsOutputs); }
int64_t linear_bits_split_scratch(const Args &a) { return palette_place(a, kBitsOutputs, kBitsOutputs); }

const char *conv2d_bits_check(const Args &a) {
    if (!arity(a, 5, 14, 2)) return kArity;
    const View &y = a.op[0], &x = a.op[1];
    if (const char *e = window_check(y, x, a.i)) return e;
    const int64_t taps = a.i[0] * a.i[1];
    if (x.dim[3] > kMaxDim / taps || y.dim[3] != a.i[10]) return kShape;
    if (const char *e = bits_check(a.op[2], a.i + 10, taps * x.dim[3])) return e;
    return epilogue_check(y, a.op[3], a.op[4], y.dim[3], a.i[8], a.i[9]);
}
int64_t conv2d_bits_tiles(const Args &a) {
    const ConvShape c = conv_shape(a, 1);
    return c.pixel_blocks * bits_shape(a.i + 10, c.k).tiles();
}
int64_t conv2d_bits_cost(const Args &a) {
    const ConvShape c = conv_shape(a, 1);
    const BitsShape s = bits_shape(a.i + 10, c.k);
    return product_cost((double)c.pixels, (double)s.n, (double)s.k, (double)s.tiles() * (double)s.tile_bytes());
}
int64_t conv2d_bits_scratch(const Args &a) {  // the gathered rows, then what a product with them needs
    const ConvShape c = conv_shape(a, 1);
    BitsShape s = bits_shape(a.i + 10, c.k);
    s.m = c.pixel_block;
    return (c.pointwise ? 0 : c.pixel_block * c.k * (int64_t)sizeof(float)) + bits_scratch(s);
}

// gather_bits: one tile per index.
const char *gather_bits_check(const Args &a) {
    if (!arity(a, 3, 5, 0)) return kArity;
    const View &y = a.op[0], &idx = a.op[2];
    if (!activation(y) || !plain(idx) || !bounded(idx)) return kMissing;
    if (idx.dtype != I32 && idx.dtype != I64) return kType;
    if (y.rank != 2 || !is_vector(idx, y.dim[0]) || y.dim[1] != a.i[1]) return kShape;
    const int64_t form[] = {a.i[0], a.i[2], a.i[3], a.i[4]};
    if (a.i[0] < 1 && y.dim[0] > 0) return "the table is empty";
    return bits_check(a.op[1], form, a.i[1]);
}
int64_t gather_bits_tiles(const Args &a) { return a.op[0].dim[0]; }
int64_t gather_bits_cost(const Args &a) { return price(count_of(a.op[0]), 10 * a.i[2]); }
int64_t gather_bits_scratch(const Args &) { return 0; }

}  // namespace edgec
