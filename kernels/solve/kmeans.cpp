// Exact k-means of weighted values in one dimension: dynamic programming over sorted values.
//
// best[j][i]: least cost of the first i values in j intervals. The last interval's first value is monotone in i, so a
// layer is found by divide and conquer in n log n (Wang and Song, "Ckmeans.1d.dp", R Journal 2011; Gronlund et al.,
// arXiv 1701.07204).
#include "problem.h"

namespace edgec_solve {

struct Sums {
    const double *weight, *first, *second;  // of the values before i: sums of weight, weight x, weight x^2

    double cost(int64_t from, int64_t to) const {
        double w = weight[to] - weight[from], m = first[to] - first[from];
        double c = second[to] - second[from] - m * m / w;
        return c > 0 ? c : 0;
    }
};

// Values to - 1 of `from`.. of one layer, whose last intervals start between low and high.
static void fill_layer(const Sums &s, const double *previous, double *layer, uint32_t *start, int64_t from, int64_t to,
                       int64_t low, int64_t high) {
    while (from < to) {
        int64_t middle = from + (to - from) / 2, end = high < middle ? high : middle, at = low;
        double best = INFINITY;
        for (int64_t i = low; i <= end; ++i) {
            double c = previous[i] + (i < middle ? s.cost(i, middle) : 0);
            if (c < best) best = c, at = i;
        }
        layer[middle] = best, start[middle] = (uint32_t)at;
        fill_layer(s, previous, layer, start, from, middle, low, at);
        from = middle + 1, low = at;
    }
}

}  // namespace edgec_solve

using namespace edgec_solve;

int edgec_solve_kmeans(const double *values, const double *weights, int64_t n, int32_t count, double *centres) {
    if (!values || !weights || !centres || n < 1 || n > 1 << 24 || count < 1 || count > kMaxLevels)
        return EDGEC_SOLVE_ARGUMENT;
    for (int64_t i = 0; i < n; ++i) {
        if (!(fabs(values[i]) < INFINITY)) return EDGEC_SOLVE_VALUE;
        if (!(weights[i] > 0 && weights[i] < INFINITY) || (i && values[i] < values[i - 1])) return EDGEC_SOLVE_ARGUMENT;
    }
    size_t row = (size_t)n + 1;
    double *memory = (double *)malloc(sizeof(double) * row * 5);
    uint32_t *starts = (uint32_t *)malloc(sizeof(uint32_t) * row * (size_t)count);
    int status = memory && starts ? EDGEC_SOLVE_OK : EDGEC_SOLVE_MEMORY;
    if (status == EDGEC_SOLVE_OK) {
        double *weight = memory, *first = weight + row, *second = first + row, *previous = second + row;
        double *layer = previous + row, centre = 0, total = 0;
        for (int64_t i = 0; i < n; ++i) centre += values[i] * weights[i], total += weights[i];
        centre /= total;  // small numbers lose less in the differences of sums
        weight[0] = first[0] = second[0] = 0;
        for (int64_t i = 0; i < n; ++i) {
            double x = values[i] - centre;
            weight[i + 1] = weight[i] + weights[i];
            first[i + 1] = first[i] + weights[i] * x;
            second[i + 1] = second[i] + weights[i] * x * x;
        }
        Sums s = {weight, first, second};
        previous[0] = 0;
        for (int64_t i = 1; i <= n; ++i) previous[i] = s.cost(0, i), starts[i] = 0;
        for (int32_t j = 1; j < count; ++j) {
            uint32_t *start = starts + (size_t)j * row;
            layer[0] = 0, start[0] = 0;
            fill_layer(s, previous, layer, start, 1, n + 1, 0, n);
            double *swap = previous;
            previous = layer, layer = swap;
        }
        int64_t to = n;
        int32_t found = 0;
        for (int32_t j = count; j-- > 0 && to > 0;) {
            int64_t from = j ? starts[(size_t)j * row + (size_t)to] : 0;
            if (from == to) continue;
            // Anew: differences of the running sums lose weights that are small beside those before them.
            double sum = 0, moment = 0;
            for (int64_t i = from; i < to; ++i) sum += weights[i], moment += weights[i] * (values[i] - values[from]);
            centres[count - 1 - found++] = values[from] + moment / sum;
            to = from;
        }
        for (int32_t j = 0; j < found; ++j) {
            centres[j] = centres[count - found + j];
            if (j && centres[j] < centres[j - 1]) centres[j] = centres[j - 1];  // equal values, rounded differently
        }
        for (int32_t j = found; j < count; ++j) centres[j] = centres[found - 1];
    }
    free(starts);
    free(memory);
    return status;
}
