// Group normalization of images with the channels innermost, with the activation that follows. A tile is some groups of
// one image: enough that their channels fill a cache line, and so few that all three passes find them in the cache.

constexpr int64_t kNormPixels = 64;  // after so many pixels, sums move to double: the error does not grow with the image

// Adds up x - shift, and its squares, of each of n channels over all pixels.
EDGEC_NOINLINE void group_sums(const GroupShape &s, const float *x, const float *shift, int64_t n, double *sums,
                               double *squares) {
    for (int64_t p = 0; p < s.pixels; p += kNormPixels)
        for (int64_t c = 0; c < n; c += L) {
            const vf sh = vload_upto(shift + c, n - c);
            vf a = vset(0.0f), q = vset(0.0f);
            const float *from = x + p * s.c + c;
            for (int64_t i = imin(kNormPixels, s.pixels - p); i > 0; --i, from += s.c) {
                const vf v = vsub(vload_upto(from, n - c), sh);
                a = vadd(a, v);
                q = vfma(v, v, q);
            }
            float lanes[2 * L];
            vstore(lanes, a);
            vstore(lanes + L, q);
            for (int64_t j = 0; j < imin(L, n - c); ++j) {
                sums[c + j] += (double)lanes[j];
                squares[c + j] += (double)lanes[L + j];
            }
        }
}

void groupnorm(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const GroupShape s = group_shape(a);
    const float *gamma = (const float *)a.op[2].data, *beta = (const float *)a.op[3].data;
    const int64_t most = s.per_tile * s.width;
    double *sums = (double *)scratch, *squares = sums + most;
    float *shift = (float *)(squares + most), *factor = shift + most, *offset = factor + most;
    for (int64_t tile = t0; tile < t1; ++tile) {
        const int64_t batch = tile / s.tiles, c0 = tile % s.tiles * most, n = imin(most, s.c - c0);
        const int64_t at = batch * s.pixels * s.c + c0;
        const float *x = (const float *)a.op[1].data + at;
        const double count = (double)(s.pixels * s.width);
        memset(scratch, 0, (size_t)(2 * most) * sizeof(double) + (size_t)most * sizeof(float));
        group_sums(s, x, shift, n, sums, squares);
        for (int64_t g = 0; g < n; g += s.width) {
            double sum = 0;
            for (int64_t c = g; c < g + s.width; ++c) sum += sums[c];
            for (int64_t c = g; c < g + s.width; ++c) shift[c] = (float)(sum / count);
        }
        // The variance is taken about the rounded mean, and the rest of the mean after it, as in norm.h.
        memset(scratch, 0, (size_t)(2 * most) * sizeof(double));
        group_sums(s, x, shift, n, sums, squares);
        for (int64_t g = 0; g < n; g += s.width) {
            double sum = 0, square = 0;
            for (int64_t c = g; c < g + s.width; ++c) sum += sums[c], square += squares[c];
            const double rest = sum / count, variance = square / count - rest * rest;
            const double scale = 1.0 / sqrt((variance < 0 ? 0 : variance) + (double)a.f[0]);
            for (int64_t c = g; c < g + s.width; ++c) {
                const double by = gamma ? scale * (double)gamma[c0 + c] : scale;
                factor[c] = (float)by;
                offset[c] = (float)((beta ? (double)beta[c0 + c] : 0.0) - rest * by);
            }
        }
        float *y = (float *)a.op[0].data + at;
        for (int64_t p = 0; p < s.pixels; ++p, x += s.c, y += s.c)
            for (int64_t c = 0; c < n; c += L) {
                const int64_t m = n - c;
                const vf v = vsub(vload_upto(x + c, m), vload_upto(shift + c, m));
                vstore_upto(y + c, vact((int)a.i[1], vfma(v, vload_upto(factor + c, m), vload_upto(offset + c, m)),
                                        a.f[1], a.f[2]), m);
            }
    }
}
