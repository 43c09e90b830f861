// Walks over strided views: how broadcasting, slicing and transposing kernels find their elements. Independent of the
// instruction set; dims have passed a check function, so nothing here can overflow.
#pragma once
#include "view.h"

namespace edgec {

// Flat kernels (unary, glu, cast, ...) cut their work in tiles of this many elements, whatever the instruction set.
constexpr int64_t kFlatTile = 16384;

// Columns of one tile of a reduction over an inner dim.
constexpr int64_t kColumnTile = 64;

constexpr int64_t kConcatTile = 65536;  // bytes
constexpr int64_t kTransposeRows = 32, kTransposeCols = 1024;

EDGEC_INLINE int64_t flat_tiles(int64_t n) { return ceil_div(n, kFlatTile); }
// Rows of k elements that one tile takes.
EDGEC_INLINE int64_t tile_rows(int64_t k) { return imax(1, kFlatTile / imax(k, 1)); }

// A row-major output and up to three inputs addressed by element strides along the output's dims.
struct Nest {
    int rank = 0, inputs = 0;
    int64_t dim[kMaxRank];
    int64_t stride[3][kMaxRank];
};

// One piece of a walk: n output elements from position `at`, the inputs at element offsets `off`. All lie in one row.
struct Walk {
    int64_t at, n, end;
    int64_t off[3];
    int64_t index[kMaxRank];
};

static inline int64_t elements(const View &v) {
    int64_t n = 1;
    for (int d = 0; d < v.rank; ++d) n *= v.dim[d];
    return n;
}

// The product of all dims but the last.
static inline int64_t row_count(const View &v) {
    int64_t n = 1;
    for (int d = 0; d + 1 < v.rank; ++d) n *= v.dim[d];
    return n;
}

static inline void strides_of(const View &v, int64_t *stride) {
    int64_t s = 1;
    for (int d = v.rank - 1; d >= 0; --d) {
        stride[d] = s;
        s *= v.dim[d];
    }
}

// Merges neighbouring dims that every input walks as one, and drops dims of 1: rows get as long as they can be.
static inline void nest_collapse(Nest *nest) {
    int to = -1;
    for (int d = 0; d < nest->rank; ++d) {
        if (nest->dim[d] == 1) continue;
        bool joins = to >= 0;
        for (int k = 0; k < nest->inputs && joins; ++k)
            joins = nest->stride[k][to] == nest->stride[k][d] * nest->dim[d];
        if (joins) nest->dim[to] *= nest->dim[d];
        else nest->dim[++to] = nest->dim[d];
        for (int k = 0; k < nest->inputs; ++k) nest->stride[k][to] = nest->stride[k][d];
    }
    if (to < 0) {
        nest->dim[++to] = 1;
        for (int k = 0; k < nest->inputs; ++k) nest->stride[k][to] = 0;
    }
    nest->rank = to + 1;
}

// y and inputs that broadcast to it (numpy: aligned at the last dim, 1 repeats).
static inline Nest nest_broadcast(const View &y, const View *const *x, int inputs) {
    Nest nest;
    nest.rank = y.rank;
    nest.inputs = inputs;
    for (int d = 0; d < y.rank; ++d) nest.dim[d] = y.dim[d];
    for (int k = 0; k < inputs; ++k) {
        int64_t s[kMaxRank];
        strides_of(*x[k], s);
        const int lead = y.rank - x[k]->rank;
        for (int d = 0; d < y.rank; ++d) nest.stride[k][d] = d < lead || x[k]->dim[d - lead] == 1 ? 0 : s[d - lead];
    }
    nest_collapse(&nest);
    return nest;
}

// y.dim[k] = x.dim[perm[k]]. *down is the output dim along which x is contiguous when that is not the last one (planes
// are then transposed in blocks), else -1 (rows are copied).
static inline Nest nest_transpose(const View &y, const View &x, const int64_t *perm, int *down) {
    Nest nest;
    nest.rank = y.rank;
    nest.inputs = 1;
    int64_t s[kMaxRank];
    strides_of(x, s);
    for (int d = 0; d < y.rank; ++d) {
        nest.dim[d] = y.dim[d];
        nest.stride[0][d] = s[perm[d]];
    }
    nest_collapse(&nest);
    *down = -1;
    for (int d = 0; d + 1 < nest.rank; ++d)
        if (nest.stride[0][d] == 1) *down = d;
    return nest;
}

static inline void walk_row(const Nest &nest, Walk *w) {
    const int last = nest.rank - 1;
    w->n = imin(w->end - w->at, nest.dim[last] - w->index[last]);
}

// Output elements [begin, end); begin < end.
static inline Walk walk_begin(const Nest &nest, int64_t begin, int64_t end) {
    Walk w;
    w.at = begin;
    w.end = end;
    for (int k = 0; k < nest.inputs; ++k) w.off[k] = 0;
    int64_t rest = begin;
    for (int d = nest.rank - 1; d >= 0; --d) {
        w.index[d] = rest % nest.dim[d];
        rest /= nest.dim[d];
        for (int k = 0; k < nest.inputs; ++k) w.off[k] += w.index[d] * nest.stride[k][d];
    }
    walk_row(nest, &w);
    return w;
}

// The next row, or n = 0 at the end.
static inline void walk_next(const Nest &nest, Walk *w) {
    w->at += w->n;
    if (w->at >= w->end) {
        w->n = 0;
        return;
    }
    int d = nest.rank - 1;
    for (int k = 0; k < nest.inputs; ++k) w->off[k] -= w->index[d] * nest.stride[k][d];
    w->index[d] = 0;
    for (--d; d >= 0; --d) {
        for (int k = 0; k < nest.inputs; ++k) w->off[k] += nest.stride[k][d];
        if (++w->index[d] < nest.dim[d]) break;
        for (int k = 0; k < nest.inputs; ++k) w->off[k] -= nest.dim[d] * nest.stride[k][d];
        w->index[d] = 0;
    }
    walk_row(nest, w);
}

// n elements of `size` bytes from x, `stride` elements apart (0 repeats, negative goes back), to consecutive y.
template <class T> static inline void copy_strided_as(T *y, const T *x, int64_t stride, int64_t n) {
    if (stride == 0) {
        const T v = x[0];
        for (int64_t i = 0; i < n; ++i) y[i] = v;
        return;
    }
    for (int64_t i = 0; i < n; ++i) y[i] = x[i * stride];
}
static inline void copy_strided(void *y, const void *x, int64_t size, int64_t stride, int64_t n) {
    if (stride == 1) {
        memcpy(y, x, (size_t)(n * size));
        return;
    }
    switch (size) {
        case 1: copy_strided_as((uint8_t *)y, (const uint8_t *)x, stride, n); break;
        case 2: copy_strided_as((uint16_t *)y, (const uint16_t *)x, stride, n); break;
        case 4: copy_strided_as((uint32_t *)y, (const uint32_t *)x, stride, n); break;
        default: copy_strided_as((uint64_t *)y, (const uint64_t *)x, stride, n); break;
    }
}

// Row of a table of n that index j of op[2] means: see generic/gather.h.
EDGEC_INLINE int64_t gather_index(const Args &a, int64_t j, int64_t n) {
    const View &idx = a.op[2];
    int64_t i = idx.dtype == I64 ? ((const int64_t *)idx.data)[j] : (int64_t)((const int32_t *)idx.data)[j];
    if (i < -n || i >= n) {
        __atomic_store_n(a.fault, 1, __ATOMIC_RELAXED);  // tiles of other threads may do the same
        return 0;
    }
    return i < 0 ? i + n : i;
}

}  // namespace edgec
