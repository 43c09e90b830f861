"""The body of edgec::CachedAttention: what a cache keeps of keys and values, and attention over it."""

from __future__ import annotations

KV_FORMATS = ("f32", "f16", "int8", "int4")  # the first is the default

# The cache holds FLOAT here; what a native session stores as f16 or codes is rounded to what can be read back. The same
# steps as kernels/generic/kv_write.h, with the same roundings: units are FLOAT16 before codes are made. Formats are
# compared from one tensor, because numpy knows strings of different lengths as different types.
_NUMBERS = """    format = Constant <value_string: string = @kv_format> ()
    formats = Constant <value_strings = ["f16", "int8", "int4"]> ()
    format_v = Unsqueeze (format, none)
    all_formats = Concat <axis = 0> (format_v, formats)
    this_format = Slice (all_formats, none, one, none)
    other_formats = Slice (all_formats, one, far, none)
    is_format = Equal (other_formats, this_format)
    is_half = Gather (is_format, zero_s)
    is_eight = Gather (is_format, one_s)
    two_s = Constant <value = int64 {2}> ()
    is_four = Gather (is_format, two_s)
    zero_n = Constant <value = float {0.0}> ()
    fifteen = Constant <value = float {15.0}> ()
    most_code = Constant <value = float {127.0}> ()
    least_code = Constant <value = float {-127.0}> ()
    least_unit = Constant <value = float {5.9604644775390625e-8}> ()
    most_half = Constant <value = float {65504.0}> ()
    least_half = Constant <value = float {-65504.0}> ()
    group_size = Constant <value = int64[1] {32}> ()
    three = Constant <value = int64[1] {3}> ()
    kv_grouped = Constant <value = int64[5] {0, 0, 0, -1, 32}> ()
    kv_flat = Constant <value = int64[4] {0, 0, 0, -1}> ()"""

# 8 bits: one scale per head and position. 4 bits: a scale and a minimum per 32 numbers; a last group of fewer is filled
# up with its last number, which changes neither.
_STORED = """    X_half_n = Cast <to = 10> (X_float)
    X_half = Cast <to = 1> (X_half_n)

    X_size = Abs (X_float)
    X_top = ReduceMax <keepdims = 1> (X_size, rest)
    X_range8 = Div (X_top, most_code)
    X_unit8_n = Min (X_range8, most_half)
    X_unit8_h = Cast <to = 10> (X_unit8_n)
    X_unit8 = Cast <to = 1> (X_unit8_h)
    X_step8 = Max (X_unit8, least_unit)
    X_ratio8 = Div (X_float, X_step8)
    X_near8 = Round (X_ratio8)
    X_code8 = Clip (X_near8, least_code, most_code)
    X_eight = Mul (X_code8, X_unit8)

    X_width = Shape <start = 3, end = 4> (X_float)
    X_less = Neg (X_width)
    X_lack = Mod (X_less, group_size)
    X_ends = Concat <axis = 0> (none, X_lack)
    X_padded = Pad <mode = "edge"> (X_float, X_ends, , three)
    X_groups = Reshape (X_padded, kv_grouped)
    X_least = ReduceMin <keepdims = 1> (X_groups, rest)
    X_most = ReduceMax <keepdims = 1> (X_groups, rest)
    X_start_n = Clip (X_least, least_half, most_half)
    X_start_h = Cast <to = 10> (X_start_n)
    X_start = Cast <to = 1> (X_start_h)
    X_spread = Sub (X_most, X_start)
    X_upward = Max (X_spread, zero_n)
    X_range4 = Div (X_upward, fifteen)
    X_unit4_n = Min (X_range4, most_half)
    X_unit4_h = Cast <to = 10> (X_unit4_n)
    X_unit4 = Cast <to = 1> (X_unit4_h)
    X_step4 = Max (X_unit4, least_unit)
    X_above = Sub (X_groups, X_start)
    X_ratio4 = Div (X_above, X_step4)
    X_near4 = Round (X_ratio4)
    X_code4 = Clip (X_near4, zero_n, fifteen)
    X_scaled4 = Mul (X_code4, X_unit4)
    X_read4 = Add (X_scaled4, X_start)
    X_joined = Reshape (X_read4, kv_flat)
    X_four = Slice (X_joined, none, X_width, three)

    X_if_half = Where (is_half, X_half, X_float)
    X_if_eight = Where (is_eight, X_eight, X_if_half)
    X_heads = Where (is_four, X_four, X_if_eight)"""

