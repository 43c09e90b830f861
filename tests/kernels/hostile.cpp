// Hostile arguments: valid cases with a few dims, parameters, dtypes, formats, ranks or counts replaced. check() either
// refuses them or the run stays inside its operands. Built with AddressSanitizer, reads are held to that as well.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "harness.h"

namespace kt {

constexpr int64_t kMostBytes = 1 << 19, kMostCost = 2000000;

static int64_t hostile_value(int64_t was, Rng &rng) {
    static const int64_t fixed[] = {0,
                                    1,
                                    -1,
                                    2,
                                    3,
                                    7,
                                    16,
                                    17,
                                    255,
                                    65536,
                                    INT32_MAX,
                                    (int64_t)INT32_MAX + 1,
                                    INT32_MIN,
                                    (int64_t)1 << 32,
                                    (int64_t)1 << 40,
                                    (int64_t)1 << 60,
                                    (int64_t)1 << 61,
                                    (int64_t)1 << 62,
                                    INT64_MAX,
                                    INT64_MAX - 1,
                                    INT64_MIN,
                                    INT64_MIN + 1};
    const uint64_t w = (uint64_t)was;  // wraps instead of overflowing
    switch (rng.range(0, 6)) {
        case 0: return (int64_t)(w + 1);
        case 1: return (int64_t)(w - 1);
        case 2: return (int64_t)(w * 2);
        case 3: return (int64_t)(0 - w);
        case 4: return (int64_t)rng.next();
        default: return fixed[rng.range(0, (int64_t)(sizeof fixed / sizeof *fixed) - 1)];
    }
}

static void mutate(std::vector<Operand> *op, std::vector<int64_t> *i, std::vector<float> *f, Rng &rng) {
    Operand &o = (*op)[(size_t)rng.range(0, (int64_t)op->size() - 1)];
    switch (rng.range(0, 11)) {
        case 0: o.view.dtype = (uint8_t)rng.range(0, 9); break;
        case 1: o.view.format = (uint8_t)rng.range(0, 2); break;
        case 2: o.view.rank = (uint8_t)rng.range(0, 9); break;
        case 3: o.absent = !o.absent; break;
        case 4:
            if (rng.range(0, 1)) op->pop_back();
            else op->push_back(o);
            break;
        case 5:
            if (rng.range(0, 1) && !i->empty()) i->pop_back();
            else i->push_back((int64_t)rng.next());
            break;
        case 6:
            if (rng.range(0, 1) && !f->empty()) f->pop_back();
            else f->push_back(INFINITY);
            break;
        case 7: case 8: case 9: {
            if (o.view.rank == 0) break;
            int64_t &d = o.view.dim[rng.range(0, std::min<int64_t>(o.view.rank, kMaxRank) - 1)];
            const int64_t was = d;
            d = hostile_value(d, rng);
            // Half of the time everywhere the same: dims that must agree are then refused less often.
            if (rng.range(0, 1))
                for (Operand &other : *op)
                    for (int64_t &e : other.view.dim)
                        if (e == was) e = d;
            break;
        }
        default:
            if (!i->empty()) {
                int64_t &x = (*i)[(size_t)rng.range(0, (int64_t)i->size() - 1)];
                x = hostile_value(x, rng);
            }
    }
}

Result run_hostile(const Case &c, const std::vector<Isa> &isas, Rng &rng, int rounds, int64_t *accepted) {
    const Kernel &k = *c.kernel;
    for (int round = 0; round < rounds; ++round) {
        std::vector<Operand> op = c.op;
        std::vector<int64_t> ints = c.i;
        std::vector<float> floats = c.f;
        for (int64_t n = rng.range(1, 4); n > 0 && !op.empty(); --n) mutate(&op, &ints, &floats, rng);
        std::vector<View> views;
        for (const Operand &o : op) {
            View v = o.view;
            // Not memory that is really there: check() must not look at it.
            v.data = o.absent ? nullptr : (void *)64;
            views.push_back(v);
        }
        int32_t fault = 0;
        Args a;
        a.op = views.data();
        a.i = ints.data();
        a.f = floats.data();
        a.n_op = (int32_t)views.size();
        a.n_i = (int32_t)ints.size();
        a.n_f = (int32_t)floats.size();
        a.fault = &fault;
        if (k.check(a)) continue;
        const int64_t tiles = k.tiles(a), cost = k.cost(a), scratch = k.scratch(a);
        if (tiles < 0 || cost < 0 || scratch < 0)
            return {false, INFINITY, c.label + " mutated: negative tiles, cost or scratch"};
        int64_t total = scratch;
        std::vector<std::vector<uint8_t>> bytes;
        bool possible = true;
        for (const Operand &o : op) {
            const int64_t n = o.absent ? 0 : bytes_of(o.view);
            if (n < 0) return {false, INFINITY, c.label + " mutated: accepts a view without a size"};
            if (n > kMostBytes || total + n > kMostBytes) {
                possible = false;
                break;
            }
            total += n;
        }
        if (!possible || cost > kMostCost) continue;
        for (const Operand &o : op) {
            bytes.emplace_back((size_t)(o.absent ? 0 : bytes_of(o.view)));
            const bool wild = rng.range(0, 1) != 0;
            for (uint8_t &b : bytes.back()) b = (uint8_t)(wild ? rng.next() : 0);
            // BOOL operands hold 0 or 1: the runtime checks what callers give it, comparisons write nothing else.
            if (!o.absent && o.view.dtype == BOOL)
                for (uint8_t &b : bytes.back()) b &= 1;
        }
        ++*accepted;
        for (const Isa isa : isas) {
            Bench b(op, bytes, ints, floats, rng);
            b.make_scratch(scratch);
            b.run(k, isa, tiles, rng.range(0, 1) != 0, rng);
            if (b.scratch && !b.scratch->intact())
                return {false, INFINITY, c.label + " mutated: wrote outside its scratch"};
            for (size_t o = 0; o < op.size(); ++o) {
                if (op[o].absent) continue;
                if (!b.own[o]->intact())
                    return {false, INFINITY, text("%s mutated: wrote outside operand %zu", c.label.c_str(), o)};
                if (o >= k.n_out && !bytes[o].empty() &&
                    memcmp(b.own[o]->data(), bytes[o].data(), bytes[o].size()) != 0)
                    return {false, INFINITY, text("%s mutated: changed its input %zu", c.label.c_str(), o)};
            }
        }
    }
    return {true, 0, ""};
}

}  // namespace kt
