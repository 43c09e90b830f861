// Planes of bits as nibbles, for the two ways to look palettes up.

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
