// bitwise: and, or, xor and shifts of whole numbers, broadcasting. A shift by less than 0 or by 64 and more leaves
// nothing of the number but its sign. Smaller types are cast: their bits are the lowest of the wide result.

void bitwise(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], *x[2] = {&a.op[1], &a.op[2]};
    const Nest nest = nest_broadcast(y, x, 2);
    const int64_t op = a.i[0], sp = nest.stride[0][nest.rank - 1], sq = nest.stride[1][nest.rank - 1];
    const int64_t end = imin(elements(y), tile_end * kFlatTile);
    for (Walk w = walk_begin(nest, tile_begin * kFlatTile, end); w.n > 0; walk_next(nest, &w)) {
        const int64_t *p = (const int64_t *)x[0]->data + w.off[0], *q = (const int64_t *)x[1]->data + w.off[1];
        int64_t *to = (int64_t *)y.data + w.at;
        for (int64_t i = 0; i < w.n; ++i) {
            const int64_t l = p[i * sp], r = q[i * sq];
            const bool far = r < 0 || r > 63;
            switch (op) {
                case 0: to[i] = l & r; break;
                case 1: to[i] = l | r; break;
                case 2: to[i] = l ^ r; break;
                case 3: to[i] = far ? 0 : (int64_t)((uint64_t)l << r); break;
                default: to[i] = l >> (far ? 63 : r); break;
            }
        }
    }
}
