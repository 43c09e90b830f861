// Decoded arguments of the compute kernels and how they are cut into tiles: one definition for the check, tiles and
// scratch functions (contract/compute.cpp) and the kernels themselves, so that the two cannot disagree.
#pragma once
#include "../view.h"

namespace edgec {

// What happens to a matrix product on its way out: y = act(s + bias) + residual, or act(s + bias + residual).
struct Epilogue {
    const float *bias = nullptr, *residual = nullptr;
    int act = 0, residual_first = 0;
    float a = 0, b = 0;
};

struct LinearShape {
    int64_t m, n, k, panels;
    int64_t row_blocks, panel_blocks;  // tiles = row_blocks * panel_blocks
    bool rows_outer = false;           // the panel block runs fastest, else the row block
    int64_t tiles() const { return m > 0 ? row_blocks * panel_blocks : 0; }
};
// At most this many rows take the matrix-vector path, in which a tile is one panel.
constexpr int64_t kVectorRows = 3;
// A tile of the matrix path; 48 is a multiple of every kTileRows.
constexpr int64_t kLinearRows = 48, kLinearPanels = 4;
// From this many rows on, 16-bit weights are widened once per panel into scratch; fewer take matrix-vector products.
constexpr int64_t kWidenRows = 13;

EDGEC_INLINE int64_t leading(const View &v) {  // product of all dims but the last
    View t = v;
    t.rank = (uint8_t)(v.rank - 1);
    return count_of(t);
}

// linear_split has this many outputs, absent ones included. Each has tiles of its own, one output's after the other's.
constexpr int kSplitOutputs = 4;

// What tiles [t0, t1) of one output of linear or linear_split are made of; w and e begin at its first column.
struct LinearPart {
    LinearShape shape;
    Epilogue e;
    const float *x;
    float *y;
    const char *w;
    int64_t t0, t1;
    uint8_t dtype;  // of w
};
// The parts in which tiles [t0, t1) of all `outputs` lie; how many. Defined once, in compute.cpp, to save room.
int linear_parts(const Args &a, int outputs, int64_t t0, int64_t t1, LinearPart *parts);

// A window that slides over NHWC images: convolution and pooling.
struct Window {
    int64_t batch, oh, ow, co, h, w, ci;
    int64_t kh, kw, sh, sw, pt, pl, dh, dw;
};

EDGEC_INLINE Window window_of(const View &y, const View &x, const int64_t *i) {
    return Window{y.dim[0], y.dim[1], y.dim[2], y.dim[3], x.dim[1], x.dim[2], x.dim[3],
                  i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7]};
}

// First and one past the last tap k whose coordinate o * stride - pad + k * dilation lies in [0, size).
EDGEC_INLINE void tap_range(int64_t o, int64_t stride, int64_t pad, int64_t dilation, int64_t taps, int64_t size,
                            int64_t *first, int64_t *last) {
    int64_t at = o * stride - pad;
    if (at >= 0 && at + (taps - 1) * dilation < size) {  // by far the most common, and without a division
        *first = 0;
        *last = taps;
        return;
    }
    *first = at >= 0 ? 0 : imin(taps, ceil_div(-at, dilation));
    *last = at >= size ? *first : imax(*first, imin(taps, ceil_div(size - at, dilation)));
}

// Output columns [in0, in1) whose whole window lies between the left and the right border of x.
EDGEC_INLINE void columns_inside(const Window &g, int64_t *in0, int64_t *in1) {
    const int64_t room = g.w - 1 - (g.kw - 1) * g.dw + g.pl;
    *in0 = imin(g.ow, ceil_div(g.pl, g.sw));
    *in1 = room < 0 ? *in0 : imax(*in0, imin(g.ow, room / g.sw + 1));
}

struct ConvShape {
    Window g;
    int64_t groups, n, k, panels;          // per group: columns, inner size, panels
    int64_t pixels, pixel_block, panel_block;
    int64_t pixel_blocks, panel_blocks;    // tiles = pixel_blocks * groups * panel_blocks; panels run fastest
    bool pointwise;                        // x itself is the matrix: nothing to gather
    bool direct;                           // so are output columns [in0, in1), row by row
    int64_t in0, in1;                      // whose windows touch neither the left nor the right border
};

ConvShape conv_shape(const Args &a, int64_t groups);  // compute.cpp: defined once, to save room

// A 3 x 3 convolution by 4 x 4 outputs, a tile, at a time (generic/conv2d_winograd.h).
struct WinogradShape {
    Window g;
    int64_t down, across, tiles;     // of an image; of all images
    int64_t block, blocks;           // tiles whose values are in scratch at once
    int64_t panels, panel_block, panel_blocks;  // the kernel's tiles = blocks * panel_blocks; panels run fastest
    int64_t channels;                // whose kernels are turned into values at once
    int64_t image, kernels, sums;    // floats from one of 36, 6 and 36 matrices in scratch to the next
};
constexpr int64_t kWinogradTiles = 36, kWinogradChannels = 64;  // what lies in the L2 cache, and in the L1 cache
constexpr int64_t kWinogradHead = 16;                           // floats of scratch before the matrices
WinogradShape winograd_shape(const Args &a);  // compute.cpp

// An inverted residual: y[Co] <- narrow <- depthwise window g over the C = g.ci channels <- widen <- x[ci].
struct MbconvShape {
    Window g;
    int64_t ci, co;
    int64_t tile_rows, tiles;  // output rows of a tile; tiles of an image
    int64_t band, wide_rows;   // output rows done at once, and the input rows they read
};
MbconvShape mbconv_shape(const Args &a);  // compute.cpp

