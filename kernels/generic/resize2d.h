// resize2d: every output pixel is a weighted sum of input pixels. Which ones and how much stands in two tables that the
// compiler made (nearest, linear, cubic, antialiased: all the same here). A tile is one output row.

EDGEC_INLINE int64_t resize_index(const Args &a, int table, int64_t at, int64_t n) {
    const int64_t i = ((const int32_t *)a.op[table].data)[at];
    if (i >= 0 && i < n) return i;
    __atomic_store_n(a.fault, 1, __ATOMIC_RELAXED);  // tiles of other threads may do the same
    return 0;
}

// y = or += w x
EDGEC_NOINLINE void resize_tap(float *y, const float *x, float w, int64_t n, bool first) {
    const vf scale = vset(w);
    for (int64_t c = 0; c < n; c += L) {
        const int64_t m = imin(L, n - c);
        const vf v = vmul(scale, vload_upto(x + c, m));
        vstore_upto(y + c, first ? v : vadd(v, vload_upto(y + c, m)), m);
    }
}

void resize2d(const Args &a, int64_t t0, int64_t t1, void *) {
    const View &y = a.op[0], &x = a.op[1];
    const int64_t oh = y.dim[1], ow = y.dim[2], channels = y.dim[3], h = x.dim[1], w = x.dim[2];
    const int64_t down = a.op[2].dim[1], across = a.op[4].dim[1];
    const float *row_weight = (const float *)a.op[3].data, *col_weight = (const float *)a.op[5].data;
    for (int64_t t = t0; t < t1; ++t) {
        const int64_t oy = t % oh;
        const float *image = (const float *)x.data + t / oh * h * w * channels;
        float *to = (float *)y.data + t * ow * channels;
        for (int64_t i = 0; i < down; ++i) {
            const int64_t iy = resize_index(a, 2, oy * down + i, h);
            const float *row = image + iy * w * channels;
            for (int64_t ox = 0; ox < ow; ++ox)
                for (int64_t j = 0; j < across; ++j) {
                    const int64_t ix = resize_index(a, 4, ox * across + j, w);
                    const float weight = row_weight[oy * down + i] * col_weight[ox * across + j];
                    resize_tap(to + ox * channels, row + ix * channels, weight, channels, i == 0 && j == 0);
                }
        }
    }
}
