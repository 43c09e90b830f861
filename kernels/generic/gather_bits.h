// gather_bits: y[n, K] = rows of a table in the layout bits64 (contract/bits.h). Indices as in gather.

EDGEC_NOINLINE float half_at(const uint8_t *p, int64_t i) {
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    return f16_to_f32(h);
}

// Columns of a group of one row: at `codes` its byte of the first column, at `scales` its first scale.
EDGEC_NOINLINE void gather_group(const BitsShape &s, const uint8_t *codes, int64_t chunks, const uint8_t *scales,
                                 int64_t columns, float *y) {
    float scale[kBitsMost] = {}, centre = half_at(scales, (s.uniform ? 1 : s.bits) * kBitsRows);
    for (int64_t j = 0; j < s.bits; ++j) scale[j] = half_at(scales, s.uniform ? 0 : j * kBitsRows);
    for (int64_t k = 0; k < columns; ++k) {
        const uint8_t *p = codes + k / 8 * kBitsRows;
        float w = centre;
        int code = 0;
        for (int64_t j = 0; j < s.bits; ++j) {
            const int bit = p[j * chunks * 256] >> k % 8 & 1;
            w += bit ? scale[j] : -scale[j];
            code |= bit << j;
        }
        y[k] = s.uniform ? scale[0] * ((float)code - centre) : w;
    }
}

// Row `i` of a palette.
EDGEC_NOINLINE void gather_palette(const BitsShape &s, const uint8_t *w, int64_t i, float *y) {
    const int64_t row = i % kBitsRows, at = row % 16 / 4 * 16 + row / 16 * 4 + row % 4;
    const uint8_t *codes = w + i / kBitsRows * s.tile_bytes() + at, *tables = w + s.tiles() * s.tile_bytes();
    const int64_t table = (s.group ? i / s.group : 0) * s.table_values();
    for (int64_t k = 0; k < s.k; k += s.vector) {
        const int64_t column = k / s.vector;
        const uint8_t *p = codes + column / 32 * s.code_bytes(1) + column % 32 / 8 * kBitsRows;
        const int64_t code = palette_code(s, p, column % 8);
        for (int64_t e = 0; e < imin(s.vector, s.k - k); ++e)
            y[k + e] = palette_value(s, tables, table + code * s.vector + e);
    }
}

void gather_bits(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const int64_t form[] = {a.i[0], a.i[2], a.i[3], a.i[4]};
    const BitsShape s = bits_shape(form, a.i[1]);
    for (int64_t r = tile_begin; r < tile_end; ++r) {
        const int64_t i = gather_index(a, r, s.n), row = i % kBitsRows;
        if (s.vector) {
            gather_palette(s, (const uint8_t *)a.op[1].data, i, (float *)a.op[0].data + r * s.k);
            continue;
        }
        const uint8_t *p = (const uint8_t *)a.op[1].data + i / kBitsRows * s.tile_bytes();
        for (int64_t g = 0; g < s.groups(); ++g) {
            const int64_t chunks = s.group_chunks(g), k = g * s.group;
            const uint8_t *scales = p + s.code_bytes(chunks);
            gather_group(s, p + row % 16 / 4 * 16 + row / 16 * 4 + row % 4, chunks, scales + 2 * row,
                         imin(s.group, s.k - k), (float *)a.op[0].data + r * s.k + k);
            p = scales + s.scale_bytes();
        }
    }
}
