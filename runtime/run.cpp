// Generic models: named tensors of the caller in, named tensors out.
#include "session.h"

namespace edgec {
namespace {

// A port's tensor of this run. `packed`: memory of ours where the caller's cannot be used in place.
struct Bound {
    uint32_t given;  // index in the caller's array + 1; 0: not given
    uint64_t bytes;
    bool query;  // an output of which only the shape is asked
    uint8_t *packed;
};

bool contiguous(const edgec_tensor &t) {
    bool none = true, same = true;
    int64_t stride = 1;
    for (uint32_t k = t.rank; k-- > 0;) {
        none = none && t.strides[k] == 0;
        same = same && (t.strides[k] == stride || t.shape[k] <= 1);
        if (__builtin_mul_overflow(stride, t.shape[k], &stride)) return none;
    }
    return none || same;
}

// Moves between the caller's strided tensor and packed memory, innermost dim at a time.
void copy_strided(const edgec_tensor &t, uint8_t *packed, uint64_t size, bool to_packed) {
    int64_t index[EDGEC_MAX_RANK] = {}, count = 1;
    for (uint32_t k = 0; k < t.rank; k++) count *= t.shape[k];
    uint8_t *base = static_cast<uint8_t *>(t.data);
    for (int64_t i = 0; i < count; i++, packed += size) {
        int64_t at = 0;
        for (uint32_t k = 0; k < t.rank; k++) at += index[k] * t.strides[k];
        uint8_t *theirs = base + at * int64_t(size);
        memcpy(to_packed ? packed : theirs, to_packed ? theirs : packed, size_t(size));
        for (uint32_t k = t.rank; k-- > 0;) {
            if (++index[k] < t.shape[k]) break;
            index[k] = 0;
        }
    }
}

struct Runner {
    edgec_session &s;
    const Plan &plan;
    const Bundle &bundle;
    const Entry &entry;
    const edgec_tensor *inputs;
    edgec_tensor *outputs;
    Array<Bound> in, out;
    Array<uint8_t> staging;  // all packed tensors of this run
    uint64_t staging_bytes = 0;

    const char *name(const Port &p) const { return bundle.string(p.name); }

    edgec_status bind(const char *what, const Array<Port> &ports, const edgec_tensor *tensors, uint32_t n,
                      Array<Bound> *bound) {
        if (!bound->allocate(s.allocator, ports.size()))
            return fail(s.message, EDGEC_ERROR_MEMORY, "run: cannot be allocated");
        for (uint32_t i = 0; i < n; i++) {
            const edgec_tensor &t = tensors[i];
            // Nothing else of a struct of another size may be looked at.
            if (t.struct_size != sizeof(edgec_tensor))
                return fail(s.message, EDGEC_ERROR_ARGUMENT, "run: %s %u: struct_size: found %u, wanted %zu", what, i,
                            t.struct_size, sizeof(edgec_tensor));
            if (t.reserved) return fail(s.message, EDGEC_ERROR_ARGUMENT, "run: %s %u: reserved: wanted 0", what, i);
            if (!t.name) return fail(s.message, EDGEC_ERROR_ARGUMENT, "run: %s %u: name is NULL", what, i);
            uint64_t p = 0;
            while (p < ports.size() && strcmp(name(ports[p]), t.name)) p++;
            if (p == ports.size() || (*bound)[p].given)
                return fail(s.message, EDGEC_ERROR_TENSOR, "run: %s: found '%.100s'%s, wanted %s%.200s", what, t.name,
                            p == ports.size() ? "" : " twice", ports.size() ? "names such as " : "none",
                            ports.size() ? name(ports[0]) : "");
            if (t.dtype != ports[p].dtype)
                return fail(s.message, EDGEC_ERROR_TENSOR, "run: %s '%.100s': dtype: found %u, wanted %u", what, t.name,
                            t.dtype, ports[p].dtype);
            (*bound)[p].given = i + 1;
        }
        return EDGEC_OK;
    }

