// Fits for one group of sixteen rows: evenly spaced grids, clip search, alternating least squares.
// Included after lanes.h inside a namespace per instruction set.

struct Group {
    const F *w;      // [n]
    const float *d;  // [n], weights of squared errors
    int n;
};

// HLQ: h and c. Uniform: h[0] = s, c = z. All are float16 values.
struct Params {
    F h[kMaxBits], c;
};

// value = low + step * code, 0 <= code <= top, with the offset that is stored.
struct Grid {
    F step, low, offset;
};

// Levels in ascending order with their codes: the nearest one to a weight.
struct Levels {
    int count;
    F value[kMaxLevels], middle[kMaxLevels];  // middle[i] between value[i] and value[i + 1]
    I code[kMaxLevels];

    void sort() {
        // Bitonic; count is a power of two.
        for (int width = 2; width <= count; width *= 2)
            for (int step = width / 2; step > 0; step /= 2)
                for (int i = 0; i < count; ++i)
                    if (!(i & step)) order(i, i + step, (i & width) == 0);
        for (int i = 0; i + 1 < count; ++i) middle[i] = splat(0.5f) * (value[i] + value[i + 1]);
    }
    void order(int i, int j, bool ascending) {
        I swap = ascending ? value[i] > value[j] : value[j] > value[i];
        F a = value[i], b = value[j];
        I p = code[i], q = code[j];
        value[i] = pick(swap, b, a), value[j] = pick(swap, a, b);
        code[i] = pick(swap, q, p), code[j] = pick(swap, p, q);
    }
    void set(const Params &p, int bits) {
        count = 1 << bits;
        for (int i = 0; i < count; ++i) {
            F v = p.c;
            for (int j = 0; j < bits; ++j) v = (i >> j & 1) ? v + p.h[j] : v - p.h[j];
            value[i] = v, code[i] = splat(i);
        }
        sort();
    }
    template <int kCount>
    LANES F among(const F &w, I *chosen) const {
        F v = value[0];
        I c = code[0];
        for (int i = 1; i < kCount; ++i) {
            I above = w > middle[i - 1];
            v = pick(above, value[i], v), c = pick(above, code[i], c);
        }
        *chosen = c;
        return v;
    }
    LANES F by_halves(const F &w, I *chosen) const {
        int32_t at[kLanes] = {}, codes[kLanes];
        float x[kLanes], values[kLanes];
        store(x, w);
        const float *middles = (const float *)middle, *all = (const float *)value;
        for (int step = count / 2; step > 0; step /= 2)
            for (int l = 0; l < kLanes; ++l) at[l] += x[l] > middles[(at[l] + step - 1) * kLanes + l] ? step : 0;
        for (int l = 0; l < kLanes; ++l) {
            values[l] = all[at[l] * kLanes + l];
            codes[l] = ((const int32_t *)code)[at[l] * kLanes + l];
        }
        *chosen = load(codes);
        return load(values);
    }
    LANES F nearest_to(const F &w, I *chosen) const {
        switch (count) {
            case 2: return among<2>(w, chosen);
            case 4: return among<4>(w, chosen);
            case 8: return among<8>(w, chosen);
            case 16: return among<16>(w, chosen);
            default: return by_halves(w, chosen);
        }
    }
};

LANES F inverse(const F &x) { return pick(x == splat(0.0f), splat(0.0f), splat(1.0f) / x); }

LANES F on_grid(const Grid &g, const F &inverse_step, const F &top, const F &w, F *code) {
    *code = nearest(min(max((w - g.low) * inverse_step, splat(0.0f)), top));
    return g.low + g.step * *code;
}

