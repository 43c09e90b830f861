// The C interface: checks handles, pointers and struct sizes, then calls the parts. Nothing else is decided here.
#include "session.h"

#ifndef EDGEC_VERSION
#define EDGEC_VERSION "0.1.0"
#endif

using namespace edgec;

namespace {

// Far more than any struct of the interface will take.
constexpr uint32_t kLargestStruct = 4096;

bool good(const edgec_model *model) { return model && model->kind == &kHandles[0]; }
bool good(const edgec_session *session) { return session && session->kind == &kHandles[1]; }

// Whether a struct that a caller passes in is one that this library can honour. An older caller's is shorter. Of a newer
// caller's, what lies beyond our own must be zero: a wish that the library does not know is refused, never ignored.
// (So a new field must change sizeof, on 32-bit systems too.)
template <class T>
edgec_status check_struct(const char *what, const T *theirs, Message &message) {
    const uint32_t size = theirs->struct_size;
    // No sizeof leaves a field cut in two; and none is so large that a size that was never set passes as one.
    if (size < sizeof(uint32_t) || size % alignof(T) || size > kLargestStruct)
        return fail(message, EDGEC_ERROR_ARGUMENT, "%s: struct_size: found %u, wanted sizeof of the struct", what, size);
    const uint8_t *const bytes = reinterpret_cast<const uint8_t *>(theirs);
    for (uint32_t k = sizeof(T); k < size; k++)
        if (bytes[k])
            return fail(message, EDGEC_ERROR_ARGUMENT,
                        "%s: found a field at byte %u that this library, version %s, does not know: it is older than "
                        "the caller's edgec.h; wanted zeros beyond byte %zu", what, k, EDGEC_VERSION, sizeof(T));
    return EDGEC_OK;
}

// Reads the caller's struct into ours; what an older caller does not know, and a null pointer, stay zero.
template <class T>
edgec_status read_struct(const char *what, const T *theirs, T *ours, Message &message) {
    *ours = T();
    ours->struct_size = sizeof(T);
    if (!theirs) return EDGEC_OK;
    if (edgec_status status = check_struct(what, theirs, message)) return status;
    const uint32_t size = theirs->struct_size;
    memcpy(ours, theirs, size < sizeof(T) ? size : sizeof(T));
    return EDGEC_OK;
}

// Fills as much of the caller's struct as the caller knows; struct_size stays the caller's. What only a newer caller
// knows becomes zero.
template <class T>
edgec_status write_struct(T *theirs, T ours) {
    if (!theirs) return EDGEC_ERROR_ARGUMENT;
    const uint32_t size = theirs->struct_size;
    if (size < sizeof(uint32_t) || size % alignof(T) || size > kLargestStruct) return EDGEC_ERROR_ARGUMENT;
    ours.struct_size = size;
    memcpy(theirs, &ours, size < sizeof(T) ? size : sizeof(T));
    if (size > sizeof(T)) memset(reinterpret_cast<uint8_t *>(theirs) + sizeof(T), 0, size - sizeof(T));
    return EDGEC_OK;
}

// The structs of functions, which are used where they lie: they must be whole.
edgec_status check(const char *what, const edgec_allocator *a, Message &message) {
    if (!a) return EDGEC_OK;
    if (edgec_status status = check_struct(what, a, message)) return status;
    if (a->struct_size >= sizeof *a && a->allocate && a->release) return EDGEC_OK;
    return fail(message, EDGEC_ERROR_ARGUMENT, "%s: a field is not set", what);
}
edgec_status check(const char *what, const edgec_threadpool *p, Message &message) {
    if (!p) return EDGEC_OK;
    if (edgec_status status = check_struct(what, p, message)) return status;
    return p->struct_size >= sizeof *p && p->run ? EDGEC_OK
                                                 : fail(message, EDGEC_ERROR_ARGUMENT, "%s: a field is not set", what);
}

edgec_status read_session_options(const edgec_session_options *theirs, edgec_session_options *ours, Message &message) {
    if (edgec_status status = read_struct("session: options", theirs, ours, message)) return status;
    if (edgec_status status = check("session: allocator", ours->allocator, message)) return status;
    return check("session: threadpool", ours->threadpool, message);
}

edgec_status bad(Message &message, const char *words) { return fail(message, EDGEC_ERROR_ARGUMENT, "%s", words); }

// Gives the caller the words of a failure, or an empty string.
edgec_status report(edgec_status status, const Message &message, char *buffer, size_t bytes) {
    message.copy_to(buffer, bytes);
    return status;
}

edgec_status open_model(const char *path, const void *data, uint64_t bytes, const edgec_open_options *options,
                        edgec_model **model, char *buffer, size_t buffer_bytes) {
    Message message;
    if (!model) return report(bad(message, "open: model is NULL"), message, buffer, buffer_bytes);
    *model = nullptr;
    edgec_open_options o;
    edgec_status status = read_struct("open: options", options, &o, message);
    if (status == EDGEC_OK) status = check("open: allocator", o.allocator, message);
    if (status != EDGEC_OK) return report(status, message, buffer, buffer_bytes);
    if (o.reserved) status = bad(message, "open: options: reserved: wanted 0");
    else if (!path && !data) status = bad(message, "open: the path or the data is NULL");
    else if (uintptr_t(data) % kAlignment) status = bad(message, "open: data: wanted 64-byte alignment");
    else if (bytes > SIZE_MAX) status = bad(message, "open: larger than the address space");
    else status = model_open(path, data, bytes, o, model, message);
    return report(status, message, buffer, buffer_bytes);
}

edgec_status describe(const edgec_model *model, bool output, uint32_t index, edgec_tensor *tensor) {
    if (!good(model)) return EDGEC_ERROR_ARGUMENT;
    const Plan &plan = model->plan;
    if (plan.kind != 0) return EDGEC_ERROR_UNSUPPORTED;
    const Array<Port> &ports = output ? plan.entry[0].outputs : plan.entry[0].inputs;
    if (index >= ports.size()) return EDGEC_ERROR_ARGUMENT;
    const Port &p = ports[index];
    Array<int64_t> values;
    int64_t symbols[kMaxSymbols];
    Message message;
    if (!values.allocate(model->allocator, plan.dims.size())) return EDGEC_ERROR_MEMORY;
    plan_largest(plan, 0, 0, symbols);
    if (edgec_status s = plan_evaluate(plan, model->bundle, symbols, values.data(), message)) return s;
    edgec_tensor t = {};
    t.dtype = p.dtype, t.rank = p.rank, t.name = model->bundle.string(p.name);
    for (uint32_t k = 0; k < p.rank; k++) t.shape[k] = values[p.dim[k]];
    port_bytes(p, values.data(), &t.bytes);
    return write_struct(tensor, t);
}

}  // namespace

