// Many rows of activations times weights of few bits in 8-bit integers, for the fast mode of instruction sets that add up
// four products of bytes at once (vocabulary: vdot8_row and what stands beside it in their files).
//
// Activations: 32 columns of a row, a chunk, share a scale, -127 to 127. More columns would be cheaper, but one large
// value takes the bits of all others: rounding errors that are spread evenly are then sqrt(32 / 12) / 127 = 1.29 % of the
// chunk at most (were each half a step, sqrt(31 / 4) / 127 = 2.2 %); of 64 columns they would be 1.8 %, of 128 2.6 %.
// Weights: a group of one row is a unit times whole numbers of 0 to 255, one addend for each plane, plus a base. Codes
// of uniform weights are multiples of such numbers, and nothing is lost. Of HLQ a plane's addend is rounded once and the
// base set so that levels are centred as they were: an error of a quarter of a unit per plane at most, a 255th of the
// range or so. The base is multiplied with the sum of the rounded activations, and the levels' centre with what these have
// lost in sum: rounding errors of one sign would else add up where weights have a mean.
//
// Sums run on through a group: 128 * 255 * 127 is below 2^22, so that one that begins as the bits of 1.5 * 2^23 is a float
// at any time. A chunk's scale is kept less the next one's: times what the sum is by then, all of them add up to the sum
// of each chunk times its own. Activations above 2e33 leave no room for that, and their row is not finite.
//
// A four, which a lane of a product takes, is columns b, 8 + b, 16 + b and 24 + b of a chunk: those of one bit of a
// row's four bytes. What is not finite ends as it does in dot16.h.
constexpr int64_t kDot8Panel = 8 * 64;  // bytes of 16 rows of a chunk
constexpr float kDot8Start = 0x1.8p23f;

struct Dot8Rows {
    uint8_t *bytes;             // [chunk][rows][32]
    float *scale;              // [chunk][rows]
    float *sum, *rest, *start;  // [group][rows]: what bytes times scales add up to, what x is more, where sums begin
};
EDGEC_INLINE Dot8Rows dot8_rows(const BitsShape &s, const uint8_t *tables) {
    float *const scale = (float *)(tables + s.padded() * s.chunks() * 32), *const sum = scale + s.padded() * s.chunks();
    return {(uint8_t *)tables, scale, sum, sum + s.padded() * s.groups(), sum + 2 * s.padded() * s.groups()};
}

// Row m of group g; x: its columns, as many as there are. The scale of what is all zero is the least there is, so that the
// factor to the bytes is finite.
EDGEC_INLINE void dot8_group(const BitsShape &s, const float *x, int64_t columns, int64_t m, int64_t g, const Dot8Rows &to) {
    const int64_t rows = s.padded(), begin = g * (s.group / 32), end = begin + s.group_chunks(g);
    float first = 0, before = 0;
    vf real = vset(0), all = vset(0), bad = vset(0);
    for (int64_t c = begin; c < end; ++c, columns -= 32) {
        const float *from = x;
        float room[32];
        if (columns < 32) {
            memset(room, 0, sizeof room);
            if (columns > 0) memcpy(room, x, (size_t)columns * sizeof(float));
            from = room;
        } else {
            x += 32;
        }
        vf most = vset(127 * 0x1p-126f);
#pragma GCC unroll 8
        for (int i = 0; i < 32; i += L) {
            const vf v = vload(from + i);
            most = vmax(vabs(v), most);
            bad = vfma(v, vset(0), bad);
            real = vadd(real, v);
        }
        const float limit = vhmax(most), unit = limit * (1 / 127.0f);
        const vf inverse = vset(127 / limit);
        vi v[32 / L], total = viset(0);
#pragma GCC unroll 8
        for (int i = 0; i < 32 / L; ++i) {
            v[i] = vtoi(vmul(vload(from + i * L), inverse));
            total = viadd(total, v[i]);
        }
        vstore_fours(to.bytes + (c * rows + m) * 32, v);
        all = vfma(vtof(total), vset(unit), all);
        if (c == begin) first = unit;
        else to.scale[(c - 1) * rows + m] = before - unit;
        to.scale[c * rows + m] = before = unit;
    }
    to.sum[g * rows + m] = vsum(all);
    to.rest[g * rows + m] = vsum(vsub(real, all));
    to.start[g * rows + m] = vsum(bad) - kDot8Start * first;
}

