// y = table[x]: any function of one value of 8 bits. The table is about u8; i8 is the same with the topmost bit turned.

void table_q8(const Args &a, int64_t t0, int64_t t1, void *) {
    const uint8_t *x = (const uint8_t *)a.op[1].data, *table = (const uint8_t *)a.op[2].data;
    const uint8_t from = a.op[1].dtype == I8 ? 0x80 : 0, to = a.op[0].dtype == I8 ? 0x80 : 0;
    uint8_t *y = (uint8_t *)a.op[0].data;
    const int64_t end = imin(elements(a.op[0]), t1 * kFlatTile);
    for (int64_t i = t0 * kFlatTile; i < end; ++i) y[i] = table[x[i] ^ from] ^ to;
}