struct RnnShape {
    int64_t t, b, h, gates, panels;  // panels per gate; tiles = blocks of kRnnRows sequences
};
constexpr int64_t kRnnRows = 8;
static_assert(kRnnRows < kWidenRows, "the gates' weights are never widened: there is no scratch for it");

EDGEC_INLINE RnnShape rnn_shape(const Args &g) {
    const View &y = g.op[0];
    return RnnShape{y.dim[0], y.dim[1], y.dim[2], g.op[4].dim[0], ceil_div(y.dim[2], 16)};
}

struct ScanShape {
    int64_t l, d, n, blocks;  // steps, channels, states of each; tiles = batch * blocks of kScanChannels channels
};
constexpr int64_t kScanChannels = 16;

EDGEC_INLINE ScanShape scan_shape(const Args &a) {
    const View &y = a.op[0];
    return ScanShape{y.dim[1], y.dim[2], a.op[4].dim[0], ceil_div(y.dim[2], kScanChannels)};
}

struct ConvRows {
    int64_t l, c, k, rows, blocks;  // steps, channels, taps; tiles = batch * blocks of `rows` steps
};

EDGEC_INLINE ConvRows conv_rows(const Args &a) {
    const View &y = a.op[0];
    const int64_t rows = imax(1, 16384 / imax(1, y.dim[2]));
    return ConvRows{y.dim[1], y.dim[2], a.op[3].dim[0], rows, ceil_div(y.dim[1], rows)};
}

struct GroupShape {
    int64_t pixels, c, width, per_tile, tiles;  // channels of a group, groups of a tile; tiles of an image
};

EDGEC_INLINE GroupShape group_shape(const Args &a) {
    const View &y = a.op[0];
    const int64_t width = y.dim[2] / a.i[0], per_tile = imin(a.i[0], ceil_div(16, imax(1, width)));
    return GroupShape{y.dim[1], y.dim[2], width, per_tile, ceil_div(a.i[0], per_tile)};
}

struct MatmulShape {
    int64_t m, n, k, batch, panels, row_blocks, panel_blocks;  // tiles = batch * panel_blocks * row_blocks
};
constexpr int64_t kMatmulRows = 192, kMatmulPanels = 4;

EDGEC_INLINE MatmulShape matmul_shape(const Args &g) {
    const View &y = g.op[0], &a = g.op[1];
    MatmulShape s;
    View lead = y;
    lead.rank = (uint8_t)(y.rank - 2);
    s.batch = count_of(lead);
    s.m = y.dim[y.rank - 2];
    s.n = y.dim[y.rank - 1];
    s.k = a.dim[a.rank - 1];
    s.panels = ceil_div(s.n, 16);
    s.row_blocks = ceil_div(s.m, kMatmulRows);
    s.panel_blocks = ceil_div(s.panels, kMatmulPanels);
    return s;
}

// Elements of a cache's row: d numbers or, in bytes, codes of them (docs/format.md, kv rows): I8 one group of 8-bit codes
// behind its scale, U8 groups of 32 4-bit codes behind their scale and minimum. -1: no cache of this build has this type.
constexpr int64_t kKvGroup = 32, kKvWide = 2, kKvFour = 4;  // numbers of a group; bytes before the codes of each kind
EDGEC_INLINE int64_t kv_row(uint8_t dtype, int64_t d) {
    if (!reads_caches(dtype)) return -1;
    if (dtype == F32 || dtype == F16) return d;
    if (d < 1) return -1;
    if (dtype == I8) return kKvWide + d;
    if (dtype == U8) return ceil_div(d, kKvGroup) * kKvFour + d / kKvGroup * (kKvGroup / 2) + ceil_div(d % kKvGroup, 2);
    return -1;
}

// Both attention kernels: rows are the (token, query head) pairs that share one key/value head.
struct AttentionShape {
    int64_t batch, t, s, hq, hkv, group, d, dv;
    bool codes;                        // keys and values are rows of kv_row()
    int64_t d_pad, dv_pad;             // whole panels
    int64_t token_block, token_blocks, rows;  // tiles = batch * hkv * token_blocks; rows of one tile
};
constexpr int64_t kAttentionRows = 48;  // query rows that are worked on together
constexpr int64_t kAttentionSpan = 64;  // positions per step of the online softmax
constexpr int64_t kKvDecoded = 32;      // positions of a cache of codes that are decoded together

EDGEC_INLINE AttentionShape attention_shape(const Args &g, bool cached) {
    const View &y = g.op[0], &q = g.op[1], &k = g.op[2];
    AttentionShape s;
    s.hq = g.i[cached ? 1 : 0];
    s.hkv = g.i[cached ? 2 : 1];
    s.batch = cached ? 1 : y.dim[0];
    s.t = cached ? y.dim[0] : y.dim[1];
    s.s = k.dim[1];
    s.d = q.dim[cached ? 1 : 2] / s.hq;
    s.dv = y.dim[cached ? 1 : 2] / s.hq;
    s.codes = k.dtype == I8 || k.dtype == U8;
    s.group = s.hq / s.hkv;
    s.d_pad = ceil_div(s.d, 16) * 16;
    s.dv_pad = ceil_div(s.dv, 16) * 16;
    s.token_block = imax(1, imin(s.t, kAttentionRows / s.group));
    s.token_blocks = ceil_div(s.t, s.token_block);
    s.rows = s.token_block * s.group;
    return s;
}

// Floats of scratch per query row and per position of a step, in the order in which attention.h lays them out.
EDGEC_INLINE int64_t attention_scratch_floats(const AttentionShape &s) {
    int64_t row = s.d_pad + kAttentionSpan + s.dv_pad + 2;
    return s.rows * row + kAttentionSpan * (s.d_pad + s.dv_pad)  +
           (s.codes ? kKvDecoded * imax(s.d_pad, s.dv_pad) : 0);
}

}  // namespace edgec
