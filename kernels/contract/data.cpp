// Contracts of the data and elementwise kernels: what they accept, how their work is cut, about what it costs. An
// empty output has no tiles, and run() is never called for it. Costs are measured with AVX2 or better on data in the
// L2 cache; memory-bound calls may take twice as long.
#include "../strided.h"
#include "checks.h"
#include "shapes.h"

namespace edgec {

static int64_t no_scratch(const Args &) { return 0; }
static int64_t flat_output_tiles(const Args &a) { return flat_tiles(elements(a.op[0])); }

#define EDGEC_SCRATCHLESS(name) \
    int64_t name##_scratch(const Args &a) { return no_scratch(a); }
#define EDGEC_FLAT(name) \
    EDGEC_SCRATCHLESS(name) \
    int64_t name##_tiles(const Args &a) { return flat_output_tiles(a); }

// kv_write: one tile per token.
const char *kv_write_check(const Args &a) {
    if (!arity(a, 2, 1, 0)) return kArity;
    const View &cache = a.op[0], &x = a.op[1];
    if (!plain(cache) || !plain(x, F32)) return kMissing;
    if (kv_row(cache.dtype, 1) < 0) return kType;
    if (cache.rank != 3 || x.rank != 2) return kShape;
    const int64_t heads = cache.dim[0], width = heads > 0 ? x.dim[1] / heads : 0;
    if (x.dim[1] != heads * width || cache.dim[2] != kv_row(cache.dtype, width)) return kShape;
    if (x.dim[0] < 1) return "there is no token to write";
    if (a.i[0] < 0 || a.i[0] > cache.dim[1] - x.dim[0]) return "the tokens do not fit into the cache";
    return nullptr;
}
int64_t kv_write_tiles(const Args &a) { return elements(a.op[0]) == 0 ? 0 : a.op[1].dim[0]; }
int64_t kv_write_cost(const Args &a) { return price(elements(a.op[1]), 2); }
EDGEC_SCRATCHLESS(kv_write)

// rmsnorm, layernorm: a tile is a group of rows.
static const char *norm_check(const Args &a, int ops) {
    if (!arity(a, ops, 0, 1)) return kArity;
    const View &y = a.op[0], &x = a.op[2];
    if (!plain(y, F32) || !plain(x, F32)) return kMissing;
    if (x.rank < 1 || !same_dims(y, x)) return kShape;
    for (int k = 1; k <= 3; k += 2) {
        if (!a.op[k].data) continue;
        if (!plain(a.op[k], F32)) return kMissing;
        if (!same_dims(a.op[k], x)) return kShape;
    }
    for (int k = 4; k < ops; ++k) {
        if (!a.op[k].data) continue;
        if (!plain(a.op[k], F32)) return kMissing;
        if (!is_vector(a.op[k], x.dim[x.rank - 1])) return kShape;
    }
    return nullptr;
}
// Groups of rows of the last dim of v.
static int64_t group_tiles(const View &v) {
    return elements(v) == 0 ? 0 : ceil_div(row_count(v), tile_rows(v.dim[v.rank - 1]));
}
const char *rmsnorm_check(const Args &a) { return norm_check(a, 5); }
int64_t rmsnorm_tiles(const Args &a) { return group_tiles(a.op[0]); }
int64_t rmsnorm_cost(const Args &a) { return price(elements(a.op[0]), 2); }
EDGEC_SCRATCHLESS(rmsnorm)
const char *layernorm_check(const Args &a) { return norm_check(a, 6); }
int64_t layernorm_tiles(const Args &a) { return group_tiles(a.op[0]); }
int64_t layernorm_cost(const Args &a) { return price(elements(a.op[0]), 4); }
EDGEC_SCRATCHLESS(layernorm)

// rope: one tile per token.
const char *rope_check(const Args &a) {
    if (!arity(a, 4, 3, 0)) return kArity;
    for (int k = 0; k < 4; ++k)
        if (!plain(a.op[k], F32)) return kMissing;
    const View &y = a.op[0], &c = a.op[2], &s = a.op[3];
    const int64_t heads = a.i[0], r = a.i[1];
    if (y.rank != 2 || !same_dims(y, a.op[1]) || c.rank != 2 || !same_dims(c, s) || c.dim[0] != y.dim[0]) return kShape;
    if (heads < 1 || y.dim[1] % heads != 0 || !between(a.i[2], 0, 1)) return kParam;
    if (r < 2 || r % 2 != 0 || r > y.dim[1] / heads || c.dim[1] != r / 2) return kParam;
    return nullptr;
}
int64_t rope_tiles(const Args &a) { return a.op[0].dim[0]; }
int64_t rope_cost(const Args &a) { return price(elements(a.op[0]), a.i[2] ? 4 : 2); }
EDGEC_SCRATCHLESS(rope)

// unary, glu: flat.
const char *unary_check(const Args &a) {
    if (!arity(a, 2, 1, 2)) return kArity;
    if (!plain(a.op[0]) || !plain(a.op[1])) return kMissing;
    const int64_t op = a.i[0];
    if (!between(op, 0, 13) && !between(op, 32, 47)) return "unknown unary code";
    const uint8_t wanted = op == 45 ? BOOL : F32;
    if (a.op[0].dtype != wanted || a.op[1].dtype != wanted) return kType;
    return same_dims(a.op[0], a.op[1]) ? nullptr : kShape;
}
int64_t unary_cost(const Args &a) {
    const int64_t op = a.i[0];
    const bool library = op == 39 || op == 40, curved = between(op, 3, 13) || between(op, 34, 38) || op == 46;
    return price(elements(a.op[0]), library ? 30 : curved ? 5 : 2);
}
EDGEC_FLAT(unary)

const char *glu_check(const Args &a) {
    if (!arity(a, 3, 1, 2)) return kArity;
    for (int k = 0; k < 3; ++k)
        if (!plain(a.op[k], F32)) return kMissing;
    if (!between(a.i[0], 0, 13)) return "unknown activation code";
    return same_dims(a.op[0], a.op[1]) && same_dims(a.op[0], a.op[2]) ? nullptr : kShape;
}
int64_t glu_cost(const Args &a) { return price(elements(a.op[0]), a.i[0] > 2 ? 5 : 3); }
EDGEC_FLAT(glu)

// binary, where: flat over the output.
const char *binary_check(const Args &a) {
    if (!arity(a, 3, 1, 0)) return kArity;
    const View &y = a.op[0], &p = a.op[1], &q = a.op[2];
    if (!plain(y) || !plain(p) || !plain(q)) return kMissing;
    const int64_t op = a.i[0];
    if (!between(op, 0, 15)) return "unknown binary code";
    const bool logic = op >= 13, compares = between(op, 8, 12);
    if (p.dtype != q.dtype) return kType;
    if (p.dtype == BOOL ? !logic && op != 8 : logic || (p.dtype != F32 && p.dtype != I32 && p.dtype != I64))
        return kType;
    if (y.dtype != (compares ? (uint8_t)BOOL : p.dtype)) return kType;
    return broadcasts(y, &a.op[1], 2) ? nullptr : kShape;
}
int64_t binary_cost(const Args &a) { return price(elements(a.op[0]), a.i[0] == 4 || a.i[0] == 7 ? 50 : 3); }
EDGEC_FLAT(binary)

const char *where_check(const Args &a) {
    if (!arity(a, 4, 0, 0)) return kArity;
    for (int k = 0; k < 4; ++k)
        if (!plain(a.op[k])) return kMissing;
    const uint8_t dtype = a.op[0].dtype;
    if (a.op[1].dtype != BOOL || a.op[2].dtype != dtype || a.op[3].dtype != dtype) return kType;
    return broadcasts(a.op[0], &a.op[1], 3) ? nullptr : kShape;
}
int64_t where_cost(const Args &a) { return price(elements(a.op[0]), 4); }
EDGEC_FLAT(where)

// softmax, reduce, argmax.
const char *softmax_check(const Args &a) {
    if (!arity(a, 2, 1, 0)) return kArity;
    if (!plain(a.op[0], F32) || !plain(a.op[1], F32)) return kMissing;
    if (!between(a.i[0], 0, 1)) return kParam;
    return a.op[1].rank >= 1 && same_dims(a.op[0], a.op[1]) ? nullptr : kShape;
}
int64_t softmax_tiles(const Args &a) { return group_tiles(a.op[0]); }
int64_t softmax_cost(const Args &a) { return price(elements(a.op[0]), 5); }
EDGEC_SCRATCHLESS(softmax)

static bool reduces(const View &y, const View &x) {
    return y.rank == 2 && x.rank == 3 && y.dim[0] == x.dim[0] && y.dim[1] == x.dim[2];
}
const char *reduce_check(const Args &a) {
    if (!arity(a, 2, 1, 0)) return kArity;
    if (!plain(a.op[0], F32) || !plain(a.op[1], F32)) return kMissing;
    if (!between(a.i[0], 0, 7)) return "unknown reduction code";
    return reduces(a.op[0], a.op[1]) ? nullptr : kShape;
}
int64_t reduce_tiles(const Args &a) {
    const View &x = a.op[1];
    if (elements(a.op[0]) == 0) return 0;
    if (x.dim[2] == 1) return ceil_div(x.dim[0], tile_rows(x.dim[1]));
    return x.dim[0] * ceil_div(x.dim[2], kColumnTile);
}
int64_t reduce_cost(const Args &a) { return price(elements(a.op[1]), a.i[0] == 4 ? 10 : 2); }
EDGEC_SCRATCHLESS(reduce)

const char *argmax_check(const Args &a) {
    if (!arity(a, 2, 1, 0)) return kArity;
    if (!plain(a.op[0], I64) || !plain(a.op[1], F32)) return kMissing;
    if (!between(a.i[0], 0, 1)) return kParam;
    if (!reduces(a.op[0], a.op[1])) return kShape;
    return a.op[1].dim[1] < 1 ? "there is nothing to choose from" : nullptr;
}
int64_t argmax_tiles(const Args &a) { return ceil_div(elements(a.op[0]), tile_rows(a.op[1].dim[1])); }
int64_t argmax_cost(const Args &a) { return price(elements(a.op[1]), a.op[1].dim[2] == 1 ? 3 : 15); }
EDGEC_SCRATCHLESS(argmax)

// bitwise: flat.
const char *bitwise_check(const Args &a) {
    if (!arity(a, 3, 1, 0)) return kArity;
    const View &y = a.op[0], &p = a.op[1], &q = a.op[2];
    if (!plain(y, I64) || !plain(p, I64) || !plain(q, I64)) return kMissing;
    if (!between(a.i[0], 0, 4)) return kParam;
    return broadcasts(y, &p, 2) ? nullptr : kShape;
}
int64_t bitwise_cost(const Args &a) { return price(elements(a.op[0]), 5); }
EDGEC_FLAT(bitwise)

// gather: a tile is a group of output rows.
const char *gather_check(const Args &a) {
    if (!arity(a, 3, 0, 0)) return kArity;
    const View &y = a.op[0], &table = a.op[1], &idx = a.op[2];
    if (!plain(y) || !sized(table) || bytes_of(table) < 0 || !plain(idx)) return kMissing;
    const bool real = table.dtype == F32 || table.dtype == F16 || table.dtype == BF16;
    if (idx.dtype != I32 && idx.dtype != I64) return "indices must be i32 or i64";
    if (y.dtype != (real ? (uint8_t)F32 : table.dtype)) return kType;
    const bool panels = table.format == PANEL16;
    if (y.rank != 3 || table.rank != (panels ? 2 : 3) || !is_vector(idx, y.dim[1])) return kShape;
    if (y.dim[0] != (panels ? 1 : table.dim[0]) || y.dim[2] != table.dim[table.rank - 1]) return kShape;
    return table.dim[table.rank - 2] < 1 ? "the table has no rows" : nullptr;
}
int64_t gather_tiles(const Args &a) {
    const View &y = a.op[0];
    return elements(y) == 0 ? 0 : ceil_div(y.dim[0] * y.dim[1], tile_rows(y.dim[2]));
}
int64_t gather_cost(const Args &a) { return price(elements(a.op[0]), a.op[1].format == PANEL16 ? 10 : 2); }
EDGEC_SCRATCHLESS(gather)

// scatter: one tile, for later rows may meet the same place again.
const char *scatter_check(const Args &a) {
    if (!arity(a, 4, 1, 0)) return kArity;
    const View &y = a.op[0], &x = a.op[1], &idx = a.op[2], &u = a.op[3];
    if (!plain(y) || !plain(x) || !plain(idx) || !plain(u)) return kMissing;
    if (idx.dtype != I32 && idx.dtype != I64) return "indices must be i32 or i64";
    if (!between(a.i[0], 0, 4)) return kParam;
    if (y.dtype != x.dtype || y.dtype != u.dtype || (a.i[0] != 0 && y.dtype != F32)) return kType;
    if (y.rank != 2 || !same_dims(y, x) || u.rank != 2 || u.dim[1] != y.dim[1] || !is_vector(idx, u.dim[0])) return kShape;
    return y.dim[0] < 1 ? "there is no row" : nullptr;
}
int64_t scatter_tiles(const Args &a) { return elements(a.op[0]) == 0 ? 0 : 1; }
int64_t scatter_cost(const Args &a) { return price(elements(a.op[0]), 2) + price(elements(a.op[3]), 10); }
EDGEC_SCRATCHLESS(scatter)

// topk: a tile is a group of rows, or of columns.
const char *topk_check(const Args &a) {
    if (!arity(a, 3, 1, 0)) return kArity;
    const View &y = a.op[0], &at = a.op[1], &x = a.op[2];
    if (!plain(y, F32) || !plain(at, I64) || !plain(x, F32)) return kMissing;
    if (y.rank != 3 || !same_dims(y, at) || x.rank != 3 || y.dim[0] != x.dim[0] || y.dim[2] != x.dim[2]) return kShape;
    if (!flag(a.i[0])) return kParam;
    return y.dim[1] > x.dim[1] ? "there are not so many values" : nullptr;
}
int64_t topk_tiles(const Args &a) {
    const View &x = a.op[2];
    return elements(a.op[0]) == 0 ? 0 : ceil_div(x.dim[0] * x.dim[2], tile_rows(x.dim[1]));
}
int64_t topk_cost(const Args &a) { return price(elements(a.op[2]), 10 + 2 * imin(a.op[0].dim[1], 100)); }
EDGEC_SCRATCHLESS(topk)

// transpose: tiles are blocks of planes, or flat where rows stay rows.
const char *transpose_check(const Args &a) {
    if (a.n_op != 2 || a.n_f != 0) return kArity;
    const View &y = a.op[0], &x = a.op[1];
    if (!plain(y) || !plain(x)) return kMissing;
    if (y.dtype != x.dtype) return kType;
    if (a.n_i != x.rank || y.rank != x.rank) return kArity;
    unsigned seen = 0;
    for (int d = 0; d < x.rank; ++d) {
        if (!between(a.i[d], 0, x.rank - 1) || (seen >> a.i[d] & 1)) return "perm is not a permutation of the dims";
        seen |= 1u << a.i[d];
        if (y.dim[d] != x.dim[a.i[d]]) return kShape;
    }
    return nullptr;
}
int64_t transpose_tiles(const Args &a) {
    if (elements(a.op[0]) == 0) return 0;
    int down;
    const Nest nest = nest_transpose(a.op[0], a.op[1], a.i, &down);
    if (down < 0) return flat_output_tiles(a);
    int64_t outer = 1;
    for (int d = 0; d + 1 < nest.rank; ++d)
        if (d != down) outer *= nest.dim[d];
    return outer * ceil_div(nest.dim[down], kTransposeRows) * ceil_div(nest.dim[nest.rank - 1], kTransposeCols);
}
int64_t transpose_cost(const Args &a) { return price(elements(a.op[0]), 4); }
EDGEC_SCRATCHLESS(transpose)

// slice, concat, pad, expand.
const char *slice_check(const Args &a) {
    if (a.n_op != 2 || a.n_f != 0) return kArity;
    const View &y = a.op[0], &x = a.op[1];
    if (!plain(y) || !plain(x)) return kMissing;
    if (y.dtype != x.dtype) return kType;
    if (y.rank != x.rank || a.n_i != 2 * x.rank) return kArity;
    if (elements(y) == 0) return nullptr;
    for (int d = 0; d < x.rank; ++d) {
        const int64_t start = a.i[d], step = a.i[x.rank + d], n = y.dim[d];
        if (!between(start, 0, x.dim[d] - 1)) return "a slice starts outside its dim";
        if (n == 1) continue;
        if (step == 0 || step == INT64_MIN) return "a slice has an impossible step";
        const int64_t room = step > 0 ? (x.dim[d] - 1 - start) / step : start / -step;
        if (n - 1 > room) return "a slice ends outside its dim";
    }
    return nullptr;
}
int64_t slice_cost(const Args &a) { return price(elements(a.op[0]), 3); }
EDGEC_FLAT(slice)

const char *concat_check(const Args &a) {
    if (a.n_op < 2 || a.n_i != 1 || a.n_f != 0) return kArity;
    const View &y = a.op[0];
    const int64_t axis = a.i[0];
    if (!plain(y)) return kMissing;
    if (!between(axis, 0, y.rank - 1)) return "the axis is not one of the dims";
    int64_t left = y.dim[axis];
    for (int k = 1; k < a.n_op; ++k) {
        const View &x = a.op[k];
        if (!plain(x)) return kMissing;
        if (x.dtype != y.dtype) return kType;
        if (x.rank != y.rank) return kShape;
        for (int d = 0; d < y.rank; ++d)
            if (d != axis && x.dim[d] != y.dim[d]) return kShape;
        if (x.dim[axis] > left) return kShape;
        left -= x.dim[axis];
    }
    return left == 0 ? nullptr : kShape;
}
int64_t concat_tiles(const Args &a) { return ceil_div(elements(a.op[0]) * dtype_size(a.op[0].dtype), kConcatTile); }
int64_t concat_cost(const Args &a) { return price(elements(a.op[0]), 2); }
EDGEC_SCRATCHLESS(concat)

const char *pad_check(const Args &a) {
    if (a.n_op != 2 || a.n_f != 1) return kArity;
    const View &y = a.op[0], &x = a.op[1];
    if (!plain(y, F32) || !plain(x, F32)) return kMissing;
    if (x.rank < 1 || y.rank != x.rank) return kShape;
    if (a.n_i != x.rank + 1) return kArity;
    const int64_t mode = a.i[x.rank];
    if (!between(mode, 0, 2)) return "unknown padding mode";
    for (int d = 0; d < x.rank; ++d) {
        const int64_t begin = a.i[d], end = y.dim[d] - x.dim[d] - (between(begin, 0, y.dim[d]) ? begin : 0);
        if (!between(begin, 0, y.dim[d]) || end < 0) return "the padding does not give the output's shape";
        if (mode == 1 && x.dim[d] == 0 && y.dim[d] > 0) return "nothing to repeat in an empty dim";
        if (mode == 2 && begin + end > 0 && imax(begin, end) >= x.dim[d]) return "reflection reaches beyond the input";
    }
    return nullptr;
}
int64_t pad_tiles(const Args &a) { return group_tiles(a.op[0]); }
int64_t pad_cost(const Args &a) { return price(elements(a.op[0]), 2); }
EDGEC_SCRATCHLESS(pad)

const char *expand_check(const Args &a) {
    if (!arity(a, 2, 0, 0)) return kArity;
    const View &y = a.op[0], &x = a.op[1];
    if (!plain(y) || !plain(x)) return kMissing;
    if (y.dtype != x.dtype) return kType;
    if (x.rank > y.rank) return kShape;
    for (int d = 0; d < x.rank; ++d)
        if (x.dim[d] != 1 && x.dim[d] != y.dim[d + y.rank - x.rank]) return kShape;
    return nullptr;
}
int64_t expand_cost(const Args &a) { return price(elements(a.op[0]), 3); }
EDGEC_FLAT(expand)

// cast, copy, iota: flat.
const char *cast_check(const Args &a) {
    if (!arity(a, 2, 0, 0)) return kArity;
    if (!plain(a.op[0]) || !plain(a.op[1])) return kMissing;
    return same_dims(a.op[0], a.op[1]) ? nullptr : kShape;
}
int64_t cast_cost(const Args &a) {
    return price(elements(a.op[0]), a.op[0].dtype <= BF16 && a.op[1].dtype <= BF16 ? 2 : 20);
}
EDGEC_FLAT(cast)

const char *copy_check(const Args &a) {
    if (!arity(a, 2, 0, 0)) return kArity;
    if (!plain(a.op[0]) || !plain(a.op[1])) return kMissing;
    if (a.op[0].dtype != a.op[1].dtype) return kType;
    return elements(a.op[0]) == elements(a.op[1]) ? nullptr : "the element counts differ";
}
int64_t copy_cost(const Args &a) { return price(elements(a.op[0]), 2); }
EDGEC_FLAT(copy)

const char *iota_check(const Args &a) {
    if (!arity(a, 1, 2, 0)) return kArity;
    if (!plain(a.op[0], I64)) return kMissing;
    return a.op[0].rank == 1 ? nullptr : kShape;
}
int64_t iota_cost(const Args &a) { return price(elements(a.op[0]), 5); }
EDGEC_FLAT(iota)

#undef EDGEC_FLAT
#undef EDGEC_SCRATCHLESS

}  // namespace edgec
