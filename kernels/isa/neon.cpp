// aarch64 Advanced SIMD, which is part of the baseline: no target region is needed.
#include "../contract/bits.h"
#include "../contract/q8.h"
#include "../strided.h"

#if EDGEC_HAVE_NEON
#include <arm_neon.h>

namespace edgec {
namespace neon {
#include "../simd/neon.h"
#define EDGEC_MATH EDGEC_INLINE
#include "../simd/no_scale.h"
#include "../simd/math.h"
#include "../generic/lanes.h"
#include "../generic/bits_scales.h"
#include "../generic/tables.h"
#include "../generic/lut.h"
#include "../generic/palette_turn.h"
#include "../generic/palette_bytes.h"
constexpr BitsMethod kFastLookups = {tables_of<Code8>, lut_sums<Code8>};
// Products of 16-bit integers are as many per instruction as of floats: the weights are decoded.
constexpr BitsMethod kMany = kDecoded;
#include "../generic/all.h"
#include "../generic/narrow.h"
}  // namespace neon
}  // namespace edgec
#endif
