// The product that factorizations are made of. Included after lanes.h inside a namespace per instruction set.
constexpr int kDoubles = kLanes / 2;
constexpr int kCorner = kParts == 1 ? 4 : 2;  // kCorner x kCorner sums fit the registers

LANES double sum_of(const D &x) {
    double lane[kDoubles];
    memcpy(lane, &x, sizeof lane);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

template <int kRows, int kColumns>
static void subtract_corner(const double *a, int64_t a_stride, const double *b, int64_t b_stride, int64_t depth,
                            double *c, int64_t c_stride) {
    D sums[kRows][kColumns] = {};
    int64_t k = 0;
    for (; k + kDoubles <= depth; k += kDoubles)
        for (int i = 0; i < kRows; ++i) {
            D row = load(a + i * a_stride + k);
            for (int j = 0; j < kColumns; ++j) sums[i][j] = sums[i][j] + row * load(b + j * b_stride + k);
        }
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kColumns; ++j) {
            double rest = sum_of(sums[i][j]);
            for (int64_t m = k; m < depth; ++m) rest += a[i * a_stride + m] * b[j * b_stride + m];
            c[i * c_stride + j] -= rest;
        }
}

static void subtract_product(const double *a, int64_t a_stride, const double *b, int64_t b_stride, int64_t m, int64_t n,
                             int64_t depth, double *c, int64_t c_stride) {
    constexpr int64_t kDepth = 256;  // so that both operands of a 64 x 64 block stay in the cache
    for (int64_t k = 0; k < depth; k += kDepth) {
        int64_t part = depth - k < kDepth ? depth - k : kDepth;
        for (int64_t i = 0; i < m; i += kCorner)
            for (int64_t j = 0; j < n; j += kCorner) {
                const double *x = a + i * a_stride + k, *y = b + j * b_stride + k;
                double *z = c + i * c_stride + j;
                if (i + kCorner <= m && j + kCorner <= n) {
                    subtract_corner<kCorner, kCorner>(x, a_stride, y, b_stride, part, z, c_stride);
                    continue;
                }
                for (int64_t e = i; e < m && e < i + kCorner; ++e)
                    for (int64_t f = j; f < n && f < j + kCorner; ++f)
                        subtract_corner<1, 1>(a + e * a_stride + k, a_stride, b + f * b_stride + k, b_stride, part,
                                              c + e * c_stride + f, c_stride);
            }
    }
}
