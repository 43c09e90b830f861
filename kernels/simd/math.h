// Vector math on the vocabulary, included once per instruction set after its simd header (so: no guard, no includes).
//
// Errors against float64 (held to it by the `unary` cases of tests/kernels): vexp, vexpm1, vlog about 3e-7 relative;
// vsigmoid 1e-6, verfc 3e-6 relative down to z = 3.5; vtanh, verf 4e-7 absolute. NaN gives NaN. The polynomials are
// weighted minimax fits of our own.
//
// EDGEC_MATH is EDGEC_INLINE, or EDGEC_NOINLINE where size counts more (isa/scalar.cpp); no longer defined afterwards.
//
// vmin and vmax return their second operand when one of the two is NaN, as x86 does; x therefore comes second.

EDGEC_INLINE vf vpoly(vf x, const float *c, int n) {  // c[0] + c[1] x + ..., Horner; unrolled where n is a constant
    vf s = vset(c[n - 1]);
#pragma GCC unroll 16
    for (int k = n - 2; k >= 0; --k) s = vfma(s, x, vset(c[k]));
    return s;
}

constexpr float kLog2e = 1.44269504f, kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
constexpr float kExpC[] = {0.5f, 0.166666657f, 0.0416662954f, 0.00833349768f, 0.00139447581f, 0.000197902438f};

// x = n ln2 + r; r keeps NaN.
EDGEC_INLINE vf vexp_reduce(vf x, vf *n) {
    *n = vround(vmul(x, vset(kLog2e)));
    return vfma(*n, vset(-kLn2Lo), vfma(*n, vset(-kLn2Hi), x));
}

// -inf gives 0, +inf and anything above 88.72 gives inf.
EDGEC_MATH vf vexp(vf x) {
    x = vmax(vset(-104.0f), vmin(vset(89.0f), x));
    vf n, r = vexp_reduce(x, &n);
    vf p = vpoly(r, kExpC, 6);
    return vscale(vadd(vset(1.0f), vfma(vmul(r, r), p, r)), n);
}

EDGEC_MATH vf vexpm1(vf x) {
    vf p = vfma(vmul(x, x), vpoly(x, kExpC, 6), x);  // the same polynomial without the 1: no cancellation near 0
    return vsel(vlt(vabs(x), vset(0.3466f)), p, vsub(vexp(x), vset(1.0f)));
}

// 0 gives -inf, negative gives NaN, +inf gives +inf; denormals are handled.
EDGEC_MATH vf vlog(vf x) {
    const float c[] = {0.333333135f, -0.250000089f, 0.200021192f, -0.166679963f, 0.142195523f,
                       -0.124055892f, 0.11888162f, -0.116756521f, 0.067466408f};
    vm tiny = vlt(x, vset(1.17549435e-38f));
    vf y = vsel(tiny, vmul(x, vset(16777216.0f)), x);
    // Adding the distance from sqrt(1/2) to 1 moves the exponent border there: the mantissa lands in [0.707, 1.414).
    vi bits = viadd(vcast_i(y), viset(0x3f800000 - 0x3f3504f3));
    vi e = visub(vishr<23>(bits), viset(127));
    vf n = vadd(vtof(e), vsel(tiny, vset(-24.0f), vset(0.0f)));
    vf f = vsub(vcast_f(visub(vcast_i(y), vishl<23>(e))), vset(1.0f));
    vf f2 = vmul(f, f);
    vf r = vfma(vmul(f2, f), vpoly(f, c, 9), vmul(n, vset(kLn2Lo)));
    r = vadd(vfma(f2, vset(-0.5f), r), f);
    r = vfma(n, vset(kLn2Hi), r);
    r = vsel(vlt(x, vset(INFINITY)), r, x);  // inf and NaN
    r = vsel(vlt(x, vset(0.0f)), vset(NAN), r);
    return vsel(veq(x, vset(0.0f)), vset(-INFINITY), r);
}

// log(1 + u) for u in [0, 1]; the correction term restores what 1 + u rounded away.
EDGEC_INLINE vf vlog1p_unit(vf u) {
    vf w = vadd(vset(1.0f), u);
    return vsub(vlog(w), vdiv(vsub(vsub(w, vset(1.0f)), u), w));
}

EDGEC_MATH vf vsigmoid(vf x) { return vdiv_near(vset(1.0f), vadd(vset(1.0f), vexp(vneg(x)))); }

EDGEC_MATH vf vtanh(vf x) {
    const float c[] = {-0.333332717f, 0.133311525f, -0.0537141077f, 0.0205517188f, -0.00560391415f};
    vf a = vabs(x), x2 = vmul(x, x);
    vf small = vfma(vmul(x2, x), vpoly(x2, c, 5), x);
    vf e = vexp(vmul(a, vset(2.0f)));
    vf big = vsub(vset(1.0f), vdiv_near(vset(2.0f), vadd(e, vset(1.0f))));
    big = vsel(vlt(x, vset(0.0f)), vneg(big), big);
    return vsel(vlt(a, vset(0.625f)), small, big);
}

// erfc(z) for z >= 0, relative accuracy kept far into the tail: exp(-z^2) t R(t), t = 1 / (1 + z/2).
EDGEC_MATH vf verfc(vf z) {
    const float c[] = {0.282086223f, 0.282378763f, 0.243078843f, 0.202785075f, -0.0268569011f,
                       0.278401673f, -0.487491399f, 0.284715354f, -0.0590976588f};
    vf t = vdiv_near(vset(1.0f), vfma(z, vset(0.5f), vset(1.0f)));
    return vmul(vexp(vneg(vmul(z, z))), vmul(t, vpoly(t, c, 9)));
}

