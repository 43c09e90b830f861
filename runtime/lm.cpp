// Language models: chunked prefill, decoding, scoring, generation.
#include "session.h"

namespace edgec {
namespace {

edgec_status run_entry(edgec_session *s, uint32_t entry, const int32_t *tokens, uint32_t n, uint32_t past,
                       float *logits) {
    const Plan &plan = s->model->plan;
    int64_t symbols[kMaxSymbols] = {};
    if (plan.seq >= 0) symbols[plan.seq] = n;
    if (plan.past >= 0) symbols[plan.past] = past;
    if (plan.context >= 0) symbols[plan.context] = s->context;
    if (edgec_status status = entry_prepare(s, entry, symbols)) return status;
    ReadyEntry &ready = s->entry[entry];
    // Kernels only read inputs: the loader has seen to it that no call writes one.
    ready.inputs[0] = reinterpret_cast<uint8_t *>(const_cast<int32_t *>(tokens));
    ready.outputs[0] = reinterpret_cast<uint8_t *>(logits);
    return entry_run(s, entry);
}

// Everything a caller can get wrong, before anything runs.
edgec_status check_tokens(edgec_session *s, const char *what, const int32_t *tokens, uint32_t n, uint64_t more) {
    const Plan &plan = s->model->plan;
    if (plan.kind != 1)
        return fail(s->message, EDGEC_ERROR_UNSUPPORTED, "%s: this is not a language model; use run", what);
    if (!tokens || n == 0)
        return fail(s->message, EDGEC_ERROR_ARGUMENT, "%s: tokens: found none, wanted at least 1", what);
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || uint32_t(tokens[i]) >= plan.vocab)
            return fail(s->message, EDGEC_ERROR_TENSOR, "%s: token %u: found id %d, wanted 0..%u", what, i, tokens[i],
                        plan.vocab - 1);
    if (uint64_t(n) + more > s->context - s->position)
        return fail(s->message, EDGEC_ERROR_CONTEXT,
                    "%s: found %llu tokens after position %u, wanted at most %u (context %u)", what, ull(n + more),
                    s->position, s->context - s->position, s->context);
    return EDGEC_OK;
}

// The flag is another thread's to set, at any moment.
bool cancelled(const volatile int *flag) { return flag && __atomic_load_n(flag, __ATOMIC_RELAXED) != 0; }

// Appends checked tokens; the position moves only when all have run.
edgec_status append(edgec_session *s, const int32_t *tokens, uint32_t n, const volatile int *cancel) {
    const Plan &plan = s->model->plan;
    uint32_t done = 0;
    while (done < n) {
        if (cancelled(cancel)) return fail(s->message, EDGEC_ERROR_CANCELLED, "stopped by the caller's flag");
        const uint32_t left = n - done, chunk = left < plan.prefill_chunk ? left : plan.prefill_chunk;
        const uint32_t entry = chunk == 1 ? plan.decode : plan.prefill;
        edgec_status status = run_entry(s, entry, tokens + done, chunk, s->position + done, s->logits.data());
        if (status != EDGEC_OK) return status;
        done += chunk;
    }
    s->position += n;
    return EDGEC_OK;
}

// Decoding text as it grows, or nothing when the bundle has no tokenizer.
struct Speaker {
    const Tokenizer *tokenizer;
    TextStream stream;
    Array<char> text;

    // One push and the end.
    static uint64_t bytes(const Tokenizer *t) { return 2 * text_stream_capacity(t); }

    edgec_status begin(edgec_session *s) {
        if (!tokenizer) return EDGEC_OK;
        if (!text.allocate(s->allocator, bytes(tokenizer)))
            return fail(s->message, EDGEC_ERROR_MEMORY, "generate: the text buffer cannot be allocated");
        text_stream_begin(&stream, tokenizer);
        return EDGEC_OK;
    }

