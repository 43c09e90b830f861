// The GOLDEN section: what the compiler saw the reference model answer, compared with what this machine answers.
#include <math.h>

#include "../kernels/view.h"
#include "random.h"
#include "session.h"

namespace edgec {
namespace {

edgec_status broken(Message &message, const char *what) {
    return fail(message, EDGEC_ERROR_FORMAT, "GOLDEN: %s", what);
}

float element(const View &v, uint64_t i) {
    const uint8_t *p = static_cast<const uint8_t *>(v.data) + i * uint64_t(dtype_size(v.dtype));
    float f;
    uint16_t half;
    int32_t word;
    int64_t whole;
    switch (v.dtype) {
    case F32: memcpy(&f, p, 4); return f;
    case F16: memcpy(&half, p, 2); return f16_to_f32(half);
    case BF16: memcpy(&half, p, 2); return bf16_to_f32(half);
    case I32: memcpy(&word, p, 4); return float(word);
    case I64: memcpy(&whole, p, 8); return float(whole);
    case I8: return float(int8_t(*p));
    default: return float(*p);
    }
}

// Running comparison of answers with the recorded ones.
struct Comparison {
    float worst = 0, largest = 0;

    void add(float answer, float recorded) {
        const float d = fabsf(answer - recorded);
        // Equal infinities agree; their difference would be NaN.
        if (answer != recorded && !(d <= worst)) worst = d;
        if (fabsf(recorded) > largest) largest = fabsf(recorded);
    }