static Grid grid_over(int kind, float top, const F &lo, const F &hi) {
    Grid g;
    F half_top = splat(0.5f * top);
    // HLQ's largest scale is step 2^(bits - 2): what float16 holds bounds the step.
    g.step = half((hi - lo) * splat(1.0f / top));
    if (kind == EDGEC_SOLVE_HLQ) {
        g.step = half(g.step * splat(0.5f)) * splat(2.0f);
        g.offset = half(lo + g.step * half_top);
        g.low = g.offset - g.step * half_top;
        return g;
    }
    F z = splat(0.0f) - lo * inverse(g.step);
    g.offset = kind == EDGEC_SOLVE_UNIFORM ? nearest(min(max(z, splat(0.0f)), splat(top))) : half(z);
    g.low = splat(0.0f) - g.step * g.offset;
    return g;
}

static F grid_error(const Group &g, const Grid &grid, float top) {
    F total = splat(0.0f), by = inverse(grid.step), last = splat(top), code;
    for (int i = 0; i < g.n; ++i) {
        F r = g.w[i] - on_grid(grid, by, last, g.w[i], &code);
        total = total + splat(g.d[i]) * r * r;
    }
    return total;
}

static void value_range(const Group &g, int kind, F *lo, F *hi) {
    *lo = *hi = g.w[0];
    for (int i = 1; i < g.n; ++i) *lo = min(*lo, g.w[i]), *hi = max(*hi, g.w[i]);
    // An integer zero point is one of the levels.
    if (kind == EDGEC_SOLVE_UNIFORM) *lo = min(*lo, splat(0.0f)), *hi = max(*hi, splat(0.0f));
}

// The best grid over [lo + a range, hi - b range]: a and b coarsely, then around the best in halving steps.
static Grid search_grid(const Group &g, int kind, float top, F *error) {
    F lo, hi, zero = splat(0.0f);
    value_range(g, kind, &lo, &hi);
    F range = hi - lo, a = zero, b = zero;
    Grid best = grid_over(kind, top, lo, hi);
    *error = grid_error(g, best, top);
    auto attempt = [&](const F &at_a, const F &at_b) {
        Grid grid = grid_over(kind, top, lo + at_a * range, hi - at_b * range);
        F e = grid_error(g, grid, top);
        I better = e < *error;
        *error = pick(better, e, *error);
        a = pick(better, at_a, a), b = pick(better, at_b, b);
        best.step = pick(better, grid.step, best.step), best.low = pick(better, grid.low, best.low);
        best.offset = pick(better, grid.offset, best.offset);
    };
    for (int i = 0; i < 36; ++i)
        if (i) attempt(splat(0.08f * (float)(i / 6)), splat(0.08f * (float)(i % 6)));
    for (float step = 0.04f; step > 0.005f; step *= 0.5f) {
        F from_a = a, from_b = b;
        for (int i = 0; i < 9; ++i)
            if (i != 4)
                attempt(max(from_a + splat(step * (float)(i / 3 - 1)), zero),
                        max(from_b + splat(step * (float)(i % 3 - 1)), zero));
    }
    return best;
}

// A grid in the parameters of `kind`.
static Params params_of(const Grid &grid, int kind, int bits) {
    Params p = {};
    if (kind != EDGEC_SOLVE_HLQ) {
        p.h[0] = grid.step, p.c = grid.offset;
        return p;
    }
    for (int j = 0; j < bits; ++j) p.h[j] = half(grid.step * splat(0.5f * (float)(1 << j)));
    p.c = half(grid.low + grid.step * splat(0.5f * (float)((1 << bits) - 1)));
    return p;
}

