// cache[h, past + t] = x[t, h]: the new keys or values of T tokens go to their places in the state. One tile is a
// token.

void kv_write(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &cache = a.op[0];
    const int64_t heads = cache.dim[0], capacity = cache.dim[1], d = cache.dim[2], past = a.i[0];
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
            const float *x = (const float *)a.op[1].data + (t * heads + h) * d;
            const int64_t at = (h * capacity + past + t) * d;
            if (cache.dtype == F32) {
                memcpy((float *)cache.data + at, x, (size_t)d * sizeof(float));
            } else {
                for (int64_t j = 0; j < d; j += L)
                    vstore_f16_upto((uint16_t *)cache.data + at + j, vload_upto(x + j, imin(L, d - j)), imin(L, d - j));
            }
        }
    }
}
