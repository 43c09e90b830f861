// Compensated rounding: the error of every column is passed on to the columns behind it (GPTQ), then coordinate descent.
// Included after groups.h inside a namespace per instruction set.
//
// With A the damped H and U its factor (A^-1 = U^T U), tr(E A E^T) of a row is the sum over columns of
// ((t_k - q_k) / U_kk)^2, t_k the weight with all earlier errors passed on. For given parameters p of a group and its
// codes, those errors are e = (t - B p) U_gg^-1, linear in p: the refit is an exact least squares problem.

constexpr int kVecs = 2;  // vectors of rows per tile
constexpr int kAtOnce = kParts == 1 ? 8 : kParts == 2 ? 2 : 1;  // columns whose sums fit the registers

struct TileScratch {
    Levels levels;
    float block[kMaxGroup * kMaxGroup];  // of U or A, [n, n]
    F weight[kVecs][kMaxGroup];
    F now[kVecs][kMaxGroup];  // weights with the errors of earlier groups passed on; in the descent gradients
    F work[kMaxGroup];
    F plane[kMaxPlanes][kMaxGroup], through[kMaxPlanes][kMaxGroup];
    F trial_errors[kMaxGroup], best_errors[kMaxGroup];
    I trial_codes[kMaxGroup], best_codes[kMaxGroup];
};

// What outlives a group: errors passed on, in the descent w - q, and the codes, [k][kVecs]; params [groups][kVecs].
struct Tile {
    F *errors;
    I *codes;
    Params *params;
};

// sums[c][v] = sum of errors[i][v] * panel[i][c] over i in 0..k - 1, in that order.
static void multiply(const F *errors, int64_t k, const float *panel, F (*sums)[kVecs]) {
    for (int c = 0; c < kPanel; c += kAtOnce) {
        F s[kAtOnce][kVecs];
        for (auto &row : s)
            for (F &x : row) x = splat(0.0f);
        for (int64_t i = 0; i < k; ++i)
            for (int j = 0; j < kAtOnce; ++j) {
                F u = splat(panel[i * kPanel + c + j]);
                for (int v = 0; v < kVecs; ++v) s[j][v] = s[j][v] + errors[i * kVecs + v] * u;
            }
        for (int j = 0; j < kAtOnce; ++j)
            for (int v = 0; v < kVecs; ++v) sums[c + j][v] = s[j][v];
    }
}

// x U = b by substitution; x may be b.
static void through(const F *b, const float *u, int n, F *work, F *x) {
    for (int k = 0; k < n; ++k) work[k] = b[k];
    for (int k = 0; k < n; ++k) {
        F e = work[k] * splat(1.0f / u[k * n + k]);
        x[k] = e;
        for (int m = k + 1; m < n; ++m) work[m] = work[m] - e * splat(u[k * n + m]);
    }
}

// Rounds column by column; returns the sum of squared passed-on errors.
static F round_columns(const Chooser &chooser, const F *now, const float *u, int n, bool frozen, F *work, I *codes,
                       F *errors) {
    F total = splat(0.0f);
    for (int k = 0; k < n; ++k) work[k] = now[k];
    for (int k = 0; k < n; ++k) {
        F q = chooser.nearest_to(frozen ? now[k] : work[k], &codes[k]);
        F e = (work[k] - q) * splat(1.0f / u[k * n + k]);
        errors[k] = e, total = total + e * e;
        for (int m = k + 1; m < n; ++m) work[m] = work[m] - e * splat(u[k * n + m]);
    }
    return total;
}

// The planes that parameters multiply: HLQ the signs of each bit and ones; uniform code - z. Returns how many.
static int planes_of(const edgec_solve_options &o, const Params &p, const I *codes, int n, F (*plane)[kMaxGroup]) {
    if (o.kind == EDGEC_SOLVE_HLQ) {
        for (int k = 0; k < n; ++k) {
            for (int j = 0; j < o.bits; ++j) plane[j][k] = signed_by(codes[k], j, splat(1.0f));
            plane[o.bits][k] = splat(1.0f);
        }
        return o.bits + 1;
    }
    for (int k = 0; k < n; ++k) plane[0][k] = real(codes[k]) - p.c;
    return 1;
}

LANES F &param(const edgec_solve_options &o, Params &p, int j) {
    return o.kind == EDGEC_SOLVE_HLQ && j == o.bits ? p.c : p.h[j];
}

// Adds x to the parameters, rounded to float16; x becomes what was really added.
static void move_params(const edgec_solve_options &o, Params &p, int planes, F *x) {
    for (int j = 0; j < planes; ++j) {
        F &at = param(o, p, j), to = half(at + x[j]);
        x[j] = to - at, at = to;
    }
}