// Solves A x = b in every lane; A symmetric, positive semidefinite, its lower triangle given. Singular lanes get the
// pseudo-inverse. A and b are overwritten.
static void solve(F (*a)[kMaxPlanes], F *b, int m, F *x) {
    float scale[kMaxPlanes][kLanes];
    for (int i = 0; i < m; ++i) {
        store(scale[i], a[i][i]);
        for (float &s : scale[i]) s = s > 0 ? 1.0f / sqrtf(s) : 0.0f;
    }
    for (int i = 0; i < m; ++i) {
        for (int j = 0; j <= i; ++j) a[i][j] = a[i][j] * load(scale[i]) * load(scale[j]);
        b[i] = b[i] * load(scale[i]);
    }
    F l[kMaxPlanes][kMaxPlanes], pivot[kMaxPlanes];
    I singular = splat(0);
    for (int i = 0; i < m; ++i) {
        for (int j = 0; j <= i; ++j) {
            F t = a[i][j];
            for (int k = 0; k < j; ++k) t = t - l[i][k] * l[j][k] * pivot[k];
            if (j < i) {
                l[i][j] = t / pivot[j];
            } else {
                I small = (t > splat(1e-4f)) ^ splat(-1);
                singular = singular | small;
                pivot[i] = pick(small, splat(1.0f), t);
            }
        }
    }
    for (int i = 0; i < m; ++i) {
        x[i] = b[i];
        for (int k = 0; k < i; ++k) x[i] = x[i] - l[i][k] * x[k];
    }
    for (int i = m; i-- > 0;) {
        x[i] = x[i] / pivot[i];
        for (int k = i + 1; k < m; ++k) x[i] = x[i] - l[k][i] * x[k];
    }
    if (any(singular)) {
        const int32_t *flags = (const int32_t *)&singular;
        for (int lane = 0; lane < kLanes; ++lane) {
            if (!flags[lane]) continue;
            double full[kMaxPlanes][kMaxPlanes], right[kMaxPlanes], left[kMaxPlanes];
            for (int i = 0; i < m; ++i) {
                right[i] = ((const float *)&b[i])[lane];
                for (int j = 0; j <= i; ++j) full[i][j] = full[j][i] = ((const float *)&a[i][j])[lane];
            }
            pseudo_solve(full, right, m, left);
            for (int i = 0; i < m; ++i) ((float *)&x[i])[lane] = (float)left[i];
        }
    }
    for (int i = 0; i < m; ++i) x[i] = x[i] * load(scale[i]);
}

// Chooses codes with p: their error, and the normal equations for better parameters in a and b.
template <int kBits>
static F als_pass(const Group &g, Levels &levels, const Params &p, F (*a)[kMaxPlanes], F *b) {
    F total = splat(0.0f), moment[kBits + 1][kBits + 1], right[kBits + 1];
    for (int i = 0; i <= kBits; ++i) {
        right[i] = splat(0.0f);
        for (int j = 0; j <= i; ++j) moment[i][j] = splat(0.0f);
    }
    levels.set(p, kBits);
    for (int k = 0; k < g.n; ++k) {
        I code;
        F w = g.w[k], d = splat(g.d[k]), wd = w * d;
        F v = kBits <= 4 ? levels.among<kBits <= 4 ? 1 << kBits : 2>(w, &code) : levels.by_halves(w, &code);
        F r = w - v;
        total = total + d * r * r;
        for (int i = 0; i < kBits; ++i) {
            F di = signed_by(code, i, d);
            for (int j = 0; j < i; ++j) moment[i][j] = moment[i][j] + signed_by(code, j, di);
            moment[kBits][i] = moment[kBits][i] + di;
            right[i] = right[i] + signed_by(code, i, wd);
        }
        moment[kBits][kBits] = moment[kBits][kBits] + d;
        right[kBits] = right[kBits] + wd;
    }
    for (int i = 0; i <= kBits; ++i) {
        b[i] = right[i];
        for (int j = 0; j < i; ++j) a[i][j] = moment[i][j];
        a[i][i] = moment[kBits][kBits];
    }
    return total;
}

static F als_pass(int bits, const Group &g, Levels &levels, const Params &p, F (*a)[kMaxPlanes], F *b) {
    switch (bits) {
        case 1: return als_pass<1>(g, levels, p, a, b);
        case 2: return als_pass<2>(g, levels, p, a, b);
        case 3: return als_pass<3>(g, levels, p, a, b);
        case 4: return als_pass<4>(g, levels, p, a, b);
        case 5: return als_pass<5>(g, levels, p, a, b);
        case 6: return als_pass<6>(g, levels, p, a, b);
        case 7: return als_pass<7>(g, levels, p, a, b);
        default: return als_pass<8>(g, levels, p, a, b);
    }
}

