// Depthwise convolution whose weights are of the pixel: SKA of LSNet. Channel c uses kernel c mod G, so that a vector of
// kernels serves the channels g, G + g, 2 G + g, ... A tile is one output row.

struct SkaRow {
    const float *scale, *bias, *residual;
    float *y;  // this output row
    int64_t width, channels, k, groups;
    int64_t taps[4];  // kernel rows [0, 1) and columns [2, 3) inside the image
    Epilogue e;
};

// Kernels g .. g + n of one pixel for the N channels c = g, c + G, ..; x: the pixel under the first tap inside.
template <int N>
EDGEC_INLINE void ska_vector(const SkaRow &r, const float *x, const float *w, int64_t at, int64_t c, int64_t n) {
    const int64_t *taps = r.taps;
    vf acc[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) acc[j] = vset(0.0f);
    for (int64_t ky = taps[0]; ky < taps[1]; ++ky)
        for (int64_t kx = taps[2]; kx < taps[3]; ++kx) {
            const float *p = x + ((ky - taps[0]) * r.width + kx - taps[2]) * r.channels + c;
            const vf k = vload_upto(w + (ky * r.k + kx) * r.groups, n);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) acc[j] = vfma(vload_upto(p + j * r.groups, n), k, acc[j]);
        }
    vf sums[N];  // through memory and a real loop: the ends of eight sums would be most of the code
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sums[j] = acc[j];
#pragma GCC unroll 1
    for (int j = 0; j < N; ++j, c += r.groups) {
        const vf add = r.residual ? vload_upto(r.residual + at + c, n) : vset(0.0f);
        vf v = sums[j];
        if (r.scale) v = vmul(v, vload_upto(r.scale + c, n));
        if (r.bias) v = vadd(v, vload_upto(r.bias + c, n));
        if (r.e.residual_first) v = vadd(v, add);
        v = vact(r.e.act, v, r.e.a, r.e.b);
        if (r.residual && !r.e.residual_first) v = vadd(v, add);
        vstore_upto(r.y + at + c, v, n);
    }
}

void dynamic_depthwise(const Args &a, int64_t t0, int64_t t1, void *) {
    const View &y = a.op[0];
    const int64_t height = y.dim[1], k = a.i[0], half = k / 2, kernel = k * k * a.op[2].dim[4];
    SkaRow r = {(const float *)a.op[5].data, (const float *)a.op[3].data, nullptr, nullptr, y.dim[2], y.dim[3], k,
                a.op[2].dim[4], {}, Epilogue{nullptr, nullptr, (int)a.i[1], (int)a.i[2], a.f[0], a.f[1]}};
    for (int64_t t = t0; t < t1; ++t) {
        const int64_t oy = t % height, row = t * r.width * r.channels;
        r.y = (float *)y.data + row;
        r.residual = a.op[4].data ? (const float *)a.op[4].data + row : nullptr;
        const float *image = (const float *)a.op[1].data + t / height * height * r.width * r.channels;
        const float *w = (const float *)a.op[2].data + t * r.width * kernel;
        tap_range(oy, 1, half, 1, k, height, r.taps, r.taps + 1);
        for (int64_t ox = 0; ox < r.width; ++ox, w += kernel) {
            tap_range(ox, 1, half, 1, k, r.width, r.taps + 2, r.taps + 3);
            const float *x = image + ((oy - half + r.taps[0]) * r.width + ox - half + r.taps[2]) * r.channels;
            for (int64_t g = 0; g < r.groups; g += L) {
                int64_t c = g;
                for (; c + 7 * r.groups < r.channels; c += 8 * r.groups)
                    ska_vector<8>(r, x, w + g, ox * r.channels, c, r.groups - g);
                for (; c < r.channels; c += r.groups) ska_vector<1>(r, x, w + g, ox * r.channels, c, r.groups - g);
            }
        }
    }
}