# Query heads are grouped over the cache's heads by a fifth dim, so nothing is repeated. The write is Slice and
# Concat: TensorScatter has no kernel in every runtime that shall open the file. Positions not yet written are
# never visible, because a token sees at most its own position.
CACHED_ATTENTION = """
<opset_import: ["" : 24], domain: "edgec">
CachedAttention <q_num_heads, kv_num_heads, scale: float = 1.0, softcap: float = 0.0, window: int = 0,
                 kv_format: string = "f32">
    (q, k, v, key_cache, value_cache, past_len) => (y, key_cache_out, value_cache_out)
{
    none = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    two = Constant <value = int64[1] {2}> ()
    rest = Constant <value = int64[1] {-1}> ()
    far = Constant <value = int64[1] {9223372036854775807}> ()
    zero_s = Constant <value = int64 {0}> ()
    one_s = Constant <value = int64 {1}> ()
    hq_s = Constant <value_int: int = @q_num_heads> ()
    hkv_s = Constant <value_int: int = @kv_num_heads> ()
    window_s = Constant <value_int: int = @window> ()
    scale_s = Constant <value_float: float = @scale> ()
    softcap_s = Constant <value_float: float = @softcap> ()
    hkv = Unsqueeze (hkv_s, none)
    group_s = Div (hq_s, hkv_s)
    group = Unsqueeze (group_s, none)
    past = Reshape (past_len, one)
    tokens = Shape <start = 1, end = 2> (q)
    context = Shape <start = 2, end = 3> (key_cache)
    end = Add (past, tokens)
@N@

    kv_shape = Concat <axis = 0> (none, none, hkv, rest)
    k_split = Reshape (k, kv_shape)
    k_float = Transpose <perm = [0, 2, 1, 3]> (k_split)
@K@
    key_before = Slice (key_cache, none, past, two)
    key_after = Slice (key_cache, end, far, two)
    key_cache_out = Concat <axis = 2> (key_before, k_heads, key_after)
    v_split = Reshape (v, kv_shape)
    v_float = Transpose <perm = [0, 2, 1, 3]> (v_split)
@V@
    value_before = Slice (value_cache, none, past, two)
    value_after = Slice (value_cache, end, far, two)
    value_cache_out = Concat <axis = 2> (value_before, v_heads, value_after)

    tokens_s = Squeeze (tokens, none)
    context_s = Squeeze (context, none)
    past_s = Squeeze (past, none)
    steps = Range (zero_s, tokens_s, one_s)
    positions = Add (steps, past_s)
    query_pos = Unsqueeze (positions, one)
    key_pos = Range (zero_s, context_s, one_s)
    seen_before = LessOrEqual (key_pos, query_pos)
    all_s = Equal (window_s, zero_s)
    reach = Where (all_s, context_s, window_s)
    horizon = Sub (query_pos, reach)
    seen_after = Greater (key_pos, horizon)
    visible = And (seen_before, seen_after)

    q_shape = Concat <axis = 0> (none, none, hkv, group, rest)
    q_split = Reshape (q, q_shape)
    q_heads = Transpose <perm = [0, 2, 3, 1, 4]> (q_split)
    q_scaled = Mul (q_heads, scale_s)
    keys = Unsqueeze (key_cache_out, two)
    keys_t = Transpose <perm = [0, 1, 2, 4, 3]> (keys)
    scores = MatMul (q_scaled, keys_t)
    zero_f = Constant <value_float = 0.0> ()
    one_f = Constant <value_float = 1.0> ()
    lowest = Constant <value = float {-3.4028234e38}> ()
    capped = Greater (softcap_s, zero_f)
    cap = Where (capped, softcap_s, one_f)
    ratio = Div (scores, cap)
    bent = Tanh (ratio)
    bent_scores = Mul (bent, cap)
    chosen = Where (capped, bent_scores, scores)
    masked = Where (visible, chosen, lowest)
    weights = Softmax <axis = -1> (masked)
    values = Unsqueeze (value_cache_out, two)
    mixed = MatMul (weights, values)
    back = Transpose <perm = [0, 3, 1, 2, 4]> (mixed)
    y_shape = Constant <value = int64[3] {0, 0, -1}> ()
    y = Reshape (back, y_shape)
}
""".replace("@N@", _NUMBERS).replace("@K@", _STORED.replace("X", "k")).replace("@V@", _STORED.replace("X", "v"))
