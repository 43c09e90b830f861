// Kernels that read zeros instead of one of their inputs, that misread the codes of a cache, and that do nothing: the
// trials of runtime/selftest.cpp must notice.
#include <stdio.h>

#include "../kernels/contract/shapes.h"
#include "session.h"

namespace edgec {
namespace {

RunFn g_true;
int g_ignored;  // an operand; -1: nothing is computed
alignas(64) uint8_t g_zeros[1 << 16], g_codes[1 << 16];

// What a kernel may get wrong in rows of a cache: from byte `from` of a group on, by steps, these bits are not read.
struct Misread {
    uint8_t dtype, unread;
    uint64_t from, step;
};
const Misread *g_misread;  // null: zeros are read

void ignores_an_input(const Args &a, int64_t begin, int64_t end, void *scratch) {
    if (g_ignored < 0) return;
    View views[kMaxOperands];
    for (int k = 0; k < a.n_op; k++) views[k] = a.op[k];
    View &v = views[g_ignored];
    if (!g_misread) {
        v.data = g_zeros;
    } else if (v.dtype == g_misread->dtype) {
        memcpy(g_codes, v.data, size_t(bytes_of(v)));
        const uint64_t group = v.dtype == U8 ? kKvFour + kKvGroup / 2 : uint64_t(v.dim[2]);
        for (uint64_t i = 0; i < uint64_t(bytes_of(v)); i++) {
            const uint64_t at = i % uint64_t(v.dim[2]) % group;
            if (at >= g_misread->from && (at - g_misread->from) % g_misread->step == 0) g_codes[i] &= uint8_t(~g_misread->unread);
        }
        v.data = g_codes;
    }
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
    // Signs of 8 bits, a scale's exponent; low and high halves, the sign of a minimum, a scale's exponent.
    const Misread misread[] = {{I8, 0x80, 2, 1}, {I8, 0x04, 1, 1000}, {U8, 0x0F, 4, 1}, {U8, 0xF0, 4, 1},
                               {U8, 0x80, 3, 1000}, {U8, 0x04, 1, 1000}};
    for (const Misread &m : misread) {
        g_misread = &m;
        for (int operand = 2; operand <= 3; operand++) check("attention_cached", operand);
    }
    g_misread = nullptr;
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
