#include "plan.h"

#include "../kernels/view.h"

namespace edgec {
namespace {

constexpr uint32_t kMaxDims = 4096, kMaxStates = 4096, kMaxPorts = 4096, kMaxCalls = 65536;
constexpr uint64_t kMaxPlanBytes = uint64_t(1) << 31;  // so that an offset in it is 32 bits
constexpr uint64_t kMaxArena = uint64_t(1) << 48;      // more than any machine has; no address computed from it can wrap
constexpr uint64_t kMinCallBytes = 20;                 // kernel, layer and three empty counts
constexpr uint16_t kUnknownKernel = 0xFFFF;
#if defined(EDGEC_PACKAGED)
constexpr char kBuildHint[] = ": it was packaged for another bundle; package this one";
#else
constexpr char kBuildHint[] = "";
#endif

// Of states that these kernels read and write as keys and values, a package leaves out types.
constexpr uint32_t kCaches = 1 << F32 | 1 << F16 | 1 << I8 | 1 << U8;
bool is_of_caches(uint16_t kernel) {
    const char *name = kKernels[kernel].name;
    return !strcmp(name, "attention_cached") || !strcmp(name, "kv_write");
}

struct Parser {
    const Bundle &bundle;
    const Allocator &allocator;
    Plan &plan;
    Message &message;
    Reader r;
    Array<uint16_t> kernel_of_string;  // index + 1; 0: not looked up yet

    edgec_status cut(const char *what) {
        return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: the section ends inside it, at byte %llu", what,
                    ull(r.position()));
    }

    edgec_status string(const char *field, uint32_t index) {
        if (r.bad()) return cut(field);
        if (index >= bundle.n_strings)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: found string %u, wanted one of %u", field, index,
                        bundle.n_strings);
        return EDGEC_OK;
    }

    edgec_status dims() {
        const uint32_t n = r.u32();
        if (r.bad() || n > kMaxDims || n > r.left() / 16)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: dims: found %u, wanted at most %u that fit", n, kMaxDims);
        if (!plan.dims.allocate(allocator, n) || !plan.dim_symbols.allocate(allocator, n))
            return fail(message, EDGEC_ERROR_MEMORY, "open: %u dims cannot be allocated", n);
        for (uint32_t i = 0; i < n; i++) {
            PlanDim &d = plan.dims[i];
            d.op = r.u32(), d.a = r.u32(), d.b = r.u32(), d.c = r.u32();
            if (d.op >= DIM_OPS) return fail(message, EDGEC_ERROR_FORMAT, "PLAN: dim %u: found operation %u", i, d.op);
            if (d.op == DIM_CONST) {
                if (d.b || d.c) return fail(message, EDGEC_ERROR_FORMAT, "PLAN: dim %u: unused words: wanted zero", i);
            } else if (d.op == DIM_SYMBOL) {
                if (edgec_status s = string("symbol name", d.a)) return s;
                if (d.b > d.c || d.c > 0x7FFFFFFFu)
                    return fail(message, EDGEC_ERROR_FORMAT, "PLAN: dim %u (%.100s): found the range %u..%u", i,
                                bundle.string(d.a), d.b, d.c);
                if (plan.n_symbols == kMaxSymbols)
                    return fail(message, EDGEC_ERROR_FORMAT, "PLAN: dims: found more than %u symbols", kMaxSymbols);
                for (uint32_t k = 0; k < plan.n_symbols; k++)
                    if (!strcmp(bundle.string(plan.dims[plan.symbol[k]].a), bundle.string(d.a)))
                        return fail(message, EDGEC_ERROR_FORMAT, "PLAN: dim %u: symbol %.100s: found twice", i,
                                    bundle.string(d.a));
                plan.dim_symbols[i] = uint64_t(1) << plan.n_symbols;
                plan.symbol[plan.n_symbols++] = i;
            } else {
                if (d.a >= i || d.b >= i || d.c)
                    return fail(message, EDGEC_ERROR_FORMAT,
                                "PLAN: dim %u: found operands %u and %u, wanted earlier ones",
                                i, d.a, d.b);
                plan.dim_symbols[i] = plan.dim_symbols[d.a] | plan.dim_symbols[d.b];
            }
        }
        return EDGEC_OK;
    }

