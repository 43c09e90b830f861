// Contracts of the kernels for 8-bit integers: see compute.cpp for what a contract is.
#include "q8.h"

#include "../strided.h"
#include "checks.h"

namespace edgec {

static bool q8(const View &v) { return bounded(v) && v.format == PLAIN && (v.dtype == U8 || v.dtype == I8); }
static bool byte(int64_t x) { return between(x, 0, 255); }
// zero, lo, hi of an output.
static bool range(const int64_t *i) { return byte(i[0]) && byte(i[1]) && byte(i[2]) && i[1] <= i[2]; }

const char *quantize_check(const Args &a) {
    if (!arity(a, 2, 3, 1)) return kArity;
    if (!q8(a.op[0]) || !activation(a.op[1])) return kMissing;
    if (!same_dims(a.op[0], a.op[1])) return kShape;
    return range(a.i) ? nullptr : kParam;
}
int64_t quantize_tiles(const Args &a) { return flat_tiles(elements(a.op[0])); }
int64_t quantize_cost(const Args &a) { return price(elements(a.op[0]), 3); }
int64_t quantize_scratch(const Args &) { return 0; }

const char *dequantize_check(const Args &a) {
    if (!arity(a, 2, 1, 1)) return kArity;
    if (!activation(a.op[0]) || !q8(a.op[1])) return kMissing;
    if (!same_dims(a.op[0], a.op[1])) return kShape;
    return byte(a.i[0]) ? nullptr : kParam;
}
int64_t dequantize_tiles(const Args &a) { return flat_tiles(elements(a.op[0])); }
int64_t dequantize_cost(const Args &a) { return price(elements(a.op[0]), 3); }
int64_t dequantize_scratch(const Args &) { return 0; }

const char *table_q8_check(const Args &a) {
    if (!arity(a, 3, 0, 0)) return kArity;
    if (!q8(a.op[0]) || !q8(a.op[1]) || !plain(a.op[2], U8)) return kMissing;
    return same_dims(a.op[0], a.op[1]) && is_vector(a.op[2], 256) ? nullptr : kShape;
}
int64_t table_q8_tiles(const Args &a) { return flat_tiles(elements(a.op[0])); }
int64_t table_q8_cost(const Args &a) { return price(elements(a.op[0]), 5); }
int64_t table_q8_scratch(const Args &) { return 0; }

// Factors below 2^28 in parts of 14 bits: see add_q8 itself.
const char *add_q8_check(const Args &a) {
    if (!arity(a, 3, 8, 0)) return kArity;
    for (int k = 0; k < 3; ++k)
        if (!q8(a.op[k])) return kMissing;
    if (!same_dims(a.op[0], a.op[1]) || !same_dims(a.op[0], a.op[2])) return kShape;
    const int64_t most = (int64_t(1) << 28) - 1;
    const bool factors = between(a.i[5], -most, most) && between(a.i[6], -most, most) && between(a.i[7], 0, 60);
    return byte(a.i[0]) && byte(a.i[1]) && range(a.i + 2) && factors ? nullptr : kParam;
}
int64_t add_q8_tiles(const Args &a) { return flat_tiles(elements(a.op[0])); }
int64_t add_q8_cost(const Args &a) { return price(elements(a.op[0]), 4); }
int64_t add_q8_scratch(const Args &) { return 0; }

// y, x, w, bias i32 [Co], scale [Co]; ints from `zero` on: the zero points of x and y, lo, hi.
static const char *q8_product_check(const Args &a, const int64_t *zero) {
    const View &y = a.op[0], &x = a.op[1], &w = a.op[2], &bias = a.op[3], &scale = a.op[4];
    if (!q8(y) || !q8(x) || !bounded(w) || !plain(w, I8) || !plain(bias, I32) || !activation(scale)) return kMissing;
    if (y.rank != 4 || x.rank != 4 || y.dim[0] != x.dim[0]) return kShape;
    for (int k = 0; k < 8; ++k)
        if (const char *e = window_param_check(k, a.i[k])) return e;
    if (!is_vector(bias, y.dim[3]) || !is_vector(scale, y.dim[3])) return kShape;
    return byte(zero[0]) && range(zero + 1) ? nullptr : kParam;
}

ConvQ8Shape conv_q8_shape(const Args &a) {
    ConvQ8Shape s;
    s.c = conv_shape(a, a.i[8]);
    s.pairs = ceil_div(s.c.k, 2);
    // Rows of 16 bits take half the room of floats. A block streams all weights, and widens them.
    const int64_t pixels = imax(1, s.c.pixels), most = imax(4, imin(16, 131072 / imax(1, s.c.k) / 12)) * 12;
    // Of about one size, and two where there are pixels for it: threads should end together.
    const int64_t blocks = imax(ceil_div(pixels, most), pixels >= 96 ? 2 : 1);
    s.c.pixel_block = ceil_div(ceil_div(pixels, blocks), 12) * 12;
    s.c.pixel_blocks = ceil_div(s.c.pixels, s.c.pixel_block);
    s.c.panel_block = ceil_div(imax(1, s.c.panels), ceil_div(imax(1, s.c.panels), s.c.panel_block));
    s.c.panel_blocks = ceil_div(s.c.panels, s.c.panel_block);
    s.row_bytes = ceil_div(s.c.pixel_block * s.pairs * 4 + 32, 64) * 64;
    const int64_t words = 2 * s.c.pixel_block + 1 + q8_doubts(s.c.pixel_block, ceil_div(s.pairs, 2));
    s.doubt_bytes = ceil_div(words * (int64_t)sizeof(int32_t), 64) * 64;
    return s;
}
const char *conv2d_q8_check(const Args &a) {
    if (!arity(a, 5, 14, 0) || !flag(a.i[13])) return kArity;
    if (const char *e = q8_product_check(a, a.i + 9)) return e;
    const View &y = a.op[0], &x = a.op[1], &w = a.op[2];
    const int64_t groups = a.i[8], taps = a.i[0] * a.i[1];
    if (groups < 1 || w.rank != 4 || w.dim[0] != groups || w.dim[3] != 2 * kQ8Panel) return kShape;
    if (y.dim[3] % groups != 0 || x.dim[3] % groups != 0) return "the channels do not divide into the groups";
    const int64_t k = x.dim[3] / groups;
    if (k > kMostQ8Taps || taps > kMostQ8Taps || k * taps > kMostQ8Taps) return "a sum could leave 32 bits";
    return w.dim[1] == ceil_div(y.dim[3] / groups, kQ8Panel) && w.dim[2] == ceil_div(k * taps, 2) ? nullptr : kShape;
}
int64_t conv2d_q8_tiles(const Args &a) {
    if (empty(a.op[0])) return 0;
    const ConvQ8Shape s = conv_q8_shape(a);
    return s.c.pixel_blocks * s.c.groups * s.c.panel_blocks;
}
int64_t conv2d_q8_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    const ConvShape s = conv_q8_shape(a).c;
    return product_cost((double)s.pixels, (double)s.g.co, (double)s.k / 2, (double)s.g.co * (double)s.k);
}
int64_t conv2d_q8_scratch(const Args &a) {  // the gathered rows, their doubts, two widened panels
    if (empty(a.op[0])) return 0;
    const ConvQ8Shape s = conv_q8_shape(a);
    return s.row_bytes + s.doubt_bytes + 2 * kQ8Panel * s.pairs * (int64_t)sizeof(int32_t);  // fours take half
}

