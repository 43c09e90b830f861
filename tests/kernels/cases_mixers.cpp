// selective_scan, causal_conv1d, dynamic_depthwise, groupnorm: sizes below, at and above every vector and block.
#include "reference.h"

using namespace kt;

// The recurrence as Gu and Dao, 2023 write it, one channel after the other.
static void scan_reference(Case &c) {
    const Operand &x = c.op[2], &delta = c.op[3], &a = c.op[4], &b = c.op[5], &read = c.op[6];
    const int64_t batch = x.dim(0), l = x.dim(1), d = x.dim(2), n = a.dim(0);
    for (int64_t s = 0; s < batch; ++s)
        for (int64_t j = 0; j < d; ++j) {
            std::vector<double> h((size_t)n, 0.0);
            const size_t state = (size_t)((s * d + j) * n);
            for (size_t k = 0; k < (size_t)n && !c.op[8].absent; ++k) h[k] = c.op[8].real[state + k];
            for (int64_t t = 0; t < l; ++t) {
                const size_t at = (size_t)((s * l + t) * d + j), row = (size_t)((s * l + t) * n);
                const double size = c.i[0] ? ref_act(12, delta.real[at], 0, 0) : delta.real[at];
                double y = c.op[7].absent ? 0 : c.op[7].real[(size_t)j] * x.real[at];
                for (size_t k = 0; k < (size_t)n; ++k) {
                    h[k] = exp(size * a.real[k * (size_t)d + (size_t)j]) * h[k] + size * x.real[at] * b.real[row + k];
                    y += h[k] * read.real[row + k];
                }
                c.op[0].real[at] = y;
            }
            for (size_t k = 0; k < (size_t)n && !c.op[1].absent; ++k) c.op[1].real[state + k] = h[k];
        }
}

CASES(selective_scan) {
    int64_t turn = 0;
    for (const int64_t d : {1, 7, 8, 15, 16, 17, 33, 64})
        for (const int64_t n : {1, 5, 16}) {
            const int64_t batch = 1 + turn % 3, steps[] = {1, 2, 9, 70}, l = steps[turn % 4];
            Case &c = s.add(text("%lld x %lld steps, %lld channels of %lld states", (long long)batch, (long long)l,
                                 (long long)d, (long long)n));
            c.out(F32, {batch, l, d});
            turn % 3 ? c.out(F32, {batch, d, n}) : c.none();
            c.in(F32, {batch, l, d});
            // Steps and rates of trained models, and now and then decays that come to nothing.
            turn % 2 ? c.in(F32, {batch, l, d}, -8, 2) : c.in(F32, {batch, l, d}, 1e-3, 0.3);
            c.in(F32, {n, d}, turn % 5 == 4 ? -300 : -16, 0).in(F32, {batch, l, n}).in(F32, {batch, l, n});
            turn % 4 != 1 ? c.in(F32, {d}) : c.none();
            turn % 5 ? c.in(F32, {batch, d, n}) : c.none();
            c.ints({turn % 2});
            c.reference = scan_reference;
            c.scale = ELEMENT;
            c.floor = 1;
            c.tolerance = 1e-5;
            ++turn;
        }
}

static void conv_reference(Case &c) {
    const Operand &x = c.op[2], &w = c.op[3], &bias = c.op[4], &tail = c.op[5];
    const int64_t batch = x.dim(0), l = x.dim(1), n = x.dim(2), taps = w.dim(0);
    for (int64_t s = 0; s < batch; ++s)
        for (int64_t j = 0; j < n; ++j) {
            const auto row = [&](int64_t r) {  // from the oldest of the tail on
                if (r >= taps - 1) return x.real[(size_t)((s * l + r - (taps - 1)) * n + j)];
                return tail.absent ? 0.0 : tail.real[(size_t)((s * (taps - 1) + r) * n + j)];
            };
            for (int64_t t = 0; t < l; ++t) {
                double v = bias.absent ? 0 : bias.real[(size_t)j];
                for (int64_t k = 0; k < taps; ++k) v += w.real[(size_t)(k * n + j)] * row(t + k);
                c.op[0].real[(size_t)((s * l + t) * n + j)] = ref_act(c.i[0], v, c.f[0], c.f[1]);
            }
            for (int64_t k = 0; k < taps - 1 && !c.op[1].absent; ++k)
                c.op[1].real[(size_t)((s * (taps - 1) + k) * n + j)] = row(l + k);
        }
}

CASES(causal_conv1d) {
    int64_t turn = 0;
    for (const int64_t channels : {1, 4, 7, 8, 15, 17, 64, 5000})
        for (const int64_t taps : {1, 2, 4}) {
            const int64_t steps[] = {1, 2, 3, 11}, batch = 1 + turn % 2, l = steps[turn % 4];
            Case &c = s.add(text("%lld taps, %lld x %lld steps, %lld channels", (long long)taps, (long long)batch,
                                 (long long)l, (long long)channels));
            c.out(F32, {batch, l, channels});
            taps > 1 && turn % 3 ? c.out(F32, {batch, taps - 1, channels}) : c.none();
            c.in(F32, {batch, l, channels}).in(F32, {taps, channels});
            turn % 2 ? c.in(F32, {channels}) : c.none();
            taps > 1 && turn % 5 ? c.in(F32, {batch, taps - 1, channels}) : c.none();
            c.ints({turn % 2 ? 4 : turn % 3}).floats({-0.5f, 0.5f});
            c.reference = conv_reference;
            c.scale = ELEMENT;
            c.tolerance = 2e-6;
            ++turn;
        }
}