LANES Params pick(const I &m, const Params &a, const Params &b, int planes) {
    Params r;
    for (int j = 0; j < planes; ++j) r.h[j] = pick(m, a.h[j], b.h[j]);
    r.c = pick(m, a.c, b.c);
    return r;
}

// Alternates between codes and parameters; *best and *error keep the best step of every lane. Returns the last step.
static Params alternate(const Group &g, Levels &levels, int bits, int iterations, Params p, Params *best, F *error) {
    F a[kMaxPlanes][kMaxPlanes], b[kMaxPlanes], x[kMaxPlanes];
    for (int it = 0;; ++it) {
        F e = als_pass(bits, g, levels, p, a, b);
        I better = e < *error;
        *error = pick(better, e, *error);
        *best = pick(better, p, *best, bits);
        if (it == iterations) return p;
        solve(a, b, bits + 1, x);
        I changed = splat(0);
        for (int j = 0; j <= bits; ++j) {
            F next = half(x[j]), &old = j < bits ? p.h[j] : p.c;
            changed = changed | ((next == old) ^ splat(-1));
            old = next;
        }
        if (!any(changed)) return p;
    }
}

// Parameters of a group by the method of `o`.
static Params fit(const Group &g, Levels &levels, const edgec_solve_options &o) {
    float top = (float)((1 << o.bits) - 1);
    F error = splat(INFINITY), lo, hi;
    value_range(g, o.kind, &lo, &hi);
    Grid whole = grid_over(o.kind, top, lo, hi);
    Params best = params_of(whole, o.kind, o.bits);
    if (o.fit == EDGEC_SOLVE_MIN_MAX) return best;
    if (o.fit == EDGEC_SOLVE_PUBLISHED) {
        Params ignored = best;
        return alternate(g, levels, o.bits, o.iterations, best, &ignored, &error);
    }
    if (o.fit == EDGEC_SOLVE_CLIP) return params_of(search_grid(g, o.kind, top, &error), o.kind, o.bits);
    alternate(g, levels, o.bits, o.iterations, best, &best, &error);
    // So that no uniform grid, its zero point an integer or not, is better.
    const int kinds[] = {EDGEC_SOLVE_UNIFORM, EDGEC_SOLVE_UNIFORM_REAL};
    for (int kind : kinds) {
        F of_grid;
        Params grid = params_of(search_grid(g, kind, top, &of_grid), EDGEC_SOLVE_HLQ, o.bits);
        alternate(g, levels, o.bits, o.iterations, grid, &best, &error);
    }
    return best;
}

// Level `code` of the table of each of the rows row .. row + 15.
static F table_level(const Problem &p, int64_t row, const I &code) {
    float values[kLanes];
    int64_t per_table = p.options.rows_per_table ? p.options.rows_per_table : p.n;
    for (int l = 0; l < kLanes; ++l) {
        int64_t at = row + l < p.n ? row + l : p.n - 1;
        values[l] = p.options.tables[(at / per_table << p.options.bits) + ((const int32_t *)&code)[l]];
    }
    return load(values);
}

LANES bool is_even(const edgec_solve_options &o) {
    return o.kind == EDGEC_SOLVE_UNIFORM || o.kind == EDGEC_SOLVE_UNIFORM_REAL;
}

// The nearest code by parameters or a table.
struct Chooser {
    bool even = false;
    Grid grid = {};
    F by = {}, top = {};
    const Levels *levels = nullptr;

    void set(const Problem &p, int64_t row, const Params &params, Levels &all) {
        const edgec_solve_options &o = p.options;
        even = is_even(o), levels = &all;
        if (even) {
            grid.step = params.h[0], grid.low = splat(0.0f) - params.h[0] * params.c;
            by = inverse(grid.step), top = splat((float)((1 << o.bits) - 1));
        } else if (o.kind == EDGEC_SOLVE_HLQ) {
            all.set(params, o.bits);
        } else {
            all.count = 1 << o.bits;
            for (int i = 0; i < all.count; ++i)
                all.code[i] = splat(i), all.value[i] = table_level(p, row, all.code[i]);
            all.sort();
        }
    }
    LANES F nearest_to(const F &w, I *code) const {
        if (!even) return levels->nearest_to(w, code);
        F c, v = on_grid(grid, by, top, w, &c);
        *code = integer(c);
        return v;
    }
};