    edgec_status shape(const char *what, uint32_t dtype, uint32_t rank, uint32_t *dim) {
        if (r.bad()) return cut(what);
        if (dtype > 0xFF || dtype_size(uint8_t(dtype)) == 0 || rank > kMaxRank)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s at byte %llu: found dtype %u, rank %u", what,
                        ull(r.position()), dtype, rank);
        for (uint32_t k = 0; k < rank; k++) {
            dim[k] = r.u32();
            if (r.bad()) return cut(what);
            if (dim[k] >= plan.dims.size())
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s at byte %llu: found dim %u of %llu", what,
                            ull(r.position()), dim[k], ull(plan.dims.size()));
        }
        return EDGEC_OK;
    }

    edgec_status ports(const char *what, Array<Port> &out, bool state) {
        const uint32_t n = r.u32();
        if (r.bad() || n > kMaxPorts || n > r.left() / 12)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %ss: found %u, wanted at most %u that fit", what, n,
                        kMaxPorts);
        static_assert(kMaxPorts == kMaxStates, "one cap for both");
        if (!out.allocate(allocator, n))
            return fail(message, EDGEC_ERROR_MEMORY, "open: %u %ss cannot be allocated", n, what);
        for (uint32_t i = 0; i < n; i++) {
            Port &p = out[i];
            p.name = r.u32(), p.dtype = r.u32(), p.rank = r.u32();
            if (edgec_status s = string(what, p.name)) return s;
            if (edgec_status s = shape(what, p.dtype, p.rank, p.dim)) return s;
            if (!state) continue;
            p.axis = r.u32();
            if (r.bad()) return cut(what);
            if (p.axis >= p.rank)
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: state %.100s: found rank %u and sequence axis %u",
                            bundle.string(p.name), p.rank, p.axis);
        }
        return EDGEC_OK;
    }

    edgec_status operand(Call &call, const Entry &entry, uint32_t index) {
        const uint32_t space = r.u32();
        if (r.bad()) return cut("operand");
        if (space == SPACE_NONE) return EDGEC_OK;
        const uint32_t which = r.u32();
        const uint64_t offset = r.u64();
        const uint32_t dtype = r.u32(), format = r.u32(), rank = r.u32();
        uint32_t dim[kMaxRank];
        if (edgec_status s = shape("operand", dtype, rank, dim)) return s;
        for (uint32_t k = 0; k < rank; k++) call.symbols |= plan.dim_symbols[dim[k]];
        const uint64_t limits[SPACES] = {0, 1, bundle.tensors.size(), entry.inputs.size(), entry.outputs.size(),
                                         plan.states.size()};
        if (space >= SPACES || which >= limits[space])
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: operand %u: found space %u, index %u",
                        CallName(bundle, entry, call).text, index, space, which);
        if (space == SPACE_ARENA ? offset % kAlignment != 0 : offset != 0)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: operand %u: offset: found %llu, wanted %s",
                        CallName(bundle, entry, call).text, index, ull(offset),
                        space == SPACE_ARENA ? "a multiple of 64" : "0");
        const uint32_t declared = space == SPACE_WEIGHT   ? bundle.tensors[which].dtype
                                  : space == SPACE_INPUT  ? entry.inputs[which].dtype
                                  : space == SPACE_OUTPUT ? entry.outputs[which].dtype
                                  : space == SPACE_STATE  ? plan.states[which].dtype
                                                          : dtype;
        const uint32_t wanted = space == SPACE_WEIGHT ? bundle.tensors[which].format : uint32_t(PLAIN);
        if (dtype != declared || format != wanted)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "PLAN: %s: operand %u: found dtype %u, format %u, wanted dtype %u, format %u",
                        CallName(bundle, entry, call).text, index, dtype, format, declared, wanted);
        if (space == SPACE_STATE && !reads_caches(uint8_t(dtype)) && (kCaches >> dtype & 1) && is_of_caches(call.kernel))
            return fail(message, EDGEC_ERROR_UNSUPPORTED,
                        "PLAN: %s: found a cache of dtype %u, which this program was packaged without; package this "
                        "bundle", CallName(bundle, entry, call).text, dtype);
        const bool written = index < kKernels[call.kernel].n_out;
        if (written && (space == SPACE_WEIGHT || space == SPACE_INPUT))
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: operand %u: an output in a read-only space",
                        CallName(bundle, entry, call).text, index);
        return EDGEC_OK;
    }

    edgec_status kernel(uint32_t name, uint16_t *index) {
        uint16_t &known = kernel_of_string[name];
        if (known == 0) {
            const Kernel *k = find_kernel(bundle.string(name));
            known = k ? uint16_t(k - kKernels + 1) : kUnknownKernel;
        }
        if (known == kUnknownKernel)
            return fail(message, EDGEC_ERROR_UNSUPPORTED, "PLAN: found the kernel '%.100s', which this build lacks%s",
                        bundle.string(name), kBuildHint);
        *index = uint16_t(known - 1);
        return EDGEC_OK;
    }

    edgec_status call(const Entry &entry, Call &c) {
        const uint32_t name = r.u32();
        if (edgec_status s = string("kernel name", name)) return s;
        if (edgec_status s = kernel(name, &c.kernel)) return s;
        c.at = uint32_t(r.position());
        if (edgec_status s = string("layer name", r.u32())) return s;
        const uint32_t n_operands = r.u32();
        if (r.bad() || n_operands > kMaxOperands || n_operands < kKernels[c.kernel].n_out)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: found %u operands, wanted %u..%u",
                        CallName(bundle, entry, c).text, n_operands, kKernels[c.kernel].n_out, kMaxOperands);
        c.n_operands = uint8_t(n_operands);
        for (uint32_t i = 0; i < n_operands; i++)
            if (edgec_status s = operand(c, entry, i)) return s;
        const uint32_t n_ints = r.u32();
        if (r.bad() || n_ints > kMaxInts)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: found %u ints, wanted at most %u",
                        CallName(bundle, entry, c).text, n_ints, kMaxInts);
        c.n_ints = uint8_t(n_ints);
        for (uint32_t i = 0; i < n_ints; i++) {
            const uint32_t kind = r.u32();
            const int64_t value = r.i64();
            if (r.bad()) return cut("int");
            if (kind > 1 || (kind == 1 && uint64_t(value) >= plan.dims.size()))
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: int %u: found kind %u, value %lld",
                            CallName(bundle, entry, c).text, i, kind, ll(value));
            if (kind == 1) c.symbols |= plan.dim_symbols[uint64_t(value)];
        }
        const uint32_t n_floats = r.u32();
        if (r.bad() || n_floats > kMaxFloats)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: found %u floats, wanted at most %u",
                        CallName(bundle, entry, c).text, n_floats, kMaxFloats);
        for (uint32_t i = 0; i < n_floats; i++) {
            const float f = r.f32();
            if (f != f)
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: float %u: found NaN",
                            CallName(bundle, entry, c).text, i);
        }
        return r.bad() ? cut("call") : EDGEC_OK;
    }

    edgec_status entry(Entry &e) {
        e.name = r.u32();
        if (edgec_status s = string("entry name", e.name)) return s;
        e.arena_bytes = r.u64(), e.scratch_bytes = r.u64();
        if (e.arena_bytes > kMaxArena || e.scratch_bytes > kMaxArena)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "PLAN: entry '%.100s': found an arena of %llu and scratch of %llu bytes, wanted at most 2^48",
                        bundle.string(e.name), ull(e.arena_bytes), ull(e.scratch_bytes));
        if (edgec_status s = ports("input", e.inputs, false)) return s;
        if (edgec_status s = ports("output", e.outputs, false)) return s;
        const uint32_t n = r.u32();
        if (r.bad() || n > kMaxCalls || n > r.left() / kMinCallBytes)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: entry '%.100s': found %u calls, wanted at most %u that fit",
                        bundle.string(e.name), n, kMaxCalls);
        if (!e.calls.allocate(allocator, n))
            return fail(message, EDGEC_ERROR_MEMORY, "open: %u calls cannot be allocated", n);
        for (uint32_t i = 0; i < n; i++)
            if (edgec_status s = call(e, e.calls[i])) return s;
        return EDGEC_OK;
    }

    edgec_status run() {
        const uint64_t bytes = bundle.section[SECTION_PLAN].bytes;
        if (bytes % 4 != 0 || bytes > kMaxPlanBytes)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: length: found %llu, wanted a multiple of 4 up to %llu",
                        ull(bytes), ull(kMaxPlanBytes));
        if (!kernel_of_string.allocate(allocator, bundle.n_strings))
            return fail(message, EDGEC_ERROR_MEMORY, "open: the kernel index cannot be allocated");
        plan.kind = r.u32(), plan.max_context = r.u32(), plan.vocab = r.u32(), plan.prefill_chunk = r.u32();
        if (r.bad()) return cut("head");
        const bool lm = plan.kind == 1;
        const uint32_t most = lm ? 0x7FFFFFFFu : 0, least = lm ? 1 : 0;
        const uint32_t head[3] = {plan.max_context, plan.vocab, plan.prefill_chunk};
        for (uint32_t v : head)
            if (plan.kind > 1 || v < least || v > most)
                return fail(message, EDGEC_ERROR_FORMAT,
                            "PLAN: head: found kind %u, context %u, vocabulary %u, prefill chunk %u", plan.kind,
                            head[0], head[1], head[2]);
        if (edgec_status s = dims()) return s;
        if (edgec_status s = ports("state", plan.states, true)) return s;
        plan.n_entries = r.u32();
        if (r.bad() || plan.n_entries < 1 || plan.n_entries > kMaxEntries)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: entries: found %u, wanted 1..%u", plan.n_entries,
                        kMaxEntries);
        for (uint32_t i = 0; i < plan.n_entries; i++)
            if (edgec_status s = entry(plan.entry[i])) return s;
        if (r.left() != 0)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: found %llu bytes after the last entry, wanted none",
                        ull(r.left()));
        return EDGEC_OK;
    }
};