    // Symbol values from the shapes given; every shape must then be what the model says.
    edgec_status shapes(int64_t *symbols) {
        uint64_t known = 0;
        for (uint64_t p = 0; p < in.size(); p++) {
            const Port &port = entry.inputs[p];
            if (!in[p].given)
                return fail(s.message, EDGEC_ERROR_TENSOR, "run: input '%.100s' is missing", name(port));
            const edgec_tensor &t = inputs[in[p].given - 1];
            if (t.rank != port.rank)
                return fail(s.message, EDGEC_ERROR_TENSOR, "run: input '%.100s': rank: found %u, wanted %u", name(port),
                            t.rank, port.rank);
            for (uint32_t k = 0; k < port.rank; k++) {
                if (plan.dims[port.dim[k]].op != DIM_SYMBOL) continue;
                const uint32_t symbol = uint32_t(__builtin_ctzll(plan.dim_symbols[port.dim[k]]));
                if (known >> symbol & 1) continue;
                symbols[symbol] = t.shape[k];
                known |= uint64_t(1) << symbol;
            }
        }
        edgec_status status = entry_prepare(&s, 0, symbols);
        if (status != EDGEC_OK) return status;
        const int64_t *values = s.entry[0].values.data();
        for (uint64_t p = 0; p < in.size(); p++) {
            const Port &port = entry.inputs[p];
            const edgec_tensor &t = inputs[in[p].given - 1];
            for (uint32_t k = 0; k < port.rank; k++)
                if (t.shape[k] != values[port.dim[k]])
                    return fail(s.message, EDGEC_ERROR_TENSOR, "run: input '%.100s': dim %u: found %lld, wanted %lld",
                                name(port), k, ll(t.shape[k]), ll(values[port.dim[k]]));
        }
        return EDGEC_OK;
    }

    // Whether an output lies over an input that is used in place: calls would read what earlier ones have written.
    bool over_input(const edgec_tensor &t, uint64_t bytes) const {
        const uintptr_t begin = uintptr_t(t.data);
        for (const Bound &b : in) {
            const uintptr_t other = uintptr_t(inputs[b.given - 1].data);
            if (!b.packed && begin < other + b.bytes && other < begin + bytes) return true;
        }
        return false;
    }

    // Whether a caller's memory may be used as it is; else it gets a place in the staging memory.
    edgec_status place(bool output, const Port &port, const edgec_tensor *t, Bound *b) {
        const char *what = output ? "output" : "input";
        if (!port_bytes(port, s.entry[0].values.data(), &b->bytes))
            return fail(s.message, EDGEC_ERROR_TENSOR, "run: %s '%.100s' has no size", what, name(port));
        const uint64_t size = uint64_t(dtype_size(uint8_t(port.dtype)));
        if (t && t->data) {
            const bool dense = contiguous(*t);
            if (dense && t->bytes < b->bytes)
                return fail(s.message, EDGEC_ERROR_TENSOR, "run: %s '%.100s': found room for %llu bytes, wanted %llu",
                            what,
                            name(port), ull(t->bytes), ull(b->bytes));
            // The last element of a strided tensor must lie in its memory; negative strides would leave it.
            uint64_t last = 0;
            bool inside = true;
            for (uint32_t k = 0; k < t->rank && !dense && b->bytes; k++) {
                uint64_t step;
                inside = inside && t->strides[k] >= 0 && mul_u64(uint64_t(t->strides[k]), uint64_t(t->shape[k] - 1),
                                                                 &step) &&
                         add_u64(last, step, &last);
            }
            if (!dense && b->bytes && (!inside || last >= t->bytes / size))
                return fail(s.message, EDGEC_ERROR_TENSOR, "run: %s '%.100s': its strides leave its %llu bytes", what,
                            name(port), ull(t->bytes));
            if (dense && uintptr_t(t->data) % size == 0 && !(output && over_input(*t, b->bytes))) return EDGEC_OK;
        } else if (t && b->bytes && !b->query) {
            return fail(s.message, EDGEC_ERROR_ARGUMENT, "run: %s '%.100s': data is NULL", what, name(port));
        }
        uint64_t aligned;
        if (!align_u64(b->bytes ? b->bytes : 1, &aligned) || !add_u64(staging_bytes, aligned, &staging_bytes))
            return fail(s.message, EDGEC_ERROR_LIMIT, "run: %s '%.100s' is too large", what, name(port));
        b->packed = reinterpret_cast<uint8_t *>(uintptr_t(1));  // wanted; the address follows
        return EDGEC_OK;
    }