    // The last token's text ends with what a cut-off character is replaced by.
    int tell(const edgec_generate_options &o, int32_t token, bool last) {
        if (!o.on_token) return 0;
        if (!tokenizer) return o.on_token(o.user, token, nullptr, 0);
        uint64_t bytes = text_stream_push(&stream, token, text.data());
        if (last) bytes += text_stream_end(&stream, text.data() + bytes);
        return o.on_token(o.user, token, text.data(), size_t(bytes));
    }
};

edgec_status generate(edgec_session *s, const int32_t *prompt, uint32_t n, const edgec_generate_options &o,
                      uint32_t *generated) {
    if (edgec_status status = append(s, prompt, n, o.cancel)) return status;
    const uint32_t vocab = s->model->plan.vocab;
    const Tokenizer *tokenizer = s->model->tokenizer;
    Array<uint64_t> sorted;
    const uint64_t bytes = sampler_scratch_bytes(o.temperature, o.top_p, o.top_k, vocab);
    const uint64_t words = tokenizer ? Speaker::bytes(tokenizer) : 0;
    if (s->max_memory && bytes + words > s->max_memory - s->memory.total)
        return fail(s->message, EDGEC_ERROR_LIMIT,
                    "generate: found %llu bytes needed for sampling and text, wanted at most %llu",
                    ull(bytes + words), ull(s->max_memory - s->memory.total));
    if (!sorted.allocate(s->allocator, (bytes + 7) / 8))
        return fail(s->message, EDGEC_ERROR_MEMORY, "generate: %llu bytes cannot be allocated", ull(bytes));
    Sampler sampler;
    sampler_init(&sampler, o.temperature, o.top_p, o.top_k, o.seed, sorted.data());
    Speaker speaker{tokenizer, {}, {}};
    if (edgec_status status = speaker.begin(s)) return status;
    for (uint32_t i = 0; i < o.max_tokens; i++) {
        if (cancelled(o.cancel)) return fail(s->message, EDGEC_ERROR_CANCELLED, "stopped by the caller's flag");
        const int32_t token = sample(&sampler, s->logits.data(), vocab);
        if (!o.ignore_eos && tokenizer && tokenizer_is_stop(tokenizer, token)) break;
        const int stop = speaker.tell(o, token, i + 1 == o.max_tokens);
        if (edgec_status status = append(s, &token, 1, nullptr)) return status;
        *generated = i + 1;
        if (stop) return fail(s->message, EDGEC_ERROR_CANCELLED, "stopped by the callback after %u tokens", i + 1);
    }
    return EDGEC_OK;
}

}  // namespace

edgec_status lm_step(edgec_session *s, const int32_t *tokens, uint32_t n, float *logits) {
    if (edgec_status status = check_tokens(s, "step", tokens, n, 0)) return status;
    if (edgec_status status = append(s, tokens, n, nullptr)) return status;
    if (logits) memcpy(logits, s->logits.data(), size_t(s->logits.bytes()));
    return EDGEC_OK;
}

edgec_status lm_score(edgec_session *s, const int32_t *tokens, uint32_t n, float *logits) {
    if (edgec_status status = check_tokens(s, "score", tokens, n, 0)) return status;
    const Plan &plan = s->model->plan;
    if (!logits) return fail(s->message, EDGEC_ERROR_ARGUMENT, "score: logits is NULL, wanted room for %u rows", n);
    for (uint32_t done = 0; done < n;) {
        const uint32_t left = n - done, chunk = left < plan.prefill_chunk ? left : plan.prefill_chunk;
        edgec_status status =
            run_entry(s, plan.score, tokens + done, chunk, s->position + done, logits + uint64_t(done) * plan.vocab);
        if (status != EDGEC_OK) return status;
        done += chunk;
    }
    s->position += n;
    memcpy(s->logits.data(), logits + uint64_t(n - 1) * plan.vocab, size_t(s->logits.bytes()));
    return EDGEC_OK;
}

edgec_status lm_generate(edgec_session *s, const int32_t *prompt, uint32_t n, const edgec_generate_options &options,
                         uint32_t *generated) {
    uint32_t produced = 0;
    if (generated) *generated = 0;
    if (edgec_status status = check_tokens(s, "generate", prompt, n, options.max_tokens)) return status;
    if (const char *why = sampler_check(options.temperature, options.top_p))
        return fail(s->message, EDGEC_ERROR_ARGUMENT, "generate: %s", why);
    const uint32_t before = s->position;
    const edgec_status status = generate(s, prompt, n, options, &produced);
    if (generated) *generated = produced;
    // Stopping is no failure: what was delivered stays in the session.
    if (status == EDGEC_OK || (status == EDGEC_ERROR_CANCELLED && s->position != before)) return status;
    s->position = before;
    return status;
}

}  // namespace edgec
