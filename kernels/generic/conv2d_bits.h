// Convolution with weights of few bits: the windows of a block of output pixels are gathered as in conv2d.h and
// multiplied a tile of 64 channels at a time, their weights decoded (bits.h).

void conv2d_bits(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const ConvShape c = conv_shape(a, 1);
    BitsShape s = bits_shape(a.i + 10, c.k);
    const float *x = (const float *)a.op[1].data, *residual = (const float *)a.op[4].data;
    float *rows = (float *)scratch, *out = c.pointwise ? rows : rows + c.pixel_block * c.k;
    while (t0 < t1) {
        const int64_t tile = t0 % s.tiles(), tiles = imin(s.tiles() - tile, t1 - t0);
        const int64_t p0 = t0 / s.tiles() * c.pixel_block, at = p0 * s.n;
        s.m = imin(c.pixels, p0 + c.pixel_block) - p0;
        if (!c.pointwise) conv_gather(c, x, p0, p0 + s.m, rows);
        const Gemm g = {c.pointwise ? x + p0 * c.k : rows, s.k, s.m, s.n, s.k, (float *)a.op[0].data + at, s.n,
                        Epilogue{(const float *)a.op[3].data, residual ? residual + at : nullptr, (int)a.i[8],
                                 (int)a.i[9], a.f[0], a.f[1]}};
        bits_tiles(s, (const uint8_t *)a.op[2].data, g, tile, tile + tiles, out, {nullptr, bits_decoded}, nullptr);
        t0 += tiles;
    }
}
