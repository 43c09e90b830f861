// gather: y[O, n, I] from table [O, N, I], or from a panel16 table [N, I] (tied embeddings). A negative index counts
// from the end; one out of range raises the fault flag and reads row 0 instead, so that the result is wrong but in
// bounds.

EDGEC_NOINLINE void gather_halves(float *y, const uint16_t *x, int64_t n, bool bf16) {
    for (int64_t j = 0; j < n; j += L) {
        const int64_t m = imin(L, n - j);
        vstore_upto(y + j, vload_half_upto(x + j, m, bf16), m);
    }
}

void gather(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &table = a.op[1];
    const int64_t count = y.dim[1], inner = y.dim[2], n = table.dim[table.rank - 2], size = dtype_size(table.dtype);
    const int64_t per_tile = tile_rows(inner), rows = y.dim[0] * count;
    const bool half = table.dtype == F16 || table.dtype == BF16;
    for (int64_t r = tile_begin * per_tile; r < imin(rows, tile_end * per_tile); ++r) {
        const int64_t i = gather_index(a, r % count, n);
        if (table.format == PANEL16) {
            float *to = (float *)y.data + r * inner;
            const int64_t first = i / 16 * inner * 16 + i % 16;
            for (int64_t k = 0; k < inner; ++k) {
                const int64_t e = first + k * 16;
                if (half) {
                    const uint16_t h = ((const uint16_t *)table.data)[e];
                    to[k] = table.dtype == F16 ? f16_to_f32(h) : bf16_to_f32(h);
                } else {
                    to[k] = ((const float *)table.data)[e];
                }
            }
            continue;
        }
        const int64_t from = (r / count * n + i) * inner;
        if (half)
            gather_halves((float *)y.data + r * inner, (const uint16_t *)table.data + from, inner, table.dtype == BF16);
        else
            memcpy((uint8_t *)y.data + r * inner * size, (const uint8_t *)table.data + from * size,
                   (size_t)(inner * size));
    }
}
