// Contracts of the matrix product, convolution, pooling and attention kernels: what they accept, how their work is cut,
// what it costs, how much scratch a thread needs. An empty output has no tiles, and run() is never called for it.
#include "checks.h"
#include "shapes.h"

namespace edgec {

constexpr int64_t kMaxPad = 1 << 20;

static bool weight(const View &v) {
    return bounded(v) && v.format == PANEL16 && reads_panels(v.dtype);
}

// bias? [n], residual? as y, act, residual_first: what every product ends with.
const char *epilogue_check(const View &y, const View &bias, const View &residual, int64_t n, int64_t act,
                           int64_t first) {
    if (bias.data && (!activation(bias) || !is_vector(bias, n))) return "the bias does not fit";
    if (residual.data && (!activation(residual) || !same_dims(residual, y))) return "the residual does not fit";
    if (!EDGEC_CURVED && act >= kActs) return "has an activation that this program was packaged without; package this bundle";
    if (!between(act, 0, kActs - 1) || !flag(first)) return kParam;
    return nullptr;
}

// About the time of a product on one core: bound by arithmetic or by reading the weights once.
int64_t product_cost(double m, double n, double k, double weight_bytes) {
    const double flops = 2 * m * n * k / 60, memory = weight_bytes / 15 + m * n / 8;
    const double ns = flops > memory ? flops : memory;
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}

// x[M..., K], w[N, K] and the outputs y[M..., Ni], of which absent ones take nothing: the Ni add up to N.
static const char *products_check(const View &x, const View &w, const View *y, int outputs) {
    if (!y->data || !activation(x) || !weight(w)) return kMissing;
    if (x.rank < 1 || w.rank != 2 || x.dim[x.rank - 1] != w.dim[1]) return kShape;
    int64_t n = 0;
    for (const View *end = y + outputs; y < end; ++y) {
        if (!y->data) continue;
        if (!activation(*y)) return kMissing;
        if (y->rank != x.rank) return kShape;
        for (int d = 0; d + 1 < x.rank; ++d)
            if (y->dim[d] != x.dim[d]) return kShape;
        if (n % 16 != 0) return "an output begins inside a panel";
        n += y->dim[y->rank - 1];
    }
    return n == w.dim[0] ? nullptr : kShape;
}
EDGEC_NOINLINE LinearShape linear_shape(const View &y, int64_t k) {
    LinearShape s;
    s.m = leading(y);
    s.n = y.dim[y.rank - 1];
    s.k = k;
    s.panels = ceil_div(s.n, 16);
    bool vector = s.m <= kVectorRows;
    s.row_blocks = vector ? 1 : ceil_div(s.m, kLinearRows);
    s.panel_blocks = vector ? s.panels : ceil_div(s.panels, kLinearPanels);
    // A thread takes neighbouring tiles. Where the activations are the larger part it should keep its rows, which the
    // calls before and after split alike; else its weights.
    s.rows_outer = !vector && s.m > 0 && s.k + s.n > 0 && s.n * s.k / (s.k + s.n) < s.m;
    return s;
}

int linear_parts(const Args &a, int outputs, int64_t t0, int64_t t1, LinearPart *parts) {
    const View *in = a.op + outputs;
    const bool one = outputs == 1;  // only linear has a residual
    Epilogue e = {(const float *)in[2].data, one ? (const float *)in[3].data : nullptr, (int)a.i[0],
                  one ? (int)a.i[1] : 0, a.f[0], a.f[1]};
    const char *w = (const char *)in[1].data;
    int n = 0;
    for (const View *y = a.op; y < in; ++y) {
        if (!y->data) continue;
        const LinearShape s = linear_shape(*y, in[1].dim[1]);
        const int64_t from = imax(t0, 0), to = imin(t1, s.tiles());
        if (from < to)
            parts[n++] = LinearPart{s, e, (const float *)in[0].data, (float *)y->data, w, from, to, in[1].dtype};
        t0 -= s.tiles();  // counted from the next output's first tile
        t1 -= s.tiles();
        w += s.n * s.k * dtype_size(in[1].dtype);  // all but the last output end with a whole panel
        if (e.bias) e.bias += s.n;
    }
    return n;
}
EDGEC_NOINLINE int64_t rows_tiles(const View &w, const View *y, int outputs) {
    int64_t tiles = 0;
    for (const View *end = y + outputs; y < end; ++y)
        if (y->data) tiles += linear_shape(*y, w.dim[1]).tiles();
    return tiles;
}
static int64_t rows_cost(const View &x, const View &w) {
    const double n = (double)w.dim[0], k = (double)w.dim[1];
    return product_cost((double)leading(x), n, k, n * k * (double)dtype_size(w.dtype));
}
static int64_t rows_scratch(const View &x, const View &w) {  // two widened panels
    return w.dtype != F32 && leading(x) >= kWidenRows ? 2 * 16 * w.dim[1] * (int64_t)sizeof(float) : 0;
}

const char *linear_check(const Args &a) {
    if (!arity(a, 5, 2, 2)) return kArity;
    if (const char *e = products_check(a.op[1], a.op[2], a.op, 1)) return e;
    return epilogue_check(a.op[0], a.op[3], a.op[4], a.op[2].dim[0], a.i[0], a.i[1]);
}
int64_t linear_tiles(const Args &a) { return rows_tiles(a.op[2], a.op, 1); }
int64_t linear_cost(const Args &a) { return rows_cost(a.op[1], a.op[2]); }
int64_t linear_scratch(const Args &a) { return rows_scratch(a.op[1], a.op[2]); }

const char *linear_split_check(const Args &a) {
    if (!arity(a, kSplitOutputs + 3, 1, 2)) return kArity;
    const View *in = a.op + kSplitOutputs;
    if (const char *e = products_check(in[0], in[1], a.op, kSplitOutputs)) return e;
    return epilogue_check(a.op[0], in[2], View(), in[1].dim[0], a.i[0], 0);
}
int64_t linear_split_tiles(const Args &a) { return rows_tiles(a.op[kSplitOutputs + 1], a.op, kSplitOutputs); }
int64_t linear_split_cost(const Args &a) { return rows_cost(a.op[kSplitOutputs], a.op[kSplitOutputs + 1]); }
int64_t linear_split_scratch(const Args &a) { return rows_scratch(a.op[kSplitOutputs], a.op[kSplitOutputs + 1]); }

constexpr int64_t kDirectPixels = 256;

ConvShape conv_shape(const Args &a, int64_t groups) {
    ConvShape s;
    s.g = window_of(a.op[0], a.op[1], a.i);
    s.groups = groups;
    s.n = s.g.co / s.groups;
    s.k = s.g.kh * s.g.kw * (s.g.ci / s.groups);
    s.panels = ceil_div(s.n, 16);
    s.pixels = s.g.batch * s.g.oh * s.g.ow;
    s.pointwise = s.g.kh == 1 && s.g.kw == 1 && s.g.sh == 1 && s.g.sw == 1 && s.g.pt == 0 && s.g.pl == 0 &&
                  s.g.oh == s.g.h && s.g.ow == s.g.w;
    // Gathering costs as much as a few columns of the product; cutting at borders leaves short rows of pixels.
    columns_inside(s.g, &s.in0, &s.in1);
    s.direct = !s.pointwise && groups == 1 && s.g.dw == 1 && s.n <= 96 && s.in1 - s.in0 >= 24 &&
               a.op[2].dtype == F32 && a.op[2].format == PANEL16;
    // The gathered block should stay in the L2 cache, but each block streams the weights again. Windows read in place
    // take about a row; a signal may be one row only, which threads should share and whose borders need little scratch.
    s.pixel_block = s.direct ? ceil_div(s.g.ow, ceil_div(s.g.ow, kDirectPixels))
                             : imax(4, imin(8, 131072 / imax(1, s.k) / 12)) * 12;
    s.panel_block = 8;
    s.pixel_blocks = ceil_div(s.pixels, s.pixel_block);
    s.panel_blocks = ceil_div(s.panels, s.panel_block);
    return s;
}

const char *window_param_check(int k, int64_t value) {
    const bool pad = k == 4 || k == 5;
    return between(value, pad ? 0 : 1, pad ? kMaxPad : kMaxTap) ? nullptr : kParam;
}
const char *window_check(const View &y, const View &x, const int64_t *i) {
    if (!activation(y) || !activation(x)) return kMissing;
    if (y.rank != 4 || x.rank != 4 || y.dim[0] != x.dim[0]) return kShape;
    for (int k = 0; k < 8; ++k)
        if (const char *e = window_param_check(k, i[k])) return e;
    return nullptr;
}

const char *conv2d_check(const Args &a) {
    if (!arity(a, 5, 11, 2)) return kArity;
    const View &y = a.op[0], &x = a.op[1], &w = a.op[2];
    if (const char *e = window_check(y, x, a.i)) return e;
    if (!weight(w)) return kMissing;
    const int64_t groups = a.i[8], taps = a.i[0] * a.i[1];
    if (groups < 1 || w.rank != 3 || w.dim[0] != groups) return kShape;
    if (y.dim[3] % groups != 0 || x.dim[3] % groups != 0) return "the channels do not divide into the groups";
    if (w.dim[1] != y.dim[3] / groups || w.dim[2] % taps != 0 || w.dim[2] / taps != x.dim[3] / groups) return kShape;
    return epilogue_check(y, a.op[3], a.op[4], y.dim[3], a.i[9], a.i[10]);
}
int64_t conv2d_tiles(const Args &a) {
    if (empty(a.op[0])) return 0;
    const ConvShape s = conv_shape(a, a.i[8]);
    return s.pixel_blocks * s.groups * s.panel_blocks;
}
int64_t conv2d_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    const ConvShape s = conv_shape(a, a.i[8]);
    return product_cost((double)s.pixels, (double)s.g.co, (double)s.k,
                        (double)s.g.co * (double)s.k * (double)dtype_size(a.op[2].dtype));
}
int64_t conv2d_scratch(const Args &a) {  // the gathered rows, then two widened panels
    if (empty(a.op[0])) return 0;
    const ConvShape s = conv_shape(a, a.i[8]);
    const int64_t rows = s.pointwise ? 0 : s.pixel_block * s.k, wide = a.op[2].dtype == F32 ? 0 : 2 * 16 * s.k;
    return (rows + wide) * (int64_t)sizeof(float);
}

