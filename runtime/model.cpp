// Opening a bundle: everything is verified, then the instruction set is chosen and tried.
#include "session.h"

namespace edgec {
namespace {

// What opening may allocate beyond the file's own size.
constexpr uint64_t kOpenSlack = uint64_t(1) << 20;

void *budget_allocate(void *user, size_t bytes, size_t alignment) {
    Budget &budget = *static_cast<Budget *>(user);
    const uint64_t live = __atomic_add_fetch(&budget.live, bytes, __ATOMIC_RELAXED);
    // `live < bytes`: the sum has wrapped.
    if (live > budget.limit || live < bytes) {
        __atomic_sub_fetch(&budget.live, bytes, __ATOMIC_RELAXED);
        __atomic_store_n(&budget.refused, true, __ATOMIC_RELAXED);
        return nullptr;
    }
    void *memory = budget.inner.allocate(budget.inner.user, bytes, alignment);
    if (!memory) __atomic_sub_fetch(&budget.live, bytes, __ATOMIC_RELAXED);
    return memory;
}

void budget_release(void *user, void *memory, size_t bytes) {
    Budget &budget = *static_cast<Budget *>(user);
    __atomic_sub_fetch(&budget.live, bytes, __ATOMIC_RELAXED);
    budget.inner.release(budget.inner.user, memory, bytes);
}

edgec_status open_all(edgec_model *m, const edgec_open_options &options, Message &message) {
    const Allocator a = m->budget.allocator();
    Bundle &bundle = m->bundle;
    if (edgec_status s = bundle_open(bundle.file, bundle.file_bytes, options.public_key, a, &bundle, message))
        return s;
    if (edgec_status s = plan_parse(bundle, a, &m->plan, message)) return s;
    if (edgec_status s = plan_verify(&m->plan, bundle, a, message)) return s;
    if (edgec_status s = golden_check(bundle, m->plan, message)) return s;
    const Section text = bundle.section[SECTION_TOKENIZER];
    // A generic model has no vocabulary of its own; its token ids are then only bounded by their type.
    const uint32_t vocab = m->plan.kind == 1 ? m->plan.vocab : 0x7FFFFFFFu;
    if (text.data)
        if (edgec_status s = tokenizer_open(text.data, text.bytes, vocab, a, &m->tokenizer, message)) return s;
    // A signature covers the weights by their hashes: without this it would vouch for bytes that nobody has looked at.
    if (options.verify_weights || options.public_key)
        if (edgec_status s = bundle_verify_weights(bundle, message)) return s;
    if (edgec_status s = choose_isa(&m->isa, message)) return s;
    if (options.skip_selftest || m->isa == SCALAR) return EDGEC_OK;
    Message why;
    const edgec_status s = kernels_compare(m->plan, m->isa, a, why);
    if (s == EDGEC_OK) return EDGEC_OK;
    if (s != EDGEC_ERROR_SELFTEST) {
        message = why;
        return s;
    }
    snprintf(m->warning, sizeof m->warning, "running the slow scalar kernels because %s failed: %.180s",
             isa_name(Isa(m->isa)), why.text);
    m->isa = SCALAR;
    return EDGEC_OK;
}

}  // namespace

Allocator Budget::allocator() { return {budget_allocate, budget_release, this}; }

edgec_status model_open(const char *path, const void *data, uint64_t bytes, const edgec_open_options &options,
                        edgec_model **model, Message &message) {
    *model = nullptr;
    Allocator allocator = default_allocator();
    if (const edgec_allocator *a = options.allocator) allocator = {a->allocate, a->release, a->user};
    edgec_model *m = create<edgec_model>(allocator);
    if (!m) return fail(message, EDGEC_ERROR_MEMORY, "open: cannot be allocated");
    m->allocator = allocator;
    m->bundle.file = static_cast<const uint8_t *>(data);
    m->bundle.file_bytes = bytes;
    edgec_status status = EDGEC_OK;
    if (path) {
        status = map_file(path, &m->mapping, message);
        m->bundle.file = m->mapping.data;
        m->bundle.file_bytes = m->mapping.bytes;
    }
    if (status == EDGEC_OK) {
        m->budget.inner = allocator;
        if (!add_u64(m->bundle.file_bytes, kOpenSlack, &m->budget.limit)) m->budget.limit = UINT64_MAX;
        status = open_all(m, options, message);
    }
    if (status == EDGEC_ERROR_MEMORY && m->budget.refused)
        status = fail(message, EDGEC_ERROR_LIMIT,
                      "open: found a need of more than the file's %llu bytes and %llu more, wanted at most that",
                      ull(m->bundle.file_bytes), ull(kOpenSlack));
    if (status != EDGEC_OK) {
        model_close(m);
        return status;
    }
    // From here on only the host's calls decide what is allocated.
    m->budget.limit = UINT64_MAX;
    *model = m;
    return EDGEC_OK;
}

void model_close(edgec_model *model) {
    if (!model) return;
    const Allocator allocator = model->allocator;
    model->kind = nullptr;
    destroy(allocator, model);
}

void model_release(edgec_model *model) {
    tokenizer_close(model->tokenizer);
    unmap_file(&model->mapping);
}

char kHandles[2];

}  // namespace edgec