    edgec_status run(uint32_t n_inputs, uint32_t n_outputs) {
        if (edgec_status e = bind("input", entry.inputs, inputs, n_inputs, &in)) return e;
        if (edgec_status e = bind("output", entry.outputs, outputs, n_outputs, &out)) return e;
        int64_t symbols[kMaxSymbols] = {};
        if (edgec_status e = shapes(symbols)) return e;
        const int64_t *values = s.entry[0].values.data();
        bool any = false;
        for (uint64_t p = 0; p < out.size(); p++) {
            if (!out[p].given) continue;
            edgec_tensor &t = outputs[out[p].given - 1];
            const Port &port = entry.outputs[p];
            out[p].query = t.data == nullptr;
            any = any || !out[p].query;
            bool same = t.rank == port.rank;
            for (uint32_t k = 0; k < port.rank; k++) same = same && t.shape[k] == values[port.dim[k]];
            if (!out[p].query && !same && t.rank != 0)
                return fail(s.message, EDGEC_ERROR_TENSOR,
                            "run: output '%.100s': its shape is not the model's (ask with data NULL, or give rank 0)",
                            name(port));
            if (!same) memset(t.strides, 0, sizeof t.strides);
            t.rank = port.rank;
            for (uint32_t k = 0; k < port.rank; k++) t.shape[k] = values[port.dim[k]];
        }
        if (!any) return EDGEC_OK;  // shapes were the question
        for (uint64_t p = 0; p < in.size(); p++)
            if (edgec_status e = place(false, entry.inputs[p], &inputs[in[p].given - 1], &in[p])) return e;
        for (uint64_t p = 0; p < out.size(); p++)
            if (edgec_status e = place(true, entry.outputs[p], out[p].given ? &outputs[out[p].given - 1] : nullptr,
                                       &out[p]))
                return e;
        if (s.max_memory && staging_bytes > s.max_memory - s.memory.total)
            return fail(s.message, EDGEC_ERROR_LIMIT,
                        "run: found %llu bytes needed to copy strided, unaligned or overlapping tensors, wanted at most %llu",
                        ull(staging_bytes), ull(s.max_memory - s.memory.total));
        if (!staging.allocate(s.allocator, staging_bytes))
            return fail(s.message, EDGEC_ERROR_MEMORY, "run: %llu bytes cannot be allocated", ull(staging_bytes));
        ReadyEntry &ready = s.entry[0];
        uint64_t at = 0;
        const auto settle = [&](Bound &b, void *theirs) {
            if (!b.packed) return static_cast<uint8_t *>(theirs);
            uint64_t aligned = 0;
            align_u64(b.bytes ? b.bytes : 1, &aligned);
            b.packed = staging.data() + at;
            at += aligned;
            return b.packed;
        };
        for (uint64_t p = 0; p < in.size(); p++) {
            const edgec_tensor &t = inputs[in[p].given - 1];
            ready.inputs[p] = settle(in[p], t.data);
            if (in[p].packed) transfer(entry.inputs[p], t, in[p], true);
        }
        for (uint64_t p = 0; p < out.size(); p++)
            ready.outputs[p] = settle(out[p], out[p].given ? outputs[out[p].given - 1].data : nullptr);
        if (edgec_status e = entry_run(&s, 0)) return e;
        for (uint64_t p = 0; p < out.size(); p++)
            if (out[p].given && !out[p].query && out[p].packed)
                transfer(entry.outputs[p], outputs[out[p].given - 1], out[p], false);
        return EDGEC_OK;
    }

    void transfer(const Port &port, const edgec_tensor &t, const Bound &b, bool to_packed) {
        if (!contiguous(t)) copy_strided(t, b.packed, uint64_t(dtype_size(uint8_t(port.dtype))), to_packed);
        else if (b.bytes && to_packed) memcpy(b.packed, t.data, size_t(b.bytes));
        else if (b.bytes) memcpy(t.data, b.packed, size_t(b.bytes));
    }
};

}  // namespace

edgec_status run_tensors(edgec_session *s, const edgec_tensor *inputs, uint32_t n_inputs, edgec_tensor *outputs,
                         uint32_t n_outputs) {
    const Plan &plan = s->model->plan;
    if (plan.kind != 0)
        return fail(s->message, EDGEC_ERROR_UNSUPPORTED, "run: this is a language model; use step, score or generate");
    if ((n_inputs && !inputs) || n_outputs == 0 || !outputs)
        return fail(s->message, EDGEC_ERROR_ARGUMENT, "run: wanted the inputs and at least one output");
    Runner runner{*s, plan, s->model->bundle, plan.entry[0], inputs, outputs, {}, {}, {}, 0};
    return runner.run(n_inputs, n_outputs);
}

}  // namespace edgec
