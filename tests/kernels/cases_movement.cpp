// gather, transpose, slice, concat, pad, expand, cast, copy, iota.
#include <limits>

#include "reference.h"

using namespace kt;

static const double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();
static const uint8_t kEvery[] = {F32, F16, BF16, I8, U8, I32, I64, BOOL};

CASES(gather) {
    auto reference = [](Case &c) {
        const Operand &table = c.op[1], &idx = c.op[2];
        const int64_t n = idx.dim(0), rows = table.dim(-2), inner = table.dim(-1);
        for (int64_t e = 0; e < c.op[0].count(); ++e) {
            int64_t i = idx.whole[(size_t)(e / inner % n)];
            if (i < 0) i += rows;
            ref_move(&c.op[0], e, table, (e / inner / n * rows + i) * inner + e % inner);
        }
    };
    auto add = [&](uint8_t dtype, uint8_t index, int64_t outer, int64_t rows, int64_t inner, int64_t n,
                   Format format) -> Case & {
        Case &c = s.add(text("dtype %d format %d [%lld, %lld, %lld] n %lld", dtype, format, (long long)outer,
                             (long long)rows, (long long)inner, (long long)n));
        c.out(is_float(dtype) ? (uint8_t)F32 : dtype, {outer, n, inner});
        if (format == PANEL16) c.in(dtype, {rows, inner}, PANEL16);
        else c.in(dtype, {outer, rows, inner});
        c.in(index, {n}, (double)-rows, (double)(rows - 1));
        c.reference = reference;
        c.tolerance = 0;
        return c;
    };
    for (const uint8_t dtype : kEvery)
        for (const uint8_t index : {I32, I64}) {
            add(dtype, index, s.rng.range(1, 3), s.rng.range(1, 40), s.rng.range(1, 70), s.rng.range(1, 9), PLAIN);
            add(dtype, index, 1, 17, 300, 130, PLAIN);
            if (is_float(dtype))
                for (const int64_t rows : {1, 15, 16, 17, 50})
                    add(dtype, index, 1, rows, s.rng.range(1, 70), 5, PANEL16);
        }
    // Just outside, and far outside: the flag is raised and the run stays in bounds.
    for (const int64_t bad : {(int64_t)8, (int64_t)-9, INT64_MAX, INT64_MIN}) {
        for (const Format format : {PLAIN, PANEL16}) {
            Case &c = add(F32, I64, 1, 8, 20, 3, format);
            c.op[2].whole[1] = bad;
            c.fault = true;
        }
    }
    add(F32, I32, 1, 8, 20, 0, PLAIN);
}

CASES(transpose) {
    auto add = [&](uint8_t dtype, const Dims &x, const std::vector<int64_t> &perm) {
        Case &c = s.add(text("dtype %d rank %zu", dtype, x.size()));
        for (const int64_t p : perm) c.label += text(" %lld", (long long)x[(size_t)p]);
        Dims y;
        for (const int64_t p : perm) y.push_back(x[(size_t)p]);
        c.out(dtype, y).in(dtype, x).ints(perm);
        c.reference = [](Case &k) {
            for (int64_t e = 0; e < k.op[0].count(); ++e) {
                const Dims at = ref_index(k.op[0].view, e);
                Dims from(at.size());
                for (size_t d = 0; d < at.size(); ++d) from[(size_t)k.i[d]] = at[d];
                ref_move(&k.op[0], e, k.op[1], ref_flat(k.op[1].view, from));
            }
        };
        c.tolerance = 0;
    };
    for (const uint8_t dtype : kEvery) {
        add(dtype, {s.rng.range(1, 70), s.rng.range(1, 70)}, {1, 0});
        add(dtype, {2, 3, s.rng.range(1, 9), s.rng.range(1, 40)}, {0, 3, 1, 2});
        add(dtype, {2, 5, 4, 7}, {0, 2, 1, 3});
    }
    add(F32, {1, 30, 31, 3}, {0, 3, 1, 2});
    add(F32, {2, 3, 33, 35}, {0, 2, 3, 1});
    add(F32, {1031, 33}, {1, 0});
    add(F32, {33, 1031}, {1, 0});
    add(F32, {2, 1, 3, 1, 5, 1}, {5, 4, 3, 2, 1, 0});
    add(F32, {40, 50, 60}, {1, 0, 2});
    add(I64, {2, 3, 2, 3, 2, 3, 2, 3}, {7, 0, 6, 1, 5, 2, 4, 3});
    add(F32, {4, 5, 6}, {0, 1, 2});
    add(F32, {}, {});
    add(F32, {3, 0, 2}, {2, 1, 0});
    for (int n = 0; n < 40; ++n) {  // any rank, any permutation
        Dims x;
        std::vector<int64_t> perm;
        for (int64_t d = s.rng.range(1, 5); d > 0; --d) {
            perm.insert(perm.begin() + s.rng.range(0, (int64_t)perm.size()), (int64_t)x.size());
            x.push_back(s.rng.range(1, 7));
        }
        add(kEvery[s.rng.range(0, 7)], x, perm);
    }
}

