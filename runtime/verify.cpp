// The rules of a plan that concern more than one record: docs/format.md, "Rules" and "Language models".
#include "plan.h"
#include "regions.h"

namespace edgec {
namespace {

// Base addresses for resolving without running: never read, only told apart from an absent operand.
constexpr uintptr_t kNowhere = 64;

struct Verifier {
    const Plan &plan;
    const Bundle &bundle;
    const Allocator &allocator;
    Message &message;
    Array<int64_t> values;
    Array<uint8_t *> bases;
    CallRecord record;
    View views[kMaxOperands];
    int64_t ints[kMaxInts];

    Spaces spaces(const Entry &entry) const {
        uint8_t *nowhere = reinterpret_cast<uint8_t *>(kNowhere);
        return {nowhere, entry.arena_bytes, nowhere, bases.data(), bases.data(), bases.data()};
    }

    edgec_status evaluate(const int64_t *symbols) {
        return plan_evaluate(plan, bundle, symbols, values.data(), message);
    }

    // With every symbol at its largest: extents, order of writes and reads.
    edgec_status lifetimes(const Entry &entry) {
        const Spaces where = spaces(entry);
        uint64_t n_ends = 0;
        for (const Call &call : entry.calls) n_ends += 2u * kKernels[call.kernel].n_out;
        Array<uint64_t> ends;
        Array<uint8_t> written;
        if (!ends.allocate(allocator, n_ends) || !written.allocate(allocator, entry.outputs.size()))
            return fail(message, EDGEC_ERROR_MEMORY, "open: the check of entry '%.100s' cannot be allocated",
                        bundle.string(entry.name));
        uint64_t n = 0;
        for (const Call &call : entry.calls) {
            plan_read_call(bundle, call, &record);
            if (edgec_status s = resolve(entry, call, where)) return s;
            for (uint32_t i = 0; i < kKernels[call.kernel].n_out; i++) {
                const uint64_t bytes = extent(i);
                if (record.operand[i].space != SPACE_ARENA || bytes == 0) continue;
                ends[n++] = record.operand[i].offset;
                ends[n++] = record.operand[i].offset + bytes;
            }
        }
        Regions regions;
        if (!regions.begin(allocator, ends.data(), n))
            return fail(message, EDGEC_ERROR_MEMORY, "open: the check of entry '%.100s' cannot be allocated",
                        bundle.string(entry.name));
        for (const Call &call : entry.calls) {
            plan_read_call(bundle, call, &record);
            if (edgec_status s = resolve(entry, call, where)) return s;
            const uint32_t n_out = kKernels[call.kernel].n_out;
            for (uint32_t i = n_out; i < record.n_operands; i++) {
                const OperandRecord &o = record.operand[i];
                const uint64_t bytes = extent(i);
                if ((o.space == SPACE_ARENA && bytes && !regions.readable(o.offset, o.offset + bytes)) ||
                    (o.space == SPACE_OUTPUT && !written[o.index]))
                    return fail(message, EDGEC_ERROR_FORMAT,
                                "PLAN: %s: operand %u reads bytes that no earlier call has written, or written over",
                                CallName(bundle, entry, call).text, i);
            }
            for (uint32_t i = 0; i < n_out; i++) {
                const OperandRecord &o = record.operand[i];
                const uint64_t bytes = extent(i);
                if (o.space == SPACE_ARENA && bytes) regions.write(o.offset, o.offset + bytes);
                if (o.space == SPACE_OUTPUT) written[o.index] = 1;
            }
        }
        for (uint64_t i = 0; i < written.size(); i++)
            if (!written[i])
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: entry '%.100s': output '%.100s': no call writes it",
                            bundle.string(entry.name), bundle.string(entry.outputs[i].name));
        return EDGEC_OK;
    }

    uint64_t extent(uint32_t i) const { return views[i].data ? uint64_t(bytes_of(views[i])) : 0; }

    edgec_status resolve(const Entry &entry, const Call &call, const Spaces &where) {
        return plan_resolve(plan, bundle, entry, call, record, values.data(), where, views, ints, message);
    }

