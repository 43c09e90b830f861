"""Bodies of the operators that make a dense weight of a compressed one (rows of the table in ops.py).

The standard has no way to take bits of a tensor in one step, so the planes are shifted, masked and added up to codes
first; the codes then choose among the levels of their group, or among the values of their table.
"""

from __future__ import annotations

# planes u8 [bits, N, ceil(count / 8)], least significant bit first, to codes INT32 [N, count].
_CODES = """
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    two = Constant <value = int64[1] {2}> ()
    last = Constant <value = int64[1] {-1}> ()
    zero_s = Constant <value = int64 {0}> ()
    one_s = Constant <value = int64 {1}> ()
    one_u8 = Constant <value = uint8 {1}> ()
    bits_s = Constant <value_int: int = @bits> ()
    columns_s = Constant <value_int: int = @columns> ()
    columns = Unsqueeze (columns_s, zero)
    places = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    bytes_wide = Unsqueeze (planes, last)
    shifted = BitShift <direction = "RIGHT"> (bytes_wide, places)
    masked = BitwiseAnd (shifted, one_u8)
    plane_shape = Constant <value = int64[3] {0, 0, -1}> ()
    plane_bits = Reshape (masked, plane_shape)
    used_bits = Slice (plane_bits, zero, count, two)
    bit_ints = Cast <to = 6> (used_bits)
    steps = Range (zero_s, bits_s, one_s)
    steps_u8 = Cast <to = 2> (steps)
    powers_u8 = BitShift <direction = "LEFT"> (one_u8, steps_u8)
    powers = Cast <to = 6> (powers_u8)
    power_shape = Constant <value = int64[3] {-1, 1, 1}> ()
    powers_wide = Reshape (powers, power_shape)
    weighted = Mul (bit_ints, powers_wide)
    codes = ReduceSum <keepdims = 0> (weighted, zero)
    powers_sum = ReduceSum <keepdims = 1> (powers, zero)
    highest = Cast <to = 7> (powers_sum)
    level_count = Add (highest, one)
"""

# A group has few levels: they are computed once, in DOUBLE, which holds all sums and products of a code and float16
# numbers exactly, so that no order of summation shows. uniform: scale * code - scale * offset, else the signed bits
# times their scales, plus offset; the first row of `factors` serves the former, the others the latter.
BIT_PLANE_TO_DENSE = f"""
<opset_import: ["" : 24], domain: "edgec">
BitPlaneToDense <bits, group_size, columns, uniform: int = 0> (planes, scale, offset) => (dense)
{{
    count_s = Constant <value_int: int = @columns> ()
    count_axis = Constant <value = int64[1] {{0}}> ()
    count = Unsqueeze (count_s, count_axis)
{_CODES}
    group_s = Constant <value_int: int = @group_size> ()
    group = Unsqueeze (group_s, zero)
    uniform_s = Constant <value_int: int = @uniform> ()
    is_uniform = Cast <to = 9> (uniform_s)
    groups = Shape <start = 1, end = 2> (offset)
    width = Mul (groups, group)
    missing = Sub (width, columns)
    padding = Concat <axis = 0> (zero, zero, zero, missing)
    whole_codes = Pad (codes, padding)
    group_shape = Concat <axis = 0> (zero, groups, group)
    group_codes = Reshape (whole_codes, group_shape)

    level_count_s = Squeeze (level_count, zero)
    all_codes = Range (zero_s, level_count_s, one_s)
    code_row = Unsqueeze (all_codes, zero)
    code_doubles = Cast <to = 11> (code_row)
    code_bytes = Cast <to = 2> (code_row)
    step_column = Unsqueeze (steps_u8, one)
    code_shifted = BitShift <direction = "RIGHT"> (code_bytes, step_column)
    code_bits = BitwiseAnd (code_shifted, one_u8)
    bit_doubles = Cast <to = 11> (code_bits)
    two_d = Constant <value = double {{2.0}}> ()
    one_d = Constant <value = double {{1.0}}> ()
    twice = Mul (bit_doubles, two_d)
    signs = Sub (twice, one_d)
    both = Concat <axis = 0> (code_doubles, signs)
    first_sign = Sub (one_s, uniform_s)
    first_row = Unsqueeze (first_sign, zero)
    scale_rows = Shape <start = 0, end = 1> (scale)
    end_row = Add (first_row, scale_rows)
    factors = Slice (both, first_row, end_row, zero)

    scale_doubles = Cast <to = 11> (scale)
    scales = Transpose <perm = [1, 2, 0]> (scale_doubles)
    parts = MatMul (scales, factors)
    offset_doubles = Cast <to = 11> (offset)
    offsets = Unsqueeze (offset_doubles, last)
    first_scale = Slice (scales, zero, one, two)
    product = Mul (first_scale, offsets)
    negative = Neg (product)
    shift = Where (is_uniform, negative, offsets)
    exact_levels = Add (parts, shift)
    levels = Cast <to = 1> (exact_levels)
    flat_levels = Reshape (levels, last)
    all_levels = Shape (flat_levels)
    all_levels_s = Squeeze (all_levels, zero)
    starts = Range (zero_s, all_levels_s, level_count_s)
    start_shape = Concat <axis = 0> (last, groups, one)
    start_column = Reshape (starts, start_shape)
    codes_wide = Cast <to = 7> (group_codes)
    level_places = Add (codes_wide, start_column)
    group_values = Gather <axis = 0> (flat_levels, level_places)
    row_shape = Constant <value = int64[2] {{0, -1}}> ()
    rows = Reshape (group_values, row_shape)
    dense = Slice (rows, zero, columns, one)
}}
"""

# rows_per_table = 0: one table for all rows. A vector may reach beyond the last column.
PALETTE_TO_DENSE = f"""
<opset_import: ["" : 24], domain: "edgec">
PaletteToDense <bits, columns, rows_per_table: int = 0, vector: int = 1> (planes, lut) => (dense)
{{
    vector_s = Constant <value_int: int = @vector> ()
    wanted_s = Constant <value_int: int = @columns> ()
    unit_s = Constant <value = int64 {{1}}> ()
    reach = Add (wanted_s, vector_s)
    beyond = Sub (reach, unit_s)
    count_s = Div (beyond, vector_s)
    count_axis = Constant <value = int64[1] {{0}}> ()
    count = Unsqueeze (count_s, count_axis)
{_CODES}
    rows_s = Constant <value_int: int = @rows_per_table> ()
    all_rows = Shape <start = 1, end = 2> (planes)
    one_table = Equal (rows_s, zero_s)
    share = Where (one_table, all_rows, rows_s)
    row_count = Squeeze (all_rows, zero)
    row_numbers = Range (zero_s, row_count, one_s)
    tables = Div (row_numbers, share)
    starts = Mul (tables, level_count)
    start_column = Unsqueeze (starts, one)
    codes_wide = Cast <to = 7> (codes)
    places_in_tables = Add (codes_wide, start_column)
    vector_width = Unsqueeze (vector_s, zero)
    table_shape = Concat <axis = 0> (last, vector_width)
    table_rows = Reshape (lut, table_shape)
    table_floats = Cast <to = 1> (table_rows)
    vectors = Gather <axis = 0> (table_floats, places_in_tables)
    row_shape = Constant <value = int64[2] {{0, -1}}> ()
    rows = Reshape (vectors, row_shape)
    dense = Slice (rows, zero, columns, one)
}}
"""
