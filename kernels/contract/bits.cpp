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

struct BitsCall {
    const View *y, *in;  // in: x, w, bias?
    int outputs;
    const int64_t *i;    // N bits group uniform
};
static BitsCall bits_call(const Args &a, int outputs) {
    return {a.op, a.op + outputs, outputs, a.i + (outputs == 1 ? 2 : 1)};
}

static const char *product_check(const Args &a, int outputs) {
    const BitsCall c = bits_call(a, outputs);
    const View &x = c.in[0];
    if (!c.y->data || !activation(x)) return kMissing;
    if (x.rank < 1 || leading(x) > kMaxDim) return kShape;
    if (const char *e = bits_check(c.in[1], c.i, x.dim[x.rank - 1])) return e;
    int64_t n = 0;
    for (const View *y = c.y; y < c.in; ++y) {
        if (!y->data) continue;
        if (!activation(*y)) return kMissing;
        if (y->rank != x.rank) return kShape;
        for (int d = 0; d + 1 < x.rank; ++d)
            if (y->dim[d] != x.dim[d]) return kShape;
        if (n % kBitsRows != 0) return "an output begins inside a tile of 64 rows";
        n += y->dim[y->rank - 1];
    }
    if (n != c.i[0]) return kShape;
    return epilogue_check(*c.y, c.in[2], outputs == 1 ? c.in[3] : View(), n, a.i[0], outputs == 1 ? a.i[1] : 0);
}

static BitsShape product_shape(const Args &a, int outputs) {
    const BitsCall c = bits_call(a, outputs);
    const View &x = c.in[0];
    BitsShape s = bits_shape(c.i, x.dim[x.rank - 1]);
    s.m = leading(x);
    return s;
}
static int64_t product_tiles(const BitsShape &s) { return s.m > 0 ? s.tiles() : 0; }
// Few rows: every code byte is read once, and looked up for each of them; the tables are built in passing.
static int64_t bits_cost(const BitsShape &s) {
    const double m = (double)s.m, bytes = (double)s.tiles() * (double)s.tile_bytes();
    if (s.m > kTableRows) return product_cost(m, (double)s.n, (double)s.k, bytes);
    const double look = m * bytes / 25, memory = bytes / 15, ns = (look > memory ? look : memory) + m * (double)s.k;
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}

const char *linear_bits_check(const Args &a) { return arity(a, 5, 6, 2) ? product_check(a, 1) : kArity; }
int64_t linear_bits_tiles(const Args &a) { return product_tiles(product_shape(a, 1)); }
int64_t linear_bits_cost(const Args &a) { return bits_cost(product_shape(a, 1)); }
int64_t linear_bits_scratch(const Args &a) { return bits_scratch(product_shape(a, 1)); }

const char *linear_bits_split_check(const Args &a) {
    return arity(a, kBitsOutputs + 3, 5, 2) ? product_check(a, kBitsOutputs) : kArity;
}
int64_t linear_bits_split_tiles(const Args &a) { return product_tiles(product_shape(a, kBitsOutputs)); }
int64_t linear_bits_split_cost(const Args &a) { return bits_cost(product_shape(a, kBitsOutputs)); }
int64_t linear_bits_split_scratch(const Args &a) { return bits_scratch(product_shape(a, kBitsOutputs)); }

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
