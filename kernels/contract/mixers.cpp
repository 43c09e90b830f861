// Contracts of the kernels that mix tokens or pixels with weights of their own. An empty output has no tiles, and run()
// is never called for it.
#include "checks.h"
#include "shapes.h"

namespace edgec {

static int64_t nanoseconds(double ns) { return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15; }
static bool cube(const View &v, int64_t a, int64_t b, int64_t c) {
    return v.rank == 3 && v.dim[0] == a && v.dim[1] == b && v.dim[2] == c;
}

const char *selective_scan_check(const Args &a) {
    if (!arity(a, 9, 1, 0)) return kArity;
    const View &y = a.op[0], &rate = a.op[4];
    for (int k = 0; k < 9; ++k)
        if ((a.op[k].data || (k != 1 && k < 7)) && !activation(a.op[k])) return kMissing;
    if (y.rank != 3 || !same_dims(y, a.op[2]) || !same_dims(y, a.op[3]) || rate.rank != 2) return kShape;
    if (!flag(a.i[0])) return kParam;
    if (y.dim[1] < 1) return "there is no step";
    const int64_t n = rate.dim[0];
    if (n < 1 || rate.dim[1] != y.dim[2] || !cube(a.op[5], y.dim[0], y.dim[1], n) || !cube(a.op[6], y.dim[0], y.dim[1], n))
        return kShape;
    if (a.op[7].data && !is_vector(a.op[7], y.dim[2])) return kShape;
    for (int k = 1; k < 9; k += 7)
        if (a.op[k].data && !cube(a.op[k], y.dim[0], y.dim[2], n)) return kShape;
    return nullptr;
}
int64_t selective_scan_tiles(const Args &a) { return count_of(a.op[0]) ? a.op[0].dim[0] * scan_shape(a).blocks : 0; }
int64_t selective_scan_cost(const Args &a) {
    return nanoseconds((double)count_of(a.op[0]) * (2 + 0.4 * (double)a.op[4].dim[0]));
}
int64_t selective_scan_scratch(const Args &a) {  // rates and states
    return count_of(a.op[0]) ? 2 * a.op[4].dim[0] * kScanChannels * (int64_t)sizeof(float) : 0;
}

const char *causal_conv1d_check(const Args &a) {
    if (!arity(a, 6, 1, 2)) return kArity;
    const View &y = a.op[0], &w = a.op[3];
    for (int k = 0; k < 6; ++k)
        if ((a.op[k].data || k == 0 || k == 2 || k == 3) && !activation(a.op[k])) return kMissing;
    if (y.rank != 3 || !same_dims(y, a.op[2]) || w.rank != 2 || w.dim[1] != y.dim[2]) return kShape;
    if (!between(w.dim[0], 1, kMaxTap) || !between(a.i[0], 0, kActs - 1)) return kParam;
    if (y.dim[1] < 1) return "there is no step";
    if (a.op[4].data && !is_vector(a.op[4], y.dim[2])) return "the bias does not fit";
    for (int k = 1; k < 6; k += 4)
        if (a.op[k].data && !cube(a.op[k], y.dim[0], w.dim[0] - 1, y.dim[2])) return kShape;
    return nullptr;
}
int64_t causal_conv1d_tiles(const Args &a) { return count_of(a.op[0]) ? a.op[0].dim[0] * conv_rows(a).blocks : 0; }
int64_t causal_conv1d_cost(const Args &a) {
    const double taps = (double)a.op[3].dim[0] / 8, act = a.i[0] > 2 ? 0.5 : 0;
    const double tail = a.op[1].data ? (double)count_of(a.op[1]) / 8 : 0;
    return nanoseconds((double)count_of(a.op[0]) * (taps + act) + tail);
}
int64_t causal_conv1d_scratch(const Args &) { return 0; }

const char *dynamic_depthwise_check(const Args &a) {
    if (!arity(a, 6, 3, 2)) return kArity;
    const View &y = a.op[0], &x = a.op[1], &w = a.op[2], &scale = a.op[5];
    if (!activation(y) || !activation(x) || !activation(w)) return kMissing;
    if (y.rank != 4 || !same_dims(y, x) || w.rank != 5) return kShape;
    if (!between(a.i[0], 1, kMaxTap) || a.i[0] % 2 == 0) return kParam;
    for (int d = 0; d < 3; ++d)
        if (w.dim[d] != y.dim[d]) return kShape;
    if (w.dim[3] != a.i[0] * a.i[0] || w.dim[4] < 1 || y.dim[3] % w.dim[4] != 0) return kShape;
    if (scale.data && (!activation(scale) || !is_vector(scale, y.dim[3]))) return kShape;
    return epilogue_check(y, a.op[3], a.op[4], y.dim[3], a.i[1], a.i[2]);
}
int64_t dynamic_depthwise_tiles(const Args &a) { return count_of(a.op[0]) ? a.op[0].dim[0] * a.op[0].dim[1] : 0; }
int64_t dynamic_depthwise_cost(const Args &a) {
    return nanoseconds((double)count_of(a.op[0]) * (1 + (double)a.op[2].dim[3] / 16));
}
int64_t dynamic_depthwise_scratch(const Args &) { return 0; }

const char *groupnorm_check(const Args &a) {
    if (!arity(a, 4, 2, 3)) return kArity;
    const View &y = a.op[0];
    if (!activation(y) || !activation(a.op[1])) return kMissing;
    if (y.rank != 3 || !same_dims(y, a.op[1])) return kShape;
    if (a.i[0] < 1 || y.dim[2] % a.i[0] != 0) return "the channels do not divide into the groups";
    if (!between(a.i[1], 0, kActs - 1)) return kParam;
    for (int k = 2; k < 4; ++k)
        if (a.op[k].data && (!activation(a.op[k]) || !is_vector(a.op[k], y.dim[2]))) return kShape;
    return nullptr;
}
int64_t groupnorm_tiles(const Args &a) { return count_of(a.op[0]) ? a.op[0].dim[0] * group_shape(a).tiles : 0; }
int64_t groupnorm_cost(const Args &a) { return nanoseconds((double)count_of(a.op[0]) * (a.i[1] > 2 ? 1.6 : 1.1)); }
int64_t groupnorm_scratch(const Args &a) {  // two sums in double; shift, factor and offset
    if (!count_of(a.op[0])) return 0;
    const GroupShape s = group_shape(a);
    return s.per_tile * s.width * (2 * (int64_t)sizeof(double) + 3 * (int64_t)sizeof(float));
}

}  // namespace edgec
