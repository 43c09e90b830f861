// scatter: y[N, I] is x with row idx[r] replaced by u[r], or joined with it, for every r in order: what one tile does.

void scatter(const Args &a, int64_t, int64_t, void *) {
    const View &y = a.op[0], &u = a.op[3];
    const int64_t rows = y.dim[0], inner = y.dim[1], op = a.i[0], size = dtype_size(y.dtype);
    memcpy(y.data, a.op[1].data, (size_t)(rows * inner * size));
    for (int64_t r = 0; r < u.dim[0]; ++r) {
        const int64_t to = gather_index(a, r, rows) * inner, from = r * inner;
        if (op == 0) {
            memcpy((uint8_t *)y.data + to * size, (const uint8_t *)u.data + from * size, (size_t)(inner * size));
            continue;
        }
        float *p = (float *)y.data + to;
        const float *q = (const float *)u.data + from;
        for (int64_t i = 0; i < inner; ++i) {
            const float v = q[i];
            if (op == 1) p[i] += v;
            else if (op == 2) p[i] *= v;
            else if (v != v || (op == 3 ? v < p[i] : v > p[i])) p[i] = v;  // a NaN stays one
        }
    }
}