const char *edgec_version(void) { return EDGEC_VERSION; }

const char *edgec_status_text(edgec_status status) {
    switch (status) {
    case EDGEC_OK: return "ok";
    case EDGEC_ERROR_ARGUMENT: return "bad argument";
    case EDGEC_ERROR_IO: return "the file cannot be read";
    case EDGEC_ERROR_FORMAT: return "not a usable bundle";
    case EDGEC_ERROR_VERSION: return "the bundle needs a newer runtime";
    case EDGEC_ERROR_HASH: return "hash mismatch";
    case EDGEC_ERROR_MEMORY: return "out of memory";
    case EDGEC_ERROR_LIMIT: return "a limit would be exceeded";
    case EDGEC_ERROR_TENSOR: return "wrong tensor or token";
    case EDGEC_ERROR_CONTEXT: return "the context is full";
    case EDGEC_ERROR_UNSUPPORTED: return "not supported";
    case EDGEC_ERROR_CANCELLED: return "cancelled";
    case EDGEC_ERROR_SELFTEST: return "self-test failed";
    case EDGEC_ERROR_FAULT: return "an index inside the data is out of range";
    case EDGEC_ERROR_SIGNATURE: return "no valid signature by the wanted key";
    }
    return "unknown status";
}

edgec_status edgec_open(const char *path, const edgec_open_options *options, edgec_model **model, char *message,
                        size_t message_bytes) {
    return open_model(path, nullptr, 0, options, model, message, message_bytes);
}