    // With the largest symbols that can occur together: every kernel accepts its arguments.
    edgec_status arguments(const Entry &entry) {
        const Spaces where = spaces(entry);
        for (const Call &call : entry.calls) {
            plan_read_call(bundle, call, &record);
            if (edgec_status s = resolve(entry, call, where)) return s;
            int32_t fault = 0;
            const Args args = {views, ints, record.floats, int32_t(record.n_operands), int32_t(record.n_ints),
                               int32_t(record.n_floats), &fault};
            if (const char *why = kKernels[call.kernel].check(args))
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: %s: %s", CallName(bundle, entry, call).text, why);
        }
        return EDGEC_OK;
    }

    edgec_status language_model() {
        for (uint32_t i = 0; i < plan.n_entries; i++) {
            const Entry &e = plan.entry[i];
            const bool decode = i == plan.decode;
            const bool ports = e.inputs.size() == 1 && e.outputs.size() == 1;
            const Port *tokens = ports ? &e.inputs[0] : nullptr, *logits = ports ? &e.outputs[0] : nullptr;
            const uint32_t rows = i == plan.score ? 1 : 0;
            if (!ports || strcmp(bundle.string(tokens->name), "tokens") || tokens->dtype != I32 || tokens->rank != 1 ||
                strcmp(bundle.string(logits->name), "logits") || logits->dtype != F32 || logits->rank != rows + 1 ||
                !(decode ? constant(tokens->dim[0], 1) : sequence(tokens->dim[0])) ||
                (rows && !sequence(logits->dim[0])) || !constant(logits->dim[rows], plan.vocab))
                return fail(message, EDGEC_ERROR_FORMAT,
                            "PLAN: entry '%.99s': wanted the input tokens i32 [%s] and the output logits f32 [%svocab]",
                            bundle.string(e.name), decode ? "1" : "seq", rows ? "seq, " : "");
        }
        // Forgetting tokens, saving and failing safely all rely on states that hold one row per token.
        for (const Port &p : plan.states)
            if (plan.context < 0 || p.dim[p.axis] != plan.symbol[plan.context])
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: state '%.100s': dim %u: wanted the symbol `context`",
                            bundle.string(p.name), p.axis);
        return EDGEC_OK;
    }
    bool constant(uint32_t dim, uint32_t value) const {
        return plan.dims[dim].op == DIM_CONST && plan.dims[dim].a == value;
    }
    bool sequence(uint32_t dim) const { return plan.seq >= 0 && plan.symbol[plan.seq] == dim; }

    // Every symbol of a generic model must follow from the shape of some input.
    edgec_status generic() {
        uint64_t bound = 0;
        for (const Port &p : plan.entry[0].inputs)
            for (uint32_t k = 0; k < p.rank; k++)
                if (plan.dims[p.dim[k]].op == DIM_SYMBOL) bound |= plan.dim_symbols[p.dim[k]];
        for (uint32_t i = 0; i < plan.n_symbols; i++)
            if (!(bound >> i & 1))
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: symbol %.100s: no input's shape gives its value",
                            bundle.string(plan.dims[plan.symbol[i]].a));
        return EDGEC_OK;
    }

    edgec_status run() {
        uint64_t n_bases = plan.states.size();
        for (uint32_t i = 0; i < plan.n_entries; i++) {
            const Entry &e = plan.entry[i];
            n_bases = e.inputs.size() > n_bases ? e.inputs.size() : n_bases;
            n_bases = e.outputs.size() > n_bases ? e.outputs.size() : n_bases;
        }
        if (!values.allocate(allocator, plan.dims.size()) || !bases.allocate(allocator, n_bases))
            return fail(message, EDGEC_ERROR_MEMORY, "open: the check of the plan cannot be allocated");
        for (uint8_t *&base : bases) base = reinterpret_cast<uint8_t *>(kNowhere);
        const uint64_t may = plan.context >= 0 ? uint64_t(1) << plan.context : 0;
        for (const Port &p : plan.states)
            for (uint32_t k = 0; k < p.rank; k++)
                if (plan.dim_symbols[p.dim[k]] & ~may)
                    return fail(message, EDGEC_ERROR_FORMAT,
                                "PLAN: state '%.100s': dim %u: wanted a constant or `context`",
                                bundle.string(p.name), k);
        if (edgec_status s = plan.kind == 1 ? language_model() : generic()) return s;
        int64_t symbols[kMaxSymbols];
        for (uint32_t i = 0; i < plan.n_symbols; i++) symbols[i] = plan.dims[plan.symbol[i]].c;
        if (edgec_status s = evaluate(symbols)) return s;
        for (uint32_t i = 0; i < plan.n_entries; i++)
            if (edgec_status s = lifetimes(plan.entry[i])) return s;
        for (uint32_t i = 0; i < plan.n_entries; i++) {
            plan_largest(plan, i, plan.max_context, symbols);
            if (edgec_status s = evaluate(symbols)) return s;
            if (edgec_status s = arguments(plan.entry[i])) return s;
        }
        return EDGEC_OK;
    }
};