    edgec_status judge(const char *what, float tolerance, Message &message) const {
        const float allowed = tolerance * (largest > 0 ? largest : 1);
        if (worst <= allowed) return EDGEC_OK;
        return fail(message, EDGEC_ERROR_SELFTEST, "golden: %.100s: found a difference of %g, wanted at most %g", what,
                    double(worst), double(allowed));
    }
};

// The caller's bound holds for the session and what the vectors need besides.
edgec_status check_room(const edgec_session &s, uint64_t bytes, Message &message) {
    if (!s.max_memory || bytes <= s.max_memory - s.memory.total) return EDGEC_OK;
    return fail(message, EDGEC_ERROR_LIMIT,
                "golden: found a need of %llu bytes (session %llu, inputs and outputs %llu), wanted at most %llu",
                ull(s.memory.total + bytes), ull(s.memory.total), ull(bytes), ull(s.max_memory));
}

edgec_status run_language_model(edgec_session *s, Reader &r, float tolerance, Message &message) {
    const uint32_t n = r.u32();
    Array<int32_t> tokens;
    if (edgec_status status = check_room(*s, uint64_t(n) * sizeof(int32_t), message)) return status;
    if (!tokens.allocate(s->allocator, n)) return fail(message, EDGEC_ERROR_MEMORY, "golden: cannot be allocated");
    for (int32_t &t : tokens) t = int32_t(r.u32());
    if (edgec_status status = lm_step(s, tokens.data(), n, nullptr)) {
        message = s->message;
        return status;
    }
    Comparison c;
    for (uint32_t i = r.u32(); i > 0; i--) {
        const uint32_t id = r.u32();
        c.add(s->logits[id], r.f32());
    }
    return c.judge("logits", tolerance, message);
}

edgec_status run_generic(edgec_session *s, Reader &r, float tolerance, Message &message) {
    const Plan &plan = s->model->plan;
    const Entry &entry = plan.entry[0];
    ReadyEntry &ready = s->entry[0];
    int64_t symbols[kMaxSymbols];
    plan_largest(plan, 0, 0, symbols);
    if (edgec_status status = entry_prepare(s, 0, symbols)) {
        message = s->message;
        return status;
    }
    const int64_t *values = ready.values.data();
    uint64_t total = 0, bytes, aligned;
    const Array<Port> *const both[] = {&entry.inputs, &entry.outputs};
    for (const Array<Port> *ports : both)
        for (const Port &p : *ports)
            if (!port_bytes(p, values, &bytes) || !align_u64(bytes + 1, &aligned) || !add_u64(total, aligned, &total))
                return fail(message, EDGEC_ERROR_LIMIT, "golden: the tensors are too large");
    if (edgec_status status = check_room(*s, total, message)) return status;
    Array<uint8_t> memory;
    if (!memory.allocate(s->allocator, total))
        return fail(message, EDGEC_ERROR_MEMORY, "golden: %llu bytes cannot be allocated", ull(total));
    uint64_t at = 0;
    const auto place = [&](const Port &p) {
        port_bytes(p, values, &bytes);
        align_u64(bytes + 1, &aligned);
        at += aligned;
        return memory.data() + at - aligned;
    };
    SplitMix random = {r.u64()};
    for (uint64_t i = 0; i < entry.inputs.size(); i++) {
        ready.inputs[i] = place(entry.inputs[i]);
        for (uint64_t k = 0; k + 4 <= bytes; k += 4) {
            const float x = random.unit();
            memcpy(ready.inputs[i] + k, &x, 4);
        }
    }
    for (uint64_t i = 0; i < entry.outputs.size(); i++) ready.outputs[i] = place(entry.outputs[i]);
    if (edgec_status status = entry_run(s, 0)) {
        message = s->message;
        return status;
    }
    r.u32();  // number of outputs, checked at open
    for (uint64_t i = 0; i < entry.outputs.size(); i++) {
        const Port &p = entry.outputs[i];
        View v;
        v.dtype = uint8_t(p.dtype), v.rank = uint8_t(p.rank), v.data = ready.outputs[i];
        for (uint32_t k = 0; k < p.rank; k++) v.dim[k] = values[p.dim[k]];
        const uint64_t count = uint64_t(count_of(v));
        const uint32_t stride = r.u32(), n = r.u32();
        Comparison c;
        for (uint32_t k = 0; k < n; k++) {
            const float recorded = r.f32();
            if (uint64_t(k) * stride >= count)
                return fail(message, EDGEC_ERROR_FORMAT,
                            "GOLDEN: output '%.100s': found %u values, wanted at most %llu",
                            s->model->bundle.string(p.name), n, ull((count + stride - 1) / stride));
            c.add(element(v, uint64_t(k) * stride), recorded);
        }
        if (edgec_status status = c.judge(s->model->bundle.string(p.name), tolerance, message)) return status;
    }
    return EDGEC_OK;
}

}  // namespace

edgec_status golden_check(const Bundle &bundle, const Plan &plan, Message &message) {
    const Section s = bundle.section[SECTION_GOLDEN];
    if (!s.data) return EDGEC_OK;
    Reader r(s.data, s.bytes);
    const uint32_t kind = r.u32();
    const float tolerance = r.f32();
    if (r.bad() || kind != plan.kind || !(tolerance >= 0 && tolerance <= 1))
        return broken(message, "its head is damaged");
    if (kind == 1) {
        const uint32_t n_tokens = r.u32();
        if (n_tokens < 1 || n_tokens > plan.max_context || n_tokens > r.left() / 4)
            return broken(message, "the number of tokens is out of range");
        for (uint32_t i = 0; i < n_tokens; i++)
            if (r.u32() >= plan.vocab) return broken(message, "a token is outside the vocabulary");
        const uint32_t n_pairs = r.u32();
        if (r.bad() || n_pairs < 1 || n_pairs > r.left() / 8)
            return broken(message, "the number of logits is out of range");
        for (uint32_t i = 0; i < n_pairs; i++) {
            if (r.u32() >= plan.vocab) return broken(message, "a logit's token is outside the vocabulary");
            if (!isfinite(r.f32())) return broken(message, "a logit is not finite");
        }
    } else {
        r.u64();
        const Entry &e = plan.entry[0];
        for (const Port &p : e.inputs)
            if (p.dtype != F32) return broken(message, "golden values need a model whose inputs are all f32");
        if (r.u32() != e.outputs.size()) return broken(message, "the number of outputs is not the model's");
        for (uint64_t i = 0; i < e.outputs.size(); i++) {
            const uint32_t stride = r.u32(), n = r.u32();
            if (r.bad() || stride == 0 || n == 0 || n > r.left() / 4)
                return broken(message, "an output's stride or count is out of range");
            for (uint32_t k = 0; k < n; k++) {
                const float f = r.f32();
                if (f != f) return broken(message, "a value is NaN");
            }
        }
    }
    return r.bad() || r.left() ? broken(message, "its length does not match its contents") : EDGEC_OK;
}

edgec_status golden_run(edgec_model *model, edgec_session_options options, Message &message) {
    const Section section = model->bundle.section[SECTION_GOLDEN];
    if (!section.data)
        return fail(message, EDGEC_ERROR_UNSUPPORTED, "golden: this bundle holds no golden vectors");
    Reader r(section.data, section.bytes);
    const uint32_t kind = r.u32();
    const float tolerance = r.f32();
    options.context = 0, options.profile = 0;
    if (kind == 1) {
        Reader ahead = r;
        options.context = ahead.u32();
    }
    edgec_session *session = nullptr;
    if (edgec_status s = session_create(model, options, &session, message)) return s;
    const edgec_status status = kind == 1 ? run_language_model(session, r, tolerance, message)
                                          : run_generic(session, r, tolerance, message);
    session_destroy(session);
    return status;
}

}  // namespace edgec