static const int64_t *winograd_window(const int64_t *i, int64_t *window) {  // from pt pl
    const int64_t all[8] = {3, 3, 1, 1, i[0], i[1], 1, 1};
    memcpy(window, all, sizeof all);
    return window;
}

WinogradShape winograd_shape(const Args &a) {
    WinogradShape s;
    int64_t window[8];
    s.g = window_of(a.op[0], a.op[1], winograd_window(a.i, window));
    s.down = ceil_div(s.g.oh, 4);
    s.across = ceil_div(s.g.ow, 4);
    s.tiles = s.g.batch * s.down * s.across;
    s.panels = ceil_div(s.g.co, 16);
    // Each block turns all kernels into values again: smaller ones would spend more time on that than on products.
    s.block = ceil_div(s.tiles, ceil_div(s.tiles, kWinogradTiles));
    s.blocks = ceil_div(s.tiles, s.block);
    // Threads need tiles to share, and each of them turns the image into values anew.
    s.panel_block = imin(s.panels, ceil_div(s.blocks * s.panels, 16));
    s.panel_blocks = ceil_div(s.panels, s.panel_block);
    s.channels = imin(s.g.ci, kWinogradChannels);
    // Room for blocks of fewer tiles too, which may be larger. Beside a power of two, so that the same place of all
    // matrices does not share a set of the L1 cache.
    const int64_t room = imin(s.tiles, kWinogradTiles);
    s.image = room * s.g.ci + 16;
    s.kernels = s.channels * 16 + 16;
    s.sums = room * 16 + 16;
    return s;
}

