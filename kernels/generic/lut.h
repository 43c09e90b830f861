// Lookups for byte shuffles of 16 entries (AVX-512BW, AVX2, NEON). An entry holds its value plus kBias.

// 6 + 6 bits per entry: four lookups of each half fit into a byte before they are widened.
struct Code12 {
    static constexpr int kBias = 2048, kShift = 6, kWeight = 64, kLow = 0, kUpper = 16, kChunk = 256;
    static constexpr float kLimit = 2047;
    static constexpr bool kPairs = false;
    static constexpr int64_t at(int64_t nibble) { return nibble * 32; }
};
// The fast mode, about 1 % off: one byte per entry, for half of the lookups. Two that are 8 columns apart stay within a
// byte, rounded up, and each half of a group has a scale of its own.
struct Code8 {
    static constexpr int kBias = 64, kShift = 8, kWeight = 1, kLow = 0, kUpper = 0, kChunk = 128;
    static constexpr float kLimit = 126;
    static constexpr bool kPairs = true;
    static constexpr int64_t at(int64_t nibble) { return nibble * 16; }
};

constexpr int kLutParts = kBitsRows / kBytes;
// Chunks whose entries, bias included, add up to at most 16 bits. Sums start at minus their bias, so they end signed.
constexpr int64_t kLutChunks = 2;
static_assert(kBitsMostGroup <= 2 * 32 * kLutChunks, "a group is two such sums");

// Where the columns of a plane look up: of each, 64 bytes of lower nibbles and 64 of upper ones.
EDGEC_NOINLINE void lut_index(const uint8_t *p, int64_t columns, uint8_t *to) {
#pragma GCC unroll 1
    for (int64_t c = 0; c < columns * kBitsRows; c += kBitsRows) {
        table_prefetch(p + c);
        for (int64_t i = 0; i < kBitsRows; i += kBytes) {
            const vb code = vbload(p + c + i);
            vbstore(to + 2 * c + i, vblow(code));
            vbstore(to + 2 * c + kBitsRows + i, vbhigh(code));
        }
    }
}

// to[bits][2][kLutParts][2] = the lookups of a group's planes in the tables t. kReady: p is what lut_index() made of
// the codes, else the codes themselves.
template <class Code, bool kReady>
EDGEC_NOINLINE void lut_planes(const uint8_t *p, int64_t bits, int64_t chunks, const uint8_t *t, vb *to) {
    constexpr int64_t kColumn = kReady ? 2 * kBitsRows : kBitsRows;
    for (int64_t half = 0; half < 2 * bits; ++half, to += 2 * kLutParts) {
        const int64_t before = half % 2 * kLutChunks, now = imin(imax(0, chunks - before), kLutChunks);
        vb sum[kLutParts][2];
#pragma GCC unroll 4
        for (int r = 0; r < kLutParts; ++r) sum[r][0] = sum[r][1] = vbset16((int32_t)now * -8 * Code::kBias);
        const uint8_t *end = p + now * 4 * kColumn, *u = t + before * Code::kChunk;
        // Two columns at once. Rolled: prefetchers follow one stream of loads, not dozens.
#pragma GCC unroll 1
        for (; p != end; p += 2 * kColumn, u += Code::kChunk / 2) {
            if (!kReady) table_prefetch(p), table_prefetch(p + kBitsRows);
            vb low[kLutParts], high[kLutParts];
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) {
                vb at[kLutParts], *const first = Code::kPairs && n % 2 ? high : low;
#pragma GCC unroll 4
                for (int r = 0; r < kLutParts; ++r) {
                    at[r] = vbload(p + (kReady ? n * kBitsRows : n / 2 * kBitsRows) + r * kBytes);
                    if (!kReady) at[r] = n % 2 ? vbhigh(at[r]) : vblow(at[r]);
                }
                const vb table = vbtable(u + Code::at(n));
#pragma GCC unroll 4
                for (int r = 0; r < kLutParts; ++r) {
                    const vb found = vblookup(table, at[r]);
                    first[r] = n > (Code::kPairs ? 1 : 0) ? vbadd(first[r], found) : found;
                    vbpin(&first[r]);
                }
                if (Code::kPairs) continue;
                const vb upper = vbtable(u + Code::at(n) + Code::kUpper);
#pragma GCC unroll 4
                for (int r = 0; r < kLutParts; ++r) {
                    const vb found = vblookup(upper, at[r]);
                    high[r] = n ? vbadd(high[r], found) : found;
                    vbpin(&high[r]);
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < kLutParts; ++r) vbwiden<Code::kWeight>(low[r], high[r], sum[r]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kLutParts; ++r) to[2 * r] = sum[r][0], to[2 * r + 1] = sum[r][1];
    }
}

// out[64] += the sums of a group's planes, as lut_planes() left them, times their scales h, and sum times the centres.
// weights: of the halves, 16 bits each.
EDGEC_NOINLINE void lut_add(const BitsShape &s, const vb *planes, const uint16_t *h, int32_t weights, float scale,
                            float sum, float *out) {
    for (int r = 0; r < kLutParts; ++r) {
        vf d[4] = {vset(0), vset(0), vset(0), vset(0)};
        const vb *plane = planes + 2 * r;
        for (int64_t j = 0; j < s.bits; ++j, plane += 4 * kLutParts) {
            vi row[4];
            vbrows(plane, plane + 2 * kLutParts, weights, row);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) d[v] = vfma(vtof(row[v]), bits_scale(s, h, 16 * v + r * L, j), d[v]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            float *to = out + 16 * v + r * L;
            const vf centre = vfma(vset(sum), bits_centre(s, h, 16 * v + r * L), vload(to));
            vstore(to, vfma(d[v], vset(scale), centre));
        }
    }
}

// Codes come from memory once. Several rows of activations share what is unpacked.
template <class Code>
EDGEC_NOINLINE void lut_sums(const BitsShape &s, const uint8_t *p, const float *, const uint8_t *tables, float *out) {
    alignas(64) uint8_t index[kBitsMost * kBitsMostGroup / 8 * 2 * kBitsRows];
    vb planes[kBitsMost * 4 * kLutParts];
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g);
        const uint16_t *h = (const uint16_t *)(p + s.code_bytes(chunks));
        scale_prefetch(h, s.scale_bytes());
        if (s.m > 1) lut_index(p, s.bits * chunks * 4, index);
        for (int64_t m = 0; m < s.m; ++m) {
            const uint8_t *t = tables + m * s.table_bytes(), *from = t + g * (s.group / 32) * Code::kChunk;
            const float *scale = (const float *)(t + s.chunks() * 256), *sum = scale + s.groups();
            if (s.m > 1) lut_planes<Code, true>(index, s.bits, chunks, from, planes);
            else lut_planes<Code, false>(p, s.bits, chunks, from, planes);
            const int32_t weights = Code::kPairs ? half_weights(s, t)[g] : 0x10001;
            lut_add(s, planes, h, weights, scale[g], sum[g], out + m * kBitsRows);
        }
        p += s.code_bytes(chunks) + s.scale_bytes();
    }
}

constexpr BitsMethod kLookups = {tables_of<Code12>, lut_sums<Code12>};
