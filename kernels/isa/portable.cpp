// Kernels that only move elements: one body in plain C serves every instruction set, for memory is their limit.
#include "../contract/shapes.h"
#include "../strided.h"

namespace edgec {
namespace portable {
#include "../generic/movement.h"
#include "../generic/where.h"
}  // namespace portable
}  // namespace edgec
