#include "problem.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace edgec_solve {
namespace avx2 {
constexpr int kWidth = 32;
#include "isa.h"
}  // namespace avx2
const Isa kAvx2 = {avx2::groups_tile, avx2::compensated_tile, avx2::groups_scratch, avx2::compensated_scratch,
                     avx2::subtract_product};
}  // namespace edgec_solve

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
