// WebAssembly with 128-bit vectors: a module has them for every function (-msimd128) or for none, because an engine
// that lacks them refuses the whole module. So there is no target region, and nothing to choose at run time.
#include "../contract/bits.h"
#include "../contract/q8.h"
#include "../strided.h"

#if EDGEC_HAVE_WASM
#include <wasm_simd128.h>

namespace edgec {
namespace wasm {
#include "../simd/wasm.h"
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
constexpr BitsMethod kMany = kDecoded;
#include "../generic/all.h"
#include "../generic/narrow.h"
}  // namespace wasm
}  // namespace edgec
#endif
