// topk: y[O, K, I] are the K largest (or smallest) of x[O, R, I] in order, at[O, K, I] where they stand. Of equals the
// first comes first. A NaN is never ahead of a number: it has a place only where there is no number left for it.

void topk(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &x = a.op[2];
    const int64_t k = y.dim[1], r = x.dim[1], inner = x.dim[2], n = x.dim[0] * inner;
    const bool least = a.i[0] != 0;
    const int64_t per_tile = tile_rows(r);
    for (int64_t t = tile_begin * per_tile; t < imin(n, tile_end * per_tile); ++t) {
        const float *from = (const float *)x.data + t / inner * r * inner + t % inner;
        float *best = (float *)y.data + t / inner * k * inner + t % inner;
        int64_t *at = (int64_t *)a.op[1].data + t / inner * k * inner + t % inner;
        int64_t held = 0;
        for (int64_t i = 0; i < r; ++i) {
            const float v = from[i * inner];
            int64_t place = held;
            for (; place > 0; --place) {  // behind the last one that is not worse
                const float w = best[(place - 1) * inner];
                if (!((least ? v < w : v > w) || (w != w && v == v))) break;
                if (place < k) {
                    best[place * inner] = w;
                    at[place * inner] = at[(place - 1) * inner];
                }
            }
            if (place >= k) continue;
            best[place * inner] = v;
            at[place * inner] = i;
            held += held < k;
        }
    }
}
