// Kernels that move or convert elements: transpose, slice, concat, pad, expand, cast, copy, iota. Work is cut in tiles
// of output elements; a tile finds its own place, so tiles need nothing from each other.

// Rows of a one-input nest, copied with the row's stride.
EDGEC_NOINLINE void move_nest(const Nest &nest, const View &y, const uint8_t *x, int64_t begin, int64_t end) {
    const int64_t size = dtype_size(y.dtype), stride = nest.stride[0][nest.rank - 1];
    for (Walk w = walk_begin(nest, begin, end); w.n > 0; walk_next(nest, &w))
        copy_strided((uint8_t *)y.data + w.at * size, x + w.off[0] * size, size, stride, w.n);
}

void expand(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], *x = &a.op[1];
    const int64_t end = imin(elements(y), tile_end * kFlatTile);
    move_nest(nest_broadcast(y, &x, 1), y, (const uint8_t *)x->data, tile_begin * kFlatTile, end);
}

void slice(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &x = a.op[1];
    Nest nest;
    nest.rank = y.rank;
    nest.inputs = 1;
    int64_t s[kMaxRank], first = 0;
    strides_of(x, s);
    for (int d = 0; d < y.rank; ++d) {
        nest.dim[d] = y.dim[d];
        nest.stride[0][d] = y.dim[d] == 1 ? 0 : s[d] * a.i[y.rank + d];
        first += s[d] * a.i[d];
    }
    nest_collapse(&nest);
    const int64_t end = imin(elements(y), tile_end * kFlatTile);
    move_nest(nest, y, (const uint8_t *)x.data + first * dtype_size(y.dtype), tile_begin * kFlatTile, end);
}

// A block of rows x cols of a plane whose x runs down its rows: x[i + j * xs] to y[i * ys + j].
template <class T>
EDGEC_INLINE void transpose_block(T *y, const T *x, int64_t ys, int64_t xs, int64_t rows, int64_t cols) {
    for (int64_t j = 0; j < cols; j += 16) {
        const int64_t stop = imin(cols, j + 16);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t k = j; k < stop; ++k) y[i * ys + k] = x[i + k * xs];
    }
}

EDGEC_NOINLINE void transpose_planes(const Nest &nest, const View &y, const View &x, int down, int64_t tile_begin,
                                     int64_t tile_end) {
    const int last = nest.rank - 1;
    const int64_t size = dtype_size(y.dtype), xs = nest.stride[0][last];
    int64_t ys = nest.dim[last];
    for (int d = last - 1; d > down; --d) ys *= nest.dim[d];
    const int64_t row_blocks = ceil_div(nest.dim[down], kTransposeRows),
                  col_blocks = ceil_div(nest.dim[last], kTransposeCols);
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        int64_t rest = t / col_blocks, to = 0, from = 0, step = nest.dim[last];
        const int64_t j = t % col_blocks * kTransposeCols, i = rest % row_blocks * kTransposeRows;
        rest /= row_blocks;
        for (int d = last - 1; d >= 0; --d) {
            if (d != down) {
                to += rest % nest.dim[d] * step;
                from += rest % nest.dim[d] * nest.stride[0][d];
                rest /= nest.dim[d];
            }
            step *= nest.dim[d];
        }
        const int64_t rows = imin(kTransposeRows, nest.dim[down] - i), cols = imin(kTransposeCols, nest.dim[last] - j);
        uint8_t *yp = (uint8_t *)y.data + (to + i * ys + j) * size;
        const uint8_t *xp = (const uint8_t *)x.data + (from + i + j * xs) * size;
        switch (size) {
            case 1: transpose_block(yp, xp, ys, xs, rows, cols); break;
            case 2: transpose_block((uint16_t *)yp, (const uint16_t *)xp, ys, xs, rows, cols); break;
            case 4: transpose_block((uint32_t *)yp, (const uint32_t *)xp, ys, xs, rows, cols); break;
            default: transpose_block((uint64_t *)yp, (const uint64_t *)xp, ys, xs, rows, cols); break;
        }
    }
}

void transpose(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &x = a.op[1];
    int down;
    const Nest nest = nest_transpose(y, x, a.i, &down);
    if (down >= 0) transpose_planes(nest, y, x, down, tile_begin, tile_end);
    else move_nest(nest, y, (const uint8_t *)x.data, tile_begin * kFlatTile, imin(elements(y), tile_end * kFlatTile));
}

