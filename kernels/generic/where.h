// Choice between two operands, element by element, with numpy's broadcasting.

template <class T>
EDGEC_INLINE void where_row(T *y, const uint8_t *c, const T *p, const T *q, const int64_t *s, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = c[i * s[0]] ? p[i * s[1]] : q[i * s[2]];
}

void where(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], *x[3] = {&a.op[1], &a.op[2], &a.op[3]};
    const Nest nest = nest_broadcast(y, x, 3);
    const int last = nest.rank - 1;
    const int64_t s[3] = {nest.stride[0][last], nest.stride[1][last], nest.stride[2][last]};
    const int64_t size = dtype_size(y.dtype), end = imin(elements(y), tile_end * kFlatTile);
    for (Walk w = walk_begin(nest, tile_begin * kFlatTile, end); w.n > 0; walk_next(nest, &w)) {
        const uint8_t *c = (const uint8_t *)x[0]->data + w.off[0];
        const uint8_t *p = (const uint8_t *)x[1]->data + w.off[1] * size,
                      *q = (const uint8_t *)x[2]->data + w.off[2] * size;
        uint8_t *to = (uint8_t *)y.data + w.at * size;
        switch (size) {
            case 1: where_row(to, c, p, q, s, w.n); break;
            case 2: where_row((uint16_t *)to, c, (const uint16_t *)p, (const uint16_t *)q, s, w.n); break;
            case 4: where_row((uint32_t *)to, c, (const uint32_t *)p, (const uint32_t *)q, s, w.n); break;
            default: where_row((uint64_t *)to, c, (const uint64_t *)p, (const uint64_t *)q, s, w.n); break;
        }
    }
}