// Normal equations of the planes under a quadratic form: products[i] is the form times plane i.
static void normal_equations(int planes, int n, const F (*plane)[kMaxGroup], const F (*product)[kMaxGroup],
                             const F *target, F (*a)[kMaxPlanes], F *b) {
    for (int i = 0; i < planes; ++i) {
        b[i] = splat(0.0f);
        for (int k = 0; k < n; ++k) b[i] = b[i] + target[k] * plane[i][k];
        for (int j = 0; j <= i; ++j) {
            a[i][j] = splat(0.0f);
            for (int k = 0; k < n; ++k) a[i][j] = a[i][j] + product[i][k] * plane[j][k];
        }
    }
}

// Rounds, then refits and rounds again; the best of each lane is in *params, best_codes and best_errors. False when the
// errors of a lane leave float32, as they do for a U that is not finite.
static bool solve_group(const Problem &p, int64_t row, const float *d, int n, int v, TileScratch &s, Params *params) {
    const edgec_solve_options &o = p.options;
    Params trial = {};
    if (o.kind != EDGEC_SOLVE_TABLE) trial = fit({s.now[v], d, n}, s.levels, o);
    F best = splat(INFINITY);
    auto keep = [&](const F &total) {
        I better = total < best;
        best = pick(better, total, best);
        *params = pick(better, trial, *params, kMaxBits);
        for (int k = 0; k < n; ++k) {
            s.best_codes[k] = pick(better, s.trial_codes[k], s.best_codes[k]);
            s.best_errors[k] = pick(better, s.trial_errors[k], s.best_errors[k]);
        }
    };
    for (int it = 0;; ++it) {
        Chooser chooser;
        chooser.set(p, row, trial, s.levels);
        keep(round_columns(chooser, s.now[v], s.block, n, o.frozen != 0, s.work, s.trial_codes, s.trial_errors));
        if (it == o.refits || o.kind == EDGEC_SOLVE_TABLE) return !any((best < splat(INFINITY)) ^ splat(-1));
        int planes = planes_of(o, trial, s.trial_codes, n, s.plane);
        for (int i = 0; i < planes; ++i) through(s.plane[i], s.block, n, s.work, s.through[i]);
        F a[kMaxPlanes][kMaxPlanes], b[kMaxPlanes], x[kMaxPlanes], total = splat(0.0f);
        normal_equations(planes, n, s.through, s.through, s.trial_errors, a, b);
        solve(a, b, planes, x);
        move_params(o, trial, planes, x);
        for (int k = 0; k < n; ++k) {
            F e = s.trial_errors[k];
            for (int i = 0; i < planes; ++i) e = e - x[i] * s.through[i][k];
            s.trial_errors[k] = e, total = total + e * e;
        }
        keep(total);
    }
}

// Coordinate descent on tr(E A E^T) in one group: each code to the level nearest to its minimum, then the parameters.
// On entry s.now holds the gradients E A of the group and s.block its part of A.
static void descend(const Problem &p, int64_t row, int n, int v, TileScratch &s, Params *params, F *errors, I *codes) {
    const edgec_solve_options &o = p.options;
    const float *h = s.block;
    F *gradient = s.now[v];
    Chooser chooser;
    chooser.set(p, row, *params, s.levels);
    for (int k = 0; k < n; ++k, h += n) {
        F &error = errors[k * kVecs], w = s.weight[v][k], old = w - error;
        I code;
        F q = chooser.nearest_to(old + gradient[k] * splat(1.0f / h[k]), &code), step = q - old;
        // A tie or a rounding error is no reason to move.
        I move = step * (splat(2.0f) * gradient[k] - step * splat(h[k])) > splat(0.0f);
        if (!any(move)) continue;
        step = pick(move, step, splat(0.0f));
        error = pick(move, w - q, error);
        codes[k * kVecs] = pick(move, code, codes[k * kVecs]);
        for (int m = 0; m < n; ++m) gradient[m] = gradient[m] - step * splat(h[m]);
    }
    if (o.kind == EDGEC_SOLVE_TABLE) return;
    for (int k = 0; k < n; ++k) s.trial_codes[k] = codes[k * kVecs];
    int planes = planes_of(o, *params, s.trial_codes, n, s.plane);
    for (int i = 0; i < planes; ++i)
        for (int m = 0; m < n; ++m) {
            F t = splat(0.0f);
            for (int k = 0; k < n; ++k) t = t + s.plane[i][k] * splat(s.block[m * n + k]);
            s.through[i][m] = t;
        }
    F a[kMaxPlanes][kMaxPlanes], b[kMaxPlanes], scaled[kMaxPlanes][kMaxPlanes], right[kMaxPlanes], x[kMaxPlanes];
    normal_equations(planes, n, s.plane, s.through, gradient, a, b);
    memcpy(scaled, a, sizeof a), memcpy(right, b, sizeof b);
    solve(scaled, right, planes, x);
    Params next = *params;
    move_params(o, next, planes, x);
    F gain = splat(0.0f);
    for (int i = 0; i < planes; ++i) {
        F t = splat(2.0f) * b[i];
        for (int j = 0; j < planes; ++j) t = t - (j <= i ? a[i][j] : a[j][i]) * x[j];
        gain = gain + x[i] * t;
    }
    I better = gain > splat(0.0f);
    *params = pick(better, next, *params, kMaxBits);
    for (int k = 0; k < n; ++k) {
        F e = errors[k * kVecs];
        for (int i = 0; i < planes; ++i) e = e - x[i] * s.plane[i][k];
        errors[k * kVecs] = pick(better, e, errors[k * kVecs]);
    }
}