edgec_status edgec_open_buffer(const void *data, uint64_t bytes, const edgec_open_options *options, edgec_model **model,
                               char *message, size_t message_bytes) {
    return open_model(nullptr, data, bytes, options, model, message, message_bytes);
}

void edgec_close(edgec_model *model) {
    if (good(model)) model_close(model);
}

edgec_status edgec_model_get_info(const edgec_model *model, edgec_model_info *info) {
    if (!good(model)) return EDGEC_ERROR_ARGUMENT;
    const Plan &plan = model->plan;
    edgec_model_info i = {};
    i.kind = plan.kind;
    i.max_context = plan.max_context, i.vocab_size = plan.vocab, i.prefill_chunk = plan.prefill_chunk;
    i.n_inputs = plan.kind == 0 ? uint32_t(plan.entry[0].inputs.size()) : 0;
    i.n_outputs = plan.kind == 0 ? uint32_t(plan.entry[0].outputs.size()) : 0;
    i.has_tokenizer = model->tokenizer != nullptr;
    i.bos_token = model->tokenizer ? tokenizer_bos(model->tokenizer) : -1;
    i.eos_token = model->tokenizer ? tokenizer_eos(model->tokenizer) : -1;
    i.weight_bytes = model->bundle.section[SECTION_WEIGHTS].bytes;
    i.file_bytes = model->bundle.file_bytes;
    i.isa = isa_name(Isa(model->isa));
    i.warning = model->warning;
    return write_struct(info, i);
}

edgec_status edgec_model_input(const edgec_model *model, uint32_t index, edgec_tensor *tensor) {
    return describe(model, false, index, tensor);
}
edgec_status edgec_model_output(const edgec_model *model, uint32_t index, edgec_tensor *tensor) {
    return describe(model, true, index, tensor);
}

edgec_status edgec_model_manifest(const edgec_model *model, const char **json, uint64_t *bytes) {
    if (!good(model) || !json || !bytes) return EDGEC_ERROR_ARGUMENT;
    const Section s = model->bundle.section[SECTION_MANIFEST];
    *json = reinterpret_cast<const char *>(s.data);
    *bytes = s.bytes;
    return EDGEC_OK;
}

