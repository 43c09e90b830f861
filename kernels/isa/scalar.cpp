// Portable C: every kernel, in every build.
#include "../contract/shapes.h"
#include "../strided.h"

namespace edgec {
namespace scalar {
#include "../simd/scalar.h"
#include "../simd/math.h"
#include "../generic/all.h"
}  // namespace scalar
}  // namespace edgec
