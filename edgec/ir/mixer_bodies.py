"""Bodies of the operators that mix tokens or pixels with weights of their own (rows of the table in ops.py)."""

from __future__ import annotations

# S6 of Gu and Dao, 2023 (arXiv:2312.00752): per channel d and state n, with d the step's size,
#   h <- exp(delta A[d, n]) h + delta x B[n];  y = sum over n of h C[n], plus D[d] x.
# The standard's Scan wants the steps first.
SELECTIVE_SCAN = """
<opset_import: ["" : 24], domain: "edgec">
SelectiveScan <softplus: int = 0> (x, delta, A, B, C, D, state) => (y, last_state)
{
    last = Constant <value = int64[1] {-1}> ()
    one = Constant <value = int64[1] {1}> ()
    two = Constant <value = int64[1] {2}> ()
    flag = Constant <value_int: int = @softplus> ()
    positive = Cast <to = 9> (flag)
    smooth = Softplus (delta)
    size = Where (positive, smooth, delta)
    sizes = Transpose <perm = [1, 0, 2]> (size)
    gain = Mul (size, x)
    gains = Transpose <perm = [1, 0, 2]> (gain)
    writes = Transpose <perm = [1, 0, 2]> (B)
    reads = Transpose <perm = [1, 0, 2]> (C)
    last_state, outs = Scan <num_scan_inputs = 4,
        body = step (before, size_t, gain_t, write_t, read_t) => (after, out_t)
    {
        size_w = Unsqueeze (size_t, last)
        rate = Mul (size_w, A)
        decay = Exp (rate)
        kept = Mul (decay, before)
        gain_w = Unsqueeze (gain_t, last)
        write_w = Unsqueeze (write_t, one)
        added = Mul (gain_w, write_w)
        after = Add (kept, added)
        read_w = Unsqueeze (read_t, one)
        seen = Mul (after, read_w)
        out_t = ReduceSum <keepdims = 0> (seen, two)
    }> (state, sizes, gains, writes, reads)
    mixed = Transpose <perm = [1, 0, 2]> (outs)
    direct = Mul (x, D)
    y = Add (mixed, direct)
}
"""

# The rows before the first are `tail`, those of an earlier call. Every window is gathered: [B, L, K, C].
CAUSAL_CONV = """
<opset_import: ["" : 24], domain: "edgec">
CausalConv1d <silu: int = 0> (x, weight, bias, tail) => (y, last_tail)
{
    one = Constant <value = int64[1] {1}> ()
    two = Constant <value = int64[1] {2}> ()
    far = Constant <value = int64[1] {9223372036854775807}> ()
    first_s = Constant <value = int64 {0}> ()
    one_s = Constant <value = int64 {1}> ()
    whole = Concat <axis = 1> (tail, x)
    length = Shape <start = 1, end = 2> (x)
    last_tail = Slice (whole, length, far, one)
    length_s = Squeeze (length)
    taps = Shape <start = 1, end = 2> (weight)
    taps_s = Squeeze (taps)
    starts = Range (first_s, length_s, one_s)
    starts_w = Unsqueeze (starts, one)
    steps = Range (first_s, taps_s, one_s)
    rows = Add (starts_w, steps)
    windows = Gather <axis = 1> (whole, rows)
    kernel = Transpose <perm = [1, 0]> (weight)
    products = Mul (windows, kernel)
    sums = ReduceSum <keepdims = 0> (products, two)
    linear = Add (sums, bias)
    flag = Constant <value_int: int = @silu> ()
    gated = Cast <to = 9> (flag)
    gate = Sigmoid (linear)
    bent = Mul (linear, gate)
    y = Where (gated, bent, linear)
}
"""

# SKA of LSNet (arXiv:2503.23135): every pixel has kernels of its own, and channel c uses kernel c mod G.
# Every window is gathered from the padded image, flattened: [B, C, k k, H W].
DYNAMIC_DEPTHWISE = """
<opset_import: ["" : 24], domain: "edgec">
DynamicDepthwise <kernel_size> (x, w) => (y)
{
    none = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    two = Constant <value = int64[1] {2}> ()
    three = Constant <value = int64[1] {3}> ()
    rest = Constant <value = int64[1] {-1}> ()
    zero_s = Constant <value = int64 {0}> ()
    one_s = Constant <value = int64 {1}> ()
    k_s = Constant <value_int: int = @kernel_size> ()
    k = Unsqueeze (k_s, none)
    half = Div (k, two)
    pads = Concat <axis = 0> (none, none, half, half, none, none, half, half)
    padded = Pad (x, pads)
    width = Shape <start = 3, end = 4> (padded)
    width_s = Squeeze (width)
    h = Shape <start = 2, end = 3> (x)
    h_s = Squeeze (h)
    w_axis = Shape <start = 3, end = 4> (x)
    w_s = Squeeze (w_axis)
    rows = Range (zero_s, h_s, one_s)
    row_starts = Mul (rows, width_s)
    row_starts_w = Unsqueeze (row_starts, one)
    columns = Range (zero_s, w_s, one_s)
    pixels_2d = Add (row_starts_w, columns)
    pixels = Reshape (pixels_2d, rest)
    taps = Range (zero_s, k_s, one_s)
    tap_starts = Mul (taps, width_s)
    tap_starts_w = Unsqueeze (tap_starts, one)
    offsets_2d = Add (tap_starts_w, taps)
    offsets = Reshape (offsets_2d, rest)
    offsets_w = Unsqueeze (offsets, one)
    places = Add (offsets_w, pixels)
    batch = Shape <start = 0, end = 1> (x)
    groups = Shape <start = 1, end = 2> (w)
    flat_shape = Concat <axis = 0> (none, none, rest)
    flat = Reshape (padded, flat_shape)
    windows = Gather <axis = 2> (flat, places)
    size = Mul (k, k)
    window_shape = Concat <axis = 0> (batch, rest, groups, size, h, w_axis)
    shared = Reshape (windows, window_shape)
    w_wide = Unsqueeze (w, one)
    products = Mul (shared, w_wide)
    sums = ReduceSum <keepdims = 0> (products, three)
    shape = Shape (x)
    y = Reshape (sums, shape)
}
"""
