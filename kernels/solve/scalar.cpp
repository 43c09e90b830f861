// Whatever the compiler's baseline is: SSE2 on x86-64, NEON on aarch64.
#include "problem.h"

namespace edgec_solve {
namespace scalar {
constexpr int kWidth = 16;
#include "isa.h"
}  // namespace scalar
const Isa kScalar = {scalar::groups_tile, scalar::compensated_tile, scalar::groups_scratch, scalar::compensated_scratch,
                     scalar::subtract_product};
}  // namespace edgec_solve
