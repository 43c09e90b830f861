// Codes as nibbles, for the two ways to look palettes up.

// Bits at `mask` of *b change places with those S above in *a.
template <int S> EDGEC_INLINE void palette_swap(vi *a, vi *b, int32_t mask) {
    const vi t = viand(vixor(vishr<S>(*a), *b), viset(mask));
    *b = vixor(*b, t);
    *a = vixor(*a, vishl<S>(t));
}
// Four planes of 32 columns, a column per bit, become nibbles: word r has columns r, r + 4, ...
EDGEC_INLINE void palette_turn(vi *w) {
    palette_swap<1>(w, w + 1, 0x55555555);
    palette_swap<1>(w + 2, w + 3, 0x55555555);
    palette_swap<2>(w, w + 2, 0x33333333);
    palette_swap<2>(w + 1, w + 3, 0x33333333);
}
EDGEC_INLINE vi palette_at(vi a, int32_t byte) { return viand(a, viset(byte * 0x01010101)); }
// The same from the bytes of codes of up to 4 bits (contract/bits.h palette_code). Shifts within 32 bits: what comes from
// the neighbouring byte is not at the places that are kept.
EDGEC_INLINE void palette_nibbles(int64_t bits, vi *w) {
    const vi a = w[0], b = w[1], c = w[2];
    if (bits == 1) palette_turn(w);
    if (bits == 2) {
        w[0] = viadd(palette_at(a, 0x03), palette_at(vishl<4>(b), 0x30));
        w[1] = viadd(palette_at(vishr<2>(a), 0x03), palette_at(vishl<2>(b), 0x30));
        w[2] = viadd(palette_at(vishr<4>(a), 0x03), palette_at(b, 0x30));
        w[3] = viadd(palette_at(vishr<6>(a), 0x03), palette_at(vishr<2>(b), 0x30));
    }
    if (bits == 3) {
        w[0] = viadd(palette_at(a, 0x07), palette_at(vishl<4>(c), 0x70));
        w[1] = viadd(palette_at(vishr<3>(a), 0x07), palette_at(vishl<1>(c), 0x70));
        w[2] = viadd(palette_at(b, 0x47), palette_at(vishr<2>(a), 0x30));
        w[3] = viadd(palette_at(vishr<3>(b), 0x17), palette_at(vishr<1>(c), 0x60));
    }
}
