// unary, binary, glu, where. Codes: docs/kernels.md. Flat kernels cut their elements in tiles of kFlatTile; the
// broadcasting ones walk the rows of a collapsed nest, so that equal shapes, a scalar, a vector along the last dim and
// one value per row all end in one of three dense loops.

EDGEC_NOINLINE vf vunary_math(int64_t op, vf x) {
    const vf one = vset(1.0f);
    switch (op) {
        case 34: return vexp(x);
        case 35: return vlog(x);
        case 36: return vsqrt(x);
        case 37: return vdiv(one, x);
        case 38: return verf(x);
        case 46: return vdiv(one, vsqrt(x));
        default: {  // 39 sin, 40 cos: arguments of any size need the library's exact reduction
            float t[L];
            vstore(t, x);
            for (int j = 0; j < L; ++j) t[j] = op == 39 ? sinf(t[j]) : cosf(t[j]);
            return vload(t);
        }
    }
}

EDGEC_INLINE vf vunary(int64_t op, vf x, float a, float b) {
    const vf zero = vset(0.0f);
    switch (op) {
        case 32: return vneg(x);
        case 33: return vabs(x);
        case 41: return vfloor(x);
        case 42: return vneg(vfloor(vneg(x)));
        case 43: return vround(x);
        case 44: return vsel(vgt(x, zero), vset(1.0f), vsel(vlt(x, zero), vset(-1.0f), vsel(veq(x, zero), zero, x)));
        case 47: return vmul(x, x);
        default: return op < 32 ? vact((int)op, x, a, b) : vunary_math(op, x);
    }
}

void unary(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const int64_t begin = tile_begin * kFlatTile, end = imin(elements(a.op[0]), tile_end * kFlatTile), op = a.i[0];
    if (op == 45) {
        const uint8_t *x = (const uint8_t *)a.op[1].data;
        uint8_t *y = (uint8_t *)a.op[0].data;
        for (int64_t i = begin; i < end; ++i) y[i] = x[i] == 0;
        return;
    }
    const float *x = (const float *)a.op[1].data;
    float *y = (float *)a.op[0].data;
    int64_t i = begin;
    if (op < 32) {
        i += (end - begin) / L * L;
        if (x != y) memcpy(y + begin, x + begin, (size_t)(i - begin) * sizeof(float));
        vact_run((int)op, y + begin, i - begin, a.f[0], a.f[1]);
    }
    for (; i + L <= end; i += L) vstore(y + i, vunary(op, vload(x + i), a.f[0], a.f[1]));
    if (i < end) vstore_n(y + i, vunary(op, vload_n(x + i, end - i), a.f[0], a.f[1]), end - i);
}

void glu(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const int64_t begin = tile_begin * kFlatTile, end = imin(elements(a.op[0]), tile_end * kFlatTile);
    const float *p = (const float *)a.op[1].data, *q = (const float *)a.op[2].data;
    float *y = (float *)a.op[0].data;
    float t[16 * L];
    for (int64_t i = begin; i < end; i += 16 * L) {
        const int64_t n = imin(16 * L, end - i);
        int64_t j = 0;
        for (; j < n; j += L) vstore(t + j, vload_upto(p + i + j, n - j));
        vact_run((int)a.i[0], t, j, a.f[0], a.f[1]);
        for (j = 0; j < n; j += L) vstore_upto(y + i + j, vmul(vload(t + j), vload_upto(q + i + j, n - j)), n - j);
    }
}

// The codes 0..15 in their order.
enum BinaryOp {
    ADD, SUB, MUL, DIV, POW, BMIN, BMAX, MOD, EQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL, AND, OR, XOR
};

template <int OP> EDGEC_INLINE vf vbinary(vf p, vf q) {
    if (OP == ADD) return vadd(p, q);
    if (OP == SUB) return vsub(p, q);
    if (OP == MUL) return vmul(p, q);
    if (OP == DIV) return vdiv(p, q);
    // A NaN on either side stays one, as in numpy: vmin / vmax return q when p is not a number, or when q is not.
    return vsel(veq(p, p), OP == BMIN ? vmin(p, q) : vmax(p, q), p);
}

// sp and sq are 0 (one value for the row) or 1.
template <int OP>
EDGEC_INLINE void binary_dense(float *y, const float *p, const float *q, int64_t sp, int64_t sq, int64_t n) {
    const vf p0 = vset(p[0]), q0 = vset(q[0]);
    int64_t i = 0;
    if (sp && sq) {
        for (; i + L <= n; i += L) vstore(y + i, vbinary<OP>(vload(p + i), vload(q + i)));
    } else if (sq) {
        for (; i + L <= n; i += L) vstore(y + i, vbinary<OP>(p0, vload(q + i)));
    } else {
        for (; i + L <= n; i += L) vstore(y + i, vbinary<OP>(sp ? vload(p + i) : p0, q0));
    }
    if (i < n) vstore_n(y + i, vbinary<OP>(sp ? vload_n(p + i, n - i) : p0, sq ? vload_n(q + i, n - i) : q0), n - i);
}

EDGEC_INLINE float binary_f32(int64_t op, float p, float q) {
    switch (op) {
        case ADD: return p + q;
        case SUB: return p - q;
        case MUL: return p * q;
        case DIV: return p / q;
        case POW: return q == 2.0f ? p * p : powf(p, q);
        case BMIN: return p != p || p < q ? p : q;
        case BMAX: return p != p || p > q ? p : q;
        default: {
            float r = fmodf(p, q);
            return r != 0 && (r < 0) != (q < 0) ? r + q : r;
        }
    }
}