// x[m][k] -> Dot8Rows; rows beyond m are zero. Sixteen rows at a time, for what is written lies side by side then.
EDGEC_NOINLINE void dot8_prepare(const BitsShape &s, const float *x, uint8_t *tables) {
    const Dot8Rows to = dot8_rows(s, tables);
    for (int64_t block = 0; block < s.padded(); block += 16)
        for (int64_t g = 0; g < s.groups(); ++g)
            for (int64_t m = block; m < block + 16; ++m)
                dot8_group(s, x + (m < s.m ? m * s.k + g * s.group : 0), m < s.m ? s.k - g * s.group : 0, m, g, to);
}

// The numbers of a tile's part of a group [chunk][4][8 fours][16 rows][4], less kDot8Turn, then its rows' units [64],
// bases [64] and centres [64].
EDGEC_NOINLINE void dot8_levels(const BitsShape &s, const uint8_t *codes, int64_t chunks, uint8_t *to, float *unit) {
    const uint16_t *h = (const uint16_t *)(codes + s.code_bytes(chunks));
    const float times = (float)(255 / ((1 << s.bits) - 1));  // of uniform codes: what makes them as large as they can be
    for (int64_t i = 0; i < 16; i += L) {
        vi start[4], step[kBitsMost][4];
        for (int v = 0; v < 4; ++v) {
            const int64_t row = 16 * v + i;
            vf most = vset(0), all = vset(0), sum = vset(0);
            for (int64_t j = 0; j < s.bits; ++j) most = vadd(most, vabs(bits_scale(s, h, row, j)));
            // Half a number for each rounding is left below 255.
            const vf range = vmax(vadd(most, most), vset(0x1p-100f));
            const vf one = vdiv(s.uniform ? vload_f16(h + row) : range, vset(s.uniform ? times : 254.9f - 0.5f * (float)s.bits));
            const vf inverse = vdiv(vset(2), one);
            for (int64_t j = 0; j < s.bits; ++j) {
                const vf number = s.uniform ? vset(times * (float)(1 << j)) : vround(vmul(bits_scale(s, h, row, j), inverse));
                all = vadd(all, vabs(number));
                sum = vadd(sum, number);
                step[j][v] = dot8_spread(vtoi(number));
            }
            const vf half = vmul(all, vset(0.5f)), turn = vset(kDot8Turn);
            start[v] = dot8_spread(vtoi(vsub(vfnma(vset(0.5f), sum, half), turn)));
            const vf centre = bits_centre(s, h, row);
            vstore(unit + row, vfma(vadd(most, vabs(centre)), vset(0), one));
            vstore(unit + kBitsRows + row, vfnma(one, vsub(half, turn), centre));
            vstore(unit + 2 * kBitsRows + row, centre);
        }
        for (int64_t c = 0; c < chunks; ++c) {
            vi bits[kBitsMost][4];
            for (int64_t j = 0; j < s.bits; ++j) vrows(codes + (j * chunks + c) * 256 + 4 * i, bits[j]);
            for (int v = 0; v < 4; ++v) {
                vi w[8] = {start[v], start[v], start[v], start[v], start[v], start[v], start[v], start[v]};
                for (int64_t j = 0; j < s.bits; ++j)
#pragma GCC unroll 8
                    for (int b = 0; b < 8; ++b) w[b] = vbadd_where(w[b], bits[j][v], viset((int32_t)(0x01010101u << b)), step[j][v]);
                uint8_t *panel = to + (4 * c + v) * kDot8Panel + 4 * i;
#pragma GCC unroll 8
                for (int b = 0; b < 8; ++b) vistore((int32_t *)(panel + 64 * b), w[b]);
            }
        }
    }
}

