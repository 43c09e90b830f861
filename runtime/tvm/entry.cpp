// Kernels as plain C functions that code made by TVM calls: linked into the compiled model, run on TVM's threads.
//
// Sizes are int64, operands dense and row-major; weights lie as docs/kernels.md says of the kernel of the same name. A
// result other than 0 means that nothing was computed: the compiled code asserts it.
#include "parts.h"

// libtvm_runtime's; task(i, ..) for every worker. Without that library in the process everything runs on one thread.
extern "C" __attribute__((weak)) int TVMBackendParallelLaunch(int (*task)(int id, void *group, void *user), void *user,
                                                              int tasks);

namespace edgec {
namespace {

enum Failure { kNone = 0, kIsa = 1, kRefused = 2, kMemory = 3, kIndex = 4 };

// Chosen at the first call: to ask the CPU takes longer than many a call. -1: not yet. Threads may choose twice, alike.
int g_isa = -1;

bool chosen_isa(uint8_t *isa) {
    const int known = __atomic_load_n(&g_isa, __ATOMIC_RELAXED);
    Message message;
    if (known >= 0) return *isa = uint8_t(known), true;
    if (choose_isa(isa, message) != EDGEC_OK) return false;
    __atomic_store_n(&g_isa, int(*isa), __ATOMIC_RELAXED);
    return true;
}

int run_task(int id, void *, void *user) {
    Parts &parts = *static_cast<Parts *>(user);
    if (id < parts.count) run_part(parts, id);  // there may be more workers than parts
    return 0;
}

int call(const char *name, const View *op, int n_op, const int64_t *ints, int n_int, const float *floats, int n_float) {
    uint8_t isa;
    if (!chosen_isa(&isa)) return kIsa;
    const Kernel &kernel = *find_kernel(name);
    int32_t fault = 0;
    const Args args = {op, ints, floats, n_op, n_int, n_float, &fault};
    Parts parts;
    if (plan_parts(kernel, kernel_run(kernel, isa), args, &parts)) return kRefused;
    if (!parts.count) return kNone;
    uint64_t bytes;
    if (!parts.bytes(&bytes)) return kMemory;
    const Allocator allocator = default_allocator();
    if (bytes) {
        parts.scratch = static_cast<uint8_t *>(allocator.allocate(allocator.user, size_t(bytes), kAlignment));
        if (!parts.scratch) return kMemory;
    }
    int failed = 0;
    if (parts.count > 1 && TVMBackendParallelLaunch) failed = TVMBackendParallelLaunch(run_task, &parts, 0);
    else run_part(parts, 0);
    if (bytes) allocator.release(allocator.user, parts.scratch, size_t(bytes));
    return failed ? kRefused : fault ? kIndex : kNone;
}

View view(const void *data, uint8_t dtype, int rank, int64_t a, int64_t b = 0, int64_t c = 0, int64_t d = 0) {
    View v;
    v.data = const_cast<void *>(data), v.dtype = dtype, v.rank = uint8_t(rank);
    v.dim[0] = a, v.dim[1] = b, v.dim[2] = c, v.dim[3] = d;
    return v;
}

View panels(const float *data, int rank, int64_t a, int64_t b, int64_t c = 0) {
    View v = view(data, F32, rank, a, b, c);
    v.format = PANEL16;
    return v;
}

// What follows a product: an activation with its numbers, and a tensor as large as the result that is added after it, or
// before where `first` says so. Without one, `residual` is any address.
View added(const float *residual, int64_t given, View like) {
    like.data = const_cast<float *>(residual);
    return given ? like : View();
}

}  // namespace
}  // namespace edgec

using namespace edgec;

#define EDGEC_ENTRY extern "C" __attribute__((visibility("default"))) int

// y[m, n] = x[m, k] wᵀ + bias, and what follows. bias_count: n, or 0 for none (bias is then any address).
EDGEC_ENTRY edgec_tvm_linear(const float *x, const float *w, const float *bias, const float *residual, float *y, int64_t m,
                             int64_t k, int64_t n, int64_t bias_count, int64_t given, int64_t first, int64_t act, float a,
                             float b) {
    const View op[] = {view(y, F32, 2, m, n), view(x, F32, 2, m, k), panels(w, 2, n, k),
                       bias_count ? view(bias, F32, 1, bias_count) : View(),
                       added(residual, given, view(y, F32, 2, m, n))};
    const int64_t ints[] = {act, first};
    const float floats[] = {a, b};
    return call("linear", op, 5, ints, 2, floats, 2);
}

EDGEC_ENTRY edgec_tvm_linear_bits(const float *x, const uint8_t *w, const float *bias, const float *residual, float *y,
                                  int64_t m, int64_t k, int64_t n, int64_t bias_count, int64_t bytes, int64_t bits,
                                  int64_t group, int64_t form, int64_t given, int64_t first, int64_t act, float a,
                                  float b) {
    const View op[] = {view(y, F32, 2, m, n), view(x, F32, 2, m, k), view(w, U8, 1, bytes),
                       bias_count ? view(bias, F32, 1, bias_count) : View(),
                       added(residual, given, view(y, F32, 2, m, n))};
    const int64_t ints[] = {act, first, n, bits, group, form};
    const float floats[] = {a, b};
    return call("linear_bits", op, 5, ints, 6, floats, 2);
}