const char *conv2d_winograd_check(const Args &a) {
    if (!arity(a, 5, 4, 2)) return kArity;
    const View &y = a.op[0], &x = a.op[1], &w = a.op[2];
    int64_t window[8];
    if (const char *e = window_check(y, x, winograd_window(a.i, window))) return e;
    if (!weight(w) || w.dtype != F32) return kMissing;
    if (w.rank != 3 || w.dim[0] != 1 || w.dim[1] != y.dim[3]) return kShape;
    if (x.dim[3] < 16 || w.dim[2] != 9 * x.dim[3]) return kShape;
    return epilogue_check(y, a.op[3], a.op[4], y.dim[3], a.i[2], a.i[3]);
}
int64_t conv2d_winograd_tiles(const Args &a) {
    if (empty(a.op[0])) return 0;
    const WinogradShape s = winograd_shape(a);
    return s.blocks * s.panel_blocks;
}
int64_t conv2d_winograd_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    const WinogradShape s = winograd_shape(a);
    const double co = (double)s.g.co, ci = (double)s.g.ci;
    return product_cost(36 * 1.5 * (double)s.tiles, co, ci, 9 * co * ci * sizeof(float));
}
int64_t conv2d_winograd_scratch(const Args &a) {
    if (empty(a.op[0])) return 0;
    const WinogradShape s = winograd_shape(a);
    return (kWinogradHead + 36 * (s.image + s.sums) + 6 * s.kernels + s.g.ci) * (int64_t)sizeof(float);
}

