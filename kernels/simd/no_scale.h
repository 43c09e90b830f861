// For instruction sets with no more than a division and integers to scale by: meanings as in avx512.h.
EDGEC_INLINE vf vdiv_near(vf a, vf b) { return vdiv(a, b); }
// In two exact steps, so that results near the ends of the range come out right.
EDGEC_MATH vf vscale(vf x, vf n) {
    const vi k = vtoi(vmin(n, vset(129.0f)));  // a NaN becomes 129 here and stays in x
    const vi half = vishr<1>(k), rest = visub(k, half);
    const vf lo = vcast_f(vishl<23>(viadd(half, viset(127)))), hi = vcast_f(vishl<23>(viadd(rest, viset(127))));
    return vmul(vmul(x, lo), hi);
}