// Whether two operands share bytes: at most one range each, of lengths x and y.
bool overlap(const OperandRecord &a, uint64_t x, const OperandRecord &b, uint64_t y) {
    return a.space == b.space && a.index == b.index && x > 0 && y > 0 && a.offset < b.offset + y &&
           b.offset < a.offset + x;
}

}  // namespace

CallName::CallName(const Bundle &bundle, const Entry &entry, const Call &call) {
    uint32_t layer;
    memcpy(&layer, bundle.section[SECTION_PLAN].data + call.at, 4);
    snprintf(text, sizeof text, "entry '%.60s', call %llu (%s at %.160s)", bundle.string(entry.name),
             ull(uint64_t(&call - entry.calls.data())), kKernels[call.kernel].name, bundle.string(layer));
}

edgec_status plan_parse(const Bundle &bundle, const Allocator &allocator, Plan *plan, Message &message) {
    const Section s = bundle.section[SECTION_PLAN];
    Parser parser{bundle, allocator, *plan, message, Reader(s.data, s.bytes), {}};
    return parser.run();
}

void plan_read_call(const Bundle &bundle, const Call &call, CallRecord *record) {
    const Section s = bundle.section[SECTION_PLAN];
    Reader r(s.data + call.at, s.bytes - call.at);
    record->layer = r.u32();
    record->n_operands = r.u32();
    for (uint32_t i = 0; i < record->n_operands; i++) {
        OperandRecord &o = record->operand[i];
        o = OperandRecord();
        o.space = r.u32();
        if (o.space == SPACE_NONE) continue;
        o.index = r.u32(), o.offset = r.u64(), o.dtype = r.u32(), o.format = r.u32(), o.rank = r.u32();
        for (uint32_t k = 0; k < o.rank; k++) o.dim[k] = r.u32();
    }
    record->n_ints = r.u32();
    for (uint32_t i = 0; i < record->n_ints; i++) record->int_is_dim[i] = r.u32() == 1, record->ints[i] = r.i64();
    record->n_floats = r.u32();
    for (uint32_t i = 0; i < record->n_floats; i++) record->floats[i] = r.f32();
}