const char *dwconv2d_check(const Args &a) {
    if (!arity(a, 5, 10, 2)) return kArity;
    const View &y = a.op[0], &x = a.op[1], &w = a.op[2];
    if (const char *e = window_check(y, x, a.i)) return e;
    if (!activation(w)) return kMissing;
    if (w.rank != 2 || w.dim[0] != a.i[0] * a.i[1] || w.dim[1] != y.dim[3]) return kShape;
    if (x.dim[3] == 0 ? y.dim[3] != 0 : y.dim[3] % x.dim[3] != 0) return "the channels are no multiple of the input's";
    return epilogue_check(y, a.op[3], a.op[4], y.dim[3], a.i[8], a.i[9]);
}
int64_t dwconv2d_tiles(const Args &a) { return image_rows(a.op[0]); }
int64_t dwconv2d_cost(const Args &a) {
    const double ns = (double)count_of(a.op[0]) * (double)(a.i[0] * a.i[1]) / 20;
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}
int64_t dwconv2d_scratch(const Args &) { return 0; }

// What a band may take of the L2 cache: half of that of most cores.
constexpr int64_t kBandFloats = 65536;

MbconvShape mbconv_shape(const Args &a) {
    MbconvShape s;
    s.g = window_of(a.op[0], a.op[1], a.i);
    s.ci = s.g.ci;
    s.co = s.g.co;
    s.g.ci = s.g.co = a.op[4].dim[1];
    // Neighbouring tiles of different threads compute the rows they share twice: each has many rows.
    int64_t parts = 1;
    while (parts < 16 && s.g.oh >= parts * 24) parts *= 2;
    s.tile_rows = ceil_div(s.g.oh, parts);
    s.tiles = s.tile_rows ? ceil_div(s.g.oh, s.tile_rows) : 0;
    const bool widens = a.op[2].data != nullptr;
    const int64_t reach = (s.g.kh - 1) * s.g.dh + 1;
    const double line = widens ? (double)s.g.w * (double)s.g.ci : 0, out = (double)s.g.ow * (double)s.g.ci;
    const double fit = ((double)kBandFloats - (double)(reach - s.g.sh) * line) / ((double)s.g.sh * line + out + 1);
    s.band = fit < 1 ? 1 : fit < (double)s.tile_rows ? (int64_t)fit : imax(1, s.tile_rows);
    s.wide_rows = widens ? imin(s.g.h, (s.band - 1) * s.g.sh + reach) : 0;
    return s;
}

// Floats of scratch, roughly where they are too many to count.
static double mbconv_floats(const MbconvShape &s) {
    return (double)s.g.ci * ((double)s.wide_rows * (double)s.g.w + (double)s.band * (double)s.g.ow);
}