// What a tile of a group is made of: rows of x, `rows` of which are a chunk, and panels of weights.
struct Dot8 {
    const uint8_t *x, *w;
    const float *scale, *sum, *rest, *start, *unit;  // of x, of x's group (three), of w
    int64_t rows, chunks;
};

// out[0..R)[0..kDot8Vectors L) += x[0..R) times one width of weights.
template <int R> EDGEC_NOINLINE void dot8_tile(const Dot8 &d, float *out) {
    constexpr int NV = kDot8Vectors;
    vf total[R][NV];
    vi acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) total[r][j] = vset(d.start[r]), acc[r][j] = vcast_i(vset(kDot8Start));
    const uint8_t *x = d.x, *w = d.w;
    const float *scale = d.scale;
#pragma GCC unroll 1
    for (int64_t c = 0; c < d.chunks; ++c, x += d.rows * 32, w += 4 * kDot8Panel, scale += d.rows) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i += kDot8Fours) {
            const uint8_t *q = w + 64 * i;
            vi fours[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) fours[r] = vfours8(x + 32 * r + 4 * i);
#pragma GCC unroll 4
            for (int f = 0; f < kDot8Fours; ++f) {
                vi b[NV];
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j) b[j] = viload((const int32_t *)(q + 64 * f + j * L / 16 * kDot8Panel) + j * L % 16);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                    for (int j = 0; j < NV; ++j) vdot8_row(&acc[r][j], b[j], fours[r], f);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) total[r][j] = vfma(vcast_f(acc[r][j]), vset(scale[r]), total[r][j]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
            float *to = out + r * kBitsRows + j * L;
            const vf lost = vfma(vload(d.unit + 2 * kBitsRows + j * L), vset(d.rest[r]), vload(to));
            const vf base = vfma(vload(d.unit + kBitsRows + j * L), vset(d.sum[r]), lost);
            vstore(to, vfma(total[r][j], vload(d.unit + j * L), base));
        }
}

// As dot_sums() in dot16.h. A last tile may have a row more, which is zero.
EDGEC_NOINLINE void dot8_sums(const BitsShape &s, const uint8_t *codes, const float *, const uint8_t *tables, float *out) {
    alignas(64) float unit[3 * kBitsRows];
    const int64_t rows = s.padded();
    uint8_t *w = (uint8_t *)(tables + s.pair_bytes());
    Dot8Rows x = dot8_rows(s, tables);
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g), bytes = s.code_bytes(chunks) + s.scale_bytes();
        dot8_levels(s, codes, chunks, w, unit);
        codes += bytes;
        const uint8_t *next = codes;  // as much again comes from memory while this group is multiplied
        for (int64_t m = 0; m < s.m;) {
            const int64_t left = s.m - m, height = left > kDot8Rows - 2 ? kDot8Rows : left > 2 ? 4 : 2;
            for (const uint8_t *end = codes + bytes * imin(s.m, m + height) / s.m; next < end; next += 64)
                __builtin_prefetch(next);
            for (int64_t n = 0; n < kBitsRows; n += kDot8Vectors * L) {
                const Dot8 d = {x.bytes + m * 32, w + n / 16 * kDot8Panel + n % 16 * 4, x.scale + m,
                                x.sum + m, x.rest + m, x.start + m, unit + n, rows, chunks};
                float *to = out + m * kBitsRows + n;
                if (height == kDot8Rows) dot8_tile<kDot8Rows>(d, to);
                else if (height == 4) dot8_tile<4>(d, to);
                else dot8_tile<2>(d, to);
            }
            m += height;
        }
        x = {x.bytes + rows * chunks * 32, x.scale + rows * chunks, x.sum + rows, x.rest + rows, x.start + rows};
    }
}