// The weight that a code stands for, as the chooser computes it.
static F value_of(const Problem &p, int64_t row, const Params &params, const I &code) {
    const edgec_solve_options &o = p.options;
    if (o.kind == EDGEC_SOLVE_TABLE) return table_level(p, row, code);
    if (is_even(o)) return splat(0.0f) - params.h[0] * params.c + params.h[0] * real(code);
    F v = params.c;
    for (int j = 0; j < o.bits; ++j) v = v + signed_by(code, j, params.h[j]);
    return v;
}

// Columns first .. first + n - 1 of rows row .. row + 15, transposed; rows beyond the last are zero. False for a weight
// that float16 cannot hold.
static bool take(const Problem &p, int64_t row, int64_t first, int n, F *w) {
    float *out = (float *)w;
    uint32_t largest = 0;
    for (int l = 0; l < kLanes; ++l) {
        const float *from = p.w + (row + l) * p.k + first;
        if (row + l >= p.n) {
            for (int i = 0; i < n; ++i) out[i * kLanes + l] = 0.0f;
            continue;
        }
        for (int i = 0; i < n; ++i) {
            uint32_t u;
            memcpy(&u, from + i, sizeof u);
            u &= 0x7fffffffu;
            largest = u > largest ? u : largest;
            out[i * kLanes + l] = from[i];
        }
    }
    return largest <= 0x477fe000u;
}

static void write_codes(const Problem &p, int64_t row, int64_t first, int n, const I *codes) {
    const int32_t *from = (const int32_t *)codes;
    for (int l = 0; l < kLanes && row + l < p.n; ++l)
        for (int i = 0; i < n; ++i) p.codes[(row + l) * p.k + first + i] = (uint8_t)from[i * kLanes + l];
}

static uint16_t half_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    uint32_t sign = u >> 16 & 0x8000u, size = u & 0x7fffffffu;
    if (size < 0x38800000u) return (uint16_t)(sign | (uint32_t)(int32_t)lrintf(fabsf(x) * 16777216.0f));
    return (uint16_t)(sign | (size - 0x38000000u) >> 13);
}

static void write_params(const Problem &p, int64_t row, int64_t group, const Params &params) {
    int64_t groups = p.groups();
    for (int l = 0; l < kLanes && row + l < p.n; ++l) {
        int64_t at = (row + l) * groups + group;
        for (int j = 0; j < p.planes(); ++j) p.scale[j * p.n * groups + at] = half_bits(((const float *)&params.h[j])[l]);
        p.offset[at] = half_bits(((const float *)&params.c)[l]);
    }
}

struct GroupScratch {
    Levels levels;
    F w[kMaxGroup];
    I codes[kMaxGroup];
};

static int groups_tile(const Problem &p, int64_t tile, void *scratch) {
    GroupScratch &s = *(GroupScratch *)scratch;
    int64_t row = tile * kLanes;
    for (int64_t g = 0; g < p.groups(); ++g) {
        int64_t first = g * p.options.group;
        int n = (int)(p.k - first < p.options.group ? p.k - first : p.options.group);
        if (!take(p, row, first, n, s.w)) return EDGEC_SOLVE_VALUE;
        Params params = fit({s.w, p.d + first, n}, s.levels, p.options);
        Chooser chooser;
        chooser.set(p, row, params, s.levels);
        for (int i = 0; i < n; ++i) chooser.nearest_to(s.w[i], &s.codes[i]);
        write_codes(p, row, first, n, s.codes);
        write_params(p, row, g, params);
    }
    return EDGEC_SOLVE_OK;
}