edgec_status plan_evaluate(const Plan &plan, const Bundle &bundle, const int64_t *symbols, int64_t *values,
                           Message &message) {
    uint32_t next_symbol = 0;
    for (uint32_t i = 0; i < plan.dims.size(); i++) {
        const PlanDim d = plan.dims[i];
        int64_t v = 0;
        bool ok = true;
        if (d.op == DIM_CONST) {
            v = d.a;
        } else if (d.op == DIM_SYMBOL) {
            v = symbols[next_symbol++];
            if (v < int64_t(d.b) || v > int64_t(d.c))
                return fail(message, EDGEC_ERROR_TENSOR, "shape: %.100s: found %lld, wanted %u..%u", bundle.string(d.a),
                            ll(v), d.b, d.c);
        } else {
            const int64_t a = values[d.a], b = values[d.b];  // both 0..kMaxDim, so only the product can overflow
            switch (d.op) {
            case DIM_ADD: v = a + b; break;
            case DIM_SUB: v = a - b; break;
            case DIM_MUL: ok = !__builtin_mul_overflow(a, b, &v); break;
            case DIM_FLOORDIV: ok = b > 0, v = ok ? a / b : 0; break;
            case DIM_CEILDIV: ok = b > 0, v = ok ? (a + b - 1) / b : 0; break;
            case DIM_MAX: v = a > b ? a : b; break;
            default: v = a < b ? a : b; break;
            }
        }
        if (!ok || v < 0 || v > kMaxDim)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: dim %u: its value is negative, above 2^40 or not defined",
                        i);
        values[i] = v;
    }
    return EDGEC_OK;
}

