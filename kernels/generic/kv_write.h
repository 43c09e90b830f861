// cache[h, past + t] = x[t, h]: the new keys or values of T tokens go to their places in the state. One tile is a
// token.

// The codes of n numbers (at most kKvGroup of 4 bits) behind what they are multiplied with, and where 4 bits begin: the
// least number. Both are rounded to f16 first, so that codes are the nearest of those that can be read back. A group
// with a number that is not finite reads as NaNs.
constexpr uint16_t kNotANumber = 0x7e00;
EDGEC_INLINE void kv_codes(const float *x, int64_t n, bool four, uint8_t *to) {
    vf low = vset(INFINITY), high = vset(-INFINITY), bad = vset(0);
    float part[L];
    for (int64_t j = 0; j < n; j += L) {
        if (n - j < L)  // the last number again, which changes neither end
            for (int l = 0; l < L; ++l) part[l] = x[imin(j + l, n - 1)];
        const vf v = vload(n - j < L ? part : x + j);
        low = vmin(v, low);
        high = vmax(v, high);
        bad = vfma(v, vset(0), bad);
    }
    const float most = vhmax(high), least = -vhmax(vneg(low)), largest = 65504;
    const bool finite = vsum(bad) == 0;
    // 0 is added because -0, which minima and maxima return as they please, then becomes 0.
    const uint16_t from = f32_to_f16(fmaxf(-largest, fminf(largest, least)) + 0.0f);
    const float start = four ? f16_to_f32(from) : 0;
    const float range = four ? fmaxf(0, most - start) / 15 : fmaxf(most, -least) / 127 + 0.0f;
    const uint16_t unit[2] = {finite ? f32_to_f16(fminf(largest, range)) : kNotANumber, finite ? from : (uint16_t)0};
    memcpy(to, unit, four ? kKvFour : kKvWide);
    uint8_t *codes = to + (four ? kKvFour : kKvWide);
    if (!finite) return (void)memset(codes, 0, (size_t)(four ? ceil_div(n, 2) : n));
    // The least number that is not 0: it makes no difference what codes of units of 0 are.
    const vf step = vset(fmaxf(0x1p-24f, f16_to_f32(unit[0]))), first = vset(start);
    const vf least_code = vset(four ? 0 : -127), most_code = vset(four ? 15 : 127);
    const int64_t half = ceil_div(n, 2);
    for (int64_t j = 0; j < n; j += L) {
        const int64_t here = imin(L, n - j);
        int32_t code[L];
        const vf v = vdiv(vsub(vload_upto(x + j, here), first), step);
        vistore(code, vtoi(vmin(vmax(v, least_code), most_code)));
        for (int64_t l = 0; l < here; ++l) {
            const int64_t at = j + l;
            if (!four) codes[at] = (uint8_t)code[l];
            else if (at < half) codes[at] = (uint8_t)code[l];
            else codes[at - half] = (uint8_t)(codes[at - half] | code[l] << 4);
        }
    }
}

void kv_write(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &cache = a.op[0];
    const int64_t heads = cache.dim[0], capacity = cache.dim[1], row = cache.dim[2], past = a.i[0];
    const int64_t d = a.op[1].dim[1] / heads;
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
            const float *x = (const float *)a.op[1].data + (t * heads + h) * d;
            const int64_t at = (h * capacity + past + t) * row;
            if (reads_caches(F32) && cache.dtype == F32) {
                memcpy((float *)cache.data + at, x, (size_t)d * sizeof(float));
            } else if (reads_caches(F16) && cache.dtype == F16) {
                for (int64_t j = 0; j < d; j += L)
                    vstore_f16_upto((uint16_t *)cache.data + at + j, vload_upto(x + j, imin(L, d - j)), imin(L, d - j));
            } else if (reads_caches(I8) || reads_caches(U8)) {
                const bool four = reads_caches(U8) && (cache.dtype == U8 || !reads_caches(I8));
                const int64_t group = four ? kKvGroup : d;
                uint8_t *to = (uint8_t *)cache.data + at;
                for (int64_t j = 0; j < d; j += group, to += kKvFour + kKvGroup / 2) kv_codes(x + j, imin(group, d - j), four, to);
            }
        }
    }
}