// Wraps around like the machine; unsigned arithmetic, because signed overflow is undefined.
template <class T, class U> EDGEC_INLINE T binary_whole(int64_t op, T p, T q) {
    switch (op) {
        case ADD: return (T)((U)p + (U)q);
        case SUB: return (T)((U)p - (U)q);
        case MUL: return (T)((U)p * (U)q);
        case DIV: return q == 0 ? 0 : q == -1 ? (T)(0 - (U)p) : (T)(p / q);
        case POW: {
            if (q < 0) return p == 1 ? 1 : p == -1 ? (q % 2 ? -1 : 1) : 0;
            U r = 1, base = (U)p;
            for (; q; q >>= 1, base *= base)
                if (q & 1) r *= base;
            return (T)r;
        }
        case BMIN: return p < q ? p : q;
        case BMAX: return p > q ? p : q;
        default: {
            if (q == 0 || q == -1) return 0;
            const T r = (T)(p % q);
            return r != 0 && (r < 0) != (q < 0) ? (T)(r + q) : r;
        }
    }
}

template <class T>
EDGEC_INLINE void compare_row(uint8_t *y, const T *p, const T *q, int64_t sp, int64_t sq, int64_t n, int64_t op) {
    switch (op) {
        case EQUAL: for (int64_t i = 0; i < n; ++i) y[i] = p[i * sp] == q[i * sq]; break;
        case LESS: for (int64_t i = 0; i < n; ++i) y[i] = p[i * sp] < q[i * sq]; break;
        case LESS_EQUAL: for (int64_t i = 0; i < n; ++i) y[i] = p[i * sp] <= q[i * sq]; break;
        case GREATER: for (int64_t i = 0; i < n; ++i) y[i] = p[i * sp] > q[i * sq]; break;
        default: for (int64_t i = 0; i < n; ++i) y[i] = p[i * sp] >= q[i * sq]; break;
    }
}

EDGEC_NOINLINE void binary_row_f32(float *y, const float *p, const float *q, int64_t sp, int64_t sq, int64_t n,
                                   int64_t op) {
    if ((sp | sq) == 1) {
        switch (op) {
            case ADD: binary_dense<ADD>(y, p, q, sp, sq, n); return;
            case SUB: binary_dense<SUB>(y, p, q, sp, sq, n); return;
            case MUL: binary_dense<MUL>(y, p, q, sp, sq, n); return;
            case DIV: binary_dense<DIV>(y, p, q, sp, sq, n); return;
            case BMIN: binary_dense<BMIN>(y, p, q, sp, sq, n); return;
            case BMAX: binary_dense<BMAX>(y, p, q, sp, sq, n); return;
            default: break;
        }
    }
    for (int64_t i = 0; i < n; ++i) y[i] = binary_f32(op, p[i * sp], q[i * sq]);
}

template <class T, class U>
EDGEC_INLINE void binary_row_whole(T *y, const T *p, const T *q, int64_t sp, int64_t sq, int64_t n, int64_t op) {
    for (int64_t i = 0; i < n; ++i) y[i] = binary_whole<T, U>(op, p[i * sp], q[i * sq]);
}

EDGEC_NOINLINE void binary_row_bool(uint8_t *y, const uint8_t *p, const uint8_t *q, int64_t sp, int64_t sq, int64_t n,
                                    int64_t op) {
    for (int64_t i = 0; i < n; ++i) {
        const bool l = p[i * sp] != 0, r = q[i * sq] != 0;
        y[i] = op == AND ? l && r : op == OR ? l || r : op == XOR ? l != r : l == r;
    }
}

void binary(const Args &a, int64_t tile_begin, int64_t tile_end, void *) {
    const View &y = a.op[0], *x[2] = {&a.op[1], &a.op[2]};
    const Nest nest = nest_broadcast(y, x, 2);
    const int64_t op = a.i[0], sp = nest.stride[0][nest.rank - 1], sq = nest.stride[1][nest.rank - 1];
    const bool compares = op >= EQUAL && op <= GREATER_EQUAL;
    const int64_t end = imin(elements(y), tile_end * kFlatTile);
    const void *p = x[0]->data, *q = x[1]->data;
    for (Walk w = walk_begin(nest, tile_begin * kFlatTile, end); w.n > 0; walk_next(nest, &w)) {
        uint8_t *flags = (uint8_t *)y.data + w.at;
        switch (x[0]->dtype) {
            case F32: {
                const float *l = (const float *)p + w.off[0], *r = (const float *)q + w.off[1];
                if (compares) compare_row(flags, l, r, sp, sq, w.n, op);
                else binary_row_f32((float *)y.data + w.at, l, r, sp, sq, w.n, op);
                break;
            }
            case I32: {
                const int32_t *l = (const int32_t *)p + w.off[0], *r = (const int32_t *)q + w.off[1];
                if (compares) compare_row(flags, l, r, sp, sq, w.n, op);
                else binary_row_whole<int32_t, uint32_t>((int32_t *)y.data + w.at, l, r, sp, sq, w.n, op);
                break;
            }
            case I64: {
                const int64_t *l = (const int64_t *)p + w.off[0], *r = (const int64_t *)q + w.off[1];
                if (compares) compare_row(flags, l, r, sp, sq, w.n, op);
                else binary_row_whole<int64_t, uint64_t>((int64_t *)y.data + w.at, l, r, sp, sq, w.n, op);
                break;
            }
            default:
                binary_row_bool(flags, (const uint8_t *)p + w.off[0], (const uint8_t *)q + w.off[1], sp, sq, w.n, op);
                break;
        }
    }
}