bool port_bytes(const Port &port, const int64_t *values, uint64_t *bytes) {
    View v;
    v.dtype = uint8_t(port.dtype), v.rank = uint8_t(port.rank);
    for (uint32_t k = 0; k < port.rank; k++) v.dim[k] = values[port.dim[k]];
    const int64_t n = bytes_of(v);
    *bytes = n < 0 ? 0 : uint64_t(n);
    return n >= 0;
}

edgec_status plan_resolve(const Plan &plan, const Bundle &bundle, const Entry &entry, const Call &call,
                          const CallRecord &record, const int64_t *values, const Spaces &spaces, View *views,
                          int64_t *ints, Message &message) {
    const Kernel &kernel = kKernels[call.kernel];
    int64_t extent[kMaxOperands];
    for (uint32_t i = 0; i < record.n_operands; i++) {
        const OperandRecord &o = record.operand[i];
        View &v = views[i];
        v = View();
        extent[i] = 0;
        if (o.space == SPACE_NONE) continue;
        v.dtype = uint8_t(o.dtype), v.format = uint8_t(o.format), v.rank = uint8_t(o.rank);
        for (uint32_t k = 0; k < o.rank; k++) v.dim[k] = values[o.dim[k]];
        const int64_t bytes = bytes_of(v);
        uint64_t room = 0;
        bool exact = false;
        switch (o.space) {
        case SPACE_ARENA:
            room = o.offset > spaces.arena_bytes ? 0 : spaces.arena_bytes - o.offset;
            exact = o.offset > spaces.arena_bytes;  // an empty view past the end is refused too
            v.data = spaces.arena + (exact ? 0 : o.offset);
            break;
        case SPACE_WEIGHT:
            // Kernels only read it: operand() has seen to it that no output is a weight.
            v.data = const_cast<uint8_t *>(spaces.weights) + bundle.tensors[o.index].offset;
            room = bundle.tensors[o.index].bytes;
            exact = o.format != PLAIN && uint64_t(bytes) != room;
            break;
        default: {
            const Port &port = o.space == SPACE_INPUT    ? entry.inputs[o.index]
                               : o.space == SPACE_OUTPUT ? entry.outputs[o.index]
                                                         : plan.states[o.index];
            uint8_t *const *bases = o.space == SPACE_INPUT    ? spaces.inputs
                                    : o.space == SPACE_OUTPUT ? spaces.outputs
                                                              : spaces.states;
            exact = !port_bytes(port, values, &room);
            // A kernel writes an entry output whole, or its caller would receive stale bytes.
            if (o.space == SPACE_OUTPUT && i < kernel.n_out) exact = exact || uint64_t(bytes) != room;
            v.data = bases[o.index];
        }
        }
        if (bytes < 0 || uint64_t(bytes) > room || exact)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "PLAN: %s: operand %u: found an extent of %lld bytes at %llu, wanted it inside %llu",
                        CallName(bundle, entry, call).text, i, ll(bytes), ull(o.offset), ull(room));
        extent[i] = bytes;
    }
    for (uint32_t w = 0; w < kernel.n_out; w++) {
        const OperandRecord &out = record.operand[w];
        for (uint32_t i = w + 1; out.space != SPACE_NONE && i < record.n_operands; i++) {
            const OperandRecord &other = record.operand[i];
            if (!overlap(out, uint64_t(extent[w]), other, uint64_t(extent[i]))) continue;
            const bool same = out.offset == other.offset && extent[w] == extent[i];
            if (i < kernel.n_out || !kernel.in_place || !same)
                return fail(message, EDGEC_ERROR_FORMAT,
                            "PLAN: %s: operands %u and %u share bytes, which it does not allow",
                            CallName(bundle, entry, call).text, w, i);
        }
    }
    for (uint32_t i = 0; i < record.n_ints; i++)
        ints[i] = record.int_is_dim[i] ? values[record.ints[i]] : record.ints[i];
    return EDGEC_OK;
}

}  // namespace edgec
