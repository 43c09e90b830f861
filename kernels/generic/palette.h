// Products with palettes (contract/bits.h): weights are decoded a block of columns at a time. A row's codes become
// nibbles, which pick from sixteen values in registers, byte by byte (palette_bytes.h) where a whole tile
// has one table; more bits, and neighbouring rows with different tables, are gathered from memory.

// to[column][16] = L rows of a chunk whose planes are w[8]. t: tables [vector][2^bits]; each row's begins at `offset`.
EDGEC_NOINLINE void palette_rows(const BitsShape &s, vi *w, const float *t, vi offset, bool pick, float *to) {
    if (s.bits > 4) palette_turn(w), palette_turn(w + 4);
    else palette_nibbles(s.bits, w);
    const vi nibble = viset(15);
    for (int64_t e = 0; e < s.vector; ++e, t += (int64_t)1 << s.bits) {
        const vtable table = vtable16(t);
        float *p = to + e * 16;
        vi low[4] = {w[0], w[1], w[2], w[3]}, high[4] = {w[4], w[5], w[6], w[7]};
        for (int n = 0; n < 8; ++n)
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r, p += s.vector * 16) {
                if (pick) {
                    vstore(p, vpick(table, low[r]));
                } else {
                    const vi at = viadd(viand(low[r], nibble), vishl<4>(viand(high[r], nibble)));
                    vstore(p, vgather(t, viadd(at, offset)));
                    high[r] = vishr<4>(high[r]);
                }
                low[r] = vishr<4>(low[r]);
            }
    }
}

// out[m][..] += kTilePanels decoded panels of `columns` columns, `panel` values apart, times every row of x, which points
// at the first of these columns.
EDGEC_NOINLINE void bits_multiply(const BitsShape &s, const float *x, const float *w, int64_t panel, int64_t columns,
                                  float *out) {
    if (s.m == 1) {
        for (int p = 0; p < kTilePanels; ++p, out += 16) gemv_panel<1, float>(x, s.k, w + p * panel, columns, out, out);
        return;
    }
    for (int64_t m = 0; m < s.m;) {
        const int rows = gemm_height(s.m - m);
        gemm_rows<kTileVecs>(rows, x, Rows{s.k, 1, columns, 0}, w, panel, out, true, out, kBitsRows, Clamp{false, 0, 0});
        m += rows;
        x += rows * s.k;
        out += rows * kBitsRows;
    }
}

// out[m][64] += the product with tile `tile` of all weights `w`. room: bits_scratch() behind the sums.
EDGEC_NOINLINE void palette_sums(const BitsShape &s, const uint8_t *w, int64_t tile, const float *x, float *room,
                                 float *out, PaletteBytes shuffle) {
    const int64_t block = s.block_columns(), panel = block * 16;
    float *tables = room, *decoded = room + s.tile_tables() * s.table_values();
    alignas(64) int32_t offset[kBitsRows];
    palette_tables(s, w, tile, tables, offset);
    const bool bytes = shuffle && s.bits <= 4 && s.vector == 1 && offset[kBitsRows - 1] == 0;
    const float *one = bytes && s.m == 1 ? x : nullptr;  // a single row is multiplied at once
    float tail[32];
    uint8_t byte[64] = {};  // [byte of a value][value]
    for (int64_t i = 0; bytes && i < 4 << s.bits; ++i) byte[i % 4 * 16 + i / 4] = ((const uint8_t *)tables)[i];
    const uint8_t *codes = w + tile * s.tile_bytes();
    for (int64_t k = 0, chunk = 0; k < s.k; k += block) {
        for (float *to = decoded; chunk < s.chunks() && to < decoded + panel; ++chunk, to += 32 * s.vector * 16) {
            const int64_t first = 32 * s.vector * chunk, left = s.k - first;
            if (one && left < 32) {
                memset(tail, 0, sizeof tail);
                memcpy(tail, x + first, (size_t)left * sizeof(float));
            }
            if (one) one = left < 32 ? tail : x + first;
            for (int64_t at = 0; at < s.code_bytes(1); at += 64) __builtin_prefetch(codes + 4096 + at);
            for (int64_t part = 0; part < kBitsRows; part += 4 * L) {
                if (bytes) {
                    shuffle(s, codes + part, byte, one, panel, (one ? out : to) + part / 4);
                    continue;
                }
                vi planes[kBitsMost][4];
                for (int64_t j = 0; j < s.bits; ++j) vrows(codes + j * 256 + part, planes[j]);
                for (int64_t v = 0; v < 4; ++v) {
                    vi plane[kBitsMost];
                    for (int64_t j = 0; j < kBitsMost; ++j) plane[j] = j < s.bits ? planes[j][v] : viset(0);
                    const int32_t *at = offset + 16 * v + part / 4;
                    const bool pick = s.bits <= 4 && at[0] == at[L - 1];
                    palette_rows(s, plane, pick ? tables + at[0] : tables, vcast_i(vload((const float *)at)), pick,
                                 to + v * panel + part / 4);
                }
            }
            codes += s.code_bytes(1);
        }
        const int64_t columns = imin(block, s.k - k);
        if (one) continue;
        for (int64_t v = 0; v < 4; v += kTilePanels)
            bits_multiply(s, x + k, decoded + v * panel, panel, columns, out + 16 * v);
    }
}
