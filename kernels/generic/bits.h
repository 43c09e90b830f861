// Products with weights of few bits (contract/bits.h). Few rows of activations are looked up in tables (lut.h, and
// isa/avx512vbmi.cpp); for more, or where nothing shuffles bytes, the weights are decoded a group at a time: here to
// f32, in dot16.h to 16-bit integers. Palettes are decoded (palette.h).

// to[k][16] = rows 16 v .. 16 v + 15 of a group whose codes are `codes`; `columns` of its columns.
EDGEC_NOINLINE void bits_decode(const BitsShape &s, const uint8_t *codes, int64_t chunks, int64_t columns, int v,
                                float *to) {
    const uint16_t *h = (const uint16_t *)(codes + s.code_bytes(chunks));
    for (int64_t i = 0; i < 16; i += L) {
        const vf centre = bits_centre(s, h, 16 * v + i);
        for (int64_t c = 0; 8 * c < columns; ++c) {
            vf w[8] = {centre, centre, centre, centre, centre, centre, centre, centre};
            for (int64_t j = 0; j < s.bits; ++j) {
                const vf up = bits_scale(s, h, 16 * v + i, j), down = vneg(up);
                vi top = vtop_bytes(codes + (j * chunks * 4 + c) * kBitsRows + 4 * i, v);
#pragma GCC unroll 8
                for (int b = 7; b >= 0; --b) {
                    w[b] = vadd(w[b], vsel(vnegative(top), up, down));
                    top = viadd(top, top);
                }
            }
            float *column = to + 8 * c * 16 + i;
#pragma GCC unroll 8
            for (int b = 0; b < 8; ++b)
                if (8 * c + b < columns) vstore(column + b * 16, w[b]);
        }
    }
}

// Decodes kTilePanels panels of a group and multiplies them with every row: they stay in the first-level cache.
EDGEC_NOINLINE void bits_decoded(const BitsShape &s, const uint8_t *codes, const float *x, const uint8_t *,
                                 float *out) {
    constexpr int64_t kPanel = kBitsMostGroup * 16;
    alignas(64) float panel[kTilePanels * kPanel];
    for (int64_t g = 0; g < s.groups(); ++g) {
        const int64_t chunks = s.group_chunks(g), columns = imin(s.group, s.k - g * s.group);
        for (int v = 0; v < 4; v += kTilePanels) {
            for (int p = 0; p < kTilePanels; ++p) bits_decode(s, codes, chunks, columns, v + p, panel + p * kPanel);
            bits_multiply(s, x + g * s.group, panel, kPanel, columns, out + 16 * v);
        }
        codes += s.code_bytes(chunks) + s.scale_bytes();
    }
}

// Tiles [t0, t1) of one output. products: what a PaletteMethod has prepared, else null.
EDGEC_NOINLINE void bits_tiles(const BitsShape &s, const uint8_t *w, const Gemm &g, int64_t t0, int64_t t1, float *out,
                               const BitsMethod &method, const uint8_t *products) {
    const uint8_t *tables = method.prepare ? (const uint8_t *)(out + s.padded() * kBitsRows) : nullptr;
    static_assert(kPaletteTiles <= 16, "the sums of so many tiles lie in the rows of one");
    for (int64_t t = t0, more; t < t1; t += more) {
        more = products ? imin(kPaletteTiles, t1 - t) : 1;
        zero_floats(out, s.padded() * kBitsRows);
        for (int64_t i = 0; g.e.bias && i < more; ++i) {
            const int64_t n = (t + i) * kBitsRows;
            for (int64_t m = 0; m < s.m; ++m)
                memcpy(out + (i + m) * kBitsRows, g.e.bias + n, (size_t)imin(kBitsRows, g.n - n) * sizeof(float));
        }
        if (products) method.palette->sums(s, w + t * s.tile_bytes(), more, products, out);
        else if (s.vector) palette_sums(s, w, t, g.a, out + s.padded() * kBitsRows, out, kPaletteBytes);
        else method.sums(s, w + t * s.tile_bytes(), g.a, tables, out);
        for (int64_t i = 0; i < more; ++i) {
            const int64_t n = (t + i) * kBitsRows;
            gemm_finish(g, out + i * kBitsRows, kBitsRows, 0, (int)s.m, n, imin(kBitsRows, g.n - n));
        }
    }
}

static_assert(kMany.within_scratch(), "bits_scratch() has no room for this");

// Whether a PaletteMethod serves this part; values[16]: its table.
static bool palette_serves(const BitsPart &part, float *values) {
    const uint8_t *tables = (const uint8_t *)part.w->data + part.s.tiles() * part.s.tile_bytes();
    if (part.s.m != 1 || !part.s.palette_room()) return false;
    const int64_t count = (int64_t)1 << part.s.bits;
    float sum = 0, most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float v = values[i] = palette_value(part.s, tables, i), size = v < 0 ? -v : v;
        sum += size;
        if (size > most) most = size;
    }
    return sum * 0 == 0 && most * (float)count <= kPaletteCrest * sum;
}

// linear_bits (one output, and a residual) and linear_bits_split. No tiles at all mean that the tables are wanted.
void bits_run(const Args &a, int outputs, int64_t t0, int64_t t1, void *scratch, BitsMethod few, BitsMethod many) {
    const BitsPart first = bits_part(a, outputs, 0);
    BitsMethod method = first.s.m < many.least[first.s.bits - 1] ? few : many;
    if constexpr (kMany.decodes())
        if (method.decodes()) method.sums = bits_decoded;
    const float *x = (const float *)a.op[outputs].data;
    float *out = (float *)scratch;
    if (t0 == t1) {
        if (method.prepare && !first.s.vector) method.prepare(first.s, x, (uint8_t *)(out + first.s.padded() * kBitsRows));
        for (int p = 0; method.palette && p < outputs; ++p) {
            alignas(64) float values[16] = {};
            const BitsPart part = bits_part(a, outputs, p);
            if (a.op[p].data && palette_serves(part, values))
                method.palette->prepare(part.s, values, x, (uint8_t *)scratch + palette_place(a, outputs, p));
        }
        return;
    }
    const bool one = outputs == 1;
    int64_t before = 0;
    for (int p = 0; p < outputs; ++p) {
        if (!a.op[p].data) continue;
        const BitsPart part = bits_part(a, outputs, p);
        const BitsShape &s = part.s;
        const Gemm g = {x, s.k, s.m, s.n, s.k, (float *)part.y->data, s.n,
                        Epilogue{(const float *)part.bias->data, one ? (const float *)a.op[4].data : nullptr, (int)a.i[0],
                                 one ? (int)a.i[1] : 0, a.f[0], a.f[1]}};
        const int64_t from = imax(0, t0 - before), to = imin(s.tiles(), t1 - before);
        float values[16];
        const bool products = method.palette && from < to && palette_serves(part, values);
        bits_tiles(s, (const uint8_t *)part.w->data, g, from, to, out, method,
                   products ? (const uint8_t *)scratch + palette_place(a, outputs, p) : nullptr);
        before += s.tiles();
    }
}

void linear_bits(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    bits_run(a, 1, t0, t1, scratch, bits_fast(a, 1) ? kFastLookups : kLookups, kMany);
}
void linear_bits_split(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    bits_run(a, kBitsOutputs, t0, t1, scratch, bits_fast(a, kBitsOutputs) ? kFastLookups : kLookups, kMany);
}