CASES(slice) {
    auto add = [&](uint8_t dtype, const Dims &y, const Dims &x, std::vector<int64_t> starts,
                   const std::vector<int64_t> &steps) {
        Case &c = s.add(text("dtype %d rank %zu", dtype, x.size()));
        for (size_t d = 0; d < x.size(); ++d)
            c.label += text(" %lld+%lld*%lld of %lld", (long long)starts[d], (long long)y[d], (long long)steps[d],
                            (long long)x[d]);
        starts.insert(starts.end(), steps.begin(), steps.end());
        c.out(dtype, y).in(dtype, x).ints(starts);
        c.reference = [](Case &k) {
            const size_t rank = k.op[0].view.rank;
            for (int64_t e = 0; e < k.op[0].count(); ++e) {
                Dims at = ref_index(k.op[0].view, e);
                for (size_t d = 0; d < rank; ++d) at[d] = k.i[d] + at[d] * k.i[rank + d];
                ref_move(&k.op[0], e, k.op[1], ref_flat(k.op[1].view, at));
            }
        };
        c.tolerance = 0;
    };
    for (const uint8_t dtype : kEvery) {
        add(dtype, {5, 17}, {9, 40}, {2, 3}, {1, 2});
        add(dtype, {9, 40}, {9, 40}, {8, 39}, {-1, -1});
        add(dtype, {2, 3, 5}, {2, 7, 5}, {0, 6, 0}, {1, -3, 1});
        add(dtype, {4, 11}, {4, 33}, {0, 22}, {1, 1});
    }
    add(F32, {3, 200, 64}, {3, 201, 64}, {0, 1, 0}, {1, 1, 1});
    add(F32, {1, 1}, {5, 5}, {4, 4}, {INT64_MIN, 0});  // of a single element the step says nothing
    add(F32, {0, 3}, {5, 3}, {77, -1}, {0, 0});
    add(F32, {}, {}, {}, {});
    for (int n = 0; n < 40; ++n) {
        Dims x, y;
        std::vector<int64_t> starts, steps;
        for (int64_t d = s.rng.range(1, 4); d > 0; --d) {
            const int64_t size = s.rng.range(1, 20), start = s.rng.range(0, size - 1),
                          step = s.rng.range(1, 4) * (s.rng.range(0, 1) ? 1 : -1);
            x.push_back(size);
            starts.push_back(start);
            steps.push_back(step);
            y.push_back(1 + s.rng.range(0, (step > 0 ? size - 1 - start : start) / std::abs(step)));
        }
        add(kEvery[s.rng.range(0, 7)], y, x, starts, steps);
    }
}

CASES(concat) {
    auto add = [&](uint8_t dtype, Dims dims, int64_t axis, const std::vector<int64_t> &parts) {
        Case &c = s.add(text("dtype %d rank %zu axis %lld of %zu", dtype, dims.size(), (long long)axis, parts.size()));
        int64_t sum = 0;
        for (const int64_t p : parts) sum += p;
        dims[(size_t)axis] = sum;
        c.out(dtype, dims);
        for (const int64_t p : parts) {
            dims[(size_t)axis] = p;
            c.in(dtype, dims);
        }
        c.ints({axis});
        c.reference = [](Case &k) {
            const size_t axis = (size_t)k.i[0];
            for (int64_t e = 0; e < k.op[0].count(); ++e) {
                Dims at = ref_index(k.op[0].view, e);
                size_t n = 1;
                while (at[axis] >= k.op[n].dim((int)axis)) at[axis] -= k.op[n++].dim((int)axis);
                ref_move(&k.op[0], e, k.op[n], ref_flat(k.op[n].view, at));
            }
        };
        c.tolerance = 0;
    };
    for (const uint8_t dtype : kEvery) {
        add(dtype, {3, 0, 7}, 1, {2, 5, 1});
        add(dtype, {3, 4, 0}, 2, {17, 1, 0, 5});
        add(dtype, {0, 6}, 0, {1, 4});
    }
    add(F32, {0}, 0, {1});
    add(F32, {2, 0, 100, 100}, 1, {3, 5});
    add(F32, {40, 0}, 1, {700, 333, 1000});
    add(I64, {5, 0}, 1, std::vector<int64_t>(62, 1));
    add(F32, {0, 3}, 1, {1, 2});
}

