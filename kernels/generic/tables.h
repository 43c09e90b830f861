// Tables for lookups: what four neighbouring activations add up to under each of the 16 patterns of signs, as fixed
// point numbers in two bytes. A pattern is four bits of a plane, so one lookup does four multiplications.
//
// Code says how: kBias is added before the value is cut into the bytes above and below kShift bits, kLow is taken from the
// lower one again, kLimit is the largest magnitude; at(n) is where nibble n of a chunk's eight has its 16 lower bytes, the
// upper ones follow kUpper bytes on (0: there are none); kChunk is the bytes of a chunk.

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
    if (Code::kUpper > 0) vstore_bytes(to + Code::kUpper, high);
}

// Halves of groups of 128 columns may have tables of their own scales: whole multiples, up to this, of one kHalfMost-th
// of the group's. Two such weights of 16 bits per group lie behind tables that are less than 256 bytes per chunk.
constexpr int kHalfMost = 127;
EDGEC_INLINE int32_t *half_weights(const BitsShape &s, const uint8_t *tables) {
    return (int32_t *)(tables + s.chunks() * 128);
}

// The tables of every row of x[m][k] (each has room for BitsShape::table_bytes); columns beyond k count as zero.
// Entries are at least 2^-127 apart, so that the factor to them is finite: smaller activations lose bits. A NaN is in
// the group's sum, which makes every output of the row NaN. Infinities, and four activations that add up to more than
// f32 holds, give outputs that are not finite.
template <class Code> EDGEC_NOINLINE void tables_of(const BitsShape &s, const float *x, uint8_t *to) {
    for (int64_t m = 0; m < s.m; ++m, x += s.k, to += s.table_bytes()) {
        float *scale = (float *)(to + s.chunks() * 256), *sum = scale + s.groups();
        for (int64_t g = 0; g < s.groups(); ++g) {
            constexpr int kHalves = Code::kPairs ? 2 : 1;
            constexpr int64_t kHalf = kBitsMostGroup / kHalves;
            const int64_t first = g * s.group, end = imin(s.k, first + s.group);
            vf all = vset(0);
            float limit[kHalves], most = 0;
            for (int half = 0; half < kHalves; ++half) {
                const int64_t last = imin(end, first + (half + 1) * kHalf);
                vf highest = vset(Code::kLimit * 0x1p-127f);
                for (int64_t k = first + half * kHalf; k < last; k += L) {
                    const vf v = vload_upto(x + k, last - k);
                    all = vadd(all, v);
                    vf size = vabs(v);
                    if (Code::kPairs && last - k > 8) size = vadd(size, vabs(vload_upto(x + k + 8, last - k - 8)));
                    highest = vmax(vfours(size), highest);
                }
                limit[half] = vhmax(highest);
                if (limit[half] > most) most = limit[half];
            }
            scale[g] = most / (Code::kLimit * (Code::kPairs ? kHalfMost : 1));
            sum[g] = vsum(all);
            int32_t weights = 0;
            for (int half = 0; half < kHalves; ++half) {
                float inverse = Code::kLimit / most;
                if (Code::kPairs) {
                    const int weight = limit[half] < most ? (int)(limit[half] / most * kHalfMost) + 1 : kHalfMost;
                    weights |= weight << 16 * half;
                    inverse *= (float)kHalfMost / (float)weight;
                }
                const int64_t last = imin(ceil_div(end, 32) * 32, first + (half + 1) * kHalf);
                for (int64_t k = first + half * kHalf; k < last; k += 4) {
                    const float *four = x + k;
                    float tail[4] = {};
                    if (k + 4 > end) {
                        for (int64_t b = 0; k + b < end; ++b) tail[b] = x[k + b];
                        four = tail;
                    }
                    table_of_four<Code>(four, inverse, to + k / 32 * Code::kChunk + Code::at(k % 32 / 4));
                }
            }
            if (Code::kPairs) half_weights(s, to)[g] = weights;
        }
    }
}

// Codes come from memory once, in order. Each line is asked for four times, for a request that finds no free buffer is
// dropped; the scales between, one line in five, are left to the hardware (both measured). Zen 4 drops nothing and waits:
// there it is once, 3 KiB ahead, and the scales of a group as it begins (14 to 50 % faster than four times, measured).
EDGEC_INLINE void table_prefetch(const uint8_t *p) {
    if (kZen4) return __builtin_prefetch(p + 3072);
    __builtin_prefetch(p + 4 * kPrefetchStep);
    __builtin_prefetch(p + 3 * kPrefetchStep);
    __builtin_prefetch(p + 2 * kPrefetchStep);
    __builtin_prefetch(p + kPrefetchStep);
}
EDGEC_INLINE void scale_prefetch(const uint16_t *scales, int64_t bytes) {
    for (int64_t i = 0; kZen4 && i < bytes; i += 64) __builtin_prefetch((const uint8_t *)scales + i);
}
