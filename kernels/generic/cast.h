// Conversion between storage types.

// cast goes through blocks of float or int64, in which every storage type is exact.
constexpr int kCastBlock = 128;

template <class T, class S> EDGEC_INLINE void cast_widen(T *to, const void *x, int64_t at, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = (T)((const S *)x)[at + i];
}

EDGEC_NOINLINE void cast_read_real(float *to, const View &x, int64_t at, int64_t n) {
    if (x.dtype == F32) {
        memcpy(to, (const float *)x.data + at, (size_t)n * sizeof(float));
        return;
    }
    const uint16_t *h = (const uint16_t *)x.data + at;
    for (int64_t i = 0; i < n; i += L) {
        const int64_t m = imin(L, n - i);
        vstore_upto(to + i, vload_half_upto(h + i, m, x.dtype == BF16), m);
    }
}

EDGEC_NOINLINE void cast_read_whole(int64_t *to, const View &x, int64_t at, int64_t n) {
    switch (x.dtype) {
        case I8: cast_widen<int64_t, int8_t>(to, x.data, at, n); break;
        case U8: cast_widen<int64_t, uint8_t>(to, x.data, at, n); break;
        case I32: cast_widen<int64_t, int32_t>(to, x.data, at, n); break;
        case I64: memcpy(to, (const int64_t *)x.data + at, (size_t)n * sizeof(int64_t)); break;
        default: for (int64_t i = 0; i < n; ++i) to[i] = ((const uint8_t *)x.data)[at + i] != 0; break;
    }
}

EDGEC_NOINLINE void cast_write_real(const View &y, int64_t at, const float *from, int64_t n) {
    if (y.dtype == F32) {
        memcpy((float *)y.data + at, from, (size_t)n * sizeof(float));
    } else if (y.dtype == BF16) {
        for (int64_t i = 0; i < n; ++i) ((uint16_t *)y.data)[at + i] = f32_to_bf16(from[i]);
    } else {
        for (int64_t i = 0; i < n; i += L) {
            const int64_t m = imin(L, n - i);
            vstore_f16_upto((uint16_t *)y.data + at + i, vload_upto(from + i, m), m);
        }
    }
}

// Integers wrap to smaller integers, as in C; floats were saturated before.
EDGEC_NOINLINE void cast_write_whole(const View &y, int64_t at, const int64_t *from, int64_t n) {
    switch (y.dtype) {
        case I8: for (int64_t i = 0; i < n; ++i) ((int8_t *)y.data)[at + i] = (int8_t)from[i]; break;
        case U8: for (int64_t i = 0; i < n; ++i) ((uint8_t *)y.data)[at + i] = (uint8_t)from[i]; break;
        case I32: for (int64_t i = 0; i < n; ++i) ((int32_t *)y.data)[at + i] = (int32_t)from[i]; break;
        case I64: memcpy((int64_t *)y.data + at, from, (size_t)n * sizeof(int64_t)); break;
        default: for (int64_t i = 0; i < n; ++i) ((uint8_t *)y.data)[at + i] = from[i] != 0; break;
    }
}

// Truncates into the range of the dtype; NaN gives 0, for BOOL 1 as it is not zero.
EDGEC_INLINE int64_t cast_saturate(float f, uint8_t dtype) {
    if (dtype == BOOL) return f != 0;
    if (f != f) return 0;
    const int bits = dtype == I64 ? 63 : dtype == I32 ? 31 : dtype == I8 ? 7 : 8;
    const float limit = (float)((uint64_t)1 << bits);
    const int64_t most = bits == 63 ? INT64_MAX : ((int64_t)1 << bits) - 1, least = dtype == U8 ? 0 : -most - 1;
    if (f >= limit) return most;
    if (dtype == U8 ? f <= 0 : f <= -limit) return least;
    return (int64_t)f;
}

void cast(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], &x = a.op[1];
    const bool from_real = x.dtype <= BF16, to_real = y.dtype <= BF16;
    const int64_t end = imin(elements(y), tile_end * kFlatTile);
    float real[kCastBlock];
    int64_t whole[kCastBlock];
    for (int64_t at = tile_begin * kFlatTile; at < end; at += kCastBlock) {
        const int64_t n = imin(kCastBlock, end - at);
        if (from_real) cast_read_real(real, x, at, n);
        else cast_read_whole(whole, x, at, n);
        if (from_real && !to_real)
            for (int64_t i = 0; i < n; ++i) whole[i] = cast_saturate(real[i], y.dtype);
        if (!from_real && to_real)
            for (int64_t i = 0; i < n; ++i) real[i] = (float)whole[i];
        if (to_real) cast_write_real(y, at, real, n);
        else cast_write_whole(y, at, whole, n);
    }
}
