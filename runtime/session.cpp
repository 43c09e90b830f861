// Creating, rewinding, saving and destroying a session, and the memory behind it.
#include "session.h"

namespace edgec {
namespace {

// The saved form of a state: this, then per state tensor the rows of the tokens so far (generic models: all of it).
struct SavedHead {
    char magic[8];
    uint8_t model[32];
    uint64_t bytes;
    uint32_t context, position;
};
constexpr char kSavedMagic[9] = "EDGECST1";

// How a state tensor splits around its sequence axis: `outer` blocks of `rows` rows of `inner` bytes, of which the
// first `used` rows of each block matter.
struct Split {
    uint64_t outer, rows, inner, used;
};

Split split_state(const edgec_session &s, uint64_t index) {
    const Plan &plan = s.model->plan;
    const Port &p = plan.states[index];
    const uint64_t bytes = s.state_bytes[index];
    if (plan.kind != 1 || bytes == 0) return {1, 1, bytes, 1};
    const int64_t *values = s.entry[0].values.data();
    Split split = {1, uint64_t(values[p.dim[p.axis]]), 0, 0};
    for (uint32_t k = 0; k < p.axis; k++) split.outer *= uint64_t(values[p.dim[k]]);
    split.inner = bytes / (split.outer * split.rows);
    split.used = s.position;  // at most `context`, which is what the loader has made sure `rows` is
    return split;
}

uint64_t saved_bytes(const edgec_session &s) {
    uint64_t bytes = sizeof(SavedHead);
    for (uint64_t i = 0; i < s.states.size(); i++) {
        const Split p = split_state(s, i);
        bytes += p.outer * p.used * p.inner;
    }
    return bytes;
}

// What one session will take, worked out before anything of it is allocated.
struct Sizes {
    uint64_t arena = kAlignment, scratch = 0, state = 0, other = 0, total = 0;
};

edgec_status measure(const edgec_model &model, uint32_t context, uint32_t threads, Sizes *sizes, Message &message) {
    const Plan &plan = model.plan;
    Array<int64_t> values;
    if (!values.allocate(model.allocator, plan.dims.size()))
        return fail(message, EDGEC_ERROR_MEMORY, "session: cannot be allocated");
    int64_t symbols[kMaxSymbols];
    for (uint32_t i = 0; i < plan.n_entries; i++) {
        plan_largest(plan, i, context, symbols);
        uint64_t scratch = 0;
        edgec_status s = entry_scratch(model, i, symbols, values.data(), &scratch, message);
        if (s != EDGEC_OK) return s;
        if (scratch > sizes->scratch) sizes->scratch = scratch;
        if (plan.entry[i].arena_bytes > sizes->arena) sizes->arena = plan.entry[i].arena_bytes;
        if (plan.kind == 1 && plan.seq >= 0 && plan.past >= 0 && i != plan.decode) {
            // One token at the end of the context takes other paths in the kernels than a whole chunk does.
            symbols[plan.seq] = 1, symbols[plan.past] = int64_t(context) - 1;
            if ((s = entry_scratch(model, i, symbols, values.data(), &scratch, message)) != EDGEC_OK) return s;
            if (scratch > sizes->scratch) sizes->scratch = scratch;
        }
        sizes->other += entry_bytes(model, i);
    }
    bool fits = align_u64(sizes->scratch, &sizes->scratch) && mul_u64(sizes->scratch, threads, &sizes->scratch);
    for (const Port &p : plan.states) {
        uint64_t bytes;
        fits = fits && port_bytes(p, values.data(), &bytes) && align_u64(bytes, &bytes) &&
               add_u64(sizes->state, bytes, &sizes->state);
    }
    sizes->other += sizeof(edgec_session) + plan.states.size() * (sizeof(uint8_t *) + sizeof(uint64_t)) +
                    Pool::bytes(threads) + (plan.kind == 1 ? uint64_t(plan.vocab) * sizeof(float) : 0);
    fits = fits && add_u64(sizes->arena, sizes->scratch, &sizes->total) &&
           add_u64(sizes->total, sizes->state, &sizes->total) && add_u64(sizes->total, sizes->other, &sizes->total);
    if (!fits) return fail(message, EDGEC_ERROR_LIMIT, "session: the memory it needs does not fit 64 bits");
    return EDGEC_OK;
}

edgec_status allocate_all(edgec_session *s, const Sizes &sizes, const PoolHook &hook, uint32_t threads) {
    const edgec_model &model = *s->model;
    const Plan &plan = model.plan;
    const Allocator &a = s->allocator;
    if (!s->arena.allocate(a, sizes.arena) || !s->scratch.allocate(a, sizes.scratch) ||
        !s->state.allocate(a, sizes.state) || !s->states.allocate(a, plan.states.size()) ||
        !s->state_bytes.allocate(a, plan.states.size()) || !s->logits.allocate(a, plan.kind == 1 ? plan.vocab : 0) ||
        !s->pool.start(a, threads, hook))
        return fail(s->message, EDGEC_ERROR_MEMORY, "session: %llu bytes cannot be allocated", ull(sizes.total));
    s->scratch_stride = sizes.scratch / threads;
    int64_t symbols[kMaxSymbols];
    for (uint32_t i = 0; i < plan.n_entries; i++)
        if (edgec_status status = entry_allocate(s, i)) return status;
    plan_largest(plan, 0, s->context, symbols);
    int64_t *values = s->entry[0].values.data();
    if (edgec_status status = plan_evaluate(plan, model.bundle, symbols, values, s->message)) return status;
    uint64_t at = 0;
    for (uint64_t i = 0; i < plan.states.size(); i++) {
        uint64_t aligned = 0;
        if (!port_bytes(plan.states[i], values, &s->state_bytes[i]) || !align_u64(s->state_bytes[i], &aligned))
            return fail(s->message, EDGEC_ERROR_FORMAT, "session: a state has no size");
        s->states[i] = s->state.data() + at;
        at += aligned;
    }
    for (uint32_t i = 0; i < plan.n_entries; i++) {
        plan_largest(plan, i, s->context, symbols);
        if (edgec_status status = entry_prepare(s, i, symbols)) return status;
    }
    return EDGEC_OK;
}

}  // namespace

bool Block::allocate(const Allocator &allocator, uint64_t bytes) {
    if (bytes == 0) return true;
    if (bytes > SIZE_MAX) return false;
    pages_ = allocator.allocate == default_allocator().allocate;
    void *memory = pages_ ? allocate_pages(bytes) : allocator.allocate(allocator.user, size_t(bytes), kAlignment);
    if (!memory) return false;
    if (!pages_) memset(memory, 0, size_t(bytes));
    data_ = static_cast<uint8_t *>(memory);
    bytes_ = bytes;
    allocator_ = allocator;
    return true;
}

void Block::release() {
    if (!data_) return;
    if (pages_) release_pages(data_, bytes_);
    else allocator_.release(allocator_.user, data_, size_t(bytes_));
    data_ = nullptr;
    bytes_ = 0;
}

edgec_status session_create(edgec_model *model, const edgec_session_options &options, edgec_session **session,
                            Message &message) {
    *session = nullptr;
    const Plan &plan = model->plan;
    if (plan.kind == 1 ? options.context > plan.max_context : options.context != 0)
        return fail(message, EDGEC_ERROR_ARGUMENT, "session: context: found %u, wanted at most %u tokens",
                    options.context,
                    plan.max_context);
    if (options.threads > kMaxThreads)
        return fail(message, EDGEC_ERROR_ARGUMENT, "session: threads: found %u, wanted at most %u", options.threads,
                    kMaxThreads);
    const uint32_t context = options.context ? options.context : plan.max_context;
    uint32_t threads = options.threads ? options.threads : core_count();
    threads = threads < kMaxThreads ? threads : kMaxThreads;
    Sizes sizes;
    if (edgec_status s = measure(*model, context, threads, &sizes, message)) return s;
    if (options.max_memory && sizes.total > options.max_memory)
        return fail(message, EDGEC_ERROR_LIMIT,
                    "session: found a need of %llu bytes (arena %llu, scratch %llu, state %llu, other %llu), wanted at "
                    "most %llu",
                    ull(sizes.total), ull(sizes.arena), ull(sizes.scratch), ull(sizes.state), ull(sizes.other),
                    ull(options.max_memory));
    Allocator allocator = model->allocator;
    if (const edgec_allocator *a = options.allocator) allocator = {a->allocate, a->release, a->user};
    PoolHook hook;
    if (options.threadpool) hook = {options.threadpool->run, options.threadpool->user};
    edgec_session *s = create<edgec_session>(allocator);
    if (!s) return fail(message, EDGEC_ERROR_MEMORY, "session: cannot be allocated");
    s->model = model;
    s->allocator = allocator;
    s->max_memory = options.max_memory;
    s->context = context;
    s->profile = options.profile != 0;
    s->memory = {uint32_t(sizeof(edgec_memory)), 0, sizes.arena, sizes.scratch, sizes.state, sizes.other, sizes.total};
    if (edgec_status status = allocate_all(s, sizes, hook, threads)) {
        message = s->message;
        session_destroy(s);
        return status;
    }
    *session = s;
    return EDGEC_OK;
}

void session_destroy(edgec_session *session) {
    if (!session) return;
    const Allocator allocator = session->allocator;
    session->kind = nullptr;
    session->pool.stop();
    destroy(allocator, session);
}

edgec_status session_reset(edgec_session *session) {
    for (uint64_t i = 0; i < session->states.size(); i++)
        memset(session->states[i], 0, size_t(session->state_bytes[i]));
    session->position = 0;
    return EDGEC_OK;
}

edgec_status session_seek(edgec_session *session, uint32_t position) {
    const Plan &plan = session->model->plan;
    if (plan.kind != 1)
        return fail(session->message, EDGEC_ERROR_UNSUPPORTED, "seek: only a language model has a position");
    if (position > session->position)
        return fail(session->message, EDGEC_ERROR_ARGUMENT, "seek: position: found %u, wanted at most the current %u",
                    position, session->position);
    // Rows of the states from `position` on are never read before they are written again.
    session->position = position;
    return EDGEC_OK;
}

edgec_status session_save(const edgec_session *session, void *data, uint64_t *bytes) {
    const uint64_t needed = saved_bytes(*session), capacity = *bytes;
    *bytes = needed;
    if (!data) return EDGEC_OK;
    if (capacity < needed)
        return fail(session->message, EDGEC_ERROR_ARGUMENT, "save: found room for %llu bytes, wanted %llu",
                    ull(capacity),
                    ull(needed));
    SavedHead head = {};
    memcpy(head.magic, kSavedMagic, sizeof head.magic);
    memcpy(head.model, session->model->bundle.identity, sizeof head.model);
    head.bytes = needed, head.context = session->context, head.position = session->position;
    uint8_t *out = static_cast<uint8_t *>(data);
    memcpy(out, &head, sizeof head);
    out += sizeof head;
    for (uint64_t i = 0; i < session->states.size(); i++) {
        const Split p = split_state(*session, i);
        const uint64_t block = p.used * p.inner;
        for (uint64_t k = 0; k < p.outer; k++, out += block)
            if (block) memcpy(out, session->states[i] + k * p.rows * p.inner, size_t(block));
    }
    return EDGEC_OK;
}

edgec_status session_load(edgec_session *session, const void *data, uint64_t bytes) {
    SavedHead head;
    if (bytes < sizeof head || (memcpy(&head, data, sizeof head), memcmp(head.magic, kSavedMagic, sizeof head.magic)))
        return fail(session->message, EDGEC_ERROR_FORMAT, "load: these %llu bytes are not a saved state", ull(bytes));
    if (memcmp(head.model, session->model->bundle.identity, sizeof head.model))
        return fail(session->message, EDGEC_ERROR_FORMAT, "load: the state was saved from another model");
    if (head.context != session->context || head.position > head.context)
        return fail(session->message, EDGEC_ERROR_CONTEXT, "load: found position %u of context %u, wanted context %u",
                    head.position, head.context, session->context);
    const uint32_t before = session->position;
    session->position = head.position;
    const uint64_t needed = saved_bytes(*session);
    if (head.bytes != needed || bytes != needed) {
        session->position = before;
        return fail(session->message, EDGEC_ERROR_FORMAT, "load: found %llu bytes, wanted %llu", ull(bytes),
                    ull(needed));
    }
    const uint8_t *in = static_cast<const uint8_t *>(data) + sizeof head;
    for (uint64_t i = 0; i < session->states.size(); i++) {
        const Split p = split_state(*session, i);
        const uint64_t block = p.used * p.inner;
        for (uint64_t k = 0; k < p.outer; k++, in += block)
            if (block) memcpy(session->states[i] + k * p.rows * p.inner, in, size_t(block));
    }
    return EDGEC_OK;
}

}  // namespace edgec