// Finds the entries and symbols that its kind of model has, by name.
edgec_status name_parts(Plan *plan, const Bundle &bundle, Message &message) {
    const char *const lm_names[] = {"prefill", "decode", "score"}, *const generic_names[] = {"main"};
    const bool lm = plan->kind == 1;
    const char *const *names = lm ? lm_names : generic_names;
    const uint32_t n_names = lm ? 3 : 1;
    uint32_t *const place[] = {&plan->prefill, &plan->decode, &plan->score};
    uint32_t seen = 0;
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        uint32_t k = 0;
        while (k < n_names && strcmp(bundle.string(plan->entry[i].name), names[k])) k++;
        if (k == n_names || seen >> k & 1)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: found the entry '%.100s', wanted %s, each once",
                        bundle.string(plan->entry[i].name), lm ? "prefill, decode, score" : "main");
        seen |= 1u << k;
        if (lm) *place[k] = i;
    }
    if (seen != (1u << n_names) - 1)
        return fail(message, EDGEC_ERROR_FORMAT, "PLAN: found %u entries, wanted %s", plan->n_entries,
                    lm ? "prefill, decode, score" : "main");
    if (!lm) return EDGEC_OK;
    for (uint32_t i = 0; i < plan->n_symbols; i++) {
        const PlanDim d = plan->dims[plan->symbol[i]];
        const char *name = bundle.string(d.a);
        struct { const char *name; int32_t *place; uint32_t min, max; } const known[] = {
            {"seq", &plan->seq, 1, plan->prefill_chunk},
            {"past", &plan->past, 0, plan->max_context},
            {"context", &plan->context, 1, plan->max_context}};
        bool found = false;
        for (const auto &k : known) {
            if (strcmp(name, k.name)) continue;
            if (d.b != k.min || d.c != k.max)
                return fail(message, EDGEC_ERROR_FORMAT, "PLAN: symbol %s: found the range %u..%u, wanted %u..%u", name,
                            d.b, d.c, k.min, k.max);
            *k.place = int32_t(i);
            found = true;
        }
        if (!found)
            return fail(message, EDGEC_ERROR_FORMAT, "PLAN: found the symbol %.100s, wanted seq, past or context",
                        name);
    }
    return EDGEC_OK;
}

}  // namespace

void plan_largest(const Plan &plan, uint32_t entry, uint32_t context, int64_t *symbols) {
    for (uint32_t i = 0; i < plan.n_symbols; i++) symbols[i] = plan.dims[plan.symbol[i]].c;
    if (plan.kind != 1) return;
    const uint32_t chunk = entry == plan.decode ? 1 : plan.prefill_chunk < context ? plan.prefill_chunk : context;
    if (plan.seq >= 0) symbols[plan.seq] = chunk;
    if (plan.past >= 0) symbols[plan.past] = context - chunk;
    if (plan.context >= 0) symbols[plan.context] = context;
}

edgec_status plan_verify(Plan *plan, const Bundle &bundle, const Allocator &allocator, Message &message) {
    if (edgec_status s = name_parts(plan, bundle, message)) return s;
    Verifier *verifier = nullptr;
    // 15 KiB of views and records: too much for the stack of a small thread.
    void *memory = allocator.allocate(allocator.user, sizeof(Verifier), kAlignment);
    if (!memory) return fail(message, EDGEC_ERROR_MEMORY, "open: the check of the plan cannot be allocated");
    verifier = new (memory, Placement{}) Verifier{*plan, bundle, allocator, message, {}, {}, {}, {}, {}};
    const edgec_status status = verifier->run();
    destroy(allocator, verifier);
    return status;
}

}  // namespace edgec