const char *mbconv2d_check(const Args &a) {
    if (!arity(a, 9, 12, 6)) return kArity;
    const View &y = a.op[0], &x = a.op[1], &widen = a.op[2], &w = a.op[4], &narrow = a.op[6];
    if (const char *e = window_check(y, x, a.i)) return e;
    if (!activation(w) || !weight(narrow) || narrow.dtype != F32) return kMissing;
    if (w.rank != 2 || w.dim[0] != a.i[0] * a.i[1] || narrow.rank != 2) return kShape;
    const int64_t c = w.dim[1];
    if (narrow.dim[0] != y.dim[3] || narrow.dim[1] != c) return kShape;
    if (widen.data) {
        if (!weight(widen) || widen.dtype != F32) return kMissing;
        if (widen.rank != 2 || widen.dim[0] != c || widen.dim[1] != x.dim[3]) return kShape;
        if (const char *e = epilogue_check(y, a.op[3], View(), c, a.i[8], 0)) return e;
    } else if (x.dim[3] != c || a.op[3].data || a.i[8] != 0) {
        return kShape;
    }
    if (const char *e = epilogue_check(y, a.op[5], View(), c, a.i[9], 0)) return e;
    if (const char *e = epilogue_check(y, a.op[7], a.op[8], y.dim[3], a.i[10], a.i[11])) return e;
    return empty(y) || mbconv_floats(mbconv_shape(a)) < 1e15 ? nullptr : kShape;
}
int64_t mbconv2d_tiles(const Args &a) { return empty(a.op[0]) ? 0 : a.op[0].dim[0] * mbconv_shape(a).tiles; }
int64_t mbconv2d_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    const MbconvShape s = mbconv_shape(a);
    const double b = (double)s.g.batch, c = (double)s.g.ci;
    const double in = b * (double)s.g.h * (double)s.g.w, out = b * (double)s.g.oh * (double)s.g.ow;
    const double ns = c * ((a.op[2].data ? in * (double)s.ci / 30 : 0) +
                           out * ((double)(s.g.kh * s.g.kw) / 20 + (double)s.co / 30));
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}
int64_t mbconv2d_scratch(const Args &a) {
    if (empty(a.op[0])) return 0;
    const MbconvShape s = mbconv_shape(a);
    return s.g.ci * (s.wide_rows * s.g.w + s.band * s.g.ow) * (int64_t)sizeof(float);
}

const char *pool2d_check(const Args &a) {
    if (!arity(a, 2, 10, 0)) return kArity;
    if (const char *e = window_check(a.op[0], a.op[1], a.i + 1)) return e;
    if (a.op[0].dim[3] != a.op[1].dim[3]) return kShape;
    return flag(a.i[0]) && flag(a.i[9]) ? nullptr : kParam;
}
int64_t pool2d_tiles(const Args &a) { return image_rows(a.op[0]); }
int64_t pool2d_cost(const Args &a) {
    // A window is never larger than the image: global pooling over padding must not look expensive.
    const double taps = (double)imin(a.i[1], a.op[1].dim[1]) * (double)imin(a.i[2], a.op[1].dim[2]);
    const double ns = (double)count_of(a.op[0]) * (taps + 1) / 8;
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}
int64_t pool2d_scratch(const Args &) { return 0; }

const char *resize2d_check(const Args &a) {
    if (!arity(a, 6, 0, 0)) return kArity;
    const View &y = a.op[0], &x = a.op[1];
    if (!activation(y) || !activation(x)) return kMissing;
    if (y.rank != 4 || x.rank != 4 || y.dim[0] != x.dim[0] || y.dim[3] != x.dim[3]) return kShape;
    if (x.dim[1] < 1 || x.dim[2] < 1) return "the image has no pixels";
    for (int k = 0; k < 2; ++k) {
        const View &index = a.op[2 + 2 * k], &factor = a.op[3 + 2 * k];
        if (!plain(index, I32) || !bounded(index) || !activation(factor)) return kMissing;
        if (index.rank != 2 || !same_dims(index, factor) || index.dim[0] != y.dim[1 + k] || index.dim[1] < 1)
            return "the tables do not fit";
    }
    return nullptr;
}
int64_t resize2d_tiles(const Args &a) { return empty(a.op[0]) ? 0 : a.op[0].dim[0] * a.op[0].dim[1]; }
int64_t resize2d_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    const double taps = (double)a.op[2].dim[1] * (double)a.op[4].dim[1];
    const double pixels = (double)(count_of(a.op[0]) / a.op[0].dim[3]);
    const double ns = pixels * taps * (3 + (double)a.op[0].dim[3] / 8);
    return ns < 1e15 ? (int64_t)ns + 1 : (int64_t)1e15;
}
int64_t resize2d_scratch(const Args &) { return 0; }

