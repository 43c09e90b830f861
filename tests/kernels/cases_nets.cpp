// resize2d and rnn: sizes below, at and above every vector and block.
#include "reference.h"

using namespace kt;

static void resize_reference(Case &c) {
    Operand &y = c.op[0];
    const int64_t down = c.op[2].dim(1), across = c.op[4].dim(1);
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        double v = 0;
        for (int64_t i = 0; i < down; ++i)
            for (int64_t j = 0; j < across; ++j) {
                const size_t p = (size_t)(at[1] * down + i), q = (size_t)(at[2] * across + j);
                const int64_t from = ((at[0] * c.op[1].dim(1) + c.op[2].whole[p]) * c.op[1].dim(2) + c.op[4].whole[q]);
                v += c.op[3].real[p] * c.op[5].real[q] * c.op[1].real[(size_t)(from * y.dim(3) + at[3])];
            }
        y.real[(size_t)e] = v;
    }
}

CASES(resize2d) {
    int64_t turn = 0;
    for (const int64_t channels : {1, 3, 4, 7, 8, 15, 16, 17, 33, 70}) {
        const int64_t taps[] = {1, 2, 4, 3}, down = taps[turn % 4], across = taps[(turn + turn / 4) % 4];
        const int64_t h = s.rng.range(1, 6), w = s.rng.range(1, 6), oh = s.rng.range(1, 9), ow = s.rng.range(1, 9);
        Case &c = s.add(text("channels %lld taps %lld x %lld", (long long)channels, (long long)down, (long long)across));
        c.out(F32, {1 + turn % 2, oh, ow, channels}).in(F32, {1 + turn % 2, h, w, channels});
        c.in(I32, {oh, down}, 0, (double)(h - 1)).in(F32, {oh, down});
        c.in(I32, {ow, across}, 0, (double)(w - 1)).in(F32, {ow, across});
        c.reference = resize_reference;
        c.scale = ELEMENT;
        c.tolerance = 2e-6;
        ++turn;
    }
    for (const double wrong : {-1.0, 4.0}) {
        Case &c = s.add(text("an index of %g", wrong));
        c.out(F32, {1, 2, 2, 5}).in(F32, {1, 4, 4, 5}).values(I32, {2, 1}, {0, 3}).in(F32, {2, 1});
        c.values(I32, {2, 1}, {wrong, 1}).in(F32, {2, 1});
        c.reference = [](Case &) {};
        c.fault = true;
    }
}

// Plain equations of Hochreiter, Schmidhuber 1997 (with forget gates) and Cho et al. 2014, gate by gate.
static void rnn_reference(Case &c) {
    Operand &y = c.op[0];
    const Operand &g = c.op[3], &w = c.op[4], &bias = c.op[5];
    const int64_t t = y.dim(0), b = y.dim(1), n = y.dim(2), gates = w.dim(0), mode = c.i[0];
    const auto sigmoid = [](double x) { return 1 / (1 + exp(-x)); };
    for (int64_t r = 0; r < b; ++r) {
        std::vector<double> h((size_t)n, 0.0), cell((size_t)n, 0.0);
        for (size_t j = 0; j < (size_t)n; ++j) {
            if (!c.op[6].absent) h[j] = c.op[6].real[(size_t)(r * n) + j];
            if (!c.op[7].absent) cell[j] = c.op[7].real[(size_t)(r * n) + j];
        }
        const auto product = [&](int64_t gate, int64_t j, const std::vector<double> &x) {
            double v = 0;
            for (int64_t k = 0; k < n; ++k) v += w.real[(size_t)((gate * n + j) * n + k)] * x[(size_t)k];
            return v;
        };
        for (int64_t step = 0; step < t; ++step) {
            const int64_t at = (c.i[1] ? t - 1 - step : step) * b + r;
            const auto input = [&](int64_t gate, int64_t j) { return g.real[(size_t)((at * gates + gate) * n + j)]; };
            std::vector<double> next = h, reset = h;
            if (mode == 3)
                for (int64_t j = 0; j < n; ++j) reset[(size_t)j] *= sigmoid(input(1, j) + product(1, j, h));
            for (int64_t j = 0; j < n; ++j) {
                const double extra = bias.absent ? 0 : bias.real[(size_t)j];
                double &to = next[(size_t)j];
                if (mode == 4) {
                    double &m = cell[(size_t)j];
                    m = sigmoid(input(2, j) + product(2, j, h)) * m +
                        sigmoid(input(0, j) + product(0, j, h)) * tanh(input(3, j) + product(3, j, h));
                    to = sigmoid(input(1, j) + product(1, j, h)) * tanh(m);
                } else if (mode >= 2) {
                    const double z = sigmoid(input(0, j) + product(0, j, h));
                    const double q = mode == 3 ? product(2, j, reset) + extra
                                               : sigmoid(input(1, j) + product(1, j, h)) * (product(2, j, h) + extra);
                    to = (1 - z) * tanh(input(2, j) + q) + z * h[(size_t)j];
                } else {
                    const double v = input(0, j) + product(0, j, h);
                    to = mode ? std::max(v, 0.0) : tanh(v);
                }
            }
            h = next;
            for (int64_t j = 0; j < n; ++j) y.real[(size_t)(at * n + j)] = h[(size_t)j];
        }
        for (size_t j = 0; j < (size_t)n; ++j) {
            if (!c.op[1].absent) c.op[1].real[(size_t)(r * n) + j] = h[j];
            if (!c.op[2].absent) c.op[2].real[(size_t)(r * n) + j] = cell[j];
        }
    }
}

CASES(rnn) {
    const uint8_t dtypes[] = {F32, F16, BF16};
    const int64_t gates[] = {1, 1, 3, 3, 4};
    int64_t turn = 0;
    for (int64_t mode = 0; mode < 5; ++mode)
        for (const int64_t b : {1, 2, 4, 8, 9, 17})
            for (const int64_t h : {1, 15, 16, 20, 33}) {
                const int64_t n = gates[mode], t = 1 + turn % 4;
                const bool lstm = mode == 4, some = turn % 3 != 0;
                Case &c = s.add(text("mode %lld steps %lld batch %lld units %lld", (long long)mode, (long long)t,
                                     (long long)b, (long long)h));
                c.out(F32, {t, b, h});
                some ? c.out(F32, {b, h}) : c.none();
                some && lstm ? c.out(F32, {b, h}) : c.none();
                c.in(F32, {t, b, n * h}).in(dtypes[turn % 3], {n, h, h}, PANEL16);
                n == 3 && turn % 2 ? c.in(F32, {h}) : c.none();
                turn % 5 ? c.in(F32, {b, h}) : c.none();
                lstm && turn % 5 ? c.in(F32, {b, h}) : c.none();
                c.ints({mode, turn % 2});
                c.reference = rnn_reference;
                c.scale = ELEMENT;
                c.floor = mode == 1 ? 4 : 1;  // only relu can grow
                c.tolerance = 1e-5;
                ++turn;
            }
}
