// The part of ONNX Runtime's C interface that a library of custom operators needs, declared by hand.
//
// The interface is a table of function pointers that grows at its end only; a place in it never changes its meaning
// (onnxruntime_c_api.h says so, and that is what makes libraries work with newer versions). So a table with holes is
// enough: every member that is used stands at its documented place, which the assertions below repeat.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace ort {

// Of these only pointers are passed around.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct MemoryInfo;
struct TensorInfo;
struct Allocator;

constexpr uint32_t kApiVersion = 17;  // of the table: the first with KernelContext_ParallelFor, onnxruntime 1.17
constexpr int kFail = 1, kInvalidArgument = 2;                    // OrtErrorCode
constexpr int kFloat = 1, kUint8 = 2, kInt64 = 7;                 // ONNXTensorElementDataType
constexpr int kRequired = 0, kOptional = 1;                       // OrtCustomOpInputOutputCharacteristic
constexpr int kArenaAllocator = 1, kMemoryDefault = 0;            // OrtAllocatorType, OrtMemType

struct Api {
    Status *(*create_status)(int code, const char *message);
    void *hole_1[25];
    Status *(*create_custom_op_domain)(const char *name, CustomOpDomain **domain);
    Status *(*custom_op_domain_add)(CustomOpDomain *domain, const struct CustomOp *op);
    Status *(*add_custom_op_domain)(SessionOptions *options, CustomOpDomain *domain);
    void *hole_29[22];
    Status *(*get_tensor_mutable_data)(Value *value, void **data);
    void *hole_52[8];
    Status *(*get_tensor_element_type)(const TensorInfo *info, int *type);
    Status *(*get_dimensions_count)(const TensorInfo *info, size_t *count);
    Status *(*get_dimensions)(const TensorInfo *info, int64_t *dims, size_t count);
    void *hole_63[2];
    Status *(*get_tensor_type_and_shape)(const Value *value, TensorInfo **info);
    void *hole_66[3];
    Status *(*create_cpu_memory_info)(int allocator, int memory, MemoryInfo **info);
    void *hole_70[5];
    Status *(*allocator_alloc)(Allocator *allocator, size_t bytes, void **memory);
    Status *(*allocator_free)(Allocator *allocator, void *memory);
    void *hole_77[9];
    Status *(*kernel_info_get_attribute_int64)(const KernelInfo *info, const char *name, int64_t *value);
    void *hole_87[1];
    Status *(*kernel_context_get_input_count)(const KernelContext *context, size_t *count);
    void *hole_89[1];
    Status *(*kernel_context_get_input)(const KernelContext *context, size_t index, const Value **value);
    Status *(*kernel_context_get_output)(KernelContext *context, size_t index, const int64_t *dims, size_t count,
                                         Value **value);
    void *hole_92[1];
    void (*release_status)(Status *status);
    void (*release_memory_info)(MemoryInfo *info);
    void *hole_95[4];
    void (*release_tensor_info)(TensorInfo *info);
    void *hole_100[32];
    void (*release_allocator)(Allocator *allocator);
    void *hole_133[120];
    Status *(*kernel_context_get_allocator)(const KernelContext *context, const MemoryInfo *memory,
                                            Allocator **allocator);
    void *hole_254[20];
    // Calls part(user, i) for i in 0..total-1 on the session's own threads; batches 0 lets it cut them as it likes.
    Status *(*kernel_context_parallel_for)(const KernelContext *context, void (*part)(void *user, size_t i),
                                           size_t total, size_t batches, void *user);
};

struct ApiBase {
    const Api *(*get_api)(uint32_t version);  // nullptr when it is older
    const char *(*get_version_string)();
};

// What a custom operator is. Members behind kernel_compute_v2 are read from version 17 on.
struct CustomOp {
    uint32_t version;
    void *(*create_kernel)(const CustomOp *op, const Api *api, const KernelInfo *info);
    const char *(*get_name)(const CustomOp *op);
    const char *(*get_execution_provider_type)(const CustomOp *op);  // nullptr: the CPU's
    int (*get_input_type)(const CustomOp *op, size_t index);
    size_t (*get_input_type_count)(const CustomOp *op);
    int (*get_output_type)(const CustomOp *op, size_t index);
    size_t (*get_output_type_count)(const CustomOp *op);
    void (*kernel_compute)(void *kernel, KernelContext *context);
    void (*kernel_destroy)(void *kernel);
    int (*get_input_characteristic)(const CustomOp *op, size_t index);
    int (*get_output_characteristic)(const CustomOp *op, size_t index);
    int (*get_input_memory_type)(const CustomOp *op, size_t index);
    int (*get_variadic_input_min_arity)(const CustomOp *op);
    int (*get_variadic_input_homogeneity)(const CustomOp *op);
    int (*get_variadic_output_min_arity)(const CustomOp *op);
    int (*get_variadic_output_homogeneity)(const CustomOp *op);
    Status *(*create_kernel_v2)(const CustomOp *op, const Api *api, const KernelInfo *info, void **kernel);
    Status *(*kernel_compute_v2)(void *kernel, KernelContext *context);
};
constexpr uint32_t kCustomOpVersion = 16;

#define EDGEC_PLACE(member, place) \
    static_assert(offsetof(Api, member) == (place) * sizeof(void *), "the documented place of " #member)
EDGEC_PLACE(create_status, 0);
EDGEC_PLACE(create_custom_op_domain, 26);
EDGEC_PLACE(custom_op_domain_add, 27);
EDGEC_PLACE(add_custom_op_domain, 28);
EDGEC_PLACE(get_tensor_mutable_data, 51);
EDGEC_PLACE(get_tensor_element_type, 60);
EDGEC_PLACE(get_dimensions_count, 61);
EDGEC_PLACE(get_dimensions, 62);
EDGEC_PLACE(get_tensor_type_and_shape, 65);
EDGEC_PLACE(create_cpu_memory_info, 69);
EDGEC_PLACE(allocator_alloc, 75);
EDGEC_PLACE(allocator_free, 76);
EDGEC_PLACE(kernel_info_get_attribute_int64, 86);
EDGEC_PLACE(kernel_context_get_input_count, 88);
EDGEC_PLACE(kernel_context_get_input, 90);
EDGEC_PLACE(kernel_context_get_output, 91);
EDGEC_PLACE(release_status, 93);
EDGEC_PLACE(release_memory_info, 94);
EDGEC_PLACE(release_tensor_info, 99);
EDGEC_PLACE(release_allocator, 132);
EDGEC_PLACE(kernel_context_get_allocator, 253);
EDGEC_PLACE(kernel_context_parallel_for, 274);
#undef EDGEC_PLACE

}  // namespace ort
