// Portable C: every kernel, in every build.
#include "../contract/bits.h"
#include "../contract/q8.h"
#include "../strided.h"

namespace edgec {
namespace scalar {
#include "../simd/scalar.h"
#define EDGEC_MATH EDGEC_NOINLINE
#include "../simd/no_scale.h"
#include "../simd/math.h"
#include "../generic/lanes.h"
#include "../generic/bits_scales.h"
// There is no shuffle of bytes: weights of few bits are decoded whatever the number of rows.
constexpr BitsMethod kLookups = {}, kFastLookups = {}, kMany = {};
constexpr PaletteBytes kPaletteBytes = nullptr;
#include "../generic/palette_turn.h"
#include "../generic/all.h"
#include "../generic/narrow.h"
}  // namespace scalar
}  // namespace edgec
