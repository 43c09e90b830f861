// Lookups for byte shuffles of 16 entries (AVX-512BW, AVX2, NEON): 6 + 6 bits per entry, so that four lookups fit into a
// byte before they are widened. An entry holds its value plus 2048 and is never negative.

struct Code12 {
    static constexpr int kBias = 2048, kShift = 6, kLow = 0, kUpper = 16;
    static constexpr float kLimit = 2047;
    static constexpr int64_t at(int64_t nibble) { return nibble * 32; }
};

// Sums of bytes in 16 bits: `all` of both bytes of a pair modulo 2^16 (the even one plus 256 times the odd one), `odd`
// of the odd bytes alone.
struct LutSum {
    vb all, odd;
};
EDGEC_INLINE void lut_add(LutSum *s, vb bytes) {
    s->all = vbadd16(s->all, bytes);
    s->odd = vbadd16(s->odd, vbodd(bytes));
}

// Two byte columns of one vector of rows: u and v are columns, t their four tables.
EDGEC_INLINE void lut_columns(vb u, vb v, const uint8_t *t, LutSum *low, LutSum *high) {
    const vb ul = vblow(u), uh = vbhigh(u), vl = vblow(v), vh = vbhigh(v);
    lut_add(low, vbadd(vbadd(vblookup(vbtable(t), ul), vblookup(vbtable(t + 32), uh)),
                       vbadd(vblookup(vbtable(t + 64), vl), vblookup(vbtable(t + 96), vh))));
    lut_add(high, vbadd(vbadd(vblookup(vbtable(t + 16), ul), vblookup(vbtable(t + 48), uh)),
                        vbadd(vblookup(vbtable(t + 80), vl), vblookup(vbtable(t + 112), vh))));
}

// out[64] += one group of one row of activations, whose tables are t.
EDGEC_NOINLINE void lut_group(const BitsShape &s, const uint8_t *codes, int64_t chunks, const uint8_t *t, float scale,
                              float sum, float *out) {
    const uint16_t *h = (const uint16_t *)(codes + s.code_bytes(chunks));
    const vf offset = vset(-2048.0f * 8 * (float)chunks);
    for (int64_t part = 0; part < kBitsRows; part += kBytes) {
        vf d[4] = {vset(0), vset(0), vset(0), vset(0)};
        for (int64_t j = 0; j < s.bits; ++j) {
            LutSum low = {vbzero(), vbzero()}, high = low;
            const uint8_t *p = codes + j * chunks * 256 + part;
            // Rolled: prefetchers follow one stream of loads, not dozens.
#pragma GCC unroll 1
            for (int64_t c = 0; c < chunks * 256; c += 128) {
                if (part == 0) table_prefetch(p + c), table_prefetch(p + c + 64);
                lut_columns(vbload(p + c), vbload(p + c + 64), t + c, &low, &high);
            }
            vi row[4];
            vbsums(vbsub16(low.all, vbshl8(low.odd)), low.odd, vbsub16(high.all, vbshl8(high.odd)), high.odd, row);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v)
                d[v] = vfma(vadd(vtof(row[v]), offset), bits_scale(s, h, 16 * v + part / 4, j), d[v]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            float *to = out + 16 * v + part / 4;
            const vf centre = vfma(vset(sum), bits_centre(s, h, 16 * v + part / 4), vload(to));
            vstore(to, vfma(d[v], vset(scale), centre));
        }
    }
}

// A group's codes come from memory for the first row and from the cache for the others.
EDGEC_NOINLINE void lut_sums(const BitsShape &s, const uint8_t *codes, const float *, const uint8_t *tables, float *out) {
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g);
        for (int64_t m = 0; m < s.m; ++m) {
            const uint8_t *t = tables + m * s.table_bytes();
            const float *scale = (const float *)(t + s.chunks() * 256), *sum = scale + s.groups();
            lut_group(s, codes, chunks, t + g * (s.group / 32) * 256, scale[g], sum[g], out + m * kBitsRows);
        }
        codes += s.code_bytes(chunks) + s.scale_bytes();
    }
}

constexpr BitsMethod kLookups = {tables_of<Code12>, lut_sums};