// y as rows of bytes [outer, sum of the inputs' parts]; a tile is a range of those bytes.
void concat(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0];
    const int axis = (int)a.i[0];
    int64_t inner = dtype_size(y.dtype), outer = 1;
    for (int d = axis + 1; d < y.rank; ++d) inner *= y.dim[d];
    for (int d = 0; d < axis; ++d) outer *= y.dim[d];
    const int64_t row = y.dim[axis] * inner, end = imin(outer * row, tile_end * kConcatTile);
    int64_t at = tile_begin * kConcatTile;
    while (at < end) {
        const int64_t o = at / row;
        int64_t skip = at % row;
        for (int k = 1; k < a.n_op && at < end; ++k) {
            const int64_t part = a.op[k].dim[axis] * inner;
            if (skip >= part) {
                skip -= part;
                continue;
            }
            const int64_t n = imin(part - skip, end - at);
            memcpy((uint8_t *)y.data + at, (const uint8_t *)a.op[k].data + o * part + skip, (size_t)n);
            at += n;
            skip = 0;
        }
    }
}

enum PadMode { PAD_CONSTANT = 0, PAD_EDGE = 1, PAD_REFLECT = 2 };

// Where output index i of a dim reads; -1 for the constant.
EDGEC_INLINE int64_t pad_index(int64_t i, int64_t n, int64_t mode) {
    if (i >= 0 && i < n) return i;
    if (mode == PAD_CONSTANT) return -1;
    if (mode == PAD_EDGE) return i < 0 ? 0 : n - 1;
    return i < 0 ? -i : 2 * (n - 1) - i;
}

void pad(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &x = a.op[1];
    const int last = y.rank - 1;
    const int64_t mode = a.i[y.rank], n = x.dim[last], width = y.dim[last], lead = a.i[last],
                  per_tile = tile_rows(width);
    const int64_t rows = row_count(y);
    int64_t s[kMaxRank];
    strides_of(x, s);
    for (int64_t r = tile_begin * per_tile; r < imin(rows, tile_end * per_tile); ++r) {
        int64_t rest = r, from = 0;
        bool constant = false;
        for (int d = last - 1; d >= 0; --d) {
            const int64_t i = pad_index(rest % y.dim[d] - a.i[d], x.dim[d], mode);
            rest /= y.dim[d];
            constant |= i < 0;
            from += i * s[d];
        }
        float *to = (float *)y.data + r * width;
        const float *row = constant ? nullptr : (const float *)x.data + from;
        for (int64_t i = 0; i < width; ++i) {
            if (i == lead && row && n > 0) {
                memcpy(to + i, row, (size_t)n * sizeof(float));
                i += n - 1;
                continue;
            }
            const int64_t j = row ? pad_index(i - lead, n, mode) : -1;
            to[i] = j < 0 ? a.f[0] : row[j];
        }
    }
}

// cast goes through blocks of float or int64, in which every storage type is exact.
constexpr int kCastBlock = 128;

template <class T, class S> EDGEC_INLINE void cast_widen(T *to, const void *x, int64_t at, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = (T)((const S *)x)[at + i];
}

EDGEC_NOINLINE void cast_read_real(float *to, const View &x, int64_t at, int64_t n) {
    if (x.dtype == F32) {
        memcpy(to, (const float *)x.data + at, (size_t)n * sizeof(float));
        return;
    }
    const uint16_t *h = (const uint16_t *)x.data + at;
    for (int64_t i = 0; i < n; i += L) {
        const int64_t m = imin(L, n - i);
        vstore_upto(to + i, vload_half_upto(h + i, m, x.dtype == BF16), m);
    }
}

EDGEC_NOINLINE void cast_read_whole(int64_t *to, const View &x, int64_t at, int64_t n) {
    switch (x.dtype) {
        case I8: cast_widen<int64_t, int8_t>(to, x.data, at, n); break;
        case U8: cast_widen<int64_t, uint8_t>(to, x.data, at, n); break;
        case I32: cast_widen<int64_t, int32_t>(to, x.data, at, n); break;
        case I64: memcpy(to, (const int64_t *)x.data + at, (size_t)n * sizeof(int64_t)); break;
        default: for (int64_t i = 0; i < n; ++i) to[i] = ((const uint8_t *)x.data)[at + i] != 0; break;
    }
}

