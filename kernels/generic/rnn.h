// Recurrent layers over inputs that are projected already: each step multiplies the state with the recurrent weights and
// applies the gates. Steps follow each other, so a tile is a block of sequences.

enum RnnMode { RNN_TANH = 0, RNN_RELU = 1, RNN_GRU = 2, RNN_GRU_RESET_FIRST = 3, RNN_LSTM = 4 };

// y = act(state w[gate]T + bias + add); y and add have row stride ld.
EDGEC_NOINLINE void rnn_gate(const RnnShape &s, const View &w, int64_t gate, const float *state, int64_t rows,
                             const float *bias, const float *add, int act, float *y, int64_t ld) {
    Gemm g = {state, s.h, rows, s.h, s.h, y, ld, Epilogue{bias, add, act, 1, 0, 0}};
    LinearShape l;
    l.m = rows;
    l.n = l.k = s.h;
    l.panels = s.panels;
    l.row_blocks = 1;
    l.panel_blocks = rows <= kVectorRows ? s.panels : ceil_div(s.panels, kLinearPanels);
    const int64_t at = gate * s.panels * 16 * s.h * dtype_size(w.dtype);
    // So few rows are never widened: no scratch.
    linear_run(g, l, (const char *)w.data + at, w.dtype, nullptr, 0, l.panel_blocks);
}

// One row of n units: the gates' values p (n apart each) and the step's inputs g turn state h (and c) into the next.
EDGEC_NOINLINE void rnn_update(int64_t mode, int64_t n, const float *p, const float *g, float *h, float *c) {
    for (int64_t j = 0; j < n; j += L) {
        const int64_t m = imin(L, n - j);
        const vf first = vload_upto(p + j, m);
        vf x = first;
        if (mode == RNN_LSTM) {  // input, output, forget, candidate
            x = vfma(vload_upto(p + 2 * n + j, m), vload_upto(c + j, m), vmul(first, vload_upto(p + 3 * n + j, m)));
            vstore_upto(c + j, x, m);
        } else if (mode >= RNN_GRU) {  // update, reset, candidate
            x = vload_upto(p + 2 * n + j, m);
            if (mode == RNN_GRU) x = vfma(vload_upto(p + n + j, m), x, vload_upto(g + 2 * n + j, m));
        }
        if (mode == RNN_LSTM || mode == RNN_GRU) x = vtanh(x);
        const vf next = mode == RNN_LSTM ? vmul(vload_upto(p + n + j, m), x)
                        : mode >= RNN_GRU ? vfma(first, vsub(vload_upto(h + j, m), x), x) : first;
        vstore_upto(h + j, next, m);
    }
}

void rnn(const Args &a, int64_t t0, int64_t t1, void *scratch) {
    const RnnShape s = rnn_shape(a);
    const View &w = a.op[4];
    const int64_t mode = a.i[0], wide = s.gates * s.h;
    const float *bias = (const float *)a.op[5].data;
    for (int64_t tile = t0; tile < t1; ++tile) {
        const int64_t b = tile * kRnnRows, rows = imin(kRnnRows, s.b - b), n = rows * s.h;
        const size_t bytes = (size_t)n * sizeof(float);
        float *h = (float *)scratch, *c = h + n, *p = c + n;
        for (int k = 0; k < 2; ++k) {
            const float *from = (const float *)a.op[6 + k].data;
            if (from) memcpy(k ? c : h, from + b * s.h, bytes);
            else memset(k ? c : h, 0, bytes);
        }
        for (int64_t step = 0; step < s.t; ++step) {
            const int64_t at = (a.i[1] ? s.t - 1 - step : step) * s.b + b;
            const float *g = (const float *)a.op[3].data + at * wide;
            for (int64_t k = 0; k < s.gates; ++k) {
                const bool candidate = k == s.gates - 1, plain = candidate && mode == RNN_GRU;
                if (candidate && mode == RNN_GRU_RESET_FIRST)  // the cell state's place holds reset * state
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t j = 0; j < s.h; ++j)
                            c[r * s.h + j] = h[r * s.h + j] * p[r * wide + s.h + j];
                const float *state = candidate && mode == RNN_GRU_RESET_FIRST ? c : h;
                const int act = plain ? 0 : !candidate ? 3 : mode == RNN_RELU ? 1 : 5;
                rnn_gate(s, w, k, state, rows, candidate ? bias : nullptr, plain ? nullptr : g + k * s.h, act,
                         p + k * s.h, wide);
            }
            for (int64_t r = 0; r < rows; ++r)
                rnn_update(mode, s.h, p + r * wide, g + r * wide, h + r * s.h, c + r * s.h);
            memcpy((float *)a.op[0].data + at * s.h, h, bytes);
        }
        if (a.op[1].data) memcpy((float *)a.op[1].data + b * s.h, h, bytes);
        if (a.op[2].data) memcpy((float *)a.op[2].data + b * s.h, c, bytes);
    }
}
