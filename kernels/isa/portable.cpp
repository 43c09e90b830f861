// Kernels that only move elements: one body in plain C serves every instruction set, for memory is their limit.
#include "../contract/bits.h"
#include "../strided.h"

namespace edgec {
namespace portable {
#include "../generic/movement.h"
#include "../generic/where.h"
#include "../generic/gather_bits.h"
}  // namespace portable
}  // namespace edgec