edgec_status edgec_verify(edgec_model *model) {
    Message message;
    return good(model) ? bundle_verify_weights(model->bundle, message) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_selftest(edgec_model *model, const edgec_session_options *golden, char *buffer,
                            size_t buffer_bytes) {
    Message message;
    edgec_session_options o;
    edgec_status status = good(model) ? read_session_options(golden, &o, message) : bad(message, "selftest: not a model");
    if (status == EDGEC_OK) status = kernels_compare(model->plan, model->isa, model->allocator, message);
    if (status == EDGEC_OK && golden) status = golden_run(model, o, message);
    return report(status, message, buffer, buffer_bytes);
}

edgec_status edgec_session_create(edgec_model *model, const edgec_session_options *options, edgec_session **session,
                                  char *buffer, size_t buffer_bytes) {
    Message message;
    edgec_status status = EDGEC_OK;
    edgec_session_options o;
    if (session) *session = nullptr;
    if (!session || !good(model)) status = bad(message, "session: the model or the result is NULL");
    else status = read_session_options(options, &o, message);
    if (status == EDGEC_OK) status = session_create(model, o, session, message);
    return report(status, message, buffer, buffer_bytes);
}

void edgec_session_destroy(edgec_session *session) {
    if (good(session)) session_destroy(session);
}

const char *edgec_last_error(const edgec_session *session) {
    return good(session) ? session->message.text : "not a session";
}

edgec_status edgec_session_memory(const edgec_session *session, edgec_memory *memory) {
    return good(session) ? write_struct(memory, session->memory) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_session_reset(edgec_session *session) {
    return good(session) ? session_reset(session) : EDGEC_ERROR_ARGUMENT;
}

uint32_t edgec_session_position(const edgec_session *session) { return good(session) ? session->position : 0; }

edgec_status edgec_session_seek(edgec_session *session, uint32_t position) {
    return good(session) ? session_seek(session, position) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_session_save(const edgec_session *session, void *data, uint64_t *bytes) {
    return good(session) && bytes ? session_save(session, data, bytes) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_session_load(edgec_session *session, const void *data, uint64_t bytes) {
    return good(session) && data ? session_load(session, data, bytes) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_run(edgec_session *session, const edgec_tensor *inputs, uint32_t n_inputs, edgec_tensor *outputs,
                       uint32_t n_outputs) {
    return good(session) ? run_tensors(session, inputs, n_inputs, outputs, n_outputs) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_step(edgec_session *session, const int32_t *tokens, uint32_t n, float *logits) {
    return good(session) ? lm_step(session, tokens, n, logits) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_score(edgec_session *session, const int32_t *tokens, uint32_t n, float *logits) {
    return good(session) ? lm_score(session, tokens, n, logits) : EDGEC_ERROR_ARGUMENT;
}

edgec_status edgec_generate(edgec_session *session, const int32_t *prompt, uint32_t n,
                            const edgec_generate_options *options, uint32_t *generated) {
    if (!good(session)) return EDGEC_ERROR_ARGUMENT;
    edgec_generate_options o;
    if (!options) return bad(session->message, "generate: options: found NULL");
    if (edgec_status status = read_struct("generate: options", options, &o, session->message)) return status;
    return lm_generate(session, prompt, n, o, generated);
}

edgec_status edgec_tokenize(const edgec_model *model, const char *text, uint64_t text_bytes, int add_special,
                            int32_t *tokens, uint64_t *count) {
    if (!good(model) || (!text && text_bytes) || !count) return EDGEC_ERROR_ARGUMENT;
    if (!model->tokenizer) return EDGEC_ERROR_UNSUPPORTED;
    Message message;
    return tokenizer_encode(model->tokenizer, text, text_bytes, add_special != 0, tokens, count, message);
}

edgec_status edgec_detokenize(const edgec_model *model, const int32_t *tokens, uint64_t count, char *text,
                              uint64_t *bytes) {
    if (!good(model) || (!tokens && count) || !bytes) return EDGEC_ERROR_ARGUMENT;
    if (!model->tokenizer) return EDGEC_ERROR_UNSUPPORTED;
    Message message;
    return tokenizer_decode(model->tokenizer, tokens, count, text, bytes, message);
}

uint32_t edgec_profile_count(const edgec_session *session) {
    if (!good(session) || !session->profile) return 0;
    uint64_t n = 0;
    for (uint32_t i = 0; i < session->model->plan.n_entries; i++) n += session->entry[i].calls.size();
    return uint32_t(n);
}

edgec_status edgec_profile_get(const edgec_session *session, uint32_t index, edgec_call_profile *profile) {
    if (!good(session) || index >= edgec_profile_count(session)) return EDGEC_ERROR_ARGUMENT;
    const edgec_model &model = *session->model;
    uint32_t e = 0;
    for (; index >= session->entry[e].calls.size(); e++) index -= uint32_t(session->entry[e].calls.size());
    const Entry &entry = model.plan.entry[e];
    const ReadyCall &call = session->entry[e].calls[index];
    uint32_t layer;
    memcpy(&layer, model.bundle.section[SECTION_PLAN].data + entry.calls[index].at, sizeof layer);
    edgec_call_profile p = {};
    p.threads = call.threads;
    p.entry = model.bundle.string(entry.name), p.layer = model.bundle.string(layer);
    const Kernel &kernel = kKernels[entry.calls[index].kernel];
    p.kernel = kernel.name, p.isa = isa_name(kernel_isa(kernel, model.isa));
    p.count = call.count, p.nanoseconds = call.nanoseconds, p.waited = call.waited;
    for (uint32_t i = 0; i < call.n_views; i++) {
        const View &v = session->entry[e].views[call.view + i];
        const int64_t bytes = v.data ? bytes_of(v) : 0;
        p.bytes += bytes > 0 ? uint64_t(bytes) : 0;
    }
    return write_struct(profile, p);
}

void edgec_profile_reset(edgec_session *session) {
    if (!good(session)) return;
    for (uint32_t i = 0; i < session->model->plan.n_entries; i++)
        for (ReadyCall &call : session->entry[i].calls) call.count = call.nanoseconds = call.waited = 0;
}
