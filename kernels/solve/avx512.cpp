#include "problem.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2")
#endif

namespace edgec_solve {
namespace avx512 {
constexpr int kWidth = 64;
#include "isa.h"
}  // namespace avx512
const Isa kAvx512 = {avx512::groups_tile, avx512::compensated_tile, avx512::groups_scratch, avx512::compensated_scratch,
                     avx512::subtract_product};
}  // namespace edgec_solve

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
