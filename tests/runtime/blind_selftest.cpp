// Kernels that read zeros instead of one of their inputs, and kernels that do nothing: the trials of
// runtime/selftest.cpp must notice.
#include <stdio.h>

#include "session.h"

namespace edgec {
namespace {

RunFn g_true;
int g_ignored;  // an operand; -1: nothing is computed
alignas(64) uint8_t g_zeros[1 << 16];

void ignores_an_input(const Args &a, int64_t begin, int64_t end, void *scratch) {
    if (g_ignored < 0) return;
    View views[kMaxOperands];
    for (int k = 0; k < a.n_op; k++) views[k] = a.op[k];
    views[g_ignored].data = g_zeros;
    Args changed = a;
    changed.op = views;
    g_true(changed, begin, end, scratch);
}

}  // namespace

RunFn kernel_run(const Kernel &kernel, uint8_t isa) {
    g_true = kernel.run[SCALAR];
    return isa == SCALAR ? g_true : ignores_an_input;
}

}  // namespace edgec

using namespace edgec;

struct Ignored {
    const char *kernel;
    int operand;
};

int main() {
    const Ignored cases[] = {{"linear", 1},      {"linear", 2},      {"linear_split", 4},      {"linear_split", 5},
                             {"linear_bits", 1}, {"linear_bits", 2}, {"linear_bits_split", 4}, {"linear_bits_split", 5},
                             {"conv2d_bits", 1}, {"conv2d_bits", 2}};
    int failed = 0, passed = 0;
    const auto check = [&](const char *kernel, int operand) {
        Plan plan;
        plan.n_entries = 1;
        if (!plan.entry[0].calls.allocate(default_allocator(), 1)) return;
        plan.entry[0].calls[0].kernel = uint32_t(find_kernel(kernel) - kKernels);
        g_ignored = operand;
        Message message;
        const bool noticed = kernels_compare(plan, AVX2, default_allocator(), message) == EDGEC_ERROR_SELFTEST;
        (noticed ? passed : failed)++;
        if (!noticed) printf("%s: operand %d is not needed\n", kernel, operand);
    };
    for (const Ignored &c : cases) check(c.kernel, c.operand);
    // Every row that has a body of its own on some instruction set is tried at all.
#define KERNEL(name, n_out, in_place) check(#name, -1);
#define PREPARED KERNEL
#define DOTTED KERNEL
#define LEVELED KERNEL
#define NARROW KERNEL
#define PORTABLE(name, n_out, in_place)
#include "kernels.def"
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