// Replaces the passed-on errors of the tile by w - q.
static void start_descent(const Problem &p, int64_t row, TileScratch &s, Tile &t) {
    const edgec_solve_options &o = p.options;
    for (int64_t g = 0; g < p.groups(); ++g) {
        int64_t first = g * o.group;
        int n = (int)(p.k - first < o.group ? p.k - first : o.group);
        for (int v = 0; v < kVecs; ++v) {
            take(p, row + v * kLanes, first, n, s.weight[v]);
            for (int k = 0; k < n; ++k) {
                int64_t at = (first + k) * kVecs + v;
                t.errors[at] = s.weight[v][k] - value_of(p, row + v * kLanes, t.params[g * kVecs + v], t.codes[at]);
            }
        }
    }
}

// Columns first .. first + n - 1 of the same rows of a matrix in panels.
static void take_block(const Problem &p, const float *panels, int64_t first, int n, float *block) {
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) {
            int64_t column = first + j;
            block[i * n + j] = panels[(column / kPanel * p.k + first + i) * kPanel + column % kPanel];
        }
}

static int compensated_tile(const Problem &p, int64_t tile, void *scratch) {
    const edgec_solve_options &o = p.options;
    TileScratch &s = *(TileScratch *)scratch;
    Tile t;
    t.errors = (F *)((char *)scratch + sizeof(TileScratch));
    t.codes = (I *)(t.errors + p.k * kVecs);
    t.params = (Params *)(t.codes + p.k * kVecs);
    int64_t row = tile * kLanes * kVecs;
    for (int sweep = -1; sweep < o.sweeps; ++sweep)  // -1: compensated rounding
        for (int64_t g = 0; g < p.groups(); ++g) {
            int64_t first = g * o.group;
            int n = (int)(p.k - first < o.group ? p.k - first : o.group);
            const float *panels = sweep < 0 ? p.u_panels : p.h_panels;
            for (int v = 0; v < kVecs; ++v)
                if (!take(p, row + v * kLanes, first, n, s.weight[v])) return EDGEC_SOLVE_VALUE;
            for (int c = 0; c < n; c += kPanel) {
                F sums[kPanel][kVecs];
                multiply(t.errors, sweep < 0 ? first : p.k, panels + (first + c) * p.k, sums);
                for (int j = 0; j < kPanel && c + j < n; ++j)
                    for (int v = 0; v < kVecs; ++v)
                        s.now[v][c + j] = sweep < 0 ? s.weight[v][c + j] - sums[j][v] : sums[j][v];
            }
            take_block(p, panels, first, n, s.block);
            for (int v = 0; v < kVecs; ++v) {
                int64_t at = row + v * kLanes;
                F *errors = t.errors + first * kVecs + v;
                I *codes = t.codes + first * kVecs + v;
                Params &params = t.params[g * kVecs + v];
                if (sweep >= 0) {
                    descend(p, at, n, v, s, &params, errors, codes);
                    continue;
                }
                if (!solve_group(p, at, p.d + first, n, v, s, &params)) return EDGEC_SOLVE_SINGULAR;
                for (int k = 0; k < n; ++k) errors[k * kVecs] = s.best_errors[k], codes[k * kVecs] = s.best_codes[k];
            }
            if (sweep == -1 && g + 1 == p.groups() && o.sweeps) start_descent(p, row, s, t);
        }
    for (int64_t g = 0; g < p.groups(); ++g) {
        int64_t first = g * o.group;
        int n = (int)(p.k - first < o.group ? p.k - first : o.group);
        for (int v = 0; v < kVecs; ++v) {
            for (int k = 0; k < n; ++k) s.best_codes[k] = t.codes[(first + k) * kVecs + v];
            write_codes(p, row + v * kLanes, first, n, s.best_codes);
            if (o.kind != EDGEC_SOLVE_TABLE) write_params(p, row + v * kLanes, g, t.params[g * kVecs + v]);
        }
    }
    return EDGEC_SOLVE_OK;
}