// An activation of n values.
EDGEC_ENTRY edgec_tvm_unary(const float *x, float *y, int64_t n, int64_t act, float a, float b) {
    const View op[] = {view(y, F32, 1, n), view(x, F32, 1, n)};
    const int64_t ints[] = {act};
    const float floats[] = {a, b};
    return call("unary", op, 2, ints, 1, floats, 2);
}

// y[m, k]: rows of x normalized. beta_count: k, or 0 for none.
EDGEC_ENTRY edgec_tvm_layernorm(const float *x, const float *gamma, const float *beta, float *y, int64_t m, int64_t k,
                                int64_t beta_count, float epsilon) {
    const View op[] = {view(y, F32, 2, m, k), View(), view(x, F32, 2, m, k), View(), view(gamma, F32, 1, k),
                       beta_count ? view(beta, F32, 1, beta_count) : View()};
    return call("layernorm", op, 6, nullptr, 0, &epsilon, 1);
}
EDGEC_ENTRY edgec_tvm_softmax(const float *x, float *y, int64_t m, int64_t k) {
    const View op[] = {view(y, F32, 2, m, k), view(x, F32, 2, m, k)};
    const int64_t ints[] = {0};
    return call("softmax", op, 2, ints, 1, nullptr, 0);
}

// y[b, m, n] = x[b, m, k] w[b, k, n], both known at run time only.
EDGEC_ENTRY edgec_tvm_matmul(const float *x, const float *w, float *y, int64_t b, int64_t m, int64_t k, int64_t n) {
    const View op[] = {view(y, F32, 3, b, m, n), view(x, F32, 3, b, m, k), view(w, F32, 3, b, k, n)};
    const int64_t ints[] = {0};
    const float floats[] = {1};
    return call("matmul", op, 3, ints, 1, floats, 1);
}

// y[count, k] = rows of the table [n, k].
EDGEC_ENTRY edgec_tvm_gather_bits(const uint8_t *w, const int64_t *index, float *y, int64_t count, int64_t n, int64_t k,
                                  int64_t bytes, int64_t bits, int64_t group, int64_t form) {
    const View op[] = {view(y, F32, 2, count, k), view(w, U8, 1, bytes), view(index, I64, 1, count)};
    const int64_t ints[] = {n, k, bits, group, form};
    return call("gather_bits", op, 3, ints, 5, nullptr, 0);
}

// Images are NHWC: x[b, h, w, ci], y[b, oh, ow, co]. lo, hi: the numbers of the activation.
EDGEC_ENTRY edgec_tvm_conv2d(const float *x, const float *weight, const float *bias, const float *residual, float *y,
                             int64_t b, int64_t h, int64_t w, int64_t ci, int64_t oh, int64_t ow, int64_t co,
                             int64_t bias_count, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t pt, int64_t pl,
                             int64_t dh, int64_t dw, int64_t groups, int64_t given, int64_t first, int64_t act, float lo,
                             float hi) {
    if (groups < 1 || co % groups || ci % groups) return kRefused;
    const View op[] = {view(y, F32, 4, b, oh, ow, co), view(x, F32, 4, b, h, w, ci),
                       panels(weight, 3, groups, co / groups, kh * kw * (ci / groups)),
                       bias_count ? view(bias, F32, 1, bias_count) : View(),
                       added(residual, given, view(y, F32, 4, b, oh, ow, co))};
    const int64_t ints[] = {kh, kw, sh, sw, pt, pl, dh, dw, groups, act, first};
    const float floats[] = {lo, hi};
    return call("conv2d", op, 5, ints, 11, floats, 2);
}

EDGEC_ENTRY edgec_tvm_dwconv2d(const float *x, const float *weight, const float *bias, const float *residual, float *y,
                               int64_t b, int64_t h, int64_t w, int64_t ci, int64_t oh, int64_t ow, int64_t co,
                               int64_t bias_count, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t pt, int64_t pl,
                               int64_t dh, int64_t dw, int64_t given, int64_t first, int64_t act, float lo, float hi) {
    const View op[] = {view(y, F32, 4, b, oh, ow, co), view(x, F32, 4, b, h, w, ci), view(weight, F32, 2, kh * kw, co),
                       bias_count ? view(bias, F32, 1, bias_count) : View(),
                       added(residual, given, view(y, F32, 4, b, oh, ow, co))};
    const int64_t ints[] = {kh, kw, sh, sw, pt, pl, dh, dw, act, first};
    const float floats[] = {lo, hi};
    return call("dwconv2d", op, 5, ints, 10, floats, 2);
}