EDGEC_NOINLINE void cast_write_real(const View &y, int64_t at, const float *from, int64_t n) {
    if (y.dtype == F32) {
        memcpy((float *)y.data + at, from, (size_t)n * sizeof(float));
    } else if (y.dtype == BF16) {
        for (int64_t i = 0; i < n; ++i) ((uint16_t *)y.data)[at + i] = f32_to_bf16(from[i]);
    } else {
        for (int64_t i = 0; i < n; i += L) {
            const int64_t m = imin(L, n - i);
            vstore_f16_upto((uint16_t *)y.data + at + i, vload_upto(from + i, m), m);
        }
    }
}

// Integers wrap to smaller integers, as in C; floats were saturated before.
EDGEC_NOINLINE void cast_write_whole(const View &y, int64_t at, const int64_t *from, int64_t n) {
    switch (y.dtype) {
        case I8: for (int64_t i = 0; i < n; ++i) ((int8_t *)y.data)[at + i] = (int8_t)from[i]; break;
        case U8: for (int64_t i = 0; i < n; ++i) ((uint8_t *)y.data)[at + i] = (uint8_t)from[i]; break;
        case I32: for (int64_t i = 0; i < n; ++i) ((int32_t *)y.data)[at + i] = (int32_t)from[i]; break;
        case I64: memcpy((int64_t *)y.data + at, from, (size_t)n * sizeof(int64_t)); break;
        default: for (int64_t i = 0; i < n; ++i) ((uint8_t *)y.data)[at + i] = from[i] != 0; break;
    }
}

// Truncates into the range of the dtype; NaN gives 0, for BOOL 1 as it is not zero.
EDGEC_INLINE int64_t cast_saturate(float f, uint8_t dtype) {
    if (dtype == BOOL) return f != 0;
    if (f != f) return 0;
    const int bits = dtype == I64 ? 63 : dtype == I32 ? 31 : dtype == I8 ? 7 : 8;
    const float limit = (float)((uint64_t)1 << bits);
    const int64_t most = bits == 63 ? INT64_MAX : ((int64_t)1 << bits) - 1, least = dtype == U8 ? 0 : -most - 1;
    if (f >= limit) return most;
    if (dtype == U8 ? f <= 0 : f <= -limit) return least;
    return (int64_t)f;
}

void cast(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &x = a.op[1];
    const bool from_real = x.dtype <= BF16, to_real = y.dtype <= BF16;
    const int64_t end = imin(elements(y), tile_end * kFlatTile);
    float real[kCastBlock];
    int64_t whole[kCastBlock];
    for (int64_t at = tile_begin * kFlatTile; at < end; at += kCastBlock) {
        const int64_t n = imin(kCastBlock, end - at);
        if (from_real) cast_read_real(real, x, at, n);
        else cast_read_whole(whole, x, at, n);
        if (from_real && !to_real)
            for (int64_t i = 0; i < n; ++i) whole[i] = cast_saturate(real[i], y.dtype);
        if (!from_real && to_real)
            for (int64_t i = 0; i < n; ++i) real[i] = (float)whole[i];
        if (to_real) cast_write_real(y, at, real, n);
        else cast_write_whole(y, at, whole, n);
    }
}

void copy(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &x = a.op[1];
    const int64_t size = dtype_size(y.dtype), begin = tile_begin * kFlatTile,
                  end = imin(elements(y), tile_end * kFlatTile);
    if (y.data != x.data && begin < end)
        memcpy((uint8_t *)y.data + begin * size, (const uint8_t *)x.data + begin * size,
               (size_t)((end - begin) * size));
}

void iota(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    int64_t *y = (int64_t *)a.op[0].data;
    const uint64_t start = (uint64_t)a.i[0], step = (uint64_t)a.i[1];  // wraps instead of overflowing
    for (int64_t i = tile_begin * kFlatTile; i < imin(a.op[0].dim[0], tile_end * kFlatTile); ++i)
        y[i] = (int64_t)(start + step * (uint64_t)i);
}