CASES(pad) {
    auto add = [&](const Dims &x, const std::vector<int64_t> &begin, const std::vector<int64_t> &end, int64_t mode) {
        Case &c = s.add(text("mode %lld rank %zu last %lld+%lld+%lld", (long long)mode, x.size(),
                             (long long)begin.back(), (long long)x.back(), (long long)end.back()));
        Dims y;
        for (size_t d = 0; d < x.size(); ++d) y.push_back(x[d] + begin[d] + end[d]);
        std::vector<int64_t> ints = begin;
        ints.push_back(mode);
        c.out(F32, y).in(F32, x).ints(ints).floats({-1.5f});
        c.reference = [](Case &k) {
            const int64_t mode = k.i.back();
            for (int64_t e = 0; e < k.op[0].count(); ++e) {
                Dims at = ref_index(k.op[0].view, e);
                bool inside = true;
                for (size_t d = 0; d < at.size(); ++d) {
                    const int64_t n = k.op[1].dim((int)d);
                    at[d] -= k.i[d];
                    if (mode == 1) at[d] = std::min(std::max<int64_t>(at[d], 0), n - 1);
                    if (mode == 2) at[d] = at[d] < 0 ? -at[d] : at[d] >= n ? 2 * n - 2 - at[d] : at[d];
                    inside = inside && at[d] >= 0 && at[d] < n;
                }
                k.op[0].real[(size_t)e] = inside ? k.op[1].real[(size_t)ref_flat(k.op[1].view, at)] : (double)k.f[0];
            }
        };
        c.tolerance = 0;
    };
    for (const int64_t mode : {0, 1, 2}) {
        for (const int64_t n : {3, 4, 7, 8, 16, 17, 40}) add({n}, {2}, {1}, mode);
        add({1, 14, 15, 3}, {0, 1, 1, 0}, {0, 1, 1, 0}, mode);
        add({2, 3, 5}, {1, 2, 4}, {1, 0, 3}, mode);
        add({4, 6}, {0, 0}, {0, 0}, mode);
        add({200, 190}, {1, 3}, {2, 1}, mode);
        add({1, 1}, {0, 0}, {0, 0}, mode);
    }
    add({2, 0}, {1, 2}, {0, 3}, 0);
    add({1, 2}, {3, 5}, {4, 0}, 1);
}

CASES(expand) {
    auto add = [&](uint8_t dtype, const Dims &y, const Dims &x) {
        Case &c = s.add(text("dtype %d rank %zu from %zu", dtype, y.size(), x.size()));
        c.out(dtype, y).in(dtype, x);
        c.reference = [](Case &k) {
            for (int64_t e = 0; e < k.op[0].count(); ++e)
                ref_move(&k.op[0], e, k.op[1], ref_flat(k.op[1].view, ref_index(k.op[0].view, e)));
        };
        c.tolerance = 0;
    };
    for (const uint8_t dtype : kEvery) {
        add(dtype, {4, s.rng.range(1, 40)}, {1});
        add(dtype, {4, 33}, {33});
        add(dtype, {2, 3, 5}, {2, 1, 5});
        add(dtype, {2, 3, 5}, {3, 1});
    }
    add(F32, {3, 20000}, {3, 1});
    add(F32, {}, {});
    add(F32, {7}, {});
    add(F32, {3, 0}, {3, 1});
}

