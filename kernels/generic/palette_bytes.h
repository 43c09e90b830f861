// Palettes of up to 4 bits whose tile shares one table: byte shuffles look up the four bytes of a value for as many rows
// as a vector has bytes. Where there is a shuffle of bytes.

// The rows of a part of a chunk (4 L of them); t: each byte of the 16 values. kProduct: to[row] += the product with x,
// which points at the first of the 32 columns; else to[column][16] in each of four panels.
template <bool kProduct>
EDGEC_NOINLINE void palette_part(const BitsShape &s, const uint8_t *codes, const uint8_t *t, const float *x,
                                 int64_t panel, float *to) {
    vf sum[4];
    if (kProduct)
        for (int v = 0; v < 4; ++v) sum[v] = vload(to + 16 * v);
    const vb t0 = vbtable(t), t1 = vbtable(t + 16), t2 = vbtable(t + 32), t3 = vbtable(t + 48);
    for (int b = 0; b < 4; ++b, codes += kBitsRows) {
        vi w[4];
        for (int64_t j = 0; j < 4; ++j) w[j] = j < s.bits ? vbwords(vbload(codes + j * 256)) : viset(0);
        palette_nibbles(s.bits, w);  // a byte: columns r and r + 4
        for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                const vb code = vbytes(w[r]), at = half ? vbhigh(code) : vblow(code);
                vi row[4];
                vquads(vblookup(t0, at), vblookup(t1, at), vblookup(t2, at), vblookup(t3, at), row);
#pragma GCC unroll 4
                for (int v = 0; v < 4; ++v) {
                    if (kProduct) sum[v] = vfma(vset(x[8 * b + 4 * half + r]), vcast_f(row[v]), sum[v]);
                    else vstore(to + v * panel, vcast_f(row[v]));
                }
                if (!kProduct) to += 16;
            }
    }
    if (kProduct)
        for (int v = 0; v < 4; ++v) vstore(to + 16 * v, sum[v]);
}
static void palette_bytes(const BitsShape &s, const uint8_t *codes, const uint8_t *t, const float *x, int64_t panel,
                          float *to) {
    if (x) palette_part<true>(s, codes, t, x, panel, to);
    else palette_part<false>(s, codes, t, nullptr, panel, to);
}
constexpr PaletteBytes kPaletteBytes = palette_bytes;
