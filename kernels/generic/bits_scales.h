// What the scales of a group mean (contract/bits.h).
//
// Weights are centre + sum_j (bit j ? scale_j : -scale_j); a uniform code times a step is that too, with scale_j half of
// the step times 2^j. Both for the L rows from `row` of a tile; h: a group's scales.
EDGEC_INLINE vf bits_scale(const BitsShape &s, const uint16_t *h, int64_t row, int64_t j) {
    if (!s.uniform) return vload_f16(h + j * kBitsRows + row);
    return vmul(vload_f16(h + row), vset(0.5f * (float)(1 << j)));
}
EDGEC_INLINE vf bits_centre(const BitsShape &s, const uint16_t *h, int64_t row) {
    if (!s.uniform) return vload_f16(h + s.bits * kBitsRows + row);
    const vf middle = vset(0.5f * (float)((1 << s.bits) - 1));
    return vmul(vload_f16(h + row), vsub(middle, vload_f16(h + kBitsRows + row)));
}
