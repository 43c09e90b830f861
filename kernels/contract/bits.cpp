// Contracts of the kernels on weights of few bits.
#include "bits.h"

#include "checks.h"

namespace edgec {

// N bits group uniform, and whether w has exactly the bytes they mean. No product here can overflow: a tile has at most
// 2^35 chunks of 2^11 bytes and as many groups of 1152.
static const char *bits_check(const View &w, const int64_t *i, int64_t k) {
    if (!plain(w, U8)) return kMissing;
    if (!between(i[0], 0, kMaxDim) || !between(i[1], 1, kBitsMost) || !flag(i[3])) return kParam;
    if ((i[2] != 32 && i[2] != 64 && i[2] != kBitsMostGroup) || !between(k, 1, kMaxDim)) return kParam;
    const BitsShape s = bits_shape(i, k);
    const int64_t bytes = count_of(w);
    const bool fits = bytes % s.tile_bytes() == 0 && bytes / s.tile_bytes() == s.tiles();
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
        const bool one = outputs == 1;
        if (const char *e = epilogue_check(y, *part.bias, one ? a.op[4] : View(), part.s.n, a.i[0], one ? a.i[1] : 0))
            return e;
    }
    return nullptr;
}

// Few rows: every code byte is read once, and looked up for each of them; the tables are built in passing.
static int64_t bits_cost(const BitsShape &s) {
    const double m = (double)s.m, bytes = (double)s.tiles() * (double)s.tile_bytes();
    if (s.m > kTableRows) return product_cost(m, (double)s.n, (double)s.k, bytes);
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
        if (a.op[p].data) ns += bits_cost(bits_part(a, outputs, p).s);
    return ns;
}

const char *linear_bits_check(const Args &a) { return product_check(a, 1); }
int64_t linear_bits_tiles(const Args &a) { return product_tiles(a, 1); }
int64_t linear_bits_cost(const Args &a) { return product_cost_of(a, 1); }
int64_t linear_bits_scratch(const Args &a) { return bits_scratch(bits_part(a, 1, 0).s); }

const char *linear_bits_split_check(const Args &a) { return product_check(a, kBitsOutputs); }
int64_t linear_bits_split_tiles(const Args &a) { return product_tiles(a, kBitsOutputs); }
int64_t linear_bits_split_cost(const Args &a) { return product_cost_of(a, kBitsOutputs); }
int64_t linear_bits_split_scratch(const Args &a) { return bits_scratch(bits_part(a, kBitsOutputs, 0).s); }

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