const char *dwconv2d_q8_check(const Args &a) {
    if (!arity(a, 5, 12, 0)) return kArity;
    if (const char *e = q8_product_check(a, a.i + 8)) return e;
    const View &y = a.op[0], &x = a.op[1], &w = a.op[2];
    const int64_t taps = a.i[0] * a.i[1];
    if (taps > kMostQ8Taps) return "a sum could leave 32 bits";
    return y.dim[3] == x.dim[3] && w.rank == 2 && w.dim[0] == taps && w.dim[1] == x.dim[3] ? nullptr : kShape;
}
static int64_t window_cost(const View &y, double taps) {
    const double ns = (double)count_of(y) * (taps + 2) / 20;
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}
int64_t dwconv2d_q8_tiles(const Args &a) { return image_rows(a.op[0]); }
int64_t dwconv2d_q8_cost(const Args &a) { return window_cost(a.op[0], (double)(a.i[0] * a.i[1])); }
int64_t dwconv2d_q8_scratch(const Args &a) {  // the weights as pairs of vertical taps, a pixel of padding, windows
    if (empty(a.op[0])) return 0;
    const int64_t c = dw_q8_channels(a.op[0].dim[3]);
    return (dw_q8_pairs(a) * (int64_t)sizeof(int32_t) + 1 + kDwQ8Rows * kDwQ8Columns) * c;
}

const char *pool2d_q8_check(const Args &a) {
    if (!arity(a, 2, 14, 1)) return kArity;
    const View &y = a.op[0], &x = a.op[1];
    if (!q8(y) || !q8(x)) return kMissing;
    if (y.rank != 4 || x.rank != 4 || y.dim[0] != x.dim[0] || y.dim[3] != x.dim[3]) return kShape;
    for (int k = 0; k < 8; ++k)
        if (const char *e = window_param_check(k, a.i[1 + k])) return e;
    if (imin(a.i[1], x.dim[1]) > kMostQ8Cells / imax(1, imin(a.i[2], x.dim[2]))) return "a sum could leave 32 bits";
    return flag(a.i[0]) && flag(a.i[9]) && byte(a.i[10]) && range(a.i + 11) ? nullptr : kParam;
}
int64_t pool2d_q8_tiles(const Args &a) { return image_rows(a.op[0]); }
int64_t pool2d_q8_cost(const Args &a) {
    return window_cost(a.op[0], (double)imin(a.i[1], a.op[1].dim[1]) * (double)imin(a.i[2], a.op[1].dim[2]));
}
int64_t pool2d_q8_scratch(const Args &) { return 0; }

}  // namespace edgec
