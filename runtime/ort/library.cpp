// libedgec_ort: operators of the domain "edgec" for ONNX Runtime, computed by edgec's kernels.
//
//   LinearBits(x f32 [M..., K], w u8 [bytes], bias? f32 [N]; N, K, bits, group, form) -> y f32 [M..., N]   x Wᵀ + bias
//   GatherBits(w u8 [bytes], indices i64 [...]; N, K, bits, group, form) -> y f32 [..., K]                rows of W
//
// w lies as the kernels linear_bits and gather_bits read it, and bits, group and form say what it is (docs/kernels.md).
// Nothing is laid out anew: weights that onnxruntime maps from a file stay there. Work is cut into parts (parts.h), which
// run on the session's own threads. Every shape and size comes from a file: the kernel's check decides before anything is
// allocated or computed.
#include "abi.h"

#include <stdlib.h>

#include "contract/bits.h"
#include "parts.h"

#if defined(_WIN32)
#define EDGEC_EXPORT extern "C" __declspec(dllexport)
#else
#define EDGEC_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace edgec {
namespace {

// Releases of onnxruntime 1 between the oldest and the newest that tests/targets/test_ort_library.py has run with.
constexpr int kMajor = 1, kFirstMinor = 20, kLastMinor = 32;
constexpr char kTested[] = "1.20, 1.26, 1.32";
constexpr size_t kMostInputs = 3;
// What a node says about its weight, in this order.
constexpr const char *kAttributes[] = {"N", "K", "bits", "group", "form"};
constexpr size_t kAttributeCount = sizeof kAttributes / sizeof kAttributes[0];

// What an operator is here. inputs: element types; those from `required` on may be absent.
struct Row {
    const char *name, *kernel;
    int inputs[kMostInputs];
    size_t input_count, required;
};
constexpr Row kRows[] = {
    {"LinearBits", "linear_bits", {ort::kFloat, ort::kUint8, ort::kFloat}, 3, 2},
    {"GatherBits", "gather_bits", {ort::kUint8, ort::kInt64}, 2, 2},
};
constexpr size_t kRowCount = sizeof kRows / sizeof kRows[0];

struct Op : ort::CustomOp {
    const Row *row;
    uint8_t isa;
};

// A node of a graph. Threads may compute it at the same time, so it does not change.
struct Node {
    const ort::Api *api;
    const Row *row;
    const Kernel *kernel;
    RunFn run;
    ort::MemoryInfo *memory;
    int64_t attribute[kAttributeCount];
};

ort::Status *refuse(const ort::Api &api, const char *where, const char *why) {
    Message message;
    fail(message, EDGEC_ERROR_ARGUMENT, "edgec: %s: %s", where, why);
    return api.create_status(ort::kInvalidArgument, message.text);
}

// What does not fit, with all that it was found in. onnxruntime puts the node's name in front.
ort::Status *misfit(const Node &node, const View &w, const char *why) {
    const int64_t *a = node.attribute, ints[] = {a[0], a[2], a[3], a[4]};
    const BitsShape s = bits_shape(ints, a[1]);
    const int64_t tables = !s.vector ? 0 : (s.group ? ceil_div(s.n, s.group) : 1) * s.table_values() * (s.wide ? 4 : 2);
    int64_t wanted = 0;
    const bool known = s.tile_bytes() && !__builtin_mul_overflow(s.tiles(), s.tile_bytes(), &wanted) &&
                       !__builtin_add_overflow(wanted, tables, &wanted);
    Message wish, message;
    if (known) fail(wish, EDGEC_ERROR_ARGUMENT, "%lld bytes, and operands of N rows and K columns", ll(wanted));
    else fail(wish, EDGEC_ERROR_ARGUMENT, "bits, group and form as docs/kernels.md lists them, N and K of at least 1");
    fail(message, EDGEC_ERROR_ARGUMENT,
         "edgec: %s: %s: found N %lld, K %lld, bits %lld, group %lld, form %lld and a weight of %lld bytes, wanted %s",
         node.row->name, why, ll(a[0]), ll(a[1]), ll(a[2]), ll(a[3]), ll(a[4]), ll(w.rank ? w.dim[0] : 0), wish.text);
    return node.api->create_status(ort::kInvalidArgument, message.text);
}

#define EDGEC_TRY(call) \
    if (ort::Status *status = (call)) return status

// Input `index` as a kernel sees it.
ort::Status *read_input(const ort::Api &api, const ort::KernelContext *context, size_t index, int wanted,
                        const char *name, View *view) {
    const ort::Value *value = nullptr;
    EDGEC_TRY(api.kernel_context_get_input(context, index, &value));
    if (!value) return nullptr;  // absent
    ort::TensorInfo *info = nullptr;
    EDGEC_TRY(api.get_tensor_type_and_shape(value, &info));
    int type = 0;
    size_t rank = 0;
    ort::Status *status = api.get_tensor_element_type(info, &type);
    if (!status) status = api.get_dimensions_count(info, &rank);
    const bool fits = !status && type == wanted && rank <= size_t(kMaxRank);
    if (fits) status = api.get_dimensions(info, view->dim, rank);
    api.release_tensor_info(info);
    if (status) return status;
    if (!fits) return refuse(api, name, "an input has another type, or more than 8 dimensions");
    view->rank = uint8_t(rank);
    view->dtype = type == ort::kFloat ? F32 : type == ort::kUint8 ? U8 : I64;
    EDGEC_TRY(api.get_tensor_mutable_data(const_cast<ort::Value *>(value), &view->data));
    // Where there are no elements there may be no memory either, but the operand is not absent.
    if (!view->data) view->data = view;
    return nullptr;
}

ort::Status *make_output(const ort::Api &api, ort::KernelContext *context, const View &shape, void **data) {
    ort::Value *value = nullptr;
    EDGEC_TRY(api.kernel_context_get_output(context, 0, shape.dim, shape.rank, &value));
    void *found = nullptr;
    EDGEC_TRY(api.get_tensor_mutable_data(value, &found));
    if (found) *data = found;
    return nullptr;
}

void run_one(void *user, size_t part) { run_part(*static_cast<Parts *>(user), int64_t(part)); }

// On the session's threads; a single part needs none of them.
ort::Status *run_all(const ort::Api &api, const ort::KernelContext *context, Parts &parts) {
    if (parts.count > 1) return api.kernel_context_parallel_for(context, run_one, size_t(parts.count), 0, &parts);
    run_part(parts, 0);
    return nullptr;
}

ort::Status *run_with_scratch(const Node &node, const ort::KernelContext *context, Parts &parts) {
    const ort::Api &api = *node.api;
    if (!parts.stride) return run_all(api, context, parts);
    uint64_t bytes;
    if (!parts.bytes(&bytes) || !add_u64(bytes, kAlignment, &bytes))
        return refuse(api, node.row->name, "needs more scratch memory than a machine has");
    ort::Allocator *allocator = nullptr;
    EDGEC_TRY(api.kernel_context_get_allocator(context, node.memory, &allocator));
    void *memory = nullptr;
    ort::Status *status = api.allocator_alloc(allocator, size_t(bytes), &memory);
    if (!status && !memory) status = refuse(api, node.row->name, "its scratch memory cannot be allocated");
    if (!status) {
        parts.scratch = reinterpret_cast<uint8_t *>((uintptr_t(memory) + kAlignment - 1) & ~uintptr_t(kAlignment - 1));
        status = run_all(api, context, parts);
        ort::Status *freed = api.allocator_free(allocator, memory);
        if (freed && status) api.release_status(freed);
        else if (freed) status = freed;
    }
    api.release_allocator(allocator);
    return status;
}

// Everything but the inputs, which are ready. op: that of `args`. shape: of the output, as onnxruntime is to see it.
ort::Status *run_kernel(const Node &node, ort::KernelContext *context, View *op, const View &w, const View &shape,
                        const Args &args) {
    Parts parts;
    // Memory for the output is asked for when its size has proved right: N alone could be any number. Until then the
    // operand is there, with no memory of its own.
    op[0].data = op, op[0].dtype = F32;
    if (const char *why = plan_parts(*node.kernel, node.run, args, &parts)) return misfit(node, w, why);
    EDGEC_TRY(make_output(*node.api, context, shape, &op[0].data));
    if (parts.count) EDGEC_TRY(run_with_scratch(node, context, parts));
    if (__atomic_load_n(args.fault, __ATOMIC_RELAXED))
        return refuse(*node.api, node.row->name, "an index is out of range");
    return nullptr;
}

ort::Status *linear_bits(const Node &node, ort::KernelContext *context, View *in) {
    const View &x = in[0];
    const int64_t *a = node.attribute;
    View y = x;
    if (!x.data || x.rank < 1) return refuse(*node.api, node.row->name, "x has no dimensions");
    if (x.dim[x.rank - 1] != a[1]) {
        Message message;
        fail(message, EDGEC_ERROR_ARGUMENT, "x has rows of another length than the weight: found %lld, wanted K = %lld",
             ll(x.dim[x.rank - 1]), ll(a[1]));
        return refuse(*node.api, node.row->name, message.text);
    }
    y.dim[y.rank - 1] = a[0];
    View op[] = {y, x, in[1], in[2], View()};
    const int64_t ints[] = {0, 0, a[0], a[2], a[3], a[4]};
    const float floats[] = {0, 0};
    int32_t fault = 0;
    return run_kernel(node, context, op, in[1], y, {op, ints, floats, 5, 6, 2, &fault});
}

ort::Status *gather_bits(const Node &node, ort::KernelContext *context, View *in) {
    View index = in[1], y = in[1], shape = in[1];
    if (!index.data || index.rank >= kMaxRank)
        return refuse(*node.api, node.row->name, "indices have too many dimensions");
    shape.dim[shape.rank++] = node.attribute[1];
    // The kernel takes a list of indices and makes a matrix.
    int64_t count = 1;
    for (int d = 0; d < index.rank; d++)
        if (__builtin_mul_overflow(count, index.dim[d], &count))
            return refuse(*node.api, node.row->name, "too many indices");
    index.rank = 1, index.dim[0] = count;
    y.rank = 2, y.dim[0] = count, y.dim[1] = node.attribute[1];
    View op[] = {y, in[0], index};
    int32_t fault = 0;
    return run_kernel(node, context, op, in[0], shape, {op, node.attribute, nullptr, 3, 5, 0, &fault});
}

constexpr ort::Status *(*kCompute[kRowCount])(const Node &, ort::KernelContext *, View *) = {linear_bits, gather_bits};

const Row &row_of(const ort::CustomOp *op) { return *static_cast<const Op *>(op)->row; }

ort::Status *create_node(const ort::CustomOp *custom, const ort::Api *api, const ort::KernelInfo *info, void **out) {
    const Op &op = *static_cast<const Op *>(custom);
    Node *node = static_cast<Node *>(calloc(1, sizeof(Node)));
    if (!node) return refuse(*api, op.row->name, "cannot be allocated");
    node->api = api, node->row = op.row, node->kernel = find_kernel(op.row->kernel);
    node->run = kernel_run(*node->kernel, op.isa);
    ort::Status *status = api->create_cpu_memory_info(ort::kArenaAllocator, ort::kMemoryDefault, &node->memory);
    for (size_t i = 0; !status && i < kAttributeCount; i++)
        status = api->kernel_info_get_attribute_int64(info, kAttributes[i], &node->attribute[i]);
    if (!status) return *out = node, nullptr;
    if (node->memory) api->release_memory_info(node->memory);
    free(node);
    return status;
}

void destroy_node(void *kernel) {
    Node *node = static_cast<Node *>(kernel);
    node->api->release_memory_info(node->memory);
    free(node);
}

ort::Status *compute_node(void *kernel, ort::KernelContext *context) {
    const Node &node = *static_cast<const Node *>(kernel);
    View in[kMostInputs];
    size_t given = 0;  // optional ones at the end may not be there at all
    EDGEC_TRY(node.api->kernel_context_get_input_count(context, &given));
    for (size_t i = 0; i < node.row->input_count && i < given; i++)
        EDGEC_TRY(read_input(*node.api, context, i, node.row->inputs[i], node.row->name, &in[i]));
    return kCompute[node.row - kRows](node, context, in);
}

Op describe(const Row *row, uint8_t isa) {
    Op op = {};
    op.version = ort::kCustomOpVersion, op.row = row, op.isa = isa;
    op.get_name = [](const ort::CustomOp *o) { return row_of(o).name; };
    op.get_execution_provider_type = [](const ort::CustomOp *) -> const char * { return nullptr; };
    op.get_input_type = [](const ort::CustomOp *o, size_t i) { return row_of(o).inputs[i]; };
    op.get_input_type_count = [](const ort::CustomOp *o) { return row_of(o).input_count; };
    op.get_output_type = [](const ort::CustomOp *, size_t) { return ort::kFloat; };
    op.get_output_type_count = [](const ort::CustomOp *) -> size_t { return 1; };
    op.get_input_characteristic = [](const ort::CustomOp *o, size_t i) {
        return i < row_of(o).required ? ort::kRequired : ort::kOptional;
    };
    op.get_output_characteristic = [](const ort::CustomOp *, size_t) { return ort::kRequired; };
    op.get_input_memory_type = [](const ort::CustomOp *, size_t) { return ort::kMemoryDefault; };
    const auto none = [](const ort::CustomOp *) { return 0; };
    op.get_variadic_input_min_arity = op.get_variadic_output_min_arity = none;
    op.get_variadic_input_homogeneity = op.get_variadic_output_homogeneity = none;
    op.create_kernel_v2 = create_node, op.kernel_compute_v2 = compute_node, op.kernel_destroy = destroy_node;
    return op;
}

// The operators as one onnxruntime knows them. Sessions refer to them for as long as they live, and nobody tells when
// the last one is gone, so they stay; a later session with the same settings gets the same ones.
struct Registration {
    const ort::Api *api;
    uint8_t isa;
    Op op[kRowCount];
    ort::CustomOpDomain *domain;
    Registration *next;
};
Registration *g_registrations = nullptr;

ort::Status *add_operators(const ort::Api &api, ort::SessionOptions *options, uint8_t isa) {
    Registration *head = __atomic_load_n(&g_registrations, __ATOMIC_ACQUIRE);
    for (Registration *r = head; r; r = r->next)
        if (r->api == &api && r->isa == isa) return api.add_custom_op_domain(options, r->domain);
    Registration *r = static_cast<Registration *>(calloc(1, sizeof(Registration)));
    if (!r) return refuse(api, "registration", "cannot be allocated");
    r->api = &api, r->isa = isa;
    ort::Status *status = api.create_custom_op_domain("edgec", &r->domain);
    for (size_t i = 0; !status && i < kRowCount; i++) {
        r->op[i] = describe(&kRows[i], isa);
        status = api.custom_op_domain_add(r->domain, &r->op[i]);
    }
    if (status) return status;  // what was made stays: the domain may know its operators
    // Another thread may have been faster; then there are two, which does no harm.
    do r->next = head;
    while (!__atomic_compare_exchange_n(&g_registrations, &head, r, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return api.add_custom_op_domain(options, r->domain);
}

// Up to four digits; false for anything else.
bool parse_number(const char **text, int *number) {
    const char *begin = *text;
    for (*number = 0; **text >= '0' && **text <= '9' && *text - begin < 4; ++*text) *number = 10 * *number + (**text - '0');
    return *text != begin;
}

// "1.32.0" and "1.32" -> 1, 32; false for anything else.
bool parse_version(const char *text, int *major, int *minor) {
    if (!parse_number(&text, major) || *text++ != '.') return false;
    return parse_number(&text, minor) && (*text == '.' || *text == 0);
}

}  // namespace
}  // namespace edgec

EDGEC_EXPORT ort::Status *RegisterCustomOps(ort::SessionOptions *options, const ort::ApiBase *base) {
    using namespace edgec;
    // The table of version 1 exists in every release and holds what a refusal needs.
    const ort::Api *oldest = base->get_api(1);
    const char *version = base->get_version_string();
    int major = 0, minor = 0;
    Message message;
    if (!parse_version(version, &major, &minor) || major != kMajor || minor < kFirstMinor || minor > kLastMinor) {
        fail(message, EDGEC_ERROR_UNSUPPORTED,
             "edgec %s: found ONNX Runtime %.40s, wanted %d.%d to %d.%d (tested: %s)", EDGEC_VERSION, version, kMajor,
             kFirstMinor, kMajor, kLastMinor, kTested);
        return oldest->create_status(ort::kFail, message.text);
    }
    const ort::Api *api = base->get_api(ort::kApiVersion);
    if (!api) return oldest->create_status(ort::kFail, "edgec: this ONNX Runtime has no interface of version 17");
    uint8_t isa;
    if (choose_isa(&isa, message) != EDGEC_OK) return api->create_status(ort::kInvalidArgument, message.text);
    return add_operators(*api, options, isa);
}

// For tests and tools: the edgec release that this library belongs to.
EDGEC_EXPORT const char *edgec_ort_version(void) { return EDGEC_VERSION; }