const char *rnn_check(const Args &a) {
    if (!arity(a, 8, 2, 0)) return kArity;
    const View &y = a.op[0], &g = a.op[3], &w = a.op[4], &bias = a.op[5];
    if (!activation(y) || !activation(g) || !weight(w)) return kMissing;
    if (y.rank != 3 || g.rank != 3 || w.rank != 3 || y.dim[0] != g.dim[0] || y.dim[1] != g.dim[1]) return kShape;
    static const int64_t gates[] = {1, 1, 3, 3, 4};
    if (!between(a.i[0], 0, 4) || !flag(a.i[1])) return kParam;
    const int64_t h = y.dim[2], n = gates[a.i[0]];
    if (y.dim[0] < 1) return "there is no step";
    if (w.dim[0] != n || w.dim[1] != h || w.dim[2] != h || g.dim[2] != n * h) return kShape;
    if (bias.data && (n != 3 || !activation(bias) || !is_vector(bias, h))) return "the bias does not fit";
    static const int states[] = {1, 6, 2, 7};
    for (int k = 0; k < 4; ++k) {
        const View &state = a.op[states[k]];
        if (!state.data) continue;
        if (k >= 2 && a.i[0] != 4) return "only an LSTM has a cell state";
        if (!activation(state) || state.rank != 2 || state.dim[0] != y.dim[1] || state.dim[1] != h) return kShape;
    }
    return nullptr;
}
int64_t rnn_tiles(const Args &a) { return empty(a.op[0]) ? 0 : ceil_div(a.op[0].dim[1], kRnnRows); }
int64_t rnn_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    const RnnShape s = rnn_shape(a);
    const double n = (double)s.gates * (double)s.h;
    const int64_t step = product_cost((double)s.b, n, (double)s.h, n * (double)s.h * (double)dtype_size(a.op[4].dtype));
    const double ns = (double)s.t * ((double)step + (double)s.b * n + 100);
    return ns < 1e15 ? (int64_t)ns : (int64_t)1e15;
}
int64_t rnn_scratch(const Args &a) {  // state, cell state or reset state, gates
    if (empty(a.op[0])) return 0;
    const RnnShape s = rnn_shape(a);
    return imin(kRnnRows, s.b) * s.h * (s.gates + 2) * (int64_t)sizeof(float);
}

const char *matmul_check(const Args &a) {
    if (!arity(a, 3, 1, 1)) return kArity;
    const View &y = a.op[0], &p = a.op[1], &q = a.op[2];
    if (!activation(y) || !activation(p) || !activation(q)) return kMissing;
    if (!flag(a.i[0])) return kParam;
    if (y.rank < 2 || p.rank < 2 || q.rank < 2) return kShape;
    const int rows = a.i[0] ? q.rank - 1 : q.rank - 2, cols = a.i[0] ? q.rank - 2 : q.rank - 1;
    if (p.dim[p.rank - 1] != q.dim[rows] || y.dim[y.rank - 2] != p.dim[p.rank - 2] || y.dim[y.rank - 1] != q.dim[cols])
        return kShape;
    View lead = y, in[2] = {p, q};
    lead.rank = (uint8_t)(y.rank - 2);
    for (View &v : in) v.rank = (uint8_t)(v.rank - 2);
    return broadcasts(lead, in, 2) ? nullptr : kShape;
}
int64_t matmul_tiles(const Args &a) {
    if (empty(a.op[0])) return 0;
    const MatmulShape s = matmul_shape(a);
    return s.batch * s.panel_blocks * s.row_blocks;
}
int64_t matmul_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    const MatmulShape s = matmul_shape(a);
    return product_cost((double)s.batch * (double)s.m, (double)s.n, (double)s.k,
                        (double)s.batch * (double)s.n * (double)s.k * 4);
}
int64_t matmul_scratch(const Args &a) {  // two packed panels
    return empty(a.op[0]) ? 0 : 2 * 16 * matmul_shape(a).k * (int64_t)sizeof(float);
}

static bool heads(int64_t hq, int64_t hkv) { return between(hkv, 1, kMaxTap) && between(hq, hkv, kMaxTap) && hq % hkv == 0; }

static int64_t scores_cost(const AttentionShape &s) {
    return product_cost((double)s.batch * (double)s.t * (double)s.hq, (double)s.s, (double)(s.d + s.dv),
                        (double)s.batch * (double)s.hkv * (double)s.s * (double)(s.d + s.dv) * 4);
}

