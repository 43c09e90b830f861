// Tables for lookups: what four neighbouring activations add up to under each of the 16 patterns of signs, as fixed
// point numbers in two bytes. A pattern is four bits of a plane, so one lookup does four multiplications.
//
// Code says how: kBias is added before the value is cut into the bytes above and below kShift bits, kLow is taken from the
// lower one again, kLimit is the largest magnitude; at(n) is where nibble n of a chunk's eight has its 16 lower bytes, the
// upper ones follow kUpper bytes on.

alignas(64) static const float kSigns[4][16] = {
    {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1}, {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
    {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1}, {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};

template <class Code> EDGEC_INLINE void table_of_four(const float *x, float scale, uint8_t *to) {
    vi low[16 / L], high[16 / L];
    for (int i = 0; i < 16 / L; ++i) {
        vf v = vmul(vload(kSigns[0] + i * L), vset(x[0]));
        for (int b = 1; b < 4; ++b) v = vfma(vload(kSigns[b] + i * L), vset(x[b]), v);
        const vi q = viadd(vtoi(vmul(v, vset(scale))), viset(Code::kBias));
        high[i] = vishr<Code::kShift>(q);
        low[i] = visub(visub(q, vishl<Code::kShift>(high[i])), viset(Code::kLow));
    }
    vstore_bytes(to, low);
    vstore_bytes(to + Code::kUpper, high);
}

// The tables of every row of x[m][k] (BitsShape::table_bytes each); columns beyond k count as zero. Entries are at least
// 2^-127 apart, so that the factor to them is finite: smaller activations lose bits. A NaN is in the group's sum, which
// makes every output of the row NaN. Infinities, and four activations that add up to more than f32 holds, give outputs
// that are not finite.
template <class Code> EDGEC_NOINLINE void tables_of(const BitsShape &s, const float *x, uint8_t *to) {
    for (int64_t m = 0; m < s.m; ++m, x += s.k, to += s.table_bytes()) {
        float *scale = (float *)(to + s.chunks() * 256), *sum = scale + s.groups();
        for (int64_t g = 0; g < s.groups(); ++g) {
            const int64_t first = g * s.group, end = imin(s.k, first + s.group);
            vf most = vset(Code::kLimit * 0x1p-127f), all = vset(0);
            for (int64_t k = first; k < end; k += L) {
                const vf v = vload_upto(x + k, end - k);
                all = vadd(all, v);
                most = vmax(vfours(vabs(v)), most);
            }
            const float limit = vhmax(most), inverse = Code::kLimit / limit;
            scale[g] = limit / Code::kLimit;
            sum[g] = vsum(all);
            for (int64_t k = first; k < ceil_div(end, 32) * 32; k += 4) {
                const float *four = x + k;
                float tail[4] = {};
                if (k + 4 > end) {
                    for (int64_t b = 0; k + b < end; ++b) tail[b] = x[k + b];
                    four = tail;
                }
                table_of_four<Code>(four, inverse, to + k / 32 * 256 + Code::at(k % 32 / 4));
            }
        }
    }
}

// Codes come from memory once, in order. Each line is asked for four times, for a request that finds no free buffer is
// dropped; the scales between, one line in five, are left to the hardware (both measured).
EDGEC_INLINE void table_prefetch(const uint8_t *p) {
    __builtin_prefetch(p + 4096);
    __builtin_prefetch(p + 3072);
    __builtin_prefetch(p + 2048);
    __builtin_prefetch(p + 1024);
}