EDGEC_MATH vf verf(vf x) {
    const float c[] = {1.12837911f, -0.37612626f, 0.112836003f, -0.0268544443f, 0.00518953567f, -0.000802084222f,
                       7.88912294e-05f};
    vf a = vabs(x), x2 = vmul(x, x);
    vf big = vsub(vset(1.0f), verfc(a));
    big = vsel(vlt(x, vset(0.0f)), vneg(big), big);
    return vsel(vlt(a, vset(0.9f)), vmul(x, vpoly(x2, c, 7)), big);
}

// Activations by the codes of docs/kernels.md. silu, gelu and mish of -inf are NaN or 0 as their formulas give.
EDGEC_INLINE vf vsilu(vf x) { return vdiv_near(x, vadd(vset(1.0f), vexp(vneg(x)))); }

// max(x, 0) - |x| erfc(|x| / sqrt 2) / 2: no cancellation in the negative tail, and no inf * 0 at the ends.
EDGEC_INLINE vf vgelu(vf x) {
    vf a = vabs(x);
    vf h = vmul(vmul(vset(0.5f), a), verfc(vmul(a, vset(0.707106781f))));
    h = vsel(vgt(a, vset(14.0f)), vset(0.0f), h);
    return vsub(vmax(vset(0.0f), x), h);
}

// 0.5 x (1 + tanh u) = x sigmoid(2u).
EDGEC_INLINE vf vgelu_tanh(vf x) {
    vf u = vmul(x, vfma(vmul(x, x), vset(0.0713548163f), vset(1.59576912f)));
    return vdiv_near(x, vadd(vset(1.0f), vexp(vneg(u))));
}

EDGEC_INLINE vf vsoftplus(vf x) {
    return vadd(vmax(vset(0.0f), x), vlog1p_unit(vexp(vneg(vabs(x)))));
}

// x tanh(log(1 + e)) = x n / (n + 2) with e = exp x, n = e (e + 2).
EDGEC_INLINE vf vmish(vf x) {
    vf e = vexp(vmin(vset(20.0f), x)), n = vmul(e, vadd(e, vset(2.0f)));
    return vmul(x, vdiv(n, vadd(n, vset(2.0f))));
}

EDGEC_INLINE vf vclip(vf x, vf lo, vf hi) { return vmin(hi, vmax(lo, x)); }

// x[0..n) each through an activation (code: 0..13, every check function sees to that), n being a multiple of L. Out of line:
// a convolution's epilogue would otherwise carry every activation in each of its variants. Of many at once: one alone would
// wait for its own divisions and sums.
EDGEC_NOINLINE void vact_run(int code, float *x, int64_t n, float a, float b) {
    [[maybe_unused]] const vf one = vset(1.0f), sixth = vset(1.0f / 6.0f);
    const vf zero = vset(0.0f), va = vset(a), vb = vset(b);
    float *const end = x + n;
    switch (code) {
        case 0: break;
        case 1: for (; x != end; x += L) vstore(x, vmax(zero, vload(x))); break;
        case 2: for (; x != end; x += L) vstore(x, vclip(vload(x), va, vb)); break;
#if EDGEC_CURVED
        case 3: for (; x != end; x += L) vstore(x, vsigmoid(vload(x))); break;
        case 4: for (; x != end; x += L) vstore(x, vsilu(vload(x))); break;
        case 5: for (; x != end; x += L) vstore(x, vtanh(vload(x))); break;
        case 6: for (; x != end; x += L) vstore(x, vgelu(vload(x))); break;
        case 7: for (; x != end; x += L) vstore(x, vgelu_tanh(vload(x))); break;
        case 8: for (; x != end; x += L) vstore(x, vmul(vload(x), vclip(vfma(vload(x), sixth, vset(0.5f)), zero, one))); break;
        case 9: for (; x != end; x += L) vstore(x, vclip(vfma(vload(x), va, vb), zero, one)); break;
        case 10: for (; x != end; x += L) vstore(x, vsel(vlt(vload(x), zero), vmul(vload(x), va), vload(x))); break;
        case 11: for (; x != end; x += L) vstore(x, vsel(vlt(vload(x), zero), vmul(vexpm1(vload(x)), va), vload(x))); break;
        case 12: for (; x != end; x += L) vstore(x, vsoftplus(vload(x))); break;
        default: for (; x != end; x += L) vstore(x, vmish(vload(x)));
#endif
    }
}

// The same of a few vectors; the first three activations are done where the vectors are.
template <int N>
EDGEC_INLINE void vact_all(int code, vf *x, float a, float b) {
    if (code > 2) {
        float t[N * L];
        for (int i = 0; i < N; ++i) vstore(t + i * L, x[i]);
        vact_run(code, t, N * L, a, b);
        for (int i = 0; i < N; ++i) x[i] = vload(t + i * L);
        return;
    }
    const vf lo = code == 2 ? vset(a) : vset(0.0f), hi = code == 2 ? vset(b) : vset(INFINITY);
    for (int i = 0; i < N && code != 0; ++i) x[i] = vclip(x[i], lo, hi);
}
EDGEC_INLINE vf vact(int code, vf x, float a, float b) {
    if (code == 1) return vmax(vset(0.0f), x);
    if (code == 2) return vclip(x, vset(a), vset(b));
    if (code != 0) vact_all<1>(code, &x, a, b);
    return x;
}
#undef EDGEC_MATH
