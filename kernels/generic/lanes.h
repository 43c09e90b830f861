// Loads and stores for loops that end with a part of a vector: whole vectors, which are nearly all, take the plain
// instruction; the partial forms go element by element where an instruction set has no masks.

constexpr int kPanelVecs = 16 / L, kTileVecs = kTilePanels * kPanelVecs;

EDGEC_INLINE vf vload_upto(const float *p, int64_t n) { return n >= L ? vload(p) : vload_n(p, n); }
EDGEC_INLINE void vstore_upto(float *p, vf a, int64_t n) {
    if (n >= L) vstore(p, a);
    else vstore_n(p, a, n);
}
EDGEC_INLINE vf vload_half_upto(const uint16_t *p, int64_t n, bool bf16) {
    if (n >= L) return bf16 ? vload_bf16(p) : vload_f16(p);
    return bf16 ? vload_bf16_n(p, n) : vload_f16_n(p, n);
}
EDGEC_INLINE void vstore_f16_upto(uint16_t *p, vf a, int64_t n) {
    if (n >= L) vstore_f16(p, a);
    else vstore_f16_n(p, a, n);
}
