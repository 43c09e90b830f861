// Sizes of views. Dims and dtypes come from files, so every product is checked before it is made.
#include "kernel.h"

namespace edgec {

constexpr int64_t kMaxElements = int64_t(1) << 60;

int64_t dtype_size(uint8_t dtype) {
    switch (dtype) {
        case F32: case I32: return 4;
        case F16: case BF16: return 2;
        case I8: case U8: case BOOL: return 1;
        case I64: return 8;
        default: return 0;
    }
}

int64_t count_of(const View &v) {
    if (v.rank > kMaxRank) return -1;
    int64_t n = 1;
    bool empty = false;  // [2^50, 2^50, 0] has zero elements, whatever the order of its dims
    for (int d = 0; d < v.rank; ++d) {
        if (v.dim[d] < 0) return -1;
        if (v.dim[d] == 0) empty = true;
    }
    if (empty) return 0;
    for (int d = 0; d < v.rank; ++d) {
        if (v.dim[d] > kMaxElements / n) return -1;
        n *= v.dim[d];
    }
    return n;
}

int64_t bytes_of(const View &v) {
    const int64_t size = dtype_size(v.dtype);
    if (size == 0 || count_of(v) < 0) return -1;
    int64_t n = count_of(v);
    if (v.format == PANEL16) {
        if (v.rank < 2 || (v.dtype != F32 && v.dtype != F16 && v.dtype != BF16)) return -1;
        View padded = v;
        int64_t &rows = padded.dim[v.rank - 2];
        if (rows > kMaxElements) return -1;
        rows = (rows + 15) / 16 * 16;
        n = count_of(padded);
        if (n < 0) return -1;
    } else if (v.format != PLAIN) {
        return -1;
    }
    return n > INT64_MAX / size ? -1 : n * size;
}

}  // namespace edgec
