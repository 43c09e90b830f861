// Kernels that move elements: transpose, slice, concat, pad, expand, copy, iota. Work is cut in tiles of output elements;
// a tile finds its own place, so tiles need nothing from each other.

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
    if (cols == 3) {  // planes of colours become pixels
        const T *second = x + xs, *third = second + xs;
        for (int64_t i = 0; i < rows; ++i, y += ys) y[0] = x[i], y[1] = second[i], y[2] = third[i];
        return;
    }
    if (cols < 4) {
        for (int64_t j = 0; j < cols; ++j)
            for (int64_t i = 0; i < rows; ++i) y[i * ys + j] = x[i + j * xs];
        return;
    }
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