// Float to integer truncates and saturates, NaN gives 0; integers wrap; BOOL is "not zero".
static int64_t to_whole(uint8_t dtype, const Operand &x, int64_t e) {
    const int bits = dtype == I64 ? 64 : dtype == I32 ? 32 : 8;
    if (!is_float(x.view.dtype)) {
        const int64_t v = x.whole[(size_t)e];
        if (dtype == BOOL) return v != 0;
        if (dtype == U8) return (uint8_t)v;
        return bits == 64 ? v : bits == 32 ? (int32_t)v : (int8_t)v;
    }
    const double v = x.real[(size_t)e];
    if (dtype == BOOL) return v != 0;
    if (isnan(v)) return 0;
    if (dtype == U8) return (int64_t)std::min(std::max(trunc(v), 0.0), 255.0);
    if (v >= ldexp(1, bits - 1)) return bits == 64 ? INT64_MAX : ((int64_t)1 << (bits - 1)) - 1;
    if (v <= -ldexp(1, bits - 1)) return bits == 64 ? INT64_MIN : -((int64_t)1 << (bits - 1));
    return (int64_t)v;
}

CASES(cast) {
    for (const uint8_t from : kEvery) {
        for (const uint8_t to : kEvery) {
            for (const int64_t n : {s.rng.range(1, 40), s.rng.range(100, 300), (int64_t)16500}) {
                Case &c = s.add(text("%d to %d n %lld", from, to, (long long)n));
                c.out(to, {n});
                if (is_float(from)) c.in(from, {n}, -300, 300);
                else c.in(from, {n});
                const std::vector<double> reals = {kNan,         kInf,          -kInf,  0.5,     -0.5,          -0.0,
                                                   2147483648.0, -2147483648.0, 9.3e18, -9.3e18, 65520,         65519,
                                                   1e-8,         3e-8,          255.9,  -128.9,  1.00048828125, 3e38};
                const std::vector<int64_t> wholes = {INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN, 128,
                                                     -129,      255,       256,       16777217,  0};
                for (size_t j = 0; n > 40 && j < (is_float(from) ? reals.size() : wholes.size()); ++j) {
                    const size_t at = (size_t)s.rng.range(0, n - 1);
                    if (is_float(from)) c.op[1].real[at] = round_to(from, reals[j]);
                    else if (from == I32) c.op[1].whole[at] = (int32_t)wholes[j];
                    else if (from == I64) c.op[1].whole[at] = wholes[j];
                }
                c.reference = [](Case &k) {
                    const uint8_t to = k.op[0].view.dtype, from = k.op[1].view.dtype;
                    for (int64_t e = 0; e < k.op[0].count(); ++e) {
                        if (!is_float(to)) k.op[0].whole[(size_t)e] = to_whole(to, k.op[1], e);
                        else if (is_float(from)) k.op[0].real[(size_t)e] = round_to(to, k.op[1].real[(size_t)e]);
                        else
                            k.op[0].real[(size_t)e] =
                                round_to(to, (double)(float)k.op[1].whole[(size_t)e]);  // by way of f32
                    }
                };
                c.scale = ELEMENT;
                c.tolerance = 0;
            }
        }
    }
}

CASES(copy) {
    for (const uint8_t dtype : kEvery) {
        for (const int64_t n : {s.rng.range(1, 40), (int64_t)16384, (int64_t)50000}) {
            Case &c = s.add(text("dtype %d n %lld", dtype, (long long)n));
            c.out(dtype, {1, n, 1}).in(dtype, {n});
            c.reference = [](Case &k) {
                k.op[0].real = k.op[1].real;
                k.op[0].whole = k.op[1].whole;
            };
            c.tolerance = 0;
        }
    }
}

CASES(iota) {
    struct Range { int64_t n, start, step; };
    for (const Range &r : {Range{1, 5, 9}, Range{17, -3, 2}, Range{20000, 100, -7}, Range{9, INT64_MAX - 2, 1},
                           Range{0, 1, 1}, Range{5, 4, INT64_MIN}}) {
        Case &c = s.add(text("n %lld start %lld step %lld", (long long)r.n, (long long)r.start, (long long)r.step));
        c.out(I64, {r.n}).ints({r.start, r.step});
        c.reference = [](Case &k) {
            for (size_t e = 0; e < k.op[0].whole.size(); ++e)
                k.op[0].whole[e] = (int64_t)((uint64_t)k.i[0] + (uint64_t)k.i[1] * e);
        };
    }
}