const char *attention_cached_check(const Args &a) {
    if (!arity(a, 4, 4, 2)) return kArity;
    const View &y = a.op[0], &q = a.op[1], &k = a.op[2], &v = a.op[3];
    if (!activation(y) || !activation(q) || !plain(k) || !bounded(k) || !plain(v) || !bounded(v)) return kMissing;
    if (kv_row(k.dtype, 1) < 0 || v.dtype != k.dtype) return kType;
    if (y.rank != 2 || q.rank != 2 || k.rank != 3 || v.rank != 3 || y.dim[0] != q.dim[0]) return kShape;
    const int64_t past = a.i[0], hq = a.i[1], hkv = a.i[2];
    if (!heads(hq, hkv)) return "the query heads do not divide among the key heads";
    if (k.dim[0] != hkv || v.dim[0] != hkv || k.dim[1] != v.dim[1]) return kShape;
    if (q.dim[1] % hq != 0 || y.dim[1] % hq != 0) return kShape;
    if (k.dim[2] != kv_row(k.dtype, q.dim[1] / hq) || v.dim[2] != kv_row(v.dtype, y.dim[1] / hq)) return kShape;
    if (past < 0 || past > k.dim[1] - q.dim[0]) return "the tokens do not fit into the cache";
    return between(a.i[3], 0, kMaxDim) ? nullptr : kParam;
}
int64_t attention_cached_tiles(const Args &a) {
    if (empty(a.op[0])) return 0;
    const AttentionShape s = attention_shape(a, true);
    return s.hkv * s.token_blocks;
}
int64_t attention_cached_cost(const Args &a) {
    if (empty(a.op[0])) return 1;
    AttentionShape s = attention_shape(a, true);
    const int64_t seen = a.i[0] + s.t, window = a.i[3];
    s.s = window ? imin(seen, window + s.t) : seen;
    return scores_cost(s);
}
int64_t attention_cached_scratch(const Args &a) {
    return empty(a.op[0]) ? 0 : attention_scratch_floats(attention_shape(a, true)) * (int64_t)sizeof(float);
}

const char *attention_check(const Args &a) {
    if (!arity(a, 5, 4, 2)) return kArity;
    const View &y = a.op[0], &q = a.op[1], &k = a.op[2], &v = a.op[3], &mask = a.op[4];
    if (!activation(y) || !activation(q) || !activation(k) || !activation(v)) return kMissing;
    if (y.rank != 3 || q.rank != 3 || k.rank != 3 || v.rank != 3) return kShape;
    for (int d = 0; d < 2; ++d)
        if (y.dim[d] != q.dim[d] || k.dim[d] != v.dim[d]) return kShape;
    if (k.dim[0] != q.dim[0]) return kShape;
    const int64_t hq = a.i[0], hkv = a.i[1];
    if (!heads(hq, hkv)) return "the query heads do not divide among the key heads";
    if (q.dim[2] % hq != 0 || y.dim[2] % hq != 0) return kShape;
    if (k.dim[2] != q.dim[2] / hq * hkv || v.dim[2] != y.dim[2] / hq * hkv) return kShape;
    if (!flag(a.i[2]) || !between(a.i[3], -kMaxDim, kMaxDim)) return kParam;
    if (!mask.data) return nullptr;
    if (!plain(mask) || !bounded(mask) || (mask.dtype != F32 && mask.dtype != BOOL)) return kType;
    const int64_t full[4] = {q.dim[0], hq, q.dim[1], k.dim[1]};
    if (mask.rank != 4 || mask.dim[3] != full[3]) return "the mask does not fit";
    for (int d = 0; d < 3; ++d)
        if (mask.dim[d] != 1 && mask.dim[d] != full[d]) return "the mask does not fit";
    return nullptr;
}
int64_t attention_tiles(const Args &a) {
    if (empty(a.op[0])) return 0;
    const AttentionShape s = attention_shape(a, false);
    return s.batch * s.hkv * s.token_blocks;
}
int64_t attention_cost(const Args &a) { return empty(a.op[0]) ? 1 : scores_cost(attention_shape(a, false)); }
int64_t attention_scratch(const Args &a) {
    return empty(a.op[0]) ? 0 : attention_scratch_floats(attention_shape(a, false)) * (int64_t)sizeof(float);
}

}  // namespace edgec