static void depthwise_reference(Case &c) {
    Operand &y = c.op[0];
    const Operand &x = c.op[1], &w = c.op[2], &bias = c.op[3], &residual = c.op[4], &scale = c.op[5];
    const int64_t k = c.i[0], groups = w.dim(4);
    for (int64_t e = 0; e < y.count(); ++e) {
        const Dims at = ref_index(y.view, e);
        const int64_t pixel = e / y.dim(3), channel = at[3];
        double v = 0;
        for (int64_t i = 0; i < k; ++i)
            for (int64_t j = 0; j < k; ++j) {
                const int64_t row = at[1] + i - k / 2, column = at[2] + j - k / 2;
                if (row < 0 || row >= y.dim(1) || column < 0 || column >= y.dim(2)) continue;
                v += x.real[(size_t)(((at[0] * y.dim(1) + row) * y.dim(2) + column) * y.dim(3) + channel)] *
                     w.real[(size_t)((pixel * k * k + i * k + j) * groups + channel % groups)];
            }
        if (!scale.absent) v *= scale.real[(size_t)channel];
        if (!bias.absent) v += bias.real[(size_t)channel];
        if (!residual.absent && c.i[2]) v += residual.real[(size_t)e];
        v = ref_act(c.i[1], v, c.f[0], c.f[1]);
        if (!residual.absent && !c.i[2]) v += residual.real[(size_t)e];
        y.real[(size_t)e] = v;
    }
}

CASES(dynamic_depthwise) {
    int64_t turn = 0;
    for (const int64_t groups : {1, 3, 8, 12, 16, 17})
        for (const int64_t blocks : {1, 2, 8, 9}) {
            const int64_t sizes[] = {3, 1, 5, 3}, k = sizes[(turn + turn / 4) % 4], h = s.rng.range(1, 7);
            const int64_t width = s.rng.range(1, 7), batch = 1 + turn % 2, channels = groups * blocks;
            Case &c = s.add(text("%lld x %lld kernels of %lld for %lld channels", (long long)k, (long long)k,
                                 (long long)groups, (long long)channels));
            c.out(F32, {batch, h, width, channels}).in(F32, {batch, h, width, channels});
            c.in(F32, {batch, h, width, k * k, groups});
            turn % 3 ? c.in(F32, {channels}) : c.none();
            turn % 2 ? c.in(F32, {batch, h, width, channels}) : c.none();
            turn % 5 ? c.in(F32, {channels}) : c.none();
            const int64_t acts[] = {0, 1, 2, 4};
            c.ints({k, acts[turn % 4], turn / 4 % 2}).floats({-0.5f, 0.5f});
            c.reference = depthwise_reference;
            c.scale = ELEMENT;
            c.tolerance = 5e-6;
            ++turn;
        }
}

static void groupnorm_reference(Case &c) {
    const Operand &x = c.op[1], &gamma = c.op[2], &beta = c.op[3];
    const int64_t batch = x.dim(0), pixels = x.dim(1), n = x.dim(2), width = n / c.i[0];
    const auto at = [&](int64_t b, int64_t p, int64_t j) { return (size_t)((b * pixels + p) * n + j); };
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t j = 0; j < n; ++j) {
            const int64_t first = j / width * width;
            double mean = 0, variance = 0;
            for (int64_t p = 0; p < pixels; ++p)
                for (int64_t k = first; k < first + width; ++k) mean += x.real[at(b, p, k)];
            mean /= (double)(pixels * width);
            for (int64_t p = 0; p < pixels; ++p)
                for (int64_t k = first; k < first + width; ++k) variance += pow(x.real[at(b, p, k)] - mean, 2);
            variance /= (double)(pixels * width);
            const size_t m = (size_t)j;
            for (int64_t p = 0; p < pixels; ++p) {
                double v = (x.real[at(b, p, j)] - mean) / sqrt(variance + c.f[0]);
                v = v * (gamma.absent ? 1 : gamma.real[m]) + (beta.absent ? 0 : beta.real[m]);
                c.op[0].real[at(b, p, j)] = ref_act(c.i[1], v, c.f[1], c.f[2]);
            }
        }
}

CASES(groupnorm) {
    int64_t turn = 0;
    for (const int64_t groups : {1, 2, 5, 8, 17})
        for (const int64_t width : {1, 3, 4, 9, 16, 33}) {
            const int64_t sizes[] = {1, 6, 63, 130}, pixels = sizes[turn % 4], batch = 1 + turn % 2;
            const bool far = turn % 7 == 3;  // a mean far larger than the deviation
            Case &c = s.add(text("%lld groups of %lld channels, %lld pixels%s", (long long)groups, (long long)width,
                                 (long long)pixels, far ? ", far from 0" : ""));
            c.out(F32, {batch, pixels, groups * width});
            far ? c.in(F32, {batch, pixels, groups * width}, 99, 101) : c.in(F32, {batch, pixels, groups * width});
            turn % 3 ? c.in(F32, {groups * width}) : c.none();
            turn % 4 ? c.in(F32, {groups * width}) : c.none();
            const int64_t acts[] = {0, 1, 4};
            c.ints({groups, acts[turn % 3]}).floats({1e-5f, 0, 0}).also_in_place(0, 1);
            c.reference = groupnorm_reference;
            c.scale = ELEMENT;
            c.tolerance = far ? 3e-5 : 1e-5;
            ++turn;
        }
}
