// Runs one case on one instruction set and compares it; see harness.h.
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "harness.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KT_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define KT_ASAN 1
#endif

void (*kt_emulate)(void (*)(), uint64_t, uint64_t, uint64_t, uint64_t);

namespace kt {

constexpr size_t kCanary = 128;
constexpr uint8_t kCanaryByte = 0xC5;
#ifdef KT_ASAN
constexpr size_t kTail = 0;  // the block ends with the operand: reading past it is seen too
#else
constexpr size_t kTail = kCanary;
#endif

Buffer::Buffer(const std::vector<uint8_t> &bytes, size_t shift) : front_(kCanary + shift), size_(bytes.size()) {
    void *block = nullptr;
    if (posix_memalign(&block, 64, front_ + size_ + kTail) != 0) {
        fprintf(stderr, "out of memory\n");
        exit(3);
    }
    block_ = (uint8_t *)block;
    data_ = block_ + front_;
    memset(block_, kCanaryByte, front_);
    if (size_) memcpy(data_, bytes.data(), size_);
    memset(data_ + size_, kCanaryByte, kTail);
}

Buffer::~Buffer() { free(block_); }

bool Buffer::intact() const {
    for (size_t k = 0; k < front_; ++k)
        if (block_[k] != kCanaryByte) return false;
    for (size_t k = 0; k < kTail; ++k)
        if (data_[size_ + k] != kCanaryByte) return false;
    return true;
}

std::string text(const char *format, ...) {
    char line[512];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    return line;
}

Bench::Bench(const std::vector<Operand> &ops, const std::vector<std::vector<uint8_t>> &bytes,
             const std::vector<int64_t> &i, const std::vector<float> &f, Rng &rng)
    : ints(i), floats(f) {
    for (size_t k = 0; k < ops.size(); ++k) {
        View v = ops[k].view;
        own.emplace_back();
        if (!ops[k].absent) {
            own[k] = std::make_unique<Buffer>(bytes[k],
                                              (size_t)(rng.range(0, 15) * std::max<int64_t>(1, dtype_size(v.dtype))));
            v.data = own[k]->data();
        }
        views.push_back(v);
    }
    args.op = views.data();
    args.i = ints.data();
    args.f = floats.data();
    args.n_op = (int32_t)views.size();
    args.n_i = (int32_t)ints.size();
    args.n_f = (int32_t)floats.size();
    args.fault = &fault;
}

// 0xFF bytes are NaN in every float format: what a kernel reads before writing it shows. As an integer they are -1, which
// may stand for nothing; `zeros` is the other way to be wrong.
void Bench::make_scratch(int64_t bytes, bool zeros) {
    if (bytes > 0) scratch = std::make_unique<Buffer>(std::vector<uint8_t>((size_t)bytes, zeros ? 0 : 0xFF), 0);
}

void Bench::run(const Kernel &k, Isa isa, int64_t tiles, bool pieces, Rng &rng) {
    void *memory = scratch ? scratch->data() : nullptr;
    std::vector<std::pair<int64_t, int64_t>> parts;
    const int64_t step = pieces ? std::max<int64_t>(3, tiles / 32) : tiles;
    for (int64_t t = 0; t < tiles;) {
        const int64_t n = std::min(tiles - t, pieces ? rng.range(1, step) : tiles);
        parts.emplace_back(t, t + n);
        t += n;
    }
    for (size_t p = parts.size(); p > 1; --p) std::swap(parts[p - 1], parts[(size_t)rng.range(0, (int64_t)p - 1)]);
    const auto call = [&](int64_t begin, int64_t end) {
        if (!kt_emulate) k.run[isa](args, begin, end, memory);
        else kt_emulate((void (*)())k.run[isa], (uint64_t)&args, (uint64_t)begin, (uint64_t)end, (uint64_t)memory);
    };
    if (k.prepares && tiles > 0) call(0, 0);  // as the executor, which runs nothing of an empty output
    for (const auto &p : parts) call(p.first, p.second);
}

// The worst error of one output, or a message where a value is plainly wrong.
static Result compare(const Case &c, const Operand &want, const Operand &got, size_t index, double tolerance) {
    Result r;
    if (c.scale == NORM) {
        double squares = 0;
        for (size_t e = 0; e < want.real.size(); ++e) {
            const double d = got.real[e] - want.real[e];
            squares += d * d;
        }
        const double floor = index < c.floors.size() ? c.floors[index] : c.floor;
        r.worst = sqrt(squares / (double)std::max<size_t>(1, want.real.size())) / std::max(floor, 1e-300);
        if (!(r.worst <= tolerance)) {
            r.ok = false;
            r.message = text("output %zu: error %.3g of %.3g", index, r.worst, tolerance);
        }
        return r;
    }
    const int64_t n = want.count(), row = want.view.rank ? std::max<int64_t>(1, want.dim(-1)) : 1;
    double scale = 0;
    for (int64_t e = 0; e < n; ++e) {
        if (!is_float(want.view.dtype)) {
            const int64_t w = want.whole[(size_t)e], g = got.whole[(size_t)e];
            if (w != g)
                return {false, INFINITY,
                        text("output %zu [%lld]: %lld, wanted %lld", index, (long long)e, (long long)g, (long long)w)};
            continue;
        }
        const double w = round_to(want.view.dtype, want.real[(size_t)e]), g = got.real[(size_t)e];
        if (c.scale == ELEMENT) scale = std::max(fabs(w), c.floor);
        else if (e % row == 0) {
            scale = 1e-30;
            for (int64_t j = e; j < e + row; ++j)
                if (isfinite(want.real[(size_t)j])) scale = std::max(scale, fabs(want.real[(size_t)j]));
        }
        if (isnan(w) && isnan(g)) continue;
        if (w == g) continue;
        const double error = isfinite(w) && isfinite(g) ? fabs(w - g) / scale : INFINITY;
        // A 16-bit output may round the other way.
        const double slack = want.view.dtype == F16    ? fabs(w) * 0x1p-10 / scale
                             : want.view.dtype == BF16 ? fabs(w) * 0x1p-7 / scale
                                                       : 0;
        r.worst = std::max(r.worst, error > slack ? error : 0);
        if (error > tolerance + slack && r.ok) {
            r.ok = false;
            r.message = text("output %zu [%lld]: %.9g, wanted %.9g, error %.3g of %.3g", index, (long long)e, g, w,
                             error, tolerance);
        }
    }
    return r;
}

// One run with outputs at `alias` sharing their input's memory. `exact`: the output bytes of the run in one piece,
// which the others must repeat to the bit; the first run (pieces false) fills it.
static Result run_variant(Case &c, const std::vector<Operand> &want, Isa isa, Rng &rng, std::pair<int, int> alias,
                          bool pieces, std::vector<std::vector<uint8_t>> *exact) {
    const Kernel &k = *c.kernel;
    std::vector<std::vector<uint8_t>> bytes;
    for (const Operand &o : c.op) bytes.push_back(o.absent ? std::vector<uint8_t>() : encode(o));
    Bench b(c.op, bytes, c.i, c.f, rng);
    if (alias.first >= 0) b.views[(size_t)alias.first].data = b.views[(size_t)alias.second].data;
    if (const char *why = k.check(b.args)) return {false, INFINITY, text("check refuses it: %s", why)};
    const int64_t tiles = k.tiles(b.args), scratch = k.scratch(b.args), cost = k.cost(b.args);
    bool empty = false;
    for (int o = 0; o < k.n_out; ++o) empty |= !c.op[(size_t)o].absent && c.op[(size_t)o].count() == 0;
    if (tiles < (empty ? 0 : 1) || scratch < 0 || cost < 0)
        return {false, INFINITY,
                text("tiles %lld, scratch %lld, cost %lld", (long long)tiles, (long long)scratch, (long long)cost)};
    b.make_scratch(scratch, pieces);
    b.run(k, isa, tiles, pieces, rng);
    if (b.scratch && !b.scratch->intact()) return {false, INFINITY, "wrote outside its scratch"};
    if ((b.fault != 0) != c.fault) return {false, INFINITY, text("fault flag is %d", b.fault)};
    for (size_t o = 0; o < c.op.size(); ++o) {
        if (c.op[o].absent) continue;
        if (!b.own[o]->intact()) return {false, INFINITY, text("wrote outside operand %zu", o)};
        const bool overwritten = ((int)o < k.n_out && (int)o != alias.first) || (int)o == alias.second;
        if (!overwritten && !bytes[o].empty() && memcmp(b.own[o]->data(), bytes[o].data(), bytes[o].size()) != 0)
            return {false, INFINITY, text("changed operand %zu", o)};
    }
    Result r;
    for (size_t o = 0; o < k.n_out && !c.fault; ++o) {
        if (!pieces) exact->emplace_back();
        if (c.op[o].absent) continue;
        const uint8_t *data = (const uint8_t *)b.views[o].data;
        const std::vector<uint8_t> now(data, data + bytes[o].size());
        Operand got = c.op[o];
        decode(&got, data);
        const Result one = compare(c, want[o], got, o, c.bound ? c.bound(isa) : c.tolerance);
        r.worst = std::max(r.worst, one.worst);
        if (!one.ok && r.ok) r = {false, r.worst, one.message};
        if (!pieces) exact->back() = now;
        else if (now != (*exact)[o] && r.ok)
            r = {false, r.worst, text("output %zu depends on how the tiles are cut", o)};
    }
    return r;
}

Result run_case(Case &c, Isa isa, Rng &rng) {
    if (c.answer.empty()) {
        Case asked = c;
        if (!c.fault) asked.reference(asked);
        c.answer = std::move(asked.op);
    }
    std::vector<std::pair<int, int>> variants = {{-1, -1}, {-1, -1}};
    variants.insert(variants.end(), c.in_place.begin(), c.in_place.end());
    std::vector<std::vector<uint8_t>> exact;
    double worst = 0;
    for (size_t v = 0; v < variants.size(); ++v) {
        const Result r = run_variant(c, c.answer, isa, rng, variants[v], v != 0, &exact);
        worst = std::max(worst, r.worst);
        const char *how = v == 0 ? "" : v == 1 ? " in pieces" : " in place";
        if (!r.ok) return {false, worst, c.label + how + ": " + r.message};
    }
    return {true, worst, ""};
}

}  // namespace kt
